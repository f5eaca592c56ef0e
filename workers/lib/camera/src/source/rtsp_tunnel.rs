//! RTSP over TLS: the RTSP client speaks plain TCP to a port of this machine, from where its connection goes on encrypted.
//! The port takes one connection, and no longer than the client needs to make it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::error::CameraError;
use crate::tls;

/// Port of RTSP over TLS, where the address names none.
const PORT: u16 = 322;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An encrypted connection to a camera, which ends with this.
pub(super) struct RtspTunnel {
    /// Address of its near end.
    pub url: Url,
    _carrier: AbortOnDropHandle<()>,
}

impl RtspTunnel {
    /// Connects to the camera, and opens the near end.
    ///
    /// # Errors
    /// The camera cannot be reached, or is not who it should be.
    pub(super) async fn open(address: &str, url: &Url, authority: Option<&Path>) -> Result<Self, CameraError> {
        let unreachable = |why: String| CameraError::Unreachable { address: address.into(), why };
        let config = tls::client_config(tls::read_authority(authority).await?, address)?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|error| unreachable(error.to_string()))?;
        let connecting = async {
            let tcp = TcpStream::connect((host.as_str(), url.port().unwrap_or(PORT))).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(name, tcp).await
        };
        let mut far = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(far)) => far,
            Ok(Err(error)) => {
                return Err(match tls::certificate_fault(&error) {
                    Some(why) => CameraError::Certificate { address: address.into(), why },
                    None => unreachable(error.to_string()),
                });
            }
            Err(_) => {
                let (address, seconds) = (address.into(), CONNECT_TIMEOUT.as_secs());
                return Err(CameraError::Timeout { address, step: "the connection", seconds });
            }
        };
        let failed = |error: std::io::Error| unreachable(format!("no port of this machine can be opened: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let near_url = near_url(url, port).ok_or_else(|| unreachable("its address cannot be rewritten".into()))?;
        let carrier = AbortOnDropHandle::new(tokio::spawn(async move {
            let Ok(Ok((mut near, _))) = timeout(CONNECT_TIMEOUT, listener.accept()).await else { return };
            drop(listener);
            // Either end closes both; what was wrong, the RTSP client sees as an end of its connection.
            let _ended = copy_bidirectional(&mut near, &mut far).await;
        }));
        Ok(Self { url: near_url, _carrier: carrier })
    }
}

fn near_url(url: &Url, port: u16) -> Option<Url> {
    let mut near = Url::parse(&format!("rtsp://{}:{port}", Ipv4Addr::LOCALHOST)).ok()?;
    near.set_path(url.path());
    near.set_query(url.query());
    Some(near)
}
