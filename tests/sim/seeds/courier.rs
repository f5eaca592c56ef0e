//! A site's courier between a site and a cloud: promises, uploads, verdicts, orders, priorities and the circuit
//! breaker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use courier::CourierSettings;
use futures::StreamExt;
use rand::RngExt;
use runtime::consumer::WorkerStats;
use runtime::handler::DeadLetterContext;
use runtime::ticket::TicketKey;
use runtime::{ConsumerConfig, Fault, Handler, MessageCredit, OutgoingMessages, Shutdown, consume};
use schemas::task::{HEADER_DEADLINE_AT, HEADER_PRIORITY, HEADER_TO};
use schemas::{
    Answer, AnswerStage, FaultNote, MachineRequirements, Order, Payload, Reason, Release, ReleaseStage, Role, Route,
    TaskId, Timings, Verdict, VerifyReason, VerifyRequest, decode, encode,
};
use streams::fleet::Ledger;
use streams::memory::{ClusterEvent, MemoryCluster, NetworkFaults};
use streams::reader::{self, StoredMessage};
use streams::subject::OutboxKind;
use streams::{Bus, Delivery, Publication, PublishOutcome, Publisher, subject, topology};

use crate::chaos::{ChaosPlan, rng_of, run_chaos};
use crate::oracle;
use crate::seeds::{SeedResult, check_repeats, check_seeds, find_failure, history_of};
use crate::world::{
    ACK_WAIT, CLOUD, SITE, answer_about, camera, model, publish_until_stored, release_id, site, site_and_cloud, task_of,
};

/// Which courier uploads the site's outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CourierKind {
    /// The product's courier.
    Ours,
    /// A wrong one: it deletes a message before the cloud has stored it.
    DeletesFirst,
}

/// A verifier that confirms every answer after a random time.
struct ToyVerifier {
    seed: u64,
}

impl ToyVerifier {
    fn report(verdict: &Verdict, sequence: u64) -> Publication {
        let about = &verdict.provisional;
        let id = about.task.child(&format!("verdict-{sequence}")).to_string();
        Publication::with_id(subject::verdict(&about.site, &about.camera), encode(verdict).unwrap(), id)
    }

    fn verdict_on(request: VerifyRequest, fault: Option<FaultNote>) -> Verdict {
        let prediction = request.provisional.prediction().filter(|_| fault.is_none());
        Verdict {
            opinion: prediction,
            fault,
            judged_at_ms: 0,
            timings: Timings::default(),
            provisional: request.provisional,
            ticket: request.ticket,
        }
    }
}

impl Handler for ToyVerifier {
    const ROLE: Role = Role::Verifier;
    const STREAM: &'static str = topology::VERIFY;

    async fn handle(&self, delivery: &Delivery, _credit: &MessageCredit) -> Result<OutgoingMessages, Fault> {
        let mut rng = rng_of(self.seed ^ delivery.sequence << 16, delivery.attempts);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        match rng.random_range(0..20) {
            0 => return Err(Fault::reject("image_corrupt", "the image is damaged", "publish it again")),
            1 => return Err(Fault::retry("carry_failed", "a transient fault")),
            _ => {}
        }
        let request: VerifyRequest = decode(delivery.payload())?;
        Ok(OutgoingMessages::single(Self::report(&Self::verdict_on(request, None), delivery.sequence)))
    }

    fn dead_letter(&self, message: &StoredMessage, fault: &FaultNote) -> DeadLetterContext {
        let request: Option<VerifyRequest> = decode(&message.payload).ok();
        let task = request.as_ref().map(|request| request.provisional.task);
        let refused =
            request.map(|request| Self::report(&Self::verdict_on(request, Some(fault.clone())), message.sequence));
        DeadLetterContext { site: site(), task, publications: refused.into_iter().collect() }
    }
}

fn start_verifier(cluster: &MemoryCluster, seed: u64) -> (Bus, Shutdown) {
    let (bus, shutdown) = (cluster.connect(CLOUD), Shutdown::default());
    let (from, stop) = (bus.clone(), shutdown.clone());
    tokio::spawn(async move {
        let publisher = Publisher::new(from.clone(), Duration::from_secs(10));
        let config = ConsumerConfig {
            durable: topology::VERIFIER.into(),
            credits: 4,
            tries: Some(6),
            resized: None,
            ack_wait: ACK_WAIT,
        };
        let stats = Arc::new(WorkerStats::default());
        let _ended = consume(Arc::new(ToyVerifier { seed }), &from, publisher, config, stats, stop).await;
    });
    (bus, shutdown)
}

