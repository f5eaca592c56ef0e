//! Reads a model folder: a checked description with labels and digest.
//!
//! Two kinds of folder: our own (`model.toml`, one ONNX file, labels) and an unchanged Hugging Face export, beside
//! which a `model.toml` may override values. Contradictions are refused with file, line and key, and what to write
//! instead. [`crate::session`] checks whether the graph fits; [`mod@crate::draft`] drafts a `model.toml`.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use schemas::MAX_OBJECTS;
use schemas::ReleaseId;
use schemas::limits::MAX_NAME_CHARS;
use schemas::model::{
    BoxLayout, BoxUnit, BoxesDescription, Filter, MODEL_VERSION, ModelDescription, OutputDescription, OutputKind,
    PadPlace, ResizeMode, ScoreKind,
};
use sha2::{Digest, Sha256};

use crate::detection::preset::{self, lay_over};
use crate::huggingface;
use crate::labels::{self, distinct};
use crate::novelty::{self, Novelty, NoveltyError};
use crate::outline::Outline;

/// Our own description.
const DESCRIPTION: &str = "model.toml";
/// The graph, if there are several ONNX files.
const GRAPH: &str = "graph.onnx";
/// Where exporters put the graph, in order of preference. Any other name is accepted if it is the only ONNX file.
const GRAPHS: [&str; 5] = [GRAPH, "model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx"];
/// Default threshold of a label in a multi-label model.
const DEFAULT_THRESHOLD: f32 = 0.5;
/// Default score above which a detector's object counts as found; that of most authors.
const DEFAULT_OBJECT_THRESHOLD: f32 = 0.25;

/// Longest side of an input in pixels.
pub(crate) const MAX_INPUT_PX: u32 = 4096;

/// A checked model, not yet loaded into a runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its description.
    pub description: ModelDescription,
    /// One label per class, in the order of the output.
    pub labels: Vec<String>,
    /// For a multi-label model or a detector, the threshold of each label, 0 to 1; otherwise empty.
    pub thresholds: Vec<f32>,
    /// Path of the ONNX file.
    pub graph: PathBuf,
    /// Digest of all its files: (name, size, content) in the order of the names.
    pub release: ReleaseId,
    /// Path of its folder.
    pub folder: PathBuf,
    /// All files that belong to it, relative to the folder, sorted.
    pub files: Vec<String>,
    /// Its novelty score; absent if the folder has none, or one of other weights.
    pub novelty: Option<Arc<Novelty>>,
}

/// Why a folder is not a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is neither our kind nor a Hugging Face export.
    #[error("model folder {folder} {why}", folder = folder.display())]
    NoModel {
        /// Path of the folder.
        folder: PathBuf,
        /// What is missing and what to do, in words that follow the path.
        why: String,
    },
    /// A file cannot be read.
    #[error("could not read model file {path}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A file is invalid: bad syntax, or a key that is missing, unknown or of the wrong type.
    #[error("model file {path}, line {line}, column {column}: {why}", path = path.display())]
    Syntax {
        /// Path of the file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Message of the parser.
        why: String,
    },
    /// A value is out of range.
    #[error("model file {path}, line {line}: {key} {why}", path = path.display())]
    Value {
        /// Path of the file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key, with dots.
        key: String,
        /// What is wrong and what is allowed, in words that follow the key.
        why: String,
    },
    /// A label is invalid.
    #[error("model file {path}, line {line}: label {why}", path = path.display())]
    Label {
        /// Path of the file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what is allowed, in words that follow "label".
        why: String,
    },
    /// The graph is invalid, or keeps its weights outside its folder.
    #[error("could not use graph {path}: {why}", path = path.display())]
    Graph {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
}

impl ModelError {
    /// A stable name for logs and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            ModelError::NoModel { .. } => "model_missing",
            ModelError::Unreadable { .. } => "model_unreadable",
            ModelError::Syntax { .. } => "model_syntax",
            ModelError::Value { .. } => "model_value",
            ModelError::Label { .. } => "model_label",
            ModelError::Graph { .. } => "model_graph",
        }
    }
}

/// What both kinds of folder have in common.
pub(crate) struct ModelParts {
    pub(crate) description: ModelDescription,
    pub(crate) labels: Vec<String>,
    /// Relative to the folder, without the graph.
    pub(crate) files: Vec<String>,
}

