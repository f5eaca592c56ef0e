//! Decodes large byte fields without a copy: they share the buffer in which the message was received.
//!
//! For `#[serde(with = "shared_bytes")]`. serde gives a visitor only a slice of the input, not the buffer that owns it,
//! so [`decode_from`] keeps the buffer in a thread-local variable while its thread decodes.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, Visitor};
use serde::ser::Serializer;

thread_local! {
    /// The buffer from which this thread is decoding a message.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Decodes a value that may share parts of the buffer.
pub(crate) fn decode_from<T>(source: &Bytes, decode: impl FnOnce(&[u8]) -> T) -> T {
    /// Clears the variable, even if decoding panics, so that the buffer is freed.
    struct ClearSource;
    impl Drop for ClearSource {
        fn drop(&mut self) {
            SOURCE.set(None);
        }
    }
    SOURCE.set(Some(source.clone()));
    let _clear_source = ClearSource;
    decode(source)
}

/// The part of the current buffer that this slice points into; a copy if it points elsewhere.
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
        // Do not trust the claimed length for an allocation.
        let mut bytes = Vec::new();
        while let Some(byte) = from.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}
