//! An object that a detector found in a picture: what, how sure, and where.

use serde::{Deserialize, Serialize};

/// Most objects that an answer lists; of more, the surest are kept.
pub const MAX_OBJECTS: usize = 300;

/// One object in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetectedObject {
    /// Label of its class.
    pub label: String,
    /// How sure the model is, 0 to 1; 1 if a person drew the box.
    pub confidence: f32,
    /// Where it is.
    #[serde(rename = "box")]
    pub bounds: BoundingBox,
}

/// A rectangle in a picture, as fractions of its width and height, 0 to 1, from the top left corner of the upright
/// picture. On the wire: `[left, top, right, bottom]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 4]", into = "[f32; 4]")]
pub struct BoundingBox {
    /// Left edge.
    pub left: f32,
    /// Top edge.
    pub top: f32,
    /// Right edge; not less than `left` in a valid box.
    pub right: f32,
    /// Bottom edge; not less than `top` in a valid box.
    pub bottom: f32,
}

impl BoundingBox {
    /// Whether every edge is a number from 0 to 1 and the box has an area.
    pub fn is_valid(&self) -> bool {
        let in_picture = |edge: f32| (0.0..=1.0).contains(&edge);
        in_picture(self.left)
            && in_picture(self.top)
            && in_picture(self.right)
            && in_picture(self.bottom)
            && self.left < self.right
            && self.top < self.bottom
    }

    /// Area as a fraction of the picture; 0 for a box whose edges are in the wrong order.
    pub fn area(&self) -> f32 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    /// Area of the intersection with `other` divided by the area of the union, 0 to 1; 0 if both are empty. Boxes of
    /// one picture only: the fraction does not depend on the picture's shape.
    pub fn intersection_over_union(&self, other: &Self) -> f32 {
        let shared = Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
        .area();
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }
}

impl From<[f32; 4]> for BoundingBox {
    fn from([left, top, right, bottom]: [f32; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

impl From<BoundingBox> for [f32; 4] {
    fn from(bounds: BoundingBox) -> Self {
        [bounds.left, bounds.top, bounds.right, bounds.bottom]
    }
}

#[cfg(test)]
mod tests {
    use super::BoundingBox;

    #[test]
    fn a_box_without_area_or_with_edges_outside_the_picture_is_not_valid() {
        assert!(BoundingBox::from([0.0, 0.25, 1.0, 0.5]).is_valid());
        for edges in [[0.5, 0.2, 0.5, 0.4], [0.6, 0.2, 0.5, 0.4], [-0.1, 0.0, 0.5, 0.5], [0.0, 0.0, f32::NAN, 0.5]] {
            assert!(!BoundingBox::from(edges).is_valid(), "{edges:?}");
        }
    }

    #[test]
    fn intersection_over_union_of_equal_half_shifted_and_distant_boxes() {
        let whole = BoundingBox::from([0.0, 0.0, 0.5, 0.5]);
        let shifted = BoundingBox::from([0.25, 0.0, 0.75, 0.5]);
        let distant = BoundingBox::from([0.6, 0.6, 0.9, 0.9]);
        assert_eq!(whole.intersection_over_union(&whole), 1.0);
        assert!((whole.intersection_over_union(&shifted) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(whole.intersection_over_union(&distant), 0.0);
    }
}
