//! Runs any ONNX graph in ONNX Runtime, with named tensors in and out: for graphs that are not classifiers, such as a
//! training step or a model with all intermediate values as outputs.
//!
//! In: the bytes of a graph, then float tensors by name. Out: every output, in the runtime's memory. Refuses what the
//! runtime refuses.

use std::path::PathBuf;

use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, TensorRef};

use crate::session::{OnnxRuntime, SessionError};

/// A loaded graph.
pub struct Graph {
    inner: OrtSession,
    called: PathBuf,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("called", &self.called).finish_non_exhaustive()
    }
}

/// An input tensor.
#[derive(Debug, Clone, Copy)]
pub struct GraphInput<'a> {
    /// Name of the input.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [i64],
    /// Its values, last axis first.
    pub values: &'a [f32],
}

/// An output tensor.
#[derive(Debug, Clone, Copy)]
pub struct GraphOutput<'a> {
    /// Name of the output.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [i64],
    /// Its values, last axis first.
    pub numbers: TensorNumbers<'a>,
}

/// Values of a tensor.
#[derive(Debug, Clone, Copy)]
pub enum TensorNumbers<'a> {
    /// 32-bit floats.
    Floats(&'a [f32]),
    /// 64-bit integers.
    Ints(&'a [i64]),
    /// Another type.
    Other,
}

impl Graph {
    /// Loads a graph. `called`: its name in errors; `threads`: threads per run, at least 1.
    pub fn open(onnx: &OnnxRuntime, called: &str, bytes: &[u8], threads: usize) -> Result<Graph, SessionError> {
        let load = || -> Result<OrtSession, ort::Error> {
            OrtSession::builder(onnx.environment())?
                .with_intra_threads(threads.max(1))?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .with_inter_op_spinning(false)?
                .commit_from_memory(bytes)
        };
        let called = PathBuf::from(called);
        match load() {
            Ok(inner) => Ok(Graph { inner, called }),
            Err(error) => Err(SessionError::GraphUnusable { graph: called, why: error.to_string() }),
        }
    }

    /// Runs it and passes every output to `see`, in the order of the graph.
    pub fn run(&mut self, given: &[GraphInput<'_>], mut see: impl FnMut(GraphOutput<'_>)) -> Result<(), SessionError> {
        let called = &self.called;
        let failed = |error: ort::Error| SessionError::RunFailed { graph: called.clone(), why: error.to_string() };
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(given.len());
        for tensor in given {
            let view = TensorRef::from_array_view((tensor.shape, tensor.values)).map_err(failed)?;
            inputs.push((tensor.name, view.into()));
        }
        let outputs = self.inner.run(inputs).map_err(failed)?;
        for (name, value) in &outputs {
            let value: &DynValue = &value;
            if let Ok((shape, floats)) = value.try_extract_tensor::<f32>() {
                see(GraphOutput { name, shape, numbers: TensorNumbers::Floats(floats) });
            } else if let Ok((shape, ints)) = value.try_extract_tensor::<i64>() {
                see(GraphOutput { name, shape, numbers: TensorNumbers::Ints(ints) });
            } else if let Some(shape) = value.dtype().tensor_shape() {
                see(GraphOutput { name, shape, numbers: TensorNumbers::Other });
            }
        }
        Ok(())
    }
}
