//! Finds images. In: what the operator named. Out: one item per image, in order, through a bounded channel, so that
//! finding is never far ahead of sending.

mod camera;
mod filter;
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

use schemas::CameraName;
use schemas::limits::MAX_FILE_NAME_BYTES;

use crate::report::RefusedFile;
use crate::settings::PublisherSettings;
use camera::CameraNamer;
pub use camera::CameraNaming;
use filter::FileFilter;
use folder::PathEntry;
use label::LabelIndex;

/// Most items found ahead of sending. They are small, as they hold paths; a generator's items wait in its schedule
/// instead.
const MAX_ITEMS_AHEAD: usize = 64;

/// Where images come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    /// Files, and folders with all image files below them, in the order of their names.
    Paths(Vec<PathBuf>),
    /// A folder: what is in it now, then every file completely written into it, until stopped.
    Watch(PathBuf),
    /// One image on standard input.
    Stdin,
    /// One path per line on standard input.
    StdinPaths,
    /// The same images repeatedly, each time as new tasks, on a schedule that does not wait for acknowledgements.
    Generator {
        /// Files and folders.
        images: Vec<PathBuf>,
        /// Mean images per second, above 0.
        rate_per_s: f64,
        /// Random intervals (a Poisson process) instead of equal ones.
        poisson: bool,
        /// Random seed of the intervals.
        seed: u64,
        /// Stop after this many images.
        count: Option<u64>,
        /// Stop after this long.
        duration: Option<Duration>,
    },
}

/// Why a source cannot be opened, or failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder cannot be watched.
    #[error(
        "could not watch folder {path}; check that it exists, is a folder, and that fs.inotify.max_user_watches is high enough"
    )]
    Watch {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: notify::Error,
    },
    /// The watched folder was removed.
    #[error("the watched folder {path} was removed")]
    Gone {
        /// Path of the folder.
        path: PathBuf,
    },
    /// Standard input failed.
    #[error("could not read standard input")]
    Stdin(#[source] std::io::Error),
    /// The rate of a generator is out of range.
    #[error(
        "rate {rate_per_s} is out of range; it must be above 0 and at most {} images per second",
        generator::MAX_RATE_PER_S
    )]
    Rate {
        /// The given rate.
        rate_per_s: f64,
    },
    /// The reading thread could not be started.
    #[error("could not start a thread to read the source")]
    Thread(#[source] std::io::Error),
}

impl ImageSource {
    /// Whether it runs until stopped.
    pub fn is_endless(&self) -> bool {
        match self {
            Self::Watch(_) => true,
            Self::Generator { count, duration, .. } => count.is_none() && duration.is_none(),
            Self::Paths(_) | Self::Stdin | Self::StdinPaths => false,
        }
    }

    /// Identifies the source's journal; `None` for sources that cannot be resumed.
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

/// The image extensions looked for in folders, as text.
pub(crate) fn extensions() -> String {
    filter::EXTENSIONS.join(", ")
}

/// An event from a source.
#[derive(Debug)]
pub(crate) enum SourceEvent {
    Found(SourceItem),
    Refused(RefusedFile),
    /// A skipped file or folder; its kind, in words.
    PassedOver(String),
    /// A note for the person who publishes.
    Note(String),
    /// The source failed; this is its last event.
    Broken(SourceError),
}

/// An image that was found.
#[derive(Debug, Clone)]
pub(crate) struct SourceItem {
    /// Its path, or what to call it.
    pub path: PathBuf,
    /// Part of its id: folder, then path inside it.
    pub name: String,
    /// The same as readable text, for people to search by.
    pub file: Option<String>,
    /// The camera it is from.
    pub camera: CameraName,
    /// The true label, if known.
    pub label: Option<String>,
    /// Capture time in milliseconds since the epoch, if known from outside the file.
    pub captured_at_ms: Option<u64>,
    /// When to send it, if there is a schedule. It is then a new task, whatever its content.
    pub due: Option<Instant>,
    /// Its bytes, if already read.
    pub bytes: Option<Bytes>,
}

/// The events of a source, and how many images there will be, if known.
pub(crate) struct SourceFeed {
    items: mpsc::Receiver<SourceEvent>,
    pub total: Option<u64>,
    /// Keeps the watch alive as long as events are wanted.
    _watch: Option<watch::FolderWatch>,
}

impl SourceFeed {
    /// The next event; `None` at the end. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<SourceEvent> {
        self.items.recv().await
    }
}

