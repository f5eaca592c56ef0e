//! Learns from verdicts: for each label the lowest threshold that still meets the target, and the
//! temperature at which the model's confidence is right. Pure.
//!
//! Every answer is counted by label and confidence; verified answers (all doubtful ones, and a
//! random sample of the confident) also by whether the cloud agreed. So the accuracy of each bin is known with
//! the uncertainty of its own sample, and the bins are weighted by the number of answers in them
//! (stratified sampling: Cochran, Sampling Techniques, chapter 5). A bin's accuracy is the posterior of a
//! uniform prior, so a bin without evidence counts as right half the time.

use std::collections::BTreeMap;

use schemas::decision_trace::CloudGain;
use schemas::{AgreementCount, Prediction, RankedClass, RecentVerdicts};
use serde::{Deserialize, Serialize};

/// Bins of confidence: 0 to 1 in steps of 0.04.
pub const BINS: usize = 25;
/// One-sided 95 % of the normal distribution.
const Z: f64 = 1.645;
/// A label with fewer verdicts than this uses the evidence of all labels together.
const MIN_VERDICTS: u64 = 30;
/// Newest samples kept for the temperature.
const MAX_SAMPLES: usize = 400;
/// Labels counted individually; all others are counted together.
const MAX_LABELS: usize = 500;

/// Counts of one bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfidenceBin {
    /// Answers counted.
    pub seen: u64,
    /// How many of those were verified.
    pub verified: u64,
    /// How many of the verified ones agree with the cloud.
    pub right: u64,
}

impl ConfidenceBin {
    /// Saturating: counts come from a note that anybody at the site may have written.
    fn add(&mut self, more: &Self) {
        self.seen = self.seen.saturating_add(more.seen);
        self.verified = self.verified.saturating_add(more.verified);
        self.right = self.right.saturating_add(more.right);
    }
}

/// The sum of one count over several bins.
fn total<'a>(bins: impl IntoIterator<Item = &'a ConfidenceBin>, count: fn(&ConfidenceBin) -> u64) -> u64 {
    bins.into_iter().map(count).fold(0, u64::saturating_add)
}

/// Counts by confidence.
pub type ConfidenceBins = [ConfidenceBin; BINS];

/// The scores of a verified answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationSample {
    /// Logits of the best classes, best first, up to a constant.
    logits: Vec<f32>,
    /// Logit of each other class, as if all were equal; absent if there is none.
    rest: Option<f32>,
    /// Number of other classes.
    others: u32,
    /// Index of the right class among the best; absent: it is another.
    right: Option<u8>,
    /// Bin of the answer.
    bin: u8,
}

/// The counts for one release, saved so that they survive a restart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CalibrationEvidence {
    /// Counts by label.
    pub labels: BTreeMap<String, ConfidenceBins>,
    /// Samples for the temperature, oldest first.
    pub samples: Vec<CalibrationSample>,
}

/// What follows from the evidence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibration {
    /// Lowest confidence of a confident answer, by label; above 1 everything is doubtful.
    pub thresholds: BTreeMap<String, f32>,
    /// The same for labels without enough evidence of their own.
    pub pooled: f32,
    /// Temperature at which confidence equals accuracy; absent without enough evidence.
    pub temperature: Option<f32>,
    /// Expected share of answers that are confident.
    pub stays_ratio: f64,
    /// Accuracy that holds with 95 % certainty.
    pub accuracy_at_least: f64,
    /// Verdicts it rests on.
    pub verdicts: u64,
}

/// What recent verdicts teach about asking the cloud; `None` before there are enough of either kind.
pub fn cloud_gain(verdicts: &RecentVerdicts) -> Option<CloudGain> {
    // The posterior mean of a uniform prior: it takes a hundred verdicts without a change to gain less than a point.
    let points = |count: AgreementCount| {
        let changed = count.asked.saturating_sub(count.agreed) as f64;
        (count.asked >= MIN_VERDICTS).then(|| 100.0 * (changed + 1.0) / (count.asked as f64 + 2.0))
    };
    let gain = CloudGain { doubtful_points: points(verdicts.doubtful), confident_points: points(verdicts.sampled) };
    (gain != CloudGain::default()).then_some(gain)
}

