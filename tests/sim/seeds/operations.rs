//! Operators' commands, called as functions on servers in memory: their history, their refusals, and their audit
//! records.

use std::time::Duration;

use offload::policy::PolicyName;
use operations::{audit, dead_letters, labels, policy, release_decision, retraction, rounds, scale};
use releases::decision_log;
use releases::stage::{self, DecisionContext, StageRefusal};
use runtime::audit::find_break;
use schemas::{
    Answer, AnswerStage, AuditNote, DeadLetter, DecisionOrigin, FaultNote, MachineRequirements, Reason, Release,
    ReleaseStage, Role, Rollout, Route, SiteName, TaskId, decode, encode,
};
use serving::scale::ReplicaRequest;
use streams::memory::MemoryCluster;
use streams::{Bus, Publication, Publisher, reader, subject, topology};

use crate::world::{CLOUD, SITE, answer_about, camera, cloud_of, model, one_site, release_id, site};

fn publisher(bus: &Bus) -> Publisher {
    Publisher::new(bus.clone(), Duration::from_secs(10))
}

async fn publish_outcome(publisher: &Publisher, answer: &Answer) {
    let subject = subject::outcome(&answer.site, &answer.camera, answer.task);
    publisher.publish(&Publication::first_on_subject(subject, encode(answer).unwrap())).await.unwrap();
}

fn release(number: u8) -> Release {
    Release {
        release: release_id(number),
        parent: None,
        origin: "imported".into(),
        package: Vec::new(),
        needs: MachineRequirements::default(),
        public: None,
        public_change_interval: None,
    }
}

/// A cloud whose model has release 1 as its baseline and releases 2 and 3 as candidates.
async fn rollout_of_three() -> (MemoryCluster, Bus) {
    let cluster = cloud_of(1, vec![site()]);
    let bus = cluster.connect(CLOUD);
    let publisher = publisher(&bus);
    let context = |why: &str| DecisionContext::new(DecisionOrigin::Hand, why, cluster.now_ms());
    let mut now = stage::first(model(), release(1), context("imported as the first"));
    assert!(decision_log::publish_decision(&publisher, &now).await.unwrap());
    for number in [2, 3] {
        now = stage::candidate(&now, release(number), context("imported")).unwrap();
        assert!(decision_log::publish_decision(&publisher, &now).await.unwrap());
    }
    (cluster, bus)
}

/// Reads the actions in the audit log of a site or the cloud, oldest first, and checks its hash chain.
async fn audited_actions(bus: &Bus, place: &SiteName) -> Vec<(String, String)> {
    let records = audit::read_notes(bus, place).await.unwrap();
    assert_eq!(find_break(&records), None);
    let notes = records.iter().map(|record| decode::<AuditNote>(&record.payload).unwrap());
    notes.map(|note| (note.action, note.about)).collect()
}

fn latest_decision(rollout: &Rollout) -> (ReleaseStage, u8) {
    let number = (0..9).find(|number| release_id(*number) == rollout.decision.release).unwrap();
    (rollout.decision.stage, number)
}

#[tokio::test(start_paused = true)]
async fn operators_decisions_form_a_history_and_are_audited() {
    let (_cluster, cloud) = rollout_of_three().await;
    let (model, reef) = (model(), site());
    let promoted = release_decision::promote(&cloud, &model, &release_id(2), "good on my desk").await.unwrap();
    assert_eq!((latest_decision(&promoted), &promoted.stable), ((ReleaseStage::Stable, 2), &release(2)));
    let pinned = release_decision::pin(&cloud, &model, &reef, &release_id(1), "old camera").await.unwrap();
    assert_eq!(stage::order_for_site(&pinned, &reef).release, release(1));
    assert_eq!(stage::order_for_site(&pinned, &"farm".parse().unwrap()).release, release(2));
    let unpinned = release_decision::unpin(&cloud, &model, &reef, "new camera").await.unwrap();
    assert_eq!(stage::order_for_site(&unpinned, &reef).release, release(2));
    let withdrawn = release_decision::withdraw(&cloud, &model, &release_id(3), "of no use").await.unwrap();
    assert_eq!(stage::stage_of(&withdrawn, &release_id(3)), Some(ReleaseStage::Withdrawn));
    let back = release_decision::roll_back(&cloud, &model, "it was worse").await.unwrap();
    assert_eq!((&back.stable, stage::stage_of(&back, &release_id(2))), (&release(1), Some(ReleaseStage::Withdrawn)));

    let history = decision_log::history(&cloud, &model).await.unwrap();
    let by_hand: Vec<&str> = history[3..].iter().map(|then| then.decision.why.as_str()).collect();
    assert_eq!(by_hand, ["good on my desk", "old camera", "new camera", "of no use", "it was worse"]);
    assert_eq!(history.last(), Some(&back));
    let actions: Vec<(String, String)> = audited_actions(&cloud, &SiteName::cloud()).await;
    assert_eq!(actions.len(), by_hand.len(), "{actions:?}");
    let pin = format!("{model} {} at reef: old camera", release_id(1).as_str());
    assert_eq!(actions[1], ("release pinned".to_owned(), pin));
}

