//! Heartbeats in the bucket `fleet`, and notes that survive a restart in the bucket `ledger`.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use schemas::{Heartbeat, Message, Role, decode, encode};
use serde_json::json;

use crate::bucket::KeyValueBucket;
use crate::connect::Bus;
use crate::direct_get;
use crate::error::CarryError;
use crate::publish::{Publication, Publisher};
use crate::reader;
use crate::topology::{FLEET, LEDGER};

/// Most heartbeats read from one place, and their bytes.
const MAX_HEARTBEATS: usize = 1000;
const MAX_HEARTBEAT_BYTES: usize = 16 * 1024 * 1024;
/// How long writing a note in the cloud is retried.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The heartbeats of the workers in one domain.
#[derive(Clone)]
pub struct HeartbeatBucket {
    bucket: KeyValueBucket,
}

impl HeartbeatBucket {
    /// Looks up the bucket; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Ok(Self { bucket: KeyValueBucket::open(bus, FLEET).await? })
    }

    /// Stores a worker's heartbeat.
    pub async fn publish_heartbeat(&self, beat: &Heartbeat) -> Result<(), CarryError> {
        let key = format!("{}.{}", beat.role, beat.worker);
        let stored = self.bucket.put(&key, encode(beat)?.into()).await;
        stored.map_err(CarryError::broker("storing a heartbeat"))
    }

    /// Removes a worker's heartbeat, so that it counts as stopped at once; an empty value is no heartbeat.
    pub async fn remove_heartbeat(&self, role: Role, worker: &str) -> Result<(), CarryError> {
        let removed = self.bucket.put(&format!("{role}.{worker}"), Bytes::new()).await;
        removed.map_err(CarryError::broker("removing a heartbeat"))
    }

    /// The heartbeats of a role as they arrive, starting with the latest of each worker. Ends when the connection
    /// breaks.
    pub async fn follow_heartbeats(&self, role: Role) -> Result<impl Stream<Item = Heartbeat> + use<>, CarryError> {
        let watch = self.bucket.watch(&format!("{role}.*")).await;
        let values = watch.map_err(CarryError::broker(format!("following the heartbeats of role {role}")))?;
        Ok(values.filter_map(|(key, value)| futures::future::ready(parse_heartbeat(&key, &value))))
    }
}

/// Pattern of the subjects that heartbeats are stored under.
pub fn heartbeats_pattern() -> String {
    format!("$KV.{FLEET}.>")
}

/// The latest heartbeats of all live workers, by role and worker. A heartbeat counts only under its own name and with
/// plausible values ([`Heartbeat::check`]).
pub async fn live_workers(bus: &Bus) -> Result<Vec<Heartbeat>, CarryError> {
    let prefix = format!("$KV.{FLEET}.");
    let question =
        json!({ "multi_last": [heartbeats_pattern()], "batch": MAX_HEARTBEATS, "max_bytes": MAX_HEARTBEAT_BYTES });
    let records = direct_get::request_messages(bus, &format!("KV_{FLEET}"), &question, MAX_HEARTBEATS).await?;
    let beats = records.iter().filter(|record| record.header("KV-Operation").is_none());
    let mut beats: Vec<Heartbeat> =
        beats.filter_map(|record| parse_heartbeat(record.subject.strip_prefix(&prefix)?, &record.payload)).collect();
    beats.sort_by(|a, b| (&a.role, &a.worker).cmp(&(&b.role, &b.worker)));
    Ok(beats)
}

/// The heartbeat under a key of the bucket, if it is valid and from the worker that the key names.
fn parse_heartbeat(key: &str, payload: &[u8]) -> Option<Heartbeat> {
    let beat = decode::<Heartbeat>(payload).ok()?;
    let is_own = key == format!("{}.{}", beat.role, beat.worker);
    (is_own && beat.check().is_ok()).then_some(beat)
}

/// The cloud's note about a site, as the site may read and write it: it needs access to this one note only.
pub struct RemoteNote<'a> {
    bus: &'a Bus,
    key: String,
}

impl<'a> RemoteNote<'a> {
    /// The note with this key.
    pub fn new(bus: &'a Bus, key: String) -> Self {
        Self { bus, key }
    }

    /// The note's text, if it exists.
    pub async fn read(&self) -> Result<Option<String>, CarryError> {
        let subject = format!("$KV.{LEDGER}.{}", self.key);
        let record = reader::last_message(self.bus, &format!("KV_{LEDGER}"), &subject).await?;
        Ok(record.map(|record| String::from_utf8_lossy(&record.payload).into_owned()))
    }

