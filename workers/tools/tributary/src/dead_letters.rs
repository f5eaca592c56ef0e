//! `tributary dead-letters`: inspect and requeue dead-lettered messages.

use std::path::PathBuf;

use anyhow::Context;
use operations::dead_letters::{self, DeadLetterRow, file_name};
use runtime::settings::LoadedSettings;
use schemas::{DeadLetter, SiteName};
use streams::Bus;

use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// Digits of an id in the list, enough to tell some thousands apart.
const SHORT_ID: usize = 8;

const EXAMPLES: &str = "\
A message becomes a dead letter when it can never be processed (a file that is no image) or when no worker finished it \
in many attempts. Payload and fault are kept until the stream is full; then the oldest go. `redrive` publishes the \
message again as the same task, removes the dead letter, and the new outcome replaces the old one.

Examples:
  tributary dead-letters list --fault image_truncated
  tributary dead-letters list --file dock/        of files whose name contains this
  tributary dead-letters show 1f0c --save broken.jpg
  tributary dead-letters redrive 1f0c 88ab        two of them, by the start of their ids
  tributary dead-letters redrive --all --fault tries_used_up
  tributary dead-letters list --cloud             those of the verifiers";

/// Inspect and requeue dead-lettered messages.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
    /// Use the cloud's dead letters instead of the site's.
    #[arg(long, global = true)]
    cloud: bool,
}

