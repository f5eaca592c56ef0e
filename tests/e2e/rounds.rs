//! Rounds: what sites learned becomes releases, whatever breaks on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::pictures::INITIAL;
use harness::program::{CommandOutput, fixture, run, run_for};
use harness::seaweed::{SECRET, Seaweed, URL};
use harness::{TestWorld, WorldPlan, until};
use schemas::task::HEADER_LABEL;
use schemas::{
    BlobRef, DeadLetter, FaultKind, Heartbeat, ModelAccuracy, ModelName, ReleaseId, Round, RoundEvent, RoundState,
    SiteName, Update, WeightFormat, decode, encode,
};
use serde_json::Value;
use streams::fleet;
use streams::{Blobs, Publication, Publisher, reader, subject, topology};
use vision::{InferenceSettings, Model, OnnxRuntime, Replica};

use crate::common::{PATIENCE, outcome, publish};

/// Long enough for a round on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Labelled pictures of a split, by label.
fn pictures(split: &str) -> BTreeMap<String, Vec<PathBuf>> {
    let folder = fixture("images/fashion");
    let index = std::fs::read_to_string(folder.join("index.csv")).unwrap();
    let mut pictures: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        if fields[2] == split {
            pictures.entry(fields[1].to_owned()).or_default().push(folder.join(fields[0]));
        }
    }
    pictures
}

/// A public set: the first pictures of each class that sites could have.
fn public(into: &Path, of_class: usize) -> PathBuf {
    for (label, pictures) in pictures("site") {
        let folder = into.join("public").join(&label);
        std::fs::create_dir_all(&folder).unwrap();
        for picture in pictures.iter().take(of_class) {
            std::fs::copy(picture, folder.join(picture.file_name().unwrap())).unwrap();
        }
    }
    into.join("public")
}

fn model() -> ModelName {
    ModelName::from_name("fashion-initial")
}

fn initial() -> ReleaseId {
    Model::load(&fixture(INITIAL)).unwrap().release
}

/// A command about the model's rounds or releases.
async fn command(world: &TestWorld, words: &[&str]) -> CommandOutput {
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.extend(["--nats".into(), world.cloud_url()]);
    let store = world.folder().join("releases").display().to_string();
    all.extend(["--set".into(), format!("aggregator.store={store}")]);
    all.extend(["--set".into(), format!("aggregator.model={}", fixture(INITIAL).display())]);
    run_for(world.folder(), &all, LONG).await.unwrap()
}

async fn open(world: &TestWorld, more: &[&str]) -> u64 {
    let said = command(world, &[&["round", "open", "--json"], more].concat()).await;
    assert!(said.success, "{}", said.err);
    serde_json::from_str::<Value>(&said.out).unwrap()["round"].as_u64().unwrap()
}

/// How a round ended.
async fn ended(world: &TestWorld, number: u64) -> RoundEvent {
    let slot = subject::round(&model(), number, "ended");
    let ended = until("the end of a round", LONG, async || {
        let record = reader::last_message(&world.cloud, topology::UPDATES, &slot).await?;
        Ok(record.map(|record| decode::<Round>(&record.payload)).transpose()?.map(|round| round.event))
    });
    ended.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()))
}

async fn sealed(world: &TestWorld, number: u64) -> (ReleaseId, BlobRef, u32) {
    match ended(world, number).await {
        RoundEvent::Sealed { release, weights, updates } => (release, weights, updates),
        other => panic!("round {number}: {other:?}\n{}", world.log_tails()),
    }
}

async fn rounds(world: &TestWorld) -> Option<schemas::RoundReport> {
    let beats: Vec<Heartbeat> = fleet::live_workers(&world.cloud).await.ok()?;
    beats.into_iter().find_map(|beat| beat.rounds)
}

async fn manifest(world: &TestWorld, release: &ReleaseId) -> Value {
    let shown = command(world, &["release", "show", release.as_str(), "--json"]).await;
    assert!(shown.success, "{}", shown.err);
    serde_json::from_str(&shown.out).unwrap()
}

/// Share of the pictures of split `test` that a model's folder is right about.
fn right(folder: &Path) -> f64 {
    let onnx = OnnxRuntime::find_and_load(None).unwrap();
    let model = Model::load(folder).unwrap();
    let mut replica = Replica::open(&onnx, &model, &InferenceSettings::default()).unwrap();
    let (mut right, mut all) = (0, 0);
    for (label, pictures) in pictures("test") {
        for picture in pictures.iter().take(40) {
            let logits = replica.predict(&std::fs::read(picture).unwrap()).unwrap().logits;
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            right += usize::from(model.labels[best] == label);
            all += 1;
        }
    }
    right as f64 / all as f64
}

