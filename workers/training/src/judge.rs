//! Whether a model became better: what two of them say about the same images held out. Pure.
//!
//! Both are asked about the same images, so only those count on which they differ: McNemar's test for what is right, a
//! paired difference for the loss. What one image more or less would turn is no difference.

use schemas::Measured;

/// Standard errors from which a difference is more than chance: one-sided, 95 of 100.
const CLEAR: f64 = 1.645;
/// Standard errors within which two models are as right as each other.
const LEVEL: f64 = 1.0;

/// What a model says about the images held out, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HoldoutScores {
    right: Vec<bool>,
    losses: Vec<f64>,
}

/// How one model compares with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldoutComparison {
    /// More right by more than chance; or as right, with a lower loss by more than chance.
    Better,
    /// Neither.
    Level,
    /// The other way round.
    Worse,
}

impl HoldoutScores {
    /// Adds an image. `scores`: one logit a class.
    pub fn add(&mut self, scores: &[f32], class: usize) {
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = scores.iter().map(|score| f64::from(score - highest).exp()).sum();
        let own = scores.get(class).copied().unwrap_or(f32::NAN);
        self.losses.push(sum.ln() - f64::from(own - highest));
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(place, _)| place);
        self.right.push(best == Some(class));
    }

    /// In two numbers.
    pub fn measured(&self) -> Measured {
        let count = self.right.len().max(1) as f64;
        let right = self.right.iter().filter(|right| **right).count() as f64;
        Measured {
            images: self.right.len() as u64,
            accuracy_ratio: right / count,
            loss: self.losses.iter().sum::<f64>() / count,
        }
    }

    /// Whether more is right than a guess among so many classes would be, by more than chance. Always
    /// saying the most frequent class is taken to be right half as often again as one in so many, for classes are seldom
    /// alike in number.
    pub fn knows_more_than_chance(&self, classes: usize) -> bool {
        let guess = (1.5 / classes.max(2) as f64).min(0.75);
        let count = self.right.len().max(1) as f64;
        self.measured().accuracy_ratio > guess + 2.0 * CLEAR * (guess * (1.0 - guess) / count).sqrt()
    }

    /// How much more is right than with another model, in standard errors; 0 where none differs.
    fn more_right(&self, other: &Self) -> f64 {
        let pairs = || self.right.iter().zip(&other.right);
        let gained = pairs().filter(|(own, other)| **own && !**other).count() as f64;
        let lost = pairs().filter(|(own, other)| !**own && **other).count() as f64;
        if gained + lost > 0.0 { (gained - lost) / (gained + lost).sqrt() } else { 0.0 }
    }

    /// How much lower the loss is than with another model, in standard errors; 0 where none differs.
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

    /// Holds it against what another model says about the same images.
    pub fn judge(&self, other: &Self) -> HoldoutComparison {
        if !self.measured().loss.is_finite() {
            return HoldoutComparison::Worse;
        }
        let (right, loss) = (self.more_right(other), self.less_loss(other));
        match () {
            () if right >= CLEAR || right > -LEVEL && loss >= CLEAR => HoldoutComparison::Better,
            () if right <= -CLEAR || right < LEVEL && loss <= -CLEAR => HoldoutComparison::Worse,
            () => HoldoutComparison::Level,
        }
    }

    /// Whether it is the one to keep of the two: the one that is more right, and of two that are as right as each other that
    /// with the lower loss.
    pub fn is_preferred_to(&self, other: &Self) -> bool {
        let (own, best) = (self.measured().loss, other.measured().loss);
        let right = self.more_right(other);
        own.is_finite() && (right >= LEVEL || right > -LEVEL && own < best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// So many images of two classes, of which some are right, each as sure as `margin` says.
    fn scores(count: usize, right: usize, margin: f32) -> HoldoutScores {
        let mut scores = HoldoutScores::default();
        for image in 0..count {
            // A little different each, as images are.
            let margin = margin + (image % 7) as f32 * 0.01;
            scores.add(&[if image < right { margin } else { -margin }, 0.0], 0);
        }
        scores
    }

    #[test]
    fn accuracy_and_loss_are_those_of_the_scores() {
        let mut scores = HoldoutScores::default();
        scores.add(&[2.0, 0.0], 0);
        scores.add(&[2.0, 0.0], 1);
        let measured = scores.measured();
        assert_eq!((measured.images, measured.accuracy_ratio), (2, 0.5));
        let expected = ((1.0 + (-2.0_f64).exp()).ln() + (1.0 + 2.0_f64.exp()).ln()) / 2.0;
        assert!((measured.loss - expected).abs() < 1e-6, "{measured:?}");
    }

    #[test]
    fn more_right_counts_though_the_loss_is_higher_and_chance_counts_nothing() {
        // 86.7 to 90 % of 300, and each mistake made with more certainty.
        assert_eq!(scores(300, 270, 3.0).judge(&scores(300, 260, 2.0)), HoldoutComparison::Better);
        assert_eq!(scores(300, 260, 2.0).judge(&scores(300, 270, 3.0)), HoldoutComparison::Worse);
        assert_eq!(scores(30, 28, 2.0).judge(&scores(30, 27, 2.0)), HoldoutComparison::Level);
        assert_eq!(scores(300, 260, 2.0).judge(&scores(300, 260, 2.0)), HoldoutComparison::Level);
        assert_eq!(
            scores(300, 299, 3.0).judge(&scores(300, 299, 2.0)),
            HoldoutComparison::Better,
            "as right, and surer"
        );
        let mut broken = scores(300, 290, 2.0);
        broken.add(&[f32::NAN, 0.0], 0);
        assert_eq!(broken.judge(&scores(301, 100, 2.0)), HoldoutComparison::Worse);
        assert!(!broken.is_preferred_to(&scores(301, 100, 2.0)));
    }

    proptest! {
        #[test]
        fn nobody_is_better_than_himself_and_two_are_never_better_than_each_other(
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
