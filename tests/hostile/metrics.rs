//! Requests for metrics, over a real socket.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use bend::{bend_all, texts, turns};

/// The server gives up on whoever says nothing after five seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What comes back for these bytes, until the other side closes.
fn ask(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Who answers before everything was said may have closed already.
    let _closed = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("no end of the answer: {error}"),
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_that_were_bent_are_answered_or_closed_and_the_next_is_served() {
    bend::limit_memory();
    let address = runtime::metrics::serve("127.0.0.1:0".parse().unwrap(), &Default::default()).await.unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET /livez HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(200));
    let requests = texts([
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\nGET /readyz HTTP/1.1\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\nbody",
        "POST /readyz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nbody\r\n0\r\n\r\n",
        "GET /metrics?q=%00%ff HTTP/1.0\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &long,
        &many,
    ]);
    let bending = move || {
        bend_all("requests for metrics", &requests, turns() / 20, |bytes| {
            ask(address, bytes);
            1
        });
        ask(address, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    let last = tokio::task::spawn_blocking(bending).await.unwrap();
    assert!(last.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&last));
}
