//! The trainer's main loop: collect → train → submit, repeatedly, on idle CPU time or a small share of a busy site's.

mod send;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use runtime::consumer::WorkerStats;
use runtime::site_key::SiteKey;
use runtime::{Fault, Shutdown, clock, heartbeat, retry_until_found};
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::{
    FaultNote, HardFocus, ModelName, ReleaseId, Role, Round, RoundEvent, RoundTerms, SiteName, TrainerState,
    TrainingHour, TrainingReport,
};
use streams::backoff::{Backoff, wait_about};
use streams::fleet::{HeartbeatBucket, Ledger};
use streams::{Blobs, Bus, Publisher, reader, subject, topology};
use tokio_util::sync::CancellationToken;
use vision::{Model, OnnxRuntime};

use crate::base_weights;
use crate::collection::Collection;
use crate::collector::{Collector, ReadPositions};
use crate::settings::TrainerSettings;
use crate::submit;
use crate::training_copy::TrainingCopy;
use training::checkpoint::{CheckpointFolder, Epoch};
use training::error::TrainError;
use training::examples::{ExampleSplit, Examples};
use training::hard_focus;
use training::pace::{TrainingAccount, TrainingPace};
use training::settings::TrainSettings;
use training::train::{TrainContext, TrainedModel, train_model};
use training::trainable_model::check_task;

use self::send::TrainingOutcome;

const ROLE: Role = Role::Trainer;
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before retrying after a temporary failure.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Runs a site's trainer until shutdown.
pub async fn run(
    bus: Bus,
    site: SiteName,
    onnx: OnnxRuntime,
    model: Model,
    settings: &TrainerSettings,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    check_task(&model).map_err(|error| {
        let remedy = "run the site without a trainer, or give it a model that classifies images";
        Fault::Stop(FaultNote::new("model_untrainable", runtime::fault::error_chain(&error), remedy))
    })?;
    let key = settings.key.as_deref().map(SiteKey::read).transpose();
    let key = key.map_err(|error| {
        let reason = runtime::fault::error_chain(&error);
        Fault::Stop(FaultNote::new("key_unusable", reason, "create one with `tributary key FILE`, or omit trainer.key"))
    })?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open(&bus)).await else { return Ok(()) };
    let Some(ledger) = retry_until_found(&shutdown, || Ledger::open(&bus)).await else { return Ok(()) };
    // Required, because otherwise nobody could tell later what an update learned from.
    let Some(_) = retry_until_found(&shutdown, || reader::stream_level(&bus, topology::LEARNED)).await else {
        return Ok(());
    };
    let note = format!("trained-{}", model.release.short());
    let written = retry_until_found(&shutdown, || ledger.read(&note)).await.flatten();
    let trained: ReadPositions = written.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let collection = Collection::new(&model.labels, &settings.collect);
    let collector = Collector::new(bus.clone(), site.clone(), collection, trained);
    let state = TrainerStatus::default();
    let trainer = Trainer {
        site: site.clone(),
        onnx,
        model: Arc::new(model),
        settings: settings.clone(),
        blobs,
        ledger,
        note,
        publisher: Publisher::new(bus.clone(), PUBLISH_TIMEOUT),
        state: state.clone(),
        key,
        yields: Arc::default(),
        account: Arc::new(TrainingAccount::new(settings.limits.bounds())),
        stop: CancellationToken::new(),
    };
    // A training thread must not outlive the role, whatever ends it.
    let _stop = trainer.stop.clone().drop_guard();
    let worker_stats = Arc::new(WorkerStats::default());
    let release = trainer.model.release.clone();
    let name = trainer.model.description.name.clone();
    let (status, account) = (state.clone(), trainer.account.clone());
    let stats = worker_stats.clone();
    let heartbeats = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site),
        worker_stats,
        shutdown.clone(),
        state.pace(),
        move |beat| {
            let mut report = status.current_beat();
            report.hour = account_hour(&account);
            stats.finished.store(report.sent, Ordering::Relaxed);
            (beat.release, beat.model) = (Some(release.clone()), Some(name.clone()));
            beat.training = Some(report);
        },
    );
    tracing::info!(role = ROLE.as_str(), "started");
    tokio::join!(trainer.run_worker(collector, &shutdown), trainer.watch_queue(&bus, &shutdown), heartbeats);
    tracing::info!(role = ROLE.as_str(), "stopped");
    Ok(())
}

