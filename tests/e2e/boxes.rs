//! Objects of detectors: asked about in filters, labelled, exported as COCO annotations and taken back. The answers are
//! written as a recognizer would, so that what is in them is known.

use std::collections::BTreeMap;
use std::path::Path;

use harness::pictures::{LIGHT, pictures};
use harness::program::fixture;
use harness::{TestWorld, WorldPlan};
use schemas::task::StorageStamp;
use schemas::{
    Answer, AnswerStage, DetectedObject, Label, Prediction, Reason, ReleaseId, Route, Task, TaskId, decode, encode,
};
use serde_json::Value;
use streams::reader::{self, StreamRange};
use streams::{Publication, Publisher, subject, topology};

use crate::common::{PATIENCE, at, done, done_json, publish};

const HERE: [f32; 4] = [0.0, 0.0, 0.5, 0.5];
const THERE: [f32; 4] = [0.5, 0.25, 1.0, 0.75];
const BELOW: [f32; 4] = [0.0, 0.5, 0.25, 1.0];

async fn refused(world: &TestWorld, words: &[&str], said: &str) {
    let ended = at(world, words).await;
    assert!(!ended.success && ended.err.contains(said), "{words:?}: {}", ended.err);
}

fn object(label: &str, confidence: f32, edges: [f32; 4]) -> DetectedObject {
    DetectedObject { label: label.into(), confidence, bounds: edges.into() }
}

fn prediction(objects: Option<Vec<DetectedObject>>) -> Prediction {
    let surest = objects.iter().flatten().next();
    Prediction {
        label: surest.map_or("none", |object| object.label.as_str()).into(),
        confidence: surest.map_or(0.75, |object| object.confidence),
        top: Vec::new(),
        labels: None,
        objects,
        release: ReleaseId::from_sha256([7; 32]),
        temperature: None,
        novelty: None,
    }
}

/// Publishes a picture from a file, and its final answer.
async fn answered(
    world: &TestWorld,
    number: u64,
    edge: Option<Vec<DetectedObject>>,
    verdict: Option<Vec<DetectedObject>>,
) -> TaskId {
    let (site, bus) = (world.site(0).name.clone(), world.bus(0));
    let picture = &pictures().unwrap()[number as usize];
    let id = publish(bus, &site, &picture.bytes, &[]).await;
    let stored =
        StorageStamp { site, camera: "cam-1".parse().unwrap(), sequence: number + 1, stored_at_ns: 1_000_000_000 };
    let task = Task { file: Some(format!("dock/{number:04}.png")), ..Task::from_id(&stored, id) };
    let edge = prediction(edge);
    let (route, reason) = match &verdict {
        Some(_) => (Route::Verified, Reason::LowConfidence),
        None => (Route::Edge, Reason::Confident),
    };
    let answer = Answer::for_task(&task, AnswerStage::Final, route, reason, 1_100);
    let answer = match verdict {
        Some(objects) => Answer { edge: Some(edge), ..answer.with_prediction(prediction(Some(objects))) },
        None => answer.with_prediction(edge),
    };
    let slot = subject::outcome(&stored.site, &stored.camera, id);
    let publication = Publication::first_on_subject(slot, encode(&answer).unwrap());
    Publisher::new(bus.clone(), PATIENCE).publish(&publication).await.unwrap();
    id
}

/// The annotations of an export, and the place of each task's image in them.
fn annotations(folder: &Path) -> (Value, BTreeMap<String, usize>) {
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("annotations.json")).unwrap()).unwrap();
    let images = json["images"].as_array().unwrap().iter().enumerate();
    let places = images.map(|(place, image)| (image["task"].as_str().unwrap().to_owned(), place)).collect();
    (json, places)
}

