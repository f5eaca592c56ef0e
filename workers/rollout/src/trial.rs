//! A release is tried in a process of its own before it is loaded into one that serves: what crashes the runtime, or never
//! ends, takes nothing with it. The same trial says what to expect of a release when it is packaged ([`prepare`]).
//!
//! The process is this program with a command of its own ([`COMMAND`]); it is asked on its standard input and answers on its
//! standard output, in JSON. At a site it runs on what nobody else wants of the processors, if there is any.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use runtime::process;
use schemas::{FaultKind, FaultNote, MachineRequirements};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vision::batch_cost::measure_batches;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::confinement::{Confinement, confine};

/// What a trial finds in its environment: where programs, libraries and the cache are, and how to log.
const KEPT: [&str; 9] = [
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
/// The program's command for it.
pub const COMMAND: &str = "try-release";
/// The file in a package with what its release saw in generated pictures.
pub const PROBE: &str = "probe.json";
/// So many pictures are compared: making and decoding them is what a trial costs, and other weights show in each.
const PICTURES: usize = 4;
const SEED: u64 = 4242;
/// Scores may differ by this share of the largest, or of 1 where that is more: other processors round otherwise (about
/// 1e-4), and a release with other weights differs by far more.
const TOLERANCE_RATIO: f32 = 0.01;
/// Processor time a trial may take; the largest model seen (a ResNet-50 of 100 MB) takes 5 s.
const MOST_CPU_S: u64 = 300;
/// And time on the wall, for a site has little to spare.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// So long a trial waits for what nobody else wants of the processors: four times what the largest model takes of one that
/// is free. On a machine that is never idle a release would not be tried at all.
const IDLE_PATIENCE: Duration = Duration::from_secs(20);
/// What is read of its answer: scores of the largest models, a hundred times.
const MOST_ANSWER_BYTES: u64 = 64 << 20;

/// How releases are tried on this machine.
#[derive(Debug, Clone)]
pub struct TrialRunner {
    /// This program.
    pub program: PathBuf,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// What is asked of the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialRequest {
    /// Folder of the model.
    pub folder: PathBuf,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// How it will be run.
    pub infer: InferenceSettings,
    /// The best batch and what an image costs in it, milliseconds, if that is known: measuring takes half a second.
    pub measured: Option<(usize, f64)>,
    /// Whether it shall run on what nobody else wants of the processors.
    pub when_idle: bool,
    /// Whether it reads what links in the folder lead to: in a folder of an operator's, as the Hub's cache has them. A
    /// release has no links.
    #[serde(default)]
    pub follow_links: bool,
}

/// What a trial found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Version of the ONNX Runtime.
    pub runtime: String,
    /// Images in the best batch.
    pub batch: usize,
    /// What an image costs in it, milliseconds.
    pub cost_ms: f64,
    /// What the model added to the process's memory, MiB.
    pub memory_mib: u32,
    /// Scores of the generated pictures, a row each.
    pub logits: Vec<Vec<f32>>,
    /// How far the kernel kept it to its files.
    #[serde(default)]
    pub confinement: Confinement,
}

/// What a release saw where it was packaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseProbe {
    /// Version of the ONNX Runtime.
    pub runtime: String,
    /// Scores of the generated pictures, a row each.
    pub logits: Vec<Vec<f32>>,
}

/// The pictures that are compared.
pub fn pictures() -> Vec<Vec<u8>> {
    vision::pictures(PICTURES, SEED)
}

impl TrialRunner {
    /// With this very program.
    pub fn of_this_program(onnxruntime: Option<PathBuf>) -> Self {
        // The link leads to the running program even after its file was replaced.
        let link = PathBuf::from("/proc/self/exe");
        let program = if link.exists() { link } else { std::env::current_exe().unwrap_or(link) };
        Self { program, onnxruntime }
    }

    /// Tries a folder of an operator's, and measures it; an error says why it will not do.
    pub async fn run_trial(&self, folder: &Path, infer: &InferenceSettings) -> Result<TrialResult, FaultNote> {
        self.with(self.asked(folder, infer, None, false, true)).await
    }

