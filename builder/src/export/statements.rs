//! What attestations say about exported files: in-toto statements that every file is a subject of.
//!
//! There may be a million files: their digests and the statements are in scratch files.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt as _;

use rbuild_cache::copy::FileSource;
use rbuild_cache::layer::{Change, LayerDiff};
use rbuild_cache::scratch::Scratch;
use rbuild_oci::{Digest, Sha256};
use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use crate::assemble::attestation::{Keys, Predicate, subject};
use crate::assemble::file_blob::{FileBlob, Window};
use crate::error::StepFailure;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// What is kept of each entry's digest.
const DIGEST_BYTES: usize = 32;

/// A statement about files, as JSON.
pub(super) struct FileStatement {
    /// Name of the file that it goes to.
    pub(super) name: String,
    /// What that file has.
    pub(super) blob: FileBlob,
}

/// Writes what each of the predicates says about the files of a listing.
pub(super) fn about_files<'a>(
    predicates: impl Iterator<Item = &'a Predicate>,
    listing: &LayerDiff,
    source: &dyn FileSource,
    scratch: &Scratch,
) -> Result<Vec<FileStatement>, StepFailure> {
    let mut predicates = predicates.peekable();
    if predicates.peek().is_none() {
        return Ok(Vec::new());
    }
    let subjects = Subjects::of(listing, source, scratch)?;
    predicates
        .map(|predicate| {
            let name = predicate.file_name.clone();
            let statement = predicate.statement(&subjects, &[], Keys::AsSaid);
            FileBlob::write(scratch, |out| Ok(serde_json::to_writer_pretty(out, &statement)?))
                .map(|blob| FileStatement { name: name.clone(), blob })
                .map_err(|source| StepFailure::Io { what: "write", path: name, source })
        })
        .collect()
}

/// Every file of a listing with the digest of its bytes, as attestations name what they are about.
struct Subjects<'a> {
    listing: &'a LayerDiff,
    /// By the index of the entry. Zeros, which are no digest that is known of any bytes, for what is no file.
    digests: File,
}

impl<'a> Subjects<'a> {
    /// Reads all files.
    fn of(listing: &'a LayerDiff, source: &dyn FileSource, scratch: &Scratch) -> Result<Self, StepFailure> {
        let unkept = |source| StepFailure::Io { what: "keep digests of", path: "files".to_owned(), source };
        let place = |index: usize| (index * DIGEST_BYTES) as u64;
        let digests = scratch.file().map_err(unkept)?;
        digests.set_len(place(listing.len())).map_err(unkept)?;
        let mut buffer = vec![0; READ_BYTES];
        for (index, entry) in listing.iter().enumerate() {
            let entry = entry?;
            let digest = match &entry.change {
                Change::File { .. } => {
                    let unread =
                        |source| StepFailure::Io { what: "read", path: entry.path.to_string(), source };
                    let mut file = File::from(source.open(&entry.path)?);
                    let mut hash = Sha256::new();
                    loop {
                        match file.read(&mut buffer).map_err(unread)? {
                            0 => break,
                            len => hash.update(&buffer[..len]),
                        }
                    }
                    *hash.finish().as_bytes()
                }
                Change::Hardlink { target } => {
                    // It comes before its other names.
                    let Some(first) = listing.position(target)? else { continue };
                    let mut digest = [0; DIGEST_BYTES];
                    digests.read_exact_at(&mut digest, place(first)).map_err(unkept)?;
                    digest
                }
                _ => continue,
            };
            digests.write_all_at(&digest, place(index)).map_err(unkept)?;
        }
        Ok(Self { listing, digests })
    }
}

