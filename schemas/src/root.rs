//! Which keys may sign orders and rounds, and which releases must never run. Signed by a key that is kept offline, with
//! a number that only increases, as the root role of TUF (The Update Framework, specification 1.0, section 4.3).
//! Version history: 1, first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Message};
use crate::id::ReleaseId;

/// Who signed a message and until when it is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Public Ed25519 key, 64 hexadecimal digits.
    pub key: String,
    /// When the message expires, milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Ed25519 signature over the message encoded with this field empty.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// The signed list of keys that a site trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Increases with each new root.
    pub number: u64,
    /// When the root expires, milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Public keys that may sign the next root.
    pub keys: Vec<String>,
    /// Public keys that may sign orders.
    pub releaser: Vec<String>,
    /// Public keys that may sign the opening of rounds.
    pub aggregator: Vec<String>,
    /// Releases that no site runs, whoever orders them.
    #[serde(default)]
    pub never: Vec<ReleaseId>,
    /// Signatures over everything else, by public key; 128 hexadecimal digits each.
    #[serde(default)]
    pub signatures: BTreeMap<String, String>,
}

impl Root {
    /// The bytes that are signed: everything but the signatures.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Self { signatures: BTreeMap::new(), ..self.clone() })
    }
}

impl Message for Root {
    const KIND: &'static str = "root";
    const VERSION: u16 = 1;
}
