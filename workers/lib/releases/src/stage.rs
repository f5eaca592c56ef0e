//! A model's rollout state and the decisions that may follow: candidate → canary → stable | withdrawn. Pure; each
//! decision returns the new state, or why it is not possible.

use schemas::{
    Canary, CanaryFinding, DecisionOrigin, ModelName, Order, Release, ReleaseDecision, ReleaseId, ReleaseStage,
    Rollout, SiteName,
};

/// Number of earlier stable releases that are kept for rollback.
const MOST_PREVIOUS: usize = 5;
/// Most waiting candidates; the oldest is dropped, because later ones were made from it.
const MOST_CANDIDATES: usize = 8;
/// Number of withdrawn releases that are remembered.
const MOST_WITHDRAWN: usize = 64;

/// Who decides, why, on which numbers, and when.
#[derive(Debug, Clone)]
pub struct DecisionContext {
    /// Who.
    pub origin: DecisionOrigin,
    /// Reason, in words for people.
    pub why: String,
    /// The numbers it rests on; empty for decisions by hand.
    pub findings: Vec<CanaryFinding>,
    /// Time of the decision, milliseconds since the epoch.
    pub at_ms: u64,
}

impl DecisionContext {
    /// A decision without numbers.
    pub fn new(origin: DecisionOrigin, why: impl Into<String>, at_ms: u64) -> Self {
        Self { origin, why: why.into(), findings: Vec::new(), at_ms }
    }
}

/// Why a decision is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageRefusal {
    /// It is already stable.
    #[error("release {0} is already stable")]
    Stable(String),
    /// It already waits, is being tried, or was.
    #[error("release {release} is already {stage}")]
    Known {
        /// Short id of the release.
        release: String,
        /// Its stage.
        stage: &'static str,
    },
    /// It is neither a canary nor a candidate.
    #[error("release {0} is neither a canary nor a candidate; `tributary release list` shows the stage of each")]
    NotTried(String),
    /// Another release is the canary.
    #[error("release {0} is being tried; promote or withdraw it first")]
    Busy(String),
    /// There is no earlier stable release.
    #[error("no release was stable before release {0}; there is nothing to roll back to")]
    NothingBefore(String),
    /// It is stable, so it is rolled back, not withdrawn.
    #[error("release {0} is stable; use `tributary release rollback` to return to the one before it")]
    RollBack(String),
    /// The site is not pinned.
    #[error("site {0} is not pinned")]
    NotPinned(SiteName),
    /// The ring has no sites.
    #[error("no site can try release {0}")]
    NoRing(String),
}

/// The first decision: the baseline becomes stable.
pub fn first(model: ModelName, release: Release, context: DecisionContext) -> Rollout {
    let decision = decision(ReleaseStage::Stable, &release.release, context.clone(), None);
    Rollout {
        model,
        number: 1,
        said_at_ms: context.at_ms,
        decision,
        stable: release,
        previous: Vec::new(),
        canary: None,
        candidates: Vec::new(),
        withdrawn: Vec::new(),
        pins: std::collections::BTreeMap::new(),
    }
}

fn decision(
    stage: ReleaseStage,
    release: &ReleaseId,
    context: DecisionContext,
    site: Option<SiteName>,
) -> ReleaseDecision {
    ReleaseDecision {
        stage,
        release: release.clone(),
        origin: context.origin.into(),
        why: context.why,
        site,
        findings: context.findings,
    }
}

fn after(
    now: &Rollout,
    stage: ReleaseStage,
    release: &ReleaseId,
    context: DecisionContext,
    site: Option<SiteName>,
) -> Rollout {
    Rollout {
        number: now.number.saturating_add(1),
        said_at_ms: context.at_ms,
        decision: decision(stage, release, context, site),
        ..now.clone()
    }
}

