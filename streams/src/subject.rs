//! Builds and parses every subject of a message; [`crate::subject_table`] lists them all. Beside these two files, patterns
//! of subjects are spelt where streams take them ([`crate::topology`]) and where a role listens to them
//! ([`crate::permissions`]); a test of the table holds the streams to it.
//!
//! The subjects of sites and of the cloud never overlap: an overlap would store a message twice, once on each side
//! of a leaf link.

use schemas::{CameraName, ModelName, SetName, SiteName, TaskId, VerifyReason};

use crate::error::CarryError;
use crate::subject_table::SUBJECTS;
use crate::topology;

/// Subject of a camera's images.
pub fn image(site: &SiteName, camera: &CameraName) -> String {
    format!("image.{site}.{camera}")
}

/// Subject of how a camera is.
pub fn camera_health(site: &SiteName, camera: &CameraName) -> String {
    format!("camera.{site}.{camera}.health")
}

/// Pattern of how a site's cameras are.
pub fn camera_healths(site: &SiteName) -> String {
    format!("camera.{site}.*.health")
}

/// Subject of the state of what a camera shows.
pub fn camera_state(site: &SiteName, camera: &CameraName) -> String {
    format!("camera.{site}.{camera}.state")
}

/// Pattern of the states of what a site's cameras show.
pub fn camera_states(site: &SiteName) -> String {
    format!("camera.{site}.*.state")
}

/// Pattern of every image subject of every site.
pub fn all_images() -> &'static str {
    "image.>"
}

/// Translates another program's topic for the server's subject mapping: returns the subjects the topic stands for, with
/// wildcards, and the image subject they become.
///
/// `topic` is an MQTT topic filter (`frigate/+/+/snapshot`) or a NATS subject (`frigate.*.*.snapshot`); `camera` is a
/// camera's name, or `$1` for the token at the first wildcard.
///
/// # Errors
/// A sentence that names the invalid argument and the reason.
pub fn map_topic(site: &SiteName, topic: &str, camera: &str) -> Result<(String, String), String> {
    // The conversion that the server itself applies (docs.nats.io, MQTT, topic and subject conversion).
    let from: String = match topic.contains('/') {
        true => {
            let level = |level: &str| match level {
                "" => "/".to_owned(),
                "+" => "*".to_owned(),
                level => level.replace('.', "//"),
            };
            topic.split('/').map(level).collect::<Vec<_>>().join(".")
        }
        false => topic.to_owned(),
    };
    let tokens: Vec<&str> = from.split('.').collect();
    if tokens.iter().any(|token| token.is_empty() || token.contains(|c: char| c.is_whitespace() || c.is_control())) {
        return Err(format!("topic {topic:?} is invalid: it has an empty level or a space"));
    }
    if tokens.iter().any(|token| matches!(*token, "#" | ">")) {
        return Err(format!("topic {topic:?} matches any number of levels; write one + per level"));
    }
    if ["$JS", "$SYS", "$KV", "$O", "$MQTT", "_INBOX", "image", "*"].contains(tokens.first().unwrap_or(&"")) {
        return Err(format!(
            "topic {topic:?} would match messages of Tributary or the server; name another program's topic"
        ));
    }
    let wildcards = tokens.iter().filter(|token| **token == "*").count();
    let to = match camera.strip_prefix('$') {
        Some(number) => {
            let number: usize = number.parse().unwrap_or(0);
            if !(1..=wildcards).contains(&number) {
                return Err(format!(
                    "camera {camera:?} of topic {topic:?} is invalid; use $1 to ${wildcards}, or a name"
                ));
            }
            format!("image.{site}.{{{{wildcard({number})}}}}")
        }
        None => image(site, &camera.parse().map_err(|error: schemas::IdError| format!("topic {topic:?}: {error}"))?),
    };
    Ok((from, to))
}

/// Subject of a final answer in JSON.
pub fn answer_json(site: &SiteName, camera: &CameraName) -> String {
    format!("answer-json.{site}.{camera}")
}

/// Subject of what is stored about a camera, in JSON; `None` if it is about no camera.
pub fn camera_json(stored: &str) -> Option<String> {
    Some(format!("camera-json.{}", stored.strip_prefix("camera.")?))
}

/// Key of the ledger note of the notifier's position in a site's answers.
pub fn notifier_note(site: &SiteName) -> String {
    format!("answer-json-{site}")
}

