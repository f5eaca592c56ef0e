//! `tributary answers`: stored answers, new ones as they arrive, or the one outcome of a task.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::task::HEADER_TASK;
use schemas::{Answer, AnswerStage, CameraName, TaskId, decode};
use streams::backoff::wait_about;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, subject, topology};
use tokio::time::Instant;

use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout, task_lookup};

/// Pause before reading is retried.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the outcome of one task is looked up.
const LOOKUP_EVERY: Duration = Duration::from_millis(100);

/// Most objects of an answer that are listed; JSON has all.
const MOST_OBJECTS: usize = 30;

const EXAMPLES: &str = "\
Every image gets exactly one final answer. A provisional answer is the site's own answer to a doubtful image while the \
cloud verifies it. A line shows the time of the answer (UTC), camera, label (of a detector: what it found), confidence, \
route, reason, the time from storing to answering, how late it was if its deadline had passed, and the task. The edges \
of an object (left, top, right, bottom) are in percent of the image.

Examples:
  tributary answers                               the newest 20, one per line
  tributary answers --follow --camera cam-1       and new ones as they arrive
  tributary answers --file dock/0042              of files whose name contains this
  tributary answers --follow --json | jq .label   as JSON, one object per line
  tributary answers 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --wait 30
                                                  one task in full, once it is answered";

/// Read answers: the newest, new ones as they arrive, or the one of a task.
///
/// Prints the site's stored answers, oldest first. Reading removes nothing.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AnswersArgs {
    /// Show the outcome of this task in full, named by the first digits of its id; `publish --print-ids` prints ids.
    #[arg(value_name = "TASK-ID", conflicts_with_all = ["follow", "last", "provisional"])]
    task: Option<String>,
    /// Continue with new answers as they arrive, until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Show the newest N stored answers; 0 with --follow shows new ones only.
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Show provisional answers, too.
    #[arg(long)]
    provisional: bool,
    /// Show answers of this camera only.
    #[arg(long, value_name = "NAME")]
    camera: Option<CameraName>,
    /// Show images whose file name contains TEXT only, ignoring case; searches back until --last are found.
    #[arg(long, value_name = "TEXT", conflicts_with = "task")]
    file: Option<String>,
    /// With TASK-ID: seconds to wait for an outcome.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "task")]
    wait: u64,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

/// Reads answers.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &AnswersArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "answers").await?;
    match &args.task {
        Some(task) => one(&site, task_lookup::find_task(&site, task).await?, args).await,
        None => many(&site, args).await,
    }
}

async fn many(site: &SiteTarget, args: &AnswersArgs) -> anyhow::Result<()> {
    let camera = args.camera.as_ref();
    let mut subjects = vec![subject::final_answers(&site.name, camera)];
    if args.provisional {
        subjects.push(subject::provisionals(&site.name, camera));
    }
    let look = StreamRange { subjects, ..StreamRange::default() };
    let after = reader::stream_level(&site.bus, topology::ANSWERS).await?.last_sequence;
    let stored = match args.last {
        0 => Vec::new(),
        last => {
            let wanted = |record: &StoredMessage| is_of_file(record, args.file.as_deref());
            reader::newest_messages(&site.bus, topology::ANSWERS, look.clone(), last, wanted).await?
        }
    };
    if stored.is_empty() && !args.follow {
        let of_camera = camera.map(|camera| format!(" from camera {camera}")).unwrap_or_default();
        let of_file = args.file.as_ref().map(|file| format!(" of a file named {file:?}")).unwrap_or_default();
        stdout::print_note(format_args!(
            "no answers at site {}{of_camera}{of_file} yet: publish images with `tributary publish`",
            site.name
        ));
    }
    for record in &stored {
        show(record, args.json)?;
    }
    let after = stored.last().map_or(after, |record| record.sequence.max(after));
    if args.follow { follow(&site.bus, look, after, args).await } else { Ok(()) }
}

/// Whether the image's file name contains the text; true for every image without one.
fn is_of_file(record: &StoredMessage, text: Option<&str>) -> bool {
    let Some(text) = text else { return true };
    let file = decode::<Answer>(&record.payload).ok().and_then(|answer| answer.file);
    file.is_some_and(|file| file.to_lowercase().contains(&text.to_lowercase()))
}

