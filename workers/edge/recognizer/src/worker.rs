//! The path of one image: accept → admit → fetch → decode → batch → infer → gate → report.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use offload::admit::{AdmitInput, reclaim_within};
use offload::escalation::{Escalation, EscalationCap, EscalationInput, escalate};
use offload::gate::{Gate, GateSettings, TestedScores};
use offload::policy::{EnergySettings, PolicyName};
use offload::target_reach::AccuracyTarget;
use offload::verify::{PayloadKind, VerifySettings};
use offload::{EffectiveSettings, hash_fraction};
use runtime::drift::{DriftKind, DriftSample, DriftWatch};
use runtime::handler::DeadLetterContext;
use runtime::ticket::TicketKey;
use runtime::{Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, clock, metrics, retry_until_found, traces};
use schemas::answer::Timings;
use schemas::decision_trace::{EscalationTrace, Network};
use schemas::limits::{MAX_EMBEDDED_BYTES, MAX_IMAGE_BYTES};
use schemas::task::{HEADER_DEADLINE, HEADER_FILE, StorageStamp};
use schemas::{
    Answer, CameraName, DecisionReport, DecisionTrace, FaultNote, Heartbeat, Order, Reason, ReleaseId, Role, Route,
    SiteName, Task, TaskId,
};
use serving::model_server::{ModelHandler, ModelServer, ServingOptions, inference_fault};
use serving::release_counter::ReleaseCounter;
use serving::serving_model::ServingModel;
use streams::backoff::wait_about;
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Blobs, Bus, Delivery, subject, topology};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use vision::{InferenceError, InferencePool, Model};

use crate::accept::accept_task;
use crate::admission::{Admission, CostReading, Placement, SpentEnergy, urgency};
use crate::learner::VerdictLearner;
use crate::offload::{OffloadOutcome, OffloadTerms, Offloader};
use crate::report::{self, AnswerReporter, EdgeResult, ShownState};
use crate::reuse::{AnswerReuse, PictureLook, ReusedAnswer};
use crate::settings::RecognizerSettings;
use crate::signals::Signals;
use crate::states::RegionStates;

/// Images held per slot of a batch: one in the model, and the others so that the exchange between server and worker
/// covers several images at once. Half as many cost 0.1 ms more per image.
const CREDITS_PER_SLOT: usize = 8;
/// Interval of heartbeats, short because the status shows decisions.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The recognizer of a site.
pub struct Recognizer {
    site: SiteName,
    blobs: Blobs,
    tickets: TicketKey,
    infer: InferencePool,
    gate: GateSettings,
    verify: VerifySettings,
    admission: Arc<Admission>,
    offloader: Offloader,
    learner: Option<VerdictLearner>,
    /// The accuracy that the gate is to reach; absent where its thresholds are set.
    target: Option<AccuracyTarget>,
    /// Results of each release.
    counter: ReleaseCounter,
    /// Compares recent answers with the first ones of the release.
    drift: DriftWatch,
    /// The current order; if there is one, a releaser compares releases.
    orders: watch::Receiver<Option<Order>>,
    share: Mutex<EscalationCap>,
    /// Answers for pictures like the one before.
    reuse: AnswerReuse,
    /// States of what cameras show.
    states: RegionStates,
}

/// What came of recognizing an image.
enum Recognition {
    /// It was recognized.
    Recognized(Box<EdgeResult>, PictureLook),
    /// Once decoded, it was found like one before.
    Reused(Box<ReusedAnswer>),
}

