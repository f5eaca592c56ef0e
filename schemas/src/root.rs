//! Whom a site obeys: which keys may sign orders and rounds, and which releases must never run. Signed by a key that is kept
//! offline, with a number that only goes up, as the root role of TUF is (The Update Framework, specification 1.0, section 4.3).
//! Version history: 1, first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Message};
use crate::id::ReleaseId;

/// Who said something, until when it holds, and that nobody changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Public half of the Ed25519 key, 64 hexadecimal digits.
    pub key: String,
    /// Until when it is obeyed, milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Over the message's own bytes with this field empty.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Whom a site obeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Goes up with each one.
    pub number: u64,
    /// Until when it is good, milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Public keys that may sign the next root.
    pub keys: Vec<String>,
    /// Public keys that may sign orders.
    pub releaser: Vec<String>,
    /// Public keys that may sign the opening of rounds.
    pub aggregator: Vec<String>,
    /// Releases that no site runs, whoever orders it.
    #[serde(default)]
    pub never: Vec<ReleaseId>,
    /// Signatures over everything else, 128 hexadecimal digits each, by public key.
    #[serde(default)]
    pub signatures: BTreeMap<String, String>,
}

impl Root {
    /// What is signed: everything but the signatures.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Self { signatures: BTreeMap::new(), ..self.clone() })
    }
}

impl Message for Root {
    const KIND: &'static str = "root";
    const VERSION: u16 = 1;
}