impl Serialize for Subjects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut digests = BufReader::new(Window::of(&self.digests));
        let mut subjects = serializer.serialize_seq(None)?;
        for entry in self.listing {
            let entry = entry.map_err(S::Error::custom)?;
            let mut digest = [0; DIGEST_BYTES];
            digests.read_exact(&mut digest).map_err(S::Error::custom)?;
            if digest != [0; DIGEST_BYTES] {
                subjects.serialize_element(&subject(&entry.path.to_string(), Digest::from_bytes(digest)))?;
            }
        }
        subjects.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::fd::OwnedFd;

    use rbuild_cache::copy::SourceError;
    use rbuild_cache::layer::{DiffEntry, Mtime};
    use rbuild_cache::path::RelPath;
    use rbuild_cache::tree::{ContentDigest, Meta};
    use serde_json::{Value, json};

    use super::*;
    use crate::assemble::attestation::{STATEMENT, Said};
    use crate::assemble::provenance::Document;

    /// Every file has its path for bytes.
    struct Named(tempfile::TempDir);

    impl FileSource for Named {
        fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
            let at = self.0.path().join("f");
            fs::write(&at, path.as_bytes()).unwrap();
            Ok(File::open(at).unwrap().into())
        }

        fn mtime(&self, _path: &RelPath) -> Result<Mtime, SourceError> {
            Ok(Mtime::default())
        }
    }

    fn listing(entries: impl IntoIterator<Item = (String, Change)>) -> LayerDiff {
        let entry = |(path, change): (String, Change)| DiffEntry {
            path: RelPath::clamp(path.as_bytes()),
            change,
            mtime: Mtime::default(),
        };
        entries.into_iter().map(entry).collect()
    }

    #[track_caller]
    fn check(listing: &LayerDiff) {
        let temp = tempfile::tempdir().unwrap();
        let scratch = Scratch::on(File::open(temp.path()).unwrap()).unwrap();
        let predicate = |file_name: &str| Predicate {
            kind: "https://example.com/kind",
            said: Said::Provenance(
                Document::of(&json!({"b": 1, "a": [1, 2, {}]}), None, None, &scratch).unwrap(),
            ),
            inline_only: false,
            file_name: file_name.to_owned(),
        };
        let predicates = [predicate("one.json"), predicate("two.json")];
        let statements = about_files(predicates.iter(), listing, &Named(temp), &scratch).unwrap();

        let mut digests: HashMap<RelPath, Digest> = HashMap::new();
        let mut subjects: Vec<Value> = Vec::new();
        for entry in listing {
            let entry = entry.unwrap();
            let digest = match &entry.change {
                Change::File { .. } => Digest::of(entry.path.as_bytes()),
                Change::Hardlink { target } => digests[target],
                _ => continue,
            };
            digests.insert(entry.path.clone(), digest);
            subjects.push(subject(&entry.path.to_string(), digest));
        }
        let expected = serde_json::to_string_pretty(&json!({
            "_type": STATEMENT,
            "predicateType": "https://example.com/kind",
            "subject": subjects,
            "predicate": {"b": 1, "a": [1, 2, {}]},
        }));
        let expected = expected.unwrap();
        assert_eq!(statements.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["one.json", "two.json"]);
        for statement in &statements {
            // More than once, as each output does.
            for _ in 0..2 {
                let mut text = String::new();
                statement.blob.reader().read_to_string(&mut text).unwrap();
                assert_eq!(text, expected);
                assert_eq!(statement.blob.size, expected.len() as u64);
            }
        }
    }

    fn file() -> Change {
        Change::File { meta: Meta::default(), size: 1, content: ContentDigest::of(b"") }
    }

    #[test]
    fn every_name_of_a_file_is_a_subject() {
        check(&listing([]));
        let target = || RelPath::clamp(b"a/f");
        check(&listing([
            (String::new(), Change::Dir { meta: Meta::default(), opaque: false }),
            ("a".to_owned(), Change::Dir { meta: Meta::default(), opaque: false }),
            ("a/f".to_owned(), file()),
            ("a/g".to_owned(), Change::Hardlink { target: target() }),
            ("b".to_owned(), Change::Symlink { meta: Meta::default(), target: b"a".to_vec() }),
            ("c \"quoted\"".to_owned(), file()),
            ("d".to_owned(), Change::Hardlink { target: target() }),
            ("e".to_owned(), Change::Fifo { meta: Meta::default() }),
        ]));
    }

    #[test]
    fn many_files_are_subjects() {
        let of = |at: usize| match at % 3 {
            0 => file(),
            _ => Change::Hardlink { target: RelPath::clamp(format!("f{:04}", at / 6 * 3).as_bytes()) },
        };
        check(&listing((0..2000).map(|at| (format!("f{at:04}"), of(at)))));
    }
}
