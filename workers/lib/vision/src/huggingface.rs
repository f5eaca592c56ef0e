//! Reads an image classifier or an object detector exported from the Hugging Face Hub as a model description.
//!
//! Reads `config.json` (labels), `preprocessor_config.json` (how pixels become the input) and, from the graph, the
//! names of its input and output and what the output is. Refuses steps that our description cannot express instead of
//! dropping them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::limits::{MAX_LABEL_BYTES, MAX_NAME_CHARS};
use schemas::model::{
    Channels, CropOffset, Filter, GateDefaults, InputDescription, Layout, MODEL_VERSION, ModelDescription,
    OutputDescription, OutputKind, PadPlace, ResizeMode,
};
use serde_json::Value;

use crate::detection::preset::{self, MissingKey, Preset};
use crate::labels::distinct;
use crate::model::{ModelError, ModelParts, check, text};
use crate::outline::{GraphPort, Outline};

/// Labels and number of channels.
pub(crate) const CONFIG: &str = "config.json";
/// How pixels become the input.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
/// Usual names of input and output.
const ENDS: (&str, &str) = ("pixel_values", "logits");

/// Reads a folder.
pub(crate) fn read(dir: &Path, outline: &Outline) -> Result<ModelParts, ModelError> {
    let config = JsonFile::read(dir.join(CONFIG))?;
    if names_detector(&config) {
        let found = preset::guess(outline, Some(config.root()), None);
        let why = |why: String| ModelError::Graph { path: dir.to_owned(), why };
        let unknown = || config.wrong("architectures", "is not known; write a model.toml with preset = \"...\"");
        let found = found.map_err(why)?.ok_or_else(unknown)?;
        return read_detector(dir, outline, found.preset, false);
    }
    let preprocessor = JsonFile::read(dir.join(PREPROCESSOR))?;
    let is_multi_label = config.get("problem_type").and_then(Value::as_str) == Some("multi_label_classification");
    let output = name_end(&outline.outputs, ENDS.1);
    let kind = match (is_multi_label, outline.producer_of(&output)) {
        (true, Some("Sigmoid")) => OutputKind::Sigmoid,
        (true, _) => OutputKind::SigmoidLogits,
        (false, Some("Softmax")) => OutputKind::Probabilities,
        (false, _) => OutputKind::Logits,
    };
    let description = ModelDescription {
        name: name(&config, dir),
        version: MODEL_VERSION,
        graph: None,
        input: InputDescription { name: name_end(&outline.inputs, ENDS.0), ..input(&config, &preprocessor)? },
        output: OutputDescription {
            name: output,
            kind,
            features: None,
            threshold: None,
            thresholds: BTreeMap::default(),
            boxes: None,
        },
        gate: GateDefaults::default(),
    };
    check(&description).map_err(|(key, why)| preprocessor.wrong(key, why))?;
    let files = [CONFIG, PREPROCESSOR].map(str::to_owned).to_vec();
    Ok(ModelParts { description, labels: read_labels(&config, if is_multi_label { 1 } else { 2 })?, files })
}

/// Whether a folder's model finds objects.
pub(crate) fn is_detector(dir: &Path) -> Result<bool, ModelError> {
    Ok(names_detector(&JsonFile::read(dir.join(CONFIG))?))
}

fn names_detector(config: &JsonFile) -> bool {
    let names = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).any(|name| name.ends_with("ForObjectDetection"))
}

