//! A fleet made up of chance: sites that see pictures and report every minute, a releaser that judges every minute.
//!
//! Each site has its own mix of classes, which changes from hour to hour, and its own machine, which is slow for some
//! minutes at a time; all are slower by day than by night.

use offload::VerifySettings;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use releaser::evidence::SLOT_MS;
use releaser::{CanaryRuling, CanarySettings, ReleaseEvidence, judge_canary};
use schemas::swap::{Agreement, RefusedRelease, ReleaseCounts, Swap};
use schemas::{
    Canary, FaultKind, FaultNote, FindingOutcome, MachineRequirements, ModelName, Release, ReleaseId, SiteName,
};
use serde::Serialize;

use super::releases::{CanaryCandidate, CanaryCandidates, CanaryPrediction, CandidateKind};
use crate::federated::{gamma, normal};

/// Sites.
pub(super) const SITES: usize = 20;
/// Of those, in the ring.
pub(super) const RING: usize = 2;
const MINUTE_MS: u64 = 60_000;
/// Images of a site in a minute.
const IMAGES: usize = 60;
/// A day is seen before the canary, minutes.
const BEFORE: u64 = 24 * 60;
const SLOT_MINUTES: u64 = SLOT_MS / MINUTE_MS;
/// When it begins: any time that is the beginning of a stretch.
const EPOCH_MS: u64 = 1000 * SLOT_MS;
/// Mixes of classes: how even they are at sites, and how near an hour's is to its site's.
const EVEN: f64 = 1.0;
const NEAR: f64 = 50.0;
/// What an image costs: natural logarithms of milliseconds. Between machines, of an image, of slow minutes, of the day.
const LN_COST: f64 = 1.6;
const MACHINES: f64 = 0.5;
const OF_IMAGE: f64 = 0.25;
const SLOW: f64 = 0.25;
const DAY: f64 = 0.2;
/// What a slow minute keeps of the one before: half of it is gone after ten.
const KEEPS: f64 = 0.933;

/// What became of a canary.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CanaryRun {
    /// What it was.
    pub kind: CandidateKind,
    /// Of all chance.
    pub seed: u64,
    /// What was decided.
    pub ended: CanaryEnd,
    /// Why, in the releaser's words.
    pub why: String,
    /// After so long, minutes.
    pub minutes: u64,
    /// On so many images of the ring.
    pub images: u64,
    /// And so many verdicts on them.
    pub verdicts: u64,
    /// How many more verdicts truly agree at sites of the ring, as a share of their images.
    pub truly_better_ratio: f64,
}

/// How a canary ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CanaryEnd {
    /// Every site gets it.
    Promoted,
    /// It was worse.
    Withdrawn,
    /// It was withdrawn because nothing had been decided after the longest time.
    Undecided,
}

/// A site.
struct CanarySite {
    name: SiteName,
    mix: Vec<f64>,
    /// The mix of this hour, summed up.
    hour: Vec<f64>,
    machine: f64,
    slow: f64,
    /// Since when it runs the candidate, minutes.
    swaps_at: Option<u64>,
    restarts: u64,
    /// What was counted in this stretch, under the stable release and under the candidate.
    counts: [ReleaseCounts; 2],
    agreements: [Agreement; 2],
}

/// Everything that happens to a canary.
struct CanaryFleet<'a> {
    releases: &'a CanaryCandidates,
    candidate: &'a CanaryCandidate,
    ids: [ReleaseId; 2],
    sites: Vec<CanarySite>,
    random: StdRng,
    evidence: ReleaseEvidence,
    images: u64,
    verdicts: u64,
}

