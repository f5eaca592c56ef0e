//! Combines what sites report about one model. Pure.
//!
//! A report is what one worker counted in one time slot. A later one about the same slot replaces it, so a repeated
//! report changes nothing and a lost one costs nothing: the next contains the same and more. Verdicts come only from
//! verifiers, as no site may report its own accuracy.
//!
//! What is known of a canary is kept apart by site and by time in [`CanaryTrial`]: sites differ (cameras, machines) and
//! hours differ (night, load), and only what is kept apart can be compared.

use std::collections::{BTreeMap, BTreeSet};

use schemas::swap::{Agreement, AgreementCount, MomentSums, ReleaseCounts, Swap};
use schemas::{Canary, FaultKind, FaultNote, ModelName, ReleaseId, SiteName};

/// Default length of a time slot, milliseconds.
pub const SLOT_MS: u64 = 600_000;
/// How long slots are kept, milliseconds: the day before a canary, and the day it may take.
pub const KEEP_MS: u64 = 48 * 3_600_000;
/// How much time before a canary it is compared with, milliseconds: a day, so that every hour is included.
pub const BEFORE_MS: u64 = 24 * 3_600_000;
/// A worker that has not reported for this long is gone, milliseconds.
pub const SILENT_MS: u64 = 300_000;
/// Most of anything that a worker may count in one slot.
const MAX_COUNT: u64 = 1 << 32;
/// Most workers of a site, and most reports of a site: 64 workers over two days of ten-minute slots.
const MAX_WORKERS: usize = 64;
const MAX_REPORTS: usize = 20_000;
/// Most releases that a worker counts in one slot, and most site-release pairs that a verifier judges in one.
const MAX_COUNTS: usize = 64;
const MAX_AGREEMENTS: usize = 20_000;

/// Everything sites and verifiers reported about a model in the last two days.
#[derive(Debug, Clone)]
pub struct ReleaseEvidence {
    model: ModelName,
    /// By start of the slot, then by site and worker.
    slots: BTreeMap<u64, BTreeMap<(SiteName, String), ReportSlot>>,
    /// The latest report of each worker, without counts.
    workers: BTreeMap<(SiteName, String), Swap>,
    /// Number of reports kept for each site.
    reports: BTreeMap<SiteName, usize>,
}

/// The part of a report that belongs to its slot.
#[derive(Debug, Clone)]
struct ReportSlot {
    length_ms: u64,
    said_at_ms: u64,
    release: ReleaseId,
    memory_mib: u64,
    counts: Vec<ReleaseCounts>,
    agreements: Vec<Agreement>,
}

/// Counts of a release at one site in some period.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvidenceCell {
    /// Images it recognized.
    pub images: u64,
    /// Images that the gate found doubtful.
    pub doubtful: u64,
    /// Valid images it failed on.
    pub faults: u64,
    /// Confidence of its answers, 0 to 1.
    pub confidence: MomentSums,
    /// Natural logarithm of the cost per image in milliseconds.
    pub ln_cost_ms: MomentSums,
    /// Verdicts on images it found doubtful.
    pub on_doubtful: AgreementCount,
    /// Verdicts on confident images, drawn at random.
    pub on_sampled: AgreementCount,
}

impl EvidenceCell {
    /// Adds a worker's counts.
    pub fn count(&mut self, counts: &ReleaseCounts) {
        self.images += counts.images;
        self.doubtful += counts.doubtful;
        self.faults += counts.faults;
        self.confidence.add_moments(&counts.confidence);
        self.ln_cost_ms.add_moments(&counts.ln_cost_ms);
    }

    /// Adds verdicts.
    pub fn agree(&mut self, agreement: &Agreement) {
        for (own, more) in [(&mut self.on_doubtful, agreement.doubtful), (&mut self.on_sampled, agreement.sampled)] {
            own.asked += more.asked;
            own.agreed += more.agreed;
        }
    }

