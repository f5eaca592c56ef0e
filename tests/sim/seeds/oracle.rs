//! Guarantees that must hold for every history, whatever faults it had.

use std::collections::{BTreeMap, BTreeSet};

use schemas::task::HEADER_MESSAGE_ID;
use schemas::{Answer, AnswerStage, DeadLetter, Message, Route, TaskId, decode};
use streams::memory::{ClusterEvent, MemoryCluster};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{subject, topology};

use crate::world::{camera, site, task_of};

/// The history of a site's images. A position is the index of an event in the cluster's history.
pub(crate) struct ImageTrail {
    server: String,
    /// Position and sequence of each acknowledged image.
    acknowledged: Vec<(usize, u64)>,
    /// Positions at which outcomes were stored, by slot.
    outcomes: BTreeMap<String, Vec<usize>>,
    /// Position and sequence of each image that a client deleted.
    deleted: Vec<(usize, u64)>,
    /// Sequences of the stored images.
    stored: BTreeSet<u64>,
}

impl ImageTrail {
    /// Collects the history of one stream and one of its durable consumers.
    pub(crate) fn of(cluster: &MemoryCluster, at: &str, from: &str, by: &str) -> Self {
        let mut trail = Self {
            server: at.into(),
            acknowledged: Vec::new(),
            outcomes: BTreeMap::new(),
            deleted: Vec::new(),
            stored: BTreeSet::new(),
        };
        for (position, event) in cluster.events().into_iter().enumerate() {
            match event {
                ClusterEvent::Acknowledged { server, stream, durable, sequence }
                    if server == at && stream == from && durable == by =>
                {
                    trail.acknowledged.push((position, sequence));
                }
                ClusterEvent::Stored { server, stream, subject, .. }
                    if server == at && stream == topology::ANSWERS && subject.starts_with("answer.final.") =>
                {
                    trail.outcomes.entry(subject).or_default().push(position);
                }
                ClusterEvent::Stored { server, stream, sequence, .. } if server == at && stream == from => {
                    trail.stored.insert(sequence);
                }
                ClusterEvent::Deleted { server, stream, sequence } if server == at && stream == from => {
                    trail.deleted.push((position, sequence));
                }
                _ => {}
            }
        }
        trail
    }
}

/// Reads all messages of a stream.
pub(crate) async fn read_stream(
    cluster: &MemoryCluster,
    server: &str,
    stream: &str,
) -> Result<Vec<StoredMessage>, String> {
    let bus = cluster.connect(server);
    let level = reader::stream_level(&bus, stream).await.map_err(|error| error.to_string())?;
    let mut messages = Vec::new();
    let range = StreamRange::default();
    let all = reader::read_range(&bus, stream, range, level.last_sequence, |message| messages.push(message));
    all.await.map_err(|error| format!("{stream}: {error}"))?;
    Ok(messages)
}

/// Reads and decodes all messages of a stream.
pub(crate) async fn read_messages<M: Message>(
    cluster: &MemoryCluster,
    server: &str,
    stream: &str,
) -> Result<Vec<M>, String> {
    let all = read_stream(cluster, server, stream).await?;
    all.iter().map(|message| decode(&message.payload).map_err(|error| error.to_string())).collect()
}

/// Reads the dead letters of a server.
pub(crate) async fn dead_letters(cluster: &MemoryCluster, server: &str) -> Result<Vec<DeadLetter>, String> {
    read_messages(cluster, server, topology::DEAD).await
}

/// Checks that every image has exactly one final outcome, was acknowledged after that was stored, and has a dead letter
/// if and only if the outcome is dead.
pub(crate) async fn check_outcomes(cluster: &MemoryCluster, trail: &ImageTrail) -> Result<(), String> {
    let slots = check_ends(cluster, trail).await?;
    let after_outcome = |position: usize, sequence: u64, what: &str| {
        let Some(slot) = slots.get(&sequence) else { return Ok(()) };
        match trail.outcomes.get(slot).and_then(|stored| stored.first()) {
            Some(stored) if *stored < position => Ok(()),
            _ => Err(format!("image {sequence} was {what} before its outcome was stored")),
        }
    };
    for (position, sequence) in &trail.acknowledged {
        after_outcome(*position, *sequence, "acknowledged")?;
    }
    for (_, sequence) in &trail.deleted {
        if !trail.stored.contains(sequence) {
            return Err(format!("image {sequence} was deleted but never stored"));
        }
    }
    let acknowledged: BTreeSet<u64> = trail.acknowledged.iter().map(|(_, sequence)| *sequence).collect();
    if let Some(left) = slots.keys().find(|sequence| !acknowledged.contains(sequence)) {
        return Err(format!("image {left} was never acknowledged"));
    }
    Ok(())
}

/// Checks that every image has exactly one final outcome, and a dead letter if and only if that outcome is a tombstone.
/// Returns the slot of each image's outcome, by the image's sequence.
pub(crate) async fn check_ends(cluster: &MemoryCluster, trail: &ImageTrail) -> Result<BTreeMap<u64, String>, String> {
    let images = read_stream(cluster, &trail.server, topology::IMAGES).await?;
    let mut slots = BTreeMap::new();
    for image in &images {
        let id = image.header(HEADER_MESSAGE_ID).unwrap_or_default();
        slots.insert(image.sequence, subject::final_answer(&site(), &camera(), task_of(id)));
    }
    for (sequence, slot) in &slots {
        let outcomes = trail.outcomes.get(slot).map_or(0, Vec::len);
        if outcomes != 1 {
            return Err(format!("image {sequence} has {outcomes} outcomes"));
        }
    }
    let letters = dead_letters(cluster, &trail.server).await?;
    let with_dead_letter: BTreeSet<TaskId> = letters.iter().filter_map(|letter| letter.task).collect();
    let answers: Vec<Answer> = read_messages(cluster, &trail.server, topology::ANSWERS).await?;
    for answer in answers.iter().filter(|answer| answer.stage == AnswerStage::Final) {
        match (answer.route == Route::Dead, with_dead_letter.contains(&answer.task)) {
            (true, false) => return Err(format!("task {} is dead but has no dead letter", answer.task)),
            (false, true) => return Err(format!("task {} has both an answer and a dead letter", answer.task)),
            (true, true) | (false, false) => {}
        }
    }
    Ok(slots)
}
