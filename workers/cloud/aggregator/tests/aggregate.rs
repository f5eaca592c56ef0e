//! Aggregates updates with the real ONNX Runtime, the project's own model and pictures.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use aggregator::aggregate::{AggregateContext, AggregateError, AggregateResult, SiteContribution, aggregate};
use aggregator::filter::UpdateFilter;
use aggregator::merge::WeightedRow;
use aggregator::public_set::PublicSet;
use aggregator::score::{HeadLearning, ModelScorer, ScoringModel, Tuning};
use aggregator::server_optimizer::ServerOptimizerState;
use aggregator::weights_file::WeightRow;
use aggregator::{MergeSettings, merge};
use autograd::TrainableSelection;
use vision::{Model, OnnxRuntime};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures")
}

struct AggregateFixture {
    runtime: OnnxRuntime,
    model: Model,
    ground: ScoringModel,
    public: PublicSet,
}

fn here() -> AggregateFixture {
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let model = Model::load(&fixtures().join("models/fashion-light")).unwrap();
    let ground = ScoringModel::for_model(&runtime, &model, &TrainableSelection::All, &[]).unwrap();
    let public = PublicSet::read(&fixtures().join("images/fashion"), &model, 12, 1 << 26).unwrap();
    AggregateFixture { runtime, model, ground, public }
}

/// Rows close to the base: what sites might send.
fn rows(base: &[f32], count: usize) -> Vec<Vec<f32>> {
    (0..count)
        .map(|site| {
            let moved = |at: usize| (((at * 31 + site * 17) % 101) as f32 / 101.0 - 0.5) * 0.02 * (site + 1) as f32;
            base.iter().enumerate().map(|(at, value)| value + moved(at)).collect()
        })
        .collect()
}

fn sent<'a>(rows: &'a [Vec<f32>], base: &'a [f32]) -> Vec<SiteContribution<'a>> {
    let one = |(number, row): (usize, &'a Vec<f32>)| SiteContribution {
        site: format!("site-{number}").parse().unwrap(),
        values: WeightRow::Memory(row),
        base,
        behind: 0,
        samples: 10 + number as u64 * 7,
        hard: 0,
        of_class: vec![10; 10],
    };
    rows.iter().enumerate().map(one).collect()
}

fn derived(
    here: &AggregateFixture,
    sent: Vec<SiteContribution<'_>>,
    settings: &MergeSettings,
) -> Result<AggregateResult, AggregateError> {
    let mut judges = vec![
        ModelScorer::new(&here.runtime, &here.ground, 1).unwrap(),
        ModelScorer::new(&here.runtime, &here.ground, 1).unwrap(),
    ];
    let public = Some(&here.public);
    let mut around =
        AggregateContext { layout: &here.ground.layout, public, judges: &mut judges, round: 3, is_learning: false };
    aggregate(&here.ground.base, sent, ServerOptimizerState::default(), settings, &mut around)
}

fn rule(name: &str) -> MergeSettings {
    MergeSettings { rule: name.into(), ..MergeSettings::default() }
}

#[test]
fn the_same_updates_in_any_order_give_the_same_bits() {
    let here = here();
    let rows = rows(&here.ground.base, 5);
    for name in [
        "fedavg",
        "uniform",
        "agreement",
        "classes",
        "classes+tune",
        "paper",
        "quality",
        "law",
        "fedavg+head",
        "quality+tune",
        "quality-classes+tune",
        "quality+distill",
        "pick",
    ] {
        let settings = rule(name);
        let first = derived(&here, sent(&rows, &here.ground.base), &settings).unwrap();
        let mut turned = sent(&rows, &here.ground.base);
        turned.rotate_left(2);
        turned.swap(0, 1);
        let again = derived(&here, turned, &settings).unwrap();
        assert_eq!(first, again, "{name}");
        let shares: f64 = first.record.parts.iter().map(|part| part.share).sum();
        assert!((shares - 1.0).abs() < 1e-9 || first.record.rule == "previous", "{name}: {shares}");
    }
}

#[test]
fn filters_and_medians_exclude_a_bad_site() {
    let here = here();
    let base = &here.ground.base;
    let mut rows = rows(base, 5);
    rows[2] = base.iter().map(|value| -30.0 * value).collect();
    let score = |row: &[f32]| {
        let mut judge = ModelScorer::new(&here.runtime, &here.ground, 1).unwrap();
        judge.score(row, &here.public, &here.public.all()).unwrap().mean_accuracy()
    };
    let good = score(base);
    assert!(good > 0.8, "{good}");
    assert!(score(&derived(&here, sent(&rows, base), &rule("fedavg")).unwrap().row) < good - 0.2);
    for filter in [
        UpdateFilter::NormClip,
        UpdateFilter::LossGate,
        UpdateFilter::Krum,
        UpdateFilter::Trimmed,
        UpdateFilter::Median,
    ] {
        let mut settings = rule("fedavg");
        settings.filter.names = vec![filter];
        let derived = derived(&here, sent(&rows, base), &settings).unwrap();
        let right = score(&derived.row);
        assert!(right > good - 0.1, "{filter:?}: {right} instead of {good}");
        let note = derived.record.parts[2].note.is_some();
        assert_eq!(note, !matches!(filter, UpdateFilter::Trimmed | UpdateFilter::Median), "{filter:?}");
    }
}

