//! Settings of the janitor.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of the janitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JanitorSettings {
    /// Fill level of the stream of images above which answered images are deleted, 0 to 1.
    pub high_ratio: f64,
    /// Fill level at which deleting stops, 0 to `high_ratio`.
    pub low_ratio: f64,
    /// Interval of the janitor's passes, seconds, at least 1.
    pub every_s: u64,
    /// Folder of the server's store, if the janitor can see it: images are then refused before the disk is full. Set by
    /// `tributary up`.
    pub store: Option<PathBuf>,
    /// Free space on the disk of `store` below which images are refused, MiB; they are accepted again when half as much
    /// more is free.
    pub disk_reserve_mib: u32,
    /// Address of the server's monitoring pages, such as `http://127.0.0.1:8222`, to count messages that it refused for
    /// their size. Set by `tributary up`.
    pub monitor: Option<String>,
}

impl Default for JanitorSettings {
    fn default() -> Self {
        Self { high_ratio: 0.85, low_ratio: 0.7, every_s: 5, store: None, disk_reserve_mib: 256, monitor: None }
    }
}

impl JanitorSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        let Self { high_ratio, low_ratio, .. } = self;
        if !(0.0..=1.0).contains(high_ratio) {
            return Err(format!("high_ratio is {high_ratio}; it must be between 0 and 1"));
        }
        if !(0.0..=*high_ratio).contains(low_ratio) {
            return Err(format!("low_ratio is {low_ratio}; it must be between 0 and high_ratio ({high_ratio})"));
        }
        match self.every_s {
            0 => Err("every_s is 0; it must be at least 1".into()),
            _ => Ok(()),
        }
    }
}
