use super::block::{self, field};
use super::reader::read_all;
use super::*;

/// A raw header for hostile archives: fields are set on bytes, the checksum last.
pub(in super::super) struct Raw(pub(in super::super) [u8; BLOCK_BYTES]);

impl Raw {
    pub(in super::super) fn new(name: &[u8], flag: u8) -> Self {
        let mut block = [0; BLOCK_BYTES];
        block[..name.len()].copy_from_slice(name);
        for range in [field::UID, field::GID, field::SIZE, field::MTIME] {
            block::put_octal(&mut block[range], 0);
        }
        block::put_octal(&mut block[field::MODE], 0o644);
        block[field::TYPE] = flag;
        block[field::MAGIC].copy_from_slice(block::USTAR);
        Self(block)
    }

    pub(in super::super) fn size(mut self, size: u64) -> Self {
        assert!(block::put_octal(&mut self.0[field::SIZE], size));
        self
    }

    pub(in super::super) fn link(mut self, target: &[u8]) -> Self {
        self.0[field::LINK.start..field::LINK.start + target.len()].copy_from_slice(target);
        self
    }

    pub(in super::super) fn raw(mut self, range: std::ops::Range<usize>, bytes: &[u8]) -> Self {
        self.0[range][..bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(in super::super) fn mode(mut self, mode: u64) -> Self {
        assert!(block::put_octal(&mut self.0[field::MODE], mode));
        self
    }

    pub(in super::super) fn seal(mut self) -> Vec<u8> {
        block::put_checksum(&mut self.0);
        self.0.to_vec()
    }

    /// Header and padded body.
    pub(in super::super) fn with(self, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.size(body.len() as u64).seal();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }
}

/// PAX header with these records.
pub(in super::super) fn pax_of(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        pax::push(&mut data, &[key], value);
    }
    Raw::new(b"pax", b'x').with(&data)
}

fn member(path: &[u8], kind: MemberKind) -> Member {
    Member {
        path: path.to_vec(),
        kind,
        mode: 0o4755,
        uid: 1000,
        gid: 0,
        mtime: Mtime { secs: 1_700_000_000, nanos: 0 },
        xattrs: BTreeMap::new(),
    }
}

fn written(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TarWriter::new(&mut bytes);
    for member in members {
        writer.header(member).unwrap();
        if let MemberKind::File { size } = member.kind {
            writer.body(&vec![b'x'; size as usize]).unwrap();
        }
    }
    writer.finish().unwrap();
    bytes
}

#[test]
fn what_the_writer_writes_the_reader_reads() {
    let mut big = member(&[b'p'; 300], MemberKind::File { size: 513 });
    (big.uid, big.gid, big.mtime.secs) = (4_000_000_000, 2_097_152, -5);
    big.xattrs.insert(b"user.a".to_vec(), b"\0\n=".to_vec());
    big.xattrs.insert(b"user.b".to_vec(), Vec::new());
    let split = [&[b'd'; 90][..], &[b'e'; 60], &[b'f'; 99]].join(&b'/');
    let members = [
        member(b"./", MemberKind::Dir),
        big,
        member(&split, MemberKind::File { size: 0 }),
        member(b"link", MemberKind::Symlink { target: vec![b't'; 200] }),
        member(b"hard", MemberKind::Hardlink { target: b"link2".to_vec() }),
        member(b"null", MemberKind::CharDevice { major: 1, minor: 3 }),
        member(b"sda", MemberKind::BlockDevice { major: 8, minor: 4_000_000_000 }),
        member(b"pipe", MemberKind::Fifo),
        member(b"not-\xff-utf8", MemberKind::File { size: 512 }),
    ];
    let read: Vec<Member> = read_all(&written(&members)).unwrap().into_iter().map(|(m, _)| m).collect();
    assert_eq!(read, members);
}

#[test]
fn plain_entries_take_one_header_block() {
    let bytes = written(&[member(b"etc/passwd", MemberKind::File { size: 10 })]);
    assert_eq!(bytes.len(), 4 * BLOCK_BYTES);
}

#[test]
fn a_pax_size_moves_the_next_header_too() {
    let mut archive = pax_of(&[(b"size", b"600")]);
    archive.extend(Raw::new(b"a", b'0').size(0).seal());
    archive.extend(vec![b'z'; 1024]);
    archive.extend(Raw::new(b"b", b'0').seal());
    let read = read_all(&archive).unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].1.len(), 600);
    assert_eq!(read[1].0.path, b"b");
}

