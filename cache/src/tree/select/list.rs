//! What a COPY takes, as a list.

use std::{fmt, io};

use super::Selected;
use crate::encoded::{ALL_AHEAD, Encoded, Input, ReadError};
use crate::layer::{put_bytes, put_number, put_path};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Entry, Links, LinksBelow};

/// A list of what is selected that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the list of what is selected")]
pub struct SelectionsError {
    /// What was being done.
    pub doing: &'static str,
    /// Cause; invalid data when it is not what was written.
    #[source]
    pub source: io::Error,
}

/// All that the sources of a COPY select, in their order.
///
/// ```text
/// item = shared-prefix suffix  is-named (name)  is-linked (shared-prefix suffix)  entry
/// ```
///
/// The path of an item is over that of the one before, the directory of its links over its own.
///
/// A wildcard may match as many files as there are: items are held as bytes, some 70 each, and made when somebody asks for
/// them; beyond 256 KiB of them they are in a file, and reading may fail.
pub struct Selections {
    encoded: Encoded,
    len: usize,
    /// Where the items of each source begin.
    sources: Vec<Start>,
    /// Path of the last item.
    last: Vec<u8>,
    /// Those of the items that have some: from each index on.
    links: Vec<(usize, Links)>,
}

#[derive(Debug, Clone, Copy)]
struct Start {
    index: usize,
    at: u64,
}

impl Selections {
    /// Without items; many go to a file of `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        Self {
            encoded: Encoded::new(scratch.clone()),
            len: 0,
            sources: Vec::new(),
            last: Vec::new(),
            links: Vec::new(),
        }
    }

    /// What is added from here on is of the next source.
    pub fn begin_source(&mut self) {
        self.sources.push(Start { index: self.len, at: self.encoded.end() });
        // It can be read without those before it.
        self.last.clear();
    }

    /// Adds an item.
    pub fn push(&mut self, item: &Selected) -> Result<(), SelectionsError> {
        let Selected { name, path, entry, links } = item;
        let Self { encoded, last, .. } = self;
        encoded
            .append(|bytes| {
                put_path(bytes, last, path.as_bytes());
                let is_named = name != path.name();
                put_number(bytes, is_named.into());
                if is_named {
                    put_bytes(bytes, name);
                }
                put_number(bytes, (!links.is_none()).into());
                if !links.is_none() {
                    put_path(bytes, path.as_bytes(), links.dir().as_bytes());
                }
                put_bytes(bytes, &entry.encode());
            })
            .map_err(|source| SelectionsError { doing: "write", source })?;
        last.clear();
        last.extend_from_slice(path.as_bytes());
        if !links.is_none() && self.links.last().is_none_or(|(_, last)| last != links.all()) {
            self.links.push((self.len, links.all().clone()));
        }
        self.len += 1;
        Ok(())
    }

    /// Bytes that they take, in memory or in a file.
    pub fn bytes(&self) -> u64 {
        self.encoded.len()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All items in order.
    pub fn iter(&self) -> SelectedItems<'_> {
        self.items(Start { index: 0, at: self.encoded.start }, self.len)
    }

    /// The items of one source, counted from 0.
    pub fn of_source(&self, source: usize) -> SelectedItems<'_> {
        let none = Start { index: self.len, at: self.encoded.end() };
        let start = self.sources.get(source).copied().unwrap_or(none);
        self.items(start, self.sources.get(source + 1).map_or(self.len, |next| next.index))
    }

    fn items(&self, start: Start, end: usize) -> SelectedItems<'_> {
        SelectedItems {
            input: self.encoded.read_from(start.at, ALL_AHEAD),
            index: start.index,
            end,
            path: Vec::new(),
            links: &self.links,
        }
    }
}

impl<'a> IntoIterator for &'a Selections {
    type Item = Result<Selected, SelectionsError>;
    type IntoIter = SelectedItems<'a>;

    fn into_iter(self) -> SelectedItems<'a> {
        self.iter()
    }
}

impl fmt::Debug for Selections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// Items of a [`Selections`], one after the other. None comes after an error.
pub struct SelectedItems<'a> {
    input: Input<'a>,
    /// Of the next item, and of what comes after the last.
    index: usize,
    end: usize,
    /// Of the last item.
    path: Vec<u8>,
    links: &'a [(usize, Links)],
}

