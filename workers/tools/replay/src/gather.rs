//! Reads a site's answers and labels and selects tasks.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::{Answer, AnswerStage, Label, SetName, SiteName, TaskId, decode, leading_label};
use streams::reader::{self, MessageReader, StreamRange};
use streams::{Bus, subject, topology};

use crate::backtest::RecordedTask;
use crate::error::ReplayError;
use crate::read_limiter::ReadLimiter;
use crate::republish::HEADER_ROW;
use crate::row::{Objects, TaskRow, TextPool};
use crate::select::{TaskQuery, TaskStage};
use crate::settings::{MOST_OBJECTS, MOST_TASKS};

/// Reads a site's answers and persons' labels at a limited rate and returns the tasks that match the query. `each` gets
/// the number of answers read and in total.
///
/// # Errors
/// Too many tasks match, or the broker failed.
pub async fn gather(
    bus: &Bus,
    site: &SiteName,
    query: &TaskQuery,
    answers_to: u64,
    pace: &mut ReadLimiter,
    mut each: impl FnMut(u64, u64),
) -> Result<Vec<TaskRow>, ReplayError> {
    let persons = PersonLabels::read(bus).await?;
    let last = reader::stream_level(bus, topology::ANSWERS).await?;
    let mut subjects = vec![subject::final_answers(site, None)];
    let provisional = query.at == TaskStage::Provisional;
    if provisional {
        subjects.push(subject::provisionals(site, None));
    }
    let mut texts = TextPool::default();
    let mut rows: HashMap<TaskId, TaskRow> = HashMap::new();
    let (mut read, mut objects) = (0, 0);
    let all = StreamRange { subjects, ..StreamRange::default() };
    // Later answers belong to a later replay, and purged ones must not end the range.
    let until = answers_to.min(last.last_sequence);
    if last.messages == 0 || until < last.first_sequence {
        return Ok(Vec::new());
    }
    let mut reader = MessageReader::open(bus, topology::ANSWERS, all, until).await?;
    while let Some(record) = reader.next().await? {
        pace.wait(record.payload.len()).await?;
        read += 1;
        each(read, last.messages);
        let answer = match decode::<Answer>(&record.payload) {
            // A replayed task stands for an image that has an answer of its own.
            Ok(answer) if answer.replayed.is_some() => continue,
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(sequence = record.sequence, %error, "answer skipped");
                continue;
            }
        };
        if provisional && answer.stage == AnswerStage::Final {
            rows.remove(&answer.task);
            continue;
        }
        let mut row = TaskRow::of(&answer, &mut texts);
        persons.label_rows(&mut row);
        if query.takes(&row) {
            if rows.len() >= MOST_TASKS {
                return Err(ReplayError::TooMany { most: MOST_TASKS });
            }
            objects += row.object_count();
            if objects > MOST_OBJECTS {
                return Err(ReplayError::TooManyObjects { most: MOST_OBJECTS });
            }
            rows.insert(answer.task, row);
        }
    }
    Ok(rows.into_values().collect())
}

/// Reads how tasks were decided: the matching tasks, and how many of them have no decision trace. They are several
/// times larger than rows, so fewer are allowed.
///
/// # Errors
/// Too many tasks match, or the broker failed.
pub async fn gather_decided(
    bus: &Bus,
    site: &SiteName,
    query: &TaskQuery,
    pace: &mut ReadLimiter,
) -> Result<(Vec<RecordedTask>, u64), ReplayError> {
    const MOST: usize = MOST_TASKS / 4;
    let persons = PersonLabels::read(bus).await?;
    let level = reader::stream_level(bus, topology::ANSWERS).await?;
    let (mut all, mut silent, mut texts) = (Vec::new(), 0, TextPool::default());
    if level.messages == 0 {
        return Ok((all, silent));
    }
    let finals = StreamRange { subjects: vec![subject::final_answers(site, None)], ..StreamRange::default() };
    let mut reader = MessageReader::open(bus, topology::ANSWERS, finals, level.last_sequence).await?;
    while let Some(record) = reader.next().await? {
        pace.wait(record.payload.len()).await?;
        let Ok(answer) = decode::<Answer>(&record.payload) else { continue };
        let mut row = TaskRow::of(&answer, &mut texts);
        persons.label_rows(&mut row);
        // Nothing was decided about an image that got an earlier answer, or that may not leave the site.
        let was_decided = answer.replayed.is_none() && answer.reused.is_none() && answer.has_healthy_picture();
        if !was_decided || !query.takes(&row) {
            continue;
        }
        match RecordedTask::of(&answer, &row, &mut texts) {
            Some(recorded) => all.push(recorded),
            None => silent += 1,
        }
        if all.len() > MOST {
            return Err(ReplayError::TooMany { most: MOST });
        }
    }
    Ok((all, silent))
}

