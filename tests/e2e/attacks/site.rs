//! What a site can do in the cloud and to others that has its own rights there and no others.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use harness::odd_images;
use harness::pictures::{first_picture, nth_picture};
use runtime::site_key::SiteKey;
use schemas::swap::{Agreement, AgreementCount, ReleaseCounts};
use schemas::task::StorageStamp;
use schemas::{
    Answer, AnswerStage, BlobRef, FaultNote, HardCase, Hardness, Message, ModelAccuracy, ModelName, Order, Payload,
    Prediction, RankedClass, Reason, ReleaseId, Route, SiteName, Swap, Task, TaskId, Update, VerifyReason,
    VerifyRequest, WeightFormat, encode,
};
use sha2::{Digest, Sha256};
use streams::{subject, topology};

use super::camera::headers;
use super::raw_client::RawPublication;
use super::table::{Action, ActionOutcome};

/// Everything that is known of the foe's site and of whom it attacks.
pub(super) struct Foe {
    /// Its own name.
    pub own: SiteName,
    /// Another's.
    pub other: SiteName,
    /// What sites run.
    pub release: ReleaseId,
    /// The model that rounds are about.
    pub model: ModelName,
    /// Its first release.
    pub base: ReleaseId,
    /// With what it signs.
    pub key: SiteKey,
    /// With what it should not.
    pub strangers: SiteKey,
    /// Milliseconds since the epoch.
    pub now_ms: u64,
}

fn shot(subject: impl Into<String>, payload: impl Into<Bytes>) -> RawPublication {
    RawPublication { subject: subject.into(), payload: payload.into(), ..RawPublication::default() }
}

fn encoded<M: Message>(message: &M) -> Vec<u8> {
    encode(message).unwrap()
}

/// The same bytes with one text in the place of another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut some = false;
    for at in 0..bytes.len().saturating_sub(from.len()) {
        if bytes[at..].starts_with(from.as_bytes()) {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            some = true;
        }
    }
    assert!(some, "{from} is not in the message");
    bytes
}

/// Payloads that are no message.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("zeros", vec![0; 1000]),
        ("a text", b"let me in".to_vec()),
        ("arrays 100,000 deep", vec![0x91; 100_000]),
        ("maps 100,000 deep", [0x81, 0xa1, b'a'].repeat(100_000)),
        ("an array of 2^32 - 1", vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("a map of 2^32 - 1", vec![0xdf, 0xff, 0xff, 0xff, 0xff, 0xa4, b'k', b'i', b'n', b'd']),
        ("a text that says it has 4 GiB", vec![0x81, 0xdb, 0xff, 0xff, 0xff, 0xff, b'x']),
        ("1 MiB of 0xc1", vec![0xc1; 1 << 20]),
        ("JSON", b"{\"kind\":\"verify\",\"version\":1}".to_vec()),
    ]
}

impl Foe {
    fn task(&self, camera: &str) -> Task {
        let stored = StorageStamp {
            site: self.own.clone(),
            camera: camera.parse().unwrap(),
            sequence: 7,
            stored_at_ns: i128::from(self.now_ms) * 1_000_000,
        };
        Task::from_id(&stored, TaskId::new_random())
    }

    /// A request as its own courier would send it.
    fn request(&self, camera: &str, payload: Payload) -> VerifyRequest {
        let mut about = Answer::for_task(
            &self.task(camera),
            AnswerStage::Provisional,
            Route::Edge,
            Reason::LowConfidence,
            self.now_ms,
        );
        about.deadline_at_ms = Some(self.now_ms + 3_600_000);
        let opinion = Prediction {
            label: "bag".into(),
            confidence: 0.4,
            top: vec![RankedClass { label: "bag".into(), confidence: 0.4 }],
            labels: None,
            objects: None,
            release: self.release.clone(),
            temperature: None,
            novelty: None,
        };
        let provisional = about.with_prediction(opinion);
        VerifyRequest {
            reason: VerifyReason::Doubtful,
            payload,
            provisional,
            hardness: None,
            ticket: Some(vec![7; 32]),
        }
    }

    fn picture(&self, camera: &str) -> VerifyRequest {
        self.request(camera, Payload::Image(nth_picture(false, 1).unwrap().bytes.to_vec().into()))
    }

    fn verify_subject(&self) -> String {
        format!("verify.doubtful.{}.foe", self.own)
    }

    fn asks(&self, name: &str, expected: ActionOutcome, change: impl FnOnce(&mut VerifyRequest)) -> Action {
        let mut request = self.picture("foe");
        change(&mut request);
        Action::new(name, shot(self.verify_subject(), encoded(&request)), expected)
    }

