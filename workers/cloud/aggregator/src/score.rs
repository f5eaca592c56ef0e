//! Scores models on the public set. Weights are inputs of the graph, so one session scores any number of models; memory
//! is one [`ModelScorer`] per core.

use autograd::loss::{LabelSmoothing, cross_entropy, distill};
use autograd::trainable::is_named;
use autograd::{OnnxDocument, StepSplit, TrainableSelection, TrainingStep};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use training::TrainError;
use training::holdout::HoldoutScores;
use training::optimizer::Optimizer;
use training::settings::OptimizerSettings;
use training::stepper::Stepper;
use training::trainable_model::{TrainableModel, prepare_model};
use vision::graph::{GraphInput, TensorNumbers};
use vision::{Graph, Model};

use crate::parameter_layout::ParameterLayout;
use crate::public_set::PublicSet;
use crate::weigh::SiteMeasures;

/// Images per run; an estimate.
const BATCH: u16 = 32;
/// Share of the teacher in the target.
const TAUGHT: f32 = 0.5;

/// A model whose weights are merged: its layout, the base's weights, and the graphs that score it.
#[derive(Debug)]
pub struct ScoringModel {
    /// Which number of a row belongs to which tensor.
    pub layout: ParameterLayout,
    /// The base's weights as a row.
    pub base: Vec<f32>,
    /// The model's unchanged graph.
    pub graph: OnnxDocument,
    step: TrainingStep,
    head: Option<HeadModel>,
}

/// The model split before its last layer.
#[derive(Debug, Clone)]
struct HeadModel {
    /// Graph from images and weights to features.
    body: OnnxDocument,
    /// Names of the weights it takes.
    takes: Vec<String>,
    /// Name and shape of its image input.
    images: String,
    images_shape: Vec<i64>,
    tail: TrainingStep,
}

impl ScoringModel {
    /// Reads a model's folder. `trainable`: what of it is trained; `local`: name patterns of weights each site keeps.
    pub fn for_model(
        runtime: &vision::OnnxRuntime,
        model: &Model,
        trainable: &TrainableSelection,
        local: &[String],
    ) -> Result<Self, TrainError> {
        let TrainableModel { onnx, prepared, known } = prepare_model(runtime, model, BATCH)?;
        let mut step = prepared.step(&known, trainable)?;
        if !local.is_empty() {
            let shared = |name: &&String| !is_named(name, local);
            let names: Vec<String> = step.weights.iter().map(|weight| &weight.name).filter(shared).cloned().collect();
            step = prepared.step(&known, &TrainableSelection::Named(names))?;
        }
        let shape = |shape: &[i64]| shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        let layout = ParameterLayout::new(
            step.weights.iter().map(|weight| (weight.name.clone(), shape(&weight.shape))).collect(),
        );
        let mut base = Vec::with_capacity(layout.len());
        for place in layout.places() {
            base.extend(onnx.weight(&place.name)?);
        }
        // Some models have no separable last layer; rules that train one report it.
        let head =
            prepared.step(&known, &TrainableSelection::Last(1)).ok().and_then(|head| head.split(&known).ok().flatten());
        let head = head.and_then(|head| HeadModel::of(&step, head));
        let last: Vec<String> =
            head.iter().flat_map(|head| &head.tail.weights).map(|weight| weight.name.clone()).collect();
        let layout = layout.with_last_layer(&last, model.labels.len());
        Ok(Self { layout, base, graph: onnx, step, head })
    }
}

impl HeadModel {
    fn of(step: &TrainingStep, StepSplit { tail, .. }: StepSplit) -> Option<Self> {
        let body = step.graph.cut(&tail.images).ok()?;
        let inputs = body.inputs().ok()?;
        let takes =
            step.weights.iter().map(|weight| weight.name.clone()).filter(|name| inputs.contains(name)).collect();
        let is_trained = |name: &str| step.weights.iter().any(|weight| weight.name == name);
        tail.weights.iter().all(|weight| is_trained(&weight.name)).then_some(Self {
            body,
            takes,
            images: step.images.clone(),
            images_shape: step.images_shape.clone(),
            tail,
        })
    }
}

