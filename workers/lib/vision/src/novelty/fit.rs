//! Makes a model's novelty score from pictures of the kind it should know, and measures it against pictures of another
//! kind.
//!
//! The pictures need no labels: each counts for the class that the model itself finds most probable, which works as
//! well (decision 0032). Every third is held out of the means, for calibration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{FILE, MAX_DISTANCES, Novelty, NoveltySource, auroc};
use crate::inference::{InferenceError, InferenceResult, InferenceSettings, Replica};
use crate::model::{Model, ModelError};
use crate::scores::{probabilities, top};
use crate::session::OnnxRuntime;

/// Fewer pictures say too little about what is usual.
pub const MIN_PICTURES: usize = 100;
/// Most pictures that are run; of more, as many are taken evenly.
pub const MAX_PICTURES: usize = 20_000;
/// One of this many pictures is held out of the means.
const HELD_OUT_EVERY: usize = 3;

/// Why a novelty score cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The model is a detector.
    #[error("model {model} finds objects; a novelty score is for models that classify images")]
    Detector {
        /// Name of the model.
        model: String,
    },
    /// Too few of the pictures are readable.
    #[error(
        "{usable} of {given} pictures can be used; at least {MIN_PICTURES} are needed, so give more pictures of the kind \
         the model should know"
    )]
    TooFew {
        /// Number of readable pictures.
        usable: usize,
        /// Number of all pictures.
        given: usize,
    },
    /// The model predicts the same label for all pictures.
    #[error(
        "the model predicts the same label for all {pictures} pictures; give pictures of at least two of its labels"
    )]
    OneLabel {
        /// Number of pictures.
        pictures: u64,
    },
    /// The model's folder cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The graph or the runtime failed.
    #[error(transparent)]
    Infer(#[from] InferenceError),
    /// The file cannot be written.
    #[error("could not write novelty score {path}: {source}; make the folder writable", path = path.display())]
    Unwritable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
}

/// A new novelty score, and how well it separates other pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitReport {
    /// What the distance is measured on.
    pub source: NoveltySource,
    /// Number of pictures it was made from, including held-out ones.
    pub pictures: u64,
    /// Number of held-out pictures that calibrate it.
    pub held_out: usize,
    /// Unreadable pictures, each with the reason.
    pub unreadable: Vec<String>,
    /// Separation from pictures of another kind; absent if none were given.
    pub against: Option<SeparationReport>,
}

/// How well known pictures (held-out ones) and pictures of another kind are separated. Areas are those under the ROC
/// curve, 0.5 (chance) to 1 (always right).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeparationReport {
    /// Number of readable pictures of the other kind.
    pub pictures: usize,
    /// Area for the novelty.
    pub novelty_auroc: f64,
    /// Area for the largest probability alone (arXiv 1610.02136), for comparison.
    pub confidence_auroc: f64,
    /// Area for the energy of the logits (arXiv 2010.03759), for comparison.
    pub energy_auroc: f64,
    /// Share of the other pictures with a novelty above 0.95, 0 to 1; for known ones it is one in twenty.
    pub above_95_ratio: f64,
    /// Share of the other pictures with a novelty above 0.99, 0 to 1; for known ones it is one in a hundred.
    pub above_99_ratio: f64,
}

/// Accumulates pictures for a novelty score.
#[derive(Debug)]
pub struct NoveltyFit {
    source: NoveltySource,
    classes: BTreeMap<usize, ClassSum>,
    held_out: Vec<Vec<f32>>,
}

#[derive(Debug, Default)]
struct ClassSum {
    pictures: u64,
    sum: Vec<f64>,
}

impl NoveltyFit {
    /// Without pictures yet.
    pub fn new(source: NoveltySource) -> Self {
        Self { source, classes: BTreeMap::new(), held_out: Vec::new() }
    }

