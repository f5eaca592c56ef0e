//! A small gray copy of a picture, by which pictures of one camera are compared.
//!
//! Differences are those of blocks with the mean of the picture taken out, so that a cloud before the sun is no motion:
//! the largest block difference finds a small object that the mean over the picture hides.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::decode::Pixels;
use crate::tensor::luma;

/// Width of a thumbnail, pixels.
pub const THUMBNAIL_WIDTH: usize = 40;
/// Height of a thumbnail, pixels.
pub const THUMBNAIL_HEIGHT: usize = 30;
const PIXELS: usize = THUMBNAIL_WIDTH * THUMBNAIL_HEIGHT;
/// Side of a block, pixels of the thumbnail.
const BLOCK: usize = 5;
/// Blocks in a thumbnail.
const BLOCKS: usize = PIXELS / (BLOCK * BLOCK);
/// Difference of a block, in levels, from which it counts as changed.
const CHANGED_LEVELS: f32 = 12.0;

/// A gray copy of a picture of 40 by 30 pixels, whatever its shape was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail {
    /// Rows from the top, 0 (black) to 255 (white).
    gray: [u8; PIXELS],
}

/// How two pictures differ.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ThumbnailDifference {
    /// Mean absolute difference of the block that differs most, with the mean of both pictures taken out, levels of 255.
    pub largest_block: f32,
    /// Fraction of the blocks that changed, 0 to 1.
    pub changed_ratio: f32,
    /// Difference of the mean brightness, levels of 255, without sign.
    pub brightness: f32,
}

impl Thumbnail {
    /// From a plane of gray samples, one byte each, with `stride` bytes from row to row. `None` if the plane has fewer
    /// samples than that, or no pixel.
    pub fn from_gray(plane: &[u8], stride: usize, width_px: usize, height_px: usize) -> Option<Self> {
        Self::shrink(width_px, height_px, |y, x| {
            let row = y * stride;
            plane.get(row + x.start..row + x.end).map(|row| row.iter().map(|gray| u32::from(*gray)).sum())
        })
    }

    /// From decoded pixels. `None` if there are none.
    pub fn from_pixels(pixels: &Pixels) -> Option<Self> {
        let (width, height) = (pixels.width_px as usize, pixels.height_px as usize);
        let all = pixels.rgb.as_chunks::<3>().0;
        Self::shrink(width, height, |y, x| {
            let row = all.get(y * width + x.start..y * width + x.end)?;
            Some(row.iter().map(|pixel| u32::from(luma(*pixel))).sum())
        })
    }

    /// Means over equal rectangles. `sum`: the sum of the samples of a row in a range of columns.
    fn shrink(width: usize, height: usize, sum: impl Fn(usize, std::ops::Range<usize>) -> Option<u32>) -> Option<Self> {
        if width == 0 || height == 0 {
            return None;
        }
        // A picture narrower than the thumbnail repeats its pixels.
        let part = |at: usize, of: usize, size: usize| {
            let from = (at * size / of).min(size - 1);
            from..((at + 1) * size / of).max(from + 1)
        };
        let mut gray = [0; PIXELS];
        for (at, gray) in gray.iter_mut().enumerate() {
            let columns = part(at % THUMBNAIL_WIDTH, THUMBNAIL_WIDTH, width);
            let rows = part(at / THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT, height);
            let count = (columns.len() * rows.len()) as u64;
            let mut total = 0u64;
            for row in rows {
                total += u64::from(sum(row, columns.clone())?);
            }
            *gray = u8::try_from(total / count).unwrap_or(u8::MAX);
        }
        Some(Self { gray })
    }

    /// Its pixels, row by row from the top.
    pub fn gray(&self) -> &[u8] {
        &self.gray
    }

    /// Its text in a header: base64.
    pub fn header(&self) -> String {
        STANDARD.encode(self.gray)
    }

    /// Reads a header; `None` if it is not the base64 of a thumbnail.
    pub fn read(text: &str) -> Option<Self> {
        // The length is checked before anything is allocated.
        if text.len() != PIXELS.div_ceil(3) * 4 {
            return None;
        }
        let gray = STANDARD.decode(text).ok()?.try_into().ok()?;
        Some(Self { gray })
    }

    /// Mean brightness, levels of 255.
    pub fn mean(&self) -> f32 {
        self.gray.iter().map(|gray| u32::from(*gray)).sum::<u32>() as f32 / PIXELS as f32
    }

