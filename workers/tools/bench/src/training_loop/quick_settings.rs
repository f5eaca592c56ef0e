//! Settings with which a round and a canary take less than a minute. Settings that the operator chose stay.

use std::path::Path;

use releaser::CanarySettings;
use releaser::settings::RingSettings;

use super::setup::{LoopFolders, SMOOTHING};
use tributary::settings::{Settings, UpSettings};

/// Margins of the canary, wider than the defaults: in a minute it sees far fewer images than the defaults assume.
const AGREEMENT_MARGIN: f64 = 0.15;
const SENT_UP_MARGIN: f64 = 0.15;
const CONFIDENCE_MARGIN: f64 = 0.15;
const FAULTS_MARGIN: f64 = 0.05;
const COST: f64 = 2.5;
/// Longest canary, seconds.
const MAX_DURATION_S: u64 = 45;

/// The settings of the loop. `store`: folder for everything that is written.
pub(super) fn settings(given: &Settings, start: &LoopFolders, store: &Path) -> Settings {
    let mut all = given.clone();
    let usual = Settings::default();
    all.up = UpSettings { store: store.join("up"), port: 0, mqtt_port: None, train: true, merge: true, ..all.up };
    all.recognizer.model.clone_from(&start.model);
    all.recognizer.verify.enabled = true;
    all.verifier.model = Some(start.cloud.clone());
    all.trainer.model = None;
    all.aggregator.model = None;
    all.aggregator.public = Some(start.public.clone());
    all.aggregator.store = store.join("releases").display().to_string();

    let (own, was) = (&mut all.recognizer, &usual.recognizer);
    choose(&mut own.report_s, &was.report_s, 1);
    choose(&mut own.count_s, &was.count_s, 2);
    choose(&mut own.verify.sample_ratio, &was.verify.sample_ratio, 0.15);
    choose(&mut own.gate.min_confidence_ratio, &was.gate.min_confidence_ratio, Some(0.8));
    let (own, was) = (&mut all.verifier, &usual.verifier);
    choose(&mut own.report_s, &was.report_s, 1);
    choose(&mut own.count_s, &was.count_s, 2);
    let (own, was) = (&mut all.trainer, &usual.trainer);
    choose(&mut own.epochs, &was.epochs, 20);
    choose(&mut own.batch, &was.batch, 16);
    choose(&mut own.label_smoothing_ratio, &was.label_smoothing_ratio, SMOOTHING);
    choose(&mut own.limits.cpu_ratio, &was.limits.cpu_ratio, 1.0);
    choose(&mut own.limits.yield_queue_s, &was.limits.yield_queue_s, 10.0);
    choose(&mut own.collect.every_s, &was.collect.every_s, 1);
    choose(&mut own.collect.max_images, &was.collect.max_images, 1500);
    // Sites train only when a round asks.
    choose(&mut own.collect.min_new_images, &was.collect.min_new_images, u32::MAX);
    let (own, was) = (&mut all.aggregator.round, &usual.aggregator.round);
    choose(&mut own.grace_s, &was.grace_s, 1);
    choose(&mut own.deadline_s, &was.deadline_s, 120);
    let (own, was) = (&mut all.releaser, &usual.releaser);
    choose(&mut own.judge_s, &was.judge_s, 1);
    choose(&mut own.rings, &was.rings, vec![RingSettings { share_ratio: Some(0.5), ..RingSettings::default() }]);
    let (own, was) = (&mut own.canary, &was.canary);
    choose(&mut own.agreement_margin_ratio, &was.agreement_margin_ratio, AGREEMENT_MARGIN);
    choose(&mut own.escalation_margin_ratio, &was.escalation_margin_ratio, SENT_UP_MARGIN);
    choose(&mut own.confidence_margin_ratio, &was.confidence_margin_ratio, CONFIDENCE_MARGIN);
    choose(&mut own.faults_margin_ratio, &was.faults_margin_ratio, FAULTS_MARGIN);
    choose(&mut own.cost_ratio, &was.cost_ratio, COST);
    choose(&mut own.max_duration_s, &was.max_duration_s, MAX_DURATION_S);
    all
}

fn choose<T: PartialEq>(own: &mut T, usual: &T, quick: T) {
    if own == usual {
        *own = quick;
    }
}

/// How the canary's settings differ from the defaults, as text.
pub(super) fn widened(canary: &CanarySettings) -> String {
    let usual = CanarySettings::default();
    let points = [
        ("agreement", canary.agreement_margin_ratio, usual.agreement_margin_ratio),
        ("sent up", canary.escalation_margin_ratio, usual.escalation_margin_ratio),
        ("confidence", canary.confidence_margin_ratio, usual.confidence_margin_ratio),
        ("faults", canary.faults_margin_ratio, usual.faults_margin_ratio),
    ];
    let mut words: Vec<String> = points
        .iter()
        .filter(|(_, own, usual)| own != usual)
        .map(|(name, own, usual)| format!("{name} {:.0} points ({:.0})", own * 100.0, usual * 100.0))
        .collect();
    if canary.cost_ratio != usual.cost_ratio {
        words.push(format!("cost {:.1}-fold ({:.1})", canary.cost_ratio, usual.cost_ratio));
    }
    if canary.max_duration_s != usual.max_duration_s {
        words.push(format!("at most {} s ({} h)", canary.max_duration_s, usual.max_duration_s / 3600));
    }
    words.join(", ")
}
