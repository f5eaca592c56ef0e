//! What the usual exporters of detectors write, as the keys of a `model.toml`.
//!
//! A preset fills in what its authors' own processing does; the graph adds names and sizes; keys in the file win over
//! both. [`guess`] tells the exporters apart, as far as their graphs differ.

use serde_json::Value;
use toml::Table;

use super::layout::cell_count;
use crate::outline::{GraphPort, Outline, PortContent};

/// The keys that one exporter's models need.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Preset {
    /// Its name.
    pub(crate) name: &'static str,
    /// Names of models that are exported in the same form.
    aliases: &'static [&'static str],
    keys: &'static str,
}

/// What all presets begin with: pixels from 0 to 1, as most models take them.
const COMMON_KEYS: &str = r#"
[input]
channels = "rgb"
scale = 0.003921568627450980
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[output]
kind = "boxes"
"#;

/// All presets.
const PRESETS: &[Preset] = &[
    Preset {
        name: "yolov5",
        aliases: &["yolov7"],
        keys: r#"
[input]
resize = "pad"
pad_value = 114
[output]
threshold = 0.25
[output.boxes]
layout = "rows"
form = "cxcywh"
unit = "input_pixels"
objectness = true
nms_iou = 0.45
"#,
    },
    Preset {
        name: "yolov8",
        aliases: &["yolov9", "yolo11", "yolov11", "yolo12", "yolov12"],
        keys: r#"
[input]
resize = "pad"
pad_value = 114
[output]
threshold = 0.25
[output.boxes]
layout = "columns"
form = "cxcywh"
unit = "input_pixels"
nms_iou = 0.7
"#,
    },
    Preset {
        name: "yolov10",
        aliases: &["yolo26", "yolov26"],
        keys: r#"
[input]
resize = "pad"
pad_value = 114
[output]
threshold = 0.25
[output.boxes]
layout = "end_to_end"
form = "xyxy"
unit = "input_pixels"
"#,
    },
    Preset {
        name: "yolox",
        aliases: &[],
        keys: r#"
[input]
channels = "bgr"
scale = 1.0
resize = "pad"
pad_value = 114
pad_place = "top_left"
[output]
threshold = 0.3
[output.boxes]
layout = "grid"
form = "cxcywh"
unit = "input_pixels"
objectness = true
nms_iou = 0.45
"#,
    },
    Preset {
        name: "rt-detr",
        aliases: &["rtdetr", "d-fine"],
        keys: r#"
[input.source_size]
name = "orig_target_sizes"
order = "width_height"
[output]
name = "boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "xyxy"
unit = "source_pixels"
scores = "scores"
labels = "labels"
"#,
    },
    Preset {
        name: "rf-detr",
        aliases: &["rfdetr"],
        keys: r#"
[input]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[output]
name = "dets"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "cxcywh"
unit = "ratio"
score = "sigmoid"
multi_label = true
scores = "labels"
"#,
    },
    Preset {
        name: "hf-detr",
        aliases: &["detr", "yolos"],
        keys: r#"
[input]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[output]
name = "pred_boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "cxcywh"
unit = "ratio"
score = "softmax"
background = "last"
scores = "logits"
"#,
    },
    Preset {
        name: "hf-rt-detr",
        aliases: &["hf-d-fine"],
        keys: r#"
[output]
name = "pred_boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "cxcywh"
unit = "ratio"
score = "sigmoid"
multi_label = true
scores = "logits"
"#,
    },
    Preset {
        name: "ssd-tensorflow",
        aliases: &[],
        keys: r#"
[input]
layout = "nhwc"
scale = 1.0
antialias = false
[output]
name = "detection_boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "yxyx"
unit = "ratio"
background = "first"
scores = "detection_scores"
labels = "detection_classes"
count = "num_detections"
"#,
    },
    Preset {
        name: "custom-vision",
        aliases: &[],
        keys: r#"
[output]
name = "detected_boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "xyxy"
unit = "ratio"
scores = "detected_scores"
labels = "detected_classes"
"#,
    },
    Preset {
        name: "torchvision",
        aliases: &[],
        keys: r#"
[input]
resize = "pad"
pad_value = 114
[output]
name = "boxes"
threshold = 0.5
[output.boxes]
layout = "separate"
form = "xyxy"
unit = "input_pixels"
background = "first"
scores = "scores"
labels = "labels"
"#,
    },
];

