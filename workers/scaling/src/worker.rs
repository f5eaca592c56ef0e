//! Follows what was asked for, or the queue, and starts or drains replicas.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use runtime::consumer::WorkerStats;
use runtime::{Shutdown, process};
use streams::fleet::{self, Ledger};
use streams::{Bus, CarryError, Role, reader};
use tokio::sync::watch;
use tokio::time::Instant;
use vision::{InferenceError, InferencePool};

use crate::decide::{QueueObservation, ScaleState, decide_replicas};
use crate::replica_request::{MOST_REPLICAS, ReplicaRequest};
use crate::settings::ScaleSettings;

/// How often it looks at the queue.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A watch that broke, or a change that failed, is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Memory that must stay free beside a new replica, bytes; a guess.
const SPARE_BYTES: u64 = 64 << 20;
/// A session takes about so many times the bytes of its graph, until it was measured; a guess on the safe side.
const TIMES_GRAPH: u64 = 4;

/// In the sentence of a worker that could not start or end a replica, before what was wanted.
const SHORT_OF: &str = ", though ";

/// Whether a worker's sentence about its replicas says that it cannot run as many as it should.
pub fn falls_short(why: &str) -> bool {
    why.contains(SHORT_OF)
}

/// The note of a place that says how many replicas each worker of a role runs.
pub fn replica_note(role: Role) -> String {
    format!("scale-{role}")
}

/// Scales the replicas of one worker.
pub struct Scaler {
    role: Role,
    infer: InferencePool,
    settings: ScaleSettings,
    /// As many as it began with, which is what it comes back to.
    begun_with: usize,
    /// What one more took when that was measured last, bytes.
    each_bytes: Mutex<Option<u64>>,
    /// Why there are as many as there are.
    why: Mutex<Option<String>>,
}

impl Scaler {
    /// Of a worker whose model is loaded.
    pub fn new(role: Role, infer: InferencePool, settings: ScaleSettings) -> Self {
        let begun_with = infer.replicas();
        Self { role, infer, settings, begun_with, each_bytes: Mutex::default(), why: Mutex::default() }
    }

