//! Augments a picture for training. Pure.
//!
//! Mirrors, shifts, enlarges and rotates in one step, so that every pixel is interpolated once; areas beyond the edge
//! repeat the edge.

use crate::decode::Pixels;

/// How a picture is augmented; the default changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PictureAugmentation {
    /// Mirror left to right.
    pub mirror: bool,
    /// Shift to the right by this share of the width, -1 to 1.
    pub right_ratio: f32,
    /// Shift down by this share of the height, -1 to 1.
    pub down_ratio: f32,
    /// Enlarge by this share around the centre, 0 or more.
    pub zoom_ratio: f32,
    /// Rotate around the centre by this many degrees.
    pub turn_degrees: f32,
    /// Make brighter (above 0) or darker by this share, -1 or more.
    pub brightness_ratio: f32,
}

/// The augmented picture, of the same size.
pub fn augment_picture(pixels: &Pixels, change: &PictureAugmentation) -> Pixels {
    let (width, height) = (pixels.width_px as usize, pixels.height_px as usize);
    let (middle_x, middle_y) = ((width as f32 - 1.0) / 2.0, (height as f32 - 1.0) / 2.0);
    let (sine, cosine) = change.turn_degrees.to_radians().sin_cos();
    let zoom = 1.0 / (1.0 + change.zoom_ratio.max(0.0));
    let (right, down) = (change.right_ratio * width as f32, change.down_ratio * height as f32);
    let bright = 1.0 + change.brightness_ratio;
    let mut rgb = Vec::with_capacity(pixels.rgb.len());
    for y in 0..height {
        for x in 0..width {
            // Position of this pixel in the original.
            let (from_x, from_y) = (x as f32 - right - middle_x, y as f32 - down - middle_y);
            let mut at_x = (from_x * cosine + from_y * sine) * zoom + middle_x;
            let at_y = (from_y * cosine - from_x * sine) * zoom + middle_y;
            if change.mirror {
                at_x = 2.0 * middle_x - at_x;
            }
            let color = between(pixels, at_x, at_y);
            rgb.extend(color.map(|value| (value * bright).round().clamp(0.0, 255.0) as u8));
        }
    }
    Pixels { width_px: pixels.width_px, height_px: pixels.height_px, rgb }
}

/// Bilinear interpolation between pixels.
fn between(pixels: &Pixels, x: f32, y: f32) -> [f32; 3] {
    let (last_x, last_y) = (pixels.width_px as f32 - 1.0, pixels.height_px as f32 - 1.0);
    let (x, y) = (x.clamp(0.0, last_x.max(0.0)), y.clamp(0.0, last_y.max(0.0)));
    let (left, top) = (x.floor(), y.floor());
    let at = |x: f32, y: f32| {
        let place = 3 * (y.min(last_y) as usize * pixels.width_px as usize + x.min(last_x) as usize);
        [0, 1, 2].map(|channel| pixels.rgb.get(place + channel).copied().map_or(0.0, f32::from))
    };
    let mix = |[a0, a1, a2]: [f32; 3], [b0, b1, b2]: [f32; 3], share: f32| {
        [a0 + (b0 - a0) * share, a1 + (b1 - a1) * share, a2 + (b2 - a2) * share]
    };
    let upper = mix(at(left, top), at(left + 1.0, top), x - left);
    let lower = mix(at(left, top + 1.0), at(left + 1.0, top + 1.0), x - left);
    mix(upper, lower, y - top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(values: &[u8], width: u32) -> Pixels {
        let rgb = values.iter().flat_map(|value| [*value; 3]).collect();
        Pixels { width_px: width, height_px: values.len() as u32 / width, rgb }
    }

    fn first_channel(pixels: &Pixels) -> Vec<u8> {
        pixels.rgb.iter().step_by(3).copied().collect()
    }

    #[test]
    fn nothing_changes_nothing() {
        let original = picture(&[1, 2, 3, 4, 5, 6], 3);
        assert_eq!(augment_picture(&original, &PictureAugmentation::default()), original);
    }

    #[test]
    fn mirroring_shifting_and_rotating_move_pixels_correctly() {
        let original = picture(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 3);
        let with = |change: PictureAugmentation| first_channel(&augment_picture(&original, &change));
        assert_eq!(
            with(PictureAugmentation { mirror: true, ..PictureAugmentation::default() }),
            [3, 2, 1, 6, 5, 4, 9, 8, 7]
        );
        assert_eq!(
            with(PictureAugmentation { right_ratio: 1.0 / 3.0, ..PictureAugmentation::default() }),
            [1, 1, 2, 4, 4, 5, 7, 7, 8]
        );
        assert_eq!(
            with(PictureAugmentation { down_ratio: -1.0 / 3.0, ..PictureAugmentation::default() }),
            [4, 5, 6, 7, 8, 9, 7, 8, 9]
        );
        assert_eq!(
            with(PictureAugmentation { turn_degrees: 90.0, ..PictureAugmentation::default() }),
            [7, 4, 1, 8, 5, 2, 9, 6, 3]
        );
    }

    #[test]
    fn brightness_ends_at_white() {
        let original = picture(&[100, 200], 2);
        let change = PictureAugmentation { brightness_ratio: 0.5, ..PictureAugmentation::default() };
        assert_eq!(first_channel(&augment_picture(&original, &change)), [150, 255]);
    }
}
