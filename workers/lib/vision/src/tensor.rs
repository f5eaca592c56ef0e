//! Converts upright pixels to a model's input numbers.
//!
//! Fits the picture to the input (averaging when it shrinks), orders the channels and scales them, into a buffer of the
//! caller. Pure.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use schemas::model::{Channels, CropOffset, Filter, InputDescription, Layout, PadPlace, ResizeMode};

use crate::decode::Pixels;

/// A small picture is enlarged to at most this many pixels before its centre is cropped; an ordinary one needs a tenth
/// of it. An estimate.
const MAX_ENLARGED_PX: u64 = 4_000_000;

/// Why pixels could not become a tensor. Always a bug: pixels from [`mod@crate::decode`] and a description from
/// [`crate::model`] never cause it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The buffer does not have the size of one input.
    #[error("tensor buffer has {actual_len} numbers, the model's input has {expected_len}")]
    WrongLength {
        /// Numbers the model expects.
        expected_len: usize,
        /// Numbers in the buffer.
        actual_len: usize,
    },
    /// The pixels contradict their width and height, or sizes are out of range.
    #[error("could not resize an image of {width_px}x{height_px} pixels: {why}")]
    Unfit {
        /// Width of the picture.
        width_px: u32,
        /// Height of the picture.
        height_px: u32,
        /// Error of the resizer.
        why: String,
    },
}

/// Buffers reused between images.
#[derive(Debug, Default)]
pub struct Scratch {
    resizer: Resizer,
    window: Vec<u8>,
    resized: Vec<u8>,
    framed: Vec<u8>,
}

/// Numbers per image.
pub fn len(input: &InputDescription) -> usize {
    input.width_px as usize * input.height_px as usize * input.channels.count()
}

/// The shape of a batch, in the order of axes that `input` describes.
pub fn shape(input: &InputDescription, images: usize) -> [usize; 4] {
    let (width, height) = (input.width_px as usize, input.height_px as usize);
    let channels = input.channels.count();
    match input.layout {
        Layout::Nchw => [images, channels, height, width],
        Layout::Nhwc => [images, height, width, channels],
    }
}

/// Writes one image as `input` describes it; `out` must have exactly [`len`] numbers.
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
    let place = CropPlacement::of(pixels, input);
    let Scratch { resizer, window, resized, framed } = scratch;
    let mut picture = SourcePicture { width_px: pixels.width_px, height_px: pixels.height_px, rgb: &pixels.rgb };
    if let Some(middle) = place.middle {
        cut(picture, middle, window);
        picture = SourcePicture { width_px: middle.width_px, height_px: middle.height_px, rgb: window };
    }
    if !place.is_identity(picture) {
        resize(picture, &place, (input.filter, input.antialias), resizer, resized)?;
        picture = SourcePicture { width_px: place.width_px, height_px: place.height_px, rgb: resized };
    }
    if let Some(part) = place.cut {
        cut(picture, part, framed);
        picture = SourcePicture { width_px: part.width_px, height_px: part.height_px, rgb: framed };
    } else if (picture.width_px, picture.height_px) != (input.width_px, input.height_px) {
        frame(picture, input, framed);
        picture.rgb = framed;
    }
    normalize(picture.rgb, input, out);
    Ok(())
}

#[derive(Clone, Copy)]
struct SourcePicture<'a> {
    width_px: u32,
    height_px: u32,
    rgb: &'a [u8],
}

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PixelRegion {
    left_px: u32,
    top_px: u32,
    width_px: u32,
    height_px: u32,
}

/// Which part of the picture goes where in the input.
#[derive(Debug, PartialEq)]
struct CropPlacement {
    /// Cut out before the resize: the part needed of a picture many times longer than wide.
    middle: Option<PixelRegion>,
    /// Left, top, width and height of the part that is resized, in the picture's pixels; absent: all of it.
    taken: Option<(f64, f64, f64, f64)>,
    /// Size after the resize.
    width_px: u32,
    height_px: u32,
    /// Cut out after the resize.
    cut: Option<PixelRegion>,
}

impl CropPlacement {
    fn of(pixels: &Pixels, input: &InputDescription) -> Self {
        let whole = |width_px, height_px| Self { middle: None, taken: None, width_px, height_px, cut: None };
        match input.resize {
            ResizeMode::Stretch => match input.resize_px {
                Some(side_px) => Self::centre_of_square(side_px, input),
                None => whole(input.width_px, input.height_px),
            },
            ResizeMode::Crop => Self::centre(pixels, input),
            ResizeMode::Pad => {
                let (width_px, height_px) = padded_size((pixels.width_px, pixels.height_px), input);
                whole(width_px, height_px)
            }
        }
    }

