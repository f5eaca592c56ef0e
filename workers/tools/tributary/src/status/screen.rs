//! Screen: how a site does, for people; what is wrong comes last, in words, with what to do. Pure.

use std::collections::BTreeMap;

use schemas::{
    DecisionReport, Heartbeat, ModelAccuracy, OutcomeReport, Role, RoundState, TrainerState, TrainingReport,
};

use super::drift;
use super::gather::{CloudStatus, QueueStatus, SiteStatus};
use crate::format;

/// A stream fuller than this is said.
const NEARLY_FULL_RATIO: f64 = 0.9;

/// One screen.
pub fn text(status: &SiteStatus) -> String {
    let mut lines = vec![heading(status), String::new()];
    let mut row = |name: &str, text: String| lines.push(format!("  {name:9} {text}"));
    row("images", images(&status.images));
    row("oldest", oldest(status));
    row(
        "answers",
        format!("{} stored; {} provisional without a final one", status.answers.messages, status.provisional),
    );
    row("outbox", outbox(status));
    row("link", link(status));
    row("cloud", cloud(&status.cloud));
    decisions(status).into_iter().for_each(|decision| row("decision", decision));
    drift::line(&status.workers).into_iter().for_each(|line| row("drift", line));
    trainings(status).into_iter().for_each(|training| row("training", training));
    rounds(status).into_iter().for_each(|round| row("rounds", round));
    let scaled = all_workers(status).filter_map(|beat| Some((&beat.role, beat.scale.as_ref()?)));
    scaled.for_each(|(role, why)| {
        row("replicas", format!("{}s: {}", format::plain_number(role.as_str()), format::plain_number(why)))
    });
    all_workers(status).flat_map(|beat| &beat.releases).for_each(|words| row("releases", format::plain_number(words)));
    row("dead", dead(status));
    lines.push(String::new());
    lines.push(workers(status));
    lines.push(String::new());
    match &wrong(status)[..] {
        [] => lines.push("Nothing is wrong.".into()),
        wrong => lines.extend(wrong.iter().map(|wrong| format!("! {wrong}"))),
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

fn room(queue: &QueueStatus) -> String {
    match queue.level.max_bytes {
        0 => format::format_size(queue.level.bytes),
        max_bytes => format!("{} of {}", format::format_size(queue.level.bytes), format::format_size(max_bytes)),
    }
}

fn work(queue: &QueueStatus) -> String {
    match queue.queued_s {
        Some(queued_s) if queue.waiting > 0 => {
            format!("{} wait, {} of work", queue.waiting, format::format_span(queued_s * 1000.0))
        }
        _ => format!("{} wait", queue.waiting),
    }
}

fn images(images: &QueueStatus) -> String {
    format!("{} stored ({}); {}", images.level.messages, room(images), work(images))
}

/// The oldest image without a final answer, always.
fn oldest(status: &SiteStatus) -> String {
    let ago = |at_ms: u64| format::format_span(status.at_ms.saturating_sub(at_ms) as f64);
    let seen = |outcomes: &OutcomeReport| match outcomes.seen_at_ms.filter(|seen| status.at_ms > seen + SEEN_LATELY_MS)
    {
        Some(seen_at_ms) => format!(" (counted {} ago)", ago(seen_at_ms)),
        None => String::new(),
    };
    match (&status.outcomes, status.oldest_unanswered_at_ms) {
        (Some(outcomes), _) => match (outcomes.oldest_sequence, outcomes.oldest_at_ms) {
            (Some(sequence), at_ms) => format!(
                "image {sequence} has no final answer{}; {} have none, {} of them a provisional one{}",
                at_ms
                    .map(|at_ms| format!(" for {}", format::format_span(waits_ms(status, outcomes, at_ms))))
                    .unwrap_or_default(),
                outcomes.open,
                outcomes.provisional,
                seen(outcomes)
            ),
            (None, _) => format!("every stored image has its final answer{}", seen(outcomes)),
        },
        (None, Some(at_ms)) => format!("an image waits for {}; no janitor counts outcomes", ago(at_ms)),
        (None, None) => "no image waits for a recognizer; no janitor counts outcomes".into(),
    }
}

/// How long an image had no answer when outcomes were counted last, ms.
fn waits_ms(status: &SiteStatus, outcomes: &OutcomeReport, stored_at_ms: u64) -> f64 {
    outcomes.seen_at_ms.unwrap_or(status.at_ms).saturating_sub(stored_at_ms) as f64
}

fn outbox(status: &SiteStatus) -> String {
    let oldest = status.outbox_oldest_ms.map(|ms| format!(", the oldest for {}", format::format_span(ms as f64)));
    format!("{} wait ({}){}", status.outbox.level.messages, room(&status.outbox), oldest.unwrap_or_default())
}

fn link(status: &SiteStatus) -> String {
    let up = match (status.link_up, status.link_rtt_ms) {
        (Some(true), Some(rtt_ms)) => format!("up, {} there and back", format::format_span(rtt_ms)),
        (Some(_), _) => return "down".into(),
        (None, _) => return "unknown, for no courier measures it".into(),
    };
    let Some(report) = &status.link else { return up };
    let rate = report.rate_max_bytes_per_s.map(|rate| format!(", up to {}/s", format::format_size(rate as u64)));
    let slow = if report.available { String::new() } else { ", too slow to redirect work".into() };
    let budget = report.budget_left_bytes.map(|left| format!(", {} left for today", format::format_size(left)));
    let slowdown = format!(", {:.1} times its shortest time", report.slowdown_ratio);
    format!("{up}{}{slowdown}{slow}{}", rate.unwrap_or_default(), budget.unwrap_or_default())
}

/// What each recognizer decides, and by what.
fn decisions(status: &SiteStatus) -> Vec<String> {
    let row = |report: &DecisionReport| {
        let DecisionReport { policy, state, why, local, redirected, taken_back, held, verified, kept, .. } = report;
        let mut text = format!("{policy}: {state}; {}", format::plain_number(why));
        text += &format!(
            "\n            {local} here, {redirected} redirected ({taken_back} taken back), {held} held at first; in doubt: {verified} verified, {kept} kept"
        );
        if let Some(belief) = &report.belief {
            text += &format!("\n            {}", format::plain_number(belief));
        }
        text
    };
    status.workers.iter().filter_map(|beat| beat.decision.as_ref()).map(row).collect()
}

/// What each trainer does, and what came of its last training.
fn trainings(status: &SiteStatus) -> Vec<String> {
    let row = |report: &TrainingReport| {
        let TrainingReport { state, why, labelled, epoch, epochs, before, after, last, sent, .. } = report;
        let mut text = format!(
            "{}: {}; {} known, {} sent",
            format::plain_number(state.as_str()),
            format::plain_number(why),
            format::count(*labelled, "labelled image"),
            format::count(*sent, "update")
        );
        let right = |measured: &ModelAccuracy| format::percent(measured.accuracy_ratio);
        if let Some(before) = before.as_ref().filter(|_| *state != TrainerState::Collecting) {
            let now = after.as_ref().map(|after| format!(", {} now", right(after)));
            let held_out =
                format!("of {} held out {} right before{}", before.images, right(before), now.unwrap_or_default());
            text += &format!("\n            epoch {epoch} of {epochs}; {held_out}");
        }
        if let Some(last) = last {
            text += &format!("\n            last: {}", format::plain_number(last));
        }
        text
    };
    status.workers.iter().filter_map(|beat| beat.training.as_ref()).map(row).collect()
}

/// What a model's rounds have come to.
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
                format::plain_number(model),
                report.round,
                report.updates,
                report.quorum
            ),
            Some(RoundState::Failed) => {
                format!("{}: failed: {}", format::plain_number(model), format::plain_number(&report.why))
            }
            _ => format!(
                "{}: {} {}",
                format::plain_number(model),
                format::plain_number(report.state.as_str()),
                format::plain_number(&report.why)
            ),
        };
        if report.refused > 0 {
            text += &format!("; {} refused (`tributary dead list --cloud`)", format::count(report.refused, "update"));
        }
        if let Some(last) = &report.last {
            text += &format!("\n            last: {}", format::plain_number(last));
        }
        Some(text)
    };
    status.workers.iter().chain(in_cloud).filter_map(row).collect()
}

