//! A progress bar on standard error, for terminals and runs that take a while.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Runs of fewer images end before a bar could be read; an estimate.
const MIN_IMAGES: u64 = 50;

/// Shows the progress of a run, or nothing.
#[derive(Debug)]
pub struct PublishProgress {
    shown: bool,
    bar: ProgressBar,
    bytes: u64,
}

impl PublishProgress {
    /// Shows nothing.
    pub fn hidden() -> Self {
        Self { shown: false, bar: ProgressBar::hidden(), bytes: 0 }
    }

    /// Shows a bar if standard error is a terminal and the run is long or of unknown length.
    pub fn on_terminal() -> Self {
        Self { shown: std::io::stderr().is_terminal(), ..Self::hidden() }
    }

    pub(crate) fn begin(&mut self, total: Option<u64>) {
        if !self.shown || total.is_some_and(|total| total < MIN_IMAGES) {
            return;
        }
        let (bar, form) = match total {
            Some(total) => (ProgressBar::new(total), "{bar:30} {pos}/{len} images {per_sec} {msg} {eta} left"),
            None => (ProgressBar::new_spinner(), "{spinner} {pos} images {per_sec} {msg}"),
        };
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        self.bar = bar;
    }

    pub(crate) fn step(&mut self, bytes: u64) {
        self.bytes += bytes;
        if !self.bar.is_hidden() {
            self.bar.set_message(HumanBytes(self.bytes).to_string());
        }
        self.bar.inc(1);
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for PublishProgress {
    fn default() -> Self {
        Self::hidden()
    }
}
