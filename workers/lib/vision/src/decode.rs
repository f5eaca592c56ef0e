//! Decodes image bytes into upright RGB pixels; the only module that names image decoders.
//!
//! In: the bytes as published. Out: [`Pixels`] with the orientation applied. Refused: anything too large for its
//! [`DecodeSettings`] (judged by the header, before a pixel is allocated), unknown formats, and pictures that are cut
//! off or damaged, as partial pictures are not recognized. The format is recognized from the bytes, never from a name.
//!
//! The first frame of an animated GIF, PNG or WebP is used, and the first page of a TIFF that is not a thumbnail.
//! Transparency is dropped and the colour beneath kept, as in Pillow's `convert("RGB")`, unless a background is set;
//! 16-bit channels become 8-bit by the bits that are used.
//!
//! A picture may be wrapped in base64, a data URL or JSON, or follow a few bytes of junk (`envelope`); this is noted.

mod envelope;
mod error;
mod format;
mod format_guess;
mod jpeg;
mod levels;
mod tiff;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, RgbImage};
use schemas::limits::MAX_IMAGE_BYTES;
use serde::{Deserialize, Serialize};

pub use self::envelope::ImageEnvelope;
use self::envelope::{UnwrappedImage, unwrap_image};
pub use self::error::DecodeError;
use self::error::cut;
pub use self::format::PictureFormat;
pub use self::format_guess::FormatGuess;
use self::format_guess::guess_unknown;
use self::levels::{BitDepthHint, SampleScale};

/// A reused pixel buffer larger than this is shrunk when a picture needs less than a quarter of it, so that one huge
/// picture does not hold memory forever. Bytes; an estimate.
const KEEP_BYTES: usize = 16 * 1024 * 1024;

/// Most bytes that programs append after the end of a picture.
const MAX_TRAILER_BYTES: usize = 4096;

/// Limits of decoding, each checked before the memory it guards is allocated, and how to read what a file leaves open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeSettings {
    /// Largest picture as published, in bytes.
    pub max_bytes: usize,
    /// Longest side in pixels.
    pub max_side_px: u32,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most memory per decode in bytes: the pixels, a second picture if it is rotated, and the decoder's own buffers.
    pub max_memory_bytes: u64,
    /// Used bits of 16-bit pictures, 8 to 16, if the file does not say; absent: the fewest of 10, 12, 14 and 16 that
    /// hold its brightest sample.
    pub deep_bits: Option<u8>,
    /// Red, green and blue (0 to 255) behind transparent pictures; absent: their own colours.
    pub background: Option<[u8; 3]>,
}

impl Default for DecodeSettings {
    fn default() -> Self {
        Self {
            max_bytes: usize::try_from(MAX_IMAGE_BYTES).unwrap_or(usize::MAX),
            max_side_px: 16_384,
            max_pixels: 50_000_000,
            // 50 million pixels, rotated.
            max_memory_bytes: 320 * 1024 * 1024,
            deep_bits: None,
            background: None,
        }
    }
}

impl DecodeSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        match self.deep_bits.filter(|bits| !(8..=16).contains(bits)) {
            Some(bits) => Err(format!("deep_bits is {bits}; it must be between 8 and 16")),
            None => Ok(()),
        }
    }
}

/// A decoded, upright picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pixels {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Rows from the top, pixels from the left, three bytes each: red, green, blue.
    pub rgb: Vec<u8>,
}

impl Pixels {
    /// Resizes the buffer and returns it; its old content must be overwritten.
    fn resize(&mut self, width_px: u32, height_px: u32) -> &mut [u8] {
        let size = width_px as usize * height_px as usize * 3;
        if self.rgb.capacity() > KEEP_BYTES && size < self.rgb.capacity() / 4 {
            self.rgb = Vec::new();
        }
        if self.rgb.len() < size {
            self.rgb.clear();
            self.rgb.resize(size, 0);
        }
        self.rgb.truncate(size);
        (self.width_px, self.height_px) = (width_px, height_px);
        &mut self.rgb
    }