    /// Adds another cell.
    pub fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.doubtful += other.doubtful;
        self.faults += other.faults;
        self.confidence.add_moments(&other.confidence);
        self.ln_cost_ms.add_moments(&other.ln_cost_ms);
        for (own, more) in [(&mut self.on_doubtful, other.on_doubtful), (&mut self.on_sampled, other.on_sampled)] {
            own.asked += more.asked;
            own.agreed += more.agreed;
        }
    }
}

/// One site before and during a canary.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BeforeAfter {
    /// Under the stable release before, one cell per slot: their differences show how much hours differ.
    pub before: Vec<EvidenceCell>,
    /// Since then: under the canary's release in the ring, under the stable one elsewhere.
    pub after: EvidenceCell,
}

/// Mean memory of the ring's workers, MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RingMemory {
    /// Under the stable release.
    pub before_mib: f64,
    /// Under the canary's release.
    pub after_mib: f64,
}

/// Everything known of a canary.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CanaryTrial {
    /// Number of sites in the ring.
    pub sites: usize,
    /// Those of them that reported.
    pub ring: Vec<BeforeAfter>,
    /// Sites outside the ring that run the stable release.
    pub others: Vec<BeforeAfter>,
    /// How long the canary has run, milliseconds.
    pub age_ms: u64,
    /// How many times longer the others' period since is than the ring's, at least 1: it begins with a full slot.
    pub longer: f64,
    /// Memory; absent until workers of the ring have reported it under both releases.
    pub memory: Option<RingMemory>,
    /// How often the release crashed a worker of the ring.
    pub crashes: u64,
    /// Why sites of the ring do not run it, one fault per site that refused.
    pub refused: Vec<FaultNote>,
}

impl ReleaseEvidence {
    /// No evidence yet about a model.
    pub fn of(model: ModelName) -> Self {
        Self { model, slots: BTreeMap::new(), workers: BTreeMap::new(), reports: BTreeMap::new() }
    }

    /// Takes a report; from workers of another model, only verifiers' agreements.
    ///
    /// Returns false, and ignores it, when its slot is older than [`KEEP_MS`] or in the future, or when its numbers are
    /// impossible: a wrong clock must not push out other reports, nor one number spoil every sum.
    pub fn add_report(&mut self, swap: Swap, now_ms: u64) -> bool {
        let oldest = now_ms.saturating_sub(KEEP_MS);
        let latest = now_ms.saturating_add(swap.slot_length_ms);
        // A report from the future would stay the latest one forever.
        if swap.slot_ms < oldest || swap.slot_ms > latest || swap.said_at_ms > latest || !can_be(&swap) {
            return false;
        }
        if self.slots.first_key_value().is_some_and(|(slot, _)| *slot < oldest) {
            self.slots = self.slots.split_off(&oldest);
            self.reports = BTreeMap::new();
            for (site, _) in self.slots.values().flat_map(BTreeMap::keys) {
                *self.reports.entry(site.clone()).or_default() += 1;
            }
            self.workers.retain(|_, swap| swap.said_at_ms >= oldest);
        }
        let own = swap.model == self.model;
        // Only verifiers report the accuracy of other sites.
        let agreements = if swap.site == SiteName::cloud() { swap.agreements.clone() } else { Vec::new() };
        if !own && agreements.is_empty() {
            return true;
        }
        let key = (swap.site.clone(), swap.worker.clone());
        let is_new = self.slots.get(&swap.slot_ms).is_none_or(|slots| !slots.contains_key(&key));
        if is_new && !self.is_within_limits(&swap) {
            return false;
        }
        let slot = ReportSlot {
            length_ms: swap.slot_length_ms,
            said_at_ms: swap.said_at_ms,
            release: swap.release.clone(),
            memory_mib: swap.memory_mib,
            counts: if own { swap.counts.clone() } else { Vec::new() },
            agreements,
        };
        if is_new {
            *self.reports.entry(swap.site.clone()).or_default() += 1;
        }
        let slots = self.slots.entry(swap.slot_ms).or_default();
        if slots.get(&key).is_none_or(|known| known.said_at_ms <= slot.said_at_ms) {
            slots.insert(key.clone(), slot);
        }
        if own && self.workers.get(&key).is_none_or(|known| known.said_at_ms <= swap.said_at_ms) {
            self.workers.insert(key, Swap { counts: Vec::new(), agreements: Vec::new(), ..swap });
        }
        true
    }

