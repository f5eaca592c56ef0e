//! The server operations that workers use, each tested on a real server and on the one in memory, so that simulations
//! on the latter say something about the former.
//!
//! `cargo test -p streams --features memory --test contract`; add a test's name to run it alone.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, StreamExt};
use schemas::{BlobRef, CameraName, Heartbeat, Role, SiteName, TaskId};
use streams::fleet::{HeartbeatBucket, Ledger, RemoteNote, live_workers};
use streams::memory::MemoryCluster;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{
    Blobs, Bus, CarryError, Delivery, NatsSettings, Publication, PublishOutcome, Publisher, Puller, publish, subject,
    tap,
};

/// Acknowledgement wait of the consumers.
const ACK_WAIT: Duration = Duration::from_secs(1);
/// Longer than a server takes for anything that it does immediately.
const SOON: Duration = Duration::from_millis(400);

/// One server with the streams of a site and of the cloud.
struct ContractWorld {
    bus: Bus,
    site: SiteName,
    camera: CameraName,
    /// The real server and its folder; absent in memory. Dropped last.
    _server: Option<(Server, tempfile::TempDir)>,
}

impl ContractWorld {
    fn site() -> SiteName {
        "reef".parse().unwrap()
    }

    fn settings() -> StreamSettings {
        StreamSettings {
            images_max_mib: 1,
            labels_max_mib: 1,
            ack_wait_s: 1,
            duplicate_window_s: 1,
            verdicts_max_age_s: 2,
            ..StreamSettings::default()
        }
    }

    fn in_memory() -> Self {
        let plan = topology::plan_topology(&PlanScope::Both(Self::site()), &Self::settings());
        let cluster = MemoryCluster::new(1);
        cluster.add_server("one", &plan);
        Self { bus: cluster.connect("one"), site: Self::site(), camera: "cam-1".parse().unwrap(), _server: None }
    }

    async fn on_a_server() -> Self {
        let plan = topology::plan_topology(&PlanScope::Both(Self::site()), &Self::settings());
        let folder = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            encryption_key: None,
            program: None,
            store: folder.path().into(),
            name: "one".into(),
            domain: None,
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability: Durability::Fast,
            max_store_bytes: plan.max_store_bytes(),
            leaf: LeafMode::Alone,
            site: None,
            entry: ClientListener::default(),
        };
        let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap().unwrap();
        let nats = NatsSettings { url: server.url(), ..NatsSettings::default() };
        let bus = Bus::connect(&nats, "contract").await.unwrap();
        topology::apply_plan(&bus, &plan, RepairMode::Missing).await.unwrap();
        let camera = "cam-1".parse().unwrap();
        Self { bus, site: Self::site(), camera, _server: Some((server, folder)) }
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.bus.clone(), Duration::from_secs(5))
    }

    async fn publish(&self, publication: &Publication) -> PublishOutcome {
        self.publisher().publish(publication).await.unwrap()
    }

    /// Publishes bytes and returns their sequence.
    async fn store(&self, subject: impl Into<String>, payload: &[u8]) -> u64 {
        match self.publish(&plain(subject, payload)).await {
            PublishOutcome::Stored(sequence) => sequence,
            other => panic!("{other:?}"),
        }
    }

    fn label(&self) -> String {
        subject::label(&self.site, &self.camera)
    }

    fn image(&self) -> String {
        subject::image(&self.site, &self.camera)
    }

    fn verify(&self) -> String {
        format!("verify.doubtful.{}.{}", self.site, self.camera)
    }

    fn outcome(&self, task: u8) -> String {
        subject::outcome(&self.site, &self.camera, task_id(task))
    }

    fn final_answer(&self, task: u8) -> String {
        subject::final_answer(&self.site, &self.camera, task_id(task))
    }

    fn verifier(&self, batch: usize) -> Puller {
        Puller::new(&self.bus, topology::VERIFY, topology::VERIFIER, batch)
    }

    async fn read_all(&self, stream: &str, range: StreamRange) -> Vec<StoredMessage> {
        let last = reader::stream_level(&self.bus, stream).await.unwrap().last_sequence;
        let mut all = Vec::new();
        reader::read_range(&self.bus, stream, range, last, |message| all.push(message)).await.unwrap();
        all
    }
}

fn plain(subject: impl Into<String>, payload: &[u8]) -> Publication {
    Publication { subject: subject.into(), payload: payload.to_vec().into(), headers: Vec::new(), first_only: false }
}

fn task_id(number: u8) -> TaskId {
    TaskId::from_name(&format!("task {number}"))
}

/// The next delivery, if one comes in time.
async fn next_within(puller: &mut Puller, time: Duration) -> Option<Delivery> {
    tokio::time::timeout(time, puller.next()).await.ok()
}

async fn take(puller: &mut Puller) -> Delivery {
    next_within(puller, Duration::from_secs(5)).await.expect("nothing was delivered")
}

async fn next_of<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(Duration::from_secs(5), stream.next())
        .await
        .expect("no message arrived")
        .expect("the stream ended")
}

fn payloads(messages: &[StoredMessage]) -> Vec<&[u8]> {
    messages.iter().map(|message| &message.payload[..]).collect()
}

