//! What a camera's picture looks like, measured before it is recognized. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::vocabulary::WireWord;

crate::vocabulary! {
    /// What is wrong with the pictures of a camera.
    pub enum PictureFault {
        /// The same picture for longer than a live sensor sends one.
        Frozen = "frozen",
        /// Hardly any light.
        Black = "black",
        /// Large parts are white.
        Overexposed = "overexposed",
        /// Out of focus, wet or dirty, compared with the camera's usual sharpness.
        Blurred = "blurred",
        /// Something hides the view: hardly any structure, although there is light.
        Covered = "covered",
        /// The camera looks elsewhere than before.
        Moved = "moved",
    }
}

/// Longest report in a header, in bytes.
pub const MAX_PICTURE_REPORT_BYTES: usize = 512;
/// Most faults in a report; further ones are dropped.
const MAX_FAULTS: usize = 8;

/// Measures of one picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PictureReport {
    /// Mean brightness, 0 (black) to 1 (white).
    pub brightness_ratio: f32,
    /// Standard deviation of the brightness, 0 to 0.5.
    pub contrast_ratio: f32,
    /// Fine structure as a multiple of what is usual for this camera; absent until enough pictures were seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharpness_ratio: Option<f32>,
    /// Fraction of the picture that is white, 0 to 1.
    pub white_ratio: f32,
    /// What is wrong with it; empty for a healthy picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<WireWord<PictureFault>>,
    /// Whether nearly all of it differs from the picture published before: light switched, camera moved, channel changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_scene_changed: bool,
}

impl PictureReport {
    /// Whether nothing is wrong with the picture.
    pub fn is_healthy(&self) -> bool {
        self.faults.is_empty()
    }

    /// Its text in a header: JSON.
    pub fn header(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a header; `None` if it is too long, malformed or has numbers out of range.
    pub fn read(text: &str) -> Option<Self> {
        let text = Some(text).filter(|text| text.len() <= MAX_PICTURE_REPORT_BYTES)?;
        let mut report: Self = serde_json::from_str(text).ok()?;
        report.faults.truncate(MAX_FAULTS);
        report.is_plausible().then_some(report)
    }

    /// Whether its numbers are in range.
    pub fn is_plausible(&self) -> bool {
        let ratios = [self.brightness_ratio, self.contrast_ratio, self.white_ratio];
        ratios.iter().all(|ratio| (0.0..=1.0).contains(ratio))
            && self.sharpness_ratio.is_none_or(|ratio| (0.0..=1e6).contains(&ratio))
            && self.faults.iter().all(|fault| fault.as_str().len() <= 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_header_and_nonsense_does_not() {
        let report = PictureReport {
            brightness_ratio: 0.25,
            contrast_ratio: 0.125,
            sharpness_ratio: Some(0.5),
            white_ratio: 0.0,
            faults: vec![PictureFault::Blurred.into()],
            is_scene_changed: true,
        };
        assert_eq!(PictureReport::read(&report.header()), Some(report.clone()));
        let bright = PictureReport { brightness_ratio: 2.0, ..report };
        for text in ["", "{}", "[1]", &bright.header(), &" ".repeat(600)] {
            assert_eq!(PictureReport::read(text), None, "{text:?}");
        }
    }
}