    /// Whether another report of a site's worker fits; sites choose their worker names and slots themselves.
    fn is_within_limits(&self, swap: &Swap) -> bool {
        let workers = self.workers.keys().filter(|(site, _)| *site == swap.site).count();
        let known = self.workers.contains_key(&(swap.site.clone(), swap.worker.clone()));
        (known || workers < MAX_WORKERS) && self.reports.get(&swap.site).copied().unwrap_or(0) < MAX_REPORTS
    }

    /// Recently seen workers by site, each with its latest report (release and since when, refusals, order, runtime,
    /// memory, labels) without counts.
    pub fn sites(&self, now_ms: u64) -> BTreeMap<&SiteName, Vec<&Swap>> {
        let mut sites: BTreeMap<&SiteName, Vec<&Swap>> = BTreeMap::new();
        for swap in self.workers.values().filter(|swap| is_current_report(swap, now_ms)) {
            sites.entry(&swap.site).or_default().push(swap);
        }
        sites
    }

    /// Everything known of a canary.
    pub fn trial(&self, canary: &Canary, stable: &ReleaseId, now_ms: u64) -> CanaryTrial {
        let ring: BTreeSet<&SiteName> = canary.ring.iter().collect();
        let release = &canary.release.release;
        let start = self.start(&ring, release, canary.since_ms);
        let mut sites: BTreeMap<&SiteName, (BTreeMap<u64, EvidenceCell>, EvidenceCell)> = BTreeMap::new();
        for (slot_ms, reports) in self.slots.range(start.saturating_sub(BEFORE_MS)..) {
            let mut cell = |site, of: &ReleaseId, length_ms: u64, add: &dyn Fn(&mut EvidenceCell)| {
                let since = slot_ms + length_ms > start;
                let (before, after) = match ring.contains(site) {
                    true => (of == stable && of != release, of == release && since),
                    false => (of == stable && !since, of == stable && since),
                };
                if before {
                    add(sites.entry(site).or_default().0.entry(*slot_ms).or_default());
                } else if after {
                    add(&mut sites.entry(site).or_default().1);
                }
            };
            for ((site, _), slot) in reports {
                // Only verifiers report the accuracy of other sites.
                let agreements = slot.agreements.iter().filter(|_| *site == SiteName::cloud());
                agreements
                    .for_each(|counts| cell(&counts.site, &counts.release, slot.length_ms, &|cell| cell.agree(counts)));
                slot.counts
                    .iter()
                    .for_each(|counts| cell(site, &counts.release, slot.length_ms, &|cell| cell.count(counts)));
            }
        }
        let mut trial = CanaryTrial {
            sites: ring.len(),
            age_ms: now_ms.saturating_sub(canary.since_ms),
            longer: longer(start, now_ms, self.length_ms()),
            memory: self.memory(&ring, stable, release, start),
            crashes: self.crashes(&ring, stable, canary, now_ms),
            refused: ring.iter().filter_map(|site| self.refused(site, canary)).collect(),
            ..CanaryTrial::default()
        };
        for (site, (before, after)) in sites {
            let pair = BeforeAfter { before: before.into_values().collect(), after };
            if ring.contains(site) { trial.ring.push(pair) } else { trial.others.push(pair) }
        }
        trial
    }

    /// When the first worker of the ring began to run the release, or when the ring got it if none has.
    fn start(&self, ring: &BTreeSet<&SiteName>, release: &ReleaseId, since_ms: u64) -> u64 {
        let runs = self.workers.values().filter(|swap| ring.contains(&swap.site) && swap.release == *release);
        runs.map(|swap| swap.since_ms.max(since_ms)).min().unwrap_or(since_ms)
    }

