//! What a role does with one message.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use schemas::{FaultNote, Role, SiteName, TaskId};
use streams::reader::StoredMessage;
use streams::{Delivery, Publication};
use tokio::sync::OwnedSemaphorePermit;

use crate::fault::Fault;

/// What a role does with one message. A step publishes nothing itself: it returns what is to be
/// published, so that the acknowledgement can come last.
pub trait Handler: Send + Sync + 'static {
    /// The role's name.
    const ROLE: Role;
    /// The stream it takes its messages from.
    const STREAM: &'static str;

    /// Handles one message. A step that waits for somebody else with it, bounded by itself, may give the
    /// credit back early, so that others are taken meanwhile.
    fn handle(
        &self,
        delivery: &Delivery,
        credit: &MessageCredit,
    ) -> impl Future<Output = Result<OutgoingMessages, Fault>> + Send;

    /// Whom and what a message that is given up concerned; also what is to be published besides the
    /// dead letter. A publication there that finds its slot taken by another outcome calls the dead
    /// letter off.
    fn dead_letter(&self, message: &StoredMessage, fault: &FaultNote) -> DeadLetterContext;
}

/// The room one message takes among those a worker may hold: one of so many, and its bytes.
#[derive(Debug)]
pub struct MessageCredit(Mutex<Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>>);

impl MessageCredit {
    pub(crate) fn new(message: OwnedSemaphorePermit, kib: OwnedSemaphorePermit) -> Self {
        Self(Mutex::new(Some((message, kib))))
    }

    /// Gives the room to the next message, though this one is still in hand.
    pub fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What is to be published before a message is acknowledged, in order.
#[derive(Debug, Default)]
pub struct OutgoingMessages {
    /// In order.
    pub publications: Vec<Publication>,
    /// Instead of all of them, when one finds its stream full.
    pub when_full: Vec<Publication>,
    /// After them; what finds its stream full is left out.
    pub spare: Vec<Publication>,
}

impl OutgoingMessages {
    /// One publication.
    pub fn single(publication: Publication) -> Self {
        Self { publications: vec![publication], ..Self::default() }
    }
}

/// What becomes of a message that is given up.
#[derive(Debug)]
pub struct DeadLetterContext {
    /// The site it concerned.
    pub site: SiteName,
    /// The task it was about, if that could be read.
    pub task: Option<TaskId>,
    /// What is to be published before the dead letter.
    pub publications: Vec<Publication>,
}
