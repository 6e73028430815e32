//! Every bound of the template engine.

/// Bytes of a template.
pub const TEMPLATE_BYTES_MAX: usize = 64 << 10;

/// Levels of blocks and parentheses, which are levels of recursion here.
pub const DEPTH_MAX: usize = 64;

/// Bytes of the result, and of any text on the way to it.
pub const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Nodes, commands and arguments evaluated: three nested ranges over a hundred entries each.
pub const STEPS_MAX: usize = 4_000_000;

/// Width and precision in `printf`, blanks of `pad`.
pub const WIDTH_MAX: usize = 4096;
