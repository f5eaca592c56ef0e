//! One image's walk, and what becomes of it when the cloud is away.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use harness::pictures::{first_picture, nth_picture};
use harness::world::serve;
use harness::{Oracle, ProxyMode, TestWorld, WorldPlan, run, seed, until};
use schemas::task::{HEADER_BLOB, HEADER_DEADLINE, HEADER_LABEL};
use schemas::{Answer, AnswerStage, Reason, Route, decode};
use streams::fleet;
use streams::reader::StreamRange;
use streams::server::{ClientListener, Durability, LeafMode, ServerSettings};
use streams::subject::OutboxKind;
use streams::{Blobs, reader, subject, topology};

use crate::common::{PATIENCE, answered, answers, promised, publish};

#[tokio::test]
async fn a_confident_image_has_one_final_answer_of_the_edge() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let picture = first_picture(true).unwrap();
    let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[(HEADER_LABEL, &picture.truth)]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.stage, answer.reason), (Route::Edge, AnswerStage::Final, Reason::Confident));
    assert_eq!(answer.label.as_deref(), Some(picture.light.label.as_str()));
    assert_eq!(answer.truth.as_deref(), Some(picture.truth.as_str()));
    assert_eq!(answers(world.bus(0), task).await.len(), 1);
}

#[tokio::test]
async fn a_doubtful_image_has_a_provisional_answer_and_then_a_verified_one() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let picture = first_picture(false).unwrap();
    let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.stage), (Route::Verified, AnswerStage::Final));
    assert_eq!(answer.label.as_deref(), Some(picture.heavy.label.as_str()));
    assert_eq!(answer.edge.map(|edge| edge.label).as_deref(), Some(picture.light.label.as_str()));
    let stages: Vec<AnswerStage> = answers(world.bus(0), task).await.iter().map(|answer| answer.stage).collect();
    assert_eq!(stages, [AnswerStage::Provisional, AnswerStage::Final]);
}

#[tokio::test]
async fn a_client_that_knows_nothing_but_nats_is_answered() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let mut finals = client.subscribe("answer.final.*.bare.>").await.unwrap();
    let picture = first_picture(true).unwrap();
    client.publish("image.site-1.bare", picture.bytes.clone()).await.unwrap();
    let message = tokio::time::timeout(PATIENCE, finals.next()).await.expect("an answer").unwrap();
    let answer: Answer = decode(&message.payload).unwrap();
    assert_eq!(answer.label.as_deref(), Some(picture.light.label.as_str()));
    assert!(message.subject.ends_with(&answer.task.to_string()), "{}", message.subject);
}

#[tokio::test]
async fn an_image_sent_by_reference_is_fetched_and_verified_too() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let blobs = Blobs::open(world.bus(0)).await.unwrap();
    for confident in [true, false] {
        let picture = first_picture(confident).unwrap();
        let reference = blobs.store_blob(&picture.bytes).await.unwrap().to_string();
        let task = publish(world.bus(0), &world.site(0).name, b"", &[(HEADER_BLOB, &reference)]).await;
        let answer = answered(&world, task).await;
        let (route, said) = if confident { (Route::Edge, &picture.light) } else { (Route::Verified, &picture.heavy) };
        assert_eq!((answer.route, answer.label.as_deref()), (route, Some(said.label.as_str())));
    }
}

