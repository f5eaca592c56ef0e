//! The consumer loop that every worker runs (acknowledge last, redelivery, credits, retries, dead letters), tested with
//! workers and servers that die and a network that loses messages.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use runtime::consumer::WorkerStats;
use runtime::handler::DeadLetterContext;
use runtime::{ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, consume, outcome};
use schemas::task::{HEADER_MESSAGE_ID, StorageStamp};
use schemas::{Answer, AnswerStage, FaultNote, Reason, Role, Route, Task, encode};
use streams::memory::{MemoryCluster, NetworkFaults};
use streams::reader::{self, StoredMessage};
use streams::{Bus, CarryError, Delivery, Publication, Publisher, Puller, subject, topology};
use tokio::sync::watch;

use crate::chaos::{ChaosPlan, draw_faults, rng_of, run_chaos};
use crate::oracle::{self, ImageTrail};
use crate::seeds::{SeedResult, check_repeats, check_seeds, find_failure, history_of};
use crate::world::{ACK_WAIT, SITE, answer_about, camera, one_site, site, task_of};

/// Which consumer loop a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerLoop {
    /// The product's loop.
    Ours,
    /// A wrong one: it acknowledges a message before it has stored the outcome.
    AcknowledgesFirst,
    /// A wrong one: it takes more messages than it has credits.
    IgnoresCredits,
}

/// How the recognizer treats damaged images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DamagedImages {
    /// The same images are refused at every delivery.
    AlwaysRefused,
    /// Whether an image is refused changes from delivery to delivery, as when a worker is reconfigured in between.
    RefusedAtRandom,
}

/// A recognizer without a model: it waits a random time and draws its answer.
struct ToyRecognizer {
    seed: u64,
    damaged: DamagedImages,
    cluster: MemoryCluster,
    /// Most messages that it may hold at a time.
    max_held: usize,
    held: AtomicUsize,
    violations: Arc<Mutex<Vec<String>>>,
}

/// Counts a message while it is held.
struct HeldMessage<'a>(&'a AtomicUsize);

impl Drop for HeldMessage<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn task_of_message(header: Option<&str>, sequence: u64) -> schemas::TaskId {
    header.map_or_else(|| task_of(&sequence.to_string()), task_of)
}

impl ToyRecognizer {
    async fn recognize(&self, delivery: &Delivery) -> Result<OutgoingMessages, Fault> {
        let held = self.held.fetch_add(1, Ordering::Relaxed) + 1;
        let _held = HeldMessage(&self.held);
        if held > self.max_held {
            self.violations.lock().unwrap().push(format!("{held} messages are held, {} are allowed", self.max_held));
        }
        let mut rng = rng_of(self.seed ^ delivery.sequence << 16, delivery.attempts);
        let longest_ms = if rng.random_bool(0.1) { 15_000 } else { 800 };
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..longest_ms))).await;
        let task = task_of_message(delivery.header(HEADER_MESSAGE_ID), delivery.sequence);
        let is_refused = match self.damaged {
            DamagedImages::AlwaysRefused => task.to_string().starts_with('0'),
            DamagedImages::RefusedAtRandom => rng.random_bool(0.5),
        };
        if is_refused {
            return Err(Fault::reject("image_corrupt", "the image is damaged", "publish it again"));
        }
        match rng.random_range(0..100) {
            0..15 => return Err(Fault::retry("carry_failed", "a transient fault")),
            15..20 => return Err(Fault::Wait { after: Duration::from_millis(rng.random_range(0..3000)) }),
            _ => {}
        }
        let answer =
            |stage, route, reason| answer_about(task, delivery.sequence, delivery.stored_at_ns, stage, route, reason);
        if self.damaged == DamagedImages::RefusedAtRandom && rng.random_bool(0.5) {
            let verified = answer(AnswerStage::Final, Route::Verified, Reason::LowMargin);
            tokio::spawn(verify_later(self.cluster.clone(), verified, rng.random_range(0..20_000)));
            let doubtful = answer(AnswerStage::Provisional, Route::Edge, Reason::LowMargin);
            let (slot, id) = (subject::provisional(&site(), &camera()), task.child("provisional").to_string());
            return Ok(OutgoingMessages::single(Publication::with_id(slot, encode(&doubtful).unwrap(), id)));
        }
        Ok(OutgoingMessages::answer(answer(AnswerStage::Final, Route::Edge, Reason::Confident)))
    }
}

