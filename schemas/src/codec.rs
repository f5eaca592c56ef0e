//! MessagePack maps with named fields; `kind` and `version` stand beside the message's own fields,
//! so that any client can read a message and this one can refuse what it does not know.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A message that travels alone.
pub trait Message: Serialize + DeserializeOwned {
    /// What it is, the word used in its subject.
    const KIND: &'static str;
    /// Goes up with every change that is not an added optional field.
    const VERSION: u16;
}

/// Why bytes are not the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not MessagePack, or a field is missing or of another type.
    #[error("{kind} message cannot be read")]
    Unreadable {
        /// What was expected.
        kind: &'static str,
        /// The decoder's own words.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// Another message.
    #[error("message is of kind {found:?}, expected {kind:?}")]
    OtherKind {
        /// What was expected.
        kind: &'static str,
        /// What it says it is.
        found: String,
    },
    /// Written by another version of the program.
    #[error(
        "{kind} message has version {found}, this program reads {version}: use the same release of tributary on both sides"
    )]
    OtherVersion {
        /// What was expected.
        kind: &'static str,
        /// The version this program reads.
        version: u16,
        /// The version found.
        found: u16,
    },
    /// A value that has no MessagePack form.
    #[error("{kind} message cannot be written")]
    Unwritable {
        /// What was to be written.
        kind: &'static str,
        /// The encoder's own words.
        #[source]
        source: rmp_serde::encode::Error,
    },
}

#[derive(Serialize)]
struct Envelope<'a, M> {
    kind: &'static str,
    version: u16,
    #[serde(flatten)]
    message: &'a M,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    version: u16,
}

/// The bytes of a message.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let envelope = Envelope { kind: M::KIND, version: M::VERSION, message };
    rmp_serde::to_vec_named(&envelope).map_err(|source| CodecError::Unwritable { kind: M::KIND, source })
}

/// The message in the bytes; fields it does not know are passed over.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    let unreadable = |source| CodecError::Unreadable { kind: M::KIND, source };
    let head = match front(bytes) {
        Some(head) => head,
        None => rmp_serde::from_slice(bytes).map_err(unreadable)?,
    };
    if head.kind != M::KIND {
        return Err(CodecError::OtherKind { kind: M::KIND, found: head.kind.chars().take(32).collect() });
    }
    if head.version != M::VERSION {
        return Err(CodecError::OtherVersion { kind: M::KIND, version: M::VERSION, found: head.version });
    }
    rmp_serde::from_slice(bytes).map_err(unreadable)
}

/// Kind and version where they stand first, as this program writes them. Looking for them in the whole message, as other
/// programs may write it, costs as much again as reading it.
fn front(bytes: &[u8]) -> Option<Head<'_>> {
    let mut rest = bytes;
    rmp::decode::read_map_len(&mut rest).ok()?;
    let (key, rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    (key == "kind").then_some(())?;
    let (kind, rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    let (key, mut rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    (key == "version").then_some(())?;
    Some(Head { kind: kind.into(), version: rmp::decode::read_int(&mut rest).ok()? })
}

/// Any MessagePack as JSON for people to look at; byte strings are shown by their length.
/// `None` when the bytes are not one MessagePack map.
pub fn show(bytes: &[u8]) -> Option<serde_json::Value> {
    let shown: Shown = rmp_serde::from_slice(bytes).ok()?;
    shown.0.is_object().then_some(shown.0)
}

struct Shown(serde_json::Value);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ShowVisitor).map(Shown)
    }
}

struct ShowVisitor;

impl<'de> serde::de::Visitor<'de> for ShowVisitor {
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
        // Through text: the shortest decimal that is this f32, not the f64 nearest to it.
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
        Shown::deserialize(from).map(|shown| shown.0)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element::<Shown>()? {
            items.push(item.0);
        }
        Ok(items.into())
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut fields = serde_json::Map::new();
        while let Some((key, value)) = from.next_entry::<String, Shown>()? {
            fields.insert(key, value.0);
        }
        Ok(fields.into())
    }
}