/// Reads a pinned set and returns the tasks that match the query, without labels retracted since; each row's sequence
/// is its place in the set. Images that name another task than their slot, or an invalid camera, are skipped, because
/// rows become paths and subjects.
///
/// # Errors
/// Too many tasks match, or the broker failed.
pub async fn gather_pinned(
    bus: &Bus,
    site: &SiteName,
    set: &SetName,
    query: &TaskQuery,
) -> Result<Vec<TaskRow>, ReplayError> {
    let persons = PersonLabels::read(bus).await?;
    let last = reader::stream_level(bus, topology::PINNED).await?;
    let (mut rows, mut too_many) = (Vec::new(), false);
    if last.messages == 0 {
        return Ok(rows);
    }
    let all =
        StreamRange { subjects: vec![subject::pins(Some(set), site)], headers_only: true, ..StreamRange::default() };
    reader::read_range(bus, topology::PINNED, all, last.last_sequence, |record| {
        let row = record.header(HEADER_ROW).and_then(|row| serde_json::from_str::<TaskRow>(row).ok());
        let row = row.filter(|row| is_of(row, &record.subject)).map(|row| persons.without_retracted(row));
        match row {
            Some(row) if query.takes(&row) => {
                too_many |= rows.len() >= MOST_TASKS;
                if !too_many {
                    rows.push(TaskRow { sequence: record.sequence, ..row });
                }
            }
            Some(_) => {}
            None => tracing::warn!(
                sequence = record.sequence,
                "pinned image skipped; its description does not match its slot"
            ),
        }
    })
    .await?;
    if too_many {
        return Err(ReplayError::TooMany { most: MOST_TASKS });
    }
    Ok(rows)
}

/// Whether a row describes the slot it was found in.
fn is_of(row: &TaskRow, slot: &str) -> bool {
    let Ok((set, task)) = subject::read_pin(slot) else { return false };
    let Some((site, camera)) = row.site.parse().ok().zip(row.camera.parse().ok()) else { return false };
    task == row.task && subject::pin(&set, &site, &camera, task) == slot
}

/// The latest label by a person for each task; `None` where it was retracted.
#[derive(Default)]
struct PersonLabels {
    labels: HashMap<TaskId, Option<PersonLabel>>,
    texts: TextPool,
}

/// What a person says of a task.
struct PersonLabel {
    label: Arc<str>,
    objects: Option<Objects>,
}

impl PersonLabels {
    async fn read(bus: &Bus) -> Result<Self, ReplayError> {
        let mut persons = Self::default();
        let last = reader::stream_level(bus, topology::LABELS).await?;
        if last.messages == 0 {
            return Ok(persons);
        }
        reader::read_range(bus, topology::LABELS, StreamRange::default(), last.last_sequence, |record| {
            match decode::<Label>(&record.payload) {
                Ok(label) => match label.check() {
                    Ok(()) => persons.apply_label(&label),
                    Err(error) => tracing::warn!(sequence = record.sequence, %error, "label skipped"),
                },
                Err(error) => tracing::warn!(sequence = record.sequence, %error, "label skipped"),
            }
        })
        .await?;
        Ok(persons)
    }

    fn apply_label(&mut self, label: &Label) {
        match (&label.retracted, label.source) {
            (Some(_), _) => drop(self.labels.insert(label.task, None)),
            (None, None) => {
                let text = label.objects.as_deref().map_or(label.label.as_str(), leading_label);
                let objects = label.objects.as_deref().map(Objects::from);
                let person = PersonLabel { label: self.texts.shared(text), objects };
                self.labels.insert(label.task, Some(person));
            }
            // A replayed label does not revoke an earlier retraction.
            (None, Some(_)) if self.is_retracted(label.task) => drop(self.labels.remove(&label.task)),
            (None, Some(_)) => {}
        }
    }

