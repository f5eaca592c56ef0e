//! Policies against each other, on real servers: a hub and a leaf with a shaped link between them, the real
//! recognizer, courier and verifier. The same images arrive at the same times under each policy.
//!
//! Two parts. *Verification*: a light and a heavy classifier and labelled images; doubtful ones are verified.
//! *Offloading*: nothing is in doubt, and the question is only where the work is done; the cloud has a pace of
//! its own there, because two models on one machine would take each other's processor.

pub(crate) mod measured;
mod results;
mod scenario;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use runtime::Shutdown;
use schemas::task::{HEADER_DEADLINE, HEADER_LABEL};
use schemas::{CameraName, Prediction, ReleaseId, TaskId};
use serde_json::json;
use streams::{Publication, Publisher, subject};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, softmax};

use crate::error::BenchError;
use crate::fake_cloud::FakeCloudPace;
use crate::labelled_images::{self, LabelledImage};
use crate::link_shaper::{LinkShape, LinkState};
use crate::load_generator::schedule;
use crate::report::{BenchMachine, BenchReport};
use crate::testbed::{Testbed, TestbedConfig};
use crate::workload::Workload;
use tributary::demo::answer_listener::AnswerListener;

use measured::names::{EDGE_ONLY, RANDOM};
use results::{PolicyRun, PolicyRunOutcome};
use scenario::{ArrivalPattern, OFFLOADING, PolicyQuestion, Scenario, VERIFICATION};

/// The project's own pair.
const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
/// Images whose publishing is not acknowledged, at a time.
const PUBLISHING: usize = 64;
/// A run that takes longer is cut off, and what is open counts as it is.
const LONGEST: Duration = Duration::from_secs(60);
/// What the library waits that the baseline stands for is 12 s and more for each hard image; this is kind to it.
pub(crate) const BASELINE_TIMEOUT: Duration = Duration::from_secs(2);

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyBenchOptions {
    /// Folder of labelled images with an index.csv; the project's own if absent.
    pub images: Option<PathBuf>,
    /// Folder of the site's model; the project's own if absent.
    pub edge_model: Option<PathBuf>,
    /// Folder of the cloud's model; the project's own if absent.
    pub cloud_model: Option<PathBuf>,
    /// Milliseconds an image takes a replica of a cloud with a pace of its own; the real verifier if absent.
    pub paced_ms: Option<f64>,
    /// Folder for the servers' stores while it runs; the system's for temporary files if absent.
    pub store: Option<PathBuf>,
    /// Names of the scenarios that are measured; all if empty.
    pub scenarios: Vec<String>,
    /// In about a minute: fewer images, scenarios and policies.
    pub quick: bool,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Names of the scenarios, each once.
pub(crate) fn scenario_names() -> Vec<&'static str> {
    let mut names: Vec<_> = VERIFICATION.iter().chain(&OFFLOADING).map(|scenario| scenario.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

struct PolicyBenchEffort {
    rounds: usize,
    batch: usize,
    offloaded: usize,
    steady_s: f64,
    burst_s: f64,
}

impl PolicyBenchEffort {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { rounds: 1, batch: 60, offloaded: 60, steady_s: 1.0, burst_s: 0.3 },
            false => Self { rounds: 3, batch: 300, offloaded: 1500, steady_s: 2.0, burst_s: 0.25 },
        }
    }
}

