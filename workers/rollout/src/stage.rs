//! How a model's releases stand, and what may be decided next: candidate → canary → stable | withdrawn. Pure; each
//! decision returns how they stand after it, or says why it cannot be.

use schemas::{
    Canary, CanaryFinding, DecisionOrigin, ModelName, Order, Release, ReleaseDecision, ReleaseId, ReleaseStage,
    Rollout, SiteName,
};

/// So many releases that were stable can be come back to.
const MOST_PREVIOUS: usize = 5;
/// So many may wait to be tried; the oldest makes way, for what came after it was made from it.
const MOST_CANDIDATES: usize = 8;
/// So many that were withdrawn are remembered.
const MOST_WITHDRAWN: usize = 64;

/// Who decides, why, on what numbers and when.
#[derive(Debug, Clone)]
pub struct DecisionContext {
    /// Who.
    pub origin: DecisionOrigin,
    /// In words for people.
    pub why: String,
    /// The numbers it rests on.
    pub findings: Vec<CanaryFinding>,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
}

impl DecisionContext {
    /// Without numbers.
    pub fn new(origin: DecisionOrigin, why: impl Into<String>, at_ms: u64) -> Self {
        Self { origin, why: why.into(), findings: Vec::new(), at_ms }
    }
}

/// Why something cannot be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageRefusal {
    /// It is what every site runs.
    #[error("release {0} is stable already")]
    Stable(String),
    /// It waits, or is tried, or was.
    #[error("release {release} is {stage} already")]
    Known {
        /// Its first digits.
        release: String,
        /// How it stands.
        stage: &'static str,
    },
    /// Nobody tries it.
    #[error("release {0} is neither tried nor waiting: `tributary release list` says how each stands")]
    NotTried(String),
    /// Another is.
    #[error("release {0} is tried just now: promote or withdraw it first")]
    Busy(String),
    /// There was none.
    #[error("nothing was stable before release {0}: there is nothing to come back to")]
    NothingBefore(String),
    /// It runs everywhere.
    #[error("release {0} is stable: `tributary release rollback` comes back to the one before it")]
    RollBack(String),
    /// The site is not pinned.
    #[error("site {0} is not pinned to anything")]
    NotPinned(SiteName),
    /// A ring without sites.
    #[error("no site can try release {0}")]
    NoRing(String),
}