/// An update that a test sends itself. `weights`: the bytes of its file.
async fn send(
    world: &TestWorld,
    site: &str,
    round: u64,
    base: &ReleaseId,
    weights: &[u8],
    change: impl FnOnce(&mut Update),
) {
    world.add_site_to_cloud(&site.parse().unwrap()).await.unwrap();
    let blob = Blobs::open_sent_by(&world.cloud, &site.parse().unwrap()).store_blob(weights).await.unwrap();
    let mut update = Update {
        site: site.parse().unwrap(),
        model: model(),
        round,
        base: base.clone(),
        weights: blob,
        form: WeightFormat::F32,
        samples: [("bag".to_owned(), 50), ("coat".to_owned(), 50)].into(),
        hard: 0,
        sources: BTreeMap::new(),
        before: ModelAccuracy::default(),
        after: ModelAccuracy::default(),
        gain: None,
        epochs: 1,
        trainable: "all".into(),
        trained_at_ms: 1,
        signature: None,
    };
    change(&mut update);
    let to = subject::update(&update.model, update.round, &site.parse::<SiteName>().unwrap());
    put(world, to, encode(&update).unwrap()).await;
}

async fn put(world: &TestWorld, to: String, payload: Vec<u8>) {
    let id = schemas::TaskId::new_random().to_string();
    Publisher::new(world.cloud.clone(), PATIENCE).publish(&Publication::with_id(to, payload, id)).await.unwrap();
}

/// Fault and site of every refused update.
async fn refused(world: &TestWorld) -> Vec<(String, String)> {
    let last = reader::stream_level(&world.cloud, topology::DEAD).await.unwrap().last_sequence;
    let mut letters = Vec::new();
    let stretch = reader::StreamRange { subjects: vec!["dead.updates.*.*".into()], ..reader::StreamRange::default() };
    reader::read_range(&world.cloud, topology::DEAD, stretch, last, |record| {
        let letter: DeadLetter = decode(&record.payload).unwrap();
        letters.push((letter.fault.kind.to_string(), letter.site.to_string()));
    })
    .await
    .unwrap();
    letters
}

#[tokio::test]
async fn sites_with_few_classes_each_come_to_one_model_while_workers_are_killed() {
    let plan = WorldPlan::leaves(3)
        .set("trainer.collect.min_new_images=1000000")
        .set("trainer.epochs=3")
        .set("trainer.holdout_ratio=0.2")
        .set("trainer.optimizer.learning_rate=0.05");
    let mut world = TestWorld::start(plan).await.unwrap();
    let public = public(world.folder(), 10);
    // What is tried here is who is killed when, not which rule is taken: every round shall come to a release.
    let of_public = [format!("aggregator.public={}", public.display()), "aggregator.merge.rule=quality+tune".into()];
    world.verifier("verifier").unwrap();
    for site in 0..3 {
        world.untrained_recognizer(&format!("recognizer-{site}"), site).unwrap();
        world.courier(&format!("courier-{site}"), site).unwrap();
    }
    world.all_started().await.unwrap();
    // Each site sees five classes, two of them alone.
    let mut tasks = Vec::new();
    for (number, (label, pictures)) in pictures("site").into_iter().enumerate() {
        for site in 0..3_usize {
            if (number + site * 3) % 10 >= 5 {
                continue;
            }
            for picture in pictures.iter().skip(10 + site * 14).take(14) {
                let bytes = std::fs::read(picture).unwrap();
                let (bus, name) = (world.bus(site), &world.site(site).name);
                let task = publish(bus, name, &bytes, &[(HEADER_LABEL, &label)]).await;
                tasks.push((site, task));
            }
        }
    }
    for (site, task) in &tasks {
        let answer = outcome(world.bus(*site), &world.site(*site).name, *task).await;
        answer.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    }
    world.aggregator("aggregator", &of_public).unwrap();
    for site in 0..3 {
        world.trainer(&format!("trainer-{site}"), site).unwrap();
    }
    let mut accuracy = vec![right(&fixture(INITIAL))];
    let mut base = initial();
    for number in 1..=5_u64 {
        // In the last two rounds the third site is away.
        let quorum = if number <= 3 { "3" } else { "2" };
        if number == 4 {
            world.worker_mut("trainer-2").unwrap().kill().unwrap();
            world.worker_mut("courier-2").unwrap().kill().unwrap();
        }
        let more = ["--quorum", quorum, "--grace-s", "1", "--deadline-s", "100"];
        let focus = ["--set", "aggregator.round.hard_focus=0.5"];
        assert_eq!(open(&world, &[&more[..], &focus].concat()).await, number);
        if number == 1 {
            focuses_on_what_is_hard(&world, number).await;
        }
        if number == 2 {
            let some =
                until("a first update", LONG, async || Ok(rounds(&world).await.filter(|report| report.updates > 0)));
            some.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
            world.worker_mut("aggregator").unwrap().restart().unwrap();
        }
        if number == 3 {
            world.worker_mut("trainer-0").unwrap().restart().unwrap();
            // Weights that are no numbers, from a site nobody knows.
            let bytes = std::fs::read(
                world.folder().join("releases").join(format!("models/{}/{base}/weights.safetensors", model())),
            )
            .unwrap();
            let mut broken = bytes.clone();
            let end = broken.len();
            broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            send(&world, "site-9", number, &base, &broken, |_| {}).await;
        }
        let (release, _, updates) = sealed(&world, number).await;
        assert_eq!(updates, quorum.parse::<u32>().unwrap(), "round {number}\n{}", world.log_tails());
        accuracy.push(right(&world.folder().join("aggregator/releases").join(release.as_str())));
        let manifest = manifest(&world, &release).await;
        assert_eq!(manifest["parent"], base.as_str());
        if number == 3 {
            assert_eq!(manifest["made"]["refused"][0]["fault"]["name"], "weights_not_finite");
        }
        // As nobody had been killed: made again of its updates, it is the same.
        let again =
            command(&world, &["release", "verify", release.as_str(), "--public", &public.display().to_string()]).await;
        assert!(again.success && again.out.contains("bit by bit"), "{}{}", again.out, again.err);
        base = release;
    }
    println!("right of the test pictures, round by round: {accuracy:?}");
    // While all sites take part it rises; what two of them know is not lost without the third.
    assert!(accuracy[..4].windows(2).all(|pair| pair[1] > pair[0]), "{accuracy:?}");
    assert!(accuracy[5] > 0.45, "{accuracy:?}");
    assert_eq!(refused(&world).await, [("weights_not_finite".to_owned(), "site-9".to_owned())]);
    let list = command(&world, &["release", "list"]).await;
    assert!(list.success && list.out.lines().count() >= 7, "{}{}", list.out, list.err);
    let diff = command(&world, &["release", "diff", initial().short(), base.short()]).await;
    assert!(diff.success && diff.out.contains('%'), "{}{}", diff.out, diff.err);
}

