//! The walk of a release: imported, tried by a few sites, run by all or by none; whatever dies, is cut off or is bad.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::pictures::LIGHT;
use harness::program::{binary, fixture, run};
use harness::{Oracle, ProxyMode, TestWorld, WorldPlan, seed, until};
use nix::sys::signal::Signal;
use releases::confinement::Confinement;
use releases::trial::TrialRunner;
use releases::{decision_log, stage};
use schemas::{DecisionOrigin, ModelName, ReleaseId, ReleaseStage, Rollout, Swap, decode};
use sha2::{Digest, Sha256};
use streams::reader::{self, StreamRange};
use streams::{Blobs, topology};
use vision::{InferenceSettings, Model};

use crate::common::{PATIENCE, publish};

/// Swaps on a machine whose processors have much else to do.
const LONG: Duration = Duration::from_secs(120);
const IMAGES_PER_S: u32 = 40;

fn light() -> ModelName {
    ModelName::from_name("fashion-light")
}

/// The light model again, as another release: it says the same, so that an oracle can judge whichever answers.
fn again(folder: &Path, number: u32) -> PathBuf {
    let into = folder.join(format!("again-{number}"));
    std::fs::create_dir_all(&into).unwrap();
    let from = fixture(LIGHT);
    for file in ["model.toml", "graph.onnx", "labels.txt"] {
        let mut bytes = std::fs::read(from.join(file)).unwrap();
        if file == "model.toml" {
            bytes.extend(format!("\n# once more, {number}\n").bytes());
        }
        std::fs::write(into.join(file), bytes).unwrap();
    }
    into
}

fn release_of(folder: &Path) -> ReleaseId {
    Model::load(folder).unwrap().release
}

/// Settings under which a canary is decided within seconds: a test shows that decisions are followed, not how good they are.
fn quick(plan: WorldPlan) -> WorldPlan {
    [
        "recognizer.report_s=1",
        "recognizer.count_s=1",
        "recognizer.verify.sample_ratio=0.3",
        "verifier.report_s=1",
        "verifier.count_s=1",
        "releaser.canary.min_images=60",
        "releaser.canary.agreement_margin_ratio=0.5",
        "releaser.canary.escalation_margin_ratio=0.7",
        "releaser.canary.confidence_margin_ratio=0.7",
        "releaser.canary.faults_margin_ratio=0.4",
        "releaser.canary.cost_ratio=200",
    ]
    .into_iter()
    .fold(plan, |plan, pair| plan.set(pair))
}

async fn import(world: &TestWorld, folder: &Path) -> ReleaseId {
    let ended = world.release(&["import", &folder.display().to_string()]).await.unwrap();
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    release_of(folder)
}

/// Decides by hand.
async fn decide(world: &TestWorld, words: &[&str]) {
    let ended = world.release(&[words, &["--name", "fashion-light"]].concat()).await.unwrap();
    assert!(ended.success, "{words:?}: {}\n{}", ended.out, ended.err);
}

/// What each worker said last, by site.
async fn reports(world: &TestWorld) -> anyhow::Result<BTreeMap<String, Swap>> {
    let mut latest: BTreeMap<String, Swap> = BTreeMap::new();
    for swap in decision_log::reports(&world.cloud).await? {
        let known = latest.get(swap.site.as_str()).map_or(0, |known| known.said_at_ms);
        if swap.said_at_ms >= known {
            latest.insert(swap.site.to_string(), swap);
        }
    }
    Ok(latest)
}

/// Waits until these sites say that they run a release.
async fn all_run(world: &TestWorld, sites: &[usize], release: &ReleaseId) {
    let names: Vec<String> = sites.iter().map(|site| world.site(*site).name.to_string()).collect();
    let what = format!("{names:?} run {}", release.short());
    let there = until(&what, LONG, async || {
        let reports = reports(world).await?;
        let runs = |name: &String| reports.get(name).is_some_and(|swap| swap.release == *release);
        anyhow::ensure!(
            names.iter().all(runs),
            "{:?}",
            reports.values().map(|swap| (&swap.site, swap.release.short(), &swap.refused)).collect::<Vec<_>>()
        );
        Ok(Some(()))
    });
    there.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

/// Waits until so many more images were published at a site.
async fn images_flow(world: &TestWorld, site: usize, more: u64) {
    let newest = async || anyhow::Ok(reader::stream_level(world.bus(site), topology::IMAGES).await?.last_sequence);
    let before = newest().await.unwrap();
    until("images flow", PATIENCE, async || Ok((newest().await? >= before + more).then_some(()))).await.unwrap();
}

async fn stands(world: &TestWorld) -> Rollout {
    decision_log::latest(&world.cloud, &light()).await.unwrap().expect("something was decided")
}

/// Waits until a release stands so.
async fn becomes(world: &TestWorld, release: &ReleaseId, wanted: ReleaseStage) -> Rollout {
    let what = format!("{} is {}", release.short(), wanted.as_str());
    let there = until(&what, LONG, async || {
        let now = decision_log::latest(&world.cloud, &light()).await?;
        Ok(now.filter(|now| stage::stage_of(now, release) == Some(wanted)))
    });
    there.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()))
}

