//! What an archive may cost.

use crate::tree;

/// Upper bounds for one archive. The defaults are far above any real image and far below what fills a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one archive, whiteouts and duplicates included.
    pub entries_max: u64,
    /// Bytes of the uncompressed archive.
    pub uncompressed_bytes_max: u64,
    /// Uncompressed bytes per compressed byte, enforced once `ratio_free_bytes` have come out.
    pub ratio_max: u64,
    /// Uncompressed bytes for which no ratio is asked.
    pub ratio_free_bytes: u64,
    /// Bytes of one path inside the archive; more than a tree holds is refused before anything is made.
    pub path_bytes_max: usize,
    /// Components of one path; likewise.
    pub depth_max: usize,
    /// Bytes of all names, link targets and xattrs kept in the listing: bounds what it takes on the disk.
    pub listing_bytes_max: u64,
    /// Bytes of xattr names and values of one entry.
    pub xattr_bytes_max: usize,
    /// Bytes of one entry's PAX records or GNU long name.
    pub extension_bytes_max: usize,
    /// Base-2 logarithm of the largest zstd window: memory the sender can make us allocate.
    pub zstd_window_log_max: u32,
    /// Memory in KiB that an xz dictionary may make us allocate: that of `xz -9` and half as much again.
    pub xz_memory_kib_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_max: 10_000_000,
            uncompressed_bytes_max: 64 << 30,
            ratio_max: 1000,
            ratio_free_bytes: 64 << 20,
            path_bytes_max: tree::PATH_BYTES_MAX,
            depth_max: tree::DEPTH_MAX,
            listing_bytes_max: 2 << 30,
            xattr_bytes_max: 64 << 10,
            extension_bytes_max: 1 << 20,
            zstd_window_log_max: 27,
            xz_memory_kib_max: 96 << 10,
        }
    }
}

/// Longest file name the kernel takes (`NAME_MAX`).
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Longest symbolic link target the kernel takes (`PATH_MAX` without its NUL).
pub(super) const LINK_BYTES_MAX: usize = 4095;
