//! What is published about a task: one final answer, or a provisional one and a request for a
//! verdict. Ids are derived from the task's, so that a redelivery repeats itself (invariant 2).

use bytes::Bytes;
use runtime::{Fault, Outgoing};
use schemas::answer::Timings;
use schemas::{Answer, FaultNote, Opinion, Payload, Reason, Route, Stage, Task, Verify, VerifyReason, encode};
use streams::{Publication, subject};

use crate::settings::VerifySettings;

/// What the edge found out about a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What the model says.
    pub opinion: Opinion,
    /// What the gate says about it.
    pub reason: Reason,
    /// How long the steps took.
    pub timings: Timings,
}

/// What is to be published about a task. `bytes`: the encoded image, which goes up if it must.
pub fn outgoing(
    task: &Task,
    bytes: &Bytes,
    found: Found,
    verify: &VerifySettings,
    now_ms: u64,
) -> Result<Outgoing, Fault> {
    if found.reason == Reason::Confident {
        return Ok(Outgoing::one(finality(task, Route::Edge, Reason::Confident, found, now_ms)?));
    }
    if !verify.enabled {
        return Ok(Outgoing::one(finality(task, Route::Edge, Reason::NotVerified, found, now_ms)?));
    }
    let deadline_at_ms = deadline(task, verify);
    if deadline_at_ms <= now_ms {
        return Ok(Outgoing::one(finality(task, Route::Expired, Reason::DeadlinePassed, found, now_ms)?));
    }
    let mut provisional = Answer::about(task, Stage::Provisional, Route::Edge, found.reason, now_ms);
    provisional.deadline_at_ms = Some(deadline_at_ms);
    provisional.timings = found.timings;
    let provisional = provisional.with_opinion(found.opinion.clone());
    let payload = match &task.blob {
        Some(blob) => Payload::Blob(blob.clone()),
        None => Payload::Image(bytes.to_vec()),
    };
    let request = Verify { reason: VerifyReason::Doubtful, payload, provisional };
    // The image's sequence is part of the ids: what the janitor redoes after a crash is sent anew.
    let id = |what: &str| task.id.child(&format!("{what}-{}", task.image_sequence)).to_string();
    Ok(Outgoing {
        publications: vec![
            Publication::with_id(subject::outbox(&task.site, "verify"), encode(&request)?, id("verify")),
            Publication::with_id(
                subject::provisional(&task.site, &task.camera),
                encode(&request.provisional)?,
                id("provisional"),
            )
            .header(schemas::task::HEADER_TASK, task.id.to_string()),
        ],
        when_full: vec![finality(task, Route::Expired, Reason::OutboxFull, found, now_ms)?],
    })
}

/// The outcome of a task that is given up; it takes the slot of the final answer.
pub fn tombstone(task: &Task, fault: FaultNote, now_ms: u64) -> Result<Publication, Fault> {
    let mut answer = Answer::about(task, Stage::Final, Route::Dead, Reason::GivenUp, now_ms);
    answer.fault = Some(fault);
    Ok(Publication::first(subject::finality(&task.site, &task.camera, task.id), encode(&answer)?))
}

fn finality(task: &Task, route: Route, reason: Reason, found: Found, now_ms: u64) -> Result<Publication, Fault> {
    let mut answer = Answer::about(task, Stage::Final, route, reason, now_ms);
    answer.timings = found.timings;
    let answer = answer.with_opinion(found.opinion);
    Ok(Publication::first(subject::finality(&task.site, &task.camera, task.id), encode(&answer)?))
}

fn deadline(task: &Task, verify: &VerifySettings) -> u64 {
    let own = task.published_at_ms.saturating_add(u64::from(verify.deadline_s) * 1000);
    task.deadline_at_ms.map_or(own, |deadline| deadline.min(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::task::Stored;
    use schemas::{ReleaseId, TaskId, decode};

    fn task() -> Task {
        let stored = Stored {
            site: "reef".parse().unwrap(),
            camera: "cam1".parse().unwrap(),
            sequence: 4,
            stored_at_ns: 1_000_000_000,
        };
        Task::bare(&stored, TaskId::derived("a"))
    }

    fn found(reason: Reason) -> Found {
        let release = ReleaseId::from_sha256([1; 32]);
        let opinion = Opinion { label: "fish".into(), confidence: 0.6, top: Vec::new(), release };
        Found { opinion, reason, timings: Timings::default() }
    }

    fn published(task: &Task, reason: Reason, verify: &VerifySettings, now_ms: u64) -> Outgoing {
        outgoing(task, &Bytes::from_static(b"jpeg"), found(reason), verify, now_ms).unwrap()
    }

    fn only_answer(outgoing: &Outgoing) -> Answer {
        assert_eq!(outgoing.publications.len(), 1);
        assert!(outgoing.publications[0].first_only, "a final answer is the first in its slot or nothing");
        decode(&outgoing.publications[0].payload).unwrap()
    }

    #[test]
    fn a_confident_answer_is_final() {
        let answer = only_answer(&published(&task(), Reason::Confident, &VerifySettings::default(), 2_000));
        assert_eq!((answer.stage, answer.route, answer.label.as_deref()), (Stage::Final, Route::Edge, Some("fish")));
    }

    #[test]
    fn a_doubtful_answer_goes_to_verify_and_says_that_it_is_provisional() {
        let out = published(&task(), Reason::LowConfidence, &VerifySettings::default(), 2_000);
        assert_eq!(out.publications[0].subject, "outbox.reef.verify");
        let request: Verify = decode(&out.publications[0].payload).unwrap();
        assert_eq!(request.payload, Payload::Image(b"jpeg".to_vec()));
        let provisional: Answer = decode(&out.publications[1].payload).unwrap();
        assert_eq!((provisional.stage, provisional.reason), (Stage::Provisional, Reason::LowConfidence));
        assert_eq!(provisional.deadline_at_ms, Some(1_000 + 24 * 3600 * 1000));
    }

    #[test]
    fn a_second_delivery_repeats_the_ids_of_the_first() {
        let ids = |now_ms| {
            let out = published(&task(), Reason::LowMargin, &VerifySettings::default(), now_ms);
            out.publications.into_iter().map(|publication| publication.headers).collect::<Vec<_>>()
        };
        assert_eq!(ids(2_000), ids(9_000));
    }

    #[test]
    fn a_doubtful_answer_past_its_deadline_is_final_and_says_so() {
        let task = Task { deadline_at_ms: Some(1_500), ..task() };
        let answer = only_answer(&published(&task, Reason::LowConfidence, &VerifySettings::default(), 2_000));
        assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
    }

    #[test]
    fn a_doubtful_answer_stands_where_nothing_is_verified() {
        let verify = VerifySettings { enabled: false, ..VerifySettings::default() };
        let answer = only_answer(&published(&task(), Reason::LowConfidence, &verify, 2_000));
        assert_eq!((answer.route, answer.reason), (Route::Edge, Reason::NotVerified));
    }
}
