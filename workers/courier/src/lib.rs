//! The only one that crosses the link: tasks [`up`], verdicts [`down`], promises kept ([`promise`]).
//!
//! [`link`] says whether the cloud answers; while it does not, what waits stays in the outbox.
//! Knows nothing of what it carries beyond task, deadline and destination. Deliberately absent:
//! models, decisions about confidence.

pub mod down;
pub mod link;
pub mod promise;
pub mod settings;
pub mod up;
pub mod walk;

pub use settings::CourierSettings;
pub use walk::run;