/// A preset by its name or another name of the same form.
pub(crate) fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name || preset.aliases.contains(&name))
}

/// Names of all presets, for messages; each stands for the models that are exported in the same form.
pub(crate) fn names() -> String {
    PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ")
}

/// A key that neither the file nor the preset nor the graph has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MissingKey {
    pub(crate) key: &'static str,
    /// What is wrong and what to do, in words that follow the key.
    pub(crate) why: String,
}

impl Preset {
    /// A whole description: the preset's keys, those of `own` over them, and names and sizes from the graph where neither
    /// has one.
    pub(crate) fn complete(&self, outline: &Outline, own: &Table) -> Result<Table, MissingKey> {
        let mut table = parse(COMMON_KEYS);
        lay_over(&mut table, &parse(self.keys));
        add_endings(&mut table, outline);
        lay_over(&mut table, own);
        let text = |table: &Table, of: &str, key: &str| Some(table.get(of)?.get(key)?.as_str()?.to_owned());
        let picture = find_picture(outline, text(&table, "input", "name").as_deref());
        let is_nhwc = text(&table, "input", "layout").as_deref() == Some("nhwc");
        let sizes = picture.map_or([None; 2], |(_, shape)| picture_size(shape, is_nhwc));
        let found = [
            ("input", "name", "input.name", picture.map(|(port, _)| port.name.clone().into())),
            ("input", "width_px", "input.width_px", sizes[0].map(|size| i64::from(size).into())),
            ("input", "height_px", "input.height_px", sizes[1].map(|size| i64::from(size).into())),
            ("output", "name", "output.name", output_name(outline).map(Into::into)),
        ];
        for (of, key, full, value) in found {
            let entry = table.entry(of).or_insert_with(|| Table::new().into());
            let Some(entry) = entry.as_table_mut().filter(|entry| !entry.contains_key(key)) else { continue };
            let value: toml::Value = value.ok_or_else(|| MissingKey { key: full, why: missing(full, outline) })?;
            entry.insert(key.to_owned(), value);
        }
        Ok(table)
    }
}

fn missing(key: &str, outline: &Outline) -> String {
    let names =
        |ports: &[GraphPort]| ports.iter().map(|port| format!("{:?}", port.name)).collect::<Vec<_>>().join(", ");
    match key {
        "input.name" => format!("is missing; write which of {} takes the image", names(&outline.inputs)),
        "output.name" => format!("is missing; write which of {} has the boxes", names(&outline.outputs)),
        _ => "is missing, and the graph takes any size; write the one it was trained with".to_owned(),
    }
}

/// Keys of a constant; a test reads all of them.
fn parse(keys: &str) -> Table {
    keys.parse().unwrap_or_default()
}

/// Overlays every value of `changes` on `whole`, table by table.
pub(crate) fn lay_over(whole: &mut Table, changes: &Table) {
    for (key, change) in changes {
        match (whole.get_mut(key), change) {
            (Some(toml::Value::Table(below)), toml::Value::Table(change)) => lay_over(below, change),
            _ => drop(whole.insert(key.clone(), change.clone())),
        }
    }
}

/// Some converters from TensorFlow end every name in `:0`.
fn add_endings(table: &mut Table, outline: &Outline) {
    let has = |name: &str| outline.outputs.iter().any(|port| port.name == name);
    let rename = |value: &mut toml::Value| {
        let longer = value.as_str().map(|name| (has(name), format!("{name}:0")));
        if let Some((false, longer)) = longer.filter(|(_, longer)| has(longer)) {
            *value = longer.into();
        }
    };
    let Some(output) = table.get_mut("output").and_then(toml::Value::as_table_mut) else { return };
    output.get_mut("name").into_iter().for_each(rename);
    let Some(boxes) = output.get_mut("boxes").and_then(toml::Value::as_table_mut) else { return };
    ["scores", "labels", "count"].iter().for_each(|key| boxes.get_mut(*key).into_iter().for_each(rename));
}

