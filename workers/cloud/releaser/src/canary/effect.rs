//! How much better a ring became than the other sites did, and how certain that is. Pure.
//!
//! The effect is a difference of differences: the change at sites of the ring minus the change at the others in the
//! same hours. The first difference removes differences between sites, the second those between hours. Each site is
//! compared with itself, and sites are combined with weights `1 / (1/n_before + 1/n_after)` (Mantel and Haenszel), so
//! that a site with more images than before does not look like a change.
//!
//! Images of a site are not independent: a machine is slow for minutes, a camera sees the same scene for hours. An
//! error computed from images alone would be far too small. So each site is allowed to *wander* by itself, with a
//! variance that is added to that of its images and is estimated in two ways:
//! - Between sites: those outside the ring changed too, although nothing was changed there. The excess over what their
//!   images explain is how much a site wanders (Conley and Taber, Review of Economics and Statistics 93, 2011).
//! - Between time slots of one site before: again the excess over what their images explain. Because neighbouring slots
//!   are alike, they are also combined into longer ones, and the largest variance that any length needs is used (batch
//!   means: Schmeiser, Operations Research 30, 1982).
//!
//! The latter, at least a quarter of the margin, counts like the evidence of two more sites, so that a few sites that
//! happen to be alike are not overrated.

use super::measure::{MeasureSpread, MeasureValue, read_value, sign};
use crate::evidence::{BeforeAfter, CanaryTrial, EvidenceCell};
use schemas::CanaryMeasure;

/// Least wander of a site as a share of the margin, until other sites tell; an estimate.
const LEAST_WANDER: f64 = 0.25;
/// The same where sites were not seen before and differ anyway; an estimate.
const LEAST_DIFFERENT: f64 = 1.0;
/// Number of sites that this prior counts as.
const PRIOR_SITES: f64 = 2.0;
/// Slots are combined as long as this many remain per site.
const LEAST_BATCHES: usize = 9;

/// How much better a ring became.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RingEffect {
    /// The measure in the ring.
    pub canary: f64,
    /// The measure at the other sites in the same hours; absent without others.
    pub stable: Option<f64>,
    /// How much better the ring became than the others did; negative if worse.
    pub better: f64,
    /// Variance of `better`.
    pub variance: f64,
    /// Images, or sampled verdicts, of the ring.
    pub count: u64,
}

/// A site's change, or its plain value where it was not seen before.
#[derive(Debug, Clone, Copy)]
struct SiteChange {
    by: f64,
    weight: f64,
    variance: f64,
    after: MeasureValue,
}

/// The effect of a trial; the error says in words what is missing. `margin`: how much worse is too bad, above 0.
/// `waits`: whether to wait for sites outside the ring that were seen before but have not reported since.
pub(super) fn effect(
    measure: CanaryMeasure,
    trial: &CanaryTrial,
    margin: f64,
    waits: bool,
) -> Result<RingEffect, &'static str> {
    let stable = trial.others.iter().map(|pair| &pair.after).chain(before(&trial.ring)).chain(before(&trial.others));
    let stable = MeasureSpread::of(measure, stable, margin);
    let canary = MeasureSpread::of(measure, trial.ring.iter().map(|pair| &pair.after), margin);
    let canary = canary.since(measure, stable, margin);
    let (ring, ring_after) = changes(measure, &trial.ring, stable, canary);
    let (others, others_after) = changes(measure, &trial.others, stable, stable);
    if ring_after.is_empty() {
        return Err(match measure {
            CanaryMeasure::Agreement => "no confident image of the ring has a verdict yet",
            _ => "the ring has recognized no image with it yet",
        });
    }
    let by_hours = by_hours(measure, trial, stable);
    let wander = |least: f64, others: &[SiteChange]| {
        let prior = (least * margin).powi(2).max(by_hours);
        let (seen, sites) = between_sites(others);
        let ring = (PRIOR_SITES * prior + sites * seen * trial.longer.max(1.0)) / (PRIOR_SITES + sites);
        let other = (PRIOR_SITES * prior + sites * seen) / (PRIOR_SITES + sites);
        (ring, other)
    };
    let found = |ring: &[SiteChange], others: &[SiteChange], least: f64| {
        let (wander, elsewhere) = wander(least, others);
        let (by, variance, canary) = together(ring, wander);
        let (other_by, other_variance, stable) =
            if others.is_empty() { (0.0, 0.0, None) } else { together(others, elsewhere) };
        RingEffect {
            canary: canary.unwrap_or(0.0),
            stable,
            better: sign(measure) * (by - other_by),
            variance: variance + other_variance,
            count: ring.iter().map(|change| change.after.count as u64).sum(),
        }
    };
    if !ring.is_empty() && !others.is_empty() {
        return Ok(found(&ring, &others, LEAST_WANDER));
    }
    if waits && others_after.is_empty() && trial.others.iter().any(|pair| !pair.before.is_empty()) {
        return Err("the other sites have not reported since it began");
    }
    if !others_after.is_empty() {
        return Ok(found(&ring_after, &others_after, LEAST_DIFFERENT));
    }
    match ring.is_empty() {
        false => Ok(found(&ring, &[], LEAST_WANDER)),
        true => Err("there is nothing to compare with: no other sites, and none of the ring reported before"),
    }
}

fn before(pairs: &[BeforeAfter]) -> impl Iterator<Item = &EvidenceCell> + Clone {
    pairs.iter().flat_map(|pair| &pair.before)
}

