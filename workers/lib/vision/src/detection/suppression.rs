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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::detection::Candidate;
    use crate::graph::{Graph, GraphInput, TensorNumbers};
    use crate::sample::SampleRng;
    use crate::session::tests::onnx;

    fn ratio(rng: &mut SampleRng) -> f32 {
        rng.below(1 << 24) as f32 / (1 << 24) as f32
    }

    /// (class, box) in the order of class and score, as ONNX Runtime gives them.
    fn reference(graph: &mut Graph, boxes: &[[f32; 4]], scores: &[Vec<f32>], iou: f32, score: f32) -> Vec<(u32, u32)> {
        let (n, classes) = (boxes.len() as i64, scores.len() as i64);
        let (flat, scores) = (boxes.concat(), scores.concat());
        let (of_boxes, of_scores) = ([1, n, 4], [1, classes, n]);
        let mut selected = Vec::new();
        let given = [
            GraphInput { name: "boxes", shape: &of_boxes, values: &flat },
            GraphInput { name: "scores", shape: &of_scores, values: &scores },
            GraphInput { name: "iou", shape: &[1], values: &[iou] },
            GraphInput { name: "score", shape: &[1], values: &[score] },
        ];
        graph
            .run(&given, |output| {
                let TensorNumbers::Ints(numbers) = output.numbers else { panic!("{output:?}") };
                selected = numbers.chunks(3).map(|row| (row[1] as u32, row[2] as u32)).collect();
            })
            .unwrap();
        selected
    }

    fn ours(boxes: &[[f32; 4]], scores: &[Vec<f32>], iou: f32, score: f32) -> Vec<(u32, u32)> {
        let mut candidates = Vec::new();
        for (class, scores) in (0..).zip(scores) {
            for (row, (given, found)) in (0..).zip(boxes.iter().zip(scores)) {
                let [top, left, bottom, right] = *given;
                let edges = [left.min(right), top.min(bottom), left.max(right), top.max(bottom)];
                if *found > score {
                    candidates.push(PlacedCandidate { candidate: Candidate { score: *found, row, class }, edges });
                }
            }
        }
        candidates.sort_by(|a, b| b.candidate.score.total_cmp(&a.candidate.score));
        let mut kept: Vec<Candidate> = suppress(&candidates, iou, false, usize::MAX)
            .into_iter()
            .map(|index| candidates[index].candidate)
            .collect();
        kept.sort_by_key(|candidate| candidate.class);
        kept.into_iter().map(|candidate| (candidate.class, candidate.row)).collect()
    }

    #[test]
    fn what_stays_is_what_the_runtimes_own_operator_keeps() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures/boxes/nms.onnx");
        let mut graph = Graph::open(&onnx(), "nms.onnx", &std::fs::read(path).unwrap(), 1).unwrap();
        let mut rng = SampleRng(24);
        let (mut kept, mut suppressed) = (0, 0);
        for set in 0..300 {
            let (count, classes) = (1 + rng.below(80), 1 + rng.below(4));
            // Every other set on a coarse grid: overlaps at the threshold, equal scores, boxes without an area, corners
            // in either order.
            let is_coarse = set % 2 == 0;
            let mut number = |coarse: u32| if is_coarse { rng.below(coarse) as f32 } else { ratio(&mut rng) };
            let boxes: Vec<[f32; 4]> = (0..count).map(|_| [(); 4].map(|()| number(6))).collect();
            let scores: Vec<Vec<f32>> = (0..classes)
                .map(|_| (0..count).map(|_| number(5) / if is_coarse { 4.0 } else { 1.0 }).collect())
                .collect();
            let iou = [0.0, 0.25, 0.5, 0.75, 1.0][rng.below(5) as usize];
            let expected = reference(&mut graph, &boxes, &scores, iou, 0.25);
            let above = scores.iter().flatten().filter(|score| **score > 0.25).count();
            (kept, suppressed) = (kept + expected.len(), suppressed + above - expected.len());
            assert_eq!(ours(&boxes, &scores, iou, 0.25), expected, "set {set}, iou {iou}: {boxes:?} {scores:?}");
        }
        assert!(kept > 3000 && suppressed > 3000, "{kept} kept, {suppressed} suppressed");
    }

    #[test]
    fn classes_suppress_each_other_only_where_that_is_asked_for_and_the_surest_are_kept() {
        let placed = |score, class, left: f32| PlacedCandidate {
            candidate: Candidate { score, row: 0, class },
            edges: [left, 0.0, left + 1.0, 1.0],
        };
        let candidates = [placed(0.9, 0, 0.0), placed(0.8, 1, 0.1), placed(0.7, 0, 3.0), placed(0.6, 0, 6.0)];
        assert_eq!(suppress(&candidates, 0.5, false, 300), [0, 1, 2, 3]);
        assert_eq!(suppress(&candidates, 0.5, true, 300), [0, 2, 3]);
        assert_eq!(suppress(&candidates, 0.5, true, 2), [0, 2]);
    }
}
