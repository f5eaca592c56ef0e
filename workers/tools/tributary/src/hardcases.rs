//! `tributary hardcases`: doubtful tasks of the sites, as collected in the cloud.

use runtime::settings::LoadedSettings;
use schemas::{HardCase, decode};
use streams::reader::{self, StreamRange};
use streams::{subject, topology};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
The cloud keeps the scores of every doubtful task and, where the model has them, its features; never its pixels. The \
oldest go first (streams.hardcases_max_mib). Run this at the cloud's server.

Two settings use them, both off by default: aggregator.round.hard_cases opens a round after that many, and \
aggregator.round.hard_focus above 0 lets sites train more often on images of hard classes and on images whose features \
are close to a hard case.

Examples:
  tributary hardcases                             the newest of this site
  tributary hardcases --site reef --label coat    another site's, of one label
  tributary hardcases --all --limit 100000 --json > hard.jsonl
                                                  every site's, with features";

/// List the hard cases of a site: scores and features of doubtful tasks, never pixels.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HardCasesArgs {
    /// List those of every site, not of --site only.
    #[arg(long)]
    all: bool,
    /// List those whose top label is LABEL only.
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// List the newest N.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Print JSON with features, one object per line.
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &HardCasesArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "hardcases").await?;
    let subjects = match args.all {
        true => Vec::new(),
        false => vec![subject::hardcase(&site_target::site_name(loaded))],
    };
    let wanted = |case: &HardCase| {
        let best = case.top.first().map(|ranked| ranked.label.as_str());
        args.label.as_deref().is_none_or(|label| best == Some(label))
    };
    let look = StreamRange { subjects, ..StreamRange::default() };
    // A site may write anything on its own subject: a case that names another site is ignored.
    let own = |record: &reader::StoredMessage, case: &HardCase| record.subject == subject::hardcase(&case.site);
    let readable = |record: &reader::StoredMessage| {
        decode::<HardCase>(&record.payload).is_ok_and(|case| wanted(&case) && own(record, &case))
    };
    let found = reader::newest_messages(&cloud, topology::HARDCASES, look, args.limit as usize, readable).await?;
    let cases: Vec<HardCase> = found.iter().filter_map(|record| decode(&record.payload).ok()).collect();
    if args.json {
        return cases.iter().try_for_each(stdout::json_line);
    }
    if cases.is_empty() {
        return stdout::print_line("No hard cases yet: doubtful tasks appear here once the courier has sent them up.");
    }
    let row = |case: &HardCase| {
        let best = |place: usize| {
            let ranked = case.top.get(place);
            ranked.map(|ranked| format!("{} {}", format::plain_text(&ranked.label), format::percent(ranked.confidence)))
        };
        vec![
            format::format_time(case.published_at_ms),
            case.site.to_string(),
            case.camera.to_string(),
            best(0).unwrap_or_default(),
            best(1).unwrap_or_default(),
            format::wire_word(&case.reason),
            case.features.as_ref().map_or("none".into(), |features| features.len().to_string()),
            case.task.to_string(),
        ]
    };
    let rows: Vec<_> = cases.iter().map(row).collect();
    let head = ["published", "site", "camera", "top", "second", "reason", "features", "task"];
    stdout::print_line(format::table(&head, &rows))
}
