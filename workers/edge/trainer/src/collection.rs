//! Collects labels of images: final answers and labels in, labelled images out, limited by the settings. Pure. A
//! person's label wins over the publisher's, the publisher's over a verdict of the cloud. Nothing is learned from pictures
//! with faults, and of an image that got an earlier answer only what a person says of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::{Answer, Label, LabelSource, Route, TaskId};

use crate::settings::CollectSettings;

/// Most labels by persons for tasks without a final answer; an estimate.
const MAX_EARLY_LABELS: usize = 10_000;
/// Most unknown labels that are named.
const MAX_NAMED_LABELS: usize = 20;

/// What one source says about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LabelStatement {
    /// A class of the model.
    Class(u16),
    /// A label that the model has no class for.
    Unknown,
    /// All earlier labels were retracted.
    Retracted,
}

impl LabelStatement {
    /// Whether it can be learned from.
    fn is_class(self) -> bool {
        matches!(self, LabelStatement::Class(_))
    }
}

/// A labelled image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CollectedImage {
    sequence: u64,
    hard: bool,
    /// Statements by person, publisher and verdict, in this order.
    statements: [Option<LabelStatement>; 3],
}

const SOURCES: [LabelSource; 3] = [LabelSource::Person, LabelSource::Publisher, LabelSource::Verdict];

impl CollectedImage {
    fn about(&mut self, answer: &Answer) {
        self.sequence = answer.image_sequence;
        self.hard = answer.reason.is_doubtful();
    }

    /// Records a source's label, or a retraction of all earlier ones; either ends an earlier retraction.
    fn set_label(&mut self, place: usize, statement: LabelStatement) {
        if statement == LabelStatement::Retracted || self.statements[0] == Some(LabelStatement::Retracted) {
            self.statements = [None; 3];
        }
        if let Some(slot) = self.statements.get_mut(place) {
            *slot = Some(statement);
        }
    }

    /// The label of the most trusted source, and that source.
    fn label(&self) -> Option<(LabelStatement, LabelSource)> {
        self.statements.iter().zip(SOURCES).find_map(|(statement, source)| Some(((*statement)?, source)))
    }
}

/// A labelled image to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingImage {
    /// Id of its task.
    pub task: TaskId,
    /// Sequence in the stream IMAGES.
    pub sequence: u64,
    /// Label in the model's list.
    pub label: String,
    /// Who set the label.
    pub source: LabelSource,
    /// Whether the site found it doubtful.
    pub hard: bool,
}

/// A site's labelled images.
#[derive(Debug, Default)]
pub struct Collection {
    labels: Vec<String>,
    classes: HashMap<String, u16>,
    settings: CollectSettings,
    images: HashMap<TaskId, CollectedImage>,
    /// Tasks of each class, oldest first.
    of_class: Vec<BTreeSet<(u64, TaskId)>>,
    early: HashMap<TaskId, LabelStatement>,
    fresh: u64,
    unknown: BTreeMap<String, u64>,
    /// Labels that are boxes, which a classifier cannot learn from.
    boxed: u64,
}

impl Collection {
    /// An empty collection for a model with these labels.
    pub fn new(labels: &[String], settings: &CollectSettings) -> Self {
        let classes = labels.iter().zip(0_u16..).map(|(label, class)| (label.clone(), class)).collect();
        let of_class = vec![BTreeSet::new(); labels.len()];
        Self { labels: labels.to_vec(), classes, settings: settings.clone(), of_class, ..Self::default() }
    }

    fn statement(&mut self, label: &str) -> LabelStatement {
        match self.classes.get(label) {
            Some(class) => LabelStatement::Class(*class),
            None => {
                if self.unknown.len() < MAX_NAMED_LABELS || self.unknown.contains_key(label) {
                    *self.unknown.entry(label.to_owned()).or_default() += 1;
                }
                LabelStatement::Unknown
            }
        }
    }

