//! What decisions are made by: the load of the site, the delay of its own machine, and what verdicts gain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::pictures::nth_picture;
use harness::program::run;
use harness::{ProxyMode, TestWorld, WorldPlan, until};
use nix::libc;
use schemas::{DecisionReport, LinkReport, Reason, Route};
use streams::fleet;
use tokio::time::Instant;

use crate::common::{PATIENCE, answered, link_is_down, publish};
use crate::deploy::{get, listens_at};

/// Threads of other work on the site's processor.
const OTHERS: usize = 12;

/// The processor that a test leaves to a site, which other work then fills; the cloud has the others, if there are any.
struct SiteProcessor {
    number: usize,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SiteProcessor {
    /// Moves a site's workers and its server to one processor, where other work comes first: a kernel gives way to threads
    /// that mostly sleep, as ours do while little is sent.
    fn of(world: &TestWorld) -> Self {
        let processor = Self { number: usable_processor(), stop: Arc::default(), threads: Vec::new() };
        let workers = ["recognizer-0", "courier-0", "janitor-0"].map(|name| world.workers[name].id());
        for process in workers.into_iter().chain(world.site(0).server.process()) {
            for thread in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(Result::unwrap) {
                let thread = thread.file_name().to_str().unwrap().parse().unwrap();
                move_thread(thread, processor.number);
                lower_priority(thread);
            }
        }
        processor
    }

    /// Keeps it busy with so many threads, until it is dropped.
    fn fill(&mut self, threads: usize) {
        for _ in 0..threads {
            let (stop, number) = (self.stop.clone(), self.number);
            self.threads.push(std::thread::spawn(move || {
                move_thread(0, number);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }));
        }
    }
}

impl Drop for SiteProcessor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// A processor that this process may use.
#[allow(unsafe_code)]
fn usable_processor() -> usize {
    // SAFETY: all zeros is an empty set, which the call fills; 0 denotes the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), 0);
        (0..libc::CPU_SETSIZE as usize).find(|number| libc::CPU_ISSET(*number, &set)).unwrap()
    }
}

/// Makes a thread, 0 for the calling one, run on one processor. One that has ended stays where it was.
#[allow(unsafe_code)]
fn move_thread(thread: i32, processor: usize) {
    // SAFETY: all zeros is an empty set; the call only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

#[allow(unsafe_code)]
fn lower_priority(thread: i32) {
    // SAFETY: the call takes numbers alone.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, thread.unsigned_abs(), 10);
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
    let mut processor = SiteProcessor::of(&world);
    // The probe and the cost learn their best.
    tokio::time::sleep(Duration::from_secs(2)).await;
    processor.fill(OTHERS);
    let (began, mut delays_ms, mut slowdowns, mut contention) = (Instant::now(), Vec::new(), Vec::new(), 1.0_f64);
    let large = vision::enlarged(&nth_picture(true, 0).unwrap().bytes, 1000).unwrap();
    while began.elapsed() < Duration::from_secs(12) {
        // So many that the replica always has one.
        for _ in 0..4 {
            publish(&bus, &site, &large, &[]).await;
        }
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
    drop(processor);
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    assert!(worst(&delays_ms) > 20.0, "the machine was not busy: {delays_ms:?}");
    assert!(worst(&slowdowns) < 2.0, "{slowdowns:?}");
    assert!(contention > 1.5, "{contention}");
    for metric in ["tributary_load_cpu_ratio", "tributary_load_contention_ratio", "tributary_energy_joules_total"] {
        assert!(told.contains(&format!("{metric}{{site=\"{site}\"")), "{metric} is not in {told}");
    }
    for command in ["status", "policy"] {
        let said = printed(&world, command).await;
        assert!(said.contains("load: processor ") && said.contains(" times its time on a free one"), "{said}");
        assert!(said.contains("energy: "), "{said}");
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
    let expected = 100.0 * f64::from(changed + 1) / f64::from(asked + 2);
    let report = until("the gain that these verdicts amount to", PATIENCE, async || {
        let decision = decision(&world).await?;
        let points = decision.as_ref().and_then(|decision| decision.gain?.doubtful_points);
        anyhow::ensure!(points.is_some_and(|points| (points - expected).abs() < 1e-6), "{points:?}, not {expected}");
        Ok(decision)
    })
    .await
    .unwrap();
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
    // The back-test knows what was known then.
    let mut words = vec!["backtest".to_owned(), "--json".into(), "--policy".into(), "earliest-finish".into()];
    words.extend(world.at(0));
    let played = run(world.folder(), &words).await.unwrap();
    let played: serde_json::Value = serde_json::from_str(&played.out).unwrap();
    assert_eq!(played["played"][1]["otherwise"], 0, "{played}");
    assert_eq!(played["played"][0]["kept"], played["played"][1]["kept"], "{played}");
}
