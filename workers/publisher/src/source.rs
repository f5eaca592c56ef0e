//! Source: where images come from. Enters: what the operator named. Leaves: one item an image, in
//! order, through a bounded channel, so that nothing is found much faster than it is sent.

mod folder;
mod generator;
mod label;
mod stdin;
mod watch;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::report::Refused;
use crate::settings::PublisherSettings;
use label::Index;

/// Items found ahead of being sent: small, they are paths; a generator's wait in its schedule instead.
const AHEAD: usize = 64;

/// Where images come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Files, and folders with all image files below them, in the order of their names.
    Paths(Vec<PathBuf>),
    /// A folder: what is in it, then what is completely written into it, until told to stop.
    Watch(PathBuf),
    /// One image on standard input.
    Stdin,
    /// A path a line on standard input.
    StdinPaths,
    /// The same images over and over, each time as new tasks, on a schedule that does not wait for
    /// acknowledgements.
    Generator {
        /// Files and folders.
        images: Vec<PathBuf>,
        /// Images each second on average, more than 0.
        rate_per_s: f64,
        /// Whether the times between images are random (a Poisson process) rather than equal.
        poisson: bool,
        /// Seed of those times.
        seed: u64,
        /// Ends after this many images.
        count: Option<u64>,
        /// Ends after this long.
        duration: Option<Duration>,
    },
}

/// Why a source cannot be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder to be watched is not there, or the system will not watch it.
    #[error("folder {path} cannot be watched: is it there, a folder, and within fs.inotify.max_user_watches?")]
    Watch {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: notify::Error,
    },
    /// The folder watched was removed.
    #[error("folder {path} is gone: nothing more can come from it")]
    Gone {
        /// The folder.
        path: PathBuf,
    },
    /// Standard input broke.
    #[error("standard input cannot be read")]
    Stdin(#[source] std::io::Error),
    /// A rate that is no schedule.
    #[error(
        "rate {rate_per_s} is no schedule: use more than 0 and at most {} images a second",
        generator::MAX_RATE_PER_S
    )]
    Rate {
        /// As given.
        rate_per_s: f64,
    },
    /// The system gave no thread to read with.
    #[error("source cannot be read: no thread for it")]
    Thread(#[source] std::io::Error),
}

impl Source {
    /// Whether it goes on until told to stop.
    pub fn is_endless(&self) -> bool {
        match self {
            Self::Watch(_) => true,
            Self::Generator { count, duration, .. } => count.is_none() && duration.is_none(),
            Self::Paths(_) | Self::Stdin | Self::StdinPaths => false,
        }
    }

    /// What tells this source's journal from others; absent where nothing can be resumed.
    pub(crate) fn identity(&self) -> Option<String> {
        let absolute = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string();
        match self {
            Self::Paths(paths) => {
                let mut paths: Vec<String> = paths.iter().map(absolute).collect();
                paths.sort();
                Some(paths.join("\n"))
            }
            Self::Watch(path) => Some(absolute(path)),
            Self::StdinPaths => Some("standard input".into()),
            Self::Stdin | Self::Generator { .. } => None,
        }
    }
}

/// The extensions looked for in folders.
pub(crate) fn extensions() -> String {
    folder::EXTENSIONS.join(", ")
}

/// What a source hands on.
#[derive(Debug)]
pub(crate) enum Item {
    Found(Found),
    Refused(Refused),
    /// The source broke; nothing comes after it.
    Broken(SourceError),
}

/// An image that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Where it is, or what to call it.
    pub path: PathBuf,
    /// Part of its id: folder, then path inside it.
    pub name: String,
    /// The true label, if known.
    pub label: Option<String>,
    /// When it was taken, milliseconds since the epoch, if that is known.
    pub captured_at_ms: Option<u64>,
    /// When it ought to leave, if there is a schedule. Makes it a new task whatever its content.
    pub due: Option<Instant>,
    /// Its bytes, if they were read already.
    pub bytes: Option<Bytes>,
}

