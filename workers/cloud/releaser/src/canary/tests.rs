//! Simulated fleets whose truth is known.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::swap::{AgreementCount, MomentSums};
use schemas::{CanaryMeasure, FaultNote};

use super::*;
use crate::evidence::{BeforeAfter, EvidenceCell};

/// How a release behaves.
#[derive(Debug, Clone, Copy)]
struct SimulatedRelease {
    in_doubt: f64,
    agrees_doubtful: f64,
    agrees_sure: f64,
    confidence: f64,
    ln_cost: f64,
    faults: f64,
}

const STABLE: SimulatedRelease = SimulatedRelease {
    in_doubt: 0.2,
    agrees_doubtful: 0.65,
    agrees_sure: 0.95,
    confidence: 0.9,
    ln_cost: 2.0,
    faults: 0.0005,
};

/// Sites, and how much each wanders by itself in a slot.
#[derive(Debug, Clone, Copy)]
struct SimulatedFleet {
    ring: usize,
    others: usize,
    slow_hours: f64,
    scenes: f64,
}

const FLEET: SimulatedFleet = SimulatedFleet { ring: 2, others: 10, slow_hours: 0.3, scenes: 0.01 };
/// Images per slot.
const IMAGES: f64 = 600.0;
const SAMPLED: f64 = 0.04;

struct CanaryTestRng(StdRng);

impl CanaryTestRng {
    fn normal(&mut self) -> f64 {
        let (radius, turn): (f64, f64) = (self.0.random_range(1e-12..1.0), self.0.random_range(0.0..1.0));
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()
    }

    fn of(&mut self, count: f64, share: f64) -> u64 {
        if count * share * (1.0 - share) > 20.0 {
            let hit = count * share + (count * share * (1.0 - share)).sqrt() * self.normal();
            return hit.round().clamp(0.0, count) as u64;
        }
        (0..count as u64).filter(|_| self.0.random_range(0.0..1.0) < share).count() as u64
    }

    fn moments(&mut self, count: u64, mean: f64, deviation: f64) -> MomentSums {
        let images = count as f64;
        let mean = mean + deviation / images.max(1.0).sqrt() * self.normal();
        MomentSums { count, sum: mean * images, squares: images * (mean * mean + deviation * deviation) }
    }

    /// One slot of a site. `slow`: how slow its machine is in it.
    fn slot(&mut self, truth: &SimulatedRelease, site: (f64, f64), slow: f64, scenes: f64) -> EvidenceCell {
        let images = IMAGES as u64;
        let hard = site.0 + scenes * self.normal();
        let share = |share: f64| share.clamp(0.0, 1.0);
        let doubtful = self.of(IMAGES, share(truth.in_doubt + hard));
        let sampled = self.of(IMAGES - doubtful as f64, SAMPLED);
        let agreed = |chance: &mut Self, asked: u64, agrees: f64| AgreementCount {
            asked,
            agreed: chance.of(asked as f64, share(agrees - hard)),
        };
        EvidenceCell {
            images,
            doubtful,
            faults: self.of(IMAGES, truth.faults),
            confidence: self.moments(images, truth.confidence - hard, 0.15),
            ln_cost_ms: self.moments(images, truth.ln_cost + site.1 + slow, 0.2),
            on_doubtful: agreed(self, doubtful, truth.agrees_doubtful),
            on_sampled: agreed(self, sampled, truth.agrees_sure),
        }
    }
}

/// Judges a canary repeatedly for a day: the ruling, and when it was made.
fn play(canary: &SimulatedRelease, fleet: SimulatedFleet, settings: &CanarySettings, seed: u64) -> (CanaryRuling, u64) {
    const BEFORE: usize = 144;
    let mut chance = CanaryTestRng(StdRng::seed_from_u64(seed));
    let mut trial = CanaryTrial { sites: fleet.ring, longer: 1.0, ..CanaryTrial::default() };
    let mut sites = Vec::new();
    for number in 0..fleet.ring + fleet.others {
        let site = (0.03 * chance.normal(), 0.7 * chance.normal());
        // Each machine's slow phases last for about an hour.
        let mut slow = fleet.slow_hours * chance.normal();
        let mut before = Vec::new();
        for _ in 0..BEFORE {
            slow = wander(&mut chance, slow, fleet.slow_hours);
            before.push(chance.slot(&STABLE, site, slow, fleet.scenes));
        }
        sites.push((site, slow));
        let pair = BeforeAfter { before, after: EvidenceCell::default() };
        if number < fleet.ring { trial.ring.push(pair) } else { trial.others.push(pair) }
    }
    for look in 1..=settings.max_duration_s / 600 {
        trial.age_ms = look * 600_000;
        let hour = 0.2 * (look as f64 / 144.0 * std::f64::consts::TAU).sin();
        for (number, (site, slow)) in sites.iter_mut().enumerate() {
            *slow = wander(&mut chance, *slow, fleet.slow_hours);
            let ring = number < fleet.ring;
            let pair = if ring { &mut trial.ring[number] } else { &mut trial.others[number - fleet.ring] };
            // Without other sites nothing separates a slow hour from a slow release, so such fleets get none here.
            let hour = if fleet.others > 0 { hour } else { 0.0 };
            let cell = chance.slot(if ring { canary } else { &STABLE }, *site, *slow + hour, fleet.scenes);
            pair.after.add(&cell);
        }
        // Less often after the first hours, only to save time.
        if look > 12 && look % 3 > 0 {
            continue;
        }
        match judge_canary(&trial, settings).ruling {
            CanaryRuling::Wait(_) => {}
            ruling => return (ruling, look),
        }
    }
    unreachable!("the last look decides");
}