    /// Memory of a worker at the end of its last slot under each release, for sites that have had both.
    fn memory(
        &self,
        ring: &BTreeSet<&SiteName>,
        stable: &ReleaseId,
        release: &ReleaseId,
        start: u64,
    ) -> Option<RingMemory> {
        let last = |of: &ReleaseId| {
            let mut last: BTreeMap<&SiteName, BTreeMap<&str, u64>> = BTreeMap::new();
            for reports in self.slots.range(start.saturating_sub(BEFORE_MS)..).map(|(_, reports)| reports) {
                for ((site, worker), slot) in reports {
                    if ring.contains(site) && slot.release == *of {
                        last.entry(site).or_default().insert(worker, slot.memory_mib);
                    }
                }
            }
            last
        };
        let (before, after) = (last(stable), last(release));
        // As floats, because the sum of reported memory may overflow an integer if a worker lies.
        let mean = |workers: &BTreeMap<&str, u64>| {
            workers.values().map(|mib| *mib as f64).sum::<f64>() / workers.len().max(1) as f64
        };
        let both = after.iter().filter_map(|(site, after)| Some((mean(before.get(site)?), mean(after))));
        let sums = both.fold((0.0, 0.0, 0.0), |sums, (before, after)| (sums.0 + before, sums.1 + after, sums.2 + 1.0));
        let (before, after, count) = sums;
        (count > 0.0).then(|| RingMemory { before_mib: before / count, after_mib: after / count })
    }

    /// How often the release crashed a worker of the ring: as often as workers report it, or as workers vanished from
    /// sites that still report. Of the latter only those beyond what vanished elsewhere count, because restarting all
    /// sites ends workers too.
    fn crashes(&self, ring: &BTreeSet<&SiteName>, stable: &ReleaseId, canary: &Canary, now_ms: u64) -> u64 {
        let release = &canary.release.release;
        let all: BTreeSet<&SiteName> = self.workers.keys().map(|(site, _)| site).collect();
        let others = all.iter().filter(|site| !ring.contains(*site) && ***site != SiteName::cloud());
        let (sum, count) = others.fold((0, 0_u64), |(sum, count), site| {
            (sum + self.vanished(site, stable, canary.since_ms, now_ms), count + 1)
        });
        let elsewhere = if count > 0 { sum.div_ceil(count) } else { 0 };
        let of = |site: &&SiteName| {
            let vanished = self.vanished(site, release, canary.since_ms, now_ms).saturating_sub(elsewhere);
            // The successor of a crashed worker repeats its report.
            let alive = self.at(site).any(|swap| is_current_report(swap, now_ms));
            let refused =
                self.at(site).filter(|swap| is_current_report(swap, now_ms) || !alive).flat_map(|swap| &swap.refused);
            let reported = refused
                .filter(|refused| refused.release == *release && refused.fault.kind == FaultKind::ReleaseCrashed)
                .count();
            vanished.max(reported as u64)
        };
        ring.iter().map(of).sum()
    }

    /// Workers of a site that ran a release since then and are silent while the site still reports.
    fn vanished(&self, site: &SiteName, release: &ReleaseId, since_ms: u64, now_ms: u64) -> u64 {
        if !self.at(site).any(|swap| is_current_report(swap, now_ms)) {
            return 0;
        }
        let ran = self.at(site).filter(|swap| swap.release == *release && swap.said_at_ms >= since_ms);
        // A worker that stopped normally reported it.
        ran.filter(|swap| !swap.left && !is_current_report(swap, now_ms)).count() as u64
    }

    /// Why a site does not run a canary's release, if a worker refused it and none runs it.
    fn refused(&self, site: &SiteName, canary: &Canary) -> Option<FaultNote> {
        let release = &canary.release.release;
        let lately = || self.at(site).filter(|swap| swap.said_at_ms >= canary.since_ms);
        if lately().any(|swap| swap.release == *release) {
            return None;
        }
        let for_good = |fault: &FaultNote| !fault.is_passing();
        let refused = lately().flat_map(|swap| &swap.refused);
        let refused = refused.filter(|refused| refused.release == *release && for_good(&refused.fault));
        refused.map(|refused| refused.fault.clone()).last()
    }