impl Model {
    /// Reads and checks a folder; hashes its files.
    pub fn load(dir: &Path) -> Result<Model, ModelError> {
        let graph = find_graph(dir)?;
        let outline = read_outline(&dir.join(&graph))?;
        let parts = match kind(dir)? {
            ModelFolderKind::Ours => ours(dir, &outline)?,
            ModelFolderKind::HuggingFace => huggingface::read(dir, &outline)?,
        };
        let ModelParts { description, labels, mut files } = parts;
        let mut graph_files = weights(dir, &graph, &outline)?;
        graph_files.push(graph.clone());
        let novelty = read_novelty(dir, &graph_files)?;
        if novelty.is_some() && description.output.kind.is_detector() {
            let why = format!("has {}, but a detector has no novelty score; remove the file", novelty::FILE);
            return Err(ModelError::NoModel { folder: dir.to_owned(), why });
        }
        files.extend(novelty.is_some().then(|| novelty::FILE.to_owned()));
        files.extend(graph_files);
        files.sort_unstable();
        files.dedup();
        let release = digest(dir, &files)?;
        let thresholds = thresholds(&description.output, &labels);
        let (graph, folder) = (dir.join(graph), dir.to_owned());
        let novelty = novelty.flatten().map(Arc::new);
        Ok(Model { description, labels, thresholds, graph, release, folder, files, novelty })
    }

    /// Whether its folder has a novelty score of other weights, which is ignored.
    pub fn has_stale_novelty(&self) -> bool {
        self.novelty.is_none() && self.files.iter().any(|file| file == novelty::FILE)
    }

    /// Digest of the graph and its weights alone, which a novelty score belongs to: 64 hexadecimal digits.
    pub(crate) fn weights_digest(&self) -> Result<String, ModelError> {
        let graph = self.graph.strip_prefix(&self.folder).unwrap_or(&self.graph).to_string_lossy().into_owned();
        let mut files = weights(&self.folder, &graph, &read_outline(&self.graph)?)?;
        files.push(graph);
        weights_digest(&self.folder, &files)
    }

    /// Size of all its files in bytes.
    pub fn size_bytes(&self) -> Result<u64, ModelError> {
        let size = |name: &String| {
            let path = self.folder.join(name);
            let size = path.metadata().map(|metadata| metadata.len());
            size.map_err(|source| ModelError::Unreadable { path, source })
        };
        self.files.iter().map(size).sum()
    }

    /// Operator sets of its graph, each with its version; the standard one is `ai.onnx`.
    pub fn operators(&self) -> Result<std::collections::BTreeMap<String, u64>, ModelError> {
        Ok(read_outline(&self.graph)?.operators)
    }

    /// The file to correct if the description is wrong, for messages.
    pub(crate) fn description_file(&self) -> String {
        let name = if self.is_ours() { DESCRIPTION } else { huggingface::PREPROCESSOR };
        self.folder.join(name).display().to_string()
    }

    /// The file to correct if the labels are wrong, for messages.
    pub(crate) fn labels_file(&self) -> String {
        let own = labels::FILES.into_iter().find(|name| self.files.iter().any(|file| file == name));
        self.folder.join(own.unwrap_or(huggingface::CONFIG)).display().to_string()
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.files.iter().any(|file| file == DESCRIPTION)
    }
}

enum ModelFolderKind {
    Ours,
    HuggingFace,
}

fn kind(dir: &Path) -> Result<ModelFolderKind, ModelError> {
    if dir.join(DESCRIPTION).exists() {
        return Ok(ModelFolderKind::Ours);
    }
    if dir.join(huggingface::CONFIG).exists() && dir.join(huggingface::PREPROCESSOR).exists() {
        return Ok(ModelFolderKind::HuggingFace);
    }
    let why = format!(
        "has no {DESCRIPTION} and is not a Hugging Face export with {} and {}; `tributary model init {}` drafts a description",
        huggingface::CONFIG,
        huggingface::PREPROCESSOR,
        dir.display()
    );
    Err(ModelError::NoModel { folder: dir.to_owned(), why })
}

fn ours(dir: &Path, outline: &Outline) -> Result<ModelParts, ModelError> {
    let path = dir.join(DESCRIPTION);
    let text = text(&path)?;
    let (description, mut files) = describe(dir, &path, &text, outline)?;
    let at = |key: &str| toml_line(&text, key);
    let value =
        |key: &str, why: String| ModelError::Value { path: path.clone(), line: at(key), key: key.to_owned(), why };
    check(&description).map_err(|(key, why)| value(key, why))?;
    check_maker(&description.output, outline).map_err(|why| value("output.kind", why))?;
    let least = if description.output.kind.is_multi_label() || description.output.kind.is_detector() { 1 } else { 2 };
    let labels = match labels::FILES.into_iter().find(|name| dir.join(name).exists()) {
        None if dir.join(huggingface::CONFIG).exists() => {
            files.push(huggingface::CONFIG.to_owned());
            huggingface::labels(dir, least)?
        }
        name => {
            let name = name.unwrap_or(labels::FILES[0]);
            files.push(name.to_owned());
            distinct(labels::read(&dir.join(name), least)?.iter().map(String::as_str))
        }
    };
    let (gate, thresholds) = (&description.gate.labels, &description.output.thresholds);
    let named = gate.keys().map(|label| ("gate.labels", label));
    let mut named = named.chain(thresholds.keys().map(|label| ("output.thresholds", label)));
    if let Some((table, unknown)) = named.find(|(_, label)| !labels.contains(label)) {
        let given_in = files.last().map_or("", String::as_str);
        let why = format!("is not a label; use one from {given_in}");
        return Err(ModelError::Value { path, line: at(table), key: format!("{table}.{unknown}"), why });
    }
    files.push(DESCRIPTION.to_owned());
    Ok(ModelParts { description, labels, files })
}

