//! Decides how many replicas a queue needs. Pure; time is passed in as seconds on a steady clock.
//!
//! The measure is seconds of queued work: images that wait, times the cost of one, divided by the replicas. Counting
//! images would not do, because an image costs 1 ms with one model and 500 ms with another.
//!
//! What each number of replicas can do is measured while it is busy, with an error ([`super::rate`]). More than chance
//! must say that replicas bring nothing before they go again, and that holds for a while only, longer each time.

use std::collections::{BTreeMap, VecDeque};

use crate::scale::rate::{GainVerdict, RateEstimate, compare_gain};
use crate::scale::settings::ScaleSettings;

/// Replicas are removed only if the others would be busy at most this fraction of the time, because images arrive
/// unevenly. A guess.
const BUSY_RATIO: f64 = 0.8;
/// Replicas are removed only while less than this fraction of the target waits.
const LOW_RATIO: f64 = 0.5;
/// Time within which what waits beyond the target is to be gone, seconds.
const CATCH_UP_S: f64 = 3.0;
/// So many times as many images that come in are another situation.
const MORE_ARRIVALS: f64 = 2.0;
/// Replicas that usually do more than comes in are given so many times the target to do so again.
const HICCUP_TARGETS: f64 = 4.0;
/// At most this many times as many replicas at once: what more of them do is not known yet.
const LARGEST_LEAP: usize = 4;
/// Time after which undecided replicas no longer keep others from being tried, seconds.
const PATIENCE_S: f64 = 10.0;
/// A leap whose replicas bring less than this fraction of what was expected has gone too far.
const LEAST_LEAP_RATIO: f64 = 0.65;
/// Cooldowns before a number of replicas that did not help is tried again, at first and at most.
const RETRY_COOLDOWNS: (f64, f64) = (5.0, 80.0);
/// Rates of other numbers of replicas that are older say nothing about the present, seconds.
const FRESH_S: f64 = 120.0;
/// Weight of the newest look in what an image usually costs.
const USUAL_SHARE: f64 = 1.0 / 30.0;
/// Replicas of which it is undecided what they bring look like useful ones above this fraction of what one does.
const PROMISING_RATIO: f64 = 0.5;
/// Arrivals are counted over so long at most, seconds.
const ARRIVALS_S: f64 = 5.0;
/// Arrivals that are enough to know their rate to a quarter, which a step in load needs soon.
const ENOUGH_ARRIVALS: f64 = 16.0;
/// Looks closer together or further apart give no rate, seconds.
const LOOK_S: (f64, f64) = (0.2, 5.0);

/// What was observed at a given time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueObservation {
    /// Time of the observation, seconds.
    pub now_s: f64,
    /// This worker's share of the images that wait or are being processed.
    pub waiting: f64,
    /// Cost of an image on one replica, seconds.
    pub cost_s: f64,
    /// Replicas of this worker.
    pub replicas: usize,
    /// Replicas that the processors can run at the same time.
    pub parallelism: usize,
    /// Images this worker finished since it started.
    pub finished: u64,
}

impl QueueObservation {
    /// Queued work, seconds.
    pub fn queued_s(&self) -> f64 {
        self.waiting * self.cost_s / self.replicas.max(1) as f64
    }

    /// Images that came since an earlier look; not below zero, since the share of a queue may shrink.
    fn arrived_since(&self, earlier: &QueueObservation) -> f64 {
        (self.waiting - earlier.waiting + self.finished_since(earlier)).max(0.0)
    }

    fn finished_since(&self, earlier: &QueueObservation) -> f64 {
        self.finished.saturating_sub(earlier.finished) as f64
    }
}

/// State of the decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScaleState {
    /// The latest looks with this number of replicas, oldest first.
    looks: VecDeque<QueueObservation>,
    /// What each number of replicas did while it was last busy.
    rates: BTreeMap<usize, RateEstimate>,
    /// Cost of an image over the last half minute or so, seconds.
    usual_cost_s: Option<f64>,
    /// When the number last changed, seconds.
    changed_at_s: Option<f64>,
    /// Replicas that were added and are being judged.
    trial: Option<ReplicaTrial>,
    /// More replicas than this did not help.
    useless: Option<UselessReplicas>,
    /// Since when the queue is above its target, seconds.
    long_since_s: Option<f64>,
    /// Since when it is not, seconds.
    calm_since_s: Option<f64>,
    /// The look since which little waits.
    idle_since: Option<QueueObservation>,
}

