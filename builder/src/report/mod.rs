//! Errors to text.

pub mod human;
