//! Pictures, simulated cameras, labels of varying quality, and start models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aggregator::public_set::PublicSet;
use aggregator::score::{ModelScorer, ScoringModel, Tuning};
use autograd::TrainableSelection;
use dataset::{ExampleSplit, read_dataset};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use vision::{Model, OnnxRuntime, Pixels, tensor};

use super::RoundsBenchOptions;
use crate::camera::{CameraStyle, encode_ppm, read_picture};
use crate::error::BenchError;
use crate::federated::{DivisionScheme, initial_weights, scheme_named};

/// The project's own images, site model and cloud model, in a checkout.
const OWN: (&str, &str, &str) =
    ("fixtures/images/fashion", "fixtures/models/fashion-light", "fixtures/models/fashion-heavy");
/// Name of the start model given by `--model`.
pub(super) const NAMED: &str = "model";
/// Pictures per class for training the weaker start models; at most a fifth of the class.
const MAKERS_OF_CLASS: usize = 120;
/// Pictures per class in the public set; at most two fifths.
const PUBLIC_OF_CLASS: usize = 200;
/// Test pictures per class.
const TEST_OF_CLASS: usize = 400;
/// Pictures per class to divide among sites; at most two fifths.
const LEARN_OF_CLASS: usize = 240;
/// Share of wrong labels for `TenthWrong`.
const WRONG_RATIO: f64 = 0.1;
/// Minimum confidence of a verdict used as a label: the default of `trainer.collect.min_verdict_ratio`.
const MIN_VERDICT_RATIO: f32 = 0.6;
/// Number of weights above which training is slow.
const SLOW_WEIGHTS: usize = 300_000;

/// How pictures are divided among sites, and the camera of every other site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DivisionCase {
    /// Name of a division scheme of `bench federated`.
    pub scheme: &'static str,
    /// Camera of every other site.
    pub camera: CameraStyle,
}

impl DivisionCase {
    /// Name in tables.
    pub(super) fn name(&self) -> String {
        match self.camera {
            CameraStyle::Plain => self.scheme.to_owned(),
            CameraStyle::Dark => format!("{}, dark cameras", self.scheme),
            CameraStyle::Blurred => format!("{}, blurred cameras", self.scheme),
            CameraStyle::Background => format!("{}, other background", self.scheme),
        }
    }

    /// The division scheme.
    pub(super) fn scheme(&self) -> Option<&'static DivisionScheme> {
        scheme_named(self.scheme)
    }
}

/// All cases.
pub(super) const CASES: [DivisionCase; 8] = [
    DivisionCase { scheme: "iid", camera: CameraStyle::Plain },
    DivisionCase { scheme: "dirichlet 0.3", camera: CameraStyle::Plain },
    DivisionCase { scheme: "sizes 1:100", camera: CameraStyle::Plain },
    DivisionCase { scheme: "few large", camera: CameraStyle::Plain },
    DivisionCase { scheme: "missing classes", camera: CameraStyle::Plain },
    DivisionCase { scheme: "iid", camera: CameraStyle::Dark },
    DivisionCase { scheme: "iid", camera: CameraStyle::Blurred },
    DivisionCase { scheme: "dirichlet 1.0", camera: CameraStyle::Background },
];

/// Quality of the sites' labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LabelQuality {
    /// True labels.
    True,
    /// The cloud model's answers, where confident enough.
    Verdicts,
    /// True labels, of which a tenth are wrong.
    TenthWrong,
}

impl LabelQuality {
    /// All qualities.
    pub(super) const ALL: [Self; 3] = [Self::True, Self::Verdicts, Self::TenthWrong];
}

/// A picture for the sites or the public set.
#[derive(Debug, Clone)]
pub(super) struct PooledPicture {
    shown: Pixels,
    /// Its file for each camera.
    pub files: BTreeMap<CameraStyle, PathBuf>,
    /// True class.
    pub class: usize,
    /// The cloud model's answer for each camera; `None` if not confident enough.
    pub verdicts: BTreeMap<CameraStyle, Option<usize>>,
    /// Label for `TenthWrong`.
    pub mistaken: usize,
}

/// A start model.
#[derive(Debug)]
pub(super) struct StartModel {
    /// Name in tables.
    pub name: String,
    /// The model.
    pub model: Model,
    /// Whether training it is slow.
    pub is_slow: bool,
}

/// Data and models shared by all experiments.
pub(super) struct RoundsWorld {
    /// Name of the folder of pictures.
    pub name: String,
    /// All labels.
    pub labels: Vec<String>,
    /// Pictures from which each experiment draws a public set and the sites' pictures.
    pool: Vec<PooledPicture>,
    /// Start models.
    pub starts: Vec<StartModel>,
    test: Vec<PictureBytes>,
    /// Folder of its files.
    pub place: tempfile::TempDir,
}

/// A decoded picture, unaltered.
#[derive(Debug, Clone)]
struct PictureBytes {
    image: Pixels,
    class: usize,
}

