//! The stage of releases, and the decisions about each. Pure.

use releases::stage;
use schemas::{ReleaseId, ReleaseStage, Rollout};

/// The stage of a release, in a word; empty before the first decision about its model.
pub fn stage_word(history: &[Rollout], release: &ReleaseId) -> &'static str {
    let Some(now) = history.last() else { return "" };
    let before = || history.iter().any(|then| then.stable.release == *release).then_some("was stable");
    stage::stage_of(now, release).map(ReleaseStage::as_str).or_else(before).unwrap_or("passed over")
}

/// The decisions about a release, oldest first: those that name it, and those about another one that moved it, as a
/// rollback and a promotion do.
pub fn decisions_about<'a>(history: &'a [Rollout], release: &ReleaseId) -> Vec<&'a Rollout> {
    let mut before = None;
    let moved = |then: &&Rollout| {
        let stage = stage::stage_of(then, release);
        // The names of withdrawn releases are forgotten in time, which is no decision.
        let was_moved = before.is_some_and(|before| stage != Some(before) && before != ReleaseStage::Withdrawn);
        before = stage;
        was_moved || then.decision.release == *release
    };
    history.iter().filter(moved).collect()
}
