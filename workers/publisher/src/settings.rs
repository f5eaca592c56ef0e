//! What an operator may choose about publishing.

use serde::{Deserialize, Serialize};
use vision::DecodeSettings;

/// Longer than this and the stream may have forgotten the message id that is retried: its duplicate
/// window is 30 minutes by default.
const MAX_PATIENCE_S: u64 = 25 * 60;

/// Settings of the publisher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublisherSettings {
    /// Images on their way at once, 1 to 1000.
    pub max_in_flight: usize,
    /// Memory held by images read and not yet acknowledged, MiB, 1 to 65536. An image larger than this
    /// goes alone.
    pub max_in_flight_mib: u32,
    /// How long an image is retried under its id before publishing stops, seconds, 1 to 1500.
    pub retry_timeout_s: u64,
    /// A watched file whose writer did not say that it is done is taken when its size and time have not
    /// changed for this long, milliseconds, 10 to 3600000.
    pub settle_ms: u64,
    /// A watched folder is listed anew after each so many seconds, for shares whose changes the system does not tell; at most
    /// 3600, and 0 listens to the system instead.
    pub poll_s: u64,
    /// Of folders, publish only files that match one of these patterns, whatever their extension; all image files if there
    /// are none. `*` stands for any text, `?` for one character; a pattern with a slash is about the path in the folder.
    pub include: Vec<String>,
    /// Files and folders in folders that are passed over; patterns as above. Hidden ones always are.
    pub exclude: Vec<String>,
    /// Which pages of a TIFF are published.
    pub pages: PageSelection,
    /// Where the true label of an image comes from when no `index.csv` beside it names one.
    pub labels: LabelOrigin,
    /// Scans too large to be one task.
    pub tile: TileSettings,
}

/// Where true labels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelOrigin {
    /// From `index.csv` beside the images, with the columns `file` and `label`, and from nowhere else.
    #[default]
    Index,
    /// From `index.csv`, and for images it does not name from the folder they lie in.
    Folder,
}

/// Which pages of a TIFF are published. Thumbnails are no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageSelection {
    /// The file goes as it is, and its first page is recognized.
    #[default]
    First,
    /// Each page as a task of its own.
    All,
}

/// What devices and programs keep beside pictures, and uploads on their way.
const EXCLUDED: [&str; 17] = [
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "__MACOSX",
    "thumbnails",
    "thumbs",
    "lastsnap.*",
    "*.thm",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.download",
    "*.upload",
    "*.tmp",
    "*.temp",
    "*~",
];

/// How scans are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TileSettings {
    /// Side of a tile, pixels; 0 cuts nothing.
    pub tile_px: u32,
    /// How far neighbours overlap at least, pixels, less than `tile_px`.
    pub overlap_px: u32,
    /// An image with a side longer than this is a scan and is cut, pixels; 0 stands for `tile_px`.
    pub above_px: u32,
    /// What a scan may cost to decode; one is decoded at a time.
    pub scan: DecodeSettings,
}

impl Default for PublisherSettings {
    fn default() -> Self {
        Self {
            max_in_flight: 32,
            max_in_flight_mib: 128,
            retry_timeout_s: 120,
            settle_ms: 1000,
            poll_s: 0,
            include: Vec::new(),
            exclude: EXCLUDED.map(str::to_owned).into(),
            pages: PageSelection::First,
            labels: LabelOrigin::Index,
            tile: TileSettings::default(),
        }
    }
}

impl Default for TileSettings {
    fn default() -> Self {
        let scan = DecodeSettings {
            max_bytes: 1024 * 1024 * 1024,
            max_side_px: 65_535,
            max_pixels: 500_000_000,
            max_memory_bytes: 2 * 1024 * 1024 * 1024,
            ..DecodeSettings::default()
        };
        Self { tile_px: 0, overlap_px: 32, above_px: 0, scan }
    }
}

impl TileSettings {
    /// The longest side that is not cut; absent when nothing is.
    pub(crate) fn limit_px(&self) -> Option<u32> {
        match (self.tile_px, self.above_px) {
            (0, _) => None,
            (tile_px, 0) => Some(tile_px),
            (_, above_px) => Some(above_px),
        }
    }
}

impl PublisherSettings {
    /// Refuses values that cannot work, naming the setting.
    ///
    /// # Errors
    /// One sentence, beginning with the name of the setting.
    pub fn check(&self) -> Result<(), String> {
        within("max_in_flight", self.max_in_flight as u64, 1, 1000)?;
        within("max_in_flight_mib", self.max_in_flight_mib.into(), 1, 65_536)?;
        within("patience_s", self.retry_timeout_s, 1, MAX_PATIENCE_S)?;
        within("settle_ms", self.settle_ms, 10, 3_600_000)?;
        within("poll_s", self.poll_s, 0, 3600)?;
        let TileSettings { tile_px, overlap_px, .. } = self.tile;
        if tile_px > 0 && overlap_px >= tile_px {
            return Err(format!("publisher.tile.overlap_px is {overlap_px}, use less than tile_px, {tile_px}"));
        }
        Ok(())
    }
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("publisher.{name} is {value}, use {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_their_own_check() {
        PublisherSettings::default().check().unwrap();
    }

    #[test]
    fn a_setting_that_cannot_work_is_named() {
        let good = PublisherSettings::default;
        let tile = TileSettings { tile_px: 64, overlap_px: 64, ..TileSettings::default() };
        for (settings, name) in [
            (PublisherSettings { max_in_flight: 0, ..good() }, "max_in_flight"),
            (PublisherSettings { max_in_flight_mib: 0, ..good() }, "max_in_flight_mib"),
            (PublisherSettings { retry_timeout_s: 10_000, ..good() }, "patience_s"),
            (PublisherSettings { settle_ms: 0, ..good() }, "settle_ms"),
            (PublisherSettings { tile, ..good() }, "tile.overlap_px"),
        ] {
            assert!(settings.check().unwrap_err().contains(name), "{name}");
        }
    }
}
