//! The long run: two sites on disks of their own, everything that may break does, and beside ordinary cameras there are
//! clients as the field has them. Needs root, for it mounts a file system for each site.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use harness::pictures::some;
use harness::world::Site;
use harness::{Cut, Fault, Oracle, Plan, World, seed, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::Stored;
use schemas::{Answer, Route, Task, TaskId, decode};
use streams::read::{self, Stretch};
use streams::server::Durability;
use streams::topology::StreamSettings;
use streams::{Bus, subject, topology};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// After the last fault: redeliveries, the audit and the slowest promise fit in.
const SETTLING: Duration = Duration::from_secs(120);
/// Size of a site's disk, MiB: what the streams of the run hold, and room for the reserve.
const DISK_MIB: u32 = 400;

/// A file system of its own, gone when dropped.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(folder: &'a Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status().unwrap();
        assert!(mounted.success(), "a full disk needs a file system of its own: run `make soak` as root");
        Self(folder)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _busy = Command::new("umount").args(["-l"]).arg(self.0).status();
    }
}

/// What a subscriber was told of each task: every label it heard.
type Told = Arc<Mutex<HashMap<TaskId, HashSet<String>>>>;

fn subscribe(url: String, told: Told) -> JoinHandle<()> {
    tokio::spawn(async move {
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(url).await.unwrap();
        let mut finals = client.subscribe("answer.final.>").await.unwrap();
        while let Some(message) = finals.next().await {
            let Ok(answer) = decode::<Answer>(&message.payload) else { continue };
            let label = format!("{} {:?}", answer.route, answer.label);
            told.lock().unwrap().entry(answer.task).or_default().insert(label);
        }
    })
}

/// A client that knows nothing of tributary: odd headers, ids that begin again, any size, no acknowledgement.
fn odd_client(address: String, site: String, seed: u64, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    const HEADERS: [&[u8]; 6] = [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nX-Place: K\xfcche\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\na b: 1\r\n\r\n",
    ];
    tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut sent, mut raw) = (0, None::<TcpStream>);
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..300))).await;
            if raw.is_none() {
                raw = TcpStream::connect(&address).await.ok();
                if let Some(raw) = &mut raw {
                    let _gone = raw.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await;
                }
            }
            let Some(connection) = &mut raw else { continue };
            let camera = rng.random_range(0..5usize);
            let mut bytes = some(true, camera).unwrap().bytes.to_vec();
            let size = match rng.random_range(0..40) {
                0 => rng.random_range(2_000_000..8_000_000),
                1..4 => rng.random_range(100_000..2_000_000),
                _ => rng.random_range(1_000..100_000),
            };
            bytes.resize(size.max(bytes.len()), 0);
            let headers = match rng.random_range(0..3) {
                0 => format!("NATS/1.0\r\nNats-Msg-Id: frame-{:04}\r\n\r\n", rng.random_range(0..20)).into_bytes(),
                _ => HEADERS[rng.random_range(0..HEADERS.len())].to_vec(),
            };
            let subject = format!("image.{site}.odd-{camera}");
            let head = format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + bytes.len());
            let message = [head.as_bytes(), &headers, &bytes, b"\r\n"].concat();
            match connection.write_all(&message).await {
                Ok(()) => sent += 1,
                Err(_) => raw = None,
            }
        }
        sent
    })
}

