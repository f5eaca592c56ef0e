//! Tries a release in a process of its own before it is loaded into a serving one: a crash of the runtime, or an
//! endless run, harms nothing else. The same trial measures a release when it is packaged
//! ([`prepare`](crate::prepare)).
//!
//! The process is this program with a hidden command ([`COMMAND`]); it reads a JSON request on standard input and
//! writes its result as JSON on standard output. At a site it uses idle CPU time, if there is any.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use os::process;
use schemas::{FaultKind, FaultNote, MachineRequirements};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vision::batch_cost::measure_batches;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::confinement::{Confinement, confine};

/// Environment variables a trial keeps: paths of programs, libraries and the cache, and the log filter.
const KEPT_VARIABLES: [&str; 9] = [
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "TRIBUTARY_CACHE",
    "TRIBUTARY_ONNXRUNTIME",
    "ORT_DYLIB_PATH",
    "TMPDIR",
    "RUST_LOG",
];
/// The hidden command of the trial process.
pub const COMMAND: &str = "try-release";
/// File in a package with the release's scores of generated pictures.
pub const PROBE: &str = "probe.json";
/// Number of pictures compared: making and decoding them is the main cost of a trial, and wrong weights show in every
/// one.
const PICTURES: usize = 4;
const SEED: u64 = 4242;
/// Scores may differ by this share of the largest score, or of 1 if that is more: rounding on other processors differs
/// by about 1e-4, other weights by far more.
const TOLERANCE_RATIO: f32 = 0.01;
/// CPU time limit of a trial in seconds; the largest model tested (a ResNet-50 of 100 MB) takes 5 s.
const MAX_CPU_S: u64 = 300;
/// Wall-clock limit of a trial, as a site may have little CPU time to spare.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How long a trial may wait for idle CPU time: four times what the largest model takes on a free core. On a machine
/// that is never idle a release would not be tried at all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes read of its result: a hundred times the scores of the largest models.
const MAX_RESULT_BYTES: u64 = 64 << 20;

/// How releases are tried on this machine.
#[derive(Debug, Clone)]
pub struct TrialRunner {
    /// Path of this program.
    pub program: PathBuf,
    /// Path of the ONNX Runtime library; absent: searched for.
    pub onnxruntime: Option<PathBuf>,
}

/// What the trial process is request to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialRequest {
    /// Folder of the model.
    pub folder: PathBuf,
    /// Path of the ONNX Runtime library; absent: searched for.
    pub onnxruntime: Option<PathBuf>,
    /// How the model will be run.
    pub infer: InferenceSettings,
    /// Best batch size and cost per image in milliseconds, if known; measuring takes half a second.
    pub measured: Option<(usize, f64)>,
    /// Whether to run on idle CPU time only.
    pub when_idle: bool,
    /// Whether it may read the targets of links in the folder, as for an operator's folder in the Hugging Face cache.
    /// Releases have no links.
    #[serde(default)]
    pub follow_links: bool,
}

/// Result of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Version of the ONNX Runtime.
    pub runtime: String,
    /// Best batch size, in images.
    pub batch: usize,
    /// Cost per image in that batch, milliseconds.
    pub cost_ms: f64,
    /// Memory that the model added to the process, MiB.
    pub memory_mib: u32,
    /// Scores of the generated pictures, one row per picture.
    pub logits: Vec<Vec<f32>>,
    /// How far the kernel confined it.
    #[serde(default)]
    pub confinement: Confinement,
}

/// Reference outputs of a release, from where it was packaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseProbe {
    /// Version of the ONNX Runtime there.
    pub runtime: String,
    /// Scores of the generated pictures, one row per picture.
    pub logits: Vec<Vec<f32>>,
}

/// The generated pictures that are compared.
pub fn pictures() -> Vec<Vec<u8>> {
    vision::pictures(PICTURES, SEED)
}

impl TrialRunner {
    /// Runs trials with this very program.
    pub fn of_this_program(onnxruntime: Option<PathBuf>) -> Self {
        // The link points to the running program even after its file was replaced.
        let link = PathBuf::from("/proc/self/exe");
        let program = if link.exists() { link } else { std::env::current_exe().unwrap_or(link) };
        Self { program, onnxruntime }
    }

