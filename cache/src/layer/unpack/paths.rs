//! Something at each of many paths.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use crate::path::RelPath;

/// Which of the paths.
pub(super) type Place = u32;

const ROOT: Place = 0;
const NONE: Place = Place::MAX;

/// A map by path, in [`RelPath`]'s order and in few pieces of memory: a path takes its last name and about 70 bytes, and
/// goes with the whole map only.
pub(super) struct Paths<T> {
    names: Vec<u8>,
    nodes: Vec<Node<T>>,
    /// By the hash of directory and name, or the next free number.
    index: HashMap<u64, Place>,
    /// That of the last path, because the next one is mostly in it, too.
    last_dir: (RelPath, Place),
}

struct Node<T> {
    /// None when it was taken out, or is only on the way to something.
    what: Option<T>,
    name_start: usize,
    name_len: u16,
    /// In the list of what is in its directory. What was taken out with a directory is not.
    is_in_list: bool,
    dir: Place,
    /// Of what is in it, the one that came last.
    last_in: Place,
    /// What came before it in its directory.
    before: Place,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        let root = Node {
            what: None,
            name_start: 0,
            name_len: 0,
            is_in_list: true,
            dir: ROOT,
            last_in: NONE,
            before: NONE,
        };
        Self {
            names: Vec::new(),
            nodes: vec![root],
            index: HashMap::new(),
            last_dir: (RelPath::root(), ROOT),
        }
    }
}

impl<T> Paths<T> {
    pub(super) fn get(&self, path: &RelPath) -> Option<&T> {
        self.nodes[self.find(path)? as usize].what.as_ref()
    }

    pub(super) fn get_mut(&mut self, path: &RelPath) -> Option<&mut T> {
        let place = self.find(path)?;
        self.nodes[place as usize].what.as_mut()
    }

    pub(super) fn insert(&mut self, path: &RelPath, what: T) {
        let place = if path.is_root() { ROOT } else { self.make(path) };
        self.nodes[place as usize].what = Some(what);
    }

    /// [`Self::insert`] for a directory: the next path is mostly in it.
    pub(super) fn insert_dir(&mut self, path: &RelPath, what: T) {
        self.insert(path, what);
        if let Some(place) = self.find(path) {
            self.last_dir = (path.clone(), place);
        }
    }

    /// Takes out what is at `path` and below it, in order.
    pub(super) fn remove_all(&mut self, path: &RelPath) -> Vec<(RelPath, T)> {
        let Some(from) = self.find(path) else { return Vec::new() };
        let places = self.in_order_from(from);
        if places.len() > 1 {
            // It may be among them.
            self.last_dir = (RelPath::root(), ROOT);
        }
        let mut removed = Vec::new();
        for place in places {
            let path = self.path(place);
            let node = &mut self.nodes[place as usize];
            node.last_in = NONE;
            node.is_in_list &= place == from;
            removed.extend(node.what.take().map(|what| (path, what)));
        }
        removed
    }

    /// All places where there is something, in order of their paths.
    pub(super) fn in_order(&self) -> Vec<Place> {
        let mut places = self.in_order_from(ROOT);
        places.retain(|place| self.nodes[*place as usize].what.is_some());
        places
    }

    pub(super) fn at(&self, place: Place) -> Option<&T> {
        self.nodes[place as usize].what.as_ref()
    }

    pub(super) fn take(&mut self, place: Place) -> Option<T> {
        self.nodes[place as usize].what.take()
    }

    /// The path of a place.
    pub(super) fn path(&self, place: Place) -> RelPath {
        let up = |place: &Place| Some(self.nodes[*place as usize].dir);
        let places = || std::iter::successors(Some(place), up).take_while(|place| *place != ROOT);
        let len = places().map(|place| self.name(place).len() + 1).sum::<usize>();
        let mut bytes = vec![b'/'; len.saturating_sub(1)];
        let mut end = bytes.len();
        for name in places().map(|place| self.name(place)) {
            bytes[end - name.len()..end].copy_from_slice(name);
            // And a slash, but before the first.
            end = end.saturating_sub(name.len() + 1);
        }
        RelPath::new(bytes).expect("it is made of clean paths only")
    }

    /// Forgets how paths are found: they are only gone through any more.
    pub(super) fn forget_index(&mut self) {
        self.index = HashMap::new();
    }

    fn name(&self, place: Place) -> &[u8] {
        let Node { name_start, name_len, .. } = self.nodes[place as usize];
        &self.names[name_start..name_start + usize::from(name_len)]
    }

