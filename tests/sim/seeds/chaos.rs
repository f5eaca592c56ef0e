//! Faults over time, drawn from the seed: the network loses and delays messages, servers die, links are cut, streams
//! fill up. All faults end before a test checks its guarantees, which hold for the time after them.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use streams::memory::{MemoryCluster, NetworkFaults};

/// The faults that a scenario allows.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChaosPlan {
    /// Servers that may be killed.
    pub servers: Vec<&'static str>,
    /// Servers whose link may be cut.
    pub links: Vec<&'static str>,
    /// Streams that may be full: server and stream.
    pub full: Vec<(&'static str, &'static str)>,
    /// Duration of the faults.
    pub duration: Duration,
}

/// A random generator for one part of a scenario, independent of the other parts.
pub(crate) fn rng_of(seed: u64, part: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ part)
}

/// Draws the network's faults; some seeds get none of a kind.
pub(crate) fn draw_faults(rng: &mut StdRng) -> NetworkFaults {
    let mut ratio = |max: f64| if rng.random_bool(0.5) { rng.random_range(0.0..max) } else { 0.0 };
    let faults = NetworkFaults {
        lost_ack_ratio: ratio(0.4),
        lost_reply_ratio: ratio(0.2),
        lost_request_ratio: ratio(0.2),
        lost_delivery_ratio: ratio(0.2),
        broken_follow_ratio: ratio(0.1),
        ..NetworkFaults::default()
    };
    let (delay, over_link) = (rng.random_range(0..50), rng.random_range(0..400));
    NetworkFaults {
        max_delay: Duration::from_millis(delay),
        max_link_delay: Duration::from_millis(over_link),
        ..faults
    }
}

/// Injects faults for as long as the plan says, then ends them all.
pub(crate) async fn run_chaos(cluster: &MemoryCluster, plan: &ChaosPlan, mut rng: StdRng) {
    cluster.set_faults(draw_faults(&mut rng));
    let ends_at = tokio::time::Instant::now() + plan.duration;
    while tokio::time::Instant::now() < ends_at {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..8000))).await;
        let duration = Duration::from_millis(rng.random_range(50..12_000));
        let kinds = plan.servers.len() + plan.links.len() + plan.full.len();
        if kinds == 0 {
            continue;
        }
        let kind = rng.random_range(0..kinds);
        if let Some(server) = plan.servers.get(kind) {
            cluster.stop_server(server, Duration::from_millis(rng.random_range(0..2000)));
            tokio::time::sleep(duration).await;
            cluster.start_server(server);
        } else if let Some(link) = plan.links.get(kind - plan.servers.len()) {
            cluster.set_link_cut(link, true);
            tokio::time::sleep(duration).await;
            cluster.set_link_cut(link, false);
        } else if let Some((server, stream)) = plan.full.get(kind - plan.servers.len() - plan.links.len()) {
            cluster.set_stream_full(server, stream, true);
            tokio::time::sleep(duration).await;
            cluster.set_stream_full(server, stream, false);
        }
    }
    cluster.set_faults(NetworkFaults { max_delay: Duration::from_millis(2), ..NetworkFaults::default() });
}
