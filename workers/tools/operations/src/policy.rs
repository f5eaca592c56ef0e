//! The policy that decides where a site's images are recognized: the one in its ledger, or each recognizer's own.

use std::collections::BTreeMap;

use offload::policy::PolicyName;
use recognizer::signals::{POLICY_NOTE, PolicyOverride};
use schemas::{DecisionReport, SiteName};
use serde::Serialize;
use streams::{Bus, CarryError, fleet};

use crate::audit::record_change;
use crate::ledger_note::{NoteError, read_choice, write_choice};

/// What was chosen at a site, and what its recognizers decide.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// The override; absent if the settings of each recognizer apply.
    pub chosen: Option<PolicyOverride>,
    /// The last decisions of each live recognizer, by worker.
    pub recognizers: BTreeMap<String, DecisionReport>,
}

/// Reads what was chosen, and the last decisions.
pub async fn read_policy(bus: &Bus) -> Result<PolicyReport, CarryError> {
    let chosen = read_choice(bus, POLICY_NOTE).await?;
    let beats = fleet::live_workers(bus).await?;
    let recognizers = beats.into_iter().filter_map(|beat| Some((beat.worker, beat.decision?))).collect();
    Ok(PolicyReport { chosen, recognizers })
}

/// Chooses a policy for all recognizers of a site, at once and after restarts.
pub async fn choose_policy(bus: &Bus, site: &SiteName, name: PolicyName) -> Result<(), NoteError> {
    write_choice(bus, POLICY_NOTE, Some(&PolicyOverride { name })).await?;
    record_change(bus, site, "policy set", format!("{name}")).await;
    Ok(())
}

/// Clears the choice: each recognizer returns to its settings.
pub async fn clear_policy(bus: &Bus, site: &SiteName) -> Result<(), NoteError> {
    write_choice(bus, POLICY_NOTE, None::<&PolicyOverride>).await?;
    record_change(bus, site, "policy clear", "").await;
    Ok(())
}
