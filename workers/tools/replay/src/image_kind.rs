//! File extension of an image, judged by its bytes.

use vision::decode::PictureFormat;

/// The usual extension of the format of these bytes; `bin` for an unknown format.
pub(crate) fn extension(bytes: &[u8]) -> &'static str {
    match PictureFormat::of(bytes) {
        Some(PictureFormat::Jpeg) => "jpg",
        Some(PictureFormat::Tiff) => "tif",
        Some(format) => format.name(),
        None => "bin",
    }
}
