//! How often a picture is seen per epoch, given what the base finds hard at all sites: the harder its class and the
//! closer it is to the hard cases of that class, the more often. [`times`] is pure; [`apply`] runs the base for it.
//!
//! In: a round's focus, and the base's features of the site's pictures. Out: a number per picture. The focus comes from
//! other machines, so parts that do not fit are ignored.

use schemas::round::HARD_CLASSES_MAX;
use schemas::{HardClass, HardFocus};
use tokio_util::sync::CancellationToken;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::error::TrainError;
use crate::examples::{ExampleSplit, Examples};

/// A class counts as at most this many times harder than the average, because with few hard cases one class could take
/// everything.
const HARDEST: f64 = 4.0;
/// Largest [`HardFocus::strength`].
pub const STRENGTH_MAX: f32 = 8.0;

/// Sets how often each training example is seen. `base`: the base of the round. A picture that cannot be read counts
/// like its class.
pub fn apply(
    focus: &HardFocus,
    onnx: &OnnxRuntime,
    base: &Model,
    examples: &mut Examples,
    threads: u16,
    stop: &CancellationToken,
) -> Result<(), TrainError> {
    let asks_features = focus.classes.iter().any(|class| class.features.is_some());
    let gives_features = base.description.output.features.is_some();
    let places = crate::train::example_indices(examples, ExampleSplit::Train);
    let mut features = vec![None; places.len()];
    if asks_features && gives_features {
        let settings = InferenceSettings { threads: threads.into(), ..InferenceSettings::default() };
        let mut replica = Replica::open(onnx, base, &settings)?;
        for (place, features) in places.iter().zip(&mut features) {
            if stop.is_cancelled() {
                return Err(TrainError::Stopped);
            }
            let seen = std::fs::read(&examples.all[*place].path).ok().and_then(|bytes| replica.predict(&bytes).ok());
            *features = seen.and_then(|seen| seen.features);
        }
    }
    let classes: Vec<usize> = places.iter().map(|place| examples.all[*place].class).collect();
    for (place, times) in places.iter().zip(times(focus, &base.labels, &classes, &features)) {
        examples.all[*place].times = times;
    }
    Ok(())
}

/// How often each picture is seen per epoch, 1 or more. `classes`, `features`: of each picture, the index of its label
/// in `labels` and the base's features before its last layer.
pub fn times(focus: &HardFocus, labels: &[String], classes: &[usize], features: &[Option<Vec<f32>>]) -> Vec<f64> {
    let strength = f64::from(focus.strength.clamp(0.0, STRENGTH_MAX));
    let strength = if strength.is_finite() { strength } else { 0.0 };
    let mut times = vec![1.0; classes.len()];
    for hard in focus.classes.iter().take(HARD_CLASSES_MAX) {
        let Some(class) = labels.iter().position(|label| *label == hard.label) else { continue };
        if !(0.0..=1.0).contains(&hard.ratio) {
            continue;
        }
        let hardness = (f64::from(hard.ratio) * labels.len() as f64).min(HARDEST);
        let places: Vec<usize> = (0..classes.len()).filter(|place| classes[*place] == class).collect();
        for (place, nearness) in places.iter().zip(nearness(hard, &places, features)) {
            times[*place] = 1.0 + strength * hardness * 2.0 * nearness;
        }
    }
    times
}

/// For each picture, the share of its class's pictures that are further from the class's hard cases, 0 to 1; 0.5 where
/// features are missing. Ranks are used because cosines between features are close together and differ by model.
fn nearness(hard: &HardClass, places: &[usize], features: &[Option<Vec<f32>>]) -> Vec<f64> {
    let cosine = |place: &usize| -> Option<f32> {
        let (center, own) = (hard.features.as_ref()?, features.get(*place)?.as_ref()?);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = dot(center, own) / dot(own, own).sqrt();
        (center.len() == own.len() && cosine.is_finite()).then_some(cosine)
    };
    let mut order: Vec<(usize, f32)> =
        places.iter().enumerate().filter_map(|(at, place)| Some((at, cosine(place)?))).collect();
    order.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let count = order.len() as f64;
    let mut nearness = vec![0.5; places.len()];
    for (rank, (at, _)) in order.into_iter().enumerate() {
        nearness[at] = (rank as f64 + 0.5) / count;
    }
    nearness
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["cat", "dog", "cow", "hen"].map(str::to_owned).to_vec()
    }

    fn hard(label: &str, ratio: f32, features: Option<Vec<f32>>) -> HardFocus {
        HardFocus { strength: 1.0, classes: vec![HardClass { label: label.into(), ratio, features }] }
    }

    #[test]
    fn pictures_of_a_hard_class_are_seen_more_often_and_those_near_its_hard_cases_most() {
        let classes = [0, 1, 1, 1, 1];
        let none = vec![None; 5];
        // A quarter of the doubt is average for four classes.
        assert_eq!(times(&hard("dog", 0.25, None), &labels(), &classes, &none), [1.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(times(&hard("dog", 0.5, None), &labels(), &classes, &none), [1.0, 3.0, 3.0, 3.0, 3.0]);
        let turned = |degrees: f32| Some(vec![3.0 * degrees.to_radians().cos(), 3.0 * degrees.to_radians().sin()]);
        let features = [turned(0.0), turned(80.0), turned(10.0), turned(30.0), turned(-50.0)];
        let near = times(&hard("dog", 0.25, Some(vec![1.0, 0.0])), &labels(), &classes, &features);
        assert_eq!(near, [1.0, 1.25, 2.75, 2.25, 1.75]);
        assert_eq!(near[1..].iter().sum::<f64>(), 8.0, "as often as without features, on average");
    }

    #[test]
    fn parts_of_a_focus_that_do_not_fit_are_ignored() {
        let (classes, features) = ([1, 1], [Some(vec![1.0, 0.0]), Some(vec![0.0, 1.0])]);
        let seen = |focus: HardFocus| times(&focus, &labels(), &classes, &features);
        assert_eq!(seen(hard("ox", 1.0, None)), [1.0, 1.0], "a label of another model");
        for ratio in [f32::NAN, -1.0, 7.0] {
            assert_eq!(seen(hard("dog", ratio, None)), [1.0, 1.0]);
        }
        assert_eq!(seen(hard("dog", 0.25, Some(vec![1.0; 3]))), [2.0, 2.0], "features of another model");
        assert_eq!(seen(hard("dog", 0.25, Some(vec![f32::NAN; 2]))), [2.0, 2.0]);
        assert_eq!(seen(HardFocus { strength: f32::NAN, ..hard("dog", 1.0, None) }), [1.0, 1.0]);
        let most = seen(HardFocus { strength: 1e9, ..hard("dog", 1.0, None) });
        assert_eq!(most, [33.0, 33.0], "capped");
    }
}