#[tokio::test]
async fn while_the_cloud_is_away_the_site_answers_on_and_what_waits_is_delivered_afterwards() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let (site, link) = (world.site(0), world.site(0).link.as_ref().unwrap());
    link.set(ProxyMode::Silent);
    let mut waiting = Vec::new();
    for number in 0..5 {
        let (sure, doubtful) = (nth_picture(true, number).unwrap(), nth_picture(false, number).unwrap());
        let task = publish(&site.bus, &site.name, &sure.bytes, &[]).await;
        assert_eq!(answered(&world, task).await.route, Route::Edge);
        let task = publish(&site.bus, &site.name, &doubtful.bytes, &[]).await;
        let answer = promised(&world, task).await;
        assert_eq!(answer.label.as_deref(), Some(doubtful.light.label.as_str()));
        assert!(answer.deadline_at_ms.is_some(), "a provisional answer says until when it waits");
        waiting.push((task, doubtful));
    }
    // A request for each doubtful one, the hard case inside. What is told of releases now and then waits beside them.
    let kept = [OutboxKind::Verify, OutboxKind::HardCase, OutboxKind::Update]
        .map(|errand| subject::outbox(&site.name, errand));
    let requests = StreamRange { subjects: kept.into(), headers_only: true, ..StreamRange::default() };
    let (mut waits, last) =
        (Vec::new(), reader::stream_level(&site.bus, topology::OUTBOX).await.unwrap().last_sequence);
    reader::read_range(&site.bus, topology::OUTBOX, requests, last, |record| waits.push(record.subject)).await.unwrap();
    assert_eq!(waits, vec![subject::outbox(&site.name, OutboxKind::Verify); 5]);
    link.set(ProxyMode::Open);
    for (task, picture) in waiting {
        let answer = answered(&world, task).await;
        assert_eq!((answer.route, answer.label.as_deref()), (Route::Verified, Some(picture.heavy.label.as_str())));
    }
}

#[tokio::test]
async fn a_courier_that_starts_while_the_cloud_is_away_waits_for_it() {
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    world.site(0).link.as_ref().unwrap().set(ProxyMode::Reset);
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.verifier("verifier").unwrap();
    let picture = first_picture(false).unwrap();
    let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
    promised(&world, task).await;
    world.all_started().await.unwrap();
    world.site(0).link.as_ref().unwrap().set(ProxyMode::Open);
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    assert_eq!(world.worker_mut("courier").unwrap().ended().unwrap(), None, "the courier ended");
}

#[tokio::test]
async fn an_answer_whose_deadline_passes_stands_as_it_is_and_no_later_verdict_changes_it() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0);
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    let picture = first_picture(false).unwrap();
    let task = publish(&site.bus, &site.name, &picture.bytes, &[(HEADER_DEADLINE, "3000")]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
    assert_eq!(answer.label.as_deref(), Some(picture.light.label.as_str()));
    assert!(answer.answered_at_ms >= answer.deadline_at_ms.unwrap(), "it stood before its deadline");
    site.link.as_ref().unwrap().set(ProxyMode::Open);
    until("the outbox is empty", PATIENCE, async || {
        Ok((reader::stream_level(&site.bus, topology::OUTBOX).await?.messages == 0).then_some(()))
    })
    .await
    .unwrap();
    until("what was found hard is in the cloud all the same", PATIENCE, async || {
        Ok((reader::stream_level(&world.cloud, topology::HARDCASES).await?.messages == 1).then_some(()))
    })
    .await
    .unwrap();
    let finals = answers(&site.bus, task).await.into_iter().filter(|answer| answer.stage == AnswerStage::Final);
    assert_eq!(finals.count(), 1);
}

#[tokio::test]
async fn two_recognizers_share_the_work() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    world.recognizer("recognizer-a", 0).unwrap();
    world.recognizer("recognizer-b", 0).unwrap();
    world.all_started().await.unwrap();
    let oracle = Oracle::new(seed(1), &world.site(0).name, world.bus(0)).unwrap();
    oracle.publish_all(300).await.unwrap();
    let finished = until("both beat with all of it done", PATIENCE, async || {
        let finished: Vec<u64> = fleet::live_workers(world.bus(0)).await?.iter().map(|beat| beat.finished).collect();
        Ok((finished.iter().sum::<u64>() >= 300).then_some(finished))
    });
    let finished = finished.await.unwrap();
    assert_eq!(finished.len(), 2);
    assert!(finished.iter().all(|count| *count >= 30), "one did nearly all of it: {finished:?}");
}

