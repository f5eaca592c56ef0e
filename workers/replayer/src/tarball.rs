//! Images into a tar archive as WebDataset has it: the files of an image stand beside one another and share a name up to the
//! first dot (`KEY.jpg`, `KEY.cls`, `KEY.json`).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, IoSlice, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemas::TaskId;
use serde::Serialize;

use crate::error::ReplayError;
use crate::fetch::Image;
use crate::kind;
use crate::row::Row;

/// The unit of the format.
const BLOCK_BYTES: u64 = 512;
/// What an archive ends with.
const END: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];

/// An archive that is filled. The description of an image comes last: with it, the image is whole.
pub struct Tarball {
    path: PathBuf,
    file: File,
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
        Ok((Self { path: path.into(), file }, known))
    }

    /// Adds images, in one write: their bytes go to the system from where they are, and it takes one large piece for less than
    /// many small ones.
    ///
    /// # Errors
    /// The system's words.
    pub fn put(&mut self, images: &[(&Row, Image)]) -> Result<(), ReplayError> {
        // What lies between the bytes of the images, and where those belong.
        let mut between = Vec::with_capacity(images.len() * 6 * BLOCK_BYTES as usize);
        let places = images.iter().map(|(row, image)| describe(&mut between, row, &image.bytes));
        let places = places.collect::<std::io::Result<Vec<_>>>().map_err(ReplayError::write(&self.path))?;
        let mut slices = Vec::with_capacity(2 * images.len() + 1);
        let mut from = 0;
        for (place, (_, image)) in places.into_iter().zip(images) {
            slices.push(IoSlice::new(between.get(from..place).unwrap_or_default()));
            slices.push(IoSlice::new(&image.bytes));
            from = place;
        }
        slices.push(IoSlice::new(between.get(from..).unwrap_or_default()));
        write_all(&mut self.file, &mut slices).map_err(ReplayError::write(&self.path))
    }

    /// Ends the archive as the format has it.
    ///
    /// # Errors
    /// The system's words.
    pub fn end(mut self) -> Result<(), ReplayError> {
        self.file.write_all(&END).map_err(ReplayError::write(&self.path))
    }
}

/// Appends all of an image but its bytes; says where those belong.
fn describe(into: &mut Vec<u8>, row: &Row, image: &[u8]) -> std::io::Result<usize> {
    head(into, row, kind::extension(image), image.len())?;
    let place = into.len();
    pad(into, image.len());
    let mut whole = |extension: &str, bytes: &[u8]| {
        head(into, row, extension, bytes.len())?;
        into.extend_from_slice(bytes);
        pad(into, bytes.len());
        Ok::<_, std::io::Error>(())
    };
    if let Some((label, _)) = row.label() {
        whole("cls", label.as_bytes())?;
    }
    whole("json", &serde_json::to_vec(&Described::of(row))?)?;
    Ok(place)
}

/// Appends the header of one file.
fn head(into: &mut Vec<u8>, row: &Row, extension: &str, bytes: usize) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    header.set_mtime(row.published_at_ms / 1000);
    header.set_path(format!("{}.{extension}", row.task))?;
    header.set_cksum();
    into.extend_from_slice(header.as_bytes());
    Ok(())
}

/// Fills the last block of a file of so many bytes.
fn pad(into: &mut Vec<u8>, bytes: usize) {
    into.resize(into.len() + bytes.next_multiple_of(BLOCK_BYTES as usize) - bytes, 0);
}

/// Writes all pieces, one after the other (`Write::write_all_vectored` is not stable).
fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> std::io::Result<()> {
    // Passes over what is empty: a file of 512 bytes has no padding.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        // One that fills its blocks, and needs no padding, among them.
        let sizes = [("a", 1500), ("b", 1024), ("c", 1)];
        let rows = sizes.map(|(name, _)| Row { task: TaskId::derived(name), ..row() });
        let images = sizes.map(|(_, size)| Image { bytes: Bytes::from(vec![7; size]), headers: Vec::new() });
        let fill = |cut: usize| {
            let (mut tarball, known) = Tarball::open(&path).unwrap();
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
