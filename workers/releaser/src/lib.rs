//! A release is tried on a few sites before all have it ([`walk`]).
//!
//! [`evidence`] is what sites report, put together (pure); [`canary`] what follows from it about a release (pure), [`next`]
//! what is decided (pure); [`ring`] which sites try it, and which are told what next (pure); [`pause`] when nothing new is
//! let out. Deliberately absent: weights.

pub mod action;
pub mod canary;
pub mod evidence;
pub mod pause_window;
pub mod ring;
pub mod settings;
pub mod worker;

pub use canary::{CanaryRuling, CanarySettings, judge_canary};
pub use evidence::ReleaseEvidence;
pub use settings::ReleaserSettings;
pub use worker::run;
