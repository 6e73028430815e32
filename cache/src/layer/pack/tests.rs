//! Packs written, read, cut and changed.

use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::scratch::Scratch;

fn scratch() -> Scratch {
    Scratch::on(File::open(std::env::temp_dir()).unwrap()).unwrap()
}

fn pack_of(contents: &[&[u8]]) -> File {
    let file = tempfile::tempfile().unwrap();
    let mut writer = PackWriter::new(file.try_clone().unwrap(), scratch()).unwrap();
    for content in contents {
        let digest = ContentDigest::of(content);
        if !writer.has(&digest) {
            writer.write(content).unwrap();
        }
        writer.end(digest, content.len() as u64).unwrap();
    }
    writer.finish().unwrap();
    reopened(&file)
}

fn reopened(file: &File) -> File {
    use std::io::Seek;
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    file
}

fn read(reader: &mut PackReader<'_>, content: &[u8]) -> Vec<u8> {
    let found = reader.find(&ContentDigest::of(content)).unwrap().expect("is there");
    let mut bytes = Vec::new();
    reader
        .read(found, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, io::Error>(())
        })
        .unwrap();
    bytes
}

#[test]
fn contents_come_back_from_whichever_pack_has_them_and_equal_ones_are_kept_once() {
    let large = b"0123456789".repeat(BUFFER_BYTES / 4);
    let contents: [&[u8]; 5] = [b"a", b"", &large, b"b", b"a"];
    let packs = [Pack::open(pack_of(&contents)).unwrap(), Pack::open(pack_of(&[b"c", b"b"])).unwrap()];
    assert_eq!((packs[0].len(), packs[0].bytes()), (4, 2 + large.len() as u64));
    let mut reader = PackReader::new(&packs);
    for content in [b"c".as_slice(), b"a", &large, b"b", b"", &large, b"c"] {
        assert!(read(&mut reader, content) == content);
    }
    assert_eq!(reader.find(&ContentDigest::of(b"not there")).unwrap(), None);
    assert_eq!(Pack::open(pack_of(&[])).unwrap().len(), 0);
}

fn numbers(count: u32) -> Vec<[u8; 4]> {
    (0..count).map(u32::to_le_bytes).collect()
}

fn pack_of_numbers(numbers: &[[u8; 4]]) -> Pack {
    let contents: Vec<&[u8]> = numbers.iter().map(|content| &content[..]).collect();
    Pack::open(pack_of(&contents)).unwrap()
}

#[test]
fn a_content_that_comes_again_much_later_is_kept_twice_and_found_where_it_was_first() {
    let contents = numbers(2 * ENTRIES_AT_ONCE as u32 + 7);
    let packs = [pack_of_numbers(&[&contents[..], &contents].concat())];
    assert_eq!((packs[0].len(), packs[0].bytes()), (contents.len(), 2 * 4 * contents.len() as u64));
    assert!(packs[0].verify().unwrap());
    let mut reader = PackReader::new(&packs);
    for (at, content) in contents.iter().enumerate() {
        let place = Place { offset: (MAGIC.len() + 4 * at) as u64, length: 4 };
        assert_eq!(reader.find(&ContentDigest::of(content)).unwrap(), Some((0, place)));
        assert_eq!(read(&mut reader, content), content);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn whatever_comes_in_whatever_order_is_found_and_nothing_else(
        // Repeats within what a writer remembers, and beyond it; few enough to be held, and more.
        kinds in prop_oneof![Just(20_u32), Just(150), Just(2000)],
        picks in prop::collection::vec(any::<u32>(), 0..1200),
    ) {
        let picked: Vec<[u8; 4]> = picks.iter().map(|pick| (pick % kinds).to_le_bytes()).collect();
        let packs = [pack_of_numbers(&picked)];
        let mut different = picked.clone();
        different.sort_unstable();
        different.dedup();
        prop_assert_eq!(packs[0].len(), different.len());
        prop_assert!((4 * different.len() as u64..=4 * picked.len() as u64).contains(&packs[0].bytes()));
        if kinds == 20 {
            prop_assert_eq!(packs[0].bytes(), 4 * different.len() as u64);
        }
        prop_assert!(packs[0].verify().unwrap());
        let mut reader = PackReader::new(&packs);
        for content in numbers(kinds) {
            match different.binary_search(&content) {
                Ok(_) => prop_assert_eq!(read(&mut reader, &content), content),
                Err(_) => prop_assert_eq!(reader.find(&ContentDigest::of(&content)).unwrap(), None),
            }
        }
    }

    #[test]
    fn an_index_changed_under_an_open_pack_is_an_error_or_gives_bytes_that_are_not_the_content(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..200),
        cut in any::<bool>(),
    ) {
        let contents = numbers(500);
        let packs = [pack_of_numbers(&contents)];
        let (start, file) = (packs[0].index.start(), packs[0].file());
        let at = start + at.index(packs[0].len() * ENTRY_BYTES) as u64;
        match cut {
            true => file.set_len(at).unwrap(),
            false => file.write_all_at(&bytes, at).unwrap(),
        }
        let mut reader = PackReader::new(&packs);
        for content in &contents {
            let digest = ContentDigest::of(content);
            // Not to be there is what any content may be; whoever reads bytes compares them.
            let Ok(Some(found)) = reader.find(&digest) else { continue };
            let mut hash = blake3::Hasher::new();
            let read = reader.read(found, |piece| {
                hash.update(piece);
                Ok::<_, io::Error>(())
            });
            prop_assert!(read.is_ok());
        }
        let verified = packs[0].verify();
        prop_assert!(!cut || verified.is_err(), "{:?}", verified);
    }
}

