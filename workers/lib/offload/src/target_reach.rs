//! Whether the accuracy that the gate is to reach and the cap on what may go up agree, and if not, what can be reached.
//! Pure.
//!
//! Verdicts are taken as right, so sending everything up reaches any target; a cap is what can stand in its way, or
//! that no verdict comes at all.

use schemas::FaultNote;

use crate::calibration::{Calibration, CalibrationEvidence};
use crate::verify::{PayloadKind, VerifySettings};

/// Fewer verdicts than this say nothing.
const MIN_VERDICTS: u64 = 30;
/// Steps of the search for the highest target within the cap: to a thousandth.
const SEARCH_STEPS: u32 = 10;

/// A target accuracy, and what may go up for it.
#[derive(Debug, Clone, PartialEq)]
pub struct AccuracyTarget {
    /// The accuracy that final answers must reach for each label, 0.5 to 1.
    pub ratio: f64,
    /// What may go up.
    pub verify: VerifySettings,
}

/// What can become of a target accuracy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetReach {
    /// Nothing caps what goes up, or the cap suffices.
    Reached {
        /// Share of all answers that must be verified, 0 to 1.
        needed_ratio: f64,
    },
    /// Too few verdicts to tell.
    Unknown {
        /// Verdicts so far.
        verdicts: u64,
    },
    /// The cap does not suffice.
    BeyondCap {
        /// Share of all answers that must be verified, 0 to 1.
        needed_ratio: f64,
        /// The highest target that the cap suffices for, 0 to 1; it holds with 95 % certainty.
        reachable_ratio: f64,
        /// Whether more verdicts would hardly change that.
        is_settled: bool,
    },
    /// Only if every answer is verified, whatever its confidence.
    OnlyByVerdicts,
    /// No verdict ever arrives.
    NoVerdicts,
}

impl AccuracyTarget {
    /// What the evidence says of the target.
    pub fn reach(&self, evidence: &CalibrationEvidence) -> TargetReach {
        let cap_ratio = self.verify.max_share_ratio.unwrap_or(1.0);
        if !self.verify.enabled || self.verify.payload == PayloadKind::Never || cap_ratio <= 0.0 {
            return TargetReach::NoVerdicts;
        }
        let wanted = evidence.calibration(self.ratio);
        if wanted.verdicts < MIN_VERDICTS {
            return TargetReach::Unknown { verdicts: wanted.verdicts };
        }
        let (needed_ratio, is_settled) = (self.share_up(&wanted), wanted.verdicts >= self.settling_verdicts());
        match needed_ratio <= cap_ratio {
            true if is_settled && wanted.stays_ratio <= 0.0 => TargetReach::OnlyByVerdicts,
            true => TargetReach::Reached { needed_ratio },
            false => {
                let reachable_ratio = self.highest_within(evidence, cap_ratio);
                TargetReach::BeyondCap { needed_ratio, reachable_ratio, is_settled }
            }
        }
    }

    /// Share of all answers that go up: the doubtful ones, and the sample of the confident ones.
    fn share_up(&self, calibration: &Calibration) -> f64 {
        1.0 - calibration.stays_ratio * (1.0 - self.verify.sample_ratio)
    }

    /// The highest target for which no more goes up than the cap allows. A higher target never sends up less.
    fn highest_within(&self, evidence: &CalibrationEvidence, cap_ratio: f64) -> f64 {
        // The sample alone may be more than the cap; it is what is cut first.
        let cap_ratio = cap_ratio.max(self.verify.sample_ratio);
        let (mut low, mut high) = (0.0, self.ratio);
        for _ in 0..SEARCH_STEPS {
            let middle = f64::midpoint(low, high);
            let fits = self.share_up(&evidence.calibration(middle)) <= cap_ratio + 1e-9;
            if fits { low = middle } else { high = middle }
        }
        low
    }

    /// Verdicts after which a threshold that could exist would mostly have been found: four times as many as a model
    /// that is always right needs. With n right verdicts the bound is about 1 - 2.65 / n.
    fn settling_verdicts(&self) -> u64 {
        ((4.0 * 2.65 / (1.0 - self.ratio)).ceil() as u64).max(MIN_VERDICTS)
    }