#[tokio::test]
async fn no_image_and_no_answer_ever_leaves_the_site_by_itself() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0);
    let cloud = async_nats::connect(world.hub.as_ref().unwrap().url()).await.unwrap();
    let mut kept = Vec::new();
    for subject in ["image.>", "answer.>", "outbox.>", "dead.images.>"] {
        kept.push((subject, cloud.subscribe(subject).await.unwrap()));
    }
    let mut sent_up = cloud.subscribe("verify.>").await.unwrap();
    cloud.flush().await.unwrap();
    let sure = publish(&site.bus, &site.name, &first_picture(true).unwrap().bytes, &[]).await;
    let bad = publish(&site.bus, &site.name, b"no image at all", &[]).await;
    let doubtful = publish(&site.bus, &site.name, &first_picture(false).unwrap().bytes, &[]).await;
    let mut routes = BTreeSet::new();
    for task in [sure, bad, doubtful] {
        routes.insert(answered(&world, task).await.route);
    }
    assert_eq!(routes, [Route::Edge, Route::Dead, Route::Verified].into());
    // The subscriptions work: what was sent up on purpose arrived, and it was published last.
    tokio::time::timeout(PATIENCE, sent_up.next()).await.expect("the doubtful image went up").unwrap();
    cloud.flush().await.unwrap();
    for (subject, subscription) in &mut kept {
        assert!(subscription.next().now_or_never().is_none(), "the cloud saw something on {subject}");
    }
}

#[tokio::test]
async fn setup_twice_changes_nothing_and_what_differs_is_reported_until_it_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ServerSettings {
        encryption_key: None,
        program: None,
        store: folder.path().join("site"),
        name: "site".into(),
        domain: None,
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: Durability::Fast,
        max_store_bytes: streams::topology::default_store_bytes(),
        leaf: LeafMode::Alone,
        site: None,
        entry: ClientListener::default(),
    };
    let server = serve(settings).await.unwrap();
    let states = async |more: &[&str]| {
        let url = server.url();
        let arguments = [&["setup", "--both", "--json", "--nats", &url], more].concat();
        let ended = run(folder.path(), &arguments).await.unwrap();
        assert!(ended.success, "{}", ended.err);
        let findings: Vec<serde_json::Value> = serde_json::from_str(&ended.out).unwrap();
        let word = |state: &serde_json::Value| match state.as_str() {
            Some(word) => word.to_owned(),
            None => state.to_string(),
        };
        findings.iter().map(|finding| word(&finding["state"])).filter(|word| word != "same").collect::<Vec<String>>()
    };
    let first = states(&[]).await;
    assert!(first.len() >= 10 && first.iter().all(|state| state == "created"), "{first:?}");
    assert_eq!(states(&[]).await, [""; 0], "the second time");
    let smaller = ["--set", "streams.images_max_mib=7"];
    for _ in 0..2 {
        let differs = states(&smaller).await;
        assert!(matches!(&differs[..], [one] if one.contains("differs") && one.contains("max_bytes")), "{differs:?}");
    }
    // Lowering a limit drops messages, so it is asked for by name.
    let kept = states(&[&smaller[..], &["--apply"]].concat()).await;
    assert!(matches!(&kept[..], [one] if one.contains("differs")), "{kept:?}");
    let applied = states(&[&smaller[..], &["--apply", "--shrink"]].concat()).await;
    assert!(matches!(&applied[..], [one] if one.contains("updated")), "{applied:?}");
    assert_eq!(states(&smaller).await, [""; 0], "after it was applied");
}

#[tokio::test]
async fn workers_told_to_stop_end_in_order_and_what_they_leave_is_done_by_the_next() {
    let mut world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let oracle = Oracle::new(seed(2), &world.site(0).name, world.bus(0)).unwrap();
    oracle.publish_all(200).await.unwrap();
    let names = ["recognizer-0", "verifier-0", "courier-0", "janitor-0"];
    for name in names {
        let worker = world.worker_mut(name).unwrap();
        worker.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = worker.end(Duration::from_secs(25)).await.unwrap();
        assert!(status.success(), "{name} ended with {status}: {}", worker.log());
    }
    // What was pulled and not begun, and an acknowledgement still in the client, are left behind: they
    // come again when their wait is over. So nothing is said here about what is unacknowledged.
    for name in names {
        world.worker_mut(name).unwrap().restart().unwrap();
    }
    oracle.judge(&world.cloud, PATIENCE).await.unwrap().verdict().unwrap();
}
