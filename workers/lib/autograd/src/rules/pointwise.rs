//! Operators that work value by value: arithmetic with broadcasting, and activations.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::{float, int, text};
use crate::proto::NodeProto;
use crate::rules::{GradientRule, OutputGradients, from_front, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[
    ("Add", add),
    ("Sub", sub),
    ("Mul", mul),
    ("Div", div),
    ("Pow", pow),
    ("Neg", neg),
    ("Abs", abs),
    ("Sqrt", sqrt),
    ("Exp", exp),
    ("Log", log),
    ("Reciprocal", reciprocal),
    ("Where", choose),
    ("Relu", relu),
    ("LeakyRelu", leaky_relu),
    ("Clip", clip),
    ("Sigmoid", sigmoid),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", hard_swish),
    ("Tanh", tanh),
    ("Softplus", softplus),
    ("Elu", elu),
    ("Selu", selu),
    ("Celu", celu),
    ("PRelu", prelu),
    ("Sin", sin),
    ("Cos", cos),
    ("Max", extreme),
    ("Min", extreme),
    ("Erf", erf),
    ("Gelu", gelu),
    ("Softmax", softmax),
    ("LogSoftmax", log_softmax),
];

/// Adds the gradient of an input that may have been broadcast.
fn give(tape: &mut GradientTape<'_>, node: &NodeProto, place: usize, gradient: &str) -> Result<(), GradientRefusal> {
    let name = input(node, place);
    let (from, to) = (tape.shape(&node.output[0])?, tape.shape(name)?);
    let own = tape.unbroadcast(gradient, from, to);
    tape.add_gradient(name, own);
    Ok(())
}

fn add(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    for place in 0..2 {
        if tape.needs(input(node, place)) {
            give(tape, node, place, &outputs.first)?;
        }
    }
    Ok(())
}

fn sub(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    if tape.needs(input(node, 0)) {
        give(tape, node, 0, &outputs.first)?;
    }
    if tape.needs(input(node, 1)) {
        let negative = tape.op("Neg", &[&outputs.first], &[]);
        give(tape, node, 1, &negative)?;
    }
    Ok(())
}

fn mul(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    for place in 0..2 {
        if tape.needs(input(node, place)) {
            let product = tape.mul(&outputs.first, input(node, 1 - place));
            give(tape, node, place, &product)?;
        }
    }
    Ok(())
}

fn div(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let by_first = tape.op("Div", &[&outputs.first, input(node, 1)], &[]);
    if tape.needs(input(node, 0)) {
        give(tape, node, 0, &by_first)?;
    }
    if tape.needs(input(node, 1)) {
        // -dy · a / b² = -(dy / b) · y
        let product = tape.mul(&by_first, &node.output[0]);
        let negative = tape.op("Neg", &[&product], &[]);
        give(tape, node, 1, &negative)?;
    }
    Ok(())
}

fn pow(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (base, exponent) = (input(node, 0), input(node, 1));
    if tape.needs(exponent) || !tape.known().is_float(exponent) {
        return unsupported("its exponent is trained, or is not a float");
    }
    let one = tape.number(1.0);
    let less = tape.op("Sub", &[exponent, &one], &[]);
    let power = tape.op("Pow", &[base, &less], &[]);
    let slope = tape.mul(exponent, &power);
    let product = tape.mul(&outputs.first, &slope);
    give(tape, node, 0, &product)
}

/// Adds the gradient of the only input: that of the output times the slope.
fn times(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
    slope: &str,
) -> Result<(), GradientRefusal> {
    let gradient = tape.mul(&outputs.first, slope);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}

fn neg(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let negative = tape.op("Neg", &[&outputs.first], &[]);
    tape.add_gradient(input(node, 0), negative);
    Ok(())
}

fn abs(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let slope = tape.op("Sign", &[input(node, 0)], &[]);
    times(tape, node, outputs, &slope)
}

fn sqrt(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let half = tape.scale(&outputs.first, 0.5);
    let gradient = tape.op("Div", &[&half, &node.output[0]], &[]);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}

fn exp(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    times(tape, node, outputs, &node.output[0])
}

fn log(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let gradient = tape.op("Div", &[&outputs.first, input(node, 0)], &[]);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}

fn reciprocal(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let square = tape.mul(&node.output[0], &node.output[0]);
    let slope = tape.op("Neg", &[&square], &[]);
    times(tape, node, outputs, &slope)
}

fn choose(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let nothing = tape.number(0.0);
    for place in 1..3 {
        if tape.needs(input(node, place)) {
            let taken = [outputs.first.as_str(), &nothing];
            let (yes, no) = if place == 1 { (taken[0], taken[1]) } else { (taken[1], taken[0]) };
            let chosen = tape.op("Where", &[input(node, 0), yes, no], &[]);
            give(tape, node, place, &chosen)?;
        }
    }
    Ok(())
}

/// 1 where a value is above 0, otherwise 0. A steep HardSigmoid, because the runtime vectorizes it, unlike `Sign` or a
/// comparison.
fn is_positive(tape: &mut GradientTape<'_>, tensor: &str) -> String {
    tape.op("HardSigmoid", &[tensor], &[AttributeValue::Float("alpha", 1e38), AttributeValue::Float("beta", 0.0)])
}

fn relu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let slope = is_positive(tape, &node.output[0]);
    times(tape, node, outputs, &slope)
}