/// What training took in the last hour; `None` if nothing and nothing is owed.
fn account_hour(account: &TrainingAccount) -> Option<TrainingHour> {
    let (hour, least_ratio) = (account.last_hour(), account.bounds().least_ratio);
    (least_ratio > 0.0 || !hour.used.is_zero()).then_some(TrainingHour {
        used_s: hour.used.as_secs_f64(),
        least_ratio,
        longest_piece_ms: hour.longest_busy_piece.as_secs_f64() * 1000.0,
    })
}

/// The trainer's own report in its heartbeat, for `status`.
type TrainerStatus = heartbeat::WorkerReport<TrainingReport>;

fn set_status(state: &TrainerStatus, what: TrainerState, why: impl Into<String>) {
    state.update_report(|report| (report.state, report.why) = (what.into(), why.into()));
}

struct Trainer {
    site: SiteName,
    onnx: OnnxRuntime,
    model: Arc<Model>,
    settings: TrainerSettings,
    blobs: Blobs,
    ledger: Ledger,
    /// Name of the ledger note with how far the streams were read at the last training.
    note: String,
    publisher: Publisher,
    state: TrainerStatus,
    key: Option<SiteKey>,
    yields: Arc<AtomicBool>,
    /// Of all its trainings.
    account: Arc<TrainingAccount>,
    stop: CancellationToken,
}

