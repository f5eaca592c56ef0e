//! Receives updates: whether the round wants one, and whether its weights pass the checks.

use std::sync::Arc;

use runtime::{Fault, dead_letter};
use schemas::{SiteName, Update, decode, encode};
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Blobs, CarryError, Publication, subject, topology};
use training::TrainError;

use super::{Aggregator, ROLE, release_fault};
use crate::check::{self, UpdateRefusal};
use crate::release::{MergedUpdate, RefusedUpdate};
use crate::release_builder::FetchedUpdate;
use crate::round::{ArrivalAction, UpdateArrival};
use crate::round_open::stored_at_ms;
use crate::verify::{fetch_update, spawn_blocking};
use crate::weights_file::{WeightsFile, WeightsFileError};

/// Largest update message, in bytes. The weights are not in it; ten thousand labels take a tenth of this.
const MOST_UPDATE_BYTES: usize = 1024 * 1024;
/// Most refused updates that a manifest names; a site may send any number.
const MOST_REFUSED: usize = 1000;

impl Aggregator {
    pub(super) async fn receive_update(&mut self, record: &StoredMessage) -> Result<(), Fault> {
        if record.payload.len() > MOST_UPDATE_BYTES {
            let found = record.payload.len();
            let why = format!("it has {found} bytes without its weights; at most {MOST_UPDATE_BYTES} are accepted");
            return self.refuse_update(record, UpdateRefusal::Unreadable(why)).await;
        }
        let update = match decode::<Update>(&record.payload) {
            Ok(update) => update,
            Err(error) => {
                return self
                    .refuse_update(record, UpdateRefusal::Unreadable(runtime::fault::error_chain(&error)))
                    .await;
            }
        };
        if subject::update(&update.model, update.round, &update.site) != record.subject {
            let (subject, Update { site, round, .. }) = (record.subject.clone(), update);
            return self.refuse_update(record, UpdateRefusal::Misdirected { subject, site, round }).await;
        }
        self.read_site_keys().await?;
        if let Err(refused) = check::signature(&update, &self.settings.check) {
            return self.refuse_update(record, refused).await;
        }
        let at = stored_at_ms(record);
        self.consider_update(update, record, at).await
    }

    /// Refreshes the sites' keys, because sites may have joined or changed keys. If no key is known and the note cannot
    /// be read, updates are not processed: without keys every update would count.
    async fn read_site_keys(&mut self) -> Result<(), Fault> {
        let read = async { Ledger::open(&self.bus).await?.read(check::SITE_KEYS).await };
        let why = match read.await {
            Ok(None) => return Ok(()),
            Ok(Some(note)) => match serde_json::from_str(&note) {
                Ok(keys) => {
                    self.settings.check.keys = keys;
                    return Ok(());
                }
                Err(error) => runtime::fault::error_chain(&error),
            },
            Err(error) => runtime::fault::error_chain(&error),
        };
        if self.settings.check.keys.is_empty() {
            return Err(Fault::retry(
                "site_keys_unreadable",
                format!("could not read the ledger note of the sites' keys: {why}"),
            ));
        }
        tracing::warn!(role = ROLE.as_str(), why, "site keys not refreshed");
        Ok(())
    }

    /// Decides whether an update counts.
    pub(super) async fn consider_update(
        &mut self,
        update: Update,
        record: &StoredMessage,
        stored_at_ms: u64,
    ) -> Result<(), Fault> {
        if update.round == 0 && record.sequence > self.history.last_end() {
            // A site has learned from new labels, so there may be something to gain again.
            self.without_gain = 0;
        }
        match self.rounds.add_update(update, record.sequence, stored_at_ms) {
            ArrivalAction::Refuse(refused) => self.refuse_update(record, refused).await?,
            ArrivalAction::Wait | ArrivalAction::Unasked => {}
            ArrivalAction::Count(arrived) => {
                let past = self.rounds.current().is_some_and(|current| self.is_past(current.number));
                match if past { Ok(None) } else { self.check_until_done(&arrived).await? } {
                    Ok(held) => {
                        self.fetched.extend(held);
                        self.rounds.accept(*arrived);
                    }
                    Err(refused) => self.refuse_update(record, refused).await?,
                }
            }
        }
        self.publish_status();
        Ok(())
    }

