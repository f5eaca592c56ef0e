//! A session with its buffers: decodes, prepares and infers on the thread that owns it.
//!
//! In: one picture or a batch. Out: the results, in the same order. A picture is written straight into its row of a
//! reused batch, so nothing of its size is allocated. A picture that fails, fails alone. A panic in a codec or in the
//! runtime becomes an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::decode::{DecodeSettings, ImageEnvelope, Pixels, decode_into, panic_message};
use crate::detection::{Detections, SourceSize};
use crate::inference::{InferenceError, InferenceResult, InferenceSettings, InferenceTimings, PixelInspector};
use crate::model::Model;
use crate::sample;
use crate::session::{BatchOutputs, OnnxRuntime, Session};
use crate::tensor::{self, Scratch};

/// A picture of a batch.
pub(crate) struct BatchImage<'a> {
    /// The encoded picture.
    pub bytes: &'a [u8],
    /// May decline its inference; taken when it is decoded.
    pub inspect: Option<PixelInspector>,
}

/// See the module.
#[derive(Debug)]
pub struct Replica {
    session: Session,
    model: Arc<Model>,
    limits: DecodeSettings,
    pixels: Pixels,
    scratch: Scratch,
    batch: Vec<f32>,
    /// Size of the picture in each row of the batch.
    sources: Vec<SourceSize>,
    row_len: usize,
    max_batch: usize,
}

impl Replica {
    /// Opens a replica with its own session.
    pub fn open(onnx: &OnnxRuntime, model: &Model, settings: &InferenceSettings) -> Result<Replica, InferenceError> {
        Self::with_session(onnx, &Arc::new(model.clone()), settings)
    }

    pub(crate) fn with_session(
        onnx: &OnnxRuntime,
        model: &Arc<Model>,
        settings: &InferenceSettings,
    ) -> Result<Replica, InferenceError> {
        let session = Session::open(onnx, model, settings.threads)?;
        Ok(Replica {
            max_batch: settings.max_batch.max(1).min(session.max_batch().unwrap_or(usize::MAX)),
            session,
            model: model.clone(),
            limits: settings.decode.clone(),
            pixels: Pixels::default(),
            scratch: Scratch::default(),
            batch: Vec::new(),
            sources: Vec::new(),
            row_len: tensor::len(&model.description.input),
        })
    }

    /// The model it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Largest batch: the lower of the setting's and the graph's limit.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Largest batch of the graph; `None` if it is not limited.
    pub fn graph_batch(&self) -> Option<usize> {
        self.session.max_batch()
    }

    /// Recognizes one picture.
    pub fn predict(&mut self, bytes: &[u8]) -> Result<InferenceResult, InferenceError> {
        self.predict_one(&mut BatchImage { bytes, inspect: None })
    }

    fn predict_one(&mut self, image: &mut BatchImage<'_>) -> Result<InferenceResult, InferenceError> {
        let DecodedImage { decode_us, envelope, .. } = self.prepare(0, image.bytes, image.inspect.take())?;
        let started = Instant::now();
        let outputs = self.run(0, 1)?;
        let timings = InferenceTimings { waited_us: 0, decode_us, infer_us: micros(started), batch_size: 1 };
        Ok(self.result(outputs, timings, envelope))
    }

    /// The result of one picture.
    fn result(&self, outputs: BatchOutputs, timings: InferenceTimings, envelope: ImageEnvelope) -> InferenceResult {
        let BatchOutputs { logits, features, detections } = outputs;
        let detections = detections.into_iter().next();
        let novelty = self.model.novelty.as_ref().and_then(|novelty| novelty.score(features.as_deref(), &logits));
        InferenceResult { logits, features, novelty, detections, model: self.model.clone(), timings, envelope }
    }

    /// Recognizes several in one run; more than [`Replica::max_batch`] are split into runs.
    pub fn predict_batch(&mut self, images: &[&[u8]]) -> Vec<Result<InferenceResult, InferenceError>> {
        let mut images: Vec<BatchImage<'_>> = images.iter().map(|bytes| BatchImage { bytes, inspect: None }).collect();
        self.predict_inspected(&mut images)
    }