/// The description in `model.toml`, merged over that of a Hugging Face export if there is one; and the files of the
/// export, if it was needed.
fn describe(
    dir: &Path,
    path: &Path,
    text: &str,
    outline: &Outline,
) -> Result<(ModelDescription, Vec<String>), ModelError> {
    let syntax = |span: Option<Range<usize>>, why: &str| {
        let (line, column) = position(text, span.unwrap_or(0..0));
        ModelError::Syntax { path: path.to_owned(), line, column, why: why.to_owned() }
    };
    let preset = toml::from_str::<toml::Table>(text).ok().and_then(|table| Some((table.get("preset")?.clone(), table)));
    if let Some((name, mut own)) = preset {
        let value = |key: &str, why: String| ModelError::Value {
            path: path.to_owned(),
            line: toml_line(text, key),
            key: key.to_owned(),
            why,
        };
        let known = name.as_str().and_then(preset::find);
        let unknown = || value("preset", format!("is {name}; it must be one of: {}", preset::names()));
        let preset = known.ok_or_else(unknown)?;
        own.remove("preset");
        let whole = preset.complete(outline, &own).map_err(|missing| value(missing.key, missing.why))?;
        return Ok((merged(whole, text).map_err(|(at, why)| syntax(at, &why))?, Vec::new()));
    }
    let alone = match toml::from_str(text) {
        Ok(description) => return Ok((description, Vec::new())),
        Err(error) => syntax(error.span(), error.message()),
    };
    let is_beside = dir.join(huggingface::CONFIG).exists() && dir.join(huggingface::PREPROCESSOR).exists();
    let Ok(changes) = toml::from_str::<toml::Table>(text) else { return Err(alone) };
    if !is_beside {
        return Err(alone);
    }
    let ModelParts { description, files, .. } = huggingface::read(dir, outline)?;
    // Cannot fail: a description is a table.
    let mut whole = toml::Table::try_from(&description).map_err(|error| syntax(None, &error.to_string()))?;
    lay_over(&mut whole, &changes);
    Ok((merged(whole, text).map_err(|(at, why)| syntax(at, &why))?, files))
}

/// The description in a table that `text` is a part of.
fn merged(whole: toml::Table, text: &str) -> Result<ModelDescription, (Option<Range<usize>>, String)> {
    whole.try_into().map_err(|error: toml::de::Error| {
        // The merged table has no lines; the key in the message has one.
        let key = error.message().split('`').nth(1).and_then(|key| text.find(key));
        (key.map(|at| at..at), error.message().to_owned())
    })
}

/// The ONNX file of a folder, relative to it.
pub(crate) fn find_graph(dir: &Path) -> Result<String, ModelError> {
    let none = |why: &str| Err(ModelError::NoModel { folder: dir.to_owned(), why: why.to_owned() });
    if !dir.exists() {
        return none("does not exist; name the folder of a model");
    }
    if !dir.is_dir() {
        return none("is a file; name its folder");
    }
    if let Some(name) = named_graph(dir)? {
        return Ok(name);
    }
    if let Some(name) = GRAPHS.into_iter().find(|name| dir.join(name).is_file()) {
        return Ok(name.to_owned());
    }
    let mut found = graphs_in(dir, "");
    found.extend(graphs_in(&dir.join("onnx"), "onnx/"));
    let why = match &found[..] {
        [name] => return Ok(name.clone()),
        [] => {
            "has no ONNX file; export the model to ONNX (for Hugging Face `optimum-cli export onnx`) and put it there"
                .to_owned()
        }
        several => format!(
            "has several ONNX files ({}); name the one to use: graph = \"...\" in {DESCRIPTION}, or `tributary model init FILE`",
            several.join(", ")
        ),
    };
    Err(ModelError::NoModel { folder: dir.to_owned(), why })
}

