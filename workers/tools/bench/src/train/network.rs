//! The networks that are trained to measure: written once as a list of layers, from which the ONNX graph is made
//! here and the same network by the peer. Weights are random: how right it gets is not the question.

use autograd::build::Builder;
use autograd::gradient_tape::AttributeValue;
use autograd::onnx::OnnxDocument;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// A network.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchNetwork {
    /// Its name in the headline.
    pub name: &'static str,
    /// Images in a step.
    pub batch: i64,
    /// Their channels.
    pub channels: i64,
    /// Their side, pixels.
    pub side_px: i64,
    /// What they may show.
    pub classes: i64,
    /// In order; a layer's number is its place, from 1, and 0 is the input.
    pub layers: Vec<NetworkLayer>,
}

/// One layer.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NetworkLayer {
    /// conv, norm, relu, relu6, pool, add, mean, flatten or linear.
    pub op: &'static str,
    /// Numbers of the layers whose output it takes.
    pub from: Vec<usize>,
    /// Channels, or numbers, that go in.
    pub ins: i64,
    /// Channels, or numbers, that come out.
    pub outs: i64,
    /// Side of its window.
    pub kernel: i64,
    /// Of its window.
    pub stride: i64,
    /// Around the picture.
    pub pad: i64,
    /// Of channels.
    pub groups: i64,
}

const CLASSES: i64 = 10;

impl BenchNetwork {
    fn new(name: &'static str, batch: i64, side_px: i64) -> Self {
        Self { name, batch, channels: 3, side_px, classes: CLASSES, layers: Vec::new() }
    }

    fn push(&mut self, layer: NetworkLayer) -> usize {
        self.layers.push(layer);
        self.layers.len()
    }

    fn simple(&mut self, op: &'static str, from: usize, channels: i64) -> usize {
        self.push(NetworkLayer { op, from: vec![from], ins: channels, outs: channels, ..NetworkLayer::default() })
    }

    fn conv(&mut self, from: usize, ins: i64, outs: i64, (kernel, stride, groups): (i64, i64, i64)) -> usize {
        self.push(NetworkLayer { op: "conv", from: vec![from], ins, outs, kernel, stride, pad: kernel / 2, groups })
    }

    fn conv_norm(&mut self, from: usize, ins: i64, outs: i64, window: (i64, i64, i64), act: &'static str) -> usize {
        let conv = self.conv(from, ins, outs, window);
        let norm = self.simple("norm", conv, outs);
        if act.is_empty() { norm } else { self.simple(act, norm, outs) }
    }

    fn pool(&mut self, from: usize, channels: i64, kernel: i64, stride: i64, pad: i64) -> usize {
        let one =
            NetworkLayer { op: "pool", from: vec![from], ins: channels, outs: channels, ..NetworkLayer::default() };
        self.push(NetworkLayer { kernel, stride, pad, groups: 1, ..one })
    }

    fn head(&mut self, from: usize, channels: i64) {
        let mean = self.simple("mean", from, channels);
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
        let mut at = net.conv(0, 3, 16, (3, 1, 1));
        at = net.simple("relu", at, 16);
        at = net.pool(at, 16, 2, 2, 0);
        at = net.conv(at, 16, 32, (3, 1, 1));
        at = net.simple("relu", at, 32);
        at = net.pool(at, 32, 2, 2, 0);
        at = net.simple("flatten", at, 32 * 49);
        at = net.push(NetworkLayer { op: "linear", from: vec![at], ins: 32 * 49, outs: 64, ..NetworkLayer::default() });
        at = net.simple("relu", at, 64);
        net.push(NetworkLayer { op: "linear", from: vec![at], ins: 64, outs: CLASSES, ..NetworkLayer::default() });
        net
    }

    /// The network of fixtures/models/fashion-initial: two strided convolutions, two dense layers.
    pub(crate) fn learner(channels: i64, side_px: i64, classes: i64) -> Self {
        let mut net = Self { channels, classes, ..Self::new("learner", 32, side_px) };
        let mut at = net.conv(0, channels, 8, (3, 2, 1));
        at = net.simple("relu", at, 8);
        at = net.conv(at, 8, 16, (3, 2, 1));
        at = net.simple("relu", at, 16);
        let side = (side_px + 3) / 4;
        at = net.simple("flatten", at, 16 * side * side);
        at = net.push(NetworkLayer {
            op: "linear",
            from: vec![at],
            ins: 16 * side * side,
            outs: 32,
            ..NetworkLayer::default()
        });
        at = net.simple("relu", at, 32);
        net.push(NetworkLayer { op: "linear", from: vec![at], ins: 32, outs: classes, ..NetworkLayer::default() });
        net
    }

