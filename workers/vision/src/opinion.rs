//! From a model's logits to what it says about a picture, in words. Pure.

use schemas::limits::MAX_TOP;
use schemas::{Opinion, Ranked};

use crate::model::Model;
use crate::scores::top;

/// What the model says, given the probabilities of its classes; `None` when there is no class.
pub fn opinion(model: &Model, ratios: &[f32]) -> Option<Opinion> {
    let ranked = |(class, confidence): (usize, f32)| {
        let label = model.labels.get(class).cloned().unwrap_or_else(|| format!("class-{class}"));
        Ranked { label, confidence }
    };
    let top: Vec<Ranked> = top(ratios, MAX_TOP).into_iter().map(ranked).collect();
    let best = top.first()?;
    Some(Opinion {
        label: best.label.clone(),
        confidence: best.confidence,
        release: model.release.clone(),
        top,
        temperature: None,
    })
}
