//! What sending more images up would bring: for every threshold of confidence, the share of images below it, and the
//! accuracy if the cloud's prediction replaced the site's there. Pure.

/// Whether both models are right about one labelled image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PredictionPair {
    /// The site's confidence, 0 to 1.
    pub confidence: f32,
    /// Whether the site's label is the true one.
    pub site_right: bool,
    /// Whether the cloud's label is the true one.
    pub cloud_right: bool,
}

/// Share sent up and accuracy, from nothing to everything; the least confident go first. Images of equal confidence go
/// together, because no threshold separates them.
pub(super) fn by_confidence(judged: &[PredictionPair]) -> Vec<(f64, f64)> {
    let mut sorted = judged.to_vec();
    sorted.sort_by(|a, b| a.confidence.total_cmp(&b.confidence));
    let count = sorted.len().max(1) as f64;
    let mut right = sorted.iter().filter(|image| image.site_right).count() as i64;
    let mut points = vec![(0.0, right as f64 / count)];
    let mut sent = 0;
    for same in sorted.chunk_by(|a, b| a.confidence == b.confidence) {
        sent += same.len();
        right += same.iter().map(|image| i64::from(image.cloud_right) - i64::from(image.site_right)).sum::<i64>();
        points.push((sent as f64 / count, right as f64 / count));
    }
    points
}

/// Accuracy at the point whose share is nearest; 0 without points.
pub(super) fn at(points: &[(f64, f64)], share: f64) -> f64 {
    let distance = |(at, _): &&(f64, f64)| (at - share).abs();
    points.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map_or(0.0, |(_, accuracy)| *accuracy)
}

/// At most about `most` of the points, evenly spread, with the first and the last.
pub(super) fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let last = points.len().saturating_sub(1);
    let step = last.div_ceil(most.saturating_sub(1).max(1)).max(1);
    let mut kept: Vec<(f64, f64)> = points.iter().step_by(step).copied().collect();
    if !last.is_multiple_of(step) {
        kept.extend(points.last());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(confidence: f32, site_right: bool, cloud_right: bool) -> PredictionPair {
        PredictionPair { confidence, site_right, cloud_right }
    }

    #[test]
    fn the_most_doubtful_go_first_and_both_ends_are_the_models_alone() {
        let images =
            [judged(0.9, true, false), judged(0.2, false, true), judged(0.5, false, false), judged(0.6, true, true)];
        assert_eq!(by_confidence(&images), [(0.0, 0.5), (0.25, 0.75), (0.5, 0.75), (0.75, 0.75), (1.0, 0.5)]);
    }

    #[test]
    fn images_of_one_confidence_go_together() {
        let images = [judged(0.5, false, true), judged(0.5, true, true), judged(0.7, true, true)];
        let points = by_confidence(&images);
        assert_eq!(points.len(), 3);
        assert_eq!(points[1].0, 2.0 / 3.0);
    }

    #[test]
    fn accuracy_is_that_of_the_nearest_point() {
        let points = [(0.0, 0.5), (0.25, 0.75), (1.0, 0.6)];
        assert_eq!([0.0, 0.2, 0.9].map(|share| at(&points, share)), [0.5, 0.75, 0.6]);
        assert_eq!(at(&[], 0.3), 0.0);
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let points: Vec<(f64, f64)> = (0..1001).map(|x| (f64::from(x), 0.0)).collect();
        let thin = thinned(&points, 100);
        assert!(thin.len() <= 101, "{}", thin.len());
        assert_eq!((thin.first(), thin.last()), (points.first(), points.last()));
        assert_eq!(thinned(&points[..1], 100), points[..1]);
        assert_eq!(thinned(&[], 100), []);
    }
}