/// Replicas that were added.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ReplicaTrial {
    since_s: f64,
    /// Replicas before.
    before: usize,
    /// Images per second of each of them.
    each_per_s: f64,
}

/// Replicas that did not help.
#[derive(Debug, Clone, Copy, PartialEq)]
struct UselessReplicas {
    /// The number beyond which none helped.
    above: usize,
    /// When one more is tried again, seconds.
    until_s: f64,
    /// How long that was from the verdict, seconds.
    pause_s: f64,
    /// Whether it is more than chance; otherwise they only look like it.
    is_proven: bool,
    /// Images per second that came in at the time.
    arrivals_per_s: f64,
}

/// Number of replicas to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaTarget {
    /// Replicas.
    pub replicas: usize,
    /// Why, in a sentence for people.
    pub why: String,
}

/// Decides on the number of replicas: returns the new state and the target.
pub fn decide_replicas(
    settings: &ScaleSettings,
    state: &ScaleState,
    seen: &QueueObservation,
) -> (ScaleState, ReplicaTarget) {
    let mut state = state.clone();
    let (min, max) = (settings.min_replicas, settings.max_replicas.max(settings.min_replicas));
    state.take_look(settings, seen);
    let target = if !(min..=max).contains(&seen.replicas) {
        state.trial = None;
        ReplicaTarget { replicas: seen.replicas.clamp(min, max), why: format!("{min} to {max} are allowed") }
    } else if seen.queued_s() > settings.target_s {
        state.follow_long_queue(settings, seen)
    } else {
        state.follow_short_queue(settings, seen)
    };
    if target.replicas != seen.replicas {
        (state.changed_at_s, state.idle_since) = (Some(seen.now_s), None);
    }
    (state, target)
}

impl ScaleState {
    /// Takes note of a look: what arrived, and what the replicas did if they were busy since the look before.
    fn take_look(&mut self, settings: &ScaleSettings, seen: &QueueObservation) {
        let usual_s = self.usual_cost_s.get_or_insert(seen.cost_s);
        *usual_s += USUAL_SHARE * (seen.cost_s - *usual_s);
        let last = self.looks.back().copied();
        if last.is_none_or(|last| last.replicas != seen.replicas || seen.now_s - last.now_s > LOOK_S.1) {
            // What this number did another time may be no longer so; and shares of a queue change with the number.
            self.rates.remove(&seen.replicas);
            self.looks.clear();
        }
        self.rates.retain(|replicas, known| *replicas == seen.replicas || seen.now_s - known.at_s <= FRESH_S);
        if let Some(last) = self.looks.back() {
            let over_s = seen.now_s - last.now_s;
            if over_s < LOOK_S.0 {
                return;
            }
            let busy = |look: &QueueObservation| {
                look.queued_s() >= LOW_RATIO * settings.target_s && look.waiting >= look.replicas as f64
            };
            if busy(last) && busy(seen) {
                let rate = seen.finished_since(last) / over_s;
                let known = self.rates.get(&seen.replicas);
                let known =
                    known.map_or(RateEstimate::new(seen.now_s, rate), |known| known.with_look(seen.now_s, rate));
                self.rates.insert(seen.replicas, known);
            }
        }
        self.looks.push_back(*seen);
        while self.looks.front().is_some_and(|first| seen.now_s - first.now_s > ARRIVALS_S + LOOK_S.0) {
            self.looks.pop_front();
        }
    }

