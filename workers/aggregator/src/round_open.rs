//! Opening a round: one message, whose slot in the stream decides when two do it at once.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use runtime::site_key::SiteKey;
use runtime::{Fault, clock, trust};
use schemas::task::HEADER_BLOB;
use schemas::{
    BlobRef, FaultKind, HardCase, HardFocus, ModelName, ReleaseId, Role, Rollout, Round, RoundEvent, RoundTerms,
    SiteName, decode, encode,
};
use streams::fleet;
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, Publication, PublishOutcome, Publisher, subject, topology};

use crate::focus::HardSummary;
use crate::round::RoundTracker;
use crate::settings::{ClientSelection, RoundSettings};

/// Hard cases that a focus is made of, at the most: the newest.
const HARD_CASES_READ: usize = 5000;

/// What is known of a model's rounds from the stream alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoundHistory {
    /// Everything that happened, with the sequence of its message and when it was stored, milliseconds since the epoch.
    pub all: Vec<(u64, u64, Round)>,
}

impl RoundHistory {
    /// Reads it.
    pub async fn read(bus: &Bus, model: &ModelName) -> Result<Self, CarryError> {
        let subjects = vec![subject::rounds(model, "*")];
        let mut all: Vec<(u64, u64, Round)> = Vec::new();
        // The copy has what updates pushed out of the stream itself, and that has what was not copied yet.
        for stream in [topology::ROUNDS, topology::UPDATES] {
            let level = reader::stream_level(bus, stream).await?;
            if level.messages == 0 {
                continue;
            }
            let stretch = StreamRange { subjects: subjects.clone(), ..StreamRange::default() };
            let known = all.last().map_or(0, |(sequence, ..)| *sequence);
            reader::read_range(bus, stream, stretch, level.last_sequence, |record| {
                let sequence = record.source_sequence().unwrap_or(record.sequence);
                if sequence > known
                    && let Some(round) = read_round(&record)
                {
                    all.push((sequence, stored_at_ms(&record), round));
                }
            })
            .await?;
        }
        Ok(Self { all })
    }

    /// Number of the last round, 0 before the first.
    pub fn last(&self) -> u64 {
        self.all.iter().map(|(_, _, round)| round.number).max().unwrap_or(0)
    }

    /// How a round ended, if it has.
    pub fn ended(&self, number: u64) -> Option<&RoundEvent> {
        let mut of = self.all.iter().filter(|(_, _, round)| round.number == number).map(|(_, _, round)| &round.event);
        of.find(|event| matches!(event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_)))
    }

    /// How many rounds in a row, the last one among them, came to nothing better than the release they started from.
    pub fn rounds_without_gain(&self) -> u32 {
        let ends = self.all.iter().rev().filter_map(|(_, _, round)| match &round.event {
            RoundEvent::Sealed { .. } => Some(false),
            // Of other failures nothing is known about what there is to gain.
            RoundEvent::Failed(note) => (note.kind == FaultKind::NothingGained).then_some(true),
            RoundEvent::Opened(_) | RoundEvent::Closed { .. } | RoundEvent::Remade { .. } => None,
        });
        u32::try_from(ends.take_while(|nothing| *nothing).count()).unwrap_or(u32::MAX)
    }

    /// Sequence of the last word about how a round ended; 0 if none has.
    pub fn last_end(&self) -> u64 {
        let is_end = |event: &RoundEvent| matches!(event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_));
        let ends = self.all.iter().filter(|(_, _, round)| is_end(&round.event));
        ends.map(|(sequence, _, _)| *sequence).max().unwrap_or(0)
    }

    /// The releases before a message of this sequence, each the parent of the next or what that was remade as.
    pub fn lineage(&self, first: &ReleaseId, before_sequence: u64) -> Vec<ReleaseId> {
        let mut rounds = RoundTracker::new(first.clone());
        for (_, _, round) in self.all.iter().filter(|(sequence, _, _)| *sequence < before_sequence) {
            rounds.apply_event(round, 0);
        }
        rounds.lineage().to_vec()
    }

    /// What a round came to, the latest first: its release as it was sealed, and before it those that it was remade as.
    fn releases(&self, number: u64) -> impl Iterator<Item = (&ReleaseId, &BlobRef)> {
        let of = move |round: &&(u64, u64, Round)| round.2.number == number;
        let remade = self.all.iter().rev().filter(of).filter_map(|(_, _, round)| match &round.event {
            RoundEvent::Remade { release, weights, .. } => Some((release, weights)),
            _ => None,
        });
        let sealed = self.all.iter().rev().filter(of).filter_map(|(_, _, round)| match &round.event {
            RoundEvent::Sealed { release, weights, .. } => Some((release, weights)),
            _ => None,
        });
        remade.chain(sealed)
    }

    /// Where the next round starts: the latest release that was not withdrawn, with its weights, or what it was remade as;
    /// `first`, the model that sites were set up with, if there is none.
    pub fn base(&self, withdrawn: &[ReleaseId], first: &ReleaseId) -> (ReleaseId, Option<BlobRef>) {
        let sealed = self.all.iter().rev().filter(|(_, _, round)| matches!(round.event, RoundEvent::Sealed { .. }));
        let mut all = sealed.flat_map(|(_, _, round)| self.releases(round.number));
        let latest = all.find(|(release, _)| !withdrawn.contains(release));
        match latest.filter(|(release, _)| *release != first) {
            Some((release, weights)) => (release.clone(), Some(weights.clone())),
            None => (first.clone(), None),
        }
    }
}