    /// Replaces the note's text.
    pub async fn write(&self, text: String) -> Result<(), CarryError> {
        // The domain in the subject distinguishes buckets of the same name at a site and in the cloud.
        let subject = match self.bus.is_remote() {
            true => format!("{}.$KV.{LEDGER}.{}", self.bus.api_prefix(), self.key),
            false => format!("$KV.{LEDGER}.{}", self.key),
        };
        let publication = Publication { subject, payload: text.into(), headers: Vec::new(), first_only: false };
        Publisher::new(self.bus.clone(), WRITE_TIMEOUT).publish(&publication).await.map(|_| ())
    }
}

/// The notes of a site, or of the cloud: small values that survive restarts.
#[derive(Clone)]
pub struct Ledger {
    bucket: KeyValueBucket,
}

impl Ledger {
    /// Looks up the bucket; creates nothing.
    pub async fn open(bus: &Bus) -> Result<Self, CarryError> {
        Ok(Self { bucket: KeyValueBucket::open(bus, LEDGER).await? })
    }

    /// The note under a key, if it exists.
    pub async fn read(&self, key: &str) -> Result<Option<String>, CarryError> {
        let bytes = self.bucket.get(key).await.map_err(CarryError::broker("reading the ledger"))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The message in the note under a key, if the note exists.
    pub async fn read_message<M: Message>(&self, key: &str) -> Result<Option<M>, CarryError> {
        let bytes = self.bucket.get(key).await.map_err(CarryError::broker("reading the ledger"))?;
        Ok(bytes.map(|bytes| decode(&bytes)).transpose()?)
    }

    /// Writes a note.
    pub async fn write(&self, key: &str, value: String) -> Result<(), CarryError> {
        let stored = self.bucket.put(key, value.into()).await;
        stored.map_err(CarryError::broker("writing the ledger"))
    }

    /// Changes a note: `change` maps the old text to the new; called again if somebody else changed the note
    /// meanwhile.
    pub async fn update_note(&self, key: &str, change: impl Fn(Option<&str>) -> String) -> Result<(), CarryError> {
        const WHAT: &str = "changing the ledger";
        loop {
            let found = self.bucket.read_key(key).await.map_err(CarryError::broker(WHAT))?;
            let text = found.value.map(|value| String::from_utf8_lossy(&value).into_owned());
            let changed = self.bucket.update(key, change(text.as_deref()).into(), found.revision).await;
            if changed.map_err(CarryError::broker(WHAT))? {
                return Ok(());
            }
        }
    }

    /// The note under a key, now and at every change. Ends when the connection breaks.
    pub async fn follow_note(&self, key: &str) -> Result<impl Stream<Item = String> + use<>, CarryError> {
        Ok(self.watch(key).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The message in the note under a key, now and at every change; unreadable ones are skipped. Ends
    /// when the connection breaks.
    pub async fn follow_message<M: Message>(&self, key: &str) -> Result<impl Stream<Item = M> + use<M>, CarryError> {
        let decoded = |bytes: Bytes| futures::future::ready(decode(&bytes).ok());
        Ok(self.watch(key).await?.filter_map(decoded))
    }

    async fn watch(&self, key: &str) -> Result<impl Stream<Item = Bytes> + Unpin + use<>, CarryError> {
        let watch = self.bucket.watch(key).await.map_err(CarryError::broker("following the ledger"))?;
        Ok(watch.map(|(_, value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_heartbeats_are_those_of_their_key_or_rejected() {
        let beats = bend::corpus("fixtures/wire", &[".msgpack"], usize::MAX);
        let beats: Vec<Vec<u8>> = beats.into_iter().filter(|bytes| decode::<Heartbeat>(bytes).is_ok()).collect();
        let whole: Heartbeat = decode(&beats[0]).unwrap();
        let key = format!("{}.{}", whole.role, whole.worker);
        assert!(parse_heartbeat(&key, &beats[0]).is_some());
        bend::bend_all("beats under their key", &beats, bend::turns(), |bytes| {
            if let Some(beat) = parse_heartbeat(&key, bytes) {
                assert_eq!((&beat.role, &beat.worker), (&whole.role, &whole.worker));
                assert_eq!(beat.check(), Ok(()));
            }
            1
        });
    }
}
