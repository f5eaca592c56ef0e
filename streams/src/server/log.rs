//! Reads a server's log, which says what its clients are not told.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// File of the log in a server's store; its times are UTC.
pub(super) const LOG: &str = "nats-server.log";
/// Bytes at the end of a log that are examined.
pub(super) const LOG_TAIL_BYTES: u64 = 512 * 1024;

/// The stream for which the server of this store last dropped messages within `time`: they arrived faster than its
/// disk writes, and only publishers who asked for an acknowledgement were told. Read from the server's log.
pub fn dropped_within(store: &Path, time: Duration) -> Option<String> {
    last_drop(&log_tail(store)?, OffsetDateTime::now_utc() - time)
}

/// The subject on which the server of this store last refused a message within `time`. Read from the server's log: an
/// MQTT client is not told, because version 3.1.1 has no way to say it.
pub fn refused_within(store: &Path, time: Duration) -> Option<String> {
    last_refusal(&log_tail(store)?, OffsetDateTime::now_utc() - time)
}

/// The end of a server's log.
pub(super) fn log_tail(store: &Path) -> Option<String> {
    let mut log = fs::File::open(store.join(LOG)).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut end = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}

/// The subject of the last refusal in a log, unless it is older than `since`. Pure.
pub(super) fn last_refusal(log: &str, since: OffsetDateTime) -> Option<String> {
    // [pid] 2026/11/30 07:51:43.201269 [ERR] 127.0.0.1:56641 - mid:119 - "client" - Publish Violation - Subject
    // "image.a.b"
    let line = log.lines().rev().find(|line| line.contains("Publish Violation"))?;
    let subject = line.rsplit_once("Subject \"")?.1.split('"').next()?;
    (time_of(line)? >= since).then(|| subject.to_owned())
}

/// The time of a log line. Pure.
pub(super) fn time_of(line: &str) -> Option<OffsetDateTime> {
    let (_, rest) = line.split_once("] ")?;
    let format = format_description!("[year]/[month]/[day] [hour]:[minute]:[second]");
    Some(PrimitiveDateTime::parse(rest.get(..19)?, format).ok()?.assume_utc())
}

/// The stream of the last drop in a log, unless it is older than `since`. Pure.
pub(super) fn last_drop(log: &str, since: OffsetDateTime) -> Option<String> {
    // [pid] 2026/11/29 03:00:22.123456 [WRN] Dropping messages due to excessive stream ingest rate on '$G' > 'IMAGES':
    // …
    let line = log.lines().rev().find(|line| line.contains("Dropping messages due to excessive stream ingest rate"))?;
    let stream = line.split('\'').nth(3)?;
    (time_of(line)? >= since).then(|| stream.to_owned())
}

pub(super) fn last_error(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let telling = text.lines().rev().find(|line| line.contains("[FTL]") || line.contains("[ERR]"));
    telling.or(text.lines().last()).unwrap_or("its log is empty").to_owned()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn dropped_messages_are_read_from_the_log_for_a_while() {
        let log = "[7] 2026/11/28 23:10:04.271811 [INF] Server is ready\n\
                   [7] 2026/11/29 03:20:15.100000 [WRN] Dropping messages due to excessive stream ingest rate on '$G' > 'IMAGES': IPQ size limit reached\n\
                   [7] 2026/11/29 03:21:00.000000 [INF] another line\n";
        assert_eq!(last_drop(log, datetime!(2026-11-29 03:00 UTC)).as_deref(), Some("IMAGES"));
        assert_eq!(last_drop(log, datetime!(2026-11-29 03:21 UTC)), None);
        assert_eq!(last_drop("cut off in the mid", datetime!(2026-11-29 03:00 UTC)), None);
    }

    #[test]
    fn refused_messages_are_read_from_the_log_for_a_while() {
        let log = "[7] 2026/11/30 07:51:43.201269 [ERR] 127.0.0.1:56641 - mid:119 - \"yUol\" - Publish Violation - Subject \"image.site-1.gate-2\"\n\
                   [7] 2026/11/30 07:52:00.000000 [INF] another line\n";
        assert_eq!(last_refusal(log, datetime!(2026-11-30 07:51 UTC)).as_deref(), Some("image.site-1.gate-2"));
        assert_eq!(last_refusal(log, datetime!(2026-11-30 07:52 UTC)), None);
        assert_eq!(last_refusal("[7] 2026 Publish Violation - Subject", datetime!(2026-11-30 07:51 UTC)), None);
    }
}
