//! Cameras over HTTP: a snapshot that is asked for again and again, or motion JPEG. Which of the two is judged by what
//! arrives.
//!
//! An answer of 304 gives the picture before once more: a camera that serves the same picture for ever must look frozen to
//! whoever compares its pictures, and not silent. Between the pictures of a stream there is no time limit here: a camera may
//! send one in five minutes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use schemas::limits::MAX_IMAGE_BYTES;
use tokio::time::Instant;
use url::Url;

use super::SourceOptions;
use super::due::{DueClock, PaceMeter};
use super::jpeg_walker::{JpegWalker, WalkedPictures, jpeg_size_px};
use super::latest::{DamageCount, LatestFrame, LiveSource};
use crate::address::CameraCredentials;
use crate::error::CameraError;
use crate::frame::{Frame, FramePicture};
use crate::http_client::{HttpClient, HttpPurpose, READ_TIMEOUT, unless_changed};

/// Largest picture of a stream, bytes: it waits in memory until it is whole.
const MAX_STREAM_PICTURE_BYTES: usize = 16 << 20;
/// How much may precede the first picture.
const MAX_PREFACE_BYTES: u64 = 64 << 10;
/// How long an answer without a length is waited for after its first picture, to see whether another follows.
const SECOND_PICTURE_WAIT: Duration = Duration::from_secs(1);
/// Most damaged pictures in a row.
const MAX_DAMAGED: u32 = 10;

/// Connects, and waits for the first picture, unless the camera says that it sends a stream.
///
/// # Errors
/// The camera cannot be reached, refuses, or sends no picture.
pub(super) async fn open(
    address: &str,
    url: &Url,
    login: Option<CameraCredentials>,
    options: &SourceOptions,
) -> Result<LiveSource, CameraError> {
    let mut client = HttpClient::new(address, HttpPurpose::Pictures, login, options.authority.clone());
    let mut response = client.get(url, &HeaderMap::new()).await?;
    let content_type = ContentType::of(&response);
    let mut reader = PictureReader { address: address.into(), walker: JpegWalker::new(MAX_STREAM_PICTURE_BYTES) };
    if content_type.is_multipart() {
        let stream = MotionJpeg::new(address, options.interval, reader.walker, content_type);
        return Ok(stream.spawn(client, response, None));
    }
    let headers = response.headers().clone();
    let is_one = response.content_length().is_some();
    reader.walker = JpegWalker::new(MAX_IMAGE_BYTES as usize);
    let first = reader.read_first(&client, &mut response, &content_type).await?;
    if !is_one && reader.is_followed(&client, &mut response).await {
        let stream = MotionJpeg::new(address, options.interval, reader.walker, content_type);
        return Ok(stream.spawn(client, response, Some(first)));
    }
    let snapshots = Snapshots {
        latest: LatestFrame::new(address, "jpeg"),
        damage: DamageCount::new(address, MAX_DAMAGED),
        address: address.into(),
        url: url.clone(),
        client,
        interval: options.interval,
    };
    Ok(snapshots.spawn(first, headers))
}

/// What a camera says that it sends.
#[derive(Clone)]
struct ContentType(String);

impl ContentType {
    fn of(response: &Response) -> Self {
        let named = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        Self(kind.chars().take(64).collect())
    }

    fn is_multipart(&self) -> bool {
        self.0.starts_with("multipart/")
    }

    /// What it is called where no picture was found in it.
    fn without_picture(&self) -> String {
        match self.0.as_str() {
            "" => "something of an unknown type".into(),
            kind if kind.starts_with("image/jp") || self.is_multipart() => format!("{kind} without a JPEG in it"),
            kind => kind.into(),
        }
    }
}

/// Reads single pictures from answers.
struct PictureReader {
    address: String,
    walker: JpegWalker,
}

impl PictureReader {
    /// The first picture of an answer.
    async fn read_first(
        &mut self,
        client: &HttpClient,
        response: &mut Response,
        content_type: &ContentType,
    ) -> Result<Bytes, CameraError> {
        let damaged = |why: String| CameraError::Damaged { address: self.address.clone(), why };
        let no_picture = |content: String| CameraError::NotAPicture { address: self.address.clone(), content };
        if let Some(length) = response.content_length().filter(|length| *length > MAX_IMAGE_BYTES) {
            return Err(damaged(format!("a picture has {length} bytes, more than {MAX_IMAGE_BYTES}")));
        }
        let (mut received, mut was_cut) = (0, false);
        let cut_short = || damaged("a picture ends before its end".into());
        loop {
            let piece = match client.next_piece(response, Some(READ_TIMEOUT)).await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(CameraError::Closed { .. }) if received > 0 => return Err(cut_short()),
                Err(error) => return Err(error),
            };
            received += piece.len() as u64;
            let walked = self.walker.push(&piece).map_err(|large| damaged(large.why()))?;
            was_cut |= walked.cut > 0;
            if let Some(picture) = walked.first {
                return Ok(picture);
            }
            if self.walker.skipped_bytes() > MAX_PREFACE_BYTES {
                return Err(no_picture(content_type.without_picture()));
            }
        }
        match (received, was_cut || self.walker.is_inside()) {
            (0, _) => Err(no_picture("an empty answer".into())),
            (_, true) => Err(cut_short()),
            (_, false) => Err(no_picture(content_type.without_picture())),
        }
    }

    /// Whether another picture follows in the same answer. How the answer ends does not matter.
    async fn is_followed(&mut self, client: &HttpClient, response: &mut Response) -> bool {
        let until = Instant::now() + SECOND_PICTURE_WAIT;
        let search = async {
            while !self.walker.is_inside() {
                match client.next_piece(response, Some(READ_TIMEOUT)).await {
                    Ok(Some(piece)) => match self.walker.push(&piece) {
                        Ok(walked) if walked.first.is_some() => return true,
                        Ok(_) => {}
                        Err(_) => return false,
                    },
                    Ok(None) | Err(_) => return false,
                }
            }
            true
        };
        tokio::time::timeout_at(until, search).await.unwrap_or(false)
    }
}

