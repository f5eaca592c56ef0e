//! Einsum: the gradient of each input is an Einsum of the output's gradient with the other inputs.

use std::collections::HashMap;

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::text;
use crate::proto::NodeProto;

use super::{GradientRule, OutputGradients, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[("Einsum", einsum)];

fn einsum(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let shapes: Vec<&[i64]> = node.input.iter().map(|name| tape.shape(name)).collect::<Result<_, _>>()?;
    let equation = text(node, "equation").unwrap_or_default();
    let (ins, out) = terms(&equation, &shapes)?;
    for (place, own) in ins.iter().enumerate() {
        let name = input(node, place);
        if !tape.needs(name) {
            continue;
        }
        let others = || (0..ins.len()).filter(|other| *other != place);
        let factors: Vec<&str> = [out.as_str()].into_iter().chain(others().map(|other| ins[other].as_str())).collect();
        // An axis that only this input has was summed: all its entries get the same.
        let is_shared = |letter: &char| factors.iter().any(|factor| factor.contains(*letter));
        let shared: String = own.chars().filter(is_shared).collect();
        let equation = format!("{}->{shared}", factors.join(","));
        let tensors: Vec<&str> =
            [outputs.first.as_str()].into_iter().chain(others().map(|other| input(node, other))).collect();
        let mut gradient = tape.op("Einsum", &tensors, &[AttributeValue::Text("equation", &equation)]);
        if shared != *own {
            let (from, sizes) = (shapes[place], own.chars().zip(shapes[place]));
            let kept: Vec<i64> = sizes.map(|(letter, size)| if is_shared(&letter) { *size } else { 1 }).collect();
            let single = tape.reshape(&gradient, &kept);
            let shape = tape.ints(from);
            gradient = tape.op("Expand", &[&single, &shape], &[] as &[AttributeValue<'_>]);
        }
        tape.add_gradient(name, gradient);
    }
    Ok(())
}

/// The letters of each input and of the output, with letters in place of an ellipsis.
fn terms(equation: &str, shapes: &[&[i64]]) -> Result<(Vec<String>, String), GradientRefusal> {
    let refused = |why: &str| unsupported(format!("{why} (`{equation}`)"));
    let plain: String = equation.chars().filter(|letter| !letter.is_whitespace()).collect();
    let (left, right) = match plain.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (plain.as_str(), None),
    };
    let mut free = ('a'..='z').chain('A'..='Z').filter(|letter| !plain.contains(*letter));
    let ins: Vec<&str> = left.split(',').collect();
    if ins.len() != shapes.len() {
        return refused("its equation has a different number of inputs");
    }
    let hidden = ins.iter().zip(shapes).filter(|(term, _)| term.contains("..."));
    let hidden = hidden.map(|(term, shape)| (shape.len() + 3).saturating_sub(term.len())).max().unwrap_or(0);
    let letters: String = free.by_ref().take(hidden).collect();
    let ins: Vec<String> = ins.iter().map(|term| term.replace("...", &letters)).collect();
    let mut sizes = HashMap::new();
    for (term, shape) in ins.iter().zip(shapes) {
        if term.chars().count() != shape.len() {
            return refused("its inputs and its equation have different axes, or an ellipsis broadcasts");
        }
        for ((place, letter), size) in term.char_indices().zip(*shape) {
            if term[..place].contains(letter) {
                return refused("it takes a diagonal");
            }
            if *sizes.entry(letter).or_insert(*size) != *size {
                return refused("it broadcasts an axis");
            }
        }
    }
    let out = match right {
        Some(right) => right.replace("...", &letters),
        None => {
            let all: String = ins.concat();
            let mut single: Vec<char> = all.chars().filter(|letter| all.matches(*letter).count() == 1).collect();
            single.retain(|letter| !letters.contains(*letter));
            single.sort_unstable();
            letters.chars().chain(single).collect()
        }
    };
    Ok((ins, out))
}