    /// Length of a slot in milliseconds; the longest, where workers differ.
    fn length_ms(&self) -> u64 {
        self.workers.values().map(|swap| swap.slot_length_ms).max().unwrap_or(SLOT_MS).max(1)
    }

    fn at<'a>(&'a self, site: &'a SiteName) -> impl Iterator<Item = &'a Swap> + 'a {
        self.workers.values().filter(move |swap| swap.site == *site)
    }
}

/// Whether a report's numbers are possible.
fn can_be(swap: &Swap) -> bool {
    let few = |count: u64| count <= MAX_COUNT;
    let sums = |moments: &MomentSums| few(moments.count) && moments.sum.is_finite() && moments.squares.is_finite();
    let counted = |counts: &ReleaseCounts| {
        few(counts.images)
            && few(counts.faults)
            && counts.doubtful <= counts.images
            && sums(&counts.confidence)
            && sums(&counts.ln_cost_ms)
    };
    let agreed = |agreed: &AgreementCount| few(agreed.asked) && agreed.agreed <= agreed.asked;
    swap.slot_length_ms > 0
        && swap.slot_length_ms <= KEEP_MS
        && few(swap.memory_mib)
        && swap.counts.len() <= MAX_COUNTS
        && swap.agreements.len() <= MAX_AGREEMENTS
        && swap.counts.iter().all(counted)
        && swap.agreements.iter().all(|agreement| agreed(&agreement.doubtful) && agreed(&agreement.sampled))
}

fn is_current_report(swap: &Swap, now_ms: u64) -> bool {
    now_ms.saturating_sub(swap.said_at_ms) <= SILENT_MS
}

/// Ratio of the time since the start of the slot that contains `start` to the time since `start`.
fn longer(start: u64, now_ms: u64, length_ms: u64) -> f64 {
    let ring = now_ms.saturating_sub(start).max(1) as f64;
    (ring + (start % length_ms) as f64) / ring
}

#[cfg(test)]
mod tests {
    use schemas::{ModelName, RefusedRelease};

    use super::*;

    const NOW: u64 = 1000 * SLOT_MS;

    fn release(number: u8) -> ReleaseId {
        ReleaseId::from_sha256([number; 32])
    }

    fn swap(site: &str, worker: &str, of: u8, slot_ms: u64, images: u64) -> Swap {
        let site = if site == "cloud" { SiteName::cloud() } else { site.parse().unwrap() };
        Swap {
            site,
            worker: worker.into(),
            model: ModelName::from_name("m"),
            release: release(of),
            since_ms: slot_ms,
            order: 1,
            refused: Vec::new(),
            runtime: "1.23".into(),
            memory_free_mib: None,
            memory_mib: 100 + u64::from(of),
            site_labels: vec!["reef".into()],
            slot_ms,
            slot_length_ms: SLOT_MS,
            said_at_ms: slot_ms + SLOT_MS,
            counts: vec![ReleaseCounts { images, ..ReleaseCounts::for_release(release(of)) }],
            left: false,
            agreements: Vec::new(),
        }
    }

    fn canary(ring: &[&str], since_ms: u64) -> Canary {
        let release = schemas::Release {
            release: release(2),
            parent: None,
            origin: "round 1".into(),
            package: Vec::new(),
            needs: schemas::MachineRequirements::default(),
            public: None,
            public_change_interval: None,
        };
        Canary { release, step: 0, ring: ring.iter().map(|site| site.parse().unwrap()).collect(), since_ms }
    }

    fn seen(swaps: Vec<Swap>) -> ReleaseEvidence {
        let mut evidence = ReleaseEvidence::of(ModelName::from_name("m"));
        swaps.into_iter().for_each(|swap| assert!(evidence.add_report(swap, NOW)));
        evidence
    }

