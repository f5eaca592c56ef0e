//! One experiment: sites train like a trainer, their updates are merged like an aggregator, and the release is evaluated on
//! unseen pictures.

use std::path::Path;
use std::sync::Arc;

use aggregator::aggregate::{AggregateContext, AggregateError, SiteContribution, aggregate, is_learning};
use aggregator::audit::{AccuracyChange, RuleTrial};
use aggregator::focus::HardSummary;
use aggregator::rule::PREVIOUS;
use aggregator::score::{ModelScorer, ScoringModel};
use aggregator::server_optimizer::ServerOptimizerState;
use aggregator::weights_file::WeightRow;
use autograd::TrainableSelection;
use dataset::DatasetError;
use schemas::HardFocus;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use training::examples::{ExampleSplit, Examples};
use training::hard_focus;
use training::pace::TrainingPace;
use training::train::{TrainContext, train_model};
use training::{TrainError, folder};
use vision::{Model, OnnxRuntime};

use super::steering::{Steering, find_doubtful};
use super::world::{DivisionCase, LabelQuality, PooledPicture, RoundsWorld, StartModel};
use crate::camera::CameraStyle;
use crate::error::BenchError;
use crate::federated::site;

/// Number of sites.
pub(super) const SITES: usize = 4;
/// Number of rounds. Each round gives sites a further `1/ROUNDS` of their pictures.
pub(super) const ROUNDS: usize = 2;

/// Parameters of an experiment.
pub(super) struct RoundsExperiment<'a> {
    /// Start model.
    pub start: &'a StartModel,
    /// Division of the pictures, and camera.
    pub case: &'a DivisionCase,
    /// Quality of the sites' labels.
    pub labels: LabelQuality,
    /// How hard cases steer learning.
    pub steering: Steering,
    /// Random seed.
    pub seed: u64,
}

/// Result of an experiment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RoundsResult {
    /// Name of the start model.
    pub start: String,
    /// Name of the division and camera.
    pub case: String,
    /// Whether half of the cameras alter their pictures.
    pub is_shifted: bool,
    /// Quality of the sites' labels.
    pub labels: LabelQuality,
    /// How hard cases steered learning.
    pub steering: Steering,
    /// Random seed; experiments with the same seed differ only in their steering.
    pub seed: u64,
    /// Accuracy of the start model on unseen pictures, 0 to 1.
    pub start_ratio: f64,
    /// Results of the rounds.
    pub rounds: Vec<ExperimentRound>,
}

/// Result of a round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ExperimentRound {
    /// The chosen rule; `previous` if no release was sealed.
    pub rule: String,
    /// Candidates scored on the selection pictures, the base first.
    pub candidates: Vec<RuleTrial>,
    /// Accuracy of the previous release on unseen pictures, 0 to 1.
    pub before_ratio: f64,
    /// Accuracy of the model deployed after the round on unseen pictures, 0 to 1.
    pub after_ratio: f64,
    /// Accuracy that the round reports.
    pub reported: Option<AccuracyChange>,
    /// Accuracy gain of each site on its own holdout, percentage points.
    pub sites_gained_points: Vec<f64>,
}

impl ExperimentRound {
    /// Whether the round sealed a new release.
    pub(super) fn is_sealed(&self) -> bool {
        self.rule != PREVIOUS
    }
}

impl RoundsResult {
    /// Accuracy of the last release on unseen pictures, 0 to 1.
    pub(super) fn end_ratio(&self) -> f64 {
        self.rounds.last().map_or(self.start_ratio, |round| round.after_ratio)
    }
}

