//! The networks to train, each as a list of layers: this module builds the ONNX graph from it, and the PyTorch scripts
//! build the same network. Weights are random.

use autograd::build::Builder;
use autograd::gradient_tape::AttributeValue;
use autograd::onnx::OnnxDocument;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// A network as a list of layers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchNetwork {
    /// Name in the report.
    pub name: &'static str,
    /// Images per step.
    pub batch: i64,
    /// Channels of an image.
    pub channels: i64,
    /// Side of the square images, pixels.
    pub side_px: i64,
    /// Number of classes.
    pub classes: i64,
    /// Layers in order, numbered from 1; number 0 is the input.
    pub layers: Vec<NetworkLayer>,
}

/// A layer; fields that its operation does not use are 0.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NetworkLayer {
    /// Operation: conv, norm, relu, relu6, pool, add, mean, flatten or linear.
    pub op: &'static str,
    /// Numbers of its input layers.
    pub from: Vec<usize>,
    /// Input channels; input values of a linear layer.
    pub ins: i64,
    /// Output channels; output values of a linear layer.
    pub outs: i64,
    /// Side of the window, pixels.
    pub kernel: i64,
    /// Step of the window, pixels.
    pub stride: i64,
    /// Padding on each side, pixels.
    pub pad: i64,
    /// Number of channel groups of a convolution.
    pub groups: i64,
}

const CLASSES: i64 = 10;

impl BenchNetwork {
    fn new(name: &'static str, batch: i64, side_px: i64) -> Self {
        Self { name, batch, channels: 3, side_px, classes: CLASSES, layers: Vec::new() }
    }

    /// Appends a layer and returns its number.
    fn push(&mut self, layer: NetworkLayer) -> usize {
        self.layers.push(layer);
        self.layers.len()
    }

    /// Appends a layer that keeps the number of channels.
    fn push_simple(&mut self, op: &'static str, from: usize, channels: i64) -> usize {
        self.push(NetworkLayer { op, from: vec![from], ins: channels, outs: channels, ..NetworkLayer::default() })
    }

    fn conv(&mut self, from: usize, ins: i64, outs: i64, (kernel, stride, groups): (i64, i64, i64)) -> usize {
        self.push(NetworkLayer { op: "conv", from: vec![from], ins, outs, kernel, stride, pad: kernel / 2, groups })
    }

    fn conv_norm(&mut self, from: usize, ins: i64, outs: i64, window: (i64, i64, i64), act: &'static str) -> usize {
        let conv = self.conv(from, ins, outs, window);
        let norm = self.push_simple("norm", conv, outs);
        if act.is_empty() { norm } else { self.push_simple(act, norm, outs) }
    }

    fn pool(&mut self, from: usize, channels: i64, kernel: i64, stride: i64, pad: i64) -> usize {
        let base =
            NetworkLayer { op: "pool", from: vec![from], ins: channels, outs: channels, ..NetworkLayer::default() };
        self.push(NetworkLayer { kernel, stride, pad, groups: 1, ..base })
    }

    fn head(&mut self, from: usize, channels: i64) {
        let mean = self.push_simple("mean", from, channels);
        self.push(NetworkLayer {
            op: "linear",
            from: vec![mean],
            ins: channels,
            outs: CLASSES,
            ..NetworkLayer::default()
        });
    }

    /// Two convolutions, two dense layers: 106,000 weights at 28 pixels.
    pub(crate) fn small() -> Self {
        let mut net = Self::new("small", 32, 28);
        let mut last = net.conv(0, 3, 16, (3, 1, 1));
        last = net.push_simple("relu", last, 16);
        last = net.pool(last, 16, 2, 2, 0);
        last = net.conv(last, 16, 32, (3, 1, 1));
        last = net.push_simple("relu", last, 32);
        last = net.pool(last, 32, 2, 2, 0);
        last = net.push_simple("flatten", last, 32 * 49);
        last = net.push(NetworkLayer {
            op: "linear",
            from: vec![last],
            ins: 32 * 49,
            outs: 64,
            ..NetworkLayer::default()
        });
        last = net.push_simple("relu", last, 64);
        net.push(NetworkLayer { op: "linear", from: vec![last], ins: 64, outs: CLASSES, ..NetworkLayer::default() });
        net
    }

