//! The measures of a release, and how certain one slot of one site is of each. Pure.

use schemas::CanaryMeasure;
use schemas::swap::{AgreementCount, MomentSums};

use crate::evidence::EvidenceCell;

/// 1 where more is better, -1 where less is.
pub(super) fn sign(measure: CanaryMeasure) -> f64 {
    match measure {
        CanaryMeasure::Agreement | CanaryMeasure::Confidence => 1.0,
        CanaryMeasure::SentUp | CanaryMeasure::Cost | CanaryMeasure::Faults => -1.0,
    }
}

/// The value in one cell, given the spread of single images; `None` if the cell has too little data.
pub(super) fn read_value(measure: CanaryMeasure, cell: &EvidenceCell, spread: MeasureSpread) -> Option<MeasureValue> {
    let plain = |sum: f64, count: u64| {
        let images = count as f64;
        (count > 0).then(|| MeasureValue { mean: sum / images, count: images, variance: spread.of_one / images })
    };
    match measure {
        CanaryMeasure::Agreement => agreement(cell, spread),
        CanaryMeasure::SentUp => plain(cell.doubtful as f64, cell.images),
        CanaryMeasure::Confidence => plain(cell.confidence.sum, cell.confidence.count),
        CanaryMeasure::Cost => plain(cell.ln_cost_ms.sum, cell.ln_cost_ms.count),
        CanaryMeasure::Faults => plain(cell.faults as f64, cell.images + cell.faults),
    }
}

/// A measure in one cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MeasureValue {
    /// Estimated mean.
    pub mean: f64,
    /// Images, or verdicts on sampled images, that it rests on; above 0.
    pub count: f64,
    /// Variance of the estimate, assuming images share nothing but their site and hour.
    pub variance: f64,
}

/// Variance of one image or verdict, pooled over the cells of one release, because a few images of one site say too
/// little: three out of three are not certain.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct MeasureSpread {
    /// Variance of the measure; for agreement, on sampled images.
    of_one: f64,
    /// Variance of agreement on doubtful images.
    of_doubtful: f64,
    /// The shares behind these, where the measure is a share.
    shares: [f64; 2],
}

impl MeasureSpread {
    /// Pooled over the cells of one release. `margin`: counts as one more value that far off, as a variance is never 0.
    pub(super) fn of<'a>(
        measure: CanaryMeasure,
        cells: impl Iterator<Item = &'a EvidenceCell> + Clone,
        margin: f64,
    ) -> Self {
        let mut all = EvidenceCell::default();
        cells.clone().for_each(|cell| all.add(cell));
        let of_values = |of: fn(&EvidenceCell) -> &MomentSums| Self {
            of_one: within(cells.clone().map(of), margin),
            ..Self::default()
        };
        let of_agreed = |agreed: AgreementCount| smoothed(agreed.agreed, agreed.asked);
        match measure {
            CanaryMeasure::Agreement => Self::of_shares([of_agreed(all.on_sampled), of_agreed(all.on_doubtful)]),
            CanaryMeasure::SentUp => Self::of_shares([smoothed(all.doubtful, all.images), 0.0]),
            CanaryMeasure::Faults => Self::of_shares([smoothed(all.faults, all.images + all.faults), 0.0]),
            CanaryMeasure::Confidence => of_values(|cell| &cell.confidence),
            CanaryMeasure::Cost => of_values(|cell| &cell.ln_cost_ms),
        }
    }

    fn of_shares(shares: [f64; 2]) -> Self {
        let [of_one, of_doubtful] = shares.map(|share| share * (1.0 - share));
        Self { of_one, of_doubtful, shares }
    }

    /// The spread to use for a canary; `self`, its own, is not used alone. A lucky canary would seem certain to be
    /// good, and one that fails half of the time would seem to vary too much to be judged. Both hypotheses are about
    /// the stable release, so a share varies as it would half a margin below stable, which makes the odds nearly those
    /// of the exact test. Where a measure is not a plain share, the larger of both is used.
    pub(super) fn since(self, measure: CanaryMeasure, stable: Self, margin: f64) -> Self {
        let worse = |share: f64| (share - sign(measure) * margin / 2.0).clamp(0.0, 1.0);
        let between = Self::of_shares(stable.shares.map(worse));
        let larger = |other: Self| Self {
            of_one: self.of_one.max(other.of_one),
            of_doubtful: self.of_doubtful.max(other.of_doubtful),
            ..self
        };
        match measure {
            CanaryMeasure::SentUp | CanaryMeasure::Faults => between,
            CanaryMeasure::Agreement => larger(between),
            CanaryMeasure::Confidence | CanaryMeasure::Cost => larger(stable),
        }
    }
}

/// A share with one made-up hit and one miss (Laplace): for variances, never for a mean.
fn smoothed(hit: u64, count: u64) -> f64 {
    (hit as f64 + 1.0) / (count as f64 + 2.0)
}

/// Variance within cells, ignoring differences between them.
fn within<'a>(cells: impl Iterator<Item = &'a MomentSums>, margin: f64) -> f64 {
    let (mut squares, mut free) = (margin * margin, 1.0);
    for cell in cells.filter(|cell| cell.count > 0) {
        let count = cell.count as f64;
        squares += (cell.squares - cell.sum * cell.sum / count).max(0.0);
        free += count - 1.0;
    }
    squares / free
}

/// Agreement on all images, from verdicts on all doubtful ones and on a few of the others (post-stratified: Cochran,
/// Sampling Techniques, section 5A.9): `w_d p_d + w_s p_s`, where `w` is the share of the images and `p` the share of
/// the verdicts that agree. Its variance is `w_d² v_d / n_d + w_s² v_s / n_s + (p_d - p_s)² w_d w_s / images`; the last
/// term because the shares are estimated too. `None` without verdicts on sampled images: verdicts on doubtful ones
/// alone would pass a release that is wrong and confident.
fn agreement(cell: &EvidenceCell, spread: MeasureSpread) -> Option<MeasureValue> {
    let (images, sampled, doubtful) = (cell.images as f64, cell.on_sampled, cell.on_doubtful);
    if cell.images == 0 || sampled.asked == 0 || (cell.doubtful > 0 && doubtful.asked == 0) {
        return None;
    }
    let in_doubt = (cell.doubtful as f64 / images).min(1.0);
    let sure = 1.0 - in_doubt;
    let share = |agreed: AgreementCount| agreed.agreed as f64 / agreed.asked.max(1) as f64;
    let (of_doubtful, of_sampled) = (share(doubtful), share(sampled));
    let between = if in_doubt > 0.0 { (of_doubtful - of_sampled).powi(2) * in_doubt * sure / images } else { 0.0 };
    Some(MeasureValue {
        mean: in_doubt * of_doubtful + sure * of_sampled,
        count: sampled.asked as f64,
        variance: in_doubt.powi(2) * spread.of_doubtful / doubtful.asked.max(1) as f64
            + sure.powi(2) * spread.of_one / sampled.asked as f64
            + between,
    })
}
