//! One image's walk: accept → admit → fetch → decode → batch → infer → gate → report.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use decisions::admit::AdmitInput;
use decisions::escalation::{Escalation, EscalationCap, EscalationInput, escalate};
use decisions::gate::{Gate, GateSettings, TestedScores};
use decisions::policy::{EnergySettings, PolicyName};
use decisions::verify::{PayloadKind, VerifySettings};
use decisions::{EffectiveSettings, hash_fraction};
use rollout::order_watch;
use rollout::release_counter::ReleaseCounter;
use rollout::report::SwapReporter;
use rollout::serving_model::ServingModel;
use rollout::swap::ModelSwapper;
use runtime::consumer::WorkerStats;
use runtime::drift::{DriftKind, DriftSample, DriftWatch};
use runtime::handler::DeadLetterContext;
use runtime::ticket::TicketKey;
use runtime::{
    ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, clock, consume, heartbeat, metrics,
    retry_until_found,
};
use scaling::Scaler;
use schemas::answer::Timings;
use schemas::decision_trace::{EscalationTrace, Network};
use schemas::limits::{MAX_EMBEDDED_BYTES, MAX_IMAGE_BYTES};
use schemas::task::{HEADER_FILE, StorageStamp};
use schemas::{CameraName, DecisionTrace, FaultNote, ModelName, Order, Reason, Role, Route, SiteName, Task, TaskId};
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Blobs, Bus, Delivery, Publisher, subject, topology};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use vision::{InferenceError, InferencePool, Model};

use crate::accept::accept_task;
use crate::admission::{Admission, Placement};
use crate::learner::VerdictLearner;
use crate::offload::{OffloadOutcome, Offloader};
use crate::report::{self, AnswerReporter, EdgeResult};
use crate::settings::RecognizerSettings;
use crate::signals::Signals;

/// How long a publication is retried before its image is handed back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Images held for each place in a batch: one in the model, and the others so that what the server and
/// we say to each other is said for several images at once. Twice as few cost 0.1 ms an image more.
const CREDITS_PER_SLOT: usize = 8;
/// Answers that the learner looks at, at a time.
const LEARN_AT_ONCE: usize = 64;
/// The status shows what is decided.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// The recognizer of a site.
pub struct Recognizer {
    site: SiteName,
    blobs: Blobs,
    tickets: TicketKey,
    infer: InferencePool,
    gate: GateSettings,
    verify: VerifySettings,
    admission: Arc<Admission>,
    away: Offloader,
    learner: Option<VerdictLearner>,
    /// What came of each release.
    counter: ReleaseCounter,
    /// What answers are like, compared with the first ones of the release.
    drift: DriftWatch,
    /// What the site shall run; with an order there is somebody who holds releases against each other.
    orders: watch::Receiver<Option<Order>>,
    share: Mutex<EscalationCap>,
    /// Turns of the baseline, which does nothing else while it waits: one for each replica.
    turns: Semaphore,
}

impl Recognizer {
    async fn answer(
        &self,
        task: &Task,
        delivery: &Delivery,
        credit: &MessageCredit,
    ) -> Result<OutgoingMessages, Fault> {
        let queue_us = micros(clock::since_ns(delivery.stored_at_ns));
        accept_task(task, delivery.payload().len()).map_err(|refusal| Fault::Reject(refusal.into()))?;
        let _turn = match self.admission.signals.policy().name {
            PolicyName::HardExample => self.turns.acquire().await.ok(),
            _ => None,
        };
        let (way, mut decided) = self.admission.decide(self.candidate(task, delivery), self.infer.cost_ms()).await;
        let _local = match way {
            Placement::Local(local) => local,
            Placement::Redirect => match self.offload(task, delivery.payload(), credit, &decided).await? {
                OffloadOutcome::Answered => return Ok(OutgoingMessages::default()),
                OffloadOutcome::TakenBack => self.admission.reclaim_task(),
            },
        };
        let (bytes, fetch_us) = self.fetch(task, delivery).await?;
        let mut found = self.recognize(bytes.clone(), task.replayed.is_some()).await?;
        (found.timings.queue_us, found.timings.fetch_us) = (queue_us, fetch_us);
        metrics::observe_timings(Self::ROLE, &found.timings);
        self.admission.counts.local.fetch_add(1, Ordering::Relaxed);
        let (fate, doubt) = self.escalate(task, &bytes, &found, &decided.network);
        decided.doubt = Some(doubt);
        if fate == Escalation::Blocks && self.block(task, &bytes, &found, &decided).await? {
            return Ok(OutgoingMessages::default());
        }
        match fate {
            Escalation::Stands(reason) => metrics::count_answer(&task.site, Route::Edge, reason),
            Escalation::Expired | Escalation::Blocks => {
                metrics::count_answer(&task.site, Route::Expired, Reason::DeadlinePassed)
            }
            Escalation::Goes(_) | Escalation::Waits => {}
        }
        let task = match fate {
            Escalation::Goes(_) => self.by_reference(task, &bytes).await?,
            _ => Cow::Borrowed(task),
        };
        self.reporter(&self.energy(), &decided).outgoing(&task, &bytes, found, fate)
    }