/// Runs an experiment.
pub(super) fn run_experiment(
    runtime: &OnnxRuntime,
    world: &RoundsWorld,
    experiment: &RoundsExperiment<'_>,
    rounds: usize,
    stop: &CancellationToken,
) -> Result<RoundsResult, BenchError> {
    let place = tempfile::tempdir_in(world.place.path()).map_err(BenchError::file(world.place.path()))?;
    let RoundsExperiment { start, case, labels, steering, seed } = experiment;
    let (public, learnable) = world.draw(*seed);
    let public = world.public(&public, &start.model, case.camera)?;
    let test = world.test(&start.model, case.camera)?;
    let shares = divide_pictures(&learnable, world.labels.len(), experiment);
    let mut model = start.model.clone();
    let mut result = RoundsResult {
        start: start.name.clone(),
        case: case.name(),
        is_shifted: case.camera != CameraStyle::Plain,
        labels: *labels,
        steering: *steering,
        seed: *seed,
        start_ratio: 0.0,
        rounds: Vec::new(),
    };
    let (mut memory, mut clear) = (ServerOptimizerState::default(), Vec::new());
    for round in 1..=rounds {
        let scoring = ScoringModel::for_model(runtime, &model, &TrainableSelection::All, &[])?;
        let mut scorers = vec![ModelScorer::new(runtime, &scoring, 1)?];
        let before = scorers[0].score(&scoring.base, &test, &test.all())?.holdout().measured().accuracy_ratio;
        if round == 1 {
            result.start_ratio = before;
        }
        let known: Vec<_> = shares.iter().map(|share| &share[..share.len() * round / rounds]).collect();
        let mut summary = HardSummary::default();
        let doubtful = known.iter().map(|known| find_doubtful(runtime, &model, known, &mut summary));
        let doubtful = doubtful.collect::<Result<Vec<_>, _>>()?;
        let focus = summary.focus(steering.focus_strength());
        let learner = SiteLearner { runtime, model: &model, scoring: &scoring, labels: &world.labels, stop };
        let mut learned = Vec::new();
        for (number, (known, doubtful)) in known.iter().zip(&doubtful).enumerate() {
            let into = place.path().join(format!("{round}-{number}"));
            if let Some(one) = learner.learn(known, doubtful, focus.as_ref(), *steering, &into)? {
                learned.push((site(number), one));
            }
        }
        let sent = learned.iter().map(|(site, one)| SiteContribution {
            site: site.clone(),
            values: WeightRow::Memory(&one.row),
            base: &scoring.base,
            behind: 0,
            samples: one.of_class.iter().sum(),
            hard: one.hard,
            of_class: one.of_class.clone(),
        });
        let mut context = AggregateContext {
            layout: &scoring.layout,
            public: Some(&public),
            judges: &mut scorers,
            round: round as u64,
            is_learning: is_learning(&clear),
        };
        let derived =
            aggregate(&scoring.base, sent.collect(), memory.clone(), &steering.merge_settings(), &mut context);
        let derived = match derived {
            Ok(derived) => derived,
            Err(AggregateError::NoUpdates | AggregateError::NotFinite) => continue,
            Err(error) => return Err(error.into()),
        };
        let after = scorers[0].score(&derived.row, &test, &test.all())?.holdout().measured().accuracy_ratio;
        memory = derived.memory;
        clear.extend(derived.record.is_clear);
        let ended = ExperimentRound {
            rule: derived.record.rule,
            candidates: derived.record.candidates,
            before_ratio: before,
            after_ratio: after,
            reported: derived.record.reported,
            sites_gained_points: learned.iter().map(|(_, one)| one.gained_points).collect(),
        };
        if ended.is_sealed() {
            let values = scoring.layout.tensors(&derived.row).into_iter().map(|(name, (_, values))| (name, values));
            model = folder::write(&model, &scoring.graph, &values.collect(), &place.path().join(format!("{round}")))?;
        }
        result.rounds.push(ended);
    }
    Ok(result)
}

