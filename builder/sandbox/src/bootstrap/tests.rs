use super::*;

#[test]
fn privileges_have_a_stable_text() {
    let map = |outside| vec![IdRange { inside: 0, outside, count: 1 }];
    let rootless = Privilege::Rootless { uid_map: map(1000), gid_map: map(100) };
    assert_eq!(rootless.describe(), "rootless uids=0=1000:1 gids=0=100:1");
    assert_eq!(Privilege::Root.describe(), "root");
}

#[test]
fn answers_of_the_helper_are_told_apart() {
    assert!(parse_answer("ok").is_ok());
    assert!(matches!(
        parse_answer("missing newgidmap"),
        Err(BootstrapError::ToolMissing { tool: "newgidmap" })
    ));
    let Err(BootstrapError::ToolRefused { tool, message }) = parse_answer("refused newuidmap not in range\n")
    else {
        panic!()
    };
    assert_eq!((tool, message.as_str()), ("newuidmap", "not in range"));
    for broken in ["", "ok then", "missing", "missing rm", "what"] {
        assert!(matches!(parse_answer(broken), Err(BootstrapError::Helper { .. })), "{broken}");
    }
}

#[test]
fn a_missing_range_names_the_line_to_add() {
    let error = BootstrapError::NoSubIds { user: "me".into(), file: "/etc/subgid" };
    assert!(error.remedy().contains("`me:100000:65536` to /etc/subgid"));
}