    fn is_retracted(&self, task: TaskId) -> bool {
        self.labels.get(&task).is_some_and(Option::is_none)
    }

    /// Applies later retractions to an older row.
    fn without_retracted(&self, mut row: TaskRow) -> TaskRow {
        if self.is_retracted(row.task) {
            row.retract();
        }
        row
    }

    /// Adds a person's label or retraction to a row.
    fn label_rows(&self, row: &mut TaskRow) {
        match self.labels.get(&row.task) {
            Some(Some(person)) => {
                (row.person, row.person_objects) = (Some(person.label.clone()), person.objects.clone());
            }
            Some(None) => row.retract(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{DetectedObject, LabelSource};

    use super::*;
    use crate::row::tests::{detected_row, object, row};

    #[test]
    fn a_retracted_task_is_labelled_again_by_a_person_or_a_replay() {
        let label = |source| Label {
            task: row().task,
            label: "eel".into(),
            objects: None,
            by: None,
            labelled_at_ms: 0,
            source,
            retracted: None,
        };
        let resulting_label = |labels: &[Label]| {
            let (mut persons, mut row) = (PersonLabels::default(), row());
            labels.iter().for_each(|label| persons.apply_label(label));
            persons.label_rows(&mut row);
            row.label().map(|(label, _)| label.to_string())
        };
        let (person, replay) = (label(None), label(Some(LabelSource::Publisher)));
        let retraction = Label::retraction(row().task, None, "mistaken", 0);
        assert_eq!(resulting_label(&[person.clone(), retraction.clone()]), None);
        assert_eq!(resulting_label(&[retraction.clone(), person]).as_deref(), Some("eel"));
        assert_eq!(resulting_label(&[retraction, replay]).as_deref(), Some("crab"));
    }

    #[test]
    fn the_latest_label_counts_whether_it_is_of_objects_or_of_the_picture() {
        let label = |label: &str, objects: Option<&[DetectedObject]>| Label {
            task: row().task,
            label: label.into(),
            objects: objects.map(<[_]>::to_vec),
            by: None,
            labelled_at_ms: 0,
            source: None,
            retracted: None,
        };
        let resulting = |labels: &[Label]| {
            let (mut persons, mut row) = (PersonLabels::default(), detected_row());
            labels.iter().for_each(|label| persons.apply_label(label));
            persons.label_rows(&mut row);
            row
        };
        let boxed = label("", Some(&[object("eel", 1.0, [0.0, 0.0, 0.5, 0.5])]));
        let (nothing, whole) = (label("", Some(&[])), label("fish", None));
        let drawn = resulting(&[whole.clone(), boxed.clone()]);
        assert_eq!((drawn.person.as_deref(), drawn.true_objects().map(|(all, _)| all.len())), (Some("eel"), Some(1)));
        let empty = resulting(&[boxed.clone(), nothing]);
        assert_eq!((empty.person.as_deref(), empty.true_objects().map(|(all, _)| all.len())), (Some("none"), Some(0)));
        let classed = resulting(&[boxed.clone(), whole]);
        assert_eq!((classed.person.as_deref(), classed.true_objects()), (Some("fish"), None));
        let retracted = resulting(&[boxed, Label::retraction(row().task, None, "mistaken", 0)]);
        assert_eq!((retracted.label(), retracted.true_objects()), (None, None));
    }

    #[test]
    fn a_pinned_row_of_another_task_is_rejected() {
        let slot = |row: &TaskRow| format!("pin.set.{}.{}.{}", row.site, row.camera, row.task);
        assert!(is_of(&row(), &slot(&row())));
        for camera in ["../../etc", "a.b", "", "another"] {
            assert!(!is_of(&TaskRow { camera: camera.into(), ..row() }, &slot(&row())), "{camera}");
        }
        assert!(!is_of(&TaskRow { task: TaskId::from_name("another"), ..row() }, &slot(&row())));
        assert!(!is_of(&TaskRow { site: "another".into(), ..row() }, &slot(&row())));
    }
}
