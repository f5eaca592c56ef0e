//! Drafts a `model.toml` and labels for an ONNX file without a description, with the source of each value.
//!
//! Values from the graph, its exporter's metadata or files beside it are used; the rest is guessed from how most models
//! are trained, and marked as a guess. Detectors get the keys of a preset. Refuses graphs that are neither picture
//! classifiers nor detectors. Writes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use schemas::model::{
    BackgroundClass, BoxLayout, Channels, CropOffset, Filter, GateDefaults, InputDescription, Layout, MODEL_VERSION,
    ModelDescription, OutputDescription, OutputKind, PadPlace, ResizeMode,
};
use serde_json::Value;

use crate::detection::preset::{self, PresetGuess};
use crate::huggingface::{self, JsonFile, spell_name};
use crate::labels;
use crate::model::{ModelError, find_graph, read_outline};
use crate::outline::{GraphPort, Outline, PortContent};

/// Element types, numbered as in onnx.proto.
const UINT8: i32 = 2;

/// Input size if the graph leaves it open.
const USUAL_SIDE_PX: u32 = 224;

/// The same of a detector.
const USUAL_DETECTOR_SIDE_PX: u32 = 640;

/// Mean and deviation of ImageNet, which most training code divides by (torchvision, timm).
pub(crate) const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// A draft of a model's description.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDraft {
    /// The drafted description.
    pub description: ModelDescription,
    /// Labels, if they have to be written to a file.
    pub labels: Option<Vec<String>>,
    /// Sources of the values, in the order of the description.
    pub notes: Vec<DraftNote>,
}

/// Source of a drafted value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftNote {
    /// The key, such as `input.scale`, or `labels`.
    pub key: &'static str,
    /// Source of the value, or reason for the guess.
    pub why: String,
    /// Whether it is a guess.
    pub is_guess: bool,
}

/// Drafts a description of the model in `dir`. `graph`: its ONNX file there, if the folder alone does not determine it.
/// `preset`: name of the form of a detector, if it is known.
pub fn draft(dir: &Path, graph: Option<&str>, preset: Option<&str>) -> Result<ModelDraft, ModelError> {
    let name = match graph {
        Some(name) => name.to_owned(),
        None => find_graph(dir)?,
    };
    let path = dir.join(&name);
    let outline = read_outline(&path)?;
    let wrong = |why: String| ModelError::Graph { path: path.clone(), why };
    let mut drafter = Drafter { dir, outline: &outline, notes: Vec::new() };
    let tasks = ["classify", "detect"];
    if let Some(task) = outline.metadata.get("task").filter(|task| !tasks.contains(&task.as_str())) {
        return Err(wrong(format!(
            "its metadata name the task {task:?}; only classifiers and detectors are supported"
        )));
    }
    let has_huggingface = dir.join(huggingface::CONFIG).exists() && dir.join(huggingface::PREPROCESSOR).exists();
    let detector = drafter.find_preset(preset).map_err(wrong)?;
    let (mut description, labels) = if let Some(detector) = detector {
        drafter.describe_detector(&detector, &name, has_huggingface)?
    } else if has_huggingface {
        let parts = huggingface::read(dir, &outline)?;
        drafter.know("input", format!("{} and the graph", huggingface::PREPROCESSOR));
        drafter.know("output", format!("{} and the graph", huggingface::CONFIG));
        drafter.know("labels", format!("id2label in {}; they stay there", huggingface::CONFIG));
        (parts.description, None)
    } else {
        let (input, shape) = drafter.find_input().map_err(wrong)?;
        let (output, classes) = drafter.find_output().map_err(wrong)?;
        let input = drafter.describe_input(input, &shape)?;
        // One number distinguishes two classes.
        let (labels, count) = drafter.labels(classes.map(|classes| if classes == 1 { 2 } else { classes }))?;
        if labels.is_none() && count.is_none() {
            return Err(wrong(
                "its output does not give the number of classes; write labels.txt first, one label per line".into(),
            ));
        }
        let output = drafter.describe_output(output, classes);
        let description = ModelDescription {
            name: called(dir, &name),
            version: MODEL_VERSION,
            graph: None,
            input,
            output,
            gate: GateDefaults::default(),
        };
        (description, labels)
    };
    // Only if the folder alone does not determine it.
    description.graph = (find_graph(dir).ok().as_deref() != Some(name.as_str())).then_some(name);
    Ok(ModelDraft { description, labels, notes: drafter.notes })
}

