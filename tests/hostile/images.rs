//! Pictures, whole files and pages of them.

use bend::{bend_some, corpus, turns};
use rand::RngExt;
use rand::rngs::StdRng;
use vision::DecodeSettings;

/// Files up to this size are what most turns bend: a change in a large one mostly hits pixels.
const SMALL_BYTES: usize = 2_000;

fn settings() -> DecodeSettings {
    DecodeSettings {
        max_bytes: 1 << 20,
        max_side_px: 4096,
        max_pixels: 4 << 20,
        max_memory_bytes: 64 << 20,
        ..DecodeSettings::default()
    }
}

/// One picture of each kind that cameras send, and a few of the demonstration.
fn pictures(most_bytes: usize) -> Vec<Vec<u8>> {
    let mut pictures = corpus("fixtures/images/field", &[""], most_bytes);
    pictures.extend(corpus("fixtures/images/fashion/bag", &["0.png"], most_bytes));
    pictures
}

/// CRC-32 of PNG (W3C PNG, annex D).
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

/// Gives the chunks of a PNG the checksums that they need to be read at all.
pub(crate) fn with_checksums(mut bytes: Vec<u8>, _rng: &mut StdRng) -> Vec<u8> {
    let mut at = 8;
    while bytes.starts_with(b"\x89PNG") && at + 12 <= bytes.len() {
        let length = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= bytes.len()) else { break };
        let sum = crc(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
    bytes
}

fn look(bytes: &[u8], settings: &DecodeSettings) -> usize {
    if let Ok(pixels) = vision::decode(bytes, settings) {
        assert!(pixels.width_px.max(pixels.height_px) <= settings.max_side_px);
        assert!(u64::from(pixels.width_px) * u64::from(pixels.height_px) <= settings.max_pixels);
    }
    1
}

#[test]
fn images_that_were_bent_are_decoded_or_refused_within_their_limits() {
    bend::limit_memory();
    let settings = settings();
    bend_some("small images, decoded", &pictures(SMALL_BYTES), turns() / 4, with_checksums, |bytes| {
        look(bytes, &settings)
    });
    bend_some("images of all sizes, decoded", &pictures(200_000), turns() / 40, with_checksums, |bytes| {
        look(bytes, &settings)
    });
}

#[test]
fn what_is_said_of_images_that_were_bent_is_found_or_not() {
    bend::limit_memory();
    let settings = settings();
    bend_some("images, sizes and ends", &pictures(SMALL_BYTES), turns() / 4, with_checksums, |bytes| {
        let _end = vision::is_complete(bytes);
        let _size = vision::dimensions(bytes).is_ok();
        2
    });
    let scans = corpus("fixtures/images/field", &[".tif"], 30_000);
    bend_some(
        "pages of scans",
        &scans,
        turns() / 20,
        |bytes, rng: &mut StdRng| {
            // A page's directory is reached by its offset alone.
            let (mut bytes, at) = (bytes, 4);
            if bytes.len() > 8 && rng.random_bool(0.1) {
                bytes[at] = rng.random();
            }
            bytes
        },
        |bytes| {
            let pages = vision::count_pages(bytes, &settings);
            let page = vision::extract_page(bytes, &settings, some_page(bytes, pages));
            let _decoded = page.map(|page| vision::decode(&page, &settings).is_ok());
            3
        },
    );
    bend_some("tiles", &pictures(SMALL_BYTES), turns() / 40, with_checksums, |bytes| {
        let _tiles = vision::split(bytes, &settings, 16, 4).is_ok();
        1
    });
}

/// One of the pages, or one past them; which one follows from the bytes.
fn some_page(bytes: &[u8], pages: usize) -> usize {
    bytes.len() % (pages + 1)
}
