//! Writes images into a folder with COCO annotations: `images/`, and `annotations.json` with what is truly in each: what
//! a person drew, else what the cloud found, else what the site found.
//!
//! The annotations are made at the end from `images.csv`, which has a row for each complete image, so that an
//! interrupted export goes on where it stopped. Sizes and boxes are those of the upright picture: whoever reads an image
//! with an orientation in its metadata has to apply it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use schemas::{DetectedObject, Route, TaskId};
use serde::Serialize;
use vision::DecodeSettings;

use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::image_kind;
use crate::index::IndexWriter;
use crate::row::{Objects, TaskRow};

/// Folder of the images.
const IMAGES: &str = "images";
/// The annotations.
const ANNOTATIONS: &str = "annotations.json";
/// Rows collected before they are written.
const FLUSH_EVERY: usize = 64;
/// Column headers of the rows; `objects` is JSON.
const HEADS: [&str; 10] =
    ["file", "task", "bytes", "width", "height", "site", "camera", "published_at_ms", "source", "objects"];

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CocoOutcome {
    /// It is in the folder.
    Written,
    /// Its answer lists no objects, and nobody drew any: an image without boxes would mean that nothing is there.
    WithoutObjects,
    /// It cannot be decoded, so its size is unknown.
    Undecodable,
}

/// A folder being filled. Each image is written before its row, so a row always names a complete image.
pub(crate) struct CocoFolderWriter {
    path: PathBuf,
    index: IndexWriter,
    unflushed: usize,
}

impl CocoFolderWriter {
    /// Opens or creates a folder, and returns the tasks it already has. An image whose size differs from its row was
    /// truncated by a machine crash and is fetched again.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub(crate) fn open(path: &Path) -> Result<(Self, HashSet<TaskId>), ReplayError> {
        let images = path.join(IMAGES);
        fs::create_dir_all(&images).map_err(ReplayError::write(&images))?;
        let whole = |cells: &csv::StringRecord| {
            let row = CocoImageRow::of_cells(cells)?;
            let size = fs::metadata(images.join(&row.file)).ok()?.len();
            (row.bytes == size).then_some(row.task)
        };
        let (index, known) = IndexWriter::open(&path.join("images.csv"), &HEADS, whole)?;
        Ok((Self { path: path.into(), index, unflushed: 0 }, known))
    }

    /// Adds an image.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write_image(&mut self, row: &TaskRow, image: &ArchivedImage) -> Result<CocoOutcome, ReplayError> {
        let Some((objects, source)) = objects(row) else { return Ok(CocoOutcome::WithoutObjects) };
        let Ok(pixels) = vision::decode(&image.bytes, &DecodeSettings::default()) else {
            return Ok(CocoOutcome::Undecodable);
        };
        let file = format!("{}.{}", row.task, image_kind::extension(&image.bytes));
        let path = self.path.join(IMAGES).join(&file);
        if let Err(error) = fs::write(&path, &image.bytes) {
            // A partial image is useless, especially on a full disk.
            let _ = fs::remove_file(&path);
            return Err(ReplayError::write(&path)(error));
        }
        self.index.add([
            file,
            row.task.to_string(),
            image.bytes.len().to_string(),
            pixels.width_px.to_string(),
            pixels.height_px.to_string(),
            row.site.to_string(),
            row.camera.to_string(),
            row.published_at_ms.to_string(),
            source.to_owned(),
            serde_json::to_string(objects).unwrap_or_default(),
        ])?;
        self.unflushed += 1;
        if self.unflushed >= FLUSH_EVERY {
            self.unflushed = 0;
            self.index.flush()?;
        }
        Ok(CocoOutcome::Written)
    }

    /// Finishes: waits until the rows are on disk, and writes the annotations of all of them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn end(self) -> Result<(), ReplayError> {
        let Self { path, index, .. } = self;
        index.sync()?;
        let (rows, annotations) = (path.join("images.csv"), path.join(ANNOTATIONS));
        let beside = annotations.with_added_extension("part");
        write_annotations(&rows, &beside).map_err(ReplayError::write(&beside))?;
        fs::rename(&beside, &annotations).map_err(ReplayError::write(&annotations))
    }
}

/// What is in an image as far as anybody knows, and who says so.
fn objects(row: &TaskRow) -> Option<(&Objects, &'static str)> {
    let truth = row.true_objects().map(|(objects, source)| (objects, source.as_str()));
    let answerer = if matches!(row.route, Route::Verified | Route::Redirected) { "verdict" } else { "edge" };
    truth.or_else(|| row.objects.as_ref().map(|objects| (objects, answerer)))
}

