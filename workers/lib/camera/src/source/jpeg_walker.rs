//! Whole JPEGs out of any stream of bytes, whatever stands between them: no boundary and no length is believed, only what
//! a JPEG itself says. Segments are walked by their lengths, so that a thumbnail inside one is not taken for the picture.
//! What is kept is bounded.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// Begins every JPEG: the start, and the first byte of the next marker.
const START: [u8; 3] = [0xff, 0xd8, 0xff];

/// A picture is larger than was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PictureTooLarge {
    pub limit_bytes: usize,
}

impl PictureTooLarge {
    pub(super) fn why(self) -> String {
        format!("a picture is larger than {} MB", self.limit_bytes >> 20)
    }
}

/// What a piece of a stream completed.
#[derive(Debug, Default)]
pub(super) struct WalkedPictures {
    /// The first that was completed.
    pub first: Option<Bytes>,
    /// The last that was completed; absent if it is the first.
    pub last: Option<Bytes>,
    /// How many were completed.
    pub whole: u64,
    /// How many began and were never finished.
    pub cut: u64,
}

impl WalkedPictures {
    /// The newest picture.
    pub(super) fn newest(self) -> Option<Bytes> {
        self.last.or(self.first)
    }
}

/// Finds JPEGs in a stream.
#[derive(Debug)]
pub(super) struct JpegWalker {
    buffer: BytesMut,
    limit_bytes: usize,
    /// Before this, all of `buffer` has been looked at.
    at: usize,
    /// Where the latest segment begins.
    segment_at: usize,
    place: WalkPlace,
    skipped_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WalkPlace {
    /// Between pictures.
    Outside,
    /// At a marker.
    Marker,
    /// In the coded picture, which ends with any marker but a few.
    Coded,
}

/// What a step of the walk came to.
enum Step {
    Whole(usize),
    Cut,
    NeedsMore,
    On,
}

impl JpegWalker {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), limit_bytes, at: 0, segment_at: 0, place: WalkPlace::Outside, skipped_bytes: 0 }
    }

    /// Largest picture from now on.
    pub(super) fn set_limit(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes;
    }

    /// Whether a picture has begun and is not finished.
    pub(super) fn is_inside(&self) -> bool {
        self.place != WalkPlace::Outside
    }

    /// Bytes that belonged to no picture.
    pub(super) fn skipped_bytes(&self) -> u64 {
        self.skipped_bytes
    }

    /// Goes on with the next piece of the stream.
    ///
    /// # Errors
    /// A picture is too large; the walker goes on with the next one.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<WalkedPictures, PictureTooLarge> {
        self.buffer.extend_from_slice(piece);
        let mut walked = WalkedPictures::default();
        loop {
            match self.step() {
                Step::On => {}
                Step::Whole(end) => {
                    let picture = self.buffer.split_to(end).freeze();
                    (self.at, self.segment_at, self.place) = (0, 0, WalkPlace::Outside);
                    walked.whole += 1;
                    match walked.first {
                        None => walked.first = Some(picture),
                        Some(_) => walked.last = Some(picture),
                    }
                }
                Step::Cut => walked.cut += 1,
                Step::NeedsMore if self.buffer.len() > self.limit_bytes => {
                    self.skip(self.buffer.len());
                    return Err(PictureTooLarge { limit_bytes: self.limit_bytes });
                }
                Step::NeedsMore => return Ok(walked),
            }
        }
    }

    fn step(&mut self) -> Step {
        match self.place {
            WalkPlace::Outside => self.find_start(),
            WalkPlace::Marker => self.read_marker(),
            WalkPlace::Coded => self.find_marker(),
        }
    }

    fn find_start(&mut self) -> Step {
        match memchr::memmem::find(&self.buffer, &START) {
            Some(start) => {
                self.skip(start);
                (self.at, self.place) = (2, WalkPlace::Marker);
                Step::On
            }
            None => {
                // The start may lie across two pieces.
                self.skip(self.buffer.len().saturating_sub(START.len() - 1));
                Step::NeedsMore
            }
        }
    }

    fn read_marker(&mut self) -> Step {
        let Some([lead, marker]) = self.buffer.get(self.at..).and_then(|rest| rest.first_chunk()) else {
            return Step::NeedsMore;
        };
        match (*lead, *marker) {
            // Padding.
            (0xff, 0xff) => self.at += 1,
            // The end: asking for a length first would make every picture wait for the next one.
            (0xff, 0xd9) => return Step::Whole(self.at + 2),
            // These stand alone.
            (0xff, 0x01 | 0xd0..=0xd7) => self.at += 2,
            // The start of another: this one was never finished.
            (0xff, 0xd8) => return self.leave(self.at),
            (0xff, marker @ 0xc0..) => {
                let Some(length) = self.buffer.get(self.at + 2..).and_then(|rest| rest.first_chunk()) else {
                    return Step::NeedsMore;
                };
                let length = usize::from(u16::from_be_bytes(*length));
                if length < 2 {
                    return self.leave(self.at + 2);
                }
                self.segment_at = self.at;
                self.at += 2 + length;
                if marker == 0xda {
                    self.place = WalkPlace::Coded;
                }
            }
            // The latest length led to no marker: this one was cut there, and the next may lie in what was passed. What
            // came before was right, and may hold a thumbnail.
            _ => return self.leave(self.segment_at + 2),
        }
        Step::On
    }

    fn find_marker(&mut self) -> Step {
        let Some(found) = self.buffer.get(self.at..).and_then(|rest| memchr(0xff, rest)) else {
            // A length may have led past the end of what has arrived.
            self.at = self.at.max(self.buffer.len());
            return Step::NeedsMore;
        };
        self.at += found;
        match self.buffer.get(self.at + 1) {
            None => return Step::NeedsMore,
            // A byte of the picture, or a marker that belongs into it.
            Some(0x00 | 0xd0..=0xd7) => self.at += 2,
            Some(0xff) => self.at += 1,
            Some(_) => self.place = WalkPlace::Marker,
        }
        Step::On
    }

    /// Gives a picture up, and looks for the next one behind its first `bytes`.
    fn leave(&mut self, bytes: usize) -> Step {
        self.skip(bytes);
        Step::Cut
    }

    fn skip(&mut self, bytes: usize) {
        self.buffer.advance(bytes.min(self.buffer.len()));
        self.skipped_bytes += bytes as u64;
        (self.at, self.segment_at, self.place) = (0, 0, WalkPlace::Outside);
    }
}