    fn asked(
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

    /// The same where others wait for answers: on what nobody else wants of the processors, and without measuring what is
    /// known. Where 20 s of that are not enough it is begun again and takes its turn among the others. `follow_links`: the
    /// folder is the operator's, and no release that came.
    pub async fn run_beside_work(
        &self,
        folder: &Path,
        infer: &InferenceSettings,
        measured: Option<(usize, f64)>,
        follow_links: bool,
    ) -> Result<TrialResult, FaultNote> {
        let when_idle = self.asked(folder, infer, measured, true, follow_links);
        // What is dropped here ends its process.
        match tokio::time::timeout(IDLE_PATIENCE, self.with(when_idle.clone())).await {
            Ok(tried) => tried,
            Err(_) => {
                let waited_s = IDLE_PATIENCE.as_secs();
                tracing::info!(waited_s, "the processors are never idle: the trial takes its turn among the others");
                self.with(TrialRequest { when_idle: false, ..when_idle }).await
            }
        }
    }

    async fn with(&self, asked: TrialRequest) -> Result<TrialResult, FaultNote> {
        match tokio::time::timeout(PATIENCE, self.ask(&asked)).await {
            Ok(answered) => {
                if let Ok(TrialResult { confinement: Confinement::None | Confinement::Partial, .. }) = &answered {
                    tracing::info!(
                        "the kernel did not keep the trial to its files: Landlock needs Linux 6.12, and to be enabled"
                    );
                }
                answered
            }
            Err(_) => Err(stuck(&format!("for {} minutes", PATIENCE.as_secs() / 60))),
        }
    }

    async fn ask(&self, asked: &TrialRequest) -> Result<TrialResult, FaultNote> {
        let untried = |what: &str, error: std::io::Error| {
            let reason = format!("{what}: {error}; without a process of its own it is not tried");
            FaultNote::new(
                FaultKind::TrialImpossible,
                reason,
                "let the program start processes, and give it memory for one",
            )
        };
        let mut child = tokio::process::Command::new(&self.program)
            .arg(COMMAND)
            // Passwords and keys of the worker are none of a model's.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| KEPT.contains(&name))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| untried("the process cannot be started", error))?;
        let question = serde_json::to_vec(asked).map_err(|error| untried("it cannot be asked", error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that is gone already says so by its end.
            let _ = stdin.write_all(&question).await;
        }
        let (mut answer, mut words) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reading = async {
            if let Some(stdout) = stdout {
                stdout.take(MOST_ANSWER_BYTES).read_to_end(&mut answer).await?;
            }
            Ok(())
        };
        let listening = async {
            if let Some(stderr) = stderr {
                stderr.take(64 * 1024).read_to_end(&mut words).await?;
            }
            Ok(())
        };
        let (read, heard): (std::io::Result<()>, std::io::Result<()>) = tokio::join!(reading, listening);
        read.and(heard).map_err(|error| untried("its answer cannot be read", error))?;
        let ended = child.wait().await.map_err(|error| untried("its end cannot be waited for", error))?;
        let answer = serde_json::from_slice::<Result<TrialResult, FaultNote>>(&answer);
        match answer {
            Ok(answer) if ended.success() => answer,
            _ => Err(crashed(ended, &String::from_utf8_lossy(&words))),
        }
    }
}

fn stuck(how_long: &str) -> FaultNote {
    let reason = format!("it was tried {how_long} and came to no end");
    FaultNote::new("release_stuck", reason, "try the model with `tributary model check`")
}

/// Why a process ended without an answer.
fn crashed(ended: ExitStatus, words: &str) -> FaultNote {
    use std::os::unix::process::ExitStatusExt;
    let signal = ended.signal();
    if signal == Some(nix::sys::signal::Signal::SIGXCPU as i32) {
        return stuck(&format!("for {MOST_CPU_S} s of processor time"));
    }
    let how = match signal {
        Some(signal) => nix::sys::signal::Signal::try_from(signal)
            .map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned()),
        None => ended.to_string(),
    };
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).map(|line| format!(": {}", line.trim()));
    let reason =
        format!("the process that tried it was ended by {how}{}; nothing else was harmed", last.unwrap_or_default());
    FaultNote::new(
        FaultKind::ReleaseCrashed,
        reason,
        "try the model with `tributary model check`, with the same ONNX Runtime",
    )
}