/// Invariant 6: nothing is stable that no ring tried, unless a person said so; and each decision has its own number.
async fn canary_came_first(world: &TestWorld) {
    let history = decision_log::history(&world.cloud, &light()).await.unwrap();
    let numbers: Vec<u64> = history.iter().map(|then| then.number).collect();
    assert_eq!(numbers, (1..=history.len() as u64).collect::<Vec<_>>());
    for (at, then) in history.iter().enumerate().skip(1) {
        let tried = history[..at].iter().any(|before| {
            before.decision.release == then.decision.release && before.decision.stage == ReleaseStage::Canary
        });
        let announced =
            then.decision.stage != ReleaseStage::Stable || then.decision.origin == DecisionOrigin::Hand || tried;
        assert!(announced, "{:?}", then.decision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_tried_by_one_site_then_all_have_it_and_no_image_is_lost() {
    let mut world =
        TestWorld::start_with_workers(quick(WorldPlan::leaves(2)).set("releaser.rings=[{\"sites\":[\"site-2\"]}]"))
            .await
            .unwrap();
    world.releaser("releaser").unwrap();
    let first = import(&world, &fixture(LIGHT)).await;
    let oracles: Vec<Oracle> =
        (0..2).map(|site| Oracle::new(seed(20301), &world.site(site).name, world.bus(site)).unwrap()).collect();
    let publishing: Vec<_> = oracles.iter().map(|oracle| oracle.start_publishing(IMAGES_PER_S)).collect();
    // Both are seen for a while, so that the ring can be held against what it was.
    images_flow(&world, 0, 240).await;
    let second = import(&world, &again(world.folder(), 1)).await;
    let tried = becomes(&world, &second, ReleaseStage::Canary).await;
    assert_eq!(tried.canary.unwrap().ring, ["site-2".parse().unwrap()]);
    // No round starts beside it: what came of it would start from what may be withdrawn.
    let (url, model) = (world.cloud_url(), fixture(LIGHT).display().to_string());
    let refused = run(world.folder(), &["round", "open", "--nats", &url, "--model", &model]).await.unwrap();
    assert!(!refused.success && refused.err.contains("is in its canary, and a round"), "{}", refused.err);
    let stable = becomes(&world, &second, ReleaseStage::Stable).await;
    let measures: Vec<&str> = stable.decision.findings.iter().map(|finding| finding.measure.as_str()).collect();
    assert_eq!(measures, ["agreement", "sent up", "confidence", "cost", "faults"]);
    all_run(&world, &[0, 1], &second).await;
    decide(&world, &["rollback"]).await;
    all_run(&world, &[0, 1], &first).await;
    decide(&world, &["pin", "site-1", second.as_str()]).await;
    all_run(&world, &[0], &second).await;
    all_run(&world, &[1], &first).await;
    // What was withdrawn by the rollback is not tried again by itself.
    canary_came_first(&world).await;
    let shown = world.release(&["show", second.short(), "--name", "fashion-light"]).await.unwrap();
    for part in ["tried by site-2", "agreement", "withdrawn", "pinned", "by releaser"] {
        assert!(shown.out.contains(part), "{part:?} is not in {}", shown.out);
    }
    for (oracle, publishing) in oracles.iter().zip(publishing) {
        oracle.stop_publishing();
        publishing.await.unwrap().unwrap();
        let judgement = oracle.judge(&world.cloud, LONG).await.unwrap();
        judgement.verdict().unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
        assert!(judgement.acknowledged > 200, "{judgement}");
    }
    let by_release = answers_by_release(&world, 1).await;
    assert!(by_release.contains_key(&first) && by_release.contains_key(&second), "{by_release:?}");
}

/// The release that said something at the site, whoever had the last word.
fn at_the_edge(answer: &schemas::Answer) -> Option<ReleaseId> {
    answer.edge.as_ref().map(|edge| edge.release.clone()).or_else(|| answer.release.clone())
}

/// Final answers of a site's own, by the release they name.
async fn answers_by_release(world: &TestWorld, site: usize) -> BTreeMap<ReleaseId, u64> {
    let mut counts = BTreeMap::new();
    let last = reader::stream_level(world.bus(site), topology::ANSWERS).await.unwrap().last_sequence;
    reader::read_range(world.bus(site), topology::ANSWERS, StreamRange::default(), last, |record| {
        let answer: schemas::Answer = decode(&record.payload).unwrap();
        if let Some(edge) = at_the_edge(&answer) {
            *counts.entry(edge).or_insert(0) += 1;
        }
    })
    .await
    .unwrap();
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recognizer_killed_at_any_step_of_a_swap_comes_to_it_and_no_image_is_lost() {
    let mut world = TestWorld::start_with_workers(quick(WorldPlan::default())).await.unwrap();
    world.releaser("releaser").unwrap();
    import(&world, &fixture(LIGHT)).await;
    let oracle = Oracle::new(seed(20302), &world.site(0).name, world.bus(0)).unwrap();
    let publishing = oracle.start_publishing(IMAGES_PER_S);
    for (number, step) in ["fetching", "unpacking", "trying", "loading", "swapping"].into_iter().enumerate() {
        let release = import(&world, &again(world.folder(), number as u32)).await;
        decide(&world, &["promote", release.as_str()]).await;
        let said = format!("swap release=\"{}\" step=\"{step}\"", release.short());
        world.worker_mut("recognizer-0").unwrap().wait_for_log(&said, LONG).await.unwrap();
        world.worker_mut("recognizer-0").unwrap().restart().unwrap();
        all_run(&world, &[0], &release).await;
    }
    oracle.stop_publishing();
    publishing.await.unwrap().unwrap();
    let judgement = oracle.judge(&world.cloud, LONG).await.unwrap();
    judgement.verdict().unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

/// Processes that leave nothing of the processors to whoever runs when they are idle, and little enough to nobody else.
fn leave_nothing_idle() -> Vec<tokio::process::Child> {
    let processors = std::thread::available_parallelism().unwrap().get();
    let busy = || {
        tokio::process::Command::new("nice")
            .args(["-n", "10", "sh", "-c", "while :; do :; done"])
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    std::iter::repeat_with(busy).take(4 * processors).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_whose_processors_are_never_idle_swaps_all_the_same() {
    let mut world = TestWorld::start_with_workers(quick(WorldPlan::default())).await.unwrap();
    world.releaser("releaser").unwrap();
    let first = import(&world, &fixture(LIGHT)).await;
    all_run(&world, &[0], &first).await;
    let busy = leave_nothing_idle();
    let release = import(&world, &again(world.folder(), 1)).await;
    decide(&world, &["promote", release.as_str()]).await;
    all_run(&world, &[0], &release).await;
    drop(busy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_releasers_and_couriers_that_are_killed_again_and_again_decide_each_thing_once() {
    let plan = quick(WorldPlan::leaves(2)).set("releaser.rings=[{\"sites\":[\"site-2\"]}]");
    let mut world = TestWorld::start_with_workers(plan).await.unwrap();
    world.releaser("releaser-a").unwrap();
    world.releaser("releaser-b").unwrap();
    import(&world, &fixture(LIGHT)).await;
    let oracles: Vec<Oracle> =
        (0..2).map(|site| Oracle::new(seed(20303), &world.site(site).name, world.bus(site)).unwrap()).collect();
    let publishing: Vec<_> = oracles.iter().map(|oracle| oracle.start_publishing(IMAGES_PER_S)).collect();
    for number in 0..3_u32 {
        // What is tried is held against what was stable before: with so few sites, each must have been seen under that.
        for site in [0, 1] {
            images_flow(&world, site, 200).await;
        }
        let release = import(&world, &again(world.folder(), number)).await;
        for victim in ["releaser-a", "courier-1", "releaser-b", "courier-0"] {
            images_flow(&world, 0, 25).await;
            world.worker_mut(victim).unwrap().restart().unwrap();
        }
        becomes(&world, &release, ReleaseStage::Stable).await;
        all_run(&world, &[0, 1], &release).await;
    }
    canary_came_first(&world).await;
    for (oracle, publishing) in oracles.iter().zip(publishing) {
        oracle.stop_publishing();
        publishing.await.unwrap().unwrap();
        let judgement = oracle.judge(&world.cloud, LONG).await.unwrap();
        judgement.verdict().unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_was_away_for_the_whole_canary_has_what_is_stable_when_it_is_back() {
    let mut world =
        TestWorld::start_with_workers(quick(WorldPlan::leaves(2)).set("releaser.rings=[{\"sites\":[\"site-2\"]}]"))
            .await
            .unwrap();
    world.releaser("releaser").unwrap();
    let first = import(&world, &fixture(LIGHT)).await;
    all_run(&world, &[0, 1], &first).await;
    world.sites[0].link.as_ref().unwrap().set(ProxyMode::Reset);
    let second = import(&world, &again(world.folder(), 1)).await;
    becomes(&world, &second, ReleaseStage::Canary).await;
    all_run(&world, &[1], &second).await;
    decide(&world, &["promote", second.as_str()]).await;
    // It answers all the while with what it has.
    let task =
        publish(world.bus(0), &world.site(0).name, &harness::pictures::nth_picture(true, 1).unwrap().bytes, &[]).await;
    let answer = crate::common::answered(&world, task).await;
    assert_eq!(at_the_edge(&answer), Some(first), "{answer:?}");
    world.sites[0].link.as_ref().unwrap().set(ProxyMode::Open);
    all_run(&world, &[0, 1], &second).await;
    // It is there when the cloud is away again and the worker begins anew.
    world.sites[0].link.as_ref().unwrap().set(ProxyMode::Reset);
    world.worker_mut("recognizer-0").unwrap().restart().unwrap();
    let task =
        publish(world.bus(0), &world.site(0).name, &harness::pictures::nth_picture(true, 2).unwrap().bytes, &[]).await;
    assert_eq!(at_the_edge(&crate::common::answered(&world, task).await), Some(second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_refused_by_name_and_the_site_goes_on() {
    let mut world = TestWorld::start_with_workers(quick(WorldPlan::default())).await.unwrap();
    world.releaser("releaser").unwrap();
    let first = import(&world, &fixture(LIGHT)).await;
    all_run(&world, &[0], &first).await;
    // Weights that give no numbers do not become a release at all.
    let broken = again(world.folder(), 90);
    let mut graph = std::fs::read(broken.join("graph.onnx")).unwrap();
    let half = graph.len() / 2;
    graph[half..half + 4000].fill(0xff);
    std::fs::write(broken.join("graph.onnx"), &graph).unwrap();
    let refused = world.release(&["import", &broken.display().to_string()]).await.unwrap();
    assert!(!refused.success && refused.err.contains("score_not_finite"), "{}\n{}", refused.out, refused.err);

    // One whose process dies while it is tried; nothing else does.
    let crashes = import(&world, &again(world.folder(), 1)).await;
    let dying = tokio::spawn(kill_trials(world.worker_mut("recognizer-0").unwrap().id()));
    decide(&world, &["promote", crashes.as_str()]).await;
    refuses(&world, &crashes, "release_crashed").await;
    dying.abort();
    decide(&world, &["rollback"]).await;

    // Packages that are not what they should be: altered, of another release, missing. The orders are ours.
    all_run(&world, &[0], &first).await;
    world.worker_mut("releaser").unwrap().kill().unwrap();
    let good = import(&world, &again(world.folder(), 2)).await;
    let other = import(&world, &again(world.folder(), 3)).await;
    let now = stands(&world).await;
    let known = decision_log::releases(&decision_log::history(&world.cloud, &light()).await.unwrap());
    let of = |release: &ReleaseId| known.iter().find(|known| known.release == *release).unwrap().clone();
    let (good_release, other_release) = (of(&good), of(&other));
    let publisher = streams::Publisher::new(world.cloud.clone(), PATIENCE);
    let site = world.site(0).name.clone();
    let blobs = Blobs::open_in_cloud(&world.cloud).await.unwrap();
    let altered = blobs.store_blob(&vec![7; 200_000]).await.unwrap();
    let gone = schemas::BlobRef::new([1; 32], 1000);
    let whole = blobs.fetch_blob(&good_release.package[0], 1 << 23).await.unwrap();
    let cut_off = blobs.store_blob(&whole[..whole.len() / 2]).await.unwrap();
    let mut number = now.number;
    for (package, name) in [
        (vec![altered], "package_damaged"),
        (other_release.package.clone(), "package_of_other_release"),
        (vec![cut_off], "package_damaged"),
    ] {
        let mut order = stage::order_for_site(&now, &site);
        number += 1;
        order.number = number;
        order.release = schemas::Release { package, ..good_release.clone() };
        decision_log::publish_order(&publisher, &order, true).await.unwrap();
        refuses(&world, &good, name).await;
    }
    let mut order = stage::order_for_site(&now, &site);
    order.number = number + 1;
    order.release = schemas::Release { package: vec![gone], ..good_release.clone() };
    decision_log::publish_order(&publisher, &order, false).await.unwrap();
    refuses(&world, &good, "package_missing").await;

    // One that the machine cannot run: it says so before it fetches anything.
    order.number += 1;
    order.release.needs =
        schemas::MachineRequirements { opset: 99, runtime: "9.0".into(), ..good_release.needs.clone() };
    decision_log::publish_order(&publisher, &order, false).await.unwrap();
    refuses(&world, &good, "runtime_too_old").await;
    let answered = publish(world.bus(0), &site, &harness::pictures::nth_picture(true, 1).unwrap().bytes, &[]).await;
    assert_eq!(at_the_edge(&crate::common::answered(&world, answered).await), Some(first));
    let command = [vec!["status".to_owned()], world.at(0)].concat();
    let shown = until("the status says so", PATIENCE, async || {
        let status = harness::program::run(world.folder(), &command).await?;
        anyhow::ensure!(
            status.out.contains("does not run") && status.out.contains("runtime_too_old"),
            "{}",
            status.out
        );
        Ok(Some(()))
    });
    shown.await.unwrap();
}

/// Waits until the site says that it does not run a release, and why.
async fn refuses(world: &TestWorld, release: &ReleaseId, name: &str) {
    let what = format!("{} is refused: {name}", release.short());
    let said = until(&what, LONG, async || {
        let reports = reports(world).await?;
        let refused = reports.values().flat_map(|swap| &swap.refused).find(|refused| refused.release == *release);
        Ok(refused.filter(|refused| refused.fault.kind.as_str() == name).map(|_| ()))
    });
    said.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

/// Kills every process in which a worker tries a release, with what a crash of the runtime ends it.
async fn kill_trials(worker: u32) {
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(process) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if parent == Some(worker) && String::from_utf8_lossy(&line).contains(releases::trial::COMMAND) {
                let _gone_already = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), Signal::SIGSEGV);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_ends_its_worker_again_and_again_is_given_up_for_the_one_before() {
    let mut world = TestWorld::start_with_workers(quick(WorldPlan::default())).await.unwrap();
    world.releaser("releaser").unwrap();
    let first = import(&world, &fixture(LIGHT)).await;
    let second = import(&world, &again(world.folder(), 1)).await;
    decide(&world, &["promote", second.as_str()]).await;
    all_run(&world, &[0], &second).await;
    for _ in 0..2 {
        world.worker_mut("recognizer-0").unwrap().restart().unwrap();
        let started = world.worker_mut("recognizer-0").unwrap().id();
        until("the worker lives again", PATIENCE, async || {
            let reports = reports(&world).await?;
            Ok(reports.values().any(|swap| swap.worker.ends_with(&format!("-{started}"))).then_some(()))
        })
        .await
        .unwrap();
    }
    refuses(&world, &second, "release_crashed").await;
    all_run(&world, &[0], &first).await;
}

/// The built program tries a folder whose labels are a link to a file outside: an operator's folder may have such links, a
/// release that came may not, and the kernel refuses what is not the trial's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_reads_its_model_and_nothing_outside_of_its_folder() {
    let root = tempfile::tempdir().unwrap();
    let folder = again(root.path(), 1);
    let outside = root.path().join("labels-of-somebody-else.txt");
    std::fs::rename(folder.join("labels.txt"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, folder.join("labels.txt")).unwrap();
    let trial = TrialRunner { program: binary().unwrap().to_owned(), onnxruntime: None };
    let infer = InferenceSettings::default();
    let own = trial.run_trial(&folder, &infer).await.unwrap();
    let came = trial.run_beside_work(&folder, &infer, Some((1, 1.0)), false).await;
    if own.confinement == Confinement::None {
        println!("NOT ENFORCED: this kernel has no Landlock, so the trial could read what it liked");
        assert_eq!(came.unwrap().confinement, Confinement::None);
        return;
    }
    let refused = came.expect_err("it read a file outside of its folder");
    assert!(refused.reason.contains("Permission denied"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clouds_model_is_released_as_a_sites_is() {
    let mut world = TestWorld::start_with_workers(quick(WorldPlan::default())).await.unwrap();
    world.releaser("releaser").unwrap();
    let heavy = fixture(harness::pictures::HEAVY);
    let first = import(&world, &heavy).await;
    let other = world.folder().join("heavier");
    std::fs::create_dir_all(&other).unwrap();
    for file in ["model.toml", "graph.onnx", "labels.txt"] {
        std::fs::copy(heavy.join(file), other.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(other.join("model.toml")).unwrap();
    std::fs::write(other.join("model.toml"), text + "\n# again\n").unwrap();
    let second = import(&world, &other).await;
    let runs = async |release: &ReleaseId| {
        let there = until("the verifier runs it", LONG, async || {
            Ok(reports(&world).await?.get("cloud").filter(|swap| swap.release == *release).map(|_| ()))
        });
        there.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    };
    let ended = world.release(&["promote", second.as_str(), "--name", "fashion-heavy"]).await.unwrap();
    assert!(ended.success, "{}", ended.err);
    runs(&second).await;
    let doubtful = harness::pictures::nth_picture(false, 1).unwrap();
    let task = publish(world.bus(0), &world.site(0).name, &doubtful.bytes, &[]).await;
    let answer = crate::common::answered(&world, task).await;
    assert_eq!(answer.release, Some(second), "{answer:?}");
    let ended = world.release(&["rollback", "--name", "fashion-heavy"]).await.unwrap();
    assert!(ended.success, "{}", ended.err);
    runs(&first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_others_is_imported_as_its_maker_signed_it_or_not_at_all() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let path = |path: &Path| path.display().to_string();
    let key = |name: &str| path(&fixture("model_signature/keys").join(name));
    let (signature, public, other) =
        (path(&fixture("model_signature/fashion-light.sig")), key("public.pem"), key("other-public.pem"));
    let trusted = format!("releaser.trusted_keys=[{public:?}]");
    let import = async |folder: &Path, is_demanded: bool, more: &[&str]| {
        let (folder, demand) = (path(folder), ["--set", &trusted]);
        let before = if is_demanded { &demand[..] } else { &[] };
        world.release(&[before, &["import", &folder], more].concat()).await.unwrap()
    };
    let (model, changed) = (fixture(LIGHT), again(world.folder(), 1));
    let more = world.folder().join("more");
    std::fs::create_dir(&more).unwrap();
    for file in ["model.toml", "graph.onnx", "labels.txt"] {
        std::fs::copy(model.join(file), more.join(file)).unwrap();
    }
    std::fs::write(more.join("head.onnx"), "nobody signed this").unwrap();
    let [own, others] = [[&public, "--signature", &signature], [&other, "--signature", &signature]]
        .map(|[key, flag, signature]| ["--signed-by", key, flag, signature]);
    let cases: [(&Path, bool, &[&str], &str); 8] = [
        (&model, false, &others, "was not signed by this key"),
        (&changed, false, &own, "\"model.toml\" was changed"),
        (&more, false, &own, "\"head.onnx\" is not in the signature"),
        (&model, false, &own[..2], "is not signed"),
        (&model, false, &own[2..], "--signed-by PUBLIC.pem"),
        (&model, true, &[], "is not signed"),
        (&model, true, &others, "not one of releaser.trusted_keys"),
        (&changed, true, &own[2..], "\"model.toml\" was changed"),
    ];
    for (folder, is_demanded, words, why) in cases {
        let ended = import(folder, is_demanded, words).await;
        assert!(!ended.success && ended.err.contains(why), "{words:?}: {}\n{}", ended.out, ended.err);
    }
    assert!(decision_log::latest(&world.cloud, &light()).await.unwrap().is_none());
    let none = world.release(&["list"]).await.unwrap();
    assert!(!none.success && none.err.contains("there is no release"), "{}\n{}", none.out, none.err);

    let ended = import(&model, true, &own[2..]).await;
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    // Who has the key can say its fingerprint without us.
    let fingerprint: String =
        Sha256::digest(std::fs::read(&public).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    let said = format!("signed   by key {fingerprint}");
    assert!(ended.out.contains(&said), "{}", ended.out);
    let release = release_of(&model);
    let shown = world.release(&["show", release.as_str()]).await.unwrap();
    assert!(shown.success && shown.out.contains(&said), "{}\n{}", shown.out, shown.err);
}