/// The input that takes the picture, with its shape: the one of this name, or the only one with three or four
/// dimensions.
fn find_picture<'a>(outline: &'a Outline, name: Option<&str>) -> Option<(&'a GraphPort, &'a [Option<u32>])> {
    let mut pictures = outline.inputs.iter().filter_map(|port| match &port.holds {
        PortContent::Tensor { shape, .. } if (3..=4).contains(&shape.len()) => Some((port, &shape[..])),
        _ => None,
    });
    match name {
        Some(name) => pictures.find(|(port, _)| port.name == name),
        None => pictures.next().filter(|_| pictures.next().is_none()),
    }
}

/// Width and height of an input, where they are known.
fn picture_size(shape: &[Option<u32>], is_nhwc: bool) -> [Option<u32>; 2] {
    match shape.get(shape.len().saturating_sub(3)..) {
        Some([height, width, _]) if is_nhwc => [*width, *height],
        Some([_, height, width]) => [*width, *height],
        _ => [None, None],
    }
}

/// The output with the boxes of a graph that has but one, or one with the usual name.
fn output_name(outline: &Outline) -> Option<String> {
    let usual = ["output0", "output", "outputs"];
    match &outline.outputs[..] {
        [only] => Some(only.name.clone()),
        several => several.iter().find(|port| usual.contains(&port.name.as_str())).map(|port| port.name.clone()),
    }
}

/// A preset that fits a graph.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PresetGuess {
    pub(crate) preset: &'static Preset,
    /// What it was recognized by.
    pub(crate) why: String,
    /// Whether other graphs look the same.
    pub(crate) is_guess: bool,
}

/// Architectures of Hugging Face whose scores are a softmax, and those where each class has its own.
const SOFTMAX_ARCHITECTURES: [&str; 3] = ["Detr", "Yolos", "TableTransformer"];
const SIGMOID_ARCHITECTURES: [&str; 8] =
    ["RTDetr", "RTDetrV2", "DFine", "ConditionalDetr", "DeformableDetr", "Deta", "RfDetr", "LwDetr"];

/// The preset of a graph of Hugging Face's by its `config.json`; `None` for other models.
pub(crate) fn of_architecture(config: &Value) -> Option<&'static Preset> {
    let names = config.get("architectures")?.as_array()?.iter().filter_map(Value::as_str);
    let mut families = names.filter_map(|name| name.strip_suffix("ForObjectDetection"));
    families.find_map(|family| match family {
        family if SOFTMAX_ARCHITECTURES.contains(&family) => find("hf-detr"),
        family if SIGMOID_ARCHITECTURES.contains(&family) => find("hf-rt-detr"),
        _ => None,
    })
}

/// The preset that fits a graph, if it is a detector's. `labels`: number of labels, if known. The error says that it is
/// one, but not which.
pub(crate) fn guess(
    outline: &Outline,
    config: Option<&Value>,
    labels: Option<usize>,
) -> Result<Option<PresetGuess>, String> {
    let port = |name: &str| outline.outputs.iter().find(|port| port.name.trim_end_matches(":0") == name);
    let has_all = |names: &[&str]| names.iter().all(|name| port(name).is_some());
    let known = |name: &str, why: &str| {
        Ok(find(name).map(|preset| PresetGuess { preset, why: why.to_owned(), is_guess: false }))
    };
    let unclear = || {
        let names = outline.outputs.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ");
        Err(format!(
            "its outputs ({names}) are a detector's, but not clearly of one kind; name it with --preset, or as preset in \
             model.toml: {}",
            self::names()
        ))
    };
    if has_all(&["detection_boxes", "detection_scores", "detection_classes"]) {
        return known("ssd-tensorflow", "the names of the graph's outputs");
    }
    if has_all(&["detected_boxes", "detected_scores", "detected_classes"]) {
        return known("custom-vision", "the names of the graph's outputs");
    }
    if has_all(&["dets", "labels"]) && rank(port("labels")) == Some(3) {
        return known("rf-detr", "the names of the graph's outputs");
    }
    if has_all(&["logits", "pred_boxes"]) {
        if let Some(preset) = config.and_then(of_architecture) {
            let why = "architectures in config.json".to_owned();
            return Ok(Some(PresetGuess { preset, why, is_guess: false }));
        }
        let classes = port("logits").and_then(|port| shape(port)?.last().copied()?).map(|size| size as usize);
        return match (classes, labels) {
            (Some(classes), Some(labels)) if classes == labels + 1 => {
                known("hf-detr", "the graph's outputs, with one class more than labels")
            }
            (Some(classes), Some(labels)) if classes == labels => {
                known("hf-rt-detr", "the graph's outputs, with as many classes as labels")
            }
            _ => unclear(),
        };
    }
    if has_all(&["boxes", "scores", "labels"]) {
        let has_sizes = outline.inputs.iter().any(|port| port.name == "orig_target_sizes");
        return match find_picture(outline, None) {
            Some(_) if has_sizes => known("rt-detr", "the names of the graph's inputs and outputs"),
            Some((_, shape)) if shape.len() == 3 => known("torchvision", "the graph's outputs and its input"),
            _ => unclear(),
        };
    }
    Ok(guess_yolo(outline, labels))
}

