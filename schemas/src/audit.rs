//! A record of what a person did by hand: one message per act, chained by digest to the one before. Version history: 1,
//! first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::SiteName;

/// One act of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNote {
    /// The site, or `cloud`.
    pub place: SiteName,
    /// When it happened, milliseconds since the epoch by the clock of the person's machine.
    pub at_ms: u64,
    /// Who did it, as the system knows them: `name@host`.
    pub actor: String,
    /// The command: `policy set`, `release promote`.
    pub action: String,
    /// What it was done to, in words for people.
    pub about: String,
    /// SHA-256 of the note before it at this place, 32 bytes; zeros for the first.
    #[serde(with = "serde_bytes")]
    pub previous: Vec<u8>,
}

impl Message for AuditNote {
    const KIND: &'static str = "audit";
    const VERSION: u16 = 1;
}
