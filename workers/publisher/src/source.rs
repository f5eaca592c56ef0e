//! Source: where images come from. Enters: what the operator named. Leaves: one item an image, in
//! order, through a bounded channel, so that nothing is found much faster than it is sent.

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

/// Items found ahead of being sent: small, they are paths; a generator's wait in its schedule instead.
const AHEAD: usize = 64;

/// Where images come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
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

impl ImageSource {
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
    filter::EXTENSIONS.join(", ")
}

/// What a source hands on.
#[derive(Debug)]
pub(crate) enum SourceEvent {
    Found(SourceItem),
    Refused(RefusedFile),
    /// A file or folder that is no image or is not wanted; its kind, in words.
    PassedOver(String),
    /// Something that whoever publishes should know.
    Note(String),
    /// The source broke; nothing comes after it.
    Broken(SourceError),
}

/// An image that was found.
#[derive(Debug, Clone)]
pub(crate) struct SourceItem {
    /// Where it is, or what to call it.
    pub path: PathBuf,
    /// Part of its id: folder, then path inside it.
    pub name: String,
    /// For people to search by: as above, and legible.
    pub file: Option<String>,
    /// The camera it comes from.
    pub camera: CameraName,
    /// The true label, if known.
    pub label: Option<String>,
    /// When it was taken, milliseconds since the epoch, as far as that is known from outside the file.
    pub captured_at_ms: Option<u64>,
    /// When it ought to leave, if there is a schedule. Makes it a new task whatever its content.
    pub due: Option<Instant>,
    /// Its bytes, if they were read already.
    pub bytes: Option<Bytes>,
}

/// What comes out of a source, and how many there will be, if that can be known.
pub(crate) struct SourceFeed {
    items: mpsc::Receiver<SourceEvent>,
    pub total: Option<u64>,
    /// Held for as long as its events are wanted.
    _watch: Option<watch::FolderWatch>,
}

impl SourceFeed {
    /// The next item; absent when there are no more. Can be cancelled without loss.
    pub async fn next(&mut self) -> Option<SourceEvent> {
        self.items.recv().await
    }
}

/// The images that would be published of files and folders, in the order of their names, with their labels where these are
/// known; and in words what would be refused or is worth knowing. What is no image is left out without a word.
pub async fn list_images(
    paths: Vec<PathBuf>,
    settings: &PublisherSettings,
) -> Result<(Vec<(PathBuf, Option<String>)>, Vec<String>), SourceError> {
    let mut feed = open(ImageSource::Paths(paths), CameraNaming::One(CameraName::unknown()), settings).await?;
    let (mut images, mut others) = (Vec::new(), Vec::new());
    while let Some(item) = feed.next().await {
        match item {
            SourceEvent::Found(found) => images.push((found.path, found.label)),
            SourceEvent::Refused(refused) => others.push(format!("{}: {}", refused.file, refused.reason)),
            SourceEvent::PassedOver(_) => {}
            SourceEvent::Note(note) => others.push(note),
            SourceEvent::Broken(error) => return Err(error),
        }
    }
    Ok((images, others))
}

