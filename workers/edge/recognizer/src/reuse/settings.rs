//! Settings of the reuse of answers.

use std::collections::BTreeMap;

use schemas::CameraName;
use serde::{Deserialize, Serialize};

/// When a picture that hardly differs from the one before gets that one's answer, without being recognized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReuseSettings {
    /// Whether answers are reused, at cameras that `cameras` says nothing else about.
    pub enabled: bool,
    /// Difference below which two pictures count as equal: that of the block that differs most, in levels of 255, above 0
    /// and at most 64. Lowered by itself where reused answers turn out wrong.
    pub max_difference: f32,
    /// Most pictures in a row that get the same answer, 1 to 10,000; the next one is recognized.
    pub max_in_a_row: u32,
    /// Of so many pictures whose answer could be reused, one is recognized all the same and compared, 2 to 1,000.
    pub check_every: u32,
    /// Largest share of wrong answers among those compared, 0.001 to 0.5: the difference is halved when the share may be
    /// larger, with 95 % certainty.
    pub target_wrong_ratio: f64,
    /// What is different at single cameras.
    pub cameras: BTreeMap<CameraName, CameraReuseSettings>,
}

/// What is different at one camera; what is absent is as at the others.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CameraReuseSettings {
    /// Whether its answers are reused.
    pub enabled: Option<bool>,
    /// Difference below which its pictures count as equal.
    pub max_difference: Option<f32>,
    /// Most of its pictures in a row that get the same answer.
    pub max_in_a_row: Option<u32>,
}

/// The terms of one camera.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ReuseTerms {
    /// Difference below which its pictures count as equal.
    pub max_difference: f32,
    /// Most pictures in a row that get the same answer.
    pub max_in_a_row: u32,
}

impl Default for ReuseSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            max_difference: 4.0,
            max_in_a_row: 10,
            check_every: 20,
            target_wrong_ratio: 0.02,
            cameras: BTreeMap::new(),
        }
    }
}

const MAX_DIFFERENCE: f32 = 64.0;
const ROWS: std::ops::RangeInclusive<u32> = 1..=10_000;
const CHECKS: std::ops::RangeInclusive<u32> = 2..=1000;
const TARGETS: std::ops::RangeInclusive<f64> = 0.001..=0.5;

impl ReuseSettings {
    /// The terms of a camera; `None` if its answers are not reused.
    pub(crate) fn terms(&self, camera: &CameraName) -> Option<ReuseTerms> {
        let own = self.cameras.get(camera).copied().unwrap_or_default();
        own.enabled.unwrap_or(self.enabled).then(|| ReuseTerms {
            max_difference: own.max_difference.unwrap_or(self.max_difference),
            max_in_a_row: own.max_in_a_row.unwrap_or(self.max_in_a_row),
        })
    }

    /// Whether answers of any camera are reused.
    pub(crate) fn is_on(&self) -> bool {
        self.enabled || self.cameras.values().any(|camera| camera.enabled == Some(true))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A sentence with the key, the value and its range.
    pub fn check(&self) -> Result<(), String> {
        let own = CameraReuseSettings {
            enabled: None,
            max_difference: Some(self.max_difference),
            max_in_a_row: Some(self.max_in_a_row),
        };
        own.check()?;
        for (camera, settings) in &self.cameras {
            settings.check().map_err(|why| format!("cameras.{camera}.{why}"))?;
        }
        if !CHECKS.contains(&self.check_every) {
            return Err(format!("check_every is {}; it must be between 2 and 1000", self.check_every));
        }
        if !TARGETS.contains(&self.target_wrong_ratio) {
            return Err(format!("target_wrong_ratio is {}; it must be between 0.001 and 0.5", self.target_wrong_ratio));
        }
        Ok(())
    }
}

impl CameraReuseSettings {
    fn check(&self) -> Result<(), String> {
        let is_wrong = |difference: &f32| !(*difference > 0.0 && *difference <= MAX_DIFFERENCE);
        if let Some(difference) = self.max_difference.filter(is_wrong) {
            return Err(format!("max_difference is {difference}; it must be above 0 and at most {MAX_DIFFERENCE}"));
        }
        match self.max_in_a_row.filter(|row| !ROWS.contains(row)) {
            Some(row) => Err(format!("max_in_a_row is {row}; it must be between 1 and 10000")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_camera_has_terms_of_its_own_and_those_of_all() {
        let door = CameraReuseSettings { enabled: Some(true), max_difference: Some(2.0), max_in_a_row: None };
        let settings = ReuseSettings { cameras: [("door".parse().unwrap(), door)].into(), ..ReuseSettings::default() };
        assert!(settings.is_on() && !ReuseSettings::default().is_on());
        let terms = ReuseTerms { max_difference: 2.0, max_in_a_row: 10 };
        assert_eq!(settings.terms(&"door".parse().unwrap()), Some(terms));
        assert_eq!(settings.terms(&"yard".parse().unwrap()), None);
        let off = CameraReuseSettings { enabled: Some(false), ..door };
        let settings = ReuseSettings {
            enabled: true,
            cameras: [("door".parse().unwrap(), off)].into(),
            ..ReuseSettings::default()
        };
        assert_eq!(settings.terms(&"door".parse().unwrap()), None);
        assert_eq!(settings.terms(&"yard".parse().unwrap()).unwrap().max_difference, 4.0);
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let wrong = |change: fn(&mut ReuseSettings)| {
            let mut settings = ReuseSettings::default();
            change(&mut settings);
            settings.check().unwrap_err()
        };
        assert!(wrong(|settings| settings.max_difference = f32::NAN).starts_with("max_difference is NaN; "));
        assert!(wrong(|settings| settings.max_difference = 0.0).starts_with("max_difference is 0; "));
        assert!(wrong(|settings| settings.max_in_a_row = 0).starts_with("max_in_a_row is 0; "));
        assert!(wrong(|settings| settings.check_every = 1).starts_with("check_every is 1; "));
        assert!(wrong(|settings| settings.target_wrong_ratio = 0.0).starts_with("target_wrong_ratio is 0; "));
        let far = wrong(|settings| {
            let far = CameraReuseSettings { max_difference: Some(65.0), ..CameraReuseSettings::default() };
            settings.cameras.insert("door".parse().unwrap(), far);
        });
        assert!(far.starts_with("cameras.door.max_difference is 65; "), "{far}");
        assert_eq!(ReuseSettings::default().check(), Ok(()));
    }
}
