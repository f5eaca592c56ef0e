//! Who says something: Ed25519 signatures (RFC 8032), a key a site. The secret half stays in a file at the site.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

const SEED_BYTES: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("key file {path} cannot be {verb}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{path} holds no key: `tributary key {path}` makes one where there is no file", path = path.display())]
    NoKey {
        /// Which.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error("key file {path} has mode {mode:o}, so others can use the key: run `chmod 600 {path}`", path = path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The system gives no chance.
    #[error("the system gives no random numbers")]
    NoChance,
}

/// A site's secret key.
pub struct SiteKey(Ed25519KeyPair);

impl SiteKey {
    /// From a file of 64 hexadecimal digits.
    ///
    /// # Errors
    /// A file that is not there, holds something else, or that others may read.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or(0);
        // A group may read it: that is how clusters hand secrets to a process that is not root.
        if mode & 0o027 != 0 {
            return Err(KeyError::Open { path: path.into(), mode: mode & 0o777 });
        }
        let text = std::fs::read_to_string(path).map_err(|source| KeyError::File {
            path: path.into(),
            verb: "read",
            source,
        })?;
        Self::of_secret(&text).ok_or_else(|| KeyError::NoKey { path: path.into() })
    }

    /// Of a secret, 64 hexadecimal digits; absent for anything else.
    pub fn of_secret(secret: &str) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(&bytes::<SEED_BYTES>(secret.trim())?).ok().map(Self)
    }

    /// A new secret, 64 hexadecimal digits.
    ///
    /// # Errors
    /// That the system gives no random numbers.
    pub fn make_secret() -> Result<String, KeyError> {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::NoChance)?;
        Ok(hex(&seed))
    }

    /// Makes a new one, in a file that only its owner may read; refuses a file that is there.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.into(), verb: "written", source };
        let secret = Self::make_secret()?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        writeln!(file, "{secret}").and_then(|()| file.sync_all()).map_err(failed)?;
        Self::read(path)
    }

    /// The public half, 64 hexadecimal digits: what others check by.
    pub fn public(&self) -> String {
        hex(self.0.public_key().as_ref())
    }

    /// A signature of these bytes.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).as_ref().to_vec()
    }
}

/// Whether the holder of the secret half of `public` signed these bytes.
pub fn is_signed(public: &str, bytes: &[u8], signature: &[u8]) -> bool {
    let Some(public) = self::bytes::<32>(public) else { return false };
    UnparsedPublicKey::new(&ED25519, public).verify(bytes, signature).is_ok()
}

/// Whether a text is a public key.
pub fn is_public_key(text: &str) -> bool {
    bytes::<32>(text).is_some()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a signature in hexadecimal digits.
pub(crate) fn bytes_of(text: &str) -> Option<[u8; 64]> {
    bytes::<64>(text)
}

fn bytes<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let digits = text.as_bytes();
    if digits.len() != LEN * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; LEN];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_is_told_from_what_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = SiteKey::create(&path).unwrap();
        let again = SiteKey::read(&path).unwrap();
        assert_eq!(key.public(), again.public());
        let signature = again.sign(b"weights");
        assert!(is_signed(&key.public(), b"weights", &signature));
        assert!(!is_signed(&key.public(), b"weight", &signature));
        assert!(!is_signed(&key.public(), b"weights", &signature[1..]));
        assert!(!is_signed("no key", b"weights", &signature));
        let other = SiteKey::create(&folder.path().join("other")).unwrap();
        assert!(!is_signed(&other.public(), b"weights", &signature));
    }

    #[test]
    fn a_key_is_never_replaced_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        SiteKey::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(SiteKey::create(&path), Err(KeyError::File { .. })));
        std::fs::write(&path, "not a key").unwrap();
        assert!(matches!(SiteKey::read(&path), Err(KeyError::NoKey { .. })));
    }
}
