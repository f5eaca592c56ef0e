//! Opening a model's rounds, and what came of them.

use std::collections::BTreeMap;

use aggregator::round_open::{self, RoundHistory};
use aggregator::settings::{ClientSelection, RoundSettings};
use releases::decision_log;
use runtime::Fault;
use runtime::site_key::SiteKey;
use schemas::{FaultNote, ModelName, ReleaseId, Role, RoundEvent, RoundTerms, SiteName};
use serde::Serialize;
use streams::{Bus, CarryError, Publisher, fleet};

use crate::PUBLISH_TIMEOUT;
use crate::audit::record_change;
use crate::words::list;

/// What a person asks of a round; what is absent is as in the settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoundChoices {
    /// Updates needed to close the round.
    pub quorum: Option<u32>,
    /// Seconds to wait for stragglers after the quorum.
    pub grace_s: Option<u32>,
    /// Seconds after which the round closes in any case.
    pub deadline_s: Option<u32>,
    /// Weights to train.
    pub trainable: Option<String>,
    /// Name of the ring to ask.
    pub ring: Option<String>,
    /// The sites to ask; those of the ring or of the settings if empty.
    pub sites: Vec<SiteName>,
}

/// A round that was opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenedRound {
    /// The model.
    pub model: ModelName,
    /// Number of the round.
    #[serde(rename = "round")]
    pub number: u64,
    /// What sites are asked for.
    pub terms: RoundTerms,
}

/// Why no round was opened.
#[derive(Debug, thiserror::Error)]
pub enum RoundOpenError {
    /// Several models have an aggregator.
    #[error("aggregators of several models are running ({models}): name the folder of one with --model")]
    SeveralModels {
        /// The models.
        models: String,
    },
    /// A release is being tried.
    #[error(
        "release {} of {model} is in its canary, and a round from it would be lost if it is withdrawn: wait for the releaser (`tributary release list`), or decide with `tributary release promote` or `tributary release withdraw`",
        release.short()
    )]
    Undecided {
        /// The release.
        release: ReleaseId,
        /// Its model.
        model: ModelName,
    },
    /// The last round has not ended.
    #[error("round {number} of {model} is still open: `tributary status` shows what it waits for")]
    StillOpen {
        /// Number of the round.
        number: u64,
        /// Its model.
        model: ModelName,
    },
    /// There is no such ring.
    #[error("ring {ring} is not one of aggregator.round.rings ({known})")]
    UnknownRing {
        /// Name of the ring.
        ring: String,
        /// The rings that there are.
        known: String,
    },
    /// Sites are selected by their losses.
    #[error(
        "only the aggregator knows the losses that aggregator.round.client_selection goes by: let it open rounds (aggregator.round.every_s), or name sites with --site"
    )]
    UnknownLosses,
    /// More updates are needed than sites are asked.
    #[error("--quorum is {quorum}, but only {sites} sites are asked: lower it")]
    QuorumTooHigh {
        /// The quorum.
        quorum: u32,
        /// Number of sites.
        sites: usize,
    },
    /// Somebody else opened it.
    #[error("round {number} of {model} was opened by someone else at the same moment")]
    Raced {
        /// Number of the round.
        number: u64,
        /// Its model.
        model: ModelName,
    },
    /// It could not be signed or published.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The server failed.
    #[error(transparent)]
    Carry(#[from] CarryError),
}

/// The model of the running aggregator, and its baseline; `None` if no aggregator is running.
pub async fn running_model(cloud: &Bus) -> Result<Option<(ModelName, ReleaseId)>, RoundOpenError> {
    let beats = fleet::live_workers(cloud).await?;
    let running = beats.into_iter().filter(|beat| beat.role == Role::Aggregator);
    let mut running: Vec<(ModelName, ReleaseId)> =
        running.filter_map(|beat| Some((beat.model?.parse().ok()?, beat.release?))).collect();
    running.dedup();
    match running.len() {
        0 | 1 => Ok(running.pop()),
        _ => {
            let models: Vec<&str> = running.iter().map(|(name, _)| name.as_str()).collect();
            Err(RoundOpenError::SeveralModels { models: list(&models) })
        }
    }
}

/// Opens a round: asks sites for updates of a model. `first`: the model's baseline. `key` signs it; sites of a fleet
/// ignore unsigned rounds.
pub async fn open_round(
    cloud: &Bus,
    (model, first): (&ModelName, &ReleaseId),
    settings: &RoundSettings,
    choices: RoundChoices,
    key: Option<&SiteKey>,
) -> Result<OpenedRound, RoundOpenError> {
    let history = RoundHistory::read(cloud, model).await?;
    let rollout = decision_log::latest(cloud, model).await?;
    if let Some(release) = round_open::read_undecided(cloud, rollout.as_ref()).await? {
        return Err(RoundOpenError::Undecided { release, model: model.clone() });
    }
    let withdrawn = rollout.map(|rollout| rollout.withdrawn);
    let (base, weights) = history.base(&withdrawn.unwrap_or_default(), first);
    let last = history.last();
    if last > 0 && history.ended(last).is_none() {
        return Err(RoundOpenError::StillOpen { number: last, model: model.clone() });
    }
    let settings = settings_of_ring(settings, &choices)?;
    let number = last + 1;
    let asked = round_open::sites(&settings, number, &BTreeMap::new());
    let focus = round_open::read_focus(cloud, &base, &settings).await?;
    let terms = chosen_terms(round_open::round_terms(base, weights, asked, focus, &settings), choices)?;
    let publisher = Publisher::new(cloud.clone(), PUBLISH_TIMEOUT);
    let event = RoundEvent::Opened(terms.clone());
    if !round_open::publish_round_event(&publisher, key, model, number, event).await? {
        return Err(RoundOpenError::Raced { number, model: model.clone() });
    }
    record_change(cloud, &SiteName::cloud(), "round open", format!("{model} {number}")).await;
    Ok(OpenedRound { model: model.clone(), number, terms })
}

