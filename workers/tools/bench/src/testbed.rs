//! A site and a cloud with a shaped link between them: a hub and a leaf server, and the workers of both sides, each in
//! its own process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use recognizer::signals::{POLICY_NOTE, PolicyOverride};
use runtime::Shutdown;
use schemas::{Heartbeat, Prediction, Role, SiteName};
use streams::fleet::{self, Ledger};
use streams::server::{ClientListener, Durability, LINK_USER, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Bus, NatsSettings, reader};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::error::BenchError;
use crate::fake_cloud::{self, CloudPredictions, FakeCloudPace};
use crate::link_shaper::{LinkShape, LinkShaper, LinkState};
use crate::policy::measured::MeasuredPolicy;
use crate::worker::BenchWorker;
use os::process;

/// JetStream domain of the cloud.
const CLOUD: &str = "cloud";
/// Time limit for workers to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Configuration of a testbed.
#[derive(Debug, Clone)]
pub(crate) struct TestbedConfig {
    /// Folder of the stores; its creator removes it.
    pub folder: PathBuf,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Absolute path of the site's model folder.
    pub edge: PathBuf,
    /// Absolute path of the cloud's model folder.
    pub cloud: PathBuf,
    /// Speed of a simulated cloud; the real verifier runs if absent.
    pub pace: Option<FakeCloudPace>,
    /// Predictions of the simulated cloud, by image.
    pub predictions: Arc<CloudPredictions>,
    /// Prediction of the simulated cloud for any other image.
    pub unknown: Prediction,
    /// Additional settings of the recognizer, as `key=value`.
    pub set: Vec<String>,
}

enum TestbedVerifier {
    Real(BenchWorker),
    Simulated { stalled: watch::Sender<bool>, _task: AbortOnDropHandle<()> },
}

/// A running site and cloud. Dropping it stops all processes.
pub(crate) struct Testbed {
    // Fields drop in this order: workers stop before their servers.
    recognizer: Option<BenchWorker>,
    /// Whether the recognizer is the bench's own, which runs a baseline policy.
    is_baseline: bool,
    courier: Option<BenchWorker>,
    verifier: TestbedVerifier,
    /// Connection to the site's server.
    pub site_bus: Bus,
    /// Connection to the cloud's server.
    pub cloud_bus: Bus,
    /// The link between the two servers.
    pub link: LinkShaper,
    /// Name of the site.
    pub name: SiteName,
    leaf: Server,
    hub: Server,
    config: TestbedConfig,
}

/// CPU time used by each side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuUsage {
    /// Site: its server, recognizer and courier.
    pub site: Duration,
    /// Cloud: its server and verifier.
    pub cloud: Duration,
}

impl Testbed {
    /// Starts servers and workers, and waits until they accept work. `label`: name of the folder for the stores.
    pub(crate) async fn start(label: &str, config: TestbedConfig) -> Result<Self, BenchError> {
        let name = SiteName::default_site();
        let folder = config.folder.join(label);
        let settings = |server: &str, leaf| ServerSettings {
            encryption_key: None,
            program: config.nats_server.clone(),
            store: folder.join(server),
            name: server.into(),
            domain: Some(server.into()),
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability: Durability::Fast,
            max_store_bytes: streams::topology::default_store_bytes(),
            leaf,
            site: None,
            entry: ClientListener::default(),
        };
        let unlimited = LinkShape { rate_bytes_per_s: None, delay_ms: 0.0, jitter_ms: 0.0, state: LinkState::Open };
        let hub = start_server(settings(CLOUD, LeafMode::Hub(vec![name.clone()]))).await?;
        let cloud_bus = create_streams(&hub, &PlanScope::Cloud(vec![name.clone()])).await?;
        let link = LinkShaper::start(SocketAddr::from(([127, 0, 0, 1], hub.leaf_port())), unlimited).await?;
        let address = hub.leaf_url(&name, link.port()).unwrap_or_default();
        let leaf = start_server(settings(name.as_str(), LeafMode::Of(address))).await?;
        let site_bus = create_streams(&leaf, &PlanScope::Site(name.clone())).await?;
        let verifier = match config.pace {
            None => {
                let mut arguments = vec!["--nats".into(), hub.url()];
                arguments.extend(["--model".into(), config.cloud.display().to_string()]);
                arguments.extend(library_arguments(&config));
                TestbedVerifier::Real(BenchWorker::start("verifier", &folder, &arguments)?)
            }
            Some(pace) => {
                let (stalled, stalled_receiver) = watch::channel(false);
                let (predictions, unknown) = (config.predictions.clone(), config.unknown.clone());
                let task = tokio::spawn(fake_cloud::run(
                    cloud_bus.clone(),
                    pace,
                    predictions,
                    unknown,
                    stalled_receiver,
                    Shutdown::default(),
                ));
                TestbedVerifier::Simulated { stalled, _task: AbortOnDropHandle::new(task) }
            }
        };
        let mut testbed = Self {
            recognizer: None,
            is_baseline: false,
            courier: None,
            verifier,
            site_bus,
            cloud_bus,
            link,
            name,
            leaf,
            hub,
            config,
        };
        testbed.restart_recognizer(None)?;
        testbed.restart_courier(&folder)?;
        testbed
            .wait_for_heartbeats("the recognizer, courier and verifier to start", |heartbeats| {
                let has = |role: Role| heartbeats.iter().any(|heartbeat| heartbeat.role == role);
                let knows_cloud = |heartbeat: &Heartbeat| heartbeat.link.is_some_and(|link| link.cloud.is_some());
                has(Role::Recognizer) && heartbeats.iter().any(knows_cloud)
            })
            .await?;
        Ok(testbed)
    }

