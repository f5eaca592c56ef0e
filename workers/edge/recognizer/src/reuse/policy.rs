//! Decides whether a picture gets the answer of the one before, and audits that. Pure.
//!
//! A picture is compared with the *reference* of its camera: the last image that was recognized, if its answer was sure
//! and is stored. Every so many pictures that could have had its answer, one is recognized all the same: what the model
//! says then is compared with what reuse would have said, and where wrong answers may be more than wanted, the difference
//! that counts as equal is halved ([`WrongCount`]). It is not raised again before another release serves, which
//! forgets everything.

use std::collections::VecDeque;

use schemas::{
    CameraName, CameraReuse, MAX_REUSE_CAMERAS, Prediction, ReleaseId, ReuseReport, TaskId, predictions_agree,
};
use vision::thumbnail::Thumbnail;

use crate::camera_map::CameraMap;
use crate::reuse::settings::ReuseSettings;

/// How far the mean brightness of equal pictures may differ, as a multiple of the difference of a block. The latter does
/// not see a lamp that is switched on, which may be what the camera is there for.
const BRIGHTNESS_RATIO: f32 = 4.0;
/// Below this difference, in levels, halving it has no meaning: nothing is reused at all.
const MIN_DIFFERENCE: f32 = 0.1;
/// One-sided 95 % of the normal distribution.
const Z: f64 = 1.645;
/// Most images that wait for their answers to be stored; more than a recognizer holds of sure ones at a time.
const MAX_OFFERED: usize = 256;

/// An image whose answer others may get.
#[derive(Debug, Clone)]
pub(crate) struct ReusableAnswer {
    /// Its task.
    pub task: TaskId,
    /// Its sequence in the stream IMAGES.
    pub sequence: u64,
    /// Its picture, small.
    pub thumbnail: Thumbnail,
    /// The states that its publisher named.
    pub states: Vec<String>,
    /// What the model says of it.
    pub prediction: Prediction,
}

/// A picture that may get an earlier answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReusablePicture<'a> {
    /// Its camera.
    pub camera: &'a CameraName,
    /// Sequence of its image in the stream IMAGES.
    pub sequence: u64,
    /// The picture, small.
    pub thumbnail: &'a Thumbnail,
    /// The states that its publisher named.
    pub states: &'a [String],
}

/// What becomes of a picture.
#[derive(Debug, Clone)]
pub(crate) enum ReuseDecision {
    /// It is recognized.
    Recognize,
    /// It is recognized to check what reuse would have said.
    Check(Box<ReuseCheck>),
    /// It gets an earlier answer.
    Reuse(Box<ReusedAnswer>),
}

/// The answer of an earlier image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReusedAnswer {
    /// Task of that image.
    pub task: TaskId,
    /// What the model says of it.
    pub prediction: Prediction,
}

/// What reuse would have said of a picture that is recognized to check.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReuseCheck {
    prediction: Prediction,
    /// Difference that counted as equal then.
    max_difference: f32,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CheckFinding {
    /// Whether the model gave another label.
    pub is_wrong: bool,
    /// The new difference, if it was lowered for that.
    pub lowered_to: Option<f32>,
}

/// What is known of one camera.
#[derive(Debug, Clone)]
struct CameraRecord {
    reference: Option<ReusableAnswer>,
    /// Images up to this sequence are no references any more: a later one was recognized without a sure answer.
    passed_sequence: u64,
    /// Pictures that got the reference's answer.
    in_a_row: u32,
    /// Pictures that could have had an earlier answer since the last check.
    alike: u32,
    max_difference: f32,
    /// Checks at this difference.
    checks: WrongCount,
    total: ReuseTotals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct ReuseTotals {
    reused: u64,
    checked: u64,
    wrong: u64,
}

/// The policy with all that it knows.
#[derive(Debug)]
pub(crate) struct ReusePolicy {
    settings: ReuseSettings,
    /// Release that everything known is about.
    release: Option<ReleaseId>,
    cameras: CameraMap<CameraRecord>,
    /// Sure answers that are not stored yet, oldest first.
    offered: VecDeque<(CameraName, ReusableAnswer)>,
    total: ReuseTotals,
}

impl ReusePolicy {
    /// A policy that knows nothing yet.
    pub(crate) fn new(settings: ReuseSettings) -> Self {
        Self {
            settings,
            release: None,
            cameras: CameraMap::default(),
            offered: VecDeque::new(),
            total: ReuseTotals::default(),
        }
    }