impl Recognizer {
    async fn answer(
        &self,
        mut task: Task,
        delivery: &Delivery,
        credit: &MessageCredit,
    ) -> Result<OutgoingMessages, Fault> {
        let queue_us = clock::micros(clock::since_ns(delivery.stored_at_ns));
        accept_task(&task, delivery.payload().len()).map_err(|refusal| Fault::Reject(refusal.into()))?;
        let serving = self.infer.model().release.clone();
        let look = self.reuse.look_at_header(&mut task, &serving);
        metrics::count_notes(&self.site, task.notes.len());
        let task = &task;
        self.states.load(task).await;
        if let PictureLook::Reused(reused) = look {
            return Ok(self.reuse_answer(task, *reused, queue_us));
        }
        let (placement, mut trace) =
            self.admission.decide(self.candidate(task, delivery), CostReading::of(&self.infer)).await;
        let _local = match placement {
            Placement::Local(local) => local,
            Placement::Redirect(reason) => {
                match self.offload(task, delivery.payload(), reason, credit, &trace).await? {
                    OffloadOutcome::Answered => {
                        self.reuse.forget_before(task);
                        traces::current().set("tributary.route", &Route::Redirected.as_str());
                        return Ok(OutgoingMessages::default());
                    }
                    OffloadOutcome::Reclaimed => self.admission.reclaim_task(),
                }
            }
        };
        let (bytes, fetch_us) = self.fetch(task, delivery).await?;
        let (mut result, look) = match self.recognize(bytes.clone(), task, look, &serving).await? {
            Recognition::Recognized(result, look) => (*result, look),
            Recognition::Reused(reused) => return Ok(self.reuse_answer(task, *reused, queue_us)),
        };
        (result.timings.queue_us, result.timings.fetch_us) = (queue_us, fetch_us);
        metrics::observe_timings(Self::ROLE, &result.timings);
        let span = traces::current();
        span.add_timings(&result.timings);
        span.set("tributary.reason", &result.reason.as_str());
        self.admission.counts.local.fetch_add(1, Ordering::Relaxed);
        let (escalation, escalation_trace) = self.escalate(task, &bytes, &result, &trace.network);
        trace.doubt = Some(escalation_trace);
        self.reuse.learn(task, look, &result.prediction, escalation == Escalation::Stands(Reason::Confident));
        let state = match result.reason {
            Reason::Confident => self.states.observe(task, &result.prediction.label, result.envelope.captured_at_ms),
            _ => self.states.current(task),
        };
        if let Escalation::Goes(why) = escalation {
            span.set("tributary.verify_reason", &why.as_str());
        }
        let energy = self.energy();
        self.admission.count_energy(SpentEnergy {
            inference_j: report::inference_j(&energy, &result.timings),
            uplink_j: match escalation {
                Escalation::Goes(_) => report::uplink_j(&energy, trace.doubt.as_ref().map_or(0, |doubt| doubt.bytes)),
                _ => 0.0,
            },
        });
        let task = match escalation {
            Escalation::Goes(_) => self.by_reference(task, &bytes).await?,
            _ => Cow::Borrowed(task),
        };
        self.reporter(&energy, Some(&trace), state).outgoing(&task, &bytes, result, escalation)
    }

    /// The final answer of an image that gets that of an earlier one.
    fn reuse_answer(&self, task: &Task, reused: ReusedAnswer, queue_us: u64) -> OutgoingMessages {
        let span = traces::current();
        span.set("tributary.reused", &reused.task);
        span.set("tributary.reason", &Reason::Confident.as_str());
        let state = self.states.observe(task, &reused.prediction.label, None);
        let energy = self.energy();
        OutgoingMessages::answer(self.reporter(&energy, None, state).reused(task, reused, queue_us))
    }

