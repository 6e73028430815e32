//! What registries answer with. The parser is compiled from its source file: the crate around it brings TLS and HTTP,
//! which a fuzzer has no use for.

#[path = "../../../registry-client/src/auth/challenge.rs"]
mod parser;

/// A `WWW-Authenticate` header gives an answer.
pub(crate) fn challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parser::choose(text.split('\n'));
}
