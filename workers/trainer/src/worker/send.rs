//! What a training came to, on its way to the cloud. Which images it learned from is written down first, then it is asked
//! whether one of their labels was taken back; whoever takes labels back says so first and looks at what is written down
//! then. So each update that is sent is either named there or knows of it here.

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

/// What a training came to, but for the weights themselves.
pub(super) struct TrainingOutcome {
    /// The images it learned from.
    pub(super) copied: TrainingCopy,
    /// How it was trained.
    pub(super) settings: TrainSettings,
    /// Images learned from, of each label.
    pub(super) samples: BTreeMap<String, u64>,
    /// Of them, images that the site was in doubt about.
    pub(super) hard: u64,
    /// The file of weights to send.
    pub(super) file: Vec<u8>,
}

impl Trainer {
    /// Sends an update; `None` if a label was taken back meanwhile: then it is trained again without it.
    pub(super) async fn send(
        &self,
        collector: &Collector,
        outcome: TrainingOutcome,
        trained: &TrainedModel,
        base: &Arc<Model>,
        asked: Option<&RoundRequest>,
    ) -> Result<Option<Update>, Fault> {
        let TrainingOutcome { copied, settings, samples, hard, file } = outcome;
        let about = UpdateMetadata {
            site: &self.site,
            model: base,
            base: asked.map_or(&self.model.release, |asked| &asked.terms.base),
            round: asked.map_or(0, |asked| asked.round),
            settings: &settings,
            sources: copied.sources.clone(),
            samples,
            hard,
            trained_at_ms: clock::now_ms(),
        };
        let prepared = submit::prepare(&self.blobs, &file, self.key.as_ref(), |weights| about.update(trained, weights));
        let update = prepared.await?;
        let kept = learned_images::record_images(&self.publisher, &update, &copied.images).await?;
        if collector.is_outdated(&copied).await? {
            tracing::info!(
                role = ROLE.as_str(),
                "labels were taken back while it trained: nothing is sent, it trains again"
            );
            collector.forget(&kept).await?;
            CheckpointFolder::remove(&self.settings.work);
            return Ok(None);
        }
        submit::submit(&self.publisher, &update).await?;
        Ok(Some(update))
    }
}
