//! A NATS key-value bucket, with compare-and-set updates by revision.

use async_nats::jetstream::kv::{Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::ready;
use futures::stream::BoxStream;

use crate::connect::Bus;
use crate::error::{CarryError, missing_or_failed};
#[cfg(feature = "memory")]
use crate::memory::MemoryBucket;

/// A key-value bucket of one domain.
#[derive(Clone)]
// The small variant exists in tests only.
#[allow(clippy::large_enum_variant)]
pub(crate) enum KeyValueBucket {
    Nats(Store),
    #[cfg(feature = "memory")]
    Memory(MemoryBucket),
}

/// A key's value, absent if it was deleted or never written, and the revision that an update must name.
pub(crate) struct KeyState {
    pub(crate) value: Option<Bytes>,
    pub(crate) revision: u64,
}

impl KeyValueBucket {
    /// Opens an existing bucket.
    pub(crate) async fn open(bus: &Bus, name: &str) -> Result<Self, CarryError> {
        in_memory!(bus, link => Ok(Self::Memory(MemoryBucket::open(link, name).await?)));
        let found = bus.nats()?.js.get_key_value(name).await;
        Ok(Self::Nats(found.map_err(|error| missing_or_failed(error, format!("bucket {name}")))?))
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, async_nats::Error> {
        match self {
            Self::Nats(store) => Ok(store.get(key).await?),
            #[cfg(feature = "memory")]
            Self::Memory(bucket) => Ok(bucket.read_key(key).await?.value),
        }
    }

    pub(crate) async fn put(&self, key: &str, value: Bytes) -> Result<(), async_nats::Error> {
        match self {
            Self::Nats(store) => drop(store.put(key, value).await?),
            #[cfg(feature = "memory")]
            Self::Memory(bucket) => bucket.write_key(key, value, None).await?,
        }
        Ok(())
    }

    pub(crate) async fn read_key(&self, key: &str) -> Result<KeyState, async_nats::Error> {
        match self {
            Self::Nats(store) => {
                let entry = store.entry(key).await?;
                let revision = entry.as_ref().map_or(0, |entry| entry.revision);
                let put = entry.filter(|entry| entry.operation == Operation::Put);
                Ok(KeyState { value: put.map(|entry| entry.value), revision })
            }
            #[cfg(feature = "memory")]
            Self::Memory(bucket) => Ok(bucket.read_key(key).await?),
        }
    }

    /// Writes a key if `revision` is still its latest, 0 for a key never written; false if it is not.
    pub(crate) async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool, async_nats::Error> {
        match self {
            Self::Nats(store) => match store.update(key, value, revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(error.into()),
            },
            #[cfg(feature = "memory")]
            Self::Memory(bucket) => match bucket.write_key(key, value, Some(revision)).await {
                Ok(()) => Ok(true),
                Err(failure) if failure.is_taken() => Ok(false),
                Err(failure) => Err(failure.into()),
            },
        }
    }

    /// Yields the matching keys with their current values, then every change. Ends when the watch breaks.
    pub(crate) async fn watch(&self, keys: &str) -> Result<BoxStream<'static, (String, Bytes)>, async_nats::Error> {
        match self {
            Self::Nats(store) => {
                let entries = store.watch_with_history(keys).await?.take_while(|entry| ready(entry.is_ok()));
                let put = entries.filter_map(|entry| {
                    let put = entry.ok().filter(|entry| entry.operation == Operation::Put);
                    ready(put.map(|entry| (entry.key, entry.value)))
                });
                Ok(put.boxed())
            }
            #[cfg(feature = "memory")]
            Self::Memory(bucket) => Ok(bucket.watch(keys).await?),
        }
    }
}
