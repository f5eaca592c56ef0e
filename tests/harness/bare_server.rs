//! A nats-server with a configuration that the test writes: passwords, accounts, clusters.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::program::die_with_us;
use crate::until::until;

/// A nats-server process; killed when dropped.
pub struct BareServer {
    /// URL for clients.
    pub url: String,
    /// URL of its monitoring endpoint.
    pub monitor_url: String,
    child: Child,
}

impl BareServer {
    /// Starts a server that stores below `folder`, with `domain` as its JetStream domain. `more` is appended to its
    /// configuration.
    pub async fn start(folder: &Path, name: &str, domain: Option<&str>, more: &str) -> anyhow::Result<Self> {
        let [client, monitor] = free_ports()?;
        let store = folder.join(name);
        std::fs::create_dir_all(&store)?;
        let domain = domain.map(|domain| format!(", domain: {domain}")).unwrap_or_default();
        let configuration = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{client}\"\nhttp: \"127.0.0.1:{monitor}\"\n\
             max_payload: {}\njetstream {{ store_dir: \"{}\", max_file_store: 64GB{domain} }}\n{more}\n",
            schemas::limits::MAX_MESSAGE_BYTES,
            store.display(),
        );
        let file = store.join("nats-server.conf");
        std::fs::write(&file, configuration)?;
        Self::run(&file, client, monitor).await
    }

    /// Starts a server with a configuration file and writes its log beside it. `client` and `monitor` are the ports in
    /// that file.
    pub async fn run(file: &Path, client: u16, monitor: u16) -> anyhow::Result<Self> {
        let log = file.with_file_name("nats-server.log");
        let mut command = Command::new(streams::server::find_program(None)?);
        command.arg("-c").arg(file).arg("-l").arg(&log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        die_with_us(&mut command);
        let url = format!("nats://127.0.0.1:{client}");
        let server = Self { url, monitor_url: format!("http://127.0.0.1:{monitor}"), child: command.spawn()? };
        let answers = until("the server answers", Duration::from_secs(20), async || {
            Ok(TcpStream::connect(("127.0.0.1", client)).await.is_ok().then_some(()))
        });
        answers.await.map_err(|error| {
            error.context(std::fs::read_to_string(&log).unwrap_or_else(|_| "it wrote no log".into()))
        })?;
        Ok(server)
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _already_gone = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Finds distinct ports that are free at this moment.
pub fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
