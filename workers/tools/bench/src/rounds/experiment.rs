//! One game: sites learn from their pictures as a trainer does, what they send is merged as an aggregator does, and what comes
//! of it is tried on pictures nobody saw.

use std::path::Path;

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

/// Sites.
pub(super) const SITES: usize = 4;
/// Rounds; in the first, sites have as many of their pictures as there are rounds, in the last all.
pub(super) const ROUNDS: usize = 2;

/// What is played.
pub(super) struct RoundsExperiment<'a> {
    /// The model to begin with.
    pub start: &'a StartModel,
    /// How pictures are divided and shown.
    pub case: &'a DivisionCase,
    /// What sites believe.
    pub labels: LabelQuality,
    /// What hard cases do.
    pub steering: Steering,
    /// Of all chance.
    pub seed: u64,
}

/// What came of a game.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RoundsResult {
    /// Name of the model it began with.
    pub start: String,
    /// How pictures were divided and shown.
    pub case: String,
    /// Whether some cameras show pictures otherwise.
    pub is_shifted: bool,
    /// What sites believed.
    pub labels: LabelQuality,
    /// What hard cases did.
    pub steering: Steering,
    /// Of all chance: games with the same one differ in their steering alone.
    pub seed: u64,
    /// Share of the pictures nobody saw that the model it began with is right about.
    pub start_ratio: f64,
    /// Every round.
    pub rounds: Vec<RoundResult>,
}

/// What came of a round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RoundResult {
    /// The rule that was taken; `previous` where nothing was sealed.
    pub rule: String,
    /// What was tried on the pictures that are chosen by, the base first.
    pub candidates: Vec<RuleTrial>,
    /// Share of the pictures nobody saw that the release before is right about.
    pub before_ratio: f64,
    /// The same of what is deployed after the round.
    pub after_ratio: f64,
    /// What is shown of it.
    pub reported: Option<AccuracyChange>,
    /// What each site measured on what it held out: how much more is right, points.
    pub sites_gained_points: Vec<f64>,
}

impl RoundResult {
    /// Whether there is a new release.
    pub(super) fn is_sealed(&self) -> bool {
        self.rule != PREVIOUS
    }
}

impl RoundsResult {
    /// Share of the pictures nobody saw that the last release is right about.
    pub(super) fn end_ratio(&self) -> f64 {
        self.rounds.last().map_or(self.start_ratio, |round| round.after_ratio)
    }
}

/// Plays a game.
pub(super) fn run_experiment(
    runtime: &OnnxRuntime,
    world: &RoundsWorld,
    game: &RoundsExperiment<'_>,
    rounds: usize,
    stop: &CancellationToken,
) -> Result<RoundsResult, BenchError> {
    let place = tempfile::tempdir_in(world.place.path()).map_err(BenchError::file(world.place.path()))?;
    let RoundsExperiment { start, case, labels, steering, seed } = game;
    let (public, learnable) = world.draw(*seed);
    let public = world.public(&public, &start.model, case.camera)?;
    let test = world.test(&start.model, case.camera)?;
    let shares = shares(&learnable, world.labels.len(), game);
    let mut model = start.model.clone();
    let mut played = RoundsResult {
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
        let ground = ScoringModel::for_model(runtime, &model, &TrainableSelection::All, &[])?;
        let mut judges = vec![ModelScorer::new(runtime, &ground, 1)?];
        let before = judges[0].score(&ground.base, &test, &test.all())?.holdout().measured().accuracy_ratio;
        if round == 1 {
            played.start_ratio = before;
        }
        let known: Vec<_> = shares.iter().map(|share| &share[..share.len() * round / rounds]).collect();
        let mut summary = HardSummary::default();
        let doubtful = known.iter().map(|known| find_doubtful(runtime, &model, known, &mut summary));
        let doubtful = doubtful.collect::<Result<Vec<_>, _>>()?;
        let focus = summary.focus(steering.strength());
        let learner = SiteLearner { runtime, model: &model, ground: &ground, labels: &world.labels, stop };
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
            base: &ground.base,
            behind: 0,
            samples: one.of_class.iter().sum(),
            hard: one.hard,
            of_class: one.of_class.clone(),
        });
        let mut around = AggregateContext {
            layout: &ground.layout,
            public: Some(&public),
            judges: &mut judges,
            round: round as u64,
            is_learning: is_learning(&clear),
        };
        let derived = aggregate(&ground.base, sent.collect(), memory.clone(), &steering.merge(), &mut around);
        let derived = match derived {
            Ok(derived) => derived,
            Err(AggregateError::NoUpdates | AggregateError::NotFinite) => continue,
            Err(error) => return Err(error.into()),
        };
        let after = judges[0].score(&derived.row, &test, &test.all())?.holdout().measured().accuracy_ratio;
        memory = derived.memory;
        clear.extend(derived.record.is_clear);
        let ended = RoundResult {
            rule: derived.record.rule,
            candidates: derived.record.candidates,
            before_ratio: before,
            after_ratio: after,
            reported: derived.record.reported,
            sites_gained_points: learned.iter().map(|(_, one)| one.gained_points).collect(),
        };
        if ended.is_sealed() {
            let values = ground.layout.tensors(&derived.row).into_iter().map(|(name, (_, values))| (name, values));
            model = folder::write(&model, &ground.graph, &values.collect(), &place.path().join(format!("{round}")))?;
        }
        played.rounds.push(ended);
    }
    Ok(played)
}

