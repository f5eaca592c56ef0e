//! Medians, and how certain they are.

/// Median; the mean of the two middle values for an even count, 0 for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 1) => *upper,
        (Some(upper), _) => (upper + sorted.get(middle - 1).unwrap_or(upper)) / 2.0,
        (None, _) => 0.0,
    }
}

/// 95 % confidence interval of the median of whatever the values are drawn from, by order statistics: it assumes nothing
/// of their distribution (W. R. Thompson, 1936). `None` for fewer than six values, whose range is not certain enough.
pub(crate) fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Leaves out as many values at each end as the binomial distribution allows.
    let mut left_out = None;
    let (mut probability, mut below) = (0.5_f64.powi(i32::try_from(sorted.len()).ok()?), 0.0);
    for place in 0..sorted.len() / 2 {
        below += probability;
        if below > 0.025 {
            break;
        }
        left_out = Some(place);
        probability *= (sorted.len() - place) as f64 / (place + 1) as f64;
    }
    let place = left_out?;
    Some((*sorted.get(place)?, *sorted.get(sorted.len() - 1 - place)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_ignores_the_order_of_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn intervals_of_a_median_match_the_tables_of_the_sign_test() {
        let values = |count: u32| (1..=count).rev().map(f64::from).collect::<Vec<_>>();
        assert_eq!(median_interval(&values(5)), None);
        assert_eq!(median_interval(&values(6)), Some((1.0, 6.0)));
        assert_eq!(median_interval(&values(9)), Some((2.0, 8.0)));
        assert_eq!(median_interval(&values(15)), Some((4.0, 12.0)));
        assert_eq!(median_interval(&values(25)), Some((8.0, 18.0)));
    }
}
