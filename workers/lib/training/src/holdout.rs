//! Decides whether a model improved by comparing two models' predictions on the same holdout. Pure.
//!
//! Because both see the same images, only those on which they differ count: McNemar's test for accuracy, a paired
//! difference for the loss. A change that a single image could reverse counts as no difference.

use schemas::ModelAccuracy;

/// Standard errors from which a difference is significant: one-sided, 95 %.
const SIGNIFICANT: f64 = 1.645;
/// Standard errors within which two models count as equally accurate.
const EQUAL: f64 = 1.0;
/// Standard errors of a 95 % interval, on each side.
const NORMAL_95: f64 = 1.96;

/// A model's predictions on the holdout, in the order of its images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HoldoutScores {
    right: Vec<bool>,
    losses: Vec<f64>,
}

/// How one model compares with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldoutComparison {
    /// Significantly more accurate; or at least as accurate with a significantly lower loss. Less accurate is never
    /// better: a loss that falls because a model is less sure of its mistakes helps nobody who needs the label.
    Better,
    /// Neither better nor worse.
    Level,
    /// The reverse of better.
    Worse,
}

impl HoldoutScores {
    /// Adds an image. `scores`: one logit per class.
    pub fn add(&mut self, scores: &[f32], class: usize) {
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = scores.iter().map(|score| f64::from(score - highest).exp()).sum();
        let own = scores.get(class).copied().unwrap_or(f32::NAN);
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(place, _)| place);
        self.push(best == Some(class), sum.ln() - f64::from(own - highest));
    }

    /// Adds an image whose prediction was already judged. `loss`: cross-entropy of the true class.
    pub fn push(&mut self, right: bool, loss: f64) {
        self.right.push(right);
        self.losses.push(loss);
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.right.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.right.is_empty()
    }

    /// 95 % confidence interval of the accuracy, 0 to 1 ([`ratio_interval`]).
    pub fn accuracy_interval(&self) -> (f64, f64) {
        ratio_interval(self.measured().accuracy_ratio, self.len() as u64)
    }

    /// 95 % confidence interval of this model's accuracy minus the other's (A. Agresti and Y. Min, 2005, for matched
    /// pairs: half an image is added to each of the four cells); -1 to 1.
    pub fn change_interval(&self, other: &Self) -> (f64, f64) {
        let count = self.len() as f64 + 2.0;
        let (gained, lost) = self.differing(other);
        let (sum, difference) = (gained + lost + 1.0, gained - lost);
        let reach = NORMAL_95 * (sum - difference * difference / count).sqrt() / count;
        ((difference / count - reach).max(-1.0), (difference / count + reach).min(1.0))
    }

    /// Images that only this model gets right, and images that only the other gets right.
    fn differing(&self, other: &Self) -> (f64, f64) {
        let pairs = || self.right.iter().zip(&other.right);
        let gained = pairs().filter(|(own, other)| **own && !**other).count() as f64;
        let lost = pairs().filter(|(own, other)| !**own && **other).count() as f64;
        (gained, lost)
    }

    /// Accuracy and mean loss.
    pub fn measured(&self) -> ModelAccuracy {
        let count = self.right.len().max(1) as f64;
        let right = self.right.iter().filter(|right| **right).count() as f64;
        ModelAccuracy {
            images: self.right.len() as u64,
            accuracy_ratio: right / count,
            loss: self.losses.iter().sum::<f64>() / count,
        }
    }

    /// Whether accuracy is significantly above guessing among this many classes. Always predicting the most frequent
    /// class is assumed to be right 1.5 times as often as 1 in `classes`, because classes are seldom equally frequent.
    pub fn knows_more_than_chance(&self, classes: usize) -> bool {
        let guess = (1.5 / classes.max(2) as f64).min(0.75);
        let count = self.right.len().max(1) as f64;
        self.measured().accuracy_ratio > guess + 2.0 * SIGNIFICANT * (guess * (1.0 - guess) / count).sqrt()
    }

    /// How much more accurate it is than another model, in standard errors; 0 if they do not differ.
    fn more_right(&self, other: &Self) -> f64 {
        let (gained, lost) = self.differing(other);
        if gained + lost > 0.0 { (gained - lost) / (gained + lost).sqrt() } else { 0.0 }
    }

    /// How much lower its loss is than another model's, in standard errors; 0 if they do not differ.
    fn less_loss(&self, other: &Self) -> f64 {
        let lower: Vec<f64> = self.losses.iter().zip(&other.losses).map(|(own, other)| other - own).collect();
        let count = lower.len() as f64;
        if count < 2.0 {
            return 0.0;
        }
        let mean = lower.iter().sum::<f64>() / count;
        let variance = lower.iter().map(|lower| (lower - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let error = (variance / count).sqrt();
        if error > 0.0 { mean / error } else { 0.0 }
    }

    /// Compares it with another model on the same images.
    pub fn judge(&self, other: &Self) -> HoldoutComparison {
        if !self.measured().loss.is_finite() {
            return HoldoutComparison::Worse;
        }
        let (right, loss) = (self.more_right(other), self.less_loss(other));
        match () {
            () if right >= SIGNIFICANT || right >= 0.0 && loss >= SIGNIFICANT => HoldoutComparison::Better,
            () if right <= -SIGNIFICANT || right <= 0.0 && loss <= -SIGNIFICANT => HoldoutComparison::Worse,
            () => HoldoutComparison::Level,
        }
    }

    /// Whether to keep this model of the two: the more accurate one, or of two equally accurate ones the one with the
    /// lower loss.
    pub fn is_preferred_to(&self, other: &Self) -> bool {
        let (own, best) = (self.measured().loss, other.measured().loss);
        let right = self.more_right(other);
        own.is_finite() && (right >= EQUAL || right > -EQUAL && own < best)
    }
}

/// 95 % confidence interval of a ratio that was measured over `count` cases (E. B. Wilson, 1927, without continuity
/// correction); both ends from 0 to 1.
pub fn ratio_interval(ratio: f64, count: u64) -> (f64, f64) {
    let count = count.max(1) as f64;
    let square = NORMAL_95 * NORMAL_95 / count;
    let middle = (ratio + square / 2.0) / (1.0 + square);
    let reach = NORMAL_95 / (1.0 + square) * (ratio * (1.0 - ratio) / count + square / (4.0 * count)).sqrt();
    ((middle - reach).max(0.0), (middle + reach).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Predictions on `count` images of two classes, of which `right` are correct, with confidence given by `margin`.
    fn scores(count: usize, right: usize, margin: f32) -> HoldoutScores {
        let mut scores = HoldoutScores::default();
        for image in 0..count {
            // Each a little different, as real images are.
            let margin = margin + (image % 7) as f32 * 0.01;
            scores.add(&[if image < right { margin } else { -margin }, 0.0], 0);
        }
        scores
    }

    #[test]
    fn accuracy_and_loss_match_the_scores() {
        let mut scores = HoldoutScores::default();
        scores.add(&[2.0, 0.0], 0);
        scores.add(&[2.0, 0.0], 1);
        let measured = scores.measured();
        assert_eq!((measured.images, measured.accuracy_ratio), (2, 0.5));
        let expected = ((1.0 + (-2.0_f64).exp()).ln() + (1.0 + 2.0_f64.exp()).ln()) / 2.0;
        assert!((measured.loss - expected).abs() < 1e-6, "{measured:?}");
    }

    #[test]
    fn higher_accuracy_wins_over_a_higher_loss_and_chance_does_not_count() {
        // 86.7 to 90 % of 300, with every mistake made more confidently.
        assert_eq!(scores(300, 270, 3.0).judge(&scores(300, 260, 2.0)), HoldoutComparison::Better);
        assert_eq!(scores(300, 260, 2.0).judge(&scores(300, 270, 3.0)), HoldoutComparison::Worse);
        assert_eq!(scores(30, 28, 2.0).judge(&scores(30, 27, 2.0)), HoldoutComparison::Level);
        assert_eq!(scores(300, 260, 2.0).judge(&scores(300, 260, 2.0)), HoldoutComparison::Level);
        assert_eq!(
            scores(300, 299, 3.0).judge(&scores(300, 299, 2.0)),
            HoldoutComparison::Better,
            "equally accurate, more confident"
        );
        let mut broken = scores(300, 290, 2.0);
        broken.add(&[f32::NAN, 0.0], 0);
        assert_eq!(broken.judge(&scores(301, 100, 2.0)), HoldoutComparison::Worse);
        assert!(!broken.is_preferred_to(&scores(301, 100, 2.0)));
    }

    #[test]
    fn a_lower_loss_with_lower_accuracy_is_not_better() {
        // Far less confident in its mistakes, and one mistake more.
        let (sure, unsure) = (scores(300, 260, 6.0), scores(300, 259, 1.5));
        assert!(unsure.measured().loss < sure.measured().loss);
        assert_eq!(unsure.judge(&sure), HoldoutComparison::Level);
        assert_eq!(scores(300, 260, 1.5).judge(&sure), HoldoutComparison::Better, "equally accurate");
    }

    #[test]
    fn intervals_match_their_sources() {
        // Wilson's interval for 81 of 263, as R's binom.confint gives it.
        let (low, high) = scores(263, 81, 1.0).accuracy_interval();
        assert!((low - 0.2553).abs() < 2e-4 && (high - 0.3662).abs() < 2e-4, "{low} to {high}");
        assert!(scores(20, 20, 1.0).accuracy_interval().0 < 0.9, "20 of 20 does not prove 100 %");
        // Agresti and Min's own example: 1,600 asked twice, 944 for the first, 880 for the second, 150 and 86 changed.
        let (mut first, mut second) = (HoldoutScores::default(), HoldoutScores::default());
        for (count, is_first, is_second) in
            [(794, true, true), (150, true, false), (86, false, true), (570, false, false)]
        {
            for _ in 0..count {
                first.push(is_first, 0.0);
                second.push(is_second, 0.0);
            }
        }
        let (low, high) = first.change_interval(&second);
        assert!((low - 0.0212).abs() < 5e-4 && (high - 0.0587).abs() < 5e-4, "{low} to {high}");
        let (low, high) = first.change_interval(&first);
        assert!(low < 0.0 && high > 0.0, "few images without a difference prove nothing");
    }

    proptest! {
        #[test]
        fn the_comparison_is_irreflexive_and_asymmetric(
            a in prop::collection::vec((-5f32..5.0, -5f32..5.0), 2..60),
            shift in -3f32..3.0,
        ) {
            let (mut own, mut other) = (HoldoutScores::default(), HoldoutScores::default());
            for (x, y) in a {
                own.add(&[x, y], 0);
                other.add(&[x + shift * y, y], 0);
            }
            prop_assert_eq!(own.judge(&own), HoldoutComparison::Level);
            prop_assert!(!own.is_preferred_to(&own));
            prop_assert!(!(own.judge(&other) == HoldoutComparison::Better && other.judge(&own) == HoldoutComparison::Better));
            prop_assert!(!(own.is_preferred_to(&other) && other.is_preferred_to(&own)));
        }
    }
}
