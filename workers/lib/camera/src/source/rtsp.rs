//! Cameras over RTSP, by TCP: JPEG is passed on as it is, H.264 is decoded here, H.265 by ffmpeg.
//!
//! The clock in the stream may jump, and a picture of another size may follow: neither ends it.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use retina::client::{
    Credentials, Demuxed, Described, PlayOptions, Session, SessionOptions, SetupOptions, TcpTransportOptions, Transport,
};
use retina::codec::{CodecItem, FrameFormat, ParametersRef, VideoFrame, VideoParametersCodec};
use retina::rtcp::{ReceivedCompoundPacket, TypedPacketRef};
use tokio::time::{Instant, timeout};
use url::Url;

use super::SourceOptions;
use super::due::{DueClock, PaceMeter};
use super::h264::{DecodeOrder, GroupOfPictures, H264Decoder};
use super::h265::{self, H265Decoder};
use super::jpeg_walker::{jpeg_size_px, leading_jpeg};
use super::latest::{DamageCount, LatestFrame, LiveSource};
use super::rtsp_tunnel::RtspTunnel;
use crate::address::CameraCredentials;
use crate::error::CameraError;
use crate::frame::{Frame, FramePicture};

/// How long the camera may take to answer each request.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Most damaged pictures in a row.
const MAX_DAMAGED: u32 = 30;
/// Largest coded picture, bytes.
const MAX_CODED_BYTES: usize = 16 << 20;
/// Most pixels of a picture: the decoder allocates what the stream names.
const MAX_PIXELS: u64 = 64 << 20;
/// 1970 as RTCP counts seconds, from 1900.
const NTP_EPOCH_S: u64 = 2_208_988_800;

/// Codings that are understood, by their names in RTSP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VideoCoding {
    Jpeg,
    H264,
    H265,
}

impl VideoCoding {
    fn of(name: &str) -> Option<Self> {
        match name {
            "jpeg" => Some(Self::Jpeg),
            "h264" => Some(Self::H264),
            "h265" => Some(Self::H265),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "mjpeg",
            Self::H264 => "h264",
            Self::H265 => "h265",
        }
    }
}

/// Connects, and lets the camera play.
///
/// # Errors
/// The camera cannot be reached, refuses, or sends nothing that can be decoded here.
pub(super) async fn open(
    address: &str,
    url: &Url,
    login: Option<CameraCredentials>,
    options: &SourceOptions,
) -> Result<LiveSource, CameraError> {
    let connection = RtspConnection { address: address.into() };
    let tunnel = match url.scheme() {
        "rtsps" => Some(RtspTunnel::open(address, url, options.authority.as_deref()).await?),
        _ => None,
    };
    let url = tunnel.as_ref().map_or(url, |tunnel| &tunnel.url).clone();
    let had_login = login.is_some();
    let credentials = login.map(|login| Credentials { username: login.user, password: login.password });
    let session = SessionOptions::default().creds(credentials).user_agent("tributary".into());
    let describing = connection.step("DESCRIBE", had_login, Session::describe(url, session));
    let mut session = describing.await?;
    let (stream, coding) = connection.choose_stream(&session)?;
    let latest = LatestFrame::new(address, coding.name());
    // Before the camera is asked to play: without ffmpeg there is no use in it.
    let decoder = match coding {
        VideoCoding::Jpeg => PictureDecoder::None,
        VideoCoding::H264 => PictureDecoder::H264(H264Decoder::new()),
        VideoCoding::H265 => {
            let program = options.ffmpeg.clone();
            PictureDecoder::H265(Box::new(H265Decoder::new(address, program, options.interval, latest.clone())?))
        }
    };
    let setup = SetupOptions::default()
        .transport(Transport::Tcp(TcpTransportOptions::default()))
        .frame_format(FrameFormat::SIMPLE);
    connection.step("SETUP", had_login, session.setup(stream, setup)).await?;
    let playing = connection.step("PLAY", had_login, session.play(PlayOptions::default())).await?;
    let demuxed = playing.demuxed().map_err(|error| connection.closed(&error))?;
    let reader = RtspReader {
        connection,
        demuxed,
        stream,
        decoder,
        due: DueClock::new(options.interval),
        pace: PaceMeter::default(),
        gop: GroupOfPictures::new(options.interval),
        clock: CameraClock::default(),
        damage: DamageCount::new(address, MAX_DAMAGED),
        latest: latest.clone(),
        _tunnel: tunnel,
    };
    Ok(LiveSource::spawn(latest, async { reader.run().await.map(|never| match never {}) }))
}