    /// Decides about a picture. `serving`: the release that would recognize it.
    pub(crate) fn decide(&mut self, picture: &ReusablePicture<'_>, serving: &ReleaseId) -> ReuseDecision {
        if self.release.as_ref() != Some(serving) {
            self.release = Some(serving.clone());
            self.cameras.clear();
            self.offered.clear();
        }
        let Some(terms) = self.settings.terms(picture.camera) else { return ReuseDecision::Recognize };
        let record = self.cameras.get_or_insert(picture.camera, || CameraRecord::new(terms.max_difference));
        let is_of_use =
            |reference: &&ReusableAnswer| reference.sequence < picture.sequence && reference.states == picture.states;
        let Some(reference) = record.reference.as_ref().filter(is_of_use) else { return ReuseDecision::Recognize };
        let difference = picture.thumbnail.difference(&reference.thumbnail);
        let is_equal = difference.largest_block < record.max_difference
            && difference.brightness < BRIGHTNESS_RATIO * record.max_difference;
        if !is_equal {
            return ReuseDecision::Recognize;
        }
        let prediction = reference.prediction.clone();
        record.alike += 1;
        if record.alike >= self.settings.check_every {
            record.alike = 0;
            return ReuseDecision::Check(Box::new(ReuseCheck { prediction, max_difference: record.max_difference }));
        }
        if record.in_a_row >= terms.max_in_a_row {
            return ReuseDecision::Recognize;
        }
        record.in_a_row += 1;
        record.total.reused += 1;
        self.total.reused += 1;
        ReuseDecision::Reuse(Box::new(ReusedAnswer { task: reference.task, prediction }))
    }

    /// Counts what a check found; `None` if it is about another release, or about a difference that was lowered
    /// meanwhile.
    pub(crate) fn record_check(
        &mut self,
        camera: &CameraName,
        check: &ReuseCheck,
        seen: &Prediction,
    ) -> Option<CheckFinding> {
        let record = self.cameras.get_mut(camera)?;
        let is_current = check.prediction.release == seen.release && self.release.as_ref() == Some(&seen.release);
        if !is_current || check.max_difference != record.max_difference {
            return None;
        }
        let is_wrong = !says_the_same(&check.prediction, seen);
        for total in [&mut record.total, &mut self.total] {
            total.checked += 1;
            total.wrong += u64::from(is_wrong);
        }
        record.checks.add(is_wrong, self.settings.target_wrong_ratio);
        let lowered_to = record.checks.is_too_wrong(self.settings.target_wrong_ratio).then(|| record.lower());
        Some(CheckFinding { is_wrong, lowered_to })
    }

    /// Offers an image with a sure, final answer as its camera's reference, once that answer is stored.
    pub(crate) fn offer_reference(&mut self, camera: &CameraName, reference: ReusableAnswer) {
        if self.offered.len() >= MAX_OFFERED {
            self.offered.pop_front();
        }
        self.offered.push_back((camera.clone(), reference));
    }

    /// Makes an offered image its camera's reference: its answer is stored.
    pub(crate) fn confirm_reference(&mut self, task: TaskId) {
        let place = self.offered.iter().position(|(_, offered)| offered.task == task);
        let Some((camera, reference)) = place.and_then(|place| self.offered.remove(place)) else { return };
        if self.release.as_ref() != Some(&reference.prediction.release) {
            return;
        }
        let Some(record) = self.cameras.get_mut(&camera) else { return };
        let newest = record.reference.as_ref().map_or(0, |held| held.sequence).max(record.passed_sequence);
        if reference.sequence > newest {
            record.reference = Some(reference);
            record.in_a_row = 0;
        }
    }

    /// Forgets the references of a camera before an image that was recognized without a sure, final answer.
    pub(crate) fn forget_before(&mut self, camera: &CameraName, sequence: u64) {
        let Some(record) = self.cameras.get_mut(camera) else { return };
        record.passed_sequence = record.passed_sequence.max(sequence);
        if record.reference.as_ref().is_some_and(|reference| reference.sequence < sequence) {
            record.reference = None;
            record.in_a_row = 0;
        }
    }