async fn follow(bus: &Bus, look: StreamRange, mut after: u64, args: &AnswersArgs) -> anyhow::Result<()> {
    loop {
        let part = StreamRange { from_sequence: Some(after + 1), ..look.clone() };
        match reader::follow_range(bus, topology::ANSWERS, part).await {
            Ok(records) => {
                let mut records = std::pin::pin!(records.take_until(Box::pin(restarted(bus))));
                while let Some(Ok(record)) = records.next().await {
                    after = record.sequence;
                    if is_of_file(&record, args.file.as_deref()) {
                        show(&record, args.json)?;
                    }
                }
                tracing::warn!("read interrupted; resuming");
            }
            Err(error) => tracing::warn!(%error, "read failed; retrying"),
        }
        wait_about(RETRY_AFTER).await;
    }
}

/// Waits until another server process answers: after a restart, an open reader stays silent for long.
async fn restarted(bus: &Bus) {
    let server = bus.server_id();
    while bus.server_id() == server {
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

fn show(record: &StoredMessage, json: bool) -> anyhow::Result<()> {
    if json {
        return match schemas::codec::to_json(&record.payload) {
            Some(value) => stdout::json_line(&value),
            None => {
                tracing::warn!(sequence = record.sequence, "answer skipped: not MessagePack");
                Ok(())
            }
        };
    }
    match decode::<Answer>(&record.payload) {
        Ok(answer) => stdout::print_line(line(&answer)),
        Err(error) => {
            tracing::warn!(sequence = record.sequence, %error, "answer skipped");
            Ok(())
        }
    }
}

/// One answer in one line; the task id comes last, where a narrow screen wraps.
fn line(answer: &Answer) -> String {
    let label = format!("{}{}", what(answer), wrong(answer));
    let confidence = answer.confidence.map(format::percent).unwrap_or_default();
    let way = match answer.stage {
        AnswerStage::Provisional => "provisional".to_owned(),
        AnswerStage::Final => answer.route.to_string(),
    };
    let took = format::format_span(answer.answered_at_ms.saturating_sub(answer.published_at_ms) as f64);
    let (time, reason) = (format::format_time(answer.answered_at_ms), format::wire_word(&answer.reason));
    let camera = answer.camera.as_str();
    let late = answer.late_ms.map(|ms| format!("  {} late", format::format_span(ms as f64))).unwrap_or_default();
    format!("{time}  {camera:10}  {label:20} {confidence:>7}  {way:11}  {reason:15}  {took:>8}{late}  {}", answer.task)
}

fn what(answer: &Answer) -> String {
    if let Some(objects) = &answer.objects {
        return format::summarize_objects(objects);
    }
    match (&answer.label, &answer.fault) {
        (Some(label), _) => format::plain_text(label),
        (None, Some(fault)) => format!("({})", format::plain_text(fault.kind.as_str())),
        (None, None) => "(nothing)".into(),
    }
}

/// The true label, where it is known and differs.
fn wrong(answer: &Answer) -> String {
    let truth = answer.truth.as_ref().filter(|truth| answer.label.as_ref() != Some(truth));
    truth.map(|truth| format!(" (true label {})", format::plain_text(truth))).unwrap_or_default()
}

async fn one(site: &SiteTarget, task: TaskId, args: &AnswersArgs) -> anyhow::Result<()> {
    let slot = match &args.camera {
        Some(camera) => subject::final_answer(&site.name, camera, task),
        None => subject::final_answer_of_any_camera(&site.name, task),
    };
    let until = Instant::now() + Duration::from_secs(args.wait);
    let mut outcome = reader::last_message(&site.bus, topology::ANSWERS, &slot).await?;
    while outcome.is_none() && Instant::now() < until {
        tokio::time::sleep(LOOKUP_EVERY).await;
        outcome = reader::last_message(&site.bus, topology::ANSWERS, &slot).await?;
    }
    let found = match outcome {
        Some(record) => record,
        None => provisional(site, task, args.camera.as_ref()).await?.with_context(|| {
            format!(
                "no answer for task {task} at site {}: if it was published there, wait for it with --wait SECONDS, \
                 and look at the queue with `tributary status`",
                site.name
            )
        })?,
    };
    if args.json {
        return stdout::json_line(&schemas::codec::to_json(&found.payload).context("answer is not MessagePack")?);
    }
    stdout::print_line(report(&decode(&found.payload)?, clock::now_ms()))
}

/// The provisional answer of a task, found by its headers: the subject does not name the task.
async fn provisional(
    site: &SiteTarget,
    task: TaskId,
    camera: Option<&CameraName>,
) -> anyhow::Result<Option<StoredMessage>> {
    let subjects = vec![subject::provisionals(&site.name, camera)];
    let look = StreamRange { subjects, headers_only: true, ..StreamRange::default() };
    let task = task.to_string();
    let wanted = |record: &StoredMessage| record.header(HEADER_TASK) == Some(task.as_str());
    let Some(found) = reader::newest_messages(&site.bus, topology::ANSWERS, look, 1, wanted).await?.pop() else {
        return Ok(None);
    };
    Ok(reader::message_at(&site.bus, topology::ANSWERS, found.sequence).await?)
}

/// One answer in full.
fn report(answer: &Answer, now_ms: u64) -> String {
    let mut rows = vec![
        ["task".to_owned(), answer.task.to_string()],
        ["from".into(), format!("camera {} at site {}", answer.camera, answer.site)],
        ["answer".into(), verdict(answer)],
        ["stage".into(), stage(answer, now_ms)],
    ];
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| [name.to_owned(), value]));
    };
    row("truth", answer.truth.as_deref().map(format::plain_text));
    let ranked = answer
        .top
        .iter()
        .map(|best| format!("{} {}", format::plain_text(&best.label), format::percent(best.confidence)));
    let labels = answer.labels.as_ref().map(|labels| {
        let ranked = labels
            .iter()
            .map(|ranked| format!("{} {}", format::plain_text(&ranked.label), format::percent(ranked.confidence)));
        ranked.collect::<Vec<_>>().join(", ")
    });
    row(
        "labels",
        labels.map(|labels| if labels.is_empty() { "none of the model's labels".to_owned() } else { labels }),
    );
    for object in answer.objects.iter().flatten().take(MOST_OBJECTS) {
        row("object", Some(format::object_row(object).join("  ")));
    }
    let more = answer.objects.as_ref().map_or(0, Vec::len).saturating_sub(MOST_OBJECTS);
    row("objects", (more > 0).then(|| format!("and {more} more; --json lists all")));
    row("top", Some(ranked.collect::<Vec<_>>().join(", ")).filter(|best| !best.is_empty()));
    row(
        "site",
        answer.edge.as_ref().map(|edge| match &edge.objects {
            Some(objects) => format::summarize_objects(objects),
            None => format!("{} {}", format::plain_text(&edge.label), format::percent(edge.confidence)),
        }),
    );
    row("release", answer.release.as_ref().map(|release| release.short().to_owned()));
    row(
        "fault",
        answer
            .fault
            .as_ref()
            .map(|fault| format!("{}: {}", format::plain_text(fault.kind.as_str()), format::plain_text(&fault.reason))),
    );
    row("remedy", answer.fault.as_ref().map(|fault| format::plain_text(&fault.remedy)));
    row("file", answer.file.as_deref().map(format::plain_text));
    row("image", Some(format!("message {} of {}", answer.image_sequence, topology::IMAGES)));
    row(
        "tile",
        answer.tile.as_ref().map(|tile| {
            let schemas::Tile { scan, x_px, y_px, width_px, height_px, .. } = tile;
            format!("{width_px}x{height_px} at {x_px},{y_px} of scan {scan}")
        }),
    );
    row("captured", answer.captured_at_ms.map(format::format_time));
    row("published", Some(format::format_time(answer.published_at_ms)));
    let took = answer.answered_at_ms.saturating_sub(answer.published_at_ms);
    row(
        "answered",
        Some(format!("{}, {} later", format::format_time(answer.answered_at_ms), format::format_span(took as f64))),
    );
    row("late", answer.late_ms.map(|ms| format!("{} after the publisher's deadline", format::format_span(ms as f64))));
    row("reused", answer.reused.map(|task| format!("the answer of task {task}: the picture hardly differs")));
    let since =
        answer.since_ms.map(|since_ms| format!(", since {}", format::format_time(since_ms))).unwrap_or_default();
    row("state", answer.state.as_deref().map(|state| format!("{}{since}", format::plain_text(state))));
    let faults = answer.picture.iter().flat_map(|picture| &picture.faults);
    let faults = faults.map(|fault| format::plain_text(fault.as_str())).collect::<Vec<_>>().join(", ");
    row("picture", Some(faults).filter(|faults| !faults.is_empty()));
    row("steps", Some(steps(answer)).filter(|steps| !steps.is_empty()));
    for note in &answer.notes {
        row("note", Some(format::plain_text(note)));
    }
    rows.iter().map(|[name, value]| format!("{name:10} {value}")).collect::<Vec<_>>().join("\n")
}