#[test]
fn a_part_of_an_open_index_that_became_zeroes_is_an_error_for_what_was_there_alone() {
    let contents = numbers(500);
    let pack = pack_of_numbers(&contents);
    let zeroes = [0; 4 * ENTRY_BYTES];
    pack.file().write_all_at(&zeroes, pack.index.start() + 80 * ENTRY_BYTES as u64).unwrap();
    let found = contents.iter().map(|content| pack.find(&ContentDigest::of(content)));
    let (found, failed): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
    assert!((4..=64).contains(&failed.len()), "of its block at most: {failed:?}");
    assert_eq!(found.into_iter().flatten().flatten().count() + failed.len(), 500);
    let error = failed.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error.to_string(), "a pack of file contents is damaged: its index changed while it was open");
}

#[test]
fn an_index_out_of_order_is_refused_though_its_seal_is_right() {
    let mut bytes = Vec::new();
    pack_of(&[b"a", b"b"]).read_to_end(&mut bytes).unwrap();
    let (start, end) = (MAGIC.len() + 2, bytes.len() - TAIL_BYTES as usize);
    let sealed = |mut bytes: Vec<u8>| {
        let seal = *blake3::hash(&bytes[start..end + 8]).as_bytes();
        bytes[end + 8..].copy_from_slice(&seal);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        Pack::open(file).map(drop)
    };
    sealed(bytes.clone()).unwrap();
    let mut swapped = bytes.clone();
    swapped[start..end].rotate_left(ENTRY_BYTES);
    assert!(matches!(sealed(swapped), Err(PackError::Damaged("its index is out of order"))));
    let mut twice = bytes.clone();
    twice.copy_within(start..start + ENTRY_BYTES, start + ENTRY_BYTES);
    assert!(matches!(sealed(twice), Err(PackError::Damaged("its index is out of order"))));
    bytes[end - 1] = 0xff;
    assert!(matches!(sealed(bytes), Err(PackError::Damaged("its index leads out of it"))));
}

#[test]
fn a_changed_byte_outside_of_the_contents_and_every_cut_are_noticed() {
    let whole = pack_of(&[b"first", b"second"]);
    let mut bytes = Vec::new();
    reopened(&whole).read_to_end(&mut bytes).unwrap();
    let contents = MAGIC.len()..MAGIC.len() + 11;
    for at in (0..bytes.len()).filter(|at| !contents.contains(at)) {
        let file = tempfile::tempfile().unwrap();
        bytes[at] ^= 1;
        file.write_all_at(&bytes, 0).unwrap();
        bytes[at] ^= 1;
        assert!(matches!(Pack::open(file), Err(PackError::Damaged(_))), "byte {at}");
    }
    for length in 0..bytes.len() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes[..length], 0).unwrap();
        assert!(Pack::open(file).is_err(), "length {length}");
    }
}