/// What a message says of a round, if it does and in its own slot.
pub fn read_round(record: &reader::StoredMessage) -> Option<Round> {
    let round = decode::<Round>(&record.payload);
    let round =
        round.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "no word of a round, passed over"));
    let round = round.ok()?;
    let own = subject::round(&round.model, round.number, &round.event.slot()) == record.subject
        && record.may_be_number(round.number);
    if !own {
        tracing::warn!(
            subject = record.subject,
            number = round.number,
            "a word of a round in a slot that is not its own, passed over"
        );
    }
    own.then_some(round)
}

/// The release that no new round may start from yet, or beside: sites try it, or it waits to be tried by a releaser that
/// runs.
pub fn undecided(rollout: Option<&Rollout>, is_releaser_alive: bool) -> Option<&ReleaseId> {
    let rollout = rollout?;
    let tried = rollout.canary.as_ref().map(|canary| &canary.release.release);
    tried.or_else(|| rollout.candidates.first().filter(|_| is_releaser_alive).map(|waits| &waits.release))
}

/// The same of a model whose releases stand as the stream says.
pub async fn read_undecided(bus: &Bus, rollout: Option<&Rollout>) -> Result<Option<ReleaseId>, CarryError> {
    let is_releaser_alive = fleet::live_workers(bus).await?.iter().any(|beat| beat.role == Role::Releaser);
    Ok(undecided(rollout, is_releaser_alive).cloned())
}

/// When a message was stored, milliseconds since the epoch.
pub fn stored_at_ms(record: &reader::StoredMessage) -> u64 {
    u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0)
}

/// Which sites are asked in a round. `losses`: of each site, its loss when it was last in a release. Pure.
pub fn sites(settings: &RoundSettings, round: u64, losses: &BTreeMap<SiteName, f64>) -> Vec<SiteName> {
    let mut sites = settings.selectable_sites().to_vec();
    let Some(count) = settings.sites_per_round.map(|ask| (ask as usize).min(sites.len())) else { return sites };
    match settings.client_selection {
        ClientSelection::Lot => sites.shuffle(&mut StdRng::seed_from_u64(round)),
        ClientSelection::Turn => {
            let first = usize::try_from(round.saturating_sub(1)).unwrap_or(0).wrapping_mul(count);
            let by = first % sites.len().max(1);
            sites.rotate_left(by);
        }
        ClientSelection::Usefulness => {
            let loss = |site: &SiteName| losses.get(site).copied().unwrap_or(f64::NEG_INFINITY);
            sites.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        }
    }
    sites.truncate(count);
    sites
}

/// What the release that a round starts from finds hard, by its newest hard cases; `None` unless the settings ask for it.
pub async fn read_focus(
    bus: &Bus,
    base: &ReleaseId,
    settings: &RoundSettings,
) -> Result<Option<HardFocus>, CarryError> {
    if settings.hard_focus <= 0.0 {
        return Ok(None);
    }
    let found =
        reader::newest_messages(bus, topology::HARDCASES, StreamRange::default(), HARD_CASES_READ, |_| true).await?;
    let mut summary = HardSummary::default();
    let cases = found.iter().filter_map(|record| decode::<HardCase>(&record.payload).ok());
    // What another release finds hard, and its features, say nothing of this one.
    for case in cases.filter(|case| case.release == *base) {
        summary.add(&case.top, case.features.as_deref());
    }
    Ok(summary.focus(settings.hard_focus))
}

/// What these sites are asked for: to start from this release.
pub fn round_terms(
    base: ReleaseId,
    weights: Option<BlobRef>,
    sites: Vec<SiteName>,
    focus: Option<HardFocus>,
    settings: &RoundSettings,
) -> RoundTerms {
    RoundTerms {
        base,
        weights,
        sites,
        quorum: settings.quorum,
        grace_s: settings.grace_s,
        deadline_s: settings.deadline_s,
        trainable: settings.trainable.clone(),
        local: settings.local.clone(),
        unsolicited: settings.accept_unsolicited,
        behind_max: settings.max_staleness,
        focus,
    }
}

