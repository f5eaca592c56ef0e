//! docs/tutorial.md as its reader follows it: every command block, in order, from an empty folder.
//!
//! The word after a fence's `sh` says where the block runs. `up`: in the first terminal, which is interrupted before the
//! next such block. Nothing: in the second terminal, one shell for the whole page, which stops at the first failure.
//! `until-ctrl-c`: there, too, until it is interrupted. `no-test: REASON`: not here. A block `toml` is a part of
//! tributary.toml.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;
use std::{fmt::Write as _, io::Write as _};

use harness::program::{binary, die_with_us, root};
use harness::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::up::is_gone;

/// Longest time for one block: two trainings, with everything else that goes on.
const BLOCK: Duration = Duration::from_secs(100);

/// A fenced block of the page.
struct FencedBlock {
    /// Number of the line where it begins.
    line: usize,
    info: String,
    text: String,
}

fn blocks(page: &str) -> Vec<FencedBlock> {
    let (mut all, mut open): (Vec<FencedBlock>, Option<FencedBlock>) = (Vec::new(), None);
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(FencedBlock { line: number + 1, info: info.trim().into(), text: String::new() });
            }
            (Some(_), Some(_)) => all.extend(open.take()),
            (Some(block), None) => writeln!(block.text, "{line}").unwrap(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    all
}

/// Two terminals in the reader's folder.
struct Walk {
    folder: PathBuf,
    path: String,
    shell: Child,
    commands: ChildStdin,
    up: Option<Child>,
}

impl Drop for Walk {
    fn drop(&mut self) {
        for child in [&mut self.shell].into_iter().chain(&mut self.up) {
            let _already_gone = child.kill();
            let _already_gone = child.wait();
        }
    }
}

impl Walk {
    fn begin(folder: &Path, programs: &Path) -> Self {
        symlink(binary().unwrap(), programs.join("tributary")).unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut shell = command(folder, &path, "shell").args(["-eu"]).stdin(Stdio::piped()).spawn().unwrap();
        let commands = shell.stdin.take().unwrap();
        Self { folder: folder.into(), path, shell, commands, up: None }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.with_extension(name)).unwrap_or_default()
    }

    /// Runs a block in the second terminal, to its end.
    async fn run(&mut self, block: &FencedBlock) {
        let done = self.folder.with_extension(format!("{}.done", block.line));
        writeln!(self.commands, "{}\ntouch {}", block.text, done.display()).unwrap();
        let ended = until("the end of the block", BLOCK, async || {
            anyhow::ensure!(self.shell.try_wait()?.is_none(), "it failed");
            Ok(done.exists().then_some(()))
        });
        if let Err(error) = ended.await {
            panic!("line {}: {error:#}\n{}\n{}", block.line, block.text, last_lines(&self.log("shell")));
        }
    }

    /// Runs a block in the first terminal, after what runs there was interrupted; returns once it is up.
    async fn start_up(&mut self, block: &FencedBlock) {
        self.stop_up().await;
        let child = self.start(block, "up");
        let process = child.id();
        self.up = Some(child);
        let is_up = until("up.json", BLOCK, async || {
            let found = fs::read(self.folder.join("tributary-data/up.json")).unwrap_or_default();
            let found: serde_json::Value = serde_json::from_slice(&found).unwrap_or_default();
            Ok((found["process"] == process).then_some(()))
        });
        if let Err(error) = is_up.await {
            panic!("line {}: {error:#}\n{}\n{}", block.line, block.text, last_lines(&self.log("up")));
        }
    }

    async fn stop_up(&mut self) {
        if let Some(mut child) = self.up.take() {
            interrupt(&child);
            let status = until("the end of up", BLOCK, async || Ok(child.try_wait()?)).await.unwrap();
            assert!(status.success(), "{status}\n{}", last_lines(&self.log("up")));
        }
    }

    /// Runs a block until it said something and went on for a while, then interrupts it.
    async fn run_until_interrupted(&mut self, block: &FencedBlock) {
        let name = format!("{}.log", block.line);
        let mut child = self.start(block, &name);
        let process = Pid::from_raw(child.id().cast_signed());
        until("a word of it", BLOCK, async || Ok((!self.log(&name).is_empty()).then_some(()))).await.unwrap();
        assert!(!is_gone(process), "line {} ended by itself: {}", block.line, self.log(&name));
        interrupt(&child);
        let ended = until("its end", BLOCK, async || Ok(child.try_wait()?)).await.unwrap();
        assert!(ended.success() || ended.code().is_none(), "line {}: {ended}\n{}", block.line, self.log(&name));
        assert!(!self.log(&name).contains(" WARN "), "line {}: {}", block.line, self.log(&name));
    }

    /// Starts the one command of a block, which takes the place of its shell.
    fn start(&self, block: &FencedBlock, log: &str) -> Child {
        assert_eq!(block.text.lines().count(), 1, "line {}: one command, which goes on", block.line);
        let mut command = command(&self.folder, &self.path, log);
        command.args(["-euc", &format!("exec {}", block.text)]).stdin(Stdio::null());
        die_with_us(&mut command);
        command.spawn().unwrap()
    }
}

fn command(folder: &Path, path: &str, log: &str) -> Command {
    let open = || File::options().create(true).append(true).open(folder.with_extension(log)).unwrap();
    let mut command = Command::new("bash");
    command.current_dir(folder).env("PATH", path).env("TRIBUTARY", root()).stdout(open()).stderr(open());
    command
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Adds the keys of a part of tributary.toml to what is there.
fn merge_settings(all: &mut toml::Table, part: toml::Table) {
    for (key, value) in part {
        match (all.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(part)) => merge_settings(inner, part),
            (_, value) => drop(all.insert(key, value)),
        }
    }
}

#[tokio::test]
async fn every_command_of_the_tutorial_runs_as_written_from_an_empty_folder() {
    let place = tempfile::tempdir().unwrap();
    let (folder, programs) = (place.path().join("first-day"), place.path().join("bin"));
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&programs).unwrap();
    let mut walk = Walk::begin(&folder, &programs);
    let mut settings = toml::Table::new();
    for block in blocks(&fs::read_to_string(root().join("docs/tutorial.md")).unwrap()) {
        match block.info.split_once(' ').unwrap_or((&block.info, "")) {
            ("sh" | "toml", reason) if reason.starts_with("no-test") => {
                let reason = reason.strip_prefix("no-test: ").unwrap_or_default();
                assert!(!reason.is_empty(), "line {}: why is it not tested?", block.line);
            }
            ("sh", "up") => walk.start_up(&block).await,
            ("sh", "until-ctrl-c") => walk.run_until_interrupted(&block).await,
            ("sh", "") => walk.run(&block).await,
            ("toml", "") => {
                merge_settings(&mut settings, block.text.parse().unwrap());
                fs::write(folder.join("tributary.toml"), settings.to_string()).unwrap();
            }
            (language, _) => {
                let is_command = block.text.lines().any(|line| line.starts_with("tributary "));
                assert!(!is_command, "line {}: commands in a block {language:?}, which is not run", block.line);
            }
        }
    }
    walk.stop_up().await;
    let log = walk.log("up");
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
}
