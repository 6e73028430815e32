use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[track_caller]
fn check(text: &str, printed: &str, familiar: &str) {
    let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(reference.to_string(), printed, "{text}");
    assert_eq!(reference.familiar(), familiar, "{text}");
}

#[test]
fn upper_case_has_a_fix_that_can_be_typed() {
    for (typed, fixed) in [
        ("Up", "up"),
        ("App.io/App:App", "App.io/app:App"),
        ("localhost:5000/Me/App", "localhost:5000/me/app"),
        ("HOST/App:1", "host/app:1"),
    ] {
        let error = typed.parse::<Reference>().unwrap_err();
        assert_eq!(error.hint(typed).unwrap(), format!("write it in lower case: {fixed}"));
        assert!(fixed.parse::<Reference>().is_ok() || typed.starts_with("App.io"), "{fixed}");
    }
    assert_eq!("a b".parse::<Reference>().unwrap_err().hint("a b"), None);
}

#[test]
fn names_are_normalised_as_docker_does() {
    check("node", "docker.io/library/node", "node:latest");
    check("node:10", "docker.io/library/node:10", "node:10");
    check("user/app", "docker.io/user/app", "user/app:latest");
    check("docker.io/node", "docker.io/library/node", "node:latest");
    check("index.docker.io/user/app:1", "docker.io/user/app:1", "user/app:1");
    check("localhost/app", "localhost/app", "localhost/app:latest");
    check("localhost", "docker.io/library/localhost", "localhost:latest");
    check("localhost:5000/app", "localhost:5000/app", "localhost:5000/app:latest");
    check("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000");
    check("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c");
    check("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app:latest");
    check("ghcr.io/org/app", "ghcr.io/org/app", "ghcr.io/org/app:latest");
    check("Host/app", "Host/app", "Host/app:latest");
    check("a__b/c--d.e_f:T.1-x_y", "docker.io/a__b/c--d.e_f:T.1-x_y", "a__b/c--d.e_f:T.1-x_y");
    check("library/foo/bar", "docker.io/library/foo/bar", "library/foo/bar:latest");
    check(&format!("node@{DIGEST}"), &format!("docker.io/library/node@{DIGEST}"), &format!("node@{DIGEST}"));
    check(
        &format!("node:10@{DIGEST}"),
        &format!("docker.io/library/node:10@{DIGEST}"),
        &format!("node:10@{DIGEST}"),
    );
}

#[test]
fn the_short_form_never_names_another_registry() {
    check("docker.io/a.b/c", "docker.io/a.b/c", "docker.io/a.b/c:latest");
    check("docker.io/localhost/c", "docker.io/localhost/c", "docker.io/localhost/c:latest");
}

#[test]
fn upper_case_and_ids_get_the_texts_users_know() {
    let text = |input: &str| input.parse::<Reference>().unwrap_err().to_string();
    assert_eq!(text("Org/App"), "invalid reference format: repository name (Org/App) must be lowercase");
    assert_eq!(
        text("r.io:5000/Org/App"),
        "invalid reference format: repository name (Org/App) must be lowercase"
    );
    assert_eq!(text("App:1"), "invalid reference format: repository name (App) must be lowercase");
    assert!(text(&DIGEST[7..]).contains("cannot specify 64-byte hexadecimal strings"));
    assert_eq!(text(""), "invalid reference format: the image name is empty");
}

#[test]
fn what_the_grammar_forbids_is_refused() {
    for bad in [
        ":tag",
        "@",
        "app:",
        "app@",
        "app@sha256:abc",
        "a//b",
        "/a",
        "a/",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        "a b",
        "a\nb",
        "https://r.io/a",
        "r.io:port/a",
        "r.io:/a",
        "-r.io/a",
        "r..io/a",
        "[::1/a",
        "[::g]/a",
        "a:b:c",
        "../a",
        "a/../b",
        "r.io/a?x=1",
        "r.io/a#b",
        "user@r.io/a",
        "a%2fb",
        "\u{e9}",
        "app:-tag",
        "app:.tag",
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
    assert!(format!("app:{}", "t".repeat(128)).parse::<Reference>().is_ok());
    assert!(format!("app:{}", "t".repeat(129)).parse::<Reference>().is_err());
    assert_eq!(format!("r.io/{}", "a".repeat(251)).parse::<Reference>(), Err(ReferenceError::TooLong));
}

#[test]
fn a_default_tag_is_only_added_where_nothing_else_chooses() {
    let parse = |text: &str| text.parse::<Reference>().unwrap().with_default_tag();
    assert_eq!(parse("a").tag(), Some("latest"));
    assert_eq!(parse("a:1").tag(), Some("1"));
    assert_eq!(parse(&format!("a@{DIGEST}")).tag(), None);
}

proptest! {
    #[test]
    fn printed_and_familiar_forms_parse_to_the_same_reference(
        domain in "([a-z0-9]{1,5}(\\.[a-z]{1,4}){1,2}(:[0-9]{1,5})?/|localhost/|docker\\.io/|[A-Z]{1,3}/)?",
        path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,4}){0,4}",
        tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?",
        digest: Option<[u8; 32]>,
    ) {
        let digest = digest.map(|bytes| format!("@{}", Digest::from_bytes(bytes))).unwrap_or_default();
        let parsed = format!("{domain}{path}{tag}{digest}").parse::<Reference>();
        // Without a domain a first component like `0.0_0` reads as a domain, and not a valid one.
        prop_assert!(parsed.is_ok() || domain.is_empty());
        prop_assume!(parsed.is_ok());
        let reference = parsed.unwrap();
        prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        let familiar: Reference = reference.familiar().parse().unwrap();
        prop_assert_eq!(familiar, reference.with_default_tag());
    }

    #[test]
    fn any_text_is_parsed_or_refused_without_panic(text in ".{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        }
    }

    #[test]
    fn a_reference_holds_nothing_that_means_something_in_an_address(text in "[a-zA-Z0-9:/.@?#%&_\\[\\]-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert!(!reference.repository().contains(['?', '#', '%', '&', ':', '@']));
            prop_assert!(!reference.repository().split('/').any(|part| part.is_empty() || part.starts_with('.')));
        }
    }
}
