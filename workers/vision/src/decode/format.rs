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
    /// The first page.
    Tiff,
    /// Windows bitmap.
    Bmp,
    /// The first frame.
    Gif,
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
        }
    }

    /// By the first bytes alone.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match image::guess_format(bytes).ok()? {
            ImageFormat::Jpeg => Some(Format::Jpeg),
            ImageFormat::Png => Some(Format::Png),
            ImageFormat::WebP => Some(Format::WebP),
            ImageFormat::Tiff => Some(Format::Tiff),
            ImageFormat::Bmp => Some(Format::Bmp),
            ImageFormat::Gif => Some(Format::Gif),
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
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The usual mistakes by name.
pub(super) fn looks_like(bytes: &[u8]) -> &'static str {
    let has = |at: usize, what: &[u8]| bytes.get(at..at + what.len()) == Some(what);
    let text = |bytes: &[u8]| bytes.iter().take(64).all(|byte| matches!(byte, 9 | 10 | 13 | 32..=126));
    match () {
        () if has(4, b"ftypavif") || has(4, b"ftypavis") => "AVIF",
        () if has(4, b"ftyphe") || has(4, b"ftypmif1") || has(4, b"ftypmsf1") => "HEIC, the format of phones",
        () if has(4, b"ftyp") => "a video (MP4)",
        () if has(0, b"\xff\x0a") || has(4, b"JXL ") => "JPEG XL",
        () if has(4, b"jP  ") => "JPEG 2000",
        () if has(0, b"%PDF") => "a PDF document",
        () if has(0, b"PK\x03\x04") => "a ZIP archive",
        () if has(0, b"\x1f\x8b") => "a gzip archive",
        () if has(0, b"RIFF") => "a sound or video (RIFF)",
        () if has(128, b"DICM") => "DICOM",
        () if has(0, b"\0\0\x01\0") => "an icon (ICO)",
        () if has(0, b"{") || has(0, b"[") => "JSON",
        () if has(0, b"<") => "HTML, XML or SVG",
        () if text(bytes) => "text",
        () if bytes.iter().all(|byte| *byte == 0) => "nothing but zeros",
        () => "no picture",
    }
}