    /// Like [`Replica::predict_batch`], for pictures whose inference may be declined.
    pub(crate) fn predict_inspected(
        &mut self,
        images: &mut [BatchImage<'_>],
    ) -> Vec<Result<InferenceResult, InferenceError>> {
        images.chunks_mut(self.max_batch).flat_map(|chunk| self.predict_chunk(chunk)).collect()
    }

    fn predict_chunk(&mut self, images: &mut [BatchImage<'_>]) -> Vec<Result<InferenceResult, InferenceError>> {
        if let [image] = images {
            return vec![self.predict_one(image)];
        }
        let mut rows = 0;
        let prepared: Vec<Result<DecodedImage, InferenceError>> = images
            .iter_mut()
            .map(|image| {
                let prepared = self.prepare(rows, image.bytes, image.inspect.take())?;
                rows += 1;
                Ok(prepared)
            })
            .collect();
        let started = Instant::now();
        let together = if rows == 0 { None } else { self.run(0, rows).ok() };
        let infer_us = micros(started);
        let outcome = |DecodedImage { row, decode_us, envelope }| match &together {
            Some(outputs) => {
                let timings = InferenceTimings { waited_us: 0, decode_us, infer_us, batch_size: rows };
                let logits = part(&outputs.logits, row, rows);
                let features = outputs.features.as_ref().map(|features| part(features, row, rows));
                let detections: Vec<Detections> = outputs.detections.get(row).cloned().into_iter().collect();
                Ok(self.result(BatchOutputs { logits, features, detections }, timings, envelope))
            }
            // One of them broke the run, so each is run alone and only that one fails.
            None => {
                let started = Instant::now();
                let outputs = self.run(row, 1)?;
                let timings = InferenceTimings { waited_us: 0, decode_us, infer_us: micros(started), batch_size: 1 };
                Ok(self.result(outputs, timings, envelope))
            }
        };
        let mut outcome = outcome;
        prepared.into_iter().map(|prepared| prepared.and_then(&mut outcome)).collect()
    }

    /// Runs the generated picture in a batch of `images` and returns the time of the whole batch in milliseconds,
    /// including decoding.
    pub(crate) fn time_ms(&mut self, sample: &[u8], images: usize) -> Result<f64, InferenceError> {
        // The operator's limits may be tighter than the generated picture.
        let limits = std::mem::take(&mut self.limits);
        let started = Instant::now();
        let outcome = (0..images).try_for_each(|row| self.prepare(row, sample, None).map(|_| ()));
        let outcome = outcome.and_then(|()| self.run(0, images));
        self.limits = limits;
        outcome.map(|_| started.elapsed().as_secs_f64() * 1e3)
    }

    /// Makes the runtime allocate its memory, so that the first picture is as fast as the rest.
    pub(crate) fn warm_up(&mut self, images: usize) -> Result<(), InferenceError> {
        self.time_ms(&sample::jpeg(), images).map(|_| ())
    }

    /// Decodes into row `row`, unless `inspect` declines the picture.
    fn prepare(
        &mut self,
        row: usize,
        bytes: &[u8],
        inspect: Option<PixelInspector>,
    ) -> Result<DecodedImage, InferenceError> {
        let started = Instant::now();
        let envelope = decode_into(bytes, &self.limits, &mut self.pixels)?;
        if inspect.is_some_and(|inspect| !inspect(&self.pixels)) {
            return Err(InferenceError::Declined);
        }
        let (from, to) = (row * self.row_len, (row + 1) * self.row_len);
        if self.batch.len() < to {
            self.batch.resize(to, 0.0);
        }
        let source = SourceSize { width_px: self.pixels.width_px, height_px: self.pixels.height_px };
        self.sources.truncate(row);
        self.sources.push(source);
        let out = self.batch.get_mut(from..to).unwrap_or_default();
        let work =
            AssertUnwindSafe(|| tensor::write(&self.pixels, &self.model.description.input, &mut self.scratch, out));
        match catch_unwind(work) {
            Ok(outcome) => outcome?,
            Err(panic) => {
                self.scratch = Scratch::default();
                return Err(InferenceError::Panicked { stage: "tensor", why: panic_message(panic.as_ref()) });
            }
        }
        Ok(DecodedImage { row, decode_us: micros(started), envelope })
    }

    fn run(&mut self, row: usize, images: usize) -> Result<BatchOutputs, InferenceError> {
        let batch = self.batch.get(row * self.row_len..(row + images) * self.row_len).unwrap_or_default();
        let sources = self.sources.get(row..row + images).unwrap_or_default();
        let work = AssertUnwindSafe(|| match self.session.is_detector() {
            true => self.session.detect(batch, sources),
            false => self.session.run(batch, images),
        });
        match catch_unwind(work) {
            Ok(outcome) => Ok(outcome?),
            Err(panic) => Err(InferenceError::Panicked { stage: "infer", why: panic_message(panic.as_ref()) }),
        }
    }
}

/// A decoded picture.
struct DecodedImage {
    /// Its row in the batch.
    row: usize,
    /// Decoding time in microseconds.
    decode_us: u64,
    /// What surrounded it.
    envelope: ImageEnvelope,
}

fn part(numbers: &[f32], row: usize, rows: usize) -> Vec<f32> {
    let len = numbers.len() / rows;
    numbers.get(row * len..(row + 1) * len).unwrap_or_default().to_vec()
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
