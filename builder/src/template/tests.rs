use proptest::prelude::*;
use serde_json::json;

use super::*;

#[track_caller]
fn check(template: &str, expected: &str) {
    let data = json!({
        "Id": "sha256:0123", "Size": 29_541_000, "Os": "linux", "Empty": "", "Zero": 0, "Yes": true, "F": 1.5,
        "RepoTags": ["a:1", "b:2"], "RepoDigests": [],
        "Config": {"Env": ["PATH=/bin", "A=b c"], "Entrypoint": ["/bin/sh", "-c"], "Labels": {"b": "2", "a.b": "1"}},
    });
    let found = Template::parse(template).and_then(|t| t.render(&data, &IMAGE));
    assert_eq!(found.as_deref(), Ok(expected), "{template}");
}

const TEXTS: Shape = Shape::List(&Shape::Text);
const IMAGE: Shape = Shape::Struct(&[
    ("Id", Shape::Text),
    ("Size", Shape::Number),
    ("Os", Shape::Text),
    ("Variant", Shape::Text),
    ("Empty", Shape::Text),
    ("Zero", Shape::Number),
    ("Yes", Shape::Bool),
    ("F", Shape::Number),
    ("RepoTags", TEXTS),
    ("RepoDigests", TEXTS),
    (
        "Config",
        Shape::Struct(&[
            ("Env", TEXTS),
            ("Cmd", TEXTS),
            ("Entrypoint", TEXTS),
            ("Labels", Shape::Map(&Shape::Text)),
            ("Volumes", Shape::Map(&Shape::Any)),
            ("Healthcheck", Shape::Struct(&[("Test", TEXTS)])),
        ]),
    ),
]);

/// The message for data of the image above.
#[track_caller]
fn refused(template: &str) -> String {
    let data = json!({"RepoDigests": [], "Config": {"Labels": {"a": "b"}}, "Id": "x", "Size": 5});
    let found = Template::parse(template).and_then(|t| t.render(&data, &IMAGE));
    found.expect_err("must be refused").to_string()
}

