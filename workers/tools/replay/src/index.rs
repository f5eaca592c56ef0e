//! The rows of `index.csv`, with what a replay knows of each image.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::TaskId;

use crate::error::ReplayError;
use crate::row::{self, TaskRow};

/// Column headers. Those that training reads come first.
pub const HEADS: [&str; 19] = [
    "file",
    "label",
    "source",
    "hard",
    "task",
    "site",
    "camera",
    "published_at_ms",
    "stage",
    "route",
    "reason",
    "answer",
    "confidence",
    "edge_label",
    "edge_confidence",
    "truth",
    "person",
    "release",
    "bytes",
];

/// The row of an image; cells are empty where nothing is known. Where the true objects are known, label and source are
/// empty, too: no class of theirs is that of the whole picture.
pub fn cells<'r>(file: &'r str, row: &'r TaskRow, bytes: usize) -> [Cow<'r, str>; 19] {
    let text = |text: &'r Option<Arc<str>>| text.as_deref().unwrap_or_default().into();
    let number = |number: Option<f32>| number.map(|number| number.to_string()).unwrap_or_default().into();
    let (label, source) = row.class_label().map_or(("", ""), |(label, source)| (label.as_ref(), source.as_str()));
    [
        file.into(),
        label.into(),
        source.into(),
        if row.is_hard() { "true" } else { "false" }.into(),
        row.task.to_string().into(),
        row.site.as_ref().into(),
        row.camera.as_ref().into(),
        row.published_at_ms.to_string().into(),
        row::stage(row.stage).into(),
        row.route.as_str().into(),
        row.reason.as_str().into(),
        text(&row.answer),
        number(row.confidence),
        text(&row.edge),
        number(row.edge_confidence),
        text(&row.truth),
        text(&row.person),
        text(&row.release),
        bytes.to_string().into(),
    ]
}

/// An index that is appended to.
pub struct IndexWriter {
    writer: csv::Writer<BufWriter<File>>,
    path: PathBuf,
}

impl IndexWriter {
    /// Opens or creates an index. The first row that fails `whole`, and everything after it, is dropped, because its
    /// writer was interrupted. Returns the tasks of the rows that stay.
    ///
    /// # Errors
    /// The file cannot be read or written, or has other columns ([`ReplayError::Foreign`]).
    pub fn open(
        path: &Path,
        heads: &[&str],
        mut whole: impl FnMut(&csv::StringRecord) -> Option<TaskId>,
    ) -> Result<(Self, HashSet<TaskId>), ReplayError> {
        let failed = ReplayError::write;
        let mut known = HashSet::new();
        let mut end = 0;
        if path.is_file() && has_head(path, heads)? {
            let foreign = || ReplayError::Foreign { path: path.into(), what: "other columns".into() };
            let cut_off = !ends_in_a_line(path).map_err(failed(path))?;
            let all = path.metadata().map_err(failed(path))?.len();
            let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_path(path);
            let reader = reader.as_mut().map_err(|_| foreign())?;
            let mut record = csv::StringRecord::new();
            while reader.read_record(&mut record).unwrap_or(false) {
                let at = reader.position().byte();
                if end > 0 {
                    let unfinished = cut_off && at == all;
                    let Some(task) = whole(&record).filter(|_| record.len() == heads.len() && !unfinished) else {
                        break;
                    };
                    known.insert(task);
                }
                end = at;
            }
        }
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed(path))?;
        file.set_len(end).map_err(failed(path))?;
        file.seek(SeekFrom::End(0)).map_err(failed(path))?;
        let writer = csv::WriterBuilder::new().has_headers(false).from_writer(BufWriter::new(file));
        let mut index = Self { writer, path: path.into() };
        if end == 0 {
            index.add(heads)?;
        }
        Ok((index, known))
    }

    /// Adds a row.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) -> Result<(), ReplayError> {
        let mut cells = cells.into_iter();
        let fields = cells.try_for_each(|cell| self.writer.write_field(cell.as_ref()));
        fields.and_then(|()| self.writer.write_record(None::<&[u8]>)).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(source) => ReplayError::Write { path: self.path.clone(), source },
            other => {
                ReplayError::Write { path: self.path.clone(), source: std::io::Error::other(format!("{other:?}")) }
            }
        })
    }

    /// Writes buffered rows to the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<(), ReplayError> {
        self.writer.flush().map_err(ReplayError::write(&self.path))
    }

    /// Writes buffered rows and waits until they are on disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(mut self) -> Result<(), ReplayError> {
        self.flush()?;
        let path = self.path.clone();
        let inner = self.writer.into_inner().map_err(|error| ReplayError::write(&path)(error.into_error()))?;
        let mut file = inner.into_inner().map_err(|error| ReplayError::write(&path)(error.into_error()))?;
        file.flush().and_then(|()| file.sync_all()).map_err(ReplayError::write(&path))
    }
}

/// Whether the header line is complete; a truncated one is written again.
fn has_head(path: &Path, heads: &[&str]) -> Result<bool, ReplayError> {
    let head = format!("{}\n", heads.join(","));
    let mut found = Vec::new();
    let file = File::open(path).map_err(ReplayError::write(path))?;
    file.take(head.len() as u64).read_to_end(&mut found).map_err(ReplayError::write(path))?;
    match head.as_bytes().starts_with(&found) {
        true => Ok(found.len() == head.len()),
        false => Err(ReplayError::Foreign { path: path.into(), what: "other columns".into() }),
    }
}

fn ends_in_a_line(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::row;

    fn open(path: &Path) -> (IndexWriter, HashSet<TaskId>) {
        IndexWriter::open(path, &HEADS, |cells| cells.get(4)?.parse().ok()).unwrap()
    }

    #[test]
    fn a_truncated_index_resumes_after_its_complete_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.csv");
        let (mut index, known) = open(&path);
        assert!(known.is_empty());
        let second = TaskRow { task: TaskId::from_name("b"), answer: Some("a \"b\", c\nd".into()), ..row() };
        index.add(cells("cam/a.png", &row(), 10)).unwrap();
        index.add(cells("cam/b.png", &second, 10)).unwrap();
        index.sync().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut index, known) = open(&path);
            for row in [row(), second.clone()] {
                if !known.contains(&row.task) {
                    let name = if row.task == second.task { "cam/b.png" } else { "cam/a.png" };
                    index.add(cells(name, &row, 10)).unwrap();
                }
            }
            index.sync().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "truncated after {cut} bytes");
        }
    }

    #[test]
    fn a_file_with_other_columns_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.csv");
        std::fs::write(&path, "file,label\na,b\n").unwrap();
        assert!(matches!(IndexWriter::open(&path, &HEADS, |_| None), Err(ReplayError::Foreign { .. })));
    }
}
