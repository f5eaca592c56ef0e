//! What somebody did by hand: one message an act, each with the digest of the one before. Version history: 1, first.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::SiteName;

/// Something that somebody did by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNote {
    /// Where: the site, or `cloud`.
    pub place: SiteName,
    /// When, milliseconds since the epoch, by the clock of whoever did it.
    pub at_ms: u64,
    /// Who, as the system knows them: `name@host`.
    pub actor: String,
    /// What, as the command is called: `policy set`, `release promote`.
    pub action: String,
    /// To what, in words for people.
    pub about: String,
    /// SHA-256 of the note before it at this place, 32 bytes; zeros for the first.
    #[serde(with = "serde_bytes")]
    pub previous: Vec<u8>,
}

impl Message for AuditNote {
    const KIND: &'static str = "audit";
    const VERSION: u16 = 1;
}
