//! Writes compound operators out as several that have gradient rules: activations and normalizations of later opsets,
//! attention, and operators that ONNX Runtime fuses when it optimizes a model (domain `com.microsoft`). Only those that
//! are differentiated are written out.

use std::collections::{HashMap, HashSet};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::error::AutogradError;
use crate::fold::EPSILON;
use crate::gradient_tape::{AttributeValue, GradientRefusal, unsupported};
use crate::onnx::{attribute, float, int, reads, text};
use crate::proto::{GraphProto, NodeProto};
use crate::rules::input;
use crate::tensor::count;
use crate::tensor_facts::TensorFacts;
use crate::upgrade::is_standard;
use crate::writer::Writer;

/// Most numbers in the mask of causal attention: 16 MiB.
const MOST_IN_MASK: i64 = 4 * 1024 * 1024;
/// Added to a score to exclude it.
const NEVER: f32 = f32::MIN;

type CompositeRule = fn(&mut Writer<'_>) -> Result<(), GradientRefusal>;

/// How a compound operator is written out; `None` for other operators.
fn way(node: &NodeProto, by_images: &HashSet<String>) -> Option<CompositeRule> {
    match node.op_type() {
        "Mish" if is_standard(node) => Some(mish),
        "GroupNormalization" if is_standard(node) => Some(group_normalization),
        "Attention" if is_standard(node) => Some(attention),
        // Statistics of pictures belong to one batch, which no rule should assume.
        "BatchNormalization" => {
            let of_weights = int(node, "training_mode").unwrap_or(0) != 0 && !by_images.contains(input(node, 0));
            of_weights.then_some(weight_standardization as CompositeRule)
        }
        _ if node.domain() != "com.microsoft" => None,
        "FusedConv" => Some(fused_conv),
        "FusedGemm" => Some(fused_gemm),
        "FusedMatMul" => Some(fused_matmul),
        "Gelu" | "BiasGelu" => Some(gelu),
        "FastGelu" => Some(fast_gelu),
        "QuickGelu" => Some(quick_gelu),
        "SkipLayerNormalization" => Some(skip_layer_normalization),
        _ => None,
    }
}

/// Writes out every compound operator that is differentiated and adds facts about the new tensors. `by_images`: tensors
/// that depend on the images. Returns why operators were left as they are, by their first output.
pub(crate) fn write_out(
    graph: &mut GraphProto,
    needed: &HashSet<String>,
    by_images: &HashSet<String>,
    known: &mut TensorFacts,
) -> Result<HashMap<String, String>, AutogradError> {
    let read: HashSet<String> =
        graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|output| output.name().to_owned())).collect();
    let (mut nodes, mut left) = (Vec::with_capacity(graph.node.len()), HashMap::new());
    for node in std::mem::take(&mut graph.node) {
        let output = node.output.first().filter(|output| needed.contains(*output));
        let (Some(output), Some(way)) = (output, way(&node, by_images)) else {
            nodes.push(node);
            continue;
        };
        let mut writer = Writer::new(&node, known);
        let written = way(&mut writer);
        let Writer { nodes: new, constants, .. } = writer;
        let is_new = |name: &String| new.iter().any(|node| node.output.contains(name));
        let refused = match written {
            Err(GradientRefusal::Broken(error)) => return Err(error),
            Err(GradientRefusal::Unsupported(why)) => Some(why),
            Ok(()) => node
                .output
                .iter()
                .find(|name| read.contains(*name) && !is_new(name))
                .map(|name| format!("its output {name} is used, but only the first is supported")),
        };
        match refused {
            Some(why) => {
                left.insert(output.clone(), why);
                nodes.push(node);
            }
            None => {
                nodes.extend(new);
                graph.initializer.extend(constants);
            }
        }
    }
    graph.node = nodes;
    Ok(left)
}

/// `x tanh(softplus(x))`.
fn mish(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let (x, shape) = first(writer)?;
    let soft = writer.op("Softplus", "softplus", &[&x], &[], &shape);
    let share = writer.op("Tanh", "tanh", &[&soft], &[], &shape);
    writer.finish("Mul", &[&x, &share], &[], &shape);
    Ok(())
}

