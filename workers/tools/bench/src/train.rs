//! Measures training: CPU time of a step on one thread, against the forward pass alone and against PyTorch where it is
//! installed; gradient errors, learning curves, and the cost for a recognizer on the same machine.

mod gradients;
mod interference;
pub(crate) mod learning_curve;
pub(crate) mod network;
mod results;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use autograd::TrainableSelection;
use autograd::loss::{LabelSmoothing, cross_entropy};
use autograd::training_step::PreparedModel;
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use runtime::Shutdown;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::optimizer::Optimizer;
use training::settings::OptimizerSettings;
use training::stepper::Stepper;
use vision::graph::GraphInput;
use vision::{Graph, OnnxRuntime};

use crate::error::BenchError;
use crate::report::BenchReport;
use os::process;

pub(crate) use learning_curve::write_model;
use network::BenchNetwork;
use results::TrainBenchResult;

/// The script that measures the same networks with PyTorch.
const PYTORCH_SCRIPT: &str = include_str!("train/peer.py");

/// Options of `bench train`.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrainBenchOptions {
    /// Finish in about half a minute, with one round of few steps.
    pub quick: bool,
    /// Python interpreter with PyTorch; `python3` if absent.
    pub python: Option<PathBuf>,
    /// Further folders of labelled images for learning curves, besides the project's own.
    pub data: Vec<PathBuf>,
    /// Folder of models with reference gradients; the project's own if absent.
    pub gradients: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// The layers that are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum TrainedPart {
    All,
    LastThird,
    Head,
}

impl TrainedPart {
    const VARIANTS: [TrainedPart; 3] = [TrainedPart::All, TrainedPart::LastThird, TrainedPart::Head];

    fn as_str(self) -> &'static str {
        match self {
            TrainedPart::All => "all",
            TrainedPart::LastThird => "last third",
            TrainedPart::Head => "head",
        }
    }

    /// Number of trained layers with weights, counted from the output.
    fn trained_layers(self, net: &BenchNetwork) -> usize {
        match self {
            TrainedPart::All => net.trainable_layers(),
            TrainedPart::LastThird => net.trainable_layers().div_ceil(3),
            TrainedPart::Head => 1,
        }
    }
}

/// Measurement of one network and trained part in one round.
#[derive(Debug, Clone, Serialize)]
struct TrainRun {
    net: &'static str,
    part: TrainedPart,
    round: usize,
    /// CPU time of the forward pass alone, milliseconds.
    forward_ms: f64,
    /// CPU time of one step including the optimizer, milliseconds.
    step_ms: f64,
    /// Peak memory of the whole process during the steps, bytes; absent if unknown.
    peak_bytes: Option<u64>,
    /// CPU time of PyTorch's step, milliseconds; absent without PyTorch.
    peer_step_ms: Option<f64>,
    /// CPU time of PyTorch's forward pass, milliseconds; absent without PyTorch.
    peer_forward_ms: Option<f64>,
}

