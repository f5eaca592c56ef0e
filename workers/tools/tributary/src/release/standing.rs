//! The stage of releases, and the decisions about each with their metrics.

use operations::release_stage::{decisions_about, stage_word};
use runtime::settings::LoadedSettings;
use schemas::{CanaryFinding, FindingOutcome, ModelName, ReleaseId, ReleaseStage, Rollout};

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

/// What a decision made of a release, in a word, and about which other release it was, if it was about another.
fn effect_on<'a>(then: &'a Rollout, release: &ReleaseId) -> (&'static str, Option<&'a ReleaseId>) {
    let decided = &then.decision;
    if decided.release == *release {
        return (decided.stage.as_str(), None);
    }
    let stage = releases::stage::stage_of(then, release).map(ReleaseStage::as_str);
    let previous = then.previous.iter().any(|previous| previous.release == *release);
    (stage.unwrap_or(if previous { "replaced" } else { "dropped" }), Some(&decided.release))
}

/// Prints a release's stage and decisions.
pub(super) fn print_standing(history: &[Rollout], release: &ReleaseId) -> anyhow::Result<()> {
    if history.is_empty() {
        return Ok(());
    }
    stdout::print_line(format_args!("stage    {}", stage_word(history, release)))?;
    for then in decisions_about(history, release) {
        let decision = &then.decision;
        let (stage, other) = effect_on(then, release);
        let of = decision.site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
        let other = other.map(|other| format!("{} became {}: ", other.short(), decision.stage.as_str()));
        stdout::print_line(format_args!(
            "{stage:<9} {}{of} by {}: {}{}",
            format::format_time(then.said_at_ms),
            format::plain_text(decision.origin.as_str()),
            other.unwrap_or_default(),
            format::plain_text(&decision.why)
        ))?;
        if decision.release == *release && !decision.findings.is_empty() {
            let rows: Vec<Vec<String>> = decision.findings.iter().map(finding_cells).collect();
            for line in format::table(&FINDING_HEAD, &rows).lines() {
                stdout::print_line(format_args!("          {line}"))?;
            }
        }
    }
    Ok(())
}

/// Head of a table of findings.
pub(crate) const FINDING_HEAD: [&str; 8] =
    ["measure", "ring", "others", "better by", "error", "limit", "images", "result"];

/// A finding as a row of that table.
pub(crate) fn finding_cells(finding: &CanaryFinding) -> Vec<String> {
    let result = match finding.says {
        FindingOutcome::Open => "open",
        FindingOutcome::Good => "good",
        FindingOutcome::Worse => "worse",
    };
    vec![
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

#[cfg(test)]
mod tests {
    use releases::stage::{self, DecisionContext};
    use schemas::{DecisionOrigin, Release};

    use super::*;

    fn id(number: u8) -> ReleaseId {
        ReleaseId::from_sha256([number; 32])
    }

    fn release(number: u8) -> Release {
        Release {
            release: id(number),
            parent: None,
            origin: "imported".into(),
            package: Vec::new(),
            needs: schemas::MachineRequirements::default(),
            public: None,
            public_change_interval: None,
        }
    }

    /// Two releases are imported, the first is promoted over the baseline, and rolled back.
    fn history() -> Vec<Rollout> {
        let context = || DecisionContext::new(DecisionOrigin::Hand, "because", 5);
        let mut all = vec![stage::first("fish".parse().unwrap(), release(0), context())];
        let mut add = |next: &dyn Fn(&Rollout) -> Result<Rollout, stage::StageRefusal>| {
            let next = next(all.last().unwrap()).unwrap();
            all.push(next);
        };
        add(&|now| stage::candidate(now, release(1), context()));
        add(&|now| stage::candidate(now, release(2), context()));
        add(&|now| stage::stable(now, release(1), context()));
        add(&|now| stage::roll_back(now, context()));
        all
    }

    fn effects(number: u8) -> Vec<&'static str> {
        let history = history();
        decisions_about(&history, &id(number)).into_iter().map(|then| effect_on(then, &id(number)).0).collect()
    }

    #[test]
    fn a_rollback_is_a_decision_about_both_releases() {
        assert_eq!(effects(1), ["candidate", "stable", "withdrawn"]);
        assert_eq!(effects(0), ["stable", "replaced", "stable"]);
        assert_eq!(effects(2), ["candidate"], "decisions about others do not concern it");
        let history = history();
        let back = decisions_about(&history, &id(1)).pop().unwrap();
        assert_eq!(effect_on(back, &id(1)), ("withdrawn", Some(&id(0))));
    }
}
