//! Signs of life in the bucket `fleet`, and the janitor's notes in the bucket `ledger`.

use async_nats::jetstream::kv::Store;
use futures::{StreamExt, TryStreamExt};
use schemas::{Beat, decode, encode};

use crate::connect::Bus;
use crate::error::{CarryError, absent};
use crate::topology::{FLEET, LEDGER};

/// The workers' signs of life in one domain.
#[derive(Clone)]
pub struct Fleet {
    store: Store,
}

impl Fleet {
    /// Looks the bucket up; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Ok(Self { store: bucket(bus, FLEET).await? })
    }

    /// Says that a worker lives.
    pub async fn beat(&self, beat: &Beat) -> Result<(), CarryError> {
        let key = format!("{}.{}", beat.role, beat.worker);
        let stored = self.store.put(key, encode(beat)?.into()).await;
        stored.map(|_| ()).map_err(CarryError::broker("sending a sign of life"))
    }

    /// The workers that gave a sign of life lately.
    pub async fn alive(&self) -> Result<Vec<Beat>, CarryError> {
        const WHAT: &str = "reading signs of life";
        let keys = self.store.keys().await.map_err(CarryError::broker(WHAT))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(CarryError::broker(WHAT))?;
        let beats = futures::stream::iter(keys).filter_map(|key| async move {
            let bytes = self.store.get(key).await.ok()??;
            decode::<Beat>(&bytes).ok()
        });
        let mut beats: Vec<Beat> = beats.collect().await;
        beats.sort_by(|a, b| (&a.role, &a.worker).cmp(&(&b.role, &b.worker)));
        Ok(beats)
    }
}

/// The janitor's notes: small values that survive its restart.
#[derive(Clone)]
pub struct Ledger {
    store: Store,
}

impl Ledger {
    /// Looks the bucket up; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Ok(Self { store: bucket(bus, LEDGER).await? })
    }

    /// The note under a key, if there is one.
    pub async fn read(&self, key: &str) -> Result<Option<String>, CarryError> {
        let bytes = self.store.get(key).await.map_err(CarryError::broker("reading the ledger"))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Writes a note.
    pub async fn write(&self, key: &str, value: String) -> Result<(), CarryError> {
        let stored = self.store.put(key, value.into()).await;
        stored.map(|_| ()).map_err(CarryError::broker("writing the ledger"))
    }
}

async fn bucket(bus: &Bus, name: &str) -> Result<Store, CarryError> {
    bus.js.get_key_value(name).await.map_err(|error| absent(error, format!("bucket {name}")))
}
