//! A TCP proxy between a site and the cloud, which a test can cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// State of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// The link works.
    Open,
    /// Bytes are held back but not lost, and connections stay open, as when the network is down.
    Silent,
    /// Connections are reset and new ones refused, as when a router is down.
    Reset,
}

/// A TCP proxy to one address.
pub struct Proxy {
    port: u16,
    state: watch::Sender<ProxyMode>,
    passed: ProxyTraffic,
    task: JoinHandle<()>,
}

/// Bytes sent towards the cloud; absent until recording starts.
type ProxyTraffic = Arc<Mutex<Option<Vec<u8>>>>;

impl Proxy {
    /// Starts a proxy to `to` on a free loopback port.
    pub async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (state, link) = watch::channel(ProxyMode::Open);
        let passed = ProxyTraffic::default();
        let recorded = passed.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(forward(near, to, link.clone(), recorded.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, state, passed, task })
    }

    /// Loopback port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts recording the bytes sent towards the cloud.
    pub fn start_recording(&self) {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Whether these bytes were sent towards the cloud since [`Proxy::start_recording`].
    pub fn has_passed(&self, bytes: &[u8]) -> bool {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.iter().any(|passed| passed.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Cuts or restores the link.
    pub fn set(&self, cut: ProxyMode) {
        self.state.send_replace(cut);
    }

    /// Cuts the link for a while.
    pub async fn cut_for(&self, cut: ProxyMode, time: Duration) {
        self.set(cut);
        tokio::time::sleep(time).await;
        self.set(ProxyMode::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(near: TcpStream, to: SocketAddr, mut link: watch::Receiver<ProxyMode>, passed: ProxyTraffic) {
    if link.wait_for(|cut| *cut != ProxyMode::Silent).await.is_ok_and(|cut| *cut == ProxyMode::Reset) {
        return reset_on_close(&near);
    }
    let Ok(far) = TcpStream::connect(to).await else { return reset_on_close(&near) };
    let _no_delay = (near.set_nodelay(true), far.set_nodelay(true));
    let resets = async {
        let mut link = link.clone();
        let _sender_gone = link.wait_for(|cut| *cut == ProxyMode::Reset).await;
    };
    // Set this before splitting: the halves have no such option.
    reset_on_close(&near);
    reset_on_close(&far);
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = resets => {}
        () = copy_bytes(from_near, to_far, link.clone(), Some(passed)) => {}
        () = copy_bytes(from_far, to_near, link.clone(), None) => {}
    }
}

/// Makes closing the connection send a reset instead of a FIN.
fn reset_on_close(stream: &TcpStream) {
    let _closed_already = stream.set_zero_linger();
}

async fn copy_bytes(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<ProxyMode>,
    passed: Option<ProxyTraffic>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if link.wait_for(|cut| *cut != ProxyMode::Silent).await.is_err() {
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
