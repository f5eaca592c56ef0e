//! The walk of a round: opened → check, as updates come → closed → score → weigh → merge → seal. What is done is written in
//! the stream and in the store alone, so that one that was killed, or a second one, comes to the same.

mod finish;
mod receive;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use rollout::decision_log;
use rollout::prepare::{self, ReleaseOrigin};
use rollout::stage::{self, DecisionContext};
use rollout::trial::TrialRunner;
use runtime::consumer::WorkerStats;
use runtime::site_key::SiteKey;
use runtime::{Fault, Shutdown, clock, heartbeat, retry_until_found};
use schemas::{
    DecisionOrigin, FaultKind, FaultNote, ModelName, Release, Role, Round, RoundEvent, RoundReport, RoundState,
    SiteName,
};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Blobs, Bus, Publisher, ReleaseStore, subject, topology};
use tokio::time::{Instant, MissedTickBehavior};
use training::TrainError;
use vision::{Model, OnnxRuntime};

use crate::public_set::PublicSet;
use crate::release::{Manifest, ModelReleases, RefusedUpdate, ReleaseError};
use crate::release_builder::{self, FetchedUpdate, RoundBase};
use crate::round::{RoundTracker, UpdateArrival};
use crate::round_open::{self, RoundHistory, publish_round_event, stored_at_ms};
use crate::settings::{AggregatorSettings, ClientSelection};
use crate::verify::{ReleaseVerifyError, ReleaseWorkspace, make_folder, spawn_blocking};

const ROLE: Role = Role::Aggregator;
/// How long a publication is retried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether a round should be closed or opened.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often hard cases are counted, where that may open a round.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// After a failure of the moment.
const AGAIN: Duration = Duration::from_secs(3);

/// Runs a model's rounds until it is told to stop. `root`: the model that sites were set up with; `trial`: how what comes of
/// a round is tried before it is offered.
pub async fn run(
    bus: Bus,
    runtime: OnnxRuntime,
    root: Model,
    trial: TrialRunner,
    settings: &AggregatorSettings,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let store = ReleaseStore::open(&settings.store).map_err(|error| stop("store_unusable", &error))?;
    let key = settings.key.as_deref().map(SiteKey::read).transpose().map_err(|error| stop("key_unusable", &error))?;
    let public = public(&root, settings).await?;
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open_in_cloud(&bus)).await else { return Ok(()) };
    let model = ModelName::from_name(&root.description.name);
    let Some(history) = retry_until_found(&shutdown, || RoundHistory::read(&bus, &model)).await else { return Ok(()) };
    let state = AggregatorStatus::default();
    let (rounds, from_sequence) = before(&history, &root);
    let aggregator = Aggregator {
        bus: bus.clone(),
        blobs,
        publisher: Publisher::new(bus.clone(), PATIENCE),
        trial,
        key,
        releases: ModelReleases::new(store, model.clone()),
        place: ReleaseWorkspace { runtime, root: Arc::new(root), work: settings.work.clone() },
        public,
        settings: settings.clone(),
        state: state.clone(),
        without_gain: history.rounds_without_gain(),
        history,
        rounds,
        base: None,
        held: Vec::new(),
        refused: Vec::new(),
        ended_at: Instant::now(),
        counted_at: Instant::now(),
        undecided_until: Instant::now(),
        opened_at_ms: 0,
        model: model.clone(),
    };
    let tally = Arc::new(WorkerStats::default());
    let (told, counted) = (state.clone(), tally.clone());
    // Who opens a first round asks for it.
    let first = aggregator.place.root.release.clone();
    let life = heartbeat::send_heartbeats(bus, ROLE, None, tally, shutdown.clone(), state.pace(), move |beat| {
        let report = told.current_beat();
        counted.finished.store(report.round, Ordering::Relaxed);
        (beat.model, beat.release) = (Some(model.to_string()), Some(first.clone()));
        beat.rounds = Some(report);
    });
    tracing::info!(role = ROLE.as_str(), "started");
    let walk = async {
        tokio::select! {
            ended = aggregator.run_worker(from_sequence) => ended,
            () = shutdown.wait_for_request() => Ok(()),
        }
    };
    let stopping = async {
        let ended = walk.await;
        shutdown.request();
        ended
    };
    let (ended, ()) = tokio::join!(stopping, life);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

