//! The one binary: one file a subcommand, no logic of a role.

mod answers;
mod audit;
mod bench_cmd;
mod camera;
mod certificate_expiry;
mod config;
mod dead;
mod demo;
mod doctor;
mod drift;
mod fleet_cmd;
mod format;
mod hardcases;
mod key;
mod label;
mod model;
mod policy;
mod publish;
mod release;
mod replay;
mod retention;
mod retrain;
mod roles;
mod round;
mod scale;
mod settings;
mod setup;
mod site_target;
mod status;
mod stdout;
mod tap;
mod train;
mod up;

use schemas::Role;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use os::process::MallocPolicy;
use runtime::Shutdown;

/// How long the end waits for a collector of traces.
const SPANS_LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Recognize images at the edge, verify the doubtful ones in the cloud.
///
/// Start everything on this machine with `tributary up --model DIR`, then publish images from
/// another terminal with `tributary publish FOLDER --camera NAME` and read answers with `tributary answers`.
#[derive(Parser)]
#[command(name = "tributary", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Args)]
pub(crate) struct CommonArgs {
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
    Join(fleet_cmd::JoinArgs),
    Fleet(fleet_cmd::FleetArgs),
    Site(fleet_cmd::SiteArgs),
    Camera(camera::CameraArgs),
    Setup(setup::SetupArgs),
    Publish(publish::PublishArgs),
    Answers(answers::AnswersArgs),
    Status(status::StatusArgs),
    Tap(tap::TapArgs),
    Dead(dead::DeadArgs),
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
    Replay(replay::ReplayArgs),
    Retrain(retrain::RetrainArgs),
    Retention(retention::RetentionArgs),
    Round(round::RoundArgs),
    Release(release::ReleaseArgs),
    Demo(demo::DemoArgs),
    Bench(bench_cmd::BenchArgs),
    /// Run a site's recognizer on an existing nats-server.
    Recognizer(roles::ModelArgs),
    /// Run a site's courier on an existing nats-server.
    Courier,
    /// Run a verifier in the cloud on an existing nats-server.
    Verifier(roles::ModelArgs),
    /// Run a site's trainer on an existing nats-server: it learns from the site's labelled images and sends weights.
    Trainer(roles::ModelArgs),
    /// Run a model's rounds in the cloud, on an existing nats-server: what sites learned becomes releases.
    Aggregator(roles::AggregatorArgs),
    /// Let releases out in the cloud, on an existing nats-server: each is tried by a few sites before all have it.
    Releaser,
    /// Run a site's janitor on an existing nats-server.
    Janitor,
    /// Tell a site's final answers in JSON, over NATS and MQTT, on an existing nats-server.
    Notifier,
    /// Try a release; for tributary's own use.
    #[command(name = releases::trial::COMMAND, hide = true)]
    TryRelease,
}

impl Command {
    /// Whether it works until it is told to stop.
    fn is_worker(&self) -> bool {
        matches!(
            self,
            Command::Up(_)
                | Command::Join(_)
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

fn main() -> ExitCode {
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
        // What a worker keeps, pictures among it, and what its server keeps, is nobody else's on this machine.
        os::process::keep_files_private();
    }
    // Before there is a thread or a process that could inherit it. A model that is asked once more, or trained, is in no hurry.
    let scheduled = match &cli.command {
        Command::Replay(args) if args.compares_model() => os::scheduling::set_idle_scheduling(),
        Command::Retrain(_) => os::scheduling::set_idle_scheduling(),
        _ => os::scheduling::set_batch_scheduling(),
    };
    if let Err(error) = scheduled {
        tracing::debug!(%error, "the kernel schedules us as anybody else");
    }
    // Before there are other threads, which the kernel would not keep to the model's files.
    if let Command::TryRelease = &cli.command {
        return stdout::is_closed(roles::try_release());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    stdout::is_closed(runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let ended = run(cli).await;
            runtime::traces::finish(SPANS_LEAVE_WITHIN).await;
            ended
        })
    }))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    // These two look at settings that may be wrong.
    if let Command::Config(args) = &cli.command {
        return config::command(&cli.common, args);
    }
    if let Command::Key(args) = &cli.command {
        return key::command(args);
    }
    if let Command::Fleet(args) = &cli.command {
        return fleet_cmd::fleet(args).await;
    }
    let loaded = settings::load(&cli.common, &flags(&cli.command))?;
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
    // Only those that finish what is in hand want to hear of signals; the others just end.
    let shutdown = Shutdown::on_signals;
    match cli.command {
        Command::Up(args) => up::command(settings, &args, shutdown()?).await,
        Command::Join(args) => {
            fleet_cmd::join(settings, &args)?;
            up::command(settings, &args.up, shutdown()?).await
        }
        Command::Site(args) => fleet_cmd::site(settings, &args).await,
        Command::Camera(args) => camera::command(&loaded, &args).await,
        Command::Setup(args) => setup::command(&loaded, &args).await,
        Command::Publish(args) => publish::command(&loaded, &args, shutdown()?).await,
        Command::Answers(args) => answers::command(&loaded, &args).await,
        Command::Status(args) => status::command(&loaded, &args).await,
        Command::Tap(args) => tap::command(&loaded, &args).await,
        Command::Dead(args) => dead::command(&loaded, args).await,
        Command::Audit(args) => audit::command(&loaded, &args).await,
        Command::Policy(args) => policy::command(&loaded, &args).await,
        Command::Drift(args) => drift::command(&loaded, &args).await,
        Command::HardCases(args) => hardcases::command(&loaded, &args).await,
        Command::Label(args) => label::command(&loaded, &args).await,
        Command::Model(command) => model::command(settings, command).await,
        Command::Train(args) => train::command(settings, &args, shutdown()?).await,
        Command::Scale(args) => scale::command(&loaded, &args).await,
        Command::Replay(args) => replay::command(&loaded, &args, shutdown()?).await,
        Command::Retrain(args) => retrain::command(&loaded, &args, shutdown()?).await,
        Command::Retention(args) => retention::command(&loaded, &args).await,
        Command::Round(args) => round::command(&loaded, &args).await,
        Command::Release(args) => release::command(&loaded, &args).await,
        Command::Demo(args) => demo::command(settings, &args, shutdown()?).await,
        Command::Bench(args) => bench_cmd::command(settings, &args, shutdown()?).await,
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

/// Settings that a command's own flags stand for.
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