/// The first input and its shape.
fn first(writer: &Writer<'_>) -> Result<(String, Vec<i64>), AutogradError> {
    let name = input(writer.node, 0);
    Ok((name.to_owned(), writer.known.shape(name)?.to_vec()))
}

/// Normalizes each group of channels. Scale and bias have one number per group (opset 18) or per channel (21).
fn group_normalization(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let (x, from) = first(writer)?;
    let (scale, bias) = (input(node, 1), input(node, 2));
    let groups = int(node, "num_groups").unwrap_or(0);
    let (images, channels) = match from[..] {
        [images, channels, ..] if groups > 0 && images > 0 && channels % groups == 0 => (images, channels),
        _ => return unsupported(format!("{groups} groups do not fit a picture of shape {from:?}")),
    };
    let apart = [images, groups, count(&from) / (images * groups)];
    let parts = writer.reshape("groups", &x, &apart);
    let epsilon = [AttributeValue::Float("epsilon", float(node, "epsilon").unwrap_or(EPSILON))];
    if writer.known.shape(scale)? == [channels] {
        let (ones, zeros) = (vec![1.0; groups as usize], vec![0.0; groups as usize]);
        let (ones, zeros) = (writer.floats("ones", &[groups], &ones), writer.floats("zeros", &[groups], &zeros));
        let normal = writer.op("InstanceNormalization", "normal_groups", &[&parts, &ones, &zeros], &epsilon, &apart);
        let normal = writer.reshape("normal", &normal, &from);
        let mut column = vec![1; from.len() - 1];
        column[0] = channels;
        let scale = writer.reshape("scale_column", scale, &column);
        let bias = writer.reshape("bias_column", bias, &column);
        let scaled = writer.op("Mul", "scaled", &[&normal, &scale], &[], &from);
        writer.finish("Add", &[&scaled, &bias], &[], &from);
    } else {
        let normal = writer.op("InstanceNormalization", "normal_groups", &[&parts, scale, bias], &epsilon, &apart);
        let sizes = writer.ints("sizes", &from);
        writer.finish("Reshape", &[&normal, &sizes], &[], &from);
    }
    Ok(())
}

/// A normalization by the statistics of its input, which is a weight here: convolutions with standardized kernels (Qiao
/// et al., arXiv 1903.10520). With a single row, the statistics of a channel are those of that row.
fn weight_standardization(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let (x, from) = first(writer)?;
    if from.len() < 3 || from[0] != 1 {
        return unsupported(
            "it is in training mode, over weights with more than one row; export the model for inference",
        );
    }
    let epsilon = [AttributeValue::Float("epsilon", float(node, "epsilon").unwrap_or(EPSILON))];
    writer.finish("InstanceNormalization", &[&x, input(node, 1), input(node, 2)], &epsilon, &from);
    Ok(())
}

