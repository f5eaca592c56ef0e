//! Worker processes under test: the program `tributary`, started as an operator would start it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::BenchError;

/// Time limit for a worker to exit after SIGTERM; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between checks for an unexpected exit.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Path of the program `tributary` in the folder of this program; an error if it is missing.
pub(crate) fn find_tributary() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("tributary");
    if program.is_file() {
        return Ok(program);
    }
    let missing = format!("{} not found: build both programs with `cargo build --release`", program.display());
    Err(io::Error::new(io::ErrorKind::NotFound, missing))
}

/// A worker process; stopped when dropped, and killed if it does not exit in time.
pub(crate) struct BenchWorker {
    child: Child,
    /// Role of the worker.
    pub role: &'static str,
}

impl BenchWorker {
    /// Starts a role with these arguments. The working folder contains no tributary.toml, so defaults apply; the worker
    /// logs errors only, to standard error.
    pub(crate) fn start(role: &'static str, folder: &Path, arguments: &[String]) -> Result<Self, BenchError> {
        Self::start_program(find_tributary(), role, folder, arguments)
    }

    /// Starts a role of the bench's own program.
    pub(crate) fn start_own(role: &'static str, folder: &Path, arguments: &[String]) -> Result<Self, BenchError> {
        Self::start_program(std::env::current_exe(), role, folder, arguments)
    }

    fn start_program(
        program: io::Result<PathBuf>,
        role: &'static str,
        folder: &Path,
        arguments: &[String],
    ) -> Result<Self, BenchError> {
        let program = program.map_err(|source| BenchError::NotStarted { role, source })?;
        let mut command = Command::new(program);
        command.arg(role).args(arguments).current_dir(folder).env("TRIBUTARY_LOG", "error");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|source| BenchError::NotStarted { role, source })?;
        Ok(Self { child, role })
    }

    /// Process id.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the worker exits unexpectedly, and returns the error.
    pub(crate) async fn wait_for_exit(&mut self) -> BenchError {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return BenchError::Ended { role: self.role, how: status.to_string() },
                Ok(None) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(source) => return BenchError::Ended { role: self.role, how: source.to_string() },
            }
        }
    }

    /// Pauses or resumes the process.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    fn signal(&self, signal: Signal) {
        let sent = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        tracing::debug!(?sent, role = self.role, %signal, "worker signalled");
    }
}

impl Drop for BenchWorker {
    fn drop(&mut self) {
        // A paused process would not handle SIGTERM.
        self.set_paused(false);
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let (killed, waited) = (self.child.kill(), self.child.wait());
                tracing::debug!(?killed, ?waited, role = self.role, "worker killed");
                return;
            }
            sleep_blocking(Duration::from_millis(10));
        }
    }
}

/// Sleeps on a thread that may block.
pub(crate) fn sleep_blocking(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _timed_out = never.recv_timeout(time);
}
