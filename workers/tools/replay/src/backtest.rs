//! What other settings would have decided: runs recorded tasks, load and link through the deciding functions. Pure.
//!
//! Each task is decided again from its recorded inputs ([`schemas::DecisionTrace`]), so that the original settings
//! reproduce the original decisions. The load is the recorded one: a queue that would have been shorter under other
//! settings is not simulated. Where a candidate would have asked the cloud about a task it never saw, or kept one that
//! the site never saw, the answer is unknown; the accuracy of the cloud, or of the site, over the same period is used
//! as an expected value and counted as such.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use offload::admit::{AdmitDecision, AdmitInput, AdmitState, decide_admission, finish_s, queue_s};
use offload::calibration::CalibrationEvidence;
use offload::escalation::{Escalation, EscalationCap, EscalationInput, escalate};
use offload::gate::TestedScores;
use offload::{EffectiveSettings, PayloadKind, hash_fraction};
use runtime::settings::check_section;
use schemas::{
    Answer, DecisionTrace, EscalationOutcome, Prediction, RankedClass, Reason, Route, TaskId, objects_agree,
    predictions_agree,
};
use serde_json::Value;

pub use self::sums::BacktestResult;
use self::sums::{AgreementRates, BacktestSums, TaskOutcome};
use crate::row::{TaskRow, TextPool};

mod sums;

/// Number of answers after which a learning gate is updated.
const TEACH_EVERY: usize = 50;

/// A recorded task and how it was decided.
#[derive(Debug, Clone)]
pub struct RecordedTask {
    task: TaskId,
    decided: Box<DecisionTrace>,
    route: Route,
    reason: Reason,
    edge: Option<(Arc<str>, f32)>,
    verdict: Option<Arc<str>>,
    /// Whether the site's own answer is right; absent where it gave none or the truth is unknown.
    is_edge_right: Option<bool>,
    /// Whether the verdict is right; absent without one or without a known truth.
    is_verdict_right: Option<bool>,
    /// Whether the site's own answer and the verdict agree; absent without both.
    is_agreed: Option<bool>,
    /// Whether the truth is known.
    is_labelled: bool,
    first_ms: f64,
    final_ms: f64,
    busy_s: f64,
    energy_mj: f64,
}

impl RecordedTask {
    /// From a final answer; `None` if it has no decision trace. `row`: the answer's row, with what a person says.
    pub fn of(answer: &Answer, row: &TaskRow, texts: &mut TextPool) -> Option<Self> {
        let decided = answer.decided.clone()?;
        let own = answer.prediction();
        let (edge, verdict) = match answer.route {
            Route::Edge | Route::Expired => (own, None),
            Route::Verified => (answer.edge.clone(), own),
            Route::Redirected => (None, own),
            Route::Dead => return None,
        };
        let truth = row.person.as_ref().or(row.truth.as_ref());
        let is_right = |prediction: &Option<Prediction>| {
            let prediction = prediction.as_ref()?;
            match (&prediction.objects, &row.person_objects) {
                (Some(objects), Some(truth)) => Some(objects_agree(objects, truth)),
                _ => Some(*prediction.label == **truth?),
            }
        };
        let (is_edge_right, is_verdict_right) = (is_right(&edge), is_right(&verdict));
        let is_agreed = edge.as_ref().zip(verdict.as_ref()).map(|(edge, verdict)| predictions_agree(edge, verdict));
        let is_labelled = truth.is_some();
        // What the gate tested, and learns of.
        let edge = edge.map(|edge| {
            let (label, confidence) = edge.least_sure().unwrap_or((&edge.label, edge.confidence));
            (texts.shared(label), confidence)
        });
        let verdict = verdict.map(|verdict| texts.shared(&verdict.label));
        let timings = &answer.timings;
        let steps_us = timings.queue_us + timings.fetch_us + timings.wait_us + timings.decode_us + timings.infer_us;
        let batch = f64::from(timings.batch_size.max(1));
        Some(Self {
            task: answer.task,
            decided,
            route: answer.route,
            reason: answer.reason,
            edge,
            verdict,
            is_edge_right,
            is_verdict_right,
            is_agreed,
            is_labelled,
            first_ms: steps_us as f64 / 1000.0,
            final_ms: answer.answered_at_ms.saturating_sub(answer.published_at_ms) as f64,
            busy_s: (timings.decode_us as f64 + timings.infer_us as f64 / batch) / 1e6,
            energy_mj: answer.energy_mj.unwrap_or(0.0).into(),
        })
    }

