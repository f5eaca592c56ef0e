//! What nobody does for another: who may write to a subject is who speaks there, whatever the message says; and what a site
//! and the cloud reach of each other over the link.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_nats::{ConnectOptions, StatusCode};
use futures::StreamExt;
use harness::pictures::first_picture;
use harness::world::{TestSite, serve, set_up};
use harness::{TestWorld, WorldPlan, run, until};
use schemas::{DeadLetter, Route, VerifyReason, decode};
use streams::permissions::{CLOUD_DOMAIN, SubjectPermissions, belongs_to, inbox_prefix};
use streams::reader::{self, StreamRange};
use streams::server::{ClientListener, Durability, LINK_USER, LeafMode, ServerSettings};
use streams::topology::{PlanScope, StreamSettings};
use streams::{Bus, NatsSettings, Publication, Publisher, subject, topology};

use crate::common::{PATIENCE, answered, publish};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_speaks_for_another_site_is_a_dead_letter() {
    let mut world = TestWorld::start(WorldPlan::leaves(2)).await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    let site = world.site(0).name.clone();
    let task = publish(world.bus(0), &site, &first_picture(false).unwrap().bytes, &[]).await;
    let asked = until("a request of the site", PATIENCE, async || {
        Ok(reader::last_message(&world.cloud, topology::VERIFY, &subject::verifications(&site)).await?)
    });
    let asked = asked.await.unwrap();
    // The same again, by a site that may write to its own subjects alone.
    let stranger = world.site(1).name.clone();
    let link = world.site(1).over_link().await.unwrap();
    let to = |site| subject::verify(VerifyReason::Doubtful, site, &"cam-1".parse().unwrap());
    let forged = Publication::with_id(to(&stranger), asked.payload.to_vec(), "forged");
    Publisher::new(link.clone(), PATIENCE).publish(&forged).await.unwrap();
    let refused = Publication::with_id(to(&site), asked.payload.to_vec(), "forged again");
    Publisher::new(link, Duration::from_secs(1)).publish(&refused).await.unwrap_err();
    world.verifier("verifier").unwrap();
    assert_eq!(answered(&world, task).await.route, Route::Verified);
    let mut letters: Vec<DeadLetter> = Vec::new();
    let buried = until("a dead letter", PATIENCE, async || {
        let level = reader::stream_level(&world.cloud, topology::DEAD).await?;
        letters.clear();
        let all =
            reader::read_range(&world.cloud, topology::DEAD, StreamRange::default(), level.last_sequence, |record| {
                letters.extend(decode::<DeadLetter>(&record.payload));
            });
        all.await?;
        Ok((!letters.is_empty()).then_some(()))
    });
    buried.await.unwrap();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.fault.kind.as_str(), &letter.site), ("verify_misdirected", &stranger));
    for (stream, of_it) in [(topology::VERDICTS, "verdict"), (topology::HARDCASES, "hard case")] {
        let level = reader::stream_level(&world.cloud, stream).await.unwrap();
        assert_eq!(level.last_sequence, 1, "one {of_it}: the site's own");
    }
}

/// Every question to JetStream, but for those whose streams or consumers come behind it.
const OF_STREAMS: [&str; 10] = [
    "STREAM.INFO",
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.SNAPSHOT",
    "STREAM.MSG.GET",
    "STREAM.MSG.DELETE",
    "DIRECT.GET",
    "CONSUMER.NAMES",
];
const OF_CONSUMERS: [&str; 6] = [
    "CONSUMER.INFO",
    "CONSUMER.CREATE",
    "CONSUMER.DURABLE.CREATE",
    "CONSUMER.DELETE",
    "CONSUMER.MSG.NEXT",
    "CONSUMER.PAUSE",
];