/// A row of `images.csv`.
struct CocoImageRow {
    file: String,
    task: TaskId,
    bytes: u64,
    width_px: u32,
    height_px: u32,
    site: String,
    camera: String,
    published_at_ms: u64,
    source: String,
    objects: Vec<DetectedObject>,
}

impl CocoImageRow {
    fn of_cells(cells: &csv::StringRecord) -> Option<Self> {
        let [file, task, bytes, width, height, site, camera, published_at_ms, source, objects] =
            std::array::from_fn(|at| cells.get(at).unwrap_or_default());
        Some(Self {
            file: file.to_owned(),
            task: task.parse().ok()?,
            bytes: bytes.parse().ok()?,
            width_px: width.parse().ok()?,
            height_px: height.parse().ok()?,
            site: site.to_owned(),
            camera: camera.to_owned(),
            published_at_ms: published_at_ms.parse().ok()?,
            source: source.to_owned(),
            objects: serde_json::from_str(objects).ok()?,
        })
    }
}

#[derive(Serialize)]
struct ExportedCategory<'a> {
    id: usize,
    name: &'a str,
}

#[derive(Serialize)]
struct ExportedImage<'a> {
    id: usize,
    file_name: &'a str,
    width: u32,
    height: u32,
    /// Task that it is the image of; `tributary label --from` knows it by this, or by the file's name.
    task: TaskId,
    site: &'a str,
    camera: &'a str,
    published_at_ms: u64,
    /// Who says what is in it: `person`, `verdict` or `edge`.
    source: &'a str,
}

#[derive(Serialize)]
struct ExportedAnnotation {
    id: usize,
    image_id: usize,
    category_id: usize,
    /// Left, top, width and height, pixels.
    bbox: [f64; 4],
    area: f64,
    iscrowd: u8,
    /// Confidence, where a model found it.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
}

/// Writes the annotations of all rows: three passes, because each list is whole before the next, and a row at a time is
/// all that memory holds.
fn write_annotations(rows: &Path, to: &Path) -> io::Result<()> {
    let mut names = BTreeMap::new();
    each_row(rows, |_, row| {
        for object in &row.objects {
            if !names.contains_key(&object.label) {
                names.insert(object.label.clone(), 0);
            }
        }
        Ok(())
    })?;
    for (id, place) in (1..).zip(names.values_mut()) {
        *place = id;
    }
    let mut out = BufWriter::new(File::create(to)?);
    out.write_all(b"{\"info\": {\"description\": \"exported by tributary\"},\n\"categories\": [")?;
    let mut list = ListWriter::new(&mut out);
    names.iter().try_for_each(|(name, id)| list.add(&ExportedCategory { id: *id, name }))?;
    out.write_all(b"],\n\"images\": [")?;
    let mut list = ListWriter::new(&mut out);
    each_row(rows, |id, row| {
        list.add(&ExportedImage {
            id,
            file_name: &row.file,
            width: row.width_px,
            height: row.height_px,
            task: row.task,
            site: &row.site,
            camera: &row.camera,
            published_at_ms: row.published_at_ms,
            source: &row.source,
        })
    })?;
    out.write_all(b"],\n\"annotations\": [")?;
    let (mut list, mut id) = (ListWriter::new(&mut out), 0);
    each_row(rows, |image_id, row| {
        for object in row.objects.iter().filter(|object| object.bounds.is_valid()) {
            id += 1;
            let category_id = names.get(&object.label).copied().unwrap_or_default();
            list.add(&annotation(id, image_id, category_id, row, object))?;
        }
        Ok(())
    })?;
    out.write_all(b"]}\n")?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn annotation(
    id: usize,
    image_id: usize,
    category_id: usize,
    row: &CocoImageRow,
    object: &DetectedObject,
) -> ExportedAnnotation {
    let [left, top, right, bottom] = <[f32; 4]>::from(object.bounds).map(f64::from);
    let (width_px, height_px) = (f64::from(row.width_px), f64::from(row.height_px));
    let (width, height) = ((right - left) * width_px, (bottom - top) * height_px);
    ExportedAnnotation {
        id,
        image_id,
        category_id,
        bbox: [left * width_px, top * height_px, width, height],
        area: width * height,
        iscrowd: 0,
        score: (row.source != "person").then_some(object.confidence),
    }
}

/// Calls `each` with every row and its number, from 1.
fn each_row(rows: &Path, mut each: impl FnMut(usize, &CocoImageRow) -> io::Result<()>) -> io::Result<()> {
    let mut reader = csv::Reader::from_path(rows)?;
    for (number, cells) in (1..).zip(reader.records()) {
        let row = CocoImageRow::of_cells(&cells?);
        each(number, &row.ok_or_else(|| io::Error::other(format!("row {number} of {} is broken", rows.display())))?)?;
    }
    Ok(())
}

/// Writes the elements of a JSON list, one a line.
struct ListWriter<'w, W> {
    out: &'w mut W,
    is_first: bool,
}

