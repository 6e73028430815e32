use super::*;

fn mount(target: &str, source: WireSource) -> WireMount {
    WireMount { target: target.into(), source, read_only: true, is_dir: false }
}

fn spec() -> ChildSpec {
    ChildSpec {
        uid: 1000,
        gid: 1001,
        groups: vec![0, 5, u32::MAX - 1],
        keeps_groups: true,
        argv: vec!["sh".into(), String::new(), "a\nb".into()],
        env: vec!["A=1".into(), "B=ü".into()],
        cwd: "/srv".into(),
        hostname: "h".into(),
        has_console: true,
        files: vec![("/etc/hosts".into(), 0o644, vec![0, 255]), ("/s".into(), 0o755, vec![])],
        mounts: vec![
            mount("/m", WireSource::Tree { path: "a/b".into() }),
            mount("/t", WireSource::Tmpfs { size_bytes: 1 << 33 }),
            mount("/f", WireSource::File { mode: 0o400, uid: 1, gid: 2, content: vec![0, 10] }),
            mount("/h", WireSource::Host { executable: true }),
            mount("/dev/d", WireSource::Device),
            mount(
                "/dev/n",
                WireSource::Node { is_block: true, major: 1, minor: 5, mode: 0o666, uid: 1, gid: 2 },
            ),
        ],
        rlimits: vec![(3, Some(1), None)],
        cgroups: 2,
        has_owner_table: true,
    }
}

#[test]
fn a_spec_survives_the_wire() {
    assert_eq!(ChildSpec::decode(&spec().encode()), Ok(spec()));
}

#[test]
fn a_flavour_survives_the_wire() {
    let flavour = Flavour {
        network: NetworkNamespace::Joined,
        shm_size_bytes: 1 << 40,
        insecure: true,
        emulated: true,
    };
    let bytes = flavour.encode();
    assert_eq!(bytes.len(), Flavour::SIZE_BYTES);
    assert_eq!(Flavour::decode(&bytes), Ok(flavour));
    assert_eq!(Flavour::decode(&bytes[1..]), Err(Malformed));
}

#[test]
fn every_truncation_and_any_tail_is_malformed() {
    let bytes = spec().encode();
    for end in 0..bytes.len() {
        assert_eq!(ChildSpec::decode(&bytes[..end]), Err(Malformed), "{end}");
    }
    assert_eq!(ChildSpec::decode(&[bytes, vec![0]].concat()), Err(Malformed));
}

#[test]
fn reports_arrive_whole_whatever_the_chunks() {
    let reports = [
        Report::Started,
        Report::Failed { step: SetupStep::Wait, errno: 13, detail: "/proc".into() },
        Report::Exited(255),
        Report::Signaled(9),
    ];
    let wire: Vec<u8> = reports.iter().flat_map(Report::encode).collect();
    let (mut buffer, mut got) = (Vec::new(), Vec::new());
    for byte in wire {
        buffer.push(byte);
        got.extend(Report::take_from(&mut buffer).unwrap());
    }
    assert_eq!(got, reports);
    assert!(buffer.is_empty());
}

#[test]
fn hostile_reports_are_malformed_not_believed() {
    for body in [&[][..], &[9, 0, 0, 0], &[1, 0, 0, 0, 250, 0, 0, 0], &[0, 0, 0, 0, 1]] {
        let mut framed = (body.len() as u32).to_le_bytes().to_vec();
        framed.extend(body);
        assert_eq!(Report::take_from(&mut framed), Err(Malformed), "{body:?}");
    }
    assert_eq!(Report::take_from(&mut vec![0xFF; 8]), Err(Malformed));
}

#[test]
fn a_long_detail_is_cut_at_a_character() {
    let detail = "ü".repeat(5000);
    let mut wire = Report::Failed { step: SetupStep::Exec, errno: 2, detail }.encode();
    let Ok(Some(Report::Failed { detail, .. })) = Report::take_from(&mut wire) else { panic!() };
    assert_eq!(detail.len(), 4096);
}
