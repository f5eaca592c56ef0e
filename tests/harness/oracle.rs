//! Compares obligations with outcomes: every acknowledged image is an obligation, every final answer an outcome.
//!
//! The oracle publishes the images itself, a bounded number at a time, and repeats each under its id until it is
//! acknowledged. Afterwards it reads whole streams and lists every violation, with the number of the broken invariant.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::HEADER_DEADLINE;
use schemas::{Answer, AnswerStage, CameraName, DeadLetter, Route, SiteName, TaskId, decode};
use streams::reader::{self, StreamLevel, StreamRange};
use streams::{Bus, Publication, Publisher, subject, topology};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::pictures::{TestPicture, TestPrediction, pictures};
use crate::until::until;

/// Most unacknowledged publishes at a time.
const IN_FLIGHT: usize = 16;
/// Timeout of one publish, retries included, before it starts again under the same id.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Allowed difference from the confidence computed here: batches sum in another order.
const TOLERANCE: f32 = 1e-3;

/// An image that was published.
#[derive(Debug, Clone)]
struct PublishedImage {
    camera: CameraName,
    picture: usize,
    /// Time of its acknowledgement, ms since 1970; if absent, the image may or may not be stored.
    acknowledged_at_ms: Option<u64>,
}

/// Publishes images at one site and judges the outcomes.
#[derive(Clone)]
pub struct Oracle {
    seed: u64,
    site: SiteName,
    bus: Bus,
    publisher: Publisher,
    pictures: &'static [TestPicture],
    deadline_ms: Option<u64>,
    published: Arc<Mutex<BTreeMap<TaskId, PublishedImage>>>,
    stop: Arc<AtomicBool>,
}

impl Oracle {
    /// Creates an oracle for one site. `seed` chooses the pictures and the ids.
    pub fn new(seed: u64, site: &SiteName, bus: &Bus) -> anyhow::Result<Self> {
        Ok(Self {
            seed,
            site: site.clone(),
            bus: bus.clone(),
            publisher: Publisher::new(bus.clone(), PUBLISH_TIMEOUT),
            pictures: pictures()?,
            deadline_ms: None,
            published: Arc::default(),
            stop: Arc::default(),
        })
    }

    /// Gives every third image a deadline, milliseconds after its publication.
    pub fn with_deadlines(self, deadline_ms: u64) -> Self {
        Self { deadline_ms: Some(deadline_ms), ..self }
    }

