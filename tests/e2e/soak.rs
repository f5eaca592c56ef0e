//! The long runs, in two worlds: each role a process of its own, and `tributary up --sites 2`. Everything that may break
//! does, at both sites, and beside ordinary cameras there are clients as the field has them. Needs root, for file systems
//! are mounted that can be filled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use harness::fault::{fill_for, freeze_for};
use harness::pictures::nth_picture;
use harness::world::TestSite;
use harness::{InjectedFault, Oracle, ProxyMode, TestWorld, WorkerProcess, WorldPlan, seed, until};
use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::StorageStamp;
use schemas::{Answer, Route, SiteName, Task, TaskId, decode};
use streams::reader::{self, StreamRange};
use streams::server::Durability;
use streams::topology::StreamSettings;
use streams::{Bus, NatsSettings, subject, topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;

/// From the end of a fault to the next.
const BETWEEN: Duration = Duration::from_millis(700);
/// After the last fault: redeliveries, the audit and the slowest promise fit in.
const SETTLING: Duration = Duration::from_secs(120);
/// Size of a site's disk, MiB: what the streams of the run hold, and room for the reserve.
const DISK_MIB: u32 = 400;
/// Size of the disk of `up`, which has the cloud's streams on it as well.
const UP_DISK_MIB: u32 = 1200;

/// A file system of its own, gone when dropped.
struct SoakDisk<'a>(&'a Path);

impl<'a> SoakDisk<'a> {
    fn mount(folder: &'a Path, size_mib: u32) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let size = format!("size={size_mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status().unwrap();
        assert!(mounted.success(), "a full disk needs a file system of its own: run `make soak` as root");
        Self(folder)
    }
}

impl Drop for SoakDisk<'_> {
    fn drop(&mut self) {
        let _busy = Command::new("umount").args(["-l"]).arg(self.0).status();
    }
}

/// What a subscriber was told of each task, as often as it heard it.
type DeliveryCounts = Arc<Mutex<HashMap<TaskId, Vec<String>>>>;

fn subscribe(url: String, told: DeliveryCounts) -> JoinHandle<()> {
    tokio::spawn(async move {
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(url).await.unwrap();
        let mut finals = client.subscribe("answer.final.>").await.unwrap();
        while let Some(message) = finals.next().await {
            let Ok(answer) = decode::<Answer>(&message.payload) else { continue };
            let label = format!("{} {:?}", answer.route, answer.label);
            told.lock().unwrap().entry(answer.task).or_default().push(label);
        }
    })
}

/// The number of a camera and its picture, as large as cameras make them.
fn odd_image(rng: &mut StdRng) -> (usize, Vec<u8>) {
    let camera = rng.random_range(0..5usize);
    let mut bytes = nth_picture(true, camera).unwrap().bytes.to_vec();
    let size = match rng.random_range(0..40) {
        0 => rng.random_range(2_000_000..8_000_000),
        1..4 => rng.random_range(100_000..2_000_000),
        _ => rng.random_range(1_000..100_000),
    };
    bytes.resize(size.max(bytes.len()), 0);
    (camera, bytes)
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
            let (camera, bytes) = odd_image(&mut rng);
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

/// A camera that speaks MQTT 3.1.1 at QoS 1 (docs.oasis-open.org, sections 3.1 and 3.3). Returns how many PUBACKs came.
fn mqtt_camera(address: String, site: String, seed: u64, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(seed);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (mut connection, mut packet) = (None, 0u16);
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..300))).await;
            if connection.is_none() {
                connection = connect_mqtt(&address, &acknowledged).await.ok();
            }
            let Some(writing) = &mut connection else { continue };
            let (camera, bytes) = odd_image(&mut rng);
            packet = packet.checked_add(1).unwrap_or(1);
            let topic = format!("image/{site}/odd-{camera}");
            let body = [&string(&topic)[..], &packet.to_be_bytes(), &bytes].concat();
            if writing.write_all(&control(0x32, &body)).await.is_err() {
                connection = None;
            }
        }
        acknowledged.load(Ordering::Relaxed)
    })
}

