//! What swaps were found to cost.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::ReleaseId;
use serde_json::{Value, json};

use crate::measurement_window::MeasurementWindow;
use crate::report::{FigureGoal, HeadlineFigure, ReportTable};
use crate::stats::median;

/// A round: the same load without swaps and with them.
pub(super) struct SwapBenchRound {
    pub plain: MeasurementWindow,
    pub swapped: MeasurementWindow,
    /// From each order to the first answer by what was ordered.
    pub took: Vec<Duration>,
}

pub(super) struct SwapBenchResult {
    pub stretches: Vec<SwapBenchRound>,
    /// The two swaps before anything was measured.
    pub first: Vec<Duration>,
    /// Of the recognizer, after each stretch without swaps: of every round, and one more at the end.
    pub memory_mib: Vec<Option<f64>>,
    /// Of the recognizer, before its first swap.
    pub before_any_mib: Option<f64>,
    pub lost: u64,
    pub by_release: BTreeMap<ReleaseId, u64>,
    pub swaps: usize,
}

impl SwapBenchResult {
    fn added(&self, of: impl Fn(&MeasurementWindow) -> f64) -> Vec<f64> {
        self.stretches.iter().map(|stretch| of(&stretch.swapped) - of(&stretch.plain)).collect()
    }

    /// The most that any image waited longer than the longest did without swaps.
    fn added_worst_ms(&self) -> f64 {
        let worst = |of: &dyn Fn(&SwapBenchRound) -> f64| self.stretches.iter().map(of).fold(0.0, f64::max);
        worst(&|stretch| stretch.swapped.latency.max_ms) - worst(&|stretch| stretch.plain.latency.max_ms)
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
                "what swaps add to the 99th percentile of an answer's time",
                Some(median(&self.added(|window| window.latency.p99_ms))),
                "ms",
                None,
            ),
            figure(
                "added_worst_ms",
                "what swaps add to the longest time of all",
                Some(self.added_worst_ms()),
                "ms",
                None,
            ),
            figure(
                "memory_growth_ratio",
                "memory of the recognizer after all swaps over before",
                self.growth(),
                "",
                Some(FigureGoal::AtMost(1.05)),
            ),
        ]
    }

    pub(super) fn table(&self) -> ReportTable {
        let mut lines = Vec::new();
        for (number, stretch) in self.stretches.iter().enumerate() {
            for (name, window) in [("without", &stretch.plain), ("with swaps", &stretch.swapped)] {
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
        let rows = self.stretches.iter().enumerate().map(|(number, stretch)| {
            json!({
                "round": number + 1,
                "without": stretch.plain,
                "with_swaps": stretch.swapped,
                "swap_ms": stretch.took.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>(),
                "memory_mib_before_swaps": self.memory_mib.get(number),
                "memory_mib_later": self.memory_mib.get(number + 1),
            })
        });
        rows.collect()
    }

    pub(super) fn notes(&self, capacity_per_s: f64, rate_per_s: f64) -> Vec<String> {
        let ms = |times: &[Duration]| times.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>();
        let all: Vec<f64> = self.stretches.iter().flat_map(|stretch| ms(&stretch.took)).collect();
        let longest = all.iter().copied().fold(0.0, f64::max);
        let mib: Vec<String> =
            self.memory_mib.iter().map(|mib| mib.map_or("?".into(), |mib| format!("{mib:.0}"))).collect();
        let answers: Vec<String> =
            self.by_release.iter().map(|(release, count)| format!("{count} by {}", release.short())).collect();
        vec![
            format!("The site does {capacity_per_s:.0} images a second with 16 in flight; {rate_per_s:.0} come in."),
            format!(
                "{} swaps: from the order to the first answer by the other release {:.0} ms (median), {longest:.0} ms (longest); trial, loading and comparing run on what nobody else wants of the processors.",
                self.swaps,
                median(&all)
            ),
            format!(
                "Memory of the recognizer, MiB: {} before its first swap ever; after each stretch without swaps, the last one after all, {}.",
                self.before_any_mib.map_or("?".into(), |mib| format!("{mib:.0}")),
                mib.join(", ")
            ),
            format!(
                "Answers: {}; the first two swaps, under no load, took {:.0} ms.",
                answers.join(", "),
                median(&ms(&self.first))
            ),
        ]
    }
}
