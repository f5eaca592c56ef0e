//! A watched folder: what is in it, then what is completely written into it, sub-folders too.
//!
//! A file is complete when its writer closed it or moved it here, or else when neither its size nor its
//! time has changed for the settle time (file systems that do not tell, and files that were there
//! before). Waits for the system's events and for the next settle time, never on a timer of its own; a
//! network drive whose changes the system does not tell cannot be watched.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, UNIX_EPOCH};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::load::Stamp;
use crate::source::folder::{self, Seen, is_hidden, is_image};
use crate::source::label::Index;
use crate::source::{Item, Root, SourceError, thread};

/// Events waiting to be looked at. When it is full the system's own queue fills, and when that is full
/// the system says so and the folder is listed anew.
const EVENTS: usize = 1024;

/// Begins to watch. The watcher must be kept; dropping it ends the watch.
pub(crate) fn open(
    folder: PathBuf,
    settle: Duration,
    index: Index,
    items: Sender<Item>,
) -> Result<RecommendedWatcher, SourceError> {
    let refused = |source| SourceError::Watch { path: folder.clone(), source };
    if !folder.is_dir() {
        return Err(refused(notify::Error::path_not_found()));
    }
    let (events, seen) = sync_channel(EVENTS);
    let hear = move |event| {
        let _nobody_listens = events.send(event);
    };
    let config = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(hear, config).map_err(refused)?;
    watcher.watch(&folder, RecursiveMode::Recursive).map_err(refused)?;
    let root = Root::of(&folder);
    let watch = Watch { folder, root, index, items, settle: Settle::new(settle), revisit: BTreeSet::new() };
    thread(move || watch.run(&seen))?;
    Ok(watcher)
}

struct Watch {
    folder: PathBuf,
    root: Root,
    index: Index,
    items: Sender<Item>,
    settle: Settle,
    /// New folders, listed again later: files may have come before the system began to tell of them.
    revisit: BTreeSet<(Instant, PathBuf)>,
}

impl Watch {
    fn run(mut self, seen: &Receiver<notify::Result<Event>>) {
        let mut go_on = self.list(&self.folder.clone());
        while go_on.is_continue() {
            let deadline = [self.settle.next(), self.revisit.first().map(|(at, _)| *at)].into_iter().flatten().min();
            let event = match deadline {
                Some(at) => seen.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => seen.recv().map_err(RecvTimeoutError::from),
            };
            go_on = match event {
                Ok(event) => self.hear(event),
                Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if go_on.is_continue() {
                go_on = self.due();
            }
        }
    }

    fn hear(&mut self, event: notify::Result<Event>) -> ControlFlow<()> {
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
            let _nobody_listens = self.items.blocking_send(Item::Broken(gone));
            return ControlFlow::Break(());
        }
        let done = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => true,
            EventKind::Create(_) | EventKind::Modify(_) => false,
            EventKind::Remove(_) => {
                event.paths.iter().for_each(|path| self.settle.forget(path));
                return ControlFlow::Continue(());
            }
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return ControlFlow::Continue(()),
        };
        for path in event.paths {
            self.changed(path, done)?;
        }
        ControlFlow::Continue(())
    }

    fn changed(&mut self, path: PathBuf, done: bool) -> ControlFlow<()> {
        let inside = path.strip_prefix(&self.folder).unwrap_or(&path);
        if inside.ancestors().any(is_hidden) || self.index.forget(&path) {
            return ControlFlow::Continue(());
        }
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            self.revisit.insert((Instant::now() + self.settle.time, path.clone()));
            return self.list(&path);
        }
        let Some(stamp) = Stamp::of(&path).filter(|_| is_image(&path)) else {
            self.settle.forget(&path);
            return ControlFlow::Continue(());
        };
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
        for (path, stamp) in self.settle.due(now, Stamp::of) {
            self.hand_on(path, stamp)?;
        }
        ControlFlow::Continue(())
    }

    /// Takes up what lies in a folder. What was written long ago is complete.
    fn list(&mut self, folder: &Path) -> ControlFlow<()> {
        folder::walk(folder, &mut |seen| match seen {
            Seen::Refused(refused) => sent(self.items.blocking_send(Item::Refused(refused))),
            Seen::File(path) => {
                let Some(stamp) = Stamp::of(&path) else { return ControlFlow::Continue(()) };
                let written_at = UNIX_EPOCH + Duration::from_nanos(stamp.modified_at_ns);
                let settled = written_at.elapsed().is_ok_and(|age| age > self.settle.time);
                if settled && self.settle.closed(&path, stamp) {
                    return self.hand_on(path, stamp);
                }
                self.settle.touched(path, stamp, Instant::now());
                ControlFlow::Continue(())
            }
        })
    }

    fn hand_on(&mut self, path: PathBuf, stamp: Stamp) -> ControlFlow<()> {
        let mut found = self.root.found(path, &mut self.index);
        found.captured_at_ms = Some(stamp.modified_at_ns / 1_000_000);
        for refused in self.index.refused() {
            sent(self.items.blocking_send(Item::Refused(refused)))?;
        }
        sent(self.items.blocking_send(Item::Found(found)))
    }
}

