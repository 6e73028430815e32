//! What a stage is, instruction after instruction.

use std::collections::HashMap;

use petgraph::graph::NodeIndex;
use rbuild_oci::{ImageConfig, Platform};

use crate::expand::Variables;
use crate::graph::HistoryStep;

/// PATH of images that bring none (linux).
pub(super) const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names with values in first-set order.
#[derive(Debug, Clone, Default)]
pub(super) struct Ordered<V> {
    entries: Vec<(String, V)>,
    index: HashMap<String, usize>,
}

impl<V> Ordered<V> {
    /// Replaces in place, else appends.
    pub(super) fn set(&mut self, name: &str, value: V) {
        match self.index.get(name) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value));
            }
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, V)> {
        self.entries.iter()
    }
}

#[derive(Debug, Clone)]
pub(super) struct State {
    /// Config without Env, which is in `env`.
    pub(super) config: ImageConfig,
    /// Config Env.
    pub(super) env: Ordered<String>,
    /// Declared ARGs.
    pub(super) args: Ordered<Option<String>>,
    /// What `$name` means: ENV and ARG, the later one wins.
    pub(super) effective: HashMap<String, String>,
    pub(super) platform: Platform,
    pub(super) node: NodeIndex,
    pub(super) base: Option<NodeIndex>,
    pub(super) layers: Vec<NodeIndex>,
    pub(super) history: Vec<HistoryStep>,
    /// A WORKDIR was there, in this stage or one it builds on.
    pub(super) workdir_set: bool,
    /// A CMD was there, in this stage.
    pub(super) cmd_set: bool,
    /// The base image is not known, so any variable may come from it.
    pub(super) opaque: bool,
    /// Bytes a copy of this state takes, roughly; for the budget.
    pub(super) weight: usize,
}

impl State {
    /// A stage's beginning on `node`.
    pub(super) fn new(mut config: ImageConfig, platform: Platform, node: NodeIndex) -> Self {
        config.created = None;
        let mut state = Self {
            env: Ordered::default(),
            args: Ordered::default(),
            effective: HashMap::new(),
            platform,
            node,
            base: None,
            layers: Vec::new(),
            history: Vec::new(),
            workdir_set: false,
            cmd_set: false,
            opaque: false,
            weight: 0,
            config,
        };
        for entry in std::mem::take(&mut state.config.config.env) {
            let (name, value) = entry.split_once('=').unwrap_or((&entry, ""));
            state.set_env(name, value);
        }
        state
    }

    /// Docker gives every image a PATH.
    pub(super) fn ensure_path(&mut self) {
        if !self.env.contains("PATH") {
            self.set_env("PATH", PATH_DEFAULT);
        }
    }

    pub(super) fn set_env(&mut self, name: &str, value: &str) {
        self.weight += name.len() + value.len() + 64;
        self.env.set(name, value.to_owned());
        self.effective.insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn set_arg(&mut self, name: &str, value: Option<String>) {
        self.weight += name.len() + value.as_ref().map_or(0, String::len) + 64;
        if let Some(value) = &value {
            self.effective.insert(name.to_owned(), value.clone());
        }
        self.args.set(name, value);
    }

    pub(super) fn log(&mut self, created_by: String, empty_layer: bool) {
        self.weight += created_by.len() + 32;
        self.history.push(HistoryStep { created_by, empty_layer });
    }

    pub(super) fn workdir(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" => "/",
            dir => dir,
        }
    }

    /// Shell of shell forms.
    pub(super) fn shell(&self) -> Vec<String> {
        match &self.config.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        }
    }

    /// Environment of a RUN: Env in order with the values in force, then ARGs that have one.
    pub(super) fn run_env(&self) -> Vec<(String, String)> {
        let value = |name: &str| self.effective.get(name).cloned();
        let env = self.env.iter().filter_map(|(name, _)| Some((name.clone(), value(name)?)));
        let args = self.args.iter().filter(|(name, given)| given.is_some() && !self.env.contains(name));
        let args = args.filter_map(|(name, _)| Some((name.clone(), value(name)?)));
        env.chain(args).collect()
    }

    /// Which of those are ARGs.
    pub(super) fn run_args(&self) -> Vec<String> {
        let given = self.args.iter().filter(|(name, given)| given.is_some() && !self.env.contains(name));
        given.map(|(name, _)| name.clone()).collect()
    }

    /// The config as the image gets it.
    pub(super) fn finished_config(&self) -> ImageConfig {
        let mut config = self.config.clone();
        config.config.env = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        config
    }
}

impl Variables for State {
    fn get(&self, name: &str) -> Option<&str> {
        self.effective.get(name).map(String::as_str)
    }
}
