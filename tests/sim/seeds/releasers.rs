//! Two releasers at work in parallel, and sites that follow their orders: every decision is made once, and in the end
//! every site runs the stable release.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use rand::RngExt;
use releaser::settings::{ReleaserSettings, RingSettings};
use releases::decision_log;
use releases::stage::{self, DecisionContext};
use runtime::Shutdown;
use schemas::{
    DecisionOrigin, MachineRequirements, MomentSums, Order, Release, ReleaseCounts, ReleaseId, ReleaseStage, Rollout,
    SiteName, Swap, decode, encode,
};
use streams::memory::MemoryCluster;
use streams::reader::{self, StreamRange};
use streams::{Bus, Publication, Publisher, ReleaseStore, subject, topology};

use crate::chaos::{ChaosPlan, rng_of, run_chaos};
use crate::oracle;
use crate::seeds::{SeedResult, check_repeats, check_seeds, history_of};
use crate::world::{CLOUD, cloud_of, model, release_id};

const SITES: [&str; 4] = ["reef", "farm", "lab", "port"];
/// Length of a report's time slot.
const SLOT_MS: u64 = 60_000;

fn sites() -> Vec<SiteName> {
    SITES.iter().map(|name| name.parse().unwrap()).collect()
}

fn release(number: u8) -> Release {
    Release {
        release: release_id(number),
        parent: None,
        origin: "imported".into(),
        package: Vec::new(),
        needs: MachineRequirements::default(),
        public: None,
        public_change_interval: None,
    }
}

/// A site that follows its orders and reports its counts.
struct ToySite {
    name: SiteName,
    bus: Bus,
    cluster: MemoryCluster,
    seed: u64,
    runs: ReleaseId,
    since_ms: u64,
    order: u64,
    counts: BTreeMap<(u64, ReleaseId), u64>,
}

