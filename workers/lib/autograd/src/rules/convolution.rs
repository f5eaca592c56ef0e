//! Conv and ConvTranspose. Rules as in Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (arXiv
//! 1603.07285): the gradient by the picture is the transposed convolution, the gradient by the kernel a convolution of
//! the picture with the gradient. Which operators compute them fastest was measured.

use crate::gradient_tape::{AttributeValue, GradientRefusal, GradientTape, unsupported};
use crate::onnx::{int, ints};
use crate::proto::NodeProto;
use crate::tensor;

use super::window::PoolWindow;
use super::{GradientRule, OutputGradients, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[("Conv", conv), ("ConvTranspose", conv_transpose)];

/// Matrix products with fewer rows than this are slow; an estimate.
const LEAST_ROWS: i64 = 16;

/// Kernels with this many positions, 5 x 5, are large.
const MANY_PLACES: usize = 25;

/// A convolution: from a picture `[images, ins, ...]` with a kernel `[outs, ins / group, ...]` to `[images, outs, ...]`.
struct Convolution<'a> {
    window: PoolWindow,
    group: i64,
    /// Shape of the input picture.
    from: &'a [i64],
    /// Shape of the output.
    to: &'a [i64],
}

impl Convolution<'_> {
    fn images(&self) -> i64 {
        self.from[0]
    }

    fn ins(&self) -> i64 {
        self.from[1] / self.group
    }

    fn outs(&self) -> i64 {
        self.to[1] / self.group
    }

    /// Whether each channel has kernels of its own.
    fn is_depthwise(&self) -> bool {
        self.ins() == 1 && self.group > 1
    }

    fn pixels(&self) -> i64 {
        self.to[2..].iter().product()
    }
}

fn geometry<'a>(
    node: &NodeProto,
    kernel: &[i64],
    from: &'a [i64],
    to: &'a [i64],
) -> Result<Convolution<'a>, GradientRefusal> {
    if kernel.len() < 3 || from.len() != kernel.len() || to.len() != kernel.len() {
        return unsupported("its kernel and picture have different numbers of axes");
    }
    let window = PoolWindow::of(node, &kernel[2..], &from[2..], &to[2..])?;
    Ok(Convolution { window, group: int(node, "group").unwrap_or(1), from, to })
}

fn conv(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let (picture, kernel, bias, gradient) = (input(node, 0), input(node, 1), input(node, 2), &outputs.first);
    let shape = tape.shape(kernel)?;
    let (from, to) = (tape.shape(picture)?, tape.shape(&node.output[0])?);
    let convolution = geometry(node, shape, from, to)?;
    by_bias(tape, bias, gradient, to.len());
    if tape.needs(kernel) {
        let by_kernel = by_kernel(tape, &convolution, picture, gradient, shape);
        tape.add_gradient(kernel, by_kernel);
    }
    if tape.needs(picture) {
        let by_picture = by_picture(tape, &convolution, gradient, kernel);
        tape.add_gradient(picture, by_picture);
    }
    Ok(())
}

/// `y = ConvTranspose(x, w)` is the gradient by the picture of the convolution from y to x, so its own gradients are
/// that convolution, and that convolution's gradient by the kernel.
fn conv_transpose(
    tape: &mut GradientTape<'_>,
    node: &NodeProto,
    outputs: &OutputGradients,
) -> Result<(), GradientRefusal> {
    let (picture, kernel, bias, gradient) = (input(node, 0), input(node, 1), input(node, 2), &outputs.first);
    let shape = tape.shape(kernel)?;
    let (small, large) = (tape.shape(picture)?, tape.shape(&node.output[0])?);
    if ints(node, "output_shape").is_some() {
        return unsupported("it has an output_shape instead of pads");
    }
    let convolution = geometry(node, shape, large, small)?;
    by_bias(tape, bias, gradient, large.len());
    if tape.needs(kernel) {
        let by_kernel = by_kernel(tape, &convolution, gradient, picture, shape);
        tape.add_gradient(kernel, by_kernel);
    }
    if tape.needs(picture) {
        let PoolWindow { strides, dilations, .. } = &convolution.window;
        let attributes = [
            AttributeValue::Ints("strides", strides),
            AttributeValue::Ints("dilations", dilations),
            AttributeValue::Ints("pads", &convolution.window.pads()),
            AttributeValue::Int("group", convolution.group),
        ];
        let by_picture = tape.op("Conv", &[gradient, kernel], &attributes);
        tape.add_gradient(picture, by_picture);
    }
    Ok(())
}

