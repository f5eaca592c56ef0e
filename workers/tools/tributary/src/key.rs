//! `tributary key`: a site's key, by which its updates are told from anybody else's.

use std::path::PathBuf;

use runtime::site_key::SiteKey;

use crate::stdout;

const EXAMPLES: &str = "\
The file stays at the site, for trainer.key; what is printed goes to the cloud, for aggregator.check.keys. With any key
there, an update counts only if its site signed it.

Examples:
  tributary key /var/lib/tributary/site.key
  tributary trainer --set trainer.key=/var/lib/tributary/site.key
  tributary aggregator --set 'aggregator.check.keys={\"reef\":\"1f0c…\"}'";

/// Make a site's key, or print the public half of the one that is there.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct KeyArgs {
    /// The key's file; made if there is none.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Makes or shows a key.
pub fn command(args: &KeyArgs) -> anyhow::Result<()> {
    let key = if args.file.exists() { SiteKey::read(&args.file) } else { SiteKey::create(&args.file) }?;
    stdout::print_line(key.public())
}