/// Reads the folder of an object detector. `guesses_size`: an input size that nothing fixes is guessed; otherwise it is
/// refused.
pub(crate) fn read_detector(
    dir: &Path,
    outline: &Outline,
    preset: &Preset,
    guesses_size: bool,
) -> Result<ModelParts, ModelError> {
    let config = JsonFile::read(dir.join(CONFIG))?;
    let preprocessor = JsonFile::read(dir.join(PREPROCESSOR))?;
    let mut input = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| drop(input.insert(key.to_owned(), value));
    let row = |numbers: Vec<f32>| toml::Value::from(numbers.into_iter().map(f64::from).collect::<Vec<_>>());
    if !preprocessor.flag("do_rescale", true)? {
        set("scale", 1.0.into());
    } else if let Some(factor) = preprocessor.number("rescale_factor")? {
        set("scale", factor.into());
    }
    if preprocessor.get("do_normalize").is_some() || preprocessor.get("image_mean").is_some() {
        let (mean, std) = match preprocessor.flag("do_normalize", true)? {
            true => (preprocessor.numbers("image_mean", 3)?, preprocessor.numbers("image_std", 3)?),
            false => (vec![0.0; 3], vec![1.0; 3]),
        };
        set("mean", row(mean));
        set("std", row(std));
    }
    // Boxes are fractions, so a picture may be stretched to any size that the graph takes.
    let fixed = preprocessor.get("size").and_then(Value::as_object);
    let side = |key: &str| fixed.and_then(|size| size.get(key)).and_then(Value::as_u64);
    let sides = match (side("width"), side("height"), side("shortest_edge")) {
        (Some(width), Some(height), _) => Some((width, height)),
        // As of a camera: four to three.
        (_, _, Some(short)) if guesses_size => Some((short.saturating_mul(4) / 3, short)),
        _ => None,
    };
    let mut own = toml::Table::new();
    own.insert("name".to_owned(), name(&config, dir).into());
    own.insert("version".to_owned(), i64::from(MODEL_VERSION).into());
    own.insert("input".to_owned(), input.clone().into());
    let missing = |missing: MissingKey| {
        preprocessor.wrong("size", format!("does not fix the input ({} {})", missing.key, missing.why))
    };
    // What the graph fixes holds; the processor's size is for graphs that take any.
    let table = match (preset.complete(outline, &own), sides) {
        (Ok(table), _) => table,
        (Err(found), None) => return Err(missing(found)),
        (Err(_), Some((width, height))) => {
            let wide = |side: u64| toml::Value::from(i64::try_from(side).unwrap_or(i64::MAX));
            input.insert("width_px".to_owned(), wide(width));
            input.insert("height_px".to_owned(), wide(height));
            own.insert("input".to_owned(), input.into());
            preset.complete(outline, &own).map_err(missing)?
        }
    };
    let description: ModelDescription =
        table.try_into().map_err(|error: toml::de::Error| preprocessor.wrong("size", error.message()))?;
    check(&description).map_err(|(key, why)| preprocessor.wrong(key, why))?;
    let files = [CONFIG, PREPROCESSOR].map(str::to_owned).to_vec();
    Ok(ModelParts { description, labels: read_labels(&config, 1)?, files })
}

/// The labels of a folder alone. `least`: fewer are refused.
pub(crate) fn labels(dir: &Path, least: usize) -> Result<Vec<String>, ModelError> {
    read_labels(&JsonFile::read(dir.join(CONFIG))?, least)
}

/// The input or output with the usual name, or the only one.
fn name_end(ends: &[GraphPort], usual: &str) -> String {
    match ends {
        [only] => only.name.clone(),
        _ => usual.to_owned(),
    }
}

/// A JSON file with typed access; errors name file, line and key.
pub(crate) struct JsonFile {
    path: PathBuf,
    text: String,
    root: Value,
}

impl JsonFile {
    pub(crate) fn read(path: PathBuf) -> Result<Self, ModelError> {
        let text = text(&path)?;
        let root = serde_json::from_str(&text).map_err(|error| ModelError::Syntax {
            path: path.clone(),
            line: error.line(),
            column: error.column(),
            why: error.to_string(),
        })?;
        Ok(Self { path, text, root })
    }

