//! The only one that crosses the link: tasks [`up`], verdicts [`down`], promises kept ([`promise`]),
//! what a site is asked to learn from and what it shall run ([`notes`]).
//!
//! [`link`] is the network signal and [`probe`] keeps it up to date; [`outbox`] says what goes next,
//! [`budget`] and [`breaker`] whether anything may. Knows nothing of what it carries beyond where it is to
//! go, how urgent it is and until when. Deliberately absent: models, decisions about confidence.

pub mod breaker;
pub mod budget;
pub mod deadline_keeper;
mod identity;
pub mod link;
pub mod note_carrier;
pub mod outbox_carrier;
pub mod outbox_index;
pub mod probe;
pub mod settings;
pub mod trust_anchor;
pub mod verdict_carrier;
pub mod verifier_progress;
pub mod worker;

pub use settings::CourierSettings;
pub use worker::run;
