//! A camera that gives snapshots and motion JPEG over HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::http_server::{HttpRequest, head, respond};

/// The user that a camera with a login knows.
pub const USER: &str = "cam";
/// Its password; it has letters that addresses must escape.
pub const PASSWORD: &str = "s3cret/7&x";
/// The nonce of its digest logins.
const NONCE: &str = "dcd98b7102dd2f0e8b11d0f600bfb0c0";
/// Motion JPEG's pictures per second, unless the address has `fps`.
const FRAMES_PER_S: u64 = 10;
/// How long a snapshot with a tag stays the same, unless the address has `period_ms`.
const PERIOD_MS: u64 = 1000;

/// A request as the camera saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// Path and query.
    pub target: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The status that it was answered with; 0 if with none.
    pub status: u16,
}

/// A camera on a port of loopback. What it does is chosen by the path:
///
/// | path | what it gives |
/// |---|---|
/// | `/snapshot/ok` | a JPEG with its length, the next one at each request |
/// | `/snapshot/close`, `chunked` | the same without a length, ended by closing; in chunks |
/// | `/snapshot/etag`, `modified` | one that changes every second (`?period_ms=`), with an entity tag or a date, and status 304 |
/// | `/snapshot/stale` | always the same one |
/// | `/snapshot/basic`, `digest` | with the login [`USER`] and [`PASSWORD`], else status 401 |
/// | `/snapshot/truncated`, `cut` | half a JPEG under its whole length; the same without a length |
/// | `/snapshot/page` | a login page with status 200 |
/// | `/snapshot/mislabeled` | the same page as `image/jpeg` |
/// | `/snapshot/png`, `empty` | a PNG as `image/jpeg`; nothing |
/// | `/snapshot/missing`, `busy` | status 404, 503 |
/// | `/snapshot/redirect`, `loop` | to `ok`; to itself |
/// | `/snapshot/elsewhere` | to the same port of the host `localhost` |
/// | `/snapshot/slow` | an answer that never comes |
/// | `/mjpeg/plain` | motion JPEG, 10 a second (`?fps=`, or one in `?every_ms=`), for ever (`?n=` ends after so many) |
/// | `/mjpeg/dashes`, `quoted` | the boundary with its dashes; in quotes |
/// | `/mjpeg/nolen`, `noheader` | parts without a length; without any header |
/// | `/mjpeg/lf`, `lowercase`, `preamble`, `glued` | bare line feeds; headers in lower case; text before; no line end after a picture |
/// | `/mjpeg/basic`, `digest` | with a login |
/// | `/mjpeg/stall` | five pictures, then silence |
/// | `/mjpeg/corrupt` | every second picture with a broken middle |
pub struct WebCamera {
    address: SocketAddr,
    state: Arc<CameraState>,
    serving: Option<JoinHandle<()>>,
}

struct CameraState {
    pictures: Vec<Bytes>,
    next: AtomicUsize,
    started: Instant,
    is_frozen: watch::Sender<bool>,
    seen: Mutex<Vec<SeenRequest>>,
}

impl WebCamera {
    /// A camera that shows these JPEGs in turn, on a free port.
    pub async fn start(pictures: Vec<Bytes>) -> io::Result<Self> {
        if pictures.is_empty() {
            return Err(io::Error::other("a camera needs a picture"));
        }
        let (is_frozen, _) = watch::channel(false);
        let (next, started, seen) = (AtomicUsize::new(0), Instant::now(), Mutex::default());
        let state = Arc::new(CameraState { pictures, next, started, is_frozen, seen });
        let mut camera = Self { address: (std::net::Ipv4Addr::LOCALHOST, 0).into(), state, serving: None };
        camera.restart().await?;
        Ok(camera)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The same with the login in it.
    pub fn url_with_login(&self, path: &str) -> String {
        format!("http://{USER}:{}@{}{path}", PASSWORD.replace('/', "%2F").replace('&', "%26"), self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops or continues everything, like a process that is stopped: connections are taken, and nothing is sent.
    pub fn set_frozen(&self, is_frozen: bool) {
        self.state.is_frozen.send_replace(is_frozen);
    }

    /// Ends it: connections are closed and new ones refused, until [`restart`](Self::restart).
    pub async fn kill(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _aborted = serving.await;
        }
    }

    /// Starts it again at the same address.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill().await;
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let state = self.state.clone();
        self.serving = Some(tokio::spawn(async move {
            // Its connections end with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                connections.spawn(async move { serve(BufReader::new(stream), &state).await });
                while connections.try_join_next().is_some() {}
            }
        }));
        Ok(())
    }
}

