//! A dead letter: what was given up, whole, with where it came from and why.

use schemas::{DeadLetter, FaultNote, SiteName, TaskId};
use streams::Delivery;
use streams::read::Record;

use crate::clock;
use crate::step::Burial;

/// Of a message that was taken from a consumer.
pub fn of_delivery(role: &str, stream: &str, burial: &Burial, delivery: &Delivery, fault: FaultNote) -> DeadLetter {
    DeadLetter {
        id: id(stream, &burial.site, burial.task, delivery.sequence),
        task: burial.task,
        site: burial.site.clone(),
        role: role.into(),
        stream: stream.into(),
        subject: delivery.subject().into(),
        sequence: delivery.sequence,
        attempts: delivery.attempts,
        died_at_ms: clock::now_ms(),
        fault,
        headers: delivery.headers().collect(),
        payload: delivery.payload().to_vec(),
    }
}

/// Of a message that was read from a stream.
pub fn of_record(
    role: &str,
    stream: &str,
    site: &SiteName,
    task: Option<TaskId>,
    record: &Record,
    fault: FaultNote,
) -> DeadLetter {
    DeadLetter {
        id: id(stream, site, task, record.sequence),
        task,
        site: site.clone(),
        role: role.into(),
        stream: stream.into(),
        subject: record.subject.clone(),
        sequence: record.sequence,
        attempts: 1,
        died_at_ms: clock::now_ms(),
        fault,
        headers: record.headers.iter().cloned().collect(),
        payload: record.payload.to_vec(),
    }
}

/// The same message yields the same letter, however often it is given up.
fn id(stream: &str, site: &SiteName, task: Option<TaskId>, sequence: u64) -> TaskId {
    let origin = || TaskId::derived(&format!("{stream}/{site}/{sequence}"));
    task.unwrap_or_else(origin).child(&format!("dead-{sequence}"))
}
