//! The audit log: who changed what by hand. [`runtime::audit`] holds the chain of digests.

use schemas::SiteName;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, subject, topology};

/// Records what was changed at a place. It is changed already, so a failure to record it is only logged.
pub async fn record_change(bus: &Bus, place: &SiteName, action: &str, about: impl Into<String>) {
    if let Err(error) = runtime::audit::record_action(bus, place, action, about).await {
        tracing::warn!(action, error = runtime::fault::error_chain(&error), "audit entry not written");
    }
}

/// The notes of a place as they are stored, oldest first.
pub async fn read_notes(bus: &Bus, place: &SiteName) -> Result<Vec<StoredMessage>, CarryError> {
    let level = reader::stream_level(bus, topology::AUDIT).await?;
    let mut records = Vec::new();
    if level.messages > 0 {
        let subjects = vec![subject::audit(place)];
        let all = StreamRange { subjects, ..StreamRange::default() };
        reader::read_range(bus, topology::AUDIT, all, level.last_sequence, |record| records.push(record)).await?;
    }
    Ok(records)
}
