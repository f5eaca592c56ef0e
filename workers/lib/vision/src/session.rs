//! A model in ONNX Runtime; with [`graph`](crate::graph) the only module that names ort.
//!
//! In: a [`Model`] and a batch of tensors. Out: one row of logits per image, or its objects. Refused: a runtime that is missing or too
//! old, a graph that contradicts its description or labels, and numbers that are not finite. The library is found at
//! run time, never linked.

mod checks;
mod kind;
mod onnx;
mod values;

use std::path::{Path, PathBuf};

use ort::session::{OutputSelector, RunOptions, Session as OrtSession, SessionInputValue};
use schemas::model::{ModelDescription, OutputKind};

use self::checks::{CheckedGraph, SessionChecks};
pub use self::onnx::OnnxRuntime;
use self::values::InputBuffer;
use crate::detection::{Detections, Detector, DetectorFault, SourceSize};
use crate::model::Model;
use crate::tensor;

/// Why a session could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No library was found.
    #[error(
        "ONNX Runtime was not found; run `make setup`, or set TRIBUTARY_ONNXRUNTIME to libonnxruntime; searched: {}",
        listed(looked_at)
    )]
    RuntimeMissing {
        /// All paths that were searched, in order.
        looked_at: Vec<PathBuf>,
    },
    /// The file is not ONNX Runtime; it was named by a setting or found in the cache.
    #[error("could not use ONNX Runtime {path} from {given_by}: {why}; run `make setup` or name another library", path = path.display())]
    RuntimeUnusable {
        /// Path of the file.
        path: PathBuf,
        /// The setting, variable or folder it was found by.
        given_by: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The runtime did not start.
    #[error("ONNX Runtime {path} did not start: {why}", path = path.display())]
    RuntimeBroken {
        /// Path of the library.
        path: PathBuf,
        /// Its error.
        why: String,
    },
    /// The runtime refuses the graph.
    #[error("could not load graph {graph}: {why}", graph = graph.display())]
    GraphUnusable {
        /// Path of the file.
        graph: PathBuf,
        /// Error of the runtime.
        why: String,
    },
    /// The graph contradicts its description.
    #[error("graph {graph} does not fit its description: {why}; {remedy}", graph = graph.display())]
    Mismatch {
        /// Path of the file.
        graph: PathBuf,
        /// Both sides of the contradiction.
        why: String,
        /// Which file to correct, and how.
        remedy: String,
    },
    /// The batch does not fit the session.
    #[error(
        "batch of {images} images with {actual_len} numbers does not fit: {expected_len} expected, at most {max_images} images"
    )]
    WrongBatch {
        /// Number of images claimed.
        images: usize,
        /// Numbers given.
        actual_len: usize,
        /// Numbers expected.
        expected_len: usize,
        /// Largest batch of the graph.
        max_images: usize,
    },
    /// The runtime failed during a run.
    #[error("graph {graph} failed to run: {why}", graph = graph.display())]
    RunFailed {
        /// Path of the file.
        graph: PathBuf,
        /// Error of the runtime.
        why: String,
    },
    /// A score is NaN or infinite.
    #[error("graph {graph} gave numbers that are not finite for image {row} of the batch; the model is broken or this input is out of its range", graph = graph.display())]
    NotFinite {
        /// Path of the file.
        graph: PathBuf,
        /// Index of the image in the batch, from 0.
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

/// Outputs of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOutputs {
    /// Images times labels. For a model that gives probabilities, the logits that lead to them, so that
    /// [`probabilities`](crate::scores::probabilities) only needs to know whether several labels hold at once.
    pub logits: Vec<f32>,
    /// Images times features, if the description names such an output.
    pub features: Option<Vec<f32>>,
    /// For a detector, the objects of each image; otherwise empty.
    pub detections: Vec<Detections>,
}

