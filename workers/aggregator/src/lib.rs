//! Many sites' updates become one better model: check → score → weigh → merge → seal ([`walk`]).
//!
//! [`round`] is a model's rounds as a fold over what the stream says (pure), [`check`] what is looked at before an update
//! counts. [`values`] is an update's weights as they came, [`layout`] says which number of them is which. [`public`]
//! is the public set, [`score`] tries models on it, [`rule`] is how they are merged, [`filter`] and [`weigh`] say what counts and how much (pure), [`merge`] puts rows together in one
//! pass (pure), [`server`] is how far the next release follows (pure), [`derive`] the walk through all of them. [`seal`]
//! makes a release of it, [`release`] is what a release is in the store, [`verify`] makes one again and compares, [`remake`]
//! makes one again without some updates, [`focus`] says what a release finds hard (pure), [`descent`] says which releases hold an update or start from one that does (pure).
//! Deliberately absent: which sites run it.

pub mod aggregate;
pub mod audit;
pub mod check;
pub mod filter;
pub mod focus;
pub mod merge;
pub mod parameter_layout;
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
pub mod worker;

pub use aggregate::AggregateResult;
pub use parameter_layout::ParameterLayout;
pub use release::ModelReleases;
pub use rule::MergeSettings;
pub use settings::AggregatorSettings;
pub use worker::run;
