//! Keeps a site's archive in bounds, redoes what a crash undid, and redrives dead letters.
//!
//! [`purge`] decides what may go: only images that were answered. [`audit`] finds images that were
//! acknowledged although they have no outcome ([`outcomes`] says which), and gives them to the recognizers again.
//! [`redrive`] does the same with a dead letter, by hand. [`disk`] decides when images are refused; near the limit `refused` finds those whose publisher was not told.

pub mod audit;
pub mod disk;
pub mod outcomes;
pub mod purge;
pub mod redrive;
mod refused;
pub mod settings;
pub mod worker;

pub use settings::JanitorSettings;
pub use worker::run;