async fn connect_mqtt(address: &str, acknowledged: &Arc<AtomicU64>) -> std::io::Result<OwnedWriteHalf> {
    let (mut reading, mut writing) = TcpStream::connect(address).await?.into_split();
    // Protocol level 4, a clean session, no keep-alive.
    let body = [&string("MQTT")[..], &[4, 2, 0, 0], &string("odd-camera")].concat();
    writing.write_all(&control(0x10, &body)).await?;
    let acknowledged = acknowledged.clone();
    drop(tokio::spawn(async move {
        // All that comes is CONNACK and PUBACK, four bytes each.
        let mut four = [0; 4];
        while reading.read_exact(&mut four).await.is_ok() {
            acknowledged.fetch_add(u64::from(four[0] == 0x40), Ordering::Relaxed);
        }
    }));
    Ok(writing)
}

/// A text with its length before it.
fn string(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// A control packet: its first byte, seven bits of its length a byte, its body.
fn control(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let seven = u8::try_from(left % 128).unwrap();
        left /= 128;
        packet.push(if left > 0 { seven | 128 } else { seven });
        if left == 0 {
            break;
        }
    }
    [&packet, body].concat()
}

/// Every image of the odd cameras that is in the stream has its outcome, and the right one.
async fn odd_violations(bus: &Bus) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    let (images, answers) =
        (reader::stream_level(bus, topology::IMAGES).await?, reader::stream_level(bus, topology::ANSWERS).await?);
    let (mut by_image, mut by_task) = (HashMap::new(), HashSet::new());
    reader::read_range(bus, topology::ANSWERS, StreamRange::default(), answers.last_sequence, |record| {
        if subject::read_final_answer(&record.subject).is_ok()
            && let Ok(answer) = decode::<Answer>(&record.payload)
        {
            by_task.insert(answer.task);
            by_image.insert(answer.image_sequence, answer);
        }
    })
    .await?;
    reader::read_range(bus, topology::IMAGES, StreamRange::default(), images.last_sequence, |record| {
        let Ok((name, camera)) = subject::read_image(&record.subject) else { return };
        let Some(number) = camera.as_str().strip_prefix("odd-").and_then(|number| number.parse::<usize>().ok()) else {
            return;
        };
        let expected = nth_picture(true, number).unwrap();
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
                    StorageStamp { site: name, camera, sequence: record.sequence, stored_at_ns: record.stored_at_ns };
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
fn faults(seed: u64, count: usize, disks: &[&Path]) -> Vec<InjectedFault> {
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
                    InjectedFault::Freeze { worker, beyond: ms(&mut rng, 0..2000) }
                }
                2 => {
                    InjectedFault::Kill { worker: worker()[rng.random_range(0..7)].into(), away: ms(&mut rng, 0..1500) }
                }
                3 => InjectedFault::CrashSite { site },
                4 => InjectedFault::CrashCloud,
                5 => InjectedFault::FreezeSite { site, time: ms(&mut rng, 1000..4000) },
                6 => InjectedFault::FillDisk { folder: disks[site].into(), time: ms(&mut rng, 1000..5000) },
                _ => {
                    let cut = if rng.random_bool(0.5) { ProxyMode::Silent } else { ProxyMode::Reset };
                    InjectedFault::CutLink { site, cut, time: ms(&mut rng, 300..5000) }
                }
            }
        })
        .collect()
}

/// A site as its cameras and subscribers see it.
struct SoakSite {
    name: SiteName,
    bus: Bus,
    url: String,
    /// Where MQTT is spoken, if it is.
    mqtt: Option<String>,
}

/// Cameras of all kinds at all sites, and subscribers that write down what they hear.
struct SoakLoad {
    sites: Vec<(Oracle, JoinHandle<anyhow::Result<()>>, Bus)>,
    beside: Vec<JoinHandle<u64>>,
    told: DeliveryCounts,
    stop: Arc<AtomicBool>,
}

