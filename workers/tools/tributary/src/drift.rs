//! `tributary drift`: compare a site's recent answers with their reference, or begin a new reference.

use operations::drift::{self, WorkerDrift};
use runtime::settings::LoadedSettings;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
The first answers of a release at a site are the reference (recognizer.drift.reference_answers); the latest ones \
(recognizer.drift.recent_answers) are compared with it. The distance runs from 0 (the same) to 1: for confidence and \
novelty, the largest difference between the two distributions; for agreement with sampled verdicts, how far it fell. \
The level is watch from about 0.1 and alarm from about 0.2, and only where chance and the reference's own variation do \
not explain the distance.

Novelty needs a score (`tributary model novelty`); agreement needs verdicts on sampled answers (recognizer.verify.sample_ratio).

Examples:
  tributary drift                                 each measure of each worker
  tributary drift --accept                        the change is permanent: start a new reference";

/// Compare a site's recent answers with their reference, or start a new reference.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DriftArgs {
    /// Start a new reference with the next answers.
    #[arg(long)]
    accept: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "accept")]
    json: bool,
}

/// Shows drift, or starts a new reference.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &DriftArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "drift").await?;
    if args.accept {
        drift::start_new_reference(&site.bus, &site.name).await?;
        return stdout::print_line(format_args!("site {}: the next answers become the new reference", site.name));
    }
    let reports = drift::read_drift(&site.bus).await?;
    if args.json {
        return stdout::json(&reports);
    }
    if reports.is_empty() {
        return stdout::print_line("No worker measures drift: no recognizer and no courier with verdicts is running.");
    }
    let rows: Vec<Vec<String>> = reports.iter().flat_map(rows).collect();
    stdout::print_line(format::table(&["worker", "measure", "reference", "recent", "distance", "level"], &rows))
}

/// One row per measure; before there is any, one row with how far the windows are filled.
fn rows(measured: &WorkerDrift) -> Vec<Vec<String>> {
    let report = &measured.report;
    let worker = format!("{} {}", format::plain_text(measured.role.as_str()), format::plain_text(&measured.worker));
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
        rows.push(vec![worker, "answers".to_owned(), before, now, String::new(), "collecting".to_owned()]);
    }
    rows
}
