//! Keeps a site's archive within its limits, and requeues images whose outcome was lost.
//!
//! [`purge`] decides which images may be deleted: only answered ones. [`audit`] finds images that were
//! acknowledged although they have no outcome (according to [`outcomes`]), and gives them to the recognizers again.
//! `answer_totals` counts what became of the images. [`disk`] decides when images are refused; near the limit `refused` finds those whose publisher was not told.

mod answer_totals;
pub mod audit;
mod disk;
mod outcomes;
pub mod purge;
mod refused;
mod settings;
mod worker;

pub use settings::JanitorSettings;
pub use worker::{AUDIT_FINISHED, run};
