//! All settings, each worker's in its own section.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use aggregator::AggregatorSettings;
use anyhow::Context;
use courier::CourierSettings;
use grabber::{CameraSettings, check_cameras};
use janitor::JanitorSettings;
use notifier::NotifierSettings;
use publish::PublisherSettings;
use recognizer::RecognizerSettings;
use releaser::ReleaserSettings;
use replay::ReplayerSettings;
use runtime::metrics::MetricsSettings;
use runtime::settings::{LoadedSettings, SettingsError, check_section};
use runtime::traces::TelemetrySettings;
use schemas::SiteName;
use serde::{Deserialize, Serialize};
use streams::NatsSettings;
use streams::server::Durability;
use streams::topology::StreamSettings;
use trainer::TrainerSettings;
use verifier::VerifierSettings;

use crate::{CommonArgs, stdout};

/// All settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Name of the site.
    pub site: SiteName,
    /// File of the ONNX Runtime library; if absent, the usual places are searched.
    pub onnxruntime: Option<PathBuf>,
    /// The nats-server and how to log in.
    pub nats: NatsSettings,
    /// Limits of the streams.
    pub streams: StreamSettings,
    /// Cameras whose pictures are taken, each an entry `[[camera]]`. Changes of the file take effect while `up` or the
    /// grabber runs.
    pub camera: Vec<CameraSettings>,
    /// `tributary publish`.
    pub publisher: PublisherSettings,
    /// The recognizer: gate, policy, verification, drift.
    pub recognizer: RecognizerSettings,
    /// The courier: link and budget.
    pub courier: CourierSettings,
    /// The verifier.
    pub verifier: VerifierSettings,
    /// The trainer.
    pub trainer: TrainerSettings,
    /// The aggregator: rounds, merge rules, release store.
    pub aggregator: AggregatorSettings,
    /// The releaser: rings and canaries.
    pub releaser: ReleaserSettings,
    /// Reading the archive: export, evaluate, pin, republish.
    pub replayer: ReplayerSettings,
    /// The janitor: purging and auditing the archive.
    pub janitor: JanitorSettings,
    /// The notifier: answers in JSON.
    pub notifier: NotifierSettings,
    /// The metrics endpoint.
    pub metrics: MetricsSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// `tributary up`.
    pub up: UpSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            site: SiteName::default_site(),
            onnxruntime: None,
            nats: NatsSettings::default(),
            streams: StreamSettings::default(),
            camera: Vec::new(),
            publisher: PublisherSettings::default(),
            recognizer: RecognizerSettings::default(),
            courier: CourierSettings::default(),
            verifier: VerifierSettings::default(),
            trainer: TrainerSettings::default(),
            aggregator: AggregatorSettings::default(),
            releaser: ReleaserSettings::default(),
            replayer: ReplayerSettings::default(),
            janitor: JanitorSettings::default(),
            notifier: NotifierSettings::default(),
            metrics: MetricsSettings::default(),
            telemetry: TelemetrySettings::default(),
            up: UpSettings::default(),
        }
    }
}

/// Settings of `tributary up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpSettings {
    /// Folder of the servers' stores, configurations and logs.
    pub store: PathBuf,
    /// The nats-server program; if absent, the usual places are searched.
    pub nats_server: Option<PathBuf>,
    /// When an acknowledged image is on disk: `power-safe`, before the acknowledgement; `fast`, within two minutes.
    pub durability: Durability,
    /// File of the key that encrypts the servers' stores; created if it does not exist. Without it no store can be
    /// read.
    pub encryption_key: Option<PathBuf>,
    /// Port for clients; 0 takes a free one. With several sites, the first site's; the others follow.
    pub port: u16,
    /// Port for clients of the cloud's server, where sites have their own servers; 0 takes a free one.
    pub cloud_port: u16,
    /// Port for MQTT clients; 0 takes a free one; absent, MQTT is off.
    pub mqtt_port: Option<u16>,
    /// Listen address for NATS clients, for example `0.0.0.0` where cameras are other machines. Beyond loopback,
    /// connections are encrypted and every client needs a login (`tributary camera add`).
    pub listen: IpAddr,
    /// Listen address for MQTT clients, likewise.
    pub mqtt_listen: IpAddr,
    /// Host name or address by which cameras reach this machine, named in its certificate; the machine's own name if
    /// absent.
    pub host: Option<String>,
    /// File of the server certificate, PEM; if absent, the site's own authority issues one into the store.
    pub certificate: Option<PathBuf>,
    /// File of the certificate's key, PEM.
    pub certificate_key: Option<PathBuf>,
    /// File of the certificate's authority, PEM; absent if the system trusts it.
    pub authority: Option<PathBuf>,
    /// Listen beyond loopback without encryption and logins: anybody who reaches this machine may publish and read
    /// images.
    pub insecure: bool,
    /// Topics of other programs whose messages are images, with the camera's name: `"frigate/+/+/snapshot" = "$1"`
    /// takes the part that matches the first wildcard.
    pub camera_topics: BTreeMap<String, String>,
    /// Also publish in JSON: final answers on `answer-json.<site>.<camera>`, how a camera is on
    /// `camera-json.<site>.<camera>.health`, and the state of what it shows on `camera-json.<site>.<camera>.state`.
    pub answers_json: bool,
    /// Run a trainer at each site, on the images labelled there.
    pub train: bool,
    /// Run an aggregator, which merges the sites' updates into releases.
    pub merge: bool,
}

