//! The path of a published image: source → load → tile → send → report.
//!
//! Up to `max_in_flight` images are processed at once. A file that cannot be published is refused by name and the rest
//! continues; a full stream stops the run. Images that were not acknowledged are not in the journal, so the next run
//! publishes them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use runtime::Shutdown;
use schemas::{SiteName, TaskId, Tile};
use streams::{Bus, CarryError, PublishOutcome};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::failure::PublishFailure;
use crate::image_loader::{FileStamp, ImageLoader, LoadedImage};
use crate::image_sender::{ImageMessage, ImageSender, RunHeaders, check_label};
use crate::journal::{Journal, JournalEntry, JournalLocation, PublishedFiles};
use crate::progress::PublishProgress;
use crate::report::{PublishSummary, RefusedFile};
use crate::settings::{PageSelection, PublisherSettings};
use crate::source::{self, CameraNaming, ImageSource, SourceError, SourceEvent, SourceItem};
use crate::tile;

/// Tiles cut ahead of sending, per scan: one is cut while another waits.
const TILES_AHEAD: usize = 2;
/// Tiles of one scan in flight; an estimate.
const TILES_IN_FLIGHT: usize = 8;
/// A generator's image counts as late when it is sent this long after its time: above the timer's resolution of 1 ms.
const LATE_AFTER: Duration = Duration::from_millis(5);

/// Options of one run, beyond the settings.
#[derive(Debug, Default)]
pub struct PublishOptions {
    /// Name of a run that publishes everything as new tasks; the same name gives the same tasks. Absent: files published
    /// before are not published again.
    pub run_id: Option<String>,
    /// Where acknowledged files are recorded; absent: nowhere.
    pub journal: Option<JournalLocation>,
    /// How progress is shown.
    pub progress: PublishProgress,
    /// Headers of every image.
    pub mark: RunHeaders,
    /// Receives every task that is in the stream. Publishing waits for the receiver, so it must be read.
    pub acknowledged: Option<mpsc::Sender<AcknowledgedTask>>,
}

/// A task that is in the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct AcknowledgedTask {
    /// Id of the task.
    pub task: TaskId,
    /// Its place in the stream, and whether it was there before.
    pub placed: PublishOutcome,
    /// The file it came from.
    pub path: PathBuf,
    /// Page number in the file, from 1; absent unless pages are published one by one.
    pub page: Option<u32>,
    /// Its part of the file or page; absent unless that was a scan.
    pub tile: Option<Tile>,
    /// The true label, if known.
    pub label: Option<String>,
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Time from when it was due (generator) or found to the acknowledgement.
    pub elapsed: Duration,
}

