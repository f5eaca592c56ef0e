//! Ends a closed round: merges, seals and announces a release, or publishes why there is none.

use std::path::Path;

use releases::decision_log;
use releases::prepare::ReleaseOrigin;
use releases::stage::{self, DecisionContext};
use runtime::{Fault, clock};
use schemas::{BlobRef, DecisionOrigin, FaultKind, FaultNote, Release, RoundEvent, RoundState};
use streams::CarryError;
use training::TrainError;
use vision::Model;

use super::{Aggregator, ROLE, release_fault, set_status, store_fault};
use crate::audit::AggregateAudit;
use crate::check;
use crate::release::{DERIVATION, Manifest, MergedUpdate, ReleaseRound, RoundRelease};
use crate::release_builder::{self, ReleaseBuildError};
use crate::round_open::publish_round_event;
use crate::rule::PREVIOUS;
use crate::verify::{ReleaseVerifyError, make_folder, spawn_blocking};

impl Aggregator {
    /// Ends the closed round with a release, or with the reason why there is none.
    pub(super) async fn finish_round(&mut self) -> Result<(), Fault> {
        let Some(current) = self.rounds.current().cloned() else { return Ok(()) };
        let Some(base) = self.base.clone() else { return Ok(()) };
        let number = current.number;
        set_status(&self.state, RoundState::Merging, format!("{} updates", self.fetched.len()));
        let (count, quorum) = (self.fetched.len(), current.terms.quorum as usize);
        if count < quorum {
            let refused = self.refused.len();
            let reason = format!("{count} updates count, the quorum is {quorum}; {refused} were refused");
            let remedy = "open another round; check the sites' trainers and `tributary dead-letters list --cloud`, or lower round.quorum";
            return self.fail_round(number, FaultNote::new("quorum_missed", reason, remedy)).await;
        }
        let parent = self.releases.manifest(&current.terms.base).await.map_err(store_fault)?;
        let memory = self.workspace.memory(&self.releases, parent.as_ref()).await.map_err(release_fault)?;
        let is_learning = self.releases.is_learning(parent.as_ref()).await.map_err(store_fault)?;
        let before = parent.and_then(|parent| Some(parent.made?.memory?.1));
        let work = {
            let (workspace, public, settings) =
                (self.workspace.clone(), self.public.clone(), self.settings.merge.clone());
            let (base, held) = (base.clone(), self.fetched.clone());
            move || {
                let public = public.as_deref();
                let derived = release_builder::merge(
                    &workspace.runtime,
                    &base,
                    &held,
                    public,
                    memory,
                    &settings,
                    (number, is_learning),
                )?;
                if derived.record.rule == PREVIOUS {
                    return Ok(Err(nothing_gained_note(&derived.record, &base.model.labels)));
                }
                let (model, weights, file) = release_builder::folder_with(
                    &workspace.root,
                    &base,
                    &derived.row,
                    &workspace.work.join("releases"),
                )?;
                let memory = match release_builder::memory_bytes(&derived.memory)? {
                    None => None,
                    Some(bytes) => {
                        let path = workspace.work.join("memory.safetensors");
                        let blob = crate::release::write(&path, &bytes).map_err(TrainError::write(&path))?;
                        Some((blob, path))
                    }
                };
                Ok(Ok((derived.record, model, weights, file, memory)))
            }
        };
        let (record, model, weights, file, memory) = match spawn_blocking(work).await {
            Ok(Ok(made)) => made,
            Ok(Err(note)) => return self.fail_round(number, note).await,
            Err(ReleaseVerifyError::Seal(
                error @ (ReleaseBuildError::Derive(_) | ReleaseBuildError::OtherModel { .. }),
            )) => {
                let reason = runtime::fault::error_chain(&error);
                return self
                    .fail_round(
                        number,
                        FaultNote::new(
                            "merge_failed",
                            reason,
                            "correct the setting that the reason names, then open another round",
                        ),
                    )
                    .await;
            }
            Err(error) => return Err(release_fault(error)),
        };
        for held in &self.fetched {
            self.releases.keep_file(&held.merged.weights, &held.path).await?;
        }
        if let Some((blob, path)) = &memory {
            self.releases.keep_file(blob, path).await?;
        }
        let (closed_at_ms, closed_because) = current.closed.clone().unwrap_or_default();
        let mut updates: Vec<MergedUpdate> = self.fetched.iter().map(|held| held.merged.clone()).collect();
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
        let release = self.package_round_release(&manifest, &model).await?;
        let package = release.as_ref().map(|release| release.package.clone()).unwrap_or_default();
        let manifest = manifest.packaged(package);
        self.releases.put(&manifest, &file).await.map_err(store_fault)?;
        let sealed = self.releases.publish_release(number, &model.release).await.map_err(store_fault)?;
        if let Some(release) = release.filter(|release| release.release == sealed.release) {
            self.propose_release(release, update_count(&manifest)).await?;
        }
        self.announce_release(sealed, &manifest, &file).await
    }

