//! The steps of a replay: gather → select → fetch → deliver, and its summary.

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
use crate::coco_folder::CocoFolderWriter;
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

/// Images between two progress reports.
const PROGRESS_EVERY: u64 = 32;

/// Where images go.
pub enum ReplayDestination {
    /// Into a folder with an index.
    Folder(PathBuf),
    /// Into a folder with COCO annotations.
    Coco(PathBuf),
    /// Into a tar archive in the WebDataset layout.
    Tar(PathBuf),
    /// Published again, marked as replayed, on a subject with the placeholders `{site}` and `{camera}`.
    Subject {
        /// Subject template.
        template: String,
        /// Rate of publishing.
        spacing: ReplaySpacing,
    },
    /// Their labels, to the site's trainer, which learns from them again.
    Trainer,
    /// Into a pinned set, which is kept whatever its age.
    Pin(SetName),
    /// To another model, whose predictions are compared with the answers.
    Model {
        /// The model, loaded and warmed up.
        infer: InferencePool,
        /// Path of the comparison file; absent: none is written.
        table: Option<PathBuf>,
    },
}

/// Rate at which images are published again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReplaySpacing {
    /// As fast as possible.
    Fast,
    /// This many per second.
    Rate(f64),
    /// With the intervals of their first publication.
    Original,
}

/// What to replay, and how.
pub struct ReplayOptions {
    /// Which tasks.
    pub query: TaskQuery,
    /// Where the images are read from.
    pub from: ImageOrigin,
    /// Only images with one of these labels; absent: any.
    pub only: Option<Vec<String>>,
    /// How to choose if not all are taken.
    pub sample: TaskSampling,
    /// Most images; absent: no limit.
    pub limit: Option<usize>,
    /// Random seed of the sample.
    pub seed: u64,
    /// Read-rate limit in MiB/s; absent: none.
    pub most_mib_per_s: Option<f64>,
    /// The selection in one line: a replay with the same line resumes an interrupted one.
    pub asked: String,
}

/// Progress of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayProgress {
    /// Answers read, of all answers.
    Gathering(u64, u64),
    /// Images done, of all images, and bytes done.
    Replaying(u64, u64, u64),
}

/// Result of a replay.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReplaySummary {
    /// Images selected.
    pub meant: u64,
    /// Images done in this run.
    pub through: u64,
    /// Images done in earlier runs of the same replay.
    pub before: u64,
    /// Images that were purged before they could be replayed.
    pub gone: u64,
    /// Images without a label, which a trainer cannot use.
    pub unlabelled: u64,
    /// Images whose label is their objects, which a model of whole images cannot learn from.
    pub boxed: u64,
    /// Images whose answers list no objects and that nobody drew any in, of an export of objects.
    pub without_objects: u64,
    /// Images whose size is unknown, because they cannot be decoded, of an export of objects.
    pub undecodable: u64,
    /// Labels that were not requested, and the number of images skipped for each.
    pub unknown: BTreeMap<String, u64>,
    /// Number of images by source of their label.
    pub sources: BTreeMap<&'static str, u64>,
    /// Bytes of the images done.
    pub bytes: u64,
    /// Duration in milliseconds.
    pub elapsed_ms: u64,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
    /// Whether no stream stores the subject that was published on.
    pub unstored: bool,
    /// Comparison with another model; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

