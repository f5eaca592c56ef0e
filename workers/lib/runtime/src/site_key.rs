//! Ed25519 signatures (RFC 8032), with a key for each site. The secret half stays in a file at the site.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

const SEED_BYTES: usize = 32;

/// Why a key is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("key file {path} could not be {verb}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The file does not contain a key.
    #[error("{path} does not contain a key; remove the file and make a new one with `tributary key {path}`", path = path.display())]
    NoKey {
        /// Path of the file.
        path: PathBuf,
    },
    /// Other users can use the key.
    #[error("key file {path} has mode {mode:o}, so other users can use the key; run `chmod 600 {path}`", path = path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Permissions of the file.
        mode: u32,
    },
    /// The system provides no random numbers.
    #[error("the system provides no random numbers")]
    NoRandomness,
}

/// A site's secret key.
pub struct SiteKey(Ed25519KeyPair);

impl SiteKey {
    /// Reads a key from a file of 64 hexadecimal digits.
    ///
    /// # Errors
    /// The file does not exist, holds something else, or other users can read it.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or(0);
        // Its group may read it: clusters pass secrets that way to a process that is not root.
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

    /// The key of a secret, 64 hexadecimal digits; `None` for anything else.
    pub fn of_secret(secret: &str) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(&bytes::<SEED_BYTES>(secret.trim())?).ok().map(Self)
    }

    /// A new secret, 64 hexadecimal digits.
    ///
    /// # Errors
    /// The system provides no random numbers.
    pub fn make_secret() -> Result<String, KeyError> {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::NoRandomness)?;
        Ok(hex(&seed))
    }

    /// Creates a key in a file that only its owner can read; fails if the file exists.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.into(), verb: "written", source };
        let secret = Self::make_secret()?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        writeln!(file, "{secret}").and_then(|()| file.sync_all()).map_err(failed)?;
        Self::read(path)
    }

    /// The public half, 64 hexadecimal digits, by which others verify signatures.
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

/// The bytes of a signature in hexadecimal.
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
    fn a_valid_signature_is_accepted_and_others_are_not() {
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
    fn a_key_is_never_replaced_and_only_its_owner_can_read_it() {
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
