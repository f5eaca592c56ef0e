//! Report of a bench: a text table and JSON. Figures with a goal show whether it was met.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::bar_chart::BarChart;
use crate::chart::{Chart, ChartError};
use crate::error::BenchError;

/// Report of a bench.
#[derive(Debug, Clone)]
pub(crate) struct BenchReport {
    /// Name of the bench.
    pub bench: &'static str,
    /// Settings of the run: rounds, durations, workload.
    pub settings: Value,
    /// Machine and versions.
    pub machine: BenchMachine,
    /// All measurements, one object per row.
    pub rows: Vec<Value>,
    /// The rows as a text table.
    pub table: ReportTable,
    /// Headline figures.
    pub headline: Vec<HeadlineFigure>,
    /// Notes below the table.
    pub notes: Vec<String>,
    /// Charts, each with its file name without extension.
    pub charts: Vec<(String, ReportChart)>,
}

/// A chart of a report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ReportChart {
    /// A bar chart.
    Bars(BarChart),
    /// A line chart.
    Lines(Chart),
}

impl ReportChart {
    fn svg(&self) -> Result<String, ChartError> {
        match self {
            ReportChart::Bars(bars) => bars.svg(),
            ReportChart::Lines(chart) => chart.svg(),
        }
    }
}

/// A headline figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadlineFigure {
    /// Name in JSON; must not change.
    pub name: &'static str,
    /// Title in the text report.
    pub title: &'static str,
    /// Value; absent if it could not be measured.
    pub value: Option<f64>,
    /// Unit; empty for a ratio.
    pub unit: &'static str,
    /// Goal; absent if there is none.
    pub goal: Option<FigureGoal>,
}

/// Goal of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FigureGoal {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
}

impl FigureGoal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn json(self, value: f64) -> Value {
        match self {
            Self::AtLeast(least) => json!({ "at_least": least, "met": self.is_met(value) }),
            Self::AtMost(most) => json!({ "at_most": most, "met": self.is_met(value) }),
        }
    }
}

/// A text table; the first column is left-aligned, the others right-aligned.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ReportTable {
    /// Column titles.
    pub columns: Vec<&'static str>,
    /// Lines, with one cell per column.
    pub lines: Vec<Vec<String>>,
}

impl ReportTable {
    fn render(&self) -> String {
        let cells = |column: usize| self.lines.iter().filter_map(move |line| line.get(column));
        let width = |(column, name): (usize, &&str)| {
            cells(column).map(|cell| cell.chars().count()).chain([name.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(width).collect();
        let head = self.columns.iter().map(|name| (*name).to_owned()).collect();
        let mut text = String::new();
        for line in std::iter::once(&head).chain(&self.lines) {
            let mut row = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                match column {
                    0 => row.extend([cell, padding.as_str()]),
                    _ => row.extend(["  ", padding.as_str(), cell]),
                }
            }
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Machine and versions of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BenchMachine {
    /// CPU model.
    pub processor: Option<String>,
    /// Cores available to this process.
    pub cores: usize,
    /// Total memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Kernel version.
    pub kernel: Option<String>,
    /// File system of the server store.
    pub store_file_system: Option<String>,
    /// One-minute load average before the start.
    pub load_before: Option<f64>,
    /// Version of this program.
    pub tributary: String,
    /// Version of the nats-server.
    pub nats_server: Option<String>,
    /// Commit of the checkout; ends in `+changes` if files were modified.
    pub commit: Option<String>,
}

impl BenchMachine {
    /// Describes this machine; `store` is the folder of the server stores.
    pub(crate) fn here(store: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let value = |text: String, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1.trim().to_owned();
            Some(line)
        };
        let memory = read("/proc/meminfo").and_then(|text| value(text, "MemTotal"));
        let kib: Option<u64> = memory.and_then(|text| text.trim_end_matches("kB").trim().parse().ok());
        Self {
            processor: read("/proc/cpuinfo").and_then(|text| value(text, "model name")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.map(|kib| kib * 1024),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            store_file_system: read("/proc/mounts").and_then(|mounts| file_system(&mounts, store)),
            load_before: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            tributary: env!("CARGO_PKG_VERSION").into(),
            nats_server: None,
            commit: commit(),
        }
    }
}

/// File system type of a path, from the kernel's mount table.
fn file_system(mounts: &str, path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((Path::new(words.next()?), words.next()?))
    });
    // The last of several mounts on a folder is the visible one.
    let mounted = fields.filter(|(at, _)| path.starts_with(at)).max_by_key(|(at, _)| at.components().count());
    mounted.map(|(_, kind)| kind.to_owned())
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    Some(if changed { format!("{commit}+changes") } else { commit })
}

impl BenchReport {
    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let mut text = self.table.render();
        text.push('\n');
        let mut figures = ReportTable { columns: vec!["headline", "value", "goal", ""], lines: Vec::new() };
        for figure in &self.headline {
            let value = figure.value.map_or_else(|| "unknown".into(), |value| amount(value, figure.unit));
            let goal = match figure.goal {
                Some(FigureGoal::AtLeast(least)) => format!("≥ {}", amount(least, figure.unit)),
                Some(FigureGoal::AtMost(most)) => format!("≤ {}", amount(most, figure.unit)),
                None => String::new(),
            };
            let met = match figure.goal.zip(figure.value) {
                Some((goal, value)) if goal.is_met(value) => "met",
                Some(_) => "MISSED",
                None => "",
            };
            figures.lines.push(vec![figure.title.into(), value, goal, met.into()]);
        }
        text.push_str(&figures.render());
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{note}");
        }
        text
    }

    /// The report as JSON.
    pub(crate) fn json(&self) -> Result<Value, BenchError> {
        let known = || self.headline.iter().filter_map(|figure| Some((figure, figure.value?)));
        let headline: Map<String, Value> =
            known().map(|(figure, value)| (figure.name.into(), rounded(value).into())).collect();
        let goals: Map<String, Value> =
            known().filter_map(|(figure, value)| Some((figure.name.into(), figure.goal?.json(value)))).collect();
        Ok(json!({
            "bench": self.bench,
            "headline": headline,
            "goals": goals,
            "settings": self.settings,
            "machine": serde_json::to_value(&self.machine)?,
            "notes": self.notes,
            "rows": self.rows,
        }))
    }

    /// Writes the JSON to a file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), BenchError> {
        let text = serde_json::to_string_pretty(&self.json()?)? + "\n";
        std::fs::write(path, text).map_err(BenchError::file(path))
    }

