//! How long the queues are that a process takes from, asked of the server when somebody wants to know.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::Role;
use streams::reader::{self, ConsumerProgress, StreamLevel};

use super::QueueConsumer;

/// The server has this long to answer: whoever asks waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a queue stands.
#[derive(Debug, Clone)]
pub(super) struct QueueReading {
    pub role: Role,
    pub stream: &'static str,
    pub durable: String,
    pub progress: ConsumerProgress,
}

/// What the server said. What it did not say is absent: a queue that cannot be seen must not look empty.
#[derive(Debug, Default)]
pub(super) struct QueueReadings {
    pub found: Vec<QueueReading>,
    pub levels: BTreeMap<&'static str, StreamLevel>,
}

pub(super) async fn read_queues(queues: Vec<QueueConsumer>) -> QueueReadings {
    let one = |queue: QueueConsumer| async move {
        let progress = reader::consumer_progress(&queue.bus, queue.stream, &queue.durable).await.ok()?;
        let level = reader::stream_level(&queue.bus, queue.stream).await.ok()?;
        let QueueConsumer { role, stream, durable, .. } = queue;
        Some((QueueReading { role, stream, durable, progress }, level))
    };
    let asked = futures::future::join_all(queues.into_iter().map(|queue| tokio::time::timeout(PATIENCE, one(queue))));
    let mut all = QueueReadings::default();
    for (found, level) in asked.await.into_iter().filter_map(|answered| answered.ok().flatten()) {
        all.levels.insert(found.stream, level);
        all.found.push(found);
    }
    all
}
