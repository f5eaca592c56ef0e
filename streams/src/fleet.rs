//! Signs of life in the bucket `fleet`, and notes that survive a restart in the bucket `ledger`.

use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use schemas::{Heartbeat, Message, Role, decode, encode};
use serde_json::json;

use crate::connect::Bus;
use crate::direct_get;
use crate::error::{CarryError, missing_or_failed};
use crate::publish::{Publication, Publisher};
use crate::reader;
use crate::topology::{FLEET, LEDGER};

/// Workers of one place that are looked at, at the most, and the bytes of what they say.
const MOST_BEATS: usize = 1000;
const MOST_BEATS_BYTES: usize = 16 * 1024 * 1024;
/// How long a note in the cloud is tried.
const PATIENCE: Duration = Duration::from_secs(5);

/// The workers' signs of life in one domain.
#[derive(Clone)]
pub struct HeartbeatBucket {
    store: Store,
}

impl HeartbeatBucket {
    /// Looks the bucket up; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Ok(Self { store: bucket(bus, FLEET).await? })
    }

    /// Says that a worker lives.
    pub async fn publish_heartbeat(&self, beat: &Heartbeat) -> Result<(), CarryError> {
        let key = format!("{}.{}", beat.role, beat.worker);
        let stored = self.store.put(key, encode(beat)?.into()).await;
        stored.map(|_| ()).map_err(CarryError::broker("sending a sign of life"))
    }

    /// What the workers of a role say, as they say it, the latest of each first. Ends when the connection
    /// of the watch breaks.
    pub async fn follow_heartbeats(&self, role: Role) -> Result<impl Stream<Item = Heartbeat> + use<>, CarryError> {
        let watch = self.store.watch_with_history(format!("{role}.*")).await;
        let entries = watch.map_err(CarryError::broker(format!("listening to the {role}s")))?;
        let put = entries.take_while(|entry| futures::future::ready(entry.is_ok())).filter_map(|entry| async move {
            let entry = entry.ok().filter(|entry| entry.operation == Operation::Put)?;
            read_beat(&entry.key, &entry.value)
        });
        Ok(Box::pin(put))
    }
}

/// The workers that gave a sign of life lately, by role and worker. A beat counts only under its own name, and only where its
/// numbers are such as a worker says ([`Beat::check`]).
pub async fn live_workers(bus: &Bus) -> Result<Vec<Heartbeat>, CarryError> {
    let prefix = format!("$KV.{FLEET}.");
    let question =
        json!({ "multi_last": [format!("$KV.{FLEET}.>")], "batch": MOST_BEATS, "max_bytes": MOST_BEATS_BYTES });
    let records = direct_get::request_messages(bus, &format!("KV_{FLEET}"), &question, MOST_BEATS).await?;
    let beats = records.iter().filter(|record| record.header("KV-Operation").is_none());
    let mut beats: Vec<Heartbeat> =
        beats.filter_map(|record| read_beat(record.subject.strip_prefix(&prefix)?, &record.payload)).collect();
    beats.sort_by(|a, b| (&a.role, &a.worker).cmp(&(&b.role, &b.worker)));
    Ok(beats)
}

/// The beat under a key of the bucket, if it is one and of whom the key says.
fn read_beat(key: &str, payload: &[u8]) -> Option<Heartbeat> {
    let beat = decode::<Heartbeat>(payload).ok()?;
    let is_own = key == format!("{}.{}", beat.role, beat.worker);
    (is_own && beat.check().is_ok()).then_some(beat)
}

/// A cloud's note about a site, read and written from there: no more is asked for than that one note.
pub struct RemoteNote<'a> {
    bus: &'a Bus,
    key: String,
}

impl<'a> RemoteNote<'a> {
    /// The note of this key.
    pub fn new(bus: &'a Bus, key: String) -> Self {
        Self { bus, key }
    }

    /// What it says, if there is one.
    pub async fn read(&self) -> Result<Option<String>, CarryError> {
        let subject = format!("$KV.{LEDGER}.{}", self.key);
        let record = reader::last_message(self.bus, &format!("KV_{LEDGER}"), &subject).await?;
        Ok(record.map(|record| String::from_utf8_lossy(&record.payload).into_owned()))
    }

