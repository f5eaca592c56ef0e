//! Decodes TIFF: chooses the page and reads its pixels. Section numbers are those of TIFF 6.0.
//!
//! Classic and BigTIFF. Pages marked as reduced (thumbnails) are skipped. Supported are grey, RGB, CMYK and YCbCr with
//! 1 to 16 bits, and floating-point numbers from 0 to 1; anything else is refused by name.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::error::{DecodeError, cut};
use super::format::PictureFormat;
use super::levels::{BitDepthHint, SampleScale};
use super::{DecodeSettings, Pixels, check, jpeg};

/// Most pages that are examined; more than any scanned document has.
const MAX_PAGES: usize = 1000;
/// Memory limit of page and strip descriptions, bytes.
const MAX_TAG_BYTES: usize = 16 * 1024 * 1024;

/// Tag 338: meaning of samples beyond the colours.
const EXTRA_SAMPLES: Tag = Tag::Unknown(338);

type TiffReader<'a> = Decoder<Cursor<&'a [u8]>>;

fn open<'a>(bytes: &'a [u8], settings: &DecodeSettings) -> Result<TiffReader<'a>, DecodeError> {
    let most = usize::try_from(settings.max_memory_bytes).unwrap_or(usize::MAX);
    let mut inner = Limits::default();
    (inner.decoding_buffer_size, inner.intermediate_buffer_size) = (most, most);
    inner.ifd_value_size = MAX_TAG_BYTES.min(most);
    Ok(Decoder::new(Cursor::new(bytes)).map_err(|error| tiff_error(&error))?.with_limits(inner))
}

/// The reader at page `number`, from 1, not counting thumbnails; at the first page if all are marked as thumbnails.
fn open_page<'a>(bytes: &'a [u8], settings: &DecodeSettings, number: usize) -> Result<TiffReader<'a>, DecodeError> {
    let mut reader = open(bytes, settings)?;
    let mut pages = 0;
    for _ in 0..MAX_PAGES {
        pages += usize::from(!is_thumbnail(&mut reader));
        if pages == number {
            return Ok(reader);
        }
        if !reader.more_images() {
            break;
        }
        match reader.next_image() {
            Ok(()) => {}
            // A broken page after a thumbnail only fails itself.
            Err(_) if number == 1 => break,
            Err(error) => return Err(tiff_error(&error)),
        }
    }
    match number {
        1 => open(bytes, settings),
        _ => Err(DecodeError::corrupt(PictureFormat::Tiff, format!("it has no page {number}"))),
    }
}

/// Number of pages that are not thumbnails, including a broken one; at least 1.
pub(super) fn count_pages(bytes: &[u8], settings: &DecodeSettings) -> usize {
    let Ok(mut reader) = open(bytes, settings) else { return 1 };
    let mut pages = 0;
    for _ in 0..MAX_PAGES {
        pages += usize::from(!is_thumbnail(&mut reader));
        if !reader.more_images() {
            break;
        }
        if reader.next_image().is_err() {
            pages += 1;
            break;
        }
    }
    pages.max(1)
}

/// Section 8: bit 0 marks a reduced picture of another page, bit 2 a mask.
fn is_thumbnail(reader: &mut TiffReader<'_>) -> bool {
    read_number::<u32>(reader, Tag::NewSubfileType).unwrap_or(0) & 0b101 != 0
}

/// Width and height of the picture as stored.
pub(super) fn dimensions(bytes: &[u8], settings: &DecodeSettings) -> Result<(u32, u32), DecodeError> {
    open_page(bytes, settings, 1)?.dimensions().map_err(|error| tiff_error(&error))
}

