//! Turns a model's probabilities or objects into its prediction. Pure.

use schemas::limits::MAX_TOP;
use schemas::{MAX_HELD_LABELS, NO_LABEL, Prediction, RankedClass};

use crate::detection::Detections;
use crate::inference::InferenceResult;
use crate::model::Model;
use crate::scores::{probabilities, top};

/// What a model says of a picture. `temperature` divides the logits of a classifier; a detector has none. `None` without
/// labels.
pub fn predict(seen: &InferenceResult, temperature: f32) -> Option<Prediction> {
    let model = &seen.model;
    let said = match &seen.detections {
        Some(found) => of_objects(model, found),
        None => prediction(model, &probabilities(model, &seen.logits, temperature))?,
    };
    Some(Prediction { novelty: seen.novelty, ..said })
}

/// The prediction of a detector: the label of the surest object, or [`NO_LABEL`] with one minus the best score.
fn of_objects(model: &Model, found: &Detections) -> Prediction {
    let mut top: Vec<RankedClass> = Vec::with_capacity(MAX_TOP);
    for object in &found.objects {
        if top.len() == MAX_TOP {
            break;
        }
        if top.iter().all(|class| class.label != object.label) {
            top.push(RankedClass { label: object.label.clone(), confidence: object.confidence });
        }
    }
    let (label, confidence) = match top.first() {
        Some(best) => (best.label.clone(), best.confidence),
        None => (NO_LABEL.to_owned(), 1.0 - found.best_score()),
    };
    Prediction {
        label,
        confidence,
        top,
        labels: None,
        objects: Some(found.objects.clone()),
        release: model.release.clone(),
        temperature: None,
        novelty: None,
    }
}

/// The prediction of a classifier, given the probabilities of the labels; `None` without labels.
///
/// For a multi-label model it is the most probable label that reaches its threshold, or [`NO_LABEL`] if none does, with
/// one minus the largest probability as its confidence.
pub fn prediction(model: &Model, ratios: &[f32]) -> Option<Prediction> {
    let ranked = |(class, confidence): (usize, f32)| {
        let label = model.labels.get(class).cloned().unwrap_or_else(|| format!("class-{class}"));
        RankedClass { label, confidence }
    };
    let top_ranked: Vec<RankedClass> = top(ratios, MAX_TOP).into_iter().map(ranked).collect();
    let best = top_ranked.first()?.clone();
    let labels = model.description.output.kind.is_multi_label().then(|| {
        let mut held = top(ratios, ratios.len());
        held.retain(|(class, ratio)| model.thresholds.get(*class).is_some_and(|threshold| ratio >= threshold));
        held.truncate(MAX_HELD_LABELS);
        held.into_iter().map(ranked).collect::<Vec<_>>()
    });
    let top = match labels.as_deref() {
        None => best,
        Some([first, ..]) => first.clone(),
        Some([]) => RankedClass { label: NO_LABEL.to_owned(), confidence: 1.0 - best.confidence },
    };
    Some(Prediction {
        label: top.label,
        confidence: top.confidence,
        top: top_ranked,
        labels,
        objects: None,
        release: model.release.clone(),
        temperature: None,
        novelty: None,
    })
}
