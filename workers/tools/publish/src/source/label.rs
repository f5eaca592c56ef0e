//! True labels of images, from `index.csv` beside them or from the folder they are in.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use dataset::{INDEX_FILE, IndexColumns};

use crate::report::RefusedFile;
use crate::settings::LabelOrigin;
use crate::source::SourceEvent;

/// Labels by file, read when first asked for.
#[derive(Debug)]
pub(crate) struct LabelIndex {
    from: LabelOrigin,
    folders: HashMap<PathBuf, HashMap<PathBuf, String>>,
    items: Vec<SourceEvent>,
}

impl LabelIndex {
    pub(super) fn new(from: LabelOrigin) -> Self {
        Self { from, folders: HashMap::new(), items: Vec::new() }
    }

    /// The label of an image below `root`. The nearest index that names it wins.
    pub(super) fn label(&mut self, root: &Path, path: &Path) -> Option<String> {
        let folders = path.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
        for folder in folders {
            if !self.folders.contains_key(folder) {
                let labels = self.read(&folder.join(INDEX_FILE));
                self.folders.insert(folder.to_owned(), labels);
            }
            let inside = path.strip_prefix(folder).unwrap_or(path);
            if let Some(label) = self.folders.get(folder).and_then(|labels| labels.get(inside)) {
                return Some(label.clone());
            }
        }
        match self.from {
            LabelOrigin::Index => None,
            LabelOrigin::Folder => parent_name(path),
        }
    }

    /// Forgets an index that changed; returns whether the path is an index.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let is_index = path.file_name().is_some_and(|name| name == INDEX_FILE);
        if let Some(folder) = path.parent().filter(|_| is_index) {
            self.folders.remove(folder);
        }
        is_index
    }

    /// Events about indexes since the last call.
    pub(super) fn take_items(&mut self) -> Vec<SourceEvent> {
        std::mem::take(&mut self.items)
    }

    fn refuse(&mut self, path: &Path, reason: impl std::fmt::Display) {
        self.items.push(SourceEvent::Refused(RefusedFile::new(path, reason)));
    }

    fn read(&mut self, path: &Path) -> HashMap<PathBuf, String> {
        let mut labels = HashMap::new();
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return labels,
            Err(error) => {
                self.refuse(path, format!("it could not be read: {error}"));
                return labels;
            }
        };
        let mut rows = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(file);
        let (file, label) = match rows.headers() {
            Ok(headers) => match IndexColumns::find(headers) {
                Ok(columns) => (columns.file, columns.label),
                // Many programs write an index.csv of their own.
                Err(_) => {
                    self.items.push(SourceEvent::PassedOver("index.csv without the columns `file` and `label`".into()));
                    return labels;
                }
            },
            Err(error) => {
                self.refuse(path, error);
                return labels;
            }
        };
        for row in rows.records() {
            match row {
                Ok(row) => {
                    if let (Some(file), Some(label)) = (row.get(file), row.get(label).filter(|label| !label.is_empty()))
                    {
                        labels.insert(plain(file), label.to_owned());
                    }
                }
                Err(error) => self.refuse(path, error),
            }
        }
        labels
    }
}

/// Drops a leading `./`.
fn plain(file: &str) -> PathBuf {
    Path::new(file).components().filter(|part| *part != Component::CurDir).collect()
}

fn parent_name(path: &Path) -> Option<String> {
    let parent = path.parent()?;
    // `.` has no name of its own.
    let parent = if parent.file_name().is_some() { parent.to_owned() } else { parent.canonicalize().ok()? };
    Some(parent.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_index_wins_and_the_folder_name_comes_last() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join(INDEX_FILE), "file,label,split\nboot/1.png,far,site\n./boot/2.png,\"ankle, boot\",site\n")
            .unwrap();
        fs::write(root.join("boot").join(INDEX_FILE), "label,file\nnear,1.png\n").unwrap();
        let mut index = LabelIndex::new(LabelOrigin::Folder);
        let mut label = |name: &str| index.label(root, &root.join(name));
        assert_eq!(label("boot/1.png").as_deref(), Some("near"));
        assert_eq!(label("boot/2.png").as_deref(), Some("ankle, boot"));
        assert_eq!(label("boot/3.png").as_deref(), Some("boot"));
        assert_eq!(LabelIndex::new(LabelOrigin::Index).label(root, &root.join("boot/3.png")), None);
    }

    #[test]
    fn a_foreign_index_is_skipped_with_a_note() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(INDEX_FILE), "name;class\n1.png;boot\n").unwrap();
        let mut index = LabelIndex::new(LabelOrigin::Index);
        assert_eq!(index.label(root.path(), &root.path().join("1.png")), None);
        let items = index.take_items();
        assert!(matches!(&items[..], [SourceEvent::PassedOver(kind)] if kind.contains("`label`")), "{items:?}");
    }

    #[test]
    fn an_index_that_was_bent_is_read_or_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let indexes = bend::texts(["file,label\n1.png,boot\n./a/2.png,\"ankle, boot\"\n", "label,file\nnear,1.png\n"]);
        bend::bend_all("labels beside pictures", &indexes, bend::turns() / 4, |bytes| {
            fs::write(root.path().join(INDEX_FILE), bytes).unwrap();
            let mut index = LabelIndex::new(LabelOrigin::Index);
            let _label = index.label(root.path(), &root.path().join("1.png"));
            let _said = index.take_items();
            1
        });
    }
}
