//! Cameras that show the same scenes otherwise, and pictures as files.

use std::path::Path;

use serde::Serialize;
use vision::{DecodeSettings, Pixels, decode};

use crate::error::BenchError;

/// How a camera shows its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CameraStyle {
    /// As they are.
    Plain,
    /// Half as bright.
    Dark,
    /// Out of focus.
    Blurred,
    /// Before something that is not black.
    Background,
}

impl CameraStyle {
    /// What it makes of a picture.
    pub(crate) fn show(self, image: &Pixels) -> Pixels {
        let mut image = image.clone();
        let (width, height) = (image.width_px as usize, image.height_px as usize);
        match self {
            Self::Plain => {}
            Self::Dark => image.rgb.iter_mut().for_each(|value| *value /= 2),
            Self::Blurred => {
                // Twice a mean over neighbours comes near a lens out of focus.
                let reach = (width.min(height) / 20).max(1);
                for _ in 0..2 {
                    image.rgb = smeared(&image.rgb, (width, 3), (height, 3 * width), reach);
                    image.rgb = smeared(&image.rgb, (height, 3 * width), (width, 3), reach);
                }
            }
            Self::Background => {
                for (place, pixel) in image.rgb.chunks_exact_mut(3).enumerate() {
                    // From one side to the other: 40 to 110 of 255.
                    let behind = 40 + (70 * (place % width.max(1)) / width.max(1)) as u8;
                    pixel.iter_mut().for_each(|value| *value = (*value).max(behind));
                }
            }
        }
        image
    }
}

/// The mean over the neighbours along one axis. `along`, `across`: how many pixels there are, and how far apart they lie.
fn smeared(rgb: &[u8], along: (usize, usize), across: (usize, usize), reach: usize) -> Vec<u8> {
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

/// A picture as a file: PNM, which needs no encoder.
pub(crate) fn ppm(image: &Pixels) -> Vec<u8> {
    let mut bytes = format!("P6\n{} {}\n255\n", image.width_px, image.height_px).into_bytes();
    bytes.extend_from_slice(&image.rgb);
    bytes
}

/// A picture in a file.
pub(crate) fn read(path: &Path) -> Result<Pixels, BenchError> {
    let bytes = std::fs::read(path).map_err(BenchError::file(path))?;
    let unusable = |why: String| BenchError::NoImages { folder: path.to_owned(), why };
    decode(&bytes, &DecodeSettings::default()).map_err(|error| unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cameras_show_pictures_otherwise() {
        let rgb = (0..400).flat_map(|place| [if place % 20 < 10 { 0 } else { 200 }; 3]).collect();
        let image = Pixels { width_px: 20, height_px: 20, rgb };
        let mean = |image: &Pixels| image.rgb.iter().map(|value| u32::from(*value)).sum::<u32>() / 1200;
        assert_eq!(CameraStyle::Plain.show(&image), image);
        assert_eq!(mean(&CameraStyle::Dark.show(&image)), 50);
        let blurred = CameraStyle::Blurred.show(&image);
        assert!(mean(&blurred).abs_diff(100) < 6, "as bright as before");
        let edge: Vec<u8> = (8..12).map(|x| blurred.rgb[3 * (20 * 5 + x)]).collect();
        assert!(edge.windows(2).all(|pair| pair[0] < pair[1]) && edge[0] > 0 && edge[3] < 200, "{edge:?}");
        assert!(mean(&CameraStyle::Background.show(&image)) > 115);
        assert_eq!(decode(&ppm(&image), &DecodeSettings::default()).unwrap(), image);
    }
}
