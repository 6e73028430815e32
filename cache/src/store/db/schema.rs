//! Tables, by numbered step. `user_version` says how many steps a file has seen; steps are only ever added.

/// The steps of one database file.
#[derive(Debug)]
pub(in crate::store) struct Schema {
    /// File name below the root.
    pub(in crate::store) file: &'static str,
    /// True when it knows what names stand for.
    pub(in crate::store) holds_names: bool,
    /// SQL batches; step `n` brings `user_version` to `n + 1`.
    pub(in crate::store) steps: &'static [&'static str],
}

impl Schema {
    /// `user_version` of an up-to-date file.
    pub(in crate::store) fn version(&self) -> i64 {
        i64::try_from(self.steps.len()).expect("a handful of steps")
    }
}

/// Directory nodes by digest.
pub(in crate::store) const TREES: Schema = Schema {
    file: "trees.sqlite",
    holds_names: false,
    steps: &[
        "CREATE TABLE nodes (digest BLOB PRIMARY KEY NOT NULL, bytes BLOB NOT NULL) WITHOUT ROWID;",
        // Nodes that no record reached when they were last looked for; see `readers`.
        "CREATE TABLE condemned (digest BLOB PRIMARY KEY NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;",
        // No table changes: large directories are in parts, which earlier versions would not reach, and so collect.
        "",
        // Likewise the names of files that have several.
        "",
    ],
};

/// Everything else. `boot`, `epoch` and `durable` are the mark, `used` is for collection by age, `seal` guards
/// `record`.
pub(in crate::store) const INDEX: Schema = Schema {
    file: "index.sqlite",
    holds_names: true,
    steps: &[INDEX_1, INDEX_2, INDEX_3, INDEX_4, INDEX_5, INDEX_6, INDEX_7],
};

/// An index that is being made anew: it becomes [`INDEX`] when it is complete.
pub(in crate::store) const NEW_INDEX: Schema = Schema { file: "work/index.sqlite", ..INDEX };

/// No table changes: records of images may leave layers out that are not here, which earlier versions would not see.
const INDEX_6: &str = "";

/// Nor here: lists of layers say whose they are, and records what their step read. Earlier versions would take them for
/// damaged, and remove them in a repair.
const INDEX_7: &str = "";

/// What addresses of the web gave; see `fetch`.
const INDEX_4: &str = "
CREATE TABLE fetches (
    address TEXT PRIMARY KEY NOT NULL,
    record TEXT NOT NULL, seal BLOB NOT NULL,
    used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX fetches_used ON fetches (used);
";

/// The last generation of readers that sees the object; see `readers`.
const INDEX_2: &str = "
ALTER TABLE layers ADD COLUMN until INTEGER NOT NULL DEFAULT 9223372036854775807;
ALTER TABLE blobs ADD COLUMN until INTEGER NOT NULL DEFAULT 9223372036854775807;
CREATE INDEX layers_condemned ON layers (until) WHERE until < 9223372036854775807;
CREATE INDEX blobs_condemned ON blobs (until) WHERE until < 9223372036854775807;
";

/// What was executed; see `history`.
const INDEX_3: &str = "
CREATE TABLE executions (
    id INTEGER PRIMARY KEY,
    build INTEGER NOT NULL,
    scope BLOB NOT NULL, text BLOB NOT NULL, def BLOB NOT NULL, key BLOB NOT NULL,
    at INTEGER NOT NULL,
    record TEXT NOT NULL, nodes BLOB NOT NULL, seal BLOB NOT NULL,
    gone_at INTEGER, gone_why TEXT);
CREATE INDEX executions_by_step ON executions (scope, text);
CREATE INDEX executions_by_def ON executions (def);
CREATE INDEX executions_by_key ON executions (key);
";

/// Layers without a directory: see `packed`. `disk` is what a layer takes where that is not its size.
const INDEX_5: &str = "
ALTER TABLE layers ADD COLUMN disk INTEGER;
CREATE TABLE layer_dirs (
    layer INTEGER PRIMARY KEY,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX layer_dirs_waiting ON layer_dirs (epoch) WHERE durable = 0;
-- A hint, so it carries no mark.
CREATE TABLE recent (step BLOB PRIMARY KEY NOT NULL, layer INTEGER NOT NULL) WITHOUT ROWID;
";

const INDEX_1: &str = "
CREATE TABLE epoch (one INTEGER PRIMARY KEY CHECK (one = 1), current INTEGER NOT NULL);
INSERT INTO epoch VALUES (1, 1);

CREATE TABLE layers (
    id INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    diff_id BLOB, tar_size INTEGER,
    created INTEGER NOT NULL, used INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX layers_by_diff_id ON layers (diff_id) WHERE diff_id IS NOT NULL;
CREATE INDEX layers_waiting ON layers (epoch) WHERE durable = 0;

CREATE TABLE results (
    key BLOB PRIMARY KEY NOT NULL,
    record BLOB NOT NULL, seal BLOB NOT NULL,
    used INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX results_waiting ON results (epoch) WHERE durable = 0;

CREATE TABLE transitions (
    parent BLOB NOT NULL, child BLOB NOT NULL,
    layer INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL,
    PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE INDEX transitions_waiting ON transitions (epoch) WHERE durable = 0;

CREATE TABLE blobs (
    digest BLOB PRIMARY KEY NOT NULL,
    size INTEGER NOT NULL,
    ctime INTEGER NOT NULL, used INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX blobs_waiting ON blobs (epoch) WHERE durable = 0;

CREATE TABLE images (
    name TEXT PRIMARY KEY NOT NULL,
    record TEXT NOT NULL, seal BLOB NOT NULL,
    used INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX images_waiting ON images (epoch) WHERE durable = 0;

CREATE TABLE chain_trees (
    chain BLOB PRIMARY KEY NOT NULL,
    record BLOB NOT NULL, seal BLOB NOT NULL,
    used INTEGER NOT NULL,
    boot BLOB NOT NULL, epoch INTEGER NOT NULL, durable INTEGER NOT NULL);
CREATE INDEX chain_trees_waiting ON chain_trees (epoch) WHERE durable = 0;

-- Facts about bytes stay true whatever happens to the bytes, so these carry no mark.
CREATE TABLE encodings (
    diff_id BLOB NOT NULL, params TEXT NOT NULL,
    blob BLOB NOT NULL, size INTEGER NOT NULL, seal BLOB NOT NULL,
    PRIMARY KEY (diff_id, params)) WITHOUT ROWID;
CREATE TABLE blob_diffs (blob BLOB PRIMARY KEY NOT NULL, diff_id BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE resolutions (
    reference TEXT NOT NULL, platform TEXT NOT NULL,
    record TEXT NOT NULL, seal BLOB NOT NULL,
    PRIMARY KEY (reference, platform)) WITHOUT ROWID;
";
