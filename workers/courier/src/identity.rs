//! Two sites of one name: their servers throw each other off the hub, and each takes the other's verdicts. Each site has a
//! mark of its own, which its courier leaves in the cloud; one that finds another's where it left its own has a namesake.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runtime::Shutdown;
use schemas::{FaultNote, SiteName, TaskId};
use streams::fleet::{Ledger, RemoteNote};
use streams::{Bus, CarryError, permissions};

use crate::probe::LinkHandle;

/// The note of the site's own mark.
const MARK: &str = "site-mark";
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Leaves the site's mark in the cloud and looks whether it stays; says so when it does not.
pub async fn watch_site_mark(
    here: &Bus,
    cloud: &Bus,
    site: &SiteName,
    link: &LinkHandle,
    found: &Mutex<Option<FaultNote>>,
    shutdown: &Shutdown,
) {
    let mut left = false;
    let watching = async {
        loop {
            link.up().await;
            match read_site_mark(here, cloud, site, &mut left).await {
                Ok(fault) => *found.lock().unwrap_or_else(PoisonError::into_inner) = fault,
                Err(error) => tracing::debug!(%error, "the site's mark is looked for again"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = shutdown.wait_for_request() => {}
    }
}

async fn read_site_mark(
    here: &Bus,
    cloud: &Bus,
    site: &SiteName,
    left: &mut bool,
) -> Result<Option<FaultNote>, CarryError> {
    let own = Ledger::open(here).await?;
    own.update_note(MARK, |mark| mark.map_or_else(|| TaskId::new_random().to_string(), str::to_owned)).await?;
    let mark = own.read(MARK).await?.unwrap_or_default();
    let note = RemoteNote::new(cloud, permissions::mark_key(site));
    let found = note.read().await?;
    if found.as_deref() == Some(mark.as_str()) {
        *left = true;
        return Ok(None);
    }
    note.write(mark).await?;
    // A mark of before this courier started may be of a store that is gone.
    let namesake = std::mem::replace(left, true);
    Ok(namesake.then(|| {
        FaultNote::new(
            "site_name_taken",
            format!("another site is called {site}, too: each takes the other's verdicts, and their servers throw each other off the hub"),
            "give each site a name of its own (`site`, and the server's name and domain), then `tributary setup` there and in the cloud",
        )
    }))
}
