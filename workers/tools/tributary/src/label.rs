//! `tributary label`: a person's labels for tasks, and retracting them.

mod retract;

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail};
use operations::labels::{self, LabelBatch};
use runtime::settings::LoadedSettings;
use schemas::TaskId;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

const EXAMPLES: &str = "\
A person's label overrides the publisher's label and the cloud's verdict when the site's trainer learns; the latest \
one counts. `tributary answers` shows the tasks, and `tributary label retract` takes labels back.

Examples:
  tributary label 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 coat
  tributary label --from corrected.csv --by anna  a table with columns task and label
  ... | tributary label --from -
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'";

/// Label answered images, for the site's trainer to learn from.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct LabelArgs {
    #[command(subcommand)]
    what: Option<LabelCommand>,
    /// Task to label.
    #[arg(value_name = "TASK", required_unless_present = "from", requires = "label")]
    task: Option<TaskId>,
    /// True label of the task's image.
    #[arg(value_name = "LABEL")]
    label: Option<String>,
    /// Label many tasks from a CSV file with columns task and label; - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "label"])]
    from: Option<PathBuf>,
    /// Name of the person who labels.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(clap::Subcommand)]
enum LabelCommand {
    Retract(retract::RetractArgs),
}

/// Publishes labels, or retracts them.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &LabelArgs) -> anyhow::Result<()> {
    if let Some(LabelCommand::Retract(args)) = &args.what {
        return retract::command(loaded, args).await;
    }
    let labels = match (&args.from, args.task, &args.label) {
        (Some(file), ..) => from(file)?,
        (None, Some(task), Some(label)) => vec![(task, label.clone())],
        _ => bail!("no task and label given: use `tributary label TASK LABEL`, or --from FILE"),
    };
    let batch = LabelBatch::new(labels)?;
    let here = site_target::open(loaded, "label").await?;
    let done = labels::label_tasks(&here.bus, &here.name, batch, args.by.as_deref()).await?;
    stdout::print_line(format!("{} at site {}", format::count(done.labelled, "label"), here.name))?;
    match &done.unknown[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "{} of unknown tasks skipped, the first {first}: only tasks with a final answer at site {} can be labelled",
            format::count(done.unknown.len() as u64, "label"),
            here.name
        ),
    }
}

fn from(file: &PathBuf) -> anyhow::Result<Vec<(TaskId, String)>> {
    let mut text = String::new();
    let what = file.display();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("{what} cannot be read"))?;
    }
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().with_context(|| format!("{what} cannot be read"))?.clone();
    let column = |name: &str| {
        columns.iter().position(|column| column == name).with_context(|| format!("{what} has no column {name}"))
    };
    let (task, label) = (column("task")?, column("label")?);
    let mut labels = Vec::new();
    for (number, row) in reader.records().enumerate() {
        let row = row.with_context(|| format!("{what} cannot be read"))?;
        let field = |column: usize| row.get(column).unwrap_or_default().trim();
        let id = field(task).parse().with_context(|| format!("{what}, line {}", number + 2))?;
        labels.push((id, field(label).to_owned()));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_labels_that_were_bent_are_read_or_refused() {
        let files = bend::texts([
            "task,label\n0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6,coat\n",
            "label,task\n\"a,b\",0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6\n",
        ]);
        let place = tempfile::NamedTempFile::new().unwrap();
        bend::bend_all("labels of persons", &files, bend::turns() / 4, |bytes| {
            std::fs::write(place.path(), bytes).unwrap();
            let _read = from(&place.path().to_owned()).is_ok();
            1
        });
    }
}