/// How the last layer is retrained on public pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadLearning {
    /// Passes over all pictures.
    pub steps: u32,
    /// Learning rate.
    pub rate: f32,
    /// Pull of the layer towards its start.
    pub proximal: f32,
}

impl Default for HeadLearning {
    fn default() -> Self {
        Self { steps: 50, rate: 0.1, proximal: 0.01 }
    }
}

/// How a whole model is fine-tuned on public pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Passes over all pictures.
    pub passes: u32,
    /// Learning rate.
    pub rate: f32,
    /// Pull of every weight towards its start.
    pub proximal: f32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { passes: 3, rate: 0.03, proximal: 0.01 }
    }
}

/// Score of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelScore {
    /// Mean cross-entropy, with every class counting equally.
    pub loss: f64,
    /// Accuracy by class, 0 to 1; absent for a class without pictures.
    pub accuracy: Vec<Option<f64>>,
    /// Its prediction for each picture.
    pub said: Vec<PictureScores>,
    /// For each picture, the probability of every class.
    pub probabilities: Vec<f32>,
}

/// A model's prediction for one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureScores {
    /// Predicted class.
    pub class: usize,
    /// True class.
    pub shows: usize,
    /// Cross-entropy of the true class.
    pub loss: f64,
}

impl ModelScore {
    /// Per-picture results, to compare with another model's.
    pub fn holdout(&self) -> HoldoutScores {
        let mut scores = HoldoutScores::default();
        self.said.iter().for_each(|said| scores.push(said.class == said.shows, said.loss));
        scores
    }

    /// Like [`Self::holdout`], with losses at the temperature (0.25 to 8) where their mean is lowest. A model that is
    /// only more or less confident everywhere then scores the same; a lower loss still means that it knows more.
    pub fn tempered_holdout(&self) -> HoldoutScores {
        let losses_at = |temperature: f64| -> Vec<f64> {
            let pictures = self.probabilities.chunks_exact(self.accuracy.len().max(1)).zip(&self.said);
            pictures.map(|(probabilities, said)| tempered_loss(probabilities, said.shows, temperature)).collect()
        };
        let temperatures = (0..=50).map(|step| 0.25 * 32_f64.powf(f64::from(step) / 50.0));
        let lowest = |a: &Vec<f64>, b: &Vec<f64>| a.iter().sum::<f64>().total_cmp(&b.iter().sum());
        let losses = temperatures.map(losses_at).min_by(lowest).unwrap_or_default();
        let mut scores = HoldoutScores::default();
        self.said.iter().zip(losses).for_each(|(said, loss)| scores.push(said.class == said.shows, loss));
        scores
    }

    /// Mean accuracy over the classes, 0 to 1.
    pub fn mean_accuracy(&self) -> f64 {
        SiteMeasures { accuracy: self.accuracy.clone(), ..SiteMeasures::default() }.mean()
    }
}

/// Scores models, one after another.
pub struct ModelScorer {
    /// For each weight of the training step, its index in the layout.
    order: Vec<usize>,
    layout: ParameterLayout,
    stepper: Stepper,
    head: Option<(HeadModel, Graph, Stepper)>,
}

impl ModelScorer {
    /// Loads the graphs. `threads`: per run.
    pub fn new(runtime: &vision::OnnxRuntime, ground: &ScoringModel, threads: u16) -> Result<Self, TrainError> {
        let order = order(&ground.layout, &ground.step);
        let stepper = Stepper::open(runtime, ground.step.clone(), threads)?;
        let head = match &ground.head {
            None => None,
            Some(head) => {
                let body = Graph::open(runtime, "features", &head.body.encode(), threads.into())?;
                Some((head.clone(), body, Stepper::open(runtime, head.tail.clone(), threads)?))
            }
        };
        Ok(Self { order, layout: ground.layout.clone(), stepper, head })
    }

