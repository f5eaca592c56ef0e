//! Times, sizes and tables as text. Pure.

pub use operations::words::{count, list};
use schemas::{DetectedObject, Heartbeat, RoleFailure};
use serde::Serialize;
use time::OffsetDateTime;

/// A moment in UTC, to the millisecond.
pub fn format_time(at_ms: u64) -> String {
    let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000) else {
        return format!("{at_ms} ms");
    };
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second, ms) = (at.hour(), at.minute(), at.second(), at.millisecond());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A span of time, from milliseconds.
pub fn format_span(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        ..60_000.0 => format!("{:.1} s", ms / 1000.0),
        ..3_600_000.0 => format!("{:.1} min", ms / 60_000.0),
        ..86_400_000.0 => format!("{:.1} h", ms / 3_600_000.0),
        _ => format!("{:.1} days", ms / 86_400_000.0),
    }
}

/// A span of time, from microseconds.
pub fn span_us(us: u64) -> String {
    format_span(us as f64 / 1000.0)
}

/// A size, from bytes.
pub fn format_size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        ..1024.0 => format!("{bytes} bytes"),
        ..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        ..1_073_741_824.0 => format!("{:.1} MiB", bytes / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes / 1_073_741_824.0),
    }
}

/// A ratio from 0 to 1, in percent.
pub fn percent(ratio: impl Into<f64>) -> String {
    format!("{:.1} %", ratio.into() * 100.0)
}

/// Untrusted text without control characters, which a terminal would execute.
pub fn plain_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text with every SHA-256 in it cut to the digits that name a release elsewhere.
pub fn shorten_digests(text: &str) -> String {
    const DIGEST: usize = 64;
    const SHORT: usize = 12;
    let short = |word: &str| match word.len() == DIGEST && word.chars().all(|c| c.is_ascii_hexdigit()) {
        true => word.chars().take(SHORT).collect(),
        false => word.to_owned(),
    };
    text.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .map(|part| {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let rest = part.strip_prefix(word).unwrap_or_default();
            short(word) + rest
        })
        .collect()
}

/// The wire word of a value.
pub fn wire_word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(value) => value.to_string(),
        Err(_) => "?".into(),
    }
}

/// The value of a server's setting, in a readable unit.
pub fn setting(name: &str, value: &serde_json::Value) -> String {
    match (name, value.as_u64()) {
        _ if value.is_null() => "none".into(),
        (limit, _) if limit.starts_with("max_") && value.as_i64().is_some_and(|value| value <= 0) => "no limit".into(),
        ("ack_wait" | "duplicate_window" | "max_age", Some(ns)) => format_span(ns as f64 / 1e6),
        ("max_bytes" | "max_msg_size", Some(bytes)) => format_size(bytes),
        _ => value.to_string(),
    }
}

/// Most characters of a cell.
const MOST_CELL: usize = 200;

