//! A message's trace context in the W3C Trace Context header `traceparent` (version 00):
//! `00-<trace, 32 hex digits>-<span, 16 hex digits>-<flags, 2 hex digits>`. `tracestate` is not carried.

use std::fmt;
use std::str::FromStr;

use crate::id::TaskId;

/// Name of the header, spelled as in the specification.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// The header's name from clients that canonicalize NATS headers as in HTTP, such as OpenTelemetry's carrier in Go.
const HEADER_TRACEPARENT_HTTP: &str = "Traceparent";

const TEXT_BYTES: usize = 55;
const SAMPLED: u8 = 1;

/// The span in which a message was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Id of the trace; not zero.
    pub trace_id: [u8; 16],
    /// Id of the span; not zero.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded. Its first stage decides; the later stages follow.
    pub is_sampled: bool,
}

/// An invalid `traceparent`. It carries no details, because readers ignore the header and begin a new trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("header {HEADER_TRACEPARENT} must have {TEXT_BYTES} characters and be of version 00")]
pub struct TraceParentError;

impl TraceParent {
    /// Reads the trace context from a message's headers; absent if there is none or it is invalid.
    pub fn from_headers<'h>(header: impl Fn(&'static str) -> Option<&'h str>) -> Option<Self> {
        header(HEADER_TRACEPARENT).or_else(|| header(HEADER_TRACEPARENT_HTTP))?.parse().ok()
    }

    /// Trace id for a task that came without a trace: the task's own id, so that every stage uses the same and people
    /// can look the trace up by the task. Absent for the all-zero id, which is not a valid trace id.
    pub fn trace_of_task(task: TaskId) -> Option<[u8; 16]> {
        Some(*task.as_bytes()).filter(|id| *id != [0; 16])
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        if text.len() != TEXT_BYTES {
            return Err(TraceParentError);
        }
        let mut parts = text.split('-');
        let (Some("00"), Some(trace_id), Some(span_id), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TraceParentError);
        };
        let trace_id: [u8; 16] = read_hex(trace_id.as_bytes()).ok_or(TraceParentError)?;
        let span_id: [u8; 8] = read_hex(span_id.as_bytes()).ok_or(TraceParentError)?;
        let [flags]: [u8; 1] = read_hex(flags.as_bytes()).ok_or(TraceParentError)?;
        match trace_id == [0; 16] || span_id == [0; 8] {
            true => Err(TraceParentError),
            false => Ok(Self { trace_id, span_id, is_sampled: flags & SAMPLED != 0 }),
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.is_sampled) * SAMPLED)
    }
}

/// Reads lower-case hexadecimal digits, two per byte; the specification allows no upper case.
fn read_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
        let [high, low] = pair;
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(text: &str) -> Option<TraceParent> {
        text.parse().ok()
    }

    #[test]
    fn a_traceparent_is_read_and_written_as_specified() {
        let text = format!("00-{TRACE}-{SPAN}-01");
        let parent = read(&text).unwrap();
        assert!(parent.is_sampled);
        assert_eq!((parent.trace_id[0], parent.span_id[7]), (0x4b, 0xb7));
        assert_eq!(parent.to_string(), text);
        // Flags unknown to this version are ignored and not passed on.
        let other = read(&format!("00-{TRACE}-{SPAN}-fe")).unwrap();
        assert_eq!(other.to_string(), format!("00-{TRACE}-{SPAN}-00"));
    }

    #[test]
    fn an_invalid_traceparent_is_refused() {
        let zeros = |digits: usize| "0".repeat(digits);
        for text in [
            String::new(),
            format!("01-{TRACE}-{SPAN}-01"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", zeros(32)),
            format!("00-{TRACE}-{}-01", zeros(16)),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{}é-{SPAN}-01", &TRACE[2..]),
            "x".repeat(1 << 20),
        ] {
            assert_eq!(read(&text), None, "{:.80}", text);
        }
    }

    #[test]
    fn both_spellings_of_the_header_are_read_and_the_specifications_wins() {
        let other = SPAN.replace('b', "c");
        let (lower, upper) = (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{other}-01"));
        let from = |headers: &[(&str, &str)]| {
            TraceParent::from_headers(|name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
        };
        assert_eq!(from(&[("Traceparent", &upper)]), read(&upper));
        assert_eq!(from(&[("Traceparent", &upper), ("traceparent", &lower)]), read(&lower));
        assert_eq!(from(&[]), None);
    }

    #[test]
    fn a_tasks_trace_has_the_tasks_id() {
        let task = TaskId::new_random();
        let trace_id = TraceParent::trace_of_task(task).unwrap();
        let parent = TraceParent { trace_id, span_id: [1; 8], is_sampled: true };
        assert!(parent.to_string().contains(&task.to_string().replace('-', "")));
        let nil = "00000000-0000-0000-0000-000000000000".parse().unwrap();
        assert_eq!(TraceParent::trace_of_task(nil), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", hex in "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            let _ = read(&text);
            if let Some(parent) = read(&hex) {
                prop_assert_eq!(read(&parent.to_string()), Some(parent));
            }
        }

        #[test]
        fn every_parent_round_trips(trace_id: [u8; 16], span_id: [u8; 8], is_sampled: bool) {
            prop_assume!(trace_id != [0; 16] && span_id != [0; 8]);
            let parent = TraceParent { trace_id, span_id, is_sampled };
            prop_assert_eq!(read(&parent.to_string()), Some(parent));
        }
    }
}
