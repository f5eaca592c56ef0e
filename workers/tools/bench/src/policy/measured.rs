//! The measured policies: the product's own and the baselines.

use std::fmt;

use clap::ValueEnum;
use offload::policy::PolicyName;
use serde::{Serialize, Serializer};

use crate::baseline::BaselineRule;

/// A measured policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MeasuredPolicy {
    /// A policy of the product, run by its recognizer.
    Product(PolicyName),
    /// A baseline, run by the bench's recognizer.
    Baseline(BaselineRule),
}

impl fmt::Display for MeasuredPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product(name) => name.fmt(f),
            Self::Baseline(rule) => f.write_str(rule.to_possible_value().as_ref().map_or("", |value| value.get_name())),
        }
    }
}

impl Serialize for MeasuredPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Short names for lists of policies.
pub(crate) mod names {
    use super::{BaselineRule, MeasuredPolicy, PolicyName};

    pub(crate) const PAPER: MeasuredPolicy = MeasuredPolicy::Product(PolicyName::Paper);
    pub(crate) const EARLIEST_FINISH: MeasuredPolicy = MeasuredPolicy::Product(PolicyName::EarliestFinish);
    pub(crate) const EDGE_ONLY: MeasuredPolicy = MeasuredPolicy::Product(PolicyName::EdgeOnly);
    pub(crate) const CLOUD_ONLY: MeasuredPolicy = MeasuredPolicy::Product(PolicyName::CloudOnly);
    pub(crate) const HARD_EXAMPLE: MeasuredPolicy = MeasuredPolicy::Baseline(BaselineRule::HardExample);
    pub(crate) const RANDOM: MeasuredPolicy = MeasuredPolicy::Baseline(BaselineRule::Random);
    pub(crate) const ORACLE: MeasuredPolicy = MeasuredPolicy::Baseline(BaselineRule::Oracle);
}
