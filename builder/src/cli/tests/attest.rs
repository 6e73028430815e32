//! `--attest`, `--provenance`, `--sbom` and Buildx's variables.

use super::{build, build_in, refused, refused_in};
use crate::cli::{
    Attestations, ContextArg, Detail, Env, MetadataArg, OutputArg, ProvenanceArg, SbomArg, SlsaVersion,
};

fn attested(line: &[&str]) -> Attestations {
    build(&[line, &["."]].concat()).results.attestations
}

fn provenance(line: &[&str]) -> Option<ProvenanceArg> {
    attested(line).provenance
}

#[test]
fn nothing_is_attested_unasked() {
    assert_eq!(attested(&[]), Attestations::default());
    assert_eq!(attested(&["--push", "-t", "x"]), Attestations::default());
    assert_eq!(attested(&["--provenance=false", "--sbom=0"]), Attestations::default());
    let none = Env::fixed([("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")]);
    assert!(build_in(&["."], &none).results.attestations.is_empty());
    let buildx = Env::fixed([("BUILDX_NO_DEFAULT_ATTESTATIONS", "false")]);
    let unasked = ProvenanceArg { detail: Detail::Min, inline_only: true, ..ProvenanceArg::default() };
    assert_eq!(build_in(&["."], &buildx).results.attestations.provenance, Some(unasked));
    assert_eq!(build_in(&["--provenance=false", "."], &buildx).results.attestations.provenance, None);
    assert_eq!(
        build_in(&["--provenance=true", "."], &buildx).results.attestations.provenance,
        Some(ProvenanceArg::default())
    );
    let wrong = Env::fixed([("BUILDX_NO_DEFAULT_ATTESTATIONS", "maybe")]);
    assert!(refused_in(&["."], &wrong).contains("BUILDX_NO_DEFAULT_ATTESTATIONS"));
}

#[test]
fn a_switch_is_everything_and_attributes_say_more() {
    let all = ProvenanceArg::default();
    assert_eq!((all.detail, all.version), (Detail::Max, SlsaVersion::V1));
    for line in [
        &["--provenance=true"][..],
        &["--provenance", "true"],
        &["--provenance", "-q"],
        &["--provenance"],
        &["--attest", "type=provenance"],
        &["--attest=type=provenance,mode=max,version=v1,disabled=false"],
        &["--provenance=mode=max"],
    ] {
        assert_eq!(provenance(line), Some(all.clone()), "{line:?}");
    }
    let typed =
        "mode=min,version=v0.2,inline-only=true,builder-id=https://ci/1,reproducible=1,filename=p.json";
    let expected = ProvenanceArg {
        detail: Detail::Min,
        version: SlsaVersion::V0_2,
        inline_only: true,
        builder_id: "https://ci/1".into(),
        file_name: "p.json".into(),
        reproducible: true,
    };
    assert_eq!(provenance(&["--provenance", typed]), Some(expected));
    assert_eq!(attested(&["--sbom"]).sbom, Some(SbomArg::default()));
    assert_eq!(build(&["--sbom", "dir"]).context, ContextArg::Local("dir".into()), "it is no value");
    assert!(refused(&["--sbom", "dir", "."]).contains("expected true, false or KEY=VALUE"));
    assert_eq!(
        attested(&["--attest", "type=sbom,inline-only=true"]).sbom,
        Some(SbomArg { inline_only: true })
    );
}

#[test]
fn the_last_of_a_type_wins_and_short_flags_come_last() {
    let min = |found: Option<ProvenanceArg>| found.map(|arg| arg.detail == Detail::Min);
    let line = ["--attest", "type=provenance,mode=max", "--attest", "type=provenance,mode=min"];
    assert_eq!(min(provenance(&line)), Some(true));
    assert_eq!(
        provenance(&["--attest", "type=provenance", "--attest", "type=provenance,disabled=true"]),
        None
    );
    assert_eq!(min(provenance(&["--provenance=mode=min", "--attest", "type=provenance"])), Some(true));
    assert_eq!(attested(&["--attest", "type=sbom", "--sbom=false"]).sbom, None);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (line, expected) in [
        (&["--attest", "mode=min"][..], "attestation type not specified"),
        (&["--attest", "type=vuln"], "expected type=provenance or type=sbom"),
        (&["--attest", "provenance"], "KEY=VALUE"),
        (&["--provenance", "mode=all"], "mode: expected min or max"),
        (&["--provenance", "version=v2"], "version: expected v1 or v0.2"),
        (&["--provenance", "inline-only=maybe"], "inline-only: expected true or false"),
        (&["--provenance", "filename=../x"], "without directories"),
        (&["--provenance", "colour=red"], "unknown attribute `colour`"),
        (&["--sbom", "generator=docker/scout-sbom-indexer"], "rbuild scans images itself"),
        (&["--sbom", "level=high"], "unknown attribute `level`"),
        (&["--provenance", "\"mode"], "missing closing"),
    ] {
        let text = refused(&[line, &["."]].concat());
        assert!(text.contains(expected), "{line:?}: {text}");
    }
}

#[test]
fn outputs_say_how_attestations_are_stored() {
    let outputs = build(&["-o", "type=oci,dest=x,oci-artifact=false", "."]).results.outputs;
    assert!(matches!(&outputs[..], [OutputArg::Oci { packing, .. }] if packing.image_attestations));
    let outputs = build(&["-o", "type=tar,dest=x,attestation-prefix=app-", "."]).results.outputs;
    assert!(
        matches!(&outputs[..], [OutputArg::Tar { attestation_prefix, .. }] if attestation_prefix == "app-")
    );
    assert!(
        refused(&["-o", "type=local,dest=x,attestation-prefix=a/b", "."]).contains("without directories")
    );
}

#[test]
fn the_metadata_file_says_what_buildx_s_variables_say() {
    let metadata = |name, value| build_in(&["."], &Env::fixed([(name, value)])).results.metadata;
    let of = |value| metadata("BUILDX_METADATA_PROVENANCE", value).provenance;
    assert_eq!(
        build(&["."]).results.metadata,
        MetadataArg { provenance: Some(Detail::Min), warnings: false }
    );
    assert_eq!(of("min"), Some(Detail::Min));
    assert_eq!(of("max"), Some(Detail::Max));
    assert_eq!(of("true"), Some(Detail::Min));
    for off in ["disabled", "false", "0"] {
        assert_eq!(of(off), None, "{off}");
    }
    assert!(metadata("BUILDX_METADATA_WARNINGS", "1").warnings);
    assert!(!metadata("BUILDX_METADATA_WARNINGS", "no").warnings);
}
