//! Counts the hard cases of each site since the last round was opened. Reads on from where it stopped: the stream holds
//! hundreds of thousands, and is looked at every few seconds.

use std::collections::BTreeMap;

use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, topology};

use crate::round_open::stored_at_ms;

/// Hard cases by site, up to a place in the stream. Holds one number for each site that has the right to publish hard cases.
#[derive(Debug, Default)]
pub struct HardCaseCount {
    /// Hard cases stored later than this count, milliseconds since the epoch.
    since_ms: u64,
    /// Sequence from which the stream is read on; 0 before it was looked at.
    next: u64,
    by_subject: BTreeMap<String, u32>,
}

impl HardCaseCount {
    /// Reads what arrived since the last time, or, for another `since_ms`, what was stored since then. Returns how many
    /// messages it read.
    ///
    /// # Errors
    /// The stream cannot be read; nothing of it is counted twice the next time.
    pub async fn count_new(&mut self, bus: &Bus, since_ms: u64) -> Result<u64, CarryError> {
        let level = reader::stream_level(bus, topology::HARDCASES).await?;
        // Also when the stream begins anew below what was read of it.
        if self.next == 0 || since_ms != self.since_ms || level.last_sequence.saturating_add(1) < self.next {
            let since_ns = i128::from(since_ms).saturating_add(1).saturating_mul(1_000_000);
            let first = reader::first_since(bus, topology::HARDCASES, since_ns).await?;
            let next = first.map_or(level.last_sequence.saturating_add(1), |first| first.sequence);
            *self = Self { since_ms, next, by_subject: BTreeMap::new() };
        }
        if self.next > level.last_sequence {
            return Ok(0);
        }
        let range = StreamRange { headers_only: true, from_sequence: Some(self.next), ..StreamRange::default() };
        let mut read = 0;
        let (next, by_subject) = (&mut self.next, &mut self.by_subject);
        reader::read_range(bus, topology::HARDCASES, range, level.last_sequence, |record| {
            *next = record.sequence.saturating_add(1);
            read += 1;
            if stored_at_ms(&record) > since_ms {
                let count: &mut u32 = by_subject.entry(record.subject).or_default();
                *count = count.saturating_add(1);
            }
        })
        .await?;
        self.next = level.last_sequence.saturating_add(1);
        Ok(read)
    }

    /// Number of sites with so many hard cases or more.
    pub fn sites_with(&self, wanted: u32) -> usize {
        self.by_subject.values().filter(|count| **count >= wanted).count()
    }
}
