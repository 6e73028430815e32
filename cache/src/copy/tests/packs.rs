//! Layers that are packed instead of written: the same archive, the same directory, bytes kept once.

use std::fs;
use std::fs::File;
use std::io::Seek;
use std::os::fd::AsFd;

use super::on_disk::{check_on_disk, context, dir_fd, ourselves, plan_all};
use super::*;
use crate::layer::{
    LayerDiff, OverlayForm, Owners, Pack, PackBodies, PackWriter, Start, emit_tar, emit_tar_from,
};
use crate::tree::ContentDigest;
use crate::tree::testing::file;

/// Packs a plan; gives the pack and the archive.
fn packed(
    plan: &CopyPlan,
    source: &dyn FileSource,
    shared: &[Pack],
) -> Result<(Pack, Vec<u8>), PackLayerError> {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = PackWriter::new(file.try_clone().unwrap()).unwrap();
    let mut tar = Vec::new();
    let sources = Sources { main: Some(source), ..Sources::default() };
    pack(plan, &sources, shared, &mut writer, &Start::default(), &mut tar)?;
    writer.finish().unwrap();
    file.rewind().unwrap();
    Ok((Pack::open(file).unwrap(), tar))
}

fn emitted(diff: &LayerDiff, packs: &[Pack]) -> Vec<u8> {
    let mut tar = Vec::new();
    emit_tar_from(&mut PackBodies::new(packs), diff, None, &mut tar).unwrap();
    tar
}

#[test]
fn a_packed_layer_has_the_archive_and_the_directory_of_a_written_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    let (pack, tar) = packed(&plan, &source, &[]).unwrap();
    let packs = [pack];

    let written = to.path().join("written");
    fs::create_dir(&written).unwrap();
    let sources = Sources { main: Some(&source), ..Sources::default() };
    let owners = if ourselves().0 == 0 { Owners::Set } else { Owners::Keep };
    materialise(&plan, dir_fd(&written).as_fd(), &sources, owners, OverlayForm::User).unwrap();
    let mut expected = Vec::new();
    emit_tar(dir_fd(&written).as_fd(), &plan.diff, None, &mut expected).unwrap();
    assert!(tar == expected, "made in passing");
    assert!(emitted(&plan.diff, &packs) == expected, "made from the pack");
    // Out of the pack alone.
    drop(from);
    let late = to.path().join("late");
    fs::create_dir(&late).unwrap();
    materialise_packed(plan.diff.clone(), &packs, dir_fd(&late).as_fd(), OverlayForm::User).unwrap();
    check_on_disk(&late, &plan);
}

#[test]
fn the_next_layer_holds_only_what_changed() {
    let from = tempfile::tempdir().unwrap();
    let (mut context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let (first, _) = packed(&plan_all(&context, &nodes, &source, "/n"), &source, &[]).unwrap();
    assert_eq!(first.len(), 2, "of five names one is a link, one a fifo, and one empty");

    fs::write(from.path().join("d/a"), "other content").unwrap();
    context.entries[1].1 = file("other content");
    let plan = plan_all(&context, &nodes, &source, "/n");
    let packs = [first];
    assert_eq!(worth_sharing(&plan.diff, &packs).unwrap(), [true]);
    let (second, tar) = packed(&plan, &source, &packs).unwrap();
    assert_eq!((second.len(), second.bytes()), (1, 13));
    let [first] = packs;
    assert!(emitted(&plan.diff, &[first, second]) == tar);

    // Of a pack that is mostly dead bytes the rest is written again, or they would stay for ever.
    let first = [pack_of(&["content of a", &"z".repeat(600_000)])];
    assert_eq!(worth_sharing(&plan.diff, &first).unwrap(), [false]);
}

fn pack_of(contents: &[&str]) -> Pack {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = PackWriter::new(file.try_clone().unwrap()).unwrap();
    for content in contents {
        writer.write(content.as_bytes()).unwrap();
        writer.end(ContentDigest::of(content.as_bytes()), content.len() as u64);
    }
    writer.finish().unwrap();
    file.rewind().unwrap();
    Pack::open(file).unwrap()
}

#[test]
fn a_source_that_changed_since_it_was_planned_is_named() {
    let from = tempfile::tempdir().unwrap();
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    for bytes in ["CONTENT OF A", "CONTENT of a!", "x"] {
        fs::write(from.path().join("d/a"), bytes).unwrap();
        let Err(PackLayerError::Source(error)) = packed(&plan, &source, &[]).map(drop) else {
            panic!("packed {bytes}")
        };
        assert_eq!(error.to_string(), "/d/a changed while it was being copied");
    }
    // One that only grew is taken as it was.
    fs::write(from.path().join("d/a"), "content of a, and a line more").unwrap();
    packed(&plan, &source, &[]).unwrap();
    fs::remove_file(from.path().join("d/a")).unwrap();
    assert!(matches!(packed(&plan, &source, &[]), Err(PackLayerError::Source(_))));
}

#[test]
fn a_damaged_content_is_noticed_by_whoever_reads_it() {
    use std::os::unix::fs::FileExt;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    let (pack, _) = packed(&plan, &source, &[]).unwrap();
    let file: &File = pack.file();
    file.write_all_at(b"?", 8).unwrap();
    let packs = [pack];
    assert!(!packs[0].verify().unwrap());
    let mut tar = Vec::new();
    assert!(emit_tar_from(&mut PackBodies::new(&packs), &plan.diff, None, &mut tar).is_err());
    let made = materialise_packed(plan.diff, &packs, dir_fd(to.path()).as_fd(), OverlayForm::User);
    assert!(matches!(made, Err(MaterialiseError::Damaged { .. })), "{made:?}");
}
