//! What surrounds a picture: junk before a JPEG, base64, a data URL, or JSON with one of these inside. Pure.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use schemas::CaptureTime;

use super::format::PictureFormat;

/// Most bytes that are skipped before the beginning of a JPEG.
pub(super) const MAX_JUNK_BYTES: usize = 4096;
/// JSON that exceeds its picture by more than this is not searched. Bytes.
const MAX_BESIDE_BYTES: usize = 64 * 1024;

/// Padding is optional.
const fn engine(alphabet: &base64::alphabet::Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config.with_decode_allow_trailing_bits(true))
}
const STANDARD: GeneralPurpose = engine(&base64::alphabet::STANDARD);
const FOR_URLS: GeneralPurpose = engine(&base64::alphabet::URL_SAFE);

/// What surrounded a picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageEnvelope {
    /// Description for the answer; absent if nothing surrounded the picture.
    pub note: Option<String>,
    /// Capture time in milliseconds since the epoch, if surrounding JSON gives it.
    pub captured_at_ms: Option<u64>,
}

/// The bytes of a picture, and what surrounded them.
pub(super) struct UnwrappedImage<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) envelope: ImageEnvelope,
}

/// Unwraps a picture; the bytes are returned unchanged if no known wrapping is found.
pub(super) fn unwrap_image(bytes: &[u8]) -> UnwrappedImage<'_> {
    if PictureFormat::of(bytes).is_some() {
        return UnwrappedImage { bytes: Cow::Borrowed(bytes), envelope: ImageEnvelope::default() };
    }
    let behind = find_jpeg_start(bytes).and_then(|at| bytes.split_at_checked(at));
    if let Some((junk, jpeg)) = behind.filter(|(junk, _)| is_skippable(junk)) {
        let at = junk.len();
        let note = Some(format!("{at} bytes before the JPEG were skipped"));
        let envelope = ImageEnvelope { note, captured_at_ms: None };
        return UnwrappedImage { bytes: Cow::Borrowed(jpeg), envelope };
    }
    if let Some((picture, envelope)) = decode_json(bytes) {
        return UnwrappedImage { bytes: Cow::Owned(picture), envelope };
    }
    match decode_base64(bytes) {
        Some((picture, form)) => {
            let envelope = ImageEnvelope { note: Some(format!("the picture was {form}")), captured_at_ms: None };
            UnwrappedImage { bytes: Cow::Owned(picture), envelope }
        }
        None => UnwrappedImage { bytes: Cow::Borrowed(bytes), envelope: ImageEnvelope::default() },
    }
}

/// Offset of a JPEG that does not begin at once.
pub(super) fn find_jpeg_start(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..MAX_JUNK_BYTES + 3).unwrap_or(bytes);
    head.windows(3).position(|three| three == [0xff, 0xd8, 0xff]).filter(|at| *at > 0)
}

/// Whether these bytes may precede a JPEG: line ends and zeros of a stream split at the wrong byte, or the headers of a
/// part or an HTTP answer.
fn is_skippable(before: &[u8]) -> bool {
    if before.iter().all(|byte| matches!(byte, 0 | b' ' | b'\t' | b'\r' | b'\n')) {
        return true;
    }
    let text = before.trim_ascii_start();
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
    let is_head = begins(b"--") || begins(b"content-") || begins(b"http/1.");
    is_head && text.is_ascii() && (before.ends_with(b"\r\n\r\n") || before.ends_with(b"\n\n"))
}

/// A picture in the member `image` of an object; `captured_at`, if present, gives its capture time.
fn decode_json(bytes: &[u8]) -> Option<(Vec<u8>, ImageEnvelope)> {
    #[derive(serde::Deserialize)]
    struct JsonImage<'a> {
        #[serde(borrow)]
        image: Cow<'a, str>,
        #[serde(default)]
        captured_at: serde_json::Value,
    }
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let envelope: JsonImage<'_> = serde_json::from_slice(bytes).ok()?;
    if bytes.len() > envelope.image.len() + MAX_BESIDE_BYTES {
        return None;
    }
    let (picture, _) = decode_base64(envelope.image.as_bytes())?;
    let said = match envelope.captured_at {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let captured_at_ms = said.as_deref().and_then(CaptureTime::read).map(|at| at.at_ms);
    let left_out = match (said, captured_at_ms) {
        (Some(text), None) => {
            let text: String = text.chars().take(40).collect();
            format!(", and its captured_at, {text:?}, is no time with a zone and was left out")
        }
        _ => String::new(),
    };
    let note = Some(format!("the picture was base64 in JSON{left_out}"));
    Some((picture, ImageEnvelope { note, captured_at_ms }))
}

