//! The walk of weights: a site's images and what is said of them, training, an update in the cloud.

use std::time::Duration;

use harness::pictures::pictures;
use harness::program::run;
use harness::{TestWorld, WorldPlan, until};
use schemas::task::HEADER_LABEL;
use schemas::{Heartbeat, LabelSource, Route, TaskId, Update, WeightFormat, decode};
use streams::fleet;
use streams::{Blobs, reader, topology};

use crate::common::{PATIENCE, answered, publish};

/// Long enough for a small training on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// A site whose recognizer knows nothing yet, so that nearly every image is judged in the cloud.
async fn beginners(plan: WorldPlan) -> TestWorld {
    let mut world = TestWorld::start(plan).await.unwrap();
    world.verifier("verifier").unwrap();
    world.untrained_recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.all_started().await.unwrap();
    world
}

/// Publishes so many pictures; every tenth with its true label.
async fn publish_pictures(world: &TestWorld, count: usize) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for (number, picture) in pictures().unwrap().iter().take(count).enumerate() {
        let label: &[(&'static str, &str)] = if number % 10 == 0 { &[(HEADER_LABEL, &picture.truth)] } else { &[] };
        tasks.push(publish(world.bus(0), &world.site(0).name, &picture.bytes, label).await);
    }
    tasks
}

async fn updates(world: &TestWorld) -> anyhow::Result<Vec<Update>> {
    let last = reader::stream_level(&world.cloud, topology::UPDATES).await?.last_sequence;
    let mut updates = Vec::new();
    reader::read_range(&world.cloud, topology::UPDATES, reader::StreamRange::default(), last, |record| {
        updates.push(decode::<Update>(&record.payload));
    })
    .await?;
    Ok(updates.into_iter().collect::<Result<_, _>>()?)
}

async fn first_update(world: &TestWorld) -> Update {
    let arrived = until("an update in the cloud", LONG, async || Ok(updates(world).await?.into_iter().next())).await;
    arrived.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()))
}

async fn training(world: &TestWorld) -> anyhow::Result<Option<schemas::TrainingReport>> {
    let beats: Vec<Heartbeat> = fleet::live_workers(world.bus(0)).await?;
    Ok(beats.into_iter().find_map(|beat| beat.training))
}

#[tokio::test]
async fn a_site_learns_from_its_images_and_its_update_arrives_while_images_are_answered() {
    let plan = WorldPlan::leaves(1)
        .set("trainer.collect.min_new_images=180")
        .set("trainer.epochs=6")
        .set("trainer.holdout_ratio=0.3")
        .set("trainer.optimizer.learning_rate=0.05")
        .set("trainer.weight_format=delta_f16");
    let mut world = beginners(plan).await;
    let tasks = publish_pictures(&world, 200).await;
    for task in &tasks {
        answered(&world, *task).await;
    }
    // A person knows better.
    let corrected = tasks[1].to_string();
    let mut say = vec!["label".to_owned(), corrected, "bag".into(), "--by".into(), "anna".into()];
    say.extend(world.at(0));
    let said = run(world.folder(), &say).await.unwrap();
    assert!(said.success && said.out.contains("1 label"), "{}\n{}", said.out, said.err);
    world.trainer("trainer", 0).unwrap();
    world.worker_mut("trainer").unwrap().wait_for_log("started", PATIENCE).await.unwrap();
    let picture = &pictures().unwrap()[3];
    let mut meanwhile = 0;
    let update = loop {
        let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
        let answer = answered(&world, task).await;
        assert!(matches!(answer.route, Route::Verified | Route::Edge | Route::Redirected), "{answer:?}");
        meanwhile += 1;
        if let Some(update) = updates(&world).await.unwrap().into_iter().next() {
            break update;
        }
        assert!(meanwhile < 20_000, "no update\n{}", world.log_tails());
    };
    assert_eq!((update.site.as_str(), update.model.as_str(), update.round), ("site-1", "fashion-initial", 0));
    assert_eq!((update.form, update.epochs), (WeightFormat::DeltaF16, 6));
    assert!(update.after.loss < update.before.loss, "{update:?}");
    assert!(update.after.accuracy_ratio > update.before.accuracy_ratio + 0.2, "{update:?}");
    assert_eq!(update.sources[&LabelSource::Person], 1);
    assert!(update.sources[&LabelSource::Publisher] >= 19, "{:?}", update.sources);
    assert!(update.sources[&LabelSource::Verdict] >= 100, "{:?}", update.sources);
    // Weights travel by reference, and are there before their message.
    let weights = Blobs::open_sent_by(&world.cloud, &update.site).fetch_blob(&update.weights, 1 << 20).await.unwrap();
    assert!(weights.len() < 26_698 * 2 + 4096, "{} bytes of 16-bit floats", weights.len());
    let said = until("the trainer says that it sent an update", PATIENCE, async || {
        let report = training(&world).await?.filter(|report| report.sent > 0);
        Ok(report.map(|report| assert_eq!(report.sent, 1, "{report:?}")))
    });
    said.await.unwrap();
    let status = run(world.folder(), &[vec!["status".to_owned()], world.at(0)].concat()).await.unwrap();
    assert!(status.out.contains("update sent"), "{}", status.out);
}

