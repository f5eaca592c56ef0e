//! Sends spans to a collector in the background, in batches: OTLP over HTTP, as protobuf. The queue is bounded, so that
//! a slow or unreachable collector costs only spans, which are counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{StatusCode, Url, header, redirect};
use schemas::limits::MAX_LABEL_BYTES;
use streams::backoff::Backoff;
use streams::error::error_chain;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::otlp;
use super::span::FinishedSpan;
use crate::metrics;

/// Most spans in the queue, about 1 kB each.
const QUEUE: usize = 4096;
/// Most spans in one request.
const BATCH: usize = 512;
/// How long a span waits for its batch to fill.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a batch is retried; meanwhile the queue fills.
const RETRY_FOR: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Most bytes that are read of a collector's response.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Path for traces below a collector's URL, as OTLP defines it.
const PATH: &str = "v1/traces";

/// The URL to which spans are posted.
///
/// # Errors
/// What is wrong with `address`, with the setting's key.
pub(super) fn spans_url(address: &str) -> Result<Url, String> {
    let shown: String = address.chars().take(MAX_LABEL_BYTES).collect();
    let refused = format!(
        "otlp is {shown:?}; it must be the URL of a collector that accepts OTLP over HTTP, such as http://127.0.0.1:4318"
    );
    let mut url = Url::parse(address).map_err(|_| refused.clone())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "otlp contains a user or a password; remove them, and let a collector beside the worker add them".into()
        );
    }
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !is_web || url.query().is_some() || url.fragment().is_some() {
        return Err(refused);
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.ends_with(PATH) {
        url.set_path(&format!("{path}/{PATH}"));
    }
    Ok(url)
}

/// Queues finished spans; never blocks.
pub(super) struct SpanSink {
    sender: mpsc::Sender<FinishedSpan>,
    sample_ratio: f64,
    dropped: AtomicU64,
}

impl SpanSink {
    pub(super) fn new(sample_ratio: f64, capacity: usize) -> (Arc<Self>, mpsc::Receiver<FinishedSpan>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Arc::new(Self { sender, sample_ratio, dropped: AtomicU64::new(0) }), receiver)
    }

    /// Whether to send a trace that is begun here. The last seven bytes of its id, which are random, decide, so that
    /// every stage decides alike.
    pub(super) fn samples(&self, trace_id: &[u8; 16]) -> bool {
        let number = trace_id[9..].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        (number as f64) < self.sample_ratio * (1u64 << 56) as f64
    }

    /// Queues a span, or drops and counts it if the queue is full.
    pub(super) fn send(&self, span: FinishedSpan) {
        if self.sender.try_send(span).is_err() {
            self.count_dropped(1);
        }
    }

    /// Spans dropped so far.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn count_dropped(&self, spans: u64) {
        self.dropped.fetch_add(spans, Ordering::Relaxed);
        metrics::count_spans("dropped", spans);
    }
}

/// The queue of finished spans and the task that sends them.
pub(super) struct SpanExporter {
    pub sink: Arc<SpanSink>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl SpanExporter {
    /// Starts the task. The collector need not be reachable yet.
    ///
    /// # Errors
    /// The URL is invalid, or the HTTP client cannot be created.
    pub(super) fn start(address: &str, sample_ratio: f64) -> Result<Self, String> {
        Self::start_with(address, sample_ratio, QUEUE)
    }

    fn start_with(address: &str, sample_ratio: f64, capacity: usize) -> Result<Self, String> {
        let url = spans_url(address)?;
        let _already_set = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| error_chain(&error))?;
        let (sink, receiver) = SpanSink::new(sample_ratio, capacity);
        let stop = CancellationToken::new();
        let worker = ExportWorker { client, url, sink: sink.clone(), stop: stop.clone(), is_failing: false };
        let task = Mutex::new(Some(tokio::spawn(worker.run(receiver))));
        Ok(Self { sink, stop, task })
    }

    /// Tries once to send the queued spans, and ends the task; gives up after `limit`.
    pub(super) async fn finish(&self, limit: Duration) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && tokio::time::timeout(limit, task).await.is_err()
        {
            tracing::debug!("spans unsent at shutdown");
        }
    }
}

/// Why a batch was not accepted.
struct ExportError {
    why: String,
    /// Whether a retry can succeed.
    is_transient: bool,
}

struct ExportWorker {
    client: reqwest::Client,
    url: Url,
    sink: Arc<SpanSink>,
    stop: CancellationToken,
    /// Whether the last batch failed. Only changes of this are logged.
    is_failing: bool,
}

