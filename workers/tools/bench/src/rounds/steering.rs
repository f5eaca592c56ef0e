//! What sites see oftener because it is hard, and what counts more: what a game may do about it, and which pictures a model is
//! in doubt about.

use std::path::Path;

use aggregator::MergeSettings;
use aggregator::focus::HardSummary;
use offload::gate::{Gate, GateSettings, TestedScores};
use schemas::Reason;
use serde::Serialize;
use training::settings::TrainSettings;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::error::BenchError;

/// What hard cases do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Steering {
    /// What they do by default.
    Default,
    /// Nothing.
    None,
    /// A site sees those of its own twice as often.
    Repeats,
    /// Sites see pictures oftener that are like the hard cases of all.
    Focus,
    /// A site's update counts by how many of the hard cases it learned from.
    Coverage,
}

impl Steering {
    /// Those that are compared with nothing.
    pub(super) const COMPARED: [Self; 3] = [Self::Repeats, Self::Focus, Self::Coverage];

    /// Of a site.
    pub(super) fn training(self) -> TrainSettings {
        let mut settings = TrainSettings::default();
        match self {
            Self::Default => {}
            Self::Repeats => settings.hard_repeats = 2,
            Self::None | Self::Focus | Self::Coverage => settings.hard_repeats = 1,
        }
        settings
    }

    /// Of a round: how much oftener pictures like hard cases are seen.
    pub(super) fn strength(self) -> f32 {
        match self {
            Self::Default => aggregator::settings::RoundSettings::default().hard_focus,
            Self::Focus => 1.0,
            Self::None | Self::Repeats | Self::Coverage => 0.0,
        }
    }

    /// Of the merge.
    pub(super) fn merge(self) -> MergeSettings {
        let mut settings = MergeSettings::default();
        if self != Self::Default {
            // What it does must show in the release, not behind a threshold.
            settings.rule = "fedavg".into();
            settings.weigh.coverage = if self == Self::Coverage { 1.0 } else { 0.0 };
        }
        settings
    }
}

/// Which of these pictures the model is in doubt about, by its own gate; they are added to what is known of hard cases.
pub(super) fn find_doubtful(
    runtime: &OnnxRuntime,
    model: &Model,
    pictures: &[(&Path, usize)],
    summary: &mut HardSummary,
) -> Result<Vec<bool>, BenchError> {
    let gate = Gate::new(&GateSettings::default(), &model.description.gate);
    let settings = InferenceSettings { threads: 1, ..InferenceSettings::default() };
    let mut replica = Replica::open(runtime, model, &settings)?;
    let mut doubtful = Vec::with_capacity(pictures.len());
    for (path, _) in pictures {
        let bytes = std::fs::read(path).map_err(BenchError::file(path))?;
        let seen = replica.predict(&bytes)?;
        let ratios = vision::probabilities(model, &seen.logits, gate.temperature);
        let Some(opinion) = vision::prediction(model, &ratios) else {
            doubtful.push(false);
            continue;
        };
        let is_doubtful =
            gate.decide(&TestedScores::of_model(&ratios, &model.thresholds), &opinion.label) != Reason::Confident;
        if is_doubtful {
            summary.add(&opinion.top, seen.features.as_deref());
        }
        doubtful.push(is_doubtful);
    }
    Ok(doubtful)
}
