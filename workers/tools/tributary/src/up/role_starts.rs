//! The roles of `up`: which there are, with which login, and how each is started again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use futures::FutureExt;
use grabber::CameraPlan;
use notifier::NotifierSettings;
use releases::trial::TrialRunner;
use runtime::Shutdown;
use schemas::{Role, SiteName};
use serving::serving_model::ServingModel;
use streams::server::Server;
use streams::{NatsSettings, permissions};
use tokio::sync::watch;

use super::supervisor::{RoleLogin, RoleStart, SupervisedRole};
use crate::roles::{self, ack_wait, start as begin};
use crate::settings::Settings;
use crate::site_target::{ALONE, RunningSite};

/// The verifier's model, if one was named; or why it cannot be loaded, which the verifier tries again.
pub(super) async fn load_verifier(settings: &mut Settings) -> anyhow::Result<Option<anyhow::Result<ServingModel>>> {
    if settings.verifier.model.is_none() {
        tracing::info!("no cloud model; doubtful answers are not verified (set --cloud-model)");
        settings.recognizer.verify.enabled = false;
        return Ok(None);
    }
    Ok(Some(start_verifier_model(settings).await))
}

async fn start_verifier_model(settings: &Settings) -> anyhow::Result<ServingModel> {
    let model = settings.verifier.model.clone().context("the verifier has no model")?;
    let work = settings.up.store.join("verifier");
    begin(settings.onnxruntime.clone(), model, settings.verifier.infer.clone(), work).await
}

/// The roles of the cloud.
pub(super) fn cloud_roles(
    settings: &Settings,
    heavy: Option<anyhow::Result<ServingModel>>,
    login: impl Fn(Role) -> anyhow::Result<NatsSettings>,
) -> anyhow::Result<Vec<SupervisedRole>> {
    let wait = ack_wait(settings);
    let supervised = |role: Role, start: RoleStart| {
        Ok::<_, anyhow::Error>(SupervisedRole { login: RoleLogin { role, nats: login(role)? }, site: None, start })
    };
    let mut all = Vec::new();
    if let Some(heavy) = heavy {
        let (settings, mut loaded) = (settings.clone(), Some(heavy));
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (settings, loaded) = (settings.clone(), loaded.take());
            async move {
                let model = match loaded {
                    Some(loaded) => loaded?,
                    None => start_verifier_model(&settings).await?,
                };
                let head = roles::load_head(settings.onnxruntime.clone(), settings.verifier.head.clone()).await?;
                let ended = verifier::run(login.connect().await?, model, head, &settings.verifier, wait, stop).await;
                roles::role_result(Role::Verifier, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Verifier, Box::new(start))?);
    }
    if settings.up.merge {
        let mut settings = settings.clone();
        settings.aggregator.work = settings.up.store.join("aggregator");
        let start = move |login: RoleLogin, stop: Shutdown| {
            let settings = settings.clone();
            async move {
                let (onnx, model) = roles::load_to_merge(&settings).await?;
                let trial = TrialRunner::of_this_program(settings.onnxruntime.clone());
                let ended =
                    aggregator::run(login.connect().await?, onnx, model, trial, &settings.aggregator, stop).await;
                roles::role_result(Role::Aggregator, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Aggregator, Box::new(start))?);
    }
    let settings = settings.clone();
    let start = move |login: RoleLogin, stop: Shutdown| {
        let settings = settings.clone();
        async move {
            let store = roles::release_store(&settings)?;
            roles::role_result(
                Role::Releaser,
                releaser::run(login.connect().await?, store, &settings.releaser, stop).await,
            )
        }
        .boxed()
    };
    all.push(supervised(Role::Releaser, Box::new(start))?);
    Ok(all)
}

/// A site's server, with the login that may do everything.
pub(super) struct SiteServer<'a> {
    pub site: &'a RunningSite,
    pub server: &'a Server,
    pub nats: &'a NatsSettings,
}

/// The cameras of all sites.
pub(super) struct SiteCameras {
    pub plan: watch::Receiver<CameraPlan>,
    /// Whether cameras that name no site are those of this one.
    pub is_first: bool,
}

/// The roles of a site, each with the rights it needs. `light`: the recognizer's model.
pub(super) fn site_roles(
    settings: &Settings,
    own: &SiteServer<'_>,
    light: ServingModel,
    cameras: Option<SiteCameras>,
) -> anyhow::Result<Vec<SupervisedRole>> {
    let SiteServer { site, server, nats } = own;
    let name = site.site.clone();
    let supervised = |role: Role, start: RoleStart| {
        Ok::<_, anyhow::Error>(SupervisedRole {
            login: RoleLogin { role, nats: as_worker(server, role, nats)? },
            site: Some(site.site.clone()),
            start,
        })
    };
    let mut all = vec![
        supervised(Role::Recognizer, recognizer_start(settings, &name, light))?,
        supervised(Role::Courier, courier_start(settings, &name, nats))?,
        supervised(Role::Janitor, janitor_start(settings, site, nats))?,
    ];
    if let Some(SiteCameras { plan, is_first }) = cameras {
        let name = name.clone();
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (name, plan) = (name.clone(), plan.clone());
            async move {
                let ended = grabber::run(login.connect().await?, name, is_first, plan, stop).await;
                roles::role_result(Role::Grabber, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Grabber, Box::new(start))?);
    }
    if settings.up.answers_json {
        let (name, chosen) = (name.clone(), notifier_settings(settings, site, server)?);
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (name, chosen) = (name.clone(), chosen.clone());
            async move {
                roles::role_result(Role::Notifier, notifier::run(login.connect().await?, name, &chosen, stop).await)
            }
            .boxed()
        };
        all.push(supervised(Role::Notifier, Box::new(start))?);
    }
    if settings.up.train {
        let mut settings = settings.clone();
        settings.trainer.work = settings.up.store.join(format!("training-{name}"));
        let start = move |login: RoleLogin, stop: Shutdown| {
            let (name, settings) = (name.clone(), settings.clone());
            async move {
                let (onnx, model) = roles::load_to_train(&settings).await?;
                let ended = trainer::run(login.connect().await?, name, onnx, model, &settings.trainer, stop).await;
                roles::role_result(Role::Trainer, ended)
            }
            .boxed()
        };
        all.push(supervised(Role::Trainer, Box::new(start))?);
    }
    Ok(all)
}

