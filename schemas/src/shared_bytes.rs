//! Large bytes in a message, decoded without a copy: they stay in the buffer that the message came in.
//!
//! For `#[serde(with = "shared_bytes")]`. serde hands the decoder's slice of the input to a visitor that knows nothing else, so
//! [`decode_from`] notes the buffer for as long as its thread decodes.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, Visitor};
use serde::ser::Serializer;

thread_local! {
    /// The buffer that this thread decodes a message from.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Decodes from a buffer whose parts the decoded value may share.
pub(crate) fn decode_from<T>(source: &Bytes, decode: impl FnOnce(&[u8]) -> T) -> T {
    /// Also when decoding panics: a buffer that stays would be kept in memory.
    struct Noted;
    impl Drop for Noted {
        fn drop(&mut self) {
            SOURCE.set(None);
        }
    }
    SOURCE.set(Some(source.clone()));
    let _noted = Noted;
    decode(source)
}

/// The part of the noted buffer that is this very slice; a copy if it lies elsewhere.
fn share(slice: &[u8]) -> Bytes {
    SOURCE.with_borrow(|source| {
        let Some(source) = source else { return Bytes::copy_from_slice(slice) };
        let offset = (slice.as_ptr() as usize).checked_sub(source.as_ptr() as usize);
        let range = offset.and_then(|from| Some(from..from.checked_add(slice.len())?));
        match range.filter(|range| range.end <= source.len()) {
            Some(range) => source.slice(range),
            None => Bytes::copy_from_slice(slice),
        }
    })
}

pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    from.deserialize_bytes(SharedBytesVisitor)
}

struct SharedBytesVisitor;

impl<'de> Visitor<'de> for SharedBytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
        Ok(share(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Bytes, E> {
        Ok(share(text.as_bytes()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut from: A) -> Result<Bytes, A::Error> {
        // A count that a message claims is no reason to allocate.
        let mut bytes = Vec::new();
        while let Some(byte) = from.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}