    fn images(pairs: &[BeforeAfter]) -> Vec<(u64, u64)> {
        pairs.iter().map(|pair| (pair.before.iter().map(|cell| cell.images).sum(), pair.after.images)).collect()
    }

    #[test]
    fn a_later_report_of_a_slot_replaces_an_earlier_one_in_any_order() {
        let (early, late) = (swap("b", "w", 1, NOW - SLOT_MS, 5), swap("b", "w", 1, NOW - SLOT_MS, 9));
        let early = Swap { said_at_ms: late.said_at_ms - 1, ..early };
        for swaps in [vec![early.clone(), late.clone(), late.clone()], vec![late.clone(), early.clone()]] {
            let trial = seen(swaps).trial(&canary(&["a"], NOW - SLOT_MS), &release(1), NOW);
            assert_eq!(images(&trial.others), [(0, 9)]);
        }
    }

    #[test]
    fn before_and_after_are_split_by_release_in_the_ring_and_by_time_elsewhere() {
        let since = NOW - 3 * SLOT_MS;
        let ago = |slots: u64| NOW - slots * SLOT_MS;
        let evidence = seen(vec![
            swap("a", "w", 1, ago(200), 1), // more than a day earlier
            swap("a", "w", 1, ago(5), 2),
            swap("a", "w", 1, ago(3), 4), // still on stable for a while
            Swap { since_ms: since, ..swap("a", "w", 2, ago(2), 8) },
            swap("b", "w", 1, ago(4), 16),
            swap("b", "v", 1, ago(3), 32),
            swap("b", "w", 1, ago(3), 64),
            swap("c", "w", 3, ago(2), 128), // is pinned to another release
        ]);
        let trial = evidence.trial(&canary(&["a"], since), &release(1), NOW);
        assert_eq!((images(&trial.ring), images(&trial.others)), (vec![(6, 8)], vec![(16, 96)]));
        assert_eq!(trial.ring[0].before.len(), 2, "one cell per slot");
        let memory = trial.memory.unwrap();
        assert_eq!((memory.before_mib, memory.after_mib), (101.0, 102.0));
        assert!((trial.longer - 1.0).abs() < 1e-9 && trial.age_ms == 3 * SLOT_MS, "{trial:?}");
    }

    #[test]
    fn the_others_period_begins_with_the_slot_in_which_the_ring_began() {
        let since = NOW - 3 * SLOT_MS - SLOT_MS / 2;
        let ring = Swap { since_ms: NOW - SLOT_MS / 2, ..swap("a", "w", 2, NOW - SLOT_MS, 8) };
        let others = (1..5).map(|ago| swap("b", "w", 1, NOW - ago * SLOT_MS, 10));
        let trial = seen(others.chain([ring]).collect()).trial(&canary(&["a"], since), &release(1), NOW);
        assert_eq!((images(&trial.others), trial.longer), (vec![(30, 10)], 2.0));
    }

    #[test]
    fn only_verifiers_report_agreement() {
        let agreed = AgreementCount { asked: 10, agreed: 9 };
        let agreement =
            Agreement { site: "a".parse().unwrap(), release: release(2), doubtful: agreed, sampled: agreed };
        for (site, asked) in [("cloud", 10), ("a", 0)] {
            let mut report = swap(site, "w", 2, NOW - SLOT_MS, 7);
            report.agreements = vec![agreement.clone()];
            let trial = seen(vec![report]).trial(&canary(&["a"], NOW - SLOT_MS), &release(1), NOW);
            assert_eq!(trial.ring[0].after.on_sampled.asked, asked);
            assert_eq!(trial.ring[0].after.images, if site == "cloud" { 0 } else { 7 });
        }
    }

