//! Bytes too large for a message, in the broker's object store, by the digest of their content.
//! Hashed on the way in and on the way out: no unchecked byte leaves this file (invariant 4).

use async_nats::jetstream::object_store::{DeleteErrorKind, InfoErrorKind, ObjectStore};
use bytes::Bytes;
use schemas::BlobRef;
use sha2::{Digest, Sha256};

use crate::connect::Bus;
use crate::error::{CarryError, absent, no_room};
use crate::read::{Reader, Stretch};
use crate::topology::{BLOBS, CLOUD_BLOBS, PINNED_BLOBS};

/// Why a blob cannot be had that somebody refers to.
const NOT_THERE: &str = "is not in the bucket (its time there is up, or it was never stored)";

/// The blob bucket of one domain.
#[derive(Clone)]
pub struct Blobs {
    bus: Bus,
    store: ObjectStore,
    name: &'static str,
}

impl Blobs {
    /// Looks the site's bucket up; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Self::bucket(bus, BLOBS).await
    }

    /// Looks up the cloud's bucket, for what was sent up; creates nothing.
    pub async fn open_in_cloud(bus: &Bus) -> Result<Self, CarryError> {
        Self::bucket(bus, CLOUD_BLOBS).await
    }

    /// Looks up the site's bucket for what is pinned; creates nothing.
    pub async fn open_pinned(bus: &Bus) -> Result<Self, CarryError> {
        Self::bucket(bus, PINNED_BLOBS).await
    }

    async fn bucket(bus: &Bus, name: &'static str) -> Result<Self, CarryError> {
        match bus.js.get_object_store(name).await {
            Ok(store) => Ok(Self { bus: bus.clone(), store, name }),
            Err(error) => Err(absent(error, format!("object bucket {name}"))),
        }
    }

    /// Whether there is something of this name and size. What it is shows when it is fetched.
    pub async fn has(&self, blob: &BlobRef) -> Result<bool, CarryError> {
        match self.store.info(&blob.key).await {
            Ok(info) => Ok(!info.deleted && info.size as u64 == blob.size_bytes),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(false),
            Err(error) => Err(CarryError::broker(format!("looking up blob {}", blob.key))(error)),
        }
    }

    /// Stores bytes once, under their digest.
    pub async fn store(&self, bytes: &[u8]) -> Result<BlobRef, CarryError> {
        let blob = BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64);
        let same_size = |info: async_nats::jetstream::object_store::ObjectInfo| info.size as u64 == blob.size_bytes;
        if self.store.info(&blob.key).await.is_ok_and(same_size) {
            return Ok(blob);
        }
        let mut reader = bytes;
        let stored = self.store.put(blob.key.as_str(), &mut reader).await;
        match stored {
            Ok(_) => Ok(blob),
            Err(error) => match no_room(&error) {
                Some(why) => Err(CarryError::Full { subject: format!("bucket {}", self.name), why }),
                None => Err(CarryError::broker(format!("storing blob {}", blob.key))(error)),
            },
        }
    }

    /// Lets what is stored under a key go; what is not there is gone already.
    pub async fn remove(&self, key: &str) -> Result<(), CarryError> {
        match self.store.delete(key).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(CarryError::broker(format!("removing blob {key}"))(error)),
        }
    }

    /// The bytes of a reference: of exactly its size and hash, or an error. The size is bounded
    /// before anything is allocated.
    pub async fn fetch(&self, blob: &BlobRef, limit_bytes: u64) -> Result<Bytes, CarryError> {
        let bad = |what: String| CarryError::BadBlob { key: blob.key.clone(), what };
        if blob.size_bytes > limit_bytes {
            return Err(bad(format!("has {} bytes, at most {limit_bytes} are accepted", blob.size_bytes)));
        }
        let info = self.store.info(&blob.key).await.map_err(|error| match error.kind() {
            InfoErrorKind::NotFound => bad(NOT_THERE.into()),
            _ => CarryError::Broker { what: format!("fetching blob {}", blob.key), source: error.into() },
        })?;
        if info.deleted {
            return Err(bad(NOT_THERE.into()));
        }
        // The client's own reader follows a link without end and waits for pieces that are not there.
        if info.options.as_ref().is_some_and(|options| options.link.is_some()) {
            return Err(bad("is a link, and must be the bytes themselves".into()));
        }
        if info.size as u64 != blob.size_bytes {
            return Err(bad(format!("has {} bytes, its reference says {}", info.size, blob.size_bytes)));
        }
        if info.nuid.is_empty() || !info.nuid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(bad("does not say where its pieces are".into()));
        }
        let stream = format!("OBJ_{}", self.name);
        let pieces = Stretch { subjects: vec![format!("$O.{}.C.{}", self.name, info.nuid)], ..Stretch::default() };
        let mut reader = Reader::open(&self.bus, &stream, pieces, u64::MAX).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size_bytes).unwrap_or(0));
        while let Some(piece) = reader.next().await? {
            if bytes.len() as u64 + piece.payload.len() as u64 > blob.size_bytes {
                return Err(bad(format!("has more bytes than its reference says ({})", blob.size_bytes)));
            }
            bytes.extend_from_slice(&piece.payload);
        }
        if bytes.len() as u64 != blob.size_bytes {
            return Err(bad(format!("has {} bytes of the {} that its reference says", bytes.len(), blob.size_bytes)));
        }
        if BlobRef::new(Sha256::digest(&bytes).into(), blob.size_bytes).sha256 != blob.sha256 {
            return Err(bad("does not have the SHA-256 of its reference".into()));
        }
        Ok(bytes.into())
    }
}
