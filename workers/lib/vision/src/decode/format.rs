//! Picture formats, recognized from the first bytes.

use std::fmt;

use image::ImageFormat;
use serde::Serialize;

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// Baseline or progressive; grey, YCbCr or CMYK.
    Jpeg,
    /// For an animated one, its default image.
    Png,
    /// Lossy or lossless; for an animated one, its first frame.
    WebP,
    /// Classic or BigTIFF: the first page that is not a thumbnail.
    Tiff,
    /// Windows bitmap.
    Bmp,
    /// Its first frame.
    Gif,
    /// PBM, PGM, PPM or PAM.
    Pnm,
}

impl PictureFormat {
    /// Lower-case name, as in file extensions.
    pub fn name(self) -> &'static str {
        match self {
            PictureFormat::Jpeg => "jpeg",
            PictureFormat::Png => "png",
            PictureFormat::WebP => "webp",
            PictureFormat::Tiff => "tiff",
            PictureFormat::Bmp => "bmp",
            PictureFormat::Gif => "gif",
            PictureFormat::Pnm => "pnm",
        }
    }

    /// The format by the first bytes alone.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        // 43 instead of 42: 64-bit offsets (BigTIFF).
        if bytes.starts_with(b"II\x2b\0") || bytes.starts_with(b"MM\0\x2b") {
            return Some(PictureFormat::Tiff);
        }
        match image::guess_format(bytes).ok()? {
            ImageFormat::Jpeg => Some(PictureFormat::Jpeg),
            ImageFormat::Png => Some(PictureFormat::Png),
            ImageFormat::WebP => Some(PictureFormat::WebP),
            ImageFormat::Tiff => Some(PictureFormat::Tiff),
            ImageFormat::Bmp => Some(PictureFormat::Bmp),
            ImageFormat::Gif => Some(PictureFormat::Gif),
            // A text may also begin with "P5".
            ImageFormat::Pnm => bytes.get(2).is_some_and(u8::is_ascii_whitespace).then_some(PictureFormat::Pnm),
            _ => None,
        }
    }

    pub(super) fn outside(self) -> ImageFormat {
        match self {
            PictureFormat::Jpeg => ImageFormat::Jpeg,
            PictureFormat::Png => ImageFormat::Png,
            PictureFormat::WebP => ImageFormat::WebP,
            PictureFormat::Tiff => ImageFormat::Tiff,
            PictureFormat::Bmp => ImageFormat::Bmp,
            PictureFormat::Gif => ImageFormat::Gif,
            PictureFormat::Pnm => ImageFormat::Pnm,
        }
    }
}

impl fmt::Display for PictureFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Number of significant bits per sample, according to a PNG (chunk sBIT, PNG 11.3.2.8). Pure.
pub(super) fn significant_bits(bytes: &[u8]) -> Option<u8> {
    let mut at = 8;
    // It precedes the pixels.
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
