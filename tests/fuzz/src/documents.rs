//! References, manifests, indexes, configurations.

use rbuild_oci::{Document, ImageConfig, Platform, Reference};

/// A reference that is read is written and read as itself.
pub(crate) fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(
            written.parse::<Reference>().as_ref(),
            Ok(&reference),
            "{text:?} is written as {written:?}"
        );
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let written = platform.to_string();
        assert_eq!(written.parse::<Platform>().as_ref(), Ok(&platform), "{text:?} is written as {written:?}");
    }
}

/// A configuration that is read is written and read as itself.
pub(crate) fn document(bytes: &[u8]) {
    let _ = Document::parse(bytes, None);
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) {
        let written = config.to_json();
        let again: ImageConfig = serde_json::from_slice(&written).expect("what we write can be read");
        assert_eq!(again, config);
    }
}
