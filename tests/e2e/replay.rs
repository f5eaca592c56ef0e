//! What a site answered, used again: exported, resumed, evaluated, backtested, published again, learned from, pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use harness::pictures::{HEAVY, INITIAL, LIGHT, pictures};
use harness::program::{WorkerProcess, fixture, run};
use harness::{TestWorld, WorldPlan, until};
use schemas::task::{HEADER_BLOB, HEADER_LABEL};
use schemas::{Answer, Route, TaskId, decode};
use serde_json::Value;
use streams::topology::StreamSettings;
use streams::{Blobs, reader, subject, topology};

use crate::common::{PATIENCE, answered, at, done, done_json, publish};

/// Publishes so many pictures with their labels, and waits for each answer.
async fn answers(world: &TestWorld, count: usize) -> BTreeMap<TaskId, (Answer, Vec<u8>)> {
    let mut tasks = Vec::new();
    for picture in pictures().unwrap().iter().cycle().take(count) {
        let labels: [(&'static str, &str); 1] = [(HEADER_LABEL, &picture.truth)];
        let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, &labels).await;
        tasks.push((task, picture.bytes.to_vec()));
    }
    let mut all = BTreeMap::new();
    for (task, bytes) in tasks {
        all.insert(task, (answered(world, task).await, bytes));
    }
    all
}

/// Rows of an index, by task.
fn index(folder: &Path) -> BTreeMap<TaskId, BTreeMap<String, String>> {
    let text = std::fs::read_to_string(folder.join("index.csv")).unwrap();
    let mut lines = text.lines();
    let heads: Vec<&str> = lines.next().unwrap().split(',').collect();
    let row = |line: &str| -> BTreeMap<String, String> {
        heads.iter().zip(line.split(',')).map(|(head, cell)| ((*head).to_owned(), cell.to_owned())).collect()
    };
    let rows: Vec<BTreeMap<String, String>> = lines.map(row).collect();
    let count = rows.len();
    let by_task: BTreeMap<TaskId, _> = rows.into_iter().map(|row| (row["task"].parse().unwrap(), row)).collect();
    assert_eq!(by_task.len(), count, "a task stands twice in {}", folder.display());
    by_task
}

/// Every answered image is in the folder, as it was published and with what was said of it.
fn holds(folder: &Path, all: &BTreeMap<TaskId, (Answer, Vec<u8>)>) {
    let index = index(folder);
    assert_eq!(index.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
    for (task, row) in &index {
        let (answer, bytes) = &all[task];
        assert_eq!(&std::fs::read(folder.join(&row["file"])).unwrap(), bytes, "{task} was altered");
        assert_eq!(Some(&row["label"]), answer.truth.as_ref());
        assert_eq!(Some(&row["answer"]), answer.label.as_ref());
        assert_eq!((row["source"].as_str(), &row["route"]), ("publisher", &answer.route.to_string()));
        assert_eq!(row["confidence"].parse::<f32>().ok(), answer.confidence);
        assert_eq!(row["release"], answer.release.as_ref().unwrap().to_string());
    }
}

#[tokio::test]
async fn what_was_answered_is_exported_whole_however_often_the_export_is_killed() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let all = answers(&world, 400).await;
    let (folder, tar) = (world.folder().join("set"), world.folder().join("set.tar"));
    let set = folder.display().to_string();
    // Slow enough to be killed on its way.
    let mut arguments = vec!["export".to_owned(), "--to".into(), set.clone(), "--mib-per-s".into(), "0.05".into()];
    arguments.extend(world.at(0));
    let mut stopped_at = Vec::new();
    for least in [40, 120] {
        let mut half = WorkerProcess::start(&format!("export-{least}"), world.folder(), &arguments, &[]).unwrap();
        let written = || std::fs::read_to_string(folder.join("index.csv")).map_or(0, |text| text.lines().count());
        until("a part of the export", PATIENCE, async || Ok((written() > least).then_some(()))).await.unwrap();
        half.kill().unwrap();
        stopped_at.push(written());
    }
    assert!(stopped_at.iter().all(|rows| *rows < 400), "it was through before it was killed: {stopped_at:?}");
    // As a crash of the machine leaves it: a row cut off, and an image of which nothing reached the disk.
    let text = std::fs::read_to_string(folder.join("index.csv")).unwrap();
    let last = text.lines().last().unwrap().split(',').next().unwrap().to_owned();
    std::fs::write(folder.join(&last), b"").unwrap();
    std::fs::write(folder.join("index.csv"), &text[..text.len() - 7]).unwrap();
    let summary = done_json(&world, &["export", "--to", &set]).await;
    assert_eq!(summary["before"].as_u64().unwrap() + summary["through"].as_u64().unwrap(), 400, "{summary}");
    assert!(summary["before"].as_u64().unwrap() > 100, "it began anew: {summary}");
    holds(&folder, &all);
    let again = done_json(&world, &["export", "--to", &set]).await;
    assert_eq!((&again["through"], &again["before"]), (&0.into(), &400.into()));
    let other = at(&world, &["export", "--to", &set, "--where", "hard"]).await;
    assert!(!other.success && other.err.contains("another replay"), "{}", other.err);

    let doubtful = all.values().filter(|(answer, _)| answer.route == Route::Verified).count() as u64;
    let summary =
        done_json(&world, &["export", "--where", "route = verified", "--to", &tar.display().to_string()]).await;
    assert_eq!(summary["through"], doubtful);
    assert!(doubtful > 0 && tar.metadata().unwrap().len() > 0);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_what_could_be() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let empty = at(&world, &["export", "--to", "none"]).await;
    assert!(empty.err.contains("has no answers yet"), "{}", empty.err);
    answers(&world, 20).await;
    for (words, said) in [
        (vec!["export", "--since", "2099-01-01", "--to", "none"], "none of them matches"),
        (vec!["export", "--where", "confidence < low", "--to", "none"], "column 14"),
        (vec!["export", "--since", "2h", "--until", "3h", "--to", "none"], "not before --until"),
        (vec!["export", "--since", "later", "--to", "none"], "is not a time"),
        (vec!["export"], "--to <DIR|FILE.tar>"),
        (vec!["export", "--to", "none.csv"], "`tributary evaluate --to FILE.csv` writes a table"),
        (vec!["republish"], "--to-trainer"),
        (vec!["backtest"], "--policy"),
        (vec!["evaluate"], "--model <DIR>"),
        (vec!["evaluate", "--model", "m", "--to", "none"], "name it FILE.csv"),
        (vec!["republish", "--to", "answer.final.a.b.c"], "workers expect other messages"),
        (vec!["republish", "--to", "x.{task}"], "only {site} and {camera}"),
        (vec!["export", "--pinned", "nothing", "--to", "none"], "set nothing has no matching image"),
        (vec!["republish", "--pace", "5", "--to-trainer"], "cannot be used with"),
        (vec!["backtest", "--gate", "missing.toml"], "--gate missing.toml: there is no such file"),
        (vec!["retention", "--unpin", "nothing"], "none is pinned"),
        (vec!["retrain", "--model", "/nowhere", "--out", "new"], "model folder /nowhere does not exist"),
    ] {
        let ended = at(&world, &words).await;
        assert!(!ended.success && ended.err.contains(said), "{words:?}: {}", ended.err);
    }
    assert!(!world.folder().join("none").exists(), "nothing was meant, and something was written");
    std::fs::create_dir(world.folder().join("mine")).unwrap();
    std::fs::write(world.folder().join("mine/letter.txt"), "dear").unwrap();
    let foreign = at(&world, &["export", "--to", "mine"]).await;
    assert!(!foreign.success && foreign.err.contains("that no export wrote"), "{}", foreign.err);
}

#[tokio::test]
async fn images_that_go_while_they_are_replayed_are_counted_and_the_others_are_whole() {
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    // Larger than what is read ahead, and no images at all: what was given up is kept as well.
    let mut all = BTreeMap::new();
    for number in 0..300_u32 {
        let bytes: Vec<u8> = number.to_le_bytes().repeat(25_000);
        all.insert(publish(world.bus(0), &world.site(0).name, &bytes, &[]).await, bytes);
    }
    for task in all.keys() {
        answered(&world, *task).await;
    }
    let none = at(&world, &["export", "--to", "none"]).await;
    assert!(!none.success && none.err.contains("no task matches"), "{}", none.err);
    let folder = world.folder().join("set");
    let mut arguments =
        vec!["export".to_owned(), "--json".into(), "--to".into(), folder.display().to_string(), "--mib-per-s".into()];
    arguments.extend(["4".into(), "--stage".into(), "dead".into()]);
    arguments.extend(world.at(0));
    let mut slow = WorkerProcess::start("export", world.folder(), &arguments, &[]).unwrap();
    until("a part of the export", PATIENCE, async || Ok(folder.join("index.csv").is_file().then_some(())))
        .await
        .unwrap();
    let purged = reader::purge_before(world.bus(0), topology::IMAGES, 250).await.unwrap();
    assert!(purged > 200);
    assert!(slow.end(Duration::from_secs(60)).await.unwrap().success(), "{}", slow.log());
    let said = std::fs::read_to_string(world.folder().join("export.out")).unwrap();
    let summary: Value = serde_json::from_str(&said).unwrap();
    let (through, gone) = (summary["through"].as_u64().unwrap(), summary["gone"].as_u64().unwrap());
    assert_eq!(through + gone, 300, "{summary}");
    assert!(gone > 0, "it was through before anything went: {summary}");
    let index = index(&folder);
    assert_eq!(index.len() as u64, through);
    for (task, row) in index {
        assert_eq!(std::fs::read(folder.join(&row["file"])).unwrap(), all[&task]);
    }
}

#[tokio::test]
async fn what_is_published_again_is_marked_and_neither_learned_from_nor_sent_up() {
    let mut world = TestWorld::start(WorldPlan::default().set("trainer.collect.min_new_images=100000")).await.unwrap();
    world.verifier("verifier").unwrap();
    world.untrained_recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.all_started().await.unwrap();
    let all = answers(&world, 60).await;
    assert!(all.values().filter(|(answer, _)| answer.route == Route::Verified).count() > 30);
    // Not what is in the outbox: reports of releases go through it too, when their time comes.
    let sent_before = reader::stream_level(&world.cloud, topology::VERIFY).await.unwrap().last_sequence;
    assert!(sent_before > 30);
    let template = format!("image.{}.again-{{camera}}", world.site(0).name);
    let summary = done_json(&world, &["republish", "--to", &template]).await;
    assert_eq!((&summary["through"], &summary["unstored"]), (&60.into(), &false.into()));
    let site = world.site(0).name.clone();
    let copies = until("an answer for every copy", PATIENCE, async || {
        let last = reader::stream_level(world.bus(0), topology::ANSWERS).await?.last_sequence;
        let (mut copies, subjects) = (Vec::new(), vec![subject::final_answers(&site, None)]);
        let finals = reader::StreamRange { subjects, ..reader::StreamRange::default() };
        reader::read_range(world.bus(0), topology::ANSWERS, finals, last, |record| {
            let answer = decode::<Answer>(&record.payload).unwrap();
            copies.extend(Some(answer).filter(|answer| answer.replayed.is_some()));
        })
        .await?;
        Ok((copies.len() == 60).then_some(copies))
    })
    .await
    .unwrap();
    for copy in &copies {
        let first = &all[&copy.replayed.unwrap()].0;
        assert!(copy.camera.as_str().starts_with("again-") && copy.task != first.task);
        assert_eq!((copy.route, &copy.truth), (Route::Edge, &first.truth), "{copy:?}");
    }
    assert_eq!(reader::stream_level(&world.cloud, topology::VERIFY).await.unwrap().last_sequence, sent_before);
    // The copies stand for images that have answers of their own.
    let summary = done_json(&world, &["export", "--to", "set"]).await;
    assert_eq!(summary["meant"], 60);
    // A trainer knows each image once, whether by its answer or by a label that was replayed.
    let summary = done_json(&world, &["republish", "--to-trainer"]).await;
    assert_eq!(summary["sources"]["publisher"], 60);
    world.trainer("trainer", 0).unwrap();
    let report = until("what the trainer knows", PATIENCE, async || {
        let beats = streams::fleet::live_workers(world.bus(0)).await?;
        Ok(beats.into_iter().find_map(|beat| beat.training).filter(|training| training.labelled > 0))
    });
    assert_eq!(report.await.unwrap().labelled, 60);
}

#[tokio::test]
async fn another_model_is_held_against_what_was_answered() {
    let world =
        TestWorld::start_with_workers(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    let all = answers(&world, 200).await;
    let same = done_json(&world, &["evaluate", "--model", &fixture(LIGHT).display().to_string()]).await;
    assert_eq!((&same["comparison"]["images"], &same["comparison"]["same"]), (&200.into(), &200.into()), "{same}");
    let heavy = fixture(HEAVY).display().to_string();
    let better = done_json(&world, &["evaluate", "--model", &heavy, "--to", "both.csv"]).await;
    let right = |picture: &harness::pictures::TestPicture| picture.heavy.label == picture.truth;
    let known = pictures().unwrap().iter().take(200).filter(|picture| right(picture)).count();
    assert_eq!(better["comparison"]["right_now"], known as u64, "as the model's own words have it: {better}");
    let right_before = all.values().filter(|(answer, _)| answer.label == answer.truth).count();
    assert_eq!(better["comparison"]["right_before"], right_before as u64);
    let lines = std::fs::read_to_string(world.folder().join("both.csv")).unwrap();
    let tasks: BTreeSet<&str> = lines.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(tasks.len(), 200);
    // Half of a table goes on where it was, and says the same in the end.
    let half: Vec<&str> = lines.lines().take(101).collect();
    std::fs::write(world.folder().join("both.csv"), half.join("\n") + "\ncut,off").unwrap();
    let again = done_json(&world, &["evaluate", "--model", &heavy, "--to", "both.csv"]).await;
    assert_eq!(
        (&again["before"], &again["comparison"]["right_now"]),
        (&100.into(), &better["comparison"]["right_now"])
    );
}

#[tokio::test]
async fn a_pinned_set_outlives_its_images_and_has_a_limit() {
    let streams = StreamSettings { ack_wait_s: 2, pinned_max_mib: 1, ..StreamSettings::default() };
    let world = TestWorld::start_with_workers(WorldPlan { streams, ..WorldPlan::default() }).await.unwrap();
    let all = answers(&world, 200).await;
    let summary = done_json(&world, &["pin", "first"]).await;
    assert_eq!(summary["through"], 200);
    let twice = done_json(&world, &["pin", "first"]).await;
    assert_eq!((&twice["through"], &twice["before"]), (&0.into(), &200.into()), "pinning twice is pinning once");
    let kept = done_json(&world, &["retention", "--dry-run"]).await;
    assert_eq!(kept["sets"]["first"]["images"], 200);
    let cameras = kept["would_go"]["cameras"].as_object().unwrap();
    assert_eq!(cameras.values().map(|held| held["pinned"].as_u64().unwrap()).sum::<u64>(), 200);
    let newest = reader::stream_level(world.bus(0), topology::IMAGES).await.unwrap().last_sequence;
    reader::purge_before(world.bus(0), topology::IMAGES, newest + 1).await.unwrap();
    let gone = done_json(&world, &["export", "--to", "late"]).await;
    assert_eq!((&gone["through"], &gone["gone"]), (&0.into(), &200.into()));
    done(&world, &["export", "--pinned", "first", "--to", "set"]).await;
    holds(&world.folder().join("set"), &all);
    let part = done_json(&world, &["export", "--pinned", "first", "--where", "route = verified", "--to", "part"]).await;
    let verified = all.values().filter(|(answer, _)| answer.route == Route::Verified).count();
    assert_eq!(part["through"], verified as u64);
    // A megabyte holds no more than a few sets of this size.
    for picture in pictures().unwrap().iter().cycle().take(900) {
        publish(world.bus(0), &world.site(0).name, &picture.bytes, &[]).await;
    }
    let finals = vec![subject::final_answers(&world.site(0).name, None)];
    until("all answers", PATIENCE, async || {
        let part =
            reader::StreamRange { subjects: finals.clone(), headers_only: true, ..reader::StreamRange::default() };
        let (last, mut count) = (reader::stream_level(world.bus(0), topology::ANSWERS).await?.last_sequence, 0);
        reader::read_range(world.bus(0), topology::ANSWERS, part, last, |_| count += 1).await?;
        Ok((count == 1100).then_some(()))
    })
    .await
    .unwrap();
    let full = at(&world, &["pin", "second"]).await;
    assert!(!full.success && full.err.contains("pinned sets are full"), "{}\n{}", full.out, full.err);
    done(&world, &["retention", "--unpin", "second"]).await;
    let left = done_json(&world, &["retention"]).await;
    assert_eq!(left["sets"].as_object().unwrap().keys().collect::<Vec<_>>(), ["first"]);
}

#[tokio::test]
async fn images_too_large_for_a_message_are_pinned_published_again_and_let_go() {
    const COUNT: usize = 6;
    let world = TestWorld::start_with_workers(WorldPlan::default()).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0));
    let (blobs, pins) = (Blobs::open(bus).await.unwrap(), Blobs::open_pinned(bus).await.unwrap());
    let (mut tasks, mut large) = (BTreeSet::new(), Vec::new());
    for picture in pictures().unwrap().iter().take(COUNT) {
        // Decoders end where the image does.
        let bytes = [&picture.bytes[..], &vec![0; 1_200_000]].concat();
        let blob = blobs.store_blob(&bytes).await.unwrap();
        let task = publish(bus, &site, b"", &[(HEADER_BLOB, &blob.to_string())]).await;
        assert!(answered(&world, task).await.label.is_some());
        tasks.insert(task);
        large.push(blob);
    }
    // More of them than may be in flight.
    let little = ["--set", "replayer.in_flight_mib=1"];
    for set in ["first", "second"] {
        let summary = done_json(&world, &[&["pin", set], &little[..]].concat()).await;
        assert_eq!(summary["through"], COUNT);
    }
    let kept = done_json(&world, &["retention"]).await;
    let held = kept["sets"]["first"]["bytes"].as_u64().unwrap();
    assert_eq!(held, large.iter().map(|blob| blob.size_bytes).sum::<u64>());
    // The site keeps large images for a shorter time than sets do.
    for blob in &large {
        blobs.remove_blob(&blob.key).await.unwrap();
    }
    let again = format!("image.{site}.again-{{camera}}");
    let words = ["republish", "--pinned", "first", "--to", &again, "--pace", "4"];
    let summary = done_json(&world, &[&words, &little[..]].concat()).await;
    assert_eq!((&summary["through"], &summary["gone"]), (&COUNT.into(), &0.into()));
    let copies = until("an answer for every copy", PATIENCE, async || {
        let (last, mut copies) = (reader::stream_level(bus, topology::ANSWERS).await?.last_sequence, Vec::new());
        let finals = reader::StreamRange {
            subjects: vec![subject::final_answers(&site, None)],
            ..reader::StreamRange::default()
        };
        reader::read_range(bus, topology::ANSWERS, finals, last, |record| {
            let answer = decode::<Answer>(&record.payload).unwrap();
            copies.extend(Some(answer).filter(|answer| answer.replayed.is_some()));
        })
        .await?;
        Ok((copies.len() == COUNT).then_some(copies))
    })
    .await
    .unwrap();
    let first: BTreeSet<TaskId> = copies.iter().filter_map(|copy| copy.replayed).collect();
    assert_eq!(first, tasks);
    assert!(copies.iter().all(|copy| copy.label.is_some()), "{copies:?}");
    let published = copies.iter().map(|copy| copy.published_at_ms);
    let spread_ms = published.clone().max().unwrap() - published.min().unwrap();
    assert!(spread_ms > 500, "four a second, and all six came within {spread_ms} ms");
    // What two sets share stays while one of them does.
    for (set, left) in [("first", true), ("second", false)] {
        done(&world, &["retention", "--unpin", set]).await;
        for blob in &large {
            assert_eq!(pins.has_blob(blob).await.unwrap(), left, "after {set}");
        }
    }
}

