//! Outputs that contradict their description, or are broken, too many or outside; and what the scans have in common.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use schemas::model::{BackgroundClass, BoxForm, BoxLayout, ScoreKind};

use super::*;
use crate::session::tests::fixture;

const SOURCE: SourceSize = SourceSize { width_px: 64, height_px: 64 };

/// A detector of three labels, changed.
fn detector(change: impl FnOnce(&mut BoxesDescription)) -> Detector {
    let mut model = Model::load(&fixture("../boxes/yolov8")).unwrap();
    change(model.description.output.boxes.as_mut().unwrap());
    Detector::of(&model).unwrap()
}

fn rows() -> Detector {
    detector(|boxes| boxes.layout = BoxLayout::Rows)
}

fn tensor<'a>(name: &'a str, shape: &[usize], numbers: &'a [f32]) -> OutputTensor<'a> {
    assert_eq!(shape.iter().product::<usize>(), numbers.len());
    OutputTensor { name, shape: shape.to_vec(), numbers: Cow::Borrowed(numbers) }
}

fn detect(detector: &mut Detector, shape: &[usize], numbers: &[f32]) -> Result<Detections, DetectorFault> {
    let found = detector.detect(&[tensor("output0", shape, numbers)], &[SOURCE])?;
    Ok(found.into_iter().next().unwrap())
}

fn why(outcome: Result<Detections, DetectorFault>) -> String {
    match outcome.unwrap_err() {
        DetectorFault::Mismatch { why, remedy } => format!("{why}; {remedy}"),
        DetectorFault::NotFinite { image } => format!("not finite in image {image}"),
    }
}

#[test]
fn outputs_of_another_shape_are_refused_with_both_shapes() {
    let mut detector = detector(|_| {});
    for (shape, count) in
        [(&[1, 84, 7][..], 588), (&[1, 8, 84], 672), (&[2, 7, 84], 1176), (&[7], 7), (&[1, 1, 7, 84], 588)]
    {
        let why = why(detect(&mut detector, shape, &vec![0.0; count]));
        let shown = format!("{shape:?}");
        for part in ["\"output0\"", shown.as_str(), "3 labels", "columns", "[batch, 7, boxes]", "[output.boxes]"] {
            assert!(why.contains(part), "{shape:?}: {part} is not in {why}");
        }
    }
    let missing = detector.detect(&[tensor("other", &[1, 7, 1], &[0.0; 7])], &[SOURCE]).unwrap_err();
    assert!(matches!(missing, DetectorFault::Mismatch { why, .. } if why.contains("\"output0\"")));
}

#[test]
fn numbers_that_are_not_finite_are_left_out_and_counted_and_refused_if_there_are_no_others() {
    let good = [32.0, 32.0, 16.0, 16.0, 0.9, 0.1, 0.0];
    let box_broken = [f32::NAN, 32.0, 16.0, 16.0, 0.8, 0.1, 0.0];
    let endless = [8.0, 8.0, f32::INFINITY, 16.0, 0.8, 0.1, 0.0];
    let score_broken = [8.0, 8.0, 4.0, 4.0, f32::NAN, 0.1, f32::INFINITY];
    let numbers = [good, box_broken, endless, score_broken].concat();
    let found = detect(&mut rows(), &[1, 4, 7], &numbers).unwrap();
    assert_eq!((found.objects.len(), found.not_finite), (1, 4));
    assert_eq!(<[f32; 4]>::from(found.objects[0].bounds), [0.375, 0.375, 0.625, 0.625]);
    assert_eq!(found.best, [0.9, 0.1, 0.0]);
    // The same in columns.
    let turned: Vec<f32> = (0..7)
        .flat_map(|column| (0..4).map(move |row| (row, column)))
        .map(|(row, column)| numbers[row * 7 + column])
        .collect();
    let in_columns = detect(&mut detector(|_| {}), &[1, 7, 4], &turned).unwrap();
    assert_eq!(in_columns, found);
    for broken in [&[f32::NAN; 7][..], &box_broken, &endless] {
        assert_eq!(why(detect(&mut rows(), &[1, 1, 7], broken)), "not finite in image 0");
    }
}

