//! Decides where a task is recognized, and what happens to doubtful answers. Entirely pure: the recognizer calls it
//! with the present state, the back-test with recorded states.
//!
//! [`admit`](mod@admit): here, in the cloud, or not yet. [`gate`]: confident or doubtful.
//! [`escalation`](mod@escalation): what happens to a doubtful answer. [`calibration`]: what verdicts teach the gate.
//! [`objective`]: which of two ways to answer is better by their predicted numbers. All follow the numbers of a [`policy`] and of [`verify`].

pub mod admit;
pub mod calibration;
pub mod effective_settings;
pub mod escalation;
pub mod gate;
pub mod hash_fraction;
pub mod objective;
pub mod policy;
pub mod target_reach;
pub mod verify;

pub use effective_settings::EffectiveSettings;
pub use hash_fraction::hash_fraction;
pub use policy::{Policy, PolicyName};
pub use verify::{PayloadKind, VerifySettings};