    /// Checks an update until that succeeds: its site is recorded as heard, so a second reading would refuse it as a
    /// duplicate.
    async fn check_until_done(
        &self,
        arrived: &UpdateArrival,
    ) -> Result<Result<Option<FetchedUpdate>, UpdateRefusal>, Fault> {
        loop {
            match self.check_weights(arrived).await {
                Ok(checked) => return Ok(checked),
                Err(fault) => self.back_off(fault).await?,
            }
        }
    }

    /// Fetches an update's weights and checks them. The outer error is temporary, the inner one is the update's fault.
    async fn check_weights(
        &self,
        arrived: &UpdateArrival,
    ) -> Result<Result<Option<FetchedUpdate>, UpdateRefusal>, Fault> {
        let update = &arrived.update;
        let Some(base) = self.base.clone() else { return Ok(Ok(None)) };
        if let Err(refused) = check::check_description(update, &self.settings.check) {
            return Ok(Err(refused));
        }
        let most = u64::from(self.settings.check.weights_max_mib) << 20;
        // From the bucket of that site, so that no site's update can name another's weights.
        let sent = Blobs::open_sent_by(&self.bus, &update.site);
        let path = match fetch_update(&sent, &update.weights, &self.workspace.work, most).await {
            Ok(path) => path,
            Err(CarryError::BadBlob { what, .. }) => return Ok(Err(UpdateRefusal::NoWeights(what))),
            Err(error) => return Err(error.into()),
        };
        let older = match arrived.behind {
            0 => None,
            _ => {
                let row = self.workspace.row(&self.releases, &update.base, &base.ground.layout).await;
                Some(Arc::new(row.map_err(release_fault)?))
            }
        };
        let merged = MergedUpdate {
            id: update.id(),
            site: update.site.clone(),
            base: update.base.clone(),
            behind: arrived.behind,
            weights: update.weights.clone(),
            form: update.form,
            samples: update.samples.values().copied().fold(0, u64::saturating_add),
            hard: update.hard,
            labels: update.samples.clone(),
        };
        let (settings, sequence) = (self.settings.check.clone(), arrived.sequence);
        let checked = spawn_blocking(move || {
            let file = match WeightsFile::open(&path, merged.form, &base.ground.layout) {
                Ok(file) => Arc::new(file),
                Err(WeightsFileError::File { source, .. }) => return Err(TrainError::read(&path)(source).into()),
                Err(error) => return Ok(Err(UpdateRefusal::Values(error))),
            };
            let held = FetchedUpdate { merged, sequence, file, path, base: older };
            let (norm, finite) = held.change(&base).norm(&base.ground.layout);
            Ok(check::check_update_norm(norm, finite, base.norm, &settings).map(|()| Some(held)))
        });
        checked.await.map_err(release_fault)
    }

    /// Publishes a dead letter; the round continues.
    pub(super) async fn refuse_update(&mut self, record: &StoredMessage, refused: UpdateRefusal) -> Result<(), Fault> {
        let site = record.subject.rsplit('.').next().and_then(|site| site.parse().ok());
        let site: SiteName = site.unwrap_or_else(SiteName::unknown);
        let note = refused.fault_note();
        tracing::warn!(role = ROLE.as_str(), %site, fault = note.kind.as_str(), reason = note.reason, "update refused");
        let letter = dead_letter::from_stored_message(ROLE, topology::UPDATES, &site, None, record, 1, note.clone());
        let slot = subject::dead(topology::UPDATES, &site, letter.id);
        let letter = Publication::first_on_subject(slot, encode(&letter)?);
        while let Err(error) = self.publisher.publish(&letter).await {
            self.back_off(error.into()).await?;
        }
        if self.refused.len() < MOST_REFUSED {
            self.refused.push(RefusedUpdate { site, sequence: record.sequence, fault: note });
        }
        self.state.update_report(|report| report.refused += 1);
        Ok(())
    }
}