/// The images of files and folders that would be published, in the order of their names, with their labels if known;
/// and what would be refused or noted, in words. Files that are not images are left out silently.
pub async fn list_images(
    paths: Vec<PathBuf>,
    settings: &PublisherSettings,
) -> Result<(Vec<(PathBuf, Option<String>)>, Vec<String>), SourceError> {
    let mut feed = open(ImageSource::Paths(paths), CameraNaming::One(CameraName::unknown()), settings).await?;
    let (mut images, mut others) = (Vec::new(), Vec::new());
    while let Some(item) = feed.next().await {
        match item {
            SourceEvent::Found(item) => images.push((item.path, item.label)),
            SourceEvent::Refused(refused) => others.push(format!("{}: {}", refused.file, refused.reason)),
            SourceEvent::PassedOver(_) => {}
            SourceEvent::Note(note) => others.push(note),
            SourceEvent::Broken(error) => return Err(error),
        }
    }
    Ok((images, others))
}

/// Starts reading a source.
pub(crate) async fn open(
    source: ImageSource,
    cameras: CameraNaming,
    settings: &PublisherSettings,
) -> Result<SourceFeed, SourceError> {
    let builder = ItemBuilder::new(cameras, settings);
    let filter = FileFilter::new(settings);
    let (items, feed) = mpsc::channel(MAX_ITEMS_AHEAD);
    let mut total = None;
    let mut watch = None;
    match source {
        ImageSource::Paths(paths) => {
            let (counted, count_filter) = (paths.clone(), filter.clone());
            let (sender, count) = oneshot::channel();
            thread(move || {
                let _nobody_listens = sender.send(folder::count(&counted, &count_filter));
            })?;
            total = count.await.ok();
            thread(move || folder::run(&paths, builder, &filter, &items))?;
        }
        ImageSource::Watch(path) => watch = Some(watch::open(path, settings, builder, items)?),
        ImageSource::Stdin => {
            total = Some(1);
            thread(move || stdin::send_single_image(std::io::stdin(), builder, &items))?;
        }
        ImageSource::StdinPaths => {
            thread(move || stdin::send_listed_paths(std::io::stdin().lock(), builder, &filter, &items))?
        }
        ImageSource::Generator { images, rate_per_s, poisson, seed, count, duration } => {
            let schedule = generator::ArrivalSchedule::new(rate_per_s, poisson, seed)?;
            let until = generator::GeneratorLimit { count, duration };
            total = count.filter(|_| duration.is_none());
            // At most one image is ahead of its time. The task ends when the channel is closed.
            let (items, feed) = mpsc::channel(1);
            tokio::spawn(generator::run(images, builder, filter, schedule, until, items));
            return Ok(SourceFeed { items: feed, total, _watch: None });
        }
    }
    Ok(SourceFeed { items: feed, total, _watch: watch })
}

/// Starts a detached thread, which ends when its channel is closed. It is not joined, because a read from a terminal or
/// a dead network drive would keep the process from ending.
fn thread(work: impl FnOnce() + Send + 'static) -> Result<(), SourceError> {
    let builder = std::thread::Builder::new().name("publisher source".into());
    builder.spawn(work).map(|_| ()).map_err(SourceError::Thread)
}

/// A path as unambiguous text: unchanged, or, if it is not UTF-8 or has a line break, as hexadecimal bytes after a NUL,
/// which no path contains.
pub(crate) fn escape_path(path: &Path) -> String {
    match path.to_str().filter(|text| !text.contains(['\n', '\r'])) {
        Some(text) => text.to_owned(),
        None => {
            let bytes = path.as_os_str().as_bytes().iter();
            bytes.fold(String::from("\0"), |text, byte| text + &format!("{byte:02x}"))
        }
    }
}

/// The inverse of [`escape_path`].
pub(crate) fn unescape_path(text: &str) -> Option<PathBuf> {
    let Some(digits) = text.strip_prefix('\0') else { return Some(text.into()) };
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    Some(OsString::from_vec(bytes.collect::<Option<Vec<u8>>>()?).into())
}

/// A folder, and the name it gives its files.
#[derive(Debug, Clone)]
pub(crate) struct SourceRoot {
    folder: PathBuf,
    name: String,
}

