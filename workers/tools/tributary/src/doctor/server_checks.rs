//! Checks of the site's server, its streams, and the cloud.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use schemas::limits::MAX_MESSAGE_BYTES;
use schemas::{FaultKind, FaultNote, Heartbeat};
use streams::fleet;
use streams::server::{self, Durability};
use streams::topology::{self, PlanScope, SettingDifference, SetupFinding, StreamSettings};
use streams::{Bus, CarryError, reader};

use super::DoctorCheck;
use crate::format;
use crate::settings::Settings;
use crate::site_target::SiteTarget;

/// How long to wait for the cloud.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(2);
/// Images that must be done within one ack_wait; a worker reports progress on a message three times in it.
const IMAGES_PER_ACK_WAIT: f64 = 10.0;
const MIB: u64 = 1024 * 1024;

/// All checks of the servers.
pub(super) async fn checks(site: &SiteTarget, settings: &Settings) -> Vec<DoctorCheck> {
    let mut checks = vec![reached(site), encrypted(&site.nats.url), max_payload(&site.bus), durability(site, settings)];
    checks.extend(disk(site, settings));
    // Concurrently, because each takes seconds without an answer.
    let (roles, wait, faults, clock, verify) = tokio::join!(
        role_checks(site),
        wait(&site.bus, settings),
        fault_checks(site, settings),
        clock(site),
        reader::stream_level(&site.bus, topology::VERIFY),
    );
    checks.extend(roles);
    checks.push(wait);
    checks.extend(faults);
    checks.push(clock);
    let shared = site.nats.cloud_domain.is_none();
    let both = shared && verify.is_ok();
    let (place, flag) = match both {
        true => (PlanScope::Both(site.name.clone()), " --both"),
        false => (PlanScope::Site(site.name.clone()), ""),
    };
    checks.extend(streams("site", &site.bus, &place, &settings.streams, flag).await);
    if !shared {
        checks.extend(cloud(site, settings).await);
    } else if !both {
        checks.push(DoctorCheck::warn(
            "cloud",
            "this server has no streams of the cloud, and nats.cloud_domain is not set",
            "set nats.cloud_domain, or recognizer.verify.enabled = false; doubtful answers wait for the cloud",
        ));
    }
    checks
}

/// The faults that `status` and the janitor's metric report, too.
async fn fault_checks(site: &SiteTarget, settings: &Settings) -> Vec<DoctorCheck> {
    let faults = site.find_faults(settings).await;
    let is_known = settings.janitor.monitor.is_some() || site.up.is_some();
    let mut checks: Vec<DoctorCheck> = faults.into_iter().map(check_of).collect();
    if !is_known && site.nats.cloud_domain.is_some() {
        checks.push(DoctorCheck::warn(
            "link rules",
            "unknown: they are read from the server's monitoring pages, whose address is not set",
            "set janitor.monitor, for example to http://127.0.0.1:8222",
        ));
    } else if checks.is_empty() && site.nats.cloud_domain.is_some() {
        checks.push(DoctorCheck::ok("link rules", "what belongs to the site stays there"));
    }
    checks
}

/// The roles of site and cloud that fail and are started again, each with the reason.
async fn role_checks(site: &SiteTarget) -> Vec<DoctorCheck> {
    let mut beats = fleet::live_workers(&site.bus).await.unwrap_or_default();
    if site.nats.cloud_domain.is_some() && site.is_cloud_whole {
        let cloud = tokio::time::timeout(CLOUD_TIMEOUT, fleet::live_workers(&site.cloud)).await;
        beats.extend(cloud.unwrap_or(Ok(Vec::new())).unwrap_or_default());
    }
    checks_of_roles(&beats, runtime::clock::now_ms())
}

fn checks_of_roles(beats: &[Heartbeat], now_ms: u64) -> Vec<DoctorCheck> {
    const WHAT: &str = "roles";
    let failing = beats.iter().filter_map(|beat| format::role_failure(beat, now_ms));
    let failing: Vec<DoctorCheck> =
        failing.map(|failure| DoctorCheck::bad(WHAT, failure.what, failure.remedy)).collect();
    if !failing.is_empty() || beats.is_empty() {
        return failing;
    }
    let mut running: Vec<&str> = beats.iter().map(|beat| beat.role.as_str()).collect();
    running.dedup();
    vec![DoctorCheck::ok(WHAT, format!("running: {}", running.join(", ")))]
}

