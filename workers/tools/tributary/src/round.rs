//! `tributary round`: opens and lists a model's rounds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use aggregator::round_open::{self, RoundHistory};
use aggregator::settings::ClientSelection;
use anyhow::{Context, bail};
use runtime::settings::LoadedSettings;
use runtime::site_key::SiteKey;
use schemas::{ModelName, ReleaseId, Role, RoundEvent, RoundTerms, SiteName};
use serde_json::json;
use streams::fleet;
use streams::{Bus, Publisher};
use vision::Model;

use crate::settings::Settings;
use crate::{audit, format, release, roles, site_target, stdout};

const EXAMPLES: &str = "\
A round asks sites to train from one release; `tributary aggregator` checks, weighs and merges their updates into the \
next. It closes a grace period after the quorum is reached, or at its deadline. Defaults come from [aggregator.round], \
where every_s lets rounds open by themselves.

Examples:
  tributary round open
  tributary round open --quorum 3 --deadline-s 3600 --site reef --site farm --site bay
  tributary round list
  tributary status                                what the current round waits for";

/// Open rounds, which ask sites for updates, and list their results.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RoundArgs {
    #[command(subcommand)]
    what: RoundCommand,
}

#[derive(clap::Subcommand)]
enum RoundCommand {
    /// Open a round: ask sites for updates of a model.
    Open(RoundOpenArgs),
    /// List a model's rounds and their results.
    List(RoundListArgs),
}

#[derive(clap::Args)]
struct RoundOpenArgs {
    /// Folder of the baseline model that sites were set up with [default: that of the running aggregator].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Quorum: updates needed to close the round.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,
    /// Seconds to wait for stragglers after quorum.
    #[arg(long, value_name = "S")]
    grace_s: Option<u32>,
    /// Seconds after which the round closes in any case.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    deadline_s: Option<u32>,
    /// Ask the sites of this ring, one of aggregator.round.rings.
    #[arg(long, value_name = "NAME", conflicts_with = "site")]
    ring: Option<String>,
    /// Ask this site only; repeatable [default: every site].
    // The id is that of the global --site, which this one replaces.
    #[arg(id = "site", long = "site", value_name = "NAME", value_parser = site_name)]
    sites: Vec<String>,
    /// Weights to train: auto (a site with few labels trains the last layers only), all, head, `last N` layers, or
    /// comma-separated name patterns.
    #[arg(long, value_name = "WHICH", value_parser = trainable)]
    trainable: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RoundListArgs {
    /// Folder of the baseline model [default: that of the running aggregator].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn site_name(text: &str) -> Result<String, String> {
    text.parse::<SiteName>().map(|site| site.to_string()).map_err(|error| error.to_string())
}

fn trainable(text: &str) -> Result<String, String> {
    text.parse::<autograd::TrainableSelection>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Opens a round, or lists them.
pub async fn command(loaded: &LoadedSettings<Settings>, args: &RoundArgs) -> anyhow::Result<()> {
    match &args.what {
        RoundCommand::Open(args) => open_round(loaded, args).await,
        RoundCommand::List(args) => list(loaded, args).await,
    }
}

/// The model whose rounds are meant, and its baseline: of the named folder, or of the running aggregator.
async fn model_and_baseline(
    loaded: &LoadedSettings<Settings>,
    named: Option<&PathBuf>,
    cloud: &Bus,
) -> anyhow::Result<(ModelName, ReleaseId)> {
    if named.is_none() && loaded.settings.aggregator.model.is_none() {
        let beats = fleet::live_workers(cloud).await?;
        let running = beats.into_iter().filter(|beat| beat.role == Role::Aggregator);
        let mut running: Vec<(ModelName, ReleaseId)> =
            running.filter_map(|beat| Some((beat.model?.parse().ok()?, beat.release?))).collect();
        running.dedup();
        match &running[..] {
            [] => {}
            [only] => return Ok(only.clone()),
            several => {
                let names: Vec<String> = several.iter().map(|(name, _)| name.to_string()).collect();
                bail!(
                    "aggregators of several models are running ({}): name the folder of one with --model",
                    format::list(&names)
                )
            }
        }
    }
    let model = model(loaded, named)?;
    Ok((ModelName::from_name(&model.description.name), model.release))
}

/// The baseline model of rounds.
pub fn model(loaded: &LoadedSettings<Settings>, named: Option<&PathBuf>) -> anyhow::Result<Model> {
    let folder = named.cloned().unwrap_or_else(|| roles::model_to_merge(&loaded.settings));
    Model::load(&folder).with_context(|| {
        format!("{} is no model folder: name the model with --model or aggregator.model", folder.display())
    })
}

async fn open_round(loaded: &LoadedSettings<Settings>, args: &RoundOpenArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "round").await?;
    let (name, first) = model_and_baseline(loaded, args.model.as_ref(), &cloud).await?;
    let history = RoundHistory::read(&cloud, &name).await?;
    let rollout = releases::decision_log::latest(&cloud, &name).await?;
    if let Some(release) = round_open::read_undecided(&cloud, rollout.as_ref()).await? {
        bail!(
            "release {release} of {name} is in its canary, and a round from it would be lost if it is withdrawn: wait for the releaser (`tributary release list`), or decide with `tributary release promote` or `tributary release withdraw`",
            release = release.short()
        );
    }
    let withdrawn = rollout.map(|rollout| rollout.withdrawn);
    let (base, weights) = history.base(&withdrawn.unwrap_or_default(), &first);
    let last = history.last();
    if last > 0 && history.ended(last).is_none() {
        bail!("round {last} of {name} is still open: `tributary status` shows what it waits for");
    }
    let mut chosen = loaded.settings.aggregator.round.clone();
    if let Some(ring) = &args.ring {
        if !chosen.rings.contains_key(ring) {
            let known: Vec<&String> = chosen.rings.keys().collect();
            bail!("ring {ring} is not one of aggregator.round.rings ({})", format::list(&known));
        }
        chosen.ring = Some(ring.clone());
    }
    if chosen.client_selection == ClientSelection::LowestLoss
        && chosen.sites_per_round.is_some()
        && args.sites.is_empty()
    {
        bail!(
            "only the aggregator knows the losses that aggregator.round.client_selection goes by: let it open rounds (aggregator.round.every_s), or name sites with --site"
        );
    }
    let sites: Vec<SiteName> = args.sites.iter().map(|site| Ok(site.parse()?)).collect::<anyhow::Result<_>>()?;
    release::warn_of_unknown_sites(&cloud, &sites).await?;
    let asked = round_open::sites(&chosen, last + 1, &BTreeMap::new());
    let focus = round_open::read_focus(&cloud, &base, &chosen).await?;
    let of_settings = round_open::round_terms(base, weights, asked, focus, &chosen);
    let terms = RoundTerms {
        quorum: args.quorum.unwrap_or(of_settings.quorum),
        grace_s: args.grace_s.unwrap_or(of_settings.grace_s),
        deadline_s: args.deadline_s.unwrap_or(of_settings.deadline_s),
        trainable: args.trainable.clone().unwrap_or_else(|| of_settings.trainable.clone()),
        sites: if sites.is_empty() { of_settings.sites.clone() } else { sites },
        ..of_settings
    };
    if !terms.sites.is_empty() && terms.quorum as usize > terms.sites.len() {
        bail!("--quorum is {}, but only {} sites are asked: lower it", terms.quorum, terms.sites.len());
    }
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(10));
    let number = last + 1;
    let key = site_target::round_key(loaded).map(|path| SiteKey::read(&path)).transpose()?;
    let published =
        round_open::publish_round_event(&publisher, key.as_ref(), &name, number, RoundEvent::Opened(terms.clone()))
            .await;
    if !published.map_err(roles::into_anyhow)? {
        bail!("round {number} of {name} was opened by someone else at the same moment");
    }
    audit::record_command(&cloud, &SiteName::cloud(), "round open", format!("{name} {number}")).await;
    if args.json {
        return stdout::json(&json!({ "model": name, "round": number, "terms": terms }));
    }
    let asked = match &terms.sites[..] {
        [] => "every site".to_owned(),
        sites => format::list(sites),
    };
    stdout::print_line(format_args!(
        "round {number} of {name} is open: {asked} asked for an update of release {}; quorum {}, deadline {} s",
        terms.base.short(),
        terms.quorum,
        terms.deadline_s
    ))
}

