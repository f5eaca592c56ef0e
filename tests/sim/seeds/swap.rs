//! Swaps of releases in which every step may fail, take long, or be the last before the process dies.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use schemas::{FaultNote, MachineRequirements, Order, Release, ReleaseId, ReleaseStage};
use serving::swap::SwapState;
use serving::swap::flow::{ReleaseHost, follow_orders};
use streams::memory::{MemoryCluster, simulated_now_ns};
use tokio::sync::watch;

use crate::chaos::rng_of;
use crate::seeds::{SeedResult, check_repeats, check_seeds, find_failure};
use crate::world::{model, release_id, site};

/// Which host runs the swaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostKind {
    /// A correct one.
    Sound,
    /// A wrong one: after a failed swap, the next process would start with a release that never served.
    SkipsRollback,
    /// A wrong one: it serves a release whose trial failed.
    SkipsTrials,
}

/// What survives a restart of the process.
struct ToyDisk {
    recorded: ReleaseId,
    passed: BTreeSet<ReleaseId>,
}

struct HostState {
    rng: StdRng,
    serving: ReleaseId,
    is_failing: bool,
    /// A release is recorded but not serving yet, so both may differ.
    is_handing_over: bool,
    /// Whether the last swap failed, so that the serving release must be recorded again.
    has_failed: bool,
    served_releases: Vec<ReleaseId>,
}

/// A worker without a model: it takes every step of a swap and draws its result.
struct ToyHost {
    kind: HostKind,
    disk: Arc<Mutex<ToyDisk>>,
    state: Mutex<HostState>,
    log: Arc<Mutex<Vec<(i128, String)>>>,
}

impl ToyHost {
    fn start(kind: HostKind, disk: &Arc<Mutex<ToyDisk>>, log: &Arc<Mutex<Vec<(i128, String)>>>, rng: StdRng) -> Self {
        let serving = disk.lock().unwrap().recorded.clone();
        let state = HostState {
            rng,
            serving,
            is_failing: true,
            is_handing_over: false,
            has_failed: false,
            served_releases: Vec::new(),
        };
        Self { kind, disk: disk.clone(), state: Mutex::new(state), log: log.clone() }
    }

    fn note(&self, what: &str, release: &ReleaseId) {
        let text = format!("{what} {}", release.short());
        self.log.lock().unwrap().push((simulated_now_ns().unwrap_or(0), text));
    }

    /// Takes a step: it lasts a random time and may fail with one of `faults`.
    async fn take_step(&self, what: &str, release: &ReleaseId, faults: &[&str]) -> Result<(), FaultNote> {
        self.note(what, release);
        let (duration, fault) = {
            let mut state = self.state.lock().unwrap();
            let duration = Duration::from_millis(state.rng.random_range(0..20_000));
            let fails = state.is_failing && state.rng.random_bool(0.3);
            (duration, fails.then(|| faults[state.rng.random_range(0..faults.len())].to_owned()))
        };
        tokio::time::sleep(duration).await;
        match fault {
            Some(fault) => Err(FaultNote::new(fault, "it failed", "try again")),
            None => Ok(()),
        }
    }
}

/// Whether a release's trial always fails: every fifth.
fn is_bad(release: &ReleaseId) -> bool {
    (1..=50u8).filter(|number| number % 5 == 0).any(|number| release_id(number) == *release)
}

impl ReleaseHost for ToyHost {
    type Model = ReleaseId;
    type Trial = ();
    type Standby = ReleaseId;

    fn serving(&self) -> ReleaseId {
        self.state.lock().unwrap().serving.clone()
    }

    async fn fetch(&self, order: &Order, step: &(dyn Fn(&str) + Sync)) -> Result<ReleaseId, FaultNote> {
        step("fetching");
        let release = order.release.release.clone();
        self.take_step("fetch", &release, &["package_missing", "package_unreachable", "package_damaged"]).await?;
        Ok(release)
    }

    async fn run_trial(&self, model: &ReleaseId) -> Result<(), FaultNote> {
        self.take_step("try", model, &["trial_impossible", "memory_short", "probe_differs"]).await?;
        if is_bad(model) && self.kind != HostKind::SkipsTrials {
            return Err(FaultNote::new("probe_differs", "the probe's prediction differs", "seal it again"));
        }
        if !is_bad(model) {
            self.disk.lock().unwrap().passed.insert(model.clone());
        }
        Ok(())
    }

    async fn load(&self, model: &ReleaseId, (): ()) -> Result<ReleaseId, FaultNote> {
        self.take_step("load", model, &["memory_short", "graph_unusable"]).await?;
        Ok(model.clone())
    }

    fn announce(&self, model: &ReleaseId) {
        self.note("announce", model);
    }

    fn record_serving(&self, release: &ReleaseId) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let is_rollback = *release == state.serving;
        (state.is_handing_over, state.has_failed) = (!is_rollback, false);
        if !(is_rollback && self.kind == HostKind::SkipsRollback) {
            self.disk.lock().unwrap().recorded = release.clone();
        }
        Ok(())
    }

    fn record_stable(&self) -> std::io::Result<()> {
        Ok(())
    }

    async fn hand_over(&self, standby: ReleaseId) -> Result<(), FaultNote> {
        self.take_step("hand over", &standby, &["swap_broke"]).await?;
        let mut state = self.state.lock().unwrap();
        state.is_handing_over = false;
        state.served_releases.push(standby.clone());
        state.serving = standby;
        Ok(())
    }

    fn remove_old(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn trim_memory(&self) {}
}