    /// Decodes, infers and asks the gate that belongs to the release that saw it. What was `replayed` is not counted: it was
    /// counted when it was new.
    async fn recognize(&self, bytes: Bytes, replayed: bool) -> Result<EdgeResult, Fault> {
        let seen = self.infer.predict(bytes).await.map_err(|error| {
            if !error.is_the_images_fault() && !matches!(error, InferenceError::Stopped) {
                self.counter.count_failure(&self.infer.model().release, clock::now_ms());
            }
            fault(error)
        })?;
        metrics::count_notes(&self.site, usize::from(seen.envelope.note.is_some()));
        let model = &seen.model;
        let gate = self.admission.signals.gate(&model.release);
        let gate = gate.unwrap_or_else(|| Gate::new(&self.gate, &model.description.gate));
        let ratios = vision::probabilities(model, &seen.logits, gate.temperature);
        let mut opinion = vision::prediction(model, &ratios).ok_or_else(no_class)?;
        opinion.novelty = seen.novelty;
        let tested = TestedScores::of_model(&ratios, &model.thresholds).with_novelty(seen.novelty);
        let reason = gate.decide(&tested, &opinion.label);
        if !replayed {
            // A strange picture goes up however sure the model is, and says nothing of how sure it must be.
            if let Some(learner) = self.learner.as_ref().filter(|_| reason != Reason::HighNovelty) {
                learner.add_answer(&model.release, &opinion.label, opinion.confidence);
            }
            let (confidence, novelty) = (Some(opinion.confidence), seen.novelty);
            self.drift.add(&model.release, DriftSample { confidence, novelty, ..DriftSample::default() });
            let doubtful = reason != Reason::Confident;
            self.counter.count_image(
                &model.release,
                doubtful,
                opinion.confidence,
                seen.timings.cost_ms(),
                clock::now_ms(),
            );
        }
        if gate.calibrated != gate.temperature {
            let calibrated = vision::probabilities(model, &seen.logits, gate.calibrated);
            opinion = vision::prediction(model, &calibrated).ok_or_else(no_class)?;
            opinion.novelty = seen.novelty;
        }
        opinion.temperature = self.learner.as_ref().map(|_| gate.calibrated);
        let timings = Timings {
            wait_us: seen.timings.waited_us,
            decode_us: seen.timings.decode_us,
            infer_us: seen.timings.infer_us,
            batch_size: u32::try_from(seen.timings.batch_size).unwrap_or(u32::MAX),
            ..Timings::default()
        };
        Ok(EdgeResult { opinion, reason, features: seen.features, tested, timings, envelope: seen.envelope })
    }

    /// A release is about to serve.
    fn run_inference(&self, model: &Model) {
        let gate = Gate::new(&self.gate, &model.description.gate);
        if let Some(learner) = &self.learner {
            learner.serve(&model.release, model.labels.len(), gate.temperature);
        }
        self.drift.follow_release(&model.release);
        self.admission.signals.serve(&model.release, gate);
        self.admission.set_effective_settings(|in_force| in_force.model.clone_from(&model.description.gate));
    }

