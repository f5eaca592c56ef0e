//! A site under test: a nats-server and optional recognizers, each in its own process, with production settings except
//! for the gate, which is open so that every answer is final.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use schemas::{Role, SiteName};
use streams::permissions;
use streams::server::{CertificateFiles, ClientListener, Durability, LeafMode, Server, ServerSettings};
use streams::topology::{self, PlanScope, RepairMode, StreamSettings};
use streams::{Bus, NatsSettings, reader};
use vision::InferenceSettings;

use crate::error::BenchError;
use crate::worker::BenchWorker;

/// Names of a site's processes in a report: the bench itself, the nats-server, the recognizer.
pub(crate) const LOAD: &str = "load";
/// See [`LOAD`].
pub(crate) const SERVER: &str = "server";
/// See [`LOAD`].
pub(crate) const RECOGNIZER: &str = "recognizer";

/// Paths and inference settings shared by all sites of a measurement.
#[derive(Debug, Clone)]
pub(crate) struct TestbedPaths {
    /// Folder of the stores; its creator removes it.
    pub folder: PathBuf,
    /// The nats-server program; searched for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Absolute path of the model folder.
    pub model: PathBuf,
    /// Replicas, threads and batch size.
    pub infer: InferenceSettings,
}

/// How a site's server separates its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientIsolation {
    /// No separation: every client may do everything.
    Open,
    /// One user per role with least privilege, unencrypted, as on loopback in production.
    Users,
    /// One user per role over TLS, as for cameras on other machines.
    Tls,
}

/// A running site. Dropping it stops all its processes.
pub(crate) struct BenchSite {
    // Fields drop in this order: a client that outlives its server would wait for a reconnect.
    recognizers: Vec<BenchWorker>,
    /// The bench's own connection.
    pub bus: Bus,
    server: Server,
    isolation: ClientIsolation,
    /// Name of the site.
    pub name: SiteName,
}

impl BenchSite {
    /// Starts a server with all streams of a site and a cloud, without workers.
    pub(crate) async fn start(label: &str, durability: Durability, paths: &TestbedPaths) -> Result<Self, BenchError> {
        Self::start_isolated(label, durability, paths, ClientIsolation::Open).await
    }

    /// Like [`Self::start`], with the given client isolation.
    pub(crate) async fn start_isolated(
        label: &str,
        durability: Durability,
        paths: &TestbedPaths,
        isolation: ClientIsolation,
    ) -> Result<Self, BenchError> {
        let name = SiteName::default_site();
        let settings = ServerSettings {
            encryption_key: None,
            program: paths.nats_server.clone(),
            store: paths.folder.join(label),
            name: label.into(),
            domain: None,
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability,
            max_store_bytes: streams::topology::default_store_bytes(),
            leaf: LeafMode::Alone,
            site: (isolation != ClientIsolation::Open).then(|| name.clone()),
            entry: client_listener(isolation, &paths.folder.join(format!("{label}-tls")))?,
        };
        let store = settings.store.clone();
        let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await??;
        let bus = Bus::connect(&own_nats_settings(&server), "bench").await?;
        let plan = topology::plan_topology(&PlanScope::Both(name.clone()), &StreamSettings::default());
        topology::apply_plan(&bus, &plan, RepairMode::Missing).await?;
        server.sync_store().map_err(BenchError::file(store))?;
        Ok(Self { recognizers: Vec::new(), server, isolation, bus, name })
    }

    /// Starts a recognizer process, as an operator would; may be called repeatedly.
    pub(crate) fn start_recognizer(&mut self, paths: &TestbedPaths) -> Result<(), BenchError> {
        self.start_recognizer_with(paths, &[])
    }