/// Measures; takes a third of an hour, or about a minute if `quick`.
pub(crate) async fn run(options: &PolicyBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

async fn measure(options: &PolicyBenchOptions) -> Result<BenchReport, BenchError> {
    let folder = match &options.store {
        Some(folder) => tempfile::tempdir_in(folder).map_err(BenchError::file(folder))?,
        None => tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?,
    };
    let machine = BenchMachine::here(folder.path());
    let effort = PolicyBenchEffort::new(options.quick);
    print_step("preparing images and models");
    let preparing = options.clone();
    let count = effort.batch;
    let set = tokio::task::spawn_blocking(move || prepare(&preparing, count)).await??;
    let mut runs = Vec::new();

    let mut ground = set.ground(options, folder.path())?;
    let timeout_ms = BASELINE_TIMEOUT.as_millis();
    ground.set.push(format!("recognizer.policy.cloud_only_timeout_ms={timeout_ms}"));
    // The other core is the cloud's.
    ground.set.push("recognizer.infer.replicas=1".into());
    let mut field = Testbed::start("verification", ground).await?;
    let capacity_per_s = capacity(&mut field, &set.images).await?;
    print_step(&format!("the site alone recognizes {capacity_per_s:.0} images a second"));
    let bench = PolicyBench {
        part: PolicyQuestion::Verification,
        effort: &effort,
        capacity_per_s,
        images: &set.images,
        share: set.doubtful_ratio,
    };
    bench.all(&mut field, options, &mut runs).await?;
    tokio::task::spawn_blocking(move || drop(field)).await?;

    print_step("preparing the offloading of work that is too much");
    let workload = tokio::task::spawn_blocking(|| Workload::open(None, None)).await??;
    let images: Vec<LabelledImage> =
        workload.images.iter().map(|bytes| LabelledImage { bytes: bytes.clone(), label: String::new() }).collect();
    let images: Vec<LabelledImage> = images.iter().cycle().take(effort.offloaded).cloned().collect();
    let ground = TestbedConfig {
        edge: workload.model.clone(),
        pace: Some(FakeCloudPace { service_ms: 3.0, replicas: 4 }),
        opinions: Arc::default(),
        set: vec!["recognizer.infer.replicas=1".into(), "recognizer.gate.min_confidence_ratio=0".into()],
        ..set.ground(options, folder.path())?
    };
    let mut field = Testbed::start("offloading", ground).await?;
    let capacity_per_s = capacity(&mut field, &images[..images.len().min(200)]).await?;
    let bench =
        PolicyBench { part: PolicyQuestion::Offloading, effort: &effort, capacity_per_s, images: &images, share: 0.0 };
    bench.all(&mut field, options, &mut runs).await?;
    tokio::task::spawn_blocking(move || drop(field)).await?;

    Ok(BenchReport {
        bench: "policy",
        settings: json!({
            "quick": options.quick,
            "rounds": effort.rounds,
            "images": set.images.len(),
            "images_offloaded": images.len(),
            "edge_model": set.edge.display().to_string(),
            "cloud_model": set.cloud.display().to_string(),
            "paced_ms": options.paced_ms,
            "doubtful_ratio": set.doubtful_ratio,
            "baseline_timeout_ms": BASELINE_TIMEOUT.as_millis(),
            "scenarios_verification": VERIFICATION,
            "scenarios_offloading": OFFLOADING,
        }),
        rows: results::rows(&runs),
        table: results::table(&runs),
        headline: results::headline(&runs),
        notes: results::notes(&set.images, options.paced_ms, effort.rounds),
        charts: results::charts(&runs),
        machine,
    })
}

/// What the verification part works on.
struct VerificationSet {
    images: Vec<LabelledImage>,
    edge: PathBuf,
    cloud: PathBuf,
    opinions: Arc<HashMap<Bytes, Prediction>>,
    /// Share of the images that the site's model is in doubt about.
    doubtful_ratio: f64,
}

impl VerificationSet {
    fn ground(&self, options: &PolicyBenchOptions, folder: &Path) -> Result<TestbedConfig, BenchError> {
        let unknown = Prediction {
            label: "unknown".into(),
            confidence: 1.0,
            top: Vec::new(),
            labels: None,
            release: ReleaseId::from_sha256([0; 32]),
            temperature: None,
            novelty: None,
        };
        Ok(TestbedConfig {
            folder: folder.to_owned(),
            nats_server: options.nats_server.clone(),
            onnxruntime: options.onnxruntime.clone(),
            edge: self.edge.clone(),
            cloud: self.cloud.clone(),
            pace: options.paced_ms.map(|service_ms| FakeCloudPace { service_ms, replicas: 4 }),
            opinions: self.opinions.clone(),
            unknown,
            set: Vec::new(),
        })
    }
}

/// Reads the images; asks both models about them, the site's for how many are in doubt and the cloud's for what
/// a cloud with a pace of its own would say.
fn prepare(options: &PolicyBenchOptions, count: usize) -> Result<VerificationSet, BenchError> {
    let images = labelled_images::read(options.images.as_deref(), count)?;
    let absolute = |chosen: &Option<PathBuf>, own: &str| {
        let named = chosen.clone().unwrap_or_else(|| own.into());
        if chosen.is_none() && !named.is_dir() {
            return Err(BenchError::NoModel { looked_for: named });
        }
        named.canonicalize().map_err(BenchError::file(named))
    };
    let (edge, cloud) = (absolute(&options.edge_model, LIGHT)?, absolute(&options.cloud_model, HEAVY)?);
    let onnx = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let light = Model::load(&edge)?;
    let gate = offload::gate::Gate::new(&Default::default(), &light.description.gate);
    let mut replica = Replica::open(&onnx, &light, &InferenceSettings::default())?;
    let mut doubtful = 0;
    for image in &images {
        let ratios = softmax(&replica.predict(&image.bytes)?.logits, gate.temperature);
        let label = vision::prediction(&light, &ratios).map(|opinion| opinion.label).unwrap_or_default();
        doubtful +=
            usize::from(gate.decide(&offload::gate::TestedScores::of(&ratios), &label) != schemas::Reason::Confident);
    }
    let mut opinions = HashMap::new();
    if options.paced_ms.is_some() {
        let heavy = Model::load(&cloud)?;
        let temperature = heavy.description.gate.temperature.unwrap_or(1.0);
        let mut replica = Replica::open(&onnx, &heavy, &InferenceSettings::default())?;
        for image in &images {
            let ratios = softmax(&replica.predict(&image.bytes)?.logits, temperature);
            opinions.extend(vision::prediction(&heavy, &ratios).map(|opinion| (image.bytes.clone(), opinion)));
        }
    }
    let doubtful_ratio = doubtful as f64 / images.len().max(1) as f64;
    Ok(VerificationSet { images, edge, cloud, opinions: Arc::new(opinions), doubtful_ratio })
}

/// Images a second that the site recognizes by itself.
async fn capacity(field: &mut Testbed, images: &[LabelledImage]) -> Result<f64, BenchError> {
    field.choose(EDGE_ONLY, None).await?;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let scenario = VERIFICATION[0];
        let run = once(field, &scenario, images, 1.0).await?;
        rates.push(images.len() as f64 / run.completion_s.max(1e-3));
    }
    // The first one warms up.
    Ok(crate::stats::median(&rates[1..]))
}

