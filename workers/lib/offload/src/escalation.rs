//! Decides what happens to the answer of the site's model: it stands, it is verified, or it waits. The second decision,
//! made after the gate. Pure.

use schemas::decision_trace::Network;
use schemas::{EscalationOutcome, Reason, VerifyReason};

use crate::admit::finish_s;
use crate::objective::{ObjectiveLevel, OptionForecast, prefers_cloud};
use crate::policy::{Objective, Policy, PolicyName};
use crate::verify::{PayloadKind, VerifySettings};

/// What happens to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escalation {
    /// It is final, for this reason.
    Stands(Reason),
    /// It is final because its deadline passed.
    Expired,
    /// It is provisional and a request goes up.
    Goes(VerifyReason),
    /// It is provisional and nothing goes up: it becomes final at its deadline, unless a person labels it before.
    Waits,
}

impl Escalation {
    /// The outcome as noted in a decision trace.
    pub fn outcome(self) -> EscalationOutcome {
        match self {
            Escalation::Stands(_) => EscalationOutcome::Stands,
            Escalation::Expired => EscalationOutcome::Expired,
            Escalation::Goes(VerifyReason::Sampled) => EscalationOutcome::Sampled,
            Escalation::Goes(_) => EscalationOutcome::Goes,
            Escalation::Waits => EscalationOutcome::Waits,
        }
    }
}

/// Input of the decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EscalationInput<'a> {
    /// Result of the gate.
    pub reason: Reason,
    /// The site's label.
    pub label: &'a str,
    /// Bytes that would be sent up.
    pub bytes: u64,
    /// Time to the deadline, seconds; negative once it passed.
    pub left_s: f64,
    /// The task's own fraction from 0 to 1, by which confident answers are sampled.
    pub lot: f64,
}

/// Decides about one answer. `sampling`: whether confident answers are sampled for verification.
pub fn escalate(
    policy: &Policy,
    verify: &VerifySettings,
    sampling: bool,
    network: &Network,
    share: &mut EscalationCap,
    answer: &EscalationInput<'_>,
) -> Escalation {
    share.earn(verify.max_share_ratio);
    let doubtful = answer.reason != Reason::Confident;
    if !verify.enabled || policy.name == PolicyName::EdgeOnly {
        return Escalation::Stands(if doubtful { Reason::NotVerified } else { answer.reason });
    }
    if !doubtful {
        let is_sampled = sampling && network.available && answer.lot < verify.sample_ratio && answer.left_s > 0.0;
        let goes_up =
            is_sampled && verify.payload != PayloadKind::Never && affordable(network, answer) && share.spend();
        return if goes_up { Escalation::Goes(VerifyReason::Sampled) } else { Escalation::Stands(Reason::Confident) };
    }
    if answer.left_s <= 0.0 {
        return Escalation::Expired;
    }
    if verify.payload == PayloadKind::Never {
        return Escalation::Waits;
    }
    // Without verifiers it waits in the outbox: store and forward.
    let predicted_s = finish_s(network, answer.bytes).filter(|_| policy.name == PolicyName::EarliestFinish);
    if predicted_s.is_some_and(|predicted_s| predicted_s > answer.left_s) {
        return Escalation::Stands(Reason::VerdictTooLate);
    }
    if !is_worth_a_verdict(policy, verify, network, answer) {
        return Escalation::Stands(Reason::NotVerified);
    }
    match affordable(network, answer) && share.spend() {
        true => Escalation::Goes(VerifyReason::Doubtful),
        false => Escalation::Stands(Reason::BudgetSpent),
    }
}

/// Whether the objective prefers a verdict on a doubtful answer to none. It is not asked before enough verdicts taught
/// what they gain, nor about a strange picture, on which earlier verdicts say little; and a share goes up whatever it
/// says, so that a change is noticed.
fn is_worth_a_verdict(
    policy: &Policy,
    verify: &VerifySettings,
    network: &Network,
    answer: &EscalationInput<'_>,
) -> bool {
    let gain_points = network.gain.and_then(|gain| gain.doubtful_points);
    if policy.name != PolicyName::EarliestFinish
        || gain_points.is_none()
        || answer.reason == Reason::HighNovelty
        || answer.lot < verify.sample_ratio
    {
        return true;
    }
    let asked = OptionForecast::of_sending(answer.bytes, &policy.energy, gain_points);
    match &policy.objective {
        Objective::Weighted(weights) => asked.weighted_cost(weights) <= 0.0,
        // The answer is out already, so latency is not at stake, and the gate found it not accurate enough.
        Objective::Hierarchical => {
            const LEVELS: [ObjectiveLevel; 3] =
                [ObjectiveLevel::Accuracy, ObjectiveLevel::Energy, ObjectiveLevel::Bytes];
            prefers_cloud(&LEVELS, &policy.tolerance, &OptionForecast::default(), &asked).unwrap_or(true)
        }
    }
}