    /// Images per second that come in, counted until so many have come; `None` until that was seen.
    fn arrivals_per_s(&self, seen: &QueueObservation, enough: f64) -> Option<f64> {
        let earlier = self.looks.iter().rev().filter(|look| seen.now_s - look.now_s >= LOOK_S.0);
        let mut over = None;
        for look in earlier {
            let arrived = seen.arrived_since(look);
            over = Some(arrived / (seen.now_s - look.now_s));
            if arrived >= enough {
                break;
            }
        }
        over
    }

    /// Images per second that so many replicas can do: measured, or estimated from the cost of an image.
    fn capacity_per_s(&self, replicas: usize, seen: &QueueObservation) -> f64 {
        let known = self.rates.get(&replicas).filter(|known| known.is_known());
        known.map_or_else(|| replicas as f64 / seen.cost_s.max(1e-6), |known| known.mean)
    }

    /// More waits than should.
    fn follow_long_queue(&mut self, settings: &ScaleSettings, seen: &QueueObservation) -> ReplicaTarget {
        let (now_s, replicas) = (seen.now_s, seen.replicas);
        (self.idle_since, self.calm_since_s) = (None, None);
        let long_s = now_s - *self.long_since_s.get_or_insert(now_s);
        let queued = format!("{:.1} s of work queued", seen.queued_s());
        let stay = |why: &str| ReplicaTarget { replicas, why: format!("{queued}; {why}") };
        let arrivals = self.arrivals_per_s(seen, ENOUGH_ARRIVALS);
        // What only looked useless with less to do is no reason to wait when there is more.
        let lately = self.arrivals_per_s(seen, f64::INFINITY).unwrap_or(0.0);
        self.useless = self.useless.filter(|known| known.is_proven || lately < MORE_ARRIVALS * known.arrivals_per_s);
        if self.changed_at_s.is_some_and(|at_s| now_s - at_s < settings.up_cooldown_s) {
            return stay("waiting for the last change to take effect");
        }
        let most = settings.max_replicas.min(seen.parallelism).max(settings.min_replicas);
        if let Some((more, why)) = self.find_better(settings, replicas, most) {
            self.trial = None;
            self.useless = self.useless.map(|useless| UselessReplicas { above: useless.above.max(more), ..useless });
            return ReplicaTarget { replicas: more, why };
        }
        let useless = self.find_useless(settings, replicas).map(|(fewer, why)| (fewer, true, why));
        let useless =
            useless.or_else(|| self.find_leap_too_far(settings, replicas).map(|(fewer, why)| (fewer, false, why)));
        if let Some((fewer, is_proven, why)) = useless {
            self.pause_growth(settings, (fewer, is_proven), lately, now_s);
            return ReplicaTarget { replicas: fewer, why };
        }
        if replicas >= most {
            return stay(match most < settings.max_replicas {
                true => "more would only share the same processors",
                false => "more are not allowed",
            });
        }
        if let Some(useless) = self.useless.filter(|useless| replicas >= useless.above && now_s < useless.until_s) {
            return stay(&format!("more did not help, and are tried again in {:.0} s", useless.until_s - now_s));
        }
        if let Some(trial) = self.trial {
            let (verdict, is_promising) = self.judge(settings, &trial, replicas);
            if verdict == GainVerdict::Undecided {
                if now_s - trial.since_s < PATIENCE_S {
                    return stay(&format!("whether {replicas} do more than {} is being measured", trial.before));
                }
                if !is_promising {
                    self.pause_growth(settings, (replicas, false), lately, now_s);
                    return stay(&format!(
                        "{replicas} do hardly more than {}, so no more are tried for now",
                        trial.before
                    ));
                }
            }
            self.trial = None;
        }
        let each_per_s = self.each_per_s(seen);
        let beyond = (seen.waiting - settings.target_s * each_per_s * replicas as f64).max(0.0);
        if beyond < self.shrinks_per_s(seen) * CATCH_UP_S {
            return stay(&format!("it shrinks with {replicas}"));
        }
        let would_do = arrivals.is_some_and(|arrivals| arrivals <= BUSY_RATIO * each_per_s * replicas as f64);
        let (arrivals, hiccup_s) = (arrivals.unwrap_or(0.0), HICCUP_TARGETS * settings.target_s);
        if would_do && long_s < hiccup_s {
            return stay(&format!("{replicas} usually do more than comes in, so this may pass by itself"));
        }
        // As many as keep up with what comes and also catch up; fewer where more did not help before.
        let needed = ((arrivals + beyond / CATCH_UP_S) / each_per_s).ceil() as usize;
        let leap = match self.useless {
            Some(known) if known.is_proven => 1,
            _ if would_do && beyond < arrivals * hiccup_s => 1,
            Some(_) => replicas.div_ceil(2),
            None => replicas.saturating_mul(LARGEST_LEAP - 1),
        };
        let more = needed.clamp(replicas + 1, replicas + leap).min(most);
        self.trial = Some(ReplicaTrial { since_s: now_s, before: replicas, each_per_s });
        let why = format!("{queued}, more than the target of {:.1} s", settings.target_s);
        ReplicaTarget { replicas: more, why }
    }