    /// What to say of it, in words for people; `None` where there is nothing to say.
    pub fn describe(&self, reach: &TargetReach) -> Option<String> {
        let (target, cap) = (percent(self.ratio), self.verify.max_share_ratio);
        match (*reach, cap) {
            (TargetReach::Reached { needed_ratio }, Some(cap_ratio)) => Some(format!(
                "{target} needs {} of the answers verified, within verify.max_share_ratio ({cap_ratio})",
                percent(needed_ratio)
            )),
            (TargetReach::Unknown { verdicts }, Some(cap_ratio)) => Some(format!(
                "what can be reached within verify.max_share_ratio ({cap_ratio}) is known after {MIN_VERDICTS} \
                 verdicts; there are {verdicts}"
            )),
            (TargetReach::BeyondCap { needed_ratio, reachable_ratio, .. }, _) => Some(format!(
                "{target} needs {} of the answers verified, and verify.max_share_ratio is {}: within it at least {} \
                 can be reached (95 % certainty)",
                percent(needed_ratio),
                cap.unwrap_or(1.0),
                percent(reachable_ratio)
            )),
            (TargetReach::OnlyByVerdicts, _) => Some(format!(
                "no confidence is high enough for {target}: it is reached only while every answer is verified"
            )),
            (TargetReach::NoVerdicts, _) => Some(format!("{target} cannot be reached: {}", self.why_no_verdicts())),
            (TargetReach::Reached { .. } | TargetReach::Unknown { .. }, None) => None,
        }
    }

