//! Names bytes that are not a picture: common mistakes, each with a remedy. Pure.

use super::envelope::find_jpeg_start;

/// Bytes that are examined, from the beginning.
const HEAD_BYTES: usize = 4096;
/// Longest page title that is quoted, in characters.
const MAX_TITLE_CHARS: usize = 80;

const CONVERT: &str = "Convert it to JPEG, PNG, WebP, TIFF, BMP, GIF or PNM before publishing.";
const SAVE_AS_JPEG: &str = "Let the device save JPEG (\"most compatible\"), or convert it before publishing.";
const NOT_THE_PICTURE: &str = "The camera or server answered with a page instead of a picture; check the address, the login and whether it is busy.";
const STILL: &str = "Publish still pictures; extract single frames from the video first (for example with ffmpeg).";
const AS_BYTES: &str = "Publish the bytes of the picture unchanged, not as a text string.";

/// What such bytes usually are, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatGuess {
    /// Description, to follow "which looks like".
    pub what: String,
    /// Remedy in one sentence.
    pub remedy: &'static str,
}

/// Guesses what bytes of an unknown format are.
pub(super) fn guess_unknown(bytes: &[u8]) -> FormatGuess {
    let has = |at: usize, what: &[u8]| bytes.get(at..at + what.len()) == Some(what);
    let head = bytes.get(..HEAD_BYTES).unwrap_or(bytes);
    let (what, remedy) = match () {
        () if has(4, b"ftypavif") || has(4, b"ftypavis") => ("AVIF", SAVE_AS_JPEG),
        () if has(4, b"ftyphe") || has(4, b"ftypmif1") || has(4, b"ftypmsf1") => {
            ("HEIC, the format of phones", SAVE_AS_JPEG)
        }
        () if has(4, b"ftyp") => ("a video (MP4)", STILL),
        () if has(0, b"\xff\x0a") || has(4, b"JXL ") => ("JPEG XL", SAVE_AS_JPEG),
        () if has(4, b"jP  ") || has(0, b"\xff\x4f\xff\x51") => ("JPEG 2000", CONVERT),
        () if has(0, b"%PDF") => {
            ("a PDF document", "Let the scanner save TIFF or JPEG, or convert the pages before publishing.")
        }
        () if has(0, b"PK\x03\x04") => ("a ZIP archive", "Unpack it and publish the pictures in it."),
        () if has(0, b"\x1f\x8b") => ("a gzip archive", "Unpack it and publish the pictures in it."),
        () if has(0, b"RIFF") => ("a sound or video (RIFF)", STILL),
        () if is_annex_b(bytes) => ("a video (H.264 or H.265)", STILL),
        () if has(0, b"\x47") && has(188, b"\x47") => ("a video (MPEG transport stream)", STILL),
        () if has(128, b"DICM") => ("DICOM", "Export it as PNG or TIFF before publishing."),
        () if has(0, b"SIMPLE  =") => ("FITS", "Export it as TIFF or PNG before publishing."),
        () if has(0, b"8BPS") => ("a Photoshop document", CONVERT),
        () if has(0, b"\0\0\x01\0") => ("an icon (ICO)", CONVERT),
        () if bytes.iter().all(|byte| *byte == 0) => {
            ("nothing but zeros", "The file was reserved but never written; publish it once it is complete.")
        }
        () if has(0, b"\xef\xbf\xbd") || has(0, b"\xc3\xbf\xc3\x98") || has(0, b"\xc2\x89PNG") => {
            ("a picture that was converted to a string of text (UTF-8) on the way", AS_BYTES)
        }
        () => return guess_text(bytes, head),
    };
    FormatGuess { what: what.into(), remedy }
}

