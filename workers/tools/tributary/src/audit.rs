//! `tributary audit`: who changed what by hand.

use runtime::audit::find_break;
use runtime::settings::LoadedSettings;
use schemas::{AuditNote, SiteName, decode};

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
Every command that changes something records who ran it, when and what changed, at the site or in the cloud, in a \
stream that takes no deletions. Each note holds the digest of the one before.

Examples:
  tributary audit
  tributary audit --cloud --verify                detect changed or removed notes";

/// Show the changes made by hand at a site or in the cloud, oldest first.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    /// Show the changes made in the cloud.
    #[arg(long)]
    cloud: bool,
    /// Verify the chain of digests, and fail at the first broken link.
    #[arg(long)]
    verify: bool,
    /// Print JSON, one note per line.
    #[arg(long)]
    json: bool,
}

/// Shows or verifies.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &AuditArgs) -> anyhow::Result<()> {
    let (bus, place) = match args.cloud {
        true => (site_target::cloud(loaded, "audit").await?, SiteName::cloud()),
        false => {
            let site = site_target::open(loaded, "audit").await?;
            (site.bus, site.name)
        }
    };
    let records = operations::audit::read_notes(&bus, &place).await?;
    if args.verify {
        if let Some(broken) = find_break(&records) {
            anyhow::bail!("note {} of {place} was changed or follows a removed one: {}", broken.sequence, broken.why);
        }
        return stdout::print_line(format_args!(
            "{} of {place}: the chain is intact",
            format::count(records.len() as u64, "note")
        ));
    }
    let notes = records.iter().filter_map(|record| decode::<AuditNote>(&record.payload).ok());
    if args.json {
        return notes.into_iter().try_for_each(|note| {
            let AuditNote { place, at_ms, actor, action, about, .. } = note;
            stdout::print_line(
                serde_json::json!({ "place": place, "at_ms": at_ms, "actor": actor, "action": action, "about": about }),
            )
        });
    }
    let rows: Vec<Vec<String>> =
        notes.map(|note| vec![format::format_time(note.at_ms), note.actor, note.action, note.about]).collect();
    match rows.is_empty() {
        true => stdout::print_line(format_args!("Nothing was done by hand at {place} yet.")),
        false => stdout::print_line(format::table(&["when", "who", "what", "about"], &rows)),
    }
}