/// Names what goes wrong.
struct RtspConnection {
    address: String,
}

impl RtspConnection {
    async fn step<T>(
        &self,
        step: &'static str,
        had_login: bool,
        work: impl Future<Output = Result<T, retina::Error>>,
    ) -> Result<T, CameraError> {
        match timeout(STEP_TIMEOUT, work).await {
            Ok(done) => done.map_err(|error| self.refusal(&error, had_login)),
            Err(_) => {
                let (address, seconds) = (self.address.clone(), STEP_TIMEOUT.as_secs());
                Err(CameraError::Timeout { address, step, seconds })
            }
        }
    }

    /// What the answer to a request, or its absence, means.
    fn refusal(&self, error: &retina::Error, had_login: bool) -> CameraError {
        let (address, text) = (self.address.clone(), first_line(error));
        match error.status_code() {
            Some(401) if !had_login => {
                CameraError::Login { address, why: "it asks for a user and a password, and none is given".into() }
            }
            Some(401) => CameraError::Login { address, why: "the user or the password is wrong".into() },
            Some(403) => CameraError::Login { address, why: "this user may not see it (status 403)".into() },
            Some(status @ (404 | 410)) => CameraError::NotFound { address, status },
            // Success, with contents that make no sense.
            Some(200..300) => CameraError::Closed { address, why: Some(text) },
            Some(status) => CameraError::Status { address, status },
            None => match text.strip_prefix("Unable to connect to RTSP server: ") {
                Some(why) => CameraError::Unreachable { address, why: why.into() },
                None if text.starts_with("RTSP framing error") => {
                    CameraError::NotAPicture { address, content: "something that is not RTSP".into() }
                }
                None => CameraError::Closed { address, why: Some(text) },
            },
        }
    }

    fn closed(&self, error: &retina::Error) -> CameraError {
        CameraError::Closed { address: self.address.clone(), why: Some(first_line(error)) }
    }

    /// The first video that is understood; cameras offer sound and events beside it.
    fn choose_stream(&self, session: &Session<Described>) -> Result<(usize, VideoCoding), CameraError> {
        let address = self.address.clone();
        let videos = || {
            let streams = session.streams().iter().enumerate();
            streams.filter(|(_, stream)| matches!(stream.media(), "video" | "image"))
        };
        let known = videos().find_map(|(number, stream)| Some((number, VideoCoding::of(stream.encoding_name())?)));
        match (known, videos().next()) {
            (Some(known), _) => Ok(known),
            (None, Some((_, stream))) => {
                let codec = stream.encoding_name().chars().take(32).collect();
                Err(CameraError::Codec { address, codec })
            }
            (None, None) => Err(CameraError::NotAPicture { address, content: "no video".into() }),
        }
    }
}

/// What follows the first line names connections and packets.
fn first_line(error: &impl Display) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(300).collect()
}

enum PictureDecoder {
    None,
    H264(H264Decoder),
    H265(Box<H265Decoder>),
}

/// Reads a playing stream.
struct RtspReader {
    connection: RtspConnection,
    demuxed: Demuxed,
    stream: usize,
    decoder: PictureDecoder,
    due: DueClock,
    pace: PaceMeter,
    gop: GroupOfPictures,
    clock: CameraClock,
    damage: DamageCount,
    latest: Arc<LatestFrame>,
    _tunnel: Option<RtspTunnel>,
}

impl RtspReader {
    async fn run(mut self) -> Result<Infallible, CameraError> {
        loop {
            match self.demuxed.next().await {
                Some(Ok(CodecItem::VideoFrame(frame))) => self.take(frame).await?,
                Some(Ok(CodecItem::Rtcp(report))) => self.clock.note(&report),
                Some(Ok(_)) => {}
                Some(Err(error)) => self.note_error(&error)?,
                // A camera that is switched off, or ends the session, says no more than this.
                None => return Err(CameraError::Closed { address: self.connection.address, why: None }),
            }
        }
    }

