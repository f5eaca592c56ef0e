//! Publishes to real nats-servers, each with its own port and folder.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use publish::{
    AcknowledgedTask, CameraNaming, ImageSource, JournalLocation, PublishFailure, PublishOptions, PublishSummary,
    PublisherSettings, TileSettings, publish_images,
};
use runtime::Shutdown;
use schemas::limits::{MAX_EMBEDDED_BYTES, MAX_IMAGE_BYTES};
use schemas::task::StorageStamp;
use schemas::{SiteName, Task};
use streams::reader::{self, StoredMessage};
use streams::server::{ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, IMAGES, PlanScope, RepairMode, StreamSettings};
use streams::{Blobs, Bus, NatsSettings, PublishOutcome, subject};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

struct PublishWorld {
    bus: Bus,
    site: SiteName,
    cameras: CameraNaming,
    server: Server,
    folder: tempfile::TempDir,
}

impl PublishWorld {
    async fn new(streams: StreamSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            encryption_key: None,
            program: None,
            store: folder.path().join("store"),
            name: "test".into(),
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
        let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await.unwrap().unwrap();
        let nats = NatsSettings { url: server.url(), ..NatsSettings::default() };
        let bus = Bus::connect(&nats, "test").await.unwrap();
        let (site, cameras) = ("reef".parse().unwrap(), CameraNaming::One("cam1".parse().unwrap()));
        let world = Self { bus, site, cameras, server, folder };
        world.set_up(streams).await;
        fs::create_dir_all(world.images()).unwrap();
        world
    }

    async fn set_up(&self, streams: StreamSettings) {
        let plan = topology::plan_topology(&PlanScope::Site(self.site.clone()), &streams);
        topology::apply_plan(&self.bus, &plan, RepairMode::Everything).await.unwrap();
    }

    fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.images().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn write_many(&self, count: usize) {
        for number in 0..count {
            self.write(&format!("{:02}/{number:04}.png", number % 7), format!("image {number}").as_bytes());
        }
    }

    fn source(&self) -> ImageSource {
        ImageSource::Paths(vec![self.images()])
    }

    fn journalled(&self) -> PublishOptions {
        let place = JournalLocation { folder: self.folder.path().join("state"), server: "same".into() };
        PublishOptions { journal: Some(place), ..PublishOptions::default() }
    }

    async fn publish(&self, source: ImageSource, options: PublishOptions) -> Result<PublishSummary, PublishFailure> {
        self.publish_with(source, &PublisherSettings::default(), options, &Shutdown::default()).await
    }

    async fn publish_with(
        &self,
        source: ImageSource,
        settings: &PublisherSettings,
        options: PublishOptions,
        shutdown: &Shutdown,
    ) -> Result<PublishSummary, PublishFailure> {
        publish_images(&self.bus, &self.site, self.cameras.clone(), source, settings, options, shutdown).await
    }

    async fn messages(&self) -> u64 {
        reader::stream_level(&self.bus, IMAGES).await.unwrap().messages
    }

    async fn record(&self, sequence: u64) -> StoredMessage {
        reader::message_at(&self.bus, IMAGES, sequence).await.unwrap().unwrap()
    }

