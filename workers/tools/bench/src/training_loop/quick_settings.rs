//! Settings that shorten a round and a canary to less than a minute. Settings that the user changed are kept.

use std::path::Path;

use releaser::CanarySettings;
use releaser::settings::RingSettings;

use super::setup::{LABEL_SMOOTHING, LoopFolders};
use tributary::settings::{Settings, UpSettings};

/// Margins of the canary, wider than the defaults, because it sees far fewer images in a minute than they assume.
const AGREEMENT_MARGIN: f64 = 0.15;
const ESCALATION_MARGIN: f64 = 0.15;
const CONFIDENCE_MARGIN: f64 = 0.15;
const FAULTS_MARGIN: f64 = 0.05;
const COST_RATIO: f64 = 2.5;
/// Longest canary, seconds.
const MAX_DURATION_S: u64 = 45;

/// Derives the loop's settings from the user's. `store`: folder for all files that the roles write.
pub(super) fn loop_settings(given: &Settings, start: &LoopFolders, store: &Path) -> Settings {
    let mut all = given.clone();
    let defaults = Settings::default();
    all.up = UpSettings { store: store.join("up"), port: 0, mqtt_port: None, train: true, merge: true, ..all.up };
    all.recognizer.model.clone_from(&start.model);
    all.recognizer.verify.enabled = true;
    all.verifier.model = Some(start.cloud.clone());
    all.trainer.model = None;
    all.aggregator.model = None;
    all.aggregator.public = Some(start.public.clone());
    all.aggregator.store = store.join("releases").display().to_string();

    let (values, default) = (&mut all.recognizer, &defaults.recognizer);
    replace_default(&mut values.report_s, &default.report_s, 1);
    replace_default(&mut values.count_s, &default.count_s, 2);
    replace_default(&mut values.verify.sample_ratio, &default.verify.sample_ratio, 0.15);
    replace_default(&mut values.gate.min_confidence_ratio, &default.gate.min_confidence_ratio, Some(0.8));
    let (values, default) = (&mut all.verifier, &defaults.verifier);
    replace_default(&mut values.report_s, &default.report_s, 1);
    replace_default(&mut values.count_s, &default.count_s, 2);
    let (values, default) = (&mut all.trainer, &defaults.trainer);
    replace_default(&mut values.epochs, &default.epochs, 20);
    replace_default(&mut values.batch, &default.batch, 16);
    replace_default(&mut values.label_smoothing_ratio, &default.label_smoothing_ratio, LABEL_SMOOTHING);
    replace_default(&mut values.limits.cpu_ratio, &default.limits.cpu_ratio, 1.0);
    replace_default(&mut values.limits.yield_queue_s, &default.limits.yield_queue_s, 10.0);
    replace_default(&mut values.collect.every_s, &default.collect.every_s, 1);
    replace_default(&mut values.collect.max_images, &default.collect.max_images, 1500);
    // Sites train only when a round asks for updates.
    replace_default(&mut values.collect.min_new_images, &default.collect.min_new_images, u32::MAX);
    let (values, default) = (&mut all.aggregator.round, &defaults.aggregator.round);
    replace_default(&mut values.grace_s, &default.grace_s, 1);
    replace_default(&mut values.deadline_s, &default.deadline_s, 120);
    let (values, default) = (&mut all.releaser, &defaults.releaser);
    replace_default(&mut values.judge_s, &default.judge_s, 1);
    replace_default(
        &mut values.rings,
        &default.rings,
        vec![RingSettings { share_ratio: Some(0.5), ..RingSettings::default() }],
    );
    let (values, default) = (&mut values.canary, &default.canary);
    replace_default(&mut values.agreement_margin_ratio, &default.agreement_margin_ratio, AGREEMENT_MARGIN);
    replace_default(&mut values.escalation_margin_ratio, &default.escalation_margin_ratio, ESCALATION_MARGIN);
    replace_default(&mut values.confidence_margin_ratio, &default.confidence_margin_ratio, CONFIDENCE_MARGIN);
    replace_default(&mut values.faults_margin_ratio, &default.faults_margin_ratio, FAULTS_MARGIN);
    replace_default(&mut values.cost_ratio, &default.cost_ratio, COST_RATIO);
    replace_default(&mut values.max_duration_s, &default.max_duration_s, MAX_DURATION_S);
    all
}

/// Replaces a setting unless the user changed it from its default.
fn replace_default<T: PartialEq>(value: &mut T, default: &T, quick: T) {
    if value == default {
        *value = quick;
    }
}

/// Describes where the canary's settings differ from the defaults (in parentheses).
pub(super) fn describe_wider_margins(canary: &CanarySettings) -> String {
    let defaults = CanarySettings::default();
    let margins = [
        ("agreement", canary.agreement_margin_ratio, defaults.agreement_margin_ratio),
        ("sent up", canary.escalation_margin_ratio, defaults.escalation_margin_ratio),
        ("confidence", canary.confidence_margin_ratio, defaults.confidence_margin_ratio),
        ("faults", canary.faults_margin_ratio, defaults.faults_margin_ratio),
    ];
    let mut words: Vec<String> = margins
        .iter()
        .filter(|(_, value, default)| value != default)
        .map(|(name, value, default)| format!("{name} {:.0} points ({:.0})", value * 100.0, default * 100.0))
        .collect();
    if canary.cost_ratio != defaults.cost_ratio {
        words.push(format!("cost ratio {:.1} ({:.1})", canary.cost_ratio, defaults.cost_ratio));
    }
    if canary.max_duration_s != defaults.max_duration_s {
        words.push(format!("at most {} s ({} h)", canary.max_duration_s, defaults.max_duration_s / 3600));
    }
    words.join(", ")
}
