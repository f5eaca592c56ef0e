//! The verdict on a task. Pure.

use schemas::answer::Timings;
use schemas::{FaultNote, Prediction, Verdict, VerifyRequest};

/// The verdict on a request, given the prediction of the cloud's model, which replaces the site's
/// answer.
pub fn make_verdict(request: VerifyRequest, prediction: Prediction, timings: Timings, judged_at_ms: u64) -> Verdict {
    let VerifyRequest { provisional, ticket, .. } = request;
    Verdict { opinion: Some(prediction), fault: None, judged_at_ms, timings, provisional, ticket }
}

/// The verdict on a request that cannot be judged: the site's answer stands.
pub fn refuse_request(request: VerifyRequest, fault: FaultNote, judged_at_ms: u64) -> Verdict {
    let VerifyRequest { provisional, ticket, .. } = request;
    Verdict { opinion: None, fault: Some(fault), judged_at_ms, timings: Timings::default(), provisional, ticket }
}
