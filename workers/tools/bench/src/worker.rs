//! Workers to be measured: the program `tributary` in a process of its own, as an operator would start it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::BenchError;

/// How long a worker may take to end before it is made to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked at whether it still lives.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The program `tributary` beside this one.
pub(crate) fn find_tributary() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("tributary");
    if program.is_file() {
        return Ok(program);
    }
    let missing =
        format!("{} is missing: build it beside this program, with `cargo build --release`", program.display());
    Err(io::Error::new(io::ErrorKind::NotFound, missing))
}

/// A process; told to stop, and made to if need be, when dropped.
pub(crate) struct BenchWorker {
    child: Child,
    /// Its role.
    pub role: &'static str,
}

impl BenchWorker {
    /// Starts a role with these arguments. Its working folder holds no tributary.toml; it says only what went
    /// wrong, and to standard error.
    pub(crate) fn start(role: &'static str, folder: &Path, arguments: &[String]) -> Result<Self, BenchError> {
        Self::start_program(find_tributary(), role, folder, arguments)
    }

    /// Starts a role of this program itself.
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

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends by itself, which it should not.
    pub(crate) async fn wait_for_exit(&mut self) -> BenchError {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return BenchError::Ended { role: self.role, how: status.to_string() },
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                Err(source) => return BenchError::Ended { role: self.role, how: source.to_string() },
            }
        }
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn stop_process(&self, frozen: bool) {
        self.signal(if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    fn signal(&self, signal: Signal) {
        let sent = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        tracing::debug!(?sent, role = self.role, %signal, "worker signalled");
    }
}

impl Drop for BenchWorker {
    fn drop(&mut self) {
        // A frozen process would not hear it.
        self.stop_process(false);
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let (killed, waited) = (self.child.kill(), self.child.wait());
                tracing::debug!(?killed, ?waited, role = self.role, "worker killed");
                return;
            }
            sleep_blocking(Duration::from_millis(10));
        }
    }
}

/// Waits on a thread that has nothing else to do.
pub(crate) fn sleep_blocking(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _timed_out = never.recv_timeout(time);
}
