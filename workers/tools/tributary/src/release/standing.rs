//! The stage of releases, and the decisions about each with their metrics.

use operations::release_stage::{decisions_about, stage_word};
use runtime::settings::LoadedSettings;
use schemas::{CanaryFinding, FindingOutcome, ModelName, ReleaseId, Rollout};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// All rollout decisions about a model; empty, with a note, if the cloud's server cannot be reached.
pub(super) async fn read_history(loaded: &LoadedSettings<Settings>, model: &ModelName) -> Vec<Rollout> {
    let read = async {
        let cloud = site_target::cloud(loaded, "release").await?;
        anyhow::Ok(releases::decision_log::history(&cloud, model).await?)
    };
    read.await.unwrap_or_else(|error| {
        stdout::print_note(format_args!("the stages of releases are unknown: {}", stdout::with_causes(&error, ": ")));
        Vec::new()
    })
}

/// Prints a release's stage and decisions.
pub(super) fn print_standing(history: &[Rollout], release: &ReleaseId) -> anyhow::Result<()> {
    if history.is_empty() {
        return Ok(());
    }
    stdout::print_line(format_args!("stage    {}", stage_word(history, release)))?;
    for then in decisions_about(history, release) {
        let decision = &then.decision;
        let of = decision.site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
        stdout::print_line(format_args!(
            "{:<8} {}{of} by {}: {}",
            decision.stage.as_str(),
            format::format_time(then.said_at_ms),
            format::plain_text(decision.origin.as_str()),
            format::plain_text(&decision.why)
        ))?;
        if !decision.findings.is_empty() {
            let rows: Vec<Vec<String>> = decision.findings.iter().map(row).collect();
            let head = ["", "measure", "ring", "others", "better by", "error", "limit", "images", "result"];
            stdout::print_line(format::table(&head, &rows))?;
        }
    }
    Ok(())
}

fn row(finding: &CanaryFinding) -> Vec<String> {
    let result = match finding.says {
        FindingOutcome::Open => "open",
        FindingOutcome::Good => "good",
        FindingOutcome::Worse => "worse",
    };
    vec![
        "        ".into(),
        finding.measure.to_string(),
        format!("{:.4}", finding.canary),
        finding.stable.map_or(String::new(), |stable| format!("{stable:.4}")),
        format!("{:+.4}", finding.better),
        format!("{:.4}", finding.error),
        format!("-{:.4}", finding.margin),
        finding.count.to_string(),
        result.into(),
    ]
}
