//! What people do to a running system, one module an operation: decide about releases, choose a policy, redrive dead
//! letters, label, open rounds, scale.
//!
//! A function takes connections, names and plain arguments, and returns what came of it; nothing here parses or prints.
//! `tributary` prints what the functions return, and a page or a test can call them just as well. What changes something
//! is recorded in the audit log by the function itself ([`audit`]).

pub mod audit;
pub mod dead_letters;
pub mod drift;
pub mod labels;
mod ledger_note;
pub mod policy;
pub mod release_decision;
pub mod release_export;
pub mod release_import;
pub mod release_remake;
pub mod release_stage;
pub mod retention;
pub mod retraction;
pub mod rounds;
pub mod scale;
pub mod setup;
pub mod words;

use std::time::Duration;

pub use ledger_note::NoteError;

/// How long publishing a message is retried.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