fn sent<E>(sent: Result<(), E>) -> ControlFlow<()> {
    if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Which files are still being written, and which were taken; pure.
struct Settle {
    time: Duration,
    pending: HashMap<PathBuf, (Instant, Stamp)>,
    queue: BTreeSet<(Instant, PathBuf)>,
    taken: HashMap<PathBuf, Stamp>,
}

impl Settle {
    fn new(time: Duration) -> Self {
        Self { time, pending: HashMap::new(), queue: BTreeSet::new(), taken: HashMap::new() }
    }

    /// A file changed, and may change again.
    fn touched(&mut self, path: PathBuf, stamp: Stamp, now: Instant) {
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
    fn closed(&mut self, path: &Path, stamp: Stamp) -> bool {
        if stamp.size_bytes == 0 || self.taken.get(path) == Some(&stamp) {
            return false;
        }
        self.drop_pending(path);
        self.taken.insert(path.to_owned(), stamp);
        true
    }

    fn forget(&mut self, path: &Path) {
        self.drop_pending(path);
        self.taken.remove(path);
    }

    fn drop_pending(&mut self, path: &Path) {
        if let Some((at, _)) = self.pending.remove(path) {
            self.queue.remove(&(at, path.to_owned()));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes the files that have not changed for the settle time; one that has waits again.
    fn due(&mut self, now: Instant, stamp_of: impl Fn(&Path) -> Option<Stamp>) -> Vec<(PathBuf, Stamp)> {
        let mut settled = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some((_, path)) = self.queue.pop_first() else { break };
            let known = self.pending.remove(&path).map(|(_, stamp)| stamp);
            match stamp_of(&path) {
                None => {}
                Some(stamp) if known == Some(stamp) => {
                    self.taken.insert(path.clone(), stamp);
                    settled.push((path, stamp));
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

    fn stamp(size_bytes: u64) -> Stamp {
        Stamp { size_bytes, modified_at_ns: size_bytes, changed_at_ns: 0 }
    }

    #[test]
    fn a_file_that_grows_is_taken_when_it_has_stopped_and_once() {
        let (mut settle, start) = (Settle::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        settle.touched(path.clone(), stamp(1), start);
        settle.touched(path.clone(), stamp(2), start + SETTLE / 2);
        assert!(settle.due(start + SETTLE, |_| Some(stamp(2))).is_empty(), "it changed half a settle time ago");
        let at = settle.next().unwrap();
        assert!(settle.due(at, |_| Some(stamp(3))).is_empty(), "it changed without an event");
        assert_eq!(settle.due(at + SETTLE, |_| Some(stamp(3))), [(path.clone(), stamp(3))]);
        settle.touched(path.clone(), stamp(3), at + SETTLE);
        assert!(!settle.closed(&path, stamp(3)), "it was taken already");
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_closed_file_is_taken_at_once_unless_it_is_empty() {
        let (mut settle, now) = (Settle::new(SETTLE), Instant::now());
        let path = PathBuf::from("a.png");
        assert!(!settle.closed(&path, stamp(0)));
        settle.touched(path.clone(), stamp(0), now);
        assert!(settle.closed(&path, stamp(5)));
        assert!(settle.due(now + SETTLE, |_| Some(stamp(5))).is_empty(), "it was taken already");
        assert!(settle.closed(&path, stamp(6)), "it was written again");
    }
}
