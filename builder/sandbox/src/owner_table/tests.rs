use super::*;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const SLOTS: u64 = BLOCK_SLOTS as u64 * BLOCKS * (GROWTH.pow(LEVELS as u32) - 1) / (GROWTH - 1);

fn inode(number: u64) -> Inode {
    Inode { number, born: (-1, 999_999_999) }
}

/// Numbers that look random (xorshift64).
fn random(state: &mut u64, end: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % end
}

fn check_like_a_map(seed: u64, inodes: u64) {
    let file = tempfile::tempfile().unwrap();
    // The two ends are two descriptors.
    let init = OwnerTable::in_file(file.try_clone().unwrap());
    let builder = OwnerTable::in_file(file);
    assert!(builder.is_empty());
    let (mut state, mut model, mut refused) = (seed, HashMap::new(), 0);
    for step in 0..2000 {
        // A number may come again, as that of a thing that was born later.
        let number = random(&mut state, inodes);
        let born = (random(&mut state, 2) as i64, 0);
        let (inode, owner) = (Inode { number, born }, (random(&mut state, 1 << 32) as u32, step));
        assert_eq!(init.get(inode), Ok(model.get(&inode).copied()), "seed {seed}");
        match init.set(inode, owner) {
            Ok(()) => drop(model.insert(inode, owner)),
            Err(errno) => {
                assert_eq!(errno, Errno::NOSPC);
                assert!(!model.contains_key(&inode), "what is there can be given another");
                refused += 1;
            }
        }
    }
    for number in 0..inodes {
        for born in [(0, 0), (1, 0)] {
            let inode = Inode { number, born };
            assert_eq!(builder.get(inode), Ok(model.get(&inode).copied()), "seed {seed}");
        }
    }
    assert!(!builder.is_empty());
    // So many have room whatever their hashes, and more than there are slots cannot have.
    let (fit, full) = (inodes * 2 <= (BLOCK_SLOTS * LEVELS) as u64, inodes * 2 > SLOTS);
    assert!(if fit { refused == 0 } else { refused > 0 || !full }, "seed {seed}");
    let size_bytes = rustix::fs::fstat(&builder).unwrap().st_size.cast_unsigned();
    assert!(size_bytes <= SLOTS * SLOT_SIZE_BYTES as u64);
}

#[test]
fn it_answers_as_a_map_does_until_it_is_full() {
    for seed in 1..9 {
        check_like_a_map(seed, 3);
        check_like_a_map(seed, 20);
        check_like_a_map(seed, 1000);
    }
}

#[test]
fn a_full_disk_refuses_and_changes_nothing() {
    // Reads as zeros, and has no room.
    let table = OwnerTable::in_file(File::options().read(true).write(true).open("/dev/full").unwrap());
    assert_eq!(table.set(inode(1), (1, 2)), Err(Errno::NOSPC));
    assert_eq!(table.get(inode(1)), Ok(None));
}

#[test]
fn any_bytes_are_a_table() {
    let (file, mut state) = (tempfile::tempfile().unwrap(), 7);
    let table = OwnerTable::in_file(file.try_clone().unwrap());
    for length in [0, 1, SLOT_SIZE_BYTES - 1, BLOCK_SIZE_BYTES + 1, SLOTS as usize * SLOT_SIZE_BYTES] {
        let bytes: Vec<u8> = (0..length).map(|_| random(&mut state, 2) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        for number in 0..50 {
            assert_eq!(table.get(inode(number)), Ok(None), "{length} bytes");
        }
    }
    let mut others = [0xFF; SLOT_SIZE_BYTES];
    others[KEY_SIZE_BYTES..][..4].copy_from_slice(&TAKEN.to_le_bytes());
    file.write_all_at(&others.repeat(SLOTS as usize), 0).unwrap();
    assert_eq!(table.get(inode(1)), Ok(None), "all taken by others");
    assert_eq!(table.set(inode(1), (1, 2)), Err(Errno::NOSPC));
}

#[test]
fn a_thing_is_the_same_by_name_and_by_descriptor_and_another_after_it() {
    use rustix::fs::{CWD, Mode, OFlags};
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("link");
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let link = Inode::at(CWD, path.as_path(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let fd = rustix::fs::open(path.as_path(), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
    assert_eq!(Inode::at(&fd, c"", AtFlags::EMPTY_PATH), Ok(link));
    let other = Inode::at(CWD, temp.path(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_ne!(other, link);
}