    /// Tries an operator's folder and measures it; the error says why it is unusable.
    pub async fn run_trial(&self, folder: &Path, infer: &InferenceSettings) -> Result<TrialResult, FaultNote> {
        self.run_with_timeout(self.request(folder, infer, None, false, true)).await
    }

    fn request(
        &self,
        folder: &Path,
        infer: &InferenceSettings,
        measured: Option<(usize, f64)>,
        when_idle: bool,
        follow_links: bool,
    ) -> TrialRequest {
        let (folder, onnxruntime) = (folder.to_owned(), self.onnxruntime.clone());
        TrialRequest { folder, onnxruntime, infer: infer.clone(), measured, when_idle, follow_links }
    }

    /// The same on a machine that serves: on idle CPU time, and without measuring what is known. If idle time is too
    /// scarce for 20 s, it starts over at normal priority. `follow_links`: the folder is the operator's, not a received
    /// release.
    pub async fn run_beside_work(
        &self,
        folder: &Path,
        infer: &InferenceSettings,
        measured: Option<(usize, f64)>,
        follow_links: bool,
    ) -> Result<TrialResult, FaultNote> {
        let when_idle = self.request(folder, infer, measured, true, follow_links);
        // Dropping the future kills the process.
        match tokio::time::timeout(IDLE_TIMEOUT, self.run_with_timeout(when_idle.clone())).await {
            Ok(tried) => tried,
            Err(_) => {
                let waited_s = IDLE_TIMEOUT.as_secs();
                tracing::info!(waited_s, "no idle CPU; trial runs at normal priority");
                self.run_with_timeout(TrialRequest { when_idle: false, ..when_idle }).await
            }
        }
    }

    async fn run_with_timeout(&self, request: TrialRequest) -> Result<TrialResult, FaultNote> {
        match tokio::time::timeout(TRIAL_TIMEOUT, self.run_process(&request)).await {
            Ok(answered) => {
                if let Ok(TrialResult { confinement: Confinement::None | Confinement::Partial, .. }) = &answered {
                    tracing::info!("trial not fully sandboxed; Landlock needs Linux 6.12 and must be enabled");
                }
                answered
            }
            Err(_) => Err(stuck(&format!("for {} minutes", TRIAL_TIMEOUT.as_secs() / 60))),
        }
    }

    async fn run_process(&self, request: &TrialRequest) -> Result<TrialResult, FaultNote> {
        let untried = |what: &str, error: std::io::Error| {
            let reason = format!("{what}: {error}; releases are only tried in a process of their own");
            FaultNote::new(
                FaultKind::TrialImpossible,
                reason,
                "allow the program to start processes, and give it memory for one",
            )
        };
        let mut child = tokio::process::Command::new(&self.program)
            .arg(COMMAND)
            // The worker's passwords and keys must not reach a model.
            .env_clear()
            .envs(
                std::env::vars_os()
                    .filter(|(name, _)| name.to_str().is_some_and(|name| KEPT_VARIABLES.contains(&name))),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| untried("could not start the trial process", error))?;
        let question =
            serde_json::to_vec(request).map_err(|error| untried("could not encode the request", error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it is already gone, its exit status tells.
            let _ = stdin.write_all(&question).await;
        }
        let (mut answer, mut stderr_text) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reading = async {
            if let Some(stdout) = stdout {
                stdout.take(MAX_RESULT_BYTES).read_to_end(&mut answer).await?;
            }
            Ok(())
        };
        let listening = async {
            if let Some(stderr) = stderr {
                stderr.take(64 * 1024).read_to_end(&mut stderr_text).await?;
            }
            Ok(())
        };
        let (read, stderr_read): (std::io::Result<()>, std::io::Result<()>) = tokio::join!(reading, listening);
        read.and(stderr_read).map_err(|error| untried("could not read its result", error))?;
        let ended = child.wait().await.map_err(|error| untried("could not wait for it to end", error))?;
        let answer = serde_json::from_slice::<Result<TrialResult, FaultNote>>(&answer);
        match answer {
            Ok(answer) if ended.success() => answer,
            _ => Err(crashed(ended, &String::from_utf8_lossy(&stderr_text))),
        }
    }
}

fn stuck(how_long: &str) -> FaultNote {
    let reason = format!("its trial ran {how_long} and did not finish");
    FaultNote::new("release_stuck", reason, "check the model with `tributary model check`")
}

/// The fault of a process that ended without a result.
fn crashed(ended: ExitStatus, stderr_text: &str) -> FaultNote {
    use std::os::unix::process::ExitStatusExt;
    let signal = ended.signal();
    if signal == Some(nix::sys::signal::Signal::SIGXCPU as i32) {
        return stuck(&format!("for {MAX_CPU_S} s of processor time"));
    }
    let how = match signal {
        Some(signal) => nix::sys::signal::Signal::try_from(signal)
            .map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned()),
        None => ended.to_string(),
    };
    let last = stderr_text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| format!(": {}", line.trim()));
    let reason = format!("its trial process was ended by {how}{}; nothing else was harmed", last.unwrap_or_default());
    FaultNote::new(
        FaultKind::ReleaseCrashed,
        reason,
        "check the model with `tributary model check` and the same ONNX Runtime",
    )
}

