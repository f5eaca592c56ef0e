//! `paper`: stability, capability and size, each between the worst and the best site, multiplied with exponents. With a
//! floor of 0 it is the method's letter, which gives the worst site of each factor nothing at all: two sites may come to
//! nothing together. A floor keeps a part of every factor.

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
        // 0 to the power of 0 is 1: a factor that is left out leaves no trace.
        factors.iter().map(|(factor, exponent)| factor.powf(*exponent)).product()
    };
    (0..sites.len()).map(product).collect()
}

/// Each value between the smallest, which keeps `floor`, and the largest, which has 1; all 1 if they are equal.
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
