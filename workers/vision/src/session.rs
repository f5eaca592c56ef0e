//! Session: a model inside ONNX Runtime; with [`graph`](crate::graph) the only file that names ort.
//!
//! Enters: a [`Model`] and a batch of tensors. Leaves: one row of logits an image.
//! Refuses: a runtime that is missing or too old, a graph that contradicts its description or its
//! labels, and numbers that are not finite. The library is found at run time, never linked.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::session::{OutputSelector, RunOptions, Session as OrtSession};
use ort::value::{Outlet, TensorElementType, TensorRef};
use schemas::model::{Layout, ModelDescription, OutputKind};

use crate::lookup::{Candidate, candidates, version_of};
use crate::model::Model;
use crate::tensor;

/// Oldest ONNX Runtime that will do: ort's feature `api-22` asks for it.
pub const OLDEST_RUNTIME: &str = "1.22";

/// Probabilities below this are taken for it before the logarithm.
const SMALLEST_PROBABILITY: f32 = 1e-12;

/// Why a session could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No library anywhere.
    #[error(
        "ONNX Runtime was not found; run `make setup`, or set TRIBUTARY_ONNXRUNTIME to libonnxruntime; looked at: {}",
        listed(looked_at)
    )]
    RuntimeMissing {
        /// Every place looked at, in order.
        looked_at: Vec<PathBuf>,
    },
    /// A file that is not ONNX Runtime, named by a setting or found in the cache.
    #[error("ONNX Runtime {path} given by {given_by} cannot be used: {why}; run `make setup` or name another library", path = path.display())]
    RuntimeUnusable {
        /// The file.
        path: PathBuf,
        /// The setting, variable or folder that led there.
        given_by: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The runtime would not start.
    #[error("ONNX Runtime {path} did not start: {why}", path = path.display())]
    RuntimeBroken {
        /// The library.
        path: PathBuf,
        /// Its words.
        why: String,
    },
    /// The runtime refuses the graph.
    #[error("graph {graph} cannot be loaded: {why}", graph = graph.display())]
    GraphUnusable {
        /// The file.
        graph: PathBuf,
        /// The runtime's words.
        why: String,
    },
    /// The graph and its description say different things.
    #[error("graph {graph} does not fit its description: {why}; {remedy}", graph = graph.display())]
    Mismatch {
        /// The file.
        graph: PathBuf,
        /// Both sides of the contradiction.
        why: String,
        /// Which file to mend, and how.
        remedy: String,
    },
    /// The batch given is not what the session can take.
    #[error(
        "batch of {images} images with {actual_len} numbers does not fit: {expected_len} expected, at most {max_images} images"
    )]
    WrongBatch {
        /// Images claimed.
        images: usize,
        /// Numbers given.
        actual_len: usize,
        /// Numbers expected.
        expected_len: usize,
        /// Most images the graph takes at once.
        max_images: usize,
    },
    /// The runtime failed while running.
    #[error("graph {graph} failed to run: {why}", graph = graph.display())]
    RunFailed {
        /// The file.
        graph: PathBuf,
        /// The runtime's words.
        why: String,
    },
    /// A score that is no number.
    #[error("graph {graph} gave a score that is not finite for image {row} of the batch; the model is broken or this input is beyond it", graph = graph.display())]
    NotFinite {
        /// The file.
        graph: PathBuf,
        /// Which image of the batch, from 0.
        row: usize,
    },
}

impl SessionError {
    /// A stable name for logs and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            SessionError::RuntimeMissing { .. } => "runtime_missing",
            SessionError::RuntimeUnusable { .. } => "runtime_unusable",
            SessionError::RuntimeBroken { .. } => "runtime_broken",
            SessionError::GraphUnusable { .. } => "graph_unusable",
            SessionError::Mismatch { .. } => "graph_mismatch",
            SessionError::WrongBatch { .. } => "batch_mismatch",
            SessionError::RunFailed { .. } => "run_failed",
            SessionError::NotFinite { .. } => "score_not_finite",
        }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The runtime, loaded. One a process: later calls return the first.
#[derive(Debug, Clone)]
pub struct Onnx {
    environment: Environment,
    library: PathBuf,
    version: String,
}

static LOADED: OnceLock<Onnx> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

