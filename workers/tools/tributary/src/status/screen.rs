//! The state of a site as text; problems come last, each with what to do. Pure.

use std::collections::BTreeMap;

use schemas::{
    AnswerTotals, CameraHealth, CameraState, CanaryReport, DecisionReport, Heartbeat, MissingMeasure, ModelAccuracy,
    OutcomeReport, Role, RoundState, TrainerState, TrainingHour, TrainingReport,
};

use training::holdout::ratio_interval;

use super::gather::{CloudStatus, QueueStatus, SiteStatus};
use super::{drift, reuse};
use crate::camera_table::{CAMERA_HEAD, camera_cells, camera_problem};
use crate::release::standing::{FINDING_HEAD, finding_cells};
use crate::{decision_text, format};

/// A fuller stream is reported as a problem.
const NEARLY_FULL_RATIO: f64 = 0.9;

/// The whole screen.
pub(super) fn text(status: &SiteStatus) -> String {
    let mut lines = vec![heading(status), String::new()];
    let mut row = |name: &str, text: String| lines.push(format!("  {name:9} {text}"));
    row("images", images(&status.images));
    row("oldest", oldest(status));
    row("answers", answers(status));
    status
        .outcomes
        .iter()
        .filter_map(|outcomes| totals(outcomes.totals.as_ref()?))
        .for_each(|text| row("totals", text));
    row("outbox", outbox(status));
    row("link", link(status));
    row("cloud", cloud(&status.cloud));
    decisions(status).into_iter().for_each(|decision| row("decision", decision));
    drift::line(&status.workers).into_iter().for_each(|line| row("drift", line));
    reuse::line(&status.workers).into_iter().for_each(|line| row("reuse", line));
    trainings(status).into_iter().for_each(|training| row("training", training));
    rounds(status).into_iter().for_each(|round| row("rounds", round));
    let scaled = all_workers(status).filter_map(|beat| Some((&beat.role, beat.scale.as_ref()?)));
    scaled.for_each(|(role, why)| {
        row("replicas", format!("{}s: {}", format::plain_text(role.as_str()), format::plain_text(why)))
    });
    releases(status).into_iter().for_each(|text| row("releases", text));
    cameras(status).into_iter().for_each(|text| row("cameras", text));
    row("dead", dead_letters(status));
    lines.push(String::new());
    lines.push(workers(status));
    lines.push(String::new());
    match &problems(status)[..] {
        [] => lines.push("No problems.".into()),
        problems => lines.extend(problems.iter().map(|problem| format!("! {problem}"))),
    }
    lines.join("\n")
}

fn heading(status: &SiteStatus) -> String {
    let server = &status.server;
    let durability = match &server.durability {
        Some(durability) => format!(", {}", format::wire_word(durability)),
        None => String::new(),
    };
    let (site, url, version) = (&status.site, &server.url, &server.version);
    format!("site {site} at {url}, nats-server {version}{durability}, {}", format::format_time(status.at_ms))
}

fn used(queue: &QueueStatus) -> String {
    match queue.level.max_bytes {
        0 => format::format_size(queue.level.bytes),
        max_bytes => format!("{} of {}", format::format_size(queue.level.bytes), format::format_size(max_bytes)),
    }
}

fn work(queue: &QueueStatus) -> String {
    match queue.queued_s {
        Some(queued_s) if queue.waiting > 0 => {
            format!("{} waiting, {} of work", queue.waiting, format::format_span(queued_s * 1000.0))
        }
        _ => format!("{} waiting", queue.waiting),
    }
}

fn answers(status: &SiteStatus) -> String {
    let SiteStatus { answers, provisional, late_answers, .. } = status;
    let has_totals = status.outcomes.as_ref().is_some_and(|outcomes| outcomes.totals.is_some());
    let late = match late_answers {
        1.. if !has_totals => format!("; {late_answers} late since the workers started"),
        _ => String::new(),
    };
    format!("{} stored; {provisional} provisional, waiting for a final one{late}", answers.messages)
}

