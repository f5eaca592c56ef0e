//! A reference to bytes too large for a message. Version history: 1, first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the bytes are and what they must hash to. Nothing is used before its hash was checked
/// (invariant 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawBlobRef")]
pub struct BlobRef {
    /// Name in the blob bucket: the digest itself, so that storing twice is storing once.
    pub key: String,
    /// SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("blob reference {text:?} is not <sha256 in hexadecimal>:<size in bytes>")]
pub struct BlobRefError {
    text: String,
}

impl BlobRef {
    /// The reference of bytes with this SHA-256.
    pub fn new(sha256: [u8; 32], size_bytes: u64) -> Self {
        let sha256: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key: sha256.clone(), sha256, size_bytes }
    }
}

/// As it comes: a digest becomes the name of a file and of an object, and is nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlobRef {
    key: String,
    sha256: String,
    size_bytes: u64,
}

impl TryFrom<RawBlobRef> for BlobRef {
    type Error = BlobRefError;

    fn try_from(said: RawBlobRef) -> Result<Self, BlobRefError> {
        let RawBlobRef { key, sha256, size_bytes } = said;
        match is_digest(&sha256) && key == sha256 {
            true => Ok(Self { key, sha256, size_bytes }),
            false => Err(BlobRefError { text: format!("{key} {sha256}:{size_bytes}").chars().take(200).collect() }),
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl fmt::Display for BlobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sha256, self.size_bytes)
    }
}

impl FromStr for BlobRef {
    type Err = BlobRefError;

    /// Reads the form a header carries: `<sha256>:<size in bytes>`.
    fn from_str(text: &str) -> Result<Self, BlobRefError> {
        let refused = || BlobRefError { text: text.chars().take(100).collect() };
        let (sha256, size) = text.split_once(':').ok_or_else(refused)?;
        if !is_digest(sha256) {
            return Err(refused());
        }
        let size_bytes = size.parse().map_err(|_| refused())?;
        Ok(Self { key: sha256.to_owned(), sha256: sha256.to_owned(), size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_whose_digest_is_a_path_is_refused() {
        let digest = "ab".repeat(32);
        let said = |key: &str, sha256: &str| {
            serde_json::from_value::<BlobRef>(serde_json::json!({ "key": key, "sha256": sha256, "size_bytes": 7 }))
        };
        assert_eq!(said(&digest, &digest).unwrap(), BlobRef::new([0xab; 32], 7));
        let other = "cd".repeat(32);
        let path = "../weights/other";
        for (key, sha256) in
            [(path, path), (&*other, &*digest), (path, &*digest), ("", ""), (&digest[1..], &digest[1..])]
        {
            assert!(said(key, sha256).is_err(), "{key} {sha256} was accepted");
        }
    }

    #[test]
    fn a_reference_survives_its_text_and_a_damaged_one_is_refused() {
        let blob = BlobRef::new([0xab; 32], 12);
        assert_eq!(blob.to_string().parse::<BlobRef>().unwrap(), blob);
        for text in ["", ":", "ab:12", &format!("{}:", "a".repeat(64)), &format!("{}:-1", "a".repeat(64))] {
            assert!(text.parse::<BlobRef>().is_err(), "{text:?} was accepted");
        }
    }
}
