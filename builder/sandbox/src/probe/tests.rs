use super::*;

#[test]
fn results_survive_the_pipe_on_one_line_each() {
    let results = vec![
        ok("a", "fine"),
        ProbeResult {
            name: "b".into(),
            ok: false,
            is_step: true,
            detail: "x\ty\nz".into(),
            remedy: Some("do\nthis".into()),
        },
    ];
    let read = parse(&print(&results));
    assert_eq!(read[0], results[0]);
    assert_eq!(read[1].detail, "x y z");
    assert_eq!(read[1].remedy.as_deref(), Some("do this"));
    assert!(!read[1].ok);
}

#[test]
fn a_failure_tells_its_causes() {
    let error = StepError::Parent { action: "create a pipe", source: std::io::Error::from_raw_os_error(24) };
    assert!(fails("n", &error, None).detail.starts_with("create a pipe: Too many open files"));
}
