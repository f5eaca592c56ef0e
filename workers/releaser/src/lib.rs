//! A release is tried on a few sites before all have it.
//!
//! [`evidence`] is what sites report, put together (pure); [`canary`] what follows from it (pure).

pub mod canary;
pub mod evidence;

pub use canary::{CanarySettings, Judged, Ruling, judge};
pub use evidence::{Cell, Evidence, Memory, Pair, Trial};
