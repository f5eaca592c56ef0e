//! The base model of a round: the site's graph with the weights that came with the round, and with those the site keeps
//! for itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use autograd::trainable::is_named;
use schemas::WeightFormat;
use training::weights::NamedTensors;
use training::{TrainError, folder, weights};
use vision::Model;

/// Whether the base model's folder is there, so that its weights need not be fetched.
pub(crate) async fn is_written(into: &Path) -> bool {
    let into = into.to_owned();
    tokio::task::spawn_blocking(move || Model::load(&into).is_ok()).await.unwrap_or(false)
}

/// Writes the base model's folder, unless it is already there, and removes the file of its weights.
pub(crate) fn write(root: &Model, weights: &Path, into: &Path) -> Result<Model, TrainError> {
    if let Ok(model) = Model::load(into) {
        return Ok(model);
    }
    if let Some(bases) = into.parent() {
        // Only the latest one is needed.
        let _absent_or_in_use = std::fs::remove_dir_all(bases);
        std::fs::create_dir_all(bases).map_err(TrainError::write(bases))?;
    }
    // The model holds these floats in memory anyway.
    let bytes = std::fs::read(weights).map_err(TrainError::read(weights))?;
    let _replaced_by_the_next = std::fs::remove_file(weights);
    patched(root, weights::decode(&bytes)?.0, into)
}

fn patched(root: &Model, tensors: NamedTensors, into: &Path) -> Result<Model, TrainError> {
    let values: BTreeMap<String, Vec<f32>> = tensors.into_iter().map(|(name, (_, values))| (name, values)).collect();
    folder::write(root, &autograd::onnx::read(&root.graph)?, &values, into)
}

fn kept(work: &Path) -> PathBuf {
    work.join("local.safetensors")
}

/// The base with the site's own weights, if it has kept any.
pub(crate) fn with_own(base: &Model, local: &[String], work: &Path) -> Result<Model, TrainError> {
    let Ok(bytes) = std::fs::read(kept(work)) else { return Ok(base.clone()) };
    let (mut own, _) = weights::decode(&bytes)?;
    own.retain(|name, _| is_named(name, local));
    let into = work.join("own");
    match std::fs::remove_dir_all(&into) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::write(into)(error)),
        _ => patched(base, own, &into),
    }
}

/// Removes the weights that stay at the site from a trained model and saves them for the next round.
pub(crate) fn keep_own(trained: &mut NamedTensors, local: &[String], work: &Path) -> Result<(), TrainError> {
    if local.is_empty() {
        return Ok(());
    }
    let own: NamedTensors =
        trained.iter().filter(|(name, _)| is_named(name, local)).map(|(a, b)| (a.clone(), b.clone())).collect();
    trained.retain(|name, _| !is_named(name, local));
    let bytes = weights::encode(&own, &BTreeMap::new(), WeightFormat::F32, None)?;
    let (path, beside) = (kept(work), kept(work).with_extension("part"));
    std::fs::write(&beside, bytes).map_err(TrainError::write(&beside))?;
    std::fs::rename(&beside, &path).map_err(TrainError::write(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_weights_are_not_sent_and_return_in_the_next_round() {
        let work = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/models/fashion-initial");
        let root = Model::load(&root).unwrap();
        let graph = autograd::onnx::read(&root.graph).unwrap();
        let mut trained = NamedTensors::new();
        for (name, shape) in graph.floats().unwrap() {
            let count = shape.iter().product();
            trained.insert(name, (shape, vec![0.5; count]));
        }
        let all = trained.len();
        let local = ["*bias*".to_owned()];
        keep_own(&mut trained, &local, work.path()).unwrap();
        assert!(!trained.is_empty() && trained.len() < all);
        assert!(trained.keys().all(|name| !name.contains("bias")));
        let next = with_own(&root, &local, work.path()).unwrap();
        let next = autograd::onnx::read(&next.graph).unwrap();
        for (name, _) in graph.floats().unwrap() {
            let expected = if name.contains("bias") {
                vec![0.5; next.weight(&name).unwrap().len()]
            } else {
                graph.weight(&name).unwrap()
            };
            assert_eq!(next.weight(&name).unwrap(), expected, "{name}");
        }
        // A weight that is no longer local comes from the round.
        let shared = with_own(&root, &[], work.path()).unwrap();
        let shared = autograd::onnx::read(&shared.graph).unwrap();
        let bias = graph.floats().unwrap().into_iter().find(|(name, _)| name.contains("bias")).unwrap().0;
        assert_eq!(shared.weight(&bias).unwrap(), graph.weight(&bias).unwrap());
    }
}