#[test]
fn the_templates_people_use_print_what_docker_prints() {
    check("{{.Id}}", "sha256:0123");
    check("{{index .RepoTags 0}}", "a:1");
    check("{{json .Config.Labels}}", r#"{"b":"2","a.b":"1"}"#);
    check("{{.Config.Entrypoint}}", "[/bin/sh -c]");
    check("{{range .Config.Env}}{{println .}}{{end}}", "PATH=/bin\nA=b c\n");
    check("{{.Size}}", "29541000");
    check("{{.Os}}/{{.Id}}", "linux/sha256:0123");
    check(r#"{{index .Config.Labels "a.b"}}"#, "1");
    check("{{json .Config.Env}}", r#"["PATH=/bin","A=b c"]"#);
    check("{{json .}}{{/* all */}}", &Template::parse("{{json $}}").unwrap().render(
        &json!({"Id": "sha256:0123", "Size": 29_541_000, "Os": "linux", "Empty": "", "Zero": 0, "Yes": true, "F": 1.5,
        "RepoTags": ["a:1", "b:2"], "RepoDigests": [],
        "Config": {"Env": ["PATH=/bin", "A=b c"], "Entrypoint": ["/bin/sh", "-c"], "Labels": {"b": "2", "a.b": "1"}},
    }), &IMAGE).unwrap());
    check(r#"{{join .Config.Entrypoint " "}}"#, "/bin/sh -c");
    check("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "a.b=1;b=2;");
    check("{{range $i, $e := .RepoTags}}{{if $i}},{{end}}{{$e}}{{end}}", "a:1,b:2");
    check(r"{{.Os}}\t{{.Size}}\n", r"linux\t29541000\n");
    check(r#"{{if eq .Os "linux"}}yes{{else}}no{{end}}"#, "yes");
    check("{{len .RepoTags}}", "2");
    check(r#"{{(index .RepoTags 1) | printf "%-5s|"}}"#, "b:2  |");
}

#[test]
fn what_is_absent_prints_as_its_go_zero_value() {
    check("{{.Config.Cmd}} {{.Config.Volumes}} [{{.Variant}}]", "[] map[] []");
    check("{{json .Config.Cmd}}", "null");
    check("{{.Config.Healthcheck}}", "<nil>");
    check("{{if .Config.Healthcheck}}{{.Config.Healthcheck.Test}}{{else}}none{{end}}", "none");
    check("{{with .Config.Healthcheck}}{{.Test}}{{end}}", "");
    check("{{.Config.Labels.nothing}}", "<no value>");
    check(r#"[{{index .Config.Labels "nothing"}}]"#, "[]");
    check("{{range .Config.Cmd}}x{{else}}empty{{end}}", "empty");
    check("{{len .Config.Cmd}}{{len .Config.Volumes}}", "00");
    check(r#"{{eq .Variant ""}} {{ne .Variant "v8"}}"#, "true true");
}

#[test]
fn functions_do_what_go_s_do() {
    check(r#"{{upper "a"}}{{lower "B"}} {{title "hello big world"}}"#, "Ab Hello Big World");
    check(r#"[{{pad "x" 1 2}}][{{pad "" 1 2}}]"#, "[ x  ][]");
    check(r#"{{truncate "abcdef" 3}}{{truncate "ab" 3}}"#, "abcab");
    check(r#"{{index (split "a,b,c" ",") 1}}{{len (split "abc" "")}}"#, "b3");
    check(r#"{{print 1 2 "a" "b" 3}}|{{println 1 "a"}}"#, "1 2ab3|1 a\n");
    check(
        r#"{{printf "%s %d %v %q %05d %x %t %.2f %5s|%-3d|%%" "a" 7 .RepoTags "q\"" 42 255 true .F "r" 1}}"#,
        r#"a 7 [a:1 b:2] "q\"" 00042 ff true 1.50     r|1  |%"#,
    );
    check(r#"{{printf "%d %s" "x"}}{{printf "" 1}}"#, "%!d(string=x) %!s(MISSING)%!(EXTRA int=1)");
    check("{{and 1 0}}{{and 1 2}}{{or 0 3}}{{or 0 0}}{{not 0}}", "0230true");
    check("{{lt 1 2}}{{le 2 2}}{{gt 1 2}}{{ge 1 2}}{{eq 1 2 1}}", "truetruefalsefalsetrue");
    check(r#"{{slice "abcdef" 1 3}} {{slice .RepoTags 1}}"#, "bc [b:2]");
    check(r#"{{.Os | upper | printf "%s-%s" "x"}}"#, "x-LINUX");
    check(
        "{{true}} {{false}} {{'a'}} {{0x10}} {{-3}} {{`raw\\x`}} {{1_000}}",
        "true false 97 16 -3 raw\\x 1000",
    );
}

#[test]
fn variables_scopes_trimming_and_loops() {
    check("{{$x := .Os}}{{$x}}{{with $y := .Id}}{{$y}}{{$.Os}}{{end}}", "linuxsha256:0123linux");
    check("{{$x := 1}}{{range .RepoTags}}{{$x = .}}{{end}}{{$x}}", "b:2");
    check("{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21");
    check("a  {{- 1 -}}  b {{ 2 }} c", "a1b 2 c");
    check("a {{- /* comment */ -}} b", "ab");
    check("{{range .RepoTags}}{{if eq . \"b:2\"}}{{break}}{{end}}{{.}}{{end}}", "a:1");
    check("{{range .RepoTags}}{{if eq . \"a:1\"}}{{continue}}{{end}}{{.}}{{end}}", "b:2");
    check("{{if false}}1{{else if .Zero}}2{{else if .Yes}}3{{else}}4{{end}}", "3");
    check("{{with .Empty}}1{{else with .Os}}{{.}}{{end}}", "linux");
}

#[test]
fn errors_say_where_and_what() {
    insta::assert_snapshot!(
        [
            "{{.Id",
            "{{",
            "{{if .Id}}x",
            "{{end}}",
            "{{else}}",
            "{{.Id}",
            "{{nope .Id}}",
            "{{$x}}",
            "{{}}",
            "{{.Id | }}",
            "{{.Id | .Size}}",
            "{{\"a}}",
            "{{(.Id}}",
            "{{.Id)}}",
            "{{define \"x\"}}{{end}}",
            "{{/* x",
            "{{1x}}",
            "{{break}}",
            "{{\"\\z\"}}",
            "{{!}}",
            "line\n  {{.Nope}}",
            "{{.Config.Nope}}",
            "{{.Id.More}}",
            "{{index .RepoDigests 0}}",
            "{{.Config.Healthcheck.Test}}",
            "{{index .Id 0}}",
            "{{.Id 1}}",
            "{{upper 1}}",
            "{{upper}}",
            "{{lt 1 \"a\"}}",
            "{{eq .Config 1}}",
            "{{range .Size}}{{end}}",
            "{{index .Config.Labels 1}}",
            "{{pad \"x\" 9999999 1}}",
            "{{printf \"%9999999d\" 1}}",
            "{{split .Id}}",
        ]
        .map(|template| format!("{}\n    {}", template.replace('\n', "⏎"), refused(template)))
        .join("\n")
    );
}

#[test]
fn limits_hold() {
    let deep = "{{if 1}}".repeat(100) + &"{{end}}".repeat(100);
    assert!(matches!(
        Template::parse(&deep),
        Err(TemplateError::Syntax { problem: SyntaxProblem::TooDeep, .. })
    ));
    let parentheses = format!("{{{{{}1{}}}}}", "(".repeat(100), ")".repeat(100));
    assert!(matches!(
        Template::parse(&parentheses),
        Err(TemplateError::Syntax { problem: SyntaxProblem::TooDeep, .. })
    ));
    let long = "x".repeat(limits::TEMPLATE_BYTES_MAX + 1);
    assert!(matches!(
        Template::parse(&long),
        Err(TemplateError::Syntax { problem: SyntaxProblem::TooLong, .. })
    ));
    // Doubling a text in every step grows beyond any memory.
    let doubling = format!("{{{{$x := \"aaaaaaaa\"}}}}{}", "{{$x = print $x $x}}".repeat(60));
    let found = Template::parse(&doubling).unwrap().render(&json!({}), &Shape::Any);
    assert!(matches!(found, Err(TemplateError::Data { problem: DataProblem::TooLong, .. })), "{found:?}");
    let nested = "{{range $}}".repeat(4) + &"{{end}}".repeat(4);
    let items: Vec<u32> = (0..200).collect();
    let found =
        Template::parse(&nested.replace("$}}", "$.x}}")).unwrap().render(&json!({"x": items}), &Shape::Any);
    assert!(
        matches!(found, Err(TemplateError::Data { problem: DataProblem::TooManySteps, .. })),
        "{found:?}"
    );
}

#[test]
fn tables_have_docker_s_widths() {
    const ROW: Shape = Shape::Struct(&[("Name", Shape::Text), ("Size", Shape::Text)]);
    let columns = [Column { field: "Name", heading: "NAME" }, Column { field: "Size", heading: "SIZE" }];
    let rows = [json!({"Name": "a", "Size": "1B"}), json!({"Name": "a-long-name", "Size": "2MB"})];
    let render =
        |format: &str| Format::parse(format, "{{.Name}}\t{{.Size}}").unwrap().render(&columns, &rows, &ROW);
    let table = "NAME          SIZE\na             1B\na-long-name   2MB\n";
    assert_eq!(render("table").as_deref(), Ok(table));
    assert_eq!(render("table {{.Name}}\\t{{.Size}}").as_deref(), Ok(table));
    assert_eq!(
        render("table {{.Size}}\\t{{upper .Name}}").unwrap(),
        "SIZE      NAME\n1B        A\n2MB       A-LONG-NAME\n"
    );
    assert_eq!(render("{{.Name}}: {{.Size}}").unwrap(), "a: 1B\na-long-name: 2MB\n");
    assert_eq!(render(r"{{.Name}}\t{{.Size}}").unwrap(), "a\t1B\na-long-name\t2MB\n");
    assert_eq!(
        render("json").unwrap(),
        "{\"Name\":\"a\",\"Size\":\"1B\"}\n{\"Name\":\"a-long-name\",\"Size\":\"2MB\"}\n"
    );
    assert!(render("table {{.Nope}}").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_the_engine_panic(text in ".{0,200}") {
        let _ = Template::parse(&text).and_then(|t| t.render(&json!({"a": [1, "b", null]}), &Shape::Any));
    }

    #[test]
    fn no_sequence_of_template_words_makes_the_engine_panic(words in prop::collection::vec(
        prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", " ", ".a", ".", "$", "$x", ":=", "=", ",", "|", "(", ")", "if ", "else ", "end",
            "range ", "with ", "break", "\"s\"", "`", "\"", "'", "1", "-", "1.5", "printf ", "\"%5.3v%*d\"", "index ",
            "slice ", "len ", "eq ", "lt ", "join ", "split ", "json ", "print ", "pad ", "truncate ", "\\", "/*", "*/",
            "and ", "or ", "not ", "nil", "true", "é", "\n",
        ]), 0..40)) {
        let data = json!({"a": {"a": [1, 2.5, "é", null, {"a": true}]}});
        let text = words.concat();
        let _ = Template::parse(&text).and_then(|t| t.render(&data, &Shape::Any));
        let _ = Template::parse(&format!("{{{{{text}}}}}")).and_then(|t| t.render(&data, &Shape::Any));
    }

    #[test]
    fn text_without_braces_and_backslashes_is_itself(text in "[^{\\\\]{0,100}") {
        prop_assert_eq!(Template::parse(&text).unwrap().render(&json!(null), &Shape::Any).unwrap(), text);
    }

    #[test]
    fn json_prints_what_was_given(text in ".*", number: i64) {
        let data = json!({"x": [text, number]});
        let found = Template::parse("{{json .}}").unwrap().render(&data, &Shape::Any).unwrap();
        prop_assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), data);
    }

    #[test]
    fn a_quoted_string_is_its_text(text in "[^\"\\\\\n]*") {
        let found = Template::parse(&format!("{{{{\"{text}\"}}}}")).unwrap().render(&json!(null), &Shape::Any);
        prop_assert_eq!(found.unwrap(), text);
    }
}
