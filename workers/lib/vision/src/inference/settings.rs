//! Inference settings.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::decode::DecodeSettings;

/// Inference settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceSettings {
    /// Owner threads: "auto" (one per core and `threads`) or a number from 1.
    pub replicas: Replicas,
    /// Threads per replica inside the runtime, from 1. More replicas serve more images per second; more threads make a
    /// single image faster.
    pub threads: usize,
    /// Largest batch, from 1; smaller ones are used if they are as fast per image.
    pub max_batch: usize,
    /// Limits of decoding a picture.
    pub decode: DecodeSettings,
    /// The role's latency objective, milliseconds, from 1; no setting of its own. Batches are kept small enough for it.
    #[serde(skip)]
    pub objective_ms: Option<u32>,
}

impl Default for InferenceSettings {
    fn default() -> Self {
        Self {
            replicas: Replicas::Auto,
            threads: 1,
            max_batch: 8,
            decode: DecodeSettings::default(),
            objective_ms: None,
        }
    }
}

/// Number of owner threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replicas {
    /// As many as the cores allow.
    #[default]
    Auto,
    /// This many, at least 1.
    Count(usize),
}

impl Replicas {
    /// The number, given the threads of each.
    pub fn count(self, threads: usize) -> usize {
        match self {
            Replicas::Count(count) => count.max(1),
            Replicas::Auto => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                (cores / threads.max(1)).max(1)
            }
        }
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Replicas::Auto => serializer.serialize_str("auto"),
            Replicas::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "replicas must be \"auto\" or a number from 1")]
        enum ReplicasSetting {
            Number(usize),
            Word(String),
        }
        let wrong = || serde::de::Error::custom("replicas must be \"auto\" or a number from 1");
        match ReplicasSetting::deserialize(deserializer)? {
            ReplicasSetting::Word(word) if word == "auto" => Ok(Replicas::Auto),
            ReplicasSetting::Number(count) if count > 0 => Ok(Replicas::Count(count)),
            ReplicasSetting::Word(word) => {
                word.parse().ok().filter(|count| *count > 0).map(Replicas::Count).ok_or_else(wrong)
            }
            ReplicasSetting::Number(_) => Err(wrong()),
        }
    }
}
