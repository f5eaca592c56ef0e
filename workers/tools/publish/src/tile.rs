//! Cuts a scan into one message per page and tile. Every tile is its own task that names its scan and its position in
//! it; together the tiles cover the scan.

use bytes::Bytes;
use schemas::{TaskId, Tile};
use tokio::sync::mpsc::Sender;
use vision::{TileError, count_pages, dimensions, extract_page, split};

use crate::image_sender::ImageMessage;
use crate::settings::{PageSelection, PublisherSettings, TileSettings};

/// Whether an image becomes several messages. Reads headers only; unreadable files are left to the decoder.
pub(crate) fn is_cut(bytes: &[u8], settings: &PublisherSettings) -> bool {
    is_scan(bytes, &settings.tile) || pages(bytes, settings) > 1
}

fn pages(bytes: &[u8], settings: &PublisherSettings) -> usize {
    match settings.pages {
        PageSelection::First => 1,
        PageSelection::All => count_pages(bytes, &settings.tile.scan),
    }
}

/// Cuts a file into its pages, and large pages into tiles, and sends them one at a time. `whole`: the message of the
/// whole file. Blocks.
pub(crate) fn cut(
    whole: &ImageMessage,
    settings: &PublisherSettings,
    parts: &Sender<ImageMessage>,
) -> Result<(), TileError> {
    let count = pages(&whole.payload, settings);
    if count <= 1 {
        return cut_tiles(whole, &settings.tile, parts);
    }
    for number in 1..=count {
        let page = ImageMessage {
            id: whole.id.child(&format!("page {number}")),
            payload: extract_page(&whole.payload, &settings.tile.scan, number)?.into(),
            file: whole.file.as_ref().map(|file| format!("{file}, page {number}")),
            page: u32::try_from(number).ok(),
            ..whole.clone()
        };
        match is_scan(&page.payload, &settings.tile) {
            true => cut_tiles(&page, &settings.tile, parts)?,
            false if parts.blocking_send(page).is_err() => break,
            false => {}
        }
    }
    Ok(())
}

fn is_scan(bytes: &[u8], settings: &TileSettings) -> bool {
    let Some(limit_px) = settings.limit_px() else { return false };
    dimensions(bytes).is_ok_and(|(_, width_px, height_px)| width_px.max(height_px) > limit_px)
}

fn cut_tiles(whole: &ImageMessage, settings: &TileSettings, tiles: &Sender<ImageMessage>) -> Result<(), TileError> {
    for tile in split(&whole.payload, &settings.scan, settings.tile_px, settings.overlap_px)? {
        let tile = tile?;
        let place = Tile {
            scan: whole.id,
            x_px: tile.x_px,
            y_px: tile.y_px,
            width_px: tile.width_px,
            height_px: tile.height_px,
            scan_width_px: tile.scan_width_px,
            scan_height_px: tile.scan_height_px,
        };
        let message =
            ImageMessage { id: id(&place), payload: Bytes::from(tile.bytes), tile: Some(place), ..whole.clone() };
        if tiles.blocking_send(message).is_err() {
            break;
        }
    }
    Ok(())
}

/// The size is part of the id, because a scan that is cut differently makes other tasks.
fn id(place: &Tile) -> TaskId {
    place.scan.child(&format!("{},{} {}x{}", place.x_px, place.y_px, place.width_px, place.height_px))
}