    /// Decodes, infers and applies the gate of the release that was used, unless the decoded picture is like one before. A
    /// replayed image is not counted: it was counted when it was new. Nor is a picture with faults, which says nothing of
    /// the model.
    async fn recognize(
        &self,
        bytes: Bytes,
        task: &Task,
        look: PictureLook,
        serving: &ReleaseId,
    ) -> Result<Recognition, Fault> {
        let (inspect, looked) = self.reuse.inspector(task, &look, serving).unzip();
        let seen = self.infer.predict_inspected(bytes, urgency(task.priority, left_s(task)), inspect).await;
        let look = looked.map_or(look, |mut looked| looked.try_recv().unwrap_or(PictureLook::Unwanted));
        let (seen, look) = match (seen, look) {
            (Err(InferenceError::Declined), PictureLook::Reused(reused)) => return Ok(Recognition::Reused(reused)),
            (Ok(seen), look) => (seen, look),
            (Err(error), _) => {
                if !error.is_the_images_fault() && !matches!(error, InferenceError::Stopped) {
                    self.counter.count_failure(&self.infer.model().release, clock::now_ms());
                }
                return Err(inference_fault(error));
            }
        };
        metrics::count_notes(&self.site, usize::from(seen.envelope.note.is_some()));
        let model = &seen.model;
        let span = traces::current();
        span.set("tributary.model", &model.description.name);
        span.set("tributary.release", &model.release);
        let gate = self.admission.signals.gate(&model.release);
        let gate = gate.unwrap_or_else(|| Gate::new(&self.gate, &model.description.gate));
        let mut prediction = vision::predict(&seen, gate.temperature).ok_or_else(no_class)?;
        let least_sure = prediction.least_sure();
        let tested = match least_sure {
            Some((_, confidence)) => TestedScores::of_object(confidence),
            None => {
                let ratios = vision::probabilities(model, &seen.logits, gate.temperature);
                TestedScores::of_model(&ratios, &model.thresholds).with_novelty(seen.novelty)
            }
        };
        let (tested_label, tested_confidence) = least_sure.unwrap_or((&prediction.label, prediction.confidence));
        let reason = gate.decide(&tested, tested_label);
        if task.replayed.is_none() && task.has_healthy_picture() {
            // A strange picture is doubtful at any confidence, so it says nothing about confidence thresholds.
            if let Some(learner) = self.learner.as_ref().filter(|_| reason != Reason::HighNovelty) {
                learner.add_answer(&model.release, tested_label, tested_confidence);
            }
            let (confidence, novelty) = (Some(prediction.confidence), seen.novelty);
            self.drift.add(&model.release, DriftSample { confidence, novelty, ..DriftSample::default() });
            let doubtful = reason != Reason::Confident;
            self.counter.count_image(
                &model.release,
                doubtful,
                prediction.confidence,
                seen.timings.cost_ms(),
                clock::now_ms(),
            );
        }
        if gate.calibrated != gate.temperature {
            prediction = vision::predict(&seen, gate.calibrated).ok_or_else(no_class)?;
        }
        let has_temperature = prediction.objects.is_none();
        prediction.temperature = self.learner.as_ref().filter(|_| has_temperature).map(|_| gate.calibrated);
        let timings = Timings {
            wait_us: seen.timings.waited_us,
            decode_us: seen.timings.decode_us,
            infer_us: seen.timings.infer_us,
            batch_size: u32::try_from(seen.timings.batch_size).unwrap_or(u32::MAX),
            ..Timings::default()
        };
        let (features, envelope) = (seen.features, seen.envelope);
        let result = EdgeResult { prediction, reason, features, tested, timings, envelope };
        Ok(Recognition::Recognized(Box::new(result), look))
    }

    fn candidate(&self, task: &Task, delivery: &Delivery) -> AdmitInput {
        let bytes = task.blob.as_ref().map_or(delivery.payload().len() as u64, |blob| blob.size_bytes);
        AdmitInput {
            bytes,
            left_s: left_s(task),
            held_s: 0.0,
            may_leave: self.verify.enabled && self.verify.payload == PayloadKind::Image && may_leave(task),
            priority: task.priority,
        }
    }

    async fn offload(
        &self,
        task: &Task,
        bytes: &Bytes,
        reason: Reason,
        credit: &MessageCredit,
        decided: &DecisionTrace,
    ) -> Result<OffloadOutcome, Fault> {
        let energy = self.energy();
        let task = &*self.by_reference(task, bytes).await?;
        // A reclaimed image waits for the batch in work and is in the next.
        let back_s = 2.0 * self.infer.batch() as f64 * self.infer.cost_ms() / 1000.0;
        let within = left_s(task).and_then(|left_s| reclaim_within(left_s, back_s));
        let reporter = self.reporter(&energy, Some(decided), self.states.current(task));
        let terms = OffloadTerms { reason, within };
        let outcome = self.offloader.offload_task(&self.admission, &reporter, task, bytes, terms, credit).await?;
        // A task that was reclaimed had been sent all the same, as far as anybody here knows.
        let sent_bytes = task.blob.as_ref().map_or(bytes.len() as u64, |blob| blob.size_bytes);
        let uplink_j = report::uplink_j(&energy, sent_bytes);
        self.admission.count_energy(SpentEnergy { uplink_j, ..SpentEnergy::default() });
        let counts = &self.admission.counts;
        let count = if outcome == OffloadOutcome::Answered { &counts.redirected } else { &counts.taken_back };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(outcome)
    }

