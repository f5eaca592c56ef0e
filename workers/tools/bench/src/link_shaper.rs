//! A TCP proxy that makes loopback like a link: bandwidth, delay, jitter, and connections that stall or
//! break. Each direction is a pipe of its own, with a bounded queue.

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

/// Read at a time; small, so that a slow link is slow for small messages too.
const CHUNK_BYTES: usize = 4 * 1024;
/// Chunks under way in one direction; more wait in the sender's socket.
const UNDER_WAY: usize = 256;

/// What may be taken from the sender before it is its turn.
const AHEAD: Duration = Duration::from_millis(4);

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct LinkShape {
    /// Bytes a second, each way; absent: as fast as loopback.
    pub rate_bytes_per_s: Option<f64>,
    /// One way, milliseconds.
    pub delay_ms: f64,
    /// Up to so much more, milliseconds.
    pub jitter_ms: f64,
    /// Whether it is whole.
    pub state: LinkState,
}

/// Whether a link is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LinkState {
    /// It is.
    Open,
    /// Nothing passes and nobody is told.
    Silent,
    /// Connections break and are refused.
    Broken,
}

/// The proxy; it ends when dropped.
pub(crate) struct LinkShaper {
    port: u16,
    shape: watch::Sender<LinkShape>,
    _carrying: AbortOnDropHandle<()>,
}

impl LinkShaper {
    /// Starts one on a free port of loopback.
    pub(crate) async fn start(to: SocketAddr, shape: LinkShape) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Link { source };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let (shape, seen) = watch::channel(shape);
        let carrying = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to, seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, shape, _carrying: AbortOnDropHandle::new(carrying) })
    }

    /// Where to connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes it like this from now on.
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
    let breaks = {
        let mut shape = shape.clone();
        async move {
            // Fails only when nobody shapes any more.
            let _ = shape.wait_for(|shape| shape.state == LinkState::Broken).await;
        }
    };
    shape.mark_unchanged();
    tokio::select! {
        () = breaks => {}
        () = pipe(from_near, to_far, shape.clone()) => {}
        () = pipe(from_far, to_near, shape.clone()) => {}
    }
}

/// One direction: what is read at a moment leaves after the delay, in order, no faster than the rate.
async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shape: watch::Receiver<LinkShape>) {
    let (tell, mut told) = mpsc::channel::<(Vec<u8>, Instant)>(UNDER_WAY);
    let seen = shape.clone();
    let reading = async move {
        let mut lot = 0.5_f64;
        let mut last_due = Instant::now();
        let mut free_at = Instant::now();
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let LinkShape { rate_bytes_per_s, delay_ms, jitter_ms, .. } = *seen.borrow();
            // A number from 0 to 1 that looks drawn: the logistic map.
            lot = 3.99 * lot * (1.0 - lot);
            let now = Instant::now();
            let sending_s = rate_bytes_per_s.map_or(0.0, |rate| read as f64 / rate.max(1.0));
            free_at = free_at.max(now) + Duration::from_secs_f64(sending_s);
            let due = free_at + Duration::from_secs_f64((delay_ms + jitter_ms * lot) / 1000.0);
            last_due = last_due.max(due);
            let Some(bytes) = buffer.get(..read) else { return };
            if tell.send((bytes.to_vec(), last_due)).await.is_err() {
                return;
            }
            // The pipe takes no more than it can send: the rest waits where it comes from. Timers are no finer
            // than a millisecond, so a little is let ahead; what it leaves at is reckoned exactly.
            if free_at.saturating_duration_since(Instant::now()) > AHEAD {
                tokio::time::sleep_until(free_at - AHEAD).await;
            }
        }
    };
    let writing = async move {
        let mut shape = shape;
        while let Some((bytes, due)) = told.recv().await {
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

    /// A server that sends back what it gets, and a connection to it through the link.
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
    async fn delay_and_rate_are_at_least_what_was_asked_for() {
        let (_shaper, mut stream) = echo(LinkShape { delay_ms: 20.0, ..OPEN }).await;
        assert!(round_trip(&mut stream, 10).await >= Duration::from_millis(40));
        let (_shaper, mut stream) = echo(LinkShape { rate_bytes_per_s: Some(100_000.0), ..OPEN }).await;
        assert!(round_trip(&mut stream, 20_000).await >= Duration::from_millis(200));
        // Nor is a fast link much slower than asked for: half a megabyte at ten megabytes a second.
        let (_shaper, mut stream) = echo(LinkShape { rate_bytes_per_s: Some(10e6), ..OPEN }).await;
        let took = round_trip(&mut stream, 500_000).await;
        assert!((Duration::from_millis(50)..Duration::from_millis(250)).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn a_silent_link_holds_bytes_back_and_a_broken_one_ends_the_connection() {
        let (shaper, mut stream) = echo(OPEN).await;
        round_trip(&mut stream, 10).await;
        shaper.set(LinkShape { state: LinkState::Silent, ..OPEN });
        let held = tokio::time::timeout(Duration::from_millis(100), round_trip(&mut stream, 10)).await;
        assert!(held.is_err());
        shaper.set(LinkShape { state: LinkState::Broken, ..OPEN });
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection goes on");
    }
}
