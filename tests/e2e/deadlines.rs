//! Deadlines: what is recognized first, what is not waited for, and that late answers say so and are counted.

use std::time::Duration;

use harness::pictures::{first_picture, nth_picture, pictures};
use harness::program::run;
use harness::{ProxyMode, TestWorld, WorldPlan, until};
use nix::sys::signal::Signal;
use schemas::task::{HEADER_DEADLINE, HEADER_PRIORITY};
use schemas::{Answer, Reason, Role, Route, TaskId, decode};
use serde_json::Value;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{fleet, subject, topology};

use crate::common::{PATIENCE, answered, link_is_down, promised, publish};

/// A message's time of storing, milliseconds since the epoch.
fn stored_at_ms(record: &StoredMessage) -> u64 {
    u64::try_from(record.stored_at_ns / 1_000_000).unwrap()
}

/// Every final answer of a world's first site in the order of the stream, with the time it was stored, milliseconds.
async fn finals(world: &TestWorld) -> Vec<(Answer, u64)> {
    let site = world.site(0);
    let last = reader::stream_level(&site.bus, topology::ANSWERS).await.unwrap().last_sequence;
    let mut finals = Vec::new();
    let range = StreamRange { subjects: vec![subject::final_answers(&site.name, None)], ..StreamRange::default() };
    let all = reader::read_range(&site.bus, topology::ANSWERS, range, last, |record| {
        finals.push((decode::<Answer>(&record.payload).unwrap(), stored_at_ms(&record)));
    });
    all.await.unwrap();
    finals
}

/// The tasks in the order in which they were answered.
async fn order(world: &TestWorld, tasks: &[TaskId]) -> Vec<usize> {
    for task in tasks {
        answered(world, *task).await;
    }
    let finals = finals(world).await;
    finals.iter().filter_map(|(answer, _)| tasks.iter().position(|task| *task == answer.task)).collect()
}

/// What `tributary status --json` says.
async fn status(world: &TestWorld) -> Value {
    let arguments: Vec<String> = ["status".to_owned(), "--json".to_owned()].into_iter().chain(world.at(0)).collect();
    let ended = run(world.folder(), &arguments).await.unwrap();
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}\n{}", ended.out, ended.err))
}

#[tokio::test]
async fn late_answers_say_so_and_status_counts_as_many() {
    let mut world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let (name, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    // The courier is late with these: it sleeps when their verdicts are due.
    world.site(0).link.as_ref().unwrap().set(ProxyMode::Silent);
    link_is_down(&bus, PATIENCE).await.unwrap();
    let mut doubtful = Vec::new();
    for number in 0..3 {
        let bytes = &nth_picture(false, number).unwrap().bytes;
        doubtful.push(publish(&bus, &name, bytes, &[(HEADER_DEADLINE, "5000")]).await);
    }
    for task in &doubtful {
        promised(&world, *task).await;
    }
    world.worker_mut("courier-0").unwrap().signal(Signal::SIGSTOP).unwrap();
    world.worker_mut("recognizer-0").unwrap().signal(Signal::SIGSTOP).unwrap();
    // A burst of which some can be in time, some cannot, and some have all the time in the world.
    let mut burst = Vec::new();
    for (number, picture) in
        pictures().unwrap().iter().filter(|picture| picture.confident).cycle().take(150).enumerate()
    {
        let headers: &[_] = match number % 3 {
            0 => &[(HEADER_DEADLINE, "1")],
            1 => &[(HEADER_DEADLINE, "400")],
            _ => &[],
        };
        burst.push(publish(&bus, &name, &picture.bytes, headers).await);
    }
    world.worker_mut("recognizer-0").unwrap().signal(Signal::SIGCONT).unwrap();
    for task in &burst {
        answered(&world, *task).await;
    }
    let due_at_ms = promised(&world, doubtful[2]).await.due_at_ms.unwrap();
    until("the deadlines are over", PATIENCE, async || {
        let (now_ns, _) = reader::server_time(&bus).await?;
        Ok((u64::try_from(now_ns / 1_000_000)? > due_at_ms).then_some(()))
    })
    .await
    .unwrap();
    world.worker_mut("courier-0").unwrap().signal(Signal::SIGCONT).unwrap();
    for task in &doubtful {
        let answer = answered(&world, *task).await;
        assert!(answer.late_ms.is_some() && answer.route == Route::Expired, "{answer:?}");
    }
    let finals = finals(&world).await;
    assert_eq!(finals.len(), burst.len() + doubtful.len());
    for (answer, stored_at_ms) in &finals {
        let late_ms = answer.late_ms.unwrap_or(0);
        match answer.due_at_ms {
            None => assert_eq!(answer.late_ms, None, "{answer:?}"),
            // It is marked a moment before it is stored, by a clock that follows the server's.
            Some(due_at_ms) => {
                let stored_late_ms = stored_at_ms.saturating_sub(due_at_ms);
                assert!(stored_late_ms.abs_diff(late_ms) < 2000, "{stored_late_ms} ms: {answer:?}");
            }
        }
    }
    let late = finals.iter().filter(|(answer, _)| answer.late_ms.is_some()).count();
    assert!(late >= 50 + doubtful.len(), "{late}: a millisecond is not enough for anybody");
    until("status counts as many", PATIENCE, async || {
        let counted = status(&world).await["late_answers"].as_u64();
        Ok(counted.filter(|counted| *counted == late as u64).map(drop))
    })
    .await
    .unwrap();
    // Both that compose answers count their own.
    let beats = fleet::live_workers(&bus).await.unwrap();
    let of = |role: Role| beats.iter().filter(|beat| beat.role == role).map(|beat| beat.late).sum::<u64>();
    assert_eq!((of(Role::Courier), of(Role::Recognizer)), (doubtful.len() as u64, (late - doubtful.len()) as u64));
}

#[tokio::test]
async fn a_doubtful_answer_becomes_final_before_its_deadline_and_is_not_late() {
    let world = TestWorld::start_with_workers(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0);
    site.link.as_ref().unwrap().set(ProxyMode::Silent);
    link_is_down(&site.bus, PATIENCE).await.unwrap();
    let bytes = &first_picture(false).unwrap().bytes;
    let task = publish(&site.bus, &site.name, bytes, &[(HEADER_DEADLINE, "4000")]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.reason), (Route::Expired, Reason::DeadlinePassed));
    assert!(answer.deadline_at_ms < answer.due_at_ms, "{answer:?}");
    assert_eq!(answer.late_ms, None, "{answer:?}");
}

