//! One logical line to one typed instruction.

use crate::ast::{
    AddInstruction, Command, CopyInstruction, FromInstruction, HealthcheckInstruction, Instruction,
    InstructionKind, OnbuildInstruction, RunInstruction, Spanned,
};
use crate::suggest;

use super::arguments::{command, copy_words, declarations, json, key_values, one, spanned, words};
use super::flags::{Flags, Takes};
use super::grammar::{self, Piece};
use super::lines::Logical;
use super::{Issue, KEYWORDS, device, duration, mount};

/// Reads a line. The error names its place in the file.
pub(super) fn read(line: &Logical, escape: char) -> Result<Instruction, Issue> {
    let (keyword, rest) =
        grammar::head(&line.text).ok_or_else(|| Issue::new("instruction without a keyword", line.span))?;
    let upper = keyword.text.to_ascii_uppercase();
    let keyword_span = line.span(keyword.at, keyword.end());
    if !KEYWORDS.contains(&upper.as_str()) {
        let hint = suggest::hint(&upper, KEYWORDS);
        let issue = Issue::new(format!("unknown instruction: {}{hint}", keyword.text), keyword_span);
        return Err(match hint.is_empty() {
            true => issue.with_help(format!("instructions are {}", KEYWORDS.join(", "))),
            false => issue,
        });
    }
    let (flag_words, rest) = grammar::flags(rest, escape).unwrap_or((Vec::new(), rest));
    let flags = Flags::read(&flag_words, known_flags(&upper), line, escape)?;
    Ok(Instruction {
        keyword: Spanned::new(keyword.text.to_owned(), keyword_span),
        text: line.text.clone(),
        span: line.span,
        lines: line.lines,
        skip_rules: line.skip_rules.clone(),
        comments: line.comments.clone(),
        kind: kind(&upper, &flags, line, rest, escape)?,
    })
}

fn known_flags(keyword: &str) -> &'static [(&'static str, Takes)] {
    use Takes::{Bool, List, Text};
    match keyword {
        "FROM" => &[("platform", Text)],
        "RUN" => &[("mount", List), ("network", Text), ("security", Text), ("device", List)],
        "COPY" => &[
            ("from", Text),
            ("chown", Text),
            ("chmod", Text),
            ("link", Bool),
            ("parents", Bool),
            ("exclude", List),
        ],
        "ADD" => &[
            ("chown", Text),
            ("chmod", Text),
            ("link", Bool),
            ("exclude", List),
            ("checksum", Text),
            ("keep-git-dir", Bool),
            ("unpack", Bool),
        ],
        "HEALTHCHECK" => &[
            ("interval", Text),
            ("timeout", Text),
            ("start-period", Text),
            ("start-interval", Text),
            ("retries", Text),
        ],
        _ => &[],
    }
}

