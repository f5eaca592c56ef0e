//! Tries each release on a few sites before all sites get it ([`worker`]).
//!
//! [`evidence`] combines what sites report (pure), [`canary`] judges a release from it (pure), [`action`] decides what
//! happens next (pure), [`ring`] chooses the sites that try it and the orders to give (pure), [`pause_window`] holds
//! times without rollouts (pure). Deliberately absent: weights.

mod action;
mod canary;
pub mod evidence;
mod pause_window;
mod ring;
pub mod settings;
mod worker;

pub use canary::{CanaryRuling, CanarySettings, judge_canary};
pub use evidence::ReleaseEvidence;
pub use settings::ReleaserSettings;
pub use worker::run;
