//! What an AST prints is parsed to the same AST: ASTs made up by proptest, and those of every Dockerfile in `fixtures/`.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rbuild_frontend::ast::{
    AddInstruction, ArgDeclaration, CheckOptions, Command, CopyInstruction, Directive, Dockerfile,
    FromInstruction, HealthcheckInstruction, Heredoc, Instruction, InstructionKind, KeyValue,
    OnbuildInstruction, RunInstruction, SourceWord, Spanned,
};
use rbuild_frontend::parse;
use rbuild_frontend::span::{Lines, Span};

fn spanned<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Span::default())
}

/// What an AST says, without where it says it.
fn meaning(ast: &Dockerfile) -> String {
    let directives: Vec<_> = ast.directives.iter().map(|d| (&d.key.value, &d.value.value)).collect();
    let instructions: Vec<_> = ast
        .instructions
        .iter()
        .map(|i| (i.keyword.value.to_uppercase(), &i.comments, &i.skip_rules, &i.kind))
        .collect();
    without_places(&format!("{:#?}", (ast.escape, directives, instructions)))
}

/// Drops the ` @3..7` behind every spanned value.
fn without_places(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" @") {
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let first = digits(after);
        let end = after[first..].strip_prefix("..").map(|end| first + 2 + digits(end));
        out.push_str(before);
        match end.filter(|_| first > 0) {
            Some(end) => rest = &after[end..],
            None => {
                out.push_str(" @");
                rest = after;
            }
        }
    }
    out + rest
}

fn keyword() -> impl Strategy<Value = fn(&str) -> String> {
    prop_oneof![
        Just(str::to_uppercase as fn(&str) -> String),
        Just(str::to_lowercase as fn(&str) -> String),
        Just((|word| word[..1].to_lowercase() + &word[1..]) as fn(&str) -> String),
    ]
}

fn text() -> impl Strategy<Value = Spanned<String>> {
    "[a-zA-Z$({\"'/-][ -~éß]{0,16}".prop_filter_map("a line of its own", |text| {
        let text = text.trim().to_owned();
        let is_fit = !text.is_empty() && !text.ends_with(['\\', '`']) && !text.contains("<<");
        is_fit.then(|| spanned(text))
    })
}

/// Anything that a JSON string can hold.
fn any_word() -> impl Strategy<Value = Spanned<String>> {
    prop_oneof![4 => "[a-zA-Z0-9$/.*?={}\"'#<-]{1,8}", 1 => any::<String>().prop_map(|s| s.chars().take(8).collect())]
        .prop_map(spanned)
}

fn plain_word() -> impl Strategy<Value = Spanned<String>> {
    "[a-zA-Z0-9$/.*?={}-]{1,8}".prop_map(spanned)
}

fn flag() -> impl Strategy<Value = Spanned<String>> {
    "[ -~\té]{0,8}".prop_map(spanned)
}

/// Here-documents are looked for by the shell's rules, whatever the escape character is, so that a quote in a flag that
/// only the Dockerfile's escape protects would hide them. As with BuildKit.
fn flag_beside_bodies() -> impl Strategy<Value = Spanned<String>> {
    "[a-z0-9 =:.!é]{0,8}".prop_map(spanned)
}

fn on_or_off() -> impl Strategy<Value = Option<Spanned<bool>>> {
    option::of(any::<bool>().prop_map(spanned))
}

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = Spanned<String>> {
    prop::sample::select(words).prop_map(|word| spanned(word.to_owned()))
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![text().prop_map(Command::Shell), vec(any_word(), 1..4).prop_map(Command::Exec),]
}

/// A body none of whose lines ends it, and its name made unlike all others by its number.
fn heredoc(number: usize) -> impl Strategy<Value = Heredoc> {
    let line = "[ -~\t]{0,10}\r?";
    (any::<bool>(), any::<bool>(), "[A-Z][a-z.-]{0,4}", vec(line, 0..4)).prop_map(
        move |(expand, chomp, name, lines)| {
            let name = format!("{name}{number}");
            let lines = lines.iter().filter(|line| line.trim() != name);
            let body = lines.map(|line| format!("{line}\n")).collect();
            Heredoc { name: spanned(name), expand, chomp, body: spanned(body) }
        },
    )
}

fn sources() -> impl Strategy<Value = Vec<SourceWord>> {
    let paths = vec(any_word().prop_map(SourceWord::Path), 1..4);
    let mixed = (vec(plain_word().prop_map(SourceWord::Path), 0..2), heredoc(1), heredoc(2));
    let mixed = mixed.prop_map(|(mut words, one, two)| {
        words.extend([SourceWord::Inline(one), SourceWord::Inline(two)]);
        words
    });
    prop_oneof![paths, mixed]
}

