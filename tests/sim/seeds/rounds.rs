//! A model's rounds as a fold over the stream: every reader counts the same updates, however often it is interrupted
//! and in whatever order the messages were stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aggregator::round::{ArrivalAction, RoundTracker, UpdateArrival};
use futures::StreamExt;
use rand::RngExt;
use rand::seq::SliceRandom;
use schemas::{
    BlobRef, FaultNote, ModelAccuracy, Round, RoundEvent, RoundTerms, SiteName, Update, WeightFormat, decode, encode,
};
use streams::memory::{MemoryCluster, NetworkFaults};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, Publication, Publisher, subject, topology};

use crate::chaos::{draw_faults, rng_of};
use crate::seeds::{SeedResult, check_seeds, find_failure, history_of};
use crate::world::{CLOUD, cloud_of, model, release_id};

const SITES: [&str; 4] = ["reef", "farm", "lab", "port"];

fn site(number: usize) -> SiteName {
    SITES[number % SITES.len()].parse().unwrap()
}

fn round_event(number: u64, event: RoundEvent) -> Publication {
    let subject = subject::round(&model(), number, &event.slot());
    let round = Round { model: model(), number, event, said_at_ms: 0, signature: None };
    Publication::first_on_subject(subject, encode(&round).unwrap())
}

fn update_of(site: SiteName, round: u64, base: u8, id: u64) -> Publication {
    let update = Update {
        site: site.clone(),
        model: model(),
        round,
        base: release_id(base),
        weights: BlobRef::new([u8::try_from(id % 251).unwrap(); 32], 100),
        form: WeightFormat::F32,
        samples: [("kelp".to_owned(), 5)].into(),
        hard: 0,
        sources: BTreeMap::new(),
        before: ModelAccuracy::default(),
        after: ModelAccuracy::default(),
        gain: None,
        epochs: 1,
        trainable: "all".into(),
        trained_at_ms: id,
        signature: None,
    };
    Publication::with_id(subject::update(&model(), round, &site), encode(&update).unwrap(), format!("update-{id}"))
}

/// Draws all events and updates of three rounds, in a random order.
fn draw_messages(seed: u64) -> Vec<Publication> {
    let mut rng = rng_of(seed, 1);
    let mut messages = Vec::new();
    for number in 1..=3u64 {
        let base = rng.random_range(0..u8::try_from(number).unwrap());
        let invited = rng.random_range(0..=SITES.len());
        let terms = RoundTerms {
            base: release_id(base),
            weights: None,
            sites: (0..invited).map(site).collect(),
            quorum: rng.random_range(1..4),
            grace_s: 10,
            deadline_s: 100,
            trainable: "all".into(),
            local: Vec::new(),
            unsolicited: rng.random_bool(0.5),
            behind_max: rng.random_range(0..3),
            focus: None,
        };
        messages.push(round_event(number, RoundEvent::Opened(terms)));
        messages.push(round_event(number, RoundEvent::Closed { why: "its time is over".into() }));
        messages.push(match rng.random_bool(0.7) {
            true => {
                let (release, weights) = (release_id(u8::try_from(number).unwrap()), BlobRef::new([9; 32], 1));
                round_event(number, RoundEvent::Sealed { release, weights, updates: 1 })
            }
            false => round_event(number, RoundEvent::Failed(FaultNote::new("quorum_missed", "too few", "wait"))),
        });
    }
    for id in 0..rng.random_range(5..30u64) {
        let (round, base) = (rng.random_range(0..=4), rng.random_range(0..4));
        messages.push(update_of(site(rng.random_range(0..SITES.len())), round, base, id));
    }
    // Half of the histories are fully shuffled; in the others only a few messages change places.
    match rng.random_bool(0.5) {
        true => messages.shuffle(&mut rng),
        false => {
            for _ in 0..messages.len() / 4 {
                let (one, other) = (rng.random_range(0..messages.len()), rng.random_range(0..messages.len()));
                messages.swap(one, other);
            }
        }
    }
    messages
}

/// A reader's state after the messages read so far.
#[derive(Debug, Clone, PartialEq)]
struct RoundFold {
    rounds: RoundTracker,
    /// Updates that counted: round, sequence, site, and whether the round was open.
    counted: Vec<(u64, u64, SiteName, bool)>,
}

impl RoundFold {
    fn new() -> Self {
        Self { rounds: RoundTracker::new(release_id(0)), counted: Vec::new() }
    }

