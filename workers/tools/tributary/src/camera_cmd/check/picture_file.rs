//! The file of the picture that a check shows. No file is ever overwritten.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Most numbered names that are tried.
const MAX_NUMBER: u32 = 999;

/// Fails if the file exists, before a camera is asked for anything.
pub(super) fn check_is_new(file: &Path) -> anyhow::Result<()> {
    if file.symlink_metadata().is_ok() {
        bail!(exists(file));
    }
    Ok(())
}

fn exists(file: &Path) -> String {
    format!("{} exists, and is not overwritten: give --picture another name, or remove the file", file.display())
}

/// Writes a file that does not exist yet.
pub(super) fn write_new(file: &Path, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    match create(file, bytes) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(exists(file)),
        written => written.with_context(|| unwritten(file)).map(|()| file.to_owned()),
    }
}

/// Writes `camera-NAME.jpg` in this folder, or the first `camera-NAME-2.jpg` and so on that does not exist yet.
pub(super) fn write_beside(name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    for number in 1..=MAX_NUMBER {
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        let file = PathBuf::from(format!("camera-{name}{number}.jpg"));
        match create(&file, bytes) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            written => return written.with_context(|| unwritten(&file)).map(|()| file),
        }
    }
    bail!("there are {MAX_NUMBER} pictures of this camera here: remove some, or name a file with --picture")
}

fn unwritten(file: &Path) -> String {
    format!("{} cannot be written: name another file with --picture, or use --no-picture", file.display())
}

fn create(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    File::options().write(true).create_new(true).open(file)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_refused_by_name_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("view.jpg");
        check_is_new(&file).unwrap();
        assert_eq!(write_new(&file, b"first").unwrap(), file);
        for error in [check_is_new(&file).unwrap_err(), write_new(&file, b"second").unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("view.jpg exists") && error.contains("--picture"), "{error}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        let nowhere = write_new(&folder.path().join("no/folder.jpg"), b"x").unwrap_err().to_string();
        assert!(nowhere.contains("--no-picture"), "{nowhere}");
        // A link that leads nowhere is not followed, either.
        let link = folder.path().join("link.jpg");
        std::os::unix::fs::symlink(folder.path().join("target.jpg"), &link).unwrap();
        assert!(check_is_new(&link).is_err() && write_new(&link, b"x").is_err());
    }
}
