//! What happens at the bounds: too many deliveries, a full outbox, forgotten answers and ids, a
//! verifier that cannot judge.

use std::time::Duration;

use futures::StreamExt;
use harness::pictures::{first_picture, nth_picture};
use harness::world::crash;
use harness::{Oracle, ProxyMode, TestWorld, WorkerProcess, WorldPlan, run, seed, until};
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE};
use schemas::{AnswerStage, Reason, Route, TaskId};
use streams::topology::StreamSettings;
use streams::{Blobs, PublishOutcome, reader, topology};

use crate::common::{PATIENCE, answered, answers, link_is_down, promised, publish, publish_as};

/// Streams and buckets that refuse what is too much; in all others the oldest make way.
const REFUSING: [&str; 11] = [
    "IMAGES",
    "OUTBOX",
    "PINNED",
    "VERIFY",
    "ORDERS",
    "KV_fleet",
    "KV_ledger",
    "OBJ_blobs",
    "OBJ_pinned-blobs",
    "OBJ_cloud-blobs",
    "OBJ_cloud-blobs-site-1",
];

/// Every setting of this form, 1 MiB each.
fn small_streams() -> StreamSettings {
    StreamSettings {
        images_max_mib: 1,
        answers_max_mib: 1,
        outbox_max_mib: 1,
        hardcases_max_mib: 1,
        pinned_max_mib: 1,
        labels_max_mib: 1,
        learned_max_mib: 1,
        updates_max_mib: 1,
        releases_max_mib: 1,
        swaps_max_mib: 1,
        verify_max_mib: 1,
        blobs_max_mib: 1,
        dead_max_mib: 1,
        verdicts_max_mib: 1,
        ..StreamSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_and_bucket_holds_its_bound_when_it_is_filled() {
    const PIECES: usize = 16;
    let world = TestWorld::start(WorldPlan { streams: small_streams(), ..WorldPlan::default() }).await.unwrap();
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let names: Vec<String> = context.stream_names().map(Result::unwrap).collect().await;
    assert!(names.len() >= 20 && REFUSING.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
    for name in names {
        let stream = context.get_stream(&name).await.unwrap();
        let config = stream.cached_info().config.clone();
        assert!(config.max_bytes > 0, "{name} has no bound");
        let piece = vec![0; usize::try_from(config.max_bytes).unwrap() / PIECES];
        // One that is copied from another stream is filled with that.
        let Some(pattern) = config.subjects.first() else { continue };
        // All levels but one are this site's; the last that may be anything makes each message one of its own.
        let tokens: Vec<&str> = pattern.split('.').collect();
        let open = tokens.iter().rposition(|token| ["*", ">"].contains(token));
        let subject = |number: usize| {
            let token = |(at, token): (usize, &&str)| match *token {
                _ if Some(at) == open => number.to_string(),
                "*" => "site-1".to_owned(),
                token => token.to_owned(),
            };
            tokens.iter().enumerate().map(token).collect::<Vec<_>>().join(".")
        };
        let mut refused = false;
        for number in 0..PIECES * 2 {
            let ended = async { context.publish(subject(number), piece.clone().into()).await?.await };
            refused |= ended.await.is_err();
        }
        let level = reader::stream_level(world.bus(0), &name).await.unwrap();
        assert!(level.bytes <= level.max_bytes, "{name}: {level:?}");
        assert!(level.bytes > level.max_bytes / 2, "{name} was not filled: {level:?}");
        let refuses = REFUSING.contains(&name.as_str());
        assert_eq!((refused, level.first_sequence > 1), (refuses, !refuses), "{name}: {level:?}");
    }
}

#[tokio::test]
async fn an_image_that_nobody_ever_finished_is_given_up_by_name() {
    let streams = StreamSettings { ack_wait_s: 1, ..StreamSettings::default() };
    let mut world =
        TestWorld::start(WorldPlan { streams, ..WorldPlan::default() }.set("recognizer.tries=2")).await.unwrap();
    let site = world.site(0).name.clone();
    let task = publish(world.bus(0), &site, &first_picture(true).unwrap().bytes, &[]).await;
    // Two workers take it and die, as with a picture that kills whoever decodes it.
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let images = async_nats::jetstream::new(client).get_stream_no_info(topology::IMAGES).await.unwrap();
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        images.get_consumer(&topology::recognizer_durable(&site)).await.unwrap();
    for attempt in 1..=2 {
        let mut batch = consumer.fetch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
        let message = batch.next().await.expect("a delivery").unwrap();
        assert_eq!(message.info().unwrap().delivered, attempt);
    }
    world.recognizer("recognizer", 0).unwrap();
    let answer = answered(&world, task).await;
    assert_eq!(
        (answer.route, answer.fault.map(|fault| fault.kind.to_string())),
        (Route::Dead, Some("tries_used_up".into()))
    );
}

#[tokio::test]
async fn when_the_outbox_is_full_doubtful_answers_stand_and_say_so() {
    let streams = StreamSettings { outbox_max_mib: 1, ack_wait_s: 2, ..StreamSettings::default() };
    let world = TestWorld::start_with_workers(WorldPlan { streams, ..WorldPlan::leaves(1) }).await.unwrap();
    let site = world.site(0);
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    let mut tasks = Vec::new();
    for number in 0..30 {
        let mut bytes = nth_picture(false, number).unwrap().bytes.to_vec();
        bytes.resize(100_000, 0);
        tasks.push(publish(&site.bus, &site.name, &bytes, &[]).await);
    }
    let stood = until("some stand as they are", PATIENCE, async || {
        let mut stood = 0;
        for task in &tasks {
            let finals = answers(&site.bus, *task).await;
            stood += usize::from(finals.iter().any(|answer| answer.reason == Reason::OutboxFull));
        }
        Ok((stood >= 15).then_some(stood))
    });
    let stood = stood.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(stood < 30, "none waited for the link");
    site.link.as_ref().unwrap().set(ProxyMode::Open);
    for task in tasks {
        let answer = answered(&world, task).await;
        let expected = [(Route::Verified, Reason::LowConfidence), (Route::Expired, Reason::OutboxFull)];
        assert!(expected.contains(&(answer.route, answer.reason)), "{:?} {:?}", answer.route, answer.reason);
    }
}

#[tokio::test]
async fn a_verdict_that_cannot_be_given_leaves_the_edges_answer_standing() {
    let world =
        TestWorld::start_with_workers(WorldPlan::leaves(1).set("verifier.infer.decode.max_side_px=20")).await.unwrap();
    let picture = first_picture(false).unwrap();
    let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::VerifierRefused));
    assert_eq!(answer.fault.map(|fault| fault.kind.to_string()).as_deref(), Some("image_side_too_long"));
    assert_eq!(answer.label.as_deref(), Some(picture.light.label.as_str()));
    until("the cloud's dead letter", PATIENCE, async || {
        Ok((reader::stream_level(&world.cloud, topology::DEAD).await?.messages == 1).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn each_site_gets_the_verdicts_of_its_own_images() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(2)).await.unwrap();
    // The same task ids at both sites: only the site tells them apart.
    let tasks: Vec<TaskId> = (0..10).map(|number| TaskId::from_name(&format!("shared-{number}"))).collect();
    for (number, task) in tasks.iter().enumerate() {
        for (index, site) in world.sites.iter().enumerate() {
            let picture = nth_picture(false, number * 2 + index).unwrap();
            publish_as(&site.bus, &site.name, *task, &picture.bytes, &[]).await.unwrap();
        }
    }
    for (number, task) in tasks.iter().enumerate() {
        for (index, site) in world.sites.iter().enumerate() {
            let picture = nth_picture(false, number * 2 + index).unwrap();
            let answer = crate::common::outcome(&site.bus, &site.name, *task).await;
            let answer = answer.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
            let found = (answer.route, answer.label.as_deref(), &answer.site);
            assert_eq!(found, (Route::Verified, Some(picture.heavy.label.as_str()), &site.name), "task {task}");
        }
    }
}

#[tokio::test]
async fn an_image_published_again_and_again_is_answered_once() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    for confident in [true, false] {
        let (task, bytes) = (TaskId::new_random(), &first_picture(confident).unwrap().bytes);
        // At once, and when it was answered: the stream keeps each, and the task has one outcome.
        for _ in 0..2 {
            let placed = publish_as(&site.bus, &site.name, task, bytes, &[]).await.unwrap();
            assert!(matches!(placed, PublishOutcome::Stored(_)), "{placed:?}");
        }
        answered(&world, task).await;
        publish_as(&site.bus, &site.name, task, bytes, &[]).await.unwrap();
        until("the second one is done", PATIENCE, async || {
            let images =
                reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name))
                    .await?;
            let verdicts =
                reader::consumer_progress(&world.cloud, topology::VERDICTS, &topology::verdicts_durable(&site.name))
                    .await?;
            let outbox = reader::stream_level(&site.bus, topology::OUTBOX).await?.messages;
            let verify = reader::stream_level(&world.cloud, topology::VERIFY).await?.messages;
            let waiting = images.pending + verdicts.pending + images.unacked + verdicts.unacked + outbox + verify;
            Ok((waiting == 0).then_some(()))
        })
        .await
        .unwrap();
        let finals = answers(&site.bus, task).await.into_iter().filter(|answer| answer.stage == AnswerStage::Final);
        assert_eq!(finals.count(), 1, "confident: {confident}");
    }
}