fn images(images: &QueueStatus) -> String {
    format!("{} stored ({}); {}", images.level.messages, used(images), work(images))
}

/// The oldest image without a final answer; or that there is none.
fn oldest(status: &SiteStatus) -> String {
    let ago = |at_ms: u64| format::format_span(status.at_ms.saturating_sub(at_ms) as f64);
    let seen = |outcomes: &OutcomeReport| match outcomes.seen_at_ms.filter(|seen| status.at_ms > seen + RECENT_COUNT_MS)
    {
        Some(seen_at_ms) => format!(" (counted {} ago)", ago(seen_at_ms)),
        None => String::new(),
    };
    match (&status.outcomes, status.oldest_unanswered_at_ms) {
        (Some(outcomes), _) => match (outcomes.oldest_sequence, outcomes.oldest_at_ms) {
            (Some(sequence), at_ms) => format!(
                "image {sequence} is unanswered{}; {} without a final answer, {} of them with a provisional one{}",
                at_ms
                    .map(|at_ms| format!(" for {}", format::format_span(waits_ms(status, outcomes, at_ms))))
                    .unwrap_or_default(),
                outcomes.open,
                outcomes.provisional,
                seen(outcomes)
            ),
            (None, _) => format!("every stored image has its final answer{}", seen(outcomes)),
        },
        (None, Some(at_ms)) => format!("an image has waited for {}; no janitor counts outcomes", ago(at_ms)),
        (None, None) => "no image is waiting; no janitor counts outcomes".into(),
    }
}

/// What became of the site's images since its first answer; absent before the first verdict.
fn totals(totals: &AnswerTotals) -> Option<String> {
    let AnswerTotals { verdicts, agreed, since_ms, .. } = totals;
    let energy_j = totals.energy_uj as f64 / 1e6;
    let count = totals.count();
    if count == 0 {
        return None;
    }
    let agreement = match verdicts {
        0 => "no verdicts".to_owned(),
        _ => {
            let ratio = *agreed as f64 / *verdicts as f64;
            let (low, high) = ratio_interval(ratio, *verdicts);
            format!(
                "{agreed} of {} agreed with the site: {:.1} % ({:.1} to {:.1} %)",
                format::count(*verdicts, "verdict"),
                ratio * 100.0,
                low * 100.0,
                high * 100.0
            )
        }
    };
    let late = if totals.late > 0 { format!(", {} of them late", totals.late) } else { String::new() };
    let energy = if energy_j > 0.0 { format!("; {energy_j:.1} J") } else { String::new() };
    Some(format!(
        "{} since {}{late}; {agreement}{energy}",
        format::count(count, "answer"),
        format::format_time(*since_ms)
    ))
}

/// How long an image was unanswered when outcomes were last counted, ms.
fn waits_ms(status: &SiteStatus, outcomes: &OutcomeReport, stored_at_ms: u64) -> f64 {
    outcomes.seen_at_ms.unwrap_or(status.at_ms).saturating_sub(stored_at_ms) as f64
}

fn outbox(status: &SiteStatus) -> String {
    let oldest = status.outbox_oldest_ms.map(|ms| format!(", oldest {}", format::format_span(ms as f64)));
    format!("{} waiting ({}){}", status.outbox.level.messages, used(&status.outbox), oldest.unwrap_or_default())
}

fn link(status: &SiteStatus) -> String {
    let up = match (status.link_up, status.link_rtt_ms) {
        (Some(true), Some(rtt_ms)) => format!("up, round trip {}", format::format_span(rtt_ms)),
        (Some(_), _) => return "down".into(),
        (None, _) => return "unknown: no courier measures it".into(),
    };
    let Some(report) = &status.link else { return up };
    let rate = report.rate_max_bytes_per_s.map(|rate| format!(", up to {}/s", format::format_size(rate as u64)));
    let slow = if report.available { String::new() } else { ", too slow for offloading".into() };
    let budget = report.budget_left_bytes.map(|left| format!(", {} of today's budget left", format::format_size(left)));
    let own = report.probe_delay_ms.filter(|delay_ms| *delay_ms >= 1.0);
    let own = own.map(|delay_ms| format!(" (without {} of our own delay)", format::format_span(delay_ms)));
    let slowdown =
        format!(", {:.1} times its best transmission time{}", report.slowdown_ratio, own.unwrap_or_default());
    format!("{up}{}{slowdown}{slow}{}", rate.unwrap_or_default(), budget.unwrap_or_default())
}

