//! A fleet as its operator makes it: a hub, a site that joins with one file over an encrypted link, and one that is revoked.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::bare_server::free_ports;
use harness::pictures::{HEAVY, LIGHT, first_picture};
use harness::program::fixture;
use harness::{WorkerProcess, run, until};
use runtime::site_key::SiteKey;
use runtime::trust;
use schemas::{ModelName, Order, ReleaseId, Role, Root, Route, SiteName, encode};
use serde_json::Value;
use streams::fleet::Ledger;
use streams::permissions::ROOT_KEY;
use streams::{Bus, NatsSettings, Publication, Publisher, reader, subject};

use crate::common::{PATIENCE, link_is_down, outcome, publish};

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
async fn running(folder: &Path, store: &str, worker: &mut WorkerProcess) -> Value {
    let found = until("it is up", PATIENCE, async || {
        let text = std::fs::read(folder.join(store).join("up.json")).ok();
        Ok(text.and_then(|text| serde_json::from_slice::<Value>(&text).ok()))
    });
    match found.await {
        Ok(found) => found,
        Err(error) => panic!("{error:#}; ended: {:?}\n{}", worker.ended(), worker.log()),
    }
}

/// Everything secret that the fleet and its sites were given: seeds, keys and passwords.
fn secrets(folder: &Path) -> Vec<String> {
    let mut secrets = Vec::new();
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    for role in ["verifier", "aggregator", "releaser", "operator", "system"] {
        secrets.push(read(&format!("tributary-fleet/hub/{role}.nk")).trim().to_owned());
    }
    for key in ["root.key", "hub/releaser.sign", "hub/aggregator.sign"] {
        secrets.push(read(&format!("tributary-fleet/{key}")).trim().to_owned());
    }
    for key in ["ca.key", "hub/hub.key"] {
        secrets.push(read(&format!("tributary-fleet/{key}")).lines().nth(1).unwrap().to_owned());
    }
    for site in ["reef", "farm"] {
        let file: Value = serde_json::from_str(&read(&format!("{site}.site"))).unwrap();
        secrets.extend(["leaf_seed", "update_key"].map(|key| file[key].as_str().unwrap().to_owned()));
        let running: Value = serde_json::from_str(&read(&format!("{site}/up.json"))).unwrap();
        secrets.push(running["sites"][0]["link_password"].as_str().unwrap().to_owned());
    }
    secrets
}

async fn joined(folder: &Path, site: &str) -> bool {
    let listed: Value = serde_json::from_str(&says(folder, &["site", "list", "--json"]).await).unwrap();
    let listed = listed.as_array().unwrap();
    listed.iter().any(|known| known["site"] == site && known["joined"] == true)
}

/// What a site noted to run of a model.
async fn noted(bus: &Bus, model: &ModelName) -> anyhow::Result<Option<Order>> {
    Ok(Ledger::open(bus).await?.read_message::<Order>(&subject::order_note(model)).await?)
}

/// Publishes something as a site's order, whatever it says of itself.
async fn order_as_is(publisher: &Publisher, site: &str, order: &Order) {
    let subject = subject::order(&site.parse().unwrap(), &order.model);
    let payload = encode(order).unwrap().into();
    let publication = Publication { subject, payload, headers: Vec::new(), first_only: false };
    publisher.publish(&publication).await.unwrap();
}

/// Waits until a site has so many dead letters of a fault.
async fn refuses_by(bus: &Bus, fault: &str, times: usize) {
    let what = format!("{times} dead letters {fault}");
    // What the hub sends as it reads its accounts anew comes after the wait for an acknowledgement.
    let found = until(&what, 2 * PATIENCE, async || {
        let letters = operations::dead_letters::read_dead_letters(bus).await?;
        let names: Vec<&str> = letters.iter().map(|(_, letter)| letter.fault.kind.as_str()).collect();
        anyhow::ensure!(names.iter().filter(|name| **name == fault).count() >= times, "{names:?}");
        Ok(Some(()))
    });
    found.await.unwrap();
}

