//! Weights as a safetensors file, in the format of updates.

use std::collections::{BTreeMap, HashMap};

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use schemas::WeightFormat;

use crate::error::TrainError;

/// Tensors by name, each with its shape.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Encodes weights as a file. `base`: the weights of the same names that [`WeightFormat::DeltaF16`] is relative to.
pub fn encode(
    tensors: &NamedTensors,
    base: &BTreeMap<String, Vec<f32>>,
    form: WeightFormat,
    notes: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, TrainError> {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| {
            let bytes = match form {
                WeightFormat::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                WeightFormat::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
                WeightFormat::DeltaF16 => {
                    let from = base.get(name).into_iter().flatten().chain(std::iter::repeat(&0.0));
                    let moved = values.iter().zip(from).map(|(value, from)| f16::from_f32(value - from));
                    moved.flat_map(f16::to_le_bytes).collect()
                }
            };
            (name, bytes)
        })
        .collect();
    let kind = if form == WeightFormat::F32 { Dtype::F32 } else { Dtype::F16 };
    let failed = |source| TrainError::Weights { verb: "written", source };
    let views = tensors
        .iter()
        .map(|(name, (shape, _))| {
            let values = bytes.get(name).map_or(&[][..], Vec::as_slice);
            Ok((name, TensorView::new(kind, shape.clone(), values).map_err(failed)?))
        })
        .collect::<Result<Vec<_>, TrainError>>()?;
    safetensors::serialize(views, notes).map_err(failed)
}

/// Decodes a file's 32-bit floats and its metadata.
pub fn decode(bytes: &[u8]) -> Result<(NamedTensors, HashMap<String, String>), TrainError> {
    let failed = |source| TrainError::Weights { verb: "read", source };
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(failed)?;
    let file = SafeTensors::deserialize(bytes).map_err(failed)?;
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(failed(safetensors::SafeTensorError::TensorInvalidInfo));
        }
        let values = view.data().chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        tensors.insert(name.to_owned(), (view.shape().to_vec(), values.collect()));
    }
    Ok((tensors, head.metadata().clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(values: &[f32]) -> NamedTensors {
        [("w".to_owned(), (vec![values.len()], values.to_vec()))].into()
    }

    fn halves(bytes: &[u8]) -> Vec<f32> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor("w").unwrap();
        assert_eq!(view.dtype(), Dtype::F16);
        view.data().chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32()).collect()
    }

    #[test]
    fn floats_are_read_as_they_were_written() {
        let values = tensors(&[1.0, -0.1, f32::MIN_POSITIVE]);
        let notes: HashMap<String, String> = [("epoch".to_owned(), "3".to_owned())].into();
        let bytes = encode(&values, &BTreeMap::new(), WeightFormat::F32, Some(notes.clone())).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (values, notes));
        assert!(decode(&bytes[..bytes.len() - 1]).is_err(), "truncated");
    }

    #[test]
    fn a_difference_is_finer_than_a_rounded_weight() {
        let (base, values) = ([100.0_f32], [100.001_f32]);
        let by_name: BTreeMap<String, Vec<f32>> = [("w".to_owned(), base.to_vec())].into();
        let rounded = halves(&encode(&tensors(&values), &by_name, WeightFormat::F16, None).unwrap());
        let moved = halves(&encode(&tensors(&values), &by_name, WeightFormat::DeltaF16, None).unwrap());
        assert_eq!(rounded, [100.0]);
        assert!((base[0] + moved[0] - values[0]).abs() < 1e-5, "{moved:?}");
    }
}
