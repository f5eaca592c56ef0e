//! A watched folder: the files in it, then every file completely written into it, including sub-folders.
//!
//! A file is complete when its writer closed it or moved it here, or otherwise when neither its size nor its time has
//! changed for the settle time (file systems without events, and files that were there before). A file that is
//! truncated according to its own format gets longer, because uploads pause, break off and resume. Waits for the
//! system's events and for the next settle time; a network share, whose changes by other machines the system does not
//! report, is listed on a timer instead (`poll_s`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::statfs::{self, statfs};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use schemas::limits::MAX_IMAGE_BYTES;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::image_loader::FileStamp;
use crate::settings::PublisherSettings;
use crate::source::filter::FileFilter;
use crate::source::folder::{FolderWalk, PathEntry};
use crate::source::{ItemBuilder, SourceError, SourceEvent, SourceItem, SourceRoot, thread};

/// Most pending events. When this queue is full, the system's own fills up; when that is full, the system reports it
/// and the folder is listed again.
const MAX_PENDING_EVENTS: usize = 1024;

/// A truncated file is published anyway when it has not changed for this long; an estimate.
const TRUNCATED_TIMEOUT: Duration = Duration::from_secs(30);
/// Network file systems that the nix crate has no names for (statfs(2)).
const SMB2: i64 = 0xfe53_4d42;
const CIFS: i64 = 0xff53_4d42;

/// Watches a folder until it is dropped.
pub(crate) struct FolderWatch {
    _events: SyncSender<notify::Result<Event>>,
    _watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
}

/// Starts watching.
pub(crate) fn open(
    folder: PathBuf,
    settings: &PublisherSettings,
    builder: ItemBuilder,
    items: Sender<SourceEvent>,
) -> Result<FolderWatch, SourceError> {
    let refused = |source| SourceError::Watch { path: folder.clone(), source };
    if !folder.is_dir() {
        return Err(refused(notify::Error::path_not_found()));
    }
    let poll = Some(Duration::from_secs(settings.poll_s)).filter(|poll| !poll.is_zero());
    let (events, seen) = sync_channel(MAX_PENDING_EVENTS);
    let watcher = match poll {
        Some(_) => None,
        None => {
            if let Some(share) = find_share(&folder) {
                tracing::warn!(
                    folder = %folder.display(),
                    share,
                    "folder is on a network share; use --poll SECONDS to see files written by other machines"
                );
            }
            let heard = events.clone();
            let hear = move |event| {
                let _nobody_listens = heard.send(event);
            };
            let config = Config::default().with_follow_symlinks(false);
            let mut watcher = RecommendedWatcher::new(hear, config).map_err(refused)?;
            watcher.watch(&folder, RecursiveMode::Recursive).map_err(refused)?;
            Some(Arc::new(Mutex::new(watcher)))
        }
    };
    let watch = WatchState {
        root: SourceRoot::of(&folder),
        folder_walk: FolderWalk::new(&folder, FileFilter::of_watched(settings)),
        folder,
        builder,
        items,
        settle: SettleTracker::new(Duration::from_millis(settings.settle_ms)),
        revisit: BTreeSet::new(),
        watcher: watcher.as_ref().map(Arc::downgrade),
        poll,
    };
    thread(move || watch.run(&seen))?;
    Ok(FolderWatch { _events: events, _watcher: watcher })
}

/// The kind of network share a folder is on; `None` for a local one.
fn find_share(folder: &Path) -> Option<&'static str> {
    match statfs(folder).ok()?.filesystem_type() {
        statfs::NFS_SUPER_MAGIC => Some("NFS"),
        statfs::SMB_SUPER_MAGIC => Some("SMB"),
        statfs::FUSE_SUPER_MAGIC => Some("FUSE"),
        other if [SMB2, CIFS].contains(&other.0) => Some("SMB"),
        _ => None,
    }
}

struct WatchState {
    folder: PathBuf,
    root: SourceRoot,
    folder_walk: FolderWalk,
    builder: ItemBuilder,
    items: Sender<SourceEvent>,
    settle: SettleTracker,
    /// Watches folders that links point to as well; absent if the folder is listed on a timer.
    watcher: Option<Weak<Mutex<RecommendedWatcher>>>,
    /// Interval of listings; absent if the system reports changes.
    poll: Option<Duration>,
    /// New folders to list again later, as files may have arrived before the system began to report them.
    revisit: BTreeSet<(Instant, PathBuf)>,
}

