//! `tributary dead`: look at messages that were given up, and give them another chance.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use runtime::settings::LoadedSettings;
use schemas::task::HEADER_FILE;
use schemas::{DeadLetter, SiteName};
use streams::{Bus, Publisher};

use crate::roles::into_anyhow;
use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

/// How long a message is published again before the command gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Digits of an id in the list: enough to tell some thousands apart.
const SHORT_ID: usize = 8;

const EXAMPLES: &str = "\
A message is given up when it can never be handled (a picture that is none), or when no worker finished it in
many tries. It is kept with its payload and its fault until its stream is full. `redrive` publishes it once more,
as the same task; its letter goes, and its new outcome takes the place of the old one.

Examples:
  tributary dead list --fault image_truncated
  tributary dead list --file dock/              of files whose names contain this
  tributary dead show 1f0c --save broken.jpg
  tributary dead redrive 1f0c 88ab                these two, by the beginning of their ids
  tributary dead redrive --all --fault tries_used_up
  tributary dead list --cloud                     those the verifiers gave up";

/// Look at messages that were given up, and give them another chance.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
    /// Those of the cloud instead of those of the site.
    #[arg(long, global = true)]
    cloud: bool,
}

#[derive(clap::Subcommand)]
enum DeadCommand {
    /// List them, oldest first.
    #[command(after_help = EXAMPLES)]
    List {
        /// Only those with this fault.
        #[arg(long, value_name = "NAME")]
        fault: Option<String>,
        /// Only those whose file name contains TEXT, in any case.
        #[arg(long, value_name = "TEXT")]
        file: Option<String>,
        /// JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show all about one; its payload goes into a file on request.
    #[command(after_help = EXAMPLES)]
    Show {
        /// Its id, or the beginning of it.
        #[arg(value_name = "ID")]
        id: String,
        /// Write its payload, byte for byte, into this file.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publish them once more, as the same tasks.
    #[command(after_help = EXAMPLES)]
    Redrive {
        /// Their ids, or the beginnings of them.
        #[arg(value_name = "ID", required_unless_present = "all")]
        ids: Vec<String>,
        /// All of them.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// With --all: only those with this fault.
        #[arg(long, value_name = "NAME", requires = "all")]
        fault: Option<String>,
    },
}

/// Lists, shows or redrives.
pub async fn command(loaded: &LoadedSettings<Settings>, args: DeadArgs) -> anyhow::Result<()> {
    let site = site_target::open(loaded, "dead").await?;
    let at = if args.cloud { SiteName::cloud() } else { site.name.clone() };
    let (bus, place) = match args.cloud {
        true => (site.whole_cloud()?.clone(), "the cloud".to_owned()),
        false => (site.bus, format!("site {}", site.name)),
    };
    let letters = janitor::redrive::letters(&bus).await.map_err(into_anyhow);
    let letters = letters.with_context(|| format!("dead letters of {place} cannot be read"))?;
    match args.command {
        DeadCommand::List { fault, file, json } => {
            let mut chosen = of_fault(letters, fault.as_deref());
            if let Some(text) = file.map(|text| text.to_lowercase()) {
                chosen.retain(|(_, letter)| file_of(letter).is_some_and(|file| file.to_lowercase().contains(&text)));
            }
            list(&chosen, json, &place)
        }
        DeadCommand::Show { id, save, json } => {
            let (_, letter) = select_letters(&letters, &id)?;
            if let Some(path) = save {
                let payload = janitor::redrive::full_payload(&bus, letter).await.map_err(into_anyhow)?;
                std::fs::write(&path, &payload).with_context(|| format!("{} cannot be written", path.display()))?;
            }
            show(letter, json)
        }
        DeadCommand::Redrive { ids, all, fault } => {
            let chosen = if all { of_fault(letters, fault.as_deref()) } else { pick_all(&letters, &ids)? };
            let ended = redrive(&bus, &chosen, &place).await;
            audit::record_command(&bus, &at, "dead redrive", format::count(chosen.len() as u64, "letter")).await;
            ended
        }
    }
}

type DeadLetterRow = (u64, DeadLetter);

fn of_fault(letters: Vec<DeadLetterRow>, fault: Option<&str>) -> Vec<DeadLetterRow> {
    letters.into_iter().filter(|(_, letter)| fault.is_none_or(|fault| letter.fault.kind.as_str() == fault)).collect()
}

/// The file that its image came from, if the publisher said so.
fn file_of(letter: &DeadLetter) -> Option<&str> {
    letter.headers.get(HEADER_FILE).map(String::as_str)
}

fn pick_all(letters: &[DeadLetterRow], ids: &[String]) -> anyhow::Result<Vec<DeadLetterRow>> {
    let mut chosen: Vec<DeadLetterRow> = Vec::new();
    for id in ids {
        let letter = select_letters(letters, id)?;
        if chosen.iter().all(|(sequence, _)| *sequence != letter.0) {
            chosen.push(letter.clone());
        }
    }
    Ok(chosen)
}

/// The one letter whose id, or whose task's, begins so.
fn select_letters<'a>(letters: &'a [DeadLetterRow], id: &str) -> anyhow::Result<&'a DeadLetterRow> {
    let begins = |whole: &str| !id.is_empty() && whole.starts_with(&id.to_ascii_lowercase());
    let fits = |(_, letter): &&DeadLetterRow| {
        begins(&letter.id.to_string()) || letter.task.is_some_and(|task| begins(&task.to_string()))
    };
    match letters.iter().filter(fits).collect::<Vec<_>>()[..] {
        [letter] => Ok(letter),
        [] => bail!(
            "no dead letter's id begins with {id:?}: `tributary dead list` shows them, --cloud those of the cloud"
        ),
        [(_, first), (_, second), ..] => {
            bail!("several dead letters' ids begin with {id:?} ({}, {}): write more of it", first.id, second.id)
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
            format::plain_number(&letter.subject),
            format::plain_number(letter.fault.kind.as_str()),
            file_of(letter).map(format::plain_number).unwrap_or_default(),
            format::plain_number(&letter.fault.reason),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    stdout::print_line(format::table(&["id", "given up", "by", "stream", "subject", "fault", "file", "reason"], &rows))
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
            format!("{whole}, of which the letter keeps the first {kept}; the rest is in {}", letter.stream)
        }
    };
    let mut lines = vec![format!("id        {}", letter.id), format!("task      {task}")];
    lines.extend(file_of(letter).map(|file| format!("file      {}", format::plain_number(file))));
    lines.extend([
        format!("given up  {} by the {} of site {}", format::format_time(letter.died_at_ms), letter.role, letter.site),
        format!("message   {} of {}, on {}", letter.sequence, letter.stream, format::plain_number(&letter.subject)),
        format!("attempts  {}", letter.attempts),
        format!("fault     {}", format::plain_number(letter.fault.kind.as_str())),
        format!("reason    {}", format::plain_number(&letter.fault.reason)),
        format!("remedy    {}", format::plain_number(&letter.fault.remedy)),
        format!("payload   {payload}{kind} (--save FILE writes it)"),
    ]);
    lines.extend(
        letter
            .headers
            .iter()
            .map(|(name, value)| format!("header    {}: {}", format::plain_number(name), format::plain_number(value))),
    );
    stdout::print_line(lines.join("\n"))
}

