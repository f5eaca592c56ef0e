//! The root that the site trusts: the one it was given when it joined, or a successor that the cloud offers. An
//! accepted root is noted in the site's ledger, and no older one is accepted again.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use runtime::trust::{self, Instruction};
use runtime::{Fault, Shutdown, clock, metrics};
use schemas::{FaultNote, Root};
use streams::fleet::{Ledger, RemoteNote};
use streams::{Bus, CarryError, permissions};

use crate::probe::LinkHandle;

/// Key of the ledger note with the trusted root, JSON.
pub const NOTE: &str = "fleet-root";
/// Its name among the things that expire.
pub const EXPIRY: &str = "root that the site trusts";
/// Interval of asking the cloud for a newer root.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Largest root that is read, bytes.
const MAX_BYTES: usize = 64 * 1024;

/// The root that the site trusts; clones share it. Without one, the site follows any instruction.
#[derive(Clone, Default)]
pub struct TrustAnchor(Option<Arc<RwLock<Root>>>);

impl TrustAnchor {
    /// The root in a file, or a later one that the site has accepted since.
    ///
    /// # Errors
    /// The file holds no valid root: a site that should trust one root must not trust everybody.
    pub async fn open(file: Option<&Path>, ledger: &Ledger) -> Result<Self, Fault> {
        let Some(file) = file else { return Ok(Self::default()) };
        let unusable = |why: String| {
            let reason = format!("{} does not hold a valid root: {why}", file.display());
            Fault::Stop(FaultNote::new("root_unusable", reason, "correct courier.root, or run `tributary join` again"))
        };
        let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
        let given: Root = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        trust::check_first_root(&given).map_err(|error| unusable(error.to_string()))?;
        let noted = ledger.read(NOTE).await?.and_then(|text| read(&text));
        let root = noted.filter(|noted| noted.number > given.number).unwrap_or(given);
        metrics::note_expiry(EXPIRY, root.expires_at_ms);
        Ok(Self(Some(Arc::new(RwLock::new(root)))))
    }

    /// Checks whether the site may follow an instruction.
    ///
    /// # Errors
    /// The reason why not, as a fault.
    pub fn check<T: Instruction>(&self, instruction: &T) -> Result<(), Fault> {
        let Some(root) = &self.0 else { return Ok(()) };
        let root = root.read().unwrap_or_else(PoisonError::into_inner);
        trust::check(instruction, &root, clock::now_ms()).map_err(|distrust| {
            let remedy = "check who may publish in the cloud; the releaser repeats a valid order by itself, and `tributary fleet root` makes a new root";
            Fault::reject(distrust.name(), distrust, remedy)
        })
    }

    /// Asks the cloud for newer roots until told to stop.
    pub async fn follow_root(&self, cloud: &Bus, ledger: &Ledger, link: &LinkHandle, shutdown: &Shutdown) {
        let Some(root) = &self.0 else { return };
        let watching = async {
            loop {
                link.up().await;
                if let Err(error) = self.update_root(root, cloud, ledger).await {
                    tracing::debug!(%error, "root lookup retried");
                }
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => {}
            () = watching => {}
        }
    }

    async fn update_root(&self, root: &RwLock<Root>, cloud: &Bus, ledger: &Ledger) -> Result<(), CarryError> {
        let Some(text) = RemoteNote::new(cloud, permissions::ROOT_KEY.into()).read().await? else { return Ok(()) };
        let Some(next) = read(&text) else {
            tracing::warn!("offered root invalid");
            return Ok(());
        };
        let before = root.read().unwrap_or_else(PoisonError::into_inner).clone();
        if next == before {
            return Ok(());
        }
        match trust::check_root(&next, &before, clock::now_ms()) {
            Ok(()) => {
                ledger.write(NOTE, text).await?;
                tracing::info!(number = next.number, "root updated");
                metrics::note_expiry(EXPIRY, next.expires_at_ms);
                *root.write().unwrap_or_else(PoisonError::into_inner) = next;
            }
            Err(distrust) => {
                tracing::warn!(number = next.number, %distrust, "offered root rejected")
            }
        }
        Ok(())
    }
}

fn read(text: &str) -> Option<Root> {
    if text.len() > MAX_BYTES {
        return None;
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_note_of_the_root_is_short_or_rejected() {
        let root = "{\"number\":1,\"expires_at_ms\":5,\"keys\":[],\"releaser\":[],\"aggregator\":[],\"never\":[],\"signatures\":{}}";
        assert!(read(root).is_some());
        assert!(read(&format!("{root}{}", " ".repeat(MAX_BYTES))).is_none(), "it is longer than any root");
        bend::bend_all("notes of the root", &bend::texts([root]), bend::turns() / 2, |bytes| {
            let _followed = read(&String::from_utf8_lossy(bytes)).map(|root| trust::check_first_root(&root).is_ok());
            1
        });
    }
}