/// Begins to read a source.
pub(crate) async fn open(
    source: ImageSource,
    cameras: CameraNaming,
    settings: &PublisherSettings,
) -> Result<SourceFeed, SourceError> {
    let builder = ItemBuilder::new(cameras, settings);
    let filter = FileFilter::new(settings);
    let (items, feed) = mpsc::channel(AHEAD);
    let mut total = None;
    let mut watch = None;
    match source {
        ImageSource::Paths(paths) => {
            let (counted, count_filter) = (paths.clone(), filter.clone());
            let (tell, told) = oneshot::channel();
            thread(move || {
                let _nobody_listens = tell.send(folder::count(&counted, &count_filter));
            })?;
            total = told.await.ok();
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

/// A thread of its own, ended by the channel it writes to. Nobody waits for it: one that is reading a
/// terminal or a dead network drive would keep the process from ending.
fn thread(work: impl FnOnce() + Send + 'static) -> Result<(), SourceError> {
    let builder = std::thread::Builder::new().name("publisher source".into());
    builder.spawn(work).map(|_| ()).map_err(SourceError::Thread)
}

/// A path as text that stands for no other path: as it is, or, where it is no UTF-8 or has a line break, its bytes in
/// hexadecimal behind a zero, which no path has.
pub(crate) fn escape_path(path: &Path) -> String {
    match path.to_str().filter(|text| !text.contains(['\n', '\r'])) {
        Some(text) => text.to_owned(),
        None => {
            let bytes = path.as_os_str().as_bytes().iter();
            bytes.fold(String::from("\0"), |text, byte| text + &format!("{byte:02x}"))
        }
    }
}

/// The path that a text stands for.
pub(crate) fn unescape_path(text: &str) -> Option<PathBuf> {
    let Some(digits) = text.strip_prefix('\0') else { return Some(text.into()) };
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    Some(OsString::from_vec(bytes.collect::<Option<Vec<u8>>>()?).into())
}

/// A folder and the name it gives to what is in it.
#[derive(Debug, Clone)]
pub(crate) struct SourceRoot {
    folder: PathBuf,
    name: String,
}

impl SourceRoot {
    /// Of a folder: itself; of a file: the folder it lies in, so that it has the same id either way.
    fn of(given: &Path) -> Self {
        let folder = if given.is_dir() { given } else { given.parent().unwrap_or(given) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.to_owned();
        let full = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { folder, name }
    }

    /// Path below the folder.
    fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.folder).unwrap_or(path)
    }
}

/// Makes items of what lies in folders: which camera an image is of, its label and its names.
#[derive(Debug)]
pub(crate) struct ItemBuilder {
    index: LabelIndex,
    cameras: CameraNamer,
}

impl ItemBuilder {
    pub fn new(cameras: CameraNaming, settings: &PublisherSettings) -> Self {
        Self { index: LabelIndex::new(settings.labels), cameras: CameraNamer::new(cameras) }
    }

    /// What is to be handed on about something below a root, in order.
    pub fn build(&mut self, root: &SourceRoot, seen: PathEntry) -> Vec<SourceEvent> {
        let item = match seen {
            PathEntry::File(path) => return self.build_image(root, path),
            PathEntry::PassedOver(kind) => SourceEvent::PassedOver(kind),
            PathEntry::Refused(refused) => SourceEvent::Refused(refused),
            PathEntry::LinkedFolder(_) => return Vec::new(),
        };
        vec![item]
    }

    /// An image, after what is to be said about its folder.
    fn build_image(&mut self, root: &SourceRoot, path: PathBuf) -> Vec<SourceEvent> {
        // A file named without its folder lies in the working folder.
        let path = if path.starts_with(&root.folder) { path } else { root.folder.join(path) };
        let inside = root.inside(&path);
        let (camera, note) = match self.cameras.name(inside) {
            Ok(named) => named,
            Err(reason) => return vec![SourceEvent::Refused(RefusedFile::new(&path, reason))],
        };
        let name = format!("{}/{}", root.name, escape_path(inside));
        let file = Some(legible(&format!("{}/{}", root.name, inside.to_string_lossy())));
        let label = self.index.label(&root.folder, &path);
        let found = SourceItem { path, name, file, camera, label, captured_at_ms: None, due: None, bytes: None };
        let mut items = self.index.take_items();
        items.extend(note.map(SourceEvent::Note));
        items.push(SourceEvent::Found(found));
        items
    }
}

/// A name that fits a header: without control characters, and of a very long one the end.
fn legible(name: &str) -> String {
    /// Left for the number of a page.
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
        let Some(SourceEvent::Found(found)) = items.pop() else { panic!("no image") };
        found
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
        let found = built(path, path, crate::LabelOrigin::Folder);
        assert_eq!((found.name.as_str(), found.label.as_deref()), ("publisher/Cargo.toml", Some("publisher")));
    }

    #[test]
    fn a_name_for_people_is_legible_and_bounded() {
        assert_eq!(legible("Küche/a\nb.jpg"), "Küche/a?b.jpg");
        let long = legible(&format!("{}/ende.jpg", "ü".repeat(400)));
        assert!(long.len() <= MAX_FILE_NAME_BYTES && long.starts_with('…') && long.ends_with("ü/ende.jpg"), "{long}");
    }
}