    /// Requests for verdicts.
    pub(super) fn requests(&self) -> Vec<Action> {
        let misdirected = || ActionOutcome::dead("verify_misdirected");
        let unreadable = || ActionOutcome::dead("message_unreadable");
        let sent = topology::sent_blobs(&self.other);
        let mut actions = vec![
            self.asks("a request of its own", ActionOutcome::Verdict, |_| {}),
            self.asks("a request that names another site", misdirected(), |request| {
                request.provisional.site = self.other.clone();
            }),
            self.asks("one that names the cloud", misdirected(), |request| {
                request.provisional.site = SiteName::cloud()
            }),
            self.asks("one of a site that is none", misdirected(), |request| {
                request.provisional.site = "ghost".parse().unwrap();
            }),
            self.asks("one of another camera than its subject's", misdirected(), |request| {
                request.provisional.camera = "cam-1".parse().unwrap();
            }),
            self.asks("one for another reason than its subject's", misdirected(), |request| {
                request.reason = VerifyReason::Sampled;
            }),
            self.asks("with another release than any", ActionOutcome::Verdict, |request| {
                request.provisional.release = Some(ReleaseId::from_sha256([9; 32]));
            }),
            self.asks("without any opinion", ActionOutcome::Verdict, |request| {
                (request.provisional.label, request.provisional.confidence) = (None, None);
            }),
            self.asks("with a confidence that is none", unreadable(), |request| {
                request.provisional.confidence = Some(f32::NAN);
            }),
            self.asks("with a confidence of infinity", unreadable(), |request| {
                request.provisional.confidence = Some(f32::INFINITY);
            }),
            self.asks("with a confidence of 10^38", ActionOutcome::Verdict, |request| {
                request.provisional.confidence = Some(1e38);
            }),
            self.asks("with a hardness that is none", unreadable(), |request| {
                request.hardness = Some(Hardness { entropy_ratio: f32::NAN, features: None });
            }),
            self.asks("with features one of which is none", unreadable(), |request| {
                request.hardness = Some(Hardness { entropy_ratio: 0.5, features: Some(vec![1.0, f32::NEG_INFINITY]) });
            }),
            self.asks("with 100,000 features for a hard case", ActionOutcome::Verdict, |request| {
                request.hardness = Some(Hardness { entropy_ratio: 0.5, features: Some(vec![1.0; 100_000]) });
            }),
            self.asks("with 20,000 best classes", ActionOutcome::Verdict, |request| {
                request.provisional.top = vec![RankedClass { label: "x".into(), confidence: 2.0 }; 20_000];
            }),
            self.asks("with a label of 1 MiB", ActionOutcome::Verdict, |request| {
                request.provisional.label = Some("l".repeat(1 << 20));
            }),
            self.asks("with a true label of terminal escapes", ActionOutcome::Verdict, |request| {
                request.provisional.truth = Some("\u{1b}[2J\u{202e}".into());
            }),
            self.asks("with a file like a path", ActionOutcome::Verdict, |request| {
                request.provisional.file = Some("../../../../etc/passwd".into());
            }),
            self.asks("with 10,000 notes", ActionOutcome::Verdict, |request| {
                request.provisional.notes = vec!["note".into(); 10_000];
            }),
            self.asks("with a fault of 1 MiB", ActionOutcome::Verdict, |request| {
                let reason = "r".repeat(1 << 20);
                request.provisional.fault = Some(FaultNote { kind: "x".into(), reason, remedy: String::new() });
            }),
            self.asks("whose deadline is over", ActionOutcome::Verdict, |request| {
                request.provisional.deadline_at_ms = Some(0)
            }),
            self.asks("whose deadline never comes", ActionOutcome::Verdict, |request| {
                request.provisional.deadline_at_ms = Some(u64::MAX);
            }),
            self.asks("of image 2^64 - 1", ActionOutcome::Verdict, |request| {
                request.provisional.image_sequence = u64::MAX
            }),
            self.asks("that took 2^64 - 1 microseconds", ActionOutcome::Verdict, |request| {
                request.provisional.timings.queue_us = u64::MAX;
                request.provisional.timings.infer_us = u64::MAX;
                request.provisional.timings.batch_size = u32::MAX;
            }),
            self.asks("answered in the year 584,556,019", ActionOutcome::Verdict, |request| {
                request.provisional.answered_at_ms = u64::MAX;
                request.provisional.published_at_ms = u64::MAX;
            }),
            self.asks("that is a final answer already", ActionOutcome::Verdict, |request| {
                request.provisional.stage = AnswerStage::Final;
            }),
            self.asks("that was answered dead", ActionOutcome::Verdict, |request| {
                request.provisional.route = Route::Dead
            }),
            self.asks("without a ticket", ActionOutcome::Verdict, |request| request.ticket = None),
            self.asks("with an empty ticket", ActionOutcome::Verdict, |request| request.ticket = Some(Vec::new())),
            self.asks("with a ticket of 1 MiB", ActionOutcome::Verdict, |request| {
                request.ticket = Some(vec![1; 1 << 20])
            }),
            self.asks("of task zero", ActionOutcome::Verdict, |request| {
                request.provisional.task = "00000000-0000-0000-0000-000000000000".parse().unwrap();
            }),
            self.asks("with no picture", ActionOutcome::dead("image_empty"), |request| {
                request.payload = Payload::Image(Vec::new().into());
            }),
            self.asks("with a text for a picture", ActionOutcome::dead("image_unknown_format"), |request| {
                request.payload = Payload::Image(b"I am a picture".to_vec().into());
            }),
            self.asks("with half a picture", ActionOutcome::dead("image_*"), |request| {
                let whole = first_picture(false).unwrap().bytes.clone();
                request.payload = Payload::Image(whole[..whole.len() / 2].to_vec().into());
            }),
            self.asks("with a PNG of 20,000 x 20,000", ActionOutcome::dead("image_side_too_long"), |request| {
                request.payload = Payload::Image(odd_images::png_bomb(20_000).into());
            }),
            self.asks("with 2 MiB behind a picture", ActionOutcome::Verdict, |request| {
                let mut bytes = first_picture(false).unwrap().bytes.to_vec();
                bytes.resize(2 << 20, 0);
                request.payload = Payload::Image(bytes.into());
            }),
            self.asks("with 8 MiB of zeros for a picture", ActionOutcome::dead("image_unknown_format"), |request| {
                request.payload = Payload::Image(vec![0; 8_000_000].into());
            }),
            self.asks("with features for a verifier without a head", ActionOutcome::dead("head_missing"), |request| {
                request.payload = Payload::Features(vec![0.5; 64]);
            }),
            self.asks("with a million features", ActionOutcome::dead("head_missing"), |request| {
                request.payload = Payload::Features(vec![0.5; 1_000_000]);
            }),
            self.asks("with features that are none", unreadable(), |request| {
                request.payload = Payload::Features(vec![f32::NAN; 8]);
            }),
            self.asks("with a reference to nothing", ActionOutcome::dead("blob_bad"), |request| {
                request.payload = Payload::Blob(BlobRef::new([3; 32], 100));
            }),
            self.asks("with a reference of 2^64 - 1 bytes", ActionOutcome::dead("blob_bad"), |request| {
                request.payload = Payload::Blob(BlobRef::new([3; 32], u64::MAX));
            }),
            self.asks("with a reference of no bytes", ActionOutcome::dead("blob_bad"), |request| {
                request.payload = Payload::Blob(BlobRef::new([3; 32], 0));
            }),
        ];
        let with_blob = self.request("foe", Payload::Blob(BlobRef::new([0xab; 32], 100)));
        let path = format!("../{sent}/{:0<64}", "")[..64].to_owned();
        let pathlike = replaced(&encoded(&with_blob), &"ab".repeat(32), &path);
        actions.push(Action::new("with a path for a digest", shot(self.verify_subject(), pathlike), unreadable()));
        let other_reason = shot(format!("verify.whatever.{}.foe", self.own), encoded(&self.picture("foe")));
        actions.push(Action::new("on a subject of a reason that is none", other_reason, misdirected()));
        let sampled = VerifyRequest { reason: VerifyReason::Sampled, ..self.picture("foe") };
        let sampled = shot(format!("verify.sampled.{}.foe", self.own), encoded(&sampled));
        actions.push(Action::new("one that says it is sure", sampled, ActionOutcome::Verdict));
        let overload = VerifyRequest { reason: VerifyReason::Overload, ..self.picture("foe") };
        let overload = shot(format!("verify.overload.{}.foe", self.own), encoded(&overload));
        actions.push(Action::new("one for want of time", overload, ActionOutcome::Verdict));
        for camera in ["k\u{fc}che", "*", &"c".repeat(300)] {
            let subject = format!("verify.doubtful.{}.{camera}", self.own);
            let name = format!("of a camera whose name is none ({} bytes)", camera.len());
            actions.push(Action::new(name, shot(subject, encoded(&self.picture("foe"))), misdirected()));
        }
        for (what, bytes) in garbage() {
            actions.push(Action::new(
                format!("{what} for a request"),
                shot(self.verify_subject(), bytes),
                unreadable(),
            ));
        }
        let whole = encoded(&self.picture("foe"));
        for share in [1, 2, 4, 6, 7] {
            let cut = whole[..whole.len() * share / 8].to_vec();
            actions.push(Action::new(
                format!("{share} eighths of a request"),
                shot(self.verify_subject(), cut),
                unreadable(),
            ));
        }
        let other_kind = replaced(&whole, "verify", "update");
        actions.push(Action::new(
            "a request that says it is an update",
            shot(self.verify_subject(), other_kind),
            unreadable(),
        ));
        let verdict = encoded(&self.picture("foe").provisional);
        actions.push(Action::new("an answer for a request", shot(self.verify_subject(), verdict), unreadable()));
        let large = vec![0xc4; schemas::limits::MAX_MESSAGE_BYTES - 200];
        actions.push(Action::new("the largest message there is", shot(self.verify_subject(), large), unreadable()));
        let block = b"NATS/1.0\r\nX-Note: a\rb\r\nno colon\r\nX-\xe9: 1\r\n\r\n".to_vec();
        let odd_headers = RawPublication { headers: block, ..shot(self.verify_subject(), whole) };
        actions.push(Action::new("with headers that no client can parse", odd_headers, ActionOutcome::Verdict));
        actions
    }