/// A model in its own session; used by one thread.
pub struct Session {
    inner: OrtSession,
    options: RunOptions<ort::session::HasSelectedOutputs>,
    description: ModelDescription,
    labels: Vec<String>,
    graph: PathBuf,
    /// Reads the outputs of a detector.
    detector: Option<Detector>,
    buffer: InputBuffer,
    input_len: usize,
    /// Whether the input has a batch.
    has_batch: bool,
    max_batch: Option<usize>,
    /// The file that describes the output's kind.
    kind_file: String,
    /// Whether a run has shown that the output is as described.
    kind_is_checked: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("graph", &self.graph)
            .field("labels", &self.labels.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the graph and checks it against its description and labels. `threads`: per run, at least 1.
    pub fn open(onnx: &OnnxRuntime, model: &Model, threads: usize) -> Result<Session, SessionError> {
        let unusable = |error: ort::Error| SessionError::GraphUnusable {
            graph: model.graph.clone(),
            why: onnx::explain(&error.to_string(), onnx.version()),
        };
        let inner = load(onnx, model, threads.max(1)).map_err(unusable)?;
        let detector = Detector::of(model);
        let CheckedGraph { max_batch, has_batch, buffer } =
            SessionChecks { model, detector: detector.as_ref() }.all(&inner)?;
        let description = model.description.clone();
        let mut selector = OutputSelector::no_default().with(description.output.name.as_str());
        for wanted in detector.iter().flat_map(Detector::wanted) {
            selector = selector.with(wanted.name);
        }
        if let Some(count) = detector.as_ref().and_then(Detector::count_output) {
            selector = selector.with(count);
        }
        if let Some(features) = &description.output.features {
            selector = selector.with(features.as_str());
        }
        let options = RunOptions::new().map_err(unusable)?.with_outputs(selector);
        Ok(Session {
            inner,
            options,
            input_len: tensor::len(&description.input),
            description,
            labels: model.labels.clone(),
            graph: model.graph.clone(),
            detector,
            buffer,
            has_batch,
            max_batch,
            kind_file: if model.is_ours() { model.description_file() } else { "a model.toml beside it".into() },
            kind_is_checked: false,
        })
    }

    /// Largest batch; `None` if the graph does not limit it.
    pub fn max_batch(&self) -> Option<usize> {
        self.max_batch
    }

    /// Whether the model finds objects.
    pub(crate) fn is_detector(&self) -> bool {
        self.detector.is_some()
    }

    /// Runs a classifier on the first `images` rows of `batch`; refuses a detector.
    pub fn run(&mut self, batch: &[f32], images: usize) -> Result<BatchOutputs, SessionError> {
        self.check_batch(batch, images)?;
        let graph = &self.graph;
        let failed = |why: String| SessionError::RunFailed { graph: graph.clone(), why };
        if self.detector.is_some() {
            return Err(failed("it is a detector, and no size of a picture was given".to_owned()));
        }
        let shape = tensor::shape(&self.description.input, images);
        let input = self.buffer.value(&shape, batch).map_err(|error| failed(error.to_string()))?;
        let outputs = self
            .inner
            .run_with_options(ort::inputs![input], &self.options)
            .map_err(|error| failed(error.to_string()))?;
        let output = &self.description.output;
        let value = |name: &str| outputs.get(name).ok_or_else(|| failed(format!("output {name:?} is missing")));
        let numbers = values::read_scores(value(&output.name)?, &self.labels).map_err(failed)?;
        let labels = self.labels.len();
        // One number for two labels is the second's.
        let width = if labels == 2 && numbers.len() == images { 1 } else { labels };
        if numbers.len() != images * width {
            return Err(wrong_classes(graph, labels, numbers.len(), images));
        }
        if let Some(row) = numbers.chunks_exact(width).position(|row| row.iter().any(|number| !number.is_finite())) {
            return Err(SessionError::NotFinite { graph: graph.clone(), row });
        }
        if !self.kind_is_checked {
            kind::check(output.kind, &numbers, width).map_err(|(why, right)| SessionError::Mismatch {
                graph: graph.clone(),
                why: format!("its output {:?} {why}", output.name),
                remedy: format!("write kind = \"{}\" under [output] in {}", right.as_str(), self.kind_file),
            })?;
            self.kind_is_checked = true;
        }
        let logits = kind::logits(output.kind, numbers, width, labels);
        let features = output.features.as_deref().map(|name| values::read_numbers(value(name)?).map_err(failed));
        Ok(BatchOutputs { logits, features: features.transpose()?, detections: Vec::new() })
    }

    /// Runs a detector. `sources`: size of the picture behind each row of `batch`. The logits are those of the best score
    /// of each label, with nothing suppressed.
    pub(crate) fn detect(&mut self, batch: &[f32], sources: &[SourceSize]) -> Result<BatchOutputs, SessionError> {
        let images = sources.len();
        self.check_batch(batch, images)?;
        let graph = &self.graph;
        let failed = |why: String| SessionError::RunFailed { graph: graph.clone(), why };
        let Some(detector) = &mut self.detector else { return Err(failed("it is no detector".to_owned())) };
        let input = &self.description.input;
        let shape = tensor::shape(input, images);
        let shape = if self.has_batch { &shape[..] } else { &shape[1..] };
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(2);
        inputs.push((&input.name, self.buffer.value(shape, batch).map_err(|error| failed(error.to_string()))?));
        if let Some(size) = &input.source_size {
            inputs.push((
                &size.name,
                values::source_sizes(sources, size.order).map_err(|error| failed(error.to_string()))?,
            ));
        }
        let outputs = self.inner.run_with_options(inputs, &self.options).map_err(|error| failed(error.to_string()))?;
        let names = detector.wanted().iter().map(|wanted| wanted.name.to_owned()).collect::<Vec<_>>();
        let names = names
            .iter()
            .map(String::as_str)
            .chain(self.description.output.boxes.as_ref().and_then(|boxes| boxes.count.as_deref()));
        let mut tensors = Vec::with_capacity(4);
        for name in names {
            let value = outputs.get(name).ok_or_else(|| failed(format!("output {name:?} is missing")))?;
            tensors.push(values::read_tensor(name, value).map_err(failed)?);
        }
        let detections = detector.detect(&tensors, sources).map_err(|fault| match fault {
            DetectorFault::Mismatch { why, remedy } => {
                SessionError::Mismatch { graph: graph.clone(), why, remedy: format!("{remedy} {}", self.kind_file) }
            }
            DetectorFault::NotFinite { image } => SessionError::NotFinite { graph: graph.clone(), row: image },
        })?;
        let best: Vec<f32> = detections.iter().flat_map(|found| &found.best).copied().collect();
        let labels = self.labels.len();
        let logits = kind::logits(OutputKind::Boxes, best, labels, labels);
        Ok(BatchOutputs { logits, features: None, detections })
    }

    fn check_batch(&self, batch: &[f32], images: usize) -> Result<(), SessionError> {
        let max_images = self.max_batch.unwrap_or(usize::MAX);
        let expected_len = images * self.input_len;
        if images == 0 || images > max_images || batch.len() != expected_len {
            return Err(SessionError::WrongBatch { images, actual_len: batch.len(), expected_len, max_images });
        }
        Ok(())
    }
}

fn wrong_classes(graph: &Path, classes: usize, numbers: usize, images: usize) -> SessionError {
    SessionError::Mismatch {
        graph: graph.to_owned(),
        why: format!("it gave {numbers} scores for {images} images and {classes} labels"),
        remedy: "write one label per class, in the order of the output".to_owned(),
    }
}

fn load(onnx: &OnnxRuntime, model: &Model, threads: usize) -> Result<OrtSession, ort::Error> {
    OrtSession::builder(onnx.environment())?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        // A memory pattern is kept for each batch size seen; the arena alone is as fast.
        .with_memory_pattern(false)?
        .commit_from_file(&model.graph)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn onnx() -> OnnxRuntime {
        OnnxRuntime::find_and_load(None).expect("ONNX Runtime is needed: run `make setup`")
    }

    pub(crate) fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/models").join(name)
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
    fn numbers_that_contradict_their_kind_are_refused_at_the_first_run() {
        let (_dir, model) = edited("fashion-light", "model.toml", "kind = \"logits\"", "kind = \"probabilities\"");
        let mut session = Session::open(&onnx(), &model, 1).unwrap();
        let why = session.run(&vec![0.3; session.input_len], 1).unwrap_err().to_string();
        for part in ["does not hold probabilities", "kind = \"logits\"", "model.toml"] {
            assert!(why.contains(part), "{part}: {why}");
        }
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
        let alone: Vec<BatchOutputs> = batch.chunks(len).map(|row| session.run(row, 1).unwrap()).collect();
        let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        let logits: Vec<f32> = alone.iter().flat_map(|outputs| outputs.logits.clone()).collect();
        assert!(close(&together.logits, &logits));
        let features: Vec<f32> = alone.iter().flat_map(|outputs| outputs.features.clone().unwrap()).collect();
        assert!(close(&together.features.unwrap(), &features));
    }

    #[test]
    fn a_score_that_is_not_finite_is_refused_with_its_row() {
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
    fn a_second_look_returns_the_first_library() {
        let first = onnx();
        let second = OnnxRuntime::find_and_load(Some(Path::new("/somewhere/else.so"))).unwrap();
        assert_eq!(first.library(), second.library());
    }
}
