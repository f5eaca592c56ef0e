//! What several end-to-end tests need.

use std::time::Duration;

use harness::program::run_for;
use harness::{CommandOutput, TestWorld, until};
use schemas::{Answer, AnswerStage, SiteName, TaskId, decode};
use serde_json::Value;
use streams::fleet::live_workers;
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, Publication, PublishOutcome, Publisher, topology};

/// Long enough for anything that is going to happen on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes bytes as the one image of a new task.
pub(crate) async fn publish(bus: &Bus, site: &SiteName, bytes: &[u8], headers: &[(&'static str, &str)]) -> TaskId {
    let task = TaskId::new_random();
    publish_as(bus, site, task, bytes, headers).await.unwrap();
    task
}

/// Publishes bytes as an image of this task.
pub(crate) async fn publish_as(
    bus: &Bus,
    site: &SiteName,
    task: TaskId,
    bytes: &[u8],
    headers: &[(&'static str, &str)],
) -> Result<PublishOutcome, CarryError> {
    let subject = streams::subject::image(site, &"cam-1".parse().unwrap());
    let mut publication = Publication::with_id(subject, bytes.to_vec(), task.to_string());
    for (name, value) in headers {
        publication = publication.header(name, *value);
    }
    Publisher::new(bus.clone(), PATIENCE).publish(&publication).await
}

/// The final answer of a task, as soon as there is one.
pub(crate) async fn outcome(bus: &Bus, site: &SiteName, task: TaskId) -> anyhow::Result<Answer> {
    let slot = streams::subject::final_answer_of_any_camera(site, task);
    until(&format!("a final answer of task {task}"), PATIENCE, async || {
        let record = reader::last_message(bus, topology::ANSWERS, &slot).await?;
        Ok(record.map(|record| decode(&record.payload)).transpose()?)
    })
    .await
}

/// The final answer of a task of a world's first site; what its workers said last if there is none.
pub(crate) async fn answered(world: &TestWorld, task: TaskId) -> Answer {
    let site = world.site(0);
    match outcome(&site.bus, &site.name, task).await {
        Ok(answer) => answer,
        Err(error) => panic!("{error:#}\n{}", world.log_tails()),
    }
}

/// Every answer about a task, oldest first.
pub(crate) async fn answers(bus: &Bus, task: TaskId) -> Vec<Answer> {
    let last = reader::stream_level(bus, topology::ANSWERS).await.unwrap().last_sequence;
    let mut answers: Vec<Answer> = Vec::new();
    let all = reader::read_range(bus, topology::ANSWERS, StreamRange::default(), last, |record| {
        answers.push(decode(&record.payload).unwrap());
    });
    all.await.unwrap();
    answers.retain(|answer| answer.task == task);
    answers
}

/// Waits until the courier of a site says that the link to the cloud is down.
pub(crate) async fn link_is_down(bus: &Bus, patience: Duration) -> anyhow::Result<()> {
    until("the link is down", patience, async || {
        let links = live_workers(bus).await?.into_iter().filter_map(|beat| beat.link);
        let links: Vec<bool> = links.map(|link| link.up).collect();
        Ok((!links.is_empty() && !links.contains(&true)).then_some(()))
    })
    .await
}

/// The provisional answer of a task, as soon as there is one.
pub(crate) async fn promised(world: &TestWorld, task: TaskId) -> Answer {
    let what = format!("a provisional answer of task {task}");
    let found = until(&what, PATIENCE, async || {
        let answers = answers(world.bus(0), task).await;
        Ok(answers.into_iter().find(|answer| answer.stage == AnswerStage::Provisional))
    });
    found.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()))
}

/// A command at the first site.
pub(crate) async fn at(world: &TestWorld, words: &[&str]) -> CommandOutput {
    let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    arguments.extend(world.at(0));
    run_for(world.folder(), &arguments, Duration::from_secs(120)).await.unwrap()
}

/// Output of a command at the first site that must succeed.
pub(crate) async fn done(world: &TestWorld, words: &[&str]) -> String {
    let ended = at(world, words).await;
    assert!(ended.success, "{words:?}\n{}\n{}", ended.out, ended.err);
    ended.out
}

/// The same as JSON.
pub(crate) async fn done_json(world: &TestWorld, words: &[&str]) -> Value {
    let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&done(world, &words).await).unwrap()
}