fn by_bias(tape: &mut GradientTape<'_>, bias: &str, gradient: &str, rank: usize) {
    if tape.needs(bias) {
        let axes: Vec<i64> = (0..rank as i64).filter(|axis| *axis != 1).collect();
        let sum = tape.sum(gradient, &axes, false);
        tape.add_gradient(bias, sum);
    }
}

/// The gradient by the kernel, in the kernel's `shape`.
fn by_kernel(
    tape: &mut GradientTape<'_>,
    convolution: &Convolution<'_>,
    picture: &str,
    gradient: &str,
    shape: &[i64],
) -> String {
    // With many positions that see few channels each, rows would be concatenated for a thin product.
    let thin = convolution.from[1] < LEAST_ROWS && convolution.window.places().len() >= MANY_PLACES;
    if convolution.group == 1 && !thin {
        by_kernel_as_matrix(tape, convolution, picture, gradient, shape)
    } else if convolution.is_depthwise() && convolution.outs() == 1 && by_places_pays(convolution) {
        by_kernel_depthwise(tape, convolution, picture, gradient, shape)
    } else {
        by_kernel_as_convolution(tape, convolution, picture, gradient, shape)
    }
}

/// Makes a row of what each kernel position sees; matrix products give the rest.
fn by_kernel_as_matrix(
    tape: &mut GradientTape<'_>,
    convolution: &Convolution<'_>,
    picture: &str,
    gradient: &str,
    shape: &[i64],
) -> String {
    let Convolution { window, from, to, .. } = convolution;
    let columns = convolution.images() * convolution.pixels();
    let rows = channels_first(tape, gradient, to);
    let picture = tape.transpose(picture, &swapped(from.len()));
    let by = [AttributeValue::Int("transB", 1)];
    if window.is_point() {
        let seen = tape.reshape(&picture, &[from[1], columns]);
        let product = tape.op("Gemm", &[&rows, &seen], &by);
        return tape.reshape(&product, shape);
    }
    let seen = seen_by_places(tape, convolution, &picture);
    // Concatenates either all inputs or all products, whichever is less.
    let product = if to[1] < columns && from[1] >= LEAST_ROWS {
        let each = |part: &String| {
            let part = tape.reshape(part, &[from[1], columns]);
            let product = tape.op("Gemm", &[&rows, &part], &by);
            tape.reshape(&product, &[to[1] * from[1], 1])
        };
        let products: Vec<String> = seen.iter().map(each).collect();
        let products: Vec<&str> = products.iter().map(String::as_str).collect();
        tape.op("Concat", &products, &[AttributeValue::Int("axis", 1)])
    } else {
        let parts: Vec<String> = seen.iter().map(|part| tape.reshape(part, &[from[1], 1, columns])).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let all = tape.op("Concat", &parts, &[AttributeValue::Int("axis", 1)]);
        let seen = tape.reshape(&all, &[from[1] * parts.len() as i64, columns]);
        tape.op("Gemm", &[&rows, &seen], &by)
    };
    tape.reshape(&product, shape)
}

/// The order of axes with images and channels swapped.
fn swapped(rank: usize) -> Vec<i64> {
    [1, 0].into_iter().chain(2..rank as i64).collect()
}

/// One row per channel, with every pixel of every image.
fn channels_first(tape: &mut GradientTape<'_>, tensor: &str, shape: &[i64]) -> String {
    let turned = tape.transpose(tensor, &swapped(shape.len()));
    tape.reshape(&turned, &[shape[1], tensor::count(shape) / shape[1]])
}

/// What each kernel position sees of a picture, in the order of the kernel's values.
fn seen_by_places(tape: &mut GradientTape<'_>, convolution: &Convolution<'_>, picture: &str) -> Vec<String> {
    let Convolution { window, to, .. } = convolution;
    let padded = tape.pad(picture, &window.pads_of_all());
    let stretch = |place: &Vec<i64>| {
        let (starts, ends) = window.seen_by(place, &to[2..]);
        tape.slice(&padded, &starts, &ends, &window.axes(), &window.strides)
    };
    window.places().iter().map(stretch).collect()
}

/// Whether sums per position are faster than a convolution: they read whole rows of the picture, which must be long
/// enough and contiguous. Measured.
fn by_places_pays(convolution: &Convolution<'_>) -> bool {
    const LEAST_PIXELS: i64 = 16;
    convolution.window.strides.iter().all(|stride| *stride == 1) && convolution.pixels() >= LEAST_PIXELS
}

