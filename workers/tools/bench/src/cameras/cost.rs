//! What cameras cost: processor time for each picture, and memory, of a grabber with several cameras in one process and of
//! as many ffmpeg children.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use os::process;
use schemas::{FrameCounts, Heartbeat, Role};
use serde::Serialize;
use streams::fleet;

use crate::bench_site::BenchSite;
use crate::cameras::ffmpeg::FfmpegReader;
use crate::error::BenchError;
use crate::worker::BenchWorker;

/// Time limit for all cameras to give pictures.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Pictures that each camera gives before it is measured.
const WARM_PICTURES: u64 = 3;

/// How a camera codes its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VideoCodec {
    /// H.264 over RTSP, a key frame a second.
    H264,
    /// Motion JPEG over HTTP.
    MotionJpeg,
}

/// A kind of camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct CameraKind {
    /// Its coding.
    pub codec: VideoCodec,
    /// Width and height of its pictures, pixels.
    pub size_px: (usize, usize),
}

impl fmt::Display for CameraKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codec = match self.codec {
            VideoCodec::H264 => "RTSP, H.264",
            VideoCodec::MotionJpeg => "HTTP, MJPEG",
        };
        write!(formatter, "{codec}, {}x{}", self.size_px.0, self.size_px.1)
    }
}

/// Who takes pictures from the cameras.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PictureTaker {
    /// The grabber, which publishes every picture that it takes.
    Publishing,
    /// The grabber, whose gate says of every picture that nothing moved.
    Skipping,
    /// An ffmpeg child for each camera.
    Ffmpeg,
}

impl PictureTaker {
    pub(super) const ALL: [Self; 3] = [Self::Publishing, Self::Skipping, Self::Ffmpeg];

    /// What it is called in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Publishing => "published",
            Self::Skipping => "skipped by the gate",
            Self::Ffmpeg => "by ffmpeg",
        }
    }
}

/// What one case cost in one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct PictureCost {
    /// Pictures taken in the window, of all cameras.
    pub pictures: u64,
    /// Length of the window, seconds.
    pub seconds: f64,
    /// Processor time of the processes that took them, milliseconds a picture.
    pub cpu_ms: f64,
    /// Resident memory of these processes at the end, bytes.
    pub resident_bytes: u64,
    /// Processor time of the site's nats-server, milliseconds a picture.
    pub server_cpu_ms: f64,
}

/// A grabber with cameras, as an operator would start it.
pub(super) struct BenchGrabber {
    worker: BenchWorker,
    cameras: usize,
}

impl BenchGrabber {
    /// Starts it. `cameras`: names and addresses; `gate`: the settings of their gate, in TOML.
    pub(super) fn start(
        site: &BenchSite,
        folder: &Path,
        cameras: &[(String, String)],
        gate: &str,
    ) -> Result<Self, BenchError> {
        let camera = |(name, url): &(String, String)| {
            format!("[[camera]]\nname = \"{name}\"\nurl = \"{url}\"\ngate = {{ {gate} }}\n")
        };
        let file = folder.join("cameras.toml");
        std::fs::write(&file, cameras.iter().map(camera).collect::<String>()).map_err(BenchError::file(&file))?;
        let arguments = ["--nats", &site.url(), "--site", site.name.as_str(), "--settings", "cameras.toml"];
        let worker = BenchWorker::start("grabber", folder, &arguments.map(str::to_owned))?;
        Ok(Self { worker, cameras: cameras.len() })
    }