/// Name of a model after its graph, or after its folder: many files are called model.onnx.
fn called(dir: &Path, graph: &str) -> String {
    let stem = Path::new(graph).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = dir.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
    spell_name(&if ["model", "graph", "best"].contains(&stem.as_str()) { folder.unwrap_or(stem) } else { stem })
}

impl ModelDraft {
    /// The text of `model.toml`, with the source of each value.
    pub fn toml(&self) -> Result<String, toml::ser::Error> {
        let plain = toml::to_string(&self.description)?;
        let mut text = String::from("# Drafted by `tributary model init`. Try it on pictures whose labels you know:\n");
        text.push_str(match self.description.output.boxes {
            None => "#   tributary model check DIR --images PICTURES --labels-from-folders\n",
            Some(_) => "#   tributary model check DIR --image PICTURE --draw BOXES.png\n",
        });
        let mut table = String::new();
        for line in plain.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            }
            let key = match line.split_once(" = ") {
                Some((key, _)) => format!("{table}{key}"),
                None => table.trim_end_matches('.').to_owned(),
            };
            let note = self.notes.iter().find(|note| note.key == key).filter(|_| !line.is_empty());
            if let Some(DraftNote { why, is_guess, .. }) = note {
                let said = if *is_guess { "a guess: " } else { "from " };
                text.push_str(&format!("# {said}{why}\n"));
            }
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    }
}

struct Drafter<'a> {
    dir: &'a Path,
    outline: &'a Outline,
    notes: Vec<DraftNote>,
}

/// How pixels become numbers, and the source.
struct PixelScaling {
    scale: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Drafter<'_> {
    fn know(&mut self, key: &'static str, why: impl Into<String>) {
        self.notes.push(DraftNote { key, why: why.into(), is_guess: false });
    }