/// Runs a replay.
///
/// # Errors
/// No task matches, or reading or writing failed; what was done before stays.
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
    let note = marker_path(&destination, &options)?;
    let mut begun = match &note {
        Some(path) => ReplayMarker::read_previous(path, &options.asked)?
            .filter(|before| !before.done || shows_completion(&destination)),
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
    let rows = keep_labelled(rows, options.only.as_deref(), &mut summary);
    let rows = sample(rows, options.sample, options.limit, options.seed);
    if rows.is_empty() {
        return Err(ReplayError::Nothing { why: explain_no_match(bus, site, &options.from).await? });
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
        permits: Arc::new(Semaphore::new(settings.in_flight_mib as usize * 1024)),
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

/// Drops images without a label, with a label that was not requested, or with objects instead.
fn keep_labelled(mut rows: Vec<TaskRow>, only: Option<&[String]>, summary: &mut ReplaySummary) -> Vec<TaskRow> {
    let Some(only) = only else { return rows };
    let only: HashSet<&str> = only.iter().map(String::as_str).collect();
    rows.retain(|row| match row.label() {
        Some(_) if row.true_objects().is_some() => {
            summary.boxed += 1;
            false
        }
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

/// Path of the replay's marker; refuses a folder or file with other content.
fn marker_path(destination: &ReplayDestination, options: &ReplayOptions) -> Result<Option<PathBuf>, ReplayError> {
    match destination {
        ReplayDestination::Folder(path) | ReplayDestination::Coco(path) => {
            let note = path.join("progress.json");
            let occupied = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
            if occupied && !note.is_file() {
                return Err(ReplayError::Foreign { path: path.clone(), what: "files that no export wrote".into() });
            }
            Ok(Some(note))
        }
        ReplayDestination::Tar(path) | ReplayDestination::Model { table: Some(path), .. } => {
            let note = path.with_added_extension("progress.json");
            if path.exists() && !note.is_file() {
                return Err(ReplayError::Foreign { path: path.clone(), what: "a file that no export wrote".into() });
            }
            Ok(Some(note))
        }
        ReplayDestination::Subject { template, .. } => {
            republish::check_template(template)?;
            Ok(replay_marker::of_user(&options.asked))
        }
        // A set has one slot per image, a label may be published twice, and printed output is not kept.
        ReplayDestination::Pin(_) | ReplayDestination::Trainer | ReplayDestination::Model { .. } => Ok(None),
    }
}

/// Whether the output itself shows that all images are done, so that running again adds nothing.
fn shows_completion(destination: &ReplayDestination) -> bool {
    !matches!(destination, ReplayDestination::Subject { .. })
}

/// Why no task matches: what exists instead.
async fn explain_no_match(bus: &Bus, site: &SiteName, from: &ImageOrigin) -> Result<String, ReplayError> {
    if let ImageOrigin::Pinned(set) = from {
        return Ok(format!("set {set} has no matching image of site {site}; `tributary retention` lists the sets"));
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
        "site {site} has {} answers from {} to {}, and none of them matches --where and the other conditions",
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
    /// KiB of images that are read and not yet done.
    permits: Arc<Semaphore>,
    summary: ReplaySummary,
    on: &'a mut dyn FnMut(ReplayProgress),
    shutdown: &'a Shutdown,
    begun: ReplayMarker,
    note: Option<PathBuf>,
}

/// Spawns work that continues while the next image is fetched: work that only runs when awaited would keep its permits,
/// and fetching, which waits for permits, would wait forever. Aborted when dropped.
fn spawn_abortable<T: Send + 'static>(
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
            ReplayDestination::Coco(path) => {
                let (folder, known) = CocoFolderWriter::open(&path)?;
                self.write_images(rows, known, DiskWriter::Coco(Box::new(folder))).await
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

    /// Drops images that were done before.
    fn skip_done(&mut self, rows: Vec<TaskRow>, known: &HashSet<TaskId>) -> Vec<TaskRow> {
        let rest: Vec<TaskRow> = rows.into_iter().filter(|row| !known.contains(&row.task)).collect();
        self.summary.before = self.summary.meant - rest.len() as u64;
        rest
    }

    /// Counts an image as done.
    fn through(&mut self, row: &TaskRow, bytes: u64) {
        self.summary.through += 1;
        self.summary.bytes += bytes;
        let source = row.label().map_or("nobody", |(_, source)| source.as_str());
        *self.summary.sources.entry(source).or_default() += 1;
        // Progress faster than a person can read is not sent.
        if self.summary.through.is_multiple_of(PROGRESS_EVERY) {
            self.report_progress();
        }
    }

    fn report_progress(&mut self) {
        let ReplaySummary { through, before, gone, bytes, meant, .. } = &self.summary;
        (self.on)(ReplayProgress::Replaying(through + before + gone, *meant, *bytes));
    }

    /// Fetches images and drops purged ones; `each` gets the rest with their memory permits.
    async fn fetch<'r>(
        &mut self,
        rows: &'r [TaskRow],
        mut each: impl AsyncFnMut(&mut Self, &'r TaskRow, ArchivedImage, OwnedSemaphorePermit) -> Result<(), ReplayError>,
    ) -> Result<(), ReplayError> {
        let (bus, from, permits, shutdown) = (self.bus, self.from, self.permits.clone(), self.shutdown);
        let most = self.permits.available_permits().max(1);
        let mut pace = ReadLimiter::new(bus, self.site, self.beside_mib_per_s, self.most_mib_per_s);
        fetch(bus, from, rows, &mut pace, async |row, image| {
            if shutdown.is_requested() {
                return Err(ReplayError::Interrupted);
            }
            let Some(image) = image else {
                self.summary.gone += 1;
                self.report_progress();
                return Ok(());
            };
            let kib = u32::try_from((image.bytes.len() / 1024 + 1).min(most)).unwrap_or(u32::MAX);
            let permit = permits.clone().acquire_many_owned(kib).await.map_err(|_| ReplayError::Interrupted)?;
            each(self, row, image, permit).await
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
