//! A generator: the same images repeatedly, on a schedule.
//!
//! Open loop: the schedule starts once and does not wait for acknowledgements, so that a slow site shows as delay and
//! not as a lower rate. Only the limit on images in flight can delay an image, which is then counted as late.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use runtime::clock;
use schemas::limits::MAX_IMAGE_BYTES;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::report::RefusedFile;
use crate::source::filter::FileFilter;
use crate::source::folder::{FolderWalk, PathEntry};
use crate::source::{ItemBuilder, SourceError, SourceEvent, SourceItem, SourceRoot};

/// More than one machine can publish; keeps intervals above the clock's resolution.
pub(crate) const MAX_RATE_PER_S: f64 = 1e6;
/// Bytes of images kept in memory; further images are read again each time. An estimate.
const PRELOAD_BYTES: u64 = 256 * 1024 * 1024;

/// Due times of images, counted from the start: endless, and the same for the same seed.
#[derive(Debug)]
pub(crate) struct ArrivalSchedule {
    rate_per_s: f64,
    random: Option<StdRng>,
    seconds: f64,
    number: u64,
}

impl ArrivalSchedule {
    pub(super) fn new(rate_per_s: f64, poisson: bool, seed: u64) -> Result<Self, SourceError> {
        if !(rate_per_s > 0.0 && rate_per_s <= MAX_RATE_PER_S) {
            return Err(SourceError::Rate { rate_per_s });
        }
        Ok(Self { rate_per_s, random: poisson.then(|| StdRng::seed_from_u64(seed)), seconds: 0.0, number: 0 })
    }
}

impl Iterator for ArrivalSchedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.seconds = match &mut self.random {
            // Intervals of a Poisson process are exponentially distributed; 1 - u is never 0.
            Some(random) => self.seconds - (1.0 - random.random::<f64>()).ln() / self.rate_per_s,
            // Not a sum, which would drift.
            None => self.number as f64 / self.rate_per_s,
        };
        self.number += 1;
        Duration::try_from_secs_f64(self.seconds).ok()
    }
}

/// When a generator ends: at the first limit reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GeneratorLimit {
    pub count: Option<u64>,
    pub duration: Option<Duration>,
}

/// Sends images when they are due, until the limit or until the receiver is gone.
pub(crate) async fn run(
    images: Vec<PathBuf>,
    builder: ItemBuilder,
    filter: FileFilter,
    schedule: ArrivalSchedule,
    until: GeneratorLimit,
    items: Sender<SourceEvent>,
) {
    let loading = tokio::task::spawn_blocking(move || load(&images, builder, &filter));
    let Ok((images, others)) = loading.await else { return };
    for item in others {
        if items.send(item).await.is_err() {
            return;
        }
    }
    let start = Instant::now();
    let times = schedule.take_while(|after| until.duration.is_none_or(|duration| *after < duration));
    let count = until.count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    for (after, image) in times.zip(images.iter().cycle()).take(count) {
        let due = start + after;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = items.closed() => return,
        }
        let found = SourceItem { due: Some(due), captured_at_ms: Some(clock::now_ms()), ..image.clone() };
        if items.send(SourceEvent::Found(found)).await.is_err() {
            return;
        }
    }
}

/// The images, and other events of their source.
fn load(paths: &[PathBuf], mut builder: ItemBuilder, filter: &FileFilter) -> (Vec<SourceItem>, Vec<SourceEvent>) {
    let (mut images, mut others) = (Vec::new(), Vec::new());
    let mut bytes_left = PRELOAD_BYTES;
    for path in paths {
        let root = SourceRoot::of(path);
        let _all = FolderWalk::new(path, filter.clone()).visit(path, &mut |seen| {
            let bytes = match &seen {
                PathEntry::File(path) => match read(path, &mut bytes_left) {
                    Ok(bytes) => bytes.map(bytes::Bytes::from),
                    Err(reason) => {
                        others.push(SourceEvent::Refused(RefusedFile::new(path, reason)));
                        return ControlFlow::Continue(());
                    }
                },
                _ => None,
            };
            for item in builder.build(&root, seen) {
                match item {
                    SourceEvent::Found(found) => images.push(SourceItem { bytes: bytes.clone(), ..found }),
                    other => others.push(other),
                }
            }
            ControlFlow::Continue(())
        });
    }
    (images, others)
}

