//! Reads labels from a file: a table written by hand, the index.csv of an exported folder, filled in or corrected in
//! part, or COCO annotations.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use detection::coco::MAX_FILE_BYTES;
use detection::{CocoImage, read_coco};
use schemas::{LabelSource, TaskId};

/// What a file of labels says.
#[derive(Debug)]
pub(super) enum LabelSheet {
    /// Classes of whole pictures.
    Classes {
        /// Each row's task and label.
        labels: Vec<(TaskId, String)>,
        /// How many rows had nothing new to say: no label, or the one that was exported.
        without: u64,
    },
    /// Images with their boxes.
    Boxes(Vec<CocoImage>),
}

/// Reads a file, standard input (`-`), or the annotations or index of a folder.
///
/// # Errors
/// The file cannot be read, and where.
pub(super) fn read(file: &Path) -> anyhow::Result<LabelSheet> {
    let annotations = file.join("annotations.json");
    let path = match (file.is_dir(), annotations.is_file()) {
        (true, true) => annotations,
        (true, false) => file.join("index.csv"),
        (false, _) => file.to_owned(),
    };
    let mut bytes = Vec::new();
    let what = if file.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() };
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes),
        false => File::open(&path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("{what} cannot be read"))?;
    let most_mib = MAX_FILE_BYTES / 1024 / 1024;
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "{what} is larger than {most_mib} MiB: divide it");
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{what} is no text"))?;
    let text = text.trim_start_matches('\u{feff}');
    // No table begins like this: a column is not named {.
    if text.trim_start().starts_with('{') {
        return Ok(LabelSheet::Boxes(read_coco(text.as_bytes()).with_context(|| format!("{what} cannot be used"))?));
    }
    let (labels, without) = parse(text, &what)?;
    Ok(LabelSheet::Classes { labels, without })
}

/// The labels of a table, and how many rows had nothing new to say.
fn parse(text: &str, what: &str) -> anyhow::Result<(Vec<(TaskId, String)>, u64)> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().with_context(|| format!("{what} cannot be read"))?.clone();
    let position = |name: &str| columns.iter().position(|column| column.trim() == name);
    let column = |name: &str| position(name).with_context(|| format!("{what} has no column {name}"));
    let (task, label) = (column("task")?, column("label")?);
    // Only the index of an export says where its labels come from.
    let source = position("source");
    let (mut labels, mut skipped) = (Vec::new(), 0);
    for (number, row) in reader.records().enumerate() {
        let row = row.with_context(|| format!("{what} cannot be read"))?;
        let field = |column: usize| row.get(column).unwrap_or_default().trim();
        let exported = source.and_then(|source| position(column_of(field(source))?)).map(field);
        if field(label).is_empty() || exported == Some(field(label)) {
            skipped += 1;
            continue;
        }
        let id = field(task).parse().with_context(|| format!("{what}, line {}", number + 2))?;
        labels.push((id, field(label).to_owned()));
    }
    Ok((labels, skipped))
}

/// The column of an exported index that holds the label of a source.
fn column_of(source: &str) -> Option<&'static str> {
    let is = |known: LabelSource| source == known.as_str();
    match () {
        () if is(LabelSource::Person) => Some("person"),
        () if is(LabelSource::Publisher) => Some("truth"),
        () if is(LabelSource::Verdict) => Some("answer"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6";

    /// Rows of an exported index with these labels and sources; its columns beyond these do not matter here.
    fn index(rows: &[[&str; 5]]) -> String {
        let rows = rows.iter().map(|[label, source, answer, truth, person]| {
            format!("cam/a.png,{label},{source},{TASK},{answer},{truth},{person}\n")
        });
        "file,label,source,task,answer,truth,person\n".to_owned() + &rows.collect::<String>()
    }

    #[test]
    fn only_what_a_person_changed_in_an_exported_index_is_a_label() {
        let untouched = index(&[
            ["", "", "coat", "", ""],
            ["coat", "verdict", "coat", "", ""],
            ["bag", "publisher", "coat", "bag", ""],
            ["shirt", "person", "coat", "bag", "shirt"],
        ]);
        assert_eq!(parse(&untouched, "index.csv").unwrap(), (Vec::new(), 4));
        let filled_in = index(&[
            ["coat", "", "coat", "", ""],
            ["bag", "verdict", "coat", "", ""],
            ["coat", "publisher", "coat", "bag", ""],
            ["coat", "verdict", "coat", "", ""],
        ]);
        let (labels, skipped) = parse(&filled_in, "index.csv").unwrap();
        let labels: Vec<&str> = labels.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!((labels, skipped), (vec!["coat", "bag", "coat"], 1));
    }

    #[test]
    fn a_table_written_by_hand_is_read_whole_and_may_be_filled_in_in_part() {
        let (labels, skipped) = parse(&format!("task,label\n{TASK},coat\n{TASK},\n"), "x").unwrap();
        assert_eq!((labels.len(), skipped), (1, 1));
        let refused = parse("task,label\nnone,coat\n", "x").unwrap_err();
        assert!(format!("{refused:#}").contains("x, line 2"), "{refused:#}");
    }

    #[test]
    fn a_file_is_a_table_or_annotations_and_a_folder_has_either() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("index.csv", &format!("task,label\n{TASK},coat\n"));
        assert!(
            matches!(read(folder.path()).unwrap(), LabelSheet::Classes { labels, without: 0 } if labels.len() == 1)
        );
        write("annotations.json", "\u{feff} {\"images\": [], \"annotations\": [], \"categories\": []}");
        assert!(matches!(read(folder.path()).unwrap(), LabelSheet::Boxes(images) if images.is_empty()));
        write("annotations.json", "{\"images\": [");
        let refused = format!("{:#}", read(folder.path()).unwrap_err());
        assert!(refused.contains("annotations.json cannot be used: the annotations are not COCO JSON"), "{refused}");
        let absent = format!("{:#}", read(&folder.path().join("none.csv")).unwrap_err());
        assert!(absent.contains("none.csv cannot be read"), "{absent}");
    }

    #[test]
    fn files_of_labels_that_were_bent_are_read_or_refused() {
        let files = bend::texts([
            "task,label\n0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6,coat\n",
            "label,task\n\"a,b\",0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6\n",
            "label,source,task,answer\na,verdict,0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6,a\n",
            r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 2, "height": 2}], "categories": [{"id": 1, "name": "a"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}"#,
        ]);
        let place = tempfile::NamedTempFile::new().unwrap();
        bend::bend_all("labels of persons", &files, bend::turns() / 4, |bytes| {
            std::fs::write(place.path(), bytes).unwrap();
            let _read = read(place.path()).is_ok();
            1
        });
    }
}
