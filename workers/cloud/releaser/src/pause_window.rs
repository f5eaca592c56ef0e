//! Times of day in which no release is rolled out. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAY_MIN: u32 = 24 * 60;

/// A daily period in UTC; one that ends before it begins spans midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PauseWindow {
    from_min: u32,
    to_min: u32,
}

impl PauseWindow {
    /// Whether a moment, in milliseconds since the epoch, is inside.
    pub fn contains(&self, at_ms: u64) -> bool {
        let now_min = u32::try_from(at_ms / 60_000 % u64::from(DAY_MIN)).unwrap_or(0);
        match self.from_min <= self.to_min {
            true => (self.from_min..self.to_min).contains(&now_min),
            false => now_min >= self.from_min || now_min < self.to_min,
        }
    }
}

impl FromStr for PauseWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a period of the day; write one such as 22:00-06:00");
        let minutes = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':').ok_or_else(wrong)?;
            let (hours, minutes): (u32, u32) =
                (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
            let at = hours * 60 + minutes;
            if hours > 24 || minutes > 59 || at > DAY_MIN { Err(wrong()) } else { Ok(at) }
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from_min, to_min) = (minutes(from)?, minutes(to)?);
        if from_min == to_min { Err(wrong()) } else { Ok(Self { from_min, to_min }) }
    }
}

impl TryFrom<String> for PauseWindow {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PauseWindow> for String {
    fn from(window: PauseWindow) -> String {
        window.to_string()
    }
}

impl fmt::Display for PauseWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from_min, to_min } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from_min / 60, from_min % 60, to_min / 60, to_min % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn a_window_may_span_midnight() {
        let day: PauseWindow = "08:00-17:30".parse().unwrap();
        let night: PauseWindow = "22:00-06:00".parse().unwrap();
        for (hour, by_day, by_night) in
            [(0, false, true), (6, false, false), (8, true, false), (17, true, false), (23, false, true)]
        {
            let at_ms = 20_000 * 24 * HOUR_MS + hour * HOUR_MS;
            assert_eq!((day.contains(at_ms), night.contains(at_ms)), (by_day, by_night), "{hour}");
        }
        assert!(!day.contains(17 * HOUR_MS + 30 * 60_000));
        assert_eq!(night.to_string(), "22:00-06:00");
    }

    #[test]
    fn invalid_windows_are_refused() {
        for text in ["", "8", "8:00", "25:00-06:00", "08:60-09:00", "08:00-08:00", "a-b"] {
            assert!(text.parse::<PauseWindow>().is_err(), "{text:?}");
        }
    }
}