async fn list(loaded: &LoadedSettings<Settings>, args: &RoundListArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "round").await?;
    let (name, _) = model_and_baseline(loaded, args.model.as_ref(), &cloud).await?;
    let history = RoundHistory::read(&cloud, &name).await?;
    if args.json {
        let all: Vec<_> = history
            .all
            .iter()
            .map(|(sequence, at_ms, round)| json!({ "sequence": sequence, "at_ms": at_ms, "round": round }))
            .collect();
        return stdout::json(&all);
    }
    if history.all.is_empty() {
        return stdout::print_line(format_args!("No round of {name} yet: open one with `tributary round open`."));
    }
    let mut rows = Vec::new();
    for number in 1..=history.last() {
        let of = || history.all.iter().filter(|(_, _, round)| round.number == number);
        let opened = of().find_map(|(_, at_ms, round)| match &round.event {
            RoundEvent::Opened(terms) => Some((*at_ms, terms)),
            _ => None,
        });
        let Some((opened_at_ms, terms)) = opened else { continue };
        let ended = of().find(|(_, _, round)| matches!(round.event, RoundEvent::Sealed { .. } | RoundEvent::Failed(_)));
        let result = match ended.map(|(_, _, round)| &round.event) {
            Some(RoundEvent::Sealed { release, updates, .. }) => {
                format!("release {} of {}", release.short(), format::count(u64::from(*updates), "update"))
            }
            Some(RoundEvent::Failed(note)) => format!("none: {} ({})", note.reason, note.kind),
            _ => "open".into(),
        };
        let took =
            ended.map_or(String::new(), |(_, at_ms, _)| format::format_span(at_ms.saturating_sub(opened_at_ms) as f64));
        rows.push(vec![number.to_string(), format::format_time(opened_at_ms), took, terms.base.short().into(), result]);
    }
    stdout::print_line(format::table(&["round", "opened", "took", "base", "result"], &rows))
}