/// The graph that `model.toml` names, if any; other errors in that file are reported later.
fn named_graph(dir: &Path) -> Result<Option<String>, ModelError> {
    let path = dir.join(DESCRIPTION);
    let table: toml::Table = std::fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    let Some(name) = table.get("graph").and_then(toml::Value::as_str) else { return Ok(None) };
    let why = match (is_inside(name), dir.join(name).is_file()) {
        (true, true) => return Ok(Some(name.to_owned())),
        (false, _) => "must be a file of this folder",
        (true, false) => "is not there",
    };
    let line = toml_line(&std::fs::read_to_string(&path).unwrap_or_default(), "graph");
    Err(ModelError::Value { path, line, key: "graph".to_owned(), why: format!("is {name:?}, which {why}") })
}

/// Whether a path stays inside the folder it is relative to.
fn is_inside(path: &str) -> bool {
    let stays = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    !path.is_empty() && Path::new(path).components().all(stays)
}

/// ONNX files of a folder, each prefixed with `prefix`.
fn graphs_in(dir: &Path, prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names = names.filter(|name| name.to_ascii_lowercase().ends_with(".onnx") && !name.starts_with('.'));
    let mut names: Vec<String> = names.map(|name| format!("{prefix}{name}")).collect();
    names.sort();
    names
}

/// The outline of a graph; refuses files that are not graphs.
pub(crate) fn read_outline(graph: &Path) -> Result<Outline, ModelError> {
    let bytes = std::fs::read(graph).map_err(|source| ModelError::Unreadable { path: graph.to_owned(), source })?;
    let wrong = |why: String| ModelError::Graph { path: graph.to_owned(), why };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(wrong("it is a Git LFS pointer, not the graph; run `git lfs pull` in its repository".to_owned()));
    }
    Outline::read(&bytes).map_err(|why| wrong(format!("{why}; export it again")))
}

/// Checks that the graph's last operator fits the described output; the error says what is wrong.
fn check_maker(output: &OutputDescription, outline: &Outline) -> Result<(), String> {
    if let Some(boxes) = &output.boxes {
        return check_scores_maker(boxes, outline);
    }
    let right = match (outline.producer_of(&output.name), output.kind) {
        (Some("Softmax"), OutputKind::Probabilities) | (Some("Sigmoid"), OutputKind::Sigmoid) => return Ok(()),
        (Some("Softmax"), _) => "probabilities",
        (Some("LogSoftmax"), OutputKind::Probabilities) => "logits",
        (Some("Sigmoid"), OutputKind::SigmoidLogits) => "sigmoid",
        // One probability for two labels, or one for each of several.
        (Some("Sigmoid"), OutputKind::Logits) => "probabilities or, for several labels at once, sigmoid",
        _ => return Ok(()),
    };
    let maker = outline.producer_of(&output.name).unwrap_or_default();
    Err(format!("is {}, but the graph ends in a {maker}; write {right}", output.kind.as_str()))
}

/// The same for the scores of a detector, where an output has nothing else.
fn check_scores_maker(boxes: &BoxesDescription, outline: &Outline) -> Result<(), String> {
    let maker = boxes.scores.as_deref().and_then(|scores| outline.producer_of(scores));
    match (maker, boxes.score) {
        (Some(maker @ ("Sigmoid" | "Softmax")), ScoreKind::Sigmoid | ScoreKind::Softmax) => Err(format!(
            "is boxes with scores that the graph already ends in a {maker}; write score = \"plain\" under [output.boxes]"
        )),
        _ => Ok(()),
    }
}

fn thresholds(output: &OutputDescription, labels: &[String]) -> Vec<f32> {
    let default = match output.kind {
        OutputKind::Boxes => DEFAULT_OBJECT_THRESHOLD,
        kind if kind.is_multi_label() => DEFAULT_THRESHOLD,
        _ => return Vec::new(),
    };
    let every = output.threshold.unwrap_or(default);
    labels.iter().map(|label| output.thresholds.get(label).copied().unwrap_or(every)).collect()
}

