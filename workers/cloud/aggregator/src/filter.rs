//! Which updates count, and which are clipped. Pure.

use serde::{Deserialize, Serialize};

/// How to treat updates that stand out; applied in the order they are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateFilter {
    /// Clip an update whose norm is above `clip_over_median` times the round's median to that limit.
    NormClip,
    /// Drop an update whose loss on the public set is above `loss_over_median` times the round's median.
    LossGate,
    /// Keep only the updates closest to each other (Multi-Krum, arXiv 1703.02757): all but the `suspects_ratio` that
    /// may be bad.
    Krum,
    /// Per weight, the mean without the `trim_ratio` lowest and highest values (arXiv 1803.01498); shares are ignored.
    Trimmed,
    /// Per weight, the median (arXiv 1803.01498); shares are ignored.
    Median,
}

/// Filters and their thresholds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSettings {
    /// The filters, in order; empty: none.
    pub names: Vec<UpdateFilter>,
    /// For `norm-clip`: limit as a multiple of the median norm, above 0.
    pub clip_over_median: f64,
    /// For `loss-gate`: limit as a multiple of the median loss, at least 1.
    pub loss_over_median: f64,
    /// For `krum`: share of the updates that may be bad, 0 to below 0.5.
    pub suspects_ratio: f64,
    /// For `trimmed`: share dropped at each end, 0 to below 0.5.
    pub trim_ratio: f64,
}

impl Default for FilterSettings {
    fn default() -> Self {
        Self { names: Vec::new(), clip_over_median: 2.0, loss_over_median: 3.0, suspects_ratio: 0.2, trim_ratio: 0.2 }
    }
}

impl FilterSettings {
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let wants = [
            (self.clip_over_median > 0.0, format!("clip_over_median is {}; it must be above 0", self.clip_over_median)),
            (
                self.loss_over_median >= 1.0,
                format!("loss_over_median is {}; it must be at least 1", self.loss_over_median),
            ),
            (
                (0.0..0.5).contains(&self.suspects_ratio),
                format!("suspects_ratio is {}; it must be at least 0 and below 0.5", self.suspects_ratio),
            ),
            (
                (0.0..0.5).contains(&self.trim_ratio),
                format!("trim_ratio is {}; it must be at least 0 and below 0.5", self.trim_ratio),
            ),
        ];
        wants.iter().find(|(is, _)| !is).map_or(Ok(()), |(_, wanted)| Err(wanted.clone()))
    }
}

/// Factor for each change that brings its norm to at most `over_median` times the median.
pub fn clip(norms: &[f64], over_median: f64) -> Vec<f64> {
    let most = median(norms) * over_median;
    norms.iter().map(|norm| if *norm > most && *norm > 0.0 { most / norm } else { 1.0 }).collect()
}

/// Which updates have a loss of at most `over_median` times the median; all of them if no loss is finite.
pub fn gate(losses: &[f64], over_median: f64) -> Vec<bool> {
    let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    let most = median(&finite) * over_median;
    let within: Vec<bool> = losses.iter().map(|loss| *loss <= most).collect();
    if within.iter().any(|within| *within) { within } else { vec![true; losses.len()] }
}

/// Which updates are closest to each other. `squares`: squared distances between all of them.
pub fn krum(squares: &[Vec<f64>], suspects_ratio: f64) -> Vec<bool> {
    let count = squares.len();
    let suspects = (count as f64 * suspects_ratio).ceil() as usize;
    // Each is scored by the distances to its nearest neighbours: all others but the suspects and one.
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

/// The median; 0 of no values.
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
    fn a_long_change_is_clipped() {
        assert_eq!(clip(&[1.0, 2.0, 1.0, 8.0, 2.0], 2.0), [1.0, 1.0, 1.0, 0.5, 1.0]);
        assert_eq!(clip(&[0.0, 0.0], 2.0), [1.0, 1.0]);
    }

    #[test]
    fn updates_far_worse_than_the_others_do_not_count() {
        assert_eq!(gate(&[1.0, 1.2, 9.0, f64::INFINITY], 3.0), [true, true, false, false]);
        assert_eq!(gate(&[f64::NAN, f64::NAN], 3.0), [true, true]);
    }

    #[test]
    fn krum_drops_distant_updates() {
        let at = [0.0, 0.1, 0.2, 0.15, 9.0_f64];
        let squares: Vec<Vec<f64>> = at.iter().map(|a| at.iter().map(|b| (a - b) * (a - b)).collect()).collect();
        assert_eq!(krum(&squares, 0.2), [true, true, true, true, false]);
        assert_eq!(krum(&[vec![0.0]], 0.2), [true]);
    }
}
