//! The aggregator's main loop: round opened → check updates as they arrive → closed → score → weigh → merge → seal. All
//! progress is in the stream and in the store, so that a restarted or a second aggregator arrives at the same result.

mod finish;
mod receive;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use releases::decision_log;
use releases::prepare::{self, ReleaseOrigin};
use releases::stage::{self, DecisionContext};
use releases::trial::TrialRunner;
use runtime::consumer::WorkerStats;
use runtime::site_key::SiteKey;
use runtime::{Fault, Shutdown, clock, heartbeat, retry_until_found};
use schemas::{
    DecisionOrigin, FaultKind, FaultNote, ModelName, Release, Role, Round, RoundEvent, RoundReport, RoundState,
    SiteName,
};
use streams::backoff::wait_about;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Blobs, Bus, Publisher, ReleaseStore, subject, topology};
use tokio::time::{Instant, MissedTickBehavior};
use training::TrainError;
use vision::{Model, OnnxRuntime};

use crate::hard_case_count::HardCaseCount;
use crate::public_set::PublicSet;
use crate::release::{Manifest, ModelReleases, RefusedUpdate, ReleaseError};
use crate::release_builder::{self, FetchedUpdate, RoundBase};
use crate::round::{RoundTracker, UpdateArrival};
use crate::round_open::{self, RoundHistory, publish_round_event, stored_at_ms};
use crate::settings::{AggregatorSettings, ClientSelection};
use crate::verify::{ReleaseVerifyError, ReleaseWorkspace, make_folder, spawn_blocking};

const ROLE: Role = Role::Aggregator;
/// How long a publication is retried.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checking whether a round should be closed or opened.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Interval of counting hard cases, where they may open a round.
const HARD_CASE_INTERVAL: Duration = Duration::from_secs(10);
/// Delay before retrying after a temporary failure.
const RETRY_DELAY: Duration = Duration::from_secs(3);

/// Runs a model's rounds until shutdown. `root`: the baseline model; `trial`: how releases are tried before they are
/// offered.
pub async fn run(
    bus: Bus,
    runtime: OnnxRuntime,
    root: Model,
    trial: TrialRunner,
    settings: &AggregatorSettings,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    check_requirements(settings).await?;
    let store = ReleaseStore::open(&settings.store).map_err(|error| stop_fault("store_unusable", &error))?;
    let key =
        settings.key.as_deref().map(SiteKey::read).transpose().map_err(|error| stop_fault("key_unusable", &error))?;
    let public = read_public_set(&root, settings).await?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open_in_cloud(&bus)).await else { return Ok(()) };
    let model = ModelName::from_name(&root.description.name);
    let Some(history) = retry_until_found(&shutdown, || RoundHistory::read(&bus, &model)).await else { return Ok(()) };
    let state = AggregatorStatus::default();
    let (rounds, from_sequence) = resume_point(&history, &root);
    let aggregator = Aggregator {
        bus: bus.clone(),
        blobs,
        publisher: Publisher::new(bus.clone(), PUBLISH_TIMEOUT),
        trial,
        key,
        releases: ModelReleases::new(store, model.clone()),
        workspace: ReleaseWorkspace { runtime, root: Arc::new(root), work: settings.work.clone() },
        public,
        settings: settings.clone(),
        state: state.clone(),
        without_gain: history.rounds_without_gain(),
        history,
        rounds,
        base: None,
        fetched: Vec::new(),
        refused: Vec::new(),
        ended_at: Instant::now(),
        hard_cases: HardCaseCount::default(),
        counted_at: Instant::now(),
        undecided_until: Instant::now(),
        opened_at_ms: 0,
        model: model.clone(),
    };
    let worker_stats = Arc::new(WorkerStats::default());
    let (status, stats) = (state.clone(), worker_stats.clone());
    // Reported as the release, because whoever opens a first round asks for it.
    let first = aggregator.workspace.root.release.clone();
    let heartbeats =
        heartbeat::send_heartbeats(bus, ROLE, None, worker_stats, shutdown.clone(), state.pace(), move |beat| {
            let report = status.current_beat();
            stats.finished.store(report.round, Ordering::Relaxed);
            (beat.model, beat.release) = (Some(model.to_string()), Some(first.clone()));
            beat.rounds = Some(report);
        });
    tracing::info!(role = ROLE.as_str(), "started");
    let worker = async {
        tokio::select! {
            ended = aggregator.run_worker(from_sequence) => ended,
            () = shutdown.wait_for_request() => Ok(()),
        }
    };
    let stopping = async {
        let ended = worker.await;
        shutdown.request();
        ended
    };
    let (ended, ()) = tokio::join!(stopping, heartbeats);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

