//! A simulated fleet: sites classify pictures and report every minute, and a releaser judges every minute.
//!
//! Each site has its own class mix, which drifts from hour to hour, and its own machine, which is slow for some minutes
//! at a time. All costs also follow a daily cycle.

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

/// Number of sites.
pub(super) const SITES: usize = 20;
/// Sites in the canary ring.
pub(super) const RING: usize = 2;
const MINUTE_MS: u64 = 60_000;
/// Images per site and minute.
const IMAGES: usize = 60;
/// Minutes simulated before the canary starts: one day.
const WARM_UP_MINUTES: u64 = 24 * 60;
const SLOT_MINUTES: u64 = SLOT_MS / MINUTE_MS;
/// Start of the simulation: any time at a slot boundary.
const EPOCH_MS: u64 = 1000 * SLOT_MS;
/// Dirichlet concentration of a site's class mix.
const SITE_CONCENTRATION: f64 = 1.0;
/// Dirichlet concentration of an hour's class mix around its site's.
const HOUR_CONCENTRATION: f64 = 50.0;
/// Mean cost of an image, as the natural logarithm of milliseconds.
const LN_COST: f64 = 1.6;
/// Standard deviations of the log cost: between machines, per image, and of slow minutes; then the daily amplitude.
const MACHINE_DEVIATION: f64 = 0.5;
const IMAGE_DEVIATION: f64 = 0.25;
const SLOW_DEVIATION: f64 = 0.25;
const DAY_AMPLITUDE: f64 = 0.2;
/// Autocorrelation of slow minutes: half-life of ten minutes.
const SLOW_CORRELATION: f64 = 0.933;

/// Result of a simulated canary.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CanaryRun {
    /// Kind of the candidate.
    pub kind: CandidateKind,
    /// Random seed.
    pub seed: u64,
    /// How it ended.
    pub ended: CanaryEnd,
    /// The releaser's reason; empty if promoted.
    pub why: String,
    /// Time to the decision, minutes.
    pub minutes: u64,
    /// Images that the ring processed with the candidate.
    pub images: u64,
    /// Verdicts on those images.
    pub verdicts: u64,
    /// True gain in agreement with verdicts at the ring's sites, as a share of their images.
    pub truly_better_ratio: f64,
}

/// How a canary ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CanaryEnd {
    /// All sites get the release.
    Promoted,
    /// Withdrawn as worse.
    Withdrawn,
    /// Withdrawn without a decision after the maximum duration.
    Undecided,
}

/// A simulated site.
struct CanarySite {
    name: SiteName,
    mix: Vec<f64>,
    /// Cumulative class mix of the current hour.
    hour: Vec<f64>,
    machine: f64,
    slow: f64,
    /// Minute at which it swaps to the candidate; absent outside the ring.
    swaps_at: Option<u64>,
    restarts: u64,
    /// Counts in the current slot: stable release, candidate.
    counts: [ReleaseCounts; 2],
    agreements: [Agreement; 2],
}

/// State of one simulated canary.
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