/// Runs the bench: several minutes, or half a minute if `quick`.
pub(crate) async fn run(options: &TrainBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let blocking_options = options.clone();
    let measurement = async {
        let interference = interference::measure_interference(options).await?;
        let result = tokio::task::spawn_blocking(move || measure(&blocking_options)).await??;
        Ok(results::report(&TrainBenchResult { interference, ..result }, options.quick))
    };
    tokio::select! {
        report = measurement => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

/// The networks whose steps are measured.
fn networks() -> [BenchNetwork; 3] {
    [BenchNetwork::small(), BenchNetwork::mobilenetv2(), BenchNetwork::resnet18()]
}

fn measure(options: &TrainBenchOptions) -> Result<TrainBenchResult, BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let python = options.python.clone().unwrap_or("python3".into());
    let gradient_checks = gradients::check_gradients(&runtime, options.gradients.as_deref())?;
    let epochs = if options.quick { 2 } else { 20 };
    let mut curves = vec![learning_curve::measure_learning(&runtime, None, &python, epochs)?];
    for folder in &options.data {
        curves.push(learning_curve::measure_learning(&runtime, Some(folder), &python, epochs)?);
    }
    let mut peer = PyTorchPeer::start(&python);
    let rounds = if options.quick { 1 } else { 5 };
    let networks = networks();
    let (mut runs, mut pytorch_version) = (Vec::new(), None);
    for round in 0..rounds {
        for net in &networks {
            for part in TrainedPart::VARIANTS {
                eprintln!("bench: round {} of {rounds}, {}, {}", round + 1, net.name, part.as_str());
                let steps = match (options.quick, net.name) {
                    (true, "small") => 20,
                    (true, _) => 2,
                    (false, "small") => 100,
                    (false, _) => 6,
                };
                let mut run = measure_steps(&runtime, net, part, round, steps)?;
                if let Some(reply) = peer.as_mut().and_then(|peer| peer.measure(net, part.trained_layers(net), steps)) {
                    (run.peer_step_ms, run.peer_forward_ms) = (Some(reply.step_ms), Some(reply.forward_ms));
                    pytorch_version = Some(reply.version);
                }
                runs.push(run);
            }
        }
    }
    Ok(TrainBenchResult {
        runs,
        gradient_checks,
        curves,
        pytorch_version,
        interference: Vec::new(),
        lists_all_gradients: options.gradients.is_some(),
    })
}

/// Measures steps and forward passes of one network on one thread of this process.
fn measure_steps(
    runtime: &OnnxRuntime,
    net: &BenchNetwork,
    part: TrainedPart,
    round: usize,
    steps: usize,
) -> Result<TrainRun, BenchError> {
    let (onnx, shape) = (net.onnx(), net.shape());
    let prepared = PreparedModel::new(&onnx, "scores", &shape)?;
    let facts = training::trainable_model::known(runtime, &prepared, &shape)?;
    let step = prepared.step(&facts, &TrainableSelection::Last(part.trained_layers(net)))?;
    let mut weights: Vec<Vec<f32>> =
        step.weights.iter().map(|weight| onnx.weight(&weight.name)).collect::<Result<_, _>>()?;
    let (start, mut gradients) = (weights.clone(), vec![Vec::new(); weights.len()]);
    let settings = OptimizerSettings::default();
    let mut optimizer = Optimizer::new(&settings, &weights);
    let mut random = StdRng::seed_from_u64(3);
    let images: Vec<f32> = (0..shape.iter().product()).map(|_: i64| random.random_range(-1.0..1.0)).collect();
    let labels: Vec<Option<usize>> = (0..net.batch as usize).map(|number| Some(number % net.classes())).collect();
    let targets = cross_entropy(&labels, net.classes(), &LabelSmoothing::default());

    let mut forward = Graph::open(runtime, net.name, &onnx.encode(), 1)?;
    let inputs = [GraphInput { name: "images", shape: &shape, values: &images }];
    let forward_ms = cpu_ms_per_call(steps, || Ok(forward.run(&inputs, |_| {})?))?;
    drop(forward);
    process::reset_peak();
    let mut stepper = Stepper::open(runtime, step, 1)?;
    let step_ms = cpu_ms_per_call(steps, || {
        stepper.learn(&images, &targets, &weights, &mut gradients)?;
        optimizer.step(&mut weights, &mut gradients, &start, 1e-4);
        Ok(())
    })?;
    let peak_bytes = process::peak_bytes(std::process::id());
    let (peer_step_ms, peer_forward_ms) = (None, None);
    Ok(TrainRun { net: net.name, part, round, forward_ms, step_ms, peak_bytes, peer_step_ms, peer_forward_ms })
}

/// Mean CPU time of this process per call, milliseconds, after two calls to warm up.
fn cpu_ms_per_call(calls: usize, mut call: impl FnMut() -> Result<(), BenchError>) -> Result<f64, BenchError> {
    for _ in 0..2 {
        call()?;
    }
    let start_ms = process_cpu_ms();
    for _ in 0..calls {
        call()?;
    }
    Ok((process_cpu_ms() - start_ms) / calls as f64)
}

/// CPU time of this process so far, milliseconds.
fn process_cpu_ms() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    now.map_or(0.0, |now| now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6)
}

fn has_torch(python: &Path) -> bool {
    let imported = Command::new(python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
    imported.is_ok_and(|status| status.success())
}

/// PyTorch in its own process.
struct PyTorchPeer {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Reply to one request, see peer.py.
#[derive(Deserialize)]
struct PeerReply {
    step_ms: f64,
    forward_ms: f64,
    version: String,
}

impl PyTorchPeer {
    /// Starts the script; `None` without PyTorch.
    fn start(python: &Path) -> Option<Self> {
        if !has_torch(python) {
            eprintln!("bench: {} has no PyTorch; measuring without the comparison", python.display());
            return None;
        }
        let mut command = Command::new(python);
        command.args(["-c", PYTORCH_SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().ok()?;
        let (stdin, stdout) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        Some(Self { process, stdin, stdout })
    }

    /// Measures a network with its last `trained_layers` layers trained; `None` if the script failed.
    fn measure(&mut self, net: &BenchNetwork, trained_layers: usize, steps: usize) -> Option<PeerReply> {
        writeln!(self.stdin, "{}", json!({ "net": net, "last": trained_layers, "steps": steps })).ok()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

impl Drop for PyTorchPeer {
    fn drop(&mut self) {
        // Fails if the process has already exited.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