/// What each recognizer decides, and why.
fn decisions(status: &SiteStatus) -> Vec<String> {
    let row = |report: &DecisionReport| {
        let DecisionReport { policy, state, why, local, redirected, taken_back, held, verified, kept, .. } = report;
        let mut text = format!("{policy}: {state}; {}", format::plain_text(why));
        text += &format!(
            "\n            {local} local, {redirected} offloaded ({taken_back} reclaimed), {held} held first; doubtful: {verified} sent up, {kept} kept"
        );
        decision_text::signals(report).iter().for_each(|line| text += &format!("\n            {line}"));
        if let Some(belief) = &report.belief {
            text += &format!("\n            {}", format::plain_text(belief));
        }
        text
    };
    status.workers.iter().filter_map(|beat| beat.decision.as_ref()).map(row).collect()
}

/// What each trainer does, and the result of its last training.
fn trainings(status: &SiteStatus) -> Vec<String> {
    let row = |report: &TrainingReport| {
        let TrainingReport { state, why, labelled, epoch, epochs, before, after, last, sent, hour, .. } = report;
        let mut text = format!(
            "{}: {}; {}, {} sent",
            format::plain_text(state.as_str()),
            format::plain_text(why),
            format::count(*labelled, "labelled image"),
            format::count(*sent, "update")
        );
        let accuracy = |measured: &ModelAccuracy| format::percent(measured.accuracy_ratio);
        if let Some(before) = before.as_ref().filter(|_| *state != TrainerState::Collecting) {
            let now = after.as_ref().map(|after| format!(", {} now", accuracy(after)));
            let holdout = format!(
                "accuracy on the holdout of {} {} before{}",
                before.images,
                accuracy(before),
                now.unwrap_or_default()
            );
            text += &format!("\n            epoch {epoch} of {epochs}; {holdout}");
        }
        if let Some(hour) = hour {
            text += &format!("\n            {}", training_hour(hour));
        }
        if let Some(last) = last {
            text += &format!("\n            last: {}", format::plain_text(last));
        }
        text
    };
    status.workers.iter().filter_map(|beat| beat.training.as_ref()).map(row).collect()
}

/// Processor time of training in the last hour against its share.
fn training_hour(hour: &TrainingHour) -> String {
    let TrainingHour { used_s, least_ratio, longest_piece_ms } = hour;
    let mut text = format!(
        "{} of processor time in the last hour, {} of one processor",
        format::format_span(used_s * 1000.0),
        format::percent(used_s / 3600.0)
    );
    if *least_ratio > 0.0 {
        text += &format!(" (an hour of training gets at least {})", format::percent(*least_ratio));
    }
    if *longest_piece_ms > 0.0 {
        text += &format!("; pieces of at most {} while the site was busy", format::format_span(*longest_piece_ms));
    }
    text
}

