//! The one table of subjects: what each carries, which stream stores it and where, who may publish it, and whether it may
//! leave its site. Rights, help and the checks of the deployed configurations are made of it or compared with it.

use schemas::{Role, SiteName};

use crate::topology::{
    ANSWERS, AUDIT, DEAD, HARDCASES, IMAGES, LABELS, LEARNED, ORDERS, OUTBOX, PINNED, RELEASES, SWAPS, UPDATES,
    VERDICTS, VERIFY,
};

/// Where a subject is at home, and whether it crosses the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectScope {
    /// Never leaves the site.
    Site,
    /// Never leaves the cloud.
    Cloud,
    /// From a site to the cloud, where it is stored.
    Up,
    /// From the cloud, where it is stored, to the site it names or to every site.
    Down,
}

/// A kind of subject.
#[derive(Debug, Clone, Copy)]
pub struct SubjectRow {
    /// Its tokens: `SITE` is a site's name, another word in capitals stands for one token.
    pub form: &'static str,
    /// What it carries, for people.
    pub carries: &'static str,
    /// The stream that stores it; absent for what only passes.
    pub stream: Option<&'static str>,
    /// Where it is at home.
    pub reach: SubjectScope,
    /// Who publishes it; the operator of the place may, too.
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

/// Every kind of subject there is, in the order of an image's and an update's path.
pub const SUBJECTS: &[SubjectRow] = &[
    row(
        "image.SITE.CAMERA",
        "an image as it was published",
        Some(IMAGES),
        SubjectScope::Site,
        &[Role::Camera, Role::Janitor],
    ),
    row(
        "answer.provisional.SITE.CAMERA",
        "what the site thinks of a doubtful image",
        Some(ANSWERS),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row(
        "outcome.SITE.CAMERA.TASK",
        "the outcome of a task on its way to the stream",
        Some(ANSWERS),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    // Stored and told by the server itself, out of `outcome`.
    row("answer.final.SITE.CAMERA.TASK", "the outcome of a task", Some(ANSWERS), SubjectScope::Site, &[]),
    row("answer-json.SITE.CAMERA", "the outcome of a task in JSON", None, SubjectScope::Site, &[Role::Notifier]),
    row(
        "outbox.SITE.verify",
        "a request that waits at the site for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Recognizer],
    ),
    row(
        "outbox.SITE.hardcase",
        "a hard case that waits for the link",
        Some(OUTBOX),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    row("outbox.SITE.update", "an update that waits for the link", Some(OUTBOX), SubjectScope::Site, &[Role::Trainer]),
    row("outbox.SITE.swap", "a report that waits for the link", Some(OUTBOX), SubjectScope::Site, &[Role::Recognizer]),
    row(
        "verify.REASON.SITE.CAMERA",
        "a task sent up to the cloud, with its image",
        Some(VERIFY),
        SubjectScope::Up,
        &[Role::Site],
    ),
    row("verdict.SITE.CAMERA", "what the cloud says about it", Some(VERDICTS), SubjectScope::Down, &[Role::Verifier]),
    row(
        "hardcase.SITE",
        "scores and features of a doubtful task",
        Some(HARDCASES),
        SubjectScope::Up,
        &[Role::Site, Role::Verifier],
    ),
    row("label.SITE.CAMERA", "what a person says a task shows", Some(LABELS), SubjectScope::Site, &[]),
    row(
        "learned.SITE.MODEL",
        "which images an update learned from",
        Some(LEARNED),
        SubjectScope::Site,
        &[Role::Trainer],
    ),
    row("pin.SET.SITE.CAMERA.TASK", "an image that is kept, with its answer", Some(PINNED), SubjectScope::Site, &[]),
    row("round.MODEL.NUMBER.EVENT", "what happens in a round", Some(UPDATES), SubjectScope::Down, &[Role::Aggregator]),
    row("update.MODEL.ROUND.SITE", "what a site learned in a round", Some(UPDATES), SubjectScope::Up, &[Role::Site]),
    row(
        "release.MODEL.NUMBER",
        "what was decided about releases",
        Some(RELEASES),
        SubjectScope::Cloud,
        &[Role::Aggregator, Role::Releaser],
    ),
    row("order.SITE.MODEL", "the release a site shall run", Some(ORDERS), SubjectScope::Down, &[Role::Releaser]),
    row(
        "swap.SITE.WORKER.SLOT",
        "what a worker runs, and what came of it",
        Some(SWAPS),
        SubjectScope::Up,
        &[Role::Site],
    ),
    row("swap.cloud.WORKER.SLOT", "the same of a verifier", Some(SWAPS), SubjectScope::Cloud, &[Role::Verifier]),
    row("dead.images.SITE.ID", "an image given up", Some(DEAD), SubjectScope::Site, &[Role::Recognizer, Role::Janitor]),
    row(
        "dead.answers.SITE.ID",
        "an answer given up",
        Some(DEAD),
        SubjectScope::Site,
        &[Role::Recognizer, Role::Courier],
    ),
    row("dead.outbox.SITE.ID", "a message that could not go up", Some(DEAD), SubjectScope::Site, &[Role::Courier]),
    row("dead.verdicts.SITE.ID", "a verdict the site refused", Some(DEAD), SubjectScope::Site, &[Role::Courier]),
    row("dead.orders.SITE.ID", "an order the site refused", Some(DEAD), SubjectScope::Site, &[Role::Courier]),
    row("dead.updates.SITE.ID", "a round the site refused", Some(DEAD), SubjectScope::Site, &[Role::Courier]),
    row("dead.verify.SITE.ID", "a request the cloud gave up", Some(DEAD), SubjectScope::Cloud, &[Role::Verifier]),
    row("dead.updates.SITE.ID", "an update the cloud refused", Some(DEAD), SubjectScope::Cloud, &[Role::Aggregator]),
    row("audit.SITE", "what was done by hand", Some(AUDIT), SubjectScope::Site, &[]),
    row("audit.cloud", "what was done by hand in the cloud", Some(AUDIT), SubjectScope::Cloud, &[]),
];

/// The subjects a role publishes, of one site or, where none is named, of all.
pub(crate) fn published_by(role: Role, site: Option<&SiteName>) -> Vec<String> {
    SUBJECTS.iter().filter(|row| row.publishers.contains(&role)).map(|row| row.pattern(site)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{PlanScope, StreamSettings, plan_topology};

    /// Whether every subject of a pattern is one of another.
    fn covers(wide: &str, narrow: &str) -> bool {
        let (wide, narrow): (Vec<&str>, Vec<&str>) = (wide.split('.').collect(), narrow.split('.').collect());
        wide.len() == narrow.len() && wide.iter().zip(&narrow).all(|(wide, narrow)| *wide == "*" || wide == narrow)
    }

    #[test]
    fn what_streams_store_is_what_the_table_says() {
        let reef: SiteName = "reef".parse().unwrap();
        let plan = plan_topology(&PlanScope::Both(reef.clone()), &StreamSettings::default());
        for stream in &plan.streams {
            for subject in stream.subjects.iter().filter(|subject| !subject.starts_with(['$', '/'])) {
                // Images that are a level off become dead letters, and letters about nobody's messages are kept.
                if subject.starts_with("image") || subject.contains(".unknown.") || subject.contains(".cloud.") {
                    continue;
                }
                let known = SUBJECTS.iter().any(|row| {
                    row.stream == Some(stream.name.as_str())
                        && (covers(&row.pattern(Some(&reef)), subject) || row.pattern(None) == *subject)
                        || stream.name == "UPDATES" && row.stream == Some(UPDATES) && row.pattern(None) == *subject
                        // One pattern for the four kinds of what waits.
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
            // What is told of answers is stored under its other name.
            assert!(stored || row.form.starts_with("answer.final"), "{subject} in {name}");
        }
    }
}