impl Drop for WebCamera {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl CameraState {
    fn next_picture(&self) -> Bytes {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.pictures.get(next % self.pictures.len()).cloned().unwrap_or_default()
    }

    /// The picture of this moment, and its number.
    fn picture_of_period(&self, period_ms: u64) -> (usize, Bytes) {
        let number = (self.started.elapsed().as_millis() / u128::from(period_ms.max(1))) as usize;
        (number, self.pictures.get(number % self.pictures.len()).cloned().unwrap_or_default())
    }

    async fn wait_while_frozen(&self) {
        let mut frozen = self.is_frozen.subscribe();
        let _sender_is_ours = frozen.wait_for(|is_frozen| !is_frozen).await;
    }

    fn note(&self, request: &HttpRequest, status: u16) {
        let authorization = request.header("authorization").map(str::to_owned);
        let seen = SeenRequest { target: request.target.clone(), authorization, status };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }
}

async fn serve(mut stream: BufReader<TcpStream>, state: &CameraState) -> io::Result<()> {
    while let Some(request) = HttpRequest::read(&mut stream).await? {
        state.wait_while_frozen().await;
        let path = request.path().to_owned();
        let kind = path.rsplit('/').next().unwrap_or_default();
        if let Some(demand) = login_demand(kind, &request) {
            state.note(&request, 401);
            respond(&mut stream, 401, &[("WWW-Authenticate", &demand)], b"").await?;
        } else if path.starts_with("/mjpeg/") {
            state.note(&request, 200);
            return motion_jpeg(stream, state, kind, &request).await;
        } else if !path.starts_with("/snapshot/") || !snapshot(&mut stream, state, kind, &request).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// What a camera demands of a request that has no login, or a wrong one.
fn login_demand(kind: &str, request: &HttpRequest) -> Option<String> {
    let given = request.header("authorization").unwrap_or_default();
    match kind {
        "basic" => {
            let right = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
            (given != right).then(|| "Basic realm=\"camera\"".into())
        }
        "digest" => {
            let right = is_digest_right(given, "GET", &request.target, USER, PASSWORD, NONCE);
            (!right).then(|| digest_demand(NONCE))
        }
        _ => None,
    }
}

/// The demand for a login by digest.
pub(super) fn digest_demand(nonce: &str) -> String {
    format!("Digest realm=\"camera\", nonce=\"{nonce}\", qop=\"auth\", algorithm=MD5")
}

/// Whether the header `Authorization` proves the login by digest (RFC 7616, MD5, `auth`).
pub(super) fn is_digest_right(
    given: &str,
    method: &str,
    target: &str,
    user: &str,
    password: &str,
    nonce: &str,
) -> bool {
    let Some(given) = given.strip_prefix("Digest ") else { return false };
    let part = |name: &str| {
        let pairs = given.split(',').filter_map(|pair| pair.trim().split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.trim_matches('"').to_owned())
            .next()
            .unwrap_or_default()
    };
    let hex = |text: String| Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (first, second) = (hex(format!("{user}:camera:{password}")), hex(format!("{method}:{target}")));
    let right = hex(format!("{first}:{nonce}:{}:{}:auth:{second}", part("nc"), part("cnonce")));
    part("response") == right && part("uri") == target && part("username") == user
}

/// Answers a request for a snapshot; whether the connection stays.
async fn snapshot(
    stream: &mut BufReader<TcpStream>,
    state: &CameraState,
    kind: &str,
    request: &HttpRequest,
) -> io::Result<bool> {
    const PAGE: &[u8] =
        b"<!DOCTYPE html><html><head><title>Log in</title></head><form>user <input name=u></form></html>";
    const JPEG: (&str, &str) = ("Content-Type", "image/jpeg");
    const HTML: (&str, &str) = ("Content-Type", "text/html; charset=utf-8");
    let here = format!("http://localhost:{}/snapshot/ok", stream.get_ref().local_addr()?.port());
    let plain = |status: u16| (status, vec![HTML], Bytes::from_static(b"<html>no</html>"));
    let (status, headers, body) = match kind {
        "close" | "cut" => {
            let picture = state.next_picture();
            let sent = if kind == "cut" { picture.slice(..picture.len() / 2) } else { picture };
            state.note(request, 200);
            stream.write_all(&[&head(200, &[JPEG, ("Connection", "close")]), &sent[..]].concat()).await?;
            return Ok(false);
        }
        "truncated" => {
            let picture = state.next_picture();
            let length = picture.len().to_string();
            state.note(request, 200);
            let head = head(200, &[JPEG, ("Content-Length", &length)]);
            stream.write_all(&[&head, &picture[..picture.len() / 2]].concat()).await?;
            return Ok(false);
        }
        "chunked" => {
            state.note(request, 200);
            stream.write_all(&head(200, &[JPEG, ("Transfer-Encoding", "chunked")])).await?;
            for chunk in state.next_picture().chunks(1000) {
                let size = format!("{:x}\r\n", chunk.len());
                stream.write_all(&[size.as_bytes(), chunk, b"\r\n"].concat()).await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
            return Ok(true);
        }
        "slow" => {
            state.note(request, 0);
            std::future::pending::<()>().await;
            return Ok(false);
        }
        "etag" | "modified" => {
            let (number, picture) = state.picture_of_period(request.number("period_ms").unwrap_or(PERIOD_MS));
            let (tag, date) = (format!("\"{number}\""), modified_date(number));
            let (header, value, condition) = match kind {
                "etag" => ("ETag", &tag, request.header("if-none-match")),
                _ => ("Last-Modified", &date, request.header("if-modified-since")),
            };
            let is_known = condition == Some(value.as_str());
            let (status, body) = if is_known { (304, Bytes::new()) } else { (200, picture) };
            state.note(request, status);
            respond(stream, status, &[JPEG, (header, value)], &body).await?;
            return Ok(true);
        }
        "ok" | "basic" | "digest" => (200, vec![JPEG], state.next_picture()),
        "stale" => (200, vec![JPEG], state.pictures.first().cloned().unwrap_or_default()),
        "page" => (200, vec![HTML], Bytes::from_static(PAGE)),
        "mislabeled" => (200, vec![JPEG], Bytes::from_static(PAGE)),
        "png" => (200, vec![JPEG], Bytes::from_static(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01")),
        "empty" => (200, vec![JPEG], Bytes::new()),
        "redirect" => (302, vec![("Location", "/snapshot/ok")], Bytes::new()),
        "loop" => (302, vec![("Location", "/snapshot/loop")], Bytes::new()),
        "elsewhere" => (302, vec![("Location", here.as_str())], Bytes::new()),
        "busy" => plain(503),
        _ => plain(404),
    };
    state.note(request, status);
    respond(stream, status, &headers, &body).await?;
    Ok(true)
}

/// A date for each number, a second apart.
fn modified_date(number: usize) -> String {
    let second = number % 86_400;
    format!("Mon, 30 Nov 2026 {:02}:{:02}:{:02} GMT", second / 3600, second / 60 % 60, second % 60)
}

async fn motion_jpeg(
    mut stream: BufReader<TcpStream>,
    state: &CameraState,
    kind: &str,
    request: &HttpRequest,
) -> io::Result<()> {
    let boundary = match kind {
        "dashes" => "--frame",
        "quoted" => "\"frame\"",
        _ => "frame",
    };
    let content = format!("multipart/x-mixed-replace; boundary={boundary}");
    stream.write_all(&head(200, &[("Content-Type", &content), ("Connection", "close")])).await?;
    if kind == "preamble" {
        stream.write_all(b"This is a stream.\r\n\r\n").await?;
    }
    let end = if kind == "lf" { "\n" } else { "\r\n" };
    let fps = request.number("fps").unwrap_or(FRAMES_PER_S).clamp(1, 1000);
    let every = request.number("every_ms").map_or(Duration::from_micros(1_000_000 / fps), Duration::from_millis);
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
    let most = request.number("n").unwrap_or(u64::MAX);
    for number in 0..most {
        ticks.tick().await;
        state.wait_while_frozen().await;
        if kind == "stall" && number == 5 {
            std::future::pending::<()>().await;
        }
        let mut picture = state.next_picture().to_vec();
        if kind == "corrupt" && number % 2 == 1 {
            let half = picture.len() / 2;
            picture.iter_mut().skip(half).take(200).for_each(|byte| *byte = 0xff);
        }
        stream.write_all(&part(kind, end, &picture)).await?;
    }
    stream.write_all(b"--frame--\r\n").await
}

/// A part of motion JPEG.
fn part(kind: &str, end: &str, picture: &[u8]) -> Vec<u8> {
    let mut lines = vec!["--frame".to_owned()];
    let (content_type, content_length) = match kind {
        "lowercase" => ("content-type", "content-length"),
        _ => ("Content-Type", "Content-Length"),
    };
    if kind != "noheader" {
        lines.push(format!("{content_type}: image/jpeg"));
    }
    if !["noheader", "nolen"].contains(&kind) {
        lines.push(format!("{content_length}: {}", picture.len()));
    }
    let head = lines.join(end) + end + end;
    let after = if kind == "glued" { "" } else { end };
    [head.as_bytes(), picture, after.as_bytes()].concat()
}