fn marked(heredoc: &Heredoc) -> String {
    let chomp = if heredoc.chomp { "-" } else { "" };
    let quote = if heredoc.expand { "" } else { "'" };
    format!("<<{chomp}{quote}{}{quote}", heredoc.name.value)
}

fn run() -> impl Strategy<Value = RunInstruction> {
    const MOUNTS: &[&str] =
        &["type=tmpfs,target=/t", "target=/src", "type=cache,target=/c,id=a b", "type=ssh"];
    const DEVICES: &[&str] = &["a.b/c=d", "a.b/c=*,required", "gpu", "name=a.b/c d,required=false"];
    let flags = (
        vec(one_of(MOUNTS), 0..3),
        option::of(one_of(&["none", "host", "default"])),
        option::of(one_of(&["sandbox", "insecure"])),
        vec(one_of(DEVICES), 0..2),
    );
    let plain = command().prop_map(|command| (command, Vec::new()));
    let bodies = vec(heredoc(1), 1..2).prop_flat_map(|first| {
        heredoc(2).prop_map(move |second| {
            let heredocs = vec![first[0].clone(), second];
            let markers: Vec<String> = heredocs.iter().map(marked).collect();
            (Command::Shell(spanned(format!("cat {}", markers.join(" ")))), heredocs)
        })
    });
    (flags, prop_oneof![3 => plain, 1 => bodies]).prop_map(
        |((mounts, network, security, devices), (command, heredocs))| RunInstruction {
            mounts,
            network,
            security,
            devices,
            command,
            heredocs,
        },
    )
}

fn pairs() -> impl Strategy<Value = Vec<KeyValue>> {
    let name = "[A-Za-z_][A-Za-z0-9_.-]{0,5}";
    let value =
        prop_oneof!["[a-zA-Z0-9$/.:]{0,6}", "\"[ -!#-\\[\\]-_a-~]{0,6}\"", "'[ -&(-\\[\\]-_a-~]{0,6}'"];
    let pair = (name, value).prop_map(|(key, value)| KeyValue {
        key: spanned(key),
        value: spanned(value),
        legacy: false,
    });
    let legacy =
        (name, text()).prop_map(|(key, value)| vec![KeyValue { key: spanned(key), value, legacy: true }]);
    prop_oneof![4 => vec(pair, 1..4), 1 => legacy]
}

fn arguments() -> impl Strategy<Value = Vec<ArgDeclaration>> {
    let one = ("[A-Za-z_][A-Za-z0-9_]{0,5}", option::of("[a-zA-Z0-9$/.]{0,6}"));
    let one =
        one.prop_map(|(name, default)| ArgDeclaration { name: spanned(name), default: default.map(spanned) });
    vec(one, 1..4)
}

fn healthcheck() -> impl Strategy<Value = HealthcheckInstruction> {
    let time = || prop_oneof![Just(0), 1_000_000..i64::MAX / 2];
    (time(), time(), time(), time(), 0..1000_i64, option::of(command())).prop_map(
        |(interval, timeout, start_period, start_interval, retries, test)| HealthcheckInstruction {
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
            test,
        },
    )
}

fn from() -> impl Strategy<Value = InstructionKind> {
    let name = option::of((one_of(&["AS", "as", "aS"]), "[a-zA-Z][a-z0-9_.-]{0,5}".prop_map(spanned)));
    (option::of(flag()), plain_word(), name).prop_map(|(platform, image, name)| {
        let (as_word, name) = name.unzip();
        InstructionKind::From(FromInstruction { platform, image, as_word, name })
    })
}

fn copy() -> impl Strategy<Value = InstructionKind> {
    let flags = (
        option::of(flag_beside_bodies()),
        option::of(flag_beside_bodies()),
        option::of(flag_beside_bodies()),
        on_or_off(),
        on_or_off(),
    );
    (flags, vec(flag_beside_bodies(), 0..3), sources(), plain_word()).prop_map(
        |((from, chown, chmod, link, parents), exclude, sources, dest)| {
            InstructionKind::Copy(CopyInstruction {
                from,
                chown,
                chmod,
                link,
                parents,
                exclude,
                sources,
                dest,
            })
        },
    )
}

fn add() -> impl Strategy<Value = InstructionKind> {
    let flags = (
        option::of(flag_beside_bodies()),
        option::of(flag_beside_bodies()),
        on_or_off(),
        option::of(flag_beside_bodies()),
        on_or_off(),
        on_or_off(),
    );
    (flags, vec(flag_beside_bodies(), 0..3), sources(), plain_word()).prop_map(
        |((chown, chmod, link, checksum, keep_git_dir, unpack), exclude, sources, dest)| {
            InstructionKind::Add(AddInstruction {
                chown,
                chmod,
                link,
                exclude,
                checksum,
                keep_git_dir,
                unpack,
                sources,
                dest,
            })
        },
    )
}

