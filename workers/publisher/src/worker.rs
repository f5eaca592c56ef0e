//! The walk of an image on its way in: source → load → tile → send → report.
//!
//! Up to `max_in_flight` images walk at once. A file that cannot be published is refused by name and the
//! others go on; a stream that takes nothing more stops the run, and what was not acknowledged is not
//! in the journal, so that the next run takes it up.

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

/// Tiles of one scan cut and not yet sent: one is cut while another waits.
const TILES_AHEAD: usize = 2;
/// Tiles of one scan on their way at once; a guess.
const TILES_IN_FLIGHT: usize = 8;
/// An image of a generator that leaves later than this after its time is late: above the grain of the
/// timer, 1 ms.
const LATE: Duration = Duration::from_millis(5);

/// What one run is asked for, beyond settings.
#[derive(Debug, Default)]
pub struct PublishOptions {
    /// Publishes everything as new tasks, told from those of other names. Absent: what was published
    /// before is not published again.
    pub again: Option<String>,
    /// Where acknowledged files are noted; absent notes nothing.
    pub journal: Option<JournalLocation>,
    /// Where progress is shown.
    pub progress: PublishProgress,
    /// What every image is sent with.
    pub mark: RunHeaders,
    /// Hears of every task that is in the stream. Publishing waits for it, so it must be read.
    pub acknowledged: Option<mpsc::Sender<AcknowledgedTask>>,
}

/// A task that is in the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct AcknowledgedTask {
    /// Its id.
    pub task: TaskId,
    /// Where it is, and whether it was there before.
    pub placed: PublishOutcome,
    /// The file it came from.
    pub path: PathBuf,
    /// Which page of the file it is, from 1, if pages are published one by one.
    pub page: Option<u32>,
    /// Which part of the file or page it is, if that was a scan.
    pub tile: Option<Tile>,
    /// The true label, if known.
    pub label: Option<String>,
    /// Size of the image, bytes.
    pub size_bytes: u64,
    /// From when it was due (generator) or found to the acknowledgement.
    pub elapsed: Duration,
}

