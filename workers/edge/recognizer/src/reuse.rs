//! Reuse of answers for pictures that hardly differ from the one before: takes the small picture from the header, or from
//! the decoder if there is none, asks [`policy`], and counts.
//!
//! With the header nothing is fetched or decoded for a reused answer; without it the picture is decoded, and not inferred.

mod policy;
mod settings;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtime::metrics;
use schemas::task::HEADER_THUMBNAIL;
use schemas::{CameraName, Prediction, ReleaseId, ReuseReport, SiteName, Task, TaskId};
use tokio::sync::oneshot;
use vision::PixelInspector;
use vision::thumbnail::Thumbnail;

pub(crate) use self::policy::ReusedAnswer;
use self::policy::{ReusableAnswer, ReusablePicture, ReuseCheck, ReuseDecision, ReusePolicy};
pub use self::settings::{CameraReuseSettings, ReuseSettings};

const THUMBNAILS: &str = "the base64 of a thumbnail of 40 by 30 gray pixels";

/// The reuse of answers at one recognizer; clones share it.
#[derive(Clone)]
pub(crate) struct AnswerReuse {
    site: SiteName,
    settings: Arc<ReuseSettings>,
    policy: Arc<Mutex<ReusePolicy>>,
}

/// What is known of one picture on its way.
#[derive(Debug)]
pub(crate) enum PictureLook {
    /// Its answer neither is reused nor will be.
    Unwanted,
    /// It is compared once it is decoded.
    Unseen,
    /// It was compared, and is recognized.
    Seen(Box<SeenPicture>),
    /// It gets an earlier answer.
    Reused(Box<ReusedAnswer>),
}

/// A picture that was compared.
#[derive(Debug)]
pub(crate) struct SeenPicture {
    thumbnail: Thumbnail,
    check: Option<Box<ReuseCheck>>,
}

impl AnswerReuse {
    /// Of which nothing is known yet.
    pub(crate) fn new(site: SiteName, settings: ReuseSettings) -> Self {
        let policy = Arc::new(Mutex::new(ReusePolicy::new(settings.clone())));
        Self { site, settings: Arc::new(settings), policy }
    }

    /// Compares a task's picture by its header. `serving`: the release that would recognize it. A replayed image has an
    /// answer of its own, a tile is of another part of its scan, and a picture with faults shows nothing.
    pub(crate) fn look_at_header(&self, task: &mut Task, serving: &ReleaseId) -> PictureLook {
        let header = task.thumbnail.take();
        let thumbnail = header.as_deref().and_then(Thumbnail::read);
        if let (Some(text), None) = (&header, &thumbnail) {
            task.note_ignored(HEADER_THUMBNAIL, text, THUMBNAILS);
        }
        let is_new_scene = task.picture.as_ref().is_some_and(|picture| picture.is_scene_changed);
        let is_ordinary = task.replayed.is_none() && task.tile.is_none() && task.has_healthy_picture();
        if self.settings.terms(&task.camera).is_none() || !is_ordinary {
            return PictureLook::Unwanted;
        }
        match thumbnail {
            None => PictureLook::Unseen,
            Some(thumbnail) if is_new_scene => PictureLook::Seen(Box::new(SeenPicture { thumbnail, check: None })),
            Some(thumbnail) => self.compare(&ComparedImage::of(task), thumbnail, serving),
        }
    }

    /// What compares a picture when it is decoded, and where the result arrives; `None` if that is not to be done.
    pub(crate) fn inspector(
        &self,
        task: &Task,
        look: &PictureLook,
        serving: &ReleaseId,
    ) -> Option<(PixelInspector, oneshot::Receiver<PictureLook>)> {
        let PictureLook::Unseen = look else { return None };
        let (reuse, image, serving) = (self.clone(), ComparedImage::of(task), serving.clone());
        let (report, looked) = oneshot::channel();
        let inspect: PixelInspector = Box::new(move |pixels| {
            let look = match Thumbnail::from_pixels(pixels) {
                Some(thumbnail) => reuse.compare(&image, thumbnail, &serving),
                None => PictureLook::Unwanted,
            };
            let is_recognized = !matches!(look, PictureLook::Reused(_));
            // Fails only if the image's task is gone; it then comes again.
            report.send(look).is_ok() && is_recognized
        });
        Some((inspect, looked))
    }

    fn compare(&self, image: &ComparedImage, thumbnail: Thumbnail, serving: &ReleaseId) -> PictureLook {
        let ComparedImage { camera, sequence, states } = image;
        let picture = ReusablePicture { camera, sequence: *sequence, thumbnail: &thumbnail, states };
        let check = match self.policy().decide(&picture, serving) {
            ReuseDecision::Reuse(answer) => {
                metrics::count_reused(&self.site);
                return PictureLook::Reused(answer);
            }
            ReuseDecision::Check(check) => Some(check),
            ReuseDecision::Recognize => None,
        };
        PictureLook::Seen(Box::new(SeenPicture { thumbnail, check }))
    }

    /// Learns from an image that was recognized. `is_sure`: its answer is sure and final.
    pub(crate) fn learn(&self, task: &Task, look: PictureLook, seen: &Prediction, is_sure: bool) {
        let looked = match look {
            PictureLook::Seen(looked) => looked,
            _ => return self.forget_before(task),
        };
        let SeenPicture { thumbnail, check } = *looked;
        let mut policy = self.policy();
        if let Some(found) = check.and_then(|check| policy.record_check(&task.camera, &check, seen)) {
            metrics::count_reuse_check(&self.site, found.is_wrong);
            if let Some(max_difference) = found.lowered_to {
                let camera = task.camera.as_str();
                tracing::info!(camera, max_difference, "reused answers too often wrong; fewer pictures count as equal");
            }
        }
        if !is_sure {
            return policy.forget_before(&task.camera, task.image_sequence);
        }
        let (states, prediction) = (task.states.clone(), seen.clone());
        let reference = ReusableAnswer { task: task.id, sequence: task.image_sequence, thumbnail, states, prediction };
        policy.offer_reference(&task.camera, reference);
    }

    /// Forgets references before an image whose answer comes from elsewhere, or cannot be reused. Replayed images and tiles
    /// say nothing of what the camera shows now.
    pub(crate) fn forget_before(&self, task: &Task) {
        if task.replayed.is_none() && task.tile.is_none() {
            self.policy().forget_before(&task.camera, task.image_sequence);
        }
    }

    /// Records that an answer is stored.
    pub(crate) fn confirm(&self, task: TaskId) {
        if self.settings.is_on() {
            self.policy().confirm_reference(task);
        }
    }

    /// Counts since the start; `None` if no camera's answers are reused.
    pub(crate) fn report(&self) -> Option<ReuseReport> {
        self.policy().report()
    }

    fn policy(&self) -> MutexGuard<'_, ReusePolicy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of an image is compared.
struct ComparedImage {
    camera: CameraName,
    sequence: u64,
    states: Vec<String>,
}

impl ComparedImage {
    fn of(task: &Task) -> Self {
        Self { camera: task.camera.clone(), sequence: task.image_sequence, states: task.states.clone() }
    }
}