impl SelectedItems<'_> {
    fn item(&mut self) -> Result<Selected, ReadError> {
        let path = &mut self.path;
        self.input.read(|reader| reader.path(path).map(drop))?;
        let path = RelPath::new(&self.path[..]).map_err(|_| ReadError::Malformed("a path is not clean"))?;
        let (name, links, entry) = self.input.read(|reader| {
            let name = match reader.number()? {
                0 => path.name(),
                _ => reader.string()?,
            };
            let links = match reader.number()? {
                0 => None,
                _ => {
                    let mut dir = path.as_bytes().to_vec();
                    reader.path(&mut dir)?;
                    Some(RelPath::new(dir).map_err(|_| "a path is not clean")?)
                }
            };
            let entry = Entry::decode(reader.string()?).map_err(|_| "an entry is none")?;
            Ok((name.to_vec(), links, entry))
        })?;
        let links = links.and_then(|dir| {
            let begun = self.links.partition_point(|(at, _)| *at <= self.index);
            let (_, all) = self.links.get(begun.checked_sub(1)?)?;
            Some(LinksBelow::new(all.clone(), dir))
        });
        let links = links.unwrap_or_default();
        self.index += 1;
        Ok(Selected { name, path, entry, links })
    }
}

impl Iterator for SelectedItems<'_> {
    type Item = Result<Selected, SelectionsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.end {
            return None;
        }
        let item = self.item();
        if item.is_err() {
            self.index = self.end;
        }
        Some(item.map_err(|error| SelectionsError { doing: "read", source: error.into() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::testing::{meta, path};
    use crate::tree::{ContentDigest, Kind, Meta, NodeDigest};

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            any::<(u64, [u8; 32])>()
                .prop_map(|(size, content)| Kind::File { size, content: ContentDigest(content) }),
            any::<[u8; 32]>().prop_map(|node| Kind::Dir(NodeDigest(node))),
            any::<(u32, u32)>().prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
            Just(Kind::Fifo),
        ]
    }

    fn items() -> impl Strategy<Value = Selected> {
        let xattrs = prop::collection::btree_map(
            "user[.][a-c]".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..3000),
            0..2,
        );
        let names = prop_oneof![4 => Just(None), 1 => "[a-c]{0,3}".prop_map(Some)];
        let paths = prop_oneof![1 => Just(String::new()), 9 => "[ab]{1,2}(/[a-c]{1,9}){0,3}"];
        (paths, names, kinds(), xattrs, 0..0o10000_u32, 0..4_usize).prop_map(
            |(at, name, kind, xattrs, mode, linked)| {
                let path = RelPath::clamp(at.as_bytes());
                let links = Links::of_nodes(vec![NodeDigest([linked as u8; 32]); linked.saturating_sub(1)]);
                let dir = if mode % 2 == 0 { path.clone() } else { RelPath::clamp(b"a/x") };
                Selected {
                    name: name.map_or(path.name().to_vec(), String::into_bytes),
                    path,
                    entry: Entry { meta: Meta { xattrs, ..meta(mode) }, kind },
                    links: if linked > 1 { LinksBelow::new(links, dir) } else { LinksBelow::default() },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_list_gives_what_was_added(sources in prop::collection::vec(prop::collection::vec(items(), 0..30), 0..5)) {
            let mut list = Selections::new(&Scratch::for_test());
            for items in &sources {
                list.begin_source();
                for item in items {
                    list.push(item).unwrap();
                }
            }
            let all = |items: SelectedItems<'_>| items.map(Result::unwrap).collect::<Vec<_>>();
            prop_assert_eq!(list.len(), sources.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(all(list.iter()), sources.concat());
            for (at, items) in sources.iter().enumerate() {
                prop_assert_eq!(&all(list.of_source(at)), items);
            }
            prop_assert_eq!(all(list.of_source(sources.len())), []);
        }
    }

    #[test]
    fn many_items_are_held_in_little() {
        let mut list = Selections::new(&Scratch::for_test());
        let item = |at: u32| Selected {
            name: format!("f{at}").into_bytes(),
            path: path(&format!("some/dir/f{at}")),
            entry: Entry { meta: meta(0o644), kind: Kind::Fifo },
            links: LinksBelow::default(),
        };
        for at in 0..5000 {
            list.push(&item(at)).unwrap();
            assert!(list.encoded.held_bytes() < 4 << 10);
        }
        for (at, found) in (0..).zip(&list) {
            assert_eq!(found.unwrap(), item(at));
        }
        assert_eq!(list.iter().count(), 5000);
    }
}