/// One kernel per channel: for each position, the sum of what it sees times the gradient.
fn by_kernel_depthwise(
    tape: &mut GradientTape<'_>,
    convolution: &Convolution<'_>,
    picture: &str,
    gradient: &str,
    shape: &[i64],
) -> String {
    let Convolution { window, to, .. } = convolution;
    let axes: Vec<i64> = [0].into_iter().chain(window.axes()).collect();
    let mut sums = Vec::new();
    for part in seen_by_places(tape, convolution, picture) {
        let product = tape.mul(&part, gradient);
        let sum = tape.sum(&product, &axes, false);
        sums.push(tape.reshape(&sum, &[to[1], 1]));
    }
    let sums: Vec<&str> = sums.iter().map(String::as_str).collect();
    let all = tape.op("Concat", &sums, &[AttributeValue::Int("axis", 1)]);
    tape.reshape(&all, shape)
}

/// For any group: a convolution of the picture by the gradient, with images and channels swapped, and strides and
/// dilations too.
fn by_kernel_as_convolution(
    tape: &mut GradientTape<'_>,
    convolution: &Convolution<'_>,
    picture: &str,
    gradient: &str,
    shape: &[i64],
) -> String {
    let Convolution { window, group, from, to } = convolution;
    let (images, ins, outs) = (convolution.images(), convolution.ins(), convolution.outs());
    let spatial: Vec<i64> = (3..from.len() as i64 + 1).collect();
    let grouped = |channels: i64, size: &[i64]| [&[images, *group, channels], size].concat();
    let parts = tape.reshape(picture, &grouped(ins, &from[2..]));
    let turned = tape.transpose(&parts, &[&[2, 1, 0], spatial.as_slice()].concat());
    let picture = tape.reshape(&turned, &[&[ins, group * images], &from[2..]].concat());
    let parts = tape.reshape(gradient, &grouped(outs, &to[2..]));
    let turned = tape.transpose(&parts, &[&[1, 2, 0], spatial.as_slice()].concat());
    let gradient = tape.reshape(&turned, &[&[to[1], images], &to[2..]].concat());
    let attributes = [
        AttributeValue::Ints("strides", &window.dilations),
        AttributeValue::Ints("dilations", &window.strides),
        AttributeValue::Ints("pads", &window.pads()),
        AttributeValue::Int("group", *group),
    ];
    let all = tape.op("Conv", &[&picture, &gradient], &attributes);
    // Rows that no window reached make it larger.
    let zeros = vec![0; window.rank()];
    let own = tape.slice(&all, &zeros, &window.kernel, &window.axes(), &vec![1; window.rank()]);
    let turned = tape.transpose(&own, &swapped(from.len()));
    tape.reshape(&turned, shape)
}

fn by_picture(tape: &mut GradientTape<'_>, convolution: &Convolution<'_>, gradient: &str, kernel: &str) -> String {
    let Convolution { window, group, from, to } = convolution;
    let order = swapped(from.len());
    if window.is_point() && *group == 1 {
        let turned = tape.transpose(kernel, &order);
        return tape.op("Conv", &[gradient, &turned], &[]);
    }
    let fits = (0..window.rank()).all(|axis| {
        let most = window.kernel[axis] - 1;
        window.begins[axis] <= most && window.ends[axis] <= most
    });
    let one_each = convolution.is_depthwise() && convolution.outs() == 1;
    if window.is_plain() && fits && (*group == 1 || one_each) {
        // A convolution with the rotated kernel is faster than a transposed one.
        let back = vec![-1; window.rank()];
        let flipped = tape.slice(kernel, &back, &vec![i64::MIN; window.rank()], &window.axes(), &back);
        let turned = if *group == 1 { tape.transpose(&flipped, &order) } else { flipped };
        let pad =
            |pads: &[i64]| (0..window.rank()).map(|axis| window.kernel[axis] - 1 - pads[axis]).collect::<Vec<_>>();
        let pads = [pad(&window.begins), pad(&window.ends)].concat();
        return tape.op(
            "Conv",
            &[gradient, &turned],
            &[AttributeValue::Ints("pads", &pads), AttributeValue::Int("group", *group)],
        );
    }
    let attributes = [
        AttributeValue::Ints("strides", &window.strides),
        AttributeValue::Ints("dilations", &window.dilations),
        AttributeValue::Ints("pads", &window.pads()),
        AttributeValue::Ints("output_padding", &window.remainder(&from[2..], &to[2..])),
        AttributeValue::Int("group", *group),
    ];
    tape.op("ConvTranspose", &[gradient, kernel], &attributes)
}
