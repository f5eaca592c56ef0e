//! Labelled pictures, decoded once: a share to test with, a class-balanced public set, the rest to be divided among sites.

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

/// The project's own images and the network that knows nothing of them, in a checkout.
const OWN: (&str, &str) = ("fixtures/images/fashion", "fixtures/models/fashion-initial");
/// Side of pictures of other folders, pixels.
const SIDE_PX: i64 = 32;
/// Most classes: of more, the most frequent.
const MOST_CLASSES: usize = 10;
/// Most pictures of a class to test with.
const TEST_OF_CLASS: usize = 60;
/// Pictures of a class in the public set, of which a third each is fitted on, chosen by, and reported.
const PUBLIC_OF_CLASS: usize = 60;
/// Most pictures of a class to learn from.
const LEARN_OF_CLASS: usize = 120;

/// A folder's pictures.
pub(super) struct PicturePool {
    /// Its name.
    pub name: String,
    /// The network.
    pub model: Model,
    /// Numbers of a picture.
    pub length: usize,
    /// How many classes.
    pub classes: usize,
    /// To be divided: pictures, what they show, and what group each belongs to, if the index names groups.
    pub learn: Vec<(Vec<f32>, usize, Option<String>)>,
    /// To test with.
    pub test: Vec<(Vec<f32>, usize)>,
    _place: Option<tempfile::TempDir>,
}

impl PicturePool {
    /// Reads a folder, the project's own if absent. `groups`: the column that says what belongs together, if it has it.
    pub(super) fn read(folder: Option<&Path>, groups: &str) -> Result<Self, BenchError> {
        let own = folder.is_none();
        let folder = folder.unwrap_or(Path::new(OWN.0));
        let dataset = read_dataset(folder, Some(groups))?;
        if !dataset.has_splits {
            let why = "its index.csv has no column split: some pictures must be set aside to test with".into();
            return Err(BenchError::NoImages { folder: folder.to_owned(), why });
        }
        let labels = frequent(&dataset.rows);
        let (model, place) = match own {
            true => (Model::load(Path::new(OWN.1))?, None),
            false => {
                let place = tempfile::tempdir().map_err(BenchError::file("a folder for temporary files"))?;
                let net = BenchNetwork::learner(3, SIDE_PX, labels.len() as i64);
                (learning_curve::write(&net, &labels, &place.path().join("model"))?, Some(place))
            }
        };
        let (mut learn, mut test) = (Vec::new(), Vec::new());
        let mut taken: BTreeMap<(usize, bool), usize> = BTreeMap::new();
        let mut scratch = tensor::Scratch::default();
        let mut order: Vec<&DatasetRow> = dataset.rows.iter().collect();
        // Which pictures are taken is chance, but the same chance for everybody.
        order.shuffle(&mut StdRng::seed_from_u64(1));
        for row in order {
            let Some(class) = model.labels.iter().position(|label| *label == row.label) else { continue };
            let tests = row.split == ExampleSplit::Test;
            let count = taken.entry((class, tests)).or_default();
            if *count >= if tests { TEST_OF_CLASS } else { LEARN_OF_CLASS + PUBLIC_OF_CLASS } {
                continue;
            }
            *count += 1;
            let picture = read(&dataset.path(row), &model, &mut scratch)?;
            if tests {
                test.push((picture, class));
            } else {
                learn.push((picture, class, row.group.clone()));
            }
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (length, classes) = (tensor::len(&model.description.input), model.labels.len());
        Ok(Self { name, model, length, classes, learn, test, _place: place })
    }

    /// A public set drawn by a seed, and the places of what is left to learn from.
    pub(super) fn public(&self, seed: u64) -> (PublicSet, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.learn.len()).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed ^ 0x7075_626c));
        let mut taken = vec![0; self.classes];
        let (public, rest): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|place| {
            let class = self.learn[*place].1;
            // No more than a third of a class that has few.
            let all = self.learn.iter().filter(|(_, other, _)| *other == class).count();
            taken[class] += 1;
            taken[class] <= PUBLIC_OF_CLASS.min(all.div_ceil(3).max(2))
        });
        let pictures = public.iter().map(|place| (&self.learn[*place].0, self.learn[*place].1));
        (self.set(pictures), rest)
    }

    /// What there is to test with.
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

fn read(path: &Path, model: &Model, scratch: &mut tensor::Scratch) -> Result<Vec<f32>, BenchError> {
    let unusable = |why: String| BenchError::NoImages { folder: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(BenchError::file(path))?;
    let pixels = decode(&bytes, &DecodeSettings::default()).map_err(|error| unusable(error.to_string()))?;
    let mut picture = vec![0.0; tensor::len(&model.description.input)];
    tensor::write(&pixels, &model.description.input, scratch, &mut picture)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(picture)
}

/// The labels most pictures to learn from have, sorted.
fn frequent(rows: &[DatasetRow]) -> Vec<String> {
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
