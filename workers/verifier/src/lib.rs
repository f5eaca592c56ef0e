//! A doubtful image in, a verdict out: fetch → decode → batch → infer → judge → report.
//!
//! [`walk`] reads as that path; [`judge`] is the pure decision. Runs in the cloud and serves every
//! site. Deliberately absent: a gate, and any knowledge of the sites.

pub mod judge;
pub mod settings;
pub mod walk;

pub use settings::VerifierSettings;
pub use walk::{Verifier, hard_case_publication, report, run};
