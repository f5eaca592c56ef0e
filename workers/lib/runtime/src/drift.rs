//! Detects drift: recent answers that differ from the first ones.
//!
//! Takes a few numbers about each answer and yields one distance and one level for each measure, shown in heartbeats.
//! The reference is the first answers of a release at a site, saved in the ledger so that a restart starts no new one
//! ([`DriftWatch`]); the recent window slides. Both are limited in size.
//!
//! The distance of confidence and of novelty is the largest difference between the two cumulative distributions
//! (Kolmogorov-Smirnov); Rabanser et al., "Failing Loudly" (arXiv 1810.11953) found it the best of the detectors they
//! tried on a classifier's outputs. It must exceed what chance explains, a difference that matters, and the variation
//! within the reference: spans of it as long as the recent window differ from the whole without anything being
//! wrong. Agreement with verdicts alarms when it falls, by the same rules with the normal approximation for two shares.
//! Decision 0032 has the rates of false alarms.

use std::collections::VecDeque;

use schemas::{DriftLevel, DriftMeasure, DriftReport, ReleaseId};
use serde::{Deserialize, Serialize};

mod watch;

pub use watch::{DriftKind, DriftWatch, reference_note};

/// Bins of a histogram; a distance is exact to the share of answers in one bin.
const BINS: usize = 64;
/// Most spans of a reference; a ledger note must hold them.
const MAX_SPANS: u32 = 64;
/// Probability of a false `watch` at one evaluation of a window of steady traffic; and of a false `alarm`.
const WATCH_CHANCE: f64 = 1e-4;
const ALARM_CHANCE: f64 = 1e-6;
/// Smallest relevant distances, however significant: a tenth of the answers, and a fifth.
const WATCH_DISTANCE: f64 = 0.1;
const ALARM_DISTANCE: f64 = 0.2;
/// The same for the fall of agreement, where each percent is a percent more wrong answers.
const WATCH_FALL: f64 = 0.05;
const ALARM_FALL: f64 = 0.1;
/// Standard deviations that correspond to the probabilities above.
const WATCH_DEVIATIONS: f64 = 3.9;
const ALARM_DEVIATIONS: f64 = 4.9;

/// Sizes of the two windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriftSettings {
    /// Answers of a release that make up its reference, 100 to 1,000,000 and at least twice `recent_answers`. Later
    /// answers that differ from them count as drift, so they should cover normal variation: where nights differ from
    /// days, a whole day's worth.
    pub reference_answers: u32,
    /// Latest answers that are compared with the reference, 50 to 10,000.
    pub recent_answers: u32,
}

impl Default for DriftSettings {
    fn default() -> Self {
        Self { reference_answers: 2000, recent_answers: 500 }
    }
}

impl DriftSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// A sentence with the key, the value and its range.
    pub fn check(&self) -> Result<(), String> {
        let Self { reference_answers: reference, recent_answers: recent } = *self;
        if !(50..=10_000).contains(&recent) {
            return Err(format!("recent_answers is {recent}; it must be between 50 and 10000"));
        }
        if !((2 * recent)..=1_000_000).contains(&reference) {
            let least = 2 * recent;
            return Err(format!(
                "reference_answers is {reference}; it must be between {least}, twice recent_answers, and 1000000"
            ));
        }
        Ok(())
    }

    /// Length of a span of the reference: that of the recent window, or longer if there would be too many spans.
    fn span_answers(&self) -> u32 {
        self.recent_answers.max(self.reference_answers.div_ceil(MAX_SPANS))
    }
}

/// The measures of one answer, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DriftSample {
    /// Confidence of the model.
    pub confidence: Option<f32>,
    /// Novelty of the picture.
    pub novelty: Option<f32>,
    /// 1 if the cloud agreed, 0 if not.
    pub agreement: Option<f32>,
}