    async fn task(&self, sequence: u64) -> Task {
        let record = self.record(sequence).await;
        let (site, camera) = subject::read_image(&record.subject).unwrap();
        let stored = StorageStamp { site, camera, sequence, stored_at_ns: record.stored_at_ns };
        let headers = record.headers.clone();
        Task::from_headers(
            &stored,
            |name| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()),
            &record.payload,
        )
        .unwrap()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

/// Lets a run be moved to its own task.
fn spawnable<F: Future + Send>(future: F) -> F {
    future
}

/// A picture that can be made without a library.
fn bitmap(width_px: u32, height_px: u32) -> Vec<u8> {
    let row = (width_px * 3).next_multiple_of(4);
    let size = 54 + row * height_px;
    let mut bytes = b"BM".to_vec();
    for word in [size, 0, 54, 40, width_px, height_px, 1 | 24 << 16, 0, row * height_px, 2835, 2835, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend((0..row * height_px).map(|n| (n * 7 % 251) as u8));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_a_folder_again_adds_nothing() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(60);
    world.write("index.csv", b"file,label\n00/0000.png,ankle boot\n");
    let first = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((first.published, first.duplicates, first.refused_files), (60, 0, 0), "{first}");
    let with_journal = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((with_journal.published, with_journal.skipped), (0, 60), "{with_journal}");
    assert_eq!(world.messages().await, 60);
    // Without a journal they are stored again as the same tasks; recognizers answer each once.
    let without_journal = world.publish(world.source(), PublishOptions::default()).await.unwrap();
    assert_eq!(without_journal.published, 60, "{without_journal}");
    let mut tasks = std::collections::BTreeSet::new();
    for sequence in 1..=120 {
        tasks.insert(world.task(sequence).await.id);
    }
    assert_eq!(tasks.len(), 60);
    let mut labels = Vec::new();
    for sequence in 1..=60 {
        labels.extend(world.task(sequence).await.truth);
    }
    assert_eq!(labels, ["ankle boot"]);
    let again = PublishOptions { run_id: Some("2".into()), ..world.journalled() };
    assert_eq!(world.publish(world.source(), again).await.unwrap().published, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_a_new_task_and_the_others_are_skipped() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(5);
    world.publish(world.source(), world.journalled()).await.unwrap();
    world.write("00/0000.png", b"another picture");
    let second = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((second.published, second.skipped), (1, 4), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_resumes() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(200);
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..world.journalled() };
    let (shutdown, settings) = (Shutdown::default(), PublisherSettings { max_in_flight: 4, ..Default::default() });
    let listen = async {
        let mut count = 0;
        while told.recv().await.is_some() {
            count += 1;
            if count == 20 {
                shutdown.request();
            }
        }
        count
    };
    let run = world.publish_with(world.source(), &settings, options, &shutdown);
    let (first, heard) = within(async { tokio::join!(run, listen) }).await;
    let first = first.unwrap();
    assert!(first.interrupted && first.to_string().contains("run the same command again"), "{first}");
    assert!((20..=24).contains(&first.published), "only images in flight are finished: {first}");
    assert_eq!(first.published, heard);
    let second = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((second.skipped, second.published), (first.published, 200 - first.published), "{second}");
    assert_eq!((second.duplicates, world.messages().await), (0, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_stream_is_not_used() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(10);
    world.publish(world.source(), world.journalled()).await.unwrap();
    let anew = PublishWorld::new(StreamSettings::default()).await;
    let summary = anew.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((summary.published, summary.skipped), (10, 0), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_publishes_a_file_only_when_it_is_complete() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let old = world.write("old.png", b"it was here");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..world.journalled() };
    // Nothing settles during this test, so only completed files are published.
    let settings = PublisherSettings { settle_ms: 3_600_000, ..Default::default() };
    let shutdown = Shutdown::default();
    let watch = async {
        let next = |told: Option<AcknowledgedTask>| (told.as_ref().unwrap().path.clone(), told.unwrap().size_bytes);
        assert_eq!(next(told.recv().await), (old.clone(), 11), "existing files come first");
        let half = world.images().join("half.png");
        let mut file = fs::File::create(&half).unwrap();
        file.write_all(b"first half, ").unwrap();
        file.sync_all().unwrap();
        let whole = world.write("whole.png", b"whole");
        assert_eq!(next(told.recv().await), (whole, 5));
        // Events come in order, so that of the first half has been seen by now.
        file.write_all(b"second half").unwrap();
        drop(file);
        assert_eq!(next(told.recv().await), (half, 23));
        let elsewhere = world.folder.path().join("elsewhere.tmp");
        fs::write(&elsewhere, b"moved").unwrap();
        let moved = world.images().join("moved.jpg");
        fs::rename(&elsewhere, &moved).unwrap();
        assert_eq!(next(told.recv().await), (moved, 5));
        assert_eq!(world.messages().await, 4);
        shutdown.request();
    };
    let source = ImageSource::Watch(world.images());
    let run = world.publish_with(source.clone(), &settings, options, &shutdown);
    let (summary, ()) = within(spawnable(async { tokio::join!(run, watch) })).await;
    let summary = summary.unwrap();
    assert_eq!((summary.published, summary.interrupted), (4, false), "{summary}");
    assert_eq!(world.task(1).await.captured_at_ms, Some(1_000_000_000_000));
}

/// A picture that is complete according to its own format.
fn picture() -> Vec<u8> {
    field("jpeg-whole.jpg")
}

fn field(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/images/field");
    fs::read(folder.join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_is_one_complete_task() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let settings = PublisherSettings { settle_ms: 50, ..Default::default() };
    let shutdown = Shutdown::default();
    let whole = picture();
    let (first, rest) = whole.split_at(whole.len() / 2);
    let upload = async {
        let slow = world.images().join("slow.jpg");
        let mut file = fs::File::create(&slow).unwrap();
        file.write_all(first).unwrap();
        file.sync_all().unwrap();
        // Many times the wait for a file of unknown end.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(world.messages().await, 0);
        file.write_all(rest).unwrap();
        drop(file);
        assert_eq!(told.recv().await.unwrap().size_bytes, whole.len() as u64);
        let resumed = world.write("resumed.jpg", first);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(world.messages().await, 1);
        fs::OpenOptions::new().append(true).open(&resumed).unwrap().write_all(rest).unwrap();
        assert_eq!(told.recv().await.unwrap().size_bytes, whole.len() as u64);
        shutdown.request();
    };
    let run = world.publish_with(ImageSource::Watch(world.images()), &settings, options, &shutdown);
    let (summary, ()) = within(async { tokio::join!(run, upload) }).await;
    assert_eq!(summary.unwrap().published, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polled_folder_needs_no_system_events() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let settings = PublisherSettings { settle_ms: 50, poll_s: 1, ..Default::default() };
    let shutdown = Shutdown::default();
    world.write("before.jpg", &picture());
    let write = async {
        assert!(told.recv().await.unwrap().path.ends_with("before.jpg"));
        world.write("day/after.jpg", &picture());
        assert!(told.recv().await.unwrap().path.ends_with("day/after.jpg"));
        // Two more listings find nothing new.
        tokio::time::sleep(Duration::from_millis(2200)).await;
        shutdown.request();
    };
    let run = world.publish_with(ImageSource::Watch(world.images()), &settings, options, &shutdown);
    let (summary, ()) = within(async { tokio::join!(run, write) }).await;
    assert_eq!(summary.unwrap().published, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_folder_of_a_watched_one_is_watched_too() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let shutdown = Shutdown::default();
    world.write("first.jpg", &picture());
    let write = async {
        told.recv().await.unwrap();
        fs::write(elsewhere.path().join("there.jpg"), picture()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), world.images().join("nas")).unwrap();
        assert!(told.recv().await.unwrap().path.ends_with("nas/there.jpg"));
        fs::write(elsewhere.path().join("later.jpg"), picture()).unwrap();
        assert!(told.recv().await.unwrap().path.ends_with("nas/later.jpg"));
        shutdown.request();
    };
    let settings = PublisherSettings::default();
    let run = world.publish_with(ImageSource::Watch(world.images()), &settings, options, &shutdown);
    let (summary, ()) = within(async { tokio::join!(run, write) }).await;
    assert_eq!(summary.unwrap().published, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_name_cameras_and_other_files_are_counted() {
    let world =
        PublishWorld { cameras: CameraNaming::FromFolders, ..PublishWorld::new(StreamSettings::default()).await };
    for name in ["door/a.jpg", "Küche/2026-11-29/b", "Küche/@eaDir/b.jpg", "door/.c.jpg", "door/lastsnap.jpg"] {
        world.write(name, &picture());
    }
    world.write("door/index.csv", b"name;class\n1.png;boot\n");
    world.write("door/notes.heic", b"x");
    world.write("loose.jpg", &picture());
    let summary = world.publish(world.source(), PublishOptions::default()).await.unwrap();
    assert_eq!((summary.published, summary.refused_files), (2, 1), "{summary}");
    let text = summary.to_string();
    for word in [
        "1 .heic",
        "1 hidden",
        "lastsnap.*",
        "@eaDir",
        "without the columns",
        "folder \"Küche\" is published as camera K-che",
    ] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    let mut tasks = [world.task(1).await, world.task(2).await];
    tasks.sort_by_key(|task| task.camera.to_string());
    let named = |at: usize| (tasks[at].camera.as_str(), tasks[at].file.as_deref());
    assert_eq!(named(0), ("K-che", Some("images/Küche/2026-11-29/b")));
    assert_eq!(named(1), ("door", Some("images/door/a.jpg")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_document_is_a_numbered_task() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write("fax.tif", &field("tiff-three-pages.tif"));
    world.write("photo.jpg", &picture());
    let settings = PublisherSettings { pages: publish::PageSelection::All, ..Default::default() };
    let shutdown = Shutdown::default();
    let run = || world.publish_with(world.source(), &settings, PublishOptions::default(), &shutdown);
    for _ in 0..2 {
        let summary = within(run()).await.unwrap();
        assert_eq!((summary.published, summary.scans), (4, 1), "{summary}");
    }
    let (mut files, mut ids) = (Vec::new(), std::collections::BTreeSet::new());
    for sequence in 1..=8 {
        let task = world.task(sequence).await;
        ids.insert(task.id);
        files.extend(task.file);
    }
    assert_eq!(ids.len(), 4, "the same pages are the same tasks again");
    files.sort();
    files.dedup();
    let pages = [1, 2, 3].map(|number| format!("images/fax.tif, page {number}"));
    assert_eq!(files, [&pages[..], &["images/photo.jpg".to_owned()]].concat());
    let whole = world.publish(world.source(), PublishOptions::default()).await.unwrap();
    assert_eq!((whole.published, whole.scans), (2, 0), "without the option the file goes as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_folder_inside_a_watched_one_is_watched_too() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let settings = PublisherSettings { settle_ms: 50, ..Default::default() };
    let shutdown = Shutdown::default();
    let before = world.write("before.png", b"before");
    let watch = async {
        assert_eq!(told.recv().await.unwrap().path, before);
        let deep = world.write("a/b/c/deep.png", b"deep");
        assert_eq!(told.recv().await.unwrap().path, deep);
        let later = world.write("a/b/later.png", b"later");
        assert_eq!(told.recv().await.unwrap().path, later);
        shutdown.request();
    };
    let run = world.publish_with(ImageSource::Watch(world.images()), &settings, options, &shutdown);
    let (summary, ()) = within(async { tokio::join!(run, watch) }).await;
    assert_eq!(summary.unwrap().published, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_that_is_removed_ends_the_run() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write("a.png", b"a");
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let settings = PublisherSettings { settle_ms: 50, ..Default::default() };
    let shutdown = Shutdown::default();
    let remove = async {
        told.recv().await.unwrap();
        fs::remove_dir_all(world.images()).unwrap();
    };
    let run = world.publish_with(ImageSource::Watch(world.images()), &settings, options, &shutdown);
    let (ended, ()) = within(async { tokio::join!(run, remove) }).await;
    assert!(matches!(ended, Err(PublishFailure::Broken { .. })), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_is_cut_into_tiles_that_cover_it_and_name_their_place() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    const SIZE: (u32, u32) = (301, 203);
    world.write("scan.bmp", &bitmap(SIZE.0, SIZE.1));
    world.write("small.bmp", &bitmap(64, 64));
    let tile = TileSettings { tile_px: 64, overlap_px: 8, ..Default::default() };
    let settings = PublisherSettings { tile, ..Default::default() };
    let shutdown = Shutdown::default();
    let publish = || world.publish_with(world.source(), &settings, PublishOptions::default(), &shutdown);
    let summary = publish().await.unwrap();
    assert_eq!((summary.scans, summary.published), (1, world.messages().await), "{summary}");
    let (mut covered, mut scans, mut whole) = (vec![false; (SIZE.0 * SIZE.1) as usize], Vec::new(), 0);
    for sequence in 1..=summary.published {
        let Some(tile) = world.task(sequence).await.tile else {
            whole += 1;
            continue;
        };
        assert_eq!((tile.scan_width_px, tile.scan_height_px), SIZE);
        let (_, width_px, height_px) = vision::dimensions(&world.record(sequence).await.payload).unwrap();
        assert_eq!((tile.width_px, tile.height_px), (width_px, height_px));
        for y in tile.y_px..tile.y_px + tile.height_px {
            for x in tile.x_px..tile.x_px + tile.width_px {
                covered[(y * SIZE.0 + x) as usize] = true;
            }
        }
        scans.push(tile.scan);
    }
    scans.dedup();
    assert_eq!((whole, scans.len()), (1, 1), "the small image is whole, and all tiles name one scan");
    assert!(covered.iter().all(|covered| *covered), "tiles leave gaps");
    let again = publish().await.unwrap();
    assert_eq!(again.published, summary.published, "{again}");
    // Several are in flight at a time, so their order varies.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for sequence in 1..=summary.published {
        for (found, sequence) in [(&mut first, sequence), (&mut second, sequence + summary.published)] {
            let task = world.task(sequence).await;
            found.push((task.id, task.tile));
        }
    }
    for found in [&mut first, &mut second] {
        found.sort_by_key(|(id, _)| *id);
    }
    assert_eq!(first, second, "a tile is the same task again");
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_files_and_non_utf8_names_are_tasks_of_their_own() {
    use std::os::unix::ffi::OsStrExt;
    let world = PublishWorld::new(StreamSettings::default()).await;
    let path = world.images().join("snapshot.bmp");
    let (one, other) = (bitmap(20, 10), bitmap(20, 10).into_iter().rev().collect::<Vec<_>>());
    let write = |bytes: &[u8]| {
        world.write("snapshot.bmp", bytes);
        let then = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    };
    write(&one);
    assert_eq!(world.publish(world.source(), world.journalled()).await.unwrap().published, 1);
    write(&other);
    let replaced = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((replaced.published, replaced.skipped), (1, 0), "same size, same time, another picture: {replaced}");
    for name in [b"caf\xe9.bmp", b"caf\xe8.bmp"] {
        std::fs::write(world.images().join(std::ffi::OsStr::from_bytes(name)), &one).unwrap();
    }
    assert_eq!(world.publish(world.source(), world.journalled()).await.unwrap().published, 2);
    let again = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((again.published, again.skipped), (0, 3), "{again}");
    assert_ne!(world.task(3).await.id, world.task(4).await.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_damaged_is_refused_by_name() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let whole = bitmap(300, 200);
    world.write("cut-off.bmp", &whole[..whole.len() / 2]);
    world.write("good.bmp", &bitmap(30, 20));
    let tile = TileSettings { tile_px: 64, ..Default::default() };
    let settings = PublisherSettings { tile, ..Default::default() };
    let summary =
        world.publish_with(world.source(), &settings, PublishOptions::default(), &Shutdown::default()).await.unwrap();
    assert_eq!((summary.published, summary.scans, summary.refused_files), (1, 0, 1), "{summary}");
    assert!(summary.refused[0].file.ends_with("cut-off.bmp"), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_over_the_inline_limit_is_sent_by_reference() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let bytes: Vec<u8> = (0..MAX_EMBEDDED_BYTES + 1).map(|n| (n % 251) as u8).collect();
    world.write("just-fits.png", &bytes[1..]);
    world.write("large.png", &bytes);
    let settings = PublisherSettings { max_in_flight: 1, ..Default::default() };
    let summary =
        world.publish_with(world.source(), &settings, PublishOptions::default(), &Shutdown::default()).await.unwrap();
    assert_eq!(summary.published, 2, "{summary}");
    assert_eq!(world.record(1).await.payload.len(), MAX_EMBEDDED_BYTES);
    assert_eq!(world.record(2).await.payload.len(), 0);
    let blob = world.task(2).await.blob.unwrap();
    let fetched = Blobs::open(&world.bus).await.unwrap().fetch_blob(&blob, MAX_IMAGE_BYTES).await.unwrap();
    assert!(fetched == bytes, "other bytes came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_an_error_and_the_run_can_resume() {
    let streams = StreamSettings { images_max_mib: 1, ..StreamSettings::default() };
    let world = PublishWorld::new(streams.clone()).await;
    for number in 0..8 {
        world.write(&format!("{number}.png"), &[number; 300_000]);
    }
    let error = within(world.publish(world.source(), world.journalled())).await.unwrap_err();
    let PublishFailure::Full { summary, .. } = &error else { panic!("{error}") };
    assert_eq!((summary.published, world.messages().await), (3, 3), "{summary}");
    world.set_up(StreamSettings { images_max_mib: 16, ..streams }).await;
    let summary = world.publish(world.source(), world.journalled()).await.unwrap();
    assert_eq!((summary.published, summary.skipped, world.messages().await), (5, 3, 8), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_and_oversize_files_are_refused_and_the_others_published() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    let (empty, large) = (world.write("empty.png", b""), world.write("large.png", b""));
    fs::File::options().write(true).open(&large).unwrap().set_len(MAX_IMAGE_BYTES + 1).unwrap();
    let gone = Path::new("/nonexistent/gone.png").to_owned();
    let only_bad = ImageSource::Paths(vec![empty.clone(), large.clone(), gone.clone()]);
    let error = world.publish(only_bad, PublishOptions::default()).await.unwrap_err();
    let PublishFailure::Nothing { summary } = &error else { panic!("{error}") };
    let mut files: Vec<PathBuf> = summary.refused.iter().map(|refused| refused.file.clone().into()).collect();
    files.sort();
    assert_eq!(files, {
        let mut expected = vec![empty, large, gone];
        expected.sort();
        expected
    });
    world.write("good.png", b"good");
    let summary = world.publish(world.source(), PublishOptions::default()).await.unwrap();
    assert_eq!((summary.published, summary.refused_files), (1, 2), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_images_is_an_error_that_names_the_extensions() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write("notes.txt", b"no picture");
    let error = world.publish(world.source(), PublishOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("jpg"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generator_makes_a_new_task_each_time() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(3);
    let (acknowledged, mut told) = mpsc::channel(64);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let source = ImageSource::Generator {
        images: vec![world.images()],
        rate_per_s: 500.0,
        poisson: true,
        seed: 1,
        count: Some(50),
        duration: None,
    };
    let summary = within(world.publish(source, options)).await.unwrap();
    assert_eq!((summary.published, world.messages().await), (50, 50), "{summary}");
    let mut tasks = Vec::new();
    while let Some(one) = told.recv().await {
        assert!(matches!(one.placed, PublishOutcome::Stored(_)));
        tasks.push(one.task);
    }
    tasks.sort();
    tasks.dedup();
    assert_eq!(tasks.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_generator_reports_how_late_it_was() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(1);
    // Nobody reads the single slot until the schedule is over.
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let settings = PublisherSettings { max_in_flight: 1, ..Default::default() };
    let source = ImageSource::Generator {
        images: vec![world.images()],
        rate_per_s: 200.0,
        poisson: false,
        seed: 0,
        count: Some(20),
        duration: None,
    };
    let shutdown = Shutdown::default();
    let listen = async {
        while world.messages().await < 2 {
            tokio::task::yield_now().await;
        }
        // The delay under test.
        tokio::time::sleep(Duration::from_millis(100)).await;
        while told.recv().await.is_some() {}
    };
    let run = world.publish_with(source, &settings, options, &shutdown);
    let (summary, ()) = within(async { tokio::join!(run, listen) }).await;
    let summary = summary.unwrap();
    assert_eq!(summary.published, 20, "{summary}");
    assert!(summary.late >= 5 && summary.longest_delay_ms >= 50, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_gets_every_image_as_one_task() {
    let world = PublishWorld::new(StreamSettings::default()).await;
    world.write_many(300);
    let (acknowledged, mut told) = mpsc::channel(1);
    let options = PublishOptions { acknowledged: Some(acknowledged), ..PublishOptions::default() };
    let kill = async {
        let mut count = 0;
        while told.recv().await.is_some() {
            count += 1;
            if count == 100 {
                let process = world.server.process().unwrap().to_string();
                assert!(std::process::Command::new("kill").args(["-9", &process]).status().unwrap().success());
            }
        }
        count
    };
    let run = world.publish(world.source(), options);
    let (summary, heard) = within(async { tokio::join!(run, kill) }).await;
    let summary = summary.unwrap();
    assert_eq!((summary.published + summary.duplicates, heard), (300, 300), "{summary}");
    assert_eq!(world.server.restarts(), 1);
    // Images stored but not acknowledged when the server died are stored again.
    let mut tasks = std::collections::BTreeSet::new();
    for sequence in 1..=world.messages().await {
        tasks.insert(world.task(sequence).await.id);
    }
    assert_eq!(tasks.len(), 300);
}
