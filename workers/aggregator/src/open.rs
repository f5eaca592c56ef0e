//! Opening a round: one message, whose slot in the stream decides when two do it at once.

use runtime::{Fault, clock};
use schemas::task::{HEADER_BLOB, HEADER_TO};
use schemas::{BlobRef, ModelName, ReleaseId, Round, RoundEvent, Terms, decode, encode};
use streams::read::{self, Stretch};
use streams::{Bus, CarryError, Placed, Publication, Publisher, subject, topology};

use crate::settings::RoundSettings;

/// What is known of a model's rounds from the stream alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// Everything that happened, with the sequence of its message and when it was stored, milliseconds since the epoch.
    pub all: Vec<(u64, u64, Round)>,
}

impl History {
    /// Reads it.
    pub async fn read(bus: &Bus, model: &ModelName) -> Result<Self, CarryError> {
        let level = read::level(bus, topology::UPDATES).await?;
        let subjects = ["opened", "closed", "ended"].map(|event| subject::rounds(model, event)).to_vec();
        let mut all = Vec::new();
        let stretch = Stretch { subjects, ..Stretch::default() };
        read::stretch(bus, topology::UPDATES, stretch, level.last_sequence, |record| {
            match decode::<Round>(&record.payload) {
                Ok(round) => all.push((record.sequence, stored_at_ms(&record), round)),
                Err(error) => tracing::warn!(subject = record.subject, %error, "no word of a round, passed over"),
            }
        })
        .await?;
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

    /// The latest release with its weights; `None` if no round came to one.
    pub fn release(&self) -> Option<(&ReleaseId, &BlobRef)> {
        self.all.iter().rev().find_map(|(_, _, round)| match &round.event {
            RoundEvent::Sealed { release, weights, .. } => Some((release, weights)),
            _ => None,
        })
    }
}

/// When a message was stored, milliseconds since the epoch.
pub fn stored_at_ms(record: &read::Record) -> u64 {
    u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0)
}

/// What sites are asked for: to start from this release.
pub fn terms(base: ReleaseId, weights: Option<BlobRef>, settings: &RoundSettings) -> Terms {
    Terms {
        base,
        weights,
        sites: settings.sites.clone(),
        quorum: settings.quorum,
        grace_s: settings.grace_s,
        deadline_s: settings.deadline_s,
        trainable: settings.trainable.clone(),
        local: settings.local.clone(),
        unsolicited: settings.unsolicited,
        behind_max: settings.behind_max,
    }
}

/// Says that something happened in a round; false if it was said before.
pub async fn say(publisher: &Publisher, model: &ModelName, number: u64, event: RoundEvent) -> Result<bool, Fault> {
    let slot = subject::round(model, number, event.as_str());
    let blob = match &event {
        RoundEvent::Opened(terms) => terms.weights.clone(),
        _ => None,
    };
    let asks = matches!(event, RoundEvent::Opened(_));
    let round = Round { model: model.clone(), number, event, said_at_ms: clock::now_ms() };
    let mut publication = Publication::first(slot, encode(&round)?);
    if asks {
        // For the couriers, who take it to their sites.
        publication = publication.header(HEADER_TO, subject::note(&subject::round_note(model)));
    }
    if let Some(blob) = blob {
        publication = publication.header(HEADER_BLOB, blob.to_string());
    }
    Ok(!matches!(publisher.publish(&publication).await?, Placed::Taken))
}
