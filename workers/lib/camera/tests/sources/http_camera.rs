//! A camera over HTTP that writes its bytes itself, so that it can break every rule: a real server on a real socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A connection that a handler writes to.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Path and query.
    pub target: String,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many came before, to the same server.
    pub number: usize,
}

/// Writes an answer; returns whether the connection stays open for another request.
pub(crate) type Handler = Arc<
    dyn for<'c> Fn(Request, &'c mut dyn Connection) -> Pin<Box<dyn Future<Output = std::io::Result<bool>> + Send + 'c>>
        + Send
        + Sync,
>;

/// A running camera, which ends when it is dropped.
pub(crate) struct HttpCamera {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl HttpCamera {
    /// Starts one that answers with `handler`.
    pub(crate) async fn start(handler: Handler) -> Self {
        Self::start_with(handler, None).await
    }

    /// The same, with TLS.
    pub(crate) async fn start_encrypted(handler: Handler, config: ServerConfig) -> Self {
        Self::start_with(handler, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (noted, counted) = (requests.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (noted, handler, tls) = (noted.clone(), handler.clone(), tls.clone());
                served.spawn(async move {
                    match tls {
                        None => serve(stream, &noted, &handler).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &noted, &handler).await,
                            Err(_) => Ok(()),
                        },
                    }
                });
            }
        });
        Self { address, requests, connections, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for HttpCamera {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: impl Connection, noted: &Mutex<Vec<Request>>, handler: &Handler) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
            if !head[0].is_ascii_alphabetic() {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
                return stream.shutdown().await;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let target = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let request = {
            let mut noted = noted.lock().unwrap();
            let request = Request { target, headers, number: noted.len() };
            noted.push(request.clone());
            request
        };
        if !handler(request, &mut stream).await? {
            return stream.shutdown().await;
        }
    }
}

/// Makes a handler of a function that returns the bytes of an answer; the connection is closed behind them.
pub(crate) fn answering(answer: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static) -> Handler {
    Arc::new(move |request, stream| {
        let answer = answer(request);
        Box::pin(async move {
            stream.write_all(&answer).await?;
            Ok(false)
        })
    })
}

/// An answer with a length.
pub(crate) fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for header in headers {
        head += &format!("{header}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// A picture.
pub(crate) fn picture(number: u32) -> Vec<u8> {
    answer("200 OK", &["Content-Type: image/jpeg"], &jpeg(number))
}

/// A JPEG in form, of 320×240, that says its number: with a thumbnail in a segment, stuffing and a restart.
pub(crate) fn jpeg(number: u32) -> Vec<u8> {
    let thumbnail = [0xff, 0xd8, 0xff, 0xdb, 0, 3, 9, 0xff, 0xd9];
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, 2 + thumbnail.len() as u8];
    bytes.extend(thumbnail);
    bytes.extend([0xff, 0xfe, 0, 6]);
    bytes.extend(number.to_be_bytes());
    bytes.extend([0xff, 0xc0, 0, 8, 8, 0, 240, 1, 64, 1]);
    bytes.extend([0xff, 0xda, 0, 3, 1]);
    // As large as a small picture of a camera.
    bytes.extend((0..4000u32).map(|byte| (byte % 251) as u8));
    bytes.extend([0xff, 0, 5, 0xff, 0xd3, 6, 0xff, 0xd9]);
    bytes
}

/// The number of such a JPEG.
pub(crate) fn number(jpeg: &[u8]) -> u32 {
    u32::from_be_bytes(jpeg[19..23].try_into().unwrap())
}

/// One part of a stream.
pub(crate) fn part(number: u32) -> Vec<u8> {
    let jpeg = jpeg(number);
    let head = format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len());
    [head.as_bytes(), &jpeg, b"\r\n"].concat()
}

/// The head of a stream.
pub(crate) const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n";

/// A camera that streams at this distance, up to `last` pictures, and then stays silent with `tail` as its last bytes.
pub(crate) fn streaming(distance: Duration, last: u32, tail: &'static [u8]) -> Handler {
    Arc::new(move |_, stream| {
        Box::pin(async move {
            stream.write_all(STREAM.as_bytes()).await?;
            for number in 0..last {
                stream.write_all(&part(number)).await?;
                tokio::time::sleep(distance).await;
            }
            stream.write_all(tail).await?;
            stream.flush().await?;
            std::future::pending().await
        })
    })
}

/// An authority in PEM form, and the settings of a server with a certificate of it for 127.0.0.1.
pub(crate) fn certificate() -> (String, ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (authority.pem(), config)
}
