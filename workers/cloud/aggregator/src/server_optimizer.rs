//! How far the next release moves towards the merged weights: the server optimizer (arXiv 2003.00295). The difference
//! between the merged weights and the base takes the place of a gradient. Pure.

use serde::{Deserialize, Serialize};

/// Kind of server optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerOptimizerKind {
    /// Moves by `rate` times the difference; a rate of 1 is plain merging.
    #[default]
    Sgd,
    /// Adds the decayed movement of earlier rounds.
    Momentum,
    /// Scales by the size of earlier movements, per weight (FedAdam).
    Adam,
    /// Like adam, but forgets sizes more slowly where they shrink (FedYogi).
    Yogi,
}

/// Settings of the server optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerOptimizerSettings {
    /// Kind: `sgd`, `momentum`, `adam` or `yogi`.
    pub kind: ServerOptimizerKind,
    /// Learning rate, above 0; 1 with `sgd` takes the merged weights as they are, `adam` and `yogi` need less.
    pub rate: f64,
    /// For `momentum`, `adam` and `yogi`: share of earlier movements kept, 0 to below 1.
    pub momentum_ratio: f64,
    /// For `adam` and `yogi`: share of earlier squared movements kept, 0 to below 1.
    pub square_ratio: f64,
    /// For `adam` and `yogi`: added to the denominator so that small movements stay small, above 0.
    pub adaptivity: f64,
}

impl Default for ServerOptimizerSettings {
    fn default() -> Self {
        Self { kind: ServerOptimizerKind::Sgd, rate: 1.0, momentum_ratio: 0.9, square_ratio: 0.99, adaptivity: 1e-3 }
    }
}

impl ServerOptimizerSettings {
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (self.rate > 0.0 && self.rate.is_finite(), format!("rate is {}; it must be above 0", self.rate)),
            (
                (0.0..1.0).contains(&self.momentum_ratio),
                format!("momentum_ratio is {}; it must be at least 0 and below 1", self.momentum_ratio),
            ),
            (
                (0.0..1.0).contains(&self.square_ratio),
                format!("square_ratio is {}; it must be at least 0 and below 1", self.square_ratio),
            ),
            (self.adaptivity > 0.0, format!("adaptivity is {}; it must be above 0", self.adaptivity)),
        ];
        wants.iter().find(|(is, _)| !is).map_or(Ok(()), |(_, wanted)| Err(wanted.clone()))
    }
}

/// Optimizer state between rounds: rows as long as the model's, empty before the first round.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServerOptimizerState {
    /// Decayed mean of movements.
    pub first: Vec<f32>,
    /// Decayed mean of their squares.
    pub second: Vec<f32>,
}

/// Moves the base one step towards the merged weights, in place of `merged`.
pub fn apply_optimizer(
    base: &[f32],
    merged: &mut [f32],
    memory: &mut ServerOptimizerState,
    settings: &ServerOptimizerSettings,
) {
    let ServerOptimizerSettings { kind, rate, momentum_ratio, square_ratio, adaptivity } = *settings;
    if kind == ServerOptimizerKind::Sgd && rate == 1.0 {
        return;
    }
    let (rate, keep, keep_square, least) = (rate as f32, momentum_ratio as f32, square_ratio as f32, adaptivity as f32);
    if kind != ServerOptimizerKind::Sgd && memory.first.len() != base.len() {
        memory.first = vec![0.0; base.len()];
    }
    if matches!(kind, ServerOptimizerKind::Adam | ServerOptimizerKind::Yogi) && memory.second.len() != base.len() {
        memory.second = vec![least * least; base.len()];
    }
    for (place, (merged, base)) in merged.iter_mut().zip(base).enumerate() {
        let change = *merged - base;
        let moved = match kind {
            ServerOptimizerKind::Sgd => change,
            ServerOptimizerKind::Momentum => {
                memory.first[place] = keep * memory.first[place] + change;
                memory.first[place]
            }
            ServerOptimizerKind::Adam | ServerOptimizerKind::Yogi => {
                memory.first[place] = keep * memory.first[place] + (1.0 - keep) * change;
                let (size, square) = (&mut memory.second[place], change * change);
                *size = match kind {
                    ServerOptimizerKind::Adam => keep_square * *size + (1.0 - keep_square) * square,
                    _ => *size - (1.0 - keep_square) * square * (*size - square).signum(),
                };
                memory.first[place] / (size.sqrt() + least)
            }
        };
        *merged = base + rate * moved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(kind: ServerOptimizerKind, rate: f64, changes: &[f32]) -> f32 {
        let settings = ServerOptimizerSettings { kind, rate, ..ServerOptimizerSettings::default() };
        let (mut at, mut memory) = (1.0, ServerOptimizerState::default());
        for change in changes {
            let mut merged = [at + change];
            apply_optimizer(&[at], &mut merged, &mut memory, &settings);
            at = merged[0];
        }
        at
    }

    #[test]
    fn at_a_rate_of_one_sgd_equals_plain_merging() {
        assert_eq!(after(ServerOptimizerKind::Sgd, 1.0, &[0.5, 0.25]), 1.75);
        assert_eq!(after(ServerOptimizerKind::Sgd, 0.5, &[0.5]), 1.25);
    }

    #[test]
    fn momentum_carries_over_and_adaptive_steps_ignore_the_size_of_a_change() {
        // 0.5, then 0.9 * 0.5 + 0.25.
        assert!((after(ServerOptimizerKind::Momentum, 1.0, &[0.5, 0.25]) - 2.2).abs() < 1e-6);
        for kind in [ServerOptimizerKind::Adam, ServerOptimizerKind::Yogi] {
            // A tenth of the change over the root of a hundredth of its square.
            let (short, long) = (after(kind, 0.1, &[1.0]) - 1.0, after(kind, 0.1, &[100.0]) - 1.0);
            assert!((short - 0.1).abs() < 2e-3 && (long - 0.1).abs() < 2e-3, "{kind:?}: {short}, {long}");
        }
    }
}
