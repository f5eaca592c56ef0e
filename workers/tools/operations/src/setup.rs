//! Creating and changing the streams, consumers and buckets of a server.

use schemas::SiteName;
use streams::topology::{self, PlanScope, RepairMode, SetupFinding, SetupStatus, StreamSettings};
use streams::{Bus, CarryError};

use crate::audit::record_change;

/// Creates what is missing and, depending on the mode, changes what differs. `place`: whose audit log records it.
pub async fn apply_setup(
    bus: &Bus,
    place: &SiteName,
    scope: &PlanScope,
    limits: &StreamSettings,
    mode: RepairMode,
) -> Result<Vec<SetupFinding>, CarryError> {
    let findings = topology::apply_plan(bus, &topology::plan_topology(scope, limits), mode).await?;
    let is_change = |finding: &&SetupFinding| matches!(finding.state, SetupStatus::Created | SetupStatus::Updated(_));
    let changed: Vec<&str> = findings.iter().filter(is_change).map(|finding| finding.what.as_str()).collect();
    if !changed.is_empty() {
        record_change(bus, place, "setup", changed.join(", ")).await;
    }
    Ok(findings)
}