impl Trainer {
    async fn run_worker(&self, mut collector: Collector, shutdown: &Shutdown) {
        let worker = async {
            loop {
                let pause = match self.train_if_due(&mut collector).await {
                    Ok(()) => Duration::from_secs(self.settings.collect.every_s.into()),
                    Err(fault) => {
                        tracing::warn!(role = ROLE.as_str(), ?fault, "retrying");
                        set_status(&self.state, TrainerState::Failed, describe_fault(&fault));
                        Backoff::steady(RETRY_DELAY).next_pause()
                    }
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = worker => {}
            () = shutdown.wait_for_request() => {}
        }
        // Training stops after its current step; the next start resumes from its checkpoint.
        self.stop.cancel();
    }

    /// Name of the ledger note with the last round that was answered.
    fn answered_round_note(&self) -> String {
        format!("answered-{}", ModelName::from_name(&self.model.description.name))
    }

    /// The open round that selected this site and is not answered yet.
    async fn find_round_request(&self) -> Result<Option<RoundRequest>, Fault> {
        let model = ModelName::from_name(&self.model.description.name);
        let note: Option<Round> = self.ledger.read_message(&subject::round_note(&model)).await?;
        let Some(Round { number, event: RoundEvent::Opened(terms), said_at_ms, .. }) = note else { return Ok(None) };
        let answered =
            self.ledger.read(&self.answered_round_note()).await?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let until_ms = said_at_ms.saturating_add(u64::from(terms.deadline_s) * 1000);
        let wanted = terms.sites.is_empty() || terms.sites.contains(&self.site);
        let open = number > answered && clock::now_ms() < until_ms;
        Ok((wanted && open).then_some(RoundRequest { round: number, terms }))
    }

    /// The base model of a round: the site's own, or the one that came with the round.
    async fn fetch_base(&self, terms: &RoundTerms) -> Result<Arc<Model>, Fault> {
        if terms.base == self.model.release {
            return Ok(self.model.clone());
        }
        let missing = "the round does not name the weights of its base";
        let blob = terms.weights.as_ref().ok_or_else(|| Fault::retry("base_missing", missing))?;
        let into = base_folder(&self.settings.work, &terms.base);
        let file = self.settings.work.join("base.safetensors");
        let (blobs, root) = (&self.blobs, self.model.clone());
        if !base_weights::is_written(&into).await {
            let made = tokio::fs::create_dir_all(&self.settings.work).await;
            made.map_err(|error| Fault::retry("base_unusable", error))?;
            blobs.fetch_to_file(blob, MAX_WEIGHTS_BYTES, &file).await?;
        }
        let written = tokio::task::spawn_blocking(move || base_weights::write(&root, &file, &into)).await;
        let model = written.map_err(|error| Fault::retry("base_unusable", error))?;
        let model = model.map_err(|error| Fault::retry("base_unusable", runtime::fault::error_chain(&error)))?;
        if model.release != terms.base {
            let (found, wanted) = (model.release.short(), terms.base.short());
            let reason = format!(
                "the weights of release {wanted} give release {found} with this site's model, which is a different one"
            );
            return Err(Fault::reject("base_of_other_model", reason, "give the site the same model as the cloud"));
        }
        Ok(Arc::new(model))
    }

    /// The base with the weights that stay at the site.
    async fn with_local_weights(&self, base: Arc<Model>, terms: &RoundTerms) -> Result<Arc<Model>, Fault> {
        if terms.local.is_empty() {
            return Ok(base);
        }
        let (local, work) = (terms.local.clone(), self.settings.work.clone());
        let written = tokio::task::spawn_blocking(move || base_weights::with_own(&base, &local, &work)).await;
        let model = written.map_err(|error| Fault::retry("base_unusable", error))?;
        model.map(Arc::new).map_err(|error| Fault::retry("base_unusable", runtime::fault::error_chain(&error)))
    }

    /// Reads what is new, and trains if there are enough new labels or a round asks for it.
    async fn train_if_due(&self, collector: &mut Collector) -> Result<(), Fault> {
        collector.read_new().await?;
        let request = self.find_round_request().await?;
        let collection = &collector.collection;
        let (fresh, labelled, least) = (collection.fresh(), collection.count(), self.settings.collect.min_new_images);
        self.state.update_report(|report| (report.labelled, report.fresh) = (labelled, fresh));
        // A checkpoint is useless without its images: they are collected again.
        let unfinished = self.find_unfinished(collector).await?;
        let is_unfinished = unfinished.is_some();
        if !is_unfinished && request.is_none() && fresh < u64::from(least) {
            set_status(&self.state, TrainerState::Collecting, format!("{fresh} of {least} new labels"));
            return Ok(());
        }
        if let Some(missing) = collection.missing().filter(|_| !is_unfinished) {
            let round =
                request.map(|request| format!("round {} asks for an update; ", request.round)).unwrap_or_default();
            set_status(&self.state, TrainerState::Collecting, format!("{round}{missing}"));
            return Ok(());
        }
        let marks = collector.marks();
        let base = match &request {
            Some(request) => self.with_local_weights(self.fetch_base(&request.terms).await?, &request.terms).await?,
            None => self.model.clone(),
        };
        // An unfinished training is resumed with the images it started with.
        let copy = match unfinished {
            Some(copy) => copy,
            None => {
                set_status(&self.state, TrainerState::Copying, format!("{labelled} images"));
                collector.copy_images(&self.blobs, &self.settings.work, self.settings.collect.max_mib).await?
            }
        };
        let outcome = self.train(collector, copy, &base, request.as_ref()).await?;
        if let Some(result) = outcome {
            if let Some(request) = &request {
                self.ledger.write(&self.answered_round_note(), request.round.to_string()).await?;
            }
            self.state.update_report(|report| report.last = Some(result));
            let marks = serde_json::to_string(&marks).unwrap_or_default();
            self.ledger.write(&self.note, marks).await?;
            CheckpointFolder::remove(&self.settings.work);
            collector.collection.mark_trained();
        }
        set_status(&self.state, TrainerState::Collecting, "training finished");
        Ok(())
    }

    /// The images of an unfinished training; `None` if there is none, or if labels of its images have been retracted.
    async fn find_unfinished(&self, collector: &Collector) -> Result<Option<TrainingCopy>, Fault> {
        if !CheckpointFolder::are_in(&self.settings.work) || !self.settings.work.join("index.csv").is_file() {
            return Ok(None);
        }
        let copy = TrainingCopy::read(&self.settings.work)?;
        if collector.is_outdated(&copy).await? {
            tracing::info!(role = ROLE.as_str(), "labels retracted; training restarted");
            CheckpointFolder::remove(&self.settings.work);
            return Ok(None);
        }
        Ok(Some(copy))
    }

    /// Trains on the copy images and sends the update. Returns the result in words; `None` if it was interrupted.
    async fn train(
        &self,
        collector: &Collector,
        copy: TrainingCopy,
        base: &Arc<Model>,
        request: Option<&RoundRequest>,
    ) -> Result<Option<String>, Fault> {
        let settings = request.map_or_else(|| self.settings.training(), |request| request.settings(&self.settings));
        self.state.update_report(|report| {
            (report.state, report.why) = (TrainerState::Training.into(), format!("on {} images", copy.images.len()));
            (report.epoch, report.epochs) = (0, self.settings.epochs);
            (report.before, report.after) = (None, None);
        });
        let (ended, end) = tokio::sync::oneshot::channel();
        let focus = request.and_then(|request| request.terms.focus.clone());
        let work = self.training_task(base.clone(), settings.clone(), focus);
        // In a thread of its own, because its scheduling must not stick to a thread that others reuse.
        let thread = std::thread::Builder::new().name(ROLE.to_string()).spawn(move || {
            let _nobody_waits = ended.send(work());
        });
        thread.map_err(|error| Fault::retry("thread_missing", error))?;
        let trained =
            end.await.map_err(|_| Fault::retry("training_broke", "the training thread stopped unexpectedly"))?;
        let (mut trained, samples, hard) = match trained {
            Ok(trained) => trained,
            Err(TrainError::Stopped) => return Ok(None),
            Err(error) => {
                let why = format!("no update sent: {}", runtime::fault::error_chain(&error));
                tracing::warn!(role = ROLE.as_str(), why, "training failed");
                return Ok(Some(why));
            }
        };
        // An update for a round is judged by the aggregator, on more images than the few in this holdout.
        if let Some(why) = trained.has_no_gain().filter(|_| request.is_none()) {
            let why = format!("no update sent: {why}");
            tracing::info!(role = ROLE.as_str(), why, "training did not improve the model on the holdout");
            return Ok(Some(why));
        }
        let local = request.map(|request| &request.terms.local[..]).unwrap_or_default();
        base_weights::keep_own(&mut trained.weights, local, &self.settings.work)
            .map_err(|error| Fault::retry("weights_unkept", runtime::fault::error_chain(&error)))?;
        let file = match submit::file(&trained, self.settings.weight_format) {
            Ok(file) => file,
            Err(fault) => return Ok(Some(format!("no update sent: {}", describe_fault(&fault)))),
        };
        let outcome = TrainingOutcome { copy, settings, samples, hard, file };
        let Some(update) = self.send(collector, outcome, &trained, base, request).await? else { return Ok(None) };
        let right = |measured: schemas::ModelAccuracy| format!("{:.1} %", measured.accuracy_ratio * 100.0);
        let result = format!(
            "update sent ({} bytes): {} right instead of {} on {} holdout images",
            update.weights.size_bytes,
            right(update.after),
            right(update.before),
            update.after.images
        );
        tracing::info!(role = ROLE.as_str(), update = %update.id(), size_bytes = update.weights.size_bytes, "update sent");
        self.state.update_report(|report| report.sent += 1);
        Ok(Some(result))
    }

    /// Builds the training as a closure for its own thread.
    fn training_task(
        &self,
        model: Arc<Model>,
        settings: TrainSettings,
        focus: Option<HardFocus>,
    ) -> impl FnOnce() -> Result<(TrainedModel, BTreeMap<String, u64>, u64), TrainError> + Send + use<> {
        let onnx = self.onnx.clone();
        let (state, yields, stop) = (self.state.clone(), self.yields.clone(), self.stop.clone());
        let account = self.account.clone();
        let (work, limits) = (self.settings.work.clone(), self.settings.limits.clone());
        move || {
            let mut examples = Examples::read(&work, &model.labels, settings.holdout_ratio)?;
            if let Some(focus) = &focus {
                hard_focus::apply(focus, &onnx, &model, &mut examples, settings.threads, &stop)?;
            }
            let every = Duration::from_secs(limits.checkpoint_every_s.into());
            let context = TrainContext {
                stop: &stop,
                pace: Arc::new(TrainingPace::background(limits.memory_max_mib, account, yields)),
                checkpoints: Some(CheckpointFolder::new(&work, every)),
            };
            let see = |epoch: &Epoch| {
                state.update_report(|report| {
                    report.epoch = epoch.number;
                    let place = if epoch.number == 0 { &mut report.before } else { &mut report.after };
                    *place = Some(epoch.held_out);
                });
            };
            let trained = train_model(&onnx, &model, &examples, &settings, context, see)?;
            let hard = examples.of(ExampleSplit::Train).filter(|example| example.hard).count() as u64;
            Ok((trained, submit::samples(&examples, &model.labels), hard))
        }
    }

    /// Follows the recognizers' heartbeats to pause training while work is queued for them.
    async fn watch_queue(&self, bus: &Bus, shutdown: &Shutdown) {
        let watch = async {
            loop {
                if let Ok(fleet) = HeartbeatBucket::open(bus).await
                    && let Ok(mut beats) = fleet.follow_heartbeats(Role::Recognizer).await
                {
                    while let Some(beat) = beats.next().await {
                        let waits_s = beat.decision.map_or(0.0, |decision| decision.queue_s);
                        let yields = waits_s > self.settings.limits.yield_queue_s;
                        let before = self.yields.swap(yields, Ordering::Relaxed);
                        let doing = self.state.current_beat().state;
                        if before != yields
                            && matches!(doing.known(), Some(TrainerState::Training | TrainerState::Yielding))
                        {
                            let state = if yields { TrainerState::Yielding } else { TrainerState::Training };
                            set_status(
                                &self.state,
                                state,
                                format!("{waits_s:.1} s of work are queued for the recognizers"),
                            );
                        }
                    }
                }
                // Without heartbeats the queue is unknown, and training does not pause for it.
                self.yields.store(false, Ordering::Relaxed);
                wait_about(RETRY_DELAY).await;
            }
        };
        tokio::select! {
            () = watch => {}
            () = shutdown.wait_for_request() => {}
        }
    }
}

/// A round that selected this site.
struct RoundRequest {
    round: u64,
    terms: RoundTerms,
}

impl RoundRequest {
    /// The site's settings with the terms of the round.
    fn settings(&self, own: &TrainerSettings) -> TrainSettings {
        TrainSettings { trainable: self.terms.trainable.clone(), ..own.training() }
    }
}

/// Folder of a round's base model.
fn base_folder(work: &Path, release: &ReleaseId) -> PathBuf {
    work.join("bases").join(release.as_str())
}

fn describe_fault(fault: &Fault) -> String {
    match fault {
        Fault::Reject(note) | Fault::Stop(note) | Fault::Retry { note, .. } => {
            format!("{} ({}): {}", note.reason, note.kind, note.remedy)
        }
        Fault::Wait { .. } => "later".into(),
    }
}
