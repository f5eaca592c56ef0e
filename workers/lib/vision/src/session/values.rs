//! Converts between 32-bit floats and the element types of a graph's input and output.

use std::borrow::Cow;
use std::collections::HashMap;

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{DynMapValueType, DynValue, Tensor, TensorElementType, TensorRef, ValueType};
use schemas::model::SizeOrder;

use crate::detection::{OutputTensor, SourceSize};

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
    pub(super) fn value<'a>(&'a mut self, shape: &'a [usize], batch: &'a [f32]) -> ort::Result<SessionInputValue<'a>> {
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

/// Width and height of each picture as the graph's second input.
pub(super) fn source_sizes(sources: &[SourceSize], order: SizeOrder) -> ort::Result<SessionInputValue<'static>> {
    let pair = |source: &SourceSize| {
        let (width, height) = (i64::from(source.width_px), i64::from(source.height_px));
        match order {
            SizeOrder::WidthHeight => [width, height],
            SizeOrder::HeightWidth => [height, width],
        }
    };
    let sizes: Vec<i64> = sources.iter().flat_map(pair).collect();
    Ok(Tensor::from_array(([sources.len(), 2], sizes))?.into())
}

/// An output of a detector, without copying 32-bit floats.
pub(super) fn read_tensor<'a>(name: &'a str, value: &'a DynValue) -> Result<OutputTensor<'a>, String> {
    let shape = value.dtype().tensor_shape().ok_or_else(|| format!("output {name:?} is not a tensor"))?;
    let shape = shape.iter().map(|size| usize::try_from(*size).unwrap_or_default()).collect();
    let numbers = match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => value.try_extract_tensor::<f32>().map(|(_, floats)| Cow::Borrowed(floats)),
        Some(TensorElementType::Int64) => value
            .try_extract_tensor::<i64>()
            .map(|(_, integers)| integers.iter().map(|integer| *integer as f32).collect()),
        Some(TensorElementType::Int32) => value
            .try_extract_tensor::<i32>()
            .map(|(_, integers)| integers.iter().map(|integer| *integer as f32).collect()),
        _ => return read_numbers(value).map(|numbers| OutputTensor { name, shape, numbers: Cow::Owned(numbers) }),
    };
    Ok(OutputTensor { name, shape, numbers: numbers.map_err(|error| error.to_string())? })
}
