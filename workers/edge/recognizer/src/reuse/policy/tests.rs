use proptest::prelude::*;
use schemas::{DetectedObject, RankedClass};

use super::*;
use crate::camera_map::MAX_CAMERAS;
use crate::reuse::settings::CameraReuseSettings;

/// A picture of one gray with an object of another.
fn picture(gray: u8, object: u8) -> Thumbnail {
    let mut plane = vec![gray; 40 * 30];
    for row in 10..15 {
        plane[row * 40 + 10..row * 40 + 15].fill(object);
    }
    Thumbnail::from_gray(&plane, 40, 40, 30).unwrap()
}

fn camera() -> CameraName {
    "door".parse().unwrap()
}

fn release(number: u8) -> ReleaseId {
    ReleaseId::from_sha256([number; 32])
}

fn prediction(label: &str) -> Prediction {
    Prediction {
        label: label.into(),
        confidence: 0.9,
        top: Vec::new(),
        labels: None,
        objects: None,
        release: release(1),
        temperature: None,
        novelty: None,
    }
}

fn task(sequence: u64) -> TaskId {
    TaskId::from_name(&sequence.to_string())
}

fn on() -> ReuseSettings {
    ReuseSettings { enabled: true, ..ReuseSettings::default() }
}

/// A policy and what happens to it.
struct Site(ReusePolicy);

impl Site {
    fn new(settings: ReuseSettings) -> Self {
        Self(ReusePolicy::new(settings))
    }

    fn decide(&mut self, sequence: u64, thumbnail: &Thumbnail) -> ReuseDecision {
        let picture = ReusablePicture { camera: &camera(), sequence, thumbnail, states: &[] };
        self.0.decide(&picture, &release(1))
    }

    /// The task whose answer a picture gets.
    fn reused(&mut self, sequence: u64, thumbnail: &Thumbnail) -> Option<TaskId> {
        match self.decide(sequence, thumbnail) {
            ReuseDecision::Reuse(answer) => Some(answer.task),
            ReuseDecision::Recognize | ReuseDecision::Check(_) => None,
        }
    }

    fn offer(&mut self, sequence: u64, thumbnail: &Thumbnail) {
        let (task, thumbnail) = (task(sequence), thumbnail.clone());
        let reference =
            ReusableAnswer { task, sequence, thumbnail, states: Vec::new(), prediction: prediction("open") };
        self.0.offer_reference(&camera(), reference);
    }

    /// An image is recognized with a sure answer, and that is stored.
    fn recognize(&mut self, sequence: u64, thumbnail: &Thumbnail) {
        self.offer(sequence, thumbnail);
        self.0.confirm_reference(task(sequence));
    }
}

#[test]
fn a_picture_like_the_one_before_gets_its_answer_and_the_next_after_so_many_is_recognized() {
    let mut site = Site::new(ReuseSettings { max_in_a_row: 3, ..on() });
    let (still, moved) = (picture(100, 100), picture(100, 110));
    assert_eq!(site.reused(1, &still), None, "nothing to compare with");
    site.recognize(1, &still);
    assert_eq!(site.reused(2, &moved), None, "an object");
    for sequence in 3..6 {
        assert_eq!(site.reused(sequence, &still), Some(task(1)), "{sequence}");
    }
    assert_eq!(site.reused(6, &still), None, "three in a row");
    site.recognize(6, &still);
    assert_eq!(site.reused(7, &still), Some(task(6)));
    let report = site.0.report().unwrap();
    assert_eq!((report.reused, report.checked, report.cameras.len()), (4, 0, 1));
    assert_eq!(Site::new(ReuseSettings::default()).0.report(), None, "off by default");
}

#[test]
fn a_lamp_that_is_switched_on_is_another_picture() {
    let mut site = Site::new(on());
    site.decide(1, &picture(100, 100));
    site.recognize(1, &picture(100, 100));
    assert_eq!(picture(180, 180).difference(&picture(100, 100)).largest_block, 0.0, "no block sees it");
    assert_eq!(site.reused(2, &picture(180, 180)), None);
    assert_eq!(site.reused(3, &picture(110, 110)), Some(task(1)), "a cloud that has passed");
}