fn check_of(fault: FaultNote) -> DoctorCheck {
    let check = DoctorCheck::bad(fault.kind.as_str().replace('_', " "), fault.reason, fault.remedy);
    match fault.kind.known() {
        Some(FaultKind::LinkLetsThrough) => check.breaks("images and acknowledgements stay at their site"),
        Some(FaultKind::ConsumerPaused | FaultKind::ConsumerMissing) => {
            check.breaks("every task ends in an answer or a dead letter")
        }
        _ => check,
    }
}

/// Compares this machine's clock with the server's.
async fn clock(site: &SiteTarget) -> DoctorCheck {
    const MAX_OFFSET_MS: i64 = 2_000;
    match runtime::clock::align_clock(&site.bus).await {
        Ok(ahead_ms) if ahead_ms.abs() > MAX_OFFSET_MS => DoctorCheck::warn(
            "clock",
            format!(
                "{} {} the server's",
                format::format_span(ahead_ms.unsigned_abs() as f64),
                if ahead_ms > 0 { "ahead of" } else { "behind" }
            ),
            "synchronize both (NTP); deadlines go by the server's",
        ),
        Ok(_) => DoctorCheck::ok("clock", "equal to the server's"),
        Err(error) => DoctorCheck::warn("clock", runtime::fault::error_chain(&error), "run `tributary setup`"),
    }
}

/// Whether the connection to the server is encrypted. Pure.
fn encrypted(url: &str) -> DoctorCheck {
    const WHAT: &str = "connection";
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match (scheme, is_here) {
        ("tls" | "wss", _) => DoctorCheck::ok(WHAT, "encrypted"),
        (_, true) => DoctorCheck::ok(WHAT, "not encrypted, but on this machine only"),
        (_, false) => DoctorCheck::warn(
            WHAT,
            format!("images and passwords are sent to {host} unencrypted"),
            "use a tls:// address in nats.url, and nats.ca if the server has its own certificate authority",
        ),
    }
}

fn reached(site: &SiteTarget) -> DoctorCheck {
    let (url, version) = (streams::connect::without_credentials(&site.nats.url), site.bus.server_version());
    DoctorCheck::ok("server", format!("nats-server {version} at {url}"))
}

fn max_payload(bus: &Bus) -> DoctorCheck {
    let (found, needed) = (bus.max_payload_bytes(), MAX_MESSAGE_BYTES);
    match found >= needed {
        true => DoctorCheck::ok("max_payload", format::format_size(found as u64)),
        false => DoctorCheck::bad(
            "max_payload",
            format!("{}; {} is needed", format::format_size(found as u64), format::format_size(needed as u64)),
            format!("set `max_payload: {needed}` in the server's configuration, and reload it"),
        )
        .breaks("every image within the limits is accepted, and can be sent up or dead-lettered"),
    }
}

fn durability(site: &SiteTarget, settings: &Settings) -> DoctorCheck {
    const WHAT: &str = "sync_interval";
    const GUARANTEE: &str = "an acknowledged image survives a power cut";
    match site.store(settings).and_then(|store| server::durability(&store)) {
        Some(Durability::PowerSafe) => DoctorCheck::ok(WHAT, "always: acknowledged images are on disk"),
        Some(Durability::Fast) => DoctorCheck::warn(
            WHAT,
            "2m (up.durability = fast): acknowledged images are on disk within two minutes",
            "set up.durability = \"power-safe\" and restart `up`, unless the machine never loses power",
        )
        .breaks(GUARANTEE),
        None => DoctorCheck::warn(
            WHAT,
            format!(
                "unknown: this server was not started by `tributary up` here; without sync_interval: always, it is not guaranteed that {GUARANTEE}"
            ),
            "make sure that its configuration has `jetstream { sync_interval: always }`, as in deploy/nats/site.conf",
        ),
    }
}

