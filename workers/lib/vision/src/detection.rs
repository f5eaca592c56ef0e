//! From a detector's outputs to objects with boxes. Pure.
//!
//! In: the outputs of a run as they are, and the size of each upright picture. Out: objects in fractions of that
//! picture, surest first. The steps: [`layout`] finds boxes and scores in the outputs, [`scan`] the candidates above
//! their thresholds, [`decode`] reads their boxes, [`suppression`] drops what overlaps, [`placement`] maps from the
//! input to the picture. [`preset`] knows what the usual exporters write, [`draw`] shows the result. Refuses outputs of
//! another shape than described, class numbers without a label and scores that are none.

mod decode;
mod draw;
mod layout;
mod placement;
pub(crate) mod preset;
mod scan;
mod suppression;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use schemas::DetectedObject;
use schemas::model::{BoxLayout, BoxesDescription, InputDescription};

pub use self::draw::draw_objects;
pub(crate) use self::layout::{DetectorFault, OutputTensor};
use self::scan::{Candidate, CandidateList};
use crate::model::Model;

/// Most candidates whose boxes are compared; of more, the best are kept. With it and the most objects of an answer,
/// suppression takes at most three million comparisons, some milliseconds.
pub const MAX_CANDIDATES: usize = 10_000;

/// What a detector found in one picture.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Detections {
    /// Objects above their thresholds, surest first, at most [`MAX_OBJECTS`](schemas::MAX_OBJECTS).
    pub objects: Vec<DetectedObject>,
    /// Best score of each label, above its threshold or not, 0 to 1.
    pub best: Vec<f32>,
    /// Scores and boxes that were left out because they are not finite.
    pub not_finite: usize,
    /// Candidates above their thresholds that were left out because there were more than [`MAX_CANDIDATES`].
    pub cut: usize,
}

impl Detections {
    /// Best score of any label, above its threshold or not, 0 to 1.
    pub fn best_score(&self) -> f32 {
        self.best.iter().copied().fold(0.0, f32::max).min(1.0)
    }
}

/// Size of an upright picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SourceSize {
    /// Width.
    pub width_px: u32,
    /// Height.
    pub height_px: u32,
}

/// Reads the outputs of one model, with buffers that are reused between pictures.
#[derive(Debug)]
pub(crate) struct Detector {
    boxes: BoxesDescription,
    /// Name of the output with the boxes.
    output: String,
    input: InputDescription,
    labels: Arc<[String]>,
    /// Score above which an object of each label is found.
    thresholds: Vec<f32>,
    /// Layout `grid`: column, row and stride of each box's cell.
    cells: Vec<[f32; 3]>,
    candidates: CandidateList,
    /// Scores of one box.
    row: Vec<f32>,
}

impl Detector {
    /// `None` for a model that is no detector.
    pub(crate) fn of(model: &Model) -> Option<Self> {
        let description = &model.description;
        let boxes = description.output.boxes.clone()?;
        let cells = match boxes.layout {
            BoxLayout::Grid => layout::cells(&boxes, &description.input),
            _ => Vec::new(),
        };
        Some(Self {
            output: description.output.name.clone(),
            input: description.input.clone(),
            labels: model.labels.clone().into(),
            thresholds: model.thresholds.clone(),
            cells,
            candidates: CandidateList::default(),
            row: Vec::new(),
            boxes,
        })
    }

    /// The objects of each picture. `sources`: one size per image of the batch.
    pub(crate) fn detect(
        &mut self,
        outputs: &[OutputTensor<'_>],
        sources: &[SourceSize],
    ) -> Result<Vec<Detections>, DetectorFault> {
        let images = sources.len();
        (0..).zip(sources).map(|(image, source)| self.detect_one(outputs, (image, images), *source)).collect()
    }
}

/// A candidate with its box: left, top, right, bottom in the unit of the description.
#[derive(Debug, Clone, Copy)]
struct PlacedCandidate {
    candidate: Candidate,
    edges: [f32; 4],
}