    /// Decides the escalation, with its trace. `before`: link and cloud at the first decision.
    fn escalate(
        &self,
        task: &Task,
        bytes: &Bytes,
        result: &EdgeResult,
        before: &Network,
    ) -> (Escalation, EscalationTrace) {
        let (policy, network) = (self.admission.signals.policy(), self.admission.network());
        let deadline_ms = report::deadline_ms(&self.verify, task);
        let input = EscalationInput {
            reason: result.reason,
            label: &result.prediction.label,
            bytes: match self.verify.payload {
                PayloadKind::Image => bytes.len() as u64,
                PayloadKind::Features | PayloadKind::Never => 4 * result.features.as_ref().map_or(0, Vec::len) as u64,
            },
            left_s: (deadline_ms as f64 - clock::now_ms() as f64) / 1000.0,
            lot: hash_fraction(task.id, "sample"),
        };
        let weighs_accuracy = policy.name == PolicyName::EarliestFinish && policy.objective.weighs_accuracy();
        let sampling = self.learner.is_some() || self.orders.borrow().is_some() || weighs_accuracy;
        let (escalation, earned, at_s) = {
            let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
            let (earned, at_s) = (share.balance(self.verify.max_share_ratio), self.admission.now_s());
            let escalation = match may_leave(task) {
                true => escalate(&policy, &self.verify, sampling, &network, &mut share, &input),
                false if result.reason == Reason::Confident => Escalation::Stands(result.reason),
                false => Escalation::Stands(Reason::NotVerified),
            };
            (escalation, earned, at_s)
        };
        let TestedScores { best, second, entropy_ratio, novelty } = result.tested;
        let trace = EscalationTrace {
            at_s,
            best,
            second,
            entropy_ratio,
            novelty,
            left_s: input.left_s,
            bytes: input.bytes,
            sampling,
            network: Some(network).filter(|network| network != before),
            earned,
            fate: escalation.outcome(),
        };
        let counts = &self.admission.counts;
        match escalation {
            Escalation::Stands(Reason::Confident) => {}
            Escalation::Stands(_) | Escalation::Expired | Escalation::Waits => {
                counts.kept.fetch_add(1, Ordering::Relaxed);
            }
            Escalation::Goes(_) => {
                counts.verified.fetch_add(1, Ordering::Relaxed);
            }
        }
        (escalation, trace)
    }

    fn reporter<'a>(
        &'a self,
        energy: &'a EnergySettings,
        decided: Option<&'a DecisionTrace>,
        state: Option<ShownState>,
    ) -> AnswerReporter<'a> {
        AnswerReporter { verify: &self.verify, energy, decided, state, tickets: &self.tickets, now_ms: clock::now_ms() }
    }

    /// Energy as counted by the machine, or else as in the settings.
    fn energy(&self) -> EnergySettings {
        let stated = self.admission.signals.policy().energy;
        let counted = self.admission.signals.vitals().watts_per_core;
        EnergySettings { watts_per_core: counted.unwrap_or(stated.watts_per_core), ..stated }
    }

    /// The encoded image: the payload itself, or the referenced blob; and how long fetching it took.
    async fn fetch(&self, task: &Task, delivery: &Delivery) -> Result<(Bytes, u64), Fault> {
        let Some(blob) = &task.blob else { return Ok((delivery.payload().clone(), 0)) };
        let asked_at = Instant::now();
        let bytes = self.blobs.fetch_blob(blob, MAX_IMAGE_BYTES).await?;
        Ok((bytes, clock::micros(asked_at.elapsed())))
    }

    fn stored(&self, delivery: &Delivery) -> Result<StorageStamp, Fault> {
        let read = subject::read_image(delivery.subject()).ok().filter(|(site, _)| *site == self.site);
        let (site, camera) = read.ok_or_else(|| misdirected(&self.site, delivery.subject()))?;
        Ok(StorageStamp { site, camera, sequence: delivery.sequence, stored_at_ns: delivery.stored_at_ns })
    }

    /// The task with its image as a blob, if the image is larger than what we put into messages: the bytes are stored
    /// first.
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
    const SPAN: Option<&'static str> = Some("recognize");

    async fn handle(&self, delivery: &Delivery, credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        self.admission.signals.pending.store(delivery.pending, Ordering::Relaxed);
        let stored = self.stored(delivery)?;
        let task = Task::from_headers(&stored, |name| delivery.header(name), delivery.payload()).map_err(|error| {
            let reason = runtime::fault::error_chain(&error);
            Fault::reject("header_unreadable", reason, "correct the header or omit it: every header is optional")
        })?;
        traces::current().set_task(task.id, &task.site, &task.camera);
        self.answer(task, delivery, credit).await
    }

    fn answer_stored(&self, answer: &Answer) {
        self.reuse.confirm(answer.task);
    }

    fn image_task(&self, message: &StoredMessage) -> Option<Task> {
        // Its outcome belongs to this site whatever the subject; without a valid camera it has the placeholder.
        let camera = subject::read_image(&message.subject).map_or_else(|_| CameraName::unknown(), |(_, camera)| camera);
        let (sequence, stored_at_ns) = (message.sequence, message.stored_at_ns);
        let stored = StorageStamp { site: self.site.clone(), camera, sequence, stored_at_ns };
        let id = Task::id_of(&stored, &|name| message.header(name), &message.payload)
            .unwrap_or_else(|_| TaskId::from_sequence(&stored.site, &stored.camera, sequence, stored_at_ns));
        let task = Task::from_id(&stored, id).with_deadline(message.header(HEADER_DEADLINE));
        Some(task.with_file(message.header(HEADER_FILE)))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = self.image_task(message).map(|task| task.id);
        DeadLetterContext { site: self.site.clone(), task, publications: Vec::new() }
    }
}

