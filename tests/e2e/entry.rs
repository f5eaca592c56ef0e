//! A site whose server other machines reach: encrypted, by login, and metrics by token.

use std::time::Duration;

use async_nats::ConnectOptions;
use harness::bare_server::free_ports;
use harness::pictures::first_picture;
use harness::program::fixture;
use harness::{WorkerProcess, run, until};
use schemas::TaskId;

use crate::common::PATIENCE;
use crate::up::{found, up};

async fn says(folder: &std::path::Path, words: &[&str]) -> String {
    let ended = run(folder, words).await.unwrap();
    assert!(ended.success, "{words:?}: {}{}", ended.out, ended.err);
    ended.out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_on_another_machine_needs_a_login_and_is_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let [metrics] = free_ports().unwrap();
    let made = fleet::certify_site(&at.join("metrics"), &["127.0.0.1".into()]).unwrap();
    std::fs::write(at.join("token"), "a-token\n").unwrap();
    let set = [
        "up.listen=0.0.0.0".to_owned(),
        "up.mqtt_listen=0.0.0.0".to_owned(),
        "up.mqtt_port=0".to_owned(),
        format!("metrics.listen=0.0.0.0:{metrics}"),
        format!("metrics.certificate={}", made.certificate.display()),
        format!("metrics.key={}", made.key.display()),
        format!("metrics.token_file={}", at.join("token").display()),
    ];
    // Without what makes it safe nothing is listened on.
    let refused = run(at, &["up", "--set", "metrics.listen=0.0.0.0:0"]).await.unwrap();
    assert!(!refused.success && refused.err.contains("setting metrics.listen is 0.0.0.0:0"), "{}", refused.err);
    let options: Vec<&str> = set.iter().flat_map(|pair| ["--set", pair.as_str()]).collect();
    let _up: WorkerProcess = up(at, &options).await;
    let site = found(at).unwrap()["sites"][0].clone();
    let (url, authority) = (site["url"].as_str().unwrap().to_owned(), site["authority"].as_str().unwrap().to_owned());
    assert!(url.starts_with("tls://127.0.0.1:"), "{url}");
    // This machine's own commands need nothing more than the store.
    says(at, &["publish", fixture("images/fashion/bag").to_str().unwrap(), "--camera", "own", "--store", "store"])
        .await;
    let doctor = run(at, &[&["doctor", "--json", "--store", "store"][..], &options[..]].concat()).await.unwrap();
    assert!(doctor.out.contains("for other machines, encrypted and with a login"), "{}", doctor.out);
    // A camera from afar: without a login, or unencrypted, it is nobody.
    let trusting = || ConnectOptions::new().add_root_certificates(authority.clone().into()).require_tls(true);
    trusting().connect(&url).await.unwrap_err();
    let login: serde_json::Value = serde_json::from_str(
        &says(at, &[&["camera", "add", "gate-1", "--json", "--store", "store"][..], &options[..]].concat()).await,
    )
    .unwrap();
    let text = |key: &str| login[key].as_str().unwrap().to_owned();
    assert_eq!((text("user"), text("subject")), ("gate-1".into(), "image.site-1.gate-1".into()));
    let camera =
        || trusting().user_and_password(text("user"), text("password")).custom_inbox_prefix(text("inbox_prefix"));
    let known = until("the camera is known", PATIENCE, async || Ok(camera().connect(&url).await.ok()));
    let client = known.await.unwrap();
    let stranger = ConnectOptions::new().user_and_password(text("user"), text("password")).require_tls(true);
    stranger.connect(&url).await.unwrap_err();
    let jetstream = async_nats::jetstream::new(client.clone());
    let picture = first_picture(true).unwrap().bytes.clone();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", TaskId::new_random().to_string().as_str());
    let stored = jetstream.publish_with_headers(text("subject"), headers, picture.clone()).await.unwrap();
    stored.await.unwrap();
    // Of another camera, and of anything else, nothing is taken.
    for subject in ["image.site-1.gate-2", "outcome.site-1.gate-1.x", "$JS.API.STREAM.PURGE.IMAGES"] {
        let asked = client.request(subject, picture.clone());
        let answered = tokio::time::timeout(Duration::from_millis(500), asked).await;
        assert!(answered.is_err() || answered.unwrap().is_err(), "{subject}");
    }
    let answered = until("the camera's image is answered", PATIENCE, async || {
        let answers = says(at, &["answers", "--json", "--store", "store"]).await;
        Ok(answers.contains("\"gate-1\"").then_some(answers))
    });
    answered.await.unwrap();
    assert!(says(at, &["audit", "--store", "store"]).await.contains("camera add"));
    // Taken away, it is cut off.
    says(at, &["camera", "remove", "gate-1", "--store", "store"]).await;
    until("the camera is cut off", PATIENCE, async || Ok(camera().connect(&url).await.is_err().then_some(())))
        .await
        .unwrap();
    // Metrics: encrypted, and for whoever has the token; probes for everybody.
    let ask = async |url: &str, header: &str| {
        const ASKING: &str = "import ssl, sys, urllib.request, urllib.error\n\
            request = urllib.request.Request(sys.argv[2], headers={'Authorization': sys.argv[3]} if sys.argv[3] else {})\n\
            try: print(urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=sys.argv[1])).read().decode())\n\
            except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n\
            except Exception as error: print('no answer', error)\n";
        let mut python = tokio::process::Command::new("python3");
        let output = python.args(["-c", ASKING]).arg(&made.authority).args([url, header]).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let url = |path: &str| format!("https://127.0.0.1:{metrics}{path}");
    assert!(ask(&url("/readyz"), "").await.contains("running"));
    for header in ["", "Bearer another", "a-token"] {
        let refused = ask(&url("/metrics"), header).await;
        assert!(refused.starts_with("401") && refused.contains("metrics.token_file"), "{header}: {refused}");
    }
    let told = ask(&url("/metrics"), "Bearer a-token").await;
    assert!(told.contains("tributary_expiry_timestamp_seconds{name=\"certificate for clients\"}"), "{told}");
    assert!(ask(&url("/livez").replace("https", "http"), "").await.starts_with("no answer"));
}
