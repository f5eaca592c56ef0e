//! `tributary label`: a person's labels and boxes for tasks, and retracting them.

mod box_argument;
mod coco_tasks;
pub(crate) mod known_labels;
mod label_file;
mod retract;

use std::path::PathBuf;

use anyhow::bail;
use detection::CocoImage;
use operations::labels::{self, LabelBatch, LabelContent, TaskLabel};
use runtime::settings::LoadedSettings;
use schemas::DetectedObject;

use self::label_file::LabelSheet;

use crate::settings::Settings;
use crate::{format, site_target, stdout, task_lookup};

const EXAMPLES: &str = "\
A person's label overrides the publisher's label and the cloud's verdict when the site's trainer learns; the latest \
one counts. `tributary answers` shows the tasks, and `tributary label retract` takes labels back.

For a detector a label is all boxes of an image: --box for each object, or --no-objects. --from takes COCO annotations \
as well (FILE.json, or a folder with annotations.json): every image in them counts as labelled, also one without boxes, \
but those of a `tributary export --format coco` that nobody changed. An image is known by its task, by a file name \
that is a task's id, or by the name of the file that was published.

Examples:
  tributary label 0191d3c2 coat                   the first digits of a task's id suffice
  tributary label 0191d3c2 --box 'coat 0.1,0.2,0.5,0.6' --box 'hat 0.3,0,0.4,0.2'
                                                  left, top, right, bottom as fractions of the image
  tributary label --from ./review/annotations.json --by anna
  tributary label --from corrected.csv --by anna  a table with columns task and label
  tributary export --where hard --to ./review && tributary label --from ./review
                                                  once you filled in or corrected some of its labels
  ... | tributary label --from -
  tributary label retract 0191d3c2-7f6e-7c3a-9c1b-2f60a1b4c5d6 --why 'wrong shelf'";

/// Label answered images, for the site's trainer to learn from, or draw boxes in them.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true,
          group(clap::ArgGroup::new("said").args(["label", "boxes", "no_objects"])))]
pub(crate) struct LabelArgs {
    #[command(subcommand)]
    what: Option<LabelCommand>,
    /// Task to label, named by the first digits of its id.
    #[arg(value_name = "TASK", required_unless_present = "from", requires = "said")]
    task: Option<String>,
    /// True label of the task's image.
    #[arg(value_name = "LABEL")]
    label: Option<String>,
    /// Object in the task's image, with its left, top, right and bottom edge as fractions of it, 0 to 1; repeat for every
    /// object.
    #[arg(long = "box", value_name = "LABEL L,T,R,B", requires = "task", value_parser = box_argument::parse)]
    boxes: Vec<DetectedObject>,
    /// Say that there is no object in the task's image.
    #[arg(long, requires = "task")]
    no_objects: bool,
    /// Label many tasks from a CSV file with columns task and label, from COCO annotations (JSON), or from an exported
    /// folder; - reads standard input. Rows without a label are skipped, and so is what nobody changed in an export.
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["task", "said"])]
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
    let file = args.from.as_deref().map(label_file::read).transpose()?;
    let here = site_target::open(loaded, "label").await?;
    let (mut unknown_files, mut skipped) = (Vec::new(), 0);
    let labels = match (file, &args.task) {
        (Some(LabelSheet::Classes { labels, without }), _) => {
            skipped = without;
            labels.into_iter().map(|(task, label)| TaskLabel::of_class(task, label)).collect()
        }
        (Some(LabelSheet::Boxes(images)), _) => {
            note_clipped(&images);
            let found = coco_tasks::find_tasks(&here, images).await?;
            unknown_files = found.unknown_files;
            found.labels
        }
        (None, Some(task)) => {
            let content = content(args)?;
            vec![TaskLabel { task: task_lookup::find_task(&here, task).await?, content }]
        }
        (None, None) => bail!("no task and label given: use `tributary label TASK LABEL`, or --from FILE"),
    };
    let said = labels.iter().flat_map(|label| label.content.labels()).collect();
    let unknown = known_labels::unknown_labels(&loaded.settings, said).await;
    if let Some(why) = unknown.filter(|_| !args.new_label) {
        bail!("{why}. Nothing was labelled: correct it, or use --new-label for a later release that will have it");
    }
    let done = labels::label_tasks(&here.bus, &here.name, LabelBatch::new(labels)?, args.by.as_deref()).await?;
    let left = match (skipped, done.unchanged) {
        (0, 0) => String::new(),
        (0, unchanged) => format!("; {} with the boxes of the answer skipped", format::count(unchanged, "image")),
        (skipped, _) => format!("; {} without a new label skipped", format::count(skipped, "row")),
    };
    stdout::print_line(format!("{} at site {}{left}", format::count(done.labelled, "label"), here.name))?;
    match (&done.unknown[..], &unknown_files[..]) {
        ([], []) => Ok(()),
        ([first, ..], _) => bail!(
            "{} of unknown tasks skipped, the first {first}: only tasks with a final answer at site {} can be labelled",
            format::count(done.unknown.len() as u64, "label"),
            here.name
        ),
        ([], [first, ..]) => bail!(
            "{} skipped, the first {first:?}: no answer of site {} names that file, and it is not a task's id",
            format::count(unknown_files.len() as u64, "image"),
            here.name
        ),
    }
}

/// What the arguments say of one task.
fn content(args: &LabelArgs) -> anyhow::Result<LabelContent> {
    match (&args.label, &args.boxes[..], args.no_objects) {
        (Some(label), ..) => Ok(LabelContent::Class(label.clone())),
        (None, [], true) => Ok(LabelContent::Objects(Vec::new())),
        (None, [_, ..], _) => Ok(LabelContent::Objects(args.boxes.clone())),
        (None, [], false) => bail!("no label given: use `tributary label TASK LABEL`, --box or --no-objects"),
    }
}

fn note_clipped(images: &[CocoImage]) {
    let clipped: usize = images.iter().map(|image| image.clipped).sum();
    if let (Some(first), true) = (images.iter().find(|image| image.clipped > 0), clipped > 0) {
        stdout::print_note(format_args!(
            "{} over the edge of an image clipped to it, the first in image {} ({:?})",
            if clipped == 1 { "1 box".to_owned() } else { format!("{clipped} boxes") },
            first.id,
            first.file_name
        ));
    }
}