/// The state of a model's rounds, and the result of the last.
fn rounds(status: &SiteStatus) -> Vec<String> {
    let in_cloud = match &status.cloud {
        CloudStatus::Here { workers, .. } => &workers[..],
        _ => &[],
    };
    let row = |beat: &Heartbeat| {
        let report = beat.rounds.as_ref()?;
        let model = beat.model.as_deref().unwrap_or_default();
        let mut text = match report.state.known() {
            Some(RoundState::Open) => format!(
                "{}: round {} is open, {} of {} updates",
                format::plain_text(model),
                report.round,
                report.updates,
                report.quorum
            ),
            Some(RoundState::Failed) => {
                format!("{}: failed: {}", format::plain_text(model), format::plain_text(&report.why))
            }
            _ => format!(
                "{}: {} {}",
                format::plain_text(model),
                format::plain_text(report.state.as_str()),
                format::plain_text(&report.why)
            ),
        };
        if report.refused > 0 {
            text += &format!(
                "; {} refused (`tributary dead-letters list --cloud`)",
                format::count(report.refused, "update")
            );
        }
        if let Some(last) = &report.last {
            text += &format!("\n            last: {}", format::plain_text(last));
        }
        Some(text)
    };
    status.workers.iter().chain(in_cloud).filter_map(row).collect()
}

/// The state of each model's releases; of a canary, what its measures say, as a table.
fn releases(status: &SiteStatus) -> Vec<String> {
    let of_canary = |text: &&String, canaries: &[CanaryReport]| {
        canaries.iter().any(|canary| text.starts_with(&format!("{}: ", canary.model)))
    };
    let texts = |beat: &Heartbeat| {
        let others = beat.releases.iter().filter(|text| !of_canary(text, &beat.canaries));
        others
            .map(|text| format::plain_text(text))
            .chain(beat.canaries.iter().map(|one| canary(one, status.at_ms)))
            .collect::<Vec<_>>()
    };
    all_workers(status).flat_map(texts).collect()
}

fn canary(report: &CanaryReport, now_ms: u64) -> String {
    let since = format::format_span(now_ms.saturating_sub(report.since_ms) as f64);
    let ring = match report.sites {
        ..=1 => report.site.to_string(),
        sites => format!("{} and {} more", report.site, sites - 1),
    };
    let mut text = format!("{}: canary {} at {ring} for {since}", report.model, report.release.short());
    let without_numbers = |missing: &MissingMeasure| {
        let empty = std::iter::repeat_n(String::new(), FINDING_HEAD.len().saturating_sub(2));
        [missing.measure.to_string()].into_iter().chain(empty).chain([missing.why.clone()]).collect()
    };
    let rows = report.findings.iter().map(finding_cells).chain(report.missing.iter().map(without_numbers));
    let rows: Vec<Vec<String>> = rows.collect();
    for line in format::table(&FINDING_HEAD, &rows).lines() {
        text += &format!("\n            {line}");
    }
    text
}

/// The cameras whose pictures are taken, as a table.
fn cameras(status: &SiteStatus) -> Option<String> {
    let all: Vec<&CameraHealth> = status.workers.iter().flat_map(|beat| &beat.cameras).collect();
    if all.is_empty() {
        return None;
    }
    let streaming = all.iter().filter(|health| health.state == CameraState::Streaming).count();
    let rows: Vec<Vec<String>> = all.iter().map(|health| camera_cells(health, status.at_ms)).collect();
    let verb = if all.len() == 1 { "gives" } else { "give" };
    let mut text = format!("{streaming} of {} {verb} pictures", format::count(all.len() as u64, "camera"));
    for line in format::table(&CAMERA_HEAD, &rows).lines() {
        text += &format!("\n            {line}");
    }
    Some(text)
}

fn cloud(cloud: &CloudStatus) -> String {
    match cloud {
        CloudStatus::Here { shared, verify, .. } => {
            let place = if *shared { "on this server" } else { "up" };
            // Over its link a site does not see the stream's level.
            let used = if verify.level.max_bytes == 0 { String::new() } else { format!(" ({})", used(verify)) };
            format!("{place}; {} for the verifiers{used}", work(verify))
        }
        CloudStatus::Silent => "does not answer".into(),
        CloudStatus::NotSetUp => "is not set up".into(),
    }
}

fn dead_letters(status: &SiteStatus) -> String {
    match &status.cloud {
        CloudStatus::Here { dead_letters: Some(in_cloud), .. } => {
            format!("{} at the site, {in_cloud} in the cloud", status.dead_letters)
        }
        _ => format::count(status.dead_letters, "dead letter"),
    }
}