fn affordable(network: &Network, answer: &EscalationInput<'_>) -> bool {
    network.budget_left_bytes.is_none_or(|left| left >= answer.bytes)
}

/// The cap on the share of images sent up: a token bucket that fills with every image.
#[derive(Debug, Clone, PartialEq)]
pub struct EscalationCap {
    earned: f64,
    capped: bool,
}

/// Most images that may be saved up, so that doubtful answers in a row are not cut off.
const MAX_SAVED: f64 = 20.0;

impl Default for EscalationCap {
    fn default() -> Self {
        Self { earned: MAX_SAVED, capped: false }
    }
}

impl EscalationCap {
    /// Images saved up before the next one; `None` without a cap.
    pub fn balance(&self, max_share_ratio: Option<f64>) -> Option<f64> {
        max_share_ratio.map(|_| self.earned)
    }

    /// A cap with this many images saved up.
    pub fn with_balance(saved: f64) -> Self {
        Self { earned: saved.clamp(0.0, MAX_SAVED), ..Self::default() }
    }

    fn earn(&mut self, max_share_ratio: Option<f64>) {
        self.capped = max_share_ratio.is_some();
        self.earned = (self.earned + max_share_ratio.unwrap_or(1.0)).min(MAX_SAVED);
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
    use schemas::decision_trace::{CloudGain, CloudLoad};

    use crate::policy::{ObjectiveTolerances, ObjectiveWeights};

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
        gain: None,
    };
    const DOUBT: EscalationInput<'_> =
        EscalationInput { reason: Reason::LowConfidence, label: "cat", bytes: 40_000, left_s: 3600.0, lot: 0.5 };
    const SURE: EscalationInput<'_> = EscalationInput { reason: Reason::Confident, ..DOUBT };

    fn of(name: PolicyName, verify: &VerifySettings, network: &Network, answer: &EscalationInput<'_>) -> Escalation {
        let policy = Policy { name, ..Policy::default() };
        escalate(&policy, verify, false, network, &mut EscalationCap::default(), answer)
    }

    #[test]
    fn each_policy_handles_doubtful_answers_as_its_name_says() {
        let verify = VerifySettings::default();
        let doubtful = |name| of(name, &verify, &THERE, &DOUBT);
        for name in [PolicyName::Paper, PolicyName::EarliestFinish, PolicyName::CloudOnly] {
            assert_eq!(doubtful(name), Escalation::Goes(VerifyReason::Doubtful), "{name}");
        }
        assert_eq!(doubtful(PolicyName::EdgeOnly), Escalation::Stands(Reason::NotVerified));
        assert_eq!(of(PolicyName::Paper, &verify, &THERE, &SURE), Escalation::Stands(Reason::Confident));
    }

