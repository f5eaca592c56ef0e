//! The address where it is asked for: `/metrics`, `/livez`, `/readyz`.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use schemas::FaultNote;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::{EXPECTED_ROLES, KEPT, beats, hanging, text};
use crate::fault::Fault;

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
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "nobody answers for metrics any more");
        }
    });
    tracing::info!(%address, "answers /metrics, /livez and /readyz");
    Ok(address)
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
