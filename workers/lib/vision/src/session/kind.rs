//! What a model's output numbers mean, and how they become logits. Pure.

use schemas::model::OutputKind;

/// Smaller probabilities, and those equally close to 1, are clamped before the logarithm.
const SMALLEST_PROBABILITY: f32 = 1e-12;

/// Checks whether numbers are what the description says, as far as they show: probabilities of a single label are
/// between 0 and 1 and sum to 1 in every row, and logits never do so by chance. The error says what is wrong, and the
/// likely kind. `width`: numbers per image.
pub(super) fn check(kind: OutputKind, numbers: &[f32], width: usize) -> Result<(), (String, OutputKind)> {
    /// For a sum of 16-bit floats or of an 8-bit softmax.
    const ROUNDING: f32 = 0.05;
    /// For 32-bit floats.
    const EXACT: f32 = 1e-4;
    /// This many logits are never all between 0 and 1.
    const MANY: usize = 8;
    let sum = |row: &[f32]| row.iter().sum::<f32>();
    let within = numbers.iter().all(|number| (-1e-3..=1.001).contains(number));
    let mut rows = numbers.chunks_exact(width);
    let far = || numbers.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
    match kind {
        OutputKind::Logits if width > 1 && within && rows.all(|row| (sum(row) - 1.0).abs() < EXACT) => Err((
            "holds probabilities: its numbers lie between 0 and 1 and sum to 1".to_owned(),
            OutputKind::Probabilities,
        )),
        OutputKind::Probabilities if !within => {
            Err((format!("does not hold probabilities: one number is {}", far()), OutputKind::Logits))
        }
        OutputKind::Sigmoid if !within => {
            Err((format!("does not hold probabilities: one number is {}", far()), OutputKind::SigmoidLogits))
        }
        OutputKind::SigmoidLogits if width >= MANY && within => {
            Err(("holds probabilities: all its numbers lie between 0 and 1".to_owned(), OutputKind::Sigmoid))
        }
        OutputKind::Probabilities if width > 1 => match rows.map(sum).find(|sum| (sum - 1.0).abs() > ROUNDING) {
            Some(sum) => Err((
                format!(
                    "holds numbers between 0 and 1 that sum to {sum}, not to 1: probabilities of several labels at once"
                ),
                OutputKind::Sigmoid,
            )),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Logits, one per label, from the graph's output. `width`: numbers per image, equal to `labels`, or one for two
/// labels.
pub(super) fn logits(kind: OutputKind, mut numbers: Vec<f32>, width: usize, labels: usize) -> Vec<f32> {
    let ln = |ratio: f32| ratio.max(SMALLEST_PROBABILITY).ln();
    let odds = |ratio: f32| ln(ratio) - ln(1.0 - ratio);
    match kind {
        // `softmax([0, x])` is `[1 - sigmoid(x), sigmoid(x)]`.
        OutputKind::Logits if width < labels => return numbers.into_iter().flat_map(|x| [0.0, x]).collect(),
        OutputKind::Probabilities if width < labels => {
            return numbers.into_iter().flat_map(|ratio| [0.0, odds(ratio)]).collect();
        }
        OutputKind::Logits | OutputKind::SigmoidLogits => {}
        OutputKind::Probabilities => numbers.iter_mut().for_each(|ratio| *ratio = ln(*ratio)),
        OutputKind::Sigmoid | OutputKind::Boxes => numbers.iter_mut().for_each(|ratio| *ratio = odds(*ratio)),
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{sigmoid, softmax};

    #[test]
    fn numbers_that_contradict_their_kind_are_detected() {
        let right = |kind, numbers: &[f32], width| check(kind, numbers, width).err().map(|(_, right)| right);
        assert_eq!(right(OutputKind::Probabilities, &[0.9, 0.8, 0.1], 3), Some(OutputKind::Sigmoid));
        assert_eq!(right(OutputKind::Probabilities, &[0.5, 0.48, 0.0], 3), None);
        assert_eq!(right(OutputKind::Probabilities, &[0.3], 1), None, "probability of the second of two labels");
        assert_eq!(right(OutputKind::Probabilities, &[2.0, -1.0], 2), Some(OutputKind::Logits));
        assert_eq!(right(OutputKind::Logits, &[0.5, 0.48, 0.0], 3), None);
        assert_eq!(right(OutputKind::Logits, &[0.5, 0.5, 0.0], 3), Some(OutputKind::Probabilities));
        assert_eq!(right(OutputKind::Logits, &[1.0], 1), None);
        assert_eq!(right(OutputKind::Sigmoid, &[0.9, 0.8, 0.1], 3), None);
        assert_eq!(right(OutputKind::Sigmoid, &[0.9, -3.0, 0.1], 3), Some(OutputKind::SigmoidLogits));
        assert_eq!(right(OutputKind::SigmoidLogits, &[0.5; 8], 8), Some(OutputKind::Sigmoid));
    }

    #[test]
    fn every_kind_leads_to_the_probabilities_it_means() {
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5) && a.len() == b.len();
        let given = [0.2, 0.3, 0.5];
        assert!(close(&softmax(&logits(OutputKind::Probabilities, given.to_vec(), 3, 3), 1.0), &given));
        assert!(close(&sigmoid(&logits(OutputKind::Sigmoid, vec![0.9, 0.05], 2, 2), 1.0), &[0.9, 0.05]));
        let two = logits(OutputKind::Probabilities, vec![0.9, 0.2], 1, 2);
        assert!(close(&softmax(&two[..2], 1.0), &[0.1, 0.9]) && close(&softmax(&two[2..], 1.0), &[0.8, 0.2]));
        let two = logits(OutputKind::Logits, vec![2.0], 1, 2);
        assert!(close(&softmax(&two, 1.0)[1..], &[1.0 / (1.0 + (-2.0_f32).exp())]));
        let extreme = logits(OutputKind::Sigmoid, vec![0.0, 1.0], 2, 2);
        assert!(extreme.iter().all(|logit| logit.is_finite()));
    }
}
