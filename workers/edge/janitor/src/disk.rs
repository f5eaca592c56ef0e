//! Decides whether images are accepted, from the free space on the server's disk. Pure.

const MIB: u64 = 1024 * 1024;

/// What to change: `Some(Some(reason))` to refuse images, `Some(None)` to accept them again, `None` for
/// no change. `refusing`: whether they are refused now.
pub(crate) fn decide(free_bytes: u64, reserve_mib: u32, refusing: bool) -> Option<Option<String>> {
    let reserve = u64::from(reserve_mib) * MIB;
    match refusing {
        false if free_bytes < reserve => Some(Some(format!(
            "only {} MiB are free on the disk of the site's nats-server, and {reserve_mib} MiB are reserved for answers (janitor.disk_reserve_mib); free space there",
            free_bytes / MIB
        ))),
        // Half as much more, so that it does not alternate.
        true if free_bytes >= reserve + reserve / 2 => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_refused_below_the_reserve_and_accepted_well_above_it() {
        assert!(decide(99 * MIB, 100, false).unwrap().unwrap().contains("99 MiB"));
        assert_eq!(decide(99 * MIB, 100, true), None);
        assert_eq!(decide(120 * MIB, 100, false), None);
        assert_eq!(decide(149 * MIB, 100, true), None);
        assert_eq!(decide(150 * MIB, 100, true), Some(None));
    }
}