/// Divides the pictures among sites: file and assigned class of each.
fn divide_pictures<'a>(
    learnable: &[&'a PooledPicture],
    classes: usize,
    experiment: &RoundsExperiment<'_>,
) -> Vec<Vec<(&'a Path, usize)>> {
    let Some(scheme) = experiment.case.scheme() else { return Vec::new() };
    let pictures: Vec<(usize, usize, Option<&str>)> =
        learnable.iter().enumerate().map(|(place, picture)| (place, picture.class, None)).collect();
    let divided = scheme.divide(&pictures, classes, SITES, experiment.seed);
    let assigned = |picture: &PooledPicture, camera: CameraStyle| match experiment.labels {
        LabelQuality::True => Some(picture.class),
        LabelQuality::Verdicts => picture.verdicts.get(&camera).copied().flatten(),
        LabelQuality::TenthWrong => Some(picture.mistaken),
    };
    let of_site = |(number, share): (usize, Vec<(usize, usize)>)| {
        let camera = if number % 2 == 1 { experiment.case.camera } else { CameraStyle::Plain };
        let pictures = share.into_iter().filter_map(move |(place, _)| {
            let picture = learnable[place];
            Some((picture.files.get(&camera)?.as_path(), assigned(picture, camera)?))
        });
        pictures.collect()
    };
    divided.into_iter().enumerate().map(of_site).collect()
}

/// Result of a site's training.
struct SiteTraining {
    /// Trained weights.
    row: Vec<f32>,
    /// Training pictures per class.
    of_class: Vec<u64>,
    /// Training pictures that the model doubted.
    hard: u64,
    /// Accuracy gain on the holdout, percentage points.
    gained_points: f64,
}

/// Trains the sites of a round.
struct SiteLearner<'a> {
    runtime: &'a OnnxRuntime,
    model: &'a Model,
    scoring: &'a ScoringModel,
    labels: &'a [String],
    stop: &'a CancellationToken,
}

impl SiteLearner<'_> {
    /// Trains a site as its trainer would; `None` if it has too few pictures. `into`: a work folder for this site.
    fn learn(
        &self,
        known: &[(&Path, usize)],
        doubtful: &[bool],
        focus: Option<&HardFocus>,
        steering: Steering,
        into: &Path,
    ) -> Result<Option<SiteTraining>, BenchError> {
        std::fs::create_dir_all(into).map_err(BenchError::file(into))?;
        let index = into.join("index.csv");
        let mut text = String::from("file,label,hard\n");
        for (number, ((path, class), doubtful)) in known.iter().zip(doubtful).enumerate() {
            // An index may only name files in its own folder, hence the links.
            let link = into.join(number.to_string());
            std::os::unix::fs::symlink(path, &link).map_err(BenchError::file(&link))?;
            text.push_str(&format!("{number},{},{doubtful}\n", self.labels[*class]));
        }
        std::fs::write(&index, text).map_err(BenchError::file(&index))?;
        let settings = steering.train_settings();
        let mut examples = match Examples::read(into, self.labels, settings.holdout_ratio) {
            Ok(examples) => examples,
            Err(
                TrainError::Dataset(DatasetError::Empty { .. })
                | TrainError::NoExamples { .. }
                | TrainError::SingleClass { .. },
            ) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(focus) = focus {
            hard_focus::apply(focus, self.runtime, self.model, &mut examples, settings.threads, self.stop)?;
        }
        let context =
            TrainContext { stop: self.stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None };
        let trained = train_model(self.runtime, self.model, &examples, &settings, context, |_| {})?;
        let (before, after) = trained.held_out();
        let mut of_class = vec![0; self.labels.len()];
        examples.of(ExampleSplit::Train).for_each(|example| of_class[example.class] += 1);
        let hard = examples.of(ExampleSplit::Train).filter(|example| example.hard).count() as u64;
        let gained_points = (after.accuracy_ratio - before.accuracy_ratio) * 100.0;
        let row = self.scoring.layout.row(&trained.values());
        Ok(row.map(|row| SiteTraining { row, of_class, hard, gained_points }))
    }
}
