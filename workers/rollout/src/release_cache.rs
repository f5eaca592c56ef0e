//! Where a worker keeps the releases it ran, so that it starts with the last one whether or not anybody can be asked; and
//! what became of it while it ran one, so that a release that ends the process again and again is not started again.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use schemas::{FaultKind, FaultNote, RefusedRelease, ReleaseId};
use serde::{Deserialize, Serialize};
use vision::Model;

/// So many releases are kept: what serves, what served before, and one more.
const KEPT: usize = 3;
/// After so many deaths of the process soon after it began with a release, it is not begun with again.
const MOST_DEATHS: u32 = 2;
/// So many workers of one machine may share a folder; each has a part of it to itself.
const MOST_WORKERS: usize = 64;

/// What is written down.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct CacheState {
    /// Name of the model that the worker was set up with: a folder may be given to a worker of another one.
    model: String,
    /// What serves; absent: what the worker was set up with.
    serving: Option<ReleaseId>,
    /// What served before that.
    before: Option<ReleaseId>,
    /// Whether the process runs, and has not run long enough to be trusted.
    on_trial: bool,
    /// How often the process died on trial.
    deaths: BTreeMap<ReleaseId, u32>,
}

/// A worker's folder. Only one process has it.
#[derive(Debug)]
pub struct ReleaseCache {
    folder: PathBuf,
    state: std::sync::Mutex<CacheState>,
    _lock: File,
}