    /// Name of the settings that were in effect.
    pub fn settings(&self) -> &str {
        &self.decided.settings
    }

    /// Whether the recorded answer was doubtful.
    fn doubtful(&self) -> bool {
        self.reason.is_doubtful()
    }

    fn sent_bytes(&self) -> u64 {
        let doubt = self.decided.doubt.as_ref();
        match doubt.filter(|doubt| {
            matches!(doubt.fate, EscalationOutcome::Goes | EscalationOutcome::Sampled | EscalationOutcome::Blocks)
        }) {
            Some(doubt) => doubt.bytes,
            None if self.route == Route::Redirected => self.decided.bytes,
            None => 0,
        }
    }
}

/// Settings to try: their keys replace those that were in effect.
#[derive(Debug, Clone, PartialEq)]
pub struct BacktestCandidate {
    /// Display name.
    pub name: String,
    /// An object with some of the keys `policy`, `gate` and `verify`.
    pub says: Value,
}

impl BacktestCandidate {
    /// The resulting settings.
    ///
    /// # Errors
    /// One sentence: an unknown key, or an invalid value.
    pub fn apply_to(&self, in_force: &EffectiveSettings) -> Result<EffectiveSettings, String> {
        let mut all = serde_json::to_value(in_force).map_err(|error| error.to_string())?;
        merge(&mut all, &self.says);
        let settings: EffectiveSettings =
            serde_json::from_value(all).map_err(|error| format!("{}: {error}", self.name))?;
        let checks =
            [("policy", settings.policy.check()), ("gate", settings.gate.check()), ("verify", settings.verify.check())];
        for (section, checked) in checks {
            check_section(section, checked).map_err(|why| format!("{}: {why}", self.name))?;
        }
        Ok(settings)
    }
}

fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Sorts tasks in the order of their decisions, per recognizer, as each has its own state.
pub fn in_order(all: &mut [RecordedTask]) {
    all.sort_by(|a, b| {
        let key = |task: &RecordedTask| task.decided.doubt.as_ref().map_or(task.decided.at_s, |doubt| doubt.at_s);
        a.decided.worker.cmp(&b.decided.worker).then(key(a).total_cmp(&key(b))).then(a.task.cmp(&b.task))
    });
}

/// The result as recorded.
pub fn recorded_result(all: &[RecordedTask]) -> BacktestResult {
    let known = AgreementRates::of(all);
    let mut sums = BacktestSums::default();
    sums.played.name = "as recorded".into();
    for task in all {
        let went = task.sent_bytes() > 0;
        let outcome = TaskOutcome {
            redirected: task.route == Route::Redirected,
            held: task.decided.held_s > 0.0,
            doubtful: task.doubtful(),
            up_bytes: went.then(|| task.sent_bytes()),
            first_ms: if task.route == Route::Redirected { task.final_ms } else { task.first_ms },
            final_ms: task.final_ms,
            energy_mj: task.energy_mj,
        };
        sums.add(task, &outcome, &known);
    }
    sums.finish()
}

/// The result under other settings. `in_force`: the recorded settings by name.
///
/// # Errors
/// What is wrong with the candidate, in one sentence.
pub fn replay_decisions(
    all: &[RecordedTask],
    in_force: &BTreeMap<String, EffectiveSettings>,
    candidate: &BacktestCandidate,
) -> Result<BacktestResult, String> {
    let known = AgreementRates::of(all);
    let mut settings = HashMap::new();
    for (name, were) in in_force {
        let are = candidate.apply_to(were)?;
        let (were_at, are_at) = (were.gate().temperature, are.gate().temperature);
        if were_at != are_at {
            return Err(format!(
                "{}: the scores were recorded at temperature {were_at}; temperature {are_at} needs the scores of all \
                 classes, so run the images through a model with `tributary evaluate`",
                candidate.name
            ));
        }
        settings.insert(name.as_str(), (were, are));
    }
    let mut sums = BacktestSums::default();
    sums.played.name.clone_from(&candidate.name);
    let mut minds: HashMap<&str, BacktestState> = HashMap::new();
    for task in all {
        let Some((were, are)) = settings.get(task.settings()) else { continue };
        let mind = minds.entry(task.decided.worker.as_str()).or_default();
        let (outcome, otherwise) = mind.decide(task, were, are);
        sums.played.otherwise += u64::from(otherwise);
        sums.add(task, &outcome, &known);
    }
    Ok(sums.finish())
}