/// Plays one canary.
pub(super) fn run_canary(
    releases: &CanaryCandidates,
    candidate: &CanaryCandidate,
    settings: &CanarySettings,
    seed: u64,
) -> CanaryRun {
    let mut fleet = CanaryFleet::new(releases, candidate, seed);
    let truly_better_ratio = fleet.truth();
    let since = BEFORE + fleet.random.random_range(0..SLOT_MINUTES);
    for site in fleet.sites.iter_mut().take(RING) {
        site.swaps_at = Some(since + fleet.random.random_range(1..6));
    }
    let canary = fleet.canary(EPOCH_MS + since * MINUTE_MS);
    let mut minute = 0;
    loop {
        fleet.minute(minute);
        minute += 1;
        let now_ms = EPOCH_MS + minute * MINUTE_MS;
        // Before the canary only the last report about a stretch counts.
        if minute > since || minute.is_multiple_of(SLOT_MINUTES) {
            fleet.report(minute - 1, now_ms);
        }
        if minute <= since {
            continue;
        }
        let judged = judge_canary(&fleet.evidence.trial(&canary, &fleet.ids[0], now_ms), settings);
        let (minutes, worse) =
            (minute - since, judged.findings.iter().any(|finding| finding.says == FindingOutcome::Worse));
        let (ended, why) = match judged.ruling {
            CanaryRuling::Wait(_) => continue,
            CanaryRuling::Promote => (CanaryEnd::Promoted, String::new()),
            CanaryRuling::Withdraw(why) if !worse && minutes * 60 >= settings.max_duration_s => {
                (CanaryEnd::Undecided, why)
            }
            CanaryRuling::Withdraw(why) => (CanaryEnd::Withdrawn, why),
        };
        let (kind, images, verdicts) = (candidate.kind, fleet.images, fleet.verdicts);
        return CanaryRun { kind, seed, ended, why, minutes, images, verdicts, truly_better_ratio };
    }
}

impl<'a> CanaryFleet<'a> {
    fn new(releases: &'a CanaryCandidates, candidate: &'a CanaryCandidate, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let ids = [1, 2].map(|number| ReleaseId::from_sha256([number; 32]));
        let sites = (0..SITES).map(|number| {
            let name: SiteName = format!("site-{number}").try_into().unwrap_or_else(|_| SiteName::unknown());
            let agreement = |release: &ReleaseId| Agreement {
                site: name.clone(),
                release: release.clone(),
                doubtful: Default::default(),
                sampled: Default::default(),
            };
            CanarySite {
                mix: drawn(&vec![EVEN; releases.classes.len()], &mut random),
                hour: Vec::new(),
                machine: MACHINES * normal(&mut random),
                slow: SLOW * normal(&mut random),
                swaps_at: None,
                restarts: 0,
                counts: ids.clone().map(ReleaseCounts::for_release),
                agreements: ids.each_ref().map(agreement),
                name,
            }
        });
        let sites = sites.collect();
        Self {
            releases,
            candidate,
            ids,
            sites,
            random,
            evidence: ReleaseEvidence::of(ModelName::from_name("fashion")),
            images: 0,
            verdicts: 0,
        }
    }

    /// How many more verdicts agree with the candidate at sites of the ring.
    fn truth(&self) -> f64 {
        let better = |picture: &usize| {
            let agrees = |said: &[CanaryPrediction]| f64::from(u8::from(said[*picture].agrees));
            agrees(&self.candidate.said) - agrees(&self.releases.stable.said)
        };
        let of_class = |pictures: &Vec<usize>| pictures.iter().map(better).sum::<f64>() / pictures.len().max(1) as f64;
        let classes: Vec<f64> = self.releases.classes.iter().map(of_class).collect();
        let at = |site: &CanarySite| site.mix.iter().zip(&classes).map(|(share, better)| share * better).sum::<f64>();
        self.sites.iter().take(RING).map(at).sum::<f64>() / RING as f64
    }

    fn canary(&self, since_ms: u64) -> Canary {
        let release = Release {
            release: self.ids[1].clone(),
            parent: Some(self.ids[0].clone()),
            origin: "bench".into(),
            package: Vec::new(),
            needs: MachineRequirements::default(),
            public: None,
            public_change_interval: None,
        };
        let ring = self.sites.iter().take(RING).map(|site| site.name.clone()).collect();
        Canary { release, step: 0, ring, since_ms }
    }