    #[test]
    fn impossible_reports_are_ignored() {
        let mut evidence = ReleaseEvidence::of(ModelName::from_name("m"));
        let right = swap("a", "w", 1, NOW, 1);
        let mut not_finite = right.clone();
        not_finite.counts[0].ln_cost_ms.sum = f64::NAN;
        let mut too_many = right.clone();
        too_many.counts[0].doubtful = 2;
        let wrong = [
            Swap { slot_ms: NOW + 9 * SLOT_MS, ..right.clone() },
            Swap { slot_ms: NOW - KEEP_MS - 1, ..right.clone() },
            Swap { slot_length_ms: u64::MAX, ..right.clone() },
            Swap { said_at_ms: u64::MAX, ..right.clone() },
            Swap { memory_mib: u64::MAX, ..right.clone() },
            not_finite,
            too_many,
        ];
        assert!(wrong.into_iter().all(|swap| !evidence.add_report(swap, NOW)));
        assert!(evidence.add_report(right, NOW));
    }

    #[test]
    fn two_days_are_kept_and_a_silent_worker_is_gone() {
        let mut evidence = ReleaseEvidence::of(ModelName::from_name("m"));
        for slot in 0..1000 {
            assert!(evidence.add_report(swap("a", &format!("w-{}", slot / 500), 1, slot * SLOT_MS, 1), slot * SLOT_MS));
        }
        assert!(evidence.slots.len() as u64 <= KEEP_MS / SLOT_MS + 1 && evidence.workers.len() == 1);
        let (site, heard): (SiteName, u64) = ("a".parse().unwrap(), NOW + SILENT_MS);
        assert_eq!(evidence.sites(heard)[&site][0].site_labels, ["reef"]);
        assert!(evidence.sites(heard + 1).is_empty());
    }

    #[test]
    fn vanished_workers_are_crashes_unless_as_many_vanish_elsewhere() {
        let since = NOW - 10 * SLOT_MS;
        let ended = |site: &str, of: u8| {
            vec![swap(site, "w-1", of, NOW - 5 * SLOT_MS, 1), swap(site, "w-2", of, NOW - SLOT_MS, 1)]
        };
        let crashes = |swaps: Vec<Swap>| seen(swaps).trial(&canary(&["a"], since), &release(1), NOW).crashes;
        let lives = swap("b", "w", 1, NOW - SLOT_MS, 1);
        assert_eq!(crashes([ended("a", 2), vec![lives.clone()]].concat()), 1);
        assert_eq!(crashes([ended("a", 2), ended("b", 1)].concat()), 0, "all sites were restarted");
        assert_eq!(crashes(vec![swap("a", "w-1", 2, NOW - 5 * SLOT_MS, 1)]), 0, "its link may be down");
        let mut fewer = [ended("a", 2), vec![lives.clone()]].concat();
        fewer[0].left = true;
        assert_eq!(crashes(fewer), 0, "a normal stop is not a crash");
        let fault = FaultNote::new(FaultKind::ReleaseCrashed, "it ended the worker", "");
        let mut says = ended("a", 2);
        says[0].refused = vec![RefusedRelease { release: release(2), fault: fault.clone() }];
        says[1].refused = vec![RefusedRelease { release: release(2), fault }; 2];
        assert_eq!(crashes(says), 2, "repeated reports are not counted again");
    }

    #[test]
    fn a_site_has_refused_when_none_of_its_workers_runs_it() {
        let since = NOW - 2 * SLOT_MS;
        let fault = FaultNote::new("release_too_new", "its opset is 99", "");
        let refuses = |site: &str, worker: &str| Swap {
            refused: vec![RefusedRelease { release: release(2), fault: fault.clone() }],
            ..swap(site, worker, 1, NOW - SLOT_MS, 1)
        };
        let runs = swap("b", "w-2", 2, NOW - SLOT_MS, 1);
        let trial = seen(vec![refuses("a", "w"), refuses("b", "w-1"), runs, refuses("c", "w")]);
        let trial = trial.trial(&canary(&["a", "b"], since), &release(1), NOW);
        assert_eq!((trial.refused, trial.sites), (vec![fault], 2));
    }
}
