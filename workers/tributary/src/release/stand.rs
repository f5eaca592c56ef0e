//! How releases stand: what was decided about each, and on what numbers.

use runtime::settings::Loaded;
use schemas::{Finding, ModelName, ReleaseId, ReleaseStage, Rollout, Says};

use crate::settings::Settings;
use crate::{form, out, site};

/// Everything that was decided about a model; nothing where the cloud's server cannot be reached, which is said.
pub async fn of(loaded: &Loaded<Settings>, model: &ModelName) -> Vec<Rollout> {
    let read = async {
        let cloud = site::cloud(loaded, "release").await?;
        anyhow::Ok(rollout::log::history(&cloud, model).await?)
    };
    read.await.unwrap_or_else(|error| {
        out::note(format_args!("how releases stand is not known: {}", out::with_causes(&error, ": ")));
        Vec::new()
    })
}

/// How a release stands, in a word.
pub fn word(history: &[Rollout], release: &ReleaseId) -> &'static str {
    let Some(now) = history.last() else { return "" };
    let before = || history.iter().any(|then| then.stable.release == *release).then_some("was stable");
    rollout::stage::stage_of(now, release).map(ReleaseStage::as_str).or_else(before).unwrap_or("passed over")
}

/// The decisions about a release, the oldest first.
pub fn about<'a>(history: &'a [Rollout], release: &ReleaseId) -> Vec<&'a Rollout> {
    history.iter().filter(|then| then.decision.release == *release).collect()
}

/// Shows them.
pub fn show(history: &[Rollout], release: &ReleaseId) -> anyhow::Result<()> {
    if history.is_empty() {
        return Ok(());
    }
    out::line(format_args!("stands   {}", word(history, release)))?;
    for then in about(history, release) {
        let decision = &then.decision;
        let of = decision.site.as_ref().map(|site| format!(" at {site}")).unwrap_or_default();
        out::line(format_args!(
            "{:<8} {}{of} by {}: {}",
            decision.stage.as_str(),
            form::time(then.said_at_ms),
            form::plain(&decision.by),
            form::plain(&decision.why)
        ))?;
        if !decision.findings.is_empty() {
            let rows: Vec<Vec<String>> = decision.findings.iter().map(row).collect();
            let head = ["", "measure", "ring", "others", "better by", "error", "too bad", "on", "says"];
            out::line(form::table(&head, &rows))?;
        }
    }
    Ok(())
}

fn row(finding: &Finding) -> Vec<String> {
    let says = match finding.says {
        Says::Open => "open",
        Says::Good => "good",
        Says::Worse => "worse",
    };
    vec![
        "        ".into(),
        finding.measure.clone(),
        format!("{:.4}", finding.canary),
        finding.stable.map_or(String::new(), |stable| format!("{stable:.4}")),
        format!("{:+.4}", finding.better),
        format!("{:.4}", finding.error),
        format!("-{:.4}", finding.margin),
        finding.count.to_string(),
        says.into(),
    ]
}
