//! Collects evidence for calibration: the cloud's verdicts on our answers, and the number of our
//! answers. Added to the ledger every few seconds, together with that of the site's other recognizers.
//! What was counted since the last write is lost with the process, which costs only certainty.
//!
//! Evidence belongs to one release; the next release starts with a fraction of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::handler::DeadLetterContext;
use runtime::{ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, consume};
use schemas::{Answer, FaultNote, Reason, ReleaseId, Role, Route, SiteName, decode, predictions_agree};
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Bus, CarryError, Delivery, Publisher, topology};

use offload::calibration::CalibrationEvidence;

const WRITE_INTERVAL: Duration = Duration::from_secs(3);
/// Answers handled at a time.
const CREDITS: usize = 64;

/// Evidence counted since the last write; clones share it.
#[derive(Clone)]
pub(crate) struct VerdictLearner {
    site: SiteName,
    known: Arc<Mutex<BTreeMap<ReleaseId, VerdictCounts>>>,
}

/// Evidence about one release.
struct VerdictCounts {
    classes: usize,
    temperature: f32,
    fresh: CalibrationEvidence,
}

/// Key of the ledger note with the evidence about a release.
pub(crate) fn calibration_note(release: &ReleaseId) -> String {
    format!("evidence-{}", release.short())
}

impl VerdictLearner {
    /// A learner that knows no release yet.
    pub(crate) fn new(site: SiteName) -> Self {
        Self { site, known: Arc::default() }
    }

    /// Adds a release with this many classes, whose gate divides its logits by `temperature`.
    pub(crate) fn serve(&self, release: &ReleaseId, classes: usize, temperature: f32) {
        let known = VerdictCounts { classes, temperature, fresh: CalibrationEvidence::default() };
        self.with(|all| {
            all.entry(release.clone()).or_insert(known);
        });
    }

    /// Counts an answer of ours, with its confidence under the gate's own temperature.
    pub(crate) fn add_answer(&self, release: &ReleaseId, label: &str, confidence: f32) {
        self.with(|all| {
            if let Some(known) = all.get_mut(release) {
                known.fresh.add_answer(label, confidence);
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<ReleaseId, VerdictCounts>) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the site's answers and writes the evidence until told to stop.
    pub(crate) async fn run(&self, bus: &Bus, publisher: &Publisher, ack_wait: Duration, shutdown: &Shutdown) {
        let from = ConsumerConfig {
            durable: topology::learner_durable(&self.site),
            credits: CREDITS,
            resized: None,
            tries: None,
            ack_wait,
        };
        let (learner, stats) = (Arc::new(self.clone()), Arc::new(WorkerStats::default()));
        let reading = consume(learner, bus, publisher.clone(), from, stats, shutdown.clone());
        let (ended, ()) = tokio::join!(reading, self.write(bus, shutdown.clone()));
        tracing::debug!(?ended, "learner stopped");
    }

    /// Writes the evidence to the ledger until told to stop, and once more then.
    async fn write(&self, bus: &Bus, shutdown: Shutdown) {
        loop {
            let stop = tokio::select! {
                () = tokio::time::sleep(WRITE_INTERVAL) => false,
                () = shutdown.wait_for_request() => true,
            };
            let fresh = self.with(|all| {
                let taken = all.iter_mut().map(|(release, known)| (release.clone(), std::mem::take(&mut known.fresh)));
                taken.filter(|(_, fresh)| *fresh != CalibrationEvidence::default()).collect::<Vec<_>>()
            });
            for (release, fresh) in fresh {
                let add = |text: Option<&str>| {
                    let known = text.and_then(|text| serde_json::from_str::<CalibrationEvidence>(text).ok());
                    let mut all = known.unwrap_or_default();
                    all.add(&fresh);
                    serde_json::to_string(&all).unwrap_or_default()
                };
                let written = async { Ledger::open(bus).await?.update_note(&calibration_note(&release), add).await };
                if let Err(error) = written.await {
                    tracing::debug!(%error, "calibration write deferred");
                    self.with(|all| {
                        if let Some(known) = all.get_mut(&release) {
                            known.fresh.add(&fresh);
                        }
                    });
                }
            }
            if stop {
                return;
            }
        }
    }
}

/// Starts a release without evidence with a fraction of that of its predecessor.
pub(crate) async fn inherit_evidence(bus: &Bus, from: &ReleaseId, to: &ReleaseId) -> Result<(), CarryError> {
    let ledger = Ledger::open(bus).await?;
    if ledger.read(&calibration_note(to)).await?.is_some() {
        return Ok(());
    }
    let before = ledger
        .read(&calibration_note(from))
        .await?
        .and_then(|text| serde_json::from_str::<CalibrationEvidence>(&text).ok());
    let Some(decayed) = before.map(|before| before.decayed()) else { return Ok(()) };
    let begin = |current: Option<&str>| {
        let decayed = || serde_json::to_string(&decayed).unwrap_or_default();
        current.map_or_else(decayed, str::to_owned)
    };
    ledger.update_note(&calibration_note(to), begin).await
}

impl Handler for VerdictLearner {
    const ROLE: Role = Role::Recognizer;
    const STREAM: &'static str = topology::ANSWERS;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let answer: Answer = decode(delivery.payload())?;
        let is_strange = answer.reason == Reason::HighNovelty;
        let verdict = (answer.route == Route::Verified && !is_strange).then(|| answer.prediction()).flatten();
        if let (Some(edge), Some(verdict)) = (answer.edge, verdict) {
            let is_agreed = predictions_agree(&edge, &verdict);
            self.with(|all| {
                if let Some(known) = all.get_mut(&edge.release) {
                    known.fresh.add_verdict(&edge, &verdict.label, is_agreed, known.classes, known.temperature);
                }
            });
        }
        Ok(OutgoingMessages::default())
    }

    fn dead_letter(&self, _message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        DeadLetterContext { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}