impl SoakLoad {
    fn begin(seed: u64, grounds: Vec<SoakSite>) -> Self {
        let (told, stop) = (DeliveryCounts::default(), Arc::new(AtomicBool::new(false)));
        let (mut sites, mut beside) = (Vec::new(), Vec::new());
        for (ground, number) in grounds.into_iter().zip(0u64..) {
            let (name, own) = (ground.name.to_string(), seed * 10 + number);
            drop(subscribe(ground.url.clone(), told.clone()));
            let address = ground.url.trim_start_matches("nats://").to_owned();
            beside.push(odd_client(address, name.clone(), own, stop.clone()));
            beside.extend(ground.mqtt.map(|mqtt| mqtt_camera(mqtt, name, own, stop.clone())));
            let oracle = Oracle::new(seed * 2 + number, &ground.name, &ground.bus).unwrap().with_deadlines(4000);
            let publishing = oracle.start_publishing(6);
            sites.push((oracle, publishing, ground.bus));
        }
        Self { sites, beside, told, stop }
    }

    /// No more images; how many there were, and everything that is not as it must be.
    async fn end(self, cloud: &Bus) -> (BTreeMap<&'static str, u64>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut odd = 0;
        for client in self.beside {
            odd += client.await.unwrap();
        }
        let (mut acknowledged, mut longest_ms, mut violations) = (0, 0, Vec::new());
        for (oracle, publishing, bus) in self.sites {
            oracle.stop_publishing();
            publishing.await.unwrap().unwrap();
            let judgement = oracle.judge(cloud, SETTLING).await.unwrap();
            println!("{judgement}");
            acknowledged += judgement.acknowledged as u64;
            longest_ms = longest_ms.max(judgement.longest_ms);
            violations.extend(judgement.violations);
            let odd = until("the odd ones are done", SETTLING, async || {
                let violations = odd_violations(&bus).await?;
                anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
                Ok(Some(()))
            });
            violations.extend(odd.await.err().map(|error| format!("{error:#}")));
        }
        let told = self.told.lock().unwrap();
        let twice = told.iter().filter(|(_, heard)| heard.len() > 1);
        violations.extend(twice.map(|(task, heard)| format!("2: task {task} was told as {heard:?}")));
        let heard = told.len() as u64;
        assert!(heard > acknowledged / 2, "subscribers heard of {heard} tasks of {acknowledged}");
        let counts = [("acknowledged", acknowledged), ("odd", odd), ("told", heard), ("longest_ms", longest_ms)];
        (counts.into(), violations)
    }
}

fn streams() -> StreamSettings {
    StreamSettings {
        images_max_mib: 128,
        outbox_max_mib: 32,
        blobs_max_mib: 64,
        ack_wait_s: 2,
        ..StreamSettings::default()
    }
}

async fn run(seed: u64, count: usize) -> BTreeMap<&'static str, u64> {
    let folder = tempfile::tempdir().unwrap();
    let disks = ["site-1", "site-2"].map(|site| folder.path().join(site));
    let _mounted: Vec<SoakDisk> = disks.iter().map(|disk| SoakDisk::mount(disk, DISK_MIB)).collect();
    let stores = Some(folder.path().into());
    let plan = WorldPlan { streams: streams(), stores, durability: Durability::Fast, ..WorldPlan::leaves(2) };
    let mut world = TestWorld::start_with_workers(plan).await.unwrap();
    let ground = |site: &TestSite| SoakSite {
        name: site.name.clone(),
        bus: site.bus.clone(),
        url: site.server.url(),
        mqtt: None,
    };
    let load = SoakLoad::begin(seed, world.sites.iter().map(ground).collect());
    let disks: Vec<&Path> = disks.iter().map(|disk| disk.as_path()).collect();
    for (number, fault) in faults(seed, count, &disks).iter().enumerate() {
        let suffered = world.inject_fault(fault).await;
        suffered.unwrap_or_else(|error| panic!("seed {seed}, fault {number} ({fault}): {error:#}"));
        tokio::time::sleep(BETWEEN).await;
    }
    let (counts, violations) = load.end(&world.cloud).await;
    let all = violations.join("\n");
    assert!(violations.is_empty(), "seed {seed}: {} violations:\n{all}\n{}", violations.len(), world.log_tails());
    for (name, worker) in &mut world.workers {
        assert_eq!(worker.ended().unwrap(), None, "{name} ended by itself: {}", worker.log());
    }
    counts
}