#[derive(clap::Subcommand)]
enum DeadLettersCommand {
    /// List dead letters, oldest first.
    #[command(after_help = EXAMPLES)]
    List {
        /// List those with this fault only.
        #[arg(long, value_name = "NAME")]
        fault: Option<String>,
        /// List those whose file name contains TEXT only, ignoring case.
        #[arg(long, value_name = "TEXT")]
        file: Option<String>,
        /// Print JSON, one object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter in full, and save its payload.
    #[command(after_help = EXAMPLES)]
    Show {
        /// The start of its id or of its task's id.
        #[arg(value_name = "ID")]
        id: String,
        /// Write the payload to this file.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publish dead-lettered messages again, as the same tasks.
    #[command(after_help = EXAMPLES)]
    Redrive {
        /// The starts of their ids.
        #[arg(value_name = "ID", required_unless_present = "all")]
        ids: Vec<String>,
        /// Redrive all of them.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// With --all: redrive those with this fault only.
        #[arg(long, value_name = "NAME", requires = "all")]
        fault: Option<String>,
    },
}

/// Lists, shows or redrives.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: DeadLettersArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "dead-letters").await?;
    let at = if args.cloud { SiteName::cloud() } else { site.name.clone() };
    let (bus, place) = match args.cloud {
        true => (site.whole_cloud()?.clone(), "the cloud".to_owned()),
        false => (site.bus, format!("site {}", site.name)),
    };
    let letters = dead_letters::read_dead_letters(&bus).await;
    let letters = letters.with_context(|| format!("dead letters of {place} cannot be read"))?;
    match args.command {
        DeadLettersCommand::List { fault, file, json } => {
            let of_fault = dead_letters::with_fault(letters, fault.as_deref());
            let chosen = match file {
                Some(text) => dead_letters::with_file(of_fault, &text),
                None => of_fault,
            };
            list(&chosen, json, &place)
        }
        DeadLettersCommand::Show { id, save, json } => {
            let (_, letter) = dead_letters::select_dead_letter(&letters, &id)?;
            if let Some(path) = save {
                let payload = dead_letters::read_payload(&bus, letter).await?;
                std::fs::write(&path, &payload).with_context(|| format!("{} cannot be written", path.display()))?;
            }
            show(letter, json)
        }
        DeadLettersCommand::Redrive { ids, all, fault } => {
            let chosen = match all {
                true => dead_letters::with_fault(letters, fault.as_deref()),
                false => dead_letters::select_dead_letters(&letters, &ids)?,
            };
            redrive(&bus, &at, &chosen, &place).await
        }
    }
}

/// As JSON, with the size of the payload in its place.
fn listed(letter: &DeadLetter) -> anyhow::Result<serde_json::Value> {
    let bytes = schemas::encode(letter)?;
    schemas::codec::to_json(&bytes).context("letter has no JSON form")
}

fn list(letters: &[DeadLetterRow], json: bool, place: &str) -> anyhow::Result<()> {
    if json {
        return letters.iter().try_for_each(|(_, letter)| stdout::json_line(&listed(letter)?));
    }
    if letters.is_empty() {
        return stdout::print_line(format_args!("No dead letters at {place}."));
    }
    let row = |(_, letter): &DeadLetterRow| {
        vec![
            letter.id.to_string().chars().take(SHORT_ID).collect(),
            format::format_time(letter.died_at_ms),
            letter.role.to_string(),
            letter.stream.clone(),
            format::plain_text(&letter.subject),
            format::plain_text(letter.fault.kind.as_str()),
            file_name(letter).map(format::plain_text).unwrap_or_default(),
            format::plain_text(&letter.fault.reason),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    stdout::print_line(format::table(&["id", "since", "role", "stream", "subject", "fault", "file", "reason"], &rows))
}

fn show(letter: &DeadLetter, json: bool) -> anyhow::Result<()> {
    if json {
        return stdout::json(&listed(letter)?);
    }
    let task = letter.task.map_or_else(|| "unknown".into(), |task| task.to_string());
    let kind = match vision::dimensions(&letter.payload) {
        Ok((format, width_px, height_px)) => format!(", {} {width_px}x{height_px}", format.name()),
        Err(_) => String::new(),
    };
    let payload = match &letter.cut {
        None => format::format_size(letter.payload.len() as u64),
        Some(cut) => {
            let (whole, kept) = (format::format_size(cut.size_bytes), format::format_size(letter.payload.len() as u64));
            format!("{whole}, of which the first {kept} are kept; the rest is in {}", letter.stream)
        }
    };
    let mut lines = vec![format!("id        {}", letter.id), format!("task      {task}")];
    lines.extend(file_name(letter).map(|file| format!("file      {}", format::plain_text(file))));
    lines.extend([
        format!("since     {}, by the {} of site {}", format::format_time(letter.died_at_ms), letter.role, letter.site),
        format!("message   {} of {}, on {}", letter.sequence, letter.stream, format::plain_text(&letter.subject)),
        format!("attempts  {}", letter.attempts),
        format!("fault     {}", format::plain_text(letter.fault.kind.as_str())),
        format!("reason    {}", format::plain_text(&letter.fault.reason)),
        format!("remedy    {}", format::plain_text(&letter.fault.remedy)),
        format!("payload   {payload}{kind} (save it with --save FILE)"),
    ]);
    lines.extend(
        letter
            .headers
            .iter()
            .map(|(name, value)| format!("header    {}: {}", format::plain_text(name), format::plain_text(value))),
    );
    stdout::print_line(lines.join("\n"))
}

async fn redrive(bus: &Bus, at: &SiteName, letters: &[DeadLetterRow], place: &str) -> anyhow::Result<()> {
    // What is redriven stays redriven, whether or not somebody still reads the list.
    let mut printed = Ok(());
    let print = |letter: &DeadLetter| {
        if printed.is_ok() {
            printed =
                stdout::print_line(format_args!("redriven  {}  {}", letter.id, format::plain_text(&letter.subject)));
        }
    };
    let redriven = dead_letters::redrive_dead_letters(bus, at, letters, print).await?;
    printed?;
    match redriven {
        0 => stdout::print_line(format_args!("Nothing to redrive at {place}.")),
        count => stdout::print_line(format_args!("Redriven: {}.", format::count(count as u64, "message"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{FaultNote, Role, TaskId};

    fn letter(name: &str) -> DeadLetter {
        let id = TaskId::from_name(name);
        DeadLetter {
            id,
            task: Some(id.child("task")),
            site: "reef".parse().unwrap(),
            role: Role::Recognizer.into(),
            stream: "IMAGES".into(),
            subject: "image.reef.cam-1".into(),
            sequence: 1,
            attempts: 1,
            died_at_ms: 0,
            fault: FaultNote::new(name, "", ""),
            headers: Default::default(),
            payload: vec![1, 2, 3],
            cut: None,
        }
    }

    #[test]
    fn a_listed_dead_letter_has_its_payloads_size_and_not_its_bytes() {
        assert_eq!(listed(&letter("a")).unwrap()["payload"], "<3 bytes>");
    }
}
