//! Measures a time window: images finished in it with their latency, and the CPU time of the processes that worked on
//! them. Start-up and drain lie outside the window.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::BenchError;
use os::process;
use tributary::demo::latency::Latency;

/// Log of finished images; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CompletionLog(Arc<Mutex<Vec<Duration>>>);

impl CompletionLog {
    /// Records an image and its latency.
    pub(crate) fn record_image(&self, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }

    /// Takes all entries since the last call.
    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Length of a measurement window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowLength {
    /// Warm-up before the window.
    pub lead: Duration,
    /// Length of the window itself.
    pub counted: Duration,
}

impl WindowLength {
    /// Sleeps until the end of the window.
    pub(crate) fn wait_for_end(self) -> tokio::time::Sleep {
        tokio::time::sleep(self.lead + self.counted)
    }
}

/// Results of a measurement window.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MeasurementWindow {
    /// Images finished.
    pub images: u64,
    /// Images finished per second.
    pub images_per_s: f64,
    /// CPU time of all processes per image, milliseconds; absent if the kernel does not report it.
    pub cpu_ms_per_image: Option<f64>,
    /// CPU time per image by process, milliseconds.
    pub cpu_ms_by_process: BTreeMap<&'static str, f64>,
    /// Latency of the images.
    #[serde(flatten)]
    pub latency: Latency,
}

/// Names and ids of the processes to measure.
pub(crate) type NamedProcesses = [(&'static str, u32)];

/// Measures from `lead` after now until `end` completes.
pub(crate) async fn measure_window(
    log: &CompletionLog,
    processes: &NamedProcesses,
    lead: Duration,
    end: impl Future<Output = ()>,
) -> Result<MeasurementWindow, BenchError> {
    tokio::time::sleep(lead).await;
    let _before = log.take();
    let (started, before) = (Instant::now(), cpu_by_name(processes));
    end.await;
    let (times, elapsed, after) = (log.take(), started.elapsed(), cpu_by_name(processes));
    if times.is_empty() {
        return Err(BenchError::Nothing { length: elapsed });
    }
    let images = times.len() as f64;
    let each = before.iter().filter_map(|(name, before)| {
        let used = after.get(name)?.saturating_sub(*before);
        Some((*name, used.as_secs_f64() * 1e3 / images))
    });
    let cpu_ms_by_process: BTreeMap<&'static str, f64> = each.collect();
    let names: std::collections::BTreeSet<&str> = processes.iter().map(|(name, _)| *name).collect();
    let all_known = cpu_ms_by_process.len() == names.len();
    Ok(MeasurementWindow {
        images: times.len() as u64,
        images_per_s: images / elapsed.as_secs_f64(),
        cpu_ms_per_image: all_known.then(|| cpu_ms_by_process.values().sum()),
        cpu_ms_by_process,
        latency: Latency::of(times),
    })
}

/// CPU time by process name; processes of the same name are summed.
fn cpu_by_name(processes: &NamedProcesses) -> BTreeMap<&'static str, Duration> {
    let mut used = BTreeMap::new();
    for (name, cpu) in processes.iter().filter_map(|(name, process)| Some((*name, process::cpu_time(*process)?))) {
        *used.entry(name).or_default() += cpu;
    }
    used
}
