//! The work of recognizing one image. Not a message of its own: the image's bytes travel as published, and the task is
//! read from the subject and optional headers, so that any client can publish.

use crate::blob::{BlobRef, BlobRefError};
use crate::id::{CameraName, IdError, SiteName, TaskId};
use crate::limits::{MAX_FILE_NAME_BYTES, MAX_IMAGE_BYTES, MAX_LABEL_BYTES, MAX_THUMBNAIL_BYTES};
use crate::picture::PictureReport;

/// The broker's message id: makes a repeated publish one image; a UUID here becomes the task id.
pub const HEADER_MESSAGE_ID: &str = "Nats-Msg-Id";
/// Id of the task when it differs from the message id (a redriven message).
pub const HEADER_TASK: &str = "Tributary-Task";
/// When the image was taken, milliseconds since the epoch.
pub const HEADER_CAPTURED_AT: &str = "Tributary-Captured-At";
/// How long after publishing a final answer is of use, in milliseconds.
pub const HEADER_DEADLINE: &str = "Tributary-Deadline-Ms";
/// Priority, 0 (bulk) to 9 (first); 5 if absent.
pub const HEADER_PRIORITY: &str = "Tributary-Priority";
/// The true label, if the publisher knows it.
pub const HEADER_LABEL: &str = "Tributary-Label";
/// Name of the file that the image came from, for people to search by.
pub const HEADER_FILE: &str = "Tributary-File";
/// Reference to the image's bytes in the blob bucket; the payload is then empty.
pub const HEADER_BLOB: &str = "Tributary-Blob";
/// Destination of a message in the outbox: its subject in the cloud.
pub const HEADER_TO: &str = "Tributary-To";
/// When a message in the outbox stops being of use, milliseconds since the epoch.
pub const HEADER_DEADLINE_AT: &str = "Tributary-Deadline-At-Ms";
/// Task that answered the same image before, when it was replayed from a stream.
pub const HEADER_REPLAYED: &str = "Tributary-Replayed";
/// Sequence in IMAGES of the image that an answer is about, so that outcomes can be counted from headers alone.
pub const HEADER_IMAGE: &str = "Tributary-Image";
/// Measures of the picture by whoever took it, JSON: [`crate::PictureReport`].
pub const HEADER_PICTURE: &str = "Tributary-Picture";
/// A small gray copy of the picture by whoever took it, base64.
pub const HEADER_THUMBNAIL: &str = "Tributary-Thumbnail";
/// States of what the picture shows, as the labels that name them, comma separated: `open,closed`.
pub const HEADER_STATES: &str = "Tributary-States";
/// Position of a tile in its scan: `<scan task> <x> <y> <width> <height> <scan width> <scan height>`.
pub const HEADER_TILE: &str = "Tributary-Tile";

const DEFAULT_PRIORITY: u8 = 5;

/// The work of recognizing one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Id of the task.
    pub id: TaskId,
    /// Site that the image was published at.
    pub site: SiteName,
    /// Camera that the image came from.
    pub camera: CameraName,
    /// Where the bytes are; absent when they are in the message itself.
    pub blob: Option<BlobRef>,
    /// Sequence of the image in the stream IMAGES, from 1.
    pub image_sequence: u64,
    /// When the image was taken, milliseconds since the epoch; absent if the publisher did not say.
    pub captured_at_ms: Option<u64>,
    /// When the image was stored at the site, milliseconds since the epoch.
    pub published_at_ms: u64,
    /// When a final answer stops being of use, milliseconds since the epoch; absent if the publisher did not say.
    pub deadline_at_ms: Option<u64>,
    /// Priority, 0 (bulk) to 9 (first).
    pub priority: u8,
    /// The true label, if the publisher knows it.
    pub truth: Option<String>,
    /// File that the image came from, if the publisher named it.
    pub file: Option<String>,
    /// Position in the scan it was cut from; absent for an image that is not a tile.
    pub tile: Option<Tile>,
    /// Task that answered the same image before, when it was replayed from a stream: nothing is learned from it, and it
    /// does not leave the site.
    pub replayed: Option<TaskId>,
    /// Measures of the picture by whoever took it; absent if nobody measured.
    pub picture: Option<PictureReport>,
    /// A small gray copy of the picture by whoever took it: the header's text, not read here. At most
    /// [`MAX_THUMBNAIL_BYTES`].
    pub thumbnail: Option<String>,
    /// The labels that are states of what the picture shows; empty if it has none.
    pub states: Vec<String>,
    /// Oddities of its headers that were ignored, in words, at most [`MAX_NOTES`].
    pub notes: Vec<String>,
}