/// Stores the verdict on a doubtful answer after a while, as the courier would.
async fn verify_later(cluster: MemoryCluster, verified: Answer, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let publisher = Publisher::new(cluster.connect(SITE), Duration::from_secs(10));
    while outcome::store_answer(&publisher, &verified, &WorkerStats::default()).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Handler for ToyRecognizer {
    const ROLE: Role = Role::Recognizer;
    const STREAM: &'static str = topology::IMAGES;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        self.recognize(delivery).await
    }

    fn image_task(&self, message: &StoredMessage) -> Option<Task> {
        let task = task_of_message(message.header(HEADER_MESSAGE_ID), message.sequence);
        let (sequence, stored_at_ns) = (message.sequence, message.stored_at_ns);
        Some(Task::from_id(&StorageStamp { site: site(), camera: camera(), sequence, stored_at_ns }, task))
    }

    fn dead_letter(&self, message: &StoredMessage, _fault: &FaultNote) -> DeadLetterContext {
        let task = self.image_task(message).map(|task| task.id);
        DeadLetterContext { site: site(), task, publications: Vec::new() }
    }
}

/// Recognizers that a test starts and ends.
struct WorkerPool {
    cluster: MemoryCluster,
    kind: WorkerLoop,
    damaged: DamagedImages,
    seed: u64,
    violations: Arc<Mutex<Vec<String>>>,
    running: Vec<(Bus, Shutdown)>,
    started: u64,
}

impl WorkerPool {
    fn new(cluster: &MemoryCluster, kind: WorkerLoop, seed: u64) -> Self {
        let (damaged, violations) = (DamagedImages::AlwaysRefused, Arc::default());
        Self { cluster: cluster.clone(), kind, damaged, seed, violations, running: Vec::new(), started: 0 }
    }

    fn start(&mut self, credits: usize, resized: Option<watch::Receiver<usize>>, max_held: usize) {
        self.started += 1;
        let (bus, shutdown) = (self.cluster.connect(SITE), Shutdown::default());
        let recognizer = Arc::new(ToyRecognizer {
            seed: self.seed ^ self.started << 40,
            damaged: self.damaged,
            cluster: self.cluster.clone(),
            max_held,
            held: AtomicUsize::new(0),
            violations: self.violations.clone(),
        });
        let publisher = Publisher::new(bus.clone(), Duration::from_secs(10));
        let durable = topology::recognizer_durable(&site());
        let (kind, from, stop) = (self.kind, bus.clone(), shutdown.clone());
        tokio::spawn(async move {
            match kind {
                WorkerLoop::Ours => {
                    let config = ConsumerConfig { durable, credits, tries: Some(6), resized, ack_wait: ACK_WAIT };
                    let stats = Arc::new(WorkerStats::default());
                    let _ended = consume(recognizer, &from, publisher, config, stats, stop).await;
                }
                WorkerLoop::AcknowledgesFirst | WorkerLoop::IgnoresCredits => {
                    run_wrong_loop(kind, recognizer, &from, publisher, &durable, credits).await;
                }
            }
        });
        self.running.push((bus, shutdown));
    }

    /// Ends a worker: cleanly, or as if its process had been killed.
    fn end(&mut self, which: usize, is_killed: bool) {
        let (bus, shutdown) = self.running.swap_remove(which);
        if is_killed {
            self.cluster.kill_client(&bus);
        }
        shutdown.request();
    }
}

/// Runs one of the wrong loops, which the oracle must catch.
async fn run_wrong_loop(
    kind: WorkerLoop,
    recognizer: Arc<ToyRecognizer>,
    from: &Bus,
    publisher: Publisher,
    durable: &str,
    credits: usize,
) {
    let mut puller = Puller::new(from, topology::IMAGES, durable, credits);
    let credits = Arc::new(tokio::sync::Semaphore::new(credits));
    loop {
        let credit = match kind {
            WorkerLoop::IgnoresCredits => None,
            _ => credits.clone().acquire_owned().await.ok(),
        };
        let delivery = puller.next().await;
        let (recognizer, publisher) = (recognizer.clone(), publisher.clone());
        tokio::spawn(async move {
            let _credit = credit;
            if kind == WorkerLoop::AcknowledgesFirst {
                let _sent = delivery.ack().await;
            }
            loop {
                match recognizer.recognize(&delivery).await {
                    Ok(OutgoingMessages { final_answer: Some(answer), .. }) => {
                        let _stored = outcome::store_answer(&publisher, &answer, &WorkerStats::default()).await;
                        break;
                    }
                    Ok(_) | Err(Fault::Reject(_)) => break,
                    Err(_) => {}
                }
            }
            let _sent = delivery.ack().await;
        });
    }
}

