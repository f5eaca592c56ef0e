//! Drift: what answers are like, compared with what they used to be.
//!
//! Enters: a few numbers about each answer. Leaves: one distance and one level for each, in a heartbeat. The reference is the
//! first answers of a release at a site, kept in the ledger so that a restart begins no new one ([`keep`]); the recent
//! window slides. Both are bounded.
//!
//! The distance of confidence and of novelty is the largest difference between the two cumulative distributions
//! (Kolmogorov-Smirnov); Rabanser et al., "Failing Loudly" (arXiv 1810.11953) found it on a classifier's outputs the best of
//! the detectors they tried. It must exceed what chance explains, a difference that matters, and the unrest of the
//! reference itself: stretches of it as long as the recent window are as far from the whole of it without anything being
//! wrong. Agreement with verdicts alarms when it falls, by the same rules with the normal approximation of two shares.
//! Decision 0032 has the false alarms.

use std::collections::VecDeque;

use schemas::{DriftLevel, DriftMeasure, DriftReport, ReleaseId, Role};
use serde::{Deserialize, Serialize};

mod watch;

pub use watch::{DriftKind, DriftWatch, reference_note};

/// Bins of a histogram: a distance is exact to the share that lies in one of them.
const BINS: usize = 64;
/// Most stretches of a reference: a note of the ledger holds them.
const MAX_STRETCHES: u32 = 64;
/// Chance of a false `watch` in one look at a window, with steady traffic; and of a false `alarm`.
const WATCH_CHANCE: f64 = 1e-4;
const ALARM_CHANCE: f64 = 1e-6;
/// Smallest distances that matter to anybody, whatever is certain: a tenth of the answers, and a fifth.
const WATCH_DISTANCE: f64 = 0.1;
const ALARM_DISTANCE: f64 = 0.2;
/// The same of the fall of agreement: each is a wrong answer more.
const WATCH_FALL: f64 = 0.05;
const ALARM_FALL: f64 = 0.1;
/// Standard deviations that belong to the chances above.
const WATCH_DEVIATIONS: f64 = 3.9;
const ALARM_DEVIATIONS: f64 = 4.9;

/// How long the windows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriftSettings {
    /// Answers of a release that make up its reference, 100 to 1,000,000 and at least twice `recent_answers`. What differs
    /// from them later counts as drift, so they should span what is normal: where nights differ from days, as many as a day
    /// has.
    pub reference_answers: u32,
    /// Answers that are compared with it, the latest ones, 50 to 10,000.
    pub recent_answers: u32,
}

impl Default for DriftSettings {
    fn default() -> Self {
        Self { reference_answers: 2000, recent_answers: 500 }
    }
}

impl DriftSettings {
    /// What is wrong with the settings, if something is. `role`: whose they are.
    ///
    /// # Errors
    /// One sentence with the key, the value and what it must be.
    pub fn check(&self, role: Role) -> Result<(), String> {
        let Self { reference_answers: reference, recent_answers: recent } = *self;
        if !(50..=10_000).contains(&recent) {
            return Err(format!("{role}.drift.recent_answers is {recent}; it must be between 50 and 10000"));
        }
        if !((2 * recent)..=1_000_000).contains(&reference) {
            let least = 2 * recent;
            return Err(format!(
                "{role}.drift.reference_answers is {reference}; it must be between {least}, twice {role}.drift.recent_answers, \
                 and 1000000"
            ));
        }
        Ok(())
    }

    /// Length of the reference's stretches: as the recent window, longer where there would be too many of them to keep.
    fn stretch_answers(&self) -> u32 {
        self.recent_answers.max(self.reference_answers.div_ceil(MAX_STRETCHES))
    }
}

/// What one answer says of drift; numbers from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DriftSample {
    /// How sure the model was.
    pub confidence: Option<f32>,
    /// How strange the picture was to it.
    pub novelty: Option<f32>,
    /// 1 if the cloud agreed, 0 if not.
    pub agreement: Option<f32>,
}

/// How often a number lay where.
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

/// Answers in a row.
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

/// What answers used to be like.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DriftReference {
    stretches: Vec<AnswerSpan>,
}

impl DriftReference {
    fn answers(&self) -> u64 {
        self.stretches.iter().map(|stretch| u64::from(stretch.answers)).sum()
    }

    fn add(&mut self, sample: &DriftSample, stretch_answers: u32) {
        match self.stretches.last_mut().filter(|stretch| stretch.answers < stretch_answers) {
            Some(stretch) => stretch.add(sample),
            None => {
                let mut stretch = AnswerSpan::default();
                stretch.add(sample);
                self.stretches.push(stretch);
            }
        }
    }

