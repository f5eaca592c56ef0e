//! Load generator: publishes images and receives answers like a real client. Each image has its own id and is in flight
//! until both its acknowledgement and its final answer have arrived. Closed loop: a fixed number in flight, each
//! completion starts the next. Open loop: images start on a schedule, and latency counts from the scheduled time even
//! if an image leaves late.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use schemas::{Answer, CameraName, ReleaseId, Route, TaskId, decode};
use streams::tap::watch_subject;
use streams::{Publication, Publisher, subject};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::bench_site::BenchSite;
use crate::error::BenchError;
use crate::measurement_window::{self, CompletionLog, MeasurementWindow, NamedProcesses, WindowLength};
use crate::worker::sleep_blocking;

/// Time limit for one image; the measurement fails after that.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum images of an open loop that are due but not started; beyond that the requested rate is not reached.
const MAX_OVERDUE: usize = 4096;

/// How far an image must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerMilestone {
    /// Acknowledged by the stream.
    Stored,
    /// Its final answer was received.
    Answered,
}

/// Publishes images to one site and receives the answers; clones share the connection.
#[derive(Clone)]
pub(crate) struct LoadGenerator {
    publisher: Publisher,
    subject: String,
    images: Arc<[Bytes]>,
    next: Arc<AtomicUsize>,
    waiting: AnswerWaiters,
    counts: AnswerCounts,
    _listener: Arc<AbortOnDropHandle<()>>,
}

/// Pending tasks; each receives the arrival time of its final answer, or the reason of its fault.
type AnswerWaiters = Arc<Mutex<HashMap<TaskId, oneshot::Sender<Result<Instant, String>>>>>;

/// Number of answers by release, and the release of the latest answer.
type AnswerCounts = Arc<Mutex<(BTreeMap<ReleaseId, u64>, Option<ReleaseId>)>>;

impl LoadGenerator {
    /// Subscribes to the answers of a site.
    pub(crate) async fn open(site: &BenchSite, images: Arc<[Bytes]>) -> Result<Self, BenchError> {
        let camera: CameraName = "bench".parse().map_err(streams_error)?;
        let mut answers = Box::pin(watch_subject(&site.bus, &subject::final_answers(&site.name, None)).await?);
        let (waiting, counts) = (AnswerWaiters::default(), AnswerCounts::default());
        let (answer_waiting, answer_counts) = (waiting.clone(), counts.clone());
        let listener = tokio::spawn(async move {
            while let Some(message) = answers.next().await {
                receive_answer(&answer_waiting, &answer_counts, &message.subject, &message.payload);
            }
        });
        Ok(Self {
            publisher: Publisher::new(site.bus.clone(), TIMEOUT),
            subject: subject::image(&site.name, &camera),
            images,
            next: Arc::default(),
            waiting,
            counts,
            _listener: Arc::new(AbortOnDropHandle::new(listener)),
        })
    }

