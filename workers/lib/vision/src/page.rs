//! Extracts one picture per page from a file with several pages.
//!
//! Only TIFF: its thumbnails and masks are not pages ([`crate::decode`]). Pages are upright and lossless, as PNG.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::decode::{DecodeSettings, PictureFormat, Pixels, decode_page};
use crate::tile::TileError;

/// Number of pages of a file; 1 for other formats and unreadable files. A broken page counts, but those after it cannot
/// be found.
pub fn count_pages(bytes: &[u8], limits: &DecodeSettings) -> usize {
    match PictureFormat::of(bytes) {
        Some(PictureFormat::Tiff) => crate::decode::count_tiff_pages(bytes, limits),
        _ => 1,
    }
}

/// Page `number`, from 1, as PNG.
///
/// # Errors
/// The page does not exist, or cannot be decoded within the limits.
pub fn extract_page(bytes: &[u8], limits: &DecodeSettings, number: usize) -> Result<Vec<u8>, TileError> {
    let mut pixels = Pixels::default();
    decode_page(bytes, limits, number, &mut pixels)?;
    let (mut page, (width_px, height_px)) = (Vec::new(), (pixels.width_px, pixels.height_px));
    let encoder = PngEncoder::new_with_quality(&mut page, CompressionType::Fast, FilterType::Adaptive);
    encoder
        .write_image(&pixels.rgb, width_px, height_px, ExtendedColorType::Rgb8)
        .map_err(|error| TileError::Encode { x_px: 0, y_px: 0, why: format!("page {number}: {error}") })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tiff::encoder::{TiffEncoder, colortype};
    use tiff::tags::Tag;

    use super::*;
    use crate::decode::{DecodeError, decode};

    /// Grey pages of one level each; those in `small` are marked as thumbnails.
    fn document(levels: &[u8], small: &[usize]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = TiffEncoder::new(&mut bytes).unwrap();
        for (number, level) in levels.iter().enumerate() {
            let mut page = writer.new_image::<colortype::Gray8>(8, 4).unwrap();
            page.encoder().write_tag(Tag::NewSubfileType, u32::from(small.contains(&number))).unwrap();
            page.write_data(&[*level; 32]).unwrap();
        }
        bytes.into_inner()
    }

    #[test]
    fn every_page_that_is_not_a_thumbnail_is_extracted() {
        let (bytes, limits) = (document(&[10, 20, 30, 40], &[0, 2]), DecodeSettings::default());
        assert_eq!(count_pages(&bytes, &limits), 2);
        for (number, level) in [(1, 20), (2, 40)] {
            let page = extract_page(&bytes, &limits, number).unwrap();
            assert_eq!(decode(&page, &limits).unwrap().rgb, [level; 96], "page {number}");
        }
        assert!(matches!(extract_page(&bytes, &limits, 3), Err(TileError::Decode(DecodeError::Corrupt { .. }))));
        assert_eq!(decode(&bytes, &limits).unwrap().rgb, [20; 96], "alone it is its first page");
    }

    #[test]
    fn other_formats_have_one_page() {
        let limits = DecodeSettings::default();
        for bytes in [&b"\xff\xd8\xff\xe0"[..], b"", b"II\x2a\0", &document(&[1], &[])] {
            assert_eq!(count_pages(bytes, &limits), 1);
        }
    }

    #[test]
    fn a_broken_page_is_counted_and_refused() {
        let whole = document(&[10, 20], &[]);
        let limits = DecodeSettings::default();
        // The second page's tags are at the end.
        let bytes = &whole[..whole.len() - 20];
        assert_eq!(count_pages(bytes, &limits), 2);
        assert!(extract_page(bytes, &limits, 1).is_ok());
        assert!(extract_page(bytes, &limits, 2).is_err());
    }
}
