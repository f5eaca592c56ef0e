//! The address where it is asked for: `/metrics`, `/livez`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use schemas::FaultNote;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{EXPECTED_ROLES, KEPT, beats, hanging, text};
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
    /// Where a worker answers `/metrics`, `/livez` and `/readyz`, for example `0.0.0.0:9464`; absent: nowhere. Anybody who
    /// reaches it can read it.
    pub listen: Option<SocketAddr>,
}

/// Answers from now on, before the role has begun: a model that takes long to load is no reason to be ended. Returns the
/// address, whose port was found if it was 0.
///
/// # Errors
/// An address that is taken, or is none of this machine's.
pub async fn serve(listen: SocketAddr) -> Result<SocketAddr, Fault> {
    let failed = |error: std::io::Error| {
        Fault::Stop(FaultNote::new(
            "metrics_address_taken",
            format!("{listen} cannot be listened on: {error}"),
            "choose another one with metrics.listen, or leave it away",
        ))
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new().route("/metrics", get(metrics)).route("/livez", get(live)).route("/readyz", get(ready));
    tokio::spawn(answer_all(listener, router));
    tracing::info!(%address, "answers /metrics, /livez and /readyz");
    Ok(address)
}

/// Answers whoever connects, a few at a time: descriptors are the worker's own, and a probe must find one. Who says nothing
/// is left after seconds.
async fn answer_all(listener: TcpListener, router: Router) {
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
        let service = TowerToHyperService::new(router.clone());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).keep_alive(false);
        tokio::spawn(async move {
            let connection = http.serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a question for metrics ended early"),
                Err(_) => tracing::debug!("an answer with metrics was not taken in time"),
            }
            drop(permit);
        });
    }
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text().await)
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
    let begun: Vec<String> = beats().into_iter().map(|(beat, _)| beat.role).collect();
    let away = KEPT
        .queues
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .iter()
        .any(|queue| !queue.bus.connected());
    match (&begun[..], away) {
        ([], _) => not("no role has begun: a model is loaded, or the server is waited for"),
        (roles, _) if roles.len() < EXPECTED_ROLES.load(Ordering::Relaxed) => not("not all roles have begun"),
        (_, true) => not("the nats-server is away"),
        (roles, false) => (StatusCode::OK, format!("{} at work\n", roles.join(", "))),
    }
}