/// Address space that a trial may take: the program with its libraries, and sixteen times what the model's files hold, for
/// values on the way.
fn most_memory_bytes(folder: &Path) -> u64 {
    const PROGRAM: u64 = 4 << 30;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
    PROGRAM.saturating_add(files.saturating_mul(16))
}

/// The work of the process: loads, measures, looks. Asked by the first thread of a process while it is the only one, for the
/// kernel confines a thread and those it starts.
pub fn answer_trial(asked: &TrialRequest) -> Result<TrialResult, FaultNote> {
    let remedy = "try the model with `tributary model check`";
    let of_model =
        |name: &str, error: &dyn std::error::Error| FaultNote::new(name, runtime::fault::error_chain(error), remedy);
    let limit = setrlimit(Resource::RLIMIT_CPU, MOST_CPU_S, MOST_CPU_S + 5);
    let most_bytes = most_memory_bytes(&asked.folder);
    // A graph of a few bytes may ask for all memory there is, and the kernel would end the whole container for it.
    let limit = limit.and_then(|()| setrlimit(Resource::RLIMIT_AS, most_bytes, most_bytes));
    #[cfg(target_os = "linux")]
    let limit = limit.and_then(|()| nix::sys::prctl::set_no_new_privs());
    let idle = || if asked.when_idle { streams::scheduling::set_idle_scheduling() } else { Ok(()) };
    if let Err(error) = limit.map_err(std::io::Error::from).and_then(|()| idle()) {
        tracing::debug!(%error, "the kernel treats the trial as anything else");
    }
    let onnx =
        OnnxRuntime::find_and_load(asked.onnxruntime.as_deref()).map_err(|error| of_model(error.name(), &error))?;
    // From here on: the library is loaded, and nothing of the model was read.
    let confinement = confine(&asked.folder, onnx.library(), asked.follow_links);
    let model = Model::load(&asked.folder).map_err(|error| of_model(error.name(), &error))?;
    let before = process::resident_bytes();
    let failed = |error: vision::InferenceError| of_model(error.name(), &error);
    let mut replica = Replica::open(&onnx, &model, &asked.infer).map_err(failed)?;
    let (batch, cost_ms) = match asked.measured {
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

/// Whether scores are those that a release gave where it was packaged. Pure.
pub fn compare(found: &[Vec<f32>], probe: &ReleaseProbe) -> Result<(), FaultNote> {
    let differs = |reason: String| {
        let remedy = "compare the versions of the ONNX Runtime and the processors; then import the release again";
        Err(FaultNote::new("probe_differs", reason, remedy))
    };
    if found.len() != probe.logits.len() || found.iter().zip(&probe.logits).any(|(a, b)| a.len() != b.len()) {
        return differs(format!("it gave {} rows of scores, {} were expected", found.len(), probe.logits.len()));
    }
    for (picture, (found, expected)) in found.iter().zip(&probe.logits).enumerate() {
        let largest = expected.iter().fold(1.0_f32, |largest, score| largest.max(score.abs()));
        let apart = found.iter().zip(expected).fold(0.0_f32, |apart, (a, b)| apart.max((a - b).abs()));
        if apart > TOLERANCE_RATIO * largest || found.iter().any(|score| !score.is_finite()) {
            return differs(format!(
                "its scores of test picture {picture} lie up to {apart} from those it gave where it was packaged with ONNX Runtime {}",
                probe.runtime
            ));
        }
    }
    Ok(())
}

/// What a machine must have for a release that was tried.
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
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
    }

    fn tried(name: &str) -> TrialResult {
        // Not in this process, whose processor time is not to be limited: `answer` is tried by the walks.
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
    fn a_release_is_known_by_what_it_sees() {
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
    async fn a_process_that_dies_says_how() {
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