    /// Replaces the running recognizer. `baseline`: arguments of the bench's own recognizer; absent, the product's.
    fn restart_recognizer(&mut self, baseline: Option<&[String]>) -> Result<(), BenchError> {
        // Two recognizers at a time would share the images.
        self.recognizer = None;
        let config = &self.config;
        let mut arguments = site_arguments(&self.leaf, &self.name);
        arguments.extend(["--model".into(), config.edge.display().to_string()]);
        arguments.extend(library_arguments(config));
        arguments.extend(config.set.iter().flat_map(|setting| ["--set".into(), setting.clone()]));
        self.recognizer = Some(match baseline {
            None => BenchWorker::start("recognizer", &config.folder, &arguments)?,
            Some(more) => BenchWorker::start_own("baseline", &config.folder, &[&arguments, more].concat())?,
        });
        self.is_baseline = baseline.is_some();
        Ok(())
    }

    fn restart_courier(&mut self, folder: &Path) -> Result<(), BenchError> {
        self.courier = None;
        self.courier = Some(BenchWorker::start("courier", folder, &site_arguments(&self.leaf, &self.name))?);
        Ok(())
    }

    /// Changes the link's shape; restarts the courier so that it forgets what it measured before.
    pub(crate) async fn replace_link(&mut self, shape: LinkShape) -> Result<(), BenchError> {
        self.link.set(LinkShape { state: LinkState::Open, ..shape });
        let folder = self.config.folder.clone();
        self.restart_courier(&folder)?;
        let started_ms = runtime::clock::now_ms();
        self.wait_for_heartbeats("the courier to measure the link", |heartbeats| {
            let new = heartbeats.iter().filter(|heartbeat| heartbeat.sent_at_ms > started_ms + 500);
            new.filter_map(|heartbeat| heartbeat.link).any(|link| link.cloud.is_some())
        })
        .await
    }

    /// Sets the policy and waits until the recognizer applies it. `share`: share of images to upload, for a baseline.
    pub(crate) async fn choose_policy(&mut self, policy: MeasuredPolicy, share: Option<f64>) -> Result<(), BenchError> {
        let started_ms = runtime::clock::now_ms();
        let name = match policy {
            MeasuredPolicy::Product(name) => name,
            MeasuredPolicy::Baseline(_) => {
                let share = share.unwrap_or_default().to_string();
                self.restart_recognizer(Some(&["--rule".into(), policy.to_string(), "--share".into(), share]))?;
                let is_new =
                    |heartbeat: &Heartbeat| heartbeat.role == Role::Recognizer && heartbeat.sent_at_ms > started_ms;
                let what = "the baseline recognizer to start";
                return self.wait_for_heartbeats(what, |heartbeats| heartbeats.iter().any(is_new)).await;
            }
        };
        if self.is_baseline {
            self.restart_recognizer(None)?;
        }
        let chosen = PolicyOverride { name };
        Ledger::open(&self.site_bus).await?.write(POLICY_NOTE, serde_json::to_string(&chosen)?).await?;
        self.wait_for_heartbeats("the recognizer to apply the policy", |heartbeats| {
            let new = heartbeats.iter().filter(|heartbeat| heartbeat.sent_at_ms > started_ms);
            new.filter_map(|heartbeat| heartbeat.decision.as_ref()).any(|decision| decision.policy == name.as_str())
        })
        .await
    }