    /// Resizes the short side to `resize_px`, then takes the centre. Sizes are rounded down and offsets rounded, as in
    /// torchvision, so that the same pixels are seen.
    fn centre(pixels: &Pixels, input: &InputDescription) -> Self {
        let short_px = input.resize_px.unwrap_or(0).max(input.width_px).max(input.height_px);
        let (width_px, height_px) = (u64::from(pixels.width_px), u64::from(pixels.height_px));
        let scaled = |side: u64| (side * u64::from(short_px) / width_px.min(height_px)).max(u64::from(short_px));
        let (all_w, all_h) = (scaled(width_px), scaled(height_px));
        let start = |all: u64, to: u32| start(all, to, input.crop_offset);
        let (left, top) = (start(all_w, input.width_px), start(all_h, input.height_px));
        let (step_x, step_y) = (width_px as f64 / all_w as f64, height_px as f64 / all_h as f64);
        if step_x >= 1.0 && step_y >= 1.0 {
            // One step: only the visible part is computed.
            let size = (f64::from(input.width_px) * step_x, f64::from(input.height_px) * step_y);
            let (left, top) = ((left * step_x).max(0.0), (top * step_y).max(0.0));
            let size = (size.0.min(width_px as f64 - left), size.1.min(height_px as f64 - top));
            let taken = Some((left, top, size.0, size.1));
            return Self { middle: None, taken, width_px: input.width_px, height_px: input.height_px, cut: None };
        }
        // fast_image_resize 6.1 may read beyond its buffer when it enlarges a part: where a bicubic weight is exactly
        // zero, it drops a column from its first bound that the second needs. Enlarging a whole picture is safe, so it
        // is cut afterwards.
        if all_w * all_h > MAX_ENLARGED_PX {
            return Self::centre_of_a_strip(pixels, input, short_px);
        }
        let (left_px, top_px) = (left as u32, top as u32);
        let part = PixelRegion { left_px, top_px, width_px: input.width_px, height_px: input.height_px };
        Self { middle: None, taken: None, width_px: all_w as u32, height_px: all_h as u32, cut: Some(part) }
    }

    /// Resizes all of it to a square, then takes the centre.
    fn centre_of_square(side_px: u32, input: &InputDescription) -> Self {
        let start = |to| start(u64::from(side_px), to, input.crop_offset) as u32;
        let (left_px, top_px) = (start(input.width_px), start(input.height_px));
        let part = PixelRegion { left_px, top_px, width_px: input.width_px, height_px: input.height_px };
        Self { middle: None, taken: None, width_px: side_px, height_px: side_px, cut: Some(part) }
    }

    /// For a strip that would become huge, only a square in the middle is enlarged.
    fn centre_of_a_strip(pixels: &Pixels, input: &InputDescription, short_px: u32) -> Self {
        let side_px = pixels.width_px.min(pixels.height_px);
        let square = |left_px, top_px| PixelRegion { left_px, top_px, width_px: side_px, height_px: side_px };
        let middle = square((pixels.width_px - side_px) / 2, (pixels.height_px - side_px) / 2);
        let (left_px, top_px) = ((short_px - input.width_px) / 2, (short_px - input.height_px) / 2);
        let part = PixelRegion { left_px, top_px, width_px: input.width_px, height_px: input.height_px };
        Self { middle: Some(middle), taken: None, width_px: short_px, height_px: short_px, cut: Some(part) }
    }

    fn is_identity(&self, picture: SourcePicture<'_>) -> bool {
        self.taken.is_none() && (self.width_px, self.height_px) == (picture.width_px, picture.height_px)
    }
}

/// Size of a picture that is padded to the input: its long side fills it.
pub(crate) fn padded_size((width_px, height_px): (u32, u32), input: &InputDescription) -> (u32, u32) {
    let (width, height) = (f64::from(width_px), f64::from(height_px));
    let ratio = (f64::from(input.width_px) / width).min(f64::from(input.height_px) / height);
    let fit = |from: f64, to: u32| ((from * ratio).round() as u32).clamp(1, to);
    (fit(width, input.width_px), fit(height, input.height_px))
}