/// A picture in base64, alone or in a data URL.
fn decode_base64(bytes: &[u8]) -> Option<(Vec<u8>, &'static str)> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    let (coded, form) = match text.get(..5).is_some_and(|head| head.eq_ignore_ascii_case(b"data:")) {
        true => {
            let comma = text.iter().take(256).position(|byte| *byte == b',')?;
            let (head, coded) = text.split_at_checked(comma)?;
            head.to_ascii_lowercase().ends_with(b";base64").then_some(())?;
            (coded.strip_prefix(b",")?, "a data URL")
        }
        false => (text, "base64"),
    };
    // The beginning decides, before all of it is decoded.
    let head: Vec<u8> = strip_whitespace(coded).take(24).collect();
    let engine = [STANDARD, FOR_URLS].into_iter().find(|engine| {
        engine.decode(&head).is_ok_and(|decoded| head.len() == 24 && PictureFormat::of(&decoded).is_some())
    })?;
    let coded: Vec<u8> = strip_whitespace(coded).collect();
    Some((engine.decode(coded).ok()?, form))
}

fn strip_whitespace(text: &[u8]) -> impl Iterator<Item = u8> + '_ {
    text.iter().copied().filter(|byte| !byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose;

    use super::*;

    const PICTURE: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x02\0\0\x01\0\x01\0\0 and more";

    #[test]
    fn a_picture_is_unwrapped_from_what_clients_put_around_it() {
        let coded = general_purpose::STANDARD.encode(PICTURE);
        let lines = coded.as_bytes().chunks(19).collect::<Vec<_>>().join(&b"\r\n"[..]);
        let url_safe = general_purpose::URL_SAFE_NO_PAD.encode(PICTURE);
        for (bytes, said) in [
            (PICTURE.to_vec(), None),
            ([b"\r\n", PICTURE].concat(), Some("2 bytes before the JPEG")),
            ([&[0; 8], PICTURE].concat(), Some("8 bytes")),
            ([b"--b\r\nContent-Type: image/jpeg\r\n\r\n", PICTURE].concat(), Some("33 bytes")),
            ([b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", PICTURE].concat(), Some("30 bytes")),
            (coded.clone().into_bytes(), Some("base64")),
            (lines, Some("base64")),
            (url_safe.into_bytes(), Some("base64")),
            (format!("data:image/jpeg;base64,{coded}").into_bytes(), Some("data URL")),
            (format!("{{\"camera\": 3, \"image\": \"{coded}\"}}").into_bytes(), Some("base64 in JSON")),
        ] {
            let found = unwrap_image(&bytes);
            assert_eq!(&*found.bytes, PICTURE, "{said:?}");
            let note = found.envelope.note;
            assert!(note.as_deref().unwrap_or_default().contains(said.unwrap_or_default()), "{said:?}");
            assert_eq!(note.is_some(), said.is_some());
        }
    }

    #[test]
    fn json_around_a_picture_gives_its_capture_time() {
        let coded = general_purpose::STANDARD.encode(PICTURE);
        let read = |at: &str| {
            let json = format!("{{\"image\": \"{coded}\", \"captured_at\": {at}}}");
            unwrap_image(json.as_bytes()).envelope
        };
        for at in ["1720960496", "1720960496000", "\"2024-07-14T12:34:56Z\"", "\"1720960496\""] {
            assert_eq!(read(at).captured_at_ms, Some(1_720_960_496_000), "{at}");
        }
        assert_eq!(read("null").note.as_deref(), Some("the picture was base64 in JSON"));
        for at in ["\"noon\"", "[1]", "\"2024-07-14T12:34:56\""] {
            let envelope = read(at);
            assert_eq!(envelope.captured_at_ms, None, "{at}");
            assert!(envelope.note.is_some_and(|note| note.contains("left out")), "{at}");
        }
    }

    #[test]
    fn bytes_without_a_picture_stay_unchanged() {
        for bytes in [
            &b"a log line\n\xff\xd8\xff\xe0"[..],
            b"{\"image\": 1}",
            b"{\"image\": \"nothing\"}",
            b"data:text/plain,hello",
            b"aGVsbG8gd29ybGQsIGhlbGxvIHdvcmxk",
            b"data:",
            b"",
        ] {
            assert_eq!((&*unwrap_image(bytes).bytes, unwrap_image(bytes).envelope.note), (bytes, None));
        }
    }
}
