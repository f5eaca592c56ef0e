//! What a release finds hard over all sites: which classes, and what their pictures look like to it. Pure.
//!
//! In: hard cases, which sites send without pixels. Out: what a round asks its sites to train on more often.

use std::collections::BTreeMap;

use schemas::answer::RankedClass;
use schemas::round::HARD_CLASSES_MAX;
use schemas::{HardClass, HardFocus};

/// Most features sent per class; a model with more gets a focus by class alone.
pub const FEATURES_MAX: usize = 2048;

/// Sums up hard cases by class.
#[derive(Debug, Clone, Default)]
pub struct HardSummary {
    of_class: BTreeMap<String, HardClassSum>,
}

#[derive(Debug, Clone, Default)]
struct HardClassSum {
    /// The class's part of all hard cases.
    doubt: f64,
    /// Sum of the feature directions, each weighted by the class's part of the case.
    direction: Vec<f64>,
}

impl HardSummary {
    /// Adds one case. `top`: its best classes; the case is divided among them by confidence, because the doubt is which
    /// of them it is.
    pub fn add(&mut self, top: &[RankedClass], features: Option<&[f32]>) {
        let given = |ranked: &RankedClass| {
            Some(f64::from(ranked.confidence)).filter(|given| (0.0..=1.0).contains(given)).unwrap_or(0.0)
        };
        let all: f64 = top.iter().map(given).sum();
        if all <= 0.0 {
            return;
        }
        let length = features.map_or(0.0, |features| features.iter().map(|value| value * value).sum::<f32>().sqrt());
        let features = features.filter(|features| length.is_normal() && features.len() <= FEATURES_MAX);
        for ranked in top {
            let part = given(ranked) / all;
            let sum = self.of_class.entry(ranked.label.clone()).or_default();
            sum.doubt += part;
            let Some(features) = features else { continue };
            if sum.direction.is_empty() {
                sum.direction = vec![0.0; features.len()];
            }
            if sum.direction.len() == features.len() {
                sum.direction
                    .iter_mut()
                    .zip(features)
                    .for_each(|(sum, value)| *sum += part * f64::from(value / length));
            }
        }
    }

    /// The focus that a round asks for; `None` without hard cases, or with strength 0. `strength`: 0 to 8.
    pub fn focus(self, strength: f32) -> Option<HardFocus> {
        let all: f64 = self.of_class.values().map(|sum| sum.doubt).sum();
        if strength <= 0.0 || all <= 0.0 {
            return None;
        }
        let class = |(label, sum): (String, HardClassSum)| {
            let length = sum.direction.iter().map(|value| value * value).sum::<f64>().sqrt();
            let features = sum.direction.iter().map(|value| (value / length) as f32).collect();
            HardClass { label, ratio: (sum.doubt / all) as f32, features: length.is_normal().then_some(features) }
        };
        let mut classes: Vec<HardClass> = self.of_class.into_iter().map(class).collect();
        classes.sort_by(|a, b| b.ratio.total_cmp(&a.ratio).then_with(|| a.label.cmp(&b.label)));
        classes.truncate(HARD_CLASSES_MAX);
        Some(HardFocus { strength, classes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(classes: &[(&str, f32)]) -> Vec<RankedClass> {
        classes
            .iter()
            .map(|(label, confidence)| RankedClass { label: (*label).into(), confidence: *confidence })
            .collect()
    }

    #[test]
    fn doubt_is_divided_among_the_best_classes() {
        let mut summary = HardSummary::default();
        summary.add(&top(&[("cat", 0.45), ("dog", 0.45)]), Some(&[2.0, 0.0]));
        summary.add(&top(&[("dog", 0.6), ("hen", 0.2)]), Some(&[0.0, 5.0]));
        let focus = summary.focus(0.5).unwrap();
        let ratios: Vec<(&str, f32)> = focus.classes.iter().map(|class| (class.label.as_str(), class.ratio)).collect();
        assert_eq!(ratios, [("dog", 0.625), ("cat", 0.25), ("hen", 0.125)]);
        assert_eq!(focus.classes[1].features, Some(vec![1.0, 0.0]));
        let dog = focus.classes[0].features.as_ref().unwrap();
        assert!((dog[0] / dog[1] - 0.5 / 0.75).abs() < 1e-6, "{dog:?}: by direction, not by length");
        assert!((dog[0].hypot(dog[1]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn cases_without_features_count_by_class_and_no_cases_give_no_focus() {
        let mut summary = HardSummary::default();
        for features in [None, Some(vec![f32::NAN]), Some(vec![0.0; 3]), Some(vec![1.0; FEATURES_MAX + 1])] {
            summary.add(&top(&[("cat", 0.5)]), features.as_deref());
        }
        assert_eq!(summary.clone().focus(1.0).unwrap().classes[0].features, None);
        assert_eq!(summary.focus(0.0), None);
        let mut empty = HardSummary::default();
        empty.add(&top(&[("cat", f32::NAN)]), None);
        assert_eq!(empty.focus(1.0), None);
        let mut many = HardSummary::default();
        (0..100).for_each(|number| many.add(&top(&[(&format!("{number}"), 0.5)]), None));
        assert_eq!(many.focus(1.0).unwrap().classes.len(), HARD_CLASSES_MAX);
    }
}