fn all_workers(status: &SiteStatus) -> impl Iterator<Item = &Heartbeat> {
    let in_cloud = match &status.cloud {
        CloudStatus::Here { workers, .. } => &workers[..],
        _ => &[],
    };
    status.workers.iter().chain(in_cloud)
}

/// The running workers, and the step of a swap that each is at.
fn workers(status: &SiteStatus) -> String {
    let or_blank = |text: Option<String>| text.unwrap_or_default();
    let row = |beat: &Heartbeat| {
        let release = beat.release.as_ref().map(|release| release.short());
        let since =
            beat.release_since_ms.map(|since_ms| format::format_span(status.at_ms.saturating_sub(since_ms) as f64));
        vec![
            format!("  {}", beat.role),
            format::plain_text(&beat.worker),
            or_blank((beat.replicas > 0).then(|| beat.replicas.to_string())),
            beat.holding.to_string(),
            beat.finished.to_string(),
            or_blank(beat.cost_ms.map(format::format_span)),
            format!(
                "{} {}",
                beat.model.as_deref().map(format::plain_text).unwrap_or_default(),
                release.unwrap_or_default()
            ),
            or_blank(since),
        ]
    };
    let rows: Vec<_> = all_workers(status).map(row).collect();
    let steps = all_workers(status).filter_map(|beat| {
        let step = beat.swap_step()?;
        Some(format!(
            "\n  {} {}: {}",
            format::plain_text(beat.role.as_str()),
            format::plain_text(&beat.worker),
            format::plain_text(step)
        ))
    });
    let head = ["  worker", "process", "replicas", "in flight", "finished", "per image", "model", "since"];
    format::table(&head, &rows) + &steps.collect::<String>()
}

/// The problems, each with what to do.
fn problems(status: &SiteStatus) -> Vec<String> {
    let site = &status.site;
    let has = |role: Role| all_workers(status).any(|beat| beat.role == role);
    let mut problems = status.faults.clone();
    problems.extend(
        all_workers(status)
            .filter_map(|beat| format::role_failure(beat, status.at_ms))
            .map(|failure| format!("{}: {}.", format::plain_text(&failure.what), format::plain_text(&failure.remedy))),
    );
    problems.extend(outcome_problems(status));
    problems.extend(clock_problems(status));
    problems.extend(drift::advice(&status.workers));
    let cameras = status.workers.iter().flat_map(|beat| &beat.cameras);
    problems.extend(cameras.filter_map(|health| camera_problem(health, status.at_ms)));
    if !status.workers_known {
        return problems;
    }
    if !has(Role::Recognizer) {
        problems.push(format!(
            "No recognizer is running, so images wait: start one with `tributary recognizer --model DIR --site {site}`."
        ));
    }
    if !has(Role::Courier) {
        problems.push(format!(
            "No courier is running, so doubtful images are not verified: start one with `tributary courier --site {site}`."
        ));
    }
    if !has(Role::Janitor) {
        problems.push(format!(
            "No janitor is running, so answered images are not purged: start one with `tributary janitor --site {site}`."
        ));
    }
    problems.extend(cloud_problem(status, has(Role::Verifier)));
    problems.extend(full(
        "images",
        &status.images,
        "new images are refused: start more recognizers, or raise streams.images_max_mib",
    ));
    problems.extend(full("outbox", &status.outbox, "doubtful answers become final as they are: check the link"));
    problems.extend(mixed(status, Role::Recognizer).into_iter().chain(mixed(status, Role::Verifier)));
    problems.extend(all_workers(status).filter_map(|beat| {
        let swap = beat.release_refusal()?;
        Some(format!(
            "{} {} {}.",
            format::plain_text(beat.role.as_str()),
            format::plain_text(&beat.worker),
            format::plain_text(swap)
        ))
    }));
    let in_cloud = match &status.cloud {
        CloudStatus::Here { dead_letters, .. } => dead_letters.unwrap_or(0),
        _ => 0,
    };
    for (count, flag) in [(status.dead_letters, ""), (in_cloud, " --cloud")] {
        if count > 0 {
            let letters = format::count(count, "dead letter");
            problems.push(format!("{letters}: `tributary dead-letters list{flag}` shows them with their reasons."));
        }
    }
    problems
}

