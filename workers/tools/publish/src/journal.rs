//! Journal of acknowledged files, so that an interrupted run resumes where it stopped.
//!
//! One append-only text file per server, site, camera and source; each line is `<task> <sequence> <bytes> <modified at,
//! ns> <changed at, ns> <path>`, separated by tabs. One task writes it and syncs all waiting lines together. The
//! journal only saves work (invariant 9): a file it lost is published again under the same id. A journal of another
//! stream is ignored: the message at its highest sequence must be the one it names.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemas::TaskId;
use schemas::task::HEADER_MESSAGE_ID;
use streams::topology::IMAGES;
use streams::{Bus, reader};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::image_loader::FileStamp;
use crate::source::{escape_path, unescape_path};

/// Most lines waiting for the disk before publishing waits too.
const MAX_WAITING_LINES: usize = 1024;
/// From this size on, opening a journal drops lines of deleted files. Bytes; an estimate.
const COMPACT_BYTES: u64 = 16 * 1024 * 1024;

/// Folder of journals, and the server they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLocation {
    /// Folder of all journals; created if absent.
    pub folder: PathBuf,
    /// Address of the server.
    pub server: String,
}

impl JournalLocation {
    /// In the user's state folder, `${XDG_STATE_HOME:-~/.local/state}/tributary/publish`. Absent for a user without a
    /// home folder.
    pub fn of_user(server: &str) -> Option<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
        Some(Self { folder: state.join("tributary/publish"), server: server.into() })
    }

    /// Path of the journal of the source with this identity.
    pub(crate) fn path(&self, identity: &str) -> PathBuf {
        self.folder.join(format!("{}.done", TaskId::from_name(&format!("{}\n{identity}", self.server))))
    }
}

/// A file that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalEntry {
    pub id: TaskId,
    /// Sequence in the stream; 0 for a scan, whose tiles each have their own.
    pub sequence: u64,
    pub stamp: FileStamp,
    pub path: PathBuf,
}

impl JournalEntry {
    fn line(&self) -> String {
        let Self { id, sequence, stamp: FileStamp { size_bytes, modified_at_ns, changed_at_ns }, path } = self;
        format!("{id}\t{sequence}\t{size_bytes}\t{modified_at_ns}\t{changed_at_ns}\t{}\n", escape_path(path))
    }

    /// `None` for a line that was truncated when the machine stopped.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, '\t');
        Some(Self {
            id: words.next()?.parse().ok()?,
            sequence: words.next()?.parse().ok()?,
            stamp: FileStamp {
                size_bytes: words.next()?.parse().ok()?,
                modified_at_ns: words.next()?.parse().ok()?,
                changed_at_ns: words.next()?.parse().ok()?,
            },
            path: unescape_path(words.next()?)?,
        })
    }
}

/// Files acknowledged before this run.
#[derive(Debug, Default)]
pub(crate) struct PublishedFiles {
    /// By a hash of the path, because a million paths would need much more memory. Two paths with the same hash would
    /// also have to agree in size and in time to the nanosecond.
    files: HashMap<u64, (FileStamp, TaskId)>,
    /// Sequence and id of the entry with the highest sequence.
    newest: Option<(u64, TaskId)>,
}

impl PublishedFiles {
    fn add(&mut self, entry: &JournalEntry) {
        self.files.insert(hash(&entry.path), (entry.stamp, entry.id));
        if entry.sequence > self.newest.map_or(0, |(sequence, _)| sequence) {
            self.newest = Some((entry.sequence, entry.id));
        }
    }

    /// Whether a file was acknowledged and, judging by size and times, has not changed since.
    pub(crate) fn has_unchanged(&self, path: &Path, stamp: FileStamp) -> bool {
        self.files.get(&hash(path)).is_some_and(|(known, _)| *known == stamp)
    }

