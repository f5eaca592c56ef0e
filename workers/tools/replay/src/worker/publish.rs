//! Publishes images as new tasks, labels for the trainer, and images into a pinned set.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use runtime::clock;
use schemas::{SetName, TaskId};
use streams::{Blobs, CarryError, PublishOutcome, Publisher, reader};
use tokio::time::Instant;

use super::{ReplayRun, ReplaySpacing, spawn_abortable};
use crate::error::ReplayError;
use crate::republish;
use crate::row::TaskRow;

/// How long a publication is retried before a replay stops.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// Most publications in flight.
const MAX_IN_FLIGHT: usize = 64;
/// Interval of writing the marker, which alone tells what is done.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);

impl ReplayRun<'_> {
    /// Publishes images again.
    pub(super) async fn publish(
        &mut self,
        rows: Vec<TaskRow>,
        template: &str,
        spacing: ReplaySpacing,
    ) -> Result<(), ReplayError> {
        let known: HashSet<TaskId> =
            rows.iter().filter(|row| row.sequence <= self.begun.through).map(|row| row.task).collect();
        let rows = self.skip_done(rows, &known);
        let Some(first) = rows.first() else { return self.note_end() };
        let stored = reader::stream_of(self.bus, &republish::subject_of(template, first)).await?.is_some();
        self.summary.unstored = !stored;
        let publisher = Publisher::new(self.bus.clone(), PUBLISH_TIMEOUT);
        let blobs = Blobs::open(self.bus).await?;
        let (bus, run, begun_at) = (self.bus.clone(), self.begun.run, Instant::now());
        let mut sent = FuturesOrdered::new();
        let mut noted_at = Instant::now();
        let mut number = 0_u32;
        let mut due_at = |row: &TaskRow| {
            number += 1;
            match spacing {
                ReplaySpacing::Fast => begun_at,
                ReplaySpacing::Rate(rate) => begun_at + Duration::from_secs_f64(f64::from(number - 1) / rate),
                ReplaySpacing::Original => {
                    begun_at + Duration::from_millis(row.published_at_ms.saturating_sub(first.published_at_ms))
                }
            }
        };
        let shutdown = self.shutdown;
        let fetched = self
            .fetch(&rows, async |run_, row, image, permit| {
                tokio::select! {
                    () = tokio::time::sleep_until(due_at(row)) => {}
                    () = shutdown.wait_for_request() => return Err(ReplayError::Interrupted),
                }
                while sent.len() >= MAX_IN_FLIGHT {
                    if let Some(ended) = sent.next().await {
                        run_.arrived(ended)?;
                    }
                }
                if noted_at.elapsed() >= MARKER_INTERVAL {
                    noted_at = Instant::now();
                    run_.note_through()?;
                }
                let publication = republish::republication(template, row, &image, run);
                let (publisher, blobs, bus, row) = (publisher.clone(), blobs.clone(), bus.clone(), row.clone());
                sent.push_back(spawn_abortable(async move {
                    let _permit = permit;
                    if publication.payload.is_empty() {
                        // It may come from a pinned set, which keeps images the site has purged.
                        blobs.store_blob(&image.bytes).await?;
                    }
                    match stored {
                        true => publisher.publish(&publication).await.map(|_| ())?,
                        false => bus.publish_unstored(&publication).await?,
                    }
                    Ok((row, image.bytes.len() as u64))
                }));
                Ok(())
            })
            .await;
        while let Some(ended) = sent.next().await {
            self.arrived(ended)?;
        }
        self.note_through()?;
        self.bus.flush_published().await;
        fetched?;
        self.note_end()
    }

    fn arrived(&mut self, ended: Result<(TaskRow, u64), ReplayError>) -> Result<(), ReplayError> {
        let (row, bytes) = ended?;
        self.begun.through = self.begun.through.max(row.sequence);
        self.through(&row, bytes);
        Ok(())
    }

    /// Publishes labels for the site's trainer.
    pub(super) async fn label(&mut self, rows: Vec<TaskRow>) -> Result<(), ReplayError> {
        let publisher = Publisher::new(self.bus.clone(), PUBLISH_TIMEOUT);
        let run = self.begun.run;
        let labels = rows.into_iter().filter_map(|row| match republish::label(&row, run, clock::now_ms()) {
            Ok(Some(label)) => Some(Ok((row, label))),
            Ok(None) => {
                self.summary.unlabelled += 1;
                None
            }
            Err(error) => Some(Err(error)),
        });
        let labels: Vec<_> = labels.collect::<Result<_, _>>()?;
        let publications = labels.into_iter().map(|(row, label)| {
            let publisher = publisher.clone();
            async move { publisher.publish(&label).await.map(|_| row) }
        });
        let mut publishing = futures::stream::iter(publications).buffered(MAX_IN_FLIGHT);
        while let Some(row) = publishing.next().await {
            if self.shutdown.is_requested() {
                return Err(ReplayError::Interrupted);
            }
            self.through(&row?, 0);
        }
        Ok(())
    }

    /// Publishes images into a pinned set, each into its slot.
    pub(super) async fn pin(&mut self, rows: Vec<TaskRow>, set: &SetName) -> Result<(), ReplayError> {
        let publisher = Publisher::new(self.bus.clone(), PUBLISH_TIMEOUT);
        let blobs = Blobs::open_pinned(self.bus).await?;
        let mut sent = FuturesOrdered::new();
        let fetched = self
            .fetch(&rows, async |run, row, image, permit| {
                while sent.len() >= MAX_IN_FLIGHT {
                    if let Some(ended) = sent.next().await {
                        run.pinned(ended)?;
                    }
                }
                let publication = republish::pin(set, row, &image)?;
                let (publisher, blobs, row) = (publisher.clone(), blobs.clone(), row.clone());
                sent.push_back(spawn_abortable(async move {
                    let _permit = permit;
                    if publication.payload.is_empty() {
                        blobs.store_blob(&image.bytes).await?;
                    }
                    let placed = publisher.publish(&publication).await?;
                    Ok((row, image.bytes.len() as u64, placed))
                }));
                Ok(())
            })
            .await;
        let mut ended = fetched;
        while let Some(sent) = sent.next().await {
            ended = ended.and(self.pinned(sent));
        }
        ended.map_err(|error| match error {
            ReplayError::Carry(CarryError::Full { why, .. }) => {
                let through = self.summary.before + self.summary.through;
                ReplayError::PinsFull { why, through, all: self.summary.meant }
            }
            other => other,
        })
    }

    fn pinned(&mut self, ended: Result<(TaskRow, u64, PublishOutcome), ReplayError>) -> Result<(), ReplayError> {
        match ended? {
            // Pinned before, or by an attempt whose acknowledgement was lost.
            (_, _, PublishOutcome::Taken | PublishOutcome::Duplicate(_)) => {
                self.summary.before += 1;
                self.report_progress();
            }
            (row, bytes, _) => self.through(&row, bytes),
        }
        Ok(())
    }
}
