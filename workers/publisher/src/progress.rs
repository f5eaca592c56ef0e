//! A bar on standard error, where somebody can see it and there is enough to wait for.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Fewer images than this are gone before a bar is read; a guess.
const LONG: u64 = 50;

/// Shows how far publishing is, or nothing.
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

    /// Shows a bar when standard error is a terminal and the work is long or of unknown length.
    pub fn on_terminal() -> Self {
        Self { shown: std::io::stderr().is_terminal(), ..Self::hidden() }
    }

    pub(crate) fn begin(&mut self, total: Option<u64>) {
        if !self.shown || total.is_some_and(|total| total < LONG) {
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
