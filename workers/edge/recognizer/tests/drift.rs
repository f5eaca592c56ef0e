//! Shifts of real pictures with a real model: they are noticed, and unchanged pictures raise no alarm.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use runtime::drift::{DriftMonitor, DriftSample, DriftSettings};
use schemas::{DriftLevel, DriftReport};
use vision::{DecodeSettings, InferenceSettings, Model, OnnxRuntime, Pixels, Replica, prediction, probabilities};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures")
}

/// Pictures of a split, with labels mixed as at a site.
fn clothes(split: &str) -> Vec<PathBuf> {
    let folder = fixtures().join("images/fashion");
    let index = std::fs::read_to_string(folder.join("index.csv")).unwrap();
    let mut files: Vec<&str> =
        index.lines().filter_map(|line| line.strip_suffix(&format!(",{split}"))?.split(',').next()).collect();
    files.sort_by_key(|file| file.rsplit('/').next().map(str::to_owned));
    files.into_iter().map(|file| folder.join(file)).collect()
}

/// Encodes pixels as a file.
fn encoded(pixels: &Pixels) -> Vec<u8> {
    let head = format!("P6\n{} {}\n255\n", pixels.width_px, pixels.height_px);
    [head.as_bytes(), &pixels.rgb].concat()
}

fn brightened(pixels: &Pixels) -> Pixels {
    Pixels { rgb: pixels.rgb.iter().map(|value| value.saturating_add(90)).collect(), ..pixels.clone() }
}

/// The mean of five by five pixels, twice: like a lens out of focus.
fn blurred(pixels: &Pixels) -> Pixels {
    let (width, height) = (pixels.width_px as i32, pixels.height_px as i32);
    let at = |pixels: &Pixels, x: i32, y: i32, channel: i32| {
        let place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)) * 3 + channel;
        u32::from(pixels.rgb[place as usize])
    };
    (0..2).fold(pixels.clone(), |before, _| {
        let places = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| (x, y, channel))));
        let mean = |(x, y, channel)| {
            let around = (-2..=2).flat_map(|down| (-2..=2).map(move |across| (across, down)));
            (around.map(|(across, down)| at(&before, x + across, y + down, channel)).sum::<u32>() / 25) as u8
        };
        Pixels { rgb: places.map(mean).collect(), ..before.clone() }
    })
}

struct DriftCamera {
    model: Model,
    replica: Replica,
}

impl DriftCamera {
    fn sample(&mut self, bytes: &[u8]) -> DriftSample {
        let seen = self.replica.predict(bytes).unwrap();
        let ratios = probabilities(&self.model, &seen.logits, 1.0);
        let confidence = prediction(&self.model, &ratios).map(|prediction| prediction.confidence);
        DriftSample { confidence, novelty: seen.novelty, agreement: None }
    }
}

#[test]
fn changed_light_lens_or_subject_raise_alarms_and_unchanged_pictures_do_not() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fixtures().join("models/fashion-light").read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let onnx = OnnxRuntime::find_and_load(None).expect("ONNX Runtime is needed: run `make setup`");
    let known = clothes("site");
    let model = Model::load(folder.path()).unwrap();
    let (novelty, _) = vision::novelty::fit::fit_novelty(&onnx, &model, &known, &[]).unwrap();
    let model = vision::novelty::fit::save_novelty(&novelty, &model).unwrap();
    let replica = Replica::open(&onnx, &model, &InferenceSettings::default()).unwrap();
    let mut camera = DriftCamera { model, replica };

    let settings = DriftSettings { reference_answers: 1500, recent_answers: 300 };
    let mut reference = DriftMonitor::new(camera.model.release.clone(), settings);
    let unseen = clothes("test");
    for path in &unseen[..1500] {
        reference.add(camera.sample(&std::fs::read(path).unwrap()));
    }
    let decoded: Vec<Pixels> = unseen[1500..1800]
        .iter()
        .map(|path| vision::decode(&std::fs::read(path).unwrap(), &DecodeSettings::default()).unwrap())
        .collect();
    let mut after = |name: &str, pictures: &mut dyn Iterator<Item = Vec<u8>>| -> DriftReport {
        let mut monitor = reference.clone();
        pictures.for_each(|bytes| monitor.add(camera.sample(&bytes)));
        let report = monitor.report();
        eprintln!("{name}: {:?} {:?}", report.confidence.unwrap(), report.novelty.unwrap());
        report
    };
    let same = after("the same", &mut decoded.iter().map(encoded));
    assert_eq!(same.level(), DriftLevel::Steady, "{same:?}");
    let bright = after("brighter", &mut decoded.iter().map(|pixels| encoded(&brightened(pixels))));
    assert_eq!(bright.level(), DriftLevel::Alarm, "{bright:?}");
    let soft = after("out of focus", &mut decoded.iter().map(|pixels| encoded(&blurred(pixels))));
    assert!(soft.level() >= DriftLevel::Watch, "{soft:?}");
    let other = after("another kind", &mut vision::pictures(300, 11).into_iter());
    assert_eq!(other.novelty.unwrap().level, DriftLevel::Alarm, "{other:?}");
    assert!(other.novelty.unwrap().recent_ratio > 0.9, "{other:?}");
}
