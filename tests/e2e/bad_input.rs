//! Images that are none, headers that lie, models that do not fit, streams that are full: each is
//! refused by name, and whoever comes next is served as if nothing had been.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::pictures::{LIGHT, first_picture, nth_picture};
use harness::program::{fixture, root};
use harness::{TestWorld, WorldPlan, odd_images, run, until};
use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::task::{
    HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_DEADLINE, HEADER_LABEL, HEADER_PRIORITY, HEADER_TASK, HEADER_TILE,
};
use schemas::{BlobRef, DeadLetter, Reason, Route, TaskId, decode};
use streams::reader::{self, StreamRange};
use streams::topology::StreamSettings;
use streams::{Blobs, Bus, CarryError, Publication, Publisher, topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::common::{PATIENCE, answered, outcome, publish, publish_as};

/// An answer to a good image takes a few milliseconds; this long means that something was stuck.
const WITHOUT_DELAY: Duration = Duration::from_secs(3);

async fn letters(bus: &Bus) -> Vec<DeadLetter> {
    let level = reader::stream_level(bus, topology::DEAD).await.unwrap();
    let mut letters = Vec::new();
    if level.messages > 0 {
        let all = reader::read_range(bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record| {
            letters.push(decode::<DeadLetter>(&record.payload).unwrap());
        });
        all.await.unwrap();
    }
    letters
}

/// The dead letter on a subject, as soon as there is one.
async fn letter(bus: &Bus, is: impl Fn(&DeadLetter) -> bool) -> DeadLetter {
    let found = until("a dead letter", PATIENCE, async || Ok(letters(bus).await.into_iter().find(&is))).await;
    found.unwrap()
}

fn vision_testdata(name: &str) -> Vec<u8> {
    fs::read(root().join("workers/lib/vision/testdata").join(name)).unwrap()
}

/// A site without a cloud, and a recognizer.
async fn small_world() -> TestWorld {
    let mut world = TestWorld::start(WorldPlan::default().set("recognizer.verify.enabled=false")).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.all_started().await.unwrap();
    world
}

/// A good image is answered at once, by the very process that was there at first.
async fn serves_on(world: &mut TestWorld, after: &str) {
    let asked_at = Instant::now();
    let task = publish(world.bus(0), &world.site(0).name, &first_picture(true).unwrap().bytes, &[]).await;
    assert_eq!(answered(world, task).await.route, Route::Edge, "after {after}");
    assert!(asked_at.elapsed() < WITHOUT_DELAY, "after {after} a good image took {:?}", asked_at.elapsed());
    let worker = world.worker_mut("recognizer").unwrap();
    assert_eq!(worker.ended().unwrap(), None, "the recognizer died of {after}: {}", worker.log());
}

/// Publishes something bad and checks its tombstone, its dead letter and its worker.
async fn dies_of(world: &mut TestWorld, what: &str, bytes: &[u8], headers: &[(&'static str, &str)], fault: &str) {
    let site = world.site(0).name.clone();
    let task = TaskId::new_random();
    publish_as(world.bus(0), &site, task, bytes, headers).await.unwrap();
    serves_on(world, what).await;
    let answer = answered(world, task).await;
    let note = answer.fault.clone().unwrap_or_else(|| panic!("{what}: {answer:?}"));
    assert_eq!((answer.route, answer.reason, note.kind.as_str()), (Route::Dead, Reason::GivenUp, fault), "{what}");
    assert!(answer.label.is_none(), "{what}: a tombstone says nothing about the image");
    let letter = letter(world.bus(0), |letter| letter.task == Some(task)).await;
    assert_eq!((letter.fault.kind.as_str(), letter.role.as_str()), (fault, "recognizer"), "{what}");
    assert!(!letter.fault.reason.is_empty() && !letter.fault.remedy.is_empty(), "{what}: {:?}", letter.fault);
    assert_eq!(letter.payload, bytes, "{what}: the letter must hold the message whole");
}

#[tokio::test]
async fn an_image_that_is_none_becomes_a_dead_letter_by_name_and_the_next_is_served() {
    let mut world = small_world().await;
    let jpeg = vision_testdata("grey_progressive.jpg");
    let png = &first_picture(true).unwrap().bytes;
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("nothing", Vec::new(), "image_empty"),
        ("a JPEG that was cut off", jpeg[..jpeg.len() / 2].to_vec(), "image_truncated"),
        ("a PNG that was cut off", png[..png.len() / 2].to_vec(), "image_truncated"),
        ("a text", b"I am a picture".to_vec(), "image_unknown_format"),
        ("a JPEG header of 60000x60000", odd_images::jpeg_saying(&jpeg, 60_000, 60_000), "image_side_too_long"),
        ("a PNG of 20000x20000", odd_images::png_bomb(20_000), "image_side_too_long"),
        ("a PNG of 16000x16000", odd_images::png_bomb(16_000), "image_too_many_pixels"),
        ("zeros", vec![0; 1024 * 1024], "image_unknown_format"),
    ];
    for (what, bytes, fault) in cases {
        dies_of(&mut world, what, &bytes, &[], fault).await;
    }
}

#[tokio::test]
async fn an_unusual_image_is_answered_like_any_other() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    let mut padded = first_picture(true).unwrap().bytes.to_vec();
    padded.resize(300_000, 0);
    for (what, bytes) in [
        ("an animated GIF", odd_images::animated_gif()),
        ("an animated WebP", vision_testdata("animated.webp")),
        ("a CMYK JPEG", vision_testdata("cmyk.jpg")),
        ("a progressive grey JPEG", vision_testdata("grey_progressive.jpg")),
        ("a turned TIFF", vision_testdata("orientation6.tif")),
        ("a PNG with a palette and alpha", vision_testdata("palette_alpha.png")),
        ("a PNG of 5000x5000", odd_images::png_bomb(5000)),
        ("a PNG with zeros behind it", padded),
    ] {
        let task = publish(world.bus(0), &site, &bytes, &[]).await;
        let answer = answered(&world, task).await;
        assert_eq!(answer.route, Route::Edge, "{what}: {:?}", answer.fault);
    }
    serves_on(&mut world, "all of them").await;
}

#[tokio::test]
async fn a_header_that_cannot_be_read_becomes_a_dead_letter_by_name() {
    let mut world = small_world().await;
    let huge_blob = format!("{}:{}", "a".repeat(64), u64::MAX);
    for (header, text) in [
        (HEADER_TILE, "a b c"),
        (HEADER_TASK, "not a task"),
        (HEADER_BLOB, "nonsense"),
        (HEADER_BLOB, huge_blob.as_str()),
    ] {
        let site = world.site(0).name.clone();
        let bytes = if header == HEADER_BLOB { &b""[..] } else { &first_picture(true).unwrap().bytes[..] };
        let task = TaskId::new_random();
        publish_as(world.bus(0), &site, task, bytes, &[(header, text)]).await.unwrap();
        serves_on(&mut world, header).await;
        let letter = letter(world.bus(0), |letter| letter.headers.get("Nats-Msg-Id") == Some(&task.to_string())).await;
        assert_eq!(letter.fault.kind.as_str(), "header_unreadable", "{header}: {text:.30}");
        assert!(letter.fault.reason.contains(header), "{header}: {}", letter.fault.reason);
        let slot = outcome(world.bus(0), &site, letter.task.unwrap()).await.unwrap();
        assert_eq!(slot.route, Route::Dead, "{header}");
    }
}

#[tokio::test]
async fn what_an_image_may_do_without_costs_itself_and_is_noted_in_the_answer() {
    let world = small_world().await;
    let site = world.site(0).name.clone();
    let long = "x".repeat(5000);
    let picture = &first_picture(true).unwrap().bytes;
    for (header, text) in [
        (HEADER_PRIORITY, "10"),
        (HEADER_PRIORITY, "urgent"),
        (HEADER_DEADLINE, "-5"),
        (HEADER_CAPTURED_AT, "yesterday"),
        (HEADER_LABEL, long.as_str()),
    ] {
        let task = publish(world.bus(0), &site, picture, &[(header, text)]).await;
        let answer = answered(&world, task).await;
        assert_eq!(answer.route, Route::Edge, "{header}: {:?}", answer.fault);
        assert!(answer.notes.iter().any(|note| note.contains(header)), "{header}: {:?}", answer.notes);
    }
    // Junk before a JPEG, as a stream that is split at the wrong byte has it.
    let mut jpeg = b"\r\n".to_vec();
    jpeg.extend(std::fs::read(harness::program::fixture("images/field/jpeg-whole.jpg")).unwrap());
    let task = publish(world.bus(0), &site, &jpeg, &[]).await;
    let answer = answered(&world, task).await;
    assert_eq!((answer.route, answer.notes), (Route::Edge, vec!["2 bytes before the JPEG were skipped".to_owned()]));
}

#[tokio::test]
async fn a_reference_that_lies_becomes_a_dead_letter_by_name() {
    let mut world = small_world().await;
    let picture = &first_picture(true).unwrap().bytes;
    let blobs = Blobs::open(world.bus(0)).await.unwrap();
    let good = blobs.store_blob(picture).await.unwrap();
    let missing = BlobRef::new([7; 32], 100);
    let lying = |size_bytes: u64| BlobRef { size_bytes, ..good.clone() }.to_string();
    dies_of(&mut world, "a blob that is not there", b"", &[(HEADER_BLOB, &missing.to_string())], "blob_bad").await;
    dies_of(&mut world, "a size too small", b"", &[(HEADER_BLOB, &lying(good.size_bytes - 1))], "blob_bad").await;
    dies_of(&mut world, "a size too large", b"", &[(HEADER_BLOB, &lying(good.size_bytes + 1))], "blob_bad").await;
    dies_of(&mut world, "no size", b"", &[(HEADER_BLOB, &lying(0))], "image_empty").await;
    dies_of(&mut world, "bytes and a blob", picture, &[(HEADER_BLOB, &good.to_string())], "image_ambiguous").await;
    // The same key, other bytes of the same length: only the hash can tell.
    let mut altered = picture.to_vec();
    altered[40] ^= 1;
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let bucket = async_nats::jetstream::new(client).get_object_store(topology::BLOBS).await.unwrap();
    bucket.put(good.key.as_str(), &mut altered.as_slice()).await.unwrap();
    dies_of(&mut world, "an altered blob", b"", &[(HEADER_BLOB, &good.to_string())], "blob_bad").await;
}

#[tokio::test]
async fn a_publisher_hears_at_once_of_a_message_that_is_too_large() {
    let mut world = small_world().await;
    let site = world.site(0).name.clone();
    for size_bytes in [100_000_000, MAX_MESSAGE_BYTES + 1] {
        let refused = publish_as(world.bus(0), &site, TaskId::new_random(), &vec![0; size_bytes], &[]).await;
        assert!(matches!(refused, Err(CarryError::TooLarge { .. })), "{size_bytes}: {refused:?}");
    }
    // A client that does not look at the limit is shown the door by the server.
    let address = world.site(0).server.url();
    let mut raw = tokio::net::TcpStream::connect(address.trim_start_matches("nats://")).await.unwrap();
    let head = format!("CONNECT {{\"verbose\":false}}\r\nPUB image.{site}.cam-1 100000000\r\n");
    raw.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let megabyte = vec![0; 1_000_000];
    let (mut from, mut to) = raw.split();
    let write = async {
        for _ in 0..100 {
            if to.write_all(&megabyte).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    let read = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            _ = from.read_to_end(&mut said) => {}
            () = write => {}
        }
    });
    read.await.expect("the server ends the connection");
    serves_on(&mut world, "100 MB").await;
    assert_eq!(letters(world.bus(0)).await.len(), 0);
}

