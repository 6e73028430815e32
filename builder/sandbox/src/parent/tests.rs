use super::*;

#[track_caller]
fn check_refused(change: impl FnOnce(&mut StepSpec), expected: SpecError) {
    let mut spec = StepSpec::new(vec!["true".into()]);
    change(&mut spec);
    assert_eq!(check(&spec), Err(expected));
}

#[test]
fn specs_no_kernel_call_could_take_are_refused_up_front() {
    check_refused(|s| s.argv.clear(), SpecError::EmptyArgv);
    check_refused(|s| s.argv.push("a\0b".into()), SpecError::Nul { what: "an argument" });
    check_refused(|s| s.env.push(("A".into(), "\0".into())), SpecError::Nul { what: "a variable" });
    check_refused(
        |s| s.env.push(("A=B".into(), String::new())),
        SpecError::VariableName { name: "A=B".into() },
    );
    check_refused(
        |s| s.env.push((String::new(), String::new())),
        SpecError::VariableName { name: String::new() },
    );
    check_refused(|s| s.hosts = vec![0; SPEC_SIZE_BYTES_MAX], SpecError::TooLarge);
}

#[test]
fn paths_must_be_absolute_and_plain() {
    for path in ["", "srv", "./a", "/a/../b", "/.."] {
        let error = SpecError::Path { what: "the working directory", path: path.into() };
        check_refused(|s| s.cwd = path.into(), error);
        let error = SpecError::Path { what: "the script's path", path: path.into() };
        check_refused(|s| s.script = Some((path.into(), Vec::new())), error);
    }
}

#[test]
fn an_ordinary_spec_is_accepted() {
    assert_eq!(check(&StepSpec::new(vec!["true".into()])), Ok(()));
}