/// Turns each function into two tests: on a real server, and in memory under paused time.
macro_rules! contract_tests {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        mod on_a_server {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $name() {
                    super::$name(super::ContractWorld::on_a_server().await).await;
                }
            )*
        }
        mod in_memory {
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(super::ContractWorld::in_memory()).await;
                }
            )*
        }
    };
}

contract_tests! {
    a_message_id_is_stored_once_within_the_duplicate_window;
    a_stream_with_a_source_ignores_message_ids;
    a_message_id_is_remembered_after_its_message_is_deleted;
    a_slot_keeps_its_first_message;
    a_message_is_appended_only_after_the_expected_sequence;
    a_full_stream_that_discards_new_refuses_messages;
    a_full_stream_that_discards_old_drops_the_oldest;
    a_stream_keeps_the_latest_messages_of_each_subject;
    an_oversized_message_is_refused;
    publishing_to_a_subject_without_a_stream_fails;
    a_message_keeps_its_headers_bytes_and_storage_time;
    the_last_message_of_a_subject_is_found;
    a_range_is_read_in_order_from_its_first_sequence;
    a_headers_only_read_includes_the_message_size;
    a_follower_receives_stored_and_new_messages;
    the_newest_matching_messages_are_found;
    a_level_counts_messages_and_gaps;
    messages_are_purged_below_a_sequence_and_on_a_subject;
    a_missing_stream_or_consumer_is_reported;
    messages_are_delivered_in_order_and_once;
    an_unacknowledged_message_is_redelivered;
    progress_postpones_redelivery;
    a_message_with_a_nak_is_redelivered_after_the_delay;
    two_pullers_share_the_messages;
    a_late_acknowledgement_counts;
    a_consumer_reports_its_progress;
    a_work_queue_keeps_unacknowledged_messages;
    an_interest_stream_keeps_messages_that_a_consumer_wants;
    messages_expire;
    an_advisory_names_a_message_that_reached_its_delivery_limit;
    an_outcome_is_stored_and_republished_as_a_final_answer;
    a_taken_slot_tells_our_own_message_from_others;
    rounds_are_copied_from_the_updates_stream;
    concurrent_changes_of_a_note_are_all_kept;
    a_follower_of_a_note_receives_its_value_and_its_changes;
    a_note_is_written_through_its_subject;
    heartbeats_are_followed_and_listed;
    a_blob_is_stored_once_and_fetched_unchanged;
    a_blob_with_the_wrong_hash_is_refused;
    a_file_is_stored_and_fetched_unchanged;
    a_large_blob_is_copied_to_another_bucket;
    a_deleted_image_is_noted;
    the_server_reports_its_time;
    the_stream_of_a_subject_is_found;
    a_connection_knows_its_domain_and_server;
}

async fn a_message_id_is_stored_once_within_the_duplicate_window(world: ContractWorld) {
    let publication = |payload: &'static str| Publication::with_id(world.label(), payload, "same");
    let PublishOutcome::Stored(first) = world.publish(&publication("a")).await else {
        panic!("the id was stored before")
    };
    assert_eq!(world.publish(&publication("b")).await, PublishOutcome::Duplicate(first));
    assert_eq!(payloads(&world.read_all(topology::LABELS, StreamRange::default()).await), [b"a"]);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.publish(&publication("c")).await, PublishOutcome::Stored(first + 1));
}

async fn a_stream_with_a_source_ignores_message_ids(world: ContractWorld) {
    let publication = Publication::with_id(world.image(), "a", "same");
    assert_eq!(world.publish(&publication).await, PublishOutcome::Stored(1));
    assert_eq!(world.publish(&publication).await, PublishOutcome::Stored(2));
}

async fn a_message_id_is_remembered_after_its_message_is_deleted(world: ContractWorld) {
    let publication = Publication::with_id(world.label(), "a", "same");
    assert_eq!(world.publish(&publication).await, PublishOutcome::Stored(1));
    reader::delete_message(&world.bus, topology::LABELS, 1).await.unwrap();
    assert_eq!(world.publish(&publication).await, PublishOutcome::Duplicate(1));
    assert_eq!(
        reader::message_at(&world.bus, topology::LABELS, 1).await.unwrap().map(|message| message.sequence),
        None
    );
}

async fn a_slot_keeps_its_first_message(world: ContractWorld) {
    let first = Publication::first_on_subject(world.outcome(1), "first");
    let second = Publication::first_on_subject(world.outcome(1), "second");
    assert_eq!(world.publish(&first).await, PublishOutcome::Stored(1));
    assert_eq!(world.publish(&second).await, PublishOutcome::Taken);
    assert_eq!(world.publish(&first).await, PublishOutcome::Duplicate(1), "a retry finds its own message");
    let other = Publication::first_on_subject(world.outcome(2), "other");
    assert_eq!(world.publish(&other).await, PublishOutcome::Stored(2));
    let last = reader::last_message(&world.bus, topology::ANSWERS, &world.final_answer(1)).await.unwrap().unwrap();
    assert_eq!(&last.payload[..], b"first");
}

