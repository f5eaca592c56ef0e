//! MessagePack maps with named fields. Each carries `kind` and `version` beside its own fields, so that any client can
//! read a message and this one can refuse a kind or version it does not know.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Deepest nesting accepted in a message: more than twice what any of ours needs. Each level takes some kilobytes of
/// stack, and a stack overflow ends the whole process.
const MAX_DEPTH: usize = 64;

/// A message with a kind and version of its own.
pub trait Message: Serialize + DeserializeOwned {
    /// The message's kind; the word used in its subject.
    const KIND: &'static str;
    /// Increased by every change except an added optional field.
    const VERSION: u16;

    /// Bytes to set aside before it is encoded, for messages that are large: growing the buffer would copy them again.
    fn capacity_bytes(&self) -> usize {
        512
    }
}

/// Why bytes could not be read or written as a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not MessagePack, or a field is missing or has another type.
    #[error("{kind} message could not be decoded")]
    Unreadable {
        /// Kind that was expected.
        kind: &'static str,
        /// Error of the decoder.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// A message of another kind.
    #[error("message has kind {found:?}, expected {kind:?}")]
    OtherKind {
        /// Kind that was expected.
        kind: &'static str,
        /// Kind in the message, cut to 32 characters.
        found: String,
    },
    /// Written by an incompatible version of the program.
    #[error(
        "{kind} message has version {found}, this program reads version {version}; run the same release of tributary on both sides"
    )]
    OtherVersion {
        /// Kind that was expected.
        kind: &'static str,
        /// Version this program reads.
        version: u16,
        /// Version in the message.
        found: u16,
    },
    /// A number is NaN or infinite: comparisons with it are meaningless, and so is everything computed from it.
    #[error("{kind} message contains NaN or an infinite number")]
    NotFinite {
        /// Kind that was expected.
        kind: &'static str,
    },
    /// A value that MessagePack cannot express.
    #[error("{kind} message could not be encoded")]
    Unwritable {
        /// Kind of the message.
        kind: &'static str,
        /// Error of the encoder.
        #[source]
        source: rmp_serde::encode::Error,
    },
}

/// Puts kind and version before a message's own fields as they are written. Were the message flattened into its envelope,
/// the serializer would write it to a buffer of its own first, and copy that: an image twice instead of once.
struct EnvelopeWriter {
    kind: &'static str,
    version: u16,
    bytes: Vec<u8>,
    /// What was written of the message's map until the number of its fields was known.
    begun: Vec<u8>,
    is_open: bool,
}

impl EnvelopeWriter {
    /// Writes the head of the envelope once the message says how many fields it has.
    fn open(&mut self) -> std::io::Result<()> {
        let mut rest = &self.begun[..];
        let fields = match rmp::decode::read_map_len(&mut rest) {
            Ok(fields) => fields,
            Err(rmp::decode::ValueReadError::TypeMismatch(_)) => {
                return Err(std::io::Error::other("it is not a map of fields"));
            }
            Err(_) => return Ok(()),
        };
        rmp::encode::write_map_len(&mut self.bytes, fields.saturating_add(2))?;
        rmp::encode::write_str(&mut self.bytes, "kind")?;
        rmp::encode::write_str(&mut self.bytes, self.kind)?;
        rmp::encode::write_str(&mut self.bytes, "version")?;
        rmp::encode::write_uint(&mut self.bytes, self.version.into())?;
        self.bytes.extend_from_slice(rest);
        self.is_open = true;
        Ok(())
    }
}

impl std::io::Write for EnvelopeWriter {
    fn write(&mut self, some: &[u8]) -> std::io::Result<usize> {
        if self.is_open {
            self.bytes.extend_from_slice(some);
        } else {
            self.begun.extend_from_slice(some);
            self.open()?;
        }
        Ok(some.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Deserialize)]
struct EnvelopeHead<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    version: u16,
}

/// Encodes a message.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let bytes = Vec::with_capacity(message.capacity_bytes());
    let mut envelope = EnvelopeWriter { kind: M::KIND, version: M::VERSION, bytes, begun: Vec::new(), is_open: false };
    let written = rmp_serde::encode::write_named(&mut envelope, message);
    written.map_err(|source| CodecError::Unwritable { kind: M::KIND, source })?;
    Ok(envelope.bytes)
}