/// A round that asks for it says what its base found hard, though not a pixel of it.
async fn focuses_on_what_is_hard(world: &TestWorld, number: u64) {
    let slot = subject::round(&model(), number, "opened");
    let record = reader::last_message(&world.cloud, topology::UPDATES, &slot).await.unwrap().unwrap();
    let RoundEvent::Opened(terms) = decode::<Round>(&record.payload).unwrap().event else { panic!("it opens") };
    let focus = terms.focus.expect("every picture was hard for a model that knows nothing");
    assert_eq!(focus.strength, 0.5);
    assert!(focus.classes.windows(2).all(|pair| pair[0].ratio >= pair[1].ratio), "{focus:?}");
    let all: f32 = focus.classes.iter().map(|class| class.ratio).sum();
    assert!((all - 1.0).abs() < 1e-3 && focus.classes.iter().all(|class| class.features.is_some()), "{focus:?}");
}

#[tokio::test]
async fn what_cannot_be_merged_is_named_and_the_round_goes_on() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let settings = ["merge.rule=fedavg", "check.samples_max=1000", "check.norm_over_median_max=3"]
        .map(|pair| format!("aggregator.{pair}"));
    world.aggregator("aggregator", &settings).unwrap();
    world.all_started().await.unwrap();
    let base = initial();
    let path = world.folder().join(format!("releases/models/{}/{base}/weights.safetensors", model()));
    let bytes = until("the first release", PATIENCE, async || Ok(std::fs::read(&path).ok())).await.unwrap();
    let same = |_: &mut Update| {};
    let number = open(&world, &["--quorum", "2", "--grace-s", "2", "--deadline-s", "60"]).await;
    send(&world, "good-1", number, &base, &bytes, same).await;
    send(&world, "good-1", number, &base, &bytes, |update| update.epochs = 2).await;
    send(&world, "other-base", number, &ReleaseId::from_sha256([7; 32]), &bytes, same).await;
    send(&world, "no-such-round", 99, &base, &bytes, same).await;
    send(&world, "no-samples", number, &base, &bytes, |update| update.samples.clear()).await;
    send(&world, "too-many", number, &base, &bytes, |update| {
        update.samples.insert("bag".into(), u64::MAX);
    })
    .await;
    send(&world, "cut-off", number, &base, &bytes[..bytes.len() - 1], same).await;
    send(&world, "no-tensors", number, &base, b"no tensors at all", same).await;
    send(&world, "no-blob", number, &base, &bytes, |update| {
        update.weights = BlobRef::new([3; 32], update.weights.size_bytes);
    })
    .await;
    send(&world, "huge", number, &base, &bytes, |update| update.weights.size_bytes = u64::MAX).await;
    send(&world, "halves", number, &base, &bytes, |update| update.form = WeightFormat::F16).await;
    send(&world, "misdirected", number, &base, &bytes, |update| update.site = "good-3".parse().unwrap()).await;
    let renamed = String::from_utf8_lossy(&bytes[..400]).find("bias").unwrap();
    let mut other = bytes.clone();
    other[renamed..renamed + 4].copy_from_slice(b"blas");
    send(&world, "renamed", number, &base, &other, same).await;
    let mut long = bytes.clone();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    long[header..header + 4].copy_from_slice(&1e9_f32.to_le_bytes());
    send(&world, "too-long", number, &base, &long, same).await;
    // No longer than the base, and far longer than the others.
    let mut longest = bytes.clone();
    longest[header..header + 4].copy_from_slice(&5_f32.to_le_bytes());
    send(&world, "longest", number, &base, &longest, same).await;
    world.add_site_to_cloud(&"garbage".parse().unwrap()).await.unwrap();
    put(&world, subject::update(&model(), number, &"garbage".parse().unwrap()), b"\xff\xffgarbage".to_vec()).await;
    send(&world, "good-2", number, &base, &bytes, same).await;
    let (_, _, updates) = sealed(&world, number).await;
    assert_eq!(updates, 2, "{}", world.log_tails());
    // Too late, and a site that nobody can mistake for another.
    send(&world, "late", number, &base, &bytes, same).await;
    let next = open(&world, &["--quorum", "2", "--grace-s", "0", "--deadline-s", "2"]).await;
    let failed = ended(&world, next).await;
    assert!(matches!(&failed, RoundEvent::Failed(note) if note.kind.as_str() == "quorum_missed"), "{failed:?}");
    let mut found = refused(&world).await;
    found.sort();
    let mut expected = [
        ("update_second", "good-1"),
        ("base_unknown", "other-base"),
        ("round_unknown", "no-such-round"),
        ("samples_none", "no-samples"),
        ("samples_too_many", "too-many"),
        ("weights_unreadable", "cut-off"),
        ("weights_unreadable", "no-tensors"),
        ("weights_missing", "no-blob"),
        ("weights_too_large", "huge"),
        ("tensor_of_other_type", "halves"),
        ("update_misdirected", "misdirected"),
        ("tensor_extra", "renamed"),
        ("change_too_long", "too-long"),
        ("change_too_long", "longest"),
        ("update_unreadable", "garbage"),
        ("update_late", "late"),
    ]
    .map(|(fault, site)| (fault.to_owned(), site.to_owned()));
    expected.sort();
    assert_eq!(found, expected, "{}", world.log_tails());
    let is_told =
        |report: &schemas::RoundReport| report.last.as_ref().is_some_and(|last| last.contains("quorum_missed"));
    let told = until("its heartbeat says so", PATIENCE, async || Ok(rounds(&world).await.filter(is_told)));
    told.await.unwrap();
    let status = run(world.folder(), &[vec!["status".to_owned()], world.at(0)].concat()).await.unwrap();
    assert!(status.out.contains("quorum_missed"), "{}", status.out);
    // One that is opened beside another ends that one.
    let left = open(&world, &["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"]).await;
    let asked =
        reader::last_message(&world.cloud, topology::UPDATES, &subject::round(&model(), left, "opened")).await.unwrap();
    let asked: Round = decode(&asked.unwrap().payload).unwrap();
    let beside = Round { number: left + 1, ..asked };
    put(&world, subject::round(&model(), left + 1, "opened"), encode(&beside).unwrap()).await;
    let superseded = ended(&world, left).await;
    assert!(
        matches!(&superseded, RoundEvent::Failed(note) if note.kind.as_str() == "round_superseded"),
        "{superseded:?}"
    );
    send(&world, "good-1", left + 1, &base, &bytes, same).await;
    assert_eq!(sealed(&world, left + 1).await.2, 1);
}

