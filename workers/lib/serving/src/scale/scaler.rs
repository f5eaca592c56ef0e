//! Follows a person's request, or the queue, and starts or drains replicas.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use os::process;
use runtime::Shutdown;
use runtime::consumer::WorkerStats;
use schemas::Role;
use streams::backoff::wait_about;
use streams::fleet::{self, Ledger};
use streams::{Bus, CarryError, reader};
use tokio::sync::watch;
use tokio::time::Instant;
use vision::{InferenceError, InferencePool};

use crate::scale::decide::{QueueObservation, ScaleState, decide_replicas};
use crate::scale::replica_request::{MAX_REPLICAS, ReplicaRequest};
use crate::scale::settings::ScaleSettings;

/// Interval of observing the queue.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before following the note again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// Memory that must stay free besides a new replica, bytes; a guess.
const SPARE_BYTES: u64 = 64 << 20;
/// Assumed memory of a session as a multiple of its graph's size, until it is measured; a guess on the safe side.
const SESSION_PER_GRAPH: u64 = 4;

/// In the sentence of a worker that could not start or end a replica, before what was wanted.
const SHORT_OF: &str = ", though ";

/// Whether a worker's sentence about its replicas says that it cannot run as many as it should.
pub fn falls_short(why: &str) -> bool {
    why.contains(SHORT_OF)
}

/// Key of the ledger note with the requested number of replicas for each worker of a role.
pub fn replica_note(role: Role) -> String {
    format!("scale-{role}")
}

/// Scales the replicas of one worker.
pub struct Scaler {
    role: Role,
    infer: InferencePool,
    settings: ScaleSettings,
    /// Number of replicas at the start, used again when a request is cleared.
    initial_replicas: usize,
    /// Memory that the last added replica took, bytes; absent until measured.
    each_bytes: Mutex<Option<u64>>,
    /// Why this number of replicas runs.
    why: Mutex<Option<String>>,
}

impl Scaler {
    /// A scaler for a worker whose model is loaded.
    pub fn new(role: Role, infer: InferencePool, settings: ScaleSettings) -> Self {
        let initial_replicas = infer.replicas();
        Self { role, infer, settings, initial_replicas, each_bytes: Mutex::default(), why: Mutex::default() }
    }