/// State that a recognizer would have had.
#[derive(Default)]
struct BacktestState {
    state: AdmitState,
    share: EscalationCap,
    evidence: CalibrationEvidence,
    taught: Option<offload::gate::Gate>,
    seen: usize,
}

impl BacktestState {
    fn decide(
        &mut self,
        task: &RecordedTask,
        were: &EffectiveSettings,
        are: &EffectiveSettings,
    ) -> (TaskOutcome, bool) {
        let decided = &task.decided;
        let asking = AdmitInput {
            bytes: decided.bytes,
            left_s: decided.left_s,
            held_s: decided.held_s,
            may_leave: are.verify.enabled && are.verify.payload == PayloadKind::Image,
            priority: decided.priority,
        };
        // The same policy had the recorded state, including from times that are not recorded.
        let state = if are.policy == were.policy { recorded_state(decided) } else { self.state };
        let (state, admit) =
            decide_admission(&are.policy, state, &decided.load, &decided.network, &asking, decided.at_s);
        self.state = state;
        let watts = are.policy.energy.watts_per_core;
        let up_mj = |bytes: u64| bytes as f64 / 1e6 * are.policy.energy.joules_per_mb * 1000.0;
        let otherwise = (admit == AdmitDecision::Redirect) != decided.redirected;
        // A task that was offloaded and reclaimed would have been reclaimed again.
        let reclaimed = decided.redirected && decided.doubt.is_some();
        if admit == AdmitDecision::Redirect && !reclaimed {
            let there_ms = finish_s(&decided.network, decided.bytes).map(|seconds| seconds * 1000.0);
            let took_ms = match task.route {
                Route::Redirected => task.final_ms,
                _ => there_ms.unwrap_or(task.final_ms),
            };
            let outcome = TaskOutcome {
                redirected: true,
                held: decided.held_s > 0.0,
                doubtful: false,
                up_bytes: Some(decided.bytes),
                first_ms: took_ms,
                final_ms: took_ms,
                energy_mj: up_mj(decided.bytes),
            };
            return (outcome, otherwise);
        }
        let Some(doubt) = &decided.doubt else {
            // The site never saw it.
            let here_ms = (queue_s(&decided.load) + decided.load.cost_s) * 1000.0;
            let outcome = TaskOutcome {
                redirected: false,
                held: admit == AdmitDecision::Listen,
                doubtful: false,
                up_bytes: None,
                first_ms: here_ms,
                final_ms: here_ms,
                energy_mj: decided.load.cost_s * watts * 1000.0,
            };
            return (outcome, otherwise);
        };
        let label = task.edge.as_ref().map(|(label, _)| label.as_ref()).unwrap_or_default();
        let tested = TestedScores {
            best: doubt.best,
            second: doubt.second,
            entropy_ratio: doubt.entropy_ratio,
            novelty: doubt.novelty,
        };
        let reason = self.gate(task, were, are, &tested, label);
        if are == were {
            self.share = doubt.earned.map_or_else(EscalationCap::default, EscalationCap::with_balance);
        }
        let bytes = match are.verify.payload {
            PayloadKind::Image if were.verify.payload != PayloadKind::Image => decided.bytes,
            _ => doubt.bytes,
        };
        let network = doubt.network.as_ref().unwrap_or(&decided.network);
        // A publisher's own deadline stays; the site's may differ.
        let longer_s = f64::from(are.verify.deadline_s) - f64::from(were.verify.deadline_s);
        let about = EscalationInput {
            reason,
            label,
            bytes,
            left_s: if decided.left_s.is_none() { doubt.left_s + longer_s } else { doubt.left_s },
            lot: hash_fraction(task.task, "sample"),
        };
        let escalation = escalate(&are.policy, &are.verify, doubt.sampling, network, &mut self.share, &about);
        let goes = matches!(escalation, Escalation::Goes(_));
        let there_ms = finish_s(network, about.bytes).unwrap_or(about.left_s) * 1000.0;
        let final_ms = match (goes, task.route) {
            (false, _) => task.first_ms,
            (true, Route::Verified) => task.final_ms,
            (true, _) => task.first_ms + there_ms.max(0.0),
        };
        let outcome = TaskOutcome {
            redirected: false,
            held: admit == AdmitDecision::Listen || decided.held_s > 0.0,
            doubtful: reason != Reason::Confident,
            up_bytes: goes.then_some(about.bytes),
            first_ms: task.first_ms,
            final_ms,
            energy_mj: task.busy_s * watts * 1000.0 + if goes { up_mj(about.bytes) } else { 0.0 },
        };
        (outcome, otherwise || escalation.outcome() != doubt.fate)
    }

