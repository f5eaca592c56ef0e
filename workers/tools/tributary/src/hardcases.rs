//! `tributary hardcases`: what sites found hard, as collected in the cloud.

use runtime::settings::LoadedSettings;
use schemas::{HardCase, SiteName, decode};
use streams::reader::{self, StreamRange};
use streams::{subject, topology};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
For each doubtful task the cloud keeps its scores and, where the model gives them, its features; never its
pixels. The oldest make way (streams.hardcases_max_mib).

They open a round where aggregator.round.hard_cases says of how many, and steer it where aggregator.round.hard_focus
is above 0: sites then see their own pictures oftener the harder their class is and the nearer they lie to these
features. What a site itself was in doubt about it sees oftener with trainer.collect.hard_repeats. Neither is on by default.

Examples:
  tributary hardcases                                  the newest of this site
  tributary hardcases --of reef --label coat           another site's, of one label
  tributary hardcases --limit 100000 --json > hard.jsonl   all, with features, one JSON object a line";

/// List what sites found hard: scores and features of doubtful tasks, never pixels.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct HardCasesArgs {
    /// Of this site instead of the one at hand.
    #[arg(long, value_name = "SITE", conflicts_with = "all")]
    of: Option<SiteName>,
    /// Of every site.
    #[arg(long)]
    all: bool,
    /// Only those in which this label was best.
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// So many of the newest.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// JSON, one object a line, features included.
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &HardCasesArgs) -> anyhow::Result<()> {
    let here = site_target::open(loaded, "hardcases").await?;
    let subjects = match (&args.of, args.all) {
        (_, true) => Vec::new(),
        (Some(site), _) => vec![subject::hardcase(site)],
        (None, _) => vec![subject::hardcase(&here.name)],
    };
    let wanted = |case: &HardCase| {
        let best = case.top.first().map(|ranked| ranked.label.as_str());
        args.label.as_deref().is_none_or(|label| best == Some(label))
    };
    let look = StreamRange { subjects, ..StreamRange::default() };
    // A case of another site than its subject's is nobody's: any site may write on its own subject what it likes.
    let own = |record: &reader::StoredMessage, case: &HardCase| record.subject == subject::hardcase(&case.site);
    let readable = |record: &reader::StoredMessage| {
        decode::<HardCase>(&record.payload).is_ok_and(|case| wanted(&case) && own(record, &case))
    };
    let found =
        reader::newest_messages(here.whole_cloud()?, topology::HARDCASES, look, args.limit as usize, readable).await?;
    let cases: Vec<HardCase> = found.iter().filter_map(|record| decode(&record.payload).ok()).collect();
    if args.json {
        return cases.iter().try_for_each(stdout::json_line);
    }
    if cases.is_empty() {
        return stdout::print_line(
            "No hard case is known: doubtful tasks appear here once the courier has carried them up.",
        );
    }
    let row = |case: &HardCase| {
        let best = |place: usize| {
            let ranked = case.top.get(place);
            ranked
                .map(|ranked| format!("{} {}", format::plain_number(&ranked.label), format::percent(ranked.confidence)))
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
    let head = ["published", "site", "camera", "best", "second", "in doubt for", "features", "task"];
    stdout::print_line(format::table(&head, &rows))
}