/// The first decision: what sites were set up with is stable.
pub fn first(model: ModelName, release: Release, said: DecisionContext) -> Rollout {
    let decision = decision(ReleaseStage::Stable, &release.release, said.clone(), None);
    Rollout {
        model,
        number: 1,
        said_at_ms: said.at_ms,
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
    said: DecisionContext,
    site: Option<SiteName>,
) -> ReleaseDecision {
    ReleaseDecision {
        stage,
        release: release.clone(),
        origin: said.origin.into(),
        why: said.why,
        site,
        findings: said.findings,
    }
}

fn after(
    now: &Rollout,
    stage: ReleaseStage,
    release: &ReleaseId,
    said: DecisionContext,
    site: Option<SiteName>,
) -> Rollout {
    Rollout {
        number: now.number.saturating_add(1),
        said_at_ms: said.at_ms,
        decision: decision(stage, release, said, site),
        ..now.clone()
    }
}

/// How a release stands; `None` if nothing was decided about it that still holds.
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

/// A release waits to be tried.
pub fn candidate(now: &Rollout, release: Release, said: DecisionContext) -> Result<Rollout, StageRefusal> {
    if let Some(stage) = stage_of(now, &release.release).filter(|stage| *stage != ReleaseStage::Pinned) {
        return Err(StageRefusal::Known { release: release.release.short().into(), stage: stage.as_str() });
    }
    let mut next = after(now, ReleaseStage::Candidate, &release.release, said, None);
    next.candidates.push(release);
    let surplus = next.candidates.len().saturating_sub(MOST_CANDIDATES);
    next.candidates.drain(..surplus);
    Ok(next)
}

/// A ring of sites tries a candidate, or a wider one what a narrower one tries. Candidates that came before it are
/// passed over: it was made after them.
pub fn canary(
    now: &Rollout,
    release: &ReleaseId,
    step: u32,
    ring: Vec<SiteName>,
    said: DecisionContext,
) -> Result<Rollout, StageRefusal> {
    let short = || release.short().to_owned();
    if ring.is_empty() {
        return Err(StageRefusal::NoRing(short()));
    }
    let mut next = after(now, ReleaseStage::Canary, release, said, None);
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

/// Every site is to run a release.
pub fn stable(now: &Rollout, release: Release, said: DecisionContext) -> Result<Rollout, StageRefusal> {
    if now.stable.release == release.release {
        return Err(StageRefusal::Stable(release.release.short().into()));
    }
    let mut next = after(now, ReleaseStage::Stable, &release.release, said, None);
    next.candidates.retain(|candidate| candidate.release != release.release);
    // Whatever else was tried would be held against another stable release now: it waits again.
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

/// No site is to run a release that is tried or waits.
pub fn withdraw(now: &Rollout, release: &ReleaseId, said: DecisionContext) -> Result<Rollout, StageRefusal> {
    match stage_of(now, release) {
        Some(ReleaseStage::Canary | ReleaseStage::Candidate) => {}
        Some(ReleaseStage::Stable) => return Err(StageRefusal::RollBack(release.short().into())),
        _ => return Err(StageRefusal::NotTried(release.short().into())),
    }
    let mut next = after(now, ReleaseStage::Withdrawn, release, said, None);
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

/// What was stable before is stable again, and what is stable now is withdrawn.
pub fn roll_back(now: &Rollout, said: DecisionContext) -> Result<Rollout, StageRefusal> {
    let bad = now.stable.release.clone();
    let before = now.previous.last().cloned().ok_or_else(|| StageRefusal::NothingBefore(bad.short().into()))?;
    let mut next = stable(now, before, said)?;
    next.previous.retain(|previous| previous.release != bad);
    forget(&mut next, &bad);
    Ok(next)
}

/// A site runs a release, whatever is decided.
pub fn pin(now: &Rollout, site: SiteName, release: Release, said: DecisionContext) -> Rollout {
    let mut next = after(now, ReleaseStage::Pinned, &release.release, said, Some(site.clone()));
    next.pins.insert(site, release);
    next
}

/// A site follows what is decided again.
pub fn unpin(now: &Rollout, site: SiteName, said: DecisionContext) -> Result<Rollout, StageRefusal> {
    let pinned = now.pins.get(&site).ok_or_else(|| StageRefusal::NotPinned(site.clone()))?;
    let mut next = after(now, ReleaseStage::Unpinned, &pinned.release, said, Some(site.clone()));
    next.pins.remove(&site);
    Ok(next)
}

/// What a site shall run.
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

    fn said() -> DecisionContext {
        DecisionContext::new(DecisionOrigin::Hand, "because", 5)
    }

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn begun() -> Rollout {
        first("fish".parse().unwrap(), release(0), said())
    }

    fn runs(now: &Rollout, name: &str) -> ReleaseId {
        order_for_site(now, &site(name)).release.release
    }

    #[test]
    fn a_release_is_tried_by_a_ring_before_all_have_it_and_can_be_come_back_from() {
        let waiting = candidate(&begun(), release(1), said()).unwrap();
        assert_eq!(runs(&waiting, "a"), id(0), "waiting moves nobody");
        let tried = canary(&waiting, &id(1), 0, vec![site("a")], said()).unwrap();
        assert_eq!((runs(&tried, "a"), runs(&tried, "b")), (id(1), id(0)));
        let wider = canary(&tried, &id(1), 1, vec![site("a"), site("b")], said()).unwrap();
        assert_eq!((runs(&wider, "b"), wider.canary.as_ref().unwrap().since_ms), (id(1), 5));
        let all = stable(&wider, wider.canary.clone().unwrap().release, said()).unwrap();
        assert_eq!((runs(&all, "c"), all.canary.is_none(), all.candidates.len()), (id(1), true, 0));
        let back = roll_back(&all, said()).unwrap();
        assert_eq!((runs(&back, "a"), stage_of(&back, &id(1))), (id(0), Some(ReleaseStage::Withdrawn)));
        assert_eq!(roll_back(&back, said()), Err(StageRefusal::NothingBefore(id(0).short().into())));
        assert_eq!(back.number, 6);
    }

    #[test]
    fn what_is_withdrawn_is_run_nowhere_and_does_not_come_again_by_itself() {
        let waiting = candidate(&begun(), release(1), said()).unwrap();
        let tried = canary(&waiting, &id(1), 0, vec![site("a")], said()).unwrap();
        let gone = withdraw(&tried, &id(1), said()).unwrap();
        assert_eq!(runs(&gone, "a"), id(0));
        assert!(matches!(candidate(&gone, release(1), said()), Err(StageRefusal::Known { stage: "withdrawn", .. })));
        assert!(matches!(withdraw(&gone, &id(0), said()), Err(StageRefusal::RollBack(_))));
        assert!(matches!(withdraw(&gone, &id(9), said()), Err(StageRefusal::NotTried(_))));
    }

    #[test]
    fn the_newest_of_those_that_wait_is_tried_and_the_older_are_passed_over() {
        let mut now = begun();
        for number in 1..=12 {
            now = candidate(&now, release(number), said()).unwrap();
        }
        assert_eq!(now.candidates.len(), MOST_CANDIDATES);
        let tried = canary(&now, &id(11), 0, vec![site("a")], said()).unwrap();
        assert_eq!(tried.candidates.iter().map(|left| left.release.clone()).collect::<Vec<_>>(), [id(12)]);
        assert!(matches!(canary(&tried, &id(12), 0, vec![site("a")], said()), Err(StageRefusal::Busy(_))));
        assert!(matches!(canary(&now, &id(12), 0, Vec::new(), said()), Err(StageRefusal::NoRing(_))));
    }

    #[test]
    fn a_pinned_site_stays_where_it_is() {
        let pinned = pin(&begun(), site("a"), release(7), said());
        let all = stable(&pinned, release(1), said()).unwrap();
        assert_eq!((runs(&all, "a"), runs(&all, "b")), (id(7), id(1)));
        let free = unpin(&all, site("a"), said()).unwrap();
        assert_eq!(runs(&free, "a"), id(1));
        assert_eq!(unpin(&free, site("a"), said()), Err(StageRefusal::NotPinned(site("a"))));
    }

    proptest! {
        /// Invariants 6 and 7: whatever is decided in whatever order, one that no ring tried is stable only by hand, and
        /// what was stable before can be come back to.
        #[test]
        fn every_site_always_has_one_release_and_numbers_never_repeat(steps in prop::collection::vec((0u8..6, 0u8..6), 0..40)) {
            let mut now = begun();
            for (what, which) in steps {
                let next = match what {
                    0 => candidate(&now, release(which), said()),
                    1 => canary(&now, &id(which), 0, vec![site("a")], said()),
                    2 => stable(&now, release(which), said()),
                    3 => withdraw(&now, &id(which), said()),
                    4 => roll_back(&now, said()),
                    _ => Ok(pin(&now, site("b"), release(which), said())),
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
