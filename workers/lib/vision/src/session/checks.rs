//! Checks a loaded graph against its description and labels.

use ort::session::Session as OrtSession;
use ort::value::{Outlet, TensorElementType};
use schemas::model::Layout;

use super::SessionError;
use super::values::{InputBuffer, is_label_scores};
use crate::model::Model;
use crate::tensor;

pub(super) struct SessionChecks<'a> {
    pub(super) model: &'a Model,
}

impl SessionChecks<'_> {
    /// Returns the graph's largest batch, and a buffer of its input type.
    pub(super) fn all(&self, session: &OrtSession) -> Result<(Option<usize>, InputBuffer), SessionError> {
        let description = &self.model.description;
        let file = self.model.description_file();
        let input = self.named(session.inputs(), &description.input.name, "input", &file)?;
        if session.inputs().len() != 1 {
            let names = names(session.inputs());
            return Err(self.mismatch(
                format!("it has {} inputs ({names})", session.inputs().len()),
                "export it with the image as its only input".to_owned(),
            ));
        }
        let taken = self.input(input, &file)?;
        let output = self.named(session.outputs(), &description.output.name, "output", &file)?;
        self.output(output, &file)?;
        if let Some(features) = &description.output.features {
            let features = self.named(session.outputs(), features, "output", &file)?;
            self.float(features, "output")?;
        }
        Ok(taken)
    }

    fn mismatch(&self, why: String, remedy: String) -> SessionError {
        SessionError::Mismatch { graph: self.model.graph.clone(), why, remedy }
    }

    fn named<'o>(&self, outlets: &'o [Outlet], name: &str, what: &str, file: &str) -> Result<&'o Outlet, SessionError> {
        outlets.iter().find(|outlet| outlet.name() == name).ok_or_else(|| {
            self.mismatch(
                format!("it has no {what} {name:?}, but {}", names(outlets)),
                match self.model.is_ours() {
                    true => format!("write the right name as {what}.name in {file}"),
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

    fn input(&self, outlet: &Outlet, file: &str) -> Result<(Option<usize>, InputBuffer), SessionError> {
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
        if shape.len() != 4 || !shape.iter().zip(described).skip(1).all(|(actual, expected)| fits(*actual, expected)) {
            return Err(wrong("correct width_px, height_px, channels or layout"));
        }
        match shape.first().copied().unwrap_or_default() {
            ..=-1 => Ok((None, buffer)),
            1 => Ok((Some(1), buffer)),
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
