//! All settings of the binary, each worker's in its own section.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use aggregator::AggregatorSettings;
use anyhow::Context;
use courier::CourierSettings;
use janitor::JanitorSettings;
use notifier::NotifierSettings;
use publish::PublisherSettings;
use recognizer::RecognizerSettings;
use releaser::ReleaserSettings;
use replay::ReplayerSettings;
use runtime::metrics::MetricsSettings;
use runtime::settings::{LoadedSettings, check_section};
use schemas::SiteName;
use serde::{Deserialize, Serialize};
use streams::NatsSettings;
use streams::server::Durability;
use streams::topology::StreamSettings;
use trainer::TrainerSettings;
use verifier::VerifierSettings;

use crate::CommonArgs;

/// All settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Name of the site.
    pub site: SiteName,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Where the server is.
    pub nats: NatsSettings,
    /// How much the streams may hold.
    pub streams: StreamSettings,
    /// Publishing.
    pub publisher: PublisherSettings,
    /// Recognizing.
    pub recognizer: RecognizerSettings,
    /// The link.
    pub courier: CourierSettings,
    /// Verifying.
    pub verifier: VerifierSettings,
    /// Training.
    pub trainer: TrainerSettings,
    /// Rounds and releases.
    pub aggregator: AggregatorSettings,
    /// Which sites run what.
    pub releaser: ReleaserSettings,
    /// Replaying.
    pub replayer: ReplayerSettings,
    /// The archive.
    pub janitor: JanitorSettings,
    /// Answers in JSON.
    pub notifier: NotifierSettings,
    /// What a worker tells who asks.
    pub metrics: MetricsSettings,
    /// Everything on this machine.
    pub up: UpSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            site: SiteName::default_site(),
            onnxruntime: None,
            nats: NatsSettings::default(),
            streams: StreamSettings::default(),
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
            up: UpSettings::default(),
        }
    }
}

/// What an operator may choose about `tributary up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpSettings {
    /// Folder of the servers' stores, configurations and logs.
    pub store: PathBuf,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// When an acknowledged image is on the disk: `power-safe` before, `fast` within two minutes.
    pub durability: Durability,
    /// File of the key that servers encrypt with what they store; made if absent. Without it nothing stored can be read.
    pub encryption_key: Option<PathBuf>,
    /// Port for clients; 0 finds a free one. With several sites, the first site's; the others follow.
    pub port: u16,
    /// Port for clients of the cloud's server, where sites have servers of their own; 0 finds a free one.
    pub cloud_port: u16,
    /// Port for MQTT clients; 0 finds a free one, absent offers none.
    pub mqtt_port: Option<u16>,
    /// Address on which NATS clients are listened for, for example `0.0.0.0` where cameras are other machines. On any address
    /// but loopback, connections are encrypted and every client needs a login (`tributary camera add`).
    pub listen: IpAddr,
    /// The same for MQTT clients.
    pub mqtt_listen: IpAddr,
    /// Name or address by which cameras reach this machine, and which its certificate bears; the machine's own name if absent.
    pub host: Option<String>,
    /// File with a certificate for clients, PEM; absent: one of the site's own authority, made in the store.
    pub certificate: Option<PathBuf>,
    /// File with the key of `certificate`, PEM.
    pub certificate_key: Option<PathBuf>,
    /// File with the authority of `certificate`, PEM; absent: one that the system trusts.
    pub authority: Option<PathBuf>,
    /// Whether listening beyond loopback is meant to be unencrypted and open: anybody who reaches this machine may then publish
    /// and read images without a password.
    pub insecure: bool,
    /// Topics of other programs whose messages are images of a camera: `"frigate/+/+/snapshot" = "$1"` takes what stands in
    /// place of the first wildcard for the camera's name.
    pub camera_topics: BTreeMap<String, String>,
    /// Whether final answers are also told in JSON, on `answer-json.<site>.<camera>`.
    pub answers_json: bool,
    /// Whether each site trains, beside its work, on what is labelled there.
    pub train: bool,
    /// Whether what sites learn is merged into releases.
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
    /// Whether clients from other machines can reach a site's server.
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
                Err("certificate is set; host must be the name that stands in it".into())
            }
            _ => Ok(()),
        }
    }

    /// What a site's server is told about topics of other programs.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub fn mappings(&self, site: &SiteName) -> Result<Vec<(String, String)>, String> {
        self.map_topics(site).map_err(|why| format!("up.{why}"))
    }

    fn map_topics(&self, site: &SiteName) -> Result<Vec<(String, String)>, String> {
        let map = |(topic, camera): (&String, &String)| streams::subject::map_topic(site, topic, camera);
        self.camera_topics.iter().map(map).collect::<Result<_, _>>().map_err(|why| format!("camera_topics: {why}"))
    }
}

impl Settings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.site == SiteName::cloud() {
            anyhow::bail!("setting site is {}, which stands for the cloud: name the site otherwise", self.site);
        }
        for (section, check) in self.check_sections() {
            check_section(section, check)
                .map_err(|why| anyhow::anyhow!("setting {why}: `tributary config --show` says where it came from"))?;
        }
        Ok(())
    }

    /// What each section says of itself. Messages begin with the key within the section.
    fn check_sections(&self) -> [(&'static str, Result<(), String>); 13] {
        [
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
        ]
    }
}

/// Defaults, file, environment, flags.
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
    Ok(runtime::settings::load(common.settings.as_deref(), &flags)?)
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
            ("publisher.max_in_flight", json!(0), &[]),
            ("publisher.tile.overlap_px", json!(64), &[("publisher.tile.tile_px", "64")]),
            ("recognizer.scale.min_replicas", json!(0), &[]),
            ("recognizer.scale.max_replicas", json!(1), &[("recognizer.scale.min_replicas", "2")]),
            ("recognizer.infer.decode.deep_bits", json!(17), &[]),
            ("recognizer.gate.max_novelty", json!(2), &[]),
            ("recognizer.gate.labels.fish", json!(2), &[]),
            ("recognizer.gate.target_accuracy_ratio", json!(0.2), &[]),
            ("recognizer.policy.share_ratio", json!(2), &[]),
            ("recognizer.policy.load.cpu_low_ratio", json!(1), &[]),
            ("recognizer.drift.recent_answers", json!(1), &[]),
            ("recognizer.drift.reference_answers", json!(100), &[]),
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
            assert!(rest.starts_with(' ') || rest.starts_with(": "), "{key}: {text}");
            let names = |section: &&str| key.strip_prefix(*section).is_some_and(|rest| rest.starts_with('.'));
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
