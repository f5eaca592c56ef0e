//! `tributary status`: how a site does, on one screen.

mod drift;
mod gather;
mod screen;

use std::io::IsTerminal;
use std::time::Duration;

use runtime::settings::LoadedSettings;

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::stdout;

/// How often the screen is drawn anew.
const EVERY: Duration = Duration::from_secs(1);
/// Home, and clear what is below it.
const HOME: &str = "\x1b[H\x1b[J";

const EXAMPLES: &str = "\
Seconds of queued work are what waits times what one image costs, divided among the replicas that give a
sign of life. What is wrong, and what to do about it, is said in words at the end.

Examples:
  tributary status                  one screen
  tributary status --watch          the same, every second anew
  tributary status --json | jq .images.waiting";

/// See how a site does: queues, workers, link, cloud, dead letters, and what is wrong.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// Every second anew, in place, until interrupted.
    #[arg(long, short)]
    watch: bool,
    /// Print it as JSON; with --watch one object a line.
    #[arg(long)]
    json: bool,
}

/// Shows how a site does.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &StatusArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "status").await?;
    if !args.watch {
        let status = gather::gather_status(&site, &loaded.settings).await?;
        return if args.json { stdout::json(&status) } else { stdout::print_line(screen::text(&status)) };
    }
    let in_place = if std::io::stdout().is_terminal() && !args.json { HOME } else { "" };
    loop {
        look(&site, &loaded.settings, args.json, in_place).await?;
        tokio::time::sleep(EVERY).await;
    }
}

/// One look; a server that is away for a while is said and waited for.
async fn look(site: &SiteTarget, settings: &Settings, json: bool, in_place: &str) -> anyhow::Result<()> {
    match gather::gather_status(site, settings).await {
        Ok(status) if json => stdout::json_line(&status),
        Ok(status) => stdout::print_text(format_args!("{in_place}{}\n", screen::text(&status))),
        Err(error) => {
            tracing::warn!(site = %site.name, %error, "site unreachable; trying again");
            Ok(())
        }
    }
}