/// Audits that a janitor has finished.
fn audits_of(janitor: &WorkerProcess) -> usize {
    janitor.log().matches(janitor::AUDIT_FINISHED).count()
}

#[tokio::test]
async fn images_whose_answers_were_dropped_for_room_are_not_recognized_again_after_a_crash() {
    let streams = StreamSettings { answers_max_messages: 1000, ack_wait_s: 1, ..StreamSettings::default() };
    let plan = WorldPlan { streams, ..WorldPlan::default() }.set("recognizer.verify.enabled=false");
    let world = TestWorld::start_with_workers(plan).await.unwrap();
    let site = world.site(0);
    let oracle = Oracle::new(seed(3), &site.name, &site.bus).unwrap();
    oracle.publish_all(1300).await.unwrap();
    let all_done = async || {
        let images =
            reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await?;
        Ok((images.pending + images.unacked == 0).then_some(()))
    };
    until("all are answered", PATIENCE, all_done).await.unwrap();
    let newest = reader::stream_level(&site.bus, topology::IMAGES).await.unwrap().last_sequence;
    let janitor = &world.workers["janitor-0"];
    let audits = audits_of(janitor);
    crash(&site.server, &site.bus).await.unwrap();
    until("another audit", PATIENCE, async || Ok((audits_of(janitor) > audits).then_some(())))
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    until("all are answered", PATIENCE, all_done).await.unwrap();
    let redone = reader::stream_level(&site.bus, topology::IMAGES).await.unwrap().last_sequence - newest;
    // A crash may take the last few answers, which are written a moment later than they are made.
    assert!(redone < 100, "{redone} images were recognized again:\n{}", janitor.log());
}

