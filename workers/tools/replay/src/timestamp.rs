//! Times as people write them: a date, a time, or how long ago. Pure.

use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

/// Parses `2026-11-25`, `2026-11-25T10:30:00Z` or milliseconds since the epoch, and, if `now_ms` is given, how long
/// ago, such as `90m`, `2h` or `7d`. Returns milliseconds since the epoch.
///
/// # Errors
/// One sentence that says how to write it.
pub fn parse_timestamp(text: &str, now_ms: Option<u64>) -> Result<u64, String> {
    let wrong = || {
        let ago = if now_ms.is_some() { ", or how long ago, such as 90m, 2h or 7d" } else { "" };
        format!("{text:?} is not a time; write 2026-11-25, 2026-11-25T10:30:00Z{ago}")
    };
    if let Ok(at_ms) = text.parse::<u64>() {
        return Ok(at_ms);
    }
    if let (Some(now_ms), Some(ago_ms)) = (now_ms, ago_ms(text)) {
        return Ok(now_ms.saturating_sub(ago_ms));
    }
    let day = time::macros::format_description!("[year]-[month]-[day]");
    let at = match Date::parse(text, &day) {
        Ok(date) => date.midnight().assume_utc(),
        Err(_) => OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?,
    };
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong())
}

/// Formats a time for people, in UTC.
pub fn format_timestamp(at_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    at.ok().and_then(|at| at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{at_ms} ms"))
}

fn ago_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let each_ms = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(each_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_times_and_spans_are_parsed() {
        let now_ms = Some(1_000_000_000_000);
        assert_eq!(parse_timestamp("2001-09-09", None), Ok(999_993_600_000));
        assert_eq!(parse_timestamp("2001-09-09T01:46:40Z", None), Ok(1_000_000_000_000));
        assert_eq!(parse_timestamp("2001-09-09T03:46:40+02:00", None), Ok(1_000_000_000_000));
        assert_eq!(parse_timestamp("90m", now_ms), Ok(1_000_000_000_000 - 5_400_000));
        assert_eq!(parse_timestamp("1700000000123", None), Ok(1_700_000_000_123));
        for text in ["", "h", "yesterday", "2001-13-01", "99999999999999999999d", "-1h"] {
            assert!(parse_timestamp(text, now_ms).is_err(), "{text:?}");
        }
        assert!(parse_timestamp("2h", None).is_err());
    }
}
