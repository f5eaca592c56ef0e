//! A fleet as its operator makes it: a hub, a site that joins with one file over an encrypted link, and one that is revoked.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::bare::free_ports;
use harness::pictures::{HEAVY, LIGHT, one};
use harness::program::fixture;
use harness::{Worker, run, until};
use schemas::{Route, SiteName};
use serde_json::Value;
use streams::{Bus, NatsSettings};

use crate::common::{PATIENCE, outcome, publish};

async fn says(folder: &Path, words: &[&str]) -> String {
    let ended = run(folder, words).await.unwrap();
    assert!(ended.success, "{words:?}: {}{}", ended.out, ended.err);
    ended.out + &ended.err
}

async fn refuses(folder: &Path, words: &[&str]) -> String {
    let ended = run(folder, words).await.unwrap();
    assert!(!ended.success, "{words:?}: {}", ended.out);
    ended.err
}

/// What a running `up` says of itself in a store.
async fn running(folder: &Path, store: &str, worker: &mut Worker) -> Value {
    let found = until("it is up", PATIENCE, async || {
        let text = std::fs::read(folder.join(store).join("up.json")).ok();
        Ok(text.and_then(|text| serde_json::from_slice::<Value>(&text).ok()))
    });
    match found.await {
        Ok(found) => found,
        Err(error) => panic!("{error:#}; ended: {:?}\n{}", worker.ended(), worker.log()),
    }
}

async fn joined(folder: &Path, site: &str) -> bool {
    let listed: Value = serde_json::from_str(&says(folder, &["site", "list", "--json"]).await).unwrap();
    let listed = listed.as_array().unwrap();
    listed.iter().any(|known| known["site"] == site && known["joined"] == true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_joins_with_one_file_is_verified_over_an_encrypted_link_and_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let [leaf, client] = free_ports().unwrap().map(|port: u16| port.to_string());
    assert!(refuses(at, &["site", "add", "reef"]).await.contains("tributary fleet init"));
    says(at, &["fleet", "init", "--hub", "127.0.0.1", "--leaf-port", &leaf, "--client-port", &client]).await;
    assert!(refuses(at, &["fleet", "init", "--hub", "127.0.0.1"]).await.contains("holds a fleet already"));
    let (light, heavy) = (fixture(LIGHT).display().to_string(), fixture(HEAVY).display().to_string());
    // Before the hub runs, and while it does.
    assert!(says(at, &["site", "add", "farm"]).await.contains("does not answer"));
    let store = format!("aggregator.store={}", at.join("releases").display());
    let words = ["up", "--fleet", "tributary-fleet", "--cloud-model", &heavy, "--store", "hub", "--set", &store];
    let mut hub = Worker::start("hub", at, &words, &[]).unwrap();
    running(at, "hub", &mut hub).await;
    says(at, &["site", "add", "reef"]).await;
    assert!(refuses(at, &["site", "add", "reef"]).await.contains("reef.site is there already"));
    // Nobody without a key is anybody, encrypted or not.
    for url in [format!("nats://127.0.0.1:{client}"), format!("tls://127.0.0.1:{client}")] {
        let ca = Some(at.join("tributary-fleet/ca.pem"));
        Bus::connect(&NatsSettings { url, ca, ..NatsSettings::default() }, "stranger").await.map(|_| ()).unwrap_err();
    }
    let mut sites = Vec::new();
    for site in ["reef", "farm"] {
        let file = format!("{site}.site");
        let words = ["join", &file, "--model", &light, "--store", site, "--set", "recognizer.infer.replicas=1"];
        sites.push(Worker::start(site, at, &words, &[]).unwrap());
    }
    let mut buses = Vec::new();
    for (site, worker) in ["reef", "farm"].into_iter().zip(&mut sites) {
        let url = running(at, site, worker).await["sites"][0]["url"].as_str().unwrap().to_owned();
        let bus = Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap();
        let name: SiteName = site.parse().unwrap();
        let task = publish(&bus, &name, &one(false).unwrap().bytes, &[]).await;
        let answer = outcome(&bus, &name, task).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", worker.log(), hub.log()));
        assert_eq!(answer.route, Route::Verified, "{}\n{}", worker.log(), hub.log());
        buses.push((name, bus));
    }
    // The roles of the cloud did with their own keys what they had to; the server says where a right was missing.
    let log = std::fs::read_to_string(at.join("hub/cloud/nats-server.log")).unwrap();
    let denied: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    assert!(joined(at, "reef").await && joined(at, "farm").await);
    // A new key, while the old one is still good; then only the new one.
    says(at, &["site", "rotate", "farm", "--out", "farm-2.site"]).await;
    assert!(joined(at, "farm").await);
    // Revoked: gone within a second, and it does not come back, while the other does.
    let began = Instant::now();
    says(at, &["site", "revoke", "reef"]).await;
    until("the link of the revoked site ends", Duration::from_secs(5), async || {
        Ok(sites[0].log().contains("the cloud does not answer").then_some(()))
    })
    .await
    .unwrap();
    println!("the revoked site noticed {} ms after the command began", began.elapsed().as_millis());
    until("the other site is back", PATIENCE, async || Ok(joined(at, "farm").await.then_some(()))).await.unwrap();
    let (reef, bus) = &buses[0];
    let task = publish(bus, reef, &one(true).unwrap().bytes, &[]).await;
    assert_eq!(outcome(bus, reef, task).await.unwrap().route, Route::Edge, "the site itself goes on");
    let (farm, bus) = &buses[1];
    let task = publish(bus, farm, &one(false).unwrap().bytes, &[]).await;
    assert_eq!(outcome(bus, farm, task).await.unwrap().route, Route::Verified);
    assert!(!says(at, &["site", "list"]).await.contains("reef"));
    // With another site's file a store stays what it is.
    assert!(
        refuses(at, &["join", "farm-2.site", "--model", &light, "--store", "reef"])
            .await
            .contains("store of site reef")
    );
    says(at, &["fleet", "renew"]).await;
    assert!(says(at, &["fleet", "calendar"]).await.contains("certificate authority"));
}
