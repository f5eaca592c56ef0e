//! Gemm and MatMul.

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape};
use crate::onnx::{float, int};
use crate::proto::NodeProto;
use crate::tensor::count;

use super::{GradientRule, OutputGradients, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[("Gemm", gemm), ("MatMul", matmul)];

/// `y = alpha · a' b' + beta · c`, where `'` transposes if requested.
fn gemm(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (a, b, c, gradient) = (input(node, 0), input(node, 1), input(node, 2), outputs.first.as_str());
    let (alpha, beta) = (float(node, "alpha").unwrap_or(1.0), float(node, "beta").unwrap_or(1.0));
    let (turn_a, turn_b) = (int(node, "transA").unwrap_or(0), int(node, "transB").unwrap_or(0));
    let product = |tape: &mut GradientTape<'_>, left: &str, turn_left: i64, right: &str, turn_right: i64| {
        let turns = [
            AttributeValue::Float("alpha", alpha),
            AttributeValue::Int("transA", turn_left),
            AttributeValue::Int("transB", turn_right),
        ];
        tape.op("Gemm", &[left, right], &turns)
    };
    if tape.needs(a) {
        let by_a = match turn_a {
            0 => product(tape, gradient, 0, b, 1 - turn_b),
            _ => product(tape, b, turn_b, gradient, 1),
        };
        tape.add_gradient(a, by_a);
    }
    if tape.needs(b) {
        let by_b = match turn_b {
            0 => product(tape, a, 1 - turn_a, gradient, 0),
            _ => product(tape, gradient, 1, a, turn_a),
        };
        tape.add_gradient(b, by_b);
    }
    if tape.needs(c) {
        let (from, to) = (tape.shape(&node.output[0])?, tape.shape(c)?);
        let summed = tape.unbroadcast(gradient, from, to);
        let by_c = if beta == 1.0 { summed } else { tape.scale(&summed, beta) };
        tape.add_gradient(c, by_c);
    }
    Ok(())
}

/// Any number of axes; a row or column counts as a matrix with one row or column, and the other axes broadcast.
fn matmul(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (a, b) = (input(node, 0), input(node, 1));
    let (shape_a, shape_b) = (tape.shape(a)?, tape.shape(b)?);
    let to = tape.shape(&node.output[0])?;
    let full_a = if shape_a.len() == 1 { [&[1], shape_a].concat() } else { shape_a.to_vec() };
    let full_b = if shape_b.len() == 1 { [shape_b, &[1]].concat() } else { shape_b.to_vec() };
    let mut full_to = to.to_vec();
    if shape_a.len() == 1 {
        full_to.insert(full_to.len() - usize::from(shape_b.len() > 1), 1);
    }
    if shape_b.len() == 1 {
        full_to.push(1);
    }
    let shaped = |tape: &mut GradientTape<'_>, name: &str, own: &[i64], full: &[i64]| {
        if own == full { name.to_owned() } else { tape.reshape(name, full) }
    };
    let gradient = shaped(tape, &outputs.first, to, &full_to);
    let rank = full_to.len();
    let (rows, inner, columns) = (full_to[rank - 2], full_a[full_a.len() - 1], full_to[rank - 1]);
    if tape.needs(a) {
        let b = shaped(tape, b, shape_b, &full_b);
        let turned = tape.transpose(&b, &swapped(full_b.len()));
        let by_a = tape.op("MatMul", &[&gradient, &turned], &[]);
        let from = [&full_to[..rank - 2], &[rows, inner]].concat();
        let by_a = tape.unbroadcast(&by_a, &from, &full_a);
        let by_a = shaped(tape, &by_a, &full_a, shape_a);
        tape.add_gradient(a, by_a);
    }
    if tape.needs(b) {
        let a = shaped(tape, a, shape_a, &full_a);
        let by_b = if full_b.len() == 2 {
            // One product over all images instead of one for each and their sum.
            let rows_a = tape.reshape(&a, &[count(&full_a) / inner, inner]);
            let rows_gradient = tape.reshape(&gradient, &[count(&full_to) / columns, columns]);
            tape.op("Gemm", &[&rows_a, &rows_gradient], &[AttributeValue::Int("transA", 1)])
        } else {
            let turned = tape.transpose(&a, &swapped(full_a.len()));
            let by_b = tape.op("MatMul", &[&turned, &gradient], &[]);
            let from = [&full_to[..rank - 2], &[inner, columns]].concat();
            tape.unbroadcast(&by_b, &from, &full_b)
        };
        let by_b = shaped(tape, &by_b, &full_b, shape_b);
        tape.add_gradient(b, by_b);
    }
    Ok(())
}

/// The order of axes with the last two swapped.
fn swapped(rank: usize) -> Vec<i64> {
    let mut order: Vec<i64> = (0..rank as i64).collect();
    order.swap(rank - 2, rank - 1);
    order
}
