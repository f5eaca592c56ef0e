//! Turns a model's logits into probabilities and best classes. Pure.

use crate::model::Model;

/// Probability of each label according to the kind of model, for a detector that of its best candidate, with the logits divided by `temperature` as in
/// [`softmax`].
pub fn probabilities(model: &Model, logits: &[f32], temperature: f32) -> Vec<f32> {
    let kind = model.description.output.kind;
    match kind.is_multi_label() || kind.is_detector() {
        true => sigmoid(logits, temperature),
        false => softmax(logits, temperature),
    }
}

/// Independent probability of each label, with the logits divided by `temperature` as in [`softmax`].
pub fn sigmoid(logits: &[f32], temperature: f32) -> Vec<f32> {
    let temperature = if temperature.is_finite() && temperature > 0.0 { temperature } else { 1.0 };
    logits.iter().map(|logit| 1.0 / (1.0 + (-logit / temperature).exp())).collect()
}

/// Probabilities of the logits divided by `temperature` (above 1: less confident). The largest logit is subtracted
/// first, so that no exponential overflows. A temperature that is not a positive number counts as 1.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let temperature = if temperature.is_finite() && temperature > 0.0 { temperature } else { 1.0 };
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut ratios: Vec<f32> = logits.iter().map(|logit| ((logit - highest) / temperature).exp()).collect();
    let sum: f32 = ratios.iter().sum();
    ratios.iter_mut().for_each(|ratio| *ratio /= sum);
    ratios
}

/// The `count` largest, best first, as (class, ratio); of equal ones, the lower class first.
pub fn top(ratios: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = ratios.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(count);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_logits_give_known_ratios() {
        let ratios = softmax(&[1.0, 2.0, 3.0], 1.0);
        for (actual, expected) in ratios.iter().zip([0.090_030_57, 0.244_728_47, 0.665_240_96]) {
            assert!((actual - expected).abs() < 1e-6, "{ratios:?}");
        }
    }

    #[test]
    fn a_higher_temperature_is_less_sure() {
        assert!(softmax(&[1.0, 3.0], 2.0)[1] < softmax(&[1.0, 3.0], 1.0)[1]);
    }

    #[test]
    fn of_equal_ratios_the_lower_class_comes_first() {
        assert_eq!(top(&[0.2, 0.4, 0.4], 2), [(1, 0.4), (2, 0.4)]);
    }

    proptest! {
        #[test]
        fn ratios_sum_to_one_however_large_the_logits(
            logits in prop::collection::vec(-1e6_f32..1e6, 1..50),
            temperature in 0.01_f32..100.0,
        ) {
            let sum: f32 = softmax(&logits, temperature).iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-4);
        }
    }
}
