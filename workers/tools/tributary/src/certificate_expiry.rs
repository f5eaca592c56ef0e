//! What expires: certificates, the fleet's authority, the root that the site trusts.

use std::path::Path;

use fleet::{FleetFolder, Membership, RENEW_WITHIN_DAYS, certificate_end, days_left};
use runtime::{clock, metrics};
use schemas::{FaultNote, Root};

use crate::format;
use crate::settings::Settings;

/// A certificate or a root, and when it expires.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expiry {
    /// Name of the certificate or root, for people and for the metric.
    pub what: String,
    /// Expiry, milliseconds since the epoch.
    pub ends_at_ms: u64,
    /// How to renew it.
    pub remedy: String,
}

/// Everything here that expires. `root`: the root that the site trusts now, where known. Unreadable certificates are
/// left out: whoever uses one reports it.
pub(crate) fn all(settings: &Settings, root: Option<&Root>) -> Vec<Expiry> {
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
                "replace the file and restart `tributary up`",
            ),
            None => add_certificate(
                &mut add,
                "certificate for clients",
                &made,
                "restart `tributary up`, which issues a new one",
            ),
        }
    }
    if let Some(path) = &settings.nats.ca {
        add_certificate(
            &mut add,
            "certificate authority of the server",
            path,
            "create a new one and give it to every worker",
        );
    }
    if let Some(path) = &settings.metrics.certificate {
        add_certificate(&mut add, "certificate of the metrics", path, "replace the file; it is reloaded at once");
    }
    if let Ok(Some(member)) = Membership::find(&up.store) {
        add(
            "certificate authority of the fleet",
            member.authority_ends_at_ms,
            "the operator creates a new fleet and adds the site again",
        );
        let root = root.filter(|root| root.number > member.root.number).unwrap_or(&member.root);
        add(
            courier::trust_anchor::EXPIRY,
            root.expires_at_ms,
            "the operator runs `tributary fleet root`; the site receives it over the link",
        );
    }
    all.sort_by_key(|expiry| expiry.ends_at_ms);
    all
}

/// Everything of a fleet's hub that expires.
pub(crate) fn of_hub(fleet: &FleetFolder) -> Vec<Expiry> {
    let dated = fleet.calendar().into_iter().filter_map(|entry| {
        let remedy = format!("run `{}`", entry.renewed_by);
        Some(Expiry { what: entry.what, ends_at_ms: entry.ends_at_ms?, remedy })
    });
    dated.collect()
}

fn add_certificate(add: &mut impl FnMut(&str, u64, &'static str), what: &str, path: &Path, remedy: &'static str) {
    match certificate_end(path) {
        Ok(ends_at_ms) => add(what, ends_at_ms, remedy),
        Err(error) => tracing::debug!(%error, what, "expiry unreadable"),
    }
}

/// What has expired or expires within 30 days, as faults for `status` and `doctor`.
pub(crate) fn faults(all: &[Expiry], now_ms: u64) -> Vec<FaultNote> {
    let soon = all.iter().map(|expiry| (expiry, days_left(expiry.ends_at_ms, now_ms)));
    soon.filter(|(_, left)| *left < RENEW_WITHIN_DAYS)
        .map(|(expiry, left)| match left {
            ..0 => FaultNote::new(
                "expired",
                format!("the {} expired {} ago", expiry.what, format::count(left.unsigned_abs(), "day")),
                &expiry.remedy,
            ),
            left => FaultNote::new(
                "expires_soon",
                format!("the {} expires in {}", expiry.what, format::count(left.unsigned_abs(), "day")),
                &expiry.remedy,
            ),
        })
        .collect()
}

/// Reports expiries in the metrics, and those within 30 days in the log.
pub(crate) fn report_expiries(all: &[Expiry]) {
    for expiry in all {
        metrics::note_expiry(&expiry.what, expiry.ends_at_ms);
    }
    for fault in faults(all, clock::now_ms()) {
        tracing::warn!(name = fault.kind.as_str(), reason = fault.reason, remedy = fault.remedy, "expiry approaching");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_within_a_month_is_reported_with_its_remedy() {
        const DAY_MS: u64 = 86_400_000;
        let ends =
            |days: u64| Expiry { what: format!("thing {days}"), ends_at_ms: days * DAY_MS, remedy: "renew it".into() };
        let all = [ends(1), ends(99), ends(129), ends(131)];
        let reported = faults(&all, 100 * DAY_MS);
        let reported: Vec<(&str, &str)> =
            reported.iter().map(|fault| (fault.kind.as_str(), fault.reason.as_str())).collect();
        assert_eq!(
            reported,
            [
                ("expired", "the thing 1 expired 99 days ago"),
                ("expired", "the thing 99 expired 1 day ago"),
                ("expires_soon", "the thing 129 expires in 29 days"),
            ]
        );
    }
}
