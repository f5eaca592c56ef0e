//! What happened in a stretch of time: finished images with how long each took, and the processor time
//! of the processes that worked on them. What is started before and finished after the stretch does not
//! count, so that neither starting up nor running empty is measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::BenchError;
use os::process;
use tributary::demo::latency::Latency;

/// Where finished images are noted; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CompletionLog(Arc<Mutex<Vec<Duration>>>);

impl CompletionLog {
    /// Notes an image that took this long.
    pub(crate) fn record_image(&self, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }

    /// What was noted since the last time.
    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long a stretch is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowLength {
    /// Passed before anything counts.
    pub lead: Duration,
    /// What counts.
    pub counted: Duration,
}

impl WindowLength {
    /// Its end, from now on.
    pub(crate) fn wait_for_end(self) -> tokio::time::Sleep {
        tokio::time::sleep(self.lead + self.counted)
    }
}

/// What happened in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MeasurementWindow {
    /// Images finished.
    pub images: u64,
    /// Images finished a second.
    pub images_per_s: f64,
    /// Processor time of all processes for each of them, milliseconds; absent where the kernel does not say.
    pub cpu_ms_per_image: Option<f64>,
    /// The same by process.
    pub cpu_ms_by_process: BTreeMap<&'static str, f64>,
    /// How long each took.
    #[serde(flatten)]
    pub latency: Latency,
}

/// Processes that work on the images, with a name for each.
pub(crate) type NamedProcesses = [(&'static str, u32)];

/// Waits for a stretch to pass and says what happened in it. `lead`: passed before anything counts;
/// `over`: its end, later than that.
pub(crate) async fn measure_window(
    tape: &CompletionLog,
    processes: &NamedProcesses,
    lead: Duration,
    over: impl Future<Output = ()>,
) -> Result<MeasurementWindow, BenchError> {
    tokio::time::sleep(lead).await;
    let _before = tape.take();
    let (begun, before) = (Instant::now(), used(processes));
    over.await;
    let (times, elapsed, after) = (tape.take(), begun.elapsed(), used(processes));
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

/// Processor time by name; of several processes of one name together.
fn used(processes: &NamedProcesses) -> BTreeMap<&'static str, Duration> {
    let mut used = BTreeMap::new();
    for (name, cpu) in processes.iter().filter_map(|(name, process)| Some((*name, process::cpu_time(*process)?))) {
        *used.entry(name).or_default() += cpu;
    }
    used
}
