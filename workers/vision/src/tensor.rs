//! Tensor: upright pixels in, the numbers a model expects out.
//!
//! Fits the picture to the model's input (averaging over the pixels it shrinks away), puts the
//! channels in the model's order and scales them, all into a buffer the caller owns. Pure.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use schemas::model::{Channels, Filter, InputDescription, Layout, Resize};

use crate::decode::Pixels;

/// Why pixels could not become a tensor. Always ours: pixels from [`crate::decode`] and a
/// description from [`crate::model`] never meet it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The buffer given is not the size of one input.
    #[error("tensor buffer holds {actual_len} numbers, the model's input is {expected_len}")]
    WrongLength {
        /// Numbers the model expects.
        expected_len: usize,
        /// Numbers the buffer holds.
        actual_len: usize,
    },
    /// Pixels that contradict their own width and height, or sizes out of range.
    #[error("image of {width_px}x{height_px} pixels cannot be resized: {why}")]
    Unfit {
        /// Width of the picture.
        width_px: u32,
        /// Height of the picture.
        height_px: u32,
        /// The resizer's words.
        why: String,
    },
}

/// Buffers kept between images.
#[derive(Debug, Default)]
pub struct Scratch {
    resizer: Resizer,
    resized: Vec<u8>,
    framed: Vec<u8>,
}

/// How many numbers one image becomes.
pub fn len(input: &InputDescription) -> usize {
    input.width_px as usize * input.height_px as usize * input.channels.count()
}

/// Writes one image as `input` describes it; `out` holds exactly [`len`] numbers.
pub fn write(
    pixels: &Pixels,
    input: &InputDescription,
    scratch: &mut Scratch,
    out: &mut [f32],
) -> Result<(), TensorError> {
    let expected_len = len(input);
    if out.len() != expected_len {
        return Err(TensorError::WrongLength { expected_len, actual_len: out.len() });
    }
    let place = Place::of(pixels, input);
    let Scratch { resizer, resized, framed } = scratch;
    let mut rgb: &[u8] = &pixels.rgb;
    if !place.is_identity(pixels) {
        resize(pixels, &place, input.filter, resizer, resized)?;
        rgb = resized;
    }
    if (place.width_px, place.height_px) != (input.width_px, input.height_px) {
        frame(rgb, &place, input, framed);
        rgb = framed;
    }
    normalize(rgb, input, out);
    Ok(())
}

/// Which part of the picture goes where in the input.
#[derive(Debug, PartialEq)]
struct Place {
    /// Left, top, width and height of the part taken, in the picture's pixels.
    part: (f64, f64, f64, f64),
    /// Size it becomes.
    width_px: u32,
    height_px: u32,
}

impl Place {
    fn of(pixels: &Pixels, input: &InputDescription) -> Self {
        let (from_w, from_h) = (f64::from(pixels.width_px), f64::from(pixels.height_px));
        let (to_w, to_h) = (f64::from(input.width_px), f64::from(input.height_px));
        let whole = (0.0, 0.0, from_w, from_h);
        match input.resize {
            Resize::Stretch => Self { part: whole, width_px: input.width_px, height_px: input.height_px },
            Resize::Crop => {
                let short = f64::from(input.resize_px.unwrap_or(input.width_px.max(input.height_px)));
                let ratio = short / from_w.min(from_h);
                // Whole pixels, rounded down as torchvision does, so that the same pixels are seen.
                let (all_w, all_h) = ((from_w * ratio + 1e-6).floor(), (from_h * ratio + 1e-6).floor());
                let (left, top) = (((all_w - to_w) / 2.0).round().max(0.0), ((all_h - to_h) / 2.0).round().max(0.0));
                let (step_x, step_y) = (from_w / all_w, from_h / all_h);
                let (width, height) = (to_w.min(all_w) * step_x, to_h.min(all_h) * step_y);
                let part = (left * step_x, top * step_y, width.min(from_w), height.min(from_h));
                Self { part, width_px: input.width_px, height_px: input.height_px }
            }
            Resize::Pad => {
                let ratio = (to_w / from_w).min(to_h / from_h);
                let fit = |from: f64, to: u32| ((from * ratio).round() as u32).clamp(1, to);
                Self { part: whole, width_px: fit(from_w, input.width_px), height_px: fit(from_h, input.height_px) }
            }
        }
    }

