//! An AST as a Dockerfile again.
//!
//! What is printed parses to the same AST, places aside: [`Display`](fmt::Display) of [`Dockerfile`] is the inverse of
//! the parser, and its tests hold the two to it. Forms are chosen for that, not for beauty: a word that could be read
//! otherwise makes its line a JSON array, and continuations are joined.

use std::fmt::{self, Write as _};

use super::{
    Command, Dockerfile, Heredoc, Instruction, InstructionKind, KeyValue, RunInstruction, SourceWord, Spanned,
};

impl fmt::Display for Dockerfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for directive in &self.directives {
            writeln!(f, "# {}={}", directive.key.value, directive.value.value)?;
        }
        // Ends the directives, whatever the first comment looks like.
        f.write_str("\n")?;
        for instruction in &self.instructions {
            print(f, instruction, self.escape)?;
        }
        Ok(())
    }
}

fn print(f: &mut fmt::Formatter<'_>, instruction: &Instruction, escape: char) -> fmt::Result {
    for comment in &instruction.comments {
        writeln!(f, "# {comment}")?;
    }
    if !instruction.skip_rules.is_empty() {
        writeln!(f, "# check=skip={}", instruction.skip_rules.join(","))?;
    }
    let Line { flags, rest, bodies } = Line::of(&instruction.kind);
    f.write_str(&instruction.keyword.value)?;
    for (name, value) in &flags {
        f.write_str(" --")?;
        f.write_str(name)?;
        if let Some(value) = value {
            f.write_char('=')?;
            for c in value.chars() {
                if c.is_whitespace() || matches!(c, '"' | '\'') || c == escape {
                    f.write_char(escape)?;
                }
                f.write_char(c)?;
            }
        }
    }
    // What looks like a flag and is none.
    if rest.starts_with("--") {
        f.write_str(" --")?;
    }
    writeln!(f, " {rest}")?;
    for heredoc in bodies {
        writeln!(f, "{}{}", heredoc.body.value, heredoc.name.value)?;
    }
    Ok(())
}

/// What stands behind the keyword.
#[derive(Default)]
struct Line<'a> {
    flags: Vec<(&'static str, Option<String>)>,
    rest: String,
    bodies: Vec<&'a Heredoc>,
}

impl<'a> Line<'a> {
    fn of(kind: &'a InstructionKind) -> Self {
        let mut line = Self::default();
        match kind {
            InstructionKind::From(from) => {
                line.text("platform", from.platform.as_ref());
                line.rest.clone_from(&from.image.value);
                for word in [&from.as_word, &from.name].into_iter().flatten() {
                    let _ = write!(line.rest, " {}", word.value);
                }
            }
            InstructionKind::Run(run) => line.run(run),
            InstructionKind::Copy(copy) => {
                line.text("from", copy.from.as_ref());
                line.text("chown", copy.chown.as_ref());
                line.text("chmod", copy.chmod.as_ref());
                line.bool("link", copy.link.as_ref());
                line.bool("parents", copy.parents.as_ref());
                line.list("exclude", &copy.exclude);
                line.sources(&copy.sources, &copy.dest);
            }
            InstructionKind::Add(add) => {
                line.text("chown", add.chown.as_ref());
                line.text("chmod", add.chmod.as_ref());
                line.bool("link", add.link.as_ref());
                line.list("exclude", &add.exclude);
                line.text("checksum", add.checksum.as_ref());
                line.bool("keep-git-dir", add.keep_git_dir.as_ref());
                line.bool("unpack", add.unpack.as_ref());
                line.sources(&add.sources, &add.dest);
            }
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => line.rest = pairs_of(pairs),
            InstructionKind::Arg(declarations) => {
                let words = declarations.iter().map(|arg| match &arg.default {
                    Some(default) => format!("{}={}", arg.name.value, default.value),
                    None => arg.name.value.clone(),
                });
                line.rest = words.collect::<Vec<_>>().join(" ");
            }
            InstructionKind::Expose(ports) => line.rest = joined(ports),
            InstructionKind::Volume(paths) => {
                line.rest =
                    if paths.iter().all(|path| is_plain(&path.value)) { joined(paths) } else { json(paths) };
            }
            InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => {
                line.rest = text_of(command)
            }
            InstructionKind::Shell(argv) => line.rest = json(argv),
            InstructionKind::Healthcheck(check) => {
                let durations = [
                    ("interval", check.interval),
                    ("timeout", check.timeout),
                    ("start-period", check.start_period),
                    ("start-interval", check.start_interval),
                ];
                for (name, nanoseconds) in durations {
                    if nanoseconds != 0 {
                        line.flags.push((name, Some(format!("{nanoseconds}ns"))));
                    }
                }
                if check.retries != 0 {
                    line.flags.push(("retries", Some(check.retries.to_string())));
                }
                line.rest = match &check.test {
                    Some(command) => format!("CMD {}", text_of(command)),
                    None => "NONE".to_owned(),
                };
            }
            InstructionKind::Onbuild(onbuild) => line.rest.clone_from(&onbuild.trigger.value),
            InstructionKind::Workdir(text)
            | InstructionKind::User(text)
            | InstructionKind::Stopsignal(text)
            | InstructionKind::Maintainer(text) => line.rest.clone_from(&text.value),
        }
        line
    }

