//! Sums of a back-test.

use serde::Serialize;

use super::RecordedTask;

/// Result of a period of tasks, recorded or replayed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BacktestResult {
    /// Name of the settings.
    pub name: String,
    /// Number of tasks.
    pub tasks: u64,
    /// Tasks recognized at the site.
    pub local: u64,
    /// Tasks offloaded to the cloud without being recognized at the site.
    pub redirected: u64,
    /// Tasks that were held; only the last admission decision is recorded.
    pub held: u64,
    /// Doubtful answers.
    pub doubtful: u64,
    /// Tasks sent up after being recognized, including sampled confident ones.
    pub verified: u64,
    /// Doubtful answers kept at the site.
    pub kept: u64,
    /// Bytes sent up.
    pub up_bytes: u64,
    /// Accuracy on tasks labelled by a person or the publisher, 0 to 1; absent without any.
    pub right_ratio: Option<f64>,
    /// Number of labelled tasks.
    pub labelled: u64,
    /// Number of those with an expected instead of a known result.
    pub expected: u64,
    /// Share of tasks judged by the cloud whose answer is the cloud's or agrees with it, 0 to 1; absent without any.
    pub agrees_ratio: Option<f64>,
    /// Number of tasks judged by the cloud.
    pub judged: u64,
    /// Median time to the first answer, by the site or the cloud, milliseconds.
    pub first_p50_ms: f64,
    /// 99th percentile of the same.
    pub first_p99_ms: f64,
    /// Median time to the final answer, milliseconds.
    pub final_p50_ms: f64,
    /// 99th percentile of the same.
    pub final_p99_ms: f64,
    /// Energy used at the site and on the link, joules.
    pub energy_j: f64,
    /// Tasks that were decided differently from the record.
    pub otherwise: u64,
}

/// Sums collected during a back-test.
#[derive(Default)]
pub(super) struct BacktestSums {
    pub(super) played: BacktestResult,
    right: f64,
    agrees: u64,
    first_ms: Vec<f64>,
    final_ms: Vec<f64>,
}

/// Result of one task.
pub(super) struct TaskOutcome {
    pub(super) redirected: bool,
    pub(super) held: bool,
    pub(super) doubtful: bool,
    /// Bytes sent up; absent: nothing was sent.
    pub(super) up_bytes: Option<u64>,
    pub(super) first_ms: f64,
    pub(super) final_ms: f64,
    pub(super) energy_mj: f64,
}

/// Accuracy of site and cloud, where both are known.
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
        Self { edge_ratio: share(&|task| task.is_edge_right), cloud_ratio: share(&|task| task.is_verdict_right) }
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
        if task.is_labelled {
            let is_right = if went { task.is_verdict_right } else { task.is_edge_right };
            played.labelled += 1;
            played.expected += u64::from(is_right.is_none());
            let expected = if went { known.cloud_ratio } else { known.edge_ratio };
            self.right += is_right.map_or(expected, |is_right| f64::from(u8::from(is_right)));
        }
        if let Some(is_agreed) = task.is_agreed {
            played.judged += 1;
            self.agrees += u64::from(went || is_agreed);
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
