//! Simulated cameras that distort the same scenes, and pictures as files.

use std::path::Path;

use serde::Serialize;
use vision::{DecodeSettings, Pixels, decode};

use crate::error::BenchError;

/// How a camera alters its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CameraStyle {
    /// Unchanged.
    Plain,
    /// Half as bright.
    Dark,
    /// Out of focus.
    Blurred,
    /// A grey gradient in place of the black background.
    Background,
}

impl CameraStyle {
    /// Applies the camera's effect to a picture.
    pub(crate) fn apply(self, image: &Pixels) -> Pixels {
        let mut image = image.clone();
        let (width, height) = (image.width_px as usize, image.height_px as usize);
        match self {
            Self::Plain => {}
            Self::Dark => image.rgb.iter_mut().for_each(|value| *value /= 2),
            Self::Blurred => {
                // Two box blurs approximate an out-of-focus lens.
                let reach = (width.min(height) / 20).max(1);
                for _ in 0..2 {
                    image.rgb = blur_axis(&image.rgb, (width, 3), (height, 3 * width), reach);
                    image.rgb = blur_axis(&image.rgb, (height, 3 * width), (width, 3), reach);
                }
            }
            Self::Background => {
                for (place, pixel) in image.rgb.chunks_exact_mut(3).enumerate() {
                    // Brightness rises from left to right: 40 to 110 of 255.
                    let background = 40 + (70 * (place % width.max(1)) / width.max(1)) as u8;
                    pixel.iter_mut().for_each(|value| *value = (*value).max(background));
                }
            }
        }
        image
    }
}

/// Box blur along one axis. `along`, `across`: number of pixels, and distance between neighbours in the buffer.
fn blur_axis(rgb: &[u8], along: (usize, usize), across: (usize, usize), reach: usize) -> Vec<u8> {
    let mut new = rgb.to_vec();
    for line in 0..across.0 {
        for color in 0..3 {
            let at = |pixel: usize| line * across.1 + pixel * along.1 + color;
            for pixel in 0..along.0 {
                let near = pixel.saturating_sub(reach)..(pixel + reach + 1).min(along.0);
                let (count, sum) = (near.len() as u32, near.map(|near| u32::from(rgb[at(near)])).sum::<u32>());
                new[at(pixel)] = (sum / count) as u8;
            }
        }
    }
    new
}

/// Encodes a picture as PPM, which needs no image library.
pub(crate) fn encode_ppm(image: &Pixels) -> Vec<u8> {
    let mut bytes = format!("P6\n{} {}\n255\n", image.width_px, image.height_px).into_bytes();
    bytes.extend_from_slice(&image.rgb);
    bytes
}

/// Reads and decodes a picture.
pub(crate) fn read_picture(path: &Path) -> Result<Pixels, BenchError> {
    let bytes = std::fs::read(path).map_err(BenchError::file(path))?;
    let unusable = |why: String| BenchError::NoImages { folder: path.to_owned(), why };
    decode(&bytes, &DecodeSettings::default()).map_err(|error| unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_camera_style_has_its_effect() {
        let rgb = (0..400).flat_map(|place| [if place % 20 < 10 { 0 } else { 200 }; 3]).collect();
        let image = Pixels { width_px: 20, height_px: 20, rgb };
        let mean = |image: &Pixels| image.rgb.iter().map(|value| u32::from(*value)).sum::<u32>() / 1200;
        assert_eq!(CameraStyle::Plain.apply(&image), image);
        assert_eq!(mean(&CameraStyle::Dark.apply(&image)), 50);
        let blurred = CameraStyle::Blurred.apply(&image);
        assert!(mean(&blurred).abs_diff(100) < 6, "as bright as before");
        let edge: Vec<u8> = (8..12).map(|x| blurred.rgb[3 * (20 * 5 + x)]).collect();
        assert!(edge.windows(2).all(|pair| pair[0] < pair[1]) && edge[0] > 0 && edge[3] < 200, "{edge:?}");
        assert!(mean(&CameraStyle::Background.apply(&image)) > 115);
        assert_eq!(decode(&encode_ppm(&image), &DecodeSettings::default()).unwrap(), image);
    }
}
