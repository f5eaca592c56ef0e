//! Compares policies on real servers: a hub and a leaf with a shaped link between them, and the real recognizer, courier
//! and verifier. The same images arrive at the same times under each policy.
//!
//! Three parts. *Verification*: a light and a heavy classifier on labelled images; doubtful images are verified.
//! *Offloading*: no image is doubtful, and policies decide only where the work is done. The cloud is simulated there,
//! because two models on one machine would compete for the CPU. *Deadlines*: like offloading, with a model that
//! takes long for each image, and a deadline for each; late answers are counted, and what no schedule could have met
//! ([`deadline_bound`]).

mod deadline_bound;
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
use crate::train::learning_curve;
use crate::train::network::BenchNetwork;
use crate::workload::Workload;
use tributary::demo::answer_listener::AnswerListener;

use deadline_bound::{Capacity, unavoidable_late};
use measured::names::{EARLIEST_FINISH, EDGE_ONLY, RANDOM};
use results::{PolicyRun, PolicyRunOutcome};
use scenario::{ArrivalPattern, DEADLINES, OFFLOADING, PolicyQuestion, Scenario, VERIFICATION};

/// The project's own site and cloud models.
const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
/// Speed of the simulated cloud where policies decide only where the work is done.
const CLOUD_PACE: FakeCloudPace = FakeCloudPace { service_ms: 3.0, replicas: 4 };
/// How long after a run workers may take to tell how many answers were late; recognizers tell each second.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum unacknowledged images.
const MAX_UNACKED: usize = 64;
/// Time limit of a run; after it, images without a final answer count as unanswered.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// Upload timeout of the baseline. The library that it stands for waits 12 s and more per hard image, so this favours
/// the baseline.
pub(crate) const BASELINE_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of `bench policy`.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyBenchOptions {
    /// Folder of labelled images with an index.csv; the project's own if absent.
    pub images: Option<PathBuf>,
    /// Folder of the site's model; the project's own if absent.
    pub edge_model: Option<PathBuf>,
    /// Folder of the cloud's model; the project's own if absent.
    pub cloud_model: Option<PathBuf>,
    /// Simulate the cloud with this service time per image and replica, milliseconds; the real verifier if absent.
    pub paced_ms: Option<f64>,
    /// Folder for the servers' stores during the run; the system's temporary folder if absent.
    pub store: Option<PathBuf>,
    /// Names of the scenarios to run; all if empty.
    pub scenarios: Vec<String>,
    /// Finish in about a minute, with fewer images, scenarios and policies.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Names of all scenarios, without duplicates.
pub(crate) fn scenario_names() -> Vec<&'static str> {
    let mut names: Vec<_> =
        VERIFICATION.iter().chain(&OFFLOADING).chain(&DEADLINES).map(|scenario| scenario.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

struct PolicyBenchEffort {
    quick: bool,
    rounds: usize,
    batch: usize,
    offloaded: usize,
    steady_s: f64,
    burst_s: f64,
    /// Length of a burst with deadlines.
    deadlines_s: f64,
}

impl PolicyBenchEffort {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { quick, rounds: 1, batch: 60, offloaded: 60, steady_s: 1.0, burst_s: 0.3, deadlines_s: 2.0 },
            false => {
                Self { quick, rounds: 3, batch: 300, offloaded: 1500, steady_s: 2.0, burst_s: 0.25, deadlines_s: 2.0 }
            }
        }
    }
}