fn kind() -> impl Strategy<Value = (&'static str, InstructionKind)> {
    use InstructionKind as Kind;
    let filled = || any_word().prop_filter("not empty", |word| !word.value.is_empty());
    let trigger =
        one_of(&["RUN a  b", "COPY --link a b", "RUN <<E cat\n  body\nE", "copy <<-A <<B /\n\tx\nA\ny\nB"]);
    prop_oneof![
        from().prop_map(|kind| ("FROM", kind)),
        run().prop_map(|run| ("RUN", Kind::Run(run))),
        copy().prop_map(|kind| ("COPY", kind)),
        add().prop_map(|kind| ("ADD", kind)),
        text().prop_map(|text| ("WORKDIR", Kind::Workdir(text))),
        pairs().prop_map(|pairs| ("ENV", Kind::Env(pairs))),
        arguments().prop_map(|args| ("ARG", Kind::Arg(args))),
        pairs().prop_map(|pairs| ("LABEL", Kind::Label(pairs))),
        vec("[0-9a-z$/-]{1,6}".prop_map(spanned), 1..4).prop_map(|ports| ("EXPOSE", Kind::Expose(ports))),
        text().prop_map(|text| ("USER", Kind::User(text))),
        vec(filled(), 1..4).prop_map(|paths| ("VOLUME", Kind::Volume(paths))),
        command().prop_map(|command| ("CMD", Kind::Cmd(command))),
        Just(("CMD", Kind::Cmd(Command::Shell(spanned(String::new()))))),
        command().prop_map(|command| ("ENTRYPOINT", Kind::Entrypoint(command))),
        vec(any_word(), 1..4).prop_map(|argv| ("SHELL", Kind::Shell(argv))),
        text().prop_map(|text| ("STOPSIGNAL", Kind::Stopsignal(text))),
        healthcheck().prop_map(|check| ("HEALTHCHECK", Kind::Healthcheck(check))),
        trigger.prop_map(|trigger| ("ONBUILD", Kind::Onbuild(OnbuildInstruction { trigger }))),
        text().prop_map(|text| ("MAINTAINER", Kind::Maintainer(text))),
    ]
}

fn instruction() -> impl Strategy<Value = Instruction> {
    let comments = vec("[a-zA-Z0-9:#.]([ a-zA-Z0-9:#.-]{0,10}[a-z])?", 0..3);
    (kind(), keyword(), comments, vec("[B-Z][a-z]{1,5}", 0..3)).prop_map(
        |((word, kind), cased, comments, skip_rules)| Instruction {
            keyword: spanned(cased(word)),
            text: String::new(),
            span: Span::default(),
            lines: Lines { first: 1, last: 1 },
            skip_rules,
            comments,
            kind,
        },
    )
}

fn dockerfile() -> impl Strategy<Value = Dockerfile> {
    let first = from().prop_flat_map(|kind| {
        instruction().prop_map(move |i| Instruction {
            keyword: spanned("FROM".to_owned()),
            kind: kind.clone(),
            ..i
        })
    });
    (any::<bool>(), option::of("docker/dockerfile[:a-z0-9]{0,3}"), first, vec(instruction(), 0..8)).prop_map(
        |(is_backtick, syntax, first, rest)| {
            let escape = if is_backtick { '`' } else { '\\' };
            let directive =
                |key: &str, value: String| Directive { key: spanned(key.to_owned()), value: spanned(value) };
            let mut directives = vec![directive("escape", escape.to_string())];
            directives.extend(syntax.map(|value| directive("syntax", value)));
            let instructions = std::iter::once(first).chain(rest).collect();
            Dockerfile { escape, directives, check: CheckOptions::default(), instructions }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_printed_ast_is_parsed_to_itself(ast in dockerfile()) {
        let printed = ast.to_string();
        let parsed = parse(printed.as_bytes());
        prop_assert!(!parsed.has_errors(), "{printed}\n{:#?}", parsed.diagnostics);
        prop_assert_eq!(meaning(&parsed.ast), meaning(&ast), "{}", printed);
    }
}

fn dockerfiles(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("its type"));
        if kind.is_dir() {
            dockerfiles(&path, found);
        } else if kind.is_file()
            && path.file_name().is_some_and(|name| name.to_string_lossy().contains("ockerfile"))
        {
            found.push(path);
        }
    }
}

#[test]
fn every_dockerfile_of_the_fixtures_survives_printing() {
    let mut found = Vec::new();
    dockerfiles(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures"), &mut found);
    assert!(found.len() > 200, "{} Dockerfiles: some are missing", found.len());
    for path in found {
        // Instructions with errors are not in the AST; the others are printed all the same.
        let ast = parse(&std::fs::read(&path).expect("its bytes")).ast;
        let printed = ast.to_string();
        assert_eq!(meaning(&parse(printed.as_bytes()).ast), meaning(&ast), "{}\n{printed}", path.display());
    }
}