    /// Publishes `images_per_s` images per second until told to stop. The task ends when all are acknowledged.
    pub fn start_publishing(&self, images_per_s: u32) -> JoinHandle<anyhow::Result<()>> {
        let oracle = self.clone();
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(oracle.seed);
            let mut tick = tokio::time::interval(Duration::from_secs(1) / images_per_s.max(1));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let permits = Arc::new(Semaphore::new(IN_FLIGHT));
            let mut publishing = JoinSet::new();
            let mut number = 0u64;
            while !oracle.stop.load(Ordering::Relaxed) {
                tick.tick().await;
                let permit = permits.clone().acquire_owned().await?;
                let (one, picture) = (oracle.clone(), rng.random_range(0..oracle.pictures.len()));
                publishing.spawn(async move {
                    let published = one.publish(number, picture).await;
                    drop(permit);
                    published
                });
                number += 1;
                while let Some(ended) = publishing.try_join_next() {
                    ended??;
                }
            }
            while let Some(ended) = publishing.join_next().await {
                ended??;
            }
            Ok(())
        })
    }

    /// Tells [`Oracle::start_publishing`] to publish no more.
    pub fn stop_publishing(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Publishes `images` images and returns when all are acknowledged.
    pub async fn publish_all(&self, images: usize) -> anyhow::Result<()> {
        for number in 0..images {
            self.publish(number as u64, number % self.pictures.len()).await?;
        }
        Ok(())
    }

    /// Publishes one picture until it is acknowledged. Gives up after 90 s, which leaves it unknown whether it is
    /// stored.
    async fn publish(&self, number: u64, picture: usize) -> anyhow::Result<()> {
        let camera: CameraName = format!("cam-{}", number % 3).parse()?;
        let task = TaskId::from_name(&format!("{}/{}/{number}", self.seed, self.site));
        let bytes = self.pictures.get(picture).context("no such picture")?.bytes.clone();
        let mut publication = Publication::with_id(subject::image(&self.site, &camera), bytes, task.to_string());
        if let Some(deadline_ms) = self.deadline_ms.filter(|_| number.is_multiple_of(3)) {
            publication = publication.header(HEADER_DEADLINE, deadline_ms.to_string());
        }
        self.note(task, PublishedImage { camera: camera.clone(), picture, acknowledged_at_ms: None });
        for _ in 0..18 {
            if self.publisher.publish(&publication).await.is_ok() {
                self.note(task, PublishedImage { camera, picture, acknowledged_at_ms: Some(now_ms()) });
                return Ok(());
            }
        }
        Ok(())
    }

    /// Tasks whose images are acknowledged so far.
    pub fn acknowledged(&self) -> Vec<TaskId> {
        self.all()
            .into_iter()
            .filter(|(_, published)| published.acknowledged_at_ms.is_some())
            .map(|(task, _)| task)
            .collect()
    }

    fn note(&self, task: TaskId, published: PublishedImage) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).insert(task, published);
    }

    fn all(&self) -> BTreeMap<TaskId, PublishedImage> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every acknowledged image has an outcome and no message is in flight, `timeout` at most, then judges.
    pub async fn judge(&self, cloud: &Bus, timeout: Duration) -> anyhow::Result<Judgement> {
        let quiet = until("every image has an outcome and no message is in flight", timeout, async || {
            let unanswered = self.unanswered().await?;
            if let Some(first) = unanswered.first() {
                anyhow::bail!("{} images have no outcome, the first is {first}", unanswered.len());
            }
            let in_flight = self.in_flight(cloud).await?;
            if !in_flight.is_empty() {
                anyhow::bail!("{in_flight}");
            }
            Ok(Some(()))
        });
        let mut violations: Vec<String> = quiet.await.err().map(|error| format!("10: {error:#}")).into_iter().collect();
        let published = self.all();
        let answers = self.answers().await?;
        let dead_letters = self.dead_letters().await?;
        let (mut routes, mut longest_ms) = (BTreeMap::new(), 0);
        for (task, published) in &published {
            match answers.get(task).map(Vec::as_slice).unwrap_or_default() {
                [] if published.acknowledged_at_ms.is_some() => {
                    violations.push(format!("1, 10: task {task} was acknowledged but has no outcome"));
                }
                [] => {}
                [answer] => {
                    *routes.entry(answer.route).or_insert(0) += 1;
                    let acknowledged_at_ms = published.acknowledged_at_ms.unwrap_or(answer.answered_at_ms);
                    longest_ms = longest_ms.max(answer.answered_at_ms.saturating_sub(acknowledged_at_ms));
                    violations.extend(self.violations_of(published, answer, dead_letters.contains(task)));
                }
                several => violations.push(format!("2: task {task} has {} final answers", several.len())),
            }
        }
        let strangers = answers.keys().filter(|task| !published.contains_key(task));
        violations.extend(strangers.map(|task| format!("2: task {task} was answered but never published")));
        let acknowledged = published.values().filter(|published| published.acknowledged_at_ms.is_some()).count();
        Ok(Judgement { seed: self.seed, published: published.len(), acknowledged, routes, longest_ms, violations })
    }

    /// Acknowledged images without an outcome.
    async fn unanswered(&self) -> anyhow::Result<Vec<TaskId>> {
        let mut done = BTreeSet::new();
        let last = reader::stream_level(&self.bus, topology::ANSWERS).await?;
        let finals = StreamRange { headers_only: true, ..StreamRange::default() };
        if last.messages > 0 {
            reader::read_range(&self.bus, topology::ANSWERS, finals, last.last_sequence, |record| {
                done.extend(subject::read_final_answer(&record.subject));
            })
            .await?;
        }
        Ok(self.acknowledged().into_iter().filter(|task| !done.contains(task)).collect())
    }

    /// Describes the messages that are still in flight; empty if there are none.
    async fn in_flight(&self, cloud: &Bus) -> anyhow::Result<String> {
        let images =
            reader::consumer_progress(&self.bus, topology::IMAGES, &topology::recognizer_durable(&self.site)).await?;
        let outbox = reader::stream_level(&self.bus, topology::OUTBOX).await?;
        let verify = reader::stream_level(cloud, topology::VERIFY).await?;
        let verdicts =
            reader::consumer_progress(cloud, topology::VERDICTS, &topology::verdicts_durable(&self.site)).await?;
        let waiting = [
            ("images", images.pending + images.unacked),
            ("outbox", outbox.messages),
            ("verify", verify.messages),
            ("verdicts", verdicts.pending + verdicts.unacked),
        ];
        let in_flight =
            waiting.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} in {what}"));
        let mut in_flight: Vec<String> = in_flight.collect();
        in_flight.extend(first_messages(&self.bus, topology::OUTBOX, outbox).await?);
        in_flight.extend(first_messages(cloud, topology::VERIFY, verify).await?);
        Ok(in_flight.join(", "))
    }

    /// Every final answer in the stream, by task.
    async fn answers(&self) -> anyhow::Result<HashMap<TaskId, Vec<Answer>>> {
        let mut answers: HashMap<TaskId, Vec<Answer>> = HashMap::new();
        let level = reader::stream_level(&self.bus, topology::ANSWERS).await?;
        let mut unreadable = None;
        if level.messages > 0 {
            reader::read_range(&self.bus, topology::ANSWERS, StreamRange::default(), level.last_sequence, |record| {
                let Ok(task) = subject::read_final_answer(&record.subject) else { return };
                // Tests publish other images beside the oracle's, on cameras named `odd-…`.
                if record.subject.contains(".odd-") {
                    return;
                }
                match decode(&record.payload) {
                    Ok(answer) => answers.entry(task).or_default().push(answer),
                    Err(error) => unreadable = Some(format!("answer of task {task}: {error}")),
                }
            })
            .await?;
        }
        anyhow::ensure!(unreadable.is_none(), "{}", unreadable.unwrap_or_default());
        Ok(answers)
    }

    /// The tasks of all dead letters.
    async fn dead_letters(&self) -> anyhow::Result<BTreeSet<TaskId>> {
        let mut tasks = BTreeSet::new();
        let level = reader::stream_level(&self.bus, topology::DEAD).await?;
        if level.messages > 0 {
            reader::read_range(&self.bus, topology::DEAD, StreamRange::default(), level.last_sequence, |record| {
                tasks.extend(decode::<DeadLetter>(&record.payload).ok().and_then(|letter| letter.task));
            })
            .await?;
        }
        Ok(tasks)
    }

    /// Lists what is wrong with a task's only answer.
    fn violations_of(&self, published: &PublishedImage, answer: &Answer, has_dead_letter: bool) -> Vec<String> {
        let mut violations = Vec::new();
        let task = answer.task;
        let Some(picture) = self.pictures.get(published.picture) else { return violations };
        let edge =
            answer.edge.as_ref().map(|edge| TestPrediction { label: edge.label.clone(), confidence: edge.confidence });
        let predicted =
            answer.label.clone().zip(answer.confidence).map(|(label, confidence)| TestPrediction { label, confidence });
        let (expected, expected_edge) = match answer.route {
            Route::Edge | Route::Expired => (&picture.light, None),
            Route::Verified => (&picture.heavy, Some(&picture.light)),
            Route::Redirected => (&picture.heavy, None),
            Route::Dead => {
                violations.push(format!("10: task {task} of a good picture went by route {}", answer.route));
                return violations;
            }
        };
        if !is_same(predicted.as_ref(), Some(expected)) || !is_same(edge.as_ref(), expected_edge) {
            violations.push(format!(
                "2: task {task} ({}, {}): predicts {predicted:?}, edge {edge:?}; expected {expected:?}, edge {expected_edge:?}",
                picture.file, answer.route
            ));
        }
        if answer.stage != AnswerStage::Final || answer.site != self.site || answer.camera != published.camera {
            violations.push(format!(
                "2: task {task}: its final slot holds a {:?} answer of {}.{}",
                answer.stage, answer.site, answer.camera
            ));
        }
        if has_dead_letter {
            violations.push(format!("10: task {task} has both an answer by route {} and a dead letter", answer.route));
        }
        violations
    }
}

