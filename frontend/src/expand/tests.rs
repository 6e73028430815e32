use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn variables() -> BTreeMap<String, String> {
    let list = [("A", "1"), ("F", "foo"), ("S", "*x"), ("E", ""), ("P", "a/b/c"), ("Q", "80 443/udp")];
    list.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[track_caller]
fn check(text: &str, wanted: &str) {
    let found = word(text, '\\', &variables());
    assert_eq!(found.map(|e| e.text).as_deref(), Ok(wanted), "{text}");
}

#[track_caller]
fn check_error(text: &str, wanted: &str) {
    match word(text, '\\', &variables()) {
        Ok(found) => panic!("{text}: {found:?}"),
        Err(error) => assert!(error.to_string().contains(wanted), "{text}: {error}"),
    }
}

#[test]
fn golden_58_plain_names() {
    for (text, wanted) in [
        ("$", "$"),
        ("$$", ""),
        ("$A$A", "11"),
        ("$1", ""),
        ("$1x", "x"),
        ("\"$A.\"", "1."),
        ("${A:-}", "1"),
        ("$.", "$."),
        ("a$", "a$"),
        ("${A}b", "1b"),
        ("$@$*$#$?$-$!$0", ""),
        ("$Ab", ""),
        ("ü$A", "ü1"),
    ] {
        check(text, wanted);
    }
}

#[test]
fn golden_59_and_60_errors() {
    for (text, wanted) in [
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${{x}", "bad substitution"),
        ("${A:=x}", "unsupported modifier (:=) in substitution"),
        ("${A=x}", "unsupported modifier (=) in substitution"),
        ("${A^^}", "unsupported modifier"),
        ("${A:#x}", "unsupported modifier (:#)"),
        ("${A", "missing '}'"),
        ("${A:-x", "missing '}'"),
        ("${A:-\"x}", "missing '}'"),
        ("'b", "single-quote"),
        ("\"b", "double-quote"),
        ("${U:?}", "U: is not allowed to be empty"),
        ("${U?}", "U: is not allowed to be unset"),
        ("${E:?told you}", "E: told you"),
        ("${F#\\a}", "invalid pattern"),
    ] {
        check_error(text, wanted);
    }
}

#[test]
fn golden_61_quotes_and_escapes() {
    for (text, wanted) in [
        (r"a\tb", "atb"),
        (r#""a\tb""#, r"a\tb"),
        (r"'a\tb'", r"a\tb"),
        (r#""\"\$\\""#, r#""$\"#),
        ("'$A'", "$A"),
        (r"\$A", "$A"),
        (r"a\", "a"),
        (r#"a"b c"'d e'"#, "ab cd e"),
    ] {
        check(text, wanted);
    }
    let backtick = word("a`$b\\c", '`', &variables()).map(|e| e.text);
    assert_eq!(backtick.as_deref(), Ok("a$b\\c"));
}

#[test]
fn conditionals() {
    for (text, wanted) in [
        ("${U:-w}", "w"),
        ("${E:-w}", "w"),
        ("${E-w}", ""),
        ("${U-w}", "w"),
        ("${A:+w}", "w"),
        ("${E:+w}", ""),
        ("${E+w}", "w"),
        ("${U+w}", ""),
        ("${U:-${V:-$A}}", "1"),
        ("${A:?m}", "1"),
        ("${U:-\"a b\"}", "a b"),
    ] {
        check(text, wanted);
    }
}

#[test]
fn golden_62_to_64_patterns() {
    for (text, wanted) in [
        ("${F%%*}", ""),
        ("${F%}", "foo"),
        ("${F/o/}", "fo"),
        ("${F//o/}", "f"),
        (r"${S#\*}", "x"),
        ("${P#*/}", "b/c"),
        ("${P##*/}", "c"),
        ("${P%/*}", "a/b"),
        ("${P%%/*}", "a"),
        (r"${P//\//-}", "a-b-c"),
        ("${P/?/$F}", "foo/b/c"),
        ("${F/f*/x}", "x"),
        ("${F/z/x}", "foo"),
        (r"${F/o/\}}", "f}o"),
    ] {
        check(text, wanted);
    }
}

#[test]
fn unset_names_are_told_when_used_plainly() {
    let found = word("$U ${V} ${W:-x} $1", '\\', &variables()).map(|e| e.unset);
    assert_eq!(found, Ok(BTreeSet::from(["U".to_owned(), "V".to_owned()])));
}

#[test]
fn words_split_values_but_not_quotes() {
    let split = |text: &str| words(text, '\\', &variables()).map(|(words, _)| words);
    assert_eq!(split("$Q"), Ok(vec!["80".to_owned(), "443/udp".to_owned()]));
    assert_eq!(split("\"$Q\""), Ok(vec!["80 443/udp".to_owned()]));
    assert_eq!(split("$U"), Ok(Vec::new()));
}

#[test]
fn heredoc_bodies_keep_quotes() {
    let body = heredoc("\"$A\" '$F' \\$A \\\\ \\n \\\nx", &variables()).map(|e| e.text);
    assert_eq!(body.as_deref(), Ok("\"1\" 'foo' $A \\ n \nx"));
}

#[test]
fn hostile_words_are_bounded() {
    check_error(&"${a:-".repeat(100_000), "nested deeper");
    let big = BTreeMap::from([("B".to_owned(), "x".repeat(1 << 20))]);
    assert_eq!(word(&"$B".repeat(100), '\\', &big), Err(ExpandError::TooLarge));
    assert_eq!(word("${B//*y/}", '\\', &big).map(|_| ()), Err(ExpandError::TooSlow));
}

proptest! {
    #[test]
    fn any_word_ends_and_is_bounded(text in "[$'\"\\\\{}:?#%/*a-cAFU -]{0,60}") {
        if let Ok(found) = word(&text, '\\', &variables()) {
            // No value is longer than ten bytes, so a word cannot grow more than tenfold.
            prop_assert!(found.text.len() <= text.len() * 10);
        }
        let _ = words(&text, '`', &variables());
        let _ = heredoc(&text, &variables());
    }

    /// What a variable holds is text, even when it names itself: there is nothing to loop through.
    #[test]
    fn values_are_never_expanded_again(value in "[$VW{}:?\"'\\\\a-c-]{1,20}") {
        let both = BTreeMap::from([("V".to_owned(), value.clone()), ("W".to_owned(), format!("$V{value}"))]);
        for (text, wanted) in [
            ("$V", value.clone()),
            ("${V:-$W}", value.clone()),
            ("\"${W}\"", format!("$V{value}")),
            ("${U:-$W$V}", format!("$V{value}{value}")),
        ] {
            prop_assert_eq!(word(text, '\\', &both).map(|e| e.text), Ok(wanted));
        }
    }

    #[test]
    fn text_without_syntax_is_itself(text in "[a-zA-Z0-9 .,=/:@-]{0,60}") {
        prop_assert_eq!(word(&text, '\\', &variables()).map(|e| e.text), Ok(text));
    }
}