/// Rows under a head, in columns as wide as their widest cell. Cells may hold untrusted text: control characters are
/// replaced and long cells cut.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let shown = |cell: &String| match cell.chars().nth(MOST_CELL) {
        Some(_) => plain_text(&cell.chars().take(MOST_CELL - 1).chain(['\u{2026}']).collect::<String>()),
        None => plain_text(cell),
    };
    let columns = head.len();
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows = rows.iter().map(|row| row.iter().map(shown).collect());
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A role that fails, for people.
pub struct RoleFailureText {
    /// Which, why and how often.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What to say of a worker whose role fails; `None` if it runs.
pub fn role_failure(beat: &Heartbeat, now_ms: u64) -> Option<RoleFailureText> {
    let RoleFailure { why, failures, next_try_at_ms } = beat.failing.as_ref()?;
    let times = if *failures == 1 { "once".into() } else { format!("{failures} times in a row") };
    let next = match next_try_at_ms.saturating_sub(now_ms) {
        0 => "tried again now".into(),
        left_ms => format!("next try in {}", format_span(left_ms as f64)),
    };
    Some(RoleFailureText {
        what: format!("The {} fails ({why}; {times}, {next})", beat.role),
        remedy: "mend what it names; it is started again by itself, and the other roles go on".into(),
    })
}

/// Objects by label, `2 person, 1 dog`: the label of the surest first; `nothing` without objects.
pub fn summarize_objects(objects: &[DetectedObject]) -> String {
    /// More are counted together, so that a line stays one.
    const MOST_LABELS: usize = 5;
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for object in objects {
        match counts.iter_mut().find(|(label, _)| *label == object.label) {
            Some((_, count)) => *count += 1,
            None => counts.push((&object.label, 1)),
        }
    }
    let others: usize = counts.iter().skip(MOST_LABELS).map(|(_, count)| count).sum();
    let named = counts.iter().take(MOST_LABELS).map(|(label, count)| format!("{count} {}", plain_text(label)));
    let others = (others > 0).then(|| format!("{others} others"));
    let summary = named.chain(others).collect::<Vec<_>>().join(", ");
    if summary.is_empty() { "nothing".to_owned() } else { summary }
}

/// One object: confidence, label, and its edges in percent of the picture.
pub fn object_row(object: &DetectedObject) -> Vec<String> {
    let shown = <[f32; 4]>::from(object.bounds).map(|edge| format!("{:.1}", edge * 100.0)).join(" ");
    vec![percent(object.confidence), plain_text(&object.label), shown]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_in_utc() {
        assert_eq!(format_time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(format_time(u64::MAX), format!("{} ms", u64::MAX), "beyond the calendar");
    }

    #[test]
    fn spans_and_sizes_keep_to_a_unit_that_can_be_read() {
        assert_eq!([0.42, 42.0, 4200.0, 420_000.0].map(format_span), ["0.4 ms", "42 ms", "4.2 s", "7.0 min"]);
        assert_eq!([783, 2048, 3 << 20, 4 << 30].map(format_size), ["783 bytes", "2.0 KiB", "3.0 MiB", "4.0 GiB"]);
    }

    #[test]
    fn digests_are_shortened_wherever_they_stand_and_nothing_else_is() {
        let digest = "3fa71d".repeat(11).chars().take(64).collect::<String>();
        let text = format!("fish {digest}: because ({digest}), {digest}0 and 3fa71d");
        let short = format!("fish 3fa71d3fa71d: because (3fa71d3fa71d), {digest}0 and 3fa71d");
        assert_eq!(shorten_digests(&text), short);
    }

    #[test]
    fn a_servers_settings_have_units() {
        let shown = |name, value: i64| setting(name, &value.into());
        assert_eq!(shown("ack_wait", 30_000_000_000), "30.0 s");
        assert_eq!(shown("max_bytes", 4 << 30), "4.0 GiB");
        assert_eq!(shown("max_deliver", -1), "no limit");
        assert_eq!(setting("discard", &"new".into()), "\"new\"");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["abc".to_owned(), String::new()]];
        assert_eq!(table(&["x", "y"], &rows), "x    y\na    long\nabc");
    }

    #[test]
    fn a_cell_neither_controls_the_terminal_nor_fills_it() {
        let shown = table(&["x"], &[vec!["a\u{1b}[2J\n".to_owned() + &"b".repeat(100_000)]]);
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.chars().count() < 500 && !shown.contains('\u{1b}') && shown.ends_with('\u{2026}'));
    }

    #[test]
    fn objects_are_counted_by_label() {
        let object = |label: &str| DetectedObject {
            label: label.to_owned(),
            confidence: 0.875,
            bounds: [0.0, 0.25, 0.5, 1.0].into(),
        };
        let objects = ["person", "dog", "person"].map(object);
        assert_eq!(summarize_objects(&objects), "2 person, 1 dog");
        assert_eq!(summarize_objects(&[]), "nothing");
        let many: Vec<DetectedObject> = (0..20).map(|label| object(&format!("l{label}"))).collect();
        assert_eq!(summarize_objects(&many), "1 l0, 1 l1, 1 l2, 1 l3, 1 l4, 15 others");
        assert_eq!(object_row(&objects[1]), ["87.5 %", "dog", "0.0 25.0 50.0 100.0"]);
    }

    #[test]
    fn a_label_cannot_control_the_terminal() {
        assert_eq!(plain_text("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn cells_that_were_bent_cannot_control_the_terminal() {
        let cells = bend::texts(["cat", "\u{1b}[2J\u{9b}31m", "a\tb\r\n", "\u{202e}\u{1f41f}"]);
        bend::bend_all("cells of tables", &cells, bend::turns() / 4, |bytes| {
            let cell = String::from_utf8_lossy(bytes).into_owned();
            let shown = table(&["label", "count"], &[vec![cell, "1".into()]]);
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
            1
        });
    }
}
