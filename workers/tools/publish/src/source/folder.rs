//! Files and folders, recursively and in the order of their names.
//!
//! A file named explicitly is taken whatever its name; of those in folders, [`FileFilter`] selects, and skipped ones
//! are counted by kind. Links to files are followed. A link to a folder is followed unless that folder, one around it
//! or one inside it is read anyway, because links can form cycles.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Sender;

use dataset::INDEX_FILE;

use crate::report::RefusedFile;
use crate::source::filter::FileFilter;
use crate::source::{ItemBuilder, SourceEvent, SourceRoot};

/// An entry at or below a path.
pub(crate) enum PathEntry {
    File(PathBuf),
    /// A link to a folder, whose files come next.
    LinkedFolder(PathBuf),
    /// A skipped entry; its kind, in words.
    PassedOver(String),
    Refused(RefusedFile),
}

/// Counts the image files.
pub(crate) fn count(paths: &[PathBuf], filter: &FileFilter) -> u64 {
    let mut count = 0;
    for path in paths {
        let _all = FolderWalk::new(path, filter.clone()).visit(path, &mut |seen| {
            count += u64::from(matches!(seen, PathEntry::File(_)));
            ControlFlow::Continue(())
        });
    }
    count
}

/// Sends all image files, until the receiver is gone.
pub(crate) fn run(paths: &[PathBuf], mut builder: ItemBuilder, filter: &FileFilter, items: &Sender<SourceEvent>) {
    for path in paths {
        if send_images(path, &mut builder, filter, items).is_break() {
            return;
        }
    }
}

