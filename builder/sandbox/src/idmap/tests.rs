use super::*;

#[test]
fn ranges_are_found_by_name_and_by_number() {
    let text = "other:1:2\nme:100000:65536\n# me:5:5\n\n1000:300000:10\n";
    assert_eq!(parse_sub_ids(text, 1000, Some("me")), [(100_000, 65_536), (300_000, 10)]);
    assert_eq!(parse_sub_ids(text, 1000, None), [(300_000, 10)]);
    assert_eq!(parse_sub_ids(text, 1, None), []);
}

#[test]
fn broken_and_overflowing_ranges_are_skipped() {
    for line in
        ["me", "me:1", "me:1:0", "me:-1:5", "me:4294967290:10", "me:1:2:3", "me:x:1", "me:1:4294967296"]
    {
        assert_eq!(parse_sub_ids(line, 1, Some("me")), [], "{line}");
    }
}

#[test]
fn a_map_has_the_user_as_root_and_the_ranges_behind() {
    let map = build_map(1000, &[(100_000, 65_000), (300_000, 600)]).unwrap();
    assert_eq!(describe(&map), "0=1000:1,1=100000:65000,65001=300000:600");
}

#[test]
fn too_few_ids_are_no_map() {
    assert_eq!(build_map(1000, &[]), None);
    assert_eq!(build_map(1000, &[(100_000, 65_534)]), None);
    assert!(build_map(1000, &[(100_000, 65_535)]).is_some());
    assert!(build_map(1000, &[(1, u32::MAX - 1), (5, 10)]).is_some());
}

#[test]
fn the_kernels_own_format_is_read() {
    let text = "         0       1000          1\n         1     100000      65536\n";
    assert_eq!(describe(&parse_proc_map(text)), "0=1000:1,1=100000:65536");
}
