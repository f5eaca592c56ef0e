//! Derives a release again without some of its updates: those of certain sites, or those that learned from retracted
//! labels. The result is an ordinary release, which `release verify` can derive again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use releases::prepare::ReleaseOrigin;
use schemas::{BlobRef, ReleaseId, SiteName, TaskId};
use training::TrainError;
use vision::Model;

use crate::aggregate::AggregateResult;
use crate::public_set::PublicSet;
use crate::release::{
    DERIVATION, ExcludedUpdate, Manifest, MergedUpdate, ModelReleases, ReleaseRound, RemakeOrigin, write,
};
use crate::release_builder::{self, RoundBase};
use crate::verify::{
    ReleaseInputs, ReleaseVerifyError, ReleaseWorkspace, ingredients, public_of, release_round, spawn_blocking,
};

/// What to leave out of a release.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemakeExclusions {
    /// Leave out all updates of these sites.
    pub sites: BTreeSet<SiteName>,
    /// Leave out these updates.
    pub updates: BTreeSet<TaskId>,
}

/// Why a release was not remade.
#[derive(Debug, thiserror::Error)]
pub enum RemakeError {
    /// It cannot be derived again at all.
    #[error(transparent)]
    Verify(#[from] ReleaseVerifyError),
    /// The release has none of these updates.
    #[error("release {} has no update of {wanted}; its updates are from {held}", release.short())]
    NotInIt {
        /// The release to remake.
        release: ReleaseId,
        /// What was to be left out.
        wanted: String,
        /// The sites it has updates from.
        held: String,
    },
    /// Nothing would be left.
    #[error(
        "nothing would be left of release {}: all of its {count} updates would be left out; withdraw it instead with `tributary release withdraw` or `tributary release rollback`",
        release.short()
    )]
    NothingLeft {
        /// The release to remake.
        release: ReleaseId,
        /// Number of its updates.
        count: usize,
    },
    /// Leaving them out changes nothing.
    #[error("without them release {} gets the same weights as release {}, so there is nothing new to offer; use `tributary release withdraw` to withdraw it", release.short(), same.short())]
    Same {
        /// The release to remake.
        release: ReleaseId,
        /// The release it gave.
        same: ReleaseId,
    },
}

/// A remade release, in files that are not in the store yet.
#[derive(Debug)]
pub struct RemadeRelease {
    /// Its manifest; without its package.
    pub manifest: Manifest,
    /// Its folder.
    pub model: Model,
    /// Path of its weights file.
    pub weights: PathBuf,
    /// State of the server optimizer after it; absent where there is none.
    pub memory: Option<(BlobRef, PathBuf)>,
    /// Its origin, for the package.
    pub origin: ReleaseOrigin,
}

/// Splits a round's updates into those that stay and those that go. Pure.
///
/// # Errors
/// None of the exclusions is in the release, or nothing stays.
pub fn split_updates(
    release: &ReleaseId,
    updates: &[MergedUpdate],
    without: &RemakeExclusions,
) -> Result<(Vec<MergedUpdate>, Vec<MergedUpdate>), RemakeError> {
    let absent_sites = without.sites.iter().filter(|site| !updates.iter().any(|merged| merged.site == **site));
    let absent: Vec<String> = absent_sites.map(|site| format!("site {site}")).collect();
    let leaves_out =
        |merged: &MergedUpdate| without.sites.contains(&merged.site) || without.updates.contains(&merged.id);
    let (gone, kept): (Vec<MergedUpdate>, Vec<MergedUpdate>) = updates.iter().cloned().partition(leaves_out);
    if !absent.is_empty() || gone.is_empty() {
        let wanted = if absent.is_empty() { "the updates to leave out".into() } else { absent.join(", ") };
        let held: Vec<&str> = updates.iter().map(|merged| merged.site.as_str()).collect();
        return Err(RemakeError::NotInIt { release: release.clone(), wanted, held: held.join(", ") });
    }
    match kept.is_empty() {
        true => Err(RemakeError::NothingLeft { release: release.clone(), count: updates.len() }),
        false => Ok((kept, gone)),
    }
}