fn cloud(cloud: &CloudStatus) -> String {
    match cloud {
        CloudStatus::Here { shared, verify, .. } => {
            let place = if *shared { "on this server" } else { "answers" };
            // Over its link a site does not see what the stream holds.
            let room = if verify.level.max_bytes == 0 { String::new() } else { format!(" ({})", room(verify)) };
            format!("{place}; {} for the verifiers{room}", work(verify))
        }
        CloudStatus::Silent => "does not answer".into(),
        CloudStatus::NotSetUp => "is not set up".into(),
    }
}

fn dead(status: &SiteStatus) -> String {
    match &status.cloud {
        CloudStatus::Here { dead_letters: Some(in_cloud), .. } => {
            format!("{} at the site, {in_cloud} in the cloud", status.dead_letters)
        }
        _ => format::count(status.dead_letters, "letter"),
    }
}

fn all_workers(status: &SiteStatus) -> impl Iterator<Item = &Heartbeat> {
    let in_cloud = match &status.cloud {
        CloudStatus::Here { workers, .. } => &workers[..],
        _ => &[],
    };
    status.workers.iter().chain(in_cloud)
}

/// The workers, and the step of a swap each is at.
fn workers(status: &SiteStatus) -> String {
    let or_blank = |text: Option<String>| text.unwrap_or_default();
    let row = |beat: &Heartbeat| {
        let release = beat.release.as_ref().map(|release| release.short());
        let since =
            beat.release_since_ms.map(|since_ms| format::format_span(status.at_ms.saturating_sub(since_ms) as f64));
        vec![
            format!("  {}", beat.role),
            format::plain_number(&beat.worker),
            or_blank((beat.replicas > 0).then(|| beat.replicas.to_string())),
            beat.holding.to_string(),
            beat.finished.to_string(),
            or_blank(beat.cost_ms.map(format::format_span)),
            format!(
                "{} {}",
                beat.model.as_deref().map(format::plain_number).unwrap_or_default(),
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
            format::plain_number(beat.role.as_str()),
            format::plain_number(&beat.worker),
            format::plain_number(step)
        ))
    });
    let head = ["  worker", "process", "replicas", "holds", "finished", "an image", "model", "for"];
    format::table(&head, &rows) + &steps.collect::<String>()
}