    /// Where `name` in `dir` is, or the number in the index that it would have.
    fn look_up(&self, dir: Place, name: &[u8]) -> Result<Place, u64> {
        let mut number = self.index.hasher().hash_one((dir, name));
        while let Some(place) = self.index.get(&number) {
            if self.nodes[*place as usize].dir == dir && self.name(*place) == name {
                return Ok(*place);
            }
            number = number.wrapping_add(1);
        }
        Err(number)
    }

    fn find(&self, path: &RelPath) -> Option<Place> {
        let (last_dir, place) = &self.last_dir;
        if path == last_dir {
            return Some(*place);
        }
        if path.is_in(last_dir) {
            return self.look_up(*place, path.name()).ok();
        }
        path.components().try_fold(ROOT, |at, name| self.look_up(at, name).ok())
    }

    /// The place of a path other than the root, from now on in any case.
    fn make(&mut self, path: &RelPath) -> Place {
        if !path.is_in(&self.last_dir.0) {
            let dir = path.parent().unwrap_or_default();
            let place = dir.components().fold(ROOT, |at, name| self.make_in(at, name));
            self.last_dir = (dir, place);
        }
        self.make_in(self.last_dir.1, path.name())
    }

    fn make_in(&mut self, dir: Place, name: &[u8]) -> Place {
        let place = self.look_up(dir, name).unwrap_or_else(|number| {
            let place = self.nodes.len().try_into().expect("the limits of an archive are far lower");
            self.index.insert(number, place);
            let name_len = name.len().try_into().expect("the name of an entry has at most 255 bytes");
            self.nodes.push(Node {
                what: None,
                name_start: self.names.len(),
                name_len,
                is_in_list: false,
                dir,
                last_in: NONE,
                before: NONE,
            });
            self.names.extend_from_slice(name);
            place
        });
        if !self.nodes[place as usize].is_in_list {
            let before = std::mem::replace(&mut self.nodes[dir as usize].last_in, place);
            let node = &mut self.nodes[place as usize];
            (node.before, node.is_in_list) = (before, true);
        }
        place
    }

    fn in_order_from(&self, from: Place) -> Vec<Place> {
        let (mut places, mut waiting) = (Vec::new(), vec![from]);
        while let Some(place) = waiting.pop() {
            places.push(place);
            let old = waiting.len();
            let next = |place: Place| (place != NONE).then_some(place);
            let last_in = next(self.nodes[place as usize].last_in);
            waiting.extend(std::iter::successors(last_in, |place| next(self.nodes[*place as usize].before)));
            waiting[old..].sort_unstable_by(|a, b| self.name(*b).cmp(self.name(*a)));
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(paths: &Paths<u32>) -> Vec<(RelPath, u32)> {
        paths.in_order().into_iter().map(|place| (paths.path(place), *paths.at(place).unwrap())).collect()
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_path(edits in proptest::collection::vec(("([ab.]/){0,3}[ab.]?", 0..4u32), 0..60)) {
            let (mut paths, mut known) = (Paths::default(), BTreeMap::new());
            for (path, edit) in edits {
                let path = RelPath::clamp(path.as_bytes());
                if edit == 0 {
                    let is_at = |known: &RelPath| {
                        std::iter::successors(Some(known.clone()), RelPath::parent).any(|above| above == path)
                    };
                    let expected: Vec<_> =
                        known.iter().filter(|(at, _)| is_at(at)).map(|(at, what)| (at.clone(), *what)).collect();
                    known.retain(|at, _| !is_at(at));
                    prop_assert_eq!(paths.remove_all(&path), expected);
                } else {
                    match edit {
                        1 => paths.insert_dir(&path, edit),
                        _ => paths.insert(&path, edit),
                    }
                    known.insert(path.clone(), edit);
                }
                prop_assert_eq!(paths.get(&path), known.get(&path));
                prop_assert_eq!(all(&paths), known.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_was_taken_out_costs_nothing_any_more() {
        // Quadratic, this would take minutes.
        let mut paths = Paths::default();
        let dir = RelPath::new("d").unwrap();
        for file in 0..30_000 {
            paths.insert(&dir.join(format!("{file}").as_bytes()), file);
        }
        assert_eq!(paths.remove_all(&dir).len(), 30_000);
        for again in 0..30_000 {
            paths.insert(&dir.join(b"0"), again);
            assert_eq!(paths.remove_all(&dir).len(), 1);
        }
    }

    #[test]
    fn a_path_takes_little_beside_its_name() {
        assert_eq!(size_of::<Node<Box<u8>>>(), 32);
        assert_eq!(size_of::<Node<super::super::listing::Node>>(), 40);
    }
}