/// Position of a tile in a scan that was too large to be one task.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tile {
    /// Task id of the whole scan, shared by all its tiles.
    pub scan: TaskId,
    /// Left edge in the scan, pixels.
    pub x_px: u32,
    /// Upper edge in the scan, pixels.
    pub y_px: u32,
    /// Width of the tile, pixels.
    pub width_px: u32,
    /// Height of the tile, pixels.
    pub height_px: u32,
    /// Width of the whole scan, pixels.
    pub scan_width_px: u32,
    /// Height of the whole scan, pixels.
    pub scan_height_px: u32,
}

/// Where and when an image was stored, according to the broker rather than the publisher.
#[derive(Debug, Clone)]
pub struct StorageStamp {
    /// Site in the subject.
    pub site: SiteName,
    /// Camera in the subject.
    pub camera: CameraName,
    /// Sequence in the stream, from 1.
    pub sequence: u64,
    /// Time of the message in the stream, nanoseconds since the epoch.
    pub stored_at_ns: i128,
}

const PRIORITIES: &str = "a number from 0 to 9";
const PICTURES: &str = "measures of the picture in JSON, within their ranges";
const STATES: &str = "2 to 16 different labels, comma separated";
/// Numbers of states that a picture may have.
const STATE_COUNTS: std::ops::RangeInclusive<usize> = 2..=16;
const CAPTURE_TIMES: &str = "milliseconds since the epoch, or a time like 2026-11-29T08:00:00+01:00";
/// Values in this range are read as seconds (1973 to the year 5138); as milliseconds they would be early 1970 to 1973.
const SECONDS: std::ops::Range<f64> = 1e8..1e11;
/// Most notes on one image: one for each optional header, and one for its bytes.
pub const MAX_NOTES: usize = 9;

