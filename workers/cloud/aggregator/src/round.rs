//! A model's rounds as a fold over the stream's events: updates stored before the round's closing event are in it,
//! later ones are stragglers, for every reader and every time it is read. Pure; the clock only decides when to publish
//! the closing event.

use std::collections::BTreeSet;

use schemas::{ReleaseId, Round, RoundEvent, RoundTerms, SiteName, Update};

use crate::check::UpdateRefusal;

/// Most updates of one site that wait for the next round: as many as the stream keeps per subject. The newest are kept.
const MOST_WAITING: usize = 4;

/// State of a model's rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundTracker {
    /// Releases, oldest first, each the parent of the next or what the next was remade from; the first is the baseline.
    lineage: Vec<ReleaseId>,
    last: u64,
    current: Option<OpenRound>,
    /// Updates that may count in the next round: stragglers and unsolicited ones.
    waiting: Vec<UpdateArrival>,
}

/// The round in progress.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRound {
    /// Number of the round.
    pub number: u64,
    /// What sites were asked for.
    pub terms: RoundTerms,
    /// When it was opened, milliseconds since the epoch, by the stream's clock.
    pub opened_at_ms: u64,
    /// Updates that count, in the order of arrival.
    pub accepted: Vec<UpdateArrival>,
    /// When the quorum was reached; absent before that.
    enough_at_ms: Option<u64>,
    /// When it was closed (milliseconds since the epoch) and why; absent while it is open.
    pub closed: Option<(u64, String)>,
    /// Sites whose update was examined, whatever the result.
    heard: BTreeSet<SiteName>,
}

/// An update in the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateArrival {
    /// The decoded update.
    pub update: Update,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When it was stored, milliseconds since the epoch.
    pub stored_at_ms: u64,
    /// Releases between its base and that of the round.
    pub behind: u32,
}

/// What to do with an update.
#[derive(Debug)]
pub enum ArrivalAction {
    /// Count it in the current round if its weights pass the checks: [`RoundTracker::accept`].
    Count(Box<UpdateArrival>),
    /// Look at it again when the next round opens.
    Wait,
    /// Ignore it: no round asked for it, and that is allowed.
    Unasked,
    /// Refuse it with a dead letter.
    Refuse(UpdateRefusal),
}

impl RoundTracker {
    /// The state before the first round.
    pub fn new(first: ReleaseId) -> Self {
        Self::since(vec![first], 0)
    }

    /// The state after round `last`, which ended with the last of these releases; the first is the baseline.
    pub fn since(lineage: Vec<ReleaseId>, last: u64) -> Self {
        Self { lineage, last, current: None, waiting: Vec::new() }
    }

    /// The latest release.
    pub fn release(&self) -> &ReleaseId {
        // Never empty.
        &self.lineage[self.lineage.len() - 1]
    }

    /// Releases, oldest first, each the parent of the next or what the next was remade from; the first is the baseline.
    pub fn lineage(&self) -> &[ReleaseId] {
        &self.lineage
    }

    /// Number of the last round; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The round in progress; `None` between rounds.
    pub fn current(&self) -> Option<&OpenRound> {
        self.current.as_ref()
    }

    /// Number of updates that wait for the next round.
    pub fn waiting_updates(&self) -> usize {
        self.waiting.len()
    }

    /// Applies an event of a round. Returns the updates that waited for it.
    pub fn apply_event(&mut self, round: &Round, stored_at_ms: u64) -> Vec<UpdateArrival> {
        match &round.event {
            RoundEvent::Opened(terms) if round.number > self.last => {
                self.last = round.number;
                self.current = Some(OpenRound {
                    number: round.number,
                    terms: terms.clone(),
                    opened_at_ms: stored_at_ms,
                    accepted: Vec::new(),
                    enough_at_ms: None,
                    closed: None,
                    heard: BTreeSet::new(),
                });
                return std::mem::take(&mut self.waiting);
            }
            RoundEvent::Closed { why } => {
                if let Some(current) = self.of(round.number) {
                    current.closed.get_or_insert_with(|| (stored_at_ms, why.clone()));
                }
            }
            RoundEvent::Sealed { release, .. } => {
                self.last = self.last.max(round.number);
                if !self.lineage.contains(release) {
                    self.lineage.push(release.clone());
                }
                self.current = self.current.take().filter(|current| current.number > round.number);
            }
            RoundEvent::Remade { release, of, .. } => self.remade(release, of),
            RoundEvent::Failed(_) => {
                self.last = self.last.max(round.number);
                self.current = self.current.take().filter(|current| current.number > round.number);
            }
            RoundEvent::Opened(_) => {}
        }
        Vec::new()
    }