fn wander(chance: &mut CanaryTestRng, slow: f64, deviation: f64) -> f64 {
    const KEEPS: f64 = 0.8;
    KEEPS * slow + (1.0 - KEEPS * KEEPS).sqrt() * deviation * chance.normal()
}

/// Over many canaries: shares of promoted, withdrawn as worse, and undecided ones, and the median time.
fn rates(
    canary: &SimulatedRelease,
    fleet: SimulatedFleet,
    settings: &CanarySettings,
    runs: u64,
) -> (f64, f64, f64, u64) {
    let mut counts = [0.0; 3];
    let mut looks = Vec::new();
    for seed in 0..runs {
        let (ruling, look) = play(canary, fleet, settings, seed);
        looks.push(look);
        match ruling {
            CanaryRuling::Promote => counts[0] += 1.0 / runs as f64,
            CanaryRuling::Withdraw(why) if why.starts_with("undecided") => counts[2] += 1.0 / runs as f64,
            CanaryRuling::Withdraw(_) => counts[1] += 1.0 / runs as f64,
            CanaryRuling::Wait(_) => unreachable!(),
        }
    }
    looks.sort_unstable();
    (counts[0], counts[1], counts[2], looks[looks.len() / 2])
}

/// Two standard errors of a rate of a twentieth.
fn noise(runs: u64) -> f64 {
    2.0 * (0.05 * 0.95 / runs as f64).sqrt()
}

#[test]
fn a_release_as_good_is_seldom_withdrawn_and_mostly_promoted() {
    let (promoted, worse, open, look) = rates(&STABLE, FLEET, &CanarySettings::default(), 400);
    println!("equal: promoted {promoted:.3}, worse {worse:.3}, undecided {open:.3}, median look {look}");
    assert!(worse <= 0.05 + noise(400), "{worse}");
    assert!(promoted >= 0.85, "{promoted}");
}

#[test]
fn a_release_worse_by_a_margin_is_seldom_promoted() {
    let worse = [
        ("agreement", SimulatedRelease { agrees_sure: 0.93, agrees_doubtful: 0.63, ..STABLE }),
        ("sent up", SimulatedRelease { in_doubt: 0.3, agrees_doubtful: 0.75, ..STABLE }),
        ("confidence", SimulatedRelease { confidence: 0.8, ..STABLE }),
        ("cost", SimulatedRelease { ln_cost: STABLE.ln_cost + 1.5_f64.ln(), ..STABLE }),
        ("faults", SimulatedRelease { faults: 0.0105, ..STABLE }),
    ];
    for (name, truth) in worse {
        let (promoted, withdrawn, open, look) = rates(&truth, FLEET, &CanarySettings::default(), 400);
        println!("{name}: promoted {promoted:.3}, worse {withdrawn:.3}, undecided {open:.3}, median look {look}");
        assert!(promoted <= 0.05 + noise(400), "{name}: {promoted}");
    }
}

#[test]
fn few_sites_err_no_more_often_than_many() {
    let settings = CanarySettings::default();
    for (ring, others) in [(1, 1), (1, 3), (1, 0), (10, 10)] {
        let fleet = SimulatedFleet { ring, others, ..FLEET };
        let (promoted, worse, open, look) = rates(&STABLE, fleet, &settings, 60);
        println!("{ring} of {others} equal: promoted {promoted:.3}, worse {worse:.3}, open {open:.3}, look {look}");
        assert!(worse <= 0.05 + noise(60), "{ring} and {others}: {worse} withdrawn");
        let slow = SimulatedRelease { ln_cost: STABLE.ln_cost + 1.5_f64.ln(), ..STABLE };
        let (promoted, worse, open, look) = rates(&slow, fleet, &settings, 60);
        println!("{ring} of {others} slow: promoted {promoted:.3}, worse {worse:.3}, open {open:.3}, look {look}");
        assert!(promoted <= 0.05 + noise(60), "{ring} and {others}: {promoted} promoted");
    }
}

