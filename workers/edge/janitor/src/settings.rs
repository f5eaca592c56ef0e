//! What an operator may choose about the archive.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What an operator may choose about the archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JanitorSettings {
    /// Answered images go when the stream is fuller than this, 0 to 1.
    pub high_ratio: f64,
    /// They go until it is this full, 0 to `high_ratio`.
    pub low_ratio: f64,
    /// How often it looks, seconds, at least 1.
    pub every_s: u64,
    /// Folder of the server's store, where the janitor sees it: images are refused before its disk is full. `tributary up`
    /// sets it by itself.
    pub store: Option<PathBuf>,
    /// Images are refused while less than this is free on the disk of `store`, MiB; they are taken again when half as much
    /// more is free.
    pub disk_reserve_mib: u32,
    /// Address of the server's monitoring pages, for example `http://127.0.0.1:8222`: messages that it refused for
    /// their size are counted. `tributary up` sets it by itself.
    pub monitor: Option<String>,
}

impl Default for JanitorSettings {
    fn default() -> Self {
        Self { high_ratio: 0.85, low_ratio: 0.7, every_s: 5, store: None, disk_reserve_mib: 256, monitor: None }
    }
}

impl JanitorSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let Self { high_ratio, low_ratio, .. } = self;
        if !(0.0..=1.0).contains(high_ratio) {
            return Err(format!("janitor.high_ratio is {high_ratio}; it must be between 0 and 1"));
        }
        if !(0.0..=*high_ratio).contains(low_ratio) {
            return Err(format!(
                "janitor.low_ratio is {low_ratio}; it must be between 0 and janitor.high_ratio ({high_ratio})"
            ));
        }
        match self.every_s {
            0 => Err("janitor.every_s is 0, use at least 1".into()),
            _ => Ok(()),
        }
    }
}
