//! Results of the swap bench.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::ReleaseId;
use serde_json::{Value, json};

use crate::measurement_window::MeasurementWindow;
use crate::report::{FigureGoal, HeadlineFigure, ReportTable};
use crate::stats::median;

/// A round: the same load without and with swaps.
pub(super) struct SwapBenchRound {
    pub plain: MeasurementWindow,
    pub swapped: MeasurementWindow,
    /// Time from each order to the first answer by the ordered release.
    pub took: Vec<Duration>,
}

pub(super) struct SwapBenchResult {
    pub rounds: Vec<SwapBenchRound>,
    /// The two swaps before the measurement.
    pub first: Vec<Duration>,
    /// Memory of the recognizer after each window without swaps: one per round, and one at the end.
    pub memory_mib: Vec<Option<f64>>,
    /// Memory of the recognizer before its first swap.
    pub before_any_mib: Option<f64>,
    pub lost: u64,
    pub by_release: BTreeMap<ReleaseId, u64>,
    pub swaps: usize,
}

impl SwapBenchResult {
    fn added(&self, of: impl Fn(&MeasurementWindow) -> f64) -> Vec<f64> {
        self.rounds.iter().map(|round| of(&round.swapped) - of(&round.plain)).collect()
    }

    /// Difference between the longest latencies with and without swaps.
    fn added_worst_ms(&self) -> f64 {
        let worst = |of: &dyn Fn(&SwapBenchRound) -> f64| self.rounds.iter().map(of).fold(0.0, f64::max);
        worst(&|round| round.swapped.latency.max_ms) - worst(&|round| round.plain.latency.max_ms)
    }

    fn growth(&self) -> Option<f64> {
        let (first, last) = (self.memory_mib.first().copied()??, self.memory_mib.last().copied()??);
        Some(last / first)
    }

    pub(super) fn headline(&self) -> Vec<HeadlineFigure> {
        let figure = |name, title, value, unit, goal| HeadlineFigure { name, title, value, unit, goal };
        vec![
            figure("images_lost", "images lost", Some(self.lost as f64), "", Some(FigureGoal::AtMost(0.0))),
            figure(
                "added_p99_ms",
                "added p99 latency with swaps",
                Some(median(&self.added(|window| window.latency.p99_ms))),
                "ms",
                None,
            ),
            figure("added_worst_ms", "added maximum latency with swaps", Some(self.added_worst_ms()), "ms", None),
            figure(
                "memory_growth_ratio",
                "memory of the recognizer after all swaps, relative to before",
                self.growth(),
                "",
                Some(FigureGoal::AtMost(1.05)),
            ),
        ]
    }

    pub(super) fn table(&self) -> ReportTable {
        let mut lines = Vec::new();
        for (number, round) in self.rounds.iter().enumerate() {
            for (name, window) in [("without", &round.plain), ("with swaps", &round.swapped)] {
                lines.push(vec![
                    format!("round {}, {name}", number + 1),
                    format!("{:.0}", window.images_per_s),
                    format!("{:.2}", window.latency.p50_ms),
                    format!("{:.2}", window.latency.p99_ms),
                    format!("{:.1}", window.latency.max_ms),
                    window.cpu_ms_per_image.map_or(String::new(), |ms| format!("{ms:.3}")),
                ]);
            }
        }
        let columns = vec!["", "images/s", "p50 ms", "p99 ms", "worst ms", "CPU ms/image"];
        ReportTable { columns, lines }
    }

    pub(super) fn rows(&self) -> Vec<Value> {
        let rows = self.rounds.iter().enumerate().map(|(number, round)| {
            json!({
                "round": number + 1,
                "without": round.plain,
                "with_swaps": round.swapped,
                "swap_ms": round.took.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>(),
                "memory_mib_before_swaps": self.memory_mib.get(number),
                "memory_mib_later": self.memory_mib.get(number + 1),
            })
        });
        rows.collect()
    }

    pub(super) fn notes(&self, capacity_per_s: f64, rate_per_s: f64) -> Vec<String> {
        let ms = |times: &[Duration]| times.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>();
        let all: Vec<f64> = self.rounds.iter().flat_map(|round| ms(&round.took)).collect();
        let longest = all.iter().copied().fold(0.0, f64::max);
        let mib: Vec<String> =
            self.memory_mib.iter().map(|mib| mib.map_or("?".into(), |mib| format!("{mib:.0}"))).collect();
        let answers: Vec<String> =
            self.by_release.iter().map(|(release, count)| format!("{count} by {}", release.short())).collect();
        vec![
            format!("Capacity: {capacity_per_s:.0} images per second with 16 in flight; load: {rate_per_s:.0}."),
            format!(
                "{} swaps: from the order to the first answer by the other release {:.0} ms (median), {longest:.0} ms (longest); trial, loading and comparison run at idle priority.",
                self.swaps,
                median(&all)
            ),
            format!(
                "Memory of the recognizer, MiB: {} before its first swap; after each window without swaps, the last one after all swaps, {}.",
                self.before_any_mib.map_or("?".into(), |mib| format!("{mib:.0}")),
                mib.join(", ")
            ),
            format!(
                "Answers: {}; the first two swaps, without load, took {:.0} ms.",
                answers.join(", "),
                median(&ms(&self.first))
            ),
        ]
    }
}
