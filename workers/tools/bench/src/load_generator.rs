//! Load: images in, answers out, as an honest client does it. An image is published under an id of its own
//! and is in flight from then until its final answer was heard and its acknowledgement is there. Closed
//! loop: so many in flight, the next one starts when one is through. Open loop: one starts whenever it is
//! due, and its time runs from then, however late it left.

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
use crate::worker::pause_process;

/// How long an image may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Images of an open loop that may be due and not begun; more and it is not the rate asked for any more.
const DUE_AHEAD: usize = 4096;

/// What an image is through with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerMilestone {
    /// The stream has it.
    Stored,
    /// Its final answer was heard.
    Answered,
}

/// Publishes to one site and hears its answers; clones share the connection.
#[derive(Clone)]
pub(crate) struct LoadGenerator {
    publisher: Publisher,
    subject: String,
    images: Arc<[Bytes]>,
    next: Arc<AtomicUsize>,
    waiting: AnswerWaiters,
    counted: AnswerCounts,
    _ear: Arc<AbortOnDropHandle<()>>,
}

/// Who waits for which task's answer: when it was heard, or why it is none.
type AnswerWaiters = Arc<Mutex<HashMap<TaskId, oneshot::Sender<Result<Instant, String>>>>>;

/// Answers by the release they name, and the release of the latest.
type AnswerCounts = Arc<Mutex<(BTreeMap<ReleaseId, u64>, Option<ReleaseId>)>>;

impl LoadGenerator {
    /// Listens to the answers of a site.
    pub(crate) async fn open(site: &BenchSite, images: Arc<[Bytes]>) -> Result<Self, BenchError> {
        let camera: CameraName = "bench".parse().map_err(streams_error)?;
        let mut answers = Box::pin(watch_subject(&site.bus, &subject::final_answers(&site.name, None)).await?);
        let (waiting, counted) = (AnswerWaiters::default(), AnswerCounts::default());
        let (who, counting) = (waiting.clone(), counted.clone());
        let ear = tokio::spawn(async move {
            while let Some(passing) = answers.next().await {
                receive_answer(&who, &counting, &passing.subject, &passing.payload);
            }
        });
        Ok(Self {
            publisher: Publisher::new(site.bus.clone(), PATIENCE),
            subject: subject::image(&site.name, &camera),
            images,
            next: Arc::default(),
            waiting,
            counted,
            _ear: Arc::new(AbortOnDropHandle::new(ear)),
        })
    }

    /// One image from beginning to end; how long it took since `begun`.
    pub(crate) async fn send_image(&self, until: AnswerMilestone, begun: Instant) -> Result<Duration, BenchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.images.len().max(1);
        let image = self.images.get(number).cloned().unwrap_or_default();
        let task = TaskId::new_random();
        let (tell, told) = oneshot::channel();
        if until == AnswerMilestone::Answered {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(task, tell);
        }
        let publication = Publication::with_id(self.subject.clone(), image, task.to_string());
        self.publisher.publish(&publication).await?;
        if until == AnswerMilestone::Stored {
            return Ok(begun.elapsed());
        }
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(Ok(heard_at))) => Ok(heard_at.saturating_duration_since(begun)),
            Ok(Ok(Err(why))) => Err(BenchError::Dead { why }),
            Ok(Err(_)) | Err(_) => Err(BenchError::NoAnswer { patience: PATIENCE }),
        }
    }

    /// The release that the latest answer names.
    pub(crate) fn latest_release(&self) -> Option<ReleaseId> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Answers so far, by the release they name.
    pub(crate) fn answers_by_release(&self) -> BTreeMap<ReleaseId, u64> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// So many in flight for a while.
    pub(crate) async fn closed(
        &self,
        until: AnswerMilestone,
        in_flight: usize,
        processes: &NamedProcesses,
        length: WindowLength,
    ) -> Result<MeasurementWindow, BenchError> {
        let (stop, tape) = (CancellationToken::new(), CompletionLog::default());
        let mut walkers = JoinSet::new();
        for _ in 0..in_flight {
            let (load, stop, tape) = (self.clone(), stop.clone(), tape.clone());
            walkers.spawn(async move {
                while !stop.is_cancelled() {
                    tape.record_image(load.send_image(until, Instant::now()).await?);
                }
                Ok(())
            });
        }
        watch(walkers, stop, &tape, processes, length.lead, length.wait_for_end()).await
    }

    /// So many a second for a while, equally spaced, whatever becomes of them.
    pub(crate) async fn at_rate(
        &self,
        rate_per_s: f64,
        processes: &NamedProcesses,
        length: WindowLength,
    ) -> Result<MeasurementWindow, BenchError> {
        self.at_rate_while(rate_per_s, processes, length.lead, length.wait_for_end()).await
    }

    /// The same until `over`; what counts begins after `lead`.
    pub(crate) async fn at_rate_while(
        &self,
        rate_per_s: f64,
        processes: &NamedProcesses,
        lead: Duration,
        over: impl Future<Output = ()>,
    ) -> Result<MeasurementWindow, BenchError> {
        let (stop, tape) = (CancellationToken::new(), CompletionLog::default());
        let mut walkers = JoinSet::new();
        let mut due = schedule(rate_per_s, stop.clone());
        let (load, ending, noting) = (self.clone(), stop.clone(), tape.clone());
        walkers.spawn(async move {
            let mut begun = JoinSet::new();
            while let Some(due_at) = due.recv().await {
                if ending.is_cancelled() {
                    break;
                }
                let (load, tape) = (load.clone(), noting.clone());
                begun.spawn(async move {
                    load.send_image(AnswerMilestone::Answered, due_at).await.map(|took| tape.record_image(took))
                });
                while let Some(ended) = begun.try_join_next() {
                    ended??;
                }
            }
            while let Some(ended) = begun.join_next().await {
                ended??;
            }
            Ok(())
        });
        watch(walkers, stop, &tape, processes, lead, over).await
    }
}