/// Asks for one picture after another.
struct Snapshots {
    address: String,
    url: Url,
    client: HttpClient,
    interval: Duration,
    latest: Arc<LatestFrame>,
    damage: DamageCount,
}

impl Snapshots {
    fn spawn(self, first: Bytes, headers: HeaderMap) -> LiveSource {
        LiveSource::spawn(self.latest.clone(), self.run(first, headers))
    }

    async fn run(mut self, first: Bytes, headers: HeaderMap) -> Result<(), CameraError> {
        let (mut picture, mut unless) = (first, unless_changed(&headers));
        let mut due = Instant::now();
        self.give(&picture);
        loop {
            // An answer that took longer than the interval is followed by the next request at once.
            due = (due + self.interval).max(Instant::now());
            tokio::time::sleep_until(due).await;
            let mut response = self.client.get(&self.url, &unless).await?;
            if response.status() == StatusCode::NOT_MODIFIED {
                self.give(&picture);
                continue;
            }
            let (headers, content_type) = (response.headers().clone(), ContentType::of(&response));
            let walker = JpegWalker::new(MAX_IMAGE_BYTES as usize);
            let mut reader = PictureReader { address: self.address.clone(), walker };
            match reader.read_first(&self.client, &mut response, &content_type).await {
                Ok(next) => {
                    (picture, unless) = (next, unless_changed(&headers));
                    self.damage.note_good();
                    self.give(&picture);
                    // What is left unread would keep the connection from being used again.
                    let _rest = self.client.next_piece(&mut response, Some(SECOND_PICTURE_WAIT)).await;
                }
                // The next may be whole.
                Err(CameraError::Damaged { why, .. }) => self.damage.note_damaged(&self.latest, &why)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn give(&self, picture: &Bytes) {
        let per_s = 1.0 / self.interval.as_secs_f32();
        self.latest.update_facts(|facts| {
            facts.received += 1;
            facts.size_px = jpeg_size_px(picture);
            // As many as are asked for.
            facts.frames_per_s = per_s.is_finite().then_some(per_s);
        });
        self.latest.put(Frame::arriving(FramePicture::Jpeg(picture.clone()), None));
    }
}

/// A stream of JPEGs.
struct MotionJpeg {
    address: String,
    content_type: ContentType,
    walker: JpegWalker,
    due: DueClock,
    pace: PaceMeter,
    latest: Arc<LatestFrame>,
    damage: DamageCount,
}

impl MotionJpeg {
    fn new(address: &str, interval: Duration, mut walker: JpegWalker, content_type: ContentType) -> Self {
        walker.set_limit(MAX_STREAM_PICTURE_BYTES);
        Self {
            address: address.into(),
            content_type,
            walker,
            due: DueClock::new(interval),
            pace: PaceMeter::default(),
            latest: LatestFrame::new(address, "mjpeg"),
            damage: DamageCount::new(address, MAX_DAMAGED),
        }
    }

    fn spawn(self, client: HttpClient, response: Response, first: Option<Bytes>) -> LiveSource {
        LiveSource::spawn(self.latest.clone(), self.run(client, response, first))
    }

    async fn run(
        mut self,
        client: HttpClient,
        mut response: Response,
        first: Option<Bytes>,
    ) -> Result<(), CameraError> {
        if let Some(first) = first {
            self.take(WalkedPictures { first: Some(first), whole: 1, ..WalkedPictures::default() })?;
        }
        loop {
            // Only what has begun must go on.
            let limit = self.walker.is_inside().then_some(READ_TIMEOUT);
            let Some(piece) = client.next_piece(&mut response, limit).await? else {
                return Err(CameraError::Closed { address: self.address, why: None });
            };
            match self.walker.push(&piece) {
                Ok(walked) => self.take(walked)?,
                Err(large) => self.damage.note_damaged(&self.latest, &large.why())?,
            }
        }
    }

    /// Counts what arrived, and gives the newest if one is due.
    fn take(&mut self, walked: WalkedPictures) -> Result<(), CameraError> {
        for _ in 0..walked.cut {
            self.damage.note_damaged(&self.latest, "a picture ends before its end")?;
        }
        let (now, whole) = (Instant::now(), walked.whole);
        for _ in 0..whole {
            self.pace.note(now);
        }
        let Some(picture) = walked.newest() else {
            return match self.pace.elapsed(now).is_none() && self.walker.skipped_bytes() > MAX_PREFACE_BYTES {
                false => Ok(()),
                true => {
                    let content = self.content_type.without_picture();
                    Err(CameraError::NotAPicture { address: self.address.clone(), content })
                }
            };
        };
        self.damage.note_good();
        self.latest.update_facts(|facts| {
            facts.received += whole;
            facts.size_px = jpeg_size_px(&picture).or(facts.size_px);
            facts.frames_per_s = self.pace.per_s();
        });
        if self.due.is_due(now, self.pace.distance()) {
            self.due.note_taken(now);
            self.latest.put(Frame::arriving(FramePicture::Jpeg(picture), None));
        }
        Ok(())
    }
}
