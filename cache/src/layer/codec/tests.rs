use proptest::prelude::*;

use super::*;

fn metas() -> impl Strategy<Value = Meta> {
    let xattrs = prop::collection::btree_map(
        prop::collection::vec(any::<u8>(), 1..6),
        prop::collection::vec(any::<u8>(), 0..6),
        0..3,
    );
    (0..0o10000u32, any::<u32>(), any::<u32>(), xattrs).prop_map(|(mode, uid, gid, xattrs)| Meta {
        mode,
        uid,
        gid,
        xattrs,
    })
}

fn changes() -> impl Strategy<Value = Change> {
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        Just(Change::Whiteout),
        (metas(), any::<bool>()).prop_map(|(meta, opaque)| Change::Dir { meta, opaque }),
        (metas(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(meta, size, hash)| Change::File {
            meta,
            size,
            content: ContentDigest(hash)
        }),
        (metas(), bytes).prop_map(|(meta, target)| Change::Symlink { meta, target }),
        (metas(), any::<u32>(), any::<u32>()).prop_map(|(meta, major, minor)| Change::CharDevice {
            meta,
            major,
            minor
        }),
        (metas(), any::<u32>(), any::<u32>()).prop_map(|(meta, major, minor)| Change::BlockDevice {
            meta,
            major,
            minor
        }),
        metas().prop_map(|meta| Change::Fifo { meta }),
    ]
}

fn diffs() -> impl Strategy<Value = LayerDiff> {
    let path = prop::collection::vec("[a-c\\.é]{1,3}", 1..4)
        .prop_filter_map("clean", |parts| RelPath::new(parts.join("/")).ok());
    let times = (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Mtime { secs, nanos });
    prop::collection::btree_map(path, (changes(), times, any::<bool>()), 0..30).prop_map(|entries| {
        let mut file: Option<RelPath> = None;
        let entries = entries.into_iter().map(|(path, (mut change, mtime, is_link))| {
            match (&file, is_link) {
                (Some(target), true) => change = Change::Hardlink { target: target.clone() },
                _ if matches!(change, Change::File { .. }) => file = Some(path.clone()),
                _ => {}
            }
            DiffEntry { path, change, mtime }
        });
        entries.collect()
    })
}

pub(in super::super) fn encoded(diff: &LayerDiff) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_diff(diff, &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, encoded_len(diff));
    bytes
}

/// From a file in which they are not alone.
pub(in super::super) fn decoded(bytes: &[u8]) -> Result<LayerDiff, CodecError> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[b"before", bytes, b"behind"].concat(), 0).unwrap();
    decode_diff(file, 6, 6 + bytes.len() as u64)
}

/// Replaces the checksum, so that what is behind it gets tested.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let check = blake3::hash(&body);
    body.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
    body
}

proptest! {
    #[test]
    fn a_diff_survives(diff in diffs()) {
        prop_assert_eq!(decoded(&encoded(&diff)).unwrap(), diff);
    }

    #[test]
    fn there_is_one_encoding(diff in diffs(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = encoded(&diff);
        body.truncate(body.len() - CHECK_BYTES);
        let at = at.index(body.len());
        body[at] = byte;
        let bytes = sealed(body);
        if let Ok(diff) = decoded(&bytes) {
            prop_assert_eq!(encoded(&diff), bytes);
        }
    }

    #[test]
    fn any_bytes_decode_or_fail_cleanly(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = sealed([&b"rbld\x01"[..], &rest].concat());
        if let Ok(diff) = decoded(&bytes) {
            prop_assert_eq!(encoded(&diff), bytes);
        }
    }
}

#[test]
fn damage_is_told_from_another_version() {
    let bytes = encoded(&LayerDiff::default());
    assert!(matches!(decoded(b""), Err(CodecError::Version)));
    assert!(matches!(decoded(b"rbld\x02..................."), Err(CodecError::Version)));
    assert!(matches!(decoded(&bytes[..bytes.len() - 1]), Err(CodecError::Damaged)));
    assert!(matches!(decoded(&bytes[..6]), Err(CodecError::Damaged)));
}

#[test]
fn the_encoding_is_pinned() {
    let diff = LayerDiff::from_iter([
        DiffEntry {
            path: RelPath::new("etc").unwrap(),
            change: Change::Dir { meta: Meta { mode: 0o755, ..Meta::default() }, opaque: false },
            mtime: Mtime { secs: -1, nanos: 7 },
        },
        DiffEntry { path: RelPath::new("etc/x").unwrap(), change: Change::Whiteout, mtime: Mtime::default() },
    ]);
    let body = b"rbld\x01\x02\x00\x03etc\x01\x01\x07\xed\x03\x00\x00\x00\x03\x02/x\x00\x00\x00";
    assert_eq!(encoded(&diff), sealed(body.to_vec()));
}

#[test]
fn a_made_up_count_reserves_no_memory() {
    let body = [&b"rbld\x01"[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"].concat();
    assert!(matches!(decoded(&sealed(body)), Err(CodecError::Malformed { .. })));
}