/// Ports that were free a moment ago, one after the other.
fn ports(count: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let found = (20_000..30_000).step_by(16).find(|first| (*first..first + count).all(free));
    found.expect("free ports")
}

/// A fault while `up` starts ends it with a word, and it is started again as a service would be. Once it took work it may
/// not end by itself.
fn restart_if_it_could_not_start(up: &mut WorkerProcess, took_work: bool) -> anyhow::Result<()> {
    if up.ended()?.is_some() {
        let log = up.log();
        anyhow::ensure!(!took_work, "up ended though it had started: {log}");
        anyhow::ensure!(log.lines().rev().take(4).any(|line| line.starts_with("error: ")), "up ended silently: {log}");
        up.restart()?;
    }
    Ok(())
}

/// `up` with two sites, killed and stopped as a whole, and its servers one by one.
async fn run_up(seed: u64, count: usize) -> BTreeMap<&'static str, u64> {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let _mounted = SoakDisk::mount(&store, UP_DISK_MIB);
    let first = ports(5);
    let wanted = streams();
    let set = [
        format!("up.port={first}"),
        format!("up.mqtt_port={}", first + 2),
        format!("up.cloud_port={}", first + 4),
        "up.durability=\"fast\"".into(),
        format!("streams.images_max_mib={}", wanted.images_max_mib),
        format!("streams.outbox_max_mib={}", wanted.outbox_max_mib),
        format!("streams.blobs_max_mib={}", wanted.blobs_max_mib),
        format!("streams.ack_wait_s={}", wanted.ack_wait_s),
    ];
    let mut arguments = vec!["--sites", "2"];
    set.iter().for_each(|pair| arguments.extend(["--set", pair]));
    let mut up = crate::up::up(folder.path(), &arguments).await;
    let said = crate::up::found(folder.path()).unwrap();
    let connect = async |url: &str| {
        let settings = NatsSettings { url: url.into(), ..NatsSettings::default() };
        Bus::connect(&settings, "soak").await.unwrap()
    };
    let cloud = connect(said["cloud_url"].as_str().unwrap()).await;
    let mut grounds = Vec::new();
    for site in said["sites"].as_array().unwrap() {
        let url = site["url"].as_str().unwrap().to_owned();
        let mqtt = Some(format!("127.0.0.1:{}", site["mqtt_port"].as_u64().unwrap()));
        let name = site["site"].as_str().unwrap().parse().unwrap();
        grounds.push(SoakSite { name, bus: connect(&url).await, url, mqtt });
    }
    let load = SoakLoad::begin(seed, grounds);
    // How often it said that it takes work.
    let ups = || std::fs::read_to_string(folder.path().join("up.out")).unwrap().matches("Tributary is up.").count();
    let mut ups_before = 0;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kinds: Vec<u32> = Vec::new();
    for number in 0..count {
        if kinds.is_empty() {
            kinds = (0..6).collect();
        }
        let kind = kinds.swap_remove(rng.random_range(0..kinds.len()));
        let server = ["cloud", "site-1", "site-2"][rng.random_range(0..3usize)];
        let time = Duration::from_millis(rng.random_range(500..4000));
        let process = until("a server", Duration::from_secs(30), async || {
            restart_if_it_could_not_start(&mut up, ups() > ups_before)?;
            Ok(crate::up::server_process(folder.path(), server).filter(|process| !crate::up::is_gone(*process)))
        });
        let process =
            process.await.unwrap_or_else(|error| panic!("seed {seed}, fault {number}: {error:#}\n{}", up.log()));
        match kind {
            0 => {
                up.kill().unwrap();
                tokio::time::sleep(time).await;
                ups_before = ups();
                up.restart().unwrap();
            }
            1 => {
                up.signal(Signal::SIGSTOP).unwrap();
                tokio::time::sleep(time * 2).await;
                up.signal(Signal::SIGCONT).unwrap();
            }
            2 => {
                let _ended_already = kill(process, Signal::SIGKILL);
            }
            3 => freeze_for(process, time).await.unwrap(),
            // With a server at once.
            4 => {
                let _ended_already = kill(process, Signal::SIGKILL);
                up.kill().unwrap();
                ups_before = ups();
                up.restart().unwrap();
            }
            _ => fill_for(&store, time).await.unwrap(),
        }
        tokio::time::sleep(BETWEEN).await;
    }
    tokio::time::sleep(BETWEEN * 5).await;
    restart_if_it_could_not_start(&mut up, ups() > ups_before).unwrap();
    let (counts, violations) = load.end(&cloud).await;
    let all = violations.join("\n");
    assert!(violations.is_empty(), "seed {seed}: {} violations:\n{all}\n{}", violations.len(), up.log());
    assert_eq!(up.ended().unwrap(), None, "seed {seed}: {}", up.log());
    counts
}