async fn labels(world: &TestWorld) -> Vec<Label> {
    let last = reader::stream_level(world.bus(0), topology::LABELS).await.unwrap().last_sequence;
    let mut labels = Vec::new();
    if last > 0 {
        reader::read_range(world.bus(0), topology::LABELS, StreamRange::default(), last, |record| {
            labels.push(decode::<Label>(&record.payload).unwrap());
        })
        .await
        .unwrap();
    }
    labels
}

#[tokio::test]
async fn objects_are_found_by_filter_labelled_exported_and_taken_back() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let unsure = answered(&world, 0, Some(vec![object("coat", 0.9, HERE), object("bag", 0.3, THERE)]), None).await;
    let three = [HERE, THERE, BELOW].map(|edges| object("coat", 0.9, edges)).to_vec();
    let crowded = answered(&world, 1, Some(three), None).await;
    let empty = answered(&world, 2, Some(Vec::new()), None).await;
    let judged = answered(&world, 3, Some(Vec::new()), Some(vec![object("dress", 0.8, HERE)])).await;
    let classified = answered(&world, 4, None, None).await;

    // Filters.
    let mut number = 0;
    for (condition, expected) in [
        ("count(coat) > 2 or any(confidence < 0.4)", 2),
        ("count() = 0", 1),
        ("not count() >= 0", 1),
        ("all(area > 0.2) and count(dress) = 1", 1),
        ("any(label in (coat, dress) and confidence > 85%)", 2),
    ] {
        number += 1;
        let to = format!("set-{number}");
        let summary = done_json(&world, &["export", "--where", condition, "--to", &to]).await;
        assert_eq!(summary["through"], expected, "{condition}: {summary}");
    }
    refused(&world, &["export", "--where", "any(camera = a)", "--to", "none"], "column 5: no field camera").await;

    // Labels, one by one.
    let (unsure_id, empty_id) = (unsure.to_string(), empty.to_string());
    let boxed = ["label", &unsure_id, "--by", "anna", "--box", "coat 0,0,0.5,0.5", "--box", "bag 0.5,0.25,1,0.75"];
    assert!(done(&world, &boxed).await.starts_with("1 label at site"));
    done(&world, &["label", &empty_id, "--no-objects"]).await;
    let known = labels(&world).await;
    assert_eq!(known.iter().map(|label| label.task).collect::<Vec<_>>(), [unsure, empty]);
    assert_eq!(known[0].objects, Some(vec![object("coat", 1.0, HERE), object("bag", 1.0, THERE)]));
    assert_eq!((known[0].label.as_str(), known[0].by.as_deref(), &known[1].objects), ("", Some("anna"), &Some(vec![])));
    let model = format!("recognizer.model={}", fixture(LIGHT).display());
    for (words, said) in [
        (vec!["label", &unsure_id, "--box", "whale 0,0,1,1", "--set", &model], "the model has no label \"whale\""),
        (vec!["label", &unsure_id, "--box", "coat 0,0,10,10"], "0 to 1"),
        (vec!["label", &unsure_id, "--box", "coat"], "LABEL LEFT,TOP,RIGHT,BOTTOM"),
        (vec!["label", &unsure_id, "coat", "--no-objects"], "cannot be used with"),
        (vec!["label", &unsure_id, "--no-objects", "--box", "coat 0,0,1,1"], "cannot be used with"),
        (vec!["label", &unsure_id], "required"),
        (vec!["label", "--no-objects"], "required"),
    ] {
        refused(&world, &words, said).await;
    }
    assert_eq!(labels(&world).await.len(), 2, "nothing was labelled by what was refused");

    // An export in COCO's form, of what is known by now.
    let summary = done_json(&world, &["export", "--format", "coco", "--to", "review"]).await;
    assert_eq!((&summary["through"], &summary["without_objects"]), (&4.into(), &1.into()), "{summary}");
    let review = world.folder().join("review");
    let (mut json, places) = annotations(&review);
    assert!(!places.contains_key(&classified.to_string()), "an answer that is no detector's");
    let source = |task: TaskId| json["images"][places[&task.to_string()]]["source"].as_str().unwrap().to_owned();
    assert_eq!([unsure, crowded, empty, judged].map(source), ["person", "edge", "person", "verdict"]);
    for image in json["images"].as_array().unwrap() {
        assert_eq!((&image["width"], &image["height"]), (&28.into(), &28.into()));
        let name = image["file_name"].as_str().unwrap();
        assert!(std::fs::metadata(review.join("images").join(name)).unwrap().len() > 0);
    }
    let again = done_json(&world, &["export", "--format", "coco", "--to", "review"]).await;
    assert_eq!((&again["through"], &again["before"]), (&0.into(), &4.into()));
    refused(&world, &["export", "--format", "coco", "--to", "x.tar"], "--format is that of a folder").await;

    // Given back as it is, and with one box removed.
    let said = done(&world, &["label", "--from", "review"]).await;
    assert!(said.starts_with("2 labels") && said.contains("2 images with the boxes of the answer skipped"), "{said}");
    let image = json["images"][places[&crowded.to_string()]]["id"].clone();
    let list = json["annotations"].as_array_mut().unwrap();
    let first = list.iter().position(|annotation| annotation["image_id"] == image).unwrap();
    list.remove(first);
    std::fs::write(review.join("annotations.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    let said = done(&world, &["label", "--from", "review", "--by", "ben"]).await;
    assert!(said.starts_with("3 labels") && said.contains("1 image with"), "{said}");
    let corrected = labels(&world).await.into_iter().rev().find(|label| label.task == crowded).unwrap();
    assert_eq!(corrected.objects, Some(vec![object("coat", 1.0, THERE), object("coat", 1.0, BELOW)]));

    // By the published file's name, from a tool that keeps nothing of ours; what is broken is named.
    let file = |bbox: &str| {
        format!(
            r#"{{"images": [{{"id": 5, "file_name": "0003.png", "width": 28, "height": 28}},
                {{"id": 6, "file_name": "9999.png", "width": 28, "height": 28}}],
                "annotations": [{{"id": 9, "image_id": 5, "category_id": 1, "bbox": {bbox}}}],
                "categories": [{{"id": 1, "name": "shirt"}}]}}"#
        )
    };
    std::fs::write(world.folder().join("tool.json"), file("[30, 0, 5, 5]")).unwrap();
    refused(&world, &["label", "--from", "tool.json"], "annotation 9 has the box [30.0, 0.0, 5.0, 5.0]").await;
    std::fs::write(world.folder().join("tool.json"), file("[7, 7, 28, 14]")).unwrap();
    let partly = at(&world, &["label", "--from", "tool.json"]).await;
    assert!(partly.out.starts_with("1 label at"), "{}{}", partly.out, partly.err);
    assert!(!partly.success && partly.err.contains("\"9999.png\"") && partly.err.contains("1 box over the edge"));
    let drawn = labels(&world).await.pop().unwrap();
    let clipped = object("shirt", 1.0, [0.25, 0.25, 1.0, 0.75]);
    assert_eq!((drawn.task, drawn.objects), (judged, Some(vec![clipped])));

    // What persons say decides what is wrong, until it is taken back.
    let wrong = done_json(&world, &["export", "--where", "wrong", "--to", "wrong-1"]).await;
    assert_eq!(wrong["through"], 2, "the crowded and the judged one: {wrong}");
    done(&world, &["label", "retract", &judged.to_string(), "--why", "mistaken"]).await;
    let wrong = done_json(&world, &["export", "--where", "wrong", "--to", "wrong-2"]).await;
    assert_eq!(wrong["through"], 1, "{wrong}");

    // The archive has objects beside each image, and classes of whole pictures alone have a class.
    done(&world, &["export", "--to", "set.tar"]).await;
    let tar = std::fs::read(world.folder().join("set.tar")).unwrap();
    let holds = |text: &str| tar.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("\"person_objects\":[{\"label\":\"coat\"") && holds("\"objects\":[]") && !holds(".cls"));
}