    fn candidate(&self, task: &Task, delivery: &Delivery) -> AdmitInput {
        let bytes = task.blob.as_ref().map_or(delivery.payload().len() as u64, |blob| blob.size_bytes);
        AdmitInput {
            bytes,
            left_s: task.deadline_at_ms.map(|at_ms| (at_ms as f64 - clock::now_ms() as f64) / 1000.0),
            held_s: 0.0,
            may_leave: self.verify.enabled && self.verify.payload == PayloadKind::Image && task.replayed.is_none(),
            priority: task.priority,
            lot: hash_fraction(task.id, "redirect"),
        }
    }

    async fn offload(
        &self,
        task: &Task,
        bytes: &Bytes,
        credit: &MessageCredit,
        decided: &DecisionTrace,
    ) -> Result<OffloadOutcome, Fault> {
        let energy = self.energy();
        let task = &*self.by_reference(task, bytes).await?;
        let back =
            self.away.offload_task(&self.admission, &self.reporter(&energy, decided), task, bytes, credit).await?;
        let counts = &self.admission.counts;
        let count = if back == OffloadOutcome::Answered { &counts.redirected } else { &counts.taken_back };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(back)
    }

    /// The baseline's synchronous upload; true if the verdict came in time.
    async fn block(
        &self,
        task: &Task,
        bytes: &Bytes,
        found: &EdgeResult,
        decided: &DecisionTrace,
    ) -> Result<bool, Fault> {
        let patience = Duration::from_millis(self.admission.signals.policy().verdict_timeout_ms);
        let energy = self.energy();
        let task = &*self.by_reference(task, bytes).await?;
        self.away.request_verdict(&self.reporter(&energy, decided), task, bytes, found, patience).await
    }

    /// What becomes of it, and by what. `before`: what the link and the cloud were like at the first decision.
    fn escalate(
        &self,
        task: &Task,
        bytes: &Bytes,
        found: &EdgeResult,
        before: &Network,
    ) -> (Escalation, EscalationTrace) {
        let (policy, network) = (self.admission.signals.policy(), self.admission.network());
        let deadline_ms = report::deadline_ms(&self.verify, task);
        let doubt = EscalationInput {
            reason: found.reason,
            label: &found.opinion.label,
            truth: task.truth.as_deref(),
            bytes: match self.verify.payload {
                PayloadKind::Image => bytes.len() as u64,
                PayloadKind::Features | PayloadKind::Never => 4 * found.features.as_ref().map_or(0, Vec::len) as u64,
            },
            left_s: (deadline_ms as f64 - clock::now_ms() as f64) / 1000.0,
            lot: hash_fraction(task.id, "sample"),
        };
        let sampling = self.learner.is_some() || self.orders.borrow().is_some();
        let (fate, earned, at_s) = {
            let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
            let (earned, at_s) = (share.balance(self.verify.max_share_ratio), self.admission.now_s());
            let fate = match task.replayed {
                // Whether it was right to ask the cloud was decided when it was new.
                Some(_) if found.reason == Reason::Confident => Escalation::Stands(found.reason),
                Some(_) => Escalation::Stands(Reason::NotVerified),
                None => escalate(&policy, &self.verify, sampling, &network, &mut share, &doubt),
            };
            (fate, earned, at_s)
        };
        let TestedScores { best, second, entropy_ratio, novelty } = found.tested;
        let doubted = EscalationTrace {
            at_s,
            best,
            second,
            entropy_ratio,
            novelty,
            left_s: doubt.left_s,
            bytes: doubt.bytes,
            sampling,
            network: Some(network).filter(|network| network != before),
            earned,
            fate: fate.outcome(),
        };
        let counts = &self.admission.counts;
        match fate {
            Escalation::Stands(Reason::Confident) => {}
            Escalation::Stands(_) | Escalation::Expired | Escalation::Waits => {
                counts.kept.fetch_add(1, Ordering::Relaxed);
            }
            Escalation::Goes(_) | Escalation::Blocks => {
                counts.verified.fetch_add(1, Ordering::Relaxed);
            }
        }
        (fate, doubted)
    }