/// Every site's pictures, each a file with what it is believed to show.
fn shares<'a>(
    learnable: &[&'a PooledPicture],
    classes: usize,
    game: &RoundsExperiment<'_>,
) -> Vec<Vec<(&'a Path, usize)>> {
    let Some(scheme) = game.case.scheme() else { return Vec::new() };
    let pictures: Vec<(usize, usize, Option<&str>)> =
        learnable.iter().enumerate().map(|(place, picture)| (place, picture.class, None)).collect();
    let divided = scheme.divide(&pictures, classes, SITES, game.seed);
    let believed = |picture: &PooledPicture, camera: CameraStyle| match game.labels {
        LabelQuality::True => Some(picture.class),
        LabelQuality::Verdicts => picture.verdicts.get(&camera).copied().flatten(),
        LabelQuality::TenthWrong => Some(picture.mistaken),
    };
    let of_site = |(number, share): (usize, Vec<(usize, usize)>)| {
        let camera = if number % 2 == 1 { game.case.camera } else { CameraStyle::Plain };
        let pictures = share.into_iter().filter_map(move |(place, _)| {
            let picture = learnable[place];
            Some((picture.files.get(&camera)?.as_path(), believed(picture, camera)?))
        });
        pictures.collect()
    };
    divided.into_iter().enumerate().map(of_site).collect()
}

/// What a site learned.
struct SiteTraining {
    /// Its weights.
    row: Vec<f32>,
    /// Pictures of each class that they were learned from.
    of_class: Vec<u64>,
    /// Of them, those that the model was in doubt about.
    hard: u64,
    /// How much more is right of what it held out, points.
    gained_points: f64,
}

/// What sites learn from and with.
struct SiteLearner<'a> {
    runtime: &'a OnnxRuntime,
    model: &'a Model,
    ground: &'a ScoringModel,
    labels: &'a [String],
    stop: &'a CancellationToken,
}

impl SiteLearner<'_> {
    /// A site learns as its trainer does; `None` if it has too few pictures to learn from. `into`: a folder of its own.
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
            // An index leads to nothing outside its folder.
            let link = into.join(number.to_string());
            std::os::unix::fs::symlink(path, &link).map_err(BenchError::file(&link))?;
            text.push_str(&format!("{number},{},{doubtful}\n", self.labels[*class]));
        }
        std::fs::write(&index, text).map_err(BenchError::file(&index))?;
        let settings = steering.training();
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
        let around = TrainContext { stop: self.stop, pace: TrainingPace::unlimited(None), checkpoints: None };
        let trained = train_model(self.runtime, self.model, &examples, &settings, around, |_| {})?;
        let (before, after) = trained.held_out();
        let mut of_class = vec![0; self.labels.len()];
        examples.of(ExampleSplit::Train).for_each(|example| of_class[example.class] += 1);
        let hard = examples.of(ExampleSplit::Train).filter(|example| example.hard).count() as u64;
        let gained_points = (after.accuracy_ratio - before.accuracy_ratio) * 100.0;
        let row = self.ground.layout.row(&trained.values());
        Ok(row.map(|row| SiteTraining { row, of_class, hard, gained_points }))
    }
}
