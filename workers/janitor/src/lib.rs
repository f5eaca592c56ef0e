//! Keeps a site's archive in bounds, redoes what a crash undid, and redrives dead letters.
//!
//! [`purge`] decides what may go: only images that were answered. [`audit`] finds, after a restart of
//! the server, images that were acknowledged although their outcome is gone, and gives them to the
//! recognizers again. [`redrive`] does the same with a dead letter, by hand.

pub mod audit;
pub mod purge;
pub mod redrive;
pub mod settings;
pub mod walk;

pub use settings::JanitorSettings;
pub use walk::run;
