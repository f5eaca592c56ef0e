//! The description of a model's input and output: `model.toml` beside `graph.onnx` and `labels.txt`.
//!
//! Two classifiers may differ in input size, channel order, scale, and in whether they output logits
//! or probabilities; the description says all of it and nothing is guessed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The only version of the format so far.
pub const MODEL_VERSION: u32 = 1;

/// The contents of `model.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDescription {
    /// Name of the model: one lower-case token.
    pub name: String,
    /// Version of this format: [`MODEL_VERSION`].
    pub version: u32,
    /// File of the graph in the model's folder. Absent: `graph.onnx`, an exporter's usual name, or the only ONNX file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<String>,
    /// How an image becomes the input tensor.
    pub input: InputDescription,
    /// What the graph outputs.
    pub output: OutputDescription,
    /// The model's own calibration and thresholds; settings override them.
    #[serde(default)]
    pub gate: GateDefaults,
}

/// How an image becomes the input tensor: decode, resize, then
/// `value = (pixel * scale - mean) / std` for each channel, pixel in 0..=255.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputDescription {
    /// Name of the graph's input.
    pub name: String,
    /// Width in pixels, 1 to 4096.
    pub width_px: u32,
    /// Height in pixels, 1 to 4096.
    pub height_px: u32,
    /// Order and number of channels.
    pub channels: Channels,
    /// Order of the axes.
    #[serde(default)]
    pub layout: Layout,
    /// Factor applied to the pixel before `mean` and `std`, for example 1/255.
    pub scale: f32,
    /// Subtracted after scaling; one number per channel, in the order of `channels`.
    pub mean: Vec<f32>,
    /// Divides last; one number per channel, none zero.
    pub std: Vec<f32>,
    /// How the image is fitted to the input size.
    #[serde(default)]
    pub resize: ResizeMode,
    /// Size before the centre crop, in pixels: for `crop` of the short side, absent: the larger of width and height;
    /// for
    /// `stretch` of both sides, absent: nothing is cropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize_px: Option<u32>,
    /// Rounding of the offset of the centre crop.
    #[serde(default, skip_serializing_if = "CropOffset::is_default")]
    pub crop_offset: CropOffset,
    /// Interpolation of the resize.
    #[serde(default)]
    pub filter: Filter,
    /// Whether `bilinear` averages over the pixels it shrinks away, as Pillow and torchvision do; TensorFlow and OpenCV
    /// do not.
    #[serde(default = "averages", skip_serializing_if = "is_true")]
    pub antialias: bool,
}

fn averages() -> bool {
    true
}

fn is_true(flag: &bool) -> bool {
    *flag
}

/// Rounding of the offset of the centre crop when the margin is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropOffset {
    /// Half the margin, rounded to even, as torchvision does.
    #[default]
    Nearest,
    /// Half the margin, rounded down, as Hugging Face's processors do.
    Down,
}

impl CropOffset {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Order and number of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of luma.
    Gray,
}

impl Channels {
    /// Number of channels: 1 or 3.
    pub fn count(self) -> usize {
        match self {
            Channels::Gray => 1,
            Channels::Rgb | Channels::Bgr => 3,
        }
    }
}

/// Order of the axes of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, channel, row, column.
    #[default]
    Nchw,
    /// Batch, row, column, channel.
    Nhwc,
}

/// How the image is fitted to the input size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// Both sides to size, ignoring proportions; with `resize_px`, to that, then the centre crop.
    #[default]
    Stretch,
    /// Short side to `resize_px`, then the centre crop.
    Crop,
    /// Long side to size; the rest is black.
    Pad,
}

/// Interpolation of the resize. All but `nearest` average over the pixels they shrink away, unless `antialias` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Nearest pixel, no averaging.
    Nearest,
    /// Triangle.
    #[default]
    Bilinear,
    /// Catmull-Rom.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
}

/// What the graph outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputDescription {
    /// Name of the output with one number per class.
    pub name: String,
    /// Meaning of those numbers.
    pub kind: OutputKind,
    /// Name of a second output with the input of the last layer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// Multi-label models: probability from which a label applies, 0 to 1. Absent: 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// The same for single labels; replaces `threshold` for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<String, f32>,
}

/// Meaning of the numbers in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// Single-label, before the softmax. One number for two labels is the second's, before the sigmoid.
    Logits,
    /// Single-label, after the softmax: each in 0..=1, sum 1. One number for two labels is the second's.
    Probabilities,
    /// Multi-label, after the sigmoid: each in 0..=1, any sum.
    Sigmoid,
    /// Multi-label, before the sigmoid.
    SigmoidLogits,
}

impl OutputKind {
    /// Whether several labels, or none, may apply to an image.
    pub fn is_multi_label(self) -> bool {
        matches!(self, OutputKind::Sigmoid | OutputKind::SigmoidLogits)
    }

    /// The word used in a description.
    pub fn as_str(self) -> &'static str {
        match self {
            OutputKind::Logits => "logits",
            OutputKind::Probabilities => "probabilities",
            OutputKind::Sigmoid => "sigmoid",
            OutputKind::SigmoidLogits => "sigmoid_logits",
        }
    }
}

/// Thresholds below which an answer is doubtful. An absent one is not tested.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateDefaults {
    /// Divides the logits before the softmax; above 1 it lowers confidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Smallest confidence of the best class, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_confidence_ratio: Option<f32>,
    /// Smallest distance between the two best classes, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_margin_ratio: Option<f32>,
    /// Largest entropy as a fraction of the entropy of a uniform guess, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_entropy_ratio: Option<f32>,
    /// Largest novelty, 0 to 1: with 0.99 a picture is doubtful if it is stranger than 99 % of the calibration
    /// pictures. Needs a novelty score (`tributary model novelty`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_novelty: Option<f32>,
    /// Smallest confidence for single labels, 0 to 1; replaces `min_confidence_ratio` for them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, f32>,
}
