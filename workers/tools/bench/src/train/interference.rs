//! What training beside it costs a recognizer: the latency of images that come in at a steady rate, with and without steps
//! of a large network on what nobody else wants of the processors, by turns.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use autograd::TrainableSelection;
use autograd::loss::{LabelSmoothing, cross_entropy};
use autograd::training_step::PreparedModel;
use serde::Serialize;
use streams::server::Durability;
use tokio_util::sync::CancellationToken;
use training::optimizer::Optimizer;
use training::pace::{DEFAULT_CPU_RATIO, TrainingAccount, TrainingPace};
use training::quota::CpuBounds;
use training::settings::OptimizerSettings;
use training::stepper::Stepper;
use vision::{InferenceSettings, OnnxRuntime};

use super::TrainBenchOptions;
use super::network::BenchNetwork;
use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::{AnswerMilestone, LoadGenerator};
use crate::measurement_window::WindowLength;
use crate::workload::Workload;

/// Share of what the site can do that comes in.
const SHARE: f64 = 0.6;

/// One stretch.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TrainingInterference {
    /// Whether it trained.
    pub trains: bool,
    /// Images a second that came in.
    pub images_per_s: f64,
    /// Latency of half the images, milliseconds.
    pub p50_ms: f64,
    /// Of all but one in a hundred.
    pub p99_ms: f64,
    /// Steps of training a second.
    pub steps_per_s: f64,
}

/// Measures stretches by turns.
pub(super) async fn measure_interference(options: &TrainBenchOptions) -> Result<Vec<TrainingInterference>, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?;
    let workload = tokio::task::spawn_blocking(|| Workload::open(None, None)).await??;
    let ground = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: None,
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: InferenceSettings::default(),
    };
    let mut site = BenchSite::start("beside", Durability::Fast, &ground).await?;
    site.start_recognizer(&ground)?;
    let load = LoadGenerator::open(&site, workload.images.clone()).await?;
    let (ms, rounds) = if options.quick { (1000, 2) } else { (4000, 5) };
    let length = WindowLength { lead: Duration::from_millis(500), counted: Duration::from_millis(ms) };
    let measured = async {
        load.send_image(AnswerMilestone::Answered, Instant::now()).await?;
        let full = load.run_closed_loop(AnswerMilestone::Answered, 16, &site.processes(), length).await?;
        let rate_per_s = full.images_per_s * SHARE;
        let mut stretches = Vec::new();
        for round in 0..rounds {
            for trains in [round % 2 == 0, round % 2 == 1] {
                eprintln!(
                    "bench: recognizing, {} training, round {} of {rounds}",
                    if trains { "beside" } else { "without" },
                    round + 1
                );
                let training = trains.then(|| BackgroundTraining::start(options.onnxruntime.clone()));
                let begun = Instant::now();
                let window = load.run_at_rate(rate_per_s, &site.processes(), length).await?;
                let elapsed = begun.elapsed().as_secs_f64();
                let steps = match training {
                    Some(training) => training.end().await?,
                    None => 0,
                };
                stretches.push(TrainingInterference {
                    trains,
                    images_per_s: window.images_per_s,
                    p50_ms: window.latency.p50_ms,
                    p99_ms: window.latency.p99_ms,
                    steps_per_s: steps as f64 / elapsed,
                });
            }
        }
        Ok(stretches)
    };
    let measured = measured.await;
    drop(load);
    // Stopping waits for processes.
    tokio::task::spawn_blocking(move || drop(site)).await?;
    measured
}

/// Steps of a large network on a thread of their own, as a site's trainer takes them.
struct BackgroundTraining {
    stop: CancellationToken,
    thread: std::thread::JoinHandle<Result<u64, BenchError>>,
}

impl BackgroundTraining {
    fn start(onnxruntime: Option<std::path::PathBuf>) -> Self {
        let stop = CancellationToken::new();
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let bounds = CpuBounds { most_ratio: DEFAULT_CPU_RATIO, least_ratio: 0.0, reserve_ratio: 0.5 };
            let account = Arc::new(TrainingAccount::new(bounds));
            let pace = TrainingPace::background(None, account, Arc::new(AtomicBool::new(false)));
            let runtime = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
            let net = BenchNetwork::mobilenetv2();
            let (onnx, shape) = (net.onnx(), net.shape());
            let prepared = PreparedModel::new(&onnx, "scores", &shape)?;
            let known = training::trainable_model::known(&runtime, &prepared, &shape)?;
            let step = prepared.step(&known, &TrainableSelection::All)?;
            let mut weights: Vec<Vec<f32>> =
                step.weights.iter().map(|weight| onnx.weight(&weight.name)).collect::<Result<_, _>>()?;
            let (start, mut gradients) = (weights.clone(), vec![Vec::new(); weights.len()]);
            let settings = OptimizerSettings::default();
            let mut optimizer = Optimizer::new(&settings, &weights);
            let mut stepper = Stepper::open(&runtime, step, 1)?;
            let images = vec![0.5; shape.iter().product::<i64>() as usize];
            let labels: Vec<Option<usize>> = (0..net.batch as usize).map(|at| Some(at % net.classes())).collect();
            let targets = cross_entropy(&labels, net.classes(), &LabelSmoothing::default());
            let mut steps = 0;
            while !told.is_cancelled() {
                stepper.learn(&images, &targets, &weights, &mut gradients)?;
                optimizer.step(&mut weights, &mut gradients, &start, 1e-4);
                pace.yield_cpu(1, Duration::ZERO, &told)?;
                steps += 1;
            }
            Ok(steps)
        });
        Self { stop, thread }
    }

    async fn end(self) -> Result<u64, BenchError> {
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        ended.unwrap_or(Err(BenchError::Stopped))
    }
}
