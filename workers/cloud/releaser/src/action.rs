//! Decides what happens next to a model's releases. Pure.

use releases::stage::{self, DecisionContext};
use schemas::{DecisionOrigin, Release, Rollout};

use crate::canary::{CanaryRuling, judge_canary};
use crate::evidence::ReleaseEvidence;
use crate::ring::{SiteWorkers, ring};
use crate::settings::ReleaserSettings;

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ReleaserAction {
    /// Publish this decision.
    Decide(Box<Rollout>),
    /// Wait; the reason, in words.
    Wait(String),
}

/// The next decision about a model's releases.
pub(crate) fn next_action(
    rollout: &Rollout,
    evidence: &ReleaseEvidence,
    sites: &SiteWorkers<'_>,
    settings: &ReleaserSettings,
    now_ms: u64,
) -> ReleaserAction {
    let paused = settings.pause.iter().find(|window| window.contains(now_ms));
    let decided = |next: Result<Rollout, stage::StageRefusal>| match next {
        Ok(next) => ReleaserAction::Decide(Box::new(next)),
        Err(refused) => ReleaserAction::Wait(refused.to_string()),
    };
    let context = |why: String| DecisionContext::new(DecisionOrigin::Releaser, why, now_ms);
    let Some(canary) = &rollout.canary else {
        let Some(candidate) = rollout.candidates.last() else {
            return ReleaserAction::Wait(format!("{} is stable", rollout.stable.release.short()));
        };
        if let Some(why) = worse_on_public(candidate, settings) {
            return decided(stage::withdraw(rollout, &candidate.release, context(why)));
        }
        let short = candidate.release.short();
        if let Some(window) = paused {
            return ReleaserAction::Wait(format!("{short} waits for the end of the pause {window} UTC"));
        }
        let (able, unable) = ring(&settings.rings, 0, rollout, candidate, sites);
        let cannot: Vec<String> =
            unable.iter().map(|(site, fault)| format!("{site} cannot run it: {}", fault.reason)).collect();
        if able.is_empty() {
            let why =
                if cannot.is_empty() { "no site of the first ring has reported".to_owned() } else { cannot.join("; ") };
            return ReleaserAction::Wait(format!("{short} waits: {why}"));
        }
        let why = [format!("tried by {}", listed(&able))].into_iter().chain(cannot).collect::<Vec<_>>().join("; ");
        return decided(stage::canary(rollout, &candidate.release, 0, able, context(why)));
    };
    let release = &canary.release;
    let trial = evidence.trial(canary, &rollout.stable.release, now_ms);
    let judged = judge_canary(&trial, &settings.canary);
    let with = |why: String| DecisionContext { findings: judged.findings.clone(), ..context(why) };
    match &judged.ruling {
        CanaryRuling::Withdraw(why) => decided(stage::withdraw(rollout, &release.release, with(why.clone()))),
        CanaryRuling::Wait(why) => ReleaserAction::Wait(format!(
            "{} is being tried by {}: {why}",
            release.release.short(),
            listed(&canary.ring)
        )),
        CanaryRuling::Promote if paused.is_some() => {
            ReleaserAction::Wait(format!("{} is good and waits for the end of the pause", release.release.short()))
        }
        CanaryRuling::Promote => {
            // A wider ring without new sites would prove nothing more.
            let wider = (canary.step + 1..settings.rings.len() as u32)
                .map(|step| (step, ring(&settings.rings, step, rollout, release, sites).0))
                .find(|(_, sites)| sites.iter().any(|site| !canary.ring.contains(site)));
            match wider {
                Some((step, sites)) => {
                    let why = format!("good so far; tried by {}", listed(&sites));
                    decided(stage::canary(rollout, &release.release, step, sites, with(why)))
                }
                None => decided(stage::stable(
                    rollout,
                    release.clone(),
                    with("as good as the stable release, or better".into()),
                )),
            }
        }
    }
}

/// Why a candidate is withdrawn without a trial; `None` if it is tried.
fn worse_on_public(candidate: &Release, settings: &ReleaserSettings) -> Option<String> {
    let (before, after) = candidate.public.as_ref()?;
    let lost = before.accuracy_ratio - after.accuracy_ratio;
    // A loss within chance, on so few pictures, is no loss.
    let is_sure = candidate.public_change_interval.is_none_or(|(_, most)| most < 0.0);
    (is_sure && lost > settings.public_margin_ratio).then(|| {
        format!(
            "{:.1} % right on the public set, its parent {:.1} %; candidates more than {:.1} points worse are not tried",
            after.accuracy_ratio * 100.0,
            before.accuracy_ratio * 100.0,
            settings.public_margin_ratio * 100.0
        )
    })
}

/// Site names in words; from a certain number on they are counted.
fn listed(sites: &[schemas::SiteName]) -> String {
    let names: Vec<&str> = sites.iter().take(5).map(schemas::SiteName::as_str).collect();
    match sites.len().saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{} and {more} others", names.join(", ")),
    }
}
