//! The loss, and its gradient by the scores.
//!
//! One form for all: `loss = -scale · Σ_b Σ_c target[b, c] · log softmax(scores)[b, c]`. Depending on the targets it is
//! cross-entropy with label smoothing and class weights (as in `torch.nn.CrossEntropyLoss`), distillation from a
//! teacher's probabilities, or a mixture; a row of zeros is padding of the batch. Its gradient is `scale ·
//! (softmax(scores) · Σ_c target - target)`.

use crate::gradient_tape::{AttributeValue, GradientTape};

/// Writes loss and gradient; returns the gradient of the scores. `scores` and `target`: `[batch, classes]`, `scale`:
/// one number, `loss`: name of the loss output.
pub(crate) fn write(tape: &mut GradientTape<'_>, scores: &str, target: &str, scale: &str, loss: &str) -> String {
    let log = tape.op("LogSoftmax", &[scores], &[AttributeValue::Int("axis", -1)]);
    let weighted = tape.mul(&log, target);
    let sum = tape.sum(&weighted, &[0, 1], false);
    let negative = tape.op("Neg", &[&sum], &[]);
    tape.op_into("Mul", &[&negative, scale], &[], loss);
    let probability = tape.op("Exp", &[&log], &[]);
    let mass = tape.sum(target, &[1], true);
    let expected = tape.mul(&probability, &mass);
    let difference = tape.op("Sub", &[&expected, target], &[]);
    tape.mul(&difference, scale)
}

/// Targets of a batch, and their scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Targets {
    /// `[batch, classes]`, last axis first.
    pub values: Vec<f32>,
    /// Factor of the sum.
    pub scale: f32,
}

/// How labels become targets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LabelSmoothing {
    /// Share of the label's weight that is spread over all classes, 0 to 1.
    pub label_smoothing: f32,
    /// Weight of an image of each class; empty: all equal.
    pub class_weights: Vec<f32>,
}

/// Targets of cross-entropy. `labels`: the class of each image; `None` for padding.
pub fn cross_entropy(labels: &[Option<usize>], classes: usize, smoothing: &LabelSmoothing) -> Targets {
    let weight = |class: usize| smoothing.class_weights.get(class).copied().unwrap_or(1.0);
    let mut values = vec![0.0; labels.len() * classes];
    let mut mass = 0.0;
    for (row, label) in values.chunks_exact_mut(classes.max(1)).zip(labels) {
        let Some(label) = label.filter(|label| *label < classes) else { continue };
        mass += weight(label);
        for (class, value) in row.iter_mut().enumerate() {
            let own = if class == label { 1.0 - smoothing.label_smoothing } else { 0.0 };
            *value = weight(class) * (own + smoothing.label_smoothing / classes as f32);
        }
    }
    Targets { values, scale: if mass > 0.0 { 1.0 / mass } else { 0.0 } }
}

/// Mixes in a teacher's probabilities: they make up `share` of the target, 0 to 1. Padding rows stay zero.
pub fn distill(targets: &mut Targets, teacher: &[f32], classes: usize, share: f32) {
    for (row, said) in targets.values.chunks_exact_mut(classes.max(1)).zip(teacher.chunks_exact(classes.max(1))) {
        let mass: f32 = row.iter().sum();
        for (value, said) in row.iter_mut().zip(said) {
            *value = *value * (1.0 - share) + mass * share * said;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_smoothing_and_weights_the_target_is_the_label() {
        let targets = cross_entropy(&[Some(1), None], 3, &LabelSmoothing::default());
        assert_eq!(targets.values, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(targets.scale, 1.0, "one image counts");
    }

    #[test]
    fn smoothing_and_weights_are_those_of_the_reference() {
        // torch.nn.CrossEntropyLoss(weight=[1, 2], label_smoothing=0.2): -Σ w_c t'_c log p_c / Σ w_y.
        let smoothing = LabelSmoothing { label_smoothing: 0.2, class_weights: vec![1.0, 2.0] };
        let targets = cross_entropy(&[Some(0), Some(1)], 2, &smoothing);
        let expected = [0.9, 0.2, 0.1, 1.8];
        assert!(targets.values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{targets:?}");
        assert!((targets.scale - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_teacher_gets_exactly_its_share_of_every_image() {
        let mut targets = cross_entropy(&[Some(0), None], 2, &LabelSmoothing::default());
        distill(&mut targets, &[0.25, 0.75, 0.5, 0.5], 2, 0.5);
        assert_eq!(targets.values, [0.625, 0.375, 0.0, 0.0]);
    }
}