    fn reporter<'a>(&'a self, energy: &'a EnergySettings, decided: &'a DecisionTrace) -> AnswerReporter<'a> {
        AnswerReporter {
            verify: &self.verify,
            energy,
            decided: Some(decided),
            tickets: &self.tickets,
            now_ms: clock::now_ms(),
        }
    }

    /// What the machine counts, or else what the settings say.
    fn energy(&self) -> EnergySettings {
        let stated = self.admission.signals.policy().energy;
        let counted = self.admission.signals.vitals().watts_per_core;
        EnergySettings { watts_per_core: counted.unwrap_or(stated.watts_per_core), ..stated }
    }

    /// The encoded image: the payload itself, or what it refers to; and how long that took.
    async fn fetch(&self, task: &Task, delivery: &Delivery) -> Result<(Bytes, u64), Fault> {
        let Some(blob) = &task.blob else { return Ok((delivery.payload().clone(), 0)) };
        let asked_at = Instant::now();
        let bytes = self.blobs.fetch_blob(blob, MAX_IMAGE_BYTES).await?;
        Ok((bytes, micros(asked_at.elapsed())))
    }

    fn stored(&self, delivery: &Delivery) -> Result<StorageStamp, Fault> {
        let read = subject::read_image(delivery.subject()).ok().filter(|(site, _)| *site == self.site);
        let (site, camera) = read.ok_or_else(|| misdirected(&self.site, delivery.subject()))?;
        Ok(StorageStamp { site, camera, sequence: delivery.sequence, stored_at_ns: delivery.stored_at_ns })
    }

    /// A task whose image is larger than what we put into messages goes up by reference: its bytes are stored first.
    async fn by_reference<'t>(&self, task: &'t Task, bytes: &Bytes) -> Result<Cow<'t, Task>, Fault> {
        if task.blob.is_some() || bytes.len() <= MAX_EMBEDDED_BYTES || self.verify.payload != PayloadKind::Image {
            return Ok(Cow::Borrowed(task));
        }
        let blob = self.blobs.store_blob(bytes).await?;
        Ok(Cow::Owned(Task { blob: Some(blob), ..task.clone() }))
    }
}

impl Handler for Recognizer {
    const ROLE: Role = Role::Recognizer;
    const STREAM: &'static str = topology::IMAGES;

    async fn handle(&self, delivery: &Delivery, credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        self.admission.signals.pending.store(delivery.pending, Ordering::Relaxed);
        let stored = self.stored(delivery)?;
        let task = Task::from_headers(&stored, |name| delivery.header(name), delivery.payload()).map_err(|error| {
            let reason = runtime::fault::error_chain(&error);
            Fault::reject("header_unreadable", reason, "correct the header or omit it: every header is optional")
        })?;
        metrics::count_notes(&self.site, task.notes.len());
        self.answer(&task, delivery, credit).await
    }

    fn dead_letter(&self, message: &StoredMessage, fault: &FaultNote) -> DeadLetterContext {
        // Whatever the subject says, its outcome is this site's; without a camera it is nobody's.
        let camera = subject::read_image(&message.subject).map_or_else(|_| CameraName::unknown(), |(_, camera)| camera);
        let (sequence, stored_at_ns) = (message.sequence, message.stored_at_ns);
        let stored = StorageStamp { site: self.site.clone(), camera, sequence, stored_at_ns };
        let id = Task::id_of(&stored, &|name| message.header(name), &message.payload)
            .unwrap_or_else(|_| TaskId::from_sequence(&stored.site, &stored.camera, sequence, stored_at_ns));
        metrics::count_answer(&self.site, Route::Dead, Reason::GivenUp);
        let task = Task::from_id(&stored, id).with_file(message.header(HEADER_FILE));
        let tombstone = report::write_tombstone(&task, fault.clone(), clock::now_ms()).ok();
        DeadLetterContext { site: self.site.clone(), task: Some(id), publications: tombstone.into_iter().collect() }
    }
}