/// The bytes of a file, as long as they fit into memory. Files that would be refused in every round are refused once
/// here.
fn read(path: &PathBuf, bytes_left: &mut u64) -> Result<Option<Vec<u8>>, String> {
    let unreadable = |error| format!("it could not be read: {error}");
    let size_bytes = fs::metadata(path).map_err(unreadable)?.len();
    match size_bytes {
        0 => Err("it is empty".into()),
        _ if size_bytes > MAX_IMAGE_BYTES => {
            Err(format!("it has {size_bytes} bytes, at most {MAX_IMAGE_BYTES} are accepted"))
        }
        _ if size_bytes > *bytes_left => Ok(None),
        _ => {
            *bytes_left -= size_bytes;
            fs::read(path).map(Some).map_err(unreadable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    #[test]
    fn a_constant_schedule_does_not_drift() {
        let last = ArrivalSchedule::new(30.0, false, 0).unwrap().nth(3_000_000).unwrap();
        assert_eq!(last, Duration::from_secs(100_000));
    }

    #[test]
    fn an_invalid_rate_is_refused() {
        for rate_per_s in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(ArrivalSchedule::new(rate_per_s, true, 0).is_err(), "{rate_per_s} was accepted");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_poisson_schedule_has_its_rate_and_its_spread(seed: u64, rate_per_s in 0.1f64..10_000.0) {
            const N: usize = 20_000;
            let times: Vec<f64> = ArrivalSchedule::new(rate_per_s, true, seed).unwrap().take(N).map(|t| t.as_secs_f64()).collect();
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            // The standard error of the mean is 1 / sqrt(N) of it: 0.7 %. Six of them.
            prop_assert!((mean * rate_per_s - 1.0).abs() < 0.043, "mean {mean} at {rate_per_s}");
            // Exponential: the deviation equals the mean; its standard error is 1 %.
            prop_assert!((variance.sqrt() / mean - 1.0).abs() < 0.07, "deviation {} at {rate_per_s}", variance.sqrt());
            let again: Vec<f64> = ArrivalSchedule::new(rate_per_s, true, seed).unwrap().take(100).map(|t| t.as_secs_f64()).collect();
            prop_assert_eq!(&times[..100], &again[..], "the same seed gives the same schedule");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_generator_cycles_over_its_images_on_time() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "empty.png"] {
            fs::write(folder.path().join(name), name.trim_start_matches("empty.png")).unwrap();
        }
        let (items, mut found) = mpsc::channel(1);
        let schedule = ArrivalSchedule::new(10.0, false, 0).unwrap();
        let until = GeneratorLimit { count: Some(5), duration: None };
        let settings = crate::PublisherSettings::default();
        let builder = ItemBuilder::new(crate::CameraNaming::One("cam".parse().unwrap()), &settings);
        let filter = FileFilter::new(&settings);
        tokio::spawn(run(vec![folder.path().into()], builder, filter, schedule, until, items));
        let (mut names, mut refused, mut dues) = (String::new(), 0, Vec::new());
        while let Some(item) = found.recv().await {
            match item {
                SourceEvent::Found(found) => {
                    names.push_str(&found.path.file_stem().unwrap().to_string_lossy());
                    dues.push(found.due.unwrap());
                }
                SourceEvent::Refused(_) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((names.as_str(), refused), ("ababa", 1));
        assert_eq!(dues[4] - dues[0], Duration::from_millis(400));
    }
}
