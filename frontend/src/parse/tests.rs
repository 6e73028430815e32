use proptest::prelude::*;

use super::*;
use crate::ast::{Command, InstructionKind, SourceWord};

#[track_caller]
fn errors(text: &str) -> Vec<String> {
    let parsed = parse(text.as_bytes());
    for diagnostic in &parsed.diagnostics {
        assert!(diagnostic.span.end <= text.len() && diagnostic.span.start <= diagnostic.span.end);
    }
    let errors = parsed.diagnostics.into_iter().filter(|d| d.severity == Severity::Error);
    errors.map(|d| d.message).collect()
}

#[track_caller]
fn check_error(text: &str, wanted: &str) {
    let found = errors(text);
    assert!(found.iter().any(|message| message.contains(wanted)), "{text:?}: {found:?} lacks {wanted:?}");
}

#[track_caller]
fn check_ok(text: &str) -> Parsed {
    assert_eq!(errors(text), Vec::<String>::new(), "{text:?}");
    parse(text.as_bytes())
}

#[track_caller]
fn rules(text: &str) -> Vec<&'static str> {
    check_ok(text).diagnostics.iter().filter_map(|d| d.rule).collect()
}

/// The last instruction of a file without errors.
#[track_caller]
fn last(text: &str) -> InstructionKind {
    check_ok(text).ast.instructions.last().expect("an instruction").kind.clone()
}