    fn is_identity(&self, pixels: &Pixels) -> bool {
        let whole = (0.0, 0.0, f64::from(pixels.width_px), f64::from(pixels.height_px));
        self.part == whole && (self.width_px, self.height_px) == (pixels.width_px, pixels.height_px)
    }
}

fn resize(
    pixels: &Pixels,
    place: &Place,
    filter: Filter,
    resizer: &mut Resizer,
    resized: &mut Vec<u8>,
) -> Result<(), TensorError> {
    let Pixels { width_px, height_px, .. } = *pixels;
    let unfit = |why: String| TensorError::Unfit { width_px, height_px, why };
    let algorithm = match filter {
        Filter::Nearest => ResizeAlg::Nearest,
        Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Filter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
    };
    let (left, top, width, height) = place.part;
    let options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false).crop(left, top, width, height);
    resized.resize(place.width_px as usize * place.height_px as usize * 3, 0);
    let from =
        ImageRef::new(width_px, height_px, &pixels.rgb, PixelType::U8x3).map_err(|error| unfit(error.to_string()))?;
    let mut to = Image::from_slice_u8(place.width_px, place.height_px, resized, PixelType::U8x3)
        .map_err(|error| unfit(error.to_string()))?;
    resizer.resize(&from, &mut to, &options).map_err(|error| unfit(error.to_string()))
}

/// Puts a smaller picture into the middle of a black one.
fn frame(rgb: &[u8], place: &Place, input: &InputDescription, framed: &mut Vec<u8>) {
    let (row, line) = (place.width_px as usize * 3, input.width_px as usize * 3);
    let left = (input.width_px - place.width_px) as usize / 2 * 3;
    let top = (input.height_px - place.height_px) as usize / 2;
    framed.clear();
    framed.resize(line * input.height_px as usize, 0);
    for (from, to) in rgb.chunks_exact(row).zip(framed.chunks_exact_mut(line).skip(top)) {
        to[left..left + row].copy_from_slice(from);
    }
}

/// `(pixel * scale - mean) / std`, as one multiplication and one addition a number.
fn normalize(rgb: &[u8], input: &InputDescription, out: &mut [f32]) {
    let term = |channel: usize| {
        let mean = input.mean.get(channel).copied().unwrap_or(0.0);
        let std = input.std.get(channel).copied().unwrap_or(1.0);
        (input.scale / std, -mean / std)
    };
    match (input.channels, input.layout) {
        (Channels::Gray, _) => {
            let (factor, offset) = term(0);
            for (pixel, value) in rgb.chunks_exact(3).zip(out) {
                *value = f32::from(luma(pixel)) * factor + offset;
            }
        }
        (Channels::Rgb, Layout::Nchw) => planes::<0, 1, 2>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Bgr, Layout::Nchw) => planes::<2, 1, 0>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Rgb, Layout::Nhwc) => pixels::<0, 1, 2>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Bgr, Layout::Nhwc) => pixels::<2, 1, 0>(rgb, [term(0), term(1), term(2)], out),
    }
}

/// ITU-R 601 in the 16-bit integers Pillow uses; grey stays what it is.
fn luma(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

/// The order is a constant, so that the compiler sees fixed offsets and vectorises the loop.
fn planes<const A: usize, const B: usize, const C: usize>(rgb: &[u8], terms: [(f32, f32); 3], out: &mut [f32]) {
    let (first, rest) = out.split_at_mut(out.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let [(fa, oa), (fb, ob), (fc, oc)] = terms;
    for (((pixel, a), b), c) in rgb.chunks_exact(3).zip(first).zip(second).zip(third) {
        *a = f32::from(pixel[A]) * fa + oa;
        *b = f32::from(pixel[B]) * fb + ob;
        *c = f32::from(pixel[C]) * fc + oc;
    }
}

fn pixels<const A: usize, const B: usize, const C: usize>(rgb: &[u8], terms: [(f32, f32); 3], out: &mut [f32]) {
    let [(fa, oa), (fb, ob), (fc, oc)] = terms;
    for (pixel, value) in rgb.chunks_exact(3).zip(out.chunks_exact_mut(3)) {
        value[0] = f32::from(pixel[A]) * fa + oa;
        value[1] = f32::from(pixel[B]) * fb + ob;
        value[2] = f32::from(pixel[C]) * fc + oc;
    }
}
