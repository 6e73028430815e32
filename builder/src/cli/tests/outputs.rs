//! `--output` and its relatives.

use super::*;

fn tag(text: &str) -> Reference {
    text.parse::<Reference>().unwrap().with_default_tag()
}

fn output(spec: &str) -> OutputArg {
    build(&["-t", "x", "-o", spec, "."]).results.outputs.pop().unwrap()
}

fn image(spec: &str) -> ImageOutput {
    match output(spec) {
        OutputArg::Image(image) => image,
        other => panic!("{other:?}"),
    }
}

fn packed(compression: Compression) -> PackingArg {
    PackingArg { compression, ..PackingArg::default() }
}

#[test]
fn archives_parse_into_what_they_mean() {
    let names = vec![tag("x")];
    let archive = |dest, packing| OutputArg::Oci { dest, archive: true, names: names.clone(), packing };
    assert_eq!(
        output("type=oci,dest=a b.tar"),
        archive(Destination::Path("a b.tar".into()), PackingArg::default())
    );
    assert_eq!(
        output("TYPE=oci,Dest=-,compression=zstd,compression-level=22"),
        archive(Destination::Stdout, packed(Compression::Zstd(Some(22))))
    );
    assert_eq!(
        output("type=oci,dest=d,tar=false,compression=gzip,force-compression=true"),
        OutputArg::Oci {
            dest: Destination::Path("d".into()),
            archive: false,
            names: names.clone(),
            packing: PackingArg { force: true, ..packed(Compression::Gzip(None)) },
        }
    );
    let docker = |dest| OutputArg::Docker { dest, names: names.clone(), packing: PackingArg::default() };
    assert_eq!(output("type=docker"), docker(None));
    assert_eq!(output("type=docker,dest=-"), docker(Some(Destination::Stdout)));
    assert_eq!(output("type=docker,dest=f"), docker(Some(Destination::Path("f".into()))));
    assert_eq!(output("type=cacheonly"), OutputArg::CacheOnly);
}

#[test]
fn files_go_to_directories_and_archives() {
    let local = |dest: &str, mode, platform_split| OutputArg::Local {
        dest: dest.into(),
        mode,
        platform_split,
        attestation_prefix: String::new(),
    };
    assert_eq!(output("out"), local("out", LocalMode::Copy, None));
    assert_eq!(output("out=x"), local("out=x", LocalMode::Copy, None));
    assert_eq!(output("type=local,dest=o"), local("o", LocalMode::Copy, None));
    assert_eq!(
        output("type=local,dest=o,mode=delete,platform-split=false"),
        local("o", LocalMode::Delete, Some(false))
    );
    let tar = |dest| OutputArg::Tar { dest, platform_split: None, attestation_prefix: String::new() };
    assert_eq!(output("-"), tar(Destination::Stdout));
    assert_eq!(output("type=tar,dest=-"), tar(Destination::Stdout));
    assert_eq!(output("type=tar,dest=f"), tar(Destination::Path("f".into())));
}

