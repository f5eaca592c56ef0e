//! Creates on a server what a plan lists, or reports how the server differs from it.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::Config as StreamConfig;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::TopologyPlan;
use crate::connect::Bus;
use crate::error::{CarryError, error_chain, is_missing};

/// What [`apply_plan`] or [`compare_plan`] found about one stream, bucket or consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetupFinding {
    /// Such as `stream IMAGES` or `consumer recognizer on IMAGES`.
    pub what: String,
    /// What was found or changed.
    pub state: SetupStatus,
}

/// Result for one stream, bucket or consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupStatus {
    /// It exists as planned.
    Same,
    /// It was created.
    Created,
    /// It was changed.
    Updated(Vec<SettingDifference>),
    /// It differs and was left as it is.
    Differs(Vec<SettingDifference>),
    /// The server refused to look it up, create it or change it; the server's message.
    Refused(String),
    /// It does not exist.
    Missing,
}

impl SetupStatus {
    fn of(differences: Vec<SettingDifference>) -> Self {
        if differences.is_empty() { Self::Same } else { Self::Differs(differences) }
    }
}

/// One setting that differs from the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SettingDifference {
    /// Name of the setting, in the server's terms.
    pub setting: String,
    /// Planned value, as JSON.
    pub wanted: serde_json::Value,
    /// Value on the server, as JSON.
    pub found: serde_json::Value,
}

/// What to do about streams and consumers that are missing or differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairMode {
    /// Report only.
    Nothing,
    /// Create what is missing and report what differs.
    Missing,
    /// Create what is missing and change what differs, except limits and replicas above the plan: lowering
    /// those drops messages or copies of them.
    Everything,
    /// Lower those too.
    AndLower,
}

const MAX_CONCURRENT_LOOKUPS: usize = 16;

/// Creates what the plan lists and reports what was there; idempotent. Continues after anything that the server
/// refuses.
///
/// # Errors
/// The server is unreachable.
pub async fn apply_plan(bus: &Bus, plan: &TopologyPlan, repair: RepairMode) -> Result<Vec<SetupFinding>, CarryError> {
    // Changes run one at a time. Lookups run concurrently, because one that gets no reply takes long.
    let concurrent = if repair == RepairMode::Nothing { MAX_CONCURRENT_LOOKUPS } else { 1 };
    let streams = futures::stream::iter(&plan.streams).map(async |wanted| {
        let state = report_refusal(bus, stream(bus, wanted, repair).await)?;
        Ok::<_, CarryError>(SetupFinding { what: format!("stream {}", wanted.name), state })
    });
    let consumers = futures::stream::iter(&plan.consumers).map(async |(stream, wanted)| {
        let state = report_refusal(bus, consumer(bus, stream, wanted, repair).await)?;
        let name = wanted.durable_name.clone().unwrap_or_default();
        Ok::<_, CarryError>(SetupFinding { what: format!("consumer {name} on {stream}"), state })
    });
    let mut findings: Vec<SetupFinding> = streams.buffered(concurrent).try_collect().await?;
    let consumers: Vec<SetupFinding> = consumers.buffered(concurrent).try_collect().await?;
    findings.extend(consumers);
    Ok(findings)
}

/// Turns a refusal into a finding while the server is still connected.
fn report_refusal(bus: &Bus, state: Result<SetupStatus, CarryError>) -> Result<SetupStatus, CarryError> {
    match state {
        Err(error) if bus.is_connected() => Ok(SetupStatus::Refused(error_chain(&error))),
        other => other,
    }
}

/// Reports how the server differs from the plan; changes nothing.
pub async fn compare_plan(bus: &Bus, plan: &TopologyPlan) -> Result<Vec<SetupFinding>, CarryError> {
    apply_plan(bus, plan, RepairMode::Nothing).await
}

async fn stream(bus: &Bus, wanted: &StreamConfig, repair: RepairMode) -> Result<SetupStatus, CarryError> {
    let what = format!("stream {}", wanted.name);
    let found = match bus.nats()?.js.get_stream(&wanted.name).await {
        Ok(found) => {
            let mut config = found.cached_info().config.clone();
            // A stream that refuses everything for lack of disk space keeps its planned limit in its metadata.
            config.max_bytes = crate::image_refusal::limit_in(&config);
            config
        }
        Err(error) if is_missing(&error) => {
            if repair == RepairMode::Nothing {
                return Ok(SetupStatus::Missing);
            }
            let created = bus.nats()?.js.create_stream(wanted.clone()).await;
            created.map_err(|error| match error.kind() {
                CreateStreamErrorKind::JetStream(refused)
                    if refused.error_code() == ErrorCode::STORAGE_RESOURCES_EXCEEDED =>
                {
                    CarryError::NoRoom { what: what.clone(), wanted_mib: wanted.max_bytes.max(0) as u64 >> 20 }
                }
                _ => CarryError::broker(format!("creating {what}"))(error),
            })?;
            return Ok(SetupStatus::Created);
        }
        Err(error) => return Err(CarryError::broker(format!("looking up {what}"))(error)),
    };
    let wanted = &with_other_sites(wanted, &found);
    let kept = kept_as_high(wanted, &found);
    // More replicas than planned are somebody's choice, not a difference; `persist_mode` cannot be changed.
    let num_replicas = if repair == RepairMode::AndLower { wanted.num_replicas } else { kept.num_replicas };
    let wanted = StreamConfig { num_replicas, persist_mode: kept.persist_mode, ..wanted.clone() };
    let differing = differences(&wanted, &found);
    let target = match repair {
        RepairMode::Nothing | RepairMode::Missing => return Ok(SetupStatus::of(differing)),
        RepairMode::Everything => kept,
        RepairMode::AndLower => wanted,
    };
    let changing = differences(&target, &found);
    if changing.is_empty() {
        // Above the plan, and kept so.
        return Ok(SetupStatus::of(differing));
    }
    bus.nats()?.js.update_stream(target).await.map_err(CarryError::broker(format!("changing {what}")))?;
    Ok(SetupStatus::Updated(changing))
}

