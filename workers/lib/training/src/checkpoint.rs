//! Saves the progress of a training to disk, so that a killed one resumes and ends with the same weights.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemas::{ModelAccuracy, WeightFormat};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::optimizer::Optimizer;
use crate::weights::{self, NamedTensors};

const FILE: &str = "checkpoint.safetensors";

/// Results of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Number of the epoch, from 1; 0 is the model before training.
    pub number: u32,
    /// Mean training loss of its batches; absent before training.
    pub learned_loss: Option<f64>,
    /// Accuracy and loss on the holdout.
    pub held_out: ModelAccuracy,
    /// Duration, including measuring.
    pub took: Duration,
}

/// Progress of a training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainProgress {
    /// The current epoch, from 1.
    pub epoch: u32,
    /// Batches of it that are done.
    pub batches: u64,
    /// Sum of their losses.
    pub losses: f64,
    /// Finished epochs, starting with the measurement before training.
    pub epochs: Vec<Epoch>,
    /// Score on the examples of split `test` before training; absent without any.
    pub test_before: Option<ModelAccuracy>,
    /// Pictures that could not be used so far.
    pub unreadable: usize,
    /// The best epoch so far by the holdout; 0 if none is better than the start.
    pub best_epoch: u32,
    /// Highest learning rate, as configured or found.
    pub learning_rate: f32,
}

/// Where a training saves its progress.
#[derive(Debug)]
pub struct CheckpointFolder {
    folder: PathBuf,
    every: Duration,
    written_at: Instant,
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Checkpoint {
    /// Progress at that point.
    pub progress: TrainProgress,
    /// Current weights, in the requested order.
    pub weights: Vec<Vec<f32>>,
    /// Weights of the best epoch.
    pub best: Vec<Vec<f32>>,
    /// State of the optimizer.
    pub memory: (Vec<Vec<f32>>, Vec<Vec<f32>>),
    /// Number of optimizer steps.
    pub steps: i32,
}

impl CheckpointFolder {
    /// Saves into a folder, at this interval.
    pub fn new(folder: &Path, every: Duration) -> Self {
        Self { folder: folder.into(), every, written_at: Instant::now() }
    }

    /// Whether a folder has an unfinished training.
    pub fn are_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Removes a folder's checkpoint.
    pub fn remove(folder: &Path) {
        match std::fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %folder.display(), "checkpoint not removed");
            }
            _ => {}
        }
    }

    /// Whether the next checkpoint is due.
    pub fn are_due(&self) -> bool {
        self.written_at.elapsed() >= self.every
    }

    /// Writes a checkpoint completely, or keeps the previous one. `weights`: the current ones and those of the best
    /// epoch.
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

    /// Reads the checkpoint if it belongs to the same training: the same model, examples and settings, of which `mark`
    /// is a digest. An unreadable one is ignored and training starts over.
    pub fn read(&self, mark: &str, names: &[String]) -> Option<Checkpoint> {
        let bytes = std::fs::read(self.folder.join(FILE)).ok()?;
        let (mut tensors, notes) = weights::decode(&bytes).ok()?;
        if notes.get("mark")? != mark {
            tracing::info!("checkpoint of another training replaced");
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
