//! Turns a doubtful image into a verdict: fetch → decode → batch → infer → judge → report.
//!
//! [`worker`] reads as that path; [`judge`] is the pure decision. Runs in the cloud and serves every
//! site. Deliberately absent: a gate, and any knowledge of the sites.

pub mod judge;
mod settings;
mod worker;

pub use settings::VerifierSettings;
pub use worker::{Verifier, hard_case_publication, report, run};
