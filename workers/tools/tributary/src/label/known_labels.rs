//! Which labels the site's model has, as far as this machine knows.

use std::collections::BTreeSet;
use std::path::Path;

use aggregator::ModelReleases;
use schemas::ModelName;
use schemas::answer::NO_LABEL;
use streams::ReleaseStore;
use vision::Model;

use crate::format;
use crate::settings::Settings;

/// Most labels in an error.
const LISTED: usize = 20;

/// What is wrong with labels that no release of the site's model has, and which it has, in words; `None` if all are
/// known, or if the model is not on this machine: the trainer counts the labels that its model does not know.
pub(crate) async fn unknown_labels(settings: &Settings, labels: BTreeSet<&str>) -> Option<String> {
    labels.first()?;
    let model = Model::load(&settings.recognizer.model).ok()?;
    let mut known: BTreeSet<String> = model.labels.iter().cloned().chain([NO_LABEL.to_owned()]).collect();
    let mut unknown = labels;
    unknown.retain(|label| !known.contains(*label));
    if !unknown.is_empty() {
        known.extend(released_labels(settings, &ModelName::from_name(&model.description.name)).await);
        unknown.retain(|label| !known.contains(*label));
    }
    let first = unknown.first()?;
    let more = match unknown.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let listed: Vec<String> = model.labels.iter().take(LISTED).map(|label| format::plain_text(label)).collect();
    let rest = match model.labels.len().saturating_sub(LISTED) {
        0 => String::new(),
        rest => format!(" and {rest} more"),
    };
    let first = format::plain_text(first);
    Some(format!("the model has no label {first:?}{more}; it has {}{rest}", listed.join(", ")))
}

/// The labels of all releases of the model in the release store; none if it cannot be read.
async fn released_labels(settings: &Settings, model: &ModelName) -> Vec<String> {
    let store = &settings.aggregator.store;
    // Opening a store that is a folder would create it.
    let is_there = store.contains("://") || Path::new(store).is_dir();
    let Some(Ok(store)) = is_there.then(|| ReleaseStore::open(store)) else { return Vec::new() };
    let all = ModelReleases::new(store, model.clone()).list().await.unwrap_or_default();
    all.into_iter().flat_map(|manifest| manifest.labels).collect()
}
