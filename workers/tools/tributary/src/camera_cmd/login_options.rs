//! The login at a camera, from the environment or a file: a password on a command line is seen by everybody on the machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use camera::CameraLogin;

use super::shell_word;
use crate::stdout;

/// Longest password, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

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
    pub(super) fn read(&self) -> anyhow::Result<Option<CameraLogin>> {
        let Some(user) = self.user.clone() else { return Ok(None) };
        let password = match (&self.password_env, &self.password_file) {
            (Some(variable), _) => password_from_environment(variable)?,
            (None, Some(file)) => password_from_file(file)?,
            (None, None) => bail!(
                "--user {} needs a password: add --password-env VARIABLE or --password-file FILE",
                crate::format::plain_text(&user)
            ),
        };
        Ok(Some(CameraLogin { user, password }))
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

fn password_from_environment(variable: &str) -> anyhow::Result<String> {
    // The value is in no error: it may be the password, without being a text.
    match std::env::var(variable).ok().filter(|password| !password.is_empty()) {
        Some(password) => Ok(password),
        None => bail!("environment variable {variable} holds no password: set it, or use --password-file FILE"),
    }
}

fn password_from_file(file: &Path) -> anyhow::Result<String> {
    let unread = || format!("password file {} cannot be read: check its path and permissions", file.display());
    let opened = File::open(file).with_context(unread)?;
    if opened.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        stdout::print_note(format_args!(
            "note: others on this machine can read {0}; to keep it to yourself: chmod 600 {0}",
            file.display()
        ));
    }
    let mut line = String::new();
    BufReader::new(opened.take(MAX_PASSWORD_BYTES)).read_line(&mut line).with_context(unread)?;
    let password = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(
        !password.is_empty(),
        "password file {} has an empty first line: it must be the password",
        file.display()
    );
    Ok(password.to_owned())
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
    fn a_password_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("it's secret");
        for (content, password) in [("p@ss word\n", "p@ss word"), ("one\r\ntwo\n", "one"), (" x", " x")] {
            std::fs::write(&file, content).unwrap();
            let login = options(Some("admin"), Some(&file)).read().unwrap().unwrap();
            assert_eq!((login.user.as_str(), login.password.as_str()), ("admin", password));
        }
        for content in ["", "\nsecond\n"] {
            std::fs::write(&file, content).unwrap();
            let error = options(Some("admin"), Some(&file)).read().unwrap_err().to_string();
            assert!(error.contains("empty first line"), "{error}");
        }
        let repeated = options(Some("a b"), Some(&file)).repeated();
        assert!(repeated.starts_with(" --user 'a b' --password-file '/") && repeated.ends_with("it'\\''s secret'"));
    }

    #[test]
    fn a_login_without_a_password_or_with_an_unreadable_one_is_refused() {
        assert!(options(None, None).read().unwrap().is_none());
        let error = options(Some("admin"), None).read().unwrap_err().to_string();
        assert!(error.contains("--password-file"), "{error}");
        let error = options(Some("admin"), Some(Path::new("/nowhere/x"))).read().unwrap_err().to_string();
        assert!(error.contains("/nowhere/x"), "{error}");
        let unset = LoginOptions { password_env: Some("TRIBUTARY_NO_SUCH".into()), ..options(Some("admin"), None) };
        let error = unset.read().unwrap_err().to_string();
        assert!(error.contains("TRIBUTARY_NO_SUCH holds no password"), "{error}");
    }
}
