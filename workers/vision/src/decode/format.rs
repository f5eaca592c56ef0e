//! Formats of pictures, told from their first bytes.

use std::fmt;

use image::ImageFormat;
use serde::Serialize;

/// The formats read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Baseline or progressive, grey, YCbCr or CMYK.
    Jpeg,
    /// Of an animated one, the default image.
    Png,
    /// Lossy or lossless; of an animated one, the first frame.
    WebP,
    /// Classic or BigTIFF: the first page that is no thumbnail.
    Tiff,
    /// Windows bitmap.
    Bmp,
    /// The first frame.
    Gif,
    /// PBM, PGM, PPM or PAM.
    Pnm,
}

impl Format {
    /// Lower-case, as in file extensions.
    pub fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "jpeg",
            Format::Png => "png",
            Format::WebP => "webp",
            Format::Tiff => "tiff",
            Format::Bmp => "bmp",
            Format::Gif => "gif",
            Format::Pnm => "pnm",
        }
    }

    /// By the first bytes alone.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        // 43 instead of 42: offsets of 64 bits.
        if bytes.starts_with(b"II\x2b\0") || bytes.starts_with(b"MM\0\x2b") {
            return Some(Format::Tiff);
        }
        match image::guess_format(bytes).ok()? {
            ImageFormat::Jpeg => Some(Format::Jpeg),
            ImageFormat::Png => Some(Format::Png),
            ImageFormat::WebP => Some(Format::WebP),
            ImageFormat::Tiff => Some(Format::Tiff),
            ImageFormat::Bmp => Some(Format::Bmp),
            ImageFormat::Gif => Some(Format::Gif),
            // "P5" is also how a text may begin.
            ImageFormat::Pnm => bytes.get(2).is_some_and(u8::is_ascii_whitespace).then_some(Format::Pnm),
            _ => None,
        }
    }

    pub(super) fn outside(self) -> ImageFormat {
        match self {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::WebP => ImageFormat::WebP,
            Format::Tiff => ImageFormat::Tiff,
            Format::Bmp => ImageFormat::Bmp,
            Format::Gif => ImageFormat::Gif,
            Format::Pnm => ImageFormat::Pnm,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many bits of each sample mean something, as a PNG says (chunk sBIT, PNG 11.3.2.8). Pure.
pub(super) fn significant_bits(bytes: &[u8]) -> Option<u8> {
    let mut at = 8;
    // It stands before the pixels.
    while let Some([a, b, c, d, kind @ ..]) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if kind == b"IDAT" {
            return None;
        }
        if kind == b"sBIT" {
            let bits = bytes.get(at + 8..at + 8 + length)?.iter().copied().max()?;
            return Some(bits).filter(|bits| (1..=16).contains(bits));
        }
        at = at.checked_add(12)?.checked_add(length)?;
    }
    None
}
