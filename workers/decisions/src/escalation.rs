//! What becomes of what the site's model says: it stands, it is verified, or it waits. The second decision,
//! after the gate. Pure.

use schemas::decision_trace::Network;
use schemas::{EscalationOutcome, Reason, VerifyReason};

use crate::admit::finish_s;
use crate::policy::{Policy, PolicyName};
use crate::verify::{PayloadKind, VerifySettings};

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escalation {
    /// It is final, for this reason.
    Stands(Reason),
    /// It is final because its time is up.
    Expired,
    /// It is provisional and goes up.
    Goes(VerifyReason),
    /// It is provisional, and nothing goes up: it becomes final at its deadline, unless a person is faster.
    Waits,
    /// It is held until the verdict is there, and so is whatever comes after it: the baseline.
    Blocks,
}

impl Escalation {
    /// The word for it.
    pub fn outcome(self) -> EscalationOutcome {
        match self {
            Escalation::Stands(_) => EscalationOutcome::Stands,
            Escalation::Expired => EscalationOutcome::Expired,
            Escalation::Goes(VerifyReason::Sampled) => EscalationOutcome::Sampled,
            Escalation::Goes(_) => EscalationOutcome::Goes,
            Escalation::Waits => EscalationOutcome::Waits,
            Escalation::Blocks => EscalationOutcome::Blocks,
        }
    }
}

/// What the decision is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EscalationInput<'a> {
    /// What the gate says.
    pub reason: Reason,
    /// The label the edge would give.
    pub label: &'a str,
    /// The true one, if the publisher knows it; only `oracle` looks at it.
    pub truth: Option<&'a str>,
    /// Bytes that would go up.
    pub bytes: u64,
    /// Until the deadline, seconds; below 0 when it is past.
    pub left_s: f64,
    /// A number from 0 to 1 of the task's own, another one than for the first decision.
    pub lot: f64,
}

/// Decides.
pub fn escalate(
    policy: &Policy,
    verify: &VerifySettings,
    sampling: bool,
    network: &Network,
    share: &mut EscalationCap,
    doubt: &EscalationInput<'_>,
) -> Escalation {
    share.earn(verify.max_share_ratio);
    let confident = doubt.reason == Reason::Confident;
    let doubtful = match policy.name {
        PolicyName::Oracle => doubt.truth.is_some_and(|truth| truth != doubt.label),
        _ => !confident,
    };
    if !verify.enabled || matches!(policy.name, PolicyName::EdgeOnly | PolicyName::Random) {
        return Escalation::Stands(if doubtful { Reason::NotVerified } else { doubt.reason });
    }
    if !doubtful {
        let drawn = sampling && network.available && doubt.lot < verify.sample_ratio && doubt.left_s > 0.0;
        let goes = drawn && verify.payload != PayloadKind::Never && affordable(network, doubt) && share.spend();
        return if goes { Escalation::Goes(VerifyReason::Sampled) } else { Escalation::Stands(Reason::Confident) };
    }
    if doubt.left_s <= 0.0 {
        return Escalation::Expired;
    }
    if verify.payload == PayloadKind::Never {
        return Escalation::Waits;
    }
    if policy.name == PolicyName::HardExample {
        return Escalation::Blocks;
    }
    // While nobody judges, it waits for the link: store and forward.
    let predicted_s = finish_s(network, doubt.bytes).filter(|_| policy.name == PolicyName::EarliestFinish);
    if predicted_s.is_some_and(|predicted_s| predicted_s > doubt.left_s) {
        return Escalation::Stands(Reason::VerdictTooLate);
    }
    match affordable(network, doubt) && share.spend() {
        true => Escalation::Goes(VerifyReason::Doubtful),
        false => Escalation::Stands(Reason::BudgetSpent),
    }
}

fn affordable(network: &Network, doubt: &EscalationInput<'_>) -> bool {
    network.budget_left_bytes.is_none_or(|left| left >= doubt.bytes)
}

/// The cap on the share of images that go up: a bucket that fills with every image.
#[derive(Debug, Clone, PartialEq)]
pub struct EscalationCap {
    earned: f64,
    capped: bool,
}

/// So many images' worth may be saved up, so that doubts that come together are not cut off.
const MOST_SAVED: f64 = 20.0;

impl Default for EscalationCap {
    fn default() -> Self {
        Self { earned: MOST_SAVED, capped: false }
    }
}

impl EscalationCap {
    /// What was saved up before the next image, where there is a cap.
    pub fn balance(&self, max_share_ratio: Option<f64>) -> Option<f64> {
        max_share_ratio.map(|_| self.earned)
    }

    /// One with so much saved up.
    pub fn with_balance(saved: f64) -> Self {
        Self { earned: saved.clamp(0.0, MOST_SAVED), ..Self::default() }
    }