    /// Sends one image and waits for the milestone; returns the time since `started`.
    pub(crate) async fn send_image(
        &self,
        milestone: AnswerMilestone,
        started: Instant,
    ) -> Result<Duration, BenchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.images.len().max(1);
        let image = self.images.get(number).cloned().unwrap_or_default();
        let task = TaskId::new_random();
        let (sender, receiver) = oneshot::channel();
        if milestone == AnswerMilestone::Answered {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(task, sender);
        }
        let publication = Publication::with_id(self.subject.clone(), image, task.to_string());
        self.publisher.publish(&publication).await?;
        if milestone == AnswerMilestone::Stored {
            return Ok(started.elapsed());
        }
        match tokio::time::timeout(TIMEOUT, receiver).await {
            Ok(Ok(Ok(received_at))) => Ok(received_at.saturating_duration_since(started)),
            Ok(Ok(Err(why))) => Err(BenchError::Dead { why }),
            Ok(Err(_)) | Err(_) => Err(BenchError::NoAnswer { timeout: TIMEOUT }),
        }
    }

    /// Release of the latest answer.
    pub(crate) fn latest_release(&self) -> Option<ReleaseId> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Number of answers so far, by release.
    pub(crate) fn answers_by_release(&self) -> BTreeMap<ReleaseId, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Whether no image is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Runs a closed loop with `in_flight` images at a time.
    pub(crate) async fn run_closed_loop(
        &self,
        milestone: AnswerMilestone,
        in_flight: usize,
        processes: &NamedProcesses,
        length: WindowLength,
    ) -> Result<MeasurementWindow, BenchError> {
        let (stop, log) = (CancellationToken::new(), CompletionLog::default());
        let mut senders = JoinSet::new();
        for _ in 0..in_flight {
            let (load, stop, log) = (self.clone(), stop.clone(), log.clone());
            senders.spawn(async move {
                while !stop.is_cancelled() {
                    log.record_image(load.send_image(milestone, Instant::now()).await?);
                }
                Ok(())
            });
        }
        measure_load(senders, stop, &log, processes, length.lead, length.wait_for_end()).await
    }

    /// Runs an open loop at a fixed rate, equally spaced, regardless of answers.
    pub(crate) async fn run_at_rate(
        &self,
        rate_per_s: f64,
        processes: &NamedProcesses,
        length: WindowLength,
    ) -> Result<MeasurementWindow, BenchError> {
        self.run_at_rate_until(rate_per_s, processes, length.lead, length.wait_for_end()).await
    }

    /// Runs an open loop until `end` completes; measures after `lead`.
    pub(crate) async fn run_at_rate_until(
        &self,
        rate_per_s: f64,
        processes: &NamedProcesses,
        lead: Duration,
        end: impl Future<Output = ()>,
    ) -> Result<MeasurementWindow, BenchError> {
        let (stop, log) = (CancellationToken::new(), CompletionLog::default());
        let mut senders = JoinSet::new();
        let mut due = schedule(rate_per_s, stop.clone());
        let (load, sender_stop, sender_log) = (self.clone(), stop.clone(), log.clone());
        senders.spawn(async move {
            let mut started = JoinSet::new();
            while let Some(due_at) = due.recv().await {
                if sender_stop.is_cancelled() {
                    break;
                }
                let (load, log) = (load.clone(), sender_log.clone());
                started.spawn(async move {
                    load.send_image(AnswerMilestone::Answered, due_at).await.map(|took| log.record_image(took))
                });
                while let Some(ended) = started.try_join_next() {
                    ended??;
                }
            }
            while let Some(ended) = started.join_next().await {
                ended??;
            }
            Ok(())
        });
        measure_load(senders, stop, &log, processes, lead, end).await
    }
}

/// Measures a window while the senders run, then lets them finish.
async fn measure_load(
    mut senders: JoinSet<Result<(), BenchError>>,
    stop: CancellationToken,
    log: &CompletionLog,
    processes: &NamedProcesses,
    lead: Duration,
    end: impl Future<Output = ()>,
) -> Result<MeasurementWindow, BenchError> {
    let _stop_on_error = stop.clone().drop_guard();
    let window = tokio::select! {
        window = measurement_window::measure_window(log, processes, lead, end) => window?,
        Some(ended) = senders.join_next() => {
            ended??;
            return Err(BenchError::Nothing { length: lead });
        }
    };
    stop.cancel();
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    Ok(window)
}

/// Emits the time at which each image is due. Runs on its own thread because async timers have only millisecond
/// resolution.
pub(crate) fn schedule(rate_per_s: f64, stop: CancellationToken) -> mpsc::Receiver<Instant> {
    let (sender, due) = mpsc::channel(MAX_OVERDUE);
    let gap = Duration::from_secs_f64(1.0 / rate_per_s.max(0.1));
    let started = Instant::now();
    tokio::task::spawn_blocking(move || {
        let mut due_at = started;
        while !stop.is_cancelled() && sender.try_send(due_at).is_ok() {
            due_at += gap;
            sleep_blocking(due_at.saturating_duration_since(Instant::now()));
        }
    });
    due
}

fn receive_answer(waiting: &AnswerWaiters, counts: &AnswerCounts, subject: &str, payload: &[u8]) {
    let received_at = Instant::now();
    let Ok(task) = subject::read_final_answer(subject) else { return };
    let Some(sender) = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&task) else { return };
    let answer = decode::<Answer>(payload);
    if let Some(release) = answer.as_ref().ok().and_then(|answer| answer.release.as_ref()) {
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.0.get_mut(release) {
            Some(count) => *count += 1,
            None => drop(counts.0.insert(release.clone(), 1)),
        }
        counts.1 = Some(release.clone());
    }
    let outcome = match answer {
        Ok(answer) if answer.route != Route::Dead => Ok(received_at),
        Ok(answer) => Err(answer.fault.map_or_else(|| "no reason in the answer".into(), |fault| fault.reason)),
        Err(error) => Err(error.to_string()),
    };
    // Fails only if the waiter timed out.
    let _ = sender.send(outcome);
}

fn streams_error(error: schemas::IdError) -> BenchError {
    BenchError::Dead { why: error.to_string() }
}
