//! Where a worker keeps the releases it served, so that it can start with the last one without asking anybody. Also
//! records how it ended, so that a release that keeps crashing the process is not started again.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use schemas::{FaultKind, FaultNote, RefusedRelease, ReleaseId};
use serde::{Deserialize, Serialize};
use vision::Model;

/// Number of releases kept: the serving one, the one before it, and one more.
const KEPT_RELEASES: usize = 3;
/// A release is not started again after the process died this often soon after starting with it.
const MAX_DEATHS: u32 = 2;
/// Most workers of one machine that share a folder; each has a part of its own.
const MAX_WORKERS: usize = 64;

/// Saved state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct CacheState {
    /// Name of the baseline model: the folder may later be given to a worker of another model.
    model: String,
    /// The serving release; absent: the baseline.
    serving: Option<ReleaseId>,
    /// The release that served before it.
    before: Option<ReleaseId>,
    /// Whether the process has started and not yet run long enough to be trusted.
    on_trial: bool,
    /// How often the process died before it was trusted.
    deaths: BTreeMap<ReleaseId, u32>,
}

/// A worker's folder, locked by one process.
#[derive(Debug)]
pub struct ReleaseCache {
    folder: PathBuf,
    state: std::sync::Mutex<CacheState>,
    _lock: File,
}

impl ReleaseCache {
    /// Takes a folder that no other process has: the given one, or a numbered one inside it.
    pub fn open(work: &Path) -> io::Result<Self> {
        for number in 1..=MAX_WORKERS {
            let folder = if number == 1 { work.to_owned() } else { work.join(format!("worker-{number}")) };
            fs::create_dir_all(folder.join("releases"))?;
            let lock = File::create(folder.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => {
                    let text = fs::read(folder.join("state.json")).unwrap_or_default();
                    // An unreadable state is dropped: the worker starts with the baseline.
                    let state = serde_json::from_slice(&text).unwrap_or_default();
                    return Ok(Self { folder, state: std::sync::Mutex::new(state), _lock: lock });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "all {MAX_WORKERS} worker folders in {} are in use; use another folder",
            work.display()
        )))
    }

    /// The model to start with, which is the one that served last or the baseline, and the releases that are skipped
    /// because the process died of them.
    pub fn start(&self, root: &Model) -> io::Result<(Model, Vec<RefusedRelease>)> {
        let mut refused = Vec::new();
        let mut state = self.state();
        if state.model != root.description.name {
            state = CacheState { model: root.description.name.clone(), ..CacheState::default() };
        }
        if let Some(serving) = state.serving.clone().filter(|_| state.on_trial) {
            let deaths = state.deaths.entry(serving.clone()).or_default();
            *deaths += 1;
            if *deaths >= MAX_DEATHS {
                let reason = format!("the process died {deaths} times soon after starting with it");
                let remedy = "check the worker's log; `tributary release withdraw` withdraws the release";
                refused.push(RefusedRelease {
                    release: serving,
                    fault: FaultNote::new(FaultKind::ReleaseCrashed, reason, remedy),
                });
                state.serving = state.before.take();
            }
        }
        let cached = state.serving.as_ref().and_then(|serving| {
            let model = Model::load(&self.folder_of(serving)).ok()?;
            (model.release == *serving).then_some(model)
        });
        if cached.is_none() {
            state.serving = None;
        }
        state.on_trial = state.serving.is_some();
        self.write(state)?;
        Ok((cached.unwrap_or_else(|| root.clone()), refused))
    }

    /// Folder of a release, whether or not it exists.
    pub fn folder_of(&self, release: &ReleaseId) -> PathBuf {
        self.folder.join("releases").join(release.as_str())
    }

    /// Path of a package while it is fetched.
    pub fn package_of(&self, release: &ReleaseId) -> PathBuf {
        self.folder.join(format!("{}.tar", release.short()))
    }

    /// Records that a release is about to serve. `root`: it is the baseline.
    pub fn serving_release(&self, release: &ReleaseId, root: bool) -> io::Result<()> {
        let mut state = self.state();
        let serving = (!root).then(|| release.clone());
        if state.serving != serving {
            state.before = std::mem::replace(&mut state.serving, serving);
        }
        state.on_trial = !root;
        self.write(state)
    }

    /// Records that the serving release has run long enough to be trusted, or that the process ends normally.
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
        let surplus = others.len().saturating_sub(KEPT_RELEASES.saturating_sub(wanted.len()));
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
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/models").join(name)).unwrap()
    }

    /// Another release, in its folder.
    fn placed(cache: &ReleaseCache) -> Model {
        let from = fixture("fashion-initial");
        let to = cache.folder_of(&from.release);
        fs::create_dir_all(&to).unwrap();
        for file in &from.files {
            fs::copy(from.folder.join(file), to.join(file)).unwrap();
        }
        Model::load(&to).unwrap()
    }

    #[test]
    fn a_worker_starts_with_the_last_release_unless_it_crashed_twice() {
        let work = tempfile::tempdir().unwrap();
        let root = fixture("fashion-light");
        let opened = || {
            let cache = ReleaseCache::open(work.path()).unwrap();
            let (model, refused) = cache.start(&root).unwrap();
            (cache, model.release, refused.len())
        };
        let (cache, first, _) = opened();
        assert_eq!(first, root.release);
        let other = placed(&cache);
        cache.serving_release(&other.release, false).unwrap();
        cache.mark_stable().unwrap();
        drop(cache);
        for _ in 0..5 {
            let (cache, again, refused) = opened();
            assert_eq!((again, refused), (other.release.clone(), 0), "a normal end does not count");
            cache.mark_stable().unwrap();
        }
        // Now the process dies.
        drop(opened());
        let (cache, again, refused) = opened();
        assert_eq!((again, refused), (other.release.clone(), 0), "dying once is tolerated");
        drop(cache);
        let (cache, again, refused) = opened();
        assert_eq!((again, refused), (root.release.clone(), 1));
        drop(cache);
        assert_eq!(opened().1, root.release);
    }

    #[test]
    fn a_damaged_release_is_not_started() {
        let work = tempfile::tempdir().unwrap();
        let root = fixture("fashion-light");
        let cache = ReleaseCache::open(work.path()).unwrap();
        let other = placed(&cache);
        cache.serving_release(&other.release, false).unwrap();
        fs::write(other.folder.join("labels.txt"), "other\n").unwrap();
        assert_eq!(cache.start(&root).unwrap().0.release, root.release);
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
        assert_eq!(fs::read_dir(one.folder.join("releases")).unwrap().count(), KEPT_RELEASES);
    }
}