/// `softmax(q kᵀ · scale + mask) v`, head by head (ONNX operators, Attention).
fn attention(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let (query, key, value, mask) = (input(node, 0), input(node, 1), input(node, 2), input(node, 3));
    if node.input.iter().skip(4).any(|name| !name.is_empty()) {
        return unsupported("it continues from earlier keys and values; export the model without a cache");
    }
    if float(node, "softcap").unwrap_or(0.0) != 0.0 {
        return unsupported("it limits its scores (softcap)");
    }
    let heads = |what: &str| int(node, what).unwrap_or(0);
    let (query, [images, many, from, width]) = by_heads(writer, "query", query, heads("q_num_heads"))?;
    let (key, [_, key_heads, to, _]) = by_heads(writer, "key", key, heads("kv_num_heads"))?;
    let (value, [_, value_heads, _, value_width]) = by_heads(writer, "value", value, heads("kv_num_heads"))?;
    if [key_heads, value_heads] != [many; 2] {
        return unsupported(format!("{many} heads of queries share {key_heads} of keys and {value_heads} of values"));
    }
    let turned = [images, many, width, to];
    let key = writer.op("Transpose", "key_turned", &[&key], &[AttributeValue::Ints("perm", &[0, 1, 3, 2])], &turned);
    let square = [images, many, from, to];
    let scores = writer.op("MatMul", "products", &[&query, &key], &[], &square);
    let scale = float(node, "scale").filter(|scale| *scale != 0.0).unwrap_or(1.0 / (width as f32).sqrt());
    let scale = writer.number("scale", scale);
    let mut scores = writer.op("Mul", "scores", &[&scores, &scale], &[], &square);
    if int(node, "is_causal").unwrap_or(0) != 0 {
        if from.saturating_mul(to) > MOST_IN_MASK {
            return unsupported(format!("it is causal over {from} times {to} positions, too many for a mask"));
        }
        let later = |row: i64| (0..to).map(move |column| if column > row { NEVER } else { 0.0 });
        let values: Vec<f32> = (0..from).flat_map(later).collect();
        let causal = writer.floats("causal", &[from, to], &values);
        scores = writer.op("Add", "causal_scores", &[&scores, &causal], &[], &square);
    }
    if !mask.is_empty() {
        let shape = writer.known.shape(mask)?.to_vec();
        if shape.last() != Some(&to) {
            return unsupported(format!("its mask has shape {shape:?} for {to} keys"));
        }
        let added = match writer.known.is_float(mask) {
            true => mask.to_owned(),
            false => {
                let (nothing, never) = (writer.number("nothing", 0.0), writer.number("never", NEVER));
                writer.op("Where", "mask", &[mask, &nothing, &never], &[], &shape)
            }
        };
        scores = writer.op("Add", "masked_scores", &[&scores, &added], &[], &square);
    }
    let shares = writer.op("Softmax", "shares", &[&scores], &[AttributeValue::Int("axis", -1)], &square);
    let mixed = [images, many, from, value_width];
    if writer.known.shape(input(node, 0))?.len() == 4 {
        writer.finish("MatMul", &[&shares, &value], &[], &mixed);
        return Ok(());
    }
    let own = writer.op("MatMul", "mixed", &[&shares, &value], &[], &mixed);
    let apart = [images, from, many, value_width];
    let own = writer.op("Transpose", "mixed_apart", &[&own], &[AttributeValue::Ints("perm", &[0, 2, 1, 3])], &apart);
    let together = [images, from, many * value_width];
    let sizes = writer.ints("mixed_sizes", &together);
    writer.finish("Reshape", &[&own, &sizes], &[], &together);
    Ok(())
}

/// A tensor as `[images, heads, places, width]`, from that or from `[images, places, heads · width]`.
fn by_heads(
    writer: &mut Writer<'_>,
    what: &str,
    name: &str,
    heads: i64,
) -> Result<(String, [i64; 4]), GradientRefusal> {
    match writer.known.shape(name)?[..] {
        [images, heads, places, width] => Ok((name.to_owned(), [images, heads, places, width])),
        [images, places, all] if heads > 0 && all % heads == 0 => {
            let (apart, turned) = ([images, places, heads, all / heads], [images, heads, places, all / heads]);
            let parts = writer.reshape(&format!("{what}_apart"), name, &apart);
            let order = [AttributeValue::Ints("perm", &[0, 2, 1, 3])];
            Ok((writer.op("Transpose", &format!("{what}_by_heads"), &[&parts], &order, &turned), turned))
        }
        ref other => unsupported(format!("its {what} of shape {other:?} does not divide into {heads} heads")),
    }
}

/// A convolution, an addition, and an activation.
fn fused_conv(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let shape = writer.known.shape(&node.output[0])?.to_vec();
    let mut result = plain(writer, "Conv", &["activation", "activation_params"], &shape);
    let added = input(node, 3);
    if !added.is_empty() {
        result = writer.op("Add", "sum", &[&result, added], &[], &shape);
    }
    let params = attribute(node, "activation_params").map(|params| params.floats.clone()).unwrap_or_default();
    activate(writer, &result, &params, &shape)
}

fn fused_gemm(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let shape = writer.known.shape(&node.output[0])?.to_vec();
    let own = ["activation", "activation_alpha", "activation_beta", "activation_gamma"];
    let result = plain(writer, "Gemm", &own, &shape);
    let params: Vec<f32> =
        ["activation_alpha", "activation_beta"].iter().filter_map(|name| float(node, name)).collect();
    activate(writer, &result, &params, &shape)
}