    /// Adds a picture of this class to the means.
    pub fn add(&mut self, numbers: &[f32], class: usize) {
        let class = self.classes.entry(class).or_default();
        class.sum.resize(numbers.len(), 0.0);
        class.pictures += 1;
        class.sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += f64::from(*number));
    }

    /// Adds a picture that is held out of the means.
    pub fn hold_out(&mut self, numbers: Vec<f32>) {
        self.held_out.push(numbers);
    }

    /// The score; refuses pictures of a single class.
    pub fn finish(self) -> Result<Novelty, FitError> {
        let pictures = self.classes.values().map(|class| class.pictures).sum::<u64>() + self.held_out.len() as u64;
        let means: Vec<Vec<f64>> = self.classes.values().map(ClassSum::mean).collect();
        let width = means.first().map_or(0, Vec::len);
        // Each class counts equally, however many pictures it has.
        let middle = |side: usize| means.iter().filter_map(|mean| mean.get(side)).sum::<f64>() / means.len() as f64;
        let center: Vec<f64> = (0..width).map(middle).collect();
        let directions: Vec<Vec<f32>> = means.iter().filter_map(|mean| direction(mean, &center)).collect();
        if directions.len() < 2 {
            return Err(FitError::OneLabel { pictures });
        }
        let center = center.iter().map(|number| *number as f32).collect();
        let mut novelty = Novelty { source: self.source, pictures, center, directions, distances: Vec::new() };
        let mut distances: Vec<f32> = self
            .held_out
            .iter()
            .filter_map(|numbers| novelty.distance(numbers))
            .filter(|distance| distance.is_finite())
            .collect();
        distances.sort_by(f32::total_cmp);
        novelty.distances = evenly(distances, MAX_DISTANCES);
        Ok(novelty)
    }
}

impl ClassSum {
    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.pictures.max(1) as f64).collect()
    }
}

/// Unit vector from the centre to a mean; `None` for a mean at the centre.
fn direction(mean: &[f64], center: &[f64]) -> Option<Vec<f32>> {
    let sides: Vec<f64> = mean.iter().zip(center).map(|(mean, center)| mean - center).collect();
    let length = sides.iter().map(|side| side * side).sum::<f64>().sqrt();
    (length.is_finite() && length > 0.0).then(|| sides.iter().map(|side| (side / length) as f32).collect())
}

/// At most `most` of them, spread evenly, including the first and the last.
fn evenly<T: Clone>(all: Vec<T>, most: usize) -> Vec<T> {
    if all.len() <= most {
        return all;
    }
    let last = all.len() - 1;
    (0..most).filter_map(|place| all.get(place * last / (most - 1).max(1)).cloned()).collect()
}

/// What is kept of a held-out picture or one of another kind.
struct NoveltyScores {
    logits: Vec<f32>,
    features: Option<Vec<f32>>,
    /// The largest probability, 0 to 1.
    confidence: f32,
    /// Minus the logarithm of the sum of the exponentials of the logits: higher for what the model knows less.
    energy: f32,
}

impl NoveltyScores {
    fn of(model: &Model, seen: InferenceResult) -> Self {
        let ratios = probabilities(model, &seen.logits, model.description.gate.temperature.unwrap_or(1.0));
        let highest = seen.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = seen.logits.iter().map(|logit| (logit - highest).exp()).sum();
        let confidence = ratios.iter().copied().fold(0.0, f32::max);
        Self { energy: -(highest + sum.ln()), confidence, logits: seen.logits, features: seen.features }
    }

    fn numbers(&self, source: NoveltySource) -> &[f32] {
        match source {
            NoveltySource::Features => self.features.as_deref().unwrap_or_default(),
            NoveltySource::Logits => &self.logits,
        }
    }
}

/// Runs the model over pictures, makes its novelty score, and measures it against pictures of another kind.
pub fn fit_novelty(
    onnx: &OnnxRuntime,
    model: &Model,
    pictures: &[PathBuf],
    against: &[PathBuf],
) -> Result<(Novelty, FitReport), FitError> {
    if model.description.output.kind.is_detector() {
        return Err(FitError::Detector { model: model.description.name.clone() });
    }
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let mut replica = Replica::open(onnx, model, &InferenceSettings { threads, ..InferenceSettings::default() })?;
    let source = match model.description.output.features {
        Some(_) => NoveltySource::Features,
        None => NoveltySource::Logits,
    };
    let (mut made, mut held_out, mut usable, mut unreadable) = (NoveltyFit::new(source), Vec::new(), 0, Vec::new());
    for path in evenly(pictures.iter().collect(), MAX_PICTURES) {
        let Some(seen) = see(&mut replica, path, &mut unreadable)? else { continue };
        let scores = NoveltyScores::of(model, seen);
        match usable % HELD_OUT_EVERY {
            0 => {
                made.hold_out(scores.numbers(source).to_vec());
                held_out.push(scores);
            }
            _ => {
                let class = top(&scores.logits, 1).first().map_or(0, |(class, _)| *class);
                made.add(scores.numbers(source), class);
            }
        }
        usable += 1;
    }
    if usable < MIN_PICTURES {
        return Err(FitError::TooFew { usable, given: pictures.len() });
    }
    let novelty = made.finish()?;
    let mut others = Vec::new();
    for path in evenly(against.iter().collect(), MAX_PICTURES) {
        others.extend(see(&mut replica, path, &mut unreadable)?.map(|seen| NoveltyScores::of(model, seen)));
    }
    let against = compare(&novelty, &held_out, &others);
    let (pictures, held_out) = (novelty.pictures, novelty.held_out());
    Ok((novelty, FitReport { source, pictures, held_out, unreadable, against }))
}