/// The light model once more, as another release.
fn another_release(folder: &Path) -> (String, ReleaseId) {
    let into = folder.join("light-again");
    std::fs::create_dir_all(&into).unwrap();
    for file in ["model.toml", "graph.onnx", "labels.txt"] {
        let mut bytes = std::fs::read(fixture(LIGHT).join(file)).unwrap();
        if file == "model.toml" {
            bytes.extend(b"\n# once more\n");
        }
        std::fs::write(into.join(file), bytes).unwrap();
    }
    (into.display().to_string(), vision::Model::load(&into).unwrap().release)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_joins_with_one_file_is_verified_over_an_encrypted_link_and_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let [leaf, client] = free_ports().unwrap().map(|port: u16| port.to_string());
    assert!(refuses(at, &["site", "add", "reef"]).await.contains("tributary fleet init"));
    says(at, &["fleet", "init", "--hub", "127.0.0.1", "--leaf-port", &leaf, "--client-port", &client]).await;
    assert!(refuses(at, &["fleet", "init", "--hub", "127.0.0.1"]).await.contains("already holds a fleet"));
    let (light, heavy) = (fixture(LIGHT).display().to_string(), fixture(HEAVY).display().to_string());
    // Before the hub runs, and while it does.
    assert!(says(at, &["site", "add", "farm"]).await.contains("does not answer"));
    let store = format!("aggregator.store={}", at.join("releases").display());
    let hub_words = [
        "up",
        "--fleet",
        "tributary-fleet",
        "--cloud-model",
        &heavy,
        "--store",
        "hub",
        "--set",
        &store,
        "--set",
        "streams.ack_wait_s=5",
    ];
    // Rounds are run for the sites' model, so that the aggregator and the releaser have something to say.
    let merging =
        ["--model", &light, "--merge", "--set", "aggregator.merge.rule=fedavg", "--set", "releaser.judge_s=1"];
    let words = [&hub_words[..], &merging].concat();
    let mut hub = WorkerProcess::start("hub", at, &words, &[]).unwrap();
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
        sites.push(WorkerProcess::start(site, at, &words, &[]).unwrap());
    }
    let mut buses = Vec::new();
    for (site, worker) in ["reef", "farm"].into_iter().zip(&mut sites) {
        let url = running(at, site, worker).await["sites"][0]["url"].as_str().unwrap().to_owned();
        let bus = Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap();
        let name: SiteName = site.parse().unwrap();
        let task = publish(&bus, &name, &first_picture(false).unwrap().bytes, &[]).await;
        let answer = outcome(&bus, &name, task).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", worker.log(), hub.log()));
        assert_eq!(answer.route, Route::Verified, "{}\n{}", worker.log(), hub.log());
        buses.push((name, bus));
    }
    // What the hub orders is signed, and obeyed; what somebody else orders is not.
    let model = ModelName::from_name("fashion-light");
    let mut orders = Vec::new();
    for (worker, (name, bus)) in sites.iter().zip(&buses) {
        let ledger = Ledger::open(bus).await.unwrap();
        let order = until("an order", 3 * PATIENCE, async || {
            Ok(ledger.read_message::<Order>(&subject::order_note(&model)).await?)
        });
        let order = order.await.unwrap_or_else(|error| panic!("{error:#}\n{name}: {}\n{}", worker.log(), hub.log()));
        assert!(order.signature.is_some());
        orders.push(order);
    }
    let operator = NatsSettings {
        url: format!("tls://127.0.0.1:{client}"),
        ca: Some(at.join("tributary-fleet/ca.pem")),
        nkey: Some(at.join("tributary-fleet/hub/operator.nk")),
        inbox: Some("_INBOX_operator".into()),
        ..NatsSettings::default()
    };
    let operator = Bus::connect(&operator, "test").await.unwrap();
    let own = &orders[0];
    let unsigned = Order { number: own.number + 1, signature: None, ..own.clone() };
    let changed = Order { number: own.number + 1, ..own.clone() };
    let forged = SiteKey::create(&at.join("forged.key")).unwrap();
    let by_stranger = trust::sign(unsigned.clone(), &forged, runtime::clock::now_ms()).unwrap();
    let publisher = Publisher::new(operator, PATIENCE);
    let mut refused = Vec::new();
    for order in [unsigned, changed, by_stranger] {
        releases::decision_log::publish_order(&publisher, &order, false).await.unwrap();
        // The latest counts in the stream: each must be seen before the next takes its place.
        refused = until("a dead letter of each forged order", PATIENCE, async || {
            let letters = operations::dead_letters::read_dead_letters(&buses[0].1).await?;
            let mut names: Vec<String> = letters.into_iter().map(|(_, letter)| letter.fault.kind.to_string()).collect();
            names.sort();
            Ok((names.len() > refused.len()).then_some(names))
        })
        .await
        .unwrap();
    }
    assert_eq!(refused, ["order_by_stranger", "order_changed", "order_unsigned"]);
    let ledger = Ledger::open(&buses[0].1).await.unwrap();
    assert_eq!(ledger.read_message::<Order>(&subject::order_note(&model)).await.unwrap().as_ref(), Some(own));
    // A rollback is a new order that names an old release.
    let reef = buses[0].1.clone();
    let (folder_of_second, second) = another_release(at);
    let first = own.release.release.clone();
    says(at, &["release", "import", &folder_of_second, "--store", "hub", "--set", &store]).await;
    let mut pinned = Vec::new();
    for release in [&second, &first] {
        let pin = ["release", "pin", "reef", release.as_str(), "--name", "fashion-light", "--store", "hub"];
        says(at, &[&pin[..], &["--set", &store]].concat()).await;
        let order = until("reef runs what it is pinned to", 3 * PATIENCE, async || {
            let order = noted(&reef, &model).await?.filter(|order| order.release.release == *release);
            let beats = streams::fleet::live_workers(&reef).await?;
            let runs = beats.iter().any(|beat| beat.role == Role::Recognizer && beat.release.as_ref() == Some(release));
            Ok(order.filter(|_| runs))
        });
        pinned.push(order.await.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", sites[0].log(), hub.log())));
    }
    let [replayed, last] = &pinned[..] else { unreachable!() };
    assert!(last.number > replayed.number && replayed.number > own.number, "{pinned:?}");
    // A root that the offline key signed is followed, over the link.
    says(at, &["fleet", "root", "--never", second.as_str()]).await;
    until("the site follows the new root", PATIENCE, async || {
        let root = ledger.read(ROOT_KEY).await?.map(|text| serde_json::from_str::<Root>(&text)).transpose()?;
        Ok(root.is_some_and(|root| root.never.contains(&second)).then_some(()))
    })
    .await
    .unwrap();
    // Orders that the right key signed, and that are not obeyed all the same.
    let releaser = SiteKey::read(&at.join("tributary-fleet/hub/releaser.sign")).unwrap();
    let now_ms = runtime::clock::now_ms();
    let sign = |order: Order, at_ms: u64| trust::sign(Order { signature: None, ..order }, &releaser, at_ms).unwrap();
    let next = Order { number: last.number + 1, ..last.clone() };
    let over_ms = 31 * 24 * 3_600_000;
    let farms = Order { site: "farm".parse().unwrap(), ..next.clone() };
    let never = Order { release: replayed.release.clone(), ..next.clone() };
    for (fault, order) in [
        ("order_older", own.clone()),
        ("order_expired", sign(next.clone(), now_ms - over_ms)),
        ("note_far_ahead", sign(Order { number: last.number + 200_000, ..last.clone() }, now_ms)),
        ("note_far_ahead", sign(Order { number: u64::MAX, ..last.clone() }, now_ms)),
        ("note_misdirected", sign(farms, now_ms)),
        ("release_never", sign(never, now_ms)),
    ] {
        let before = operations::dead_letters::read_dead_letters(&reef).await.unwrap();
        let known = before.iter().filter(|(_, letter)| letter.fault.kind.as_str() == fault).count();
        order_as_is(&publisher, "reef", &order).await;
        refuses_by(&reef, fault, known + 1).await;
        assert_eq!(noted(&reef, &model).await.unwrap().as_ref(), Some(last), "{fault}");
    }
    // The highest number holds after the site was killed and started again.
    std::fs::remove_file(at.join("reef/up.json")).unwrap();
    sites[0].restart().unwrap();
    let url = running(at, "reef", &mut sites[0]).await["sites"][0]["url"].as_str().unwrap().to_owned();
    buses[0].1 = Bus::connect(&NatsSettings { url, ..NatsSettings::default() }, "test").await.unwrap();
    order_as_is(&publisher, "reef", own).await;
    refuses_by(&buses[0].1, "order_older", 2).await;
    assert_eq!(noted(&buses[0].1, &model).await.unwrap().as_ref(), Some(last));
    let again = sign(next, runtime::clock::now_ms());
    order_as_is(&publisher, "reef", &again).await;
    until("the next order is obeyed", 2 * PATIENCE, async || {
        Ok(noted(&buses[0].1, &model).await?.filter(|order| *order == again))
    })
    .await
    .unwrap();
    // The roles of the cloud did with their own keys what they had to; the server says where a right was missing.
    let log = std::fs::read_to_string(at.join("hub/cloud/nats-server.log")).unwrap();
    let denied: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    assert!(joined(at, "reef").await && joined(at, "farm").await);
    // No secret stands where people look, or where other users of the machine may.
    let secrets = secrets(at);
    assert!(secrets.len() > 12, "{}", secrets.len());
    let mut texts = vec![hub.log(), sites[0].log(), sites[1].log(), log];
    texts.push(std::fs::read_to_string(at.join("reef/reef/nats-server.log")).unwrap());
    for words in [
        &["status", "--store", "reef"][..],
        &["doctor", "--store", "reef"],
        &["config", "--show", "--store", "reef"],
        &["status", "--json", "--store", "reef"],
        &["release", "list", "--store", "hub"],
        &["site", "list"],
        &["fleet", "calendar", "--json"],
    ] {
        let ended = run(at, words).await.unwrap();
        texts.push(format!("{words:?}: {}{}", ended.out, ended.err));
    }
    for process in [hub.id(), sites[0].id(), sites[1].id()] {
        texts.push(std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap());
    }
    for text in &texts {
        let found = secrets.iter().find(|secret| text.contains(secret.as_str()));
        assert!(found.is_none(), "a secret stands in: {}", text.chars().take(400).collect::<String>());
    }
    // A new key, while the old one is still good; then only the new one.
    says(at, &["site", "rotate", "farm", "--out", "farm-2.site"]).await;
    assert!(joined(at, "farm").await);
    // Revoked: gone within a second, and it does not come back, while the other does.
    let began = Instant::now();
    says(at, &["site", "revoke", "reef"]).await;
    link_is_down(&buses[0].1, Duration::from_secs(5)).await.unwrap();
    println!("the revoked site noticed {} ms after the command began", began.elapsed().as_millis());
    until("the other site is back", PATIENCE, async || Ok(joined(at, "farm").await.then_some(()))).await.unwrap();
    let (reef, bus) = &buses[0];
    let task = publish(bus, reef, &first_picture(true).unwrap().bytes, &[]).await;
    assert_eq!(outcome(bus, reef, task).await.unwrap().route, Route::Edge, "the site itself goes on");
    let (farm, bus) = &buses[1];
    let task = publish(bus, farm, &first_picture(false).unwrap().bytes, &[]).await;
    let slot = subject::final_answer(farm, &"cam-1".parse().unwrap(), task);
    let verified =
        until("an answer of the cloud", 2 * PATIENCE, async || Ok(reader::read_outcome(bus, &slot).await?)).await;
    assert_eq!(verified.unwrap().route, Route::Verified);
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
