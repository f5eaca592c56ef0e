//! Rewrites convolutions of few pixels as matrix products. A runtime convolves image by image, and a depthwise
//! convolution channel by channel, which is slow for few pixels. Which pixel goes where is a matrix of zeros and ones:
//! for few pixels a product with it is faster than any copying, and its gradient comes for free.
//!
//! With many channels, what each kernel position sees becomes a row for all images together: one product with the
//! kernel. Depthwise, each channel's kernel becomes a matrix from pixels to pixels: one product per channel.

use std::collections::HashSet;

use crate::gradient_tape::AttributeValue;
use crate::onnx::int;
use crate::proto::{GraphProto, NodeProto};
use crate::rules::PoolWindow;
use crate::tensor;
use crate::tensor_facts::TensorFacts;
use crate::writer::Writer;

/// Most numbers in the position matrix.
const MOST_PLACES: i64 = 1 << 16;
/// Most numbers in the matrices of all channels together, depthwise: what fits into a cache beside the pictures.
const MOST_DEPTHWISE: i64 = 1 << 20;

/// Unfolds every differentiated convolution that gets cheaper. Adds facts about the new tensors.
pub(crate) fn unfold(graph: &mut GraphProto, needed: &HashSet<String>, known: &mut TensorFacts) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let is_needed = node.output.first().is_some_and(|output| needed.contains(output));
        let geometry = if is_needed { Geometry::of(&node, known) } else { None };
        match geometry.filter(Geometry::pays) {
            None => nodes.push(node),
            Some(geometry) => {
                let mut writer = Writer::new(&node, known);
                match geometry.group {
                    1 => by_rows(&mut writer, &geometry),
                    _ => by_channels(&mut writer, &geometry),
                }
                let Writer { nodes: new, constants, .. } = writer;
                nodes.extend(new);
                graph.initializer.extend(constants);
            }
        }
    }
    graph.node = nodes;
}

/// Geometry of a convolution.
struct Geometry {
    window: PoolWindow,
    group: i64,
    from: Vec<i64>,
    to: Vec<i64>,
}

impl Geometry {
    fn of(node: &NodeProto, known: &TensorFacts) -> Option<Self> {
        if node.op_type() != "Conv" {
            return None;
        }
        let shape = |name: Option<&String>| known.shape(name?).ok();
        let (from, kernel) = (shape(node.input.first())?, shape(node.input.get(1))?);
        let to = shape(node.output.first())?;
        if kernel.len() < 3 || from.len() != kernel.len() || to.len() != kernel.len() {
            return None;
        }
        let window = PoolWindow::of(node, &kernel[2..], &from[2..], &to[2..]).ok()?;
        let group = int(node, "group").unwrap_or(1);
        Some(Self { window, group, from: from.to_vec(), to: to.to_vec() })
    }

    /// Output pixels of all images.
    fn columns(&self) -> i64 {
        self.from[0] * tensor::count(&self.to[2..])
    }

    /// Whether each channel has one kernel of its own.
    fn is_depthwise(&self) -> bool {
        self.group > 1 && self.from[1] == self.group && self.to[1] == self.group
    }

    fn pays(&self) -> bool {
        let (pixels, outs) = (tensor::count(&self.from[2..]), tensor::count(&self.to[2..]));
        let size = pixels * outs * tensor::count(&self.window.kernel);
        match self.group {
            1 => !self.window.is_point() && self.columns() < self.to[1] && size <= MOST_PLACES,
            _ => self.is_depthwise() && size <= MOST_PLACES && pixels * outs * self.to[1] <= MOST_DEPTHWISE,
        }
    }

    /// Calls `see` with input pixel, kernel position and output pixel for everything that is seen.
    fn each_seen(&self, mut see: impl FnMut(usize, usize, usize)) {
        let Self { window, from, to, .. } = self;
        let (into, out) = (&from[2..], &to[2..]);
        for (number, place) in window.places().iter().enumerate() {
            for pixel in 0..tensor::count(out) {
                let (mut rest, mut seen, mut stride) = (pixel, 0, 1);
                let inside = (0..window.rank()).rev().all(|axis| {
                    let at = rest % out[axis];
                    rest /= out[axis];
                    let from = at * window.strides[axis] + place[axis] * window.dilations[axis] - window.begins[axis];
                    seen += from * stride;
                    stride *= into[axis];
                    (0..into[axis]).contains(&from)
                });
                if inside {
                    see(seen as usize, number, pixel as usize);
                }
            }
        }
    }
}

