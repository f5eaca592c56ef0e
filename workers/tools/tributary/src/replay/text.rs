//! What came of a replay, for people. Pure.

use std::path::Path;

use replay::ReplaySummary;
use replay::compare::Comparison;
use schemas::SiteName;

use super::{ReplayArgs, images};
use crate::format;

/// Pairs of labels that are listed.
const LISTED: usize = 10;

/// What came of it.
pub fn summary(summary: &ReplaySummary, site: &SiteName, args: &ReplayArgs, place: Option<&Path>) -> String {
    let to = match (&args.pin, place) {
        (Some(set), _) => format!(" into set {set}"),
        (None, Some(place)) => format!(" to {}", place.display()),
        (None, None) => String::new(),
    };
    let rate = summary.through as f64 * 1000.0 / summary.elapsed_ms.max(1) as f64;
    let mut lines = vec![format!("replayed  {}{to}, {rate:.0} a second, from site {site}", images(summary))];
    if summary.before > 0 {
        let all = summary.before + summary.gone == summary.meant && args.pin.is_none();
        let then = if all {
            ", which is all that was meant when it was begun; what came since is for another place"
        } else {
            ""
        };
        lines.push(format!("before    {} went through before{then}", summary.before));
    }
    if summary.gone > 0 {
        lines.push(format!(
            "gone      {} of them, cleared away before their turn came; --pin keeps what is needed later",
            summary.gone
        ));
    }
    if summary.unlabelled > 0 {
        lines.push(format!("left out  {} without a label", summary.unlabelled));
    }
    if !summary.unknown.is_empty() {
        let labels = summary
            .unknown
            .iter()
            .take(LISTED)
            .map(|(label, count)| format!("{count} {}", format::plain_number(label)));
        lines.push(format!("left out  labels that the model does not know: {}", labels.collect::<Vec<_>>().join(", ")));
    }
    if summary.comparison.is_none() && summary.through > 0 {
        let sources = summary.sources.iter().map(|(source, count)| format!("{count} by {source}"));
        lines.push(format!("labels    {}", sources.collect::<Vec<_>>().join(", ")));
    }
    if summary.unstored {
        lines.push(
            "note      no stream stores that subject, so only whoever listened at that moment has heard it".into(),
        );
    }
    if let Some(comparison) = &summary.comparison {
        lines.push(compared(comparison, place));
    }
    lines.join("\n")
}

fn compared(comparison: &Comparison, place: Option<&Path>) -> String {
    let Comparison { images, unreadable, same, labelled, right_before, right_now, mended, broken, .. } = comparison;
    let share = |part: u64, of: u64| format::percent(part as f32 / of.max(1) as f32);
    let mut lines = vec![
        format!("same      {} of {images} ({same})", share(*same, *images)),
        format!(
            "sure      {} before, {} now, on average; an image costs {:.2} ms",
            format::percent(comparison.confidence_before),
            format::percent(comparison.confidence_now),
            comparison.cost_ms
        ),
    ];
    if *labelled > 0 {
        lines.push(format!(
            "right     {} before, {} now, of {labelled} of which somebody said what they show; {mended} mended, {broken} broken",
            share(*right_before, *labelled),
            share(*right_now, *labelled)
        ));
    }
    if *unreadable > 0 {
        lines.push(format!("left out  {unreadable} that cannot be decoded"));
    }
    let mut changes: Vec<(&str, &str, u64)> = comparison
        .changes
        .iter()
        .flat_map(|(before, now)| now.iter().map(move |(now, count)| (before.as_str(), now.as_str(), *count)))
        .collect();
    changes.sort_by_key(|(before, now, count)| (std::cmp::Reverse(*count), *before, *now));
    if !changes.is_empty() {
        let rows = changes.iter().take(LISTED).map(|(before, now, count)| {
            vec![format::plain_number(before), format::plain_number(now), count.to_string()]
        });
        lines.push(String::new());
        lines.push(format::table(&["before", "now", "images"], &rows.collect::<Vec<_>>()));
        if changes.len() > LISTED {
            let every = match place {
                Some(table) => format!("every answer is in {}", table.display()),
                None => "--to FILE.csv writes every answer".into(),
            };
            lines.push(format!("and {} more pairs; {every}", changes.len() - LISTED));
        }
    }
    lines.join("\n")
}
