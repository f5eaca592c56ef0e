//! What stands in deploy/: every manifest against its schema, and every command, flag, setting and metric in it against the
//! binary.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use harness::bare_server::{BareServer, free_ports};
use harness::pictures::{HEAVY, LIGHT, pictures};
use harness::program::{binary, fixture, root};
use harness::{WorkerProcess, until};
use schemas::SiteName;
use serde_json::Value;

use crate::common::{PATIENCE, publish};

/// The rendered overlays and the compose file, as JSON; checked against their schemas on the way.
fn rendered(folder: &Path) -> BTreeMap<&'static str, Vec<Value>> {
    // One at a time, for the first makes the environment that all use.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let tests = std::env::current_exe().unwrap();
    let target = tests.ancestors().nth(3).expect("target/<profile>/deps/<tests>");
    let mut check = Command::new(root().join("deploy/check-manifests.sh"));
    let output = check.arg(target.join("manifests-venv")).arg(folder).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let read = |name: &'static str| {
        let text = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        (name, serde_json::from_slice(&text).unwrap())
    };
    ["cloud", "edge", "compose"].map(read).into()
}

/// A container of ours: what it is called, its arguments, and its environment.
struct Container {
    named: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Containers whose image is ours, wherever they stand.
fn containers(documents: &[Value]) -> Vec<Container> {
    let mut found = Vec::new();
    for document in documents {
        let named = document["metadata"]["name"].as_str().unwrap_or_default();
        let pod = &document["spec"]["template"]["spec"];
        for container in
            ["containers", "initContainers"].iter().flat_map(|kind| pod[kind].as_array().into_iter().flatten())
        {
            if !container["image"].as_str().unwrap_or_default().contains("tributary") {
                continue;
            }
            let mut environment = BTreeMap::new();
            for variable in container["env"].as_array().into_iter().flatten() {
                let value = variable["value"].as_str().unwrap_or("given-at-run-time").to_owned();
                environment.insert(variable["name"].as_str().unwrap().to_owned(), value);
            }
            let arguments = texts(&container["args"]);
            let command = texts(&container["command"]);
            assert!(command.is_empty() || command[0].ends_with("tributary"), "{named}: {command:?}");
            let arguments = command.into_iter().skip(1).chain(arguments).collect();
            found.push(Container { named: named.into(), arguments, environment });
        }
    }
    found
}

fn services(documents: &[Value]) -> Vec<Container> {
    let mut found = Vec::new();
    for (named, service) in documents[0]["services"].as_object().unwrap() {
        let ours = service["image"].as_str().is_some_and(|image| image.contains("tributary"));
        if !ours {
            continue;
        }
        let environment = service["environment"].as_object().into_iter().flatten();
        let environment =
            environment.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        found.push(Container {
            named: named.clone(),
            arguments: texts(&service["command"]),
            environment: environment.collect(),
        });
    }
    found
}

/// Settings files by name, as ConfigMaps and the repository have them.
fn files(documents: &[Value]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for document in documents.iter().filter(|document| document["kind"] == "ConfigMap") {
        for (name, text) in document["data"].as_object().into_iter().flatten() {
            files.insert(name.clone(), text.as_str().unwrap_or_default().to_owned());
        }
    }
    files
}

/// Runs the binary with what a container has; its words if it refuses.
fn refused(container: &Container, arguments: &[String], folder: &Path) -> Option<String> {
    let mut command = Command::new(binary().unwrap());
    command.args(arguments).current_dir(folder);
    for (name, value) in &container.environment {
        // What is put together when it runs is a text of any kind.
        let value = if value.contains("$(") || value.contains("${") {
            "nats://127.0.0.1:4222".to_owned()
        } else {
            value.clone()
        };
        let value = if name == "TRIBUTARY_SITE" && value.contains(':') { "reef".to_owned() } else { value };
        command.env(name, value);
    }
    let output = command.output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_manifest_has_its_schema_and_every_command_and_setting_in_it_is_one_of_the_binary() {
    let folder = tempfile::tempdir().unwrap();
    let all = rendered(folder.path());
    let mut roles = BTreeSet::new();
    for (place, documents) in &all {
        let (containers, mut files) = match *place {
            "compose" => (services(documents), BTreeMap::new()),
            _ => (containers(documents), files(documents)),
        };
        for name in ["cloud.toml", "site.toml"] {
            let own = || std::fs::read_to_string(root().join("deploy/settings").join(name)).unwrap();
            files.entry(name.to_owned()).or_insert_with(own);
        }
        assert!(containers.len() >= 4, "{place} has {} containers of ours", containers.len());
        for container in containers {
            let at = format!("{place}: {}: tributary {}", container.named, container.arguments.join(" "));
            // A flag that is not known is refused before the help is shown.
            let help = [&container.arguments[..], &["--help".to_owned()]].concat();
            if let Some(words) = refused(&container, &help, folder.path()) {
                panic!("{at}\n{words}");
            }
            roles.insert(container.arguments[0].clone());
            let settings = container.arguments.iter().skip_while(|argument| *argument != "--settings").nth(1);
            let file = settings.map(|path| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned());
            let mut show = vec!["config".to_owned(), "--show".into()];
            if let Some(name) = file {
                let text = files.get(&name).unwrap_or_else(|| panic!("{at}: no file {name}"));
                let path: PathBuf = folder.path().join(format!("{place}-{name}"));
                std::fs::write(&path, text).unwrap();
                show.extend(["--settings".into(), path.display().to_string()]);
            }
            // Settings and environment variables that nobody knows are refused.
            if let Some(words) = refused(&container, &show, folder.path()) {
                panic!("{at}\n{words}");
            }
        }
    }
    let wanted =
        ["grabber", "recognizer", "courier", "janitor", "trainer", "verifier", "aggregator", "releaser", "setup"];
    for role in wanted {
        assert!(roles.contains(role), "no manifest runs tributary {role}: {roles:?}");
    }
}

/// Names of our metrics in a text, and of the standard ones of a process; those of histograms and counters without what
/// Prometheus adds.
fn metrics(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let prefixes = ["tributary_", "process_"];
    for (at, prefix) in prefixes.iter().flat_map(|prefix| text.match_indices(prefix)) {
        let name: String = text[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        let name =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned();
        if name.len() > prefix.len() {
            names.insert(name.trim_end_matches('_').to_owned());
        }
    }
    names
}

/// Where a process answers for its metrics, by its log.
pub(crate) fn listens_at(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(runtime::metrics::ENDPOINT_STARTED))?;
    let at = line.find("127.0.0.1:")?;
    Some(line[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect())
}

pub(crate) async fn get(address: &str, path: &str) -> anyhow::Result<(String, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Metrics of what a healthy site does not have: a canary, a fault, a certificate, a blind camera, a role that fails.
const TOLD_SELDOM: [&str; 8] = [
    "tributary_camera_picture_fault",
    "tributary_canary_better",
    "tributary_canary_error",
    "tributary_canary_images",
    "tributary_canary_margin",
    "tributary_expiry_timestamp_seconds",
    "tributary_fault",
    "tributary_role_failures",
];

#[tokio::test]
async fn every_metric_of_the_board_the_alerts_and_the_autoscaler_is_told_by_a_running_site() {
    let folder = tempfile::tempdir().unwrap();
    let (light, heavy) = (fixture(LIGHT).display().to_string(), fixture(HEAVY).display().to_string());
    let public = format!("aggregator.public={}", fixture("images/fashion").display());
    let mut arguments =
        vec!["up", "--model", &light, "--cloud-model", &heavy, "--store", "store", "--train", "--merge"];
    for pair in [public.as_str(), "metrics.listen=\"127.0.0.1:0\"", "courier.budget.max_bytes_per_day=100000000"] {
        arguments.extend(["--set", pair]);
    }
    let stills = folder.path().join("stills");
    std::fs::create_dir(&stills).unwrap();
    for (number, picture) in pictures().unwrap().iter().take(10).enumerate() {
        std::fs::write(stills.join(format!("{number}.jpg")), vision::enlarged(&picture.bytes, 200).unwrap()).unwrap();
    }
    std::fs::write(folder.path().join("tributary.toml"), "[[camera]]\nname = \"belt\"\nurl = \"stills\"\n").unwrap();
    let up = WorkerProcess::start("up", folder.path(), &arguments, &[]).unwrap();
    let listens = until("where it answers", PATIENCE, async || Ok(listens_at(&up.log())));
    let address = &listens.await.unwrap();
    let (early, _) = get(address, "/livez").await.unwrap();
    assert!(early.contains("200"), "{}", up.log());
    let ready = until("readiness", PATIENCE, async || {
        Ok(get(address, "/readyz").await.ok().filter(|(status, _)| status.contains("200")))
    });
    let (_, roles) = ready.await.unwrap_or_else(|error| panic!("{error:#}\n{}", up.log()));
    assert!(roles.contains("recognizer"), "{roles}");
    let site = crate::up::found(folder.path());
    let found = until("up.json", PATIENCE, async || Ok(site.clone().or_else(|| crate::up::found(folder.path()))))
        .await
        .unwrap();
    let url = found["sites"][0]["url"].as_str().unwrap().to_owned();
    let name: SiteName = found["sites"][0]["site"].as_str().unwrap().parse().unwrap();
    let bus = streams::Bus::connect(&streams::NatsSettings { url, ..streams::NatsSettings::default() }, "test")
        .await
        .unwrap();
    // Large ones as well, for small ones say nothing about the rate of the link.
    for picture in pictures().unwrap().iter().take(60) {
        publish(&bus, &name, &picture.bytes, &[]).await;
        let large = vision::enlarged(&picture.bytes, 1500).unwrap();
        publish(&bus, &name, &large, &[]).await;
    }
    let mut wanted = BTreeSet::new();
    for file in ["deploy/grafana/tributary.json", "deploy/k8s/overlays/cloud", "deploy/prometheus/alerts.yml"] {
        let path = root().join(file);
        let texts = match path.is_dir() {
            true => std::fs::read_dir(path)
                .unwrap()
                .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
                .collect(),
            false => vec![std::fs::read_to_string(path).unwrap()],
        };
        wanted.extend(texts.iter().flat_map(|text| metrics(text)));
    }
    assert!(wanted.len() > 30, "{wanted:?}");
    let sources = ["metrics.rs", "metrics/snapshot.rs"]
        .map(|file| std::fs::read_to_string(root().join("workers/lib/runtime/src").join(file)).unwrap());
    let source = sources.concat();
    for name in TOLD_SELDOM {
        // Counters are registered without their ending.
        assert!(wanted.remove(name) || wanted.remove(&format!("{name}_total")), "{name}");
        assert!(source.contains(&format!("\"{name}\"")), "{name}");
    }
    let missing = async || {
        let (_, told) = get(address, "/metrics").await?;
        let told = metrics(&told);
        Ok(wanted.iter().filter(|name| !told.contains(*name)).cloned().collect::<Vec<_>>())
    };
    // Large images and two models on two cores: some figures come only after the first of them are through.
    let all = until("every metric", 3 * PATIENCE, async || {
        let missing: anyhow::Result<Vec<String>> = missing().await;
        Ok(missing?.is_empty().then_some(()))
    });
    if let Err(error) = all.await {
        let missing: anyhow::Result<Vec<String>> = missing().await;
        panic!("{error:#}: {missing:?}\n{}", up.log());
    }
}

/// A shipped configuration of nats-server in a folder of its own, with its passwords and certificates beside it and other
/// ports in it.
fn lay_out(place: &str, folder: &Path, ports: &[(&str, u16)]) -> PathBuf {
    let own = folder.join(place);
    std::fs::create_dir(&own).unwrap();
    let mut text = std::fs::read_to_string(root().join(format!("deploy/nats/{place}.conf"))).unwrap();
    for (address, port) in ports {
        assert!(text.contains(address), "{place}.conf does not listen on {address}");
        text = text.replace(address, &format!("127.0.0.1:{port}"));
    }
    let text = text.replace("/var/lib/nats", &own.join("store").display().to_string());
    let text = text.replace("/etc/nats/", &format!("{}/", own.display()));
    // As compose.yaml and the overlays mount them; the hub is not given the authority.
    let of_place = |ending: &str| format!("{place}-{ending}");
    let mut files = vec![
        (of_place("passwords.conf"), "passwords.conf"),
        (of_place("nats.pem"), "server.pem"),
        (of_place("nats.key"), "server.key"),
    ];
    if place == "site" {
        files.push(("ca.pem".into(), "ca.pem"));
    }
    for (made, named) in files {
        std::fs::copy(folder.join("secrets").join(made), own.join(named)).unwrap();
    }
    std::fs::write(own.join("server.conf"), text).unwrap();
    own.join("server.conf")
}

/// What a server says to somebody who encrypts nothing, until it ends the connection.
async fn heard_in_the_clear(port: u16, words: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(words).await.unwrap();
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
    // That the connection was reset is an end, too.
    let _reset = ended.unwrap_or_else(|_| panic!("port {port} goes on without encryption: {heard:?}"));
    String::from_utf8_lossy(&heard).into_owned()
}

/// A camera's greeting over MQTT 3.1.1.
fn mqtt_greeting(user: &str, password: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u16::try_from(text.len()).unwrap();
        [&length.to_be_bytes()[..], text.as_bytes()].concat()
    };
    // User, password and a clean session; no heartbeat for a minute.
    let who = [text("camera"), text(user), text(password)].concat();
    let rest = [text("MQTT"), vec![4, 0xC2, 0, 60], who].concat();
    // Below 128 its length is one byte.
    assert!(rest.len() < 128, "{} bytes", rest.len());
    [vec![0x10, u8::try_from(rest.len()).unwrap()], rest].concat()
}

/// What a server answers over TLS, two packets of four bytes, in hexadecimal.
fn heard_over_tls(authority: &Path, port: u16, words: &[u8]) -> String {
    const ASKING: &str = "import socket, ssl, sys\n\
        trusting = ssl.create_default_context(cafile=sys.argv[1])\n\
        plain = socket.create_connection(('127.0.0.1', int(sys.argv[2])), timeout=20)\n\
        stream = trusting.wrap_socket(plain, server_hostname='localhost')\n\
        stream.sendall(bytes.fromhex(sys.argv[3]))\n\
        heard = b''\n\
        while len(heard) < 8:\n\
        \x20   more = stream.recv(8)\n\
        \x20   if not more: break\n\
        \x20   heard += more\n\
        print(heard.hex())\n";
    let words: String = words.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut python = Command::new("python3");
    let output = python.args(["-c", ASKING]).arg(authority).args([&port.to_string(), &words]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_servers_and_workers_know_each_other_by_passwords_and_certificates_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let [hub_port, hub_pages, leaves, site_port, site_pages, mqtt] = free_ports().unwrap();
    let secrets = folder.path().join("secrets");
    let make = || {
        let mut make = Command::new(root().join("deploy/make-secrets.sh"));
        make.arg(&secrets).args(["reef", &format!("127.0.0.1:{leaves}")]).output().unwrap()
    };
    let made = make();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let password = std::fs::read_to_string(secrets.join("worker")).unwrap();
    assert!(!make().status.success(), "passwords that are in use were replaced");
    assert_eq!(std::fs::read_to_string(secrets.join("worker")).unwrap(), password);
    // Containers run as somebody else; the authority's key is for none of them.
    for (file, mode) in [("worker", 0o444), ("ca.pem", 0o444), ("site-nats.key", 0o444), ("ca.key", 0o400)] {
        let found = std::fs::metadata(secrets.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file} has the mode {found:o}");
    }
    // A second site, and the next certificates, are of the same authority.
    let mut again = Command::new(root().join("deploy/make-secrets.sh"));
    let again = again.arg(folder.path().join("again")).env("AUTHORITY", &secrets).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let is_same = |file: &str| {
        let read = |made: &str| std::fs::read(folder.path().join(made).join(file)).unwrap();
        read("secrets") == read("again")
    };
    assert!(is_same("ca.pem") && !is_same("site-nats.pem") && !is_same("worker"));

    let hub = [("0.0.0.0:4222", hub_port), ("127.0.0.1:8222", hub_pages), ("0.0.0.0:7422", leaves)];
    let near = [("0.0.0.0:4222", site_port), ("127.0.0.1:8222", site_pages), ("0.0.0.0:8883", mqtt)];
    let hub = BareServer::run(&lay_out("cloud", folder.path(), &hub), hub_port, hub_pages).await.unwrap();
    let near = BareServer::run(&lay_out("site", folder.path(), &near), site_port, site_pages).await.unwrap();
    let encrypted = |server: &BareServer| server.url.replace("nats://", "tls://");
    let (hub_url, near_url) = (encrypted(&hub), encrypted(&near));
    // As compose.yaml calls them, but for where things lie.
    let services = services(&rendered(folder.path())["compose"]);
    let lies = |text: &str| {
        let text = text.replace("/etc/tributary", &root().join("deploy/settings").display().to_string());
        let text = text.replace("/run/secrets", &secrets.display().to_string());
        text.replace("tls://cloud-nats:4222", &hub_url).replace("tls://site-nats:4222", &near_url)
    };
    for name in ["cloud-setup", "site-setup"] {
        let service = services.iter().find(|service| service.named == name).expect(name);
        let mut command = Command::new(binary().unwrap());
        command.args(service.arguments.iter().map(|argument| lies(argument))).current_dir(folder.path());
        command.envs(service.environment.iter().map(|(name, value)| (name, lies(value))));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    let worker = streams::NatsSettings {
        url: near_url.clone(),
        ca: Some(secrets.join("ca.pem")),
        user: Some("worker".into()),
        password_file: Some(secrets.join("worker")),
        cloud_domain: Some("cloud".into()),
        link_user: Some("link".into()),
        link_password_file: Some(secrets.join("link")),
        ..streams::NatsSettings::default()
    };
    let bus = streams::Bus::connect(&worker, "test").await.unwrap();
    assert_eq!(bus.account().await.as_deref(), Some("SITE"));
    let site: SiteName = "reef".parse().unwrap();
    let link = bus.connect_cloud(&worker, &site, "test").await.unwrap();
    assert_eq!(link.account().await.as_deref(), Some("LINK"));
    let pages = hub.monitor_url.strip_prefix("http://").unwrap();
    let joined = until("the site joins the cloud", PATIENCE, async || {
        let (_, leaves) = get(pages, "/leafz").await?;
        Ok(serde_json::from_str::<Value>(&leaves)?["leafnodes"].as_u64().filter(|leaves| *leaves == 1))
    });
    joined.await.unwrap();

    // In the clear nobody is let in, whatever password is known, and the link's port does not even say what it is.
    for (port, user, file) in [(hub_port, "cloud", "cloud"), (site_port, "worker", "worker")] {
        let password = std::fs::read_to_string(secrets.join(file)).unwrap();
        let words = format!("CONNECT {{\"user\":\"{user}\",\"pass\":\"{}\"}}\r\nPING\r\n", password.trim());
        let heard = heard_in_the_clear(port, words.as_bytes()).await;
        assert!(heard.starts_with("INFO ") && !heard.contains("PONG"), "{heard}");
    }
    let heard = heard_in_the_clear(leaves, b"CONNECT {\"user\":\"reef\"}\r\nPING\r\n").await;
    assert!(heard.is_empty(), "{heard}");
    let password = std::fs::read_to_string(secrets.join("camera")).unwrap();
    let greeting = mqtt_greeting("cam1-mqtt", password.trim());
    let heard = heard_in_the_clear(mqtt, &greeting).await;
    assert!(heard.is_empty(), "{heard}");
    // Over TLS a camera that speaks MQTT is greeted, and its image taken: a publish with QoS 1, number 1.
    let image = b"\0\x0fimage/reef/cam1\0\x01no picture".to_vec();
    let publish = [vec![0x32, u8::try_from(image.len()).unwrap()], image].concat();
    let heard = heard_over_tls(&secrets.join("ca.pem"), mqtt, &[greeting, publish].concat());
    assert_eq!(heard, "2002000040020001");

    let unknown = streams::NatsSettings { ca: None, ..worker.clone() };
    assert!(streams::Bus::connect(&unknown, "test").await.is_err(), "a server was taken that nobody vouches for");
    let stranger = streams::NatsSettings { password_file: Some(secrets.join("link")), ..worker.clone() };
    assert!(streams::Bus::connect(&stranger, "test").await.is_err(), "a wrong password was taken");
    let both = streams::NatsSettings { link_password: Some("other".to_owned().into()), ..worker };
    let refused = bus.connect_cloud(&both, &site, "test").await.err().expect("two passwords").to_string();
    assert!(refused.contains("nats.link_password"), "{refused}");
}

/// A server's configuration, and how much its streams may hold, bytes.
fn server_rules(path: &str) -> (String, u64) {
    let text = std::fs::read_to_string(root().join(path)).unwrap();
    let size = text.lines().find_map(|line| line.split_once("max_file_store: ")).map(|(_, size)| size);
    let gib = size.and_then(|size| size.split_once("GB")).and_then(|(number, _)| number.parse::<u64>().ok());
    let payload = format!("max_payload: {}", schemas::limits::MAX_MESSAGE_BYTES);
    assert!(text.contains(&payload), "{path} has another limit for messages than {payload}");
    assert!(
        text.contains(streams::server::BUFFERED),
        "{path} lets a server hold something else than {}",
        streams::server::BUFFERED
    );
    (text, gib.unwrap_or_default() << 30)
}

#[test]
fn the_server_files_give_a_site_its_rights_and_its_link_an_account_and_hold_what_the_streams_may() {
    use streams::permissions::{CLOUD_ACCOUNT, CLOUD_DOMAIN, SubjectPermissions, account_of};
    use streams::topology::{PlanScope, StreamSettings, plan_topology};
    let site: SiteName = "reef".parse().unwrap();
    let settings = StreamSettings::default();
    for path in ["deploy/nats/site.conf", "deploy/k8s/overlays/edge/nats.conf"] {
        let (text, store) = server_rules(path);
        assert!(text.contains("    account: LINK\n"), "{path}: the link ends elsewhere");
        assert!(
            text.contains("  LINK: { users: [ { user: link, password: $LINK_PASSWORD } ] }"),
            "{path}: LINK has more"
        );
        let needed = plan_topology(&PlanScope::Site(site.clone()), &settings).max_store_bytes();
        assert!(store >= needed, "{path}: max_file_store is {store}, the streams may hold {needed}");
    }
    for path in ["deploy/nats/cloud.conf", "deploy/k8s/overlays/cloud/nats.conf"] {
        let (text, store) = server_rules(path);
        let share = SubjectPermissions::of_site_in_cloud(&site, CLOUD_DOMAIN).account_share(
            CLOUD_DOMAIN,
            CLOUD_ACCOUNT,
            &account_of(&site),
        );
        for entry in share.exports.iter().chain(&share.imports) {
            assert!(text.contains(&format!("    {entry}\n")), "{path}: the site may not {entry}");
        }
        let services = text.matches("{ service: ").count();
        assert_eq!(services, share.exports.len() + share.imports.len(), "{path}: the site may more than it needs");
        let needed = plan_topology(&PlanScope::Cloud(vec![site.clone()]), &settings).max_store_bytes();
        assert!(store >= needed, "{path}: max_file_store is {store}, the streams may hold {needed}");
    }
}
