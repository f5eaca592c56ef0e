//! A reference to bytes too large for a message. Version history: 1, first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name and digest of bytes kept in a bucket. Nothing uses the bytes before their digest was checked
/// (invariant 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawBlobRef")]
pub struct BlobRef {
    /// Name in the blob bucket. It is the digest, so storing the same bytes twice stores them once.
    pub key: String,
    /// SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// Length of the bytes.
    pub size_bytes: u64,
}

/// A text that is not a blob reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("blob reference {text:?} is invalid; expected <sha256 in hexadecimal>:<size in bytes>")]
pub struct BlobRefError {
    text: String,
}

impl BlobRef {
    /// A reference to the bytes with this SHA-256.
    pub fn new(sha256: [u8; 32], size_bytes: u64) -> Self {
        let sha256: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key: sha256.clone(), sha256, size_bytes }
    }
}

/// As received, before checks: the key becomes the name of a file and of an object, so only a digest may pass.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlobRef {
    key: String,
    sha256: String,
    size_bytes: u64,
}

impl TryFrom<RawBlobRef> for BlobRef {
    type Error = BlobRefError;

    fn try_from(raw: RawBlobRef) -> Result<Self, BlobRefError> {
        let RawBlobRef { key, sha256, size_bytes } = raw;
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

    /// Parses the format of the header: `<sha256>:<size in bytes>`.
    fn from_str(text: &str) -> Result<Self, BlobRefError> {
        let invalid = || BlobRefError { text: text.chars().take(100).collect() };
        let (sha256, size) = text.split_once(':').ok_or_else(invalid)?;
        if !is_digest(sha256) {
            return Err(invalid());
        }
        let size_bytes = size.parse().map_err(|_| invalid())?;
        Ok(Self { key: sha256.to_owned(), sha256: sha256.to_owned(), size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_whose_digest_is_a_path_is_refused() {
        let digest = "ab".repeat(32);
        let parse = |key: &str, sha256: &str| {
            serde_json::from_value::<BlobRef>(serde_json::json!({ "key": key, "sha256": sha256, "size_bytes": 7 }))
        };
        assert_eq!(parse(&digest, &digest).unwrap(), BlobRef::new([0xab; 32], 7));
        let other = "cd".repeat(32);
        let path = "../weights/other";
        for (key, sha256) in
            [(path, path), (&*other, &*digest), (path, &*digest), ("", ""), (&digest[1..], &digest[1..])]
        {
            assert!(parse(key, sha256).is_err(), "{key} {sha256} was accepted");
        }
    }

    #[test]
    fn a_reference_round_trips_through_text_and_a_damaged_one_is_refused() {
        let blob = BlobRef::new([0xab; 32], 12);
        assert_eq!(blob.to_string().parse::<BlobRef>().unwrap(), blob);
        for text in ["", ":", "ab:12", &format!("{}:", "a".repeat(64)), &format!("{}:-1", "a".repeat(64))] {
            assert!(text.parse::<BlobRef>().is_err(), "{text:?} was accepted");
        }
    }
}