/// The planned stream with the server's limits and replicas where those are higher: somebody raised them,
/// and lowering them drops messages or copies. Pure.
fn kept_as_high(wanted: &StreamConfig, found: &StreamConfig) -> StreamConfig {
    // A value below 1 means no limit.
    let limit = |wanted: i64, found: i64| if wanted > 0 && (found < 1 || found > wanted) { found } else { wanted };
    StreamConfig {
        num_replicas: wanted.num_replicas.max(found.num_replicas),
        // The server does not change it.
        persist_mode: found.persist_mode,
        max_bytes: match found.max_bytes {
            // Nobody wants a stream without a size limit.
            ..1 => wanted.max_bytes,
            found => limit(wanted.max_bytes, found),
        },
        max_messages: limit(wanted.max_messages, found.max_messages),
        max_age: if found.max_age.is_zero() { wanted.max_age } else { wanted.max_age.max(found.max_age) },
        ..wanted.clone()
    }
}

/// The planned stream with the subjects of other sites that were set up before: a plan names only the sites it is
/// made for. A subject that overlaps a planned one comes from an older plan and is dropped. Pure.
fn with_other_sites(wanted: &StreamConfig, found: &StreamConfig) -> StreamConfig {
    let kind = |subject: &str| subject.split('.').next().map(str::to_owned);
    let is_other = |found: &&String| {
        wanted.subjects.iter().any(|wanted| kind(wanted) == kind(found))
            && !wanted.subjects.iter().any(|wanted| overlap(wanted, found))
    };
    let others: Vec<String> = found.subjects.iter().filter(is_other).cloned().collect();
    // In the server's order, so that a mere reordering is no difference.
    let mut subjects: Vec<String> =
        found.subjects.iter().filter(|s| wanted.subjects.contains(s) || others.contains(s)).cloned().collect();
    subjects.extend(wanted.subjects.iter().filter(|subject| !found.subjects.contains(subject)).cloned());
    StreamConfig { subjects, ..wanted.clone() }
}

/// Whether some subject matches both patterns. Pure.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

async fn consumer(
    bus: &Bus,
    stream: &str,
    wanted: &pull::Config,
    repair: RepairMode,
) -> Result<SetupStatus, CarryError> {
    let name = wanted.durable_name.clone().unwrap_or_default();
    let what = format!("consumer {name} on {stream}");
    let stream_handle = match bus.nats()?.js.get_stream_no_info(stream).await {
        Ok(handle) => handle,
        Err(error) => return Err(CarryError::broker(format!("looking up stream {stream}"))(error)),
    };
    let found = match stream_handle.consumer_info(&name).await {
        Ok(info) if info.paused => {
            let difference = SettingDifference { setting: "paused".into(), wanted: false.into(), found: true.into() };
            if matches!(repair, RepairMode::Nothing | RepairMode::Missing) {
                return Ok(SetupStatus::Differs(vec![difference]));
            }
            stream_handle.resume_consumer(&name).await.map_err(CarryError::broker(format!("resuming {what}")))?;
            stream_handle
                .update_consumer(wanted.clone())
                .await
                .map_err(CarryError::broker(format!("changing {what}")))?;
            return Ok(SetupStatus::Updated(vec![difference]));
        }
        Ok(info) => info.config,
        Err(error) if is_missing(&error) => {
            if repair == RepairMode::Nothing {
                return Ok(SetupStatus::Missing);
            }
            stream_handle
                .create_consumer_strict(wanted.clone())
                .await
                .map_err(CarryError::broker(format!("creating {what}")))?;
            return Ok(SetupStatus::Created);
        }
        Err(error) => return Err(CarryError::broker(format!("looking up {what}"))(error)),
    };
    use async_nats::jetstream::consumer::IntoConsumerConfig;
    let differences = differences(&wanted.clone().into_consumer_config(), &found);
    if differences.is_empty() {
        return Ok(SetupStatus::Same);
    }
    if matches!(repair, RepairMode::Nothing | RepairMode::Missing) {
        return Ok(SetupStatus::Differs(differences));
    }
    stream_handle.update_consumer(wanted.clone()).await.map_err(CarryError::broker(format!("changing {what}")))?;
    Ok(SetupStatus::Updated(differences))
}