    fn wrong(&self, key: &str, why: impl Into<String>) -> ModelError {
        let quoted = format!("{:?}", key.rsplit('.').next().unwrap_or(key));
        let before = self.text.find(&quoted).and_then(|at| self.text.get(..at)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        ModelError::Value { path: self.path.clone(), line, key: key.to_owned(), why: why.into() }
    }

    pub(crate) fn root(&self) -> &Value {
        &self.root
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "must be true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let number = |value: &Value| value.as_f64().ok_or_else(|| self.wrong(key, "must be a number"));
        self.get(key).map(number).transpose()
    }

    fn numbers(&self, key: &str, count: usize) -> Result<Vec<f32>, ModelError> {
        let missing = || self.wrong(key, "is missing, though do_normalize is true; write one number a channel");
        let value = self.get(key).ok_or_else(missing)?;
        // One number applies to all channels.
        if let Some(number) = value.as_f64() {
            return Ok(vec![number as f32; count]);
        }
        let list = value.as_array().ok_or_else(|| self.wrong(key, "must be a list of numbers"))?;
        let numbers: Option<Vec<f32>> = list.iter().map(|item| item.as_f64().map(|number| number as f32)).collect();
        numbers.ok_or_else(|| self.wrong(key, "must contain nothing but numbers"))
    }

    fn pixels(&self, key: &str, value: &Value) -> Result<u32, ModelError> {
        let whole = value.as_u64().and_then(|px| u32::try_from(px).ok());
        whole.filter(|px| *px > 0).ok_or_else(|| self.wrong(key, "must be a whole number of pixels above zero"))
    }

    /// `224`, `{"height": 224, "width": 224}` or `{"shortest_edge": 256}`.
    fn size(&self, key: &str) -> Result<Option<ProcessorSize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(table) = value.as_object() else { return Ok(Some(ProcessorSize::Number(self.pixels(key, value)?))) };
        match (table.get("width"), table.get("height"), table.get("shortest_edge")) {
            (Some(width), Some(height), _) => Ok(Some(ProcessorSize::Both {
                width_px: self.pixels(key, width)?,
                height_px: self.pixels(key, height)?,
            })),
            (_, _, Some(short)) => Ok(Some(ProcessorSize::Short(self.pixels(key, short)?))),
            _ => Err(self.wrong(key, "must have width and height, or shortest_edge")),
        }
    }
}

#[derive(Clone, Copy)]
enum ProcessorSize {
    /// Older files: both sides, or the short one if a crop follows.
    Number(u32),
    Both {
        width_px: u32,
        height_px: u32,
    },
    Short(u32),
}

impl ProcessorSize {
    fn sides(self) -> (u32, u32) {
        match self {
            ProcessorSize::Both { width_px, height_px } => (width_px, height_px),
            ProcessorSize::Number(px) | ProcessorSize::Short(px) => (px, px),
        }
    }
}

fn input(config: &JsonFile, preprocessor: &JsonFile) -> Result<InputDescription, ModelError> {
    let rule = ProcessorDefaults::of(preprocessor)?;
    let channels = match config.number("num_channels")? {
        None => Channels::Rgb,
        Some(3.0) => Channels::Rgb,
        Some(1.0) => Channels::Gray,
        Some(other) => return Err(config.wrong("num_channels", format!("is {other}; it must be 1 or 3"))),
    };
    let flips = preprocessor.flag("do_flip_channel_order", rule.kind == ProcessorKind::MobileVit)?;
    let channels = if flips && channels == Channels::Rgb { Channels::Bgr } else { channels };
    let count = channels.count();
    let fitted = fit(preprocessor, &rule)?;
    let scale = match preprocessor.flag("do_rescale", true)? {
        true => preprocessor.number("rescale_factor")?.unwrap_or(1.0 / 255.0) as f32,
        false => 1.0,
    };
    let (mut mean, mut std) = match preprocessor.flag("do_normalize", rule.kind != ProcessorKind::MobileVit)? {
        true => (preprocessor.numbers("image_mean", count)?, preprocessor.numbers("image_std", count)?),
        false => (vec![0.0; count], vec![1.0; count]),
    };
    // EfficientNet subtracts 1 after scaling, before the mean.
    if preprocessor.flag("rescale_offset", false)? {
        mean.iter_mut().for_each(|mean| *mean += 1.0);
    }
    // And divides by the deviation twice.
    if preprocessor.flag("include_top", rule.kind == ProcessorKind::EfficientNet)? {
        std.iter_mut().for_each(|std| *std *= *std);
    }
    Ok(InputDescription {
        name: ENDS.0.to_owned(),
        width_px: fitted.width_px,
        height_px: fitted.height_px,
        channels,
        layout: Layout::Nchw,
        scale,
        mean,
        std,
        resize: fitted.resize,
        resize_px: fitted.resize_px,
        crop_offset: if fitted.resize_px.is_some() { CropOffset::Down } else { CropOffset::Nearest },
        filter: filter(preprocessor, &rule)?,
        antialias: true,
        pad_value: 0,
        pad_place: PadPlace::Center,
        source_size: None,
    })
}

