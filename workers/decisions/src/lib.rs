//! Where a task is recognized, and what becomes of doubt. Pure, all of it: the recognizer asks with what is, the back-test with
//! what was.
//!
//! [`admit`](mod@admit): here, in the cloud, or not yet. [`gate`]: sure or in doubt. [`fate`](mod@fate): what becomes of doubt.
//! [`learn`]: what verdicts teach the gate. Each by the numbers of a [`policy`] and of [`verify`].

pub mod admit;
pub mod calibration;
pub mod effective_settings;
pub mod escalation;
pub mod gate;
pub mod hash_fraction;
pub mod policy;
pub mod verify;

pub use effective_settings::EffectiveSettings;
pub use hash_fraction::hash_fraction;
pub use policy::{Policy, PolicyName};
pub use verify::{PayloadKind, VerifySettings};