/// Every stream and bucket of these places.
fn stream_names(places: &[PlanScope]) -> BTreeSet<String> {
    let plans = places.iter().map(|place| topology::plan_topology(place, &StreamSettings::default()));
    plans.flat_map(|plan| plan.stream_names().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Whoever has taken over what a site has: its server's user at the near end of the link.
async fn link_of(site: &TestSite) -> async_nats::Client {
    let password = site.server.link_password().unwrap().to_owned();
    let options = ConnectOptions::new().user_and_password(LINK_USER.into(), password);
    options.custom_inbox_prefix(inbox_prefix(&site.name)).connect(site.server.url()).await.unwrap()
}

/// Asks everything at once, and returns what was answered, by subject; that nobody is there is no answer.
async fn answers(client: &async_nats::Client, prefix: &str, subjects: &[String]) -> BTreeMap<String, String> {
    let mut inbox = client.subscribe(format!("{prefix}.asked.*")).await.unwrap();
    for (number, subject) in subjects.iter().enumerate() {
        let reply = format!("{prefix}.asked.{number}");
        client.publish_with_reply(subject.clone(), reply, "{\"seq\":1}".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let mut answered = BTreeMap::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(2), inbox.next()).await {
        let number: usize = message.subject.rsplit('.').next().unwrap().parse().unwrap();
        if message.status != Some(StatusCode::NO_RESPONDERS) {
            answered.insert(subjects[number].clone(), String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    answered
}

/// How full each stream of a place is, by name, without what changes by itself.
async fn levels(client: &async_nats::Client) -> BTreeMap<String, (u64, u64)> {
    let mut streams = async_nats::jetstream::new(client.clone()).streams();
    let mut levels = BTreeMap::new();
    while let Some(stream) = streams.next().await {
        let stream = stream.unwrap();
        if !stream.config.name.starts_with("KV_") {
            levels.insert(stream.config.name, (stream.state.messages, stream.state.last_sequence));
        }
    }
    levels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_reaches_what_is_its_own_in_the_cloud_and_nothing_else() {
    let world = TestWorld::start(WorldPlan::leaves(2)).await.unwrap();
    let (victim, hostile) = (world.site(0), world.site(1));
    let hub = async_nats::connect(world.cloud_url()).await.unwrap();
    let own = publish(&victim.bus, &victim.name, &first_picture(true).unwrap().bytes, &[]).await;
    let rights = SubjectPermissions::of_site_in_cloud(&hostile.name, CLOUD_DOMAIN);
    let may = |subject: &str| rights.publish.iter().any(|pattern| belongs_to(pattern, subject));
    let places =
        [PlanScope::Site(victim.name.clone()), PlanScope::Cloud(vec![victim.name.clone(), hostile.name.clone()])];
    let streams = stream_names(&places);
    let domains = ["$JS.API".to_owned(), format!("$JS.{CLOUD_DOMAIN}.API"), format!("$JS.{}.API", victim.name)];
    let durables =
        |site| [topology::recognizer_durable(site), topology::verdicts_durable(site), topology::orders_durable(site)];
    let durables: Vec<String> = durables(&victim.name).into_iter().chain([topology::VERIFIER.into()]).collect();
    let mut asked = Vec::new();
    for domain in &domains {
        asked.extend(["INFO", "STREAM.NAMES", "STREAM.LIST"].map(|verb| format!("{domain}.{verb}")));
        for stream in &streams {
            asked.extend(OF_STREAMS.map(|verb| format!("{domain}.{verb}.{stream}")));
            for durable in &durables {
                asked.extend(OF_CONSUMERS.map(|verb| format!("{domain}.{verb}.{stream}.{durable}")));
            }
        }
        asked.extend(["policy", "site-mark-site-1", "scale-verifier"].map(|key| format!("{domain}.$KV.ledger.{key}")));
    }
    let said = [
        "image.site-1.cam-1",
        "answer.final.site-1.cam-1.x",
        "outcome.site-1.cam-1.x",
        "outbox.site-1.verify",
        "label.site-1.cam-1",
        "verify.doubtful.site-1.cam-1",
        "verdict.site-1.cam-1",
        "verdict.site-2.cam-1",
        "hardcase.site-1",
        "update.m.1.site-1",
        "round.m.1.opened",
        "release.m.1",
        "order.site-1.m",
        "order.site-2.m",
        "swap.site-1.w.1",
        "swap.cloud.w.1",
        "dead.verify.site-2.x",
        "$KV.ledger.policy",
        "$KV.fleet.verifier.x",
        "$O.cloud-blobs.M.x",
        "$O.cloud-blobs-site-1.M.x",
        "$JS.ACK.VERIFY.verifier.1.1.1.1.1",
        "$JS.ACK.VERDICTS.courier-site-1.1.1.1.1.1",
        "$JS.ACK.IMAGES.recognizer-site-1.1.1.1.1.1",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.VERIFY.verifier",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
    ];
    asked.extend(said.map(str::to_owned));
    let forbidden: Vec<String> = asked.iter().filter(|subject| !may(subject)).cloned().collect();
    let allowed: Vec<String> = asked.into_iter().filter(|subject| may(subject)).collect();
    assert!(forbidden.len() > 1000 && allowed.len() > 3, "{} {}", forbidden.len(), allowed.len());
    let link = link_of(hostile).await;
    let before = (levels(&hub).await, levels(&async_nats::connect(victim.server.url()).await.unwrap()).await);
    let prefix = inbox_prefix(&hostile.name);
    // Something that is its own is answered: the others could be.
    let mine = format!("$JS.{CLOUD_DOMAIN}.API.CONSUMER.INFO.{}.{}", topology::VERIFY, topology::VERIFIER);
    assert!(answers(&link, &prefix, std::slice::from_ref(&mine)).await.contains_key(&mine));
    let mut answered = answers(&link, &prefix, &forbidden).await;
    // That is the hostile site's own server: it knows nothing of the cloud.
    answered.retain(|subject, answer| {
        let own = answer.contains("\"error\":");
        let of_own_server = own && subject.starts_with("$JS.API.") || answer.contains("\"name\":\"site-2\"");
        !of_own_server
    });
    assert!(answered.is_empty(), "{:?}", answered.keys());
    // And as a client of the hub it is nobody.
    let hub_itself = world.hub.as_ref().unwrap();
    let leaf = hub_itself.leaf_url(&hostile.name, hub_itself.leaf_port()).unwrap();
    let (_, login) = leaf.rsplit_once('/').unwrap();
    let (user, password) = login.split_once('@').unwrap().0.split_once(':').unwrap();
    let options = ConnectOptions::new().user_and_password(user.into(), password.into());
    options.connect(hub_itself.url()).await.unwrap_err();
    let after = (levels(&hub).await, levels(&async_nats::connect(victim.server.url()).await.unwrap()).await);
    assert_eq!(before, after);
    assert!(
        reader::read_outcome(&victim.bus, &subject::final_answer(&victim.name, &"cam-1".parse().unwrap(), own))
            .await
            .unwrap()
            .is_none()
    );
    // Where the server's acknowledgement goes is its publisher's choice: it reaches nothing of the cloud's.
    let model_subjects = ["order.site-1.m", "release.m.2", "round.m.99.opened", "audit.cloud", "verdict.site-1.cam-1"];
    let notes = ["$KV.ledger.fleet-root", "$KV.fleet.verifier.x", "$JS.API.STREAM.PURGE.RELEASES", "swap.cloud.w.1"];
    let elsewhere = [&model_subjects[..], &notes[..]].concat();
    let cloud = async_nats::jetstream::new(hub.clone());
    let ledger = async || cloud.get_stream("KV_ledger").await.unwrap().get_info().await.unwrap().state.last_sequence;
    let (stored, noted) = (levels(&hub).await, ledger().await);
    for target in &elsewhere {
        link.publish_with_reply("verify.doubtful.site-2.cam-1", *target, "a request".into()).await.unwrap();
    }
    let all_stored = until("the requests are stored", PATIENCE, async || {
        let now = levels(&hub).await;
        Ok((now[topology::VERIFY].1 >= stored[topology::VERIFY].1 + elsewhere.len() as u64).then_some(now))
    });
    let mut now = all_stored.await.unwrap();
    now.insert(topology::VERIFY.into(), stored[topology::VERIFY]);
    assert_eq!((now, ledger().await), (stored, noted));
    // What others are told, it does not hear: nothing but answers to its own questions.
    let mut all = link.subscribe(">").await.unwrap();
    link.flush().await.unwrap();
    for subject in ["verdict.site-1.cam-1", "order.site-1.m", "_INBOX_site-1.x", "_INBOX.x", "release.m.1"] {
        hub.publish(subject, "secret".into()).await.unwrap();
    }
    hub.publish(format!("{prefix}.forged"), "nobody asked".into()).await.unwrap();
    hub.flush().await.unwrap();
    for question in ["first", "last"] {
        link.publish_with_reply(mine.clone(), format!("{prefix}.{question}"), "".into()).await.unwrap();
        loop {
            let heard = tokio::time::timeout(PATIENCE, all.next()).await.unwrap().unwrap();
            // What it says itself passes there, too.
            if heard.subject.as_str() == mine {
                continue;
            }
            assert_eq!(heard.subject.as_str(), format!("{prefix}.{question}"));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_reaches_nothing_of_a_site() {
    let mut world = TestWorld::start(WorldPlan::leaves(1)).await.unwrap();
    let hub = async_nats::connect(world.cloud_url()).await.unwrap();
    let mut all = hub.subscribe(">").await.unwrap();
    world.recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.verifier("verifier").unwrap();
    let site = world.site(0).name.clone();
    for doubtful in [false, true] {
        let task = publish(world.bus(0), &site, &first_picture(!doubtful).unwrap().bytes, &[]).await;
        answered(&world, task).await;
    }
    let here = async_nats::connect(world.site(0).server.url()).await.unwrap();
    // What waits for nobody any more, so that what changes is another's doing.
    world.workers.clear();
    let durable = topology::recognizer_durable(&site);
    let mut asked = Vec::new();
    for stream in stream_names(&[PlanScope::Site(site.clone())]) {
        asked.extend(OF_STREAMS.map(|verb| format!("$JS.{site}.API.{verb}.{stream}")));
        asked.extend(OF_CONSUMERS.map(|verb| format!("$JS.{site}.API.{verb}.{stream}.{durable}")));
    }
    asked.extend([
        format!("$JS.{site}.API.INFO"),
        format!("$JS.{site}.API.$KV.ledger.policy"),
        "$KV.ledger.policy".into(),
        format!("$JS.ACK.IMAGES.{durable}.1.1.1.1.1"),
        format!("image.{site}.cam-1"),
        format!("outcome.{site}.cam-1.x"),
        format!("outbox.{site}.verify"),
        format!("label.{site}.cam-1"),
        "$O.blobs.M.x".into(),
        "$MQTT.msgs.x".into(),
    ]);
    // The cloud's own streams take what a site is told, and the cloud's ledger is its own.
    let before = levels(&here).await;
    let replied = answers(&hub, "_INBOX.hub", &asked).await;
    let replied: Vec<_> = replied.keys().filter(|subject| *subject != "$KV.ledger.policy").collect();
    assert!(replied.is_empty(), "{replied:?}");
    assert_eq!(before, levels(&here).await);
    // Of everything a site did, what crossed is what it may say in the cloud.
    let rights = SubjectPermissions::of_site_in_cloud(&site, CLOUD_DOMAIN);
    let mut crossed = 0;
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(500), all.next()).await {
        let subject = message.subject.as_str();
        assert!(
            !subject.starts_with("image.") && !subject.starts_with("answer.") || asked.iter().any(|own| own == subject),
            "{subject}"
        );
        crossed += usize::from(rights.publish.iter().any(|right| belongs_to(right, subject)));
    }
    assert!(crossed > 0, "nothing crossed the link at all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_with_a_key_is_not_found_on_the_disk_and_is_there_again_with_it() {
    const SECRET: &[u8] = b"a picture that nobody else may see, 0123456789";
    fn holds(folder: &Path) -> bool {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
            true => holds(&path),
            false => std::fs::read(&path).is_ok_and(|bytes| memchr::memmem::find(&bytes, SECRET).is_some()),
        })
    }
    let folder = tempfile::tempdir().unwrap();
    let mut settings_of_last = None;
    for encrypted in [false, true] {
        let store = folder.path().join(format!("store-{encrypted}"));
        let key = folder.path().join("store.key");
        let settings = ServerSettings {
            program: None,
            store: store.clone(),
            name: "site".into(),
            domain: None,
            port: 0,
            mqtt: None,
            mappings: Vec::new(),
            durability: Durability::PowerSafe,
            encryption_key: encrypted.then(|| key.clone()),
            max_store_bytes: topology::default_store_bytes(),
            leaf: LeafMode::Alone,
            site: None,
            entry: ClientListener::default(),
        };
        let server = serve(settings.clone()).await.unwrap();
        let plan = PlanScope::Both("site-1".parse().unwrap());
        let bus = set_up(&server, &plan, &StreamSettings::default()).await.unwrap();
        publish(&bus, &"site-1".parse().unwrap(), SECRET, &[]).await;
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
        assert_eq!(holds(&store), !encrypted, "encrypted: {encrypted}");
        settings_of_last = Some(settings.clone());
        let server = serve(settings).await.unwrap();
        let again = Bus::connect(&NatsSettings { url: server.url(), ..NatsSettings::default() }, "test").await.unwrap();
        assert_eq!(reader::message_at(&again, topology::IMAGES, 1).await.unwrap().unwrap().payload, SECRET);
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }
    // Without its key a store is not begun anew, and not touched.
    let without = ServerSettings {
        store: folder.path().join("store-true"),
        encryption_key: None,
        ..settings_of_last.expect("the loop ran")
    };
    let refused = serve(without).await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("up.encryption_key"), "{refused}");
    // A store in the clear is not mistaken for one with a key.
    let store = folder.path().join("store-false");
    let other = folder.path().join("other.key");
    let settings = ServerSettings {
        program: None,
        store,
        name: "site".into(),
        domain: None,
        port: 0,
        mqtt: None,
        mappings: Vec::new(),
        durability: Durability::PowerSafe,
        encryption_key: Some(other.clone()),
        max_store_bytes: topology::default_store_bytes(),
        leaf: LeafMode::Alone,
        site: None,
        entry: ClientListener::default(),
    };
    let refused = serve(settings).await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("unencrypted") && !other.exists(), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_by_hand_is_written_down_and_cannot_be_taken_out() {
    let world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let said = async |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).chain(world.at(0)).collect();
        let ended = run(world.folder(), &words).await.unwrap();
        assert!(ended.success, "{words:?}: {}{}", ended.out, ended.err);
        ended.out
    };
    assert!(said(&["audit"]).await.contains("Nothing was done by hand"));
    said(&["policy", "edge-only"]).await;
    said(&["policy", "--clear"]).await;
    // Nobody is there to follow, which it says; it holds all the same.
    let words: Vec<String> =
        ["scale", "verifier", "2"].iter().map(|word| (*word).to_owned()).chain(world.at(0)).collect();
    run(world.folder(), &words).await.unwrap();
    let site = said(&["audit"]).await;
    assert!(site.contains("policy set") && site.contains("edge-only") && site.contains("policy clear"), "{site}");
    assert!(said(&["audit", "--cloud"]).await.contains("verifier: 2"));
    assert!(said(&["audit", "--verify"]).await.starts_with("2 notes of site-1"));
    // Nobody takes a note out, and one that is put in by hand shows.
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client.clone()).get_stream(topology::AUDIT).await.unwrap();
    stream.delete_message(1).await.unwrap_err();
    stream.purge().await.unwrap_err();
    let first = stream.get_raw_message(1).await.unwrap();
    async_nats::jetstream::new(client).publish(first.subject, first.payload).await.unwrap().await.unwrap();
    let words: Vec<String> = ["audit", "--verify"].iter().map(|word| (*word).to_owned()).chain(world.at(0)).collect();
    let ended = run(world.folder(), &words).await.unwrap();
    assert!(
        !ended.success && ended.err.contains("does not match the digest of the note before it"),
        "{}{}",
        ended.out,
        ended.err
    );
}
