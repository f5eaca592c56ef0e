//! Merges the sites' updates into one better model: check → score → weigh → merge → release ([`worker`]).
//!
//! [`round`] folds the stream's events into a model's rounds (pure), [`round_open`] opens one, [`check`] holds the
//! checks an update must pass. [`weights_file`] reads an update's weights, [`parameter_layout`] maps numbers to
//! tensors, [`public_set`] reads the public set and [`score`] scores models on it. [`rule`] names the merge rules,
//! [`filter`] and [`weigh`] decide what counts and how much (pure), [`merge`] adds rows in one pass (pure),
//! [`server_optimizer`] decides how far the release follows (pure); [`aggregate`] runs them in order and [`audit`]
//! records the result. [`release_builder`] makes the release, [`release`] is its form in the store, [`verify`] derives
//! it again and compares, [`remake`] derives it without some updates, [`focus`] says what a release finds hard (pure),
//! [`hard_case_count`] counts hard cases between rounds,
//! [`tainted_release`] names the releases that learned from an update (pure).
//!
//! Deliberately absent: which sites run a release.

// Arithmetic over arrays of one length.
#![allow(clippy::indexing_slicing)]

pub mod aggregate;
pub mod audit;
pub mod check;
pub mod filter;
pub mod focus;
pub mod hard_case_count;
pub mod merge;
mod parameter_layout;
pub mod public_set;
pub mod release;
pub mod release_builder;
pub mod remake;
pub mod round;
pub mod round_open;
pub mod rule;
pub mod score;
pub mod server_optimizer;
pub mod settings;
pub mod tainted_release;
pub mod verify;
pub mod weigh;
pub mod weights_file;
mod worker;

pub use aggregate::AggregateResult;
pub use parameter_layout::ParameterLayout;
pub use release::ModelReleases;
pub use rule::MergeSettings;
pub use settings::AggregatorSettings;
pub use worker::run;