/// A release's stage; `None` if no decision about it is remembered.
pub fn stage_of(now: &Rollout, release: &ReleaseId) -> Option<ReleaseStage> {
    let tried = now.canary.as_ref().is_some_and(|canary| canary.release.release == *release);
    let waits = now.candidates.iter().any(|candidate| candidate.release == *release);
    match () {
        () if now.stable.release == *release => Some(ReleaseStage::Stable),
        () if tried => Some(ReleaseStage::Canary),
        () if waits => Some(ReleaseStage::Candidate),
        () if now.withdrawn.contains(release) => Some(ReleaseStage::Withdrawn),
        () if now.pins.values().any(|pinned| pinned.release == *release) => Some(ReleaseStage::Pinned),
        () => None,
    }
}

/// Adds a release as a candidate.
pub fn candidate(now: &Rollout, release: Release, context: DecisionContext) -> Result<Rollout, StageRefusal> {
    if let Some(stage) = stage_of(now, &release.release).filter(|stage| *stage != ReleaseStage::Pinned) {
        return Err(StageRefusal::Known { release: release.release.short().into(), stage: stage.as_str() });
    }
    let mut next = after(now, ReleaseStage::Candidate, &release.release, context, None);
    next.candidates.push(release);
    let surplus = next.candidates.len().saturating_sub(MOST_CANDIDATES);
    next.candidates.drain(..surplus);
    Ok(next)
}

/// Makes a candidate the canary of a ring of sites, or widens the ring. Candidates older than it are dropped, because
/// it was made after them.
pub fn canary(
    now: &Rollout,
    release: &ReleaseId,
    step: u32,
    ring: Vec<SiteName>,
    context: DecisionContext,
) -> Result<Rollout, StageRefusal> {
    let short = || release.short().to_owned();
    if ring.is_empty() {
        return Err(StageRefusal::NoRing(short()));
    }
    let mut next = after(now, ReleaseStage::Canary, release, context, None);
    match &mut next.canary {
        Some(canary) if canary.release.release == *release => {
            (canary.step, canary.ring, canary.since_ms) = (step, ring, next.said_at_ms);
        }
        Some(other) => return Err(StageRefusal::Busy(other.release.release.short().into())),
        none => {
            let at = now.candidates.iter().position(|candidate| candidate.release == *release);
            let at = at.ok_or_else(|| StageRefusal::NotTried(short()))?;
            let release = next.candidates.drain(..=at).next_back().ok_or_else(|| StageRefusal::NotTried(short()))?;
            *none = Some(Canary { release, step, ring, since_ms: next.said_at_ms });
        }
    }
    Ok(next)
}

/// Makes a release stable, so that every site runs it.
pub fn stable(now: &Rollout, release: Release, context: DecisionContext) -> Result<Rollout, StageRefusal> {
    if now.stable.release == release.release {
        return Err(StageRefusal::Stable(release.release.short().into()));
    }
    let mut next = after(now, ReleaseStage::Stable, &release.release, context, None);
    next.candidates.retain(|candidate| candidate.release != release.release);
    // Another canary would now be compared with a new stable release, so it becomes a candidate again.
    if let Some(canary) = next.canary.take().filter(|canary| canary.release.release != release.release) {
        next.candidates.push(canary.release);
    }
    next.withdrawn.retain(|withdrawn| *withdrawn != release.release);
    next.previous.retain(|previous| previous.release != release.release);
    next.previous.push(std::mem::replace(&mut next.stable, release));
    let surplus = next.previous.len().saturating_sub(MOST_PREVIOUS);
    next.previous.drain(..surplus);
    Ok(next)
}

/// Withdraws a canary or candidate.
pub fn withdraw(now: &Rollout, release: &ReleaseId, context: DecisionContext) -> Result<Rollout, StageRefusal> {
    match stage_of(now, release) {
        Some(ReleaseStage::Canary | ReleaseStage::Candidate) => {}
        Some(ReleaseStage::Stable) => return Err(StageRefusal::RollBack(release.short().into())),
        _ => return Err(StageRefusal::NotTried(release.short().into())),
    }
    let mut next = after(now, ReleaseStage::Withdrawn, release, context, None);
    next.canary = next.canary.filter(|canary| canary.release.release != *release);
    next.candidates.retain(|candidate| candidate.release != *release);
    forget(&mut next, release);
    Ok(next)
}

