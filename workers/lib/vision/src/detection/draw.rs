//! Draws objects into a picture, so that a wrong description is seen at once.

use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use schemas::DetectedObject;

use crate::decode::{DecodeError, DecodeSettings, Pixels, decode};

/// Colours that are told apart on most pictures; labels take them in turn.
const PALETTE: [[u8; 3]; 8] = [
    [230, 25, 75],
    [60, 180, 75],
    [0, 130, 200],
    [255, 225, 25],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
];
/// Side of a letter before it is enlarged.
const LETTER_PX: u32 = 8;
/// A picture of this side gets lines and letters of their smallest size; larger ones in proportion.
const PLAIN_SIDE_PX: u32 = 400;
/// Longest caption, in letters.
const MAX_LETTERS: usize = 40;

/// The upright picture with a box and a caption for each object, as PNG.
pub fn draw_objects(picture: &[u8], objects: &[DetectedObject]) -> Result<Vec<u8>, DecodeError> {
    let mut pixels = decode(picture, &DecodeSettings::default())?;
    let mut labels: Vec<&str> = Vec::new();
    // The surest is drawn last, above the others.
    for object in objects {
        if !labels.contains(&object.label.as_str()) {
            labels.push(&object.label);
        }
    }
    let scale = (pixels.width_px.max(pixels.height_px) / PLAIN_SIDE_PX).max(1);
    for object in objects.iter().rev() {
        let place = labels.iter().position(|label| *label == object.label).unwrap_or_default();
        let color = PALETTE.get(place % PALETTE.len()).copied().unwrap_or_default();
        draw_object(&mut pixels, object, color, scale);
    }
    let mut png = Vec::new();
    let Pixels { width_px, height_px, rgb } = &pixels;
    match PngEncoder::new(&mut png).write_image(rgb, *width_px, *height_px, ExtendedColorType::Rgb8) {
        Ok(()) => Ok(png),
        // Writing to memory does not fail, and decoded pixels have the size they say.
        Err(_) => Ok(Vec::new()),
    }
}

fn draw_object(pixels: &mut Pixels, object: &DetectedObject, color: [u8; 3], scale: u32) {
    let (width, height) = (pixels.width_px, pixels.height_px);
    let at = |ratio: f32, side: u32| ((ratio * side as f32).round() as u32).min(side);
    let (left, right) = (at(object.bounds.left, width), at(object.bounds.right, width));
    let (top, bottom) = (at(object.bounds.top, height), at(object.bounds.bottom, height));
    for inset in 0..scale {
        let (left, right) = (left + inset, right.saturating_sub(inset + 1));
        let (top, bottom) = (top + inset, bottom.saturating_sub(inset + 1));
        for x in left..=right {
            paint(pixels, x, top, color);
            paint(pixels, x, bottom, color);
        }
        for y in top..=bottom {
            paint(pixels, left, y, color);
            paint(pixels, right, y, color);
        }
    }
    let caption: Vec<char> =
        format!("{} {:.0}%", object.label, object.confidence * 100.0).chars().take(MAX_LETTERS).collect();
    let letter = LETTER_PX * scale;
    let caption_width = letter * caption.len() as u32;
    // Above the box if there is room, else inside; never beyond the right edge if it fits at all.
    let y = if top >= letter { top - letter } else { top };
    let x = left.min(width.saturating_sub(caption_width));
    let is_dark = color.iter().map(|part| u32::from(*part)).sum::<u32>() < 400;
    let ink = if is_dark { [255; 3] } else { [0; 3] };
    for (place, letter_of) in (0..).zip(&caption) {
        let glyph = BASIC_FONTS.get(*letter_of).or_else(|| LATIN_FONTS.get(*letter_of));
        let glyph = glyph.or_else(|| BASIC_FONTS.get('?')).unwrap_or_default();
        for row in 0..letter {
            for column in 0..letter {
                let line = glyph.get((row / scale) as usize).copied().unwrap_or_default();
                let color = if line >> (column / scale) & 1 == 1 { ink } else { color };
                paint(pixels, x + place * letter + column, y + row, color);
            }
        }
    }
}

fn paint(pixels: &mut Pixels, x: u32, y: u32, color: [u8; 3]) {
    if x >= pixels.width_px || y >= pixels.height_px {
        return;
    }
    let at = (y as usize * pixels.width_px as usize + x as usize) * 3;
    if let Some(pixel) = pixels.rgb.get_mut(at..at + 3) {
        pixel.copy_from_slice(&color);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(label: &str, edges: [f32; 4]) -> DetectedObject {
        DetectedObject { label: label.to_owned(), confidence: 0.5, bounds: edges.into() }
    }

    #[test]
    fn boxes_have_the_colour_of_their_label_and_a_caption() {
        let picture = crate::sample::jpeg();
        let objects = [
            object("cat", [0.25, 0.25, 0.5, 0.75]),
            object("K\u{e4}fer \u{1f41f}", [0.6, 0.0, 1.0, 0.4]),
            object("cat", [0.0, 0.9, 0.1, 1.0]),
        ];
        let png = draw_objects(&picture, &objects).unwrap();
        let drawn = decode(&png, &DecodeSettings::default()).unwrap();
        let plain = decode(&picture, &DecodeSettings::default()).unwrap();
        assert_eq!((drawn.width_px, drawn.height_px), (640, 480));
        let pixel = |pixels: &Pixels, x: usize, y: usize| pixels.rgb[(y * 640 + x) * 3..][..3].to_vec();
        assert_eq!(pixel(&drawn, 160, 300), PALETTE[0]);
        assert_eq!(pixel(&drawn, 0, 450), PALETTE[0]);
        assert_eq!(pixel(&drawn, 639, 100), PALETTE[1]);
        assert_eq!(pixel(&drawn, 250, 250), pixel(&plain, 250, 250), "the inside stays");
        let caption = (160..220).flat_map(|x| (112..120).map(move |y| (x, y)));
        let inked = caption.filter(|(x, y)| pixel(&drawn, *x, *y) == [255; 3]).count();
        assert!(inked > 60, "{inked} pixels of letters");
    }

    #[test]
    fn boxes_smaller_than_their_lines_and_long_labels_are_drawn() {
        let long = "x".repeat(300);
        let objects = [object(&long, [0.999, 0.999, 1.0, 1.0]), object("", [0.0, 0.0, 0.000_1, 0.000_1])];
        assert!(!draw_objects(&crate::sample::jpeg(), &objects).unwrap().is_empty());
        assert!(draw_objects(b"no picture", &objects).is_err());
    }
}
