//! The one table of subjects: what each carries, which stream stores it, who may publish it, and whether it may leave
//! its site. Permissions and help texts are made from it, and the deployed configurations are checked against it.

use schemas::{Role, SiteName};

use crate::permissions::belongs_to;
use crate::topology::{
    ANSWERS, AUDIT, CAMERAS, DEAD, HARDCASES, IMAGES, LABELS, LEARNED, ORDERS, OUTBOX, PINNED, RELEASES, SWAPS,
    UPDATES, VERDICTS, VERIFY,
};

/// Where a subject is used, and whether it crosses the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectScope {
    /// Never leaves the site.
    Site,
    /// Never leaves the cloud.
    Cloud,
    /// From a site to the cloud, which stores it.
    Up,
    /// From the cloud, which stores it, to the site it names or to every site.
    Down,
}

/// One kind of subject.
#[derive(Debug, Clone, Copy)]
pub struct SubjectRow {
    /// Tokens of the subject: `SITE` is a site's name, another word in capitals is any one token.
    pub form: &'static str,
    /// What it carries; shown by `tributary tap --help`.
    pub carries: &'static str,
    /// Stream that stores it; absent for messages that are not stored.
    pub stream: Option<&'static str>,
    /// Where it is used.
    pub reach: SubjectScope,
    /// Roles that may publish it, beside the operator.
    pub publishers: &'static [Role],
}

impl SubjectRow {
    /// The subject with wildcards: of one site, or of all.
    pub fn pattern(&self, site: Option<&SiteName>) -> String {
        let token = |token: &str| match (token, site) {
            ("SITE", Some(site)) => site.to_string(),
            (token, _) if token.starts_with(|first: char| first.is_ascii_uppercase()) => "*".to_owned(),
            (token, _) => token.to_owned(),
        };
        self.form.split('.').map(token).collect::<Vec<_>>().join(".")
    }
}

const fn row(
    form: &'static str,
    carries: &'static str,
    stream: Option<&'static str>,
    reach: SubjectScope,
    publishers: &'static [Role],
) -> SubjectRow {
    SubjectRow { form, carries, stream, reach, publishers }
}

/// All kinds of subjects, along the path of an image and then of an update.
pub const SUBJECTS: &[SubjectRow] = &[
    row(
        "image.SITE.CAMERA",
        "an image as its camera published it",
        Some(IMAGES),
        SubjectScope::Site,
        &[Role::Camera, Role::Grabber, Role::Janitor],
    ),
    row(
        "camera.SITE.CAMERA.health",
        "how a camera is: pictures, faults, its clock",
        Some(CAMERAS),
        SubjectScope::Site,
        &[Role::Grabber],
    ),
    row(
        "camera.SITE.CAMERA.state",
        "the state of what a camera shows, when it changes",
        Some(CAMERAS),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row("camera-json.SITE.CAMERA.health", "how a camera is, in JSON", None, SubjectScope::Site, &[Role::Notifier]),
    row(
        "camera-json.SITE.CAMERA.state",
        "the state of what a camera shows, in JSON",
        None,
        SubjectScope::Site,
        &[Role::Notifier],
    ),
    row(
        "answer.provisional.SITE.CAMERA",
        "the site's own answer to a doubtful image, until it is final",
        Some(ANSWERS),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row(
        "outcome.SITE.CAMERA.TASK",
        "the outcome of a task, before the stream stored it",
        Some(ANSWERS),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    // Published by the server itself once it has stored an `outcome`.
    row("answer.final.SITE.CAMERA.TASK", "the final answer to a task", Some(ANSWERS), SubjectScope::Site, &[]),
    row("answer-json.SITE.CAMERA", "the final answer to a task, in JSON", None, SubjectScope::Site, &[Role::Notifier]),
    row(
        "outbox.SITE.verify",
        "a request for the cloud, waiting for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row(
        "outbox.SITE.hardcase",
        "a hard case, waiting for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    row(
        "outbox.SITE.update",
        "an update of a model, waiting for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Trainer],
    ),
    row(
        "outbox.SITE.swap",
        "a worker's report, waiting for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row(
        "verify.REASON.SITE.CAMERA",
        "a request to verify a task, with its image or features",
        Some(VERIFY),
        SubjectScope::Up,
        &[Role::Site],
    ),
    row("verdict.SITE.CAMERA", "the cloud's verdict on a task", Some(VERDICTS), SubjectScope::Down, &[Role::Verifier]),
    row(
        "hardcase.SITE",
        "features and scores of a doubtful task, without pixels",
        Some(HARDCASES),
        SubjectScope::Up,
        &[Role::Site, Role::Verifier],
    ),
    row("label.SITE.CAMERA", "a person's label for a task", Some(LABELS), SubjectScope::Site, &[]),
    row(
        "learned.SITE.MODEL",
        "the images that an update learned from",
        Some(LEARNED),
        SubjectScope::Site,
        &[Role::Trainer],
    ),
    row("pin.SET.SITE.CAMERA.TASK", "an image in a pinned set, with its answer", Some(PINNED), SubjectScope::Site, &[]),
    row(
        "round.MODEL.NUMBER.EVENT",
        "an event of a training round",
        Some(UPDATES),
        SubjectScope::Down,
        &[Role::Aggregator],
    ),
    row("update.MODEL.ROUND.SITE", "a site's update for a round", Some(UPDATES), SubjectScope::Up, &[Role::Site]),
    row(
        "release.MODEL.NUMBER",
        "a rollout decision",
        Some(RELEASES),
        SubjectScope::Cloud,
        &[Role::Aggregator, Role::Releaser],
    ),
    row("order.SITE.MODEL", "the release that a site must run", Some(ORDERS), SubjectScope::Down, &[Role::Releaser]),
    row("swap.SITE.WORKER.SLOT", "what a worker runs, and its results", Some(SWAPS), SubjectScope::Up, &[Role::Site]),
    row(
        "swap.cloud.WORKER.SLOT",
        "what a verifier runs, and its results",
        Some(SWAPS),
        SubjectScope::Cloud,
        &[Role::Verifier],
    ),
    row(
        "dead.images.SITE.ID",
        "a dead letter: an image",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Janitor],
    ),
    row(
        "dead.answers.SITE.ID",
        "a dead letter: an answer",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    row(
        "dead.outbox.SITE.ID",
        "a dead letter: a message that could not be sent up",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Courier],
    ),
    row(
        "dead.verdicts.SITE.ID",
        "a dead letter: a verdict that the site refused",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Courier],
    ),
    row(
        "dead.orders.SITE.ID",
        "a dead letter: an order that the site refused",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Courier],
    ),
    row(
        "dead.updates.SITE.ID",
        "a dead letter: a round that the site refused",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Courier],
    ),
    row(
        "dead.verify.SITE.ID",
        "a dead letter: a request to verify",
        Some(DEAD),
        SubjectScope::Cloud,
        &[Role::Verifier],
    ),
    row(
        "dead.updates.SITE.ID",
        "a dead letter: an update that the cloud refused",
        Some(DEAD),
        SubjectScope::Cloud,
        &[Role::Aggregator],
    ),
    row("audit.SITE", "an action of a person", Some(AUDIT), SubjectScope::Site, &[]),
    row("audit.cloud", "an action of a person in the cloud", Some(AUDIT), SubjectScope::Cloud, &[]),
];