/// Why the headers of an image make no task. Always the publisher's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// A header that is malformed or out of range.
    #[error("header {header} is {text:?}, expected {expected}")]
    Number {
        /// Name of the header.
        header: &'static str,
        /// Its value, cut to a printable length.
        text: String,
        /// What the value may be.
        expected: &'static str,
    },
    /// A blob reference that cannot be read.
    #[error("header {HEADER_BLOB} could not be parsed")]
    Blob(#[from] BlobRefError),
    /// A blob larger than the largest image accepted.
    #[error("header {HEADER_BLOB} refers to {size_bytes} bytes; at most {MAX_IMAGE_BYTES} are accepted")]
    BlobTooLarge {
        /// Size in the reference, in bytes.
        size_bytes: u64,
    },
    /// A task id that is not a UUID.
    #[error("header {HEADER_TASK} or {HEADER_REPLAYED} could not be parsed")]
    Id(#[from] IdError),
}

impl Task {
    /// The task of a stored image. `header` looks a header up by name; `payload` is the message's.
    pub fn from_headers<'h>(
        stamp: &StorageStamp,
        header: impl Fn(&'static str) -> Option<&'h str>,
        payload: &[u8],
    ) -> Result<Self, TaskError> {
        let published_at_ms = u64::try_from(stamp.stored_at_ns / 1_000_000).unwrap_or(0);
        let blob: Option<BlobRef> = header(HEADER_BLOB).map(str::parse).transpose()?;
        if let Some(blob) = blob.as_ref().filter(|blob| blob.size_bytes > MAX_IMAGE_BYTES) {
            return Err(TaskError::BlobTooLarge { size_bytes: blob.size_bytes });
        }
        let mut notes = Vec::new();
        let truth = optional_text(HEADER_LABEL, header(HEADER_LABEL), MAX_LABEL_BYTES, &mut notes);
        let file = optional_text(HEADER_FILE, header(HEADER_FILE), MAX_FILE_NAME_BYTES, &mut notes);
        let deadline_ms = optional(HEADER_DEADLINE, header(HEADER_DEADLINE), "milliseconds, at least 0", &mut notes);
        let priority = optional(HEADER_PRIORITY, header(HEADER_PRIORITY), PRIORITIES, &mut notes);
        if let Some(priority @ 10..) = priority {
            notes.push(ignored_note(HEADER_PRIORITY, &u8::to_string(&priority), PRIORITIES));
        }
        let captured_at_ms = header(HEADER_CAPTURED_AT).and_then(|text| {
            let at = CaptureTime::read(text);
            match &at {
                None => notes.push(ignored_note(HEADER_CAPTURED_AT, text, CAPTURE_TIMES)),
                Some(at) if at.was_seconds => {
                    notes.push(format!("header {HEADER_CAPTURED_AT} is {}; it was read as seconds", text.trim()));
                }
                Some(_) => {}
            }
            at.map(|at| at.at_ms)
        });
        let thumbnail = optional_text(HEADER_THUMBNAIL, header(HEADER_THUMBNAIL), MAX_THUMBNAIL_BYTES, &mut notes);
        let picture = read_or_note(HEADER_PICTURE, header(HEADER_PICTURE), PICTURES, PictureReport::read, &mut notes);
        let states = read_or_note(HEADER_STATES, header(HEADER_STATES), STATES, read_states, &mut notes);
        Ok(Self {
            id: Self::id_of(stamp, &header, payload)?,
            site: stamp.site.clone(),
            camera: stamp.camera.clone(),
            blob,
            image_sequence: stamp.sequence,
            captured_at_ms,
            published_at_ms,
            deadline_at_ms: deadline_ms.map(|ms: u64| published_at_ms.saturating_add(ms)),
            priority: priority.filter(|priority| *priority < 10).unwrap_or(DEFAULT_PRIORITY),
            truth,
            file,
            tile: header(HEADER_TILE).map(Tile::read).transpose()?,
            replayed: header(HEADER_REPLAYED).map(str::parse).transpose()?,
            picture,
            thumbnail,
            states: states.unwrap_or_default(),
            notes,
        })
    }

    /// A task of which only the id is known, because its headers could not be read.
    pub fn from_id(stamp: &StorageStamp, id: TaskId) -> Self {
        Self {
            id,
            site: stamp.site.clone(),
            camera: stamp.camera.clone(),
            blob: None,
            image_sequence: stamp.sequence,
            captured_at_ms: None,
            published_at_ms: u64::try_from(stamp.stored_at_ns / 1_000_000).unwrap_or(0),
            deadline_at_ms: None,
            priority: DEFAULT_PRIORITY,
            truth: None,
            file: None,
            tile: None,
            replayed: None,
            picture: None,
            thumbnail: None,
            states: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Whether nothing is known to be wrong with its picture.
    pub fn has_healthy_picture(&self) -> bool {
        self.picture.as_ref().is_none_or(PictureReport::is_healthy)
    }

    /// Notes that a header was ignored.
    pub fn note_ignored(&mut self, header: &'static str, text: &str, expected: &'static str) {
        self.notes.push(ignored_note(header, text, expected));
    }

    /// This task with the name of its file, unless the name is too long.
    pub fn with_file(mut self, name: Option<&str>) -> Self {
        self.file = name.filter(|name| name.len() <= MAX_FILE_NAME_BYTES).map(str::to_owned);
        self
    }

    /// This task with the deadline in its header, if that can be read.
    pub fn with_deadline(mut self, header: Option<&str>) -> Self {
        let ms = header.and_then(|text| text.trim().parse::<u64>().ok());
        self.deadline_at_ms = ms.map(|ms| self.published_at_ms.saturating_add(ms));
        self
    }

    /// The id of a stored image's task, whatever its other headers are.
    pub fn id_of<'h>(
        stamp: &StorageStamp,
        header: &impl Fn(&'static str) -> Option<&'h str>,
        payload: &[u8],
    ) -> Result<TaskId, TaskError> {
        if let Some(id) = header(HEADER_TASK) {
            return Ok(id.parse()?);
        }
        Ok(match header(HEADER_MESSAGE_ID) {
            Some(id) => {
                let content = header(HEADER_BLOB).map_or(payload, str::as_bytes);
                TaskId::from_message_id(&stamp.site, &stamp.camera, id, content)
            }
            None => TaskId::from_sequence(&stamp.site, &stamp.camera, stamp.sequence, stamp.stored_at_ns),
        })
    }
}

/// When an image was taken, according to its publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureTime {
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Whether it was given in seconds, judging by its size.
    pub was_seconds: bool,
}

impl CaptureTime {
    /// Parses milliseconds or seconds since the epoch, or a time with its zone (RFC 3339). `None` for anything else,
    /// including times without a zone, which are ambiguous, and times before 1970.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(number) = text.parse::<f64>() {
            let was_seconds = SECONDS.contains(&number);
            let at_ms = if was_seconds { number * 1000.0 } else { number };
            // An f64 of this size still resolves single milliseconds.
            return (0.0..9e15).contains(&at_ms).then_some(Self { at_ms: at_ms as u64, was_seconds });
        }
        let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        let at_ms = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?;
        Some(Self { at_ms, was_seconds: false })
    }
}

