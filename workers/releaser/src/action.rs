//! What is decided next about a model's releases, if anything. Pure.

use rollout::stage::{self, DecisionContext};
use schemas::{DecisionOrigin, Release, Rollout};

use crate::canary::{CanaryRuling, judge_canary};
use crate::evidence::ReleaseEvidence;
use crate::ring::{SiteWorkers, ring};
use crate::settings::ReleaserSettings;

/// What follows from what is known.
#[derive(Debug, Clone, PartialEq)]
pub enum ReleaserAction {
    /// This is decided.
    Decide(Box<Rollout>),
    /// Nothing; why, in words.
    Wait(String),
}

/// What is decided next.
pub fn next_action(
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
    let said = |why: String| DecisionContext::new(DecisionOrigin::Releaser, why, now_ms);
    let Some(canary) = &rollout.canary else {
        let Some(candidate) = rollout.candidates.last() else {
            return ReleaserAction::Wait(format!("{} is stable", rollout.stable.release.short()));
        };
        if let Some(why) = worse_on_public(candidate, settings) {
            return decided(stage::withdraw(rollout, &candidate.release, said(why)));
        }
        let short = candidate.release.short();
        if let Some(window) = paused {
            return ReleaserAction::Wait(format!("{short} waits until {window} UTC is over"));
        }
        let (able, unable) = ring(&settings.rings, 0, rollout, candidate, sites);
        let cannot: Vec<String> =
            unable.iter().map(|(site, fault)| format!("{site} cannot run it: {}", fault.reason)).collect();
        if able.is_empty() {
            let why =
                if cannot.is_empty() { "no site of the first ring was heard of".to_owned() } else { cannot.join("; ") };
            return ReleaserAction::Wait(format!("{short} waits: {why}"));
        }
        let why = [format!("tried by {}", listed(&able))].into_iter().chain(cannot).collect::<Vec<_>>().join("; ");
        return decided(stage::canary(rollout, &candidate.release, 0, able, said(why)));
    };
    let release = &canary.release;
    let trial = evidence.trial(canary, &rollout.stable.release, now_ms);
    let judged = judge_canary(&trial, &settings.canary);
    let with = |why: String| DecisionContext { findings: judged.findings.clone(), ..said(why) };
    match &judged.ruling {
        CanaryRuling::Withdraw(why) => decided(stage::withdraw(rollout, &release.release, with(why.clone()))),
        CanaryRuling::Wait(why) => {
            ReleaserAction::Wait(format!("{} is tried by {}: {why}", release.release.short(), listed(&canary.ring)))
        }
        CanaryRuling::Promote if paused.is_some() => {
            ReleaserAction::Wait(format!("{} is good, and waits for the pause to end", release.release.short()))
        }
        CanaryRuling::Promote => {
            // A wider ring that has nobody new proves nothing more.
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
                    with("as good as what was stable, or better".into()),
                )),
            }
        }
    }
}

/// Why a candidate is not even tried, if it is not.
fn worse_on_public(candidate: &Release, settings: &ReleaserSettings) -> Option<String> {
    let (before, after) = candidate.public.as_ref()?;
    let lost = before.accuracy_ratio - after.accuracy_ratio;
    // What chance makes of so few pictures is no loss.
    let is_sure = candidate.public_change_interval.is_none_or(|(_, most)| most < 0.0);
    (is_sure && lost > settings.public_margin_ratio).then(|| {
        format!(
            "on the public set {:.1} % right, where its parent is {:.1} % (more than {:.1} points less is not tried)",
            after.accuracy_ratio * 100.0,
            before.accuracy_ratio * 100.0,
            settings.public_margin_ratio * 100.0
        )
    })
}

/// Sites in words; many are counted.
fn listed(sites: &[schemas::SiteName]) -> String {
    let names: Vec<&str> = sites.iter().take(5).map(schemas::SiteName::as_str).collect();
    match sites.len().saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{} and {more} others", names.join(", ")),
    }
}