/// Runs a site's recognizer until it is told to stop. The model is loaded and warm already.
pub async fn run(
    bus: Bus,
    site: SiteName,
    started: ServingModel,
    settings: &RecognizerSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let infer = started.infer.clone();
    check(&infer, &settings.verify)?;
    check_novelty(&started.root, &settings.gate)?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open(&bus)).await else { return Ok(()) };
    let Some(tickets) = retry_until_found(&shutdown, || TicketKey::open(&bus)).await else { return Ok(()) };
    let target_ratio = settings.gate.target_accuracy_ratio;
    let learner = target_ratio.map(|_| VerdictLearner::new(site.clone()));
    let signals = Signals::new(settings.policy.clone());
    let model = ModelName::from_name(&started.root.description.name);
    let swapper = Arc::new(ModelSwapper::new(started, blobs.clone()));
    let (ordered, told) = watch::channel(None);
    let in_force = EffectiveSettings {
        policy: settings.policy.clone(),
        gate: settings.gate.clone(),
        model: infer.model().description.gate.clone(),
        verify: settings.verify.clone(),
    };
    let admission = Arc::new(Admission::new(signals.clone(), infer.replicas(), infer.batch(), in_force));
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let away = Offloader {
        bus: bus.clone(),
        publisher: publisher.clone(),
        room: Arc::new(Semaphore::new(settings.policy.max_offloaded_mib as usize * 1024)),
        shutdown: shutdown.clone(),
    };
    let step = Arc::new(Recognizer {
        site: site.clone(),
        blobs,
        tickets,
        infer: infer.clone(),
        gate: settings.gate.clone(),
        verify: settings.verify.clone(),
        admission: admission.clone(),
        away,
        learner: learner.clone(),
        counter: ReleaseCounter::new(settings.count_s),
        drift: DriftWatch::new(DriftKind::Answers, settings.drift),
        orders: told.clone(),
        share: Mutex::default(),
        turns: Semaphore::new(infer.replicas()),
    });
    step.run_inference(&infer.model());
    let tally = Arc::new(WorkerStats::default());
    let scaler = Scaler::new(Recognizer::ROLE, infer.clone(), settings.scale.clone());
    let (room, resized) = watch::channel(0);
    let resize = |replicas| {
        admission.resized(replicas, infer.batch());
        room.send_replace(credits(&infer, replicas));
    };
    let durable = topology::recognizer_durable(&site);
    let queue = (topology::IMAGES, durable.as_str());
    let scaling = scaler.run(&bus, queue, &tally, &resize, &shutdown);
    let from = ConsumerConfig {
        durable: durable.clone(),
        credits: credits(&infer, infer.replicas()),
        resized: Some(resized),
        tries: Some(settings.tries),
        ack_wait,
    };
    let pulse = heartbeat::HeartbeatPace { every: SAY_EVERY, ..heartbeat::HeartbeatPace::default() };
    let life = heartbeat::send_heartbeats(
        bus.clone(),
        Recognizer::ROLE,
        Some(site.clone()),
        tally.clone(),
        shutdown.clone(),
        pulse,
        |beat| {
            beat.replicas = u32::try_from(infer.replicas()).unwrap_or(u32::MAX);
            beat.cost_ms = Some(infer.cost_ms());
            beat.scale = scaler.reason();
            swapper.restore_missing(beat);
            beat.decision = Some(admission.report(infer.cost_ms()));
            beat.drift = step.drift.report();
            beat.faults = untested_novelty(&step, &infer.model()).into_iter().collect();
        },
    );
    let gathering = signals.gather(&bus, &site, &settings.policy, target_ratio, shutdown.clone());
    let reporter = SwapReporter {
        site: site.clone(),
        site_labels: settings.site_labels.clone(),
        swapper: swapper.clone(),
        counter: step.counter.clone(),
        publisher: publisher.clone(),
        every: Duration::from_secs(settings.report_s.into()),
    };
    let telling = reporter.run(|| admission.network().up, shutdown.clone());
    let following =
        order_watch::of_site(&swapper, &bus, &model, ordered, told, |model| step.run_inference(model), &shutdown);
    let noting = note_settings(&bus, &admission, &shutdown);
    let comparing = step.drift.save_reference(&bus, shutdown.clone());
    let learning = async {
        if let Some(learner) = learner {
            let from = ConsumerConfig {
                durable: topology::learner_durable(&site),
                credits: LEARN_AT_ONCE,
                resized: None,
                tries: None,
                ack_wait,
            };
            let tally = Arc::new(WorkerStats::default());
            let watching = consume(Arc::new(learner.clone()), &bus, publisher.clone(), from, tally, shutdown.clone());
            let (watched, ()) = tokio::join!(watching, learner.write(&bus, shutdown.clone()));
            tracing::debug!(?watched, "learned what there was");
        }
    };
    let work = consume(step.clone(), &bus, publisher.clone(), from, tally.clone(), shutdown.clone());
    let work = async {
        let ended = work.await;
        // Whatever ended it, the rest ends with it.
        shutdown.request();
        ended
    };
    let (ended, (), (), (), (), (), (), (), ()) =
        tokio::join!(work, life, gathering, learning, telling, following, scaling, noting, comparing);
    ended
}