/// The operator that an activation was fused with, without the attributes of the activation.
fn plain(writer: &mut Writer<'_>, op: &str, less: &[&str], shape: &[i64]) -> String {
    let mut node = writer.node.clone();
    (node.op_type, node.domain) = (Some(op.into()), None);
    node.input.truncate(3);
    node.attribute.retain(|attribute| !less.contains(&attribute.name()));
    let output = writer.name("before_activation");
    writer.push(node, &output, shape);
    output
}

/// The activation that an operator was fused with.
fn activate(writer: &mut Writer<'_>, from: &str, params: &[f32], shape: &[i64]) -> Result<(), GradientRefusal> {
    let activation = text(writer.node, "activation").unwrap_or_default();
    match (activation.as_str(), params) {
        ("Relu" | "Tanh" | "Sigmoid", _) => writer.finish(&activation, &[from], &[], shape),
        ("LeakyRelu", [alpha, ..]) => {
            writer.finish("LeakyRelu", &[from], &[AttributeValue::Float("alpha", *alpha)], shape)
        }
        ("HardSigmoid", [alpha, beta, ..]) => {
            let slope = [AttributeValue::Float("alpha", *alpha), AttributeValue::Float("beta", *beta)];
            writer.finish("HardSigmoid", &[from], &slope, shape);
        }
        ("Clip", [least, most, ..]) => {
            let (least, most) = (writer.number("least", *least), writer.number("most", *most));
            writer.finish("Clip", &[from, &least, &most], &[], shape);
        }
        ("", _) => writer.finish("Identity", &[from], &[], shape),
        (other, _) => {
            return unsupported(format!("its activation {other} with parameters {params:?} is not supported"));
        }
    }
    Ok(())
}

/// `alpha · a' b'`, where `'` swaps the last two axes if requested.
fn fused_matmul(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    if ["transBatchA", "transBatchB"].iter().any(|name| int(node, name).unwrap_or(0) != 0) {
        return unsupported("it moves the axis of images (transBatchA, transBatchB)");
    }
    let mut factors = Vec::new();
    for (place, (turns, what)) in [("transA", "a_turned"), ("transB", "b_turned")].into_iter().enumerate() {
        let name = input(node, place);
        let mut shape = writer.known.shape(name)?.to_vec();
        let rank = shape.len();
        if int(node, turns).unwrap_or(0) == 0 || rank < 2 {
            factors.push(name.to_owned());
            continue;
        }
        let mut order: Vec<i64> = (0..rank as i64).collect();
        order.swap(rank - 2, rank - 1);
        shape.swap(rank - 2, rank - 1);
        factors.push(writer.op("Transpose", what, &[name], &[AttributeValue::Ints("perm", &order)], &shape));
    }
    let shape = writer.known.shape(&node.output[0])?.to_vec();
    let product = writer.op("MatMul", "product", &[&factors[0], &factors[1]], &[], &shape);
    let alpha = writer.number("alpha", float(node, "alpha").unwrap_or(1.0));
    writer.finish("Mul", &[&product, &alpha], &[], &shape);
    Ok(())
}

/// The first input, plus the second if there is one, and its shape.
fn with_bias(writer: &mut Writer<'_>) -> Result<(String, Vec<i64>), AutogradError> {
    let (x, shape) = first(writer)?;
    match input(writer.node, 1) {
        "" => Ok((x, shape)),
        bias => Ok((writer.op("Add", "sum", &[&x, bias], &[], &shape), shape)),
    }
}

/// `x Φ(x)` of the normal distribution.
fn gelu(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let (x, shape) = with_bias(writer)?;
    let narrow = writer.number("narrow", FRAC_1_SQRT_2);
    let scaled = writer.op("Mul", "scaled", &[&x, &narrow], &[], &shape);
    let erf = writer.op("Erf", "erf", &[&scaled], &[], &shape);
    half_above(writer, &x, &erf, &shape);
    Ok(())
}

/// `x/2 (1 + tanh(k (x + c x³)))`, with the numbers of Hendrycks & Gimpel, arXiv 1606.08415.
fn fast_gelu(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let (x, shape) = with_bias(writer)?;
    let k = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
    let (linear, cubic) = (writer.number("linear", k), writer.number("cubic", k * 0.044_715));
    let square = writer.op("Mul", "square", &[&x, &x], &[], &shape);
    let steep = writer.op("Mul", "steep", &[&square, &cubic], &[], &shape);
    let slope = writer.op("Add", "slope", &[&steep, &linear], &[], &shape);
    let inner = writer.op("Mul", "inner", &[&x, &slope], &[], &shape);
    let tanh = writer.op("Tanh", "tanh", &[&inner], &[], &shape);
    half_above(writer, &x, &tanh, &shape);
    Ok(())
}

