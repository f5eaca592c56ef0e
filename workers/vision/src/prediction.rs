//! From a model's logits to what it says about a picture, in words. Pure.

use schemas::limits::MAX_TOP;
use schemas::{MAX_HELD_LABELS, NO_LABEL, Prediction, RankedClass};

use crate::model::Model;
use crate::scores::top;

/// What the model says, given the probabilities of its labels; `None` when there is no label.
///
/// Of a model for several labels at once, the label is the most probable of those that reach their threshold. Where none
/// does, it is [`NO_LABEL`], as probable as the most probable label is not.
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
    let said = match labels.as_deref() {
        None => best,
        Some([first, ..]) => first.clone(),
        Some([]) => RankedClass { label: NO_LABEL.to_owned(), confidence: 1.0 - best.confidence },
    };
    Some(Prediction {
        label: said.label,
        confidence: said.confidence,
        top: top_ranked,
        labels,
        release: model.release.clone(),
        temperature: None,
        novelty: None,
    })
}
