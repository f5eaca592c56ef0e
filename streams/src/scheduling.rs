//! How the kernel schedules us: as work in batches, which does not interrupt other work; training, on what nobody
//! else wants.
//!
//! An image costs about ten wake-ups between camera, server and recognizer. Under the usual policy each
//! of them interrupts a replica in the middle of an inference, with the switch and the cold caches that
//! go with it; as a batch process whoever wakes up waits for the running slice to end and then finds
//! several messages at once. On an idle core nothing waits. docs/decisions/0005 has the figures.

/// Makes the calling thread, and every thread and process it starts from now on, a batch process
/// (`SCHED_BATCH`, sched(7)). Needs no privilege.
///
/// # Errors
/// The kernel's refusal, as in a sandbox that forbids the call. Nothing is lost then but speed.
#[cfg(target_os = "linux")]
pub fn set_batch_scheduling() -> std::io::Result<()> {
    schedule(libc::SCHED_BATCH)
}

/// Makes the calling thread, and every thread it starts from now on, run only on processors that nobody else wants
/// (`SCHED_IDLE`, sched(7)). Needs no privilege. There is no way back without one.
///
/// # Errors
/// The kernel's refusal, as in a sandbox that forbids the call.
#[cfg(target_os = "linux")]
pub fn set_idle_scheduling() -> std::io::Result<()> {
    schedule(libc::SCHED_IDLE)
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn schedule(policy: libc::c_int) -> std::io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameter, which outlives it, and 0 names the calling thread.
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

    /// Field 41 of stat, proc(5); the name in field 2 holds no blank here.
    fn policy(stat: &str) -> Option<String> {
        std::fs::read_to_string(stat).ok()?.split_whitespace().nth(40).map(str::to_owned)
    }

    #[test]
    fn a_thread_that_runs_when_idle_leaves_the_others_as_they_are() {
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
    fn a_thread_becomes_a_batch_process_and_so_do_those_it_starts() {
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