    /// Draws the charts into a folder, created if missing; returns their paths.
    pub(crate) fn draw(&self, folder: &Path) -> Result<Vec<PathBuf>, BenchError> {
        std::fs::create_dir_all(folder).map_err(BenchError::file(folder))?;
        let draw = |(name, chart): &(String, ReportChart)| {
            let path = folder.join(format!("{name}.svg"));
            std::fs::write(&path, chart.svg()?).map_err(BenchError::file(&path))?;
            Ok(path)
        };
        self.charts.iter().map(draw).collect()
    }
}

/// Formats a value with about three significant digits.
pub(crate) fn amount(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}{unit}", if unit.is_empty() { "" } else { " " })
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> BenchReport {
        let figure = |name, value, goal| HeadlineFigure { name, title: name, value, unit: "ms", goal };
        BenchReport {
            bench: "test",
            settings: json!({}),
            machine: BenchMachine::default(),
            rows: vec![json!({"a": 1})],
            table: ReportTable { columns: vec!["what", "n"], lines: vec![vec!["long name".into(), "7".into()]] },
            headline: vec![
                figure("good", Some(1.0), Some(FigureGoal::AtMost(2.0))),
                figure("bad", Some(1.0), Some(FigureGoal::AtLeast(2.0))),
                figure("free", Some(123.456_78), None),
                figure("unknown", None, Some(FigureGoal::AtMost(1.0))),
            ],
            notes: vec!["A note.".into()],
            charts: Vec::new(),
        }
    }

    #[test]
    fn json_has_headline_numbers_and_separate_goals() {
        let json = report().json().unwrap();
        assert_eq!(json["headline"], json!({"good": 1.0, "bad": 1.0, "free": 123.4568}));
        assert_eq!(json["goals"]["good"], json!({"at_most": 2.0, "met": true}));
        assert_eq!(json["goals"]["bad"], json!({"at_least": 2.0, "met": false}));
        assert_eq!(json["rows"], json!([{"a": 1}]));
    }

    #[test]
    fn text_shows_whether_a_goal_was_met() {
        let text = report().text();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("good").ends_with("1.00 ms  ≤ 2.00 ms     met"), "{text}");
        assert!(line("bad").ends_with("MISSED"), "{text}");
        assert!(line("free").ends_with("123 ms"), "{text}");
        assert!(line("unknown").contains("unknown"), "{text}");
        assert!(text.ends_with("A note."), "{text}");
    }

    #[test]
    fn numbers_align_with_their_columns() {
        assert_eq!(report().table.render(), "what       n\nlong name  7\n");
    }

    #[test]
    fn nearest_mount_determines_the_file_system() {
        let mounts = "/dev/a / ext4 rw 0 0\nnone /proc proc rw 0 0\nnone /proc/self cgroup rw 0 0";
        assert_eq!(file_system(mounts, Path::new("/")), Some("ext4".into()));
        assert_eq!(file_system("", Path::new("/")), None);
    }
}