/// Publishes images as a camera does, retrying unanswered publishes.
async fn publish_images(cluster: MemoryCluster, seed: u64, count: u64, duration: Duration) {
    let (mut rng, bus) = (rng_of(seed, 2), cluster.connect(SITE));
    let publisher = Publisher::new(bus, Duration::from_secs(20));
    let between_ms = u64::try_from(duration.as_millis()).unwrap() * 2 / count.max(1);
    for number in 0..count {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..between_ms.max(1)))).await;
        let image = vec![7u8; rng.random_range(10..2000)];
        let publication = Publication::with_id(subject::image(&site(), &camera()), image, format!("image-{number}"));
        // An unacknowledged image is not an obligation.
        match publisher.publish(&publication).await {
            Ok(_) | Err(CarryError::NoAck { .. } | CarryError::Full { .. } | CarryError::NoStream { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until a durable consumer has nothing pending or unacknowledged.
async fn wait_until_done(cluster: &MemoryCluster, stream: &str, durable: &str) -> Result<(), String> {
    const TIMEOUT: Duration = Duration::from_secs(3600);
    let bus = cluster.connect(SITE);
    let began = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let progress = reader::consumer_progress(&bus, stream, durable).await.map_err(|error| error.to_string())?;
        if progress.pending == 0 && progress.unacked == 0 {
            return Ok(());
        }
        if began.elapsed() > TIMEOUT {
            return Err(format!("{stream} is not drained an hour after the last fault: {progress:?}"));
        }
    }
}

/// Runs images, workers and faults for up to a minute, then allows an hour to finish.
async fn recognize_under_faults(seed: u64, kind: WorkerLoop) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = one_site(seed);
    let duration = Duration::from_secs(rng.random_range(5..60));
    let plan = ChaosPlan {
        servers: vec![SITE],
        full: vec![(SITE, topology::ANSWERS), (SITE, topology::DEAD), (SITE, topology::IMAGES)],
        duration,
        ..ChaosPlan::default()
    };
    let mut workers = WorkerPool::new(&cluster, kind, seed);
    let credits = rng.random_range(1..5);
    for _ in 0..rng.random_range(1..3) {
        workers.start(credits, None, credits);
    }
    let publishing = publish_images(cluster.clone(), seed, rng.random_range(5..25), duration);
    let chaos = run_chaos(&cluster, &plan, rng_of(seed, 3));
    let turnover = async {
        let mut rng = rng_of(seed, 4);
        let ends_at = tokio::time::Instant::now() + duration;
        while tokio::time::Instant::now() < ends_at {
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..20_000))).await;
            let which = rng.random_range(0..workers.running.len());
            workers.end(which, rng.random_bool(0.7));
            workers.start(credits, None, credits);
        }
    };
    tokio::join!(publishing, chaos, turnover);
    let durable = topology::recognizer_durable(&site());
    wait_until_done(&cluster, topology::IMAGES, &durable).await?;
    let violation = workers.violations.lock().unwrap().first().cloned();
    if let Some(violation) = violation {
        return Err(violation);
    }
    let trail = ImageTrail::of(&cluster, SITE, topology::IMAGES, &durable);
    oracle::check_outcomes(&cluster, &trail).await?;
    Ok(history_of(&cluster))
}

#[test]
fn every_image_has_one_outcome_stored_before_it_is_acknowledged() {
    let test = "consumer::every_image_has_one_outcome_stored_before_it_is_acknowledged";
    check_seeds(test, 500, |seed| recognize_under_faults(seed, WorkerLoop::Ours));
}

#[test]
fn equal_seeds_give_equal_histories() {
    check_repeats("consumer::equal_seeds_give_equal_histories", 30, |seed| {
        recognize_under_faults(seed, WorkerLoop::Ours)
    });
}

#[test]
fn a_worker_that_acknowledges_first_is_caught() {
    let caught = find_failure(30, |seed| recognize_under_faults(seed, WorkerLoop::AcknowledgesFirst));
    let (seed, why) = caught.expect("thirty seeds did not catch a worker that acknowledges first");
    println!("caught at seed {seed}: {why}");
}

#[test]
fn a_worker_that_ignores_its_credits_is_caught() {
    let caught = find_failure(30, |seed| recognize_under_faults(seed, WorkerLoop::IgnoresCredits));
    let (seed, why) = caught.expect("thirty seeds did not catch a worker that ignores its credits");
    assert!(why.contains("are held"), "{why}");
    println!("caught at seed {seed}: {why}");
}