/// Takes the label of an image back while the site trains on it; whether no update had learned from it by then.
async fn take_back(world: &TestWorld, task: TaskId) -> bool {
    let mut words = ["label", "retract", &task.to_string(), "--why", "mistaken"].map(str::to_owned).to_vec();
    words.extend(world.at(0));
    let said = run(world.folder(), &words).await.unwrap();
    assert!(said.success && said.out.contains("1 label retracted"), "{}{}", said.out, said.err);
    said.out.contains("No recorded update")
}

#[tokio::test]
async fn a_trainer_that_is_killed_goes_on_and_sends_what_it_would_have_sent() {
    let plan = WorldPlan::default()
        .set("trainer.collect.min_new_images=100")
        .set("trainer.epochs=20")
        .set("trainer.optimizer.learning_rate=0.01")
        .set("trainer.holdout_ratio=0.3")
        .set("trainer.limits.checkpoint_every_s=1");
    let mut world = beginners(plan).await;
    let tasks = publish_pictures(&world, 150).await;
    for task in &tasks {
        answered(&world, *task).await;
    }
    let trainer = world.trainer("trainer", 0).unwrap();
    trainer.wait_for_log("started", PATIENCE).await.unwrap();
    let (mut kills, mut taken_back) = (0, false);
    for _ in 0..4 {
        let epoch = until("some epochs", LONG, async || {
            let report = training(&world).await?;
            let sent = !updates(&world).await?.is_empty();
            Ok(report.filter(|report| sent || report.epoch >= 2 + kills * 4).map(|report| report.epoch))
        });
        epoch.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
        if !updates(&world).await.unwrap().is_empty() {
            break;
        }
        kills += 1;
        world.worker_mut("trainer").unwrap().restart().unwrap();
        if kills == 1 {
            world.worker_mut("trainer").unwrap().wait_for_log(training::TRAINING_RESUMED, PATIENCE).await.unwrap();
            taken_back = take_back(&world, tasks[0]).await;
        }
    }
    let disturbed = first_update(&world).await;
    assert!(kills > 0, "it was never killed while it trained");
    let log = world.worker_mut("trainer").unwrap().log();
    assert!(log.contains(training::TRAINING_RESUMED), "{log}");
    let work = world.folder().join("training-0");
    let index = std::fs::read_to_string(work.join("index.csv")).unwrap();
    // An update that was not named when the label was taken back is not sent: it is trained again without the image.
    assert_eq!(index.contains(&tasks[0].to_string()), !taken_back, "{log}");
    assert_eq!(disturbed.sources.values().sum::<u64>(), index.lines().count() as u64 - 1);
    // The same images and settings once more, undisturbed: the same weights, so the same update.
    world.worker_mut("trainer").unwrap().kill().unwrap();
    assert!(!work.join("checkpoint.safetensors").exists(), "a finished training leaves no checkpoint");
    let model = harness::program::fixture(harness::pictures::INITIAL);
    let new = world.folder().join("again");
    let mut again = vec!["train".to_owned(), "--model".into(), model.display().to_string()];
    again.extend(["--data".into(), work.display().to_string(), "--out".into(), new.display().to_string()]);
    for pair in ["trainer.epochs=20", "trainer.optimizer.learning_rate=0.01", "trainer.holdout_ratio=0.3"] {
        again.extend(["--set".into(), pair.into()]);
    }
    again.extend(["--json".into(), "--keep-without-gain".into()]);
    let again = run(world.folder(), &again).await.unwrap();
    assert!(again.success, "{}", again.err);
    let again: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    let epochs = again["epochs"].as_array().unwrap();
    let best = &epochs.iter().find(|epoch| epoch["number"] == again["best_epoch"]).unwrap()["held_out"];
    assert_eq!(best["loss"].as_f64().unwrap() as f32, disturbed.after.loss as f32, "{best} and {disturbed:?}");
}

#[tokio::test]
async fn what_cannot_be_learned_from_or_did_not_pay_is_said_and_nothing_is_sent() {
    let plan =
        WorldPlan::default().set("trainer.collect.min_new_images=20").set("trainer.optimizer.learning_rate=1e30");
    let mut world = beginners(plan).await;
    world.trainer("trainer", 0).unwrap();
    // Labels the model does not know, and one label for all.
    let picture = &pictures().unwrap()[0];
    for number in 0..25 {
        let label = if number < 5 { "submarine" } else { picture.truth.as_str() };
        let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &[(HEADER_LABEL, label)]).await;
        answered(&world, task).await;
    }
    let why = until("a trainer that says what is missing", LONG, async || {
        Ok(training(&world).await?.map(|report| report.why).filter(|why| why.contains("the same label")))
    });
    let why = why.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(why.contains("submarine"), "{why}");
    // Enough to learn from, and steps so long that the loss is no number.
    for task in publish_pictures(&world, 60).await {
        answered(&world, task).await;
    }
    let last =
        until("a training that failed", LONG, async || Ok(training(&world).await?.and_then(|report| report.last)));
    let last = last.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(last.contains("no update sent"), "{last}");
    assert!(updates(&world).await.unwrap().is_empty());
    assert_eq!(world.worker_mut("trainer").unwrap().ended().unwrap(), None, "the trainer lives");
}
