//! Trains the project's own model on the project's own pictures with the real runtime.

#![allow(clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use autograd::onnx;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;
use training::holdout::HoldoutComparison;
use training::pace::TrainingAccount;
use training::quota::CpuBounds;
use training::{
    CheckpointFolder, ExampleSplit, Examples, TrainContext, TrainError, TrainSettings, TrainedModel, TrainingPace,
    folder, train_model,
};
use vision::{Model, OnnxRuntime, Session, tensor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fixtures")
}

fn light() -> Model {
    Model::load(&fixtures().join("models/fashion-light")).unwrap()
}

/// The light model with random weights: spread as He et al. recommend (arXiv 1502.01852), the same each time.
fn ignorant(into: &Path) -> Model {
    let model = light();
    let graph = onnx::read(&model.graph).unwrap();
    let prepared =
        training::trainable_model::prepare_model(&OnnxRuntime::find_and_load(None).unwrap(), &model, 1).unwrap();
    let step = prepared.prepared.step(&prepared.known, &autograd::TrainableSelection::All).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut fresh = |weight: &autograd::training_step::Weight| {
        let count: i64 = weight.shape.iter().product();
        // The fan-in is the product of all axes but the larger of the first two; biases start at 0.
        let fan_in: i64 = if weight.shape.len() > 1 { count / weight.shape[0] } else { 0 };
        let reach = if fan_in > 0 { (6.0 / fan_in as f32).sqrt() } else { 0.0 };
        (weight.name.clone(), (0..count).map(|_| random.random_range(-1.0_f32..1.0) * reach).collect())
    };
    let weights: BTreeMap<String, Vec<f32>> = step.weights.iter().map(&mut fresh).collect();
    folder::write(&model, &graph, &weights, into).unwrap()
}

fn settings() -> TrainSettings {
    let mut settings = TrainSettings { epochs: 6, ..TrainSettings::default() };
    settings.optimizer.learning_rate = Some(0.05);
    settings
}

fn around(stop: &CancellationToken) -> TrainContext<'_> {
    TrainContext { stop, pace: Arc::new(TrainingPace::unlimited(None)), checkpoints: None }
}

fn trained(model: &Model, settings: &TrainSettings) -> Result<TrainedModel, TrainError> {
    let data = fixtures().join("images/fashion");
    let mut examples = Examples::read(&data, &model.labels, 0.1).unwrap();
    examples.all.retain(|example| example.split != ExampleSplit::Test);
    train_model(
        &OnnxRuntime::find_and_load(None).unwrap(),
        model,
        &examples,
        settings,
        around(&CancellationToken::new()),
        |_| {},
    )
}

#[test]
fn a_random_model_learns_the_same_from_the_same_seed() {
    let place = tempfile::tempdir().unwrap();
    let model = ignorant(&place.path().join("start"));
    let first = trained(&model, &settings()).unwrap();
    let (before, after) = first.held_out();
    assert!(before.accuracy_ratio < 0.3, "{before:?}");
    assert!(after.accuracy_ratio > 0.7, "{after:?}");
    assert_eq!((first.comparison, first.has_no_gain()), (HoldoutComparison::Better, None));
    let again = trained(&model, &settings()).unwrap();
    assert_eq!(first.weights, again.weights, "the same seed");
    let other = trained(&model, &TrainSettings { seed: 2, ..settings() }).unwrap();
    assert_ne!(first.weights, other.weights, "another seed");
}