/// What is wrong, and what to do about it.
fn wrong(status: &SiteStatus) -> Vec<String> {
    let site = &status.site;
    let has = |role: Role| all_workers(status).any(|beat| beat.role == role);
    let mut wrong = status.faults.clone();
    wrong.extend(wrong_with_outcomes(status));
    wrong.extend(wrong_clocks(status));
    wrong.extend(drift::advice(&status.workers));
    if !status.workers_known {
        return wrong;
    }
    if !has(Role::Recognizer) {
        wrong.push(format!(
            "No recognizer gives a sign of life, so images wait: start one with `tributary recognizer --model DIR --site {site}`."
        ));
    }
    if !has(Role::Courier) {
        wrong.push(format!(
            "No courier gives a sign of life, so doubtful images are not verified: start one with `tributary courier --site {site}`."
        ));
    }
    if !has(Role::Janitor) {
        wrong.push(format!(
            "No janitor gives a sign of life, so answered images are not cleared away: start one with `tributary janitor --site {site}`."
        ));
    }
    wrong.extend(wrong_in_cloud(status, has(Role::Verifier)));
    wrong.extend(full(
        "images",
        &status.images,
        "publishers will get errors: start more recognizers, or raise streams.images_max_mib",
    ));
    wrong.extend(full("outbox", &status.outbox, "doubtful answers will become final as they are: is the link alive?"));
    wrong.extend(mixed(status, Role::Recognizer).into_iter().chain(mixed(status, Role::Verifier)));
    wrong.extend(all_workers(status).filter_map(|beat| {
        let swap = beat.release_refusal()?;
        Some(format!(
            "{} {} {}.",
            format::plain_number(beat.role.as_str()),
            format::plain_number(&beat.worker),
            format::plain_number(swap)
        ))
    }));
    let in_cloud = match &status.cloud {
        CloudStatus::Here { dead_letters, .. } => dead_letters.unwrap_or(0),
        _ => 0,
    };
    for (count, flag) in [(status.dead_letters, ""), (in_cloud, " --cloud")] {
        if count > 0 {
            let letters = format::count(count, "dead letter");
            wrong.push(format!("{letters}: `tributary dead list{flag}` says what was given up and why."));
        }
    }
    wrong
}

/// An image is recognized in far less; a provisional answer may wait for its verdict.
const LATE_MS: u64 = 60_000;
/// What was counted within this is not said to be older.
const SEEN_LATELY_MS: u64 = 2_000;
/// Clocks that differ by less are as good as one.
const CLOCK_MS: i64 = 2_000;

fn wrong_with_outcomes(status: &SiteStatus) -> Vec<String> {
    let Some(outcomes) = &status.outcomes else { return Vec::new() };
    let mut wrong = Vec::new();
    let waits_ms = outcomes.oldest_at_ms.map_or(0.0, |at_ms| waits_ms(status, outcomes, at_ms));
    if outcomes.open > outcomes.provisional && waits_ms > LATE_MS as f64 && status.images.waiting == 0 {
        wrong.push(format!(
            "Image {} was acknowledged and has had no answer for {}: the janitor has it recognized again; if this stays, look at its log.",
            outcomes.oldest_sequence.unwrap_or_default(),
            format::format_span(waits_ms)
        ));
    }
    if outcomes.gaps > 0 {
        wrong.push(format!(
            "{} gone from the middle of IMAGES, and nothing of ours removed {}: look for errors of the disk, and for messages deleted by hand.",
            if outcomes.gaps == 1 { "1 image is".into() } else { format!("{} images are", outcomes.gaps) },
            if outcomes.gaps == 1 { "it" } else { "them" }
        ));
    }
    if outcomes.refused > 0 {
        wrong.push(format!(
            "{} refused because the stream was full, and the publishers (MQTT, or without a reply) were not told: `tributary dead list --fault stream_refused`.",
            if outcomes.refused == 1 { "1 image was".into() } else { format!("{} images were", outcomes.refused) }
        ));
    }
    if let Some(too_large @ 1..) = outcomes.too_large {
        wrong.push(format!(
            "{} closed lately for a message above {}: cameras that send larger images must refer to a blob (`tributary publish` does).",
            if too_large == 1 { "1 connection was".into() } else { format!("{too_large} connections were") },
            format::format_size(schemas::limits::MAX_MESSAGE_BYTES as u64)
        ));
    }
    wrong
}