    /// Adds a final answer. `fresh`: it was stored after the last training.
    pub fn add_answer(&mut self, answer: &Answer, fresh: bool) {
        if !answer.has_healthy_picture() {
            self.early.remove(&answer.task);
            return;
        }
        // A replayed image was already learned from under its own task.
        if answer.route == Route::Dead || answer.replayed.is_some() {
            return;
        }
        // A picture like the one before teaches nothing new.
        let truth = answer.truth.as_deref().filter(|_| answer.reused.is_none());
        // The label of a detector's answer is that of one object, not of the picture.
        let is_verdict = matches!(answer.route, Route::Verified | Route::Redirected) && answer.objects.is_none();
        let is_sure = answer.confidence.is_some_and(|ratio| ratio >= self.settings.min_verdict_ratio);
        let verdict = answer.label.as_deref().filter(|_| is_verdict && is_sure);
        let statements = [
            self.early.remove(&answer.task),
            truth.map(|label| self.statement(label)),
            verdict.map(|label| self.statement(label)),
        ];
        self.change(answer.task, fresh, |known| {
            known.about(answer);
            for (known, statement) in known.statements.iter_mut().zip(statements) {
                *known = statement.or(*known);
            }
        });
    }

    /// Adds a person's label or retraction, or a replayed label of any source, which counts as fresh even if it is
    /// known; a label that is boxes is only counted. `about`: the task's final answer, if there is one.
    pub fn add_label(&mut self, label: &Label, about: Option<&Answer>, fresh: bool) {
        if about.is_some_and(|answer| !answer.has_healthy_picture()) {
            return;
        }
        // Which of several objects the whole picture should be taken for, nobody said.
        if label.objects.is_some() && label.retracted.is_none() {
            self.boxed += 1;
            return;
        }
        let statement =
            if label.retracted.is_some() { LabelStatement::Retracted } else { self.statement(&label.label) };
        let place = label.source.and_then(|source| SOURCES.iter().position(|known| *known == source)).unwrap_or(0);
        let known = self.images.get(&label.task).and_then(CollectedImage::label);
        let again = label.source.is_some() && known.is_some_and(|(known, _)| known != LabelStatement::Retracted);
        if let Some(answer) = about {
            self.add_answer(answer, fresh && statement != LabelStatement::Retracted);
        }
        if self.images.contains_key(&label.task) || about.is_some_and(|answer| answer.route != Route::Dead) {
            self.change(label.task, fresh, |known| {
                if let Some(answer) = about {
                    known.about(answer);
                }
                known.set_label(place, statement);
            });
            self.fresh += u64::from(again && fresh && statement.is_class());
        } else if about.is_none() && place == 0 && self.early.len() < MAX_EARLY_LABELS {
            self.early.insert(label.task, statement);
        }
    }

    fn change(&mut self, task: TaskId, fresh: bool, change: impl FnOnce(&mut CollectedImage)) {
        let before = self.images.remove(&task).unwrap_or_default();
        if let Some((LabelStatement::Class(class), _)) = before.label()
            && let Some(tasks) = self.of_class.get_mut(usize::from(class))
        {
            tasks.remove(&(before.sequence, task));
        }
        let mut known = before.clone();
        change(&mut known);
        let Some((statement, _)) = known.label() else { return };
        if before.label() != known.label() && fresh && statement.is_class() {
            self.fresh += 1;
        }
        if let LabelStatement::Class(class) = statement
            && let Some(tasks) = self.of_class.get_mut(usize::from(class))
        {
            tasks.insert((known.sequence, task));
        }
        self.images.insert(task, known);
        if self.images.len() > self.settings.max_images as usize {
            self.drop_surplus();
        }
    }

    /// Drops the oldest image of the most frequent label; images that cannot be learned from go first.
    fn drop_surplus(&mut self) {
        let idle = self.images.len() > self.of_class.iter().map(BTreeSet::len).sum();
        let goes = match idle {
            true => {
                self.images.iter().find(|(_, known)| known.label().is_some_and(|(statement, _)| !statement.is_class()))
            }
            false => None,
        };
        let task = match goes {
            Some((task, _)) => Some(*task),
            None => {
                let largest = self.of_class.iter_mut().max_by_key(|of_class| of_class.len());
                largest.and_then(BTreeSet::pop_first).map(|(_, task)| task)
            }
        };
        task.and_then(|task| self.images.remove(&task));
    }

    /// The images that can be learned from, oldest first.
    pub fn images(&self) -> Vec<TrainingImage> {
        let mut images: Vec<TrainingImage> = self
            .images
            .iter()
            .filter_map(|(task, known)| {
                let (LabelStatement::Class(class), source) = known.label()? else { return None };
                let label = self.labels.get(usize::from(class))?.clone();
                Some(TrainingImage { task: *task, sequence: known.sequence, label, source, hard: known.hard })
            })
            .collect();
        images.sort_by_key(|image| image.sequence);
        images
    }

