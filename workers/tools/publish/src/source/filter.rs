//! Which files of a folder are published: judged by name, or by the first bytes where the name does not tell.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use vision::PictureFormat;
use wildmatch::WildMatch;

use crate::settings::PublisherSettings;

/// Extensions of image files, lower-case.
pub(crate) const EXTENSIONS: [&str; 19] = [
    "jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "mpo", "png", "apng", "webp", "tif", "tiff", "bmp", "dib", "gif",
    "pnm", "ppm", "pgm", "pbm",
];
/// Bytes needed to recognize a format.
const HEAD_BYTES: u64 = 32;

/// Selects files in folders. Files named explicitly are not filtered.
#[derive(Debug, Clone)]
pub(crate) struct FileFilter {
    include: Vec<FilePattern>,
    exclude: Vec<FilePattern>,
    sniffs_extensions: bool,
}

#[derive(Debug, Clone)]
struct FilePattern {
    text: String,
    matcher: WildMatch,
}

impl FilePattern {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), matcher: WildMatch::new_case_insensitive(text) }
    }

    /// A pattern with a slash matches the path in the folder, one without matches the name.
    fn matches(&self, inside: &Path) -> bool {
        match self.text.contains('/') {
            true => self.matcher.matches(&inside.to_string_lossy()),
            false => inside.file_name().is_some_and(|name| self.matcher.matches(&name.to_string_lossy())),
        }
    }
}

impl FileFilter {
    pub(super) fn new(settings: &PublisherSettings) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| FilePattern::new(text)).collect();
        Self { include: patterns(&settings.include), exclude: patterns(&settings.exclude), sniffs_extensions: true }
    }

    /// For a folder that is being written into: unfinished uploads have extensions of their own, so files with a
    /// non-image extension are left alone.
    pub(super) fn of_watched(settings: &PublisherSettings) -> Self {
        Self { sniffs_extensions: false, ..Self::new(settings) }
    }

    /// Why a file or folder is skipped by name. `inside`: its path below the folder.
    pub(super) fn find_exclusion(&self, inside: &Path) -> Option<String> {
        if is_hidden(inside) {
            return Some("hidden".into());
        }
        let pattern = self.exclude.iter().find(|pattern| pattern.matches(inside))?;
        Some(format!("excluded by {:?}", pattern.text))
    }

    /// Why a file that is not excluded is skipped; `None` if it is to be published. Opens files whose names do not
    /// tell.
    pub(super) fn find_mismatch(&self, path: &Path, inside: &Path) -> Option<String> {
        if !self.include.is_empty() {
            let included = self.include.iter().any(|pattern| pattern.matches(inside));
            return (!included).then(|| "not included".into());
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        match extension {
            Some(extension) if EXTENSIONS.contains(&extension.as_str()) => None,
            // Raw camera files begin like a TIFF.
            Some(extension)
                if self.sniffs_extensions && read_format(path).is_some_and(|it| it != PictureFormat::Tiff) =>
            {
                tracing::debug!(path = %path.display(), extension, "image recognized by content");
                None
            }
            Some(extension) => Some(format!(".{}", extension.chars().take(16).collect::<String>())),
            None if read_format(path).is_some() => None,
            None => Some("without an extension".into()),
        }
    }
}

/// Whether the last component of a path begins with a dot.
pub(crate) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The format of a regular file by its first bytes. Nothing else is opened, because a pipe would block.
fn read_format(path: &Path) -> Option<PictureFormat> {
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    PictureFormat::of(&head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str]) -> FileFilter {
        let include = include.iter().map(ToString::to_string).collect();
        FileFilter::new(&PublisherSettings { include, ..PublisherSettings::default() })
    }

    #[test]
    fn device_files_beside_pictures_are_excluded() {
        for name in ["a/.hidden", "@eaDir", "a/lastsnap.jpg", "x.jpg.part", "MVI_01.THM", "Thumbnails"] {
            assert!(filter(&[]).find_exclusion(Path::new(name)).is_some(), "{name}");
        }
        for name in ["a.jpg", "day1", "eaDir", "thumb.jpg"] {
            assert_eq!(filter(&[]).find_exclusion(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn files_are_judged_by_name_and_otherwise_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF";
        let mismatch = |filter: &FileFilter, name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            filter.find_mismatch(&path, Path::new(name))
        };
        let (once, watched) = (filter(&[]), FileFilter::of_watched(&PublisherSettings::default()));
        assert_eq!(mismatch(&once, "a.JFIF", b"x"), None);
        assert_eq!(mismatch(&once, "snapshot", jpeg), None);
        assert_eq!(mismatch(&once, "snapshot.cgi", jpeg), None);
        assert_eq!(mismatch(&watched, "a.jpg.upload123", jpeg).as_deref(), Some(".upload123"));
        assert_eq!(mismatch(&watched, "snapshot", jpeg), None);
        assert_eq!(mismatch(&once, "raw.nef", b"II\x2a\0\x08\0\0\0").as_deref(), Some(".nef"));
        assert_eq!(mismatch(&once, "notes", b"text").as_deref(), Some("without an extension"));
        assert_eq!(mismatch(&once, "Bild.Heic", b"x").as_deref(), Some(".heic"));
        let included = filter(&["*.dat", "day1/*.jpg"]);
        assert_eq!(mismatch(&included, "a.dat", b"x"), None);
        assert_eq!(mismatch(&included, "a.jpg", jpeg).as_deref(), Some("not included"));
        assert_eq!(included.find_mismatch(Path::new("a"), Path::new("day1/a.jpg")), None);
    }
}