impl WatchState {
    fn run(mut self, seen: &Receiver<notify::Result<Event>>) {
        let mut go_on = self.list(&self.folder.clone());
        let mut list_at = self.poll.map(|poll| Instant::now() + poll);
        while go_on.is_continue() {
            let revisit_at = self.revisit.first().map(|(at, _)| *at);
            let deadline = [self.settle.next(), revisit_at, list_at].into_iter().flatten().min();
            let event = match deadline {
                Some(at) => seen.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => seen.recv().map_err(RecvTimeoutError::from),
            };
            go_on = match event {
                Ok(event) => self.handle_event(event),
                Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if go_on.is_continue() {
                go_on = self.due();
            }
            if let (Some(poll), true) = (self.poll, list_at.is_some_and(|at| at <= Instant::now())) {
                // While a share is unavailable, its files are not gone.
                if self.folder.exists() {
                    self.settle.forget_gone();
                }
                if go_on.is_continue() {
                    go_on = self.list(&self.folder.clone());
                }
                list_at = Some(Instant::now() + poll);
            }
        }
    }

    fn handle_event(&mut self, event: notify::Result<Event>) -> ControlFlow<()> {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => return self.list(&self.folder.clone()),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "watch failed; rescanning");
                return self.list(&self.folder.clone());
            }
        };
        if matches!(event.kind, EventKind::Remove(_)) && !self.folder.exists() {
            let gone = SourceError::Gone { path: self.folder.clone() };
            let _nobody_listens = self.items.blocking_send(SourceEvent::Broken(gone));
            return ControlFlow::Break(());
        }
        let done = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => true,
            EventKind::Create(_) | EventKind::Modify(_) => false,
            EventKind::Remove(_) => {
                event.paths.into_iter().for_each(|path| self.settle.forget(&self.folder_walk.spell_through_link(path)));
                return ControlFlow::Continue(());
            }
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return ControlFlow::Continue(()),
        };
        for path in event.paths {
            self.changed(self.folder_walk.spell_through_link(path), done)?;
        }
        ControlFlow::Continue(())
    }

    fn changed(&mut self, path: PathBuf, done: bool) -> ControlFlow<()> {
        if self.folder_walk.find_exclusion(&path).is_some() || self.builder.index.forget(&path) {
            return ControlFlow::Continue(());
        }
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            self.revisit.insert((Instant::now() + self.settle.time, path.clone()));
            return self.list(&path);
        }
        if path.is_dir() {
            // A link to a folder: decided when its own folder is listed.
            return path.parent().map_or(ControlFlow::Continue(()), |folder| self.list(folder));
        }
        let Some(stamp) = FileStamp::of(&path) else {
            self.settle.forget(&path);
            return ControlFlow::Continue(());
        };
        if self.folder_walk.find_mismatch(&path).is_some() {
            self.settle.forget(&path);
            return ControlFlow::Continue(());
        }
        if done && self.settle.closed(&path, stamp) {
            return self.publish_complete(path, stamp);
        }
        self.settle.touched(path, stamp, Instant::now());
        ControlFlow::Continue(())
    }

    /// Publishes files that have settled.
    fn due(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        while self.revisit.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, folder)) = self.revisit.pop_first().filter(|(_, folder)| folder.is_dir()) {
                self.list(&folder)?;
            }
        }
        for (path, stamp, waited) in self.settle.due(now, FileStamp::of) {
            match waited {
                true => self.send(path, stamp)?,
                false => self.publish_complete(path, stamp)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// Adds the files in a folder. Those written long ago are complete; on a share, whose clock may differ, a file must
    /// be seen unchanged twice.
    fn list(&mut self, folder: &Path) -> ControlFlow<()> {
        if !folder.exists() {
            // A share may be unavailable for a while; events report a folder that is gone for good.
            if self.poll.is_some() {
                tracing::warn!(folder = %folder.display(), "folder missing; retrying");
            }
            return ControlFlow::Continue(());
        }
        let mut all_seen = Vec::new();
        let _all = self.folder_walk.visit(folder, &mut |seen| {
            all_seen.push(seen);
            ControlFlow::Continue(())
        });
        for seen in all_seen {
            match seen {
                PathEntry::File(path) => self.check_file(path)?,
                PathEntry::LinkedFolder(path) => self.watch_linked(&path),
                // A run shows notes in its summary, and an endless run has none, so this is logged once.
                PathEntry::PassedOver(_) => {}
                PathEntry::Refused(refused) => sent(self.items.blocking_send(SourceEvent::Refused(refused)))?,
            }
        }
        ControlFlow::Continue(())
    }

    fn check_file(&mut self, path: PathBuf) -> ControlFlow<()> {
        let Some(stamp) = FileStamp::of(&path) else { return ControlFlow::Continue(()) };
        let age = (UNIX_EPOCH + Duration::from_nanos(stamp.modified_at_ns)).elapsed().unwrap_or_default();
        if self.poll.is_none() && age > self.settle.time && self.settle.closed(&path, stamp) {
            return if age > TRUNCATED_TIMEOUT { self.send(path, stamp) } else { self.publish_complete(path, stamp) };
        }
        self.settle.touched(path, stamp, Instant::now());
        ControlFlow::Continue(())
    }

    /// The system reports nothing behind a link unless that is watched too.
    fn watch_linked(&self, folder: &Path) {
        let Some(watcher) = self.watcher.as_ref().and_then(Weak::upgrade) else { return };
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        // The library does not look behind a link that it is given.
        let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        if let Err(error) = watcher.watch(&real, RecursiveMode::Recursive) {
            tracing::warn!(folder = %folder.display(), %error, "linked folder not watched; only its current files are published");
        }
    }

    /// Publishes a complete file; a truncated one gets more time.
    fn publish_complete(&mut self, path: PathBuf, stamp: FileStamp) -> ControlFlow<()> {
        if is_truncated(&path, stamp) {
            tracing::debug!(path = %path.display(), "file incomplete; waiting");
            self.settle.hold(path, stamp, Instant::now() + TRUNCATED_TIMEOUT);
            return ControlFlow::Continue(());
        }
        self.send(path, stamp)
    }

    fn send(&mut self, path: PathBuf, stamp: FileStamp) -> ControlFlow<()> {
        for item in self.builder.build(&self.root, PathEntry::File(path)) {
            let item = match item {
                SourceEvent::Found(found) => {
                    SourceEvent::Found(SourceItem { captured_at_ms: Some(stamp.modified_at_ns / 1_000_000), ..found })
                }
                other => other,
            };
            sent(self.items.blocking_send(item))?;
        }
        ControlFlow::Continue(())
    }
}

/// Whether a file is truncated according to its own format.
fn is_truncated(path: &Path, stamp: FileStamp) -> bool {
    // Larger files are refused or cut into tiles, and are not read twice.
    stamp.size_bytes <= MAX_IMAGE_BYTES && std::fs::read(path).is_ok_and(|bytes| !vision::is_complete(&bytes))
}

fn sent<E>(sent: Result<(), E>) -> ControlFlow<()> {
    if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Which files are still being written, and which were published; pure.
struct SettleTracker {
    time: Duration,
    pending: HashMap<PathBuf, (Instant, FileStamp)>,
    queue: BTreeSet<(Instant, PathBuf)>,
    taken: HashMap<PathBuf, FileStamp>,
    /// Pending files that are truncated.
    held: HashSet<PathBuf>,
}

impl SettleTracker {
    fn new(time: Duration) -> Self {
        Self { time, pending: HashMap::new(), queue: BTreeSet::new(), taken: HashMap::new(), held: HashSet::new() }
    }

    /// A file changed and may change again.
    fn touched(&mut self, path: PathBuf, stamp: FileStamp, now: Instant) {
        let as_known = self.pending.get(&path).is_some_and(|(_, known)| *known == stamp);
        if as_known || self.taken.get(&path) == Some(&stamp) {
            return;
        }
        self.drop_pending(&path);
        self.queue.insert((now + self.time, path.clone()));
        self.pending.insert(path, (now + self.time, stamp));
    }

    /// A file was closed; returns whether to publish it now. An empty one has to settle first, because writers reserve
    /// names by closing empty files.
    fn closed(&mut self, path: &Path, stamp: FileStamp) -> bool {
        if stamp.size_bytes == 0 || self.taken.get(path) == Some(&stamp) {
            return false;
        }
        self.drop_pending(path);
        self.taken.insert(path.to_owned(), stamp);
        true
    }

    /// Holds a truncated file, which is published if it has not changed by then.
    fn hold(&mut self, path: PathBuf, stamp: FileStamp, until: Instant) {
        self.forget(&path);
        self.queue.insert((until, path.clone()));
        self.pending.insert(path.clone(), (until, stamp));
        self.held.insert(path);
    }

    /// Forgets files that no longer exist.
    fn forget_gone(&mut self) {
        self.taken.retain(|path, _| path.exists());
    }

    fn forget(&mut self, path: &Path) {
        self.drop_pending(path);
        self.taken.remove(path);
    }

    fn drop_pending(&mut self, path: &Path) {
        self.held.remove(path);
        if let Some((at, _)) = self.pending.remove(path) {
            self.queue.remove(&(at, path.to_owned()));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes the files that have not changed for the settle time, and whether they were held; one that has changed
    /// waits again.
    fn due(&mut self, now: Instant, stamp_of: impl Fn(&Path) -> Option<FileStamp>) -> Vec<(PathBuf, FileStamp, bool)> {
        let mut settled = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some((_, path)) = self.queue.pop_first() else { break };
            let known = self.pending.remove(&path).map(|(_, stamp)| stamp);
            let was_held = self.held.remove(&path);
            match stamp_of(&path) {
                None => {}
                Some(stamp) if known == Some(stamp) => {
                    self.taken.insert(path.clone(), stamp);
                    settled.push((path, stamp, was_held));
                }
                Some(stamp) => self.touched(path, stamp, now),
            }
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    fn stamp(size_bytes: u64) -> FileStamp {
        FileStamp { size_bytes, modified_at_ns: size_bytes, changed_at_ns: 0 }
    }

    #[test]
    fn a_growing_file_is_published_once_when_it_settles() {
        let (mut settle, start) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        settle.touched(path.clone(), stamp(1), start);
        settle.touched(path.clone(), stamp(2), start + SETTLE / 2);
        assert!(settle.due(start + SETTLE, |_| Some(stamp(2))).is_empty(), "changed half a settle time ago");
        let at = settle.next().unwrap();
        assert!(settle.due(at, |_| Some(stamp(3))).is_empty(), "changed without an event");
        assert_eq!(settle.due(at + SETTLE, |_| Some(stamp(3))), [(path.clone(), stamp(3), false)]);
        settle.touched(path.clone(), stamp(3), at + SETTLE);
        assert!(!settle.closed(&path, stamp(3)), "already published");
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_truncated_file_is_held_until_it_grows_or_times_out() {
        let (mut settle, now) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.jpg");
        assert!(settle.closed(&path, stamp(5)));
        settle.hold(path.clone(), stamp(5), now + TRUNCATED_TIMEOUT);
        settle.touched(path.clone(), stamp(5), now + SETTLE);
        assert!(settle.due(now + 2 * SETTLE, |_| Some(stamp(5))).is_empty());
        assert_eq!(settle.due(now + TRUNCATED_TIMEOUT, |_| Some(stamp(5))), [(path.clone(), stamp(5), true)]);
        settle.hold(path.clone(), stamp(5), now + TRUNCATED_TIMEOUT);
        assert!(settle.closed(&path, stamp(9)), "the rest arrived");
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_closed_file_is_published_at_once_unless_it_is_empty() {
        let (mut settle, now) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        assert!(!settle.closed(&path, stamp(0)));
        settle.touched(path.clone(), stamp(0), now);
        assert!(settle.closed(&path, stamp(5)));
        assert!(settle.due(now + SETTLE, |_| Some(stamp(5))).is_empty(), "already published");
        assert!(settle.closed(&path, stamp(6)), "written again");
    }
}
