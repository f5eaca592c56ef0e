//! Decides which answered images are deleted to make space for new ones. Pure.

use streams::reader::{ConsumerProgress, StreamLevel};

use crate::settings::JanitorSettings;

/// The sequence before which everything may be deleted; `None` if there is space, or nothing may be deleted.
/// Only images below the recognizers' floor were answered, so nothing above it is touched.
pub fn purge_before(images: &StreamLevel, recognized: &ConsumerProgress, settings: &JanitorSettings) -> Option<u64> {
    let limit = images.max_bytes as f64;
    let full = images.bytes as f64;
    if images.max_bytes == 0 || images.messages == 0 || full <= settings.high_ratio * limit {
        return None;
    }
    let surplus_ratio = 1.0 - settings.low_ratio * limit / full;
    let surplus = (images.messages as f64 * surplus_ratio).round() as u64;
    let wanted = images.first_sequence.saturating_add(surplus);
    let before = wanted.min(recognized.floor.saturating_add(1));
    (before > images.first_sequence).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn level(messages: u64, bytes: u64) -> StreamLevel {
        StreamLevel { messages, bytes, max_bytes: 1000, first_sequence: 11, last_sequence: 10 + messages, gaps: 0 }
    }

    fn floor(floor: u64) -> ConsumerProgress {
        ConsumerProgress { pending: 0, unacked: 0, floor, delivered: floor, active_at_ms: None }
    }

    #[test]
    fn nothing_is_deleted_while_there_is_space() {
        assert_eq!(purge_before(&level(100, 850), &floor(110), &JanitorSettings::default()), None);
    }

    #[test]
    fn the_oldest_answered_images_are_deleted_until_there_is_space() {
        assert_eq!(purge_before(&level(100, 1000), &floor(110), &JanitorSettings::default()), Some(41));
    }

    #[test]
    fn unanswered_images_are_kept_however_full_the_stream_is() {
        assert_eq!(purge_before(&level(100, 1000), &floor(15), &JanitorSettings::default()), Some(16));
        assert_eq!(purge_before(&level(100, 1000), &floor(10), &JanitorSettings::default()), None);
    }

    proptest! {
        #[test]
        fn only_answered_images_are_deleted(messages in 0u64..10_000, bytes in 0u64..2000, answered in 0u64..20_000) {
            if let Some(before) = purge_before(&level(messages, bytes), &floor(answered), &JanitorSettings::default()) {
                prop_assert!(before <= answered + 1);
                prop_assert!(before > 11);
            }
        }
    }
}
