//! Reads a file of labels beside a graph: one per class, in the order of the output.
//!
//! `labels.txt` has one per line; `labels.json` is a list, a table from class to name, or one from name to class, like
//! Keras' `class_indices`. Refuses empty and overlong names, with their line.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use schemas::limits::MAX_LABEL_BYTES;
use serde::Deserialize;

use crate::model::ModelError;

/// Files that labels are read from; the first that exists.
pub(crate) const FILES: [&str; 2] = ["labels.txt", "labels.json"];

/// Reads a file of labels. `least`: fewer are refused.
pub(crate) fn read(path: &Path, least: usize) -> Result<Vec<String>, ModelError> {
    let bytes = std::fs::read(path).map_err(|source| ModelError::Unreadable { path: path.to_owned(), source })?;
    let labels = match path.extension().is_some_and(|ending| ending == "json") {
        true => json(path, &bytes)?,
        false => lines(path, &bytes)?,
    };
    let wrong = |line: usize, why: String| Err(ModelError::Label { path: path.to_owned(), line, why });
    if labels.is_empty() {
        return wrong(
            1,
            "is missing: the file is empty; write one label per class, in the order of the output".to_owned(),
        );
    }
    if labels.len() < least {
        let why = "is the only one; a classifier needs at least two classes (a model that detects whether one thing is \
                   there has kind = \"sigmoid\")";
        return wrong(1, why.to_owned());
    }
    for (line, label) in (1..).zip(&labels) {
        if label.is_empty() {
            return wrong(line, "is empty; write one label per class, without empty lines between them".to_owned());
        }
        if label.len() > MAX_LABEL_BYTES {
            return wrong(line, format!("has {} bytes; at most {MAX_LABEL_BYTES} are allowed", label.len()));
        }
    }
    Ok(labels)
}

fn lines(path: &Path, bytes: &[u8]) -> Result<Vec<String>, ModelError> {
    let wrong = |line: usize, why: &str| ModelError::Label { path: path.to_owned(), line, why: why.to_owned() };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(wrong(1, "is UTF-16; save the file as UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        wrong(line, "is not UTF-8; save the file as UTF-8")
    })?;
    let mut lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().map(str::trim).collect();
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    Ok(lines.into_iter().map(str::to_owned).collect())
}

/// Formats that programs write labels in.
#[derive(Deserialize)]
#[serde(untagged)]
enum LabelFile {
    List(Vec<String>),
    ByClass(BTreeMap<String, String>),
    ByName(BTreeMap<String, usize>),
}

fn json(path: &Path, bytes: &[u8]) -> Result<Vec<String>, ModelError> {
    let wrong =
        |line: usize, column: usize, why: String| ModelError::Syntax { path: path.to_owned(), line, column, why };
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|error| wrong(error.line(), error.column(), format!("it is not JSON: {error}")))?;
    let shape = "write a list [\"cat\", ...], a table {\"0\": \"cat\", ...} or {\"cat\": 0, ...}";
    let mut by_class: BTreeMap<usize, String> = match serde_json::from_value(value) {
        Ok(LabelFile::List(labels)) => return Ok(labels.into_iter().map(|label| label.trim().to_owned()).collect()),
        Ok(LabelFile::ByName(table)) => table.into_iter().map(|(label, class)| (class, label)).collect(),
        Ok(LabelFile::ByClass(table)) => {
            let class = |(class, label): (String, String)| Some((class.parse().ok()?, label));
            table.into_iter().map(class).collect::<Option<_>>().ok_or_else(|| wrong(1, 1, shape.to_owned()))?
        }
        Err(_) => return Err(wrong(1, 1, shape.to_owned())),
    };
    let count = by_class.len();
    let in_order = (0..count).map(|class| by_class.remove(&class)).collect::<Option<Vec<String>>>();
    let in_order =
        in_order.ok_or_else(|| wrong(1, 1, format!("of {count} labels one of class 0 to {} is missing", count - 1)));
    Ok(in_order?.into_iter().map(|label| label.trim().to_owned()).collect())
}

/// Makes labels distinct: a repeated one gets its class appended, as in `crane (517)`. ImageNet's published labels have
/// "crane" twice, the bird and the machine.
pub(crate) fn distinct<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = HashSet::new();
    let unique = |(class, label): (usize, &'a str)| {
        if seen.insert(label) { label.to_owned() } else { format!("{label} ({class})") }
    };
    labels.enumerate().map(unique).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path, 2).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_labels_is_read_in_the_order_of_the_classes() {
        for (name, text) in [
            ("labels.txt", "\u{feff}cat\r\ndog\r\n\n"),
            ("labels.json", r#"["cat", "dog"]"#),
            ("labels.json", r#"{"1": "dog", "0": "cat"}"#),
            ("labels.json", r#"{"dog": 1, "cat": 0}"#),
        ] {
            assert_eq!(read_as(name, text.as_bytes()).unwrap(), ["cat", "dog"], "{text}");
        }
    }

    #[test]
    fn every_wrong_label_is_refused_with_its_line() {
        let long = format!("cat\n{}\n", "x".repeat(MAX_LABEL_BYTES + 1));
        for (name, bytes, parts) in [
            ("labels.txt", &b""[..], &["line 1", "empty"][..]),
            ("labels.txt", b"cat\n\ndog\n", &["line 2", "empty"]),
            ("labels.txt", long.as_bytes(), &["line 2", "257 bytes", "256"]),
            ("labels.txt", b"cat\n", &["line 1", "the only one"]),
            ("labels.txt", b"cat\nK\xe4fer\n", &["line 2", "UTF-8"]),
            ("labels.txt", b"\xff\xfec\0a\0", &["UTF-16", "save the file"]),
            ("labels.json", b"{\"0\": \"cat\", \"2\": \"dog\"}", &["class 0 to 1"]),
            ("labels.json", b"[1, 2]", &["write a list"]),
            ("labels.json", b"[\n\"cat\",", &["line 2", "not JSON"]),
        ] {
            let why = read_as(name, bytes).unwrap_err();
            for part in parts.iter().chain([&name]) {
                assert!(why.contains(part), "{name}: {part:?} is not in {why:?}");
            }
        }
    }

    #[test]
    fn a_repeated_label_gets_its_class_appended() {
        let labels = distinct(["crane", "heron", "crane"].into_iter());
        assert_eq!(labels, ["crane", "heron", "crane (2)"]);
    }

    #[test]
    fn labels_that_were_bent_are_read_or_refused() {
        let files = bend::texts([
            "cat\ndog\r\nant bear\n",
            "[\"cat\",\"dog\"]",
            "{\"0\":\"cat\",\"1\":\"dog\"}",
            "{\"cat\":0,\"dog\":1}",
        ]);
        bend::bend_all("files of labels", &files, bend::turns(), |bytes| {
            let path = Path::new("labels");
            let _read = (lines(path, bytes).is_ok(), json(path, bytes).is_ok());
            2
        });
    }
}
