//! Counts how often recent verdicts agree with the site's own answers: what asking the cloud gains.

use std::sync::{Arc, Mutex, PoisonError};

use schemas::{AgreementCount, Prediction, Reason, RecentVerdicts, ReleaseId};

/// Verdicts of each kind after which all counts are halved, so that they follow a change.
const MAX_VERDICTS: u64 = 1000;
/// A new release begins with this fraction of its predecessor's counts, as calibration does.
const INHERITED_SHARE: u64 = 4;

/// The counts of the release that answered last; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct VerdictCounter(Arc<Mutex<ReleaseVerdicts>>);

#[derive(Debug, Default)]
struct ReleaseVerdicts {
    release: Option<ReleaseId>,
    counts: RecentVerdicts,
}

impl VerdictCounter {
    /// Counts a verdict on an answer that was sent up for this reason, and whether it agrees.
    pub(crate) fn add(&self, edge: &Prediction, reason: Reason, is_agreed: bool) {
        // Strange pictures go up at any confidence, so they say nothing about the others.
        if reason == Reason::HighNovelty {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.release.as_ref() != Some(&edge.release) {
            state.counts = divided(state.counts, INHERITED_SHARE);
            state.release = Some(edge.release.clone());
        }
        let RecentVerdicts { doubtful, sampled } = &mut state.counts;
        let count = if reason == Reason::Sampled { sampled } else { doubtful };
        count.asked += 1;
        count.agreed += u64::from(is_agreed);
        if count.asked > MAX_VERDICTS {
            *count = halved(*count);
        }
    }

    /// The counts; `None` before the first verdict.
    pub(crate) fn report(&self) -> Option<RecentVerdicts> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner).counts;
        (counts != RecentVerdicts::default()).then_some(counts)
    }
}

fn halved(count: AgreementCount) -> AgreementCount {
    AgreementCount { asked: count.asked / 2, agreed: count.agreed / 2 }
}

fn divided(counts: RecentVerdicts, by: u64) -> RecentVerdicts {
    let part = |count: AgreementCount| AgreementCount { asked: count.asked / by, agreed: count.agreed / by };
    RecentVerdicts { doubtful: part(counts.doubtful), sampled: part(counts.sampled) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(release: u8) -> Prediction {
        Prediction {
            label: "crab".into(),
            confidence: 0.6,
            top: Vec::new(),
            labels: None,
            objects: None,
            release: ReleaseId::from_sha256([release; 32]),
            temperature: None,
            novelty: None,
        }
    }

    #[test]
    fn doubtful_and_sampled_answers_are_counted_apart_and_strange_ones_not_at_all() {
        let counter = VerdictCounter::default();
        assert_eq!(counter.report(), None);
        for (reason, is_agreed) in [
            (Reason::LowConfidence, true),
            (Reason::LowMargin, false),
            (Reason::Sampled, true),
            (Reason::HighNovelty, false),
        ] {
            counter.add(&edge(1), reason, is_agreed);
        }
        let count = |asked, agreed| AgreementCount { asked, agreed };
        assert_eq!(counter.report(), Some(RecentVerdicts { doubtful: count(2, 1), sampled: count(1, 1) }));
    }

    #[test]
    fn old_verdicts_fade_and_a_new_release_begins_with_a_quarter() {
        let counter = VerdictCounter::default();
        (0..3000).for_each(|_| counter.add(&edge(1), Reason::LowConfidence, false));
        (0..3000).for_each(|_| counter.add(&edge(1), Reason::LowConfidence, true));
        let known = counter.report().unwrap().doubtful;
        assert!(known.asked <= MAX_VERDICTS && known.agreed * 100 > known.asked * 95, "{known:?}");
        counter.add(&edge(2), Reason::LowConfidence, true);
        let next = counter.report().unwrap().doubtful;
        assert_eq!(next.asked, known.asked / 4 + 1);
    }
}
