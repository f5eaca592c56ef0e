//! Publishes images, labels and pins again: their content and ids. Pure.

use schemas::limits::MAX_HEADER_BYTES;
use schemas::task::{
    HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_FILE, HEADER_LABEL, HEADER_MESSAGE_ID, HEADER_REPLAYED, HEADER_TILE,
};
use schemas::{CameraName, Label, LabelSource, SetName, SiteName, TaskId, encode};
use streams::{CarryError, Publication, subject};

use crate::error::ReplayError;
use crate::fetch::ArchivedImage;
use crate::row::TaskRow;

/// Header with a pinned image's row, as JSON.
pub const HEADER_ROW: &str = "Tributary-Row";
/// Longest row in that header, bytes: three quarters of what a message's headers may be, so that those of the image fit
/// beside it. 300 objects of ten letters take 30,000.
const MAX_ROW_BYTES: usize = MAX_HEADER_BYTES / 4 * 3;

/// The subject an image is published on; `{site}` and `{camera}` are replaced by its own.
pub fn subject_of(template: &str, row: &TaskRow) -> String {
    template.replace("{site}", &row.site).replace("{camera}", &row.camera)
}

/// Checks a subject template.
///
/// # Errors
/// [`ReplayError::Subject`].
pub fn check_template(template: &str) -> Result<(), ReplayError> {
    let tried = template.replace("{site}", "site").replace("{camera}", "camera");
    if tried.contains(['{', '}']) {
        let why = format!("subject {template:?} is invalid; only {{site}} and {{camera}} are placeholders");
        return Err(ReplayError::Subject { why });
    }
    subject::check_replay(&tried).map_err(|error| ReplayError::Subject { why: error.to_string() })
}

/// An image as a new task that names its original.
pub fn republication(template: &str, row: &TaskRow, image: &ArchivedImage, run: TaskId) -> Publication {
    let id = row.task.child(&format!("replayed-{run}"));
    let inline = image.headers.iter().all(|(name, _)| name != HEADER_BLOB);
    let payload = if inline { image.bytes.clone() } else { bytes::Bytes::new() };
    let mut publication = Publication::with_id(subject_of(template, row), payload, id.to_string())
        .header(HEADER_REPLAYED, row.task.to_string());
    // A person may have written anything; a header holds one line.
    let one_line = |label: &str| !label.contains(char::is_control);
    let said = row.class_label().filter(|(label, source)| *source != LabelSource::Verdict && one_line(label));
    if let Some((label, _)) = said {
        publication = publication.header(HEADER_LABEL, label.as_ref());
    }
    // Without its deadline, which has passed, and its priority, as a replay is not urgent.
    let kept = |name: &str| [HEADER_BLOB, HEADER_CAPTURED_AT, HEADER_FILE, HEADER_TILE].contains(&name);
    let headers = image.headers.iter().filter(|(name, _)| kept(name));
    publication.headers.extend(headers.map(|(name, value)| (name.clone().into(), value.clone())));
    publication
}

/// A label for a trainer to learn from again.
///
/// # Errors
/// The label cannot be encoded, or a name is invalid.
pub fn label(row: &TaskRow, run: TaskId, now_ms: u64) -> Result<Option<Publication>, ReplayError> {
    let Some((label, source)) = row.label() else { return Ok(None) };
    let (site, camera) = names(row)?;
    let objects = row.true_objects().map(|(objects, _)| objects.to_vec());
    let label = Label {
        task: row.task,
        label: if objects.is_some() { String::new() } else { label.as_ref().into() },
        objects,
        by: Some("replay".into()),
        labelled_at_ms: now_ms,
        source: Some(source),
        retracted: None,
    };
    let id = row.task.child(&format!("replayed-label-{run}")).to_string();
    Ok(Some(Publication::with_id(subject::label(&site, &camera), encode(&label).map_err(CarryError::from)?, id)))
}

/// An image in its slot of a pinned set, which is kept whatever its age.
///
/// # Errors
/// A name is invalid.
pub fn pin(set: &SetName, row: &TaskRow, image: &ArchivedImage) -> Result<Publication, ReplayError> {
    let (site, camera) = names(row)?;
    let inline = image.headers.iter().all(|(name, _)| name != HEADER_BLOB);
    let payload = if inline { image.bytes.clone() } else { bytes::Bytes::new() };
    let mut publication = Publication::first_on_subject(subject::pin(set, &site, &camera, row.task), payload)
        .header(HEADER_ROW, described(row));
    let own = |name: &str| name.starts_with("Nats-") || name == HEADER_MESSAGE_ID || name == HEADER_ROW;
    let headers = image.headers.iter().filter(|(name, _)| !own(name));
    publication.headers.extend(headers.map(|(name, value)| (name.clone().into(), value.clone())));
    Ok(publication)
}

/// A row as JSON; with its objects, unless they make it longer than a header should be.
fn described(row: &TaskRow) -> String {
    let json = |row: &TaskRow| serde_json::to_string(row).unwrap_or_default();
    let whole = json(row);
    if whole.len() <= MAX_ROW_BYTES {
        return whole;
    }
    // What a person drew is worth more than what a model found.
    let without_answers = json(&TaskRow { objects: None, ..row.clone() });
    tracing::warn!(task = %row.task, size_bytes = whole.len(), "too many objects to pin with their image");
    if without_answers.len() <= MAX_ROW_BYTES {
        return without_answers;
    }
    json(&TaskRow { objects: None, person_objects: None, person: None, ..row.clone() })
}

