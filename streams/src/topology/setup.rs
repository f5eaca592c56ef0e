//! Makes a server have what a plan wants, or says what it has otherwise.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::Config as StreamConfig;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::TopologyPlan;
use crate::connect::Bus;
use crate::error::{CarryError, error_chain, is_missing};

/// What [`setup`] or [`compare`] found about one stream, bucket or consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetupFinding {
    /// For example `stream IMAGES` or `consumer recognizer on IMAGES`.
    pub what: String,
    /// What was found or done.
    pub state: SetupStatus,
}

/// What was found or done.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupStatus {
    /// It exists as wanted.
    Same,
    /// It was made now.
    Created,
    /// It was changed now.
    Updated(Vec<SettingDifference>),
    /// It differs and was left alone.
    Differs(Vec<SettingDifference>),
    /// It could not be looked up, made or changed; the words of the server.
    Refused(String),
    /// It does not exist.
    Missing,
}

impl SetupStatus {
    fn of(differences: Vec<SettingDifference>) -> Self {
        if differences.is_empty() { Self::Same } else { Self::Differs(differences) }
    }
}

/// One setting that is not as wanted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SettingDifference {
    /// Name of the setting, as the server calls it.
    pub setting: String,
    /// What is wanted, as JSON.
    pub wanted: serde_json::Value,
    /// What the server has, as JSON.
    pub found: serde_json::Value,
}

/// What to do about a stream or consumer that is missing or differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairMode {
    /// Report only.
    Nothing,
    /// Create what is missing, report what differs.
    Missing,
    /// Create what is missing and change what differs, but for limits and replicas that are higher than wanted: lowering
    /// those drops messages or copies of them.
    Everything,
    /// Lower them, too.
    AndLower,
}

const LOOKS_AT_ONCE: usize = 16;

/// Makes what the plan wants exist, and says what was there; doing it twice is doing it once. Goes on after what the server
/// refuses.
///
/// # Errors
/// That the server is away.
pub async fn apply_plan(bus: &Bus, plan: &TopologyPlan, mend: RepairMode) -> Result<Vec<SetupFinding>, CarryError> {
    // One after another where something is changed; looks do not wait for each other, for what is silent takes long.
    let at_once = if mend == RepairMode::Nothing { LOOKS_AT_ONCE } else { 1 };
    let streams = futures::stream::iter(&plan.streams).map(async |wanted| {
        let state = refused(bus, stream(bus, wanted, mend).await)?;
        Ok::<_, CarryError>(SetupFinding { what: format!("stream {}", wanted.name), state })
    });
    let consumers = futures::stream::iter(&plan.consumers).map(async |(stream, wanted)| {
        let state = refused(bus, consumer(bus, stream, wanted, mend).await)?;
        let name = wanted.durable_name.clone().unwrap_or_default();
        Ok::<_, CarryError>(SetupFinding { what: format!("consumer {name} on {stream}"), state })
    });
    let mut findings: Vec<SetupFinding> = streams.buffered(at_once).try_collect().await?;
    let consumers: Vec<SetupFinding> = consumers.buffered(at_once).try_collect().await?;
    findings.extend(consumers);
    Ok(findings)
}

/// What the server refuses is a finding, as long as it is there to refuse the next.
fn refused(bus: &Bus, state: Result<SetupStatus, CarryError>) -> Result<SetupStatus, CarryError> {
    match state {
        Err(error) if bus.is_connected() => Ok(SetupStatus::Refused(error_chain(&error))),
        other => other,
    }
}

/// What the plan wants and the server has otherwise; changes nothing.
pub async fn compare_plan(bus: &Bus, plan: &TopologyPlan) -> Result<Vec<SetupFinding>, CarryError> {
    apply_plan(bus, plan, RepairMode::Nothing).await
}

