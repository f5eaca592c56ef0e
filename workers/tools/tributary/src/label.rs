//! `tributary label`: a person's labels for tasks, and retracting them.

pub(crate) mod known_labels;
mod label_file;
mod retract;

use std::path::PathBuf;

use anyhow::bail;
use operations::labels::{self, LabelBatch};
use runtime::settings::LoadedSettings;

use crate::settings::Settings;
use crate::{format, site_target, stdout, task_lookup};

const EXAMPLES: &str = "\
A person's label overrides the publisher's label and the cloud's verdict when the site's trainer learns; the latest \
one counts. `tributary answers` shows the tasks, and `tributary label retract` takes labels back.

Examples:
  tributary label 0191d3c2 coat                   the first digits of a task's id suffice
  tributary label --from corrected.csv --by anna  a table with columns task and label
  tributary export --where hard --to ./review && tributary label --from ./review
                                                  once you filled in or corrected some of its labels
  ... | tributary label --from -
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'";

/// Label answered images, for the site's trainer to learn from.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct LabelArgs {
    #[command(subcommand)]
    what: Option<LabelCommand>,
    /// Task to label, named by the first digits of its id.
    #[arg(value_name = "TASK", required_unless_present = "from", requires = "label")]
    task: Option<String>,
    /// True label of the task's image.
    #[arg(value_name = "LABEL")]
    label: Option<String>,
    /// Label many tasks from a CSV file with columns task and label, or from an exported folder; - reads standard input.
    /// Rows without a label are skipped, and so are those of an export whose label nobody changed.
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["task", "label"])]
    from: Option<PathBuf>,
    /// Name of the person who labels.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Accept labels that the model does not have, for a later release that will.
    #[arg(long)]
    new_label: bool,
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
    let here = site_target::open(loaded, "label").await?;
    let (labels, skipped) = match (&args.from, &args.task, &args.label) {
        (Some(file), ..) => label_file::read(file)?,
        (None, Some(task), Some(label)) => (vec![(task_lookup::find_task(&here, task).await?, label.clone())], 0),
        _ => bail!("no task and label given: use `tributary label TASK LABEL`, or --from FILE"),
    };
    let said = labels.iter().map(|(_, label)| label.as_str()).collect();
    let unknown = known_labels::unknown_labels(&loaded.settings, said).await;
    if let Some(why) = unknown.filter(|_| !args.new_label) {
        bail!("{why}. Nothing was labelled: correct it, or use --new-label for a later release that will have it");
    }
    let done = labels::label_tasks(&here.bus, &here.name, LabelBatch::new(labels)?, args.by.as_deref()).await?;
    let left = match skipped {
        0 => String::new(),
        skipped => format!("; {} without a new label skipped", format::count(skipped, "row")),
    };
    stdout::print_line(format!("{} at site {}{left}", format::count(done.labelled, "label"), here.name))?;
    match &done.unknown[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "{} of unknown tasks skipped, the first {first}: only tasks with a final answer at site {} can be labelled",
            format::count(done.unknown.len() as u64, "label"),
            here.name
        ),
    }
}
