//! How a site's recent answers differ from their reference, and beginning a new reference.

use runtime::drift::{DriftKind, reference_note};
use schemas::{DriftLevel, DriftReport, Role, SiteName, WireWord};
use serde::Serialize;
use streams::fleet::{self, Ledger};
use streams::{Bus, CarryError};

use crate::audit::record_change;

/// The drift that one worker measures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerDrift {
    /// Role of the worker.
    pub role: WireWord<Role>,
    /// Name of the worker.
    pub worker: String,
    /// The highest level of its measures.
    pub level: DriftLevel,
    /// Its measures.
    pub report: DriftReport,
}

/// Why no new reference was begun.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// Nobody measures.
    #[error("no worker of site {site} measures drift: start a recognizer first")]
    NotMeasured {
        /// The site.
        site: SiteName,
    },
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// Reads what the live workers of a site measure.
pub async fn read_drift(bus: &Bus) -> Result<Vec<WorkerDrift>, CarryError> {
    let measured = fleet::live_workers(bus).await?.into_iter().filter_map(|beat| {
        let report = beat.drift?;
        Some(WorkerDrift { role: beat.role, worker: beat.worker, level: report.level(), report })
    });
    Ok(measured.collect())
}

/// Accepts the present answers: the next ones become the new reference.
pub async fn start_new_reference(bus: &Bus, site: &SiteName) -> Result<(), DriftError> {
    let measured = read_drift(bus).await?;
    if measured.is_empty() {
        return Err(DriftError::NotMeasured { site: site.clone() });
    }
    let ledger = Ledger::open(bus).await?;
    for WorkerDrift { report, .. } in &measured {
        for kind in [DriftKind::Answers, DriftKind::Agreement] {
            ledger.write(&reference_note(kind, &report.release), "null".to_owned()).await?;
        }
    }
    let mut releases: Vec<&str> = measured.iter().map(|measured| measured.report.release.short()).collect();
    releases.dedup();
    record_change(bus, site, "drift accept", releases.join(", ")).await;
    Ok(())
}