#[test]
fn gnu_long_names_and_links_apply_to_the_next_entry_only() {
    let long = [b'n'; 200];
    let mut archive = Raw::new(b"././@LongLink", b'L').with(&[&long[..], b"\0"].concat());
    archive.extend(Raw::new(b"././@LongLink", b'K').with(&[b'k'; 150]));
    archive.extend(Raw::new(b"short", b'2').seal());
    archive.extend(Raw::new(b"next", b'5').seal());
    let read = read_all(&archive).unwrap();
    assert_eq!(read[0].0.path, long);
    assert_eq!(read[0].0.kind, MemberKind::Symlink { target: vec![b'k'; 150] });
    assert_eq!(read[1].0.path, b"next");
}

/// L8, L10, L11: headers that cannot be.
#[test]
fn hostile_headers_are_refused() {
    let negative = [&[0xffu8][..], &[0xff; 11]].concat();
    let huge = [&[0x80u8, 0xff][..], &[0xff; 10]].concat();
    let mut bad_sum = Raw::new(b"a", b'0').seal();
    bad_sum[0] = b'b';
    let extension_only = pax_of(&[(b"path", b"a")]);
    let two_names = [pax_of(&[(b"path", b"a")]), extension_only.clone()].concat();
    for (what, archive) in [
        ("negative size", Raw::new(b"a", b'0').raw(field::SIZE, &negative).seal()),
        ("huge size", Raw::new(b"a", b'0').raw(field::SIZE, &huge).seal()),
        ("size beyond the stream", Raw::new(b"a", b'0').size(4096).seal()),
        ("not a number", Raw::new(b"a", b'0').raw(field::SIZE, b"12x4").seal()),
        ("checksum", bad_sum),
        ("cut header", Raw::new(b"a", b'0').seal()[..100].to_vec()),
        ("negative uid", Raw::new(b"a", b'0').raw(field::UID, &[0xff; 8]).seal()),
        ("uid -1", Raw::new(b"a", b'0').raw(field::UID, b"\x80\0\0\0\xff\xff\xff\xff").seal()),
        ("uid over 32 bits", Raw::new(b"a", b'0').raw(field::UID, b"\x80\0\0\x01\0\0\0\0").seal()),
        ("sparse", Raw::new(b"a", b'S').seal()),
        ("unknown type", Raw::new(b"a", b'Z').seal()),
        ("directory with a size", Raw::new(b"a/", b'5').size(512).seal()),
        ("extension for nothing", extension_only),
        ("chain of extensions", two_names),
        ("global path", {
            let mut data = Vec::new();
            pax::push(&mut data, &[b"path"], b"x");
            Raw::new(b"g", b'g').with(&data)
        }),
        ("pax path with NUL", [pax_of(&[(b"path", b"a\0b")]), Raw::new(b"a", b'0').seal()].concat()),
        ("long name of a gigabyte", Raw::new(b"././@LongLink", b'L').size(1 << 30).seal()),
        ("xattrs over the limit", {
            let records = pax_of(&[(b"SCHILY.xattr.user.a", &[0; 70_000])]);
            [records, Raw::new(b"a", b'0').seal()].concat()
        }),
        ("zero block in between", [vec![0; 512], Raw::new(b"a", b'0').seal()].concat()),
    ] {
        let read = read_all(&archive);
        assert!(read.is_err(), "{what}: {read:?}");
    }
}

#[test]
fn base_256_owners_and_times_are_read() {
    let raw = Raw::new(b"a", b'0')
        .raw(field::UID, b"\x80\0\0\0\x3b\x9a\xca\0")
        .raw(field::MTIME, &[0xff; 12])
        .seal();
    let read = read_all(&raw).unwrap();
    assert_eq!(read[0].0.uid, 1_000_000_000);
    assert_eq!(read[0].0.mtime.secs, -1);
}