/// Checks what only a person can provide: the public set that the rule needs, and keys for the release store. A store
/// that is merely away is waited for later.
///
/// # Errors
/// What is missing ([`Fault::Stop`]), with what to do.
pub async fn check_requirements(settings: &AggregatorSettings) -> Result<(), Fault> {
    if settings.public.is_none() && settings.merge.needs_public() {
        let reason =
            format!("rule {} scores models on a public set, and aggregator.public is not set", settings.merge.rule);
        let remedy = "set aggregator.public to a folder of labelled pictures, or use aggregator.merge.rule=fedavg";
        return Err(Fault::Stop(FaultNote::new("public_set_missing", reason, remedy)));
    }
    let store = ReleaseStore::open(&settings.store).map_err(|error| stop_fault("store_unusable", &error))?;
    match store.check_access().await {
        Err(error) if !error.is_transient() => {
            let remedy = "aggregator.store names the store; a folder needs no keys";
            Err(Fault::Stop(FaultNote::new("store_unusable", runtime::fault::error_chain(&error), remedy)))
        }
        _ => Ok(()),
    }
}

/// Reads the public set, if one is configured. A set that cannot be used at all stops the role, because the configured
/// rules could not be applied.
async fn read_public_set(root: &Model, settings: &AggregatorSettings) -> Result<Option<Arc<PublicSet>>, Fault> {
    let Some(folder) = settings.public.clone() else { return Ok(None) };
    let (root, max_per_class, max_bytes) =
        (root.clone(), settings.public_max_per_class as usize, (settings.public_max_mib as usize) << 20);
    let read = move || Ok(PublicSet::read(&folder, &root, max_per_class, max_bytes)?);
    let public = spawn_blocking(read).await.map_err(|error| stop_fault("public_set_unusable", &error))?;
    for unreadable in public.unreadable.iter().take(5) {
        tracing::warn!(role = ROLE.as_str(), unreadable, "public picture skipped");
    }
    let missing = public.missing();
    if !missing.is_empty() {
        tracing::warn!(role = ROLE.as_str(), classes = ?missing, "public set lacks classes");
    }
    Ok(Some(Arc::new(public)))
}

fn stop_fault(name: &str, error: &dyn std::error::Error) -> Fault {
    Fault::Stop(FaultNote::new(name, runtime::fault::error_chain(error), "correct the setting, or the file it names"))
}

/// Where reading starts: at the round before the last, because stragglers of that one may count in the last.
fn resume_point(history: &RoundHistory, root: &Model) -> (RoundTracker, u64) {
    let first = history.last().saturating_sub(1);
    let opened = history
        .all
        .iter()
        .find(|(_, _, round)| round.number >= first.max(1) && matches!(round.event, RoundEvent::Opened(_)));
    let Some((sequence, _, from)) = opened else { return (RoundTracker::new(root.release.clone()), 1) };
    let lineage = history.lineage(&root.release, *sequence);
    (RoundTracker::since(lineage, from.number - 1), *sequence)
}

/// The aggregator's own report in its heartbeat, for `status`.
type AggregatorStatus = heartbeat::WorkerReport<RoundReport>;

fn set_status(state: &AggregatorStatus, what: RoundState, why: impl Into<String>) {
    state.update_report(|report| (report.state, report.why) = (what.into(), why.into()));
}

struct Aggregator {
    bus: Bus,
    blobs: Blobs,
    publisher: Publisher,
    trial: TrialRunner,
    /// Signs rounds; absent: they are unsigned.
    key: Option<SiteKey>,
    releases: ModelReleases,
    workspace: ReleaseWorkspace,
    public: Option<Arc<PublicSet>>,
    settings: AggregatorSettings,
    state: AggregatorStatus,
    /// Events from before this worker started: rounds that had ended by then are not processed again.
    history: RoundHistory,
    rounds: RoundTracker,
    base: Option<Arc<RoundBase>>,
    fetched: Vec<FetchedUpdate>,
    refused: Vec<RefusedUpdate>,
    ended_at: Instant,
    hard_cases: HardCaseCount,
    counted_at: Instant,
    /// Do not check again before this time whether the release that the next round waits for is decided.
    undecided_until: Instant,
    /// Rounds in a row that gained nothing.
    without_gain: u32,
    /// When the last round was opened, milliseconds since the epoch; 0 before the first.
    opened_at_ms: u64,
    model: ModelName,
}