fn leaky_relu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let less = tape.scale(&outputs.first, float(node, "alpha").unwrap_or(0.01));
    let nothing = tape.number(0.0);
    let positive = tape.op("Greater", &[input(node, 0), &nothing], &[]);
    let gradient = tape.op("Where", &[&positive, &outputs.first, &less], &[]);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}

/// Passes the gradient where the value was between the bounds.
fn clip(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let clipped = node.output[0].as_str();
    let bound = |place: usize| node.input.get(place).filter(|name| !name.is_empty());
    let above = bound(1).map(|least| match tape.known().floats(least) {
        Some([0.0]) => clipped.to_owned(),
        _ => tape.op("Sub", &[clipped, least], &[]),
    });
    let below = bound(2).map(|most| tape.op("Sub", &[most, clipped], &[]));
    let inside = match (above, below) {
        (Some(above), Some(below)) => tape.mul(&above, &below),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => {
            tape.add_gradient(input(node, 0), outputs.first.clone());
            return Ok(());
        }
    };
    let slope = is_positive(tape, &inside);
    times(tape, node, outputs, &slope)
}

/// `y (1 - y)` of a tensor.
fn bell(tape: &mut GradientTape<'_>, y: &str) -> String {
    let square = tape.mul(y, y);
    tape.op("Sub", &[y, &square], &[])
}

fn sigmoid(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let slope = bell(tape, &node.output[0]);
    times(tape, node, outputs, &slope)
}

fn hard_sigmoid(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let bell = bell(tape, &node.output[0]);
    let inside = tape.op("Sign", &[&bell], &[]);
    let slope = tape.scale(&inside, float(node, "alpha").unwrap_or(0.2));
    times(tape, node, outputs, &slope)
}

/// `y = x · h(x)` with `h` a hard sigmoid of slope 1/6 (ONNX operators, HardSwish).
fn hard_swish(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let x = input(node, 0);
    let hard =
        tape.op("HardSigmoid", &[x], &[AttributeValue::Float("alpha", 1.0 / 6.0), AttributeValue::Float("beta", 0.5)]);
    let bell = bell(tape, &hard);
    let inside = tape.op("Sign", &[&bell], &[]);
    let sixth = tape.scale(x, 1.0 / 6.0);
    let rising = tape.mul(&inside, &sixth);
    let slope = tape.op("Add", &[&hard, &rising], &[]);
    times(tape, node, outputs, &slope)
}

fn tanh(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let square = tape.mul(&node.output[0], &node.output[0]);
    let one = tape.number(1.0);
    let slope = tape.op("Sub", &[&one, &square], &[]);
    times(tape, node, outputs, &slope)
}

fn softplus(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let slope = tape.op("Sigmoid", &[input(node, 0)], &[]);
    times(tape, node, outputs, &slope)
}

/// `above` where the input is above 0, otherwise `below`.
fn by_sign(tape: &mut GradientTape<'_>, node: &NodeProto, above: &str, below: &str) -> String {
    let nothing = tape.number(0.0);
    let positive = tape.op("Greater", &[input(node, 0), &nothing], &[]);
    tape.op("Where", &[&positive, above, below], &[])
}

/// Below 0, `y = α (exp(x) - 1)` and so `y' = y + α`.
fn elu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (one, alpha) = (tape.number(1.0), tape.number(float(node, "alpha").unwrap_or(1.0)));
    let below = tape.op("Add", &[&node.output[0], &alpha], &[]);
    let slope = by_sign(tape, node, &one, &below);
    times(tape, node, outputs, &slope)
}

/// Below 0, `y = γ α (exp(x) - 1)`; the numbers are those of ONNX operators, Selu.
fn selu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let alpha = float(node, "alpha").unwrap_or(1.673_263_2);
    let gamma = float(node, "gamma").unwrap_or(1.050_701);
    let (above, product) = (tape.number(gamma), tape.number(gamma * alpha));
    let below = tape.op("Add", &[&node.output[0], &product], &[]);
    let slope = by_sign(tape, node, &above, &below);
    times(tape, node, outputs, &slope)
}

/// Below 0, `y = α (exp(x / α) - 1)` and so `y' = y / α + 1`.
fn celu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let one = tape.number(1.0);
    let scaled = tape.scale(&node.output[0], 1.0 / float(node, "alpha").unwrap_or(1.0));
    let below = tape.op("Add", &[&scaled, &one], &[]);
    let slope = by_sign(tape, node, &one, &below);
    times(tape, node, outputs, &slope)
}

