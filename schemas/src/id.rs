//! Names and ids of what a message is about. A child's id is derived from its parent's, so a second delivery yields the
//! same id (invariant 2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::MAX_NAME_CHARS;

/// Namespace of every id derived here (UUID version 5); never changes.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1f_4a5e_2d0b_5c7e_9a53_7472_6962_7574);

/// A text that is not a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A site, camera, model or set name that cannot be a subject token.
    #[error("{what} {text:?} is not a valid name; use 1 to {MAX_NAME_CHARS} of the characters a-z A-Z 0-9 - _")]
    Name {
        /// `site`, `camera`, `model` or `set`.
        what: &'static str,
        /// The text, cut to a printable length.
        text: String,
    },
    /// A task id that is not a UUID.
    #[error("task id {text:?} is not a UUID; expected one such as 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6")]
    Task {
        /// The text, cut to a printable length.
        text: String,
    },
    /// A release id that is not a SHA-256.
    #[error("release {text:?} is not a SHA-256 digest; expected 64 hexadecimal digits")]
    Release {
        /// The text, cut to a printable length.
        text: String,
    },
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_NAME_CHARS).collect()
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as it appears in a subject.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if text.is_empty() || text.len() > MAX_NAME_CHARS || !text.chars().all(legal) {
                    return Err(IdError::Name { what: $what, text: shown(text) });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A place at the edge; one token of a subject.
    SiteName,
    "site"
);
name!(
    /// A source of images at a site, scanners included; one token of a subject.
    CameraName,
    "camera"
);

name!(
    /// A model that is trained, across its releases; one token of a subject.
    ModelName,
    "model"
);

name!(
    /// A set of images kept whatever their age; one token of a subject.
    SetName,
    "set"
);

impl ModelName {
    /// A valid name made from any text: characters that a subject cannot hold become hyphens.
    pub fn from_name(name: &str) -> Self {
        let legal = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let token: String = name.chars().take(MAX_NAME_CHARS).map(legal).collect();
        Self(if token.is_empty() { "model".into() } else { token })
    }
}

impl CameraName {
    /// Placeholder for a camera whose name could not be read.
    pub fn unknown() -> Self {
        Self("unknown".into())
    }
}

impl SiteName {
    /// Name of a site whose operator gave none.
    pub fn default_site() -> Self {
        Self("site-1".into())
    }

    /// The cloud, where verifiers run; no site has this name.
    pub fn cloud() -> Self {
        Self("cloud".into())
    }

    /// Placeholder for a site whose name could not be read.
    pub fn unknown() -> Self {
        Self("unknown".into())
    }
}

/// Id of the work of recognizing one image. Written as a hyphenated UUID wherever people or other
/// programs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(Uuid);

impl TaskId {
    /// A new id for an image that is published for the first time (UUID version 7).
    pub fn new_random() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of an image published with a message id: the message id itself when it is a UUID, so that a publisher
    /// knows the task's id beforehand. Otherwise it is derived from camera, message id and content: a camera's counter
    /// may restart, and then the same picture under the same message id is the same task, and another picture is
    /// another task. `content`: the payload, or the text of the blob reference.
    pub fn from_message_id(site: &SiteName, camera: &CameraName, message_id: &str, content: &[u8]) -> Self {
        match Uuid::try_parse(message_id) {
            Ok(uuid) => Self(uuid),
            Err(_) => {
                let named = Self::from_name(&format!("{site}/{camera}/{message_id}"));
                Self(Uuid::new_v5(&named.0, content))
            }
        }
    }

    /// The id of an image published without a message id, from its sequence and storage time.
    /// `stored_at_ns`: the stream's time of the message, nanoseconds since the epoch.
    pub fn from_sequence(site: &SiteName, camera: &CameraName, sequence: u64, stored_at_ns: i128) -> Self {
        Self::from_name(&format!("{site}/{camera}/#{sequence}@{stored_at_ns}"))
    }

    /// The id derived from this one and `name`, such as that of a tile cut from a scan.
    pub fn child(&self, name: &str) -> Self {
        Self(Uuid::new_v5(&self.0, name.as_bytes()))
    }

    /// The id derived from `name` alone; the same for all time.
    pub fn from_name(name: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
    }

    /// The 16 bytes of the UUID.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for TaskId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::try_parse(text).map(Self).map_err(|_| IdError::Task { text: shown(text) })
    }
}

impl TryFrom<String> for TaskId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> String {
        id.to_string()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}

/// SHA-256 over the files of an immutable model, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseId(String);

impl ReleaseId {
    /// The id with this digest.
    pub fn from_sha256(digest: [u8; 32]) -> Self {
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for display.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Release { text: shown(text) });
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for ReleaseId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ReleaseId> for String {
    fn from(id: ReleaseId) -> String {
        id.0
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dots_wildcards_and_blanks_are_not_names() {
        for text in ["", "a.b", "*", ">", "a b", "a\n", "a\0", "ünder", &"x".repeat(65)] {
            assert!(text.parse::<SiteName>().is_err(), "{text:?} was accepted");
            assert!(text.parse::<CameraName>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn any_model_name_yields_a_token() {
        for (name, token) in [("fashion-light", "fashion-light"), ("my model v1.2", "my-model-v1-2"), ("", "model")] {
            assert_eq!(ModelName::from_name(name).as_str(), token);
            assert!(token.parse::<ModelName>().is_ok());
        }
    }

    #[test]
    fn a_message_id_that_is_a_uuid_is_the_task_id() {
        let (site, camera) = ("reef".parse().unwrap(), "cam1".parse().unwrap());
        let minted = TaskId::new_random();
        assert_eq!(TaskId::from_message_id(&site, &camera, &minted.to_string(), b"jpeg"), minted);
    }

    proptest! {
        #[test]
        fn one_message_id_yields_one_task_and_two_yield_two(a in ".{1,40}", b in ".{1,40}") {
            let (site, camera) = ("reef".parse().unwrap(), "cam1".parse().unwrap());
            let id = |text: &str, content: &str| TaskId::from_message_id(&site, &camera, text, content.as_bytes());
            prop_assert_eq!(id(&a, &b), id(&a, &b));
            prop_assert_eq!(a == b, id(&a, "x") == id(&b, "x"));
            prop_assert_eq!(a == b, id("frame-1", &a) == id("frame-1", &b));
        }

        #[test]
        fn ids_round_trip_through_text(text in "[0-9a-f]{64}") {
            let release: ReleaseId = text.parse().unwrap();
            prop_assert_eq!(release.to_string(), text);
            let task = TaskId::from_name("x");
            prop_assert_eq!(task.to_string().parse::<TaskId>().unwrap(), task);
        }
    }
}
