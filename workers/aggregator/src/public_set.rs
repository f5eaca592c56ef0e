//! The public set: pictures whose labels are known, as many of each class, made ready for a model once.

use std::collections::BTreeSet;
use std::path::Path;

use schemas::model::InputDescription;
use sha2::{Digest, Sha256};
use training::{Examples, TrainError};
use vision::{DecodeSettings, Model, decode, tensor};

/// Pictures with true labels, made ready for a model.
#[derive(Debug, Clone, Default)]
pub struct PublicSet {
    /// Numbers of one picture.
    pub(crate) length: usize,
    pub(crate) images: Vec<f32>,
    /// What each shows.
    pub(crate) classes: Vec<usize>,
    /// How many classes the model has.
    pub(crate) count: usize,
    /// Of what is in it: the same pictures and labels have the same.
    pub sha256: String,
    /// Pictures that cannot be used, each with the reason.
    pub unreadable: Vec<String>,
}

/// What the pictures of a public set are for; in the order of the set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicSplit {
    /// Rules learn from them.
    pub fit: Vec<usize>,
    /// The next release is chosen by them: no rule learns from them.
    pub choose: Vec<usize>,
    /// A release is scored by them: nothing is fitted on them, nothing chosen by them.
    pub report: Vec<usize>,
}

impl PublicSplit {
    /// What a rule may learn from where there is nothing to choose.
    pub fn fit_and_choose(&self) -> Vec<usize> {
        let mut both = [&self.fit[..], &self.choose].concat();
        both.sort_unstable();
        both
    }
}

impl PublicSet {
    /// Reads a folder of labelled pictures, at most so many of each class, fewer where they would not fit: the first in the
    /// order of the index. A picture that cannot be used is left out and named. `room_bytes`: what they may take in memory.
    pub fn read(folder: &Path, model: &Model, most_of_class: usize, room_bytes: usize) -> Result<Self, TrainError> {
        let examples = Examples::read(folder, &model.labels, 0.5)?;
        let input = &model.description.input;
        let (length, classes) = (tensor::len(input), model.labels.len());
        let labels: BTreeSet<usize> = examples.all.iter().map(|example| example.class).collect();
        let fitting = room_bytes / (4 * length * labels.len()).max(1);
        if fitting < 2 {
            let why = format!(
                "does not fit into {} MiB with two pictures of each class: raise aggregator.public_max_mib",
                room_bytes >> 20
            );
            return Err(TrainError::NoExamples { folder: folder.into(), why });
        }
        if fitting < most_of_class {
            tracing::info!(
                of_class = fitting,
                "fewer public pictures are used, for that is what fits (aggregator.public_max_mib)"
            );
        }
        let most_of_class = most_of_class.min(fitting);
        let mut public = Self { length, count: classes, ..Self::default() };
        let (mut taken, mut digest, mut scratch) = (vec![0; classes], Sha256::new(), tensor::Scratch::default());
        for example in &examples.all {
            if taken[example.class] >= most_of_class {
                continue;
            }
            match picture(&example.path, input, &mut scratch, &mut public.images) {
                Ok(bytes) => {
                    taken[example.class] += 1;
                    public.classes.push(example.class);
                    digest.update(Sha256::digest(&bytes));
                    digest.update((example.class as u64).to_le_bytes());
                }
                Err(why) => public.unreadable.push(format!("{}: {why}", example.path.display())),
            }
        }
        if public.classes.is_empty() {
            let first = public.unreadable.first().cloned().unwrap_or_default();
            let count = examples.all.len();
            return Err(TrainError::Unreadable { unreadable: public.unreadable.len(), count, first });
        }
        public.sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(public)
    }

    /// Of pictures that are ready: `length` numbers each.
    pub fn of(images: Vec<f32>, length: usize, classes: Vec<usize>, count: usize) -> Self {
        Self { length, images, classes, count, ..Self::default() }
    }

    /// How many pictures.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Classes without a picture.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.count).filter(|class| !self.classes.contains(class)).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    /// Its three parts, of each class every third picture: the same in every round, so that what a release was fitted on in
    /// one round is not what another is chosen or scored by in the next. A class with a single picture is fitted on, one
    /// with two is not scored.
    pub fn parts(&self) -> PublicSplit {
        let (mut parts, mut seen) = (PublicSplit::default(), vec![0_usize; self.count]);
        for (picture, class) in self.classes.iter().enumerate() {
            match seen[*class] % 3 {
                0 => parts.fit.push(picture),
                1 => parts.choose.push(picture),
                _ => parts.report.push(picture),
            }
            seen[*class] += 1;
        }
        parts
    }

    /// What each class counts, so that all classes of these pictures count the same.
    pub(crate) fn weights(&self, of: &[usize]) -> Vec<f32> {
        let mut counts = vec![0_usize; self.count];
        of.iter().for_each(|picture| counts[self.classes[*picture]] += 1);
        let classes = counts.iter().filter(|count| **count > 0).count().max(1);
        let weight = |count: usize| if count > 0 { of.len() as f32 / (classes * count) as f32 } else { 0.0 };
        counts.into_iter().map(weight).collect()
    }
}

fn picture(
    path: &Path,
    input: &InputDescription,
    scratch: &mut tensor::Scratch,
    images: &mut Vec<f32>,
) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let pixels = decode(&bytes, &DecodeSettings::default()).map_err(|error| error.to_string())?;
    let start = images.len();
    images.resize(start + tensor::len(input), 0.0);
    match tensor::write(&pixels, input, scratch, &mut images[start..]) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            images.truncate(start);
            Err(error.to_string())
        }
    }
}