/// Decodes a message; unknown fields are ignored.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    let unreadable = |source| CodecError::Unreadable { kind: M::KIND, source };
    let head = match read_head(bytes) {
        Some(head) => head,
        None => read(bytes).map_err(unreadable)?,
    };
    if head.kind != M::KIND {
        return Err(CodecError::OtherKind { kind: M::KIND, found: head.kind.chars().take(32).collect() });
    }
    if head.version != M::VERSION {
        return Err(CodecError::OtherVersion { kind: M::KIND, version: M::VERSION, found: head.version });
    }
    if !is_finite(bytes) {
        return Err(CodecError::NotFinite { kind: M::KIND });
    }
    read(bytes).map_err(unreadable)
}

/// Decodes a message whose large parts stay in the buffer it came in, without a copy.
pub fn decode_shared<M: Message>(bytes: &Bytes) -> Result<M, CodecError> {
    crate::shared_bytes::decode_from(bytes, decode)
}

/// Deserializes bytes up to the permitted depth.
fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut deserializer)
}

/// Reads kind and version where they come first, as this program writes them. Searching the whole message for them, as
/// messages of other programs may need, costs as much again as decoding it.
fn read_head(bytes: &[u8]) -> Option<EnvelopeHead<'_>> {
    let mut rest = bytes;
    rmp::decode::read_map_len(&mut rest).ok()?;
    let (key, rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    (key == "kind").then_some(())?;
    let (kind, rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    let (key, mut rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    (key == "version").then_some(())?;
    Some(EnvelopeHead { kind: kind.into(), version: rmp::decode::read_int(&mut rest).ok()? })
}

/// Whether every number in a MessagePack value is finite; bytes that are not MessagePack are left for the decoder to
/// refuse. Looks at markers and lengths only, allocates nothing, and needs no more stack for deeper nesting.
fn is_finite(bytes: &[u8]) -> bool {
    use rmp::Marker;
    let number = |rest: &[u8], bytes: usize| {
        let raw = rest.get(..bytes)?;
        raw.iter().try_fold(0u64, |number, byte| number.checked_mul(256)?.checked_add(u64::from(*byte)))
    };
    let (mut rest, mut values) = (bytes, 1u64);
    while values > 0 {
        values -= 1;
        let Some((first, after)) = rest.split_first() else { return true };
        rest = after;
        let marker = Marker::from_u8(*first);
        // Bytes of the length field, fixed bytes after it, and how many values each unit of length adds (0: it counts
        // bytes).
        let (prefix, fixed, each) = match marker {
            Marker::F32 => match number(rest, 4) {
                Some(bits) if !f32::from_bits(bits as u32).is_finite() => return false,
                _ => (0, 4, 0),
            },
            Marker::F64 => match number(rest, 8) {
                Some(bits) if !f64::from_bits(bits).is_finite() => return false,
                _ => (0, 8, 0),
            },
            Marker::U8 | Marker::I8 => (0, 1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (0, 2, 0),
            Marker::U32 | Marker::I32 => (0, 4, 0),
            Marker::U64 | Marker::I64 => (0, 8, 0),
            Marker::FixExt2 => (0, 3, 0),
            Marker::FixExt4 => (0, 5, 0),
            Marker::FixExt8 => (0, 9, 0),
            Marker::FixExt16 => (0, 17, 0),
            Marker::FixStr(length) => (0, usize::from(length), 0),
            Marker::FixArray(count) => {
                values = values.saturating_add(u64::from(count));
                (0, 0, 0)
            }
            Marker::FixMap(count) => {
                values = values.saturating_add(2 * u64::from(count));
                (0, 0, 0)
            }
            Marker::Str8 | Marker::Bin8 => (1, 0, 0),
            Marker::Str16 | Marker::Bin16 => (2, 0, 0),
            Marker::Str32 | Marker::Bin32 => (4, 0, 0),
            Marker::Ext8 => (1, 1, 0),
            Marker::Ext16 => (2, 1, 0),
            Marker::Ext32 => (4, 1, 0),
            Marker::Array16 => (2, 0, 1),
            Marker::Array32 => (4, 0, 1),
            Marker::Map16 => (2, 0, 2),
            Marker::Map32 => (4, 0, 2),
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False | Marker::Reserved => {
                (0, 0, 0)
            }
        };
        let Some(length) = number(rest, prefix) else { return true };
        let skipped = match each {
            0 => usize::try_from(length).unwrap_or(usize::MAX),
            each => {
                values = values.saturating_add(length.saturating_mul(each));
                0
            }
        };
        let Some(after) = rest.get(prefix.saturating_add(fixed).saturating_add(skipped)..) else { return true };
        rest = after;
    }
    true
}

/// Any MessagePack map as JSON for display; byte strings are shown by their length.
/// `None` when the bytes are not one MessagePack map.
pub fn to_json(bytes: &[u8]) -> Option<serde_json::Value> {
    let shown: DisplayValue = read(bytes).ok()?;
    shown.0.is_object().then_some(shown.0)
}

struct DisplayValue(serde_json::Value);

impl<'de> Deserialize<'de> for DisplayValue {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(DisplayValueVisitor).map(DisplayValue)
    }
}

struct DisplayValueVisitor;

impl<'de> serde::de::Visitor<'de> for DisplayValueVisitor {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("any MessagePack value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_f32<E>(self, value: f32) -> Result<Self::Value, E> {
        // Via text: the shortest decimal that denotes this f32, not the f64 nearest to it.
        Ok(value.to_string().parse::<f64>().map_or(serde_json::Value::Null, Into::into))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(format!("<{} bytes>", value.len()).into())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        DisplayValue::deserialize(from).map(|shown| shown.0)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element::<DisplayValue>()? {
            items.push(item.0);
        }
        Ok(items.into())
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut fields = serde_json::Map::new();
        while let Some((key, value)) = from.next_entry::<String, DisplayValue>()? {
            fields.insert(key, value.0);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_is_not_finite_is_found_anywhere() {
        #[derive(Serialize)]
        struct FiniteSample {
            before: Vec<u8>,
            text: String,
            deep: Vec<Vec<Option<f64>>>,
        }
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let odd = |number| FiniteSample {
                before: vec![7; 300],
                text: "x".repeat(70_000),
                deep: vec![vec![None, Some(number)]],
            };
            assert!(!is_finite(&rmp_serde::to_vec_named(&odd(number)).unwrap()));
            assert!(is_finite(&rmp_serde::to_vec_named(&odd(1.5)).unwrap()));
            assert!(!is_finite(&rmp_serde::to_vec_named(&vec![number as f32]).unwrap()));
        }
        assert!(is_finite(&rmp_serde::to_vec_named(&json!({"a": [1, -1, 2.5, "nan", null, true]})).unwrap()));
    }

    #[test]
    fn deep_nesting_is_refused_without_using_stack() {
        #[derive(Debug, Serialize, Deserialize)]
        struct NestedSample {
            number: u64,
        }
        impl Message for NestedSample {
            const KIND: &'static str = "flat";
            const VERSION: u16 = 1;
        }
        let nested = |levels: usize| {
            let mut bytes = encode(&NestedSample { number: 7 }).unwrap();
            // One more field, unknown to the reader.
            bytes[0] += 1;
            bytes.extend([0xa1, b'x']);
            bytes.extend([0x81, 0xa1, b'a'].repeat(levels));
            bytes.push(0xc0);
            bytes
        };
        assert_eq!(decode::<NestedSample>(&nested(20)).unwrap().number, 7);
        for levels in [100, 1000, 100_000] {
            let bytes = [nested(levels), [0x81, 0xa1, b'a'].repeat(levels), [0x91].repeat(levels)];
            // The smallest stack of any thread that reads messages.
            let reading = std::thread::Builder::new().stack_size(512 * 1024).spawn(move || {
                bytes.iter().all(|bytes| decode::<NestedSample>(bytes).is_err() && to_json(bytes).is_none())
            });
            assert!(reading.unwrap().join().unwrap(), "{levels} levels");
        }
    }

    #[test]
    fn a_message_of_many_fields_or_of_none_keeps_its_envelope() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct WideSample {
            #[serde(flatten)]
            fields: std::collections::BTreeMap<String, u64>,
        }
        impl Message for WideSample {
            const KIND: &'static str = "wide";
            const VERSION: u16 = 300;
        }
        for count in [0, 1, 13, 14, 15, 16, 70_000] {
            let sample = WideSample { fields: (0..count).map(|number| (format!("f{number}"), number)).collect() };
            let bytes = encode(&sample).unwrap();
            assert_eq!(
                read_head(&bytes).map(|head| (head.kind.into_owned(), head.version)),
                Some(("wide".into(), 300))
            );
            let mut rest = &bytes[..];
            assert_eq!(u64::from(rmp::decode::read_map_len(&mut rest).unwrap()), count + 2);
            let all: std::collections::BTreeMap<String, serde_json::Value> = read(&bytes).unwrap();
            assert_eq!(all.len() as u64, count + 2);
        }
        #[derive(Serialize, Deserialize)]
        struct NumberSample(u64);
        impl Message for NumberSample {
            const KIND: &'static str = "number";
            const VERSION: u16 = 1;
        }
        assert!(
            matches!(encode(&NumberSample(7)), Err(CodecError::Unwritable { .. })),
            "without fields there is no kind"
        );
    }

    proptest! {
        #[test]
        fn the_scan_ends_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            is_finite(&bytes);
        }
    }
}