impl Tile {
    /// Its text in the header.
    pub fn header(&self) -> String {
        let Self { scan, x_px, y_px, width_px, height_px, scan_width_px, scan_height_px } = self;
        format!("{scan} {x_px} {y_px} {width_px} {height_px} {scan_width_px} {scan_height_px}")
    }

    fn read(text: &str) -> Result<Self, TaskError> {
        let unreadable = || invalid_header(HEADER_TILE, text, "<scan task> and six numbers of pixels");
        let mut words = text.split(' ');
        let scan = words.next().and_then(|word| word.parse().ok()).ok_or_else(unreadable)?;
        let mut pixels = || words.next().and_then(|word| word.parse().ok()).ok_or_else(unreadable);
        Ok(Self {
            scan,
            x_px: pixels()?,
            y_px: pixels()?,
            width_px: pixels()?,
            height_px: pixels()?,
            scan_width_px: pixels()?,
            scan_height_px: pixels()?,
        })
    }
}

fn invalid_header(header: &'static str, text: &str, expected: &'static str) -> TaskError {
    TaskError::Number { header, text: text.chars().take(100).collect(), expected }
}

/// Parses an optional number; one that cannot be parsed is ignored and noted.
fn optional<N: std::str::FromStr>(
    header: &'static str,
    text: Option<&str>,
    expected: &'static str,
    notes: &mut Vec<String>,
) -> Option<N> {
    read_or_note(header, text, expected, |text| text.trim().parse().ok(), notes)
}

/// Reads an optional header; one that cannot be read is ignored and noted.
fn read_or_note<T>(
    header: &'static str,
    text: Option<&str>,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
    notes: &mut Vec<String>,
) -> Option<T> {
    let text = text?;
    let found = read(text);
    if found.is_none() {
        notes.push(ignored_note(header, text, expected));
    }
    found
}