/// Lists the first few messages of a stream, to help find out why they are still there.
async fn first_messages(bus: &Bus, stream: &str, level: StreamLevel) -> anyhow::Result<Option<String>> {
    /// Number of sequences to look up, from the oldest on.
    const SHOWN: usize = 20;
    if level.messages == 0 {
        return Ok(None);
    }
    let (first, last) = (level.first_sequence, level.last_sequence);
    let mut text = format!("{stream} from {first} to {last}:");
    for sequence in (first..=last).take(SHOWN) {
        if let Some(record) = reader::message_at(bus, stream, sequence).await? {
            text.push_str(&format!(" {sequence} is {} of {}", record.subject, record.stored_at_ns));
        }
    }
    Ok(Some(text))
}

/// This machine's time, ms since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn is_same(actual: Option<&TestPrediction>, expected: Option<&TestPrediction>) -> bool {
    match (actual, expected) {
        (Some(actual), Some(expected)) => {
            actual.label == expected.label && (actual.confidence - expected.confidence).abs() <= TOLERANCE
        }
        (None, None) => true,
        _ => false,
    }
}

/// An oracle's findings.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The seed, to reproduce the run.
    pub seed: u64,
    /// Images published, acknowledged or not.
    pub published: usize,
    /// Images acknowledged: obligations.
    pub acknowledged: usize,
    /// Outcomes by route.
    pub routes: BTreeMap<Route, usize>,
    /// The longest time from an acknowledgement to the outcome, ms.
    pub longest_ms: u64,
    /// Violations, each with the number of the invariant that it breaks.
    pub violations: Vec<String>,
}

impl Judgement {
    /// Returns the violations as an error, with the seed.
    pub fn verdict(&self) -> anyhow::Result<()> {
        const SHOWN: usize = 12;
        if self.violations.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = self.violations.iter().take(SHOWN).map(String::as_str).collect();
        anyhow::bail!("{self}: {} violations:\n{}", self.violations.len(), shown.join("\n"))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, published, acknowledged, routes, longest_ms, .. } = self;
        write!(f, "TRIBUTARY_TEST_SEED={seed}: {published} published, {acknowledged} acknowledged")?;
        write!(f, ", at most {longest_ms} ms to an outcome")?;
        routes.iter().try_for_each(|(route, count)| write!(f, ", {count} {route}"))
    }
}