    /// A broken packet costs its picture; anything else the connection.
    fn note_error(&mut self, error: &retina::Error) -> Result<(), CameraError> {
        if !error.to_string().contains("\nstream: ") {
            return Err(self.connection.closed(error));
        }
        self.gop.forget();
        self.damage.note_damaged(&self.latest, &first_line(error))
    }

    async fn take(&mut self, frame: VideoFrame) -> Result<(), CameraError> {
        let now = Instant::now();
        self.pace.note(now);
        self.latest.update_facts(|facts| {
            facts.received += 1;
            facts.frames_per_s = self.pace.per_s();
        });
        let camera_at_ms = self.clock.wall_ms(frame.timestamp());
        if frame.data().len() > MAX_CODED_BYTES {
            self.gop.forget();
            return self.damage.note_damaged(&self.latest, "a coded picture is larger than 16 MB");
        }
        if frame.has_new_parameters() {
            self.note_parameters()?;
        }
        if frame.loss() > 0 {
            // What follows builds on what is lost, up to the next key frame.
            self.gop.forget();
        }
        // Before the decoder is borrowed: what is fed to another program has to name its parameters itself.
        let (coded, is_key) = match &self.decoder {
            PictureDecoder::None => return self.take_jpeg(frame.into_data(), now, camera_at_ms),
            PictureDecoder::H264(_) => {
                let is_key = frame.is_random_access_point();
                (frame.into_data(), is_key)
            }
            PictureDecoder::H265(_) => self.with_parameters(frame),
        };
        // Until a second key frame has told their distance, each may be the only one for long.
        let distance = match self.gop.decodes_all() {
            true => self.pace.distance(),
            false => self.gop.key_frame_distance(),
        };
        let is_due = self.due.is_due(now, distance);
        let order = self.gop.push(coded, is_key, now, is_due);
        let key_frame_distance_s = self.gop.key_frame_distance().map(|distance| distance.as_secs_f32());
        let awaits_key_frame = self.gop.awaits_key_frame();
        self.latest.update_facts(|facts| {
            facts.key_frame_distance_s = key_frame_distance_s;
            facts.undecodable = if awaits_key_frame { facts.undecodable + 1 } else { 0 };
        });
        match order.pictures.is_empty() {
            true => Ok(()),
            false => self.decode(order, now, camera_at_ms).await,
        }
    }

    fn take_jpeg(&mut self, data: Vec<u8>, now: Instant, camera_at_ms: Option<u64>) -> Result<(), CameraError> {
        if !self.due.is_due(now, self.pace.distance()) {
            return Ok(());
        }
        let Some(jpeg) = leading_jpeg(&Bytes::from(data)) else {
            return self.damage.note_damaged(&self.latest, "a picture is no whole JPEG");
        };
        self.damage.note_good();
        self.due.note_taken(now);
        self.latest.update_facts(|facts| facts.size_px = jpeg_size_px(&jpeg).or(facts.size_px));
        self.latest.put(Frame::arriving(FramePicture::Jpeg(jpeg), camera_at_ms));
        Ok(())
    }

    async fn decode(&mut self, order: DecodeOrder, now: Instant, camera_at_ms: Option<u64>) -> Result<(), CameraError> {
        let (damage, is_taken) = match &mut self.decoder {
            PictureDecoder::None => (None, false),
            PictureDecoder::H264(decoder) => {
                let mut frame = Frame::arriving(FramePicture::Jpeg(Bytes::new()), camera_at_ms);
                let decoded = decoder.decode(order).await;
                let is_taken = decoded.picture.is_some();
                if let Some(picture) = decoded.picture {
                    let size_px = (picture.width_px as u32, picture.height_px as u32);
                    self.latest.update_facts(|facts| facts.size_px = Some(size_px));
                    frame.picture = FramePicture::Yuv(Arc::new(picture));
                    self.latest.put(frame);
                }
                (decoded.damage, is_taken)
            }
            PictureDecoder::H265(decoder) => {
                let decoded = decoder.decode(order.pictures, self.gop.decodes_all(), camera_at_ms).await?;
                (decoded.err(), order.is_wanted)
            }
        };
        match damage {
            Some(why) => {
                // What follows builds on it.
                self.gop.forget();
                self.damage.note_damaged(&self.latest, &why)
            }
            None => {
                self.damage.note_good();
                if is_taken {
                    self.due.note_taken(now);
                }
                Ok(())
            }
        }
    }

