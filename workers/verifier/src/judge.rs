//! What the cloud says about a task. Pure.

use schemas::answer::Timings;
use schemas::{FaultNote, Prediction, Verdict, VerifyRequest};

/// The verdict on a request, given what the cloud's model sees in it: the larger model's opinion
/// stands, whatever the edge had said.
pub fn make_verdict(request: VerifyRequest, opinion: Prediction, timings: Timings, judged_at_ms: u64) -> Verdict {
    let VerifyRequest { provisional, ticket, .. } = request;
    Verdict { opinion: Some(opinion), fault: None, judged_at_ms, timings, provisional, ticket }
}

/// The verdict on a request that cannot be judged: the edge's answer stands.
pub fn refuse_request(request: VerifyRequest, fault: FaultNote, judged_at_ms: u64) -> Verdict {
    let VerifyRequest { provisional, ticket, .. } = request;
    Verdict { opinion: None, fault: Some(fault), judged_at_ms, timings: Timings::default(), provisional, ticket }
}
