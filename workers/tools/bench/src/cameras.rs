//! Measures cameras: what a grabber's pictures cost in processor time and memory, against ffmpeg children that do the same;
//! how many pictures arrive with many cameras; how soon the first answer comes; and what the motion gate and the reuse of
//! answers save and get wrong.
//!
//! Cases alternate between forward and reverse order over several rounds, and figures are medians over the rounds. The
//! grabber, the recognizer and the nats-server are processes of their own, as is the cameras' RTSP server, which sends what
//! was coded beforehand. Only who takes the pictures is measured.

mod cost;
mod ffmpeg;
mod first_answer;
mod results;
mod scene;
mod sources;
mod still_life;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::Shutdown;
use schemas::Role;
use streams::fleet;
use streams::server::Durability;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica, Replicas};

use self::cost::{BenchGrabber, CameraKind, PUBLISH_ALL, PictureCost, PictureTaker, VideoCodec, named};
use self::first_answer::FirstAnswerTimes;
use self::scene::{Scene, YARD};
use self::sources::{CAMERA_RATE, MotionJpegLoop, RtspLoops};
use self::still_life::StillLifeCounts;
use crate::bench_site::{BenchSite, TestbedPaths};
use crate::error::BenchError;
use crate::report::{BenchMachine, BenchReport};

/// The recognizer's model, and the pictures that it knows, in a checkout.
const MODEL: &str = "fixtures/models/fashion-light";
const THINGS: &str = "fixtures/images/fashion";
/// Sizes of pictures.
const SMALL_PX: (usize, usize) = (640, 480);
const LARGE_PX: (usize, usize) = (1920, 1080);
/// Pictures of a film, which are sent again and again; a multiple of the distances between key frames.
const FILM: usize = 80;
/// Pictures from one key frame to the next: a second where costs are measured, so that whoever takes key frames alone
/// takes one a second; two for the time to the first answer.
const GROUP: usize = CAMERA_RATE;
const LONG_GROUP: usize = 2 * CAMERA_RATE;
/// Stream with key frames two seconds apart.
const LONG_GROUP_STREAM: &str = "long";
/// Cameras at once, for the pictures that arrive: one half of each coding.
const MANY_CAMERAS: usize = 32;
/// Time limit for the recognizer to start.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of `bench cameras`.
#[derive(Debug, Clone, Default)]
pub(crate) struct CameraBenchOptions {
    /// Finish in about a minute and a half: one size, one round, shorter windows.
    pub quick: bool,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct CameraBenchEffort {
    sizes: &'static [(usize, usize)],
    /// Cameras of one kind at a time, so that their processor time is far above the unit in which the kernel counts it.
    cameras: usize,
    rounds: usize,
    window: Duration,
    many_window: Duration,
    first_answers: usize,
    still_life_pictures: usize,
}

impl CameraBenchEffort {
    fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        match quick {
            false => Self {
                sizes: &[SMALL_PX, LARGE_PX],
                cameras: 8,
                rounds: 3,
                window: seconds(10),
                many_window: seconds(30),
                first_answers: 7,
                still_life_pictures: 1800,
            },
            true => Self {
                sizes: &[SMALL_PX],
                cameras: 4,
                rounds: 1,
                window: seconds(3),
                many_window: seconds(6),
                first_answers: 1,
                still_life_pictures: 300,
            },
        }
    }
}

/// Everything that was measured.
struct CameraMeasurements {
    /// By kind of camera and by who took the pictures, one for each round.
    costs: BTreeMap<(CameraKind, PictureTaker), Vec<PictureCost>>,
    /// Memory of a grabber without cameras, bytes.
    idle_bytes: u64,
    /// Mean size of a key frame or of a JPEG, by kind of camera, bytes.
    picture_bytes: BTreeMap<CameraKind, usize>,
    many: ManyCameras,
    first_answers: FirstAnswerTimes,
    still_life: StillLifeCounts,
}

/// What arrived of many cameras.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ManyCameras {
    seconds: f64,
    /// Pictures that are due in that time.
    wanted: f64,
    /// Pictures that the site stored.
    got: u64,
}

/// The cameras' streams.
struct CameraLoops {
    rtsp: RtspLoops,
    motion_jpeg: BTreeMap<(usize, usize), MotionJpegLoop>,
    picture_bytes: BTreeMap<CameraKind, usize>,
}

