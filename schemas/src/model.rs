//! The description of a model's input and output: `model.toml` beside `graph.onnx` and `labels.txt`.
//!
//! Two classifiers may differ in input size, channel order, scale, and in whether they output logits
//! or probabilities, two detectors in the order of their numbers; the description says all of it and nothing is guessed.

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
    /// Value of the pixels around the picture with `pad`, 0 to 255 in every channel.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pad_value: u8,
    /// Where the picture lies in the input with `pad`.
    #[serde(default, skip_serializing_if = "PadPlace::is_default")]
    pub pad_place: PadPlace,
    /// For a detector: a second input that takes the size of the picture, if the graph has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_size: Option<SourceSizeInput>,
}

/// A second input that takes the size of the upright picture in pixels: 64-bit integers, two for each image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSizeInput {
    /// Name of the graph's input.
    pub name: String,
    /// Which of the two comes first.
    #[serde(default)]
    pub order: SizeOrder,
}

/// Order of a width and a height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeOrder {
    /// Width, height.
    #[default]
    WidthHeight,
    /// Height, width.
    HeightWidth,
}

/// Where a picture lies in an input that is larger than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadPlace {
    /// In the middle.
    #[default]
    Center,
    /// In the top left corner.
    TopLeft,
}

impl PadPlace {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(value: &u8) -> bool {
    *value == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
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
    /// Long side to size, in proportion; the rest has `pad_value`. Detectors' authors call it letterbox.
    #[serde(alias = "letterbox")]
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
    /// Name of the output with one number per class; for a detector, of the output with the boxes.
    pub name: String,
    /// Meaning of those numbers.
    pub kind: OutputKind,
    /// Name of a second output with the input of the last layer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// Multi-label models: probability from which a label applies, 0 to 1. Absent: 0.5. Detectors: score above which an
    /// object counts as found. Absent: 0.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// The same for single labels; replaces `threshold` for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<String, f32>,
    /// With kind `boxes`, how the numbers become boxes; otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boxes: Option<BoxesDescription>,
}

/// How the outputs of a detector become boxes, each with a score and a class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxesDescription {
    /// Where boxes and scores are in the outputs.
    pub layout: BoxLayout,
    /// What the four numbers of a box are.
    pub form: BoxForm,
    /// What a box is measured in.
    pub unit: BoxUnit,
    /// What must be done to a number to get a score.
    #[serde(default)]
    pub score: ScoreKind,
    /// Whether each box has a fifth number, the score that it holds anything, which multiplies those of its classes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub objectness: bool,
    /// The class that means "nothing here" and has no label.
    #[serde(default, skip_serializing_if = "BackgroundClass::is_default")]
    pub background: BackgroundClass,
    /// Whether a box counts once for each class above its threshold; otherwise for its best class alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub multi_label: bool,
    /// Layout `separate`: name of the output with the scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<String>,
    /// Layout `separate`: name of the output with one class number per box. Absent: `scores` has one score per class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Layout `separate`: name of the output with the number of boxes that count. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// Layout `grid`: pixels of the input between two cells, for each of the grids in their order. Absent: 8, 16, 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strides: Vec<u32>,
    /// Non-maximum suppression: of two boxes that overlap by more than this intersection over union, 0 to 1, the less
    /// sure one is dropped. Absent: nothing is dropped, as the graph did it or needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nms_iou: Option<f32>,
    /// Whether boxes of different classes suppress each other, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub class_agnostic: bool,
    /// Most objects of one image, 1 to [`MAX_OBJECTS`](crate::MAX_OBJECTS); of more, the surest are kept. Absent: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_objects: Option<u32>,
}

/// Where boxes and scores are in a detector's outputs. The batch comes first in each, unless the graph takes one image
/// without a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxLayout {
    /// One output `[batch, box, numbers]`: four of the box, objectness if there is one, the classes.
    Rows,
    /// The same numbers as `[batch, numbers, box]`.
    Columns,
    /// Like `rows`, but each box is relative to a cell of a grid, as YOLOX exports it: centre and logarithm of the size,
    /// in strides.
    Grid,
    /// Boxes in one output, scores and class numbers in others.
    Separate,
    /// One output `[batch, box, 6]` of final boxes: four of the box, score, class number.
    EndToEnd,
}

impl BoxLayout {
    /// The word used in a description.
    pub fn as_str(self) -> &'static str {
        match self {
            BoxLayout::Rows => "rows",
            BoxLayout::Columns => "columns",
            BoxLayout::Grid => "grid",
            BoxLayout::Separate => "separate",
            BoxLayout::EndToEnd => "end_to_end",
        }
    }
}

/// What the four numbers of a box are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxForm {
    /// Centre x, centre y, width, height.
    CxCyWh,
    /// Left, top, right, bottom.
    XyXy,
    /// Left, top, width, height.
    XyWh,
    /// Top, left, bottom, right.
    YxYx,
}

/// What a box is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxUnit {
    /// Pixels of the input.
    InputPixels,
    /// Fractions of the input's width and height, 0 to 1.
    Ratio,
    /// Pixels of the upright picture, which the graph knows from `input.source_size`.
    SourcePixels,
}

/// What must be done to a number to get a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreKind {
    /// Nothing: it is 0 to 1.
    #[default]
    Plain,
    /// The logistic function of each number.
    Sigmoid,
    /// Softmax over the classes of a box, the background included.
    Softmax,
}

/// The class that means "nothing here" and has no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackgroundClass {
    /// There is none.
    #[default]
    None,
    /// Class 0: the first label is class 1.
    First,
    /// The class after the last label.
    Last,
}

impl BackgroundClass {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Objects with boxes, as `output.boxes` describes.
    Boxes,
}

impl OutputKind {
    /// Whether several labels, or none, may apply to an image.
    pub fn is_multi_label(self) -> bool {
        matches!(self, OutputKind::Sigmoid | OutputKind::SigmoidLogits)
    }

    /// Whether the model finds objects, instead of classifying the image.
    pub fn is_detector(self) -> bool {
        self == OutputKind::Boxes
    }

    /// The word used in a description.
    pub fn as_str(self) -> &'static str {
        match self {
            OutputKind::Boxes => "boxes",
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