    /// The network of fixtures/models/fashion-initial: two strided convolutions, two dense layers.
    pub(crate) fn learner(channels: i64, side_px: i64, classes: i64) -> Self {
        let mut net = Self { channels, classes, ..Self::new("learner", 32, side_px) };
        let mut last = net.conv(0, channels, 8, (3, 2, 1));
        last = net.push_simple("relu", last, 8);
        last = net.conv(last, 8, 16, (3, 2, 1));
        last = net.push_simple("relu", last, 16);
        let side = (side_px + 3) / 4;
        last = net.push_simple("flatten", last, 16 * side * side);
        last = net.push(NetworkLayer {
            op: "linear",
            from: vec![last],
            ins: 16 * side * side,
            outs: 32,
            ..NetworkLayer::default()
        });
        last = net.push_simple("relu", last, 32);
        net.push(NetworkLayer { op: "linear", from: vec![last], ins: 32, outs: classes, ..NetworkLayer::default() });
        net
    }

    /// A larger network for the cloud: three convolutions, the first two followed by pooling, and two dense layers.
    pub(crate) fn judge(channels: i64, side_px: i64, classes: i64) -> Self {
        let mut net = Self { channels, classes, ..Self::new("judge", 32, side_px) };
        let (mut last, mut ins, mut side) = (0, channels, side_px);
        for (outs, is_pooled) in [(16, true), (32, true), (48, false)] {
            last = net.conv(last, ins, outs, (3, 1, 1));
            last = net.push_simple("relu", last, outs);
            if is_pooled {
                last = net.pool(last, outs, 2, 2, 0);
                side /= 2;
            }
            ins = outs;
        }
        last = net.push_simple("flatten", last, ins * side * side);
        last = net.push(NetworkLayer {
            op: "linear",
            from: vec![last],
            ins: ins * side * side,
            outs: 96,
            ..NetworkLayer::default()
        });
        last = net.push_simple("relu", last, 96);
        net.push(NetworkLayer { op: "linear", from: vec![last], ins: 96, outs: classes, ..NetworkLayer::default() });
        net
    }

