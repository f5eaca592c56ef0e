//! Many sites' updates become one better model: check → score → weigh → merge → seal.
//!
//! [`values`] is an update's weights as they came, [`layout`] says which number of them is which. [`score`] tries models on
//! a public set, [`filter`] and [`weigh`] say what counts and how much (pure), [`merge`] puts rows together in one pass
//! (pure), [`server`] is how far the next release follows (pure), [`derive`] the walk through all of them.
//! Deliberately absent: rollout.

pub mod derive;
pub mod filter;
pub mod layout;
pub mod merge;
pub mod score;
pub mod server;
pub mod values;
pub mod weigh;

pub use derive::{Derived, MergeSettings};
pub use layout::Layout;