/// What the library does by class name without writing it to the file (transformers, `models/*/image_processing_*.py`).
#[derive(Debug, Clone, Copy, PartialEq)]
struct ProcessorDefaults {
    kind: ProcessorKind,
    /// Whether the centre is cropped if `do_center_crop` is absent; absent: if a crop size is given.
    crops: Option<bool>,
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ProcessorKind {
    /// Resizes both sides to `size`; one number is a square. Then crops the centre, if requested.
    Square,
    /// Resizes the short side to `size`, then crops the centre.
    Short,
    /// Resizes the short side to 256/224 of `size`, then crops the centre.
    Levit,
    /// Below 384 pixels, resizes the short side to `size / crop_pct` and crops the centre of `size`; from there on, a
    /// square.
    ConvNext,
    /// Resizes the short side to `size / crop_pct`, then crops the centre of `crop_size`.
    PoolFormer,
    /// Like `Short`, with blue first and without normalization.
    MobileVit,
    /// Like `Square`, with its own normalization.
    EfficientNet,
    /// No known class is named; the keys decide.
    Unknown,
}

impl ProcessorDefaults {
    fn of(json: &JsonFile) -> Result<Self, ModelError> {
        let name = ["image_processor_type", "feature_extractor_type"].into_iter().find_map(|key| json.get(key));
        let name = name.and_then(Value::as_str).unwrap_or("");
        let family = ["ImageProcessorFast", "ImageProcessor", "FeatureExtractor"]
            .into_iter()
            .find_map(|ending| name.strip_suffix(ending))
            .unwrap_or(name);
        let known = |kind, crops, filter| Ok(Self { kind, crops, filter });
        match family {
            "ViT" | "Pvt" | "Segformer" => known(ProcessorKind::Square, Some(false), Filter::Bilinear),
            "DeiT" | "Beit" => known(ProcessorKind::Square, Some(true), Filter::Bicubic),
            "Bit" | "CLIP" => known(ProcessorKind::Short, Some(true), Filter::Bicubic),
            "MobileNetV1" | "MobileNetV2" => known(ProcessorKind::Short, Some(true), Filter::Bilinear),
            "Siglip" => known(ProcessorKind::Square, Some(false), Filter::Bicubic),
            "Levit" => known(ProcessorKind::Levit, Some(true), Filter::Bicubic),
            "ConvNext" => known(ProcessorKind::ConvNext, Some(false), Filter::Bilinear),
            "PoolFormer" => known(ProcessorKind::PoolFormer, Some(true), Filter::Bicubic),
            "MobileViT" => known(ProcessorKind::MobileVit, Some(true), Filter::Bilinear),
            "EfficientNet" => known(ProcessorKind::EfficientNet, Some(false), Filter::Nearest),
            "Perceiver" => Err(json.wrong(
                "image_processor_type",
                "is PerceiverImageProcessor, which cuts before it resizes; that is not supported",
            )),
            _ => known(ProcessorKind::Unknown, None, Filter::Bilinear),
        }
    }
}

/// How a picture is fitted to the input.
struct ResizePlan {
    width_px: u32,
    height_px: u32,
    resize: ResizeMode,
    resize_px: Option<u32>,
}

impl ResizePlan {
    fn stretch((width_px, height_px): (u32, u32)) -> Self {
        Self { width_px, height_px, resize: ResizeMode::Stretch, resize_px: None }
    }