/// Longest normal time to a first answer; recognizing takes far less.
const LATE_MS: u64 = 60_000;
/// A count of this age is shown without its age.
const RECENT_COUNT_MS: u64 = 2_000;
/// Largest clock difference that is no problem.
const MAX_CLOCK_OFFSET_MS: i64 = 2_000;

fn outcome_problems(status: &SiteStatus) -> Vec<String> {
    let Some(outcomes) = &status.outcomes else { return Vec::new() };
    let mut problems = Vec::new();
    let waits_ms = outcomes.oldest_at_ms.map_or(0.0, |at_ms| waits_ms(status, outcomes, at_ms));
    if outcomes.open > outcomes.provisional && waits_ms > LATE_MS as f64 && status.images.waiting == 0 {
        problems.push(format!(
            "Image {} was acknowledged but is unanswered for {}: the janitor has it recognized again; if this persists, look at the janitor's log.",
            outcomes.oldest_sequence.unwrap_or_default(),
            format::format_span(waits_ms)
        ));
    }
    if outcomes.gaps > 0 {
        problems.push(format!(
            "{} missing from the middle of IMAGES, and Tributary did not remove {}: look for disk errors and for messages deleted by hand.",
            if outcomes.gaps == 1 { "1 image is".into() } else { format!("{} images are", outcomes.gaps) },
            if outcomes.gaps == 1 { "it" } else { "them" }
        ));
    }
    if outcomes.refused > 0 {
        problems.push(format!(
            "{} refused by the full stream without notice to the publisher (MQTT, or a publish without a reply): see `tributary dead-letters list --fault stream_refused`.",
            if outcomes.refused == 1 { "1 image was".into() } else { format!("{} images were", outcomes.refused) }
        ));
    }
    if let Some(too_large @ 1..) = outcomes.too_large {
        problems.push(format!(
            "{} recently closed for a message above {}: cameras with larger images must publish them by reference, as `tributary publish` does.",
            if too_large == 1 { "1 connection was".into() } else { format!("{too_large} connections were") },
            format::format_size(schemas::limits::MAX_MESSAGE_BYTES as u64)
        ));
    }
    problems
}

/// Clocks that differ from the server's. Deadlines are safe, because they go by the server's clock; times shown here
/// are not.
fn clock_problems(status: &SiteStatus) -> Vec<String> {
    let off = |ahead_ms: i64| {
        let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
        format!("{} {way}", format::format_span(ahead_ms.unsigned_abs() as f64))
    };
    // A process has one clock, however many roles it has.
    let processes: BTreeMap<&str, i64> = all_workers(status)
        .filter_map(|beat| {
            Some((beat.worker.as_str(), beat.clock_ahead_ms.filter(|ahead| ahead.abs() > MAX_CLOCK_OFFSET_MS)?))
        })
        .collect();
    let workers = processes.into_iter().map(|(worker, ahead_ms)| {
        format!(
            "The clock of {} is {} its server's: synchronize them (NTP).",
            format::plain_text(worker),
            off(ahead_ms)
        )
    });
    let here = status.clock_ahead_ms.filter(|ahead_ms| ahead_ms.abs() > MAX_CLOCK_OFFSET_MS);
    let here =
        here.map(|ahead_ms| format!("This machine's clock is {} the server's: synchronize them (NTP).", off(ahead_ms)));
    workers.chain(here).collect()
}

