//! One rule per operator: from the gradients of its outputs to those of its inputs. A rule is a function; a family of
//! operators is a file with its own list. To add an operator, write a function and add it to the list of its family.

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

/// Writes the gradients of a node's inputs. The last argument has the gradients of its outputs; that of the first
/// always exists.
pub(crate) type GradientRule = fn(&mut GradientTape<'_>, &NodeProto, &OutputGradients) -> Result<(), GradientRefusal>;

/// Gradients of a node's outputs.
pub(crate) struct OutputGradients {
    /// Gradient of the first output.
    pub first: String,
    /// Gradients of the others; `None` where there is none.
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

/// The rule of an operator.
pub(crate) fn rule(op: &str) -> Option<GradientRule> {
    FAMILIES.iter().copied().flatten().find(|(name, _)| *name == op).map(|(_, rule)| *rule)
}

/// Input number `place` of a node; empty if it is omitted.
pub(crate) fn input(node: &NodeProto, place: usize) -> &str {
    node.input.get(place).map(String::as_str).unwrap_or_default()
}

/// The index of an axis, counted from the front.
pub(crate) fn from_front(axis: i64, rank: usize) -> i64 {
    if axis < 0 { axis + rank as i64 } else { axis }
}
