//! Detects two sites with one name: their servers disconnect each other from the hub, and each takes the other's
//! verdicts. Each site has a mark of its own, which its courier writes to the cloud; finding another mark there means a
//! namesake.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runtime::Shutdown;
use schemas::{FaultNote, SiteName, TaskId};
use streams::fleet::{Ledger, RemoteNote};
use streams::{Bus, CarryError, permissions};

use crate::probe::LinkHandle;

/// Key of the ledger note with the site's own mark.
const MARK: &str = "site-mark";
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Writes the site's mark to the cloud and reports a fault when another site overwrites it.
pub(crate) async fn watch_site_mark(
    here: &Bus,
    cloud: &Bus,
    site: &SiteName,
    link: &LinkHandle,
    fault_slot: &Mutex<Option<FaultNote>>,
    shutdown: &Shutdown,
) {
    let mut was_written = false;
    let watching = async {
        loop {
            link.up().await;
            match read_site_mark(here, cloud, site, &mut was_written).await {
                Ok(fault) => *fault_slot.lock().unwrap_or_else(PoisonError::into_inner) = fault,
                Err(error) => tracing::debug!(%error, "site mark lookup retried"),
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

async fn read_site_mark(
    here: &Bus,
    cloud: &Bus,
    site: &SiteName,
    was_written: &mut bool,
) -> Result<Option<FaultNote>, CarryError> {
    let own = Ledger::open(here).await?;
    own.update_note(MARK, |mark| mark.map_or_else(|| TaskId::new_random().to_string(), str::to_owned)).await?;
    let mark = own.read(MARK).await?.unwrap_or_default();
    let note = RemoteNote::new(cloud, permissions::mark_key(site));
    let current = note.read().await?;
    if current.as_deref() == Some(mark.as_str()) {
        *was_written = true;
        return Ok(None);
    }
    note.write(mark).await?;
    // A different mark from before this courier started may belong to a store that no longer exists.
    let namesake = std::mem::replace(was_written, true);
    Ok(namesake.then(|| {
        FaultNote::new(
            "site_name_taken",
            format!("another site is also named {site}: each takes the other's verdicts, and their servers disconnect each other from the hub"),
            "give each site a name of its own (`site`, and the server's name and domain), then run `tributary setup` there and in the cloud",
        )
    }))
}