#[test]
fn the_new_folder_predicts_like_the_trained_weights() {
    let place = tempfile::tempdir().unwrap();
    let model = ignorant(&place.path().join("start"));
    let result = trained(&model, &TrainSettings { epochs: 2, ..settings() }).unwrap();
    let new = folder::write(&model, &result.onnx, &result.values(), &place.path().join("new")).unwrap();
    assert_ne!(new.release, model.release);
    // The new folder in an ordinary session, against the step's graph with the weights as inputs.
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let input = &model.description.input;
    let picture: Vec<f32> = (0..tensor::len(input)).map(|at| (at % 13) as f32 / 6.0 - 1.0).collect();
    let said = Session::open(&runtime, &new, 1).unwrap().run(&picture, 1).unwrap().logits;
    let ready = training::trainable_model::prepare_model(&runtime, &model, 1).unwrap();
    let step = ready.prepared.step(&ready.known, &autograd::TrainableSelection::All).unwrap();
    let weights: Vec<Vec<f32>> = step.weights.iter().map(|weight| result.weights[&weight.name].1.clone()).collect();
    let targets = autograd::loss::cross_entropy(&[Some(0)], step.classes, &Default::default());
    let mut stepper = training::stepper::Stepper::open(&runtime, step, 1).unwrap();
    let expected = stepper.measure(&picture, &targets, &weights).unwrap().scores;
    let worst = said.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{said:?} and {expected:?}");
    let taken = folder::write(&model, &result.onnx, &result.values(), &new.folder).unwrap_err();
    assert!(matches!(taken, TrainError::Taken { .. }), "{taken}");
}

#[test]
fn a_good_model_is_not_made_worse_by_the_defaults() {
    let place = tempfile::tempdir().unwrap();
    // The old defaults, and the current ones.
    let mut old = TrainSettings { epochs: 3, ..TrainSettings::default() };
    old.optimizer.learning_rate = Some(0.1);
    let result = trained(&light(), &old).unwrap();
    let (before, after) = result.held_out();
    assert!(after.accuracy_ratio >= before.accuracy_ratio - 0.02, "{before:?} {after:?}");
    let last = result.epochs.last().unwrap().held_out;
    assert!(last.loss > before.loss, "at this rate it forgets: {last:?}");
    assert!(result.has_no_gain().unwrap().starts_with("no gain"), "{:?}", result.has_no_gain());
    let kept = folder::write(&light(), &result.onnx, &result.values(), &place.path().join("kept")).unwrap();
    assert!(result.best_epoch != 0 || kept.labels == light().labels);

    let result = trained(&light(), &TrainSettings { epochs: 3, ..TrainSettings::default() }).unwrap();
    assert!(result.learning_rate < 0.02, "{}", result.learning_rate);
    let (before, after) = result.held_out();
    assert!(after.loss <= before.loss && after.accuracy_ratio > before.accuracy_ratio - 0.01, "{before:?} {after:?}");
    // From random weights the highest rate is taken.
    let model = ignorant(&place.path().join("start"));
    let result = trained(&model, &TrainSettings { epochs: 1, ..TrainSettings::default() }).unwrap();
    assert_eq!(result.learning_rate, 0.02);
}

#[test]
fn only_the_selected_weights_change() {
    let result = trained(&light(), &TrainSettings { trainable: "head".into(), epochs: 1, ..settings() }).unwrap();
    assert_eq!(result.weights.len(), 2);
    assert_eq!(result.parameters, 330, "a matrix of 32 by 10 and 10 biases");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_training_by_name() {
    let mut wild = settings();
    wild.optimizer.learning_rate = Some(1e12);
    let error = trained(&light(), &wild).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("learning rate"), "{error}");
}

#[test]
fn broken_pictures_among_good_ones_are_skipped_and_reported() {
    let place = tempfile::tempdir().unwrap();
    let (model, from) = (light(), fixtures().join("images/fashion"));
    let examples = Examples::read(&from, &model.labels, 0.1).unwrap();
    let mut index = String::from("file,label,split\n");
    for (at, example) in examples.of(ExampleSplit::Train).enumerate().filter(|(at, _)| at % 9 == 0) {
        let bytes = std::fs::read(&example.path).unwrap();
        let kept = if at % 45 == 0 { &bytes[..20] } else { &bytes[..] };
        std::fs::write(place.path().join(format!("{at}.png")), kept).unwrap();
        let split = if at % 2 == 0 { "train" } else { "val" };
        index.push_str(&format!("{at}.png,{},{split}\n", model.labels[example.class]));
    }
    std::fs::write(place.path().join("index.csv"), index).unwrap();
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let some = Examples::read(place.path(), &model.labels, 0.1).unwrap();
    let one = TrainSettings { epochs: 1, ..settings() };
    let result = train_model(&runtime, &model, &some, &one, around(&CancellationToken::new()), |_| {}).unwrap();
    assert!(result.unreadable > 0);
    for example in &some.all {
        std::fs::write(&example.path, b"no picture").unwrap();
    }
    let error = train_model(&runtime, &model, &some, &one, around(&CancellationToken::new()), |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::Unreadable { .. }), "{error}");
}