#[tokio::test(start_paused = true)]
async fn a_refused_decision_changes_nothing_and_is_not_audited() {
    let (_cluster, cloud) = rollout_of_three().await;
    let before = decision_log::history(&cloud, &model()).await.unwrap();
    let refused = release_decision::roll_back(&cloud, &model(), "").await.unwrap_err();
    assert!(
        matches!(refused, release_decision::ReleaseDecisionError::Refused(StageRefusal::NothingBefore(_))),
        "{refused}"
    );
    let refused = release_decision::promote(&cloud, &model(), &release_id(7), "").await.unwrap_err();
    assert!(refused.to_string().contains("has no package that sites could fetch"), "{refused}");
    let other = schemas::ModelName::from_name("other");
    let refused = release_decision::unpin(&cloud, &other, &site(), "").await.unwrap_err();
    assert!(refused.to_string().starts_with("model other has no rollout yet"), "{refused}");
    assert_eq!(decision_log::history(&cloud, &model()).await.unwrap(), before);
    assert_eq!(audited_actions(&cloud, &SiteName::cloud()).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_chosen_policy_holds_until_it_is_cleared() {
    let cluster = one_site(1);
    let bus = cluster.connect(SITE);
    assert_eq!(policy::read_policy(&bus).await.unwrap().chosen, None);
    policy::choose_policy(&bus, &site(), PolicyName::EdgeOnly).await.unwrap();
    assert_eq!(policy::read_policy(&bus).await.unwrap().chosen.unwrap().name, PolicyName::EdgeOnly);
    policy::clear_policy(&bus, &site()).await.unwrap();
    let report = policy::read_policy(&bus).await.unwrap();
    assert_eq!(serde_json::to_string(&report).unwrap(), r#"{"chosen":null,"recognizers":{}}"#);
    let actions: Vec<String> = audited_actions(&bus, &site()).await.into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["policy set", "policy clear"]);
}

#[tokio::test(start_paused = true)]
async fn requested_replicas_are_stored_per_role_and_cleared() {
    let cluster = one_site(1);
    let bus = cluster.connect(SITE);
    let asked = ReplicaRequest::Between(1, 4);
    scale::request_replicas(&bus, &site(), Role::Recognizer, Some(asked)).await.unwrap();
    // No worker runs, so there is none to wait for.
    let report = scale::wait_for_replicas(&bus, Role::Recognizer, asked, Duration::from_secs(30)).await.unwrap();
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(json, r#"{"role":"recognizer","asked":"1-4","workers":[]}"#);
    assert_eq!(scale::read_scale(&bus, Role::Verifier).await.unwrap().asked, None);
    scale::request_replicas(&bus, &site(), Role::Recognizer, None).await.unwrap();
    assert_eq!(scale::read_scale(&bus, Role::Recognizer).await.unwrap().asked, None);
    let about: Vec<String> = audited_actions(&bus, &site()).await.into_iter().map(|(_, about)| about).collect();
    assert_eq!(about, ["recognizer: 1-4", "recognizer: per settings"]);
}

#[tokio::test(start_paused = true)]
async fn a_redriven_image_keeps_its_task_and_loses_its_tombstone() {
    let cluster = one_site(1);
    let bus = cluster.connect(SITE);
    let publisher = publisher(&bus);
    let (task, image) = (TaskId::from_name("a"), subject::image(&site(), &camera()));
    publisher.publish(&Publication::with_id(image.clone(), b"no image".to_vec(), "a")).await.unwrap();
    let tombstone = answer_about(task, 1, 0, AnswerStage::Final, Route::Dead, Reason::GivenUp);
    let slot = subject::final_answer(&site(), &camera(), task);
    publish_outcome(&publisher, &tombstone).await;
    let letter = DeadLetter {
        id: task.child("dead"),
        task: Some(task),
        site: site(),
        role: Role::Recognizer.into(),
        stream: topology::IMAGES.into(),
        subject: image,
        sequence: 1,
        attempts: 20,
        died_at_ms: cluster.now_ms(),
        fault: FaultNote::new("image_truncated", "it ends early", "publish it again"),
        headers: Default::default(),
        payload: b"no image".to_vec(),
        cut: None,
    };
    let forged = DeadLetter { id: task.child("forged"), subject: "label.reef.cam-1".into(), ..letter.clone() };
    for letter in [&letter, &forged] {
        let slot = subject::dead(&letter.stream, &letter.site, letter.id);
        publisher.publish(&Publication::first_on_subject(slot, encode(letter).unwrap())).await.unwrap();
    }

    assert!(reader::read_outcome(&bus, &slot).await.unwrap().is_some());
    let letters = dead_letters::read_dead_letters(&bus).await.unwrap();
    let mut redriven = Vec::new();
    let ended = dead_letters::redrive_dead_letters(&bus, &site(), &letters, |letter| redriven.push(letter.id)).await;
    let refused = ended.unwrap_err();
    assert_eq!((redriven, refused.letter, refused.done), (vec![letter.id], forged.id, 1));
    assert!(matches!(refused.why, dead_letters::DeadLetterError::Misaddressed { .. }), "{refused}");
    let left = dead_letters::read_dead_letters(&bus).await.unwrap();
    assert_eq!(left.iter().map(|(_, letter)| letter.id).collect::<Vec<_>>(), [forged.id]);
    assert_eq!(reader::read_outcome(&bus, &slot).await.unwrap(), None);
    // Repeat an interrupted redrive: the server does not deduplicate images, so the image is stored twice, as the same
    // task.
    dead_letters::redrive_dead_letters(&bus, &site(), &letters[..1], |_| {}).await.unwrap();
    assert_eq!(reader::stream_level(&bus, topology::IMAGES).await.unwrap().last_sequence, 3);
    for sequence in [2, 3] {
        let redriven = reader::message_at(&bus, topology::IMAGES, sequence).await.unwrap().unwrap();
        let of_task = redriven.header(schemas::task::HEADER_TASK).map(str::to_owned);
        assert_eq!((&redriven.payload[..], of_task), (&b"no image"[..], Some(task.to_string())));
    }
    let expected = ("dead-letters redrive".to_owned(), "1 dead letter".to_owned());
    assert_eq!(audited_actions(&bus, &site()).await, [expected.clone(), expected]);
}

#[tokio::test(start_paused = true)]
async fn labels_apply_to_answered_tasks_and_can_be_retracted_by_author() {
    let cluster = one_site(1);
    let bus = cluster.connect(SITE);
    let (answered, unknown) = (TaskId::from_name("a"), TaskId::from_name("b"));
    let answer = answer_about(answered, 1, 0, AnswerStage::Final, Route::Edge, Reason::Confident);
    publish_outcome(&publisher(&bus), &answer).await;
    let batch = labels::LabelBatch::new(vec![
        labels::TaskLabel::of_class(answered, "coat"),
        labels::TaskLabel::of_class(unknown, "shirt"),
    ])
    .unwrap();
    let done = labels::label_tasks(&bus, &site(), batch, Some("anna")).await.unwrap();
    assert_eq!((done.labelled, done.unknown), (1, vec![unknown]));

    let of_anna = || retraction::LabelSelection::Given { by: Some("anna".into()), since: None };
    let preview = retraction::retract_labels(&bus, &site(), of_anna(), None).await.unwrap();
    let reason = retraction::RetractionReason { why: "wrong shelf".into(), by: None };
    let retracted = retraction::retract_labels(&bus, &site(), of_anna(), Some(&reason)).await.unwrap();
    assert_eq!(preview, retracted);
    assert!(retracted.retracted.contains(&answered) && retracted.updates.is_empty());
    let again = retraction::retract_labels(&bus, &site(), of_anna(), Some(&reason)).await.unwrap_err();
    assert!(again.to_string().starts_with("no label by \"anna\" counts at this site"), "{again}");
    let done: Vec<(String, String)> = audited_actions(&bus, &site()).await;
    let owned = |action: &str, about: &str| (action.to_owned(), about.to_owned());
    assert_eq!(done, [owned("label", "1 task"), owned("label retract", "1 task: wrong shelf")]);
}

#[tokio::test(start_paused = true)]
async fn a_round_is_refused_while_another_is_open_or_a_canary_runs() {
    let (cluster, cloud) = rollout_of_three().await;
    let (model, first) = (model(), release_id(1));
    let settings = aggregator::settings::RoundSettings::default();
    let open = async |choices| rounds::open_round(&cloud, (&model, &first), &settings, choices, None).await;
    let choices = rounds::RoundChoices { quorum: Some(1), sites: vec![site()], ..Default::default() };
    let opened = open(choices).await.unwrap();
    assert_eq!((opened.number, opened.terms.quorum, &opened.terms.base), (1, 1, &first));
    let refused = open(rounds::RoundChoices::default()).await.unwrap_err();
    assert!(matches!(refused, rounds::RoundOpenError::StillOpen { number: 1, .. }), "{refused}");

    let history = aggregator::round_open::RoundHistory::read(&cloud, &model).await.unwrap();
    let summary = rounds::summarize_rounds(&history);
    assert_eq!((summary.len(), &summary[0].result, summary[0].took_ms), (1, &rounds::RoundResult::Open, None));
    let now = decision_log::latest(&cloud, &model).await.unwrap().unwrap();
    let context = DecisionContext::new(DecisionOrigin::Hand, "tried", cluster.now_ms());
    let canary = stage::canary(&now, &release_id(2), 0, vec![site()], context).unwrap();
    assert!(decision_log::publish_decision(&publisher(&cloud), &canary).await.unwrap());
    let refused = open(rounds::RoundChoices::default()).await.unwrap_err();
    assert!(matches!(refused, rounds::RoundOpenError::Undecided { .. }), "{refused}");
    let expected = ("round open".to_owned(), format!("{model} 1"));
    assert_eq!(audited_actions(&cloud, &SiteName::cloud()).await, [expected]);
}