    /// A larger one for the same pictures, for a cloud: three convolutions, of which two are halved, two dense layers.
    pub(crate) fn judge(channels: i64, side_px: i64, classes: i64) -> Self {
        let mut net = Self { channels, classes, ..Self::new("judge", 32, side_px) };
        let (mut at, mut ins, mut side) = (0, channels, side_px);
        for (outs, halved) in [(16, true), (32, true), (48, false)] {
            at = net.conv(at, ins, outs, (3, 1, 1));
            at = net.simple("relu", at, outs);
            if halved {
                at = net.pool(at, outs, 2, 2, 0);
                side /= 2;
            }
            ins = outs;
        }
        at = net.simple("flatten", at, ins * side * side);
        at = net.push(NetworkLayer {
            op: "linear",
            from: vec![at],
            ins: ins * side * side,
            outs: 96,
            ..NetworkLayer::default()
        });
        at = net.simple("relu", at, 96);
        net.push(NetworkLayer { op: "linear", from: vec![at], ins: 96, outs: classes, ..NetworkLayer::default() });
        net
    }

    /// As MobileNetV2 (arXiv 1801.04381, table 2) at 96 pixels.
    pub(crate) fn mobilenetv2() -> Self {
        let mut net = Self::new("mobilenetv2", 16, 96);
        let mut at = net.conv_norm(0, 3, 32, (3, 2, 1), "relu6");
        let mut ins = 32;
        for (expand, outs, repeats, stride) in
            [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        {
            for repeat in 0..repeats {
                let (stride, wide, start) = (if repeat == 0 { stride } else { 1 }, ins * expand, at);
                if expand > 1 {
                    at = net.conv_norm(at, ins, wide, (1, 1, 1), "relu6");
                }
                at = net.conv_norm(at, wide, wide, (3, stride, wide), "relu6");
                at = net.conv_norm(at, wide, outs, (1, 1, 1), "");
                if stride == 1 && ins == outs {
                    let sum =
                        NetworkLayer { op: "add", from: vec![start, at], ins: outs, outs, ..NetworkLayer::default() };
                    at = net.push(sum);
                }
                ins = outs;
            }
        }
        at = net.conv_norm(at, ins, 1280, (1, 1, 1), "relu6");
        net.head(at, 1280);
        net
    }

    /// As ResNet-18 (arXiv 1512.03385, table 1) at 96 pixels.
    pub(crate) fn resnet18() -> Self {
        let mut net = Self::new("resnet18", 16, 96);
        let mut at = net.conv_norm(0, 3, 64, (7, 2, 1), "relu");
        at = net.pool(at, 64, 3, 2, 1);
        let mut ins = 64;
        for (outs, stride) in [(64, 1), (128, 2), (256, 2), (512, 2)] {
            for repeat in 0..2 {
                let (stride, start) = (if repeat == 0 { stride } else { 1 }, at);
                let side = match ins == outs {
                    true => start,
                    false => net.conv_norm(start, ins, outs, (1, stride, 1), ""),
                };
                at = net.conv_norm(start, ins, outs, (3, stride, 1), "relu");
                at = net.conv_norm(at, outs, outs, (3, 1, 1), "");
                at = net.push(NetworkLayer {
                    op: "add",
                    from: vec![side, at],
                    ins: outs,
                    outs,
                    ..NetworkLayer::default()
                });
                at = net.simple("relu", at, outs);
                ins = outs;
            }
        }
        net.head(at, 512);
        net
    }

    /// Layers with a kernel or a matrix.
    pub(crate) fn matrices(&self) -> usize {
        self.layers.iter().filter(|layer| matches!(layer.op, "conv" | "linear")).count()
    }

    /// Shape of a step's images: images, channels, rows, columns.
    pub(crate) fn shape(&self) -> [i64; 4] {
        [self.batch, self.channels, self.side_px, self.side_px]
    }

    /// As an ONNX classifier.
    pub(crate) fn onnx(&self) -> OnnxDocument {
        let mut builder = Builder::new("images", &self.shape());
        let mut random = StdRng::seed_from_u64(11);
        for (place, layer) in self.layers.iter().enumerate() {
            let name = |number: usize| if number == 0 { "images".to_owned() } else { format!("layer{number}") };
            let (own, from) = (name(place + 1), layer.from.iter().map(|from| name(*from)).collect::<Vec<_>>());
            let output = if place + 1 == self.layers.len() { "scores" } else { &own };
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

    /// Classes.
    pub(crate) fn classes(&self) -> usize {
        self.classes as usize
    }
}
