//! `tributary round`: opens and lists a model's rounds.

use std::path::PathBuf;

use aggregator::round_open::RoundHistory;
use anyhow::Context;
use operations::rounds::{self, OpenedRound, RoundChoices, RoundResult, RoundSummary};
use runtime::settings::LoadedSettings;
use runtime::site_key::SiteKey;
use schemas::{ModelName, ReleaseId, SiteName};
use serde_json::json;
use streams::Bus;
use vision::Model;

use crate::settings::Settings;
use crate::{format, roles, site_target, stdout};

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
pub(crate) struct RoundArgs {
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
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &RoundArgs) -> anyhow::Result<()> {
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
    if named.is_none()
        && loaded.settings.aggregator.model.is_none()
        && let Some(running) = rounds::running_model(cloud).await?
    {
        return Ok(running);
    }
    let model = model(loaded, named)?;
    Ok((ModelName::from_name(&model.description.name), model.release))
}

/// The baseline model of rounds.
pub(crate) fn model(loaded: &LoadedSettings<Settings>, named: Option<&PathBuf>) -> anyhow::Result<Model> {
    let folder = named.cloned().unwrap_or_else(|| roles::model_to_merge(&loaded.settings));
    Model::load(&folder).with_context(|| {
        format!("{} is no model folder: name the model with --model or aggregator.model", folder.display())
    })
}

async fn open_round(loaded: &LoadedSettings<Settings>, args: &RoundOpenArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "round").await?;
    let (name, first) = model_and_baseline(loaded, args.model.as_ref(), &cloud).await?;
    let choices = RoundChoices {
        quorum: args.quorum,
        grace_s: args.grace_s,
        deadline_s: args.deadline_s,
        trainable: args.trainable.clone(),
        ring: args.ring.clone(),
        sites: args.sites.iter().map(|site| Ok(site.parse()?)).collect::<anyhow::Result<_>>()?,
    };
    let key = site_target::round_key(loaded).map(|path| SiteKey::read(&path)).transpose()?;
    let settings = &loaded.settings.aggregator.round;
    let opened = rounds::open_round(&cloud, (&name, &first), settings, choices, key.as_ref()).await?;
    if args.json {
        return stdout::json(&opened);
    }
    let OpenedRound { number, terms, .. } = &opened;
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
    let row = |round: RoundSummary| {
        let result = match round.result {
            RoundResult::Open => "open".into(),
            RoundResult::Release(release, updates) => {
                format!("release {} of {}", release.short(), format::count(u64::from(updates), "update"))
            }
            RoundResult::Nothing(note) => format!("none: {} ({})", note.reason, note.kind),
        };
        let took = round.took_ms.map_or(String::new(), |took_ms| format::format_span(took_ms as f64));
        let opened = format::format_time(round.opened_at_ms);
        vec![round.number.to_string(), opened, took, round.base.short().into(), result]
    };
    let rows: Vec<Vec<String>> = rounds::summarize_rounds(&history).into_iter().map(row).collect();
    stdout::print_line(format::table(&["round", "opened", "took", "base", "result"], &rows))
}
