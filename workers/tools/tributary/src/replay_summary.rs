//! The summary of a run over answered images, for people. Pure.

use std::path::{Path, PathBuf};

use replay::ReplaySummary;
use replay::compare::{Comparison, DetectionComparison, DetectionScores};
use schemas::{SetName, SiteName};

use crate::format;
use crate::replay_run::images;

/// Most label pairs, and most unknown labels, in a summary.
const LISTED: usize = 10;

/// What a run did with the images.
pub(crate) enum SummaryContext {
    /// Wrote them to a folder or an archive.
    Exported(PathBuf),
    /// Ran them through a model, with a table of both answers if one was named.
    Evaluated(Option<PathBuf>),
    /// Pinned them.
    Pinned(SetName),
    /// Published them again; where to, in words.
    Republished(String),
}

impl SummaryContext {
    fn heading(&self) -> (&'static str, String) {
        match self {
            Self::Exported(path) => ("exported", format!(" to {}", path.display())),
            Self::Evaluated(_) => ("evaluated", String::new()),
            Self::Pinned(set) => ("pinned", format!(" in set {set}")),
            Self::Republished(to) => ("published", format!(" to {to}")),
        }
    }
}

/// The summary as text.
pub(crate) fn text(summary: &ReplaySummary, site: &SiteName, context: &SummaryContext) -> String {
    let (verb, to) = context.heading();
    let rate = summary.through as f64 * 1000.0 / summary.elapsed_ms.max(1) as f64;
    let mut lines = vec![format!("{verb:9} {}{to}, {rate:.0} per second, from site {site}", images(summary))];
    if summary.before > 0 {
        let is_complete =
            summary.before + summary.gone == summary.meant && !matches!(context, SummaryContext::Pinned(_));
        let then = match is_complete {
            true => "; that is the whole selection of that run: for newer images, use another place",
            false => "",
        };
        lines.push(format!("earlier   {} in an earlier run{then}", summary.before));
    }
    if summary.gone > 0 {
        lines.push(format!(
            "gone      {}, purged before their turn; `tributary pin` keeps what is needed later",
            format::count(summary.gone, "image")
        ));
    }
    if summary.unlabelled > 0 {
        lines.push(format!("omitted   {} without a label", summary.unlabelled));
    }
    if summary.boxed > 0 {
        lines.push(format!(
            "omitted   {} labelled with boxes, which a model of whole images cannot learn from",
            summary.boxed
        ));
    }
    if summary.without_objects > 0 {
        lines.push(format!(
            "omitted   {} whose answers list no objects, and that nobody drew boxes in",
            summary.without_objects
        ));
    }
    if summary.undecodable > 0 {
        lines.push(format!("omitted   {} that cannot be decoded, so their size is unknown", summary.undecodable));
    }
    if !summary.unknown.is_empty() {
        let labels =
            summary.unknown.iter().take(LISTED).map(|(label, count)| format!("{count} {}", format::plain_text(label)));
        lines.push(format!("omitted   labels unknown to the model: {}", labels.collect::<Vec<_>>().join(", ")));
    }
    if summary.comparison.is_none() && summary.through > 0 {
        let sources = summary.sources.iter().map(|(source, count)| format!("{count} by {source}"));
        lines.push(format!("labels    {}", sources.collect::<Vec<_>>().join(", ")));
    }
    if summary.unstored {
        lines.push("note      no stream stores that subject: only current subscribers received the images".into());
    }
    if let (Some(comparison), SummaryContext::Evaluated(table)) = (&summary.comparison, context) {
        lines.push(compared(comparison, table.as_deref()));
    }
    lines.join("\n")
}

/// The precision of two detectors, as a table.
fn detected(detection: &DetectionComparison) -> String {
    let DetectionComparison { images, truths, before, now } = detection;
    let percent = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), format::percent);
    let row = |name: &str, scores: &DetectionScores| {
        let f1 = format::percent(scores.f1);
        vec![name.to_owned(), percent(scores.map50), percent(scores.map50_95), percent(scores.map75), f1]
    };
    format!(
        "boxes     {} with {} drawn by persons\n{}",
        format::count(*images, "image"),
        format::count(*truths, "object"),
        format::table(&["", "mAP50", "mAP50-95", "mAP75", "F1"], &[row("before", before), row("now", now)])
    )
}

fn compared(comparison: &Comparison, table: Option<&Path>) -> String {
    let Comparison { images, unreadable, same, labelled, right_before, right_now, mended, broken, .. } = comparison;
    let share = |part: u64, of: u64| format::percent(part as f32 / of.max(1) as f32);
    let mut lines = vec![
        format!("same      {} of {images} ({same})", share(*same, *images)),
        format!(
            "confident {} before, {} now, on average; {:.2} ms per image",
            format::percent(comparison.confidence_before),
            format::percent(comparison.confidence_now),
            comparison.cost_ms
        ),
    ];
    if *labelled > 0 {
        lines.push(format!(
            "correct   {} before, {} now, of {labelled} labelled images; {mended} fixed, {broken} broken",
            share(*right_before, *labelled),
            share(*right_now, *labelled)
        ));
    }
    if let Some(detection) = &comparison.detection {
        lines.push(detected(detection));
    }
    if *unreadable > 0 {
        lines.push(format!("omitted   {unreadable} that cannot be decoded"));
    }
    let mut changes: Vec<(&str, &str, u64)> = comparison
        .changes
        .iter()
        .flat_map(|(before, now)| now.iter().map(move |(now, count)| (before.as_str(), now.as_str(), *count)))
        .collect();
    changes.sort_by_key(|(before, now, count)| (std::cmp::Reverse(*count), *before, *now));
    if !changes.is_empty() {
        let rows = changes
            .iter()
            .take(LISTED)
            .map(|(before, now, count)| vec![format::plain_text(before), format::plain_text(now), count.to_string()]);
        lines.push(String::new());
        lines.push(format::table(&["before", "now", "images"], &rows.collect::<Vec<_>>()));
        if changes.len() > LISTED {
            let every = match table {
                Some(table) => format!("every answer is in {}", table.display()),
                None => "--to FILE.csv writes every answer".into(),
            };
            lines.push(format!("and {} more pairs; {every}", changes.len() - LISTED));
        }
    }
    lines.join("\n")
}