/// Writes down the settings in force, so that what was decided can be decided again.
async fn note_settings(bus: &Bus, admission: &Admission, shutdown: &Shutdown) {
    const AGAIN: Duration = Duration::from_secs(2);
    let mut noted = admission.noted.subscribe();
    let writing = async {
        loop {
            let (in_force, digest) = noted.borrow_and_update().clone();
            let text = serde_json::to_string(&in_force).unwrap_or_default();
            let written = async {
                Ledger::open(bus).await?.write(&decisions::effective_settings::settings_note(&digest), text).await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "the settings in force are noted later");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            if noted.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = shutdown.wait_for_request() => {}
    }
}

/// How many images so many replicas hold.
fn credits(infer: &InferencePool, replicas: usize) -> usize {
    replicas * infer.batch() * CREDITS_PER_SLOT
}

/// Whether the model can give what is to go up.
fn check(infer: &InferencePool, verify: &VerifySettings) -> Result<(), Fault> {
    let model = infer.model();
    if verify.payload == PayloadKind::Features && model.description.output.features.is_none() {
        let reason =
            format!("model {} gives no features, which recognizer.verify.payload sends up", model.description.name);
        let remedy = "name its features output in model.toml (output.features), or use payload \"image\" or \"never\"";
        return Err(Fault::Stop(FaultNote::new("features_missing", reason, remedy)));
    }
    Ok(())
}

/// Whether the model that the worker was set up with can say how strange a picture is, where that is to be tested.
fn check_novelty(root: &Model, gate: &GateSettings) -> Result<(), Fault> {
    let gate = Gate::new(gate, &root.description.gate);
    if !gate.tests_novelty() || root.novelty.is_some() {
        return Ok(());
    }
    Err(Fault::Stop(novelty_missing(root)))
}

/// What is wrong where the gate tests novelty and the release that serves has no score: such releases come out of rounds.
fn untested_novelty(recognizer: &Recognizer, model: &Model) -> Option<FaultNote> {
    let gate = recognizer.admission.signals.gate(&model.release)?;
    (gate.tests_novelty() && model.novelty.is_none()).then(|| novelty_missing(model))
}

fn novelty_missing(model: &Model) -> FaultNote {
    let why = match model.has_stale_novelty() {
        true => "its novelty score was made for other weights",
        false => "it has no novelty score",
    };
    let reason = format!("max_novelty is not tested on release {}: {why}", model.release.short());
    let remedy = "make a score with `tributary model novelty DIR --images PICTURES` in the folder of these weights, or \
                  remove max_novelty";
    FaultNote::new("novelty_missing", reason, remedy)
}

/// An image on a subject that is none of this site's, with the one that was probably meant.
fn misdirected(site: &SiteName, subject: &str) -> Fault {
    let tokens = subject.split('.').rev().filter_map(|token| token.trim_matches('/').parse::<CameraName>().ok());
    let meant = tokens.into_iter().find(|token| token.as_str() != "image" && token.as_str() != site.as_str());
    let camera = meant.as_ref().map_or("<camera>", CameraName::as_str);
    let shown: String = subject.chars().take(100).collect();
    let reason =
        format!("{shown:?} is not image.{site}.<camera>, three parts with letters, digits, - and _ in the last");
    let remedy = format!("publish to image.{site}.{camera}; over MQTT the topic is image/{site}/{camera}");
    Fault::reject("subject_unknown", reason, remedy)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn fault(error: InferenceError) -> Fault {
    match error.fault_note() {
        note if error.is_the_images_fault() => Fault::Reject(note),
        note => Fault::Retry { after: runtime::fault::RETRY_DELAY, note },
    }
}

fn no_class() -> Fault {
    Fault::retry("model_without_classes", "the model gave no scores")
}
