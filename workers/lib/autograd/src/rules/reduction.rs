//! Operators that reduce axes.

use crate::gradient_tape::{GradientRefusal, GradientTape, unsupported};
use crate::onnx::{int, ints};
use crate::proto::NodeProto;

use super::{GradientRule, OutputGradients, from_front, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[
    ("ReduceMean", reduce_mean),
    ("ReduceSum", reduce_sum),
    ("ReduceMax", reduce_extreme),
    ("ReduceMin", reduce_extreme),
    ("ReduceProd", reduce_prod),
    ("ReduceSumSquare", reduce_sum_square),
    ("ReduceL1", reduce_l1),
    ("ReduceL2", reduce_l2),
    ("ReduceLogSumExp", reduce_log_sum_exp),
];

fn reduce_mean(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    spread(tape, node, outputs, true)
}

fn reduce_sum(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    spread(tape, node, outputs, false)
}

/// The axes, counted from the front, and the shape of the result with them kept.
fn reduced(tape: &GradientTape<'_>, node: &NodeProto) -> Result<(Vec<i64>, Vec<i64>), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let axes = match (node.input.get(1).filter(|name| !name.is_empty()), ints(node, "axes")) {
        (Some(name), _) => match tape.known().ints(name) {
            Some(axes) => axes.to_vec(),
            None => return unsupported("its axes are not constant"),
        },
        (None, axes) => axes.unwrap_or_default(),
    };
    let axes: Vec<i64> = match (axes.is_empty(), int(node, "noop_with_empty_axes").unwrap_or(0) != 0) {
        (true, true) => Vec::new(),
        (true, false) => (0..from.len() as i64).collect(),
        (false, _) => axes.iter().map(|axis| from_front(*axis, from.len())).collect(),
    };
    let mut kept = from.to_vec();
    axes.iter().for_each(|axis| kept[*axis as usize] = 1);
    Ok((axes, kept))
}

/// Every value of a sum gets its gradient, or a share of it for a mean.
fn spread(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
    mean: bool,
) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let (axes, kept) = reduced(tape, node)?;
    let summed: i64 = axes.iter().map(|axis| from[*axis as usize]).product();
    let gradient = tape.reshape(&outputs.first, &kept);
    let gradient = if mean { tape.scale(&gradient, 1.0 / summed as f32) } else { gradient };
    let shape = tape.ints(from);
    let own = tape.op("Expand", &[&gradient, &shape], &[]);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Result and gradient with the reduced axes kept, so that both broadcast with the input.
fn kept(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(String, String), GradientRefusal> {
    let (_, kept) = reduced(tape, node)?;
    Ok((tape.reshape(&node.output[0], &kept), tape.reshape(&outputs.first, &kept)))
}

/// The gradient goes to the value that was taken, in equal shares if several were equal.
fn reduce_extreme(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let (axes, _) = reduced(tape, node)?;
    let (result, gradient) = kept(tape, node, outputs)?;
    let (one, nothing) = (tape.number(1.0), tape.number(0.0));
    let equal = tape.op("Equal", &[input(node, 0), &result], &[]);
    let taken = tape.op("Where", &[&equal, &one, &nothing], &[]);
    let count = tape.sum(&taken, &axes, true);
    let share = tape.op("Div", &[&gradient, &count], &[]);
    let own = tape.mul(&taken, &share);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Each value's gradient is the product of the others: `y / x` if none of them is zero, otherwise zero.
fn reduce_prod(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let (axes, kept) = reduced(tape, node)?;
    let gradient = tape.reshape(&outputs.first, &kept);
    let (one, nothing) = (tape.number(1.0), tape.number(0.0));
    let x = input(node, 0);
    let is_zero = tape.op("Equal", &[x, &nothing], &[]);
    let zero = tape.op("Where", &[&is_zero, &one, &nothing], &[]);
    let zeros = tape.sum(&zero, &axes, true);
    let other_zeros = tape.op("Sub", &[&zeros, &zero], &[]);
    let factor = tape.op("Where", &[&is_zero, &one, x], &[]);
    let axes = tape.ints(&axes);
    let product = tape.op("ReduceProd", &[&factor, &axes], &[]);
    let others = tape.op("Div", &[&product, &factor], &[]);
    let alone = tape.op("Equal", &[&other_zeros, &nothing], &[]);
    let slope = tape.op("Where", &[&alone, &others, &nothing], &[]);
    let own = tape.mul(&slope, &gradient);
    tape.add_gradient(x, own);
    Ok(())
}

fn reduce_sum_square(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let (_, kept) = reduced(tape, node)?;
    let gradient = tape.reshape(&outputs.first, &kept);
    let twice = tape.scale(&gradient, 2.0);
    let own = tape.mul(input(node, 0), &twice);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

fn reduce_l1(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (_, gradient) = kept(tape, node, outputs)?;
    let sign = tape.op("Sign", &[input(node, 0)], &[]);
    let own = tape.mul(&sign, &gradient);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// `x dy / y`; zero if all are zero, as in PyTorch.
fn reduce_l2(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (result, gradient) = kept(tape, node, outputs)?;
    let least = tape.number(f32::MIN_POSITIVE);
    let result = tape.op("Max", &[&result, &least], &[]);
    let share = tape.op("Div", &[&gradient, &result], &[]);
    let own = tape.mul(input(node, 0), &share);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// `exp(x - y) dy`.
fn reduce_log_sum_exp(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let (result, gradient) = kept(tape, node, outputs)?;
    let less = tape.op("Sub", &[input(node, 0), &result], &[]);
    let share = tape.op("Exp", &[&less], &[]);
    let own = tape.mul(&share, &gradient);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}
