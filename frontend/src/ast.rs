//! What a Dockerfile says, instruction by instruction, before any variable is expanded.
//!
//! Every text a message could point at carries its byte span in the original file. The tree is flat: ONBUILD keeps
//! its trigger as text, so no input can make it deep.

use std::fmt;

use crate::span::{Lines, Span};

mod print;

/// A value and where it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Joins the two.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// `"text" @3..7`, so that snapshots stay readable.
impl<T: fmt::Debug> fmt::Debug for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} @{}..{}", self.value, self.span.start, self.span.end)
    }
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character: `\` or `` ` ``.
    pub escape: char,
    /// Parser directives in order.
    pub directives: Vec<Directive>,
    /// The `check` directive, parsed.
    pub check: CheckOptions,
    /// Instructions in order; those with errors are left out.
    pub instructions: Vec<Instruction>,
}

/// `# key=value` at the top of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Key in lower case: `syntax`, `escape` or `check`.
    pub key: Spanned<String>,
    /// Value, trimmed.
    pub value: Spanned<String>,
}

/// What `# check=` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Rules not to report.
    pub skip: Vec<String>,
    /// Report no rule at all.
    pub skip_all: bool,
    /// A reported rule fails the build.
    pub error: bool,
    /// Experimental rules to report too.
    pub experimental: Vec<String>,
    /// Report all experimental rules.
    pub experimental_all: bool,
}

impl Instruction {
    /// What a comment directly above says about `name`: the rest of a line `# NAME text`.
    pub fn description(&self, name: &str) -> Option<&str> {
        let text = |line: &'_ String| line.strip_prefix(name)?.strip_prefix(' ').map(str::len);
        let (line, length) = self.comments.iter().find_map(|line| Some((line, text(line)?)))?;
        Some(line[line.len() - length..].trim())
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Keyword as written.
    pub keyword: Spanned<String>,
    /// Text of the logical line after joining, trimmed, without heredoc bodies.
    pub text: String,
    /// From the keyword to the end, heredocs included.
    pub span: Span,
    /// Physical lines, heredocs included.
    pub lines: Lines,
    /// Lint rules that a comment directly above switches off.
    pub skip_rules: Vec<String>,
    /// Comment lines directly above, without `#` and trimmed; `# check=` lines are not among them.
    pub comments: Vec<String>,
    /// What it says.
    pub kind: InstructionKind,
}

/// The instructions of the language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstructionKind {
    /// FROM
    From(FromInstruction),
    /// RUN
    Run(RunInstruction),
    /// COPY
    Copy(CopyInstruction),
    /// ADD
    Add(AddInstruction),
    /// WORKDIR
    Workdir(Spanned<String>),
    /// ENV
    Env(Vec<KeyValue>),
    /// ARG
    Arg(Vec<ArgDeclaration>),
    /// LABEL
    Label(Vec<KeyValue>),
    /// EXPOSE
    Expose(Vec<Spanned<String>>),
    /// USER
    User(Spanned<String>),
    /// VOLUME
    Volume(Vec<Spanned<String>>),
    /// CMD
    Cmd(Command),
    /// ENTRYPOINT
    Entrypoint(Command),
    /// SHELL
    Shell(Vec<Spanned<String>>),
    /// STOPSIGNAL
    Stopsignal(Spanned<String>),
    /// HEALTHCHECK
    Healthcheck(HealthcheckInstruction),
    /// ONBUILD
    Onbuild(OnbuildInstruction),
    /// MAINTAINER
    Maintainer(Spanned<String>),
}

/// `FROM [--platform=P] IMAGE [AS NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromInstruction {
    /// `--platform`, unexpanded.
    pub platform: Option<Spanned<String>>,
    /// Image or stage, unexpanded.
    pub image: Spanned<String>,
    /// The word `AS` as written.
    pub as_word: Option<Spanned<String>>,
    /// Stage name as written.
    pub name: Option<Spanned<String>>,
}

/// Exec form or shell form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// JSON array.
    Exec(Vec<Spanned<String>>),
    /// Text for the shell.
    Shell(Spanned<String>),
}

/// A here-document: marker and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word without quotes.
    pub name: Spanned<String>,
    /// True unless a part of the word is quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are dropped.
    pub chomp: bool,
    /// Body as written, up to and without the terminator line.
    pub body: Spanned<String>,
}

impl Heredoc {
    /// The body, without leading tabs when the marker says so.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.body.value.clone();
        }
        self.body.value.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInstruction {
    /// `--mount`, as written.
    pub mounts: Vec<Spanned<String>>,
    /// `--network`.
    pub network: Option<Spanned<String>>,
    /// `--security`.
    pub security: Option<Spanned<String>>,
    /// `--device`.
    pub devices: Vec<Spanned<String>>,
    /// What to run.
    pub command: Command,
    /// Here-documents in marker order.
    pub heredocs: Vec<Heredoc>,
}

/// One source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceWord {
    /// Path, pattern, URL: unexpanded.
    Path(Spanned<String>),
    /// An inline file.
    Inline(Heredoc),
}

/// `COPY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyInstruction {
    /// `--from`.
    pub from: Option<Spanned<String>>,
    /// `--chown`.
    pub chown: Option<Spanned<String>>,
    /// `--chmod`.
    pub chmod: Option<Spanned<String>>,
    /// `--link`.
    pub link: Option<Spanned<bool>>,
    /// `--parents`.
    pub parents: Option<Spanned<bool>>,
    /// `--exclude`.
    pub exclude: Vec<Spanned<String>>,
    /// Sources in order.
    pub sources: Vec<SourceWord>,
    /// Destination.
    pub dest: Spanned<String>,
}

/// `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddInstruction {
    /// `--chown`.
    pub chown: Option<Spanned<String>>,
    /// `--chmod`.
    pub chmod: Option<Spanned<String>>,
    /// `--link`.
    pub link: Option<Spanned<bool>>,
    /// `--exclude`.
    pub exclude: Vec<Spanned<String>>,
    /// `--checksum`.
    pub checksum: Option<Spanned<String>>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<Spanned<bool>>,
    /// `--unpack`.
    pub unpack: Option<Spanned<bool>>,
    /// Sources in order.
    pub sources: Vec<SourceWord>,
    /// Destination.
    pub dest: Spanned<String>,
}

/// `key=value` of ENV and LABEL, quotes kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Key.
    pub key: Spanned<String>,
    /// Value.
    pub value: Spanned<String>,
    /// Written in the old form `KEY value`.
    pub legacy: bool,
}

/// One name of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// Name.
    pub name: Spanned<String>,
    /// Default, quotes kept; `None` without `=`.
    pub default: Option<Spanned<String>>,
}

/// `HEALTHCHECK`. Durations are nanoseconds, zero when not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthcheckInstruction {
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i64,
    /// The test; `None` is `NONE`.
    pub test: Option<Command>,
}

/// `ONBUILD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnbuildInstruction {
    /// The trigger: raw rest of the line with heredoc bodies appended.
    pub trigger: Spanned<String>,
}
