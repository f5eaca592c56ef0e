//! The address where it is asked for: `/metrics`, `/livez`, `/readyz`.

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{EXPECTED_ROLES, KEPT, beats, hanging, render_metrics};
use crate::fault::Fault;

/// Connections answered at a time.
const MOST_CONNECTIONS: usize = 64;
/// How long a question may take to be asked, and to be asked and answered.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
/// After a connection could not be taken, for want of descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// What an operator may choose about metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Address on which a worker answers `/metrics`, `/livez` and `/readyz`, for example `127.0.0.1:9464`; absent: none. On
    /// another address than loopback, `certificate`, `key` and `token_file` must be set.
    pub listen: Option<SocketAddr>,
    /// File with a certificate, PEM: answers are given over HTTPS alone. It is read again when it changes.
    pub certificate: Option<PathBuf>,
    /// File with the key of `certificate`, PEM.
    pub key: Option<PathBuf>,
    /// File with a token that `/metrics` is given for alone, as `Authorization: Bearer TOKEN`; probes need none.
    pub token_file: Option<PathBuf>,
    /// Whether listening beyond loopback is meant to be unencrypted and open to whoever reaches it, as behind the network
    /// policies of a cluster.
    pub insecure: bool,
}

impl MetricsSettings {
    /// What is wrong with the settings, if something is.
    pub fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err("metrics.certificate or metrics.key is set alone; they go together".into());
        }
        let is_secure = self.certificate.is_some() && self.token_file.is_some();
        match self.listen {
            Some(listen) if !listen.ip().is_loopback() && !is_secure && !self.insecure => Err(format!(
                "metrics.listen is {listen}, which other machines reach; set metrics.certificate, metrics.key and \
                 metrics.token_file, or metrics.insecure = true where anybody may read it"
            )),
            _ => Ok(()),
        }
    }
}

/// Answers from now on, before the role has begun: a model that takes long to load is no reason to be ended. Returns the
/// address, whose port was found if it was 0.
///
/// # Errors
/// An address that is taken, or is none of this machine's; a certificate or a token that cannot be read.
pub async fn serve(listen: SocketAddr, settings: &MetricsSettings) -> Result<SocketAddr, Fault> {
    let failed = |error: std::io::Error| {
        Fault::Stop(FaultNote::new(
            "metrics_address_taken",
            format!("{listen} cannot be listened on: {error}"),
            "choose another one with metrics.listen, or leave it away",
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
    tokio::spawn(answer_all(listener, router, tls));
    tracing::info!(%address, is_encrypted, "answers /metrics, /livez and /readyz");
    Ok(address)
}

/// The token in a file, if there is one in it.
fn read_token(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} holds no token", path.display())),
        token => Ok(token.to_owned()),
    }
}

/// Answers whoever has the token, where one is needed.
async fn check_token(token: AxumState<Arc<Option<String>>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let is_known = match token.0.as_ref() {
        None => true,
        Some(token) => {
            let given = given.and_then(|given| given.strip_prefix(b"Bearer ")).unwrap_or_default();
            // Of digests, so that how long it takes says nothing of the token.
            digest(&SHA256, given).as_ref() == digest(&SHA256, token.as_bytes()).as_ref()
        }
    };
    match is_known {
        true => next.run(request).await,
        false => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "metrics need the token of metrics.token_file: Authorization: Bearer TOKEN\n",
        )
            .into_response(),
    }
}

/// A certificate and its key on the disk, read again when they change.
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
            move |error: rustls::pki_types::pem::Error| format!("{path} cannot be read as PEM: {error}")
        };
        let chain = CertificateDer::pem_file_iter(certificate).map_err(unreadable(certificate))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unreadable(certificate))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|error| format!("{} and {} do not go together: {error}", certificate.display(), key.display()))?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { certificate: certificate.into(), key: key.into(), read_at, acceptor })
    }

    /// What connections are taken with; the last one that could be read.
    fn acceptor(&mut self) -> TlsAcceptor {
        if changed_at(&self.certificate) != self.read_at {
            match Self::read(&self.certificate, &self.key) {
                Ok(read) => *self = read,
                Err(why) => tracing::warn!(why, "the changed certificate of the metrics is not used"),
            }
        }
        self.acceptor.clone()
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Answers whoever connects, a few at a time: descriptors are the worker's own, and a probe must find one. Who says nothing
/// is left after seconds.
async fn answer_all(listener: TcpListener, router: Router, mut tls: Option<TlsFiles>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the metrics could not be taken");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let (router, acceptor) = (router.clone(), tls.as_mut().map(TlsFiles::acceptor));
        tokio::spawn(async move {
            let answering = async {
                match acceptor {
                    None => answer(stream, router).await,
                    Some(acceptor) => match tokio::time::timeout(HEADER_PATIENCE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => answer(stream, router).await,
                        Ok(Err(error)) => tracing::debug!(%error, "whoever asks for metrics does not speak TLS"),
                        Err(_) => tracing::debug!("whoever asks for metrics said nothing"),
                    },
                }
            };
            if tokio::time::timeout(PATIENCE, answering).await.is_err() {
                tracing::debug!("an answer with metrics was not taken in time");
            }
            drop(permit);
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).keep_alive(false);
    let service = TowerToHyperService::new(router);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a question for metrics ended early");
    }
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], render_metrics().await)
}

/// Whether it is worth keeping: a server that is away is no reason to be started again.
async fn live() -> (StatusCode, String) {
    match &hanging()[..] {
        [] => (StatusCode::OK, "lives\n".into()),
        roles => (StatusCode::SERVICE_UNAVAILABLE, format!("no sign of life of {} for a minute\n", roles.join(", "))),
    }
}

/// Whether it takes work: its roles have begun, and the server is there.
async fn ready() -> (StatusCode, String) {
    let not = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let begun: Vec<String> = beats().into_iter().map(|(beat, _)| beat.role.to_string()).collect();
    let away = KEPT
        .queues
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .iter()
        .any(|queue| !queue.bus.is_connected());
    match (&begun[..], away) {
        ([], _) => not("no role has begun: a model is loaded, or the server is waited for"),
        (roles, _) if roles.len() < EXPECTED_ROLES.load(Ordering::Relaxed) => not("not all roles have begun"),
        (_, true) => not("the nats-server is away"),
        (roles, false) => (StatusCode::OK, format!("{} at work\n", roles.join(", "))),
    }
}
