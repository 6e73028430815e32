//! `--attest`, `--provenance` and `--sbom`: what is said about an image beside it.

use clap::Args;

use super::args::go_bool;
use super::csv::parse_record;
use super::env::Env;
use super::error::Problem;

/// File that provenance is exported to with files.
const PROVENANCE_FILE: &str = "provenance.json";
/// Says whether Buildx's attestations are added unasked.
const NO_DEFAULT: &str = "BUILDX_NO_DEFAULT_ATTESTATIONS";

/// What was typed.
#[derive(Debug, Args)]
pub(crate) struct AttestArgs {
    /// Attestations of each image.
    #[arg(
        long = "attest",
        value_name = "type=TYPE[,…]",
        help = "Attest something about each image: type=provenance or type=sbom[,disabled=BOOL][,KEY=VALUE]",
        help_heading = "Results"
    )]
    attest: Vec<String>,
    /// Provenance of each image.
    #[arg(
        long,
        help = "Say how the image was made: a BOOL, or mode=min|max[,version=v1|v0.2][,inline-only=BOOL]",
        value_name = "BOOL|mode=…",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Results"
    )]
    provenance: Option<String>,
    /// List the packages in the image (SPDX)
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Results"
    )]
    sbom: Option<String>,
}

impl AttestArgs {
    /// The context, when a flag without a value took it: in `--sbom .` the dot is no value.
    pub(crate) fn give_back(&mut self) -> Option<String> {
        let is_value = |text: &str| text.is_empty() || text.contains('=') || go_bool(text).is_ok();
        let taken = [&mut self.provenance, &mut self.sbom].into_iter().flatten();
        let taken = taken.into_iter().find(|text| !is_value(text));
        taken.map(|text| std::mem::replace(text, "true".to_owned()))
    }
}

/// What is attested of each image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attestations {
    /// How it was made.
    pub provenance: Option<ProvenanceArg>,
    /// What is in it.
    pub sbom: Option<SbomArg>,
}

/// `--provenance`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenanceArg {
    /// How much is told.
    pub detail: Detail,
    /// In which form.
    pub version: SlsaVersion,
    /// Only beside images, not beside exported files.
    pub inline_only: bool,
    /// Who builds, as a URI; may be empty.
    pub builder_id: String,
    /// Name of the file beside exported files.
    pub file_name: String,
    /// The user's word that another build gives the same bytes.
    pub reproducible: bool,
}

/// `--sbom`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SbomArg {
    /// Only beside images, not beside exported files.
    pub inline_only: bool,
}

/// How much provenance tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// No values of build arguments, no ids of secrets, no source.
    Min,
    /// All of it, with the Dockerfile and the steps.
    #[default]
    Max,
}

/// The SLSA specification that a predicate follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlsaVersion {
    /// v0.2.
    V0_2,
    /// v1.
    #[default]
    V1,
}

impl Default for ProvenanceArg {
    fn default() -> Self {
        Self {
            detail: Detail::default(),
            version: SlsaVersion::default(),
            inline_only: false,
            builder_id: String::new(),
            file_name: PROVENANCE_FILE.to_owned(),
            reproducible: false,
        }
    }
}

impl Attestations {
    /// Checks what was typed. `--provenance` and `--sbom` come after `--attest`; the last of a type wins.
    pub(crate) fn from_args(args: AttestArgs, env: &Env) -> Result<Self, Problem> {
        let mut found = Self::default();
        let mut says_provenance = false;
        for text in &args.attest {
            let fields = fields("--attest", text)?;
            let kinds: Vec<_> = fields.iter().filter(|(key, _)| key == "type").collect();
            match kinds.as_slice() {
                [(_, kind)] if kind == "provenance" => {
                    says_provenance = true;
                    found.provenance = provenance("--attest", text, &fields)?;
                }
                [(_, kind)] if kind == "sbom" => found.sbom = sbom("--attest", text, &fields)?,
                [] => return Err(invalid("--attest", text, "attestation type not specified")),
                _ => return Err(invalid("--attest", text, "expected type=provenance or type=sbom")),
            }
        }
        if let Some(text) = args.provenance.as_deref().filter(|text| !text.is_empty()) {
            says_provenance = true;
            found.provenance = match go_bool(text) {
                Ok(wanted) => wanted.then(ProvenanceArg::default),
                Err(_) => provenance("--provenance", text, &fields("--provenance", text)?)?,
            };
        }
        if let Some(text) = args.sbom.as_deref().filter(|text| !text.is_empty()) {
            found.sbom = match go_bool(text) {
                Ok(wanted) => wanted.then(SbomArg::default),
                Err(_) => sbom("--sbom", text, &fields("--sbom", text)?)?,
            };
        }
        if let (false, Some(text)) = (says_provenance, env.non_empty(NO_DEFAULT))
            && !go_bool(&text).map_err(|expected| invalid(NO_DEFAULT, &text, &expected))?
        {
            found.provenance =
                Some(ProvenanceArg { detail: Detail::Min, inline_only: true, ..ProvenanceArg::default() });
        }
        Ok(found)
    }