    /// Inserts a remade release right after the one it was remade from.
    fn remade(&mut self, release: &ReleaseId, of: &ReleaseId) {
        if self.lineage.contains(release) {
            return;
        }
        let place = self.lineage.iter().rposition(|known| known == of).map_or(self.lineage.len(), |place| place + 1);
        self.lineage.insert(place, release.clone());
    }

    fn of(&mut self, number: u64) -> Option<&mut OpenRound> {
        self.current.as_mut().filter(|current| current.number == number)
    }

    /// Handles an update that arrived, or that waited until a round was opened.
    pub fn add_update(&mut self, update: Update, sequence: u64, stored_at_ms: u64) -> ArrivalAction {
        if update.round > self.last {
            return ArrivalAction::Refuse(UpdateRefusal::UnknownRound { round: update.round, last: self.last });
        }
        let last = self.last;
        let behind = self.behind(&update.base);
        let asked_for = |current: &OpenRound| update.round == current.number;
        let Some(current) = self.current.as_mut().filter(|current| current.closed.is_none()) else {
            return match (update.round, behind) {
                (0, None) | (_, Some(_)) => {
                    self.wait(UpdateArrival { update, sequence, stored_at_ms, behind: 0 });
                    ArrivalAction::Wait
                }
                (round, None) => ArrivalAction::Refuse(UpdateRefusal::Late { round }),
            };
        };
        let allowed = current.terms.behind_max;
        if !asked_for(current) && update.round == 0 && !current.terms.unsolicited {
            return ArrivalAction::Unasked;
        }
        if !asked_for(current) && update.round != 0 && allowed == 0 {
            return ArrivalAction::Refuse(UpdateRefusal::Late { round: update.round.min(last) });
        }
        let site = update.site.clone();
        if !current.terms.sites.is_empty() && !current.terms.sites.contains(&site) {
            return ArrivalAction::Refuse(UpdateRefusal::NotAsked { site, round: current.number });
        }
        let behind = match behind {
            // A round's own updates start from the round's base; only others may be older.
            Some(behind) if behind == 0 || (behind <= allowed && !asked_for(current)) => behind,
            _ => {
                let wanted = match allowed {
                    0 => format!("release {}", current.terms.base.short()),
                    allowed => format!("release {} or one of {allowed} before it", current.terms.base.short()),
                };
                return ArrivalAction::Refuse(UpdateRefusal::OtherBase { found: update.base, wanted });
            }
        };
        if !current.heard.insert(site.clone()) {
            return ArrivalAction::Refuse(UpdateRefusal::Second { site, round: current.number });
        }
        ArrivalAction::Count(Box::new(UpdateArrival { update, sequence, stored_at_ms, behind }))
    }

    /// Keeps an update for the next round. A site that keeps sending between rounds only displaces its own updates.
    fn wait(&mut self, arrived: UpdateArrival) {
        let of_site = |waiting: &UpdateArrival| waiting.update.site == arrived.update.site;
        if self.waiting.iter().filter(|waiting| of_site(waiting)).count() >= MOST_WAITING
            && let Some(oldest) = self.waiting.iter().position(of_site)
        {
            self.waiting.remove(oldest);
        }
        self.waiting.push(arrived);
    }

    /// Counts an update whose weights passed the checks.
    pub fn accept(&mut self, arrived: UpdateArrival) {
        if let Some(current) = self.current.as_mut().filter(|current| current.closed.is_none()) {
            // An update that waited counts from the opening of the round.
            let at = arrived.stored_at_ms.max(current.opened_at_ms);
            current.accepted.push(arrived);
            if current.accepted.len() >= current.terms.quorum as usize {
                current.enough_at_ms.get_or_insert(at);
            }
        }
    }

    /// Why the current round should be closed now; `None` if it should stay open.
    pub fn close_reason(&self, now_ms: u64) -> Option<String> {
        let current = self.current.as_ref().filter(|current| current.closed.is_none())?;
        let (accepted, quorum) = (current.accepted.len(), current.terms.quorum);
        let after = |at_ms: u64, seconds: u32| now_ms >= at_ms.saturating_add(u64::from(seconds) * 1000);
        let all = !current.terms.sites.is_empty() && accepted >= current.terms.sites.len();
        if all {
            return Some(format!("all {accepted} sites have sent an update"));
        }
        if current.enough_at_ms.is_some_and(|at| after(at, current.terms.grace_s)) {
            return Some(format!("{accepted} updates (quorum {quorum}), and the grace period is over"));
        }
        after(current.opened_at_ms, current.terms.deadline_s)
            .then(|| format!("the deadline passed with {accepted} of {quorum} updates"))
    }