    fn earn(&mut self, max_share_ratio: Option<f64>) {
        self.capped = max_share_ratio.is_some();
        self.earned = (self.earned + max_share_ratio.unwrap_or(1.0)).min(MOST_SAVED);
    }

    fn spend(&mut self) -> bool {
        if self.capped && self.earned < 1.0 {
            return false;
        }
        self.earned = (self.earned - 1.0).max(0.0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::decision_trace::CloudLoad;

    const THERE: Network = Network {
        up: true,
        available: true,
        round_trip_s: 0.02,
        rate_bytes_per_s: Some(1e6),
        slowdown_ratio: 1.0,
        waiting_bytes: 0,
        budget_left_bytes: None,
        cloud: Some(CloudLoad { waiting: 0, replicas: 1, cost_s: 0.01, still_s: 0.0 }),
        away: 0,
        most_away: 256,
    };
    const DOUBT: EscalationInput<'_> = EscalationInput {
        reason: Reason::LowConfidence,
        label: "cat",
        truth: Some("dog"),
        bytes: 40_000,
        left_s: 3600.0,
        lot: 0.5,
    };
    const SURE: EscalationInput<'_> = EscalationInput { reason: Reason::Confident, ..DOUBT };

    fn of(name: PolicyName, verify: &VerifySettings, network: &Network, doubt: &EscalationInput<'_>) -> Escalation {
        let policy = Policy { name, ..Policy::default() };
        escalate(&policy, verify, false, network, &mut EscalationCap::default(), doubt)
    }

    #[test]
    fn each_policy_does_with_doubt_what_it_is_called() {
        let verify = VerifySettings::default();
        let doubtful = |name| of(name, &verify, &THERE, &DOUBT);
        for name in [PolicyName::Paper, PolicyName::EarliestFinish, PolicyName::CloudOnly, PolicyName::Oracle] {
            assert_eq!(doubtful(name), Escalation::Goes(VerifyReason::Doubtful), "{name}");
        }
        for name in [PolicyName::EdgeOnly, PolicyName::Random] {
            assert_eq!(doubtful(name), Escalation::Stands(Reason::NotVerified), "{name}");
        }
        assert_eq!(doubtful(PolicyName::HardExample), Escalation::Blocks);
        assert_eq!(of(PolicyName::Oracle, &verify, &THERE, &SURE), Escalation::Goes(VerifyReason::Doubtful));
        assert_eq!(of(PolicyName::Paper, &verify, &THERE, &SURE), Escalation::Stands(Reason::Confident));
    }

    #[test]
    fn what_must_stay_waits_and_what_would_come_too_late_stands() {
        let never = VerifySettings { payload: PayloadKind::Never, ..VerifySettings::default() };
        assert_eq!(of(PolicyName::EarliestFinish, &never, &THERE, &DOUBT), Escalation::Waits);
        let verify = VerifySettings::default();
        let soon = EscalationInput { left_s: 0.03, ..DOUBT };
        assert_eq!(of(PolicyName::EarliestFinish, &verify, &THERE, &soon), Escalation::Stands(Reason::VerdictTooLate));
        let past = EscalationInput { left_s: -1.0, ..DOUBT };
        assert_eq!(of(PolicyName::EarliestFinish, &verify, &THERE, &past), Escalation::Expired);
        let gone = Network { up: false, available: false, cloud: None, ..THERE };
        assert_eq!(of(PolicyName::EarliestFinish, &verify, &gone, &DOUBT), Escalation::Goes(VerifyReason::Doubtful));
    }

    #[test]
    fn caps_of_bytes_and_share_are_kept() {
        let verify = VerifySettings { max_share_ratio: Some(0.1), ..VerifySettings::default() };
        let spent = Network { budget_left_bytes: Some(100), ..THERE };
        assert_eq!(of(PolicyName::Paper, &verify, &spent, &DOUBT), Escalation::Stands(Reason::BudgetSpent));
        let (policy, mut share, mut sent) = (Policy::default(), EscalationCap::default(), 0);
        for _ in 0..1000 {
            let fate = escalate(&policy, &verify, false, &THERE, &mut share, &DOUBT);
            sent += i32::from(fate == Escalation::Goes(VerifyReason::Doubtful));
        }
        assert!((100..=121).contains(&sent), "{sent} of 1000");
    }

    #[test]
    fn confident_answers_are_sampled_only_to_learn_and_only_while_the_link_is_free() {
        let verify = VerifySettings { sample_ratio: 0.6, ..VerifySettings::default() };
        let drawn = |sampling, network: &Network| {
            escalate(&Policy::default(), &verify, sampling, network, &mut EscalationCap::default(), &SURE)
        };
        assert_eq!(drawn(true, &THERE), Escalation::Goes(VerifyReason::Sampled));
        assert_eq!(drawn(false, &THERE), Escalation::Stands(Reason::Confident));
        assert_eq!(drawn(true, &Network { available: false, ..THERE }), Escalation::Stands(Reason::Confident));
    }
}