#[tokio::test]
async fn two_aggregators_that_are_killed_again_and_again_seal_each_round_once() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let settings = ["aggregator.merge.rule=fedavg", "aggregator.round.max_staleness=1"].map(str::to_owned);
    for name in ["aggregator-a", "aggregator-b"] {
        world.aggregator(name, &settings).unwrap();
    }
    world.all_started().await.unwrap();
    let mut base = initial();
    let path = |release: &ReleaseId, world: &TestWorld| {
        world.folder().join(format!("releases/models/{}/{release}/weights.safetensors", model()))
    };
    let first = path(&base, &world);
    let mut bytes = until("the first release", PATIENCE, async || Ok(std::fs::read(&first).ok())).await.unwrap();
    let mut seen = Vec::new();
    for turn in 1..=4_u8 {
        let number = open(&world, &["--quorum", "2", "--grace-s", "0", "--deadline-s", "90"]).await;
        for site in ["a", "b"] {
            let mut own = bytes.clone();
            let end = own.len();
            // Another weight for each site and round.
            let value = f32::from(turn) * if site == "a" { 0.01 } else { 0.03 };
            own[end - 4..].copy_from_slice(&value.to_le_bytes());
            send(&world, site, number, &base, &own, |_| {}).await;
            let killed = if (turn % 2 == 0) == (site == "a") { "aggregator-a" } else { "aggregator-b" };
            world.worker_mut(killed).unwrap().restart().unwrap();
        }
        if turn == 3 {
            // Nobody is there for a while.
            world.worker_mut("aggregator-a").unwrap().kill().unwrap();
            world.worker_mut("aggregator-b").unwrap().restart().unwrap();
        }
        let (release, weights, updates) = sealed(&world, number).await;
        assert_eq!(updates, 2);
        assert!(!seen.contains(&release), "{release} again");
        if turn == 3 {
            world.worker_mut("aggregator-a").unwrap().restart().unwrap();
        }
        let again = command(&world, &["release", "verify", release.as_str()]).await;
        assert!(again.success, "{}", again.err);
        bytes = std::fs::read(path(&release, &world)).unwrap();
        let offered = Blobs::open_in_cloud(&world.cloud).await.unwrap().fetch_blob(&weights, 1 << 20).await.unwrap();
        assert_eq!(offered, bytes, "what sites can fetch is what was sealed");
        seen.push(release.clone());
        base = release;
    }
    let ends = reader::stream_level(&world.cloud, topology::UPDATES).await.unwrap().last_sequence;
    let mut ended = Vec::new();
    let stretch =
        reader::StreamRange { subjects: vec![subject::rounds(&model(), "ended")], ..reader::StreamRange::default() };
    reader::read_range(&world.cloud, topology::UPDATES, stretch, ends, |record| ended.push(record.subject))
        .await
        .unwrap();
    assert_eq!(ended.len(), 4, "{ended:?}");
}

