//! What a role does with one message.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use schemas::{Answer, FaultNote, Role, SiteName, Task, TaskId};
use streams::reader::StoredMessage;
use streams::{Delivery, Publication};
use tokio::sync::OwnedSemaphorePermit;

use crate::fault::Fault;
use crate::traces::StageSpan;

/// What a role does with one message. A handler publishes nothing itself: it returns the messages to
/// publish, so that the acknowledgement can come last.
pub trait Handler: Send + Sync + 'static {
    /// Name of the role.
    const ROLE: Role;
    /// Stream that its messages come from.
    const STREAM: &'static str;
    /// Name of the span of each message; absent where messages belong to no image's trace.
    const SPAN: Option<&'static str> = None;

    /// Handles one message. A handler that holds a message while it waits for somebody else, for a limited time, may
    /// release the credit early, so that others are handled meanwhile.
    fn handle(
        &self,
        delivery: &Delivery,
        credit: &MessageCredit,
    ) -> impl Future<Output = Result<OutgoingMessages, Fault>> + Send;

    /// The task that a message asks to be recognized, whatever its headers; absent for all other messages. When such a
    /// message is given up, a tombstone is stored as its task's outcome. If the task has another outcome by then, no dead
    /// letter is written.
    fn image_task(&self, _message: &StoredMessage) -> Option<Task> {
        None
    }

    /// Called when a final answer that the handler returned is stored in its task's slot; not when the slot was taken.
    fn answer_stored(&self, _answer: &Answer) {}

    /// The site and task of a message that is given up, and what to publish besides the dead letter.
    fn dead_letter(&self, message: &StoredMessage, fault: &FaultNote) -> DeadLetterContext;
}

/// The credit of one message: one of the worker's credits, and the message's bytes.
#[derive(Debug)]
pub struct MessageCredit(Mutex<Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>>);

impl MessageCredit {
    pub(crate) fn new(message: OwnedSemaphorePermit, kib: OwnedSemaphorePermit) -> Self {
        Self(Mutex::new(Some((message, kib))))
    }

    /// Returns the credit for the next message, although this one is still in flight.
    pub fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Messages to publish before a message is acknowledged, in order.
#[derive(Debug, Default)]
pub struct OutgoingMessages {
    /// Published in this order.
    pub publications: Vec<Publication>,
    /// The final answer to the message's task, stored after `publications`.
    pub final_answer: Option<Answer>,
    /// The final answer when one of `publications` finds its stream full; nothing else is published then.
    pub when_full: Option<Answer>,
    /// Published last; skipped when its stream is full.
    pub spare: Vec<Publication>,
}

impl OutgoingMessages {
    /// One publication.
    pub fn single(publication: Publication) -> Self {
        Self { publications: vec![publication], ..Self::default() }
    }

    /// The same messages, each with its place in the trace. Final answers get theirs where they are stored.
    pub(crate) fn marked_by(self, span: &StageSpan) -> Self {
        if span.trace_parent().is_none() {
            return self;
        }
        let mark = |messages: Vec<Publication>| messages.into_iter().map(|message| span.mark(message)).collect();
        Self { publications: mark(self.publications), spare: mark(self.spare), ..self }
    }

    /// A final answer.
    pub fn answer(answer: Answer) -> Self {
        Self { final_answer: Some(answer), ..Self::default() }
    }
}

/// What a role knows about a message that is given up.
#[derive(Debug)]
pub struct DeadLetterContext {
    /// Site of the message.
    pub site: SiteName,
    /// Task of the message; absent if it could not be read.
    pub task: Option<TaskId>,
    /// Messages to publish before the dead letter.
    pub publications: Vec<Publication>,
}