    /// Its next heartbeat after a time of the machine's clock, milliseconds since the epoch.
    async fn next_heartbeat(&mut self, site: &BenchSite, after_ms: u64) -> Result<Heartbeat, BenchError> {
        let name = format!("-{}", self.worker.process());
        let is_next =
            |beat: &Heartbeat| beat.role == Role::Grabber && beat.worker.ends_with(&name) && beat.sent_at_ms > after_ms;
        let searching = async {
            loop {
                if let Some(beat) = fleet::live_workers(&site.bus).await?.into_iter().find(is_next) {
                    return Ok(beat);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::select! {
            beat = searching => beat,
            ended = self.worker.wait_for_exit() => Err(ended),
        }
    }

    /// Waits until each camera has given some pictures; returns the heartbeat that says so.
    async fn wait_until_warm(&mut self, site: &BenchSite) -> Result<Heartbeat, BenchError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut after_ms = 0;
        loop {
            let beat = self.next_heartbeat(site, after_ms).await?;
            let warm = beat.cameras.iter().filter(|camera| camera.counts.taken >= WARM_PICTURES);
            if warm.count() == self.cameras {
                return Ok(beat);
            }
            let mut faults = beat.cameras.iter().filter_map(|camera| camera.fault.as_ref());
            if let Some(fault) = faults.next_back().filter(|_| Instant::now() > deadline) {
                tracing::warn!(reason = fault.reason, "a camera gives no pictures");
            }
            if Instant::now() > deadline {
                return Err(BenchError::NotReady { what: "pictures of every camera", timeout: READY_TIMEOUT });
            }
            after_ms = beat.sent_at_ms;
        }
    }

    /// Measures it for about `length`, from heartbeat to heartbeat.
    pub(super) async fn measure(&mut self, site: &BenchSite, length: Duration) -> Result<GrabberWindow, BenchError> {
        let warm = self.wait_until_warm(site).await?;
        let first = self.next_heartbeat(site, warm.sent_at_ms).await?;
        let before = self.cpu_times(site)?;
        tokio::time::sleep(length).await;
        let last = self.next_heartbeat(site, runtime::clock::now_ms()).await?;
        let after = self.cpu_times(site)?;
        Ok(GrabberWindow {
            seconds: last.sent_at_ms.saturating_sub(first.sent_at_ms) as f64 / 1000.0,
            before: sum_counts(&first),
            after: sum_counts(&last),
            cpu: after.0.saturating_sub(before.0),
            server_cpu: after.1.saturating_sub(before.1),
            resident_bytes: self.resident_bytes()?,
        })
    }

    /// Memory of a grabber without cameras that has settled.
    pub(super) async fn measure_idle(&mut self, site: &BenchSite) -> Result<u64, BenchError> {
        let first = self.next_heartbeat(site, 0).await?;
        self.next_heartbeat(site, first.sent_at_ms).await?;
        self.resident_bytes()
    }

    fn resident_bytes(&self) -> Result<u64, BenchError> {
        process::resident_bytes_of(self.worker.process()).ok_or(BenchError::Unmeasured)
    }

    /// Processor time of the grabber, and of the site's server.
    fn cpu_times(&self, site: &BenchSite) -> Result<(Duration, Duration), BenchError> {
        let own = process::cpu_time(self.worker.process());
        let server = site.server_process().and_then(process::cpu_time);
        own.zip(server).ok_or(BenchError::Unmeasured)
    }

    /// Stops it, and waits until it has exited.
    pub(super) async fn stop(self) -> Result<(), BenchError> {
        Ok(tokio::task::spawn_blocking(move || drop(self)).await?)
    }
}

/// What a grabber did between two heartbeats.
#[derive(Debug, Clone, Copy)]
pub(super) struct GrabberWindow {
    /// Time between them, seconds.
    pub seconds: f64,
    before: FrameCounts,
    after: FrameCounts,
    cpu: Duration,
    server_cpu: Duration,
    resident_bytes: u64,
}

impl GrabberWindow {
    /// Pictures that became this since the first heartbeat, of all cameras.
    pub(super) fn count(&self, of: impl Fn(&FrameCounts) -> u64) -> u64 {
        of(&self.after).saturating_sub(of(&self.before))
    }

    fn cost(&self, taker: PictureTaker) -> Result<PictureCost, BenchError> {
        // What did not become of it what is measured would make it look cheaper.
        let pictures = self.count(|counts| match taker {
            PictureTaker::Skipping => counts.unchanged,
            _ => counts.published,
        });
        let each = |time: Duration| time.as_secs_f64() * 1000.0 / pictures.max(1) as f64;
        match pictures {
            0 => Err(BenchError::Nothing { length: Duration::from_secs_f64(self.seconds) }),
            _ => Ok(PictureCost {
                pictures,
                seconds: self.seconds,
                cpu_ms: each(self.cpu),
                resident_bytes: self.resident_bytes,
                server_cpu_ms: each(self.server_cpu),
            }),
        }
    }
}

fn sum_counts(beat: &Heartbeat) -> FrameCounts {
    beat.cameras.iter().map(|camera| camera.counts).fold(FrameCounts::default(), |sum, counts| FrameCounts {
        wanted: sum.wanted + counts.wanted,
        taken: sum.taken + counts.taken,
        published: sum.published + counts.published,
        unchanged: sum.unchanged + counts.unchanged,
        dropped: sum.dropped + counts.dropped,
        damaged: sum.damaged + counts.damaged,
        reconnects: sum.reconnects + counts.reconnects,
    })
}

/// Measures one case: `cameras` of one kind at `url` for about `length`.
pub(super) async fn measure(
    site: &BenchSite,
    folder: &Path,
    kind: CameraKind,
    taker: PictureTaker,
    (url, cameras): (&str, usize),
    length: Duration,
) -> Result<PictureCost, BenchError> {
    let gate = match taker {
        PictureTaker::Publishing => PUBLISH_ALL,
        PictureTaker::Skipping => SKIP_ALL,
        PictureTaker::Ffmpeg => return measure_ffmpeg(kind, url, cameras, length).await,
    };
    let mut grabber = BenchGrabber::start(site, folder, &named(url, "cam", cameras), gate)?;
    let window = grabber.measure(site, length).await?;
    grabber.stop().await?;
    site.clear_streams().await?;
    window.cost(taker)
}

/// A gate that every picture passes.
pub(super) const PUBLISH_ALL: &str = "min_difference = 0, keep_alive_s = 86400";
/// One that none passes but the first.
const SKIP_ALL: &str = "min_difference = 255, keep_alive_s = 86400";

/// Names for cameras at one address.
pub(super) fn named(url: &str, name: &str, cameras: usize) -> Vec<(String, String)> {
    (0..cameras).map(|number| (format!("{name}-{number}"), url.to_owned())).collect()
}

async fn measure_ffmpeg(
    kind: CameraKind,
    url: &str,
    cameras: usize,
    length: Duration,
) -> Result<PictureCost, BenchError> {
    let readers = (0..cameras).map(|_| FfmpegReader::start(kind, url)).collect::<Result<Vec<_>, _>>()?;
    let deadline = Instant::now() + READY_TIMEOUT;
    while readers.iter().any(|reader| reader.pictures() < WARM_PICTURES) {
        if Instant::now() > deadline {
            return Err(BenchError::NotReady { what: "pictures of every ffmpeg", timeout: READY_TIMEOUT });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let cpu = || readers.iter().map(|reader| process::cpu_time(reader.process())).sum::<Option<Duration>>();
    let pictures = || readers.iter().map(FfmpegReader::pictures).sum::<u64>();
    let (started, before) = (Instant::now(), (cpu(), pictures()));
    tokio::time::sleep(length).await;
    let (elapsed, after) = (started.elapsed(), (cpu(), pictures()));
    let resident = readers.iter().map(|reader| process::resident_bytes_of(reader.process())).sum::<Option<u64>>();
    tokio::task::spawn_blocking(move || drop(readers)).await?;
    let used = before.0.zip(after.0).map(|(before, after)| after.saturating_sub(before));
    let (used, resident_bytes) = used.zip(resident).ok_or(BenchError::Unmeasured)?;
    let pictures = after.1 - before.1;
    if pictures == 0 {
        return Err(BenchError::Nothing { length });
    }
    Ok(PictureCost {
        pictures,
        seconds: elapsed.as_secs_f64(),
        cpu_ms: used.as_secs_f64() * 1000.0 / pictures as f64,
        resident_bytes,
        server_cpu_ms: 0.0,
    })
}