/// Says that something happened in a round; false if it was said before.
/// `key`: signs what sites are asked, where they obey nothing else.
pub async fn publish_round_event(
    publisher: &Publisher,
    key: Option<&SiteKey>,
    model: &ModelName,
    number: u64,
    event: RoundEvent,
) -> Result<bool, Fault> {
    let slot = subject::round(model, number, &event.slot());
    let blob = match &event {
        RoundEvent::Opened(terms) => terms.weights.clone(),
        _ => None,
    };
    let asks = matches!(event, RoundEvent::Opened(_));
    let round = Round { model: model.clone(), number, event, said_at_ms: clock::now_ms(), signature: None };
    let round = match key.filter(|_| asks) {
        Some(key) => trust::sign(round, key, clock::now_ms())?,
        None => round,
    };
    let mut publication = Publication::first_on_subject(slot, encode(&round)?);
    if let Some(blob) = blob {
        publication = publication.header(HEADER_BLOB, blob.to_string());
    }
    Ok(!matches!(publisher.publish(&publication).await?, PublishOutcome::Taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::FaultNote;

    #[test]
    fn rounds_that_gained_nothing_are_counted_from_the_last_one_that_did() {
        let round = |number: u64, event: RoundEvent| {
            (number, 0, Round { model: ModelName::from_name("light"), number, event, said_at_ms: 0, signature: None })
        };
        let nothing = |number| round(number, RoundEvent::Failed(FaultNote::new(FaultKind::NothingGained, "", "")));
        let missed = |number| round(number, RoundEvent::Failed(FaultNote::new("quorum_missed", "", "")));
        let (release, weights) = (ReleaseId::from_sha256([1; 32]), BlobRef::new([2; 32], 1));
        let sealed = |number| {
            let (release, weights) = (release.clone(), weights.clone());
            round(number, RoundEvent::Sealed { release, weights, updates: 1 })
        };
        let count = |all: Vec<_>| RoundHistory { all }.rounds_without_gain();
        assert_eq!(count(vec![]), 0);
        assert_eq!(count(vec![nothing(1), nothing(2)]), 2);
        assert_eq!(count(vec![nothing(1), sealed(2), nothing(3), missed(4), nothing(5)]), 2);
        assert_eq!(count(vec![nothing(1), sealed(2)]), 0);
    }

    #[test]
    fn the_next_round_starts_from_what_the_last_release_was_remade_as_unless_that_is_withdrawn() {
        let release = |number: u8| ReleaseId::from_sha256([number; 32]);
        let said = |at: u64, number, event| {
            (at, at, Round { model: ModelName::from_name("light"), number, event, said_at_ms: at, signature: None })
        };
        let sealed =
            |of: u8| RoundEvent::Sealed { release: release(of), weights: BlobRef::new([of; 32], 1), updates: 2 };
        let remade = |new: u8, of: u8| RoundEvent::Remade {
            release: release(new),
            of: release(of),
            weights: BlobRef::new([new; 32], 1),
            updates: 1,
        };
        let all =
            vec![said(1, 1, sealed(1)), said(2, 2, sealed(2)), said(3, 2, remade(3, 2)), said(4, 1, remade(4, 1))];
        let history = RoundHistory { all };
        let base = |withdrawn: &[u8]| {
            let withdrawn: Vec<ReleaseId> = withdrawn.iter().map(|number| release(*number)).collect();
            let (base, weights) = history.base(&withdrawn, &release(0));
            assert_eq!(weights.is_some(), base != release(0));
            base
        };
        assert_eq!([base(&[]), base(&[2]), base(&[3]), base(&[2, 3])], [3, 3, 2, 4].map(release));
        assert_eq!(base(&[1, 2, 3, 4]), release(0));
        assert_eq!(history.lineage(&release(0), u64::MAX), [0, 1, 4, 2, 3].map(release));
        assert_eq!(history.lineage(&release(0), 3), [0, 1, 2].map(release));
    }

    #[test]
    fn as_many_sites_are_asked_as_should_be_and_others_next_time() {
        let names = ["a", "b", "c", "d"].map(|name| name.parse::<SiteName>().unwrap());
        let all = RoundSettings { sites: names.to_vec(), ..RoundSettings::default() };
        assert_eq!(sites(&all, 1, &BTreeMap::new()), names);
        let asked = |ask_by, round, losses: &[(&str, f64)]| {
            let some = RoundSettings { sites_per_round: Some(2), client_selection: ask_by, ..all.clone() };
            let losses = losses.iter().map(|(name, loss)| (name.parse().unwrap(), *loss)).collect();
            sites(&some, round, &losses).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let ring = RoundSettings {
            rings: [("first".to_owned(), names[2..].to_vec())].into(),
            ring: Some("first".into()),
            ..all.clone()
        };
        assert_eq!(sites(&ring, 1, &BTreeMap::new()), names[2..]);
        assert_eq!(asked(ClientSelection::Turn, 1, &[]), ["a", "b"]);
        assert_eq!(asked(ClientSelection::Turn, 2, &[]), ["c", "d"]);
        assert_eq!(asked(ClientSelection::Turn, 3, &[]), ["a", "b"]);
        assert_eq!(asked(ClientSelection::Usefulness, 1, &[("a", 2.0), ("b", 1.0), ("c", 3.0)]), ["d", "b"]);
        assert_eq!(
            asked(ClientSelection::Lot, 5, &[]),
            asked(ClientSelection::Lot, 5, &[]),
            "the same round, the same sites"
        );
        let drawn: Vec<_> = (1..9).map(|round| asked(ClientSelection::Lot, round, &[])).collect();
        assert!(drawn.iter().any(|sites| *sites != drawn[0]), "{drawn:?}");
    }
}
