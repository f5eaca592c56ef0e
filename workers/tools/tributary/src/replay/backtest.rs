//! `tributary replay --policy … --gate …`: what other settings would have decided.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use offload::{EffectiveSettings, PolicyName};
use replay::ReplayerSettings;
use replay::backtest::{BacktestCandidate, BacktestResult, in_order, recorded_result, replay_decisions};
use replay::gather::gather_decided;
use replay::read_limiter::ReadLimiter;
use serde_json::{Value, json};
use streams::fleet::Ledger;

use super::ReplayArgs;
use crate::site_target::SiteTarget;
use crate::{format, stdout};

/// What stands beside a file's own name in what it holds.
const SECTIONS: [&str; 3] = ["policy", "gate", "verify"];

/// The settings that are tried: each policy and each gate that was named.
pub fn candidates(args: &ReplayArgs) -> anyhow::Result<Vec<BacktestCandidate>> {
    let policies = args.policy.iter().map(|named| candidate(named, "policy"));
    let gates = args.gate.iter().map(|named| candidate(named, "gate"));
    policies.chain(gates).collect()
}

fn candidate(named: &str, section: &str) -> anyhow::Result<BacktestCandidate> {
    let path = Path::new(named);
    if section == "policy" && !path.is_file() {
        let name: PolicyName = named.parse().with_context(|| format!("--policy {named} is no file either"))?;
        return Ok(BacktestCandidate { name: named.into(), says: json!({ "policy": { "name": name } }) });
    }
    ensure!(path.is_file(), "--{section} {named}: there is no such file");
    let mut says = runtime::settings::table(path)?;
    // A whole settings file, the recognizer's part of one, or one section alone.
    if let Some(recognizer) = says.get_mut("recognizer") {
        says = recognizer.take();
    }
    let sections = says.as_object().is_some_and(|says| SECTIONS.iter().any(|section| says.contains_key(*section)));
    if !sections {
        says = json!({ section: says });
    }
    if let Value::Object(says) = &mut says {
        says.retain(|key, _| SECTIONS.contains(&key.as_str()));
    }
    let name = path.file_stem().map_or_else(|| named.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(BacktestCandidate { name, says })
}

/// Plays what was recorded through each candidate, and shows them side by side.
pub async fn command(
    site: &SiteTarget,
    settings: &ReplayerSettings,
    args: &ReplayArgs,
    candidates: &[BacktestCandidate],
) -> anyhow::Result<()> {
    let options = args.selection.options(String::new())?;
    let mut pace = ReadLimiter::new(&site.bus, &site.name, settings.busy_mib_per_s, None);
    let (mut all, silent) = gather_decided(&site.bus, &site.name, &options.query, &mut pace).await?;
    if all.is_empty() {
        bail!(
            "no answer of site {} that is meant says how it was decided ({silent} do not: older recognizers did not write it)",
            site.name
        );
    }
    in_order(&mut all);
    let in_force = in_force(site, all.iter().map(replay::backtest::RecordedTask::settings)).await?;
    let known = |task: &replay::backtest::RecordedTask| in_force.contains_key(task.settings());
    let unknown = all.iter().filter(|task| !known(task)).count() as u64;
    all.retain(known);
    let mut rows = vec![recorded_result(&all)];
    for candidate in candidates {
        rows.push(replay_decisions(&all, &in_force, candidate).map_err(|why| anyhow::anyhow!(why))?);
    }
    if args.json {
        return stdout::json(&json!({ "silent": silent, "settings_unknown": unknown, "played": rows }));
    }
    stdout::print_line(table(&rows))?;
    let expected = rows.iter().any(|row| row.expected > 0);
    let mut notes = vec![format!(
        "{} of site {}, each decided again by what it was decided by; the queue is as it was, not as it would have been.",
        format::count(all.len() as u64, "task"),
        site.name
    )];
    if expected {
        notes.push(
            "right: where a candidate asks somebody who never saw the image, the share of right answers of the site or of the \
             cloud over the same images is expected; `expected` counts these."
                .into(),
        );
    }
    if silent + unknown > 0 {
        notes.push(format!("{} left out, for it is not recorded how they were decided.", silent + unknown));
    }
    stdout::print_line(notes.join("\n"))
}

/// The settings that were in force, by the names that tasks give them.
async fn in_force<'a>(
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
        "redirected",
        "in doubt",
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
        "otherwise",
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
