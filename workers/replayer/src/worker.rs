//! The walk of a replay: gather → select → fetch → deliver, and what came of it.

mod compare;
mod publish;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use runtime::Shutdown;
use schemas::{SetName, SiteName, TaskId};
use serde::Serialize;
use streams::{Bus, CarryError, reader, topology};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use vision::InferencePool;

use self::write::DiskWriter;
use crate::compare::Comparison;
use crate::error::ReplayError;
use crate::fetch::{ArchivedImage, ImageOrigin, fetch};
use crate::folder::FolderWriter;
use crate::gather::{gather, gather_pinned};
use crate::read_limiter::ReadLimiter;
use crate::replay_marker::{self, ReplayMarker};
use crate::republish;
use crate::row::TaskRow;
use crate::select::{TaskQuery, TaskSampling, sample};
use crate::settings::ReplayerSettings;
use crate::tarball::TarballWriter;

/// Images between two words about how far it is.
const TELL_EVERY: u64 = 32;

/// Where images go.
pub enum ReplayDestination {
    /// Into a folder, with an index.
    Folder(PathBuf),
    /// Into a tar archive as WebDataset has it.
    Tar(PathBuf),
    /// Published again, marked, on a subject in which `{site}` and `{camera}` stand for where they came from.
    Subject {
        /// The subject.
        template: String,
        /// How fast.
        spacing: ReplaySpacing,
    },
    /// Their labels, to the site's trainer, which learns from them again.
    Trainer,
    /// Into a set that is kept whatever its age.
    Pin(SetName),
    /// Shown to another model, whose answers are held against theirs.
    Model {
        /// The model, loaded and warm.
        infer: InferencePool,
        /// Where each answer is written beside the other.
        table: Option<PathBuf>,
    },
}

/// How images that are published again follow one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReplaySpacing {
    /// As fast as it can.
    Fast,
    /// So many a second.
    Rate(f64),
    /// As they followed one another when they were published first.
    Original,
}

/// What is replayed and how.
pub struct ReplayOptions {
    /// What is meant.
    pub query: TaskQuery,
    /// Where it is kept.
    pub from: ImageOrigin,
    /// Only images of which somebody said one of these labels; absent: whatever was said.
    pub only: Option<Vec<String>>,
    /// Which of it, if not all.
    pub sample: TaskSampling,
    /// How many at the most.
    pub limit: Option<usize>,
    /// Chance of a sample.
    pub seed: u64,
    /// Never faster than this, MiB a second.
    pub most_mib_per_s: Option<f64>,
    /// What was asked for, in one line: the same line goes on where it stopped.
    pub asked: String,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayProgress {
    /// So many answers of so many were read.
    Gathering(u64, u64),
    /// So many images of so many are through, and so many bytes.
    Replaying(u64, u64, u64),
}

/// What came of a replay.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReplaySummary {
    /// Images that were meant.
    pub meant: u64,
    /// Images that went through.
    pub through: u64,
    /// Images that went through before, when the same was asked.
    pub before: u64,
    /// Images that are gone: cleared away before they were replayed.
    pub gone: u64,
    /// Images about which nothing could be said: without a label, for the trainer.
    pub unlabelled: u64,
    /// Labels that are none of those asked for, and how many images were left out for them.
    pub unknown: BTreeMap<String, u64>,
    /// Who said what they show, and of how many.
    pub sources: BTreeMap<&'static str, u64>,
    /// Bytes of the images that went through.
    pub bytes: u64,
    /// How long it took, milliseconds.
    pub elapsed_ms: u64,
    /// Whether it was told to stop before it was through.
    pub interrupted: bool,
    /// Whether no stream stores the subject that was published on.
    pub unstored: bool,
    /// What another model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

/// Replays what is meant.
///
/// # Errors
/// When nothing is meant, and when reading or writing fails; what went through until then stays.
pub async fn replay(
    bus: &Bus,
    site: &SiteName,
    settings: &ReplayerSettings,
    options: ReplayOptions,
    destination: ReplayDestination,
    mut on: impl FnMut(ReplayProgress),
    shutdown: &Shutdown,
) -> Result<ReplaySummary, ReplayError> {
    let started = Instant::now();
    let note = place_of_note(&destination, &options)?;
    let mut begun = match &note {
        Some(path) => {
            ReplayMarker::read_previous(path, &options.asked)?.filter(|before| !before.done || keeps(&destination))
        }
        None => None,
    };
    let fresh = begun.is_none();
    let mut query = options.query.clone();
    let begun = match begun.take() {
        Some(begun) => begun,
        None => ReplayMarker {
            asked: options.asked.clone(),
            run: TaskId::new_random(),
            since_ms: query.since_ms,
            until_ms: query.until_ms.unwrap_or(u64::MAX),
            answers_to: reader::stream_level(bus, topology::ANSWERS).await?.last_sequence,
            through: 0,
            done: false,
        },
    };
    (query.since_ms, query.until_ms) = (begun.since_ms, Some(begun.until_ms));
    let rows = match &options.from {
        ImageOrigin::Images => {
            let mut pace = ReadLimiter::new(bus, site, settings.busy_mib_per_s, None);
            let each = |read, all| on(ReplayProgress::Gathering(read, all));
            gather(bus, site, &query, begun.answers_to, &mut pace, each).await?
        }
        ImageOrigin::Pinned(set) => gather_pinned(bus, site, set, &query).await?,
    };
    let mut summary = ReplaySummary::default();
    let rows = known_only(rows, options.only.as_deref(), &mut summary);
    let rows = sample(rows, options.sample, options.limit, options.seed);
    if rows.is_empty() {
        return Err(ReplayError::Nothing { why: nothing(bus, site, &options.from).await? });
    }
    if let (Some(path), true) = (&note, fresh) {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(ReplayError::write(folder))?;
        }
        begun.write_marker(path)?;
    }
    let meant = rows.len() as u64;
    let mut run = ReplayRun {
        bus,
        site,
        from: &options.from,
        beside_mib_per_s: settings.busy_mib_per_s,
        most_mib_per_s: options.most_mib_per_s,
        room: Arc::new(Semaphore::new(settings.in_flight_mib as usize * 1024)),
        summary: ReplaySummary { meant, ..summary },
        on: &mut on,
        shutdown,
        begun,
        note,
    };
    let ended = run.deliver(rows, destination).await;
    let ReplayRun { mut summary, .. } = run;
    summary.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match ended {
        Err(ReplayError::Interrupted) => summary.interrupted = true,
        Err(error) => return Err(error.with_progress(summary.before + summary.through, meant)),
        Ok(()) => {}
    }
    Ok(summary)
}

