//! A TCP link that can be cut: what lies between a site and the cloud.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkCut {
    /// Whole.
    Open,
    /// Bytes are neither passed on nor lost; connections stay: a network that is gone.
    Silent,
    /// Connections are reset and new ones refused: a router that is gone.
    Reset,
}

/// A TCP proxy to one address.
pub struct Proxy {
    port: u16,
    state: watch::Sender<LinkCut>,
    passed: ProxyTraffic,
    task: JoinHandle<()>,
}

/// What passed towards the cloud, once somebody wants to know.
type ProxyTraffic = Arc<Mutex<Option<Vec<u8>>>>;

impl Proxy {
    /// Starts one on a free port of loopback.
    pub async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (state, link) = watch::channel(LinkCut::Open);
        let passed = ProxyTraffic::default();
        let noted = passed.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to, link.clone(), noted.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, state, passed, task })
    }

    /// Where to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Notes from now on what passes towards the cloud.
    pub fn note(&self) {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Whether these bytes passed towards the cloud since [`Proxy::note`].
    pub fn has_passed(&self, bytes: &[u8]) -> bool {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.iter().any(|passed| passed.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Cuts the link, or mends it.
    pub fn set(&self, cut: LinkCut) {
        self.state.send_replace(cut);
    }

    /// Cuts it for a while.
    pub async fn cut_for(&self, cut: LinkCut, time: Duration) {
        self.set(cut);
        tokio::time::sleep(time).await;
        self.set(LinkCut::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(near: TcpStream, to: SocketAddr, mut link: watch::Receiver<LinkCut>, passed: ProxyTraffic) {
    if link.wait_for(|cut| *cut != LinkCut::Silent).await.is_ok_and(|cut| *cut == LinkCut::Reset) {
        return reset(&near);
    }
    let Ok(far) = TcpStream::connect(to).await else { return reset(&near) };
    let _no_delay = (near.set_nodelay(true), far.set_nodelay(true));
    let resets = async {
        let mut link = link.clone();
        let _sender_gone = link.wait_for(|cut| *cut == LinkCut::Reset).await;
    };
    // Set beforehand: halves cannot say how they want to be closed.
    reset(&near);
    reset(&far);
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = resets => {}
        () = pump(from_near, to_far, link.clone(), Some(passed)) => {}
        () = pump(from_far, to_near, link.clone(), None) => {}
    }
}

/// Closing it sends a reset instead of a goodbye.
fn reset(stream: &TcpStream) {
    let _closed_already = stream.set_zero_linger();
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<LinkCut>,
    passed: Option<ProxyTraffic>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if link.wait_for(|cut| *cut != LinkCut::Silent).await.is_err() {
            return;
        }
        let Some(bytes) = buffer.get(..read) else { return };
        if let Some(passed) = &passed
            && let Some(passed) = passed.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            passed.extend_from_slice(bytes);
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