    /// Objects in its bucket that are not what they say, and requests that refer to them.
    pub(super) fn blobs(&self) -> (Vec<Action>, Vec<Action>) {
        let bucket = topology::sent_blobs(&self.own);
        let (mut stored, mut asked) = (Vec::new(), Vec::new());
        let mut lie = |name: &str, number: u8, size: u64, described: String| {
            let blob = BlobRef::new([number; 32], size);
            let subject = format!("$O.{bucket}.M.{}", URL_SAFE.encode(&blob.key));
            let kept = Action::new(format!("an object {name}"), shot(subject, described), ActionOutcome::KeptAsItsOwn);
            stored.push(kept);
            let request = self.request("foe", Payload::Blob(blob));
            let asks = shot(self.verify_subject(), encoded(&request));
            asked.push(Action::new(format!("a request with an object {name}"), asks, ActionOutcome::dead("blob_bad")));
        };
        let describe = |size: u64, chunks: u64, nuid: &str, options: serde_json::Value| {
            serde_json::json!({
                "name": "x", "bucket": bucket, "nuid": nuid, "size": size, "chunks": chunks, "options": options,
            })
            .to_string()
        };
        let none = serde_json::Value::Null;
        let link = serde_json::json!({"link": {"bucket": bucket, "name": BlobRef::new([0xa0; 32], 100).key}});
        lie("that links to itself", 0xa0, 100, describe(100, 1, "x", link));
        lie("whose pieces are missing", 0xa1, 100, describe(100, 1, "nobody", none.clone()));
        lie("that says 2^60 bytes", 0xa2, 100, describe(1 << 60, 1, "nobody", none.clone()));
        lie("that says 2^64 - 1 pieces", 0xa3, 100, describe(100, u64::MAX, "nobody", none.clone()));
        lie("of 64 MiB that is not there", 0xa4, 64 << 20, describe(64 << 20, 512, "nobody", none.clone()));
        lie("whose pieces are named by a wildcard", 0xa5, 100, describe(100, 1, "*", none.clone()));
        lie("whose pieces are those of a path", 0xa6, 100, describe(100, 1, "../../x", none.clone()));
        lie("whose pieces have no name", 0xa7, 100, describe(100, 1, "", none));
        lie("described by a text", 0xa8, 100, "nonsense".into());
        lie("described by 1 MiB of brackets", 0xa9, 100, "[".repeat(1 << 20));
        lie("described by nothing", 0xaa, 100, String::new());
        lie("of another size than asked for", 0xab, 100, describe(99, 1, "x", serde_json::Value::Null));
        let other = topology::sent_blobs(&self.other);
        for (name, subject) in [
            ("a piece without an object", format!("$O.{bucket}.C.nobody2")),
            ("a piece of 8 MB", format!("$O.{bucket}.C.nobody3")),
        ] {
            let bytes = if name.contains("8 MB") { vec![1; 8_000_000] } else { vec![1; 1000] };
            stored.push(Action::new(name, shot(subject, bytes), ActionOutcome::KeptAsItsOwn));
        }
        for bucket in [other.as_str(), topology::CLOUD_BLOBS, topology::BLOBS] {
            for part in ["C.x", "M.x"] {
                let name = format!("a {} in bucket {bucket}", if part == "C.x" { "piece" } else { "description" });
                stored.push(Action::new(name, shot(format!("$O.{bucket}.{part}"), "x"), ActionOutcome::Refused));
            }
        }
        (stored, asked)
    }

