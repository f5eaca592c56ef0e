//! One rule an operator: from the gradient of what it gives to the gradients of what it takes. A rule is a
//! function; a family of operators is a file with a list of its own. To add an operator, write a function and
//! put it into the list of its family.

mod convolution;
mod einsum;
mod linear;
mod normalization;
mod pointwise;
mod pooling;
mod reduction;
mod resize;
mod shape;
mod window;

pub(crate) use pooling::places_of;
pub(crate) use window::PoolWindow;

use crate::gradient_tape::{GradientRefusal, GradientTape};
use crate::proto::NodeProto;

/// Writes the gradients of a node's inputs. The last argument: the gradient of each of its outputs, where there
/// is one; the first is always there.
pub type GradientRule = fn(&mut GradientTape<'_>, &NodeProto, &OutputGradients) -> Result<(), GradientRefusal>;

/// Gradients of a node's outputs.
pub struct OutputGradients {
    /// Of the first.
    pub first: String,
    /// Of the others, where there is one.
    pub others: Vec<Option<String>>,
}

/// The families.
const FAMILIES: [&[(&str, GradientRule)]; 9] = [
    convolution::RULES,
    einsum::RULES,
    linear::RULES,
    normalization::RULES,
    pointwise::RULES,
    pooling::RULES,
    reduction::RULES,
    resize::RULES,
    shape::RULES,
];

/// An operator's rule.
pub fn rule(op: &str) -> Option<GradientRule> {
    FAMILIES.iter().copied().flatten().find(|(name, _)| *name == op).map(|(_, rule)| *rule)
}

/// Every operator that has a rule, by name.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = FAMILIES.iter().copied().flatten().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// Input number `place` of a node; empty if it is left away.
pub(crate) fn input(node: &NodeProto, place: usize) -> &str {
    node.input.get(place).map(String::as_str).unwrap_or_default()
}

/// An axis counted from the front.
pub(crate) fn from_front(axis: i64, rank: usize) -> i64 {
    if axis < 0 { axis + rank as i64 } else { axis }
}