/// Runs one picture; an unreadable one is noted.
fn see(
    replica: &mut Replica,
    path: &Path,
    unreadable: &mut Vec<String>,
) -> Result<Option<InferenceResult>, InferenceError> {
    let note = |why: String| format!("{}: {why}", path.display());
    match std::fs::read(path) {
        Err(error) => unreadable.push(note(error.to_string())),
        Ok(bytes) => match replica.predict(&bytes) {
            Ok(seen) => return Ok(Some(seen)),
            Err(error) if error.is_the_images_fault() => unreadable.push(note(error.to_string())),
            Err(error) => return Err(error),
        },
    }
    Ok(None)
}

/// The calibrating distances are those of the known pictures, which does not change the order of the scores.
fn compare(novelty: &Novelty, known: &[NoveltyScores], other: &[NoveltyScores]) -> Option<SeparationReport> {
    let area = |score: &dyn Fn(&NoveltyScores) -> f32| {
        let scores = |all: &[NoveltyScores]| all.iter().map(score).collect::<Vec<f32>>();
        auroc(&scores(known), &scores(other))
    };
    let distance = |seen: &NoveltyScores| novelty.distance(seen.numbers(novelty.source)).unwrap_or(f32::INFINITY);
    let above = |limit: f32| {
        let score =
            |seen: &&NoveltyScores| novelty.score(seen.features.as_deref(), &seen.logits).unwrap_or(1.0) > limit;
        other.iter().filter(score).count() as f64 / other.len().max(1) as f64
    };
    Some(SeparationReport {
        pictures: other.len(),
        novelty_auroc: area(&distance)?,
        confidence_auroc: area(&|seen| -seen.confidence)?,
        energy_auroc: area(&|seen| seen.energy)?,
        above_95_ratio: above(0.95),
        above_99_ratio: above(0.99),
    })
}