#[test]
fn training_stops_on_request() {
    let stop = CancellationToken::new();
    stop.cancel();
    let model = light();
    let examples = Examples::read(&fixtures().join("images/fashion"), &model.labels, 0.1).unwrap();
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let stopped = train_model(&runtime, &model, &examples, &settings(), around(&stop), |_| {}).unwrap_err();
    assert!(matches!(stopped, TrainError::Stopped));
}

#[test]
fn an_interrupted_training_resumes_to_the_same_weights() {
    let place = tempfile::tempdir().unwrap();
    let model = ignorant(&place.path().join("start"));
    let mut settings = settings();
    (settings.epochs, settings.augment.mirror, settings.augment.shift_ratio) = (3, true, 0.1);
    settings.optimizer.kind = training::settings::OptimizerKind::Adam;
    settings.optimizer.learning_rate = Some(0.002);
    let undisturbed = trained(&model, &settings).unwrap();
    let data = fixtures().join("images/fashion");
    let mut examples = Examples::read(&data, &model.labels, 0.1).unwrap();
    examples.all.retain(|example| example.split != ExampleSplit::Test);
    let onnx = OnnxRuntime::find_and_load(None).unwrap();
    let mut stops = 0;
    let again = loop {
        let stop = CancellationToken::new();
        let checkpoints = Some(CheckpointFolder::new(place.path(), Duration::from_millis(20)));
        let later = stop.clone();
        // In the middle of the first epoch.
        let see = |_: &training::Epoch| {
            let later = later.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(60));
                later.cancel();
            });
        };
        match train_model(&onnx, &model, &examples, &settings, TrainContext { checkpoints, ..around(&stop) }, see) {
            Ok(trained) => break trained,
            Err(TrainError::Stopped) => stops += 1,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(stops > 0, "never stopped");
    assert_eq!(again.weights, undisturbed.weights, "after {stops} stops");
    let said = |trained: &TrainedModel| {
        trained.epochs.iter().map(|epoch| (epoch.learned_loss, epoch.held_out)).collect::<Vec<_>>()
    };
    assert_eq!(said(&again), said(&undisturbed));
}

