//! Reads and writes tensors in ONNX files.

use crate::error::AutogradError;
use crate::proto::TensorProto;
use crate::proto::tensor_proto::DataType;

/// Element types that we write.
pub(crate) const FLOAT: i32 = DataType::Float as i32;
pub(crate) const INT64: i32 = DataType::Int64 as i32;

/// Number of elements of a shape; the maximum for a shape that no memory holds, so that an overflow does not look like
/// a small number.
pub fn count(shape: &[i64]) -> i64 {
    match shape.contains(&0) {
        true => 0,
        false => shape.iter().fold(1, |count, size| count.saturating_mul(*size)),
    }
}

/// A float tensor, last axis first.
pub(crate) fn floats(name: &str, shape: &[i64], values: &[f32]) -> TensorProto {
    let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: shape.to_vec(),
        data_type: Some(FLOAT),
        raw_data: Some(raw),
        ..TensorProto::default()
    }
}

/// A row of integers; a scalar if `shape` is empty.
pub(crate) fn ints(name: &str, shape: &[i64], values: &[i64]) -> TensorProto {
    let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: shape.to_vec(),
        data_type: Some(INT64),
        raw_data: Some(raw),
        ..TensorProto::default()
    }
}

/// The values of a 32-bit float tensor.
pub(crate) fn read_floats(tensor: &TensorProto) -> Result<Vec<f32>, AutogradError> {
    let wrong = |why: String| AutogradError::Tensor { tensor: tensor.name().into(), why };
    if tensor.data_type() != FLOAT {
        return Err(wrong(format!("it has type {} instead of 32-bit floats", kind_name(tensor.data_type()))));
    }
    let values = match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        None => tensor.float_data.clone(),
    };
    match values.len() as i64 == count(&tensor.dims) {
        true => Ok(values),
        false => Err(wrong(format!("it has {} values for shape {:?}", values.len(), tensor.dims))),
    }
}

/// The values of a 64-bit integer tensor.
pub(crate) fn read_ints(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor.data_type() != INT64 {
        return None;
    }
    let values: Vec<i64> = match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        None => tensor.int64_data.clone(),
    };
    (values.len() as i64 == count(&tensor.dims)).then_some(values)
}

/// Common name of an element type.
pub(crate) fn kind_name(kind: i32) -> &'static str {
    match DataType::try_from(kind) {
        Ok(DataType::Float) => "float32",
        Ok(DataType::Float16) => "float16",
        Ok(DataType::Bfloat16) => "bfloat16",
        Ok(DataType::Double) => "float64",
        Ok(DataType::Int8) => "int8",
        Ok(DataType::Uint8) => "uint8",
        Ok(DataType::Int32) => "int32",
        Ok(DataType::Int64) => "int64",
        Ok(DataType::Bool) => "bool",
        _ => "another type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_no_memory_holds_has_no_small_count() {
        assert_eq!((count(&[]), count(&[2, 3]), count(&[7, 0, i64::MAX, 2])), (1, 6, 0));
        // 2^32 times 2^32 overflows to 0.
        assert_eq!(count(&[1 << 32, 1 << 32]), i64::MAX);
        let tensor = floats("a", &[1 << 32, 1 << 32], &[]);
        assert!(read_floats(&tensor).is_err() && read_ints(&ints("b", &[1 << 32, 1 << 32], &[])).is_none());
    }
}
