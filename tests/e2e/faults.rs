//! Nothing that was acknowledged is lost, and nothing is answered twice, whatever dies meanwhile.

use std::time::Duration;

use harness::pictures::nth_picture;
use harness::world::crash;
use harness::{InjectedFault, Oracle, ProxyMode, TestWorld, WorldPlan, fault, seed, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::HEADER_BLOB;
use schemas::{Answer, Route, decode, encode};
use streams::fleet::Ledger;
use streams::server::Durability;
use streams::{Blobs, Bus, Publication, Publisher, reader, subject, topology};

use crate::common::{PATIENCE, answered, publish};

const IMAGES_PER_S: u32 = 40;
/// After the last fault: redeliveries, the janitor's audit and the slowest promise fit in.
const SETTLING: Duration = Duration::from_secs(90);

/// Publishes while the faults happen one after another, then lets the oracle judge.
async fn inject_fault(world: TestWorld, seed: u64, faults: Vec<InjectedFault>) {
    let oracle = Oracle::new(seed, &world.site(0).name, world.bus(0)).unwrap();
    suffer_before(oracle, world, seed, faults).await;
}

/// Waits until images flow: a fault hits a world at work, where something is under way when it comes.
async fn is_at_work(bus: &Bus) -> anyhow::Result<()> {
    let before = reader::stream_level(bus, topology::IMAGES).await.map_or(0, |level| level.last_sequence);
    until("images flow", PATIENCE, async || {
        Ok((reader::stream_level(bus, topology::IMAGES).await?.last_sequence > before + 20).then_some(()))
    })
    .await
}

async fn suffer_before(oracle: Oracle, mut world: TestWorld, seed: u64, faults: Vec<InjectedFault>) {
    let publishing = oracle.start_publishing(IMAGES_PER_S);
    for (number, fault) in faults.iter().enumerate() {
        let at_work = is_at_work(world.bus(0)).await;
        at_work.unwrap_or_else(|error| panic!("seed {seed}, before fault {number}: {error:#}"));
        let suffered = world.inject_fault(fault).await;
        suffered.unwrap_or_else(|error| panic!("seed {seed}, fault {number} ({fault}): {error:#}"));
    }
    oracle.stop_publishing();
    publishing.await.unwrap().unwrap();
    let judgement = oracle.judge(&world.cloud, SETTLING).await.unwrap();
    println!("{judgement}; {} faults: {faults:?}", faults.len());
    if let Err(error) = judgement.verdict() {
        panic!("{error:#}\nfaults: {faults:#?}\n{}", world.log_tails());
    }
    assert!(judgement.acknowledged > 20 * faults.len(), "hardly anything was published: {judgement}");
    for (name, worker) in &mut world.workers {
        assert_eq!(worker.ended().unwrap(), None, "{name} ended by itself: {}", worker.log());
    }
}

const WORKERS: [&str; 4] = ["recognizer-0", "courier-0", "verifier-0", "janitor-0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_workers_and_the_server_of_a_site_die() {
    let seed = seed(20261);
    // `fast` promises as much as `power-safe` while only processes die.
    let world = TestWorld::start_with_workers(WorldPlan { durability: Durability::Fast, ..WorldPlan::default() })
        .await
        .unwrap();
    inject_fault(world, seed, fault::plan(seed, 12, &WORKERS, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_the_link_and_the_cloud_die() {
    let seed = seed(20262);
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    inject_fault(world, seed, fault::plan(seed, 12, &WORKERS, true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_at_two_sites_of_a_fleet_when_encrypted_links_and_the_hub_die() {
    let seed = seed(20265);
    let mut world = TestWorld::start_with_workers(WorldPlan { fleet: true, ..WorldPlan::leaves(2) }).await.unwrap();
    let oracles: Vec<Oracle> = (0..2)
        .map(|site| Oracle::new(seed + site, &world.site(site as usize).name, world.bus(site as usize)).unwrap())
        .collect();
    let publishing: Vec<_> = oracles.iter().map(|oracle| oracle.start_publishing(20)).collect();
    for (number, fault) in fault::plan(seed, 12, &WORKERS, true).iter().enumerate() {
        for site in 0..2 {
            let at_work = is_at_work(world.bus(site)).await;
            at_work.unwrap_or_else(|error| panic!("seed {seed}, site {site}, before fault {number}: {error:#}"));
        }
        let suffered = world.inject_fault(fault).await;
        suffered.unwrap_or_else(|error| panic!("seed {seed}, fault {number} ({fault}): {error:#}"));
    }
    for (oracle, publishing) in oracles.iter().zip(publishing) {
        oracle.stop_publishing();
        publishing.await.unwrap().unwrap();
        let judgement = oracle.judge(&world.cloud, SETTLING).await.unwrap();
        println!("{judgement}");
        if let Err(error) = judgement.verdict() {
            panic!("{error:#}\n{}", world.log_tails());
        }
    }
    // The roles did everything with the rights they have.
    let log = std::fs::read_to_string(world.folder().join("cloud/nats-server.log")).unwrap();
    let denied: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(denied.is_empty(), "{denied:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_policies_change_links_flap_and_deadlines_pass() {
    const POLICIES: [&str; 4] = ["cloud-only", "paper", "earliest-finish", "edge-only"];
    let seed = seed(20264);
    let plan = WorldPlan::leaves(1).set("recognizer.policy.cloud_only_timeout_ms=1500");
    let world = TestWorld::start_with_workers(plan).await.unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut faults = fault::plan(seed, 6, &["recognizer-0", "courier-0", "verifier-0"], true);
    for time_ms in [300, 1500, 700, 2500, 500] {
        let cut = if rng.random_bool(0.5) { ProxyMode::Silent } else { ProxyMode::Reset };
        faults.push(InjectedFault::CutLink { site: 0, cut, time: Duration::from_millis(time_ms) });
    }
    let ledger = Ledger::open(world.bus(0)).await.unwrap();
    let changing = tokio::spawn(async move {
        for policy in POLICIES.iter().cycle() {
            // Fails while the server is away, and then the policy stays.
            let _ = ledger.write("policy", format!("{{\"name\":\"{policy}\"}}")).await;
            tokio::time::sleep(Duration::from_millis(1700)).await;
        }
    });
    let oracle = Oracle::new(seed, &world.site(0).name, world.bus(0)).unwrap().with_deadlines(2500);
    suffer_before(oracle, world, seed, faults).await;
    changing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_the_link_is_away_for_half_a_minute() {
    let seed = seed(20263);
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let cut = InjectedFault::CutLink { site: 0, cut: ProxyMode::Silent, time: Duration::from_secs(30) };
    inject_fault(world, seed, vec![cut]).await;
}

/// A picture that takes the server several messages to store and to read.
fn large(picture: &[u8]) -> Vec<u8> {
    let mut bytes = picture.to_vec();
    bytes.resize(6_000_000, 0);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_by_reference_survives_a_crash_of_the_server_while_it_is_fetched() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    let blobs = Blobs::open(&site.bus).await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..12 {
        let reference =
            blobs.store_blob(&large(&nth_picture(number % 2 == 0, number).unwrap().bytes)).await.unwrap().to_string();
        tasks.push(publish(&site.bus, &site.name, b"", &[(HEADER_BLOB, &reference)]).await);
        if number % 3 == 2 {
            crash(&site.server, &site.bus).await.unwrap();
        }
    }
    for task in tasks {
        let answer = answered(&world, task).await;
        assert!(matches!(answer.route, Route::Edge | Route::Verified), "task {task}: {:?}", answer.fault);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verified_answers_lost_with_the_server_are_had_again() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    for round in 0..3 {
        let mut tasks = Vec::new();
        for number in 0..25 {
            tasks.push(publish(&site.bus, &site.name, &nth_picture(false, number).unwrap().bytes, &[]).await);
        }
        let newest = tasks[tasks.len() - 1];
        answered(&world, newest).await;
        // The newest answers may be in the server's memory alone.
        crash(&site.server, &site.bus).await.unwrap();
        for task in tasks {
            let answer = answered(&world, task).await;
            assert_eq!(answer.route, Route::Verified, "round {round}, task {task}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_starts_while_its_server_dies_waits_for_it() {
    let seed = seed(20267);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    world.courier("courier", 0).unwrap();
    for round in 0..8 {
        world.worker_mut("courier").unwrap().restart().unwrap();
        // Anywhere between its first connection and its first pull.
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..60))).await;
        crash(&world.site(0).server, world.bus(0)).await.unwrap();
        let worker = world.worker_mut("courier").unwrap();
        let ended = worker.ended().unwrap();
        assert_eq!(ended, None, "seed {seed}, round {round}: {}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oracle_notices_what_is_lost_doubled_mixed_up_or_given_up() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    let oracle = Oracle::new(seed(20266), &site.name, &site.bus).unwrap();
    oracle.publish_all(40).await.unwrap();
    let judgement = oracle.judge(&world.cloud, PATIENCE).await.unwrap();
    judgement.verdict().unwrap();
    let tasks = oracle.acknowledged();
    let slot = async |task| {
        let slot = subject::final_answer_of_any_camera(&site.name, task);
        reader::last_message(&site.bus, topology::ANSWERS, &slot).await.unwrap().unwrap()
    };
    let anew = Publisher::new(site.bus.clone(), PATIENCE);
    // Lost: its slot is emptied. Doubled: one more beside it. Mixed up: another picture's answer.
    let (lost, doubled, mixed) = (slot(tasks[0]).await, slot(tasks[1]).await, slot(tasks[2]).await);
    reader::delete_message(&site.bus, topology::ANSWERS, lost.sequence).await.unwrap();
    let outcome = |slot: &str| slot.replacen("answer.final.", "outcome.", 1);
    let second = Publication::with_id(outcome(&doubled.subject), doubled.payload, "second");
    anew.publish(&second).await.unwrap();
    let mut other: Answer = decode(&mixed.payload).unwrap();
    other.confidence = Some(0.123);
    reader::delete_message(&site.bus, topology::ANSWERS, mixed.sequence).await.unwrap();
    anew.publish(&Publication::first_on_subject(outcome(&mixed.subject), encode(&other).unwrap())).await.unwrap();
    let violations = oracle.judge(&world.cloud, Duration::from_secs(3)).await.unwrap().violations.join("\n");
    for (task, what) in [(tasks[0], "has no outcome"), (tasks[1], "has 2 final answers"), (tasks[2], "expected")] {
        let noticed = violations.lines().any(|line| line.contains(&task.to_string()) && line.contains(what));
        assert!(noticed, "{task}: {what:?} was not noticed:\n{violations}");
    }
    assert_eq!(violations.lines().filter(|line| !line.contains("not within")).count(), 3, "{violations}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes to hours: make soak"]
async fn soak() {
    let count = std::env::var("TRIBUTARY_SOAK_FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(50);
    let seed = seed(20264);
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    inject_fault(world, seed, fault::plan(seed, count, &WORKERS, true)).await;
}