fn prelu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (x, slope) = (input(node, 0), input(node, 1));
    if tape.needs(x) {
        let less = tape.mul(&outputs.first, slope);
        let own = by_sign(tape, node, &outputs.first, &less);
        tape.add_gradient(x, own);
    }
    if tape.needs(slope) {
        let product = tape.mul(&outputs.first, x);
        let nothing = tape.number(0.0);
        let below = by_sign(tape, node, &nothing, &product);
        give(tape, node, 1, &below)?;
    }
    Ok(())
}

fn sin(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let slope = tape.op("Cos", &[input(node, 0)], &[]);
    times(tape, node, outputs, &slope)
}

fn cos(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let sine = tape.op("Sin", &[input(node, 0)], &[]);
    let slope = tape.op("Neg", &[&sine], &[]);
    times(tape, node, outputs, &slope)
}

/// The gradient goes to the input that was taken, in equal shares if several were equal.
fn extreme(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (one, nothing) = (tape.number(1.0), tape.number(0.0));
    let mut taken = Vec::new();
    for name in &node.input {
        let equal = tape.op("Equal", &[name, &node.output[0]], &[]);
        taken.push(tape.op("Where", &[&equal, &one, &nothing], &[]));
    }
    let all: Vec<&str> = taken.iter().map(String::as_str).collect();
    let count = tape.op("Sum", &all, &[]);
    let share = tape.op("Div", &[&outputs.first, &count], &[]);
    for (place, taken) in taken.iter().enumerate() {
        if tape.needs(input(node, place)) {
            let own = tape.mul(&share, taken);
            give(tape, node, place, &own)?;
        }
    }
    Ok(())
}

/// `2/√π · exp(-x²)`.
fn erf(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let x = input(node, 0);
    let square = tape.mul(x, x);
    let negative = tape.op("Neg", &[&square], &[]);
    let bell = tape.op("Exp", &[&negative], &[]);
    let slope = tape.scale(&bell, FRAC_2_SQRT_PI);
    times(tape, node, outputs, &slope)
}

/// `Φ(x) + x φ(x)` of the normal distribution, or the derivative of the approximation by tanh.
fn gelu(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let x = input(node, 0);
    let square = tape.mul(x, x);
    let one = tape.number(1.0);
    let slope = match text(node, "approximate").as_deref() {
        None | Some("none") => {
            let scaled = tape.scale(x, FRAC_1_SQRT_2);
            let erf = tape.op("Erf", &[&scaled], &[]);
            let above = tape.op("Add", &[&erf, &one], &[]);
            let share = tape.scale(&above, 0.5);
            let half = tape.scale(&square, -0.5);
            let bell = tape.op("Exp", &[&half], &[]);
            let density = tape.scale(&bell, 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
            let rising = tape.mul(x, &density);
            tape.op("Add", &[&share, &rising], &[])
        }
        Some("tanh") => {
            // y = x/2 (1 + t), t = tanh(k (x + c x³)): y' = (1 + t)/2 + x/2 (1 - t²) k (1 + 3 c x²).
            let (k, c) = (FRAC_2_SQRT_PI * FRAC_1_SQRT_2, 0.044_715);
            let cubic = tape.scale(&square, c);
            let cubic = tape.op("Add", &[&cubic, &one], &[]);
            let inner = tape.mul(x, &cubic);
            let inner = tape.scale(&inner, k);
            let t = tape.op("Tanh", &[&inner], &[]);
            let above = tape.op("Add", &[&t, &one], &[]);
            let share = tape.scale(&above, 0.5);
            let square_t = tape.mul(&t, &t);
            let falling = tape.op("Sub", &[&one, &square_t], &[]);
            let steep = tape.scale(&square, 3.0 * c);
            let steep = tape.op("Add", &[&steep, &one], &[]);
            let steep = tape.mul(&falling, &steep);
            let half = tape.scale(x, 0.5 * k);
            let rising = tape.mul(&half, &steep);
            tape.op("Add", &[&share, &rising], &[])
        }
        Some(other) => return unsupported(format!("approximation {other} is not supported")),
    };
    times(tape, node, outputs, &slope)
}

/// `y (dy - Σ dy y)`.
fn softmax(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let y = node.output[0].as_str();
    let axis = from_front(int(node, "axis").unwrap_or(-1), tape.shape(y)?.len());
    let product = tape.mul(&outputs.first, y);
    let sum = tape.sum(&product, &[axis], true);
    let own = tape.mul(y, &sum);
    let gradient = tape.op("Sub", &[&product, &own], &[]);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}

/// `dy - exp(y) Σ dy`.
fn log_softmax(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let y = node.output[0].as_str();
    let axis = from_front(int(node, "axis").unwrap_or(-1), tape.shape(y)?.len());
    let sum = tape.sum(&outputs.first, &[axis], true);
    let probability = tape.op("Exp", &[y], &[]);
    let own = tape.mul(&probability, &sum);
    let gradient = tape.op("Sub", &[&outputs.first, &own], &[]);
    tape.add_gradient(input(node, 0), gradient);
    Ok(())
}
