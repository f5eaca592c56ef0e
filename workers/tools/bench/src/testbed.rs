//! A site and a cloud with a shaped link between them: a hub and a leaf server, and the workers of both sides
//! in processes of their own.

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
/// How long workers may take to become ready.
const TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a field consists of.
#[derive(Debug, Clone)]
pub(crate) struct TestbedConfig {
    /// Folder of the stores; removed by whoever made it.
    pub folder: PathBuf,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Folder of the site's model, absolute.
    pub edge: PathBuf,
    /// Folder of the cloud's model, absolute.
    pub cloud: PathBuf,
    /// A cloud with a pace of its own instead of the real verifier.
    pub pace: Option<FakeCloudPace>,
    /// What that one says.
    pub predictions: Arc<CloudPredictions>,
    /// And about what it does not know.
    pub unknown: Prediction,
    /// More settings of the recognizer, as `key=value`.
    pub set: Vec<String>,
}

enum TestbedVerifier {
    Real(BenchWorker),
    Paced { stalled: watch::Sender<bool>, _running: AbortOnDropHandle<()> },
}

/// A site and a cloud that run. Dropping it stops everything.
pub(crate) struct Testbed {
    // Workers end before their servers.
    recognizer: Option<BenchWorker>,
    /// Whether it is the bench's own, with a policy that is only compared with.
    is_baseline: bool,
    courier: Option<BenchWorker>,
    verifier: TestbedVerifier,
    /// The site's own domain.
    pub here: Bus,
    /// The cloud's server.
    pub cloud: Bus,
    /// What lies between them.
    pub link: LinkShaper,
    /// Name of the site.
    pub name: SiteName,
    leaf: Server,
    hub: Server,
    ground: TestbedConfig,
}

/// Processor time used on each side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuUsage {
    /// Site: its server, recognizer and courier.
    pub site: Duration,
    /// Cloud: its server and verifier.
    pub cloud: Duration,
}

