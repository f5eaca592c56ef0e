//! Decodes JPEG: reads the file's structure from its markers, then its pixels.
//!
//! A decoder fills missing data with grey, so a picture that was cut and closed properly would be recognized as
//! something. Therefore the decoder never sees the end marker: after the coded data come bits that are not a code, and
//! it fails on them unless the data has every block (MCU) that the header promises. In a progressive picture every
//! coefficient of every component must have been sent once; missing refinements only make it coarser.
//!
//! Also supported: frames of motion JPEG, which omit the usual Huffman tables, and baseline pictures whose components
//! have scans of their own. Sections are those of ITU-T T.81.

use std::borrow::Cow;
use std::ops::Range;

use image::imageops::{FilterType, resize};
use image::metadata::Orientation;
use image::{GrayImage, Luma};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::error::{DecodeError, cut};
use super::format::PictureFormat;
use super::{DecodeSettings, GrayPixels, Pixels, check};

/// Largest side that the decoder supports.
const MAX_SIDE_PX: usize = 65_535;
/// More scans than a real picture has: each is another pass over all of it.
const MAX_SCANS: usize = 100;
/// This many zeros at the end are not coded data.
const UNWRITTEN_BYTES: usize = 32;
/// Appended to coded data. A code of only ones is reserved (section C.2), and a byte of ones is stuffed with a zero.
const NO_CODE: [[u8; 2]; 64] = [[0xff, 0]; 64];
/// The tables of annex K.3 as a segment: frames of motion JPEG omit them.
const USUAL_TABLES: &[u8] = include_bytes!("usual_tables.dht");

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;
const DQT: u8 = 0xdb;
const DRI: u8 = 0xdd;
const DAC: u8 = 0xcc;
const JPG: u8 = 0xc8;
const APP14: u8 = 0xee;

/// The markers' content; unreadable parts are left out, and the decoder fails on them.
#[derive(Debug, Default)]
struct JpegStructure {
    /// Second byte of the frame's marker (table B.1).
    process: u8,
    precision: u8,
    width_px: u16,
    height_px: u16,
    components: Vec<FrameComponent>,
    scans: Vec<ScanSegment>,
    /// Segments with tables, in file order.
    tables: Vec<Range<usize>>,
    huffman: bool,
    /// Colour transform named by Adobe's segment.
    transform: Option<u8>,
    /// Whether the end marker is present.
    closed: bool,
}

#[derive(Debug, Clone, Copy)]
struct FrameComponent {
    id: u8,
    across: u8,
    down: u8,
    quantization: u8,
}

#[derive(Debug)]
struct ScanSegment {
    /// The scan header including its marker.
    header: Range<usize>,
    /// The coded data, up to the next marker.
    data: Range<usize>,
    components: Vec<u8>,
    /// First and last coefficient.
    band: (u8, u8),
}

impl JpegStructure {
    fn of(bytes: &[u8]) -> Self {
        let mut layout = Self::default();
        let mut at = 2;
        while let Some((marker, begin)) = next_marker(bytes, at) {
            at = begin + 2;
            match marker {
                EOI => {
                    layout.closed = true;
                    break;
                }
                // Another picture begins.
                SOI => break,
                // Markers without a segment.
                0x01 | 0xd0..=0xd7 => continue,
                _ => {}
            }
            let Some(length) = word(bytes, at).map(usize::from).filter(|length| *length >= 2) else { break };
            let segment = at + 2..at + length;
            let Some(content) = bytes.get(segment.clone()) else { break };
            at = segment.end;
            match marker {
                SOS => {
                    let end = end_of_data(bytes, at);
                    layout.scans.extend(scan(content, begin..at, at..end));
                    if layout.scans.len() > MAX_SCANS {
                        break;
                    }
                    at = end;
                }
                DHT | DQT | DRI => {
                    layout.huffman |= marker == DHT;
                    layout.tables.push(begin..at);
                }
                APP14 if content.starts_with(b"Adobe") => layout.transform = content.get(11).copied(),
                // The first frame counts, because limits are checked against it.
                0xc0..=0xcf if marker != JPG && marker != DAC && layout.process == 0 => layout.frame(marker, content),
                _ => {}
            }
        }
        layout
    }

    fn frame(&mut self, marker: u8, content: &[u8]) {
        let (Some(precision), Some(height_px), Some(width_px)) = (content.first(), word(content, 1), word(content, 3))
        else {
            return;
        };
        (self.process, self.precision) = (marker, *precision);
        (self.width_px, self.height_px) = (width_px, height_px);
        let components = content.get(6..).unwrap_or_default().as_chunks::<3>().0.iter();
        self.components = components
            .map(|[id, factors, table]| FrameComponent {
                id: *id,
                across: factors >> 4,
                down: factors & 15,
                quantization: *table,
            })
            .collect();
    }