#[tokio::test]
async fn a_store_that_is_away_delays_a_round_and_loses_nothing() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    world.aggregator("aggregator", &["aggregator.merge.rule=fedavg".to_owned()]).unwrap();
    world.all_started().await.unwrap();
    let base = initial();
    let models = world.folder().join("releases/models");
    let path = models.join(format!("{}/{base}/weights.safetensors", model()));
    let bytes = until("the first release", PATIENCE, async || Ok(std::fs::read(&path).ok())).await.unwrap();
    let number = open(&world, &["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"]).await;
    until("an open round", PATIENCE, async || Ok(rounds(&world).await.filter(|report| report.round == number)))
        .await
        .unwrap();
    // A file is where the store's folder should be.
    let aside = world.folder().join("aside");
    std::fs::rename(&models, &aside).unwrap();
    std::fs::write(&models, b"").unwrap();
    let mut own = bytes.clone();
    let end = own.len();
    own[end - 4..].copy_from_slice(&0.5_f32.to_le_bytes());
    send(&world, "a", number, &base, &own, |_| {}).await;
    let said = until("a reason", LONG, async || {
        Ok(rounds(&world).await.filter(|report| report.state == RoundState::Failed).map(|report| report.why))
    });
    let said = said.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(said.contains("retrying"), "{said}");
    std::fs::remove_file(&models).unwrap();
    std::fs::rename(&aside, &models).unwrap();
    let (release, _, updates) = sealed(&world, number).await;
    assert_eq!((updates, release == base), (1, false));
}

#[tokio::test]
async fn without_being_asked_updates_are_merged_as_soon_as_there_are_enough_and_old_ones_count_less() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let settings = [
        "merge.rule=fedavg",
        "round.accept_unsolicited=true",
        "round.max_staleness=2",
        "round.every_s=0",
        "round.grace_s=0",
    ];
    world.aggregator("aggregator", &settings.map(|pair| format!("aggregator.{pair}"))).unwrap();
    world.all_started().await.unwrap();
    let first = initial();
    let path = world.folder().join(format!("releases/models/{}/{first}/weights.safetensors", model()));
    let bytes = until("the first release", PATIENCE, async || Ok(std::fs::read(&path).ok())).await.unwrap();
    let own = |value: f32| {
        let mut own = bytes.clone();
        let end = own.len();
        own[end - 4..].copy_from_slice(&value.to_le_bytes());
        own
    };
    send(&world, "a", 0, &first, &own(0.5), |_| {}).await;
    send(&world, "b", 0, &first, &own(0.25), |_| {}).await;
    let (release, weights, updates) = sealed(&world, 1).await;
    assert_eq!(updates, 2);
    let merged = Blobs::open_in_cloud(&world.cloud).await.unwrap().fetch_blob(&weights, 1 << 20).await.unwrap();
    assert_eq!(merged[merged.len() - 4..], 0.375_f32.to_le_bytes());
    // One starts from the new release, the other still from the first.
    send(&world, "a", 0, &release, &merged, |_| {}).await;
    send(&world, "b", 0, &first, &own(0.5), |_| {}).await;
    let (release, _, _) = sealed(&world, 2).await;
    let manifest = manifest(&world, &release).await;
    assert_eq!(manifest["made"]["updates"][1]["behind"], 1);
    let share = |place: usize| manifest["made"]["record"]["parts"][place]["share"].as_f64().unwrap();
    // 1 and 1 / sqrt(2), as shares of their sum.
    assert!((share(0) - 0.5858).abs() < 1e-3 && (share(1) - 0.4142).abs() < 1e-3, "{manifest:#}");
    let again = command(&world, &["release", "verify", release.as_str()]).await;
    assert!(again.success, "{}", again.err);
}

