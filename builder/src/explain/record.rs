//! What of an executed step is remembered: its key, field by field, in words.

use rbuild_frontend::graph::{CopySource, Network, Op};
use rbuild_frontend::lint::looks_secret;
use rbuild_oci::CanonicalWriter;
use serde::{Deserialize, Serialize};

use super::cause::Cause;

/// Longest value kept as it is, in bytes; longer ones are told apart by their digest.
const VALUE_BYTES_MAX: usize = 400;
/// Fields and inputs kept of one step: a record stays below the store's limit.
const FIELDS_MAX: usize = 96;

/// One execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `[build 2/4] RUN make`.
    pub name: String,
    /// `run`, `copy`, `workdir`.
    pub kind: String,
    /// What of the op is in its keys.
    pub fields: Vec<Field>,
    /// What flowed in.
    pub inputs: Vec<InputRecord>,
    /// What its stage, or the one that is built on, begins with.
    #[serde(default)]
    pub base: Option<Producer>,
    /// Why it was executed, the first cause first.
    pub causes: Vec<Cause>,
    /// True when it failed: there is no result.
    pub is_failed: bool,
    /// How long it ran.
    pub exec_ms: u64,
}

/// One keyed field of an op.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Which kind.
    pub class: Class,
    /// `ARG VERSION`, `--chmod`, `destination`.
    pub name: String,
    /// Its value; `None` when it is long or secret: the name says so, or there are credentials in an address.
    pub value: Option<String>,
    /// Tells values apart that are not kept, or could read the same.
    pub digest: Option<String>,
}

/// Kinds of fields, in the order in which they are named as causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// What is executed.
    Command,
    /// What else the instruction says.
    Option,
    /// A build argument or environment variable.
    Variable,
}

/// What flowed into a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Slot in the graph.
    pub slot: u16,
    /// Digest that is in the content key; hex.
    pub digest: String,
    /// Who made it.
    pub producer: Producer,
    /// Root node of a tree of what was read, hex; `None` for whole states.
    pub listing: Option<String>,
}

/// Who made an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Producer {
    /// Nobody: `FROM scratch`.
    Scratch,
    /// A base image.
    Image {
        /// Its name.
        reference: String,
        /// Its manifest's digest.
        manifest: String,
    },
    /// A build context.
    Context {
        /// Its name; `None` for the main one.
        name: Option<String>,
    },
    /// A file on a web server, a commit of a repository.
    Fetched {
        /// Its address, without what may be secret.
        address: String,
        /// Digest of the file, or the commit.
        version: String,
    },
    /// A step.
    Step {
        /// Its name.
        name: String,
        /// Its stage.
        stage: String,
    },
}

/// The step's text without `[build 2/4] `, and its number.
pub fn split_name(name: &str) -> (Option<u32>, &str) {
    let Some((label, text)) = name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return (None, name);
    };
    let number = label.rsplit_once('/').and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok());
    (number, text)
}

/// Every field of an op that enters its keys, in words. A test changes each keyed field and looks for it here.
pub fn fields(op: &Op) -> Vec<Field> {
    let mut fields = Vec::new();
    match op {
        Op::Scratch | Op::Context(_) | Op::Image(_) | Op::Http(_) | Op::Git(_) => {}
        Op::Copy(op) => {
            let paths: Vec<String> = op.sources.iter().map(path).collect();
            fields.push(field(Class::Command, INSTRUCTION, if op.unpack { "ADD" } else { "COPY" }));
            if op.sources.iter().any(|source| matches!(source, CopySource::Below { .. })) {
                fields.push(field(Class::Command, "--parents", "true"));
            }
            fields.push(list(Class::Command, "sources", &paths));
            for source in &op.sources {
                if let CopySource::Inline { name, content } = source {
                    fields.push(field(Class::Command, &format!("content of <<{name}"), content));
                }
            }
            fields.push(field(Class::Command, "destination", &op.dest));
            let chown = op.chown.as_ref().map(|chown| field(Class::Option, "--chown", &chown.text));
            let chmod = op.chmod.as_ref().map(|chmod| field(Class::Option, "--chmod", &chmod.to_string()));
            fields.extend(chown.into_iter().chain(chmod));
            fields.push(field(Class::Option, "--link", &op.link.to_string()));
            let from = if op.from_context { "a build context" } else { "a stage or image" };
            fields.push(field(Class::Option, "--from", from));
            fields.push(list(Class::Option, "--exclude", &op.exclude));
        }
        Op::Workdir(op) => {
            fields.push(field(Class::Command, "WORKDIR", &op.path));
            fields.push(field(Class::Option, "USER", &op.user));
        }
        Op::Run(op) => {
            fields.push(list(Class::Command, COMMAND, &op.argv));
            fields.extend(op.script.as_ref().map(|script| field(Class::Command, "script", script)));
            fields.push(field(Class::Option, "WORKDIR", &op.cwd));
            fields.push(field(Class::Option, "USER", &op.user));
            let network = match op.network {
                Network::Default => "default",
                Network::None => "none",
                Network::Host => "host",
            };
            fields.push(field(Class::Option, "--network", network));
            let security = if op.insecure { "insecure" } else { "sandbox" };
            fields.push(field(Class::Option, "--security", security));
            fields.push(field(Class::Option, "--add-host", &op.host_names.join(" ")));
            fields.extend(op.hostname.as_ref().map(|name| field(Class::Option, "hostname", name)));
            for (index, mount) in op.mounts.iter().enumerate() {
                let name = format!("--mount {}", index + 1);
                fields.push(field(Class::Option, &name, &mount.declaration()));
            }
            for device in &op.devices {
                let required = if device.required { ",required" } else { "" };
                fields.push(field(Class::Option, "--device", &format!("{}{required}", device.name)));
            }
            fields.push(field(Class::Option, "platform", &op.platform.to_string()));
            for (name, value) in &op.env {
                let keyword = if op.arg_names.contains(name) { "ARG" } else { "ENV" };
                fields.push(field(Class::Variable, &format!("{keyword} {name}"), value));
            }
        }
    }
    fields.truncate(FIELDS_MAX);
    fields
}

