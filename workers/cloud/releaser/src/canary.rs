//! Judges a canary from the evidence. Pure.
//!
//! Each measure is a sequential test (Wald, Sequential Analysis, 1947) of how much better the ring became than the
//! other sites did (`effect`). With an effect `d`, its variance `v` and a margin `m`, the log odds that the release
//! is worse by the margin, against being as good, are `-m (d + m/2) / v`. Estimates of a fixed effect from more and
//! more images have independent increments in `1 / v` (Jennison and Turnbull, Group Sequential Methods, chapters 3 and
//! 11), and such odds exceed `1 / a` with a chance of at most `a` however often they are checked (Ville). So the
//! release can be judged at every report, and a measure that is decided may continue while others are not.
//!
//! A release that is worse in one measure is withdrawn; it is good when every measure says so. The chance of a false
//! alarm is divided among the measures (Bonferroni). A bad release passes only if the measure it is bad in says good,
//! so that chance needs no division.

mod effect;
mod measure;

use schemas::{CanaryFinding, CanaryMeasure, FindingOutcome, MissingMeasure, Vocabulary as _};
use serde::{Deserialize, Serialize};

use crate::evidence::{CanaryTrial, RingMemory};
use effect::effect;

/// Memory growth that is always allowed, MiB; less is noise.
const MEMORY_LEAST_MIB: f64 = 64.0;

/// When a canary is promoted or withdrawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CanarySettings {
    /// Chance of withdrawing a release that is as good as the stable one, over all measures together, above 0 and below
    /// 0.5.
    pub false_alarm_ratio: f64,
    /// Chance of promoting a release that is worse by a measure's margin, above 0 and below 0.5.
    pub miss_ratio: f64,
    /// Allowed drop in agreement with verdicts, as a share of all images, above 0 and below 1.
    pub agreement_margin_ratio: f64,
    /// Allowed rise in doubtful images, as a share of all images, above 0 and below 1.
    pub escalation_margin_ratio: f64,
    /// Allowed drop in mean confidence, above 0 and below 1.
    pub confidence_margin_ratio: f64,
    /// Allowed cost per image as a multiple of the stable release's, above 1.
    pub cost_ratio: f64,
    /// Allowed rise in failed images, as a share of all images, above 0 and below 1.
    pub faults_margin_ratio: f64,
    /// Images the ring must recognize before any measure but faults, refusals and crashes counts.
    pub min_images: u64,
    /// Withdraw a canary that is undecided after this many seconds, at least 1.
    pub max_duration_s: u64,
    /// Allowed memory of a worker as a multiple of before, above 1; 64 MiB more are always allowed.
    pub memory_ratio: f64,
    /// Crashed workers in the ring that withdraw it at once, at least 1. A restarted worker counts unless as many were
    /// restarted elsewhere.
    pub crashes: u64,
    /// Promote releases without verdicts, for fleets without a verifier.
    pub without_verdicts: bool,
}

impl Default for CanarySettings {
    fn default() -> Self {
        Self {
            false_alarm_ratio: 0.05,
            miss_ratio: 0.05,
            agreement_margin_ratio: 0.02,
            escalation_margin_ratio: 0.10,
            confidence_margin_ratio: 0.10,
            cost_ratio: 1.5,
            faults_margin_ratio: 0.01,
            min_images: 200,
            max_duration_s: 24 * 3600,
            memory_ratio: 1.5,
            crashes: 2,
            without_verdicts: false,
        }
    }
}

impl CanarySettings {
    /// Checks the settings and names the first one that is out of range.
    pub fn check(&self) -> Result<(), String> {
        let within = [
            ("false_alarm_ratio", self.false_alarm_ratio, 0.0, 0.5),
            ("miss_ratio", self.miss_ratio, 0.0, 0.5),
            ("agreement_margin_ratio", self.agreement_margin_ratio, 0.0, 1.0),
            ("escalation_margin_ratio", self.escalation_margin_ratio, 0.0, 1.0),
            ("confidence_margin_ratio", self.confidence_margin_ratio, 0.0, 1.0),
            ("faults_margin_ratio", self.faults_margin_ratio, 0.0, 1.0),
            ("cost_ratio", self.cost_ratio, 1.0, 1000.0),
            ("memory_ratio", self.memory_ratio, 1.0, 1000.0),
        ];
        for (name, value, above, below) in within {
            if !(value > above && value < below) {
                return Err(format!("{name} is {value}; it must be above {above} and below {below}"));
            }
        }
        for (name, value) in [("max_duration_s", self.max_duration_s), ("crashes", self.crashes)] {
            if value == 0 {
                return Err(format!("{name} is 0; it must be at least 1"));
            }
        }
        Ok(())
    }

    /// How much worse is too bad, in the measure's own unit.
    pub fn margin(&self, measure: CanaryMeasure) -> f64 {
        match measure {
            CanaryMeasure::Agreement => self.agreement_margin_ratio,
            CanaryMeasure::SentUp => self.escalation_margin_ratio,
            CanaryMeasure::Confidence => self.confidence_margin_ratio,
            CanaryMeasure::Cost => self.cost_ratio.ln(),
            CanaryMeasure::Faults => self.faults_margin_ratio,
        }
    }
}