#[tokio::test]
async fn rounds_that_gain_nothing_stop_until_a_site_learned_something_new() {
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    let public = format!("aggregator.public={}", public(world.folder(), 9).display());
    let settings =
        ["round.every_s=0", "round.quorum=1", "round.grace_s=0", "round.stop_after=2", "merge.candidates=[\"fedavg\"]"];
    let mut settings = settings.map(|pair| format!("aggregator.{pair}")).to_vec();
    settings.push(public);
    world.aggregator("aggregator", &settings).unwrap();
    world.all_started().await.unwrap();
    let first = initial();
    let path = world.folder().join(format!("releases/models/{}/{first}/weights.safetensors", model()));
    // What a site learned is what it knew before, but for the last number.
    let mut bytes = until("the first release", PATIENCE, async || Ok(std::fs::read(&path).ok())).await.unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&0.01_f32.to_le_bytes());
    for number in 1..=2 {
        opened(&world, number).await;
        send(&world, "a", number, &first, &bytes, |_| {}).await;
        let RoundEvent::Failed(note) = ended(&world, number).await else { panic!("round {number} made a release") };
        assert_eq!(note.kind, FaultKind::NothingGained, "{note:?}");
        assert!(note.reason.contains("its weakest class is"), "{note:?}");
    }
    stops(&world, None).await;
    send(&world, "a", 0, &first, &bytes, |_| {}).await;
    opened(&world, 3).await;
    for number in 3..=4 {
        opened(&world, number).await;
        send(&world, "a", number, &first, &bytes, |_| {}).await;
        assert!(matches!(ended(&world, number).await, RoundEvent::Failed(_)));
    }
    let worker = stops(&world, None).await;
    // Nor does one that is started anew begin again, though it reads once more what a site had learned before.
    world.worker_mut("aggregator").unwrap().restart().unwrap();
    stops(&world, Some(worker)).await;
    assert!(
        reader::last_message(&world.cloud, topology::UPDATES, &subject::round(&model(), 5, "opened"))
            .await
            .unwrap()
            .is_none()
    );
}

/// Waits until a round is open.
async fn opened(world: &TestWorld, number: u64) {
    let slot = subject::round(&model(), number, "opened");
    let opened =
        until("a round", LONG, async || Ok(reader::last_message(&world.cloud, topology::UPDATES, &slot).await?));
    opened.await.unwrap_or_else(|error| panic!("round {number}: {error:#}\n{}", world.log_tails()));
}

/// Waits until an aggregator, another than this one, says that it opens no round any more; its name.
async fn stops(world: &TestWorld, other_than: Option<String>) -> String {
    let stopped = async || {
        let beats = fleet::live_workers(&world.cloud).await?;
        let others = beats.into_iter().filter(|beat| Some(&beat.worker) != other_than.as_ref());
        Ok(others
            .filter_map(|beat| Some((beat.worker, beat.rounds?)))
            .find(|(_, rounds)| rounds.state == RoundState::Stopped))
    };
    let stopped = until("rounds stop", LONG, stopped).await;
    let (worker, rounds) = stopped.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(rounds.why.contains("rounds in a row gained nothing"), "{}", rounds.why);
    worker
}

#[tokio::test]
async fn weights_that_stay_at_the_sites_are_not_sent_and_labels_are_taken_back_from_releases_and_rounds() {
    let plan = WorldPlan::default()
        .set("trainer.collect.min_new_images=1000000")
        .set("trainer.epochs=1")
        .set("trainer.holdout_ratio=0.2");
    let mut world = TestWorld::start(plan).await.unwrap();
    world.untrained_recognizer("recognizer", 0).unwrap();
    world.courier("courier", 0).unwrap();
    world.verifier("verifier").unwrap();
    let settings = ["merge.rule=fedavg", "round.local=[\"*bias*\"]"].map(|pair| format!("aggregator.{pair}"));
    world.aggregator("aggregator", &settings).unwrap();
    world.all_started().await.unwrap();
    let mut labelled = Vec::new();
    for (label, pictures) in pictures("site").into_iter().take(4) {
        for picture in pictures.iter().take(8) {
            let (bytes, name) = (std::fs::read(picture).unwrap(), world.site(0).name.clone());
            let task = publish(world.bus(0), &name, &bytes, &[(HEADER_LABEL, &label)]).await;
            outcome(world.bus(0), &name, task).await.unwrap();
            labelled.push((task, label.clone()));
        }
    }
    world.trainer("trainer", 0).unwrap();
    let mut releases = Vec::new();
    for number in 1..=2_u64 {
        let local = ["--set", "aggregator.round.local=[\"*bias*\"]"];
        let more = [&["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"], &local[..]].concat();
        assert_eq!(open(&world, &more).await, number);
        let (release, _, updates) = sealed(&world, number).await;
        assert_eq!(updates, 1);
        let diff = command(&world, &["release", "diff", initial().short(), release.short(), "--json"]).await;
        let diff: Vec<Value> = serde_json::from_str(&diff.out).unwrap_or_else(|error| panic!("{error}: {}", diff.err));
        for tensor in diff {
            let is_local = tensor["tensor"].as_str().unwrap().contains("bias");
            assert_eq!(tensor["rms_of_difference"] == 0.0, is_local, "round {number}: {tensor}");
        }
        releases.push(release);
    }
    assert!(world.folder().join("training-0/local.safetensors").is_file());
    take_back(&world, labelled, releases).await;
}

