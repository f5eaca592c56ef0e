//! The built binary as child processes that can be killed, stopped, continued and started again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill};
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

/// The built `tributary`, in a form that a build running meanwhile cannot take away.
pub fn binary() -> anyhow::Result<&'static Path> {
    static KEPT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let kept = KEPT.get_or_init(|| keep_program("tributary"));
    kept.as_ref().map(PathBuf::as_path).map_err(|why| anyhow!("{why}"))
}

/// The built `tributary-bench`, in the same form. It looks for `tributary` in its own folder.
fn bench_binary() -> anyhow::Result<&'static Path> {
    static KEPT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let kept = KEPT.get_or_init(|| keep_program("tributary-bench"));
    kept.as_ref().map(PathBuf::as_path).map_err(|why| anyhow!("{why}"))
}

fn keep_program(name: &str) -> Result<PathBuf, String> {
    let tests = std::env::current_exe().map_err(|error| error.to_string())?;
    let built = tests.parent().and_then(Path::parent).map(|profile| profile.join(name));
    let built = built
        .filter(|path| path.is_file())
        .ok_or_else(|| format!("{name} is not built: run `make setup`, then `make test`, which builds it first"))?;
    let kept = built.with_file_name(format!("{name}-under-test"));
    let new = built.with_extension(std::process::id().to_string());
    let linked = fs::hard_link(&built, &new).or_else(|_| fs::copy(&built, &new).map(|_| ()));
    let placed = linked.and_then(|()| fs::rename(&new, &kept)).and_then(|()| match new.exists() {
        // Two names of one file already: renaming one to the other does nothing.
        true => fs::remove_file(&new),
        false => Ok(()),
    });
    placed.map_err(|error| format!("{} cannot be kept: {error}", built.display()))?;
    Ok(kept)
}

/// A child process of the binary; killed when dropped, and by the kernel when the tests are.
pub struct WorkerProcess {
    /// What it is called in messages.
    pub name: String,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    child: Child,
}

impl WorkerProcess {
    /// Starts it with its log in `folder`, which is also its working folder, and with this in its environment.
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

    /// Ends it the hard way, and sees it gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again, after [`Self::kill`] or its own end.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.child = spawn(&self.name, &self.folder, &self.arguments, &self.environment)?;
        Ok(())
    }

    /// The most memory it ever had, MiB; 0 if the system does not say.
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

    /// How it ended, if it did.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub async fn end(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        until(&what, patience, async || self.ended()).await
    }

    /// What it wrote to standard error since the test began.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    /// Waits until its log holds a text.
    pub async fn says(&self, text: &str, patience: Duration) -> anyhow::Result<()> {
        let said = until(text, patience, async || Ok(self.log().contains(text).then_some(()))).await;
        said.with_context(|| format!("{} said:\n{}", self.name, self.log()))
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
    clean(|variable| {
        command.env_remove(variable);
    });
    command.envs(environment.iter().cloned());
    die_with_us(&mut command);
    command.spawn().with_context(|| format!("starting {name}"))
}

/// The kernel kills it when the thread that started it ends: a test that is killed leaves none behind.
#[allow(unsafe_code)]
pub fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl is one.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// Names the settings in our own environment, which are not meant for the programs under test.
fn clean(mut remove: impl FnMut(&str)) {
    let setting = |name: &str| name.starts_with("TRIBUTARY_") && (name.contains("__") || name == "TRIBUTARY_SITE");
    for (name, _) in std::env::vars().filter(|(name, _)| setting(name)) {
        remove(&name);
    }
}

/// How a command that was run to its end ended.
#[derive(Debug)]
pub struct CommandOutput {
    /// Whether it succeeded.
    pub success: bool,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// Runs the binary to its end.
pub async fn run<A: AsRef<OsStr>>(folder: &Path, arguments: &[A]) -> anyhow::Result<CommandOutput> {
    run_for(folder, arguments, Duration::from_secs(60)).await
}

/// Runs the binary to its end, for so long at the most.
pub async fn run_for<A: AsRef<OsStr>>(
    folder: &Path,
    arguments: &[A],
    patience: Duration,
) -> anyhow::Result<CommandOutput> {
    run_program(binary()?, folder, arguments, patience).await
}

/// Runs `tributary-bench` at the root of the repository to its end, for so long at the most.
pub async fn run_bench<A: AsRef<OsStr>>(arguments: &[A], patience: Duration) -> anyhow::Result<CommandOutput> {
    run_program(bench_binary()?, root(), arguments, patience).await
}

async fn run_program<A: AsRef<OsStr>>(
    program: &Path,
    folder: &Path,
    arguments: &[A],
    patience: Duration,
) -> anyhow::Result<CommandOutput> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    clean(|variable| {
        command.env_remove(variable);
    });
    let output = tokio::time::timeout(patience, command.output()).await;
    let output = output.map_err(|_| anyhow!("{:?} did not end within {patience:?}", command.as_std()))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(CommandOutput { success: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}