impl Default for UpSettings {
    fn default() -> Self {
        Self {
            store: PathBuf::from("tributary-data"),
            nats_server: None,
            durability: Durability::default(),
            encryption_key: None,
            port: 0,
            cloud_port: 0,
            mqtt_port: None,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            mqtt_listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host: None,
            certificate: None,
            certificate_key: None,
            authority: None,
            insecure: false,
            camera_topics: BTreeMap::new(),
            answers_json: false,
            train: false,
            merge: false,
        }
    }
}

impl UpSettings {
    /// Whether other machines can reach a site's server.
    pub fn listens_beyond_loopback(&self) -> bool {
        !self.listen.is_loopback() || self.mqtt_port.is_some() && !self.mqtt_listen.is_loopback()
    }

    fn check(&self, site: &SiteName) -> Result<(), String> {
        self.map_topics(site)?;
        match (&self.certificate, &self.certificate_key, &self.authority) {
            (Some(_), None, _) => Err("certificate is set; certificate_key must name the file of its key".into()),
            (None, Some(_), _) => Err("certificate_key is set; certificate must name the certificate".into()),
            (None, _, Some(_)) => Err("authority is set; certificate must name the certificate".into()),
            (Some(_), Some(_), _) if self.host.is_none() => {
                Err("certificate is set; host must be the name in it".into())
            }
            _ => Ok(()),
        }
    }

    /// The server's subject mappings for topics of other programs.
    ///
    /// # Errors
    /// The setting and what is wrong with it.
    pub fn mappings(&self, site: &SiteName) -> Result<Vec<(String, String)>, String> {
        self.map_topics(site).map_err(|why| format!("up.{why}"))
    }

    fn map_topics(&self, site: &SiteName) -> Result<Vec<(String, String)>, String> {
        let map = |(topic, camera): (&String, &String)| streams::subject::map_topic(site, topic, camera);
        self.camera_topics.iter().map(map).collect::<Result<_, _>>().map_err(|why| format!("camera_topics: {why}"))
    }
}

impl Settings {
    /// Checks every setting's range.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.site == SiteName::cloud() {
            anyhow::bail!("setting site is {}, which is reserved for the cloud: choose another name", self.site);
        }
        for (section, check) in self.check_sections() {
            check_section(section, check)
                .map_err(|why| anyhow::anyhow!("setting {why}: `tributary config --show` names its origin"))?;
        }
        Ok(())
    }

    /// What each section says of itself. Messages begin with the key within the section.
    fn check_sections(&self) -> [(&'static str, Result<(), String>); 15] {
        [
            ("camera", check_cameras(&self.camera)),
            ("publisher", self.publisher.check()),
            ("recognizer", self.recognizer.check()),
            ("courier", self.courier.check()),
            ("verifier", self.verifier.check()),
            ("trainer", self.trainer.check()),
            ("aggregator", self.aggregator.check()),
            ("releaser", self.releaser.check()),
            ("replayer", self.replayer.check()),
            ("janitor", self.janitor.check()),
            ("notifier", self.notifier.check()),
            ("streams", self.streams.check()),
            ("up", self.up.check(&self.site)),
            ("metrics", self.metrics.check()),
            ("telemetry", self.telemetry.check()),
        ]
    }
}

