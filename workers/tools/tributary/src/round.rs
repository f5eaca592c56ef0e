//! `tributary round`: ask sites for updates, and see what came of it.

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
use crate::{audit, format, roles, site_target, stdout};

const EXAMPLES: &str = "\
A round asks sites to learn from one release; what they send is checked, weighed and merged by `tributary aggregator`
into the next. It ends a while after enough updates came (--quorum, --grace-s), or at its deadline. Settings are those
of [aggregator.round] in tributary.toml; with aggregator.round.every_s rounds open by themselves.

Examples:
  tributary round open                      with the model and the terms of the settings
  tributary round open --quorum 3 --deadline-s 3600
  tributary round list                      every round and what came of it
  tributary status                          what the current one waits for";

/// Ask sites for updates, and see what came of it.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RoundArgs {
    #[command(subcommand)]
    what: RoundCommand,
}

#[derive(clap::Subcommand)]
enum RoundCommand {
    /// Ask sites for updates of a model.
    Open(RoundOpenArgs),
    /// Every round of a model, and what came of it.
    List(RoundListArgs),
}

#[derive(clap::Args)]
struct RoundOpenArgs {
    /// Folder of the model that sites were set up with; that of the settings if absent, or that of the aggregator that runs.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// So many updates are enough.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,
    /// How long others are waited for when there are enough, seconds.
    #[arg(long, value_name = "S")]
    grace_s: Option<u32>,
    /// When the round is over in any case, seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    deadline_s: Option<u32>,
    /// The sites of this ring, one of aggregator.round.rings.
    #[arg(long, value_name = "NAME", conflicts_with = "sites")]
    ring: Option<String>,
    /// Only this site; may be repeated. All if absent.
    #[arg(long = "of-site", value_name = "NAME")]
    sites: Vec<schemas::SiteName>,
    /// Which weights: auto (all, of which a site with few labels trains the last layers alone), all, head, `last N`
    /// (layers), or patterns of names with commas between them.
    #[arg(long, value_name = "WHICH", value_parser = trainable)]
    trainable: Option<String>,
    /// JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RoundListArgs {
    /// Folder of the model; that of the settings if absent, or that of the aggregator that runs.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// JSON.
    #[arg(long)]
    json: bool,
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

/// The model that rounds are about, and the release it had when sites were set up: of the folder that is named, or as the
/// aggregator that runs says.
async fn about(
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
                bail!("rounds of {} are run here: name the folder of one with --model", format::list(&names))
            }
        }
    }
    let model = model(loaded, named)?;
    Ok((ModelName::from_name(&model.description.name), model.release))
}

/// The model that rounds are about.
pub fn model(loaded: &LoadedSettings<Settings>, named: Option<&PathBuf>) -> anyhow::Result<Model> {
    let folder = named.cloned().unwrap_or_else(|| roles::model_to_merge(&loaded.settings));
    Model::load(&folder).with_context(|| {
        format!("which model? {} is none: name its folder with --model, or with aggregator.model", folder.display())
    })
}

async fn open_round(loaded: &LoadedSettings<Settings>, args: &RoundOpenArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "round").await?;
    let (name, first) = about(loaded, args.model.as_ref(), &cloud).await?;
    let history = RoundHistory::read(&cloud, &name).await?;
    let rollout = releases::decision_log::latest(&cloud, &name).await?;
    if let Some(release) = round_open::read_undecided(&cloud, rollout.as_ref()).await? {
        bail!(
            "release {release} of {name} is tried, and a round would start from what may be withdrawn: wait for the releaser (`tributary release list`), or decide it with `tributary release promote` or `tributary release withdraw`",
            release = release.short()
        );
    }
    let withdrawn = rollout.map(|rollout| rollout.withdrawn);
    let (base, weights) = history.base(&withdrawn.unwrap_or_default(), &first);
    let last = history.last();
    if last > 0 && history.ended(last).is_none() {
        bail!("round {last} of {name} has not ended: `tributary status` says what it waits for");
    }
    let mut chosen = loaded.settings.aggregator.round.clone();
    if let Some(ring) = &args.ring {
        if !chosen.rings.contains_key(ring) {
            let known: Vec<&String> = chosen.rings.keys().collect();
            bail!("ring {ring} is none of aggregator.round.rings ({})", format::list(&known));
        }
        chosen.ring = Some(ring.clone());
    }
    if chosen.client_selection == ClientSelection::LowestLoss
        && chosen.sites_per_round.is_some()
        && args.sites.is_empty()
    {
        bail!(
            "which sites are useful is known to the aggregator: let it open rounds (aggregator.round.every_s), or name sites with --of-site"
        );
    }
    let asked = round_open::sites(&chosen, last + 1, &BTreeMap::new());
    let focus = round_open::read_focus(&cloud, &base, &chosen).await?;
    let of_settings = round_open::round_terms(base, weights, asked, focus, &chosen);
    let terms = RoundTerms {
        quorum: args.quorum.unwrap_or(of_settings.quorum),
        grace_s: args.grace_s.unwrap_or(of_settings.grace_s),
        deadline_s: args.deadline_s.unwrap_or(of_settings.deadline_s),
        trainable: args.trainable.clone().unwrap_or_else(|| of_settings.trainable.clone()),
        sites: if args.sites.is_empty() { of_settings.sites.clone() } else { args.sites.clone() },
        ..of_settings
    };
    if !terms.sites.is_empty() && terms.quorum as usize > terms.sites.len() {
        bail!("{} updates cannot come of {} sites: lower --quorum", terms.quorum, terms.sites.len());
    }
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(10));
    let number = last + 1;
    let key = site_target::round_key(loaded).map(|path| SiteKey::read(&path)).transpose()?;
    let said =
        round_open::publish_round_event(&publisher, key.as_ref(), &name, number, RoundEvent::Opened(terms.clone()))
            .await;
    if !said.map_err(roles::into_anyhow)? {
        bail!("round {number} of {name} was opened by somebody else just now");
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
        "round {number} of {name} is open: {asked} asked for an update of release {}; {} are enough, {} s at the most",
        terms.base.short(),
        terms.quorum,
        terms.deadline_s
    ))
}

async fn list(loaded: &LoadedSettings<Settings>, args: &RoundListArgs) -> anyhow::Result<()> {
    let cloud = site_target::cloud(loaded, "round").await?;
    let (name, _) = about(loaded, args.model.as_ref(), &cloud).await?;
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
        return stdout::print_line(format_args!("no round of {name} was opened yet: `tributary round open`"));
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
        let came_to = match ended.map(|(_, _, round)| &round.event) {
            Some(RoundEvent::Sealed { release, updates, .. }) => {
                format!("release {} of {}", release.short(), format::count(u64::from(*updates), "update"))
            }
            Some(RoundEvent::Failed(note)) => format!("none: {} ({})", note.reason, note.kind),
            _ => "open".into(),
        };
        let took =
            ended.map_or(String::new(), |(_, at_ms, _)| format::format_span(at_ms.saturating_sub(opened_at_ms) as f64));
        rows.push(vec![
            number.to_string(),
            format::format_time(opened_at_ms),
            took,
            terms.base.short().into(),
            came_to,
        ]);
    }
    stdout::print_line(format::table(&["round", "opened", "took", "base", "came to"], &rows))
}
