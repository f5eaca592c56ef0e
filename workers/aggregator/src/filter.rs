//! Which updates count at all, and how far they may reach. Pure.

use serde::{Deserialize, Serialize};

/// What is done about updates that stand out. In the order they are named in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateFilter {
    /// A change longer than `clip_over_median` times the median of the round is shortened to that.
    NormClip,
    /// An update whose loss on the public set is above `loss_over_median` times the median of the round does not count.
    LossGate,
    /// Only the updates that lie closest together count (Multi-Krum, arXiv 1703.02757): as many as there are without the
    /// `suspects_ratio` that may be bad.
    Krum,
    /// Number by number, the mean without the `trim_ratio` lowest and highest (arXiv 1803.01498); shares do not count.
    Trimmed,
    /// Number by number, the median (arXiv 1803.01498); shares do not count.
    Median,
}

/// The numbers of the filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSettings {
    /// Which filters, in order; none if empty.
    pub names: Vec<UpdateFilter>,
    /// Of `norm-clip`, above 0.
    pub clip_over_median: f64,
    /// Of `loss-gate`, at least 1.
    pub loss_over_median: f64,
    /// Of `krum`: share of the updates that may be bad, 0 to below 0.5.
    pub suspects_ratio: f64,
    /// Of `trimmed`: left out at either end, 0 to below 0.5.
    pub trim_ratio: f64,
}

impl Default for FilterSettings {
    fn default() -> Self {
        Self { names: Vec::new(), clip_over_median: 2.0, loss_over_median: 3.0, suspects_ratio: 0.2, trim_ratio: 0.2 }
    }
}

impl FilterSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (self.clip_over_median > 0.0, "clip_over_median: above 0"),
            (self.loss_over_median >= 1.0, "loss_over_median: at least 1"),
            ((0.0..0.5).contains(&self.suspects_ratio), "suspects_ratio: 0 to below 0.5"),
            ((0.0..0.5).contains(&self.trim_ratio), "trim_ratio: 0 to below 0.5"),
        ];
        wants.iter().find(|(is, _)| !is).map_or(Ok(()), |(_, wanted)| Err(format!("filter.{wanted}")))
    }
}

/// What each change is multiplied by, so that none is longer than so many times the median.
pub fn clip(norms: &[f64], over_median: f64) -> Vec<f64> {
    let most = median(norms) * over_median;
    norms.iter().map(|norm| if *norm > most && *norm > 0.0 { most / norm } else { 1.0 }).collect()
}

/// Which updates have a loss of no more than so many times the median; all of them if none has.
pub fn gate(losses: &[f64], over_median: f64) -> Vec<bool> {
    let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    let most = median(&finite) * over_median;
    let within: Vec<bool> = losses.iter().map(|loss| *loss <= most).collect();
    if within.iter().any(|within| *within) { within } else { vec![true; losses.len()] }
}

/// Which updates lie closest together. `squares`: of all distances.
pub fn krum(squares: &[Vec<f64>], suspects_ratio: f64) -> Vec<bool> {
    let count = squares.len();
    let suspects = (count as f64 * suspects_ratio).ceil() as usize;
    // Each is judged by the distances to its nearest: all but the suspects, itself and one.
    let near = count.saturating_sub(suspects + 2).max(1);
    let mut order: Vec<(f64, usize)> = squares
        .iter()
        .enumerate()
        .map(|(place, row)| {
            let mut others: Vec<f64> =
                row.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, square)| *square).collect();
            others.sort_by(f64::total_cmp);
            (others.iter().take(near).sum(), place)
        })
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut kept = vec![false; count];
    let most = count.saturating_sub(suspects).max(1);
    order.iter().take(most).for_each(|(_, place)| kept[*place] = true);
    kept
}

/// The middle one, or the mean of the middle two; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_change_is_shortened_to_what_is_allowed() {
        assert_eq!(clip(&[1.0, 2.0, 1.0, 8.0, 2.0], 2.0), [1.0, 1.0, 1.0, 0.5, 1.0]);
        assert_eq!(clip(&[0.0, 0.0], 2.0), [1.0, 1.0]);
    }

    #[test]
    fn what_is_far_worse_than_the_others_does_not_count() {
        assert_eq!(gate(&[1.0, 1.2, 9.0, f64::INFINITY], 3.0), [true, true, false, false]);
        assert_eq!(gate(&[f64::NAN, f64::NAN], 3.0), [true, true]);
    }

    #[test]
    fn krum_leaves_out_what_lies_apart() {
        let at = [0.0, 0.1, 0.2, 0.15, 9.0_f64];
        let squares: Vec<Vec<f64>> = at.iter().map(|a| at.iter().map(|b| (a - b) * (a - b)).collect()).collect();
        assert_eq!(krum(&squares, 0.2), [true, true, true, true, false]);
        assert_eq!(krum(&[vec![0.0]], 0.2), [true]);
    }
}
