//! MaxPool, AveragePool and their global variants.

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::int;
use crate::proto::NodeProto;
use crate::tensor::count;

use super::window::PoolWindow;
use super::{GradientRule, OutputGradients, input};

pub(super) const RULES: &[(&str, GradientRule)] =
    &[("MaxPool", max_pool), ("AveragePool", average_pool), ("GlobalAveragePool", global_average_pool)];

/// Name of a MaxPool's second output in a step, which has the position of each maximum.
pub(crate) fn places_of(node: &NodeProto) -> String {
    format!("{}/places", node.output.first().map(String::as_str).unwrap_or_default())
}

/// Each gradient goes to the position of its maximum.
fn max_pool(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let picture = input(node, 0);
    let (from, to) = (tape.shape(picture)?, tape.shape(&node.output[0])?);
    if int(node, "storage_order").unwrap_or(0) != 0 {
        return unsupported("it counts positions column by column");
    }
    let window = PoolWindow::of_pooling(node, from, to)?;
    let places = match node.output.get(1).filter(|name| !name.is_empty()) {
        Some(places) => places.clone(),
        None => places_of(node),
    };
    let size = tape.ints(&[count(from)]);
    let nothing = tape.op("ConstantOfShape", &[&size], &[]);
    let places = tape.reshape(&places, &[count(to)]);
    let gradient = tape.reshape(&outputs.first, &[count(to)]);
    // Where windows overlap, a position may be the maximum of several.
    let apart = window.dilations.iter().all(|step| *step == 1)
        && window.kernel.iter().zip(&window.strides).all(|(size, stride)| size <= stride);
    let how = AttributeValue::Text("reduction", if apart { "none" } else { "add" });
    let all = tape.op("ScatterElements", &[&nothing, &places, &gradient], &[AttributeValue::Int("axis", 0), how]);
    let own = tape.reshape(&all, from);
    tape.add_gradient(picture, own);
    Ok(())
}

/// Each gradient is shared equally by the pixels its window covered.
fn average_pool(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let picture = input(node, 0);
    let (from, to) = (tape.shape(picture)?, tape.shape(&node.output[0])?);
    let mut window = PoolWindow::of_pooling(node, from, to)?;
    let all = int(node, "count_include_pad").unwrap_or(0) != 0;
    let coverage = window.coverage(&from[2..], &to[2..], all);
    let shares: Vec<f32> = coverage.iter().map(|covered| 1.0 / covered.max(1.0)).collect();
    let shares = match shares.iter().all(|share| *share == shares[0]) {
        true => tape.number(shares[0]),
        false => tape.floats(&[&[1, 1], &to[2..]].concat(), &shares),
    };
    let share = tape.mul(&outputs.first, &shares);
    // Windows that extend beyond the picture, because sizes were rounded up, extend into padding.
    let mut rest = window.remainder(&from[2..], &to[2..]);
    for (end, rest) in window.ends.iter_mut().zip(&mut rest).filter(|(_, rest)| **rest < 0) {
        *end -= *rest;
        *rest = 0;
    }
    let ones = vec![1.0; (from[1] * count(&window.kernel)) as usize];
    let ones = tape.floats(&[&[from[1], 1], window.kernel.as_slice()].concat(), &ones);
    let attributes = [
        AttributeValue::Ints("strides", &window.strides),
        AttributeValue::Ints("dilations", &window.dilations),
        AttributeValue::Ints("pads", &window.pads()),
        AttributeValue::Ints("output_padding", &rest),
        AttributeValue::Int("group", from[1]),
    ];
    let own = tape.op("ConvTranspose", &[&share, &ones], &attributes);
    tape.add_gradient(picture, own);
    Ok(())
}

fn global_average_pool(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let share = tape.scale(&outputs.first, 1.0 / count(&from[2..]) as f32);
    let shape = tape.ints(from);
    let own = tape.op("Expand", &[&share, &shape], &[]);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}