impl Onnx {
    /// Looks for the library and starts it. Order: `setting`, the variables TRIBUTARY_ONNXRUNTIME
    /// and ORT_DYLIB_PATH, the system's library folders, the cache filled by `make setup`. One
    /// named explicitly must do; one of the system's that will not is passed over with a warning.
    pub fn find_and_load(setting: Option<&Path>) -> Result<Onnx, SessionError> {
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded.clone());
        }
        let onnx = Self::first_usable(candidates(setting, &|name| std::env::var_os(name)))?;
        Ok(LOADED.get_or_init(|| onnx).clone())
    }

    fn first_usable(candidates: Vec<Candidate>) -> Result<Onnx, SessionError> {
        let mut looked_at = Vec::new();
        for Candidate { path, given_by, explicit } in candidates {
            if !explicit && !path.exists() {
                looked_at.push(path);
                continue;
            }
            match Self::load(&path, given_by) {
                Ok(onnx) => {
                    tracing::info!(library = %onnx.library.display(), version = onnx.version, "onnx runtime loaded");
                    return Ok(onnx);
                }
                Err(SessionError::RuntimeUnusable { path, why, .. }) if !explicit => {
                    tracing::warn!(library = %path.display(), fault = why, "onnx runtime passed over");
                    looked_at.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        Err(SessionError::RuntimeMissing { looked_at })
    }

    fn load(path: &Path, given_by: &'static str) -> Result<Onnx, SessionError> {
        let unusable = |why: String| SessionError::RuntimeUnusable { path: path.to_owned(), given_by, why };
        // A relative path would be looked for beside the executable first.
        let library = path.canonicalize().map_err(|error| unusable(error.to_string()))?;
        if !library.is_file() {
            return Err(unusable("it is not a file".to_owned()));
        }
        let builder = ort::init_from(&library).map_err(|error| unusable(load_why(&error)))?;
        let broken = |error: ort::Error| SessionError::RuntimeBroken { path: library.clone(), why: error.to_string() };
        let environment = builder.with_name("tributary").with_telemetry(false).build().map_err(broken)?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        Ok(Onnx { environment, version: version_of(&library), library })
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The library in use.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Its version, as it says itself.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn load_why(error: &ort::LoadDynamicError) -> String {
    use ort::LoadDynamicError::{BadVersion, Dlopen, InvalidVersionString, MissingApi};
    match error {
        Dlopen { error, .. } => {
            let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("it is not a library this system can load ({cause})")
        }
        MissingApi { .. } => "it is a library, but not ONNX Runtime".to_owned(),
        InvalidVersionString => "it does not tell its version".to_owned(),
        BadVersion { version_str, .. } => format!("it is version {version_str}, {OLDEST_RUNTIME} or newer is needed"),
    }
}

/// What a batch gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// Images times classes. Of a model that gives probabilities, their logarithms, so that
    /// `softmax(logits / temperature)` is right for both kinds.
    pub logits: Vec<f32>,
    /// Images times features, if the description names such an output.
    pub features: Option<Vec<f32>>,
}

/// One model in one session; a thread of its own runs it.
pub struct Session {
    inner: OrtSession,
    options: RunOptions<ort::session::HasSelectedOutputs>,
    description: ModelDescription,
    graph: PathBuf,
    classes: usize,
    input_len: usize,
    max_batch: Option<usize>,
    /// Where it can be said what the output is.
    kind_file: String,
    /// Whether a run has shown that the output is what the description says.
    kind_is_checked: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("graph", &self.graph).field("classes", &self.classes).finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the graph and checks it against its description and labels. `threads`: how many one
    /// run may use, at least 1.
    pub fn open(onnx: &Onnx, model: &Model, threads: usize) -> Result<Session, SessionError> {
        let unusable = |error: &dyn std::fmt::Display| SessionError::GraphUnusable {
            graph: model.graph.clone(),
            why: error.to_string(),
        };
        let inner = load(onnx, model, threads.max(1)).map_err(|error| unusable(&error))?;
        let max_batch = Checks { model }.all(&inner)?;
        let description = model.description.clone();
        let mut selector = OutputSelector::no_default().with(description.output.name.as_str());
        if let Some(features) = &description.output.features {
            selector = selector.with(features.as_str());
        }
        let options = RunOptions::new().map_err(|error| unusable(&error))?.with_outputs(selector);
        Ok(Session {
            inner,
            options,
            input_len: tensor::len(&description.input),
            description,
            graph: model.graph.clone(),
            classes: model.labels.len(),
            max_batch,
            kind_file: if model.is_ours() { model.description_file() } else { "a model.toml beside it".into() },
            kind_is_checked: false,
        })
    }

    /// Most images at once; `None` if the graph does not mind.
    pub fn max_batch(&self) -> Option<usize> {
        self.max_batch
    }

    /// Runs the first `images` rows of `batch`.
    pub fn run(&mut self, batch: &[f32], images: usize) -> Result<Outputs, SessionError> {
        let max_images = self.max_batch.unwrap_or(usize::MAX);
        let expected_len = images * self.input_len;
        if images == 0 || images > max_images || batch.len() != expected_len {
            return Err(SessionError::WrongBatch { images, actual_len: batch.len(), expected_len, max_images });
        }
        let graph = &self.graph;
        let failed = |why: String| SessionError::RunFailed { graph: graph.clone(), why };
        let input = TensorRef::from_array_view((tensor::shape(&self.description.input, images), batch))
            .map_err(|error| failed(error.to_string()))?;
        let outputs = self
            .inner
            .run_with_options(ort::inputs![input], &self.options)
            .map_err(|error| failed(error.to_string()))?;
        let take = |name: &str| -> Result<Vec<f32>, SessionError> {
            let value = outputs.get(name).ok_or_else(|| failed(format!("output {name:?} is missing")))?;
            let (_, numbers) = value.try_extract_tensor::<f32>().map_err(|error| failed(error.to_string()))?;
            Ok(numbers.to_vec())
        };
        let output = &self.description.output;
        let mut logits = take(&output.name)?;
        if logits.len() != images * self.classes {
            return Err(wrong_classes(graph, self.classes, logits.len(), images));
        }
        if !self.kind_is_checked && logits.iter().all(|score| score.is_finite()) {
            check_kind(output.kind, &logits, self.classes).map_err(|(why, kind)| SessionError::Mismatch {
                graph: graph.clone(),
                why: format!("its output {:?} {why}", output.name),
                remedy: match kind {
                    Some(kind) => format!("write kind = {kind:?} under [output] in {}", self.kind_file),
                    None => "models for several labels at once are not supported".to_owned(),
                },
            })?;
            self.kind_is_checked = true;
        }
        for (row, scores) in logits.chunks_exact_mut(self.classes).enumerate() {
            if scores.iter().any(|score| !score.is_finite()) {
                return Err(SessionError::NotFinite { graph: graph.clone(), row });
            }
            if output.kind == OutputKind::Probabilities {
                scores.iter_mut().for_each(|score| *score = score.max(SMALLEST_PROBABILITY).ln());
            }
        }
        let features = output.features.as_deref().map(take).transpose()?;
        Ok(Outputs { logits, features })
    }
}

/// Whether scores are what they are said to be, as far as numbers tell: probabilities lie between 0 and 1 and sum to 1 in
/// every row, and logits never do so by chance. Otherwise what they are, and which kind that would be, if one.
fn check_kind(kind: OutputKind, scores: &[f32], classes: usize) -> Result<(), (String, Option<&'static str>)> {
    /// Of a sum of 16-bit floats or of an 8-bit softmax.
    const ROUNDING: f32 = 0.05;
    /// What 32-bit floats leave.
    const EXACT: f32 = 1e-4;
    let sum = |row: &[f32]| row.iter().sum::<f32>();
    let within = scores.iter().all(|score| (-1e-3..=1.001).contains(score));
    let mut rows = scores.chunks_exact(classes);
    match kind {
        OutputKind::Logits if within && rows.all(|row| (sum(row) - 1.0).abs() < EXACT) => {
            Err(("holds probabilities: its numbers lie between 0 and 1 and sum to 1".to_owned(), Some("probabilities")))
        }
        OutputKind::Probabilities if !within => {
            let far = scores.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
            Err((format!("holds no probabilities: one number is {far}"), Some("logits")))
        }
        OutputKind::Probabilities => match rows.map(sum).find(|sum| (sum - 1.0).abs() > ROUNDING) {
            Some(sum) => Err((format!("holds numbers between 0 and 1 that sum to {sum}, not to 1"), None)),
            None => Ok(()),
        },
        OutputKind::Logits => Ok(()),
    }
}

fn wrong_classes(graph: &Path, classes: usize, numbers: usize, images: usize) -> SessionError {
    SessionError::Mismatch {
        graph: graph.to_owned(),
        why: format!("it gave {numbers} scores for {images} images and {classes} labels"),
        remedy: "write one label a class, in the order of the output".to_owned(),
    }
}

fn load(onnx: &Onnx, model: &Model, threads: usize) -> Result<OrtSession, ort::Error> {
    OrtSession::builder(&onnx.environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        // A pattern is memory kept for each batch size seen; the arena alone is as fast.
        .with_memory_pattern(false)?
        .commit_from_file(&model.graph)
}

struct Checks<'a> {
    model: &'a Model,
}

impl Checks<'_> {
    /// Returns the most images the graph takes at once.
    fn all(&self, session: &OrtSession) -> Result<Option<usize>, SessionError> {
        let description = &self.model.description;
        let file = self.model.description_file();
        let input = self.named(session.inputs(), &description.input.name, "input", &file)?;
        if session.inputs().len() != 1 {
            let names = names(session.inputs());
            return Err(self.mismatch(
                format!("it has {} inputs ({names})", session.inputs().len()),
                "export it with the image as its only input".to_owned(),
            ));
        }
        let max_batch = self.input(input, &file)?;
        let output = self.named(session.outputs(), &description.output.name, "output", &file)?;
        self.output(output, &file)?;
        if let Some(features) = &description.output.features {
            let features = self.named(session.outputs(), features, "output", &file)?;
            self.float(features, "output")?;
        }
        Ok(max_batch)
    }

    fn mismatch(&self, why: String, remedy: String) -> SessionError {
        SessionError::Mismatch { graph: self.model.graph.clone(), why, remedy }
    }

    fn named<'o>(&self, outlets: &'o [Outlet], name: &str, what: &str, file: &str) -> Result<&'o Outlet, SessionError> {
        outlets.iter().find(|outlet| outlet.name() == name).ok_or_else(|| {
            self.mismatch(
                format!("it has no {what} {name:?}, but {}", names(outlets)),
                match self.model.is_ours() {
                    true => format!("write the right name as {what}.name in {file}"),
                    false => {
                        format!("export it with the {what} {name:?}, or write a model.toml that names it as it is")
                    }
                },
            )
        })
    }

    fn float<'o>(&self, outlet: &'o Outlet, what: &str) -> Result<&'o [i64], SessionError> {
        let name = outlet.name();
        let remedy = "export the model with 32-bit floating point inputs and outputs".to_owned();
        match (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape()) {
            (Some(TensorElementType::Float32), Some(shape)) => Ok(shape),
            (Some(other), _) => Err(self.mismatch(format!("its {what} {name:?} is {other}, not float32"), remedy)),
            (None, _) => Err(self.mismatch(format!("its {what} {name:?} is not a tensor"), remedy)),
        }
    }

    fn input(&self, outlet: &Outlet, file: &str) -> Result<Option<usize>, SessionError> {
        let shape = self.float(outlet, "input")?;
        let described = tensor::shape(&self.model.description.input, 1);
        let shown = shown(shape);
        let layout = match self.model.description.input.layout {
            Layout::Nchw => "batch, channel, row, column",
            Layout::Nhwc => "batch, row, column, channel",
        };
        let wrong = |remedy: &str| {
            let [_, a, b, c] = described;
            self.mismatch(
                format!("its input {:?} is {shown}, the description says [n, {a}, {b}, {c}] ({layout})", outlet.name()),
                format!("{remedy} in {file}"),
            )
        };
        let fits = |actual: i64, expected: usize| actual < 0 || actual == expected as i64;
        if shape.len() != 4 || !shape.iter().zip(described).skip(1).all(|(actual, expected)| fits(*actual, expected)) {
            return Err(wrong("correct width_px, height_px, channels or layout"));
        }
        match shape[0] {
            ..=-1 => Ok(None),
            1 => Ok(Some(1)),
            0 => Err(self.mismatch("its batch is empty".to_owned(), "export it with a dynamic batch".to_owned())),
            fixed => Err(self.mismatch(
                format!("its batch is fixed to {fixed} images"),
                "export it with a batch of 1 or a dynamic one".to_owned(),
            )),
        }
    }

    fn output(&self, outlet: &Outlet, file: &str) -> Result<(), SessionError> {
        let shape = self.float(outlet, "output")?;
        let Some((_, rest)) = shape.split_first() else {
            return Err(self.mismatch(
                format!("its output {:?} is one number", outlet.name()),
                format!("name the output with one number a class in {file}"),
            ));
        };
        // Dimensions unknown until a run are checked by the run.
        let classes = rest.iter().try_fold(1_i64, |all, size| (*size >= 0).then_some(all * size));
        let labels = self.model.labels.len();
        match classes {
            Some(1) => Err(self.mismatch(
                format!("its output {:?} is one number", outlet.name()),
                "export it with one number a class, at least two: one score, or one probability for two classes, is not \
                 supported"
                    .to_owned(),
            )),
            Some(classes) if classes != labels as i64 => Err(self.mismatch(
                format!(
                    "its output {:?} is {} ({classes} classes), and there are {labels} labels",
                    outlet.name(),
                    shown(shape)
                ),
                format!("write {classes} labels into {}, or name another output in {file}", self.model.labels_file()),
            )),
            _ => Ok(()),
        }
    }
}

