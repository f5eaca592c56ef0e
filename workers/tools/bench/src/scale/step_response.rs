//! A five-fold load step: how the queue makes the worker add replicas, and when it removes them.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use streams::{reader, topology};

use super::{recognizer_heartbeats, wait_until_working};
use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::LoadGenerator;
use crate::workload::Workload;

/// Seconds of queued work above which replicas are added.
pub(super) const TARGET_S: f64 = 0.3;
/// How long the queue must stay under its target to count as recovered.
const STABLE_FOR: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// State of the queue at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueSample {
    /// Seconds since the start.
    pub at_s: f64,
    /// Number of replicas.
    pub replicas: f64,
    /// Queued work, seconds.
    pub queued_s: f64,
}

/// Response to the load step.
pub(super) struct StepResponse {
    /// Samples in time order.
    pub samples: Vec<QueueSample>,
    /// Time of the step up, seconds.
    pub from_s: f64,
    /// Time of the step down, seconds.
    pub to_s: f64,
    /// Time from the step up until the queue stayed under its target, seconds; absent if it did not.
    pub recovery_s: Option<f64>,
    /// The worker's scaling decisions, without repetitions.
    pub reasons: Vec<String>,
}

pub(super) async fn measure(
    site: &mut BenchSite,
    paths: &TestbedPaths,
    workload: &Workload,
    base_per_s: f64,
    quick: bool,
) -> Result<StepResponse, BenchError> {
    site.start_recognizer_with(
        paths,
        &[
            "recognizer.scale.max_replicas=4".into(),
            format!("recognizer.scale.target_s={TARGET_S}"),
            "recognizer.scale.up_cooldown_s=2".into(),
            "recognizer.scale.down_cooldown_s=10".into(),
        ],
    )?;
    let load = LoadGenerator::open(site, workload.images.clone()).await?;
    wait_until_working(&load, site.bus.clone(), site.recognizer_processes()).await?;
    let (before, during, after) = if quick { (5, 15, 15) } else { (10, 30, 40) };
    let processes = site.processes();
    let started_at = Instant::now();
    let load_phase = |rate_per_s: f64, seconds: u64| {
        let (load, processes) = (&load, &processes);
        async move {
            let end = tokio::time::sleep(Duration::from_secs(seconds));
            load.run_at_rate_until(rate_per_s, processes, Duration::ZERO, end).await
        }
    };
    let loading = async {
        load_phase(base_per_s, before).await?;
        let from_s = started_at.elapsed().as_secs_f64();
        load_phase(5.0 * base_per_s, during).await?;
        let to_s = started_at.elapsed().as_secs_f64();
        load_phase(base_per_s, after).await?;
        Ok::<_, BenchError>((from_s, to_s))
    };
    let (mut samples, mut reasons): (Vec<QueueSample>, Vec<String>) = (Vec::new(), Vec::new());
    let (from_s, to_s) = tokio::select! {
        loaded = loading => loaded?,
        Err(error) = sample_queue(site, started_at, &mut samples, &mut reasons) => return Err(error),
    };
    let recovery_s = recovery_time(&samples, from_s, to_s);
    Ok(StepResponse { samples, from_s, to_s, recovery_s, reasons })
}

/// Samples the queue periodically until an error occurs.
async fn sample_queue(
    site: &BenchSite,
    started_at: Instant,
    samples: &mut Vec<QueueSample>,
    reasons: &mut Vec<String>,
) -> Result<Infallible, BenchError> {
    loop {
        let progress =
            reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await?;
        if let Some(beat) = recognizer_heartbeats(&site.bus, &site.recognizer_processes()).await?.first() {
            let waiting = (progress.pending + progress.unacked) as f64;
            let replicas = f64::from(beat.replicas.max(1));
            let queued_s = waiting * beat.cost_ms.unwrap_or(0.0) / 1000.0 / replicas;
            samples.push(QueueSample { at_s: started_at.elapsed().as_secs_f64(), replicas, queued_s });
            // Keeps only changes of the number of replicas; the queue length differs in every sample.
            let is_change = |reason: &String| {
                let parts = ["more than the target", "do not help", "replicas did", "would have sufficed"];
                parts.iter().any(|part| reason.contains(part)) && !reason.contains("the first go after")
            };
            let changed = beat.scale.clone().filter(is_change);
            reasons.extend(changed.filter(|reason| reasons.last() != Some(reason)));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Time from the step up until the queue stays under its target; absent if it does not before the step down.
fn recovery_time(samples: &[QueueSample], from_s: f64, to_s: f64) -> Option<f64> {
    let during: Vec<&QueueSample> =
        samples.iter().filter(|sample| sample.at_s > from_s && sample.at_s < to_s).collect();
    let above = during.iter().rposition(|sample| sample.queued_s > TARGET_S);
    let first = during.get(above.map_or(0, |place| place + 1))?;
    let left_s = during.last()?.at_s - first.at_s;
    (left_s >= STABLE_FOR.as_secs_f64()).then_some(first.at_s - from_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_ends_when_the_queue_stays_under_its_target() {
        let sample = |at_s: f64, queued_s: f64| QueueSample { at_s, replicas: 1.0, queued_s };
        let samples = [
            sample(1.0, 0.0),
            sample(11.0, 2.0),
            sample(12.0, 0.1),
            sample(13.0, 2.0),
            sample(14.0, 0.1),
            sample(19.0, 0.0),
        ];
        assert_eq!(recovery_time(&samples, 10.0, 20.0), Some(4.0));
        assert_eq!(recovery_time(&samples[..5], 10.0, 20.0), None, "too short to tell");
        assert_eq!(recovery_time(&samples[..4], 10.0, 20.0), None);
    }
}
