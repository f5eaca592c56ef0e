//! The stage of releases, and the decisions about each. Pure.

use releases::stage;
use schemas::{ReleaseId, ReleaseStage, Rollout};

/// The stage of a release, in a word; empty before the first decision about its model.
pub fn stage_word(history: &[Rollout], release: &ReleaseId) -> &'static str {
    let Some(now) = history.last() else { return "" };
    let before = || history.iter().any(|then| then.stable.release == *release).then_some("was stable");
    stage::stage_of(now, release).map(ReleaseStage::as_str).or_else(before).unwrap_or("passed over")
}

/// The decisions about a release, oldest first.
pub fn decisions_about<'a>(history: &'a [Rollout], release: &ReleaseId) -> Vec<&'a Rollout> {
    history.iter().filter(|then| then.decision.release == *release).collect()
}
