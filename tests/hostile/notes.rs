//! Notes of the ledger: whatever one of a place's buckets may hold under the keys that workers read.

use aggregator::check::{self, CheckSettings};
use bend::{bend_all, corpus, texts, turns};
use courier::budget::{Budget, BudgetSettings, BudgetUsage};
use offload::calibration::CalibrationEvidence;
use offload::{EffectiveSettings, Policy};
use recognizer::signals::read_policy;
use releases::confinement::Confinement;
use releases::trial::{ReleaseProbe, TrialResult, compare};
use replay::backtest::BacktestCandidate;
use schemas::{FaultNote, Prediction, RankedClass, ReleaseId, Update, decode};
use serving::scale::decide::{QueueObservation, ScaleState, decide_replicas};
use serving::scale::{ReplicaRequest, ScaleSettings};
use trainer::collector::ReadPositions;

#[test]
fn a_note_of_the_policy_that_was_bent_is_one_that_settings_may_have() {
    bend::limit_memory();
    let notes = texts(["null", "{\"name\":\"cloud-only\"}", "{\"name\":\"earliest-finish\"}"]);
    let settings = Policy::default();
    bend_all("notes of the policy", &notes, turns(), |bytes| {
        if let Ok(policy) = read_policy(&String::from_utf8_lossy(bytes), &settings) {
            assert_eq!(policy.check(), Ok(()));
        }
        1
    });
}

#[test]
fn a_note_of_replicas_that_was_bent_starts_no_more_than_may_run() {
    bend::limit_memory();
    let notes = texts(["null", "{\"fixed\":3}", "{\"between\":[1,4]}"]);
    let seen = QueueObservation { now_s: 10.0, waiting: 1e6, cost_s: 0.01, replicas: 3, parallelism: 2, finished: 7 };
    bend_all("notes of replicas", &notes, turns(), |bytes| {
        match serde_json::from_slice::<Option<ReplicaRequest>>(bytes) {
            Ok(Some(ReplicaRequest::Fixed(replicas))) => {
                assert!((1..=serving::scale::replica_request::MAX_REPLICAS).contains(&replicas))
            }
            Ok(Some(ReplicaRequest::Between(least, most))) => {
                let settings = ScaleSettings { min_replicas: least, max_replicas: most, ..ScaleSettings::default() };
                let (_, wish) = decide_replicas(&settings, &ScaleState::default(), &seen);
                assert!((1..=serving::scale::replica_request::MAX_REPLICAS).contains(&wish.replicas), "{wish:?}");
            }
            Ok(None) | Err(_) => {}
        }
        1
    });
}

#[test]
fn evidence_that_was_bent_is_believed_or_refused() {
    bend::limit_memory();
    let mut evidence = CalibrationEvidence::default();
    let opinion = Prediction {
        label: "cat".into(),
        confidence: 0.7,
        top: [("cat", 0.7), ("dog", 0.2)]
            .map(|(label, confidence)| RankedClass { label: label.into(), confidence })
            .into(),
        labels: None,
        objects: None,
        release: ReleaseId::from_sha256([1; 32]),
        temperature: Some(1.0),
        novelty: None,
    };
    for number in 0..40 {
        evidence.add_answer("cat", 0.7);
        let agrees = number % 3 != 0;
        evidence.add_verdict(&opinion, if agrees { "cat" } else { "dog" }, agrees, 4, 1.0);
    }
    bend_all("notes of evidence", &[serde_json::to_vec(&evidence).unwrap()], turns() / 10, |bytes| {
        if let Ok(mut bent) = serde_json::from_slice::<CalibrationEvidence>(bytes) {
            let belief = bent.calibration(0.9);
            assert!(!belief.pooled.is_nan() && belief.thresholds.values().all(|ratio| !ratio.is_nan()), "{belief:?}");
            assert!(belief.accuracy_at_least.is_finite() && belief.stays_ratio.is_finite(), "{belief:?}");
            assert!(belief.temperature.is_none_or(|temperature| temperature > 0.0), "{belief:?}");
            let _faded = bent.decayed();
            bent.add(&evidence);
        }
        1
    });
}