impl CameraLoops {
    /// Makes the films, and starts the servers.
    async fn start(folder: &Path, sizes: &'static [(usize, usize)]) -> Result<Self, BenchError> {
        let (mut files, mut motion_jpeg, mut picture_bytes) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for size_px in sizes {
            let (name, file) = (stream_name(*size_px), folder.join(format!("{}.h264", stream_name(*size_px))));
            let long_file = folder.join("long.h264");
            let is_long = *size_px == SMALL_PX;
            let (to, long_to) = (file.clone(), long_file.clone());
            let made = tokio::task::spawn_blocking(move || {
                let things = still_life::read_things(Path::new(THINGS), 5)?;
                let film = Scene::new(*size_px, YARD, 1).film(&things, FILM);
                let key_frame_bytes = sources::encode_h264(&film, GROUP, &to)?;
                if is_long {
                    sources::encode_h264(&film, LONG_GROUP, &long_to)?;
                }
                let jpegs = film.into_iter().map(still_life::jpeg).collect::<Result<Vec<_>, _>>()?;
                Ok::<_, BenchError>((key_frame_bytes, jpegs))
            });
            let (key_frame_bytes, jpegs) = made.await??;
            let jpeg_bytes = jpegs.iter().map(bytes::Bytes::len).sum::<usize>() / jpegs.len().max(1);
            picture_bytes.insert(CameraKind { codec: VideoCodec::H264, size_px: *size_px }, key_frame_bytes);
            picture_bytes.insert(CameraKind { codec: VideoCodec::MotionJpeg, size_px: *size_px }, jpeg_bytes);
            motion_jpeg.insert(*size_px, MotionJpegLoop::start(jpegs).await?);
            files.push((name, file));
            if is_long {
                files.push((LONG_GROUP_STREAM.to_owned(), long_file));
            }
        }
        let rtsp = tokio::task::spawn_blocking(move || RtspLoops::start(&files)).await??;
        Ok(Self { rtsp, motion_jpeg, picture_bytes })
    }

    /// Address of a camera.
    fn url(&self, kind: CameraKind) -> Result<String, BenchError> {
        match kind.codec {
            VideoCodec::H264 => Ok(self.rtsp.url(&stream_name(kind.size_px))),
            VideoCodec::MotionJpeg => {
                let sender = self.motion_jpeg.get(&kind.size_px);
                sender.map(MotionJpegLoop::url).ok_or_else(|| sources::fault("no camera has that size"))
            }
        }
    }
}

fn stream_name((width, height): (usize, usize)) -> String {
    format!("{width}x{height}")
}

/// Runs the bench; takes some minutes.
pub(crate) async fn run(options: &CameraBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    tokio::select! {
        report = measure(options) => report,
        () = shutdown.wait_for_request() => Err(BenchError::Stopped),
    }
}

async fn measure(options: &CameraBenchOptions) -> Result<BenchReport, BenchError> {
    tokio::task::spawn_blocking(sources::check_programs).await??;
    if !Path::new(MODEL).is_dir() || !Path::new(THINGS).is_dir() {
        let missing = if Path::new(MODEL).is_dir() { THINGS } else { MODEL };
        return Err(sources::fault(format!("{missing} was not found: run this in a checkout, after make setup")));
    }
    let effort = CameraBenchEffort::new(options.quick);
    let folder = tempfile::tempdir().map_err(BenchError::file(std::env::temp_dir()))?;
    let mut machine = BenchMachine::here(folder.path());
    print_step("the cameras' films");
    let loops = CameraLoops::start(folder.path(), effort.sizes).await?;
    let paths = TestbedPaths {
        folder: folder.path().to_owned(),
        nats_server: options.nats_server.clone(),
        onnxruntime: options.onnxruntime.clone(),
        model: Path::new(MODEL).canonicalize().map_err(BenchError::file(MODEL))?,
        infer: InferenceSettings { replicas: Replicas::Count(1), ..InferenceSettings::default() },
    };
    let mut site = BenchSite::start("site", Durability::Fast, &paths).await?;
    machine.nats_server = Some(site.bus.server_version());

    let costs = measure_costs(&site, folder.path(), &loops, &effort).await?;
    let mut idle = BenchGrabber::start(&site, folder.path(), &[], PUBLISH_ALL)?;
    let idle_bytes = idle.measure_idle(&site).await?;
    idle.stop().await?;
    print_step(&format!("{MANY_CAMERAS} cameras"));
    let many = measure_many(&site, folder.path(), &loops, effort.many_window).await?;
    print_step("first answers");
    site.start_recognizer(&paths)?;
    wait_for_recognizer(&mut site).await?;
    let first_answers =
        first_answer::measure(&site, folder.path(), &loops.rtsp, LONG_GROUP_STREAM, effort.first_answers).await?;
    print_step("motion gate and reuse");
    let still_life = measure_still_life(&mut site, &paths, effort.still_life_pictures).await?;
    let measured = CameraMeasurements {
        costs,
        idle_bytes,
        picture_bytes: loops.picture_bytes.clone(),
        many,
        first_answers,
        still_life,
    };
    tokio::task::spawn_blocking(move || drop((site, loops))).await?;
    Ok(results::report(machine, &effort, options.quick, &measured))
}