/// One part of the measurement.
struct PolicyBench<'a> {
    part: PolicyQuestion,
    effort: &'a PolicyBenchEffort,
    capacity_per_s: f64,
    images: &'a [LabelledImage],
    share: f64,
}

impl PolicyBench<'_> {
    async fn all(
        &self,
        field: &mut Testbed,
        options: &PolicyBenchOptions,
        runs: &mut Vec<PolicyRun>,
    ) -> Result<(), BenchError> {
        let scenarios: &[Scenario] = match self.part {
            PolicyQuestion::Verification => &VERIFICATION,
            PolicyQuestion::Offloading => &OFFLOADING,
        };
        let wanted = |scenario: &&Scenario| match options.scenarios.is_empty() {
            true => scenario.quick || !options.quick,
            false => options.scenarios.iter().any(|name| name == scenario.name),
        };
        for scenario in scenarios.iter().filter(wanted) {
            field.relink(scenario.shape).await?;
            for round in 0..self.effort.rounds {
                let mut policies = scenario.policies(self.part, options.quick);
                if round % 2 == 1 {
                    policies.reverse();
                }
                for policy in policies {
                    print_step(&format!("{} {}, round {}: {policy}", self.part.as_str(), scenario.name, round + 1));
                    let share = (policy == RANDOM).then_some(self.share);
                    field.choose(policy, share).await?;
                    let arriving = self.arriving(scenario);
                    let outcome = once(field, scenario, &arriving, self.rate(scenario)).await?;
                    runs.push(PolicyRun { part: self.part, scenario: scenario.name, policy, round, outcome });
                }
            }
        }
        Ok(())
    }

    fn rate(&self, scenario: &Scenario) -> f64 {
        match scenario.arrivals {
            ArrivalPattern::Batch => 0.0,
            ArrivalPattern::Steady { of_capacity } | ArrivalPattern::Burst { of_capacity } => {
                self.capacity_per_s * of_capacity
            }
        }
    }

    /// As many images as arrive, in the order of the set, over and over.
    fn arriving(&self, scenario: &Scenario) -> Vec<LabelledImage> {
        let count = match scenario.arrivals {
            ArrivalPattern::Batch => self.images.len(),
            ArrivalPattern::Steady { .. } => (self.rate(scenario) * self.effort.steady_s).ceil() as usize,
            ArrivalPattern::Burst { .. } => (self.rate(scenario) * self.effort.burst_s).ceil() as usize,
        };
        self.images.iter().cycle().take(count.max(1)).cloned().collect()
    }
}

