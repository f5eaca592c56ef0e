//! The command line: one file per subcommand, no logic of a role. A library, so that the benches drive the same code.

mod answers;
mod audit;
mod backtest;
mod camera_cmd;
mod camera_plan;
mod camera_table;
mod certificate_expiry;
mod config;
mod dead_letters;
mod decision_text;
pub mod demo;
mod doctor;
mod drift;
mod evaluate;
mod export;
mod fleet_cmd;
pub mod format;
mod hardcases;
mod key;
mod label;
mod model;
mod pin;
mod policy;
mod publish;
mod release;
mod replay_run;
mod replay_summary;
mod republish;
mod retention;
mod retrain;
pub mod roles;
mod round;
mod scale;
mod selection;
pub mod settings;
mod setup;
pub mod site_target;
mod status;
pub mod stdout;
mod tap;
mod task_lookup;
mod train;
pub mod up;

use schemas::Role;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use os::process::MallocPolicy;
use runtime::Shutdown;

const EXAMPLES: &str = "\
Examples:
  tributary up --model DIR                        servers and all roles on this machine
  tributary publish FOLDER --camera NAME          images, from another terminal
  tributary answers --follow
  tributary status
  tributary COMMAND --help                        every command, with examples";

/// Recognize images at the edge, verify the doubtful ones in the cloud.
#[derive(Parser)]
#[command(name = "tributary", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

/// How long the end waits for a collector of traces.
const SPANS_LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Heading of the options that every command takes.
const COMMON: &str = "Common options";

/// Options of every command.
#[derive(Args, Clone, Default)]
pub struct CommonArgs {
    /// Settings file [default: `tributary.toml` in this folder, if it exists].
    #[arg(long, global = true, value_name = "FILE", help_heading = COMMON)]
    settings: Option<PathBuf>,
    /// Override a setting, for example recognizer.gate.min_confidence_ratio=0.8; repeatable.
    #[arg(long, global = true, value_name = "KEY=VALUE", help_heading = COMMON)]
    set: Vec<String>,
    /// Address of the nats-server [default: that of a running `tributary up`].
    #[arg(long, global = true, value_name = "URL", help_heading = COMMON)]
    nats: Option<String>,
    /// Name of the site.
    #[arg(long, global = true, value_name = "NAME", help_heading = COMMON)]
    site: Option<String>,
    /// Folder with the store of `tributary up` [default: tributary-data].
    #[arg(long, global = true, value_name = "DIR", help_heading = COMMON)]
    store: Option<PathBuf>,
    /// Log more: -v logs what happens to each message, -vv everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = COMMON)]
    verbose: u8,
    /// Log in JSON, one object per line.
    #[arg(long, global = true, help_heading = COMMON)]
    log_json: bool,
}

impl CommonArgs {
    /// Options of a program of its own that takes these two.
    pub fn from_settings(settings: Option<PathBuf>, set: Vec<String>) -> Self {
        Self { settings, set, ..Self::default() }
    }
}

#[derive(Subcommand)]
enum Command {
    Up(up::UpArgs),
    Join(fleet_cmd::JoinArgs),
    Fleet(fleet_cmd::FleetArgs),
    Site(fleet_cmd::SiteArgs),
    Camera(camera_cmd::CameraArgs),
    Setup(setup::SetupArgs),
    Publish(publish::PublishArgs),
    Answers(answers::AnswersArgs),
    Status(status::StatusArgs),
    Tap(tap::TapArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Audit(audit::AuditArgs),
    Policy(policy::PolicyArgs),
    Drift(drift::DriftArgs),
    #[command(name = "hardcases")]
    HardCases(hardcases::HardCasesArgs),
    Label(label::LabelArgs),
    Key(key::KeyArgs),
    Doctor(doctor::DoctorArgs),
    Config(config::ConfigArgs),
    #[command(subcommand)]
    Model(model::ModelCommand),
    Train(train::TrainArgs),
    Scale(scale::ScaleArgs),
    Export(export::ExportArgs),
    Evaluate(evaluate::EvaluateArgs),
    Backtest(backtest::BacktestArgs),
    Pin(pin::PinSetArgs),
    Republish(republish::RepublishArgs),
    Retrain(retrain::RetrainArgs),
    Retention(retention::RetentionArgs),
    Round(round::RoundArgs),
    Release(release::ReleaseArgs),
    Demo(demo::DemoArgs),
    /// Run a site's grabber, which takes pictures from its cameras (`[[camera]]`) and publishes those worth recognizing.
    Grabber,
    /// Run a site's recognizer on an existing nats-server.
    Recognizer(roles::ModelArgs),
    /// Run a site's courier, which carries messages between site and cloud.
    Courier,
    /// Run a verifier in the cloud, which answers what sites send up.
    Verifier(roles::ModelArgs),
    /// Run a site's trainer, which learns from labelled images and sends weights.
    Trainer(roles::ModelArgs),
    /// Run a model's aggregator, which merges the sites' updates into releases.
    Aggregator(roles::AggregatorArgs),
    /// Run the rollout controller: canary each release on a few sites, then promote or withdraw it.
    Releaser,
    /// Run a site's janitor, which purges answered images and audits outcomes.
    Janitor,
    /// Run a site's notifier, which publishes final answers as JSON over NATS and MQTT.
    Notifier,
    /// Try a release in this process; for tributary's own use.
    #[command(name = releases::trial::COMMAND, hide = true)]
    TryRelease,
}

impl Command {
    /// Whether the command starts servers of its own, whose settings are its own, too.
    fn starts_servers(&self) -> bool {
        matches!(self, Command::Up(_) | Command::Join(_) | Command::Demo(_))
    }

