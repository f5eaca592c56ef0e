//! The part of a camera's picture that is wanted, and the parts that nobody may see: cut out and encoded as JPEG.

use bytes::Bytes;
use jpeg_encoder::{ColorType, Encoder, EncodingError, ImageBuffer, JpegColorType, SamplingFactor};
use serde::{Deserialize, Serialize};
use vision::thumbnail::Thumbnail;
use vision::{DecodeError, DecodeSettings, GrayPixels, Pixels};

use crate::frame::{FramePicture, YuvPicture};

/// Quality of pictures that are encoded here, 1 to 100: recognizers answer as on the original.
const QUALITY: u8 = 87;
/// Most corners of a hidden part, and most hidden parts.
const MAX_CORNERS: usize = 64;

/// What is wanted of a picture. Coordinates are fractions of the whole picture from its upper left corner.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionShape {
    /// Left edge, upper edge, width and height of what is wanted; absent: the whole picture.
    pub crop: Option<[f32; 4]>,
    /// Polygons that are painted black, and in which nothing moves: what nobody may see, and trees in the wind. Each is a
    /// list of corners, across and down.
    pub hidden: Vec<Vec<[f32; 2]>>,
}

/// Why a part of a picture could not be cut out.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The picture cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The part has no pixel, or too many.
    #[error("the region has {width_px} x {height_px} pixels; it must have 1 to 65535 each way")]
    Size {
        /// Width, pixels.
        width_px: usize,
        /// Height, pixels.
        height_px: usize,
    },
    /// The encoder failed.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[from] EncodingError),
}

