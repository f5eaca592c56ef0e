//! Which of a site's answered images a command takes: the arguments that `export`, `evaluate`, `backtest`, `pin`,
//! `republish` and `retrain` share.

use std::str::FromStr;

use anyhow::ensure;
use replay::fetch::ImageOrigin;
use replay::select::TaskStage;
use replay::{Expression, ReplayOptions, TaskQuery, TaskSampling, timestamp};
use runtime::clock;
use schemas::{CameraName, SetName};

/// Help on `--where`, for every command that takes it.
pub(crate) const FILTER_HELP: &str = "\
--where compares fields of a task with values, joined by and, or, not and parentheses:
  text      = != in like        site camera task stage route reason label truth person
                                edge_label release
  numbers   = != < <= > >=      confidence margin edge_confidence novelty sequence
                                published latency_ms
  yes/no                        hard (the site was in doubt), labelled,
                                wrong (a person or the publisher says otherwise)
Of the objects in a detector's answer it takes count(LABEL), count(CONDITION) or count() with = != < <= > >=, and \
any(CONDITION) and all(CONDITION); a condition there compares label, confidence and area (of the box, as a fraction \
of the picture): 'count(person) > 2 or any(label = dog and confidence < 0.4)'.";

/// Help on how a run behaves beside live work and after an interruption, for every command that reads images.
pub(crate) const READ_HELP: &str = "\
Nothing is removed from the site, and live work goes first: while the recognizers are busy, at most \
replayer.busy_mib_per_s is read. After an interruption or a full disk, run the same command again; it continues where \
it stopped.";

/// Which tasks, by what is known of each.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FilterArgs {
    /// Take images of this camera only; repeatable.
    #[arg(long, value_name = "NAME", help_heading = "Selection")]
    camera: Vec<CameraName>,
    /// Take images stored since TIME: a date, a time (2026-11-25T10:30:00Z) or an age (90m, 2h, 7d).
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    since: Option<String>,
    /// Take images stored before TIME.
    #[arg(long, value_name = "TIME", help_heading = "Selection")]
    until: Option<String>,
    /// First sequence in the stream IMAGES.
    #[arg(long, value_name = "N", help_heading = "Selection")]
    from_sequence: Option<u64>,
    /// Last sequence in the stream IMAGES, inclusive.
    #[arg(long, value_name = "N", help_heading = "Selection")]
    to_sequence: Option<u64>,
    /// Take tasks at this stage: final (answered), provisional (no final answer yet) or dead (dead-lettered).
    #[arg(long, value_name = "STAGE", help_heading = "Selection", default_value = "final", value_parser = stage)]
    stage: TaskStage,
    /// Filter expression (see below).
    #[arg(long = "where", value_name = "EXPRESSION", help_heading = "Selection")]
    condition: Option<String>,
}

/// Which of the tasks that pass the filter, if not all.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SampleArgs {
    /// Take at most N images.
    #[arg(long, value_name = "N", help_heading = "Selection")]
    limit: Option<usize>,
    /// How --limit chooses: first, last, random, per-class, or hard (first what the site got wrong, then what it was
    /// least sure of).
    #[arg(long, value_name = "METHOD", help_heading = "Selection", default_value = "first", requires = "limit",
          value_parser = <TaskSampling as FromStr>::from_str)]
    sample: TaskSampling,
    /// Random seed for --sample.
    #[arg(long, value_name = "N", help_heading = "Selection", default_value_t = 1)]
    seed: u64,
}

/// Which images, of the site's archive or of a pinned set.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SelectionArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    sample: SampleArgs,
    /// Read a pinned set instead of the site's archive.
    #[arg(long, value_name = "NAME", help_heading = "Selection")]
    pinned: Option<SetName>,
}