#[track_caller]
fn label(line: &str) -> Vec<(String, String)> {
    match last(&format!("FROM scratch\n{line}")) {
        InstructionKind::Label(pairs) | InstructionKind::Env(pairs) => {
            pairs.into_iter().map(|p| (p.key.value, p.value.value)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn shell_text(text: &str) -> String {
    match last(text) {
        InstructionKind::Run(run) => match run.command {
            Command::Shell(text) => text.value,
            Command::Exec(argv) => panic!("{argv:?}"),
        },
        InstructionKind::Cmd(Command::Shell(text)) | InstructionKind::Entrypoint(Command::Shell(text)) => {
            text.value
        }
        other => panic!("{other:?}"),
    }
}

/// Bodies of COPY's inline sources.
#[track_caller]
fn inline(text: &str) -> Vec<(String, String)> {
    match last(text) {
        InstructionKind::Copy(copy) => copy
            .sources
            .into_iter()
            .filter_map(|source| match source {
                SourceWord::Inline(heredoc) => Some((heredoc.name.value.clone(), heredoc.text())),
                SourceWord::Path(_) => None,
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn golden_1_odd_case_is_one_lint() {
    assert_eq!(rules("from scratch\nlAbEl a=b"), ["ConsistentInstructionCasing"]);
}

#[test]
fn golden_2_leading_blanks_do_not_matter() {
    check_ok("\t FROM scratch\n  # c\n   LABEL a=b");
}

#[test]
fn golden_3_to_6_files_without_a_stage() {
    assert_eq!(errors(""), ["the Dockerfile cannot be empty"]);
    assert_eq!(errors("# a\n\n  # b\n"), ["file with no instructions"]);
    assert_eq!(errors("ARG a=b"), ["dockerfile contains no stages to build"]);
    check_error("RUN x\nFROM scratch", "no build stage in current context");
}

#[test]
fn golden_7_to_11_from() {
    let arity = "dockerfile parse error on line 1: FROM requires either one or three arguments";
    assert_eq!(errors("FROM scratch as"), [arity]);
    assert_eq!(errors("FROM scratch foo bar"), [arity]);
    check_error(
        "FROM scratch AS 9x",
        "invalid name for build stage: \"9x\", name can't start with a number or contain symbols",
    );
    assert_eq!(rules("FROM scratch AS A_b-1.x"), ["StageNameCasing"]);
}

#[test]
fn golden_12_unknown_instruction_suggests() {
    assert_eq!(
        errors("FROM scratch\nFNTRYPOINT [\"a\"]"),
        ["dockerfile parse error on line 2: unknown instruction: FNTRYPOINT (did you mean ENTRYPOINT?)"]
    );
}

#[test]
fn golden_13_to_19_continuations() {
    assert_eq!(label("LABEL foo=ba\\\nr"), pairs(&[("foo", "bar")]));
    assert_eq!(label("LABEL foo=\"a\\\n   b\""), pairs(&[("foo", "\"a   b\"")]));
    assert_eq!(label("LABEL a=b \\"), pairs(&[("a", "b")]));
    check_error(
        "FROM scratch\nLABEL a=b \\\nLABEL c=d",
        "Syntax error - can't find = in \"LABEL\". Must be of the form: name=value",
    );
    let parsed = check_ok("FROM bb\nRUN echo a\\\\\nLABEL q=r");
    assert_eq!(parsed.ast.instructions.len(), 3);
    assert_eq!(shell_text("FROM bb\nRUN echo a\\\\"), "echo a\\\\");
    assert_eq!(shell_text("FROM bb\nRUN echo a \\\n#c \\\n b > /o"), "echo a  b > /o");
    assert_eq!(label("LABEL \\\n\\\n a=b"), pairs(&[("a", "b")]));
    assert_eq!(shell_text("FROM bb\nRUN a\\\\\\\n"), "a\\\\\\");
}

#[test]
fn blank_line_in_a_continuation_is_one_lint() {
    assert_eq!(rules("FROM scratch\nLABEL a=b \\\n\n\n c=d"), ["NoEmptyContinuation"]);
}

#[test]
fn golden_20_to_24_directives() {
    check_error("# escape=x\nFROM scratch", "invalid escape token 'x' does not match ` or \\");
    check_error("# escape=`\n# escape=\\\nFROM a", "only one escape parser directive can be used");
    assert_eq!(parse(b"\n# escape=`\nFROM a").ast.escape, '\\');
    assert_eq!(parse(b"# ESCAPE = `\nFROM a").ast.escape, '`');
    assert_eq!(parse(b"# foo=bar\n# escape=`\nFROM a").ast.escape, '\\');
    assert_eq!(parse(b"\xEF\xBB\xBF# escape=`\nFROM a").ast.escape, '`');
    check_error("# check=foo=1\nFROM a", "failed to parse check options: invalid check option \"foo=1\"");
}

#[test]
fn backtick_escape_continues_and_backslash_does_not() {
    let text = "# escape=`\nFROM a\nRUN dir c:\\\nRUN b `\n c";
    assert_eq!(check_ok(text).ast.instructions.len(), 3);
    assert_eq!(shell_text(text), "b  c");
}

#[test]
fn golden_28_long_lines() {
    let line = |len: usize| format!("FROM a\nRUN {}", "x".repeat(len - 4));
    check_ok(&line(65_535));
    check_error(&line(65_536), "dockerfile line greater than max allowed size of 65535");
}

#[test]
fn golden_29_to_33_json_form() {
    assert_eq!(shell_text("FROM a\nCMD [\"a\",\"b\""), "[\"a\",\"b\"");
    let strings = "when using JSON array syntax, arrays must be comprised of strings only";
    check_error("FROM a\nCMD [1]", strings);
    check_error("FROM a\nCMD [\"a\",[\"b\"]]", strings);
    assert_eq!(shell_text("FROM a\nRUN [\"echo\",\"x\"]tail"), "[\"echo\",\"x\"]tail");
    assert_eq!(shell_text("FROM a\nENTRYPOINT []x"), "[]x");
    assert_eq!(shell_text("FROM a\nCMD ['a']"), "['a']");
    assert_eq!(shell_text("FROM a\nCMD [\"a\",]"), "[\"a\",]");
    let InstructionKind::Cmd(Command::Exec(argv)) = last(
        r#"FROM a
CMD [ "\u0041\n\\\ud83d\ude00" , "é" ]"#,
    ) else {
        panic!("exec form")
    };
    let argv: Vec<&str> = argv.iter().map(|word| word.value.as_str()).collect();
    assert_eq!(argv, ["A\n\\😀", "é"]);
}

#[test]
fn golden_36_to_41_flags() {
    let copy = |flags: &str| format!("FROM a\nCOPY {flags} a /b");
    check_error(&copy("--chown"), "missing a value on flag: --chown");
    check_error(&copy("--link="), "missing a value on flag: --link");
    check_error(&copy("--link=maybe"), "expecting boolean value for flag --link, not: maybe");
    check_error(&copy("--foo=1"), "unknown flag: --foo (did you mean from?)");
    check_error(&copy("--form=1"), "unknown flag: --form (did you mean from?)");
    check_error(&copy("--chown=a --chown=b"), "duplicate flag specified: --chown");
    check_error("FROM a\nCMD --x foo", "unknown flag: --x");
    assert_eq!(shell_text("FROM a\nCMD -- --x foo"), "--x foo");
    let InstructionKind::Copy(copy) = last("FROM a\nCOPY --chown=\"1:2\" -- --a f --chown=1 /x/") else {
        panic!("copy")
    };
    assert_eq!(copy.chown.map(|c| c.value).as_deref(), Some("1:2"));
    assert_eq!(copy.sources.len(), 3);
}

#[test]
fn golden_42_to_46_words() {
    check_error("FROM a\nENV PATH", "ENV must have two arguments");
    check_error("FROM a\nENV a=b c", "can't find = in \"c\"");
    check_error("FROM a\nENV =b", "ENV names can not be blank");
    assert_eq!(label("ENV a b=c d"), pairs(&[("a", "b=c d")]));
    assert_eq!(rules("FROM a\nENV a b=c d"), ["LegacyKeyValueFormat"]);
    assert!(matches!(last("FROM a\nUSER a b"), InstructionKind::User(user) if user.value == "a b"));
}

#[test]
fn golden_47_to_52_heredocs() {
    assert_eq!(inline("FROM a\nCOPY <<EOF /f\nx\nEOF \nEOF"), pairs(&[("EOF", "x\nEOF \n")]));
    assert_eq!(inline("FROM a\nCOPY <<-E /f\n\t\ta\n\t b\n\tE"), pairs(&[("E", "a\n b\n")]));
    check_error("FROM a\nCOPY [\"<<EOF\",\"/f\"]\nEOF", "unknown instruction: EOF");
    check_error("FROM a\nCMD <<EOF\nfoo\nEOF", "unknown instruction: foo");
    assert_eq!(inline("FROM a\nCOPY <<EOF /f\nEOF"), pairs(&[("EOF", "")]));
    assert_eq!(
        inline("FROM a\nCOPY <<'a.txt' <<\"B\" /d/\n1\na.txt\n2\nB"),
        pairs(&[("a.txt", "1\n"), ("B", "2\n")])
    );
    assert_eq!(inline("FROM a\nCOPY <<E <<E /d/\n1\nE\n2\nE"), pairs(&[("E", "2\n")]));
    check_error("FROM a\nCOPY <<EOF /f\nx", "unterminated heredoc");
    check_error("FROM a\nCOPY a <<EOF\nx\nEOF", "COPY cannot accept a heredoc as a destination");
    assert_eq!(inline("FROM a\nCOPY <<EOF /f\r\nx\r\nEOF\r\n"), pairs(&[("EOF", "x\r\n")]));
}

#[test]
fn golden_49_blank_after_the_marker_breaks_copy_only() {
    let InstructionKind::Copy(copy) = last("FROM a\nCOPY << EOF /f\nx\nEOF") else { panic!("copy") };
    assert!(matches!(&copy.sources[1], SourceWord::Path(path) if path.value == "EOF"));
    let InstructionKind::Run(run) = last("FROM a\nRUN << EOF\nx\nEOF") else { panic!("run") };
    assert_eq!(run.heredocs.len(), 1);
}

#[test]
fn golden_56_shifts_and_quoted_markers_are_no_heredocs() {
    assert_eq!(shell_text("FROM a\nRUN echo $((1<<3)) > /o"), "echo $((1<<3)) > /o");
    check_ok("FROM a\nRUN echo \"a <<EOF\"\nUSER x");
    check_ok("FROM a\nRUN cat <<<word\nUSER x");
    check_ok("FROM a\nRUN # <<don't\nUSER x");
}

#[test]
fn heredoc_in_onbuild_is_part_of_the_trigger() {
    let InstructionKind::Onbuild(onbuild) = last("FROM a\nONBUILD RUN <<E\nx\nE\n") else {
        panic!("onbuild")
    };
    assert_eq!(onbuild.trigger.value, "RUN <<E\nx\nE");
    assert_eq!(parse_trigger(&onbuild.trigger.value, '\\').map(|list| list.len()), Ok(1));
}

#[test]
fn hard_errors_have_dockers_words() {
    for (line, wanted) in [
        ("ENV", "ENV requires at least one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("USER", "USER requires exactly one argument"),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("SHELL bash -c", "SHELL requires the arguments to be in JSON form"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("RUN []", "arguments are required"),
        ("RUN --network=foo x", "invalid network mode \"foo\""),
        ("RUN --security=foo x", "security \"foo\" is not valid"),
        ("RUN --device=a,b x", "invalid field 'b' must be a key=value pair"),
        ("HEALTHCHECK FOO", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=1us CMD x", "cannot be less than 1ms"),
        ("HEALTHCHECK --interval=5 CMD x", "missing unit in duration \"5\""),
        ("HEALTHCHECK --retries=-1 CMD x", "cannot be negative"),
    ] {
        check_error(&format!("FROM a\n{line}"), wanted);
    }
}

#[test]
fn mounts_are_checked_field_by_field() {
    for (mount, wanted) in [
        ("typ=tmpfs,target=/t", "unexpected key 'typ' in 'typ=tmpfs' (did you mean type?)"),
        ("type=tmp,target=/t", "unsupported mount type \"tmp\""),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("from=$X,target=/t", "'from' doesn't support variable expansion, define alias stage instead"),
    ] {
        check_error(&format!("FROM a\nRUN --mount={mount} true"), wanted);
    }
    check_ok("FROM a\nRUN --mount=type=cache,TARGET=/c,ro --mount='\"type=bind\",\"dst=/a,b\",rw' true");
}

#[test]
fn one_run_reports_the_errors_of_every_line() {
    assert_eq!(errors("FROM a\nFOO\nENV x\nRUN ok\nUSER").len(), 3);
}

#[test]
fn lints_about_writing() {
    assert_eq!(rules("FROM a as b"), ["FromAsCasing"]);
    assert_eq!(rules("FROM a AS b\nFROM c AS b"), ["DuplicateStageName"]);
    assert_eq!(rules("FROM a AS scratch"), ["ReservedStageName"]);
    assert_eq!(rules("FROM a\nMAINTAINER me"), ["MaintainerDeprecated"]);
    assert_eq!(rules("FROM a\n# check=skip=MaintainerDeprecated because\nMAINTAINER me"), Vec::<&str>::new());
}

#[test]
fn spans_point_into_the_original_across_continuations() {
    let text = "\u{FEFF}FROM a\r\nLABEL a=1 \\\r\n  # note\r\n  long=val\\\r\nue b=2\r\n";
    let parsed = check_ok(text);
    let InstructionKind::Label(pairs) = &parsed.ast.instructions[1].kind else { panic!("label") };
    assert_eq!(pairs[1].value.value, "value");
    assert_eq!(&text[pairs[1].value.span.range()], "val\\\r\nue");
    assert_eq!(&text[pairs[2].key.span.range()], "b");
    assert_eq!((parsed.ast.instructions[1].lines.first, parsed.ast.instructions[1].lines.last), (2, 5));
}

#[test]
fn invalid_utf8_is_an_error_and_parsing_goes_on() {
    let parsed = parse(b"FROM a\nLABEL a=\xFF\nFOO");
    assert_eq!(parsed.diagnostics.iter().filter(|d| d.severity == Severity::Error).count(), 2);
}

#[test]
fn deeply_nested_json_is_not_followed() {
    check_error(&format!("FROM a\nCMD {}1{}", "[".repeat(100), "]".repeat(100)), "strings only");
    check_ok(&format!("FROM a\nCMD {}", "[".repeat(60_000)));
}

#[test]
fn ten_thousand_instructions_parse_and_lower_quickly() {
    let mut text = String::new();
    for number in 0..10_000 {
        if number % 1_000 == 0 {
            text.push_str("FROM scratch\n");
        }
        match number % 4 {
            0 => text.push_str(&format!("LABEL key{number}=\"value $PATH {number}\" other=1\n")),
            1 => text.push_str("EXPOSE 80 443/tcp\n"),
            2 => text.push_str(&format!("RUN echo hello world {number} && true\n")),
            _ => text.push_str(&format!("COPY --chown=1:2 src/a{number} src/b /dest{number}/\n")),
        }
    }
    let start = std::time::Instant::now();
    let parsed = parse(text.as_bytes());
    let parse_taken = start.elapsed();
    let mut options = crate::lower::LowerOptions::new(rbuild_oci::Platform::new("linux", "amd64", None));
    options.all_stages = true;
    let mut lowering = crate::lower::Lowering::new(&parsed, options);
    assert!(matches!(lowering.step(), crate::lower::Progress::Done(_)), "{:?}", lowering.diagnostics());
    let taken = start.elapsed();
    println!("10,000 instructions: {taken:?}, of it parsing {parse_taken:?}");
    // Half a second alone on a slow core; the rest is for a loaded machine. A quadratic step would take minutes.
    assert!(taken.as_secs() < 10, "{taken:?}");
}

#[test]
fn a_file_has_so_many_instructions_and_bytes_of_them() {
    let (most, bytes) = (lines::INSTRUCTIONS_MAX, lines::TEXT_BYTES_MAX);
    check_ok(&format!("FROM a\n{}", "ARG b\n".repeat(most - 1)));
    let parsed = parse(format!("FROM a\n{}", "ARG b\n".repeat(most * 2)).as_bytes());
    let messages: Vec<&str> = parsed.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(messages, ["the Dockerfile has more than 16384 instructions"]);
    assert_eq!(parsed.diagnostics[0].lines.first, 16_385);

    let line = format!("# {}\n", "x".repeat(1021));
    check_ok(&format!("FROM a\n{}", line.repeat(bytes / line.len() - 1)));
    check_error(&format!("FROM a\n{}", line.repeat(bytes / line.len())), "more than 512 KiB of instructions");
    // A body is text that somebody wants in a file, and is held as it is.
    check_ok(&format!("FROM a\nCOPY <<E /f\n{}E\n", line.repeat(2 * bytes / line.len())));
}

#[test]
fn megabytes_of_continuations_and_quotes_parse() {
    for piece in ["x y \\\n", "'a \\\n", "\"\\\n", "--a=\"\\\n", "<<E \\\n", "[\"a\", \\\n"] {
        for keyword in ["RUN", "COPY", "ENV", "ONBUILD RUN", "HEALTHCHECK CMD", "FROM"] {
            let text = format!("FROM scratch\n{keyword} {}", piece.repeat(30_000));
            assert!(parse(text.as_bytes()).diagnostics.len() <= 2, "{keyword} {piece:?}");
        }
    }
}

/// Lines that reach far into the grammar, glued together at random.
fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM a AS b\n".to_owned()),
        Just("FROM scratch\n".to_owned()),
        Just("\nWORKDIR x\nCOPY a* <<-X ./\n\ty\nX\n".to_owned()),
        Just("\nLABEL a=\"${A##*/}\" 'b'=$c\n".to_owned()),
        Just("\nEXPOSE 1-9/UDP ".to_owned()),
        Just("RUN <<EOF\n".to_owned()),
        Just("EOF\n".to_owned()),
        Just("COPY --from=b \"x y\" [\"a\", ".to_owned()),
        Just("\\\n".to_owned()),
        Just("# escape=`\n".to_owned()),
        Just("ENV a=${b:-\"c\" ".to_owned()),
        Just("ONBUILD ".to_owned()),
        Just("HEALTHCHECK --interval=1 CMD".to_owned()),
        Just("\r\n".to_owned()),
        ".{0,12}",
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn check_spans(bytes: &[u8]) {
    let parsed = parse(bytes);
    let inside = |span: Span| span.start <= span.end && span.end <= bytes.len();
    for diagnostic in &parsed.diagnostics {
        assert!(inside(diagnostic.span), "{diagnostic:?}");
        assert!(diagnostic.lines.first <= diagnostic.lines.last, "{diagnostic:?}");
        assert!(diagnostic.lines.last <= parsed.source.line_count(), "{diagnostic:?}");
    }
    for instruction in &parsed.ast.instructions {
        assert!(inside(instruction.span) && inside(instruction.keyword.span), "{instruction:?}");
    }
    let mut options = crate::lower::LowerOptions::new(rbuild_oci::Platform::new("linux", "amd64", None));
    options.all_stages = true;
    let mut lowering = crate::lower::Lowering::new(&parsed, options);
    for _ in 0..3 {
        let crate::lower::Progress::Need(requests) = lowering.step() else { break };
        for request in requests {
            let image = crate::lower::ResolvedImage {
                reference: request.reference.clone(),
                manifest: rbuild_oci::Digest::of(b"any"),
                config: rbuild_oci::ImageConfig::empty(request.platform.clone()),
            };
            lowering.provide(&request, image);
        }
    }
    for diagnostic in lowering.diagnostics() {
        assert!(inside(diagnostic.span), "{diagnostic:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_never_panic_and_spans_stay_inside(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_spans(&bytes);
    }

    #[test]
    fn plausible_text_never_panics_and_spans_stay_inside(text in hostile_text()) {
        check_spans(text.as_bytes());
    }
}
