//! Looks up the length of the queues that a process consumes, at each request for metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::Role;
use streams::reader::{self, ConsumerProgress, StreamLevel};

use super::QueueConsumer;

/// Timeout of the lookup: whoever asks waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// State of one queue.
#[derive(Debug, Clone)]
pub(super) struct QueueReading {
    pub role: Role,
    pub stream: &'static str,
    pub durable: String,
    pub progress: ConsumerProgress,
}

/// What the server reported. A queue that could not be read is absent, so that it does not look empty.
#[derive(Debug, Default)]
pub(super) struct QueueReadings {
    pub found: Vec<QueueReading>,
    pub levels: BTreeMap<&'static str, StreamLevel>,
}

pub(super) async fn read_queues(queues: Vec<QueueConsumer>) -> QueueReadings {
    let read_one = |queue: QueueConsumer| async move {
        let progress = reader::consumer_progress(&queue.bus, queue.stream, &queue.durable).await.ok()?;
        let level = reader::stream_level(&queue.bus, queue.stream).await.ok()?;
        let QueueConsumer { role, stream, durable, .. } = queue;
        Some((QueueReading { role, stream, durable, progress }, level))
    };
    let readings = futures::future::join_all(
        queues.into_iter().map(|queue| tokio::time::timeout(LOOKUP_TIMEOUT, read_one(queue))),
    );
    let mut all = QueueReadings::default();
    for (reading, level) in readings.await.into_iter().filter_map(|reading| reading.ok().flatten()) {
        all.levels.insert(reading.stream, level);
        all.found.push(reading);
    }
    all
}
