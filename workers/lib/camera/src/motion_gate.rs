//! Decides which pictures of a camera are worth publishing. Pure: time comes in.
//!
//! A picture is compared with the last *published* one, never with the one before it, so that what moves slowly is
//! noticed as soon as it has moved far enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vision::thumbnail::{Thumbnail, ThumbnailDifference};

/// Share of the blocks that must have changed for a whole-scene change; a truck before the lens changes fewer.
const SCENE_CHANGED_RATIO: f32 = 0.75;
/// Change of the mean brightness, levels of 255, that counts as one: a light switched.
const SCENE_BRIGHTNESS: f32 = 50.0;

/// Settings of the motion gate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MotionGateSettings {
    /// Least difference from the picture published before, in levels of 255 of the block (a forty-eighth of the picture)
    /// that differs most; 0 publishes every picture.
    pub min_difference: f32,
    /// Seconds after which a picture is published although nothing moved, 1 to 86400.
    pub keep_alive_s: u32,
}

impl Default for MotionGateSettings {
    fn default() -> Self {
        Self { min_difference: 4.0, keep_alive_s: 60 }
    }
}

impl MotionGateSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that begins with the name of the invalid setting.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=255.0).contains(&self.min_difference) {
            return Err(format!("min_difference is {}; it must be between 0 and 255", self.min_difference));
        }
        match self.keep_alive_s {
            1..=86_400 => Ok(()),
            other => Err(format!("keep_alive_s is {other}; it must be between 1 and 86400")),
        }
    }
}

/// What the gate says of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateDecision {
    /// Publish it.
    Publish(PublishCause),
    /// Nothing moved.
    Skip,
}

/// Why a picture is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishCause {
    /// No picture was published before.
    First,
    /// Something moved.
    Motion,
    /// Nearly everything changed: light, view or channel.
    SceneChange,
    /// Nothing moved for a while.
    KeepAlive,
}

/// The gate of one camera or region.
#[derive(Debug, Clone)]
pub struct MotionGate {
    settings: MotionGateSettings,
    published: Option<PublishedPicture>,
}

#[derive(Debug, Clone)]
struct PublishedPicture {
    thumbnail: Thumbnail,
    at: Instant,
}

impl MotionGate {
    /// A gate that has seen nothing.
    pub fn new(settings: MotionGateSettings) -> Self {
        Self { settings, published: None }
    }

    /// Judges a picture.
    pub fn judge(&self, thumbnail: &Thumbnail, now: Instant) -> GateDecision {
        let Some(before) = &self.published else { return GateDecision::Publish(PublishCause::First) };
        let difference = thumbnail.difference(&before.thumbnail);
        if is_scene_change(&difference) {
            return GateDecision::Publish(PublishCause::SceneChange);
        }
        if difference.largest_block >= self.settings.min_difference {
            return GateDecision::Publish(PublishCause::Motion);
        }
        let keep_alive = Duration::from_secs(self.settings.keep_alive_s.into());
        match now.saturating_duration_since(before.at) >= keep_alive {
            true => GateDecision::Publish(PublishCause::KeepAlive),
            false => GateDecision::Skip,
        }
    }

    /// Forgets the picture that was published: the next one counts as the first.
    pub fn forget_published(&mut self) {
        self.published = None;
    }

    /// Remembers a picture that was published, with which later ones are compared.
    pub fn record_published(&mut self, thumbnail: Thumbnail, now: Instant) {
        self.published = Some(PublishedPicture { thumbnail, at: now });
    }
}

fn is_scene_change(difference: &ThumbnailDifference) -> bool {
    difference.changed_ratio >= SCENE_CHANGED_RATIO || difference.brightness >= SCENE_BRIGHTNESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(background: u8, object: Option<(usize, u8)>) -> Thumbnail {
        let mut plane = vec![background; 40 * 30];
        if let Some((x, gray)) = object {
            for row in 10..15 {
                plane[row * 40 + x..row * 40 + x + 4].fill(gray);
            }
        }
        Thumbnail::from_gray(&plane, 40, 40, 30).unwrap()
    }

    #[test]
    fn the_first_picture_motion_and_a_keep_alive_are_published() {
        let mut gate = MotionGate::new(MotionGateSettings::default());
        let start = Instant::now();
        let empty = picture(100, None);
        assert_eq!(gate.judge(&empty, start), GateDecision::Publish(PublishCause::First));
        gate.record_published(empty.clone(), start);
        let second = start + Duration::from_secs(1);
        assert_eq!(gate.judge(&picture(110, None), second), GateDecision::Skip, "a little more light");
        assert_eq!(gate.judge(&picture(100, Some((5, 200))), second), GateDecision::Publish(PublishCause::Motion));
        let minute = start + Duration::from_secs(60);
        assert_eq!(gate.judge(&empty, minute), GateDecision::Publish(PublishCause::KeepAlive));
        assert_eq!(gate.judge(&picture(200, None), second), GateDecision::Publish(PublishCause::SceneChange));
    }

    #[test]
    fn what_creeps_is_noticed_although_each_step_is_small() {
        let mut gate = MotionGate::new(MotionGateSettings::default());
        let start = Instant::now();
        gate.record_published(picture(100, Some((5, 120))), start);
        let published = (0..40).any(|step| {
            let gray = 120 + step * 2;
            gate.judge(&picture(100, Some((5, gray))), start) != GateDecision::Skip
        });
        assert!(published);
    }

    #[test]
    fn a_gate_of_zero_lets_everything_through_and_a_wrong_one_is_refused() {
        let mut gate = MotionGate::new(MotionGateSettings { min_difference: 0.0, ..MotionGateSettings::default() });
        let now = Instant::now();
        gate.record_published(picture(100, None), now);
        assert_eq!(gate.judge(&picture(100, None), now), GateDecision::Publish(PublishCause::Motion));
        for settings in [
            MotionGateSettings { min_difference: -1.0, ..MotionGateSettings::default() },
            MotionGateSettings { min_difference: f32::NAN, ..MotionGateSettings::default() },
            MotionGateSettings { keep_alive_s: 0, ..MotionGateSettings::default() },
        ] {
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}
