//! The directory on disk.
