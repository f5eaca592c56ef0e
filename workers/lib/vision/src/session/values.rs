//! Converts between 32-bit floats and the element types of a graph's input and output.

use std::collections::HashMap;

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{DynMapValueType, DynValue, TensorElementType, TensorRef, ValueType};

/// A buffer for a batch in the graph's element type.
#[derive(Debug)]
pub(super) enum InputBuffer {
    Floats,
    Halves(Vec<f16>),
    Bytes(Vec<u8>),
}

impl InputBuffer {
    /// A buffer for an element type; `None` if it is not supported.
    pub(super) fn of(element: TensorElementType) -> Option<Self> {
        match element {
            TensorElementType::Float32 => Some(Self::Floats),
            TensorElementType::Float16 => Some(Self::Halves(Vec::new())),
            TensorElementType::Uint8 => Some(Self::Bytes(Vec::new())),
            _ => None,
        }
    }

    /// The batch in the graph's element type; bytes are rounded and clamped to 0 to 255.
    pub(super) fn value<'a>(&'a mut self, shape: [usize; 4], batch: &'a [f32]) -> ort::Result<SessionInputValue<'a>> {
        match self {
            Self::Floats => Ok(TensorRef::from_array_view((shape, batch))?.into()),
            Self::Halves(halves) => {
                halves.clear();
                halves.extend(batch.iter().map(|number| f16::from_f32(*number)));
                Ok(TensorRef::from_array_view((shape, halves.as_slice()))?.into())
            }
            Self::Bytes(bytes) => {
                bytes.clear();
                // The cast clamps at both ends of the range.
                bytes.extend(batch.iter().map(|number| number.round() as u8));
                Ok(TensorRef::from_array_view((shape, bytes.as_slice()))?.into())
            }
        }
    }
}

/// Whether an output is a table from label to score for each image, as from ZipMap.
pub(super) fn is_label_scores(kind: &ValueType) -> bool {
    let scores = |kind: &ValueType| matches!(kind, ValueType::Map { value: TensorElementType::Float32, .. });
    matches!(kind, ValueType::Sequence(of) if scores(of))
}

/// The numbers of an output; those of a table in the order of the labels.
pub(super) fn read_scores(value: &DynValue, labels: &[String]) -> Result<Vec<f32>, String> {
    if !is_label_scores(value.dtype()) {
        return read_numbers(value);
    }
    let images = value.try_extract_sequence::<DynMapValueType>().map_err(|error| error.to_string())?;
    let mut numbers = Vec::with_capacity(images.len() * labels.len());
    for image in &images {
        let scores: HashMap<String, f32> = match image.try_extract_map::<String, f32>() {
            Ok(scores) => scores,
            // Numbered classes stand for the labels in their order.
            Err(_) => {
                let scores = image.try_extract_map::<i64, f32>().map_err(|error| error.to_string())?;
                let named = scores
                    .into_iter()
                    .filter_map(|(class, score)| Some((labels.get(usize::try_from(class).ok()?)?.clone(), score)));
                named.collect()
            }
        };
        if scores.len() != labels.len() {
            return Err(format!("it gave scores for {} labels, but there are {}", scores.len(), labels.len()));
        }
        for label in labels {
            let missing = || format!("it gave no score for label {label:?}; write the labels as the graph has them");
            numbers.push(*scores.get(label).ok_or_else(missing)?);
        }
    }
    Ok(numbers)
}

/// The numbers of a float tensor.
pub(super) fn read_numbers(value: &DynValue) -> Result<Vec<f32>, String> {
    let kind = value.dtype().tensor_type();
    let numbers = match kind {
        Some(TensorElementType::Float16) => {
            value.try_extract_tensor::<f16>().map(|(_, halves)| halves.iter().map(|half| half.to_f32()).collect())
        }
        _ => value.try_extract_tensor::<f32>().map(|(_, floats)| floats.to_vec()),
    };
    numbers.map_err(|error| error.to_string())
}
