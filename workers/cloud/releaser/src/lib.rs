//! Tries each release on a few sites before all sites get it ([`worker`]).
//!
//! [`evidence`] combines what sites report (pure), [`canary`] judges a release from it (pure), [`action`] decides what
//! happens next (pure), [`ring`] chooses the sites that try it and the orders to give (pure), [`pause_window`] holds
//! times without rollouts (pure). Deliberately absent: weights.

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