async fn a_message_is_appended_only_after_the_expected_sequence(world: ContractWorld) {
    let subject = subject::audit(&world.site);
    let append = |text: &'static str, after| publish::append_message(&world.bus, &subject, text.into(), after);
    assert!(append("a", 0).await.unwrap());
    assert!(!append("b", 0).await.unwrap());
    assert!(append("c", 1).await.unwrap());
    assert!(!append("d", 1).await.unwrap());
    assert_eq!(payloads(&world.read_all(topology::AUDIT, StreamRange::default()).await), [b"a", b"c"]);
}

async fn a_full_stream_that_discards_new_refuses_messages(world: ContractWorld) {
    let payload = vec![7u8; 300 * 1024];
    for sequence in 1..=3 {
        assert_eq!(world.store(world.image(), &payload).await, sequence);
    }
    let refused = world.publisher().publish(&plain(world.image(), &payload)).await;
    assert!(matches!(refused, Err(CarryError::Full { .. })), "{refused:?}");
    let level = reader::stream_level(&world.bus, topology::IMAGES).await.unwrap();
    assert_eq!((level.messages, level.first_sequence, level.last_sequence), (3, 1, 3));
    reader::delete_message(&world.bus, topology::IMAGES, 2).await.unwrap();
    assert_eq!(world.store(world.image(), &payload).await, 4, "a deletion must free space");
}

async fn a_full_stream_that_discards_old_drops_the_oldest(world: ContractWorld) {
    let payload = vec![7u8; 300 * 1024];
    for sequence in 1..=5 {
        assert_eq!(world.store(world.label(), &payload).await, sequence);
    }
    let level = reader::stream_level(&world.bus, topology::LABELS).await.unwrap();
    assert_eq!((level.messages, level.first_sequence, level.last_sequence), (3, 3, 5));
    assert!(level.bytes <= level.max_bytes);
}

async fn a_stream_keeps_the_latest_messages_of_each_subject(world: ContractWorld) {
    let model = schemas::ModelName::from_name("light");
    let subject = subject::update(&model, 1, &world.site);
    for number in 0..6u8 {
        world.store(&subject, &[number]).await;
    }
    let kept = world.read_all(topology::UPDATES, StreamRange::default()).await;
    assert_eq!(payloads(&kept), [[2], [3], [4], [5]]);
    let order = subject::order(&world.site, &model);
    world.store(&order, b"a").await;
    world.store(&order, b"b").await;
    assert_eq!(payloads(&world.read_all(topology::ORDERS, StreamRange::default()).await), [b"b"]);
}

async fn an_oversized_message_is_refused(world: ContractWorld) {
    let payload = vec![0u8; world.bus.max_payload_bytes() + 1];
    let refused = world.publisher().publish(&plain(world.label(), &payload)).await;
    assert!(matches!(refused, Err(CarryError::TooLarge { .. })), "{refused:?}");
}

async fn publishing_to_a_subject_without_a_stream_fails(world: ContractWorld) {
    let publisher = Publisher::new(world.bus.clone(), Duration::from_millis(200));
    let refused = publisher.publish(&plain("nobody.takes.this", b"a")).await;
    assert!(matches!(refused, Err(CarryError::NoStream { .. })), "{refused:?}");
}

async fn a_message_keeps_its_headers_bytes_and_storage_time(world: ContractWorld) {
    let (before_ns, _) = reader::server_time(&world.bus).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let publication =
        plain(world.label(), &[0, 255, 10]).header("Tributary-Label", "kelp").header("Tributary-File", "a b");
    world.publish(&publication).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (after_ns, _) = reader::server_time(&world.bus).await.unwrap();
    let message = reader::message_at(&world.bus, topology::LABELS, 1).await.unwrap().unwrap();
    assert_eq!((message.subject.as_str(), message.sequence), (world.label().as_str(), 1));
    assert_eq!(&message.payload[..], [0, 255, 10]);
    assert_eq!((message.header("Tributary-Label"), message.header("Tributary-File")), (Some("kelp"), Some("a b")));
    assert_eq!(message.header("Tributary-Other"), None);
    assert!(before_ns < message.stored_at_ns && message.stored_at_ns < after_ns);
}

async fn the_last_message_of_a_subject_is_found(world: ContractWorld) {
    let last = async |subject: &str| reader::last_message(&world.bus, topology::LABELS, subject).await.unwrap();
    let [one, other] = ["cam-1", "cam-2"].map(|camera| subject::label(&world.site, &camera.parse().unwrap()));
    assert!(last(&one).await.is_none());
    assert!(last("label.*.*").await.is_none());
    world.store(&one, b"a").await;
    world.store(&other, b"b").await;
    world.store(&one, b"c").await;
    world.store(&other, b"d").await;
    assert_eq!(&last(&one).await.unwrap().payload[..], b"c");
    assert_eq!(&last("label.*.*").await.unwrap().payload[..], b"d");
    assert!(last("label.*.cam-3").await.is_none());
}

