//! Reference gradients: a folder with a model and, computed in 64-bit floats, its loss, its scores and the gradient of
//! every weight. `fixtures/make_gradients.py` creates such folders.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::error::AutogradError;
use crate::onnx::{self, OnnxDocument};
use crate::training_step::LOSS;

/// A model and its reference gradients.
#[derive(Debug, Clone)]
pub struct Reference {
    /// The model.
    pub model: OnnxDocument,
    tensors: BTreeMap<String, (Vec<i64>, Vec<f64>)>,
}

impl Reference {
    /// Reads `model.onnx` and `reference.safetensors` in a folder. The latter has `images`, `target` (`[batch,
    /// classes]`), `scale`, `loss`, `scores` and `gradient of <weight>` for each weight.
    pub fn read(folder: &Path) -> Result<Self, AutogradError> {
        let path = folder.join("reference.safetensors");
        let bytes = std::fs::read(&path).map_err(|source| AutogradError::File { path: path.clone(), source })?;
        let unreadable = |why: String| AutogradError::Tensor { tensor: path.display().to_string(), why };
        let file = SafeTensors::deserialize(&bytes).map_err(|error| unreadable(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = match view.dtype() {
                Dtype::F32 => view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect(),
                Dtype::F64 => view.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
                other => return Err(unreadable(format!("{name} is {other:?} instead of floats"))),
            };
            tensors.insert(name.to_owned(), (view.shape().iter().map(|size| *size as i64).collect(), values));
        }
        let reference = Self { model: onnx::read(&folder.join("model.onnx"))?, tensors };
        ["images", "target", "scale", "loss", "scores"].iter().try_for_each(|name| reference.get(name).map(|_| ()))?;
        Ok(reference)
    }

    fn get(&self, name: &str) -> Result<&(Vec<i64>, Vec<f64>), AutogradError> {
        self.tensors.get(name).ok_or_else(|| AutogradError::Unknown { tensor: name.into() })
    }

    /// A tensor's shape; empty if it is missing.
    pub fn shape(&self, name: &str) -> &[i64] {
        self.tensors.get(name).map_or(&[], |(shape, _)| shape)
    }

    /// A tensor's values in 32-bit floats; empty if it is missing.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors.get(name).into_iter().flat_map(|(_, values)| values).map(|value| *value as f32).collect()
    }

    /// Weights with a reference gradient.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix("gradient of "))
    }

    /// Error of a step's output: the largest difference as a share of the largest value.
    pub fn error_of(&self, output: &str, came: &[f32]) -> Result<f64, AutogradError> {
        let name = match output {
            LOSS => "loss",
            scores if !scores.starts_with("gradient of ") => "scores",
            gradient => gradient,
        };
        let (_, expected) = self.get(name)?;
        if expected.len() != came.len() {
            let why = format!("it has {} values instead of {}", came.len(), expected.len());
            return Err(AutogradError::Tensor { tensor: name.into(), why });
        }
        let largest = expected.iter().fold(1e-12_f64, |largest, value| largest.max(value.abs()));
        let differences = came.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
        Ok(differences.fold(0.0, f64::max) / largest)
    }
}
