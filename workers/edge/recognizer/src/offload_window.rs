//! Limits how many tasks are offloaded: like a congestion window, it starts small, grows with every
//! answer that arrives in time, and falls back when one does not (slow start: Jacobson, SIGCOMM 1988). After
//! unanswered tasks it stays closed for a while, longer each time. A task that is reclaimed for its deadline, before its
//! answer is overdue, says that too many are away, not that the cloud is gone: the window is halved, and once for all
//! that were sent before it was (as after a lost segment: RFC 6582). Only when several such halvings follow each other
//! without an answer in time do they count as unanswered. Pure.
//!
//! So a cloud that accepts tasks and never answers costs a few tasks now and then, whatever it reports about itself.

/// Tasks at the start and after a timeout.
const FIRST: f64 = 4.0;
const FIRST_PAUSE_S: f64 = 1.0;
const MAX_PAUSE_S: f64 = 30.0;
/// Halvings in a row, without an answer in time between them, that count as a timeout; a guess. One alone can be a link
/// that stood still for a moment: everything that was away then is near its deadline at once.
const MAX_HALVINGS: u32 = 3;

/// The window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OffloadWindow {
    tasks: f64,
    falls: u32,
    halvings: u32,
    halved_at_s: f64,
    closed_until_s: f64,
}

impl Default for OffloadWindow {
    fn default() -> Self {
        Self { tasks: FIRST, falls: 0, halvings: 0, halved_at_s: f64::NEG_INFINITY, closed_until_s: f64::NEG_INFINITY }
    }
}

impl OffloadWindow {
    /// How many tasks may be offloaded now.
    pub(crate) fn tasks(&self, now_s: f64) -> u64 {
        if now_s < self.closed_until_s { 0 } else { self.tasks as u64 }
    }

    /// Records an answer in time.
    pub(crate) fn record_answer(&mut self, max: u64) {
        self.tasks = (self.tasks + 1.0).min(max as f64).max(1.0);
        self.falls = 0;
        self.halvings = 0;
    }

    /// Records a task that was sent at this time and reclaimed for its deadline.
    pub(crate) fn record_near_deadline(&mut self, sent_at_s: f64, now_s: f64) {
        if sent_at_s < self.halved_at_s {
            return;
        }
        self.halved_at_s = now_s;
        self.tasks = (self.tasks / 2.0).max(FIRST);
        self.halvings += 1;
        if self.halvings >= MAX_HALVINGS {
            self.record_timeout(now_s);
        }
    }

    /// Records an unanswered task. Tasks that were offloaded together count as one timeout.
    pub(crate) fn record_timeout(&mut self, now_s: f64) {
        self.tasks = FIRST;
        self.halvings = 0;
        if now_s >= self.closed_until_s {
            let pause_s = FIRST_PAUSE_S * 2f64.powi(self.falls.min(16).cast_signed());
            self.closed_until_s = now_s + pause_s.min(MAX_PAUSE_S);
            self.falls = self.falls.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_open_the_window_up_to_its_limit() {
        let mut window = OffloadWindow::default();
        assert_eq!(window.tasks(0.0), 4);
        (0..1000).for_each(|_| window.record_answer(256));
        assert_eq!(window.tasks(0.0), 256);
    }

    #[test]
    fn a_link_that_stands_still_for_a_moment_halves_the_window_once() {
        let mut window = OffloadWindow::default();
        (0..60).for_each(|_| window.record_answer(256));
        // All that were away are reclaimed, one after the other, before the first answer is back.
        (0..64).for_each(|task| window.record_near_deadline(f64::from(task) / 200.0, 0.4 + f64::from(task) / 200.0));
        assert_eq!(window.tasks(0.8), 32);
        window.record_near_deadline(0.41, 0.9);
        assert_eq!(window.tasks(0.9), 16, "one that was sent after the halving");
    }

    #[test]
    fn halvings_close_the_window_only_if_nothing_is_answered_in_between() {
        let mut window = OffloadWindow::default();
        let mut now_s = 0.0;
        for _ in 0..100 {
            window.record_near_deadline(now_s, now_s + 0.3);
            window.record_answer(256);
            now_s += 0.3;
            assert!(window.tasks(now_s) >= 4);
        }
        for _ in 0..3 {
            assert!(window.tasks(now_s) >= 4);
            window.record_near_deadline(now_s, now_s + 0.3);
            now_s += 0.3;
        }
        assert_eq!((window.tasks(now_s + 0.5), window.tasks(now_s + 1.0)), (0, 4));
    }

    #[test]
    fn a_cloud_that_never_answers_is_tried_more_and_more_rarely() {
        let mut window = OffloadWindow::default();
        (0..100).for_each(|_| window.record_answer(256));
        let mut pauses = Vec::new();
        let mut now_s = 0.0;
        for _ in 0..8 {
            // All offloaded tasks time out one after another.
            (0..4).for_each(|_| window.record_timeout(now_s));
            let closed_at_s = now_s;
            while window.tasks(now_s) == 0 {
                now_s += 0.5;
            }
            assert_eq!(window.tasks(now_s), 4);
            pauses.push(now_s - closed_at_s);
        }
        assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        window.record_answer(256);
        window.record_timeout(now_s);
        assert_eq!(window.tasks(now_s + 1.0), 4, "an answer resets the pauses");
    }
}