    /// Rotates the picture upright.
    fn make_upright(&mut self, orientation: Orientation, format: PictureFormat) -> Result<(), DecodeError> {
        if orientation == Orientation::NoTransforms {
            return Ok(());
        }
        let rgb = std::mem::take(&mut self.rgb);
        let stored = RgbImage::from_raw(self.width_px, self.height_px, rgb)
            .ok_or_else(|| DecodeError::corrupt(format, "pixels are missing"))?;
        let mut picture = DynamicImage::ImageRgb8(stored);
        picture.apply_orientation(orientation);
        (self.width_px, self.height_px) = (picture.width(), picture.height());
        self.rgb = picture.into_rgb8().into_raw();
        Ok(())
    }
}

/// The brightness of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrayPixels {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Rows from the top, one byte each pixel, 0 (black) to 255 (white).
    pub gray: Vec<u8>,
}

/// Decodes the brightness alone into an existing buffer, as stored, not rotated: half the work where the file keeps it
/// apart from the colours. After an error the buffer's content is undefined.
///
/// # Errors
/// As [`decode_into`].
pub fn decode_gray_into(bytes: &[u8], settings: &DecodeSettings, gray: &mut GrayPixels) -> Result<(), DecodeError> {
    let (image, format) = recognize(bytes, settings)?;
    if format == PictureFormat::Jpeg {
        let decoded = catch_unwind(AssertUnwindSafe(|| jpeg::decode_gray(&image.bytes, settings, gray)));
        let decoded = decoded.unwrap_or_else(|panic| {
            Err(DecodeError::DecoderPanicked { format, why: cut(panic_message(panic.as_ref())) })
        })?;
        if decoded {
            return Ok(());
        }
    }
    let pixels = decode(bytes, settings)?;
    (gray.width_px, gray.height_px) = (pixels.width_px, pixels.height_px);
    gray.gray.clear();
    gray.gray.extend(pixels.rgb.as_chunks::<3>().0.iter().map(|pixel| crate::tensor::luma(*pixel)));
    Ok(())
}

/// Decodes into a new buffer.
pub fn decode(bytes: &[u8], settings: &DecodeSettings) -> Result<Pixels, DecodeError> {
    let mut pixels = Pixels::default();
    decode_into(bytes, settings, &mut pixels)?;
    Ok(pixels)
}

/// Decodes into an existing buffer, which saves an allocation per picture. Returns what surrounded the picture. After
/// an error the buffer's content is undefined.
pub fn decode_into(bytes: &[u8], settings: &DecodeSettings, pixels: &mut Pixels) -> Result<ImageEnvelope, DecodeError> {
    let (image, format) = recognize(bytes, settings)?;
    let bytes = &*image.bytes;
    catch_panics(format, pixels, |pixels| match format {
        PictureFormat::Jpeg => jpeg::decode(bytes, settings, pixels),
        PictureFormat::Tiff => tiff::decode(bytes, settings, 1, pixels),
        _ => other(format, bytes, settings, pixels),
    })?;
    Ok(image.envelope)
}

/// Decodes page `number` of a TIFF, from 1.
pub(crate) fn decode_page(
    bytes: &[u8],
    settings: &DecodeSettings,
    number: usize,
    pixels: &mut Pixels,
) -> Result<(), DecodeError> {
    catch_panics(PictureFormat::Tiff, pixels, |pixels| tiff::decode(bytes, settings, number, pixels))
}

/// Number of pages of a TIFF.
pub(crate) fn count_tiff_pages(bytes: &[u8], settings: &DecodeSettings) -> usize {
    catch_unwind(|| tiff::count_pages(bytes, settings)).unwrap_or(1)
}

/// A decoder panic fails only that picture; the thread continues.
fn catch_panics(
    format: PictureFormat,
    pixels: &mut Pixels,
    work: impl FnOnce(&mut Pixels) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    match catch_unwind(AssertUnwindSafe(|| work(pixels))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            *pixels = Pixels::default();
            Err(DecodeError::DecoderPanicked { format, why: cut(panic_message(panic.as_ref())) })
        }
    }
}

