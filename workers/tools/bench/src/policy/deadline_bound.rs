//! How many images are late under a scheduler that knows everything: the site's capacity, the link and the cloud. What it
//! cannot do, no policy can be blamed for. Pure.

use crate::fake_cloud::FakeCloudPace;
use crate::link_shaper::LinkShape;

/// What there is to recognize images with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    /// Images per second that the site recognizes, as measured.
    pub site_per_s: f64,
    /// The link to the cloud.
    pub link: LinkShape,
    /// The cloud.
    pub cloud: FakeCloudPace,
    /// Whether the cloud answers at all.
    pub answers: bool,
}

/// Which of two ways that are both in time an image takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Preference {
    Earliest,
    Site,
    Cloud,
}

/// The images that are late in the best of three schedules, which give images in the order of their deadlines to the site
/// or to the cloud as long as they are in time there, and give up the others. `sizes`: bytes of the images, which arrive
/// equally spaced.
pub(super) fn unavoidable_late(capacity: &Capacity, sizes: &[usize], rate_per_s: f64, deadline_s: f64) -> usize {
    let late = |preference| late_by(capacity, sizes, rate_per_s, deadline_s, preference);
    [Preference::Earliest, Preference::Site, Preference::Cloud].map(late).into_iter().min().unwrap_or_default()
}

fn late_by(capacity: &Capacity, sizes: &[usize], rate_per_s: f64, deadline_s: f64, preference: Preference) -> usize {
    let Capacity { site_per_s, link, cloud, answers } = capacity;
    let delay_s = link.delay_ms / 1000.0;
    let (mut site_free_s, mut link_free_s) = (0.0_f64, 0.0_f64);
    let mut replicas_free_s = vec![0.0_f64; cloud.replicas.max(1) as usize];
    let mut late = 0;
    for (number, bytes) in sizes.iter().enumerate() {
        let at_s = number as f64 / rate_per_s;
        let here_s = site_free_s.max(at_s) + 1.0 / site_per_s;
        let sent_s = link_free_s.max(at_s) + link.rate_bytes_per_s.map_or(0.0, |rate| *bytes as f64 / rate);
        let Some(replica_free_s) = replicas_free_s.iter_mut().min_by(|a, b| a.total_cmp(b)) else { continue };
        let judged_s = replica_free_s.max(sent_s + delay_s) + cloud.service_ms / 1000.0;
        let there_s = judged_s + delay_s;
        let is_in_time = |done_s: f64| done_s <= at_s + deadline_s;
        let prefers_site = match preference {
            Preference::Earliest => here_s <= there_s,
            Preference::Site => true,
            Preference::Cloud => false,
        };
        match (is_in_time(here_s), *answers && is_in_time(there_s)) {
            (false, false) => late += 1,
            (true, false) => site_free_s = here_s,
            (true, true) if prefers_site => site_free_s = here_s,
            _ => (link_free_s, *replica_free_s) = (sent_s, judged_s),
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link_shaper::LinkState;

    const LINK: LinkShape =
        LinkShape { rate_bytes_per_s: Some(1e6), delay_ms: 10.0, jitter_ms: 0.0, state: LinkState::Open };
    const CAPACITY: Capacity = Capacity {
        site_per_s: 10.0,
        link: LINK,
        cloud: FakeCloudPace { service_ms: 10.0, replicas: 4 },
        answers: true,
    };

    fn late(capacity: &Capacity, rate_per_s: f64, bytes: usize) -> usize {
        unavoidable_late(capacity, &[bytes; 300], rate_per_s, 0.4)
    }

    #[test]
    fn what_site_and_cloud_can_do_together_is_in_time() {
        // Ten a second here; twenty of 50 kB over a link of 1 MB/s.
        assert_eq!(late(&CAPACITY, 10.0, 1_000_000), 0);
        assert_eq!(late(&CAPACITY, 30.0, 50_000), 0);
        assert_eq!(late(&CAPACITY, 100.0, 10_000), 0);
    }

    #[test]
    fn what_exceeds_both_is_late_but_for_what_the_deadline_allows_to_queue() {
        // Of sixty a second thirty can be done; 300 images come within 5 s, and each may wait for a while.
        let late = late(&CAPACITY, 60.0, 50_000);
        assert!((130..=150).contains(&late), "{late}");
        let slow = Capacity { link: LinkShape { delay_ms: 250.0, ..LINK }, ..CAPACITY };
        let late = unavoidable_late(&slow, &[1; 300], 30.0, 0.4);
        assert!((190..=200).contains(&late), "the cloud is too far away: {late}");
        let stalled = Capacity { answers: false, ..CAPACITY };
        assert_eq!(unavoidable_late(&stalled, &[1; 300], 30.0, 0.4), late);
    }
}
