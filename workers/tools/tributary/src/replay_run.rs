//! What `export`, `evaluate`, `pin`, `republish` and `retrain` share: one run over selected images, with its progress
//! on standard error and its summary on standard output.

use anyhow::ensure;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use replay::{ReplayDestination, ReplayOptions, ReplayProgress, ReplaySummary, replay};
use runtime::Shutdown;

use crate::replay_summary::{self, SummaryContext};
use crate::settings::Settings;
use crate::site_target::SiteTarget;
use crate::{format, stdout};

/// How a run reads, and how it reports.
#[derive(clap::Args, Debug)]
pub(crate) struct ReadArgs {
    /// Read-rate limit in MiB/s, applied even when the site is idle.
    #[arg(long, value_name = "MIB", value_parser = read_rate)]
    mib_per_s: Option<f64>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

fn read_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("use a number of MiB/s above 0".into()),
    }
}

/// Runs over the selected images, prints the summary, and fails if the run was interrupted.
pub(crate) async fn run_and_report(
    site: &SiteTarget,
    settings: &Settings,
    read: &ReadArgs,
    options: ReplayOptions,
    destination: ReplayDestination,
    context: SummaryContext,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let options = ReplayOptions { most_mib_per_s: read.mib_per_s, ..options };
    let summary = run(site, settings, options, destination, shutdown).await?;
    match read.json {
        true => stdout::json(&summary)?,
        false => stdout::print_line(replay_summary::text(&summary, &site.name, &context))?,
    }
    ensure!(!summary.interrupted, "interrupted: run the same command again to continue");
    Ok(())
}

/// Runs over the selected images, with progress on standard error.
pub(crate) async fn run(
    site: &SiteTarget,
    settings: &Settings,
    options: ReplayOptions,
    destination: ReplayDestination,
    shutdown: &Shutdown,
) -> anyhow::Result<ReplaySummary> {
    let bar = ProgressBar::new(0);
    let style =
        |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let gathering = style("reading answers {bar:30} {pos}/{len}");
    let replaying = style("{bar:30} {pos}/{len} images, {msg}, {per_sec}, {eta} left");
    bar.set_style(gathering);
    let mut has_begun = false;
    let on = |progress: ReplayProgress| match progress {
        ReplayProgress::Gathering(read, all) => {
            bar.set_length(all);
            bar.set_position(read);
        }
        ReplayProgress::Replaying(through, all, bytes) => {
            if !std::mem::replace(&mut has_begun, true) {
                bar.reset();
                bar.set_style(replaying.clone());
                bar.set_length(all);
            }
            bar.set_position(through);
            bar.set_message(HumanBytes(bytes).to_string());
        }
    };
    let ended = replay(&site.bus, &site.name, &settings.replayer, options, destination, on, shutdown).await;
    bar.finish_and_clear();
    Ok(ended?)
}

/// Images, bytes and time of a run, for people.
pub(crate) fn images(summary: &ReplaySummary) -> String {
    format!(
        "{} ({}) in {}",
        format::count(summary.through, "image"),
        format::format_size(summary.bytes),
        format::format_span(summary.elapsed_ms as f64)
    )
}
