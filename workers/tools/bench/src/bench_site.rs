//! A site to be measured: a nats-server and, if wanted, recognizers, each in a process of its own, with
//! the settings of production but for the gate, which is open so that every answer is final.

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

/// Names of a site's processes in a report: our own, the nats-server, the recognizer.
pub(crate) const LOAD: &str = "load";
/// See [`LOAD`].
pub(crate) const SERVER: &str = "server";
/// See [`LOAD`].
pub(crate) const RECOGNIZER: &str = "recognizer";

/// What all sites of a measurement have in common.
#[derive(Debug, Clone)]
pub(crate) struct TestbedPaths {
    /// Folder of the stores; removed by whoever made it.
    pub folder: PathBuf,
    /// The nats-server program; looked for if absent.
    pub nats_server: Option<PathBuf>,
    /// The ONNX Runtime library; looked for if absent.
    pub onnxruntime: Option<PathBuf>,
    /// Folder of the model, absolute.
    pub model: PathBuf,
    /// Replicas and batches.
    pub infer: InferenceSettings,
}

/// How clients of a site's server are held apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientIsolation {
    /// Not at all: everybody may do everything.
    Open,
    /// Each has a user with the rights it needs, unencrypted, as on loopback in production.
    Users,
    /// The same, and connections are encrypted, as where cameras are other machines.
    Tls,
}

/// A site that runs. Dropping it stops everything.
pub(crate) struct BenchSite {
    // Dropped in this order: whoever still spoke to a server that stops would wait for it to come back.
    recognizers: Vec<BenchWorker>,
    /// A connection of ours.
    pub bus: Bus,
    server: Server,
    guard: ClientIsolation,
    /// Its name.
    pub name: SiteName,
}

impl BenchSite {
    /// Starts a server with everything a site and a cloud need, without a worker.
    pub(crate) async fn start(label: &str, durability: Durability, ground: &TestbedPaths) -> Result<Self, BenchError> {
        Self::start_guarded(label, durability, ground, ClientIsolation::Open).await
    }

    /// The same, with clients held apart.
    pub(crate) async fn start_guarded(
        label: &str,
        durability: Durability,
        ground: &TestbedPaths,
        guard: ClientIsolation,
    ) -> Result<Self, BenchError> {
        let name = SiteName::default_site();
        let settings = ServerSettings {
            encryption_key: None,
            program: ground.nats_server.clone(),
            store: ground.folder.join(label),
            name: label.into(),
            domain: None,
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability,
            max_store_bytes: streams::topology::default_store_bytes(),
            leaf: LeafMode::Alone,
            site: (guard != ClientIsolation::Open).then(|| name.clone()),
            entry: entry(guard, &ground.folder.join(format!("{label}-tls")))?,
        };
        let store = settings.store.clone();
        let server = tokio::task::spawn_blocking(move || Server::start(&settings)).await??;
        let bus = Bus::connect(&own_nats(&server), "bench").await?;
        let plan = topology::plan_topology(&PlanScope::Both(name.clone()), &StreamSettings::default());
        topology::apply_plan(&bus, &plan, RepairMode::Missing).await?;
        server.sync_store().map_err(BenchError::file(store))?;
        Ok(Self { recognizers: Vec::new(), server, guard, bus, name })
    }

    /// Starts a recognizer, or one more: this very program, as an operator would.
    pub(crate) fn recognize(&mut self, ground: &TestbedPaths) -> Result<(), BenchError> {
        self.recognize_with(ground, &[])
    }