#[test]
fn images_have_names_and_attributes() {
    let names = vec![tag("x")];
    assert_eq!(image("type=image"), ImageOutput { names: names.clone(), ..ImageOutput::default() });
    let pushed = ImageOutput { names: names.clone(), push: true, ..ImageOutput::default() };
    assert_eq!(image("type=image,push=true,oci-mediatypes=true,unpack=true"), pushed);
    assert_eq!(
        image(r#"type=registry,"name=r.example/a:1,r.example/b""#).names,
        [tag("r.example/a:1"), tag("r.example/b"),]
    );
    let by_digest = image("type=image,push=true,push-by-digest=true,name=r.example/a");
    assert_eq!(by_digest.names, ["r.example/a".parse().unwrap()], "no tag is filled in");
    assert!(by_digest.by_digest && by_digest.push);
    let odd =
        image("type=image,name-canonical=true,store=false,oci-mediatypes=false,rewrite-timestamp=false");
    assert!(odd.canonical && odd.not_stored && odd.packing.docker_types);
    assert_eq!(odd.packing.rewrite_timestamp, Some(false));
    let annotated = image("type=image,annotation.Org.X=Y,annotation-index[linux/arm64].a=b=c");
    let keys: Vec<_> = annotated.packing.annotations.iter().map(|one| (&*one.key, &*one.value)).collect();
    assert_eq!(keys, [("Org.X", "Y"), ("a", "b=c")], "keys of annotations keep their case");
}

#[test]
fn outputs_that_make_no_sense_are_refused() {
    let refused = |spec: &str| refused(&["-o", spec, "."]);
    assert_eq!(refused("dest=x,tar=false"), "type is required for output");
    assert_eq!(refused("type=,dest=x"), "type is required for output");
    assert!(refused("type=floppy").contains("unknown output type `floppy`"));
    for kind in ["oci", "local", "tar"] {
        assert_eq!(refused(&format!("type={kind}")), format!("dest is required for output type `{kind}`"));
    }
    assert_eq!(refused("type=local,dest=-"), "dest is required for output type `local`");
    assert_eq!(refused("type=oci,tar=false,dest=-"), "dest is required for output type `oci` with tar=false");
    assert!(refused("type=docker,tar=false").contains("tar=false needs type=oci"));
    for (spec, key, kind) in [
        ("type=oci,dest=x,colour=red", "colour", "oci"),
        ("type=cacheonly,dest=x", "dest", "cacheonly"),
        ("type=local,dest=x,name=a", "name", "local"),
        ("type=tar,dest=x,mode=copy", "mode", "tar"),
        ("type=image,annotation-layer.a=b", "annotation-layer.a", "image"),
        ("type=local,dest=x,annotation.a=b", "annotation.a", "local"),
    ] {
        assert_eq!(refused(spec), format!("unknown attribute `{key}` for output type `{kind}`"));
    }
    assert!(refused("type=local,dest=x,mode=move").contains("expected copy or delete"));
    assert!(refused("type=oci,dest=x,compression=lzma").contains("unknown compression `lzma`"));
    assert!(refused("type=oci,dest=x,compression=estargz").contains("not supported yet"));
    assert!(refused("type=oci,dest=x,compression=gzip,compression-level=10").contains("expected 0 to 9"));
    assert!(refused("type=oci,dest=x,compression-level=3").contains("needs compression="));
    assert!(
        refused("type=image,push-by-digest=true,name=a:1").contains("can't push tagged ref a:1 by digest")
    );
    assert!(refused("type=oci,tar").contains("expected key=value"));
    assert!(refused(r#"type=oci,name="a,b""#).contains("bare \" in non-quoted field"));
    assert_eq!(refused("type=registry"), "tag is needed when pushing to registry");
}

#[test]
fn push_and_load_are_outputs_and_go_together() {
    let kinds = |line: &[&str]| -> Vec<&str> {
        let kind = |output: &OutputArg| match output {
            OutputArg::Image(image) if image.push => "push",
            OutputArg::Image(_) => "image",
            OutputArg::Docker { dest: None, .. } => "load",
            _ => "other",
        };
        build(line).results.outputs.iter().map(kind).collect()
    };
    assert_eq!(kinds(&["-t", "x", "."]), ["image"]);
    assert_eq!(kinds(&["--push", "-t", "x", "."]), ["push"]);
    assert_eq!(kinds(&["--push", "-o", "type=image", "-t", "x", "."]), ["push"]);
    assert_eq!(kinds(&["--push", "-o", "type=oci,dest=f", "-t", "x", "."]), ["other", "push"]);
    assert_eq!(kinds(&["--push", "--load", "-t", "x", "."]), ["push", "load"]);
    assert_eq!(kinds(&["--load", "-o", "type=docker", "."]), ["load"]);
    assert_eq!(kinds(&["--load=false", "."]), ["image"]);
    assert_eq!(refused(&["--push", "."]), "tag is needed when pushing to registry");
    let several = refused(&["--load", "--platform=linux/amd64,linux/arm64", "."]);
    assert!(several.starts_with("docker exporter does not support exporting several platforms"), "{several}");
}

#[test]
fn standard_output_has_one_product() {
    let twice = ["-o", "type=oci,dest=-", "-o", "-", "."];
    assert!(refused(&twice).contains("standard output"));
    assert!(refused(&["-q", "-o", "type=docker,dest=-", "."]).contains("standard output"));
    for flag in ["--iidfile", "--digest-file"] {
        let both = refused(&[flag, "f", "-o", "out", "."]);
        assert_eq!(both, format!("{flag} and --output type=local cannot be used together"));
    }
}