    fn guess(&mut self, key: &'static str, why: impl Into<String>) {
        self.notes.push(DraftNote { key, why: why.into(), is_guess: true });
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.outline.metadata.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The preset of a detector: as given, or as the graph shows; `None` for a classifier.
    fn find_preset(&self, given: Option<&str>) -> Result<Option<PresetGuess>, String> {
        if let Some(name) = given {
            let preset =
                preset::find(name).ok_or_else(|| format!("{name:?} is no preset; name one of: {}", preset::names()))?;
            return Ok(Some(PresetGuess { preset, why: format!("the preset {}", preset.name), is_guess: false }));
        }
        let config = self.config().ok().flatten();
        let of_config = || listed(config.as_ref()?.get("id2label")?).map(|labels| labels.len());
        let labels = self.metadata("names").and_then(python_names).map(|names| names.len());
        let of_file = || {
            let name = labels::FILES.into_iter().find(|name| self.dir.join(name).exists())?;
            labels::read(&self.dir.join(name), 1).ok().map(|labels| labels.len())
        };
        let found = preset::guess(self.outline, config.as_ref(), labels.or_else(of_file).or_else(of_config))?;
        if found.is_none() && self.metadata("task") == Some("detect") {
            return Err(format!(
                "its metadata name the task \"detect\", but its output has no known shape; name its form with --preset: {}",
                preset::names()
            ));
        }
        Ok(found)
    }

    /// Describes a detector by its preset, the graph, and what Hugging Face left beside it.
    fn describe_detector(
        &mut self,
        found: &PresetGuess,
        graph: &str,
        has_huggingface: bool,
    ) -> Result<(ModelDescription, Option<Vec<String>>), ModelError> {
        let PresetGuess { preset, why, is_guess } = found;
        if has_huggingface && huggingface::is_detector(self.dir)? {
            let parts = huggingface::read_detector(self.dir, self.outline, preset, true)?;
            self.know("input", format!("{} and the graph", huggingface::PREPROCESSOR));
            self.know("output", format!("the preset {}, by {why}", preset.name));
            self.know("labels", format!("id2label in {}; they stay there", huggingface::CONFIG));
            return Ok((parts.description, None));
        }
        let mut own = toml::Table::new();
        own.insert("name".to_owned(), called(self.dir, graph).into());
        own.insert("version".to_owned(), i64::from(MODEL_VERSION).into());
        let sides = self.metadata("imgsz").map(numbers).unwrap_or_default();
        let description = match preset.complete(self.outline, &own) {
            Ok(table) => table,
            // An open size is in the metadata, or the usual one.
            Err(missing) if missing.key.ends_with("_px") => {
                let side =
                    |place: usize| sides.get(place).map_or(i64::from(USUAL_DETECTOR_SIDE_PX), |side| *side as i64);
                let input = toml::Table::from_iter([
                    ("height_px".to_owned(), side(0).into()),
                    ("width_px".to_owned(), side(1).into()),
                ]);
                own.insert("input".to_owned(), input.into());
                match sides.is_empty() {
                    true => self.guess("input.width_px", "the graph takes any size; write the one it was trained with"),
                    false => self.know("input.width_px", "the model's metadata; the graph takes any size"),
                }
                preset.complete(self.outline, &own).map_err(|missing| self.missing(graph, &missing))?
            }
            Err(missing) => return Err(self.missing(graph, &missing)),
        };
        let description: ModelDescription = description.try_into().map_err(|error: toml::de::Error| {
            ModelError::Graph { path: self.dir.join(graph), why: format!("it cannot be described: {error}") }
        })?;
        let said = format!("the preset {}, by {why}", preset.name);
        match is_guess {
            true => self.guess("output", said),
            false => self.know("output", said),
        }
        let labels = self.labels(detector_classes(&description, self.outline))?.0;
        Ok((description, labels))
    }

    fn missing(&self, graph: &str, missing: &preset::MissingKey) -> ModelError {
        let why = format!("{} {}, in a model.toml with preset = \"...\"", missing.key, missing.why);
        ModelError::Graph { path: self.dir.join(graph), why }
    }

    fn find_input(&self) -> Result<(GraphPort, Vec<Option<u32>>), String> {
        match &self.outline.inputs[..] {
            [port] => match &port.holds {
                PortContent::Tensor { shape, .. } if shape.len() == 4 => Ok((port.clone(), shape.clone())),
                _ => Err(format!("its input {:?} is not a batch of pictures with four dimensions", port.name)),
            },
            [] => Err("it has no input".to_owned()),
            several => {
                let names: Vec<&str> = several.iter().map(|port| port.name.as_str()).collect();
                Err(format!("it has {} inputs ({}); export it with the picture alone", several.len(), names.join(", ")))
            }
        }
    }

    /// The output with the scores, and their number if known.
    fn find_output(&self) -> Result<(GraphPort, Option<usize>), String> {
        let classes = |port: &GraphPort| match &port.holds {
            PortContent::LabelScores => Some(self.outline.labels().map(|labels| labels.len())),
            PortContent::Tensor { element: 1 | 10, shape } if shape.len() > 1 => {
                let sizes = shape.iter().skip(1).map(|size| size.and_then(|size| usize::try_from(size).ok()));
                Some(sizes.product::<Option<usize>>())
            }
            _ => None,
        };
        let usable: Vec<(&GraphPort, Option<usize>)> =
            self.outline.outputs.iter().filter_map(|port| Some((port, classes(port)?))).collect();
        let usual = ["logits", "probabilities", "probs", "scores", "output", "loss"];
        let named = usable.iter().find(|(port, _)| usual.contains(&port.name.to_ascii_lowercase().as_str()));
        match named.or(usable.first()) {
            Some((port, classes)) => Ok(((*port).clone(), *classes)),
            None => Err("none of its outputs has one score per class".to_owned()),
        }
    }

    fn describe_input(&mut self, port: GraphPort, shape: &[Option<u32>]) -> Result<InputDescription, ModelError> {
        self.know("input.name", "the graph");
        let colours = |size: Option<u32>| matches!(size, Some(1 | 3));
        let (layout, [channels, height, width]) = match shape {
            [_, height, width, channels] if colours(*channels) && !colours(*height) => {
                (Layout::Nhwc, [*channels, *height, *width])
            }
            [_, channels, height, width] => (Layout::Nchw, [*channels, *height, *width]),
            _ => (Layout::Nchw, [None; 3]),
        };
        let is_gray = channels == Some(1);
        let timm = self.timm_config()?;
        let declared = self.metadata("imgsz").map(numbers).or_else(|| timm_numbers(timm.as_ref(), "input_size"));
        let declared: Option<Vec<u32>> =
            declared.map(|sides| sides.iter().rev().take(2).map(|side| *side as u32).collect());
        let side = |size: Option<u32>, place: usize| {
            size.or_else(|| declared.as_ref()?.get(place).copied()).unwrap_or(USUAL_SIDE_PX)
        };
        let (width_px, height_px) = (side(width, 0), side(height, 1));
        match (width.is_some() && height.is_some(), declared.is_some()) {
            (true, _) => self.know("input.width_px", "the graph"),
            (false, true) => self.know("input.width_px", "the model's metadata; the graph takes any size"),
            (false, false) => {
                self.guess("input.width_px", "the graph takes any size; write the one it was trained with")
            }
        }
        let channels = match (is_gray, self.metadata("Image.BitmapPixelFormat")) {
            (true, _) => Channels::Gray,
            (false, Some(format)) => {
                let channels = if format.starts_with("Bgr") { Channels::Bgr } else { Channels::Rgb };
                self.know("input.channels", "the metadata Image.BitmapPixelFormat");
                channels
            }
            (false, None) => {
                self.guess("input.channels", "most models take red first; OpenCV and Caffe give blue first");
                Channels::Rgb
            }
        };
        let PixelScaling { scale, mean, std } = self.scaling(&port, channels, timm.as_ref());
        let mut input = InputDescription {
            name: port.name,
            width_px,
            height_px,
            channels,
            layout,
            scale,
            mean,
            std,
            resize: ResizeMode::Stretch,
            resize_px: None,
            crop_offset: CropOffset::default(),
            filter: Filter::Bilinear,
            antialias: true,
            pad_value: 0,
            pad_place: PadPlace::Center,
            source_size: None,
        };
        self.fit(&mut input, timm.as_ref());
        Ok(input)
    }

    /// From the most reliable source to the least.
    fn scaling(&mut self, port: &GraphPort, channels: Channels, timm: Option<&Value>) -> PixelScaling {
        let count = channels.count();
        let plain = |scale: f32| PixelScaling { scale, mean: vec![0.0; count], std: vec![1.0; count] };
        const RANGE: f32 = 1.0 / 255.0;
        if matches!(port.holds, PortContent::Tensor { element: UINT8, .. }) {
            self.know("input.scale", "the graph: it takes bytes");
            return plain(1.0);
        }
        if let (Some(mean), Some(std)) = (timm_numbers(timm, "mean"), timm_numbers(timm, "std")) {
            self.know("input.scale", "pretrained_cfg in config.json");
            return PixelScaling { scale: RANGE, mean, std };
        }
        let given = |key: &str| self.metadata(key).map(numbers).filter(|numbers| numbers.len() == count);
        let (mean, std) =
            (given("CustomVision.Preprocess.NormalizeMean"), given("CustomVision.Preprocess.NormalizeStd"));
        let range = self.metadata("Image.NominalPixelRange").map(str::to_owned);
        if let Some(range) = range {
            self.know("input.scale", format!("the metadata Image.NominalPixelRange, {range}"));
            let scaled = match range.as_str() {
                "Normalized_0_1" => plain(RANGE),
                "Normalized_1_1" => PixelScaling { mean: vec![1.0; count], ..plain(2.0 * RANGE) },
                _ => plain(1.0),
            };
            return PixelScaling { mean: mean.unwrap_or(scaled.mean), std: std.unwrap_or(scaled.std), ..scaled };
        }
        if self.metadata("imgsz").is_some() && self.metadata("names").is_some() {
            self.know("input.scale", "ultralytics' metadata: its classifiers take 0 to 1");
            return plain(RANGE);
        }
        let first: Vec<String> = self.outline.first_operators(&port.name, 4).into_iter().map(str::to_owned).collect();
        let scales =
            |operator: &&String| ["Sub", "Div", "Mul", "Add", "BatchNormalization"].contains(&operator.as_str());
        let own: Vec<&str> = first
            .iter()
            .filter(|operator| !["Transpose", "Cast", "Identity"].contains(&operator.as_str()))
            .take_while(scales)
            .map(String::as_str)
            .collect();
        match own[..] {
            // As torchvision's Normalize is exported, after a division by 255.
            ["Sub", "Div", ..] => {
                self.guess("input.scale", "the graph begins with Sub and Div, as it does where it takes 0 to 1");
                plain(RANGE)
            }
            [_, ..] => {
                let why = format!("the graph scales by itself ({}), so it probably takes 0 to 255", own.join(", "));
                self.guess("input.scale", why);
                plain(1.0)
            }
            [] if channels == Channels::Gray => {
                self.guess("input.scale", "models of gray pictures mostly take 0 to 1");
                plain(RANGE)
            }
            [] => {
                self.guess("input.scale", "ImageNet's mean and deviation, with which most models are trained");
                PixelScaling { scale: RANGE, mean: IMAGENET.0.to_vec(), std: IMAGENET.1.to_vec() }
            }
        }
    }

    fn fit(&mut self, input: &mut InputDescription, timm: Option<&Value>) {
        let is_square = input.width_px == input.height_px;
        let larger = |share: f64| (f64::from(input.width_px) / share).floor() as u32;
        if let Some(timm) = timm {
            // timm.data.transforms_factory, transforms_imagenet_eval.
            let share = timm.get("crop_pct").and_then(Value::as_f64).filter(|share| *share > 0.0).unwrap_or(0.875);
            let squashes = timm.get("crop_mode").and_then(Value::as_str) == Some("squash");
            input.resize = if squashes || !is_square { ResizeMode::Stretch } else { ResizeMode::Crop };
            let px = larger(share.min(1.0));
            input.resize_px = (is_square && (px != input.width_px || !squashes)).then_some(px);
            input.filter = match timm.get("interpolation").and_then(Value::as_str) {
                Some("bicubic") => Filter::Bicubic,
                Some("nearest") => Filter::Nearest,
                Some("lanczos") => Filter::Lanczos,
                _ => Filter::Bilinear,
            };
            return self.know("input.resize", "pretrained_cfg in config.json");
        }
        if let Some(method) = self.metadata("CustomVision.Preprocess.CropMethod").map(str::to_owned) {
            if method == "FullImageShorterSide" {
                (input.resize, input.resize_px) = (ResizeMode::Crop, is_square.then_some(input.width_px));
            }
            return self.know("input.resize", "the metadata CustomVision.Preprocess.CropMethod");
        }
        if self.metadata("imgsz").is_some() && is_square {
            (input.resize, input.resize_px) = (ResizeMode::Crop, Some(input.width_px));
            return self.know("input.resize", "ultralytics' metadata: its classifiers cut the centre out");
        }
        match (input.channels, input.layout) {
            (Channels::Gray, _) => self.guess("input.resize", "gray pictures are mostly stretched to the input"),
            (_, Layout::Nhwc) => {
                input.antialias = false;
                self.guess("input.resize", "the order of the axes is TensorFlow's, which stretches without averaging");
            }
            (_, Layout::Nchw) if is_square => {
                (input.resize, input.resize_px) = (ResizeMode::Crop, Some(larger(0.875)));
                self.guess(
                    "input.resize",
                    "the centre of a picture with 8/7 of the input's side, as most are evaluated",
                );
            }
            _ => self.guess("input.resize", "both sides to the input's"),
        }
    }

    fn describe_output(&mut self, port: GraphPort, classes: Option<usize>) -> OutputDescription {
        self.know("output.name", "the graph");
        let maker = self.outline.producer_of(&port.name).map(str::to_owned);
        let kind = match (maker.as_deref(), &port.holds) {
            (Some("Softmax"), _) => OutputKind::Probabilities,
            (Some("Sigmoid"), _) if classes == Some(1) => OutputKind::Probabilities,
            (Some("Sigmoid"), _) => OutputKind::Sigmoid,
            (None, PortContent::LabelScores) => OutputKind::Probabilities,
            _ => OutputKind::Logits,
        };
        let ends = maker.map_or_else(|| "the graph".to_owned(), |maker| format!("the graph's end, {maker}"));
        self.know("output.kind", ends);
        OutputDescription {
            name: port.name,
            kind,
            features: None,
            threshold: None,
            thresholds: BTreeMap::new(),
            boxes: None,
        }
    }

    /// Labels to write, and their number, if either is known.
    fn labels(&mut self, count: Option<usize>) -> Result<(Option<Vec<String>>, Option<usize>), ModelError> {
        if let Some(name) = labels::FILES.into_iter().find(|name| self.dir.join(name).exists()) {
            let labels = labels::read(&self.dir.join(name), 1)?;
            self.know("labels", name);
            return Ok((None, Some(labels.len())));
        }
        if let Some(labels) = self.outline.labels() {
            self.know("labels", "the graph's ZipMap");
            return Ok((Some(labels), count));
        }
        if let Some(labels) = self.metadata("names").and_then(python_names) {
            self.know("labels", "the metadata names");
            return Ok((Some(labels), count));
        }
        let config = self.config()?;
        for key in ["label_names", "id2label"] {
            let list = config.as_ref().and_then(|config| config.get(key)).and_then(listed);
            if let Some(labels) = list.filter(|labels| count.is_none_or(|count| count == labels.len())) {
                self.know("labels", format!("{key} in config.json"));
                return Ok((Some(labels), count));
            }
        }
        if let Some((name, labels)) = count.and_then(|count| self.text_of(count)) {
            self.guess("labels", format!("{name}, which has as many lines as there are classes"));
            return Ok((Some(labels), count));
        }
        let Some(count) = count else { return Ok((None, None)) };
        self.guess("labels", "nobody names them; write yours into labels.txt, in the order of the output");
        Ok((Some((0..count).map(|class| format!("class-{class}")).collect()), Some(count)))
    }

    /// A text file beside the graph with this many lines.
    fn text_of(&self, count: usize) -> Option<(String, Vec<String>)> {
        let entries = std::fs::read_dir(self.dir).ok()?.flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".txt"))
            .collect();
        names.sort();
        names.into_iter().find_map(|name| {
            let labels = labels::read(&self.dir.join(&name), 1).ok()?;
            (labels.len() == count).then_some((name, labels))
        })
    }

    fn config(&self) -> Result<Option<Value>, ModelError> {
        let path = self.dir.join(huggingface::CONFIG);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(JsonFile::read(path)?.root().clone()))
    }

    /// timm's description of how pixels become the input.
    fn timm_config(&self) -> Result<Option<Value>, ModelError> {
        Ok(self.config()?.and_then(|config| config.get("pretrained_cfg").cloned()))
    }
}

