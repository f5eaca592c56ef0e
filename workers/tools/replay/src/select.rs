//! Selects tasks: a query, and a sample of the matches. Pure.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use schemas::{AnswerStage, CameraName, Route};

use crate::expression::Expression;
use crate::row::TaskRow;

/// Which tasks to select.
#[derive(Debug, Clone, Default)]
pub struct TaskQuery {
    /// Only these cameras; empty: all.
    pub cameras: Vec<CameraName>,
    /// Stored at or after this time, milliseconds since the epoch.
    pub since_ms: Option<u64>,
    /// Stored before this time, milliseconds since the epoch.
    pub until_ms: Option<u64>,
    /// From this sequence in the stream IMAGES.
    pub from_sequence: Option<u64>,
    /// Up to this sequence, inclusive.
    pub to_sequence: Option<u64>,
    /// Only tasks in this stage.
    pub at: TaskStage,
    /// Further condition.
    pub condition: Option<Expression>,
}

/// Stage of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskStage {
    /// It has a final answer.
    #[default]
    Final,
    /// It has a provisional answer and no final one.
    Provisional,
    /// It was given up.
    Dead,
}

impl TaskStage {
    fn of(row: &TaskRow) -> Self {
        match (row.stage, row.route) {
            (AnswerStage::Provisional, _) => TaskStage::Provisional,
            (AnswerStage::Final, Route::Dead) => TaskStage::Dead,
            (AnswerStage::Final, _) => TaskStage::Final,
        }
    }
}

impl TaskQuery {
    /// Whether a task matches.
    pub fn takes(&self, row: &TaskRow) -> bool {
        let at_ms = row.published_at_ms;
        TaskStage::of(row) == self.at
            && (self.cameras.is_empty() || self.cameras.iter().any(|camera| camera.as_str() == row.camera.as_ref()))
            && self.since_ms.is_none_or(|since_ms| at_ms >= since_ms)
            && self.until_ms.is_none_or(|until_ms| at_ms < until_ms)
            && self.from_sequence.is_none_or(|from| row.sequence >= from)
            && self.to_sequence.is_none_or(|to| row.sequence <= to)
            && self.condition.as_ref().is_none_or(|condition| condition.matches(row))
    }
}

/// How to choose when not all matches are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskSampling {
    /// The oldest.
    #[default]
    First,
    /// The newest.
    Last,
    /// At random.
    Random,
    /// Equally many of each label, at random within a label.
    PerClass,
    /// Those the site got wrong, then those it was least confident about.
    Hard,
}

/// All samplings with their names.
pub const SAMPLES: [(&str, TaskSampling); 5] = [
    ("first", TaskSampling::First),
    ("last", TaskSampling::Last),
    ("random", TaskSampling::Random),
    ("per-class", TaskSampling::PerClass),
    ("hard", TaskSampling::Hard),
];

impl FromStr for TaskSampling {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = SAMPLES.iter().find(|(known, _)| *known == name).map(|(_, sample)| *sample);
        found.ok_or_else(|| format!("sample is {name:?}; it must be first, last, random, per-class or hard"))
    }
}

/// Takes at most `limit` of the rows, in the order of their images; the same for the same seed.
pub fn sample(mut rows: Vec<TaskRow>, sample: TaskSampling, limit: Option<usize>, seed: u64) -> Vec<TaskRow> {
    rows.sort_by_key(|row| (row.sequence, row.task));
    let Some(limit) = limit.filter(|limit| *limit < rows.len()) else { return rows };
    let mut chance = SmallRng::seed_from_u64(seed);
    let taken: HashSet<usize> = match sample {
        TaskSampling::First => (0..limit).collect(),
        TaskSampling::Last => (rows.len() - limit..rows.len()).collect(),
        TaskSampling::Random => {
            let mut places: Vec<usize> = (0..rows.len()).collect();
            places.partial_shuffle(&mut chance, limit).0.iter().copied().collect()
        }
        TaskSampling::PerClass => per_class(&rows, limit, &mut chance),
        TaskSampling::Hard => {
            let mut ranked: Vec<(usize, f32)> = rows.iter().map(TaskRow::hardness).enumerate().collect();
            ranked.sort_by(|(a, hardness_a), (b, hardness_b)| hardness_b.total_cmp(hardness_a).then(a.cmp(b)));
            let mut places: Vec<usize> = ranked.into_iter().map(|(place, _)| place).collect();
            places.truncate(limit);
            places.into_iter().collect()
        }
    };
    let mut place = 0;
    rows.retain(|_| {
        place += 1;
        taken.contains(&(place - 1))
    });
    rows
}

