//! What decisions are made by: the load of the site, the delay of its own machine, and what verdicts gain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::pictures::nth_picture;
use harness::program::run;
use harness::{ProxyMode, TestWorld, WorldPlan, until};
use schemas::{DecisionReport, LinkReport, Reason, Route};
use streams::fleet;
use tokio::time::Instant;

use crate::common::{PATIENCE, answered, link_is_down, publish};
use crate::deploy::{get, listens_at};

/// Threads that keep every processor busy; they end when dropped.
struct BusyThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BusyThreads {
    fn start(for_each_core: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..cores * for_each_core).map(|_| std::thread::spawn(spin(stop.clone()))).collect();
        Self { stop, threads }
    }
}

impl Drop for BusyThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

async fn decision(world: &TestWorld) -> anyhow::Result<Option<DecisionReport>> {
    Ok(fleet::live_workers(world.bus(0)).await?.into_iter().find_map(|beat| beat.decision))
}

async fn link(world: &TestWorld) -> anyhow::Result<Option<LinkReport>> {
    Ok(fleet::live_workers(world.bus(0)).await?.into_iter().find_map(|beat| beat.link))
}

async fn printed(world: &TestWorld, command: &str) -> String {
    let mut words = vec![command.to_owned()];
    words.extend(world.at(0));
    run(world.folder(), &words).await.unwrap().out
}