/// Writes a novelty score into its model's folder, completely or not at all, and reads the folder again, as it is now
/// another release.
pub fn save_novelty(novelty: &Novelty, model: &Model) -> Result<Model, FitError> {
    let path = model.folder.join(FILE);
    let beside = model.folder.join(format!(".{FILE}.unfinished"));
    let text = novelty.write(&model.weights_digest()?);
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path));
    written.map_err(|source| FitError::Unwritable { path, source })?;
    Ok(Model::load(&model.folder)?)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;
    use crate::session::tests::{fixture, onnx};

    fn copied(name: &str) -> (tempfile::TempDir, Model) {
        let dir = tempfile::tempdir().unwrap();
        for entry in fixture(name).read_dir().unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let model = Model::load(dir.path()).unwrap();
        (dir, model)
    }

    /// Pictures of clothes of this split, of every label.
    fn clothes(split: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/images/fashion");
        let index = std::fs::read_to_string(folder.join("index.csv")).unwrap();
        let mut all: Vec<PathBuf> = index
            .lines()
            .filter_map(|line| line.strip_suffix(&format!(",{split}")))
            .filter_map(|line| line.split(',').next())
            .map(|file| folder.join(file))
            .collect();
        all.sort();
        all
    }

    /// Noise, and scenes as from cameras.
    fn others(dir: &Path) -> Vec<PathBuf> {
        let noise = (0..100_u32).map(|seed| {
            let path = dir.join(format!("noise-{seed}.png"));
            let value = |x: u32, y: u32| (seed * 7919 + y * 28 + x + 1).wrapping_mul(2_654_435_761).rotate_right(13);
            GrayImage::from_fn(28, 28, |x, y| Luma([(value(x, y).wrapping_mul(2_246_822_519) >> 24) as u8]))
                .save(&path)
                .unwrap();
            path
        });
        let noise: Vec<PathBuf> = noise.collect();
        let scenes = crate::sample::pictures(100, 7).into_iter().enumerate().map(|(number, bytes)| {
            let path = dir.join(format!("scene-{number}.jpg"));
            std::fs::write(&path, bytes).unwrap();
            path
        });
        noise.iter().cloned().chain(scenes).collect()
    }

    #[test]
    fn clothes_are_told_from_other_pictures_better_than_by_confidence() {
        let others_dir = tempfile::tempdir().unwrap();
        let others = others(others_dir.path());
        for (name, better_by) in [("fashion-light", 0.15), ("fashion-heavy", 0.02)] {
            let (_dir, model) = copied(name);
            let (novelty, report) = fit_novelty(&onnx(), &model, &clothes("site"), &others).unwrap();
            assert_eq!((report.source, report.pictures, report.held_out), (NoveltySource::Features, 2000, 667));
            let against = report.against.unwrap();
            assert!(against.novelty_auroc > 0.97, "{name}: {against:?}");
            assert!(against.novelty_auroc > against.confidence_auroc + better_by, "{name}: {against:?}");
            assert!(against.above_95_ratio > 0.9, "{name}: {against:?}");

            let with = save_novelty(&novelty, &model).unwrap();
            assert_ne!(with.release, model.release, "it is part of the release");
            assert_eq!(with.novelty.as_deref(), Some(&novelty));
            let mut replica = Replica::open(&onnx(), &with, &InferenceSettings::default()).unwrap();
            let unseen = clothes("test");
            let is_odd =
                |path: &PathBuf| replica.predict(&std::fs::read(path).unwrap()).unwrap().novelty.unwrap() > 0.95;
            let odd = unseen.iter().map(is_odd).filter(|odd| *odd).count() as f64 / unseen.len() as f64;
            assert!((0.03..0.07).contains(&odd), "{name}: one in twenty was expected, not {odd}");
        }
    }

    #[test]
    fn a_score_of_other_weights_is_ignored_and_a_broken_one_is_refused() {
        let (dir, model) = copied("fashion-light");
        let (novelty, _) = fit_novelty(&onnx(), &model, &clothes("site")[..300], &[]).unwrap();
        save_novelty(&novelty, &model).unwrap();
        std::fs::copy(fixture("fashion-initial").join("graph.onnx"), dir.path().join("graph.onnx")).unwrap();
        let other = Model::load(dir.path()).unwrap();
        assert!(other.novelty.is_none() && other.has_stale_novelty());
        assert!(!model.has_stale_novelty(), "it never had one");
        std::fs::write(dir.path().join(FILE), "{}").unwrap();
        assert_eq!(Model::load(dir.path()).unwrap_err().name(), "model_syntax");
    }

    #[test]
    fn a_model_without_features_is_measured_by_its_logits() {
        let (dir, _) = copied("fashion-light");
        let toml = std::fs::read_to_string(dir.path().join("model.toml")).unwrap();
        let without: Vec<&str> = toml.lines().filter(|line| !line.starts_with("features")).collect();
        std::fs::write(dir.path().join("model.toml"), without.join("\n")).unwrap();
        let others_dir = tempfile::tempdir().unwrap();
        let model = Model::load(dir.path()).unwrap();
        let (_, report) = fit_novelty(&onnx(), &model, &clothes("site"), &others(others_dir.path())).unwrap();
        assert_eq!(report.source, NoveltySource::Logits);
        assert!(report.against.as_ref().unwrap().novelty_auroc > 0.95, "{report:?}");
    }

    #[test]
    fn too_few_pictures_and_pictures_of_one_label_are_refused() {
        let (_dir, model) = copied("fashion-light");
        let few = fit_novelty(&onnx(), &model, &clothes("site")[..50], &[]).unwrap_err();
        assert!(few.to_string().starts_with("50 of 50 pictures can be used"), "{few}");
        let one = clothes("site")[0].clone();
        assert!(matches!(
            fit_novelty(&onnx(), &model, &vec![one; 200], &[]),
            Err(FitError::OneLabel { pictures: 200 })
        ));
    }
}
