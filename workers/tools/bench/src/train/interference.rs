//! Cost of background training for a recognizer: latency at a steady image rate, alternately with and without training
//! steps of a large network at idle CPU priority.

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

/// Image rate, as a share of the site's capacity.
const LOAD_RATIO: f64 = 0.6;

/// Lower bound of training in the background, as a share of one processor.
const LEAST_RATIO: f64 = 0.1;
/// Images of a piece: the default of `trainer.limits.piece_images`.
const PIECE_IMAGES: i64 = 4;

/// What trains beside the recognizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BackgroundLoad {
    /// Nothing.
    None,
    /// Training on idle processors only.
    Idle,
    /// Training with a lower bound.
    LeastShare,
}

/// Latency in one measurement window.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TrainingInterference {
    /// What trained in the background.
    pub training: BackgroundLoad,
    /// Answered images per second.
    pub images_per_s: f64,
    /// Median latency, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the latency, milliseconds.
    pub p99_ms: f64,
    /// Training steps per second.
    pub steps_per_s: f64,
}

/// Measures windows without and with training of either kind, alternately.
pub(super) async fn measure_interference(options: &TrainBenchOptions) -> Result<Vec<TrainingInterference>, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?;
    let workload = tokio::task::spawn_blocking(|| Workload::open(None, None)).await??;
    let paths = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: None,
        onnxruntime: options.onnxruntime.clone(),
        model: workload.model.clone(),
        infer: InferenceSettings::default(),
    };
    let mut site = BenchSite::start("interference", Durability::Fast, &paths).await?;
    site.start_recognizer(&paths)?;
    let load = LoadGenerator::open(&site, workload.images.clone()).await?;
    let (ms, rounds) = if options.quick { (1000, 2) } else { (4000, 5) };
    let length = WindowLength { lead: Duration::from_millis(500), counted: Duration::from_millis(ms) };
    let measurement = async {
        load.send_image(AnswerMilestone::Answered, Instant::now()).await?;
        let capacity = load.run_closed_loop(AnswerMilestone::Answered, 16, &site.processes(), length).await?;
        let rate_per_s = capacity.images_per_s * LOAD_RATIO;
        let mut windows = Vec::new();
        for round in 0..rounds {
            let mut loads = [BackgroundLoad::None, BackgroundLoad::Idle, BackgroundLoad::LeastShare];
            if round % 2 == 1 {
                loads.reverse();
            }
            for background in loads {
                let words = match background {
                    BackgroundLoad::None => "without training",
                    BackgroundLoad::Idle => "with training on idle processors",
                    BackgroundLoad::LeastShare => "with training that has a lower bound",
                };
                eprintln!("bench: recognizing {words}, round {} of {rounds}", round + 1);
                let bounds = match background {
                    BackgroundLoad::None => None,
                    BackgroundLoad::Idle => Some(0.0),
                    BackgroundLoad::LeastShare => Some(LEAST_RATIO),
                };
                let training =
                    bounds.map(|least_ratio| BackgroundTraining::start(options.onnxruntime.clone(), least_ratio));
                let started = Instant::now();
                let window = load.run_at_rate(rate_per_s, &site.processes(), length).await?;
                let elapsed = started.elapsed().as_secs_f64();
                let steps = match training {
                    Some(training) => training.stop().await?,
                    None => 0,
                };
                windows.push(TrainingInterference {
                    training: background,
                    images_per_s: window.images_per_s,
                    p50_ms: window.latency.p50_ms,
                    p99_ms: window.latency.p99_ms,
                    steps_per_s: steps as f64 / elapsed,
                });
            }
        }
        Ok(windows)
    };
    let measured = measurement.await;
    drop(load);
    // Dropping the site blocks until its processes have exited.
    tokio::task::spawn_blocking(move || drop(site)).await?;
    measured
}

/// Training steps of a large network on their own thread, paced like a site's trainer.
struct BackgroundTraining {
    stop: CancellationToken,
    thread: std::thread::JoinHandle<Result<u64, BenchError>>,
}

impl BackgroundTraining {
    fn start(onnxruntime: Option<std::path::PathBuf>, least_ratio: f64) -> Self {
        let stop = CancellationToken::new();
        let stop_signal = stop.clone();
        let thread = std::thread::spawn(move || {
            let bounds = CpuBounds { most_ratio: DEFAULT_CPU_RATIO, least_ratio, reserve_ratio: 0.5 };
            let account = Arc::new(TrainingAccount::new(bounds));
            let pace = TrainingPace::background(None, account, Arc::new(AtomicBool::new(false)));
            let runtime = OnnxRuntime::find_and_load(onnxruntime.as_deref())?;
            let mut net = BenchNetwork::mobilenetv2();
            if pace.has_lower_bound() {
                net.batch = PIECE_IMAGES;
            }
            let (onnx, shape) = (net.onnx(), net.shape());
            let prepared = PreparedModel::new(&onnx, "scores", &shape)?;
            let facts = training::trainable_model::known(&runtime, &prepared, &shape)?;
            let step = prepared.step(&facts, &TrainableSelection::All)?;
            let mut weights: Vec<Vec<f32>> =
                step.weights.iter().map(|weight| onnx.weight(&weight.name)).collect::<Result<_, _>>()?;
            let (start, mut gradients) = (weights.clone(), vec![Vec::new(); weights.len()]);
            let settings = OptimizerSettings::default();
            let mut optimizer = Optimizer::new(&settings, &weights);
            let mut stepper = Stepper::open(&runtime, step, 1)?;
            let images = vec![0.5; shape.iter().product::<i64>() as usize];
            let labels: Vec<Option<usize>> =
                (0..net.batch as usize).map(|number| Some(number % net.classes())).collect();
            let targets = cross_entropy(&labels, net.classes(), &LabelSmoothing::default());
            let mut steps = 0;
            while !stop_signal.is_cancelled() {
                stepper.learn(&images, &targets, &weights, &mut gradients)?;
                optimizer.step(&mut weights, &mut gradients, &start, 1e-4);
                pace.yield_cpu(1, Duration::ZERO, &stop_signal)?;
                steps += 1;
            }
            Ok(steps)
        });
        Self { stop, thread }
    }

    /// Stops training; returns the number of steps.
    async fn stop(self) -> Result<u64, BenchError> {
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        ended.unwrap_or(Err(BenchError::Stopped))
    }
}
