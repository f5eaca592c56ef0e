//! The model that a round starts from: the site's own graph with the weights that came with the round.

use std::collections::BTreeMap;
use std::path::Path;

use training::{TrainError, folder, weights};
use vision::Model;

/// Writes it, once.
pub fn write(root: &Model, weights: &[u8], into: &Path) -> Result<Model, TrainError> {
    if let Ok(model) = Model::load(into) {
        return Ok(model);
    }
    let (tensors, _) = weights::decode(weights)?;
    let values: BTreeMap<String, Vec<f32>> = tensors.into_iter().map(|(name, (_, values))| (name, values)).collect();
    let graph = autograd::onnx::read(&root.graph)?;
    if let Some(bases) = into.parent() {
        // Only the latest is needed.
        let _absent_or_in_use = std::fs::remove_dir_all(bases);
        std::fs::create_dir_all(bases).map_err(TrainError::write(bases))?;
    }
    folder::write(root, &graph, &values, into)
}
