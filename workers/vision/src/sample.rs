//! Sample: a generated picture, for warming up and measuring without a file at hand. Pure.

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

const WIDTH_PX: u32 = 640;
const HEIGHT_PX: u32 = 480;

/// A gradient with a fine pattern over it, so that decoding it costs what a camera's picture costs;
/// 640x480, quality 85.
pub(crate) fn jpeg() -> Vec<u8> {
    let picture = RgbImage::from_fn(WIDTH_PX, HEIGHT_PX, |x, y| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 28;
        Rgb([(x * 255 / WIDTH_PX) as u8, (y * 255 / HEIGHT_PX) as u8, ((x ^ y) & 0x7f) as u8 + noise as u8])
    });
    let mut bytes = Vec::new();
    match JpegEncoder::new_with_quality(&mut bytes, 85).encode_image(&picture) {
        Ok(()) => bytes,
        // Writing to memory does not fail; an empty picture would be refused by name.
        Err(_) => Vec::new(),
    }
}