    fn crop(short_px: u32, (width_px, height_px): (u32, u32)) -> Self {
        Self { width_px, height_px, resize: ResizeMode::Crop, resize_px: Some(short_px) }
    }
}

fn fit(json: &JsonFile, rule: &ProcessorDefaults) -> Result<ResizePlan, ModelError> {
    if !json.flag("do_resize", true)? {
        return Err(json.wrong("do_resize", "is false, but pictures come in every size; set it to true"));
    }
    let size =
        json.size("size")?.ok_or_else(|| json.wrong("size", "is missing; write the size of the model's input"))?;
    let crop_size = json.size("crop_size")?;
    let crops = json.flag("do_center_crop", rule.crops.unwrap_or(crop_size.is_some()))?;
    let share = json.number("crop_pct")?;
    if share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
        return Err(json.wrong("crop_pct", "must be above 0 and at most 1"));
    }
    let part = crop_size.unwrap_or(size).sides();
    let kind = match rule.kind {
        ProcessorKind::Unknown if share.is_some() => ProcessorKind::ConvNext,
        // In most older files, a number meant the short side if a crop followed.
        ProcessorKind::Unknown if crops && !matches!(size, ProcessorSize::Both { .. }) => ProcessorKind::Short,
        ProcessorKind::Unknown => ProcessorKind::Square,
        kind => kind,
    };
    let short = |px: u32| {
        match crops {
        true => Ok(ResizePlan::crop(px, part)),
        false => Err(json.wrong(
            "size",
            "is only that of the short side and no crop follows, so the input would have no fixed size; add do_center_crop \
             and crop_size",
        )),
    }
    };
    match (kind, size) {
        (ProcessorKind::ConvNext, size) => {
            let px = size.sides().0;
            Ok(match px {
                384.. => ResizePlan::stretch((px, px)),
                _ => ResizePlan::crop((f64::from(px) / share.unwrap_or(224.0 / 256.0)) as u32, (px, px)),
            })
        }
        (ProcessorKind::PoolFormer, ProcessorSize::Number(px) | ProcessorSize::Short(px)) => {
            short((f64::from(px) / share.unwrap_or(0.9)) as u32)
        }
        (ProcessorKind::PoolFormer, ProcessorSize::Both { width_px, height_px }) if width_px == height_px => {
            short((f64::from(width_px) / share.unwrap_or(0.9)) as u32)
        }
        (ProcessorKind::Levit, ProcessorSize::Number(px) | ProcessorSize::Short(px)) => {
            short((256.0 / 224.0 * f64::from(px)) as u32)
        }
        (ProcessorKind::Short | ProcessorKind::MobileVit, ProcessorSize::Number(px) | ProcessorSize::Short(px)) => {
            short(px)
        }
        (ProcessorKind::Square | ProcessorKind::EfficientNet, ProcessorSize::Short(_)) => {
            Err(json.wrong("size", "has only shortest_edge, and this processor needs width and height"))
        }
        (_, size) if !crops || size.sides() == part => Ok(ResizePlan::stretch(size.sides())),
        (_, size) => match size.sides() {
            (width_px, height_px) if width_px == height_px => {
                Ok(ResizePlan { resize: ResizeMode::Stretch, ..ResizePlan::crop(width_px, part) })
            }
            _ => Err(json.wrong(
                "crop_size",
                "cuts the centre out of a picture stretched to sides of two lengths, which is not supported",
            )),
        },
    }
}

fn filter(json: &JsonFile, rule: &ProcessorDefaults) -> Result<Filter, ModelError> {
    match json.number("resample")? {
        None => Ok(rule.filter),
        Some(0.0) => Ok(Filter::Nearest),
        Some(1.0) => Ok(Filter::Lanczos),
        Some(2.0) => Ok(Filter::Bilinear),
        Some(3.0) => Ok(Filter::Bicubic),
        Some(other) => Err(json.wrong(
            "resample",
            format!("is {other}; it must be 0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)"),
        )),
    }
}

