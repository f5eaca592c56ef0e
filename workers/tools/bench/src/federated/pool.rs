//! Labelled pictures, decoded once: a test set, a class-balanced public set, and the rest to divide among sites.

use std::collections::BTreeMap;
use std::path::Path;

use aggregator::public_set::PublicSet;
use dataset::{DatasetRow, ExampleSplit, read_dataset};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use vision::{DecodeSettings, Model, decode, tensor};

use crate::error::BenchError;
use crate::train::learning_curve;
use crate::train::network::BenchNetwork;

/// The project's own images and an untrained network, in a checkout.
const OWN: (&str, &str) = ("fixtures/images/fashion", "fixtures/models/fashion-initial");
/// Input side for other folders, pixels.
const SIDE_PX: i64 = 32;
/// Maximum number of classes; the most frequent are used.
const MOST_CLASSES: usize = 10;
/// Maximum test pictures per class.
const TEST_OF_CLASS: usize = 60;
/// Public pictures per class; a third each for fitting, selection and reporting.
const PUBLIC_OF_CLASS: usize = 60;
/// Maximum training pictures per class.
const LEARN_OF_CLASS: usize = 120;

/// The pictures of a folder.
pub(super) struct PicturePool {
    /// Name of the folder.
    pub name: String,
    /// The network to train.
    pub model: Model,
    /// Values per picture.
    pub length: usize,
    /// Number of classes.
    pub classes: usize,
    /// Training pictures: values, class, and group if the index has one.
    pub learn: Vec<(Vec<f32>, usize, Option<String>)>,
    /// Test pictures: values and class.
    pub test: Vec<(Vec<f32>, usize)>,
    _place: Option<tempfile::TempDir>,
}

impl PicturePool {
    /// Reads a folder, the project's own if absent. `groups`: column that groups pictures; ignored if missing.
    pub(super) fn read(folder: Option<&Path>, groups: &str) -> Result<Self, BenchError> {
        let own = folder.is_none();
        let folder = folder.unwrap_or(Path::new(OWN.0));
        let dataset = read_dataset(folder, Some(groups))?;
        if !dataset.has_splits {
            let why = "has an index.csv without a column split: mark some images as split test".into();
            return Err(BenchError::NoImages { folder: folder.to_owned(), why });
        }
        let labels = frequent_labels(&dataset.rows);
        let (model, place) = match own {
            true => (Model::load(Path::new(OWN.1))?, None),
            false => {
                let place = tempfile::tempdir().map_err(BenchError::file("a folder for temporary files"))?;
                let net = BenchNetwork::learner(3, SIDE_PX, labels.len() as i64);
                (learning_curve::write_model(&net, &labels, &place.path().join("model"))?, Some(place))
            }
        };
        let (mut learn, mut test) = (Vec::new(), Vec::new());
        let mut taken: BTreeMap<(usize, bool), usize> = BTreeMap::new();
        let mut scratch = tensor::Scratch::default();
        let mut order: Vec<&DatasetRow> = dataset.rows.iter().collect();
        // Pictures are chosen at random, with the same seed for all experiments.
        order.shuffle(&mut StdRng::seed_from_u64(1));
        for row in order {
            let Some(class) = model.labels.iter().position(|label| *label == row.label) else { continue };
            let is_test = row.split == ExampleSplit::Test;
            let count = taken.entry((class, is_test)).or_default();
            if *count >= if is_test { TEST_OF_CLASS } else { LEARN_OF_CLASS + PUBLIC_OF_CLASS } {
                continue;
            }
            *count += 1;
            let picture = read_tensor(&dataset.path(row), &model, &mut scratch)?;
            if is_test {
                test.push((picture, class));
            } else {
                learn.push((picture, class, row.group.clone()));
            }
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (length, classes) = (tensor::len(&model.description.input), model.labels.len());
        Ok(Self { name, model, length, classes, learn, test, _place: place })
    }

    /// Draws a public set by seed; also returns the indices of the remaining training pictures.
    pub(super) fn public(&self, seed: u64) -> (PublicSet, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.learn.len()).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed ^ 0x7075_626c));
        let mut taken = vec![0; self.classes];
        let (public, rest): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|place| {
            let class = self.learn[*place].1;
            // At most a third of a small class.
            let all = self.learn.iter().filter(|(_, other, _)| *other == class).count();
            taken[class] += 1;
            taken[class] <= PUBLIC_OF_CLASS.min(all.div_ceil(3).max(2))
        });
        let pictures = public.iter().map(|place| (&self.learn[*place].0, self.learn[*place].1));
        (self.set(pictures), rest)
    }

    /// The test set.
    pub(super) fn test(&self) -> PublicSet {
        self.set(self.test.iter().map(|(picture, class)| (picture, *class)))
    }

    fn set<'a>(&self, pictures: impl Iterator<Item = (&'a Vec<f32>, usize)>) -> PublicSet {
        let (mut images, mut classes) = (Vec::new(), Vec::new());
        for (picture, class) in pictures {
            images.extend_from_slice(picture);
            classes.push(class);
        }
        PublicSet::of(images, self.length, classes, self.classes)
    }
}

fn read_tensor(path: &Path, model: &Model, scratch: &mut tensor::Scratch) -> Result<Vec<f32>, BenchError> {
    let unusable = |why: String| BenchError::NoImages { folder: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(BenchError::file(path))?;
    let pixels = decode(&bytes, &DecodeSettings::default()).map_err(|error| unusable(error.to_string()))?;
    let mut picture = vec![0.0; tensor::len(&model.description.input)];
    tensor::write(&pixels, &model.description.input, scratch, &mut picture)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(picture)
}

/// The most frequent labels of the training pictures, sorted.
fn frequent_labels(rows: &[DatasetRow]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter()
        .filter(|row| row.split != ExampleSplit::Test)
        .for_each(|row| *counts.entry(&row.label).or_default() += 1);
    let mut labels: Vec<(&str, usize)> = counts.into_iter().collect();
    labels.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut labels: Vec<String> = labels.into_iter().take(MOST_CLASSES).map(|(label, _)| label.to_owned()).collect();
    labels.sort_unstable();
    labels
}