/// What comes out of a source, and how many there will be, if that can be known.
pub(crate) struct Feed {
    items: mpsc::Receiver<Item>,
    pub total: Option<u64>,
    /// Held for as long as its events are wanted.
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Feed {
    /// The next item; absent when there are no more. Can be cancelled without loss.
    pub async fn next(&mut self) -> Option<Item> {
        self.items.recv().await
    }
}

/// Begins to read a source.
pub(crate) async fn open(source: Source, settings: &PublisherSettings) -> Result<Feed, SourceError> {
    let index = Index::new(settings.labels);
    let (items, feed) = mpsc::channel(AHEAD);
    let mut total = None;
    let mut watcher = None;
    match source {
        Source::Paths(paths) => {
            let counted = paths.clone();
            let (tell, told) = oneshot::channel();
            thread(move || {
                let _nobody_listens = tell.send(folder::count(&counted));
            })?;
            total = told.await.ok();
            thread(move || folder::run(&paths, index, &items))?;
        }
        Source::Watch(path) => {
            let settle = Duration::from_millis(settings.settle_ms);
            watcher = Some(watch::open(path, settle, index, items)?);
        }
        Source::Stdin => {
            total = Some(1);
            thread(move || stdin::one(std::io::stdin(), &items))?;
        }
        Source::StdinPaths => thread(move || stdin::paths(std::io::stdin().lock(), index, &items))?,
        Source::Generator { images, rate_per_s, poisson, seed, count, duration } => {
            let schedule = generator::Schedule::new(rate_per_s, poisson, seed)?;
            let until = generator::Until { count, duration };
            total = count.filter(|_| duration.is_none());
            // At most one image is ahead of its time. The task ends when the channel is closed.
            let (items, feed) = mpsc::channel(1);
            tokio::spawn(generator::run(images, index, schedule, until, items));
            return Ok(Feed { items: feed, total, _watcher: None });
        }
    }
    Ok(Feed { items: feed, total, _watcher: watcher })
}

/// A thread of its own, ended by the channel it writes to. Nobody waits for it: one that is reading a
/// terminal or a dead network drive would keep the process from ending.
fn thread(work: impl FnOnce() + Send + 'static) -> Result<(), SourceError> {
    let builder = std::thread::Builder::new().name("publisher source".into());
    builder.spawn(work).map(|_| ()).map_err(SourceError::Thread)
}

/// A path as text that stands for no other path: as it is, or, where it is no UTF-8 or has a line break, its bytes in
/// hexadecimal behind a zero, which no path has.
pub(crate) fn spell(path: &Path) -> String {
    match path.to_str().filter(|text| !text.contains(['\n', '\r'])) {
        Some(text) => text.to_owned(),
        None => {
            let bytes = path.as_os_str().as_bytes().iter();
            bytes.fold(String::from("\0"), |text, byte| text + &format!("{byte:02x}"))
        }
    }
}

/// The path that a text stands for.
pub(crate) fn unspell(text: &str) -> Option<PathBuf> {
    let Some(digits) = text.strip_prefix('\0') else { return Some(text.into()) };
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    Some(OsString::from_vec(bytes.collect::<Option<Vec<u8>>>()?).into())
}

/// A folder and the name it gives to what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    folder: PathBuf,
    name: String,
}

impl Root {
    /// Of a folder: itself; of a file: the folder it lies in, so that it has the same id either way.
    fn of(given: &Path) -> Self {
        let folder = if given.is_dir() { given } else { given.parent().unwrap_or(given) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.to_owned();
        let full = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { folder, name }
    }

    fn found(&self, path: PathBuf, index: &mut Index) -> Found {
        // A file named without its folder lies in the working folder.
        let path = if path.starts_with(&self.folder) { path } else { self.folder.join(path) };
        let inside = path.strip_prefix(&self.folder).unwrap_or(&path);
        let name = format!("{}/{}", self.name, spell(inside));
        let label = index.label(&self.folder, &path);
        Found { path, name, label, captured_at_ms: None, due: None, bytes: None }
    }
}