#[test]
fn only_a_stored_answer_is_reused_and_only_by_later_images() {
    let mut site = Site::new(on());
    let still = picture(100, 100);
    site.decide(5, &still);
    site.offer(5, &still);
    assert_eq!(site.reused(6, &still), None, "not stored yet");
    site.0.confirm_reference(task(5));
    assert_eq!((site.reused(4, &still), site.reused(5, &still)), (None, None), "not later");
    assert_eq!(site.reused(6, &still), Some(task(5)));
    site.recognize(3, &still);
    assert_eq!(site.reused(7, &still), Some(task(5)), "an answer that came late is no newer reference");
    site.0.forget_before(&camera(), 4);
    assert_eq!(site.reused(8, &still), Some(task(5)), "a doubt about an older image");
    site.offer(8, &still);
    site.0.forget_before(&camera(), 9);
    site.0.confirm_reference(task(8));
    assert_eq!(site.reused(10, &still), None, "the last answer was not sure");
    site.recognize(10, &still);
    assert_eq!(site.reused(11, &still), Some(task(10)));
}

#[test]
fn other_states_are_another_question() {
    let mut site = Site::new(on());
    let still = picture(100, 100);
    site.decide(1, &still);
    site.recognize(1, &still);
    let states = ["open".to_owned(), "closed".to_owned()];
    let asked = ReusablePicture { camera: &camera(), sequence: 2, thumbnail: &still, states: &states };
    assert!(matches!(site.0.decide(&asked, &release(1)), ReuseDecision::Recognize));
}

/// Lets so many pictures pass, all alike, of which those that are recognized are given a label; returns how many were
/// checked, and the difference that counts as equal then.
fn pass(site: &mut Site, from: u64, count: u64, label: &str) -> (u64, f32) {
    let still = picture(100, 100);
    let mut checked = 0;
    for sequence in from..from + count {
        let decision = site.decide(sequence, &still);
        if let ReuseDecision::Check(check) = &decision {
            checked += 1;
            site.0.record_check(&camera(), check, &prediction(label)).unwrap();
        }
        if !matches!(decision, ReuseDecision::Reuse(_)) {
            site.recognize(sequence, &still);
        }
    }
    (checked, site.0.report().unwrap().cameras[0].max_difference)
}

#[test]
fn every_20th_is_checked_and_wrong_ones_lower_the_difference_until_nothing_is_reused() {
    let mut site = Site::new(on());
    assert_eq!(pass(&mut site, 1, 1 + 2000, "open"), (100, 4.0));
    assert_eq!(site.0.report().unwrap().wrong, 0);
    let (mut from, mut lowered) = (3000, Vec::new());
    while lowered.last() != Some(&0.0) {
        let (_, now) = pass(&mut site, from, 20, "closed");
        from += 20;
        if lowered.last() != Some(&now) {
            lowered.push(now);
        }
        assert!(from < 10_000, "{lowered:?}");
    }
    assert_eq!(lowered, [4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0]);
    let report = site.0.report().unwrap();
    assert!(report.wrong > 0 && report.cameras[0].is_tightened, "{report:?}");
    assert_eq!(site.reused(from, &picture(100, 100)), None, "not even an equal picture");

    // Another release knows nothing of that.
    let still = picture(100, 100);
    let asked = ReusablePicture { camera: &camera(), sequence: from + 1, thumbnail: &still, states: &[] };
    assert!(matches!(site.0.decide(&asked, &release(2)), ReuseDecision::Recognize));
    let after = site.0.report().unwrap();
    assert_eq!((after.cameras[0].max_difference, after.cameras[0].is_tightened), (4.0, false));
    assert_eq!((after.reused, after.wrong), (report.reused, report.wrong), "counts go on");
}

#[test]
fn a_check_of_another_release_or_difference_does_not_count() {
    let mut site = Site::new(ReuseSettings { check_every: 2, ..on() });
    let still = picture(100, 100);
    site.decide(1, &still);
    site.recognize(1, &still);
    site.decide(2, &still);
    let ReuseDecision::Check(check) = site.decide(3, &still) else { panic!("no check") };
    let other = Prediction { release: release(2), ..prediction("closed") };
    assert_eq!(site.0.record_check(&camera(), &check, &other), None);
    let found = site.0.record_check(&camera(), &check, &prediction("closed")).unwrap();
    assert_eq!(found, CheckFinding { is_wrong: true, lowered_to: Some(2.0) });
    assert_eq!(site.0.record_check(&camera(), &check, &prediction("closed")), None, "the difference is another now");
}

