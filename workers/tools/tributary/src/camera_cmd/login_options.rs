//! The login at a camera, from the environment or a file: a password on a command line is seen by everybody on the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use camera::{CameraCredentials, PasswordSource};

use super::shell_word;
use crate::stdout;

#[derive(clap::Args)]
pub(super) struct LoginOptions {
    /// User of the camera; with --password-env or --password-file.
    #[arg(long, value_name = "NAME", help_heading = "Login")]
    user: Option<String>,
    /// Read the password from this environment variable.
    #[arg(long, value_name = "VARIABLE", help_heading = "Login", requires = "user", conflicts_with = "password_file")]
    password_env: Option<String>,
    /// Read the password from the first line of this file.
    #[arg(long, value_name = "FILE", help_heading = "Login", requires = "user")]
    password_file: Option<PathBuf>,
}

impl LoginOptions {
    /// The login; `None` if none was named.
    pub(super) fn read(&self) -> anyhow::Result<Option<CameraCredentials>> {
        let Some(user) = self.user.clone() else { return Ok(None) };
        let source = PasswordSource::named(self.password_env.as_deref(), self.password_file.as_deref());
        let source = source.with_context(|| {
            let user = crate::format::plain_text(&user);
            format!("--user {user} needs a password: add --password-env VARIABLE or --password-file FILE")
        })?;
        if let PasswordSource::File(file) = &source {
            warn_of_readers(file);
        }
        let password = source.read().map_err(|error| anyhow::anyhow!("{error}; {}", error.remedy()))?;
        Ok(Some(CameraCredentials { user, password }))
    }

    /// The same options for another command line, each with a space before it.
    pub(super) fn repeated(&self) -> String {
        let option = |name: &str, value: Option<String>| {
            value.map(|value| format!(" {name} {}", shell_word(&value))).unwrap_or_default()
        };
        option("--user", self.user.clone())
            + &option("--password-env", self.password_env.clone())
            + &option("--password-file", self.password_file.as_ref().map(|file| file.display().to_string()))
    }
}

/// Says that others can read a file of a password, if they can.
fn warn_of_readers(file: &Path) {
    let metadata = std::fs::metadata(file);
    if metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o077 != 0) {
        stdout::print_note(format_args!(
            "note: others on this machine can read {0}; to keep it to yourself: chmod 600 {0}",
            shell_word(&file.display().to_string())
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(user: Option<&str>, password_file: Option<&Path>) -> LoginOptions {
        LoginOptions {
            user: user.map(str::to_owned),
            password_env: None,
            password_file: password_file.map(Path::to_owned),
        }
    }

    #[test]
    fn a_login_is_read_and_its_options_can_be_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("it's secret");
        std::fs::write(&file, "p@ss word\n").unwrap();
        let options = options(Some("a b"), Some(&file));
        let login = options.read().unwrap().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("a b", "p@ss word"));
        let repeated = options.repeated();
        assert!(repeated.starts_with(" --user 'a b' --password-file '/") && repeated.ends_with("it'\\''s secret'"));
    }

    #[test]
    fn a_login_without_a_password_or_with_an_unreadable_one_is_refused() {
        assert!(options(None, None).read().unwrap().is_none());
        let error = options(Some("admin"), None).read().unwrap_err().to_string();
        assert!(error.contains("--password-file"), "{error}");
        let error = options(Some("admin"), Some(Path::new("/nowhere/x"))).read().unwrap_err().to_string();
        assert!(error.contains("/nowhere/x") && error.contains("first line of the file"), "{error}");
    }
}
