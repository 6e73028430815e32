//! An archive's members one by one, for archives that are no layers (`load`).

use std::io::{self, Read};

use super::limits::Limits;
use super::tar::{MemberKind, TarError, TarReader};

/// What a member is.
pub enum ArchiveMember<'a> {
    /// A regular file, readable while it is visited; what is left unread is skipped.
    File {
        /// Bytes of the body.
        size: u64,
        /// The body. Errors are [`TarError`]s inside [`io::Error`]s.
        body: &'a mut dyn Read,
    },
    /// A symbolic link: its target as it stands.
    Symlink(Vec<u8>),
    /// A hard link: the name of the member it repeats.
    Hardlink(Vec<u8>),
    /// A directory, device or pipe.
    Other,
}

/// Visits the members of an uncompressed tar in order, names as they stand in the archive: nothing says that they are
/// relative or stay below anything. The strict reader of layers is at work: what two readers could read differently is
/// refused.
pub fn read_members<E: From<TarError>>(
    input: impl Read,
    limits: &Limits,
    mut visit: impl FnMut(&[u8], ArchiveMember<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = TarReader::new(input, limits);
    while let Some(member) = reader.next()? {
        match member.kind {
            MemberKind::File { size } => {
                let mut body = Body(&mut reader);
                visit(&member.path, ArchiveMember::File { size, body: &mut body })?;
            }
            MemberKind::Symlink { target } => visit(&member.path, ArchiveMember::Symlink(target))?,
            MemberKind::Hardlink { target } => visit(&member.path, ArchiveMember::Hardlink(target))?,
            _ => visit(&member.path, ArchiveMember::Other)?,
        }
    }
    Ok(())
}

struct Body<'r, 'limits, R>(&'r mut TarReader<'limits, R>);

impl<R: Read> Read for Body<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_body(buffer).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::tests::Raw;
    use super::*;

    fn names(archive: &[u8]) -> Result<Vec<String>, TarError> {
        let mut seen = Vec::new();
        read_members(archive, &Limits::default(), |name, member| {
            let what = match member {
                ArchiveMember::File { size, body } => {
                    let mut first = [0; 2];
                    let len = body.read(&mut first).unwrap();
                    format!("file {size} {:?}", String::from_utf8_lossy(&first[..len]))
                }
                ArchiveMember::Symlink(target) => format!("link {}", String::from_utf8_lossy(&target)),
                ArchiveMember::Hardlink(_) => "hardlink".to_owned(),
                ArchiveMember::Other => "other".to_owned(),
            };
            seen.push(format!("{} {what}", String::from_utf8_lossy(name)));
            Ok::<_, TarError>(())
        })?;
        Ok(seen)
    }

    #[test]
    fn members_come_in_order_and_unread_bodies_are_skipped() {
        let archive = [
            Raw::new(b"blobs/", b'5').with(b""),
            Raw::new(b"../a", b'0').with(b"a body longer than two bytes"),
            Raw::new(b"empty", b'0').with(b""),
        ]
        .concat();
        assert_eq!(names(&archive).unwrap(), ["blobs/ other", "../a file 28 \"a \"", "empty file 0 \"\""]);
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let archive = Raw::new(b"a", b'0').with(&[7; 2000]);
        assert!(matches!(names(&archive[..1000]), Err(TarError::Truncated { .. })));
    }
}