    /// Description of an unsupported variant; `None` if supported.
    fn unsupported(&self) -> Option<&'static str> {
        match self.process {
            0xc3 => Some("lossless JPEG"),
            0xc5..=0xc7 | 0xcd..=0xcf => Some("hierarchical JPEG"),
            0xc9..=0xcb => Some("JPEG with arithmetic coding"),
            0xc0..=0xc2 if self.precision != 8 && self.precision != 0 => Some("JPEG of 12 bits a sample"),
            _ => None,
        }
    }

    fn sequential(&self) -> bool {
        matches!(self.process, 0xc0 | 0xc1)
    }

    /// Whether components are in scans of their own.
    fn has_separate_components(&self) -> bool {
        self.sequential() && self.scans.first().is_some_and(|scan| scan.components.len() < self.components.len())
    }

    /// Whether some coefficient of a progressive picture was never sent.
    fn lacks_coefficients(&self) -> bool {
        self.components.iter().any(|component| {
            let bands = self.scans.iter().filter(|scan| scan.components.contains(&component.id));
            let sent = bands.fold(0u64, |sent, scan| {
                (scan.band.0..=scan.band.1.min(63)).fold(sent, |sent, coefficient| sent | 1 << coefficient)
            });
            sent != u64::MAX
        })
    }
}

/// Whether the end marker is present.
pub(super) fn is_closed(bytes: &[u8]) -> bool {
    JpegStructure::of(bytes).closed
}

/// The next marker from an offset on, and where it begins; fill bytes and everything else is skipped.
fn next_marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let mut at = from;
    loop {
        at += memchr::memchr(0xff, bytes.get(at..)?)?;
        match bytes.get(at + 1)? {
            // A stuffed byte, or a fill byte.
            0x00 | 0xff => at += 1,
            marker => return Some((*marker, at)),
        }
    }
}

/// End of coded data: before the next marker other than restarts. Zeros at the end of an unclosed file are unwritten
/// space.
fn end_of_data(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    loop {
        match next_marker(bytes, at) {
            Some((0xd0..=0xd7, begin)) => at = begin + 2,
            Some((_, begin)) => return begin,
            None => break,
        }
    }
    let data = bytes.get(from..).unwrap_or_default();
    let written = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // Coded data may end in a zero, and a byte of ones is followed by one.
    from + if data.len() - written < UNWRITTEN_BYTES { data.len() } else { written + 1 }
}

fn scan(content: &[u8], header: Range<usize>, data: Range<usize>) -> Option<ScanSegment> {
    let count = usize::from(*content.first()?);
    let components = content.get(1..1 + 2 * count)?.as_chunks::<2>().0.iter().map(|[id, _]| *id).collect();
    let band = (*content.get(1 + 2 * count)?, *content.get(2 + 2 * count)?);
    Some(ScanSegment { header, data, components, band })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Width and height as stored.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), DecodeError> {
    let header = JpegHeader::read(bytes)?;
    Ok((u32::from(header.width_px), u32::from(header.height_px)))
}

struct JpegHeader<'a> {
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    width_px: u16,
    height_px: u16,
    progressive: bool,
    components: u8,
    orientation: Orientation,
}

impl<'a> JpegHeader<'a> {
    /// Reads up to the first scan; allocates at most a few rows.
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut decoder = decoder(bytes, ColorSpace::RGB);
        decoder.decode_headers().map_err(|error| jpeg_error(bytes, &error))?;
        let info = decoder.info().ok_or_else(|| DecodeError::corrupt(PictureFormat::Jpeg, "no header"))?;
        if info.width == 0 || info.height == 0 {
            return Err(DecodeError::corrupt(PictureFormat::Jpeg, "width or height is zero"));
        }
        let orientation = info.exif_data.as_deref().and_then(Orientation::from_exif_chunk);
        Ok(Self {
            decoder,
            width_px: info.width,
            height_px: info.height,
            progressive: info.sof.is_progressive(),
            components: info.components,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
        })
    }
}

fn decoder(bytes: &[u8], out: ColorSpace) -> JpegDecoder<ZCursor<&[u8]>> {
    let options = DecoderOptions::default()
        // Otherwise missing data would come out grey.
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE_PX)
        .set_max_height(MAX_SIDE_PX)
        .jpeg_set_out_colorspace(out);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options)
}

