//! Models as people have them: described, tried and served, with the built binary.

use std::fs;
use std::path::Path;

use harness::program::{fixture, run_for};
use harness::{CommandOutput, TestWorld, WorldPlan};
use schemas::{Answer, DetectedObject, Route};
use streams::Bus;
use tempfile::TempDir;

use crate::common::{PATIENCE, answered, publish};

/// A copy of a fixture's files.
fn copy_of(path: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fixture(path).read_dir().unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

async fn tributary(arguments: &[&str]) -> CommandOutput {
    run_for(Path::new("."), arguments, PATIENCE).await.unwrap()
}

#[tokio::test]
async fn an_export_is_described_by_what_it_says_and_what_is_guessed_is_called_a_guess() {
    let folder = copy_of("forms/ultralytics");
    let graph = folder.path().join("best.onnx").display().to_string();
    let drafted = tributary(&["model", "init", &graph]).await;
    assert!(drafted.success, "{}", drafted.err);
    for said in ["known    input.scale", "ultralytics' metadata", "guess    input.channels", "labels.txt"] {
        assert!(drafted.out.contains(said), "{said}: {}", drafted.out);
    }
    let text = fs::read_to_string(folder.path().join("model.toml")).unwrap();
    assert!(text.contains("# a guess: most models take red first"), "{text}");
    assert_eq!(fs::read_to_string(folder.path().join("labels.txt")).unwrap(), "crab\nray\nshark\nturtle\n");

    let again = tributary(&["model", "init", &folder.path().display().to_string()]).await;
    assert!(!again.success && again.err.contains("model.toml already exists"), "{}", again.err);
    assert_eq!(fs::read_to_string(folder.path().join("model.toml")).unwrap(), text);
    let nowhere = tributary(&["model", "init", "nowhere.onnx"]).await;
    assert!(!nowhere.success && nowhere.err.contains("nowhere.onnx does not exist"), "{}", nowhere.err);

    let images = fixture("processors").display().to_string();
    let checked = tributary(&["model", "check", &folder.path().display().to_string(), "--images", &images]).await;
    assert!(checked.success && checked.out.contains("landscape.png"), "{}{}", checked.out, checked.err);
    assert!(checked.out.contains("ready for use, and its description fits"), "{}", checked.out);
}

#[tokio::test]
async fn a_description_that_most_pictures_contradict_is_called_doubtful_and_the_better_one_named() {
    let folder = copy_of("models/fashion-light");
    let path = folder.path().join("model.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("mean = [0.286]"), "{text}");
    fs::write(&path, text.replace("mean = [0.286]", "mean = [3.0]")).unwrap();
    // A few of each label, with a file that is no picture and a label that is none of the model's.
    let images = tempfile::tempdir().unwrap();
    for label in ["bag", "coat", "dress", "sandal"] {
        let (from, to) = (fixture("images/fashion").join(label), images.path().join(label));
        fs::create_dir(&to).unwrap();
        let Ok(found) = from.read_dir() else { continue };
        for entry in found.map(Result::unwrap).take(12) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    fs::write(images.path().join("bag/broken.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    fs::create_dir(images.path().join("cow")).unwrap();
    let any = images.path().join("bag").read_dir().unwrap().next().unwrap().unwrap().path();
    fs::copy(any, images.path().join("cow/1.png")).unwrap();
    let (folder, images) = (folder.path().display().to_string(), images.path().display().to_string());
    let checked = tributary(&["model", "check", &folder, "--images", &images, "--labels-from-folders"]).await;
    assert!(checked.success, "{}", checked.err);
    for said in ["cannot be read", "with label cow", "The description is doubtful", "pictures are right instead of"] {
        assert!(checked.out.contains(said), "{said}: {}", checked.out);
    }
}

async fn recognized(world: &TestWorld, bus: &Bus, picture: &str) -> Answer {
    let bytes = fs::read(fixture("processors").join(picture)).unwrap();
    answered(world, publish(bus, &world.site(0).name, &bytes, &[]).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_names_every_label_that_holds() {
    let plan =
        WorldPlan::default().set("recognizer.verify.enabled=false").set("recognizer.gate.min_confidence_ratio=0.9");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.recognizer_of("recognizer", 0, "forms/several-labels").unwrap();
    world.all_started().await.unwrap();
    let bus = world.bus(0).clone();
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("forms/several-labels/expected.json")).unwrap()).unwrap();
    for picture in ["landscape.png", "portrait.png"] {
        let answer = recognized(&world, &bus, picture).await;
        let holds = |label: &&str| {
            let threshold = if *label == "ray" { 0.2 } else { 0.6 };
            expected[picture][*label].as_f64().unwrap() >= threshold
        };
        let mut expected: Vec<&str> = ["crab", "ray", "shark", "turtle"].into_iter().filter(holds).collect();
        let labels = answer.labels.clone().unwrap();
        let mut held: Vec<&str> = labels.iter().map(|ranked| ranked.label.as_str()).collect();
        assert_eq!(answer.label.as_deref(), held.first().copied().or(Some("none")), "{answer:?}");
        held.sort_unstable();
        expected.sort_unstable();
        assert_eq!(held, expected, "{answer:?}");
        assert_eq!(answer.route, Route::Edge);
    }
}

fn expected_objects(form: &str, picture: &str) -> Vec<DetectedObject> {
    let all = fs::read(fixture("boxes").join(form).join("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&all).unwrap();
    serde_json::from_value(all[picture].clone()).unwrap()
}

fn assert_found(found: Option<&Vec<DetectedObject>>, expected: &[DetectedObject]) {
    let found = found.expect("the answer of a detector lists objects");
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        let shared = found.bounds.intersection_over_union(&expected.bounds);
        assert!(found.label == expected.label && shared > 0.99, "{found:?} {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_the_site_and_of_the_cloud_are_in_the_answer() {
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    world.recognizer_of("recognizer", 0, "boxes/yolov8").unwrap();
    world.courier("courier", 0).unwrap();
    world.verifier_of("verifier", "boxes/hf-detr").unwrap();
    world.all_started().await.unwrap();
    let site = world.site(0).name.clone();
    for picture in ["landscape.png", "portrait.png"] {
        let bytes = fs::read(fixture("boxes").join(picture)).unwrap();
        // The least sure object is below the gate's 0.7.
        let answer = answered(&world, publish(world.bus(0), &site, &bytes, &[]).await).await;
        assert_eq!(answer.route, Route::Verified);
        let expected = expected_objects("hf-detr", picture);
        assert_found(answer.objects.as_ref(), &expected);
        assert_eq!(answer.label.as_ref(), Some(&expected[0].label));
        assert_found(answer.edge.unwrap().objects.as_ref(), &expected_objects("yolov8", picture));
        let task = answer.task.to_string();
        let mut arguments = vec!["answers".to_owned(), task];
        arguments.extend(world.at(0));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let shown = tributary(&arguments).await;
        assert!(shown.success, "{}", shown.err);
        let persons = expected.iter().filter(|object| object.label == "person").count();
        assert!(shown.out.contains(&format!("{persons} person")), "{}", shown.out);
        let in_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let shown = tributary(&in_json).await;
        let value: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
        assert_eq!(value["objects"][0]["label"], expected[0].label.as_str());
        assert_eq!(value["objects"][0]["box"].as_array().map(Vec::len), Some(4), "{value}");
    }
}

#[tokio::test]
async fn a_detector_is_described_checked_and_drawn_and_not_trained() {
    let folder = copy_of("boxes/yolov8");
    fs::remove_file(folder.path().join("model.toml")).unwrap();
    let model = folder.path().display().to_string();
    let drafted = tributary(&["model", "init", &model]).await;
    assert!(drafted.success, "{}", drafted.err);
    for said in ["the preset yolov8", "--draw boxes.png"] {
        assert!(drafted.out.contains(said), "{said}: {}", drafted.out);
    }
    let (picture, drawing) = (fixture("boxes/landscape.png"), folder.path().join("boxes.png"));
    let (picture, drawing) = (picture.display().to_string(), drawing.display().to_string());
    let checked = tributary(&["model", "check", &model, "--image", &picture, "--draw", &drawing]).await;
    assert!(checked.success, "{}", checked.err);
    for said in ["found ", " person", "left top right bottom", "cannot train a detector yet"] {
        assert!(checked.out.contains(said), "{said}: {}", checked.out);
    }
    assert!(fs::read(&drawing).unwrap().starts_with(b"\x89PNG"));
    let images = fixture("boxes").display().to_string();
    let listed = tributary(&["model", "check", &model, "--images", &images]).await;
    assert!(listed.success && listed.out.contains("landscape.png") && listed.out.contains(" person"), "{}", listed.out);
    let fit = tributary(&["model", "novelty", &model, "--images", &images]).await;
    assert!(!fit.success && fit.err.contains("finds objects"), "{}", fit.err);
    let (data, out) = (fixture("images/fashion").display().to_string(), folder.path().join("new"));
    let train = ["train", "--model", &model, "--data", &data, "--out", out.to_str().unwrap()];
    let trained = tributary(&train).await;
    assert!(!trained.success && trained.err.contains("cannot train a detector yet"), "{}", trained.err);
    let classifier = fixture("models/fashion-light").display().to_string();
    let refused = tributary(&["model", "check", &classifier, "--image", &picture, "--draw", &drawing]).await;
    assert!(!refused.success && refused.err.contains("--draw is for detectors"), "{}", refused.err);
}
