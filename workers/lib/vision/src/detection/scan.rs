//! Finds the candidates: scores above the threshold of their class.
//!
//! Most of a detector's numbers are scores of nothing. They are read once, in the order they are stored in, and nothing
//! is allocated for what stays below.

use schemas::model::{BackgroundClass, ScoreKind};

use super::layout::{ImageScores, StridedNumbers};
use super::{Detector, DetectorFault, MAX_CANDIDATES};

/// A score may be this much above 1 by rounding.
const ROUNDING: f32 = 1e-3;
/// Scores compared at once; the compiler uses as wide registers as there are.
const LANES: usize = 16;

/// A score above its threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// 0 to 1.
    pub(super) score: f32,
    /// Number of its box.
    pub(super) row: u32,
    /// Number of its label.
    pub(super) class: u32,
}

impl Candidate {
    /// Better ones first; of equally good ones, the lower box, then the lower class.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(self.row.cmp(&other.row)).then(self.class.cmp(&other.class))
    }
}

/// The best candidates, at most twice [`MAX_CANDIDATES`] while they are collected.
#[derive(Debug, Default)]
pub(super) struct CandidateList {
    pub(super) found: Vec<Candidate>,
    /// Number of those left out.
    pub(super) cut: usize,
}

impl CandidateList {
    fn clear(&mut self) {
        self.found.clear();
        self.cut = 0;
    }

    fn push(&mut self, score: f32, row: usize, class: usize) {
        if self.found.len() >= 2 * MAX_CANDIDATES {
            self.keep_best();
        }
        // Shapes are far below 2^32: a graph with so many boxes would fill the memory first.
        self.found.push(Candidate { score, row: row as u32, class: class as u32 });
    }

    fn keep_best(&mut self) {
        if self.found.len() > MAX_CANDIDATES {
            self.found.select_nth_unstable_by(MAX_CANDIDATES, Candidate::order);
            self.cut += self.found.len() - MAX_CANDIDATES;
            self.found.truncate(MAX_CANDIDATES);
        }
    }

    /// Keeps the best candidate of each box.
    fn keep_best_of_each_row(&mut self) {
        self.found.sort_unstable_by(|a, b| a.row.cmp(&b.row).then(a.order(b)));
        self.found.dedup_by_key(|candidate| candidate.row);
    }

    fn finish(&mut self) {
        self.keep_best();
        self.found.sort_unstable_by(Candidate::order);
    }
}

/// What a scan saw besides the candidates.
#[derive(Debug)]
pub(super) struct ScanReport {
    /// Best score of each label, 0 to 1; 0 if there is none.
    pub(super) best: Vec<f32>,
    /// Scores that are not finite.
    pub(super) not_finite: usize,
    /// Whether any score was finite, or there was none at all.
    pub(super) is_sound: bool,
}

impl Detector {
    /// Fills the list of candidates, best first.
    pub(super) fn scan(&mut self, scores: &ImageScores<'_>, rows: usize) -> Result<ScanReport, DetectorFault> {
        self.candidates.clear();
        // Softmax and objectness are applied box by box; otherwise numbers are compared as they are, and only the
        // winners become scores.
        let mut best = vec![f32::NEG_INFINITY; self.labels.len()];
        let not_finite;
        match scores {
            ImageScores::PerClass { scores, objectness: None, .. }
                if scores.row_step == 1 && self.boxes.score != ScoreKind::Softmax =>
            {
                not_finite = self.scan_columns(scores, rows, &mut best);
                self.apply_logistic(&mut best);
            }
            ImageScores::PerClass { scores, classes, objectness } => {
                not_finite = self.scan_rows(scores, *classes, objectness.as_ref(), rows, &mut best);
            }
            ImageScores::PerBox { scores, classes } => {
                not_finite = self.scan_boxes(scores, classes, rows, &mut best)?;
            }
        }
        let is_sound = rows == 0 || not_finite == 0 || best.iter().any(|score| *score > f32::NEG_INFINITY);
        best.iter_mut().for_each(|score| *score = score.max(0.0));
        if let Some(score) = best.iter().find(|score| **score > 1.0 + ROUNDING) {
            let why = format!("it gave a score of {score}, and scores are 0 to 1");
            let remedy = "write score = \"sigmoid\" or \"softmax\" under [output.boxes] in";
            return Err(DetectorFault::mismatch(why, remedy));
        }
        if !self.boxes.multi_label {
            self.candidates.keep_best_of_each_row();
        }
        self.candidates.finish();
        Ok(ScanReport { best, not_finite, is_sound })
    }

    /// Classes before the first label.
    fn skipped(&self) -> usize {
        usize::from(self.boxes.background == BackgroundClass::First)
    }

    /// Number that a score is compared with, before the logistic function if there is one.
    fn raw_threshold(&self, class: usize) -> f32 {
        let threshold = self.thresholds.get(class).copied().unwrap_or(1.0);
        match self.boxes.score {
            ScoreKind::Sigmoid => (threshold / (1.0 - threshold)).ln(),
            ScoreKind::Plain | ScoreKind::Softmax => threshold,
        }
    }

    fn apply_logistic(&mut self, best: &mut [f32]) {
        if self.boxes.score == ScoreKind::Sigmoid {
            self.candidates.found.iter_mut().for_each(|candidate| candidate.score = sigmoid(candidate.score));
            best.iter_mut().filter(|score| **score > f32::NEG_INFINITY).for_each(|score| *score = sigmoid(*score));
        }
    }