/// Subjects that a role publishes, of one site or, without a name, of all.
pub(crate) fn published_by(role: Role, site: Option<&SiteName>) -> Vec<String> {
    SUBJECTS.iter().filter(|row| row.publishers.contains(&role)).map(|row| row.pattern(site)).collect()
}

/// The stream that stores a subject, or a pattern within one kind of subjects.
pub(crate) fn stored_in(subject: &str) -> Option<&'static str> {
    SUBJECTS
        .iter()
        .find(|row| row.stream.is_some() && belongs_to(&row.pattern(None), subject))
        .and_then(|row| row.stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{PlanScope, StreamSettings, plan_topology};

    /// Whether the wide pattern matches every subject of the narrow one.
    fn covers(wide: &str, narrow: &str) -> bool {
        let (wide, narrow): (Vec<&str>, Vec<&str>) = (wide.split('.').collect(), narrow.split('.').collect());
        wide.len() == narrow.len() && wide.iter().zip(&narrow).all(|(wide, narrow)| *wide == "*" || wide == narrow)
    }

    #[test]
    fn streams_store_exactly_the_subjects_of_the_table() {
        let reef: SiteName = "reef".parse().unwrap();
        let plan = plan_topology(&PlanScope::Both(reef.clone()), &StreamSettings::default());
        for stream in &plan.streams {
            for subject in stream.subjects.iter().filter(|subject| !subject.starts_with(['$', '/'])) {
                // Malformed image subjects become dead letters, and dead letters without a known site are kept.
                if subject.starts_with("image") || subject.contains(".unknown.") || subject.contains(".cloud.") {
                    continue;
                }
                let known = SUBJECTS.iter().any(|row| {
                    row.stream == Some(stream.name.as_str())
                        && (covers(&row.pattern(Some(&reef)), subject) || row.pattern(None) == *subject)
                        || stream.name == "UPDATES" && row.stream == Some(UPDATES) && row.pattern(None) == *subject
                        // One pattern for the four kinds in the outbox.
                        || stream.name == OUTBOX && *subject == "outbox.reef.*"
                });
                assert!(known, "{subject} of {}", stream.name);
            }
        }
        for row in SUBJECTS {
            let Some(name) = row.stream else { continue };
            let stream = plan.streams.iter().find(|stream| stream.name == name).unwrap();
            let subject = row.pattern(Some(&reef));
            let stored = stream.subjects.iter().any(|stored| {
                covers(stored, &subject) || stored.strip_suffix(".>").is_some_and(|prefix| subject.starts_with(prefix))
            });
            // Final answers are published under another name than they are stored from.
            assert!(stored || row.form.starts_with("answer.final"), "{subject} in {name}");
        }
    }
}