    /// Releases between an update's base and the round's base (between rounds, the latest release); `None` if the base
    /// is unknown. A round may start from an older release if later ones were withdrawn.
    fn behind(&self, base: &ReleaseId) -> Option<u32> {
        let place = |of: &ReleaseId| self.lineage.iter().rposition(|release| release == of);
        let latest = self.current.as_ref().and_then(|current| place(&current.terms.base));
        let latest = latest.unwrap_or(self.lineage.len() - 1);
        latest.checked_sub(place(base)?).and_then(|behind| u32::try_from(behind).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schemas::{BlobRef, FaultNote, ModelAccuracy, ModelName, WeightFormat};

    use super::*;

    fn release(number: u8) -> ReleaseId {
        ReleaseId::from_sha256([number; 32])
    }

    fn terms() -> RoundTerms {
        RoundTerms {
            base: release(0),
            weights: None,
            sites: Vec::new(),
            quorum: 2,
            grace_s: 10,
            deadline_s: 100,
            trainable: "all".into(),
            local: Vec::new(),
            unsolicited: false,
            behind_max: 0,
            focus: None,
        }
    }

    fn round(number: u64, event: RoundEvent) -> Round {
        Round { model: ModelName::from_name("light"), number, event, said_at_ms: 0, signature: None }
    }

    fn update(site: &str, round: u64, base: ReleaseId) -> Update {
        Update {
            site: site.parse().unwrap(),
            model: ModelName::from_name("light"),
            round,
            base,
            weights: BlobRef::new([2; 32], 100),
            form: WeightFormat::F32,
            samples: [("cat".to_owned(), 5)].into(),
            hard: 0,
            sources: BTreeMap::new(),
            before: ModelAccuracy::default(),
            after: ModelAccuracy::default(),
            gain: None,
            epochs: 1,
            trainable: "all".into(),
            trained_at_ms: 0,
            signature: None,
        }
    }

    fn opened(terms: RoundTerms) -> RoundTracker {
        let mut rounds = RoundTracker::new(release(0));
        rounds.apply_event(&round(1, RoundEvent::Opened(terms)), 1000);
        rounds
    }

    fn send(rounds: &mut RoundTracker, update: Update, at_ms: u64) -> Result<(), String> {
        match rounds.add_update(update, at_ms, at_ms) {
            ArrivalAction::Count(arrived) => {
                rounds.accept(*arrived);
                Ok(())
            }
            ArrivalAction::Wait => Err("waits".into()),
            ArrivalAction::Unasked => Err("unasked".into()),
            ArrivalAction::Refuse(refused) => Err(refused.fault_note().kind.to_string()),
        }
    }

    #[test]
    fn a_round_closes_after_the_grace_period_or_at_its_deadline() {
        let mut rounds = opened(terms());
        assert!(send(&mut rounds, update("a", 1, release(0)), 2000).is_ok());
        assert_eq!(rounds.close_reason(50_000), None);
        assert!(rounds.close_reason(101_000).unwrap().contains("1 of 2"));
        assert!(send(&mut rounds, update("b", 1, release(0)), 60_000).is_ok());
        assert_eq!(rounds.close_reason(69_999), None);
        assert!(rounds.close_reason(70_000).is_some());
        rounds.apply_event(&round(1, RoundEvent::Closed { why: "enough".into() }), 70_001);
        assert_eq!(rounds.close_reason(80_000), None, "already closed");
    }

    #[test]
    fn a_round_closes_at_once_when_all_selected_sites_have_sent() {
        let mut rounds = opened(RoundTerms { sites: vec!["a".parse().unwrap(), "b".parse().unwrap()], ..terms() });
        assert_eq!(send(&mut rounds, update("c", 1, release(0)), 2000), Err("site_not_asked".into()));
        assert!(send(&mut rounds, update("a", 1, release(0)), 2000).is_ok());
        assert!(send(&mut rounds, update("b", 1, release(0)), 2000).is_ok());
        assert!(rounds.close_reason(2001).is_some());
    }

    #[test]
    fn updates_that_do_not_belong_are_refused_by_name() {
        let mut rounds = opened(terms());
        assert!(send(&mut rounds, update("a", 1, release(0)), 2000).is_ok());
        assert_eq!(send(&mut rounds, update("a", 1, release(0)), 2001), Err("update_second".into()));
        assert_eq!(send(&mut rounds, update("b", 1, release(7)), 2002), Err("base_unknown".into()));
        assert_eq!(send(&mut rounds, update("b", 2, release(0)), 2003), Err("round_unknown".into()));
        assert_eq!(send(&mut rounds, update("b", 0, release(0)), 2004), Err("unasked".into()));
    }

    #[test]
    fn stragglers_are_refused_or_count_in_the_next_round() {
        for (behind_max, expected) in [(0, Err("update_late".into())), (1, Ok(()))] {
            let mut rounds = opened(terms());
            rounds.apply_event(&round(1, RoundEvent::Closed { why: "deadline".into() }), 3000);
            assert_eq!(send(&mut rounds, update("a", 1, release(0)), 3001), Err("waits".into()));
            let (weights, updates) = (BlobRef::new([3; 32], 1), 1);
            rounds.apply_event(&round(1, RoundEvent::Sealed { release: release(1), weights, updates }), 4000);
            assert_eq!(rounds.release(), &release(1));
            let next = RoundTerms { base: release(1), behind_max, ..terms() };
            let waited = rounds.apply_event(&round(2, RoundEvent::Opened(next)), 5000);
            assert_eq!(waited.len(), 1);
            let UpdateArrival { update, sequence, stored_at_ms, .. } = waited.into_iter().next().unwrap();
            let arrival = rounds.add_update(update, sequence, stored_at_ms);
            let got = match arrival {
                ArrivalAction::Count(arrived) => {
                    assert_eq!(arrived.behind, 1);
                    Ok(())
                }
                ArrivalAction::Refuse(refused) => Err(refused.fault_note().kind.to_string()),
                other => panic!("{other:?}"),
            };
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_site_keeps_only_its_latest_updates_waiting() {
        let mut rounds = RoundTracker::new(release(0));
        assert!(matches!(rounds.add_update(update("b", 0, release(0)), 1, 1), ArrivalAction::Wait));
        for sequence in 2..100 {
            assert!(matches!(rounds.add_update(update("a", 0, release(0)), sequence, sequence), ArrivalAction::Wait));
        }
        let waited = rounds.apply_event(&round(1, RoundEvent::Opened(terms())), 1000);
        let sequences: Vec<u64> = waited.iter().map(|arrived| arrived.sequence).collect();
        assert_eq!(sequences, [1, 96, 97, 98, 99]);
    }

    #[test]
    fn a_round_may_start_from_a_release_that_was_remade() {
        let mut rounds = opened(terms());
        let (weights, updates) = (BlobRef::new([3; 32], 1), 1);
        rounds.apply_event(
            &round(1, RoundEvent::Sealed { release: release(1), weights: weights.clone(), updates }),
            2000,
        );
        let remade = RoundEvent::Remade { release: release(9), of: release(1), weights, updates };
        rounds.apply_event(&round(1, remade.clone()), 3000);
        rounds.apply_event(&round(1, remade), 3000);
        assert_eq!(rounds.lineage(), [0, 1, 9].map(release));
        rounds.apply_event(&round(2, RoundEvent::Opened(RoundTerms { base: release(9), ..terms() })), 5000);
        assert!(send(&mut rounds, update("a", 2, release(9)), 6000).is_ok());
        assert_eq!(send(&mut rounds, update("b", 2, release(1)), 6001), Err("base_unknown".into()));
    }

    #[test]
    fn a_failed_round_keeps_the_last_release() {
        let mut rounds = opened(terms());
        rounds.apply_event(&round(1, RoundEvent::Failed(FaultNote::new("quorum_missed", "", ""))), 3000);
        assert!(rounds.current().is_none());
        assert_eq!(rounds.release(), &release(0));
        rounds.apply_event(&round(2, RoundEvent::Opened(terms())), 5000);
        assert_eq!(rounds.current().unwrap().number, 2);
    }

    #[test]
    fn unsolicited_updates_count_if_accepted() {
        let mut rounds = opened(RoundTerms { unsolicited: true, ..terms() });
        assert!(send(&mut rounds, update("a", 0, release(0)), 2000).is_ok());
        assert!(send(&mut rounds, update("b", 0, release(0)), 2500).is_ok());
        assert!(rounds.close_reason(12_500).is_some());
    }

    proptest! {
        /// Whether it is read from the start or again, and whoever closes first: the same updates are in the round.
        #[test]
        fn the_stream_alone_decides_which_updates_count(
            sites in prop::collection::vec((0_u8..6, 0_u64..3), 1..12),
            closes in prop::collection::vec(0_usize..12, 1..3),
        ) {
            let fold = || {
                let mut rounds = opened(terms());
                for (place, (site, number)) in sites.iter().enumerate() {
                    if closes.contains(&place) {
                        rounds.apply_event(&round(1, RoundEvent::Closed { why: place.to_string() }), place as u64);
                    }
                    let _ = send(&mut rounds, update(&format!("s{site}"), *number, release(0)), place as u64);
                }
                rounds
            };
            prop_assert_eq!(fold(), fold());
            let rounds = fold();
            let accepted = &rounds.current().unwrap().accepted;
            let first_close = closes.iter().min().copied().unwrap_or(usize::MAX) as u64;
            prop_assert!(accepted.iter().all(|arrived| arrived.sequence < first_close));
            let distinct: BTreeSet<&SiteName> = accepted.iter().map(|arrived| &arrived.update.site).collect();
            prop_assert_eq!(distinct.len(), accepted.len());
        }
    }
}