    /// Why there are as many as there are, in a sentence; absent while nothing was asked and no queue is followed.
    pub fn reason(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows what is asked for at a place, until told to stop. `queue`: stream and durable it takes from; `tally`: what it
    /// did; `resized` hears of each change.
    pub async fn run(
        &self,
        bus: &Bus,
        queue: (&str, &str),
        tally: &WorkerStats,
        resized: &(impl Fn(usize) + Sync),
        shutdown: &Shutdown,
    ) {
        let asked = watch::Sender::new(None);
        tokio::select! {
            () = self.follow(bus, &asked) => {}
            () = self.scale(bus, queue, tally, resized, asked.subscribe()) => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    /// Hears what is asked for.
    async fn follow(&self, bus: &Bus, asked: &watch::Sender<Option<ReplicaRequest>>) {
        loop {
            let heard: Result<(), CarryError> = async {
                let mut notes = Ledger::open(bus).await?.follow_note(&replica_note(self.role)).await?;
                while let Some(note) = notes.next().await {
                    match serde_json::from_str::<Option<ReplicaRequest>>(&note) {
                        Ok(said) => drop(asked.send_replace(said)),
                        Err(error) => tracing::warn!(%error, "how many replicas were asked for cannot be read"),
                    }
                }
                Ok(())
            }
            .await;
            if let Err(error) = heard {
                tracing::debug!(%error, "listening again");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn scale(
        &self,
        bus: &Bus,
        queue: (&str, &str),
        tally: &WorkerStats,
        resized: &(impl Fn(usize) + Sync),
        mut asked: watch::Receiver<Option<ReplicaRequest>>,
    ) {
        let (begun, mut state) = (Instant::now(), ScaleState::default());
        loop {
            let said = *asked.borrow_and_update();
            let followed = match said {
                Some(ReplicaRequest::Fixed(replicas)) => {
                    self.scale_to(replicas, format!("{replicas} were asked for"), resized).await;
                    None
                }
                Some(ReplicaRequest::Between(least, most)) => {
                    Some(ScaleSettings { min_replicas: least, max_replicas: most, ..self.settings.clone() })
                }
                None if self.settings.max_replicas > 0 => Some(self.settings.clone()),
                None => {
                    // Taken back: as many as it began with, and nothing to say about it.
                    if self.infer.replicas() != self.begun_with {
                        self.scale_to(self.begun_with, "what was asked for was taken back".into(), resized).await;
                    }
                    self.log_scaling(None);
                    None
                }
            };
            if let Some(settings) = followed {
                match self.read_queue(bus, queue, tally, begun.elapsed()).await {
                    Ok(seen) => {
                        let (next, wish) = decide_replicas(&settings, &state, &seen);
                        state = next;
                        self.scale_to(wish.replicas, wish.why, resized).await;
                    }
                    // A queue that cannot be seen is neither empty nor endless.
                    Err(error) => self.log_scaling(Some(format!(
                        "{} stay, for the queue cannot be seen: {error}",
                        self.infer.replicas()
                    ))),
                }
            }
            let _changed_or_time = tokio::time::timeout(LOOK_EVERY, asked.changed()).await;
        }
    }

    /// What waits for this worker, which shares it with the others of its role.
    async fn read_queue(
        &self,
        bus: &Bus,
        (stream, durable): (&str, &str),
        tally: &WorkerStats,
        since: Duration,
    ) -> Result<QueueObservation, CarryError> {
        let progress = reader::consumer_progress(bus, stream, durable).await?;
        let own = self.infer.replicas();
        let beats = fleet::live_workers(bus).await?;
        let me = runtime::heartbeat::worker_name();
        let others = beats.iter().filter(|beat| beat.role == self.role && beat.worker != me);
        let all = own + others.map(|beat| beat.replicas as usize).sum::<usize>();
        let waiting = (progress.pending + progress.unacked) as f64 * own as f64 / all.max(1) as f64;
        let finished = tally.finished.load(Ordering::Relaxed);
        Ok(QueueObservation {
            now_s: since.as_secs_f64(),
            waiting,
            cost_s: self.infer.cost_ms() / 1000.0,
            replicas: own,
            finished,
        })
    }

    /// Starts or drains replicas one by one, until there are so many, or until one cannot be started.
    async fn scale_to(&self, replicas: usize, why: String, resized: &(impl Fn(usize) + Sync)) {
        let wanted = replicas.clamp(1, MOST_REPLICAS);
        let before = self.infer.replicas();
        let mut missing = None;
        while self.infer.replicas() != wanted {
            match self.start_or_drain(self.infer.replicas() < wanted).await {
                Ok(()) => resized(self.infer.replicas()),
                Err(reason) => {
                    missing = Some(reason);
                    break;
                }
            }
        }
        let now = self.infer.replicas();
        if now != before {
            tracing::info!(role = self.role.as_str(), before, replicas = now, why, "scaled");
        }
        self.log_scaling(Some(match missing {
            Some(reason) => format!("{now} run{SHORT_OF}{why}: {reason}"),
            None => format!("{now} run: {why}"),
        }));
    }

    async fn start_or_drain(&self, grow: bool) -> Result<(), String> {
        if grow {
            self.allow()?;
        }
        let infer = self.infer.clone();
        let before = process::resident_bytes();
        let stepped =
            tokio::task::spawn_blocking(move || if grow { infer.add_replica() } else { infer.remove_replica() });
        let stepped = stepped.await.map_err(|error| error.to_string())?;
        stepped.map_err(|error: InferenceError| format!("{}: {error}", error.name()))?;
        if let (true, Some(before), Some(after)) = (grow, before, process::resident_bytes()) {
            let grown = after.saturating_sub(before);
            *self.each_bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(grown).filter(|grown| *grown > 0);
        }
        Ok(())
    }

    /// Whether there is memory for one more.
    fn allow(&self) -> Result<(), String> {
        let Some(free) = process::available_bytes() else { return Ok(()) };
        let measured = *self.each_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = measured.unwrap_or_else(|| graph_bytes(&self.infer.model().folder) * TIMES_GRAPH) + SPARE_BYTES;
        match needed <= free {
            true => Ok(()),
            false => {
                Err(format!("one more would need {} MiB of memory, and {} MiB are free", needed >> 20, free >> 20))
            }
        }
    }

    fn log_scaling(&self, why: Option<String>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Bytes of the files of a model.
fn graph_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
}
