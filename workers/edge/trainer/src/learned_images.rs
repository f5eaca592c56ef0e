//! Records which images each update learned from, in the site's stream LEARNED: written before an update is sent, read
//! when labels are retracted. Never leaves the site.

use std::collections::{BTreeMap, BTreeSet};

use runtime::Fault;
use schemas::limits::MAX_LEARNED_IMAGES;
use schemas::{Label, LearnedImages, ModelName, ReleaseId, SiteName, TaskId, Update, decode, encode};
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, Publication, PublishOutcome, Publisher, subject, topology};

/// An update that learned from some of the images in question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TracedUpdate {
    /// Its id, as in the manifest of a release.
    pub update: TaskId,
    /// Name of the model.
    pub model: ModelName,
    /// Number of its round; 0 if no round asked for it.
    pub round: u64,
    /// The release it was trained from.
    pub base: ReleaseId,
    /// When it was trained, milliseconds since the epoch.
    pub trained_at_ms: u64,
    /// The images in question that it learned from.
    pub images: BTreeSet<TaskId>,
}

/// When each image's label was retracted, nanoseconds since the epoch by the server's clock: updates recorded later did
/// not learn from it. `i128::MAX`: never.
pub type RetractionTimes = BTreeMap<TaskId, i128>;

/// Records the images an update learned from. Returns the sequences of the messages.
///
/// # Errors
/// The broker failed.
pub async fn record_images(
    publisher: &Publisher,
    update: &Update,
    images: &BTreeSet<TaskId>,
) -> Result<Vec<u64>, Fault> {
    let slot = subject::learned(&update.site, &update.model);
    let mut sequences = Vec::new();
    for (number, part) in parts(update, images).into_iter().enumerate() {
        let id = update.id().child(&format!("learned-{number}")).to_string();
        match publisher.publish(&Publication::with_id(slot.clone(), encode(&part)?, id)).await? {
            PublishOutcome::Stored(sequence) | PublishOutcome::Duplicate(sequence) => sequences.push(sequence),
            PublishOutcome::Taken => {}
        }
    }
    Ok(sequences)
}

/// Splits the images into as many messages as needed.
fn parts(update: &Update, images: &BTreeSet<TaskId>) -> Vec<LearnedImages> {
    let images: Vec<TaskId> = images.iter().copied().collect();
    let part = |images: &[TaskId]| LearnedImages {
        update: update.id(),
        model: update.model.clone(),
        round: update.round,
        base: update.base.clone(),
        trained_at_ms: update.trained_at_ms,
        images: images.to_vec(),
    };
    images.chunks(MAX_LEARNED_IMAGES).map(part).collect()
}

/// Deletes the record of an update that is not sent.
///
/// # Errors
/// The broker failed.
pub async fn forget_images(bus: &Bus, sequences: &[u64]) -> Result<(), CarryError> {
    for sequence in sequences {
        reader::delete_message(bus, topology::LEARNED, *sequence).await?;
    }
    Ok(())
}

/// The site's updates that learned from some of these images, oldest first, as far back as the stream goes.
///
/// # Errors
/// The broker failed.
pub async fn trace_updates(
    bus: &Bus,
    site: &SiteName,
    images: &RetractionTimes,
) -> Result<Vec<TracedUpdate>, CarryError> {
    let last = reader::stream_level(bus, topology::LEARNED).await?;
    let mut found = Vec::new();
    if last.messages == 0 || images.is_empty() {
        return Ok(found);
    }
    let all = StreamRange { subjects: vec![subject::learned_at(site)], ..StreamRange::default() };
    reader::read_range(bus, topology::LEARNED, all, last.last_sequence, |record| {
        match decode::<LearnedImages>(&record.payload) {
            Ok(learned) => add(&mut found, learned, record.stored_at_ns, images),
            Err(error) => {
                tracing::warn!(sequence = record.sequence, %error, "learned-images message unreadable; skipped")
            }
        }
    })
    .await?;
    Ok(found)
}