/// What models are tried on, if anything. A public set that cannot be used at all stops the role: rules would not be
/// those that were asked for.
async fn public(root: &Model, settings: &AggregatorSettings) -> Result<Option<Arc<PublicSet>>, Fault> {
    let Some(folder) = settings.public.clone() else {
        if settings.merge.needs_public() {
            let reason = format!("rule {} tries models on a public set, and none is named", settings.merge.rule);
            let remedy =
                "name a folder of labelled pictures with aggregator.public, or use aggregator.merge.rule=fedavg";
            return Err(Fault::Stop(FaultNote::new("public_set_missing", reason, remedy)));
        }
        return Ok(None);
    };
    let (root, most, room) =
        (root.clone(), settings.public_max_per_class as usize, (settings.public_max_mib as usize) << 20);
    let read = move || Ok(PublicSet::read(&folder, &root, most, room)?);
    let public = spawn_blocking(read).await.map_err(|error| stop("public_set_unusable", &error))?;
    for unreadable in public.unreadable.iter().take(5) {
        tracing::warn!(role = ROLE.as_str(), unreadable, "a picture of the public set is left out");
    }
    let missing = public.missing();
    if !missing.is_empty() {
        tracing::warn!(role = ROLE.as_str(), classes = ?missing, "the public set has no picture of some classes: they do not count");
    }
    Ok(Some(Arc::new(public)))
}

fn stop(name: &str, error: &dyn std::error::Error) -> Fault {
    Fault::Stop(FaultNote::new(name, runtime::fault::error_chain(error), "correct the setting, or what it names"))
}

/// Where reading begins: with the round before the last, for what came after it was closed may count in the last.
fn before(history: &RoundHistory, root: &Model) -> (RoundTracker, u64) {
    let first = history.last().saturating_sub(1);
    let opened = history
        .all
        .iter()
        .find(|(_, _, round)| round.number >= first.max(1) && matches!(round.event, RoundEvent::Opened(_)));
    let Some((sequence, _, from)) = opened else { return (RoundTracker::new(root.release.clone()), 1) };
    let lineage = history.lineage(&root.release, *sequence);
    (RoundTracker::since(lineage, from.number - 1), *sequence)
}

/// What it does, for `status`.
type AggregatorStatus = heartbeat::WorkerReport<RoundReport>;

fn set_status(state: &AggregatorStatus, what: RoundState, why: impl Into<String>) {
    state.update_report(|report| (report.state, report.why) = (what.into(), why.into()));
}

struct Aggregator {
    bus: Bus,
    blobs: Blobs,
    publisher: Publisher,
    trial: TrialRunner,
    /// Signs what sites are asked.
    key: Option<SiteKey>,
    releases: ModelReleases,
    place: ReleaseWorkspace,
    public: Option<Arc<PublicSet>>,
    settings: AggregatorSettings,
    state: AggregatorStatus,
    /// What had happened when it started: rounds that ended then are not gone through again.
    history: RoundHistory,
    rounds: RoundTracker,
    base: Option<Arc<RoundBase>>,
    held: Vec<FetchedUpdate>,
    refused: Vec<RefusedUpdate>,
    ended_at: Instant,
    counted_at: Instant,
    /// Until then nobody looks again whether a release is decided that the next round waits for.
    undecided_until: Instant,
    /// Rounds in a row that gained nothing.
    without_gain: u32,
    /// When the last round was opened, milliseconds since the epoch; 0 before the first.
    opened_at_ms: u64,
    model: ModelName,
}

impl Aggregator {
    async fn run_worker(mut self, from_sequence: u64) -> Result<(), Fault> {
        while let Err(fault) = self.first_release().await {
            self.later(fault).await?;
        }
        set_status(&self.state, RoundState::Waiting, "for a round: `tributary round open`");
        while let Err(fault) = self.pushed_out(from_sequence).await {
            self.later(fault).await?;
        }
        let mut next = from_sequence;
        loop {
            // Whatever broke is begun again where it was left.
            let Err(fault) = self.follow(&mut next).await else { continue };
            self.later(fault).await?;
        }
    }

    /// Goes through what happened in the last rounds and is not in the stream any more, for updates pushed it out.
    async fn pushed_out(&mut self, from_sequence: u64) -> Result<(), Fault> {
        let first = reader::stream_level(&self.bus, topology::UPDATES).await?.first_sequence;
        let before = |(sequence, ..): &&(u64, u64, Round)| (from_sequence..first).contains(sequence);
        let gone: Vec<(u64, u64, Round)> = self.history.all.iter().filter(before).cloned().collect();
        for (_, at_ms, round) in gone {
            self.happened(round, at_ms).await?;
        }
        Ok(())
    }

