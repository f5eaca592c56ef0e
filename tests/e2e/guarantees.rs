//! The ground holds: what was acknowledged has its outcome at its own site, whatever ordinary clients send and
//! whatever other sites do.

use std::time::Duration;

use futures::StreamExt;
use harness::pictures::{first_picture, nth_picture};
use harness::program::run;
use harness::world::crash;
use harness::{InjectedFault, Oracle, TestWorld, WorldPlan, seed, until};
use schemas::limits::{MAX_INLINE_BYTES, MAX_MESSAGE_BYTES};
use schemas::task::{HEADER_BLOB, HEADER_TO};
use schemas::{Answer, BlobRef, DeadLetter, Route, TaskId, decode, encode};
use streams::reader::{self, StreamRange};
use streams::subject::{self, OutboxKind};
use streams::topology::StreamSettings;
use streams::{Blobs, Bus, Publication, Publisher, topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{PATIENCE, answered, outcome, publish};

/// A neighbour's image is delayed by no more than this.
const WITHOUT_DELAY: Duration = Duration::from_secs(1);

async fn letters(bus: &Bus) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    let level = reader::stream_level(bus, topology::DEAD).await.unwrap();
    if level.messages > 0 {
        reader::read_range(bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record| {
            letters.push(decode(&record.payload).unwrap());
        })
        .await
        .unwrap();
    }
    letters
}

async fn letter(bus: &Bus, is: impl Fn(&DeadLetter) -> bool) -> DeadLetter {
    let found = until("a dead letter", PATIENCE, async || Ok(letters(bus).await.into_iter().find(&is))).await;
    found.unwrap()
}

/// The final answer that names the image under a sequence.
async fn outcome_of(bus: &Bus, sequence: u64) -> Answer {
    let what = format!("an outcome of image {sequence}");
    let found = until(&what, PATIENCE, async || {
        let mut found = Vec::new();
        let level = reader::stream_level(bus, topology::ANSWERS).await?;
        if level.messages > 0 {
            reader::read_range(bus, topology::ANSWERS, StreamRange::default(), level.last_sequence, |record| {
                if subject::read_final_answer(&record.subject).is_ok() {
                    found.push(decode::<Answer>(&record.payload).unwrap());
                }
            })
            .await?;
        }
        Ok(found.into_iter().find(|answer| answer.image_sequence == sequence))
    });
    found.await.unwrap()
}

async fn small_world() -> TestWorld {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    world
}

async fn raw(world: &TestWorld) -> TcpStream {
    let address = world.site(0).server.url();
    let mut raw = TcpStream::connect(address.trim_start_matches("nats://")).await.unwrap();
    raw.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await.unwrap();
    raw
}