#[test]
fn settings_in_force_that_were_bent_are_tried_or_refused() {
    bend::limit_memory();
    let candidate = BacktestCandidate { name: "bent".into(), says: serde_json::json!({ "policy": { "hold_ms": 5 } }) };
    bend_all(
        "notes of settings in force",
        &[serde_json::to_vec(&EffectiveSettings::default()).unwrap()],
        turns() / 4,
        |bytes| {
            if let Ok(bent) = serde_json::from_slice::<EffectiveSettings>(bytes) {
                let _gate = bent.gate();
                let _tried = candidate.apply_to(&bent).is_ok();
            }
            let over = serde_json::from_slice(bytes).map(|says| BacktestCandidate { name: "bent".into(), says });
            let _over = over.map(|candidate| candidate.apply_to(&EffectiveSettings::default()).is_ok());
            2
        },
    );
}

#[test]
fn a_note_of_the_budget_that_was_bent_is_counted_from() {
    bend::limit_memory();
    let settings = BudgetSettings { max_bytes_per_day: Some(1000), max_bytes_per_s: Some(100) };
    bend_all("notes of the budget", &texts(["{\"day\":20000,\"bytes\":700}"]), turns(), |bytes| {
        let mut budget = Budget::new(settings.clone(), serde_json::from_slice::<BudgetUsage>(bytes).ok());
        let now_ms = 20_000 * 24 * 3_600_000;
        budget.allows(10, now_ms, 1.0);
        budget.spend(u64::MAX, now_ms);
        assert!(budget.left_bytes(now_ms).is_some_and(|left| left <= 1000));
        1
    });
}

#[test]
fn notes_of_keys_and_marks_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    let update: Update = corpus("fixtures/wire", &["update-signed.v1.msgpack"], usize::MAX)
        .iter()
        .find_map(|bytes| decode(bytes).ok())
        .unwrap();
    let key = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    let notes = [format!("{{\"{}\":\"{key}\",\"reef\":\"{key}\"}}", update.site)];
    bend_all("notes of the sites' keys", &texts(notes), turns() / 2, |bytes| {
        if let Ok(keys) = serde_json::from_slice(bytes) {
            let settings = CheckSettings { keys, ..CheckSettings::default() };
            let is_signed = check::signature(&update, &settings).is_ok();
            assert!(!is_signed || settings.keys.is_empty(), "nobody signed it with {:?}", settings.keys);
        }
        1
    });
    bend_all("notes of how far was trained", &texts(["{\"answers\":7,\"labels\":9}", "17"]), turns(), |bytes| {
        let _read = (
            serde_json::from_slice::<ReadPositions>(bytes).is_ok(),
            String::from_utf8_lossy(bytes).parse::<u64>().is_ok(),
            serde_json::from_slice::<Vec<u64>>(bytes).is_ok(),
        );
        3
    });
}

/// What comes from a process that a hostile model may have taken over, and from a package.
#[test]
fn what_a_trial_says_bent_is_compared_or_refused() {
    bend::limit_memory();
    let tried = TrialResult {
        runtime: "1.31.1".into(),
        batch: 4,
        cost_ms: 1.5,
        memory_mib: 20,
        logits: vec![vec![1.0, -2.5, 0.25]; 4],
        confinement: Confinement::Full,
    };
    let probe = ReleaseProbe { runtime: tried.runtime.clone(), logits: tried.logits.clone() };
    let fault = FaultNote::new("graph_unusable", "it cannot be loaded", "export it again");
    let corpus = [
        serde_json::to_vec(&Ok::<_, FaultNote>(tried.clone())).unwrap(),
        serde_json::to_vec(&Err::<TrialResult, _>(fault)).unwrap(),
        serde_json::to_vec(&probe).unwrap(),
    ];
    bend_all("answers of trials", &corpus, turns() / 2, |bytes| {
        if let Ok(Ok(bent)) = serde_json::from_slice::<Result<TrialResult, FaultNote>>(bytes) {
            let _compared = compare(&bent.logits, &probe).is_ok();
        }
        if let Ok(bent) = serde_json::from_slice::<ReleaseProbe>(bytes) {
            let _compared = compare(&tried.logits, &bent).is_ok();
        }
        2
    });
}