/// Sends the image files at or below one path.
pub(crate) fn send_images(
    path: &Path,
    builder: &mut ItemBuilder,
    filter: &FileFilter,
    items: &Sender<SourceEvent>,
) -> ControlFlow<()> {
    let root = SourceRoot::of(path);
    FolderWalk::new(path, filter.clone()).visit(path, &mut |seen| {
        for item in builder.build(&root, seen) {
            if items.blocking_send(item).is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })
}

/// Lists one folder, as often as needed.
pub(crate) struct FolderWalk {
    root: PathBuf,
    /// The root with links resolved.
    real_root: PathBuf,
    filter: FileFilter,
    /// Resolved folders that links point to, with the links that were followed.
    followed: HashMap<PathBuf, PathBuf>,
}

impl FolderWalk {
    pub(super) fn new(root: &Path, filter: FileFilter) -> Self {
        let real_root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        Self { root: root.to_owned(), real_root, filter, followed: HashMap::new() }
    }

    /// Visits every image file at or below a path, which must be the root or below it.
    pub(super) fn visit(
        &mut self,
        path: &Path,
        visit: &mut dyn FnMut(PathEntry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => self.visit_folder(path, visit),
            Ok(_) => visit(PathEntry::File(path.to_owned())),
            Err(error) => visit(PathEntry::Refused(RefusedFile::new(path, format!("it could not be read: {error}")))),
        }
    }

    /// A path below the root, spelled through the followed link that leads to it, if there is one.
    pub(super) fn spell_through_link(&self, path: PathBuf) -> PathBuf {
        if path.starts_with(&self.root) {
            return path;
        }
        let by_link = self.followed.iter().find_map(|(real, link)| Some(link.join(path.strip_prefix(real).ok()?)));
        by_link.unwrap_or(path)
    }

    /// Why a file or folder below the root is skipped by its name or that of a folder around it.
    pub(super) fn find_exclusion(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix(&self.root).unwrap_or(path);
        inside.ancestors().filter(|part| *part != Path::new("")).find_map(|part| self.filter.find_exclusion(part))
    }

    /// Why a file below the root that is not excluded is skipped.
    pub(super) fn find_mismatch(&self, path: &Path) -> Option<String> {
        self.filter.find_mismatch(path, path.strip_prefix(&self.root).unwrap_or(path))
    }

    fn visit_folder(&mut self, folder: &Path, visit: &mut dyn FnMut(PathEntry) -> ControlFlow<()>) -> ControlFlow<()> {
        let unreadable =
            |error| PathEntry::Refused(RefusedFile::new(folder, format!("the folder could not be read: {error}")));
        let entries = match fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return visit(unreadable(error)),
        };
        let mut entries: Vec<_> = entries.into_iter().map(|entry| (entry.file_name(), entry)).collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (_, entry) in entries {
            let path = entry.path();
            let inside = path.strip_prefix(&self.root).unwrap_or(&path);
            if let Some(kind) = self.filter.find_exclusion(inside) {
                visit(PathEntry::PassedOver(kind))?;
                continue;
            }
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
                self.visit_folder(&path, visit)?;
            } else if kind.as_ref().is_ok_and(fs::FileType::is_symlink) && path.is_dir() {
                match self.follow(&path) {
                    true => {
                        visit(PathEntry::LinkedFolder(path.clone()))?;
                        self.visit_folder(&path, visit)?;
                    }
                    false => visit(PathEntry::PassedOver("link to a folder that is read anyway".into()))?,
                }
            } else if kind.is_ok_and(|kind| kind.is_symlink()) && !self.leads_inside(&path) {
                // Whoever may write to the folder must not choose which other files of this machine are published.
                visit(PathEntry::PassedOver("link to a file outside the folder".into()))?;
            } else if path.file_name().is_none_or(|name| name != INDEX_FILE) {
                visit(self.find_mismatch(&path).map_or(PathEntry::File(path), PathEntry::PassedOver))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether a link to a file stays inside the folder.
    fn leads_inside(&self, link: &Path) -> bool {
        let Ok(real) = link.canonicalize() else { return true };
        real.starts_with(&self.real_root) || self.followed.keys().any(|folder| real.starts_with(folder))
    }

    /// Whether to follow a link to a folder: it leads to something that is not read otherwise. Remembers it.
    fn follow(&mut self, link: &Path) -> bool {
        let Ok(real) = link.canonicalize() else { return false };
        let overlaps = |other: &Path| other.starts_with(&real) || real.starts_with(other);
        let mut others = self.followed.iter().filter(|(_, known)| *known != link).map(|(real, _)| real);
        if overlaps(&self.real_root) || others.any(|other| overlaps(other)) {
            return false;
        }
        self.followed.insert(real, link.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::PublisherSettings;

    fn filter() -> FileFilter {
        FileFilter::new(&PublisherSettings::default())
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let _all = FolderWalk::new(path, filter()).visit(path, &mut |seen| {
            names.push(match seen {
                PathEntry::File(file) => file.strip_prefix(path).unwrap().display().to_string(),
                PathEntry::LinkedFolder(link) => format!("linked {}", link.file_name().unwrap().display()),
                PathEntry::PassedOver(kind) => format!("({kind})"),
                PathEntry::Refused(refused) => format!("refused {}", refused.file),
            });
            ControlFlow::Continue(())
        });
        names
    }

    fn make(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn image_files_come_in_order_and_the_rest_is_counted_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        make(
            folder.path(),
            &[
                "c.PNG",
                "a/2.jpg",
                "a/1.tiff",
                "b.webp",
                ".hidden.png",
                ".git/x.png",
                "notes.txt",
                "png",
                "@eaDir/a.jpg",
            ],
        );
        std::os::unix::fs::symlink(folder.path().join("b.webp"), folder.path().join("link.gif")).unwrap();
        let found = names(folder.path());
        let files: Vec<_> = found.iter().filter(|name| !name.starts_with('(')).collect();
        assert_eq!(files, ["a/1.tiff", "a/2.jpg", "b.webp", "c.PNG", "link.gif"]);
        for kind in ["(hidden)", "(.txt)", "(without an extension)", "(excluded by \"@eaDir\")"] {
            assert!(found.iter().any(|name| name == kind), "{kind} is not in {found:?}");
        }
        assert_eq!(count(&[folder.path().to_owned()], &filter()), 5);
    }

    #[test]
    fn a_link_to_a_folder_is_followed_once_and_never_in_a_circle() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(folder.path(), &["day1/a.jpg"]);
        make(elsewhere.path(), &["nas/b.jpg"]);
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        link(folder.path(), "circle");
        link(&folder.path().join("day1"), "again");
        link(&elsewhere.path().join("nas"), "nas");
        link(&elsewhere.path().join("nas"), "nas-too");
        std::os::unix::fs::symlink(folder.path(), elsewhere.path().join("nas/back")).unwrap();
        let found = names(folder.path());
        assert_eq!(found.iter().filter(|name| name.ends_with(".jpg")).collect::<Vec<_>>(), ["day1/a.jpg", "nas/b.jpg"]);
        assert_eq!(found.iter().filter(|name| name.starts_with("(link")).count(), 4, "{found:?}");
    }

    #[test]
    fn a_link_to_a_file_outside_the_folder_is_skipped() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(folder.path(), &["a.jpg"]);
        make(elsewhere.path(), &["secret.jpg"]);
        std::os::unix::fs::symlink(elsewhere.path().join("secret.jpg"), folder.path().join("b.jpg")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("a.jpg"), folder.path().join("c.jpg")).unwrap();
        assert_eq!(names(folder.path()), ["a.jpg", "(link to a file outside the folder)", "c.jpg"]);
    }

    #[test]
    fn a_path_that_is_not_there_is_refused_by_name() {
        assert_eq!(names(Path::new("/nonexistent/a.png")), ["refused /nonexistent/a.png"]);
    }
}