fn start_courier(cluster: &MemoryCluster, kind: CourierKind, settings: &CourierSettings) -> (Bus, Shutdown) {
    let (here, shutdown) = (cluster.connect(SITE), Shutdown::default());
    let (from, stop, settings) = (here.clone(), shutdown.clone(), settings.clone());
    tokio::spawn(async move {
        let cloud = from.in_domain(Some(CLOUD));
        match kind {
            CourierKind::Ours => drop(courier::run(from, cloud, site(), &settings, ACK_WAIT, stop).await),
            CourierKind::DeletesFirst => delete_then_send(&from, &cloud).await,
        }
    });
    (here, shutdown)
}

/// Runs the wrong courier, which the oracle must catch.
async fn delete_then_send(here: &Bus, cloud: &Bus) {
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(5));
    loop {
        let Ok(records) = reader::follow_range(here, topology::OUTBOX, Default::default()).await else { continue };
        let mut records = std::pin::pin!(records);
        while let Some(Ok(message)) = records.next().await {
            let _deleted = reader::delete_message(here, topology::OUTBOX, message.sequence).await;
            let to = message.header(HEADER_TO).unwrap_or_default().to_owned();
            let _sent = publisher.publish(&Publication::with_id(to, message.payload.clone(), "x")).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A recognizer's provisional answer about a doubtful image.
fn provisional_answer(cluster: &MemoryCluster, number: u64, deadline_ms: u64) -> Answer {
    let now_ms = cluster.now_ms();
    let task = task_of(&format!("image-{number}"));
    let stored_at_ns = i128::from(now_ms) * 1_000_000;
    let mut answer =
        answer_about(task, number + 1, stored_at_ns, AnswerStage::Provisional, Route::Edge, Reason::LowConfidence);
    answer.deadline_at_ms = Some(now_ms + deadline_ms);
    answer
}

/// Publishes a provisional answer and its verify request until both are stored.
async fn escalate(bus: &Bus, tickets: &TicketKey, answer: &Answer, priority: u8) {
    let publisher = Publisher::new(bus.clone(), Duration::from_secs(3600));
    let request = VerifyRequest {
        reason: VerifyReason::Doubtful,
        payload: Payload::Image(vec![7; 500].into()),
        provisional: answer.clone(),
        hardness: None,
        ticket: Some(tickets.sign(answer)),
    };
    let id = |what: &str| answer.task.child(what).to_string();
    let provisional = Publication::with_id(
        subject::provisional(&answer.site, &answer.camera),
        encode(answer).unwrap(),
        id("provisional"),
    );
    let upload = Publication::with_id(
        subject::outbox(&answer.site, OutboxKind::Verify),
        encode(&request).unwrap(),
        id("verify"),
    )
    .header(HEADER_TO, subject::verify(request.reason, &answer.site, &answer.camera))
    .header(HEADER_PRIORITY, priority.to_string())
    .header(HEADER_DEADLINE_AT, answer.deadline_at_ms.unwrap_or(0).to_string());
    publish_until_stored(&publisher, &upload).await;
    publish_until_stored(&publisher, &provisional).await;
}

/// The id of an outbox message in the cloud, as the courier derives it.
fn cloud_id(sequence: u64, stored_at_ns: i128) -> String {
    TaskId::from_name(&format!("up/{}/{sequence}/{stored_at_ns}", site())).to_string()
}

/// A message leaves the outbox only after the cloud has stored it or its task has a final answer, and the cloud stores
/// nothing twice.
fn check_uploads(events: &[ClusterEvent], tasks: &BTreeMap<u64, TaskId>) -> Result<(), String> {
    let (mut in_cloud, mut finals, mut waiting) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for event in events {
        match event {
            ClusterEvent::Stored { server, stream, sequence, subject, message_id, stored_at_ns } => {
                if server == CLOUD && stream == topology::VERIFY {
                    let id = message_id.clone().unwrap_or_default();
                    if !in_cloud.insert(id.clone()) {
                        return Err(format!("the cloud stored {id} twice"));
                    }
                } else if server == SITE && stream == topology::OUTBOX {
                    waiting.insert(*sequence, *stored_at_ns);
                } else if server == SITE && stream == topology::ANSWERS {
                    finals.insert(subject.clone());
                }
            }
            ClusterEvent::Deleted { server, stream, sequence } if server == SITE && stream == topology::OUTBOX => {
                let stored_at_ns =
                    waiting.get(sequence).ok_or("a message was deleted from the outbox that was never in it")?;
                let has_answer = tasks
                    .get(sequence)
                    .is_some_and(|task| finals.contains(&subject::final_answer(&site(), &camera(), *task)));
                if !has_answer && !in_cloud.contains(&cloud_id(*sequence, *stored_at_ns)) {
                    return Err(format!("message {sequence} was deleted before the cloud had it"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every provisional answer is followed by exactly one final answer.
fn check_promises(events: &[ClusterEvent], tasks: &[TaskId]) -> Result<(), String> {
    for task in tasks {
        let slot = subject::final_answer(&site(), &camera(), *task);
        let count =
            events.iter().filter(|event| matches!(event, ClusterEvent::Stored { subject, .. } if *subject == slot));
        match count.count() {
            1 => {}
            count => return Err(format!("task {task} has {count} final answers instead of 1")),
        }
    }
    Ok(())
}

/// Runs doubtful answers, orders and faults for up to a minute, then waits until all are done, an hour at most.
async fn carry_under_faults(seed: u64, kind: CourierKind) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = site_and_cloud(seed);
    let bus = cluster.connect(SITE);
    let tickets = TicketKey::open(&bus).await.map_err(|error| error.to_string())?;
    let duration = Duration::from_secs(rng.random_range(5..60));
    let plan = ChaosPlan {
        servers: vec![SITE, CLOUD],
        links: vec![SITE, SITE],
        full: vec![(CLOUD, topology::VERIFY), (SITE, topology::ANSWERS)],
        duration,
    };
    let settings = CourierSettings { uploads: rng.random_range(1..8), ..CourierSettings::default() };
    let mut running = start_courier(&cluster, kind, &settings);
    let mut verifier = start_verifier(&cluster, seed);
    let (count, orders) = (rng.random_range(2..15), rng.random_range(0..5));
    let mut tasks = Vec::new();
    let escalating = async {
        let mut rng = rng_of(seed, 2);
        for number in 0..count {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..6000))).await;
            let answer = provisional_answer(&cluster, number, rng.random_range(500..90_000));
            escalate(&bus, &tickets, &answer, rng.random_range(0..10)).await;
            tasks.push(answer.task);
        }
    };
    let ordering = async {
        let mut rng = rng_of(seed, 5);
        let publisher = Publisher::new(cluster.connect(CLOUD), Duration::from_secs(3600));
        for number in 1..=orders {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..15_000))).await;
            let subject = subject::order(&site(), &model());
            let payload = encode(&order(number)).unwrap().into();
            let publication = Publication { subject, payload, headers: Vec::new(), first_only: false };
            publish_until_stored(&publisher, &publication).await;
        }
    };
    let received = Arc::new(Mutex::new(Vec::new()));
    let listening = tokio::spawn(collect_orders(cluster.clone(), received.clone()));
    let turnover = async {
        let mut rng = rng_of(seed, 4);
        let ends_at = tokio::time::Instant::now() + duration;
        while tokio::time::Instant::now() < ends_at {
            tokio::time::sleep(Duration::from_millis(rng.random_range(2000..40_000))).await;
            if rng.random_bool(0.7) {
                cluster.kill_client(&running.0);
            }
            running.1.request();
            running = start_courier(&cluster, kind, &settings);
            if rng.random_bool(0.3) {
                cluster.kill_client(&verifier.0);
                verifier = start_verifier(&cluster, seed);
            }
        }
    };
    tokio::join!(escalating, ordering, turnover, run_chaos(&cluster, &plan, rng_of(seed, 3)));
    let began = tokio::time::Instant::now();
    let (mut waiting, mut unanswered) = (1, 1);
    while began.elapsed() < Duration::from_secs(3600) && (waiting > 0 || unanswered > 0) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        waiting = reader::stream_level(&bus, topology::OUTBOX).await.map_err(|error| error.to_string())?.messages;
        let events = cluster.events();
        let is_final = |subject: &String| {
            events
                .iter()
                .any(|event| matches!(event, ClusterEvent::Stored { subject: stored, .. } if stored == subject))
        };
        let slots = tasks.iter().map(|task| subject::final_answer(&site(), &camera(), *task));
        unanswered = slots.filter(|slot| !is_final(slot)).count();
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    listening.abort();
    let events = cluster.events();
    let mut of_sequence = BTreeMap::new();
    for event in &events {
        if let ClusterEvent::Stored { server, stream, sequence, message_id: Some(id), .. } = event
            && server == SITE
            && stream == topology::OUTBOX
        {
            let task = tasks.iter().find(|task| task.child("verify").to_string() == *id);
            of_sequence.extend(task.map(|task| (*sequence, *task)));
        }
    }
    check_uploads(&events, &of_sequence)?;
    check_promises(&events, &tasks)?;
    if waiting > 0 {
        return Err(format!("{waiting} messages are still in the outbox an hour after the last fault"));
    }
    let numbers: Vec<u64> = received.lock().unwrap().clone();
    if numbers.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err(format!("the site received an older order after a newer one: {numbers:?}"));
    }
    if numbers.last().copied().unwrap_or(0) != orders {
        return Err(format!("the site received orders {numbers:?}, but the last is {orders}"));
    }
    Ok(history_of(&cluster))
}

fn order(number: u64) -> Order {
    let id = release_id(u8::try_from(number).unwrap_or(u8::MAX));
    let release = Release {
        release: id,
        parent: None,
        origin: "imported".into(),
        package: Vec::new(),
        needs: MachineRequirements::default(),
        public: None,
        public_change_interval: None,
    };
    Order { site: site(), model: model(), number, release, stage: ReleaseStage::Stable, said_at_ms: 0, signature: None }
}

/// Collects the numbers of the orders that a site's worker receives.
async fn collect_orders(cluster: MemoryCluster, received: Arc<Mutex<Vec<u64>>>) {
    let bus = cluster.connect(SITE);
    loop {
        if let Ok(ledger) = Ledger::open(&bus).await
            && let Ok(notes) = ledger.follow_message::<Order>(&subject::order_note(&model())).await
        {
            let mut notes = std::pin::pin!(notes);
            while let Some(order) = notes.next().await {
                received.lock().unwrap().push(order.number);
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[test]
fn every_promise_is_kept_and_no_message_leaves_the_outbox_too_soon() {
    let test = "courier::every_promise_is_kept_and_no_message_leaves_the_outbox_too_soon";
    check_seeds(test, 60, |seed| carry_under_faults(seed, CourierKind::Ours));
}

#[test]
fn equal_seeds_give_equal_histories() {
    check_repeats("courier::equal_seeds_give_equal_histories", 5, |seed| carry_under_faults(seed, CourierKind::Ours));
}

#[test]
fn a_courier_that_deletes_first_is_caught() {
    let caught = find_failure(30, |seed| carry_under_faults(seed, CourierKind::DeletesFirst));
    let (seed, why) = caught.expect("thirty seeds did not catch a courier that deletes first");
    assert!(why.contains("deleted before"), "{why}");
    println!("caught at seed {seed}: {why}");
}

/// After an outage, messages are uploaded one at a time by class and priority.
async fn upload_by_priority(seed: u64) -> SeedResult {
    let mut rng = rng_of(seed, 1);
    let cluster = site_and_cloud(seed);
    let bus = cluster.connect(SITE);
    cluster.set_link_cut(SITE, true);
    let settings = CourierSettings { uploads: 1, ..CourierSettings::default() };
    let _courier = start_courier(&cluster, CourierKind::Ours, &settings);
    let publisher = Publisher::new(bus.clone(), Duration::from_secs(10));
    let mut wanted = Vec::new();
    for number in 0..rng.random_range(2..20u64) {
        let (is_bulk, priority) = (rng.random_bool(0.4), rng.random_range(0..10u8));
        let (kind, to) = match is_bulk {
            true => (OutboxKind::HardCase, subject::hardcase(&site())),
            false => (OutboxKind::Verify, subject::verify(VerifyReason::Doubtful, &site(), &camera())),
        };
        let id = format!("message-{number}");
        let publication = Publication::with_id(subject::outbox(&site(), kind), format!("{number}"), &id)
            .header(HEADER_TO, to)
            .header(HEADER_PRIORITY, priority.to_string());
        let outcome = publisher.publish(&publication).await.map_err(|error| error.to_string())?;
        let PublishOutcome::Stored(sequence) = outcome else { return Err(format!("{outcome:?}")) };
        wanted.push((is_bulk, 9 - priority, sequence, id));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    cluster.set_link_cut(SITE, false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    wanted.sort();
    let mut stored_at_ns = BTreeMap::new();
    let mut arrived = Vec::new();
    for event in cluster.events() {
        if let ClusterEvent::Stored { server, stream, sequence, message_id, stored_at_ns: at_ns, .. } = event {
            if server == SITE && stream == topology::OUTBOX {
                stored_at_ns.insert(sequence, at_ns);
            } else if server == CLOUD && (stream == topology::VERIFY || stream == topology::HARDCASES) {
                arrived.push(message_id.unwrap_or_default());
            }
        }
    }
    let id_of = |(is_bulk, _, sequence, id): &(bool, u8, u64, String)| match is_bulk {
        // A hard case keeps its id.
        true => id.clone(),
        false => cloud_id(*sequence, stored_at_ns[sequence]),
    };
    let wanted: Vec<String> = wanted.iter().map(id_of).collect();
    match arrived == wanted {
        true => Ok(history_of(&cluster)),
        false => Err(format!("the uploads should arrive as {wanted:?}, but arrived as {arrived:?}")),
    }
}

#[test]
fn an_outbox_backlog_is_uploaded_by_class_and_priority() {
    check_seeds("courier::an_outbox_backlog_is_uploaded_by_class_and_priority", 60, upload_by_priority);
}

/// The courier backs off from a full cloud, and uploads everything once there is room again.
async fn back_off_from_a_full_cloud(seed: u64) -> SeedResult {
    const FULL_FOR: Duration = Duration::from_secs(300);
    let mut rng = rng_of(seed, 1);
    let cluster = site_and_cloud(seed);
    let bus = cluster.connect(SITE);
    cluster.set_faults(NetworkFaults { max_link_delay: Duration::from_millis(100), ..NetworkFaults::default() });
    let uploads = rng.random_range(1..16usize);
    let settings = CourierSettings { uploads, ..CourierSettings::default() };
    let _courier = start_courier(&cluster, CourierKind::Ours, &settings);
    cluster.set_stream_full(CLOUD, topology::VERIFY, true);
    let publisher = Publisher::new(bus.clone(), Duration::from_secs(10));
    let count = rng.random_range(20..60);
    for number in 0..count {
        let publication =
            Publication::with_id(subject::outbox(&site(), OutboxKind::Verify), "x", format!("message-{number}"))
                .header(HEADER_TO, subject::verify(VerifyReason::Doubtful, &site(), &camera()));
        publisher.publish(&publication).await.map_err(|error| error.to_string())?;
    }
    tokio::time::sleep(FULL_FOR).await;
    let is_refused = |event: &&ClusterEvent| matches!(event, ClusterEvent::Refused { server, .. } if server == CLOUD);
    let refused = cluster.events().iter().filter(is_refused).count();
    // The uploads in flight when the breaker opens, then one after each pause: 1, 2, 4, 8, 16, 32, 60, 60, 60 s.
    let max = 3 + uploads + 10;
    if refused > max {
        return Err(format!(
            "the courier tried a full cloud {refused} times in {FULL_FOR:?}; at most {max} are allowed"
        ));
    }
    cluster.set_stream_full(CLOUD, topology::VERIFY, false);
    tokio::time::sleep(Duration::from_secs(180)).await;
    let left = reader::stream_level(&bus, topology::OUTBOX).await.map_err(|error| error.to_string())?.messages;
    let there = oracle::read_stream(&cluster, CLOUD, topology::VERIFY).await?.len();
    match (left, there) {
        (0, there) if there == count => Ok(history_of(&cluster)),
        _ => Err(format!("{there} of {count} messages reached the cloud, {left} are still in the outbox")),
    }
}

#[test]
fn the_courier_backs_off_from_a_full_cloud() {
    check_seeds("courier::the_courier_backs_off_from_a_full_cloud", 15, back_off_from_a_full_cloud);
}
