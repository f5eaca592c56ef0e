//! Operators that move values without changing them.

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::{int, ints, text};
use crate::proto::NodeProto;
use crate::tensor::count;

use super::{GradientRule, OutputGradients, from_front, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[
    ("Identity", pass),
    ("Dropout", pass),
    ("Cast", pass),
    ("Flatten", reshaped),
    ("Reshape", reshaped),
    ("Squeeze", reshaped),
    ("Unsqueeze", reshaped),
    ("Expand", expand),
    ("Transpose", transpose),
    ("Concat", concat),
    ("Split", split),
    ("Slice", slice),
    ("Gather", gather),
    ("GatherND", gather_nd),
    ("Tile", tile),
    ("Pad", pad),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
];

/// Most occurrences of one index that are added back one by one; more use a matrix.
const MOST_GATHERED: usize = 4;
/// Most numbers in that matrix: 16 MiB.
const MOST_IN_MATRIX: i64 = 4 * 1024 * 1024;

fn pass(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    tape.add_gradient(input(node, 0), outputs.first.clone());
    Ok(())
}

fn reshaped(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let own = tape.reshape(&outputs.first, tape.shape(input(node, 0))?);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

fn expand(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (from, to) = (tape.shape(&node.output[0])?, tape.shape(input(node, 0))?);
    let own = tape.unbroadcast(&outputs.first, from, to);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

fn transpose(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let rank = tape.shape(input(node, 0))?.len() as i64;
    let order = ints(node, "perm").unwrap_or_else(|| (0..rank).rev().collect());
    let back: Vec<i64> =
        (0..rank).map(|axis| order.iter().position(|from| *from == axis).unwrap_or_default() as i64).collect();
    let own = tape.transpose(&outputs.first, &back);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

fn concat(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let rank = tape.shape(&node.output[0])?.len();
    let axis = from_front(int(node, "axis").unwrap_or(0), rank);
    let mut start = 0;
    for name in &node.input {
        let end = start + tape.shape(name)?[axis as usize];
        if tape.needs(name) {
            let own = tape.slice(&outputs.first, &[start], &[end], &[axis], &[1]);
            tape.add_gradient(name, own);
        }
        start = end;
    }
    Ok(())
}

fn split(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let rank = tape.shape(input(node, 0))?.len();
    let axis = from_front(int(node, "axis").unwrap_or(0), rank);
    let mut parts = Vec::new();
    for (place, name) in node.output.iter().enumerate() {
        let gradient = if place == 0 { Some(&outputs.first) } else { outputs.others[place - 1].as_ref() };
        parts.push(match gradient {
            Some(gradient) => gradient.clone(),
            None => tape.zeros(name)?,
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let own = tape.op("Concat", &parts, &[AttributeValue::Int("axis", axis)]);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Zeros around the slice, and between its values if it has steps.
fn slice(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (from, to) = (tape.shape(input(node, 0))?, tape.shape(&node.output[0])?);
    let known = |place: usize| tape.known().ints(input(node, place));
    let Some(starts) = known(1) else { return unsupported("its starts are not constant") };
    let axes = match (input(node, 3).is_empty(), known(3)) {
        (true, _) => (0..starts.len() as i64).collect(),
        (false, Some(axes)) => axes.to_vec(),
        (false, None) => return unsupported("its axes are not constant"),
    };
    let steps = match (input(node, 4).is_empty(), known(4)) {
        (true, _) => vec![1; starts.len()],
        (false, Some(steps)) => steps.to_vec(),
        (false, None) => return unsupported("its steps are not constant"),
    };
    if steps.contains(&0) {
        return unsupported("a step is 0");
    }
    let mut shape = to.to_vec();
    let mut gradient = outputs.first.clone();
    let mut pads = vec![0; 2 * from.len()];
    for ((start, axis), step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = from_front(*axis, from.len()) as usize;
        let last = if *step < 0 { from[axis] - 1 } else { from[axis] };
        let mut start = if *start < 0 { (start + from[axis]).max(0) } else { (*start).min(last) };
        if *step < 0 {
            // A backward slice is a forward one from the other end, reversed.
            start += (shape[axis] - 1) * step;
            gradient = tape.slice(&gradient, &[-1], &[i64::MIN], &[axis as i64], &[-1]);
        }
        let step = step.abs();
        if step > 1 {
            // [.., n, ..] becomes [.., n, step, ..] with zeros after each value, and that [.., n · step, ..].
            let (head, tail) = (&shape[..axis], &shape[axis + 1..]);
            let apart = [head, &[shape[axis], 1], tail].concat();
            let single = tape.reshape(&gradient, &apart);
            let mut behind = vec![0; 2 * apart.len()];
            behind[apart.len() + axis + 1] = step - 1;
            let spread = tape.pad(&single, &behind);
            shape = [head, &[shape[axis] * step], tail].concat();
            gradient = tape.reshape(&spread, &shape);
        }
        pads[axis] = start;
        // Negative where the last zeros extend beyond the axis.
        pads[from.len() + axis] = from[axis] - start - shape[axis];
    }
    let own = tape.pad(&gradient, &pads);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Entries of an axis.
fn gather(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let axis = from_front(int(node, "axis").unwrap_or(0), from.len()) as usize;
    let Some(places) = tape.known().ints(input(node, 1)) else {
        return unsupported("its indices are not constant");
    };
    let places: Vec<i64> = places.iter().map(|at| from_front(*at, from[axis] as usize)).collect();
    let flat = [&from[..axis], &[places.len() as i64], &from[axis + 1..]].concat();
    let gradient = tape.reshape(&outputs.first, &flat);
    let own = put_back(tape, &gradient, from, axis, &places)?;
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Entries given by an index for each of the first axes: entries of those axes as one.
fn gather_nd(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    if int(node, "batch_dims").unwrap_or(0) != 0 {
        return unsupported("it has different indices per image (batch_dims)");
    }
    let from = tape.shape(input(node, 0))?;
    let axes = tape.shape(input(node, 1))?.last().map_or(0, |axes| *axes as usize);
    let Some(numbers) = tape.known().ints(input(node, 1)).filter(|_| (1..=from.len()).contains(&axes)) else {
        return unsupported("its indices are not constant");
    };
    let (indexed, rest) = from.split_at(axes);
    let mut places = Vec::with_capacity(numbers.len() / axes);
    for numbers in numbers.chunks_exact(axes) {
        let numbers: Vec<i64> = numbers.iter().zip(indexed).map(|(at, size)| from_front(*at, *size as usize)).collect();
        if numbers.iter().zip(indexed).any(|(at, size)| !(0..*size).contains(at)) {
            return unsupported("its indices are out of range");
        }
        places.push(numbers.iter().zip(indexed).fold(0, |place, (at, size)| place * size + at));
    }
    let row = [&[count(indexed)], rest].concat();
    let gradient = tape.reshape(&outputs.first, &[&[places.len() as i64], rest].concat());
    let own = put_back(tape, &gradient, &row, 0, &places)?;
    let own = tape.reshape(&own, from);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// The gradient of the tensor that entries of an axis were taken from. Each entry gets back what was taken from it: the
/// gradient at its output position, or a zero appended to the gradient. Entries taken often get a sum, by a matrix from
/// outputs to entries.
fn put_back(
    tape: &mut GradientTape<'_>,
    gradient: &str,
    from: &[i64],
    axis: usize,
    places: &[i64],
) -> Result<String, GradientRefusal> {
    let (size, count) = (from[axis], places.len() as i64);
    if places.iter().any(|at| !(0..size).contains(at)) {
        return unsupported("its indices are out of range");
    }
    // Where each entry went, the first time it was taken, the second time, and so on.
    let mut went: Vec<Vec<i64>> = vec![Vec::new(); size as usize];
    for (to, at) in places.iter().enumerate() {
        went[*at as usize].push(to as i64);
    }
    let most = went.iter().map(Vec::len).max().unwrap_or(0);
    if most <= MOST_GATHERED {
        let mut pads = vec![0; 2 * from.len()];
        pads[from.len() + axis] = 1;
        let padded = tape.pad(gradient, &pads);
        let part = |tape: &mut GradientTape<'_>, time: usize| {
            let back: Vec<i64> = went.iter().map(|to| to.get(time).copied().unwrap_or(count)).collect();
            let back = tape.ints(&back);
            tape.op("Gather", &[&padded, &back], &[AttributeValue::Int("axis", axis as i64)])
        };
        let mut sum = part(tape, 0);
        for time in 1..most {
            let part = part(tape, time);
            sum = tape.op("Add", &[&sum, &part], &[]);
        }
        Ok(sum)
    } else if size.saturating_mul(count) <= MOST_IN_MATRIX {
        let mut matrix = vec![0.0; (size * count) as usize];
        places.iter().enumerate().for_each(|(to, at)| matrix[(at * count) as usize + to] = 1.0);
        let matrix = tape.floats(&[size, count], &matrix);
        let outer: i64 = from[..axis].iter().product();
        let inner: i64 = from[axis + 1..].iter().product();
        let rows = tape.reshape(gradient, &[outer, count, inner]);
        let summed = tape.op("MatMul", &[&matrix, &rows], &[]);
        Ok(tape.reshape(&summed, from))
    } else {
        unsupported(format!("it takes {count} entries of {size}, and some of them {most} times"))
    }
}

/// The sum over all copies.
fn tile(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let Some(repeats) = tape.known().ints(input(node, 1)).filter(|repeats| repeats.len() == from.len()) else {
        return unsupported("its repeats are not constant");
    };
    let apart: Vec<i64> = repeats.iter().zip(from).flat_map(|(times, size)| [*times, *size]).collect();
    let copies: Vec<i64> = (0..from.len() as i64).map(|axis| 2 * axis).collect();
    let parts = tape.reshape(&outputs.first, &apart);
    let own = tape.sum(&parts, &copies, false);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Each block of pixels was a pixel's channels.
fn depth_to_space(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let block = int(node, "blocksize").unwrap_or(1);
    if text(node, "mode").as_deref() != Some("CRD") {
        let own = tape.op("SpaceToDepth", &[&outputs.first], &[AttributeValue::Int("blocksize", block)]);
        tape.add_gradient(input(node, 0), own);
        return Ok(());
    }
    let (from, to) = (tape.shape(input(node, 0))?, tape.shape(&node.output[0])?);
    let [images, channels, height, width] = to[..] else { return unsupported("its picture does not have four axes") };
    // [n, c, h, block, w, block] to [n, c, block, block, h, w].
    let apart = [images, channels, height / block, block, width / block, block];
    let apart = tape.reshape(&outputs.first, &apart);
    let moved = tape.transpose(&apart, &[0, 1, 3, 5, 2, 4]);
    let own = tape.reshape(&moved, from);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Each pixel's channels were a block of pixels.
fn space_to_depth(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let block = AttributeValue::Int("blocksize", int(node, "blocksize").unwrap_or(1));
    let own = tape.op("DepthToSpace", &[&outputs.first], &[block, AttributeValue::Text("mode", "DCR")]);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}

/// Removes what was added, and the reverse; repeated pixels get the gradients of their copies.
fn pad(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (from, to) = (tape.shape(input(node, 0))?, tape.shape(&node.output[0])?);
    let rank = from.len();
    let Some(pads) = tape.known().ints(input(node, 1)) else { return unsupported("its pads are not constant") };
    let axes: Vec<i64> = match tape.known().ints(input(node, 3)) {
        Some(axes) => axes.iter().map(|axis| from_front(*axis, rank)).collect(),
        None => (0..rank as i64).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return unsupported("its pads do not fit its axes");
    }
    // The original of each padded pixel, counted from the first one.
    let repeated: fn(i64, i64) -> i64 = match text(node, "mode").as_deref() {
        None | Some("constant") => {
            let mut back = vec![0; 2 * rank];
            for (place, axis) in axes.iter().enumerate() {
                back[*axis as usize] = -pads[place];
                back[rank + *axis as usize] = -pads[axes.len() + place];
            }
            let own = tape.pad(&outputs.first, &back);
            tape.add_gradient(input(node, 0), own);
            return Ok(());
        }
        Some("edge") => |at, size| at.clamp(0, size - 1),
        Some("wrap") => |at, size| at.rem_euclid(size),
        // Back and forth, without repeating the ends.
        Some("reflect") => |at, size| {
            let at = at.rem_euclid((2 * size - 2).max(1));
            at.min(2 * size - 2 - at)
        },
        Some(other) => return unsupported(format!("its mode is {other}")),
    };
    let mut shape = to.to_vec();
    let mut gradient = outputs.first.clone();
    for (place, axis) in axes.iter().enumerate() {
        let axis = *axis as usize;
        if from[axis] == to[axis] && pads[place] == 0 {
            continue;
        }
        let places: Vec<i64> = (0..to[axis]).map(|at| repeated(at - pads[place], from[axis])).collect();
        shape[axis] = from[axis];
        gradient = put_back(tape, &gradient, &shape, axis, &places)?;
    }
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}