/// The stream of dead letters is full for a while and workers die; meanwhile a redelivered image that was given up may
/// get another result. No progress report is lost, so that only one worker holds an image at a time.
async fn change_results_while_dead_letters_are_refused(seed: u64) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = one_site(seed);
    cluster.set_faults(NetworkFaults { lost_ack_ratio: 0.0, ..draw_faults(&mut rng) });
    let mut workers = WorkerPool::new(&cluster, WorkerLoop::Ours, seed);
    workers.damaged = DamagedImages::RefusedAtRandom;
    let (count, credits) = (rng.random_range(1..10), rng.random_range(1..5));
    for _ in 0..rng.random_range(1..3) {
        workers.start(credits, None, credits);
    }
    cluster.set_stream_full(SITE, topology::DEAD, true);
    publish_images(cluster.clone(), seed, count, Duration::from_secs(10)).await;
    for _ in 0..rng.random_range(0..5) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..10_000))).await;
        let which = rng.random_range(0..workers.running.len());
        workers.end(which, true);
        workers.start(credits, None, credits);
    }
    cluster.set_stream_full(SITE, topology::DEAD, false);
    cluster.set_faults(NetworkFaults::default());
    let durable = topology::recognizer_durable(&site());
    wait_until_done(&cluster, topology::IMAGES, &durable).await?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let trail = ImageTrail::of(&cluster, SITE, topology::IMAGES, &durable);
    oracle::check_ends(&cluster, &trail).await?;
    Ok(history_of(&cluster))
}

#[test]
fn every_dead_outcome_has_its_dead_letter_even_if_a_redelivery_ends_differently() {
    let test = "consumer::every_dead_outcome_has_its_dead_letter_even_if_a_redelivery_ends_differently";
    check_seeds(test, 300, change_results_while_dead_letters_are_refused);
}

/// A worker whose credits change while it works never holds more messages than its largest number of credits, and
/// finishes them all.
async fn resize_while_it_works(seed: u64) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = one_site(seed);
    cluster.set_faults(NetworkFaults { max_delay: Duration::from_millis(20), ..NetworkFaults::default() });
    let sizes: Vec<usize> = (0..6).map(|_| rng.random_range(1..8)).collect();
    let max_held = sizes.iter().copied().max().unwrap_or(1);
    let (size, resized) = watch::channel(sizes[0]);
    let mut workers = WorkerPool::new(&cluster, WorkerLoop::Ours, seed);
    workers.start(sizes[0], Some(resized), max_held);
    let duration = Duration::from_secs(30);
    let publishing = publish_images(cluster.clone(), seed, 40, duration);
    let resizing = async {
        for wanted in sizes {
            tokio::time::sleep(duration / 6).await;
            size.send_replace(wanted);
        }
    };
    tokio::join!(publishing, resizing);
    let durable = topology::recognizer_durable(&site());
    wait_until_done(&cluster, topology::IMAGES, &durable).await?;
    match workers.violations.lock().unwrap().first() {
        Some(violation) => Err(violation.clone()),
        None => Ok(history_of(&cluster)),
    }
}

#[test]
fn a_worker_keeps_to_credits_that_change_while_it_works() {
    check_seeds("consumer::a_worker_keeps_to_credits_that_change_while_it_works", 100, resize_while_it_works);
}

/// Messages whose every delivery is lost become dead letters with an outcome.
async fn lose_every_delivery(seed: u64) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = one_site(seed);
    let count = rng.random_range(1..5);
    publish_images(cluster.clone(), seed, count, Duration::from_secs(1)).await;
    cluster.set_faults(NetworkFaults { lost_delivery_ratio: 1.0, ..NetworkFaults::default() });
    let mut workers = WorkerPool::new(&cluster, WorkerLoop::Ours, seed);
    workers.start(2, None, 2);
    // Long enough to deliver each message up to the consumer's limit, one after another.
    let deliveries = u32::try_from(count * 2 * schemas::limits::MAX_TRIES).unwrap();
    tokio::time::sleep(ACK_WAIT * (deliveries + 50)).await;
    cluster.set_faults(NetworkFaults::default());
    let durable = topology::recognizer_durable(&site());
    wait_until_done(&cluster, topology::IMAGES, &durable).await?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let trail = ImageTrail::of(&cluster, SITE, topology::IMAGES, &durable);
    oracle::check_outcomes(&cluster, &trail).await?;
    let dead = oracle::dead_letters(&cluster, SITE).await?;
    let about: BTreeSet<(u64, &str)> =
        dead.iter().map(|letter| (letter.sequence, letter.fault.kind.as_str())).collect();
    match about.len() as u64 == count && about.iter().all(|(_, fault)| *fault == "client_unreadable") {
        true => Ok(history_of(&cluster)),
        false => Err(format!("{count} images were never received, but the dead letters are {about:?}")),
    }
}

#[test]
fn an_image_that_no_worker_receives_becomes_a_dead_letter() {
    check_seeds("consumer::an_image_that_no_worker_receives_becomes_a_dead_letter", 20, lose_every_delivery);
}