fn verdict(answer: &Answer) -> String {
    let confidence = answer.confidence.map(|ratio| format!(" {}", format::percent(ratio))).unwrap_or_default();
    format!("{}{confidence}", what(answer))
}

fn stage(answer: &Answer, now_ms: u64) -> String {
    let reason = format::wire_word(&answer.reason);
    match answer.stage {
        AnswerStage::Final => format!("final, by route {}: {reason}", answer.route),
        AnswerStage::Provisional => {
            let left_ms = answer.deadline_at_ms.unwrap_or(0).saturating_sub(now_ms);
            format!("provisional ({reason}): waits for a verdict, {} left", format::format_span(left_ms as f64))
        }
    }
}

fn steps(answer: &Answer) -> String {
    let timings = &answer.timings;
    let steps = [
        ("queued", timings.queue_us),
        ("fetched", timings.fetch_us),
        ("waited", timings.wait_us),
        ("decoded", timings.decode_us),
        ("inferred", timings.infer_us),
        ("verified", timings.verify_us),
    ];
    let steps = steps.into_iter().filter(|(_, us)| *us > 0).map(|(name, us)| format!("{name} {}", format::span_us(us)));
    let batch = (timings.batch_size > 0).then(|| format!("batch of {}", timings.batch_size));
    steps.chain(batch).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::answer::Prediction;
    use schemas::task::StorageStamp;
    use schemas::{Reason, ReleaseId, Route, Task};

    fn answer(stage: AnswerStage) -> Answer {
        let (site, camera) = ("reef".parse().unwrap(), "cam-1".parse().unwrap());
        let stored = StorageStamp { site, camera, sequence: 4, stored_at_ns: 1_000_000_000_000 };
        let task = Task::from_id(&stored, TaskId::from_name("a"));
        let release = ReleaseId::from_sha256([1; 32]);
        let prediction = Prediction {
            label: "coat".into(),
            confidence: 0.613,
            top: Vec::new(),
            labels: None,
            objects: None,
            release,
            temperature: None,
            novelty: None,
        };
        Answer::for_task(&task, stage, Route::Edge, Reason::LowConfidence, 1_000_012).with_prediction(prediction)
    }

    #[test]
    fn a_line_shows_label_confidence_reason_and_time() {
        let line = line(&answer(AnswerStage::Final));
        for part in ["cam-1", "coat", "61.3 %", "edge", "low_confidence", "12 ms", &TaskId::from_name("a").to_string()]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_wrong_answer_shows_the_truth_and_a_right_one_does_not() {
        let with = |truth: &str| line(&Answer { truth: Some(truth.into()), ..answer(AnswerStage::Final) });
        assert!(with("shirt").contains("coat (true label shirt)"));
        assert!(!with("coat").contains("true label"));
    }

    #[test]
    fn a_late_answer_says_so() {
        let late = Answer { late_ms: Some(1_500), ..answer(AnswerStage::Final) };
        assert!(line(&late).contains("1.5 s late"), "{}", line(&late));
        assert!(report(&late, 0).contains("1.5 s after the publisher's deadline"), "{}", report(&late, 0));
        assert!(!line(&answer(AnswerStage::Final)).contains(" late"));
    }

    #[test]
    fn what_a_camera_adds_is_shown() {
        let black = r#"{"brightness_ratio":0,"contrast_ratio":0,"white_ratio":0,"faults":["black","frozen"]}"#;
        let seen = Answer {
            picture: schemas::PictureReport::read(black),
            reused: Some(TaskId::from_name("before")),
            state: Some("open".into()),
            since_ms: Some(1_000_000_000_000),
            ..answer(AnswerStage::Final)
        };
        let text = report(&seen, 0);
        let before = format!("the answer of task {}", TaskId::from_name("before"));
        for part in ["open, since 2001-09-09", &before, "picture    black, frozen"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let plain = report(&answer(AnswerStage::Final), 0);
        assert!(!["reused", "state", "picture"].iter().any(|word| plain.contains(word)), "{plain}");
    }

    #[test]
    fn a_provisional_answer_shows_the_time_left_for_a_verdict() {
        let answer = Answer { deadline_at_ms: Some(1_060_000), ..answer(AnswerStage::Provisional) };
        let report = report(&answer, 1_000_000);
        assert!(report.contains("provisional (low_confidence)") && report.contains("1.0 min"), "{report}");
    }

    #[test]
    fn a_task_without_a_label_shows_its_fault() {
        let fault = schemas::FaultNote::new("image_truncated", "it ends early", "send all of it");
        let dead = Answer { label: None, confidence: None, fault: Some(fault), ..answer(AnswerStage::Final) };
        assert!(line(&dead).contains("(image_truncated)"));
        assert!(report(&dead, 0).contains("send all of it"));
    }
}
