//! Answers for cameras, on real servers: reuse for pictures like the one before, states with hysteresis, and pictures with
//! faults. A client publishes with the headers of whoever takes the pictures.

use harness::pictures::{TestPicture, nth_picture, pictures};
use harness::program::run;
use harness::{TestWorld, WorldPlan, until};
use schemas::task::{HEADER_CAPTURED_AT, HEADER_LABEL, HEADER_PICTURE, HEADER_STATES, HEADER_THUMBNAIL};
use schemas::{Answer, CameraName, PictureFault, Reason, RegionState, ReuseReport, Route, TaskId, decode};
use streams::{Publication, Publisher, fleet, reader, subject, topology};
use vision::thumbnail::Thumbnail;

use crate::common::{PATIENCE, answered, publish};
use crate::deploy::{get, listens_at};

/// Two pictures of which the edge's model is sure, with different labels.
fn two_pictures() -> [&'static TestPicture; 2] {
    let one = nth_picture(true, 0).unwrap();
    let other = pictures().unwrap().iter().find(|picture| picture.confident && picture.light.label != one.light.label);
    [one, other.unwrap()]
}

/// A thumbnail of one gray, in a header.
fn thumbnail(gray: u8) -> String {
    Thumbnail::from_gray(&[gray; 40 * 30], 40, 40, 30).unwrap().header()
}

async fn publish_from(world: &TestWorld, camera: &str, bytes: &[u8]) -> TaskId {
    let (task, camera) = (TaskId::new_random(), camera.parse::<CameraName>().unwrap());
    let subject = subject::image(&world.site(0).name, &camera);
    let publication = Publication::with_id(subject, bytes.to_vec(), task.to_string());
    let publication = publication.header(HEADER_THUMBNAIL, thumbnail(100));
    Publisher::new(world.bus(0).clone(), PATIENCE).publish(&publication).await.unwrap();
    task
}