/// The preset of a graph with all numbers in one output.
fn guess_yolo(outline: &Outline, labels: Option<usize>) -> Option<PresetGuess> {
    let name = output_name(outline)?;
    let port = outline.outputs.iter().find(|port| port.name == name)?;
    let [_, first, second] = shape(port)? else { return None };
    let (first, second) = (first.map(|size| size as usize), second.map(|size| size as usize));
    let metadata = |key: &str| outline.metadata.get(key).map(String::as_str);
    let of = |name: &str, why: &str, is_guess| {
        find(name).map(|preset| PresetGuess { preset, why: why.to_owned(), is_guess })
    };
    if metadata("names").is_some() && metadata("stride").is_some() {
        let why = "ultralytics' metadata and the shape of the output";
        return match (metadata("task"), labels) {
            (Some("detect"), Some(labels)) if first == Some(4 + labels) => of("yolov8", why, false),
            (Some("detect"), _) if second == Some(6) => of("yolov10", why, false),
            (None, Some(labels)) if second == Some(5 + labels) => of("yolov5", why, false),
            _ => None,
        };
    }
    let (_, input) = find_picture(outline, None)?;
    let [Some(width), Some(height)] = picture_size(input, false) else { return None };
    let cells = cell_count(width, height);
    match (first, second) {
        (Some(300), Some(6)) => of("yolov10", "the shape of the output: 300 final boxes", true),
        (Some(boxes), Some(6..)) if boxes == 3 * cells => {
            of("yolov5", "the shape of the output: three boxes a cell", true)
        }
        (Some(boxes), Some(6..)) if boxes == cells => of(
            "yolox",
            "the shape of the output: a box a cell, relative to it unless exported with --decode_in_inference",
            true,
        ),
        (Some(5..), Some(boxes)) if boxes == cells => {
            of("yolov8", "the shape of the output: a box a cell, in columns", true)
        }
        _ => None,
    }
}

fn shape(port: &GraphPort) -> Option<&[Option<u32>]> {
    match &port.holds {
        PortContent::Tensor { shape, .. } => Some(shape),
        PortContent::LabelScores | PortContent::Other => None,
    }
}