/// Describes text.
fn guess_text(bytes: &[u8], head: &[u8]) -> FormatGuess {
    let found = |what: String, remedy| FormatGuess { what, remedy };
    if let Some(at) = find_jpeg_start(bytes) {
        let before = if bytes.get(..at).is_some_and(is_text) { "text" } else { "something else" };
        let what = format!("{before} with a JPEG behind it, from byte {at} on");
        return found(what, "Publish the picture alone, without the text that a program wrote before it.");
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if !is_text(head) {
        return found("no picture".into(), CONVERT);
    }
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
    match () {
        () if begins(b"<") => {
            let what = match title(text) {
                Some(title) => format!("HTML with the title {title:?}"),
                None if begins(b"<svg") || find(text, b"<svg").is_some() => "SVG (XML)".into(),
                None => "HTML or XML".into(),
            };
            found(what, NOT_THE_PICTURE)
        }
        () if begins(b"data:") => found("a data URL without a picture that is read here".into(), CONVERT),
        () if begins(b"{") || begins(b"[") => found(
            "JSON".into(),
            "Publish the bytes of the picture, or an object with the picture as base64 in its member `image`.",
        ),
        () if begins(b"--") || begins(b"content-") || begins(b"http/1.") => {
            found("the head of a multipart stream (HTTP) without a picture".into(), NOT_THE_PICTURE)
        }
        () if is_base64(text) => found("base64 of something that is no picture read here".into(), CONVERT),
        () => found(format!("text: {:?}", line(text)), NOT_THE_PICTURE),
    }
}

/// UTF-8 without control characters; the end may be inside a character.
fn is_text(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            let whole = bytes.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).unwrap_or("")
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace())
}

fn is_base64(text: &[u8]) -> bool {
    text.len() >= 64 && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(byte))
}

/// A unit of H.264 or H.265 after a start code (Annex B).
fn is_annex_b(bytes: &[u8]) -> bool {
    let unit =
        bytes.strip_prefix(b"\0\0\0\x01").or_else(|| bytes.strip_prefix(b"\0\0\x01")).and_then(|rest| rest.first());
    // The first bit is always zero; these types begin or describe a picture.
    unit.is_some_and(|unit| unit & 0x80 == 0 && (matches!(unit & 0x1f, 1 | 5..=9) || matches!(unit >> 1, 32..=35)))
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window.eq_ignore_ascii_case(word))
}

fn title(text: &[u8]) -> Option<String> {
    let element = text.get(find(text, b"<title")?..)?;
    let content = element.get(element.iter().position(|byte| *byte == b'>')? + 1..)?;
    let content = content.get(..find(content, b"</title")?)?;
    Some(line(content)).filter(|title| !title.is_empty())
}

/// Text on one line, shortened.
fn line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_TITLE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_named() {
        let page = "\u{feff}\r\n<!DOCTYPE html><html><head><title>401\n Unauthorized</title>";
        for (bytes, what) in [
            (page.as_bytes(), "HTML with the title \"401 Unauthorized\""),
            ("Erreur : caméra occupée".as_bytes(), "text: \"Erreur : caméra occupée\""),
            (b"<?xml version='1.0'?><svg xmlns=''/>", "SVG"),
            (b"SIMPLE  =                    T", "FITS"),
            (b"\xff\x4f\xff\x51\0\x2f\0\0", "JPEG 2000"),
            (b"\0\0\0\x01\x67\x42\0\x1e", "H.264"),
            ("\u{fffd}\u{fffd}\u{fffd}\u{fffd}\0\u{10}JFIF".as_bytes(), "string of text (UTF-8)"),
            (b"scanimage: rounded\n\xff\xd8\xff\xe0", "text with a JPEG behind it, from byte 19 on"),
            (b"--boundary\r\nContent-Type: text/plain\r\n\r\nbusy", "multipart"),
            (b"[1, 2]", "JSON"),
            (b"\x01\x02\x03\xb0\xb1", "no picture"),
        ] {
            let found = guess_unknown(bytes);
            assert!(found.what.contains(what), "{what}: {found:?}");
            assert!(found.remedy.ends_with('.'));
        }
    }
}