#[test]
fn a_release_that_is_wrong_and_confident_is_withdrawn() {
    let sure = SimulatedRelease { in_doubt: 0.02, agrees_sure: 0.7, agrees_doubtful: 0.9, confidence: 0.99, ..STABLE };
    let (promoted, worse, ..) = rates(&sure, FLEET, &CanarySettings::default(), 20);
    assert_eq!((promoted, (worse * 20.0).round()), (0.0, 20.0));
}

/// A fleet after an hour, all sites alike.
fn hour(change: impl Fn(&mut EvidenceCell)) -> CanaryTrial {
    let agreed = |asked, agreed| AgreementCount { asked, agreed };
    let cell = EvidenceCell {
        images: 3600,
        doubtful: 720,
        faults: 2,
        confidence: MomentSums { count: 3600, sum: 3240.0, squares: 2997.0 },
        ln_cost_ms: MomentSums { count: 3600, sum: 7200.0, squares: 14_544.0 },
        on_doubtful: agreed(720, 470),
        on_sampled: agreed(1000, 950),
    };
    let pair = BeforeAfter { before: vec![cell; 24], after: cell };
    let mut ring = vec![pair.clone(); 2];
    ring.iter_mut().for_each(|pair| change(&mut pair.after));
    CanaryTrial { sites: 2, ring, others: vec![pair; 6], longer: 1.0, age_ms: 3_600_000, ..CanaryTrial::default() }
}

fn withdrawn(trial: &CanaryTrial, settings: &CanarySettings) -> Option<String> {
    match judge_canary(trial, settings).ruling {
        CanaryRuling::Withdraw(why) => Some(why),
        CanaryRuling::Promote | CanaryRuling::Wait(_) => None,
    }
}

#[test]
fn a_release_as_good_in_everything_is_promoted() {
    let judged = judge_canary(&hour(|_| {}), &CanarySettings::default());
    assert_eq!(judged.ruling, CanaryRuling::Promote, "{judged:?}");
    assert!(judged.findings.iter().all(|finding| finding.better.abs() < 1e-9 && finding.says == FindingOutcome::Good));
}

#[test]
fn without_sampled_verdicts_nothing_is_promoted_unless_allowed() {
    let trial = hour(|cell| cell.on_sampled = AgreementCount::default());
    let settings = CanarySettings::default();
    let CanaryRuling::Wait(why) = judge_canary(&trial, &settings).ruling else { panic!() };
    assert!(why.contains("verdict"), "{why}");
    let old = CanaryTrial { age_ms: settings.max_duration_s * 1000, ..trial.clone() };
    assert!(withdrawn(&old, &settings).unwrap().starts_with("undecided after 24 h: agreement is undecided"));
    let allowed = CanarySettings { without_verdicts: true, ..settings };
    assert_eq!(judge_canary(&trial, &allowed).ruling, CanaryRuling::Promote);
}

#[test]
fn crashes_refusals_and_memory_withdraw_at_once() {
    let settings = CanarySettings::default();
    let empty = CanaryTrial { sites: 2, ..CanaryTrial::default() };
    assert!(matches!(judge_canary(&empty, &settings).ruling, CanaryRuling::Wait(_)));
    assert!(withdrawn(&CanaryTrial { crashes: 1, ..empty.clone() }, &settings).is_none());
    assert!(withdrawn(&CanaryTrial { crashes: 2, ..empty.clone() }, &settings).unwrap().contains("crashed 2 workers"));
    let fault = FaultNote::new("release_too_new", "its opset is 99", "");
    let half = CanaryTrial { refused: vec![fault.clone()], ..empty.clone() };
    assert!(withdrawn(&half, &settings).is_none());
    let both = CanaryTrial { refused: vec![fault; 2], ..empty };
    assert!(withdrawn(&both, &settings).unwrap().contains("its opset is 99 (release_too_new)"));
    for (before_mib, after_mib, too_much) in [(100.0, 170.0, true), (20.0, 80.0, false), (1000.0, 1400.0, false)] {
        let trial = CanaryTrial { memory: Some(RingMemory { before_mib, after_mib }), ..hour(|_| {}) };
        assert_eq!(withdrawn(&trial, &settings).is_some(), too_much, "{before_mib} to {after_mib}");
    }
}

#[test]
fn a_release_that_fails_on_everything_is_withdrawn_after_a_few_images() {
    let failing = |faults| hour(move |cell| *cell = EvidenceCell { faults, ..EvidenceCell::default() });
    assert!(withdrawn(&failing(3), &CanarySettings::default()).unwrap().starts_with("faults is worse"));
    let few = hour(|cell| *cell = EvidenceCell { images: 20, ..EvidenceCell::default() });
    assert!(withdrawn(&few, &CanarySettings::default()).is_none());
}

