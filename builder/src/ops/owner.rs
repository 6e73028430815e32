//! Names of users and groups, looked up in the image that is being built.

use std::io::Read;

use rbuild_cache::copy::FileSource;
use rbuild_cache::tree::{Kind, LastLink};
use rbuild_sandbox::passwd::{self, GroupEntry, PasswdEntry};

use crate::error::StepFailure;
use crate::ops::ExecEnv;
use crate::solve::Solved;

/// `/etc/passwd` and `/etc/group` of a state; a missing or irregular file counts as empty.
struct Accounts {
    passwd: Vec<PasswdEntry>,
    group: Vec<GroupEntry>,
}

impl Accounts {
    fn read(env: &ExecEnv, root: &Solved) -> Result<Self, StepFailure> {
        let source = env.stack_source(root)?;
        let text = |path: &str| -> Result<Vec<u8>, StepFailure> {
            let resolved = root.tree.resolve(&env.store, path.as_bytes(), LastLink::Follow)?;
            if !resolved.exists() || !matches!(resolved.entry.kind, Kind::File { .. }) {
                return Ok(Vec::new());
            }
            let mut bytes = Vec::new();
            std::fs::File::from(source.open(&resolved.path)?)
                .take(passwd::ACCOUNT_FILE_SIZE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(|source| StepFailure::Io { what: "read", path: path.to_owned(), source })?;
            Ok(bytes)
        };
        Ok(Self {
            passwd: passwd::parse_passwd(&text("/etc/passwd")?),
            group: passwd::parse_group(&text("/etc/group")?),
        })
    }
}

/// Owner for `--chown user[:group]`: a lone number is its own group, a lone name brings its primary group, `:g` means
/// uid 0. Unknown names fail, unlike BuildKit, which silently takes 0.
pub fn chown(env: &ExecEnv, root: &Solved, text: &str) -> Result<(u32, u32), StepFailure> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let is_plain = |text: &str| matches!(text, "" | "root") || text.parse::<u32>().is_ok();
    let accounts = if is_plain(user) && group.is_none_or(is_plain) {
        Accounts { passwd: Vec::new(), group: Vec::new() }
    } else {
        Accounts::read(env, root)?
    };
    let (uid, primary) = match user {
        "" | "root" => (0, 0),
        user => {
            let resolved =
                passwd::resolve_user(user, &accounts.passwd, &accounts.group).map_err(StepFailure::User)?;
            // A number without an entry has no primary group: Docker then takes the number itself.
            let known = accounts.passwd.iter().any(|entry| entry.uid == resolved.uid || entry.name == user);
            (resolved.uid, if known && user.parse::<u32>().is_err() { resolved.gid } else { resolved.uid })
        }
    };
    let gid = match group {
        None => primary,
        Some("" | "root") => 0,
        Some(group) => passwd::resolve_group(group, &accounts.group).map_err(StepFailure::User)?,
    };
    Ok((uid, gid))
}

/// Owner of directories that WORKDIR makes: the USER in force, its primary group unless one is named; an unknown
/// number has group 0.
pub fn workdir(env: &ExecEnv, root: &Solved, user: &str) -> Result<(u32, u32), StepFailure> {
    if matches!(user, "" | "0" | "root" | "0:0" | "root:root") {
        return Ok((0, 0));
    }
    let accounts = Accounts::read(env, root)?;
    let resolved =
        passwd::resolve_user(user, &accounts.passwd, &accounts.group).map_err(StepFailure::User)?;
    Ok((resolved.uid, resolved.gid))
}
