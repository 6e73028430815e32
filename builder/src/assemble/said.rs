//! What is said about the images of a build: all that was asked for, of every one.

use std::io;
use std::sync::Arc;

use rbuild_frontend::graph::Target;
use rbuild_oci::Reference;

use crate::assemble::BuiltImage;
use crate::assemble::attestation::{Predicate, Said};
use crate::assemble::provenance::Facts;
use crate::assemble::sbom::{self, Subject};
use crate::cli::{Attestations, SbomArg};
use crate::context::ScannedContext;
use crate::error::{BuildError, StepFailure};
use crate::ops::{ExecEnv, blocking};
use crate::solve::Solved;
use crate::timestamp::rfc3339;

/// Files that are searched for packages.
#[derive(Clone)]
pub enum Searched {
    /// Those of a step's result.
    State(Arc<Solved>),
    /// Those of a build context.
    Context(Arc<ScannedContext>),
}

/// The result of a target, and by name what else is searched.
pub type Scanned = (Arc<Solved>, Vec<(String, Searched)>);

/// One list for each target, in their order: packages first, as BuildKit has them.
pub async fn predicates(
    env: &Arc<ExecEnv>,
    facts: &Facts<'_>,
    scanned: &[Scanned],
    images: &[BuiltImage],
    wanted: &Attestations,
) -> Result<Vec<Vec<Predicate>>, BuildError> {
    let mut said = Vec::with_capacity(facts.graph.targets.len());
    for (at, (target, (solved, more))) in facts.graph.targets.iter().zip(scanned).enumerate() {
        let image = images.get(at);
        let mut predicates = Vec::new();
        if let Some(arg) = &wanted.sbom {
            let created = created(env, target, image);
            let name = facts.request.tags.first().map_or_else(|| target.stage.clone(), Reference::familiar);
            let subject = Subject { name: &name, is_image: true, created: &created };
            let result = Searched::State(Arc::clone(solved));
            predicates.push(packages(env, result, subject, "sbom", arg).await?);
            for (name, searched) in more {
                let subject = Subject { name, is_image: false, created: &created };
                let file = format!("sbom-{}", file_part(name));
                predicates.push(packages(env, searched.clone(), subject, &file, arg).await?);
            }
        }
        if let Some(arg) = &wanted.provenance {
            let made = facts.predicate(target, image, arg, &env.store.scratch());
            predicates.push(made.map_err(|source| unkept("provenance", source))?);
        }
        said.push(predicates);
    }
    Ok(said)
}

/// Why what is said cannot be kept.
pub fn unkept(what: &str, source: io::Error) -> BuildError {
    StepFailure::Io { what: "keep", path: what.to_owned(), source }.into()
}

/// The time of the document is the image's: nothing depends on when somebody looked.
fn created(env: &ExecEnv, target: &Target, image: Option<&BuiltImage>) -> String {
    let made = image.map_or(&target.config, |image| &image.config).created.clone();
    let epoch = env.source_date_epoch().map(|epoch| rfc3339(epoch, 0));
    epoch.or(made).unwrap_or_else(|| rfc3339(0, 0))
}

/// A stage's name as part of a file's.
fn file_part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect()
}

async fn packages(
    env: &Arc<ExecEnv>,
    searched: Searched,
    subject: Subject<'_>,
    file: &str,
    arg: &SbomArg,
) -> Result<Predicate, BuildError> {
    let worker = Arc::clone(env);
    let found = blocking(move || {
        let scratch = worker.store.scratch();
        match searched {
            Searched::State(solved) => {
                sbom::scan(&solved.tree, &worker.store, &worker.stack_source(&solved)?, &scratch)
            }
            Searched::Context(context) => {
                sbom::scan(&context.tree, &*context.nodes, &context.files()?, &scratch)
            }
        }
    })
    .await?;
    Ok(Predicate {
        kind: sbom::PREDICATE_TYPE,
        said: Said::Packages(
            sbom::Document::of(found, &subject).map_err(|source| unkept("packages", source))?,
        ),
        inline_only: arg.inline_only,
        file_name: format!("{file}.spdx.json"),
    })
}
