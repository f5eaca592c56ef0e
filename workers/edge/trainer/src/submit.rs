//! Sends an update: its weights into the blob bucket first, then its message into the outbox.

use std::collections::BTreeMap;

use runtime::Fault;
use runtime::site_key::SiteKey;
use schemas::limits::MAX_WEIGHTS_BYTES;
use schemas::task::{HEADER_BLOB, HEADER_TO};
use schemas::{Gain, LabelSource, ModelName, ReleaseId, SiteName, Update, WeightFormat, encode};
use streams::subject::OutboxKind;
use streams::{Blobs, Publication, Publisher, subject};
use vision::Model;

use training::examples::{ExampleSplit, Examples};
use training::holdout::HoldoutComparison;
use training::settings::TrainSettings;
use training::train::TrainedModel;
use training::weights;

/// Encodes the weights of an update as a file.
pub(crate) fn file(trained: &TrainedModel, format: WeightFormat) -> Result<Vec<u8>, Fault> {
    let failed = |error: &dyn std::error::Error| {
        Fault::reject("weights_unwritable", runtime::fault::error_chain(error), "report it")
    };
    let mut base = BTreeMap::new();
    for name in trained.weights.keys() {
        base.insert(name.clone(), trained.onnx.weight(name).map_err(|error| failed(&error))?);
    }
    let bytes = weights::encode(&trained.weights, &base, format, None).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_WEIGHTS_BYTES {
        let reason = format!("the trained weights have {} bytes, at most {MAX_WEIGHTS_BYTES} can be sent", bytes.len());
        let remedy = "train fewer layers (trainer.trainable), or send 16-bit floats (trainer.weight_format)";
        return Err(Fault::reject("weights_too_large", reason, remedy));
    }
    Ok(bytes)
}

/// Number of images learned from, by label.
pub(crate) fn samples(examples: &Examples, labels: &[String]) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    for example in examples.of(ExampleSplit::Train) {
        if let Some(label) = labels.get(example.class) {
            *samples.entry(label.clone()).or_default() += 1;
        }
    }
    samples
}

/// Stores the weights and signs the update.
pub(crate) async fn prepare(
    blobs: &Blobs,
    file: &[u8],
    key: Option<&SiteKey>,
    update: impl FnOnce(schemas::BlobRef) -> Update,
) -> Result<Update, Fault> {
    let mut update = update(blobs.store_blob(file).await?);
    if let Some(key) = key {
        update.signature = Some(key.sign(&update.signed_bytes()?));
    }
    Ok(update)
}

/// Puts an update into the outbox. Repeating it has no effect.
pub(crate) async fn submit(publisher: &Publisher, update: &Update) -> Result<(), Fault> {
    let publication = Publication::with_id(
        subject::outbox(&update.site, OutboxKind::Update),
        encode(update)?,
        update.id().to_string(),
    )
    .header(HEADER_TO, subject::update(&update.model, update.round, &update.site))
    .header(HEADER_BLOB, update.weights.to_string());
    publisher.publish(&publication).await?;
    Ok(())
}

/// Metadata of a training, for its update.
pub(crate) struct UpdateMetadata<'a> {
    /// The trainer's site.
    pub site: &'a SiteName,
    /// The model it started from.
    pub model: &'a Model,
    /// The release it started from.
    pub base: &'a ReleaseId,
    /// Number of its round; 0 if no round asked for it.
    pub round: u64,
    /// Settings it was trained with.
    pub settings: &'a TrainSettings,
    /// Number format of the weights.
    pub format: WeightFormat,
    /// Number of images by source of their label.
    pub sources: BTreeMap<LabelSource, u64>,
    /// Number of images learned from, by label.
    pub samples: BTreeMap<String, u64>,
    /// Number of those that the site found doubtful.
    pub hard: u64,
    /// When it was trained, milliseconds since the epoch.
    pub trained_at_ms: u64,
}

impl UpdateMetadata<'_> {
    /// The update with these weights.
    pub(crate) fn update(self, trained: &TrainedModel, weights: schemas::BlobRef) -> Update {
        let (before, after) = trained.held_out();
        Update {
            site: self.site.clone(),
            model: ModelName::from_name(&self.model.description.name),
            round: self.round,
            base: self.base.clone(),
            weights,
            form: self.format,
            samples: self.samples,
            hard: self.hard,
            sources: self.sources,
            before,
            after,
            gain: Some(match trained.comparison {
                HoldoutComparison::Better => Gain::Better,
                HoldoutComparison::Level => Gain::Level,
                HoldoutComparison::Worse => Gain::Worse,
            }),
            epochs: self.settings.epochs,
            trainable: self.settings.trainable.clone(),
            trained_at_ms: self.trained_at_ms,
            signature: None,
        }
    }
}