/// The states in a header.
fn read_states(text: &str) -> Option<Vec<String>> {
    // One more than there may be, so that a long text costs no more.
    let most = *STATE_COUNTS.end() + 1;
    let states: Vec<&str> = text.split(',').map(str::trim).take(most).collect();
    let is_label = |state: &&str| !state.is_empty() && state.len() <= MAX_LABEL_BYTES;
    let is_new = |(at, state): (usize, &&str)| states.iter().take(at).all(|before| before != state);
    let is_list = STATE_COUNTS.contains(&states.len()) && states.iter().all(is_label);
    (is_list && states.iter().enumerate().all(is_new)).then(|| states.iter().map(|state| (*state).to_owned()).collect())
}

/// Reads an optional text; one that is too long is ignored and noted.
fn optional_text(
    header: &'static str,
    text: Option<&str>,
    limit_bytes: usize,
    notes: &mut Vec<String>,
) -> Option<String> {
    let text = text?;
    if text.len() > limit_bytes {
        let size_bytes = text.len();
        notes.push(format!(
            "header {header} has {size_bytes} bytes; at most {limit_bytes} are allowed, so it was ignored"
        ));
        return None;
    }
    Some(text.to_owned())
}

fn ignored_note(header: &'static str, text: &str, expected: &'static str) -> String {
    format!("{}; it was ignored", invalid_header(header, text, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(sequence: u64) -> StorageStamp {
        StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "cam1".parse().unwrap(),
            sequence,
            stored_at_ns: 1_700_000_000_123_456_789,
        }
    }

    fn read(headers: &[(&'static str, &'static str)]) -> Result<Task, TaskError> {
        Task::from_headers(
            &stored(7),
            |name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value),
            b"jpeg",
        )
    }

    #[test]
    fn an_image_without_headers_is_a_task() {
        let task = read(&[]).unwrap();
        assert_eq!((task.image_sequence, task.published_at_ms, task.priority), (7, 1_700_000_000_123, 5));
        assert_eq!(task.id, read(&[]).unwrap().id, "a second delivery is the same task");
        assert_ne!(task.id, Task::from_headers(&stored(8), |_| None, b"jpeg").unwrap().id);
    }

    #[test]
    fn a_redriven_message_keeps_its_task() {
        let task = TaskId::new_random();
        let text: &'static str = task.to_string().leak();
        assert_eq!(read(&[(HEADER_MESSAGE_ID, "again-1"), (HEADER_TASK, text)]).unwrap().id, task);
    }

    #[test]
    fn a_header_out_of_range_is_refused_by_name() {
        for (header, text) in [(HEADER_BLOB, "x"), (HEADER_TASK, "x"), (HEADER_REPLAYED, "x"), (HEADER_TILE, "1 2 3")] {
            let error = read(&[(header, text)]).unwrap_err();
            assert!(error.to_string().contains(header), "{error} does not name {header}");
        }
    }

    #[test]
    fn an_invalid_optional_header_is_ignored_and_noted() {
        let long: &'static str = "x".repeat(5000).leak();
        for (header, text) in [
            (HEADER_PRIORITY, "10"),
            (HEADER_PRIORITY, "-1"),
            (HEADER_DEADLINE, "soon"),
            (HEADER_CAPTURED_AT, "yesterday"),
            (HEADER_LABEL, long),
            (HEADER_FILE, long),
            (HEADER_THUMBNAIL, long),
            (HEADER_PICTURE, "{}"),
            (HEADER_PICTURE, long),
            (HEADER_STATES, "open"),
            (HEADER_STATES, "open,,closed"),
            (HEADER_STATES, "open,closed,open"),
            (HEADER_STATES, long),
        ] {
            let task = read(&[(header, text)]).unwrap();
            let [note] = &task.notes[..] else { panic!("{header}: {:?}", task.notes) };
            assert!(note.contains(header) && note.contains("ignored") && note.len() < 300, "{note}");
            assert_eq!((task.priority, task.deadline_at_ms, task.captured_at_ms), (5, None, None));
            assert_eq!((task.truth, task.file, task.thumbnail, task.picture), (None, None, None, None));
            assert!(task.states.is_empty());
        }
        let all = [
            (HEADER_PRIORITY, "x"),
            (HEADER_DEADLINE, "x"),
            (HEADER_CAPTURED_AT, "x"),
            (HEADER_LABEL, long),
            (HEADER_FILE, long),
            (HEADER_THUMBNAIL, long),
            (HEADER_PICTURE, long),
            (HEADER_STATES, long),
        ];
        assert!(read(&all).unwrap().notes.len() < MAX_NOTES, "one more is for the bytes");
    }

    #[test]
    fn what_a_camera_says_of_its_picture_is_read() {
        let faulty = r#"{"brightness_ratio":0.01,"contrast_ratio":0.0,"white_ratio":0.0,"faults":["black"]}"#;
        let task =
            read(&[(HEADER_PICTURE, faulty), (HEADER_THUMBNAIL, "AAAA"), (HEADER_STATES, " open, half closed ")])
                .unwrap();
        assert_eq!((task.states, task.notes), (vec!["open".to_owned(), "half closed".to_owned()], Vec::new()));
        assert_eq!(task.thumbnail.as_deref(), Some("AAAA"));
        assert!(task.picture.is_some_and(|picture| !picture.is_healthy()));
        assert!(read(&[]).unwrap().has_healthy_picture(), "nobody measured");
        assert!(!read(&[(HEADER_PICTURE, faulty)]).unwrap().has_healthy_picture());
        let most: Vec<String> = (0..17).map(|state| format!("state {state}")).collect();
        assert_eq!(read_states(&most[..16].join(",")).map(|states| states.len()), Some(16));
        assert_eq!(read_states(&most.join(",")), None);
    }

    #[test]
    fn a_time_in_seconds_is_distinguished_from_one_in_milliseconds() {
        let seconds = read(&[(HEADER_CAPTURED_AT, "1700000000")]).unwrap();
        assert_eq!(seconds.captured_at_ms, Some(1_700_000_000_000));
        assert!(seconds.notes[0].contains("read as seconds"), "{:?}", seconds.notes);
        let task = read(&[(HEADER_CAPTURED_AT, "1700000000123")]).unwrap();
        assert_eq!((task.captured_at_ms, task.notes), (Some(1_700_000_000_123), Vec::new()));
    }

    #[test]
    fn a_capture_time_is_parsed_as_clients_write_it() {
        let at = |text| CaptureTime::read(text).map(|at| at.at_ms);
        for text in
            ["1720960496000", "1720960496", "1720960496.0", " 2024-07-14T12:34:56Z", "2024-07-14T14:34:56+02:00"]
        {
            assert_eq!(at(text), Some(1_720_960_496_000), "{text}");
        }
        assert_eq!(at("0"), Some(0));
        for text in ["", "yesterday", "-1", "NaN", "inf", "1e300", "2024-07-14T12:34:56", "1969-12-31T23:00:00Z"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_tile_round_trips_through_its_header(x in 0u32.., y in 0u32.., side in 1u32.., scan in "[a-z]{1,9}") {
            let tile = Tile {
                scan: TaskId::from_name(&scan), x_px: x, y_px: y, width_px: side, height_px: side,
                scan_width_px: x, scan_height_px: y,
            };
            prop_assert_eq!(Tile::read(&tile.header()).unwrap(), tile);
        }

        #[test]
        fn no_header_text_panics(text in ".{0,80}") {
            let text: &'static str = text.leak();
            for header in [HEADER_TASK, HEADER_DEADLINE, HEADER_PRIORITY, HEADER_BLOB, HEADER_TILE, HEADER_LABEL, HEADER_CAPTURED_AT, HEADER_PICTURE, HEADER_THUMBNAIL, HEADER_STATES] {
                let _ = read(&[(header, text)]);
            }
        }
    }
}