    /// Whether the last layer can be trained alone.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Scores a model on these pictures.
    pub fn score(&mut self, row: &[f32], public: &PublicSet, of: &[usize]) -> Result<ModelScore, TrainError> {
        let weights = weights(row, &self.layout, &self.order);
        let (classes, size) = (public.count, batch_of(self.stepper.step()));
        let (mut right, mut loss, mut counts) = (vec![0.0; classes], vec![0.0; classes], vec![0.0_f64; classes]);
        let mut said = Vec::with_capacity(of.len());
        let mut probabilities = Vec::with_capacity(of.len() * classes);
        for part in of.chunks(size) {
            let (images, labels) = batch(public, part, size);
            let targets = cross_entropy(&labels, classes, &LabelSmoothing::default());
            let gave = self.stepper.measure(&images, &targets, &weights)?;
            for (picture, scores) in part.iter().zip(gave.scores.chunks_exact(classes)) {
                let class = public.classes[*picture];
                let (best, by) = judged(scores, class);
                counts[class] += 1.0;
                loss[class] += by;
                right[class] += f64::from(u8::from(best == class));
                probabilities.extend(vision::softmax(scores, 1.0));
                said.push(PictureScores { class: best, shows: class, loss: by });
            }
        }
        let seen = counts.iter().filter(|count| **count > 0.0).count().max(1) as f64;
        let loss = (0..classes).filter(|class| counts[*class] > 0.0).map(|class| loss[class] / counts[class]);
        let accuracy = |class: usize| (counts[class] > 0.0).then(|| right[class] / counts[class]);
        Ok(ModelScore {
            loss: loss.sum::<f64>() / seen,
            accuracy: (0..classes).map(accuracy).collect(),
            said,
            probabilities,
        })
    }

    /// The loss on these pictures, with every class counting equally, and its gradient by every weight. `teacher`:
    /// probabilities of every class for all pictures, which then make up half of the target.
    pub fn slope(
        &mut self,
        row: &[f32],
        public: &PublicSet,
        of: &[usize],
        teacher: Option<&[f32]>,
    ) -> Result<(f64, Vec<f32>), TrainError> {
        let weights = weights(row, &self.layout, &self.order);
        let mut slope = vec![0.0; self.layout.len()];
        let mut gradients = vec![Vec::new(); self.order.len()];
        let loss = slopes(&mut self.stepper, public, of, teacher, &weights, &mut gradients, |share, gradients| {
            for (place, gradient) in self.order.iter().zip(gradients) {
                let place = &self.layout.places()[*place];
                let sum = &mut slope[place.start..place.start + place.len];
                sum.iter_mut().zip(gradient).for_each(|(sum, by)| *sum += share * by);
            }
        })?;
        Ok((loss, slope))
    }

    /// The model with its last layer retrained on these pictures; unchanged if it has no separable last layer.
    pub fn train_head(
        &mut self,
        row: &[f32],
        public: &PublicSet,
        of: &[usize],
        learning: HeadLearning,
    ) -> Result<Vec<f32>, TrainError> {
        let Some((head, body, tail)) = &mut self.head else { return Ok(row.to_vec()) };
        let features = features(head, body, &self.layout, row, public, of)?;
        let order = order(&self.layout, tail.step());
        let slice = |place: &usize| {
            let place = &self.layout.places()[*place];
            row[place.start..place.start + place.len].to_vec()
        };
        let start: Vec<Vec<f32>> = order.iter().map(slice).collect();
        let mut trained = start.clone();
        let settings = OptimizerSettings {
            momentum_ratio: 0.0,
            proximal: Some(learning.proximal),
            ..OptimizerSettings::default()
        };
        let mut optimizer = Optimizer::new(&settings, &start);
        let mut gradients = vec![Vec::new(); start.len()];
        let all = features.all();
        for _ in 0..learning.steps {
            let mut sums: Vec<Vec<f32>> = start.iter().map(|weight| vec![0.0; weight.len()]).collect();
            slopes(tail, &features, &all, None, &trained, &mut gradients, |share, gradients| {
                for (sum, gradient) in sums.iter_mut().zip(gradients) {
                    sum.iter_mut().zip(gradient).for_each(|(sum, by)| *sum += share * by);
                }
            })?;
            optimizer.step(&mut trained, &mut sums, &start, f64::from(learning.rate));
        }
        let mut row = row.to_vec();
        for (place, weight) in order.iter().zip(trained) {
            let place = &self.layout.places()[*place];
            row[place.start..place.start + place.len].copy_from_slice(&weight);
        }
        Ok(row)
    }
}