    /// Says what went wrong, and waits; what only a person can mend ends the role.
    async fn later(&self, fault: Fault) -> Result<(), Fault> {
        match fault {
            Fault::Stop(_) => Err(fault),
            Fault::Reject(note) | Fault::Retry { note, .. } => {
                tracing::warn!(
                    role = ROLE.as_str(),
                    fault = note.kind.as_str(),
                    reason = note.reason,
                    "tried again later"
                );
                set_status(&self.state, RoundState::Failed, format!("{} ({}): tried again", note.reason, note.kind));
                tokio::time::sleep(AGAIN).await;
                Ok(())
            }
            Fault::Wait { after } => {
                tokio::time::sleep(after).await;
                Ok(())
            }
        }
    }

    /// The model that sites were set up with is a release too: what others descend from, and what sites come back to.
    async fn first_release(&self) -> Result<(), Fault> {
        let root = &self.place.root;
        let sealed = self.releases.manifest(&root.release).await.map_err(unreleased)?;
        let said = decision_log::latest(&self.bus, &self.model).await?;
        if sealed.is_some() && said.is_some() {
            return Ok(());
        }
        let origin = ReleaseOrigin { words: "set up with".into(), ..ReleaseOrigin::default() };
        let release = self.package(root, origin).await?;
        if sealed.is_none() {
            self.seal_first(&release).await?;
        }
        let said = DecisionContext::new(DecisionOrigin::Aggregator, "sites were set up with it", clock::now_ms());
        // Whoever was faster said the same.
        decision_log::publish_decision(&self.publisher, &stage::first(self.model.clone(), release, said)).await?;
        Ok(())
    }

    async fn seal_first(&self, release: &Release) -> Result<(), Fault> {
        let root = &self.place.root;
        let (model, work) = (root.clone(), self.place.work.clone());
        let (weights, path) =
            spawn_blocking(move || release_builder::weights_of(&model, &work)).await.map_err(unverified)?;
        let first = Manifest::first(self.model.clone(), root.release.clone(), root.labels.clone(), weights);
        self.releases.put(&first.packaged(release.package.clone()), &path).await.map_err(unreleased)?;
        Ok(())
    }

    /// A release's package, where sites can have it.
    async fn package(&self, model: &Model, origin: ReleaseOrigin) -> Result<Release, Fault> {
        let work = self.place.work.join("packages");
        make_folder(Some(&work)).map_err(|error| unverified(error.into()))?;
        let (release, file) = prepare::prepare(model, origin, &self.trial, &work).await.map_err(Fault::Reject)?;
        let kept = prepare::keep_and_offer(self.releases.store(), &self.blobs, &self.model, &release, &file).await;
        kept.map_err(|error| Fault::retry(error.kind(), runtime::fault::error_chain(&error)))?;
        if let Err(error) = tokio::fs::remove_file(&file).await {
            tracing::debug!(%error, "a package is left where it is");
        }
        Ok(release)
    }