/// Every image of the odd cameras that is in the stream has its outcome, and the right one.
async fn odd_violations(site: &Site) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    let (images, answers) =
        (read::level(&site.bus, topology::IMAGES).await?, read::level(&site.bus, topology::ANSWERS).await?);
    let (mut by_image, mut by_task) = (HashMap::new(), HashSet::new());
    read::stretch(&site.bus, topology::ANSWERS, Stretch::default(), answers.last_sequence, |record| {
        if subject::read_finality(&record.subject).is_ok()
            && let Ok(answer) = decode::<Answer>(&record.payload)
        {
            by_task.insert(answer.task);
            by_image.insert(answer.image_sequence, answer);
        }
    })
    .await?;
    read::stretch(&site.bus, topology::IMAGES, Stretch::default(), images.last_sequence, |record| {
        let Ok((name, camera)) = subject::read_image(&record.subject) else { return };
        let Some(number) = camera.as_str().strip_prefix("odd-").and_then(|number| number.parse::<usize>().ok()) else {
            return;
        };
        let expected = some(true, number).unwrap();
        match by_image.get(&record.sequence) {
            Some(answer) => {
                let right = match answer.route {
                    Route::Edge | Route::Expired => &expected.light.label,
                    Route::Verified | Route::Redirected => &expected.heavy.label,
                    Route::Dead => "",
                };
                if answer.label.as_deref() != Some(right) {
                    violations.push(format!("2: image {} of {camera}: {:?}", record.sequence, answer.label));
                }
            }
            None => {
                let stored =
                    Stored { site: name, camera, sequence: record.sequence, stored_at_ns: record.stored_at_ns };
                let task = Task::id_of(&stored, &|name| record.header(name), &record.payload).unwrap();
                if !by_task.contains(&task) {
                    violations.push(format!("10: image {} of {} has no outcome", record.sequence, record.subject));
                }
            }
        }
    })
    .await?;
    Ok(violations)
}

/// So many faults in the seed's order; every kind comes before any comes twice.
fn faults(seed: u64, count: usize, disks: &[&Path]) -> Vec<Fault> {
    const WORKERS: [&str; 7] =
        ["recognizer-0", "recognizer-1", "courier-0", "courier-1", "janitor-0", "janitor-1", "verifier-0"];
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kinds: Vec<u32> = Vec::new();
    let ms = |rng: &mut StdRng, range: std::ops::Range<u64>| Duration::from_millis(rng.random_range(range));
    (0..count)
        .map(|_| {
            if kinds.is_empty() {
                kinds = (0..8).collect();
            }
            let kind = kinds.swap_remove(rng.random_range(0..kinds.len()));
            let worker = || WORKERS[0..7].to_vec();
            let site = rng.random_range(0..2usize);
            match kind {
                0 | 1 => {
                    let worker = worker()[rng.random_range(0..7)].into();
                    Fault::Freeze { worker, beyond: ms(&mut rng, 0..2000) }
                }
                2 => Fault::Kill { worker: worker()[rng.random_range(0..7)].into(), away: ms(&mut rng, 0..1500) },
                3 => Fault::CrashSite { site },
                4 => Fault::CrashCloud,
                5 => Fault::FreezeSite { site, time: ms(&mut rng, 1000..4000) },
                6 => Fault::FillDisk { folder: disks[site].into(), time: ms(&mut rng, 1000..5000) },
                _ => {
                    let cut = if rng.random_bool(0.5) { Cut::Silent } else { Cut::Reset };
                    Fault::CutLink { site, cut, time: ms(&mut rng, 300..5000) }
                }
            }
        })
        .collect()
}

