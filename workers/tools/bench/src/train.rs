//! Training steps against the forward pass alone, and against PyTorch where it is installed: processor time of one
//! step on one thread, in turns.

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

pub(crate) use learning_curve::write as write_net;
use network::BenchNetwork;
use results::TrainBenchResult;

const PEER: &str = include_str!("train/peer.py");

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrainBenchOptions {
    /// One round of few steps.
    pub quick: bool,
    /// The program that has PyTorch; `python3` if absent.
    pub python: Option<PathBuf>,
    /// Folders of labelled images to learn from, besides the project's own.
    pub data: Vec<PathBuf>,
    /// Folder of gradients to be held against; the project's own if absent.
    pub gradients: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// How much is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum TrainedPart {
    All,
    LastThird,
    Head,
}

impl TrainedPart {
    const EVERY: [TrainedPart; 3] = [TrainedPart::All, TrainedPart::LastThird, TrainedPart::Head];

    fn as_str(self) -> &'static str {
        match self {
            TrainedPart::All => "all",
            TrainedPart::LastThird => "last third",
            TrainedPart::Head => "head",
        }
    }

    fn last(self, net: &BenchNetwork) -> usize {
        match self {
            TrainedPart::All => net.matrices(),
            TrainedPart::LastThird => net.matrices().div_ceil(3),
            TrainedPart::Head => 1,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct TrainRun {
    net: &'static str,
    part: TrainedPart,
    round: usize,
    /// Processor milliseconds of the forward pass alone.
    forward_ms: f64,
    /// Of one step, optimizer included.
    step_ms: f64,
    /// Most memory of the process during it, bytes, everything that it holds included.
    peak_bytes: Option<u64>,
    /// PyTorch's step.
    peer_step_ms: Option<f64>,
    /// PyTorch's forward pass.
    peer_forward_ms: Option<f64>,
}

/// Measures; takes some minutes, or half a minute if `quick`.
pub(crate) async fn run(options: &TrainBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let steps = options.clone();
    let measured = async {
        let beside = interference::measure_interference(options).await?;
        let found = tokio::task::spawn_blocking(move || measure(&steps)).await??;
        Ok(results::report(&TrainBenchResult { beside, ..found }, options.quick))
    };
    tokio::select! {
        report = measured => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

/// The networks whose steps are measured.
fn nets() -> [BenchNetwork; 3] {
    [BenchNetwork::small(), BenchNetwork::mobilenetv2(), BenchNetwork::resnet18()]
}

fn measure(options: &TrainBenchOptions) -> Result<TrainBenchResult, BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let python = options.python.clone().unwrap_or("python3".into());
    let checked = gradients::check(&runtime, options.gradients.as_deref())?;
    let epochs = if options.quick { 2 } else { 20 };
    let mut learned = vec![learning_curve::learn(&runtime, None, &python, epochs)?];
    for folder in &options.data {
        learned.push(learning_curve::learn(&runtime, Some(folder), &python, epochs)?);
    }
    let mut peer = PyTorchPeer::start(&python);
    let rounds = if options.quick { 1 } else { 5 };
    let nets = nets();
    let (mut runs, mut version) = (Vec::new(), None);
    for round in 0..rounds {
        for net in &nets {
            for part in TrainedPart::EVERY {
                eprintln!("bench: round {} of {rounds}, {}, {}", round + 1, net.name, part.as_str());
                let steps = match (options.quick, net.name) {
                    (true, "small") => 20,
                    (true, _) => 2,
                    (false, "small") => 100,
                    (false, _) => 6,
                };
                let mut run = ours(&runtime, net, part, round, steps)?;
                if let Some(said) = peer.as_mut().and_then(|peer| peer.ask(net, part.last(net), steps)) {
                    (run.peer_step_ms, run.peer_forward_ms) = (Some(said.step_ms), Some(said.forward_ms));
                    version = Some(said.version);
                }
                runs.push(run);
            }
        }
    }
    Ok(TrainBenchResult {
        runs,
        checked,
        learned,
        version,
        beside: Vec::new(),
        named_gradients: options.gradients.is_some(),
    })
}

/// Steps and forward passes of one network, in one process and on one thread.
fn ours(
    runtime: &OnnxRuntime,
    net: &BenchNetwork,
    part: TrainedPart,
    round: usize,
    steps: usize,
) -> Result<TrainRun, BenchError> {
    let (onnx, shape) = (net.onnx(), net.shape());
    let prepared = PreparedModel::new(&onnx, "scores", &shape)?;
    let known = training::trainable_model::known(runtime, &prepared, &shape)?;
    let step = prepared.step(&known, &TrainableSelection::Last(part.last(net)))?;
    let mut weights: Vec<Vec<f32>> =
        step.weights.iter().map(|weight| onnx.weight(&weight.name)).collect::<Result<_, _>>()?;
    let (start, mut gradients) = (weights.clone(), vec![Vec::new(); weights.len()]);
    let settings = OptimizerSettings::default();
    let mut optimizer = Optimizer::new(&settings, &weights);
    let mut random = StdRng::seed_from_u64(3);
    let images: Vec<f32> = (0..shape.iter().product()).map(|_: i64| random.random_range(-1.0..1.0)).collect();
    let labels: Vec<Option<usize>> = (0..net.batch as usize).map(|at| Some(at % net.classes())).collect();
    let targets = cross_entropy(&labels, net.classes(), &LabelSmoothing::default());

    let mut forward = Graph::open(runtime, net.name, &onnx.encode(), 1)?;
    let given = [GraphInput { name: "images", shape: &shape, values: &images }];
    let forward_ms = spent(steps, || Ok(forward.run(&given, |_| {})?))?;
    drop(forward);
    process::reset_peak();
    let mut stepper = Stepper::open(runtime, step, 1)?;
    let step_ms = spent(steps, || {
        stepper.learn(&images, &targets, &weights, &mut gradients)?;
        optimizer.step(&mut weights, &mut gradients, &start, 1e-4);
        Ok(())
    })?;
    let peak_bytes = process::peak_bytes(std::process::id());
    let (peer_step_ms, peer_forward_ms) = (None, None);
    Ok(TrainRun { net: net.name, part, round, forward_ms, step_ms, peak_bytes, peer_step_ms, peer_forward_ms })
}

/// Processor milliseconds of this process for each of so many turns, after two that warm up.
fn spent(turns: usize, mut turn: impl FnMut() -> Result<(), BenchError>) -> Result<f64, BenchError> {
    for _ in 0..2 {
        turn()?;
    }
    let begun = processor_ms();
    for _ in 0..turns {
        turn()?;
    }
    Ok((processor_ms() - begun) / turns as f64)
}

fn processor_ms() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    now.map_or(0.0, |now| now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6)
}

fn has_torch(python: &Path) -> bool {
    let has = Command::new(python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
    has.is_ok_and(|status| status.success())
}

/// PyTorch, in a process of its own.
struct PyTorchPeer {
    process: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct PeerReply {
    step_ms: f64,
    forward_ms: f64,
    version: String,
}

impl PyTorchPeer {
    /// `None` without PyTorch.
    fn start(python: &Path) -> Option<Self> {
        if !has_torch(python) {
            eprintln!("bench: {} has no PyTorch, so it is not compared with", python.display());
            return None;
        }
        let mut command = Command::new(python);
        command.args(["-c", PEER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().ok()?;
        let (asks, says) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        Some(Self { process, asks, says })
    }

    fn ask(&mut self, net: &BenchNetwork, last: usize, steps: usize) -> Option<PeerReply> {
        writeln!(self.asks, "{}", json!({ "net": net, "last": last, "steps": steps })).ok()?;
        let mut line = String::new();
        self.says.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

impl Drop for PyTorchPeer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