/// Decodes a picture, upright.
pub(super) fn decode(bytes: &[u8], settings: &DecodeSettings, pixels: &mut Pixels) -> Result<(), DecodeError> {
    let layout = JpegStructure::of(bytes);
    if let Some(kind) = layout.unsupported() {
        return Err(DecodeError::Unsupported { format: PictureFormat::Jpeg, why: kind.into() });
    }
    let whole = prepare_for_decoder(bytes, &layout);
    let JpegHeader { mut decoder, width_px, height_px, progressive, components, orientation } =
        JpegHeader::read(&whole)?;
    let (width_px, height_px) = (u32::from(width_px), u32::from(height_px));
    let count = u64::from(width_px) * u64::from(height_px);
    let apart = layout.has_separate_components();
    if apart && (u32::from(layout.width_px), u32::from(layout.height_px)) != (width_px, height_px) {
        return Err(DecodeError::corrupt(PictureFormat::Jpeg, "it has two sizes"));
    }
    // All coefficients of a progressive picture (two bytes each) are held until the last scan; planes are held beside
    // the picture, unscaled and scaled.
    let extra_bytes = if progressive || apart { count * 2 * u64::from(components) } else { 0 };
    check(PictureFormat::Jpeg, width_px, height_px, extra_bytes, orientation, settings)?;
    if progressive && layout.lacks_coefficients() {
        return Err(DecodeError::Truncated { format: PictureFormat::Jpeg, why: "scans are missing".into() });
    }
    if apart {
        decode_planes(bytes, &layout, pixels)?;
    } else {
        let buffer = pixels.resize(width_px, height_px);
        decoder.decode_into(buffer).map_err(|error| jpeg_error(bytes, &error))?;
    }
    pixels.make_upright(orientation, PictureFormat::Jpeg)
}

/// Decodes the brightness alone, as stored, not rotated. False where that is no shorter way than decoding everything.
pub(super) fn decode_gray(bytes: &[u8], settings: &DecodeSettings, gray: &mut GrayPixels) -> Result<bool, DecodeError> {
    let layout = JpegStructure::of(bytes);
    if layout.unsupported().is_some() || !layout.sequential() || layout.has_separate_components() {
        return Ok(false);
    }
    // The decoder reads on beyond the last block where blocks are doubled downwards alone (ffmpeg's 4:4:4, for one).
    let most = |side: fn(&FrameComponent) -> u8| layout.components.iter().map(side).max();
    if most(|component| component.down) > most(|component| component.across) {
        return Ok(false);
    }
    let whole = prepare_for_decoder(bytes, &layout);
    let mut decoder = decoder(&whole, ColorSpace::Luma);
    decoder.decode_headers().map_err(|error| jpeg_error(bytes, &error))?;
    let (width_px, height_px) =
        decoder.dimensions().ok_or_else(|| DecodeError::corrupt(PictureFormat::Jpeg, "no header"))?;
    let (width_px, height_px) = (width_px as u32, height_px as u32);
    check(PictureFormat::Jpeg, width_px, height_px, 0, Orientation::NoTransforms, settings)?;
    gray.gray.resize(width_px as usize * height_px as usize, 0);
    (gray.width_px, gray.height_px) = (width_px, height_px);
    decoder.decode_into(&mut gray.gray).map_err(|error| jpeg_error(bytes, &error))?;
    Ok(true)
}

/// Adds the usual tables if there are none, and replaces the end with bits that are not a code.
fn prepare_for_decoder<'a>(bytes: &'a [u8], layout: &JpegStructure) -> Cow<'a, [u8]> {
    let tables = if layout.huffman || layout.components.is_empty() { &[] } else { USUAL_TABLES };
    match layout.scans.last() {
        Some(scan) if layout.sequential() => {
            let body = bytes.get(2..scan.data.end).unwrap_or_default();
            Cow::Owned([&[0xff, SOI], tables, body, NO_CODE.as_flattened()].concat())
        }
        _ if tables.is_empty() => Cow::Borrowed(bytes),
        _ => Cow::Owned([&[0xff, SOI], tables, bytes.get(2..).unwrap_or_default()].concat()),
    }
}

