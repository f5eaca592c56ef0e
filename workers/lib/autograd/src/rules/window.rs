//! Geometry of operators that move a window over a picture.

use crate::gradient_tape::{GradientRefusal, unsupported};
use crate::onnx::{ints, text};
use crate::proto::NodeProto;

/// A window; each field has one number per axis of the picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolWindow {
    /// Its size.
    pub kernel: Vec<i64>,
    /// Distance between positions.
    pub strides: Vec<i64>,
    /// Distance between its own rows.
    pub dilations: Vec<i64>,
    /// Padding before the first pixel.
    pub begins: Vec<i64>,
    /// Padding after the last pixel.
    pub ends: Vec<i64>,
}

impl PoolWindow {
    /// For a convolution or pooling from pictures of one size to pictures of another.
    pub(crate) fn of(node: &NodeProto, kernel: &[i64], from: &[i64], to: &[i64]) -> Result<Self, GradientRefusal> {
        let rank = kernel.len();
        let strides = ints(node, "strides").unwrap_or(vec![1; rank]);
        let dilations = ints(node, "dilations").unwrap_or(vec![1; rank]);
        let pads = ints(node, "pads").unwrap_or(vec![0; 2 * rank]);
        if [strides.len(), dilations.len(), from.len(), to.len()] != [rank; 4] || pads.len() != 2 * rank {
            return unsupported("its window and its picture have different numbers of axes");
        }
        let (begins, ends) = match text(node, "auto_pad").as_deref() {
            None | Some("" | "NOTSET") => (pads[..rank].to_vec(), pads[rank..].to_vec()),
            Some("VALID") => (vec![0; rank], vec![0; rank]),
            Some(same @ ("SAME_UPPER" | "SAME_LOWER")) => {
                let total = |axis: usize| {
                    let reach = (kernel[axis] - 1) * dilations[axis] + 1;
                    ((to[axis] - 1) * strides[axis] + reach - from[axis]).max(0)
                };
                // With UPPER, the odd pixel of padding goes after the picture, with LOWER before it.
                let before = |axis: usize| if same == "SAME_UPPER" { total(axis) / 2 } else { (total(axis) + 1) / 2 };
                ((0..rank).map(before).collect(), (0..rank).map(|axis| total(axis) - before(axis)).collect())
            }
            Some(other) => return unsupported(format!("auto_pad {other} is not supported")),
        };
        Ok(Self { kernel: kernel.to_vec(), strides, dilations, begins, ends })
    }

    /// For a pooling, which names its kernel.
    pub(crate) fn of_pooling(node: &NodeProto, from: &[i64], to: &[i64]) -> Result<Self, GradientRefusal> {
        let kernel = ints(node, "kernel_shape").unwrap_or_default();
        if kernel.is_empty() || from.len() != kernel.len() + 2 || to.len() != from.len() {
            return unsupported("its kernel_shape does not fit its picture");
        }
        PoolWindow::of(node, &kernel, &from[2..], &to[2..])
    }

    pub(crate) fn rank(&self) -> usize {
        self.kernel.len()
    }

    /// Both pads, as attributes need them.
    pub(crate) fn pads(&self) -> Vec<i64> {
        self.begins.iter().chain(&self.ends).copied().collect()
    }

    /// Pads of a whole tensor: none for images and channels.
    pub(crate) fn pads_of_all(&self) -> Vec<i64> {
        [&[0, 0], self.begins.as_slice(), &[0, 0], self.ends.as_slice()].concat()
    }

    pub(crate) fn is_padded(&self) -> bool {
        self.begins.iter().chain(&self.ends).any(|pad| *pad != 0)
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.strides.iter().chain(&self.dilations).all(|step| *step == 1)
    }

    /// Whether it is one pixel that moves pixel by pixel.
    pub(crate) fn is_point(&self) -> bool {
        self.kernel.iter().all(|size| *size == 1) && self.is_plain() && !self.is_padded()
    }

    /// Its extent along an axis.
    fn reach(&self, axis: usize) -> i64 {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// What is left of the picture after the last position; negative if windows extend beyond it.
    pub(crate) fn remainder(&self, from: &[i64], to: &[i64]) -> Vec<i64> {
        let rest = |axis: usize| {
            let covered = (to[axis] - 1) * self.strides[axis] + self.reach(axis);
            from[axis] + self.begins[axis] + self.ends[axis] - covered
        };
        (0..self.rank()).map(rest).collect()
    }

    /// Each position in the kernel, in the order of its values.
    pub(crate) fn places(&self) -> Vec<Vec<i64>> {
        let mut places = vec![Vec::new()];
        for size in &self.kernel {
            places = places
                .iter()
                .flat_map(|place| (0..*size).map(|at| place.iter().copied().chain([at]).collect()))
                .collect();
        }
        places
    }

    /// The range of a padded picture that one kernel position sees: starts and ends, in steps of the strides.
    pub(crate) fn seen_by(&self, place: &[i64], to: &[i64]) -> (Vec<i64>, Vec<i64>) {
        let starts: Vec<i64> = place.iter().zip(&self.dilations).map(|(at, dilation)| at * dilation).collect();
        let ends = (0..self.rank()).map(|axis| starts[axis] + (to[axis] - 1) * self.strides[axis] + 1).collect();
        (starts, ends)
    }

    /// The picture's axes in a tensor of images.
    pub(crate) fn axes(&self) -> Vec<i64> {
        (2..self.rank() as i64 + 2).collect()
    }

    /// How many pixels of the picture the window covers at each position; `all`: also count pads.
    pub(crate) fn coverage(&self, from: &[i64], to: &[i64], all: bool) -> Vec<f32> {
        let along = |axis: usize| -> Vec<i64> {
            let covered = |place: i64| {
                let at = |inner: &i64| place * self.strides[axis] + inner * self.dilations[axis] - self.begins[axis];
                let inside = |position: i64| match all {
                    true => position < from[axis] + self.ends[axis],
                    false => (0..from[axis]).contains(&position),
                };
                (0..self.kernel[axis]).filter(|inner| inside(at(inner))).count() as i64
            };
            (0..to[axis]).map(covered).collect()
        };
        let mut counts = vec![1.0];
        for axis in 0..self.rank() {
            let own = along(axis);
            counts = counts.iter().flat_map(|count| own.iter().map(move |covered| count * *covered as f32)).collect();
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kernel: i64, stride: i64, pad: i64) -> PoolWindow {
        PoolWindow {
            kernel: vec![kernel; 2],
            strides: vec![stride; 2],
            dilations: vec![1; 2],
            begins: vec![pad; 2],
            ends: vec![pad; 2],
        }
    }

    #[test]
    fn a_window_at_the_edge_covers_less() {
        assert_eq!(window(3, 1, 1).coverage(&[2, 2], &[2, 2], false), [4.0; 4]);
        assert_eq!(window(3, 2, 1).coverage(&[3, 3], &[2, 2], false), [4.0; 4]);
        assert_eq!(window(2, 1, 0).coverage(&[3, 3], &[2, 2], true), [4.0; 4]);
    }

    #[test]
    fn pixels_that_no_window_reaches_are_the_remainder() {
        assert_eq!(window(2, 2, 0).remainder(&[5, 4], &[2, 2]), [1, 0]);
        assert_eq!(window(2, 2, 0).remainder(&[5, 5], &[3, 3]), [-1, -1], "rounded up");
    }
}
