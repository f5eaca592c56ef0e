//! The built binary as child processes that a test can kill, stop, continue and restart.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use crate::until::until;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A folder or file among the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    root().join("fixtures").join(path)
}

/// Path of the built `tributary`, as a hard link that a concurrent build cannot replace.
pub fn binary() -> anyhow::Result<&'static Path> {
    static LINKED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let linked_path = LINKED.get_or_init(|| link_program("tributary"));
    linked_path.as_ref().map(PathBuf::as_path).map_err(|why| anyhow!("{why}"))
}

/// Path of the built `tributary-bench`, linked likewise. It looks for `tributary` in its own folder.
fn bench_binary() -> anyhow::Result<&'static Path> {
    static LINKED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let linked_path = LINKED.get_or_init(|| link_program("tributary-bench"));
    linked_path.as_ref().map(PathBuf::as_path).map_err(|why| anyhow!("{why}"))
}

fn link_program(name: &str) -> Result<PathBuf, String> {
    let tests = std::env::current_exe().map_err(|error| error.to_string())?;
    let built = tests.parent().and_then(Path::parent).map(|profile| profile.join(name));
    let built = built
        .filter(|path| path.is_file())
        .ok_or_else(|| format!("{name} is not built: run `make setup`, then `make test`, which builds it first"))?;
    let linked_path = built.with_file_name(format!("{name}-under-test"));
    let new = built.with_extension(std::process::id().to_string());
    let linked = fs::hard_link(&built, &new).or_else(|_| fs::copy(&built, &new).map(|_| ()));
    let placed = linked.and_then(|()| fs::rename(&new, &linked_path)).and_then(|()| match new.exists() {
        // Both names are already the same file, so the rename did nothing.
        true => fs::remove_file(&new),
        false => Ok(()),
    });
    placed.map_err(|error| format!("cannot link {} under another name: {error}", built.display()))?;
    Ok(linked_path)
}

/// A child process of the binary. Killed when dropped, and by the kernel when the test process dies.
pub struct WorkerProcess {
    /// Its name in messages, and of its log file.
    pub name: String,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    child: Child,
}

impl WorkerProcess {
    /// Starts the binary with `folder` as its working folder, where its log is written, too.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        folder: &Path,
        arguments: &[A],
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let arguments: Vec<OsString> = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
        let child = spawn(name, folder, &arguments, environment)?;
        let environment = environment.to_vec();
        Ok(Self { name: name.into(), arguments, environment, folder: folder.into(), child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Kills it if it still runs, and starts it again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.child = spawn(&self.name, &self.folder, &self.arguments, &self.environment)?;
        Ok(())
    }

    /// Peak resident memory, MiB; 0 if the system does not report it.
    pub fn peak_memory_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.id().cast_signed()), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub async fn end(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        until(&what, timeout, async || self.ended()).await
    }

    /// Everything it wrote to standard error since the test began, restarts included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    /// Waits until its log contains a text.
    pub async fn wait_for_log(&self, text: &str, timeout: Duration) -> anyhow::Result<()> {
        let logged = until(text, timeout, async || Ok(self.log().contains(text).then_some(()))).await;
        logged.with_context(|| format!("log of {}:\n{}", self.name, self.log()))
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _already_gone = self.kill();
    }
}

fn spawn(name: &str, folder: &Path, arguments: &[OsString], environment: &[(String, String)]) -> anyhow::Result<Child> {
    let log = |end: &str| File::options().create(true).append(true).open(folder.join(format!("{name}.{end}")));
    let mut command = Command::new(binary()?);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(log("out")?).stderr(log("log")?);
    remove_settings(|variable| {
        command.env_remove(variable);
    });
    command.envs(environment.iter().cloned());
    die_with_us(&mut command);
    command.spawn().with_context(|| format!("starting {name}"))
}

/// Has the kernel kill the child when the thread that started it ends, so that a killed test leaves no process behind.
#[allow(unsafe_code)]
pub fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and signal are.
    unsafe {
        command.pre_exec(|| {
            // Tests in the background of a shell inherit that they ignore an interrupt, and so would the program.
            signal(Signal::SIGINT, SigHandler::SigDfl)?;
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        });
    }
}

/// Removes our own environment's settings, which are not meant for the programs under test.
fn remove_settings(mut remove: impl FnMut(&str)) {
    let is_setting = |name: &str| name.starts_with("TRIBUTARY_") && (name.contains("__") || name == "TRIBUTARY_SITE");
    for (name, _) in std::env::vars().filter(|(name, _)| is_setting(name)) {
        remove(&name);
    }
}

/// The result of a command.
#[derive(Debug)]
pub struct CommandOutput {
    /// Whether it succeeded.
    pub success: bool,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// Runs the binary to its end, for a minute at most.
pub async fn run<A: AsRef<OsStr>>(folder: &Path, arguments: &[A]) -> anyhow::Result<CommandOutput> {
    run_for(folder, arguments, Duration::from_secs(60)).await
}

/// Runs the binary to its end, for `timeout` at most.
pub async fn run_for<A: AsRef<OsStr>>(
    folder: &Path,
    arguments: &[A],
    timeout: Duration,
) -> anyhow::Result<CommandOutput> {
    run_program(binary()?, folder, arguments, timeout).await
}

/// Runs `tributary-bench` in the root of the repository to its end, for `timeout` at most.
pub async fn run_bench<A: AsRef<OsStr>>(arguments: &[A], timeout: Duration) -> anyhow::Result<CommandOutput> {
    run_program(bench_binary()?, root(), arguments, timeout).await
}

async fn run_program<A: AsRef<OsStr>>(
    program: &Path,
    folder: &Path,
    arguments: &[A],
    timeout: Duration,
) -> anyhow::Result<CommandOutput> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    remove_settings(|variable| {
        command.env_remove(variable);
    });
    let output = tokio::time::timeout(timeout, command.output()).await;
    let output = output.map_err(|_| anyhow!("{:?} did not end within {timeout:?}", command.as_std()))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(CommandOutput { success: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}