fn read_labels(config: &JsonFile, least: usize) -> Result<Vec<String>, ModelError> {
    let missing = "is missing or empty; write one label a class, as {\"0\": \"cat\", ...}";
    let table = config.get("id2label").and_then(Value::as_object).filter(|table| !table.is_empty());
    let table = table.ok_or_else(|| config.wrong("id2label", missing))?;
    let mut labels = Vec::with_capacity(table.len());
    for class in 0..table.len() {
        let label = table.get(&class.to_string()).ok_or_else(|| {
            config.wrong("id2label", format!("has {} labels but none for class {class}", table.len()))
        })?;
        let label = label.as_str().map(str::trim).filter(|label| !label.is_empty() && label.len() <= MAX_LABEL_BYTES);
        let label = label.ok_or_else(|| {
            config.wrong("id2label", format!("of class {class} must be a text of 1 to {MAX_LABEL_BYTES} bytes"))
        })?;
        labels.push(label);
    }
    if labels.len() < least {
        return Err(config.wrong("id2label", "has one label; a classifier tells at least two classes apart"));
    }
    Ok(distinct(labels.into_iter()))
}

/// The last part of the published name, or the folder's, in allowed letters.
fn name(config: &JsonFile, dir: &Path) -> String {
    let folder = dir.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
    let published = config.get("_name_or_path").and_then(Value::as_str).map(str::to_owned);
    let full = published.or(folder).unwrap_or_default();
    spell_name(full.trim_end_matches('/').rsplit('/').next().unwrap_or(""))
}

