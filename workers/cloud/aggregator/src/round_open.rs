//! Opens rounds. Each event of a round has one slot in the stream, which decides when two aggregators publish at once.

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

/// Most hard cases that go into a focus; the newest are used.
const HARD_CASES_READ: usize = 5000;

/// A model's rounds, as the stream alone tells them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoundHistory {
    /// Every event, with the sequence of its message and when it was stored (milliseconds since the epoch).
    pub all: Vec<(u64, u64, Round)>,
}

impl RoundHistory {
    /// Reads all events of the model's rounds.
    pub async fn read(bus: &Bus, model: &ModelName) -> Result<Self, CarryError> {
        let subjects = vec![subject::rounds(model, "*")];
        let mut all: Vec<(u64, u64, Round)> = Vec::new();
        // The copy has events that updates have pushed out of the stream itself; the stream has those that are not
        // copied yet.
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

    /// Number of the last round; 0 before the first.
    pub fn last(&self) -> u64 {
        self.all.iter().map(|(_, _, round)| round.number).max().unwrap_or(0)
    }

    /// The event a round ended with; `None` if it has not ended.
    pub fn ended(&self, number: u64) -> Option<&RoundEvent> {
        let mut of = self.all.iter().filter(|(_, _, round)| round.number == number).map(|(_, _, round)| &round.event);
        of.find(|event| matches!(event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_)))
    }

    /// How many of the latest rounds in a row gained nothing over their base.
    pub fn rounds_without_gain(&self) -> u32 {
        let ends = self.all.iter().rev().filter_map(|(_, _, round)| match &round.event {
            RoundEvent::Sealed { .. } => Some(false),
            // Other failures say nothing about whether there is something to gain.
            RoundEvent::Failed(note) => (note.kind == FaultKind::NothingGained).then_some(true),
            RoundEvent::Opened(_) | RoundEvent::Closed { .. } | RoundEvent::Remade { .. } => None,
        });
        u32::try_from(ends.take_while(|nothing| *nothing).count()).unwrap_or(u32::MAX)
    }

    /// Sequence of the last event that ended a round; 0 if none has.
    pub fn last_end(&self) -> u64 {
        let is_end = |event: &RoundEvent| matches!(event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_));
        let ends = self.all.iter().filter(|(_, _, round)| is_end(&round.event));
        ends.map(|(sequence, _, _)| *sequence).max().unwrap_or(0)
    }

    /// Releases sealed before this sequence, oldest first, each the parent of the next or what the next was remade
    /// from.
    pub fn lineage(&self, first: &ReleaseId, before_sequence: u64) -> Vec<ReleaseId> {
        let mut rounds = RoundTracker::new(first.clone());
        for (_, _, round) in self.all.iter().filter(|(sequence, _, _)| *sequence < before_sequence) {
            rounds.apply_event(round, 0);
        }
        rounds.lineage().to_vec()
    }

    /// A round's releases, latest first: remade ones, then the one that was sealed.
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

    /// The base of the next round, with its weights: the latest release that is not withdrawn, or what it was remade
    /// as; `first`, the baseline, if there is none.
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

/// Decodes an event of a round; `None` if it is invalid or in another event's slot.
pub fn read_round(record: &reader::StoredMessage) -> Option<Round> {
    let round = decode::<Round>(&record.payload);
    let round =
        round.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "round event unreadable; skipped"));
    let round = round.ok()?;
    let own = subject::round(&round.model, round.number, &round.event.slot()) == record.subject
        && record.may_be_number(round.number);
    if !own {
        tracing::warn!(subject = record.subject, number = round.number, "round event in wrong slot; skipped");
    }
    own.then_some(round)
}

/// The release that keeps the next round from opening: sites are trying it, or it waits for a running releaser to try
/// it.
pub fn undecided(rollout: Option<&Rollout>, is_releaser_alive: bool) -> Option<&ReleaseId> {
    let rollout = rollout?;
    let tried = rollout.canary.as_ref().map(|canary| &canary.release.release);
    tried.or_else(|| rollout.candidates.first().filter(|_| is_releaser_alive).map(|waits| &waits.release))
}

/// The same, read from the stream.
pub async fn read_undecided(bus: &Bus, rollout: Option<&Rollout>) -> Result<Option<ReleaseId>, CarryError> {
    let is_releaser_alive =
        fleet::live_workers(bus).await?.iter().any(|beat| beat.role == Role::Releaser && beat.failing.is_none());
    Ok(undecided(rollout, is_releaser_alive).cloned())
}

/// When a message was stored, milliseconds since the epoch.
pub fn stored_at_ms(record: &reader::StoredMessage) -> u64 {
    u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0)
}

/// Selects the sites of a round. `losses`: each site's loss when it was last in a release. Pure.
pub fn sites(settings: &RoundSettings, round: u64, losses: &BTreeMap<SiteName, f64>) -> Vec<SiteName> {
    let mut sites = settings.selectable_sites().to_vec();
    let Some(count) = settings.sites_per_round.map(|ask| (ask as usize).min(sites.len())) else { return sites };
    match settings.client_selection {
        ClientSelection::Random => sites.shuffle(&mut StdRng::seed_from_u64(round)),
        ClientSelection::RoundRobin => {
            let first = usize::try_from(round.saturating_sub(1)).unwrap_or(0).wrapping_mul(count);
            let by = first % sites.len().max(1);
            sites.rotate_left(by);
        }
        ClientSelection::LowestLoss => {
            let loss = |site: &SiteName| losses.get(site).copied().unwrap_or(f64::NEG_INFINITY);
            sites.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        }
    }
    sites.truncate(count);
    sites
}

/// What the round's base finds hard, from its newest hard cases; `None` unless `hard_focus` is set.
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
    // Another release's hard cases and features say nothing about this one.
    for case in cases.filter(|case| case.release == *base) {
        summary.add(&case.top, case.features.as_deref());
    }
    Ok(summary.focus(settings.hard_focus))
}

/// The terms of a round that starts from this release.
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

/// Publishes an event of a round; false if the slot was already taken. `key` signs it; sites of a fleet ignore unsigned
/// rounds.
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
    fn rounds_without_gain_are_counted_since_the_last_gain() {
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
    fn the_next_round_starts_from_a_remade_release_unless_it_is_withdrawn() {
        let release = |number: u8| ReleaseId::from_sha256([number; 32]);
        let event_at = |at: u64, number, event| {
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
        let all = vec![
            event_at(1, 1, sealed(1)),
            event_at(2, 2, sealed(2)),
            event_at(3, 2, remade(3, 2)),
            event_at(4, 1, remade(4, 1)),
        ];
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
    fn the_configured_number_of_sites_is_selected_and_others_next_time() {
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
        assert_eq!(asked(ClientSelection::RoundRobin, 1, &[]), ["a", "b"]);
        assert_eq!(asked(ClientSelection::RoundRobin, 2, &[]), ["c", "d"]);
        assert_eq!(asked(ClientSelection::RoundRobin, 3, &[]), ["a", "b"]);
        assert_eq!(asked(ClientSelection::LowestLoss, 1, &[("a", 2.0), ("b", 1.0), ("c", 3.0)]), ["d", "b"]);
        assert_eq!(
            asked(ClientSelection::Random, 5, &[]),
            asked(ClientSelection::Random, 5, &[]),
            "the same round, the same sites"
        );
        let drawn: Vec<_> = (1..9).map(|round| asked(ClientSelection::Random, round, &[])).collect();
        assert!(drawn.iter().any(|sites| *sites != drawn[0]), "{drawn:?}");
    }
}