    /// Why this number of replicas runs, in a sentence; `None` while there is no request and no queue is followed.
    pub fn reason(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows requests and the queue until told to stop. `queue`: stream and durable of the worker; `stats`: its
    /// counters; `resized` is called after each change.
    pub async fn run(
        &self,
        bus: &Bus,
        queue: (&str, &str),
        stats: &WorkerStats,
        resized: &(impl Fn(usize) + Sync),
        shutdown: &Shutdown,
    ) {
        let requested = watch::Sender::new(None);
        tokio::select! {
            () = self.follow(bus, &requested) => {}
            () = self.scale(bus, queue, stats, resized, requested.subscribe()) => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    /// Follows the note with the request.
    async fn follow(&self, bus: &Bus, requested: &watch::Sender<Option<ReplicaRequest>>) {
        loop {
            let followed: Result<(), CarryError> = async {
                let mut notes = Ledger::open(bus).await?.follow_note(&replica_note(self.role)).await?;
                while let Some(note) = notes.next().await {
                    match serde_json::from_str::<Option<ReplicaRequest>>(&note) {
                        Ok(request) => drop(requested.send_replace(request)),
                        Err(error) => tracing::warn!(%error, "replica override unreadable"),
                    }
                }
                Ok(())
            }
            .await;
            if let Err(error) = followed {
                tracing::debug!(%error, "subscription restarted");
            }
            wait_about(RETRY_DELAY).await;
        }
    }

    async fn scale(
        &self,
        bus: &Bus,
        queue: (&str, &str),
        stats: &WorkerStats,
        resized: &(impl Fn(usize) + Sync),
        mut requested: watch::Receiver<Option<ReplicaRequest>>,
    ) {
        let (started_at, mut state) = (Instant::now(), ScaleState::default());
        loop {
            let request = *requested.borrow_and_update();
            let followed = match request {
                Some(ReplicaRequest::Fixed(replicas)) => {
                    self.scale_to(replicas, format!("{replicas} requested"), resized).await;
                    None
                }
                Some(ReplicaRequest::Between(min, max)) => {
                    Some(ScaleSettings { min_replicas: min, max_replicas: max, ..self.settings.clone() })
                }
                None if self.settings.max_replicas > 0 => Some(self.settings.clone()),
                None => {
                    // No request: back to the initial number, and no reason is reported.
                    if self.infer.replicas() != self.initial_replicas {
                        self.scale_to(self.initial_replicas, "the request was cleared".into(), resized).await;
                    }
                    self.log_scaling(None);
                    None
                }
            };
            if let Some(settings) = followed.map(|settings| self.within_objective(settings)) {
                match self.read_queue(bus, queue, stats, started_at.elapsed()).await {
                    Ok(seen) => {
                        let (next, target) = decide_replicas(&settings, &state, &seen);
                        state = next;
                        self.scale_to(target.replicas, target.why, resized).await;
                    }
                    // A queue that cannot be read must count neither as empty nor as endless.
                    Err(error) => self.log_scaling(Some(format!(
                        "{} kept, because the queue cannot be read: {error}",
                        self.infer.replicas()
                    ))),
                }
            }
            let _changed_or_time = tokio::time::timeout(OBSERVE_INTERVAL, requested.changed()).await;
        }
    }

    fn within_objective(&self, settings: ScaleSettings) -> ScaleSettings {
        match self.infer.settings().objective_ms {
            Some(ms) => settings.within_objective(f64::from(ms) / 1000.0, self.infer.batch_ms() / 1000.0),
            None => settings,
        }
    }

    /// This worker's share of the queue, which it shares with the others of its role.
    async fn read_queue(
        &self,
        bus: &Bus,
        (stream, durable): (&str, &str),
        stats: &WorkerStats,
        since: Duration,
    ) -> Result<QueueObservation, CarryError> {
        let progress = reader::consumer_progress(bus, stream, durable).await?;
        let own = self.infer.replicas();
        let beats = fleet::live_workers(bus).await?;
        let me = runtime::heartbeat::worker_name();
        let others = beats.iter().filter(|beat| beat.role == self.role && beat.worker != me);
        let all = own + others.map(|beat| beat.replicas as usize).sum::<usize>();
        let waiting = (progress.pending + progress.unacked) as f64 * own as f64 / all.max(1) as f64;
        let finished = stats.finished.load(Ordering::Relaxed);
        Ok(QueueObservation {
            now_s: since.as_secs_f64(),
            waiting,
            cost_s: self.infer.cost_ms() / 1000.0,
            replicas: own,
            parallelism: processors() / self.infer.settings().threads.max(1),
            finished,
        })
    }

    /// Starts or drains replicas one by one, until the number is reached or one cannot be started.
    async fn scale_to(&self, replicas: usize, why: String, resized: &(impl Fn(usize) + Sync)) {
        let wanted = replicas.clamp(1, MAX_REPLICAS);
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
            tracing::info!(role = self.role.as_str(), before, replicas = now, why, "replicas changed");
        }
        self.log_scaling(Some(match missing {
            Some(reason) => format!("{now} run{SHORT_OF}{why}: {reason}"),
            None => format!("{now} run: {why}"),
        }));
    }

    async fn start_or_drain(&self, grow: bool) -> Result<(), String> {
        if grow {
            self.check_memory()?;
        }
        let infer = self.infer.clone();
        let before = process::resident_bytes();
        let changed =
            tokio::task::spawn_blocking(move || if grow { infer.add_replica() } else { infer.remove_replica() });
        let changed = changed.await.map_err(|error| error.to_string())?;
        changed.map_err(|error: InferenceError| format!("{}: {error}", error.name()))?;
        if let (true, Some(before), Some(after)) = (grow, before, process::resident_bytes()) {
            let grown = after.saturating_sub(before);
            *self.each_bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(grown).filter(|grown| *grown > 0);
        }
        Ok(())
    }

    /// Checks that there is memory for one more replica.
    fn check_memory(&self) -> Result<(), String> {
        let Some(free) = process::available_bytes() else { return Ok(()) };
        let measured = *self.each_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let needed =
            measured.unwrap_or_else(|| graph_bytes(&self.infer.model().folder) * SESSION_PER_GRAPH) + SPARE_BYTES;
        match needed <= free {
            true => Ok(()),
            false => Err(format!(
                "another replica needs about {} MiB of memory, but {} MiB are free",
                needed >> 20,
                free >> 20
            )),
        }
    }

    fn log_scaling(&self, why: Option<String>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Processors that this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Total size of a model's files, bytes.
fn graph_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}
