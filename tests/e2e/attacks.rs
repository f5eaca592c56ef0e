//! What a hostile camera and a hostile site can do that have nothing but their own rights: all of it is done while an honest
//! site works, each action has the outcome that its row says, and the honest site gets every answer, once and in time.
//!
//! `TRIBUTARY_FOES_TABLE=1` writes the rows and their outcomes into docs/results.

mod camera;
mod raw_client;
mod site;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use futures::StreamExt;
use harness::bare_server::BareServer;
use harness::pictures::{INITIAL, LIGHT, TestPicture, nth_picture};
use harness::program::{fixture, root};
use harness::{TestWorld, WorkerProcess, WorldPlan, until};
use runtime::clock;
use runtime::site_key::SiteKey;
use schemas::task::HEADER_IMAGE;
use schemas::{
    Answer, BlobRef, DeadLetter, ModelName, ReleaseId, Round, RoundEvent, RoundTerms, Route, TaskId, Verdict,
    VerifyRequest, decode, encode,
};
use streams::fleet::live_workers;
use streams::permissions::{CLOUD_DOMAIN, inbox_prefix};
use streams::reader::{self, StreamRange};
use streams::server::LINK_USER;
use streams::topology::{PlanScope, RepairMode, SetupStatus, StreamSettings};
use streams::{Blobs, Bus, NatsSettings, Publication, Publisher, subject, topology};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::raw_client::{RawClient, RawPublication, RawReply};
use self::site::Foe;
use self::table::{Action, ActionOutcome, markdown};
use crate::common::PATIENCE;

/// An honest image waits no longer than this beyond what it waits while nobody attacks.
const WITHOUT_DELAY: Duration = Duration::from_secs(1);
/// An honest image is published so often.
const HONEST_EVERY: Duration = Duration::from_millis(80);
/// Every so many honest images is one that the site is in doubt about.
const DOUBTFUL_EVERY: usize = 4;
/// An outcome that is not there is not waited for when nothing came for so long.
const NOTHING_CHANGES: Duration = Duration::from_secs(5);
/// Memory that a worker may have more at its peak than while nobody attacked. A recognizer holds 64 MiB of messages at the
/// most, and decodes the largest pictures that it takes.
const MOST_MORE_MIB: u64 = 128;
const RECOGNIZER_MORE_MIB: u64 = 300;
/// One after another: what is measured is what an action does, and not how long many stand in line.
const AT_A_TIME: usize = 8;
const PAUSE: Duration = Duration::from_millis(60);
/// The worst honest image may wait for an action that takes the processors a while, on a machine that is busy anyway.
const WORST_DELAY: Duration = Duration::from_secs(4);

/// What an honest image waited for.
#[derive(Debug, Clone)]
struct HonestImage {
    phase: usize,
    at: Instant,
    picture: &'static TestPicture,
    heard: Option<Duration>,
}

/// An honest camera: publishes all the while, and hears its final answers.
struct HonestCamera {
    sent: Arc<Mutex<BTreeMap<TaskId, HonestImage>>>,
    phase: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    publishing: JoinHandle<()>,
    hearing: JoinHandle<()>,
}

impl HonestCamera {
    /// Begins. `ids`: the ids of some of its images, which others know.
    async fn begin(world: &TestWorld, ids: Vec<TaskId>) -> Self {
        let site = world.site(0);
        let (sent, phase, stop) =
            (Arc::<Mutex<BTreeMap<TaskId, HonestImage>>>::default(), Arc::default(), Arc::default());
        let client = async_nats::connect(site.server.url()).await.unwrap();
        let mut finals = client.subscribe(format!("answer.final.{}.honest.*", site.name)).await.unwrap();
        client.flush().await.unwrap();
        let known = sent.clone();
        let hearing = tokio::spawn(async move {
            while let Some(message) = finals.next().await {
                let task: TaskId = message.subject.rsplit('.').next().unwrap().parse().unwrap();
                let mut known = known.lock().unwrap();
                if let Some(sent) = known.get_mut(&task) {
                    sent.heard.get_or_insert(sent.at.elapsed());
                }
            }
        });
        let (publisher, name) = (Publisher::new(site.bus.clone(), PATIENCE), site.name.clone());
        let (known, now, enough): (_, Arc<AtomicUsize>, Arc<AtomicBool>) = (sent.clone(), phase, stop);
        let (phase, stop) = (now.clone(), enough.clone());
        let publishing = tokio::spawn(async move {
            let mut ids = ids.into_iter();
            let mut tick = tokio::time::interval(HONEST_EVERY);
            let mut number = 0;
            while !enough.load(Ordering::Relaxed) {
                tick.tick().await;
                // The ids that others know are used once others have.
                let taken = (now.load(Ordering::Relaxed) > 1).then(|| ids.next()).flatten();
                let task = taken.unwrap_or_else(TaskId::new_random);
                let picture = nth_picture(number % DOUBTFUL_EVERY != 0, number).unwrap();
                let subject = subject::image(&name, &"honest".parse().unwrap());
                let publication = Publication::with_id(subject, picture.bytes.clone(), task.to_string());
                let phase = now.load(Ordering::Relaxed);
                known.lock().unwrap().insert(task, HonestImage { phase, at: Instant::now(), picture, heard: None });
                publisher.publish(&publication).await.unwrap();
                number += 1;
            }
        });
        Self { sent, phase, stop, publishing, hearing }
    }

