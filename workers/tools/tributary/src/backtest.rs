//! `tributary backtest`: the routing decisions that other policies and gates would have made on recorded tasks.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use offload::{EffectiveSettings, PolicyName};
use replay::backtest::{BacktestCandidate, BacktestResult, in_order, recorded_result, replay_decisions};
use replay::gather::gather_decided;
use replay::read_limiter::ReadLimiter;
use runtime::settings::LoadedSettings;
use serde_json::{Value, json};
use streams::fleet::Ledger;

use crate::selection::{FILTER_HELP, FilterArgs};
use crate::settings::Settings;
use crate::site_target::{self, SiteTarget};
use crate::{format, stdout};

/// Sections of a settings file that a candidate is made of.
const SECTIONS: [&str; 3] = ["policy", "gate", "verify"];

const ABOUT: &str = "\
Every answer records the figures it was decided by. Each policy and gate you name decides the same tasks again from \
those figures, in one row of a table: where images are recognized, what goes up, how right and how fast the answers \
are. No image is read and no model runs. The load stays as recorded: a candidate that sends less up does not shorten \
the queue.

A FILE is TOML: keys of recognizer.policy or recognizer.gate, the sections [policy], [gate] and [verify], or a whole \
settings file. Keys it omits keep the value that was in force.";

const COMMANDS: &str = "\
Examples:
  tributary backtest --since 1d --policy paper --policy edge-only
  tributary backtest --since 1d --gate strict.toml --where labelled
  tributary backtest --policy tributary.toml --json";

fn help() -> String {
    [ABOUT, FILTER_HELP, COMMANDS].join("\n\n")
}

/// Show what other policies and gates would have decided on recorded tasks.
#[derive(clap::Args, Debug)]
#[command(after_help = help(), group(clap::ArgGroup::new("candidates").args(["policy", "gate"]).multiple(true).required(true)))]
pub(crate) struct BacktestArgs {
    /// Policy to try: a name such as paper, or a TOML file; repeatable.
    #[arg(long, value_name = "NAME|FILE")]
    policy: Vec<String>,
    /// Gate to try: a TOML file; repeatable.
    #[arg(long, value_name = "FILE")]
    gate: Vec<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

/// The settings to try: each policy and each gate that was named.
fn candidates(args: &BacktestArgs) -> anyhow::Result<Vec<BacktestCandidate>> {
    let policies = args.policy.iter().map(|named| candidate(named, "policy"));
    let gates = args.gate.iter().map(|named| candidate(named, "gate"));
    policies.chain(gates).collect()
}

fn candidate(named: &str, section: &str) -> anyhow::Result<BacktestCandidate> {
    let path = Path::new(named);
    if section == "policy" && !path.is_file() {
        let name: PolicyName = named.parse().with_context(|| format!("--policy {named} is not a file either"))?;
        return Ok(BacktestCandidate { name: named.into(), says: json!({ "policy": { "name": name } }) });
    }
    ensure!(path.is_file(), "--{section} {named}: there is no such file");
    let mut says = runtime::settings::table(path)?;
    // A whole settings file, the recognizer's part of one, or one section alone.
    if let Some(recognizer) = says.get_mut("recognizer") {
        says = recognizer.take();
    }
    let has_sections = says.as_object().is_some_and(|says| SECTIONS.iter().any(|section| says.contains_key(*section)));
    if !has_sections {
        says = json!({ section: says });
    }
    if let Value::Object(says) = &mut says {
        says.retain(|key, _| SECTIONS.contains(&key.as_str()));
    }
    let name = path.file_stem().map_or_else(|| named.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(BacktestCandidate { name, says })
}

/// Decides recorded tasks again by each candidate, and shows the results side by side.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &BacktestArgs) -> anyhow::Result<()> {
    // Wrong flags and files are reported before anything is waited for.
    let (query, candidates) = (args.filter.query()?, candidates(args)?);
    let site = &site_target::open(loaded, "backtest").await?;
    let mut limiter = ReadLimiter::new(&site.bus, &site.name, loaded.settings.replayer.busy_mib_per_s, None);
    let (mut tasks, unrecorded) = gather_decided(&site.bus, &site.name, &query, &mut limiter).await?;
    if tasks.is_empty() {
        bail!(
            "no selected answer of site {} records how it was decided ({unrecorded} without a record, written by older recognizers): widen --since or --where",
            site.name
        );
    }
    in_order(&mut tasks);
    let in_force = settings_in_force(site, tasks.iter().map(replay::backtest::RecordedTask::settings)).await?;
    let is_known = |task: &replay::backtest::RecordedTask| in_force.contains_key(task.settings());
    let unknown = tasks.iter().filter(|task| !is_known(task)).count() as u64;
    tasks.retain(is_known);
    let mut rows = vec![recorded_result(&tasks)];
    for candidate in &candidates {
        rows.push(replay_decisions(&tasks, &in_force, candidate).map_err(|why| anyhow::anyhow!(why))?);
    }
    if args.json {
        return stdout::json(&json!({ "silent": unrecorded, "settings_unknown": unknown, "played": rows }));
    }
    stdout::print_line(table(&rows))?;
    let mut notes = vec![format!(
        "{} of site {}, decided again from the recorded figures; the queue is as recorded, not as it would have been.",
        format::count(tasks.len() as u64, "task"),
        site.name
    )];
    if rows.iter().any(|row| row.expected > 0) {
        notes.push(
            "Where a candidate asks the site or the cloud about an image that it never saw, its accuracy on the same images is \
             assumed; the column `expected` counts these."
                .into(),
        );
    }
    if unrecorded + unknown > 0 {
        notes.push(format!(
            "{} omitted, because how they were decided is not recorded.",
            format::count(unrecorded + unknown, "task")
        ));
    }
    stdout::print_line(notes.join("\n"))
}

/// The settings that were in force, by the name that tasks record.
async fn settings_in_force<'a>(
    site: &SiteTarget,
    names: impl Iterator<Item = &'a str>,
) -> anyhow::Result<BTreeMap<String, EffectiveSettings>> {
    let ledger = Ledger::open(&site.bus).await?;
    let names: std::collections::BTreeSet<&str> = names.collect();
    let mut found = BTreeMap::new();
    for name in names {
        let note = ledger.read(&offload::effective_settings::settings_note(name)).await?;
        found.extend(note.and_then(|note| Some((name.to_owned(), serde_json::from_str(&note).ok()?))));
    }
    Ok(found)
}

fn table(rows: &[BacktestResult]) -> String {
    let head = [
        "settings",
        "local",
        "offloaded",
        "doubtful",
        "verified",
        "kept",
        "up",
        "right",
        "expected",
        "agrees",
        "first p50",
        "p99",
        "final p50",
        "p99",
        "energy",
        "changed",
    ];
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), format::percent);
    let cells = |row: &BacktestResult| {
        vec![
            row.name.clone(),
            row.local.to_string(),
            row.redirected.to_string(),
            row.doubtful.to_string(),
            row.verified.to_string(),
            row.kept.to_string(),
            format::format_size(row.up_bytes),
            ratio(row.right_ratio),
            row.expected.to_string(),
            ratio(row.agrees_ratio),
            format::format_span(row.first_p50_ms),
            format::format_span(row.first_p99_ms),
            format::format_span(row.final_p50_ms),
            format::format_span(row.final_p99_ms),
            format!("{:.1} J", row.energy_j),
            row.otherwise.to_string(),
        ]
    };
    format::table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
}