/// A plane of gray samples of a picture.
#[derive(Debug, Clone, Copy)]
pub struct GrayView<'a> {
    /// Samples, one byte each.
    pub plane: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// Width in pixels.
    pub width_px: usize,
    /// Height in pixels.
    pub height_px: usize,
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PixelRect {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl<'a> GrayView<'a> {
    /// Of a decoded video picture.
    pub fn of_yuv(picture: &'a YuvPicture) -> Self {
        let YuvPicture { width_px, height_px, y, .. } = picture;
        Self { plane: y, stride: *width_px, width_px: *width_px, height_px: *height_px }
    }

    /// Of decoded gray pixels.
    pub fn of_gray(pixels: &'a GrayPixels) -> Self {
        let (width_px, height_px) = (pixels.width_px as usize, pixels.height_px as usize);
        Self { plane: &pixels.gray, stride: width_px, width_px, height_px }
    }
}

impl RegionShape {
    /// Whether it is the whole picture as it came.
    pub fn is_whole(&self) -> bool {
        self.crop.is_none() && self.hidden.is_empty()
    }

    /// Checks that everything lies in the picture.
    ///
    /// # Errors
    /// One sentence that begins with the name of the invalid setting.
    pub fn check(&self) -> Result<(), String> {
        if let Some([x, y, width, height]) = self.crop {
            let inside = |from: f32, size: f32| (0.0..1.0).contains(&from) && size > 0.0 && from + size <= 1.0 + 1e-4;
            if !inside(x, width) || !inside(y, height) {
                return Err(format!(
                    "crop is [{x}, {y}, {width}, {height}]; left edge, upper edge, width and height must be fractions of the picture and lie within it, such as [0.5, 0, 0.5, 1] for its right half"
                ));
            }
        }
        if self.hidden.len() > MAX_CORNERS {
            return Err(format!("hidden has {} polygons; at most {MAX_CORNERS} are allowed", self.hidden.len()));
        }
        for polygon in &self.hidden {
            if !(3..=MAX_CORNERS).contains(&polygon.len()) {
                return Err(format!(
                    "hidden has a polygon of {} corners; 3 to {MAX_CORNERS} are allowed",
                    polygon.len()
                ));
            }
            if let Some([x, y]) = polygon.iter().find(|corner| corner.iter().any(|at| !(0.0..=1.0).contains(at))) {
                return Err(format!("hidden has the corner [{x}, {y}]; both must be between 0 and 1"));
            }
        }
        Ok(())
    }

    /// The wanted part of a plane.
    pub fn view<'a>(&self, whole: GrayView<'a>) -> GrayView<'a> {
        let part = self.pixels(whole.width_px, whole.height_px, 1);
        let plane = whole.plane.get(part.y * whole.stride + part.x..).unwrap_or_default();
        GrayView { plane, stride: whole.stride, width_px: part.width, height_px: part.height }
    }

    /// A thumbnail of the wanted part in which hidden parts never change.
    pub fn mask(&self, thumbnail: Thumbnail) -> Thumbnail {
        if self.hidden.is_empty() {
            return thumbnail;
        }
        let [left, top, width, height] = self.crop.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let (columns, rows) = (vision::thumbnail::THUMBNAIL_WIDTH as f32, vision::thumbnail::THUMBNAIL_HEIGHT as f32);
        thumbnail.with_mask(|x, y| {
            self.hides(left + width * (x as f32 + 0.5) / columns, top + height * (y as f32 + 0.5) / rows)
        })
    }

    /// The wanted part as JPEG: the picture's own bytes if all of it is wanted.
    ///
    /// # Errors
    /// It cannot be decoded or encoded.
    pub fn cut(&self, picture: &FramePicture) -> Result<Bytes, CutError> {
        match picture {
            FramePicture::Jpeg(bytes) if self.is_whole() => Ok(bytes.clone()),
            FramePicture::Jpeg(bytes) => {
                let pixels = vision::decode(bytes, &DecodeSettings::default())?;
                let part = self.pixels(pixels.width_px as usize, pixels.height_px as usize, 1);
                self.encode_rgb(&pixels, part)
            }
            FramePicture::Yuv(picture) => {
                let part = self.pixels(picture.width_px, picture.height_px, 2);
                encode(part, &YuvPart { shape: self, picture, part })
            }
        }
    }

    /// The wanted part in pixels; edges are multiples of `step`.
    fn pixels(&self, width_px: usize, height_px: usize, step: usize) -> PixelRect {
        let [x, y, width, height] = self.crop.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let edge = |at: f32, size: usize| ((at * size as f32).round() as usize).min(size) / step * step;
        let (left, top) = (edge(x, width_px), edge(y, height_px));
        let right = if self.crop.is_none() { width_px } else { edge(x + width, width_px) };
        let bottom = if self.crop.is_none() { height_px } else { edge(y + height, height_px) };
        PixelRect { x: left, y: top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
    }

    /// Whether a point of the whole picture lies in a hidden part (even-odd rule).
    fn hides(&self, x: f32, y: f32) -> bool {
        self.hidden.iter().any(|polygon| {
            let next = polygon.iter().skip(1).chain(polygon.first());
            let crossings = polygon
                .iter()
                .zip(next)
                .filter(|([x1, y1], [x2, y2])| (*y1 > y) != (*y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1);
            crossings.count() % 2 == 1
        })
    }

    fn encode_rgb(&self, pixels: &Pixels, part: PixelRect) -> Result<Bytes, CutError> {
        let (width_px, height_px) = (pixels.width_px as usize, pixels.height_px as usize);
        let all = pixels.rgb.as_chunks::<3>().0;
        let mut rgb = Vec::with_capacity(part.width * part.height * 3);
        for y in part.y..part.y + part.height {
            let row = all.get(y * width_px + part.x..y * width_px + part.x + part.width).unwrap_or_default();
            for (x, pixel) in (part.x..).zip(row) {
                let is_hidden = !self.hidden.is_empty()
                    && self.hides((x as f32 + 0.5) / width_px as f32, (y as f32 + 0.5) / height_px as f32);
                rgb.extend(if is_hidden { [0; 3] } else { *pixel });
            }
        }
        let (width, height) = encodable(part)?;
        let mut jpeg = Vec::with_capacity(rgb.len() / 10);
        encoder(&mut jpeg).encode(&rgb, width, height, ColorType::Rgb)?;
        Ok(jpeg.into())
    }
}

fn encodable(part: PixelRect) -> Result<(u16, u16), CutError> {
    let side = |pixels: usize| u16::try_from(pixels).ok().filter(|side| *side > 0);
    side(part.width).zip(side(part.height)).ok_or(CutError::Size { width_px: part.width, height_px: part.height })
}

fn encoder(out: &mut Vec<u8>) -> Encoder<&mut Vec<u8>> {
    let mut encoder = Encoder::new(out, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder
}

fn encode(part: PixelRect, picture: &YuvPart<'_>) -> Result<Bytes, CutError> {
    encodable(part)?;
    let mut jpeg = Vec::with_capacity(part.width * part.height / 6);
    encoder(&mut jpeg).encode_image(picture)?;
    Ok(jpeg.into())
}

/// The wanted part of a video picture, for the encoder: its own planes, without a way through RGB.
struct YuvPart<'a> {
    shape: &'a RegionShape,
    picture: &'a YuvPicture,
    part: PixelRect,
}

impl ImageBuffer for &YuvPart<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        u16::try_from(self.part.width).unwrap_or(u16::MAX)
    }

    fn height(&self) -> u16 {
        u16::try_from(self.part.height).unwrap_or(u16::MAX)
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let YuvPicture { width_px, height_px, y: luma, u, v } = self.picture;
        let row = self.part.y + usize::from(y);
        let columns = self.part.x..self.part.x + self.part.width;
        let whole = luma.get(row * width_px + columns.start..row * width_px + columns.end).unwrap_or_default();
        let half = row / 2 * (width_px / 2);
        let [out_y, out_u, out_v, _] = buffers;
        let start = out_y.len();
        // Whole rows at once: sample by sample, this takes as long as all the rest of encoding.
        out_y.extend(whole.iter().map(|level| full_luma(*level)));
        for (plane, out) in [(u, &mut *out_u), (v, &mut *out_v)] {
            let row = plane.get(half + columns.start / 2..half + columns.end / 2).unwrap_or_default();
            out.extend(row.iter().flat_map(|level| [full_chroma(*level); 2]));
        }
        if self.shape.hidden.is_empty() {
            return;
        }
        for (x, at) in columns.zip(start..) {
            if self.shape.hides((x as f32 + 0.5) / *width_px as f32, (row as f32 + 0.5) / *height_px as f32) {
                for (out, black) in [(&mut *out_y, 0), (&mut *out_u, 128), (&mut *out_v, 128)] {
                    if let Some(level) = out.get_mut(at) {
                        *level = black;
                    }
                }
            }
        }
    }
}

