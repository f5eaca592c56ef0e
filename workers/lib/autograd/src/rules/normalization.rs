//! BatchNormalization with frozen statistics, LayerNormalization, and InstanceNormalization, which group normalization
//! is also exported as.

use crate::fold::EPSILON;
use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::{float, int};
use crate::proto::NodeProto;
use crate::tensor::count;

use super::{GradientRule, OutputGradients, from_front, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[
    ("BatchNormalization", batch_normalization),
    ("LayerNormalization", layer_normalization),
    ("InstanceNormalization", instance_normalization),
];

/// `y = (x - mean) / sqrt(variance + epsilon) · gamma + beta`, where mean and variance are constants: small batches of
/// one site would only spoil them.
fn batch_normalization(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    if int(node, "training_mode").unwrap_or(0) != 0 {
        return unsupported("it is in training mode; export the model for inference");
    }
    let (picture, gamma, beta) = (input(node, 0), input(node, 1), input(node, 2));
    let from = tape.shape(picture)?;
    let statistics = (tape.known().floats(input(node, 3)), tape.known().floats(input(node, 4)));
    let (Some(mean), Some(variance)) = statistics else {
        return unsupported("its statistics are not in the model");
    };
    let epsilon = float(node, "epsilon").unwrap_or(EPSILON);
    let inverse: Vec<f32> = variance.iter().map(|variance| 1.0 / (variance + epsilon).sqrt()).collect();
    let mut column = vec![1; from.len()];
    column[1] = from[1];
    let axes: Vec<i64> = (0..from.len() as i64).filter(|axis| *axis != 1).collect();
    let gradient = outputs.first.as_str();
    let inverse = tape.floats(&column, &inverse);
    if tape.needs(beta) {
        let by_beta = tape.sum(gradient, &axes, false);
        tape.add_gradient(beta, by_beta);
    }
    if tape.needs(gamma) {
        let mean = tape.floats(&column, mean);
        let centred = tape.op("Sub", &[picture, &mean], &[]);
        let normal = tape.mul(&centred, &inverse);
        let product = tape.mul(gradient, &normal);
        let by_gamma = tape.sum(&product, &axes, false);
        tape.add_gradient(gamma, by_gamma);
    }
    if tape.needs(picture) {
        let gamma = tape.reshape(gamma, &column);
        let scale = tape.mul(&gamma, &inverse);
        let by_picture = tape.mul(gradient, &scale);
        tape.add_gradient(picture, by_picture);
    }
    Ok(())
}

fn layer_normalization(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let axis = from_front(int(node, "axis").unwrap_or(-1), from.len());
    let (scale, bias) = (input(node, 1), input(node, 2));
    let shape = if scale.is_empty() { Vec::new() } else { tape.shape(scale)?.to_vec() };
    let bias_shape = if bias.is_empty() { Vec::new() } else { tape.shape(bias)?.to_vec() };
    normalize(tape, node, outputs, axis, (&shape, &bias_shape))
}

/// Normalizes each channel of each picture; scale and bias have one number per channel.
fn instance_normalization(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let from = tape.shape(input(node, 0))?;
    let mut column = vec![1; from.len()];
    column[1] = from[1];
    normalize(tape, node, outputs, 2, (&column, &column))
}

/// With `n = (x - mean) / deviation` and `d = dy · scale`: `dx = (d - mean(d) - n · mean(d · n)) / deviation` (Ba,
/// Kiros & Hinton, arXiv 1607.06450; means over the axes from `axis` on). The shapes are those in which scale and bias
/// broadcast with the picture.
fn normalize(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
    axis: i64,
    (scale_shape, bias_shape): (&[i64], &[i64]),
) -> Result<(), GradientRefusal> {
    let (x, scale, bias) = (input(node, 0), input(node, 1), input(node, 2));
    let from = tape.shape(x)?;
    let inner: Vec<i64> = (axis..from.len() as i64).collect();
    let share = 1.0 / count(&from[axis as usize..]) as f32;
    let gradient = outputs.first.as_str();
    let mean_of = |tape: &mut GradientTape<'_>, name: &str| {
        let sum = tape.sum(name, &inner, true);
        tape.scale(&sum, share)
    };
    let mean = mean_of(tape, x);
    let centred = tape.op("Sub", &[x, &mean], &[]);
    let square = tape.mul(&centred, &centred);
    let variance = mean_of(tape, &square);
    let epsilon = tape.number(float(node, "epsilon").unwrap_or(EPSILON));
    let variance = tape.op("Add", &[&variance, &epsilon], &[]);
    let deviation = tape.op("Sqrt", &[&variance], &[]);
    let normal = tape.op("Div", &[&centred, &deviation], &[]);
    if tape.needs(bias) {
        let by_bias = tape.unbroadcast(gradient, from, bias_shape);
        let by_bias = tape.reshape(&by_bias, tape.shape(bias)?);
        tape.add_gradient(bias, by_bias);
    }
    if tape.needs(scale) {
        let product = tape.mul(gradient, &normal);
        let by_scale = tape.unbroadcast(&product, from, scale_shape);
        let by_scale = tape.reshape(&by_scale, tape.shape(scale)?);
        tape.add_gradient(scale, by_scale);
    }
    if tape.needs(x) {
        let scale = tape.reshape(scale, scale_shape);
        let scaled = tape.mul(gradient, &scale);
        let mean = mean_of(tape, &scaled);
        let product = tape.mul(&scaled, &normal);
        let along = mean_of(tape, &product);
        let along = tape.mul(&normal, &along);
        let rest = tape.op("Sub", &[&scaled, &mean], &[]);
        let rest = tape.op("Sub", &[&rest, &along], &[]);
        let by_x = tape.op("Div", &[&rest, &deviation], &[] as &[AttributeValue<'_>]);
        tape.add_gradient(x, by_x);
    }
    Ok(())
}