/// Decodes each component with its own scan as a grey picture, scales them to one size and combines them.
fn decode_planes(bytes: &[u8], layout: &JpegStructure, pixels: &mut Pixels) -> Result<(), DecodeError> {
    let unsupported = |why: &str| DecodeError::Unsupported { format: PictureFormat::Jpeg, why: why.into() };
    let [first, second, third] = layout.components[..] else {
        return Err(unsupported("JPEG of other than three components in scans of their own"));
    };
    let (width_px, height_px) = (u32::from(layout.width_px), u32::from(layout.height_px));
    let (most_across, most_down) = layout
        .components
        .iter()
        .fold((1, 1), |(across, down), component| (component.across.max(across), component.down.max(down)));
    let plane = |component: FrameComponent| -> Result<GrayImage, DecodeError> {
        let missing = || DecodeError::Truncated { format: PictureFormat::Jpeg, why: "a scan is missing".into() };
        let scan = layout.scans.iter().find(|scan| scan.components.contains(&component.id)).ok_or_else(missing)?;
        if scan.components.len() > 1 {
            return Err(unsupported("JPEG with scans of one and of several components"));
        }
        // Section A.1.1: size of a component.
        let scaled = |side: u16, own: u8, most: u8| {
            (usize::from(side) * usize::from(own.max(1))).div_ceil(usize::from(most)) as u16
        };
        let (across_px, down_px) = (
            scaled(layout.width_px, component.across, most_across),
            scaled(layout.height_px, component.down, most_down),
        );
        let grey = build_gray_jpeg(bytes, layout, component, scan, (across_px, down_px));
        let mut decoder = decoder(&grey, ColorSpace::Luma);
        let levels = decoder.decode().map_err(|error| jpeg_error(bytes, &error))?;
        let plane = GrayImage::from_raw(across_px.into(), down_px.into(), levels)
            .ok_or_else(|| DecodeError::corrupt(PictureFormat::Jpeg, "pixels are missing"))?;
        Ok(match (plane.width(), plane.height()) == (width_px, height_px) {
            true => plane,
            false => resize(&plane, width_px, height_px, FilterType::Triangle),
        })
    };
    let (one, two, three) = (plane(first)?, plane(second)?, plane(third)?);
    let is_rgb = layout.transform == Some(0) || [first.id, second.id, third.id] == *b"RGB";
    let out = pixels.resize(width_px, height_px).as_chunks_mut::<3>().0.iter_mut();
    for (((pixel, Luma([one])), Luma([two])), Luma([three])) in
        out.zip(one.pixels()).zip(two.pixels()).zip(three.pixels())
    {
        *pixel = if is_rgb { [*one, *two, *three] } else { ycbcr_to_rgb(*one, *two, *three) };
    }
    Ok(())
}

/// A file with one component as its only one.
fn build_gray_jpeg(
    bytes: &[u8],
    layout: &JpegStructure,
    component: FrameComponent,
    scan: &ScanSegment,
    size_px: (u16, u16),
) -> Vec<u8> {
    let mut grey = vec![0xff, SOI];
    if !layout.huffman {
        grey.extend(USUAL_TABLES);
    }
    // Of tables defined twice, the later one counts.
    let tables = layout.tables.iter().filter(|table| table.start < scan.header.start);
    let part = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default();
    tables.for_each(|table| grey.extend(part(table)));
    grey.extend([0xff, 0xc0, 0, 11, 8]);
    grey.extend(size_px.1.to_be_bytes());
    grey.extend(size_px.0.to_be_bytes());
    grey.extend([1, component.id, 0x11, component.quantization]);
    grey.extend(part(&scan.header));
    grey.extend(part(&scan.data));
    grey.extend(NO_CODE.as_flattened());
    grey
}

/// Full-range YCbCr (JFIF 1.02).
pub(super) fn ycbcr_to_rgb(luma: u8, blue: u8, red: u8) -> [u8; 3] {
    let (luma, blue, red) = (f32::from(luma), f32::from(blue) - 128.0, f32::from(red) - 128.0);
    let level = |value: f32| value.round().clamp(0.0, 255.0) as u8;
    [level(luma + 1.402 * red), level(luma - 0.344_136 * blue - 0.714_136 * red), level(luma + 1.772 * blue)]
}

fn jpeg_error(bytes: &[u8], error: &DecodeErrors) -> DecodeError {
    let (format, words) = (PictureFormat::Jpeg, format!("{error:?}"));
    let closed = JpegStructure::of(bytes).closed;
    // The decoder has no error kind for this.
    let ran_out = ["Exhausted data", "Premature end", "Not enough bytes", "No more bytes", "Bad Huffman Code"];
    if ran_out.iter().any(|text| words.contains(text)) {
        let why = match closed {
            true => "it is closed but has fewer blocks than its header promises",
            false => "its data ends before its last block",
        };
        return DecodeError::Truncated { format, why: why.into() };
    }
    let why = cut(words.trim_matches('"'));
    match error {
        DecodeErrors::Unsupported(_) => DecodeError::Unsupported { format, why },
        // Whatever the decoder failed on first.
        _ if !closed => DecodeError::Truncated { format, why },
        _ => DecodeError::Corrupt { format, why },
    }
}
