//! Load and energy of the machine: processors, memory, stalls, powercap counters.
//! What a system does not report is absent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Weight of the newest sample in the smoothed CPU usage; a quarter-second sample alone fluctuates.
const SMOOTHING: f64 = 0.5;

/// Load and energy of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MachineVitals {
    /// CPU usage, 0 to 1.
    pub cpu_ratio: Option<f64>,
    /// Memory usage, 0 to 1; of the control group's limit where there is one.
    pub memory_ratio: Option<f64>,
    /// Fraction of the last ten seconds in which some task stalled on memory (PSI), 0 to 1.
    pub stall_ratio: Option<f64>,
    /// Power of a busy core, watts, where the machine has an energy counter.
    pub watts_per_core: Option<f64>,
}

/// Reads the vitals repeatedly.
pub(crate) struct VitalsMeter {
    system: System,
    cpu_ratio: Option<f64>,
    quota: Option<CpuQuota>,
    counters: Vec<PathBuf>,
    energy: Option<(u64, Instant)>,
    watts_per_core: Option<f64>,
}

/// CPU limit of a control group.
struct CpuQuota {
    folder: PathBuf,
    cores: f64,
    used: Option<(u64, Instant)>,
}

impl VitalsMeter {
    /// Looks up what this machine offers.
    pub(crate) fn open() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_cpu_usage())
            .with_memory(MemoryRefreshKind::everything());
        Self {
            system: System::new_with_specifics(kinds),
            cpu_ratio: None,
            quota: quota(),
            counters: counters(Path::new("/sys/class/powercap")),
            energy: None,
            watts_per_core: None,
        }
    }

    /// The vitals now, averaged since the last call.
    pub(crate) fn read(&mut self) -> MachineVitals {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        let whole = f64::from(self.system.global_cpu_usage()) / 100.0;
        let used = self.quota.as_mut().and_then(CpuQuota::used_ratio).unwrap_or(whole).clamp(0.0, 1.0);
        let smoothed = self.cpu_ratio.map_or(used, |before| before + (used - before) * SMOOTHING);
        self.cpu_ratio = Some(smoothed);
        self.count_energy(whole * self.system.cpus().len() as f64);
        MachineVitals {
            cpu_ratio: self.cpu_ratio,
            memory_ratio: self.memory_ratio(),
            stall_ratio: fs::read_to_string("/proc/pressure/memory").ok().and_then(|text| stall_ratio(&text)),
            watts_per_core: self.watts_per_core,
        }
    }

    fn memory_ratio(&self) -> Option<f64> {
        if let Some(limits) = self.system.cgroup_limits().filter(|limits| limits.total_memory > 0) {
            return Some(1.0 - limits.free_memory as f64 / limits.total_memory as f64);
        }
        let total = self.system.total_memory();
        (total > 0).then(|| 1.0 - self.system.available_memory() as f64 / total as f64)
    }

    /// Divides the increase of the energy counters among the busy cores.
    fn count_energy(&mut self, busy_cores: f64) {
        let read = |path: &PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let total: u64 = self.counters.iter().filter_map(read).sum();
        let now = Instant::now();
        if let Some((before, then)) = self.energy
            && total > before
            && busy_cores > 0.1
        {
            let watts = (total - before) as f64 / 1e6 / now.duration_since(then).as_secs_f64().max(1e-3);
            self.watts_per_core = Some(watts / busy_cores);
        }
        self.energy = (!self.counters.is_empty()).then_some((total, now));
    }
}

impl CpuQuota {
    fn used_ratio(&mut self) -> Option<f64> {
        let text = fs::read_to_string(self.folder.join("cpu.stat")).ok()?;
        let used_us: u64 = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())?;
        let now = Instant::now();
        let before = self.used.replace((used_us, now));
        let (before_us, then) = before?;
        let elapsed_us = now.duration_since(then).as_secs_f64() * 1e6;
        Some(used_us.saturating_sub(before_us) as f64 / elapsed_us.max(1.0) / self.cores)
    }
}

/// The CPU limit of our own control group (version 2), if it has one.
fn quota() -> Option<CpuQuota> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(path);
    let cores = cores(&fs::read_to_string(folder.join("cpu.max")).ok()?)?;
    Some(CpuQuota { folder, cores, used: None })
}

/// Parses `cpu.max`, which holds the time allowed and the period, or `max`.
fn cores(text: &str) -> Option<f64> {
    let (allowed, period) = text.trim().split_once(' ')?;
    let (allowed, period): (f64, f64) = (allowed.parse().ok()?, period.parse().ok()?);
    (allowed > 0.0 && period > 0.0).then(|| allowed / period)
}

/// Parses the `some` line of pressure stall information: the fraction of time in which at least one task waited.
fn stall_ratio(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

/// Counters of whole packages; they include those of their parts.
fn counters(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let whole = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.matches(':').count() == 1 && path.join("energy_uj").is_file()
    };
    entries.filter(whole).map(|path| path.join("energy_uj")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_parsed() {
        let pressure = "some avg10=12.50 avg60=0.14 avg300=2.64 total=192941919\nfull avg10=0.00 avg60=0.00";
        assert_eq!(stall_ratio(pressure), Some(0.125));
        assert_eq!(stall_ratio("nonsense"), None);
        assert_eq!(cores("150000 100000\n"), Some(1.5));
        assert_eq!(cores("max 100000\n"), None);
    }

    #[test]
    fn this_machine_reports_its_load() {
        let mut meter = VitalsMeter::open();
        meter.read();
        let vitals = meter.read();
        assert!(vitals.cpu_ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)), "{vitals:?}");
        assert!(vitals.memory_ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)), "{vitals:?}");
    }

    #[test]
    fn packages_are_counted_and_their_parts_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("energy_uj"), "5000").unwrap();
        }
        assert_eq!(counters(folder.path()), [folder.path().join("intel-rapl:0/energy_uj")]);
    }
}
