//! `tributary retention`: how full a site's archive is, what is pinned, and what would be purged next.

use std::collections::BTreeMap;

use janitor::JanitorSettings;
use operations::retention::{self, RetainedImages, RetentionReport};
use runtime::settings::LoadedSettings;
use schemas::{SetName, SiteName};
use streams::reader::StreamLevel;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
When the stream of images is fuller than janitor.high_ratio, the janitor purges the oldest answered images down to \
janitor.low_ratio; unanswered images are never purged. A pinned set is a separate copy with the answers, kept until it \
is unpinned; streams.pinned_max_mib limits all sets together.

Examples:
  tributary retention
  tributary retention --dry-run                   which images would be purged next, by camera
  tributary pin doubtful --since 7d --where hard
  tributary export --pinned doubtful --to ./doubtful
  tributary retention --unpin doubtful";

/// Show how full the archive is, what is pinned, and what would be purged next.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RetentionArgs {
    /// List the images that the next purge would remove; nothing is removed.
    #[arg(long)]
    dry_run: bool,
    /// Delete a pinned set.
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    unpin: Option<SetName>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Shows what is kept, or deletes a pinned set.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &RetentionArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "retention").await?;
    if let Some(set) = &args.unpin {
        let held = retention::unpin_set(&site.bus, &site.name, set).await?;
        return stdout::print_line(format_args!("set {set} with {} is unpinned", format::count(held.images, "image")));
    }
    let janitor = &loaded.settings.janitor;
    let kept = retention::read_retention(&site.bus, &site.name, janitor, args.dry_run).await?;
    if args.json { stdout::json(&kept) } else { stdout::print_line(text(&kept, &site.name, janitor)) }
}

fn text(kept: &RetentionReport, site: &SiteName, settings: &JanitorSettings) -> String {
    let used = |level: &StreamLevel| {
        format!("{} of {}", format::format_size(level.bytes), format::format_size(level.max_bytes))
    };
    let oldest = kept.oldest_at_ms.map(|at_ms| format!(", oldest {}", format::format_time(at_ms)));
    let mut lines = vec![
        format!("site {site}"),
        format!(
            "  images  {} ({}){}; above {} the oldest answered are purged",
            kept.images.messages,
            used(&kept.images),
            oldest.unwrap_or_default(),
            format::format_size(kept.purged_above_bytes)
        ),
        format!("  pinned  {} ({})", kept.pinned.messages, used(&kept.pinned)),
    ];
    let rows = |all: &BTreeMap<String, RetainedImages>| -> Vec<Vec<String>> {
        all.iter()
            .map(|(name, held)| {
                let mut row = vec![
                    name.clone(),
                    held.images.to_string(),
                    format::format_size(held.bytes),
                    format::format_time(held.oldest_at_ms),
                    format::format_time(held.newest_at_ms),
                ];
                row.extend(held.pinned.map(|pinned| pinned.to_string()));
                row
            })
            .collect()
    };
    if !kept.sets.is_empty() {
        lines.push(String::new());
        lines.push(format::table(&["set", "images", "bytes", "oldest", "newest"], &rows(&kept.sets)));
    }
    if let Some(would_go) = &kept.would_go {
        let when = match would_go.now {
            true => format!("within seconds, down to {:.0} % full", settings.low_ratio * 100.0),
            false => format!(
                "first, after another {} of images",
                format::format_size(kept.purged_above_bytes.saturating_sub(kept.images.bytes))
            ),
        };
        lines.push(String::new());
        lines.push(format!("To be purged {when}: all answered images before sequence {}.", would_go.before_sequence));
        lines.push(format::table(
            &["camera", "images", "bytes", "oldest", "newest", "pinned"],
            &rows(&would_go.cameras),
        ));
    }
    lines.join("\n")
}
