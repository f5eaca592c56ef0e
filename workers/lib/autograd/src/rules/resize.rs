//! Resize, nearest, linear and cubic: along each axis it is a matrix, `y = A x`, so the gradient is `Aᵀ dy`. The matrix
//! follows the definition of the ONNX operator (onnx.ai, Resize).

use crate::gradient_tape::{GradientRefusal, GradientTape, unsupported};
use crate::onnx::{float, int, text};
use crate::proto::NodeProto;

use super::{GradientRule, OutputGradients, input};

pub(super) const RULES: &[(&str, GradientRule)] = &[("Resize", resize)];

fn resize(tape: &mut GradientTape<'_>, node: &NodeProto, outputs: &OutputGradients) -> Result<(), GradientRefusal> {
    let picture = input(node, 0);
    let (from, to) = (tape.shape(picture)?, tape.shape(&node.output[0])?);
    if from.len() != 4 || from[..2] != to[..2] {
        return unsupported("it resizes axes other than rows and columns");
    }
    if int(node, "antialias").unwrap_or(0) != 0 {
        return unsupported("it smooths while it shrinks (antialias)");
    }
    let scales = tape.known().floats(input(node, 2)).filter(|scales| scales.len() == 4);
    let along = |axis: usize| {
        let scale = scales.map_or(to[axis] as f32 / from[axis] as f32, |scales| scales[axis]);
        matrix(node, from[axis], to[axis], scale)
    };
    let (rows, columns) = (along(2)?, along(3)?);
    let columns = tape.floats(&[to[3], from[3]], &columns);
    let across = tape.op("MatMul", &[&outputs.first, &columns], &[]);
    let rows = tape.floats(&[to[2], from[2]], &rows);
    let rows = tape.transpose(&rows, &[1, 0]);
    let own = tape.op("MatMul", &[&rows, &across], &[]);
    tape.add_gradient(picture, own);
    Ok(())
}

/// The weight of each pixel of an axis in each pixel of the resized one: `[to, from]`, last axis first.
fn matrix(node: &NodeProto, from: i64, to: i64, scale: f32) -> Result<Vec<f32>, GradientRefusal> {
    let mode = text(node, "coordinate_transformation_mode").unwrap_or_else(|| "half_pixel".into());
    let place = |at: i64| -> Option<f64> {
        let (at, scale) = (at as f64, f64::from(scale));
        Some(match mode.as_str() {
            "half_pixel" => (at + 0.5) / scale - 0.5,
            "pytorch_half_pixel" if to == 1 => 0.0,
            "pytorch_half_pixel" => (at + 0.5) / scale - 0.5,
            "align_corners" if to == 1 => 0.0,
            "align_corners" => at * (from - 1) as f64 / (to - 1) as f64,
            "asymmetric" => at / scale,
            _ => return None,
        })
    };
    let last = (from - 1) as f64;
    let mut matrix = vec![0.0; (from * to) as usize];
    for (at, row) in matrix.chunks_exact_mut(from as usize).enumerate() {
        let Some(place) = place(at as i64) else {
            return unsupported(format!("its coordinates are {mode}"));
        };
        match text(node, "mode").as_deref() {
            None | Some("nearest") => {
                let nearest = match text(node, "nearest_mode").as_deref() {
                    None | Some("round_prefer_floor") => (place - 0.5).ceil(),
                    Some("round_prefer_ceil") => (place + 0.5).floor(),
                    Some("floor") => place.floor(),
                    Some("ceil") => place.ceil(),
                    Some(other) => return unsupported(format!("its nearest_mode is {other}")),
                };
                row[nearest.clamp(0.0, last) as usize] = 1.0;
            }
            Some("linear") => {
                let place = place.clamp(0.0, last);
                let below = place.floor();
                let share = (place - below) as f32;
                row[below as usize] += 1.0 - share;
                if share > 0.0 {
                    row[(below + 1.0).min(last) as usize] += share;
                }
            }
            Some("cubic") => {
                let a = f64::from(float(node, "cubic_coeff_a").unwrap_or(-0.75));
                let only_inside = int(node, "exclude_outside").unwrap_or(0) != 0;
                let first = place.floor() - 1.0;
                let shares: Vec<(f64, f64)> = (0..4)
                    .map(|step| first + f64::from(step))
                    .map(|pixel| {
                        let outside = only_inside && !(0.0..=last).contains(&pixel);
                        (pixel, if outside { 0.0 } else { cubic((place - pixel).abs(), a) })
                    })
                    .collect();
                let all: f64 = if only_inside { shares.iter().map(|(_, share)| share).sum() } else { 1.0 };
                for (pixel, share) in shares {
                    row[pixel.clamp(0.0, last) as usize] += (share / all) as f32;
                }
            }
            Some(other) => return unsupported(format!("its mode is {other}")),
        }
    }
    Ok(matrix)
}

/// Weight of a pixel at a distance (Keys, "Cubic convolution interpolation for digital image processing", 1981).
fn cubic(distance: f64, a: f64) -> f64 {
    let d = distance;
    match d {
        _ if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}