/// Leaves out what nobody labelled, or labelled otherwise than asked for.
fn known_only(mut rows: Vec<TaskRow>, only: Option<&[String]>, summary: &mut ReplaySummary) -> Vec<TaskRow> {
    let Some(only) = only else { return rows };
    let only: HashSet<&str> = only.iter().map(String::as_str).collect();
    rows.retain(|row| match row.label() {
        Some((label, _)) if only.contains(label.as_ref()) => true,
        Some((label, _)) => {
            *summary.unknown.entry(label.to_string()).or_default() += 1;
            false
        }
        None => {
            summary.unlabelled += 1;
            false
        }
    });
    rows
}

/// Where it is noted what was begun; a folder or file of something else is refused.
fn place_of_note(destination: &ReplayDestination, options: &ReplayOptions) -> Result<Option<PathBuf>, ReplayError> {
    match destination {
        ReplayDestination::Folder(path) => {
            let note = path.join("replay.json");
            let occupied = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
            if occupied && !note.is_file() {
                return Err(ReplayError::Foreign { path: path.clone(), what: "files that no replay wrote".into() });
            }
            Ok(Some(note))
        }
        ReplayDestination::Tar(path) | ReplayDestination::Model { table: Some(path), .. } => {
            let note = path.with_added_extension("replay.json");
            if path.exists() && !note.is_file() {
                return Err(ReplayError::Foreign { path: path.clone(), what: "something that no replay wrote".into() });
            }
            Ok(Some(note))
        }
        ReplayDestination::Subject { template, .. } => {
            republish::check_template(template)?;
            Ok(replay_marker::of_user(&options.asked))
        }
        // A set has a slot an image, a label can be said twice, and what is only printed is not kept.
        ReplayDestination::Pin(_) | ReplayDestination::Trainer | ReplayDestination::Model { .. } => Ok(None),
    }
}

/// Whether what was written tells that all is through: asked once more, it adds nothing.
fn keeps(destination: &ReplayDestination) -> bool {
    !matches!(destination, ReplayDestination::Subject { .. })
}

/// Why nothing is meant: what there is.
async fn nothing(bus: &Bus, site: &SiteName, from: &ImageOrigin) -> Result<String, ReplayError> {
    if let ImageOrigin::Pinned(set) = from {
        return Ok(format!("set {set} has none like that at site {site}; `tributary retention` lists the sets"));
    }
    let answers = reader::stream_level(bus, topology::ANSWERS).await?;
    if answers.messages == 0 {
        return Ok(format!("site {site} has no answers yet"));
    }
    let at = async |sequence| {
        let record = reader::message_at(bus, topology::ANSWERS, sequence).await?;
        Ok::<_, CarryError>(record.map_or(0, |record| u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0)))
    };
    let (oldest, newest) = (at(answers.first_sequence).await?, at(answers.last_sequence).await?);
    Ok(format!(
        "the {} answers of site {site} are from {} to {}; --where and the other conditions leave none of them",
        answers.messages,
        crate::timestamp::format_timestamp(oldest),
        crate::timestamp::format_timestamp(newest)
    ))
}