/// The picture with channels first, as one row of pixels per channel and image, in this shape.
fn pixel_rows(writer: &mut Writer<'_>, geometry: &Geometry, shape: &[i64]) -> String {
    let from = &geometry.from;
    let turned = [&[from[1], from[0]], &from[2..]].concat();
    let picture = writer.node.input[0].clone();
    let order = swapped(from.len());
    let rows = writer.op("Transpose", "channels_first", &[&picture], &[AttributeValue::Ints("perm", &order)], &turned);
    writer.reshape("pixel_rows", &rows, shape)
}

/// Moves images first again and gives the result the convolution's own name.
fn finish(writer: &mut Writer<'_>, product: &str, to: &[i64]) {
    let apart = writer.reshape("product_apart", product, &[&[to[1], to[0]], &to[2..]].concat());
    writer.finish("Transpose", &[&apart], &[AttributeValue::Ints("perm", &swapped(to.len()))], to);
}

fn by_channels(writer: &mut Writer<'_>, geometry: &Geometry) {
    let Geometry { window, from, to, .. } = geometry;
    let (pixels, outs, images) = (tensor::count(&from[2..]), tensor::count(&to[2..]), from[0]);
    let (channels, places) = (to[1], tensor::count(&window.kernel));
    let rows = pixel_rows(writer, geometry, &[channels, images, pixels]);
    let (width, row) = (outs as usize, (pixels * outs) as usize);
    let mut values = vec![0.0; places as usize * row];
    geometry.each_seen(|seen, place, pixel| values[place * row + seen * width + pixel] = 1.0);
    let matrix = writer.floats("places", &[places, pixels * outs], &values);
    let kernel = writer.node.input[1].clone();
    let kernel = writer.reshape("kernel_rows", &kernel, &[channels, places]);
    let kernel = writer.op("Gemm", "kernel_matrices", &[&kernel, &matrix], &[], &[channels, pixels * outs]);
    let kernel = writer.reshape("kernel_of_channels", &kernel, &[channels, pixels, outs]);
    let shape = [channels, images, outs];
    let mut product = writer.op("MatMul", "product", &[&rows, &kernel], &[], &shape);
    if let Some(bias) = writer.node.input.get(2).filter(|bias| !bias.is_empty()).cloned() {
        let bias = writer.reshape("bias_of_channels", &bias, &[channels, 1, 1]);
        product = writer.op("Add", "sum", &[&product, &bias], &[], &shape);
    }
    finish(writer, &product, to);
}

fn by_rows(writer: &mut Writer<'_>, geometry: &Geometry) {
    let Geometry { window, from, to, .. } = geometry;
    let (images, ins) = (from[0], from[1]);
    let (pixels, outs, columns) = (tensor::count(&from[2..]), tensor::count(&to[2..]), geometry.columns());
    let places = tensor::count(&window.kernel);
    let rows = pixel_rows(writer, geometry, &[ins * images, pixels]);
    let width = (places * outs) as usize;
    let mut values = vec![0.0; pixels as usize * width];
    geometry.each_seen(|seen, place, pixel| values[seen * width + place * outs as usize + pixel] = 1.0);
    let matrix = writer.floats("places", &[pixels, places * outs], &values);
    let seen = writer.op("Gemm", "seen", &[&rows, &matrix], &[], &[ins * images, places * outs]);
    let seen = writer.reshape("seen_apart", &seen, &[ins, images, places, outs]);
    let by_places = [AttributeValue::Ints("perm", &[0, 2, 1, 3])];
    let seen = writer.op("Transpose", "seen_by_places", &[&seen], &by_places, &[ins, places, images, outs]);
    let all = writer.reshape("rows", &seen, &[ins * places, columns]);
    let kernel = writer.node.input[1].clone();
    let kernel = writer.reshape("kernel_matrix", &kernel, &[to[1], ins * places]);
    let product = match writer.node.input.get(2).filter(|bias| !bias.is_empty()).cloned() {
        Some(bias) => {
            let bias = writer.reshape("bias_column", &bias, &[to[1], 1]);
            writer.op("Gemm", "product", &[&kernel, &all, &bias], &[], &[to[1], columns])
        }
        None => writer.op("Gemm", "product", &[&kernel, &all], &[], &[to[1], columns]),
    };
    finish(writer, &product, to);
}

/// The order of axes with images and channels swapped.
fn swapped(rank: usize) -> Vec<i64> {
    [1, 0].into_iter().chain(2..rank as i64).collect()
}