/// Publishes a picture and waits for its answer.
async fn ask(world: &TestWorld, picture: &TestPicture, headers: &[(&'static str, &str)]) -> Answer {
    let task = publish(world.bus(0), &world.site(0).name, &picture.bytes, headers).await;
    answered(world, task).await
}

async fn reuse_report(world: &TestWorld) -> anyhow::Result<Option<ReuseReport>> {
    let beats = fleet::live_workers(world.bus(0)).await?;
    Ok(beats.into_iter().find_map(|beat| beat.decision?.reuse))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_like_the_one_before_gets_its_answer_and_wrong_ones_are_found_and_tighten() {
    let plan = WorldPlan::default()
        .set("recognizer.reuse.cameras.cam-1.enabled=true")
        .set("recognizer.reuse.max_in_a_row=3")
        .set("recognizer.reuse.check_every=5")
        .set("metrics.listen=\"127.0.0.1:0\"");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let world = world;
    let [one, other] = two_pictures();
    let still = thumbnail(100);
    let header: &[_] = &[(HEADER_THUMBNAIL, still.as_str())];

    let mut recognized: Vec<(Answer, u32)> = Vec::new();
    for number in 0..26 {
        let answer = ask(&world, one, header).await;
        assert_eq!((answer.route, answer.reason), (Route::Edge, Reason::Confident), "{number}: {answer:?}");
        assert_eq!(answer.label.as_deref(), Some(one.light.label.as_str()));
        match answer.reused {
            None => {
                assert!(answer.timings.infer_us > 0 && answer.decided.is_some());
                recognized.push((answer, 0));
            }
            Some(of) => {
                let (before, in_a_row) = recognized.iter_mut().rfind(|(before, _)| before.task == of).unwrap();
                assert_eq!(answer.prediction(), before.prediction(), "{number}");
                assert_eq!((answer.timings.decode_us, answer.timings.infer_us), (0, 0), "nothing was done for it");
                *in_a_row += 1;
                assert!(*in_a_row <= 3, "{number}");
            }
        }
    }
    assert!(recognized.len() <= 16, "{} of 26 were recognized", recognized.len());
    let report = until("checks in the heartbeat", PATIENCE, async || {
        Ok(reuse_report(&world).await?.filter(|report| report.reused == 26 - recognized.len() as u64))
    });
    let report = report.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    // Those that could not be compared, because the answer before was only just stored, do not count.
    assert!((1..=5).contains(&report.checked) && report.wrong == 0, "{report:?}");

    // A picture that moved, a camera that is not in the settings, and one with faults.
    let moved = thumbnail(140);
    assert_eq!(ask(&world, one, &[(HEADER_THUMBNAIL, &moved)]).await.reused, None);
    for _ in 0..3 {
        let task = publish_from(&world, "cam-2", &one.bytes).await;
        assert_eq!(answered(&world, task).await.reused, None, "off where nobody asked for it");
    }
    ask(&world, one, header).await;
    let covered = r#"{"brightness_ratio":0.5,"contrast_ratio":0,"white_ratio":0,"faults":["covered"]}"#;
    let faulty = ask(&world, one, &[(HEADER_PICTURE, covered), (HEADER_THUMBNAIL, &still)]).await;
    assert_eq!((faulty.reused, faulty.reason), (None, Reason::Confident));
    assert_eq!(ask(&world, one, header).await.reused, None, "the one before was no reference");
    let unreadable = ask(&world, one, &[(HEADER_THUMBNAIL, "a picture")]).await;
    assert!(unreadable.notes.iter().any(|note| note.contains(HEADER_THUMBNAIL)), "{unreadable:?}");

    // Without a header the picture itself is compared once it is decoded.
    let by_pixels = until("an answer reused by the decoded picture", PATIENCE, async || {
        Ok(Some(ask(&world, one, &[]).await).filter(|answer| answer.reused.is_some()))
    });
    let by_pixels = by_pixels.await.unwrap();
    assert_eq!((by_pixels.label.as_deref(), by_pixels.timings.infer_us), (Some(one.light.label.as_str()), 0));

    // Another thing, and the thumbnail does not show it.
    ask(&world, one, header).await;
    let (mut misled, mut asked) = (0, 0);
    let tightened = loop {
        let answer = ask(&world, other, header).await;
        asked += 1;
        misled += u32::from(answer.label.as_deref() != Some(other.light.label.as_str()));
        if answer.reused.is_none() {
            // The other thing is the reference now.
            ask(&world, one, header).await;
        }
        let report = reuse_report(&world).await.unwrap().unwrap();
        if let Some(camera) = report.cameras.iter().find(|camera| camera.is_tightened) {
            break camera.clone();
        }
        assert!(asked < 200, "{report:?}");
    };
    assert!(misled > 0, "nothing was wrong");
    assert_eq!((tightened.camera.as_str(), tightened.max_difference <= 2.0), ("cam-1", true), "{tightened:?}");
    assert!(tightened.wrong > 0, "{tightened:?}");
    let mut words = vec!["status".to_owned()];
    words.extend(world.at(0));
    let status = run(world.folder(), &words).await.unwrap().out;
    let line =
        status.lines().find(|line| line.trim_start().starts_with("reuse ")).unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains("answers reused") && line.contains("cam-1: tightened to"), "{line}");
    let address = listens_at(&world.workers["recognizer"].log()).unwrap();
    let (_, metrics) = get(&address, "/metrics").await.unwrap();
    let count = |name: &str| {
        let name = format!("tributary_{name}_total{{site=\"{}\"}} ", world.site(0).name);
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    assert!(count("reused") > Some(10) && count("reuse_checked") > Some(1), "{metrics}");
    assert!(count("reuse_wrong") >= Some(tightened.wrong), "{metrics}");
}

async fn stored_state(world: &TestWorld) -> anyhow::Result<Option<RegionState>> {
    let slot = subject::camera_state(&world.site(0).name, &"cam-1".parse()?);
    let message = reader::last_message(world.bus(0), topology::CAMERAS, &slot).await?;
    Ok(message.map(|message| decode(&message.payload)).transpose()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_changes_after_two_answers_is_published_and_survives_a_restart() {
    // Doubtful answers are final, for there is no cloud.
    let plan = WorldPlan::default().set("recognizer.policy.name=edge-only");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    let [one, other] = two_pictures();
    let doubtful = nth_picture(false, 0).unwrap();
    let (open, closed) = (one.light.label.as_str(), other.light.label.as_str());
    let states = format!("{open},{closed}");
    let mut taken_at_ms = 1_763_942_400_000_u64;
    let mut see = async |world: &TestWorld, picture: &TestPicture| {
        taken_at_ms += 1000;
        let at = taken_at_ms.to_string();
        let answer = ask(world, picture, &[(HEADER_STATES, &states), (HEADER_CAPTURED_AT, &at)]).await;
        (answer.state.clone(), answer.since_ms, taken_at_ms)
    };
    let (first, since, first_at) = see(&world, one).await;
    assert_eq!((first, since), (None, None), "one answer is no state");
    let (state, since, _) = see(&world, one).await;
    assert_eq!((state.as_deref(), since), (Some(open), Some(first_at)));
    for picture in [other, one, other, doubtful] {
        let (state, since, _) = see(&world, picture).await;
        assert_eq!((state.as_deref(), since), (Some(open), Some(first_at)), "it flickers");
    }
    let (state, since, now) = see(&world, other).await;
    let changed_at = now - 2000;
    assert_eq!((state.as_deref(), since), (Some(closed), Some(changed_at)), "a doubtful one between does not matter");
    let stored = until("the change is stored", PATIENCE, async || {
        Ok(stored_state(&world).await?.filter(|stored| stored.state == closed))
    });
    let stored = stored.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert_eq!((stored.since_ms, stored.before.as_deref()), (changed_at, Some(open)));
    let plain = ask(&world, one, &[]).await;
    assert_eq!((plain.state, plain.since_ms), (None, None), "without states there is none");

    world.worker_mut("recognizer").unwrap().restart().unwrap();
    let (state, since, back_at) = see(&world, one).await;
    assert_eq!((state.as_deref(), since), (Some(closed), Some(changed_at)), "known from before");
    let (state, since, _) = see(&world, one).await;
    assert_eq!((state.as_deref(), since), (Some(open), Some(back_at)));

    // A second recognizer takes some of the images, and knows what the first one found.
    until("the change is stored", PATIENCE, async || {
        Ok(stored_state(&world).await?.filter(|stored| stored.since_ms == back_at).map(drop))
    })
    .await
    .unwrap();
    world.recognizer("second", 0).unwrap();
    world.all_started().await.unwrap();
    for _ in 0..8 {
        let (state, since, _) = see(&world, one).await;
        assert_eq!((state.as_deref(), since), (Some(open), Some(back_at)));
    }
    until("both know the other state", PATIENCE, async || {
        for _ in 0..3 {
            see(&world, other).await;
        }
        let mut known = Vec::new();
        for _ in 0..6 {
            known.push(see(&world, other).await.0);
        }
        Ok(known.iter().all(|state| state.as_deref() == Some(closed)).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_with_faults_is_marked_stays_at_the_site_and_teaches_nothing() {
    let plan =
        WorldPlan::default().set("trainer.collect.min_new_images=1000").set("trainer.collect.min_verdict_ratio=0");
    let mut world = TestWorld::start_with_workers(plan).await.unwrap();
    world.trainer("trainer", 0).unwrap();
    let [one, other] = two_pictures();
    let blurred = r#"{"brightness_ratio":0.5,"contrast_ratio":0.1,"white_ratio":0,"faults":["blurred","of_later"]}"#;
    for number in 0..4 {
        let picture = nth_picture(false, number).unwrap();
        let answer = ask(&world, picture, &[(HEADER_PICTURE, blurred), (HEADER_LABEL, &picture.truth)]).await;
        assert_eq!((answer.route, answer.reason), (Route::Edge, Reason::NotVerified), "{answer:?}");
        let faults = answer.picture.unwrap().faults;
        assert!(faults[0] == PictureFault::Blurred && faults[1].as_str() == "of_later", "{faults:?}");
    }
    let sure = ask(&world, one, &[(HEADER_PICTURE, blurred), (HEADER_LABEL, &one.truth)]).await;
    assert_eq!((sure.route, sure.reason, sure.has_healthy_picture()), (Route::Edge, Reason::Confident, false));
    assert_eq!(reader::stream_level(&world.cloud, topology::VERIFY).await.unwrap().last_sequence, 0, "nothing went up");

    // The same picture from a camera without faults goes up, and is learned from.
    let healthy = r#"{"brightness_ratio":0.5,"contrast_ratio":0.1,"white_ratio":0}"#;
    let verified = ask(&world, nth_picture(false, 0).unwrap(), &[(HEADER_PICTURE, healthy)]).await;
    assert_eq!((verified.route, verified.has_healthy_picture()), (Route::Verified, true), "{verified:?}");
    for picture in [one, other] {
        ask(&world, picture, &[(HEADER_PICTURE, healthy), (HEADER_LABEL, &picture.truth)]).await;
    }
    // Collected in the order of the stream: those with faults were read before.
    let labelled = async || {
        let beats = fleet::live_workers(world.bus(0)).await?;
        anyhow::Ok(beats.into_iter().find_map(|beat| beat.training).map(|training| training.labelled))
    };
    let known = until("the trainer knows the healthy ones", PATIENCE, async || {
        Ok(labelled().await?.filter(|count| *count >= 3))
    });
    assert_eq!(known.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails())), 3);
}