impl ModelHandler for Recognizer {
    fn prepare_release(&self, model: &Model) {
        let gate = Gate::new(&self.gate, &model.description.gate);
        if let Some(learner) = &self.learner {
            learner.serve(&model.release, model.labels.len(), gate.temperature);
        }
        self.drift.follow_release(&model.release);
        self.admission.signals.serve(&model.release, gate);
        self.admission.set_effective_settings(|effective| effective.model.clone_from(&model.description.gate));
    }

    fn resize(&self, replicas: usize) {
        self.admission.resized(replicas, self.infer.batch());
    }

    fn fill_heartbeat(&self, beat: &mut Heartbeat) {
        let decision = self.admission.report(&CostReading::of(&self.infer));
        beat.decision = Some(DecisionReport { reuse: self.reuse.report(), ..decision });
        beat.drift = self.drift.report();
        let reach = self.admission.signals.target_reach();
        if let Some((target, reach)) = self.target.as_ref().zip(reach) {
            if let Some((belief, said)) = beat.decision.as_mut().zip(target.describe(&reach)) {
                belief.belief = Some(belief.belief.take().map_or(said.clone(), |belief| format!("{belief}; {said}")));
            }
            beat.faults.extend(target.fault(&reach));
        }
        beat.faults.extend(untested_novelty(self, &self.infer.model()));
    }

    fn is_reachable(&self) -> bool {
        self.admission.network().up
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
    check(&started.infer, &settings.verify)?;
    check_novelty(&started.root, &settings.gate)?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open(&bus)).await else { return Ok(()) };
    let Some(tickets) = retry_until_found(&shutdown, || TicketKey::open(&bus)).await else { return Ok(()) };
    let options = ServingOptions {
        site: Some(site.clone()),
        site_labels: settings.site_labels.clone(),
        durable: topology::recognizer_durable(&site),
        credits_per_slot: CREDITS_PER_SLOT,
        heartbeat_interval: HEARTBEAT_INTERVAL,
        scale: settings.scale.clone(),
        report_s: settings.report_s,
        count_s: settings.count_s,
        tries: settings.tries,
        ack_wait,
    };
    let server = ModelServer::new(bus.clone(), started, blobs.clone(), options);
    let (infer, publisher) = (server.infer.clone(), server.publisher.clone());
    let target =
        settings.gate.target_accuracy_ratio.map(|ratio| AccuracyTarget { ratio, verify: settings.verify.clone() });
    let learner = target.as_ref().map(|_| VerdictLearner::new(site.clone()));
    let signals = Signals::new(settings.policy.clone());
    let effective = EffectiveSettings {
        policy: settings.policy.clone(),
        gate: settings.gate.clone(),
        model: infer.model().description.gate.clone(),
        verify: settings.verify.clone(),
    };
    let admission = Arc::new(Admission::new(signals.clone(), infer.replicas(), infer.batch(), effective));
    let offloader = Offloader {
        bus: bus.clone(),
        publisher: publisher.clone(),
        memory_kib: Arc::new(Semaphore::new(settings.policy.max_offloaded_mib as usize * 1024)),
        shutdown: shutdown.clone(),
    };
    let recognizer = Arc::new(Recognizer {
        site: site.clone(),
        blobs,
        tickets,
        infer: infer.clone(),
        gate: settings.gate.clone(),
        verify: settings.verify.clone(),
        admission: admission.clone(),
        offloader,
        learner: learner.clone(),
        target: target.clone(),
        counter: server.counter.clone(),
        drift: DriftWatch::new(DriftKind::Answers, settings.drift),
        orders: server.orders.clone(),
        share: Mutex::default(),
        reuse: AnswerReuse::new(site.clone(), settings.reuse.clone()),
        states: RegionStates::new(site.clone(), bus.clone(), settings.states.clone()),
    });
    let serving = server.serve(recognizer.clone(), shutdown.clone());
    let gathering = signals.gather(&bus, &site, &settings.policy, target.as_ref(), shutdown.clone());
    let noting = note_settings(&bus, &admission, &shutdown);
    let comparing = recognizer.drift.save_reference(&bus, shutdown.clone());
    let learning = async {
        if let Some(learner) = learner {
            learner.run(&bus, &publisher, ack_wait, &shutdown).await;
        }
    };
    let following = recognizer.states.run(shutdown.clone());
    let (ended, (), (), (), (), ()) = tokio::join!(serving, gathering, learning, noting, comparing, following);
    ended
}