    /// One number of all its answers, and how far its own stretches are from that.
    fn whole(&self, of: fn(&AnswerSpan) -> &Histogram) -> (Histogram, f64) {
        let mut whole = Histogram::default();
        self.stretches.iter().for_each(|stretch| whole.merge(of(stretch)));
        // A short last stretch wobbles more than a recent window does.
        let longest = self.stretches.iter().map(|stretch| stretch.answers).max().unwrap_or(0);
        let as_long = self.stretches.iter().filter(|stretch| stretch.answers == longest);
        let unrest = as_long.map(|stretch| of(stretch).distance(&whole)).fold(0.0, f64::max);
        (whole, unrest)
    }
}

/// Compares the latest answers of one release with its first ones.
#[derive(Debug, Clone)]
pub struct DriftMonitor {
    release: ReleaseId,
    settings: DriftSettings,
    reference: DriftReference,
    recent: VecDeque<DriftSample>,
}

impl DriftMonitor {
    /// Of a release without an answer yet.
    pub fn new(release: ReleaseId, settings: DriftSettings) -> Self {
        Self { release, settings, reference: DriftReference::default(), recent: VecDeque::new() }
    }

    /// The release whose answers are compared.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// An answer: of the reference until that is full, of the recent window then.
    pub fn add(&mut self, sample: DriftSample) {
        if !self.is_full() {
            return self.reference.add(&sample, self.settings.stretch_answers());
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

    /// Compares with another reference from now on; one that is smaller than the settings ask is full all the same.
    pub fn adopt(&mut self, reference: DriftReference) {
        let answers = u32::try_from(reference.answers()).unwrap_or(u32::MAX);
        self.settings.reference_answers = answers.max(1);
        self.reference = reference;
    }

    /// Forgets everything: the next answers make up the reference.
    pub fn restart(&mut self, settings: DriftSettings) {
        *self = Self::new(self.release.clone(), settings);
    }

    /// What the recent answers are like.
    pub fn report(&self) -> DriftReport {
        let mut recent = AnswerSpan::default();
        self.recent.iter().for_each(|sample| recent.add(sample));
        let is_known = self.is_full() && self.recent.len() >= self.settings.recent_answers as usize;
        let measure = |of: fn(&AnswerSpan) -> &Histogram, judge: fn(&MeasureShift<'_>) -> (f64, DriftLevel)| {
            let (reference, unrest) = self.reference.whole(of);
            let recent = of(&recent);
            let is_measured = is_known && reference.count() > 0.0 && recent.count() > 0.0;
            is_measured.then(|| {
                let (distance_ratio, level) = judge(&MeasureShift { reference: &reference, unrest, recent });
                DriftMeasure { reference_ratio: reference.mean(), recent_ratio: recent.mean(), distance_ratio, level }
            })
        };
        DriftReport {
            release: self.release.clone(),
            reference_answers: self.reference.answers(),
            reference_full: self.settings.reference_answers.into(),
            recent_answers: self.recent.len() as u64,
            recent_full: self.settings.recent_answers.into(),
            confidence: measure(|stretch| &stretch.confidence, judge_distribution),
            novelty: measure(|stretch| &stretch.novelty, judge_distribution),
            agreement: measure(|stretch| &stretch.agreement, judge_fall),
        }
    }
}

/// One number before and now.
struct MeasureShift<'a> {
    reference: &'a Histogram,
    /// Largest distance of a stretch of the reference from the whole of it, 0 to 1.
    unrest: f64,
    recent: &'a Histogram,
}

/// One over the number of answers that a comparison of two windows is worth.
fn one_over_effective(moved: &MeasureShift<'_>) -> f64 {
    1.0 / moved.reference.count().max(1.0) + 1.0 / moved.recent.count().max(1.0)
}

/// The distance between two distributions, and what it means.
fn judge_distribution(moved: &MeasureShift<'_>) -> (f64, DriftLevel) {
    let distance = moved.reference.distance(moved.recent);
    // Larger by chance alone as rarely as that (Smirnov; Press et al., Numerical Recipes, 14.3).
    let by_chance = |chance: f64| ((2.0 / chance).ln() / 2.0 * one_over_effective(moved)).sqrt();
    let beyond = |floor: f64, chance: f64| distance > moved.unrest + floor.max(by_chance(chance));
    (distance, level(beyond(WATCH_DISTANCE, WATCH_CHANCE), beyond(ALARM_DISTANCE, ALARM_CHANCE)))
}

/// By how much a share fell, and what it means.
fn judge_fall(moved: &MeasureShift<'_>) -> (f64, DriftLevel) {
    let (before, now) = (moved.reference.count(), moved.recent.count());
    let fall = (moved.reference.mean() - moved.recent.mean()).max(0.0);
    // One success and one failure more, so that a share of 1 is not taken for certain.
    let share = (moved.reference.mean() * before + moved.recent.mean() * now + 1.0) / (before + now + 2.0);
    let deviation = (share * (1.0 - share) * one_over_effective(moved)).sqrt();
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