/// Publishes a source until it ends or a stop is requested; images in flight are finished.
///
/// # Errors
/// Nothing could be published, or the stream or the source failed.
pub async fn publish_images(
    bus: &Bus,
    site: &SiteName,
    cameras: CameraNaming,
    source: ImageSource,
    settings: &PublisherSettings,
    options: PublishOptions,
    shutdown: &Shutdown,
) -> Result<PublishSummary, PublishFailure> {
    settings.check().map_err(|why| PublishFailure::Settings { why })?;
    let PublishOptions { run_id, journal, mut progress, mark, acknowledged } = options;
    if let Some(Err(error)) = mark.label.as_deref().map(check_label) {
        return Err(PublishFailure::Settings { why: format!("label: {error}") });
    }
    let identity = source.identity().map(|source| {
        let tile = (settings.tile.tile_px, settings.tile.overlap_px, settings.tile.limit_px());
        let camera = match &cameras {
            CameraNaming::One(camera) => camera.to_string(),
            CameraNaming::FromFolders => "from folders".into(),
        };
        let pages = if settings.pages == PageSelection::All { "\npages" } else { "" };
        format!("{site}\n{camera}\n{run_id:?}\n{tile:?}{pages}\n{source}")
    });
    let (known, journal) = match (journal, identity) {
        (Some(place), Some(identity)) => Journal::open(place.path(&identity), bus).await,
        _ => (PublishedFiles::default(), Journal::default()),
    };
    let settings = Arc::new(settings.clone());
    let worker = Arc::new(ImageWorker {
        load: ImageLoader::new(site, run_id.as_deref(), &settings),
        send: ImageSender::new(bus, site, mark, Duration::from_secs(settings.retry_timeout_s)),
        scans: Semaphore::new(1),
        settings,
        known,
        acknowledged,
        shutdown: shutdown.clone(),
    });
    let endless = source.is_endless();
    let mut run = PublishRun { flight: JoinSet::new(), summary: PublishSummary::default(), journal };
    let start = Instant::now();
    let ended = run.run_all(&worker, source, cameras, &mut progress).await;
    progress.end();
    let PublishRun { mut summary, journal, .. } = run;
    journal.close().await;
    summary.elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let interrupted = matches!(ended, Ok(RunEnd::Interrupted));
    summary.interrupted = interrupted && !endless;
    let anything = summary.has_stored_images();
    let summary = Box::new(summary);
    match ended {
        Err(StopReason::Carry(source @ CarryError::Full { .. })) => Err(PublishFailure::Full { summary, source }),
        Err(StopReason::Carry(source)) => Err(PublishFailure::Stopped { summary, source }),
        Err(StopReason::Source(source)) if anything => Err(PublishFailure::Broken { summary, source }),
        Err(StopReason::Source(source)) => Err(PublishFailure::Source(source)),
        Ok(_) if !anything && !interrupted => Err(PublishFailure::Nothing { summary }),
        Ok(_) => Ok(*summary),
    }
}

enum RunEnd {
    Through,
    Interrupted,
}

enum StopReason {
    Carry(CarryError),
    Source(SourceError),
}

/// A run: images in flight, and the summary so far.
struct PublishRun {
    flight: JoinSet<ImageOutcome>,
    summary: PublishSummary,
    journal: Journal,
}

impl PublishRun {
    async fn run_all(
        &mut self,
        worker: &Arc<ImageWorker>,
        source: ImageSource,
        cameras: CameraNaming,
        progress: &mut PublishProgress,
    ) -> Result<RunEnd, StopReason> {
        let is_endless = source.is_endless();
        let opened = tokio::select! {
            biased;
            () = worker.shutdown.wait_for_request() => return Ok(RunEnd::Interrupted),
            opened = source::open(source, cameras, &worker.settings) => opened,
        };
        let mut feed = opened.map_err(StopReason::Source)?;
        progress.begin(feed.total);
        let mut ended = loop {
            tokio::select! {
                biased;
                () = worker.shutdown.wait_for_request() => break Ok(RunEnd::Interrupted),
                Some(outcome) = self.flight.join_next() => {
                    if let Err(stop) = self.count_outcome(outcome, progress).await {
                        break Err(stop);
                    }
                }
                item = feed.next(), if self.flight.len() < worker.settings.max_in_flight => match item {
                    Some(SourceEvent::Found(item)) => self.start(worker, item),
                    Some(SourceEvent::Refused(refused)) => self.summary.count_refused(refused),
                    Some(SourceEvent::PassedOver(kind)) => self.summary.count_skipped(kind),
                    Some(SourceEvent::Note(note)) => {
                        // An endless run has no summary in time.
                        if is_endless {
                            tracing::warn!(note, "source noted");
                        }
                        self.summary.add_note(note);
                    }
                    Some(SourceEvent::Broken(error)) => break Err(StopReason::Source(error)),
                    None => break Ok(RunEnd::Through),
                },
            }
        };
        while let Some(outcome) = self.flight.join_next().await {
            let counted = self.count_outcome(outcome, progress).await;
            ended = ended.and_then(|ended| counted.map(|()| ended));
        }
        ended
    }

    fn start(&mut self, worker: &Arc<ImageWorker>, item: SourceItem) {
        let now = Instant::now();
        let begun = item.due.unwrap_or(now);
        if now > begun + LATE_AFTER {
            self.summary.add_delay(now - begun);
        }
        let worker = worker.clone();
        self.flight.spawn(async move { worker.run_image(item, begun).await });
    }