/// What a client of one's own writes, headers as they come.
async fn publish_raw(raw: &mut TcpStream, subject: &str, headers: &[u8], payload: &[u8]) {
    let head = format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + payload.len());
    for part in [head.as_bytes(), headers, payload, b"\r\n"] {
        raw.write_all(part).await.unwrap();
    }
    raw.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_at_one_site_acknowledges_nothing_at_another() {
    let world = TestWorld::start(WorldPlan::leaves(2)).await.unwrap();
    let (reef, farm) = (world.site(0), world.site(1));
    for site in [reef, farm] {
        for number in 0..10 {
            publish(&site.bus, &site.name, &nth_picture(true, number).unwrap().bytes, &[]).await;
        }
    }
    // One takes ten and does nothing; the other acknowledges its ten, as any client does it.
    let take = async |site: &harness::world::TestSite, ack: bool| {
        let client = async_nats::connect(site.server.url()).await.unwrap();
        let images = async_nats::jetstream::new(client.clone()).get_stream_no_info(topology::IMAGES).await.unwrap();
        let durable = topology::recognizer_durable(&site.name);
        let consumer: async_nats::jetstream::consumer::PullConsumer = images.get_consumer(&durable).await.unwrap();
        let mut batch = consumer.fetch().max_messages(10).expires(PATIENCE).messages().await.unwrap();
        let mut taken = 0;
        while let Some(message) = batch.next().await {
            taken += 1;
            if ack {
                message.unwrap().double_ack().await.unwrap();
            }
        }
        assert_eq!(taken, 10);
        // The durable that every site had under one name is not there any more, so its acknowledgements go nowhere.
        for sequence in 1..=10 {
            let old = format!("$JS.ACK.IMAGES.recognizer.1.{sequence}.{sequence}.1.0");
            client.publish(old, "+ACK".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    };
    take(reef, false).await;
    take(farm, true).await;
    // And not by name either: what a site says of its own streams does not leave it, and the cloud lets it say no more.
    let farms = async_nats::connect(farm.server.url()).await.unwrap();
    for sequence in 1..=10 {
        let foreign =
            format!("$JS.ACK.IMAGES.{}.1.{sequence}.{sequence}.1.0", topology::recognizer_durable(&reef.name));
        farms.publish(foreign, "+ACK".into()).await.unwrap();
    }
    farms.flush().await.unwrap();
    let progress = async |site: &harness::world::TestSite| {
        reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await.unwrap()
    };
    // Something that does cross, so that what was to cross before it has.
    reader::round_trip(&farm.over_link().await.unwrap(), PATIENCE).await.unwrap();
    reader::round_trip(&reef.over_link().await.unwrap(), PATIENCE).await.unwrap();
    assert_eq!((progress(farm).await.unacked, progress(farm).await.floor), (0, 10));
    assert_eq!((progress(reef).await.unacked, progress(reef).await.floor), (10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_at_two_sites_whose_workers_are_frozen_and_never_killed() {
    let seed = seed(20271);
    let mut world = TestWorld::start_with_workers(WorldPlan::leaves(2)).await.unwrap();
    let oracles: Vec<Oracle> = (0..2)
        .map(|site| Oracle::new(seed + site, &world.site(site as usize).name, world.bus(site as usize)).unwrap())
        .collect();
    let publishing: Vec<_> = oracles.iter().map(|oracle| oracle.start_publishing(20)).collect();
    for (number, worker) in
        ["recognizer-0", "recognizer-1", "courier-0", "recognizer-0", "courier-1", "recognizer-1"].iter().enumerate()
    {
        let fault =
            InjectedFault::Freeze { worker: (*worker).into(), beyond: Duration::from_millis(300 * number as u64) };
        world.inject_fault(&fault).await.unwrap();
    }
    for (oracle, publishing) in oracles.iter().zip(publishing) {
        oracle.stop_publishing();
        publishing.await.unwrap().unwrap();
        let judgement = oracle.judge(&world.cloud, Duration::from_secs(60)).await.unwrap();
        println!("{judgement}");
        judgement.verdict().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_hears_what_the_stream_kept_and_nothing_that_came_second() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let mut finals = client.subscribe("answer.final.>").await.unwrap();
    let task = publish(world.bus(0), &site, &first_picture(true).unwrap().bytes, &[]).await;
    let kept = answered(&world, task).await;
    // A verdict that comes too late, as a courier publishes it.
    let mut late = kept.clone();
    late.label = Some("something else".into());
    let slot = subject::outcome(&site, &kept.camera, task);
    let placed = Publisher::new(world.bus(0).clone(), PATIENCE)
        .publish(&Publication::first_on_subject(slot, encode(&late).unwrap()))
        .await
        .unwrap();
    assert_eq!(placed, streams::PublishOutcome::Taken);
    // The next task's answer comes after anything that was said about this one.
    let next = publish(world.bus(0), &site, &first_picture(true).unwrap().bytes, &[]).await;
    let mut heard = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, finals.next()).await.unwrap().unwrap();
        let answer: Answer = decode(&message.payload).unwrap();
        if answer.task == next {
            break;
        }
        heard.push(answer);
    }
    assert_eq!(heard, [kept]);
    assert_eq!(world.worker_mut("recognizer").unwrap().ended().unwrap(), None, "{}", world.log_tails());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_subscriber_heard_is_kept_though_the_server_is_killed_at_that_moment() {
    let mut world = small_world().await;
    let site = world.site(0);
    let name = site.name.clone();
    let client = async_nats::connect(site.server.url()).await.unwrap();
    for _ in 0..5 {
        let mut finals = client.subscribe("answer.final.>").await.unwrap();
        client.flush().await.unwrap();
        let task = publish(&site.bus, &name, &first_picture(true).unwrap().bytes, &[]).await;
        let heard = tokio::time::timeout(PATIENCE, finals.next()).await.unwrap().unwrap();
        crash(&site.server, &site.bus).await.unwrap();
        let slot = subject::final_answer_of_any_camera(&name, task);
        let kept = reader::last_message(&site.bus, topology::ANSWERS, &slot).await.unwrap();
        let kept = kept.unwrap_or_else(|| panic!("the answer of task {task} was told and is gone"));
        assert_eq!(kept.payload, heard.payload, "another answer stands where one was told");
    }
    let worker = world.worker_mut("recognizer").unwrap();
    assert_eq!(worker.ended().unwrap(), None, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_no_client_can_parse_cost_themselves_and_neither_the_image_nor_its_neighbours() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    let picture = first_picture(true).unwrap().bytes.clone();
    let mut raw = raw(&world).await;
    let odd: [&[u8]; 10] = [
        b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n",
        b"NATS/1.0\r\nno colon at all\r\n\r\n",
        b"NATS/1.0\r\nX-Caf\xe9: 1\r\n\r\n",
        b"NATS/1.0\r\nX-Place: K\xfcche\r\n\r\n",
        b"NATS/1.0\r\na name: 1\r\n\r\n",
        b"NATS/1.0\r\nX-\x01: 1\r\n\r\n",
        b"NATS/1.0\r\n: nothing\r\n\r\n",
        b"NATS/1.0 404\r\n\r\n",
        b"NATS/1.0 nonsense here\r\nX-Ok: 1\r\n\r\n",
        b"NATS/1.0\r\nX-Long: a\r\n  b\r\nX-Ok: 1\r\n\r\n",
    ];
    // What an image takes here, beside whatever else this machine does.
    let mut usual = Duration::ZERO;
    for _ in 0..5 {
        let began = tokio::time::Instant::now();
        let task = publish(world.bus(0), &site, &picture, &[]).await;
        answered(&world, task).await;
        usual = usual.max(began.elapsed());
    }
    for headers in odd {
        let before = reader::stream_level(world.bus(0), topology::IMAGES).await.unwrap().last_sequence;
        publish_raw(&mut raw, &format!("image.{site}.cam-1"), headers, &picture).await;
        until("stored", PATIENCE, async || {
            let level = reader::stream_level(world.bus(0), topology::IMAGES).await?;
            Ok((level.last_sequence > before).then_some(()))
        })
        .await
        .unwrap();
        let began = tokio::time::Instant::now();
        let task = publish(world.bus(0), &site, &picture, &[]).await;
        assert_eq!(answered(&world, task).await.route, Route::Edge);
        let shown = String::from_utf8_lossy(headers);
        let took = began.elapsed();
        assert!(took < usual + WITHOUT_DELAY, "after {shown:?} a neighbour took {took:?}, {usual:?} without it");
        assert_eq!(outcome_of(world.bus(0), before + 1).await.route, Route::Edge, "{shown:?}");
    }
    let worker = world.worker_mut("recognizer").unwrap();
    assert_eq!(worker.ended().unwrap(), None, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_reached_nobody_becomes_a_dead_letter_by_its_sequence() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    let site = world.site(0).name.clone();
    let task = publish(world.bus(0), &site, &first_picture(true).unwrap().bytes, &[]).await;
    // A client that cannot read it takes it as often as it may, and drops it each time.
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let images = async_nats::jetstream::new(client).get_stream_no_info(topology::IMAGES).await.unwrap();
    let durable = topology::recognizer_durable(&site);
    let consumer: async_nats::jetstream::consumer::PullConsumer = images.get_consumer(&durable).await.unwrap();
    let most = consumer.cached_info().config.max_deliver;
    assert!(most > 0, "a durable without an end");
    for _ in 0..most {
        let mut batch = consumer.fetch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
        let message = batch.next().await.expect("delivered").unwrap();
        message.ack_with(async_nats::jetstream::AckKind::Nak(None)).await.unwrap();
    }
    world.recognizer("recognizer", 0).unwrap();
    let letter = letter(world.bus(0), |letter| letter.fault.kind.as_str() == "client_unreadable").await;
    assert_eq!((letter.sequence, letter.task, letter.attempts), (1, Some(task), most as u64));
    assert_eq!(answered(&world, task).await.route, Route::Dead);
    let next = publish(world.bus(0), &site, &first_picture(true).unwrap().bytes, &[]).await;
    assert_eq!(answered(&world, next).await.route, Route::Edge);

    let settled = until("the durable waits for nothing", PATIENCE, async || {
        let progress = reader::consumer_progress(world.bus(0), topology::IMAGES, &durable).await?;
        Ok((progress.unacked == 0 && progress.floor >= 2).then_some(()))
    });
    settled.await.unwrap_or_else(|error| panic!("{error:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_accepts_the_stream_takes_whatever_its_size() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    let bus = world.bus(0).clone();
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let subject = format!("image.{site}.plain");
    for (number, size) in [1_100_000, 1_900_000, 4_000_000, MAX_INLINE_BYTES, MAX_MESSAGE_BYTES].into_iter().enumerate()
    {
        let mut bytes = first_picture(true).unwrap().bytes.to_vec();
        bytes.resize(size, 0);
        client.publish(subject.clone(), bytes.into()).await.unwrap();
        client.flush().await.unwrap();
        let answer = outcome_of(&bus, number as u64 + 1).await;
        assert_eq!(answer.route, Route::Edge, "{size}: {:?}", answer.fault);
    }
    let refused = client.publish(subject.clone(), vec![0; MAX_MESSAGE_BYTES + 1].into()).await;
    assert!(refused.is_err(), "a client knows the server's limit");
    // One that does not is shown the door, and somebody can tell.
    let mut raw = raw(&world).await;
    raw.write_all(format!("PUB {subject} {}\r\n", MAX_MESSAGE_BYTES + 1).as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let _reset = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut said)).await.unwrap();
    let monitor = world.site(0).server.monitor_url();
    let counted = until("the refusal is counted", PATIENCE, async || {
        Ok(streams::monitor::fetch_oversized_connections(&monitor).await.filter(|count| *count >= 1))
    });
    counted.await.unwrap();
    // Many large ones at once are held a few at a time.
    let mut large = first_picture(true).unwrap().bytes.to_vec();
    large.resize(MAX_INLINE_BYTES, 0);
    for _ in 0..24 {
        client.publish(subject.clone(), large.clone().into()).await.unwrap();
    }
    client.flush().await.unwrap();
    assert_eq!(outcome_of(&bus, 29).await.route, Route::Edge);
    let peak = world.worker_mut("recognizer").unwrap().peak_memory_mib();
    assert!(peak < 400, "the recognizer took {peak} MiB at its peak");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_id_at_two_cameras_and_a_counter_that_begins_again_get_their_own_answers() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    let bus = world.bus(0).clone();
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let send = async |camera: &str, id: &str, picture: usize| {
        let subject = format!("image.{site}.{camera}");
        let bytes = nth_picture(true, picture).unwrap().bytes.clone();
        publisher.publish(&Publication::with_id(subject, bytes, id)).await.unwrap();
    };
    // Two cameras that count alike, at the same moment; then one that was switched off and counts from 1 again; then
    // one whose acknowledgement was lost, so that it sends the same once more.
    send("cam-1", "frame-000001", 0).await;
    send("cam-2", "frame-000001", 1).await;
    send("cam-1", "frame-000001", 2).await;
    // Both in one batch, either of the two could have named itself in the answer.
    outcome_of(&bus, 1).await;
    send("cam-1", "frame-000001", 0).await;
    send("cam-3", "frame-000001", 3).await;
    let own: Vec<Answer> = [outcome_of(&bus, 1).await, outcome_of(&bus, 2).await, outcome_of(&bus, 3).await].into();
    outcome_of(&bus, 5).await;
    for (answer, picture) in own.iter().zip([0, 1, 2]) {
        assert_eq!(answer.label.as_deref(), Some(nth_picture(true, picture).unwrap().light.label.as_str()));
    }
    assert_eq!(own.iter().map(|answer| answer.task).collect::<std::collections::BTreeSet<_>>().len(), 3);
    // The repeated one is the first one's task: it has one answer, and the janitor counts it.
    let level = reader::stream_level(&bus, topology::ANSWERS).await.unwrap();
    assert_eq!(level.messages, 4, "a repeated image was answered twice");
    world.janitor("janitor", 0).unwrap();
    let counted = until("the duplicate is counted", PATIENCE, async || {
        let beats = streams::fleet::live_workers(&bus).await?;
        let outcomes = beats.into_iter().find_map(|beat| beat.outcomes);
        Ok(outcomes.filter(|outcomes| outcomes.duplicates == 1 && outcomes.open == 0))
    });
    let outcomes = counted.await.unwrap();
    assert_eq!((outcomes.redone, outcomes.oldest_sequence), (0, None));
    assert_eq!(world.worker_mut("recognizer").unwrap().ended().unwrap(), None, "{}", world.log_tails());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_off_by_a_level_and_those_of_another_site_become_dead_letters_that_name_the_right_one() {
    let mut world = small_world().await;
    let bus = world.bus(0).clone();
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let picture = first_picture(true).unwrap().bytes.clone();
    let subjects = [
        ("image.cam-1", "image.site-1.cam-1"),
        ("image.site-1.hall.cam-1", "image.site-1.cam-1"),
        ("image.site-1.cam-1./", "image.site-1.cam-1"),
        ("/.image.site-1.cam-1", "image.site-1.cam-1"),
        ("image.farm.cam-1", "image.site-1.cam-1"),
        ("image", "image.site-1.<camera>"),
    ];
    for (number, (subject, right)) in subjects.into_iter().enumerate() {
        client.publish(subject, picture.clone()).await.unwrap();
        client.flush().await.unwrap();
        let letter = letter(&bus, |letter| letter.subject == subject).await;
        assert_eq!(letter.fault.kind.as_str(), "subject_unknown", "{subject}");
        assert!(letter.fault.remedy.contains(right), "{subject}: {}", letter.fault.remedy);
        assert_eq!(outcome_of(&bus, number as u64 + 1).await.route, Route::Dead, "{subject}");
    }
    assert_eq!(world.worker_mut("recognizer").unwrap().ended().unwrap(), None, "{}", world.log_tails());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_image_without_an_outcome_is_redone_within_a_minute_without_any_restart() {
    let mut world = small_world().await;
    world.janitor("janitor", 0).unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let mut tasks = Vec::new();
    for number in 0..5 {
        let task = publish(&bus, &site, &nth_picture(true, number).unwrap().bytes, &[]).await;
        // One at a time: images older than the oldest answer kept are not judged, and the third answer is to be removed.
        answered(&world, task).await;
        tasks.push(task);
    }
    // Somebody acknowledges what a recognizer has not seen: it is frozen, and a stranger takes three.
    world.worker_mut("recognizer").unwrap().signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let mut lost = Vec::new();
    for number in 5..8 {
        lost.push(publish(&bus, &site, &nth_picture(true, number).unwrap().bytes, &[]).await);
    }
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    for sequence in 6..=8u64 {
        let stamp = 0;
        let ack = format!("$JS.ACK.IMAGES.{}.1.{sequence}.{sequence}.{stamp}.0", topology::recognizer_durable(&site));
        client.publish(ack, "+ACK".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    // And one outcome is gone.
    let slot = subject::final_answer_of_any_camera(&site, tasks[2]);
    let gone = reader::last_message(&bus, topology::ANSWERS, &slot).await.unwrap().unwrap();
    reader::delete_message(&bus, topology::ANSWERS, gone.sequence).await.unwrap();
    world.worker_mut("janitor").unwrap().restart().unwrap();
    world.worker_mut("recognizer").unwrap().signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    let redone = until("all have an outcome again", Duration::from_secs(60), async || {
        for task in tasks.iter().chain(&lost) {
            let slot = subject::final_answer_of_any_camera(&site, *task);
            if reader::last_message(&bus, topology::ANSWERS, &slot).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    redone.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_of_answers_go_on_after_restarts_and_a_tap_shows_heartbeats() {
    let mut world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    // Of five images two are doubtful.
    let publish_five = async |world: &TestWorld, from: usize| {
        for number in from..from + 5 {
            let picture = nth_picture(number % 5 < 3, number).unwrap();
            let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
            answered(world, task).await;
        }
    };
    let totals = async |count: u64| {
        until("the totals", PATIENCE, async || {
            let beats = streams::fleet::live_workers(&bus).await?;
            let totals = beats.into_iter().filter_map(|beat| beat.outcomes?.totals).next_back();
            Ok(totals.filter(|totals| totals.count() >= count))
        })
        .await
    };
    publish_five(&world, 0).await;
    let first = totals(5).await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    world.worker_mut("recognizer-0").unwrap().restart().unwrap();
    world.worker_mut("janitor-0").unwrap().kill().unwrap();
    publish_five(&world, 5).await;
    world.worker_mut("janitor-0").unwrap().restart().unwrap();
    let second = totals(10).await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    let last = reader::stream_level(&bus, topology::ANSWERS).await.unwrap().last_sequence;
    let (mut stored, mut agreed) = (Vec::new(), 0);
    let range = StreamRange { subjects: vec![subject::final_answers(&site, None)], ..StreamRange::default() };
    reader::read_range(&bus, topology::ANSWERS, range, last, |record| {
        let answer: Answer = decode(&record.payload).unwrap();
        agreed += u64::from(answer.edge.as_ref().is_some_and(|edge| Some(&edge.label) == answer.label.as_ref()));
        stored.push(answer);
    })
    .await
    .unwrap();
    let verified = stored.iter().filter(|answer| answer.route == Route::Verified).count() as u64;
    assert_eq!((first.count(), second.count(), stored.len()), (5, 10, 10));
    assert!(verified >= 3, "{second:?}");
    assert_eq!((second.verdicts, second.agreed, second.since_ms), (verified, agreed, first.since_ms));
    let shown = run(world.folder(), &[vec!["status".to_owned()], world.at(0)].concat()).await.unwrap();
    assert!(shown.out.contains("totals    10 answers since"), "{}", shown.out);
    let tap = ["tap", "heartbeats", "--json", "--count", "3"].map(str::to_owned).to_vec();
    let tapped = run(world.folder(), &[tap, world.at(0)].concat()).await.unwrap();
    assert_eq!(tapped.out.matches("\"finished\"").count(), 3, "{}", tapped.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_that_can_never_go_up_does_not_stop_the_others() {
    let mut world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    let slot = subject::outbox(&site, OutboxKind::Verify);
    let addresses = [
        "$KV.ledger.policy",
        "$JS.API.STREAM.PURGE.LABELS",
        "nowhere.at.all",
        "*",
        "a b",
        "",
        "verify.doubtful.farm.cam",
    ];
    for (number, to) in addresses.into_iter().enumerate() {
        let odd = Publication::with_id(slot.clone(), "x", format!("odd-{number}"))
            .header(HEADER_TO, to)
            .header(schemas::task::HEADER_PRIORITY, "9");
        publisher.publish(&odd).await.unwrap();
    }
    // A doubtful one goes up behind them.
    let task = publish(&bus, &site, &nth_picture(false, 0).unwrap().bytes, &[]).await;
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    until("each has its letter", PATIENCE, async || {
        let letters = letters(&bus).await;
        let odd = letters.iter().filter(|letter| letter.stream == topology::OUTBOX).count();
        Ok((odd == addresses.len()).then_some(()))
    })
    .await
    .unwrap();
    // A promise of another site is nobody's here.
    let mut foreign: Answer = outcome(&bus, &site, task).await.unwrap();
    (foreign.site, foreign.stage) = ("farm".parse().unwrap(), schemas::AnswerStage::Provisional);
    let promise =
        Publication::with_id(subject::provisional(&site, &foreign.camera), encode(&foreign).unwrap(), "foreign");
    publisher.publish(&promise).await.unwrap();
    let letter = letter(&bus, |letter| letter.stream == topology::ANSWERS).await;
    assert_eq!(letter.fault.kind.as_str(), "answer_misdirected");
    world.worker_mut("courier-0").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_that_link_to_themselves_or_lie_about_their_size_become_dead_letters() {
    let mut world = small_world().await;
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let bucket = async_nats::jetstream::new(client.clone()).get_object_store(topology::BLOBS).await.unwrap();
    let context = async_nats::jetstream::new(client);
    // The client's own description of a real upload, replaced by one that lies.
    let describe = async |blob: &BlobRef, options: serde_json::Value, size: u64, nuid: &str| {
        bucket.put(blob.key.as_str(), &mut &b"x"[..]).await.unwrap();
        let pattern = format!("$O.{}.M.*", topology::BLOBS);
        let stream = format!("OBJ_{}", topology::BLOBS);
        let subject = reader::last_message(&bus, &stream, &pattern).await.unwrap().unwrap().subject;
        let description = serde_json::json!({
            "name": blob.key, "bucket": topology::BLOBS, "nuid": nuid, "size": size, "chunks": 1, "options": options,
        });
        context.publish(subject, description.to_string().into()).await.unwrap().await.unwrap();
    };
    let linked = BlobRef::new([1; 32], 100);
    describe(&linked, serde_json::json!({"link": {"bucket": topology::BLOBS, "name": linked.key}}), 100, "x").await;
    let missing = BlobRef::new([2; 32], 100);
    describe(&missing, serde_json::Value::Null, 100, "nobody").await;
    let huge = BlobRef::new([3; 32], 100);
    describe(&huge, serde_json::Value::Null, 1 << 60, "nobody").await;
    for blob in [linked, missing, huge] {
        let task = publish(&bus, &site, b"", &[(HEADER_BLOB, &blob.to_string())]).await;
        let answer = answered(&world, task).await;
        let fault = answer.fault.unwrap();
        assert_eq!((answer.route, fault.kind.as_str()), (Route::Dead, "blob_bad"), "{}", fault.reason);
    }
    let worker = world.worker_mut("recognizer").unwrap();
    assert_eq!(worker.ended().unwrap(), None, "{}", worker.log());
    // What a broken-off upload left goes when it is old, and nothing else does.
    let good = Blobs::open(&bus).await.unwrap().store_blob(&vec![7; 300_000]).await.unwrap();
    context.publish(format!("$O.{}.C.broken", topology::BLOBS), vec![0; 1000].into()).await.unwrap().await.unwrap();
    let swept =
        streams::blob_sweep::remove_unfinished_blobs(&bus, topology::BLOBS, Duration::from_secs(3600)).await.unwrap();
    assert_eq!(swept, 0, "an upload that may still go on was cut off");
    let swept = streams::blob_sweep::remove_unfinished_blobs(&bus, topology::BLOBS, Duration::ZERO).await.unwrap();
    assert_eq!(swept, 1);
    assert_eq!(Blobs::open(&bus).await.unwrap().fetch_blob(&good, 1 << 20).await.unwrap().len(), 300_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_a_letter_is_given_up_by_its_beginning_and_can_be_redriven_whole() {
    let mut world = small_world().await;
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let task = publish(&bus, &site, &vec![b'x'; MAX_INLINE_BYTES], &[]).await;
    assert_eq!(answered(&world, task).await.route, Route::Dead);
    let letter = letter(&bus, |letter| letter.task == Some(task)).await;
    let cut = letter.cut.clone().expect("it was cut");
    assert_eq!((cut.size_bytes, letter.fault.kind.as_str()), (MAX_INLINE_BYTES as u64, "image_unknown_format"));
    let at = world.at(0);
    let redrive = [&["dead-letters".to_owned(), "redrive".to_owned(), "--all".to_owned()][..], &at].concat();
    let redriven = run(world.folder(), &redrive).await.unwrap();
    assert!(redriven.success, "{}", redriven.err);
    let whole = reader::message_at(&bus, topology::IMAGES, 2).await.unwrap().unwrap();
    assert_eq!(whole.payload.len(), MAX_INLINE_BYTES);
    assert_eq!(world.worker_mut("recognizer").unwrap().ended().unwrap(), None, "{}", world.log_tails());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_refused_with_the_reason_while_the_disk_has_no_room_and_taken_again_after() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let picture = first_picture(true).unwrap().bytes.clone();
    let mut taken = vec![publish(&bus, &site, &picture, &[]).await];
    let limit = reader::stream_level(&bus, topology::IMAGES).await.unwrap().max_bytes;
    // More than any disk has.
    let store = world.folder().join("site").display().to_string();
    let more = [format!("janitor.store={store}"), "janitor.disk_reserve_mib=4000000000".into()];
    world.janitor_with("janitor", 0, &more).unwrap();
    let refused = until("images are refused", PATIENCE, async || {
        let task = TaskId::new_random();
        match crate::common::publish_as(&bus, &site, task, &picture, &[]).await {
            Ok(_) => taken.push(task),
            Err(error) => return Ok(Some(error.to_string())),
        }
        Ok(None)
    });
    let refused = refused.await.unwrap();
    assert!(refused.contains("MiB are free on the disk"), "{refused}");
    let status = run(world.folder(), &[&["status".to_owned()][..], &world.at(0)].concat()).await.unwrap();
    assert!(status.out.contains("images are refused"), "{}\n{}", status.out, status.err);
    // Nothing that was there is dropped.
    assert_eq!(reader::stream_level(&bus, topology::IMAGES).await.unwrap().messages, taken.len() as u64);
    world.worker_mut("janitor").unwrap().kill().unwrap();
    let more = [format!("janitor.store={store}"), "janitor.disk_reserve_mib=1".into()];
    world.janitor_with("janitor-2", 0, &more).unwrap();
    until("images are taken again", PATIENCE, async || {
        Ok(crate::common::publish_as(&bus, &site, TaskId::new_random(), &picture, &[]).await.ok())
    })
    .await
    .unwrap();
    assert_eq!(reader::stream_level(&bus, topology::IMAGES).await.unwrap().max_bytes, limit);
    world.recognizer("recognizer", 0).unwrap();
    for task in taken {
        assert_eq!(answered(&world, task).await.route, Route::Edge);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_go_when_they_are_fetched() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0);
    let mut tasks = Vec::new();
    for number in 0..5 {
        tasks.push(publish(&site.bus, &site.name, &nth_picture(false, number).unwrap().bytes, &[]).await);
    }
    for task in tasks {
        assert_eq!(answered(&world, task).await.route, Route::Verified);
    }
    until("no verdict is kept", PATIENCE, async || {
        let level = reader::stream_level(&world.cloud, topology::VERDICTS).await?;
        Ok((level.messages == 0 && level.last_sequence >= 5).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_a_full_stream_refuses_without_a_word_is_found_and_told() {
    let streams = StreamSettings { images_max_mib: 1, ack_wait_s: 2, ..StreamSettings::default() };
    let mut world = TestWorld::start(WorldPlan { streams, ..WorldPlan::default() }).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    world.janitor("janitor", 0).unwrap();
    world.all_started().await.unwrap();
    until("the janitor listens", PATIENCE, async || {
        let beats = streams::fleet::live_workers(&bus).await?;
        Ok(beats.iter().any(|beat| beat.outcomes.is_some()).then_some(()))
    })
    .await
    .unwrap();
    // As a camera over MQTT, or one that asks for no acknowledgement: the server takes all sixty.
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    for number in 0..60 {
        let mut bytes = nth_picture(true, number % 5).unwrap().bytes.to_vec();
        bytes.resize(40_000 + number, 0);
        client.publish(format!("image.{site}.mqtt"), bytes.into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let told = until("each that was refused has its letter", PATIENCE, async || {
        let stored = reader::stream_level(&bus, topology::IMAGES).await?.messages as usize;
        let letters = letters(&bus).await;
        let refused = letters.iter().filter(|letter| letter.fault.kind.as_str() == "stream_refused").count();
        Ok((stored + refused == 60).then_some(refused))
    });
    let told = told.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!((20..50).contains(&told), "{} fitted into 1 MiB", 60 - told);
    let counted = until("the refusals are counted", PATIENCE, async || {
        let beats = streams::fleet::live_workers(&bus).await?;
        Ok(beats.into_iter().find_map(|beat| beat.outcomes).filter(|outcomes| outcomes.refused == told as u64))
    });
    counted.await.unwrap();
}

/// One screen of `status`, and what `setup --apply` said.
async fn said(world: &TestWorld, words: &[&str]) -> harness::CommandOutput {
    let more = ["--set", "streams.ack_wait_s=2"];
    let words: Vec<String> = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
    run(world.folder(), &[&words[..], &world.at(0)].concat()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_did_to_streams_and_consumers_is_said_in_words_and_mended_as_far_as_it_can_be() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let bus = world.bus(0).clone();
    let durable = topology::recognizer_durable(&world.site(0).name);
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let images = context.get_stream(topology::IMAGES).await.unwrap();
    // Paused.
    let ever = async_nats::datetime::from_nanos(4_000_000_000_000_000_000).unwrap();
    images.pause_consumer(&durable, ever).await.unwrap();
    let status = said(&world, &["status"]).await;
    assert!(status.out.contains(&format!("Consumer {durable} on IMAGES is paused")), "{}", status.out);
    let doctor = said(&world, &["doctor"]).await;
    assert!(!doctor.success && doctor.out.contains("consumer paused"), "{}", doctor.out);
    let applied = said(&world, &["setup", "--both", "--apply"]).await;
    assert!(applied.success && applied.out.contains("paused"), "{}{}", applied.out, applied.err);
    assert!(!said(&world, &["status"]).await.out.contains("is paused"));
    // Raised by hand: kept unless it is asked for.
    let mut config = images.cached_info().config.clone();
    config.max_bytes += 64 << 20;
    context.update_stream(config.clone()).await.unwrap();
    let applied = said(&world, &["setup", "--both", "--apply"]).await;
    assert!(applied.success && !applied.out.contains("changed"), "{}{}", applied.out, applied.err);
    assert_eq!(reader::stream_level(&bus, topology::IMAGES).await.unwrap().max_bytes as i64, config.max_bytes);
    let lowered = said(&world, &["setup", "--both", "--apply", "--shrink"]).await;
    assert!(lowered.success && lowered.out.contains("max_bytes"), "{}{}", lowered.out, lowered.err);
    // Forbidden for good: said, and what comes behind it is mended all the same.
    config.deny_purge = true;
    config.max_bytes -= 64 << 20;
    context.update_stream(config).await.unwrap();
    images.delete_consumer(&durable).await.unwrap();
    let status = said(&world, &["status"]).await;
    for part in ["IMAGES has deny_purge set", "does not exist, so no image reaches a recognizer"] {
        assert!(status.out.contains(part), "{part}: {}", status.out);
    }
    let applied = said(&world, &["setup", "--both", "--apply"]).await;
    assert!(!applied.success && applied.out.contains("refused   stream IMAGES"), "{}{}", applied.out, applied.err);
    assert!(applied.out.contains(&format!("created   consumer {durable}")), "{}", applied.out);
    // The bucket of heartbeats is away: the rest of the screen is there.
    context.delete_stream("KV_fleet").await.unwrap();
    let status = said(&world, &["status"]).await;
    assert!(status.success && status.out.contains("  images  "), "{}{}", status.out, status.err);
    assert!(status.out.contains("Heartbeats cannot be read"), "{}", status.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sites_of_one_name_and_a_domain_that_is_the_clouds_are_said() {
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    world.courier("courier-0", 0).unwrap();
    let (bus, cloud) = (world.bus(0).clone(), world.cloud.clone());
    let key = format!("site-mark-{}", world.site(0).name);
    let notes = streams::fleet::Ledger::open(&cloud).await.unwrap();
    until("the site leaves its mark", PATIENCE, async || notes.read(&key).await.map_err(Into::into)).await.unwrap();
    // Its namesake does the same.
    notes.write(&key, "another".into()).await.unwrap();
    let found = until("the courier says so", PATIENCE, async || {
        let beats = streams::fleet::live_workers(&bus).await?;
        Ok(beats.into_iter().flat_map(|beat| beat.faults).find(|fault| fault.kind.as_str() == "site_name_taken"))
    });
    assert!(found.await.unwrap().reason.contains("another site is also named site-1"));
    let domain = format!("nats.cloud_domain={}", world.site(0).name);
    let options = ["status", "--set", &domain, "--nats", &world.site(0).server.url()].map(str::to_owned);
    let status = run(world.folder(), &options).await.unwrap();
    assert!(status.out.contains("which nats.cloud_domain names as the cloud's"), "{}{}", status.out, status.err);
    let options =
        ["status", "--set", "nats.cloud_domain=clowd", "--nats", &world.site(0).server.url()].map(str::to_owned);
    let status = run(world.folder(), &options).await.unwrap();
    assert!(status.out.contains("responds as domain clowd"), "{}{}", status.out, status.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_lets_through_what_must_stay_is_read_off_the_running_server() {
    let world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0);
    let checkup = streams::checkup::Checkup {
        bus: &site.bus,
        cloud: None,
        cloud_domain: None,
        site: &site.name,
        monitor: Some(&site.server.monitor_url()),
        store: None,
    };
    assert_eq!(checkup.find_faults().await, []);
    let links = streams::monitor::fetch_links(&site.server.monitor_url()).await.unwrap();
    assert_eq!(links.remotes[0].account, "LINK", "{links:?}");
    assert!(links.max_store_bytes.is_some_and(|bytes| bytes > 1 << 30), "{links:?}");
}
