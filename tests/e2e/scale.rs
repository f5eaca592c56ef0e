//! Replicas that come and go while images are answered: threads of a worker, and workers of a role.

use std::time::Duration;

use harness::pictures::pictures;
use harness::program::run;
use harness::{CommandOutput, TestWorld, WorldPlan, until};
use nix::sys::signal::Signal;
use schemas::{Heartbeat, Role, TaskId};
use streams::fleet;
use streams::{reader, topology};

use crate::common::{PATIENCE, answered, publish};

async fn scale(world: &TestWorld, words: &[&str]) -> CommandOutput {
    let mut arguments = vec!["scale".to_owned()];
    arguments.extend(words.iter().map(|word| (*word).to_owned()));
    arguments.extend(world.at(0));
    run(world.folder(), &arguments).await.unwrap()
}

async fn recognizers(world: &TestWorld) -> Vec<Heartbeat> {
    let beats = fleet::live_workers(world.bus(0)).await.unwrap();
    beats.into_iter().filter(|beat| beat.role == Role::Recognizer).collect()
}

async fn publish_many(world: &TestWorld, count: usize) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for picture in pictures().unwrap().iter().cycle().take(count) {
        tasks.push(publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await);
    }
    tasks
}

#[tokio::test]
async fn replicas_are_asked_for_while_images_are_answered_and_none_is_lost() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let mut tasks = Vec::new();
    for (asked, said) in [("3", "3 replicas"), ("1", "1 replica"), ("2", "2 replicas")] {
        tasks.extend(publish_many(&world, 100).await);
        let ended = scale(&world, &["recognizer", asked]).await;
        assert!(ended.success && ended.out.contains(said), "{asked}: {}\n{}", ended.out, ended.err);
    }
    // A worker that starts later hears of it as well.
    let verifiers = scale(&world, &["verifier", "2"]).await;
    assert!(verifiers.success && verifiers.out.contains("2 replicas"), "{}\n{}", verifiers.out, verifiers.err);
    for task in tasks {
        answered(&world, task).await;
    }
    assert_eq!(recognizers(&world).await[0].replicas, 2);
    let cleared = scale(&world, &["recognizer", "--clear"]).await;
    assert!(cleared.success);
    until("what it began with", PATIENCE, async || Ok((recognizers(&world).await[0].replicas == 1).then_some(())))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_the_reason() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    for (words, said) in [
        (vec!["recognizer", "0"], "at least 1"),
        (vec!["recognizer", "many"], "write 3"),
        (vec!["recognizer", "5-2"], "lower bound comes first"),
        (vec!["recognizer", "100000"], "more workers"),
        (vec!["trainer", "2"], "possible values"),
    ] {
        let ended = scale(&world, &words).await;
        assert!(!ended.success && ended.err.contains(said), "{words:?}: {}", ended.err);
    }
    assert_eq!(recognizers(&world).await[0].replicas, 1);
}

#[tokio::test]
async fn a_queue_that_cannot_be_seen_is_said_and_changes_nothing() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.scale.up_cooldown_s=1")).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let ended = scale(&world, &["recognizer", "1-4"]).await;
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    let url = world.site(0).server.url();
    let client = async_nats::connect(&url).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream(topology::IMAGES).await.unwrap();
    stream.delete_consumer(&topology::recognizer_durable(&world.site(0).name)).await.unwrap();
    let blind = until("a word about the queue", PATIENCE, async || {
        let said = recognizers(&world).await.into_iter().next().and_then(|beat| Some((beat.replicas, beat.scale?)));
        Ok(said.filter(|(_, why)| why.contains("cannot be read")))
    });
    let (replicas, why) = blind.await.unwrap();
    assert!(replicas == 1 && why.contains("recognizer"), "{replicas}: {why}");
}

#[tokio::test]
async fn a_queue_brings_replicas_and_quiet_lets_them_go() {
    let plan = WorldPlan::default()
        .set("recognizer.verify.enabled=false")
        .set("recognizer.scale.target_s=0.05")
        .set("recognizer.scale.up_cooldown_s=1")
        .set("recognizer.scale.down_cooldown_s=2")
        // Two cores for everything: what more replicas bring is not measured here.
        .set("recognizer.scale.min_gain_ratio=0");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    assert!(scale(&world, &["recognizer", "1-3"]).await.success);
    // Large ones, so that there is work for many seconds: a queue that is gone in three is left to one replica. Made before
    // the worker is stopped, which soon looks dead.
    let pictures = pictures().unwrap().iter().take(8);
    let large: Vec<_> = pictures.map(|picture| vision::enlarged(&picture.bytes, 2500).unwrap()).collect();
    world.worker_mut("recognizer").unwrap().signal(Signal::SIGSTOP).unwrap();
    let mut tasks = Vec::new();
    for large in large.iter().cycle().take(320) {
        tasks.push(publish(world.bus(0), &world.site(0).name, large, &[]).await);
    }
    world.worker_mut("recognizer").unwrap().signal(Signal::SIGCONT).unwrap();
    let more = async || Ok(recognizers(&world).await.iter().any(|beat| beat.replicas > 1).then_some(()));
    until("more replicas", PATIENCE, more).await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    for task in tasks {
        answered(&world, task).await;
    }
    let quiet = async || Ok((recognizers(&world).await[0].replicas == 1).then_some(()));
    until("one replica again", PATIENCE, quiet)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_it_holds_and_one_that_dies_meanwhile_loses_nothing() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    for number in 0..3 {
        world.recognizer(&format!("recognizer-{number}"), 0).unwrap();
    }
    world.all_started().await.unwrap();
    let tasks = publish_many(&world, 600).await;
    world.worker_mut("recognizer-0").unwrap().signal(Signal::SIGTERM).unwrap();
    let drained = world.worker_mut("recognizer-1").unwrap();
    drained.signal(Signal::SIGTERM).unwrap();
    drained.kill().unwrap();
    assert!(world.worker_mut("recognizer-0").unwrap().end(Duration::from_secs(30)).await.unwrap().success());
    for task in &tasks {
        answered(&world, *task).await;
    }
    let left = until("nothing left in hand", PATIENCE, async || {
        let progress = reader::consumer_progress(
            world.bus(0),
            topology::IMAGES,
            &topology::recognizer_durable(&world.site(0).name),
        )
        .await?;
        Ok((progress.pending + progress.unacked == 0).then_some(()))
    });
    left.await.unwrap();
}