    /// Whether the command runs until it is stopped.
    fn is_worker(&self) -> bool {
        matches!(
            self,
            Command::Up(_)
                | Command::Join(_)
                | Command::Grabber
                | Command::Recognizer(_)
                | Command::Courier
                | Command::Verifier(_)
                | Command::Trainer(_)
                | Command::Aggregator(_)
                | Command::Releaser
                | Command::Janitor
                | Command::Notifier
        )
    }
}

/// Parses the command line, runs the command and returns the status of the process.
pub fn run_command_line() -> ExitCode {
    let cli = Cli::parse();
    let level = match (cli.common.verbose, &cli.command) {
        (0, command) if command.is_worker() => "info",
        (0, _) => "warn",
        (1, _) => "debug",
        _ => "trace",
    };
    runtime::telemetry::init_logging(level, cli.common.log_json);
    os::process::set_malloc_policy(match &cli.command {
        Command::Up(_) | Command::Join(_) | Command::Recognizer(_) | Command::Verifier(_) => MallocPolicy::NothingLarge,
        _ => MallocPolicy::All,
    });
    if cli.command.is_worker() {
        // Workers and their servers write images and keys: no other user of this machine may read them.
        os::process::keep_files_private();
    }
    // Before there are threads and processes, which inherit it. Evaluating and retraining can wait for idle processors.
    let scheduled = match &cli.command {
        Command::Evaluate(_) | Command::Retrain(_) => os::scheduling::set_idle_scheduling(),
        _ => os::scheduling::set_batch_scheduling(),
    };
    if let Err(error) = scheduled {
        tracing::debug!(%error, "scheduling policy not set; continuing with default scheduling");
    }
    // Before there are other threads: the sandbox of a trial holds for the calling thread only.
    if let Command::TryRelease = &cli.command {
        return stdout::exit_code(roles::try_release());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    stdout::exit_code(runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let ended = run(cli).await;
            runtime::traces::finish(SPANS_LEAVE_WITHIN).await;
            ended
        })
    }))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    // These commands work without valid settings.
    if let Command::Config(args) = &cli.command {
        return config::command(&cli.common, args);
    }
    if let Command::Key(args) = &cli.command {
        return key::command(args);
    }
    if let Command::Fleet(args) = &cli.command {
        return fleet_cmd::fleet(args).await;
    }
    if let Command::Camera(args) = &cli.command
        && args.needs_no_settings()
    {
        return camera_cmd::look(args).await;
    }
    let load = match &cli.command {
        Command::Up(_) | Command::Join(_) | Command::Grabber | Command::Doctor(_) => settings::load,
        _ => settings::load_for_looking,
    };
    let mut loaded = load(&cli.common, &flags(&cli.command))?;
    if !cli.command.starts_servers() {
        site_target::adopt_running_up(&mut loaded);
    }
    if matches!(cli.command, Command::Up(_) | Command::Join(_)) {
        up::choose_merge_rule(&mut loaded);
    }
    if let Command::Doctor(args) = &cli.command {
        return doctor::command(&loaded, args).await;
    }
    let settings = &loaded.settings;
    settings.check()?;
    runtime::traces::start(&settings.telemetry).map_err(roles::into_anyhow)?;
    if let Some(listen) = settings.metrics.listen.filter(|_| cli.command.is_worker()) {
        runtime::metrics::serve(listen, &settings.metrics).await.map_err(roles::into_anyhow)?;
    }
    if cli.command.is_worker() {
        certificate_expiry::report_expiries(&certificate_expiry::all(settings, None));
    }
    // Only commands with messages in flight handle signals; the others just end.
    let shutdown = Shutdown::on_signals;
    match cli.command {
        Command::Up(args) => {
            let shutdown = shutdown()?;
            let cameras = camera_plan::follow_cameras(&cli.common, args.flags(), settings, &shutdown);
            up::command(settings, &args, cameras, shutdown).await
        }
        Command::Join(args) => {
            fleet_cmd::join(settings, &args)?;
            let shutdown = shutdown()?;
            let cameras = camera_plan::follow_cameras(&cli.common, args.up.flags(), settings, &shutdown);
            up::command(settings, &args.up, cameras, shutdown).await
        }
        Command::Site(args) => fleet_cmd::site(settings, &args).await,
        Command::Camera(args) => camera_cmd::command(&loaded, &args).await,
        Command::Setup(args) => setup::command(&loaded, &args).await,
        Command::Publish(args) => publish::command(&loaded, &args, shutdown()?).await,
        Command::Answers(args) => answers::command(&loaded, &args).await,
        Command::Status(args) => status::command(&loaded, &args).await,
        Command::Tap(args) => tap::command(&loaded, &args).await,
        Command::DeadLetters(args) => dead_letters::command(&loaded, args).await,
        Command::Audit(args) => audit::command(&loaded, &args).await,
        Command::Policy(args) => policy::command(&loaded, &args).await,
        Command::Drift(args) => drift::command(&loaded, &args).await,
        Command::HardCases(args) => hardcases::command(&loaded, &args).await,
        Command::Label(args) => label::command(&loaded, &args).await,
        Command::Model(command) => model::command(settings, command).await,
        Command::Train(args) => train::command(settings, &args, shutdown()?).await,
        Command::Scale(args) => scale::command(&loaded, &args).await,
        Command::Export(args) => export::command(&loaded, &args, shutdown()?).await,
        Command::Evaluate(args) => evaluate::command(&loaded, &args, shutdown()?).await,
        Command::Backtest(args) => backtest::command(&loaded, &args).await,
        Command::Pin(args) => pin::command(&loaded, &args, shutdown()?).await,
        Command::Republish(args) => republish::command(&loaded, &args, shutdown()?).await,
        Command::Retrain(args) => retrain::command(&loaded, &args, shutdown()?).await,
        Command::Retention(args) => retention::command(&loaded, &args).await,
        Command::Round(args) => round::command(&loaded, &args).await,
        Command::Release(args) => release::command(&loaded, &args).await,
        Command::Demo(args) => demo::command(settings, &args, shutdown()?).await,
        Command::Grabber => {
            let shutdown = shutdown()?;
            let cameras = camera_plan::follow_cameras(&cli.common, Vec::new(), settings, &shutdown);
            roles::grabber(&loaded, cameras, shutdown).await
        }
        Command::Recognizer(_) => roles::recognizer(&loaded, shutdown()?).await,
        Command::Courier => roles::courier(&loaded, shutdown()?).await,
        Command::Verifier(_) => roles::verifier(&loaded, shutdown()?).await,
        Command::Trainer(_) => roles::trainer(&loaded, shutdown()?).await,
        Command::Aggregator(_) => roles::aggregator(&loaded, shutdown()?).await,
        Command::Releaser => roles::releaser(&loaded, shutdown()?).await,
        Command::Janitor => roles::janitor(&loaded, shutdown()?).await,
        Command::Notifier => roles::notifier(&loaded, shutdown()?).await,
        Command::Doctor(_) | Command::Config(_) | Command::Key(_) | Command::Fleet(_) | Command::TryRelease => Ok(()),
    }
}