#[test]
fn several_labels_are_the_same_if_all_of_them_are() {
    let held = |labels: &[&str]| {
        let ranked = |label: &&str| RankedClass { label: (*label).to_owned(), confidence: 0.9 };
        Prediction { labels: Some(labels.iter().map(ranked).collect()), ..prediction("dent") }
    };
    assert!(says_the_same(&held(&["dent", "scratch"]), &held(&["scratch", "dent"])));
    assert!(!says_the_same(&held(&["dent", "scratch"]), &held(&["dent"])));
    assert!(!says_the_same(&prediction("open"), &prediction("closed")));
}

#[test]
fn objects_are_the_same_if_there_are_as_many_of_each_label() {
    let found = |labels: &[&str]| {
        let object = |label: &&str| DetectedObject {
            label: (*label).to_owned(),
            confidence: 0.9,
            bounds: [0.0, 0.0, 0.5, 0.5].into(),
        };
        let objects = Some(labels.iter().map(object).collect());
        Prediction { objects, ..prediction(labels.first().unwrap_or(&"none")) }
    };
    assert!(says_the_same(&found(&["cat", "dog"]), &found(&["dog", "cat"])));
    assert!(says_the_same(&found(&[]), &found(&[])));
    assert!(!says_the_same(&found(&["cat", "cat"]), &found(&["cat"])));
    assert!(!says_the_same(&found(&["cat"]), &found(&[])));
}

#[test]
fn a_camera_may_differ_from_the_others() {
    let own = CameraReuseSettings { max_in_a_row: Some(1), ..CameraReuseSettings::default() };
    let mut site = Site::new(ReuseSettings { cameras: [(camera(), own)].into(), ..on() });
    let still = picture(100, 100);
    site.decide(1, &still);
    site.recognize(1, &still);
    assert_eq!((site.reused(2, &still), site.reused(3, &still)), (Some(task(1)), None));
}

/// Numbers from 0 to 1 from a seed (SplitMix64).
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// After how many checks the difference is lowered where this share is wrong; `None` if not within `most`.
fn lowered_after(wrong_ratio: f64, seed: u64, most: u64) -> Option<u64> {
    let (mut random, mut count) = (random(seed), WrongCount::default());
    (1..=most).find(|_| {
        count.add(random() < wrong_ratio, 0.02);
        count.is_too_wrong(0.02)
    })
}

#[test]
fn the_more_is_wrong_the_sooner_it_is_noticed_and_nothing_wrong_is_no_reason() {
    assert_eq!(enough_checks(0.02), 266);
    assert_eq!(lowered_after(0.0, 1, 20_000), None);
    let mean = |ratio: f64| {
        let found: Vec<u64> = (0..200).filter_map(|seed| lowered_after(ratio, seed, 400)).collect();
        assert!(found.len() >= 199, "{ratio}: {} of 200", found.len());
        found.iter().sum::<u64>() as f64 / found.len() as f64
    };
    let (many, some, few) = (mean(0.5), mean(0.1), mean(0.04));
    assert!(many < 3.0 && some < 20.0 && few < 120.0, "{many} {some} {few}");
    // A problem after years without one.
    let (mut late, mut count) = (0, WrongCount::default());
    (0..100_000).for_each(|_| count.add(false, 0.02));
    while !count.is_too_wrong(0.02) {
        count.add(late % 4 == 0, 0.02);
        late += 1;
    }
    assert!(late < 60, "{late}");
}

/// One thing that happens at a site with a few cameras.
#[derive(Debug, Clone)]
enum Happening {
    /// A picture comes, and is recognized, if at all, with this label and this certainty, and stored after so many others.
    Image { camera: u8, gray: u8, label: u8, is_sure: bool, stored_after: usize },
    /// Another release serves.
    Swap,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let image = (0u8..3, 0u8..8, 0u8..2, prop::bool::weighted(0.8), 0usize..4).prop_map(
        |(camera, gray, label, is_sure, stored_after)| Happening::Image { camera, gray, label, is_sure, stored_after },
    );
    prop::collection::vec(prop_oneof![60 => image, 1 => Just(Happening::Swap)], 0..300)
}

