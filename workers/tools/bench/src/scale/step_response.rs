//! Five times the load at once: how the queue brings replicas, and how they go again.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use streams::{reader, topology};

use super::{begun, recognizers};
use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::load_generator::LoadGenerator;
use crate::workload::Workload;

/// Seconds of queued work that are enough to add replicas.
pub const TARGET_S: f64 = 0.3;
/// The queue must stay under its target for so long to count as recovered.
const STAYS: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How it was at a moment.
#[derive(Debug, Clone, Copy)]
pub struct QueueSample {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// Replicas.
    pub replicas: f64,
    /// Seconds of work that wait.
    pub queued_s: f64,
}

/// What came of the step.
pub struct StepResponse {
    /// In order.
    pub looks: Vec<QueueSample>,
    /// When the load grew, seconds.
    pub from_s: f64,
    /// When it fell again, seconds.
    pub to_s: f64,
    /// From the step until the queue was under its target for good; absent if it never was.
    pub recovery_s: Option<f64>,
    /// What the worker said about its replicas, each sentence once.
    pub why: Vec<String>,
}

pub async fn measure(
    site: &mut BenchSite,
    ground: &TestbedPaths,
    workload: &Workload,
    base_per_s: f64,
    quick: bool,
) -> Result<StepResponse, BenchError> {
    site.recognize_with(
        ground,
        &[
            "recognizer.scale.max_replicas=4".into(),
            format!("recognizer.scale.target_s={TARGET_S}"),
            "recognizer.scale.up_cooldown_s=2".into(),
            "recognizer.scale.down_cooldown_s=10".into(),
        ],
    )?;
    let load = LoadGenerator::open(site, workload.images.clone()).await?;
    begun(&load, site.bus.clone(), site.recognizer_processes()).await?;
    let (before, during, after) = if quick { (5, 15, 15) } else { (10, 30, 40) };
    let processes = site.processes();
    let begun_at = Instant::now();
    let stretch = |rate_per_s: f64, seconds: u64| {
        let (load, processes) = (&load, &processes);
        async move {
            let over = tokio::time::sleep(Duration::from_secs(seconds));
            load.at_rate_while(rate_per_s, processes, Duration::ZERO, over).await
        }
    };
    let loading = async {
        stretch(base_per_s, before).await?;
        let from_s = begun_at.elapsed().as_secs_f64();
        stretch(5.0 * base_per_s, during).await?;
        let to_s = begun_at.elapsed().as_secs_f64();
        stretch(base_per_s, after).await?;
        Ok::<_, BenchError>((from_s, to_s))
    };
    let (mut looks, mut why): (Vec<QueueSample>, Vec<String>) = (Vec::new(), Vec::new());
    let (from_s, to_s) = tokio::select! {
        loaded = loading => loaded?,
        Err(error) = look(site, begun_at, &mut looks, &mut why) => return Err(error),
    };
    let recovery_s = recovered(&looks, from_s, to_s);
    Ok(StepResponse { looks, from_s, to_s, recovery_s, why })
}

/// Looks again and again, until something fails.
async fn look(
    site: &BenchSite,
    begun_at: Instant,
    looks: &mut Vec<QueueSample>,
    why: &mut Vec<String>,
) -> Result<Infallible, BenchError> {
    loop {
        let progress =
            reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await?;
        if let Some(beat) = recognizers(&site.bus, &site.recognizer_processes()).await?.first() {
            let waiting = (progress.pending + progress.unacked) as f64;
            let replicas = f64::from(beat.replicas.max(1));
            let queued_s = waiting * beat.cost_ms.unwrap_or(0.0) / 1000.0 / replicas;
            looks.push(QueueSample { at_s: begun_at.elapsed().as_secs_f64(), replicas, queued_s });
            // Where the number changed, and why; how much waits changes with every look.
            let changed = |why: &String| {
                let parts = ["more than the target", "do not help", "replicas did", "would have sufficed"];
                parts.iter().any(|part| why.contains(part)) && !why.contains("the first go after")
            };
            let changed = beat.scale.clone().filter(changed);
            why.extend(changed.filter(|said| why.last() != Some(said)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// From the step until the queue stays under its target; absent if it does not before the load falls again.
fn recovered(looks: &[QueueSample], from_s: f64, to_s: f64) -> Option<f64> {
    let during: Vec<&QueueSample> = looks.iter().filter(|look| look.at_s > from_s && look.at_s < to_s).collect();
    let above = during.iter().rposition(|look| look.queued_s > TARGET_S);
    let first = during.get(above.map_or(0, |place| place + 1))?;
    let left_s = during.last()?.at_s - first.at_s;
    (left_s >= STAYS.as_secs_f64()).then_some(first.at_s - from_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovered_is_what_stays_under_its_target_until_the_load_falls() {
        let look = |at_s: f64, queued_s: f64| QueueSample { at_s, replicas: 1.0, queued_s };
        let looks =
            [look(1.0, 0.0), look(11.0, 2.0), look(12.0, 0.1), look(13.0, 2.0), look(14.0, 0.1), look(19.0, 0.0)];
        assert_eq!(recovered(&looks, 10.0, 20.0), Some(4.0));
        assert_eq!(recovered(&looks[..5], 10.0, 20.0), None, "too short to tell");
        assert_eq!(recovered(&looks[..4], 10.0, 20.0), None);
    }
}
