//! Chooses the sites that try a release, and the orders to give next. Pure.

use std::collections::{BTreeMap, BTreeSet};

use releases::compatibility::{self, MachineProfile};
use releases::stage;
use schemas::{FaultNote, ModelName, Order, Release, ReleaseId, Rollout, SiteName, Swap, TaskId};

use crate::settings::RingSettings;

/// Workers by site, each with its latest report.
pub(crate) type SiteWorkers<'a> = BTreeMap<&'a SiteName, Vec<&'a Swap>>;

/// An order is renewed after this many milliseconds: half of its validity.
const RENEW_AFTER_MS: u64 = 15 * 24 * 3_600_000;
/// An order that was not followed is repeated after this many milliseconds, as the package may be gone from the bucket.
const REPEAT_AFTER_MS: u64 = 120_000;
/// A site that has not followed an order for this many milliseconds is considered away and delays nobody.
const AWAY_AFTER_MS: u64 = 600_000;

/// Drops the verifiers, unless they run a release of this model or a person pinned one for them: a cloud model may have
/// the same name as a site model.
pub(crate) fn relevant_sites<'a>(mut sites: SiteWorkers<'a>, rollout: &Rollout) -> SiteWorkers<'a> {
    let cloud = SiteName::cloud();
    let of_model = |swap: &&Swap| {
        let before = rollout.previous.iter().any(|previous| previous.release == swap.release);
        before || stage::stage_of(rollout, &swap.release).is_some()
    };
    let belong = sites.get(&cloud).is_some_and(|workers| workers.iter().any(of_model));
    if !belong && !rollout.pins.contains_key(&cloud) {
        sites.retain(|site, _| **site != cloud);
    }
    sites
}

/// Why a site cannot run a release, from the first of its workers that cannot; `None` if it can.
pub(crate) fn site_incompatibility(release: &Release, workers: &[&Swap]) -> Option<FaultNote> {
    workers.iter().find_map(|swap| {
        // A release that a worker already runs is compatible.
        if swap.release == release.release {
            return None;
        }
        let machine =
            MachineProfile { runtime: swap.runtime.clone(), memory_free_mib: swap.memory_free_mib, replicas: 1 };
        compatibility::incompatibility(&release.needs, &machine)
    })
}

/// Sites of the first `step + 1` rings that can run a release and are not pinned, sorted; and those that cannot, with
/// the reason.
pub(crate) fn ring(
    rings: &[RingSettings],
    step: u32,
    rollout: &Rollout,
    release: &Release,
    sites: &SiteWorkers<'_>,
) -> (Vec<SiteName>, Vec<(SiteName, FaultNote)>) {
    let free: Vec<&SiteName> = sites.keys().copied().filter(|site| !rollout.pins.contains_key(*site)).collect();
    let mut chosen = BTreeSet::new();
    for ring in rings.iter().take(step as usize + 1) {
        let labelled = |site: &SiteName| {
            let workers = sites.get(site).into_iter().flatten();
            workers.flat_map(|swap| &swap.site_labels).any(|label| ring.labels.contains(label))
        };
        chosen.extend(free.iter().copied().filter(|site| ring.sites.contains(site) || labelled(site)));
        if let Some(share) = ring.share_ratio {
            let mut drawn = free.clone();
            drawn.sort_by_key(|site| site_hash_fraction(&rollout.model, &release.release, site));
            let count = (share * free.len() as f64).ceil() as usize;
            chosen.extend(drawn.into_iter().take(count));
        }
    }
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for site in chosen {
        match site_incompatibility(release, sites.get(site).map_or(&[][..], Vec::as_slice)) {
            None => able.push(site.clone()),
            Some(fault) => unable.push((site.clone(), fault)),
        }
    }
    (able, unable)
}

/// A hash that orders sites differently for each release, so that it is not always the same sites that try.
fn site_hash_fraction(model: &ModelName, release: &ReleaseId, site: &SiteName) -> TaskId {
    TaskId::from_name(&format!("ring/{model}/{release}/{site}"))
}

/// Sites that cannot run their release, in words; `None` if all can.
pub(crate) fn blocked_sites(rollout: &Rollout, sites: &SiteWorkers<'_>) -> Option<String> {
    let words = |(site, workers): (&&SiteName, &Vec<&Swap>)| {
        let release = stage::order_for_site(rollout, site).release;
        let fault = site_incompatibility(&release, workers)?;
        Some(format!("{site} cannot run {}: {}", release.release.short(), fault.reason))
    };
    let all: Vec<String> = sites.iter().filter_map(words).collect();
    let more = all.len().saturating_sub(3);
    let shown = all.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    (!all.is_empty()).then(|| if more > 0 { format!("{shown}; and {more} others") } else { shown })
}

/// A site's latest order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StandingOrder {
    /// The ordered release.
    pub release: ReleaseId,
    /// When it was given, milliseconds since the epoch.
    pub at_ms: u64,
}