#[test]
fn the_slope_predicts_how_the_loss_grows() {
    let here = here();
    let mut judge = ModelScorer::new(&here.runtime, &here.ground, 1).unwrap();
    let rows = rows(&here.ground.base, 2);
    let all = here.public.all();
    let at = |share: f64| {
        let terms = [
            WeightedRow { values: WeightRow::Memory(&rows[0]), times: 1.0 - share },
            WeightedRow { values: WeightRow::Memory(&rows[1]), times: share },
        ];
        merge::sum(&terms, &here.ground.layout)
    };
    let (loss, slope) = judge.slope(&at(0.5), &here.public, &all, None).unwrap();
    let along =
        slope.iter().zip(rows[1].iter().zip(&rows[0])).map(|(slope, (b, a))| f64::from(*slope) * f64::from(b - a));
    let along: f64 = along.sum();
    // A short step, because the loss has a kink wherever a unit becomes active.
    let ends = [0.4995, 0.5005].map(|share| judge.slope(&at(share), &here.public, &all, None).unwrap().0);
    let measured = (ends[1] - ends[0]) / 0.001;
    assert!((along - measured).abs() < 0.1 * measured.abs(), "{along} and {measured}, loss {loss}");
}

#[test]
fn training_on_public_pictures_lowers_their_loss() {
    let here = here();
    let mut judge = ModelScorer::new(&here.runtime, &here.ground, 1).unwrap();
    let (start, all) = (&rows(&here.ground.base, 4)[3], here.public.all());
    let before = judge.score(start, &here.public, &all).unwrap().loss;
    assert!(judge.has_head());
    let head = judge.train_head(start, &here.public, &all, HeadLearning::default()).unwrap();
    assert!(judge.score(&head, &here.public, &all).unwrap().loss < before);
    let moved = start.iter().zip(&head).filter(|(a, b)| a != b).count();
    assert!(moved > 0 && moved <= 330, "{moved} weights moved, the last layer has 330");
    let tuned = judge.tune_model(start, &here.public, &all, None, Tuning::default(), 1).unwrap();
    assert!(judge.score(&tuned, &here.public, &all).unwrap().loss < before);
}

#[test]
fn a_public_set_with_gaps_is_used_and_the_gaps_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let here = here();
    let source = fixtures().join("images/fashion");
    for label in ["bag", "coat"] {
        let to = folder.path().join(label);
        std::fs::create_dir(&to).unwrap();
        for picture in std::fs::read_dir(source.join(label)).unwrap().take(6) {
            let picture = picture.unwrap();
            std::fs::copy(picture.path(), to.join(picture.file_name())).unwrap();
        }
    }
    std::fs::write(folder.path().join("bag/broken.png"), b"no picture").unwrap();
    let public = PublicSet::read(folder.path(), &here.model, 50, 1 << 20).unwrap();
    assert_eq!((public.len(), public.missing().len(), public.unreadable.len()), (12, 8, 1));
    assert!(public.unreadable[0].contains("broken.png"), "{:?}", public.unreadable);
    let mut judge = ModelScorer::new(&here.runtime, &here.ground, 1).unwrap();
    let tried = judge.score(&here.ground.base, &public, &public.all()).unwrap();
    assert_eq!(tried.accuracy.iter().flatten().count(), 2);
    let parts = public.parts();
    assert_eq!((parts.fit.len(), parts.choose.len(), parts.report.len()), (4, 4, 4));
    assert!(PublicSet::read(folder.path(), &here.model, 50, 1000).unwrap_err().to_string().contains("public_max_mib"));
}

/// A public set in a folder, nine pictures of each class; every third one of a class, in the reported part, shows
/// `instead`.
fn public_with(folder: &Path, here: &AggregateFixture, instead: Option<&str>) -> PublicSet {
    for label in &here.model.labels {
        let (from, to) = (fixtures().join("images/fashion").join(label), folder.join(label));
        std::fs::create_dir_all(&to).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for (number, name) in names.iter().take(9).enumerate() {
            let other = instead.filter(|_| number % 3 == 2).map(|label| {
                let mut of_other = std::fs::read_dir(from.with_file_name(label)).unwrap();
                of_other.next().unwrap().unwrap().path()
            });
            std::fs::copy(other.unwrap_or_else(|| from.join(name)), to.join(name)).unwrap();
        }
    }
    PublicSet::read(folder, &here.model, 9, 1 << 26).unwrap()
}