    /// The gate's decision. A learning gate is updated from the verdicts of the period; if it is the gate that was in
    /// effect, its recorded decision is used, because what it had learned before is not recorded.
    fn gate(
        &mut self,
        task: &RecordedTask,
        were: &EffectiveSettings,
        are: &EffectiveSettings,
        tested: &TestedScores,
        label: &str,
    ) -> Reason {
        let Some(target) = are.gate.target_accuracy_ratio else { return are.gate().decide(tested, label) };
        if are.gate == were.gate {
            return if task.doubtful() { Reason::LowConfidence } else { Reason::Confident };
        }
        self.evidence.add_answer(label, tested.best);
        if let (Some((label, confidence)), Some(verdict), Some(is_agreed)) = (&task.edge, &task.verdict, task.is_agreed)
        {
            let ranked = RankedClass { label: label.to_string(), confidence: *confidence };
            let release = schemas::ReleaseId::from_sha256([0; 32]);
            let top = vec![ranked];
            let predicted = Prediction {
                label: label.to_string(),
                confidence: *confidence,
                top,
                labels: None,
                objects: None,
                release,
                temperature: None,
                novelty: None,
            };
            self.evidence.add_verdict(&predicted, verdict, is_agreed, 2, 1.0);
        }
        if self.taught.is_none() || self.seen.is_multiple_of(TEACH_EVERY) {
            let belief = self.evidence.calibration(target);
            self.taught = Some(are.gate().with_calibration(&belief));
        }
        self.seen += 1;
        self.taught.as_ref().map_or(Reason::Confident, |gate| gate.decide(tested, label))
    }
}

fn recorded_state(decided: &DecisionTrace) -> AdmitState {
    AdmitState {
        mode: decided.mode,
        overloaded: decided.overloaded,
        changed_at_s: decided.changed_at_s.unwrap_or(f64::NEG_INFINITY),
    }
}

#[cfg(test)]
mod tests {
    use schemas::decision_trace::{CloudLoad, Network, RoutingMode, SiteLoad};
    use schemas::task::StorageStamp;
    use schemas::{AnswerStage, DetectedObject, EscalationTrace, Task, Timings, leading_label};
    use serde_json::json;

    use super::*;

