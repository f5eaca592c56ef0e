//! What is put together of many messages: reports of sites about releases, rounds and updates. One of them is bent.

use aggregator::round::RoundTracker;
use bend::{bend_all, corpus, turns};
use releaser::ReleaseEvidence;
use releases::stage;
use schemas::{Canary, ReleaseId, Rollout, Round, SiteName, Swap, Update, decode, encode};

fn all<M: schemas::Message>() -> Vec<M> {
    corpus("fixtures/wire", &[".msgpack"], usize::MAX).iter().filter_map(|bytes| decode(bytes).ok()).collect()
}

#[test]
fn reports_that_were_bent_are_added_up_or_passed_over() {
    bend::limit_memory();
    let (swaps, rollout) = (all::<Swap>(), all::<Rollout>().remove(0));
    let now_ms = swaps.iter().map(|swap| swap.slot_ms + swap.slot_length_ms).max().unwrap();
    let reports: Vec<Vec<u8>> = swaps.iter().map(|swap| encode(swap).unwrap()).collect();
    bend_all("reports of releases", &reports, turns() / 4, |bytes| {
        let Ok(bent) = decode::<Swap>(bytes) else { return 1 };
        let mut evidence = ReleaseEvidence::of(bent.model.clone());
        // Twice under another worker, and beside what is whole: sums run over where there is more than one.
        let again = Swap { worker: format!("{}-2", bent.worker), ..bent.clone() };
        let cloud = Swap { site: SiteName::cloud(), ..bent.clone() };
        for swap in swaps.iter().cloned().chain([bent.clone(), again, cloud]) {
            evidence.add_report(swap, now_ms);
        }
        let ring = vec![bent.site.clone()];
        let canary = Canary {
            release: schemas::Release { release: bent.release.clone(), ..rollout.stable.clone() },
            ..rollout.canary.clone().unwrap_or_else(|| Canary {
                release: rollout.stable.clone(),
                step: 0,
                ring: ring.clone(),
                since_ms: 0,
            })
        };
        for stable in [&bent.release, &rollout.stable.release] {
            let trial = evidence.trial(
                &Canary { ring: ring.clone(), since_ms: bent.since_ms, ..canary.clone() },
                stable,
                now_ms,
            );
            let ruling = releaser::judge_canary(&trial, &Default::default());
            drop(ruling);
        }
        let _sites = evidence.sites(now_ms).len();
        5
    });
}

#[test]
fn rounds_and_updates_that_were_bent_are_taken_or_refused() {
    bend::limit_memory();
    let (rounds, updates) = (all::<Round>(), all::<Update>());
    let mut whole: Vec<Vec<u8>> = rounds.iter().map(|round| encode(round).unwrap()).collect();
    whole.extend(updates.iter().map(|update| encode(update).unwrap()));
    bend_all("rounds and updates", &whole, turns() / 2, |bytes| {
        let mut state = RoundTracker::new(ReleaseId::from_sha256([1; 32]));
        let bent = decode::<Round>(bytes).ok();
        for (at_ms, round) in (1..).zip(rounds.iter().chain(&bent)) {
            state.apply_event(round, at_ms);
        }
        for (sequence, update) in (1..).zip(updates.iter().cloned().chain(decode::<Update>(bytes).ok())) {
            if let aggregator::round::ArrivalAction::Count(arrived) = state.add_update(update, sequence, u64::MAX) {
                state.accept(*arrived);
            }
        }
        let _due = (state.close_reason(u64::MAX), state.last(), state.waiting_updates());
        2
    });
}

#[test]
fn decisions_that_were_bent_are_followed_by_others() {
    bend::limit_memory();
    let whole: Vec<Vec<u8>> = all::<Rollout>().iter().map(|rollout| encode(rollout).unwrap()).collect();
    let site: SiteName = "reef".parse().unwrap();
    bend_all("decisions about releases", &whole, turns() / 2, |bytes| {
        let Ok(bent) = decode::<Rollout>(bytes) else { return 1 };
        let said = || stage::DecisionContext::new(schemas::DecisionOrigin::Hand, "because", 5);
        let order = stage::order_for_site(&bent, &site);
        let next = stage::roll_back(&bent, said()).unwrap_or_else(|_| bent.clone());
        assert!(next.number >= bent.number && order.number == bent.number);
        let _others = (
            stage::withdraw(&bent, &bent.stable.release, said()).is_ok(),
            stage::candidate(&bent, bent.stable.clone(), said()).is_ok(),
            stage::pin(&bent, site.clone(), bent.stable.clone(), said()).number,
        );
        3
    });
}
