//! Moves weights along gradients. Pure: weights and gradients in, weights out. Equivalent to PyTorch's
//! `torch.optim.SGD` and `torch.optim.Adam` with the same settings.

use crate::settings::{OptimizerKind, OptimizerSettings};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// An optimizer and its state.
#[derive(Debug, Clone)]
pub struct Optimizer {
    settings: OptimizerSettings,
    /// Pull of every weight towards its start.
    proximal: f32,
    /// Per weight: the momentum of `sgd`, the mean gradient of `adam`.
    first: Vec<Vec<f32>>,
    /// Per weight: the mean squared gradient of `adam`.
    second: Vec<Vec<f32>>,
    steps: i32,
}

impl Optimizer {
    /// An optimizer for weights of these sizes.
    pub fn new(settings: &OptimizerSettings, weights: &[Vec<f32>]) -> Self {
        let zeros = || weights.iter().map(|weight| vec![0.0; weight.len()]).collect();
        let second = if settings.kind == OptimizerKind::Adam { zeros() } else { Vec::new() };
        Self {
            settings: settings.clone(),
            proximal: settings.proximal.unwrap_or(0.0),
            first: zeros(),
            second,
            steps: 0,
        }
    }

    /// Sets the pull towards the start, unless the settings define it.
    pub fn with_proximal(mut self, proximal: f32) -> Self {
        self.proximal = self.settings.proximal.unwrap_or(proximal);
        self
    }

    /// Its state, and the number of steps taken.
    pub fn memory(&self) -> (&[Vec<f32>], &[Vec<f32>], i32) {
        (&self.first, &self.second, self.steps)
    }

    /// Restores another optimizer's state.
    pub fn with_memory(mut self, (first, second): (Vec<Vec<f32>>, Vec<Vec<f32>>), steps: i32) -> Self {
        (self.first, self.second, self.steps) = (first, second, steps);
        self
    }

    /// Takes one step. `start`: the weights before training; `rate`: the learning rate, above 0.
    pub fn step(&mut self, weights: &mut [Vec<f32>], gradients: &mut [Vec<f32>], start: &[Vec<f32>], rate: f64) {
        let OptimizerSettings { kind, momentum_ratio, weight_decay, clip_norm, .. } = self.settings;
        let proximal = self.proximal;
        if let Some(most) = clip_norm {
            shorten(gradients, most);
        }
        let rate = rate as f32;
        self.steps = self.steps.saturating_add(1);
        let (bias1, bias2) = (1.0 - BETA1.powi(self.steps), 1.0 - BETA2.powi(self.steps));
        for (place, (weight, gradient)) in weights.iter_mut().zip(gradients.iter()).enumerate() {
            // One pass over everything: large models are limited by memory bandwidth.
            let first = &mut self.first[place];
            match (kind, proximal == 0.0) {
                (OptimizerKind::Sgd, true) => {
                    for ((weight, gradient), moved) in weight.iter_mut().zip(gradient).zip(first) {
                        *moved = momentum_ratio * *moved + (gradient + weight_decay * *weight);
                        *weight -= rate * *moved;
                    }
                }
                (OptimizerKind::Sgd, false) => {
                    let rows = weight.iter_mut().zip(gradient).zip(first).zip(&start[place]);
                    for (((weight, gradient), moved), start) in rows {
                        let pulled = gradient + weight_decay * *weight + proximal * (*weight - start);
                        *moved = momentum_ratio * *moved + pulled;
                        *weight -= rate * *moved;
                    }
                }
                (OptimizerKind::Adam, _) => {
                    let rows = weight.iter_mut().zip(gradient).zip(first).zip(&mut self.second[place]);
                    for ((((weight, gradient), mean), square), start) in rows.zip(&start[place]) {
                        let pulled = gradient + weight_decay * *weight + proximal * (*weight - start);
                        *mean = BETA1 * *mean + (1.0 - BETA1) * pulled;
                        *square = BETA2 * *square + (1.0 - BETA2) * pulled * pulled;
                        *weight -= rate * (*mean / bias1) / ((*square / bias2).sqrt() + EPSILON);
                    }
                }
            }
        }
    }
}

/// Clips the norm of all gradients together, like `torch.nn.utils.clip_grad_norm_`.
fn shorten(gradients: &mut [Vec<f32>], most: f32) {
    let square: f64 = gradients.iter().flatten().map(|value| f64::from(*value).powi(2)).sum();
    let ratio = (f64::from(most) / (square.sqrt() + 1e-6)).min(1.0) as f32;
    gradients.iter_mut().flatten().for_each(|value| *value *= ratio);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(settings: &OptimizerSettings, steps: &[f32]) -> f32 {
        let (mut weights, start) = (vec![vec![1.0]], vec![vec![0.5]]);
        let mut optimizer = Optimizer::new(settings, &weights);
        for gradient in steps {
            optimizer.step(&mut weights, &mut [vec![*gradient]], &start, 0.1);
        }
        weights[0][0]
    }

    #[test]
    fn momentum_carries_the_last_movement_on() {
        let settings = OptimizerSettings::default();
        // v = 1, then 0.9 + 0.5: 1 - 0.1 - 0.14.
        assert!((after(&settings, &[1.0, 0.5]) - 0.76).abs() < 1e-6);
    }

    #[test]
    fn the_first_step_of_adam_is_as_long_as_the_rate() {
        let settings = OptimizerSettings { kind: OptimizerKind::Adam, ..OptimizerSettings::default() };
        assert!((after(&settings, &[1e-3]) - 0.9).abs() < 1e-4);
        assert!((after(&settings, &[50.0]) - 0.9).abs() < 1e-4);
    }

    #[test]
    fn decay_pulls_to_zero_and_the_proximal_term_to_the_start() {
        let still = OptimizerSettings { momentum_ratio: 0.0, ..OptimizerSettings::default() };
        assert_eq!(after(&still, &[0.0]), 1.0);
        assert!((after(&OptimizerSettings { weight_decay: 0.5, ..still.clone() }, &[0.0]) - 0.95).abs() < 1e-6);
        // Towards 0.5, the start.
        assert!((after(&OptimizerSettings { proximal: Some(1.0), ..still }, &[0.0]) - 0.95).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn no_gradient_is_longer_than_allowed(
            mut gradients in prop::collection::vec(prop::collection::vec(-1e6_f32..1e6, 0..20), 1..5),
            most in 1e-3_f32..100.0,
        ) {
            shorten(&mut gradients, most);
            let length: f64 = gradients.iter().flatten().map(|value| f64::from(*value).powi(2)).sum();
            prop_assert!(length.sqrt() <= f64::from(most) * 1.001);
        }
    }
}
