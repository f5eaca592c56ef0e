//! Convolutions of few pixels and many channels as products of matrices, inside the step: what each place of the kernel
//! sees becomes a row, for all images together. A runtime convolves image by image, which is slow where an image has fewer
//! pixels than its kernel has rows; and the gradient by the kernel needs the same rows anyway.

use std::collections::HashSet;

use crate::known::{Known, Values};
use crate::onnx::int;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::rules::Window;
use crate::tape::Attr;
use crate::tensor;

/// Unfolds every convolution that is differentiated and that it pays for. What it writes becomes known.
pub(crate) fn unfold(graph: &mut GraphProto, needed: &HashSet<String>, known: &mut Known) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let is_needed = node.output.first().is_some_and(|output| needed.contains(output));
        let geometry = if is_needed { Geometry::of(&node, known) } else { None };
        match geometry.filter(Geometry::pays) {
            None => nodes.push(node),
            Some(geometry) => {
                let mut unfolded = Unfolded { node: &node, nodes: Vec::new(), constants: Vec::new(), known };
                unfolded.write(&geometry);
                let Unfolded { nodes: new, constants, .. } = unfolded;
                nodes.extend(new);
                graph.initializer.extend(constants);
            }
        }
    }
    graph.node = nodes;
}

/// What a convolution goes from and to.
struct Geometry {
    window: Window,
    from: Vec<i64>,
    to: Vec<i64>,
}

impl Geometry {
    fn of(node: &NodeProto, known: &Known) -> Option<Self> {
        if node.op_type() != "Conv" || int(node, "group").unwrap_or(1) != 1 {
            return None;
        }
        let shape = |name: Option<&String>| known.shape(name?).ok();
        let (from, kernel) = (shape(node.input.first())?, shape(node.input.get(1))?);
        let to = shape(node.output.first())?;
        if kernel.len() < 3 || from.len() != kernel.len() || to.len() != kernel.len() {
            return None;
        }
        let window = Window::of(node, &kernel[2..], &from[2..], &to[2..]).ok()?;
        Some(Self { window, from: from.to_vec(), to: to.to_vec() })
    }

    /// Pixels of all images that come out.
    fn columns(&self) -> i64 {
        self.from[0] * tensor::count(&self.to[2..])
    }

    fn pays(&self) -> bool {
        !self.window.is_point() && self.columns() < self.to[1]
    }
}

struct Unfolded<'a> {
    node: &'a NodeProto,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    known: &'a mut Known,
}

impl Unfolded<'_> {
    fn write(&mut self, geometry: &Geometry) {
        let Geometry { window, from, to } = geometry;
        let [picture, kernel] = [0, 1].map(|place| self.node.input[place].clone());
        let columns = geometry.columns();
        let swapped: Vec<i64> = [1, 0].into_iter().chain(2..from.len() as i64).collect();
        let order = [Attr::Ints("perm", &swapped)];
        let mut shape = from.clone();
        shape.swap(0, 1);
        let mut seen = self.op("Transpose", "channels_first", &[&picture], &order, &shape);
        if window.is_padded() {
            for (axis, size) in shape[2..].iter_mut().enumerate() {
                *size += window.begins[axis] + window.ends[axis];
            }
            let pads = self.ints("pads", &window.pads_of_all());
            seen = self.op("Pad", "padded", &[&seen, &pads], &[], &shape);
        }
        let mut rows = Vec::new();
        let part: Vec<i64> = [&[from[1], from[0]], &to[2..]].concat();
        let (axes, steps) = (self.ints("axes", &window.axes()), self.ints("steps", &window.strides));
        let row = self.ints("row", &[from[1], 1, columns]);
        for (number, place) in window.places().iter().enumerate() {
            let (starts, ends) = window.seen_by(place, &to[2..]);
            let starts = self.ints(&format!("starts_{number}"), &starts);
            let ends = self.ints(&format!("ends_{number}"), &ends);
            let inputs = [seen.as_str(), &starts, &ends, &axes, &steps];
            let part = self.op("Slice", &format!("seen_{number}"), &inputs, &[], &part);
            rows.push(self.op("Reshape", &format!("row_{number}"), &[&part, &row], &[], &[from[1], 1, columns]));
        }
        let places = rows.len() as i64;
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let all = self.op("Concat", "rows", &rows, &[Attr::Int("axis", 1)], &[from[1], places, columns]);
        let matrix = self.ints("matrix", &[from[1] * places, columns]);
        let all = self.op("Reshape", "all_rows", &[&all, &matrix], &[], &[from[1] * places, columns]);
        let flat = self.ints("flat", &[to[1], from[1] * places]);
        let kernel = self.op("Reshape", "kernel_matrix", &[&kernel, &flat], &[], &[to[1], from[1] * places]);
        let product = match self.node.input.get(2).filter(|bias| !bias.is_empty()).cloned() {
            Some(bias) => {
                let column = self.ints("column", &[to[1], 1]);
                let bias = self.op("Reshape", "bias_column", &[&bias, &column], &[], &[to[1], 1]);
                self.op("Gemm", "product", &[&kernel, &all, &bias], &[], &[to[1], columns])
            }
            None => self.op("Gemm", "product", &[&kernel, &all], &[], &[to[1], columns]),
        };
        let shape = [&[to[1], to[0]], &to[2..]].concat();
        let apart = self.ints("apart", &shape);
        let apart = self.op("Reshape", "product_apart", &[&product, &apart], &[], &shape);
        let output = self.node.output[0].clone();
        self.op_into("Transpose", &output, &[&apart], &order, to);
    }

    fn name(&self, what: &str) -> String {
        format!("{}/{what}", self.node.output[0])
    }

    fn ints(&mut self, what: &str, values: &[i64]) -> String {
        let name = self.name(what);
        let shape = [values.len() as i64];
        self.constants.push(tensor::ints(&name, &shape, values));
        self.known.add(&name, shape.to_vec(), Values::Ints(values.to_vec()));
        name
    }

    fn op(&mut self, op: &str, what: &str, inputs: &[&str], attributes: &[Attr<'_>], shape: &[i64]) -> String {
        let output = self.name(what);
        self.op_into(op, &output, inputs, attributes, shape);
        output
    }

    fn op_into(&mut self, op: &str, output: &str, inputs: &[&str], attributes: &[Attr<'_>], shape: &[i64]) {
        self.nodes.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(output.into()),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.into()],
            attribute: attributes.iter().map(Into::into).collect(),
            ..NodeProto::default()
        });
        self.known.add(output, shape.to_vec(), Values::Floats(Vec::new()));
    }
}
