//! Listens to the answers of tasks, with the time of the first and the final one, and to what reaches the cloud.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use schemas::{Answer, AnswerStage, SiteName, TaskId, decode};
use streams::tap::watch_subject;
use streams::{Bus, CarryError, subject};
use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

/// A listener; it listens until dropped.
pub struct AnswerListener {
    notes: Arc<Mutex<HashMap<TaskId, ListenerEvent>>>,
    up: Arc<Mutex<CloudArrivals>>,
    counts: watch::Receiver<ListenerCounts>,
    _listening: Vec<AbortOnDropHandle<()>>,
}

/// Requests that reached the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloudArrivals {
    /// Number of requests.
    pub requests: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// The answers of one task.
#[derive(Debug, Clone)]
pub struct TaskAnswers {
    /// Until its first answer, provisional or final.
    pub first: Option<Duration>,
    /// Until its provisional answer.
    pub provisional: Option<Duration>,
    /// Until its final answer, and that answer.
    pub last: Option<(Duration, Answer)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct ListenerCounts {
    firsts: usize,
    finals: usize,
}

struct ListenerEvent {
    begun: Instant,
    tell: Option<oneshot::Sender<()>>,
    heard: TaskAnswers,
}

impl AnswerListener {
    /// Listens to the answers of a site and to what it sends to the cloud.
    pub async fn open(here: &Bus, cloud: &Bus, site: &SiteName) -> Result<Self, CarryError> {
        let notes = Arc::<Mutex<HashMap<TaskId, ListenerEvent>>>::default();
        let up = Arc::<Mutex<CloudArrivals>>::default();
        let (count, counts) = watch::channel(ListenerCounts::default());
        let count = Arc::new(count);
        let mut listening = Vec::new();
        for pattern in [subject::final_answers(site, None), subject::provisionals(site, None)] {
            let mut answers = Box::pin(watch_subject(here, &pattern).await?);
            let (notes, count) = (notes.clone(), count.clone());
            listening.push(AbortOnDropHandle::new(tokio::spawn(async move {
                while let Some(passing) = answers.next().await {
                    let Ok(answer) = decode::<Answer>(&passing.payload) else { continue };
                    note(&notes, answer, &count);
                }
            })));
        }
        let mut requests = Box::pin(watch_subject(cloud, &subject::verifications(site)).await?);
        let counted = up.clone();
        listening.push(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(passing) = requests.next().await {
                let mut up = counted.lock().unwrap_or_else(PoisonError::into_inner);
                up.requests += 1;
                up.bytes += passing.payload.len() as u64;
            }
        })));
        Ok(Self { notes, up, counts, _listening: listening })
    }

    /// Expects the answers of a task; times run from `begun`. The receiver completes with its first answer.
    pub fn expect_task(&self, task: TaskId, begun: Instant) -> oneshot::Receiver<()> {
        let (tell, first) = oneshot::channel();
        let heard = TaskAnswers { first: None, provisional: None, last: None };
        let note = ListenerEvent { begun, tell: Some(tell), heard };
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(task, note);
        first
    }

    /// Number of final answers.
    pub fn finals(&self) -> usize {
        self.counts.borrow().finals
    }

    /// Waits for this many first answers.
    pub async fn firsts_reach(&self, count: usize) {
        // Fails only when the listener is gone.
        let _ = self.counts.clone().wait_for(|counts| counts.firsts >= count).await;
    }

    /// Waits for this many final answers.
    pub async fn finals_reach(&self, count: usize) {
        // Fails only when the listener is gone.
        let _ = self.counts.clone().wait_for(|counts| counts.finals >= count).await;
    }

    /// The answers of a task, which is then forgotten.
    pub fn take_answers(&self, task: TaskId) -> Option<TaskAnswers> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).remove(&task).map(|note| note.heard)
    }

    /// Requests that reached the cloud so far.
    pub fn cloud_arrivals(&self) -> CloudArrivals {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(notes: &Mutex<HashMap<TaskId, ListenerEvent>>, answer: Answer, count: &watch::Sender<ListenerCounts>) {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(ListenerEvent { begun, tell, heard }) = notes.get_mut(&answer.task) else { return };
    let took = begun.elapsed();
    if let Some(tell) = tell.take() {
        // Fails only when nobody waits.
        let _ = tell.send(());
        heard.first = Some(took);
        count.send_modify(|count| count.firsts += 1);
    }
    match answer.stage {
        AnswerStage::Provisional => heard.provisional = Some(took),
        AnswerStage::Final if heard.last.is_none() => {
            heard.last = Some((took, answer));
            count.send_modify(|count| count.finals += 1);
        }
        AnswerStage::Final => {}
    }
}