#[tokio::test]
async fn an_answer_lost_in_a_crash_is_made_again_and_a_promise_is_not() {
    let mut world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    world.worker_mut("janitor-0").unwrap().kill().unwrap();
    let site = world.site(0);
    // A crash takes the newest answers; the oldest one shows that none were dropped for room.
    let oldest = publish(&site.bus, &site.name, &first_picture(true).unwrap().bytes, &[]).await;
    answered(&world, oldest).await;
    let sure = publish(&site.bus, &site.name, &first_picture(true).unwrap().bytes, &[]).await;
    answered(&world, sure).await;
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    let doubtful = publish(&site.bus, &site.name, &first_picture(false).unwrap().bytes, &[]).await;
    promised(&world, doubtful).await;
    // A crash, and what it can do to the newest answers, done by hand once redeliveries are over.
    crash(&site.server, &site.bus).await.unwrap();
    until("all three images are acknowledged for good", PATIENCE, async || {
        let images =
            reader::consumer_progress(&site.bus, topology::IMAGES, &topology::recognizer_durable(&site.name)).await?;
        Ok((images.floor == 3 && images.unacked == 0).then_some(()))
    })
    .await
    .unwrap();
    let slot = streams::subject::final_answer_of_any_camera(&site.name, sure);
    let lost = reader::last_message(&site.bus, topology::ANSWERS, &slot).await.unwrap().unwrap();
    reader::delete_message(&site.bus, topology::ANSWERS, lost.sequence).await.unwrap();
    let audits = audits_of(&world.workers["janitor-0"]);
    world.worker_mut("janitor-0").unwrap().restart().unwrap();
    let site = world.site(0);
    let again = answered(&world, sure).await;
    assert_eq!((again.route, again.task), (Route::Edge, sure));
    assert!(again.image_sequence > 3, "it was recognized from a new message");
    site.link.as_ref().unwrap().set(ProxyMode::Open);
    assert_eq!(answered(&world, doubtful).await.route, Route::Verified);
    let janitor = &world.workers["janitor-0"];
    until("the audit is done", PATIENCE, async || Ok((audits_of(janitor) > audits).then_some(())))
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    let images = reader::stream_level(&site.bus, topology::IMAGES).await.unwrap();
    assert_eq!(images.last_sequence, 4, "one image and no other was given to the recognizer again");
}

#[tokio::test]
async fn a_promise_that_was_dropped_for_room_is_kept_all_the_same() {
    let streams = StreamSettings { answers_max_messages: 1000, ack_wait_s: 2, ..StreamSettings::default() };
    let world = TestWorld::start_with_workers(WorldPlan { streams, ..WorldPlan::leaves(1) }).await.unwrap();
    let site = world.site(0);
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    link_is_down(&site.bus, PATIENCE).await.unwrap();
    let doubtful =
        publish(&site.bus, &site.name, &first_picture(false).unwrap().bytes, &[(HEADER_DEADLINE, "15000")]).await;
    promised(&world, doubtful).await;
    // More answers than the stream keeps: the promise is gone from it before its time is up.
    let mut publishing = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (bus, name) = (site.bus.clone(), site.name.clone());
        publishing.spawn(async move {
            for _ in 0..150 {
                publish(&bus, &name, &first_picture(true).unwrap().bytes, &[]).await;
            }
        });
    }
    publishing.join_all().await;
    until("the promise is gone", PATIENCE, async || Ok(answers(&site.bus, doubtful).await.is_empty().then_some(())))
        .await
        .unwrap();
    site.link.as_ref().unwrap().set(ProxyMode::Open);
    let answer = answered(&world, doubtful).await;
    assert!(matches!(answer.route, Route::Expired | Route::Verified), "{answer:?}");
}