/// A world in which one recognizer takes long for each picture, one at a time.
async fn slow_world() -> (TestWorld, Vec<u8>) {
    let plan = WorldPlan::default()
        .set("recognizer.infer.replicas=1")
        .set("recognizer.infer.max_batch=1")
        .set("recognizer.verify.enabled=false");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let large = vision::enlarged(&first_picture(true).unwrap().bytes, 2000).unwrap();
    (world, large)
}

#[tokio::test]
async fn of_what_a_recognizer_holds_the_urgent_and_what_is_due_goes_first() {
    let (mut world, large) = slow_world().await;
    let (name, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    world.worker_mut("recognizer").unwrap().signal(Signal::SIGSTOP).unwrap();
    // As many as it holds with one replica and a batch of one.
    let waiting: [&[(&'static str, &str)]; 8] = [
        &[],
        &[],
        &[(HEADER_PRIORITY, "0")],
        &[],
        &[(HEADER_DEADLINE, "4500")],
        &[(HEADER_DEADLINE, "4000")],
        &[(HEADER_PRIORITY, "9")],
        &[(HEADER_PRIORITY, "0"), (HEADER_DEADLINE, "3000")],
    ];
    let mut tasks = Vec::new();
    for headers in waiting {
        tasks.push(publish(&bus, &name, &large, headers).await);
    }
    world.worker_mut("recognizer").unwrap().signal(Signal::SIGCONT).unwrap();
    let order = order(&world, &tasks).await;
    let place = |task: usize| order.iter().position(|answered| *answered == task).unwrap();
    // Whatever came first may have been taken before the others came.
    let others = [1, 3, 4, 5, 6];
    assert!(others.iter().all(|other| *other == 6 || place(6) <= place(*other) + 2), "{order:?}");
    assert!(place(5) < place(4) && place(4) < place(3), "the earliest deadline first: {order:?}");
    assert!(place(7) < place(2) || place(2) < 2, "{order:?}");
    assert!(place(3) < place(7), "the priority counts more than the deadline: {order:?}");
}

#[tokio::test]
async fn bulk_is_answered_while_urgent_images_never_end() {
    let (world, large) = slow_world().await;
    let (name, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    let urgent: &[_] = &[(HEADER_PRIORITY, "9"), (HEADER_DEADLINE, "1000")];
    for _ in 0..4 {
        publish(&bus, &name, &large, urgent).await;
    }
    let bulk = publish(&bus, &name, &large, &[(HEADER_PRIORITY, "0")]).await;
    let slot = subject::final_answer_of_any_camera(&name, bulk);
    let mut published = 0;
    // There are always more urgent ones than it works on, and no more than it holds.
    let waited = until("bulk is answered", PATIENCE, async || {
        let progress = reader::consumer_progress(&bus, topology::IMAGES, &topology::recognizer_durable(&name)).await?;
        for _ in progress.pending + progress.unacked..6 {
            publish(&bus, &name, &large, urgent).await;
            published += 1;
        }
        let record = reader::last_message(&bus, topology::ANSWERS, &slot).await?;
        Ok(record.map(|record| {
            let answer: Answer = decode(&record.payload).unwrap();
            Duration::from_millis(stored_at_ms(&record) - answer.published_at_ms)
        }))
    })
    .await
    .unwrap();
    let finals = finals(&world).await;
    let at = finals.iter().position(|(answer, _)| answer.task == bulk).unwrap();
    assert!(at > 8 && published > 8, "{at} urgent ones went first, {published} came later");
    // It has waited as long as anything does, and for the few that were older.
    let slack = Duration::from_secs(4);
    assert!(waited >= vision::MAX_WAIT && waited < vision::MAX_WAIT + slack, "{waited:?}");
}
