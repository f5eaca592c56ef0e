//! Keeps references in the ledger, where restarted workers and others of the role at the site find them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemas::{DriftReport, ReleaseId};
use streams::fleet::Ledger;
use streams::{Bus, CarryError};

use super::{DriftMonitor, DriftReference, DriftSample, DriftSettings};
use crate::Shutdown;

/// Interval of reading the ledger.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Most releases followed: while one replaces another, answers of both arrive.
const MAX_RELEASES: usize = 2;

/// What is followed; distinguishes the notes of two roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftKind {
    /// Confidence and novelty of a recognizer's answers.
    Answers,
    /// How often the cloud agrees, as the courier sees it.
    Agreement,
}

/// Key of the ledger note of a reference. The value `null` asks for a new one.
pub fn reference_note(kind: DriftKind, release: &ReleaseId) -> String {
    let kind = match kind {
        DriftKind::Answers => "answers",
        DriftKind::Agreement => "agreement",
    };
    format!("drift-{kind}-{}", release.short())
}

/// Follows the answers of the serving release; clones share it.
#[derive(Debug, Clone)]
pub struct DriftWatch {
    kind: DriftKind,
    settings: DriftSettings,
    /// The followed releases, the latest last.
    followed: Arc<Mutex<Vec<DriftTarget>>>,
}

#[derive(Debug)]
struct DriftTarget {
    monitor: DriftMonitor,
    /// Whether its reference is the one in the ledger.
    is_kept: bool,
}

impl DriftWatch {
    /// A watch that follows no release yet.
    pub fn new(kind: DriftKind, settings: DriftSettings) -> Self {
        Self { kind, settings, followed: Arc::default() }
    }

    /// Follows this release from now on as the serving one.
    pub fn follow_release(&self, release: &ReleaseId) {
        self.with(|followed| {
            if let Some(index) = followed.iter().position(|target| target.monitor.release() == release) {
                let target = followed.remove(index);
                return followed.push(target);
            }
            let monitor = DriftMonitor::new(release.clone(), self.settings);
            followed.push(DriftTarget { monitor, is_kept: false });
            let surplus = followed.len().saturating_sub(MAX_RELEASES);
            followed.drain(..surplus);
        });
    }

    /// Adds an answer of a release; ignored if the release is not followed.
    pub fn add(&self, release: &ReleaseId, sample: DriftSample) {
        self.with(|followed| {
            if let Some(target) = followed.iter_mut().rfind(|target| target.monitor.release() == release) {
                target.monitor.add(sample);
            }
        });
    }

    /// Whether a release is followed.
    pub fn follows(&self, release: &ReleaseId) -> bool {
        self.with(|followed| followed.iter().any(|target| target.monitor.release() == release))
    }

    /// The drift of the latest release; `None` before one serves.
    pub fn report(&self) -> Option<DriftReport> {
        self.with(|followed| followed.last().map(|target| target.monitor.report()))
    }