/// Simulates one canary.
pub(super) fn run_canary(
    releases: &CanaryCandidates,
    candidate: &CanaryCandidate,
    settings: &CanarySettings,
    seed: u64,
) -> CanaryRun {
    let mut fleet = CanaryFleet::new(releases, candidate, seed);
    let truly_better_ratio = fleet.true_gain();
    let since = WARM_UP_MINUTES + fleet.random.random_range(0..SLOT_MINUTES);
    for site in fleet.sites.iter_mut().take(RING) {
        site.swaps_at = Some(since + fleet.random.random_range(1..6));
    }
    let canary = fleet.canary(EPOCH_MS + since * MINUTE_MS);
    let mut minute = 0;
    loop {
        fleet.simulate_minute(minute);
        minute += 1;
        let now_ms = EPOCH_MS + minute * MINUTE_MS;
        // Before the canary, only the last report of a slot counts.
        if minute > since || minute.is_multiple_of(SLOT_MINUTES) {
            fleet.report_counts(minute - 1, now_ms);
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
                mix: draw_dirichlet(&vec![SITE_CONCENTRATION; releases.classes.len()], &mut random),
                hour: Vec::new(),
                machine: MACHINE_DEVIATION * normal(&mut random),
                slow: SLOW_DEVIATION * normal(&mut random),
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

    /// True gain in agreement with verdicts at the ring's sites.
    fn true_gain(&self) -> f64 {
        let better = |picture: &usize| {
            let agrees = |predictions: &[CanaryPrediction]| f64::from(u8::from(predictions[*picture].agrees));
            agrees(&self.candidate.predictions) - agrees(&self.releases.stable.predictions)
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

    /// Simulates one minute at every site.
    fn simulate_minute(&mut self, minute: u64) {
        let day = DAY_AMPLITUDE * (minute as f64 / WARM_UP_MINUTES as f64 * std::f64::consts::TAU).sin();
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
                let near: Vec<f64> = site.mix.iter().map(|share| HOUR_CONCENTRATION * share).collect();
                let mix = draw_dirichlet(&near, &mut self.random);
                site.hour = mix
                    .iter()
                    .scan(0.0, |sum, share| {
                        *sum += share;
                        Some(*sum)
                    })
                    .collect();
            }
            site.slow = SLOW_CORRELATION * site.slow
                + (1.0 - SLOW_CORRELATION * SLOW_CORRELATION).sqrt() * SLOW_DEVIATION * normal(&mut self.random);
            let runs_candidate = site.swaps_at.is_some_and(|at| minute >= at);
            let (release, predictions) = match runs_candidate {
                true => (1, &self.candidate.predictions),
                false => (0, &self.releases.stable.predictions),
            };
            let ln_cost = LN_COST + site.machine + site.slow + day + if runs_candidate { slower } else { 0.0 };
            for _ in 0..IMAGES {
                if runs_candidate && self.candidate.kind == CandidateKind::Crashing {
                    site.restarts += u64::from(self.random.random_range(0..1000) == 0);
                    if self.random.random_range(0..200) == 0 {
                        site.counts[release].faults += 1;
                        continue;
                    }
                }
                let draw: f64 = self.random.random_range(0.0..1.0);
                let class = site.hour.iter().position(|sum| draw < *sum).unwrap_or(0);
                let pictures = &self.releases.classes[class];
                let prediction = predictions[pictures[self.random.random_range(0..pictures.len())]];
                let counts = &mut site.counts[release];
                counts.images += 1;
                counts.doubtful += u64::from(prediction.doubtful);
                counts.confidence.add_value(prediction.confidence);
                counts.ln_cost_ms.add_value(ln_cost + IMAGE_DEVIATION * normal(&mut self.random));
                let agreement = &mut site.agreements[release];
                let agreed = match prediction.doubtful {
                    true => Some(&mut agreement.doubtful),
                    false => self.random.random_bool(sample_ratio).then_some(&mut agreement.sampled),
                };
                if let Some(agreed) = agreed {
                    agreed.asked += 1;
                    agreed.agreed += u64::from(prediction.agrees);
                    self.verdicts += u64::from(runs_candidate);
                }
                self.images += u64::from(runs_candidate);
            }
        }
    }

    /// Adds the slot reports of every site's worker and of the verifier to the evidence.
    fn report_counts(&mut self, minute: u64, now_ms: u64) {
        let slot_ms = EPOCH_MS + minute / SLOT_MINUTES * SLOT_MS;
        for site in &self.sites {
            let since = site.swaps_at.filter(|at| minute >= *at);
            let fault = || FaultNote::new(FaultKind::ReleaseCrashed, "the release crashed the worker", "");
            let refused = RefusedRelease { release: self.ids[1].clone(), fault: fault() };
            self.evidence.add_report(
                Swap {
                    release: self.ids[usize::from(since.is_some())].clone(),
                    since_ms: EPOCH_MS + since.unwrap_or(0) * MINUTE_MS,
                    refused: vec![refused; site.restarts as usize],
                    counts: site.counts.iter().filter(|counts| counts.images > 0).cloned().collect(),
                    ..swap_report(site.name.clone(), format!("host-{}", site.restarts), &self.ids[0], slot_ms, now_ms)
                },
                now_ms,
            );
        }
        let agreements = self.sites.iter().flat_map(|site| &site.agreements);
        let agreements =
            agreements.filter(|agreement| agreement.doubtful.asked + agreement.sampled.asked > 0).cloned().collect();
        let verifier = swap_report(SiteName::cloud(), "cloud-1".into(), &self.ids[0], slot_ms, now_ms);
        self.evidence.add_report(Swap { agreements, ..verifier }, now_ms);
    }
}

fn swap_report(site: SiteName, worker: String, release: &ReleaseId, slot_ms: u64, now_ms: u64) -> Swap {
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

/// Draws shares from a Dirichlet distribution.
fn draw_dirichlet(alphas: &[f64], random: &mut StdRng) -> Vec<f64> {
    let parts: Vec<f64> = alphas.iter().map(|alpha| gamma(alpha.max(1e-3), random)).collect();
    let sum: f64 = parts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    parts.into_iter().map(|part| part / sum).collect()
}
