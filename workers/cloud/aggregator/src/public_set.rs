//! The public set: labelled pictures, equally many of each class, decoded once for a model.

use std::collections::BTreeSet;
use std::path::Path;

use schemas::model::InputDescription;
use sha2::{Digest, Sha256};
use training::{Examples, TrainError};
use vision::{DecodeSettings, Model, decode, tensor};

/// Labelled pictures, decoded to a model's input.
#[derive(Debug, Clone, Default)]
pub struct PublicSet {
    /// Numbers per picture.
    pub(crate) length: usize,
    pub(crate) images: Vec<f32>,
    /// True class of each picture.
    pub(crate) classes: Vec<usize>,
    /// Number of classes the model has.
    pub(crate) count: usize,
    /// Digest of the content: the same pictures and labels have the same digest.
    pub sha256: String,
    /// Pictures that could not be used, each with the reason.
    pub unreadable: Vec<String>,
}

/// What the pictures of a public set are used for, as indices in the order of the set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicSplit {
    /// Rules are fitted on these.
    pub fit: Vec<usize>,
    /// The next release is chosen by these; no rule is fitted on them.
    pub choose: Vec<usize>,
    /// A release's accuracy is reported on these; nothing is fitted on them or chosen by them.
    pub report: Vec<usize>,
}

impl PublicSplit {
    /// What a rule may be fitted on where there is nothing to choose.
    pub fn fit_and_choose(&self) -> Vec<usize> {
        let mut both = [&self.fit[..], &self.choose].concat();
        both.sort_unstable();
        both
    }
}

impl PublicSet {
    /// Reads a folder of labelled pictures: the first of each class in the order of the index, at most `most_of_class`
    /// of each, fewer if they would not fit. Unusable pictures are skipped and named. `room_bytes`: memory limit.
    pub fn read(folder: &Path, model: &Model, most_of_class: usize, room_bytes: usize) -> Result<Self, TrainError> {
        let examples = Examples::read(folder, &model.labels, 0.5)?;
        let input = &model.description.input;
        let (length, classes) = (tensor::len(input), model.labels.len());
        let labels: BTreeSet<usize> = examples.all.iter().map(|example| example.class).collect();
        let fitting = room_bytes / (4 * length * labels.len()).max(1);
        if fitting < 2 {
            let why = format!(
                "two pictures of each class do not fit into {} MiB; raise aggregator.public_max_mib",
                room_bytes >> 20
            );
            return Err(TrainError::NoExamples { folder: folder.into(), why });
        }
        if fitting < most_of_class {
            tracing::info!(of_class = fitting, "public set truncated to aggregator.public_max_mib");
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

    /// A set of decoded pictures with `length` numbers each.
    pub fn of(images: Vec<f32>, length: usize, classes: Vec<usize>, count: usize) -> Self {
        Self { length, images, classes, count, ..Self::default() }
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Classes without a picture.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.count).filter(|class| !self.classes.contains(class)).collect()
    }

    /// The indices of all pictures.
    pub fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    /// Splits the set in three: every third picture of each class goes to the same part in every round, so that
    /// pictures one release was fitted on never choose or report another. A class with a single picture is only fitted
    /// on; one with two is not reported.
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

    /// Weight of each class, so that all classes among these pictures count equally.
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
