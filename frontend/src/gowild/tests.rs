use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(pattern: &str, name: &str, wanted: bool) {
    assert_eq!(match_component(pattern.as_bytes(), name.as_bytes()), Ok(wanted), "{pattern} {name}");
}

#[test]
fn matches_as_go_does() {
    for (pattern, name, wanted) in [
        ("abc", "abc", true),
        ("*", "abc", true),
        ("*c", "abc", true),
        ("a*", "abc", true),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("**", "abc", true),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("a[^a]b", "a☺b", true),
        ("a??b", "a☺b", false),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        ("[\\]a]", "]", true),
        ("[\\-x]", "-", true),
        ("arr[[]0].txt", "arr[0].txt", true),
        ("arr[0].txt", "arr[0].txt", false),
        (".*", ".hidden", true),
        ("*", ".hidden", true),
        ("", "", true),
        ("*", "", true),
        ("?", "", false),
    ] {
        check(pattern, name, wanted);
    }
}

#[test]
fn bad_patterns_are_bad_for_every_name() {
    for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "a\\", "[]", "a[x"] {
        for name in ["a", "", "x", "zzz"] {
            assert_eq!(match_component(pattern.as_bytes(), name.as_bytes()), Err(BadPattern), "{pattern}");
        }
    }
}

#[test]
fn wildcards_are_seen_unless_escaped() {
    for (pattern, wanted) in
        [("a*", true), ("a?", true), ("[a]", true), ("\\*", false), ("a]", false), ("", false)]
    {
        assert_eq!(has_wildcard(pattern.as_bytes()), wanted, "{pattern}");
    }
}

#[test]
fn many_stars_do_not_explode() {
    let pattern = "*a".repeat(2_000) + "b";
    check(&pattern, &"a".repeat(4_000), false);
}

proptest! {
    #[test]
    fn agrees_with_a_naive_matcher(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
        fn naive(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => naive(rest, name) || (!name.is_empty() && naive(pattern, &name[1..])),
                ([b'?', rest @ ..], [_, name @ ..]) => naive(rest, name),
                ([p, rest @ ..], [n, name @ ..]) => p == n && naive(rest, name),
                _ => false,
            }
        }
        let wanted = naive(pattern.as_bytes(), name.as_bytes());
        prop_assert_eq!(match_component(pattern.as_bytes(), name.as_bytes()), Ok(wanted));
    }

    #[test]
    fn any_bytes_give_an_answer(pattern in proptest::collection::vec(any::<u8>(), 0..20), name in proptest::collection::vec(any::<u8>(), 0..20)) {
        let _ = match_component(&pattern, &name);
    }
}