/// Address space limit of a trial: the program with its libraries, and sixteen times the size of the model's files for
/// intermediate values.
fn memory_limit_bytes(folder: &Path) -> u64 {
    const PROGRAM: u64 = 4 << 30;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
    PROGRAM.saturating_add(files.saturating_mul(16))
}

/// Runs the trial: loads, measures, scores. Must be called on the only thread of a process, because the kernel confines
/// a thread and its children.
pub fn answer_trial(request: &TrialRequest) -> Result<TrialResult, FaultNote> {
    let remedy = "check the model with `tributary model check`";
    let of_model =
        |name: &str, error: &dyn std::error::Error| FaultNote::new(name, streams::error::error_chain(error), remedy);
    let limit = setrlimit(Resource::RLIMIT_CPU, MAX_CPU_S, MAX_CPU_S + 5);
    let most_bytes = memory_limit_bytes(&request.folder);
    // A graph of a few bytes may request all memory, and the kernel would kill the whole container.
    let limit = limit.and_then(|()| setrlimit(Resource::RLIMIT_AS, most_bytes, most_bytes));
    #[cfg(target_os = "linux")]
    let limit = limit.and_then(|()| nix::sys::prctl::set_no_new_privs());
    let idle = || if request.when_idle { os::scheduling::set_idle_scheduling() } else { Ok(()) };
    if let Err(error) = limit.map_err(std::io::Error::from).and_then(|()| idle()) {
        tracing::debug!(%error, "could not set SCHED_IDLE for the trial; continuing with default scheduling");
    }
    let onnx =
        OnnxRuntime::find_and_load(request.onnxruntime.as_deref()).map_err(|error| of_model(error.name(), &error))?;
    // Confined from here on: the library is loaded, and nothing of the model has been read.
    let confinement = confine(&request.folder, onnx.library(), request.follow_links);
    let model = Model::load(&request.folder).map_err(|error| of_model(error.name(), &error))?;
    let before = process::resident_bytes();
    let failed = |error: vision::InferenceError| of_model(error.name(), &error);
    let mut replica = Replica::open(&onnx, &model, &request.infer).map_err(failed)?;
    let (batch, cost_ms) = match request.measured {
        Some(measured) => measured,
        None => {
            measure_batches(&mut replica).map(|measured| (measured.best_batch, measured.best_ms())).map_err(failed)?
        }
    };
    let added = process::resident_bytes().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
    let pictures = pictures();
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let logits = replica.predict_batch(&pictures).into_iter().map(|seen| Ok(seen.map_err(failed)?.logits));
    Ok(TrialResult {
        runtime: onnx.version().to_owned(),
        batch,
        cost_ms,
        memory_mib: u32::try_from(added.div_ceil(1 << 20)).unwrap_or(u32::MAX),
        logits: logits.collect::<Result<_, _>>()?,
        confinement,
    })
}