/// Clocks that are not the server's. Deadlines go by the server's clock all the same; what is read elsewhere does not.
fn wrong_clocks(status: &SiteStatus) -> Vec<String> {
    let off = |ahead_ms: i64| {
        let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
        format!("{} {way}", format::format_span(ahead_ms.unsigned_abs() as f64))
    };
    // A process has one clock, however many roles it has.
    let processes: BTreeMap<&str, i64> = all_workers(status)
        .filter_map(|beat| Some((beat.worker.as_str(), beat.clock_ahead_ms.filter(|ahead| ahead.abs() > CLOCK_MS)?)))
        .collect();
    let workers = processes.into_iter().map(|(worker, ahead_ms)| {
        format!(
            "The clock of {} is {} its server's: set one of them right (NTP).",
            format::plain_number(worker),
            off(ahead_ms)
        )
    });
    let here = status.clock_ahead_ms.filter(|ahead_ms| ahead_ms.abs() > CLOCK_MS);
    let here = here.map(|ahead_ms| {
        format!("This machine's clock is {} the server's: set one of them right (NTP).", off(ahead_ms))
    });
    workers.chain(here).collect()
}

fn wrong_in_cloud(status: &SiteStatus, verifier: bool) -> Option<String> {
    match (&status.cloud, status.link_up) {
        (CloudStatus::Silent, _) | (CloudStatus::Here { .. }, Some(false)) => {
            Some("The cloud does not answer: doubtful images wait in the outbox and go up by themselves when it does.".into())
        }
        (CloudStatus::NotSetUp, _) if status.outbox.level.messages > 0 => Some(format!(
            "The cloud's streams do not exist, so doubtful images wait: create them with `tributary setup --cloud {}`.",
            status.site
        )),
        (CloudStatus::Here { verify, .. }, _) if !verifier && (verify.waiting > 0 || status.provisional > 0) => Some(
            "No verifier gives a sign of life, so doubtful images wait: start one with `tributary verifier --model DIR`.".into(),
        ),
        _ => None,
    }
}

fn full(name: &str, queue: &QueueStatus, then: &str) -> Option<String> {
    let ratio = queue.level.bytes as f64 / queue.level.max_bytes.max(1) as f64;
    let said = queue.level.max_bytes > 0 && ratio > NEARLY_FULL_RATIO;
    said.then(|| format!("The stream of {name} is {:.0} % full; when it is full, {then}.", ratio * 100.0))
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
    use schemas::OutcomeReport;

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
    fn a_site_that_does_well_says_so() {
        let text = text(&status(&ALL));
        assert!(text.contains("Nothing is wrong.") && text.contains("3 wait, 1.5 s of work"), "{text}");
    }

    #[test]
    fn each_role_that_is_missing_is_named_with_its_command() {
        for missing in ALL {
            let roles: Vec<Role> = ALL.into_iter().filter(|role| *role != missing).collect();
            let wrong = wrong(&status(&roles));
            assert!(wrong.len() == 1 && wrong[0].contains(&format!("`tributary {missing}")), "{missing}: {wrong:?}");
        }
    }

    #[test]
    fn refused_images_gaps_odd_clocks_and_what_cannot_be_read_are_said() {
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
        let wrong = wrong(&status).join("\n");
        for part in ["refused: only 9 MiB", "3 images are gone", "2.0 h ahead of", "1 connection was", "Image 7"] {
            assert!(wrong.contains(part), "{part:?} is not in {wrong}");
        }
        let text = text(&status);
        assert!(text.contains("image 7 has no final answer for") && text.contains("(counted 20.0 s ago)"), "{text}");
    }

    #[test]
    fn a_silent_cloud_a_full_stream_and_dead_letters_are_said() {
        let status =
            SiteStatus { cloud: CloudStatus::Silent, images: queue(950), dead_letters: 1, ..status(&ALL[..3]) };
        let wrong = wrong(&status).join("\n");
        for part in ["cloud does not answer", "images is 95 % full", "1 dead letter:"] {
            assert!(wrong.contains(part), "{part:?} is not in {wrong}");
        }
    }
}