impl Testbed {
    /// Starts everything and waits until it takes work.
    pub(crate) async fn start(label: &str, ground: TestbedConfig) -> Result<Self, BenchError> {
        let name = SiteName::default_site();
        let folder = ground.folder.join(label);
        let settings = |server: &str, leaf| ServerSettings {
            encryption_key: None,
            program: ground.nats_server.clone(),
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
        let open = LinkShape { rate_bytes_per_s: None, delay_ms: 0.0, jitter_ms: 0.0, state: LinkState::Open };
        let hub = serve(settings(CLOUD, LeafMode::Hub(vec![name.clone()]))).await?;
        let cloud = set_up(&hub, &PlanScope::Cloud(vec![name.clone()])).await?;
        let link = LinkShaper::start(SocketAddr::from(([127, 0, 0, 1], hub.leaf_port())), open).await?;
        let address = hub.leaf_url(&name, link.port()).unwrap_or_default();
        let leaf = serve(settings(name.as_str(), LeafMode::Of(address))).await?;
        let here = set_up(&leaf, &PlanScope::Site(name.clone())).await?;
        let verifier = match ground.pace {
            None => {
                let mut arguments = vec!["--nats".into(), hub.url()];
                arguments.extend(["--model".into(), ground.cloud.display().to_string()]);
                arguments.extend(library(&ground));
                TestbedVerifier::Real(BenchWorker::start("verifier", &folder, &arguments)?)
            }
            Some(pace) => {
                let (stalled, seen) = watch::channel(false);
                let (predictions, unknown) = (ground.predictions.clone(), ground.unknown.clone());
                let running =
                    tokio::spawn(fake_cloud::run(cloud.clone(), pace, predictions, unknown, seen, Shutdown::default()));
                TestbedVerifier::Paced { stalled, _running: AbortOnDropHandle::new(running) }
            }
        };
        let (recognizer, is_baseline) = (None, false);
        let mut field =
            Self { recognizer, is_baseline, courier: None, verifier, here, cloud, link, name, leaf, hub, ground };
        field.renew_recognizer(None)?;
        field.renew_courier(&folder)?;
        field
            .ready("a recognizer, a courier and a verifier at work", |beats| {
                let has = |role: Role| beats.iter().any(|beat| beat.role == role);
                has(Role::Recognizer) && beats.iter().any(|beat| beat.link.is_some_and(|link| link.cloud.is_some()))
            })
            .await?;
        Ok(field)
    }

    /// Starts another recognizer in place of the running one; `baseline`: the bench's own, with these arguments.
    fn renew_recognizer(&mut self, baseline: Option<&[String]>) -> Result<(), BenchError> {
        // Two at a time would share the images.
        self.recognizer = None;
        let ground = &self.ground;
        let mut arguments = at(&self.leaf, &self.name);
        arguments.extend(["--model".into(), ground.edge.display().to_string()]);
        arguments.extend(library(ground));
        arguments.extend(ground.set.iter().flat_map(|setting| ["--set".into(), setting.clone()]));
        self.recognizer = Some(match baseline {
            None => BenchWorker::start("recognizer", &ground.folder, &arguments)?,
            Some(more) => BenchWorker::start_own("baseline", &ground.folder, &[&arguments, more].concat())?,
        });
        self.is_baseline = baseline.is_some();
        Ok(())
    }

    fn renew_courier(&mut self, folder: &Path) -> Result<(), BenchError> {
        self.courier = None;
        self.courier = Some(BenchWorker::start("courier", folder, &at(&self.leaf, &self.name))?);
        Ok(())
    }

    /// A link of another kind: the courier begins anew, so that it knows nothing of the one before.
    pub(crate) async fn replace_link(&mut self, shape: LinkShape) -> Result<(), BenchError> {
        self.link.set(LinkShape { state: LinkState::Open, ..shape });
        let folder = self.ground.folder.clone();
        self.renew_courier(&folder)?;
        let started_ms = runtime::clock::now_ms();
        self.ready("a courier that knows the link", |beats| {
            let courier = beats.iter().filter(|beat| beat.sent_at_ms > started_ms + 500);
            courier.filter_map(|beat| beat.link).any(|link| link.cloud.is_some())
        })
        .await
    }

    /// Chooses a policy and waits until the recognizer goes by it.
    pub(crate) async fn choose_policy(&mut self, policy: MeasuredPolicy, share: Option<f64>) -> Result<(), BenchError> {
        let started_ms = runtime::clock::now_ms();
        let name = match policy {
            MeasuredPolicy::Product(name) => name,
            MeasuredPolicy::Baseline(_) => {
                let share = share.unwrap_or_default().to_string();
                self.renew_recognizer(Some(&["--rule".into(), policy.to_string(), "--share".into(), share]))?;
                let is_new = |beat: &Heartbeat| beat.role == Role::Recognizer && beat.sent_at_ms > started_ms;
                return self.ready("a baseline at work", |beats| beats.iter().any(is_new)).await;
            }
        };
        if self.is_baseline {
            self.renew_recognizer(None)?;
        }
        let chosen = PolicyOverride { name };
        Ledger::open(&self.here).await?.write(POLICY_NOTE, serde_json::to_string(&chosen)?).await?;
        self.ready("the policy in force", |beats| {
            let new = beats.iter().filter(|beat| beat.sent_at_ms > started_ms);
            new.filter_map(|beat| beat.decision.as_ref()).any(|decision| decision.policy == name.as_str())
        })
        .await
    }

    /// Waits until the courier says that the link is so.
    pub(crate) async fn wait_for_link(&self, up: bool) -> Result<(), BenchError> {
        self.ready("the link known to be as it is", |beats| {
            beats.iter().any(|beat| beat.link.is_some_and(|link| link.up == up))
        })
        .await
    }

    async fn ready(&self, what: &'static str, is: impl Fn(&[Heartbeat]) -> bool) -> Result<(), BenchError> {
        let until = Instant::now() + TIMEOUT;
        loop {
            let beats = fleet::live_workers(&self.here).await?;
            if is(&beats) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(BenchError::NotReady { what, timeout: TIMEOUT });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Late answers that the site's workers counted since they started.
    pub(crate) async fn late_answers(&self) -> Result<u64, BenchError> {
        Ok(fleet::live_workers(&self.here).await?.iter().map(|beat| beat.late).sum())
    }

    /// Stops the recognizer where it is, or lets it go on.
    pub(crate) fn pause_recognizer(&self, held: bool) {
        if let Some(recognizer) = &self.recognizer {
            recognizer.stop_process(held);
        }
    }

    /// Lets the verifiers take requests and not answer them, or lets them go on.
    pub(crate) fn stall_cloud(&self, stalled: bool) {
        match &self.verifier {
            TestbedVerifier::Real(worker) => worker.stop_process(stalled),
            TestbedVerifier::Paced { stalled: state, .. } => drop(state.send_replace(stalled)),
        }
    }

    /// Empties every stream.
    pub(crate) async fn clear(&self) -> Result<(), BenchError> {
        for (bus, streams) in [
            (&self.here, [topology::IMAGES, topology::OUTBOX, topology::ANSWERS]),
            (&self.cloud, [topology::VERIFY, topology::VERDICTS, topology::HARDCASES]),
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

    /// Processor time used so far.
    pub(crate) fn cpu_usage(&self) -> CpuUsage {
        let of = |process: Option<u32>| process.and_then(process::cpu_time).unwrap_or_default();
        let courier = self.courier.as_ref().map(BenchWorker::process);
        let verifier = match &self.verifier {
            TestbedVerifier::Real(worker) => Some(worker.process()),
            TestbedVerifier::Paced { .. } => None,
        };
        CpuUsage {
            site: of(self.leaf.process()) + of(self.recognizer.as_ref().map(BenchWorker::process)) + of(courier),
            cloud: of(self.hub.process()) + of(verifier),
        }
    }
}

fn at(leaf: &Server, name: &SiteName) -> Vec<String> {
    let mut pairs =
        vec![format!("nats.url={}", leaf.url()), format!("site={name}"), format!("nats.cloud_domain={CLOUD}")];
    if let Some(password) = leaf.link_password() {
        pairs.extend([format!("nats.link_user={LINK_USER}"), format!("nats.link_password={password}")]);
    }
    pairs.into_iter().flat_map(|pair| ["--set".into(), pair]).collect()
}

fn library(ground: &TestbedConfig) -> Vec<String> {
    let setting = ground.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display()));
    setting.flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

async fn serve(settings: ServerSettings) -> Result<Server, BenchError> {
    Ok(tokio::task::spawn_blocking(move || Server::start(&settings)).await??)
}

async fn set_up(server: &Server, place: &PlanScope) -> Result<Bus, BenchError> {
    let bus = Bus::connect(&NatsSettings { url: server.url(), ..NatsSettings::default() }, "bench").await?;
    topology::apply_plan(&bus, &topology::plan_topology(place, &StreamSettings::default()), RepairMode::Missing)
        .await?;
    Ok(bus)
}