/// Whether a picture reaches the end that its format states; also true if none is stated. False for a picture that was
/// cut off, is still being written, or has unwritten space at its end.
pub fn is_complete(bytes: &[u8]) -> bool {
    match PictureFormat::of(bytes) {
        Some(PictureFormat::Jpeg) => jpeg::is_closed(bytes),
        // The last chunk is empty (PNG 11.2.5).
        Some(PictureFormat::Png) => {
            bytes.windows(8).rev().take(MAX_TRAILER_BYTES).any(|chunk| chunk == b"\0\0\0\0IEND")
        }
        Some(PictureFormat::Gif) => bytes.iter().rev().find(|byte| **byte != 0) == Some(&b';'),
        Some(PictureFormat::WebP) => stated_size(bytes, 4).is_none_or(|size| bytes.len() >= size + 8),
        Some(PictureFormat::Bmp) => stated_size(bytes, 2).is_none_or(|size| bytes.len() >= size),
        Some(PictureFormat::Tiff | PictureFormat::Pnm) => true,
        None => bytes.iter().take(MAX_TRAILER_BYTES).any(|byte| *byte != 0),
    }
}

fn stated_size(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// Format, width and height from the header alone, as stored, before rotation.
pub fn dimensions(bytes: &[u8]) -> Result<(PictureFormat, u32, u32), DecodeError> {
    let settings = DecodeSettings { max_bytes: usize::MAX, ..DecodeSettings::default() };
    let (image, format) = recognize(bytes, &settings)?;
    let work = || match format {
        PictureFormat::Jpeg => jpeg::dimensions(&image.bytes),
        PictureFormat::Tiff => tiff::dimensions(&image.bytes, &settings),
        _ => Ok(opened(format, &image.bytes, &settings)?.dimensions()),
    };
    let found = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(DecodeError::DecoderPanicked { format, why: cut(panic_message(panic.as_ref())) }));
    found.map(|(width_px, height_px)| (format, width_px, height_px))
}

/// The message of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Unwraps the picture and recognizes its format.
fn recognize<'a>(
    bytes: &'a [u8],
    settings: &DecodeSettings,
) -> Result<(UnwrappedImage<'a>, PictureFormat), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > settings.max_bytes {
        return Err(DecodeError::TooLarge { size_bytes: bytes.len() as u64, limit_bytes: settings.max_bytes as u64 });
    }
    let image = unwrap_image(bytes);
    match PictureFormat::of(&image.bytes) {
        Some(format) => Ok((image, format)),
        None => Err(DecodeError::UnknownFormat {
            first_bytes: bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect(),
            guess: guess_unknown(bytes),
        }),
    }
}

fn opened<'a>(
    format: PictureFormat,
    bytes: &'a [u8],
    settings: &DecodeSettings,
) -> Result<Box<dyn ImageDecoder + 'a>, DecodeError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.outside());
    let mut inner = image::Limits::no_limits();
    inner.max_alloc = Some(settings.max_memory_bytes);
    reader.limits(inner);
    Ok(Box::new(reader.into_decoder().map_err(|error| image_error(format, &error))?))
}

fn other(
    format: PictureFormat,
    bytes: &[u8],
    settings: &DecodeSettings,
    pixels: &mut Pixels,
) -> Result<(), DecodeError> {
    let mut decoder = opened(format, bytes, settings)?;
    let (width_px, height_px) = decoder.dimensions();
    if width_px == 0 || height_px == 0 {
        return Err(DecodeError::corrupt(format, "width or height is zero"));
    }
    let colours = decoder.color_type();
    let direct = colours == ColorType::Rgb8;
    let orientation = decoder.orientation().map_err(|error| image_error(format, &error))?;
    let converted = if is_deep(colours) { u64::from(width_px) * u64::from(height_px) * 8 } else { 0 };
    let extra_bytes = if direct { 0 } else { decoder.total_bytes() + converted };
    check(format, width_px, height_px, extra_bytes, orientation, settings)?;
    if direct {
        let buffer = pixels.resize(width_px, height_px);
        decoder.read_image_boxed(buffer).map_err(|error| image_error(format, &error))?;
    } else {
        let picture = DynamicImage::from_decoder(decoder).map_err(|error| image_error(format, &error))?;
        let declared_max = (format == PictureFormat::Png).then(|| format::significant_bits(bytes)).flatten();
        let deep = BitDepthHint { declared_max: declared_max.map(|bits| (1 << bits) - 1), bits: settings.deep_bits };
        let buffer = pixels.resize(width_px, height_px);
        match settings.background.filter(|_| colours.has_alpha()) {
            None if is_deep(colours) => {
                let values = picture.into_rgb16().into_raw();
                buffer.copy_from_slice(&SampleScale::from_samples(&values, deep).to_eight(values));
            }
            None => buffer.copy_from_slice(&picture.into_rgb8()),
            background => {
                let rgba = picture.into_rgba8();
                for (out, image::Rgba([red, green, blue, alpha])) in
                    buffer.as_chunks_mut::<3>().0.iter_mut().zip(rgba.pixels())
                {
                    *out = levels::blend_over([*red, *green, *blue], *alpha, background);
                }
            }
        }
    }
    pixels.make_upright(orientation, format)
}