    #[test]
    fn answers_wait_if_nothing_may_leave_and_stand_if_a_verdict_would_be_too_late() {
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
    fn the_byte_budget_and_the_cap_on_the_share_are_kept() {
        let verify = VerifySettings { max_share_ratio: Some(0.1), ..VerifySettings::default() };
        let spent = Network { budget_left_bytes: Some(100), ..THERE };
        assert_eq!(of(PolicyName::Paper, &verify, &spent, &DOUBT), Escalation::Stands(Reason::BudgetSpent));
        let (policy, mut share, mut sent) = (Policy::default(), EscalationCap::default(), 0);
        for _ in 0..1000 {
            let escalation = escalate(&policy, &verify, false, &THERE, &mut share, &DOUBT);
            sent += i32::from(escalation == Escalation::Goes(VerifyReason::Doubtful));
        }
        assert!((100..=121).contains(&sent), "{sent} of 1000");
    }

    #[test]
    fn confident_answers_are_sampled_only_while_learning_and_while_the_link_is_free() {
        let verify = VerifySettings { sample_ratio: 0.6, ..VerifySettings::default() };
        let sampled = |sampling, network: &Network| {
            escalate(&Policy::default(), &verify, sampling, network, &mut EscalationCap::default(), &SURE)
        };
        assert_eq!(sampled(true, &THERE), Escalation::Goes(VerifyReason::Sampled));
        assert_eq!(sampled(false, &THERE), Escalation::Stands(Reason::Confident));
        assert_eq!(sampled(true, &Network { available: false, ..THERE }), Escalation::Stands(Reason::Confident));
    }

    /// A cloud whose verdicts changed this share of the doubtful answers.
    fn teaching(doubtful_points: f64) -> Network {
        Network { gain: Some(CloudGain { doubtful_points: Some(doubtful_points), confident_points: None }), ..THERE }
    }

    fn under(policy: &Policy, network: &Network, answer: &EscalationInput<'_>) -> Escalation {
        escalate(policy, &VerifySettings::default(), false, network, &mut EscalationCap::default(), answer)
    }

    const GOES: Escalation = Escalation::Goes(VerifyReason::Doubtful);
    const KEPT: Escalation = Escalation::Stands(Reason::NotVerified);

    #[test]
    fn each_level_decides_about_a_doubtful_answer_where_those_before_it_are_tied() {
        // 40 kB cost 0.16 J and 0.04 MB.
        let policy = Policy::default();
        let tolerant = |energy_j: f64, sent_mb: f64| Policy {
            tolerance: ObjectiveTolerances { energy_j, sent_mb, accuracy_points: 1.0 },
            ..Policy::default()
        };
        // Latency and privacy are constraints.
        let soon = EscalationInput { left_s: 0.03, ..DOUBT };
        assert_eq!(under(&policy, &teaching(50.0), &soon), Escalation::Stands(Reason::VerdictTooLate));
        let never = VerifySettings { payload: PayloadKind::Never, ..VerifySettings::default() };
        assert_eq!(of(PolicyName::EarliestFinish, &never, &teaching(50.0), &DOUBT), Escalation::Waits);
        // Accuracy.
        assert_eq!(under(&policy, &teaching(20.0), &DOUBT), GOES, "verdicts change a fifth of the answers");
        // Energy.
        assert_eq!(under(&policy, &teaching(0.5), &DOUBT), KEPT, "nothing gained for 0.16 J");
        assert_eq!(under(&tolerant(0.2, 0.01), &teaching(0.5), &DOUBT), KEPT, "nothing gained for 0.04 MB");
        // Bytes.
        assert_eq!(under(&tolerant(0.2, 0.1), &teaching(0.5), &DOUBT), GOES, "all tied: the gate's doubt decides");
        assert_eq!(under(&policy, &teaching(0.5), &EscalationInput { bytes: 2_000, ..DOUBT }), GOES, "next to nothing");
    }

    #[test]
    fn before_verdicts_teach_anything_doubtful_answers_go_up_and_a_share_always_does() {
        let stingy = ObjectiveWeights { per_mb: 1e6, per_point: 1.0, ..ObjectiveWeights::default() };
        let stingy = Policy { objective: Objective::Weighted(stingy), ..Policy::default() };
        for policy in [Policy::default(), stingy] {
            assert_eq!(under(&policy, &THERE, &DOUBT), GOES, "nothing is known yet");
            assert_eq!(under(&policy, &teaching(0.0), &DOUBT), KEPT);
            assert_eq!(under(&policy, &teaching(0.0), &EscalationInput { lot: 0.01, ..DOUBT }), GOES, "sampled");
            let strange = EscalationInput { reason: Reason::HighNovelty, ..DOUBT };
            assert_eq!(under(&policy, &teaching(0.0), &strange), GOES, "a strange picture");
        }
        let paper = Policy { name: PolicyName::Paper, ..Policy::default() };
        assert_eq!(under(&paper, &teaching(0.0), &DOUBT), GOES, "objectives are those of earliest-finish");
    }

    #[test]
    fn weights_price_a_verdict() {
        let weighing = |per_j, per_mb, per_point| {
            let weights = ObjectiveWeights { per_j, per_mb, per_point, ..ObjectiveWeights::default() };
            under(&Policy { objective: Objective::Weighted(weights), ..Policy::default() }, &teaching(10.0), &DOUBT)
        };
        assert_eq!(weighing(0.0, 0.0, 0.0), GOES, "a verdict costs nothing");
        assert_eq!(weighing(1.0, 0.0, 0.0), KEPT, "0.16 for nothing");
        assert_eq!(weighing(1.0, 0.0, 0.02), GOES, "0.16 for 0.2");
        assert_eq!(weighing(1.0, 2.0, 0.02), KEPT, "0.24 for 0.2");
    }
}