    /// This one with a fixed gray wherever `is_hidden` says so for a column and a row: what is hidden never differs.
    pub fn with_mask(mut self, is_hidden: impl Fn(usize, usize) -> bool) -> Self {
        for (at, gray) in self.gray.iter_mut().enumerate() {
            if is_hidden(at % THUMBNAIL_WIDTH, at / THUMBNAIL_WIDTH) {
                *gray = 128;
            }
        }
        self
    }

    /// How this picture differs from an earlier one.
    pub fn difference(&self, earlier: &Self) -> ThumbnailDifference {
        let brightness = self.mean() - earlier.mean();
        let mut blocks = [0f32; BLOCKS];
        for (at, (now, before)) in self.gray.iter().zip(&earlier.gray).enumerate() {
            let block = at / THUMBNAIL_WIDTH / BLOCK * (THUMBNAIL_WIDTH / BLOCK) + at % THUMBNAIL_WIDTH / BLOCK;
            if let Some(block) = blocks.get_mut(block) {
                *block += (f32::from(*now) - f32::from(*before) - brightness).abs();
            }
        }
        let levels = blocks.map(|sum| sum / (BLOCK * BLOCK) as f32);
        let changed = levels.iter().filter(|level| **level >= CHANGED_LEVELS).count();
        ThumbnailDifference {
            largest_block: levels.into_iter().fold(0.0, f32::max),
            changed_ratio: changed as f32 / BLOCKS as f32,
            brightness: brightness.abs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(width: usize, height: usize, gray: u8) -> Vec<u8> {
        vec![gray; width * height]
    }

    #[test]
    fn a_small_object_is_found_and_a_change_of_light_is_not() {
        let (width, height) = (640, 480);
        let before = Thumbnail::from_gray(&flat(width, height, 100), width, width, height).unwrap();
        let lighter = Thumbnail::from_gray(&flat(width, height, 130), width, width, height).unwrap();
        let light = lighter.difference(&before);
        assert_eq!((light.largest_block, light.changed_ratio, light.brightness), (0.0, 0.0, 30.0));
        let mut plane = flat(width, height, 100);
        for row in 200..260 {
            plane[row * width + 300..row * width + 360].fill(200);
        }
        let object = Thumbnail::from_gray(&plane, width, width, height).unwrap().difference(&before);
        assert!(object.largest_block > 10.0 && object.changed_ratio < 0.1, "{object:?}");
    }

    #[test]
    fn pixels_and_their_gray_plane_give_the_same_thumbnail() {
        let (width_px, height_px) = (97, 61);
        let plane: Vec<u8> = (0..width_px * height_px).map(|at| (at * 7 % 251) as u8).collect();
        let rgb = plane.iter().flat_map(|gray| [*gray; 3]).collect();
        let pixels = Pixels { width_px, height_px, rgb };
        let (width, height) = (width_px as usize, height_px as usize);
        let of_plane = Thumbnail::from_gray(&plane, width, width, height).unwrap();
        let of_pixels = Thumbnail::from_pixels(&pixels).unwrap();
        let apart = of_plane.gray.iter().zip(&of_pixels.gray).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart <= Some(1), "{apart:?}");
    }

    #[test]
    fn a_tiny_picture_has_a_thumbnail_and_none_has_none() {
        assert!(Thumbnail::from_gray(&[7], 1, 1, 1).unwrap().gray.iter().all(|gray| *gray == 7));
        assert_eq!(Thumbnail::from_gray(&[], 0, 0, 0), None);
        assert_eq!(Thumbnail::from_gray(&[1, 2], 2, 2, 2), None, "fewer samples than said");
        assert_eq!(Thumbnail::from_pixels(&Pixels::default()), None);
    }

    #[test]
    fn a_thumbnail_survives_its_header_and_nonsense_does_not() {
        let plane: Vec<u8> = (0..1200).map(|at| (at % 256) as u8).collect();
        let thumbnail = Thumbnail::from_gray(&plane, 40, 40, 30).unwrap();
        assert_eq!(Thumbnail::read(&thumbnail.header()), Some(thumbnail));
        for text in ["", "AAAA", &"?".repeat(1600), &"A".repeat(1604)] {
            assert_eq!(Thumbnail::read(text), None);
        }
    }

    #[test]
    fn what_is_hidden_never_differs() {
        let half = |gray: u8| {
            let mut plane = flat(40, 30, 90);
            for row in 0..30 {
                plane[row * 40..row * 40 + 20].fill(gray);
            }
            Thumbnail::from_gray(&plane, 40, 40, 30).unwrap().with_mask(|x, _| x < 20)
        };
        assert_eq!(half(0).difference(&half(255)), ThumbnailDifference::default());
    }
}
