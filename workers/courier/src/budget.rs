//! What may go up: so many bytes a day, so many a second. Pure.

use serde::{Deserialize, Serialize};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// The bandwidth cap may be overdrawn by what it allows in so long, seconds, and is paid back by waiting.
const BURST_S: f64 = 0.25;

/// What may go up; what is absent is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSettings {
    /// Bytes a day (UTC). When they are used up, what waits goes up the next day, if its deadline allows.
    pub max_bytes_per_day: Option<u64>,
    /// Bytes a second, on average over a quarter of a second or the largest message.
    pub max_bytes_per_s: Option<u64>,
}

impl BudgetSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        match (self.max_bytes_per_day, self.max_bytes_per_s) {
            (Some(0), _) => Err("courier.budget.max_bytes_per_day is 0: leave it away, or switch verifying off".into()),
            (_, Some(0)) => Err("courier.budget.max_bytes_per_s is 0, use at least 1, or leave it away".into()),
            _ => Ok(()),
        }
    }
}

/// What was used of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    settings: BudgetSettings,
    day: u64,
    used_bytes: u64,
    /// What may go at once, bytes; below 0 it is overdrawn.
    room_bytes: f64,
    refilled_at_s: f64,
}

/// What is written down, to be known after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetUsage {
    /// The day, counted from the epoch.
    pub day: u64,
    /// Bytes that went up on it.
    pub bytes: u64,
}

impl Budget {
    /// A budget of which so much was used before.
    pub fn new(settings: BudgetSettings, used: Option<BudgetUsage>) -> Self {
        let BudgetUsage { day, bytes } = used.unwrap_or(BudgetUsage { day: 0, bytes: 0 });
        let room_bytes = settings.max_bytes_per_s.map_or(0.0, |rate| rate as f64 * BURST_S);
        Self { settings, day, used_bytes: bytes, room_bytes, refilled_at_s: 0.0 }
    }

    /// Whether anything may go up now. `now_ms` since the epoch, `now_s` on a clock that does not jump.
    pub fn allows(&mut self, bytes: u64, now_ms: u64, now_s: f64) -> bool {
        self.turn_page(now_ms);
        self.refill(now_s);
        let today = self.settings.max_bytes_per_day.is_none_or(|most| self.used_bytes.saturating_add(bytes) <= most);
        today && (self.settings.max_bytes_per_s.is_none() || self.room_bytes > 0.0)
    }

    /// So much went up.
    pub fn spend(&mut self, bytes: u64, now_ms: u64) {
        self.turn_page(now_ms);
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        if self.settings.max_bytes_per_s.is_some() {
            self.room_bytes -= bytes as f64;
        }
    }

    /// What is left of the day's bytes; absent without a limit.
    pub fn left_bytes(&mut self, now_ms: u64) -> Option<u64> {
        self.turn_page(now_ms);
        Some(self.settings.max_bytes_per_day?.saturating_sub(self.used_bytes))
    }

    /// How long until the cap of bytes a second allows more, seconds; 0 if it does.
    pub fn wait_s(&self) -> f64 {
        match self.settings.max_bytes_per_s {
            Some(rate) if self.room_bytes <= 0.0 => (-self.room_bytes + 1.0) / rate as f64,
            _ => 0.0,
        }
    }

    /// What to write down.
    pub fn used(&self) -> BudgetUsage {
        BudgetUsage { day: self.day, bytes: self.used_bytes }
    }

    fn turn_page(&mut self, now_ms: u64) {
        let today = now_ms / DAY_MS;
        if today != self.day {
            (self.day, self.used_bytes) = (today, 0);
        }
    }

    fn refill(&mut self, now_s: f64) {
        if let Some(rate) = self.settings.max_bytes_per_s {
            let gained = (now_s - self.refilled_at_s).max(0.0) * rate as f64;
            self.room_bytes = (self.room_bytes + gained).min(rate as f64 * BURST_S);
        }
        self.refilled_at_s = now_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_its_budget_and_the_next_begins_a_new_one() {
        let settings = BudgetSettings { max_bytes_per_day: Some(1000), max_bytes_per_s: None };
        let mut budget = Budget::new(settings.clone(), None);
        assert!(budget.allows(600, DAY_MS, 0.0));
        budget.spend(600, DAY_MS);
        assert!(!budget.allows(600, DAY_MS + 1, 0.0));
        assert_eq!(budget.left_bytes(DAY_MS + 1), Some(400));
        let mut restarted = Budget::new(settings, Some(budget.used()));
        assert!(!restarted.allows(600, DAY_MS + 2, 0.0), "a restart is no new day");
        assert!(restarted.allows(600, 2 * DAY_MS, 0.0));
    }

    #[test]
    fn over_a_while_no_more_goes_up_than_the_cap_allows() {
        let mut budget = Budget::new(BudgetSettings { max_bytes_per_day: None, max_bytes_per_s: Some(10_000) }, None);
        let (mut now_s, mut sent) = (0.0, 0);
        while now_s < 10.0 {
            if budget.allows(3_000, 0, now_s) {
                budget.spend(3_000, 0);
                sent += 3_000;
            } else {
                assert!(budget.wait_s() > 0.0);
            }
            now_s += 0.01;
        }
        assert!((98_000..=106_000).contains(&sent), "{sent} bytes in 10 s");
    }
}