fn forget(next: &mut Rollout, release: &ReleaseId) {
    next.withdrawn.push(release.clone());
    let surplus = next.withdrawn.len().saturating_sub(MOST_WITHDRAWN);
    next.withdrawn.drain(..surplus);
}

/// Makes the previous stable release stable again and withdraws the current one.
pub fn roll_back(now: &Rollout, context: DecisionContext) -> Result<Rollout, StageRefusal> {
    let bad = now.stable.release.clone();
    let before = now.previous.last().cloned().ok_or_else(|| StageRefusal::NothingBefore(bad.short().into()))?;
    let mut next = stable(now, before, context)?;
    next.previous.retain(|previous| previous.release != bad);
    forget(&mut next, &bad);
    Ok(next)
}

/// Pins a site to a release, overriding the rollout.
pub fn pin(now: &Rollout, site: SiteName, release: Release, context: DecisionContext) -> Rollout {
    let mut next = after(now, ReleaseStage::Pinned, &release.release, context, Some(site.clone()));
    next.pins.insert(site, release);
    next
}

/// Unpins a site, so that it follows the rollout again.
pub fn unpin(now: &Rollout, site: SiteName, context: DecisionContext) -> Result<Rollout, StageRefusal> {
    let pinned = now.pins.get(&site).ok_or_else(|| StageRefusal::NotPinned(site.clone()))?;
    let mut next = after(now, ReleaseStage::Unpinned, &pinned.release, context, Some(site.clone()));
    next.pins.remove(&site);
    Ok(next)
}

