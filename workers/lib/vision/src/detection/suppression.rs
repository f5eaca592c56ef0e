//! Non-maximum suppression: of overlapping boxes, only the surest stays.
//!
//! The result is that of the ONNX operator NonMaxSuppression in ONNX Runtime: suppressed is what overlaps *more* than
//! the threshold; boxes without an area suppress nothing. Unlike there, one limit holds for all classes together.

use super::PlacedCandidate;

/// Indices of the boxes that stay, in their order, at most `most`. `candidates`: surest first.
pub(super) fn suppress(candidates: &[PlacedCandidate], iou: f32, class_agnostic: bool, most: usize) -> Vec<usize> {
    let mut kept: Vec<(usize, &PlacedCandidate)> = Vec::with_capacity(most.min(candidates.len()));
    for (index, one) in candidates.iter().enumerate() {
        if kept.len() == most {
            break;
        }
        let is_suppressed = kept.iter().any(|(_, other)| {
            (class_agnostic || other.candidate.class == one.candidate.class)
                && overlap_more_than(&one.edges, &other.edges, iou)
        });
        if !is_suppressed {
            kept.push((index, one));
        }
    }
    kept.into_iter().map(|(index, _)| index).collect()
}

/// Whether the intersection over union of two boxes is above `iou`, in the order of operations of ONNX Runtime.
fn overlap_more_than(one: &[f32; 4], other: &[f32; 4], iou: f32) -> bool {
    let [left, top, right, bottom] = one;
    let [other_left, other_top, other_right, other_bottom] = other;
    let (shared_left, shared_right) = (left.max(*other_left), right.min(*other_right));
    let (shared_top, shared_bottom) = (top.max(*other_top), bottom.min(*other_bottom));
    if shared_right <= shared_left || shared_bottom <= shared_top {
        return false;
    }
    let shared = (shared_right - shared_left) * (shared_bottom - shared_top);
    let (area, other_area) = ((right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top));
    let union = area + other_area - shared;
    area > 0.0 && other_area > 0.0 && union > 0.0 && shared / union > iou
}