async fn stream(bus: &Bus, wanted: &StreamConfig, mend: RepairMode) -> Result<SetupStatus, CarryError> {
    let what = format!("stream {}", wanted.name);
    let found = match bus.js.get_stream(&wanted.name).await {
        Ok(found) => {
            let mut config = found.cached_info().config.clone();
            // One that refuses everything for want of disk has its limit all the same.
            config.max_bytes = crate::image_refusal::limit_in(&config);
            config
        }
        Err(error) if is_missing(&error) => {
            if mend == RepairMode::Nothing {
                return Ok(SetupStatus::Missing);
            }
            let created = bus.js.create_stream(wanted.clone()).await;
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
    // More replicas than wanted are somebody's choice, and no difference; when a stream writes cannot be changed.
    let num_replicas = if mend == RepairMode::AndLower { wanted.num_replicas } else { kept.num_replicas };
    let wanted = StreamConfig { num_replicas, persist_mode: kept.persist_mode, ..wanted.clone() };
    let differing = differences(&wanted, &found);
    let target = match mend {
        RepairMode::Nothing | RepairMode::Missing => return Ok(SetupStatus::of(differing)),
        RepairMode::Everything => kept,
        RepairMode::AndLower => wanted,
    };
    let changing = differences(&target, &found);
    if changing.is_empty() {
        // Higher than wanted, and kept so.
        return Ok(SetupStatus::of(differing));
    }
    bus.js.update_stream(target).await.map_err(CarryError::broker(format!("changing {what}")))?;
    Ok(SetupStatus::Updated(changing))
}

/// What is wanted, but with the limits and replicas that the server has where those are higher: somebody raised them,
/// and lowering them drops messages, or copies of them. Pure.
fn kept_as_high(wanted: &StreamConfig, found: &StreamConfig) -> StreamConfig {
    // Below 1 is no limit.
    let limit = |wanted: i64, found: i64| if wanted > 0 && (found < 1 || found > wanted) { found } else { wanted };
    StreamConfig {
        num_replicas: wanted.num_replicas.max(found.num_replicas),
        // No server changes it.
        persist_mode: found.persist_mode,
        max_bytes: match found.max_bytes {
            // A stream without a size is what nobody wants.
            ..1 => wanted.max_bytes,
            found => limit(wanted.max_bytes, found),
        },
        max_messages: limit(wanted.max_messages, found.max_messages),
        max_age: if found.max_age.is_zero() { wanted.max_age } else { wanted.max_age.max(found.max_age) },
        ..wanted.clone()
    }
}

/// What is wanted, with the subjects of the same kinds of sites that were set up before: a plan names only the sites it is
/// asked for. Those that a wanted one overlaps are of an older plan, and go. Pure.
fn with_other_sites(wanted: &StreamConfig, found: &StreamConfig) -> StreamConfig {
    let kind = |subject: &str| subject.split('.').next().map(str::to_owned);
    let is_other = |found: &&String| {
        wanted.subjects.iter().any(|wanted| kind(wanted) == kind(found))
            && !wanted.subjects.iter().any(|wanted| overlap(wanted, found))
    };
    let others: Vec<String> = found.subjects.iter().filter(is_other).cloned().collect();
    // In the server's order, so that nothing that is there already is a difference.
    let mut subjects: Vec<String> =
        found.subjects.iter().filter(|s| wanted.subjects.contains(s) || others.contains(s)).cloned().collect();
    subjects.extend(wanted.subjects.iter().filter(|subject| !found.subjects.contains(subject)).cloned());
    StreamConfig { subjects, ..wanted.clone() }
}

/// Whether one subject may match both patterns. Pure.
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

async fn consumer(bus: &Bus, stream: &str, wanted: &pull::Config, mend: RepairMode) -> Result<SetupStatus, CarryError> {
    let name = wanted.durable_name.clone().unwrap_or_default();
    let what = format!("consumer {name} on {stream}");
    let on = match bus.js.get_stream_no_info(stream).await {
        Ok(on) => on,
        Err(error) => return Err(CarryError::broker(format!("looking up stream {stream}"))(error)),
    };
    let found = match on.consumer_info(&name).await {
        Ok(info) if info.paused => {
            let difference = SettingDifference { setting: "paused".into(), wanted: false.into(), found: true.into() };
            if matches!(mend, RepairMode::Nothing | RepairMode::Missing) {
                return Ok(SetupStatus::Differs(vec![difference]));
            }
            on.resume_consumer(&name).await.map_err(CarryError::broker(format!("resuming {what}")))?;
            on.update_consumer(wanted.clone()).await.map_err(CarryError::broker(format!("changing {what}")))?;
            return Ok(SetupStatus::Updated(vec![difference]));
        }
        Ok(info) => info.config,
        Err(error) if is_missing(&error) => {
            if mend == RepairMode::Nothing {
                return Ok(SetupStatus::Missing);
            }
            on.create_consumer_strict(wanted.clone()).await.map_err(CarryError::broker(format!("creating {what}")))?;
            return Ok(SetupStatus::Created);
        }
        Err(error) => return Err(CarryError::broker(format!("looking up {what}"))(error)),
    };
    use async_nats::jetstream::consumer::IntoConsumerConfig;
    let differences = differences(&wanted.clone().into_consumer_config(), &found);
    if differences.is_empty() {
        return Ok(SetupStatus::Same);
    }
    if matches!(mend, RepairMode::Nothing | RepairMode::Missing) {
        return Ok(SetupStatus::Differs(differences));
    }
    on.update_consumer(wanted.clone()).await.map_err(CarryError::broker(format!("changing {what}")))?;
    Ok(SetupStatus::Updated(differences))
}

/// Limits by which a server forgets or refuses messages, or stops delivering them: where the plan wants none, there
/// may be none.
const FORGETFUL: [&str; 4] = ["max_age", "max_msgs_per_subject", "max_msg_size", "max_deliver"];

/// What a stream may not forbid where the plan does not: nothing could be cleared away.
const FORBIDDING: [&str; 4] = ["deny_delete", "deny_purge", "sealed", "no_ack"];

/// The settings a plan names and the server has otherwise. What the plan leaves at its default (no
/// limit, nothing) is the server's business, except where it would lose messages.
fn differences(wanted: &impl Serialize, found: &impl Serialize) -> Vec<SettingDifference> {
    let object = |value| match value {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (mut wanted, found) = (object(serde_json::to_value(wanted)), object(serde_json::to_value(found)));
    for flag in FORBIDDING.into_iter().filter(|flag| found.get(*flag) == Some(&true.into())) {
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
                true => !blank(&found) && FORGETFUL.contains(&setting.as_str()),
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
    fn a_limit_that_would_lose_messages_is_a_difference_even_where_none_is_wanted() {
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
    fn setting_up_a_site_leaves_the_others_and_takes_the_place_of_an_older_plan() {
        let with = |subjects: &[&str]| file("VERIFY", subjects.iter().map(|subject| (*subject).to_owned()).collect());
        let found = with(&["verify.*.reef.*", "verify.*.farm.*"]);
        let same = with_other_sites(&with(&["verify.*.farm.*"]), &found);
        assert!(differences(&same, &found).is_empty());
        let more = with_other_sites(&with(&["verify.*.lab.*"]), &found);
        assert_eq!(more.subjects, ["verify.*.reef.*", "verify.*.farm.*", "verify.*.lab.*"]);
        assert_eq!(with_other_sites(&found, &with(&["verify.*.*.*"])).subjects, found.subjects);
    }

    #[test]
    fn what_somebody_raised_is_not_lowered_unasked_and_what_forbids_clearing_away_is_told() {
        let mut wanted = file(IMAGES, Vec::new());
        wanted.max_bytes = 100;
        let raised = StreamConfig { max_bytes: 200, num_replicas: 3, ..wanted.clone() };
        assert!(differences(&kept_as_high(&wanted, &raised), &raised).is_empty());
        assert_eq!(differences(&wanted, &raised).len(), 2, "asked for, it is lowered");
        let lower = StreamConfig { max_bytes: 50, ..wanted.clone() };
        assert_eq!(kept_as_high(&wanted, &lower).max_bytes, 100);
        let endless = StreamConfig { max_bytes: -1, ..wanted.clone() };
        assert_eq!(kept_as_high(&wanted, &endless).max_bytes, 100);
        let forbidding = StreamConfig { deny_purge: true, ..wanted.clone() };
        let told = differences(&wanted, &forbidding);
        assert_eq!(told.iter().map(|told| told.setting.as_str()).collect::<Vec<_>>(), ["deny_purge"]);
    }
}