/// Decodes page `number`, from 1, upright.
pub(super) fn decode(
    bytes: &[u8],
    settings: &DecodeSettings,
    number: usize,
    pixels: &mut Pixels,
) -> Result<(), DecodeError> {
    let mut reader = open_page(bytes, settings, number)?;
    let turned = normalize_fill_order(bytes, &mut reader);
    if let Cow::Owned(turned) = &turned {
        reader = open_page(turned, settings, number)?;
    }
    let (width_px, height_px) = reader.dimensions().map_err(|error| tiff_error(&error))?;
    if width_px == 0 || height_px == 0 {
        return Err(DecodeError::corrupt(PictureFormat::Tiff, "width or height is zero"));
    }
    let kind = reader.colortype().map_err(|error| unsupported_error(&mut reader, &error))?;
    // The decoder converts JPEG-compressed data to RGB itself.
    let compressed = read_number::<u16>(&mut reader, Tag::Compression) == Some(7);
    if compressed && !is_every_jpeg_closed(bytes, &mut reader) {
        let why = "a strip or tile compressed as JPEG has no end".to_owned();
        return Err(DecodeError::Truncated { format: PictureFormat::Tiff, why });
    }
    let colours = match TiffColors::of(kind) {
        Some(TiffColors::YCbCr) if compressed => TiffColors::Rgb,
        Some(colours) => colours,
        None => return Err(unsupported(kind_in_words(kind))),
    };
    let orientation = read_number::<u8>(&mut reader, Tag::Orientation).and_then(Orientation::from_exif);
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let layout = reader.image_buffer_layout().map_err(|error| unsupported_error(&mut reader, &error))?;
    let rgb_bytes = width_px as usize * height_px as usize * 3;
    // Already in the picture's layout: large scans need no second copy.
    let direct = matches!(colours, TiffColors::Rgb) && kind.bit_depth() == 8 && layout.complete_len == rgb_bytes;
    let direct = direct && layout.planes == 1;
    let extra_bytes = if direct { 0 } else { layout.complete_len as u64 };
    check(PictureFormat::Tiff, width_px, height_px, extra_bytes, orientation, settings)?;
    if direct {
        let buffer = pixels.resize(width_px, height_px);
        reader.read_image_bytes(buffer).map_err(|error| unsupported_error(&mut reader, &error))?;
        return pixels.make_upright(orientation, PictureFormat::Tiff);
    }
    let declared = read_number::<u32>(&mut reader, Tag::MaxSampleValue);
    let premultiplied = read_number::<u16>(&mut reader, EXTRA_SAMPLES) == Some(1);

    let mut result = DecodingResult::U8(Vec::new());
    let layout = reader.read_image_to_buffer(&mut result).map_err(|error| unsupported_error(&mut reader, &error))?;
    let samples = usize::from(kind.num_samples());
    let size = (width_px as usize, height_px as usize);
    let depth = BitDepthHint { declared_max: declared.filter(|most| *most > 0), bits: settings.deep_bits };
    let levels = levels(result, kind.bit_depth(), samples, size, depth)?;
    let plane = (layout.planes > 1).then_some(size.0 * size.1);
    let at = |pixel: usize, sample: usize| match plane {
        Some(plane) => levels.get(sample * plane + pixel),
        None => levels.get(pixel * samples + sample),
    };
    let level = |pixel: usize, sample: usize| at(pixel, sample).copied().unwrap_or(0);
    for (pixel, out) in pixels.resize(width_px, height_px).as_chunks_mut::<3>().0.iter_mut().enumerate() {
        *out = match colours {
            TiffColors::Grey => [level(pixel, 0); 3],
            TiffColors::Rgb => [level(pixel, 0), level(pixel, 1), level(pixel, 2)],
            TiffColors::Rgba => {
                let (rgb, alpha) = ([0, 1, 2].map(|sample| level(pixel, sample)), level(pixel, 3));
                let rgb = if premultiplied { super::levels::unpremultiply(rgb, alpha) } else { rgb };
                super::levels::blend_over(rgb, alpha, settings.background)
            }
            TiffColors::Cmyk => {
                let light = 255 - u16::from(level(pixel, 3));
                [0, 1, 2].map(|ink| ((255 - u16::from(level(pixel, ink))) * light / 255) as u8)
            }
            TiffColors::YCbCr => jpeg::ycbcr_to_rgb(level(pixel, 0), level(pixel, 1), level(pixel, 2)),
        };
    }
    pixels.make_upright(orientation, PictureFormat::Tiff)
}

#[derive(Debug, Clone, Copy)]
enum TiffColors {
    Grey,
    Rgb,
    Rgba,
    Cmyk,
    YCbCr,
}

impl TiffColors {
    fn of(kind: ColorType) -> Option<Self> {
        match kind {
            ColorType::Gray(1 | 2 | 4 | 8 | 16 | 32) => Some(Self::Grey),
            ColorType::RGB(8 | 16 | 32) => Some(Self::Rgb),
            ColorType::RGBA(8 | 16 | 32) => Some(Self::Rgba),
            ColorType::CMYK(8 | 16) => Some(Self::Cmyk),
            ColorType::YCbCr(8) => Some(Self::YCbCr),
            _ => None,
        }
    }
}

/// Whether every JPEG-compressed strip or tile (TIFF Technical Note 2) ends as a JPEG does: one filled up with zeros
/// does not, and would come out with grey instead. Bytes of zeros and ones may pad the end.
fn is_every_jpeg_closed(bytes: &[u8], reader: &mut TiffReader<'_>) -> bool {
    let mut numbers = |tag| reader.find_tag(tag).ok().flatten().and_then(|value| value.into_u64_vec().ok());
    let tiled = numbers(Tag::TileOffsets).zip(numbers(Tag::TileByteCounts));
    let Some((starts, counts)) = tiled.or_else(|| numbers(Tag::StripOffsets).zip(numbers(Tag::StripByteCounts))) else {
        // The reader reports what is missing.
        return true;
    };
    let part = |start: u64, count: u64| {
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(start.checked_add(count)?).ok()?);
        bytes.get(start..end)
    };
    starts.into_iter().zip(counts).filter_map(|(start, count)| part(start, count)).all(|part| {
        let end = part.iter().rposition(|byte| ![0x00, 0xff].contains(byte)).map_or(0, |last| last + 1);
        part.get(..end).is_some_and(|written| written.ends_with(&[0xff, 0xd9]))
    })
}

