//! A watched folder: what is in it, then what is completely written into it, sub-folders too.
//!
//! A file is complete when its writer closed it or moved it here, or else when neither its size nor its
//! time has changed for the settle time (file systems that do not tell, and files that were there
//! before). One that its own format says goes on is given longer: uploads pause, and break off and are resumed. Waits for the
//! system's events and for the next settle time; a network share, whose changes by other machines the system does not tell,
//! is listed on a timer instead (`poll_s`).

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

/// Events waiting to be looked at. When it is full the system's own queue fills, and when that is full
/// the system says so and the folder is listed anew.
const EVENTS: usize = 1024;

/// A file that ends before its format says is taken nevertheless when it has not changed for this long; a guess.
const UNFINISHED: Duration = Duration::from_secs(30);
/// File systems of the network that the system's library has no names for (statfs(2)).
const SMB2: i64 = 0xfe53_4d42;
const CIFS: i64 = 0xff53_4d42;

/// A folder that is watched for as long as this is kept.
pub(crate) struct FolderWatch {
    _events: SyncSender<notify::Result<Event>>,
    _watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
}

/// Begins to watch.
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
    let (events, seen) = sync_channel(EVENTS);
    let watcher = match poll {
        Some(_) => None,
        None => {
            if let Some(share) = find_share(&folder) {
                tracing::warn!(
                    folder = %folder.display(),
                    share,
                    "this is a network share: what other machines write there is seen only with --poll SECONDS"
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
        walk: FolderWalk::new(&folder, FileFilter::of_watched(settings)),
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

/// What kind of network share a folder is on, if it is on one.
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
    walk: FolderWalk,
    builder: ItemBuilder,
    items: Sender<SourceEvent>,
    settle: SettleTracker,
    /// Hears of folders that links lead to as well; absent where the folder is listed on a timer.
    watcher: Option<Weak<Mutex<RecommendedWatcher>>>,
    /// Between two listings; absent where the system tells of changes.
    poll: Option<Duration>,
    /// New folders, listed again later: files may have come before the system began to tell of them.
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
                // While a share is away its files are not gone.
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
                tracing::warn!(folder = %self.folder.display(), %error, "watching failed, listing the folder anew");
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
                event.paths.into_iter().for_each(|path| self.settle.forget(&self.walk.spell_through_link(path)));
                return ControlFlow::Continue(());
            }
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return ControlFlow::Continue(()),
        };
        for path in event.paths {
            self.changed(self.walk.spell_through_link(path), done)?;
        }
        ControlFlow::Continue(())
    }

    fn changed(&mut self, path: PathBuf, done: bool) -> ControlFlow<()> {
        if self.walk.find_exclusion(&path).is_some() || self.builder.index.forget(&path) {
            return ControlFlow::Continue(());
        }
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            self.revisit.insert((Instant::now() + self.settle.time, path.clone()));
            return self.list(&path);
        }
        if path.is_dir() {
            // A link to a folder: whether it is followed is seen where its own folder is listed.
            return path.parent().map_or(ControlFlow::Continue(()), |folder| self.list(folder));
        }
        let Some(stamp) = FileStamp::of(&path) else {
            self.settle.forget(&path);
            return ControlFlow::Continue(());
        };
        if self.walk.find_mismatch(&path).is_some() {
            self.settle.forget(&path);
            return ControlFlow::Continue(());
        }
        if done && self.settle.closed(&path, stamp) {
            return self.hand_on(path, stamp);
        }
        self.settle.touched(path, stamp, Instant::now());
        ControlFlow::Continue(())
    }

    /// Hands on what has settled.
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
                false => self.hand_on(path, stamp)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes up what lies in a folder. What was written long ago is complete; on a share, whose clock may be another, a file
    /// is looked at twice.
    fn list(&mut self, folder: &Path) -> ControlFlow<()> {
        if !folder.exists() {
            // A share that is away for a while; events tell of a folder that is gone for good.
            if self.poll.is_some() {
                tracing::warn!(folder = %folder.display(), "the folder is not there; it is looked for again");
            }
            return ControlFlow::Continue(());
        }
        let mut all_seen = Vec::new();
        let _all = self.walk.visit(folder, &mut |seen| {
            all_seen.push(seen);
            ControlFlow::Continue(())
        });
        for seen in all_seen {
            match seen {
                PathEntry::File(path) => self.look_at(path)?,
                PathEntry::LinkedFolder(path) => self.watch_linked(&path),
                // Said once in a summary, and this run has none before it ends.
                PathEntry::PassedOver(_) => {}
                PathEntry::Refused(refused) => sent(self.items.blocking_send(SourceEvent::Refused(refused)))?,
            }
        }
        ControlFlow::Continue(())
    }

    fn look_at(&mut self, path: PathBuf) -> ControlFlow<()> {
        let Some(stamp) = FileStamp::of(&path) else { return ControlFlow::Continue(()) };
        let age = (UNIX_EPOCH + Duration::from_nanos(stamp.modified_at_ns)).elapsed().unwrap_or_default();
        if self.poll.is_none() && age > self.settle.time && self.settle.closed(&path, stamp) {
            return if age > UNFINISHED { self.send(path, stamp) } else { self.hand_on(path, stamp) };
        }
        self.settle.touched(path, stamp, Instant::now());
        ControlFlow::Continue(())
    }

    /// The system tells nothing of what lies behind a link unless it is asked for.
    fn watch_linked(&self, folder: &Path) {
        let Some(watcher) = self.watcher.as_ref().and_then(Weak::upgrade) else { return };
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        // The library does not look behind a link that it is given.
        let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        if let Err(error) = watcher.watch(&real, RecursiveMode::Recursive) {
            tracing::warn!(folder = %folder.display(), %error, "a linked folder cannot be watched: only what is in it now is published");
        }
    }

    /// Hands a complete file on; one that its own format says goes on is given time.
    fn hand_on(&mut self, path: PathBuf, stamp: FileStamp) -> ControlFlow<()> {
        if is_cut_off(&path, stamp) {
            tracing::debug!(path = %path.display(), "the file ends early; waiting for the rest");
            self.settle.hold(path, stamp, Instant::now() + UNFINISHED);
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

/// Whether a file ends before its format says it does.
fn is_cut_off(path: &Path, stamp: FileStamp) -> bool {
    // What is larger is refused or cut into tiles, and is not read twice.
    stamp.size_bytes <= MAX_IMAGE_BYTES && std::fs::read(path).is_ok_and(|bytes| !vision::is_complete(&bytes))
}

fn sent<E>(sent: Result<(), E>) -> ControlFlow<()> {
    if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Which files are still being written, and which were taken; pure.
struct SettleTracker {
    time: Duration,
    pending: HashMap<PathBuf, (Instant, FileStamp)>,
    queue: BTreeSet<(Instant, PathBuf)>,
    taken: HashMap<PathBuf, FileStamp>,
    /// Those pending that end early.
    held: HashSet<PathBuf>,
}

impl SettleTracker {
    fn new(time: Duration) -> Self {
        Self { time, pending: HashMap::new(), queue: BTreeSet::new(), taken: HashMap::new(), held: HashSet::new() }
    }

    /// A file changed, and may change again.
    fn touched(&mut self, path: PathBuf, stamp: FileStamp, now: Instant) {
        let as_known = self.pending.get(&path).is_some_and(|(_, known)| *known == stamp);
        if as_known || self.taken.get(&path) == Some(&stamp) {
            return;
        }
        self.drop_pending(&path);
        self.queue.insert((now + self.time, path.clone()));
        self.pending.insert(path, (now + self.time, stamp));
    }

    /// A file was completed; whether it is to be taken now. An empty one has until it settles to become
    /// something: writers reserve names by closing empty files.
    fn closed(&mut self, path: &Path, stamp: FileStamp) -> bool {
        if stamp.size_bytes == 0 || self.taken.get(path) == Some(&stamp) {
            return false;
        }
        self.drop_pending(path);
        self.taken.insert(path.to_owned(), stamp);
        true
    }

    /// A file that ends early is taken when it has not changed until then.
    fn hold(&mut self, path: PathBuf, stamp: FileStamp, until: Instant) {
        self.forget(&path);
        self.queue.insert((until, path.clone()));
        self.pending.insert(path.clone(), (until, stamp));
        self.held.insert(path);
    }

    /// Forgets files that are no longer there.
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

    /// Takes the files that have not changed for the settle time, and whether they were held; one that has waits again.
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
    fn a_file_that_grows_is_taken_when_it_has_stopped_and_once() {
        let (mut settle, start) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        settle.touched(path.clone(), stamp(1), start);
        settle.touched(path.clone(), stamp(2), start + SETTLE / 2);
        assert!(settle.due(start + SETTLE, |_| Some(stamp(2))).is_empty(), "it changed half a settle time ago");
        let at = settle.next().unwrap();
        assert!(settle.due(at, |_| Some(stamp(3))).is_empty(), "it changed without an event");
        assert_eq!(settle.due(at + SETTLE, |_| Some(stamp(3))), [(path.clone(), stamp(3), false)]);
        settle.touched(path.clone(), stamp(3), at + SETTLE);
        assert!(!settle.closed(&path, stamp(3)), "it was taken already");
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_file_that_ends_early_is_held_until_it_goes_on_or_time_is_up() {
        let (mut settle, now) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.jpg");
        assert!(settle.closed(&path, stamp(5)));
        settle.hold(path.clone(), stamp(5), now + UNFINISHED);
        settle.touched(path.clone(), stamp(5), now + SETTLE);
        assert!(settle.due(now + 2 * SETTLE, |_| Some(stamp(5))).is_empty());
        assert_eq!(settle.due(now + UNFINISHED, |_| Some(stamp(5))), [(path.clone(), stamp(5), true)]);
        settle.hold(path.clone(), stamp(5), now + UNFINISHED);
        assert!(settle.closed(&path, stamp(9)), "the rest came");
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_closed_file_is_taken_at_once_unless_it_is_empty() {
        let (mut settle, now) = (SettleTracker::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        assert!(!settle.closed(&path, stamp(0)));
        settle.touched(path.clone(), stamp(0), now);
        assert!(settle.closed(&path, stamp(5)));
        assert!(settle.due(now + SETTLE, |_| Some(stamp(5))).is_empty(), "it was taken already");
        assert!(settle.closed(&path, stamp(6)), "it was written again");
    }
}