    /// Scores that are stored class by class: the best of a class is found without a branch, and mostly it is below.
    fn scan_columns(&mut self, scores: &StridedNumbers<'_>, rows: usize, best: &mut [f32]) -> usize {
        let mut not_finite = 0;
        for (class, best) in best.iter_mut().enumerate() {
            let threshold = self.raw_threshold(class);
            let from = (class + self.skipped()) * scores.step;
            let column = scores.numbers.get(from..from + rows).unwrap_or_default();
            let (highest, has_nan) = highest(column);
            if !has_nan && highest <= threshold {
                *best = highest;
                continue;
            }
            for (row, number) in column.iter().enumerate() {
                if number.is_nan() || *number == f32::INFINITY {
                    not_finite += 1;
                    continue;
                }
                *best = best.max(*number);
                if *number > threshold {
                    self.candidates.push(*number, row, class);
                }
            }
        }
        not_finite
    }

    /// Scores that are stored box by box, or depend on others of their box.
    fn scan_rows(
        &mut self,
        scores: &StridedNumbers<'_>,
        classes: usize,
        objectness: Option<&StridedNumbers<'_>>,
        rows: usize,
        best: &mut [f32],
    ) -> usize {
        let (kind, skipped, mut not_finite) = (self.boxes.score, self.skipped(), 0);
        let mut buffer = std::mem::take(&mut self.row);
        for row in 0..rows {
            buffer.clear();
            match scores.step {
                1 => {
                    let from = row * scores.row_step;
                    buffer.extend_from_slice(scores.numbers.get(from..from + classes).unwrap_or_default());
                }
                _ => buffer.extend((0..classes).map(|class| scores.at(row, class))),
            }
            match kind {
                ScoreKind::Plain => {}
                ScoreKind::Sigmoid => buffer.iter_mut().for_each(|number| *number = sigmoid_or_nan(*number)),
                ScoreKind::Softmax => softmax(&mut buffer),
            }
            if let Some(objectness) = objectness {
                let objectness = objectness.at(row, 0);
                let objectness = if kind == ScoreKind::Sigmoid { sigmoid_or_nan(objectness) } else { objectness };
                buffer.iter_mut().for_each(|number| *number *= objectness);
            }
            let labelled = buffer.get(skipped..).unwrap_or_default();
            let (mut is_above, mut is_odd) = (false, false);
            for ((score, best), threshold) in labelled.iter().zip(best.iter_mut()).zip(&self.thresholds) {
                *best = if *score > *best && *score < f32::INFINITY { *score } else { *best };
                is_above |= score > threshold;
                is_odd |= score.is_nan();
            }
            if is_above || is_odd {
                for (class, (score, threshold)) in labelled.iter().zip(&self.thresholds).enumerate() {
                    if score.is_nan() || *score == f32::INFINITY {
                        not_finite += 1;
                    } else if score > threshold {
                        self.candidates.push(*score, row, class);
                    }
                }
            }
        }
        self.row = buffer;
        not_finite
    }

    /// One score for each box.
    fn scan_boxes(
        &mut self,
        scores: &StridedNumbers<'_>,
        classes: &StridedNumbers<'_>,
        rows: usize,
        best: &mut [f32],
    ) -> Result<usize, DetectorFault> {
        let lowest = self.thresholds.iter().copied().fold(1.0, f32::min);
        let mut not_finite = 0;
        for row in 0..rows {
            let score = scores.at(row, 0);
            let score = if self.boxes.score == ScoreKind::Sigmoid { sigmoid_or_nan(score) } else { score };
            let class = classes.at(row, 0);
            if !score.is_finite() || !class.is_finite() {
                not_finite += 1;
                continue;
            }
            let label = class - self.skipped() as f32;
            // A float above the range becomes the largest number.
            let known = Some(label).filter(|label| *label >= 0.0).map(|label| label as usize);
            match known.and_then(|label| Some((label, best.get_mut(label)?))) {
                Some((label, best)) => {
                    *best = best.max(score);
                    if self.thresholds.get(label).is_some_and(|threshold| score > *threshold) {
                        self.candidates.push(score, row, label);
                    }
                }
                None if self.is_background(class) => {}
                // Rows without an object are filled with all kinds of numbers.
                None if score <= lowest => {}
                None => {
                    let why = format!("it gave an object of class {class}, but there are {} labels", self.labels.len());
                    let remedy = "write one label per class, or correct background under [output.boxes] in";
                    return Err(DetectorFault::mismatch(why, remedy));
                }
            }
        }
        Ok(not_finite)
    }

    fn is_background(&self, class: f32) -> bool {
        match self.boxes.background {
            BackgroundClass::None => false,
            BackgroundClass::First => class == 0.0,
            BackgroundClass::Last => class == self.labels.len() as f32,
        }
    }
}

/// The highest number, negative infinity if there is none, and whether one is NaN.
fn highest(numbers: &[f32]) -> (f32, bool) {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let (mut best, mut nan) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    for chunk in chunks {
        for ((best, nan), number) in best.iter_mut().zip(&mut nan).zip(chunk) {
            *best = if *number > *best { *number } else { *best };
            *nan |= number.is_nan();
        }
    }
    let rest_nan = rest.iter().any(|number| number.is_nan());
    let highest = best.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    (highest, rest_nan || nan.contains(&true))
}

fn sigmoid(number: f32) -> f32 {
    1.0 / (1.0 + (-number).exp())
}

/// An infinite logit is as broken as NaN, though its logistic function would be 1.
fn sigmoid_or_nan(number: f32) -> f32 {
    if number == f32::INFINITY { f32::NAN } else { sigmoid(number) }
}

fn softmax(row: &mut [f32]) {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|number| *number = (*number - highest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|number| *number /= sum);
}
