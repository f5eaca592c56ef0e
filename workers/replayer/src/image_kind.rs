//! What an image file is called: by its bytes, whatever it was called before.

use vision::decode::PictureFormat;

/// The usual extension of the format of these bytes; `bin` for what is none that is decoded here.
pub fn extension(bytes: &[u8]) -> &'static str {
    match PictureFormat::of(bytes) {
        Some(PictureFormat::Jpeg) => "jpg",
        Some(PictureFormat::Tiff) => "tif",
        Some(format) => format.name(),
        None => "bin",
    }
}