/// Result of judging a canary.
#[derive(Debug, Clone, PartialEq)]
pub struct CanaryJudgement {
    /// What each measure says; measures without numbers are left out.
    pub findings: Vec<CanaryFinding>,
    /// The measures that were left out and are waited for.
    pub missing: Vec<MissingMeasure>,
    /// What to do.
    pub ruling: CanaryRuling,
}

/// What to do with a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CanaryRuling {
    /// Promote it: it is as good as the stable release, or better.
    Promote,
    /// Wait: it is undecided; what is missing, in words.
    Wait(String),
    /// Withdraw it; the reason, in words.
    Withdraw(String),
}

/// Judges a canary.
pub fn judge_canary(trial: &CanaryTrial, settings: &CanarySettings) -> CanaryJudgement {
    let enough = trial.ring.iter().map(|pair| pair.after.images).sum::<u64>() >= settings.min_images;
    let (mut findings, mut missing, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for measure in CanaryMeasure::ALL.iter().copied() {
        match find(measure, trial, settings, enough) {
            Ok(finding) => {
                if finding.says == FindingOutcome::Open {
                    open.push(format!("{} is undecided ({})", finding.measure, so_far(&finding)));
                }
                findings.push(finding);
            }
            Err(_) if measure == CanaryMeasure::Agreement && settings.without_verdicts => {}
            Err(why) => {
                open.push(format!("{} is undecided ({why})", measure.as_str()));
                missing.push(MissingMeasure { measure: measure.into(), why: why.into() });
            }
        }
    }
    let ruling = rule(trial, settings, enough, &findings, &open);
    CanaryJudgement { findings, missing, ruling }
}

fn rule(
    trial: &CanaryTrial,
    settings: &CanarySettings,
    enough: bool,
    findings: &[CanaryFinding],
    open: &[String],
) -> CanaryRuling {
    if trial.crashes >= settings.crashes {
        return CanaryRuling::Withdraw(format!("it crashed {} workers of the ring", trial.crashes));
    }
    if let Some(fault) = trial.refused.last().filter(|_| trial.refused.len() * 2 > trial.sites) {
        let (refused, sites) = (trial.refused.len(), trial.sites);
        return CanaryRuling::Withdraw(format!(
            "{refused} of {sites} sites refused it: {} ({})",
            fault.reason, fault.kind
        ));
    }
    if let Some(RingMemory { before_mib, after_mib }) = trial.memory.filter(|memory| enough && grew(memory, settings)) {
        return CanaryRuling::Withdraw(format!(
            "a worker takes {after_mib:.0} MiB with it and {before_mib:.0} MiB with the stable release"
        ));
    }
    if let Some(finding) = findings.iter().find(|finding| finding.says == FindingOutcome::Worse) {
        return CanaryRuling::Withdraw(format!("{} is worse: {}", finding.measure, so_far(finding)));
    }
    match open.is_empty() {
        true => CanaryRuling::Promote,
        false if trial.age_ms >= settings.max_duration_s.saturating_mul(1000) => {
            CanaryRuling::Withdraw(format!("undecided after {}: {}", span(trial.age_ms), open.join(", ")))
        }
        false => CanaryRuling::Wait(open.join(", ")),
    }
}

fn grew(memory: &RingMemory, settings: &CanarySettings) -> bool {
    memory.after_mib > memory.before_mib * settings.memory_ratio
        && memory.after_mib > memory.before_mib + MEMORY_LEAST_MIB
}

fn span(ms: u64) -> String {
    if ms < 2 * 3_600_000 { format!("{} s", ms / 1000) } else { format!("{} h", ms / 3_600_000) }
}

fn so_far(finding: &CanaryFinding) -> String {
    let which = if finding.better < 0.0 { "worse" } else { "better" };
    let what = if finding.measure == CanaryMeasure::Agreement { "sampled verdicts" } else { "images" };
    format!(
        "{:.3} {which} ± {:.3} on {} {what}; the margin is {:.3}",
        finding.better.abs(),
        finding.error,
        finding.count,
        finding.margin
    )
}

/// A measure's finding; the error says, in words, why it has no number.
fn find(
    measure: CanaryMeasure,
    trial: &CanaryTrial,
    settings: &CanarySettings,
    enough: bool,
) -> Result<CanaryFinding, &'static str> {
    let (margin, always) = (settings.margin(measure), measure == CanaryMeasure::Faults);
    let found = effect(measure, trial, margin, !always)?;
    let odds = -margin * (found.better + margin / 2.0) / found.variance;
    let worse = (CanaryMeasure::ALL.len() as f64 / settings.false_alarm_ratio).ln();
    let says = match odds {
        _ if odds >= worse && (enough || always) => FindingOutcome::Worse,
        _ if odds <= settings.miss_ratio.ln() && enough => FindingOutcome::Good,
        _ => FindingOutcome::Open,
    };
    Ok(CanaryFinding {
        measure: measure.into(),
        canary: found.canary,
        stable: found.stable,
        better: found.better,
        error: found.variance.sqrt(),
        margin,
        odds,
        count: found.count,
        says,
    })
}

#[cfg(test)]
mod tests;