/// Changes of sites that were seen before and since, and values of all that were seen since.
fn changes(
    measure: CanaryMeasure,
    pairs: &[BeforeAfter],
    stable: MeasureSpread,
    since: MeasureSpread,
) -> (Vec<SiteChange>, Vec<SiteChange>) {
    let (mut changes, mut plain) = (Vec::new(), Vec::new());
    for pair in pairs {
        let Some(after) = read_value(measure, &pair.after, since) else { continue };
        plain.push(SiteChange { by: after.mean, weight: after.count, variance: after.variance, after });
        if let Some(before) = read_value(measure, &sum(&pair.before), stable) {
            changes.push(SiteChange {
                by: after.mean - before.mean,
                weight: 1.0 / (1.0 / before.count + 1.0 / after.count),
                variance: before.variance + after.variance,
                after,
            });
        }
    }
    (changes, plain)
}

/// Mean change of sites that wander, its variance, and the mean since.
fn together(changes: &[SiteChange], wander: f64) -> (f64, f64, Option<f64>) {
    let all: f64 = changes.iter().map(|change| change.weight).sum();
    let sum = |of: &dyn Fn(f64, &SiteChange) -> f64| {
        changes.iter().map(|change| of(change.weight / all, change)).sum::<f64>()
    };
    let count: f64 = changes.iter().map(|change| change.after.count).sum();
    let since = changes.iter().map(|change| change.after.mean * change.after.count / count).sum();
    (
        sum(&|share, change| share * change.by),
        sum(&|share, change| share * share * (change.variance + wander)),
        (!changes.is_empty()).then_some(since),
    )
}

/// Variance between sites beyond what their images explain, by the method of moments, and the number of sites it rests
/// on.
fn between_sites(changes: &[SiteChange]) -> (f64, f64) {
    let all: f64 = changes.iter().map(|change| change.weight).sum();
    let shares = || changes.iter().map(|change| (change.weight / all, change));
    let free = 1.0 - shares().map(|(share, _)| share * share).sum::<f64>();
    if changes.len() < 2 || free <= 1e-9 {
        return (0.0, 0.0);
    }
    let mean: f64 = shares().map(|(share, change)| share * change.by).sum();
    let squares: f64 = shares().map(|(share, change)| share * (change.by - mean).powi(2)).sum();
    let explained: f64 = shares().map(|(share, change)| share * (1.0 - share) * change.variance).sum();
    (((squares - explained) / free).max(0.0), free / (1.0 - free))
}

/// Variance by which a site's change wanders, from earlier time slots.
fn by_hours(measure: CanaryMeasure, trial: &CanaryTrial, stable: MeasureSpread) -> f64 {
    let sites: Vec<&[EvidenceCell]> =
        trial.ring.iter().chain(&trial.others).map(|pair| pair.before.as_slice()).collect();
    let longest = sites.iter().map(|slots| slots.len()).max().unwrap_or(0);
    let one = between_slots(measure, &sites, 1, stable);
    let lengths = std::iter::successors(Some(2), |length| Some(length * 2));
    let lengths = lengths.take_while(|length| longest / length >= LEAST_BATCHES);
    let batches = lengths.map(|length| length as f64 * between_slots(measure, &sites, length, stable));
    let all = batches.fold(one, f64::max);
    let (before, since) = stretches(measure, &trial.ring, stable);
    // A mean wanders no more than the values it is of.
    (all / since).min(one) + (all / before).min(one)
}

/// Variance between a site's slots beyond what their images explain, with `length` slots combined.
fn between_slots(measure: CanaryMeasure, sites: &[&[EvidenceCell]], length: usize, stable: MeasureSpread) -> f64 {
    let (mut squares, mut explained, mut free) = (0.0, 0.0, 0.0);
    for slots in sites {
        let batches = slots.chunks_exact(length).filter_map(|slots| read_value(measure, &sum(slots), stable));
        let batches: Vec<MeasureValue> = batches.collect();
        let all: f64 = batches.iter().map(|batch| batch.count).sum();
        let mean = batches.iter().map(|batch| batch.mean * batch.count / all).sum::<f64>();
        for batch in batches {
            let weight = batch.count * (1.0 - batch.count / all);
            squares += batch.count * (batch.mean - mean).powi(2);
            explained += weight * batch.variance;
            free += weight;
        }
    }
    if free > 0.0 { ((squares - explained) / free).max(0.0) } else { 0.0 }
}

/// Mean number of slots in which a site of the ring was seen before, and since; at least 1 each.
fn stretches(measure: CanaryMeasure, ring: &[BeforeAfter], stable: MeasureSpread) -> (f64, f64) {
    let counts = |of: &dyn Fn(&BeforeAfter) -> EvidenceCell| -> f64 {
        ring.iter().filter_map(|pair| read_value(measure, &of(pair), stable)).map(|value| value.count).sum()
    };
    let (before, since) = (counts(&|pair| sum(&pair.before)), counts(&|pair| pair.after));
    let slots = ring.iter().map(|pair| pair.before.len()).sum::<usize>() as f64;
    let sites = ring.iter().filter(|pair| !pair.before.is_empty()).count().max(1) as f64;
    if before > 0.0 { ((slots / sites).max(1.0), (since / sites / (before / slots)).max(1.0)) } else { (1.0, 1.0) }
}

fn sum(cells: &[EvidenceCell]) -> EvidenceCell {
    let mut all = EvidenceCell::default();
    cells.iter().for_each(|cell| all.add(cell));
    all
}
