//! The environment as a value, so that nothing below `main` reads the process's own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// Looks environment variables up. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    lookup: Arc<Lookup>,
}

impl Env {
    /// The environment of this process.
    pub fn process() -> Self {
        Self { lookup: Arc::new(|name| std::env::var_os(name)) }
    }

    /// A fixed environment, as tests use it.
    pub fn fixed<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let map: BTreeMap<String, OsString> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        Self { lookup: Arc::new(move |name| map.get(name).cloned()) }
    }

    /// The variable's value when it is set and is UTF-8.
    pub fn var(&self, name: &str) -> Option<String> {
        self.var_os(name)?.into_string().ok()
    }

    /// The variable's value when it is set and neither empty nor other than UTF-8.
    pub fn non_empty(&self, name: &str) -> Option<String> {
        self.var(name).filter(|value| !value.is_empty())
    }

    /// The variable's raw value when it is set.
    pub fn var_os(&self, name: &str) -> Option<OsString> {
        // A name with `=` or NUL cannot be set; asking the C library for one is undefined in places.
        if name.is_empty() || name.contains(['=', '\0']) {
            return None;
        }
        (self.lookup)(name)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}