    /// Images per second by which the queue just shrank.
    fn shrinks_per_s(&self, seen: &QueueObservation) -> f64 {
        let last = self.looks.iter().rev().find(|look| seen.now_s - look.now_s >= LOOK_S.0);
        last.map_or(0.0, |last| (last.waiting - seen.waiting) / (seen.now_s - last.now_s))
    }

    /// Images per second of one replica, the better of what was measured and what an image usually costs: after a
    /// hiccup less was done and an image costs more, and a leap for that reason goes too far.
    fn each_per_s(&self, seen: &QueueObservation) -> f64 {
        let measured = self.capacity_per_s(seen.replicas, seen) / seen.replicas.max(1) as f64;
        measured.max(1.0 / self.usual_cost_s.unwrap_or(seen.cost_s).max(1e-6))
    }

    /// A larger number of replicas that did more, by more than chance.
    fn find_better(&self, settings: &ScaleSettings, replicas: usize, most: usize) -> Option<(usize, String)> {
        let now = self.rates.get(&replicas)?;
        let better = self.rates.iter().filter(|(more, _)| (replicas + 1..=most).contains(*more));
        let better = better.filter(|(more, known)| {
            compare_gain((replicas, now), (**more, known), settings.min_gain_ratio) == GainVerdict::Worth
        });
        let (more, known) = better.max_by(|a, b| a.1.mean.total_cmp(&b.1.mean))?;
        let (did, does) = (known.mean, now.mean);
        Some((*more, format!("{more} replicas did {did:.0} images per second, {replicas} do {does:.0}")))
    }

    /// A smaller number of replicas that would do, because the present one does no more by more than chance.
    fn find_useless(&self, settings: &ScaleSettings, replicas: usize) -> Option<(usize, String)> {
        let now = self.rates.get(&replicas)?;
        let fewer = self.rates.range(settings.min_replicas..replicas).filter(|(fewer, known)| {
            compare_gain((**fewer, known), (replicas, now), settings.min_gain_ratio) == GainVerdict::NotWorth
        });
        let (fewer, known) = fewer.max_by(|a, b| a.1.mean.total_cmp(&b.1.mean))?;
        let (did, does) = (known.mean, now.mean);
        let why = format!(
            "{replicas} replicas do {does:.0} images per second, {fewer} did {did:.0}: more do not help here, another resource \
             is the bottleneck"
        );
        Some((*fewer, why))
    }

    /// A number between that before a leap and the present one, none of which was ever measured, because so many as were
    /// added do far less than they should.
    fn find_leap_too_far(&self, settings: &ScaleSettings, replicas: usize) -> Option<(usize, String)> {
        let now = self.rates.get(&replicas).filter(|now| now.is_known() && settings.min_gain_ratio > 0.0)?;
        let is_recent = |trial: &ReplicaTrial| now.at_s - trial.since_s < 2.0 * PATIENCE_S;
        let trial = self.trial.filter(|trial| replicas > trial.before + 1 && is_recent(trial))?;
        let (done, added) = (now.upper() / trial.each_per_s, (replicas - trial.before) as f64);
        let fewer = (done.ceil() as usize).max(trial.before + 1);
        (done - trial.before as f64 <= LEAST_LEAP_RATIO * added && fewer < replicas).then(|| {
            let why = format!(
                "{replicas} replicas do {:.0} images per second, where {} did {:.0} each: so many more do not help here",
                now.mean, trial.before, trial.each_per_s
            );
            (fewer, why)
        })
    }

