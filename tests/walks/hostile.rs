//! Bytes from outside, bent at random: whatever reads them says no or yes, and never panics or takes more than it may. Each
//! parser has a corpus among the fixtures; a run repeats itself by its seed. `make soak` gives it millions of turns.

use std::path::{Path, PathBuf};

use autograd::onnx::Onnx;
use harness::program::{fixture, root};
use model_signature::{EcPrivateKey, EcPublicKey, verify_folder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replayer::Expression;
use schemas::{
    Answer, Beat, BlobRef, CameraName, DeadLetter, HardCase, Label, LearnedImages, Message, Order, ReleaseId, Rollout,
    Root, Round, SiteName, Swap, Task, TaskId, Update, Verdict, Verify, codec, decode,
};
use streams::subject::{self, Errand};
use vision::DecodeSettings;

const SEED: u64 = 20_264;

/// Turns of the fastest parsers; the slow ones get shares of it.
fn turns() -> usize {
    std::env::var("TRIBUTARY_HOSTILE_TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(20_000)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn corpus(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let named = |path: &PathBuf| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending));
    let found: Vec<Vec<u8>> = files(&root().join("fixtures").join(folder))
        .iter()
        .filter(|path| named(path))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(!found.is_empty(), "{folder} {endings:?}");
    found
}

/// Numbers that break things.
const EDGES: [u8; 10] = [0, 1, 0x7f, 0x80, 0xc1, 0xca, 0xcb, 0xdd, 0xdf, 0xff];

/// Bends some bytes: single ones, lengths, pieces cut out, doubled, put in from another.
fn bend(bytes: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bent = bytes.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bent.len());
        let end = (at + rng.random_range(0..16)).min(bent.len());
        match rng.random_range(0..8) {
            0 if at < bent.len() => bent[at] ^= 1 << rng.random_range(0..8),
            1 if at < bent.len() => bent[at] = EDGES[rng.random_range(0..EDGES.len())],
            2 => bent.truncate(at),
            3 => drop(bent.drain(at..end)),
            4 => bent
                .splice(at..at, bytes[at.min(bytes.len())..].iter().take(32).copied().collect::<Vec<u8>>())
                .for_each(drop),
            5 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                bent.splice(at..end, other[from..].iter().take(24).copied().collect::<Vec<u8>>()).for_each(drop);
            }
            6 if at + 8 <= bent.len() => bent[at..at + 8].copy_from_slice(&[0xff; 8]),
            _ => bent.insert(at, rng.random()),
        }
    }
    bent
}

/// Gives a parser the corpus as it is and then bent; returns how often it was called.
fn bend_all(corpus: &[Vec<u8>], turns: usize, mut parse: impl FnMut(&[u8]) -> usize) -> usize {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut calls: usize = corpus.iter().map(|bytes| parse(bytes)).sum();
    for _ in 0..turns {
        let (one, other) = (rng.random_range(0..corpus.len()), rng.random_range(0..corpus.len()));
        let bent = bend(&corpus[one], &corpus[other], &mut rng);
        calls += parse(&bent);
    }
    calls
}

/// What is understood can be written and understood again, as the same.
fn message<M: Message>(bytes: &[u8]) {
    if let Ok(read) = decode::<M>(bytes) {
        let written = codec::encode(&read).expect("what was read can be written");
        decode::<M>(&written).expect("and read again");
    }
}

#[test]
fn messages_that_were_bent_are_read_or_refused() {
    let kinds: [fn(&[u8]); 15] = [
        message::<Answer>,
        |bytes| {
            if let Ok(beat) = decode::<Beat>(bytes) {
                let _either_way = beat.check();
            }
        },
        message::<DeadLetter>,
        message::<HardCase>,
        message::<Label>,
        message::<LearnedImages>,
        message::<Order>,
        message::<Rollout>,
        message::<Root>,
        message::<Round>,
        message::<Swap>,
        message::<Update>,
        message::<Verdict>,
        message::<Verify>,
        |bytes| drop(codec::show(bytes)),
    ];
    let calls = bend_all(&corpus("wire", &[".msgpack"]), turns(), |bytes| {
        kinds.iter().for_each(|kind| kind(bytes));
        kinds.len()
    });
    println!("messages: {calls} calls");
}

