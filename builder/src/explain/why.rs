//! What a miss is compared with, and what is to blame.

use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rbuild_cache::store::{GoneWhy, Key};
use rbuild_cache::tree::NodeStore;

use super::cause::{Above, Cause};
use super::record::{Producer, Record, short_reference, split_name};
use super::{Earlier, Explainer, LINEAGE_BYTES, Scopes, compare, parse};

impl Explainer {
    pub(super) fn causes(
        &self,
        node: NodeIndex,
        record: &Record,
        key: &Key,
        (scope, text): (&[u8; 32], &[u8; 32]),
        nodes: &dyn NodeStore,
    ) -> Vec<Cause> {
        if let Ok(Some(same)) = self.store.execution_of(key, self.build) {
            let is_failed = parse(&same).is_some_and(|record| record.is_failed);
            return vec![match same.gone {
                _ if is_failed => Cause::FailedBefore,
                Some((at_unix_ns, GoneWhy::Evicted)) => Cause::Evicted { at_unix_ns },
                Some((at_unix_ns, GoneWhy::Damaged)) => Cause::Damaged { at_unix_ns },
                None => Cause::Lost,
            }];
        }
        let number = split_name(&record.name).0;
        let taken = self.taken();
        let rank = |past: &Earlier| {
            let old = &past.record;
            let is_written_the_same = past.text == *text;
            let root = |record: &Record| record.inputs.iter().find(|i| i.slot == 0).map(|i| i.digest.clone());
            let has_number = split_name(&old.name).0 == number;
            let stands_here = has_number || root(old) == root(record);
            let is_same = is_written_the_same || (stands_here && !self.texts.contains(&past.text));
            let is_candidate =
                is_same && old.kind == record.kind && !past.keys.iter().any(|key| taken.keys.contains(key));
            is_candidate.then(|| (!is_written_the_same, compare::distance(old, record), !has_number))
        };
        // The latest of equals: the first one found.
        let nearest = |earlier: Arc<[Earlier]>, is_looked_at: &dyn Fn(&Earlier) -> bool| {
            let all = earlier.iter().enumerate().filter(|(_, past)| is_looked_at(past));
            let found = all.filter_map(|(at, past)| Some((rank(past)?, at))).min();
            found.map(|(_, at)| (earlier, at))
        };
        let here = self.earlier(*scope..=*scope);
        let is_new_here = here.is_empty();
        let old = nearest(here, &|_| true)
            .or_else(|| nearest(self.earlier(all_stages(scope)), &|past| past.text == *text));
        drop(taken);
        let Some(old) = old.as_ref().map(|(earlier, at)| &earlier[*at].record) else {
            let rebuilt = if is_new_here { self.store.rebuilt_unix_ns() } else { Ok(None) };
            return vec![match rebuilt {
                Ok(Some(at_unix_ns)) => Cause::FirstSinceRebuild { at_unix_ns },
                _ => Cause::First,
            }];
        };
        let mut causes = compare::own_causes(old, record, nodes);
        match self.above(node, old, record) {
            // A base brings its environment along: that it moved is the cause of both.
            Some(cause @ Cause::Base { .. }) => causes.insert(0, cause),
            Some(cause) => causes.push(cause),
            None => {}
        }
        if causes.is_empty() {
            causes.push(Cause::Other);
        }
        causes
    }

    /// What the state that a step builds on has to do with it.
    fn above(&self, node: NodeIndex, old: &Record, new: &Record) -> Option<Cause> {
        let root = |record: &Record| record.inputs.iter().find(|input| input.slot == 0).cloned();
        let bases = (old.base.as_ref(), new.base.as_ref());
        let (old, new) = match (root(old), root(new)) {
            (Some(old), Some(new)) if old.digest != new.digest => (old, new),
            _ => return None,
        };
        let base = match bases {
            (Some(old), Some(new)) => compare::base_cause(old, new),
            _ => compare::base_cause(&old.producer, &new.producer),
        };
        if base.is_some() {
            return base;
        }
        let name = |producer: &Producer| match producer {
            Producer::Step { name, .. } => name.clone(),
            Producer::Image { reference, .. } => format!("FROM {}", short_reference(reference)),
            Producer::Scratch => "FROM scratch".to_owned(),
            Producer::Fetched { address, .. } => address.clone(),
            Producer::Context { .. } => String::new(),
        };
        let (old_name, new_name) = (name(&old.producer), name(&new.producer));
        let stands_on_the_same = split_name(&old_name).1 == split_name(&new_name).1;
        let in_place = Cause::Above { step: new_name.clone(), how: Above::InPlaceOf { old: old_name } };
        // The nearest that was executed: what was taken from the cache gave what it has always given for what it got.
        let mut at = self.root(node);
        while let Some(above) = at {
            let Some(record) = self.decided().get(&above).cloned() else {
                at = self.root(above);
                continue;
            };
            let how = match record.causes.first() {
                Some(cause @ Cause::Base { .. }) => return Some(cause.clone()),
                Some(Cause::Above { how: Above::InPlaceOf { .. } | Above::Follows { .. }, .. })
                    if !stands_on_the_same =>
                {
                    return Some(in_place);
                }
                Some(Cause::Above { step, how: Above::InPlaceOf { old } }) => {
                    Above::Follows { old: old.clone(), new: step.clone() }
                }
                Some(cause @ Cause::Above { .. }) => return Some(cause.clone()),
                Some(Cause::First | Cause::FirstSinceRebuild { .. }) => Above::New,
                Some(
                    Cause::NoCache
                    | Cause::NoCacheFilter { .. }
                    | Cause::Lost
                    | Cause::Evicted { .. }
                    | Cause::Damaged { .. }
                    | Cause::FailedBefore,
                ) => Above::OtherResult,
                _ => Above::Changed,
            };
            return Some(Cause::Above { step: record.name.clone(), how });
        }
        Some(if stands_on_the_same {
            Cause::Above { step: new_name, how: Above::OtherResult }
        } else {
            in_place
        })
    }
}

/// The scopes of all stages of a lineage.
fn all_stages(scope: &[u8; 32]) -> Scopes {
    let (mut first, mut last) = (*scope, *scope);
    first[LINEAGE_BYTES..].fill(0);
    last[LINEAGE_BYTES..].fill(u8::MAX);
    first..=last
}
