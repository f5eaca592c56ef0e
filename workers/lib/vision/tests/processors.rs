//! Compares our pixels by a repository's preprocessor_config.json with those of the library's own processor
//! (fixtures/make_processors.py).

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use schemas::model::{Filter, InputDescription, Layout};
use vision::tensor::{self, Scratch};
use vision::{DecodeSettings, Model, decode};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/processors")
}

/// The input that a repository with this processor describes.
fn describe(kind: &str) -> InputDescription {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join(format!("{kind}.json")), folder.path().join("preprocessor_config.json")).unwrap();
    fs::write(folder.path().join("config.json"), r#"{"id2label": {"0": "cat", "1": "dog"}}"#).unwrap();
    fs::write(folder.path().join("model.onnx"), "").unwrap();
    Model::load(folder.path()).unwrap_or_else(|error| panic!("{kind}: {error}")).description.input
}

/// Mean and largest difference from the reference, in grey levels.
fn difference(kind: &str, input: &InputDescription) -> (f32, f32) {
    let reference = fs::read(fixtures().join(format!("{kind}.f16"))).unwrap();
    let reference: Vec<f32> =
        reference.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect();
    let mut ours = Vec::new();
    for name in ["landscape.png", "portrait.png"] {
        let pixels = decode(&fs::read(fixtures().join(name)).unwrap(), &DecodeSettings::default()).unwrap();
        let mut out = vec![f32::NAN; tensor::len(input)];
        tensor::write(&pixels, input, &mut Scratch::default(), &mut out).unwrap();
        ours.extend(out);
    }
    assert_eq!(ours.len(), reference.len(), "{kind}: the input is {}x{}", input.width_px, input.height_px);
    let plane = (input.width_px * input.height_px) as usize;
    let level = |at: usize| (input.scale / input.std[at / plane % 3]).abs();
    let apart = ours.iter().zip(&reference).enumerate().map(|(at, (ours, theirs))| (ours - theirs).abs() / level(at));
    let apart: Vec<f32> = apart.collect();
    (apart.iter().sum::<f32>() / apart.len() as f32, apart.iter().copied().fold(0.0, f32::max))
}

#[test]
fn every_processor_sees_the_pixels_that_its_library_sees() {
    let mut wrong = Vec::new();
    let mut kinds: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|kind| kind != "scores")
        .collect();
    kinds.sort();
    assert!(kinds.len() > 20, "only {} kinds are there", kinds.len());
    for kind in kinds {
        let (mean, worst) = difference(&kind, &describe(&kind));
        println!("{kind:30} mean {mean:.3}, worst {worst:.2} levels");
        // Both round to whole levels between their two passes and clamp at black and white, but one goes across first,
        // the other down. A pixel off is tens of levels in these pictures.
        if worst > 6.0 || mean > 0.15 {
            wrong.push(format!("{kind}: mean {mean}, worst {worst} levels"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bilinear_without_averaging_is_that_of_opencv() {
    let input = InputDescription {
        name: "input".into(),
        width_px: 24,
        height_px: 24,
        layout: Layout::Nchw,
        scale: 1.0 / 255.0,
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        resize_px: None,
        filter: Filter::Bilinear,
        antialias: false,
        ..describe("bit")
    };
    let input = InputDescription { resize: schemas::model::ResizeMode::Stretch, ..input };
    let (mean, worst) = difference("opencv", &input);
    assert!(worst <= 2.0 && mean <= 0.6, "mean {mean}, worst {worst} levels");
    let (mean, _) = difference("opencv", &InputDescription { antialias: true, ..input });
    assert!(mean > 1.5, "averaging gives other pixels: {mean}");
}