/// The first value that is out of range: its key, and what is wrong.
pub(crate) fn check(description: &ModelDescription) -> Result<(), (&'static str, String)> {
    let wrong = |key: &'static str, why: String| Err((key, why));
    if description.version != MODEL_VERSION {
        return wrong("version", format!("is {}; this program reads version {MODEL_VERSION}", description.version));
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let name = &description.name;
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(legal) {
        return wrong("name", format!("{name:?} must be 1 to {MAX_NAME_CHARS} of the characters a-z 0-9 - _"));
    }
    input(description)?;
    output(&description.output)?;
    boxes(description)?;
    gate(description)
}

/// Checks what only a detector has, and what it must not have.
fn boxes(description: &ModelDescription) -> Result<(), (&'static str, String)> {
    let wrong = |key: &'static str, why: &str| Err((key, why.to_owned()));
    let (input, output, gate) = (&description.input, &description.output, &description.gate);
    let boxes = match (output.kind, &output.boxes) {
        (OutputKind::Boxes, Some(boxes)) => boxes,
        (OutputKind::Boxes, None) => {
            let why = format!("is missing; describe the boxes, or write preset = with one of: {}", preset::names());
            return Err(("output.boxes", why));
        }
        (_, Some(_)) => return wrong("output.boxes", "is only allowed with kind = \"boxes\""),
        (_, None) if input.source_size.is_some() => {
            return wrong("input.source_size", "is only allowed with kind = \"boxes\"");
        }
        (_, None) => return Ok(()),
    };
    if output.features.is_some() {
        return wrong("output.features", "is not allowed with kind = \"boxes\"; remove it");
    }
    if input.resize == ResizeMode::Crop || input.resize_px.is_some() {
        let why = "cuts off what is at the edges; a detector needs \"stretch\" or \"pad\", without resize_px";
        return wrong(if input.resize == ResizeMode::Crop { "input.resize" } else { "input.resize_px" }, why);
    }
    let unused = "is not allowed with kind = \"boxes\": scores of objects are no distribution; remove it";
    for (key, is_given) in [
        ("gate.temperature", gate.temperature.is_some()),
        ("gate.min_margin_ratio", gate.min_margin_ratio.is_some()),
        ("gate.max_entropy_ratio", gate.max_entropy_ratio.is_some()),
        ("gate.max_novelty", gate.max_novelty.is_some()),
    ] {
        if is_given {
            return wrong(key, unused);
        }
    }
    if boxes.unit == BoxUnit::SourcePixels && input.source_size.is_none() {
        let why = "is \"source_pixels\", but input.source_size names no input by which the graph would know them";
        return wrong("output.boxes.unit", why);
    }
    box_outputs(boxes)
}

fn box_outputs(boxes: &BoxesDescription) -> Result<(), (&'static str, String)> {
    let wrong = |key: &'static str, why: String| Err((key, why));
    let layout = boxes.layout.as_str();
    let is_separate = boxes.layout == BoxLayout::Separate;
    for (key, name) in [
        ("output.boxes.scores", &boxes.scores),
        ("output.boxes.labels", &boxes.labels),
        ("output.boxes.count", &boxes.count),
    ] {
        if name.is_some() && !is_separate {
            return wrong(key, format!("is only allowed with layout = \"separate\", not {layout:?}"));
        }
    }
    if is_separate && boxes.scores.is_none() {
        return wrong("output.boxes.scores", "is missing; name the output with the scores".to_owned());
    }
    let has_final_classes = boxes.layout == BoxLayout::EndToEnd || boxes.labels.is_some();
    if boxes.objectness && (is_separate || has_final_classes) {
        return wrong("output.boxes.objectness", format!("is not allowed with layout = {layout:?}"));
    }
    if has_final_classes && (boxes.score == ScoreKind::Softmax || boxes.multi_label) {
        let key = if boxes.multi_label { "output.boxes.multi_label" } else { "output.boxes.score" };
        return wrong(key, "does not fit outputs with one class number per box".to_owned());
    }
    if boxes.score == ScoreKind::Softmax && boxes.objectness {
        return wrong("output.boxes.objectness", "is not allowed with score = \"softmax\"".to_owned());
    }
    match boxes.strides.iter().find(|stride| !(1..=1024).contains(*stride)) {
        Some(stride) => return wrong("output.boxes.strides", format!("has {stride}; each must be 1 to 1024")),
        None if !boxes.strides.is_empty() && boxes.layout != BoxLayout::Grid => {
            return wrong("output.boxes.strides", format!("is only allowed with layout = \"grid\", not {layout:?}"));
        }
        None if boxes.strides.len() > 16 => {
            return wrong("output.boxes.strides", format!("has {} numbers; at most 16", boxes.strides.len()));
        }
        None => {}
    }
    if let Some(iou) = boxes.nms_iou.filter(|iou| !(0.0..=1.0).contains(iou)) {
        return wrong("output.boxes.nms_iou", format!("is {iou}; it must be 0 to 1"));
    }
    if let Some(most) = boxes.max_objects.filter(|most| !(1..=MAX_OBJECTS as u32).contains(most)) {
        return wrong("output.boxes.max_objects", format!("is {most}; it must be 1 to {MAX_OBJECTS}"));
    }
    Ok(())
}

fn output(output: &OutputDescription) -> Result<(), (&'static str, String)> {
    if output.name.is_empty() {
        return Err(("output.name", "is empty; write the name of the graph's output".to_owned()));
    }
    let given = output.threshold.map(|ratio| ("output.threshold", ratio));
    let mut given = given.into_iter().chain(output.thresholds.values().map(|ratio| ("output.thresholds", *ratio)));
    match given.next() {
        Some((key, _)) if !output.kind.is_multi_label() && !output.kind.is_detector() => {
            Err((key, "is only allowed with kind = \"sigmoid\", \"sigmoid_logits\" or \"boxes\"".to_owned()))
        }
        Some(first) => match std::iter::once(first).chain(given).find(|(_, ratio)| !(0.0..=1.0).contains(ratio)) {
            Some((key, ratio)) => Err((key, format!("is {ratio}; it must be 0 to 1"))),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

fn input(description: &ModelDescription) -> Result<(), (&'static str, String)> {
    let wrong = |key: &'static str, why: String| Err((key, why));
    let input = &description.input;
    if input.name.is_empty() {
        return wrong("input.name", "is empty; write the name of the graph's input".to_owned());
    }
    for (key, size) in [("input.width_px", input.width_px), ("input.height_px", input.height_px)] {
        if !(1..=MAX_INPUT_PX).contains(&size) {
            return wrong(key, format!("is {size}; it must be 1 to {MAX_INPUT_PX}"));
        }
    }
    if !input.scale.is_finite() || input.scale == 0.0 {
        return wrong("input.scale", format!("is {}; it must be a number other than zero", input.scale));
    }
    let count = input.channels.count();
    for (key, numbers) in [("input.mean", &input.mean), ("input.std", &input.std)] {
        if numbers.len() != count {
            let given = numbers.len();
            return wrong(key, format!("has {given} numbers; the input has {count} channels, so it must have {count}"));
        }
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            return wrong(key, format!("contains {number}; it must be a number"));
        }
    }
    if input.std.contains(&0.0) {
        return wrong(
            "input.std",
            "contains zero, but it is a divisor; write 1.0 to leave a channel unchanged".to_owned(),
        );
    }
    match (input.resize, input.resize_px) {
        (ResizeMode::Crop | ResizeMode::Stretch, Some(px)) => {
            let least = input.width_px.max(input.height_px);
            if !(least..=2 * MAX_INPUT_PX).contains(&px) {
                let most = 2 * MAX_INPUT_PX;
                return wrong("input.resize_px", format!("is {px}; it must be {least} (the input) to {most}"));
            }
        }
        (ResizeMode::Pad, Some(_)) => {
            let why = "is not allowed with resize = \"pad\", which crops nothing; remove one of them";
            return wrong("input.resize_px", why.to_owned());
        }
        (_, None) => {}
    }
    if input.resize != ResizeMode::Pad && (input.pad_value != 0 || input.pad_place != PadPlace::Center) {
        let key = if input.pad_value != 0 { "input.pad_value" } else { "input.pad_place" };
        return wrong(key, "is only allowed with resize = \"pad\"".to_owned());
    }
    if !input.antialias && input.filter != Filter::Bilinear {
        return wrong("input.antialias", "is false, which is only allowed with filter = \"bilinear\"".to_owned());
    }
    Ok(())
}

fn gate(description: &ModelDescription) -> Result<(), (&'static str, String)> {
    let gate = &description.gate;
    if let Some(temperature) = gate.temperature.filter(|t| !(t.is_finite() && *t > 0.0)) {
        return Err(("gate.temperature", format!("is {temperature}; it must be above zero")));
    }
    let ratios = [
        ("gate.min_confidence_ratio", gate.min_confidence_ratio),
        ("gate.min_margin_ratio", gate.min_margin_ratio),
        ("gate.max_entropy_ratio", gate.max_entropy_ratio),
        ("gate.max_novelty", gate.max_novelty),
    ];
    let all = ratios.into_iter().filter_map(|(key, ratio)| Some((key, ratio?)));
    let labels = gate.labels.values().map(|ratio| ("gate.labels", *ratio));
    match all.chain(labels).find(|(_, ratio)| !(0.0..=1.0).contains(ratio)) {
        Some((key, ratio)) => Err((key, format!("is {ratio}; it must be 0 to 1"))),
        None => Ok(()),
    }
}

/// The weight files that the graph names; each must be in the graph's folder or below.
fn weights(dir: &Path, graph: &str, outline: &Outline) -> Result<Vec<String>, ModelError> {
    let path = dir.join(graph);
    let wrong = |why: String| ModelError::Graph { path: path.clone(), why };
    let beside = Path::new(graph).parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    for name in &outline.weight_files {
        if !is_inside(name) {
            return Err(wrong(format!("it keeps weights in {name:?}, outside its folder; export it again")));
        }
        let relative = beside.join(name);
        if !dir.join(&relative).is_file() {
            return Err(wrong(format!("it keeps weights in {name:?}, which is missing; put it beside the graph")));
        }
        files.push(relative.to_string_lossy().replace('\\', "/"));
    }
    Ok(files)
}

/// The novelty score of a folder: none, one of other weights, or one of these.
fn read_novelty(dir: &Path, graph_files: &[String]) -> Result<Option<Option<Novelty>>, ModelError> {
    if !dir.join(novelty::FILE).is_file() {
        return Ok(None);
    }
    let path = dir.join(novelty::FILE);
    let text = text(&path)?;
    let (novelty, weights) = Novelty::parse(&text).map_err(|error| match error {
        NoveltyError::Syntax { line, column, why } => ModelError::Syntax { path: path.clone(), line, column, why },
        NoveltyError::Value { key, why } => ModelError::Value { path: path.clone(), line: 1, key: key.to_owned(), why },
    })?;
    Ok(Some((weights == weights_digest(dir, graph_files)?).then_some(novelty)))
}

fn weights_digest(dir: &Path, graph_files: &[String]) -> Result<String, ModelError> {
    let mut files = graph_files.to_vec();
    files.sort_unstable();
    Ok(digest(dir, &files)?.to_string())
}

/// SHA-256 over (name, 0, size as 8 little-endian bytes, content) of each file.
fn digest(dir: &Path, files: &[String]) -> Result<ReleaseId, ModelError> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 * 1024];
    for name in files {
        let path = dir.join(name);
        let unreadable = |source| ModelError::Unreadable { path: path.clone(), source };
        let mut file = File::open(&path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(size.to_le_bytes());
        loop {
            match file.read(&mut piece).map_err(unreadable)? {
                0 => break,
                read => hash.update(piece.get(..read).unwrap_or_default()),
            }
        }
    }
    Ok(ReleaseId::from_sha256(hash.finalize().into()))
}

pub(crate) fn text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Unreadable { path: path.to_owned(), source })
}

