//! `paper`: stability, capability and size, each scaled between the worst and the best site, multiplied with exponents.
//! With a floor of 0 it is the rule as published, which gives the worst site of each factor nothing, so that two sites
//! can both end with 0. A floor keeps a part of every factor.

use super::{CapabilityMeasure, SiteMeasures, SizeMeasure, WeighSettings};

pub(super) fn values(sites: &[SiteMeasures], settings: &WeighSettings) -> Vec<f64> {
    let floor = settings.floor_ratio;
    let of = |value: &dyn Fn(&SiteMeasures) -> f64| sites.iter().map(value).collect::<Vec<f64>>();
    let stability = ranged(&of(&|site| 1.0 - site.spread()), floor);
    let capability = ranged(
        &of(&|site| match settings.capability_measure {
            CapabilityMeasure::Max => site.best(),
            CapabilityMeasure::Mean => site.mean(),
        }),
        floor,
    );
    let samples = of(&|site| site.samples as f64);
    let size = match settings.size_measure {
        SizeMeasure::Range => ranged(&samples, floor),
        SizeMeasure::Share => {
            let all: f64 = samples.iter().sum();
            samples.iter().map(|samples| samples / all).collect()
        }
    };
    let product = |place: usize| {
        let factors = [
            (stability[place], settings.stability),
            (capability[place], settings.capability),
            (size[place], settings.size),
        ];
        // 0 to the power of 0 is 1, so a factor with exponent 0 has no effect.
        factors.iter().map(|(factor, exponent)| factor.powf(*exponent)).product()
    };
    (0..sites.len()).map(product).collect()
}

/// Scales values between the smallest, which gets `floor`, and the largest, which gets 1; all 1 if they are equal.
pub(super) fn ranged(values: &[f64], floor: f64) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = most - least;
    // Relative to the values' own size, so that counting samples in thousands changes nothing.
    if range <= 1e-12 * most.abs().max(1e-300) {
        return vec![1.0; values.len()];
    }
    values.iter().map(|value| floor + (1.0 - floor) * (value - least) / range).collect()
}
