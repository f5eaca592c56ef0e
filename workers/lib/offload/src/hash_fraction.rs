//! Reproducible randomness: a redelivery and a back-test draw the same number as the first decision.

use schemas::TaskId;

/// A number from 0 to 1, derived from a task and the name of a decision.
pub fn hash_fraction(task: TaskId, decision: &str) -> f64 {
    let hash = task.child(decision).to_string();
    let digits = hash.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    f64::from(digits) / f64::from(u32::MAX)
}
