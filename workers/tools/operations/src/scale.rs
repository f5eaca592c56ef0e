//! How many replicas the workers of a role run: the number in the ledger, or each worker's own settings.

use std::time::Duration;

use schemas::{Role, SiteName, WireWord};
use serde::{Serialize, Serializer};
use serving::scale::{ReplicaRequest, falls_short, replica_note};
use streams::{Bus, CarryError, fleet};
use tokio::time::Instant;

use crate::audit::record_change;
use crate::ledger_note::{NoteError, read_choice, write_choice};

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What was requested of a role's workers, and what they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScaleReport {
    /// The role.
    pub role: WireWord<Role>,
    /// The override; absent if the settings of each worker apply.
    #[serde(serialize_with = "as_text")]
    pub asked: Option<ReplicaRequest>,
    /// The live workers.
    pub workers: Vec<ReplicaCount>,
}

/// The replicas of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaCount {
    /// Name of the worker.
    pub worker: String,
    /// Replicas that it runs.
    pub replicas: u32,
    /// Why it runs this number, in words for people; absent unless somebody asked or a queue is followed.
    pub why: Option<String>,
}

fn as_text<S: Serializer>(asked: &Option<ReplicaRequest>, serializer: S) -> Result<S::Ok, S::Error> {
    asked.map(|asked| asked.to_string()).serialize(serializer)
}

impl ReplicaCount {
    /// Whether the worker runs what was requested.
    pub fn follows(&self, asked: ReplicaRequest) -> bool {
        let replicas = self.replicas as usize;
        match asked {
            ReplicaRequest::Fixed(wanted) => replicas == wanted,
            ReplicaRequest::Between(least, most) => (least..=most).contains(&replicas),
        }
    }

    /// Whether the worker reports that it cannot run what was requested.
    fn falls_short(&self) -> bool {
        self.why.as_deref().is_some_and(falls_short)
    }
}

/// Reads what was requested, and what the live workers run.
pub async fn read_scale(bus: &Bus, role: Role) -> Result<ScaleReport, CarryError> {
    let asked = read_choice(bus, &replica_note(role)).await?;
    let beats = fleet::live_workers(bus).await?;
    let of_role = beats.into_iter().filter(|beat| beat.role == role);
    let workers = of_role.map(|beat| ReplicaCount { worker: beat.worker, replicas: beat.replicas, why: beat.scale });
    Ok(ScaleReport { role: role.into(), asked, workers: workers.collect() })
}

/// Requests replicas of every worker of a role; `None` returns them to their settings. `place`: the site, or the cloud
/// for verifiers.
pub async fn request_replicas(
    bus: &Bus,
    place: &SiteName,
    role: Role,
    asked: Option<ReplicaRequest>,
) -> Result<(), NoteError> {
    write_choice(bus, &replica_note(role), asked.as_ref()).await?;
    let wanted = asked.map_or_else(|| "per settings".to_owned(), |replicas| replicas.to_string());
    record_change(bus, place, "scale", format!("{role}: {wanted}")).await;
    Ok(())
}

/// Waits until all workers run the requested number or report why not, and no longer than `timeout`.
pub async fn wait_for_replicas(
    bus: &Bus,
    role: Role,
    asked: ReplicaRequest,
    timeout: Duration,
) -> Result<ScaleReport, CarryError> {
    let until = Instant::now() + timeout;
    loop {
        let report = read_scale(bus, role).await?;
        if report.workers.iter().all(|worker| worker.follows(asked) || worker.falls_short()) || Instant::now() > until {
            return Ok(report);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_follows_a_range_within_its_bounds() {
        let runs = |replicas: u32| ReplicaCount { worker: "w".into(), replicas, why: None };
        let range = ReplicaRequest::Between(2, 3);
        assert_eq!([1, 2, 3, 4].map(|replicas| runs(replicas).follows(range)), [false, true, true, false]);
        assert!(runs(2).follows(ReplicaRequest::Fixed(2)) && !runs(1).follows(ReplicaRequest::Fixed(2)));
    }
}
