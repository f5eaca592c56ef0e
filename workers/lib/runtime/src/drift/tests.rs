//! False alarms on steady traffic, and shifts that must be noticed.

use proptest::prelude::*;

use super::*;

/// SplitMix64: the same numbers on every machine.
struct DriftTestRng(u64);

impl DriftTestRng {
    /// A number from 0 to 1, without 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// Like a classifier's: mostly sure; the harder the picture (0 to 1), the less.
    fn confidence(&mut self, hard: f32) -> f32 {
        1.0 - 0.9 * self.next().powf(6.0 - 5.0 * hard)
    }

    fn sample(&mut self, hard: f32) -> DriftSample {
        DriftSample {
            confidence: Some(self.confidence(hard)),
            novelty: Some(self.next().powf(1.0 - 0.8 * hard)),
            agreement: Some(f32::from(u8::from(self.next() > 0.05 + 0.3 * hard))),
        }
    }
}

fn monitor(settings: DriftSettings) -> DriftMonitor {
    DriftMonitor::new(ReleaseId::from_sha256([1; 32]), settings)
}

/// Evaluates the monitor after every 50 answers; counts each level.
fn evaluate(monitor: &mut DriftMonitor, answers: usize, mut next: impl FnMut() -> DriftSample) -> [usize; 3] {
    let mut counts = [0; 3];
    for number in 0..answers {
        monitor.add(next());
        if number % 50 == 0 {
            counts[monitor.report().level() as usize] += 1;
        }
    }
    counts
}

#[test]
fn steady_traffic_raises_no_alarm() {
    let (mut watched, mut alarmed, mut all) = (0, 0, 0);
    for seed in 0..100 {
        let settings = match seed % 3 {
            0 => DriftSettings { reference_answers: 200, recent_answers: 50 },
            1 => DriftSettings { reference_answers: 1000, recent_answers: 500 },
            _ => DriftSettings::default(),
        };
        let mut chance = DriftTestRng(seed);
        let [steady, watch, alarm] = evaluate(&mut monitor(settings), 12_000, || chance.sample(0.0));
        (watched, alarmed, all) = (watched + watch, alarmed + alarm, all + steady + watch + alarm);
    }
    assert_eq!((watched, alarmed), (0, 0), "of {all} evaluations at 100 sites");
}

#[test]
fn scenes_of_similar_pictures_raise_no_alarm() {
    let (mut watched, mut alarmed) = (0, 0);
    for seed in 0..50 {
        let (mut chance, mut left, mut hard) = (DriftTestRng(1000 + seed), 0, 0.0);
        let next = || {
            if left == 0 {
                // A scene of up to 60 pictures of equal hardness.
                (left, hard) = ((chance.next() * 60.0) as usize + 1, chance.next() * 0.4);
            }
            left -= 1;
            DriftSample { agreement: None, ..chance.sample(hard) }
        };
        let [_, watch, alarm] = evaluate(&mut monitor(DriftSettings::default()), 20_000, next);
        (watched, alarmed) = (watched + usize::from(watch > 0), alarmed + alarm);
    }
    assert_eq!(alarmed, 0);
    assert!(watched <= 2, "{watched} of 50 sites raised a false watch");
}

#[test]
fn a_shift_is_an_alarm_in_each_measure_and_a_small_one_is_watched() {
    let after = |hard: f32| {
        let (mut monitor, mut chance) = (monitor(DriftSettings::default()), DriftTestRng(7));
        (0..4000).for_each(|_| monitor.add(chance.sample(0.0)));
        assert_eq!(monitor.report().level(), DriftLevel::Steady);
        (0..500).for_each(|_| monitor.add(chance.sample(hard)));
        monitor.report()
    };
    let report = after(0.8);
    assert_eq!(report.measures().map(|(_, measure)| measure.level).collect::<Vec<_>>(), [DriftLevel::Alarm; 3]);
    let novelty = report.novelty.unwrap();
    assert!(novelty.recent_ratio > 0.7 && (novelty.reference_ratio - 0.5).abs() < 0.05, "{novelty:?}");
    assert_eq!(after(0.25).level(), DriftLevel::Watch, "{:?}", after(0.25));
}

#[test]
fn a_measure_is_absent_until_both_windows_are_full_and_where_it_is_not_measured() {
    let settings = DriftSettings { reference_answers: 100, recent_answers: 50 };
    let (mut monitor, mut chance) = (monitor(settings), DriftTestRng(3));
    (0..149).for_each(|_| monitor.add(DriftSample { novelty: None, agreement: None, ..chance.sample(0.0) }));
    let report = monitor.report();
    assert_eq!((report.reference_answers, report.recent_answers, report.measures().count()), (100, 49, 0));
    monitor.add(DriftSample { novelty: None, agreement: None, ..chance.sample(0.0) });
    let report = monitor.report();
    assert_eq!(report.measures().map(|(name, _)| name).collect::<Vec<_>>(), ["confidence"]);
}

#[test]
fn the_largest_reference_fits_a_note_of_the_ledger() {
    let settings = DriftSettings { reference_answers: 1_000_000, recent_answers: 50 };
    let (mut monitor, mut chance) = (monitor(settings), DriftTestRng(3));
    (0..1_000_000).for_each(|_| monitor.add(chance.sample(0.0)));
    assert_eq!(monitor.reference().unwrap().stretches.len(), 64);
    let size = serde_json::to_vec(monitor.reference().unwrap()).unwrap().len();
    assert!(size < 256 * 1024, "{size} bytes");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let check =
        |reference_answers, recent_answers| DriftSettings { reference_answers, recent_answers }.check().unwrap_err();
    assert!(check(2000, 10).contains("recent_answers is 10"));
    assert!(check(600, 500).contains("between 1000"));
    assert_eq!(DriftSettings::default().check(), Ok(()));
}

proptest! {
    #[test]
    fn windows_stay_bounded_and_distances_are_shares_for_any_input(
        numbers in prop::collection::vec((any::<f32>(), any::<f32>()), 0..600),
    ) {
        let mut monitor = monitor(DriftSettings { reference_answers: 100, recent_answers: 50 });
        for (confidence, novelty) in numbers {
            monitor.add(DriftSample { confidence: Some(confidence), novelty: Some(novelty), agreement: None });
        }
        prop_assert!(monitor.recent.len() <= 50 && monitor.reference.stretches.len() <= 3);
        for (_, measure) in monitor.report().measures() {
            for ratio in [measure.reference_ratio, measure.recent_ratio, measure.distance_ratio] {
                prop_assert!((0.0..=1.0).contains(&ratio), "{measure:?}");
            }
        }
    }

    #[test]
    fn with_two_values_the_distance_is_the_difference_of_shares(before in 0_u32..100, now in 0_u32..100) {
        let of = |ones: u32| {
            let mut histogram = Histogram::default();
            (0..100).for_each(|number| histogram.add(Some(f32::from(u8::from(number < ones)))));
            histogram
        };
        let expected = (f64::from(before) - f64::from(now)).abs() / 100.0;
        prop_assert!((of(before).distance(&of(now)) - expected).abs() < 1e-9);
    }
}
