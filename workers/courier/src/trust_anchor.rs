//! Whom the site obeys: the root it was given when it joined, and those that followed it, as the cloud offers them. What the
//! site has once accepted stands in its ledger; nobody talks it back to an older one.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use runtime::trust::{self, Instruction};
use runtime::{Fault, Shutdown, clock, metrics};
use schemas::{FaultNote, Root};
use streams::fleet::{Ledger, RemoteNote};
use streams::{Bus, CarryError, permissions};

use crate::probe::LinkHandle;

/// The site's note of the root it follows, JSON.
pub const NOTE: &str = "fleet-root";
/// What it is called among what ends.
pub const EXPIRY: &str = "root that the site obeys";
/// How often the cloud is asked for a newer one.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Largest root that is read, bytes.
const MOST_BYTES: usize = 64 * 1024;

/// Whom the site obeys, shared by whoever asks; nobody in particular where it was given no root.
#[derive(Clone, Default)]
pub struct TrustAnchor(Option<Arc<RwLock<Root>>>);

impl TrustAnchor {
    /// The root in a file, or a later one that the site has accepted since.
    ///
    /// # Errors
    /// A file that holds no root, or one that is not whole: a site that was to obey somebody must not obey everybody.
    pub async fn open(file: Option<&Path>, ledger: &Ledger) -> Result<Self, Fault> {
        let Some(file) = file else { return Ok(Self::default()) };
        let unusable = |why: String| {
            let reason = format!("{} holds no root that can be trusted: {why}", file.display());
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

    /// Whether the site does what it is told.
    ///
    /// # Errors
    /// Why not, by name.
    pub fn check<T: Instruction>(&self, told: &T) -> Result<(), Fault> {
        let Some(root) = &self.0 else { return Ok(()) };
        let root = root.read().unwrap_or_else(PoisonError::into_inner);
        trust::check(told, &root, clock::now_ms()).map_err(|distrust| {
            let remedy = "look who may publish in the cloud; the releaser gives a good order again by itself, and `tributary fleet root` makes a new root";
            Fault::reject(distrust.name(), distrust, remedy)
        })
    }

    /// Asks the cloud for newer roots until told to stop.
    pub async fn follow_root(&self, cloud: &Bus, ledger: &Ledger, link: &LinkHandle, shutdown: &Shutdown) {
        let Some(root) = &self.0 else { return };
        let watching = async {
            loop {
                link.up().await;
                if let Err(error) = self.look(root, cloud, ledger).await {
                    tracing::debug!(%error, "the fleet's root is looked for again");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = watching => {}
            () = shutdown.wait_for_request() => {}
        }
    }

    async fn look(&self, root: &RwLock<Root>, cloud: &Bus, ledger: &Ledger) -> Result<(), CarryError> {
        let Some(text) = RemoteNote::new(cloud, permissions::ROOT_KEY.into()).read().await? else { return Ok(()) };
        let Some(next) = read(&text) else {
            tracing::warn!("what the cloud offers as the fleet's root is none");
            return Ok(());
        };
        let before = root.read().unwrap_or_else(PoisonError::into_inner).clone();
        if next == before {
            return Ok(());
        }
        match trust::check_root(&next, &before, clock::now_ms()) {
            Ok(()) => {
                ledger.write(NOTE, text).await?;
                tracing::info!(number = next.number, "the fleet has a new root");
                metrics::note_expiry(EXPIRY, next.expires_at_ms);
                *root.write().unwrap_or_else(PoisonError::into_inner) = next;
            }
            Err(distrust) => {
                tracing::warn!(number = next.number, %distrust, "the cloud offers a root that is not followed")
            }
        }
        Ok(())
    }
}

fn read(text: &str) -> Option<Root> {
    if text.len() > MOST_BYTES {
        return None;
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_the_root_that_was_bent_is_short_or_none() {
        let root = "{\"number\":1,\"expires_at_ms\":5,\"keys\":[],\"releaser\":[],\"aggregator\":[],\"never\":[],\"signatures\":{}}";
        assert!(read(root).is_some());
        assert!(read(&format!("{root}{}", " ".repeat(MOST_BYTES))).is_none(), "it is longer than any root");
        bend::bend_all("notes of the root", &bend::texts([root]), bend::turns() / 2, |bytes| {
            let _followed = read(&String::from_utf8_lossy(bytes)).map(|root| trust::check_first_root(&root).is_ok());
            1
        });
    }
}