/// Number of labels that a detector's outputs are made for, if their shapes say it.
fn detector_classes(description: &ModelDescription, outline: &Outline) -> Option<usize> {
    let boxes = description.output.boxes.as_ref()?;
    let shape = |name: &str| match &outline.outputs.iter().find(|port| port.name == name)?.holds {
        PortContent::Tensor { shape, .. } => Some(shape.clone()),
        _ => None,
    };
    let first = shape(&description.output.name)?;
    let others = 4 + usize::from(boxes.objectness);
    let (size, others) = match boxes.layout {
        BoxLayout::Rows | BoxLayout::Grid => (first.last().copied()??, others),
        BoxLayout::Columns => (first.iter().rev().nth(1).copied()??, others),
        BoxLayout::Separate if boxes.labels.is_none() => (shape(boxes.scores.as_ref()?)?.last().copied()??, 0),
        BoxLayout::Separate | BoxLayout::EndToEnd => return None,
    };
    let background = usize::from(boxes.background != BackgroundClass::None);
    (size as usize).checked_sub(others + background).filter(|classes| *classes > 0)
}

fn timm_numbers(timm: Option<&Value>, key: &str) -> Option<Vec<f32>> {
    let list = timm?.get(key)?.as_array()?;
    list.iter().map(|number| number.as_f64().map(|number| number as f32)).collect()
}