#[test]
fn a_changed_share_of_the_images_is_not_an_effect() {
    let mut trial = hour(|_| {});
    // One site is slow and now has ten times the images of the other; nothing else changed.
    let slow = |cell: &mut EvidenceCell, images: f64| {
        cell.ln_cost_ms = MomentSums { count: images as u64, sum: images * 4.0, squares: images * 16.04 };
    };
    trial.ring[0].before.iter_mut().for_each(|cell| slow(cell, 3600.0));
    slow(&mut trial.ring[0].after, 36_000.0);
    let finding = judge_canary(&trial, &CanarySettings::default()).findings;
    let cost = finding.iter().find(|finding| finding.measure == CanaryMeasure::Cost).unwrap();
    assert!(cost.better.abs() < 1e-9 && cost.says == FindingOutcome::Good, "{cost:?}");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    assert!(CanarySettings::default().check().is_ok());
    for (settings, name) in [
        (CanarySettings { cost_ratio: 1.0, ..CanarySettings::default() }, "cost_ratio"),
        (CanarySettings { miss_ratio: 0.0, ..CanarySettings::default() }, "miss_ratio"),
        (CanarySettings { agreement_margin_ratio: f64::NAN, ..CanarySettings::default() }, "agreement_margin_ratio"),
        (CanarySettings { crashes: 0, ..CanarySettings::default() }, "crashes"),
    ] {
        assert!(settings.check().unwrap_err().contains(name));
    }
}

fn odds(trial: &CanaryTrial, measure: CanaryMeasure) -> Option<f64> {
    let findings = judge_canary(trial, &CanarySettings::default()).findings;
    findings.into_iter().find(|finding| finding.measure == measure).map(|finding| finding.odds)
}

proptest! {
    #[test]
    fn the_more_it_costs_the_higher_the_odds_that_it_is_worse(by in 0.0_f64..2.0, more in 0.01_f64..1.0) {
        let dearer = |by: f64| hour(move |cell| {
            let (images, mean) = (3600.0, 2.0 + by);
            cell.ln_cost_ms = MomentSums { count: 3600, sum: images * mean, squares: images * (mean * mean + 0.04) };
        });
        let of = |by| odds(&dearer(by), CanaryMeasure::Cost).unwrap();
        prop_assert!(of(by) < of(by + more));
    }

    #[test]
    fn the_fewer_verdicts_agree_the_higher_the_odds_that_it_is_worse(agreed in 500_u64..1000, less in 1_u64..100) {
        let of = |agreed| odds(&hour(move |cell| cell.on_sampled.agreed = agreed), CanaryMeasure::Agreement).unwrap();
        // A canary's own variance is used where it is larger, so only the sign is certain.
        let (more, fewer) = (of(agreed), of(agreed - less));
        prop_assert!(more.signum() <= fewer.signum());
        prop_assert!(agreed > 930 || fewer > 0.0);
    }

    #[test]
    fn what_is_better_for_one_side_is_worse_for_the_other(
        numbers in prop::collection::vec((1_u64..2000, 0.0_f64..1.0, 0.0_f64..4.0), 12),
    ) {
        let cell = |(images, share, cost): (u64, f64, f64)| {
            let hit = (images as f64 * share) as u64;
            let agreed = AgreementCount { asked: images, agreed: hit };
            let values = |mean: f64| {
                let count = images as f64;
                MomentSums { count: images, sum: count * mean, squares: count * (mean * mean + 0.01) }
            };
            let (confidence, ln_cost_ms) = (values(share), values(cost));
            EvidenceCell { images, doubtful: hit, faults: hit, confidence, ln_cost_ms, on_doubtful: agreed, on_sampled: agreed }
        };
        let cells: Vec<EvidenceCell> = numbers.into_iter().map(cell).collect();
        let pairs: Vec<BeforeAfter> = cells.chunks(3).map(|c| BeforeAfter { before: vec![c[0], c[1]], after: c[2] }).collect();
        let (ring, others) = (pairs[..2].to_vec(), pairs[2..].to_vec());
        let one = CanaryTrial { sites: 2, longer: 1.0, ring, others, ..CanaryTrial::default() };
        let other = CanaryTrial { ring: one.others.clone(), others: one.ring.clone(), ..one.clone() };
        let of = |trial: &CanaryTrial| judge_canary(trial, &CanarySettings::default()).findings;
        for (here, there) in of(&one).iter().zip(of(&other)) {
            prop_assert!((here.better + there.better).abs() < 1e-9, "{here:?} {there:?}");
            prop_assert!(here.error > 0.0 && here.odds.is_finite());
        }
    }
}
