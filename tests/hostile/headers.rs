//! Headers of messages as a publisher may write them: the server passes them on as they are, so whoever stands at the other
//! end of a connection may as well be a publisher. A header block costs its message at the most, never the connection.

use bend::{bend_all, texts, turns};
use futures::StreamExt;
use schemas::Task;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

const INFO: &str =
    "INFO {\"server_id\":\"a\",\"version\":\"2.15.1\",\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n";

/// The other end of one client's connection: greets it, waits for its subscription, sends it these blocks, each with its
/// number as payload, and then stays for pings.
async fn publish_to_whoever_comes(listener: TcpListener, blocks: Vec<Vec<u8>>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (read, mut write) = stream.into_split();
    write.write_all(INFO.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(read).lines();
    let mut blocks = Some(blocks);
    while let Ok(Some(line)) = lines.next_line().await {
        if line.starts_with("PING") {
            write.write_all(b"PONG\r\n").await.unwrap();
        }
        if let Some(subscription) = line.strip_prefix("SUB image.reef.cam-1 ") {
            for (number, block) in blocks.take().unwrap_or_default().into_iter().enumerate() {
                let number = number.to_string();
                let (headers, all) = (block.len(), block.len() + number.len());
                let head = format!("HMSG image.reef.cam-1 {} {headers} {all}\r\n", subscription.trim());
                let message = [head.as_bytes(), &block, number.as_bytes(), b"\r\n"].concat();
                write.write_all(&message).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn headers_that_were_bent_cost_their_message_and_not_the_connection() {
    bend::limit_memory();
    let corpus = texts([
        "NATS/1.0\r\nNats-Msg-Id: frame-1\r\nTributary-Label: cat\r\n\r\n",
        "NATS/1.0\r\nTributary-Priority: 7\r\nTributary-Deadline: 5000\r\n  folded\r\n\r\n",
        "NATS/1.0\r\nTributary-Picture: {\"brightness_ratio\":0.5,\"contrast_ratio\":0.1,\"white_ratio\":0}\r\nTributary-States: open,closed\r\nTributary-Thumbnail: AAAA\r\n\r\n",
        "NATS/1.0 404 Not Found\r\n\r\n",
        "NATS/1.0\r\nX-Note: a\rb\r\nNo colon\r\nName with blank: x\r\n\u{fc}: y\r\n\r\n",
    ]);
    let mut blocks = Vec::new();
    // Bent here and read below: what is measured there is the client's whole way from the socket.
    bend_all("header blocks (bending alone)", &corpus, turns(), |bytes| {
        blocks.push(bytes.to_vec());
        1
    });
    let (sent, begun) = (blocks.len(), std::time::Instant::now());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let other_end = tokio::spawn(publish_to_whoever_comes(listener, blocks));
    let client = async_nats::ConnectOptions::new()
        .subscription_capacity(sent + 1)
        .connect(format!("nats://{address}"))
        .await
        .unwrap();
    let mut messages = client.subscribe("image.reef.cam-1").await.unwrap();
    client.flush().await.unwrap();
    let stored = schemas::task::StorageStamp {
        site: "reef".parse().unwrap(),
        camera: "cam-1".parse().unwrap(),
        sequence: 1,
        stored_at_ns: 1,
    };
    for number in 0..sent {
        let message = tokio::time::timeout(std::time::Duration::from_secs(20), messages.next()).await;
        let message = message.unwrap_or_else(|_| panic!("message {number} of {sent} did not come")).unwrap();
        assert_eq!(message.payload, number.to_string().as_bytes(), "one was lost before it");
        let headers = message.headers.unwrap_or_default();
        let _task =
            Task::from_headers(&stored, |name| headers.get(name).map(|value| value.as_str()), &message.payload).is_ok();
    }
    assert_eq!(client.connection_state(), async_nats::connection::State::Connected);
    let seconds = begun.elapsed().as_secs_f64();
    let a_second = sent as f64 / seconds;
    println!("bent headers of messages: {sent} executions in {seconds:.1} s, {a_second:.0}/s, over one connection");
    other_end.abort();
}