    /// Whether a file was acknowledged with this content.
    pub(crate) fn has_content(&self, path: &Path, id: TaskId) -> bool {
        self.files.get(&hash(path)).is_some_and(|(_, known)| *known == id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Records files that are acknowledged during this run.
#[derive(Default)]
pub(crate) struct Journal {
    lines: Option<mpsc::Sender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl Journal {
    /// Opens and reads a journal. If that fails, the run continues without one.
    pub(crate) async fn open(path: PathBuf, bus: &Bus) -> (PublishedFiles, Self) {
        let shown = path.display().to_string();
        let opened = tokio::task::spawn_blocking(move || load(&path)).await.map_err(io::Error::other);
        let (file, known) = match opened.flatten() {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(journal = shown, %error, "journal unavailable");
                return (PublishedFiles::default(), Self::default());
            }
        };
        let mut known = known;
        if !is_of_this_stream(&known, bus).await {
            tracing::info!(journal = shown, "journal of another stream ignored");
            known = PublishedFiles::default();
            if let Err(error) = file.set_len(0) {
                tracing::warn!(journal = shown, %error, "journal not cleared");
            }
        }
        let (lines, waiting) = mpsc::channel(MAX_WAITING_LINES);
        let writer = tokio::spawn(write(file, waiting, shown));
        (known, Self { lines: Some(lines), writer: Some(writer) })
    }

    /// Records an acknowledged file.
    pub(crate) async fn record_file(&self, entry: &JournalEntry) {
        if let Some(lines) = &self.lines {
            let _writer_gave_up = lines.send(entry.line()).await;
        }
    }

    /// Returns when everything recorded is on disk.
    pub(crate) async fn close(self) {
        drop(self.lines);
        if let Some(Err(error)) = match self.writer {
            Some(writer) => Some(writer.await),
            None => None,
        } {
            tracing::warn!(%error, "journal not closed");
        }
    }
}

/// A recreated stream counts from 1 again and holds other messages.
async fn is_of_this_stream(known: &PublishedFiles, bus: &Bus) -> bool {
    let Some((sequence, id)) = known.newest else { return true };
    match reader::message_at(bus, IMAGES, sequence).await {
        Ok(Some(record)) => record.header(HEADER_MESSAGE_ID) == Some(id.to_string().as_str()),
        // Answered and purged, if the stream ever reached that sequence.
        Ok(None) => reader::stream_level(bus, IMAGES).await.is_ok_and(|level| level.last_sequence >= sequence),
        Err(error) => {
            tracing::debug!(%error, "journal could not be compared with the stream");
            false
        }
    }
}

fn load(path: &Path) -> io::Result<(File, PublishedFiles)> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    file.try_lock().map_err(|_| io::Error::other("another run is using it"))?;
    let length = file.metadata()?.len();
    let mut known = PublishedFiles::default();
    let mut kept = (length > COMPACT_BYTES).then(String::new);
    let mut ends_well = true;
    for line in BufReader::new(&file).split(b'\n') {
        let line = line?;
        let entry = std::str::from_utf8(&line).ok().and_then(JournalEntry::read);
        ends_well = entry.is_some();
        let Some(entry) = entry else { continue };
        if let Some(kept) = &mut kept {
            if !entry.path.exists() {
                continue;
            }
            kept.push_str(&entry.line());
        }
        known.add(&entry);
    }
    if let Some(kept) = kept {
        file.set_len(0)?;
        file.write_all(kept.as_bytes())?;
    } else if length > 0 {
        // A truncated line must not spoil the next one.
        file.seek(SeekFrom::End(0))?;
        if !ends_well || !ends_with_newline(path)? {
            file.write_all(b"\n")?;
        }
    }
    Ok((file, known))
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    io::Read::read_exact(&mut file, &mut last)?;
    Ok(last == *b"\n")
}

/// Syncs all waiting lines together, so that the disk does not slow down a fast run.
async fn write(mut file: File, mut waiting: mpsc::Receiver<String>, shown: String) {
    let mut lines = Vec::new();
    while waiting.recv_many(&mut lines, MAX_WAITING_LINES).await > 0 {
        let text: String = lines.drain(..).collect();
        let written = tokio::task::spawn_blocking(move || {
            file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map(|()| file)
        });
        file = match written.await.map_err(io::Error::other).flatten() {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(journal = shown, %error, "journal write failed; no more files are recorded");
                return;
            }
        };
    }
    // Closing is not enough: a process started meanwhile holds the lock until its exec.
    if let Err(error) = file.unlock() {
        tracing::debug!(journal = shown, %error, "journal not unlocked");
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, sequence: u64) -> JournalEntry {
        let stamp = FileStamp { size_bytes: 5, modified_at_ns: 7, changed_at_ns: 9 };
        JournalEntry { id: TaskId::from_name(name), sequence, stamp, path: name.into() }
    }

    #[test]
    fn a_truncated_journal_keeps_its_complete_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a.done");
        let (mut file, known) = load(&path).unwrap();
        assert!(known.is_empty());
        let (one, two, three) = (entry("/a/1.png", 1), entry("/a/2.png", 2), entry("/a/3.png", 3));
        file.write_all(format!("{}{}", one.line(), &two.line()[..50]).as_bytes()).unwrap();
        drop(file);
        let (mut file, known) = load(&path).unwrap();
        assert!(known.has_unchanged(&one.path, one.stamp) && !known.has_content(&two.path, two.id));
        file.write_all(three.line().as_bytes()).unwrap();
        drop(file);
        let (_file, known) = load(&path).unwrap();
        assert!(known.has_content(&one.path, one.id) && known.has_content(&three.path, three.id));
        assert_eq!(known.newest, Some((3, three.id)));
    }

    #[test]
    fn two_runs_do_not_share_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.done");
        let held = load(&path).unwrap();
        assert!(load(&path).is_err());
        drop(held);
        assert!(load(&path).is_ok());
    }

    #[test]
    fn lines_of_a_journal_that_were_bent_are_entries_or_none() {
        bend::bend_all(
            "lines of journals",
            &bend::texts([entry("/a/\u{fc} 1.png", 7).line()]),
            bend::turns(),
            |bytes| {
                if let Some(entry) = JournalEntry::read(&String::from_utf8_lossy(bytes)) {
                    assert_eq!(JournalEntry::read(entry.line().trim_end_matches('\n')), Some(entry));
                }
                1
            },
        );
    }

    proptest! {
        #[test]
        fn an_entry_survives_its_line(name in proptest::collection::vec(1u8.., 1..40), sequence: u64) {
            let entry = JournalEntry { path: OsString::from_vec(name).into(), ..entry("a", sequence) };
            prop_assert_eq!(JournalEntry::read(entry.line().trim_end_matches('\n')), Some(entry));
        }
    }
}