async fn a_range_is_read_in_order_from_its_first_sequence(world: ContractWorld) {
    let [one, other] = ["cam-1", "cam-2"].map(|camera| subject::label(&world.site, &camera.parse().unwrap()));
    for number in 0..10u8 {
        world.store(if number % 2 == 0 { &one } else { &other }, &[number]).await;
    }
    let numbers = async |range| {
        let all = world.read_all(topology::LABELS, range).await;
        all.iter().map(|message| message.payload[0]).collect::<Vec<_>>()
    };
    assert_eq!(numbers(StreamRange::default()).await, (0..10).collect::<Vec<_>>());
    assert_eq!(numbers(StreamRange { from_sequence: Some(8), ..StreamRange::default() }).await, [7, 8, 9]);
    let of_other = StreamRange { subjects: vec![other.clone()], from_sequence: Some(5), ..StreamRange::default() };
    assert_eq!(numbers(of_other).await, [5, 7, 9]);
    let of_nobody = StreamRange { subjects: vec!["label.nobody.*".into()], ..StreamRange::default() };
    assert!(numbers(of_nobody).await.is_empty());
    let mut until = Vec::new();
    let range = StreamRange::default();
    reader::read_range(&world.bus, topology::LABELS, range, 4, |message| until.push(message.sequence)).await.unwrap();
    assert_eq!(until, [1, 2, 3, 4]);
}

async fn a_headers_only_read_includes_the_message_size(world: ContractWorld) {
    world.publish(&plain(world.label(), &[7; 1000]).header("Tributary-Label", "kelp")).await;
    let range = StreamRange { headers_only: true, ..StreamRange::default() };
    let messages = world.read_all(topology::LABELS, range).await;
    assert!(messages[0].payload.is_empty());
    assert_eq!((messages[0].payload_bytes(), messages[0].header("Tributary-Label")), (1000, Some("kelp")));
}

async fn a_follower_receives_stored_and_new_messages(world: ContractWorld) {
    world.store(world.label(), b"a").await;
    let follow = async |range| Box::pin(reader::follow_range(&world.bus, topology::LABELS, range).await.unwrap());
    let mut all = follow(StreamRange::default()).await;
    let mut new = follow(StreamRange { only_new: true, ..StreamRange::default() }).await;
    assert_eq!(&next_of(&mut all).await.unwrap().payload[..], b"a");
    world.store(world.label(), b"b").await;
    for follower in [&mut all, &mut new] {
        assert_eq!(&next_of(follower).await.unwrap().payload[..], b"b");
    }
    assert!(tokio::time::timeout(SOON, all.next()).await.is_err(), "an unexpected message arrived");
}

async fn the_newest_matching_messages_are_found(world: ContractWorld) {
    for number in 0..20u8 {
        world.store(world.label(), &[number]).await;
    }
    let is_even = |message: &StoredMessage| message.payload[0].is_multiple_of(2);
    let range = StreamRange::default;
    let newest = reader::newest_messages(&world.bus, topology::LABELS, range(), 3, is_even).await.unwrap();
    assert_eq!(payloads(&newest), [[14], [16], [18]]);
    let all = reader::newest_messages(&world.bus, topology::LABELS, range(), 100, is_even).await.unwrap();
    assert_eq!(all.len(), 10);
}

async fn a_level_counts_messages_and_gaps(world: ContractWorld) {
    let level = async || reader::stream_level(&world.bus, topology::LABELS).await.unwrap();
    let empty = level().await;
    assert_eq!((empty.messages, empty.bytes, empty.last_sequence, empty.gaps), (0, 0, 0, 0));
    assert_eq!(empty.max_bytes, 1024 * 1024);
    for _ in 0..5 {
        world.store(world.label(), &[7; 100]).await;
    }
    reader::delete_message(&world.bus, topology::LABELS, 3).await.unwrap();
    reader::delete_message(&world.bus, topology::LABELS, 3).await.unwrap();
    let some = level().await;
    assert_eq!((some.messages, some.first_sequence, some.last_sequence, some.gaps), (4, 1, 5, 1));
    assert!((400..1000).contains(&some.bytes), "{some:?}");
    assert!(reader::message_at(&world.bus, topology::LABELS, 3).await.unwrap().is_none());
}

async fn messages_are_purged_below_a_sequence_and_on_a_subject(world: ContractWorld) {
    let other = subject::label(&world.site, &"cam-2".parse().unwrap());
    for _ in 0..4 {
        world.store(world.label(), b"a").await;
        world.store(&other, b"b").await;
    }
    assert_eq!(reader::purge_before(&world.bus, topology::LABELS, 4).await.unwrap(), 3);
    reader::purge_subject(&world.bus, topology::LABELS, &other).await.unwrap();
    let left = world.read_all(topology::LABELS, StreamRange::default()).await;
    assert_eq!(left.iter().map(|message| message.sequence).collect::<Vec<_>>(), [5, 7]);
}

async fn a_missing_stream_or_consumer_is_reported(world: ContractWorld) {
    let level = reader::stream_level(&world.bus, "NOBODY").await;
    assert!(matches!(level, Err(CarryError::Missing { .. })), "{level:?}");
    let progress = reader::consumer_progress(&world.bus, topology::VERIFY, "nobody").await;
    assert!(matches!(progress, Err(CarryError::Missing { .. })), "{progress:?}");
}