#[test]
fn the_frozen_part_is_computed_once_with_the_same_result() {
    let model = light();
    let mut head = TrainSettings { trainable: "head".into(), epochs: 2, ..settings() };
    let cached = trained(&model, &head).unwrap();
    assert!(cached.features_cached && cached.weights.len() == 2);
    // Augmented pictures, however little they change, are computed each time.
    head.augment.brightness_ratio = 1e-9;
    let anew = trained(&model, &head).unwrap();
    assert!(!anew.features_cached);
    for (name, (_, values)) in &cached.weights {
        for (a, b) in values.iter().zip(&anew.weights[name].1) {
            assert!((a - b).abs() < 1e-3, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn more_memory_than_allowed_is_refused_before_it_is_taken() {
    let mut settings = settings();
    settings.batch = 1024;
    let stop = CancellationToken::new();
    let pace = Arc::new(TrainingPace::unlimited(Some(1)));
    let examples = Examples::read(&fixtures().join("images/fashion"), &light().labels, 0.1).unwrap();
    let onnx = OnnxRuntime::find_and_load(None).unwrap();
    let error =
        train_model(&onnx, &light(), &examples, &settings, TrainContext { pace, ..around(&stop) }, |_| {}).unwrap_err();
    assert!(error.to_string().contains("memory_max_mib allows 1"), "{error}");
}

#[test]
fn with_few_images_a_good_model_trains_only_its_last_layers() {
    let examples = |model: &Model, of_class: usize| {
        let mut examples = Examples::read(&fixtures().join("images/fashion"), &model.labels, 0.1).unwrap();
        let mut taken = BTreeMap::<(ExampleSplit, usize), usize>::new();
        examples.all.retain(|example| {
            let count = taken.entry((example.split, example.class)).or_default();
            *count += 1;
            example.split != ExampleSplit::Test && *count <= of_class
        });
        examples
    };
    let runtime = OnnxRuntime::find_and_load(None).unwrap();
    let learn = |model: &Model, of_class: usize| {
        let settings = TrainSettings { epochs: 1, ..settings() };
        let stop = CancellationToken::new();
        train_model(&runtime, model, &examples(model, of_class), &settings, around(&stop), |_| {}).unwrap()
    };
    let all = onnx::read(&light().graph).unwrap().floats().unwrap().len();
    for (of_class, layers, numbers) in [(5, Some(1), 330), (15, Some(2), 25_450), (30, None, 26_698)] {
        let few = learn(&light(), of_class);
        assert_eq!((few.layers, few.parameters), (layers, numbers), "{of_class} images per class");
        assert_eq!(few.weights.len(), all, "unchanged weights are sent too");
    }
    let few = learn(&light(), 5);
    let moved: Vec<&String> = few
        .weights
        .iter()
        .filter(|(name, (_, values))| few.onnx.weight(name).unwrap() != *values)
        .map(|(name, _)| name)
        .collect();
    assert!(moved.len() <= 2, "{moved:?}");
    // No limit for random weights, nor where the trainable weights are configured.
    let place = tempfile::tempdir().unwrap();
    assert_eq!(learn(&ignorant(&place.path().join("start")), 5).layers, None);
}

#[test]
fn a_batch_in_pieces_gives_the_gradients_of_the_whole_batch() {
    let (onnx, model) = (OnnxRuntime::find_and_load(None).unwrap(), light());
    let of_images = |images: u16| {
        let prepared = training::trainable_model::prepare_model(&onnx, &model, images).unwrap();
        let step = prepared.prepared.step(&prepared.known, &autograd::TrainableSelection::All).unwrap();
        let weights: Vec<Vec<f32>> =
            step.weights.iter().map(|weight| prepared.onnx.weight(&weight.name).unwrap()).collect();
        (training::stepper::Stepper::open(&onnx, step, 1).unwrap(), weights)
    };
    let mut random = StdRng::seed_from_u64(3);
    // Ten images in pieces of four: the last piece is padded.
    let length = tensor::len(&model.description.input);
    let images: Vec<f32> = (0..10 * length).map(|_| random.random_range(-1.0..1.0)).collect();
    let labels: Vec<Option<usize>> = (0..10).map(|at| (at != 4).then_some(at % model.labels.len())).collect();
    let targets = autograd::loss::cross_entropy(&labels, model.labels.len(), &Default::default());
    let ((mut whole, weights), (mut pieces, _)) = (of_images(10), of_images(4));
    let (mut expected, mut gradients) = (vec![Vec::new(); weights.len()], vec![Vec::new(); weights.len()]);
    let loss = whole.learn(&images, &targets, &weights, &mut expected).unwrap();
    let mut pauses = 0;
    let between = || {
        pauses += 1;
        Ok(())
    };
    let in_pieces = pieces.learn_in_pieces(&images, &targets, &weights, &mut gradients, between).unwrap();
    assert_eq!(pauses, 2, "three pieces");
    assert!((loss - in_pieces).abs() < 1e-4, "{loss} and {in_pieces}");
    for (expected, gradient) in expected.iter().zip(&gradients) {
        let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let off = expected.iter().zip(gradient).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(expected.len() == gradient.len() && off <= largest * 1e-4 + 1e-6, "{off} of {largest}");
    }
    let (all, parts) =
        (whole.measure(&images, &targets, &weights).unwrap(), pieces.measure(&images, &targets, &weights).unwrap());
    assert_eq!(all.scores.len(), parts.scores.len());
    assert!(all.scores.iter().zip(&parts.scores).all(|(a, b)| (a - b).abs() < 1e-3));
}

/// Computes on every processor until dropped, as recognizers with a full queue do. Only one at a time.
struct BusyMachine {
    _alone: MutexGuard<'static, ()>,
    stop: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl BusyMachine {
    fn start() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = CancellationToken::new();
        let count = std::thread::available_parallelism().unwrap().get();
        let spin = |stop: CancellationToken| {
            std::thread::spawn(move || {
                let mut sum = 0_u64;
                while !stop.is_cancelled() {
                    (0..10_000).for_each(|at| sum = std::hint::black_box(sum.wrapping_add(at)));
                }
            })
        };
        Self { threads: (0..count).map(|_| spin(stop.clone())).collect(), stop, _alone: alone }
    }
}

impl Drop for BusyMachine {
    fn drop(&mut self) {
        self.stop.cancel();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Trains in the background for a while; returns the processor time used, and the longest piece while it was busy.
fn train_for(hour: Duration, least_ratio: f64, yields: bool) -> (Duration, Duration) {
    let bounds = CpuBounds { most_ratio: 0.5, least_ratio, reserve_ratio: 0.5 };
    let account = Arc::new(TrainingAccount::by(bounds, hour));
    let stop = CancellationToken::new();
    let (own, told) = (account.clone(), stop.clone());
    let work = std::thread::spawn(move || {
        let model = light();
        let piece = (least_ratio > 0.0).then_some(4);
        let settings = TrainSettings { epochs: 10_000, piece, ..settings() };
        let examples = Examples::read(&fixtures().join("images/fashion"), &model.labels, 0.1).unwrap();
        let pace = Arc::new(TrainingPace::background(None, own, Arc::new(AtomicBool::new(yields))));
        let context = TrainContext { pace, ..around(&told) };
        train_model(&OnnxRuntime::find_and_load(None).unwrap(), &model, &examples, &settings, context, |_| {})
    });
    std::thread::sleep(hour);
    let taken = account.last_hour();
    stop.cancel();
    assert!(matches!(work.join().unwrap(), Err(TrainError::Stopped)));
    (taken.used, taken.longest_busy_piece)
}

#[test]
fn on_a_busy_machine_training_gets_its_share_in_short_pieces_and_without_one_almost_nothing() {
    let hour = Duration::from_secs(20);
    let _busy = BusyMachine::start();
    let (used, longest) = train_for(hour, 0.1, false);
    let share = used.as_secs_f64() / hour.as_secs_f64();
    assert!(share >= 0.095, "{share:.3} of a processor, not a tenth; the longest piece took {longest:?}");
    assert!(share <= 0.25, "{share:.3} of a processor is more than the even course of a tenth, and the looks");
    assert!(longest > Duration::ZERO && longest <= Duration::from_millis(50), "{longest:?}");
    let (used, _) = train_for(hour / 4, 0.0, false);
    let idle = used.as_secs_f64() / (hour / 4).as_secs_f64();
    assert!(idle < 0.05, "{idle:.3} of a processor that was not idle");
}

#[test]
fn an_overloaded_site_gets_to_its_share_by_the_end_of_the_hour() {
    let hour = Duration::from_secs(20);
    let _busy = BusyMachine::start();
    let (used, _) = train_for(hour, 0.1, true);
    let share = used.as_secs_f64() / hour.as_secs_f64();
    assert!((0.09..0.15).contains(&share), "{share:.3} of a processor");
}
