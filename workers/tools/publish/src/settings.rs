//! Settings of the publisher.

use serde::{Deserialize, Serialize};
use vision::DecodeSettings;

/// Largest retry timeout: beyond it the stream may have forgotten the message id that is retried (its duplicate window
/// is 30 minutes by default).
const MAX_PATIENCE_S: u64 = 25 * 60;

/// Publisher settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublisherSettings {
    /// Images in flight at a time, 1 to 1000.
    pub max_in_flight: usize,
    /// Memory limit of images read and not yet acknowledged, MiB, 1 to 65536. A larger image is sent alone.
    pub max_in_flight_mib: u32,
    /// Seconds an image is retried under its id before publishing stops, 1 to 1500.
    pub retry_timeout_s: u64,
    /// Milliseconds without a change in size or time after which a watched file counts as complete, if the system does
    /// not report that its writer closed it, 10 to 3600000.
    pub settle_ms: u64,
    /// Seconds between listings of a watched folder, at most 3600, for network shares that do not report changes; 0
    /// uses the system's change events.
    pub poll_s: u64,
    /// In folders, publish only files that match one of these patterns, whatever their extension; empty: all image
    /// files. `*` matches any text, `?` one character; a pattern with a slash matches the path in the folder.
    pub include: Vec<String>,
    /// Files and folders to skip in folders; patterns as above. Hidden ones are always skipped.
    pub exclude: Vec<String>,
    /// Which pages of a TIFF to publish.
    pub pages: PageSelection,
    /// Source of true labels for images that no `index.csv` beside them names.
    pub labels: LabelOrigin,
    /// How scans that are too large for one task are cut.
    pub tile: TileSettings,
}

/// Source of true labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelOrigin {
    /// Only `index.csv` beside the images, with the columns `file` and `label`.
    #[default]
    Index,
    /// `index.csv`, and for images it does not name the name of their folder.
    Folder,
}

/// Which pages of a TIFF to publish. Thumbnails are not pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageSelection {
    /// Publish the file as it is; its first page is recognized.
    #[default]
    First,
    /// Publish each page as its own task.
    All,
}

/// Files that devices and programs keep beside pictures, and unfinished uploads.
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
    /// Side of a tile in pixels; 0 disables cutting.
    pub tile_px: u32,
    /// Least overlap of neighbouring tiles in pixels, less than `tile_px`.
    pub overlap_px: u32,
    /// Images with a side longer than this many pixels are cut; 0 means `tile_px`.
    pub above_px: u32,
    /// Limits of decoding a scan; one is decoded at a time.
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
    /// The longest side that is not cut; `None` if cutting is disabled.
    pub(crate) fn limit_px(&self) -> Option<u32> {
        match (self.tile_px, self.above_px) {
            (0, _) => None,
            (tile_px, 0) => Some(tile_px),
            (_, above_px) => Some(above_px),
        }
    }
}

impl PublisherSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that begins with the name of the invalid setting.
    pub fn check(&self) -> Result<(), String> {
        within("max_in_flight", self.max_in_flight as u64, 1, 1000)?;
        within("max_in_flight_mib", self.max_in_flight_mib.into(), 1, 65_536)?;
        within("retry_timeout_s", self.retry_timeout_s, 1, MAX_PATIENCE_S)?;
        within("settle_ms", self.settle_ms, 10, 3_600_000)?;
        within("poll_s", self.poll_s, 0, 3600)?;
        let TileSettings { tile_px, overlap_px, .. } = self.tile;
        if tile_px > 0 && overlap_px >= tile_px {
            return Err(format!("tile.overlap_px is {overlap_px}; it must be below tile_px ({tile_px})"));
        }
        Ok(())
    }
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} is {value}; it must be {least} to {most}"))
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
            (PublisherSettings { retry_timeout_s: 10_000, ..good() }, "retry_timeout_s"),
            (PublisherSettings { settle_ms: 0, ..good() }, "settle_ms"),
            (PublisherSettings { tile, ..good() }, "tile.overlap_px"),
        ] {
            assert!(settings.check().unwrap_err().contains(name), "{name}");
        }
    }
}
