//! A round that is closed: merge, seal, tell; or say why not.

use std::path::Path;

use rollout::decision_log;
use rollout::prepare::ReleaseOrigin;
use rollout::stage::{self, DecisionContext};
use runtime::{Fault, clock};
use schemas::{BlobRef, FaultNote, Release, RoundEvent};
use streams::CarryError;
use training::TrainError;
use vision::Model;

use super::{Aggregator, ROLE, set_status, unreleased, unverified};
use crate::audit::AggregateAudit;
use crate::check;
use crate::release::{DERIVATION, Manifest, MergedUpdate, ReleaseRound, RoundRelease};
use crate::release_builder::{self, ReleaseBuildError};
use crate::round_open::{NOTHING_GAINED, publish_round_event};
use crate::rule::PREVIOUS;
use crate::verify::{ReleaseVerifyError, make_folder, spawn_blocking};

impl Aggregator {
    /// The round is closed: a release, or the reason why there is none.
    pub(super) async fn finish(&mut self) -> Result<(), Fault> {
        let Some(current) = self.rounds.current().cloned() else { return Ok(()) };
        let Some(base) = self.base.clone() else { return Ok(()) };
        let number = current.number;
        set_status(&self.state, "merging", format!("{} updates", self.held.len()));
        let (count, quorum) = (self.held.len(), current.terms.quorum as usize);
        if count < quorum {
            let refused = self.refused.len();
            let reason = format!("{count} updates count and {quorum} are needed; {refused} were refused");
            let remedy = "open another round; look at the sites' trainers, at `tributary dead-letters list`, or ask for fewer (round.quorum)";
            return self.fail(number, FaultNote::new("quorum_missed", reason, remedy)).await;
        }
        let parent = self.releases.manifest(&current.terms.base).await.map_err(unreleased)?;
        let memory = self.place.memory(&self.releases, parent.as_ref()).await.map_err(unverified)?;
        let is_learning = self.releases.is_learning(parent.as_ref()).await.map_err(unreleased)?;
        let before = parent.and_then(|parent| Some(parent.made?.memory?.1));
        let work = {
            let (place, public, settings) = (self.place.clone(), self.public.clone(), self.settings.merge.clone());
            let (base, held) = (base.clone(), self.held.clone());
            move || {
                let public = public.as_deref();
                let derived = release_builder::merge(
                    &place.runtime,
                    &base,
                    &held,
                    public,
                    memory,
                    &settings,
                    (number, is_learning),
                )?;
                if derived.record.rule == PREVIOUS {
                    return Ok(Err(nothing_gained(&derived.record, &base.model.labels)));
                }
                let (model, weights, file) =
                    release_builder::folder_with(&place.root, &base, &derived.row, &place.work.join("releases"))?;
                let memory = match release_builder::memory_bytes(&derived.memory)? {
                    None => None,
                    Some(bytes) => {
                        let path = place.work.join("memory.safetensors");
                        let blob = crate::release::write(&path, &bytes).map_err(TrainError::write(&path))?;
                        Some((blob, path))
                    }
                };
                Ok(Ok((derived.record, model, weights, file, memory)))
            }
        };
        let (record, model, weights, file, memory) = match spawn_blocking(work).await {
            Ok(Ok(made)) => made,
            Ok(Err(note)) => return self.fail(number, note).await,
            Err(ReleaseVerifyError::Seal(
                error @ (ReleaseBuildError::Derive(_) | ReleaseBuildError::OtherModel { .. }),
            )) => {
                let reason = runtime::fault::error_chain(&error);
                return self.fail(number, FaultNote::new("merge_failed", reason, "correct the setting")).await;
            }
            Err(error) => return Err(unverified(error)),
        };
        for held in &self.held {
            self.releases.keep_file(&held.merged.weights, &held.path).await?;
        }
        if let Some((blob, path)) = &memory {
            self.releases.keep_file(blob, path).await?;
        }
        let (closed_at_ms, closed_because) = current.closed.clone().unwrap_or_default();
        let mut updates: Vec<MergedUpdate> = self.held.iter().map(|held| held.merged.clone()).collect();
        updates.sort_by(|a, b| a.site.cmp(&b.site));
        let made = ReleaseRound {
            opened_at_ms: current.opened_at_ms,
            closed_at_ms,
            closed_because,
            trainable: current.terms.trainable.clone(),
            local: current.terms.local.clone(),
            derivation: DERIVATION,
            is_learning,
            settings: self.settings.merge.clone(),
            public_sha256: self.public.as_ref().map(|public| public.sha256.clone()),
            updates,
            refused: self.refused.clone(),
            record,
            memory: memory.map(|(blob, _)| (before, blob)),
        };
        let first = Manifest::first(self.model.clone(), model.release.clone(), model.labels.clone(), weights.clone());
        let manifest = first.of_round(current.terms.base.clone(), number, made);
        let release = self.packaged(&manifest, &model).await?;
        let package = release.as_ref().map(|release| release.package.clone()).unwrap_or_default();
        let manifest = manifest.packaged(package);
        self.releases.put(&manifest, &file).await.map_err(unreleased)?;
        let sealed = self.releases.publish_release(number, &model.release).await.map_err(unreleased)?;
        if let Some(release) = release.filter(|release| release.release == sealed.release) {
            self.propose(release, self::count(&manifest)).await?;
        }
        self.announce(sealed, &manifest, &file).await
    }