async fn redrive(bus: &Bus, letters: &[DeadLetterRow], place: &str) -> anyhow::Result<()> {
    let publisher = Publisher::new(bus.clone(), PATIENCE);
    for (done, (sequence, letter)) in letters.iter().enumerate() {
        let driven = janitor::redrive::redrive_letter(bus, &publisher, *sequence, letter).await;
        driven.map_err(into_anyhow).with_context(|| {
            format!("dead letter {} could not be redriven; {done} were, and the rest can be tried again", letter.id)
        })?;
        stdout::print_line(format_args!("redriven  {}  {}", letter.id, format::plain_number(&letter.subject)))?;
    }
    match letters.len() {
        0 => stdout::print_line(format_args!("Nothing to redrive at {place}.")),
        count => stdout::print_line(format_args!("Redriven: {}.", format::count(count as u64, "message"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{FaultNote, Role, TaskId};

    fn letter(name: &str) -> DeadLetterRow {
        let id = TaskId::from_name(name);
        let letter = DeadLetter {
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
        };
        (1, letter)
    }

    #[test]
    fn a_letter_is_picked_by_the_beginning_of_its_id_or_its_tasks() {
        let letters = [letter("a"), letter("b")];
        let begin = |id: TaskId| id.to_string()[..8].to_owned();
        assert_eq!(select_letters(&letters, &begin(letters[1].1.id)).unwrap(), &letters[1]);
        assert_eq!(select_letters(&letters, &begin(letters[0].1.task.unwrap()).to_uppercase()).unwrap(), &letters[0]);
    }

    #[test]
    fn an_unknown_an_empty_and_an_ambiguous_beginning_are_refused() {
        let letters = [letter("a"), letter("a")];
        let why = |id: &str| select_letters(&letters, id).unwrap_err().to_string();
        assert!(why("zz").contains("no dead letter's id begins with \"zz\""));
        assert!(why("").contains("no dead letter"));
        assert!(why(&letters[0].1.id.to_string()).contains("write more of it"));
    }

    #[test]
    fn a_letter_named_twice_is_redriven_once() {
        let letters = [letter("a")];
        let id = letters[0].1.id.to_string();
        assert_eq!(pick_all(&letters, &[id.clone(), id]).unwrap().len(), 1);
    }

    #[test]
    fn a_listed_letter_has_its_payloads_size_and_not_its_bytes() {
        assert_eq!(listed(&letter("a").1).unwrap()["payload"], "<3 bytes>");
    }
}