impl Aggregator {
    async fn run_worker(mut self, from_sequence: u64) -> Result<(), Fault> {
        while let Err(fault) = self.ensure_first_release().await {
            self.back_off(fault).await?;
        }
        set_status(&self.state, RoundState::Waiting, "for a round; `tributary round open` opens one");
        while let Err(fault) = self.apply_pushed_out_events(from_sequence).await {
            self.back_off(fault).await?;
        }
        let mut next = from_sequence;
        loop {
            // Resumes after the last message that was processed.
            let Err(fault) = self.follow_stream(&mut next).await else { continue };
            self.back_off(fault).await?;
        }
    }

    /// Applies the last rounds' events that updates have pushed out of the stream.
    async fn apply_pushed_out_events(&mut self, from_sequence: u64) -> Result<(), Fault> {
        let first = reader::stream_level(&self.bus, topology::UPDATES).await?.first_sequence;
        let before = |(sequence, ..): &&(u64, u64, Round)| (from_sequence..first).contains(sequence);
        let gone: Vec<(u64, u64, Round)> = self.history.all.iter().filter(before).cloned().collect();
        for (_, at_ms, round) in gone {
            self.apply_round_event(round, at_ms).await?;
        }
        Ok(())
    }

    /// Reports a fault and waits; a fault that only a person can fix ends the role.
    async fn back_off(&self, fault: Fault) -> Result<(), Fault> {
        match fault {
            Fault::Stop(_) => Err(fault),
            Fault::Reject(note) | Fault::Retry { note, .. } => {
                let why = format!("{} ({}); retrying", note.reason, note.kind);
                // `status` shows it for as long as it lasts; the log says it once.
                if self.state.current_beat().why == why {
                    tracing::debug!(role = ROLE.as_str(), fault = note.kind.as_str(), "retrying again");
                } else {
                    tracing::warn!(role = ROLE.as_str(), fault = note.kind.as_str(), reason = note.reason, "retrying");
                }
                set_status(&self.state, RoundState::Failed, why);
                wait_about(RETRY_DELAY).await;
                Ok(())
            }
            Fault::Wait { after } => {
                tokio::time::sleep(after).await;
                Ok(())
            }
        }
    }

    /// Publishes the baseline as a release: all others descend from it, and sites return to it.
    async fn ensure_first_release(&self) -> Result<(), Fault> {
        let root = &self.workspace.root;
        let sealed = self.releases.manifest(&root.release).await.map_err(store_fault)?;
        let rollout = decision_log::latest(&self.bus, &self.model).await?;
        if sealed.is_some() && rollout.is_some() {
            return Ok(());
        }
        let origin = ReleaseOrigin { words: "set up with".into(), ..ReleaseOrigin::default() };
        let release = self.package(root, origin).await?;
        if sealed.is_none() {
            self.seal_first(&release).await?;
        }
        let context =
            DecisionContext::new(DecisionOrigin::Aggregator, "baseline: sites were set up with it", clock::now_ms());
        // If another aggregator was faster, it published the same.
        decision_log::publish_decision(&self.publisher, &stage::first(self.model.clone(), release, context)).await?;
        Ok(())
    }

    async fn seal_first(&self, release: &Release) -> Result<(), Fault> {
        let root = &self.workspace.root;
        let (model, work) = (root.clone(), self.workspace.work.clone());
        let (weights, path) =
            spawn_blocking(move || release_builder::weights_of(&model, &work)).await.map_err(release_fault)?;
        let first = Manifest::first(self.model.clone(), root.release.clone(), root.labels.clone(), weights);
        self.releases.put(&first.packaged(release.package.clone()), &path).await.map_err(store_fault)?;
        Ok(())
    }