#[tokio::test]
async fn a_subject_that_nobody_takes_is_an_error_at_the_publisher() {
    let mut world = small_world().await;
    let publisher = Publisher::new(world.bus(0).clone(), Duration::from_secs(1));
    let picture = first_picture(true).unwrap().bytes.clone();
    for subject in ["images.site-1.cam-1", "Image.site-1.cam-1", "site-1.cam-1"] {
        let publication = Publication::with_id(subject.into(), picture.clone(), TaskId::new_random().to_string());
        let refused = publisher.publish(&publication).await;
        assert!(matches!(refused, Err(CarryError::NoStream { .. })), "{subject}: {refused:?}");
    }
    serves_on(&mut world, "subjects of nobody").await;
}

#[tokio::test]
async fn a_camera_whose_name_is_none_becomes_a_dead_letter() {
    let mut world = small_world().await;
    let publisher = Publisher::new(world.bus(0).clone(), Duration::from_secs(1));
    let picture = first_picture(true).unwrap().bytes.clone();
    for camera in ["küche", "cam$1", &"c".repeat(65), "*", ">"] {
        let subject = format!("image.site-1.{camera}");
        let publication = Publication::with_id(subject.clone(), picture.clone(), TaskId::new_random().to_string());
        // A wildcard is refused by the client or the server; what is stored nevertheless is given up.
        if publisher.publish(&publication).await.is_ok() {
            let letter = letter(world.bus(0), |letter| letter.subject == subject).await;
            assert_eq!(letter.fault.kind.as_str(), "subject_unknown", "{camera}");
        } else {
            assert!(["*", ">"].contains(&camera), "{camera} was refused");
        }
        serves_on(&mut world, camera).await;
    }
}