/// A histogram of numbers from 0 to 1, with their sum.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Histogram {
    bins: Vec<u32>,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, number: Option<f32>) {
        let Some(number) = number.filter(|number| number.is_finite()) else { return };
        self.bins.resize(BINS, 0);
        let bin = (number.clamp(0.0, 1.0) * BINS as f32) as usize;
        if let Some(bin) = self.bins.get_mut(bin.min(BINS - 1)) {
            *bin = bin.saturating_add(1);
        }
        self.sum += f64::from(number.clamp(0.0, 1.0));
    }

    fn merge(&mut self, other: &Self) {
        self.bins.resize(BINS, 0);
        self.bins.iter_mut().zip(&other.bins).for_each(|(bin, more)| *bin = bin.saturating_add(*more));
        self.sum += other.sum;
    }

    fn count(&self) -> f64 {
        self.bins.iter().map(|bin| f64::from(*bin)).sum()
    }

    fn mean(&self) -> f64 {
        (self.sum / self.count().max(1.0)).clamp(0.0, 1.0)
    }

    /// The largest difference between the two cumulative distributions, 0 to 1.
    fn distance(&self, other: &Self) -> f64 {
        let (own, others) = (self.count().max(1.0), other.count().max(1.0));
        let (mut difference, mut largest) = (0.0_f64, 0.0_f64);
        for (bin, other) in self.bins.iter().zip(&other.bins) {
            difference += f64::from(*bin) / own - f64::from(*other) / others;
            largest = largest.max(difference.abs());
        }
        largest.min(1.0)
    }
}

/// Consecutive answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct AnswerSpan {
    answers: u32,
    confidence: Histogram,
    novelty: Histogram,
    agreement: Histogram,
}

impl AnswerSpan {
    fn add(&mut self, sample: &DriftSample) {
        self.answers = self.answers.saturating_add(1);
        self.confidence.add(sample.confidence);
        self.novelty.add(sample.novelty);
        self.agreement.add(sample.agreement);
    }
}

/// The first answers of a release, in spans.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DriftReference {
    stretches: Vec<AnswerSpan>,
}

impl DriftReference {
    fn answers(&self) -> u64 {
        self.stretches.iter().map(|span| u64::from(span.answers)).sum()
    }

    fn add(&mut self, sample: &DriftSample, span_answers: u32) {
        match self.stretches.last_mut().filter(|span| span.answers < span_answers) {
            Some(span) => span.add(sample),
            None => {
                let mut span = AnswerSpan::default();
                span.add(sample);
                self.stretches.push(span);
            }
        }
    }

    /// The histogram of one measure over all spans, and the largest distance of a span from it.
    fn whole(&self, of: fn(&AnswerSpan) -> &Histogram) -> (Histogram, f64) {
        let mut whole = Histogram::default();
        self.stretches.iter().for_each(|span| whole.merge(of(span)));
        // A short last span varies more than a recent window does.
        let longest = self.stretches.iter().map(|span| span.answers).max().unwrap_or(0);
        let full_spans = self.stretches.iter().filter(|span| span.answers == longest);
        let variation = full_spans.map(|span| of(span).distance(&whole)).fold(0.0, f64::max);
        (whole, variation)
    }
}

/// Compares the latest answers of a release with its first ones.
#[derive(Debug, Clone)]
pub struct DriftMonitor {
    release: ReleaseId,
    settings: DriftSettings,
    reference: DriftReference,
    recent: VecDeque<DriftSample>,
}

impl DriftMonitor {
    /// A monitor for a release without answers.
    pub fn new(release: ReleaseId, settings: DriftSettings) -> Self {
        Self { release, settings, reference: DriftReference::default(), recent: VecDeque::new() }
    }

