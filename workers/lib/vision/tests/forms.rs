//! Models as people's exporters write them, compared with the scores of their makers' own processing
//! (fixtures/make_forms.py).

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

use vision::{InferenceSettings, Model, OnnxRuntime, Replica, prediction, probabilities};

/// Tolerance of a probability; pictures resized by another library differ by a level here and there.
const TOLERANCE: f32 = 2e-2;
const PICTURES: [&str; 2] = ["landscape.png", "portrait.png"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures")
}

fn onnx() -> OnnxRuntime {
    OnnxRuntime::find_and_load(None).expect("ONNX Runtime is needed: run `make setup`")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => fs::write(to, fs::read(from).unwrap()).unwrap(),
        }
    }
}

/// Describes a folder as `tributary model init` does.
fn init(folder: &Path) {
    let draft = vision::draft(folder, None, None).unwrap();
    if let Some(labels) = &draft.labels {
        fs::write(folder.join("labels.txt"), labels.join("\n")).unwrap();
    }
    fs::write(folder.join("model.toml"), draft.toml().unwrap()).unwrap();
}

/// Probability of each label for each picture.
fn scores(folder: &Path) -> BTreeMap<String, BTreeMap<String, f32>> {
    let model = Model::load(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut replica = Replica::open(&onnx(), &model, &InferenceSettings::default())
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let see = |name: &str| {
        let seen = replica.predict(&fs::read(fixtures().join("processors").join(name)).unwrap()).unwrap();
        let ratios = probabilities(&model, &seen.logits, 1.0);
        assert!(prediction(&model, &ratios).is_some());
        (name.to_owned(), model.labels.iter().cloned().zip(ratios).collect())
    };
    PICTURES.map(see).into()
}

/// Compares scores with the expected ones and prints a row; returns what is wrong.
fn compare(
    name: &str,
    ours: &BTreeMap<String, BTreeMap<String, f32>>,
    theirs: &BTreeMap<String, BTreeMap<String, f32>>,
) -> Option<String> {
    let best = |scores: &BTreeMap<String, f32>| {
        let best = scores.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        (best.0.clone(), *best.1)
    };
    let mut worst: f32 = 0.0;
    let mut row = Vec::new();
    let mut same_best = true;
    for picture in PICTURES {
        let (ours, theirs) = (&ours[picture], &theirs[picture]);
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        worst = ours.iter().map(|(label, ratio)| (ratio - theirs[label]).abs()).fold(worst, f32::max);
        let ((our_best, our_ratio), (their_best, their_ratio)) = (best(ours), best(theirs));
        same_best &= our_best == their_best;
        row.push(format!("{our_best} {our_ratio:.3} ({their_best} {their_ratio:.3})"));
    }
    println!("| {name} | {} | {worst:.4} |", row.join(", "));
    (worst > TOLERANCE || !same_best).then(|| format!("{name}: off by {worst}, {}", row.join(", ")))
}

#[test]
fn every_model_form_gives_the_scores_of_its_maker() {
    let forms = fixtures().join("forms");
    let mut names: Vec<String> =
        forms.read_dir().unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() > 20, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let folder = tempfile::tempdir().unwrap();
        copy(&forms.join(&name), folder.path());
        if !folder.path().join("model.toml").exists() && !folder.path().join("preprocessor_config.json").exists() {
            init(folder.path());
        }
        let expected = fs::read(folder.path().join("expected.json")).unwrap();
        wrong.extend(compare(&name, &scores(folder.path()), &serde_json::from_slice(&expected).unwrap()));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_model_behind_every_processor_gives_the_scores_of_its_library() {
    let processors = fixtures().join("processors");
    let expected: BTreeMap<String, [Vec<f32>; 2]> =
        serde_json::from_slice(&fs::read(processors.join("scores.json")).unwrap()).unwrap();
    let labels = ["crab", "ray", "shark", "turtle"];
    let table = |scores: &[f32]| labels.map(str::to_owned).into_iter().zip(scores.iter().copied()).collect();
    let mut wrong = Vec::new();
    for (name, [landscape, portrait]) in &expected {
        let folder = tempfile::tempdir().unwrap();
        let copy = |from: &str, to: &str| fs::copy(processors.join(from), folder.path().join(to)).unwrap();
        copy(&format!("{name}.json"), "preprocessor_config.json");
        copy("probe.onnx", "model.onnx");
        fs::write(
            folder.path().join("config.json"),
            r#"{"id2label": {"0": "crab", "1": "ray", "2": "shark", "3": "turtle"}}"#,
        )
        .unwrap();
        let theirs = [(PICTURES[0].to_owned(), table(landscape)), (PICTURES[1].to_owned(), table(portrait))].into();
        wrong.extend(compare(name, &scores(folder.path()), &theirs));
    }
    assert!(expected.len() > 20 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn of_several_labels_those_above_their_thresholds_hold() {
    let model = Model::load(&fixtures().join("forms/several-labels")).unwrap();
    assert_eq!(model.labels, ["crab", "ray", "shark", "turtle"]);
    assert_eq!(model.thresholds, [0.6, 0.2, 0.6, 0.6]);
    let said = |ratios: &[f32]| {
        let predicted = prediction(&model, ratios).unwrap();
        let labels: Vec<String> = predicted.labels.unwrap().into_iter().map(|ranked| ranked.label).collect();
        (predicted.label, predicted.confidence, labels.join(" "))
    };
    assert_eq!(said(&[0.61, 0.25, 0.59, 0.9]), ("turtle".into(), 0.9, "turtle crab ray".into()));
    assert_eq!(said(&[0.59, 0.1, 0.5, 0.2]), ("none".into(), 1.0 - 0.59, String::new()));
}

#[test]
fn the_end_of_a_graph_is_checked_against_its_description() {
    for (form, from, to, parts) in [
        (
            "one-sigmoid",
            "probabilities",
            "logits",
            &["output.kind is logits", "ends in a Sigmoid", "probabilities"][..],
        ),
        ("several-labels", "\"sigmoid\"", "\"sigmoid_logits\"", &["ends in a Sigmoid", "write sigmoid"]),
        ("zipmap", "probabilities", "logits", &["ends in a Softmax", "write probabilities"]),
        ("several-labels", "threshold = 0.6", "threshold = 1.6", &["output.threshold is 1.6", "0 to 1"]),
        ("several-labels", "ray", "cow", &["output.thresholds.cow", "is not a label"]),
        ("logits", "kind = \"logits\"", "kind = \"logits\"\nthreshold = 0.5", &["output.threshold", "sigmoid"]),
        ("logits", "version = 1", "version = 1\ngraph = \"../x.onnx\"", &["graph is \"../x.onnx\"", "of this folder"]),
        ("hf-overridden", "mean = [0.4, 0.4, 0.4]", "means = [0.4]", &["model.toml", "line 2", "means"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixtures().join("forms").join(form), folder.path());
        let path = folder.path().join("model.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{form}: {text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let why = Model::load(folder.path()).unwrap_err().to_string();
        for part in parts {
            assert!(why.contains(part), "{form}: {part:?} is not in {why:?}");
        }
    }
}

#[test]
fn byte_inputs_refuse_scaling_and_one_output_refuses_ten_labels() {
    for (form, file, from, to, parts) in [
        ("bytes", "model.toml", "scale = 1.0", "scale = 0.5", &["takes bytes", "scale = 1.0"][..]),
        ("one-logit", "labels.txt", "dog\n", "dog\nemu\n", &["is one number", "two labels"]),
        ("zipmap", "labels.txt", "crab", "krab", &["krab", "as the graph has them"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixtures().join("forms").join(form), folder.path());
        let path = folder.path().join(file);
        fs::write(&path, fs::read_to_string(&path).unwrap().replacen(from, to, 1)).unwrap();
        let model = Model::load(folder.path()).unwrap();
        let why = match Replica::open(&onnx(), &model, &InferenceSettings::default()) {
            Err(error) => error.to_string(),
            Ok(mut replica) => replica
                .predict(&fs::read(fixtures().join("processors/landscape.png")).unwrap())
                .map_err(|error| error.to_string())
                .unwrap_err(),
        };
        for part in parts {
            assert!(why.contains(part), "{form}: {part:?} is not in {why:?}");
        }
    }
}