/// Watches a stretch while walkers walk, then lets them finish.
async fn watch(
    mut walkers: JoinSet<Result<(), BenchError>>,
    stop: CancellationToken,
    tape: &CompletionLog,
    processes: &NamedProcesses,
    lead: Duration,
    over: impl Future<Output = ()>,
) -> Result<MeasurementWindow, BenchError> {
    let _stop_if_given_up = stop.clone().drop_guard();
    let window = tokio::select! {
        window = measurement_window::measure_window(tape, processes, lead, over) => window?,
        Some(ended) = walkers.join_next() => {
            ended??;
            return Err(BenchError::Nothing { length: lead });
        }
    };
    stop.cancel();
    while let Some(ended) = walkers.join_next().await {
        ended??;
    }
    Ok(window)
}

/// When each image is due. On a thread of its own, because the timer of the async threads is no finer than
/// a millisecond.
pub(crate) fn schedule(rate_per_s: f64, stop: CancellationToken) -> mpsc::Receiver<Instant> {
    let (tell, due) = mpsc::channel(DUE_AHEAD);
    let gap = Duration::from_secs_f64(1.0 / rate_per_s.max(0.1));
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || {
        let mut due_at = begun;
        while !stop.is_cancelled() && tell.try_send(due_at).is_ok() {
            due_at += gap;
            pause_process(due_at.saturating_duration_since(Instant::now()));
        }
    });
    due
}

fn receive_answer(waiting: &AnswerWaiters, counted: &AnswerCounts, subject: &str, payload: &[u8]) {
    let heard_at = Instant::now();
    let Ok(task) = subject::read_final_answer(subject) else { return };
    let Some(tell) = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&task) else { return };
    let answer = decode::<Answer>(payload);
    if let Some(release) = answer.as_ref().ok().and_then(|answer| answer.release.as_ref()) {
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        match counted.0.get_mut(release) {
            Some(count) => *count += 1,
            None => drop(counted.0.insert(release.clone(), 1)),
        }
        counted.1 = Some(release.clone());
    }
    let told = match answer {
        Ok(answer) if answer.route != Route::Dead => Ok(heard_at),
        Ok(answer) => Err(answer.fault.map_or_else(|| "no reason given".into(), |fault| fault.reason)),
        Err(error) => Err(error.to_string()),
    };
    // Fails only if nobody waits any more.
    let _ = tell.send(told);
}

fn streams_error(error: schemas::IdError) -> BenchError {
    BenchError::Dead { why: error.to_string() }
}