    /// Packages a model and offers it to sites.
    async fn package(&self, model: &Model, origin: ReleaseOrigin) -> Result<Release, Fault> {
        let work = self.workspace.work.join("packages");
        make_folder(Some(&work)).map_err(|error| release_fault(error.into()))?;
        let (release, file) = prepare::prepare(model, origin, &self.trial, &work).await.map_err(Fault::Reject)?;
        let kept = prepare::keep_and_offer(self.releases.store(), &self.blobs, &self.model, &release, &file).await;
        kept.map_err(|error| Fault::retry(error.kind(), runtime::fault::error_chain(&error)))?;
        if let Err(error) = tokio::fs::remove_file(&file).await {
            tracing::debug!(%error, "package not removed");
        }
        Ok(release)
    }

    async fn follow_stream(&mut self, next: &mut u64) -> Result<(), Fault> {
        let range = StreamRange {
            subjects: subject::rounds_and_updates(&self.model),
            from_sequence: Some(*next),
            ..StreamRange::default()
        };
        let mut records = std::pin::pin!(reader::follow_range(&self.bus, topology::UPDATES, range).await?);
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut caught_up = false;
        loop {
            tokio::select! {
                record = records.next() => {
                    let Some(record) = record else { return Ok(()) };
                    let record = record?;
                    let sequence = record.sequence;
                    self.apply_message(record).await?;
                    *next = sequence + 1;
                }
                // Before all events are read, this could open a round beside one that is open.
                _ = checks.tick() => {
                    caught_up = caught_up || self.is_caught_up(*next).await?;
                    if caught_up {
                        self.check_round().await?;
                    }
                }
            }
        }
    }