impl ToySite {
    async fn follow_orders(mut self) {
        let mut rng = rng_of(self.seed, 7);
        let publisher = Publisher::new(self.bus.clone(), Duration::from_secs(30));
        let wanted = subject::order(&self.name, &model());
        loop {
            let range = StreamRange { subjects: vec![wanted.clone()], ..StreamRange::default() };
            if let Ok(orders) = reader::follow_range(&self.bus, topology::ORDERS, range).await {
                let mut orders = std::pin::pin!(orders);
                let mut reports = tokio::time::interval(Duration::from_secs(20));
                loop {
                    tokio::select! {
                        biased;
                        order = orders.next() => {
                            let Some(Ok(message)) = order else { break };
                            let Ok(order) = decode::<Order>(&message.payload) else { continue };
                            if order.number < self.order {
                                continue;
                            }
                            tokio::time::sleep(Duration::from_millis(rng.random_range(0..20_000))).await;
                            self.order = order.number;
                            if self.runs != order.release.release {
                                (self.runs, self.since_ms) = (order.release.release, self.cluster.now_ms());
                            }
                        }
                        _ = reports.tick() => self.report(&publisher).await,
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn report(&mut self, publisher: &Publisher) {
        let now_ms = self.cluster.now_ms();
        let slot_ms = now_ms / SLOT_MS * SLOT_MS;
        *self.counts.entry((slot_ms, self.runs.clone())).or_default() += 200;
        let of_slot = self.counts.iter().filter(|((slot, _), _)| *slot == slot_ms);
        let counts = of_slot.map(|((_, release), images)| counts_of(release, *images)).collect();
        let swap = swap_of(&self.name, &self.runs, self.since_ms, self.order, now_ms, counts);
        let _later = publisher.publish(&report_of(&swap)).await;
    }
}

fn counts_of(release: &ReleaseId, images: u64) -> ReleaseCounts {
    let sums = |mean: f64, deviation: f64| {
        let count = images as f64;
        MomentSums { count: images, sum: mean * count, squares: count * (mean * mean + deviation * deviation) }
    };
    ReleaseCounts {
        images,
        doubtful: images / 5,
        confidence: sums(0.9, 0.05),
        ln_cost_ms: sums(2.0, 0.1),
        ..ReleaseCounts::for_release(release.clone())
    }
}

fn swap_of(
    site: &SiteName,
    runs: &ReleaseId,
    since_ms: u64,
    order: u64,
    now_ms: u64,
    counts: Vec<ReleaseCounts>,
) -> Swap {
    Swap {
        site: site.clone(),
        worker: format!("host-{site}"),
        model: model(),
        release: runs.clone(),
        since_ms,
        order,
        refused: Vec::new(),
        runtime: "1.23".into(),
        memory_free_mib: None,
        memory_mib: 100,
        site_labels: Vec::new(),
        slot_ms: now_ms / SLOT_MS * SLOT_MS,
        slot_length_ms: SLOT_MS,
        said_at_ms: now_ms,
        counts,
        left: false,
        agreements: Vec::new(),
    }
}

fn report_of(swap: &Swap) -> Publication {
    let subject = subject::swap(&swap.site, &swap.worker, swap.slot_ms);
    Publication { subject, payload: encode(swap).unwrap().into(), headers: Vec::new(), first_only: false }
}

fn start_releaser(cluster: &MemoryCluster, store: &ReleaseStore, settings: &ReleaserSettings) -> (Bus, Shutdown) {
    let (bus, shutdown) = (cluster.connect(CLOUD), Shutdown::default());
    let (from, stop, store, settings) = (bus.clone(), shutdown.clone(), store.clone(), settings.clone());
    tokio::spawn(async move { drop(releaser::run(from, store, &settings, stop).await) });
    (bus, shutdown)
}

/// Two independent releasers decide about candidates, while the cloud's server dies now and then.
async fn decide_in_parallel(seed: u64) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = cloud_of(seed, sites());
    let bus = cluster.connect(CLOUD);
    let publisher = Publisher::new(bus.clone(), Duration::from_secs(60));
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let store = ReleaseStore::open(&folder.path().display().to_string()).map_err(|error| error.to_string())?;
    let mut settings = ReleaserSettings {
        rings: vec![
            RingSettings { sites: sites()[..1].to_vec(), ..RingSettings::default() },
            RingSettings { sites: sites()[..2].to_vec(), ..RingSettings::default() },
        ],
        judge_s: 30,
        batch: rng.random_range(1..4),
        ..ReleaserSettings::default()
    };
    (settings.canary.without_verdicts, settings.canary.max_duration_s) = (true, 1800);
    let context = |why: &str| DecisionContext::new(DecisionOrigin::Hand, why, cluster.now_ms());
    decision_log::publish_decision(&publisher, &stage::first(model(), release(1), context("first")))
        .await
        .map_err(|error| error.to_string())?;
    let mut tasks = tokio::task::JoinSet::new();
    for (number, name) in sites().into_iter().enumerate() {
        let site = ToySite {
            bus: cluster.connect(CLOUD),
            cluster: cluster.clone(),
            seed: seed ^ (number as u64 + 1) << 32,
            runs: release_id(1),
            since_ms: cluster.now_ms(),
            order: 0,
            counts: BTreeMap::new(),
            name,
        };
        tasks.spawn(site.follow_orders());
    }
    let mut running = [(); 2].map(|()| start_releaser(&cluster, &store, &settings));
    tokio::time::sleep(Duration::from_secs(rng.random_range(120..400))).await;
    let candidate = rng.random_range(2..4u8);
    for number in 2..=candidate {
        let decide = |now: Option<&Rollout>| {
            let now = now.ok_or("the model has no rollout")?;
            stage::candidate(now, release(number), context("import")).map(Some).map_err(|refused| refused.to_string())
        };
        loop {
            let now = decision_log::latest(&bus, &model()).await.map_err(|error| error.to_string())?;
            let Some(next) = decide(now.as_ref())? else { break };
            if decision_log::publish_decision(&publisher, &next).await.map_err(|error| error.to_string())? {
                break;
            }
        }
    }
    let plan = ChaosPlan {
        servers: vec![CLOUD],
        duration: Duration::from_secs(rng.random_range(60..900)),
        ..ChaosPlan::default()
    };
    let turnover = async {
        let mut rng = rng_of(seed, 4);
        let ends_at = tokio::time::Instant::now() + plan.duration;
        while tokio::time::Instant::now() < ends_at {
            tokio::time::sleep(Duration::from_secs(rng.random_range(10..300))).await;
            let which = rng.random_range(0..2);
            cluster.kill_client(&running[which].0);
            running[which].1.request();
            running[which] = start_releaser(&cluster, &store, &settings);
        }
    };
    tokio::join!(turnover, run_chaos(&cluster, &plan, rng_of(seed, 3)));
    tokio::time::sleep(Duration::from_secs(2700)).await;
    let decisions: Vec<Rollout> = oracle::read_messages(&cluster, CLOUD, topology::RELEASES).await?;
    check_decisions(&decisions)?;
    let last = decisions.last().ok_or("no decision was made")?;
    if last.canary.is_some() || !last.candidates.is_empty() {
        return Err(format!("canary {:?} is undecided and {} candidates wait", last.canary, last.candidates.len()));
    }
    let reports: Vec<Swap> = oracle::read_messages(&cluster, CLOUD, topology::SWAPS).await?;
    for name in sites() {
        let runs = reports.iter().filter(|swap| swap.site == name).max_by_key(|swap| swap.said_at_ms);
        let runs = runs.ok_or_else(|| format!("{name} reported nothing"))?;
        if runs.release != last.stable.release {
            return Err(format!("{name} runs {}, and {} is stable", runs.release.short(), last.stable.release.short()));
        }
    }
    Ok(history_of(&cluster))
}

/// Checks that decisions are numbered without a gap and none is made twice.
fn check_decisions(decisions: &[Rollout]) -> Result<(), String> {
    for (number, rollout) in (1..).zip(decisions) {
        if rollout.number != number {
            return Err(format!("decision {} stands where {number} should", rollout.number));
        }
    }
    let mut seen = Vec::new();
    for rollout in decisions {
        let step = rollout.canary.as_ref().filter(|_| rollout.decision.stage == ReleaseStage::Canary).map(|c| c.step);
        let decision = (rollout.decision.stage, rollout.decision.release.clone(), step);
        if seen.contains(&decision) {
            return Err(format!("{:?} of {} was decided twice", decision.0, decision.1.short()));
        }
        seen.push(decision);
    }
    Ok(())
}

#[test]
fn two_releasers_make_every_decision_once() {
    check_seeds("releasers::two_releasers_make_every_decision_once", 3, decide_in_parallel);
}

#[test]
fn equal_seeds_give_equal_histories() {
    check_repeats("releasers::equal_seeds_give_equal_histories", 1, decide_in_parallel);
}

#[test]
fn a_repeated_decision_is_caught() {
    let context = || DecisionContext::new(DecisionOrigin::Releaser, "because", 5);
    let first = stage::first(model(), release(1), context());
    let candidate = stage::candidate(&first, release(2), context()).unwrap();
    let canary = stage::canary(&candidate, &release_id(2), 0, sites(), context()).unwrap();
    let repeated = Rollout { number: canary.number + 1, ..canary.clone() };
    check_decisions(&[first.clone(), candidate.clone(), canary.clone()]).unwrap();
    assert!(check_decisions(&[first.clone(), candidate.clone(), canary.clone(), repeated]).is_err());
    assert!(check_decisions(&[first, canary]).is_err(), "the gap was not noticed");
}