/// The site and the camera in an image's subject.
pub fn read_image(subject: &str) -> Result<(SiteName, CameraName), CarryError> {
    let expected = "image.<site>.<camera>";
    let invalid = || wrong(subject, expected);
    let mut tokens = subject.split('.');
    let (Some("image"), Some(site), Some(camera), None) = (tokens.next(), tokens.next(), tokens.next(), tokens.next())
    else {
        return Err(invalid());
    };
    Ok((site.parse().map_err(|_| invalid())?, camera.parse().map_err(|_| invalid())?))
}

/// Subject of a provisional answer.
pub fn provisional(site: &SiteName, camera: &CameraName) -> String {
    format!("answer.provisional.{site}.{camera}")
}

/// Subject that a task's outcome is published on. The stream keeps the first outcome in the task's slot
/// ([`final_answer`]) and republishes what it kept on that subject, so nobody hears a second outcome.
pub fn outcome(site: &SiteName, camera: &CameraName, task: TaskId) -> String {
    format!("outcome.{site}.{camera}.{task}")
}

/// The subject under which a publication is stored: the same one, except for an outcome.
pub fn slot_of(subject: &str) -> String {
    match subject.strip_prefix("outcome.") {
        Some(rest) => format!("answer.final.{rest}"),
        None => subject.to_owned(),
    }
}

/// The one slot of a task's final answer.
pub fn final_answer(site: &SiteName, camera: &CameraName, task: TaskId) -> String {
    format!("answer.final.{site}.{camera}.{task}")
}

/// The task in the subject of a final answer.
pub fn read_final_answer(subject: &str) -> Result<TaskId, CarryError> {
    let task = subject.strip_prefix("answer.final.").and_then(|rest| rest.rsplit('.').next());
    task.and_then(|task| task.parse().ok()).ok_or_else(|| wrong(subject, "answer.final.<site>.<camera>.<task>"))
}

/// Pattern of a task's final answer where the camera is not known.
pub fn final_answer_of_any_camera(site: &SiteName, task: TaskId) -> String {
    format!("answer.final.{site}.*.{task}")
}

/// Pattern of a site's final answers, of one camera or of all.
pub fn final_answers(site: &SiteName, camera: Option<&CameraName>) -> String {
    format!("answer.final.{site}.{}.*", camera.map_or("*", CameraName::as_str))
}

/// Pattern of a site's provisional answers, of one camera or of all.
pub fn provisionals(site: &SiteName, camera: Option<&CameraName>) -> String {
    format!("answer.provisional.{site}.{}", camera.map_or("*", CameraName::as_str))
}

/// Checks a subject to subscribe to; wildcards are allowed.
pub fn check_pattern(pattern: &str) -> Result<(), CarryError> {
    let tokens: Vec<&str> = pattern.split('.').collect();
    let last = tokens.len() - 1;
    if pattern.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(wrong(pattern, "a valid subject: it has a blank or a control character"));
    }
    if tokens.iter().any(|token| token.is_empty()) {
        return Err(wrong(
            pattern,
            "a valid subject: write tokens with one dot between them, for example image.site-1.*",
        ));
    }
    if tokens.iter().take(last).any(|token| *token == ">") {
        return Err(wrong(pattern, "a valid subject: > matches all remaining tokens, so it must be the last one"));
    }
    if tokens.iter().any(|token| token.len() > 1 && token.contains(['*', '>'])) {
        return Err(wrong(pattern, "a valid subject: * and > match whole tokens, not parts of one"));
    }
    Ok(())
}

/// Subject of a message that waits for the link.
pub fn outbox(site: &SiteName, kind: OutboxKind) -> String {
    format!("outbox.{site}.{}", kind.as_str())
}

/// Kind of a message that waits for the link; a token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxKind {
    /// A task to verify.
    Verify,
    /// A hard case.
    HardCase,
    /// An update of a model's weights.
    Update,
    /// A worker's report on the release it runs.
    Swap,
}

impl OutboxKind {
    /// The token in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            OutboxKind::Verify => "verify",
            OutboxKind::HardCase => "hardcase",
            OutboxKind::Update => "update",
            OutboxKind::Swap => "swap",
        }
    }

    /// The kind in a subject of the outbox.
    pub fn read(subject: &str) -> Result<Self, CarryError> {
        match subject.strip_prefix("outbox.").and_then(|rest| rest.rsplit('.').next()) {
            Some("verify") => Ok(OutboxKind::Verify),
            Some("hardcase") => Ok(OutboxKind::HardCase),
            Some("update") => Ok(OutboxKind::Update),
            Some("swap") => Ok(OutboxKind::Swap),
            _ => Err(wrong(subject, "outbox.<site>.<kind>, with the kind verify, hardcase, update or swap")),
        }
    }
}

