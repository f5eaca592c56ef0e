//! Reads PEM and DER, as far as keys need them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::KeyFault;

/// The content of the block with this label in a PEM text; `None` if there is none.
pub(crate) fn block(text: &str, label: &str) -> Option<Result<Vec<u8>, KeyFault>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != begin);
    lines.next()?;
    let mut body = String::new();
    for line in lines {
        if line == end {
            return Some(STANDARD.decode(body).map_err(|_| KeyFault::Damaged { why: "base64" }));
        }
        // A header of RFC 1421; openssl only writes them to old-style encrypted keys.
        if line.contains(':') {
            return Some(Err(KeyFault::Encrypted));
        }
        body.push_str(line);
    }
    Some(Err(KeyFault::Damaged { why: "its end is missing" }))
}

/// Writes PEM exactly as openssl and Python's cryptography do: 64 characters per line.
pub(crate) fn write(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: every index is between characters.
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
/// `[number]`, explicit.
pub(crate) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// The unread rest of a DER value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DerReader<'a>(pub(crate) &'a [u8]);

impl<'a> DerReader<'a> {
    /// The content of the next value, if it has this tag; otherwise nothing is consumed.
    pub(crate) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (size, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(size, rest)| (usize::from(*size), rest))?,
            0x82 => rest.split_first_chunk::<2>().map(|(size, rest)| (usize::from(u16::from_be_bytes(*size)), rest))?,
            // Longer than any key.
            _ => return None,
        };
        if found != tag {
            return None;
        }
        let (contents, rest) = rest.split_at_checked(size)?;
        self.0 = rest;
        Some(contents)
    }

    /// A reader of the content of the next value.
    pub(crate) fn enter(&mut self, tag: u8) -> Option<DerReader<'a>> {
        self.take(tag).map(DerReader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_with_words_around_it() {
        let der: Vec<u8> = (0..=200).collect();
        let text = write("THING", &der);
        assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        let around = format!("Some words\n{}more: of them\n", text.replace('\n', "\r\n"));
        assert_eq!(block(&around, "THING"), Some(Ok(der)));
        assert_eq!(block(&around, "OTHER THING"), None);
    }

    #[test]
    fn a_block_that_is_cut_or_altered_is_refused() {
        let text = write("THING", &[1, 2, 3]);
        let cut = text.split("-----END").next().unwrap();
        assert_eq!(block(cut, "THING"), Some(Err(KeyFault::Damaged { why: "its end is missing" })));
        assert_eq!(block(&text.replace("AQID", "A*ID"), "THING"), Some(Err(KeyFault::Damaged { why: "base64" })));
    }

    #[test]
    fn no_length_reaches_beyond_what_is_there() {
        for bytes in
            [&[][..], &[4], &[4, 2, 0], &[4, 0x81], &[4, 0x81, 200, 0], &[4, 0x82, 1], &[4, 0x84, 0, 0, 0, 1, 9]]
        {
            assert_eq!(DerReader(bytes).take(OCTET_STRING), None, "{bytes:?}");
        }
        let mut two = DerReader(&[4, 1, 9, 2, 0]);
        assert_eq!(two.take(INTEGER), None);
        assert_eq!((two.take(OCTET_STRING), two.take(INTEGER), two.0), (Some(&[9][..]), Some(&[][..]), &[][..]));
    }
}