/// A model name in allowed letters.
pub(crate) fn spell_name(given: &str) -> String {
    let letter = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '-' };
    let name: String = given.to_ascii_lowercase().chars().map(letter).take(MAX_NAME_CHARS).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use crate::model::Model;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    fn folder(config: &Value, preprocessor: &Value, graph: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(dir.path().join(name), serde_json::to_string_pretty(value).unwrap()).unwrap();
        };
        write(CONFIG, config);
        write(PREPROCESSOR, preprocessor);
        std::fs::create_dir(dir.path().join("onnx")).unwrap();
        std::fs::write(dir.path().join(graph), "").unwrap();
        dir
    }

    fn config() -> Value {
        json!({"_name_or_path": "google/ViT-Base.16", "id2label": {"1": "crane", "0": "cat", "2": "crane"}})
    }

    /// As published with google/vit-base-patch16-224.
    fn vit() -> Value {
        json!({
            "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 2,
            "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}
        })
    }

    fn changed(changes: Value) -> Value {
        let mut value = vit();
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        value
    }

    fn read_input(preprocessor: &Value) -> InputDescription {
        let dir = folder(&config(), preprocessor, "model.onnx");
        Model::load(dir.path()).unwrap().description.input
    }

    #[test]
    fn a_vision_transformer_is_read_unchanged() {
        let dir = folder(&config(), &vit(), "onnx/model.onnx");
        let model = Model::load(dir.path()).unwrap();
        assert_eq!(model.description.name, "vit-base-16");
        assert_eq!(model.labels, ["cat", "crane", "crane (2)"]);
        assert_eq!(model.graph, dir.path().join("onnx/model.onnx"));
        let input = &model.description.input;
        assert_eq!((input.width_px, input.height_px, input.resize), (224, 224, ResizeMode::Stretch));
        assert_eq!((&input.mean, &input.std, input.scale), (&vec![0.5; 3], &vec![0.5; 3], 1.0 / 255.0));
        assert_eq!((input.name.as_str(), model.description.output.name.as_str()), ("pixel_values", "logits"));
    }

    #[test]
    fn a_short_side_with_a_crop_becomes_a_crop() {
        let input = read_input(&changed(json!({
            "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": true,
            "crop_size": {"height": 224, "width": 224}, "resample": 3
        })));
        assert_eq!((input.width_px, input.resize, input.resize_px), (224, ResizeMode::Crop, Some(256)));
        assert_eq!(input.filter, Filter::Bicubic);
    }

    #[test]
    fn a_share_kept_by_the_crop_makes_the_short_side_longer() {
        let convnext = |changes: Value| {
            let mut value = changed(changes);
            value["image_processor_type"] = "ConvNextImageProcessor".into();
            read_input(&value)
        };
        let input = convnext(json!({"size": {"shortest_edge": 224}, "crop_pct": 0.875}));
        assert_eq!((input.width_px, input.resize, input.resize_px), (224, ResizeMode::Crop, Some(256)));
        let input = convnext(json!({"size": {"shortest_edge": 384}, "crop_pct": 0.875}));
        assert_eq!((input.width_px, input.resize, input.resize_px), (384, ResizeMode::Stretch, None));
    }

    #[test]
    fn steps_switched_off_leave_the_numbers_alone() {
        let input = read_input(&changed(json!({"do_normalize": false, "do_rescale": false, "size": 32})));
        assert_eq!((input.scale, input.mean, input.std), (1.0, vec![0.0; 3], vec![1.0; 3]));
        assert_eq!((input.width_px, input.height_px), (32, 32));
    }

    #[test]
    fn unsupported_values_are_refused_with_file_line_and_key() {
        for (changes, parts) in [
            (json!({"size": {"shortest_edge": 256}}), &["size", "shortest_edge"][..]),
            (json!({"size": null}), &["size", "is missing"]),
            (json!({"size": {"height": 0, "width": 3}}), &["line", "size", "above zero"]),
            (json!({"image_mean": [0.5]}), &["input.mean", "3 channels"]),
            (json!({"image_std": null}), &["image_std", "is missing"]),
            (json!({"resample": 7}), &["resample", "bicubic"]),
            (json!({"do_resize": "yes"}), &["do_resize", "true or false"]),
            (
                json!({"do_center_crop": true, "crop_size": 200, "size": {"height": 256, "width": 224}}),
                &["crop_size", "stretched"],
            ),
            (json!({"image_processor_type": "PerceiverImageProcessor"}), &["PerceiverImageProcessor"]),
        ] {
            let dir = folder(&config(), &changed(changes.clone()), "model.onnx");
            let why = Model::load(dir.path()).unwrap_err().to_string();
            for part in parts.iter().chain([&PREPROCESSOR]) {
                assert!(why.contains(part), "{changes}: {part:?} is not in {why:?}");
            }
        }
    }

    #[test]
    fn labels_with_a_gap_or_none_at_all_are_refused() {
        for (labels, part) in
            [(json!({"0": "a", "2": "b"}), "class 1"), (json!({}), "missing"), (json!(null), "missing")]
        {
            let dir = folder(&json!({"id2label": labels}), &vit(), "model.onnx");
            let why = Model::load(dir.path()).unwrap_err().to_string();
            assert!(why.contains(CONFIG) && why.contains("id2label") && why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_folder_without_a_graph_or_with_broken_json_is_refused() {
        let dir = folder(&config(), &vit(), "any name.onnx");
        assert_eq!(Model::load(dir.path()).unwrap().graph, dir.path().join("any name.onnx"));
        std::fs::write(dir.path().join("onnx/other.onnx"), "").unwrap();
        let why = Model::load(dir.path()).unwrap_err().to_string();
        assert!(why.contains("any name.onnx, onnx/other.onnx") && why.contains("graph = "), "{why}");
        std::fs::remove_file(dir.path().join("onnx/other.onnx")).unwrap();
        std::fs::rename(dir.path().join("any name.onnx"), dir.path().join("model.safetensors")).unwrap();
        assert!(Model::load(dir.path()).unwrap_err().to_string().contains("optimum-cli"));
        std::fs::write(dir.path().join("model.onnx"), "").unwrap();
        std::fs::write(dir.path().join(PREPROCESSOR), "{\n  \"size\": 1,,\n}").unwrap();
        assert!(Model::load(dir.path()).unwrap_err().to_string().contains("line 2"));
    }
}
