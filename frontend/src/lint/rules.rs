//! The table of all rules. `RULES.md` is made from it.

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for messages and `# check=skip=`.
    pub name: &'static str,
    /// Where it comes from.
    pub kind: RuleKind,
    /// When it fires.
    pub fires: &'static str,
    /// Why that is worth a warning.
    pub why: &'static str,
    /// What to write instead.
    pub fix: &'static str,
}

/// Where a rule comes from, which decides when it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// BuildKit's by name, or a plain mistake: in builds and checks.
    Standard,
    /// BuildKit's, off unless `# check=experimental=` asks for it.
    Experimental,
    /// rbuild's advice: only in checks, and never a violation for `# check=error=true`, so that one file passes here
    /// and with BuildKit alike.
    Advice,
}

use RuleKind::{Advice, Experimental, Standard};

/// All rules, by name.
pub const RULES: &[Rule] = &[
    Rule {
        name: "AptUpdateAlone",
        kind: Advice,
        fires: "a RUN runs `apt-get update` and installs nothing",
        why: "the package lists are cached with that step, and a later install step meets lists that are weeks old",
        fix: "RUN apt-get update && apt-get install -y PACKAGE && rm -rf /var/lib/apt/lists/*",
    },
    Rule {
        name: "CacheOrder",
        kind: Advice,
        fires: "the whole context is copied before dependencies are installed",
        why: "any change of any file then installs all dependencies again",
        fix: "copy the files that list the dependencies, install, then copy the rest",
    },
    Rule {
        name: "ConsistentInstructionCasing",
        kind: Standard,
        fires: "a keyword is in mixed case, or in another case than most",
        why: "one case makes a file easier to read",
        fix: "write all keywords in upper case",
    },
    Rule {
        name: "CopyIgnoredFile",
        kind: Standard,
        fires: "a source of COPY or ADD is excluded by the ignore file",
        why: "it is not in the context, so the build fails",
        fix: "take the source away, or bring it back with a `!` line in the ignore file",
    },
    Rule {
        name: "DuplicateStageName",
        kind: Standard,
        fires: "two stages have one name",
        why: "a reference to it means the nearest stage above, which is easy to misread",
        fix: "give every stage a name of its own",
    },
    Rule {
        name: "ExposeInvalidFormat",
        kind: Standard,
        fires: "EXPOSE has an address or a host port",
        why: "an image can only say which port its container listens on; the rest is for `docker run -p`",
        fix: "EXPOSE 80/tcp",
    },
    Rule {
        name: "ExposeProtoCasing",
        kind: Standard,
        fires: "the protocol of EXPOSE is not in lower case",
        why: "the image has it in lower case anyway",
        fix: "EXPOSE 80/tcp",
    },
    Rule {
        name: "FromAsCasing",
        kind: Standard,
        fires: "FROM and AS differ in case",
        why: "one case makes a line easier to read",
        fix: "FROM image AS name",
    },
    Rule {
        name: "FromPlatformFlagConstDisallowed",
        kind: Standard,
        fires: "FROM has a constant --platform and the stage's name has neither its system nor its architecture",
        why: "the image is then for that platform whatever the build asks for",
        fix: "leave the flag out, use a variable, or name the stage after the platform",
    },
    Rule {
        name: "InvalidBaseImagePlatform",
        kind: Standard,
        fires: "the base image is for another platform than the one that is built",
        why: "its programs may not run",
        fix: "use a base image that has the platform, or build for the platform it has",
    },
    Rule {
        name: "InvalidDefaultArgInFrom",
        kind: Standard,
        fires: "with the defaults of its ARGs a FROM names no valid image",
        why: "the file then builds only with the right --build-arg",
        fix: "give the ARG a default that works",
    },
    Rule {
        name: "InvalidDefinitionDescription",
        kind: Experimental,
        fires: "a comment right above ARG or FROM does not begin with the name of the argument or stage",
        why: "such comments are what --call=outline and --call=targets show",
        fix: "`# NAME what it is for`, or a blank line below the comment",
    },
    Rule {
        name: "JSONArgsRecommended",
        kind: Standard,
        fires: "CMD or ENTRYPOINT is in shell form",
        why: "the shell is then the process that gets the signals, and the program never hears of them",
        fix: "CMD [\"program\", \"argument\"]",
    },
    Rule {
        name: "LatestBaseImage",
        kind: Advice,
        fires: "a base image has no tag, or the tag `latest`",
        why: "tomorrow's build may start from another image than today's",
        fix: "name a version: FROM image:1.2",
    },
    Rule {
        name: "LegacyKeyValueFormat",
        kind: Standard,
        fires: "ENV or LABEL is written with a blank for `=`",
        why: "the old form takes the whole rest of the line as one value",
        fix: "ENV key=value",
    },
    Rule {
        name: "MaintainerDeprecated",
        kind: Standard,
        fires: "MAINTAINER is used",
        why: "labels have taken its place",
        fix: "LABEL org.opencontainers.image.authors=\"name\"",
    },
    Rule {
        name: "MissingIgnoreFile",
        kind: Advice,
        fires: "the whole context is copied, has node_modules or .git, and there is no ignore file",
        why: "they make the image larger and change the cache at every commit, and .git holds every secret ever committed",
        fix: "write .dockerignore with the lines node_modules and .git",
    },
    Rule {
        name: "MultipleInstructionsDisallowed",
        kind: Standard,
        fires: "a stage has a second CMD, ENTRYPOINT or HEALTHCHECK",
        why: "only the last one counts",
        fix: "take the earlier one away",
    },
    Rule {
        name: "MultipleSourcesToFile",
        kind: Standard,
        fires: "COPY or ADD has several sources and a destination that is not written as a directory",
        why: "unless it is one, every file overwrites the one before",
        fix: "end the destination with a slash",
    },
    Rule {
        name: "NoEmptyContinuation",
        kind: Standard,
        fires: "a blank line stands inside a continued instruction",
        why: "what seems to end the instruction does not",
        fix: "take the blank line away, or make it a comment",
    },
    Rule {
        name: "RedundantTargetPlatform",
        kind: Standard,
        fires: "FROM has --platform=$TARGETPLATFORM",
        why: "that is what it is without",
        fix: "take the flag away",
    },
    Rule {
        name: "ReservedStageName",
        kind: Standard,
        fires: "a stage is called scratch or context",
        why: "those names mean something else",
        fix: "choose another name",
    },
    Rule {
        name: "SecretsUsedInArgOrEnv",
        kind: Standard,
        fires: "the name of an ARG or ENV looks like a secret's",
        why: "both are in the image or its history, for everyone who pulls it",
        fix: "RUN --mount=type=secret,id=name",
    },
    Rule {
        name: "StageNameCasing",
        kind: Standard,
        fires: "a stage's name has upper case letters",
        why: "names are compared in lower case",
        fix: "write it in lower case",
    },
    Rule {
        name: "UndefinedArgInFrom",
        kind: Standard,
        fires: "FROM uses a variable that no ARG above the first FROM declares",
        why: "it is empty, whatever --build-arg says",
        fix: "ARG NAME=default before the first FROM",
    },
    Rule {
        name: "UndefinedVar",
        kind: Standard,
        fires: "an instruction uses a variable that is neither ENV nor ARG of its stage",
        why: "it is empty; often the name is misspelt, or the ARG belongs to another stage",
        fix: "ARG NAME in the stage that uses it",
    },
    Rule {
        name: "WorkdirRelativePath",
        kind: Standard,
        fires: "the first WORKDIR of a stage is relative",
        why: "where it leads depends on the base image",
        fix: "WORKDIR /absolute/path",
    },
];

/// The rule of that name.
pub fn find(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}

/// The rules as a page of documentation.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Rules\n\n\
         Made from `src/lint/rules.rs`: `UPDATE_RULES=1 cargo test -p rbuild-frontend --test rules` writes it anew.\n\n\
         `# check=skip=NAME` at the top of a Dockerfile, or directly above an instruction, switches a rule off.\n\
         `rbuild build --check` reports all rules; a build reports the standard ones.\n",
    );
    for rule in RULES {
        let kind = match rule.kind {
            Standard => "standard",
            Experimental => "experimental, on with `# check=experimental=NAME`",
            Advice => "advice",
        };
        out.push_str(&format!(
            "\n## {}\n\n- Kind: {kind}\n- When: {}\n- Why: {}\n- Instead: {}\n",
            rule.name, rule.fires, rule.why, rule.fix
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(RULES.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(find("UndefinedVar").map(|rule| rule.kind), Some(Standard));
        assert_eq!(find("NoSuchRule"), None);
    }
}