fn rank(port: Option<&GraphPort>) -> Option<usize> {
    shape(port?).map(<[_]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::ModelDescription;

    fn port(name: &str, shape: &[u32]) -> GraphPort {
        let shape = shape.iter().map(|size| Some(*size).filter(|size| *size > 0)).collect();
        GraphPort { name: name.to_owned(), holds: PortContent::Tensor { element: 1, shape } }
    }

    fn outline(inputs: &[GraphPort], outputs: &[GraphPort]) -> Outline {
        let mut outline = Outline::default();
        (outline.inputs, outline.outputs) = (inputs.to_vec(), outputs.to_vec());
        outline
    }

    fn own() -> Table {
        "name = \"detector\"\nversion = 1".parse().unwrap()
    }

    #[test]
    fn every_preset_is_a_whole_and_valid_description() {
        let graph = outline(&[port("images", &[0, 3, 640, 640])], &[port("output0", &[1, 84, 8400])]);
        for preset in PRESETS {
            let table = preset.complete(&graph, &own()).unwrap();
            let description: ModelDescription =
                table.try_into().unwrap_or_else(|error| panic!("{}: {error}", preset.name));
            assert_eq!(crate::model::check(&description), Ok(()), "{}", preset.name);
            for name in preset.aliases.iter().chain([&preset.name]) {
                assert_eq!(find(name), Some(preset));
            }
        }
        assert_eq!(find("yolov80"), None);
    }

    #[test]
    fn keys_of_the_file_win_over_the_preset_and_both_over_the_graph() {
        let graph = outline(&[port("images", &[1, 3, 480, 640])], &[port("output0", &[1, 7, 6300])]);
        let own: Table =
            "name = \"d\"\nversion = 1\n[output]\nthreshold = 0.4\n[input]\npad_value = 0".parse().unwrap();
        let description: ModelDescription = find("yolov8").unwrap().complete(&graph, &own).unwrap().try_into().unwrap();
        let input = &description.input;
        assert_eq!((input.name.as_str(), input.width_px, input.height_px, input.pad_value), ("images", 640, 480, 0));
        assert_eq!((description.output.name.as_str(), description.output.threshold), ("output0", Some(0.4)));
        let open = outline(&[port("images", &[0, 3, 0, 0])], &[port("output0", &[0, 7, 0])]);
        assert_eq!(find("yolov8").unwrap().complete(&open, &own).unwrap_err().key, "input.width_px");
        let several = outline(&[port("images", &[1, 3, 64, 64])], &[port("a", &[1, 7, 84]), port("b", &[1, 7, 84])]);
        let missing = find("yolov8").unwrap().complete(&several, &own).unwrap_err();
        assert!(missing.key == "output.name" && missing.why.contains("\"a\", \"b\""), "{missing:?}");
    }

    #[test]
    fn exporters_are_told_apart_where_their_graphs_differ() {
        let picture = || port("images", &[1, 3, 640, 640]);
        let named = |graph: &Outline, labels| {
            guess(graph, None, labels).map(|found| found.map(|found| (found.preset.name, found.is_guess)))
        };
        let tf =
            ["detection_boxes:0", "detection_scores:0", "detection_classes:0"].map(|name| port(name, &[1, 100, 4]));
        assert_eq!(named(&outline(&[picture()], &tf), None), Ok(Some(("ssd-tensorflow", false))));
        let detr =
            |classes| outline(&[picture()], &[port("logits", &[1, 100, classes]), port("pred_boxes", &[1, 100, 4])]);
        assert_eq!(named(&detr(81), Some(80)), Ok(Some(("hf-detr", false))));
        assert_eq!(named(&detr(80), Some(80)), Ok(Some(("hf-rt-detr", false))));
        let why = named(&detr(80), None).unwrap_err();
        assert!(why.contains("--preset") && why.contains("hf-detr") && why.contains("pred_boxes"), "{why}");
        let config = serde_json::json!({"architectures": ["DFineForObjectDetection"]});
        let found = guess(&detr(80), Some(&config), None).unwrap().unwrap();
        assert_eq!((found.preset.name, found.is_guess), ("hf-rt-detr", false));
        let three = [port("boxes", &[0, 4]), port("scores", &[0]), port("labels", &[0])];
        assert_eq!(named(&outline(&[port("images", &[3, 0, 0])], &three), None), Ok(Some(("torchvision", false))));
        let sized = [picture(), port("orig_target_sizes", &[0, 2])];
        assert_eq!(named(&outline(&sized, &three), None), Ok(Some(("rt-detr", false))));
        assert!(named(&outline(&[picture()], &three), None).is_err());
        let one = |a, b| outline(&[picture()], &[port("output", &[1, a, b])]);
        assert_eq!(named(&one(8400, 85), None), Ok(Some(("yolox", true))));
        assert_eq!(named(&one(25_200, 85), None), Ok(Some(("yolov5", true))));
        assert_eq!(named(&one(84, 8400), None), Ok(Some(("yolov8", true))));
        assert_eq!(named(&one(300, 6), None), Ok(Some(("yolov10", true))));
        let metadata = [("names", "{0: 'a', 1: 'b'}"), ("stride", "32"), ("task", "detect")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut of_ultralytics = one(6, 8400);
        of_ultralytics.metadata = metadata.into();
        assert_eq!(named(&of_ultralytics, Some(2)), Ok(Some(("yolov8", false))));
        let classifier = outline(&[picture()], &[port("logits", &[1, 1000])]);
        assert_eq!(named(&classifier, Some(1000)), Ok(None));
    }
}