fn names(row: &TaskRow) -> Result<(SiteName, CameraName), ReplayError> {
    let name = |error: schemas::IdError| ReplayError::Subject { why: error.to_string() };
    Ok((row.site.parse().map_err(name)?, row.camera.parse().map_err(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Objects;
    use crate::row::tests::{object, row};

    fn image() -> ArchivedImage {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers =
            vec![header(HEADER_MESSAGE_ID, "x"), header("Tributary-Deadline-Ms", "5"), header(HEADER_CAPTURED_AT, "7")];
        ArchivedImage { bytes: "jpeg".into(), headers }
    }

    fn value<'a>(publication: &'a Publication, name: &str) -> Option<&'a str> {
        publication.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_republished_image_is_a_new_task_that_names_its_original() {
        let run = TaskId::from_name("run");
        let sent = republication("image.lab.{camera}", &row(), &image(), run);
        assert_eq!(sent.subject, "image.lab.cam-1");
        assert_eq!(value(&sent, HEADER_REPLAYED), Some(row().task.to_string().as_str()));
        assert_eq!(value(&sent, HEADER_LABEL), Some("crab"), "the publisher's label is kept");
        assert_eq!((value(&sent, HEADER_CAPTURED_AT), value(&sent, "Tributary-Deadline-Ms")), (Some("7"), None));
        let id = |run| value(&republication("x", &row(), &image(), run), HEADER_MESSAGE_ID).map(str::to_owned);
        assert_eq!(id(run), id(run), "resuming publishes the same ids");
        assert_ne!(id(run), id(TaskId::from_name("another")));
        let verified = TaskRow { truth: None, route: schemas::Route::Verified, ..row() };
        assert_eq!(
            value(&republication("x", &verified, &image(), run), HEADER_LABEL),
            None,
            "a verdict is not the truth"
        );
        let lines = TaskRow { person: Some("crab\r\nTributary-Priority: high".into()), ..row() };
        assert_eq!(
            value(&republication("x", &lines, &image(), run), HEADER_LABEL),
            None,
            "a label is no header of its own"
        );
    }

    #[test]
    fn templates_are_limited_to_image_subjects() {
        for template in ["image.lab.{camera}", "replay.{site}.{camera}", "x"] {
            check_template(template).unwrap();
        }
        for template in ["answer.final.{site}.{camera}.x", "replay.{task}", "image.lab", "replay.*", "a..b"] {
            assert!(check_template(template).is_err(), "{template}");
        }
    }

    #[test]
    fn a_pinned_image_carries_its_row() {
        let pinned = pin(&"set".parse().unwrap(), &row(), &image()).unwrap();
        assert!(pinned.first_only && pinned.subject == format!("pin.set.reef.cam-1.{}", row().task));
        let known: TaskRow = serde_json::from_str(value(&pinned, HEADER_ROW).unwrap()).unwrap();
        assert_eq!(known, row());
    }

    #[test]
    fn a_pinned_image_carries_its_objects_as_far_as_they_fit_a_header() {
        let known = |row: &TaskRow| -> TaskRow {
            let pinned = pin(&"set".parse().unwrap(), row, &image()).unwrap();
            let text = value(&pinned, HEADER_ROW).unwrap().to_owned();
            assert!(text.len() <= MAX_ROW_BYTES, "{}", text.len());
            serde_json::from_str(&text).unwrap()
        };
        let objects = |label: &str| -> Objects {
            (0..300)
                .map(|at| object(label, 0.123_456_7, [0.012_345_67, 0.1, 0.987_654_3, 0.2 + at as f32 / 999.0]))
                .collect()
        };
        let drawn = |found: &str, drawn: &str| TaskRow {
            objects: Some(objects(found)),
            person: Some(drawn.into()),
            person_objects: Some(objects(drawn)),
            ..row()
        };
        let all = TaskRow { objects: Some(objects("fish")), ..row() };
        assert_eq!(known(&all), all);
        let long = "x".repeat(250);
        let persons = known(&drawn(&long, "fish"));
        assert!(persons.objects.is_none() && persons.person_objects == Some(objects("fish")));
        let neither = known(&drawn(&long, &long));
        assert_eq!((neither.objects, neither.person_objects, neither.person), (None, None, None));
    }

    #[test]
    fn objects_are_published_for_a_trainer_and_are_no_header() {
        let drawn = TaskRow {
            person: Some("fish".into()),
            person_objects: Some([object("fish", 1.0, [0.0, 0.0, 0.5, 0.5])].into()),
            ..row()
        };
        let run = TaskId::from_name("run");
        let sent = label(&drawn, run, 5).unwrap().unwrap();
        let label: Label = schemas::decode(&sent.payload).unwrap();
        assert_eq!((label.label.as_str(), label.objects.map(|objects| objects.len())), ("", Some(1)));
        assert_eq!(label.source, Some(LabelSource::Person));
        assert_eq!(value(&republication("x", &drawn, &image(), run), HEADER_LABEL), None);
    }
}
