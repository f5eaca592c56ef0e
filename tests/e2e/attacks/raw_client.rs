//! A client of one's own: it writes whatever bytes it likes, and reads what the server answers.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Nothing more comes when nothing came for so long.
const QUIET: Duration = Duration::from_millis(1200);
/// Messages written before their answers are read: a server that nobody listens to stops listening.
const AT_ONCE: usize = 256;

/// What is published, to the byte.
#[derive(Debug, Clone, Default)]
pub(super) struct RawPublication {
    /// Where.
    pub subject: String,
    /// The header block as it is written; empty: none.
    pub headers: Vec<u8>,
    /// The payload.
    pub payload: Bytes,
    /// Where the answer goes; an inbox of one's own if absent.
    pub reply: Option<String>,
}

/// What the server said to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RawReply {
    /// A stream stored it.
    Stored {
        /// Which.
        stream: String,
        /// Under which sequence.
        sequence: u64,
        /// Whether it had one of this message id.
        duplicate: bool,
    },
    /// An error, in the server's words.
    Refused(String),
    /// Something else.
    Said(String),
    /// Nobody takes it.
    Nobody,
    /// Nothing at all.
    Silence,
    /// It ended the connection.
    Closed(String),
}

/// A connection.
pub(super) struct RawClient {
    address: String,
    login: String,
    inbox: String,
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    line: Vec<u8>,
    asked: usize,
}

impl RawClient {
    /// Connects. `login`: user and password; `inbox`: what subjects of answers begin with.
    pub(super) async fn connect(url: &str, login: Option<(&str, &str)>, inbox: &str) -> Self {
        let address = url.trim_start_matches("nats://").to_owned();
        let login = login.map(|(user, password)| format!(",\"user\":\"{user}\",\"pass\":\"{password}\""));
        let login = login.unwrap_or_default();
        let (from, to) = open(&address, &login, inbox).await;
        Self { address, login, inbox: inbox.into(), from, to, line: Vec::new(), asked: 0 }
    }

    /// Publishes all, and returns what was said to each.
    pub(super) async fn publish(&mut self, shots: &[RawPublication]) -> Vec<RawReply> {
        let mut heard = Vec::with_capacity(shots.len());
        for some in shots.chunks(AT_ONCE) {
            heard.extend(self.publish_some(some).await);
        }
        heard
    }

    async fn publish_some(&mut self, shots: &[RawPublication]) -> Vec<RawReply> {
        let first = self.asked;
        self.asked += shots.len();
        let mut heard = vec![RawReply::Silence; shots.len()];
        for (number, shot) in shots.iter().enumerate() {
            let reply = shot.reply.clone().unwrap_or_else(|| format!("{}.{}", self.inbox, first + number));
            let size = shot.headers.len() + shot.payload.len();
            let head = match shot.headers.len() {
                0 => format!("PUB {} {reply} {size}\r\n", shot.subject),
                headers => format!("HPUB {} {reply} {headers} {size}\r\n", shot.subject),
            };
            for part in [head.as_bytes(), &shot.headers, &shot.payload, b"\r\n"] {
                if self.to.write_all(part).await.is_err() {
                    break;
                }
            }
        }
        let _closed = self.to.write_all(b"PING\r\n").await;
        // Who chose where the answer goes does not hear it.
        let mut open = shots.iter().filter(|shot| shot.reply.is_none()).count();
        let mut words = Vec::new();
        while open > 0 {
            let line = match tokio::time::timeout(QUIET, self.from.read_until(b'\n', &mut self.line)).await {
                Err(_) => break,
                Ok(Ok(read)) if read > 0 => String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned(),
                Ok(_) => {
                    let closed = RawReply::Closed(words.join(" "));
                    heard
                        .iter_mut()
                        .filter(|heard| **heard == RawReply::Silence)
                        .for_each(|heard| *heard = closed.clone());
                    (self.from, self.to) = self::open(&self.address, &self.login, &self.inbox).await;
                    self.line.clear();
                    return heard;
                }
            };
            let fields: Vec<&str> = line.split(' ').collect();
            match fields[0] {
                "PING" => drop(self.to.write_all(b"PONG\r\n").await),
                "-ERR" => words.push(line),
                "MSG" | "HMSG" => {
                    let size: usize = fields[fields.len() - 1].parse().unwrap();
                    let mut body = vec![0; size + 2];
                    self.from.read_exact(&mut body).await.unwrap();
                    let number = fields[1].rsplit('.').next().and_then(|number| number.parse::<usize>().ok());
                    let place = number.and_then(|number| heard.get_mut(number.checked_sub(first)?));
                    if let Some(place) = place {
                        open -= usize::from(*place == RawReply::Silence);
                        *place = understand(&body[..size]);
                    }
                }
                _ => {}
            }
        }
        if !words.is_empty() {
            let refused = RawReply::Refused(words.join(" "));
            heard.iter_mut().filter(|heard| **heard == RawReply::Silence).for_each(|heard| *heard = refused.clone());
        }
        heard
    }
}

async fn open(address: &str, login: &str, inbox: &str) -> (BufReader<OwnedReadHalf>, OwnedWriteHalf) {
    let (from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let head = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true{login}}}\r\nSUB {inbox}.> 1\r\nPING\r\n"
    );
    to.write_all(head.as_bytes()).await.unwrap();
    let mut from = BufReader::new(from);
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        assert!(from.read_line(&mut line).await.unwrap() > 0 && !line.starts_with("-ERR"), "{line}");
    }
    (from, to)
}

fn understand(body: &[u8]) -> RawReply {
    if body.starts_with(b"NATS/1.0 503") {
        return RawReply::Nobody;
    }
    if let Some(status) = body.strip_prefix(b"NATS/1.0 ") {
        return RawReply::Refused(String::from_utf8_lossy(status).trim().to_owned());
    }
    let Ok(said) = serde_json::from_slice::<Value>(body) else {
        return RawReply::Said(String::from_utf8_lossy(body).into_owned());
    };
    if let Some(error) = said.get("error") {
        return RawReply::Refused(error["description"].as_str().unwrap_or_default().to_owned());
    }
    match (said["stream"].as_str(), said["seq"].as_u64()) {
        (Some(stream), Some(sequence)) if said.get("type").is_none() => {
            RawReply::Stored { stream: stream.into(), sequence, duplicate: said["duplicate"] == true }
        }
        _ => RawReply::Said(said.to_string()),
    }
}
