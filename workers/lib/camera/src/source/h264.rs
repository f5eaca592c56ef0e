//! H.264: which coded pictures to decode, and decoding them.

use std::time::Duration;

use openh264::decoder::{DecodeOptions, Decoder, Flush};
use openh264::formats::YUVSource;
use tokio::time::Instant;

use super::due::PaceMeter;
use crate::frame::YuvPicture;

/// Where key frames are further apart than this, or than the interval that is wanted, all pictures are decoded.
const FAR_APART: Duration = Duration::from_secs(2);
/// Most bytes of coded pictures that are kept in case they must be decoded after all.
const MAX_KEPT_BYTES: usize = 8 << 20;

/// Chooses what to decode. Key frames can be decoded alone, and cost a tenth of all pictures; but where they are far
/// apart, too few of them come, and every picture since the last must be decoded to see the newest. As a connection does
/// not tell how far apart they are, and some cameras change it, the pictures since the last key frame are kept undecoded:
/// if the next key frame comes in time they were not needed, and cost nothing but their memory.
#[derive(Debug)]
pub(super) struct GroupOfPictures {
    far_apart: Duration,
    key_frames: PaceMeter,
    last_distance: Option<Duration>,
    decodes_all: bool,
    /// Those since the key frame that the decoder has not seen, in order.
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
    /// Whether what came since the last key frame is complete.
    is_whole: bool,
}

/// What to decode now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DecodeOrder {
    /// Coded pictures, in order; none if there is nothing to do.
    pub pictures: Vec<Vec<u8>>,
    /// Whether the last of them is wanted, or only what follows it.
    pub is_wanted: bool,
    /// Whether that one can be decoded alone, and must give a picture.
    pub is_key: bool,
}

impl GroupOfPictures {
    pub(super) fn new(interval: Duration) -> Self {
        // A quarter more, for the jitter of key frames at just this distance.
        let far_apart = FAR_APART.max(interval).mul_f32(1.25);
        Self {
            far_apart,
            key_frames: PaceMeter::default(),
            last_distance: None,
            decodes_all: false,
            kept: Vec::new(),
            kept_bytes: 0,
            is_whole: false,
        }
    }

    /// Mean distance of key frames; absent until two came.
    pub(super) fn key_frame_distance(&self) -> Option<Duration> {
        self.key_frames.distance()
    }

    /// Whether every picture is decoded at present.
    pub(super) fn decodes_all(&self) -> bool {
        self.decodes_all
    }

    /// Whether nothing can be decoded before a key frame comes.
    pub(super) fn awaits_key_frame(&self) -> bool {
        !self.is_whole
    }

    /// Takes a coded picture, and says what to decode. `is_due` says whether a picture is wanted by now.
    pub(super) fn push(&mut self, coded: Vec<u8>, is_key: bool, now: Instant, is_due: bool) -> DecodeOrder {
        if is_key {
            self.last_distance = self.key_frames.note(now).or(self.last_distance);
            self.decodes_all = self.last_distance.is_some_and(|distance| distance > self.far_apart);
            self.forget();
            self.is_whole = true;
        }
        if !self.is_whole {
            return DecodeOrder::default();
        }
        self.kept_bytes += coded.len();
        self.kept.push(coded);
        if self.kept_bytes > MAX_KEPT_BYTES && !is_key {
            self.forget();
            return DecodeOrder::default();
        }
        if !is_key && self.key_frames.elapsed(now).is_some_and(|elapsed| elapsed > self.far_apart) {
            self.decodes_all = true;
        }
        match self.decodes_all || is_key && is_due {
            true => {
                self.kept_bytes = 0;
                DecodeOrder { pictures: std::mem::take(&mut self.kept), is_wanted: is_due, is_key }
            }
            false => DecodeOrder::default(),
        }
    }

    /// Waits for the next key frame: what is there cannot be decoded.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
        (self.kept_bytes, self.is_whole) = (0, false);
    }
}

/// What came of a [`DecodeOrder`].
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// The last picture, if it was wanted.
    pub picture: Option<YuvPicture>,
    /// Why one could not be decoded; those behind it were not tried.
    pub damage: Option<String>,
}

/// A decoder, which works on threads for blocking work.
pub(super) struct H264Decoder(Option<Box<Decoder>>);

impl H264Decoder {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// Decodes; if this is cancelled, the decoder is made anew for the next key frame.
    pub(super) async fn decode(&mut self, order: DecodeOrder) -> Decoded {
        let decoder = self.0.take();
        let work = tokio::task::spawn_blocking(move || {
            let mut decoder = match decoder.map_or_else(|| Decoder::new().map(Box::new), Ok) {
                Ok(decoder) => decoder,
                Err(error) => return (None, damaged(format!("no decoder can be made: {error}"))),
            };
            let decoded = decode_order(&mut decoder, &order);
            (Some(decoder), decoded)
        });
        let (decoder, decoded) = work.await.unwrap_or_else(|error| (None, damaged(error.to_string())));
        self.0 = decoder;
        decoded
    }
}

fn damaged(why: String) -> Decoded {
    Decoded { picture: None, damage: Some(why) }
}

fn decode_order(decoder: &mut Decoder, order: &DecodeOrder) -> Decoded {
    match last_picture(decoder, order) {
        // Any other than a key frame may be shown later, where pictures are coded out of order.
        Ok(None) if order.is_key && order.is_wanted => damaged("the decoder gave no picture".into()),
        Ok(picture) => Decoded { picture, damage: None },
        Err(error) => damaged(error.to_string()),
    }
}

