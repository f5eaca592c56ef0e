//! Sets how the kernel schedules us: as batch work, which does not preempt other work; training runs only on
//! idle processors.
//!
//! An image causes about ten wake-ups between camera, server and recognizer. Under the default policy each
//! of them preempts a replica in the middle of an inference, at the cost of a context switch and cold caches. A batch
//! process that wakes up waits for the running time slice to end, and then finds
//! several messages at once. On an idle core nothing waits. docs/decisions/0005 has the figures.

/// Makes the calling thread, and every thread and process it starts from now on, run as batch work
/// (`SCHED_BATCH`, sched(7)). Needs no privilege.
///
/// # Errors
/// The kernel refuses, as in a sandbox that forbids the call. Only speed is lost.
#[cfg(target_os = "linux")]
pub fn set_batch_scheduling() -> std::io::Result<()> {
    schedule(libc::SCHED_BATCH)
}

/// Makes the calling thread, and every thread it starts from now on, run only on otherwise idle processors
/// (`SCHED_IDLE`, sched(7)). Needs no privilege; undoing it does.
///
/// # Errors
/// The kernel refuses, as in a sandbox that forbids the call.
#[cfg(target_os = "linux")]
pub fn set_idle_scheduling() -> std::io::Result<()> {
    schedule(libc::SCHED_IDLE)
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn schedule(policy: libc::c_int) -> std::io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameter, which outlives it, and 0 denotes the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const lowest) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Other systems have no such policy.
#[cfg(not(target_os = "linux"))]
pub fn set_batch_scheduling() -> std::io::Result<()> {
    Ok(())
}

/// Other systems have no such policy.
#[cfg(not(target_os = "linux"))]
pub fn set_idle_scheduling() -> std::io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Field 41 of stat, proc(5); the name in field 2 contains no blank here.
    fn policy(stat: &str) -> Option<String> {
        std::fs::read_to_string(stat).ok()?.split_whitespace().nth(40).map(str::to_owned)
    }

    #[test]
    fn an_idle_thread_does_not_change_the_others() {
        let before = policy("/proc/thread-self/stat");
        let idle = std::thread::Builder::new().name("idle".into()).spawn(|| {
            set_batch_scheduling().unwrap();
            set_idle_scheduling().unwrap();
            policy("/proc/thread-self/stat")
        });
        assert_eq!(idle.unwrap().join().unwrap(), Some(libc::SCHED_IDLE.to_string()));
        assert_eq!(policy("/proc/thread-self/stat"), before);
    }
    #[test]
    fn batch_scheduling_is_inherited_by_started_threads() {
        let batch = libc::SCHED_BATCH.to_string();
        let inherited = std::thread::Builder::new().name("batch".into()).spawn(|| {
            set_batch_scheduling().unwrap();
            let own = policy("/proc/thread-self/stat");
            let child = std::thread::Builder::new().name("child".into()).spawn(|| policy("/proc/thread-self/stat"));
            (own, child.unwrap().join().unwrap())
        });
        assert_eq!(inherited.unwrap().join().unwrap(), (Some(batch.clone()), Some(batch)));
    }
}