    /// The same, with more settings.
    pub(crate) fn recognize_with(&mut self, ground: &TestbedPaths, more: &[String]) -> Result<(), BenchError> {
        let mut arguments = vec!["--nats".into(), self.server.url(), "--site".into(), self.name.to_string()];
        arguments.extend(["--model".into(), ground.model.display().to_string()]);
        let login = self.server.login(Role::Recognizer).filter(|_| self.guard != ClientIsolation::Open);
        let login = login.into_iter().flat_map(|login| {
            let inbox = permissions::role_inbox(Role::Recognizer.as_str());
            [("user", login.user), ("password", login.password), ("inbox", inbox)]
        });
        let authority = self.server.authority().map(|path| ("ca", path.display().to_string()));
        let known = login.chain(authority).map(|(key, value)| format!("nats.{key}={value}"));
        for setting in settings(ground).into_iter().chain(known).chain(more.iter().cloned()) {
            arguments.extend(["--set".into(), setting]);
        }
        self.recognizers.push(BenchWorker::start(RECOGNIZER, &ground.folder, &arguments)?);
        Ok(())
    }

    /// Stops its recognizers; blocks until they are gone.
    pub(crate) fn dismiss(&mut self) {
        self.recognizers.clear();
    }

    /// Our process and all that belong to this site.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        let server = self.server_process().map(|process| (SERVER, process));
        let recognizers = self.recognizers.iter().map(|recognizer| (RECOGNIZER, recognizer.process()));
        [(LOAD, std::process::id())].into_iter().chain(server).chain(recognizers).collect()
    }

    /// The address of its server.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// The process of the server.
    pub(crate) fn server_process(&self) -> Option<u32> {
        self.server.process()
    }

    /// The process of the first recognizer.
    pub(crate) fn recognizer_process(&self) -> Option<u32> {
        self.recognizers.first().map(BenchWorker::process)
    }

    /// The processes of all recognizers.
    pub(crate) fn recognizer_processes(&self) -> Vec<u32> {
        self.recognizers.iter().map(BenchWorker::process).collect()
    }

    /// Waits until a recognizer ends by itself, which it should not.
    pub(crate) async fn ended(&mut self) -> BenchError {
        if self.recognizers.is_empty() {
            return std::future::pending().await;
        }
        let ending = self.recognizers.iter_mut().map(|recognizer| Box::pin(recognizer.ended()));
        futures::future::select_all(ending).await.0
    }

    /// Removes what earlier stretches left in the streams, so that none grows without end.
    pub(crate) async fn clear(&self) -> Result<(), BenchError> {
        for stream in [topology::IMAGES, topology::ANSWERS] {
            let level = reader::stream_level(&self.bus, stream).await?;
            if level.messages > 0 {
                reader::purge_before(&self.bus, stream, level.last_sequence + 1).await?;
            }
        }
        Ok(())
    }
}

/// How the place itself is known to its server.
fn own_nats(server: &Server) -> NatsSettings {
    let login = server.own_login();
    NatsSettings {
        url: server.url(),
        user: Some(login.user),
        password: Some(login.password.into()),
        ca: server.authority().map(Path::to_owned),
        ..NatsSettings::default()
    }
}

fn entry(guard: ClientIsolation, folder: &Path) -> Result<ClientListener, BenchError> {
    Ok(match guard {
        ClientIsolation::Open => ClientListener::default(),
        ClientIsolation::Users => ClientListener { is_open: false, ..ClientListener::default() },
        ClientIsolation::Tls => {
            let made = fleet::certify_site(folder, &["127.0.0.1".into()])?;
            let fleet::ServerCertificate { authority, certificate, key } = made;
            let certificate =
                Some(CertificateFiles { certificate, key, authority: Some(authority), host: "127.0.0.1".into() });
            ClientListener { listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED), certificate, is_open: false }
        }
    })
}

fn settings(ground: &TestbedPaths) -> Vec<String> {
    let InferenceSettings { replicas, threads, max_batch, .. } = &ground.infer;
    let mut settings = vec![
        "recognizer.verify.enabled=false".into(),
        "recognizer.gate.min_confidence_ratio=0".into(),
        "recognizer.gate.min_margin_ratio=0".into(),
        "recognizer.gate.max_entropy_ratio=1".into(),
        format!("recognizer.infer.replicas={}", replicas.count(*threads)),
        format!("recognizer.infer.threads={threads}"),
        format!("recognizer.infer.max_batch={max_batch}"),
    ];
    settings.extend(ground.onnxruntime.iter().map(|path| format!("onnxruntime={}", path.display())));
    settings
}
