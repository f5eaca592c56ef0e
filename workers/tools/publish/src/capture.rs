//! When a picture was taken, according to its Exif data (Exif 2.32, sections 4.6.5 F and 4.6.6).

use std::io::Cursor;

use chrono::{Local, NaiveDate, NaiveDateTime, Offset, TimeZone};
use exif::{Exif, In, Reader, Tag, Value};
use schemas::limits::MAX_IMAGE_BYTES;

/// How far a camera's clock may be ahead of ours, milliseconds: a camera further east that notes no time zone.
const MAX_CLOCK_AHEAD_MS: u64 = 24 * 60 * 60 * 1000;

/// Capture time in milliseconds since the epoch. A time without a zone is in this machine's zone (`TZ`). Absent where
/// the file has none, and for the values of an unset clock: January 1980 or before, or the future.
pub(crate) fn read_capture_time(bytes: &[u8], now_ms: u64) -> Option<u64> {
    // A TIFF is copied entirely for this.
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return None;
    }
    let exif = Reader::new().read_from_container(&mut Cursor::new(bytes)).ok()?;
    let (time, zone, fraction) = match read_time(&exif, Tag::DateTimeOriginal) {
        Some(time) => (time, Tag::OffsetTimeOriginal, Tag::SubSecTimeOriginal),
        None => (read_time(&exif, Tag::DateTimeDigitized)?, Tag::OffsetTimeDigitized, Tag::SubSecTimeDigitized),
    };
    let offset_s = match read_text(&exif, zone).as_deref().and_then(read_offset) {
        Some(offset_s) => offset_s,
        // Of the two readings in the hour that is repeated when clocks are set back, the earlier.
        None => Local.offset_from_local_datetime(&time).earliest()?.fix().local_minus_utc(),
    };
    let set_since = NaiveDate::from_ymd_opt(1980, 1, 2)?;
    let millis = read_text(&exif, fraction).as_deref().map_or(0, read_millis);
    let at_ms = (time.and_utc().timestamp() - i64::from(offset_s)) * 1000 + i64::from(millis);
    let at_ms = u64::try_from(at_ms).ok().filter(|_| time.date() >= set_since)?;
    (at_ms <= now_ms.saturating_add(MAX_CLOCK_AHEAD_MS)).then_some(at_ms)
}

fn read_time(exif: &Exif, tag: Tag) -> Option<NaiveDateTime> {
    NaiveDateTime::parse_from_str(read_text(exif, tag)?.trim(), "%Y:%m:%d %H:%M:%S").ok()
}

fn read_text(exif: &Exif, tag: Tag) -> Option<String> {
    match &exif.get_field(tag, In::PRIMARY)?.value {
        Value::Ascii(lines) => Some(String::from_utf8_lossy(lines.first()?).into_owned()),
        _ => None,
    }
}

/// Offset in seconds east of Greenwich, from `+02:00`.
fn read_offset(text: &str) -> Option<i32> {
    let (sign, digits) = match text.trim().split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_once(':')?;
    let (hours, minutes) = (hours.parse::<i32>().ok()?, minutes.parse::<i32>().ok()?);
    ((0..=14).contains(&hours) && (0..60).contains(&minutes)).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Milliseconds from the fraction of a second.
fn read_millis(text: &str) -> u32 {
    let digits: String = text.trim().chars().take_while(char::is_ascii_digit).chain("000".chars()).take(3).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    /// The beginning of a JPEG with an Exif segment of these texts.
    fn picture(fields: &[(Tag, &str)]) -> Vec<u8> {
        let mut writer = exif::experimental::Writer::new();
        let fields: Vec<exif::Field> = fields
            .iter()
            .map(|(tag, text)| exif::Field {
                tag: *tag,
                ifd_num: In::PRIMARY,
                value: Value::Ascii(vec![text.as_bytes().to_vec()]),
            })
            .collect();
        fields.iter().for_each(|field| writer.push_field(field));
        let mut tiff = Cursor::new(Vec::new());
        writer.write(&mut tiff, true).unwrap();
        let content = [b"Exif\0\0".as_slice(), tiff.get_ref()].concat();
        let length = (content.len() as u16 + 2).to_be_bytes();
        [b"\xff\xd8\xff\xe1".as_slice(), &length, &content, b"\xff\xd9"].concat()
    }

    #[test]
    fn a_time_with_its_zone_is_read_to_the_millisecond() {
        let bytes = picture(&[
            (Tag::DateTimeOriginal, "2024:07:14 14:34:56"),
            (Tag::OffsetTimeOriginal, "+02:00"),
            (Tag::SubSecTimeOriginal, "25"),
        ]);
        assert_eq!(read_capture_time(&bytes, NOW_MS), Some(1_720_960_496_250));
        let west = picture(&[(Tag::DateTimeDigitized, "2024:07:14 07:04:56"), (Tag::OffsetTimeDigitized, "-05:30")]);
        assert_eq!(read_capture_time(&west, NOW_MS), Some(1_720_960_496_000));
    }

    #[test]
    fn a_time_without_a_zone_is_in_this_machines_zone() {
        let time = NaiveDate::from_ymd_opt(2024, 7, 14).unwrap().and_hms_opt(12, 0, 0).unwrap();
        let here = Local.from_local_datetime(&time).unwrap().timestamp_millis() as u64;
        assert_eq!(read_capture_time(&picture(&[(Tag::DateTimeOriginal, "2024:07:14 12:00:00")]), NOW_MS), Some(here));
    }

    #[test]
    fn an_unset_clock_gives_no_capture_time() {
        for time in
            ["1980:01:01 00:00:12", "1970:01:01 00:00:00", "0000:00:00 00:00:00", "2099:01:01 00:00:00", "    :  :  "]
        {
            let bytes = picture(&[(Tag::DateTimeOriginal, time), (Tag::OffsetTimeOriginal, "+00:00")]);
            assert_eq!(read_capture_time(&bytes, NOW_MS), None, "{time}");
        }
        for bytes in [&b""[..], b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"] {
            assert_eq!(read_capture_time(bytes, NOW_MS), None);
        }
    }

    #[test]
    fn what_cameras_note_is_read_or_passed_over_when_bent() {
        let noted = picture(&[
            (Tag::DateTimeOriginal, "2024:07:14 14:34:56"),
            (Tag::OffsetTimeOriginal, "+02:00"),
            (Tag::SubSecTimeOriginal, "25"),
        ]);
        let mut pictures = bend::corpus("fixtures/images/field", &[".jpg", ".tif", ".png"], 2_000);
        pictures.extend(std::iter::repeat_n(noted, pictures.len()));
        bend::bend_all("times in pictures", &pictures, bend::turns(), |bytes| {
            if let Some(at_ms) = read_capture_time(bytes, NOW_MS) {
                assert!(at_ms <= NOW_MS + MAX_CLOCK_AHEAD_MS);
            }
            1
        });
    }
}