    /// Hard cases. `others`: the message id of one of another site.
    pub(super) fn hard_cases(&self, others: &str) -> Vec<Action> {
        let case = |site: &SiteName, features: Option<Vec<f32>>| HardCase {
            task: TaskId::new_random(),
            site: site.clone(),
            camera: "foe".parse().unwrap(),
            release: self.base.clone(),
            reason: Reason::LowConfidence,
            top: vec![RankedClass { label: "bag".into(), confidence: 0.3 }],
            entropy_ratio: 0.9,
            features,
            image_sequence: u64::MAX,
            published_at_ms: u64::MAX,
            truth: Some("\u{1b}[2J".into()),
        };
        let own = format!("hardcase.{}", self.own);
        let kept =
            |name: &str, payload: Vec<u8>| Action::new(name, shot(own.clone(), payload), ActionOutcome::KeptAsItsOwn);
        let mut actions = vec![
            kept("a hard case of its own", encoded(&case(&self.own, None))),
            kept("a hard case under another's name", encoded(&case(&self.other, None))),
            kept("a hard case of the cloud's", encoded(&case(&SiteName::cloud(), None))),
            kept("a hard case with a million features", encoded(&case(&self.own, Some(vec![1.0; 1_000_000])))),
            kept("a hard case with features that are none", encoded(&case(&self.own, Some(vec![f32::NAN; 8])))),
            Action::many(
                "500 hard cases",
                (0..500).map(|_| shot(own.clone(), encoded(&case(&self.own, None)))).collect(),
                ActionOutcome::KeptAsItsOwn,
            ),
        ];
        for (what, bytes) in garbage() {
            actions.push(kept(&format!("{what} for a hard case"), bytes));
        }
        let taken = RawPublication {
            headers: headers(&[("Nats-Msg-Id", others)]),
            ..shot(own.clone(), encoded(&case(&self.own, None)))
        };
        actions.push(Action::new("a hard case under the message id of another site's", taken, ActionOutcome::Refused));
        let to_other = shot(format!("hardcase.{}", self.other), encoded(&case(&self.own, None)));
        actions.push(Action::new("a hard case on another's subject", to_other, ActionOutcome::Refused));
        actions
    }

    fn update(&self, round: u64, weights: BlobRef) -> Update {
        Update {
            site: self.own.clone(),
            model: self.model.clone(),
            round,
            base: self.base.clone(),
            weights,
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
        }
    }

    fn signed(&self, update: Update) -> Update {
        let signature = Some(self.key.sign(&update.signed_bytes().unwrap()));
        Update { signature, ..update }
    }

    fn update_subject(&self, round: u64) -> String {
        subject::update(&self.model, round, &self.own)
    }