async fn messages_are_delivered_in_order_and_once(world: ContractWorld) {
    for number in 0..6u8 {
        world.publish(&plain(world.verify(), &[number]).header("Tributary-Label", "kelp")).await;
    }
    let mut puller = world.verifier(2);
    for number in 0..6u64 {
        let delivery = take(&mut puller).await;
        assert_eq!((delivery.sequence, delivery.attempts, delivery.payload()[0]), (number + 1, 1, number as u8));
        assert_eq!(delivery.subject(), world.verify());
        assert_eq!((delivery.header("Tributary-Label"), delivery.header("Tributary-Other")), (Some("kelp"), None));
        let stored = delivery.record();
        assert_eq!((stored.sequence, &stored.payload[..]), (number + 1, &[number as u8][..]));
        assert_eq!(stored.stored_at_ns, delivery.stored_at_ns);
        assert_eq!(delivery.pending, 5 - number);
        delivery.ack().await.unwrap();
    }
    world.bus.flush_published().await;
    assert!(next_within(&mut puller, ACK_WAIT * 2).await.is_none(), "an acknowledged message was redelivered");
}

async fn an_unacknowledged_message_is_redelivered(world: ContractWorld) {
    world.store(world.verify(), b"a").await;
    let mut puller = world.verifier(1);
    let began = tokio::time::Instant::now();
    let first = take(&mut puller).await;
    let second = take(&mut puller).await;
    assert_eq!((first.attempts, second.attempts, second.sequence), (1, 2, first.sequence));
    assert!(began.elapsed() >= ACK_WAIT * 9 / 10, "{:?}", began.elapsed());
    second.ack().await.unwrap();
    world.bus.flush_published().await;
    assert!(next_within(&mut puller, ACK_WAIT * 2).await.is_none());
}

async fn progress_postpones_redelivery(world: ContractWorld) {
    world.store(world.verify(), b"a").await;
    let (mut holder, mut other) = (world.verifier(1), world.verifier(1));
    let held = take(&mut holder).await;
    for _ in 0..4 {
        assert!(next_within(&mut other, ACK_WAIT / 2).await.is_none(), "redelivered despite progress");
        held.progress().await.unwrap();
    }
    let again = take(&mut other).await;
    assert_eq!((again.sequence, again.attempts), (held.sequence, 2));
    again.ack().await.unwrap();
}

async fn a_message_with_a_nak_is_redelivered_after_the_delay(world: ContractWorld) {
    world.store(world.verify(), b"a").await;
    let mut puller = world.verifier(1);
    take(&mut puller).await.retry(Duration::ZERO).await.unwrap();
    let second = take(&mut puller).await;
    assert_eq!(second.attempts, 2);
    let began = tokio::time::Instant::now();
    second.retry(ACK_WAIT * 2).await.unwrap();
    let third = take(&mut puller).await;
    assert_eq!(third.attempts, 3);
    let took = began.elapsed();
    assert!(took >= ACK_WAIT * 19 / 10 && took < ACK_WAIT * 4, "{took:?}");
    third.ack().await.unwrap();
}

async fn two_pullers_share_the_messages(world: ContractWorld) {
    let (mut one, mut other) = (world.verifier(1), world.verifier(1));
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        world.store(world.verify(), b"a").await;
    }
    for _ in 0..5 {
        for puller in [&mut one, &mut other] {
            let delivery = take(puller).await;
            assert_eq!(delivery.attempts, 1);
            delivery.ack().await.unwrap();
            assert!(seen.insert(delivery.sequence), "{} came twice", delivery.sequence);
        }
    }
    assert_eq!(seen.len(), 10);
}

async fn a_late_acknowledgement_counts(world: ContractWorld) {
    world.store(world.verify(), b"a").await;
    let mut puller = world.verifier(1);
    let first = take(&mut puller).await;
    let _second = take(&mut puller).await;
    first.ack().await.unwrap();
    world.bus.flush_published().await;
    assert!(next_within(&mut puller, ACK_WAIT * 2).await.is_none(), "redelivered after a late acknowledgement");
}

