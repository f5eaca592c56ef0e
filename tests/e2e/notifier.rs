//! What is wrong at a site is told in words, by `status`, `doctor` and a metric: what lies outside of our streams.

use std::path::Path;
use std::time::Duration;

use harness::bare_server::{BareServer, free_ports};
use harness::pictures::{first_picture, nth_picture};
use harness::program::run;
use harness::shifted::shifted_clock;
use harness::{CommandOutput, TestWorld, WorkerProcess, WorldPlan, until};
use schemas::Route;
use schemas::task::HEADER_DEADLINE;
use serde_json::Value;
use streams::topology;
use streams::{fleet, reader};

use crate::common::{PATIENCE, answered, publish};

async fn run_notifier_command(folder: &Path, words: &[&str]) -> CommandOutput {
    run(folder, words).await.unwrap()
}

/// Runs a command again and again until it says a text.
async fn until_said(folder: &Path, words: &[&str], text: &str) -> String {
    let mut last = String::new();
    let said = until(text, PATIENCE, async || {
        let said = run_notifier_command(folder, words).await;
        last = said.out + &said.err;
        Ok(last.contains(text).then_some(()))
    });
    said.await.unwrap_or_else(|error| panic!("{error:#}: {last}"));
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_whose_clock_is_wrong_answers_in_time_and_says_so() {
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    let site = world.site(0).name.clone();
    for (shift_s, said) in
        [(25 * 3600, "is 1.0 days ahead of its server's"), (-2 * 3600, "is 2.0 h behind its server's")]
    {
        world.workers.clear();
        world.environment = shifted_clock(world.folder(), shift_s).unwrap();
        world.start_workers().await.unwrap();
        // By the worker's own clock the deadline of a doubtful image is long over, or hours away.
        for number in 0..4 {
            let picture = nth_picture(false, number).unwrap();
            let task = publish(world.bus(0), &site, &picture.bytes, &[(HEADER_DEADLINE, "20000")]).await;
            let answer = answered(&world, task).await;
            assert_eq!(answer.route, Route::Verified, "{shift_s} s: {answer:?}");
        }
        // One that cannot be had in time is answered at its deadline.
        world.worker_mut("verifier-0").unwrap().signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
        let began = tokio::time::Instant::now();
        let task =
            publish(world.bus(0), &site, &first_picture(false).unwrap().bytes, &[(HEADER_DEADLINE, "3000")]).await;
        let answer = answered(&world, task).await;
        assert_eq!(answer.route, Route::Expired, "{shift_s} s: {answer:?}");
        assert!(began.elapsed() > Duration::from_secs(2), "{shift_s} s: given up after {:?}", began.elapsed());
        world.worker_mut("verifier-0").unwrap().signal(nix::sys::signal::Signal::SIGCONT).unwrap();
        let (folder, at) = (world.folder().to_owned(), world.at(0));
        let status: Vec<&str> = ["status"].into_iter().chain(at.iter().map(String::as_str)).collect();
        until_said(&folder, &status, said).await;
        // Times of workers are the server's as well.
        let status: Vec<&str> = status.into_iter().chain(["--json"]).collect();
        let status: Value = serde_json::from_str(&run_notifier_command(&folder, &status).await.out).unwrap();
        let recognizer = status["workers"].as_array().unwrap().iter().find(|worker| worker["role"] == "recognizer");
        let since_ms = recognizer.unwrap()["release_since_ms"].as_i64().unwrap();
        let for_ms = status["at_ms"].as_i64().unwrap() - since_ms;
        assert!((0..300_000).contains(&for_ms), "{shift_s} s: a recognizer serves its release for {for_ms} ms");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_gone_from_the_middle_of_the_stream_are_told() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let (site, bus) = (world.site(0).name.clone(), world.bus(0).clone());
    for number in 0..5 {
        publish(&bus, &site, &nth_picture(true, number).unwrap().bytes, &[]).await;
    }
    world.janitor("janitor", 0).unwrap();
    reader::delete_message(&bus, topology::IMAGES, 3).await.unwrap();
    let counted = until("the gap is counted", PATIENCE, async || {
        let beats = fleet::live_workers(&bus).await?;
        Ok(beats.into_iter().find_map(|beat| beat.outcomes).filter(|outcomes| outcomes.gaps == 1))
    });
    counted.await.unwrap();
    let at = world.at(0);
    let words: Vec<&str> = ["status"].into_iter().chain(at.iter().map(String::as_str)).collect();
    let status = run_notifier_command(world.folder(), &words).await;
    assert!(status.out.contains("1 image is missing from the middle of IMAGES"), "{}{}", status.out, status.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_refuses_the_site_is_told_from_one_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let [leaf] = free_ports().unwrap();
    let hub =
        format!("leafnodes {{ listen: \"127.0.0.1:{leaf}\", authorization {{ user: site, password: rotated }} }}");
    let hub = BareServer::start(folder.path(), "hub", Some("cloud"), &hub).await.unwrap();
    let remote = format!("leafnodes {{ remotes: [ {{ url: \"nats-leaf://site:what-it-was@127.0.0.1:{leaf}\" }} ] }}");
    let site = BareServer::start(folder.path(), "site", Some("site-1"), &remote).await.unwrap();
    let setup = run_notifier_command(folder.path(), &["setup", "--nats", &site.url]).await;
    assert!(setup.success, "{}{}", setup.out, setup.err);
    let monitor = format!("janitor.monitor={}", site.monitor_url);
    let options = ["--nats", &site.url, "--set", "nats.cloud_domain=cloud", "--set", &monitor];
    let with = |words: &[&'static str]| -> Vec<&str> { words.iter().copied().chain(options).collect() };
    let refused = format!("hub at 127.0.0.1:{leaf} is reachable but the leaf link is not up");
    let said = until_said(folder.path(), &with(&["status"]), &refused).await;
    assert!(!said.contains("what-it-was"), "{said}");
    let doctor = run_notifier_command(folder.path(), &with(&["doctor"])).await;
    assert!(!doctor.success && doctor.out.contains("link refused"), "{}", doctor.out);

    let [metrics] = free_ports().unwrap();
    let listen = format!("metrics.listen=127.0.0.1:{metrics}");
    let arguments: Vec<&str> = with(&["janitor"]).into_iter().chain(["--set", &listen]).collect();
    let _janitor = WorkerProcess::start("janitor", folder.path(), &arguments, &[]).unwrap();
    let told = async |fault: &str| {
        until(fault, PATIENCE, async || {
            let (_, page) = crate::deploy::get(&format!("127.0.0.1:{metrics}"), "/metrics").await?;
            let line = page.lines().find(|line| line.starts_with("tributary_fault{") && line.contains(fault));
            Ok(line.map(str::to_owned))
        })
        .await
        .unwrap()
    };
    told("fault=\"link_refused\"").await;
    drop(hub);
    until_said(folder.path(), &with(&["status"]), &format!("hub at 127.0.0.1:{leaf} is unreachable")).await;
    let doctor = run_notifier_command(folder.path(), &with(&["doctor"])).await;
    assert!(!doctor.success && doctor.out.contains("link down"), "{}", doctor.out);
    told("fault=\"link_down\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_room_for_consumers_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let account = "accounts { A { users: [ { user: a, password: p } ], jetstream { max_consumers: 20 } } }\n\
                   no_auth_user: a";
    let server = BareServer::start(folder.path(), "site", None, account).await.unwrap();
    let setup = run_notifier_command(folder.path(), &["setup", "--both", "--nats", &server.url]).await;
    assert!(setup.success, "{}{}", setup.out, setup.err);
    let said =
        until_said(folder.path(), &["status", "--nats", &server.url], "account allows 20 consumers per stream").await;
    assert!(said.to_lowercase().contains("raise max_consumers"), "{said}");
    let doctor = run_notifier_command(folder.path(), &["doctor", "--nats", &server.url]).await;
    assert!(!doctor.success && doctor.out.contains("account limit"), "{}", doctor.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_only_replica_is_away_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let ports: [u16; 3] = free_ports().unwrap();
    let routes: Vec<String> = ports.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
    let mut nodes = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        let cluster = format!(
            "cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
            routes.iter().map(|route| format!("\"{route}\"")).collect::<Vec<_>>().join(", ")
        );
        nodes.push(Some(BareServer::start(folder.path(), &format!("node-{number}"), None, &cluster).await.unwrap()));
    }
    let urls: Vec<String> = nodes.iter().flatten().map(|node| node.url.clone()).collect();
    until("the cluster has its streams", PATIENCE, async || {
        let setup = run_notifier_command(folder.path(), &["setup", "--both", "--nats", &urls[0]]).await;
        Ok(setup.success.then_some(()))
    })
    .await
    .unwrap();
    let client = async_nats::connect(&urls[0]).await.unwrap();
    let leader = async |stream: &str| {
        let stream = async_nats::jetstream::new(client.clone()).get_stream(stream).await.unwrap();
        stream.cached_info().cluster.clone().and_then(|cluster| cluster.leader).unwrap()
    };
    // A server that holds one of the streams and is asked for nothing else, and another that is asked.
    let dead = leader(topology::DEAD).await;
    let away: usize = dead.trim_start_matches("node-").parse().unwrap();
    let asked = &urls[(away + 1) % 3];
    nodes[away] = None;
    let said = until_said(folder.path(), &["status", "--nats", asked], "Stream DEAD does not respond").await;
    assert!(said.contains("its only replica may be on a server that is down"), "{said}");
    let doctor = run_notifier_command(folder.path(), &["doctor", "--nats", asked]).await;
    assert!(!doctor.success && doctor.out.contains("stream silent"), "{}{}", doctor.out, doctor.err);
}
