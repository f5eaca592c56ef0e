//! Checks a loaded graph against its description and labels.

use ort::session::Session as OrtSession;
use ort::value::{Outlet, TensorElementType};
use schemas::model::Layout;

use super::SessionError;
use super::values::{InputBuffer, is_label_scores};
use crate::detection::{Detector, DetectorFault};
use crate::model::Model;
use crate::tensor;

pub(super) struct SessionChecks<'a> {
    pub(super) model: &'a Model,
    /// Present for a detector.
    pub(super) detector: Option<&'a Detector>,
}

/// What was learned of a graph that fits.
pub(super) struct CheckedGraph {
    /// The largest batch; `None` if it is not limited.
    pub(super) max_batch: Option<usize>,
    /// Whether the input has a batch at all.
    pub(super) has_batch: bool,
    /// A buffer of the input's type.
    pub(super) buffer: InputBuffer,
}

impl SessionChecks<'_> {
    /// Checks inputs and outputs.
    pub(super) fn all(&self, session: &OrtSession) -> Result<CheckedGraph, SessionError> {
        let description = &self.model.description;
        let file = self.model.description_file();
        let input = self.named(session.inputs(), &description.input.name, "input", &file)?;
        let sizes = description.input.source_size.as_ref();
        if let Some(sizes) = sizes {
            let key = ("input", "input.source_size.name");
            self.sizes(self.named_by(session.inputs(), &sizes.name, key, &file)?)?;
        }
        if session.inputs().len() != 1 + usize::from(sizes.is_some()) {
            let names = names(session.inputs());
            let remedy = match self.detector {
                None => "export it with the image as its only input".to_owned(),
                Some(_) => format!(
                    "export it with the image as its only input, or, if a second one takes the picture's size, name it \
                     under [input.source_size] in {file}"
                ),
            };
            return Err(self.mismatch(format!("it has {} inputs ({names})", session.inputs().len()), remedy));
        }
        let mut graph = self.input(input, &file)?;
        if let Some(detector) = self.detector {
            if !self.boxes(detector, session, &file)? {
                graph.max_batch = Some(1);
            }
            return Ok(graph);
        }
        let output = self.named(session.outputs(), &description.output.name, "output", &file)?;
        self.output(output, &file)?;
        if let Some(features) = &description.output.features {
            let features = self.named(session.outputs(), features, "output", &file)?;
            self.float(features, "output")?;
        }
        Ok(graph)
    }

    /// Checks the outputs of a detector; returns whether they have a batch.
    fn boxes(&self, detector: &Detector, session: &OrtSession, file: &str) -> Result<bool, SessionError> {
        if let Some(count) = detector.count_output() {
            self.named_by(session.outputs(), count, ("output", "output.boxes.count"), file)?;
        }
        let mut have_batch = true;
        for wanted in detector.wanted() {
            let output = &self.model.description.output;
            let is = |name: Option<&String>| name.is_some_and(|name| name == wanted.name);
            let key = match &output.boxes {
                Some(boxes) if is(boxes.scores.as_ref()) => "output.boxes.scores",
                Some(boxes) if is(boxes.labels.as_ref()) => "output.boxes.labels",
                _ => "output.name",
            };
            let outlet = self.named_by(session.outputs(), wanted.name, ("output", key), file)?;
            let shape = match (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape()) {
                (
                    Some(
                        TensorElementType::Float32
                        | TensorElementType::Float16
                        | TensorElementType::Int64
                        | TensorElementType::Int32,
                    ),
                    Some(shape),
                ) => shape,
                _ => {
                    let why = format!("its output {:?} holds neither floats nor class numbers", wanted.name);
                    return Err(self.mismatch(why, format!("name outputs with boxes, scores and labels in {file}")));
                }
            };
            // A graph need not say its outputs' shapes; then a run shows them.
            if shape.is_empty() {
                continue;
            }
            match wanted.fits(shape) {
                Some(with_batch) => have_batch &= with_batch,
                None => match detector.misshapen(&wanted, shape) {
                    DetectorFault::Mismatch { why, remedy } => {
                        return Err(self.mismatch(why, format!("{remedy} {file}")));
                    }
                    DetectorFault::NotFinite { .. } => {}
                },
            }
        }
        Ok(have_batch)
    }

    /// Checks the input for the picture's size.
    fn sizes(&self, outlet: &Outlet) -> Result<(), SessionError> {
        let shape = outlet.dtype().tensor_shape();
        let takes_pairs = shape.is_some_and(|shape| matches!(&shape[..], [_, 2] | [_, -1] | []));
        match outlet.dtype().tensor_type() {
            Some(TensorElementType::Int64) if takes_pairs => Ok(()),
            _ => Err(self.mismatch(
                format!("its input {:?} does not take two 64-bit integers for each image", outlet.name()),
                "name the input that takes the picture's width and height as input.source_size.name, or export it so"
                    .to_owned(),
            )),
        }
    }

    fn mismatch(&self, why: String, remedy: String) -> SessionError {
        SessionError::Mismatch { graph: self.model.graph.clone(), why, remedy }
    }

    fn named<'o>(&self, outlets: &'o [Outlet], name: &str, what: &str, file: &str) -> Result<&'o Outlet, SessionError> {
        self.named_by(outlets, name, (what, &format!("{what}.name")), file)
    }

    /// `key`: the key of the description that names it.
    fn named_by<'o>(
        &self,
        outlets: &'o [Outlet],
        name: &str,
        (what, key): (&str, &str),
        file: &str,
    ) -> Result<&'o Outlet, SessionError> {
        outlets.iter().find(|outlet| outlet.name() == name).ok_or_else(|| {
            self.mismatch(
                format!("it has no {what} {name:?}, but {}", names(outlets)),
                match self.model.is_ours() {
                    true => format!("write the right name as {key} in {file}"),
                    false => {
                        format!("export it with the {what} {name:?}, or write a model.toml that names it as it is")
                    }
                },
            )
        })
    }

    fn float<'o>(&self, outlet: &'o Outlet, what: &str) -> Result<&'o [i64], SessionError> {
        let name = outlet.name();
        let remedy = "export the model with outputs of 32-bit floats".to_owned();
        match (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape()) {
            (Some(TensorElementType::Float32 | TensorElementType::Float16), Some(shape)) => Ok(shape),
            (Some(other), _) => Err(self.mismatch(format!("its {what} {name:?} holds {other}, not floats"), remedy)),
            (None, _) => Err(self.mismatch(format!("its {what} {name:?} is not a tensor"), remedy)),
        }
    }

    /// Byte inputs take pixels unscaled.
    fn buffer(&self, outlet: &Outlet, file: &str) -> Result<InputBuffer, SessionError> {
        let name = outlet.name();
        let element = outlet.dtype().tensor_type();
        let input = &self.model.description.input;
        let as_it_is =
            input.scale == 1.0 && input.mean.iter().all(|m| *m == 0.0) && input.std.iter().all(|s| *s == 1.0);
        match element.and_then(InputBuffer::of) {
            Some(InputBuffer::Bytes(_)) if !as_it_is => Err(self.mismatch(
                format!("its input {name:?} takes bytes (uint8), and the description scales them"),
                format!("write scale = 1.0, mean of zeros and std of ones in {file}"),
            )),
            Some(buffer) => Ok(buffer),
            None => Err(self.mismatch(
                element.map_or_else(
                    || format!("its input {name:?} is not a tensor"),
                    |element| format!("its input {name:?} takes {element}"),
                ),
                "export it with an input of float32, float16 or uint8".to_owned(),
            )),
        }
    }

    fn input(&self, outlet: &Outlet, file: &str) -> Result<CheckedGraph, SessionError> {
        let buffer = self.buffer(outlet, file)?;
        let shape: &[i64] = outlet.dtype().tensor_shape().map_or(&[], |shape| shape);
        let described = tensor::shape(&self.model.description.input, 1);
        let shown = shown(shape);
        let layout = match self.model.description.input.layout {
            Layout::Nchw => "batch, channel, row, column",
            Layout::Nhwc => "batch, row, column, channel",
        };
        let wrong = |remedy: &str| {
            let [_, a, b, c] = described;
            self.mismatch(
                format!(
                    "its input {:?} is {shown}, but the description says [n, {a}, {b}, {c}] ({layout})",
                    outlet.name()
                ),
                format!("{remedy} in {file}"),
            )
        };
        let fits = |actual: i64, expected: usize| actual < 0 || actual == expected as i64;
        let [_, single @ ..] = described;
        if self.detector.is_some() && shape.len() == 3 {
            return match shape.iter().zip(single).all(|(actual, expected)| fits(*actual, expected)) {
                true => Ok(CheckedGraph { max_batch: Some(1), has_batch: false, buffer }),
                false => Err(wrong("correct width_px, height_px, channels or layout")),
            };
        }
        if shape.len() != 4 || !shape.iter().zip(described).skip(1).all(|(actual, expected)| fits(*actual, expected)) {
            return Err(wrong("correct width_px, height_px, channels or layout"));
        }
        match shape.first().copied().unwrap_or_default() {
            ..=-1 => Ok(CheckedGraph { max_batch: None, has_batch: true, buffer }),
            1 => Ok(CheckedGraph { max_batch: Some(1), has_batch: true, buffer }),
            0 => Err(self.mismatch("its batch is empty".to_owned(), "export it with a dynamic batch".to_owned())),
            fixed => Err(self.mismatch(
                format!("its batch is fixed to {fixed} images"),
                "export it with a batch of 1 or a dynamic one".to_owned(),
            )),
        }
    }

    fn output(&self, outlet: &Outlet, file: &str) -> Result<(), SessionError> {
        // A table of scores is checked against the labels during a run.
        if is_label_scores(outlet.dtype()) {
            return Ok(());
        }
        let shape = self.float(outlet, "output")?;
        let one_number = || {
            self.mismatch(
                format!("its output {:?} is one number", outlet.name()),
                format!(
                    "write two labels into {}, first that of 0, if it distinguishes two classes; a model that measures \
                     something is not a classifier",
                    self.model.labels_file()
                ),
            )
        };
        let Some((_, rest)) = shape.split_first() else { return Err(one_number()) };
        // Dimensions unknown until a run are checked during a run.
        let classes = rest.iter().try_fold(1_i64, |all, size| (*size >= 0).then_some(all * size));
        let labels = self.model.labels.len();
        let is_multi_label = self.model.description.output.kind.is_multi_label();
        match classes {
            Some(1) if labels == 2 && !is_multi_label => Ok(()),
            Some(1) if labels != 1 => Err(one_number()),
            Some(classes) if classes != labels as i64 => Err(self.mismatch(
                format!(
                    "its output {:?} is {} ({classes} classes), but there are {labels} labels",
                    outlet.name(),
                    shown(shape)
                ),
                format!("write {classes} labels into {}, or name another output in {file}", self.model.labels_file()),
            )),
            _ => Ok(()),
        }
    }
}

fn names(outlets: &[Outlet]) -> String {
    outlets.iter().map(|outlet| format!("{:?}", outlet.name())).collect::<Vec<_>>().join(", ")
}

fn shown(shape: &[i64]) -> String {
    let sizes: Vec<String> =
        shape.iter().map(|size| if *size < 0 { "n".to_owned() } else { size.to_string() }).collect();
    format!("[{}]", sizes.join(", "))
}
