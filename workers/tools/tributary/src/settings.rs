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
use runtime::settings::LoadedSettings;
use runtime::traces::TelemetrySettings;
use schemas::SiteName;
use serde::{Deserialize, Serialize};
use streams::NatsSettings;
use streams::server::Durability;
use streams::topology::StreamSettings;
use training::TrainSettings;
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
    pub trainer: TrainSettings,
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
    /// Traces.
    pub telemetry: TelemetrySettings,
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
            trainer: TrainSettings::default(),
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

    fn check(&self) -> Result<(), String> {
        match (&self.certificate, &self.certificate_key, &self.authority) {
            (Some(_), None, _) => Err("up.certificate is set; up.certificate_key must name the file of its key".into()),
            (None, Some(_), _) | (None, _, Some(_)) => {
                Err("up.certificate_key or up.authority is set; up.certificate must name the certificate".into())
            }
            (Some(_), Some(_), _) if self.host.is_none() => {
                Err("up.certificate is set; up.host must be the name that stands in it".into())
            }
            _ => Ok(()),
        }
    }

    /// What a site's server is told about topics of other programs.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub fn mappings(&self, site: &SiteName) -> Result<Vec<(String, String)>, String> {
        let map = |(topic, camera): (&String, &String)| streams::subject::map_topic(site, topic, camera);
        self.camera_topics.iter().map(map).collect::<Result<_, _>>().map_err(|why| format!("up.camera_topics: {why}"))
    }
}

impl Settings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> anyhow::Result<()> {
        let checks = [
            self.publisher.check(),
            self.recognizer.check(),
            self.courier.check(),
            self.verifier.check(),
            self.trainer.check(),
            self.aggregator.check(),
            self.releaser.check(),
            self.replayer.check(),
            self.janitor.check(),
            self.notifier.check(),
            self.up.mappings(&self.site).map(|_| ()),
            self.streams.check(),
            self.up.check(),
            self.metrics.check(),
            self.telemetry.check(),
        ];
        if self.site == SiteName::cloud() {
            anyhow::bail!("setting site is {}, which stands for the cloud: name the site otherwise", self.site);
        }
        for check in checks {
            check.map_err(|why| anyhow::anyhow!("setting {why}: `tributary config --show` says where it came from"))?;
        }
        Ok(())
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
    use super::*;

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
