//! What could be trained of a model, before anything is trained.

use crate::error::AutogradError;
use crate::known::Known;
use crate::step::Prepared;
use crate::trainable::{self, Trainable};

/// What could be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Operators with a matrix or a kernel.
    pub layers: usize,
    /// How many of them, from the last one on, can be trained; all of them if nothing is in the way.
    pub trainable_layers: usize,
    /// Weights in those, tensors.
    pub weights: usize,
    /// Numbers in those weights.
    pub parameters: u64,
    /// Operators that are in the way of training all layers, each with its node and the reason.
    pub unsupported: Vec<String>,
}

/// Looks how much of a model can be trained. `known`: with everything the probe gave.
pub fn report(prepared: &Prepared, known: &Known) -> Result<Report, AutogradError> {
    let layers = trainable::layers(&prepared.plain);
    let unsupported = match prepared.step(known, &Trainable::All) {
        Ok(_) => Vec::new(),
        Err(AutogradError::Unsupported { unsupported, .. }) => unsupported,
        Err(error) => return Err(error),
    };
    let works = |count: usize| prepared.step(known, &Trainable::Last(count)).ok();
    // What works for so many layers works for fewer: only what is behind the first of them matters.
    let (mut least, mut most) = (0, layers);
    while least < most {
        let middle = (least + most).div_ceil(2);
        match works(middle) {
            Some(_) => least = middle,
            None => most = middle - 1,
        }
    }
    let step = if unsupported.is_empty() { prepared.step(known, &Trainable::All).ok() } else { works(least) };
    let weights = step.map(|step| step.weights).unwrap_or_default();
    let parameters = weights.iter().map(|weight| crate::tensor::count(&weight.shape) as u64).sum();
    Ok(Report { layers, trainable_layers: least, weights: weights.len(), parameters, unsupported })
}
