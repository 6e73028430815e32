use proptest::prelude::*;

use super::*;

fn ignore(text: &str) -> Ignore {
    Ignore::parse(text.as_bytes()).expect("valid patterns")
}

#[track_caller]
fn check(text: &str, excluded: &[&str], kept: &[&str]) {
    let ignore = ignore(text);
    for path in excluded {
        assert!(ignore.matches(path), "{text:?} must exclude {path}");
    }
    for path in kept {
        assert!(!ignore.matches(path), "{text:?} must keep {path}");
    }
}

#[test]
fn golden_117_to_126() {
    check("*.md", &["a.md"], &["d/a.md", "a.mdx"]);
    check("**/*.md", &["a.md", "d/a.md", "d/e/a.md"], &["a.txt"]);
    check("*\n!d/e/a.txt", &["x", "d", "d/e", "d/e/b.txt"], &["d/e/a.txt"]);
    check("d\n!d/x", &["d", "d/y"], &["d/x", "d/x/z"]);
    check("!README.md\n*.md", &["README.md"], &[]);
    check("*.md\n!README.md", &["a.md"], &["README.md"]);
    check("/a.txt", &["a.txt"], &["d/a.txt"]);
    check(" #x\n#k", &["#x"], &["#k"]);
    assert_eq!(Ignore::parse(b"a\n!\n").unwrap_err(), IgnoreError::LoneNegation { line: 2 });
    check("", &[], &["a"]);
    check("\u{FEFF}*.md\r\n\r\nb\r\n", &["a.md", "b"], &["c"]);
}

#[test]
fn patternmatcher_corner_cases() {
    check("node_modules", &["node_modules", "node_modules/a/b"], &["x/node_modules", "node_modules2"]);
    check("**/node_modules/", &["node_modules", "x/y/node_modules/z"], &["x/node_module"]);
    check("a/**", &["a/b", "a/b/c"], &["a", "ab"]);
    check("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb"]);
    check("**", &["a", "a/b"], &[]);
    check("a?c", &["abc"], &["a/c"]);
    check("[a-c]x\n![b]x", &["ax", "cx"], &["bx", "dx"]);
    check("../a\n.\n/", &[], &["a", "b"]);
    check("a/./b/../c/", &["a/c", "a/c/d"], &["a/b"]);
    check("! keep\n*\n! keep", &["x"], &["keep"]);
    check("\\*a", &["*a"], &["xa"]);
    check("**foo", &["foo", "xfoo", "d/xfoo"], &["foox"]);
    assert!(matches!(Ignore::parse(b"a["), Err(IgnoreError::Syntax { line: 1, .. })));
}

#[test]
fn directories_are_skipped_unless_something_may_come_back() {
    assert!(ignore("d").may_skip_dir("d"));
    assert!(ignore("d").may_skip_dir("d/e"));
    assert!(!ignore("d").may_skip_dir("e"));
    assert!(!ignore("d\n!d/x").may_skip_dir("d"));
    assert!(ignore("d\n!d/x").may_skip_dir("d/y"));
    assert!(!ignore("*\n!**/*.go").may_skip_dir("a/b"));
    assert!(ignore("*\n!src/*.go").may_skip_dir("a"));
    assert!(ignore("!d/x\nd").may_skip_dir("d"));
}

#[test]
fn hostile_patterns_are_linear() {
    let text = "*a".repeat(500) + "\n" + &"**/".repeat(300) + "x";
    assert!(!ignore(&text).matches(&"a/b".repeat(1_000)));
}

/// Every pattern on every path would be a thousand million attempts here.
#[test]
fn of_ten_thousand_patterns_few_are_tried() {
    let forms = ["dir{}/file", "**/name{}", "*.ext{}", "top{}/*/x?", "!**/keep{}.txt"];
    let text: String = (0..Ignore::PATTERNS_MAX)
        .map(|n| forms[n % forms.len()].replace("{}", &n.to_string()) + "\n")
        .collect();
    let ignore = ignore(&text);
    let mut tried = 0;
    let paths = ["dir5/file", "a/b/name1", "x.ext2", "top3/a/xy", "a/keep4.txt", "no/such/thing"];
    for path in paths {
        ignore.index.candidates(path, |numbers| tried += numbers.len());
    }
    assert!(tried < 20, "{tried}");
    let excluded: Vec<bool> = paths.iter().map(|path| ignore.matches(path)).collect();
    assert_eq!(excluded, [true, true, true, true, false, false]);
}

#[test]
fn a_verdict_names_its_rule() {
    let ignore = ignore("# comment\n*.log\n\n! keep.log\n**/tmp\n");
    let rule = |path| ignore.rule(ignore.verdict(path)).map(|rule| (rule.line, rule.text, rule.negated));
    assert_eq!(rule("a.log"), Some((2, "*.log", false)));
    assert_eq!(rule("keep.log"), Some((4, "!keep.log", true)));
    assert_eq!(rule("a/tmp/b"), Some((5, "**/tmp", false)));
    assert_eq!(rule("a"), None);
}

/// Go's translation, done by trying every split.
fn naive(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*', rest @ ..] => {
            let rest = rest.strip_prefix(&['/']).unwrap_or(rest);
            if rest.is_empty() {
                return true;
            }
            naive(rest, path) || (0..path.len()).any(|at| path[at] == '/' && naive(rest, &path[at + 1..]))
        }
        ['*', rest @ ..] => {
            let run = path.iter().take_while(|c| **c != '/').count();
            (0..=run).any(|taken| naive(rest, &path[taken..]))
        }
        ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && naive(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && naive(rest, &path[1..]),
    }
}

fn naive_verdict(lines: &[(bool, String)], path: &str) -> bool {
    let chars: Vec<char> = path.chars().collect();
    let prefixes: Vec<usize> =
        chars.iter().enumerate().filter(|(_, c)| **c == '/').map(|(at, _)| at).collect();
    let mut excluded = false;
    for (negated, pattern) in lines {
        let pattern: Vec<char> = pattern.chars().collect();
        let ends = prefixes.iter().copied().chain([chars.len()]);
        if ends.into_iter().any(|end| naive(&pattern, &chars[..end])) {
            excluded = !negated;
        }
    }
    excluded
}

proptest! {
    #[test]
    fn agrees_with_a_naive_matcher(
        // `**x` without a slash is looser in Go than its own regular expression; it has a test of its own.
        lines in proptest::collection::vec(
            (any::<bool>(), "(\\*\\*/)?([ab?]{1,2}\\*?|\\*[ab?]?)(/(\\*\\*/)?[ab?]{1,2}){0,2}(/\\*\\*)?"),
            1..5,
        ),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let text: String = lines.iter().map(|(n, p)| format!("{}{p}\n", if *n { "!" } else { "" })).collect();
        let ignore = ignore(&text);
        prop_assert_eq!(ignore.matches(&path), naive_verdict(&lines, &path), "{}", text);
        let mut dir = path.as_str();
        while let Some((parent, _)) = dir.rsplit_once('/') {
            if ignore.may_skip_dir(parent) {
                prop_assert!(ignore.matches(&path), "{} skipped for {}", parent, text);
            }
            dir = parent;
        }
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..80), path in ".{0,20}") {
        if let Ok(ignore) = Ignore::parse(&bytes) {
            let _ = ignore.matches(&path) && ignore.may_skip_dir(&path);
        }
    }
}