/// Compares scores with the release's reference outputs. Pure.
pub fn compare(found: &[Vec<f32>], probe: &ReleaseProbe) -> Result<(), FaultNote> {
    let differs = |reason: String| {
        let remedy = "compare the ONNX Runtime versions and processors of both machines, then import the release again";
        Err(FaultNote::new("probe_differs", reason, remedy))
    };
    if found.len() != probe.logits.len() || found.iter().zip(&probe.logits).any(|(a, b)| a.len() != b.len()) {
        return differs(format!("it gave {} rows of scores instead of {}", found.len(), probe.logits.len()));
    }
    for (picture, (found, expected)) in found.iter().zip(&probe.logits).enumerate() {
        let largest = expected.iter().fold(1.0_f32, |largest, score| largest.max(score.abs()));
        let apart = found.iter().zip(expected).fold(0.0_f32, |apart, (a, b)| apart.max((a - b).abs()));
        if apart > TOLERANCE_RATIO * largest || found.iter().any(|score| !score.is_finite()) {
            return differs(format!(
                "its scores of test picture {picture} differ by up to {apart} from those where it was packaged with ONNX Runtime {}",
                probe.runtime
            ));
        }
    }
    Ok(())
}

/// What a machine must have to run a release that was tried.
pub fn needs(model: &Model, tried: &TrialResult) -> Result<MachineRequirements, vision::ModelError> {
    let mut operators = model.operators()?;
    let opset = operators.remove("ai.onnx").unwrap_or(0);
    Ok(MachineRequirements {
        opset: u32::try_from(opset).unwrap_or(u32::MAX),
        domains: operators.into_keys().collect(),
        runtime: tried.runtime.clone(),
        memory_mib: tried.memory_mib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/models").join(name)
    }

    fn tried(name: &str) -> TrialResult {
        // Not in this process, whose CPU time must not be limited; end-to-end tests run `answer_trial`.
        let model = Model::load(&fixture(name)).unwrap();
        let onnx = OnnxRuntime::find_and_load(None).unwrap();
        let mut replica = Replica::open(&onnx, &model, &InferenceSettings::default()).unwrap();
        let pictures = pictures();
        let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
        let logits = replica.predict_batch(&pictures).into_iter().map(|seen| seen.unwrap().logits).collect();
        TrialResult {
            runtime: onnx.version().into(),
            batch: 1,
            cost_ms: 1.0,
            memory_mib: 1,
            logits,
            confinement: Confinement::None,
        }
    }

    #[test]
    fn a_release_is_recognized_by_its_scores() {
        let (light, initial) = (tried("fashion-light"), tried("fashion-initial"));
        let probe = ReleaseProbe { runtime: light.runtime.clone(), logits: light.logits.clone() };
        assert_eq!(compare(&light.logits, &probe), Ok(()));
        assert_eq!(compare(&initial.logits, &probe).unwrap_err().kind.as_str(), "probe_differs");
        assert_eq!(compare(&light.logits[1..], &probe).unwrap_err().kind.as_str(), "probe_differs");
        let mut broken = light.logits.clone();
        broken[3][0] = f32::NAN;
        assert_eq!(compare(&broken, &probe).unwrap_err().kind.as_str(), "probe_differs");
    }

    #[tokio::test]
    async fn the_fault_says_how_a_process_died() {
        let trial = |program: &str| TrialRunner { program: program.into(), onnxruntime: None };
        let fault =
            trial("/bin/false").run_trial(&fixture("fashion-light"), &InferenceSettings::default()).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::ReleaseCrashed);
        let fault =
            trial("/nowhere").run_trial(&fixture("fashion-light"), &InferenceSettings::default()).await.unwrap_err();
        assert!(
            fault.kind == FaultKind::TrialImpossible && fault.reason.contains("/nowhere")
                || fault.reason.contains("start")
        );
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("dies");
        std::fs::write(&script, "#!/bin/sh\necho last words >&2\nkill -SEGV $$\n").unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let fault = trial(script.to_str().unwrap())
            .run_trial(&fixture("fashion-light"), &InferenceSettings::default())
            .await
            .unwrap_err();
        assert!(fault.reason.contains("SIGSEGV") && fault.reason.contains("last words"), "{}", fault.reason);
    }
}