#[test]
fn boxes_outside_are_cut_off_or_dropped() {
    let of = |x: f32, y: f32, side: f32, score: f32| [x, y, side, side, score, 0.0, 0.0];
    let outside = of(-100.0, 32.0, 8.0, 0.9);
    let partly = of(0.0, 64.0, 32.0, 0.8);
    let everything = of(32.0, 32.0, 1e30, 0.7);
    let no_area = of(32.0, 32.0, 0.0, 0.6);
    let found = detect(&mut rows(), &[1, 4, 7], &[outside, partly, everything, no_area].concat()).unwrap();
    let edges: Vec<[f32; 4]> = found.objects.iter().map(|object| object.bounds.into()).collect();
    assert_eq!(edges, [[0.0, 0.75, 0.25, 1.0], [0.0, 0.0, 1.0, 1.0]]);
    assert!(found.objects.iter().all(|object| object.bounds.is_valid()));
}

#[test]
fn a_hundred_thousand_candidates_are_bounded_in_time_and_memory() {
    const BOXES: usize = 100_000;
    // Small boxes that never overlap, each of all three classes: the worst case of suppression.
    let row = |index: usize| {
        let (x, y) = ((index % 400) as f32 * 0.16, (index / 400) as f32 * 0.16);
        [x, y, 0.1, 0.1, 0.5 + (index % 997) as f32 / 2000.0, 0.6, 0.7]
    };
    let numbers: Vec<f32> = (0..BOXES).flat_map(row).collect();
    let mut detector = detector(|boxes| (boxes.layout, boxes.multi_label) = (BoxLayout::Rows, true));
    let started = Instant::now();
    let found = detect(&mut detector, &[1, BOXES, 7], &numbers).unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(found.objects.len() <= schemas::MAX_OBJECTS && !found.objects.is_empty());
    assert_eq!(found.cut, 3 * BOXES - MAX_CANDIDATES);
    assert!(detector.candidates.found.capacity() <= 4 * MAX_CANDIDATES);
    assert!(found.objects.is_sorted_by(|a, b| a.confidence >= b.confidence));
}

#[test]
fn scores_that_are_none_and_classes_without_a_label_are_refused() {
    let why_of = |detector: &mut Detector, shape: &[usize], numbers: &[f32]| why(detect(detector, shape, numbers));
    let logits = why_of(&mut rows(), &[1, 1, 7], &[1.0, 1.0, 1.0, 1.0, 5.5, -2.0, 0.0]);
    assert!(logits.contains("5.5") && logits.contains("score = \"sigmoid\""), "{logits}");
    let mut end_to_end = detector(|boxes| (boxes.layout, boxes.form) = (BoxLayout::EndToEnd, BoxForm::XyXy));
    let row = |score, class| [8.0, 8.0, 16.0, 16.0, score, class];
    let class = why_of(&mut end_to_end, &[1, 1, 6], &row(0.9, 3.0));
    assert!(class.contains("class 3") && class.contains("3 labels"), "{class}");
    // Empty rows are filled with anything.
    let filled = [row(0.9, 2.0), row(0.0, -1.0), row(0.0, 90.0)].concat();
    let found = detect(&mut end_to_end, &[1, 3, 6], &filled).unwrap();
    assert_eq!((found.objects.len(), found.objects[0].label.as_str()), (1, "car"));
    assert_eq!(found.best, [0.0, 0.0, 0.9]);
}

#[test]
fn no_boxes_at_all_are_an_answer() {
    let found = detect(&mut rows(), &[1, 0, 7], &[]).unwrap();
    assert_eq!((found.objects.len(), found.best_score(), found.not_finite), (0, 0.0, 0));
}

#[test]
fn background_and_several_labels_are_as_described() {
    let softmax = |background: BackgroundClass| {
        let mut boxes = detector(|boxes| {
            boxes.layout = BoxLayout::Rows;
            (boxes.score, boxes.background) = (ScoreKind::Softmax, background);
        });
        let numbers = [8.0, 8.0, 4.0, 4.0, 9.0, 0.0, 0.0, 1.0, 8.0, 8.0, 4.0, 4.0, 0.0, 9.0, 1.0, 0.0];
        let found = detect(&mut boxes, &[1, 2, 8], &numbers).unwrap();
        found.objects.into_iter().map(|object| object.label).collect::<Vec<_>>()
    };
    assert_eq!(softmax(BackgroundClass::First), ["person"]);
    assert_eq!(softmax(BackgroundClass::Last), ["person", "dog"]);
    let both = [8.0, 8.0, 4.0, 4.0, 0.6, 0.9, 0.1];
    let labels = |multi_label| {
        let mut boxes = detector(|boxes| (boxes.layout, boxes.multi_label) = (BoxLayout::Rows, multi_label));
        let found = detect(&mut boxes, &[1, 1, 7], &both).unwrap();
        found.objects.into_iter().map(|object| object.label).collect::<Vec<_>>()
    };
    assert_eq!(labels(false), ["dog"]);
    assert_eq!(labels(true), ["dog", "person"]);
}

