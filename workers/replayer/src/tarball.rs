//! Images into a tar archive as WebDataset has it: the files of an image stand beside one another and share a name up to the
//! first dot (`KEY.jpg`, `KEY.cls`, `KEY.json`).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemas::TaskId;
use serde::Serialize;

use crate::error::ReplayError;
use crate::fetch::Image;
use crate::kind;
use crate::row::Row;

/// Bytes collected before they are written: headers and descriptions are, most images go to the system as they are.
const BUFFER_BYTES: usize = 16 * 1024;
/// The unit of the format.
const BLOCK_BYTES: u64 = 512;
/// What fills the last one of a file.
const PADDING: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// An archive that is filled. The description of an image comes last: with it, the image is whole.
pub struct Tarball {
    path: PathBuf,
    builder: tar::Builder<BufWriter<File>>,
}

impl Tarball {
    /// Opens an archive, or makes it; also the tasks it has already. What stands behind the last whole image is dropped:
    /// whoever wrote it was stopped.
    ///
    /// # Errors
    /// The system's words.
    pub fn open(path: &Path) -> Result<(Self, HashSet<TaskId>), ReplayError> {
        let failed = ReplayError::write;
        let (known, end) = match File::open(path) {
            Ok(file) => whole(file).map_err(failed(path))?,
            Err(_) => (HashSet::new(), 0),
        };
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed(path))?;
        let length = file.metadata().map_err(failed(path))?.len();
        if length > end {
            file.set_len(end).map_err(failed(path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(failed(path))?;
        let builder = tar::Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok((Self { path: path.into(), builder }, known))
    }

    /// Adds an image.
    ///
    /// # Errors
    /// The system's words.
    pub fn put(&mut self, row: &Row, image: &Image) -> Result<(), ReplayError> {
        self.add(row, kind::extension(&image.bytes), &image.bytes)?;
        if let Some((label, _)) = row.label() {
            self.add(row, "cls", label.as_bytes())?;
        }
        self.add(row, "json", &serde_json::to_vec(&Described::of(row)).unwrap_or_default())
    }

    fn add(&mut self, row: &Row, extension: &str, bytes: &[u8]) -> Result<(), ReplayError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(row.published_at_ms / 1000);
        // As the builder's own way of adding does, which copies everything twice on the way.
        let added = header.set_path(format!("{}.{extension}", row.task)).and_then(|()| {
            header.set_cksum();
            let blocks = bytes.len().next_multiple_of(BLOCK_BYTES as usize);
            let into = self.builder.get_mut();
            into.write_all(header.as_bytes())?;
            into.write_all(bytes)?;
            into.write_all(PADDING.get(..blocks - bytes.len()).unwrap_or_default())
        });
        added.map_err(ReplayError::write(&self.path))
    }

    /// Ends the archive as the format has it.
    ///
    /// # Errors
    /// The system's words.
    pub fn end(mut self) -> Result<(), ReplayError> {
        let ended = self.builder.finish().and_then(|()| self.builder.get_mut().flush());
        ended.map_err(ReplayError::write(&self.path))
    }
}

/// An image's description: what is known of it, and what it shows.
#[derive(Serialize)]
struct Described<'r> {
    #[serde(flatten)]
    row: &'r Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'static str>,
    hard: bool,
}

impl<'r> Described<'r> {
    fn of(row: &'r Row) -> Self {
        let (label, source) = row.label().map(|(label, source)| (label.as_ref(), source.as_str())).unzip();
        Self { row, label, source, hard: row.is_hard() }
    }
}

/// The tasks whose files are all there, and where the last of those ends.
fn whole(file: File) -> std::io::Result<(HashSet<TaskId>, u64)> {
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(BufReader::new(file));
    let (mut known, mut end) = (HashSet::new(), 0);
    for entry in archive.entries_with_seek()? {
        // What cannot be read is where somebody was stopped.
        let Ok(entry) = entry else { break };
        let over = (entry.raw_file_position() + entry.size()).next_multiple_of(BLOCK_BYTES);
        let Ok(path) = entry.path() else { break };
        if over > length {
            break;
        }
        let name = path.to_string_lossy();
        if let Some(task) = name.strip_suffix(".json").and_then(|task| task.parse().ok()) {
            known.insert(task);
            end = over;
        }
    }
    Ok((known, end))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::row::tests::row;

    #[test]
    fn an_archive_that_was_cut_off_goes_on_with_what_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.tar");
        let rows = ["a", "b", "c"].map(|name| Row { task: TaskId::derived(name), ..row() });
        let image = Image { bytes: Bytes::from(vec![7; 1500]), headers: Vec::new() };
        let fill = |cut: usize| {
            let (mut tarball, known) = Tarball::open(&path).unwrap();
            for row in rows.iter().filter(|row| !known.contains(&row.task)) {
                tarball.put(row, &image).unwrap();
            }
            tarball.end().unwrap();
            (cut, known.len())
        };
        fill(0);
        let whole = std::fs::read(&path).unwrap();
        let mut counts = std::collections::BTreeSet::new();
        for cut in (0..=whole.len()).step_by(100) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            counts.insert(fill(cut).1);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut off after {cut} bytes");
        }
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        let mut names = Vec::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().to_string_lossy().into_owned());
        }
        let of = |row: &Row| ["bin", "cls", "json"].map(|extension| format!("{}.{extension}", row.task));
        assert_eq!(names, rows.iter().flat_map(of).collect::<Vec<_>>());
    }
}