fn order(number: u64, release: u8) -> Order {
    let release = Release {
        release: release_id(release),
        parent: None,
        origin: "imported".into(),
        package: Vec::new(),
        needs: MachineRequirements::default(),
        public: None,
        public_change_interval: None,
    };
    Order { site: site(), model: model(), number, release, stage: ReleaseStage::Stable, said_at_ms: 0, signature: None }
}

/// Checks what must hold for a worker at any moment.
fn check_host(host: &ToyHost, swap: &SwapState) -> Result<(), String> {
    let (state, disk) = (host.state.lock().unwrap(), host.disk.lock().unwrap());
    let has_passed = |release: &ReleaseId| *release == release_id(0) || disk.passed.contains(release);
    if !has_passed(&state.serving) {
        return Err(format!("{} serves, but its trial never passed", state.serving.short()));
    }
    if !has_passed(&disk.recorded) {
        return Err(format!("the next process would start with {}, whose trial never passed", disk.recorded.short()));
    }
    if swap.step.is_none() && disk.recorded != state.serving {
        return Err(format!("{} serves, but {} is recorded", state.serving.short(), disk.recorded.short()));
    }
    if swap.refused.len() > 8 {
        return Err(format!("{} refusals are reported, more than 8", swap.refused.len()));
    }
    Ok(())
}

async fn swap_under_faults(seed: u64, kind: HostKind) -> SeedResult {
    let _simulation = MemoryCluster::new(seed);
    let mut rng = rng_of(seed, 1);
    let disk = Arc::new(Mutex::new(ToyDisk { recorded: release_id(0), passed: BTreeSet::new() }));
    let log = Arc::new(Mutex::new(Vec::new()));
    let (sender, orders) = watch::channel(None);
    let (mut number, processes) = (0, rng.random_range(1..5));
    for process in 0..processes {
        let host = ToyHost::start(kind, &disk, &log, rng_of(seed, 100 + process));
        let state = watch::Sender::new(SwapState { since_ms: 0, order: 0, step: None, refused: Vec::new() });
        let ends_at = tokio::time::Instant::now() + Duration::from_millis(rng.random_range(1000..200_000));
        let following = follow_orders(&host, &state, orders.clone());
        let ordering = async {
            while tokio::time::Instant::now() < ends_at {
                tokio::time::sleep(Duration::from_millis(rng.random_range(10..60_000))).await;
                // Sometimes an older order arrives late, or the same one again.
                let next = match rng.random_range(0..10) {
                    0 => number.max(2) - 1,
                    1 => number,
                    _ => number + 1,
                };
                number = number.max(next);
                let release = u8::try_from(next % 50).unwrap();
                sender.send_replace(Some(order(next, release)));
            }
        };
        let watching = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if let Err(violation) = check_host(&host, &state.borrow()) {
                    return violation;
                }
            }
        };
        // When its time is up, the process dies in whatever step it is.
        tokio::select! {
            biased;
            violation = watching => return Err(violation),
            () = following => return Err("the worker stopped following orders".into()),
            () = ordering => {}
        }
        let served_releases = host.state.lock().unwrap().served_releases.clone();
        let served: Vec<u8> =
            served_releases.iter().filter_map(|id| (0..=50).find(|number| release_id(*number) == *id)).collect();
        if served.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(format!("the worker went back to an older release: {served:?}"));
        }
    }
    // The last process: no step fails any more, and the ordered release is good.
    let host = ToyHost::start(kind, &disk, &log, rng_of(seed, 99));
    host.state.lock().unwrap().is_failing = false;
    let state = watch::Sender::new(SwapState { since_ms: 0, order: 0, step: None, refused: Vec::new() });
    let last = order(number + 1, 51);
    sender.send_replace(Some(last.clone()));
    let following = follow_orders(&host, &state, orders.clone());
    let _still_following = tokio::time::timeout(Duration::from_secs(600), following).await;
    check_host(&host, &state.borrow())?;
    let serving = host.serving();
    if serving != last.release.release || state.borrow().order != last.number {
        return Err(format!(
            "{} serves ten minutes after {} was ordered",
            serving.short(),
            last.release.release.short()
        ));
    }
    let log = log.lock().unwrap();
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    std::hash::Hash::hash(&*log, &mut hasher);
    Ok(std::hash::Hasher::finish(&hasher))
}

#[test]
fn a_good_release_serves_whichever_step_fails() {
    check_seeds("swap::a_good_release_serves_whichever_step_fails", 300, |seed| {
        swap_under_faults(seed, HostKind::Sound)
    });
}

#[test]
fn equal_seeds_give_equal_histories() {
    check_repeats("swap::equal_seeds_give_equal_histories", 50, |seed| swap_under_faults(seed, HostKind::Sound));
}

#[test]
fn a_host_that_skips_the_rollback_is_caught() {
    let caught = find_failure(200, |seed| swap_under_faults(seed, HostKind::SkipsRollback));
    let (seed, why) = caught.expect("two hundred seeds did not catch a worker that skips the rollback");
    println!("caught at seed {seed}: {why}");
}

#[test]
fn a_host_that_skips_trials_is_caught() {
    let caught = find_failure(200, |seed| swap_under_faults(seed, HostKind::SkipsTrials));
    let (seed, why) = caught.expect("two hundred seeds did not catch a worker that skips trials");
    println!("caught at seed {seed}: {why}");
}