/// Derives a release again. `public`: the public set, if there is one. `why` and `at_ms` go into its manifest.
///
/// # Errors
/// [`RemakeError`].
pub async fn remake_release(
    place: &ReleaseWorkspace,
    releases: &ModelReleases,
    manifest: &Manifest,
    public: Option<Arc<PublicSet>>,
    without: &RemakeExclusions,
    (why, at_ms): (&str, u64),
) -> Result<RemadeRelease, RemakeError> {
    let made = release_round(manifest)?;
    let (kept, gone) = split_updates(&manifest.release, &made.updates, without)?;
    let public = public_of(manifest, made, public)?;
    let ReleaseInputs { base, held, memory } = ingredients(place, releases, manifest, &kept).await?;
    let (settings, here, set) = (made.settings.clone(), place.clone(), public.clone());
    let round = (manifest.round, made.is_learning);
    let (derived, written) = spawn_blocking(move || {
        let derived = release_builder::merge(&here.runtime, &base, &held, set.as_deref(), memory, &settings, round)?;
        let written = write_files(&here, &base, &derived)?;
        Ok((derived, written))
    })
    .await?;
    let RemakeFiles { model, blob, weights, memory } = written;
    if model.release == manifest.release || Some(&model.release) == manifest.parent.as_ref() {
        return Err(RemakeError::Same { release: manifest.release.clone(), same: model.release });
    }
    let before = made.memory.as_ref().and_then(|(before, _)| before.clone());
    let made = ReleaseRound {
        derivation: DERIVATION,
        updates: kept,
        record: derived.record,
        public_sha256: public.as_ref().map(|public| public.sha256.clone()),
        memory: memory.as_ref().map(|(blob, _)| (before, blob.clone())),
        ..made.clone()
    };
    let origin = origin(manifest, &made, &gone);
    let from = from(manifest, gone, why, at_ms);
    let first = Manifest::first(manifest.model.clone(), model.release.clone(), model.labels.clone(), blob);
    let manifest = Manifest { parent: manifest.parent.clone(), round: manifest.round, made: Some(made), ..first };
    Ok(RemadeRelease { manifest: manifest.remade(from), model, weights, memory, origin })
}

/// Files of a remade release on disk.
struct RemakeFiles {
    model: Model,
    blob: BlobRef,
    weights: PathBuf,
    memory: Option<(BlobRef, PathBuf)>,
}

fn write_files(
    place: &ReleaseWorkspace,
    base: &RoundBase,
    derived: &AggregateResult,
) -> Result<RemakeFiles, ReleaseVerifyError> {
    let into = place.work.join("remade");
    let (model, blob, weights) = release_builder::folder_with(&place.root, base, &derived.row, &into)?;
    let path = into.join("memory.safetensors");
    let memory = match release_builder::memory_bytes(&derived.memory)? {
        None => None,
        Some(bytes) => Some((write(&path, &bytes).map_err(TrainError::write(&path))?, path)),
    };
    Ok(RemakeFiles { model, blob, weights, memory })
}

fn origin(manifest: &Manifest, made: &ReleaseRound, gone: &[MergedUpdate]) -> ReleaseOrigin {
    let sites: BTreeSet<&str> = gone.iter().map(|merged| merged.site.as_str()).collect();
    let sites = sites.into_iter().collect::<Vec<_>>().join(", ");
    made.record.origin(manifest.parent.clone(), format!("round {}, remade without what {sites} sent", manifest.round))
}

fn from(manifest: &Manifest, gone: Vec<MergedUpdate>, why: &str, at_ms: u64) -> RemakeOrigin {
    let mut without = manifest.remade.as_ref().map(|remade| remade.without.clone()).unwrap_or_default();
    without.extend(gone.into_iter().map(|merged| ExcludedUpdate { id: merged.id, site: merged.site }));
    RemakeOrigin { of: manifest.release.clone(), without, why: why.to_owned(), at_ms }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::release::tests::manifest;

    fn updates() -> Vec<MergedUpdate> {
        let sent = ["reef", "farm", "lake"].map(|site| (site, TaskId::from_name(site)));
        manifest(1, Some(0), 1, &sent).made.map(|made| made.updates).unwrap_or_default()
    }

    fn release() -> ReleaseId {
        ReleaseId::from_sha256([1; 32])
    }

    #[test]
    fn unknown_exclusions_and_empty_results_are_refused() {
        let of = |sites: &[&str]| RemakeExclusions {
            sites: sites.iter().map(|site| site.parse().unwrap()).collect(),
            ..RemakeExclusions::default()
        };
        let refused =
            |without: &RemakeExclusions| split_updates(&release(), &updates(), without).unwrap_err().to_string();
        let absent = refused(&of(&["reef", "moon"]));
        assert!(absent.contains("site moon") && absent.contains("reef, farm, lake"), "{absent}");
        assert!(refused(&of(&["reef", "farm", "lake"])).contains("nothing would be left"));
        let foreign =
            RemakeExclusions { updates: BTreeSet::from([TaskId::from_name("moon")]), ..RemakeExclusions::default() };
        assert!(refused(&foreign).contains("has no update of"));
    }

    proptest! {
        #[test]
        fn every_update_either_stays_or_goes(sites in prop::collection::btree_set(0_usize..3, 0..3), ids in prop::collection::btree_set(0_usize..3, 0..3)) {
            let all = updates();
            let without = RemakeExclusions {
                sites: sites.iter().map(|place| all[*place].site.clone()).collect(),
                updates: ids.iter().map(|place| all[*place].id).collect(),
            };
            let meant: BTreeSet<usize> = sites.union(&ids).copied().collect();
            match split_updates(&release(), &all, &without) {
                Ok((kept, gone)) => {
                    prop_assert_eq!(gone.len(), meant.len());
                    prop_assert_eq!(kept.len() + gone.len(), all.len());
                    prop_assert!(kept.iter().all(|merged| !gone.contains(merged)));
                }
                Err(RemakeError::NothingLeft { .. }) => prop_assert_eq!(meant.len(), 3),
                Err(RemakeError::NotInIt { .. }) => prop_assert!(meant.is_empty()),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