    /// True when nothing is attested.
    pub fn is_empty(&self) -> bool {
        self.provenance.is_none() && self.sbom.is_none()
    }
}

/// What the metadata file has besides digests and names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataArg {
    /// How much of the provenance.
    pub provenance: Option<Detail>,
    /// Whether the Dockerfile's warnings.
    pub warnings: bool,
}

impl MetadataArg {
    /// As Buildx's variables say; what they say otherwise counts as it does there.
    pub(crate) fn from_env(env: &Env) -> Self {
        let provenance = match env.non_empty("BUILDX_METADATA_PROVENANCE").as_deref() {
            Some("max") => Some(Detail::Max),
            Some("disabled") => None,
            Some(text) if go_bool(text) == Ok(false) => None,
            _ => Some(Detail::Min),
        };
        let warnings = env.non_empty("BUILDX_METADATA_WARNINGS");
        Self { provenance, warnings: warnings.is_some_and(|text| go_bool(&text) == Ok(true)) }
    }
}

fn provenance(
    flag: &'static str,
    text: &str,
    fields: &[(String, String)],
) -> Result<Option<ProvenanceArg>, Problem> {
    let mut arg = ProvenanceArg::default();
    let mut disabled = false;
    let boolean = |key: &str, value: &str| {
        go_bool(value).map_err(|expected| invalid(flag, text, &format!("{key}: {expected}")))
    };
    for (key, value) in fields {
        match key.as_str() {
            "type" if flag == "--attest" => {}
            "disabled" => disabled = boolean(key, value)?,
            "mode" => {
                arg.detail = match value.as_str() {
                    "min" => Detail::Min,
                    "max" | "full" => Detail::Max,
                    _ => return Err(invalid(flag, text, "mode: expected min or max")),
                }
            }
            "version" => {
                arg.version = match value.as_str() {
                    "v1" => SlsaVersion::V1,
                    "v0.2" => SlsaVersion::V0_2,
                    _ => return Err(invalid(flag, text, "version: expected v1 or v0.2")),
                }
            }
            "inline-only" => arg.inline_only = boolean(key, value)?,
            "reproducible" => arg.reproducible = boolean(key, value)?,
            "builder-id" => arg.builder_id.clone_from(value),
            "filename" => {
                if value.is_empty() || value.contains(['/', '\0']) || matches!(value.as_str(), "." | "..") {
                    return Err(invalid(flag, text, "filename: expected a name without directories"));
                }
                arg.file_name.clone_from(value);
            }
            _ => {
                let expected = "expected mode, version, inline-only, builder-id, reproducible or filename";
                return Err(invalid(flag, text, &format!("unknown attribute `{key}`, {expected}")));
            }
        }
    }
    Ok((!disabled).then_some(arg))
}

fn sbom(flag: &'static str, text: &str, fields: &[(String, String)]) -> Result<Option<SbomArg>, Problem> {
    let (mut arg, mut disabled) = (SbomArg::default(), false);
    let boolean = |key: &str, value: &str| {
        go_bool(value).map_err(|expected| invalid(flag, text, &format!("{key}: {expected}")))
    };
    for (key, value) in fields {
        match key.as_str() {
            "type" if flag == "--attest" => {}
            "disabled" => disabled = boolean(key, value)?,
            "inline-only" => arg.inline_only = boolean(key, value)?,
            "generator" => {
                let expected =
                    "rbuild scans images itself and runs no generator image; leave `generator` out";
                return Err(invalid(flag, text, expected));
            }
            _ => return Err(invalid(flag, text, &format!("unknown attribute `{key}`"))),
        }
    }
    Ok((!disabled).then_some(arg))
}

fn fields(flag: &'static str, text: &str) -> Result<Vec<(String, String)>, Problem> {
    let fields = parse_record(text).map_err(|cause| Problem::Csv { flag, value: text.to_owned(), cause })?;
    let pair = |field: &String| match field.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_ascii_lowercase(), value.to_owned())),
        None => Err(invalid(flag, text, "expected true, false or KEY=VALUE[,…]")),
    };
    fields.iter().map(pair).collect()
}

fn invalid(flag: &'static str, value: &str, expected: &str) -> Problem {
    Problem::Value { flag, value: value.to_owned(), expected: expected.to_owned() }
}