    /// Updates that are refused before the site counts as heard in an open round.
    pub(super) fn updates(&self, round: u64) -> Vec<Action> {
        let weights = || BlobRef::new([0xcd; 32], 1000);
        let plain = || self.update(round, weights());
        let on = |name: &str, round: u64, payload: Vec<u8>, fault: &str| {
            Action::new(name, shot(self.update_subject(round), payload), ActionOutcome::dead(fault))
        };
        let stranger = |update: Update| {
            let signature = Some(self.strangers.sign(&update.signed_bytes().unwrap()));
            Update { signature, ..update }
        };
        let changed = |update: Update, change: fn(&mut Update)| {
            let mut update = self.signed(update);
            change(&mut update);
            update
        };
        let path = format!("../weights/{:x<64}", "")[..64].to_owned();
        let pathlike = replaced(&encoded(&plain()), &"cd".repeat(32), &path);
        let mut actions = vec![
            on("an update without a signature", round, encoded(&plain()), "signature_wrong"),
            on("one that a stranger signed", round, encoded(&stranger(plain())), "signature_wrong"),
            on(
                "one whose samples were changed after it was signed",
                round,
                encoded(&changed(plain(), |update| *update.samples.entry("bag".into()).or_default() = 9999)),
                "signature_wrong",
            ),
            on(
                "one whose weights were changed after it was signed",
                round,
                encoded(&changed(plain(), |update| update.weights = BlobRef::new([1; 32], 1))),
                "signature_wrong",
            ),
            on(
                "one with an empty signature",
                round,
                encoded(&Update { signature: Some(Vec::new()), ..plain() }),
                "signature_wrong",
            ),
            on(
                "one with a signature of 1 MiB",
                round,
                encoded(&Update { signature: Some(vec![1; 1 << 20]), ..plain() }),
                "update_unreadable",
            ),
            on(
                "one of another site",
                round,
                encoded(&self.signed(Update { site: self.other.clone(), ..plain() })),
                "update_misdirected",
            ),
            on(
                "one of another round than its subject's",
                round,
                encoded(&self.signed(self.update(round + 1, weights()))),
                "update_misdirected",
            ),
            on(
                "one of another model than its subject's",
                round,
                encoded(&self.signed(Update { model: ModelName::from_name("other"), ..plain() })),
                "update_misdirected",
            ),
            on(
                "one for a round far ahead",
                round + 1_000_000,
                encoded(&self.signed(self.update(round + 1_000_000, weights()))),
                "round_unknown",
            ),
            on(
                "one for round 2^64 - 1",
                u64::MAX,
                encoded(&self.signed(self.update(u64::MAX, weights()))),
                "round_unknown",
            ),
            on(
                "one that starts from a release that is none",
                round,
                encoded(&self.signed(Update { base: ReleaseId::from_sha256([9; 32]), ..plain() })),
                "base_unknown",
            ),
            on("one with a path for a digest", round, pathlike, "update_unreadable"),
            on(
                "one with a loss that is none",
                round,
                encoded(&self.signed(Update {
                    before: ModelAccuracy { images: 1, accuracy_ratio: 0.5, loss: f64::NAN },
                    ..plain()
                })),
                "update_unreadable",
            ),
            on(
                "one with an accuracy of infinity",
                round,
                encoded(&self.signed(Update {
                    after: ModelAccuracy { images: 1, accuracy_ratio: f64::INFINITY, loss: 0.0 },
                    ..plain()
                })),
                "update_unreadable",
            ),
        ];
        for (what, bytes) in garbage() {
            actions.push(on(&format!("{what} for an update"), round, bytes, "update_unreadable"));
        }
        // Of another model nobody reads any.
        for model in ["other", "-", "fashion-light"] {
            let update = self.signed(Update { model: ModelName::from_name(model), ..self.update(1, weights()) });
            let subject = subject::update(&update.model, 1, &self.own);
            let name = format!("an update of model {model}, which has no rounds");
            actions.push(Action::new(name, shot(subject, encoded(&update)), ActionOutcome::KeptAsItsOwn));
        }
        let letters = shot(format!("update.{}.one.{}", self.model, self.own), encoded(&self.signed(plain())));
        actions.push(Action::new("an update for round “one”", letters, ActionOutcome::dead("update_misdirected")));
        let unasked = shot(self.update_subject(0), encoded(&self.signed(self.update(0, weights()))));
        actions.push(Action::new("an update that no round asked for", unasked, ActionOutcome::KeptAsItsOwn));
        let forged = shot(subject::update(&self.model, round, &self.other), encoded(&self.signed(plain())));
        actions.push(Action::new("an update on another's subject", forged, ActionOutcome::Refused));
        let flood = (0..300).map(|number| {
            let update = self.update(round, BlobRef::new([number as u8; 32], number));
            shot(self.update_subject(round), encoded(&update))
        });
        let mut unsigned =
            Action::many("300 unsigned updates", flood.collect(), ActionOutcome::dead("signature_wrong"));
        // The stream keeps four of one subject: some are pushed out before anybody reads them.
        unsigned.expected.push(ActionOutcome::KeptAsItsOwn);
        actions.push(unsigned);
        actions
    }