    /// Like [`Self::start_recognizer`], with additional settings.
    pub(crate) fn start_recognizer_with(&mut self, paths: &TestbedPaths, more: &[String]) -> Result<(), BenchError> {
        let mut arguments = vec!["--nats".into(), self.server.url(), "--site".into(), self.name.to_string()];
        arguments.extend(["--model".into(), paths.model.display().to_string()]);
        let login = self.server.login(Role::Recognizer).filter(|_| self.isolation != ClientIsolation::Open);
        let login = login.into_iter().flat_map(|login| {
            let inbox = permissions::role_inbox(Role::Recognizer.as_str());
            [("user", login.user), ("password", login.password), ("inbox", inbox)]
        });
        let authority = self.server.authority().map(|path| ("ca", path.display().to_string()));
        let credentials = login.chain(authority).map(|(key, value)| format!("nats.{key}={value}"));
        for setting in recognizer_settings(paths).into_iter().chain(credentials).chain(more.iter().cloned()) {
            arguments.extend(["--set".into(), setting]);
        }
        self.recognizers.push(BenchWorker::start(RECOGNIZER, &paths.folder, &arguments)?);
        Ok(())
    }

    /// Stops all recognizers; blocks until they have exited.
    pub(crate) fn stop_recognizers(&mut self) {
        self.recognizers.clear();
    }

    /// The bench's process and all processes of this site.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        let server = self.server_process().map(|process| (SERVER, process));
        let recognizers = self.recognizers.iter().map(|recognizer| (RECOGNIZER, recognizer.process()));
        [(LOAD, std::process::id())].into_iter().chain(server).chain(recognizers).collect()
    }

    /// URL of the site's server.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Process id of the server.
    pub(crate) fn server_process(&self) -> Option<u32> {
        self.server.process()
    }

    /// Process id of the first recognizer.
    pub(crate) fn recognizer_process(&self) -> Option<u32> {
        self.recognizers.first().map(BenchWorker::process)
    }

    /// Process ids of all recognizers.
    pub(crate) fn recognizer_processes(&self) -> Vec<u32> {
        self.recognizers.iter().map(BenchWorker::process).collect()
    }

    /// Waits until a recognizer exits on its own, which is always an error.
    pub(crate) async fn wait_for_exit(&mut self) -> BenchError {
        if self.recognizers.is_empty() {
            return std::future::pending().await;
        }
        let exits = self.recognizers.iter_mut().map(|recognizer| Box::pin(recognizer.wait_for_exit()));
        futures::future::select_all(exits).await.0
    }

    /// Empties the streams after a measurement, so that they do not grow without bound.
    pub(crate) async fn clear_streams(&self) -> Result<(), BenchError> {
        for stream in [topology::IMAGES, topology::ANSWERS] {
            let level = reader::stream_level(&self.bus, stream).await?;
            if level.messages > 0 {
                reader::purge_before(&self.bus, stream, level.last_sequence + 1).await?;
            }
        }
        Ok(())
    }
}

/// Connection settings of the server's own user.
fn own_nats_settings(server: &Server) -> NatsSettings {
    let login = server.own_login();
    NatsSettings {
        url: server.url(),
        user: Some(login.user),
        password: Some(login.password.into()),
        ca: server.authority().map(Path::to_owned),
        ..NatsSettings::default()
    }
}

fn client_listener(isolation: ClientIsolation, folder: &Path) -> Result<ClientListener, BenchError> {
    Ok(match isolation {
        ClientIsolation::Open => ClientListener::default(),
        ClientIsolation::Users => ClientListener { is_open: false, ..ClientListener::default() },
        ClientIsolation::Tls => {
            let files = fleet::certify_site(folder, &["127.0.0.1".into()])?;
            let fleet::ServerCertificate { authority, certificate, key } = files;
            let certificate =
                Some(CertificateFiles { certificate, key, authority: Some(authority), host: "127.0.0.1".into() });
            ClientListener { listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED), certificate, is_open: false }
        }
    })
}

fn recognizer_settings(paths: &TestbedPaths) -> Vec<String> {
    let InferenceSettings { replicas, threads, max_batch, .. } = &paths.infer;
    let mut settings = vec![
        "recognizer.verify.enabled=false".into(),
        "recognizer.gate.min_confidence_ratio=0".into(),
        "recognizer.gate.min_margin_ratio=0".into(),
        "recognizer.gate.max_entropy_ratio=1".into(),
        format!("recognizer.infer.replicas={}", replicas.count(*threads)),
        format!("recognizer.infer.threads={threads}"),
        format!("recognizer.infer.max_batch={max_batch}"),
    ];
    settings.extend(paths.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display())));
    settings
}