    /// Looks at the parameters that changed before they are acted on.
    fn note_parameters(&mut self) -> Result<(), CameraError> {
        if let PictureDecoder::H265(decoder) = &mut self.decoder {
            decoder.restart();
        }
        let Some(ParametersRef::Video(parameters)) = self.stream_parameters() else { return Ok(()) };
        let (width, height) = parameters.coded_pixel_dimensions();
        match u64::from(width) * u64::from(height) <= MAX_PIXELS {
            true => Ok(()),
            false => {
                let codec = format!("pictures of {width}x{height} pixels");
                Err(CameraError::Codec { address: self.connection.address.clone(), codec })
            }
        }
    }

    fn stream_parameters(&self) -> Option<ParametersRef<'_>> {
        self.demuxed.streams().get(self.stream)?.parameters()
    }

    /// A coded picture of H.265 with its parameters in front if it can be decoded alone. They come with the first only,
    /// and ffmpeg may have been started since.
    fn with_parameters(&self, frame: VideoFrame) -> (Vec<u8>, bool) {
        let has_parameters = frame.is_random_access_point();
        let coded = frame.into_data();
        if has_parameters || !h265::is_random_access(&coded) {
            return (coded, has_parameters);
        }
        let Some(ParametersRef::Video(parameters)) = self.stream_parameters() else { return (coded, false) };
        let VideoParametersCodec::H265 { vps, sps, pps } = parameters.codec_params() else { return (coded, false) };
        let mut whole = Vec::with_capacity(coded.len() + vps.len() + sps.len() + pps.len() + 12);
        for unit in [vps, sps, pps] {
            whole.extend_from_slice(&[0, 0, 0, 1]);
            whole.extend_from_slice(unit);
        }
        whole.extend_from_slice(&coded);
        (whole, true)
    }
}

/// The camera's own clock, as its sender reports tell it. They come some seconds after the start.
#[derive(Debug, Default)]
struct CameraClock {
    /// Milliseconds since the epoch, and the clock of the stream at the same time.
    report: Option<(i64, u32)>,
}

impl CameraClock {
    fn note(&mut self, received: &ReceivedCompoundPacket) {
        for packet in received.pkts() {
            if let Ok(Some(TypedPacketRef::SenderReport(report))) = packet.as_typed() {
                self.set(report.ntp_timestamp().0, report.rtp_timestamp());
            }
        }
    }

    fn set(&mut self, ntp: u64, rtp: u32) {
        // A camera that does not know the time sends zero, or its time since it was started.
        let seconds = (ntp >> 32).checked_sub(NTP_EPOCH_S);
        let millis = ((ntp & 0xffff_ffff) * 1000) >> 32;
        self.report = seconds.map(|seconds| (seconds as i64 * 1000 + millis as i64, rtp));
    }

    fn wall_ms(&self, timestamp: retina::Timestamp) -> Option<u64> {
        let (report_ms, report_rtp) = self.report?;
        // The stream's clock wraps: only the distance counts.
        let ticks = i64::from((timestamp.timestamp() as u32).wrapping_sub(report_rtp) as i32);
        u64::try_from(report_ms + ticks * 1000 / i64::from(timestamp.clock_rate().get())).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn the_cameras_clock_is_read_across_a_wrap_of_the_streams() {
        let mut clock = CameraClock::default();
        let at = |rtp: i64| retina::Timestamp::new(rtp, NonZeroU32::new(90_000).unwrap(), 0).unwrap();
        assert_eq!(clock.wall_ms(at(0)), None, "nothing was told");
        clock.set((NTP_EPOCH_S + 1_700_000_000) << 32 | 1 << 31, u32::MAX - 89_999);
        assert_eq!(clock.wall_ms(at(i64::from(u32::MAX) + 1)), Some(1_700_000_001_500));
        assert_eq!(clock.wall_ms(at(i64::from(u32::MAX) - 179_999)), Some(1_699_999_999_500));
        // The camera's clock is put right, or wrong, by a day: what follows is told by the new one.
        clock.set((NTP_EPOCH_S + 1_700_086_400) << 32, 0);
        assert_eq!(clock.wall_ms(at(90_000)), Some(1_700_086_401_000));
        clock.set(5 << 32, 0);
        assert_eq!(clock.wall_ms(at(0)), None, "a camera that does not know the time");
    }
}
