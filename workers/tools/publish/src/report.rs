//! Summary of a run, for people (`Display`) and programs (`Serialize`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// Most refused files, kinds of files and notes that are listed; the rest are counted.
const MAX_LISTED: usize = 20;
/// Label for kinds beyond that limit.
const OTHER_KINDS: &str = "of other kinds";

/// A file that was not published, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedFile {
    /// Its path, as given or found.
    pub file: String,
    /// The reason, in one sentence.
    pub reason: String,
}

impl RefusedFile {
    pub(crate) fn new(path: &Path, reason: impl fmt::Display) -> Self {
        Self { file: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PublishSummary {
    /// Newly stored tasks; every tile of a scan is one.
    pub published: u64,
    /// Tasks that the stream already had.
    pub duplicates: u64,
    /// Files skipped because the journal has them.
    pub skipped: u64,
    /// Files that were cut into pages or tiles completely.
    pub scans: u64,
    /// Skipped files and folders by kind, at most 20 kinds; files in a skipped folder are not counted.
    pub passed_over: BTreeMap<String, u64>,
    /// Notes for the person who publishes, at most 20 sentences.
    pub notes: Vec<String>,
    /// The first refused files, at most 20.
    pub refused: Vec<RefusedFile>,
    /// Number of all refused files.
    pub refused_files: u64,
    /// Bytes of the newly stored images.
    pub bytes: u64,
    /// Generator images that were sent late because too many were in flight.
    pub late: u64,
    /// The longest such delay, milliseconds.
    pub longest_delay_ms: u64,
    /// Duration of the run, milliseconds.
    pub elapsed_ms: u64,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
}

impl PublishSummary {
    /// Stored tasks per second.
    pub fn rate_per_s(&self) -> f64 {
        self.published as f64 * 1000.0 / self.elapsed_ms.max(1) as f64
    }

    /// Whether this run or an earlier one stored anything.
    pub fn has_stored_images(&self) -> bool {
        self.published + self.duplicates + self.skipped > 0
    }

    pub(crate) fn count_refused(&mut self, refused: RefusedFile) {
        tracing::debug!(file = refused.file, reason = refused.reason, "file refused");
        self.refused_files += 1;
        if self.refused.len() < MAX_LISTED {
            self.refused.push(refused);
        }
    }

    pub(crate) fn count_skipped(&mut self, kind: String) {
        let known = self.passed_over.len() < MAX_LISTED || self.passed_over.contains_key(&kind);
        *self.passed_over.entry(if known { kind } else { OTHER_KINDS.into() }).or_default() += 1;
    }

    pub(crate) fn add_note(&mut self, note: String) {
        if self.notes.len() < MAX_LISTED {
            self.notes.push(note);
        }
    }

    pub(crate) fn add_delay(&mut self, delay: Duration) {
        self.late += 1;
        self.longest_delay_ms = self.longest_delay_ms.max(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    }
}

impl fmt::Display for PublishSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed_ms as f64 / 1000.0;
        let size = indicatif::HumanBytes(self.bytes);
        let rate = self.rate_per_s();
        write!(f, "{} published ({size}) in {seconds:.1} s, {rate:.1} per second", self.published)?;
        for (count, what) in [
            (self.duplicates, "already in the stream"),
            (self.skipped, "published before and skipped"),
            (self.scans, "cut into pages or tiles"),
            (self.refused_files, "refused"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        if self.late > 0 {
            write!(f, "; {} sent late, by up to {} ms", self.late, self.longest_delay_ms)?;
        }
        if !self.passed_over.is_empty() {
            let kinds: Vec<String> = self.passed_over.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            write!(f, "\n  skipped: {}", kinds.join(", "))?;
        }
        for note in &self.notes {
            write!(f, "\n  note: {note}")?;
        }
        for RefusedFile { file, reason } in &self.refused {
            write!(f, "\n  refused {file}: {reason}")?;
        }
        let unlisted = self.refused_files.saturating_sub(self.refused.len() as u64);
        if unlisted > 0 {
            write!(f, "\n  and {unlisted} more")?;
        }
        if self.interrupted {
            write!(f, "\ninterrupted; run the same command again to resume")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_files_are_counted_by_kind_and_kinds_are_bounded() {
        let mut summary = PublishSummary::default();
        for kind in [".heic", "hidden", ".heic"] {
            summary.count_skipped(kind.into());
        }
        assert!(summary.to_string().contains("skipped: 2 .heic, 1 hidden"), "{summary}");
        (0..100).for_each(|number| summary.count_skipped(format!(".{number}")));
        assert_eq!((summary.passed_over.len(), summary.passed_over[OTHER_KINDS]), (21, 82));
    }

    #[test]
    fn the_first_refused_files_are_listed_and_the_rest_counted() {
        let mut summary = PublishSummary::default();
        for number in 0..25 {
            summary.count_refused(RefusedFile::new(Path::new(&format!("{number}.png")), "it is empty"));
        }
        let text = summary.to_string();
        assert_eq!((summary.refused.len(), summary.refused_files), (20, 25));
        assert!(text.contains("refused 19.png: it is empty") && text.contains("and 5 more"), "{text}");
        assert!(!text.contains("20.png"), "{text}");
    }
}