fn stage(text: &str) -> Result<TaskStage, String> {
    match text {
        "final" => Ok(TaskStage::Final),
        "provisional" => Ok(TaskStage::Provisional),
        "dead" => Ok(TaskStage::Dead),
        _ => Err("use final, provisional or dead".into()),
    }
}

impl FilterArgs {
    /// The flags as text, which tells one selection from another.
    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = self.camera.iter().map(|camera| format!("--camera {camera}")).collect();
        let mut add = |name: &str, value: Option<String>| {
            flags.extend(value.map(|value| format!("--{name} {value:?}")));
        };
        add("since", self.since.clone());
        add("until", self.until.clone());
        add("from-sequence", self.from_sequence.map(|sequence| sequence.to_string()));
        add("to-sequence", self.to_sequence.map(|sequence| sequence.to_string()));
        add("stage", (self.stage != TaskStage::Final).then(|| format!("{:?}", self.stage)));
        add("where", self.condition.clone());
        flags
    }

    /// The query that the flags ask for.
    ///
    /// # Errors
    /// The flag that cannot be read, and why.
    pub(crate) fn query(&self) -> anyhow::Result<TaskQuery> {
        let now_ms = Some(clock::now_ms());
        let moment = |flag: &str, text: &Option<String>| {
            let read = text.as_deref().map(|text| timestamp::parse_timestamp(text, now_ms)).transpose();
            read.map_err(|why| anyhow::anyhow!("--{flag}: {why}"))
        };
        let (since_ms, until_ms) = (moment("since", &self.since)?, moment("until", &self.until)?);
        if let (Some(since_ms), Some(until_ms)) = (since_ms, until_ms) {
            ensure!(since_ms < until_ms, "--since is not before --until, so there is nothing between them");
        }
        let condition = self.condition.as_deref().map(Expression::parse).transpose();
        Ok(TaskQuery {
            cameras: self.camera.clone(),
            since_ms,
            until_ms,
            from_sequence: self.from_sequence,
            to_sequence: self.to_sequence,
            at: self.stage,
            condition: condition.map_err(|error| anyhow::anyhow!("--where: {error}"))?,
        })
    }
}

impl SampleArgs {
    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            flags.extend(value.map(|value| format!("--{name} {value:?}")));
        };
        add("limit", self.limit.map(|limit| limit.to_string()));
        add("sample", (self.sample != TaskSampling::First).then(|| format!("{:?}", self.sample)));
        add("seed", (self.seed != 1).then(|| self.seed.to_string()));
        flags
    }
}

impl SelectionArgs {
    /// What to read. `request`: one line that names the whole command; the same line continues an interrupted run.
    ///
    /// # Errors
    /// The flag that cannot be read, and why.
    pub(crate) fn options(&self, request: &str) -> anyhow::Result<ReplayOptions> {
        let origin = self.pinned.clone().map_or(ImageOrigin::Images, ImageOrigin::Pinned);
        let set = self.pinned.iter().map(|set| format!("--pinned {set}"));
        options(&self.filter, &self.sample, origin, [request.to_owned()].into_iter().chain(set).collect())
    }
}

/// What to read of the site's archive, for a command that takes no pinned set.
///
/// # Errors
/// The flag that cannot be read, and why.
pub(crate) fn archive_options(
    filter: &FilterArgs,
    sample: &SampleArgs,
    request: &str,
) -> anyhow::Result<ReplayOptions> {
    options(filter, sample, ImageOrigin::Images, vec![request.to_owned()])
}

fn options(
    filter: &FilterArgs,
    sample: &SampleArgs,
    from: ImageOrigin,
    mut words: Vec<String>,
) -> anyhow::Result<ReplayOptions> {
    let query = filter.query()?;
    words.extend(filter.flags());
    words.extend(sample.flags());
    Ok(ReplayOptions {
        query,
        from,
        only: None,
        sample: sample.sample,
        limit: sample.limit,
        seed: sample.seed,
        most_mib_per_s: None,
        asked: words.join(" "),
    })
}
