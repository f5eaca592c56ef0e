//! Files and folders, recursively and in the order of their names.
//!
//! In folders, image files are known by their extension; hidden ones are passed over, links to files
//! are followed and links to folders are not, for they may lead in circles. A file named outright is
//! taken whatever it is called.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Sender;

use crate::report::Refused;
use crate::source::label::Index;
use crate::source::{Item, Root};

/// Extensions of image files, lower-case.
pub(crate) const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif"];

/// What lies at or below a path.
pub(crate) enum Seen {
    File(PathBuf),
    Refused(Refused),
}

/// How many image files there are.
pub(crate) fn count(paths: &[PathBuf]) -> u64 {
    let mut count = 0;
    for path in paths {
        let _all = walk(path, &mut |seen| {
            count += u64::from(matches!(seen, Seen::File(_)));
            ControlFlow::Continue(())
        });
    }
    count
}

/// Hands all image files on, until nobody wants more.
pub(crate) fn run(paths: &[PathBuf], mut index: Index, items: &Sender<Item>) {
    for path in paths {
        if hand_on(path, &mut index, items).is_break() {
            return;
        }
    }
}

/// Hands on the image files at or below one path.
pub(crate) fn hand_on(path: &Path, index: &mut Index, items: &Sender<Item>) -> ControlFlow<()> {
    let root = Root::of(path);
    walk(path, &mut |seen| {
        let item = match seen {
            Seen::File(path) => Item::Found(root.found(path, index)),
            Seen::Refused(refused) => Item::Refused(refused),
        };
        let notes = index.refused().into_iter().map(Item::Refused);
        for item in notes.chain([item]) {
            if items.blocking_send(item).is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })
}

/// Visits every image file at or below a path.
pub(crate) fn walk(path: &Path, visit: &mut dyn FnMut(Seen) -> ControlFlow<()>) -> ControlFlow<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => inside(path, visit),
        Ok(_) => visit(Seen::File(path.to_owned())),
        Err(error) => visit(Seen::Refused(Refused::new(path, format!("it cannot be read: {error}")))),
    }
}

fn inside(folder: &Path, visit: &mut dyn FnMut(Seen) -> ControlFlow<()>) -> ControlFlow<()> {
    let unreadable = |error| Seen::Refused(Refused::new(folder, format!("the folder cannot be read: {error}")));
    let entries = match fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(error) => return visit(unreadable(error)),
    };
    let mut entries: Vec<_> = entries.into_iter().map(|entry| (entry.file_name(), entry)).collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, entry) in entries {
        if is_hidden(Path::new(&name)) {
            continue;
        }
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            inside(&path, visit)?;
        } else if is_image(&path) && !path.is_dir() {
            visit(Seen::File(path))?;
        }
    }
    ControlFlow::Continue(())
}

/// Whether the last part of a path begins with a dot.
pub(crate) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a path ends as image files do.
pub(crate) fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let _all = walk(path, &mut |seen| {
            names.push(match seen {
                Seen::File(file) => file.strip_prefix(path).unwrap().display().to_string(),
                Seen::Refused(refused) => format!("refused {}", refused.file),
            });
            ControlFlow::Continue(())
        });
        names
    }

    #[test]
    fn image_files_come_in_order_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for name in ["c.PNG", "a/2.jpg", "a/1.tiff", "b.webp", ".hidden.png", ".git/x.png", "notes.txt", "png"] {
            make(name);
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("circle.png")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("b.webp"), folder.path().join("link.gif")).unwrap();
        assert_eq!(names(folder.path()), ["a/1.tiff", "a/2.jpg", "b.webp", "c.PNG", "link.gif"]);
        assert_eq!(count(&[folder.path().to_owned()]), 5);
    }

    #[test]
    fn a_path_that_is_not_there_is_refused_by_name() {
        let mut refused = Vec::new();
        let _all = walk(Path::new("/nonexistent/a.png"), &mut |seen| {
            if let Seen::Refused(one) = seen {
                refused.push(one);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].file, "/nonexistent/a.png");
    }

    #[test]
    fn a_file_has_the_same_name_alone_and_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.png");
        fs::write(&file, "x").unwrap();
        let mut index = Index::new(crate::Labels::Index);
        let alone = Root::of(&file).found(file.clone(), &mut index);
        let inside = Root::of(folder.path()).found(file, &mut index);
        assert_eq!(alone.name, inside.name);
    }

    #[test]
    fn a_file_of_the_working_folder_has_the_folder_in_its_name() {
        let found =
            Root::of(Path::new("Cargo.toml")).found("Cargo.toml".into(), &mut Index::new(crate::Labels::Folder));
        assert_eq!((found.name.as_str(), found.label.as_deref()), ("publisher/Cargo.toml", Some("publisher")));
    }
}
