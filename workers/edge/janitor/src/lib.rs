//! Keeps a site's archive within its limits, requeues images whose outcome was lost, and redrives dead letters.
//!
//! [`purge`] decides which images may be deleted: only answered ones. [`audit`] finds images that were
//! acknowledged although they have no outcome (according to [`outcomes`]), and gives them to the recognizers again.
//! [`redrive`] does the same with a dead letter, on request. [`disk`] decides when images are refused; near the limit
//! `refused` finds those whose publisher was not told.

pub mod audit;
pub mod disk;
pub mod outcomes;
pub mod purge;
pub mod redrive;
mod refused;
pub mod settings;
pub mod worker;

pub use settings::JanitorSettings;
pub use worker::{AUDIT_FINISHED, run};