/// The bin of a confidence.
pub fn bin(confidence: f32) -> usize {
    ((f64::from(confidence.clamp(0.0, 1.0)) * BINS as f64) as usize).min(BINS - 1)
}

/// The confidence of the best class under another temperature. `ranked` are the best
/// classes under `from`, of `classes` in total; the others share the rest equally.
pub fn rescaled(ranked: &[RankedClass], classes: usize, from: f32, to: f32) -> f32 {
    let sample = CalibrationSample::of(ranked, classes, from, None, 0);
    sample.ratios(to).first().copied().unwrap_or(0.0)
}

impl CalibrationSample {
    fn of(ranked: &[RankedClass], classes: usize, temperature: f32, right: Option<&str>, bin: usize) -> Self {
        const SMALLEST: f32 = 1e-7;
        let logit = |ratio: f32| ratio.max(SMALLEST).ln() * temperature;
        let others = classes.saturating_sub(ranked.len());
        let left = (1.0 - ranked.iter().map(|ranked| ranked.confidence).sum::<f32>()).max(0.0);
        Self {
            logits: ranked.iter().map(|ranked| logit(ranked.confidence)).collect(),
            rest: (others > 0).then(|| logit(left / others as f32)),
            others: u32::try_from(others).unwrap_or(u32::MAX),
            right: right.and_then(|right| ranked.iter().position(|ranked| ranked.label == right)).map(|at| at as u8),
            bin: bin as u8,
        }
    }

    /// Probabilities of the best classes, then of one of the others, under a temperature.
    fn ratios(&self, temperature: f32) -> Vec<f32> {
        let most = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |logit: f32| ((logit - most) / temperature).exp();
        let rest = self.rest.map_or(0.0, weigh);
        let sum: f32 = self.logits.iter().map(|logit| weigh(*logit)).sum::<f32>() + rest * self.others as f32;
        self.logits.iter().map(|logit| weigh(*logit) / sum).chain([rest / sum]).collect()
    }

    /// Negative log-likelihood of the right class.
    fn loss(&self, temperature: f32) -> f64 {
        let ratios = self.ratios(temperature);
        let ratio = self.right.map_or(ratios.last(), |right| ratios.get(usize::from(right)));
        -f64::from(ratio.copied().unwrap_or(0.0).max(1e-7)).ln()
    }
}

impl CalibrationEvidence {
    /// The evidence for the next release: a quarter of this, so that a little of its own outweighs it.
    pub fn decayed(&self) -> Self {
        const SHARE: u64 = 4;
        let decay = |bin: &ConfidenceBin| ConfidenceBin {
            seen: bin.seen / SHARE,
            verified: bin.verified / SHARE,
            right: bin.right / SHARE,
        };
        let labels = self.labels.iter().map(|(label, bins)| (label.clone(), bins.each_ref().map(decay)));
        let samples = self.samples.iter().skip(self.samples.len() - self.samples.len() / SHARE as usize);
        Self { labels: labels.collect(), samples: samples.cloned().collect() }
    }

    /// The bin `place` of a label; beyond [`MAX_LABELS`], labels share one.
    #[expect(clippy::indexing_slicing, reason = "the place is at most that of the last bin")]
    fn bin_of(&mut self, label: &str, place: usize) -> &mut ConfidenceBin {
        let known = self.labels.contains_key(label) || self.labels.len() < MAX_LABELS;
        let bins = self.labels.entry(if known { label.to_owned() } else { String::new() }).or_default();
        &mut bins[place.min(BINS - 1)]
    }

    /// Counts an answer. `confidence` is under the gate's own temperature.
    pub fn add_answer(&mut self, label: &str, confidence: f32) {
        let seen = &mut self.bin_of(label, bin(confidence)).seen;
        *seen = seen.saturating_add(1);
    }

    /// Counts a verdict with the label `right`, and whether `edge` agrees with it. `edge` was predicted under its own
    /// temperature, or else under `temperature`, by a model of `classes` classes; the gate's temperature is
    /// `temperature`. Of a detector, what it is [least sure](Prediction::least_sure) of is counted, as the gate tests it;
    /// it has no temperature, because what it is sure of is no share of a whole.
    pub fn add_verdict(&mut self, edge: &Prediction, right: &str, is_agreed: bool, classes: usize, temperature: f32) {
        let verified = ConfidenceBin { seen: 0, verified: 1, right: u64::from(is_agreed) };
        if let Some((label, confidence)) = edge.least_sure() {
            self.bin_of(label, bin(confidence)).add(&verified);
            return;
        }
        let own = edge.temperature.unwrap_or(temperature);
        let place = bin(rescaled(&edge.top, classes, own, temperature));
        self.bin_of(&edge.label, place).add(&verified);
        self.samples.push(CalibrationSample::of(&edge.top, classes, own, Some(right), place));
        let surplus = self.samples.len().saturating_sub(MAX_SAMPLES);
        self.samples.drain(..surplus);
    }

