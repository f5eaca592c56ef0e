//! Writes a trained model's folder: the files of the original with new weights.

use std::collections::BTreeMap;
use std::path::Path;

use autograd::onnx::OnnxDocument;
use vision::Model;

use crate::error::TrainError;

/// Refuses a folder that is not empty.
pub fn check(folder: &Path) -> Result<(), TrainError> {
    let taken = folder.is_file()
        || folder.exists() && std::fs::read_dir(folder).map_err(TrainError::read(folder))?.next().is_some();
    match taken {
        true => Err(TrainError::Taken { folder: folder.into() }),
        false => Ok(()),
    }
}

/// Writes a model's folder with new weights. The folder must not exist, or be empty; it ends up complete, or is not
/// created.
pub fn write(
    model: &Model,
    onnx: &OnnxDocument,
    weights: &BTreeMap<String, Vec<f32>>,
    folder: &Path,
) -> Result<Model, TrainError> {
    check(folder)?;
    let mut patched = onnx.clone();
    patched.patch(weights)?;
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = folder.with_file_name(format!(".{name}.unfinished"));
    std::fs::create_dir_all(&beside).map_err(TrainError::write(&beside))?;
    for file in &model.files {
        let (from, to) = (model.folder.join(file), beside.join(file));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(TrainError::write(parent))?;
        }
        if from == model.graph {
            std::fs::write(&to, patched.encode()).map_err(TrainError::write(&to))?;
        } else if !onnx.was_external(file) {
            std::fs::copy(&from, &to).map_err(TrainError::write(&to))?;
        }
    }
    if folder.exists() {
        std::fs::remove_dir(folder).map_err(TrainError::write(folder))?;
    }
    std::fs::rename(&beside, folder).map_err(TrainError::write(folder))?;
    Ok(Model::load(folder)?)
}