    /// The monitored release.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// Adds an answer: to the reference until that is full, then to the recent window.
    pub fn add(&mut self, sample: DriftSample) {
        if !self.is_full() {
            return self.reference.add(&sample, self.settings.span_answers());
        }
        if self.recent.len() >= self.settings.recent_answers as usize {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
    }

    /// The reference, once it is full.
    pub fn reference(&self) -> Option<&DriftReference> {
        self.is_full().then_some(&self.reference)
    }

    fn is_full(&self) -> bool {
        self.reference.answers() >= u64::from(self.settings.reference_answers)
    }

    /// Uses another reference from now on; one smaller than the settings demand counts as full.
    pub fn adopt(&mut self, reference: DriftReference) {
        let answers = u32::try_from(reference.answers()).unwrap_or(u32::MAX);
        self.settings.reference_answers = answers.max(1);
        self.reference = reference;
    }

    /// Discards everything: the next answers make up a new reference.
    pub fn restart(&mut self, settings: DriftSettings) {
        *self = Self::new(self.release.clone(), settings);
    }

    /// Compares the recent answers with the reference.
    pub fn report(&self) -> DriftReport {
        let mut recent = AnswerSpan::default();
        self.recent.iter().for_each(|sample| recent.add(sample));
        let is_known = self.is_full() && self.recent.len() >= self.settings.recent_answers as usize;
        let measure = |of: fn(&AnswerSpan) -> &Histogram, judge: fn(&MeasureShift<'_>) -> (f64, DriftLevel)| {
            let (reference, variation) = self.reference.whole(of);
            let recent = of(&recent);
            let is_measured = is_known && reference.count() > 0.0 && recent.count() > 0.0;
            is_measured.then(|| {
                let (distance_ratio, level) = judge(&MeasureShift { reference: &reference, variation, recent });
                DriftMeasure { reference_ratio: reference.mean(), recent_ratio: recent.mean(), distance_ratio, level }
            })
        };
        DriftReport {
            release: self.release.clone(),
            reference_answers: self.reference.answers(),
            reference_full: self.settings.reference_answers.into(),
            recent_answers: self.recent.len() as u64,
            recent_full: self.settings.recent_answers.into(),
            confidence: measure(|span| &span.confidence, judge_distribution),
            novelty: measure(|span| &span.novelty, judge_distribution),
            agreement: measure(|span| &span.agreement, judge_fall),
        }
    }
}

/// One measure in the reference and in the recent window.
struct MeasureShift<'a> {
    reference: &'a Histogram,
    /// Largest distance of a span of the reference from the whole of it, 0 to 1.
    variation: f64,
    recent: &'a Histogram,
}

/// The reciprocal of the effective number of answers in a comparison of two windows.
fn one_over_effective(shift: &MeasureShift<'_>) -> f64 {
    1.0 / shift.reference.count().max(1.0) + 1.0 / shift.recent.count().max(1.0)
}

/// The distance between two distributions, and its level.
fn judge_distribution(shift: &MeasureShift<'_>) -> (f64, DriftLevel) {
    let distance = shift.reference.distance(shift.recent);
    // The distance that chance alone exceeds with this probability (Smirnov; Press et al., Numerical Recipes, 14.3).
    let by_chance = |chance: f64| ((2.0 / chance).ln() / 2.0 * one_over_effective(shift)).sqrt();
    let beyond = |floor: f64, chance: f64| distance > shift.variation + floor.max(by_chance(chance));
    (distance, level(beyond(WATCH_DISTANCE, WATCH_CHANCE), beyond(ALARM_DISTANCE, ALARM_CHANCE)))
}

/// By how much a share fell, and the level of that.
fn judge_fall(shift: &MeasureShift<'_>) -> (f64, DriftLevel) {
    let (before, now) = (shift.reference.count(), shift.recent.count());
    let fall = (shift.reference.mean() - shift.recent.mean()).max(0.0);
    // One success and one failure are added, so that a share of 1 does not count as certain.
    let share = (shift.reference.mean() * before + shift.recent.mean() * now + 1.0) / (before + now + 2.0);
    let deviation = (share * (1.0 - share) * one_over_effective(shift)).sqrt();
    let beyond = |floor: f64, deviations: f64| fall > floor.max(deviations * deviation);
    (fall, level(beyond(WATCH_FALL, WATCH_DEVIATIONS), beyond(ALARM_FALL, ALARM_DEVIATIONS)))
}

fn level(watch: bool, alarm: bool) -> DriftLevel {
    match (watch, alarm) {
        (_, true) => DriftLevel::Alarm,
        (true, false) => DriftLevel::Watch,
        (false, false) => DriftLevel::Steady,
    }
}

#[cfg(test)]
mod tests;