    /// Whether every stored message has been processed.
    async fn is_caught_up(&self, next: u64) -> Result<bool, Fault> {
        for subject in subject::rounds_and_updates(&self.model) {
            let newest = reader::last_message(&self.bus, topology::UPDATES, &subject).await?;
            if newest.is_some_and(|record| record.sequence >= next) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Closes or opens a round if it is time to.
    async fn check_round(&mut self) -> Result<(), Fault> {
        let Some(current) = self.rounds.current() else {
            let every = self.settings.round.every_s.map(|every| Duration::from_secs(every.into()));
            let due = every.is_some_and(|every| self.ended_at.elapsed() >= every) && !self.is_paused();
            if self.undecided_until > Instant::now() {
                return Ok(());
            }
            if due || self.has_enough_hard_cases().await? {
                self.open_round().await?;
            }
            return Ok(());
        };
        let number = current.number;
        let Some(why) = self.rounds.close_reason(clock::now_ms()) else { return Ok(()) };
        tracing::info!(role = ROLE.as_str(), round = number, why, "round closing");
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, number, RoundEvent::Closed { why })
            .await?;
        Ok(())
    }

    /// Whether rounds no longer open by the clock, because the last ones gained nothing and no site has learned
    /// anything new.
    fn is_paused(&self) -> bool {
        let stopped = self.settings.round.stop_after.is_some_and(|after| self.without_gain >= after);
        if stopped && self.state.current_beat().state != RoundState::Stopped {
            let gained_nothing = format!("{} rounds in a row gained nothing", self.without_gain);
            set_status(
                &self.state,
                RoundState::Stopped,
                format!("{gained_nothing}; waiting for sites to learn from new labels, or for `tributary round open`"),
            );
        }
        stopped
    }

    /// Whether enough sites found enough hard cases since the last round was opened.
    async fn has_enough_hard_cases(&mut self) -> Result<bool, Fault> {
        let Some(wanted) = self.settings.round.hard_cases else { return Ok(false) };
        if self.counted_at.elapsed() < HARD_CASE_INTERVAL {
            return Ok(false);
        }
        self.counted_at = Instant::now();
        self.hard_cases.count_new(&self.bus, self.opened_at_ms).await?;
        Ok(self.hard_cases.sites_with(wanted) >= self.settings.round.quorum as usize)
    }

    /// Each site's loss when it was last in a release.
    async fn read_losses(&self, release: &schemas::ReleaseId) -> Result<BTreeMap<SiteName, f64>, Fault> {
        let mut losses = BTreeMap::new();
        let mut next = Some(release.clone());
        while let Some(release) = next {
            let Some(manifest) = self.releases.manifest(&release).await.map_err(store_fault)? else { break };
            for part in manifest.made.iter().flat_map(|made| &made.record.parts) {
                if let Some(loss) = part.loss {
                    losses.entry(part.site.clone()).or_insert(loss);
                }
            }
            next = manifest.parent;
        }
        Ok(losses)
    }

    async fn open_round(&mut self) -> Result<(), Fault> {
        let history = RoundHistory::read(&self.bus, &self.model).await?;
        // The last round was opened a moment ago and its event is not processed yet.
        if history.last() > 0 && history.ended(history.last()).is_none() {
            return Ok(());
        }
        let rollout = decision_log::latest(&self.bus, &self.model).await?;
        if let Some(release) = round_open::read_undecided(&self.bus, rollout.as_ref()).await? {
            let why = format!("release {} is being tried; the next round opens when it is decided", release.short());
            set_status(&self.state, RoundState::Waiting, why);
            self.undecided_until = Instant::now() + HARD_CASE_INTERVAL;
            return Ok(());
        }
        self.ended_at = Instant::now();
        let withdrawn = rollout.map(|rollout| rollout.withdrawn).unwrap_or_default();
        let (base, weights) = history.base(&withdrawn, &self.workspace.root.release);
        let losses = match self.settings.round.client_selection {
            ClientSelection::LowestLoss => self.read_losses(&base).await?,
            ClientSelection::Random | ClientSelection::RoundRobin => BTreeMap::new(),
        };
        let sites = round_open::sites(&self.settings.round, history.last().saturating_add(1), &losses);
        let focus = round_open::read_focus(&self.bus, &base, &self.settings.round).await?;
        let terms = round_open::round_terms(base, weights, sites, focus, &self.settings.round);
        publish_round_event(
            &self.publisher,
            self.key.as_ref(),
            &self.model,
            history.last().saturating_add(1),
            RoundEvent::Opened(terms),
        )
        .await?;
        Ok(())
    }

    async fn apply_message(&mut self, record: StoredMessage) -> Result<(), Fault> {
        if record.subject.starts_with("round.") {
            return match round_open::read_round(&record) {
                Some(round) => self.apply_round_event(round, stored_at_ms(&record)).await,
                None => Ok(()),
            };
        }
        self.receive_update(&record).await
    }

    /// Whether a round had ended when this worker started.
    fn is_past(&self, number: u64) -> bool {
        self.history.ended(number).is_some()
    }

    async fn apply_round_event(&mut self, round: Round, stored_at_ms: u64) -> Result<(), Fault> {
        let number = round.number;
        if matches!(round.event, RoundEvent::Opened(_)) && number > self.rounds.last() {
            if let Some(left) = self.rounds.current().map(|current| current.number).filter(|left| !self.is_past(*left))
            {
                let reason = format!("round {number} was opened before this one had ended");
                let remedy = "open one round at a time, with `tributary round open`";
                self.fail_round(left, FaultNote::new("round_superseded", reason, remedy)).await?;
            }
            if !self.is_past(number) {
                self.open_base(&round).await?;
            }
            self.opened_at_ms = stored_at_ms;
            let waiting = self.rounds.apply_event(&round, stored_at_ms);
            for UpdateArrival { update, sequence, stored_at_ms, .. } in waiting {
                if let Some(record) = self.read_waiting_update(sequence).await? {
                    self.consider_update(update, &record, stored_at_ms).await?;
                }
            }
            self.publish_status();
            return Ok(());
        }
        let closes = matches!(round.event, RoundEvent::Closed { .. });
        let outcome = match &round.event {
            RoundEvent::Sealed { release, updates, .. } => {
                Some(format!("round {number}: release {} from {updates} updates", release.short()))
            }
            RoundEvent::Failed(note) => {
                Some(format!("round {number}: {} ({}); {}", note.reason, note.kind, note.remedy))
            }
            RoundEvent::Opened(_) | RoundEvent::Closed { .. } | RoundEvent::Remade { .. } => None,
        };
        // A late ending of a round that another one has replaced must not end the current one.
        let is_over = self.rounds.current().is_none_or(|current| current.number <= number);
        if !self.is_past(number) {
            match &round.event {
                RoundEvent::Sealed { .. } => self.without_gain = 0,
                RoundEvent::Failed(note) if note.kind == FaultKind::NothingGained => self.without_gain += 1,
                _ => {}
            }
        }
        if let Some(outcome) = outcome {
            self.state.update_report(|report| report.last = Some(outcome));
            if is_over {
                self.reset_round();
            }
        }
        let first_close =
            closes && self.rounds.current().is_some_and(|current| current.number == number && current.closed.is_none());
        self.rounds.apply_event(&round, stored_at_ms);
        if is_over && matches!(round.event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_)) {
            self.remove_work_files();
        }
        if first_close && !self.is_past(number) {
            self.refuse_outlier_norms().await?;
            while let Err(fault) = self.finish_round().await {
                self.back_off(fault).await?;
            }
        }
        Ok(())
    }