/// Whether a message of the outbox may go to a subject in the cloud: one for its own kind and its own site.
pub fn is_uploadable(kind: OutboxKind, site: &SiteName, to: &str) -> bool {
    let is_token = |text: &str| !text.is_empty() && !text.contains(['*', '>', ' ', '\t', '\r', '\n']);
    let tokens: Vec<&str> = to.split('.').collect();
    let named = match (kind, &tokens[..]) {
        (OutboxKind::Verify, ["verify", _, named, _])
        | (OutboxKind::HardCase, ["hardcase", named])
        | (OutboxKind::Update, ["update", _, _, named])
        | (OutboxKind::Swap, ["swap", named, _, _]) => *named,
        _ => return false,
    };
    named == site.as_str() && tokens.iter().all(|part| is_token(part))
}

/// Whether a dead letter's message may be published again on its subject: whoever redrives it has more rights than
/// whoever wrote the dead letter. `stream` and `site` come from the dead letter. Messages from the cloud are not
/// redriven at a site.
pub fn may_be_redelivered(stream: &str, site: &SiteName, subject: &str) -> bool {
    let tokens: Vec<&str> = subject.split('.').collect();
    let site = site.as_str();
    match (stream, &tokens[..]) {
        // Images are stored whatever their subject looks like, malformed ones too.
        (topology::IMAGES, ["image", ..] | ["/", "image", ..]) => true,
        (topology::ANSWERS, ["answer", "provisional", named, _]) => *named == site,
        (topology::OUTBOX, ["outbox", named, _]) => *named == site && OutboxKind::read(subject).is_ok(),
        (topology::VERIFY, ["verify", _, named, _]) => *named == site,
        (topology::UPDATES, ["update", _, _, named]) => *named == site,
        _ => false,
    }
}

/// The slot of an image in a pinned set.
pub fn pin(set: &SetName, site: &SiteName, camera: &CameraName, task: TaskId) -> String {
    format!("pin.{set}.{site}.{camera}.{task}")
}

/// Pattern of the images of one pinned set, or of all.
pub fn pins(set: Option<&SetName>, site: &SiteName) -> String {
    format!("pin.{}.{site}.*.*", set.map_or("*", SetName::as_str))
}

/// The set and the task in the subject of a pinned image.
pub fn read_pin(subject: &str) -> Result<(SetName, TaskId), CarryError> {
    let expected = "pin.<set>.<site>.<camera>.<task>";
    let tokens: Vec<&str> = subject.split('.').collect();
    let ["pin", set, _, _, task] = tokens[..] else { return Err(wrong(subject, expected)) };
    let parsed = set.parse().ok().zip(task.parse().ok());
    parsed.ok_or_else(|| wrong(subject, expected))
}

/// Checks a subject that images are replayed to: it must be a single subject, and not one on which workers expect
/// other messages.
pub fn check_replay(subject: &str) -> Result<(), CarryError> {
    check_pattern(subject)?;
    if subject.split('.').any(|token| token == "*" || token == ">") {
        return Err(wrong(subject, "a single subject: * and > match many"));
    }
    let first = subject.split('.').next().unwrap_or_default();
    let is_ours = first != "image" && SUBJECTS.iter().any(|row| row.form.split('.').next() == Some(first));
    if is_ours || first.starts_with('_') || first.starts_with('$') {
        return Err(wrong(subject, "an image subject or one of your own: workers expect other messages there"));
    }
    if first == "image" { read_image(subject).map(|_| ()) } else { Ok(()) }
}

/// Subject of a site's hard cases.
pub fn hardcase(site: &SiteName) -> String {
    format!("hardcase.{site}")
}

/// Subject of a person's labels.
pub fn label(site: &SiteName, camera: &CameraName) -> String {
    format!("label.{site}.{camera}")
}

/// Subject of the lists of images that a site's updates of a model learned from.
pub fn learned(site: &SiteName, model: &ModelName) -> String {
    format!("learned.{site}.{model}")
}

/// Pattern of the lists of learned images of all models at a site.
pub fn learned_at(site: &SiteName) -> String {
    format!("learned.{site}.*")
}

/// Subject of a site's update for a round; round 0 when no round asked for it.
pub fn update(model: &ModelName, round: u64, site: &SiteName) -> String {
    format!("update.{model}.{round}.{site}")
}

/// The slot of a round's event: `opened`, `closed`, `ended`, or `remade-` and a release.
pub fn round(model: &ModelName, number: u64, event: &str) -> String {
    format!("round.{model}.{number}.{event}")
}

