//! `tributary drift`: what a site's answers are like, compared with what they used to be; or take what comes as usual.

use runtime::drift::{DriftKind, reference_note};
use runtime::settings::LoadedSettings;
use schemas::{DriftReport, Heartbeat};
use streams::fleet::{self, Ledger};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
The first answers of a release at a site are its reference (recognizer.drift.reference_answers); the latest ones
(recent_answers) are compared with it. Distances run from 0 (the same) to 1: of confidence and novelty the largest
difference between the two distributions, of agreement with sampled verdicts by how much it fell. A level is raised
only beyond what chance and the reference's own unrest explain: watch from about 0.1, alarm from about 0.2. Novelty
needs a score (`tributary model novelty`), agreement needs verdicts on sampled answers (recognizer.verify.sample_ratio).

Examples:
  tributary drift                 each measure of each worker
  tributary drift --accept        the world has changed for good: the next answers are the new reference";

/// Compare a site's answers with what they used to be, or accept what they are like now.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DriftArgs {
    /// Begin a new reference with the next answers.
    #[arg(long)]
    accept: bool,
    /// Print it as JSON.
    #[arg(long, conflicts_with = "accept")]
    json: bool,
}

/// Shows drift, or begins a new reference.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &DriftArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "drift").await?;
    let beats = fleet::live_workers(&site.bus).await?;
    let reports: Vec<(Heartbeat, DriftReport)> =
        beats.into_iter().filter_map(|mut beat| beat.drift.take().map(|report| (beat, report))).collect();
    if args.accept {
        let ledger = Ledger::open(&site.bus).await?;
        for (_, report) in &reports {
            for kind in [DriftKind::Answers, DriftKind::Agreement] {
                ledger.write(&reference_note(kind, &report.release), "null".to_owned()).await?;
            }
        }
        return match reports.is_empty() {
            true => anyhow::bail!("no worker of site {} measures drift: start a recognizer first", site.name),
            false => stdout::print_line(format_args!("site {}: the next answers are the new reference", site.name)),
        };
    }
    if args.json {
        let reports = reports.iter().map(|(beat, report)| {
            serde_json::json!({ "role": beat.role, "worker": beat.worker, "level": report.level(), "report": report })
        });
        return stdout::json(&reports.collect::<Vec<_>>());
    }
    if reports.is_empty() {
        return stdout::print_line(
            "No worker measures drift: neither a recognizer nor a courier with verdicts gives a sign of life.",
        );
    }
    let rows: Vec<Vec<String>> = reports.iter().flat_map(|(beat, report)| rows(beat, report)).collect();
    stdout::print_line(format::table(&["worker", "measure", "before", "now", "distance", "level"], &rows))
}

/// A row a measure; one that says how far the windows are where there is none yet.
fn rows(beat: &Heartbeat, report: &DriftReport) -> Vec<Vec<String>> {
    let worker = format!("{} {}", format::plain_number(beat.role.as_str()), format::plain_number(&beat.worker));
    let mut rows: Vec<Vec<String>> = report
        .measures()
        .map(|(name, measure)| {
            vec![
                worker.clone(),
                name.to_owned(),
                format::percent(measure.reference_ratio),
                format::percent(measure.recent_ratio),
                format!("{:.3}", measure.distance_ratio),
                measure.level.as_str().to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        let before = format!("{} of {}", report.reference_answers, report.reference_full);
        let now = format!("{} of {}", report.recent_answers, report.recent_full);
        rows.push(vec![worker, "answers".to_owned(), before, now, String::new(), "too few yet".to_owned()]);
    }
    rows
}