fn kind(
    keyword: &str,
    flags: &Flags,
    line: &Logical,
    rest: Piece<'_>,
    escape: char,
) -> Result<InstructionKind, Issue> {
    use InstructionKind as Kind;
    Ok(match keyword {
        "FROM" => Kind::From(from(flags, line, rest)?),
        "RUN" => Kind::Run(run(flags, line, rest)?),
        "COPY" => {
            let (sources, dest) = copy_words(keyword, line, rest)?;
            Kind::Copy(CopyInstruction {
                from: flags.text("from"),
                chown: flags.text("chown"),
                chmod: flags.text("chmod"),
                link: flags.bool("link"),
                parents: flags.bool("parents"),
                exclude: flags.list("exclude"),
                sources,
                dest,
            })
        }
        "ADD" => {
            let (sources, dest) = copy_words(keyword, line, rest)?;
            Kind::Add(AddInstruction {
                chown: flags.text("chown"),
                chmod: flags.text("chmod"),
                link: flags.bool("link"),
                exclude: flags.list("exclude"),
                checksum: flags.text("checksum"),
                keep_git_dir: flags.bool("keep-git-dir"),
                unpack: flags.bool("unpack"),
                sources,
                dest,
            })
        }
        "WORKDIR" => Kind::Workdir(one(keyword, line, rest)?),
        "ENV" => Kind::Env(key_values(keyword, line, rest, escape)?),
        "LABEL" => Kind::Label(key_values(keyword, line, rest, escape)?),
        "ARG" => Kind::Arg(declarations(line, rest, escape)?),
        "EXPOSE" => {
            let ports = grammar::plain_words(rest).into_iter().map(|w| spanned(line, w));
            Kind::Expose(at_least_one(keyword, line, ports.collect())?)
        }
        "USER" => Kind::User(one(keyword, line, rest)?),
        "VOLUME" => {
            let paths = at_least_one(keyword, line, words(line, rest)?)?;
            if let Some(blank) = paths.iter().find(|path| path.value.is_empty()) {
                return Err(Issue::new("VOLUME specified can not be an empty string", blank.span));
            }
            Kind::Volume(paths)
        }
        "CMD" => Kind::Cmd(command(line, rest)?),
        "ENTRYPOINT" => Kind::Entrypoint(command(line, rest)?),
        "SHELL" => match json(line, rest)? {
            Some(argv) => Kind::Shell(at_least_one(keyword, line, argv)?),
            None if rest.text.is_empty() => {
                return Err(Issue::new("SHELL requires at least one argument", line.span));
            }
            None => {
                let span = line.span(rest.at, rest.end());
                let issue = Issue::new("SHELL requires the arguments to be in JSON form", span);
                return Err(issue.with_help("write it as SHELL [\"executable\", \"parameter\"]"));
            }
        },
        "STOPSIGNAL" => Kind::Stopsignal(one(keyword, line, rest)?),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(flags, line, rest)?),
        "ONBUILD" => Kind::Onbuild(onbuild(line, rest)?),
        _ => Kind::Maintainer(one(keyword, line, rest)?),
    })
}

fn at_least_one(
    keyword: &str,
    line: &Logical,
    words: Vec<Spanned<String>>,
) -> Result<Vec<Spanned<String>>, Issue> {
    if words.is_empty() {
        return Err(Issue::new(format!("{keyword} requires at least one argument"), line.span));
    }
    Ok(words)
}

fn from(flags: &Flags, line: &Logical, rest: Piece<'_>) -> Result<FromInstruction, Issue> {
    let words = grammar::plain_words(rest);
    let platform = flags.text("platform");
    match words.as_slice() {
        [image] => Ok(FromInstruction { platform, image: spanned(line, *image), as_word: None, name: None }),
        [image, as_word, name] if as_word.text.eq_ignore_ascii_case("as") => {
            let span = line.span(name.at, name.end());
            if !is_stage_name(name.text) {
                let message = format!(
                    "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                    name.text
                );
                let help = "a name is a letter, then letters, digits and - _ .";
                return Err(Issue::new(message, span).with_help(help));
            }
            Ok(FromInstruction {
                platform,
                image: spanned(line, *image),
                as_word: Some(spanned(line, *as_word)),
                name: Some(spanned(line, *name)),
            })
        }
        _ => Err(Issue::new("FROM requires either one or three arguments", line.span)
            .with_help("write FROM image, or FROM image AS name")),
    }
}

/// The beginning of a text, for a help line.
fn short(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { format!("{start}…") } else { start }
}