/// Converts samples of any kind to levels from 0 to 255.
fn levels(
    result: DecodingResult,
    bits: u8,
    samples: usize,
    (width, height): (usize, usize),
    depth: BitDepthHint,
) -> Result<Vec<u8>, DecodeError> {
    Ok(match result {
        DecodingResult::U8(packed) if bits < 8 => super::levels::unpack_bits(&packed, bits, width * samples, height),
        DecodingResult::U8(levels) => levels,
        DecodingResult::U16(values) => SampleScale::from_samples(&values, depth).to_eight(values),
        DecodingResult::F32(values) => {
            if values.iter().any(|value| !(-0.01..=1.01).contains(value)) {
                return Err(unsupported("floating-point numbers beyond 0 to 1".into()));
            }
            values.iter().map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8).collect()
        }
        DecodingResult::I8(_) | DecodingResult::I16(_) | DecodingResult::I32(_) | DecodingResult::I64(_) => {
            return Err(unsupported("samples that are signed integers (int) of unknown range".into()));
        }
        DecodingResult::U32(_) | DecodingResult::U64(_) => {
            return Err(unsupported("samples of 32 bits or more of unknown range".into()));
        }
        DecodingResult::F16(_) | DecodingResult::F64(_) => {
            return Err(unsupported("floating-point numbers of 16 or 64 bits".into()));
        }
    })
}

/// Reverses the bits of each byte (`FillOrder` 2, section 8), as old fax machines write them.
fn normalize_fill_order<'a>(bytes: &'a [u8], reader: &mut TiffReader<'_>) -> Cow<'a, [u8]> {
    if read_number::<u16>(reader, Tag::FillOrder) != Some(2) {
        return Cow::Borrowed(bytes);
    }
    let mut strips = |offsets, counts| -> Option<Vec<(u64, u64)>> {
        let offsets = reader.find_tag_unsigned_vec::<u64>(offsets).ok()??;
        let counts = reader.find_tag_unsigned_vec::<u64>(counts).ok()??;
        Some(offsets.into_iter().zip(counts).collect())
    };
    let strips = strips(Tag::StripOffsets, Tag::StripByteCounts)
        .or_else(|| strips(Tag::TileOffsets, Tag::TileByteCounts))
        .unwrap_or_default();
    let mut turned = bytes.to_vec();
    for (offset, count) in strips {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)).min(turned.len());
        turned.get_mut(from..to).into_iter().flatten().for_each(|byte| *byte = byte.reverse_bits());
    }
    Cow::Owned(turned)
}

/// The first number of a tag; `None` if unreadable, as the decoder also reads what it needs.
fn read_number<T: TryFrom<u64>>(reader: &mut TiffReader<'_>, tag: Tag) -> Option<T> {
    T::try_from(*reader.find_tag_unsigned_vec::<u64>(tag).ok()??.first()?).ok()
}

/// Describes a page by its tags, if the decoder refuses it.
fn unsupported_error(reader: &mut TiffReader<'_>, error: &TiffError) -> DecodeError {
    if !matches!(error, TiffError::UnsupportedError(_)) {
        return tiff_error(error);
    }
    let mut number = |tag: Tag| read_number::<u32>(reader, tag);
    let compression = number(Tag::Compression).unwrap_or(1);
    let known = match compression {
        2 | 3 => Some("fax compression (group 3)"),
        6 => Some("JPEG compression of the old style (6)"),
        34_661 | 34_663 | 34_664 => Some("JBIG compression"),
        34_712 | 33_003 | 33_005 => Some("JPEG 2000 compression"),
        34_925 => Some("LZMA compression"),
        50_000 => Some("ZSTD compression"),
        50_001 => Some("WebP compression"),
        50_002 => Some("JPEG XL compression"),
        _ => None,
    };
    if let Some(known) = known {
        return unsupported(known.into());
    }
    let bits = number(Tag::BitsPerSample).unwrap_or(1);
    unsupported(match number(Tag::PhotometricInterpretation).unwrap_or(1) {
        3 => "colours by a palette".into(),
        6 => format!("YCbCr colours with {bits} bits a sample, uncompressed or subsampled"),
        8..=10 => "CIELab colours".into(),
        32_803 | 34_892 => "the raw mosaic of a camera (CFA, as in DNG)".into(),
        photometric => format!(
            "compression {compression}, photometric interpretation {photometric}, {bits} bits a sample, which is not supported"
        ),
    })
}

fn kind_in_words(kind: ColorType) -> String {
    match kind {
        ColorType::Multiband { num_samples, .. } => {
            format!("{num_samples} samples a pixel without a colour; only grey, RGB, CMYK and YCbCr are supported")
        }
        ColorType::Lab(_) => "CIELab colours".into(),
        other => format!("colour samples of {} bits, which are not supported", other.bit_depth()),
    }
}

fn unsupported(why: String) -> DecodeError {
    DecodeError::Unsupported { format: PictureFormat::Tiff, why }
}

fn tiff_error(error: &TiffError) -> DecodeError {
    let (format, why) = (PictureFormat::Tiff, cut(error));
    match error {
        TiffError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format, why }
        }
        TiffError::UnsupportedError(_) => DecodeError::Unsupported { format, why },
        _ => DecodeError::Corrupt { format, why },
    }
}
