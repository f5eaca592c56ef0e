//! What became of a stretch of tasks, summed up.

use std::sync::Arc;

use serde::Serialize;

use super::RecordedTask;

/// What became, or would have become, of a stretch of tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BacktestResult {
    /// Whose settings.
    pub name: String,
    /// Tasks.
    pub tasks: u64,
    /// Recognized at the site.
    pub local: u64,
    /// Sent to the cloud without having been recognized.
    pub redirected: u64,
    /// Held, though the record knows only the last time it was asked.
    pub held: u64,
    /// In doubt.
    pub doubtful: u64,
    /// Sent up after having been recognized, the sure ones that were drawn included.
    pub verified: u64,
    /// In doubt and kept.
    pub kept: u64,
    /// Bytes sent up.
    pub up_bytes: u64,
    /// Share of right answers among those of which a person or the publisher says what they show; absent without any.
    pub right_ratio: Option<f64>,
    /// How many those are.
    pub labelled: u64,
    /// Of those, how many are expected values.
    pub expected: u64,
    /// Share of answers that are the cloud's or agree with it, among those that it judged; absent without any.
    pub agrees_ratio: Option<f64>,
    /// How many those are.
    pub judged: u64,
    /// Time to the site's own answer or the cloud's, whichever was first, median, milliseconds.
    pub first_p50_ms: f64,
    /// The same, 99th percentile.
    pub first_p99_ms: f64,
    /// Time to the final answer, median, milliseconds.
    pub final_p50_ms: f64,
    /// The same, 99th percentile.
    pub final_p99_ms: f64,
    /// Energy at the site and on the link, joules.
    pub energy_j: f64,
    /// Tasks that were decided otherwise than recorded.
    pub otherwise: u64,
}

/// What is summed up while a stretch is played.
#[derive(Default)]
pub(super) struct BacktestSums {
    pub(super) played: BacktestResult,
    right: f64,
    agrees: u64,
    first_ms: Vec<f64>,
    final_ms: Vec<f64>,
}

/// What became of one task.
pub(super) struct TaskOutcome {
    pub(super) redirected: bool,
    pub(super) held: bool,
    pub(super) doubtful: bool,
    /// Bytes sent up; absent: nothing was.
    pub(super) up_bytes: Option<u64>,
    pub(super) first_ms: f64,
    pub(super) final_ms: f64,
    pub(super) energy_mj: f64,
}

/// How often the site and the cloud are right, where both is known.
pub(super) struct AgreementRates {
    edge_ratio: f64,
    cloud_ratio: f64,
}

impl AgreementRates {
    pub(super) fn of(all: &[RecordedTask]) -> Self {
        let share = |right: &dyn Fn(&RecordedTask) -> Option<bool>| {
            let known: Vec<bool> = all.iter().filter_map(right).collect();
            known.iter().filter(|right| **right).count() as f64 / known.len().max(1) as f64
        };
        let truth = |task: &RecordedTask, said: Option<&Arc<str>>| Some(said? == task.truth.as_ref()?);
        Self {
            edge_ratio: share(&|task| truth(task, task.edge.as_ref().map(|(label, _)| label))),
            cloud_ratio: share(&|task| truth(task, task.verdict.as_ref())),
        }
    }
}

impl BacktestSums {
    pub(super) fn add(&mut self, task: &RecordedTask, outcome: &TaskOutcome, known: &AgreementRates) {
        let Self { played, .. } = self;
        played.tasks += 1;
        played.local += u64::from(!outcome.redirected);
        played.redirected += u64::from(outcome.redirected);
        played.held += u64::from(outcome.held);
        played.doubtful += u64::from(outcome.doubtful);
        let went = outcome.up_bytes.is_some();
        played.verified += u64::from(went && !outcome.redirected);
        played.kept += u64::from(outcome.doubtful && !went);
        played.up_bytes += outcome.up_bytes.unwrap_or(0);
        played.energy_j += outcome.energy_mj / 1000.0;
        self.first_ms.push(outcome.first_ms);
        self.final_ms.push(outcome.final_ms);
        let edge = task.edge.as_ref().map(|(label, _)| label);
        if let Some(truth) = &task.truth {
            let said = if went { task.verdict.as_ref() } else { edge };
            played.labelled += 1;
            played.expected += u64::from(said.is_none());
            let expected = if went { known.cloud_ratio } else { known.edge_ratio };
            self.right += said.map_or(expected, |said| f64::from(u8::from(said == truth)));
        }
        if let (Some(edge), Some(verdict)) = (edge, &task.verdict) {
            played.judged += 1;
            self.agrees += u64::from(went || edge == verdict);
        }
    }

    pub(super) fn finish(mut self) -> BacktestResult {
        let at = |values: &mut Vec<f64>, ratio: f64| {
            values.sort_by(f64::total_cmp);
            let place = ((values.len() as f64 * ratio) as usize).min(values.len().saturating_sub(1));
            values.get(place).copied().unwrap_or(0.0)
        };
        let mut played = self.played;
        (played.first_p50_ms, played.first_p99_ms) = (at(&mut self.first_ms, 0.5), at(&mut self.first_ms, 0.99));
        (played.final_p50_ms, played.final_p99_ms) = (at(&mut self.final_ms, 0.5), at(&mut self.final_ms, 0.99));
        played.right_ratio = (played.labelled > 0).then(|| self.right / played.labelled as f64);
        played.agrees_ratio = (played.judged > 0).then(|| self.agrees as f64 / played.judged as f64);
        played
    }
}
