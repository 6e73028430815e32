//! Users and groups of an image: strict parsers for `/etc/passwd` and `/etc/group` text, and the resolution of `USER`.
//!
//! No libc lookup, ever: the files belong to an image. [`read_account_file`] is the only I/O. Lines that do not parse are
//! skipped, as every reader of these files does; a number that does not fit an id never becomes another number.
//! Rules: the reference's USER forms, as runc resolves them (`libcontainer/user`).

use crate::image_file::{self, Opened};
use std::io::Read as _;
use std::os::fd::BorrowedFd;

/// Account files above this size are refused.
pub const ACCOUNT_FILE_SIZE_BYTES_MAX: u64 = 10 << 20;

/// Supplementary groups of one user, at most as many as the kernel takes (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// One entry of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswdEntry {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory, possibly empty.
    pub home: String,
}

/// One entry of `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// Group name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Names of the members.
    pub members: Vec<String>,
}

/// A user as a process needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted, with the primary group among them.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the user is unknown or has none.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A user name that no passwd entry has.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// A group name that no group entry has.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number that is not a user or group id.
    #[error("id {id} is out of range: ids go from 0 to {}", u32::MAX - 1)]
    IdOutOfRange {
        /// The number as written.
        id: String,
    },
    /// An account file that cannot be read.
    #[error("read {path} of the image")]
    Read {
        /// Path in the image.
        path: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An account file that is not a regular file.
    #[error("{path} of the image is not a regular file")]
    NotRegular {
        /// Path in the image.
        path: &'static str,
    },
    /// An account file above [`ACCOUNT_FILE_SIZE_BYTES_MAX`].
    #[error("{path} of the image is larger than 10 MiB")]
    TooLarge {
        /// Path in the image.
        path: &'static str,
    },
}

/// Parses an id: decimal digits only, not -1, which the calls that take ids read as «keep».
pub(crate) fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn parse_passwd_line(line: &str) -> Option<PasswdEntry> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    let uid = parse_id(fields.next()?)?;
    let gid = parse_id(fields.next()?)?;
    let _gecos = fields.next();
    let home = fields.next().unwrap_or("");
    (!name.is_empty()).then(|| PasswdEntry { name: name.to_owned(), uid, gid, home: home.to_owned() })
}

fn parse_group_line(line: &str) -> Option<GroupEntry> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    let gid = parse_id(fields.next()?)?;
    let members = fields.next().unwrap_or("").split(',').filter(|m| !m.is_empty());
    (!name.is_empty()).then(|| GroupEntry {
        name: name.to_owned(),
        gid,
        members: members.map(str::to_owned).collect(),
    })
}

/// The entries of a passwd file, in order; lines that are not entries are skipped.
pub fn parse_passwd(text: &[u8]) -> Vec<PasswdEntry> {
    lines(text).filter_map(parse_passwd_line).collect()
}

/// The entries of a group file, in order; lines that are not entries are skipped.
pub fn parse_group(text: &[u8]) -> Vec<GroupEntry> {
    lines(text).filter_map(parse_group_line).collect()
}

fn numeric(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    parse_id(text).map(Some).ok_or_else(|| UserError::IdOutOfRange { id: text.to_owned() })
}

/// Resolves a group written as a name or an id.
pub fn resolve_group(text: &str, group: &[GroupEntry]) -> Result<u32, UserError> {
    // A name may look like a number; the entry wins, as with runc.
    if let Some(entry) = group.iter().find(|entry| entry.name == text) {
        return Ok(entry.gid);
    }
    numeric(text)?.ok_or_else(|| UserError::UnknownGroup { name: text.to_owned() })
}

/// Resolves `user` («», `name`, `uid`, `user:group`) against the entries of an image.
///
/// An empty user is root. A user without a group gets the groups of its passwd entry: the primary one and all it is a
/// member of; an id without an entry gets group 0. With a group, only that group.
pub fn resolve_user(
    user: &str,
    passwd: &[PasswdEntry],
    group: &[GroupEntry],
) -> Result<ResolvedUser, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let id = numeric(user)?;
    let entry = passwd
        .iter()
        .find(|entry| entry.name == user)
        .or_else(|| passwd.iter().find(|entry| Some(entry.uid) == id));
    let uid = match (entry, id) {
        (Some(entry), _) => entry.uid,
        (None, Some(id)) => id,
        (None, None) => return Err(UserError::UnknownUser { name: user.to_owned() }),
    };
    let (gid, mut groups) = match wanted_group {
        Some(wanted) => {
            let gid = resolve_group(wanted, group)?;
            (gid, vec![gid])
        }
        None => {
            let gid = entry.map_or(0, |entry| entry.gid);
            let member_of =
                |candidate: &&GroupEntry| entry.is_some_and(|entry| candidate.members.contains(&entry.name));
            let groups = std::iter::once(gid).chain(group.iter().filter(member_of).map(|g| g.gid));
            (gid, groups.take(GROUPS_MAX).collect())
        }
    };
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|entry| entry.home.as_str()).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(ResolvedUser { uid, gid, groups, home: home.to_owned() })
}

/// Reads an account file of an image whose root is `root`; a missing file is empty.
///
/// Symlinks are followed as a process in the image would follow them. A pipe or device does not block or get read.
pub fn read_account_file(root: BorrowedFd<'_>, path: &'static str) -> Result<Vec<u8>, UserError> {
    let read = |source: std::io::Error| UserError::Read { path, source };
    let fd = match image_file::open(root, path).map_err(|errno| read(errno.into()))? {
        Opened::File(fd) => fd,
        Opened::NotRegular => return Err(UserError::NotRegular { path }),
        Opened::Absent => return Ok(Vec::new()),
    };
    let mut text = Vec::new();
    std::fs::File::from(fd).take(ACCOUNT_FILE_SIZE_BYTES_MAX + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() as u64 > ACCOUNT_FILE_SIZE_BYTES_MAX {
        return Err(UserError::TooLarge { path });
    }
    Ok(text)
}

/// Resolves `user` with the account files of the image whose root is `root`.
pub fn resolve_user_in(root: BorrowedFd<'_>, user: &str) -> Result<ResolvedUser, UserError> {
    let passwd = parse_passwd(&read_account_file(root, "/etc/passwd")?);
    let group = parse_group(&read_account_file(root, "/etc/group")?);
    resolve_user(user, &passwd, &group)
}

#[cfg(test)]
mod tests;