#[tokio::test]
async fn an_expired_request_whose_promise_was_dropped_has_an_outcome() {
    let streams = StreamSettings { answers_max_messages: 1000, ack_wait_s: 2, ..StreamSettings::default() };
    let world = TestWorld::start_with_workers(WorldPlan { streams, ..WorldPlan::leaves(1) }).await.unwrap();
    let site = world.site(0);
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    // What is sent before the courier knows is on its way, not waiting.
    link_is_down(&site.bus, PATIENCE).await.unwrap();
    let doubtful =
        publish(&site.bus, &site.name, &first_picture(false).unwrap().bytes, &[(HEADER_DEADLINE, "12000")]).await;
    let promise = promised(&world, doubtful).await;
    let finals = streams::subject::provisional(&site.name, &"cam-1".parse().unwrap());
    let record = reader::last_message(&site.bus, topology::ANSWERS, &finals).await.unwrap().unwrap();
    // As if it had been dropped for room.
    reader::delete_message(&site.bus, topology::ANSWERS, record.sequence).await.unwrap();
    until("the deadline", PATIENCE, async || {
        let other = publish(&site.bus, &site.name, &first_picture(true).unwrap().bytes, &[]).await;
        let now_ms = answered(&world, other).await.answered_at_ms;
        Ok((now_ms > promise.deadline_at_ms.unwrap()).then_some(()))
    })
    .await
    .unwrap();
    site.link.as_ref().unwrap().set(ProxyMode::Open);
    let answer = answered(&world, doubtful).await;
    assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
}

#[tokio::test]
async fn a_reader_whose_server_pauses_reads_on_to_the_end() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    let oracle = Oracle::new(seed(4), &site.name, &site.bus).unwrap();
    oracle.publish_all(3000).await.unwrap();
    let last = reader::stream_level(&site.bus, topology::IMAGES).await.unwrap().last_sequence;
    let server = nix::unistd::Pid::from_raw(site.server.process().unwrap().cast_signed());
    let (bus, mut seen, mut paused) = (site.bus.clone(), 0, false);
    reader::read_range(&bus, topology::IMAGES, reader::StreamRange::default(), last, |_| {
        seen += 1;
        if seen == 500 && !paused {
            paused = true;
            nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGSTOP).unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(4)).await;
                nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGCONT).unwrap();
            });
        }
    })
    .await
    .unwrap();
    assert_eq!(seen, 3000);
}

#[tokio::test]
async fn a_dead_letter_that_is_redriven_gets_the_answer_it_should_have_had() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let site = world.site(0);
    let picture = first_picture(true).unwrap();
    // Stored too late: the reference comes before its bytes.
    let blobs = Blobs::open(&site.bus).await.unwrap();
    let early = blobs.store_blob(&picture.bytes).await.unwrap();
    let client = async_nats::connect(site.server.url()).await.unwrap();
    let bucket = async_nats::jetstream::new(client).get_object_store(topology::BLOBS).await.unwrap();
    bucket.delete(&early.key).await.unwrap();
    let task = publish(&site.bus, &site.name, b"", &[(HEADER_BLOB, &early.to_string())]).await;
    assert_eq!(answered(&world, task).await.route, Route::Dead);
    until("its dead letter", PATIENCE, async || {
        Ok((reader::stream_level(&site.bus, topology::DEAD).await?.messages == 1).then_some(()))
    })
    .await
    .unwrap();
    blobs.store_blob(&picture.bytes).await.unwrap();
    let redrive = ["dead-letters", "redrive", "--all"].map(str::to_owned);
    let redriven = run(world.folder(), &[&redrive[..], &world.at(0)].concat()).await.unwrap();
    assert!(redriven.success, "{}", redriven.err);
    let label = until("its real answer", PATIENCE, async || {
        let answer = crate::common::outcome(&site.bus, &site.name, task).await?;
        Ok((answer.route == Route::Edge).then_some(answer.label))
    });
    assert_eq!(label.await.unwrap().as_deref(), Some(picture.light.label.as_str()));
    assert_eq!(reader::stream_level(&site.bus, topology::DEAD).await.unwrap().messages, 0, "the letter stayed");
    let finals = answers(&site.bus, task).await.into_iter().filter(|answer| answer.stage == AnswerStage::Final);
    assert_eq!(finals.count(), 1);
}