#[tokio::test]
async fn a_model_learns_from_replayed_images_and_becomes_a_candidate() {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    world.untrained_recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let mut all = answers(&world, 400).await;
    // Somebody calls one what the model has no class for.
    let odd = *all.keys().next().unwrap();
    all.remove(&odd);
    done(&world, &["label", &odd.to_string(), "jellyfish"]).await;
    let store = world.release_store();
    let model = fixture(INITIAL).display().to_string();
    done(&world, &["release", "import", &model, "--set", &store]).await;
    let retrain = ["retrain", "--model", &model, "--out", "better", "--epochs", "4", "--import", "--set", &store];
    let ended = at(&world, &retrain).await;
    assert!(ended.success, "{}\n{}", ended.out, ended.err);
    assert!(ended.err.contains("jellyfish") && ended.out.contains("is candidate"), "{}\n{}", ended.out, ended.err);
    assert_eq!(index(&world.folder().join("better.set")).len(), 399);
    let before = done_json(&world, &["evaluate", "--model", &model]).await;
    let after = done_json(&world, &["evaluate", "--model", "better"]).await;
    let right = |summary: &Value| summary["comparison"]["right_now"].as_u64().unwrap();
    assert!(right(&after) > right(&before) + 150, "{before}\n{after}");
    let taken = run(world.folder(), &["train", "--model", &model, "--data", "better.set", "--out", "better"]).await;
    assert!(!taken.unwrap().success, "a model folder that is there was written over");
}

