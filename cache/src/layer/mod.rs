//! Layer directories and layer archives.
//!
//! A *layer directory* holds one layer in overlayfs upper form (see [`OverlayForm`]); its [`LayerDiff`] lists
//! everything in it. The verbs:
//!
//! ```text
//!        ┌──────── unpack_blob ───────┐
//!  blob ─▶ LayerReader ─▶ tar ─▶ unpack ─▶ directory + LayerDiff ─▶ emit_tar ─▶ encode ─▶ blob
//!          (inflate, both hashes)             ▲                                  (both hashes, deflate)
//!                          RUN ─▶ scan_upper ─┘
//! ```
//!
//! Archives, and what a RUN left behind, are hostile: every name is resolved one component at a time below an open
//! directory without following links, every size and count has a limit in [`Limits`], and no path is ever joined to
//! a string that the kernel resolves from the outside.

mod checkout;
mod codec;
mod compress;
mod decompress;
mod diff;
mod dirs;
mod emit;
mod flatten;
mod limits;
mod marks;
mod members;
mod overlay;
mod pack;
mod pipe;
mod recognise;
mod scan;
mod slots;
mod tar;
mod times;
mod unpack;
mod xattrs;

pub use checkout::{Checkout, CheckoutError};
pub(crate) use codec::{CUT_OFF, Reader as FieldReader, encoded_len, put_bytes, put_number, put_path};
pub use codec::{CodecError, decode_diff, write_diff};
pub use compress::{
    Compression, DEFAULT_GZIP, DEFAULT_ZSTD, EncodeError, EncodeShare, Encoded, Gzip, Hashed, encode,
    encode_on, hash_from,
};
pub use decompress::{ArchiveFormat, DecompressError, LayerReader, LayerSums};
pub use diff::{Change, DiffEntry, Entries, LayerDiff, ListingCheck, ListingError, Mtime};
pub(crate) use diff::{Stop, Stops};
pub(crate) use dirs::is_below;
pub use emit::{Bodies, DirBodies, Each, EmitError, PackBodies, emit_from, emit_tar, emit_tar_from};
pub(crate) use emit::{PassError, checked, read_all};
pub use flatten::{FilesArchive, FlattenError, listing};
pub use limits::Limits;
pub use marks::{Marks, Start, TarPlace};
pub use members::{ArchiveMember, read_members};
pub use overlay::{OverlayForm, Owners};
pub use pack::{Pack, PackError, PackReader, PackWriter, Place};
pub use pipe::{UnpackBlobError, unpack_archive, unpack_blob};
pub use recognise::is_archive;
pub use scan::{
    ParentEntry, ParentView, ParentViewError, ScanError, StepOwners, Untouched, scan_upper, scan_upper_of,
    verify_layer,
};
pub use tar::TarError;
pub use times::TimesDigest;
pub use unpack::{ImpliedDirs, UnpackError, Unpacked, fix_implied, unpack};
pub use xattrs::kept_xattrs;