    /// An answer on which the site's model had confidence `best`, with or without a verdict.
    fn answer(number: u64, best: f32, verdict: Option<&str>) -> Answer {
        let stored = StorageStamp {
            site: "reef".parse().unwrap(),
            camera: "c".parse().unwrap(),
            sequence: number,
            stored_at_ns: 0,
        };
        let task = Task::from_id(&stored, TaskId::from_name(&number.to_string()));
        let network = Network {
            up: true,
            available: true,
            round_trip_s: 0.02,
            rate_bytes_per_s: Some(1e6),
            slowdown_ratio: 1.0,
            cloud: Some(CloudLoad { waiting: 0, replicas: 1, cost_s: 0.01, still_s: 0.0 }),
            most_away: 256,
            ..Network::default()
        };
        let (route, reason) = match verdict {
            Some(_) => (Route::Verified, Reason::LowConfidence),
            None => (Route::Edge, Reason::Confident),
        };
        let mut answer = Answer::for_task(&task, AnswerStage::Final, route, reason, 100);
        let fate = if verdict.is_some() { EscalationOutcome::Goes } else { EscalationOutcome::Stands };
        answer.decided = Some(Box::new(DecisionTrace {
            worker: "w".into(),
            settings: "live".into(),
            bytes: 10_000,
            left_s: None,
            held_s: 0.0,
            priority: 5,
            at_s: number as f64,
            mode: RoutingMode::Local,
            overloaded: false,
            changed_at_s: None,
            load: SiteLoad { waiting: 1, free: true, replicas: 1, cost_s: 0.005, ..SiteLoad::default() },
            network,
            redirected: false,
            doubt: Some(EscalationTrace {
                at_s: number as f64,
                best,
                second: 1.0 - best,
                entropy_ratio: 0.3,
                novelty: (best > 0.94).then_some(0.999),
                left_s: 86_400.0,
                bytes: 10_000,
                sampling: false,
                network: None,
                earned: None,
                fate,
            }),
        }));
        (answer.label, answer.confidence) = (Some(verdict.unwrap_or("crab").into()), Some(best));
        if verdict.is_some() {
            let release = schemas::ReleaseId::from_sha256([1; 32]);
            let top = Vec::new();
            answer.edge = Some(Prediction {
                label: "crab".into(),
                confidence: best,
                top,
                labels: None,
                objects: None,
                release,
                temperature: None,
                novelty: None,
            });
        }
        answer.truth = Some("fish".into());
        answer.release = Some(schemas::ReleaseId::from_sha256([1; 32]));
        answer.timings = Timings { decode_us: 1000, infer_us: 4000, batch_size: 1, ..Timings::default() };
        answer
    }

    /// A task on which the site's model had confidence `best`, with or without a verdict.
    fn recorded(number: u64, best: f32, verdict: Option<&str>) -> RecordedTask {
        of_answer(&answer(number, best, verdict), None)
    }

    fn of_answer(answer: &Answer, person_objects: Option<&[DetectedObject]>) -> RecordedTask {
        let mut texts = TextPool::default();
        let mut row = TaskRow::of(answer, &mut texts);
        row.person = person_objects.map(|objects| leading_label(objects).into());
        row.person_objects = person_objects.map(Into::into);
        RecordedTask::of(answer, &row, &mut texts).unwrap()
    }

    fn live() -> BTreeMap<String, EffectiveSettings> {
        [("live".to_owned(), EffectiveSettings::default())].into()
    }

    fn play_one(says: Value) -> BacktestResult {
        let all = [recorded(1, 0.6, Some("fish")), recorded(2, 0.9, None), recorded(3, 0.95, None)];
        let candidate = BacktestCandidate { name: "tried".into(), says };
        replay_decisions(&all, &live(), &candidate).unwrap()
    }

    #[test]
    fn the_original_settings_reproduce_their_decisions() {
        let played = play_one(json!({}));
        assert_eq!((played.otherwise, played.verified, played.up_bytes), (0, 1, 10_000));
        assert_eq!(played.right_ratio, Some(1.0 / 3.0), "the cloud is right about one, the site about none");
    }

    #[test]
    fn a_detectors_tasks_are_right_and_agree_by_their_objects() {
        let object = |label: &str, left: f32| DetectedObject {
            label: label.into(),
            confidence: 0.9,
            bounds: [left, 0.0, left + 0.25, 0.5].into(),
        };
        let (one, two) = (vec![object("crab", 0.0)], vec![object("crab", 0.0), object("crab", 0.5)]);
        let mut detected = answer(1, 0.6, Some("crab"));
        detected.objects = Some(two.clone());
        if let Some(edge) = &mut detected.edge {
            edge.objects = Some(one.clone());
        }
        let judged = |drawn: Option<&[DetectedObject]>| {
            let task = of_answer(&detected, drawn);
            (task.is_edge_right, task.is_verdict_right, task.is_agreed)
        };
        assert_eq!(judged(Some(&two)), (Some(false), Some(true), Some(false)), "their labels are the same");
        assert_eq!(judged(Some(&one)), (Some(true), Some(false), Some(false)));
        assert_eq!(judged(None), (Some(false), Some(false), Some(false)), "the publisher says fish");
        let result = recorded_result(&[of_answer(&detected, Some(&two))]);
        assert_eq!((result.right_ratio, result.agrees_ratio), (Some(1.0), Some(1.0)));
    }

