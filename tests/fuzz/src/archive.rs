//! Layers. The tar reader is compiled from its source files: the crate around it brings a database and a registry
//! client, which a fuzzer has no use for. `diff` has the one type that it takes from there.

pub(crate) mod diff {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Mtime {
        pub(crate) secs: i64,
        pub(crate) nanos: u32,
    }
}

#[path = "../../../cache/src/layer/limits.rs"]
#[allow(dead_code, unreachable_pub, reason = "only the reader's limits are looked at")]
mod limits;

#[path = "../../../cache/src/layer/tar/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "only the reader is called")]
mod tar;

/// Every member has a body of the size that it says, and times are normal.
pub(crate) fn archive(bytes: &[u8]) {
    let limits = limits::Limits::default();
    let mut reader = tar::TarReader::new(bytes, &limits);
    let mut buffer = [0; 512];
    while let Ok(Some(member)) = reader.next() {
        assert!(member.mtime.nanos < 1_000_000_000, "{member:?}");
        let mut found = 0;
        loop {
            match reader.read_body(&mut buffer) {
                Ok(0) => break,
                Ok(len) => found += len as u64,
                Err(_) => return,
            }
        }
        if let tar::MemberKind::File { size } = member.kind {
            assert_eq!(found, size, "{member:?}");
        }
    }
}