    /// Counts since the start; `None` if no camera's answers are reused.
    pub(crate) fn report(&self) -> Option<ReuseReport> {
        if !self.settings.is_on() {
            return None;
        }
        let mut cameras: Vec<(f32, CameraReuse)> = self
            .cameras
            .iter()
            .map(|(camera, record)| {
                let ReuseTotals { reused, checked, wrong } = record.total;
                let max_difference = record.max_difference;
                let set = self.settings.terms(camera).map_or(max_difference, |terms| terms.max_difference);
                let is_tightened = max_difference < set;
                let camera = camera.clone();
                (max_difference / set, CameraReuse { camera, reused, checked, wrong, max_difference, is_tightened })
            })
            .collect();
        cameras.sort_by(|(one, a), (other, b)| one.total_cmp(other).then(b.reused.cmp(&a.reused)));
        cameras.truncate(MAX_REUSE_CAMERAS);
        let ReuseTotals { reused, checked, wrong } = self.total;
        Some(ReuseReport { reused, checked, wrong, cameras: cameras.into_iter().map(|(_, camera)| camera).collect() })
    }
}

impl CameraRecord {
    fn new(max_difference: f32) -> Self {
        Self {
            reference: None,
            passed_sequence: 0,
            in_a_row: 0,
            alike: 0,
            max_difference,
            checks: WrongCount::default(),
            total: ReuseTotals::default(),
        }
    }

    /// Halves the difference that counts as equal, and counts anew.
    fn lower(&mut self) -> f32 {
        let half = self.max_difference / 2.0;
        self.max_difference = if half < MIN_DIFFERENCE { 0.0 } else { half };
        self.checks = WrongCount::default();
        self.max_difference
    }
}

/// Whether two predictions say the same: the same label, and for a model with several labels the same ones. For a detector,
/// the same objects, and as many of each label; which of them is surest may change with any grain.
fn says_the_same(one: &Prediction, other: &Prediction) -> bool {
    let held = |prediction: &Prediction| {
        let labels = prediction.labels.iter().flatten().map(|ranked| ranked.label.clone());
        let objects = prediction.objects.iter().flatten().map(|object| object.label.clone());
        let mut held: Vec<String> = labels.chain(objects).collect();
        held.sort_unstable();
        held
    };
    predictions_agree(one, other) && held(one) == held(other)
}

/// Checks of late, and how many of them were wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WrongCount {
    checked: u64,
    wrong: u64,
}

impl WrongCount {
    /// Adds a check; older ones fade, so that a change is noticed after a long time without one.
    pub(crate) fn add(&mut self, is_wrong: bool, target_ratio: f64) {
        if self.checked >= 3 * enough_checks(target_ratio) {
            (self.checked, self.wrong) = (self.checked / 2, self.wrong / 2);
        }
        self.checked += 1;
        self.wrong += u64::from(is_wrong);
    }

    /// Whether the share of wrong ones is too large: larger than the target with 95 % certainty, or, after enough checks,
    /// not smaller with 95 % certainty.
    pub(crate) fn is_too_wrong(&self, target_ratio: f64) -> bool {
        let (low, high) = self.bounds();
        low > target_ratio || (self.checked >= enough_checks(target_ratio) && high > target_ratio)
    }

    /// One-sided 95 % bounds of the share of wrong ones (E. B. Wilson, 1927).
    fn bounds(&self) -> (f64, f64) {
        if self.checked == 0 {
            return (0.0, 1.0);
        }
        let (count, ratio) = (self.checked as f64, self.wrong as f64 / self.checked as f64);
        let square = Z * Z / count;
        let middle = (ratio + square / 2.0) / (1.0 + square);
        let reach = Z / (1.0 + square) * (ratio * (1.0 - ratio) / count + square / (4.0 * count)).sqrt();
        ((middle - reach).max(0.0), (middle + reach).min(1.0))
    }
}

/// Checks after which the target must be proven: twice as many as prove it if none is wrong, so that one wrong check in
/// hundreds does no harm. The upper bound of 0 of n is z²/(n + z²).
fn enough_checks(target_ratio: f64) -> u64 {
    2 * (Z * Z * (1.0 - target_ratio) / target_ratio).ceil() as u64
}

#[cfg(test)]
mod tests;