    async fn follow(&mut self, next: &mut u64) -> Result<(), Fault> {
        let stretch = StreamRange {
            subjects: subject::rounds_and_updates(&self.model),
            from_sequence: Some(*next),
            ..StreamRange::default()
        };
        let mut records = std::pin::pin!(reader::follow_range(&self.bus, topology::UPDATES, stretch).await?);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                // Who has not read what happened would open a round beside one that is open.
                _ = looks.tick() => {
                    caught_up = caught_up || self.is_read(*next).await?;
                    if caught_up {
                        self.check_round().await?;
                    }
                }
            }
        }
    }

    /// Whether nothing that was stored waits to be read.
    async fn is_read(&self, next: u64) -> Result<bool, Fault> {
        for subject in subject::rounds_and_updates(&self.model) {
            let newest = reader::last_message(&self.bus, topology::UPDATES, &subject).await?;
            if newest.is_some_and(|record| record.sequence >= next) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a round should be closed, or opened.
    async fn check_round(&mut self) -> Result<(), Fault> {
        let Some(current) = self.rounds.current() else {
            let every = self.settings.round.every_s.map(|every| Duration::from_secs(every.into()));
            let due = every.is_some_and(|every| self.ended_at.elapsed() >= every) && !self.is_stopped();
            if self.undecided_until > Instant::now() {
                return Ok(());
            }
            if due || self.is_hard().await? {
                self.open().await?;
            }
            return Ok(());
        };
        let number = current.number;
        let Some(why) = self.rounds.close_reason(clock::now_ms()) else { return Ok(()) };
        tracing::info!(role = ROLE.as_str(), round = number, why, "closes a round");
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, number, RoundEvent::Closed { why })
            .await?;
        Ok(())
    }

    /// Whether no round opens by the clock any more, for the last ones gained nothing and no site learned anything new.
    fn is_stopped(&self) -> bool {
        let stopped = self.settings.round.stop_after.is_some_and(|after| self.without_gain >= after);
        if stopped && self.state.current_beat().state != RoundState::Stopped {
            let gained_nothing = format!("{} rounds in a row gained nothing", self.without_gain);
            set_status(
                &self.state,
                RoundState::Stopped,
                format!("{gained_nothing}: until sites learn from new labels, or `tributary round open`"),
            );
        }
        stopped
    }

    /// Whether enough sites found enough hard cases since the last round was opened.
    async fn is_hard(&mut self) -> Result<bool, Fault> {
        let Some(wanted) = self.settings.round.hard_cases else { return Ok(false) };
        if self.counted_at.elapsed() < COUNT_EVERY {
            return Ok(false);
        }
        self.counted_at = Instant::now();
        let level = reader::stream_level(&self.bus, topology::HARDCASES).await?;
        let since_ms = self.opened_at_ms;
        let mut of_site: BTreeMap<String, u32> = BTreeMap::new();
        let stretch = StreamRange { headers_only: true, ..StreamRange::default() };
        reader::read_range(&self.bus, topology::HARDCASES, stretch, level.last_sequence, |record| {
            if stored_at_ms(&record) > since_ms {
                *of_site.entry(record.subject).or_default() += 1;
            }
        })
        .await?;
        let sites = of_site.values().filter(|count| **count >= wanted).count();
        Ok(sites >= self.settings.round.quorum as usize)
    }

    /// Each site's loss when it was last in a release.
    async fn losses(&self, release: &schemas::ReleaseId) -> Result<BTreeMap<SiteName, f64>, Fault> {
        let mut losses = BTreeMap::new();
        let mut next = Some(release.clone());
        while let Some(release) = next {
            let Some(manifest) = self.releases.manifest(&release).await.map_err(unreleased)? else { break };
            for part in manifest.made.iter().flat_map(|made| &made.record.parts) {
                if let Some(loss) = part.loss {
                    losses.entry(part.site.clone()).or_insert(loss);
                }
            }
            next = manifest.parent;
        }
        Ok(losses)
    }

    async fn open(&mut self) -> Result<(), Fault> {
        let history = RoundHistory::read(&self.bus, &self.model).await?;
        // One that was opened just now is not read yet.
        if history.last() > 0 && history.ended(history.last()).is_none() {
            return Ok(());
        }
        let rollout = decision_log::latest(&self.bus, &self.model).await?;
        if let Some(release) = round_open::read_undecided(&self.bus, rollout.as_ref()).await? {
            let why = format!("release {} is tried: the next round starts when that is decided", release.short());
            set_status(&self.state, RoundState::Waiting, why);
            self.undecided_until = Instant::now() + COUNT_EVERY;
            return Ok(());
        }
        self.ended_at = Instant::now();
        let withdrawn = rollout.map(|rollout| rollout.withdrawn).unwrap_or_default();
        let (base, weights) = history.base(&withdrawn, &self.place.root.release);
        let losses = match self.settings.round.client_selection {
            ClientSelection::Usefulness => self.losses(&base).await?,
            ClientSelection::Lot | ClientSelection::Turn => BTreeMap::new(),
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
                Some(round) => self.happened(round, stored_at_ms(&record)).await,
                None => Ok(()),
            };
        }
        self.update(&record).await
    }

    /// Whether a round had ended when this worker started.
    fn is_past(&self, number: u64) -> bool {
        self.history.ended(number).is_some()
    }

    async fn happened(&mut self, round: Round, stored_at_ms: u64) -> Result<(), Fault> {
        let number = round.number;
        if matches!(round.event, RoundEvent::Opened(_)) && number > self.rounds.last() {
            if let Some(left) = self.rounds.current().map(|current| current.number).filter(|left| !self.is_past(*left))
            {
                let reason = format!("round {number} was opened before it had ended");
                let remedy = "open one round at a time; `tributary round open` does";
                self.fail(left, FaultNote::new("round_superseded", reason, remedy)).await?;
            }
            if !self.is_past(number) {
                self.prepare(&round).await?;
            }
            self.opened_at_ms = stored_at_ms;
            let waited = self.rounds.apply_event(&round, stored_at_ms);
            for UpdateArrival { update, sequence, stored_at_ms, .. } in waited {
                if let Some(record) = self.retry(sequence).await? {
                    self.consider(update, &record, stored_at_ms).await?;
                }
            }
            self.publish_status();
            return Ok(());
        }
        let closes = matches!(round.event, RoundEvent::Closed { .. });
        let said = match &round.event {
            RoundEvent::Sealed { release, updates, .. } => {
                Some(format!("round {number}: release {} of {updates} updates", release.short()))
            }
            RoundEvent::Failed(note) => {
                Some(format!("round {number}: {} ({}); {}", note.reason, note.kind, note.remedy))
            }
            RoundEvent::Opened(_) | RoundEvent::Closed { .. } | RoundEvent::Remade { .. } => None,
        };
        // The end of a round that another one took the place of leaves that one as it is.
        let is_over = self.rounds.current().is_none_or(|current| current.number <= number);
        if !self.is_past(number) {
            match &round.event {
                RoundEvent::Sealed { .. } => self.without_gain = 0,
                RoundEvent::Failed(note) if note.kind == FaultKind::NothingGained => self.without_gain += 1,
                _ => {}
            }
        }
        if let Some(said) = said {
            self.state.update_report(|report| report.last = Some(said));
            if is_over {
                self.ended();
            }
        }
        let first_close =
            closes && self.rounds.current().is_some_and(|current| current.number == number && current.closed.is_none());
        self.rounds.apply_event(&round, stored_at_ms);
        if is_over && matches!(round.event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_)) {
            self.sweep();
        }
        if first_close && !self.is_past(number) {
            self.leave_out_the_longest().await?;
            while let Err(fault) = self.finish().await {
                self.later(fault).await?;
            }
        }
        Ok(())
    }

    /// An update that waited, read again; it does not wait a second time, so this does not give up.
    async fn retry(&self, sequence: u64) -> Result<Option<StoredMessage>, Fault> {
        loop {
            match reader::message_at(&self.bus, topology::UPDATES, sequence).await {
                Ok(record) => return Ok(record),
                Err(error) => self.later(error.into()).await?,
            }
        }
    }

    /// Removes what the last round worked with; it is in the store, and the latest release is what the next one starts from.
    fn sweep(&self) {
        let (work, latest) = (&self.place.work, self.rounds.release().as_str());
        let _absent = std::fs::remove_dir_all(work.join("updates"));
        for folder in ["releases", "weights"] {
            for entry in std::fs::read_dir(work.join(folder)).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if name.starts_with(latest) {
                    continue;
                }
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::debug!(role = ROLE.as_str(), path = %path.display(), %error, "left for the next time");
                }
            }
        }
    }

    fn ended(&mut self) {
        (self.base, self.ended_at) = (None, Instant::now());
        self.held.clear();
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

    /// Makes ready what updates are held against. A round that nothing can be held against ends at once.
    async fn prepare(&mut self, round: &Round) -> Result<(), Fault> {
        let RoundEvent::Opened(terms) = &round.event else { return Ok(()) };
        self.held.clear();
        self.refused.clear();
        let prepared = async {
            let model = self.place.folder(&self.releases, &terms.base).await?;
            let (runtime, trainable, local) =
                (self.place.runtime.clone(), terms.trainable.clone(), terms.local.clone());
            spawn_blocking(move || {
                let trainable = trainable.parse().map_err(TrainError::from)?;
                Ok(RoundBase::open(&runtime, model, &trainable, &local)?)
            })
            .await
        };
        match prepared.await {
            Ok(base) => {
                if let Some(weights) = terms.weights.as_ref().filter(|_| terms.base != self.place.root.release) {
                    // What is in the bucket is forgotten after a while; couriers come for it now.
                    self.offer(weights, &self.place.weights(&terms.base)).await?;
                }
                self.base = Some(Arc::new(base));
                tracing::info!(
                    role = ROLE.as_str(),
                    round = round.number,
                    base = terms.base.short(),
                    "a round is open"
                );
                Ok(())
            }
            Err(ReleaseVerifyError::Store(error)) if error.is_transient() => Err(error.into()),
            Err(error) => {
                let reason = runtime::fault::error_chain(&error);
                let note = FaultNote::new("round_unusable", reason, "open a round with other terms");
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

/// The store may be there again in a moment, whatever it says now; a round waits for it.
fn unreleased(error: ReleaseError) -> Fault {
    Fault::retry("store_failed", runtime::fault::error_chain(&error))
}

fn unverified(error: ReleaseVerifyError) -> Fault {
    Fault::retry("seal_failed", runtime::fault::error_chain(&error))
}