/// A list of labels, or a table from class to label.
fn listed(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        Value::Object(table) => (0..table.len()).map(|class| table.get(&class.to_string()).and_then(text)).collect(),
        _ => None,
    }
}

/// The numbers of a list in Python or JSON notation; a single `224` means both sides.
fn numbers(text: &str) -> Vec<f32> {
    let found: Vec<f32> =
        text.trim_matches(['[', ']', '(', ')']).split(',').filter_map(|number| number.trim().parse().ok()).collect();
    if let [one] = found[..] { vec![one, one] } else { found }
}

/// The values of a table in Python notation, `{0: 'cat', 1: "dog's"}`, in the order of their keys.
fn python_names(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (class, value) = rest.split_once(':')?;
        if class.trim().trim_matches(['\'', '"']).parse() != Ok(names.len()) {
            return None;
        }
        let mut letters = value.trim_start().chars();
        let quote = letters.next().filter(|quote| ['\'', '"'].contains(quote))?;
        let mut name = String::new();
        loop {
            match letters.next()? {
                '\\' => name.push(letters.next()?),
                end if end == quote => break,
                letter => name.push(letter),
            }
        }
        names.push(name);
        rest = letters.as_str().trim_start().trim_start_matches(',').trim_start();
    }
    (!names.is_empty()).then_some(names)
}