impl ModelScorer {
    /// The model fine-tuned on these pictures for some passes in random order, with every class counting equally.
    /// `teacher`: as in [`ModelScorer::slope`].
    pub fn tune_model(
        &mut self,
        row: &[f32],
        public: &PublicSet,
        of: &[usize],
        teacher: Option<&[f32]>,
        tuning: Tuning,
        seed: u64,
    ) -> Result<Vec<f32>, TrainError> {
        let mut row = row.to_vec();
        let (start, size) = (row.clone(), batch_of(self.stepper.step()));
        let (mut order, mut random) = (of.to_vec(), StdRng::seed_from_u64(seed));
        for _ in 0..tuning.passes {
            order.shuffle(&mut random);
            for part in order.chunks(size) {
                let (_, slope) = self.slope(&row, public, part, teacher)?;
                for ((weight, by), start) in row.iter_mut().zip(slope).zip(&start) {
                    *weight -= tuning.rate * (by + tuning.proximal * (*weight - start));
                }
            }
        }
        Ok(row)
    }
}

/// The features of pictures, as a public set of features.
fn features(
    head: &HeadModel,
    body: &mut Graph,
    layout: &ParameterLayout,
    row: &[f32],
    public: &PublicSet,
    of: &[usize],
) -> Result<PublicSet, TrainError> {
    let shape = &head.tail.images_shape;
    let (size, length) = (batch_of(&head.tail), shape.iter().skip(1).product::<i64>() as usize);
    let mut values = Vec::with_capacity(of.len() * length);
    let weights: Vec<(&str, Vec<i64>, &[f32])> = layout
        .places()
        .iter()
        .filter(|place| head.takes.contains(&place.name))
        .map(|place| {
            let shape = place.shape.iter().map(|size| *size as i64).collect();
            (place.name.as_str(), shape, &row[place.start..place.start + place.len])
        })
        .collect();
    for part in of.chunks(size) {
        let (images, _) = batch(public, part, size);
        let mut given = vec![GraphInput { name: &head.images, shape: &head.images_shape, values: &images }];
        given.extend(weights.iter().map(|(name, shape, values)| GraphInput { name, shape, values }));
        body.run(&given, |came| {
            if let TensorNumbers::Floats(floats) = came.numbers {
                values.extend_from_slice(&floats[..part.len() * length]);
            }
        })?;
    }
    let classes = of.iter().map(|picture| public.classes[*picture]).collect();
    Ok(PublicSet::of(values, length, classes, public.count))
}

/// Loss of these pictures, with every class counting equally; `see` gets each batch's gradients and its share of the
/// whole.
fn slopes(
    stepper: &mut Stepper,
    public: &PublicSet,
    of: &[usize],
    teacher: Option<&[f32]>,
    weights: &[impl AsRef<[f32]>],
    gradients: &mut [Vec<f32>],
    mut see: impl FnMut(f32, &[Vec<f32>]),
) -> Result<f64, TrainError> {
    let size = batch_of(stepper.step());
    let smoothing = LabelSmoothing { label_smoothing: 0.0, class_weights: public.weights(of) };
    let mut loss = 0.0;
    for part in of.chunks(size) {
        let (images, labels) = batch(public, part, size);
        let mut targets = cross_entropy(&labels, public.count, &smoothing);
        if let Some(teacher) = teacher {
            let row = |picture: &usize| &teacher[picture * public.count..][..public.count];
            let said: Vec<f32> = part.iter().flat_map(row).copied().collect();
            distill(&mut targets, &said, public.count, TAUGHT);
        }
        let mass = if targets.scale > 0.0 { 1.0 / targets.scale } else { 0.0 };
        let share = mass / of.len() as f32;
        loss += f64::from(stepper.learn(&images, &targets, weights, gradients)? * share);
        see(share, gradients);
    }
    Ok(loss)
}

