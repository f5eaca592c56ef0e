//! Chance that is the same whoever asks and whenever: a redelivery and a back-test draw what was drawn at first.

use schemas::TaskId;

/// A number from 0 to 1 that belongs to a task and a decision.
pub fn hash_fraction(task: TaskId, decision: &str) -> f64 {
    let drawn = task.child(decision).to_string();
    let digits = drawn.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    f64::from(digits) / f64::from(u32::MAX)
}