/// Runs the bench: about 50 minutes, or one minute if `quick`.
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

    let mut config = set.testbed_config(options, folder.path())?;
    let timeout_ms = BASELINE_TIMEOUT.as_millis();
    config.set.push(format!("recognizer.policy.cloud_only_timeout_ms={timeout_ms}"));
    // The other core is for the cloud.
    config.set.push("recognizer.infer.replicas=1".into());
    let mut testbed = Testbed::start("verification", config).await?;
    let capacity_per_s = measure_capacity(&mut testbed, &set.images).await?;
    print_step(&format!("capacity of the site alone: {capacity_per_s:.0} images per second"));
    let bench = PolicyBench {
        part: PolicyQuestion::Verification,
        effort: &effort,
        capacity_per_s,
        images: &set.images,
        share: set.doubtful_ratio,
    };
    bench.run_all(&mut testbed, options, &mut runs).await?;
    tokio::task::spawn_blocking(move || drop(testbed)).await?;

    print_step("preparing the offloading part");
    let workload = tokio::task::spawn_blocking(|| Workload::open(None, None)).await??;
    let images: Vec<LabelledImage> =
        workload.images.iter().map(|bytes| LabelledImage { bytes: bytes.clone(), label: String::new() }).collect();
    let images: Vec<LabelledImage> = images.iter().cycle().take(effort.offloaded).cloned().collect();
    let config = TestbedConfig {
        edge: workload.model.clone(),
        pace: Some(CLOUD_PACE),
        predictions: Arc::default(),
        set: SURE.map(str::to_owned).to_vec(),
        ..set.testbed_config(options, folder.path())?
    };
    let mut testbed = Testbed::start("offloading", config).await?;
    let capacity_per_s = measure_capacity(&mut testbed, &images[..images.len().min(200)]).await?;
    let bench =
        PolicyBench { part: PolicyQuestion::Offloading, effort: &effort, capacity_per_s, images: &images, share: 0.0 };
    bench.run_all(&mut testbed, options, &mut runs).await?;
    tokio::task::spawn_blocking(move || drop(testbed)).await?;

    print_step("preparing the part with deadlines");
    let folder_of_model = folder.path().join("slow-model");
    let slow = tokio::task::spawn_blocking(move || slow_model(&folder_of_model)).await??;
    let config = TestbedConfig {
        edge: slow,
        pace: Some(CLOUD_PACE),
        predictions: Arc::default(),
        set: SURE.map(str::to_owned).to_vec(),
        ..set.testbed_config(options, folder.path())?
    };
    let mut testbed = Testbed::start("deadlines", config).await?;
    let deadline_capacity_per_s = measure_capacity(&mut testbed, &images[..images.len().min(60)]).await?;
    print_step(&format!("capacity of the site alone: {deadline_capacity_per_s:.0} images per second"));
    let bench = PolicyBench {
        part: PolicyQuestion::Deadlines,
        effort: &effort,
        capacity_per_s: deadline_capacity_per_s,
        images: &images,
        share: 0.0,
    };
    bench.run_all(&mut testbed, options, &mut runs).await?;
    tokio::task::spawn_blocking(move || drop(testbed)).await?;

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
            "scenarios_deadlines": DEADLINES,
            "deadline_capacity_per_s": deadline_capacity_per_s,
        }),
        rows: results::rows(&runs),
        table: results::table(&runs),
        headline: results::headline(&runs),
        notes: results::notes(&runs, &set.images, options.paced_ms, effort.rounds),
        charts: results::charts(&runs),
        machine,
    })
}

/// Settings of a site with one replica that is never in doubt.
const SURE: [&str; 2] = ["recognizer.infer.replicas=1", "recognizer.gate.min_confidence_ratio=0"];

/// A model that takes long for each image, so that three times as many as it can recognize can be published, stored and
/// sent on the same machine. Its weights are random: what it says does not matter.
fn slow_model(folder: &Path) -> Result<PathBuf, BenchError> {
    let network = BenchNetwork::resnet18();
    let labels: Vec<String> = (0..network.classes()).map(|class| format!("class-{class}")).collect();
    learning_curve::write_model(&network, &labels, folder)?;
    Ok(folder.to_owned())
}

/// Images and models of the verification part.
struct VerificationSet {
    images: Vec<LabelledImage>,
    edge: PathBuf,
    cloud: PathBuf,
    predictions: Arc<HashMap<Bytes, Prediction>>,
    /// Share of images that the site's gate doubts.
    doubtful_ratio: f64,
}

impl VerificationSet {
    fn testbed_config(&self, options: &PolicyBenchOptions, folder: &Path) -> Result<TestbedConfig, BenchError> {
        let unknown = Prediction {
            label: "unknown".into(),
            confidence: 1.0,
            top: Vec::new(),
            labels: None,
            objects: None,
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
            predictions: self.predictions.clone(),
            unknown,
            set: Vec::new(),
        })
    }
}

/// Reads the images; runs the site's model on them to count doubtful ones, and, for a simulated cloud, the cloud's
/// model to precompute its predictions.
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
        let label = vision::prediction(&light, &ratios).map(|prediction| prediction.label).unwrap_or_default();
        doubtful +=
            usize::from(gate.decide(&offload::gate::TestedScores::of(&ratios), &label) != schemas::Reason::Confident);
    }
    let mut predictions = HashMap::new();
    if options.paced_ms.is_some() {
        let heavy = Model::load(&cloud)?;
        let temperature = heavy.description.gate.temperature.unwrap_or(1.0);
        let mut replica = Replica::open(&onnx, &heavy, &InferenceSettings::default())?;
        for image in &images {
            let ratios = softmax(&replica.predict(&image.bytes)?.logits, temperature);
            predictions.extend(vision::prediction(&heavy, &ratios).map(|prediction| (image.bytes.clone(), prediction)));
        }
    }
    let doubtful_ratio = doubtful as f64 / images.len().max(1) as f64;
    Ok(VerificationSet { images, edge, cloud, predictions: Arc::new(predictions), doubtful_ratio })
}