    /// Whether replicas that were added are worth having, and whether they look more like useful ones than like others.
    fn judge(&self, settings: &ScaleSettings, trial: &ReplicaTrial, replicas: usize) -> (GainVerdict, bool) {
        let Some(now) = self.rates.get(&replicas) else { return (GainVerdict::Undecided, false) };
        let known = self.rates.get(&trial.before).filter(|before| before.is_known()).copied();
        // A step in load leaves no time to measure what was there before.
        let before = known.unwrap_or(RateEstimate::assumed(trial.since_s, trial.each_per_s * trial.before as f64));
        let added = replicas.saturating_sub(trial.before) as f64;
        let promising = before.mean * (1.0 + PROMISING_RATIO * added / trial.before.max(1) as f64);
        (compare_gain((trial.before, &before), (replicas, now), settings.min_gain_ratio), now.mean >= promising)
    }

    /// Tries no more replicas than these for a while, twice as long as the last time; a smaller number is a new verdict.
    fn pause_growth(
        &mut self,
        settings: &ScaleSettings,
        (above, is_proven): (usize, bool),
        arrivals_per_s: f64,
        now_s: f64,
    ) {
        let (first, longest) = RETRY_COOLDOWNS;
        let pause = self.useless.map_or(first, |useless| {
            let again = if above + 1 >= useless.above { 2.0 } else { 1.0 };
            useless.pause_s / settings.up_cooldown_s * again
        });
        let pause_s = pause.min(longest) * settings.up_cooldown_s;
        self.useless = Some(UselessReplicas { above, until_s: now_s + pause_s, pause_s, is_proven, arrivals_per_s });
        self.trial = None;
    }

    /// No more waits than may.
    fn follow_short_queue(&mut self, settings: &ScaleSettings, seen: &QueueObservation) -> ReplicaTarget {
        let (now_s, replicas, queued_s) = (seen.now_s, seen.replicas, seen.queued_s());
        let stay = |why: String| ReplicaTarget { replicas, why };
        self.long_since_s = None;
        let calm_s = now_s - *self.calm_since_s.get_or_insert(now_s);
        // A queue that is just below its target for a moment ends neither what is being measured nor a proof.
        self.trial = self.trial.filter(|_| calm_s < PATIENCE_S);
        self.useless = self.useless.filter(|useless| useless.is_proven && calm_s < settings.down_cooldown_s);
        if queued_s > LOW_RATIO * settings.target_s || replicas <= settings.min_replicas {
            self.idle_since = None;
            return stay(format!("{queued_s:.1} s of work queued; all {replicas} are needed"));
        }
        let since = *self.idle_since.get_or_insert(*seen);
        let idle_s = now_s - since.now_s;
        // What came in all that time, because images come unevenly; a margin for the same reason.
        let arrivals = seen.arrived_since(&since) / idle_s.max(settings.down_cooldown_s);
        let suffices = |fewer: &usize| arrivals <= BUSY_RATIO * self.capacity_per_s(*fewer, seen);
        let after_s = settings.down_cooldown_s;
        match (settings.min_replicas..replicas).find(suffices) {
            Some(needed) if idle_s < after_s => {
                stay(format!("{needed} would have sufficed for {idle_s:.0} s; the first go after {after_s:.0} s"))
            }
            Some(needed) => {
                // Half of those that are too many, for what was measured with more may not hold with fewer.
                let fewer = replicas - (replicas - needed).div_ceil(2);
                ReplicaTarget { replicas: fewer, why: format!("{needed} would have sufficed for {idle_s:.0} s") }
            }
            None => {
                if idle_s >= after_s {
                    self.idle_since = Some(*seen);
                }
                stay(format!("{queued_s:.1} s of work queued; all {replicas} are needed"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
