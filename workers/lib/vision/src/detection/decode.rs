//! From candidates to objects: reads their boxes, drops what overlaps, and maps the rest to the picture.

use schemas::model::{BoxForm, BoxLayout, BoxUnit};
use schemas::{BoundingBox, DetectedObject, MAX_OBJECTS};

use super::layout::{ImageOutputs, OutputTensor};
use super::placement::PicturePlacement;
use super::suppression::suppress;
use super::{Detections, Detector, DetectorFault, PlacedCandidate, SourceSize};

impl Detector {
    /// The objects of one picture.
    pub(super) fn detect_one(
        &mut self,
        outputs: &[OutputTensor<'_>],
        image: (usize, usize),
        source: SourceSize,
    ) -> Result<Detections, DetectorFault> {
        let read = self.read(outputs, image)?;
        let report = self.scan(&read.scores, read.rows)?;
        let all = self.candidates.found.len();
        let mut placed = Vec::with_capacity(all);
        placed.extend(self.candidates.found.iter().filter_map(|candidate| {
            let edges = self.edges(&read, candidate.row as usize)?;
            Some(PlacedCandidate { candidate: *candidate, edges })
        }));
        let broken = all - placed.len();
        if !report.is_sound || (broken > 0 && placed.is_empty()) {
            return Err(DetectorFault::NotFinite { image: image.0 });
        }
        let most = self.boxes.max_objects.map_or(MAX_OBJECTS, |most| (most as usize).min(MAX_OBJECTS));
        let objects = match self.boxes.nms_iou {
            None => self.objects(placed.iter(), source, most),
            Some(iou) => {
                let kept = suppress(&placed, iou, self.boxes.class_agnostic, most);
                self.objects(kept.iter().filter_map(|index| placed.get(*index)), source, most)
            }
        };
        let (best, cut) = (report.best, self.candidates.cut);
        Ok(Detections { objects, best, not_finite: report.not_finite + broken, cut })
    }

    /// Left, top, right and bottom of a box in the unit of the description; `None` if one is not finite.
    fn edges(&self, read: &ImageOutputs<'_>, row: usize) -> Option<[f32; 4]> {
        let mut numbers = [0, 1, 2, 3].map(|column| read.boxes.at(row, column));
        if self.boxes.layout == BoxLayout::Grid {
            let [column, line, stride] = *self.cells.get(row)?;
            let [x, y, width, height] = numbers;
            numbers = [(x + column) * stride, (y + line) * stride, width.exp() * stride, height.exp() * stride];
        }
        let [a, b, c, d] = numbers;
        let [left, top, right, bottom] = match self.boxes.form {
            BoxForm::CxCyWh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
            BoxForm::XyWh => [a, b, a + c, b + d],
            BoxForm::XyXy => [a, b, c, d],
            BoxForm::YxYx => [b, a, d, c],
        };
        // Corners may come in either order.
        let edges = [left.min(right), top.min(bottom), left.max(right), top.max(bottom)];
        [left, top, right, bottom].iter().all(|edge| edge.is_finite()).then_some(edges)
    }

    /// Objects of candidates, surest first, at most `most`: cut off at the picture's edges, without empty ones.
    fn objects<'a>(
        &self,
        placed: impl Iterator<Item = &'a PlacedCandidate>,
        source: SourceSize,
        most: usize,
    ) -> Vec<DetectedObject> {
        let placement = PicturePlacement::of(&self.input, source);
        let object = |placed: &PlacedCandidate| {
            let scaled = |width: f32, height: f32| {
                let [left, top, right, bottom] = placed.edges;
                [left * width, top * height, right * width, bottom * height]
            };
            let bounds = match self.boxes.unit {
                BoxUnit::InputPixels => placement.to_source(placed.edges),
                BoxUnit::Ratio => placement.to_source(scaled(self.input.width_px as f32, self.input.height_px as f32)),
                BoxUnit::SourcePixels => scaled(1.0 / source.width_px as f32, 1.0 / source.height_px as f32).into(),
            };
            let [left, top, right, bottom] = <[f32; 4]>::from(bounds).map(|edge| edge.clamp(0.0, 1.0));
            let bounds = BoundingBox { left, top, right, bottom };
            let label = self.labels.get(placed.candidate.class as usize)?.clone();
            bounds.is_valid().then(|| DetectedObject { label, confidence: placed.candidate.score.min(1.0), bounds })
        };
        placed.filter_map(object).take(most).collect()
    }
}