/// Writes the effective settings to the ledger, so that decisions can be made again.
async fn note_settings(bus: &Bus, admission: &Admission, shutdown: &Shutdown) {
    const RETRY_DELAY: Duration = Duration::from_secs(2);
    let mut noted = admission.noted.subscribe();
    let writing = async {
        loop {
            let (effective, digest) = noted.borrow_and_update().clone();
            let text = serde_json::to_string(&effective).unwrap_or_default();
            let written = async {
                Ledger::open(bus).await?.write(&offload::effective_settings::settings_note(&digest), text).await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "effective settings write deferred");
                wait_about(RETRY_DELAY).await;
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

/// Whether an image may leave the site. Whether to ask the cloud about a replayed one was decided when it was new, and a
/// camera with faults sends pictures by the thousand that nobody can judge.
fn may_leave(task: &Task) -> bool {
    task.replayed.is_none() && task.has_healthy_picture()
}

/// Time left to a task's deadline, seconds, negative once it passed; `None` without one.
fn left_s(task: &Task) -> Option<f64> {
    task.deadline_at_ms.map(|at_ms| (at_ms as f64 - clock::now_ms() as f64) / 1000.0)
}

/// Checks that the model can output what is to be sent up.
fn check(infer: &InferencePool, verify: &VerifySettings) -> Result<(), Fault> {
    let model = infer.model();
    if verify.payload == PayloadKind::Features && model.description.output.features.is_none() {
        let reason =
            format!("model {} outputs no features, which recognizer.verify.payload requires", model.description.name);
        let remedy = "name its features output in model.toml (output.features), or use payload \"image\" or \"never\"";
        return Err(Fault::Stop(FaultNote::new("features_missing", reason, remedy)));
    }
    Ok(())
}

/// Checks that the worker's own model has a novelty score if novelty is to be tested.
fn check_novelty(root: &Model, gate: &GateSettings) -> Result<(), Fault> {
    let gate = Gate::new(gate, &root.description.gate);
    if !gate.tests_novelty() || root.novelty.is_some() {
        return Ok(());
    }
    Err(Fault::Stop(novelty_missing(root)))
}

/// The fault of a gate that tests novelty while the serving release has no score, as releases of rounds have none.
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

/// The fault of an image on a subject that is not this site's, with the subject that was probably meant.
fn misdirected(site: &SiteName, subject: &str) -> Fault {
    let tokens = subject.split('.').rev().filter_map(|token| token.trim_matches('/').parse::<CameraName>().ok());
    let meant = tokens.into_iter().find(|token| token.as_str() != "image" && token.as_str() != site.as_str());
    let camera = meant.as_ref().map_or("<camera>", CameraName::as_str);
    let shown: String = subject.chars().take(100).collect();
    let reason =
        format!("{shown:?} is not image.{site}.<camera>; the camera's name may contain letters, digits, - and _");
    let remedy = format!("publish to image.{site}.{camera}; over MQTT the topic is image/{site}/{camera}");
    Fault::reject("subject_unknown", reason, remedy)
}

fn no_class() -> Fault {
    Fault::retry("model_without_classes", "the model returned no scores")
}
