//! What ends by itself: certificates, the fleet's authority, the root that the site obeys.

use std::path::Path;

use fleet::{FleetFolder, Membership, RENEW_WITHIN_DAYS, certificate_end, days_left};
use runtime::{clock, metrics};
use schemas::{FaultNote, Root};

use crate::format;
use crate::settings::Settings;

/// A certificate or a root, and when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Expiry {
    /// What it is.
    pub what: String,
    /// When it ends, milliseconds since the epoch.
    pub ends_at_ms: u64,
    /// What renews it.
    pub remedy: String,
}

/// Everything at this place that ends. `root`: whom the site obeys now, where that is known. What cannot be read is passed
/// over: whoever needs it says so.
pub fn all(settings: &Settings, root: Option<&Root>) -> Vec<Expiry> {
    let up = &settings.up;
    let mut all = Vec::new();
    let mut add = |what: &str, ends_at_ms: u64, remedy: &'static str| {
        all.push(Expiry { what: what.into(), ends_at_ms, remedy: remedy.into() });
    };
    if up.listens_beyond_loopback() && !up.insecure {
        let made = up.store.join("tls/server.pem");
        match &up.certificate {
            Some(path) => add_certificate(
                &mut add,
                "certificate for clients",
                path,
                "put a new one in its place, and start `tributary up` again",
            ),
            None => add_certificate(
                &mut add,
                "certificate for clients",
                &made,
                "start `tributary up` again: it makes a new one",
            ),
        }
    }
    if let Some(path) = &settings.nats.ca {
        add_certificate(
            &mut add,
            "certificate authority of the server",
            path,
            "make a new one, and give it to every worker",
        );
    }
    if let Some(path) = &settings.metrics.certificate {
        add_certificate(
            &mut add,
            "certificate of the metrics",
            path,
            "put a new one in its place: it is taken at once",
        );
    }
    if let Ok(Some(member)) = Membership::find(&up.store) {
        add(
            "certificate authority of the fleet",
            member.authority_ends_at_ms,
            "the operator makes a new fleet and adds the site again",
        );
        let root = root.filter(|root| root.number > member.root.number).unwrap_or(&member.root);
        add(
            courier::trust_anchor::EXPIRY,
            root.expires_at_ms,
            "the operator runs `tributary fleet root`; it comes over the link",
        );
    }
    all.sort_by_key(|expiry| expiry.ends_at_ms);
    all
}

/// Everything of a fleet's hub that ends.
pub fn of_hub(fleet: &FleetFolder) -> Vec<Expiry> {
    let dated = fleet.calendar().into_iter().filter_map(|entry| {
        let remedy = format!("run `{}`", entry.renewed_by);
        Some(Expiry { what: entry.what, ends_at_ms: entry.ends_at_ms?, remedy })
    });
    dated.collect()
}

fn add_certificate(add: &mut impl FnMut(&str, u64, &'static str), what: &str, path: &Path, remedy: &'static str) {
    match certificate_end(path) {
        Ok(ends_at_ms) => add(what, ends_at_ms, remedy),
        Err(error) => tracing::debug!(%error, what, "it is not known when it ends"),
    }
}

/// What ends within 30 days, or has ended, as faults that people are told.
pub fn faults(all: &[Expiry], now_ms: u64) -> Vec<FaultNote> {
    let soon = all.iter().map(|expiry| (expiry, days_left(expiry.ends_at_ms, now_ms)));
    soon.filter(|(_, left)| *left < RENEW_WITHIN_DAYS)
        .map(|(expiry, left)| match left {
            ..0 => FaultNote::new(
                "expired",
                format!("the {} ended {} ago", expiry.what, format::count(left.unsigned_abs(), "day")),
                &expiry.remedy,
            ),
            left => FaultNote::new(
                "expires_soon",
                format!("the {} ends in {}", expiry.what, format::count(left.unsigned_abs(), "day")),
                &expiry.remedy,
            ),
        })
        .collect()
}

/// Makes it known to whoever asks for metrics, and to the log where something ends soon.
pub fn report_expiries(all: &[Expiry]) {
    for expiry in all {
        metrics::note_expiry(&expiry.what, expiry.ends_at_ms);
    }
    for fault in faults(all, clock::now_ms()) {
        tracing::warn!(name = fault.kind.as_str(), reason = fault.reason, remedy = fault.remedy, "something ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_within_a_month_is_told_with_what_to_do() {
        const DAY_MS: u64 = 86_400_000;
        let ends =
            |days: u64| Expiry { what: format!("thing {days}"), ends_at_ms: days * DAY_MS, remedy: "renew it".into() };
        let all = [ends(1), ends(99), ends(129), ends(131)];
        let told = faults(&all, 100 * DAY_MS);
        let told: Vec<(&str, &str)> = told.iter().map(|fault| (fault.kind.as_str(), fault.reason.as_str())).collect();
        assert_eq!(
            told,
            [
                ("expired", "the thing 1 ended 99 days ago"),
                ("expired", "the thing 99 ended 1 day ago"),
                ("expires_soon", "the thing 129 ends in 29 days"),
            ]
        );
    }
}