/// Left and top of a padded picture of this size in the input.
pub(crate) fn pad_offset((width_px, height_px): (u32, u32), input: &InputDescription) -> (u32, u32) {
    match input.pad_place {
        PadPlace::Center => {
            (input.width_px.saturating_sub(width_px) / 2, input.height_px.saturating_sub(height_px) / 2)
        }
        PadPlace::TopLeft => (0, 0),
    }
}

/// Where a centre of `to` pixels begins.
fn start(all: u64, to: u32, offset: CropOffset) -> f64 {
    let half = (all as f64 - f64::from(to)) / 2.0;
    match offset {
        CropOffset::Nearest => half.round_ties_even(),
        CropOffset::Down => half.floor(),
    }
}

fn resize(
    picture: SourcePicture<'_>,
    place: &CropPlacement,
    (filter, antialias): (Filter, bool),
    resizer: &mut Resizer,
    resized: &mut Vec<u8>,
) -> Result<(), TensorError> {
    let SourcePicture { width_px, height_px, rgb } = picture;
    let unfit = |why: String| TensorError::Unfit { width_px, height_px, why };
    let algorithm = match filter {
        Filter::Nearest => ResizeAlg::Nearest,
        Filter::Bilinear if !antialias => ResizeAlg::Interpolation(FilterType::Bilinear),
        Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Filter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
    };
    let mut options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
    if let Some((left, top, width, height)) = place.taken {
        options = options.crop(left, top, width, height);
    }
    resized.resize(place.width_px as usize * place.height_px as usize * 3, 0);
    // With the type of pixels named, the code for the twelve others is never compiled: 3 MB of the program.
    let from =
        TypedImageRef::<U8x3>::from_buffer(width_px, height_px, rgb).map_err(|error| unfit(error.to_string()))?;
    let mut to = TypedImage::<U8x3>::from_buffer(place.width_px, place.height_px, resized)
        .map_err(|error| unfit(error.to_string()))?;
    resizer.resize_typed(&from, &mut to, &options).map_err(|error| unfit(error.to_string()))
}

/// Copies a part of a picture.
fn cut(picture: SourcePicture<'_>, part: PixelRegion, to: &mut Vec<u8>) {
    let (line, row) = (picture.width_px as usize * 3, part.width_px as usize * 3);
    let left = part.left_px as usize * 3;
    to.clear();
    for from in picture.rgb.chunks_exact(line).skip(part.top_px as usize).take(part.height_px as usize) {
        to.extend_from_slice(from.get(left..left + row).unwrap_or_default());
    }
}

/// Puts a smaller picture into one of a single colour.
fn frame(picture: SourcePicture<'_>, input: &InputDescription, framed: &mut Vec<u8>) {
    let (row, line) = (picture.width_px as usize * 3, input.width_px as usize * 3);
    let (left_px, top_px) = pad_offset((picture.width_px, picture.height_px), input);
    let (left, top) = (left_px as usize * 3, top_px as usize);
    framed.clear();
    framed.resize(line * input.height_px as usize, input.pad_value);
    for (from, to) in picture.rgb.chunks_exact(row).zip(framed.chunks_exact_mut(line).skip(top)) {
        to.iter_mut().skip(left).zip(from).for_each(|(to, from)| *to = *from);
    }
}

/// `(pixel * scale - mean) / std`, as one multiplication and one addition per number.
fn normalize(rgb: &[u8], input: &InputDescription, out: &mut [f32]) {
    let term = |channel: usize| {
        let mean = input.mean.get(channel).copied().unwrap_or(0.0);
        let std = input.std.get(channel).copied().unwrap_or(1.0);
        (input.scale / std, -mean / std)
    };
    match (input.channels, input.layout) {
        (Channels::Gray, _) => {
            let (factor, offset) = term(0);
            for (pixel, value) in rgb.as_chunks::<3>().0.iter().zip(out) {
                *value = f32::from(luma(*pixel)) * factor + offset;
            }
        }
        (Channels::Rgb, Layout::Nchw) => planes::<0, 1, 2>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Bgr, Layout::Nchw) => planes::<2, 1, 0>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Rgb, Layout::Nhwc) => pixels::<0, 1, 2>(rgb, [term(0), term(1), term(2)], out),
        (Channels::Bgr, Layout::Nhwc) => pixels::<2, 1, 0>(rgb, [term(0), term(1), term(2)], out),
    }
}

