//! A site's weights: a memory-mapped safetensors file, or a row in memory. Read in blocks, so that no update is ever
//! entirely in memory.

use std::fs::File;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use schemas::WeightFormat;

use crate::parameter_layout::ParameterLayout;

/// Why a file is not a valid set of weights for a model. Except for `File`, each is the sender's fault.
#[derive(Debug, thiserror::Error)]
pub enum WeightsFileError {
    /// The file cannot be opened.
    #[error("could not open {path}")]
    File {
        /// Path of the file.
        path: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The file is not in safetensors format.
    #[error("it is not a valid safetensors file: {0}")]
    Unreadable(#[from] safetensors::SafeTensorError),
    /// A trained tensor is missing.
    #[error("tensor {0:?} is missing")]
    Missing(String),
    /// It has a tensor that is unknown or not trained.
    #[error("tensor {0:?} is not one of the trained tensors")]
    Extra(String),
    /// A tensor has the wrong shape.
    #[error("tensor {name:?} has shape {found:?}; the model's is {wanted:?}")]
    Misshaped {
        /// Name of the tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the model.
        wanted: Vec<usize>,
    },
    /// A tensor has another number format than the update names.
    #[error("tensor {name:?} has type {found:?}; the update names {form:?}")]
    OtherType {
        /// Name of the tensor.
        name: String,
        /// Type in the file.
        found: Dtype,
        /// Format named in the update.
        form: WeightFormat,
    },
}

impl WeightsFileError {
    /// Its stable fault name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File { .. } => "weights_unavailable",
            Self::Unreadable(_) => "weights_unreadable",
            Self::Missing(_) => "tensor_missing",
            Self::Extra(_) => "tensor_extra",
            Self::Misshaped { .. } => "tensor_misshaped",
            Self::OtherType { .. } => "tensor_of_other_type",
        }
    }
}

/// Weights in a memory-mapped file.
#[derive(Debug)]
pub struct WeightsFile {
    map: Mmap,
    form: WeightFormat,
    /// Byte offset of each tensor, in the order of the layout.
    starts: Vec<usize>,
}

impl WeightsFile {
    /// Opens a weights file for this layout; checks names, shapes and types, not the values.
    pub fn open(path: &Path, form: WeightFormat, layout: &ParameterLayout) -> Result<Self, WeightsFileError> {
        let failed = |source| WeightsFileError::File { path: path.display().to_string(), source };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the file is the aggregator's own copy in a folder nobody else writes to, and gets its name only when
        // it is complete; only numbers are read from it, and any bits are valid numbers.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let starts = starts(&map, form, layout)?;
        Ok(Self { map, form, starts })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

fn starts(bytes: &[u8], form: WeightFormat, layout: &ParameterLayout) -> Result<Vec<usize>, WeightsFileError> {
    let file = SafeTensors::deserialize(bytes)?;
    let known = |name: &&str| layout.places().binary_search_by(|place| place.name.as_str().cmp(name)).is_ok();
    if let Some(extra) = file.names().into_iter().find(|name| !known(name)) {
        return Err(WeightsFileError::Extra(extra.chars().take(200).collect()));
    }
    let wanted = if form == WeightFormat::F32 { Dtype::F32 } else { Dtype::F16 };
    let mut starts = Vec::with_capacity(layout.places().len());
    for place in layout.places() {
        let view = file.tensor(&place.name).map_err(|_| WeightsFileError::Missing(place.name.clone()))?;
        if view.shape() != place.shape {
            let (name, found) = (place.name.clone(), view.shape().to_vec());
            return Err(WeightsFileError::Misshaped { name, found, wanted: place.shape.clone() });
        }
        if view.dtype() != wanted {
            return Err(WeightsFileError::OtherType { name: place.name.clone(), found: view.dtype(), form });
        }
        // Both point into the same bytes.
        starts.push(view.data().as_ptr() as usize - bytes.as_ptr() as usize);
    }
    Ok(starts)
}

/// A row of numbers, in memory or in a file.
#[derive(Debug, Clone, Copy)]
pub enum WeightRow<'a> {
    /// In memory, end to end.
    Memory(&'a [f32]),
    /// In a memory-mapped file.
    File(&'a WeightsFile),
}

impl WeightRow<'_> {
    /// Whether the numbers are a difference to be added to a base, not the weights themselves.
    pub fn are_added(&self) -> bool {
        matches!(self, WeightRow::File(file) if file.form == WeightFormat::DeltaF16)
    }

    /// A block's bytes if they are 32-bit floats in a file, which can be added without a copy.
    pub(crate) fn raw(&self, (place, from, len): (usize, usize, usize)) -> Option<&[u8]> {
        match self {
            WeightRow::File(file) if file.form == WeightFormat::F32 => {
                let start = file.starts[place] + from * 4;
                Some(&file.map[start..start + len * 4])
            }
            _ => None,
        }
    }

    /// A block as floats. `place`: index of the tensor in the layout; `from`: first number within it. `buffer`: buffer
    /// for conversion.
    pub(crate) fn block<'b>(
        &'b self,
        layout: &ParameterLayout,
        (place, from, len): (usize, usize, usize),
        buffer: &'b mut ReadBuffer,
    ) -> &'b [f32] {
        match self {
            WeightRow::Memory(row) => {
                let start = layout.places()[place].start + from;
                &row[start..start + len]
            }
            WeightRow::File(file) => {
                let floats = &mut buffer.floats[..len];
                let size = if file.form == WeightFormat::F32 { 4 } else { 2 };
                let start = file.starts[place] + from * size;
                let bytes = &file.map[start..start + len * size];
                if file.form == WeightFormat::F32 {
                    // Compiles to an unaligned load of four bytes.
                    for (float, four) in floats.iter_mut().zip(bytes.chunks_exact(4)) {
                        *float = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                    }
                } else {
                    let halves = &mut buffer.halves[..len];
                    for (half, two) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = f16::from_le_bytes([two[0], two[1]]);
                    }
                    halves.convert_to_f32_slice(floats);
                }
                floats
            }
        }
    }

    /// The whole row in memory.
    pub fn row(&self, layout: &ParameterLayout) -> Vec<f32> {
        let mut row = vec![0.0; layout.len()];
        let mut buffer = ReadBuffer::default();
        each_block(layout, |place, from, at, len| {
            row[at..at + len].copy_from_slice(self.block(layout, (place, from, len), &mut buffer));
        });
        row
    }
}

