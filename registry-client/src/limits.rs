//! Every bound of this crate in one place.

use std::time::Duration;

/// Largest manifest or index accepted, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = rbuild_oci::Document::BYTES_MAX as u64;

/// Largest image config accepted, in bytes.
pub const CONFIG_BYTES_MAX: u64 = rbuild_oci::ImageConfig::BYTES_MAX;

/// Largest blob that is kept in memory whole.
pub const SMALL_BLOB_BYTES_MAX: u64 = 32 << 20;

/// Largest token answer read, in bytes.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Error bodies are read up to here; the rest is not fetched.
pub const ERROR_BODY_BYTES_MAX: usize = 64 << 10;

/// Characters of a registry's own words repeated in one message.
pub const ERROR_TEXT_CHARS_MAX: usize = 2000;

/// Nested indexes followed before a document counts as hostile.
pub const INDEX_DEPTH_MAX: usize = 3;

/// Redirects followed for one request.
pub const REDIRECTS_MAX: usize = 10;

/// Answers to `401` tried for one request before the registry's word is final.
pub const REAUTHENTICATIONS_MAX: usize = 2;

/// `WWW-Authenticate` bytes and challenges looked at.
pub const CHALLENGE_BYTES_MAX: usize = 8 << 10;

/// Challenges parsed out of one answer.
pub const CHALLENGES_MAX: usize = 16;

/// Longest wait a registry can impose through `Retry-After`.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Times a broken download is picked up again in all.
pub const RESUMES_MAX: usize = 32;

/// Times a broken download is picked up again without having moved forward.
pub const RESUMES_WITHOUT_PROGRESS_MAX: usize = 4;

/// Times an upload is started or resumed.
pub const UPLOAD_ATTEMPTS_MAX: usize = 5;

/// Times a blob just uploaded is looked for before the upload counts as lost.
pub const UPLOAD_CHECKS_MAX: usize = 4;

/// Bytes of one chunk of an upload, unless the registry asks for more. Some registries take none below 5 MB.
pub const CHUNK_BYTES: u64 = 8 << 20;

/// Largest chunk a registry can ask for: who refuses whole blobs refuses such chunks, too.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;

/// Answers of a paginated list followed.
pub const PAGES_MAX: usize = 10_000;

/// Bytes of one page of a list.
pub const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Entries of a paginated list in all.
pub const LIST_ENTRIES_MAX: usize = 1_000_000;

/// Slowest transfer tolerated, in bytes per second over [`crate::Deadlines::rate_window`].
pub const RATE_BYTES_PER_SECOND_MIN: u64 = 1 << 10;

/// Time a credential helper gets, and the size of its answer.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes read from a credential helper.
pub const HELPER_BYTES_MAX: u64 = 64 << 10;

/// Bytes that one stream of HTTP/2 may have sent us and nobody has read.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// The same for a connection: more streams than are transferred at once, from a host that stores for several. Streams that are
/// not read for a while, as others have to be unpacked first, must not take the room of those.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;

/// Age up to which a helper's answer is used again: some helpers hand out tokens that live five minutes.
pub const HELPER_ANSWER_AGE_MAX: Duration = Duration::from_secs(290);

/// Time an AWS service gets.
pub const AWS_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes read of an answer of AWS.
pub const AWS_BYTES_MAX: usize = 256 << 10;

/// Largest configuration file read, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 << 20;