    fn run(&mut self, run: &'a RunInstruction) {
        self.list("mount", &run.mounts);
        self.text("network", run.network.as_ref());
        self.text("security", run.security.as_ref());
        self.list("device", &run.devices);
        self.rest = text_of(&run.command);
        self.bodies.extend(&run.heredocs);
    }

    fn text(&mut self, name: &'static str, value: Option<&Spanned<String>>) {
        self.flags.extend(value.map(|value| (name, Some(value.value.clone()))));
    }

    fn list(&mut self, name: &'static str, values: &[Spanned<String>]) {
        self.flags.extend(values.iter().map(|value| (name, Some(value.value.clone()))));
    }

    fn bool(&mut self, name: &'static str, value: Option<&Spanned<bool>>) {
        self.flags.extend(value.map(|flag| (name, (!flag.value).then(|| "false".to_owned()))));
    }

    fn sources(&mut self, sources: &'a [SourceWord], dest: &Spanned<String>) {
        let mut words = Vec::with_capacity(sources.len() + 1);
        for source in sources {
            match source {
                SourceWord::Path(path) => words.push(path.clone()),
                SourceWord::Inline(heredoc) => {
                    words.push(Spanned::new(marker(heredoc), heredoc.name.span));
                    self.bodies.push(heredoc);
                }
            }
        }
        words.push(dest.clone());
        // Here-documents have no JSON form, and their neighbours were plain words.
        let is_plain = !self.bodies.is_empty() || words.iter().all(|word| is_plain(&word.value));
        self.rest = if is_plain { joined(&words) } else { json(&words) };
    }
}

/// Whether a word between blanks is read as it is. `[` may begin a JSON array, `<<` announces a body, and what a line
/// ends in may continue it.
fn is_plain(word: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '[' | '\\' | '`');
    !word.is_empty() && !word.contains(is_odd) && !word.contains("<<")
}

fn joined(words: &[Spanned<String>]) -> String {
    words.iter().map(|word| word.value.as_str()).collect::<Vec<_>>().join(" ")
}

fn json(words: &[Spanned<String>]) -> String {
    let texts: Vec<_> = words.iter().map(|word| serde_json::Value::from(word.value.as_str())).collect();
    serde_json::Value::from(texts).to_string()
}

fn text_of(command: &Command) -> String {
    match command {
        Command::Exec(argv) => json(argv),
        Command::Shell(text) => text.value.clone(),
    }
}

fn pairs_of(pairs: &[KeyValue]) -> String {
    let word = |pair: &KeyValue| {
        let separator = if pair.legacy { ' ' } else { '=' };
        format!("{}{separator}{}", pair.key.value, pair.value.value)
    };
    pairs.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// `<<-"NAME"`: a quoted part says that the body is not expanded.
fn marker(heredoc: &Heredoc) -> String {
    let chomp = if heredoc.chomp { "-" } else { "" };
    let name = &heredoc.name.value;
    match (heredoc.expand, name.contains('"')) {
        (true, _) => format!("<<{chomp}{name}"),
        (false, false) => format!("<<{chomp}\"{name}\""),
        (false, true) => format!("<<{chomp}'{name}'"),
    }
}