    /// Adds evidence that was counted elsewhere.
    pub fn add(&mut self, more: &CalibrationEvidence) {
        for (label, bins) in &more.labels {
            for (place, other) in bins.iter().enumerate() {
                let own = self.bin_of(label, place);
                own.add(other);
            }
        }
        self.samples.extend(more.samples.iter().cloned());
        let surplus = self.samples.len().saturating_sub(MAX_SAMPLES);
        self.samples.drain(..surplus);
    }

    /// The calibration for a target: the accuracy, with verdicts taken as right, that final answers must
    /// reach for each label with 95 % certainty.
    pub fn calibration(&self, target_ratio: f64) -> Calibration {
        let mut pool = ConfidenceBins::default();
        for bins in self.labels.values() {
            add(&mut pool, bins);
        }
        let pooled = lowest_bin(&pool, target_ratio);
        let (mut thresholds, mut stays, mut seen, mut floor) = (BTreeMap::new(), 0_u64, 0_u64, 0.0);
        for (label, bins) in &self.labels {
            let enough = total(bins, |bin| bin.verified) >= MIN_VERDICTS;
            let first = if enough { lowest_bin(bins, target_ratio) } else { pooled };
            if enough && !label.is_empty() {
                thresholds.insert(label.clone(), lower_edge(first));
            }
            let all = total(bins, |bin| bin.seen);
            stays = stays.saturating_add(total(bins.iter().skip(first), |bin| bin.seen));
            seen = seen.saturating_add(all);
            floor += guaranteed_accuracy(bins, first) * all as f64;
        }
        let verdicts = total(&pool, |bin| bin.verified);
        let share = |part: f64| if seen == 0 { 0.0 } else { part / seen as f64 };
        Calibration {
            thresholds,
            pooled: lower_edge(pooled),
            temperature: (self.samples.len() as u64 >= MIN_VERDICTS).then(|| self.temperature(&pool)),
            stays_ratio: share(stays as f64),
            accuracy_at_least: share(floor),
            verdicts,
        }
    }

    /// The temperature with the smallest log loss, each sample weighted by the number of answers it represents.
    fn temperature(&self, pool: &ConfidenceBins) -> f32 {
        let weight = |sample: &CalibrationSample| {
            let bin = pool.get(usize::from(sample.bin)).copied().unwrap_or_default();
            bin.seen.max(1) as f64 / bin.verified.max(1) as f64
        };
        let loss = |temperature: f32| -> f64 {
            self.samples.iter().map(|sample| weight(sample) * sample.loss(temperature)).sum()
        };
        // The loss has one minimum over the logarithm of the temperature: golden-section search.
        let (mut low, mut high) = (0.25_f32.ln(), 4.0_f32.ln());
        const GOLDEN: f32 = 0.618_034;
        for _ in 0..24 {
            let (left, right) = (high - (high - low) * GOLDEN, low + (high - low) * GOLDEN);
            if loss(left.exp()) < loss(right.exp()) { high = right } else { low = left }
        }
        ((low + high) / 2.0).exp()
    }
}

fn add(bins: &mut ConfidenceBins, more: &ConfidenceBins) {
    bins.iter_mut().zip(more).for_each(|(own, other)| own.add(other));
}

/// The lower edge of a bin; above 1 for none.
fn lower_edge(first: usize) -> f32 {
    if first >= BINS { 1.01 } else { first as f32 / BINS as f32 }
}

