//! What the motion gate and the reuse of answers save, and what they get wrong: a camera looks at a tray on which things
//! lie for a while, and are then exchanged or moved. The gate is asked directly; a recognizer with reuse answers every
//! picture; and the same model recognizes every picture here, which is what answers are held against.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use camera::motion_gate::{GateDecision, MotionGate, MotionGateSettings};
use camera::region::RegionShape;
use camera::{FramePicture, YuvPicture};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::{HEADER_CAPTURED_AT, HEADER_THUMBNAIL};
use schemas::{CameraName, TaskId};
use serde::Serialize;
use streams::{Publication, Publisher, subject};
use tokio::time::Instant;
use vision::thumbnail::Thumbnail;
use vision::{Replica, prediction, probabilities};

use crate::bench_site::BenchSite;
use crate::cameras::first_answer::AnswerStream;
use crate::cameras::scene::{PlacedThing, Scene, TRAY, Thing};
use crate::cameras::sources::fault;
use crate::error::BenchError;

const SIZE_PX: (usize, usize) = (640, 480);
/// Pictures, one a second, for which things lie where they are.
const REST: std::ops::RangeInclusive<usize> = 5..=60;
/// Of the changes, the share of those in which the thing stays and is moved.
const MOVED_RATIO: f64 = 0.3;
/// Farthest that a thing lies from the middle, as a share of the picture: two of the 28 pixels that the model sees.
const FARTHEST: f32 = 2.0 / 28.0;
/// Pictures of a view by which it is told whether the model is stable there.
const TRIALS: usize = 5;
/// A cloud passes in so many pictures, and takes and gives so much light.
const CLOUD: (f32, f32) = (300.0, 0.08);
const TIMEOUT: Duration = Duration::from_secs(30);

/// What came of the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct StillLifeCounts {
    /// Pictures.
    pub pictures: u64,
    /// Those of stable views: the model gives them one label, and is sure of it, whatever the noise.
    pub stable: u64,
    /// Pictures that the gate skipped.
    pub gate_skipped: u64,
    /// Of those of stable views, those that show something else than the picture published before.
    pub gate_wrong: u64,
    /// Of stable views, the pictures that the gate skipped.
    pub gate_skipped_stable: u64,
    /// Pictures that got the answer of an earlier one.
    pub reused: u64,
    /// Of stable views, the pictures that got the answer of an earlier one.
    pub reused_stable: u64,
    /// Of those, the ones that the model would have answered otherwise.
    pub wrong_stable: u64,
    /// The same of all that were reused.
    pub wrong: u64,
}

/// The camera, and the model that judges its pictures.
struct StillLifeCamera {
    scene: Scene,
    things: Vec<Thing>,
    replica: Replica,
    random: StdRng,
    thing: usize,
    view: YuvPicture,
    is_stable: bool,
    /// Pictures until something changes.
    left: usize,
    number: usize,
}

/// What the model says of a picture.
struct ViewLabel {
    label: String,
    /// Whether that passes the model's gate.
    is_sure: bool,
}

/// A picture of it.
struct StillLifePicture {
    jpeg: Bytes,
    thumbnail: Thumbnail,
    /// What the model says of it.
    label: String,
    is_stable: bool,
}

