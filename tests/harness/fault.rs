//! Faults that tests inject, chosen by a seed.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::proxy::ProxyMode;
use crate::until::until;
use crate::world::{TestWorld, crash};

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub enum InjectedFault {
    /// A worker is killed and later restarted.
    Kill {
        /// Its name.
        worker: String,
        /// Time until the restart.
        away: Duration,
    },
    /// A worker is stopped for longer than the acknowledgement wait, then continues.
    Freeze {
        /// Its name.
        worker: String,
        /// Time added to the acknowledgement wait.
        beyond: Duration,
    },
    /// A site's server is killed; its supervisor restarts it.
    CrashSite {
        /// Which site.
        site: usize,
    },
    /// The cloud's server is killed; its supervisor restarts it.
    CrashCloud,
    /// A site's server is stopped for a while, then continues.
    FreezeSite {
        /// Which site.
        site: usize,
        /// For how long.
        time: Duration,
    },
    /// The disk of a site's server is full for a while.
    FillDisk {
        /// A folder on that disk.
        folder: PathBuf,
        /// For how long.
        time: Duration,
    },
    /// The link of a site is cut.
    CutLink {
        /// Which site.
        site: usize,
        /// Whether packets are lost or connections are reset.
        cut: ProxyMode,
        /// For how long.
        time: Duration,
    },
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InjectedFault::Kill { worker, away } => write!(f, "kill {worker} for {away:?}"),
            InjectedFault::Freeze { worker, beyond } => write!(f, "freeze {worker} for {beyond:?} beyond its wait"),
            InjectedFault::CrashSite { site } => write!(f, "crash the server of site {site}"),
            InjectedFault::CrashCloud => write!(f, "crash the server of the cloud"),
            InjectedFault::FreezeSite { site, time } => write!(f, "freeze the server of site {site} for {time:?}"),
            InjectedFault::FillDisk { folder, time } => write!(f, "fill the disk of {} for {time:?}", folder.display()),
            InjectedFault::CutLink { site, cut, time } => {
                write!(f, "cut the link of site {site} ({cut:?}) for {time:?}")
            }
        }
    }
}

/// Plans `count` faults in an order drawn from the seed. Every kind comes once before any comes again. `links`: whether
/// the world has links, and so also a hub.
pub fn plan(seed: u64, count: usize, workers: &[&str], links: bool) -> Vec<InjectedFault> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut kinds: Vec<usize> = Vec::new();
    let all = workers.len() + if links { 5 } else { 2 };
    while faults.len() < count {
        if kinds.is_empty() {
            kinds = (0..all).collect();
        }
        let kind = kinds.swap_remove(rng.random_range(0..kinds.len()));
        let random_ms = |rng: &mut StdRng, max_ms: u64| Duration::from_millis(rng.random_range(0..max_ms));
        faults.push(match kind.checked_sub(workers.len()) {
            None => InjectedFault::Kill { worker: workers[kind].into(), away: random_ms(&mut rng, 1500) },
            Some(0) => {
                let worker = workers[rng.random_range(0..workers.len())].into();
                InjectedFault::Freeze { worker, beyond: random_ms(&mut rng, 1000) }
            }
            Some(1) => InjectedFault::CrashSite { site: 0 },
            Some(2) => InjectedFault::CrashCloud,
            Some(kind) => {
                let cut = if rng.random_bool(0.5) { ProxyMode::Silent } else { ProxyMode::Reset };
                let time = Duration::from_millis(if kind == 3 { 500 } else { 5_000 });
                InjectedFault::CutLink { site: 0, cut, time }
            }
        });
    }
    faults
}

/// Writes to a file until the disk is full.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    let block = vec![0; 1024 * 1024];
    loop {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Stops a process for a while. A process that has ended meanwhile is no error: a server is restarted after a full
/// disk.
pub async fn freeze_for(process: Pid, time: Duration) -> anyhow::Result<()> {
    let signal = |signal| match kill(process, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error),
    };
    signal(Signal::SIGSTOP)?;
    tokio::time::sleep(time).await;
    Ok(signal(Signal::SIGCONT)?)
}

/// Fills a folder's disk for a while.
pub async fn fill_for(folder: &Path, time: Duration) -> anyhow::Result<()> {
    let ballast = folder.join("ballast");
    fill(&ballast)?;
    tokio::time::sleep(time).await;
    Ok(std::fs::remove_file(&ballast)?)
}

impl TestWorld {
    /// Injects one fault and waits for its end. Afterwards everything runs and reconnects.
    pub async fn inject_fault(&mut self, fault: &InjectedFault) -> anyhow::Result<()> {
        match fault {
            InjectedFault::Kill { worker, away } => {
                let worker = self.worker_mut(worker)?;
                worker.kill()?;
                tokio::time::sleep(*away).await;
                worker.restart()
            }
            InjectedFault::Freeze { worker, beyond } => {
                let time = self.ack_wait() + *beyond;
                let worker = self.worker_mut(worker)?;
                worker.signal(Signal::SIGSTOP)?;
                tokio::time::sleep(time).await;
                worker.signal(Signal::SIGCONT)
            }
            InjectedFault::CrashSite { site } => {
                let site = self.site(*site);
                crash(&site.server, &site.bus).await
            }
            InjectedFault::CrashCloud => match &self.hub {
                Some(hub) => crash(hub, &self.cloud).await,
                None => Ok(()),
            },
            InjectedFault::FreezeSite { site, time } => {
                let server = &self.site(*site).server;
                let process =
                    until("the server has a process", Duration::from_secs(10), async || Ok(server.process())).await?;
                freeze_for(Pid::from_raw(process.cast_signed()), *time).await
            }
            InjectedFault::FillDisk { folder, time } => fill_for(folder, *time).await,
            InjectedFault::CutLink { site, cut, time } => {
                if let Some(link) = &self.site(*site).link {
                    link.cut_for(*cut, *time).await;
                }
                Ok(())
            }
        }
    }
}