/// The accuracy that holds with 95 % certainty if everything below a bin is verified and the rest is not.
fn guaranteed_accuracy(bins: &ConfidenceBins, first: usize) -> f64 {
    let all = total(bins, |bin| bin.seen);
    if all == 0 {
        return 0.0;
    }
    let (mut accuracy, mut variance) = (0.0, 0.0);
    for (number, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.seen > 0) {
        let share = bin.seen as f64 / all as f64;
        if number < first {
            accuracy += share;
            continue;
        }
        // No more can be right than were verified, whatever a note claims.
        let (right, verified) = (bin.right.min(bin.verified) as f64, bin.verified as f64);
        let mean = (right + 1.0) / (verified + 2.0);
        accuracy += share * mean;
        variance += share * share * mean * (1.0 - mean) / (verified + 3.0);
    }
    accuracy - Z * variance.sqrt()
}

/// The lowest bin from which on answers may be confident; `BINS` for none.
fn lowest_bin(bins: &ConfidenceBins, target_ratio: f64) -> usize {
    (0..=BINS).rev().take_while(|first| guaranteed_accuracy(bins, *first) >= target_ratio).last().unwrap_or(BINS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use schemas::DetectedObject;

    use super::*;

    fn ranked(confidence: f32) -> Vec<RankedClass> {
        let of = |label: &str, confidence| RankedClass { label: label.into(), confidence };
        vec![of("cat", confidence), of("dog", 1.0 - confidence)]
    }

    fn prediction(confidence: f32) -> Prediction {
        let release = schemas::ReleaseId::from_sha256([1; 32]);
        Prediction {
            label: "cat".into(),
            confidence,
            top: ranked(confidence),
            labels: None,
            objects: None,
            release,
            temperature: Some(1.0),
            novelty: None,
        }
    }

    /// Evidence of a model that is right with probability `confidence.powf(sharp)`, all answers verified.
    fn evidence(answers: u64, sharp: f64) -> CalibrationEvidence {
        let mut evidence = CalibrationEvidence::default();
        for number in 0..answers {
            let confidence = 0.5 + 0.5 * (number % 100) as f32 / 100.0;
            evidence.add_answer("cat", confidence);
            let right =
                ((number / 100 * 7919 + number * 104_729) % 1000) as f64 / 1000.0 < f64::from(confidence).powf(sharp);
            evidence.add_verdict(&prediction(confidence), if right { "cat" } else { "dog" }, right, 2, 1.0);
        }
        evidence
    }

    #[test]
    fn a_detectors_verdicts_count_by_what_it_is_least_sure_of_and_fit_no_temperature() {
        let object = |label: &str, confidence| DetectedObject {
            label: label.to_owned(),
            confidence,
            bounds: [0.0, 0.0, 0.5, 0.5].into(),
        };
        let detected = |objects| Prediction { objects: Some(objects), ..prediction(0.85) };
        let mut evidence = CalibrationEvidence::default();
        let two = detected(vec![object("cat", 0.85), object("dog", 0.45)]);
        evidence.add_verdict(&two, "cat", true, 2, 1.0);
        evidence.add_verdict(&two, "cat", false, 2, 1.0);
        let empty = Prediction { label: "none".into(), top: Vec::new(), ..detected(Vec::new()) };
        evidence.add_verdict(&empty, "cat", false, 2, 1.0);
        let counted = |label: &str, confidence| {
            let bin = evidence.labels[label][bin(confidence)];
            (bin.verified, bin.right)
        };
        assert_eq!((counted("dog", 0.45), counted("none", 0.85)), ((2, 1), (1, 0)));
        assert!(!evidence.labels.contains_key("cat"), "the surest object is not what the gate tests");
        assert!(evidence.samples.is_empty());
    }

    #[test]
    fn the_clouds_gain_is_the_share_of_verdicts_that_changed_an_answer() {
        let count = |asked, agreed| AgreementCount { asked, agreed };
        let gain = |doubtful, sampled| cloud_gain(&RecentVerdicts { doubtful, sampled });
        assert_eq!(gain(count(29, 0), count(0, 0)), None, "too few");
        let known = gain(count(98, 79), count(29, 29)).unwrap();
        assert_eq!((known.doubtful_points, known.confident_points), (Some(20.0), None));
        let sure = |asked| gain(count(0, 0), count(asked, asked)).unwrap().confident_points.unwrap();
        assert!(sure(30) > 3.0 && sure(98) <= 1.0, "few verdicts without a change prove little");
        let odd = gain(count(30, u64::MAX), count(u64::MAX, 0)).unwrap();
        assert!(odd.doubtful_points.unwrap() < 4.0 && odd.confident_points.unwrap() <= 100.0, "{odd:?}");
    }

    #[test]
    fn without_evidence_everything_is_doubtful() {
        let calibration = CalibrationEvidence::default().calibration(0.9);
        assert!(calibration.pooled > 1.0 && calibration.thresholds.is_empty() && calibration.temperature.is_none());
    }

    #[test]
    fn a_higher_target_verifies_more_and_is_met() {
        let evidence = evidence(20_000, 1.0);
        let mut before = 2.0;
        for target in [0.8, 0.9, 0.95, 0.99] {
            let calibration = evidence.calibration(target);
            assert!(calibration.accuracy_at_least >= target, "{target}: {calibration:?}");
            assert!(calibration.stays_ratio < before, "{target}: {calibration:?}");
            before = calibration.stays_ratio;
        }
    }

    #[test]
    fn little_evidence_is_trusted_less_than_much() {
        let (few, many) = (evidence(200, 0.2).calibration(0.9), evidence(20_000, 0.2).calibration(0.9));
        assert!(few.stays_ratio <= many.stays_ratio, "{few:?} against {many:?}");
    }

    #[test]
    fn an_overconfident_model_gets_a_higher_temperature() {
        let honest = evidence(5000, 1.0).calibration(0.9).temperature.unwrap();
        let overconfident = evidence(5000, 3.0).calibration(0.9).temperature.unwrap();
        assert!((0.85..1.2).contains(&honest), "{honest}");
        assert!(overconfident > 1.3, "{overconfident}");
    }

    #[test]
    fn separate_evidence_adds_up() {
        let (mut both, whole) = (evidence(300, 1.0), evidence(300, 1.0));
        both.add(&whole);
        assert_eq!(both.labels["cat"].iter().map(|bin| bin.seen).sum::<u64>(), 600);
        assert!(both.samples.len() <= MAX_SAMPLES);
    }

    #[test]
    fn impossible_counts_do_no_harm() {
        let mut evidence = CalibrationEvidence::default();
        let absurd = ConfidenceBin { seen: u64::MAX, verified: 3, right: u64::MAX };
        evidence.labels.insert("cat".into(), [absurd; BINS]);
        evidence.labels.insert("dog".into(), [absurd; BINS]);
        let calibration = evidence.calibration(0.9);
        assert!(calibration.accuracy_at_least.is_finite() && calibration.stays_ratio.is_finite(), "{calibration:?}");
        let again = evidence.clone();
        evidence.add(&again);
        assert_eq!(evidence.labels["cat"][0].seen, u64::MAX);
    }

    #[test]
    fn the_evidence_fits_a_ledger_note() {
        let mut evidence = evidence(1000, 1.0);
        (0..2000).for_each(|number| evidence.add_answer(&format!("label-{number}"), 0.5));
        let size = serde_json::to_vec(&evidence).unwrap().len();
        assert!(size < 1024 * 1024, "{size} bytes");
    }

    proptest! {
        #[test]
        fn rescaling_to_the_same_temperature_changes_nothing(confidence in 0.5_f32..0.999, temperature in 0.5_f32..3.0) {
            let same = rescaled(&ranked(confidence), 2, temperature, temperature);
            prop_assert!((same - confidence).abs() < 1e-4);
            let other = rescaled(&ranked(confidence), 2, 1.0, 2.0);
            prop_assert!(other <= confidence + 1e-4, "a higher temperature lowers confidence");
        }

        #[test]
        fn the_target_is_met_or_everything_is_doubtful(
            bins in prop::collection::vec((0_u64..2000, 0_u64..200, 0_u64..200), BINS), target in 0.5_f64..0.999,
        ) {
            let mut evidence = CalibrationEvidence::default();
            let counted = bins.iter().map(|(seen, verified, right)| {
                let verified = (*verified).min(*seen);
                ConfidenceBin { seen: *seen, verified, right: (*right).min(verified) }
            });
            let counted: Vec<ConfidenceBin> = counted.collect();
            evidence.labels.insert("cat".into(), counted.try_into().unwrap());
            let calibration = evidence.calibration(target);
            let all_up = calibration.stays_ratio == 0.0;
            prop_assert!(all_up || calibration.accuracy_at_least >= target - 1e-9, "{calibration:?}");
        }
    }
}