    async fn count_outcome(
        &mut self,
        outcome: Result<ImageOutcome, tokio::task::JoinError>,
        progress: &mut PublishProgress,
    ) -> Result<(), StopReason> {
        let outcome = outcome.unwrap_or_else(|error| ImageOutcome {
            ending: ImageEnd::Refused(RefusedFile {
                file: "an image".into(),
                reason: format!("publishing it stopped unexpectedly: {error}"),
            }),
            ..ImageOutcome::default()
        });
        self.summary.published += outcome.published;
        self.summary.duplicates += outcome.duplicates;
        self.summary.bytes += outcome.bytes;
        self.summary.scans += u64::from(outcome.is_scan);
        progress.step(outcome.bytes);
        match outcome.ending {
            ImageEnd::Complete(entry) => {
                if let Some(entry) = entry {
                    self.journal.record_file(&entry).await;
                }
            }
            ImageEnd::Known => self.summary.skipped += 1,
            ImageEnd::Refused(refused) => self.summary.count_refused(refused),
            ImageEnd::Interrupted => {}
            ImageEnd::Stopped(error) => return Err(StopReason::Carry(error)),
        }
        Ok(())
    }
}

/// Result of one image.
#[derive(Default)]
struct ImageOutcome {
    published: u64,
    duplicates: u64,
    bytes: u64,
    is_scan: bool,
    ending: ImageEnd,
}

impl ImageOutcome {
    /// Counts a message; returns its sequence in the stream.
    fn count(&mut self, placed: PublishOutcome, size_bytes: usize) -> u64 {
        match placed {
            PublishOutcome::Stored(sequence) => {
                self.published += 1;
                self.bytes += size_bytes as u64;
                sequence
            }
            PublishOutcome::Duplicate(sequence) => {
                self.duplicates += 1;
                sequence
            }
            PublishOutcome::Taken => 0,
        }
    }
}

#[derive(Default)]
enum ImageEnd {
    /// All of it is in the stream; with its journal entry.
    Complete(Option<Box<JournalEntry>>),
    /// An earlier run published it.
    Known,
    Refused(RefusedFile),
    /// A scan of which some tiles were not sent because of a stop request.
    #[default]
    Interrupted,
    Stopped(CarryError),
}

/// Everything needed to process an image.
struct ImageWorker {
    load: ImageLoader,
    send: ImageSender,
    /// Limits scans decoded at once, which take the most memory.
    scans: Semaphore,
    settings: Arc<PublisherSettings>,
    known: PublishedFiles,
    acknowledged: Option<mpsc::Sender<AcknowledgedTask>>,
    shutdown: Shutdown,
}

impl ImageWorker {
    async fn run_image(&self, item: SourceItem, begun: Instant) -> ImageOutcome {
        let mut outcome = ImageOutcome::default();
        outcome.ending = match self.process_image(item, begun, &mut outcome).await {
            Ok(ending) | Err(ending) => ending,
        };
        outcome
    }

    /// Both sides of the result are ends; the error side allows the question mark.
    async fn process_image(
        &self,
        item: SourceItem,
        begun: Instant,
        outcome: &mut ImageOutcome,
    ) -> Result<ImageEnd, ImageEnd> {
        if self.is_known(&item).await {
            return Ok(ImageEnd::Known);
        }
        let refused = |reason: &dyn std::fmt::Display| ImageEnd::Refused(RefusedFile::new(&item.path, reason));
        let image = self.load.load(&item).await.map_err(|error| refused(&error))?;
        let path = std::path::absolute(&item.path).unwrap_or_else(|_| item.path.clone());
        if self.known.has_content(&path, image.id) {
            return Ok(ImageEnd::Known);
        }
        let LoadedImage { id, bytes, is_scan, captured_at_ms, stamp, .. } = &image;
        let message = ImageMessage {
            id: *id,
            camera: item.camera.clone(),
            payload: bytes.clone(),
            file: item.file.clone(),
            page: None,
            label: item.label.clone().or_else(|| self.send.mark.label.clone()),
            captured_at_ms: *captured_at_ms,
            tile: None,
        };
        let from = MessageOrigin { item: &item, begun };
        let sequence = match is_scan {
            false => outcome.count(self.send_image(&message, &from).await?, bytes.len()),
            true => self.send_scan(message, &from, outcome).await?,
        };
        Ok(ImageEnd::Complete(stamp.map(|stamp| Box::new(JournalEntry { id: *id, sequence, stamp, path }))))
    }

