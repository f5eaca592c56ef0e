//! An update as it comes: does the round want it, are its weights in order?

use std::sync::Arc;

use runtime::{Fault, dead_letter};
use schemas::{SiteName, Update, decode, encode};
use streams::fleet::Ledger;
use streams::reader::StoredMessage;
use streams::{Blobs, CarryError, Publication, subject, topology};
use training::TrainError;

use super::{Aggregator, ROLE, unverified};
use crate::check::{self, UpdateRefusal};
use crate::release::{MergedUpdate, RefusedUpdate};
use crate::release_builder::FetchedUpdate;
use crate::round::{ArrivalAction, UpdateArrival};
use crate::round_open::stored_at_ms;
use crate::verify::{fetch_update, spawn_blocking};
use crate::weights_file::{WeightsFile, WeightsFileError};

/// Largest update that is read, bytes: the weights are not in it, and ten thousand labels are a tenth of this.
const MOST_UPDATE_BYTES: usize = 1024 * 1024;
/// Refused updates that a round's manifest names; a site may send any number.
const MOST_REFUSED: usize = 1000;

impl Aggregator {
    pub(super) async fn update(&mut self, record: &StoredMessage) -> Result<(), Fault> {
        if record.payload.len() > MOST_UPDATE_BYTES {
            let found = record.payload.len();
            let why = format!("it has {found} bytes without its weights, and {MOST_UPDATE_BYTES} are accepted");
            return self.refuse(record, UpdateRefusal::Unreadable(why)).await;
        }
        let update = match decode::<Update>(&record.payload) {
            Ok(update) => update,
            Err(error) => {
                return self.refuse(record, UpdateRefusal::Unreadable(runtime::fault::error_chain(&error))).await;
            }
        };
        if subject::update(&update.model, update.round, &update.site) != record.subject {
            let (subject, Update { site, round, .. }) = (record.subject.clone(), update);
            return self.refuse(record, UpdateRefusal::Misdirected { subject, site, round }).await;
        }
        self.read_site_keys().await?;
        if let Err(refused) = check::signature(&update, &self.settings.check) {
            return self.refuse(record, refused).await;
        }
        let at = stored_at_ms(record);
        self.consider(update, record, at).await
    }

    /// Sites may have joined, and changed their keys, since it started. Where no key is known and what is noted cannot be read,
    /// nothing is taken: without keys every update would count.
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
                format!("the note of the sites' keys cannot be read: {why}"),
            ));
        }
        tracing::warn!(role = ROLE.as_str(), why, "the sites' keys are those known before");
        Ok(())
    }

    /// Whether an update counts.
    pub(super) async fn consider(
        &mut self,
        update: Update,
        record: &StoredMessage,
        stored_at_ms: u64,
    ) -> Result<(), Fault> {
        if update.round == 0 && record.sequence > self.history.last_end() {
            // A site learned from new labels since: there may be something to gain again.
            self.without_gain = 0;
        }
        match self.rounds.add_update(update, record.sequence, stored_at_ms) {
            ArrivalAction::Refuse(refused) => self.refuse(record, refused).await?,
            ArrivalAction::Wait | ArrivalAction::Unasked => {}
            ArrivalAction::Count(arrived) => {
                let past = self.rounds.current().is_some_and(|current| self.is_past(current.number));
                match if past { Ok(None) } else { self.checked(&arrived).await? } {
                    Ok(held) => {
                        self.held.extend(held);
                        self.rounds.accept(*arrived);
                    }
                    Err(refused) => self.refuse(record, refused).await?,
                }
            }
        }
        self.publish_status();
        Ok(())
    }

    /// Looks at an update until that succeeds: it was heard of, and read a second time it would count as a second one.
    async fn checked(&self, arrived: &UpdateArrival) -> Result<Result<Option<FetchedUpdate>, UpdateRefusal>, Fault> {
        loop {
            match self.check(arrived).await {
                Ok(checked) => return Ok(checked),
                Err(fault) => self.later(fault).await?,
            }
        }
    }

    /// Fetches an update's weights and looks at them. The outer error is the moment's, the inner the update's.
    async fn check(&self, arrived: &UpdateArrival) -> Result<Result<Option<FetchedUpdate>, UpdateRefusal>, Fault> {
        let update = &arrived.update;
        let Some(base) = self.base.clone() else { return Ok(Ok(None)) };
        if let Err(refused) = check::check_description(update, &self.settings.check) {
            return Ok(Err(refused));
        }
        let most = u64::from(self.settings.check.weights_max_mib) << 20;
        // In the bucket of the very site, so that no site's update stands for another's weights.
        let sent = Blobs::open_sent_by(&self.bus, &update.site);
        let path = match fetch_update(&sent, &update.weights, &self.place.work, most).await {
            Ok(path) => path,
            Err(CarryError::BadBlob { what, .. }) => return Ok(Err(UpdateRefusal::NoWeights(what))),
            Err(error) => return Err(error.into()),
        };
        let older = match arrived.behind {
            0 => None,
            _ => {
                let row = self.place.row(&self.releases, &update.base, &base.ground.layout).await;
                Some(Arc::new(row.map_err(unverified)?))
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
        checked.await.map_err(unverified)
    }

    /// A dead letter; the round goes on.
    pub(super) async fn refuse(&mut self, record: &StoredMessage, refused: UpdateRefusal) -> Result<(), Fault> {
        let site = record.subject.rsplit('.').next().and_then(|site| site.parse().ok());
        let site: SiteName = site.unwrap_or_else(SiteName::unknown);
        let note = refused.fault_note();
        tracing::warn!(role = ROLE.as_str(), %site, fault = note.kind.as_str(), reason = note.reason, "an update is refused");
        let letter = dead_letter::from_stored_message(ROLE, topology::UPDATES, &site, None, record, 1, note.clone());
        let slot = subject::dead(topology::UPDATES, &site, letter.id);
        let letter = Publication::first_on_subject(slot, encode(&letter)?);
        while let Err(error) = self.publisher.publish(&letter).await {
            self.later(error.into()).await?;
        }
        if self.refused.len() < MOST_REFUSED {
            self.refused.push(RefusedUpdate { site, sequence: record.sequence, fault: note });
        }
        self.state.update_report(|report| report.refused += 1);
        Ok(())
    }
}