    /// Waits until the courier reports the link as up, or as down.
    pub(crate) async fn wait_for_link(&self, up: bool) -> Result<(), BenchError> {
        self.wait_for_heartbeats("the courier to notice the state of the link", |heartbeats| {
            heartbeats.iter().any(|heartbeat| heartbeat.link.is_some_and(|link| link.up == up))
        })
        .await
    }

    /// Polls the latest heartbeats until they meet a condition. `what`: the condition, for the error.
    async fn wait_for_heartbeats(
        &self,
        what: &'static str,
        is_met: impl Fn(&[Heartbeat]) -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if is_met(&fleet::live_workers(&self.site_bus).await?) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(BenchError::NotReady { what, timeout: READY_TIMEOUT });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Late answers that the site's workers counted since they started.
    pub(crate) async fn late_answers(&self) -> Result<u64, BenchError> {
        Ok(fleet::live_workers(&self.site_bus).await?.iter().map(|beat| beat.late).sum())
    }

    /// Pauses or resumes the recognizer's process.
    pub(crate) fn set_recognizer_paused(&self, paused: bool) {
        if let Some(recognizer) = &self.recognizer {
            recognizer.set_paused(paused);
        }
    }

    /// Makes the verifier stop answering requests, or answer again.
    pub(crate) fn set_cloud_stalled(&self, stalled: bool) {
        match &self.verifier {
            TestbedVerifier::Real(worker) => worker.set_paused(stalled),
            TestbedVerifier::Simulated { stalled: state, .. } => drop(state.send_replace(stalled)),
        }
    }

    /// Deletes all messages of images, answers, requests and verdicts.
    pub(crate) async fn purge_streams(&self) -> Result<(), BenchError> {
        for (bus, streams) in [
            (&self.site_bus, [topology::IMAGES, topology::OUTBOX, topology::ANSWERS]),
            (&self.cloud_bus, [topology::VERIFY, topology::VERDICTS, topology::HARDCASES]),
        ] {
            for stream in streams {
                let level = reader::stream_level(bus, stream).await?;
                if level.messages > 0 {
                    reader::purge_before(bus, stream, level.last_sequence + 1).await?;
                }
            }
        }
        Ok(())
    }

    /// CPU time used so far.
    pub(crate) fn cpu_usage(&self) -> CpuUsage {
        let time_of = |process: Option<u32>| process.and_then(process::cpu_time).unwrap_or_default();
        let courier = self.courier.as_ref().map(BenchWorker::process);
        let verifier = match &self.verifier {
            TestbedVerifier::Real(worker) => Some(worker.process()),
            TestbedVerifier::Simulated { .. } => None,
        };
        CpuUsage {
            site: time_of(self.leaf.process())
                + time_of(self.recognizer.as_ref().map(BenchWorker::process))
                + time_of(courier),
            cloud: time_of(self.hub.process()) + time_of(verifier),
        }
    }
}

/// Arguments of a worker of the site.
fn site_arguments(leaf: &Server, name: &SiteName) -> Vec<String> {
    let mut pairs =
        vec![format!("nats.url={}", leaf.url()), format!("site={name}"), format!("nats.cloud_domain={CLOUD}")];
    if let Some(password) = leaf.link_password() {
        pairs.extend([format!("nats.link_user={LINK_USER}"), format!("nats.link_password={password}")]);
    }
    pairs.into_iter().flat_map(|pair| ["--set".into(), pair]).collect()
}

fn library_arguments(config: &TestbedConfig) -> Vec<String> {
    let settings = config.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display()));
    settings.flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

async fn start_server(settings: ServerSettings) -> Result<Server, BenchError> {
    Ok(tokio::task::spawn_blocking(move || Server::start(&settings)).await??)
}

async fn create_streams(server: &Server, scope: &PlanScope) -> Result<Bus, BenchError> {
    let bus = Bus::connect(&NatsSettings { url: server.url(), ..NatsSettings::default() }, "bench").await?;
    topology::apply_plan(&bus, &topology::plan_topology(scope, &StreamSettings::default()), RepairMode::Missing)
        .await?;
    Ok(bus)
}