#[test]
fn texts_that_were_bent_are_read_or_refused() {
    let corpus: Vec<Vec<u8>> = [
        "image.reef.cam-1",
        "answer.final.reef.cam-1.0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "pin.set.reef.cam-1.0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "outbox.reef.verify",
        "frigate/+/+/snapshot",
        "2026-11-30T12:00:00+02:00",
        "0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6",
        "hard and (confidence < 0.5 or not label = \"a b\") and camera in (\"x\", \"y\")",
        "((((((((((not not labelled))))))))))",
        "count(label) > 2 and time > 1h",
        "ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1ab89aefb0cd1abcd",
        "\u{fc}\u{df}\u{1f41f} 10 % \u{0}",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let site: SiteName = "reef".parse().unwrap();
    let stored = || schemas::task::Stored {
        site: "reef".parse().unwrap(),
        camera: "cam-1".parse().unwrap(),
        sequence: 1,
        stored_at_ns: 1,
    };
    let calls = bend_all(&corpus, 2 * turns(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _read = (
            subject::read_image(&text).is_ok(),
            subject::read_finality(&text).is_ok(),
            subject::read_pin(&text).is_ok(),
            subject::check_pattern(&text).is_ok(),
            subject::check_replay(&text).is_ok(),
            subject::may_come_again("IMAGES", &site, &text),
            subject::may_go(Errand::Verify, &site, &text),
            subject::map_topic(&site, &text, "$1").is_ok(),
            Errand::read(&text).is_ok(),
        );
        let _parsed = (
            text.parse::<SiteName>().is_ok(),
            text.parse::<CameraName>().is_ok(),
            text.parse::<TaskId>().is_ok(),
            text.parse::<ReleaseId>().is_ok(),
            text.parse::<BlobRef>().is_ok(),
            Expression::parse(&text).is_ok(),
            serde_json::from_str::<Root>(&text).is_ok(),
        );
        // Every header of a task at once, each with this value.
        let _task = Task::read(&stored(), |_| Some(&text), bytes).is_ok();
        17
    });
    println!("texts: {calls} calls");
}

#[test]
fn signatures_and_keys_that_were_bent_are_refused_or_say_the_same() {
    let (folder, at) = (fixture("model_signature/model"), tempfile::tempdir().unwrap());
    let signature = at.path().join("model.sig");
    let keys = [EcPublicKey::read(&fixture("model_signature/keys/public.pem")).unwrap()];
    let signed = |bytes: &[u8]| {
        std::fs::write(&signature, bytes).unwrap();
        let verified = verify_folder(&folder, &signature, &keys).ok()?;
        Some(verified.files().map(str::to_owned).collect::<Vec<_>>())
    };
    let whole = signed(&std::fs::read(fixture("model_signature/model.sig")).unwrap());
    assert!(whole.is_some());
    let signatures = bend_all(&corpus("model_signature", &["model.sig", "shards.sig"]), turns() / 4, |bytes| {
        assert!([&None, &whole].contains(&&signed(bytes)));
        1
    });
    let keys = bend_all(&corpus("model_signature/keys", &[".pem"]), turns(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _read = (EcPublicKey::from_pem(&text).is_ok(), EcPrivateKey::from_pem(&text).is_ok());
        2
    });
    println!("signatures: {signatures} calls, keys: {keys}");
}

#[test]
fn images_that_were_bent_are_decoded_or_refused_within_their_limits() {
    let mut corpus =
        corpus("images/field", &[".jpg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"]);
    corpus.retain(|bytes| bytes.len() < 200_000);
    let settings = DecodeSettings {
        max_bytes: 1 << 20,
        max_side_px: 4096,
        max_pixels: 4 << 20,
        max_memory_bytes: 64 << 20,
        ..DecodeSettings::default()
    };
    let calls = bend_all(&corpus, turns() / 40, |bytes| {
        if let Ok(pixels) = vision::decode(bytes, &settings) {
            assert!(pixels.width_px.max(pixels.height_px) <= settings.max_side_px);
        }
        let _end = vision::reaches_end(bytes);
        let _size = vision::dimensions(bytes).is_ok();
        3
    });
    println!("images: {calls} calls of {} files", corpus.len());
}

#[test]
fn graphs_and_descriptions_that_were_bent_are_read_or_refused() {
    let mut graphs = corpus("forms", &[".onnx"]);
    graphs.extend(corpus("models", &[".onnx"]));
    graphs.retain(|bytes| bytes.len() < 200_000);
    let calls = bend_all(&graphs, turns() / 10, |bytes| {
        let _read = Onnx::decode(bytes).is_ok();
        1
    });
    println!("graphs: {calls} calls of {} files", graphs.len());
    // A model's folder: each of its texts, beside its own graph.
    let folder = tempfile::tempdir().unwrap();
    for name in ["forms/logits", "forms/hf-softmax-inside", "forms/several-labels"] {
        let from = root().join("fixtures").join(name);
        let into = folder.path().join("model");
        std::fs::create_dir_all(&into).unwrap();
        let mut texts = Vec::new();
        for path in files(&from) {
            let name = path.strip_prefix(&from).unwrap().to_owned();
            std::fs::create_dir_all(into.join(&name).parent().unwrap()).unwrap();
            std::fs::copy(&path, into.join(&name)).unwrap();
            if ["toml", "json", "txt"].iter().any(|ending| path.extension().is_some_and(|found| found == *ending)) {
                texts.push((name, std::fs::read(&path).unwrap()));
            }
        }
        for (name, text) in &texts {
            bend_all(std::slice::from_ref(text), turns() / 400, |bytes| {
                std::fs::write(into.join(name), bytes).unwrap();
                let _loaded = vision::Model::load(&into).is_ok();
                1
            });
            std::fs::write(into.join(name), text).unwrap();
        }
        std::fs::remove_dir_all(&into).unwrap();
    }
    assert!(vision::Model::load(&fixture("models/fashion-light")).is_ok());
}