proptest! {
    #[test]
    fn whatever_happens_an_answer_is_reused_only_within_the_rules(
        all in happenings(), row in 1u32..5, check_every in 2u32..6,
    ) {
        let settings = ReuseSettings { max_in_a_row: row, check_every, ..on() };
        let mut policy = ReusePolicy::new(settings);
        let mut serving = 1u8;
        let mut known: Vec<(TaskId, CameraName, u64, Thumbnail, Prediction)> = Vec::new();
        let mut waiting: Vec<(usize, TaskId)> = Vec::new();
        let (mut in_a_row, mut totals) = (std::collections::BTreeMap::<TaskId, u32>::new(), (0, 0, 0));
        for (sequence, happening) in (1u64..).zip(all) {
            let Happening::Image { camera, gray, label, is_sure, stored_after } = happening else {
                serving += 1;
                continue;
            };
            let camera: CameraName = format!("cam-{camera}").parse().unwrap();
            let thumbnail = picture(100, 100 + 2 * gray);
            let picture = ReusablePicture { camera: &camera, sequence, thumbnail: &thumbnail, states: &[] };
            let decision = policy.decide(&picture, &release(serving));
            let seen = Prediction { release: release(serving), ..prediction(&format!("label-{label}")) };
            match &decision {
                ReuseDecision::Reuse(answer) => {
                    totals.0 += 1;
                    let of = known.iter().find(|(task, ..)| *task == answer.task).unwrap();
                    prop_assert_eq!((&of.1, of.4.release.clone()), (&camera, release(serving)));
                    prop_assert_eq!(&of.4, &answer.prediction);
                    prop_assert!(of.2 < sequence && thumbnail.difference(&of.3).largest_block < 4.0);
                    let count = in_a_row.entry(answer.task).or_default();
                    *count += 1;
                    prop_assert!(*count <= row, "{count} in a row");
                }
                ReuseDecision::Check(check) => {
                    if let Some(found) = policy.record_check(&camera, check, &seen) {
                        totals.1 += 1;
                        totals.2 += u64::from(found.is_wrong);
                        prop_assert_eq!(found.is_wrong, check.prediction.label != seen.label);
                    }
                }
                ReuseDecision::Recognize => {}
            }
            if !matches!(decision, ReuseDecision::Reuse(_)) {
                if is_sure {
                    let task = task(sequence);
                    known.push((task, camera.clone(), sequence, thumbnail.clone(), seen.clone()));
                    let reference = ReusableAnswer { task, sequence, thumbnail, states: Vec::new(), prediction: seen };
                    policy.offer_reference(&camera, reference);
                    waiting.push((stored_after, task));
                } else {
                    policy.forget_before(&camera, sequence);
                }
            }
            waiting.retain_mut(|(left, task)| match left.checked_sub(1) {
                Some(fewer) => {
                    *left = fewer;
                    true
                }
                None => {
                    policy.confirm_reference(*task);
                    false
                }
            });
            let report = policy.report().unwrap();
            prop_assert_eq!((report.reused, report.checked, report.wrong), totals);
            prop_assert!(report.cameras.iter().all(|camera| camera.max_difference <= 4.0));
        }
    }
}

#[test]
fn what_is_remembered_is_limited() {
    let mut site = Site::new(on());
    let still = picture(100, 100);
    for number in 0..MAX_CAMERAS as u64 + 200 {
        let camera: CameraName = format!("cam-{number}").parse().unwrap();
        let picture = ReusablePicture { camera: &camera, sequence: number, thumbnail: &still, states: &[] };
        site.0.decide(&picture, &release(1));
        site.offer(number, &still);
    }
    assert_eq!((site.0.cameras.iter().count(), site.0.offered.len()), (MAX_CAMERAS, MAX_OFFERED));
    assert_eq!(site.0.report().unwrap().cameras.len(), MAX_REUSE_CAMERAS);
}