/// A stream whose server met a full disk takes messages again by itself, under load and repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root: make soak"]
async fn a_disk_that_was_full_for_a_while_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("site");
    let _mounted = SoakDisk::mount(&disk, DISK_MIB);
    let streams = StreamSettings { images_max_mib: 64, ack_wait_s: 2, ..StreamSettings::default() };
    let plan =
        WorldPlan { streams, stores: Some(folder.path().into()), durability: Durability::Fast, ..WorldPlan::default() };
    let mut world = TestWorld::start(plan.set("recognizer.verify.enabled=false")).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let site = world.site(0).name.clone();
    let oracle = Oracle::new(seed(20281), &site, world.bus(0)).unwrap();
    let publishing = oracle.start_publishing(20);
    for time_s in [1, 4, 2, 8, 3] {
        let before = oracle.acknowledged().len();
        let fault = InjectedFault::FillDisk { folder: disk.clone(), time: Duration::from_secs(time_s) };
        world.inject_fault(&fault).await.unwrap();
        until("images are stored again", Duration::from_secs(30), async || {
            Ok((oracle.acknowledged().len() > before + 40).then_some(()))
        })
        .await
        .unwrap_or_else(|error| panic!("after {time_s} s: {error:#}"));
    }
    oracle.stop_publishing();
    publishing.await.unwrap().unwrap();
    world.janitor("janitor-0", 0).unwrap();
    let bus: Bus = world.bus(0).clone();
    let open = until("every image has an outcome", SETTLING, async || {
        for task in oracle.acknowledged() {
            let slot = subject::final_answer_of_any_camera(&site, task);
            if reader::last_message(&bus, topology::ANSWERS, &slot).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    open.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

/// A number from the environment.
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half an hour: make soak"]
async fn five_seeds_of_faults_lose_leave_double_mix_up_and_tell_twice_nothing() {
    let count = number("TRIBUTARY_SOAK_FAULTS", 100) as usize;
    for seed in (seed(20290)..).take(number("TRIBUTARY_SOAK_SEEDS", 5) as usize) {
        println!("seed {seed}, {count} faults among processes: {:?}", run(seed, count).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a quarter of an hour: make soak"]
async fn five_seeds_of_faults_of_up_as_a_whole_lose_leave_double_mix_up_and_tell_twice_nothing() {
    let count = number("TRIBUTARY_SOAK_FAULTS", 100) as usize / 4;
    for seed in (seed(20290)..).take(number("TRIBUTARY_SOAK_SEEDS", 5) as usize) {
        println!("seed {seed}, {count} faults of up: {:?}", run_up(seed, count).await);
    }
}