#[tokio::test]
async fn the_settings_in_force_decide_in_a_back_test_what_they_decided_and_others_are_shown_beside_them() {
    // Busy for a moment, with a cap on what goes up and a share that is drawn: every decision has something to decide.
    for policy in ["earliest-finish", "paper"] {
        let plan = WorldPlan::leaves(1)
            .set(&format!("recognizer.policy.name={policy}"))
            .set("recognizer.policy.load.queue_high_s=0.05")
            .set("recognizer.policy.load.queue_low_s=0.01")
            .set("recognizer.verify.max_share_ratio=0.3");
        let world = TestWorld::start_with_workers(plan).await.unwrap();
        let site = world.site(0).name.clone();
        let mut publishing = Vec::new();
        for (number, picture) in pictures().unwrap().iter().enumerate() {
            let bytes =
                if number % 3 == 0 { vision::enlarged(&picture.bytes, 400).unwrap() } else { picture.bytes.to_vec() };
            let (bus, site, truth) = (world.bus(0).clone(), site.clone(), picture.truth.clone());
            publishing.push(tokio::spawn(async move { publish(&bus, &site, &bytes, &[(HEADER_LABEL, &truth)]).await }));
        }
        let mut redirected = 0;
        let count = publishing.len() as u64;
        for task in publishing {
            redirected += u64::from(answered(&world, task.await.unwrap()).await.route == Route::Redirected);
        }
        std::fs::write(world.folder().join("strict.toml"), "min_confidence_ratio = 0.95\n").unwrap();
        std::fs::write(world.folder().join("none.toml"), "min_confidense_ratio = 0.95\n").unwrap();
        let played =
            done_json(&world, &["backtest", "--policy", policy, "--policy", "edge-only", "--gate", "strict.toml"])
                .await;
        let rows = played["played"].as_array().unwrap();
        let row = |number: usize, field: &str| rows[number][field].as_f64().unwrap();
        assert_eq!((row(0, "tasks"), row(1, "tasks")), (count as f64, count as f64), "{played}");
        assert_eq!(row(1, "otherwise"), 0.0, "{policy} decided otherwise than it did: {played}");
        for field in ["local", "redirected", "verified", "kept", "up_bytes"] {
            assert_eq!(row(0, field), row(1, field), "{policy}: {field}: {played}");
        }
        assert_eq!(row(0, "redirected") as u64, redirected);
        assert!((row(0, "right_ratio") - row(1, "right_ratio")).abs() < 1e-9, "{played}");
        assert_eq!(row(2, "up_bytes"), 0.0, "edge-only sends nothing up: {played}");
        assert!(row(3, "doubtful") > row(1, "doubtful"), "a stricter gate doubts more: {played}");
        let refused = at(&world, &["backtest", "--gate", "none.toml"]).await;
        assert!(!refused.success && refused.err.contains("min_confidense_ratio"), "{}", refused.err);
        let unknown = at(&world, &["backtest", "--policy", "papper"]).await;
        assert!(!unknown.success && unknown.err.contains("is not a file"), "{}", unknown.err);
    }
}
