//! Messages, and what is signed of them.

use bend::{bend_all, corpus, turns};
use replay::TaskRow;
use replay::backtest::{BacktestCandidate, RecordedTask, replay_decisions};
use replay::row::TextPool;
use runtime::site_key::SiteKey;
use runtime::ticket::TicketKey;
use runtime::{audit, trust};
use schemas::{
    Answer, AuditNote, DeadLetter, HardCase, Heartbeat, Label, LearnedImages, Message, Order, Rollout, Root, Round,
    SiteName, Swap, Update, Verdict, VerifyRequest, codec, decode, encode,
};
use streams::reader::StoredMessage;
use streams::subject;

fn wire(beginning: &str) -> Vec<Vec<u8>> {
    corpus("fixtures/wire", &[".msgpack"], usize::MAX)
        .into_iter()
        .filter(|bytes| String::from_utf8_lossy(bytes).contains(beginning))
        .collect()
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
    bend::limit_memory();
    let kinds: [fn(&[u8]); 16] = [
        message::<Answer>,
        message::<AuditNote>,
        |bytes| {
            if let Ok(beat) = decode::<Heartbeat>(bytes) {
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
        message::<VerifyRequest>,
        |bytes| drop(codec::to_json(bytes)),
    ];
    bend_all("messages", &corpus("fixtures/wire", &[".msgpack"], usize::MAX), turns(), |bytes| {
        kinds.iter().for_each(|kind| kind(bytes));
        kinds.len()
    });
}

#[test]
fn answers_that_were_bent_are_told_and_decided_again() {
    bend::limit_memory();
    let answers: Vec<Vec<u8>> = wire("answer").into_iter().filter(|bytes| decode::<Answer>(bytes).is_ok()).collect();
    let candidate =
        BacktestCandidate { name: "bent".into(), says: serde_json::json!({ "gate": { "min_confidence_ratio": 0.7 } }) };
    let mut texts = TextPool::default();
    bend_all("answers in a back-test", &answers, turns() / 4, |bytes| {
        let Ok(answer) = decode::<Answer>(bytes) else { return 1 };
        let row = TaskRow::of(&answer, &mut texts);
        let _told = (row.hardness(), row.is_wrong(), row.label().is_some());
        if let Some(recorded) = RecordedTask::of(&answer, &row, &mut texts) {
            let in_force = [(recorded.settings().to_owned(), Default::default())].into();
            let _played = replay_decisions(&[recorded], &in_force, &candidate).is_ok();
        }
        3
    });
}

/// A signature stands for what was signed, and for nothing else.
#[test]
fn what_was_signed_and_bent_is_not_obeyed() {
    bend::limit_memory();
    let key = SiteKey::of_secret(&SiteKey::make_secret().unwrap()).unwrap();
    let mut root = Root {
        number: 1,
        expires_at_ms: u64::MAX,
        keys: vec![key.public()],
        releaser: vec![key.public()],
        aggregator: vec![key.public()],
        never: Vec::new(),
        signatures: Default::default(),
    };
    trust::sign_root(&mut root, &key).unwrap();
    let order: Order = wire("order").iter().find_map(|bytes| decode(bytes).ok()).unwrap();
    let round: Round = wire("round").iter().find_map(|bytes| decode(bytes).ok()).unwrap();
    let (order, round) = (trust::sign(order, &key, 10).unwrap(), trust::sign(round, &key, 10).unwrap());
    let corpus = [encode(&order).unwrap(), encode(&round).unwrap()];
    assert!(trust::check(&order, &root, 20).is_ok() && trust::check(&round, &root, 20).is_ok());
    bend_all("signed orders and rounds", &corpus, turns() / 4, |bytes| {
        if let Ok(bent) = decode::<Order>(bytes) {
            assert!(bent == order || trust::check(&bent, &root, 20).is_err(), "another order is obeyed: {bent:?}");
        }
        if let Ok(bent) = decode::<Round>(bytes) {
            assert!(bent == round || trust::check(&bent, &root, 20).is_err(), "another round is obeyed: {bent:?}");
        }
        2
    });
    let text = serde_json::to_vec(&root).unwrap();
    let older = Root { number: 0, ..root.clone() };
    bend_all("roots", &[text], turns() / 4, |bytes| {
        let Ok(bent) = serde_json::from_slice::<Root>(bytes) else { return 2 };
        let same = bent.signed_bytes().unwrap() == root.signed_bytes().unwrap();
        assert!(same || trust::check_first_root(&bent).is_err(), "another root is trusted: {bent:?}");
        assert!(same || trust::check_root(&bent, &older, 20).is_err(), "another root is followed: {bent:?}");
        2
    });
}

#[test]
fn a_ticket_that_was_bent_is_no_ticket() {
    bend::limit_memory();
    let asked: Answer = wire("answer").iter().find_map(|bytes| decode(bytes).ok()).unwrap();
    let key = TicketKey::of("a secret");
    let ticket = key.sign(&asked);
    bend_all("tickets", std::slice::from_ref(&ticket), turns(), |bytes| {
        assert!(bytes == ticket || !key.verify(&asked, bytes));
        1
    });
    let about = |answer: &Answer| (answer.task, answer.site.clone(), answer.camera.clone(), answer.image_sequence);
    bend_all("what tickets are for", &[encode(&asked).unwrap()], turns() / 4, |bytes| {
        if let Ok(bent) = decode::<Answer>(bytes) {
            assert_eq!(key.verify(&bent, &ticket), about(&bent) == about(&asked));
        }
        1
    });
}

#[test]
fn a_note_of_the_audit_that_was_bent_breaks_its_chain() {
    bend::limit_memory();
    let place: SiteName = "reef".parse().unwrap();
    let record = |sequence: u64, payload: Vec<u8>| StoredMessage {
        subject: subject::audit(&place),
        sequence,
        stored_at_ns: 0,
        headers: Vec::new(),
        payload: payload.into(),
    };
    let mut records: Vec<StoredMessage> = Vec::new();
    for sequence in 1..=3 {
        let previous = records.last().map_or(vec![0; 32], |before: &StoredMessage| {
            use sha2::Digest;
            sha2::Sha256::digest(&before.payload).to_vec()
        });
        let about = format!("act {sequence}");
        let (actor, action) = ("anna@hub".to_owned(), "policy set".to_owned());
        let note = AuditNote { place: place.clone(), at_ms: sequence, actor, action, about, previous };
        records.push(record(sequence, encode(&note).unwrap()));
    }
    assert_eq!(audit::find_break(&records), None);
    let second = records[1].payload.to_vec();
    bend_all("notes of the audit", std::slice::from_ref(&second), turns() / 2, |bytes| {
        let bent = [records[0].clone(), record(2, bytes.to_vec()), records[2].clone()];
        assert_eq!(audit::find_break(&bent).is_none(), bytes == second);
        1
    });
}
