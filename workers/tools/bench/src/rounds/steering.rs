//! How hard cases steer learning in an experiment, and which pictures a model doubts.

use std::path::Path;

use aggregator::MergeSettings;
use aggregator::focus::HardSummary;
use offload::gate::{Gate, GateSettings, TestedScores};
use schemas::Reason;
use serde::Serialize;
use training::settings::TrainSettings;
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::error::BenchError;

/// How hard cases steer learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Steering {
    /// As configured by default.
    Default,
    /// No steering.
    None,
    /// A site trains on its own hard cases twice as often.
    Repeats,
    /// Sites train more often on pictures like the fleet's hard cases.
    Focus,
    /// An update is weighted by the hard cases it was trained on.
    Coverage,
}

impl Steering {
    /// Variants that are compared with `None`.
    pub(super) const COMPARED: [Self; 3] = [Self::Repeats, Self::Focus, Self::Coverage];

    /// Training settings of a site.
    pub(super) fn train_settings(self) -> TrainSettings {
        let mut settings = TrainSettings::default();
        match self {
            Self::Default => {}
            Self::Repeats => settings.hard_repeats = 2,
            Self::None | Self::Focus | Self::Coverage => settings.hard_repeats = 1,
        }
        settings
    }

    /// Setting `aggregator.round.hard_focus` of a round.
    pub(super) fn focus_strength(self) -> f32 {
        match self {
            Self::Default => aggregator::settings::RoundSettings::default().hard_focus,
            Self::Focus => 1.0,
            Self::None | Self::Repeats | Self::Coverage => 0.0,
        }
    }

    /// Merge settings of a round.
    pub(super) fn merge_settings(self) -> MergeSettings {
        let mut settings = MergeSettings::default();
        if self != Self::Default {
            // fedavg always seals, so that the effect of the steering shows in the release.
            settings.rule = "fedavg".into();
            settings.weigh.coverage = if self == Self::Coverage { 1.0 } else { 0.0 };
        }
        settings
    }
}

/// Which of these pictures the model's own gate doubts; adds them to the summary of hard cases.
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
        let inference = replica.predict(&bytes)?;
        let ratios = vision::probabilities(model, &inference.logits, gate.temperature);
        let Some(prediction) = vision::prediction(model, &ratios) else {
            doubtful.push(false);
            continue;
        };
        let is_doubtful =
            gate.decide(&TestedScores::of_model(&ratios, &model.thresholds), &prediction.label) != Reason::Confident;
        if is_doubtful {
            summary.add(&prediction.top, inference.features.as_deref());
        }
        doubtful.push(is_doubtful);
    }
    Ok(doubtful)
}
