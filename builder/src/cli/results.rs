//! Flags of `build` about what comes out of it.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use rbuild_oci::Reference;

use super::annotation::{Annotation, parse_annotation};
use super::args::go_bool;
use super::attest::{AttestArgs, Attestations, MetadataArg};
use super::env::Env;
use super::error::Problem;
use super::output::{ImageOutput, OutputArg, PackingArg, parse_output};

/// What was typed.
#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    /// Outputs.
    #[arg(
        help = "Write the result: DIR, -, or type=local|tar|oci|docker|image|registry|cacheonly[,dest=…][,name=…]",
        short = 'o',
        long = "output",
        value_name = "SPEC",
        help_heading = "Results"
    )]
    outputs: Vec<String>,
    /// Push the image to the registry its names say
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Results")]
    push: bool,
    /// Load the image into the local Docker engine [env: DOCKER_HOST]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Results")]
    load: bool,
    /// Annotate the image's manifest, or what TYPE says: index, manifest-descriptor, index-descriptor
    #[arg(long = "annotation", value_name = "[TYPE:]KEY=VALUE", help_heading = "Results")]
    annotations: Vec<String>,
    #[command(flatten)]
    pub(crate) attest: AttestArgs,
    /// Set newer file times in new layers back to the time of --source-date-epoch (default: true when there is one)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool,
          hide_possible_values = true, value_name = "BOOL", help_heading = "Results")]
    rewrite_timestamp: Option<bool>,
    /// Write the image id to this file
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    iidfile: Option<PathBuf>,
    /// Write digests and names to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    metadata_file: Option<PathBuf>,
    /// Write the digest of the manifest or index to this file
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    digest_file: Option<PathBuf>,
    /// Write NAME@DIGEST for each name to this file
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    image_name_with_digest_file: Option<PathBuf>,
}

/// What comes out of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Results {
    /// Products; never empty. The image in the store when nothing else was asked.
    pub outputs: Vec<OutputArg>,
    /// Annotations of every image that is written.
    pub annotations: Vec<Annotation>,
    /// What is said about every image beside it.
    pub attestations: Attestations,
    /// What the metadata file has besides digests and names.
    pub metadata: MetadataArg,
    /// Set newer times in new layers back to the epoch, where an output does not say.
    pub rewrite_timestamp: Option<bool>,
    /// Where to write the image id.
    pub iidfile: Option<PathBuf>,
    /// Where to write the metadata JSON.
    pub metadata_file: Option<PathBuf>,
    /// Where to write the digest.
    pub digest_file: Option<PathBuf>,
    /// Where to write names with the digest.
    pub name_with_digest_file: Option<PathBuf>,
}

impl Results {
    /// Nothing comes out.
    pub(crate) fn nowhere() -> Self {
        Self {
            outputs: vec![OutputArg::CacheOnly],
            annotations: Vec::new(),
            attestations: Attestations::default(),
            metadata: MetadataArg { provenance: None, warnings: false },
            rewrite_timestamp: None,
            iidfile: None,
            metadata_file: None,
            digest_file: None,
            name_with_digest_file: None,
        }
    }

    /// Checks what was typed. `tags` are the names of `-t`, `platforms` the number of platforms.
    pub(crate) fn from_args(
        args: ResultArgs,
        tags: &[Reference],
        platforms: usize,
        env: &Env,
    ) -> Result<Self, Problem> {
        let outputs = outputs(&args.outputs, args.push, args.load, tags)?;
        let is_docker = |output: &OutputArg| matches!(output, OutputArg::Docker { .. });
        if platforms > 1 && outputs.iter().any(is_docker) {
            return Err(Problem::SeveralPlatforms);
        }
        let files = |output: &&OutputArg| matches!(output, OutputArg::Local { .. } | OutputArg::Tar { .. });
        for (flag, file) in [("--iidfile", &args.iidfile), ("--digest-file", &args.digest_file)] {
            if let (Some(_), Some(output)) = (file, outputs.iter().find(files)) {
                let kind = if matches!(output, OutputArg::Tar { .. }) { "tar" } else { "local" };
                return Err(Problem::Conflict(flag, format!("--output type={kind}")));
            }
        }
        let mut annotations = Vec::new();
        for text in &args.annotations {
            annotations.extend(parse_annotation(text)?);
        }
        Ok(Self {
            outputs,
            annotations,
            attestations: Attestations::from_args(args.attest, env)?,
            metadata: MetadataArg::from_env(env),
            rewrite_timestamp: args.rewrite_timestamp,
            iidfile: args.iidfile,
            metadata_file: args.metadata_file,
            digest_file: args.digest_file,
            name_with_digest_file: args.image_name_with_digest_file,
        })
    }

    /// True when an output goes to standard output.
    pub(crate) fn uses_stdout(&self) -> bool {
        self.outputs.iter().any(OutputArg::is_stdout)
    }
}

fn outputs(
    texts: &[String],
    push_all: bool,
    load: bool,
    tags: &[Reference],
) -> Result<Vec<OutputArg>, Problem> {
    let mut outputs: Vec<OutputArg> =
        texts.iter().map(|text| parse_output(text, tags)).collect::<Result<_, _>>()?;
    if push_all {
        let mut pushed = false;
        for output in &mut outputs {
            if let OutputArg::Image(image) = output {
                image.push = true;
                pushed = true;
            }
        }
        if !pushed {
            let image = ImageOutput { names: tags.to_vec(), push: true, ..ImageOutput::default() };
            outputs.push(OutputArg::Image(image));
        }
    }
    let is_loaded = |output: &OutputArg| matches!(output, OutputArg::Docker { dest: None, .. });
    if load && !outputs.iter().any(is_loaded) {
        let packing = PackingArg::default();
        outputs.push(OutputArg::Docker { dest: None, names: tags.to_vec(), packing });
    }
    if outputs.is_empty() {
        outputs.push(OutputArg::Image(ImageOutput { names: tags.to_vec(), ..ImageOutput::default() }));
    }
    let unnamed = |output: &OutputArg| matches!(output, OutputArg::Image(image) if image.push && image.names.is_empty());
    if outputs.iter().any(unnamed) {
        return Err(Problem::PushWithoutTag);
    }
    if outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
        return Err(Problem::StdoutTwice("several have dest=-"));
    }
    Ok(outputs)
}