    fn why_no_verdicts(&self) -> &'static str {
        match (self.verify.enabled, self.verify.payload) {
            (false, _) => {
                "nothing is verified (verify.enabled is false, or no verifier runs), so no answer is confident"
            }
            (_, PayloadKind::Never) => {
                "nothing may leave the site (verify.payload is never), so no answer is confident"
            }
            _ => "verify.max_share_ratio is 0, so no answer is confident",
        }
    }

    /// The problem of a target that cannot be reached; `None` where it can, or where that is not known yet.
    pub fn fault(&self, reach: &TargetReach) -> Option<FaultNote> {
        let remedy = match *reach {
            TargetReach::BeyondCap { needed_ratio, reachable_ratio, is_settled: true } => format!(
                "lower recognizer.gate.target_accuracy_ratio to {:.2}, raise recognizer.verify.max_share_ratio to \
                 {:.2}, or give the site a better model",
                (reachable_ratio * 100.0).floor() / 100.0,
                (needed_ratio * 100.0).ceil() / 100.0
            ),
            TargetReach::OnlyByVerdicts => {
                "lower recognizer.gate.target_accuracy_ratio, or give the site a better model".into()
            }
            TargetReach::NoVerdicts => {
                "name a larger model (verifier.model, up --cloud-model) and let answers go up (recognizer.verify), or \
                 omit recognizer.gate.target_accuracy_ratio"
                    .into()
            }
            TargetReach::BeyondCap { .. } | TargetReach::Reached { .. } | TargetReach::Unknown { .. } => return None,
        };
        let reason = format!("the target accuracy is not reached: {}", self.describe(reach)?);
        Some(FaultNote::new("target_unreachable", reason, remedy))
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::calibration::{BINS, ConfidenceBin};

    fn target(ratio: f64, cap_ratio: Option<f64>) -> AccuracyTarget {
        let verify = VerifySettings { max_share_ratio: cap_ratio, sample_ratio: 0.02, ..VerifySettings::default() };
        AccuracyTarget { ratio, verify }
    }

    /// Evidence of one label: in the bin with confidence c, as many answers as everywhere else, of which a share c is
    /// right; all verified.
    fn honest(of_bin: u64) -> CalibrationEvidence {
        let mut evidence = CalibrationEvidence::default();
        let bins: Vec<ConfidenceBin> = (0..BINS)
            .map(|bin| {
                let right = (of_bin as f64 * (bin as f64 + 0.5) / BINS as f64) as u64;
                ConfidenceBin { seen: of_bin, verified: of_bin, right }
            })
            .collect();
        evidence.labels.insert("cat".into(), bins.try_into().unwrap());
        evidence
    }

    #[test]
    fn before_there_are_verdicts_nothing_is_known_and_nothing_is_wrong() {
        let target = target(0.95, Some(0.3));
        let reach = target.reach(&CalibrationEvidence::default());
        assert_eq!(reach, TargetReach::Unknown { verdicts: 0 });
        assert!(target.describe(&reach).unwrap().contains("known after 30 verdicts; there are 0"));
        assert_eq!(target.fault(&reach), None);
    }

    #[test]
    fn a_cap_below_what_the_target_needs_is_said_with_what_it_allows() {
        let (evidence, target) = (honest(400), target(0.95, Some(0.3)));
        let reach = target.reach(&evidence);
        let TargetReach::BeyondCap { needed_ratio, reachable_ratio, is_settled: true } = reach else {
            panic!("{reach:?}")
        };
        assert!(needed_ratio > 0.3 && reachable_ratio < 0.95, "{reach:?}");
        // By the calibration itself: that target fits into the cap, and one that is a little higher does not.
        let up = |ratio: f64| 1.0 - evidence.calibration(ratio).stays_ratio * 0.98;
        assert!(up(reachable_ratio) <= 0.3 && up(reachable_ratio + 0.05) > 0.3, "{reach:?}");
        assert!(evidence.calibration(reachable_ratio).accuracy_at_least >= reachable_ratio);
        let fault = target.fault(&reach).unwrap();
        let lower = format!("target_accuracy_ratio to {:.2}", (reachable_ratio * 100.0).floor() / 100.0);
        assert!(fault.remedy.contains(&lower), "{fault:?}");
    }

    #[test]
    fn following_the_remedy_ends_the_problem() {
        let evidence = honest(400);
        let TargetReach::BeyondCap { needed_ratio, reachable_ratio, .. } = target(0.95, Some(0.3)).reach(&evidence)
        else {
            panic!()
        };
        let lowered = target((reachable_ratio * 100.0).floor() / 100.0, Some(0.3));
        assert_eq!(lowered.fault(&lowered.reach(&evidence)), None);
        let raised = target(0.95, Some((needed_ratio * 100.0).ceil() / 100.0));
        assert_eq!(raised.fault(&raised.reach(&evidence)), None);
    }

    #[test]
    fn a_target_without_verdicts_or_without_a_threshold_is_a_problem() {
        let mut disabled = target(0.9, None);
        disabled.verify.enabled = false;
        let fault = disabled.fault(&disabled.reach(&honest(400))).unwrap();
        assert!(fault.reason.contains("nothing is verified"), "{fault:?}");
        let mut evidence = CalibrationEvidence::default();
        // Sure of everything, and right half the time: no confidence tells which half.
        let mut bins = [ConfidenceBin::default(); BINS];
        bins[BINS - 1] = ConfidenceBin { seen: 400, verified: 400, right: 200 };
        evidence.labels.insert("cat".into(), bins);
        let target = target(0.9, None);
        assert_eq!(target.reach(&evidence), TargetReach::OnlyByVerdicts);
        assert!(target.fault(&TargetReach::OnlyByVerdicts).is_some());
    }

    proptest! {
        #[test]
        fn a_wider_cap_never_reaches_less(
            bins in prop::collection::vec((0_u64..500, 0_u64..200, 0_u64..200), BINS), cap in 0.01_f64..0.9,
        ) {
            let mut evidence = CalibrationEvidence::default();
            let counted = bins.iter().map(|(seen, verified, right)| {
                let verified = (*verified).min(*seen);
                ConfidenceBin { seen: *seen, verified, right: (*right).min(verified) }
            });
            let counted: Vec<ConfidenceBin> = counted.collect();
            evidence.labels.insert("cat".into(), counted.try_into().unwrap());
            let reachable = |cap: f64| match target(0.95, Some(cap)).reach(&evidence) {
                TargetReach::BeyondCap { reachable_ratio, .. } => reachable_ratio,
                TargetReach::Unknown { .. } => 0.0,
                _ => 1.0,
            };
            prop_assert!(reachable(cap) <= reachable(cap + 0.1) + 1e-9, "{} and {}", reachable(cap), reachable(cap + 0.1));
        }
    }
}
