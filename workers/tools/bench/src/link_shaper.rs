//! A TCP proxy that emulates a network link on loopback: bandwidth, delay, jitter, and stalled or broken connections.
//! Each direction is a separate pipe with a bounded queue.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::error::BenchError;

/// Bytes per read; small, so that a slow link also delays small messages.
const CHUNK_BYTES: usize = 4 * 1024;
/// Maximum chunks queued per direction; further data waits in the sender's socket.
const MAX_QUEUED_CHUNKS: usize = 256;

/// How far ahead of the rate limit data is read from the sender.
const AHEAD: Duration = Duration::from_millis(4);

/// Properties of a link.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct LinkShape {
    /// Bandwidth in each direction, bytes per second; unlimited if absent.
    pub rate_bytes_per_s: Option<f64>,
    /// One-way delay, milliseconds.
    pub delay_ms: f64,
    /// Maximum additional delay, milliseconds.
    pub jitter_ms: f64,
    /// Whether traffic passes.
    pub state: LinkState,
}

/// Whether traffic passes over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LinkState {
    /// Traffic passes.
    Open,
    /// Nothing passes, and connections stay open.
    Silent,
    /// Connections are closed, and new ones refused.
    Broken,
}

/// The proxy; dropping it stops it.
pub(crate) struct LinkShaper {
    port: u16,
    shape: watch::Sender<LinkShape>,
    _accepting: AbortOnDropHandle<()>,
}

impl LinkShaper {
    /// Starts a proxy on a free loopback port.
    pub(crate) async fn start(to: SocketAddr, shape: LinkShape) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Link { source };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let (shape, seen) = watch::channel(shape);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to, seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, shape, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Port to connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the properties of the link.
    pub(crate) fn set(&self, shape: LinkShape) {
        self.shape.send_replace(shape);
    }
}

async fn carry(near: TcpStream, to: SocketAddr, mut shape: watch::Receiver<LinkShape>) {
    if shape.borrow().state == LinkState::Broken {
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _no_delay = (near.set_nodelay(true), far.set_nodelay(true));
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let broken = {
        let mut shape = shape.clone();
        async move {
            // Fails only after the shaper is dropped.
            let _ = shape.wait_for(|shape| shape.state == LinkState::Broken).await;
        }
    };
    shape.mark_unchanged();
    tokio::select! {
        () = broken => {}
        () = pipe(from_near, to_far, shape.clone()) => {}
        () = pipe(from_far, to_near, shape.clone()) => {}
    }
}

/// Carries one direction: data leaves in order after the delay, at most at the rate.
async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shape: watch::Receiver<LinkShape>) {
    let (queue, mut queued) = mpsc::channel::<(Vec<u8>, Instant)>(MAX_QUEUED_CHUNKS);
    let seen = shape.clone();
    let reading = async move {
        let mut random = 0.5_f64;
        let mut last_due = Instant::now();
        let mut free_at = Instant::now();
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let LinkShape { rate_bytes_per_s, delay_ms, jitter_ms, .. } = *seen.borrow();
            // Pseudo-random number from 0 to 1: the logistic map.
            random = 3.99 * random * (1.0 - random);
            let now = Instant::now();
            let sending_s = rate_bytes_per_s.map_or(0.0, |rate| read as f64 / rate.max(1.0));
            free_at = free_at.max(now) + Duration::from_secs_f64(sending_s);
            let due = free_at + Duration::from_secs_f64((delay_ms + jitter_ms * random) / 1000.0);
            last_due = last_due.max(due);
            let Some(bytes) = buffer.get(..read) else { return };
            if queue.send((bytes.to_vec(), last_due)).await.is_err() {
                return;
            }
            // Reads no more than the link can send; the rest waits at the sender. Timers have millisecond
            // resolution, so reading runs slightly ahead; departure times are computed exactly.
            if free_at.saturating_duration_since(Instant::now()) > AHEAD {
                tokio::time::sleep_until(free_at - AHEAD).await;
            }
        }
    };
    let writing = async move {
        let mut shape = shape;
        while let Some((bytes, due)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            if shape.wait_for(|shape| shape.state != LinkState::Silent).await.is_err() {
                return;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: LinkShape = LinkShape { rate_bytes_per_s: None, delay_ms: 0.0, jitter_ms: 0.0, state: LinkState::Open };

    /// Starts an echo server and connects to it through the link.
    async fn echo(shape: LinkShape) -> (LinkShaper, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let shaper = LinkShaper::start(to, shape).await.unwrap();
        let stream = TcpStream::connect(("127.0.0.1", shaper.port())).await.unwrap();
        (shaper, stream)
    }

    async fn round_trip(stream: &mut TcpStream, bytes: usize) -> Duration {
        let begun = Instant::now();
        let (mut from, mut to) = stream.split();
        let sent = vec![7; bytes];
        let mut back = vec![0; bytes];
        let (wrote, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut back));
        wrote.unwrap();
        read.unwrap();
        assert_eq!(back, sent);
        begun.elapsed()
    }

    #[tokio::test]
    async fn delay_and_rate_limit_are_applied() {
        let (_shaper, mut stream) = echo(LinkShape { delay_ms: 20.0, ..OPEN }).await;
        assert!(round_trip(&mut stream, 10).await >= Duration::from_millis(40));
        let (_shaper, mut stream) = echo(LinkShape { rate_bytes_per_s: Some(100_000.0), ..OPEN }).await;
        assert!(round_trip(&mut stream, 20_000).await >= Duration::from_millis(200));
        // A fast link is not much slower than configured either: half a megabyte at ten megabytes per second.
        let (_shaper, mut stream) = echo(LinkShape { rate_bytes_per_s: Some(10e6), ..OPEN }).await;
        let took = round_trip(&mut stream, 500_000).await;
        assert!((Duration::from_millis(50)..Duration::from_millis(250)).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn silent_link_holds_bytes_and_broken_link_closes_connections() {
        let (shaper, mut stream) = echo(OPEN).await;
        round_trip(&mut stream, 10).await;
        shaper.set(LinkShape { state: LinkState::Silent, ..OPEN });
        let held = tokio::time::timeout(Duration::from_millis(100), round_trip(&mut stream, 10)).await;
        assert!(held.is_err());
        shaper.set(LinkShape { state: LinkState::Broken, ..OPEN });
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is still open");
    }
}
