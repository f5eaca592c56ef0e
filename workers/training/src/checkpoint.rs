//! How far a training is, on the disk: whoever is killed goes on from there, and comes to the same weights.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemas::{ModelAccuracy, WeightFormat};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::optimizer::Optimizer;
use crate::weights::{self, NamedTensors};

const FILE: &str = "checkpoint.safetensors";

/// One epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1; 0 is the model before any training.
    pub number: u32,
    /// Mean loss of the batches; absent before any training.
    pub learned_loss: Option<f64>,
    /// On the examples held out.
    pub held_out: ModelAccuracy,
    /// How long it took, measuring included.
    pub took: Duration,
}

/// How far a training is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainProgress {
    /// The epoch that is under way, from 1.
    pub epoch: u32,
    /// Batches of it that were learned from.
    pub batches: u64,
    /// Sum of their losses.
    pub losses: f64,
    /// The epochs that are over, the measurement before training first.
    pub epochs: Vec<Epoch>,
    /// On the examples of split `test`, before training; absent without any.
    pub test_before: Option<ModelAccuracy>,
    /// Pictures that could not be used so far.
    pub unreadable: usize,
    /// The best epoch so far by the images held out; 0 if none is better than the start.
    pub best_epoch: u32,
    /// The highest learning rate, as given or found.
    pub learning_rate: f32,
}

/// Where a training writes down how far it is.
#[derive(Debug)]
pub struct CheckpointFolder {
    folder: PathBuf,
    every: Duration,
    written_at: Instant,
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Checkpoint {
    /// How far it was.
    pub progress: TrainProgress,
    /// The weights, in the order asked for.
    pub weights: Vec<Vec<f32>>,
    /// Those of the best epoch.
    pub best: Vec<Vec<f32>>,
    /// The optimizer's memory.
    pub memory: (Vec<Vec<f32>>, Vec<Vec<f32>>),
    /// Steps of the optimizer.
    pub steps: i32,
}

impl CheckpointFolder {
    /// In a folder, at least so often.
    pub fn new(folder: &Path, every: Duration) -> Self {
        Self { folder: folder.into(), every, written_at: Instant::now() }
    }

    /// Whether a training was left unfinished in a folder.
    pub fn are_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Takes back what is in a folder.
    pub fn remove(folder: &Path) {
        match std::fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %folder.display(), "the checkpoint stays");
            }
            _ => {}
        }
    }

    /// Whether it is time to write one.
    pub fn are_due(&self) -> bool {
        self.written_at.elapsed() >= self.every
    }

    /// Writes one; whole, or the one before stays. `weights`: as they are, and those of the best epoch.
    pub fn write(
        &mut self,
        mark: &str,
        names: &[String],
        progress: &TrainProgress,
        [weights, best]: [&[Vec<f32>]; 2],
        optimizer: &Optimizer,
    ) -> Result<(), TrainError> {
        let (first, second, steps) = optimizer.memory();
        let mut tensors = NamedTensors::new();
        for (group, all) in [("weight", weights), ("best", best), ("first", first), ("second", second)] {
            let named = names.iter().zip(all);
            tensors
                .extend(named.map(|(name, values)| (format!("{group} {name}"), (vec![values.len()], values.clone()))));
        }
        let notes: HashMap<String, String> = [
            ("mark".to_owned(), mark.to_owned()),
            ("steps".to_owned(), steps.to_string()),
            ("progress".to_owned(), serde_json::to_string(progress).unwrap_or_default()),
        ]
        .into();
        let bytes = weights::encode(&tensors, &BTreeMap::new(), WeightFormat::F32, Some(notes))?;
        let (path, beside) = (self.folder.join(FILE), self.folder.join(format!(".{FILE}")));
        let written = std::fs::File::create(&beside).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &bytes)?;
            file.sync_all()
        });
        written.map_err(TrainError::write(&beside))?;
        std::fs::rename(&beside, &path).map_err(TrainError::write(&path))?;
        self.written_at = Instant::now();
        Ok(())
    }

    /// Reads the one that is there, if it belongs to the same training: the same model, examples and settings, of
    /// which `mark` is a digest. One that cannot be read is passed over: training begins anew.
    pub fn read(&self, mark: &str, names: &[String]) -> Option<Checkpoint> {
        let bytes = std::fs::read(self.folder.join(FILE)).ok()?;
        let (mut tensors, notes) = weights::decode(&bytes).ok()?;
        if notes.get("mark")? != mark {
            tracing::info!("the checkpoint is of another training, which this one takes the place of");
            return None;
        }
        let mut group = |group: &str| {
            let taken = names.iter().map(|name| tensors.remove(&format!("{group} {name}")).map(|(_, values)| values));
            taken.collect::<Option<Vec<_>>>()
        };
        let (weights, best) = (group("weight")?, group("best")?);
        let (first, second) = (group("first")?, group("second").unwrap_or_default());
        let progress = serde_json::from_str(notes.get("progress")?).ok()?;
        Some(Checkpoint { progress, weights, best, memory: (first, second), steps: notes.get("steps")?.parse().ok()? })
    }
}