    /// Writes it.
    pub async fn write(&self, text: String) -> Result<(), CarryError> {
        // Buckets of one name at a site and in the cloud are told apart by the domain in the subject.
        let subject = match self.bus.is_remote() {
            true => format!("{}.$KV.{LEDGER}.{}", self.bus.api_prefix(), self.key),
            false => format!("$KV.{LEDGER}.{}", self.key),
        };
        let publication = Publication { subject, payload: text.into(), headers: Vec::new(), first_only: false };
        Publisher::new(self.bus.clone(), PATIENCE).publish(&publication).await.map(|_| ())
    }
}

/// A site's notes: small values that survive a restart of whoever wrote them.
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

    /// The message noted under a key, if there is one that can be read.
    pub async fn read_message<M: Message>(&self, key: &str) -> Result<Option<M>, CarryError> {
        let bytes = self.store.get(key).await.map_err(CarryError::broker("reading the ledger"))?;
        Ok(bytes.map(|bytes| decode(&bytes)).transpose()?)
    }

    /// Writes a note.
    pub async fn write(&self, key: &str, value: String) -> Result<(), CarryError> {
        let stored = self.store.put(key, value.into()).await;
        stored.map(|_| ()).map_err(CarryError::broker("writing the ledger"))
    }

    /// Changes a note: `change` gets what stands there and says what shall; called again when somebody else
    /// was faster.
    pub async fn update_note(&self, key: &str, change: impl Fn(Option<&str>) -> String) -> Result<(), CarryError> {
        const WHAT: &str = "changing the ledger";
        loop {
            let entry = self.store.entry(key).await.map_err(CarryError::broker(WHAT))?;
            let found = entry.as_ref().filter(|entry| entry.operation == Operation::Put);
            let text = found.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            match self.store.update(key, change(text.as_deref()).into(), revision).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(CarryError::broker(WHAT)(error)),
            }
        }
    }

    /// The note under a key, as it stands and whenever it changes. Ends when the watch breaks.
    pub async fn follow_note(&self, key: &str) -> Result<impl Stream<Item = String> + use<>, CarryError> {
        Ok(self.watch(key).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The message noted under a key, as it stands and whenever it changes; what cannot be read is passed over. Ends when
    /// the watch breaks.
    pub async fn follow_message<M: Message>(&self, key: &str) -> Result<impl Stream<Item = M> + use<M>, CarryError> {
        let read = |bytes: Bytes| futures::future::ready(decode(&bytes).ok());
        Ok(self.watch(key).await?.filter_map(read))
    }

    async fn watch(&self, key: &str) -> Result<impl Stream<Item = Bytes> + Unpin + use<>, CarryError> {
        let watch = self.store.watch_with_history(key).await;
        let entries = watch.map_err(CarryError::broker("listening to the ledger"))?;
        let notes = entries.take_while(|entry| futures::future::ready(entry.is_ok())).filter_map(|entry| async move {
            let entry = entry.ok().filter(|entry| entry.operation == Operation::Put)?;
            Some(entry.value)
        });
        Ok(Box::pin(notes))
    }
}

async fn bucket(bus: &Bus, name: &str) -> Result<Store, CarryError> {
    bus.js.get_key_value(name).await.map_err(|error| missing_or_failed(error, format!("bucket {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_that_were_bent_are_those_of_their_key_or_none() {
        let beats = bend::corpus("fixtures/wire", &[".msgpack"], usize::MAX);
        let beats: Vec<Vec<u8>> = beats.into_iter().filter(|bytes| decode::<Heartbeat>(bytes).is_ok()).collect();
        let whole: Heartbeat = decode(&beats[0]).unwrap();
        let key = format!("{}.{}", whole.role, whole.worker);
        assert!(read_beat(&key, &beats[0]).is_some());
        bend::bend_all("beats under their key", &beats, bend::turns(), |bytes| {
            if let Some(beat) = read_beat(&key, bytes) {
                assert_eq!((&beat.role, &beat.worker), (&whole.role, &whole.worker));
                assert_eq!(beat.check(), Ok(()));
            }
            1
        });
    }
}
