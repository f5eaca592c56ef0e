//! Generated pictures, for warming up and measuring without files. Pure.

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

const WIDTH_PX: u32 = 640;
const HEIGHT_PX: u32 = 480;

/// Shapes and grain that make a generated picture as large as a camera's of that size: 37 kB on average.
const SHAPES: usize = 24;
const GRAIN: u32 = 6;

/// A gradient with a fine pattern, so that decoding costs as much as for a camera's picture; 640x480, quality 85.
pub(crate) fn jpeg() -> Vec<u8> {
    let picture = RgbImage::from_fn(WIDTH_PX, HEIGHT_PX, |x, y| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 28;
        Rgb([(x * 255 / WIDTH_PX) as u8, (y * 255 / HEIGHT_PX) as u8, ((x ^ y) & 0x7f) as u8 + noise as u8])
    });
    encode(&picture)
}

/// Pictures with edges, areas and grain like a camera's, for measuring without files: JPEG, 640x480, quality 85, about
/// 37 kB each. The same count and seed give the same bytes.
///
/// Chroma is not subsampled, because the encoder cannot; it is smooth, so that decoding costs as much as for a camera's
/// picture.
pub fn pictures(count: usize, seed: u64) -> Vec<Vec<u8>> {
    (0..count as u64).map(|number| encode(&scene(seed.wrapping_add(number)))).collect()
}

/// The picture as if taken close up: enlarged to a square of `side_px` and encoded as JPEG, quality 85; to measure with
/// small labelled pictures what a camera's picture costs to decode and send. `None` if the bytes are not a picture.
pub fn enlarged(bytes: &[u8], side_px: u32) -> Option<Vec<u8>> {
    let picture = image::load_from_memory(bytes).ok()?;
    let large = image::imageops::resize(&picture.to_luma8(), side_px, side_px, image::imageops::FilterType::CatmullRom);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 85).encode_image(&large).ok()?;
    Some(jpeg)
}

/// Areas of colour on a gradient, under grain.
fn scene(seed: u64) -> RgbImage {
    let mut chance = SampleRng(seed);
    let (tilt_x, tilt_y) = (chance.below(160), chance.below(120));
    let mut picture = RgbImage::from_fn(WIDTH_PX, HEIGHT_PX, |x, y| {
        let shade = 40 + x * tilt_x / WIDTH_PX + y * tilt_y / HEIGHT_PX;
        Rgb([shade.min(255) as u8, (shade * 15 / 16).min(255) as u8, (shade * 7 / 8).min(255) as u8])
    });
    for _ in 0..SHAPES {
        let (left, top) = (chance.below(WIDTH_PX), chance.below(HEIGHT_PX));
        let (width, height) = (20 + chance.below(180), 20 + chance.below(140));
        let colour = [0; 3].map(|_| 40 + chance.below(176) as u8);
        let round = chance.below(2) == 0;
        for y in top..(top + height).min(HEIGHT_PX) {
            for x in left..(left + width).min(WIDTH_PX) {
                let (across, down) = (2 * (x - left), 2 * (y - top));
                let off = |at: u32, side: u32| (at.abs_diff(side) as f32 / side as f32).powi(2);
                if !round || off(across, width) + off(down, height) <= 1.0 {
                    picture.put_pixel(x, y, Rgb(colour));
                }
            }
        }
    }
    for pixel in picture.pixels_mut() {
        let grain = chance.below(GRAIN) as i16 - (GRAIN / 2) as i16;
        pixel.0 = pixel.0.map(|value| (i16::from(value) + grain).clamp(0, 255) as u8);
    }
    picture
}

/// SplitMix64: small, fast, the same everywhere.
pub(crate) struct SampleRng(pub(crate) u64);

impl SampleRng {
    /// A number from 0 to below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u64::from((mixed ^ (mixed >> 31)) as u32) * u64::from(limit)) >> 32) as u32
    }
}

fn encode(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    match JpegEncoder::new_with_quality(&mut bytes, 85).encode_image(picture) {
        Ok(()) => bytes,
        // Writing to memory does not fail; an empty picture would be refused by name.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_pictures_of_a_cameras_size() {
        let made = pictures(3, 1);
        assert_eq!(made, pictures(3, 1));
        assert_ne!(made, pictures(3, 100));
        let mean = made.iter().map(Vec::len).sum::<usize>() / made.len();
        assert!((34_000..41_000).contains(&mean), "{mean} bytes on average");
    }
}
