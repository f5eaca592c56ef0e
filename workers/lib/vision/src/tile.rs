//! Cuts a large scan into overlapping pictures of one size.
//!
//! Every pixel of the scan is in at least one tile. All tiles have the requested size: the last of a row or column
//! moves back until it fits, and only a scan smaller than a tile gives a smaller one. A lossless scan gives lossless
//! tiles (PNG), a lossy one JPEGs of quality 95. One tile is encoded at a time. Refuses what [`crate::decode`] refuses,
//! and impossible grids.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, GenericImageView, ImageEncoder, RgbImage};

use crate::decode::{DecodeError, DecodeSettings, PictureFormat, decode, dimensions};

/// High enough that a second compression does not show; an estimate.
const QUALITY: u8 = 95;

/// Why a scan was not cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// The scan's fault.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The settings are impossible.
    #[error("tiles of {tile_px} pixels cannot overlap by {overlap_px}; the overlap must be smaller than the tile")]
    Grid {
        /// Side of a tile in pixels.
        tile_px: u32,
        /// Overlap of neighbours in pixels.
        overlap_px: u32,
    },
    /// A bug of this program.
    #[error("tile at {x_px},{y_px} could not be encoded: {why}")]
    Encode {
        /// Left edge in pixels.
        x_px: u32,
        /// Top edge in pixels.
        y_px: u32,
        /// Error of the encoder.
        why: String,
    },
}

/// A tile of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileImage {
    /// Left edge in the upright scan, in pixels.
    pub x_px: u32,
    /// Top edge in the upright scan, in pixels.
    pub y_px: u32,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Width of the upright scan, in pixels.
    pub scan_width_px: u32,
    /// Height of the upright scan, in pixels.
    pub scan_height_px: u32,
    /// Encoded as PNG or JPEG.
    pub bytes: Vec<u8>,
}

/// Decodes a scan and cuts it into squares of `tile_px` that overlap by at least `overlap_px`. `limits` are the scan's,
/// usually larger than those of a picture.
pub fn split(bytes: &[u8], limits: &DecodeSettings, tile_px: u32, overlap_px: u32) -> Result<Tiles, TileError> {
    if tile_px == 0 || overlap_px >= tile_px {
        return Err(TileError::Grid { tile_px, overlap_px });
    }
    let lossy = is_lossy(bytes, dimensions_format(bytes)?);
    let scan = decode(bytes, limits)?;
    let (width_px, height_px) = (scan.width_px, scan.height_px);
    let scan = RgbImage::from_raw(width_px, height_px, scan.rgb).ok_or(TileError::Grid { tile_px, overlap_px })?;
    let (lefts, tops) = (starts(width_px, tile_px, overlap_px), starts(height_px, tile_px, overlap_px));
    Ok(Tiles { scan, lossy, tile_px, lefts, tops, next: 0 })
}

fn dimensions_format(bytes: &[u8]) -> Result<PictureFormat, TileError> {
    let (format, _, _) = dimensions(bytes)?;
    Ok(format)
}

fn is_lossy(bytes: &[u8], format: PictureFormat) -> bool {
    match format {
        PictureFormat::Jpeg => true,
        // A simple lossy WebP says so in its first chunk; an extended one cannot be recognized for certain.
        PictureFormat::WebP => bytes.get(12..16) == Some(b"VP8 "),
        PictureFormat::Png | PictureFormat::Tiff | PictureFormat::Bmp | PictureFormat::Gif | PictureFormat::Pnm => {
            false
        }
    }
}

/// Where tiles begin along one side.
fn starts(side_px: u32, tile_px: u32, overlap_px: u32) -> Vec<u32> {
    let last = side_px.saturating_sub(tile_px);
    let mut starts: Vec<u32> = (0..last).step_by((tile_px - overlap_px) as usize).collect();
    starts.push(last);
    starts
}

/// The tiles of a scan, row by row from the top.
#[derive(Debug)]
pub struct Tiles {
    scan: RgbImage,
    lossy: bool,
    tile_px: u32,
    lefts: Vec<u32>,
    tops: Vec<u32>,
    next: usize,
}

impl Tiles {
    /// Number of all tiles, including those already taken.
    pub fn count_all(&self) -> usize {
        self.lefts.len() * self.tops.len()
    }