fn is_deep(colours: ColorType) -> bool {
    matches!(colours, ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16)
}

fn image_error(format: PictureFormat, error: &ImageError) -> DecodeError {
    let why = cut(error);
    let early = |error: &dyn std::error::Error| {
        let text = error.to_string().to_ascii_lowercase();
        text.contains("unexpected end") || text.contains("unexpected eof") || text.contains("failed to fill")
    };
    match error {
        ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format, why }
        }
        ImageError::Decoding(_) | ImageError::IoError(_) if early(error) => DecodeError::Truncated { format, why },
        ImageError::Unsupported(_) => DecodeError::Unsupported { format, why },
        _ => DecodeError::Corrupt { format, why },
    }
}

/// `extra_bytes`: memory the decoder needs besides the RGB pixels.
fn check(
    format: PictureFormat,
    width_px: u32,
    height_px: u32,
    extra_bytes: u64,
    orientation: Orientation,
    settings: &DecodeSettings,
) -> Result<(), DecodeError> {
    let limit_px = settings.max_side_px;
    if width_px > limit_px || height_px > limit_px {
        return Err(DecodeError::SideTooLong { format, width_px, height_px, limit_px });
    }
    let count = u64::from(width_px) * u64::from(height_px);
    if count > settings.max_pixels {
        return Err(DecodeError::TooManyPixels { format, width_px, height_px, limit: settings.max_pixels });
    }
    // A quarter turn needs a second picture.
    let pictures = if orientation == Orientation::NoTransforms { 1 } else { 2 };
    let needed_bytes = (count * 3 * pictures).saturating_add(extra_bytes);
    let limit_bytes = settings.max_memory_bytes;
    if needed_bytes > limit_bytes {
        return Err(DecodeError::TooMuchMemory { format, width_px, height_px, needed_bytes, limit_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, ImageBuffer, ImageEncoder, ImageFormat, Luma, Rgb, Rgba};
    use proptest::prelude::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
    }

    fn limits() -> DecodeSettings {
        DecodeSettings::default()
    }

    /// Four flat quarters, so that a lossy format hardly changes them and no two rotations look alike.
    fn upright() -> RgbImage {
        let colours = [[200, 30, 30], [30, 200, 30], [30, 30, 200], [240, 240, 240]];
        RgbImage::from_fn(48, 32, |x, y| Rgb(colours[usize::from(x >= 24) + 2 * usize::from(y >= 16)]))
    }

    fn noise(width_px: u32, height_px: u32) -> RgbImage {
        let mut state = 1_u32;
        RgbImage::from_fn(width_px, height_px, |_, _| {
            Rgb([0; 3].map(|_: u8| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        })
    }

    fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_picture_that_was_cut_off_does_not_reach_its_end() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Bmp] {
            let whole = encoded(&noise(48, 32), format);
            assert!(is_complete(&whole), "{format:?}");
            assert!(is_complete(&[&whole[..], &[0; 40]].concat()), "{format:?} with zeros behind it");
            for kept in [whole.len() - 16, whole.len() / 2, 40] {
                assert!(!is_complete(&whole[..kept]), "{format:?} cut after {kept} of {} bytes", whole.len());
            }
        }
        assert!(!is_complete(&[0; 5000]), "unwritten space");
        assert!(is_complete(b"an error page"), "unknown formats count as complete");
    }

    fn assert_close(actual: &Pixels, expected: &RgbImage, tolerance: u8, what: &str) {
        assert_eq!((actual.width_px, actual.height_px), expected.dimensions(), "{what}");
        let worst = actual.rgb.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= tolerance, "{what}: differs by {worst}");
    }

    /// Each of the eight ways a picture can be stored, with the tag that undoes it.
    fn stored(orientation: u8) -> RgbImage {
        use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
        let upright = upright();
        match orientation {
            2 => flip_horizontal(&upright),
            3 => rotate180(&upright),
            4 => flip_vertical(&upright),
            5 => flip_horizontal(&rotate90(&upright)),
            6 => rotate270(&upright),
            7 => flip_vertical(&rotate90(&upright)),
            8 => rotate90(&upright),
            _ => upright,
        }
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        exif
    }

    fn with_exif(mut encoder: impl ImageEncoder, orientation: u8) {
        let picture = stored(orientation);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&picture, picture.width(), picture.height(), ExtendedColorType::Rgb8).unwrap();
    }

    #[test]
    fn every_format_is_decoded_correctly() {
        for format in [PictureFormat::Png, PictureFormat::Tiff, PictureFormat::Bmp, PictureFormat::WebP] {
            let pixels = decode(&encoded(&upright(), format.outside()), &limits()).unwrap();
            assert_close(&pixels, &upright(), 0, format.name());
        }
        for format in [PictureFormat::Jpeg, PictureFormat::Gif] {
            let pixels = decode(&encoded(&upright(), format.outside()), &limits()).unwrap();
            assert_close(&pixels, &upright(), 12, format.name());
        }
    }

    #[test]
    fn all_eight_orientations_of_a_jpeg_give_one_upright_picture() {
        for orientation in 1..=8 {
            let mut bytes = Vec::new();
            with_exif(JpegEncoder::new_with_quality(&mut bytes, 95), orientation);
            let pixels = decode(&bytes, &limits()).unwrap();
            assert_close(&pixels, &upright(), 12, &format!("orientation {orientation}"));
        }
    }

    #[test]
    fn orientation_is_read_from_png_webp_and_tiff_too() {
        for orientation in 1..=8 {
            let (mut png, mut webp) = (Vec::new(), Vec::new());
            with_exif(PngEncoder::new(&mut png), orientation);
            with_exif(WebPEncoder::new_lossless(&mut webp), orientation);
            for (bytes, format) in [(png, "png"), (webp, "webp")] {
                let pixels = decode(&bytes, &limits()).unwrap();
                assert_close(&pixels, &upright(), 0, &format!("{format}, orientation {orientation}"));
            }
        }
        assert_close(&decode(&fixture("orientation6.tif"), &limits()).unwrap(), &upright(), 0, "tiff");
    }

    #[test]
    fn cmyk_and_grey_jpegs_become_rgb() {
        assert_close(&decode(&fixture("cmyk.jpg"), &limits()).unwrap(), &upright(), 12, "cmyk");
        let grey = decode(&fixture("grey_progressive.jpg"), &limits()).unwrap();
        let expected = image::imageops::grayscale(&upright());
        let expected = RgbImage::from_fn(48, 32, |x, y| Rgb([expected.get_pixel(x, y).0[0]; 3]));
        // Rec. 709 in `image`, Rec. 601 in Pillow: up to 60 levels apart in green.
        assert_eq!((grey.width_px, grey.height_px), (48, 32));
        assert!(grey.rgb.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
        assert!(grey.rgb[47 * 3 + 31 * 48 * 3].abs_diff(expected.get_pixel(47, 31).0[0]) <= 12);
    }

    #[test]
    fn the_first_frame_of_an_animation_is_the_picture() {
        assert_close(&decode(&fixture("animated.png"), &limits()).unwrap(), &upright(), 0, "png");
        assert_close(&decode(&fixture("animated.webp"), &limits()).unwrap(), &upright(), 0, "webp");
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for picture in [upright(), RgbImage::new(48, 32)] {
            encoder.encode(&picture, 48, 32, ExtendedColorType::Rgb8).unwrap();
        }
        drop(encoder);
        assert_close(&decode(&bytes, &limits()).unwrap(), &upright(), 12, "gif");
    }

    #[test]
    fn sixteen_bits_become_eight_and_transparency_is_dropped() {
        let deep = ImageBuffer::from_fn(4, 4, |x, y| Luma([(x * 16_384 + y * 4_000) as u16]));
        let mut bytes = Cursor::new(Vec::new());
        deep.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let pixels = decode(bytes.get_ref(), &limits()).unwrap();
        for (pixel, deep) in pixels.rgb.chunks(3).zip(deep.as_raw()) {
            assert!(pixel.iter().all(|value| (f32::from(*value) - f32::from(*deep) / 257.0).abs() <= 0.51));
        }
        let clear = ImageBuffer::from_fn(4, 4, |x, _| Rgba([10, 20, 30, (x * 80) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        clear.write_to(&mut bytes, ImageFormat::Png).unwrap();
        assert_eq!(decode(bytes.get_ref(), &limits()).unwrap().rgb, [10, 20, 30].repeat(16));
    }

    #[test]
    fn a_palette_with_transparency_becomes_its_colours() {
        assert_close(&decode(&fixture("palette_alpha.png"), &limits()).unwrap(), &upright(), 0, "palette");
    }

    #[test]
    fn a_used_buffer_gives_what_a_new_one_gives() {
        let mut pixels = Pixels::default();
        for (width_px, height_px) in [(64, 64), (33, 17), (80, 70), (1, 1)] {
            let bytes = encoded(&noise(width_px, height_px), ImageFormat::Jpeg);
            pixels.rgb.fill(0xaa);
            decode_into(&bytes, &limits(), &mut pixels).unwrap();
            assert_eq!(pixels, decode(&bytes, &limits()).unwrap());
        }
    }

    #[test]
    fn nothing_is_refused_as_empty() {
        assert_eq!(decode(b"", &limits()), Err(DecodeError::Empty));
    }

    #[test]
    fn an_unknown_format_is_refused_with_a_guess() {
        let long = [b"hello, this is only text ".as_slice(), &[b'x'; 64]].concat();
        for (bytes, guess) in [
            (long.as_slice(), "text"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"%PDF-1.7 and so on", "PDF"),
            (b"{\"image\": 1}", "JSON"),
            (&[0; 100], "zeros"),
        ] {
            let error = decode(bytes, &limits()).unwrap_err();
            assert_eq!(error.name(), "image_unknown_format");
            assert!(error.to_string().contains(guess), "{error}");
        }
    }

    #[test]
    fn a_picture_cut_off_is_refused_wherever_it_ends() {
        for format in [
            PictureFormat::Jpeg,
            PictureFormat::Png,
            PictureFormat::WebP,
            PictureFormat::Gif,
            PictureFormat::Tiff,
            PictureFormat::Bmp,
        ] {
            let bytes = encoded(&noise(64, 48), format.outside());
            for percent in [10, 50, 90] {
                let error = decode(&bytes[..bytes.len() * percent / 100], &limits()).unwrap_err();
                let name = error.name();
                assert!(name == "image_truncated" || name == "image_corrupt", "{format} {percent}%: {error:?}");
                let exact = matches!(format, PictureFormat::Jpeg | PictureFormat::Png);
                assert!(!exact || name == "image_truncated", "{format} {percent}%: {error:?}");
            }
        }
    }

    #[test]
    fn a_jpeg_that_lacks_nothing_but_its_end_marker_is_read() {
        let bytes = encoded(&upright(), ImageFormat::Jpeg);
        assert!(bytes.ends_with(&[0xff, 0xd9]));
        assert_close(&decode(&bytes[..bytes.len() - 2], &limits()).unwrap(), &upright(), 12, "without end marker");
    }

    #[test]
    fn bytes_after_the_end_of_a_jpeg_do_not_matter() {
        let mut bytes = encoded(&upright(), ImageFormat::Jpeg);
        bytes.extend([b"trailer of a phone".as_slice(), &[0; 5000]].concat());
        assert_close(&decode(&bytes, &limits()).unwrap(), &upright(), 12, "with a trailer");
    }

    /// The header of a JPEG with another size.
    fn jpeg_claiming(width_px: u16, height_px: u16) -> Vec<u8> {
        let mut bytes = encoded(&upright(), ImageFormat::Jpeg);
        let at = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bytes[at + 5..at + 7].copy_from_slice(&height_px.to_be_bytes());
        bytes[at + 7..at + 9].copy_from_slice(&width_px.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    fn png_claiming(width_px: u32, height_px: u32) -> Vec<u8> {
        let mut bytes = encoded(&upright(), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&width_px.to_be_bytes());
        bytes[20..24].copy_from_slice(&height_px.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn a_bomb_is_refused_from_its_header() {
        let mut limits = limits();
        for bytes in [jpeg_claiming(60_000, 60_000), png_claiming(20_000, 20_000)] {
            assert_eq!(decode(&bytes, &limits).unwrap_err().name(), "image_side_too_long");
        }
        limits.max_side_px = u32::MAX;
        for bytes in [jpeg_claiming(60_000, 60_000), png_claiming(20_000, 20_000)] {
            assert_eq!(decode(&bytes, &limits).unwrap_err().name(), "image_too_many_pixels");
        }
        limits.max_pixels = u64::MAX;
        for bytes in [jpeg_claiming(60_000, 60_000), png_claiming(20_000, 20_000)] {
            assert_eq!(decode(&bytes, &limits).unwrap_err().name(), "image_too_much_memory");
        }
    }

    #[test]
    fn a_second_frame_in_a_jpeg_does_not_bypass_the_limits() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path.join("../../../fixtures/images/field/jpeg-scans-apart-420.jpg")).unwrap();
        let at = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let end = at + 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        let mut huge = bytes[at..end].to_vec();
        huge[5..9].fill(0xff);
        for place in [at, end] {
            let two = [&bytes[..place], &huge, &bytes[place..]].concat();
            match decode(&two, &limits()) {
                Ok(pixels) => assert_eq!((pixels.width_px, pixels.height_px), (64, 48)),
                Err(error) => assert!(error.name().starts_with("image_"), "{error}"),
            }
        }
    }

    #[test]
    fn sizes_are_read_from_the_header_alone() {
        assert_eq!(dimensions(&jpeg_claiming(60_000, 50_000)).unwrap(), (PictureFormat::Jpeg, 60_000, 50_000));
        assert_eq!(dimensions(&encoded(&upright(), ImageFormat::WebP)).unwrap(), (PictureFormat::WebP, 48, 32));
    }

    #[test]
    fn more_bytes_than_allowed_are_refused_unread() {
        let limits = DecodeSettings { max_bytes: 10, ..limits() };
        let error = decode(&[0xff; 11], &limits).unwrap_err();
        assert_eq!(error, DecodeError::TooLarge { size_bytes: 11, limit_bytes: 10 });
    }

    #[test]
    fn a_huge_buffer_is_released() {
        let mut pixels = Pixels { rgb: Vec::with_capacity(KEEP_BYTES + 1), ..Pixels::default() };
        decode_into(&encoded(&upright(), ImageFormat::Png), &limits(), &mut pixels).unwrap();
        assert!(pixels.rgb.capacity() < KEEP_BYTES);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
        #[test]
        fn damaged_bytes_never_panic_and_never_give_half_a_picture(
            format in prop::sample::select(vec![
                PictureFormat::Jpeg, PictureFormat::Png, PictureFormat::WebP, PictureFormat::Tiff, PictureFormat::Bmp, PictureFormat::Gif,
            ]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            kept in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = encoded(&noise(24, 16), format.outside());
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(kept) = kept {
                bytes.truncate(kept.index(bytes.len()));
            }
            let limits = DecodeSettings { max_pixels: 1_000_000, ..limits() };
            match decode(&bytes, &limits) {
                Ok(pixels) => {
                    prop_assert_eq!(pixels.rgb.len(), (pixels.width_px * pixels.height_px * 3) as usize);
                }
                Err(error) => {
                    prop_assert!(error.name().starts_with("image_"));
                    prop_assert!(error.remedy().ends_with('.'));
                }
            }
            let _ = dimensions(&bytes);
        }
    }
}
