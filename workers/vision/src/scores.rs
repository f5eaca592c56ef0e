//! Scores: from a model's logits to probabilities and the best classes. Pure.

/// Probabilities of the logits divided by `temperature` (above 1: less sure). The largest logit is
/// subtracted first, so that no exponential overflows. A temperature that is not a positive number
/// counts as 1.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let temperature = if temperature.is_finite() && temperature > 0.0 { temperature } else { 1.0 };
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut ratios: Vec<f32> = logits.iter().map(|logit| ((logit - highest) / temperature).exp()).collect();
    let sum: f32 = ratios.iter().sum();
    ratios.iter_mut().for_each(|ratio| *ratio /= sum);
    ratios
}

/// The `count` largest, best first, as (class, ratio); of equal ones the lower class first.
pub fn top(ratios: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = ratios.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(count);
    ranked
}