fn cloud_problem(status: &SiteStatus, verifier: bool) -> Option<String> {
    match (&status.cloud, status.link_up) {
        (CloudStatus::Silent, _) | (CloudStatus::Here { .. }, Some(false)) => {
            Some("The cloud does not answer: doubtful images wait in the outbox and are sent once it does.".into())
        }
        (CloudStatus::NotSetUp, _) if status.outbox.level.messages > 0 => Some(format!(
            "The cloud's streams do not exist, so doubtful images wait: create them with `tributary setup --cloud {}`.",
            status.site
        )),
        (CloudStatus::Here { verify, .. }, _) if !verifier && (verify.waiting > 0 || status.provisional > 0) => Some(
            "No verifier is running, so doubtful images wait: start one with `tributary verifier --model DIR`.".into(),
        ),
        _ => None,
    }
}

fn full(name: &str, queue: &QueueStatus, then: &str) -> Option<String> {
    let ratio = queue.level.bytes as f64 / queue.level.max_bytes.max(1) as f64;
    let is_reported = queue.level.max_bytes > 0 && ratio > NEARLY_FULL_RATIO;
    is_reported.then(|| format!("The stream of {name} is {:.0} % full; once it is full, {then}.", ratio * 100.0))
}

/// Workers of one role that run different releases.
fn mixed(status: &SiteStatus, role: Role) -> Option<String> {
    let mut releases: Vec<&str> = all_workers(status)
        .filter(|beat| beat.role == role)
        .filter_map(|beat| beat.release.as_ref().map(|release| release.short()))
        .collect();
    releases.sort_unstable();
    releases.dedup();
    (releases.len() > 1).then(|| format!("The {role}s run different releases ({}).", releases.join(", ")))
}

#[cfg(test)]
mod tests {
    use schemas::{CanaryFinding, CanaryMeasure, FindingOutcome, OutcomeReport, ReleaseId, RoleFailure};

    use super::super::gather::ServerStatus;
    use super::*;
    use streams::reader::StreamLevel;

    fn queue(bytes: u64) -> QueueStatus {
        let level = StreamLevel { messages: 3, bytes, max_bytes: 1000, first_sequence: 1, last_sequence: 3, gaps: 0 };
        QueueStatus { level, waiting: 3, held: 1, queued_s: Some(1.5) }
    }

    fn status(roles: &[Role]) -> SiteStatus {
        let beat = |role: &Role| {
            let beat = Heartbeat::for_worker(*role, "host-1".into(), None, 0);
            Heartbeat { replicas: 1, cost_ms: Some(1.0), link_rtt_ms: Some(1.0), ..beat }
        };
        SiteStatus {
            at_ms: 0,
            site: "reef".parse().unwrap(),
            server: ServerStatus { url: "nats://127.0.0.1:1".into(), version: "2.15.1".into(), durability: None },
            images: queue(10),
            answers: queue(10).level,
            provisional: 0,
            late_answers: 0,
            outbox: queue(10),
            outbox_oldest_ms: Some(4000),
            link_up: Some(true),
            link_rtt_ms: Some(1.0),
            link: None,
            dead_letters: 0,
            outcomes: None,
            oldest_unanswered_at_ms: None,
            clock_ahead_ms: None,
            faults: Vec::new(),
            workers_known: true,
            workers: roles.iter().map(beat).collect(),
            cloud: CloudStatus::Here {
                shared: true,
                verify: queue(10),
                verdicts_waiting: 0,
                dead_letters: None,
                workers: Vec::new(),
            },
        }
    }

    const ALL: [Role; 4] = [Role::Courier, Role::Janitor, Role::Recognizer, Role::Verifier];