/// Numbers per block: two blocks fit into a core's first-level cache.
pub const BLOCK: usize = 2048;

/// Buffer for one block of a file.
pub struct ReadBuffer {
    floats: Vec<f32>,
    halves: Vec<f16>,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self { floats: vec![0.0; BLOCK], halves: vec![f16::ZERO; BLOCK] }
    }
}

/// Calls `see` for each block with the index of the tensor, the first number in it, the first number in the row, and
/// the length.
pub fn each_block(layout: &ParameterLayout, mut see: impl FnMut(usize, usize, usize, usize)) {
    for (number, place) in layout.places().iter().enumerate() {
        for from in (0..place.len).step_by(BLOCK) {
            see(number, from, place.start + from, BLOCK.min(place.len - from));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use training::weights::encode;

    use super::*;

    fn layout() -> ParameterLayout {
        ParameterLayout::new([("a".to_owned(), vec![2, 3]), ("b".to_owned(), vec![5000])].into())
    }

    fn row(scale: f32) -> Vec<f32> {
        (0..layout().len()).map(|at| at as f32 * scale).collect()
    }

    fn written(row: &[f32], layout: &ParameterLayout, base: &[f32], form: WeightFormat) -> tempfile::NamedTempFile {
        let base = layout.tensors(base).into_iter().map(|(name, (_, values))| (name, values)).collect();
        let bytes = encode(&layout.tensors(row), &base, form, None).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_file_of_every_format_is_read_as_it_was_written() {
        let (layout, base, row) = (layout(), row(0.5), row(0.75));
        let open = |form| {
            let file = written(&row, &layout, &base, form);
            let file = WeightsFile::open(file.path(), form, &layout).unwrap();
            (WeightRow::File(&file).row(&layout), WeightRow::File(&file).are_added())
        };
        assert_eq!(open(WeightFormat::F32), (row.clone(), false));
        let (halves, added) = open(WeightFormat::F16);
        assert!(!added && halves.iter().zip(&row).all(|(a, b)| (a - b).abs() <= b.abs() * 1e-3));
        let (moved, added) = open(WeightFormat::DeltaF16);
        assert!(added && moved.iter().zip(&row).all(|(moved, row)| (moved - row / 3.0).abs() <= row * 1e-3));
    }

    #[test]
    fn weights_that_do_not_fit_the_model_are_refused_by_name() {
        let wrong = |shapes: &[(&str, Vec<usize>)], form| {
            let shapes: BTreeMap<String, Vec<usize>> =
                shapes.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
            let other = ParameterLayout::new(shapes);
            let file = written(&vec![0.0; other.len()], &other, &vec![0.0; other.len()], WeightFormat::F32);
            WeightsFile::open(file.path(), form, &layout()).unwrap_err().name()
        };
        let (a, b) = (("a", vec![2, 3]), ("b", vec![5000]));
        assert_eq!(wrong(std::slice::from_ref(&a), WeightFormat::F32), "tensor_missing");
        assert_eq!(wrong(&[a.clone(), b.clone(), ("c", vec![1])], WeightFormat::F32), "tensor_extra");
        assert_eq!(wrong(&[("a", vec![3, 2]), b.clone()], WeightFormat::F32), "tensor_misshaped");
        assert_eq!(wrong(&[("a", vec![1]), b.clone()], WeightFormat::F32), "tensor_misshaped");
        assert_eq!(wrong(&[a, b], WeightFormat::F16), "tensor_of_other_type");
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [&b""[..], b"no tensors", &[0xff; 64]] {
            std::fs::write(file.path(), bytes).unwrap();
            let refused = WeightsFile::open(file.path(), WeightFormat::F32, &layout()).unwrap_err();
            assert!(matches!(refused.name(), "weights_unreadable" | "weights_unavailable"), "{refused}");
        }
    }
}
