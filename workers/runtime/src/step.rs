//! What a role does with one message.

use std::future::Future;

use schemas::{FaultNote, SiteName, TaskId};
use streams::{Delivery, Publication};

use crate::fault::Fault;

/// What a role does with one message. A step publishes nothing itself: it returns what is to be
/// published, so that the acknowledgement can come last.
pub trait Step: Send + Sync + 'static {
    /// The role's name.
    const ROLE: &'static str;
    /// The stream it takes its messages from.
    const STREAM: &'static str;

    /// Handles one message.
    fn handle(&self, delivery: &Delivery) -> impl Future<Output = Result<Outgoing, Fault>> + Send;

    /// Whom and what a message that is given up concerned; also what is to be published besides the
    /// dead letter. A publication there that finds its slot taken by another outcome calls the dead
    /// letter off.
    fn bury(&self, delivery: &Delivery, fault: &FaultNote) -> Burial;
}

/// What is to be published before a message is acknowledged, in order.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// In order.
    pub publications: Vec<Publication>,
    /// Instead of all of them, when one finds its stream full.
    pub when_full: Vec<Publication>,
}

impl Outgoing {
    /// One publication.
    pub fn one(publication: Publication) -> Self {
        Self { publications: vec![publication], when_full: Vec::new() }
    }
}

/// What becomes of a message that is given up.
#[derive(Debug)]
pub struct Burial {
    /// The site it concerned.
    pub site: SiteName,
    /// The task it was about, if that could be read.
    pub task: Option<TaskId>,
    /// What is to be published before the dead letter.
    pub publications: Vec<Publication>,
}
