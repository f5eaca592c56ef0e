//! Maps boxes from a model's input to the picture that was fitted into it.

use schemas::BoundingBox;
use schemas::model::{InputDescription, ResizeMode};

use super::SourceSize;
use crate::tensor;

/// Where a picture lies in the input: its top left corner and its size, in pixels of the input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PicturePlacement {
    left_px: f32,
    top_px: f32,
    width_px: f32,
    height_px: f32,
}

impl PicturePlacement {
    /// Of a picture that was fitted as `input` describes.
    pub(super) fn of(input: &InputDescription, source: SourceSize) -> Self {
        if input.resize != ResizeMode::Pad {
            let (width_px, height_px) = (input.width_px as f32, input.height_px as f32);
            return Self { left_px: 0.0, top_px: 0.0, width_px, height_px };
        }
        let size = tensor::padded_size((source.width_px, source.height_px), input);
        let (left_px, top_px) = tensor::pad_offset(size, input);
        Self { left_px: left_px as f32, top_px: top_px as f32, width_px: size.0 as f32, height_px: size.1 as f32 }
    }

    /// A box in pixels of the input, as fractions of the picture; not yet cut off at its edges.
    pub(super) fn to_source(self, [left, top, right, bottom]: [f32; 4]) -> BoundingBox {
        let x = |x: f32| (x - self.left_px) / self.width_px;
        let y = |y: f32| (y - self.top_px) / self.height_px;
        BoundingBox { left: x(left), top: y(top), right: x(right), bottom: y(bottom) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::model::PadPlace;

    #[test]
    fn a_box_in_the_input_is_found_again_in_pictures_that_are_not_square() {
        let mut input = crate::tensor::tests::input(64, 64, schemas::model::Channels::Rgb);
        for (width_px, height_px) in [(640, 480), (480, 640)] {
            let source = SourceSize { width_px, height_px };
            for (resize, place) in [
                (ResizeMode::Stretch, PadPlace::Center),
                (ResizeMode::Pad, PadPlace::Center),
                (ResizeMode::Pad, PadPlace::TopLeft),
            ] {
                (input.resize, input.pad_place) = (resize, place);
                let (w, h) = (width_px as f32, height_px as f32);
                // The authors' formulas: r = min(W / w, H / h), offset (W - r w) / 2 or 0.
                let r = (64.0 / w).min(64.0 / h);
                let (rx, ry) = if resize == ResizeMode::Pad { (r, r) } else { (64.0 / w, 64.0 / h) };
                let (dx, dy) = match place {
                    PadPlace::Center => ((64.0 - rx * w) / 2.0, (64.0 - ry * h) / 2.0),
                    PadPlace::TopLeft => (0.0, 0.0),
                };
                let edges = [0.125 * w * rx + dx, 0.25 * h * ry + dy, 0.5 * w * rx + dx, 0.75 * h * ry + dy];
                let found: [f32; 4] = PicturePlacement::of(&input, source).to_source(edges).into();
                for (found, expected) in found.iter().zip([0.125, 0.25, 0.5, 0.75]) {
                    assert!((found - expected).abs() < 1e-5, "{width_px}x{height_px} {resize:?} {place:?}: {found}");
                }
            }
        }
    }
}