struct ReplayRun<'a> {
    bus: &'a Bus,
    site: &'a SiteName,
    from: &'a ImageOrigin,
    beside_mib_per_s: f64,
    most_mib_per_s: Option<f64>,
    /// KiB of images that were read and are not through.
    room: Arc<Semaphore>,
    summary: ReplaySummary,
    on: &'a mut dyn FnMut(ReplayProgress),
    shutdown: &'a Shutdown,
    begun: ReplayMarker,
    note: Option<PathBuf>,
}

/// Starts work that goes on by itself while the next image is fetched: work that only goes on when somebody waits for it would
/// keep its room, and the fetching that waits for room would wait for ever. Given up when it is dropped.
fn under_way<T: Send + 'static>(
    work: impl Future<Output = Result<T, ReplayError>> + Send + 'static,
) -> impl Future<Output = Result<T, ReplayError>> {
    let task = AbortOnDropHandle::new(tokio::spawn(work));
    async move { task.await.map_err(|error| ReplayError::Broken { why: error.to_string() })? }
}

impl ReplayRun<'_> {
    async fn deliver(&mut self, rows: Vec<TaskRow>, destination: ReplayDestination) -> Result<(), ReplayError> {
        match destination {
            ReplayDestination::Folder(path) => {
                std::fs::create_dir_all(&path).map_err(ReplayError::write(&path))?;
                let (folder, known) = FolderWriter::open(&path)?;
                self.write_images(rows, known, DiskWriter::Folder(Box::new(folder))).await
            }
            ReplayDestination::Tar(path) => {
                let (tarball, known) = TarballWriter::open(&path)?;
                self.write_images(rows, known, DiskWriter::Tar(tarball)).await
            }
            ReplayDestination::Subject { template, spacing } => self.publish(rows, &template, spacing).await,
            ReplayDestination::Trainer => self.label(rows).await,
            ReplayDestination::Pin(set) => self.pin(rows, &set).await,
            ReplayDestination::Model { infer, table } => self.compare(rows, &infer, table.as_deref()).await,
        }
    }

    /// Leaves out what went through before.
    fn rest(&mut self, rows: Vec<TaskRow>, known: &HashSet<TaskId>) -> Vec<TaskRow> {
        let rest: Vec<TaskRow> = rows.into_iter().filter(|row| !known.contains(&row.task)).collect();
        self.summary.before = self.summary.meant - rest.len() as u64;
        rest
    }

    /// An image went through.
    fn through(&mut self, row: &TaskRow, bytes: u64) {
        self.summary.through += 1;
        self.summary.bytes += bytes;
        let source = row.label().map_or("nobody", |(_, source)| source.as_str());
        *self.summary.sources.entry(source).or_default() += 1;
        // Nobody reads faster.
        if self.summary.through.is_multiple_of(TELL_EVERY) {
            self.told();
        }
    }

    fn told(&mut self) {
        let ReplaySummary { through, before, gone, bytes, meant, .. } = &self.summary;
        (self.on)(ReplayProgress::Replaying(through + before + gone, *meant, *bytes));
    }

    /// Fetches, and leaves out what is gone; `each` gets the rest with its room among what is in flight.
    async fn fetch<'r>(
        &mut self,
        rows: &'r [TaskRow],
        mut each: impl AsyncFnMut(&mut Self, &'r TaskRow, ArchivedImage, OwnedSemaphorePermit) -> Result<(), ReplayError>,
    ) -> Result<(), ReplayError> {
        let (bus, from, room, shutdown) = (self.bus, self.from, self.room.clone(), self.shutdown);
        let most = self.room.available_permits().max(1);
        let mut pace = ReadLimiter::new(bus, self.site, self.beside_mib_per_s, self.most_mib_per_s);
        fetch(bus, from, rows, &mut pace, async |row, image| {
            if shutdown.is_requested() {
                return Err(ReplayError::Interrupted);
            }
            let Some(image) = image else {
                self.summary.gone += 1;
                self.told();
                return Ok(());
            };
            let kib = u32::try_from((image.bytes.len() / 1024 + 1).min(most)).unwrap_or(u32::MAX);
            let room = room.clone().acquire_many_owned(kib).await.map_err(|_| ReplayError::Interrupted)?;
            each(self, row, image, room).await
        })
        .await
    }

    fn note_through(&self) -> Result<(), ReplayError> {
        self.note.as_ref().map_or(Ok(()), |note| self.begun.write_marker(note))
    }

    fn note_end(&mut self) -> Result<(), ReplayError> {
        self.begun.done = true;
        self.note_through()
    }
}
