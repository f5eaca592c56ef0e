//! Limits on what is sent up: bytes per day and bytes per second. Pure.

use serde::{Deserialize, Serialize};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// The bandwidth cap may be exceeded by what it allows in this time, seconds; the excess delays later uploads.
const BURST_S: f64 = 0.25;

/// Limits on what is sent up; an absent one does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSettings {
    /// Bytes per day (UTC). Once used up, messages wait for the next day, if their deadline allows.
    pub max_bytes_per_day: Option<u64>,
    /// Bytes per second, averaged over a quarter of a second or the largest message.
    pub max_bytes_per_s: Option<u64>,
}

impl BudgetSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        match (self.max_bytes_per_day, self.max_bytes_per_s) {
            (Some(0), _) => Err("max_bytes_per_day is 0; omit it, or disable verification".into()),
            (_, Some(0)) => Err("max_bytes_per_s is 0; it must be at least 1, or omit it".into()),
            _ => Ok(()),
        }
    }
}

/// The budget and what was used of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    settings: BudgetSettings,
    day: u64,
    used_bytes: u64,
    /// Bytes that may be sent at once; negative if the cap was exceeded.
    burst_bytes: f64,
    refilled_at_s: f64,
}

/// Usage that is saved, so that a restart knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetUsage {
    /// The day, counted from the epoch.
    pub day: u64,
    /// Bytes sent up on that day.
    pub bytes: u64,
}

impl Budget {
    /// A budget with the usage from before a restart.
    pub fn new(settings: BudgetSettings, used: Option<BudgetUsage>) -> Self {
        let BudgetUsage { day, bytes } = used.unwrap_or(BudgetUsage { day: 0, bytes: 0 });
        let burst_bytes = settings.max_bytes_per_s.map_or(0.0, |rate| rate as f64 * BURST_S);
        Self { settings, day, used_bytes: bytes, burst_bytes, refilled_at_s: 0.0 }
    }

    /// Whether a message may be sent now. `now_ms` since the epoch, `now_s` on a steady clock.
    pub fn allows(&mut self, bytes: u64, now_ms: u64, now_s: f64) -> bool {
        self.start_day(now_ms);
        self.refill(now_s);
        let today = self.settings.max_bytes_per_day.is_none_or(|max| self.used_bytes.saturating_add(bytes) <= max);
        today && (self.settings.max_bytes_per_s.is_none() || self.burst_bytes > 0.0)
    }

    /// Records bytes that were sent.
    pub fn spend(&mut self, bytes: u64, now_ms: u64) {
        self.start_day(now_ms);
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        if self.settings.max_bytes_per_s.is_some() {
            self.burst_bytes -= bytes as f64;
        }
    }

    /// Bytes left today; `None` without a daily limit.
    pub fn left_bytes(&mut self, now_ms: u64) -> Option<u64> {
        self.start_day(now_ms);
        Some(self.settings.max_bytes_per_day?.saturating_sub(self.used_bytes))
    }

    /// Seconds until the cap on bytes per second allows more; 0 if it does now.
    pub fn wait_s(&self) -> f64 {
        match self.settings.max_bytes_per_s {
            Some(rate) if self.burst_bytes <= 0.0 => (-self.burst_bytes + 1.0) / rate as f64,
            _ => 0.0,
        }
    }

    /// The usage to save.
    pub fn used(&self) -> BudgetUsage {
        BudgetUsage { day: self.day, bytes: self.used_bytes }
    }

    fn start_day(&mut self, now_ms: u64) {
        let today = now_ms / DAY_MS;
        if today != self.day {
            (self.day, self.used_bytes) = (today, 0);
        }
    }

    fn refill(&mut self, now_s: f64) {
        if let Some(rate) = self.settings.max_bytes_per_s {
            let gained = (now_s - self.refilled_at_s).max(0.0) * rate as f64;
            self.burst_bytes = (self.burst_bytes + gained).min(rate as f64 * BURST_S);
        }
        self.refilled_at_s = now_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_is_renewed_the_next_day() {
        let settings = BudgetSettings { max_bytes_per_day: Some(1000), max_bytes_per_s: None };
        let mut budget = Budget::new(settings.clone(), None);
        assert!(budget.allows(600, DAY_MS, 0.0));
        budget.spend(600, DAY_MS);
        assert!(!budget.allows(600, DAY_MS + 1, 0.0));
        assert_eq!(budget.left_bytes(DAY_MS + 1), Some(400));
        let mut restarted = Budget::new(settings, Some(budget.used()));
        assert!(!restarted.allows(600, DAY_MS + 2, 0.0), "a restart does not renew it");
        assert!(restarted.allows(600, 2 * DAY_MS, 0.0));
    }

    #[test]
    fn on_average_no_more_is_sent_than_the_cap_allows() {
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