impl SourceRoot {
    /// For a folder, itself; for a file, the folder it is in, so that its id is the same either way.
    fn of(given: &Path) -> Self {
        let folder = if given.is_dir() { given } else { given.parent().unwrap_or(given) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.to_owned();
        let full = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { folder, name }
    }

    /// The path below the folder.
    fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.folder).unwrap_or(path)
    }
}

/// Builds items of files in folders: their camera, label and names.
#[derive(Debug)]
pub(crate) struct ItemBuilder {
    index: LabelIndex,
    cameras: CameraNamer,
}

impl ItemBuilder {
    pub(crate) fn new(cameras: CameraNaming, settings: &PublisherSettings) -> Self {
        Self { index: LabelIndex::new(settings.labels), cameras: CameraNamer::new(cameras) }
    }

    /// The events for an entry below a root, in order.
    pub(crate) fn build(&mut self, root: &SourceRoot, seen: PathEntry) -> Vec<SourceEvent> {
        let item = match seen {
            PathEntry::File(path) => return self.build_image(root, path),
            PathEntry::PassedOver(kind) => SourceEvent::PassedOver(kind),
            PathEntry::Refused(refused) => SourceEvent::Refused(refused),
            PathEntry::LinkedFolder(_) => return Vec::new(),
        };
        vec![item]
    }

    /// An image, after the notes about its folder.
    fn build_image(&mut self, root: &SourceRoot, path: PathBuf) -> Vec<SourceEvent> {
        // A file named without a folder is in the working folder.
        let path = if path.starts_with(&root.folder) { path } else { root.folder.join(path) };
        let inside = root.inside(&path);
        let (camera, note) = match self.cameras.name(inside) {
            Ok(named) => named,
            Err(reason) => return vec![SourceEvent::Refused(RefusedFile::new(&path, reason))],
        };
        let name = format!("{}/{}", root.name, escape_path(inside));
        let file = Some(readable_name(&format!("{}/{}", root.name, inside.to_string_lossy())));
        let label = self.index.label(&root.folder, &path);
        let item = SourceItem { path, name, file, camera, label, captured_at_ms: None, due: None, bytes: None };
        let mut items = self.index.take_items();
        items.extend(note.map(SourceEvent::Note));
        items.push(SourceEvent::Found(item));
        items
    }
}

/// A name that fits into a header: without control characters, and shortened to its end if very long.
fn readable_name(name: &str) -> String {
    /// Space reserved for the page number.
    const PAGE_BYTES: usize = 32;
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let from = name.len().saturating_sub(MAX_FILE_NAME_BYTES - PAGE_BYTES);
    match (from..name.len()).find(|at| name.is_char_boundary(*at)) {
        Some(at) if at > 0 => format!("…{}", &name[at..]),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(root: &Path, path: &Path, labels: crate::LabelOrigin) -> SourceItem {
        let settings = PublisherSettings { labels, ..PublisherSettings::default() };
        let mut builder = ItemBuilder::new(CameraNaming::One("cam".parse().unwrap()), &settings);
        let mut items = builder.build(&SourceRoot::of(root), PathEntry::File(path.to_owned()));
        let Some(SourceEvent::Found(item)) = items.pop() else { panic!("no image") };
        item
    }

    #[test]
    fn a_file_has_the_same_name_alone_and_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.png");
        std::fs::write(&file, "x").unwrap();
        let (alone, inside) =
            (built(&file, &file, crate::LabelOrigin::Index), built(folder.path(), &file, crate::LabelOrigin::Index));
        assert_eq!((alone.name, alone.file), (inside.name, inside.file));
    }

    #[test]
    fn a_file_of_the_working_folder_has_the_folder_in_its_name() {
        let path = Path::new("Cargo.toml");
        let item = built(path, path, crate::LabelOrigin::Folder);
        assert_eq!((item.name.as_str(), item.label.as_deref()), ("publish/Cargo.toml", Some("publish")));
    }

    #[test]
    fn a_name_for_people_is_readable_and_bounded() {
        assert_eq!(readable_name("Küche/a\nb.jpg"), "Küche/a?b.jpg");
        let long = readable_name(&format!("{}/ende.jpg", "ü".repeat(400)));
        assert!(long.len() <= MAX_FILE_NAME_BYTES && long.starts_with('…') && long.ends_with("ü/ende.jpg"), "{long}");
    }
}
