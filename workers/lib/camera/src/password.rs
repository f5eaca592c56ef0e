//! Passwords of cameras: in the environment or in a file, as everybody on the machine sees a command line.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::CameraError;

/// Longest line of a password file, bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Where a password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// The value of an environment variable.
    Environment(String),
    /// The first line of a file.
    File(PathBuf),
}

impl PasswordSource {
    /// The source that is named, the variable if both are.
    pub fn named(variable: Option<&str>, file: Option<&Path>) -> Option<Self> {
        let variable = variable.map(|variable| Self::Environment(variable.to_owned()));
        variable.or_else(|| file.map(|file| Self::File(file.to_owned())))
    }

    /// The password, which is never empty.
    ///
    /// # Errors
    /// There is none. The error holds nothing of what was read.
    pub fn read(&self) -> Result<String, CameraError> {
        let password = match self {
            Self::Environment(variable) => std::env::var(variable).map_err(|error| match error {
                std::env::VarError::NotPresent => "it is not set",
                // Not shown: it may be the password, without being a text.
                std::env::VarError::NotUnicode(_) => "it is no UTF-8 text",
            }),
            Self::File(file) => return first_line(file).map_err(|why| self.fault(why)),
        };
        let password = password.map_err(|why| self.fault(why.into()))?;
        (!password.is_empty()).then_some(password).ok_or_else(|| self.fault("it is empty".into()))
    }

    fn fault(&self, why: String) -> CameraError {
        CameraError::Password { from: self.to_string(), why }
    }
}

impl fmt::Display for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::File(file) => write!(f, "file {}", file.display()),
        }
    }
}

fn first_line(file: &Path) -> Result<String, String> {
    let opened = File::open(file).map_err(|error| error.to_string())?;
    let mut line = String::new();
    let read = BufReader::new(opened.take(MAX_PASSWORD_BYTES)).read_line(&mut line);
    read.map_err(|error| error.to_string())?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err("its first line is empty".into()),
        password => Ok(password.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let source = PasswordSource::File(folder.path().join("ü secret"));
        let PasswordSource::File(file) = &source else { return };
        for (content, password) in
            [("p@ss word\n", "p@ss word"), ("geheim ß\r\ntwo\n", "geheim ß"), (" x", " x"), ("y\n\n", "y")]
        {
            std::fs::write(file, content).unwrap();
            assert_eq!(source.read().as_deref(), Ok(password));
        }
        for content in ["", "\nsecond\n"] {
            std::fs::write(file, content).unwrap();
            let error = source.read().unwrap_err().to_string();
            assert!(error.contains("first line is empty") && error.contains("ü secret"), "{error}");
        }
        std::fs::write(file, b"\xff-s3cret").unwrap();
        assert!(!source.read().unwrap_err().to_string().contains("s3cret"));
        assert!(PasswordSource::File(folder.path().into()).read().is_err());
    }

    #[test]
    fn a_password_that_is_not_there_is_named_by_its_source() {
        let variable = PasswordSource::named(Some("TRIBUTARY_NO_SUCH"), Some(Path::new("/nowhere"))).unwrap();
        let error = variable.read().unwrap_err();
        assert!(error.to_string().contains("environment variable TRIBUTARY_NO_SUCH: it is not set"), "{error}");
        assert_eq!(error.kind(), "camera_password");
        let file = PasswordSource::named(None, Some(Path::new("/nowhere/x"))).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("/nowhere/x"));
        assert_eq!(PasswordSource::named(None, None), None);
    }
}