/// A command at the world's site, and what it says in JSON.
async fn at_site(world: &TestWorld, words: &[&str]) -> (CommandOutput, Value) {
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.extend(world.at(0));
    all.extend(["--set".into(), world.release_store()]);
    let said = run_for(world.folder(), &all, LONG).await.unwrap();
    let json = serde_json::from_str(&said.out).unwrap_or(Value::Null);
    (said, json)
}

/// How many images a site's update of a round learned from.
async fn images_of(world: &TestWorld, round: u64) -> u64 {
    let slot = subject::update(&model(), round, &world.site(0).name);
    let record = reader::last_message(&world.cloud, topology::UPDATES, &slot).await.unwrap().unwrap();
    decode::<Update>(&record.payload).unwrap().sources.values().sum()
}

/// One label among those of a site that learned from all of them in two rounds is taken back.
async fn take_back(world: &TestWorld, labelled: Vec<(schemas::TaskId, String)>, mut releases: Vec<ReleaseId>) {
    let (task, label) = &labelled[3];
    let task = task.to_string();
    let (said, _) = at_site(world, &["label", &task, label, "--by", "anna"]).await;
    assert!(said.success, "{}", said.err);
    // In a third round another site takes part.
    let base = releases.last().unwrap().clone();
    let path = world.folder().join(format!("releases/models/{}/{base}/weights.safetensors", model()));
    let mut own = std::fs::read(path).unwrap();
    let end = own.len();
    own[end - 4..].copy_from_slice(&0.5_f32.to_le_bytes());
    let number = open(world, &["--quorum", "2", "--grace-s", "0", "--deadline-s", "90"]).await;
    send(world, "farm", number, &base, &own, |_| {}).await;
    let (third, _, updates) = sealed(world, number).await;
    assert_eq!((number, updates), (3, 2));
    releases.push(third.clone());
    let all = labelled.len() as u64;
    assert_eq!(images_of(world, 3).await, all);

    let unknown = schemas::TaskId::new_random().to_string();
    let (refused, _) = at_site(world, &["label", "retract", &unknown, "--why", "mistaken"]).await;
    assert!(!refused.success && refused.err.contains("unknown task"), "{}", refused.err);
    let (refused, _) = at_site(world, &["label", "retract", "--labelled-by", "nobody", "--why", "mistaken"]).await;
    assert!(!refused.success && refused.err.contains("no label by"), "{}", refused.err);

    // Every update learned from it, and every release holds one of them.
    let retract = ["label", "retract", "--labelled-by", "anna", "--why", "mistaken", "--json"];
    let (said, named) = at_site(world, &retract).await;
    assert!(said.success, "{}", said.err);
    assert_eq!(named["retracted"], serde_json::json!([task]));
    assert_eq!(named["updates"].as_array().map(Vec::len), Some(3), "{named:#}");
    let mut found: Vec<String> = named["releases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|release| release["updates"].as_array().is_some_and(|updates| updates.len() == 1))
        .map(|release| release["release"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut expected: Vec<String> = releases.iter().map(ToString::to_string).collect();
    expected.sort();
    assert_eq!(found, expected, "{named:#}");

    // The next round starts without it.
    assert_eq!(open(world, &["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"]).await, 4);
    let (fourth, _, _) = sealed(world, 4).await;
    assert_eq!(images_of(world, 4).await, all - 1);
    let (said, named) = at_site(world, &["label", "retract", &task, "--dry-run", "--json"]).await;
    assert!(said.success, "{}", said.err);
    assert_eq!(named["updates"].as_array().map(Vec::len), Some(3), "{named:#}");
    let last = named["releases"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["release"], &last["through"]), (&fourth.as_str().into(), &third.as_str().into()), "{named:#}");

    // Where the release store is not the one, updates are named all the same.
    let elsewhere = world.folder().join("no-releases").display().to_string();
    let (said, _) = at_site(world, &["label", "retract", &task, "--dry-run", "--release-store", &elsewhere]).await;
    assert!(said.success && said.out.contains("is unknown here") && said.out.contains("round"), "{}", said.out);
    let (said, _) = at_site(world, &["label", "retract", &task, "--dry-run"]).await;
    let starts = format!("starts from release {}", third.short());
    assert!(said.out.contains("1 label would be retracted") && said.out.contains(&starts), "{}", said.out);

    remake(world, &third, &fourth).await;
}

/// A release of two sites is derived again without one of them.
async fn remake(world: &TestWorld, release: &ReleaseId, later: &ReleaseId) {
    let remake = async |without: &[&str]| {
        let words = ["release", "remake", release.short(), "--why", "mistaken", "--json"];
        let without = without.iter().flat_map(|without| ["--exclude", without]);
        command(world, &words.into_iter().chain(without).collect::<Vec<_>>()).await
    };
    for (without, says) in [
        (&["moon"][..], "has no update of site moon"),
        (&["site-1", "farm"], "nothing would be left"),
        (&["a site"], "is neither a site"),
        (&[&schemas::TaskId::new_random().to_string()], "whose label was retracted"),
    ] {
        let refused = remake(without).await;
        assert!(!refused.success && refused.err.contains(says), "{without:?}: {}", refused.err);
    }
    let said = remake(&["site-1"]).await;
    assert!(said.success, "{}", said.err);
    let said: Value = serde_json::from_str(&said.out).unwrap();
    let remade: ReleaseId = said["release"].as_str().unwrap().parse().unwrap();
    assert_eq!((&said["updates"], &said["still_learned_from_them"]), (&1.into(), &serde_json::json!([later.short()])));
    let manifest = manifest(world, &remade).await;
    assert_eq!((&manifest["stage"], &manifest["remade"]["of"]), (&"candidate".into(), &release.as_str().into()));
    assert_eq!(manifest["made"]["updates"].as_array().map(Vec::len), Some(1));
    assert_eq!(manifest["remade"]["without"][0]["site"], "site-1");
    let again = command(world, &["release", "verify", remade.as_str()]).await;
    assert!(again.success && again.out.contains("bit by bit"), "{}{}", again.out, again.err);
    // What learned from the label is what the site sent: the same release, which is known by now.
    let same = remake(&["labels"]).await;
    assert!(same.success, "{}", same.err);
    let same: Value = serde_json::from_str(&same.out).unwrap();
    assert_eq!((&same["release"], &same["is_new"]), (&remade.as_str().into(), &false.into()));
    let shown = command(world, &["release", "show", remade.short()]).await;
    let of = format!("from the updates of release {}: mistaken", release.short());
    assert!(shown.out.contains(&of) && shown.out.contains("of site site-1"), "{}{}", shown.out, shown.err);
    // The aggregator goes by it as well: a round that starts from it comes to a release.
    let withdrawn = command(world, &["release", "withdraw", later.as_str()]).await;
    assert!(withdrawn.success, "{}", withdrawn.err);
    let number = open(world, &["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"]).await;
    let (next, _, _) = sealed(world, number).await;
    assert_eq!(self::manifest(world, &next).await["parent"], remade.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_sealed_in_an_s3_bucket_and_one_that_is_away_delays_it() {
    let mut server = Seaweed::start().await.unwrap();
    let store = server.store(SECRET, &[]).unwrap();
    // This server makes a bucket of the first object that is put there.
    store.put_new("made", "bucket".into()).await.unwrap();
    let mut world = TestWorld::start(WorldPlan::default()).await.unwrap();
    world.environment = server.environment(SECRET);
    world.environment.push(("AWS_TIMEOUT".into(), "2s".into()));
    let settings = ["aggregator.merge.rule=fedavg".to_owned(), format!("aggregator.store={URL}")];
    world.aggregator("aggregator", &settings).unwrap();
    world.all_started().await.unwrap();
    let base = initial();
    let path = format!("models/{}/{base}/weights.safetensors", model());
    let bytes = until("the first release", LONG, async || Ok(store.get(&path, 1 << 20).await?)).await;
    let bytes = bytes.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    let number = open(&world, &["--quorum", "1", "--grace-s", "0", "--deadline-s", "90"]).await;
    let mut own = bytes.to_vec();
    let end = own.len();
    own[end - 4..].copy_from_slice(&0.5_f32.to_le_bytes());
    // Frozen: it takes what is sent and never answers.
    server.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    send(&world, "a", number, &base, &own, |_| {}).await;
    let said = until("a reason", LONG, async || {
        Ok(rounds(&world).await.filter(|report| report.state == RoundState::Failed).map(|report| report.why))
    });
    let said = said.await.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_tails()));
    assert!(said.contains("retrying") && !said.contains(SECRET), "{said}");
    server.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    let (release, weights, _) = sealed(&world, number).await;
    let manifest = store.get(&format!("models/{}/{release}/manifest.json", model()), 1 << 20).await.unwrap().unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!((&manifest["parent"], &manifest["weights"]["sha256"]), (&base.as_str().into(), &weights.sha256.into()));
    let update = manifest["made"]["updates"][0]["weights"]["sha256"].as_str().unwrap();
    let kept = store.get(&format!("models/{}/updates/{update}.safetensors", model()), 1 << 20).await.unwrap();
    assert_eq!(kept.unwrap(), own);
    assert!(store.list(&format!("models/{}/rounds", model())).await.unwrap().len() == 1);
    server.kill().unwrap();
}