async fn a_consumer_reports_its_progress(world: ContractWorld) {
    let progress = async || {
        world.bus.flush_published().await;
        let progress = reader::consumer_progress(&world.bus, topology::VERIFY, topology::VERIFIER).await.unwrap();
        (progress.pending, progress.unacked, progress.delivered, progress.finished())
    };
    assert_eq!(progress().await, (0, 0, 0, 0));
    for _ in 0..5 {
        world.store(world.verify(), b"a").await;
    }
    assert_eq!(progress().await, (5, 0, 0, 0));
    let mut puller = world.verifier(1);
    let [one, two, _three] = [take(&mut puller).await, take(&mut puller).await, take(&mut puller).await];
    one.ack().await.unwrap();
    two.ack().await.unwrap();
    // The server does not confirm acknowledgements, so it may not have received them yet. One more message may be on
    // its way to the puller.
    let remaining = async || loop {
        let (pending, unacked, _, finished) = progress().await;
        if finished == 2 {
            return pending + unacked;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let left = tokio::time::timeout(ACK_WAIT / 2, remaining()).await;
    assert_eq!(left.expect("the server did not count two acknowledgements"), 3);
}

async fn a_work_queue_keeps_unacknowledged_messages(world: ContractWorld) {
    for _ in 0..3 {
        world.store(world.verify(), b"a").await;
    }
    let mut puller = world.verifier(1);
    take(&mut puller).await.ack().await.unwrap();
    world.bus.flush_published().await;
    tokio::time::sleep(SOON).await;
    let level = reader::stream_level(&world.bus, topology::VERIFY).await.unwrap();
    assert_eq!((level.messages, level.first_sequence), (2, 2));
}

async fn an_interest_stream_keeps_messages_that_a_consumer_wants(world: ContractWorld) {
    let level = async || reader::stream_level(&world.bus, topology::VERDICTS).await.unwrap();
    let strange = subject::verdict(&"farm".parse().unwrap(), &world.camera);
    assert_eq!(world.store(&strange, b"a").await, 1, "it must be acknowledged");
    assert_eq!(level().await.messages, 0, "no consumer wants it");
    world.store(subject::verdict(&world.site, &world.camera), b"b").await;
    assert_eq!(level().await.messages, 1);
    let durable = topology::verdicts_durable(&world.site);
    let mut puller = Puller::new(&world.bus, topology::VERDICTS, &durable, 1);
    take(&mut puller).await.ack().await.unwrap();
    world.bus.flush_published().await;
    tokio::time::sleep(SOON).await;
    assert_eq!(level().await.messages, 0, "its only consumer has acknowledged it");
}

async fn messages_expire(world: ContractWorld) {
    world.store(subject::verdict(&world.site, &world.camera), b"a").await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(reader::stream_level(&world.bus, topology::VERDICTS).await.unwrap().messages, 0);
    let durable = topology::verdicts_durable(&world.site);
    let mut puller = Puller::new(&world.bus, topology::VERDICTS, &durable, 1);
    assert!(next_within(&mut puller, SOON).await.is_none());
}

async fn an_advisory_names_a_message_that_reached_its_delivery_limit(world: ContractWorld) {
    let sequence = world.store(world.verify(), b"a").await;
    let exhausted = async || reader::next_exhausted(&world.bus, topology::VERIFY, topology::VERIFIER).await.unwrap();
    let mut puller = world.verifier(1);
    let mut deliveries = 0;
    while let Some(delivery) = next_within(&mut puller, ACK_WAIT * 3).await {
        deliveries = delivery.attempts;
        assert!(exhausted().await.is_none(), "an advisory after {deliveries} deliveries");
        delivery.retry(Duration::ZERO).await.unwrap();
    }
    assert_eq!(deliveries, 2 * schemas::limits::MAX_TRIES);
    let advisory = exhausted().await.expect("no advisory was published");
    assert_eq!((advisory.sequence, advisory.deliveries), (sequence, deliveries));
    assert!(
        reader::message_at(&world.bus, topology::VERIFY, sequence).await.unwrap().is_some(),
        "the message must stay in its stream"
    );
    reader::delete_message(&world.bus, topology::ADVISORIES, advisory.own_sequence).await.unwrap();
    assert!(exhausted().await.is_none());
}

async fn an_outcome_is_stored_and_republished_as_a_final_answer(world: ContractWorld) {
    let mut tapped = Box::pin(tap::watch_subject(&world.bus, "answer.final.>").await.unwrap());
    world.bus.flush_published().await;
    world.publish(&Publication::first_on_subject(world.outcome(1), "a").header("Tributary-Image", "7")).await;
    let republished = next_of(&mut tapped).await;
    assert_eq!((republished.subject.as_str(), &republished.payload[..]), (world.final_answer(1).as_str(), &b"a"[..]));
    let stored = reader::message_at(&world.bus, topology::ANSWERS, 1).await.unwrap().unwrap();
    assert_eq!(
        (stored.subject.as_str(), stored.header("Tributary-Image")),
        (world.final_answer(1).as_str(), Some("7"))
    );
    world.publish(&Publication::first_on_subject(world.outcome(1), "b")).await;
    assert!(tokio::time::timeout(SOON, tapped.next()).await.is_err(), "a refused message was republished");
}

async fn a_taken_slot_tells_our_own_message_from_others(world: ContractWorld) {
    let model = schemas::ModelName::from_name("light");
    let set = "set".parse().unwrap();
    let slots = [
        world.outcome(1),
        subject::round(&model, 1, "opened"),
        subject::release(&model, 1),
        subject::pin(&set, &world.site, &world.camera, task_id(1)),
    ];
    for slot in slots {
        let (own, other) =
            (Publication::first_on_subject(slot.clone(), "own"), Publication::first_on_subject(slot.clone(), "other"));
        assert!(matches!(world.publish(&own).await, PublishOutcome::Stored(_)), "{slot}");
        assert!(matches!(world.publish(&own).await, PublishOutcome::Duplicate(_)), "{slot}");
        assert_eq!(world.publish(&other).await, PublishOutcome::Taken, "{slot}");
    }
    // Writers of dead letters need no right to read them, so a repeated publish cannot recognize its own.
    let letter = Publication::first_on_subject(subject::dead(topology::IMAGES, &world.site, task_id(1)), "letter");
    assert!(matches!(world.publish(&letter).await, PublishOutcome::Stored(_)));
    assert_eq!(world.publish(&letter).await, PublishOutcome::Taken);
}

async fn rounds_are_copied_from_the_updates_stream(world: ContractWorld) {
    let model = schemas::ModelName::from_name("light");
    world.store(subject::update(&model, 1, &world.site), b"update").await;
    let opened = subject::round(&model, 1, "opened");
    let sequence = world.store(&opened, b"opened").await;
    tokio::time::sleep(SOON).await;
    let copies = world.read_all(topology::ROUNDS, StreamRange::default()).await;
    assert_eq!(payloads(&copies), [b"opened"]);
    assert_eq!((copies[0].subject.as_str(), copies[0].source_sequence()), (opened.as_str(), Some(sequence)));
}

async fn concurrent_changes_of_a_note_are_all_kept(world: ContractWorld) {
    let ledger = Ledger::open(&world.bus).await.unwrap();
    assert_eq!(ledger.read("count").await.unwrap(), None);
    ledger.write("count", "1".into()).await.unwrap();
    ledger.write("count", "2".into()).await.unwrap();
    assert_eq!(ledger.read("count").await.unwrap().as_deref(), Some("2"));
    let one_more = |note: Option<&str>| (note.and_then(|note| note.parse::<u32>().ok()).unwrap_or(0) + 1).to_string();
    let changes = (0..8).map(|_| ledger.update_note("count", one_more));
    for changed in futures::future::join_all(changes).await {
        changed.unwrap();
    }
    assert_eq!(ledger.read("count").await.unwrap().as_deref(), Some("10"), "a concurrent change was lost");
    ledger.update_note("fresh", one_more).await.unwrap();
    assert_eq!(ledger.read("fresh").await.unwrap().as_deref(), Some("1"));
}

async fn a_follower_of_a_note_receives_its_value_and_its_changes(world: ContractWorld) {
    let ledger = Ledger::open(&world.bus).await.unwrap();
    ledger.write("note", "a".into()).await.unwrap();
    ledger.write("note", "b".into()).await.unwrap();
    let mut followed = Box::pin(ledger.follow_note("note").await.unwrap());
    assert_eq!(next_of(&mut followed).await, "b");
    ledger.write("other", "x".into()).await.unwrap();
    ledger.write("note", "c".into()).await.unwrap();
    assert_eq!(next_of(&mut followed).await, "c");
}

async fn a_note_is_written_through_its_subject(world: ContractWorld) {
    world.publish(&plain(subject::note_subject("note"), b"a")).await;
    let ledger = Ledger::open(&world.bus).await.unwrap();
    assert_eq!(ledger.read("note").await.unwrap().as_deref(), Some("a"));
    let remote = RemoteNote::new(&world.bus, "other".into());
    assert_eq!(remote.read().await.unwrap(), None);
    remote.write("b".into()).await.unwrap();
    assert_eq!(remote.read().await.unwrap().as_deref(), Some("b"));
    assert_eq!(ledger.read("other").await.unwrap().as_deref(), Some("b"));
}

async fn heartbeats_are_followed_and_listed(world: ContractWorld) {
    let bucket = HeartbeatBucket::open(&world.bus).await.unwrap();
    let heartbeat = |role: Role, worker: &str, finished| {
        let mut heartbeat = Heartbeat::for_worker(role, worker.into(), Some(world.site.clone()), 1);
        heartbeat.finished = finished;
        heartbeat
    };
    bucket.publish_heartbeat(&heartbeat(Role::Courier, "host-1", 1)).await.unwrap();
    let mut followed = Box::pin(bucket.follow_heartbeats(Role::Courier).await.unwrap());
    assert_eq!(next_of(&mut followed).await.finished, 1);
    bucket.publish_heartbeat(&heartbeat(Role::Recognizer, "host-2", 7)).await.unwrap();
    bucket.publish_heartbeat(&heartbeat(Role::Courier, "host-1", 2)).await.unwrap();
    assert_eq!(next_of(&mut followed).await.finished, 2);
    let live = live_workers(&world.bus).await.unwrap();
    let live: Vec<_> = live.iter().map(|heartbeat| (heartbeat.worker.as_str(), heartbeat.finished)).collect();
    assert_eq!(live, [("host-1", 2), ("host-2", 7)]);
}

async fn a_blob_is_stored_once_and_fetched_unchanged(world: ContractWorld) {
    let blobs = Blobs::open(&world.bus).await.unwrap();
    let bytes: Vec<u8> = (0..700_000u32).map(|number| (number % 251) as u8).collect();
    let blob = blobs.store_blob(&bytes).await.unwrap();
    assert_eq!(blobs.store_blob(&bytes).await.unwrap(), blob);
    assert!(blobs.has_blob(&blob).await.unwrap());
    assert_eq!(&blobs.fetch_blob(&blob, 1 << 20).await.unwrap()[..], &bytes[..]);
    let too_large = blobs.fetch_blob(&blob, 1000).await;
    assert!(matches!(too_large, Err(CarryError::BadBlob { .. })), "{too_large:?}");
    blobs.remove_blob(&blob.key).await.unwrap();
    blobs.remove_blob(&blob.key).await.unwrap();
    assert!(!blobs.has_blob(&blob).await.unwrap());
    let gone = blobs.fetch_blob(&blob, 1 << 20).await;
    assert!(matches!(gone, Err(CarryError::BadBlob { .. })), "{gone:?}");
    assert_eq!(&blobs.fetch_blob(&blobs.store_blob(&bytes).await.unwrap(), 1 << 20).await.unwrap()[..], &bytes[..]);
}

async fn a_blob_with_the_wrong_hash_is_refused(world: ContractWorld) {
    let blobs = Blobs::open(&world.bus).await.unwrap();
    let blob = blobs.store_blob(b"what it is").await.unwrap();
    let other = BlobRef { sha256: "07".repeat(32), ..blob };
    let fetched = blobs.fetch_blob(&other, 1000).await;
    assert!(matches!(fetched, Err(CarryError::BadBlob { .. })), "{fetched:?}");
}

async fn a_file_is_stored_and_fetched_unchanged(world: ContractWorld) {
    let blobs = Blobs::open(&world.bus).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, into) = (folder.path().join("file"), folder.path().join("into"));
    let names = || {
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<BTreeSet<_>>()
    };
    for size in [0u32, 1, 700_000, 9_000_000] {
        let bytes: Vec<u8> = (0..size).map(|number| (number % 251) as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        let blob = blobs.store_file(&file).await.unwrap();
        assert_eq!(blobs.store_file(&file).await.unwrap(), blob, "stored once");
        assert_eq!(blobs.store_blob(&bytes).await.unwrap(), blob, "a file and its bytes must be the same blob");
        blobs.fetch_to_file(&blob, 10_000_000, &into).await.unwrap();
        assert!(std::fs::read(&into).unwrap() == bytes, "{size} bytes");
        let before = names();
        let too_large = blobs.fetch_to_file(&blob, u64::from(size).saturating_sub(1), &into).await;
        assert!(size == 0 || matches!(too_large, Err(CarryError::BadBlob { .. })), "{too_large:?}");
        let missing = BlobRef::new([9; 32], u64::from(size));
        let missing = blobs.fetch_to_file(&missing, 10_000_000, &into).await;
        assert!(matches!(missing, Err(CarryError::BadBlob { .. })), "{missing:?}");
        assert!(std::fs::read(&into).unwrap() == bytes, "a failed fetch changed the file");
        assert_eq!(names(), before, "a failed fetch left a file behind");
    }
    let absent = blobs.store_file(&folder.path().join("absent")).await;
    assert!(matches!(absent, Err(CarryError::File { .. })), "{absent:?}");
}

async fn a_large_blob_is_copied_to_another_bucket(world: ContractWorld) {
    let (from, to) = (Blobs::open(&world.bus).await.unwrap(), Blobs::open_in_cloud(&world.bus).await.unwrap());
    let bytes = vec![9u8; 3_000_000];
    let blob = from.store_blob(&bytes).await.unwrap();
    assert!(!to.has_blob(&blob).await.unwrap());
    from.copy_to(&to, &blob, 1 << 30).await.unwrap();
    from.copy_to(&to, &blob, 1 << 30).await.unwrap();
    assert_eq!(&to.fetch_blob(&blob, 1 << 30).await.unwrap()[..], &bytes[..]);
    let missing = BlobRef::new([3; 32], 10);
    assert!(from.copy_to(&to, &missing, 1000).await.is_err());
    assert!(!to.has_blob(&missing).await.unwrap());
}

async fn a_deleted_image_is_noted(world: ContractWorld) {
    world.store(world.image(), b"a").await;
    world.store(world.image(), b"b").await;
    assert!(reader::removed_images(&world.bus).await.unwrap().is_empty());
    reader::remove_answered(&world.bus, topology::IMAGES, 2).await.unwrap();
    assert_eq!(reader::removed_images(&world.bus).await.unwrap(), [2]);
    assert!(reader::message_at(&world.bus, topology::IMAGES, 2).await.unwrap().is_none());
}

async fn the_server_reports_its_time(world: ContractWorld) {
    let (first_ns, _) = reader::server_time(&world.bus).await.unwrap();
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (second_ns, _) = reader::server_time(&world.bus).await.unwrap();
    let passed = Duration::from_nanos(u64::try_from(second_ns - first_ns).unwrap());
    assert!(passed >= Duration::from_millis(290), "{passed:?}");
    assert!(passed <= began.elapsed() + Duration::from_millis(50), "{passed:?}");
}

async fn the_stream_of_a_subject_is_found(world: ContractWorld) {
    let stream_of = async |subject: &str| reader::stream_of(&world.bus, subject).await.unwrap();
    assert_eq!(stream_of(&world.image()).await.as_deref(), Some(topology::IMAGES));
    assert_eq!(stream_of(&world.verify()).await.as_deref(), Some(topology::VERIFY));
    assert_eq!(stream_of("nobody.takes.this").await, None);
}

async fn a_connection_knows_its_domain_and_server(world: ContractWorld) {
    assert!(world.bus.is_connected() && !world.bus.is_gone().await && !world.bus.is_remote());
    let other = world.bus.in_domain(Some("other"));
    assert!(other.is_remote() && !other.in_same_domain(&world.bus) && world.bus.in_same_domain(&world.bus.clone()));
    assert_eq!(world.bus.server_id(), other.server_id());
    assert_eq!(world.bus.max_payload_bytes(), schemas::limits::MAX_MESSAGE_BYTES);
}