/// A copy of the light model with one file changed.
fn model(folder: &Path, change: impl Fn(&Path)) -> String {
    let copy = tempfile::tempdir_in(folder).unwrap().keep();
    for file in fs::read_dir(fixture(LIGHT)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    change(&copy);
    copy.display().to_string()
}

fn rewrite(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_by_name_before_anything_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let toml = |from: &'static str, to: &'static str| {
        model(folder.path(), move |copy| rewrite(&copy.join("model.toml"), from, to))
    };
    let cases = [
        ("a key is missing", toml("width_px = 28", ""), "width_px"),
        ("a key has a slip", toml("height_px", "heigth_px"), "heigth_px"),
        ("another shape", toml("width_px = 28", "width_px = 32"), "32"),
        ("another output", toml("name = \"logits\"", "name = \"scores\""), "scores"),
        ("a layout of nobody", toml("\"nchw\"", "\"nwhc\""), "nwhc"),
        ("a label too few", model(folder.path(), |copy| rewrite(&copy.join("labels.txt"), "bag\n", "")), "labels"),
        ("no graph", model(folder.path(), |copy| fs::remove_file(copy.join("graph.onnx")).unwrap()), "no ONNX file"),
        (
            "a graph that is none",
            model(folder.path(), |copy| fs::write(copy.join("graph.onnx"), "?").unwrap()),
            "graph.onnx",
        ),
        ("an empty folder", tempfile::tempdir_in(folder.path()).unwrap().keep().display().to_string(), "model"),
        ("no folder", folder.path().join("nowhere").display().to_string(), "nowhere"),
    ];
    for (what, path, named) in &cases {
        for command in [&["model", "check", path.as_str()][..], &["recognizer", "--model", path.as_str()]] {
            let ended = run(folder.path(), command).await.unwrap();
            assert!(!ended.success, "{what}: {command:?} took it");
            assert!(ended.err.contains(named), "{what}: {command:?} says nothing of {named}:\n{}", ended.err);
        }
    }
}

#[tokio::test]
async fn a_full_stream_refuses_at_the_publisher_and_loses_nothing_it_took() {
    let streams = StreamSettings { images_max_mib: 1, ack_wait_s: 2, ..StreamSettings::default() };
    let plan = WorldPlan { streams, ..WorldPlan::default() }.set("recognizer.verify.enabled=false");
    let mut world = TestWorld::start(plan).await.unwrap();
    let site = world.site(0).name.clone();
    // Pads a picture so that fifty of them fill the stream.
    let image = |number: usize| {
        let mut bytes = nth_picture(true, number).unwrap().bytes.to_vec();
        bytes.resize(20_000, 0);
        bytes
    };
    let mut taken = Vec::new();
    let fill = async |taken: &mut Vec<TaskId>, bus: &Bus| {
        for number in 0..500 {
            let task = TaskId::new_random();
            match publish_as(bus, &site, task, &image(number), &[]).await {
                Ok(_) => taken.push(task),
                Err(CarryError::Full { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the stream was never full");
    };
    fill(&mut taken, world.bus(0)).await;
    assert!((30..60).contains(&taken.len()), "{} fitted into 1 MiB", taken.len());
    let at_first = taken.len();

    // A person makes room.
    let apply = ["setup", "--both", "--apply", "--set", "streams.images_max_mib=2"].map(str::to_owned);
    let applied = run(world.folder(), &[&apply[..], &world.at(0)].concat()).await.unwrap();
    assert!(applied.success, "{}", applied.err);
    fill(&mut taken, world.bus(0)).await;
    assert!(taken.len() >= at_first * 3 / 2, "only {} more fitted", taken.len() - at_first);

    // Workers make room by themselves.
    world.recognizer("recognizer", 0).unwrap();
    world.janitor("janitor", 0).unwrap();
    for task in &taken {
        assert_eq!(answered(&world, *task).await.route, Route::Edge, "task {task} was taken");
    }
    until("room again", PATIENCE, async || {
        let task = TaskId::new_random();
        let placed = publish_as(world.bus(0), &site, task, &image(0), &[]).await;
        if placed.is_ok() {
            taken.push(task);
        }
        Ok(placed.ok().map(|_| ()))
    })
    .await
    .unwrap();
    assert_eq!(answered(&world, *taken.last().unwrap()).await.route, Route::Edge);
}