/// The order for a site: which release it is to run.
pub fn order_for_site(now: &Rollout, site: &SiteName) -> Order {
    let (release, stage) = match (&now.pins.get(site), &now.canary) {
        (Some(pinned), _) => (*pinned, ReleaseStage::Pinned),
        (None, Some(canary)) if canary.ring.contains(site) => (&canary.release, ReleaseStage::Canary),
        _ => (&now.stable, ReleaseStage::Stable),
    };
    Order {
        site: site.clone(),
        model: now.model.clone(),
        number: now.number,
        release: release.clone(),
        stage,
        said_at_ms: now.said_at_ms,
        signature: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8) -> ReleaseId {
        ReleaseId::from_sha256([number; 32])
    }

    fn release(number: u8) -> Release {
        Release {
            release: id(number),
            parent: None,
            origin: "imported".into(),
            package: Vec::new(),
            needs: schemas::MachineRequirements::default(),
            public: None,
            public_change_interval: None,
        }
    }

    fn context() -> DecisionContext {
        DecisionContext::new(DecisionOrigin::Hand, "because", 5)
    }

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn begun() -> Rollout {
        first("fish".parse().unwrap(), release(0), context())
    }

    fn runs(now: &Rollout, name: &str) -> ReleaseId {
        order_for_site(now, &site(name)).release.release
    }

    #[test]
    fn a_release_is_tried_by_a_ring_first_and_can_be_rolled_back() {
        let waiting = candidate(&begun(), release(1), context()).unwrap();
        assert_eq!(runs(&waiting, "a"), id(0), "a candidate moves no site");
        let tried = canary(&waiting, &id(1), 0, vec![site("a")], context()).unwrap();
        assert_eq!((runs(&tried, "a"), runs(&tried, "b")), (id(1), id(0)));
        let wider = canary(&tried, &id(1), 1, vec![site("a"), site("b")], context()).unwrap();
        assert_eq!((runs(&wider, "b"), wider.canary.as_ref().unwrap().since_ms), (id(1), 5));
        let all = stable(&wider, wider.canary.clone().unwrap().release, context()).unwrap();
        assert_eq!((runs(&all, "c"), all.canary.is_none(), all.candidates.len()), (id(1), true, 0));
        let back = roll_back(&all, context()).unwrap();
        assert_eq!((runs(&back, "a"), stage_of(&back, &id(1))), (id(0), Some(ReleaseStage::Withdrawn)));
        assert_eq!(roll_back(&back, context()), Err(StageRefusal::NothingBefore(id(0).short().into())));
        assert_eq!(back.number, 6);
    }

    #[test]
    fn a_withdrawn_release_runs_nowhere_and_does_not_return() {
        let waiting = candidate(&begun(), release(1), context()).unwrap();
        let tried = canary(&waiting, &id(1), 0, vec![site("a")], context()).unwrap();
        let gone = withdraw(&tried, &id(1), context()).unwrap();
        assert_eq!(runs(&gone, "a"), id(0));
        assert!(matches!(candidate(&gone, release(1), context()), Err(StageRefusal::Known { stage: "withdrawn", .. })));
        assert!(matches!(withdraw(&gone, &id(0), context()), Err(StageRefusal::RollBack(_))));
        assert!(matches!(withdraw(&gone, &id(9), context()), Err(StageRefusal::NotTried(_))));
    }

    #[test]
    fn the_newest_candidate_is_tried_and_older_ones_are_dropped() {
        let mut now = begun();
        for number in 1..=12 {
            now = candidate(&now, release(number), context()).unwrap();
        }
        assert_eq!(now.candidates.len(), MOST_CANDIDATES);
        let tried = canary(&now, &id(11), 0, vec![site("a")], context()).unwrap();
        assert_eq!(tried.candidates.iter().map(|left| left.release.clone()).collect::<Vec<_>>(), [id(12)]);
        assert!(matches!(canary(&tried, &id(12), 0, vec![site("a")], context()), Err(StageRefusal::Busy(_))));
        assert!(matches!(canary(&now, &id(12), 0, Vec::new(), context()), Err(StageRefusal::NoRing(_))));
    }

    #[test]
    fn a_pinned_site_keeps_its_release() {
        let pinned = pin(&begun(), site("a"), release(7), context());
        let all = stable(&pinned, release(1), context()).unwrap();
        assert_eq!((runs(&all, "a"), runs(&all, "b")), (id(7), id(1)));
        let free = unpin(&all, site("a"), context()).unwrap();
        assert_eq!(runs(&free, "a"), id(1));
        assert_eq!(unpin(&free, site("a"), context()), Err(StageRefusal::NotPinned(site("a"))));
    }

    proptest! {
        /// Invariants 6 and 7: whatever the order of decisions, a release that no ring tried becomes stable only by
        /// hand, and the previous stable release can be restored.
        #[test]
        fn every_site_always_has_one_release_and_numbers_never_repeat(steps in prop::collection::vec((0u8..6, 0u8..6), 0..40)) {
            let mut now = begun();
            for (what, which) in steps {
                let next = match what {
                    0 => candidate(&now, release(which), context()),
                    1 => canary(&now, &id(which), 0, vec![site("a")], context()),
                    2 => stable(&now, release(which), context()),
                    3 => withdraw(&now, &id(which), context()),
                    4 => roll_back(&now, context()),
                    _ => Ok(pin(&now, site("b"), release(which), context())),
                };
                let Ok(next) = next else { continue };
                prop_assert_eq!(next.number, now.number + 1);
                prop_assert!(next.previous.iter().all(|previous| previous.release != next.stable.release));
                prop_assert!(next.candidates.iter().all(|waits| waits.release != next.stable.release));
                prop_assert!(!next.withdrawn.contains(&next.stable.release));
                let tried = next.canary.as_ref().map(|canary| canary.release.release.clone());
                prop_assert!(tried.is_none_or(|tried| tried != next.stable.release && !next.withdrawn.contains(&tried)));
                now = next;
            }
        }
    }
}