/// One of each label in turn until there are enough, so that rare labels are complete and frequent ones have equal
/// numbers.
fn per_class(rows: &[TaskRow], limit: usize, chance: &mut SmallRng) -> HashSet<usize> {
    let mut classes: BTreeMap<Option<Arc<str>>, Vec<usize>> = BTreeMap::new();
    for (place, row) in rows.iter().enumerate() {
        let label = row.label().map(|(label, _)| label).or(row.answer.as_ref());
        classes.entry(label.cloned()).or_default().push(place);
    }
    for places in classes.values_mut() {
        places.shuffle(chance);
    }
    let mut taken = HashSet::with_capacity(limit);
    while taken.len() < limit {
        for places in classes.values_mut() {
            if taken.len() < limit {
                taken.extend(places.pop());
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::TaskId;

    use super::*;
    use crate::row::tests::row;

    fn rows(labels: &[usize]) -> Vec<TaskRow> {
        let of = |(at, label): (usize, &usize)| TaskRow {
            task: TaskId::from_name(&at.to_string()),
            sequence: at as u64 + 1,
            truth: Some(format!("label-{label}").into()),
            edge_confidence: Some(1.0 / (at + 1) as f32),
            novelty: None,
            edge: Some(format!("label-{label}").into()),
            ..row()
        };
        labels.iter().enumerate().map(of).collect()
    }

    #[test]
    fn a_query_selects_what_it_says() {
        let takes = |query: TaskQuery| query.takes(&row());
        assert!(takes(TaskQuery::default()));
        assert!(!takes(TaskQuery { at: TaskStage::Provisional, ..TaskQuery::default() }));
        assert!(!takes(TaskQuery { at: TaskStage::Dead, ..TaskQuery::default() }));
        assert!(
            !TaskQuery::default().takes(&TaskRow { route: Route::Dead, ..row() }),
            "a task that was given up has no answer"
        );
        assert!(!takes(TaskQuery { cameras: vec!["cam-2".parse().unwrap()], ..TaskQuery::default() }));
        assert!(takes(TaskQuery { since_ms: Some(1_700_000_000_000), ..TaskQuery::default() }));
        assert!(!takes(TaskQuery { until_ms: Some(1_700_000_000_000), ..TaskQuery::default() }));
        assert!(takes(TaskQuery { from_sequence: Some(7), to_sequence: Some(7), ..TaskQuery::default() }));
        assert!(!takes(TaskQuery { to_sequence: Some(6), ..TaskQuery::default() }));
        let condition = Some(Expression::parse("route = edge").unwrap());
        assert!(!takes(TaskQuery { condition, ..TaskQuery::default() }));
    }

    #[test]
    fn each_sampling_does_what_its_name_says() {
        let labels = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        let taken = |how, limit| -> Vec<u64> {
            sample(rows(&labels), how, Some(limit), 1).iter().map(|row| row.sequence).collect()
        };
        assert_eq!(taken(TaskSampling::First, 3), [1, 2, 3]);
        assert_eq!(taken(TaskSampling::Last, 3), [8, 9, 10]);
        assert_eq!(taken(TaskSampling::Hard, 2), [9, 10], "the least confident");
        let even = taken(TaskSampling::PerClass, 4);
        assert!(even.contains(&9) && even.contains(&10), "rare labels are included: {even:?}");
        assert_eq!(taken(TaskSampling::Random, 4), taken(TaskSampling::Random, 4));
    }

    proptest! {
        #[test]
        fn a_sample_is_an_ordered_subset_of_the_requested_size(
            labels in prop::collection::vec(0usize..4, 0..40), limit in 0usize..50, seed in 0u64..9, how in 0usize..5,
        ) {
            let taken = sample(rows(&labels), SAMPLES[how].1, Some(limit), seed);
            prop_assert_eq!(taken.len(), limit.min(labels.len()));
            prop_assert!(taken.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        }
    }
}