/// `x/2 (1 + y)`.
fn half_above(writer: &mut Writer<'_>, x: &str, y: &str, shape: &[i64]) {
    let (one, half) = (writer.number("one", 1.0), writer.number("half", 0.5));
    let above = writer.op("Add", "above", &[y, &one], &[], shape);
    let share = writer.op("Mul", "share", &[&above, &half], &[], shape);
    writer.finish("Mul", &[x, &share], &[], shape);
}

/// `x sigmoid(alpha x)`.
fn quick_gelu(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let (x, shape) = first(writer)?;
    let alpha = writer.number("alpha", float(writer.node, "alpha").unwrap_or(1.702));
    let scaled = writer.op("Mul", "scaled", &[&x, &alpha], &[], &shape);
    let share = writer.op("Sigmoid", "share", &[&scaled], &[], &shape);
    writer.finish("Mul", &[&x, &share], &[], &shape);
    Ok(())
}

/// A sum, which is also an output, and its normalization.
fn skip_layer_normalization(writer: &mut Writer<'_>) -> Result<(), GradientRefusal> {
    let node = writer.node;
    let (x, shape) = first(writer)?;
    let (skip, scale, shift, bias) = (input(node, 1), input(node, 2), input(node, 3), input(node, 4));
    let sum = match node.output.get(3).filter(|name| !name.is_empty()) {
        Some(sum) => sum.clone(),
        None => writer.name("sum"),
    };
    if bias.is_empty() {
        writer.op_into("Add", &sum, &[&x, skip], &[], &shape);
    } else {
        let both = writer.op("Add", "both", &[&x, skip], &[], &shape);
        writer.op_into("Add", &sum, &[&both, bias], &[], &shape);
    }
    let how =
        [AttributeValue::Int("axis", -1), AttributeValue::Float("epsilon", float(node, "epsilon").unwrap_or(1e-12))];
    writer.finish("LayerNormalization", &[&sum, scale, shift], &how, &shape);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::build::Builder;
    use crate::gradient_tape::AttributeValue;
    use crate::tensor_facts::TensorConstants;
    use crate::trainable::TrainableSelection;
    use crate::training_step::PreparedModel;

    #[test]
    fn attention_that_is_not_written_out_is_refused_with_the_reason() {
        let refused = |inputs: &[&str], attribute: AttributeValue<'_>| {
            let mut model = Builder::new("images", &[2, 4, 6]);
            model.weight("weight", &[6, 6], &[0.5; 36]);
            model.weight("earlier", &[2, 2, 4, 3], &[0.5; 48]);
            model.node("MatMul", &["images", "weight"], "query", &[]);
            let heads = [AttributeValue::Int("q_num_heads", 2), AttributeValue::Int("kv_num_heads", 2), attribute];
            model.node("Attention", inputs, "mixed", &heads);
            model.node("ReduceMax", &["mixed"], "scores", &[]);
            let prepared = PreparedModel::new(&model.finish("scores", &[2, 6]), "scores", &[2, 4, 6]).unwrap();
            let mut known = prepared.known().unwrap();
            for (name, shape) in [("query", vec![2, 4, 6]), ("mixed", vec![2, 4, 6]), ("scores", vec![2, 6])] {
                known.add(name, shape, TensorConstants::Floats(Vec::new()));
            }
            prepared.step(&known, &TrainableSelection::All).map(|_| ()).map_err(|error| error.to_string())
        };
        let itself = ["query", "query", "query"];
        assert_eq!(refused(&itself, AttributeValue::Int("is_causal", 1)), Ok(()));
        let cached = ["query", "query", "query", "", "earlier", "earlier"];
        assert!(refused(&cached, AttributeValue::Int("is_causal", 0)).unwrap_err().contains("without a cache"));
        assert!(refused(&itself, AttributeValue::Float("softcap", 5.0)).unwrap_err().contains("softcap"));
    }
}