    fn enter(&self, phase: usize) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// Waits until so many of the images that it published in a phase are answered.
    async fn has_heard(&self, phase: usize, count: usize) {
        until("honest images are answered", PATIENCE, async || {
            let sent = self.sent.lock().unwrap();
            let heard = sent.values().filter(|sent| sent.phase == phase && sent.heard.is_some()).count();
            Ok((heard >= count).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Publishes no more, and waits for the last answer.
    async fn end(self) -> BTreeMap<TaskId, HonestImage> {
        self.stop.store(true, Ordering::Relaxed);
        self.publishing.await.unwrap();
        until("every honest image is answered", PATIENCE, async || {
            let open = self.sent.lock().unwrap().values().filter(|sent| sent.heard.is_none()).count();
            anyhow::ensure!(open == 0, "{open} honest images without an answer");
            Ok(Some(()))
        })
        .await
        .unwrap();
        self.hearing.abort();
        let sent = self.sent.lock().unwrap();
        sent.clone()
    }
}

/// Median and worst of some waits.
fn waits(sent: &BTreeMap<TaskId, HonestImage>, phase: usize, confident: bool) -> (Duration, Duration, usize) {
    let of = sent.values().filter(|sent| sent.phase == phase && sent.picture.confident == confident);
    let mut waits: Vec<Duration> = of.filter_map(|sent| sent.heard).collect();
    waits.sort();
    let at = |place: usize| waits.get(place).copied().unwrap_or_default();
    (at(waits.len() / 2), at(waits.len().saturating_sub(1)), waits.len())
}

fn milliseconds(wait: Duration) -> String {
    format!("{:.0}", wait.as_secs_f64() * 1000.0)
}

/// The faults of all dead letters of a place, by stream and sequence of what died.
async fn faults(bus: &Bus) -> BTreeMap<(String, u64), String> {
    let level = reader::stream_level(bus, topology::DEAD).await.unwrap();
    let mut faults = BTreeMap::new();
    if level.messages > 0 {
        reader::read_range(bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record| {
            let letter: DeadLetter = decode(&record.payload).unwrap();
            assert!(!letter.fault.reason.is_empty() && !letter.fault.remedy.is_empty(), "{:?}", letter.fault);
            faults.insert((letter.stream, letter.sequence), letter.fault.kind.to_string());
        })
        .await
        .unwrap();
    }
    faults
}

/// Routes of final answers at a site by the sequence of their image; each outcome is there once.
async fn routes(bus: &Bus) -> BTreeMap<u64, Vec<(TaskId, Route)>> {
    let level = reader::stream_level(bus, topology::ANSWERS).await.unwrap();
    let mut routes: BTreeMap<u64, Vec<(TaskId, Route)>> = BTreeMap::new();
    let finals = StreamRange { subjects: vec!["answer.final.*.*.*".into()], ..StreamRange::default() };
    reader::read_range(bus, topology::ANSWERS, finals, level.last_sequence, |record| {
        let answer: Answer = decode(&record.payload).unwrap();
        assert_eq!(record.header(HEADER_IMAGE), Some(answer.image_sequence.to_string().as_str()));
        routes.entry(answer.image_sequence).or_default().push((answer.task, answer.route));
    })
    .await
    .unwrap();
    routes
}

/// What the server said at once, if that is the outcome.
fn at_once(heard: &RawReply) -> Option<ActionOutcome> {
    match heard {
        RawReply::Stored { duplicate: false, .. } => None,
        RawReply::Stored { duplicate: true, .. } | RawReply::Refused(_) | RawReply::Nobody | RawReply::Silence => {
            Some(ActionOutcome::Refused)
        }
        RawReply::Said(_) => Some(ActionOutcome::SaysWhatIsItsOwn),
        RawReply::Closed(_) => Some(ActionOutcome::Disconnected),
    }
}

/// What came of every message of a camera.
async fn judge_camera(world: &TestWorld, actions: &mut [Action], heard: &[Vec<RawReply>]) {
    let bus = world.bus(0);
    let durable = topology::recognizer_durable(&world.site(0).name);
    until("every image is done", 2 * PATIENCE, async || {
        let progress = reader::consumer_progress(bus, topology::IMAGES, &durable).await?;
        let newest = heard.iter().flatten().filter_map(sequence).max().unwrap_or(0);
        let verify = reader::stream_level(&world.cloud, topology::VERIFY).await?.messages;
        let outbox = reader::stream_level(bus, topology::OUTBOX).await?.messages;
        anyhow::ensure!(progress.floor >= newest, "image {newest} is not done: {progress:?}");
        anyhow::ensure!(verify + outbox < 10, "{verify} and {outbox} wait");
        Ok(Some(()))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    let wanted: BTreeSet<u64> = heard.iter().flatten().filter_map(sequence).collect();
    // What went up comes down a moment later.
    let mut last = (BTreeMap::new(), BTreeMap::new());
    let _what_is_missing_shows = until("outcomes", Duration::from_secs(5), async || {
        last = (routes(bus).await, faults(bus).await);
        let open = wanted.iter().filter(|sequence| !last.0.contains_key(sequence)).count();
        Ok((open <= 2).then_some(()))
    })
    .await;
    let (routes, faults) = last;
    for (action, heard) in actions.iter_mut().zip(heard) {
        for heard in heard.iter() {
            let outcome = at_once(heard).unwrap_or_else(|| {
                let sequence = sequence(heard).unwrap_or(0);
                match routes.get(&sequence).map(Vec::as_slice) {
                    Some([(_, Route::Dead)]) => {
                        let fault = faults.get(&(topology::IMAGES.into(), sequence));
                        fault.map_or(ActionOutcome::Lost, |fault| ActionOutcome::DeadLetter(fault.clone()))
                    }
                    Some([_]) => ActionOutcome::Answered,
                    None if action.expected.contains(&ActionOutcome::AnsweredBefore) => ActionOutcome::AnsweredBefore,
                    Some(_) | None => ActionOutcome::Lost,
                }
            });
            *action.actual.entry(outcome).or_default() += 1;
        }
        tell_if_wrong(action, heard);
    }
}

fn sequence(heard: &RawReply) -> Option<u64> {
    match heard {
        RawReply::Stored { sequence, duplicate: false, .. } => Some(*sequence),
        _ => None,
    }
}

/// Publishes every action's messages. What ends a connection goes over one of its own.
async fn perform(
    client: &mut RawClient,
    alone: &mut RawClient,
    actions: &[Action],
    at_a_time: usize,
) -> Vec<Vec<RawReply>> {
    let ends = |action: &Action| action.expected.contains(&ActionOutcome::Disconnected);
    let shots: Vec<RawPublication> =
        actions.iter().filter(|action| !ends(action)).flat_map(|action| action.shots.clone()).collect();
    let mut heard = Vec::with_capacity(shots.len());
    for some in shots.chunks(at_a_time) {
        heard.extend(client.publish(some).await);
        if some.len() < shots.len() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    let mut heard = heard.into_iter();
    let mut of_actions = Vec::new();
    for action in actions {
        of_actions.push(match ends(action) {
            true => alone.publish(&action.shots).await,
            false => heard.by_ref().take(action.shots.len()).collect(),
        });
    }
    of_actions
}

/// What came of every message of a site, in the cloud.
async fn judge_site(world: &TestWorld, foe: &Foe, actions: &mut [Action], heard: &[Vec<RawReply>]) {
    let cloud = &world.cloud;
    let mut outcomes = Vec::new();
    let mut last = (usize::MAX, Instant::now());
    let _what_is_missing_shows = until("outcomes of a site", 2 * PATIENCE, async || {
        let faults = faults(cloud).await;
        let verdicts = verdicts(cloud, foe).await;
        outcomes.clear();
        for (action, heard) in actions.iter().zip(heard) {
            for (shot, heard) in action.shots.iter().zip(heard) {
                outcomes.push(at_once(heard).unwrap_or_else(|| {
                    let RawReply::Stored { stream, sequence, .. } = heard else { return ActionOutcome::Lost };
                    if let Some(fault) = faults.get(&(stream.clone(), *sequence)) {
                        return ActionOutcome::DeadLetter(fault.clone());
                    }
                    if stream != topology::VERIFY {
                        return ActionOutcome::KeptAsItsOwn;
                    }
                    if !action.expected.contains(&ActionOutcome::Verdict) {
                        return ActionOutcome::Lost;
                    }
                    let task = decode::<VerifyRequest>(&shot.payload).ok().map(|request| request.provisional.task);
                    match task.is_some_and(|task| verdicts.contains(&task)) {
                        true => ActionOutcome::Verdict,
                        false => ActionOutcome::Lost,
                    }
                }));
            }
        }
        // Dead letters of updates are the only sign of them, so what is expected is waited for.
        let mut next = outcomes.iter();
        let hold = actions.iter().filter(|action| {
            let mut tried = Action { actual: BTreeMap::new(), ..(*action).clone() };
            next.by_ref()
                .take(action.shots.len())
                .for_each(|outcome| *tried.actual.entry(outcome.clone()).or_default() += 1);
            tried.holds()
        });
        let hold = hold.count();
        if hold != last.0 {
            last = (hold, Instant::now());
        }
        Ok((hold == actions.len() || last.1.elapsed() > NOTHING_CHANGES).then_some(()))
    })
    .await;
    let mut outcomes = outcomes.into_iter();
    for (action, heard) in actions.iter_mut().zip(heard) {
        for outcome in outcomes.by_ref().take(action.shots.len()) {
            *action.actual.entry(outcome).or_default() += 1;
        }
        tell_if_wrong(action, heard);
    }
}

fn tell_if_wrong(action: &Action, heard: &[RawReply]) {
    if !action.holds() {
        println!(
            "WRONG {} ({}): {}, expected {:?}; heard {:?}",
            action.name,
            action.how(),
            action.said(),
            action.expected,
            heard[0]
        );
    }
}

/// The tasks of verdicts that wait for the foe.
async fn verdicts(cloud: &Bus, foe: &Foe) -> BTreeSet<TaskId> {
    let level = reader::stream_level(cloud, topology::VERDICTS).await.unwrap();
    let mut tasks = BTreeSet::new();
    if level.messages > 0 {
        let own = StreamRange { subjects: vec![format!("verdict.{}.*", foe.own)], ..StreamRange::default() };
        reader::read_range(cloud, topology::VERDICTS, own, level.last_sequence, |record| {
            let verdict: Verdict = decode(&record.payload).unwrap();
            assert_eq!(verdict.provisional.site, foe.own);
            tasks.insert(verdict.provisional.task);
        })
        .await
        .unwrap();
    }
    tasks
}

/// How far the streams of a place are that no honest image changes.
async fn quiet_levels(bus: &Bus, streams: &[&str]) -> BTreeMap<String, (u64, u64)> {
    let mut levels = BTreeMap::new();
    for stream in streams {
        let level = reader::stream_level(bus, stream).await.unwrap();
        levels.insert((*stream).to_owned(), (level.messages, level.last_sequence));
    }
    levels
}

/// Objects at a site that are not what they say.
async fn lies(world: &TestWorld) -> Vec<(&'static str, BlobRef)> {
    let client = async_nats::connect(world.site(0).server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let mut lies = Vec::new();
    for (number, (name, size, link)) in [
        ("an object that links to itself", 100, true),
        ("an object without pieces", 100, false),
        ("2^60 bytes", 1u64 << 60, false),
    ]
    .into_iter()
    .enumerate()
    {
        let blob = BlobRef::new([number as u8 + 1; 32], 100);
        let options = link.then(|| serde_json::json!({"link": {"bucket": topology::BLOBS, "name": blob.key}}));
        let described = serde_json::json!({
            "name": blob.key, "bucket": topology::BLOBS, "nuid": "nobody", "size": size, "chunks": 1, "options": options,
        });
        let subject = format!("$O.{}.M.{}", topology::BLOBS, URL_SAFE.encode(&blob.key));
        context.publish(subject, described.to_string().into()).await.unwrap().await.unwrap();
        lies.push((name, blob));
    }
    lies
}

/// Says that something happened in a round, as the operator of the cloud may.
async fn say_round(world: &TestWorld, model: &ModelName, number: u64, event: RoundEvent) {
    let slot = subject::round(model, number, &event.slot());
    let round = Round { model: model.clone(), number, event, said_at_ms: clock::now_ms(), signature: None };
    let publication = Publication::first_on_subject(slot, encode(&round).unwrap());
    Publisher::new(world.cloud.clone(), PATIENCE).publish(&publication).await.unwrap();
}

fn terms(base: &ReleaseId) -> RoundTerms {
    RoundTerms {
        base: base.clone(),
        weights: None,
        sites: Vec::new(),
        quorum: 2,
        grace_s: 1000,
        deadline_s: 1000,
        trainable: "all".into(),
        local: Vec::new(),
        unsolicited: false,
        behind_max: 0,
        focus: None,
    }
}

fn all_alive(world: &mut TestWorld) {
    for (name, worker) in &mut world.workers {
        assert_eq!(worker.ended().unwrap(), None, "{name} died: {}", worker.log());
    }
}

/// From now on the peak of a process's memory is that of what comes.
fn forget_peak(worker: &WorkerProcess) {
    std::fs::write(format!("/proc/{}/clear_refs", worker.id()), "5").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_hostile_camera_and_a_hostile_site_do_the_honest_site_gets_its_answers_in_time() {
    let mut world = TestWorld::start(WorldPlan::leaves(2)).await.unwrap();
    let folder = world.folder().to_owned();
    let (key, strangers) =
        (SiteKey::create(&folder.join("foe.key")).unwrap(), SiteKey::create(&folder.join("stranger.key")).unwrap());
    let honest_key = SiteKey::create(&folder.join("honest.key")).unwrap();
    let keys = serde_json::json!({"site-1": honest_key.public(), "site-2": key.public()});
    world.verifier("verifier-0").unwrap();
    world.recognizer("recognizer-0", 0).unwrap();
    world.courier("courier-0", 0).unwrap();
    world.janitor("janitor-0", 0).unwrap();
    let settings = [format!("aggregator.check.keys={keys}"), "aggregator.merge.rule=fedavg".into()];
    world.aggregator("aggregator", &settings).unwrap();
    world.releaser("releaser").unwrap();
    world.all_started().await.unwrap();
    until("the first release", PATIENCE, async || {
        Ok((reader::stream_level(&world.cloud, topology::RELEASES).await?.messages > 0).then_some(()))
    })
    .await
    .unwrap();
    let (light, initial) =
        (vision::Model::load(&fixture(LIGHT)).unwrap(), vision::Model::load(&fixture(INITIAL)).unwrap());
    let foe = Foe {
        own: world.site(1).name.clone(),
        other: world.site(0).name.clone(),
        release: light.release,
        model: ModelName::from_name(&initial.description.name),
        base: initial.release,
        key,
        strangers,
        now_ms: clock::now_ms(),
    };
    let lies = lies(&world).await;
    let ids: Vec<TaskId> = (0..8).map(|_| TaskId::new_random()).collect();

    // While nobody attacks.
    let began = Instant::now();
    let honest = HonestCamera::begin(&world, ids.clone()).await;
    honest.has_heard(0, 10).await;
    honest.enter(1);
    honest.has_heard(1, 45).await;
    let calm_mib: BTreeMap<String, u64> =
        world.workers.iter().map(|(name, worker)| (name.clone(), worker.peak_memory_mib())).collect();
    let processes: BTreeMap<String, u32> =
        world.workers.iter().map(|(name, worker)| (name.clone(), worker.id())).collect();
    world.workers.values().for_each(forget_peak);

    // A camera of the honest site.
    honest.enter(2);
    let url = world.site(0).server.url();
    let mut client = RawClient::connect(&url, None, "_INBOX_foe").await;
    let mut alone = RawClient::connect(&url, None, "_INBOX_foe_alone").await;
    let mut by_camera = camera::actions(&foe.other, &ids, &lies);
    let heard = perform(&mut client, &mut alone, &by_camera, AT_A_TIME).await;
    judge_camera(&world, &mut by_camera, &heard).await;
    println!("camera: {} actions after {:?}", by_camera.len(), began.elapsed());
    honest.enter(3);
    let mut camera_floods = camera::floods(&foe.other);
    let heard = perform(&mut client, &mut alone, &camera_floods, usize::MAX).await;
    judge_camera(&world, &mut camera_floods, &heard).await;
    println!("camera's floods after {:?}", began.elapsed());

    // Another site, with the link that its server has.
    const AT_SITE: [&str; 7] = ["LABELS", "LEARNED", "PINNED", "AUDIT", "OBJ_blobs", "OBJ_pinned-blobs", "ADVISORIES"];
    let own_bucket = format!("OBJ_{}", topology::sent_blobs(&foe.other));
    let in_cloud = ["RELEASES", "AUDIT", "OBJ_cloud-blobs", own_bucket.as_str()];
    let before = (quiet_levels(world.bus(0), &AT_SITE).await, quiet_levels(&world.cloud, &in_cloud).await);
    honest.enter(4);
    let server = &world.site(1).server;
    let login = (LINK_USER, server.link_password().unwrap());
    let mut client = RawClient::connect(&server.url(), Some(login), &inbox_prefix(&foe.own)).await;
    let mut alone = RawClient::connect(&server.url(), Some(login), &format!("{}.alone", inbox_prefix(&foe.own))).await;
    let others = reader::last_message(&world.cloud, topology::HARDCASES, &subject::hardcase(&foe.other)).await.unwrap();
    let others = others.and_then(|record| record.header("Nats-Msg-Id").map(str::to_owned));
    let mut by_site = Vec::new();
    let (stored, asked) = foe.blobs();
    say_round(&world, &foe.model, 1, RoundEvent::Opened(terms(&foe.base))).await;
    until("the aggregator has opened the round", PATIENCE, async || {
        let rounds = live_workers(&world.cloud).await?.into_iter().filter_map(|beat| beat.rounds);
        Ok(rounds.into_iter().any(|report| report.round == 1).then_some(()))
    })
    .await
    .unwrap();
    let mut groups =
        vec![foe.rights(CLOUD_DOMAIN), foe.requests(), stored, asked, foe.hard_cases(&others.unwrap_or_default())];
    // Few at a time: of one subject the stream keeps four, and what is pushed out is read by nobody.
    let mut updates = foe.updates(1).into_iter();
    while updates.len() > 0 {
        groups.push(updates.by_ref().take(3).collect());
    }
    groups.push(foe.reports());
    for mut actions in groups {
        let heard = perform(&mut client, &mut alone, &actions, usize::MAX).await;
        judge_site(&world, &foe, &mut actions, &heard).await;
        all_alive(&mut world);
        println!("site: {} actions after {:?}", actions.len(), began.elapsed());
        by_site.extend(actions);
    }
    let file = folder.join(format!("releases/models/{}/{}/weights.safetensors", foe.model, foe.base.as_str()));
    let right = std::fs::read(&file).unwrap();
    let sent = Blobs::open_sent_by(&world.site(1).over_link().await.unwrap(), &foe.own);
    let mut round = 1;
    for heard in foe.heard_updates(&right) {
        round += 1;
        say_round(&world, &foe.model, round, RoundEvent::Opened(terms(&foe.base))).await;
        if let Some(weights) = &heard.weights {
            sent.store_blob(weights).await.unwrap();
        }
        let shot = foe.heard_shot(&heard, round);
        let again =
            Action::new(format!("{}, once more", heard.name), shot.clone(), ActionOutcome::dead("update_second"));
        let action = Action::new(heard.name, shot, ActionOutcome::DeadLetter(heard.fault));
        let mut actions = vec![action, again];
        let heard = perform(&mut client, &mut alone, &actions, usize::MAX).await;
        judge_site(&world, &foe, &mut actions, &heard).await;
        by_site.extend(actions);
    }
    println!("updates after {:?}", began.elapsed());
    let over = schemas::FaultNote::new("quorum_missed", "the test ends it", "");
    say_round(&world, &foe.model, round, RoundEvent::Failed(over)).await;
    honest.enter(5);
    let mut site_floods = foe.floods();
    site_floods.push(foe.waiting_updates());
    let heard = perform(&mut client, &mut alone, &site_floods, usize::MAX).await;
    judge_site(&world, &foe, &mut site_floods, &heard).await;
    println!("site's floods after {:?}", began.elapsed());

    // Every row is as it should be.
    let sections = [
        ("A camera that may publish and nothing else", &by_camera[..]),
        ("The same, many times", &camera_floods[..]),
        ("A site with the rights of its link", &by_site[..]),
        ("The same, many times, and between rounds", &site_floods[..]),
    ];
    let mut wrong = Vec::new();
    for (title, actions) in &sections {
        println!("\n{title}");
        for action in *actions {
            println!("  {} ({}): {}", action.name, action.how(), action.said());
            if !action.holds() {
                wrong.push(format!("{}: {}, expected {:?}", action.name, action.said(), action.expected));
            }
        }
    }
    let rows: usize = sections.iter().map(|(_, actions)| actions.len()).sum();
    // The honest site.
    let sent = honest.end().await;
    let routes = routes(world.bus(0)).await;
    let mut of_honest: BTreeMap<TaskId, Vec<Route>> = BTreeMap::new();
    let finals =
        StreamRange { subjects: vec![format!("answer.final.{}.honest.*", foe.other)], ..StreamRange::default() };
    let last = reader::stream_level(world.bus(0), topology::ANSWERS).await.unwrap().last_sequence;
    reader::read_range(world.bus(0), topology::ANSWERS, finals, last, |record| {
        let answer: Answer = decode(&record.payload).unwrap();
        let sent = sent.get(&answer.task).expect("an answer to something that it never published");
        let right = if answer.route == Route::Edge { &sent.picture.light } else { &sent.picture.heavy };
        assert_eq!(answer.label.as_ref(), Some(&right.label), "{answer:?}");
        of_honest.entry(answer.task).or_default().push(answer.route);
    })
    .await
    .unwrap();
    for (task, sent) in &sent {
        // In a flood the site may let the cloud help it out, as its policy is.
        let wanted = if sent.picture.confident { Route::Edge } else { Route::Verified };
        let found = of_honest.get(task).map(Vec::as_slice);
        let is_right = matches!(found, Some([route]) if *route == wanted || *route == Route::Redirected);
        assert!(is_right, "task {task}, phase {}: {found:?}", sent.phase);
    }
    assert!(routes.values().all(|routes| routes.len() == 1), "an image with two outcomes");
    let messages: usize =
        sections.iter().flat_map(|(_, actions)| actions.iter()).map(|action| action.shots.len()).sum();
    let mut lines = vec![
        format!(
            "{rows} actions, {messages} messages; {} honest images meanwhile, each with its one answer. No worker ended.",
            sent.len()
        ),
        "What honest images waited for their final answer, milliseconds, in a build with debug assertions:\n".into(),
        "| while | final answer | images | median | worst |\n|---|---|---:|---:|---:|".into(),
    ];
    let mut late = Vec::new();
    for (phase, what) in [(1, "calm"), (2, "camera"), (3, "camera's floods"), (4, "site"), (5, "site's floods")] {
        for (confident, kind) in [(true, "answered at the site"), (false, "verified by the cloud")] {
            let (calm, ..) = waits(&sent, 1, confident);
            let (median, worst, count) = waits(&sent, phase, confident);
            println!("{what}, {kind}: {count} images, median {median:?}, worst {worst:?}; calm median {calm:?}");
            lines.push(format!("| {what} | {kind} | {count} | {} | {} |", milliseconds(median), milliseconds(worst)));
            // Whoever stands behind a thousand others waits for them; that is measured, and not promised.
            let flood = what.ends_with("floods");
            if !flood && (median > calm + WITHOUT_DELAY || worst > calm + WORST_DELAY) {
                late.push(format!("{what}, {kind}: {median:?}, worst {worst:?}, instead of {calm:?}"));
            }
        }
    }
    // No worker died, none grew without bound, none panicked and lived on.
    let mut grown = Vec::new();
    for (name, worker) in &mut world.workers {
        assert_eq!(worker.ended().unwrap(), None, "{name} died: {}", worker.log());
        assert_eq!(processes[name], worker.id());
        assert!(!worker.log().contains("panicked"), "{name}: {}", worker.log());
        let more = worker.peak_memory_mib().saturating_sub(calm_mib[name]);
        let most = if name.starts_with("recognizer") { RECOGNIZER_MORE_MIB } else { MOST_MORE_MIB };
        println!("{name}: peak {} MiB while calm, {} MiB since", calm_mib[name], worker.peak_memory_mib());
        if more > most {
            grown.push(format!("{name}: {more} MiB more"));
        }
    }
    let after = (quiet_levels(world.bus(0), &AT_SITE).await, quiet_levels(&world.cloud, &in_cloud).await);
    println!("all after {:?}", began.elapsed());
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(before, after, "something of the other site's changed");
    assert!(grown.is_empty(), "{grown:?}");
    assert!(late.is_empty(), "{late:?}");
    let policy = streams::fleet::Ledger::open(world.bus(0)).await.unwrap().read("policy").await.unwrap();
    assert_eq!(policy, None, "somebody set the site's policy");
    assert!(rows >= 200, "{rows}");
    if std::env::var_os("TRIBUTARY_FOES_TABLE").is_some() {
        let path = root().join("docs/results/hostile-actions.md");
        std::fs::write(&path, markdown(&sections, &lines.join("\n"))).unwrap();
    }
}

/// The accounts of the shipped configuration of a site's server, with these passwords.
fn shipped_accounts() -> String {
    let text = std::fs::read_to_string(root().join("deploy/nats/site.conf")).unwrap();
    let accounts = &text[text.find("accounts {").unwrap()..];
    let passwords = ["WORKER", "CAMERA", "LINK", "SYS"];
    passwords
        .iter()
        .fold(accounts.to_owned(), |text, who| text.replace(&format!("${who}_PASSWORD"), &format!("pass-{who}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_camera_sends_its_acknowledgements_they_reach_nothing_of_the_site() {
    let folder = tempfile::tempdir().unwrap();
    let server = BareServer::start(folder.path(), "reef", Some("reef"), &shipped_accounts()).await.unwrap();
    let nats = NatsSettings {
        url: server.url.clone(),
        user: Some("worker".into()),
        password: Some("pass-WORKER".to_owned().into()),
        ..NatsSettings::default()
    };
    let bus = Bus::connect(&nats, "test").await.unwrap();
    let plan = topology::plan_topology(&PlanScope::Site("reef".parse().unwrap()), &StreamSettings::default());
    for finding in topology::apply_plan(&bus, &plan, RepairMode::Missing).await.unwrap() {
        assert!(!matches!(finding.state, SetupStatus::Refused(_)), "{finding:?}");
    }
    let streams: Vec<&str> = plan.stream_names().filter(|name| *name != topology::IMAGES).collect();
    let before = quiet_levels(&bus, &streams).await;
    let mut camera = RawClient::connect(&server.url, Some(("cam1", "pass-CAMERA")), "_INBOX_cam1").await;
    let image = |reply: Option<&str>| RawPublication {
        subject: "image.reef.cam1".into(),
        payload: "an image".into(),
        reply: reply.map(str::to_owned),
        ..RawPublication::default()
    };
    // Its own acknowledgement it hears.
    let heard = camera.publish(&[image(None)]).await;
    assert!(
        matches!(&heard[0], RawReply::Stored { stream, sequence: 1, .. } if stream == topology::IMAGES),
        "{heard:?}"
    );
    let task = TaskId::new_random();
    let elsewhere = [
        "$KV.ledger.policy".to_owned(),
        "$KV.ledger.fleet-root".into(),
        "$KV.fleet.recognizer.x".into(),
        "image.reef.cam2".into(),
        format!("outcome.reef.cam2.{task}"),
        "answer.provisional.reef.cam2".into(),
        "outbox.reef.verify".into(),
        "label.reef.cam2".into(),
        "learned.reef.m".into(),
        "audit.reef".into(),
        format!("dead.images.reef.{task}"),
        format!("pin.set.reef.cam2.{task}"),
        "$O.blobs.M.x".into(),
        "$JS.API.STREAM.PURGE.IMAGES".into(),
        "$JS.reef.API.STREAM.PURGE.IMAGES".into(),
    ];
    let shots: Vec<RawPublication> = elsewhere.iter().map(|reply| image(Some(reply))).collect();
    camera.publish(&shots).await;
    // And what it may not publish it does not, whatever account it is in.
    let forbidden =
        ["image.reef.cam2", "$KV.ledger.policy", "$JS.API.INFO", "$JS.API.STREAM.PURGE.IMAGES", "outcome.reef.cam2.x"];
    for subject in forbidden {
        let heard = camera
            .publish(&[RawPublication { subject: subject.into(), payload: "x".into(), ..RawPublication::default() }])
            .await;
        assert!(matches!(heard[0], RawReply::Refused(_)), "{subject}: {heard:?}");
    }
    let level = reader::stream_level(&bus, topology::IMAGES).await.unwrap();
    assert_eq!(
        level.messages,
        1 + elsewhere.len() as u64,
        "each was stored as the camera's own image, and nothing else"
    );
    assert_eq!(
        reader::last_message(&bus, topology::IMAGES, "image.reef.cam2").await.unwrap().map(|record| record.sequence),
        None
    );
    assert_eq!(quiet_levels(&bus, &streams).await, before);
    // The user for MQTT is nobody here.
    let mqtt = NatsSettings { user: Some("cam1-mqtt".into()), password: Some("pass-CAMERA".to_owned().into()), ..nats };
    Bus::connect(&mqtt, "test").await.map(|_| ()).unwrap_err();
}