fn batch_of(step: &TrainingStep) -> usize {
    step.images_shape.first().map_or(1, |size| (*size).max(1) as usize)
}

/// The images of some pictures, padded to the batch size, and their classes.
fn batch(public: &PublicSet, part: &[usize], size: usize) -> (Vec<f32>, Vec<Option<usize>>) {
    let (mut images, mut labels) = (vec![0.0; size * public.length], vec![None; size]);
    for ((picture, image), label) in part.iter().zip(images.chunks_exact_mut(public.length.max(1))).zip(&mut labels) {
        image.copy_from_slice(&public.images[picture * public.length..][..public.length]);
        *label = Some(public.classes[*picture]);
    }
    (images, labels)
}

/// The predicted class, and the cross-entropy of the true one.
fn judged(scores: &[f32], class: usize) -> (usize, f64) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from(score - most).exp()).sum();
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(place, _)| place);
    (best, sum.ln() - f64::from(scores[class] - most))
}

/// Cross-entropy of the true class with logits divided by a temperature.
fn tempered_loss(probabilities: &[f32], shows: usize, temperature: f64) -> f64 {
    // A probability of 0 is taken as one in 10^12.
    let tempered = |ratio: f32| f64::from(ratio).max(1e-12).powf(1.0 / temperature);
    let sum: f64 = probabilities.iter().map(|ratio| tempered(*ratio)).sum();
    (sum / tempered(probabilities[shows])).ln()
}

/// For each weight of a step, its index in the layout.
fn order(layout: &ParameterLayout, step: &TrainingStep) -> Vec<usize> {
    let place = |name: &str| layout.places().iter().position(|place| place.name == name).unwrap_or_default();
    step.weights.iter().map(|weight| place(&weight.name)).collect()
}

fn weights<'a>(row: &'a [f32], layout: &ParameterLayout, order: &[usize]) -> Vec<&'a [f32]> {
    order.iter().map(|place| &layout.places()[*place]).map(|place| &row[place.start..place.start + place.len]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use training::holdout::HoldoutComparison;

    /// A model of two classes that is right about the first `right` pictures, with its logits times `sureness`.
    fn tried(sureness: f32, right: usize) -> ModelScore {
        let mut tried = ModelScore { accuracy: vec![None; 2], ..ModelScore::default() };
        for picture in 0..200 {
            let shows = picture % 2;
            let margin = (1.0 + (picture % 7) as f32 * 0.3) * if picture < right { sureness } else { -sureness };
            let scores = if shows == 0 { [margin, 0.0] } else { [0.0, margin] };
            let (class, loss) = judged(&scores, shows);
            tried.said.push(PictureScores { class, shows, loss });
            tried.probabilities.extend(vision::softmax(&scores, 1.0));
        }
        tried
    }

    #[test]
    fn a_model_that_is_only_less_confident_is_not_better() {
        let (sure, unsure) = (tried(4.0, 160), tried(1.0, 160));
        assert_eq!(unsure.holdout().judge(&sure.holdout()), HoldoutComparison::Better, "by its uncalibrated loss");
        assert_eq!(unsure.tempered_holdout().judge(&sure.tempered_holdout()), HoldoutComparison::Level);
        assert_eq!(sure.tempered_holdout().judge(&unsure.tempered_holdout()), HoldoutComparison::Level);
        let knows_more = tried(4.0, 175);
        assert_eq!(knows_more.tempered_holdout().judge(&unsure.tempered_holdout()), HoldoutComparison::Better);
    }

    #[test]
    fn a_probability_of_zero_has_a_finite_loss() {
        let mut tried = tried(1.0, 200);
        tried.probabilities[..2].copy_from_slice(&[0.0, 1.0]);
        assert!(tried.tempered_holdout().measured().loss.is_finite());
    }
}