/// The orders to give now, each with whether its package must be sent. At most `batch` sites at a time move to the
/// stable release; the canary's ring and withdrawals are not limited.
pub(crate) fn due_orders(
    rollout: &Rollout,
    sites: &SiteWorkers<'_>,
    given: &BTreeMap<SiteName, StandingOrder>,
    batch: usize,
    now_ms: u64,
) -> Vec<(Order, bool)> {
    let runs = |site: &SiteName, release: &ReleaseId| {
        let workers = sites.get(site).map_or(&[][..], Vec::as_slice);
        !workers.is_empty() && workers.iter().all(|swap| swap.release == *release)
    };
    let on_its_way = |site: &SiteName| {
        given.get(site).is_some_and(|given| {
            given.release == rollout.stable.release
                && !runs(site, &given.release)
                && now_ms.saturating_sub(given.at_ms) < AWAY_AFTER_MS
        })
    };
    let mut under_way = sites.keys().filter(|site| on_its_way(site)).count();
    let mut orders = Vec::new();
    for (site, workers) in sites {
        let order = stage::order_for_site(rollout, site);
        let wanted = &order.release.release;
        let there = runs(site, wanted);
        let (is_ordered, given_at_ms) = match given.get(*site) {
            Some(given) => (given.release == *wanted, given.at_ms),
            None => (false, 0),
        };
        // Orders are valid for a month: a site that returns after weeks finds one that still is.
        let renewed = is_ordered && given_at_ms > 0 && now_ms.saturating_sub(given_at_ms) >= RENEW_AFTER_MS;
        let due = if renewed {
            true
        } else if is_ordered {
            // Refused for good: nothing changes until there is another decision.
            let refused = workers.iter().flat_map(|swap| &swap.refused).find(|refused| refused.release == *wanted);
            let for_good = refused.is_some_and(|refused| !refused.fault.is_passing());
            !there && !for_good && now_ms.saturating_sub(given_at_ms) >= REPEAT_AFTER_MS
        } else {
            true
        };
        if !due || site_incompatibility(&order.release, workers).is_some() {
            continue;
        }
        let is_withdrawn = workers.iter().any(|swap| rollout.withdrawn.contains(&swap.release));
        let waits = order.stage == schemas::ReleaseStage::Stable && !there && !is_ordered && !is_withdrawn;
        if waits && under_way >= batch {
            continue;
        }
        under_way += usize::from(waits);
        orders.push((order, !there));
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;
    use releases::stage::{DecisionContext, canary, candidate, first, stable, withdraw};
    use schemas::{DecisionOrigin, FaultKind, MachineRequirements, RefusedRelease};

    fn release(number: u8) -> Release {
        Release {
            release: ReleaseId::from_sha256([number; 32]),
            parent: None,
            origin: "imported".into(),
            package: Vec::new(),
            needs: MachineRequirements { opset: 17, domains: Vec::new(), runtime: "1.31.1".into(), memory_mib: 10 },
            public: None,
            public_change_interval: None,
        }
    }

    fn context() -> DecisionContext {
        DecisionContext::new(DecisionOrigin::Hand, "because", 5)
    }

    fn swap(site: &str, runs: u8) -> Swap {
        Swap {
            site: site.parse().unwrap(),
            worker: "host-1".into(),
            model: "fish".parse().unwrap(),
            release: ReleaseId::from_sha256([runs; 32]),
            since_ms: 0,
            order: 0,
            refused: Vec::new(),
            runtime: "1.31.1".into(),
            memory_free_mib: Some(1000),
            memory_mib: 100,
            site_labels: Vec::new(),
            slot_ms: 0,
            slot_length_ms: 600_000,
            said_at_ms: 0,
            counts: Vec::new(),
            left: false,
            agreements: Vec::new(),
        }
    }

    fn sites(swaps: &[Swap]) -> SiteWorkers<'_> {
        let mut sites = SiteWorkers::new();
        for swap in swaps {
            sites.entry(&swap.site).or_default().push(swap);
        }
        sites
    }

    fn fleet(count: usize) -> Vec<Swap> {
        (0..count).map(|number| swap(&format!("site-{number:02}"), 0)).collect()
    }

    fn begun() -> Rollout {
        first("fish".parse().unwrap(), release(0), context())
    }

    fn names(orders: &[(Order, bool)]) -> Vec<String> {
        orders.iter().map(|(order, _)| format!("{}:{}", order.site, &order.release.release.as_str()[..2])).collect()
    }

    #[test]
    fn a_ring_is_chosen_by_name_label_or_share_and_grows() {
        let mut swaps = fleet(20);
        swaps[3].site_labels = vec!["harbour".into()];
        let rings = [
            RingSettings {
                sites: vec!["site-07".parse().unwrap(), "absent".parse().unwrap()],
                ..RingSettings::default()
            },
            RingSettings { labels: vec!["harbour".into()], ..RingSettings::default() },
            RingSettings { share_ratio: Some(0.3), ..RingSettings::default() },
        ];
        let at = |step| ring(&rings, step, &begun(), &release(1), &sites(&swaps)).0;
        assert_eq!(at(0), ["site-07".parse().unwrap()]);
        assert_eq!(at(1), ["site-03".parse().unwrap(), "site-07".parse().unwrap()]);
        let all = at(2);
        assert!((6..=8).contains(&all.len()) && at(1).iter().all(|site| all.contains(site)), "{all:?}");
        assert_eq!(at(9), all);
    }

    #[test]
    fn a_site_that_cannot_run_a_release_is_left_out_with_the_reason() {
        let mut swaps = fleet(2);
        swaps[1].memory_free_mib = Some(3);
        let all = [RingSettings { share_ratio: Some(1.0), ..RingSettings::default() }];
        let (able, unable) = ring(&all, 0, &begun(), &release(1), &sites(&swaps));
        assert_eq!((able.len(), unable.len(), unable[0].1.kind.known()), (1, 1, Some(FaultKind::MemoryShort)));
        let moved = stable(&begun(), release(1), context()).unwrap();
        assert_eq!(names(&due_orders(&moved, &sites(&swaps), &BTreeMap::new(), 10, 0)), ["site-00:01"]);
        let words = blocked_sites(&moved, &sites(&swaps)).unwrap();
        assert!(words.starts_with("site-01 cannot run 010101010101"), "{words}");
        assert_eq!(blocked_sites(&begun(), &sites(&swaps)), None);
    }

    #[test]
    fn verifiers_of_another_model_of_the_same_name_are_left_alone() {
        let mut swaps = fleet(2);
        swaps.push(Swap { site: SiteName::cloud(), ..swap("x", 9) });
        assert_eq!(relevant_sites(sites(&swaps), &begun()).len(), 2);
        let pinned = stage::pin(&begun(), SiteName::cloud(), release(1), context());
        assert_eq!(relevant_sites(sites(&swaps), &pinned).len(), 3);
        swaps[2].release = ReleaseId::from_sha256([0; 32]);
        assert_eq!(relevant_sites(sites(&swaps), &begun()).len(), 3, "they run the stable release");
    }

    #[test]
    fn sites_move_in_batches_and_absent_ones_delay_nobody_for_long() {
        let swaps = fleet(7);
        let moved = stable(&begun(), release(1), context()).unwrap();
        let mut given = BTreeMap::new();
        let give = |given: &mut BTreeMap<SiteName, StandingOrder>, swaps: &[Swap], now_ms: u64| {
            let orders = due_orders(&moved, &sites(swaps), given, 3, now_ms);
            for (order, _) in &orders {
                given.insert(
                    order.site.clone(),
                    StandingOrder { release: order.release.release.clone(), at_ms: now_ms },
                );
            }
            orders.len()
        };
        assert_eq!(give(&mut given, &swaps, 0), 3);
        assert_eq!(give(&mut given, &swaps, 10), 0, "three are in progress");
        let mut swaps = swaps;
        swaps[0].release = ReleaseId::from_sha256([1; 32]);
        assert_eq!(give(&mut given, &swaps, 20), 1);
        assert_eq!(give(&mut given, &swaps, REPEAT_AFTER_MS), 2, "repeated for those that did not follow");
        assert_eq!(give(&mut given, &swaps, REPEAT_AFTER_MS + AWAY_AFTER_MS + 1), 6, "the others are away or done");
    }

    #[test]
    fn a_ring_that_refused_is_ordered_back_on_withdrawal() {
        let mut swaps = fleet(3);
        let tried = canary(
            &candidate(&begun(), release(1), context()).unwrap(),
            &release(1).release,
            0,
            vec!["site-01".parse().unwrap()],
            context(),
        )
        .unwrap();
        let stay = StandingOrder { release: release(0).release, at_ms: 0 };
        let mut given: BTreeMap<SiteName, StandingOrder> =
            swaps.iter().map(|swap| (swap.site.clone(), stay.clone())).collect();
        let first = due_orders(&tried, &sites(&swaps), &given, 10, 5);
        assert_eq!(names(&first), ["site-01:01"]);
        assert!(first[0].1, "with its package");
        given.insert("site-01".parse().unwrap(), StandingOrder { release: release(1).release, at_ms: 5 });
        let fault = FaultNote::new("score_not_finite", "no number", "none");
        swaps[1].refused = vec![RefusedRelease { release: release(1).release, fault }];
        assert!(due_orders(&tried, &sites(&swaps), &given, 10, 10 * REPEAT_AFTER_MS).is_empty(), "refused for good");
        let back = withdraw(&tried, &release(1).release, context()).unwrap();
        let back = due_orders(&back, &sites(&swaps), &given, 10, 6);
        assert_eq!((names(&back), back[0].1), (vec!["site-01:00".to_owned()], false));
    }
}