fn is_stage_name(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

fn run(flags: &Flags, line: &Logical, rest: Piece<'_>) -> Result<RunInstruction, Issue> {
    let network = flags.text("network");
    if let Some(mode) = &network
        && !matches!(mode.value.as_str(), "default" | "none" | "host")
    {
        let message = format!("invalid network mode {:?}", mode.value);
        return Err(Issue::new(message, mode.span).with_help("modes are default, none and host"));
    }
    let security = flags.text("security");
    if let Some(mode) = &security
        && !matches!(mode.value.as_str(), "sandbox" | "insecure")
    {
        let message = format!("security {:?} is not valid", mode.value);
        return Err(Issue::new(message, mode.span).with_help("it is sandbox or insecure"));
    }
    let command = command(line, rest)?;
    if command == Command::Exec(Vec::new()) {
        let issue = Issue::new("arguments are required", line.span(rest.at, rest.end()));
        return Err(issue.with_help("write RUN [\"executable\", \"parameter\"]"));
    }
    let mounts = flags.list("mount");
    mounts.iter().try_for_each(mount::check)?;
    let devices = flags.list("device");
    devices.iter().try_for_each(|device| device::parse(device).map(drop))?;
    Ok(RunInstruction { mounts, network, security, devices, command, heredocs: line.heredocs.clone() })
}

fn healthcheck(flags: &Flags, line: &Logical, rest: Piece<'_>) -> Result<HealthcheckInstruction, Issue> {
    let Some((kind, after)) = grammar::head(rest.text).filter(|_| !rest.text.is_empty()) else {
        return Err(Issue::new("HEALTHCHECK requires at least one argument", line.span));
    };
    let after = Piece { at: rest.at + after.at, ..after };
    let kind_span = line.span(rest.at + kind.at, rest.at + kind.end());
    let span_of = |name: &str| flags.text(name).map_or(line.span, |flag| flag.span);
    let interval = |name: &str| match flags.text(name) {
        Some(flag) => duration::parse(name, &flag.value).map_err(|text| {
            Issue::new(text, flag.span)
                .with_help("a duration is a number with its unit, for example 30s or 1m30s")
        }),
        None => Ok(0),
    };
    let test = match kind.text.to_ascii_uppercase().as_str() {
        "NONE" if after.text.is_empty() => None,
        "NONE" => {
            let span = line.span(after.at, after.end());
            return Err(Issue::new("HEALTHCHECK NONE takes no arguments", span));
        }
        "CMD" => {
            let command = command(line, after)?;
            if after.text.is_empty() || command == Command::Exec(Vec::new()) {
                return Err(Issue::new("Missing command after HEALTHCHECK CMD", kind_span));
            }
            Some(command)
        }
        _ => {
            let message = format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.text);
            return Err(Issue::new(message, kind_span)
                .with_help(format!("write HEALTHCHECK CMD {}", short(rest.text))));
        }
    };
    let retries = match flags.text("retries") {
        None => 0,
        Some(flag) if flag.value.is_empty() => 0,
        Some(flag) => {
            let number: i32 = flag.value.parse().map_err(|_| {
                let message = format!("strconv.ParseInt: parsing {:?}: invalid syntax", flag.value);
                Issue::new(message, flag.span)
            })?;
            if number < 0 {
                let message = format!("--retries cannot be negative ({number})");
                return Err(Issue::new(message, span_of("retries")));
            }
            i64::from(number)
        }
    };
    Ok(HealthcheckInstruction {
        interval: interval("interval")?,
        timeout: interval("timeout")?,
        start_period: interval("start-period")?,
        start_interval: interval("start-interval")?,
        retries,
        test,
    })
}

fn onbuild(line: &Logical, rest: Piece<'_>) -> Result<OnbuildInstruction, Issue> {
    let Some((keyword, _)) = grammar::head(rest.text).filter(|_| !rest.text.is_empty()) else {
        return Err(Issue::new("ONBUILD requires at least one argument", line.span));
    };
    let span = line.span(rest.at, rest.end());
    if let Some(message) = forbidden_trigger(keyword.text) {
        return Err(Issue::new(message, span));
    }
    let mut trigger = rest.text.to_owned();
    for heredoc in &line.heredocs {
        trigger.push('\n');
        trigger.push_str(&heredoc.body.value);
        trigger.push_str(&heredoc.name.value);
    }
    Ok(OnbuildInstruction { trigger: Spanned::new(trigger, span) })
}

/// Why an instruction cannot be a trigger.
pub(super) fn forbidden_trigger(keyword: &str) -> Option<String> {
    match keyword.to_ascii_uppercase().as_str() {
        "ONBUILD" => Some("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        upper @ ("FROM" | "MAINTAINER") => Some(format!("{upper} isn't allowed as an ONBUILD trigger")),
        _ => None,
    }
}