    /// Packages a round's release; `None` if it fails its trial: it is sealed all the same, but not offered to sites.
    async fn package_round_release(&self, manifest: &Manifest, model: &Model) -> Result<Option<Release>, Fault> {
        let description = format!("round {}", manifest.round);
        let parent = manifest.parent.clone();
        let origin = match &manifest.made {
            Some(made) => made.record.origin(parent, description),
            None => ReleaseOrigin { parent, words: description, ..ReleaseOrigin::default() },
        };
        match self.package(model, origin).await {
            Ok(release) => Ok(Some(release)),
            Err(Fault::Reject(note)) if note.kind != FaultKind::TrialImpossible => {
                let (release, fault, reason) = (manifest.release.short(), note.kind.as_str(), note.reason);
                tracing::warn!(role = ROLE.as_str(), release, fault, reason, "release not offered");
                Ok(None)
            }
            Err(Fault::Reject(note)) => Err(Fault::retry(note.kind, note.reason)),
            Err(fault) => Err(fault),
        }
    }

    /// Offers a sealed release to sites. Published before the end of the round, so that an aggregator killed in between
    /// does it again.
    async fn propose_release(&self, release: Release, updates: u32) -> Result<(), Fault> {
        let why = format!("{} from {updates} updates", release.origin);
        let published = decision_log::decide(&self.bus, &self.publisher, &self.model, |now| {
            let context = DecisionContext::new(DecisionOrigin::Aggregator, why.clone(), clock::now_ms());
            // A known release was already offered, by this worker or another.
            let next = now.map(|now| stage::candidate(now, release.clone(), context));
            Ok::<_, CarryError>(next.and_then(Result::ok))
        });
        published.await?;
        Ok(())
    }

    /// Announces the sealed release, after storing its weights where couriers fetch them.
    async fn announce_release(&mut self, sealed: RoundRelease, own: &Manifest, file: &Path) -> Result<(), Fault> {
        let (round, release) = (sealed.round, sealed.release);
        let (weights, path, updates) = if release == own.release {
            (own.weights.clone(), file.to_owned(), update_count(own))
        } else {
            // Another aggregator with other settings was faster; its release stands.
            tracing::warn!(
                role = ROLE.as_str(),
                round,
                release = release.short(),
                "release conflict with another aggregator"
            );
            let manifest = self.releases.manifest(&release).await.map_err(store_fault)?;
            let manifest = manifest.ok_or_else(|| {
                Fault::retry("release_missing", "the manifest of the sealed release is not in the store yet")
            })?;
            let path = self.workspace.weights(&release);
            make_folder(path.parent()).map_err(|error| release_fault(error.into()))?;
            self.releases.fetch(&manifest, &path).await?;
            (manifest.weights.clone(), path, update_count(&manifest))
        };
        self.offer_weights(&weights, &path).await?;
        tracing::info!(role = ROLE.as_str(), round, release = release.short(), updates, "release sealed");
        let event = RoundEvent::Sealed { release, weights, updates };
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, round, event).await?;
        Ok(())
    }

    /// Stores weights where couriers fetch them.
    pub(super) async fn offer_weights(&self, weights: &BlobRef, path: &Path) -> Result<(), Fault> {
        let stored = self.blobs.store_file(path).await?;
        match stored == *weights {
            true => Ok(()),
            false => Err(Fault::retry("file_changed", format!("{} was changed after it was written", path.display()))),
        }
    }

    /// Refuses updates whose norm is far above the others' of their round, with dead letters.
    pub(super) async fn refuse_outlier_norms(&mut self) -> Result<(), Fault> {
        let Some(base) = self.base.clone() else { return Ok(()) };
        let norms: Vec<f64> = self.fetched.iter().map(|held| held.change(&base).norm(&base.ground.layout).0).collect();
        let refused = check::check_round_norms(&norms, &self.settings.check);
        for (held, refused) in std::mem::take(&mut self.fetched).into_iter().zip(refused) {
            let Some(refused) = refused else {
                self.fetched.push(held);
                continue;
            };
            if let Some(record) = self.read_waiting_update(held.sequence).await? {
                self.refuse_update(&record, refused).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn fail_round(&mut self, number: u64, note: FaultNote) -> Result<(), Fault> {
        let (fault, reason) = (note.kind.as_str(), &note.reason);
        match note.kind == FaultKind::NothingGained {
            true => {
                tracing::info!(role = ROLE.as_str(), round = number, fault, reason, "round ended without a release")
            }
            false => {
                tracing::warn!(role = ROLE.as_str(), round = number, fault, reason, "round ended without a release")
            }
        }
        publish_round_event(&self.publisher, self.key.as_ref(), &self.model, number, RoundEvent::Failed(note)).await?;
        Ok(())
    }
}

/// Why a round gained nothing over its base, and what would help.
fn nothing_gained_note(record: &AggregateAudit, labels: &[String]) -> FaultNote {
    let weakest = record.weakest.and_then(|(class, right)| Some((labels.get(class)?, right * 100.0)));
    let of =
        weakest.map_or(String::new(), |(label, right)| format!("; its weakest class is {label} ({right:.0} % right)"));
    let more = weakest.map_or("images".into(), |(label, _)| format!("images of {label}"));
    let reason = format!("{}{of}", record.instead.as_deref().unwrap_or("nothing gained"));
    let remedy = format!(
        "label more {more}; train fewer layers (round.trainable = \"head\") or with a lower learning rate \
         (trainer.optimizer.learning_rate); or add public pictures, as a small gain only shows on many"
    );
    FaultNote::new(FaultKind::NothingGained, reason, remedy)
}

fn update_count(manifest: &Manifest) -> u32 {
    let updates = manifest.made.as_ref().map_or(0, |made| made.updates.len());
    u32::try_from(updates).unwrap_or(u32::MAX)
}