#[test]
fn nothing_is_fitted_on_or_chosen_by_the_reported_pictures() {
    let mut here = here();
    let rows = rows(&here.ground.base, 5);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [own, other] = [(&folders[0], None), (&folders[1], Some("bag"))]
        .map(|(folder, instead)| public_with(folder.path(), &here, instead));
    for name in ["pick", "law+head", "quality+distill", "fedavg+tune"] {
        let mut derive_with = |public: &PublicSet| {
            here.public = public.clone();
            derived(&here, sent(&rows, &here.ground.base), &rule(name)).unwrap()
        };
        let (first, again) = (derive_with(&own), derive_with(&other));
        assert_eq!(first.row, again.row, "{name}");
        assert_eq!(first.record.candidates, again.record.candidates, "{name}");
        assert_ne!(first.record.reported, again.record.reported, "{name}");
    }
}

#[test]
fn a_good_base_stays_unless_a_candidate_is_better_by_more_than_chance() {
    let mut here = here();
    let base = &here.ground.base.clone();
    // Sites that only make it worse.
    let worse: Vec<Vec<f32>> =
        (1..4).map(|site| base.iter().map(|value| value * (1.0 - 0.3 * site as f32)).collect()).collect();
    let stands = derived(&here, sent(&worse, base), &rule("pick")).unwrap();
    assert_eq!((stands.record.rule.as_str(), &stands.row), ("previous", base));
    assert!(stands.record.instead.unwrap().contains("nothing gained"));
    assert!(stands.record.parts.iter().all(|part| part.share == 0.0));
    let momentum = {
        let mut settings = rule("pick");
        settings.server_optimizer.kind = aggregator::server_optimizer::ServerOptimizerKind::Momentum;
        derived(&here, sent(&worse, base), &settings).unwrap()
    };
    assert_eq!(
        (&momentum.row, momentum.memory),
        (base, ServerOptimizerState::default()),
        "nothing moves where nothing is gained"
    );
    // An untrained base, and sites that know a lot.
    here.ground.base = vec![0.0; base.len()];
    let better = vec![base.clone(), base.clone()];
    let gained = derived(&here, sent(&better, &here.ground.base), &rule("pick")).unwrap();
    assert_ne!(gained.record.rule, "previous");
    let reported = gained.record.reported.unwrap();
    assert!(reported.is_measured() && reported.after.accuracy_ratio > 0.8, "{reported}");
    assert_eq!(reported.after.images, 40);
}

#[test]
fn a_learning_loop_takes_a_candidate_as_good_as_the_base() {
    let mut here = here();
    let good = here.ground.base.clone();
    // A base that lost a little, and sites that regain it: with so few pictures, within chance.
    here.ground.base = good.iter().enumerate().map(|(at, value)| value * (1.0 + 0.1 * (at as f32).sin())).collect();
    let sent = sent(std::slice::from_ref(&good), &here.ground.base);
    let settings = MergeSettings { candidates: vec!["fedavg".into()], ..rule("pick") };
    let with = |is_learning: bool| {
        let mut judges = vec![ModelScorer::new(&here.runtime, &here.ground, 1).unwrap()];
        let (layout, public) = (&here.ground.layout, Some(&here.public));
        let mut around = AggregateContext { layout, public, judges: &mut judges, round: 3, is_learning };
        aggregate(&here.ground.base, sent.clone(), ServerOptimizerState::default(), &settings, &mut around)
            .unwrap()
            .record
    };
    let (strict, learning) = (with(false), with(true));
    assert_eq!((strict.rule.as_str(), strict.is_clear), ("previous", None), "{:?}", strict.candidates);
    assert_eq!((learning.rule.as_str(), learning.is_clear), ("fedavg", Some(false)), "{:?}", learning.candidates);
}

#[test]
fn impossible_aggregations_are_refused_by_name() {
    let here = here();
    let base = &here.ground.base;
    assert!(matches!(derived(&here, Vec::new(), &rule("fedavg")), Err(AggregateError::NoUpdates)));
    assert!(matches!(derived(&here, sent(&rows(base, 2), base), &rule("best")), Err(AggregateError::Settings(_))));
    let huge = vec![vec![f32::MAX; base.len()], vec![f32::MAX; base.len()]];
    let mut settings = rule("uniform");
    settings.server_optimizer.rate = 4.0;
    assert!(matches!(derived(&here, sent(&huge, base), &settings), Err(AggregateError::NotFinite)));
    let mut around =
        AggregateContext { layout: &here.ground.layout, public: None, judges: &mut [], round: 1, is_learning: false };
    let sent = sent(&huge, base);
    let refused =
        aggregate(base, sent, ServerOptimizerState::default(), &rule("paper"), &mut around).unwrap_err().to_string();
    assert!(refused.contains("aggregator.public"), "{refused}");
}