/// The JPEG with which `bytes` begin, without what follows it; `None` if they do not begin with a whole one.
pub(super) fn leading_jpeg(bytes: &Bytes) -> Option<Bytes> {
    if !bytes.starts_with(&START) {
        return None;
    }
    let mut walker = JpegWalker::new(usize::MAX);
    let picture = walker.push(bytes).ok()?.first?;
    // The first whole one may lie behind one that is cut.
    (bytes.starts_with(&picture)).then(|| bytes.slice(..picture.len()))
}

/// Width and height that a JPEG names, pixels.
pub(super) fn jpeg_size_px(jpeg: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        let [lead, marker] = jpeg.get(at..)?.first_chunk()?;
        match (*lead, *marker) {
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd7) => at += 2,
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => {
                let [height_high, height_low, width_high, width_low] = jpeg.get(at + 5..)?.first_chunk()?;
                let number = |high: &u8, low: &u8| u32::from(u16::from_be_bytes([*high, *low]));
                return Some((number(width_high, width_low), number(height_high, height_low)));
            }
            (0xff, marker) if marker != 0xda && marker != 0xd9 => {
                at += 2 + usize::from(u16::from_be_bytes(*jpeg.get(at + 2..)?.first_chunk()?));
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A JPEG in form: a thumbnail inside a segment, a table, a frame of 40×30, coded bytes with stuffing and a restart,
    /// a second scan, the end.
    fn jpeg(number: u8) -> Vec<u8> {
        let thumbnail = [0xff, 0xd8, 0xff, 0xdb, 0, 3, 9, 0xff, 0xda, 0, 2, 7, 0xff, 0xd9];
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, 2 + thumbnail.len() as u8];
        bytes.extend(thumbnail);
        bytes.extend([0xff, 0xff, 0xdb, 0, 3, number]);
        bytes.extend([0xff, 0xc0, 0, 8, 8, 0, 30, 0, 40, 1]);
        bytes.extend([0xff, 0xda, 0, 3, 1, number, 0xff, 0, 5, 0xff, 0xd0, 6, 0xff, 0xff, 0]);
        bytes.extend([0xff, 0xda, 0, 3, 1, 77, number, 0xff, 0xd9]);
        bytes
    }

    /// The first and the last of what each piece completes, how many there were in all, and how many were cut.
    fn walk(stream: &[u8], piece: usize) -> (Vec<Bytes>, u64, u64) {
        let mut walker = JpegWalker::new(1 << 20);
        let (mut found, mut whole, mut cut) = (Vec::new(), 0, 0);
        for piece in stream.chunks(piece) {
            let walked = walker.push(piece).unwrap();
            (whole, cut) = (whole + walked.whole, cut + walked.cut);
            found.extend(walked.first.into_iter().chain(walked.last));
        }
        (found, whole, cut)
    }

    #[test]
    fn every_style_of_boundary_gives_the_same_pictures() {
        let styles: [(&str, &str); 8] = [
            ("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 82\r\n\r\n", "\r\n"),
            ("--frame\r\nContent-Type: image/jpeg\r\n\r\n", "\r\n"),
            ("----frame\r\n\r\n", "\r\n"),
            ("--frame\ncontent-type: image/jpeg\n\n", "\n"),
            ("ignore me\r\n\r\n--frame\r\nX-Timestamp: 1.0\r\n\r\n", ""),
            ("", ""),
            ("\r\n--frame\r\nContent-Length: 5\r\n\r\n", ""),
            ("--ÿ\u{fffd}\r\n\r\n", "\r\n"),
        ];
        for (before, after) in styles {
            let stream: Vec<u8> =
                (1..=2).flat_map(|number| [before.as_bytes(), &jpeg(number), after.as_bytes()].concat()).collect();
            for piece in [1, 2, 3, 7, stream.len()] {
                let (found, _, cut) = walk(&stream, piece);
                assert_eq!((found.len(), cut), (2, 0), "{before:?} in pieces of {piece}");
                assert_eq!((&found[0][..], &found[1][..]), (&jpeg(1)[..], &jpeg(2)[..]));
            }
        }
    }

    #[test]
    fn a_picture_is_there_with_its_last_byte() {
        let (picture, mut walker) = (jpeg(1), JpegWalker::new(1 << 20));
        let (last, before) = picture.split_last().unwrap();
        assert_eq!(walker.push(before).unwrap().whole, 0);
        assert!(walker.is_inside());
        assert_eq!(walker.push(&[*last]).unwrap().newest().unwrap(), picture);
        assert!(!walker.is_inside());
    }

    #[test]
    fn a_picture_that_is_cut_anywhere_does_not_cost_the_next_one() {
        let (whole, next) = (jpeg(1), jpeg(3));
        for end in 3..whole.len() - 1 {
            // What is cut may claim a length that leads into those behind it: as many as lie within it follow.
            let after: Vec<u8> = std::iter::repeat_n(next.clone(), 60).flatten().collect();
            let stream = [&whole[..end], b"\r\n--frame\r\n\r\n", &after].concat();
            let (found, pictures, cut) = walk(&stream, 1);
            let others = found.iter().filter(|picture| **picture != next).count();
            assert_eq!(found.last().unwrap(), &next, "cut at {end}");
            let is_as_expected = if others == 0 { cut > 0 && pictures == 60 } else { others == 1 };
            assert!(is_as_expected, "cut at {end}: {cut} noticed, {pictures} whole, {others} others");
        }
    }

    #[test]
    fn of_several_pictures_in_one_piece_the_last_is_the_newest() {
        let stream: Vec<u8> = (1..=5).flat_map(jpeg).collect();
        let walked = JpegWalker::new(1 << 20).push(&stream).unwrap();
        assert_eq!((walked.whole, walked.newest().unwrap()), (5, Bytes::from(jpeg(5))));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut walker = JpegWalker::new(1000);
        for _ in 0..100 {
            assert!(walker.push(&[b'x'; 500]).unwrap().first.is_none());
            assert!(walker.buffer.len() < START.len());
        }
        assert!(walker.push(&[0xff, 0xd8, 0xff, 0xda, 0, 2]).is_ok());
        let refused = (0..3).map(|_| walker.push(&[b'x'; 500])).find(Result::is_err);
        assert_eq!(refused.unwrap().unwrap_err(), PictureTooLarge { limit_bytes: 1000 });
        assert_eq!(walker.push(&jpeg(1)).unwrap().newest().unwrap(), jpeg(1), "and it goes on");
    }

    #[test]
    fn a_still_is_a_whole_jpeg_from_its_first_byte() {
        let whole = jpeg(1);
        assert_eq!(leading_jpeg(&Bytes::from([&whole[..], b"trailing", &jpeg(2)].concat())).unwrap(), whole);
        assert!(leading_jpeg(&Bytes::from(whole[..whole.len() - 1].to_vec())).is_none());
        assert!(leading_jpeg(&Bytes::from([b" ", &whole[..]].concat())).is_none());
        assert!(leading_jpeg(&Bytes::from([&whole[..45], &jpeg(2)[..]].concat())).is_none());
        assert_eq!(jpeg_size_px(&whole), Some((40, 30)));
        assert_eq!(jpeg_size_px(&whole[..30]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down_or_make_it_lose_a_picture_that_follows(
            noise in proptest::collection::vec(prop_oneof![Just(0xffu8), Just(0xd8), Just(0xda), any::<u8>()], 0..300),
            piece in 1usize..50,
        ) {
            // Whatever a length in the noise claims, it ends within 64 kB.
            let after: Vec<u8> = std::iter::repeat_with(|| jpeg(9)).take(1600).flatten().collect();
            let (found, ..) = walk(&[noise, after].concat(), piece * 97);
            prop_assert_eq!(found.last().unwrap(), &jpeg(9));
            let _ = jpeg_size_px(found.first().unwrap());
        }
    }
}
