//! Writes images into a tar archive in the WebDataset layout: the files of an image are adjacent and share a name up to
//! the first dot (`KEY.jpg`, `KEY.cls`, `KEY.json`). Objects are in the JSON: `objects` those of the answer,
//! `person_objects` those that a person drew; such an image has no class of its own.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemas::TaskId;
use serde::Serialize;

use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::image_kind;
use crate::row::TaskRow;

/// Block size of the format.
const BLOCK_BYTES: u64 = 512;

/// An archive being filled. An image's description comes last and marks it as complete.
pub(crate) struct TarballWriter {
    path: PathBuf,
    file: File,
    /// Buffer of the next write.
    builder: tar::Builder<Vec<u8>>,
}

impl TarballWriter {
    /// Opens or creates an archive, and returns the tasks it already has. Anything after the last complete image is
    /// dropped, because its writer was interrupted.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn open(path: &Path) -> Result<(Self, HashSet<TaskId>), ReplayError> {
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
        Ok((Self { path: path.into(), file, builder: tar::Builder::new(Vec::new()) }, known))
    }

    /// Adds images in one write: one large write costs less than half of many small ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn put(&mut self, images: &[(&TaskRow, ArchivedImage)]) -> Result<(), ReplayError> {
        let collected = images.iter().try_for_each(|(row, image)| self.collect(row, image));
        collected.and_then(|()| self.write()).map_err(ReplayError::write(&self.path))
    }

    fn collect(&mut self, row: &TaskRow, image: &ArchivedImage) -> std::io::Result<()> {
        let mut append = |extension: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(row.published_at_ms / 1000);
            self.builder.append_data(&mut header, format!("{}.{extension}", row.task), bytes)
        };
        append(image_kind::extension(&image.bytes), &image.bytes)?;
        if let Some((label, _)) = row.class_label() {
            append("cls", label.as_bytes())?;
        }
        append("json", &serde_json::to_vec(&ImageDescription::of(row))?)
    }

    fn write(&mut self) -> std::io::Result<()> {
        self.file.write_all(self.builder.get_ref())?;
        self.builder.get_mut().clear();
        Ok(())
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn end(mut self) -> Result<(), ReplayError> {
        self.builder.get_mut().clear();
        self.builder.finish().and_then(|()| self.write()).map_err(ReplayError::write(&self.path))
    }
}

/// An image's description: its row and label.
#[derive(Serialize)]
struct ImageDescription<'r> {
    #[serde(flatten)]
    row: &'r TaskRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'static str>,
    hard: bool,
}

impl<'r> ImageDescription<'r> {
    fn of(row: &'r TaskRow) -> Self {
        let (label, source) = row.label().map(|(label, source)| (label.as_ref(), source.as_str())).unzip();
        Self { row, label, source, hard: row.is_hard() }
    }
}

/// The tasks with all files present, and the offset after the last of them.
fn whole(file: File) -> std::io::Result<(HashSet<TaskId>, u64)> {
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(BufReader::new(file));
    let (mut known, mut end) = (HashSet::new(), 0);
    for entry in archive.entries_with_seek()? {
        // An unreadable entry is where the writer was interrupted.
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
    fn a_truncated_archive_resumes_after_its_complete_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.tar");
        // One that fills its blocks exactly and needs no padding, among them.
        let sizes = [("a", 1500), ("b", 1024), ("c", 1)];
        let rows = sizes.map(|(name, _)| TaskRow { task: TaskId::from_name(name), ..row() });
        let images = sizes.map(|(_, size)| ArchivedImage { bytes: Bytes::from(vec![7; size]), headers: Vec::new() });
        let fill = |cut: usize| {
            let (mut tarball, known) = TarballWriter::open(&path).unwrap();
            let rest = rows.iter().zip(images.clone()).filter(|(row, _)| !known.contains(&row.task));
            tarball.put(&rest.collect::<Vec<_>>()).unwrap();
            tarball.end().unwrap();
            (cut, known.len())
        };
        fill(0);
        let whole = std::fs::read(&path).unwrap();
        let mut counts = std::collections::BTreeSet::new();
        for cut in (0..=whole.len()).step_by(100) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            counts.insert(fill(cut).1);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "truncated after {cut} bytes");
        }
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        let mut names = Vec::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().to_string_lossy().into_owned());
        }
        let of = |row: &TaskRow| ["bin", "cls", "json"].map(|extension| format!("{}.{extension}", row.task));
        assert_eq!(names, rows.iter().flat_map(of).collect::<Vec<_>>());
    }
}