/// Measures the site's own throughput, images per second.
async fn measure_capacity(testbed: &mut Testbed, images: &[LabelledImage]) -> Result<f64, BenchError> {
    testbed.choose_policy(EDGE_ONLY, None).await?;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let scenario = VERIFICATION[0];
        let run = run_once(testbed, &scenario, images, 1.0).await?;
        rates.push(images.len() as f64 / run.completion_s.max(1e-3));
    }
    // The first run is a warm-up.
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
    async fn run_all(
        &self,
        testbed: &mut Testbed,
        options: &PolicyBenchOptions,
        runs: &mut Vec<PolicyRun>,
    ) -> Result<(), BenchError> {
        let scenarios: &[Scenario] = match self.part {
            PolicyQuestion::Verification => &VERIFICATION,
            PolicyQuestion::Offloading => &OFFLOADING,
            PolicyQuestion::Deadlines => &DEADLINES,
        };
        let wanted = |scenario: &&Scenario| match options.scenarios.is_empty() {
            true => scenario.quick || !options.quick,
            false => options.scenarios.iter().any(|name| name == scenario.name),
        };
        for scenario in scenarios.iter().filter(wanted) {
            testbed.replace_link(scenario.shape).await?;
            let rounds = scenario.rounds.filter(|_| !options.quick).unwrap_or(self.effort.rounds);
            for round in 0..rounds {
                let mut policies = scenario.policies(self.part, options.quick);
                if self.part == PolicyQuestion::Verification && round >= self.effort.rounds {
                    // Only these two are compared by more rounds.
                    policies.retain(|policy| [EDGE_ONLY, EARLIEST_FINISH].contains(policy));
                }
                if round % 2 == 1 {
                    policies.reverse();
                }
                for policy in policies {
                    print_step(&format!("{} {}, round {}: {policy}", self.part.as_str(), scenario.name, round + 1));
                    let share = (policy == RANDOM).then_some(self.share);
                    testbed.choose_policy(policy, share).await?;
                    let arrivals = self.arrivals(scenario);
                    let mut outcome = run_once(testbed, scenario, &arrivals, self.rate(scenario)).await?;
                    outcome.unavoidable_late = self.unavoidable_late(scenario, &arrivals);
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

    /// Images that no schedule answers before their deadlines.
    fn unavoidable_late(&self, scenario: &Scenario, arrivals: &[LabelledImage]) -> u64 {
        let (PolicyQuestion::Deadlines, Some(deadline_ms)) = (self.part, scenario.deadline_ms) else { return 0 };
        let answers = !scenario.is_cloud_unreachable();
        let capacity = Capacity { site_per_s: self.capacity_per_s, link: scenario.shape, cloud: CLOUD_PACE, answers };
        let sizes: Vec<usize> = arrivals.iter().map(|image| image.bytes.len()).collect();
        unavoidable_late(&capacity, &sizes, self.rate(scenario), deadline_ms as f64 / 1000.0) as u64
    }

    /// The images that arrive in a run, cycling through the set.
    fn arrivals(&self, scenario: &Scenario) -> Vec<LabelledImage> {
        let count = match scenario.arrivals {
            ArrivalPattern::Batch => self.images.len(),
            ArrivalPattern::Steady { .. } => {
                let steady_s = scenario.steady_s.filter(|_| !self.effort.quick).unwrap_or(self.effort.steady_s);
                (self.rate(scenario) * steady_s).ceil() as usize
            }
            ArrivalPattern::Burst { .. } if self.part == PolicyQuestion::Deadlines => {
                (self.rate(scenario) * self.effort.deadlines_s).ceil() as usize
            }
            ArrivalPattern::Burst { .. } => (self.rate(scenario) * self.effort.burst_s).ceil() as usize,
        };
        self.images.iter().cycle().take(count.max(1)).cloned().collect()
    }
}

/// Runs a scenario once: sets the link, publishes all images and collects all answers.
async fn run_once(
    testbed: &Testbed,
    scenario: &Scenario,
    images: &[LabelledImage],
    rate_per_s: f64,
) -> Result<PolicyRunOutcome, BenchError> {
    testbed.purge_streams().await?;
    testbed.link.set(scenario.shape);
    testbed.set_cloud_stalled(scenario.stalled);
    testbed.wait_for_link(scenario.shape.state == LinkState::Open).await?;
    let listener = AnswerListener::open(&testbed.site_bus, &testbed.cloud_bus, &testbed.name).await?;
    let flapping = scenario.flaps_s.map(|(up_s, down_s)| flap_link(testbed, scenario.shape, up_s, down_s));
    let work = async {
        let late_before = testbed.late_answers().await?;
        let cpu_before = testbed.cpu_usage();
        let (tasks, started) = publish_arrivals(testbed, &listener, scenario, images, rate_per_s).await?;
        let all_first = tokio::time::timeout(RUN_TIMEOUT, listener.firsts_reach(tasks.len())).await;
        let edge_s = started.elapsed().as_secs_f64();
        let left = RUN_TIMEOUT.saturating_sub(started.elapsed());
        let all_final = tokio::time::timeout(left, listener.finals_reach(tasks.len())).await;
        let completion_s = started.elapsed().as_secs_f64();
        let complete = all_first.is_ok() && all_final.is_ok();
        let cpu = (cpu_before, testbed.cpu_usage());
        let mut outcome =
            PolicyRunOutcome::of(&listener, &tasks, images, scenario, edge_s, completion_s, complete, cpu);
        outcome.late_counted = late_counted(testbed, late_before, outcome.late).await?;
        Ok::<_, BenchError>(outcome)
    };
    let outcome = match flapping {
        Some(flapping) => tokio::select! {
            outcome = work => outcome,
            () = flapping => Err(BenchError::Stopped),
        },
        None => work.await,
    };
    testbed.set_cloud_stalled(false);
    testbed.link.set(LinkShape { state: LinkState::Open, ..scenario.shape });
    outcome
}

/// How many answers of a run the workers counted as late: as many as expected, or what they still say after a while.
async fn late_counted(testbed: &Testbed, before: u64, expected: u64) -> Result<u64, BenchError> {
    let until = Instant::now() + COUNT_TIMEOUT;
    loop {
        let counted = testbed.late_answers().await?.saturating_sub(before);
        if counted == expected || Instant::now() > until {
            return Ok(counted);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Cuts the link repeatedly, alternating between silent and broken, for as long as it is polled.
async fn flap_link(testbed: &Testbed, shape: LinkShape, up_s: f64, down_s: f64) {
    for cut in [LinkState::Silent, LinkState::Broken].iter().cycle() {
        tokio::time::sleep(Duration::from_secs_f64(up_s)).await;
        testbed.link.set(LinkShape { state: *cut, ..shape });
        tokio::time::sleep(Duration::from_secs_f64(down_s)).await;
        testbed.link.set(shape);
    }
}

/// Publishes images according to the arrival pattern; returns the tasks and the start time.
async fn publish_arrivals(
    testbed: &Testbed,
    listener: &AnswerListener,
    scenario: &Scenario,
    images: &[LabelledImage],
    rate_per_s: f64,
) -> Result<(Vec<TaskId>, Instant), BenchError> {
    let camera: CameraName = "bench".parse().map_err(|_| BenchError::Stopped)?;
    let subject = subject::image(&testbed.name, &camera);
    let publisher = Publisher::new(testbed.site_bus.clone(), RUN_TIMEOUT);
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
        // The recognizer stays paused until the whole batch is stored.
        testbed.set_recognizer_paused(true);
        for image in images {
            let (task, publisher) = (TaskId::new_random(), publisher.clone());
            tasks.push(task);
            let publication = publication(image, task);
            publishing.spawn(async move { publisher.publish(&publication).await });
            while publishing.len() >= MAX_UNACKED {
                publishing.join_next().await.transpose()?.transpose()?;
            }
        }
        while let Some(published) = publishing.join_next().await {
            published??;
        }
        let started = Instant::now();
        tasks.iter().for_each(|task| drop(listener.expect_task(*task, started)));
        testbed.set_recognizer_paused(false);
        return Ok((tasks, started));
    }
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut due = schedule(rate_per_s, stop);
    let started = Instant::now();
    for image in images {
        let Some(due_at) = due.recv().await else { break };
        let (task, publisher) = (TaskId::new_random(), publisher.clone());
        tasks.push(task);
        let _first = listener.expect_task(task, due_at);
        let publication = publication(image, task);
        publishing.spawn(async move { publisher.publish(&publication).await });
        while let Some(published) = publishing.try_join_next() {
            published??;
        }
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    Ok((tasks, started))
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}