    #[test]
    fn a_stricter_gate_sends_more_up_and_unknown_answers_are_expected_values() {
        let played = play_one(json!({"gate": {"min_confidence_ratio": 0.92}}));
        assert_eq!((played.otherwise, played.verified, played.expected), (1, 2, 1));
        assert_eq!(played.right_ratio, Some(2.0 / 3.0), "the cloud was right in every verdict");
        let open = play_one(json!({"gate": {"min_confidence_ratio": 0.0}}));
        assert_eq!((open.verified, open.right_ratio, open.agrees_ratio), (0, Some(0.0), Some(0.0)));
    }

    #[test]
    fn a_candidate_with_a_novelty_threshold_sends_novel_pictures_up() {
        let strange = play_one(json!({"gate": {"max_novelty": 0.99}}));
        assert_eq!((strange.otherwise, strange.verified), (1, 2));
    }

    #[test]
    fn another_policy_is_replayed_with_its_own_state() {
        let alone = play_one(json!({"policy": {"name": "edge-only"}}));
        assert_eq!((alone.verified, alone.redirected, alone.up_bytes), (0, 0, 0));
        let away = play_one(json!({"policy": {"name": "cloud-only"}}));
        assert_eq!((away.redirected, away.up_bytes, away.expected), (3, 30_000, 2));
        assert!(away.final_p50_ms > 20.0, "round trip to the cloud: {away:?}");
    }

    #[test]
    fn recorded_contention_memory_and_gain_are_decided_by_again() {
        let replay = |mut task: RecordedTask, change: &dyn Fn(&mut DecisionTrace), says: Value| {
            change(&mut task.decided);
            let candidate = BacktestCandidate { name: "tried".into(), says };
            replay_decisions(&[task], &live(), &candidate).unwrap()
        };
        let doubtful = || recorded(1, 0.6, Some("fish"));
        // Others had the processor, and the queue was long: it would have gone up.
        let contended = |decided: &mut DecisionTrace| {
            let load = SiteLoad { waiting: 10, free: false, contention_ratio: Some(4.0), ..decided.load };
            (decided.load, decided.redirected) = (load, true);
        };
        assert_eq!(replay(doubtful(), &contended, json!({})).otherwise, 0);
        let free = |decided: &mut DecisionTrace| {
            contended(decided);
            decided.load.cost_contention_ratio = Some(4.0);
        };
        assert_eq!(replay(doubtful(), &free, json!({})).otherwise, 1, "the cost held it already");
        let short = |decided: &mut DecisionTrace| {
            (decided.load.memory_ratio, decided.redirected) = (Some(0.99), true);
        };
        assert_eq!(replay(doubtful(), &short, json!({})).otherwise, 0);
        // What a verdict gained was known: other tolerances would have kept it.
        let known = |decided: &mut DecisionTrace| {
            let gain = schemas::decision_trace::CloudGain { doubtful_points: Some(20.0), confident_points: None };
            decided.network.gain = Some(gain);
        };
        let played = replay(doubtful(), &known, json!({}));
        assert_eq!((played.otherwise, played.verified), (0, 1));
        let stingy = json!({"policy": {"tolerance": {"accuracy_points": 50.0}}});
        let played = replay(doubtful(), &known, stingy);
        assert_eq!((played.otherwise, played.verified, played.kept), (1, 0, 1));
    }

    #[test]
    fn an_invalid_candidate_is_refused_by_name() {
        let refused = |says: Value| {
            let candidate = BacktestCandidate { name: "bad.toml".into(), says };
            replay_decisions(&[recorded(1, 0.6, None)], &live(), &candidate).unwrap_err()
        };
        assert!(refused(json!({"gate": {"min_confidense_ratio": 0.5}})).contains("min_confidense_ratio"));
        assert!(refused(json!({"gate": {"min_confidence_ratio": 2.0}})).contains("between 0 and 1"));
        assert!(refused(json!({"gate": {"temperature": 2.0}})).contains("`tributary evaluate`"));
    }
}