#[test]
fn each_label_has_its_threshold_in_every_layout() {
    let mut model = Model::load(&fixture("../boxes/yolov8")).unwrap();
    model.thresholds = vec![0.5, 0.95, 0.5];
    for layout in [BoxLayout::Rows, BoxLayout::Columns] {
        model.description.output.boxes.as_mut().unwrap().layout = layout;
        let mut detector = Detector::of(&model).unwrap();
        let shape = if layout == BoxLayout::Rows { [1, 1, 7] } else { [1, 7, 1] };
        // Its best class is below its own threshold, its second one above.
        let found = detect(&mut detector, &shape, &[8.0, 8.0, 4.0, 4.0, 0.6, 0.9, 0.5]).unwrap();
        let labels: Vec<&str> = found.objects.iter().map(|object| object.label.as_str()).collect();
        assert_eq!((labels, &found.best[..]), (vec!["person"], &[0.6, 0.9, 0.5][..]), "{layout:?}");
    }
}

#[test]
fn outputs_of_any_numbers_give_valid_objects_or_are_refused() {
    let odd = [0.0, -0.0, 1.0, -1.0, 0.5, 1e30, -1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE];
    let mut state = 1_u64;
    let mut bits = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let (mut answered, mut refused) = (0, 0);
    for form in ["yolov5", "yolov8", "yolov10", "yolox", "rt-detr", "rf-detr", "ssd-tensorflow", "torchvision"] {
        let model = Model::load(&fixture("../boxes").join(form)).unwrap();
        let mut detector = Detector::of(&model).unwrap();
        for turn in 0..200 {
            let wanted: Vec<(String, Vec<usize>)> = detector
                .wanted()
                .iter()
                .map(|wanted| (wanted.name.to_owned(), wanted.sizes.iter().map(|size| size.unwrap_or(20)).collect()))
                .chain(detector.count_output().map(|name| (name.to_owned(), Vec::new())))
                .collect();
            let mut number = || match bits() % 4 {
                0 => odd[bits() as usize % odd.len()],
                1 if turn % 2 == 0 => f32::from_bits(bits()),
                _ => (bits() % 1000) as f32 / 1000.0,
            };
            let mut numbers = |count: usize| (0..count).map(|_| number()).collect::<Vec<f32>>();
            let filled: Vec<OutputTensor<'_>> = wanted
                .iter()
                .map(|(name, sizes)| OutputTensor {
                    name,
                    shape: [&[1], &sizes[..]].concat(),
                    numbers: Cow::Owned(numbers(sizes.iter().product())),
                })
                .collect();
            match detector.detect(&filled, &[SOURCE]) {
                Err(_) => refused += 1,
                Ok(found) => {
                    answered += 1;
                    let found = &found[0];
                    assert!(found.objects.iter().all(|object| object.bounds.is_valid()), "{form}: {found:?}");
                    assert!(found.objects.iter().all(|object| (0.0..=1.0).contains(&object.confidence)), "{form}");
                    assert!(found.objects.is_sorted_by(|a, b| a.confidence >= b.confidence), "{form}");
                    assert!(found.best.iter().all(|score| (0.0..=1.01).contains(score)), "{form}: {:?}", found.best);
                }
            }
        }
    }
    assert!(answered > 50 && refused > 50, "{answered} answered, {refused} refused");
}

/// Printed for the record: the scan of a usual detector's output, which mostly holds nothing.
#[test]
fn a_usual_output_is_read_fast() {
    let mut model = Model::load(&fixture("../boxes/yolov8")).unwrap();
    model.labels = (0..80).map(|label| format!("label-{label}")).collect();
    model.thresholds = vec![0.25; 80];
    let mut detector = Detector::of(&model).unwrap();
    let mut numbers: Vec<f32> = (0..84 * 8400_usize).map(|index| (index * 7919 % 1000) as f32 / 5000.0).collect();
    for found in 0..200 {
        numbers[(4 + found % 80) * 8400 + found * 41] = 0.9;
    }
    let times = (0..20).map(|_| {
        let started = Instant::now();
        let found = detect(&mut detector, &[1, 84, 8400], &numbers).unwrap();
        assert!(found.objects.len() > 50);
        started.elapsed()
    });
    let fastest = times.min().unwrap();
    println!("8,400 boxes of 80 classes: {fastest:?}");
    assert!(fastest < Duration::from_millis(200), "{fastest:?}");
}
