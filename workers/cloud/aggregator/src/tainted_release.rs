//! Which releases learned from an update: those it was merged into, and their descendants. Pure.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{ReleaseId, TaskId};

use crate::release::Manifest;

/// A release that learned from one of the updates in question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TaintedRelease {
    /// Id of the release.
    pub release: ReleaseId,
    /// Number of its round; 0 for none.
    pub round: u64,
    /// Updates in question that were merged into it; empty if it only descends from one that has some.
    pub updates: BTreeSet<TaskId>,
    /// The release it starts from, if that one learned from them; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<ReleaseId>,
}

/// The releases that learned from any of these updates: first those that contain one, then their descendants.
pub fn tainted_releases(manifests: &[Manifest], updates: &BTreeSet<TaskId>) -> Vec<TaintedRelease> {
    let mut found: BTreeMap<&ReleaseId, TaintedRelease> = BTreeMap::new();
    for manifest in manifests {
        let merged = manifest.made.iter().flat_map(|made| &made.updates).map(|merged| merged.id);
        let own: BTreeSet<TaskId> = merged.filter(|id| updates.contains(id)).collect();
        if !own.is_empty() {
            found.insert(&manifest.release, of(manifest, own));
        }
    }
    // A parent may come after its child in the list, so this repeats until nothing is added.
    loop {
        let before = found.len();
        for manifest in manifests {
            let Some(parent) = manifest.parent.as_ref().filter(|parent| found.contains_key(parent)) else { continue };
            let entry = found.entry(&manifest.release).or_insert_with(|| of(manifest, BTreeSet::new()));
            entry.through = Some(parent.clone());
        }
        if found.len() == before {
            break;
        }
    }
    let mut all: Vec<TaintedRelease> = found.into_values().collect();
    all.sort_by(|a, b| (a.updates.is_empty(), a.round, &a.release).cmp(&(b.updates.is_empty(), b.round, &b.release)));
    all
}

fn of(manifest: &Manifest, updates: BTreeSet<TaskId>) -> TaintedRelease {
    TaintedRelease { release: manifest.release.clone(), round: manifest.round, updates, through: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::tests::manifest;

    #[test]
    fn descendants_of_a_tainted_release_are_tainted() {
        let [a, b] = ["a", "b"].map(TaskId::from_name);
        let manifests = [
            manifest(3, Some(2), 3, &[]),
            manifest(1, Some(0), 1, &[("reef", b)]),
            manifest(2, Some(1), 2, &[("reef", a), ("farm", b)]),
            manifest(4, Some(0), 4, &[("farm", b)]),
        ];
        let found = tainted_releases(&manifests, &BTreeSet::from([a]));
        let said: Vec<(u64, usize, bool)> =
            found.iter().map(|found| (found.round, found.updates.len(), found.through.is_some())).collect();
        assert_eq!(said, [(2, 1, false), (3, 0, true)]);
        assert!(tainted_releases(&manifests, &BTreeSet::from([TaskId::from_name("c")])).is_empty());
    }
}