impl ExportWorker {
    async fn run(mut self, mut spans: mpsc::Receiver<FinishedSpan>) {
        while !self.stop.is_cancelled() {
            let batch = self.gather(&mut spans).await;
            self.send(batch).await;
        }
        // At shutdown, send each remaining batch without retries.
        spans.close();
        loop {
            let mut batch = Vec::new();
            if spans.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            self.send(batch).await;
        }
    }

    /// Collects a batch: until it is full, or for [`BATCH_DELAY`] after its first span.
    async fn gather(&self, spans: &mut mpsc::Receiver<FinishedSpan>) -> Vec<FinishedSpan> {
        let mut batch = Vec::new();
        let mut ends_at = None;
        while batch.len() < BATCH {
            let span = async {
                match ends_at {
                    None => spans.recv().await,
                    Some(at) => tokio::time::timeout_at(at, spans.recv()).await.ok().flatten(),
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                span = span => match span {
                    Some(span) => batch.push(span),
                    None => break,
                },
            }
            ends_at.get_or_insert_with(|| Instant::now() + BATCH_DELAY);
        }
        batch
    }

    /// Sends a batch, and retries transient failures for [`RETRY_FOR`].
    async fn send(&mut self, batch: Vec<FinishedSpan>) {
        if batch.is_empty() {
            return;
        }
        let spans = batch.len() as u64;
        let body = bytes::Bytes::from(otlp::encode_request(batch));
        let give_up_at = Instant::now() + RETRY_FOR;
        let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
        loop {
            let error = match self.post(body.clone()).await {
                Ok(refused) => {
                    let refused = refused.min(spans);
                    metrics::count_spans("sent", spans - refused);
                    if refused > 0 {
                        self.sink.count_dropped(refused);
                    }
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!(collector = %self.url, "collector reached again");
                    }
                    return;
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut self.is_failing, true) {
                let remedy = "check telemetry.otlp and the collector; only traces are lost meanwhile";
                tracing::warn!(collector = %self.url, why = error.why, remedy, "traces not sent");
            }
            if !error.is_transient || Instant::now() >= give_up_at || self.stop.is_cancelled() {
                self.sink.count_dropped(spans);
                return;
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Posts one request; returns how many of its spans the collector refused.
    async fn post(&self, body: bytes::Bytes) -> Result<u64, ExportError> {
        let transient = |error: reqwest::Error| ExportError { why: error_chain(&error), is_transient: true };
        let request = self.client.post(self.url.clone()).header(header::CONTENT_TYPE, "application/x-protobuf");
        let mut response = request.body(body).send().await.map_err(transient)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transient)? {
            if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
                break;
            }
            answer.extend_from_slice(&chunk);
        }
        // OTLP lists these statuses as retryable.
        let is_transient = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        match status.is_success() {
            true => Ok(otlp::rejected_spans(&answer)),
            false => Err(ExportError { why: format!("the collector answered {status}"), is_transient }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::{SpanKind, StageSpan};

    #[test]
    fn spans_are_posted_to_otlps_path() {
        for (address, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example/tenant/", "https://otlp.example/tenant/v1/traces"),
            ("https://otlp.example/v1/traces", "https://otlp.example/v1/traces"),
        ] {
            assert_eq!(spans_url(address).unwrap().as_str(), url);
        }
    }

    /// URL of a port that no process listens on.
    async fn unused_url() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    #[tokio::test]
    async fn an_unreachable_collector_costs_counted_spans_and_does_not_delay_shutdown() {
        let exporter = SpanExporter::start_with(&unused_url().await, 1.0, 16).unwrap();
        let started_at = Instant::now();
        for _ in 0..1000 {
            drop(StageSpan::begin_in(Some(exporter.sink.clone()), "recognize", "recognizer", SpanKind::Consumer, None));
        }
        assert!(started_at.elapsed() < Duration::from_secs(1), "ending a span waited for the collector");
        exporter.finish(Duration::from_secs(5)).await;
        assert!(started_at.elapsed() < Duration::from_secs(5), "shutdown waited for the collector");
        assert_eq!(exporter.sink.dropped(), 1000);
    }

    #[tokio::test]
    async fn a_collector_that_never_answers_does_not_delay_shutdown() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", silent.local_addr().unwrap());
        let exporter = SpanExporter::start_with(&address, 1.0, 16).unwrap();
        drop(StageSpan::begin_in(Some(exporter.sink.clone()), "recognize", "recognizer", SpanKind::Consumer, None));
        let started_at = Instant::now();
        exporter.finish(Duration::from_millis(200)).await;
        assert!(started_at.elapsed() < Duration::from_secs(2));
        drop(silent);
    }
}
