//! Sends the result of a training. The images it learned from are recorded first; then the labels are checked for
//! retractions. Whoever retracts a label publishes that first and then reads the records. So every update that is sent
//! is either named there or knows about the retraction here.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::{Fault, clock};
use schemas::Update;
use training::checkpoint::CheckpointFolder;
use training::settings::TrainSettings;
use training::train::TrainedModel;
use vision::Model;

use super::{ROLE, RoundRequest, Trainer};
use crate::collector::Collector;
use crate::learned_images;
use crate::submit::{self, UpdateMetadata};
use crate::training_copy::TrainingCopy;

/// The result of a training, without the weights themselves.
pub(super) struct TrainingOutcome {
    /// The images it learned from.
    pub(super) copy: TrainingCopy,
    /// Settings it was trained with.
    pub(super) settings: TrainSettings,
    /// Number of images learned from, by label.
    pub(super) samples: BTreeMap<String, u64>,
    /// Number of those that the site found doubtful.
    pub(super) hard: u64,
    /// The encoded weights file.
    pub(super) file: Vec<u8>,
}

impl Trainer {
    /// Sends an update; `None` if a label was retracted meanwhile, in which case training starts again without it.
    pub(super) async fn send(
        &self,
        collector: &Collector,
        outcome: TrainingOutcome,
        trained: &TrainedModel,
        base: &Arc<Model>,
        request: Option<&RoundRequest>,
    ) -> Result<Option<Update>, Fault> {
        let TrainingOutcome { copy, settings, samples, hard, file } = outcome;
        let metadata = UpdateMetadata {
            site: &self.site,
            model: base,
            base: request.map_or(&self.model.release, |request| &request.terms.base),
            round: request.map_or(0, |request| request.round),
            settings: &settings,
            format: self.settings.weight_format,
            sources: copy.sources.clone(),
            samples,
            hard,
            trained_at_ms: clock::now_ms(),
        };
        let prepared =
            submit::prepare(&self.blobs, &file, self.key.as_ref(), |weights| metadata.update(trained, weights));
        let update = prepared.await?;
        let sequences = learned_images::record_images(&self.publisher, &update, &copy.images).await?;
        if collector.is_outdated(&copy).await? {
            tracing::info!(role = ROLE.as_str(), "labels retracted during training; update discarded");
            collector.forget(&sequences).await?;
            CheckpointFolder::remove(&self.settings.work);
            return Ok(None);
        }
        submit::submit(&self.publisher, &update).await?;
        Ok(Some(update))
    }
}