fn names(outlets: &[Outlet]) -> String {
    outlets.iter().map(|outlet| format!("{:?}", outlet.name())).collect::<Vec<_>>().join(", ")
}

fn shown(shape: &[i64]) -> String {
    let sizes: Vec<String> =
        shape.iter().map(|size| if *size < 0 { "n".to_owned() } else { size.to_string() }).collect();
    format!("[{}]", sizes.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lookup::{tests::places, version_inside};

    pub(crate) fn onnx() -> Onnx {
        Onnx::find_and_load(None).expect("ONNX Runtime is needed: run `make setup`")
    }

    pub(crate) fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
    }

    /// A copy of a fixture with one replacement in one of its files.
    fn edited(name: &str, file: &str, from: &str, to: &str) -> (tempfile::TempDir, Model) {
        let dir = tempfile::tempdir().unwrap();
        for entry in fixture(name).read_dir().unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} of {name} holds no {from:?}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let model = Model::load(dir.path()).unwrap();
        (dir, model)
    }

    #[test]
    fn numbers_that_are_not_what_they_are_said_to_be_are_refused_at_the_first_run() {
        let onnx = onnx();
        for (name, from, to, said) in [
            ("fashion-light", "kind = \"logits\"", "kind = \"probabilities\"", "holds no probabilities"),
            ("bench-cnn", "kind = \"probabilities\"", "kind = \"logits\"", "sum to 1"),
        ] {
            let (_dir, model) = edited(name, "model.toml", from, to);
            let mut session = Session::open(&onnx, &model, 1).unwrap();
            let why = session.run(&vec![0.3; session.input_len], 1).unwrap_err().to_string();
            assert!(why.contains(said) && why.contains(from) && why.contains("model.toml"), "{why}");
        }
        let several = check_kind(OutputKind::Probabilities, &[0.9, 0.8, 0.1], 3).unwrap_err();
        assert!(several.0.contains("1.8") && several.1.is_none(), "{several:?}");
        assert_eq!(check_kind(OutputKind::Probabilities, &[0.5, 0.48, 0.0], 3), Ok(()));
        assert_eq!(check_kind(OutputKind::Logits, &[0.5, 0.48, 0.0], 3), Ok(()));
    }

    fn refusal(model: &Model) -> String {
        Session::open(&onnx(), model, 1).unwrap_err().to_string()
    }

    #[test]
    fn probabilities_come_out_as_their_logarithms() {
        let model = Model::load(&fixture("bench-cnn")).unwrap();
        let mut session = Session::open(&onnx(), &model, 1).unwrap();
        let batch = vec![0.25; tensor::len(&model.description.input)];
        let outputs = session.run(&batch, 1).unwrap();
        let sum: f32 = outputs.logits.iter().map(|logit| logit.exp()).sum();
        assert_eq!(outputs.logits.len(), model.labels.len());
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    }

    #[test]
    fn a_batch_gives_each_image_what_it_gets_alone() {
        let model = Model::load(&fixture("fashion-light")).unwrap();
        let mut session = Session::open(&onnx(), &model, 1).unwrap();
        let len = tensor::len(&model.description.input);
        let batch: Vec<f32> = (0..3 * len).map(|i| (i * i % 97) as f32 / 97.0).collect();
        let together = session.run(&batch, 3).unwrap();
        let alone: Vec<Outputs> = batch.chunks(len).map(|row| session.run(row, 1).unwrap()).collect();
        let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        let logits: Vec<f32> = alone.iter().flat_map(|outputs| outputs.logits.clone()).collect();
        assert!(close(&together.logits, &logits));
        let features: Vec<f32> = alone.iter().flat_map(|outputs| outputs.features.clone().unwrap()).collect();
        assert!(close(&together.features.unwrap(), &features));
    }

    #[test]
    fn a_score_that_is_no_number_names_its_row() {
        let model = Model::load(&fixture("fashion-light")).unwrap();
        let mut session = Session::open(&onnx(), &model, 1).unwrap();
        let len = tensor::len(&model.description.input);
        let mut batch = vec![0.0; 3 * len];
        batch[len..2 * len].fill(f32::NAN);
        assert!(matches!(session.run(&batch, 3), Err(SessionError::NotFinite { row: 1, .. })));
    }

    #[test]
    fn a_batch_of_the_wrong_length_is_refused() {
        let model = Model::load(&fixture("fashion-light")).unwrap();
        let mut session = Session::open(&onnx(), &model, 1).unwrap();
        for (len, images) in [(0, 0), (10, 1), (2 * tensor::len(&model.description.input), 1)] {
            let outcome = session.run(&vec![0.0; len], images);
            assert!(matches!(outcome, Err(SessionError::WrongBatch { .. })), "{len} {images}");
        }
    }

    #[test]
    fn too_few_labels_are_refused_with_both_numbers_and_the_file() {
        let text = std::fs::read_to_string(fixture("fashion-light").join("labels.txt")).unwrap();
        let first = text.lines().next().unwrap();
        let (_dir, model) = edited("fashion-light", "labels.txt", &format!("{first}\n"), "");
        let why = refusal(&model);
        assert!(why.contains("10 classes") && why.contains("9 labels") && why.contains("labels.txt"), "{why}");
    }

    #[test]
    fn a_wrong_name_is_refused_with_the_right_ones() {
        let (_dir, model) = edited("fashion-light", "model.toml", "name = \"input\"", "name = \"image\"");
        let why = refusal(&model);
        assert!(why.contains("\"image\"") && why.contains("\"input\"") && why.contains("model.toml"), "{why}");
        let (_dir, model) = edited("fashion-light", "model.toml", "name = \"logits\"", "name = \"scores\"");
        let why = refusal(&model);
        assert!(why.contains("\"scores\"") && why.contains("\"logits\""), "{why}");
    }

    #[test]
    fn a_wrong_size_is_refused_with_both_shapes() {
        let (_dir, model) = edited("fashion-light", "model.toml", "width_px = 28", "width_px = 32");
        let why = refusal(&model);
        assert!(why.contains("[n, 1, 28, 28]") && why.contains("[n, 1, 28, 32]"), "{why}");
    }

    #[test]
    fn a_graph_that_is_cut_off_is_refused_by_name() {
        let (dir, model) = edited("fashion-light", "model.toml", "fashion-light", "fashion-cut");
        let graph = std::fs::read(dir.path().join("graph.onnx")).unwrap();
        std::fs::write(dir.path().join("graph.onnx"), &graph[..graph.len() / 2]).unwrap();
        assert!(matches!(Model::load(dir.path()), Err(crate::ModelError::Graph { .. })));
        assert!(matches!(Session::open(&onnx(), &model, 1), Err(SessionError::GraphUnusable { .. })));
    }

    #[test]
    fn a_missing_runtime_names_every_place_and_the_remedy() {
        let none = places(None, &[("TRIBUTARY_CACHE", "/nowhere"), ("LD_LIBRARY_PATH", "/nowhere/else")]);
        let none: Vec<Candidate> = none.into_iter().filter(|place| place.path.starts_with("/nowhere")).collect();
        let why = Onnx::first_usable(none).unwrap_err().to_string();
        for part in ["make setup", "/nowhere/onnxruntime-1.31.1/libonnxruntime", "/nowhere/else/libonnxruntime"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_if_named_and_passed_over_if_found() {
        // The first library that loads stays for the whole process, so load the right one first.
        let good = onnx();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so");
        std::fs::write(&path, "not a library").unwrap();
        assert!(version_inside(&path).is_none());
        assert_eq!(version_inside(good.library()).as_deref(), Some(good.version()));
        let named = Candidate { path: dir.path().join("absent.so"), given_by: "the setting", explicit: true };
        let why = Onnx::first_usable(vec![named]).unwrap_err().to_string();
        assert!(why.contains("absent.so") && why.contains("the setting") && why.contains("make setup"), "{why}");
    }

    #[test]
    fn a_second_look_returns_the_first_library() {
        let first = onnx();
        let second = Onnx::find_and_load(Some(Path::new("/somewhere/else.so"))).unwrap();
        assert_eq!(first.library(), second.library());
    }
}