impl RoundsWorld {
    /// Reads pictures, writes them for every camera, and trains the start models.
    pub(super) fn create(runtime: &OnnxRuntime, options: &RoundsBenchOptions) -> Result<Self, BenchError> {
        let folder = options.data.clone().unwrap_or_else(|| OWN.0.into());
        let model = Model::load(&options.model.clone().unwrap_or_else(|| OWN.1.into()))?;
        let cloud = Model::load(&options.cloud.clone().unwrap_or_else(|| OWN.2.into()))?;
        let place = tempfile::tempdir().map_err(BenchError::file("a folder for temporary files"))?;
        let mut parts = PictureSplit::read(&folder, &model.labels)?;
        let test = std::mem::take(&mut parts.test);
        let pool = write_pictures(&parts.pool, runtime, &cloud, place.path(), model.labels.len())?;
        let starts = make_start_models(runtime, &model, cloud, &parts.makers, place.path(), &options.starts)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, labels: model.labels, pool, starts, test, place })
    }

    /// Draws a public set and the sites' pictures. Every seed draws differently, so that results do not depend on one public
    /// set.
    pub(super) fn draw(&self, seed: u64) -> (Vec<&PooledPicture>, Vec<&PooledPicture>) {
        let mut order: Vec<&PooledPicture> = self.pool.iter().collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        let (mut public, mut learn) = (Vec::new(), Vec::new());
        let mut taken = vec![0; self.labels.len()];
        for picture in order {
            let of_class = self.pool.iter().filter(|other| other.class == picture.class).count();
            taken[picture.class] += 1;
            if taken[picture.class] <= PUBLIC_OF_CLASS.min(of_class / 2) {
                public.push(picture)
            } else {
                learn.push(picture)
            }
        }
        (public, learn)
    }

    /// Converts a public set for a model; every other picture uses the case's camera.
    pub(super) fn public(
        &self,
        drawn: &[&PooledPicture],
        model: &Model,
        camera: CameraStyle,
    ) -> Result<PublicSet, BenchError> {
        prepare(drawn.iter().map(|picture| (&picture.shown, picture.class)), model, camera)
    }

    /// The test set, converted likewise.
    pub(super) fn test(&self, model: &Model, camera: CameraStyle) -> Result<PublicSet, BenchError> {
        prepare(self.test.iter().map(|shown| (&shown.image, shown.class)), model, camera)
    }

    /// Number of pictures to divide, in the public set, and in the test set.
    pub(super) fn counts(&self) -> [usize; 3] {
        let (public, learn) = self.draw(0);
        [learn.len(), public.len(), self.test.len()]
    }
}

/// A folder's pictures by purpose.
#[derive(Default)]
struct PictureSplit {
    makers: Vec<PictureBytes>,
    pool: Vec<PictureBytes>,
    test: Vec<PictureBytes>,
}

impl PictureSplit {
    fn read(folder: &Path, labels: &[String]) -> Result<Self, BenchError> {
        let unusable = |why: String| BenchError::NoImages { folder: folder.to_owned(), why };
        let mut dataset = read_dataset(folder, None)?;
        dataset.rows.shuffle(&mut StdRng::seed_from_u64(1));
        let mut parts = Self::default();
        for (class, label) in labels.iter().enumerate() {
            let of = |tests: bool| {
                let rows = dataset.rows.iter();
                rows.filter(move |row| row.label == *label && (row.split == ExampleSplit::Test) == tests)
            };
            let all = of(false).count();
            if all < 5 {
                return Err(unusable(format!("has too few images of {label:?} to learn from")));
            }
            let makers = MAKERS_OF_CLASS.min(all / 5);
            for (number, row) in of(false).take(makers + PUBLIC_OF_CLASS + LEARN_OF_CLASS).enumerate() {
                let shown = PictureBytes { image: read_picture(&dataset.path(row))?, class };
                if number < makers { parts.makers.push(shown) } else { parts.pool.push(shown) }
            }
            for row in of(true).take(TEST_OF_CLASS) {
                parts.test.push(PictureBytes { image: read_picture(&dataset.path(row))?, class });
            }
        }
        match parts.test.is_empty() {
            true => Err(unusable("has no images of split test".into())),
            false => Ok(parts),
        }
    }
}

/// Converts pictures to model inputs; every other picture uses the given camera.
fn prepare<'a>(
    pictures: impl Iterator<Item = (&'a Pixels, usize)>,
    model: &Model,
    camera: CameraStyle,
) -> Result<PublicSet, BenchError> {
    let other = |number: usize| if number % 2 == 1 { camera } else { CameraStyle::Plain };
    let shown = pictures.enumerate().map(|(number, (image, class))| (other(number).apply(image), class));
    tensors(shown, model)
}

