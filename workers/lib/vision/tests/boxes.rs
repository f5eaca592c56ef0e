//! Detectors as their exporters leave them, compared with their authors' own post-processing (fixtures/make_boxes.py).

#![allow(clippy::indexing_slicing)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::{DetectedObject, NO_LABEL};
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

/// Tolerance of a confidence and of an edge as a fraction of the picture.
const TOLERANCE: f32 = 1e-3;
const PICTURES: [&str; 2] = ["landscape.png", "portrait.png"];

fn boxes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/boxes")
}

fn onnx() -> OnnxRuntime {
    OnnxRuntime::find_and_load(None).expect("ONNX Runtime is needed: run `make setup`")
}

fn forms() -> Vec<String> {
    let entries = boxes().read_dir().unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    names
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(boxes().join(name)).unwrap()
}

fn expected(form: &str) -> BTreeMap<String, Vec<DetectedObject>> {
    serde_json::from_str(&fs::read_to_string(boxes().join(form).join("expected.json")).unwrap()).unwrap()
}

fn open(folder: &Path) -> Replica {
    let model = Model::load(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    Replica::open(&onnx(), &model, &InferenceSettings::default())
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// A copy of a form with one replacement in one of its files, or with a file removed.
fn edited(form: &str, file: &str, change: impl FnOnce(String) -> Option<String>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in boxes().join(form).read_dir().unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    match change(fs::read_to_string(&path).unwrap()) {
        Some(text) => fs::write(path, text).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    folder
}

/// The largest difference; panics if other objects were found.
fn difference(form: &str, ours: &[DetectedObject], theirs: &[DetectedObject]) -> f32 {
    let labels = |objects: &[DetectedObject]| objects.iter().map(|object| object.label.clone()).collect::<Vec<_>>();
    assert_eq!(labels(ours), labels(theirs), "{form}: {ours:?}\n{theirs:?}");
    let apart = |(one, other): (&DetectedObject, &DetectedObject)| {
        let edges: [[f32; 4]; 2] = [one.bounds.into(), other.bounds.into()];
        let edges = edges[0].iter().zip(edges[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        edges.max((one.confidence - other.confidence).abs())
    };
    ours.iter().zip(theirs).map(apart).fold(0.0, f32::max)
}

#[test]
fn every_form_gives_the_boxes_of_its_authors() {
    for form in forms() {
        let mut replica = open(&boxes().join(&form));
        let expected = expected(&form);
        let mut worst: f32 = 0.0;
        for name in PICTURES {
            let seen = replica.predict(&picture(name)).unwrap_or_else(|error| panic!("{form}: {error}"));
            let found = seen.detections.as_ref().unwrap();
            worst = worst.max(difference(&form, &found.objects, &expected[name]));
            let said = vision::predict(&seen, 1.0).unwrap();
            match found.objects.first() {
                Some(surest) => assert_eq!((&said.label, said.confidence), (&surest.label, surest.confidence)),
                None => assert_eq!((said.label.as_str(), said.confidence), (NO_LABEL, 1.0)),
            }
            assert_eq!(said.objects.as_ref(), Some(&found.objects), "{form}");
            assert_eq!(seen.logits.len(), seen.model.labels.len());
        }
        println!(
            "| {form} | {} and {} objects | {worst:.6} |",
            expected[PICTURES[0]].len(),
            expected[PICTURES[1]].len()
        );
        assert!(worst < TOLERANCE, "{form}: off by {worst}");
    }
}

#[test]
fn pictures_of_two_shapes_in_one_batch_get_what_they_get_alone() {
    for form in forms() {
        let mut replica = open(&boxes().join(&form));
        let pictures = PICTURES.map(picture);
        let together = replica.predict_batch(&[&pictures[0], &pictures[1], &pictures[0]]);
        for (name, seen) in [PICTURES[0], PICTURES[1], PICTURES[0]].into_iter().zip(together) {
            let found = seen.unwrap().detections.unwrap();
            assert!(difference(&form, &found.objects, &expected(&form)[name]) < TOLERANCE, "{form}");
        }
    }
}

#[test]
fn a_draft_of_each_form_finds_the_same_or_asks_for_the_preset() {
    for form in forms() {
        let folder = tempfile::tempdir().unwrap();
        for entry in boxes().join(&form).read_dir().unwrap().map(Result::unwrap) {
            if entry.file_name() != "model.toml" {
                fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
        }
        // Rows without objectness in a single output are of nobody's kind.
        let draft = match (form.as_str(), vision::draft(folder.path(), None, None)) {
            ("rows-half", _) => continue,
            ("d-fine-turned", Ok(mut draft)) => {
                let sizes = draft.description.input.source_size.as_mut().unwrap();
                sizes.order = schemas::model::SizeOrder::HeightWidth;
                draft
            }
            (_, outcome) => outcome.unwrap_or_else(|error| panic!("{form}: {error}")),
        };
        fs::write(folder.path().join("model.toml"), draft.toml().unwrap()).unwrap();
        let mut replica = open(folder.path());
        for name in PICTURES {
            let found = replica.predict(&picture(name)).unwrap().detections.unwrap();
            assert!(difference(&form, &found.objects, &expected(&form)[name]) < TOLERANCE, "{form}");
        }
    }
    let why = vision::draft(&boxes().join("yolov8"), None, Some("yolo9000")).unwrap_err().to_string();
    assert!(why.contains("\"yolo9000\"") && why.contains("yolov5, yolov8"), "{why}");
}

#[test]
fn a_description_that_is_wrong_is_refused_with_its_key() {
    let append = |more: &'static str| move |text: String| Some(text + more);
    for (form, more, parts) in [
        ("yolov8", "[output.boxes]\nnms_iou = 1.5\n", &["output.boxes.nms_iou is 1.5", "0 to 1", "line 5"][..]),
        ("yolov8", "[output.boxes]\nmax_objects = 0\n", &["output.boxes.max_objects is 0", "1 to 300"]),
        ("yolov8", "[output.boxes]\nstrides = [8]\n", &["output.boxes.strides", "layout = \"grid\""]),
        ("yolox", "[output.boxes]\nstrides = [0]\n", &["output.boxes.strides has 0", "1 to 1024"]),
        ("yolov8", "[output.boxes]\nscores = \"x\"\n", &["output.boxes.scores", "separate"]),
        ("rf-detr", "[output.boxes]\nobjectness = true\n", &["output.boxes.objectness", "separate"]),
        ("rt-detr", "[output.boxes]\nmulti_label = true\n", &["output.boxes.multi_label"]),
        ("yolov8", "[output.boxes]\nunit = \"source_pixels\"\n", &["output.boxes.unit", "input.source_size"]),
        ("yolov8", "[output.boxes]\nlayout = \"diagonal\"\n", &["diagonal", "end_to_end"]),
        ("yolov8", "[output]\nthreshold = 2.0\n", &["output.threshold is 2", "0 to 1"]),
        ("yolov8", "[output]\nthresholds = { cow = 0.5 }\n", &["output.thresholds.cow", "not a label"]),
        ("yolov8", "[output]\nfeatures = \"f\"\n", &["output.features", "boxes"]),
        ("yolov8", "[input]\nresize = \"crop\"\npad_value = 0\n", &["input.resize", "cuts off"]),
        ("yolox", "[input]\nresize = \"stretch\"\n", &["input.pad_value", "resize = \"pad\""]),
        ("yolov8", "[gate]\ntemperature = 2.0\n", &["gate.temperature", "remove it"]),
        ("yolov8", "[gate]\nmax_novelty = 0.9\n", &["gate.max_novelty", "remove it"]),
    ] {
        let folder = edited(form, "model.toml", append(more));
        let why = Model::load(folder.path()).unwrap_err().to_string();
        for part in parts.iter().chain([&"model.toml"]) {
            assert!(why.contains(part), "{more:?}: {part:?} is not in {why:?}");
        }
    }
    let change = |from: &'static str, to: &'static str| move |text: String| Some(text.replacen(from, to, 1));
    let folder = edited("yolov8", "model.toml", change("preset = \"yolov8\"", "preset = \"yolo9000\""));
    let why = Model::load(folder.path()).unwrap_err().to_string();
    assert!(why.contains("line 3") && why.contains("yolo9000") && why.contains("torchvision"), "{why}");
    let description = "[input]\nname = \"images\"\nwidth_px = 64\nheight_px = 64\nchannels = \"rgb\"\nscale = 1.0\n\
                       mean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n[output]\nname = \"output0\"\nkind = \"boxes\"\n";
    let folder = edited("yolov8", "model.toml", change("preset = \"yolov8\"", description));
    let why = Model::load(folder.path()).unwrap_err().to_string();
    assert!(why.contains("output.boxes is missing") && why.contains("preset"), "{why}");
}

#[test]
fn labels_that_are_missing_or_do_not_fit_are_refused() {
    let refusal = |folder: &tempfile::TempDir| match Model::load(folder.path()) {
        Err(error) => error.to_string(),
        Ok(model) => Replica::open(&onnx(), &model, &InferenceSettings::default()).unwrap_err().to_string(),
    };
    let why = refusal(&edited("yolov8", "labels.txt", |_| None));
    assert!(why.contains("labels.txt"), "{why}");
    let why = refusal(&edited("yolov8", "labels.txt", |_| Some(String::new())));
    assert!(why.contains("labels.txt") && why.contains("is missing"), "{why}");
    for (form, layout) in [("yolov8", "columns"), ("yolov5", "rows"), ("yolox", "grid"), ("rf-detr", "separate")] {
        let why = refusal(&edited(form, "labels.txt", |text| Some(text + "cow\n")));
        for part in ["4 labels", layout, "one label per class", "model.toml"] {
            assert!(why.contains(part), "{form}: {part:?} is not in {why:?}");
        }
    }
    // A graph that gives class numbers shows it at the first object of a class without a label.
    let folder = edited("rt-detr", "labels.txt", |_| Some("person\n".to_owned()));
    let why = open(folder.path()).predict(&picture(PICTURES[0])).unwrap_err();
    assert!(why.name() == "graph_mismatch" && why.to_string().contains("1 labels"), "{why}");
}

#[test]
fn a_graph_of_another_form_is_refused_with_what_it_has() {
    for (form, preset, parts) in [
        ("yolov8", "yolov5", &["\"output0\"", "[n, 7, 84]", "\"rows\"", "[batch, boxes, 8]"][..]),
        ("yolov5", "yolov8", &["[n, 252, 8]", "\"columns\"", "[batch, 7, boxes]"]),
        ("yolov5", "yolox", &["[n, 252, 8]", "\"grid\"", "[batch, 84, 8]", "strides"]),
        ("yolov8", "yolov10", &["\"end_to_end\"", "[batch, boxes, 6]"]),
        ("yolov8", "rt-detr", &["\"orig_target_sizes\"", "input.source_size.name"]),
        ("rt-detr", "torchvision", &["2 inputs", "input.source_size"]),
        ("yolov8", "hf-detr", &["\"pred_boxes\"", "output.name"]),
        ("rf-detr", "hf-rt-detr", &["\"pred_boxes\"", "\"dets\""]),
    ] {
        let folder = edited(form, "model.toml", |text| {
            let line = text.lines().find(|line| line.starts_with("preset")).unwrap();
            Some(text.replace(line, &format!("preset = \"{preset}\"")))
        });
        let model = Model::load(folder.path()).unwrap();
        let why = Replica::open(&onnx(), &model, &InferenceSettings::default()).unwrap_err().to_string();
        for part in parts.iter().chain([&"model.toml"]) {
            assert!(why.contains(part), "{form} as {preset}: {part:?} is not in {why:?}");
        }
    }
}

#[test]
fn a_check_reports_objects_and_a_detector_has_no_novelty_score() {
    let report = vision::check(&boxes().join("yolov8"), &onnx(), Some(&picture(PICTURES[0]))).unwrap();
    assert_eq!(report.objects.as_ref().map(Vec::len), Some(expected("yolov8")[PICTURES[0]].len()));
    assert!(report.top.is_empty() && report.not_finite == 0 && report.cut == 0);
    let model = Model::load(&boxes().join("yolov8")).unwrap();
    let refused = vision::novelty::fit::fit_novelty(&onnx(), &model, &[], &[]).unwrap_err().to_string();
    assert!(refused.contains("finds objects"), "{refused}");
}