/// Line and column of a span's start, both from 1.
pub(crate) fn position(text: &str, span: Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The line of a dotted key, or of the nearest existing table above it.
fn toml_line(text: &str, key: &str) -> usize {
    let Ok(root) = toml::de::DeTable::parse(text) else { return 1 };
    let mut span = 0..0;
    let mut table = Some(root.get_ref());
    for part in key.split('.') {
        let Some((name, value)) = table.and_then(|table| table.get_key_value(part)) else { break };
        span = name.span();
        table = value.get_ref().as_table();
    }
    position(text, span).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const LABELS: &str = labels::FILES[0];

    const TOML: &str = r#"
name = "light"
version = 1

[input]
name = "input"
width_px = 28
height_px = 28
channels = "rgb"
scale = 0.5
mean = [0.1, 0.2, 0.3]
std = [1.0, 1.0, 1.0]

[output]
name = "logits"
kind = "logits"

[gate]
min_confidence_ratio = 0.5
"#;

    fn folder(toml: &str, labels: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(DESCRIPTION), toml).unwrap();
        std::fs::write(dir.path().join(LABELS), labels).unwrap();
        // No bytes are a valid, empty protobuf message.
        std::fs::write(dir.path().join(GRAPH), "").unwrap();
        dir
    }

    fn refusal(dir: &TempDir) -> String {
        Model::load(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_complete_folder_is_read() {
        let dir = folder(TOML, "cat\r\ndog\n\n");
        let model = Model::load(dir.path()).unwrap();
        assert_eq!(model.labels, ["cat", "dog"]);
        assert_eq!(model.files, [GRAPH, LABELS, DESCRIPTION]);
        assert_eq!(model.description.name, "light");
    }

    #[test]
    fn every_wrong_value_is_refused_with_its_line_and_key() {
        for (from, to, parts) in [
            ("version = 1", "version = 2", &["line 3", "version is 2"][..]),
            ("name = \"light\"", "name = \"Light 1\"", &["line 2", "name"]),
            ("name = \"light\"\n", "", &["missing field", "name"]),
            ("width_px = 28", "width_px = 0", &["line 7", "input.width_px is 0", "1 to 4096"]),
            ("width_px = 28", "width_px = \"28\"", &["line 7", "column 12", "invalid type"]),
            ("width_px = 28", "width_px = 28\ncolour = 1", &["line 8", "unknown field", "colour"]),
            ("scale = 0.5", "scale = 0.0", &["line 10", "input.scale"]),
            ("mean = [0.1, 0.2, 0.3]", "mean = [0.1]", &["line 11", "input.mean", "1 numbers", "3 channels"]),
            ("std = [1.0, 1.0, 1.0]", "std = [1.0, 0.0, 1.0]", &["line 12", "input.std", "zero"]),
            ("std = [1.0, 1.0, 1.0]", "std = [1.0, nan, 1.0]", &["line 12", "input.std", "NaN"]),
            ("scale = 0.5", "scale = 0.5\nresize = \"pad\"\nresize_px = 30", &["line 12", "input.resize_px", "pad"]),
            ("scale = 0.5", "scale = 0.5\nresize_px = 20", &["line 11", "input.resize_px", "28"]),
            ("scale = 0.5", "scale = 0.5\nfilter = \"nearest\"\nantialias = false", &["input.antialias", "bilinear"]),
            ("scale = 0.5", "scale = 0.5\nresize = \"crop\"\nresize_px = 20", &["line 12", "28"]),
            ("channels = \"rgb\"", "channels = \"rbg\"", &["line 9", "rbg", "bgr"]),
            ("min_confidence_ratio = 0.5", "min_confidence_ratio = 1.5", &["line 19", "gate.min_confidence_ratio"]),
            ("min_confidence_ratio = 0.5", "temperature = 0.0", &["line 19", "gate.temperature"]),
            ("min_confidence_ratio = 0.5", "labels = { cow = 0.5 }", &["line 19", "gate.labels.cow", "labels.txt"]),
            ("[input]", "[input", &["line 5"]),
        ] {
            assert!(TOML.contains(from), "{from}");
            let why = refusal(&folder(&TOML.replacen(from, to, 1), "cat\ndog\n"));
            for part in parts.iter().chain([&"model.toml"]) {
                assert!(why.contains(part), "{to:?}: {part:?} is not in {why:?}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        for (file, said) in [(GRAPH, "no ONNX file"), (LABELS, LABELS)] {
            let dir = folder(TOML, "cat\ndog\n");
            std::fs::remove_file(dir.path().join(file)).unwrap();
            assert!(refusal(&dir).contains(said), "{}", refusal(&dir));
        }
        let dir = folder(TOML, "cat\ndog\n");
        std::fs::remove_file(dir.path().join(DESCRIPTION)).unwrap();
        assert!(refusal(&dir).contains("tributary model init"));
        std::fs::write(dir.path().join(GRAPH), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(refusal(&dir).contains("git lfs pull"));
        let absent = Model::load(Path::new("/no/such/folder")).unwrap_err();
        assert!(absent.to_string().contains("/no/such/folder does not exist"));
    }

    #[test]
    fn the_release_changes_with_every_file_and_with_nothing_else() {
        let release = |dir: &TempDir| Model::load(dir.path()).unwrap().release;
        let first = release(&folder(TOML, "cat\ndog\n"));
        assert_eq!(first, release(&folder(TOML, "cat\ndog\n")));
        assert_ne!(first, release(&folder(TOML, "cat\ncow\n")));
        assert_ne!(first, release(&folder(&TOML.replace("0.5", "0.6"), "cat\ndog\n")));
        let dir = folder(TOML, "cat\ndog\n");
        std::fs::write(dir.path().join("README.md"), "not part of it").unwrap();
        assert_eq!(first, release(&dir));
        // Field 1 of a model: its format version, 8.
        std::fs::write(dir.path().join(GRAPH), [8, 8]).unwrap();
        assert_ne!(first, release(&dir));
    }

    #[test]
    fn a_release_is_the_digest_of_names_sizes_and_contents() {
        let dir = folder(TOML, "cat\ndog\n");
        let mut whole = Vec::new();
        for (name, content) in [(GRAPH, ""), (LABELS, "cat\ndog\n"), (DESCRIPTION, TOML)] {
            whole.extend(name.as_bytes());
            whole.push(0);
            whole.extend((content.len() as u64).to_le_bytes());
            whole.extend(content.as_bytes());
        }
        let expected = ReleaseId::from_sha256(Sha256::digest(&whole).into());
        assert_eq!(Model::load(dir.path()).unwrap().release, expected);
    }

    /// A graph with one tensor stored in `location`.
    fn graph_with_weights_in(location: &str) -> Vec<u8> {
        let message = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
        let entry = [message(1, b"location"), message(2, location.as_bytes())].concat();
        message(7, &message(5, &message(13, &entry)))
    }

    #[test]
    fn weights_beside_the_graph_belong_to_the_model() {
        let dir = folder(TOML, "cat\ndog\n");
        std::fs::write(dir.path().join(GRAPH), graph_with_weights_in("weights.bin")).unwrap();
        assert!(refusal(&dir).contains("weights.bin"));
        std::fs::write(dir.path().join("weights.bin"), "1").unwrap();
        let first = Model::load(dir.path()).unwrap();
        assert!(first.files.contains(&"weights.bin".to_owned()));
        std::fs::write(dir.path().join("weights.bin"), "2").unwrap();
        assert_ne!(Model::load(dir.path()).unwrap().release, first.release);
    }

    #[test]
    fn weights_outside_the_folder_are_refused() {
        for location in ["../weights.bin", "/etc/passwd", ""] {
            let dir = folder(TOML, "cat\ndog\n");
            std::fs::write(dir.path().join(GRAPH), graph_with_weights_in(location)).unwrap();
            assert!(refusal(&dir).contains("outside its folder"), "{location}");
        }
    }
}