/// Whether the disk has room for full streams.
fn disk(site: &SiteTarget, settings: &Settings) -> Option<DoctorCheck> {
    let store = site.store(settings)?;
    let free = server::free_bytes(&store).ok()?;
    let limits = &settings.streams;
    let most: u64 = [limits.images_max_mib, limits.outbox_max_mib, limits.blobs_max_mib, limits.dead_max_mib]
        .into_iter()
        .map(|mib| u64::from(mib) * MIB)
        .sum();
    let needed = most.saturating_sub(used(&store));
    let found =
        format!("{} free; full streams need another {}", format::format_size(free), format::format_size(needed));
    Some(match free > needed {
        true => DoctorCheck::ok("disk", found),
        false => DoctorCheck::warn(
            "disk",
            found,
            format!(
                "free space at {}, or lower streams.images_max_mib: on a full disk the server stores nothing more",
                store.display()
            ),
        ),
    })
}

/// Bytes of the files below a folder.
fn used(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => used(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

/// Whether ack_wait, after which a message is redelivered, leaves enough time for an image.
async fn wait(bus: &Bus, settings: &Settings) -> DoctorCheck {
    const WHAT: &str = "ack_wait";
    let slowest = match fleet::live_workers(bus).await {
        Ok(beats) => beats.into_iter().filter_map(|beat| beat.cost_ms).reduce(f64::max),
        Err(error) => return DoctorCheck::bad(WHAT, runtime::fault::error_chain(&error), "run `tributary setup`"),
    };
    let ack_wait_s = settings.streams.ack_wait_s;
    match slowest {
        None => DoctorCheck::warn(
            WHAT,
            format!("{ack_wait_s} s; no running worker reports its cost per image"),
            "start a recognizer; `tributary status` shows the running workers",
        ),
        Some(cost_ms) if cost_ms * IMAGES_PER_ACK_WAIT > f64::from(ack_wait_s) * 1000.0 => DoctorCheck::warn(
            WHAT,
            format!("{ack_wait_s} s, and an image takes {}", format::format_span(cost_ms)),
            "raise streams.ack_wait_s and run `tributary setup --apply`: images that take longer are recognized twice",
        ),
        Some(cost_ms) => {
            DoctorCheck::ok(WHAT, format!("{ack_wait_s} s; an image takes at most {}", format::format_span(cost_ms)))
        }
    }
}

async fn cloud(site: &SiteTarget, settings: &Settings) -> Vec<DoctorCheck> {
    match reader::round_trip(&site.link, CLOUD_TIMEOUT).await {
        Ok(round_trip) => {
            let found =
                format!("answers over the leaf link in {}", format::format_span(round_trip.as_secs_f64() * 1000.0));
            let mut checks = vec![DoctorCheck::ok("cloud", found)];
            // Over its link a site sees only its own part of the cloud.
            if !site.is_cloud_whole {
                return checks;
            }
            let place = PlanScope::Cloud(vec![site.name.clone()]);
            let flag = format!(" --cloud {}", site.name);
            checks.extend(streams("cloud", &site.cloud, &place, &settings.streams, &flag).await);
            checks
        }
        Err(error) => vec![DoctorCheck::warn(
            "cloud",
            format!("does not answer: {}", runtime::fault::error_chain(&error)),
            "check the link (deploy/nats/site.conf); the site works without it and catches up",
        )],
    }
}

/// Compares the streams and consumers of a place with the settings.
async fn streams(what: &str, bus: &Bus, place: &PlanScope, settings: &StreamSettings, flag: &str) -> Vec<DoctorCheck> {
    let plan = topology::plan_topology(place, settings);
    let findings = match topology::compare_plan(bus, &plan).await {
        Ok(findings) => findings,
        Err(error) => return vec![failed(what, &error)],
    };
    let wrong: Vec<DoctorCheck> = findings.iter().flat_map(|finding| differences(finding, flag)).collect();
    match wrong.is_empty() {
        true => {
            vec![DoctorCheck::ok(format!("{what}'s streams"), format!("all {} as in the settings", findings.len()))]
        }
        false => wrong,
    }
}

fn failed(what: &str, error: &CarryError) -> DoctorCheck {
    DoctorCheck::bad(format!("{what}'s streams"), runtime::fault::error_chain(error), "run `tributary setup`")
}

fn differences(finding: &SetupFinding, flag: &str) -> Vec<DoctorCheck> {
    let SetupFinding { what, state } = finding;
    match state {
        topology::SetupStatus::Missing => {
            vec![DoctorCheck::bad(what, "does not exist", format!("create it with `tributary setup{flag}`"))]
        }
        topology::SetupStatus::Differs(differences) => {
            differences.iter().map(|difference| differs(what, difference, flag)).collect()
        }
        topology::SetupStatus::Refused(why) => {
            vec![DoctorCheck::bad(what, why.clone(), "check its server, then run `tributary setup`")]
        }
        topology::SetupStatus::Same | topology::SetupStatus::Created | topology::SetupStatus::Updated(_) => Vec::new(),
    }
}

fn differs(what: &str, difference: &SettingDifference, flag: &str) -> DoctorCheck {
    let SettingDifference { setting, wanted, found } = difference;
    // Remembering ids for longer breaks nothing.
    let is_harmless = setting == "duplicate_window" && found.as_u64() > wanted.as_u64();
    let is_higher = setting.starts_with("max_") && found.as_i64() > wanted.as_i64();
    let shrink = if is_higher { " --shrink" } else { "" };
    let found =
        format!("{setting} is {}, wanted {}", format::setting(setting, found), format::setting(setting, wanted));
    let remedy = format!("`tributary setup{flag} --apply{shrink}` changes it");
    match guarantee(setting).filter(|_| !is_harmless) {
        Some(guarantee) => DoctorCheck::bad(what, found, remedy).breaks(guarantee),
        None => DoctorCheck::warn(what, found, remedy),
    }
}

/// The guarantee that depends on a setting of a stream or a consumer; none for limits, which are the operator's choice.
fn guarantee(setting: &str) -> Option<&'static str> {
    Some(match setting {
        "discard" | "max_age" | "max_msgs_per_subject" => "an unanswered image is never dropped",
        "duplicate_window" => "an image that is published again is one task",
        "storage" | "sealed" => "what was acknowledged survives a restart",
        "deny_delete" | "deny_purge" => "answered images make room for new ones",
        "ack_policy" | "max_deliver" | "filter_subject" | "paused" => "every task ends in an answer or a dead letter",
        "retention" => "a message waits until it is done, and an image can be read again",
        "subjects" => "what is published on a site's subjects is stored",
        "allow_direct" => "an outcome can be fetched by its task id",
        "max_msg_size" => "every image within the limits is accepted",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::*;
    use schemas::{Role, RoleFailure};

    fn finding(setting: &str) -> SetupFinding {
        let difference = SettingDifference { setting: setting.into(), wanted: 1.into(), found: 2.into() };
        SetupFinding { what: "stream IMAGES".into(), state: topology::SetupStatus::Differs(vec![difference]) }
    }

    #[test]
    fn a_setting_behind_a_guarantee_is_bad_when_it_differs_and_a_limit_is_a_warning() {
        let broken = differences(&finding("discard"), "").remove(0);
        assert_eq!(broken.state, CheckStatus::Bad);
        assert!(broken.breaks.is_some_and(|guarantee| guarantee.contains("never dropped")));
        assert_eq!(differences(&finding("max_bytes"), "").remove(0).state, CheckStatus::Warn);
    }

    #[test]
    fn a_role_that_fails_is_bad_and_says_why() {
        let running = Heartbeat::for_worker(Role::Recognizer, "host-1".into(), None, 0);
        let failing = RoleFailure { why: "no graph.onnx".into(), failures: 1, next_try_at_ms: 0 };
        let failing =
            Heartbeat { failing: Some(failing), ..Heartbeat::for_worker(Role::Verifier, "host-1".into(), None, 0) };
        assert_eq!(checks_of_roles(std::slice::from_ref(&running), 5)[0].state, CheckStatus::Ok);
        let checks = checks_of_roles(&[running, failing], 5);
        assert_eq!((checks.len(), checks[0].state), (1, CheckStatus::Bad));
        assert!(checks[0].found.contains("The verifier fails (no graph.onnx; once,"), "{}", checks[0].found);
    }

    #[test]
    fn what_is_missing_names_the_command_that_creates_it() {
        let missing = SetupFinding { what: "stream VERIFY".into(), state: topology::SetupStatus::Missing };
        let check = differences(&missing, " --cloud reef").remove(0);
        assert!(check.remedy.is_some_and(|remedy| remedy.contains("`tributary setup --cloud reef`")));
    }
}