/// From the limited range of video (16 to 235) to the full range of JPEG (BT.601, JFIF).
fn full_luma(level: u8) -> u8 {
    ((i32::from(level) - 16) * 255 / 219).clamp(0, 255) as u8
}

/// From the limited range of video (16 to 240) to the full range of JPEG.
fn full_chroma(level: u8) -> u8 {
    ((i32::from(level) - 128) * 255 / 224 + 128).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A picture whose left half is dark and whose right half is light, with a color cast.
    fn yuv() -> FramePicture {
        let (width_px, height_px) = (64, 48);
        let y = (0..width_px * height_px).map(|at| if at % width_px < 32 { 40 } else { 200 }).collect();
        let quarter = width_px * height_px / 4;
        FramePicture::Yuv(Arc::new(YuvPicture { width_px, height_px, y, u: vec![128; quarter], v: vec![128; quarter] }))
    }

    fn decoded(bytes: &[u8]) -> Pixels {
        vision::decode(bytes, &DecodeSettings::default()).unwrap()
    }

    fn pixel(pixels: &Pixels, x: u32, y: u32) -> [u8; 3] {
        let at = 3 * (y * pixels.width_px + x) as usize;
        pixels.rgb[at..at + 3].try_into().unwrap()
    }

    fn near(pixel: [u8; 3], gray: u8) -> bool {
        pixel.iter().all(|level| level.abs_diff(gray) < 6)
    }

    #[test]
    fn a_video_picture_becomes_a_jpeg_in_full_range() {
        let whole = decoded(&RegionShape::default().cut(&yuv()).unwrap());
        assert_eq!((whole.width_px, whole.height_px), (64, 48));
        assert!(near(pixel(&whole, 5, 5), full_luma(40)) && near(pixel(&whole, 60, 40), full_luma(200)));
        assert_eq!((full_luma(16), full_luma(235), full_chroma(128)), (0, 255, 128));
    }

    #[test]
    fn colours_stay_where_they_are() {
        let FramePicture::Yuv(mut picture) = yuv() else { panic!("no video") };
        let colored = Arc::make_mut(&mut picture);
        // Red on the right, and a hidden corner in it.
        for (at, level) in colored.v.iter_mut().enumerate() {
            *level = if at % 32 < 16 { 128 } else { 170 };
        }
        let hidden = vec![vec![[0.75, 0.0], [1.0, 0.0], [1.0, 0.5], [0.75, 0.5]]];
        for (crop, left) in [(None, 0), (Some([0.5, 0.0, 0.5, 1.0]), 32)] {
            let shape = RegionShape { crop, hidden: hidden.clone() };
            let cut = decoded(&shape.cut(&FramePicture::Yuv(picture.clone())).unwrap());
            let [red, green, blue] = pixel(&cut, 40 - left, 40);
            assert!(red > green + 40 && blue > green, "{red} {green} {blue}");
            assert!(near(pixel(&cut, 60 - left, 5), 0), "{:?}", pixel(&cut, 60 - left, 5));
        }
    }

    #[test]
    fn a_region_is_cut_from_video_and_from_jpeg_alike() {
        let right = RegionShape { crop: Some([0.5, 0.25, 0.5, 0.5]), hidden: Vec::new() };
        let of_video = right.cut(&yuv()).unwrap();
        let jpeg = FramePicture::Jpeg(RegionShape::default().cut(&yuv()).unwrap());
        let of_jpeg = right.cut(&jpeg).unwrap();
        for cut in [of_video, of_jpeg] {
            let cut = decoded(&cut);
            assert_eq!((cut.width_px, cut.height_px), (32, 24));
            assert!(near(pixel(&cut, 3, 3), full_luma(200)), "{:?}", pixel(&cut, 3, 3));
        }
        let FramePicture::Jpeg(bytes) = &jpeg else { panic!("no JPEG") };
        assert_eq!(&RegionShape::default().cut(&jpeg).unwrap(), bytes, "the whole picture is passed on as it came");
    }

    #[test]
    fn hidden_parts_are_black_and_never_move() {
        let shape = RegionShape { crop: None, hidden: vec![vec![[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]] };
        let jpeg = FramePicture::Jpeg(RegionShape::default().cut(&yuv()).unwrap());
        for picture in [yuv(), jpeg] {
            let cut = decoded(&shape.cut(&picture).unwrap());
            assert!(near(pixel(&cut, 60, 20), 0) && near(pixel(&cut, 5, 20), full_luma(40)));
        }
        let thumbnail = |right: u8| {
            let plane: Vec<u8> = (0..64 * 48).map(|at| if at % 64 < 32 { 40 } else { right }).collect();
            shape.mask(Thumbnail::from_gray(&plane, 64, 64, 48).unwrap())
        };
        assert_eq!(thumbnail(10).difference(&thumbnail(250)).largest_block, 0.0);
    }

    #[test]
    fn the_wanted_part_of_a_plane_is_that_of_the_picture() {
        let FramePicture::Yuv(picture) = yuv() else { panic!("no video") };
        let right = RegionShape { crop: Some([0.5, 0.0, 0.5, 1.0]), hidden: Vec::new() };
        let view = right.view(GrayView::of_yuv(&picture));
        let thumbnail = Thumbnail::from_gray(view.plane, view.stride, view.width_px, view.height_px).unwrap();
        assert_eq!(thumbnail.mean(), 200.0);
    }

    #[test]
    fn what_lies_outside_is_refused_by_name() {
        let crop = |crop| RegionShape { crop: Some(crop), hidden: Vec::new() };
        let hidden = |corners: &[[f32; 2]]| RegionShape { crop: None, hidden: vec![corners.to_vec()] };
        for wrong in [
            crop([0.5, 0.0, 0.6, 1.0]),
            crop([-0.1, 0.0, 0.5, 1.0]),
            crop([0.0, 0.0, 0.0, 1.0]),
            crop([f32::NAN, 0.0, 0.5, 1.0]),
            hidden(&[[0.0, 0.0], [1.0, 1.0]]),
            hidden(&[[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]),
        ] {
            let why = wrong.check().unwrap_err();
            assert!(why.starts_with("crop") || why.starts_with("hidden"), "{why}");
        }
        assert_eq!(crop([0.1, 0.2, 0.9, 0.8]).check(), Ok(()));
        let nothing = crop([0.5, 0.5, 0.001, 0.001]).cut(&yuv());
        assert!(matches!(nothing, Err(CutError::Size { .. })));
    }

    /// Whatever the sampling of a camera's JPEG, its brightness alone is that of the whole picture.
    #[test]
    fn brightness_alone_is_that_of_the_whole_picture() {
        use SamplingFactor::{F_1_1, F_1_2, F_1_4, F_2_1, F_2_2, F_2_4, F_4_1, F_4_2};
        let (width, height) = (150u16, 90u16);
        // Far from black and white, so that colors are not cut off.
        let pixel = |at: usize| [90 + (at % 150 / 3) as u8, 100 + (at / 150 / 2) as u8, 120];
        let rgb: Vec<u8> = (0..usize::from(width) * usize::from(height)).flat_map(pixel).collect();
        for sampling in [F_1_1, F_2_1, F_1_2, F_2_2, F_4_1, F_4_2, F_1_4, F_2_4] {
            let mut jpeg = Vec::new();
            let mut encoder = Encoder::new(&mut jpeg, 95);
            encoder.set_sampling_factor(sampling);
            encoder.encode(&rgb, width, height, ColorType::Rgb).unwrap();
            let mut alone = GrayPixels::default();
            vision::decode_gray_into(&jpeg, &DecodeSettings::default(), &mut alone)
                .unwrap_or_else(|error| panic!("{sampling:?}: {error}"));
            let of_rgb = |pixel: &[u8; 3]| {
                let [r, g, b] = pixel.map(f32::from);
                0.299 * r + 0.587 * g + 0.114 * b
            };
            let whole = decoded(&jpeg);
            let apart = alone.gray.iter().zip(whole.rgb.as_chunks::<3>().0);
            let apart = apart.map(|(gray, pixel)| (f32::from(*gray) - of_rgb(pixel)).abs()).fold(0.0, f32::max);
            assert!(apart < 4.0 && alone.gray.len() * 3 == whole.rgb.len(), "{sampling:?}: {apart} levels apart");
        }
    }
}