/// The recognizer, first with the model that was loaded already.
fn recognizer_start(settings: &Settings, name: &SiteName, light: ServingModel) -> RoleStart {
    let (settings, name, mut loaded) = (settings.clone(), name.clone(), Some(light));
    let wait = ack_wait(&settings);
    Box::new(move |login, stop| {
        let (settings, name, loaded) = (settings.clone(), name.clone(), loaded.take());
        async move {
            let model = match loaded {
                Some(loaded) => loaded,
                None => start_recognizer_model(&settings, &name).await?,
            };
            let ended = recognizer::run(login.connect().await?, name, model, &settings.recognizer, wait, stop).await;
            roles::role_result(Role::Recognizer, ended)
        }
        .boxed()
    })
}

pub(super) async fn start_recognizer_model(settings: &Settings, name: &SiteName) -> anyhow::Result<ServingModel> {
    let (model, infer) = (settings.recognizer.model.clone(), settings.recognizer.inference());
    let work = settings.up.store.join(format!("recognizer-{name}"));
    begin(settings.onnxruntime.clone(), model, infer, work).await
}

fn courier_start(settings: &Settings, name: &SiteName, nats: &NatsSettings) -> RoleStart {
    let (settings, name, nats) = (settings.clone(), name.clone(), nats.clone());
    let wait = ack_wait(&settings);
    Box::new(move |login, stop| {
        let (settings, name, nats) = (settings.clone(), name.clone(), nats.clone());
        async move {
            let bus = login.connect().await?;
            let cloud = bus.connect_cloud(&nats, &name, "courier").await?;
            let ended = courier::run(bus, cloud, name, &settings.courier, wait, stop).await;
            roles::role_result(Role::Courier, ended)
        }
        .boxed()
    })
}

fn janitor_start(settings: &Settings, site: &RunningSite, nats: &NatsSettings) -> RoleStart {
    let (name, nats, mut chosen) = (site.site.clone(), nats.clone(), settings.janitor.clone());
    let folder = if nats.cloud_domain.is_some() { name.as_str() } else { ALONE };
    chosen.store = Some(settings.up.store.join(folder));
    chosen.monitor = Some(site.monitor.clone());
    Box::new(move |login, stop| {
        let (name, nats, chosen) = (name.clone(), nats.clone(), chosen.clone());
        async move {
            let bus = login.connect().await?;
            let afar = match nats.cloud_domain.clone() {
                Some(domain) => Some((bus.connect_cloud(&nats, &name, "courier").await?, domain)),
                None => None,
            };
            roles::role_result(Role::Janitor, janitor::run(bus, name, &chosen, afar, stop).await)
        }
        .boxed()
    })
}

/// The notifier's settings. It publishes over MQTT, which alone can retain answers, where the listener is not
/// encrypted.
fn notifier_settings(settings: &Settings, site: &RunningSite, server: &Server) -> anyhow::Result<NotifierSettings> {
    let up = &settings.up;
    let mut chosen = settings.notifier.clone();
    let Some(port) = site.mqtt_port.filter(|_| up.insecure || up.mqtt_listen.is_loopback()) else { return Ok(chosen) };
    // A server that listens on every address listens on loopback, too.
    let listen = Some(up.mqtt_listen).filter(|address| !address.is_unspecified());
    let listen = listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let login = server.login(Role::Notifier).context("the notifier has no login")?;
    let file = up.store.join(format!("notifier-{}.password", site.site));
    streams::server::write_private(&file, &login.password)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    chosen.mqtt = Some(SocketAddr::new(listen, port).to_string());
    chosen.mqtt_user = Some(login.user);
    chosen.mqtt_password_file = Some(file);
    Ok(chosen)
}

/// Connection settings with the login of a worker. `nats`: those of the place itself.
pub(super) fn as_worker(server: &Server, role: Role, nats: &NatsSettings) -> anyhow::Result<NatsSettings> {
    let login = server.login(role).with_context(|| format!("the server has no user for the {}", role.as_str()))?;
    let inbox = Some(permissions::role_inbox(role.as_str()));
    Ok(NatsSettings { user: Some(login.user), password: Some(login.password.into()), inbox, ..nats.clone() })
}