/// Patterns of all events of a model's rounds, and of all updates for it.
pub fn rounds_and_updates(model: &ModelName) -> Vec<String> {
    vec![format!("round.{model}.*.*"), format!("update.{model}.*.*")]
}

/// Pattern of one kind of event of a model's rounds: `opened`, `closed` or `ended`; `*` for all.
pub fn rounds(model: &ModelName, event: &str) -> String {
    format!("round.{model}.*.{event}")
}

/// The slot of a rollout decision about a model.
pub fn release(model: &ModelName, number: u64) -> String {
    format!("release.{model}.{number}")
}

/// Pattern of all rollout decisions about a model.
pub fn releases(model: &ModelName) -> String {
    format!("release.{model}.*")
}

/// Subject of the orders to a site about a model.
pub fn order(site: &SiteName, model: &ModelName) -> String {
    format!("order.{site}.{model}")
}

/// Key of the ledger note with a site's current order for a model.
pub fn order_note(model: &ModelName) -> String {
    format!("release.{model}")
}

/// Subject of a worker's latest report about an interval.
pub fn swap(site: &SiteName, worker: &str, slot_ms: u64) -> String {
    format!("swap.{site}.{worker}.{slot_ms}")
}

/// Whether the subject of a report names this site and worker.
pub fn is_swap_of(subject: &str, site: &SiteName, worker: &str) -> bool {
    let tokens: Vec<&str> = subject.split('.').collect();
    matches!(tokens[..], ["swap", own, by, _] if own == site.as_str() && by == worker)
}

/// Key of the ledger note with the open round that a site was asked to join.
pub fn round_note(model: &ModelName) -> String {
    format!("round.{model}")
}

/// Subject of a ledger note. Each site and the cloud have a ledger of their own.
pub fn note_subject(key: &str) -> String {
    format!("$KV.ledger.{key}")
}

/// Subject of a request to verify a task.
pub fn verify(reason: VerifyReason, site: &SiteName, camera: &CameraName) -> String {
    format!("verify.{}.{site}.{camera}", reason.as_str())
}

/// Pattern of the requests of a site, for any reason.
pub fn verifications(site: &SiteName) -> String {
    format!("verify.*.{site}.*")
}

/// Subject of the verdicts for a camera.
pub fn verdict(site: &SiteName, camera: &CameraName) -> String {
    format!("verdict.{site}.{camera}")
}

/// Subject of the audit of a site, or of the cloud.
pub fn audit(place: &SiteName) -> String {
    format!("audit.{place}")
}

/// The slot of a dead letter; `stream` is where the message was taken from.
pub fn dead(stream: &str, site: &SiteName, id: TaskId) -> String {
    format!("dead.{}.{site}.{id}", stream.to_lowercase())
}

