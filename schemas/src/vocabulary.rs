//! Words that programs act on: a closed enum in code, a short text on the wire, and a variant that keeps words from
//! newer releases.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An enum with one fixed word per variant; [`vocabulary!`](crate::vocabulary!) implements it.
pub trait Vocabulary: Copy + Eq + 'static {
    /// Every variant.
    const ALL: &'static [Self];

    /// The word, as on the wire and in output.
    fn word(self) -> &'static str;

    /// The variant for a word; `None` if this release does not know the word.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.word() == word)
    }
}

/// Declares an enum together with its words, so that a new word is one line.
#[macro_export]
macro_rules! vocabulary {
    ($(#[$about:meta])* $visibility:vis enum $name:ident {
        $($(#[$of_variant:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        impl $name {
            /// The word, as on the wire and in output.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::vocabulary::Vocabulary for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// A word in a message: a variant of `T`, or another text, which is kept as received.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WireWord<T> {
    /// A variant of `T`.
    Known(T),
    /// Any other text: one that is only displayed, or a word from a newer release.
    Other(String),
}

impl<T: Vocabulary> WireWord<T> {
    /// The word as on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.word(),
            Self::Other(word) => word,
        }
    }

    /// The variant, if the word is known.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Other(_) => None,
        }
    }
}

impl<T: Vocabulary> From<T> for WireWord<T> {
    fn from(known: T) -> Self {
        Self::Known(known)
    }
}

impl<T: Vocabulary> From<&str> for WireWord<T> {
    fn from(word: &str) -> Self {
        T::from_word(word).map_or_else(|| Self::Other(word.to_owned()), Self::Known)
    }
}

impl<T: Vocabulary> From<String> for WireWord<T> {
    fn from(word: String) -> Self {
        T::from_word(&word).map_or(Self::Other(word), Self::Known)
    }
}

impl<T: Vocabulary> PartialEq<T> for WireWord<T> {
    fn eq(&self, known: &T) -> bool {
        self.known() == Some(*known)
    }
}

/// Orders by text, known or not.
impl<T: Vocabulary> Ord for WireWord<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl<T: Vocabulary> PartialOrd for WireWord<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Vocabulary + Default> Default for WireWord<T> {
    fn default() -> Self {
        Self::Known(T::default())
    }
}

impl<T: Vocabulary> fmt::Display for WireWord<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<T: Vocabulary> Serialize for WireWord<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Vocabulary> Deserialize<'de> for WireWord<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;
    use crate::heartbeat::{RoundState, TrainerState};
    use crate::release::{CanaryMeasure, DecisionOrigin};
    use crate::role::Role;

    fn check_words<T: Vocabulary + fmt::Debug>() {
        for known in T::ALL {
            let same = T::ALL.iter().filter(|other| other.word() == known.word()).count();
            assert_eq!(same, 1, "two variants share the word of {known:?}");
            let json = serde_json::to_string(&WireWord::Known(*known)).unwrap();
            assert_eq!(json, format!("{:?}", known.word()));
            assert_eq!(serde_json::from_str::<WireWord<T>>(&json).unwrap(), *known);
        }
        let newer: WireWord<T> = serde_json::from_str("\"of_a_newer_release\"").unwrap();
        assert_eq!(newer, WireWord::Other("of_a_newer_release".into()));
        assert_eq!(serde_json::to_string(&newer).unwrap(), "\"of_a_newer_release\"");
    }

    #[test]
    fn every_word_round_trips_and_an_unknown_one_is_kept() {
        check_words::<FaultKind>();
        check_words::<Role>();
        check_words::<TrainerState>();
        check_words::<RoundState>();
        check_words::<DecisionOrigin>();
        check_words::<CanaryMeasure>();
    }
}