async fn run(seed: u64, count: usize) -> BTreeMap<&'static str, usize> {
    let folder = tempfile::tempdir().unwrap();
    let disks = ["site-1", "site-2"].map(|site| folder.path().join(site));
    let _mounted: Vec<Disk> = disks.iter().map(|disk| Disk::mount(disk)).collect();
    let streams = StreamSettings {
        images_max_mib: 128,
        outbox_max_mib: 32,
        blobs_max_mib: 64,
        ack_wait_s: 2,
        ..StreamSettings::default()
    };
    let plan = Plan { streams, stores: Some(folder.path().into()), durability: Durability::Fast, ..Plan::leaves(2) };
    let mut world = World::whole(plan).await.unwrap();
    let told: Told = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut beside = Vec::new();
    let mut oracles = Vec::new();
    for (site, number) in world.sites.iter().zip(0u64..) {
        let url = site.server.url();
        drop(subscribe(url.clone(), told.clone()));
        let address = url.trim_start_matches("nats://").to_owned();
        beside.push(odd_client(address, site.name.to_string(), seed * 10 + number, stop.clone()));
        oracles.push(Oracle::new(seed * 2 + number, &site.name, &site.bus).unwrap().with_deadlines(4000));
    }
    let pouring: Vec<_> = oracles.iter().map(|oracle| oracle.pour(6)).collect();
    let disks: Vec<&Path> = disks.iter().map(|disk| disk.as_path()).collect();
    for (number, fault) in faults(seed, count, &disks).iter().enumerate() {
        let suffered = world.suffer(fault).await;
        suffered.unwrap_or_else(|error| panic!("seed {seed}, fault {number} ({fault}): {error:#}"));
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for client in beside {
        sent += client.await.unwrap();
    }
    let mut acknowledged = 0;
    let mut violations = Vec::new();
    for ((oracle, pouring), site) in oracles.iter().zip(pouring).zip(&world.sites) {
        oracle.enough();
        pouring.await.unwrap().unwrap();
        let judgement = oracle.judge(&world.cloud, SETTLING).await.unwrap();
        println!("{judgement}");
        acknowledged += judgement.acknowledged;
        violations.extend(judgement.violations);
        let odd = until("the odd ones are done", SETTLING, async || {
            let violations = odd_violations(site).await?;
            anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
            Ok(Some(()))
        });
        violations.extend(odd.await.err().map(|error| format!("{error:#}")));
    }
    let twice: Vec<String> = {
        let told = told.lock().unwrap();
        let twice = told.iter().filter(|(_, labels)| labels.len() > 1);
        twice.map(|(task, labels)| format!("2: task {task} was told as {labels:?}")).collect()
    };
    let heard = told.lock().unwrap().len();
    violations.extend(twice);
    assert!(heard > acknowledged / 2, "subscribers heard of {heard} tasks of {acknowledged}");
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations:\n{}\n{}",
        violations.len(),
        violations.join("\n"),
        world.last_words()
    );
    for (name, worker) in &mut world.workers {
        assert_eq!(worker.ended().unwrap(), None, "{name} ended by itself: {}", worker.log());
    }
    [("faults", count), ("acknowledged", acknowledged), ("odd", usize::try_from(sent).unwrap()), ("told", heard)].into()
}

/// A stream whose server met a full disk takes messages again by itself, under load and repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root: make soak"]
async fn a_disk_that_was_full_for_a_while_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("site");
    let _mounted = Disk::mount(&disk);
    let streams = StreamSettings { images_max_mib: 64, ack_wait_s: 2, ..StreamSettings::default() };
    let plan = Plan { streams, stores: Some(folder.path().into()), durability: Durability::Fast, ..Plan::default() };
    let mut world = World::start(plan.set("recognizer.verify.enabled=false")).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let site = world.site(0).name.clone();
    let oracle = Oracle::new(seed(20281), &site, world.bus(0)).unwrap();
    let pouring = oracle.pour(20);
    for time_s in [1, 4, 2, 8, 3] {
        let before = oracle.acknowledged().len();
        let fault = Fault::FillDisk { folder: disk.clone(), time: Duration::from_secs(time_s) };
        world.suffer(&fault).await.unwrap();
        until("images are stored again", Duration::from_secs(30), async || {
            Ok((oracle.acknowledged().len() > before + 40).then_some(()))
        })
        .await
        .unwrap_or_else(|error| panic!("after {time_s} s: {error:#}"));
    }
    oracle.enough();
    pouring.await.unwrap().unwrap();
    world.janitor("janitor-0", 0).unwrap();
    let bus: Bus = world.bus(0).clone();
    let open = until("every image has an outcome", SETTLING, async || {
        for task in oracle.acknowledged() {
            let slot = subject::finality_of_any_camera(&site, task);
            if read::last(&bus, topology::ANSWERS, &slot).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    open.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.last_words()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "an hour: make soak"]
async fn five_seeds_of_faults_lose_leave_double_mix_up_and_tell_twice_nothing() {
    let count = std::env::var("TRIBUTARY_SOAK_FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100);
    let seeds = std::env::var("TRIBUTARY_SOAK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(5);
    for number in 0..seeds {
        let counts = run(seed(20290) + number, count).await;
        println!("seed {}: {counts:?}", seed(20290) + number);
    }
}