    /// Reads an update that waited. It does not wait a second time, so this retries until it succeeds.
    async fn read_waiting_update(&self, sequence: u64) -> Result<Option<StoredMessage>, Fault> {
        loop {
            match reader::message_at(&self.bus, topology::UPDATES, sequence).await {
                Ok(record) => return Ok(record),
                Err(error) => self.back_off(error.into()).await?,
            }
        }
    }

    /// Removes the last round's temporary files; they are in the store. Only the latest release is kept, as the next
    /// round starts from it.
    fn remove_work_files(&self) {
        let (work, latest) = (&self.workspace.work, self.rounds.release().as_str());
        let _absent = std::fs::remove_dir_all(work.join("updates"));
        for folder in ["releases", "weights"] {
            for entry in std::fs::read_dir(work.join(folder)).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if name.starts_with(latest) {
                    continue;
                }
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::debug!(role = ROLE.as_str(), path = %path.display(), %error, "cleanup deferred");
                }
            }
        }
    }

    fn reset_round(&mut self) {
        (self.base, self.ended_at) = (None, Instant::now());
        self.fetched.clear();
        self.refused.clear();
        self.state.update_report(|report| {
            (report.state, report.why) = (RoundState::Waiting.into(), "for a round".into());
        });
    }

    fn publish_status(&self) {
        let Some(current) = self.rounds.current() else { return };
        self.state.update_report(|report| {
            (report.state, report.why) = (RoundState::Open.into(), String::new());
            report.round = current.number;
            report.updates = u32::try_from(current.accepted.len()).unwrap_or(u32::MAX);
            report.quorum = current.terms.quorum;
        });
    }

    /// Opens the base that updates are compared with. A round whose base cannot be opened ends at once.
    async fn open_base(&mut self, round: &Round) -> Result<(), Fault> {
        let RoundEvent::Opened(terms) = &round.event else { return Ok(()) };
        self.fetched.clear();
        self.refused.clear();
        let prepared = async {
            let model = self.workspace.folder(&self.releases, &terms.base).await?;
            let (runtime, trainable, local) =
                (self.workspace.runtime.clone(), terms.trainable.clone(), terms.local.clone());
            spawn_blocking(move || {
                let trainable = trainable.parse().map_err(TrainError::from)?;
                Ok(RoundBase::open(&runtime, model, &trainable, &local)?)
            })
            .await
        };
        match prepared.await {
            Ok(base) => {
                if let Some(weights) = terms.weights.as_ref().filter(|_| terms.base != self.workspace.root.release) {
                    // Objects in the bucket expire; couriers fetch it now.
                    self.offer_weights(weights, &self.workspace.weights(&terms.base)).await?;
                }
                self.base = Some(Arc::new(base));
                tracing::info!(role = ROLE.as_str(), round = round.number, base = terms.base.short(), "round opened");
                Ok(())
            }
            Err(ReleaseVerifyError::Store(error)) if error.is_transient() => Err(error.into()),
            Err(error) => {
                let reason = runtime::fault::error_chain(&error);
                let note =
                    FaultNote::new("round_unusable", reason, "open a round with other terms (`tributary round open`)");
                publish_round_event(
                    &self.publisher,
                    self.key.as_ref(),
                    &self.model,
                    round.number,
                    RoundEvent::Failed(note),
                )
                .await?;
                Ok(())
            }
        }
    }
}

/// The store may be back in a moment, whatever the error; a round waits for it.
fn store_fault(error: ReleaseError) -> Fault {
    Fault::retry("store_failed", runtime::fault::error_chain(&error))
}

fn release_fault(error: ReleaseVerifyError) -> Fault {
    Fault::retry("seal_failed", runtime::fault::error_chain(&error))
}
