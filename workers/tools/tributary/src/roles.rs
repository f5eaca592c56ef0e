//! One role on an existing server.

use schemas::Role;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use grabber::CameraPlan;
use releases::trial::TrialRunner;
use runtime::settings::LoadedSettings;
use runtime::{Fault, Shutdown, clock};
use serving::serving_model::ServingModel;
use streams::{Bus, NatsSettings, ReleaseStore};
use tokio::sync::watch;
use vision::{Head, InferenceSettings, Model, OnnxRuntime};

use crate::settings::Settings;
use crate::{site_target, stdout};

/// The model that a role runs.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Folder of the model: model.toml, graph.onnx and labels.txt, or a Hugging Face export.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// The settings that the flags override.
    pub fn flags(&self, role: Role) -> Vec<(String, serde_json::Value)> {
        let model = self.model.iter().map(|model| (format!("{role}.model"), model.display().to_string().into()));
        model.collect()
    }
}

/// Options of the aggregator.
#[derive(clap::Args)]
pub struct AggregatorArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Weigh updates with this program, which reads facts on each update as JSON and writes {"weights": {"SITE":
    /// NUMBER}}.
    #[arg(long, value_name = "PROGRAM")]
    rule_command: Option<PathBuf>,
}

impl AggregatorArgs {
    /// The settings that the flags override.
    pub fn flags(&self) -> Vec<(String, serde_json::Value)> {
        let mut flags = self.model.flags(Role::Aggregator);
        if let Some(program) = &self.rule_command {
            flags.push(("aggregator.merge.rule".into(), "command".into()));
            flags.push(("aggregator.merge.command".into(), program.display().to_string().into()));
        }
        flags
    }
}

/// Loads and warms up the release that the worker served last, or the model in a folder; off the async threads.
pub async fn start(
    onnxruntime: Option<PathBuf>,
    folder: PathBuf,
    infer: InferenceSettings,
    work: PathBuf,
) -> anyhow::Result<ServingModel> {
    let loading = move || -> anyhow::Result<ServingModel> {
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        let trial = TrialRunner::of_this_program(onnxruntime);
        serving::serving_model::start_model(&onnx, &folder, &infer, &work, trial)
            .with_context(|| format!("model {}", folder.display()))
    };
    tokio::task::spawn_blocking(loading).await?
}

/// Runs a trial: reads the request from standard input, tries the release, and writes the result to standard output.
pub fn try_release() -> anyhow::Result<()> {
    let request = serde_json::from_reader(std::io::stdin().lock())
        .context("this command is for tributary's own use: it reads a request in JSON from standard input")?;
    stdout::json_line(&releases::trial::answer_trial(&request))
}

/// Loads a head, if one is configured.
pub async fn load_head(onnxruntime: Option<PathBuf>, folder: Option<PathBuf>) -> anyhow::Result<Option<Head>> {
    let Some(folder) = folder else { return Ok(None) };
    let loading = move || -> anyhow::Result<Option<Head>> {
        let model = Model::load(&folder).with_context(|| format!("head {}", folder.display()))?;
        let onnx = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
        Ok(Some(Head::open(&onnx, &model).with_context(|| format!("head {}", folder.display()))?))
    };
    tokio::task::spawn_blocking(loading).await?
}

/// Loads what a trainer starts from: the runtime, and the model on disk.
pub async fn load_to_train(settings: &Settings) -> anyhow::Result<(OnnxRuntime, Model)> {
    let folder = settings.trainer.model.clone().unwrap_or_else(|| settings.recognizer.model.clone());
    let onnxruntime = settings.onnxruntime.clone();
    let loading = move || -> anyhow::Result<(OnnxRuntime, Model)> {
        let model = Model::load(&folder).with_context(|| format!("model {}", folder.display()))?;
        Ok((OnnxRuntime::find_and_load(onnxruntime.as_deref())?, model))
    };
    tokio::task::spawn_blocking(loading).await?
}

/// Folder of the model that the aggregator runs rounds for.
pub fn model_to_merge(settings: &Settings) -> PathBuf {
    settings.aggregator.model.clone().unwrap_or_else(|| settings.recognizer.model.clone())
}

/// Loads what an aggregator starts from: the runtime, and the baseline model that sites were set up with.
pub async fn load_to_merge(settings: &Settings) -> anyhow::Result<(OnnxRuntime, Model)> {
    let (folder, onnxruntime) = (model_to_merge(settings), settings.onnxruntime.clone());
    let loading = move || -> anyhow::Result<(OnnxRuntime, Model)> {
        let model = Model::load(&folder).with_context(|| format!("model {}", folder.display()))?;
        Ok((OnnxRuntime::find_and_load(onnxruntime.as_deref())?, model))
    };
    tokio::task::spawn_blocking(loading).await?
}

/// The result of a role as an error for people.
pub fn role_result(role: Role, ended: Result<(), Fault>) -> anyhow::Result<()> {
    match ended {
        Ok(()) | Err(Fault::Wait { .. }) => Ok(()),
        Err(fault) => Err(into_anyhow(fault).context(format!("{role} stopped"))),
    }
}

/// A fault as an error for people.
pub fn into_anyhow(fault: Fault) -> anyhow::Error {
    fault.into()
}

/// How long a worker may hold a message without reporting progress.
pub fn ack_wait(settings: &Settings) -> Duration {
    Duration::from_secs(settings.streams.ack_wait_s.into())
}

async fn connect(loaded: &LoadedSettings<Settings>, role: Role) -> anyhow::Result<(Bus, NatsSettings)> {
    let nats = site_target::nats(loaded)?;
    let bus = Bus::connect_when_ready(&nats, role.as_str()).await?;
    clock::align_at_start(&bus).await;
    Ok((bus, nats))
}

/// Runs a site's recognizer.
pub async fn recognizer(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let chosen = &settings.recognizer;
    let (model, infer, work) = (chosen.model.clone(), chosen.inference(), chosen.work.clone());
    let started = start(settings.onnxruntime.clone(), model, infer, work).await?;
    let (bus, _) = connect(loaded, Role::Recognizer).await?;
    let done = recognizer::run(bus, settings.site.clone(), started, chosen, ack_wait(settings), shutdown).await;
    role_result(Role::Recognizer, done)
}

/// Runs a verifier.
pub async fn verifier(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let chosen = &settings.verifier;
    let model =
        chosen.model.clone().context("the verifier has no model: name its folder with --model or verifier.model")?;
    let started = start(settings.onnxruntime.clone(), model, chosen.infer.clone(), chosen.work.clone()).await?;
    let head = load_head(settings.onnxruntime.clone(), chosen.head.clone()).await?;
    let (bus, _) = connect(loaded, Role::Verifier).await?;
    role_result(Role::Verifier, verifier::run(bus, started, head, chosen, ack_wait(settings), shutdown).await)
}

/// Runs a site's courier.
pub async fn courier(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let (here, nats) = connect(loaded, Role::Courier).await?;
    let site = settings.site.clone();
    let cloud = here.connect_cloud(&nats, &site, "courier").await?;
    role_result(Role::Courier, courier::run(here, cloud, site, &settings.courier, ack_wait(settings), shutdown).await)
}

/// Runs a site's trainer.
pub async fn trainer(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let (onnx, model) = load_to_train(settings).await?;
    let (bus, _) = connect(loaded, Role::Trainer).await?;
    role_result(Role::Trainer, trainer::run(bus, settings.site.clone(), onnx, model, &settings.trainer, shutdown).await)
}

/// Runs a model's rounds, in the cloud.
pub async fn aggregator(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let (onnx, model) = load_to_merge(settings).await?;
    let bus = site_target::cloud(loaded, "aggregator").await?;
    let trial = TrialRunner::of_this_program(settings.onnxruntime.clone());
    role_result(Role::Aggregator, aggregator::run(bus, onnx, model, trial, &settings.aggregator, shutdown).await)
}

/// The release store.
pub fn release_store(settings: &Settings) -> anyhow::Result<ReleaseStore> {
    let url = &settings.aggregator.store;
    ReleaseStore::open(url).with_context(|| format!("release store {url}"))
}

/// Runs the rollout controller, in the cloud.
pub async fn releaser(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let store = release_store(settings)?;
    let bus = site_target::cloud(loaded, "releaser").await?;
    role_result(Role::Releaser, releaser::run(bus, store, &settings.releaser, shutdown).await)
}

/// Runs a site's grabber.
pub async fn grabber(
    loaded: &LoadedSettings<Settings>,
    cameras: watch::Receiver<CameraPlan>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (bus, _) = connect(loaded, Role::Grabber).await?;
    let site = loaded.settings.site.clone();
    role_result(Role::Grabber, grabber::run(bus, site, true, cameras, shutdown).await)
}

/// Runs a site's notifier.
pub async fn notifier(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let (bus, _) = connect(loaded, Role::Notifier).await?;
    let settings = &loaded.settings;
    role_result(Role::Notifier, notifier::run(bus, settings.site.clone(), &settings.notifier, shutdown).await)
}

/// Runs a site's janitor.
pub async fn janitor(loaded: &LoadedSettings<Settings>, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let (bus, nats) = connect(loaded, Role::Janitor).await?;
    let site = settings.site.clone();
    let cloud = match nats.cloud_domain.clone() {
        Some(domain) => Some((bus.connect_cloud(&nats, &site, "janitor").await?, domain)),
        None => None,
    };
    role_result(Role::Janitor, janitor::run(bus, site, &settings.janitor, cloud, shutdown).await)
}