    /// Whether the journal has the file, judged without reading it.
    async fn is_known(&self, item: &SourceItem) -> bool {
        if self.known.is_empty() || item.bytes.is_some() || item.due.is_some() {
            return false;
        }
        let Ok(path) = std::path::absolute(&item.path) else { return false };
        let (looked_at, stamp) = (path.clone(), tokio::task::spawn_blocking(move || FileStamp::of(&path)).await);
        stamp.ok().flatten().is_some_and(|stamp| self.known.has_unchanged(&looked_at, stamp))
    }

    /// Sends one message and reports it.
    async fn send_image(&self, message: &ImageMessage, from: &MessageOrigin<'_>) -> Result<PublishOutcome, ImageEnd> {
        let placed = match self.send.send(message).await {
            Ok(placed) => placed,
            Err(error @ CarryError::TooLarge { .. }) => {
                return Err(ImageEnd::Refused(RefusedFile::new(&from.item.path, error)));
            }
            Err(error) => return Err(ImageEnd::Stopped(error)),
        };
        if let Some(acknowledged) = &self.acknowledged {
            let task = AcknowledgedTask {
                task: message.id,
                placed,
                path: from.item.path.clone(),
                page: message.page,
                tile: message.tile.clone(),
                label: message.label.clone(),
                size_bytes: message.payload.len() as u64,
                elapsed: from.begun.elapsed(),
            };
            let _nobody_listens = acknowledged.send(task).await;
        }
        Ok(placed)
    }

    /// Cuts a scan and sends its pages and tiles. They have sequences, the scan has none.
    async fn send_scan(
        &self,
        whole: ImageMessage,
        from: &MessageOrigin<'_>,
        outcome: &mut ImageOutcome,
    ) -> Result<u64, ImageEnd> {
        let _turn = self.scans.acquire().await.map_err(|_| ImageEnd::Interrupted)?;
        if self.shutdown.is_requested() {
            return Err(ImageEnd::Interrupted);
        }
        let (tiles, cut) = mpsc::channel(TILES_AHEAD);
        let settings = self.settings.clone();
        let cutting = tokio::task::spawn_blocking(move || tile::cut(&whole, &settings, &tiles));
        let all_sent = self.send_tiles(cut, from, outcome).await;
        let all_cut = cutting.await;
        all_sent?;
        match all_cut {
            Ok(Ok(())) if self.shutdown.is_requested() => Err(ImageEnd::Interrupted),
            Ok(Ok(())) => {
                outcome.is_scan = true;
                Ok(0)
            }
            Ok(Err(error)) => Err(ImageEnd::Refused(RefusedFile::new(&from.item.path, error))),
            Err(error) => Err(ImageEnd::Refused(RefusedFile::new(
                &from.item.path,
                format!("cutting it stopped unexpectedly: {error}"),
            ))),
        }
    }

    /// Sends tiles as they are cut, until the end or a stop request.
    async fn send_tiles(
        &self,
        mut cut: mpsc::Receiver<ImageMessage>,
        from: &MessageOrigin<'_>,
        outcome: &mut ImageOutcome,
    ) -> Result<(), ImageEnd> {
        let mut sending = FuturesUnordered::new();
        let mut more = true;
        while more || !sending.is_empty() {
            tokio::select! {
                Some((size_bytes, placed)) = sending.next(), if !sending.is_empty() => {
                    outcome.count(placed?, size_bytes);
                }
                tile = cut.recv(), if more && sending.len() < TILES_IN_FLIGHT => {
                    match tile.filter(|_| !self.shutdown.is_requested()) {
                        Some(tile) => {
                            sending.push(async move { (tile.payload.len(), self.send_image(&tile, from).await) });
                        }
                        None => more = false,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where a message came from.
struct MessageOrigin<'a> {
    item: &'a SourceItem,
    begun: Instant,
}