fn tensors(pictures: impl Iterator<Item = (Pixels, usize)>, model: &Model) -> Result<PublicSet, BenchError> {
    let input = &model.description.input;
    let (length, mut scratch) = (tensor::len(input), tensor::Scratch::default());
    let (mut images, mut classes) = (Vec::new(), Vec::new());
    for (image, class) in pictures {
        let unusable = |why: String| BenchError::NoImages { folder: model.folder.clone(), why };
        let start = images.len();
        images.resize(start + length, 0.0);
        tensor::write(&image, input, &mut scratch, &mut images[start..])
            .map_err(|error| unusable(error.to_string()))?;
        classes.push(class);
    }
    Ok(PublicSet::of(images, length, classes, model.labels.len()))
}

/// Writes the pictures for each camera and runs the cloud's model on them.
fn write_pictures(
    pictures: &[PictureBytes],
    runtime: &OnnxRuntime,
    cloud: &Model,
    place: &Path,
    classes: usize,
) -> Result<Vec<PooledPicture>, BenchError> {
    let scoring = ScoringModel::for_model(runtime, cloud, &TrainableSelection::All, &[])?;
    let mut scorer = ModelScorer::new(runtime, &scoring, 1)?;
    let mut random = StdRng::seed_from_u64(2);
    let mut all: Vec<PooledPicture> = pictures
        .iter()
        .map(|shown| PooledPicture {
            shown: shown.image.clone(),
            files: BTreeMap::new(),
            class: shown.class,
            verdicts: BTreeMap::new(),
            mistaken: match random.random_range(0.0..1.0) < WRONG_RATIO {
                true => (shown.class + random.random_range(1..classes.max(2))) % classes,
                false => shown.class,
            },
        })
        .collect();
    for camera in [CameraStyle::Plain, CameraStyle::Dark, CameraStyle::Blurred, CameraStyle::Background] {
        let folder = place.join(format!("{camera:?}"));
        std::fs::create_dir_all(&folder).map_err(BenchError::file(&folder))?;
        for (number, (shown, picture)) in pictures.iter().zip(&mut all).enumerate() {
            let path = folder.join(format!("{number}.ppm"));
            std::fs::write(&path, encode_ppm(&camera.apply(&shown.image))).map_err(BenchError::file(&path))?;
            picture.files.insert(camera, path);
        }
        let shown = tensors(pictures.iter().map(|shown| (camera.apply(&shown.image), shown.class)), cloud)?;
        let tried = scorer.score(&scoring.base, &shown, &shown.all())?;
        for (picture, probabilities) in all.iter_mut().zip(tried.probabilities.chunks_exact(classes)) {
            let best = (0..classes).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b])).unwrap_or(0);
            picture.verdicts.insert(camera, (probabilities[best] >= MIN_VERDICT_RATIO).then_some(best));
        }
    }
    Ok(all)
}

/// Creates the start models: random weights, two partly trained, the given model, and the cloud's.
fn make_start_models(
    runtime: &OnnxRuntime,
    model: &Model,
    cloud: Model,
    makers: &[PictureBytes],
    place: &Path,
    only: &[String],
) -> Result<Vec<StartModel>, BenchError> {
    let scoring = ScoringModel::for_model(runtime, model, &TrainableSelection::All, &[])?;
    let mut scorer = ModelScorer::new(runtime, &scoring, 1)?;
    let known = tensors(makers.iter().map(|shown| (shown.image.clone(), shown.class)), model)?;
    let write = |row: &[f32], name: &str| {
        let values = scoring.layout.tensors(row).into_iter().map(|(name, (_, values))| (name, values)).collect();
        training::folder::write(model, &scoring.graph, &values, &place.join(name))
    };
    let mut row = initial_weights(&scoring.layout, 1);
    let mut starts = vec![("random".to_owned(), write(&row, "random")?)];
    let (learn, holdout): (Vec<usize>, Vec<usize>) = known.all().into_iter().partition(|place| place % 4 != 3);
    for (name, level) in [("60 %", 0.6), ("80 %", 0.8)] {
        for pass in 0..60 {
            if scorer.score(&row, &known, &holdout)?.mean_accuracy() >= level {
                break;
            }
            let tuning = Tuning { passes: 1, rate: 0.05, proximal: 0.0 };
            row = scorer.tune_model(&row, &known, &learn, None, tuning, pass)?;
        }
        starts.push((name.to_owned(), write(&row, &name[..2])?));
    }
    starts.push((NAMED.into(), model.clone()));
    starts.push(("cloud".into(), cloud));
    starts.retain(|(name, _)| only.is_empty() || only.contains(name));
    let start = |(name, model): (String, Model)| -> Result<StartModel, BenchError> {
        let is_slow =
            ScoringModel::for_model(runtime, &model, &TrainableSelection::All, &[])?.layout.len() > SLOW_WEIGHTS;
        Ok(StartModel { name, model, is_slow })
    };
    starts.into_iter().map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_scheme() {
        assert!(CASES.iter().all(|case| case.scheme().is_some()));
    }
}