/// Adds a list of images. Lists of one update are merged, and one that was written twice counts once.
fn add(found: &mut Vec<TracedUpdate>, learned: LearnedImages, stored_at_ns: i128, images: &RetractionTimes) {
    let before = |image: &TaskId| images.get(image).is_some_and(|until| stored_at_ns <= *until);
    let meant: BTreeSet<TaskId> = learned.images.iter().filter(|image| before(image)).copied().collect();
    if meant.is_empty() {
        return;
    }
    if let Some(known) = found.iter_mut().find(|known| known.update == learned.update) {
        known.images.extend(meant);
        return;
    }
    let LearnedImages { update, model, round, base, trained_at_ms, .. } = learned;
    found.push(TracedUpdate { update, model, round, base, trained_at_ms, images: meant });
}

/// The site's images with retracted labels, each with the time of its last retraction.
///
/// # Errors
/// The broker failed.
pub async fn retracted(bus: &Bus) -> Result<RetractionTimes, CarryError> {
    let mut found = RetractionTimes::new();
    let last = reader::stream_level(bus, topology::LABELS).await?;
    if last.messages > 0 {
        reader::read_range(bus, topology::LABELS, StreamRange::default(), last.last_sequence, |record| {
            match decode::<Label>(&record.payload) {
                Ok(label) if label.retracted.is_some() => found.extend([(label.task, record.stored_at_ns)]),
                _ => {}
            }
        })
        .await?;
    }
    Ok(found)
}

/// Whether a label of one of these images was retracted at or after this sequence of LABELS.
///
/// # Errors
/// The broker failed.
pub async fn is_retracted(bus: &Bus, images: &BTreeSet<TaskId>, from_sequence: u64) -> Result<bool, CarryError> {
    let last = reader::stream_level(bus, topology::LABELS).await?;
    if last.messages == 0 || last.last_sequence < from_sequence {
        return Ok(false);
    }
    let mut found = false;
    let new = StreamRange { from_sequence: Some(from_sequence), ..StreamRange::default() };
    reader::read_range(bus, topology::LABELS, new, last.last_sequence, |record| {
        let label = decode::<Label>(&record.payload).ok().filter(|label| label.retracted.is_some());
        found |= label.is_some_and(|label| images.contains(&label.task));
    })
    .await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(number: u32) -> TaskId {
        TaskId::from_name(&number.to_string())
    }

    fn learned(update: u32, images: &[u32]) -> LearnedImages {
        LearnedImages {
            update: task(1000 + update),
            model: ModelName::from_name("light"),
            round: 3,
            base: ReleaseId::from_sha256([1; 32]),
            trained_at_ms: 7,
            images: images.iter().map(|number| task(*number)).collect(),
        }
    }

    #[test]
    fn an_update_after_the_retraction_is_not_named() {
        let images = RetractionTimes::from([(task(1), 100)]);
        let mut found = Vec::new();
        add(&mut found, learned(1, &[1, 2]), 99, &images);
        add(&mut found, learned(2, &[1, 2]), 101, &images);
        add(&mut found, learned(3, &[2]), 5, &images);
        assert_eq!(found.iter().map(|found| found.update).collect::<Vec<_>>(), [task(1001)]);
    }

    proptest! {
        #[test]
        fn each_update_is_named_once_however_its_list_is_split(
            lists in prop::collection::vec((0_u32..4, prop::collection::vec(0_u32..30, 0..20)), 0..30),
            meant in prop::collection::btree_set(0_u32..30, 0..10),
        ) {
            let images: RetractionTimes = meant.iter().map(|number| (task(*number), i128::MAX)).collect();
            let (mut found, mut expected) = (Vec::new(), BTreeMap::<TaskId, BTreeSet<TaskId>>::new());
            for (update, list) in &lists {
                add(&mut found, learned(*update, list), 1, &images);
                let own = list.iter().filter(|number| meant.contains(number)).map(|number| task(*number));
                expected.entry(task(1000 + update)).or_default().extend(own);
            }
            expected.retain(|_, images| !images.is_empty());
            let named: BTreeMap<TaskId, BTreeSet<TaskId>> =
                found.iter().map(|found| (found.update, found.images.clone())).collect();
            prop_assert_eq!(found.len(), named.len());
            prop_assert_eq!(named, expected);
        }
    }
}
