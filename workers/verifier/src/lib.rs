//! A doubtful image in, a verdict out: fetch → decode → batch → infer → judge → report.
//!
//! [`walk`] reads as that path; [`judge`] is the pure decision. Runs in the cloud and serves every
//! site. Deliberately absent: a gate, and any knowledge of the sites.

pub mod judge;
pub mod settings;
pub mod worker;

pub use settings::VerifierSettings;
pub use worker::{Verifier, hard_case_publication, report, run};