    /// Keeps the reference of the latest release in the ledger until told to stop.
    pub async fn save_reference(&self, bus: &Bus, shutdown: Shutdown) {
        loop {
            if let Err(error) = self.sync(bus).await {
                tracing::debug!(%error, "drift reference not saved");
            }
            tokio::select! {
                biased;
                () = shutdown.wait_for_request() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Adopts the ledger's reference, or writes it if the ledger has none.
    async fn sync(&self, bus: &Bus) -> Result<(), CarryError> {
        let Some(release) = self.with(|followed| followed.last().map(|target| target.monitor.release().clone())) else {
            return Ok(());
        };
        let (ledger, key) = (Ledger::open(bus).await?, reference_note(self.kind, &release));
        let saved = ledger.read(&key).await?;
        let Some(own) = self.compare(&release, saved.as_deref().and_then(parse)) else { return Ok(()) };
        let text = serde_json::to_string(&own).unwrap_or_default();
        // The first to write decides; the others adopt it at the next sync.
        let keep = |saved: Option<&str>| match saved.filter(|saved| parse(saved).is_some()) {
            Some(saved) => saved.to_owned(),
            None => text.clone(),
        };
        ledger.update_note(&key, keep).await?;
        // From now on a missing note means that somebody removed it, and it must not be written again.
        self.with(|followed| {
            if let Some(target) = followed.iter_mut().rfind(|target| *target.monitor.release() == release) {
                target.is_kept = true;
            }
        });
        Ok(())
    }

    /// Adopts the reference from the ledger, if there is one; otherwise returns our own, to be written.
    fn compare(&self, release: &ReleaseId, saved: Option<DriftReference>) -> Option<DriftReference> {
        self.with(|followed| {
            let target = followed.iter_mut().rfind(|target| target.monitor.release() == release)?;
            match saved {
                Some(saved) => {
                    if target.monitor.reference() != Some(&saved) {
                        target.monitor.adopt(saved);
                    }
                    target.is_kept = true;
                    None
                }
                None if target.is_kept => {
                    target.monitor.restart(self.settings);
                    target.is_kept = false;
                    None
                }
                None => target.monitor.reference().cloned(),
            }
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<DriftTarget>) -> T) -> T {
        act(&mut self.followed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `None` for an invalid or empty reference.
fn parse(text: &str) -> Option<DriftReference> {
    serde_json::from_str::<DriftReference>(text).ok().filter(|reference| reference.answers() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(confidence: f32) -> DriftSample {
        DriftSample { confidence: Some(confidence), ..DriftSample::default() }
    }

    fn full(watch: &DriftWatch, release: &ReleaseId) -> DriftReference {
        (0..100).for_each(|number| watch.add(release, sample(number as f32 / 100.0)));
        watch.compare(release, None).unwrap()
    }

    #[test]
    fn a_full_reference_is_written_adopted_and_restarted() {
        let settings = DriftSettings { reference_answers: 100, recent_answers: 50 };
        let release = ReleaseId::from_sha256([1; 32]);
        let [first, second] = [(); 2].map(|()| DriftWatch::new(DriftKind::Answers, settings));
        [&first, &second].into_iter().for_each(|watch| watch.follow_release(&release));
        let written = full(&first, &release);
        let kept = parse(&serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(second.compare(&release, Some(kept.clone())), None);
        assert_eq!(second.report().unwrap().reference_answers, 100, "it is adopted");
        first.compare(&release, Some(kept));
        assert_eq!(first.compare(&release, parse("null")), None);
        assert_eq!(first.report().unwrap().reference_answers, 0, "it starts again");
        assert_eq!(parse("{\"stretches\": []}"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn answers_of_the_previous_release_do_not_count_for_the_serving_one() {
        let watch = DriftWatch::new(DriftKind::Answers, DriftSettings::default());
        let [one, other, third] = [1, 2, 3].map(|number| ReleaseId::from_sha256([number; 32]));
        watch.follow_release(&one);
        watch.follow_release(&other);
        watch.add(&one, sample(0.5));
        assert_eq!(watch.report().unwrap().reference_answers, 0);
        watch.follow_release(&one);
        assert_eq!(watch.report().unwrap().reference_answers, 1, "it is back");
        watch.follow_release(&third);
        assert!(watch.follows(&one) && !watch.follows(&other));
    }

    #[test]
    fn a_damaged_reference_is_adopted_or_ignored() {
        let settings = DriftSettings { reference_answers: 100, recent_answers: 50 };
        let (watch, release) = (DriftWatch::new(DriftKind::Answers, settings), ReleaseId::from_sha256([1; 32]));
        watch.follow_release(&release);
        let whole = serde_json::to_vec(&full(&watch, &release)).unwrap();
        bend::bend_all("notes of drift", &[whole], bend::turns() / 4, |bytes| {
            if let Some(reference) = parse(&String::from_utf8_lossy(bytes)) {
                let mut monitor = DriftMonitor::new(release.clone(), settings);
                monitor.adopt(reference);
                (0..60).for_each(|number| monitor.add(sample(number as f32 / 60.0)));
                let report = monitor.report();
                let all = [&report.confidence, &report.novelty, &report.agreement];
                for measure in all.into_iter().flatten() {
                    let numbers = [measure.reference_ratio, measure.recent_ratio, measure.distance_ratio];
                    assert!(
                        numbers.iter().all(|ratio| (0.0..=1.0).contains(ratio)),
                        "{measure:?}: heartbeats would be refused"
                    );
                }
            }
            1
        });
    }
}