/// Limits by which a server drops or refuses messages, or stops delivering them: where the plan has none, the server
/// must have none.
const LOSSY_LIMITS: [&str; 4] = ["max_age", "max_msgs_per_subject", "max_msg_size", "max_deliver"];

/// What a stream must not forbid unless the plan does: it would prevent purging.
const FORBIDDING_FLAGS: [&str; 4] = ["deny_delete", "deny_purge", "sealed", "no_ack"];

/// Settings that the plan names and the server has otherwise. What the plan leaves at its default is up to the server,
/// except where it would lose messages.
fn differences(wanted: &impl Serialize, found: &impl Serialize) -> Vec<SettingDifference> {
    let object = |value| match value {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (mut wanted, found) = (object(serde_json::to_value(wanted)), object(serde_json::to_value(found)));
    for flag in FORBIDDING_FLAGS.into_iter().filter(|flag| found.get(*flag) == Some(&true.into())) {
        wanted.entry(flag).or_insert(false.into());
    }
    let blank = |value: &serde_json::Value| match value {
        serde_json::Value::Null => true,
        serde_json::Value::Number(number) => number.as_i64().is_some_and(|number| number <= 0),
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(fields) => fields.is_empty(),
        serde_json::Value::Bool(_) => false,
    };
    wanted
        .into_iter()
        .filter_map(|(setting, wanted)| {
            let found = found.get(&setting).cloned().unwrap_or_default();
            let differs = match blank(&wanted) {
                true => !blank(&found) && LOSSY_LIMITS.contains(&setting.as_str()),
                false => found != wanted,
            };
            differs.then_some(SettingDifference { setting, wanted, found })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{COUNTED, IMAGES, durable, file};
    use super::*;

    #[test]
    fn a_limit_that_loses_messages_is_a_difference_even_where_none_is_planned() {
        let names =
            |differences: Vec<SettingDifference>| differences.into_iter().map(|d| d.setting).collect::<Vec<_>>();
        let wanted = file(IMAGES, Vec::new());
        let found = StreamConfig { max_age: Duration::from_secs(60), max_messages: 5, ..wanted.clone() };
        assert_eq!(names(differences(&wanted, &found)), ["max_age"]);
        let wanted = durable("recognizer-reef", Duration::from_secs(30), COUNTED);
        let found = pull::Config { max_deliver: 5, ..wanted.clone() };
        use async_nats::jetstream::consumer::IntoConsumerConfig;
        let (wanted, found) = (wanted.into_consumer_config(), found.into_consumer_config());
        assert_eq!(names(differences(&wanted, &found)), ["max_deliver"]);
        assert!(differences(&wanted, &wanted).is_empty());
    }

    #[test]
    fn setting_up_a_site_keeps_the_others_and_replaces_an_older_plan() {
        let with = |subjects: &[&str]| file("VERIFY", subjects.iter().map(|subject| (*subject).to_owned()).collect());
        let found = with(&["verify.*.reef.*", "verify.*.farm.*"]);
        let same = with_other_sites(&with(&["verify.*.farm.*"]), &found);
        assert!(differences(&same, &found).is_empty());
        let more = with_other_sites(&with(&["verify.*.lab.*"]), &found);
        assert_eq!(more.subjects, ["verify.*.reef.*", "verify.*.farm.*", "verify.*.lab.*"]);
        assert_eq!(with_other_sites(&found, &with(&["verify.*.*.*"])).subjects, found.subjects);
    }

    #[test]
    fn raised_limits_are_kept_unless_asked_and_forbidden_purging_is_reported() {
        let mut wanted = file(IMAGES, Vec::new());
        wanted.max_bytes = 100;
        let raised = StreamConfig { max_bytes: 200, num_replicas: 3, ..wanted.clone() };
        assert!(differences(&kept_as_high(&wanted, &raised), &raised).is_empty());
        assert_eq!(differences(&wanted, &raised).len(), 2, "lowered on request");
        let lower = StreamConfig { max_bytes: 50, ..wanted.clone() };
        assert_eq!(kept_as_high(&wanted, &lower).max_bytes, 100);
        let endless = StreamConfig { max_bytes: -1, ..wanted.clone() };
        assert_eq!(kept_as_high(&wanted, &endless).max_bytes, 100);
        let forbidding = StreamConfig { deny_purge: true, ..wanted.clone() };
        let reported = differences(&wanted, &forbidding);
        assert_eq!(reported.iter().map(|difference| difference.setting.as_str()).collect::<Vec<_>>(), ["deny_purge"]);
    }
}