async fn measure_costs(
    site: &BenchSite,
    folder: &Path,
    loops: &CameraLoops,
    effort: &CameraBenchEffort,
) -> Result<BTreeMap<(CameraKind, PictureTaker), Vec<PictureCost>>, BenchError> {
    let kinds = effort.sizes.iter().flat_map(|size_px| {
        [VideoCodec::H264, VideoCodec::MotionJpeg].map(|codec| CameraKind { codec, size_px: *size_px })
    });
    let mut cases: Vec<(CameraKind, PictureTaker)> =
        kinds.flat_map(|kind| PictureTaker::ALL.map(|taker| (kind, taker))).collect();
    let mut costs: BTreeMap<_, Vec<PictureCost>> = BTreeMap::new();
    for round in 0..effort.rounds {
        for (kind, taker) in &cases {
            print_step(&format!("round {} of {}: {kind}, {}", round + 1, effort.rounds, taker.name()));
            let url = loops.url(*kind)?;
            let cost = cost::measure(site, folder, *kind, *taker, (&url, effort.cameras), effort.window).await?;
            costs.entry((*kind, *taker)).or_default().push(cost);
        }
        cases.reverse();
    }
    Ok(costs)
}

/// Counts what arrives of many cameras in one grabber.
async fn measure_many(
    site: &BenchSite,
    folder: &Path,
    loops: &CameraLoops,
    length: Duration,
) -> Result<ManyCameras, BenchError> {
    let of = |codec, name: &str| {
        let url = loops.url(CameraKind { codec, size_px: SMALL_PX })?;
        Ok::<_, BenchError>(named(&url, name, MANY_CAMERAS / 2))
    };
    let cameras = [of(VideoCodec::H264, "rtsp")?, of(VideoCodec::MotionJpeg, "http")?].concat();
    let mut grabber = BenchGrabber::start(site, folder, &cameras, PUBLISH_ALL)?;
    let window = grabber.measure(site, length).await?;
    grabber.stop().await?;
    site.clear_streams().await?;
    let got = window.count(|counts| counts.published);
    Ok(ManyCameras { seconds: window.seconds, wanted: window.seconds * MANY_CAMERAS as f64, got })
}

async fn wait_for_recognizer(site: &mut BenchSite) -> Result<(), BenchError> {
    let Some(process) = site.recognizer_process() else { return Ok(()) };
    let bus = site.bus.clone();
    let starting = async {
        let name = format!("-{process}");
        loop {
            let beats = fleet::live_workers(&bus).await?;
            if beats.iter().any(|beat| beat.role == Role::Recognizer && beat.worker.ends_with(&name)) {
                return Ok::<_, BenchError>(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        ready = tokio::time::timeout(READY_TIMEOUT, starting) => {
            ready.unwrap_or(Err(BenchError::NotReady { what: "a heartbeat of the recognizer", timeout: READY_TIMEOUT }))
        }
        ended = site.wait_for_exit() => Err(ended),
    }
}

/// Replaces the recognizer by one that reuses answers and judges by the model's own gate, and counts.
async fn measure_still_life(
    site: &mut BenchSite,
    paths: &TestbedPaths,
    pictures: usize,
) -> Result<StillLifeCounts, BenchError> {
    let library = paths.onnxruntime.clone();
    let (folder, infer) = (paths.model.clone(), paths.infer.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let model = Model::load(&folder)?;
        let onnx = OnnxRuntime::find_and_load(library.as_deref())?;
        let things = still_life::read_things(Path::new(THINGS), 400)?;
        Ok::<_, BenchError>((
            model.description.gate.min_confidence_ratio,
            Replica::open(&onnx, &model, &infer)?,
            things,
        ))
    });
    let (min_confidence, replica, things) = opened.await??;
    tokio::task::block_in_place(|| site.stop_recognizers());
    let mut settings = vec!["recognizer.reuse.enabled=true".to_owned()];
    settings.extend(min_confidence.map(|ratio| format!("recognizer.gate.min_confidence_ratio={ratio}")));
    site.start_recognizer_with(paths, &settings)?;
    wait_for_recognizer(site).await?;
    still_life::measure(site, things, replica, pictures).await
}

fn print_step(what: &str) {
    eprintln!("bench: {what}");
}