impl ReleaseCache {
    /// Takes a folder that no other process has: the one named, or the next beside it.
    pub fn open(work: &Path) -> io::Result<Self> {
        for number in 1..=MOST_WORKERS {
            let folder = if number == 1 { work.to_owned() } else { work.join(format!("worker-{number}")) };
            fs::create_dir_all(folder.join("releases"))?;
            let lock = File::create(folder.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => {
                    let text = fs::read(folder.join("state.json")).unwrap_or_default();
                    // What cannot be read is forgotten: the worker starts with what it was set up with.
                    let state = serde_json::from_slice(&text).unwrap_or_default();
                    return Ok(Self { folder, state: std::sync::Mutex::new(state), _lock: lock });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{MOST_WORKERS} workers have a part of {} each", work.display())))
    }

    /// The model to start with: what served last, or what the worker was set up with; and what it does not start with
    /// because the process died of it.
    pub fn start(&self, root: &Model) -> io::Result<(Model, Vec<RefusedRelease>)> {
        let mut refused = Vec::new();
        let mut state = self.state();
        if state.model != root.description.name {
            state = CacheState { model: root.description.name.clone(), ..CacheState::default() };
        }
        if let Some(serving) = state.serving.clone().filter(|_| state.on_trial) {
            let deaths = state.deaths.entry(serving.clone()).or_default();
            *deaths += 1;
            if *deaths >= MOST_DEATHS {
                let reason = format!("the process died {deaths} times soon after it began with it");
                let remedy = "look into the worker's log; `tributary release withdraw` takes the release back";
                refused.push(RefusedRelease {
                    release: serving,
                    fault: FaultNote::new(FaultKind::ReleaseCrashed, reason, remedy),
                });
                state.serving = state.before.take();
            }
        }
        let found = state.serving.as_ref().and_then(|serving| {
            let model = Model::load(&self.folder_of(serving)).ok()?;
            (model.release == *serving).then_some(model)
        });
        if found.is_none() {
            state.serving = None;
        }
        state.on_trial = state.serving.is_some();
        self.write(state)?;
        Ok((found.unwrap_or_else(|| root.clone()), refused))
    }

    /// Where a release lies, or is to lie.
    pub fn folder_of(&self, release: &ReleaseId) -> PathBuf {
        self.folder.join("releases").join(release.as_str())
    }

    /// Where a package lies while it comes.
    pub fn package_of(&self, release: &ReleaseId) -> PathBuf {
        self.folder.join(format!("{}.tar", release.short()))
    }

    /// A release is about to serve; `root`: it is what the worker was set up with.
    pub fn serving_release(&self, release: &ReleaseId, root: bool) -> io::Result<()> {
        let mut state = self.state();
        let serving = (!root).then(|| release.clone());
        if state.serving != serving {
            state.before = std::mem::replace(&mut state.serving, serving);
        }
        state.on_trial = !root;
        self.write(state)
    }

    /// What serves has served long enough to be trusted, or the process ends as it should.
    pub fn mark_stable(&self) -> io::Result<()> {
        let mut state = self.state();
        state.on_trial = false;
        if let Some(serving) = state.serving.clone() {
            state.deaths.remove(&serving);
        }
        self.write(state)
    }

    /// Removes all releases but the latest.
    pub fn remove_old(&self) -> io::Result<()> {
        let state = self.state();
        let wanted: Vec<&str> = state.serving.iter().chain(&state.before).map(ReleaseId::as_str).collect();
        let mut others: Vec<_> = fs::read_dir(self.folder.join("releases"))?
            .flatten()
            .filter(|entry| !wanted.contains(&entry.file_name().to_string_lossy().as_ref()))
            .map(|entry| (entry.metadata().and_then(|metadata| metadata.modified()).ok(), entry.path()))
            .collect();
        others.sort();
        let surplus = others.len().saturating_sub(KEPT.saturating_sub(wanted.len()));
        others.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_dir_all(path))
    }

    fn state(&self) -> CacheState {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn write(&self, state: CacheState) -> io::Result<()> {
        let (path, beside) = (self.folder.join("state.json"), self.folder.join("state.part"));
        fs::write(&beside, serde_json::to_vec_pretty(&state)?)?;
        fs::rename(&beside, &path)?;
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Model {
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)).unwrap()
    }

    /// Another release, in its place.
    fn placed(home: &ReleaseCache) -> Model {
        let from = fixture("fashion-initial");
        let to = home.folder_of(&from.release);
        fs::create_dir_all(&to).unwrap();
        for file in &from.files {
            fs::copy(from.folder.join(file), to.join(file)).unwrap();
        }
        Model::load(&to).unwrap()
    }

    #[test]
    fn a_worker_starts_with_what_served_last_unless_it_died_of_it_twice() {
        let work = tempfile::tempdir().unwrap();
        let root = fixture("fashion-light");
        let begun = || {
            let home = ReleaseCache::open(work.path()).unwrap();
            let (model, refused) = home.start(&root).unwrap();
            (home, model.release, refused.len())
        };
        let (home, first, _) = begun();
        assert_eq!(first, root.release);
        let other = placed(&home);
        home.serving_release(&other.release, false).unwrap();
        home.mark_stable().unwrap();
        drop(home);
        for _ in 0..5 {
            let (home, again, refused) = begun();
            assert_eq!((again, refused), (other.release.clone(), 0), "one that ends as it should is begun with again");
            home.mark_stable().unwrap();
        }
        // Now the process dies.
        drop(begun());
        let (home, again, refused) = begun();
        assert_eq!((again, refused), (other.release.clone(), 0), "once is no more than bad luck");
        drop(home);
        let (home, again, refused) = begun();
        assert_eq!((again, refused), (root.release.clone(), 1));
        drop(home);
        assert_eq!(begun().1, root.release);
    }

    #[test]
    fn a_release_that_was_damaged_is_not_begun_with() {
        let work = tempfile::tempdir().unwrap();
        let root = fixture("fashion-light");
        let home = ReleaseCache::open(work.path()).unwrap();
        let other = placed(&home);
        home.serving_release(&other.release, false).unwrap();
        fs::write(other.folder.join("labels.txt"), "other\n").unwrap();
        assert_eq!(home.start(&root).unwrap().0.release, root.release);
    }

    #[test]
    fn two_workers_do_not_share_a_folder_and_old_releases_are_removed() {
        let work = tempfile::tempdir().unwrap();
        let (one, two) = (ReleaseCache::open(work.path()).unwrap(), ReleaseCache::open(work.path()).unwrap());
        assert_ne!(one.folder, two.folder);
        for number in 0..6_u8 {
            fs::create_dir_all(one.folder_of(&ReleaseId::from_sha256([number; 32]))).unwrap();
        }
        one.serving_release(&ReleaseId::from_sha256([0; 32]), false).unwrap();
        one.remove_old().unwrap();
        assert!(one.folder_of(&ReleaseId::from_sha256([0; 32])).exists());
        assert_eq!(fs::read_dir(one.folder.join("releases")).unwrap().count(), KEPT);
    }
}