impl<'w, W: Write> ListWriter<'w, W> {
    fn new(out: &'w mut W) -> Self {
        Self { out, is_first: true }
    }

    fn add(&mut self, element: &impl Serialize) -> io::Result<()> {
        self.out.write_all(if std::mem::take(&mut self.is_first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *self.out, element)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::row::tests::{detected_row, object};

    /// A PNM picture of 40 x 20 pixels.
    fn picture() -> ArchivedImage {
        let mut bytes = b"P6 40 20 255\n".to_vec();
        bytes.extend(vec![90; 40 * 20 * 3]);
        ArchivedImage { bytes: Bytes::from(bytes), headers: Vec::new() }
    }

    fn rows() -> Vec<TaskRow> {
        let drawn: Objects = [object("eel", 1.0, [0.25, 0.5, 0.5, 1.0])].into();
        let person = Some("eel".into());
        let task = |name: &str| TaskId::from_name(name);
        vec![
            TaskRow { task: task("a"), ..detected_row() },
            TaskRow { task: task("b"), person, person_objects: Some(drawn), ..detected_row() },
            TaskRow { task: task("c"), route: Route::Verified, ..detected_row() },
            TaskRow { task: task("d"), person: Some("none".into()), person_objects: Some([].into()), ..detected_row() },
        ]
    }

    fn fill(path: &Path, rows: &[TaskRow]) -> Vec<CocoOutcome> {
        let (mut folder, known) = CocoFolderWriter::open(path).unwrap();
        let rest = rows.iter().filter(|row| !known.contains(&row.task));
        let outcomes = rest.map(|row| folder.write_image(row, &picture()).unwrap()).collect();
        folder.end().unwrap();
        outcomes
    }

    #[test]
    fn what_is_written_is_read_back_with_the_same_boxes_and_their_sources() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fill(folder.path(), &rows()), [CocoOutcome::Written; 4]);
        let text = fs::read(folder.path().join(ANNOTATIONS)).unwrap();
        let images = detection::read_coco(&text).unwrap();
        let sources: Vec<&str> = images.iter().filter_map(|image| image.source.as_deref()).collect();
        assert_eq!(sources, ["edge", "person", "verdict", "person"]);
        for (image, row) in images.iter().zip(rows()) {
            assert_eq!(image.task, Some(row.task.to_string()));
            assert_eq!((image.width_px, image.height_px), (40.0, 20.0));
            assert!(folder.path().join(IMAGES).join(&image.file_name).is_file());
            let written: Vec<_> = image.objects.iter().map(|object| (object.label.as_str(), object.bounds)).collect();
            let (known, _) = objects(&row).unwrap();
            assert_eq!(written, known.iter().map(|object| (object.label.as_str(), object.bounds)).collect::<Vec<_>>());
        }
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["annotations"][2]["bbox"], serde_json::json!([10.0, 10.0, 10.0, 10.0]));
        let has_score = |at: usize| json["annotations"][at].get("score").is_some();
        assert!(has_score(0) && !has_score(2), "what a person drew has no score");
        assert_eq!(json["categories"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn an_interrupted_export_goes_on_and_comes_to_the_same_annotations() {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(whole.path(), &rows());
        fill(cut.path(), &rows()[..2]);
        let index = cut.path().join("images.csv");
        let text = fs::read(&index).unwrap();
        fs::write(&index, &text[..text.len() - 5]).unwrap();
        fill(cut.path(), &rows());
        let read = |folder: &Path| fs::read(folder.join(ANNOTATIONS)).unwrap();
        assert_eq!(read(cut.path()), read(whole.path()));
    }

    #[test]
    fn images_of_unknown_content_or_size_are_left_out_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, _) = CocoFolderWriter::open(folder.path()).unwrap();
        let classified = TaskRow { objects: None, edge_objects: None, ..detected_row() };
        assert_eq!(writer.write_image(&classified, &picture()).unwrap(), CocoOutcome::WithoutObjects);
        let broken = ArchivedImage { bytes: Bytes::from_static(b"no picture"), headers: Vec::new() };
        assert_eq!(writer.write_image(&detected_row(), &broken).unwrap(), CocoOutcome::Undecodable);
        writer.end().unwrap();
        let images = detection::read_coco(&fs::read(folder.path().join(ANNOTATIONS)).unwrap()).unwrap();
        assert!(images.is_empty());
    }
}
