//! `tributary status`: the state of a site on one screen.

mod drift;
mod gather;
mod reuse;
mod screen;

use std::io::IsTerminal;
use std::time::Duration;

use runtime::settings::LoadedSettings;

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::stdout;

/// How often --watch refreshes.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Terminal codes: cursor to the top left, clear below.
const CLEAR: &str = "\x1b[H\x1b[J";

const EXAMPLES: &str = "\
Problems come last, each with what to do. Seconds of work are the waiting images times the cost of one, divided by the \
running replicas.

Examples:
  tributary status
  tributary status --watch                        refreshed every second
  tributary status --json | jq .images.waiting";

/// Show the state of a site: queues, workers, link, cloud, dead letters, and problems.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Refresh every second, in place, until interrupted.
    #[arg(long, short)]
    watch: bool,
    /// Print JSON; with --watch one object per line.
    #[arg(long)]
    json: bool,
}

/// Shows the state of a site.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &StatusArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "status").await?;
    if !args.watch {
        let status = gather::gather_status(&site, &loaded.settings).await?;
        return if args.json { stdout::json(&status) } else { stdout::print_line(screen::text(&status)) };
    }
    let in_place = if std::io::stdout().is_terminal() && !args.json { CLEAR } else { "" };
    loop {
        show_once(&site, &loaded.settings, args.json, in_place).await?;
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

/// Shows the state once; without an answer from the server, logs and goes on.
async fn show_once(site: &SiteTarget, settings: &Settings, json: bool, in_place: &str) -> anyhow::Result<()> {
    match gather::gather_status(site, settings).await {
        Ok(status) if json => stdout::json_line(&status),
        Ok(status) => stdout::print_text(format_args!("{in_place}{}\n", screen::text(&status))),
        Err(error) => {
            tracing::warn!(site = %site.name, %error, "status unavailable; retrying");
            Ok(())
        }
    }
}