/// The settings with the chosen ring. Pure.
fn settings_of_ring(settings: &RoundSettings, choices: &RoundChoices) -> Result<RoundSettings, RoundOpenError> {
    let mut settings = settings.clone();
    if let Some(ring) = &choices.ring {
        if !settings.rings.contains_key(ring) {
            let known: Vec<&String> = settings.rings.keys().collect();
            return Err(RoundOpenError::UnknownRing { ring: ring.clone(), known: list(&known) });
        }
        settings.ring = Some(ring.clone());
    }
    let by_losses = settings.client_selection == ClientSelection::LowestLoss && settings.sites_per_round.is_some();
    if by_losses && choices.sites.is_empty() { Err(RoundOpenError::UnknownLosses) } else { Ok(settings) }
}

/// The terms of the settings, with what was chosen instead. Pure.
fn chosen_terms(of_settings: RoundTerms, choices: RoundChoices) -> Result<RoundTerms, RoundOpenError> {
    let terms = RoundTerms {
        quorum: choices.quorum.unwrap_or(of_settings.quorum),
        grace_s: choices.grace_s.unwrap_or(of_settings.grace_s),
        deadline_s: choices.deadline_s.unwrap_or(of_settings.deadline_s),
        trainable: choices.trainable.unwrap_or_else(|| of_settings.trainable.clone()),
        sites: if choices.sites.is_empty() { of_settings.sites.clone() } else { choices.sites },
        ..of_settings
    };
    let sites = terms.sites.len();
    match sites > 0 && terms.quorum as usize > sites {
        true => Err(RoundOpenError::QuorumTooHigh { quorum: terms.quorum, sites }),
        false => Ok(terms),
    }
}

/// One round, in short.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundSummary {
    /// Its number.
    pub number: u64,
    /// When it was opened, milliseconds since the epoch.
    pub opened_at_ms: u64,
    /// How long it took; absent while it is open.
    pub took_ms: Option<u64>,
    /// The release it started from.
    pub base: ReleaseId,
    /// What came of it.
    pub result: RoundResult,
}

/// What came of a round.
#[derive(Debug, Clone, PartialEq)]
pub enum RoundResult {
    /// Nothing yet.
    Open,
    /// A release of this many updates.
    Release(ReleaseId, u32),
    /// No release, for this reason.
    Nothing(FaultNote),
}

/// The rounds of a history, oldest first. Pure.
pub fn summarize_rounds(history: &RoundHistory) -> Vec<RoundSummary> {
    let summary = |number: u64| {
        let of = || history.all.iter().filter(move |(_, _, round)| round.number == number);
        let (opened_at_ms, terms) = of().find_map(|(_, at_ms, round)| match &round.event {
            RoundEvent::Opened(terms) => Some((*at_ms, terms)),
            _ => None,
        })?;
        let ended = of().find_map(|(_, at_ms, round)| match &round.event {
            RoundEvent::Sealed { release, updates, .. } => {
                Some((*at_ms, RoundResult::Release(release.clone(), *updates)))
            }
            RoundEvent::Failed(note) => Some((*at_ms, RoundResult::Nothing(note.clone()))),
            _ => None,
        });
        let took_ms = ended.as_ref().map(|(at_ms, _)| at_ms.saturating_sub(opened_at_ms));
        let result = ended.map_or(RoundResult::Open, |(_, result)| result);
        Some(RoundSummary { number, opened_at_ms, took_ms, base: terms.base.clone(), result })
    };
    (1..=history.last()).filter_map(summary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(sites: &[&str]) -> RoundTerms {
        let sites = sites.iter().map(|site| site.parse().unwrap()).collect();
        let base = ReleaseId::from_sha256([1; 32]);
        round_open::round_terms(base, None, sites, None, &RoundSettings { quorum: 2, ..RoundSettings::default() })
    }

    #[test]
    fn what_is_chosen_takes_the_place_of_the_settings() {
        let sites: Vec<SiteName> = vec!["farm".parse().unwrap()];
        let choices = RoundChoices { quorum: Some(1), sites: sites.clone(), ..RoundChoices::default() };
        let chosen = chosen_terms(terms(&["reef", "bay"]), choices).unwrap();
        assert_eq!((chosen.quorum, chosen.sites), (1, sites));
        assert_eq!(chosen_terms(terms(&["reef", "bay"]), RoundChoices::default()).unwrap(), terms(&["reef", "bay"]));
    }

    #[test]
    fn a_quorum_that_the_sites_cannot_reach_is_refused_and_every_site_is_no_number() {
        let refused = chosen_terms(terms(&["reef"]), RoundChoices::default()).unwrap_err();
        assert_eq!(refused.to_string(), "--quorum is 2, but only 1 sites are asked: lower it");
        assert!(chosen_terms(terms(&[]), RoundChoices::default()).is_ok());
    }

    #[test]
    fn a_ring_that_is_not_there_and_losses_that_nobody_knows_are_refused() {
        let ring = RoundChoices { ring: Some("north".into()), ..RoundChoices::default() };
        let refused = settings_of_ring(&RoundSettings::default(), &ring).unwrap_err();
        assert!(matches!(refused, RoundOpenError::UnknownRing { .. }), "{refused}");
        let by_losses = RoundSettings {
            client_selection: ClientSelection::LowestLoss,
            sites_per_round: Some(1),
            ..RoundSettings::default()
        };
        let refused = settings_of_ring(&by_losses, &RoundChoices::default()).unwrap_err();
        assert!(matches!(refused, RoundOpenError::UnknownLosses), "{refused}");
    }
}