/// Publishes what a source holds, until it ends or a stop is wanted; what is in flight then is finished.
///
/// # Errors
/// When nothing could be published, and when the stream or the source takes the run down.
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
    let PublishOptions { again, journal, mut progress, mark, acknowledged } = options;
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
        format!("{site}\n{camera}\n{again:?}\n{tile:?}{pages}\n{source}")
    });
    let (known, journal) = match (journal, identity) {
        (Some(place), Some(identity)) => Journal::open(place.path(&identity), bus).await,
        _ => (PublishedFiles::default(), Journal::default()),
    };
    let settings = Arc::new(settings.clone());
    let walk = Arc::new(ImageWorker {
        load: ImageLoader::new(site, again.as_deref(), &settings),
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
    let ended = run.all(&walk, source, cameras, &mut progress).await;
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

/// The run: what is in flight and what became of the rest.
struct PublishRun {
    flight: JoinSet<ImageOutcome>,
    summary: PublishSummary,
    journal: Journal,
}

impl PublishRun {
    async fn all(
        &mut self,
        walk: &Arc<ImageWorker>,
        source: ImageSource,
        cameras: CameraNaming,
        progress: &mut PublishProgress,
    ) -> Result<RunEnd, StopReason> {
        let is_endless = source.is_endless();
        let opened = tokio::select! {
            biased;
            () = walk.shutdown.wait_for_request() => return Ok(RunEnd::Interrupted),
            opened = source::open(source, cameras, &walk.settings) => opened,
        };
        let mut feed = opened.map_err(StopReason::Source)?;
        progress.begin(feed.total);
        let mut ended = loop {
            tokio::select! {
                biased;
                () = walk.shutdown.wait_for_request() => break Ok(RunEnd::Interrupted),
                Some(walked) = self.flight.join_next() => {
                    if let Err(stop) = self.tally(walked, progress).await {
                        break Err(stop);
                    }
                }
                item = feed.next(), if self.flight.len() < walk.settings.max_in_flight => match item {
                    Some(SourceEvent::Found(found)) => self.start(walk, found),
                    Some(SourceEvent::Refused(refused)) => self.summary.count_refused(refused),
                    Some(SourceEvent::PassedOver(kind)) => self.summary.count_skipped(kind),
                    Some(SourceEvent::Note(note)) => {
                        // A summary comes too late where there is no end.
                        if is_endless {
                            tracing::warn!("{note}");
                        }
                        self.summary.add_note(note);
                    }
                    Some(SourceEvent::Broken(error)) => break Err(StopReason::Source(error)),
                    None => break Ok(RunEnd::Through),
                },
            }
        };
        while let Some(walked) = self.flight.join_next().await {
            let tallied = self.tally(walked, progress).await;
            ended = ended.and_then(|ended| tallied.map(|()| ended));
        }
        ended
    }

    fn start(&mut self, walk: &Arc<ImageWorker>, found: SourceItem) {
        let now = Instant::now();
        let begun = found.due.unwrap_or(now);
        if now > begun + LATE {
            self.summary.add_delay(now - begun);
        }
        let walk = walk.clone();
        self.flight.spawn(async move { walk.image(found, begun).await });
    }

    async fn tally(
        &mut self,
        walked: Result<ImageOutcome, tokio::task::JoinError>,
        progress: &mut PublishProgress,
    ) -> Result<(), StopReason> {
        let walked = walked.unwrap_or_else(|error| ImageOutcome {
            ending: ImageEnd::Refused(RefusedFile {
                file: "an image".into(),
                reason: format!("publishing it broke: {error}"),
            }),
            ..ImageOutcome::default()
        });
        self.summary.published += walked.published;
        self.summary.duplicates += walked.duplicates;
        self.summary.bytes += walked.bytes;
        self.summary.scans += u64::from(walked.is_scan);
        progress.step(walked.bytes);
        match walked.ending {
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

/// What became of one image.
#[derive(Default)]
struct ImageOutcome {
    published: u64,
    duplicates: u64,
    bytes: u64,
    is_scan: bool,
    ending: ImageEnd,
}

impl ImageOutcome {
    /// Counts a message; its sequence in the stream.
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
    /// All of it is in the stream; with what the journal notes.
    Complete(Option<Box<JournalEntry>>),
    /// It was published by an earlier run.
    Known,
    Refused(RefusedFile),
    /// A scan of which some tiles were not sent because a stop was wanted.
    #[default]
    Interrupted,
    Stopped(CarryError),
}

/// Everything an image needs on its way.
struct ImageWorker {
    load: ImageLoader,
    send: ImageSender,
    /// Scans decoded at once: they are what takes memory.
    scans: Semaphore,
    settings: Arc<PublisherSettings>,
    known: PublishedFiles,
    acknowledged: Option<mpsc::Sender<AcknowledgedTask>>,
    shutdown: Shutdown,
}

impl ImageWorker {
    async fn image(&self, found: SourceItem, begun: Instant) -> ImageOutcome {
        let mut walked = ImageOutcome::default();
        walked.ending = match self.process_image(found, begun, &mut walked).await {
            Ok(ending) | Err(ending) => ending,
        };
        walked
    }

    /// Both sides are endings; the left one has a question mark.
    async fn process_image(
        &self,
        found: SourceItem,
        begun: Instant,
        walked: &mut ImageOutcome,
    ) -> Result<ImageEnd, ImageEnd> {
        if self.is_known(&found).await {
            return Ok(ImageEnd::Known);
        }
        let refused = |reason: &dyn std::fmt::Display| ImageEnd::Refused(RefusedFile::new(&found.path, reason));
        let image = self.load.load(&found).await.map_err(|error| refused(&error))?;
        let path = std::path::absolute(&found.path).unwrap_or_else(|_| found.path.clone());
        if self.known.has_content(&path, image.id) {
            return Ok(ImageEnd::Known);
        }
        let LoadedImage { id, bytes, is_scan, captured_at_ms, stamp, .. } = &image;
        let message = ImageMessage {
            id: *id,
            camera: found.camera.clone(),
            payload: bytes.clone(),
            file: found.file.clone(),
            page: None,
            label: found.label.clone().or_else(|| self.send.mark.label.clone()),
            captured_at_ms: *captured_at_ms,
            tile: None,
        };
        let from = MessageOrigin { found: &found, begun };
        let sequence = match is_scan {
            false => walked.count(self.send_image(&message, &from).await?, bytes.len()),
            true => self.scan(message, &from, walked).await?,
        };
        Ok(ImageEnd::Complete(stamp.map(|stamp| Box::new(JournalEntry { id: *id, sequence, stamp, path }))))
    }

    /// By the looks of it, without reading it.
    async fn is_known(&self, found: &SourceItem) -> bool {
        if self.known.is_empty() || found.bytes.is_some() || found.due.is_some() {
            return false;
        }
        let Ok(path) = std::path::absolute(&found.path) else { return false };
        let (looked_at, stamp) = (path.clone(), tokio::task::spawn_blocking(move || FileStamp::of(&path)).await);
        stamp.ok().flatten().is_some_and(|stamp| self.known.has_unchanged(&looked_at, stamp))
    }

    /// Sends one message and says so.
    async fn send_image(&self, message: &ImageMessage, from: &MessageOrigin<'_>) -> Result<PublishOutcome, ImageEnd> {
        let placed = match self.send.send(message).await {
            Ok(placed) => placed,
            Err(error @ CarryError::TooLarge { .. }) => {
                return Err(ImageEnd::Refused(RefusedFile::new(&from.found.path, error)));
            }
            Err(error) => return Err(ImageEnd::Stopped(error)),
        };
        if let Some(acknowledged) = &self.acknowledged {
            let told = AcknowledgedTask {
                task: message.id,
                placed,
                path: from.found.path.clone(),
                page: message.page,
                tile: message.tile.clone(),
                label: message.label.clone(),
                size_bytes: message.payload.len() as u64,
                elapsed: from.begun.elapsed(),
            };
            let _nobody_listens = acknowledged.send(told).await;
        }
        Ok(placed)
    }

    /// Cuts a scan and sends its pages and tiles. They have sequences, the scan has none.
    async fn scan(
        &self,
        whole: ImageMessage,
        from: &MessageOrigin<'_>,
        walked: &mut ImageOutcome,
    ) -> Result<u64, ImageEnd> {
        let _turn = self.scans.acquire().await.map_err(|_| ImageEnd::Interrupted)?;
        if self.shutdown.is_requested() {
            return Err(ImageEnd::Interrupted);
        }
        let (tiles, cut) = mpsc::channel(TILES_AHEAD);
        let settings = self.settings.clone();
        let cutting = tokio::task::spawn_blocking(move || tile::cut(&whole, &settings, &tiles));
        let all_sent = self.tiles(cut, from, walked).await;
        let all_cut = cutting.await;
        all_sent?;
        match all_cut {
            Ok(Ok(())) if self.shutdown.is_requested() => Err(ImageEnd::Interrupted),
            Ok(Ok(())) => {
                walked.is_scan = true;
                Ok(0)
            }
            Ok(Err(error)) => Err(ImageEnd::Refused(RefusedFile::new(&from.found.path, error))),
            Err(error) => {
                Err(ImageEnd::Refused(RefusedFile::new(&from.found.path, format!("cutting it broke: {error}"))))
            }
        }
    }

    /// Sends tiles as they are cut, until there are no more or a stop is wanted.
    async fn tiles(
        &self,
        mut cut: mpsc::Receiver<ImageMessage>,
        from: &MessageOrigin<'_>,
        walked: &mut ImageOutcome,
    ) -> Result<(), ImageEnd> {
        let mut sending = FuturesUnordered::new();
        let mut more = true;
        while more || !sending.is_empty() {
            tokio::select! {
                Some((size_bytes, placed)) = sending.next(), if !sending.is_empty() => {
                    walked.count(placed?, size_bytes);
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

/// What a message came from.
struct MessageOrigin<'a> {
    found: &'a SourceItem,
    begun: Instant,
}