    /// A minute passes at every site.
    fn minute(&mut self, minute: u64) {
        let day = DAY * (minute as f64 / BEFORE as f64 * std::f64::consts::TAU).sin();
        let slower = if self.candidate.kind == CandidateKind::Slow { 2_f64.ln() } else { 0.0 };
        let sample_ratio = VerifySettings::default().sample_ratio;
        for site in &mut self.sites {
            if minute.is_multiple_of(SLOT_MINUTES) {
                for (counts, agreement) in site.counts.iter_mut().zip(&mut site.agreements) {
                    *counts = ReleaseCounts::for_release(counts.release.clone());
                    (agreement.doubtful, agreement.sampled) = Default::default();
                }
            }
            if minute.is_multiple_of(60) {
                let near: Vec<f64> = site.mix.iter().map(|share| NEAR * share).collect();
                let mix = drawn(&near, &mut self.random);
                site.hour = mix
                    .iter()
                    .scan(0.0, |sum, share| {
                        *sum += share;
                        Some(*sum)
                    })
                    .collect();
            }
            site.slow = KEEPS * site.slow + (1.0 - KEEPS * KEEPS).sqrt() * SLOW * normal(&mut self.random);
            let tries = site.swaps_at.is_some_and(|at| minute >= at);
            let (release, said) = match tries {
                true => (1, &self.candidate.said),
                false => (0, &self.releases.stable.said),
            };
            let ln_cost = LN_COST + site.machine + site.slow + day + if tries { slower } else { 0.0 };
            for _ in 0..IMAGES {
                if tries && self.candidate.kind == CandidateKind::Crashing {
                    site.restarts += u64::from(self.random.random_range(0..1000) == 0);
                    if self.random.random_range(0..200) == 0 {
                        site.counts[release].faults += 1;
                        continue;
                    }
                }
                let lot: f64 = self.random.random_range(0.0..1.0);
                let class = site.hour.iter().position(|sum| lot < *sum).unwrap_or(0);
                let pictures = &self.releases.classes[class];
                let said = said[pictures[self.random.random_range(0..pictures.len())]];
                let counts = &mut site.counts[release];
                counts.images += 1;
                counts.doubtful += u64::from(said.doubtful);
                counts.confidence.add_value(said.confidence);
                counts.ln_cost_ms.add_value(ln_cost + OF_IMAGE * normal(&mut self.random));
                let agreement = &mut site.agreements[release];
                let agreed = match said.doubtful {
                    true => Some(&mut agreement.doubtful),
                    false => self.random.random_bool(sample_ratio).then_some(&mut agreement.sampled),
                };
                if let Some(agreed) = agreed {
                    agreed.asked += 1;
                    agreed.agreed += u64::from(said.agrees);
                    self.verdicts += u64::from(tries);
                }
                self.images += u64::from(tries);
            }
        }
    }

    /// Every site's worker, and the verifier, say what they counted in this stretch.
    fn report(&mut self, minute: u64, now_ms: u64) {
        let slot_ms = EPOCH_MS + minute / SLOT_MINUTES * SLOT_MS;
        for site in &self.sites {
            let since = site.swaps_at.filter(|at| minute >= *at);
            let fault = || FaultNote::new(FaultKind::ReleaseCrashed, "it ended the worker", "");
            let refused = RefusedRelease { release: self.ids[1].clone(), fault: fault() };
            self.evidence.add_report(
                Swap {
                    release: self.ids[usize::from(since.is_some())].clone(),
                    since_ms: EPOCH_MS + since.unwrap_or(0) * MINUTE_MS,
                    refused: vec![refused; site.restarts as usize],
                    counts: site.counts.iter().filter(|counts| counts.images > 0).cloned().collect(),
                    ..swap(site.name.clone(), format!("host-{}", site.restarts), &self.ids[0], slot_ms, now_ms)
                },
                now_ms,
            );
        }
        let agreements = self.sites.iter().flat_map(|site| &site.agreements);
        let agreements = agreements.filter(|said| said.doubtful.asked + said.sampled.asked > 0).cloned().collect();
        let verifier = swap(SiteName::cloud(), "cloud-1".into(), &self.ids[0], slot_ms, now_ms);
        self.evidence.add_report(Swap { agreements, ..verifier }, now_ms);
    }
}

fn swap(site: SiteName, worker: String, release: &ReleaseId, slot_ms: u64, now_ms: u64) -> Swap {
    Swap {
        site,
        worker,
        model: ModelName::from_name("fashion"),
        release: release.clone(),
        since_ms: EPOCH_MS,
        order: 1,
        refused: Vec::new(),
        runtime: String::new(),
        memory_free_mib: None,
        memory_mib: 100,
        site_labels: Vec::new(),
        slot_ms,
        slot_length_ms: SLOT_MS,
        left: false,
        said_at_ms: now_ms,
        counts: Vec::new(),
        agreements: Vec::new(),
    }
}

/// Shares from Dirichlet's distribution.
fn drawn(even: &[f64], random: &mut StdRng) -> Vec<f64> {
    let parts: Vec<f64> = even.iter().map(|alpha| gamma(alpha.max(1e-3), random)).collect();
    let sum: f64 = parts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    parts.into_iter().map(|part| part / sum).collect()
}
