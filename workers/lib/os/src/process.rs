//! Processor time and memory of processes, from the kernel. Linux only; elsewhere
//! the figures are absent.

use std::time::Duration;

/// Makes all files and folders that this process and its children create private to their owner.
pub fn keep_files_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

/// The kernel's unit of processor time in `/proc`, the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Processor time a process used so far, in user and kernel mode, over living and ended threads.
pub fn cpu_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    ticks(&stat).map(|ticks| TICK * ticks)
}

/// When this process started, seconds since the epoch.
pub fn start_time_s() -> Option<f64> {
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot_s: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let started = started_ticks(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    Some(boot_s as f64 + started as f64 * TICK.as_secs_f64())
}

/// File descriptors that this process has open.
pub fn open_files() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is that of the listing itself.
    u64::try_from(open.saturating_sub(1)).ok()
}

/// Most file descriptors that this process may have open; `None` where there is no limit.
pub fn max_open_files() -> Option<u64> {
    max_files(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// Peak resident memory of a process, bytes.
pub fn peak_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    field_bytes(&status, "VmHWM:")
}

/// Resident memory of this process, bytes.
pub fn resident_bytes() -> Option<u64> {
    resident_bytes_of(std::process::id())
}

/// Resident memory of a process, bytes.
pub fn resident_bytes_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    field_bytes(&status, "VmRSS:")
}

/// Memory that this process can still use, bytes: what the machine has available, or what is left of the limit of its
/// control group (version 2), whichever is less.
pub fn available_bytes() -> Option<u64> {
    let free = field_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let group = group.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")));
    let left = group.and_then(|group| {
        let limit = number(format!("/sys/fs/cgroup{group}/memory.max"))?;
        Some(limit.saturating_sub(number(format!("/sys/fs/cgroup{group}/memory.current"))?))
    });
    Some(left.map_or(free, |left| left.min(free)))
}

/// Returns free memory inside this process to the system: the C library keeps what a large model used, in every arena
/// that threads used. For moments when much was freed; takes some milliseconds. Does nothing where the C
/// library is not GNU's.
#[allow(unsafe_code)]
pub fn trim_memory() {
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and only returns unused pages.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Which freed memory a process keeps for later allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MallocPolicy {
    /// Pieces up to 32 MiB, 64 MiB in total: what the C library adapts to by itself once it freed such a piece.
    All,
    /// Pieces up to 128 KiB, and 128 KiB in total: the C library's initial values. Where models come and go, it would
    /// keep holes of their size: measured, a quarter more memory after fifty swaps.
    NothingLarge,
}

/// Sets which freed memory is kept at the end of each heap (mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD). Memory
/// that is not kept is faulted in again, page by page, for the next images: measured, reading a stream of them is a
/// tenth slower. Call it before other threads start. Does nothing where the C library is not GNU's.
#[allow(unsafe_code)]
pub fn set_malloc_policy(policy: MallocPolicy) {
    let (large_bytes, total_bytes) = match policy {
        MallocPolicy::All => (32 << 20, 64 << 20),
        MallocPolicy::NothingLarge => (128 << 10, 128 << 10),
    };
    // SAFETY: mallopt(3) takes two numbers; no other thread exists yet that could allocate at the same time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, total_bytes);
        libc::mallopt(libc::M_MMAP_THRESHOLD, large_bytes);
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _: (libc::c_int, libc::c_int) = (large_bytes, total_bytes);
}

/// Resets the peak of this process's memory, where the kernel can.
pub fn reset_peak() {
    // Otherwise the figure covers the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn ticks(stat: &str) -> Option<u32> {
    // The second field is the name in parentheses; it may contain blanks and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

fn started_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn max_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn field_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test for both, because both measure the memory of the whole process.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn freed_memory_is_kept_or_returned_by_policy_and_trimmed_on_request() {
        let resident = || resident_bytes().unwrap() >> 20;
        set_malloc_policy(MallocPolicy::All);
        let images: Vec<Vec<u8>> = (0..240).map(|_| vec![1; 35 << 10]).collect();
        let full = resident();
        drop(images);
        assert!(resident() + 2 > full, "of images {full} MiB, then {} MiB", resident());
        set_malloc_policy(MallocPolicy::NothingLarge);
        for _ in 0..3 {
            // Of a size that the C library keeps by itself once it freed such a piece.
            let models: Vec<Vec<u8>> = (0..60).map(|_| vec![1; 2 << 20]).collect();
            let full = resident();
            drop(models);
            assert!(resident() + 90 < full, "{full} MiB, then {} MiB", resident());
        }
        // The last one is kept, so that nothing is returned automatically.
        let mut pieces: Vec<Box<[u8]>> = (0..60_000).map(|_| vec![1_u8; 2000].into_boxed_slice()).collect();
        let last = pieces.pop();
        let full = resident();
        drop(pieces);
        trim_memory();
        assert!(resident() + 60 < full, "{full} MiB, then {} MiB", resident());
        drop(last);
    }

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 5 6 20 0 4 0 100 1000 10 184";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(started_ticks(stat), Some(100));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(field_bytes("Name:\tx\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2048 * 1024));
        assert_eq!(field_bytes("Name:\tx\n", "VmHWM:"), None);
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        assert_eq!(max_files("Limit  Soft Limit\nMax open files            1024      524288    files\n"), Some(1024));
        assert_eq!(max_files("Max open files            unlimited      unlimited    files\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn start_and_open_files_of_this_process_are_known() {
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age_s = now_s - start_time_s().unwrap();
        assert!((-2.0..86_400.0).contains(&age_s), "{age_s}");
        let before = open_files().unwrap();
        let _file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(before > 2 && open_files().unwrap() > 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_found_and_an_ended_one_is_not() {
        assert!(peak_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu_time(std::process::id()).is_some());
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
