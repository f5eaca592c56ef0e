//! `tributary key`: a site's signing key for its updates.

use std::path::PathBuf;

use runtime::site_key::SiteKey;

use crate::stdout;

const EXAMPLES: &str = "\
The file stays at the site, as trainer.key. The printed public key goes to the cloud, into aggregator.check.keys: with \
any key there, updates count only if their site signed them. A fleet made with `tributary fleet init` does this by \
itself.

Examples:
  tributary key /var/lib/tributary/site.key
  tributary trainer --set trainer.key=/var/lib/tributary/site.key
  tributary aggregator --set 'aggregator.check.keys={\"reef\":\"1f0c…\"}'";

/// Create a site's signing key, and print its public half.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeyArgs {
    /// File of the key; created if it does not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Makes or shows a key.
pub(crate) fn command(args: &KeyArgs) -> anyhow::Result<()> {
    let key = if args.file.exists() { SiteKey::read(&args.file) } else { SiteKey::create(&args.file) }?;
    stdout::print_line(key.public())
}