    /// Updates of which the site is heard: each for a round of its own, that the test opens. `right`: weights that fit.
    pub(super) fn heard_updates(&self, right: &[u8]) -> Vec<ObservedUpdate> {
        let blob = |bytes: &[u8]| BlobRef::new(Sha256::digest(bytes).into(), bytes.len() as u64);
        let mut not_finite = right.to_vec();
        let end = not_finite.len();
        not_finite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        // Each value as large as it can be.
        let header = 8 + u64::from_le_bytes(right[..8].try_into().unwrap()) as usize;
        let mut far = right.to_vec();
        far[header..].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&1e30f32.to_le_bytes()));
        let mut says_more = right.to_vec();
        says_more[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let cut = right[..right.len() / 2].to_vec();
        let text = b"I am weights".to_vec();
        let with = |name: &str, weights: Option<Vec<u8>>, fault: &str, change: fn(&mut Update)| {
            let named = weights.as_deref().map_or(BlobRef::new([0xcd; 32], 1000), blob);
            ObservedUpdate { name: name.into(), weights, fault: fault.into(), named, change }
        };
        vec![
            with("weights that are not there", None, "weights_missing", |_| {}),
            with("weights of 2^64 - 1 bytes", None, "weights_too_large", |update| {
                update.weights = BlobRef::new([5; 32], u64::MAX);
            }),
            with("weights that are a text", Some(text), "weights_unreadable", |_| {}),
            with("half the weights", Some(cut), "weights_unreadable", |_| {}),
            with("weights whose head says 2^64 - 1", Some(says_more), "weights_unreadable", |_| {}),
            with("weights one of which is none", Some(not_finite), "weights_not_finite", |_| {}),
            with("weights far from the base", Some(far), "change_too_long", |_| {}),
            with("weights said to be 16 bits wide", Some(right.to_vec()), "tensor_of_other_type", |update| {
                update.form = WeightFormat::F16;
            }),
            with("learned from no image", Some(right.to_vec()), "samples_none", |update| update.samples.clear()),
            with("learned from 2^64 - 1 images, twice", Some(right.to_vec()), "samples_too_many", |update| {
                update.samples = [("bag".to_owned(), u64::MAX), ("coat".to_owned(), u64::MAX)].into();
            }),
            with("worse than what it started from", Some(right.to_vec()), "update_worse", |update| {
                update.before = ModelAccuracy { images: 1000, accuracy_ratio: 0.9, loss: 0.1 };
                update.after = ModelAccuracy { images: 1000, accuracy_ratio: 0.1, loss: 9.0 };
            }),
        ]
    }

    /// The message of one of those.
    pub(super) fn heard_shot(&self, heard: &ObservedUpdate, round: u64) -> RawPublication {
        let mut update = self.update(round, heard.named.clone());
        (heard.change)(&mut update);
        shot(self.update_subject(round), encoded(&self.signed(update)))
    }

    /// Between rounds: what may count in the next one waits for it.
    pub(super) fn waiting_updates(&self) -> Action {
        let shots = (0..64).map(|number: u64| {
            let mut update = self.update(0, BlobRef::new([0xce; 32], number));
            update.samples = (0..40_000).map(|label| (format!("{number}-{label}"), 1)).collect();
            shot(self.update_subject(0), encoded(&self.signed(update)))
        });
        let mut action = Action::many(
            "64 updates with 40,000 labels each, between rounds",
            shots.collect(),
            ActionOutcome::KeptAsItsOwn,
        );
        action.expected.push(ActionOutcome::dead("update_unreadable"));
        action
    }

    fn report(&self) -> Swap {
        Swap {
            site: self.own.clone(),
            worker: "foe".into(),
            model: self.model.clone(),
            release: self.base.clone(),
            since_ms: self.now_ms,
            order: 0,
            refused: Vec::new(),
            runtime: "1.0".into(),
            memory_free_mib: None,
            memory_mib: 100,
            site_labels: Vec::new(),
            slot_ms: self.now_ms,
            slot_length_ms: 600_000,
            said_at_ms: self.now_ms,
            counts: Vec::new(),
            left: false,
            agreements: Vec::new(),
        }
    }

    /// Reports of what it runs.
    pub(super) fn reports(&self) -> Vec<Action> {
        let own = format!("swap.{}.foe", self.own);
        let slot = std::cell::Cell::new(0);
        let says = |name: &str, change: &dyn Fn(&mut Swap)| {
            let mut swap = self.report();
            change(&mut swap);
            slot.set(slot.get() + 1);
            Action::new(name, shot(format!("{own}.{}", slot.get()), encoded(&swap)), ActionOutcome::KeptAsItsOwn)
        };
        let counts =
            |images, doubtful| ReleaseCounts { images, doubtful, ..ReleaseCounts::for_release(self.base.clone()) };
        let agreed = AgreementCount { asked: 1000, agreed: 1000 };
        let agreement = |site: &SiteName| Agreement {
            site: site.clone(),
            release: self.base.clone(),
            doubtful: agreed,
            sampled: agreed,
        };
        let mut actions = vec![
            says("a report of its own", &|_| {}),
            says("a report that names another site", &|swap| swap.site = self.other.clone()),
            says("a report of a site that is none", &|swap| swap.site = "ghost".parse().unwrap()),
            says("a report as of the cloud's verifier, with agreements", &|swap| {
                swap.site = SiteName::cloud();
                swap.agreements = vec![agreement(&self.own), agreement(&self.other)];
            }),
            says("a report of another worker than its subject's", &|swap| swap.worker = "other".into()),
            says("agreements of its own", &|swap| swap.agreements = vec![agreement(&self.other)]),
            says("2^64 - 1 images", &|swap| swap.counts = vec![counts(u64::MAX, u64::MAX)]),
            says("more doubtful images than images", &|swap| swap.counts = vec![counts(1, 1000)]),
            says("a sum that is none", &|swap| {
                let mut odd = counts(1, 0);
                odd.confidence.sum = f64::NAN;
                swap.counts = vec![odd];
            }),
            says("10,000 counts", &|swap| swap.counts = vec![counts(1, 0); 10_000]),
            says("a stretch that begins at 2^64 - 1", &|swap| swap.slot_ms = u64::MAX),
            says("a stretch of 2^64 - 1 ms", &|swap| swap.slot_length_ms = u64::MAX),
            says("a stretch of no time", &|swap| swap.slot_length_ms = 0),
            says("a stretch long ago", &|swap| swap.slot_ms = 0),
            says("said at 2^64 - 1", &|swap| swap.said_at_ms = u64::MAX),
            says("since 2^64 - 1", &|swap| swap.since_ms = u64::MAX),
            says("order 2^64 - 1", &|swap| swap.order = u64::MAX),
            says("2^64 - 1 MiB of memory", &|swap| {
                (swap.memory_mib, swap.memory_free_mib) = (u64::MAX, Some(u64::MAX));
            }),
            says("a release that is none", &|swap| swap.release = ReleaseId::from_sha256([9; 32])),
            says("a model of which nothing was decided", &|swap| swap.model = ModelName::from_name("nobody")),
            says("100,000 labels of its site", &|swap| swap.site_labels = vec!["reef".into(); 100_000]),
            says("a label of terminal escapes", &|swap| swap.site_labels = vec!["\u{1b}[2J".into()]),
            says("a version of 1 MiB", &|swap| swap.runtime = "9".repeat(1 << 20)),
            says("refused 5,000 releases", &|swap| {
                let fault = FaultNote::new(schemas::FaultKind::ReleaseCrashed, "it ended the worker", "");
                let refused = schemas::RefusedRelease { release: self.base.clone(), fault };
                swap.refused = vec![refused; 5000];
            }),
        ];
        for (what, bytes) in garbage() {
            actions.push(Action::new(
                format!("{what} for a report"),
                shot(format!("{own}.{what}").replace(' ', "-"), bytes),
                ActionOutcome::KeptAsItsOwn,
            ));
        }
        let models = (0..1500).map(|number| {
            let swap = Swap { model: ModelName::from_name(&format!("model-{number}")), ..self.report() };
            shot(format!("{own}.m{number}"), encoded(&swap))
        });
        actions.push(Action::many("1,500 models that do not exist", models.collect(), ActionOutcome::KeptAsItsOwn));
        let ghosts = (0..500).map(|number| {
            let swap = Swap { worker: format!("ghost-{number}"), ..self.report() };
            shot(format!("swap.{}.ghost-{number}.1", self.own), encoded(&swap))
        });
        actions.push(Action::many("500 workers that do not exist", ghosts.collect(), ActionOutcome::KeptAsItsOwn));
        for (name, subject) in [
            ("a report on another's subject", format!("swap.{}.foe.1", self.other)),
            ("a report on the cloud's subject", "swap.cloud.foe.1".into()),
        ] {
            actions.push(Action::new(name, shot(subject, encoded(&self.report())), ActionOutcome::Refused));
        }
        actions
    }

    /// What it has no right to, and what of its own it asks for oddly.
    pub(super) fn rights(&self, domain: &str) -> Vec<Action> {
        let (own, other, model) = (&self.own, &self.other, &self.model);
        let mut actions = Vec::new();
        let mut refused = |subject: String, payload: Bytes| {
            actions.push(Action::new(
                format!("publishes on {}", super::table::first_tokens(&subject)),
                shot(subject, payload),
                ActionOutcome::Refused,
            ));
        };
        let order = Order {
            site: other.clone(),
            model: model.clone(),
            number: u64::MAX,
            stage: schemas::ReleaseStage::Stable,
            release: schemas::Release {
                release: self.base.clone(),
                parent: None,
                origin: "foe".into(),
                package: Vec::new(),
                needs: schemas::MachineRequirements::default(),
                public: None,
                public_change_interval: None,
            },
            said_at_ms: self.now_ms,
            signature: None,
        };
        let order = Bytes::from(encoded(&order));
        for subject in [format!("order.{other}.{model}"), format!("order.{own}.{model}")] {
            refused(subject, order.clone());
        }
        for subject in [
            format!("image.{other}.cam-1"),
            format!("outcome.{other}.cam-1.{}", TaskId::new_random()),
            format!("answer.final.{other}.cam-1.{}", TaskId::new_random()),
            format!("answer.provisional.{other}.cam-1"),
            format!("answer-json.{other}.cam-1"),
            format!("outbox.{other}.verify"),
            format!("label.{other}.cam-1"),
            format!("learned.{other}.{model}"),
            format!("pin.set.{other}.cam-1.x"),
            format!("audit.{other}"),
            "audit.cloud".into(),
            format!("verify.doubtful.{other}.cam-1"),
            format!("verdict.{other}.cam-1"),
            format!("verdict.{own}.cam-1"),
            format!("round.{model}.1.opened"),
            format!("round.{model}.1.ended"),
            format!("round.{model}.{}.opened", u64::MAX),
            format!("release.{model}.1"),
            format!("release.{model}.{}", u64::MAX),
            format!("dead.verify.{own}.x"),
            format!("dead.images.{other}.x"),
            "$KV.ledger.policy".into(),
            "$KV.ledger.fleet-root".into(),
            "$KV.ledger.site-keys".into(),
            "$KV.fleet.verifier.x".into(),
            format!("$KV.fleet.courier.{own}"),
            format!("$JS.{domain}.API.$KV.fleet.verifier.x"),
            format!("$JS.{domain}.API.$KV.ledger.fleet-root"),
            format!("$JS.{domain}.API.$KV.ledger.site-mark-{other}"),
            format!("$JS.{domain}.API.$KV.ledger.policy"),
            format!("$JS.{domain}.API.STREAM.NAMES"),
            format!("$JS.{domain}.API.STREAM.LIST"),
            format!("$JS.{domain}.API.STREAM.CREATE.FOE"),
            format!("$JS.{domain}.API.STREAM.DELETE.VERIFY"),
            format!("$JS.{domain}.API.STREAM.PURGE.VERIFY"),
            format!("$JS.{domain}.API.STREAM.PURGE.UPDATES"),
            format!("$JS.{domain}.API.STREAM.PURGE.OBJ_{}", topology::sent_blobs(other)),
            format!("$JS.{domain}.API.STREAM.PURGE.OBJ_{}", topology::CLOUD_BLOBS),
            format!("$JS.{domain}.API.STREAM.INFO.VERIFY"),
            format!("$JS.{domain}.API.STREAM.MSG.GET.VERIFY"),
            format!("$JS.{domain}.API.STREAM.MSG.GET.HARDCASES"),
            format!("$JS.{domain}.API.STREAM.MSG.DELETE.VERIFY"),
            format!("$JS.{domain}.API.STREAM.SNAPSHOT.VERIFY"),
            format!("$JS.{domain}.API.STREAM.RESTORE.VERIFY"),
            format!("$JS.{domain}.API.DIRECT.GET.UPDATES"),
            format!("$JS.{domain}.API.DIRECT.GET.HARDCASES"),
            format!("$JS.{domain}.API.DIRECT.GET.KV_ledger"),
            format!("$JS.{domain}.API.DIRECT.GET.KV_ledger.$KV.ledger.site-keys"),
            format!("$JS.{domain}.API.DIRECT.GET.OBJ_{}", topology::sent_blobs(other)),
            format!("$JS.{domain}.API.CONSUMER.CREATE.VERIFY.foe"),
            format!("$JS.{domain}.API.CONSUMER.DURABLE.CREATE.VERIFY.foe"),
            format!("$JS.{domain}.API.CONSUMER.DELETE.VERIFY.verifier"),
            format!("$JS.{domain}.API.CONSUMER.PAUSE.VERIFY.verifier"),
            format!("$JS.{domain}.API.CONSUMER.MSG.NEXT.VERIFY.verifier"),
            format!("$JS.{domain}.API.CONSUMER.MSG.NEXT.VERDICTS.courier-{other}"),
            format!("$JS.{domain}.API.CONSUMER.MSG.NEXT.UPDATES.rounds-{other}"),
            format!("$JS.{domain}.API.CONSUMER.MSG.NEXT.ORDERS.orders-{other}"),
            format!("$JS.{domain}.API.CONSUMER.INFO.VERDICTS.courier-{other}"),
            format!("$JS.{other}.API.INFO"),
            format!("$JS.{other}.API.STREAM.PURGE.IMAGES"),
            format!("$JS.{other}.API.CONSUMER.MSG.NEXT.IMAGES.recognizer-{other}"),
            "$JS.ACK.VERIFY.verifier.1.1.1.1.1".into(),
            format!("$JS.ACK.VERDICTS.courier-{other}.1.1.1.1.1"),
            format!("$JS.ACK.UPDATES.rounds-{other}.1.1.1.1.1"),
            format!("$JS.ACK.ORDERS.orders-{other}.1.1.1.1.1"),
            format!("$JS.ACK.IMAGES.recognizer-{other}.1.1.1.1.1"),
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.VERIFY.verifier".into(),
            "$JS.FC.VERIFY.x.y".into(),
            "$SYS.REQ.SERVER.PING".into(),
            format!("_INBOX_{other}.1"),
            "_INBOX.1".into(),
            "_INBOX_operator.1".into(),
            "$MQTT.msgs.x".into(),
            "foo".into(),
        ] {
            refused(subject, "{\"seq\":1,\"batch\":1}".into());
        }
        // Its own, asked for as nobody should.
        let api = |rest: String| format!("$JS.{domain}.API.{rest}");
        for (name, subject, payload, expected) in [
            (
                "pulls its verdicts without end",
                api(format!("CONSUMER.MSG.NEXT.VERDICTS.courier-{own}")),
                "{\"batch\":18446744073709551615,\"no_wait\":true}",
                ActionOutcome::Refused,
            ),
            (
                "pulls 2^31 orders at once",
                api(format!("CONSUMER.MSG.NEXT.ORDERS.orders-{own}")),
                "{\"batch\":2147483647,\"no_wait\":true}",
                ActionOutcome::Refused,
            ),
            (
                "pulls with nonsense",
                api(format!("CONSUMER.MSG.NEXT.ORDERS.orders-{own}")),
                "{\"batch\":\"x\"",
                ActionOutcome::Refused,
            ),
            (
                "asks about its own durable",
                api(format!("CONSUMER.INFO.VERDICTS.courier-{own}")),
                "",
                ActionOutcome::SaysWhatIsItsOwn,
            ),
            (
                "asks how busy verifiers are",
                api("CONSUMER.INFO.VERIFY.verifier".into()),
                "",
                ActionOutcome::SaysWhatIsItsOwn,
            ),
            (
                "asks its own server who is connected",
                "$SYS.REQ.ACCOUNT.PING.CONNZ".into(),
                "",
                ActionOutcome::SaysWhatIsItsOwn,
            ),
            ("asks for its account", api("INFO".into()), "", ActionOutcome::SaysWhatIsItsOwn),
            (
                "leaves 1 kB of garbage as its mark",
                api(format!("$KV.ledger.site-mark-{own}")),
                "\u{0}garbage",
                ActionOutcome::KeptAsItsOwn,
            ),
            (
                "empties its own bucket",
                api(format!("STREAM.PURGE.OBJ_{}", topology::sent_blobs(own))),
                "{\"filter\":\"$O.nobody\"}",
                ActionOutcome::SaysWhatIsItsOwn,
            ),
        ] {
            actions.push(Action::new(name, shot(subject, payload), expected));
        }
        for (name, word, expected) in [
            ("acknowledges verdicts it never had", "+ACK", ActionOutcome::Refused),
            ("takes a verdict for good that it never had", "+TERM", ActionOutcome::Refused),
            ("asks for the next million verdicts", "+NXT {\"batch\":1000000,\"no_wait\":true}", ActionOutcome::Refused),
            (
                "gives a verdict back for minus one second",
                "-NAK {\"delay\":-1000000000}",
                ActionOutcome::SaysWhatIsItsOwn,
            ),
            ("says it works on a verdict it never had", "+WPI", ActionOutcome::SaysWhatIsItsOwn),
        ] {
            let most = u64::MAX;
            let subject = format!("$JS.ACK.VERDICTS.courier-{own}.1.{most}.{most}.{most}.0");
            actions.push(Action::new(name, shot(subject, word), expected));
        }
        actions
    }

    /// Requests in great numbers.
    pub(super) fn floods(&self) -> Vec<Action> {
        let garbage = vec![shot(self.verify_subject(), vec![0xc1; 200]); 500];
        let pictures: Vec<RawPublication> =
            (0..100).map(|_| shot(self.verify_subject(), encoded(&self.picture("foe")))).collect();
        let misdirected: Vec<RawPublication> = (0..300)
            .map(|_| {
                let mut request = self.picture("foe");
                request.provisional.site = self.other.clone();
                shot(self.verify_subject(), encoded(&request))
            })
            .collect();
        vec![
            Action::many("500 requests of garbage", garbage, ActionOutcome::dead("message_unreadable")),
            Action::many("300 requests in another's name", misdirected, ActionOutcome::dead("verify_misdirected")),
            Action::many("100 requests at once", pictures, ActionOutcome::Verdict),
        ]
    }
}

/// An update that is looked at, and what is wrong with it.
pub(super) struct ObservedUpdate {
    /// In words.
    pub name: String,
    /// The bytes that it stores first.
    pub weights: Option<Vec<u8>>,
    /// The fault of its dead letter.
    pub fault: String,
    named: BlobRef,
    change: fn(&mut Update),
}