    /// What came of a round, packaged; `None` if it does not run when it is tried: it is sealed all the same, and not
    /// offered to sites.
    async fn packaged(&self, manifest: &Manifest, model: &Model) -> Result<Option<Release>, Fault> {
        let words = format!("round {}", manifest.round);
        let parent = manifest.parent.clone();
        let origin = match &manifest.made {
            Some(made) => made.record.origin(parent, words),
            None => ReleaseOrigin { parent, words, ..ReleaseOrigin::default() },
        };
        match self.package(model, origin).await {
            Ok(release) => Ok(Some(release)),
            Err(Fault::Reject(note)) if note.name != "trial_impossible" => {
                let (release, fault, reason) = (manifest.release.short(), note.name, note.reason);
                tracing::warn!(role = ROLE, release, fault, reason, "a release is not offered to sites");
                Ok(None)
            }
            Err(Fault::Reject(note)) => Err(Fault::retry(&note.name, note.reason)),
            Err(fault) => Err(fault),
        }
    }

    /// Offers a sealed release to be tried by sites. Said before the round has ended, so that one that is killed in between
    /// does it again.
    async fn propose(&self, release: Release, updates: u32) -> Result<(), Fault> {
        let why = format!("{} of {updates} updates", release.origin);
        let said = decision_log::decide(&self.bus, &self.publisher, &self.model, |now| {
            let said = DecisionContext::new(ROLE, why.clone(), clock::now_ms());
            // One that is known was offered before, by this worker or by another.
            let next = now.map(|now| stage::candidate(now, release.clone(), said));
            Ok::<_, CarryError>(next.and_then(Result::ok))
        });
        said.await?;
        Ok(())
    }

    /// Tells the sealed release: its weights go where sites can fetch them from.
    async fn announce(&mut self, sealed: RoundRelease, own: &Manifest, file: &Path) -> Result<(), Fault> {
        let (round, release) = (sealed.round, sealed.release);
        let (weights, path, updates) = if release == own.release {
            (own.weights.clone(), file.to_owned(), count(own))
        } else {
            // Another aggregator with other settings was faster; what it sealed stands.
            tracing::warn!(role = ROLE, round, release = release.short(), "another aggregator sealed another release");
            let manifest = self.releases.manifest(&release).await.map_err(unreleased)?;
            let manifest = manifest.ok_or_else(|| Fault::retry("release_missing", "its manifest is not there yet"))?;
            let path = self.place.weights(&release);
            make_folder(path.parent()).map_err(|error| unverified(error.into()))?;
            self.releases.fetch(&manifest, &path).await?;
            (manifest.weights.clone(), path, count(&manifest))
        };
        self.offer(&weights, &path).await?;
        tracing::info!(role = ROLE, round, release = release.short(), updates, "sealed");
        let event = RoundEvent::Sealed { release, weights, updates };
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, round, event).await?;
        Ok(())
    }

    /// Puts weights where couriers fetch them from.
    pub(super) async fn offer(&self, weights: &BlobRef, path: &Path) -> Result<(), Fault> {
        let bytes = tokio::fs::read(path).await.map_err(|error| Fault::retry("file_unreadable", error))?;
        let stored = self.blobs.store_blob(&bytes).await?;
        match stored == *weights {
            true => Ok(()),
            false => Err(Fault::retry("file_changed", format!("{} is not what it was", path.display()))),
        }
    }

    /// Updates that are far longer than the others of their round do not count: dead letters too.
    pub(super) async fn leave_out_the_longest(&mut self) -> Result<(), Fault> {
        let Some(base) = self.base.clone() else { return Ok(()) };
        let norms: Vec<f64> = self.held.iter().map(|held| held.change(&base).norm(&base.ground.layout).0).collect();
        let refused = check::check_round_norms(&norms, &self.settings.check);
        for (held, refused) in std::mem::take(&mut self.held).into_iter().zip(refused) {
            let Some(refused) = refused else {
                self.held.push(held);
                continue;
            };
            if let Some(record) = self.retry(held.sequence).await? {
                self.refuse(&record, refused).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn fail(&mut self, number: u64, note: FaultNote) -> Result<(), Fault> {
        let (fault, reason) = (&note.name, &note.reason);
        match note.name == NOTHING_GAINED {
            true => tracing::info!(role = ROLE, round = number, fault, reason, "no release: the last one stands"),
            false => tracing::warn!(role = ROLE, round = number, fault, reason, "no release: the last one stands"),
        }
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, number, RoundEvent::Failed(note)).await?;
        Ok(())
    }
}

/// Why a round came to nothing better than what it started from, and what would help.
fn nothing_gained(record: &AggregateAudit, labels: &[String]) -> FaultNote {
    let weakest = record.weakest.and_then(|(class, right)| Some((labels.get(class)?, right * 100.0)));
    let of =
        weakest.map_or(String::new(), |(label, right)| format!("; it is least right about {label} ({right:.0} %)"));
    let more = weakest.map_or("images".into(), |(label, _)| format!("images of {label}"));
    let reason = format!("{}{of}", record.instead.as_deref().unwrap_or("nothing gained"));
    let remedy = format!(
        "label more {more}; train fewer layers (round.trainable = \"head\") or more slowly \
         (trainer.optimizer.learning_rate); or name more public pictures, for a small gain shows in many alone"
    );
    FaultNote::new(NOTHING_GAINED, reason, remedy)
}

fn count(manifest: &Manifest) -> u32 {
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    u32::try_from(updates).unwrap_or(u32::MAX)
}