async fn link_is_available(world: &TestWorld) {
    let available = async || Ok(link(world).await?.filter(|link| link.available && link.cloud.is_some()).map(drop));
    until("the link is up and a verifier heard of", PATIENCE, available).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_processor_is_seen_as_load_and_not_as_a_slow_link() {
    let plan = WorldPlan::leaves(1).set("metrics.listen=\"127.0.0.1:0\"").set("recognizer.verify.enabled=false");
    let world = TestWorld::start_with_workers(plan).await.unwrap();
    let (bus, site) = (world.bus(0).clone(), world.site(0).name.clone());
    link_is_available(&world).await;
    // Both clocks learn the best of the machine.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let busy = BusyThreads::start(12);
    let (began, mut delays_ms, mut slowdowns, mut contention) = (Instant::now(), Vec::new(), Vec::new(), 1.0_f64);
    let mut number = 0;
    while began.elapsed() < Duration::from_secs(12) {
        publish(&bus, &site, &nth_picture(true, number).unwrap().bytes, &[]).await;
        number += 1;
        if let Some(link) = link(&world).await.unwrap() {
            delays_ms.extend(link.probe_delay_ms);
            slowdowns.push(link.slowdown_ratio);
            assert!(link.up && link.available, "after {:?}: {link:?}", began.elapsed());
        }
        let decision = decision(&world).await.unwrap();
        contention = contention.max(decision.and_then(|decision| decision.contention_ratio).unwrap_or(1.0));
    }
    let address = listens_at(&world.workers["recognizer-0"].log()).unwrap();
    let (_, told) = get(&address, "/metrics").await.unwrap();
    drop(busy);
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    println!("delay {:.1} ms, slowdown {:.2}, contention {contention:.1}", worst(&delays_ms), worst(&slowdowns));
    assert!(worst(&delays_ms) > 3.0, "the machine was not busy: {delays_ms:?}");
    assert!(contention > 1.5, "{contention}");
    for metric in ["tributary_load_cpu_ratio", "tributary_load_contention_ratio", "tributary_energy_joules_total"] {
        assert!(told.contains(&format!("{metric}{{site=\"{site}\"")), "{metric} is not in {told}");
    }
    for command in ["status", "policy"] {
        let said = printed(&world, command).await;
        assert!(said.contains("load: processor ") && said.contains(" times its time on a free one"), "{said}");
        assert!(said.contains("energy: "), "{said}");
        println!("{said}");
    }
}

#[tokio::test]
async fn a_site_short_of_memory_offloads_by_default_and_holds_nothing() {
    let plan = WorldPlan::leaves(1)
        .set("recognizer.policy.load.memory_low_ratio=0")
        .set("recognizer.policy.load.memory_high_ratio=0.001");
    let world = TestWorld::start_with_workers(plan).await.unwrap();
    let site = world.site(0);
    let picture = nth_picture(true, 0).unwrap();
    link_is_available(&world).await;
    until("the recognizer hears of link and memory", PATIENCE, async || {
        let decision = decision(&world).await?;
        let hears = |decision: &DecisionReport| {
            decision.memory_ratio.is_some_and(|ratio| ratio > 0.001)
                && decision.why.contains("link available, a verdict")
        };
        Ok(decision.filter(hears).map(drop))
    })
    .await
    .unwrap();
    for _ in 0..3 {
        let task = publish(&site.bus, &site.name, &picture.bytes, &[]).await;
        let answer = answered(&world, task).await;
        assert_eq!((answer.route, answer.reason), (Route::Redirected, Reason::Overload), "{answer:?}");
    }
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    link_is_down(&site.bus, PATIENCE).await.unwrap();
    let task = publish(&site.bus, &site.name, &picture.bytes, &[]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.reason), (Route::Edge, Reason::Confident), "{answer:?}");
    let report = until("a report after the outage", PATIENCE, async || Ok(decision(&world).await?)).await.unwrap();
    assert_eq!(report.held, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_teach_what_they_gain_and_the_objective_acts_on_it() {
    // Where a verdict must gain more than it ever does, doubtful answers stand as soon as that is known.
    let plan = WorldPlan::leaves(1)
        .set("recognizer.policy.tolerance.accuracy_points=100")
        .set("recognizer.policy.tolerance.energy_j=0");
    let world = TestWorld::start_with_workers(plan).await.unwrap();
    let site = world.site(0);
    let (mut changed, mut asked) = (0, 0);
    for number in 0..40 {
        let picture = nth_picture(false, number).unwrap();
        let answer = answered(&world, publish(&site.bus, &site.name, &picture.bytes, &[]).await).await;
        if answer.route == Route::Verified {
            (asked, changed) = (asked + 1, changed + i32::from(picture.light.label != picture.heavy.label));
        }
        if number < 25 {
            assert_eq!(answer.route, Route::Verified, "nothing is known yet: {answer:?}");
        }
    }
    let report = until("the gain is known", PATIENCE, async || {
        Ok(decision(&world).await?.filter(|decision| decision.gain.is_some()))
    })
    .await
    .unwrap();
    let points = report.gain.unwrap().doubtful_points.unwrap();
    let expected = 100.0 * f64::from(changed + 1) / f64::from(asked + 2);
    assert!((points - expected).abs() < 1e-6, "{points}, expected {expected} of {changed} in {asked}");
    assert!(report.inference_j.unwrap() > 0.0 && report.uplink_j.unwrap() > 0.0, "{report:?}");

    let mut kept = 0;
    for number in 40..60 {
        let picture = nth_picture(false, number).unwrap();
        let task = publish(&site.bus, &site.name, &picture.bytes, &[]).await;
        let answer = answered(&world, task).await;
        let is_sampled = offload::hash_fraction(task, "sample") < 0.02;
        let expected = if is_sampled { (Route::Verified, answer.reason) } else { (Route::Edge, Reason::NotVerified) };
        assert_eq!((answer.route, answer.reason), expected, "{answer:?}");
        kept += u64::from(!is_sampled);
    }
    let said = printed(&world, "status").await;
    assert!(kept > 10 && said.contains("% of doubtful answers"), "{said}");
    println!("{said}");
    // The back-test knows what was known then.
    let mut words = vec!["backtest".to_owned(), "--json".into(), "--policy".into(), "earliest-finish".into()];
    words.extend(world.at(0));
    let played = run(world.folder(), &words).await.unwrap();
    let played: serde_json::Value = serde_json::from_str(&played.out).unwrap();
    assert_eq!(played["played"][1]["otherwise"], 0, "{played}");
    assert_eq!(played["played"][0]["kept"], played["played"][1]["kept"], "{played}");
}