/// ITU-R 601 in the 16-bit integers that Pillow uses; grey stays unchanged.
pub(crate) fn luma(pixel: [u8; 3]) -> u8 {
    let [red, green, blue] = pixel.map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

/// The order is a constant, so that the compiler sees fixed offsets and vectorizes the loop.
#[expect(clippy::indexing_slicing, reason = "the order is a constant below 3")]
fn planes<const A: usize, const B: usize, const C: usize>(rgb: &[u8], terms: [(f32, f32); 3], out: &mut [f32]) {
    let (first, rest) = out.split_at_mut(out.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let [(fa, oa), (fb, ob), (fc, oc)] = terms;
    for (((pixel, a), b), c) in rgb.as_chunks::<3>().0.iter().zip(first).zip(second).zip(third) {
        *a = f32::from(pixel[A]) * fa + oa;
        *b = f32::from(pixel[B]) * fb + ob;
        *c = f32::from(pixel[C]) * fc + oc;
    }
}

#[expect(clippy::indexing_slicing, reason = "the order is a constant below 3")]
fn pixels<const A: usize, const B: usize, const C: usize>(rgb: &[u8], terms: [(f32, f32); 3], out: &mut [f32]) {
    let [(fa, oa), (fb, ob), (fc, oc)] = terms;
    for (pixel, value) in rgb.as_chunks::<3>().0.iter().zip(out.as_chunks_mut::<3>().0) {
        value[0] = f32::from(pixel[A]) * fa + oa;
        value[1] = f32::from(pixel[B]) * fb + ob;
        value[2] = f32::from(pixel[C]) * fc + oc;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decode::{DecodeSettings, decode};
    use proptest::prelude::*;

    pub(crate) fn input(width_px: u32, height_px: u32, channels: Channels) -> InputDescription {
        let count = channels.count();
        InputDescription {
            name: "input".to_owned(),
            width_px,
            height_px,
            channels,
            layout: Layout::Nchw,
            scale: 1.0,
            mean: vec![0.0; count],
            std: vec![1.0; count],
            resize: ResizeMode::Stretch,
            resize_px: None,
            crop_offset: CropOffset::default(),
            filter: Filter::Bilinear,
            antialias: true,
            pad_value: 0,
            pad_place: PadPlace::Center,
            source_size: None,
        }
    }

    fn written(pixels: &Pixels, input: &InputDescription) -> Vec<f32> {
        let mut out = vec![f32::NAN; len(input)];
        write(pixels, input, &mut Scratch::default(), &mut out).unwrap();
        out
    }

    fn picture(name: &str) -> Pixels {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
        decode(&std::fs::read(path).unwrap(), &DecodeSettings::default()).unwrap()
    }

    fn two_pixels() -> Pixels {
        Pixels { width_px: 2, height_px: 1, rgb: vec![10, 20, 30, 40, 50, 60] }
    }

    #[test]
    fn channels_and_axes_take_the_order_described() {
        let orders = [
            (Channels::Rgb, Layout::Nchw, [10.0, 40.0, 20.0, 50.0, 30.0, 60.0]),
            (Channels::Bgr, Layout::Nchw, [30.0, 60.0, 20.0, 50.0, 10.0, 40.0]),
            (Channels::Rgb, Layout::Nhwc, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
            (Channels::Bgr, Layout::Nhwc, [30.0, 20.0, 10.0, 60.0, 50.0, 40.0]),
        ];
        for (channels, layout, expected) in orders {
            let input = InputDescription { layout, ..input(2, 1, channels) };
            assert_eq!(written(&two_pixels(), &input), expected, "{channels:?} {layout:?}");
        }
    }

    #[test]
    fn mean_and_deviation_follow_the_order_of_the_channels() {
        let mut input = input(2, 1, Channels::Bgr);
        (input.scale, input.mean, input.std) = (0.5, vec![1.0, 2.0, 3.0], vec![1.0, 2.0, 4.0]);
        let expected = [14.0, 29.0, 4.0, 11.5, 0.5, 4.25];
        for (actual, expected) in written(&two_pixels(), &input).iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-5, "{actual} {expected}");
        }
    }

    #[test]
    fn grey_stays_what_it_is() {
        let rgb: Vec<u8> = (0..=255).flat_map(|value| [value; 3]).collect();
        let pixels = Pixels { width_px: 256, height_px: 1, rgb };
        let expected: Vec<f32> = (0..=255_u8).map(f32::from).collect();
        assert_eq!(written(&pixels, &input(256, 1, Channels::Gray)), expected);
    }

    /// Mean and largest difference from a picture made by Pillow, in grey levels.
    fn assert_close(input: &InputDescription, reference: &str) {
        let expected = picture(reference);
        let plain = InputDescription { resize: ResizeMode::Stretch, resize_px: None, ..input.clone() };
        let expected = written(&expected, &plain);
        let actual = written(&picture("fit_source.png"), input);
        let apart: Vec<f32> = actual.iter().zip(expected).map(|(actual, expected)| (actual - expected).abs()).collect();
        let worst = apart.iter().copied().fold(0.0, f32::max);
        let mean = apart.iter().sum::<f32>() / apart.len() as f32;
        // Both round to whole levels between their two passes, but one goes across first, the other down.
        assert!(worst <= 2.0 && mean <= 0.5, "{reference}: worst {worst}, mean {mean}");
    }

    #[test]
    fn filters_agree_with_pillow() {
        let filters = [(Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic"), (Filter::Lanczos, "lanczos")];
        for (filter, name) in filters {
            let input = InputDescription { filter, ..input(32, 24, Channels::Rgb) };
            assert_close(&input, &format!("fit_{name}_32x24.png"));
        }
    }

    #[test]
    fn grey_agrees_with_pillow() {
        assert_close(&input(32, 24, Channels::Gray), "fit_grey_32x24.png");
    }

    #[test]
    fn the_centre_cut_out_agrees_with_torchvision() {
        for (short_px, name) in [(40, "fit_crop_32x32.png"), (120, "fit_crop_large_32x32.png")] {
            let mut input = input(32, 32, Channels::Rgb);
            (input.resize, input.resize_px) = (ResizeMode::Crop, Some(short_px));
            assert_close(&input, name);
        }
    }

    #[test]
    fn a_strip_is_not_enlarged_whole() {
        let pixels = Pixels { width_px: 16_000, height_px: 1, rgb: vec![9; 48_000] };
        let mut input = input(224, 224, Channels::Rgb);
        (input.resize, input.filter) = (ResizeMode::Crop, Filter::Bicubic);
        let place = CropPlacement::of(&pixels, &input);
        assert_eq!((place.width_px, place.height_px), (224, 224));
        assert!(written(&pixels, &input).iter().all(|value| *value == 9.0));
    }

    #[test]
    fn padding_is_black_and_around_the_middle() {
        let pixels = Pixels { width_px: 4, height_px: 2, rgb: vec![200; 24] };
        let mut input = input(4, 4, Channels::Gray);
        (input.resize, input.mean) = (ResizeMode::Pad, vec![100.0]);
        let (black, white) = ([-100.0; 4], [100.0; 4]);
        assert_eq!(written(&pixels, &input), [black, white, white, black].concat());
    }

    #[test]
    fn padding_has_the_described_value_and_place() {
        let pixels = Pixels { width_px: 4, height_px: 2, rgb: vec![200; 24] };
        let mut input = input(4, 4, Channels::Gray);
        (input.resize, input.pad_value, input.pad_place) = (ResizeMode::Pad, 114, PadPlace::TopLeft);
        let (gray, white) = ([114.0; 4], [200.0; 4]);
        assert_eq!(written(&pixels, &input), [white, white, gray, gray].concat());
    }

    #[test]
    fn a_buffer_of_the_wrong_length_is_refused() {
        let outcome = write(&two_pixels(), &input(2, 1, Channels::Rgb), &mut Scratch::default(), &mut [0.0; 5]);
        assert_eq!(outcome, Err(TensorError::WrongLength { expected_len: 6, actual_len: 5 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn every_number_is_written_whatever_the_sizes(
            (width, height) in (1_u32..70, 1_u32..70),
            (to_width, to_height) in (1_u32..40, 1_u32..40),
            resize in prop::sample::select(vec![ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Pad]),
            extra in prop::option::of(0_u32..30),
            filter in prop::sample::select(vec![Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]),
        ) {
            let pixels = Pixels { width_px: width, height_px: height, rgb: vec![77; (width * height * 3) as usize] };
            let mut input = InputDescription { resize, filter, ..input(to_width, to_height, Channels::Rgb) };
            input.resize_px = extra.filter(|_| resize == ResizeMode::Crop).map(|extra| to_width.max(to_height) + extra);
            let out = written(&pixels, &input);
            let black = if resize == ResizeMode::Pad { 0.0 } else { 77.0 };
            prop_assert!(out.iter().all(|value| *value == 77.0 || *value == black), "{:?}", out);
        }
    }
}