/// Decodes all, and copies the last if it is wanted.
fn last_picture(decoder: &mut Decoder, order: &DecodeOrder) -> Result<Option<YuvPicture>, openh264::Error> {
    // What the decoder holds back to put it in order must not be asked for between pictures that are out of order: it
    // would never let go of those that come before what it gave, and run out of room.
    let in_order = || DecodeOptions::new().flush_after_decode(Flush::NoFlush);
    let Some((last, before)) = order.pictures.split_last() else { return Ok(None) };
    for coded in before {
        decoder.decode_with_options(coded, in_order())?;
    }
    let given = decoder.decode_with_options(last, in_order())?;
    let given = given.filter(|_| order.is_wanted).and_then(|picture| copy_picture(&picture));
    // A key frame begins anew: it is the last of what is held back.
    let held_back = if order.is_key { decoder.flush_remaining()? } else { Vec::new() };
    let newest = held_back.last().filter(|_| order.is_wanted).and_then(copy_picture);
    Ok(newest.or(given))
}

/// The planes without their padding, and without an odd last row or column.
fn copy_picture(decoded: &impl YUVSource) -> Option<YuvPicture> {
    let (width, height) = decoded.dimensions();
    let (width_px, height_px) = (width & !1, height & !1);
    let (y_stride, u_stride, v_stride) = decoded.strides();
    let plane = |samples: &[u8], stride: usize, width: usize, height: usize| {
        let mut plane = Vec::with_capacity(width * height);
        for row in samples.chunks(stride.max(1)).take(height) {
            plane.extend_from_slice(row.get(..width)?);
        }
        (plane.len() == width * height && !plane.is_empty()).then_some(plane)
    };
    Some(YuvPicture {
        width_px,
        height_px,
        y: plane(decoded.y(), y_stride, width_px, height_px)?,
        u: plane(decoded.u(), u_stride, width_px / 2, height_px / 2)?,
        v: plane(decoded.v(), v_stride, width_px / 2, height_px / 2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes pictures at 10 a second with a key frame every `group`; returns how many were decoded, and given.
    fn run(gop: &mut GroupOfPictures, start: Instant, numbers: std::ops::Range<u64>, group: u64) -> (usize, usize) {
        let (mut decoded, mut given) = (0, 0);
        for number in numbers {
            let now = start + Duration::from_millis(number * 100);
            let order = gop.push(vec![number as u8; 100], number % group == 0, now, true);
            decoded += order.pictures.len();
            given += usize::from(order.is_wanted && !order.pictures.is_empty());
        }
        (decoded, given)
    }

    #[test]
    fn where_key_frames_are_near_nothing_else_is_decoded() {
        let mut gop = GroupOfPictures::new(Duration::from_secs(1));
        assert_eq!(run(&mut gop, Instant::now(), 0..1000, 20), (50, 50));
        assert_eq!(gop.key_frame_distance(), Some(Duration::from_secs(2)));
        assert!(!gop.decodes_all());
    }

    #[test]
    fn where_key_frames_are_far_apart_all_are_decoded_in_order_and_none_twice() {
        let mut gop = GroupOfPictures::new(Duration::from_secs(1));
        let (decoded, given) = run(&mut gop, Instant::now(), 0..1000, 600);
        assert_eq!(decoded, 1000, "the kept ones, too, once it is known that they are needed");
        // One at the start, then nothing until the limit of 2.5 s has passed.
        assert_eq!(given, 1 + (1000 - 26));
        assert!(gop.decodes_all());
    }

    #[test]
    fn a_camera_may_change_the_distance_of_its_key_frames() {
        let (mut gop, start) = (GroupOfPictures::new(Duration::from_secs(1)), Instant::now());
        run(&mut gop, start, 0..600, 100);
        assert!(gop.decodes_all());
        run(&mut gop, start, 600..700, 10);
        assert!(!gop.decodes_all());
        let (decoded, _) = run(&mut gop, start, 700..800, 10);
        assert_eq!(decoded, 10);
    }

    #[test]
    fn a_key_frame_that_is_not_due_is_kept_for_those_that_need_it() {
        let (mut gop, start) = (GroupOfPictures::new(Duration::from_secs(1)), Instant::now());
        let at = |s: f32| start + Duration::from_secs_f32(s);
        assert!(!gop.push(vec![1], true, at(0.0), true).pictures.is_empty());
        assert!(gop.push(vec![2], true, at(0.5), false).pictures.is_empty());
        assert!(gop.push(vec![3], false, at(0.6), true).pictures.is_empty());
        let order = gop.push(vec![4], false, at(3.1), true);
        assert_eq!(order.pictures, [[2], [3], [4]]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_lost_waits_for_a_key_frame() {
        let (mut gop, start) = (GroupOfPictures::new(Duration::from_secs(1)), Instant::now());
        assert!(gop.push(vec![0], false, start, true).pictures.is_empty(), "before the first key frame");
        gop.push(vec![0], true, start, true);
        for number in 0..20 {
            let order = gop.push(vec![0; 1 << 20], false, start, true);
            assert!(order.pictures.is_empty() && gop.kept_bytes <= MAX_KEPT_BYTES, "{number}");
        }
        let later = start + Duration::from_secs(3);
        assert!(gop.push(vec![0], false, later, true).pictures.is_empty(), "its beginning is gone");
        assert_eq!(gop.push(vec![9], true, later, true).pictures, [[9]]);
    }
}