    /// Number of images that can be learned from.
    pub fn count(&self) -> u64 {
        self.of_class.iter().map(|of_class| of_class.len() as u64).sum()
    }

    /// Number of images labelled or relabelled since the last training.
    pub fn fresh(&self) -> u64 {
        self.fresh
    }

    /// Marks the start of a training: labels from now on are fresh.
    pub fn mark_trained(&mut self) {
        self.fresh = 0;
    }

    /// Why it cannot be trained on, in words; `None` if it can.
    pub fn missing(&self) -> Option<String> {
        let classes = self.of_class.iter().filter(|of_class| !of_class.is_empty()).count();
        let unknown: Vec<&str> = self.unknown.keys().take(5).map(String::as_str).collect();
        let and_unknown = match unknown.is_empty() {
            true => String::new(),
            false => format!(
                "; {} have labels unknown to the model ({})",
                self.unknown.values().sum::<u64>(),
                unknown.join(", ")
            ),
        };
        let and_boxed = match self.boxed {
            0 => String::new(),
            boxed => format!("; {boxed} labelled with boxes, which a model of whole images cannot learn from"),
        };
        match classes {
            0 => Some(format!("no image is labelled yet{and_unknown}{and_boxed}")),
            1 => Some(format!(
                "all labelled images have the same label; training on a single class would forget the others{and_unknown}{and_boxed}"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::task::StorageStamp;
    use schemas::{AnswerStage, DetectedObject, PictureReport, Reason, Task};

    use super::*;

    fn labels() -> Vec<String> {
        ["cat", "dog"].map(str::to_owned).to_vec()
    }

    fn collection(most_images: u32) -> Collection {
        Collection::new(&labels(), &CollectSettings { max_images: most_images, ..CollectSettings::default() })
    }

    fn answer(number: u64, route: Route, label: &str, truth: Option<&str>) -> Answer {
        let task = TaskId::from_name(&number.to_string());
        let stored = StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "c".parse().unwrap(),
            sequence: number,
            stored_at_ns: 0,
        };
        let reason = if route == Route::Verified { Reason::LowConfidence } else { Reason::Confident };
        let mut answer = Answer::for_task(&Task::from_id(&stored, task), AnswerStage::Final, route, reason, 0);
        (answer.label, answer.confidence) = (Some(label.into()), Some(0.9));
        answer.truth = truth.map(str::to_owned);
        answer
    }

    fn label(number: u64, says: &str) -> Label {
        Label {
            task: TaskId::from_name(&number.to_string()),
            label: says.into(),
            objects: None,
            by: None,
            labelled_at_ms: 0,
            source: None,
            retracted: None,
        }
    }

    fn retraction(number: u64) -> Label {
        Label::retraction(TaskId::from_name(&number.to_string()), None, "mistaken", 0)
    }

    fn found(collection: &Collection) -> Vec<(u64, String, LabelSource)> {
        collection.images().into_iter().map(|image| (image.sequence, image.label, image.source)).collect()
    }

    #[test]
    fn a_person_wins_over_the_publisher_and_the_publisher_over_a_verdict() {
        let mut all = collection(10);
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        all.add_answer(&answer(2, Route::Verified, "cat", Some("dog")), true);
        all.add_answer(&answer(3, Route::Edge, "cat", None), true);
        assert_eq!(found(&all), [(1, "cat".into(), LabelSource::Verdict), (2, "dog".into(), LabelSource::Publisher)]);
        all.add_label(&label(2, "cat"), None, true);
        all.add_label(&label(3, "dog"), Some(&answer(3, Route::Edge, "cat", None)), true);
        let persons = [
            (1, "cat".into(), LabelSource::Verdict),
            (2, "cat".into(), LabelSource::Person),
            (3, "dog".into(), LabelSource::Person),
        ];
        assert_eq!(found(&all), persons);
        assert_eq!(all.fresh(), 4);
    }

    #[test]
    fn replayed_labels_count_again_with_their_source() {
        let mut all = collection(10);
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        all.mark_trained();
        let again = Label { source: Some(LabelSource::Verdict), ..label(1, "cat") };
        all.add_label(&again, Some(&answer(1, Route::Verified, "cat", None)), true);
        assert_eq!((found(&all), all.fresh()), (vec![(1, "cat".into(), LabelSource::Verdict)], 1));
        let forgotten = Label { source: Some(LabelSource::Publisher), ..label(2, "dog") };
        all.add_label(&forgotten, Some(&answer(2, Route::Edge, "cat", Some("dog"))), true);
        assert_eq!((found(&all).len(), all.fresh()), (2, 2));
        let copy = Answer { replayed: Some(TaskId::from_name("1")), ..answer(3, Route::Verified, "cat", None) };
        all.add_answer(&copy, true);
        assert_eq!(all.count(), 2, "a replayed image is not learned from twice");
    }

    #[test]
    fn a_label_before_its_answer_counts_once_the_answer_arrives() {
        let mut all = collection(10);
        all.add_label(&label(1, "dog"), None, true);
        assert!(all.images().is_empty());
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        assert_eq!(found(&all), [(1, "dog".into(), LabelSource::Person)]);
    }

    #[test]
    fn pictures_with_faults_and_reused_answers_teach_nothing_but_what_a_person_says_of_the_latter() {
        let report = r#"{"brightness_ratio":0,"contrast_ratio":0,"white_ratio":0,"faults":["black"]}"#;
        let black = |number, route, truth| Answer {
            picture: PictureReport::read(report),
            ..answer(number, route, "cat", truth)
        };
        let reused = |number, truth| Answer {
            reused: Some(TaskId::from_name("1")),
            ..answer(number, Route::Edge, "cat", truth)
        };
        let mut all = collection(10);
        all.add_label(&label(2, "dog"), None, true);
        all.add_label(&label(4, "dog"), None, true);
        all.add_answer(&black(1, Route::Verified, None), true);
        all.add_answer(&black(2, Route::Edge, Some("dog")), true);
        all.add_label(&label(3, "dog"), Some(&black(3, Route::Edge, None)), true);
        all.add_answer(&reused(5, Some("dog")), true);
        assert_eq!((found(&all), all.fresh()), (Vec::new(), 0));
        all.add_answer(&reused(4, Some("cat")), true);
        all.add_label(&label(5, "dog"), Some(&reused(5, None)), true);
        let persons = [4, 5].map(|number| (number, "dog".to_owned(), LabelSource::Person));
        assert_eq!((found(&all), all.fresh()), (persons.to_vec(), 2));
    }

    #[test]
    fn a_retracted_image_is_not_learned_until_it_is_labelled_again() {
        let mut all = collection(10);
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        all.add_answer(&answer(2, Route::Verified, "cat", Some("dog")), true);
        all.add_label(&label(2, "cat"), None, true);
        all.mark_trained();
        for number in [1, 2] {
            all.add_label(&retraction(number), Some(&answer(number, Route::Verified, "cat", Some("dog"))), true);
        }
        assert_eq!((found(&all).len(), all.fresh()), (0, 0));
        all.add_label(&label(1, "dog"), Some(&answer(1, Route::Verified, "cat", None)), true);
        let again = Label { source: Some(LabelSource::Verdict), ..label(2, "cat") };
        all.add_label(&again, Some(&answer(2, Route::Verified, "cat", Some("dog"))), true);
        assert_eq!(found(&all), [(1, "dog".into(), LabelSource::Person), (2, "cat".into(), LabelSource::Verdict)]);
        assert_eq!(all.fresh(), 2);
    }

    #[test]
    fn a_retraction_before_the_answer_holds_when_the_answer_arrives() {
        let mut all = collection(10);
        all.add_label(&label(1, "dog"), None, true);
        all.add_label(&retraction(1), None, true);
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        assert!(all.images().is_empty());
    }

    #[test]
    fn an_image_with_an_unknown_label_is_not_learned() {
        let mut all = collection(10);
        all.add_answer(&answer(1, Route::Verified, "cat", None), true);
        all.add_label(&label(1, "cow"), None, true);
        assert!(all.images().is_empty());
        assert!(all.missing().unwrap().contains("cow"));
    }

    #[test]
    fn boxes_are_counted_and_leave_what_was_said_before() {
        let mut all = collection(10);
        let object =
            |label: &str| DetectedObject { label: label.into(), confidence: 1.0, bounds: [0.0, 0.0, 0.5, 0.5].into() };
        let boxed = |number| Label { objects: Some(vec![object("cat"), object("dog")]), ..label(number, "") };
        let edge = answer(1, Route::Edge, "cat", None);
        all.add_label(&boxed(1), Some(&edge), true);
        assert!(all.images().is_empty());
        assert!(all.missing().unwrap().contains("1 labelled with boxes"), "{:?}", all.missing());
        all.add_label(&label(1, "dog"), Some(&edge), true);
        all.add_label(&boxed(1), Some(&edge), true);
        assert_eq!(found(&all), [(1, "dog".into(), LabelSource::Person)]);
        all.add_label(&Label { objects: Some(Vec::new()), ..retraction(1) }, Some(&edge), true);
        assert!(all.images().is_empty(), "a retraction is one whatever else it says");
        let detected = Answer { objects: Some(vec![object("cat")]), ..answer(2, Route::Verified, "cat", None) };
        all.add_answer(&detected, true);
        assert!(all.images().is_empty(), "a detector's verdict says nothing about the whole picture");
    }

    #[test]
    fn doubtful_verdicts_dead_letters_and_own_answers_are_not_labels() {
        let mut all = collection(10);
        let unsure = Answer { confidence: Some(0.3), ..answer(1, Route::Verified, "cat", None) };
        all.add_answer(&unsure, true);
        all.add_answer(&answer(2, Route::Dead, "cat", Some("cat")), true);
        all.add_answer(&answer(3, Route::Edge, "cat", None), true);
        all.add_answer(&answer(4, Route::Expired, "cat", None), true);
        assert_eq!(all.count(), 0);
        assert!(all.missing().unwrap().contains("no image"));
    }

    #[test]
    fn the_oldest_images_of_the_most_frequent_label_are_dropped() {
        let mut all = collection(4);
        all.add_answer(&answer(1, Route::Verified, "dog", None), true);
        (2..=9).for_each(|number| all.add_answer(&answer(number, Route::Verified, "cat", None), true));
        let kept: Vec<u64> = found(&all).into_iter().map(|(sequence, ..)| sequence).collect();
        assert_eq!(kept, [1, 7, 8, 9]);
        assert!(all.missing().is_none());
    }

    proptest! {
        #[test]
        fn the_last_label_or_retraction_counts(
            events in prop::collection::vec((0_u64..20, prop::option::of(prop::bool::ANY)), 0..120),
        ) {
            let (mut all, mut last) = (collection(100), BTreeMap::new());
            for (number, cat) in events {
                let about = answer(number, Route::Verified, "dog", None);
                let word = cat.map(|cat| if cat { "cat" } else { "dog" });
                let says = word.map_or_else(|| retraction(number), |word| label(number, word));
                all.add_label(&says, Some(&about), true);
                last.insert(number, word);
            }
            let expected: Vec<(u64, String, LabelSource)> = last
                .into_iter()
                .filter_map(|(number, word)| Some((number, word?.to_owned(), LabelSource::Person)))
                .collect();
            prop_assert_eq!(found(&all), expected);
        }

        #[test]
        fn the_limit_holds_and_each_image_counts_once(
            events in prop::collection::vec((0_u64..30, 0_usize..4, prop::bool::ANY), 0..120),
            most in 2_u32..10,
        ) {
            let mut all = collection(most);
            for (number, kind, cat) in events {
                let says = if cat { "cat" } else { "dog" };
                match kind {
                    0 => all.add_answer(&answer(number, Route::Verified, says, None), true),
                    1 => all.add_answer(&answer(number, Route::Edge, says, Some(says)), true),
                    2 => all.add_label(&label(number, says), None, true),
                    _ => all.add_label(&label(number, "cow"), Some(&answer(number, Route::Edge, says, None)), true),
                }
            }
            let images = all.images();
            prop_assert!(images.len() <= most as usize);
            prop_assert_eq!(images.len() as u64, all.count());
            let tasks: BTreeSet<TaskId> = images.iter().map(|image| image.task).collect();
            prop_assert_eq!(tasks.len(), images.len());
            prop_assert!(all.images.len() <= most as usize);
        }
    }
}
