//! Collects what verdicts teach: final answers of the cloud about answers of ours, and how many answers of
//! ours there are. Written into the ledger every few seconds, where all recognizers of the site add theirs.
//! What was counted since the last time is lost with the process; nothing but certainty depends on it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::step::Burial;
use runtime::{Credit, Fault, Outgoing, Shutdown, Step};
use schemas::{Answer, FaultNote, ReleaseId, Route, SiteName, decode};
use streams::fleet::Ledger;
use streams::{Bus, Delivery, topology};

use crate::learn::Evidence;

const WRITE_EVERY: Duration = Duration::from_secs(3);

/// What was counted since the last time; clones share it.
#[derive(Clone)]
pub struct Learner {
    site: SiteName,
    release: ReleaseId,
    classes: usize,
    temperature: f32,
    fresh: Arc<Mutex<Evidence>>,
}

impl Learner {
    /// About a release of so many classes, whose gate divides its logits by `temperature`.
    pub fn new(site: SiteName, release: ReleaseId, classes: usize, temperature: f32) -> Self {
        Self { site, release, classes, temperature, fresh: Arc::default() }
    }

    /// The ledger's note of what was learned.
    pub fn note(&self) -> String {
        format!("evidence-{}", self.release.short())
    }

    /// An answer of ours, with its confidence under the gate's own temperature.
    pub fn seen(&self, label: &str, confidence: f32) {
        self.with(|fresh| fresh.seen(label, confidence));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Evidence) -> T) -> T {
        act(&mut self.fresh.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down what was counted, until told to stop and once more then.
    pub async fn write(&self, bus: &Bus, shutdown: Shutdown) {
        loop {
            let stop = tokio::select! {
                () = tokio::time::sleep(WRITE_EVERY) => false,
                () = shutdown.wanted() => true,
            };
            let fresh = self.with(std::mem::take);
            if fresh != Evidence::default() {
                let add = |text: Option<&str>| {
                    let known = text.and_then(|text| serde_json::from_str::<Evidence>(text).ok());
                    let mut all = known.unwrap_or_default();
                    all.add(&fresh);
                    serde_json::to_string(&all).unwrap_or_default()
                };
                let written = async { Ledger::open(bus).await?.change(&self.note(), add).await };
                if let Err(error) = written.await {
                    tracing::debug!(%error, "what was learned is written down later");
                    self.with(|later| later.add(&fresh));
                }
            }
            if stop {
                return;
            }
        }
    }
}

impl Step for Learner {
    const ROLE: &'static str = "recognizer";
    const STREAM: &'static str = topology::ANSWERS;

    async fn handle(&self, delivery: &Delivery, _credit: &Credit) -> Result<Outgoing, Fault> {
        let answer: Answer = decode(delivery.payload())?;
        let ours = answer.edge.filter(|edge| edge.release == self.release);
        if let (Route::Verified, Some(edge), Some(right)) = (answer.route, ours, answer.label) {
            self.with(|fresh| fresh.verified(&edge, &right, self.classes, self.temperature));
        }
        Ok(Outgoing::default())
    }

    fn bury(&self, _delivery: &Delivery, _fault: &FaultNote) -> Burial {
        Burial { site: self.site.clone(), task: None, publications: Vec::new() }
    }
}