/// Loads the settings from defaults, file, environment and flags, in rising order of precedence.
pub fn load(common: &CommonArgs, more: &[(String, serde_json::Value)]) -> anyhow::Result<LoadedSettings<Settings>> {
    let mut flags = Vec::new();
    for pair in &common.set {
        let (key, value) = pair.split_once('=').with_context(|| format!("--set {pair}: write KEY=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value));
        flags.push((key.to_owned(), value));
    }
    let mut text = |key: &str, value: &Option<String>| {
        flags.extend(value.iter().map(|value| (key.to_owned(), value.as_str().into())));
    };
    text("nats.url", &common.nats);
    text("site", &common.site);
    text("up.store", &common.store.as_ref().map(|path| path.display().to_string()));
    flags.extend(more.iter().cloned());
    runtime::settings::load(common.settings.as_deref(), &flags).map_err(|error| {
        let is_camera = matches!(&error, SettingsError::Bad { key, .. } if key.split('.').next() == Some("camera"));
        let wrong = is_camera.then(|| wrong_camera(common)).flatten();
        wrong.map_or_else(|| error.into(), anyhow::Error::msg)
    })
}

/// The same for a command that takes no pictures: cameras that cannot be used are said and left out, so that somebody who
/// mistypes one still sees how the others are.
pub fn load_for_looking(
    common: &CommonArgs,
    more: &[(String, serde_json::Value)],
) -> anyhow::Result<LoadedSettings<Settings>> {
    let whole = load(common, more).and_then(|loaded| {
        check_section("camera", check_cameras(&loaded.settings.camera))
            .map_err(|why| anyhow::anyhow!("setting {why}"))?;
        Ok(loaded)
    });
    let error = match whole {
        Ok(loaded) => return Ok(loaded),
        Err(error) => error,
    };
    let without = [more, &[("camera".to_owned(), serde_json::json!([]))]].concat();
    let Ok(loaded) = load(common, &without) else { return Err(error) };
    stdout::print_note(format_args!(
        "note: the cameras of the settings are left out: {}",
        stdout::with_causes(&error, ": ")
    ));
    Ok(loaded)
}

/// Which `[[camera]]` of the settings file cannot be read, and why: the reader of settings names no entries.
fn wrong_camera(common: &CommonArgs) -> Option<String> {
    let file = common.settings.as_deref().unwrap_or(Path::new(runtime::settings::DEFAULT_FILE));
    let table = runtime::settings::table(file).ok()?;
    let entries = table.get("camera")?.as_array()?.iter().zip(1..);
    let mut wrong =
        entries.filter_map(|(entry, number)| Some((entry, number, CameraSettings::deserialize(entry).err()?)));
    let (entry, number, why) = wrong.next()?;
    let name = entry.get("name").and_then(serde_json::Value::as_str);
    let name = name.map(|name| format!(" ({})", crate::format::plain_text(name))).unwrap_or_default();
    Some(format!("camera {number}{name} in {}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    /// A key, a value that it must not have, and what else must be set for that.
    type WrongSetting = (&'static str, Value, &'static [(&'static str, &'static str)]);

    fn wrong_settings() -> Vec<WrongSetting> {
        vec![
            ("camera", json!([{ "name": "gate", "url": "rtsp://gate/main", "rate_per_s": 0 }]), &[]),
            ("publisher.max_in_flight", json!(0), &[]),
            ("publisher.tile.overlap_px", json!(64), &[("publisher.tile.tile_px", "64")]),
            ("recognizer.scale.min_replicas", json!(0), &[]),
            ("recognizer.scale.max_replicas", json!(1), &[("recognizer.scale.min_replicas", "2")]),
            ("recognizer.infer.decode.deep_bits", json!(17), &[]),
            ("recognizer.gate.max_novelty", json!(2), &[]),
            ("recognizer.gate.labels.fish", json!(2), &[]),
            ("recognizer.gate.target_accuracy_ratio", json!(0.2), &[]),
            ("recognizer.policy.max_offloaded", json!(0), &[]),
            ("recognizer.policy.load.cpu_low_ratio", json!(1), &[]),
            ("recognizer.drift.recent_answers", json!(1), &[]),
            ("recognizer.drift.reference_answers", json!(100), &[]),
            ("recognizer.reuse.max_difference", json!(0), &[]),
            ("recognizer.reuse.max_in_a_row", json!(0), &[]),
            ("recognizer.reuse.check_every", json!(1), &[]),
            ("recognizer.reuse.target_wrong_ratio", json!(1), &[]),
            ("recognizer.reuse.cameras.door.max_difference", json!(65), &[]),
            ("recognizer.states.changes_after", json!(0), &[]),
            ("recognizer.verify.sample_ratio", json!(2), &[]),
            ("recognizer.report_s", json!(0), &[]),
            ("recognizer.count_s", json!(0), &[]),
            ("recognizer.tries", json!(0), &[]),
            ("courier.uploads", json!(0), &[]),
            ("courier.budget.max_bytes_per_s", json!(0), &[]),
            ("courier.link.probe_every_ms", json!(1), &[]),
            ("verifier.scale.target_s", json!(0), &[]),
            ("verifier.infer.decode.deep_bits", json!(7), &[]),
            ("verifier.temperature", json!(0), &[]),
            ("verifier.report_s", json!(0), &[]),
            ("verifier.tries", json!(51), &[]),
            ("trainer.epochs", json!(0), &[]),
            ("trainer.trainable", json!("last none"), &[]),
            ("trainer.optimizer.learning_rate", json!(0), &[]),
            ("trainer.augment.turn_degrees", json!(181), &[]),
            ("trainer.limits.cpu_ratio", json!(0), &[]),
            ("trainer.limits.least_ratio", json!(0.3), &[("trainer.limits.inference_reserve_ratio", "0.8")]),
            ("trainer.limits.inference_reserve_ratio", json!(1), &[]),
            ("trainer.limits.piece_images", json!(0), &[]),
            ("trainer.collect.max_images", json!(1), &[]),
            ("aggregator.public_max_mib", json!(0), &[]),
            ("aggregator.round.quorum", json!(0), &[]),
            ("aggregator.round.ring", json!("none"), &[]),
            ("aggregator.round.trainable", json!("last none"), &[]),
            ("aggregator.check.samples_max", json!(0), &[]),
            ("aggregator.merge.rule", json!("none"), &[]),
            ("aggregator.merge.weigh.size", json!(9), &[]),
            ("aggregator.merge.filter.trim_ratio", json!(1), &[]),
            ("aggregator.merge.server_optimizer.rate", json!(0), &[]),
            ("releaser.judge_s", json!(0), &[]),
            ("releaser.rings.share_ratio", json!(0), &[]),
            ("releaser.canary.false_alarm_ratio", json!(1), &[]),
            ("releaser.canary.crashes", json!(0), &[]),
            ("replayer.in_flight_mib", json!(0), &[]),
            ("janitor.high_ratio", json!(2), &[]),
            ("janitor.low_ratio", json!(0.9), &[]),
            ("janitor.every_s", json!(0), &[]),
            ("notifier.mqtt", json!("broker"), &[]),
            ("notifier.mqtt_password_file", json!("password"), &[]),
            ("streams.images_max_mib", json!(0), &[]),
            ("streams.answers_max_messages", json!(10), &[]),
            ("up.certificate", json!("site.pem"), &[]),
            ("up.certificate_key", json!("site.key"), &[]),
            ("up.authority", json!("ca.pem"), &[]),
            ("up.camera_topics", json!({ "a topic": "cam" }), &[]),
            ("metrics.listen", json!("0.0.0.0:9464"), &[]),
            ("metrics.key", json!("metrics.key"), &[]),
            ("telemetry.sample_ratio", json!(2), &[]),
            ("telemetry.otlp", json!("a collector"), &[]),
        ]
    }

    #[test]
    fn a_wrong_value_is_named_by_its_key_as_the_user_writes_it() {
        let nothing = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        let loaded = |key: &str, value: Value, others: &[(&str, &str)]| {
            let mut flags: Vec<(String, Value)> =
                others.iter().map(|(key, value)| ((*key).to_owned(), serde_json::from_str(value).unwrap())).collect();
            flags.push(match key {
                // Rings are a list.
                "releaser.rings.share_ratio" => ("releaser.rings".into(), json!([{ "share_ratio": value }])),
                key => (key.to_owned(), value),
            });
            runtime::settings::load::<Settings>(Some(nothing.path()), &flags).unwrap().settings
        };
        let mut sections: BTreeSet<&str> =
            Settings::default().check_sections().iter().map(|(section, _)| *section).collect();
        for (key, value, others) in wrong_settings() {
            let text = loaded(key, value, others).check().expect_err(key).to_string();
            let rest = text.strip_prefix("setting ").and_then(|text| text.strip_prefix(key)).unwrap_or_default();
            // Of a list, the entry is named.
            let is_named = [" ", ": ", ".gate.rate_per_s "].iter().any(|begin| rest.starts_with(begin));
            assert!(is_named, "{key}: {text}");
            let names = |section: &&str| {
                key.strip_prefix(*section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            sections.retain(|section| !names(section));
        }
        assert!(sections.is_empty(), "nothing wrong is tried in {sections:?}");
    }

    #[test]
    fn settings_that_were_bent_are_checked_or_refused_by_name() {
        let files = bend::corpus("deploy/settings", &[".toml"], usize::MAX);
        let place = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        bend::bend_all("settings", &files, bend::turns() / 100, |bytes| {
            std::fs::write(place.path(), bytes).unwrap();
            if let Ok(loaded) = runtime::settings::load::<Settings>(Some(place.path()), &[]) {
                let _checked = loaded.settings.check().is_ok();
            }
            1
        });
    }
}
