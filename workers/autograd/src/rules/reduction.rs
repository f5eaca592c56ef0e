//! ReduceMean and ReduceSum.

use crate::onnx::{int, ints};
use crate::proto::NodeProto;
use crate::tape::{Refusal, Tape, unsupported};

use super::{Outputs, Rule, from_front, input};

pub(super) const RULES: &[(&str, Rule)] = &[("ReduceMean", reduce_mean), ("ReduceSum", reduce_sum)];

fn reduce_mean(tape: &mut Tape<'_>, node: &NodeProto, outputs: &Outputs) -> Result<(), Refusal> {
    spread(tape, node, outputs, true)
}

fn reduce_sum(tape: &mut Tape<'_>, node: &NodeProto, outputs: &Outputs) -> Result<(), Refusal> {
    spread(tape, node, outputs, false)
}

/// Every value that went into a sum gets its gradient, and a share of it if it was a mean.
fn spread(tape: &mut Tape<'_>, node: &NodeProto, outputs: &Outputs, mean: bool) -> Result<(), Refusal> {
    let from = tape.shape(input(node, 0))?;
    let axes = match (node.input.get(1).filter(|name| !name.is_empty()), ints(node, "axes")) {
        (Some(name), _) => match tape.known().ints(name) {
            Some(axes) => axes.to_vec(),
            None => return unsupported("its axes are not known beforehand"),
        },
        (None, axes) => axes.unwrap_or_default(),
    };
    let axes: Vec<i64> = match (axes.is_empty(), int(node, "noop_with_empty_axes").unwrap_or(0) != 0) {
        (true, true) => Vec::new(),
        (true, false) => (0..from.len() as i64).collect(),
        (false, _) => axes.iter().map(|axis| from_front(*axis, from.len())).collect(),
    };
    let mut kept = from.to_vec();
    let mut summed = 1;
    for axis in &axes {
        summed *= kept[*axis as usize];
        kept[*axis as usize] = 1;
    }
    let gradient = tape.reshape(&outputs.first, &kept);
    let gradient = if mean { tape.scale(&gradient, 1.0 / summed as f32) } else { gradient };
    let shape = tape.ints(from);
    let own = tape.op("Expand", &[&gradient, &shape], &[]);
    tape.add_gradient(input(node, 0), own);
    Ok(())
}