/// A source as people write it; a character that no path has keeps the kinds apart, but for `--parents`, which all have or
/// none.
fn path(source: &CopySource) -> String {
    match source {
        CopySource::Path(path) if path.is_empty() => ".".to_owned(),
        CopySource::Path(path) => path.clone(),
        CopySource::Below { pivot, pattern } if pivot.is_empty() => pattern.clone(),
        CopySource::Below { pivot, pattern } => format!("{pivot}/./{pattern}"),
        CopySource::Remote { slot, form } => format!("fetched {} {slot}", form.word()),
        CopySource::Inline { name, .. } => format!("<<\0{name}"),
    }
}

/// Where a source is read that a symbolic link of this name, or one on the way to it, leads to.
pub fn link(name: &str, leads_to: &str) -> Field {
    field(Class::Option, &format!("{LINK}{name}"), leads_to)
}

/// An image's name as people write it.
pub fn short_reference(reference: &str) -> String {
    reference.parse::<rbuild_oci::Reference>().map_or_else(|_| reference.to_owned(), |r| r.familiar())
}

/// What the name of such a field begins with.
pub const LINK: &str = "link ";

/// Name of the field that says whether archives are unpacked.
pub const INSTRUCTION: &str = "instruction";

/// Name of the field that holds a RUN's argv.
pub const COMMAND: &str = "command";

/// A field of several words, in brackets where it could not be told otherwise where each ends. Told apart by its digest: two
/// lists can read the same.
fn list(class: Class, name: &str, words: &[String]) -> Field {
    let mut canonical = CanonicalWriter::new(name);
    canonical.value(words);
    let is_plain = |word: &String| !word.is_empty() && !word.contains(char::is_whitespace);
    let value = match words {
        [shell, flag, _] if [shell, flag].into_iter().all(is_plain) => words.join(" "),
        _ if words.iter().all(is_plain) => words.join(" "),
        _ => serde_json::to_string(words).expect("text serialises"),
    };
    Field { digest: Some(short_hash(&canonical.finish())), ..field(class, name, &value) }
}

fn field(class: Class, name: &str, value: &str) -> Field {
    let is_named_so = class == Class::Variable && looks_secret(name.split(' ').nth(1).unwrap_or_default());
    let is_secret = is_named_so || has_password(value);
    let is_kept = !is_secret && value.len() <= VALUE_BYTES_MAX;
    let digest = (!is_kept).then(|| short_hash(format!("{name}\0{value}").as_bytes()));
    Field { class, name: name.to_owned(), value: is_kept.then(|| value.replace('\0', "")), digest }
}

/// Whether there is an address with a password in it, of any scheme.
fn has_password(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let authority = rest.split(|c: char| matches!(c, '/' | '?' | '#') || c.is_whitespace()).next();
        let user = authority.and_then(|authority| authority.rsplit_once('@')).map_or("", |(user, _)| user);
        user.contains(':')
    })
}

fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_number_and_text() {
        assert_eq!(split_name("[build  2/14] RUN [x] y"), (Some(2), "RUN [x] y"));
        assert_eq!(split_name("[3/4] COPY . ."), (Some(3), "COPY . ."));
        assert_eq!(split_name("RUN x"), (None, "RUN x"));
    }

    #[test]
    fn values_that_are_secret_or_long_are_not_kept() {
        let secret = field(Class::Variable, "ARG NPM_TOKEN", "hunter2");
        assert_eq!(secret.value, None);
        assert!(!serde_json::to_string(&secret).unwrap().contains("hunter2"));
        assert_ne!(secret, field(Class::Variable, "ARG NPM_TOKEN", "hunter3"));
        let long = field(Class::Command, COMMAND, &"x".repeat(1000));
        assert_eq!(long.value, None);
        let proxy = field(Class::Variable, "ARG HTTP_PROXY", "http://me:hunter2@proxy:3128");
        assert_eq!(proxy.value, None);
        assert_ne!(proxy, field(Class::Variable, "ARG HTTP_PROXY", "http://me:hunter3@proxy:3128"));
        assert_eq!(field(Class::Variable, "ENV A", "1").value.as_deref(), Some("1"));
    }
}