/// One run: the link as the scenario has it, all images in, all answers out.
async fn once(
    field: &Testbed,
    scenario: &Scenario,
    images: &[LabelledImage],
    rate_per_s: f64,
) -> Result<PolicyRunOutcome, BenchError> {
    field.clear().await?;
    field.link.set(scenario.shape);
    field.stall_cloud(scenario.stalled);
    field.wait_for_link(scenario.shape.state == LinkState::Open).await?;
    let ear = AnswerListener::open(&field.here, &field.cloud, &field.name).await?;
    let flapping = scenario.flaps_s.map(|(whole_s, cut_s)| flap(field, scenario.shape, whole_s, cut_s));
    let work = async {
        let used_before = field.cpu_usage();
        let (tasks, begun) = arrive(field, &ear, scenario, images, rate_per_s).await?;
        let all_first = tokio::time::timeout(LONGEST, ear.firsts_reach(tasks.len())).await;
        let edge_s = begun.elapsed().as_secs_f64();
        let left = LONGEST.saturating_sub(begun.elapsed());
        let all_final = tokio::time::timeout(left, ear.finals_reach(tasks.len())).await;
        let completion_s = begun.elapsed().as_secs_f64();
        let complete = all_first.is_ok() && all_final.is_ok();
        let used = (used_before, field.cpu_usage());
        Ok::<_, BenchError>(PolicyRunOutcome::of(&ear, &tasks, images, scenario, edge_s, completion_s, complete, used))
    };
    let outcome = match flapping {
        Some(flapping) => tokio::select! {
            outcome = work => outcome,
            () = flapping => Err(BenchError::Stopped),
        },
        None => work.await,
    };
    field.stall_cloud(false);
    field.link.set(LinkShape { state: LinkState::Open, ..scenario.shape });
    outcome
}

/// Cuts the link again and again, by turns in both ways, for as long as it is polled.
async fn flap(field: &Testbed, shape: LinkShape, whole_s: f64, cut_s: f64) {
    for cut in [LinkState::Silent, LinkState::Broken].iter().cycle() {
        tokio::time::sleep(Duration::from_secs_f64(whole_s)).await;
        field.link.set(LinkShape { state: *cut, ..shape });
        tokio::time::sleep(Duration::from_secs_f64(cut_s)).await;
        field.link.set(shape);
    }
}

/// Publishes the images as they arrive; the tasks, and when it began.
async fn arrive(
    field: &Testbed,
    ear: &AnswerListener,
    scenario: &Scenario,
    images: &[LabelledImage],
    rate_per_s: f64,
) -> Result<(Vec<TaskId>, Instant), BenchError> {
    let camera: CameraName = "bench".parse().map_err(|_| BenchError::Stopped)?;
    let subject = subject::image(&field.name, &camera);
    let publisher = Publisher::new(field.here.clone(), LONGEST);
    let publication = |image: &LabelledImage, task: TaskId| {
        let publication = Publication::with_id(subject.clone(), image.bytes.clone(), task.to_string());
        let publication = publication.header(HEADER_LABEL, image.label.clone());
        match scenario.deadline_ms {
            Some(deadline_ms) => publication.header(HEADER_DEADLINE, deadline_ms.to_string()),
            None => publication,
        }
    };
    let mut publishing = JoinSet::new();
    let mut tasks = Vec::with_capacity(images.len());
    if scenario.arrivals == ArrivalPattern::Batch {
        // All wait before anybody takes one.
        field.pause_link(true);
        for image in images {
            let (task, publisher) = (TaskId::new_random(), publisher.clone());
            tasks.push(task);
            let publication = publication(image, task);
            publishing.spawn(async move { publisher.publish(&publication).await });
            while publishing.len() >= PUBLISHING {
                publishing.join_next().await.transpose()?.transpose()?;
            }
        }
        while let Some(published) = publishing.join_next().await {
            published??;
        }
        let begun = Instant::now();
        tasks.iter().for_each(|task| drop(ear.expect_task(*task, begun)));
        field.pause_link(false);
        return Ok((tasks, begun));
    }
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut due = schedule(rate_per_s, stop);
    let begun = Instant::now();
    for image in images {
        let Some(due_at) = due.recv().await else { break };
        let (task, publisher) = (TaskId::new_random(), publisher.clone());
        tasks.push(task);
        let _first = ear.expect_task(task, due_at);
        let publication = publication(image, task);
        publishing.spawn(async move { publisher.publish(&publication).await });
        while let Some(published) = publishing.try_join_next() {
            published??;
        }
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    Ok((tasks, begun))
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}
