//! Tile: a scan in, one message a tile out. Every tile is a task of its own that names its scan and its
//! place in it; together they cover the scan.

use bytes::Bytes;
use schemas::{TaskId, Tile};
use tokio::sync::mpsc::Sender;
use vision::{TileError, dimensions, split};

use crate::send::Message;
use crate::settings::TileSettings;

/// Whether an image is so large that it is cut. Reads its header only; what cannot be read is left to
/// whoever decodes it.
pub(crate) fn is_scan(bytes: &[u8], settings: &TileSettings) -> bool {
    let Some(limit_px) = settings.limit_px() else { return false };
    dimensions(bytes).is_ok_and(|(_, width_px, height_px)| width_px.max(height_px) > limit_px)
}

/// Cuts a scan and hands its tiles on, one at a time. `whole` is the scan's own message. Blocks.
pub(crate) fn cut(whole: &Message, settings: &TileSettings, tiles: &Sender<Message>) -> Result<(), TileError> {
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
        let message = Message { id: id(&place), payload: Bytes::from(tile.bytes), tile: Some(place), ..whole.clone() };
        if tiles.blocking_send(message).is_err() {
            break;
        }
    }
    Ok(())
}

/// The size is part of it, for a scan cut into other tiles makes other tasks.
fn id(place: &Tile) -> TaskId {
    place.scan.child(&format!("{},{} {}x{}", place.x_px, place.y_px, place.width_px, place.height_px))
}
