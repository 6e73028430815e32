//! The final lines of a successful build.

use std::time::Duration;

use rbuild_oci::{Digest, Platform, Reference};

use super::lines::clean_text;
use crate::report::counted;
use crate::report::human::{seconds, size};

/// What a build made. Absent values have no line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Names given to the image.
    pub names: Vec<Reference>,
    /// Platform and id (digest of the configuration) of every image.
    pub images: Vec<(Platform, Digest)>,
    /// Digest of the manifest or index.
    pub digest: Option<Digest>,
    /// Names it was pushed under.
    pub pushed: Vec<Reference>,
    /// Files and directories written, as the user named them.
    pub written: Vec<String>,
    /// Bytes of the image's layers, uncompressed.
    pub size_bytes: Option<u64>,
    /// Steps of the build.
    pub steps: usize,
    /// Those whose result was in the cache.
    pub cached: usize,
    /// From start to end.
    pub elapsed: Duration,
}

impl Summary {
    /// The lines, each ended.
    pub fn render(&self) -> String {
        let cached = match self.cached {
            0 => String::new(),
            cached => format!(", {cached} cached"),
        };
        let steps = format!("{}{cached}", counted(self.steps, "step", "steps"));
        let mut text = format!("Built in {} ({steps})\n", seconds(self.elapsed));
        let mut row = |key: &str, value: &str| text.push_str(&format!("  {key:<8} {}\n", clean_text(value)));
        for name in &self.names {
            row("image", &name.familiar());
        }
        match self.images.as_slice() {
            [(_, id)] => row("id", &id.to_string()),
            several => several.iter().for_each(|(platform, id)| row("id", &format!("{id} {platform}"))),
        }
        if let Some(digest) = &self.digest {
            row("digest", &digest.to_string());
        }
        if let Some(bytes) = self.size_bytes {
            row("size", &size(bytes));
        }
        for name in &self.pushed {
            row("pushed", &name.to_string());
        }
        for path in &self.written {
            row("written", path);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_everything_that_was_made() {
        let summary = Summary {
            names: vec!["user/app:1.0".parse().unwrap(), "127.0.0.1:5000/app".parse().unwrap()],
            images: vec![(Platform::new("linux", "amd64", None), Digest::of(b"config"))],
            digest: Some(Digest::of(b"manifest")),
            pushed: vec!["127.0.0.1:5000/app:latest".parse().unwrap()],
            written: vec!["out/app.tar".into()],
            size_bytes: Some(29_541_000),
            steps: 6,
            cached: 4,
            elapsed: Duration::from_millis(1234),
        };
        insta::assert_snapshot!(summary.render());
    }

    #[test]
    fn a_build_for_the_cache_alone_is_one_line() {
        let summary = Summary { steps: 1, ..Summary::default() };
        assert_eq!(summary.render(), "Built in 0.0s (1 step)\n");
    }
}