/// The settings that a command's own flags override.
fn flags(command: &Command) -> Vec<(String, serde_json::Value)> {
    match command {
        Command::Up(args) => args.flags(),
        Command::Join(args) => args.up.flags(),
        Command::Publish(args) => args.flags(),
        Command::Train(args) => args.flags(),
        Command::Retrain(args) => args.flags(),
        Command::Recognizer(args) => args.flags(Role::Recognizer),
        Command::Verifier(args) => args.flags(Role::Verifier),
        Command::Trainer(args) => args.flags(Role::Trainer),
        Command::Aggregator(args) => args.flags(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// An argument of a command whose id is that of a common option silently takes its place.
    #[test]
    fn every_command_takes_the_common_options() {
        fn check(command: &clap::Command, common: &[clap::Id]) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                for id in common {
                    // `round open --site` asks several sites.
                    let is_replaced = (sub.get_name(), id.as_str()) == ("open", "site");
                    let found = sub.get_arguments().find(|argument| argument.get_id() == id);
                    let is_common = found.is_some_and(|argument| argument.is_global_set());
                    assert!(is_common || is_replaced, "{} has another {id}", sub.get_name());
                }
                check(sub, common);
            }
        }
        let mut command = Cli::command();
        command.build();
        let common: Vec<clap::Id> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.get_id().clone())
            .collect();
        assert!(common.len() >= 7, "{common:?}");
        check(&command, &common);
    }

    #[test]
    fn round_open_takes_several_sites() {
        let cli = Cli::try_parse_from(["tributary", "round", "open", "--site", "a", "--site", "b"]).unwrap();
        assert!(matches!(cli.command, Command::Round(_)));
        assert_eq!(cli.common.site.as_deref(), Some("a"));
    }
}