    #[test]
    fn a_canary_is_a_table_of_its_measures_and_of_those_that_are_waited_for() {
        let finding = CanaryFinding {
            measure: CanaryMeasure::Confidence.into(),
            canary: 0.91,
            stable: Some(0.9),
            better: 0.01,
            error: 0.02,
            margin: 0.1,
            odds: -0.5,
            count: 405,
            says: FindingOutcome::Open,
        };
        let missing = MissingMeasure { measure: CanaryMeasure::Agreement.into(), why: "no verdict yet".into() };
        let mut status = SiteStatus { at_ms: 60_000, ..status(&ALL) };
        status.workers[0].releases = vec!["fish: 010101010101 is being tried".into(), "bird: 0202 is stable".into()];
        status.workers[0].canaries = vec![CanaryReport {
            model: "fish".parse().unwrap(),
            release: ReleaseId::from_sha256([1; 32]),
            site: "reef".parse().unwrap(),
            sites: 3,
            since_ms: 0,
            findings: vec![finding],
            missing: vec![missing],
        }];
        let text = text(&status);
        let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or(&text);
        assert!(line("releases  fish").contains("canary 010101010101 at reef and 2 more for 1.0 min"), "{text}");
        assert!(line("confidence").ends_with("405     open"), "{text}");
        assert!(line("agreement").ends_with("no verdict yet"), "{text}");
        assert!(text.contains("bird: 0202 is stable") && !text.contains("is being tried"), "{text}");
    }

    #[test]
    fn a_healthy_site_has_no_problems() {
        let text = text(&status(&ALL));
        assert!(text.contains("No problems.") && text.contains("3 waiting, 1.5 s of work"), "{text}");
    }

    #[test]
    fn each_role_that_is_missing_is_named_with_its_command() {
        for missing in ALL {
            let roles: Vec<Role> = ALL.into_iter().filter(|role| *role != missing).collect();
            let problems = problems(&status(&roles));
            let names_command = problems.len() == 1 && problems[0].contains(&format!("`tributary {missing}"));
            assert!(names_command, "{missing}: {problems:?}");
        }
    }

    #[test]
    fn refused_images_gaps_odd_clocks_and_faults_are_problems() {
        let outcomes = OutcomeReport {
            open: 2,
            oldest_sequence: Some(7),
            oldest_at_ms: Some(0),
            seen_at_ms: Some(70_000),
            gaps: 3,
            too_large: Some(1),
            ..OutcomeReport::default()
        };
        let mut status = SiteStatus { outcomes: Some(outcomes), at_ms: 90_000, ..status(&ALL) };
        status.images.waiting = 0;
        status.workers[0].clock_ahead_ms = Some(7_200_000);
        status.faults = vec!["New images are refused: only 9 MiB are free".into()];
        let problems = problems(&status).join("\n");
        for part in ["refused: only 9 MiB", "3 images are missing", "2.0 h ahead of", "1 connection was", "Image 7"] {
            assert!(problems.contains(part), "{part:?} is not in {problems}");
        }
        let text = text(&status);
        assert!(text.contains("image 7 is unanswered for") && text.contains("(counted 20.0 s ago)"), "{text}");
    }

    #[test]
    fn a_role_that_fails_is_a_problem_and_does_not_count_as_missing() {
        let mut status = SiteStatus { at_ms: 1_000, ..status(&ALL) };
        let failing = RoleFailure { why: "model ./heavy: no graph.onnx".into(), failures: 3, next_try_at_ms: 9_000 };
        status.workers[3] =
            Heartbeat { failing: Some(failing), ..Heartbeat::for_worker(Role::Verifier, "host-1".into(), None, 0) };
        let problems = problems(&status);
        let said = "The verifier fails (model ./heavy: no graph.onnx; 3 times in a row, next try in 8.0 s): ";
        assert!(problems.len() == 1 && problems[0].starts_with(said), "{problems:?}");
    }

    #[test]
    fn a_silent_cloud_a_full_stream_and_dead_letters_are_problems() {
        let status =
            SiteStatus { cloud: CloudStatus::Silent, images: queue(950), dead_letters: 1, ..status(&ALL[..3]) };
        let problems = problems(&status).join("\n");
        for part in ["cloud does not answer", "images is 95 % full", "1 dead letter:"] {
            assert!(problems.contains(part), "{part:?} is not in {problems}");
        }
    }
}
