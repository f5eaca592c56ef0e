//! Journal: which files were acknowledged, so that a run that was interrupted goes on where it stopped.
//!
//! One append-only text file for each server, site, camera and source; a line is `<task> <sequence>
//! <bytes> <modified at, ns> <changed at, ns> <path>`, with tabs between. Written by one task that puts all lines waiting on
//! the disk together. Only saves work (invariant 9): what it forgets is published again under the same
//! ids. One that belongs to another stream is not used: the message under its highest sequence must be
//! the one it says.

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

/// Lines waiting for the disk before publishing waits with them.
const WAITING: usize = 1024;
/// From this size on, lines of files that are gone are dropped when a journal is opened. Bytes; a guess.
const COMPACT_BYTES: u64 = 16 * 1024 * 1024;

/// Where journals are, and of which server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLocation {
    /// Folder of all journals; made if absent.
    pub folder: PathBuf,
    /// Address of the server published to.
    pub server: String,
}

impl JournalLocation {
    /// In the user's state folder: `${XDG_STATE_HOME:-~/.local/state}/tributary/publish`. Absent for a
    /// user without a home.
    pub fn of_user(server: &str) -> Option<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
        Some(Self { folder: state.join("tributary/publish"), server: server.into() })
    }

    /// The journal of a source that `identity` tells from others.
    pub(crate) fn path(&self, identity: &str) -> PathBuf {
        self.folder.join(format!("{}.done", TaskId::from_name(&format!("{}\n{identity}", self.server))))
    }
}

/// A file that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalEntry {
    pub id: TaskId,
    /// In the stream; 0 for a scan, whose tiles have one each.
    pub sequence: u64,
    pub stamp: FileStamp,
    pub path: PathBuf,
}

impl JournalEntry {
    fn line(&self) -> String {
        let Self { id, sequence, stamp: FileStamp { size_bytes, modified_at_ns, changed_at_ns }, path } = self;
        format!("{id}\t{sequence}\t{size_bytes}\t{modified_at_ns}\t{changed_at_ns}\t{}\n", escape_path(path))
    }

    /// Absent for a line that was cut off when the machine stopped.
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

/// What was acknowledged before this run.
#[derive(Debug, Default)]
pub(crate) struct PublishedFiles {
    /// By a hash of the path, for the paths of a million files would take much more memory. Two paths of
    /// one hash would also have to agree in size and time to the nanosecond.
    files: HashMap<u64, (FileStamp, TaskId)>,
    /// Of the entry with the highest sequence.
    newest: Option<(u64, TaskId)>,
}

impl PublishedFiles {
    fn add(&mut self, entry: &JournalEntry) {
        self.files.insert(hash(&entry.path), (entry.stamp, entry.id));
        if entry.sequence > self.newest.map_or(0, |(sequence, _)| sequence) {
            self.newest = Some((entry.sequence, entry.id));
        }
    }

    /// Whether a file was acknowledged and has not changed since, as far as its size and time tell.
    pub fn has_unchanged(&self, path: &Path, stamp: FileStamp) -> bool {
        self.files.get(&hash(path)).is_some_and(|(known, _)| *known == stamp)
    }

    /// Whether a file was acknowledged with this content.
    pub fn has_content(&self, path: &Path, id: TaskId) -> bool {
        self.files.get(&hash(path)).is_some_and(|(_, known)| *known == id)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Notes what is acknowledged during this run.
#[derive(Default)]
pub(crate) struct Journal {
    lines: Option<mpsc::Sender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl Journal {
    /// Opens a journal and reads what is in it. One that cannot be opened costs only its benefit.
    pub async fn open(path: PathBuf, bus: &Bus) -> (PublishedFiles, Self) {
        let shown = path.display().to_string();
        let opened = tokio::task::spawn_blocking(move || load(&path)).await.map_err(io::Error::other);
        let (file, known) = match opened.flatten() {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(journal = shown, %error, "no journal: after an interruption all files are read again");
                return (PublishedFiles::default(), Self::default());
            }
        };
        let mut known = known;
        if !is_of_this_stream(&known, bus).await {
            tracing::info!(journal = shown, "journal is of another stream: everything is published");
            known = PublishedFiles::default();
            if let Err(error) = file.set_len(0) {
                tracing::warn!(journal = shown, %error, "journal cannot be emptied");
            }
        }
        let (lines, waiting) = mpsc::channel(WAITING);
        let writer = tokio::spawn(write(file, waiting, shown));
        (known, Self { lines: Some(lines), writer: Some(writer) })
    }

    /// Notes a file that was acknowledged.
    pub async fn record_file(&self, entry: &JournalEntry) {
        if let Some(lines) = &self.lines {
            let _writer_gave_up = lines.send(entry.line()).await;
        }
    }

    /// Returns when everything noted is on the disk.
    pub async fn close(self) {
        drop(self.lines);
        if let Some(Err(error)) = match self.writer {
            Some(writer) => Some(writer.await),
            None => None,
        } {
            tracing::warn!(%error, "journal was not finished");
        }
    }
}

/// A stream that was made anew counts from 1 again and holds other messages.
async fn is_of_this_stream(known: &PublishedFiles, bus: &Bus) -> bool {
    let Some((sequence, id)) = known.newest else { return true };
    match reader::message_at(bus, IMAGES, sequence).await {
        Ok(Some(record)) => record.header(HEADER_MESSAGE_ID) == Some(id.to_string().as_str()),
        // Answered and purged, if the stream ever came so far.
        Ok(None) => reader::stream_level(bus, IMAGES).await.is_ok_and(|level| level.last_sequence >= sequence),
        Err(error) => {
            tracing::debug!(%error, "journal cannot be compared with the stream");
            false
        }
    }
}

fn load(path: &Path) -> io::Result<(File, PublishedFiles)> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    file.try_lock().map_err(|_| io::Error::other("another run writes it"))?;
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
        // A line that was cut off must not spoil the next.
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

/// Puts all lines waiting on the disk together, so that a fast run is not held up by the disk.
async fn write(mut file: File, mut waiting: mpsc::Receiver<String>, shown: String) {
    let mut lines = Vec::new();
    while waiting.recv_many(&mut lines, WAITING).await > 0 {
        let text: String = lines.drain(..).collect();
        let written = tokio::task::spawn_blocking(move || {
            file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map(|()| file)
        });
        file = match written.await.map_err(io::Error::other).flatten() {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(journal = shown, %error, "journal cannot be written: it is left as it is");
                return;
            }
        };
    }
    // Closing is not enough: a process started meanwhile holds the lock too until it has become itself.
    if let Err(error) = file.unlock() {
        tracing::debug!(journal = shown, %error, "journal was not unlocked");
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
    fn a_journal_that_was_cut_off_keeps_its_whole_lines() {
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