    fn add_message(&mut self, message: &StoredMessage) {
        let at_ms = u64::try_from(message.stored_at_ns / 1_000_000).unwrap();
        if message.subject.starts_with("round.") {
            let Ok(round) = decode::<Round>(&message.payload) else { return };
            for waiting in self.rounds.apply_event(&round, at_ms) {
                let UpdateArrival { update, sequence, stored_at_ms, .. } = waiting;
                self.add_update(update, sequence, stored_at_ms);
            }
        } else if let Ok(update) = decode::<Update>(&message.payload) {
            self.add_update(update, message.sequence, at_ms);
        }
    }

    fn add_update(&mut self, update: Update, sequence: u64, stored_at_ms: u64) {
        let site = update.site.clone();
        let ArrivalAction::Count(arrival) = self.rounds.add_update(update, sequence, stored_at_ms) else { return };
        let Some(open) = self.rounds.current() else { return };
        self.counted.push((open.number, sequence, site, open.closed.is_none()));
        self.rounds.accept(*arrival);
    }

    /// Checks what must hold for any order of messages.
    fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (round, sequence, site, is_open) in &self.counted {
            if !is_open {
                return Err(format!("update {sequence} counts in round {round}, which was closed"));
            }
            if !seen.insert((round, site)) {
                return Err(format!("two updates of {site} count in round {round}"));
            }
        }
        Ok(())
    }
}

/// What a reader does after an interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FoldReader {
    /// Continues after the last message that it read.
    Continues,
    /// A wrong one: reads its last message a second time.
    ReadsTwice,
}

/// Folds the stream up to a sequence, starting again after every interruption.
async fn fold_stream(bus: &Bus, until: u64, reader: FoldReader) -> RoundFold {
    let (mut fold, mut next) = (RoundFold::new(), 1);
    while next <= until {
        let range = StreamRange {
            subjects: subject::rounds_and_updates(&model()),
            from_sequence: Some(next),
            ..StreamRange::default()
        };
        if let Ok(messages) = reader::follow_range(bus, topology::UPDATES, range).await {
            let mut messages = std::pin::pin!(messages);
            while next <= until
                && let Some(Ok(message)) = messages.next().await
            {
                fold.add_message(&message);
                next = message.sequence + 1;
            }
        }
        if reader == FoldReader::ReadsTwice {
            next = next.saturating_sub(u64::from(next <= until)).max(1);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    fold
}

async fn publish_all(cluster: &MemoryCluster, messages: Vec<Publication>, seed: u64) {
    let mut rng = rng_of(seed, 2);
    let publisher = Publisher::new(cluster.connect(CLOUD), Duration::from_secs(3600));
    for message in messages {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..2000))).await;
        publisher.publish(&message).await.unwrap();
    }
}

async fn fold_under_faults(seed: u64, reader: FoldReader) -> SeedResult {
    let mut rng = rng_of(seed, 3);
    let cluster = cloud_of(seed, (0..SITES.len()).map(site).collect());
    let faults = draw_faults(&mut rng);
    cluster.set_faults(NetworkFaults { broken_follow_ratio: 0.2, ..faults });
    publish_all(&cluster, draw_messages(seed), seed).await;
    // Repeat until a reply arrives.
    let until = loop {
        match level_of(&cluster).await {
            Some(level) => break level,
            None => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    };
    let (one, other) = (cluster.connect(CLOUD), cluster.connect(CLOUD));
    let (one, other) = tokio::join!(fold_stream(&one, until, reader), fold_stream(&other, until, reader));
    cluster.set_faults(NetworkFaults::default());
    let whole = fold_stream(&cluster.connect(CLOUD), until, FoldReader::Continues).await;
    whole.check()?;
    for fold in [one, other] {
        fold.check()?;
        if fold != whole {
            return Err(format!("one reader counted {:?} and another {:?}", fold.counted, whole.counted));
        }
    }
    Ok(history_of(&cluster))
}

async fn level_of(cluster: &MemoryCluster) -> Option<u64> {
    let level = reader::stream_level(&cluster.connect(CLOUD), topology::UPDATES).await.ok()?;
    Some(level.last_sequence)
}

#[test]
fn every_reader_counts_the_same_updates() {
    let test = "rounds::every_reader_counts_the_same_updates";
    check_seeds(test, 300, |seed| fold_under_faults(seed, FoldReader::Continues));
}

#[test]
fn a_reader_that_reads_twice_is_caught() {
    let caught = find_failure(50, |seed| fold_under_faults(seed, FoldReader::ReadsTwice));
    let (seed, why) = caught.expect("fifty seeds did not catch a reader that reads messages twice");
    println!("caught at seed {seed}: {why}");
}
