//! Texts: subjects, names, topics, headers, expressions, times, settings of any kind.

use bend::{bend_all, corpus, texts, turns};
use replay::field::TaskField;
use replay::{Expression, TaskRow, timestamp};
use schemas::{BlobRef, CameraName, ReleaseId, Root, SiteName, Task, TaskId};
use streams::monitor;
use streams::subject::{self, OutboxKind};

#[test]
fn texts_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    let corpus = texts([
        "image.reef.cam-1",
        "answer.final.reef.cam-1.0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "pin.set.reef.cam-1.0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "outbox.reef.verify",
        "frigate/+/+/snapshot",
        "2026-11-30T12:00:00+02:00",
        "0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "hard and (confidence < 0.5 or not label = \"a b\") and camera in (\"x\", \"y\")",
        "((((((((((not not labelled))))))))))",
        "count(label) > 2 and time > 1h",
        "ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1abcd",
        "\u{fc}\u{df}\u{1f41f} 10 % \u{0}",
    ]);
    let site: SiteName = "reef".parse().unwrap();
    let stored = || schemas::task::StorageStamp {
        site: "reef".parse().unwrap(),
        camera: "cam-1".parse().unwrap(),
        sequence: 1,
        stored_at_ns: 1,
    };
    bend_all("texts", &corpus, 2 * turns(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _read = (
            subject::read_image(&text).is_ok(),
            subject::read_final_answer(&text).is_ok(),
            subject::read_pin(&text).is_ok(),
            subject::check_pattern(&text).is_ok(),
            subject::check_replay(&text).is_ok(),
            subject::may_be_redelivered("IMAGES", &site, &text),
            subject::is_uploadable(OutboxKind::Verify, &site, &text),
            subject::map_topic(&site, &text, "$1").is_ok(),
            OutboxKind::read(&text).is_ok(),
        );
        let _parsed = (
            text.parse::<SiteName>().is_ok(),
            text.parse::<CameraName>().is_ok(),
            text.parse::<TaskId>().is_ok(),
            text.parse::<ReleaseId>().is_ok(),
            text.parse::<BlobRef>().is_ok(),
            Expression::parse(&text).is_ok(),
            serde_json::from_str::<Root>(&text).is_ok(),
            timestamp::parse_timestamp(&text, Some(1_000_000)).is_ok(),
            text.parse::<autograd::TrainableSelection>().is_ok(),
            text.parse::<serving::scale::ReplicaRequest>().is_ok(),
        );
        // Every header of a task at once, each with this value.
        let _task = Task::from_headers(&stored(), |_| Some(&text), bytes).is_ok();
        20
    });
}

/// An expression that is understood is asked of a row, and so is each of a row's fields.
#[test]
fn expressions_and_rows_that_were_bent_go_together() {
    bend::limit_memory();
    let mut shared = replay::row::TextPool::default();
    let rows: Vec<TaskRow> = corpus("fixtures/wire", &[".msgpack"], usize::MAX)
        .iter()
        .filter_map(|bytes| schemas::decode(bytes).ok())
        .map(|answer: schemas::Answer| TaskRow::of(&answer, &mut shared))
        .collect();
    let expressions = texts([
        "hard and (confidence < 0.5 or not label = \"a b\") and camera in (\"x\", \"y\")",
        "not (route = edge and stage = final) or person",
        "confidence >= 85 % and novelty < 0.5",
        "captured > 2026-11-30T12:00:00Z",
        "count(\"a b\") > 2 or any(label in (x, y) and not confidence < 0.4)",
        "all(area >= 5% or label like 'a*') and count() != 0",
    ]);
    bend_all("expressions", &expressions, turns(), |bytes| {
        let Ok(expression) = Expression::parse(&String::from_utf8_lossy(bytes)) else { return 1 };
        let _held = rows.iter().filter(|row| expression.matches(row)).count();
        1 + rows.len()
    });
    let written: Vec<Vec<u8>> = rows.iter().map(|row| serde_json::to_vec(row).unwrap()).collect();
    let fields: Vec<TaskField> =
        ["confidence", "label", "camera", "hard", "time"].into_iter().filter_map(TaskField::named).collect();
    bend_all("rows of pinned sets", &written, turns() / 2, |bytes| {
        let Ok(row) = serde_json::from_slice::<TaskRow>(bytes) else { return 1 };
        let _values = fields.iter().filter(|field| row.value(**field).is_some()).count();
        let _cells = replay::index::cells("a", &row, 7);
        let _of_it = (row.hardness(), row.is_wrong(), row.label().is_some());
        2
    });
}

#[test]
fn what_a_server_says_of_itself_is_read_or_passed_over() {
    bend::limit_memory();
    let answers = texts([
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 60\r\n\r\n{\"status\":\"unavailable\",\"errors\":[{\"error\":\"write error\"}]}",
        "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"ok\"}",
    ]);
    bend_all("pages of a server", &answers, turns(), |bytes| {
        let _health = monitor::parse_health(&String::from_utf8_lossy(bytes));
        1
    });
}

#[test]
fn settings_of_any_worker_that_were_bent_are_read_or_refused() {
    bend::limit_memory();
    let files = corpus("deploy/settings", &[".toml"], usize::MAX);
    let place = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    bend_all("tables of settings", &files, turns() / 10, |bytes| {
        std::fs::write(place.path(), bytes).unwrap();
        let _table = runtime::settings::table(place.path()).is_ok();
        1
    });
}
