//! Keeps references in the ledger, where a restarted worker and others of its role at the site find them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemas::{DriftReport, ReleaseId};
use streams::fleet::Ledger;
use streams::{Bus, CarryError};

use super::{DriftMonitor, DriftReference, DriftSample, DriftSettings};
use crate::Shutdown;

/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Releases that are followed at once: while one follows another, answers about both come.
const MAX_RELEASES: usize = 2;

/// What is followed, which tells the notes of two roles apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftKind {
    /// Confidence and novelty of a recognizer's answers.
    Answers,
    /// How often the cloud agrees, which the courier sees.
    Agreement,
}

/// The ledger's note of a reference. `null` there asks for a new one.
pub fn reference_note(kind: DriftKind, release: &ReleaseId) -> String {
    let kind = match kind {
        DriftKind::Answers => "answers",
        DriftKind::Agreement => "agreement",
    };
    format!("drift-{kind}-{}", release.short())
}

/// Follows the answers of the release that serves; clones share it.
#[derive(Debug, Clone)]
pub struct DriftWatch {
    kind: DriftKind,
    settings: DriftSettings,
    /// The latest release last.
    followed: Arc<Mutex<Vec<DriftTarget>>>,
}

#[derive(Debug)]
struct DriftTarget {
    monitor: DriftMonitor,
    /// Whether its reference is the one in the ledger.
    is_kept: bool,
}

impl DriftWatch {
    /// Of no release yet.
    pub fn new(kind: DriftKind, settings: DriftSettings) -> Self {
        Self { kind, settings, followed: Arc::default() }
    }

    /// This release serves from now on.
    pub fn follow_release(&self, release: &ReleaseId) {
        self.with(|followed| {
            if let Some(place) = followed.iter().position(|known| known.monitor.release() == release) {
                return followed[place..].rotate_left(1);
            }
            let monitor = DriftMonitor::new(release.clone(), self.settings);
            followed.push(DriftTarget { monitor, is_kept: false });
            let surplus = followed.len().saturating_sub(MAX_RELEASES);
            followed.drain(..surplus);
        });
    }

    /// An answer of a release; of one that is not followed it is passed over.
    pub fn add(&self, release: &ReleaseId, sample: DriftSample) {
        self.with(|followed| {
            if let Some(known) = followed.iter_mut().rfind(|known| known.monitor.release() == release) {
                known.monitor.add(sample);
            }
        });
    }

    /// Whether a release is followed.
    pub fn follows(&self, release: &ReleaseId) -> bool {
        self.with(|followed| followed.iter().any(|known| known.monitor.release() == release))
    }

    /// What the recent answers of the latest release are like; `None` before one serves.
    pub fn report(&self) -> Option<DriftReport> {
        self.with(|followed| followed.last().map(|known| known.monitor.report()))
    }

    /// Keeps the reference of the latest release in the ledger until told to stop.
    pub async fn save_reference(&self, bus: &Bus, shutdown: Shutdown) {
        loop {
            if let Err(error) = self.look(bus).await {
                tracing::debug!(%error, "reference not kept yet");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.wait_for_request() => return,
            }
        }
    }

    /// Takes over what the ledger says, or writes what it lacks.
    async fn look(&self, bus: &Bus) -> Result<(), CarryError> {
        let Some(release) = self.with(|followed| followed.last().map(|known| known.monitor.release().clone())) else {
            return Ok(());
        };
        let (ledger, key) = (Ledger::open(bus).await?, reference_note(self.kind, &release));
        let found = ledger.read(&key).await?;
        let Some(own) = self.compare(&release, found.as_deref().and_then(parse)) else { return Ok(()) };
        let text = serde_json::to_string(&own).unwrap_or_default();
        // Whoever was first has the say; the next look takes it over.
        let keep = |found: Option<&str>| match found.filter(|found| parse(found).is_some()) {
            Some(found) => found.to_owned(),
            None => text.clone(),
        };
        ledger.update_note(&key, keep).await?;
        // From now on a note that is gone was taken away, and is not to be written again.
        self.with(|followed| {
            if let Some(known) = followed.iter_mut().rfind(|known| *known.monitor.release() == release) {
                known.is_kept = true;
            }
        });
        Ok(())
    }

    /// Takes over a reference that was found; gives the own one that is to be written.
    fn compare(&self, release: &ReleaseId, found: Option<DriftReference>) -> Option<DriftReference> {
        self.with(|followed| {
            let known = followed.iter_mut().rfind(|known| known.monitor.release() == release)?;
            match found {
                Some(found) => {
                    if known.monitor.reference() != Some(&found) {
                        known.monitor.adopt(found);
                    }
                    known.is_kept = true;
                    None
                }
                None if known.is_kept => {
                    known.monitor.restart(self.settings);
                    known.is_kept = false;
                    None
                }
                None => known.monitor.reference().cloned(),
            }
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<DriftTarget>) -> T) -> T {
        act(&mut self.followed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `None` for what is no reference, or an empty one.
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
    fn a_full_reference_is_written_taken_over_and_begun_anew() {
        let settings = DriftSettings { reference_answers: 100, recent_answers: 50 };
        let release = ReleaseId::from_sha256([1; 32]);
        let [first, second] = [(); 2].map(|()| DriftWatch::new(DriftKind::Answers, settings));
        [&first, &second].into_iter().for_each(|watch| watch.follow_release(&release));
        let written = full(&first, &release);
        let kept = parse(&serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(second.compare(&release, Some(kept.clone())), None);
        assert_eq!(second.report().unwrap().reference_answers, 100, "it is taken over");
        first.compare(&release, Some(kept));
        assert_eq!(first.compare(&release, parse("null")), None);
        assert_eq!(first.report().unwrap().reference_answers, 0, "it is begun anew");
        assert_eq!(parse("{\"stretches\": []}"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn answers_of_the_release_before_do_not_count_for_the_one_that_serves() {
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
    fn a_reference_that_was_bent_is_compared_with_or_passed_over() {
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
                        "{measure:?}: a beat nobody reads"
                    );
                }
            }
            1
        });
    }
}
