//! The one binary: one file a subcommand, no logic of a role.

mod roles;
mod settings;
mod setup;
mod site;
mod up;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use runtime::Shutdown;

use crate::settings::Settings;

/// Recognize images at the edge, verify the doubtful ones in the cloud.
///
/// Start everything on this machine with `tributary up --model DIR`, then publish images from
/// another terminal with `tributary publish FOLDER` and read answers with `tributary answers`.
#[derive(Parser)]
#[command(name = "tributary", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Args)]
pub(crate) struct Common {
    /// Settings file; `tributary.toml` in this folder if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// One setting, for example `--set recognizer.gate.min_confidence_ratio=0.8`; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Address of the nats-server; without it, the running `tributary up` of this folder is found.
    #[arg(long, global = true, value_name = "URL")]
    nats: Option<String>,
    /// Name of the site.
    #[arg(long, global = true, value_name = "NAME")]
    site: Option<String>,
    /// Folder of the store of `tributary up`.
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Log more: -v for what happens to each message.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log in JSON, one object a line.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Start servers and all roles on this machine, and keep them running.
    Up(up::UpArgs),
    /// Create streams, consumers and buckets, and report what differs from what is wanted.
    Setup(setup::SetupArgs),
    /// Run a site's recognizer on an existing nats-server.
    Recognizer(roles::ModelArgs),
    /// Run a site's courier on an existing nats-server.
    Courier,
    /// Run a verifier in the cloud on an existing nats-server.
    Verifier(roles::ModelArgs),
    /// Run a site's janitor on an existing nats-server.
    Janitor,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let level = match (cli.common.verbose, &cli.command) {
        (0, Command::Up(_) | Command::Recognizer(_) | Command::Courier | Command::Verifier(_) | Command::Janitor) => {
            "info"
        }
        (0, _) => "warn",
        (1, _) => "debug",
        _ => "trace",
    };
    runtime::telemetry::init(level, cli.common.log_json);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let loaded = settings::load(&cli.common, &flags(&cli.command))?;
    let settings = &loaded.settings;
    settings.check()?;
    let shutdown = Shutdown::on_signals()?;
    match cli.command {
        Command::Up(args) => up::command(settings, &args, shutdown).await,
        Command::Setup(args) => setup::command(&loaded, &args).await,
        Command::Recognizer(_) => roles::recognizer(&loaded, shutdown).await,
        Command::Courier => roles::courier(&loaded, shutdown).await,
        Command::Verifier(_) => roles::verifier(&loaded, shutdown).await,
        Command::Janitor => roles::janitor(&loaded, shutdown).await,
    }
}

/// Settings that a command's own flags stand for.
fn flags(command: &Command) -> Vec<(String, serde_json::Value)> {
    match command {
        Command::Up(args) => args.flags(),
        Command::Recognizer(args) => args.flags("recognizer"),
        Command::Verifier(args) => args.flags("verifier"),
        _ => Vec::new(),
    }
}
