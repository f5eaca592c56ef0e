//! What a person chose for running workers, as a note in the ledger that they follow; JSON `null` where it was cleared.

use serde::Serialize;
use serde::de::DeserializeOwned;
use streams::fleet::Ledger;
use streams::{Bus, CarryError};

/// Why a choice was not written.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The ledger did not accept it.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// It has no form in JSON.
    #[error("the choice cannot be written as JSON; report it")]
    Json(#[from] serde_json::Error),
}

/// Writes a choice; `None` clears it.
pub(crate) async fn write_choice(bus: &Bus, key: &str, choice: Option<&impl Serialize>) -> Result<(), NoteError> {
    let text = serde_json::to_string(&choice)?;
    Ok(Ledger::open(bus).await?.write(key, text).await?)
}

/// The choice that applies; `None` if there is none, or none that can be read.
pub(crate) async fn read_choice<T: DeserializeOwned>(bus: &Bus, key: &str) -> Result<Option<T>, CarryError> {
    let note = Ledger::open(bus).await?.read(key).await?;
    Ok(note.and_then(|note| serde_json::from_str(&note).ok()).flatten())
}
