//! The HTTP server for `/metrics`, `/livez` and `/readyz`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State as AxumState};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemas::FaultNote;
use serde::{Deserialize, Serialize};
use streams::backoff::wait_about;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{EXPECTED_ROLES, REGISTRY, beats, hanging, render_metrics};
use crate::fault::Fault;

/// Event of the log when metrics are served; its field `address` says where.
pub const ENDPOINT_STARTED: &str = "metrics endpoint started";

/// Most connections served at a time.
const MAX_CONNECTIONS: usize = 64;
/// Timeouts of the request's headers, and of the whole exchange.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Delay after a connection could not be accepted, for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Settings of the metrics endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Address on which a worker serves `/metrics`, `/livez` and `/readyz`, such as `127.0.0.1:9464`; absent: none.
    /// Beyond loopback, `certificate`, `key` and `token_file` are required.
    pub listen: Option<SocketAddr>,
    /// File with a certificate, PEM: only HTTPS is then served. Reloaded when it changes.
    pub certificate: Option<PathBuf>,
    /// File with the key of `certificate`, PEM.
    pub key: Option<PathBuf>,
    /// File with a token that `/metrics` requires, as `Authorization: Bearer TOKEN`; probes need none.
    pub token_file: Option<PathBuf>,
    /// Allows listening beyond loopback without encryption and token, as behind the network policies of a
    /// cluster.
    pub insecure: bool,
}

impl MetricsSettings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            let (set, other) = if self.certificate.is_some() { ("certificate", "key") } else { ("key", "certificate") };
            return Err(format!("{set} is set without {other}; set both or neither"));
        }
        let is_secure = self.certificate.is_some() && self.token_file.is_some();
        match self.listen {
            Some(listen) if !listen.ip().is_loopback() && !is_secure && !self.insecure => Err(format!(
                "listen is {listen}, which other machines can reach; set certificate, key and token_file beside it, or \
                 insecure = true if anybody may read them"
            )),
            _ => Ok(()),
        }
    }
}

/// Starts serving, before the role has started: a model that loads slowly is no reason to be killed. Returns the
/// address, with the port that was found if it was 0.
///
/// # Errors
/// The address is in use or not of this machine; the certificate or the token cannot be read.
pub async fn serve(listen: SocketAddr, settings: &MetricsSettings) -> Result<SocketAddr, Fault> {
    let failed = |error: std::io::Error| {
        Fault::Stop(FaultNote::new(
            "metrics_address_taken",
            format!("cannot listen on {listen}: {error}"),
            "choose another address with metrics.listen, or omit it",
        ))
    };
    let unreadable = |why: String| {
        let remedy =
            "name readable PEM files with metrics.certificate and metrics.key, and a file with metrics.token_file";
        Fault::Stop(FaultNote::new("metrics_not_secured", why, remedy))
    };
    let tls = match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => Some(TlsFiles::read(certificate, key).map_err(unreadable)?),
        _ => None,
    };
    let token = settings.token_file.as_deref().map(read_token).transpose().map_err(unreadable)?;
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let metrics = get(metrics).layer(middleware::from_fn_with_state(Arc::new(token), check_token));
    let router = Router::new().route("/metrics", metrics).route("/livez", get(live)).route("/readyz", get(ready));
    let is_encrypted = tls.is_some();
    tokio::spawn(serve_all(listener, router, tls));
    tracing::info!(%address, is_encrypted, "{ENDPOINT_STARTED}");
    Ok(address)
}

/// The token in a file.
fn read_token(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty; write the token to it", path.display())),
        token => Ok(token.to_owned()),
    }
}

/// Passes requests with the token, if one is required.
async fn check_token(token: AxumState<Arc<Option<String>>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let is_known = match token.0.as_ref() {
        None => true,
        Some(token) => {
            let given = given.and_then(|given| given.strip_prefix(b"Bearer ")).unwrap_or_default();
            // Compares digests, so that the time taken reveals nothing about the token.
            digest(&SHA256, given).as_ref() == digest(&SHA256, token.as_bytes()).as_ref()
        }
    };
    match is_known {
        true => next.run(request).await,
        false => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "metrics require the token from metrics.token_file: Authorization: Bearer TOKEN\n",
        )
            .into_response(),
    }
}

/// A certificate and its key, reloaded when the files change.
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    read_at: Option<SystemTime>,
    acceptor: TlsAcceptor,
}

impl TlsFiles {
    fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let read_at = changed_at(certificate);
        let unreadable = |path: &Path| {
            let path = path.display().to_string();
            move |error: rustls::pki_types::pem::Error| format!("{path} is not valid PEM: {error}")
        };
        let chain = CertificateDer::pem_file_iter(certificate).map_err(unreadable(certificate))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unreadable(certificate))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|error| {
                format!("{} and {} do not belong together: {error}", certificate.display(), key.display())
            })?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { certificate: certificate.into(), key: key.into(), read_at, acceptor })
    }

    /// The current acceptor; the last one that loaded.
    fn acceptor(&mut self) -> TlsAcceptor {
        if changed_at(&self.certificate) != self.read_at {
            match Self::read(&self.certificate, &self.key) {
                Ok(read) => *self = read,
                Err(why) => tracing::warn!(why, "metrics certificate reload failed"),
            }
        }
        self.acceptor.clone()
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Serves connections, a few at a time: file descriptors are needed by the worker too, and a probe must get one. A
/// silent client is dropped after seconds.
async fn serve_all(listener: TcpListener, router: Router, mut tls: Option<TlsFiles>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics connection failed");
                wait_about(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let (router, acceptor) = (router.clone(), tls.as_mut().map(TlsFiles::acceptor));
        tokio::spawn(async move {
            let exchange = async {
                match acceptor {
                    None => serve_connection(stream, router).await,
                    Some(acceptor) => match tokio::time::timeout(HEADER_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => serve_connection(stream, router).await,
                        Ok(Err(error)) => tracing::debug!(%error, "metrics TLS handshake failed"),
                        Err(_) => tracing::debug!("metrics TLS handshake timed out"),
                    },
                }
            };
            if tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.is_err() {
                tracing::debug!("metrics response timed out");
            }
            drop(permit);
        });
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false);
    let service = TowerToHyperService::new(router);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "metrics request aborted");
    }
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], render_metrics().await)
}

/// Whether the process should be kept: a server that is down is no reason to restart it.
async fn live() -> (StatusCode, String) {
    match &hanging()[..] {
        [] => (StatusCode::OK, "alive\n".into()),
        roles => (StatusCode::SERVICE_UNAVAILABLE, format!("no heartbeat from {} for a minute\n", roles.join(", "))),
    }
}

/// Whether the process takes work: its roles have started, and the server is up.
async fn ready() -> (StatusCode, String) {
    let not_ready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let started: Vec<String> = beats().into_iter().map(|(beat, _)| beat.role.to_string()).collect();
    let is_away = REGISTRY
        .queues
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .iter()
        .any(|queue| !queue.bus.is_connected());
    match (&started[..], is_away) {
        ([], _) => not_ready("no role has started yet: loading a model, or waiting for the server"),
        (roles, _) if roles.len() < EXPECTED_ROLES.load(Ordering::Relaxed) => not_ready("not all roles have started"),
        (_, true) => not_ready("the nats-server is unreachable"),
        (roles, false) => (StatusCode::OK, format!("{} running\n", roles.join(", "))),
    }
}
