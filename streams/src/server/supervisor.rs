//! Keeps a server's process running: restarts it when it exits, and when it cannot write although the disk has space again.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::free_bytes;
use crate::monitor::{self, Health};

pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How often the server's health is checked.
pub(super) const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// Free bytes on the disk before a server that cannot write is restarted: less would be used up at once.
pub(super) const MIN_FREE_TO_RESTART: u64 = 8 * 1024 * 1024;
/// After running this long, the next restart starts with the first backoff again.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct RunningServer {
    pub(super) process: Mutex<ServerProcess>,
}

#[derive(Default)]
pub(super) struct ServerProcess {
    pub(super) id: Option<u32>,
    pub(super) stopping: bool,
    pub(super) restarts: u64,
}

impl RunningServer {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, ServerProcess> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the server until it is stopped; restarts it when it exits, and when it cannot write although
/// the disk has space again.
pub(super) fn supervise(
    program: PathBuf,
    configuration: PathBuf,
    store: PathBuf,
    monitor: u16,
    running: Arc<RunningServer>,
) -> std::thread::JoinHandle<()> {
    // A thread of its own: on Linux the server dies with the *thread* that started it, and threads of a
    // pool come and go.
    std::thread::spawn(move || {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let started_at = Instant::now();
            let started = {
                let mut process = running.lock();
                if process.stopping {
                    return;
                }
                let started = spawn(&program, &configuration);
                process.id = started.as_ref().ok().map(Child::id);
                started
            };
            match started {
                Ok(mut child) => {
                    let ended = supervise_child(&mut child, &store, monitor, &running);
                    let mut process = running.lock();
                    process.id = None;
                    process.restarts += 1;
                    if process.stopping {
                        return;
                    }
                    tracing::warn!(?ended, "nats-server exited; restarting");
                }
                Err(error) => {
                    running.lock().restarts += 1;
                    tracing::error!(%error, program = %program.display(), "nats-server failed to start");
                }
            }
            if started_at.elapsed() > STABLE_AFTER {
                backoff = FIRST_BACKOFF;
            }
            pause(backoff);
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    })
}

/// Waits until the server exits. One that met a full disk stores nothing until it is restarted, even if there is space
/// again (nats-server 2.14 and 2.15), so it is stopped then.
pub(super) fn supervise_child(
    child: &mut Child,
    store: &Path,
    monitor: u16,
    running: &RunningServer,
) -> std::io::Result<std::process::ExitStatus> {
    let mut check_at = Instant::now() + HEALTH_INTERVAL;
    let mut asked_to_stop = None;
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(ended);
        }
        pause(Duration::from_millis(50));
        match asked_to_stop {
            Some(at) if Instant::now() > at + STOP_TIMEOUT => child.kill()?,
            Some(_) => {}
            None if Instant::now() >= check_at && !running.lock().stopping => {
                check_at = Instant::now() + HEALTH_INTERVAL;
                if let Some(Health::CannotWrite(why)) = query_health(monitor)
                    && free_bytes(store).is_ok_and(|free| free >= MIN_FREE_TO_RESTART)
                {
                    tracing::warn!(why, "nats-server stopped writing after a full disk; restarting");
                    signal(child.id(), Signal::SIGTERM);
                    asked_to_stop = Some(Instant::now());
                }
            }
            None => {}
        }
    }
}

pub(super) fn spawn(program: &Path, configuration: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.arg("-c").arg(configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own: an interrupt typed at the terminal reaches us, and we stop the server last.
    command.process_group(0);
    #[cfg(target_os = "linux")]
    prepare(&mut command);
    command.spawn()
}

/// Has the kernel stop the server if we are killed without a chance to do it ourselves, and schedule it as
/// batch work.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(super) fn prepare(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        // Our parent was killed between fork and here, so the signal would never come.
        if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
            return Err(std::io::Error::other("the parent process has ended"));
        }
        // Where it is forbidden, the server is only slower.
        let _refused = os::scheduling::set_batch_scheduling();
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl, getppid and
    // sched_setscheduler are, and nothing is allocated unless the parent has ended, when the child exits anyway.
    unsafe {
        command.pre_exec(before_exec);
    }
}

pub(super) fn signal(process: u32, signal: Signal) {
    if let Err(error) = kill(Pid::from_raw(process.cast_signed()), signal) {
        tracing::debug!(process, %error, "nats-server already exited");
    }
}

/// Queries the monitoring page; healthy means JetStream is up with its streams recovered. `None` without a response.
pub(super) fn query_health(port: u16) -> Option<Health> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).ok()?;
    Some(monitor::parse_health(&String::from_utf8_lossy(&answer)))
}

/// Sleeps on a thread that has nothing else to do.
pub(super) fn pause(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _timed_out = never.recv_timeout(time);
}
