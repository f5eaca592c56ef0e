//! `agreement`: samples times how far an update points the same way as the others; for fleets without a public set.
//! Like FedAWA (arXiv 2503.15842) it weighs by the updates themselves, not by predictions on pictures. It needs no
//! iterations and no learning rate, and a site cannot vouch for itself.

use super::{SiteMeasures, WeighSettings};

pub(super) fn values(sites: &[SiteMeasures], _settings: &WeighSettings) -> Vec<f64> {
    // A single update has no others to agree with.
    sites.iter().map(|site| site.samples as f64 * site.agreement.unwrap_or(1.0)).collect()
}

/// Cosine between each change and the sum of the others, clamped to 0 to 1. Each of the others counts by its samples
/// and not by its norm. `squares`: squared distances between changes; `norms`: their norms.
pub fn cosines(squares: &[Vec<f64>], norms: &[f64], samples: &[u64]) -> Vec<f64> {
    let dot = |a: usize, b: usize| {
        let square = norms[a] * norms[a] + norms[b] * norms[b] - squares[a][b];
        if a == b { norms[a] * norms[a] } else { square / 2.0 }
    };
    let weight = |site: usize| if norms[site] > 0.0 { samples[site] as f64 / norms[site] } else { 0.0 };
    let of = |site: usize| {
        let others: Vec<usize> = (0..norms.len()).filter(|other| *other != site).collect();
        let along: f64 = others.iter().map(|other| weight(*other) * dot(site, *other)).sum();
        let square: f64 =
            others.iter().flat_map(|a| others.iter().map(move |b| weight(*a) * weight(*b) * dot(*a, *b))).sum();
        let cosine = along / (norms[site] * square.max(0.0).sqrt());
        if cosine.is_finite() { cosine.clamp(0.0, 1.0) } else { 0.0 }
    };
    match norms.len() {
        0 | 1 => vec![1.0; norms.len()],
        count => (0..count).map(of).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(changes: &[Vec<f64>], samples: &[u64]) -> Vec<f64> {
        let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let zero = vec![0.0; changes[0].len()];
        let norms: Vec<f64> = changes.iter().map(|change| square(change, &zero).sqrt()).collect();
        let squares: Vec<Vec<f64>> = changes.iter().map(|a| changes.iter().map(|b| square(a, b)).collect()).collect();
        cosines(&squares, &norms, samples)
    }

    #[test]
    fn opposing_updates_count_nothing_and_agreeing_ones_fully() {
        let found = of(&[vec![1.0, 0.0], vec![2.0, 0.0], vec![-9.0, 0.0]], &[10, 10, 10]);
        assert!(found[0] < 1e-9, "one along, one against: {found:?}");
        let found = of(&[vec![1.0, 0.0], vec![2.0, 0.1], vec![3.0, -0.1], vec![-9.0, 0.0]], &[10; 4]);
        assert!(found[..3].iter().all(|cosine| *cosine > 0.95) && found[3] == 0.0, "{found:?}");
        assert_eq!(of(&[vec![1.0, 2.0]], &[5]), [1.0]);
        assert_eq!(of(&[vec![0.0], vec![0.0]], &[5, 5]), [0.0, 0.0], "nobody moved");
    }

    proptest! {
        #[test]
        fn norms_of_others_and_the_order_change_nothing(
            changes in prop::collection::vec(prop::collection::vec(-1.0_f64..1.0, 4), 2..6), times in 0.1_f64..100.0,
        ) {
            let samples = vec![10; changes.len()];
            let found = of(&changes, &samples);
            prop_assert!(found.iter().all(|cosine| (0.0..=1.0).contains(cosine)));
            let mut longer = changes.clone();
            longer[0].iter_mut().for_each(|value| *value *= times);
            longer.reverse();
            let mut again = of(&longer, &samples);
            again.reverse();
            prop_assert!(found.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {again:?}");
        }
    }
}