fn wrong(subject: &str, expected: &'static str) -> CarryError {
    CarryError::Subject { subject: subject.chars().take(100).collect(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_belongs_to_the_site_and_worker_in_its_subject() {
        let site: SiteName = "reef".parse().unwrap();
        assert!(is_swap_of(&swap(&site, "edge-7", 5000), &site, "edge-7"));
        for (subject, worker) in
            [("swap.farm.edge-7.5000", "edge-7"), ("swap.reef.edge-8.5000", "edge-7"), ("swap.reef.a.b.5000", "a.b")]
        {
            assert!(!is_swap_of(subject, &site, worker), "{subject} as {worker}");
        }
    }

    #[test]
    fn another_programs_topic_maps_to_a_camera() {
        let site = "reef".parse().unwrap();
        let map = |topic, camera| map_topic(&site, topic, camera);
        let pair = |from: &str, to: &str| Ok((from.to_owned(), to.to_owned()));
        assert_eq!(map("frigate/+/+/snapshot", "$1"), pair("frigate.*.*.snapshot", "image.reef.{{wildcard(1)}}"));
        assert_eq!(map("frigate.*.*.snapshot", "$2"), pair("frigate.*.*.snapshot", "image.reef.{{wildcard(2)}}"));
        assert_eq!(map("/image/reef/+", "$1"), pair("/.image.reef.*", "image.reef.{{wildcard(1)}}"));
        assert_eq!(map("yard/snap.jpg", "yard"), pair("yard.snap//jpg", "image.reef.yard"));
        for (topic, camera) in [
            ("frigate/#", "$1"),
            ("frigate/snapshot", "$1"),
            ("frigate/+/snapshot", "$2"),
            ("frigate/+", "$"),
            ("a b/+", "$1"),
            ("a..b", "x"),
            ("", "x"),
            ("image/+/+", "$2"),
            ("+/snapshot", "$1"),
            ("yard/snapshot", "Front Door"),
        ] {
            assert!(map(topic, camera).is_err(), "{topic} {camera}");
        }
    }

    #[test]
    fn an_image_subject_round_trips_and_others_are_refused() {
        let (site, camera) = ("reef".parse().unwrap(), "cam-1".parse().unwrap());
        assert_eq!(read_image(&image(&site, &camera)).unwrap(), (site, camera));
        for subject in ["", "image", "image.a", "image.a.b.c", "answer.a.b", "image..b", "image.a.*", "image.>.b"] {
            assert!(read_image(subject).is_err(), "{subject:?} was accepted");
        }
    }

    #[test]
    fn a_pattern_that_no_server_would_match_is_refused() {
        for pattern in ["image.>", ">", "*.*.*", "answer.final.reef.*.x", "a"] {
            assert!(check_pattern(pattern).is_ok(), "{pattern:?} was refused");
        }
        for pattern in ["", ".", "image.", "image..b", "image.>.b", "image.ca*", "image. b", "image>", "a\n"] {
            assert!(check_pattern(pattern).is_err(), "{pattern:?} was accepted");
        }
    }

    #[test]
    fn images_are_replayed_to_one_subject_that_carries_nothing_else() {
        for subject in ["image.lab.cam-1", "replay.x", "a"] {
            assert!(check_replay(subject).is_ok(), "{subject:?} was refused");
        }
        for subject in
            ["image.lab", "image.>", "answer.final.a.b.c", "verdict.a.b", "$JS.API.x", "_INBOX.a", "replay.*", ""]
        {
            assert!(check_replay(subject).is_err(), "{subject:?} was accepted");
        }
    }

    #[test]
    fn an_outbox_message_goes_only_to_a_subject_of_its_kind_and_site() {
        let site: SiteName = "reef".parse().unwrap();
        for (kind, to) in [
            (OutboxKind::Verify, "verify.doubtful.reef.cam-1"),
            (OutboxKind::HardCase, "hardcase.reef"),
            (OutboxKind::Update, "update.fish.3.reef"),
            (OutboxKind::Swap, "swap.reef.host-1.600000"),
        ] {
            assert!(is_uploadable(kind, &site, to), "{to}");
            assert!(!is_uploadable(kind, &"farm".parse().unwrap(), to), "{to} belongs to another site");
        }
        for to in
            ["", "*", "a b", "nowhere.at.all", "$KV.ledger.x", "verify.*.reef.cam", "order.reef.m", "hardcase.reef"]
        {
            assert!(!is_uploadable(OutboxKind::Verify, &site, to), "{to:?}");
        }
    }

    #[test]
    fn a_dead_letter_goes_back_only_where_it_came_from() {
        let site: SiteName = "reef".parse().unwrap();
        for (stream, subject) in [
            (topology::IMAGES, "image.reef.cam-1"),
            (topology::IMAGES, "image.reef.yard.cam-1"),
            (topology::IMAGES, "/.image.reef.cam-1"),
            (topology::OUTBOX, "outbox.reef.update"),
            (topology::ANSWERS, "answer.provisional.reef.cam-1"),
            (topology::VERIFY, "verify.doubtful.reef.cam-1"),
            (topology::UPDATES, "update.m.3.reef"),
        ] {
            assert!(may_be_redelivered(stream, &site, subject), "{stream} {subject}");
        }
        for (stream, subject) in [
            (topology::IMAGES, "$KV.ledger.policy"),
            (topology::IMAGES, "$JS.API.STREAM.PURGE.IMAGES"),
            (topology::OUTBOX, "outbox.farm.update"),
            (topology::OUTBOX, "outbox.reef.order"),
            (topology::VERIFY, "verify.doubtful.farm.cam-1"),
            (topology::VERDICTS, "verdict.reef.cam-1"),
            (topology::UPDATES, "round.m.3.opened"),
            ("KV_ledger", "$KV.ledger.policy"),
            (topology::ANSWERS, "answer.final.reef.cam-1.x"),
        ] {
            assert!(!may_be_redelivered(stream, &site, subject), "{stream} {subject}");
        }
    }

    #[test]
    fn a_final_subject_names_its_task() {
        let (site, camera, task) = ("reef".parse().unwrap(), "cam-1".parse().unwrap(), TaskId::new_random());
        assert_eq!(read_final_answer(&final_answer(&site, &camera, task)).unwrap(), task);
        assert!(read_final_answer("answer.final.reef.cam-1.x").is_err());
        assert_eq!(slot_of(&outcome(&site, &camera, task)), final_answer(&site, &camera, task));
    }
}