impl StillLifeCamera {
    fn new(things: Vec<Thing>, replica: Replica, seed: u64) -> Result<Self, BenchError> {
        let scene = Scene::new(SIZE_PX, TRAY, seed);
        let view = scene.place(&[]);
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { scene, things, replica, random, thing: 0, view, is_stable: false, left: 0, number: 0 })
    }

    /// Blocks for some milliseconds.
    fn take(&mut self) -> Result<StillLifePicture, BenchError> {
        if self.left == 0 {
            self.change()?;
        }
        self.left -= 1;
        self.number += 1;
        let (thumbnail, jpeg, ViewLabel { label, .. }) = self.look()?;
        Ok(StillLifePicture { jpeg, thumbnail, label, is_stable: self.is_stable })
    }

    /// Exchanges the thing, or moves it.
    fn change(&mut self) -> Result<(), BenchError> {
        self.left = self.random.random_range(REST);
        if !self.random.random_bool(MOVED_RATIO) || self.number == 0 {
            self.thing = self.random.random_range(0..self.things.len());
        }
        let mut offset = || self.random.random_range(-FARTHEST..FARTHEST);
        let (left, top) = (offset(), offset());
        let thing = self.things.get(self.thing).ok_or_else(|| fault("there are no things to look at"))?;
        self.view = self.scene.place(&[PlacedThing { thing, left, top, width: 1.0, height: 1.0 }]);
        let labels = (0..TRIALS).map(|_| Ok(self.look()?.2)).collect::<Result<Vec<_>, BenchError>>()?;
        self.is_stable = labels.iter().all(|seen| seen.is_sure && seen.label == labels[0].label);
        Ok(())
    }

    /// One picture of the present view: small, as JPEG, and what the model says of it.
    fn look(&mut self) -> Result<(Thumbnail, Bytes, ViewLabel), BenchError> {
        let light = 1.0 + CLOUD.1 * (std::f32::consts::TAU * self.number as f32 / CLOUD.0).sin();
        let picture = self.scene.take(&self.view, light);
        let thumbnail = Thumbnail::from_gray(&picture.y, SIZE_PX.0, SIZE_PX.0, SIZE_PX.1);
        let thumbnail = thumbnail.ok_or_else(|| fault("a picture has no pixels"))?;
        let jpeg = jpeg(picture)?;
        let result = self.replica.predict(&jpeg)?;
        let (model, gate) = (&result.model, &result.model.description.gate);
        let ratios = probabilities(model, &result.logits, gate.temperature.unwrap_or(1.0));
        let seen = prediction(model, &ratios).ok_or_else(|| fault("the model has no labels"))?;
        let is_sure = seen.confidence >= gate.min_confidence_ratio.unwrap_or_default();
        Ok((thumbnail, jpeg, ViewLabel { label: seen.label, is_sure }))
    }
}

/// A picture as the grabber codes it.
pub(super) fn jpeg(picture: YuvPicture) -> Result<Bytes, BenchError> {
    let picture = FramePicture::Yuv(Arc::new(picture));
    RegionShape::default().cut(&picture).map_err(|error| fault(error.to_string()))
}

/// Measures with `count` pictures. The site's recognizer runs and reuses answers; `replica` has the same model.
pub(super) async fn measure(
    site: &BenchSite,
    things: Vec<Thing>,
    replica: Replica,
    count: usize,
) -> Result<StillLifeCounts, BenchError> {
    let camera: CameraName = "tray".parse().map_err(|error: schemas::IdError| fault(error.to_string()))?;
    let mut answers = AnswerStream::open(site).await?;
    let publisher = Publisher::new(site.bus.clone(), TIMEOUT);
    let mut counts = StillLifeCounts::default();
    let mut gate = MotionGate::new(MotionGateSettings::default());
    let mut published_label = String::new();
    let (first_at, first_ms) = (Instant::now(), runtime::clock::now_ms());
    let mut still_life = StillLifeCamera::new(things, replica, 1)?;
    for number in 0..count {
        let taken = tokio::task::spawn_blocking(move || {
            let picture = still_life.take();
            (still_life, picture)
        });
        let (back, picture) = taken.await?;
        still_life = back;
        let StillLifePicture { jpeg, thumbnail, label, is_stable } = picture?;
        counts.pictures += 1;
        counts.stable += u64::from(is_stable);

        // One a second, whatever time it takes here.
        let now = first_at + Duration::from_secs(number as u64);
        match gate.judge(&thumbnail, now) {
            GateDecision::Publish(_) => {
                gate.record_published(thumbnail.clone(), now);
                published_label.clone_from(&label);
            }
            GateDecision::Skip => {
                counts.gate_skipped += 1;
                counts.gate_skipped_stable += u64::from(is_stable);
                counts.gate_wrong += u64::from(is_stable && label != published_label);
            }
        }

        let task = TaskId::new_random();
        let publication = Publication::with_id(subject::image(&site.name, &camera), jpeg, task.to_string())
            .header(HEADER_THUMBNAIL, thumbnail.header())
            .header(HEADER_CAPTURED_AT, (first_ms + number as u64 * 1000).to_string());
        publisher.publish(&publication).await?;
        let answer = answers.wait_for(|answer| answer.task == task).await?;
        if answer.reused.is_some() {
            let is_wrong = answer.label.as_deref() != Some(label.as_str());
            counts.reused += 1;
            counts.wrong += u64::from(is_wrong);
            counts.reused_stable += u64::from(is_stable);
            counts.wrong_stable += u64::from(is_stable && is_wrong);
        }
    }
    site.clear_streams().await?;
    Ok(counts)
}

/// Things to look at: pictures of the classifier's own kind, at most `most`, spread over a folder with an index.
pub(super) fn read_things(folder: &Path, most: usize) -> Result<Vec<Thing>, BenchError> {
    let mut dataset = dataset::read_dataset(folder, None)?;
    dataset.keep_test_split();
    dataset.spread(most).map(|row| Thing::read(&dataset.path(row))).collect()
}
