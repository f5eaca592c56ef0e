//! `tributary label retract`: retracts labels, and names what learned from them.

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use operations::retraction::{self, LabelSelection, LabelledSince, NamedRelease, RetractedLabels, RetractionReason};
use replay::timestamp;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::TaskId;
use serde::Serialize;
use trainer::learned_images::TracedUpdate;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
No label of these images counts any more, not even the publisher's or the cloud's verdict: the site's next training \
omits them until they are labelled again.

Updates that learned from them are found in the site's own record, which never leaves the site \
(streams.learned_max_mib), and the releases with these updates in the release store, if it can be reached from here. \
`tributary release remake` derives a release again without them.

Examples:
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'
  tributary label retract --labelled-by anna --since 2d --why 'mixed up coat and shirt'
  tributary label retract --labelled-by anna --dry-run";

/// Retract labels, and name every update and release that learned from them.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RetractArgs {
    /// Tasks whose labels to retract.
    #[arg(value_name = "TASK", required_unless_present_any = ["labelled_by", "since"])]
    tasks: Vec<TaskId>,
    /// Retract every label by this person that still counts.
    #[arg(long, value_name = "NAME", conflicts_with = "tasks")]
    labelled_by: Option<String>,
    /// Retract every label by persons since TIME: a date, a time or an age (2h, 7d).
    #[arg(long, value_name = "TIME", conflicts_with = "tasks")]
    since: Option<String>,
    /// Reason, kept in the audit log.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = NonEmptyStringValueParser::new())]
    why: Option<String>,
    /// Name of the person who retracts.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only name what learned from the labels; retract nothing.
    #[arg(long)]
    dry_run: bool,
    /// Release store [default: aggregator.store].
    #[arg(long, value_name = "URL")]
    release_store: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The retracted labels, and what learned from them.
#[derive(Debug, Serialize)]
struct Consequences {
    #[serde(flatten)]
    labels: RetractedLabels,
    releases: Vec<NamedRelease>,
    /// Why the releases are unknown; absent if they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    releases_unknown: Option<String>,
}

/// Retracts labels.
pub(super) async fn command(loaded: &LoadedSettings<Settings>, args: &RetractArgs) -> anyhow::Result<()> {
    let reason = RetractionReason { why: args.why.clone().unwrap_or_default(), by: args.by.clone() };
    reason.check()?;
    let here = site_target::open(loaded, "label").await?;
    let reason = (!args.dry_run).then_some(&reason);
    let labels = retraction::retract_labels(&here.bus, &here.name, selection(args)?, reason).await?;
    let url = args.release_store.as_ref().unwrap_or(&loaded.settings.aggregator.store);
    let found = match here.whole_cloud() {
        Ok(cloud) => retraction::find_tainted_releases(cloud, url, &labels.updates).await.map_err(Into::into),
        Err(error) => Err(error),
    };
    let (releases, releases_unknown) = match found {
        Ok(found) => {
            for why in &found.unknown_stages {
                stdout::print_note(format_args!("the stages of releases are unknown: {why}"));
            }
            (found.releases, None)
        }
        Err(error) => (Vec::new(), Some(stdout::with_causes(&error, ": "))),
    };
    let all = Consequences { labels, releases, releases_unknown };
    if args.json {
        stdout::json(&all)?;
    } else {
        print_consequences(args, &all)?;
    }
    match &all.labels.unknown[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "{} of unknown tasks skipped, the first {first}: site {} has no answer, no label and no update for it",
            format::count(all.labels.unknown.len() as u64, "label"),
            all.labels.site
        ),
    }
}

/// The labels that the arguments select.
fn selection(args: &RetractArgs) -> anyhow::Result<LabelSelection> {
    if !args.tasks.is_empty() {
        return Ok(LabelSelection::Tasks(args.tasks.clone()));
    }
    let moment = |words: &String| {
        let at_ms = timestamp::parse_timestamp(words, Some(clock::now_ms()));
        at_ms.map(|at_ms| LabelledSince { at_ms, words: words.clone() })
    };
    let since = args.since.as_ref().map(moment).transpose().map_err(|why| anyhow::anyhow!("--since: {why}"))?;
    Ok(LabelSelection::Given { by: args.labelled_by.clone(), since })
}

fn print_consequences(args: &RetractArgs, all: &Consequences) -> anyhow::Result<()> {
    let count = format::count(all.labels.retracted.len() as u64, "label");
    match args.dry_run {
        true => stdout::print_line(format_args!("{count} would be retracted at site {}", all.labels.site))?,
        false => stdout::print_line(format_args!("{count} retracted at site {}", all.labels.site))?,
    }
    if all.labels.updates.is_empty() {
        return stdout::print_line("No recorded update of this site learned from them.");
    }
    let row = |update: &TracedUpdate| {
        let round = if update.round == 0 { "none".to_owned() } else { update.round.to_string() };
        let images = update.images.len().to_string();
        let trained = format::format_time(update.trained_at_ms);
        vec![update.update.to_string(), update.model.to_string(), round, trained, images]
    };
    let rows: Vec<Vec<String>> = all.labels.updates.iter().map(row).collect();
    stdout::print_line(format::table(&["update", "model", "round", "trained", "learned from"], &rows))?;
    if let Some(why) = &all.releases_unknown {
        return stdout::print_line(format_args!(
            "Which releases contain these updates is unknown here: {why}\nRun the command with --dry-run where the release store can be reached (--release-store), or look for the updates in `tributary release show`."
        ));
    }
    print_releases(&all.releases)
}

fn print_releases(releases: &[NamedRelease]) -> anyhow::Result<()> {
    if releases.is_empty() {
        return stdout::print_line("None of these updates is in a release.");
    }
    let row = |named: &NamedRelease| {
        let tainted = &named.tainted;
        let how = match (&tainted.through, tainted.updates.len()) {
            (Some(through), 0) => format!("starts from release {}", through.short()),
            (_, count) => format!("contains {count} of these updates"),
        };
        let round = if tainted.round == 0 { "none".to_owned() } else { tainted.round.to_string() };
        vec![tainted.release.short().to_owned(), named.model.to_string(), round, named.stands.clone(), how]
    };
    let rows: Vec<Vec<String>> = releases.iter().map(row).collect();
    stdout::print_line(format::table(&["release", "model", "round", "stage", ""], &rows))?;
    let held = releases.iter().rev().find(|named| !named.tainted.updates.is_empty());
    let Some(NamedRelease { tainted, .. }) = held else { return Ok(()) };
    let updates: Vec<String> = tainted.updates.iter().map(|update| format!(" --exclude {update}")).collect();
    let (release, updates) = (tainted.release.short(), updates.concat());
    stdout::print_line(format_args!(
        "To derive it again without them, where the release store is: `tributary release remake {release}{updates} --why TEXT`"
    ))
}