    /// MobileNetV2 (arXiv 1801.04381, table 2) at 96 pixels.
    pub(crate) fn mobilenetv2() -> Self {
        let mut net = Self::new("mobilenetv2", 16, 96);
        let mut last = net.conv_norm(0, 3, 32, (3, 2, 1), "relu6");
        let mut ins = 32;
        for (expand, outs, repeats, stride) in
            [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        {
            for repeat in 0..repeats {
                let (stride, wide, start) = (if repeat == 0 { stride } else { 1 }, ins * expand, last);
                if expand > 1 {
                    last = net.conv_norm(last, ins, wide, (1, 1, 1), "relu6");
                }
                last = net.conv_norm(last, wide, wide, (3, stride, wide), "relu6");
                last = net.conv_norm(last, wide, outs, (1, 1, 1), "");
                if stride == 1 && ins == outs {
                    let sum =
                        NetworkLayer { op: "add", from: vec![start, last], ins: outs, outs, ..NetworkLayer::default() };
                    last = net.push(sum);
                }
                ins = outs;
            }
        }
        last = net.conv_norm(last, ins, 1280, (1, 1, 1), "relu6");
        net.head(last, 1280);
        net
    }

    /// ResNet-18 (arXiv 1512.03385, table 1) at 96 pixels.
    pub(crate) fn resnet18() -> Self {
        let mut net = Self::new("resnet18", 16, 96);
        let mut last = net.conv_norm(0, 3, 64, (7, 2, 1), "relu");
        last = net.pool(last, 64, 3, 2, 1);
        let mut ins = 64;
        for (outs, stride) in [(64, 1), (128, 2), (256, 2), (512, 2)] {
            for repeat in 0..2 {
                let (stride, start) = (if repeat == 0 { stride } else { 1 }, last);
                let shortcut = match ins == outs {
                    true => start,
                    false => net.conv_norm(start, ins, outs, (1, stride, 1), ""),
                };
                last = net.conv_norm(start, ins, outs, (3, stride, 1), "relu");
                last = net.conv_norm(last, outs, outs, (3, 1, 1), "");
                last = net.push(NetworkLayer {
                    op: "add",
                    from: vec![shortcut, last],
                    ins: outs,
                    outs,
                    ..NetworkLayer::default()
                });
                last = net.push_simple("relu", last, outs);
                ins = outs;
            }
        }
        net.head(last, 512);
        net
    }

    /// Number of convolutions and linear layers.
    pub(crate) fn trainable_layers(&self) -> usize {
        self.layers.iter().filter(|layer| matches!(layer.op, "conv" | "linear")).count()
    }

    /// Shape of a batch: images, channels, rows, columns.
    pub(crate) fn shape(&self) -> [i64; 4] {
        [self.batch, self.channels, self.side_px, self.side_px]
    }

    /// The network as an ONNX classifier.
    pub(crate) fn onnx(&self) -> OnnxDocument {
        let mut builder = Builder::new("images", &self.shape());
        let mut random = StdRng::seed_from_u64(11);
        for (index, layer) in self.layers.iter().enumerate() {
            let name = |number: usize| if number == 0 { "images".to_owned() } else { format!("layer{number}") };
            let (own, from) = (name(index + 1), layer.from.iter().map(|from| name(*from)).collect::<Vec<_>>());
            let output = if index + 1 == self.layers.len() { "scores" } else { &own };
            let mut weight = |what: &str, shape: &[i64], values: Option<f32>| {
                let name = format!("{own}.{what}");
                let count = shape.iter().product::<i64>() as usize;
                let fan_in = shape.iter().skip(1).product::<i64>().max(1) as f32;
                let values: Vec<f32> = match values {
                    Some(value) => vec![value; count],
                    None => (0..count).map(|_| random.random_range(-1.0..1.0) * (6.0 / fan_in).sqrt()).collect(),
                };
                builder.weight(&name, shape, &values);
                name
            };
            let (kernel, stride) = ([layer.kernel; 2], [layer.stride; 2]);
            let window = [
                AttributeValue::Ints("kernel_shape", &kernel),
                AttributeValue::Ints("strides", &stride),
                AttributeValue::Ints("pads", &[layer.pad; 4]),
            ];
            match layer.op {
                "conv" => {
                    let shape = [layer.outs, layer.ins / layer.groups, layer.kernel, layer.kernel];
                    let (kernel, bias) = (weight("weight", &shape, None), weight("bias", &[layer.outs], Some(0.0)));
                    let [kernel_shape, strides, pads] = window;
                    let attributes = [kernel_shape, strides, pads, AttributeValue::Int("group", layer.groups)];
                    builder.node("Conv", &[&from[0], &kernel, &bias], output, &attributes);
                }
                "linear" => {
                    let matrix = weight("weight", &[layer.outs, layer.ins], None);
                    let bias = weight("bias", &[layer.outs], Some(0.0));
                    builder.node("Gemm", &[&from[0], &matrix, &bias], output, &[AttributeValue::Int("transB", 1)]);
                }
                "norm" => {
                    let (gamma, beta) =
                        (weight("weight", &[layer.outs], Some(1.0)), weight("bias", &[layer.outs], Some(0.0)));
                    let (mean, variance) =
                        (weight("mean", &[layer.outs], Some(0.0)), weight("variance", &[layer.outs], Some(1.0)));
                    builder.node("BatchNormalization", &[&from[0], &gamma, &beta, &mean, &variance], output, &[]);
                }
                "relu6" => {
                    let least = weight("least", &[], Some(0.0));
                    let most = weight("most", &[], Some(6.0));
                    builder.node("Clip", &[&from[0], &least, &most], output, &[]);
                }
                "pool" => builder.node("MaxPool", &[&from[0]], output, &window),
                "add" => builder.node("Add", &[&from[0], &from[1]], output, &[]),
                "mean" => {
                    let pooled = format!("{own}.pooled");
                    builder.node("GlobalAveragePool", &[&from[0]], &pooled, &[]);
                    builder.node("Flatten", &[&pooled], output, &[]);
                }
                "flatten" => builder.node("Flatten", &[&from[0]], output, &[]),
                _ => builder.node("Relu", &[&from[0]], output, &[]),
            }
        }
        builder.finish("scores", &[self.batch, self.classes])
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.classes as usize
    }
}