    fn cut(&self, x_px: u32, y_px: u32) -> Result<TileImage, TileError> {
        let (scan_width_px, scan_height_px) = self.scan.dimensions();
        let (width_px, height_px) = (self.tile_px.min(scan_width_px), self.tile_px.min(scan_height_px));
        let piece = self.scan.view(x_px, y_px, width_px, height_px).to_image();
        let mut bytes = Vec::new();
        let written = if self.lossy {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
            encoder.write_image(&piece, width_px, height_px, ExtendedColorType::Rgb8)
        } else {
            let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
            encoder.write_image(&piece, width_px, height_px, ExtendedColorType::Rgb8)
        };
        written.map_err(|error| TileError::Encode { x_px, y_px, why: error.to_string() })?;
        Ok(TileImage { x_px, y_px, width_px, height_px, scan_width_px, scan_height_px, bytes })
    }
}

impl Iterator for Tiles {
    type Item = Result<TileImage, TileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let columns = self.lefts.len();
        let (x_px, y_px) = (*self.lefts.get(self.next % columns)?, *self.tops.get(self.next / columns)?);
        self.next += 1;
        Some(self.cut(x_px, y_px))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count_all().saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Tiles {}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgb};
    use proptest::prelude::*;
    use std::io::Cursor;

    fn scan(width_px: u32, height_px: u32, format: ImageFormat) -> (RgbImage, Vec<u8>) {
        let picture = RgbImage::from_fn(width_px, height_px, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        (picture, bytes.into_inner())
    }

    #[test]
    fn lossless_tiles_are_the_scan_pixel_for_pixel() {
        let (picture, bytes) = scan(70, 45, ImageFormat::Png);
        let tiles = split(&bytes, &DecodeSettings::default(), 32, 8).unwrap();
        assert_eq!(tiles.len(), 3 * 2);
        for tile in tiles.map(Result::unwrap) {
            let pixels = decode(&tile.bytes, &DecodeSettings::default()).unwrap();
            assert_eq!((tile.width_px, tile.height_px), (32, 32));
            assert_eq!((tile.scan_width_px, tile.scan_height_px), (70, 45));
            assert_eq!(pixels.rgb, picture.view(tile.x_px, tile.y_px, 32, 32).to_image().into_raw());
        }
    }

    #[test]
    fn a_jpeg_gives_jpegs_and_a_tiff_gives_pngs() {
        for (format, expected) in [(ImageFormat::Jpeg, PictureFormat::Jpeg), (ImageFormat::Tiff, PictureFormat::Png)] {
            let (_, bytes) = scan(40, 40, format);
            let tile = split(&bytes, &DecodeSettings::default(), 32, 0).unwrap().next().unwrap().unwrap();
            assert_eq!(dimensions(&tile.bytes).unwrap(), (expected, 32, 32));
        }
    }

    #[test]
    fn a_scan_smaller_than_a_tile_gives_one() {
        let (_, bytes) = scan(20, 10, ImageFormat::Png);
        let tiles: Vec<_> = split(&bytes, &DecodeSettings::default(), 32, 8).unwrap().map(Result::unwrap).collect();
        assert_eq!(tiles.len(), 1);
        assert_eq!((tiles[0].width_px, tiles[0].height_px), (20, 10));
    }

    #[test]
    fn an_overlap_as_large_as_the_tile_is_refused() {
        let (_, bytes) = scan(20, 10, ImageFormat::Png);
        for (tile_px, overlap_px) in [(0, 0), (8, 8), (8, 9)] {
            let outcome = split(&bytes, &DecodeSettings::default(), tile_px, overlap_px);
            assert!(matches!(outcome, Err(TileError::Grid { .. })));
        }
    }

    #[test]
    fn a_damaged_scan_is_refused_as_a_picture_is() {
        assert_eq!(split(b"", &DecodeSettings::default(), 8, 0).err(), Some(TileError::Decode(DecodeError::Empty)));
    }

    proptest! {
        #[test]
        fn tiles_cover_a_side_and_overlap_enough(side in 1_u32..5000, tile in 1_u32..600, overlap in 0_u32..599) {
            prop_assume!(overlap < tile);
            let starts = starts(side, tile, overlap);
            prop_assert_eq!(starts[0], 0);
            prop_assert_eq!(starts[starts.len() - 1] + tile.min(side), side);
            prop_assert!(starts.windows(2).all(|pair| pair[0] < pair[1] && pair[0] + tile >= pair[1] + overlap));
        }
    }
}
