//! Publishes a site's images at a steady rate and waits for their final answers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use runtime::Shutdown;
use schemas::{Answer, CameraName, SiteName, TaskId};
use streams::{Bus, Publication, Publisher, reader, subject};
use tokio::time::MissedTickBehavior;
use tributary::demo::answer_listener::AnswerListener;

use super::pictures::LoopPicture;
use tributary::site_target::RunningSite;

/// Images per second and site: enough to decide a canary within a minute, and few enough for two cores.
pub(super) const IMAGES_PER_S: u32 = 80;
/// Maximum unacknowledged images.
const MAX_UNACKED: usize = 32;
/// Time limit for all final answers, which normally take seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An image to publish, and its true label, which is not published.
#[derive(Clone)]
struct CameraShot {
    bytes: bytes::Bytes,
    label: String,
}

/// An acknowledged image.
struct SentImage {
    task: TaskId,
    label: String,
}

/// An image's true label and its final answer.
pub(super) struct FlowAnswer {
    /// True label.
    pub label: String,
    /// Final answer.
    pub answer: Answer,
}

/// A site and its images.
pub(super) struct SiteFlow {
    /// Name of the site.
    pub name: SiteName,
    bus: Bus,
    listener: AnswerListener,
    publisher: Publisher,
    camera: CameraName,
    /// Images that the site has not seen yet.
    new: VecDeque<CameraShot>,
    seen: Vec<CameraShot>,
    acknowledged: usize,
}

impl SiteFlow {
    /// Connects to a site and loads its images, in the order of arrival.
    pub(super) async fn open(site: &RunningSite, cloud: &Bus, pictures: &[LoopPicture]) -> anyhow::Result<Self> {
        let read = |picture: &LoopPicture| {
            let bytes = std::fs::read(&picture.path);
            let bytes = bytes.with_context(|| format!("could not read {}", picture.path.display()))?;
            Ok(CameraShot { bytes: bytes.into(), label: picture.label.clone() })
        };
        let new = pictures.iter().map(read).collect::<anyhow::Result<_>>()?;
        let nats = streams::NatsSettings { url: site.url.clone(), ..streams::NatsSettings::default() };
        let bus = Bus::connect(&nats, "demo").await?;
        Ok(Self {
            name: site.site.clone(),
            listener: AnswerListener::open(&bus, cloud, &site.site).await?,
            publisher: Publisher::new(bus.clone(), TIMEOUT),
            bus,
            camera: "demo".parse()?,
            new,
            seen: Vec::new(),
            acknowledged: 0,
        })
    }

    /// Publishes up to `count` new images; returns their final answers.
    pub(super) async fn publish_new(&mut self, count: usize) -> anyhow::Result<Vec<FlowAnswer>> {
        let mut shots: Vec<CameraShot> = self.new.drain(..count.min(self.new.len())).collect();
        shots.shuffle(&mut StdRng::seed_from_u64(self.seen.len() as u64));
        self.seen.extend(shots.iter().cloned());
        let sent = self.publish_paced(shots.into_iter(), &Shutdown::default()).await?;
        self.collect_answers(sent).await
    }

    /// Publishes seen images repeatedly until stopped; returns their final answers.
    pub(super) async fn publish_repeatedly(&mut self, stop: &Shutdown) -> anyhow::Result<Vec<FlowAnswer>> {
        let mut shots = self.seen.clone();
        shots.shuffle(&mut StdRng::seed_from_u64(self.acknowledged as u64));
        let sent = self.publish_paced(shots.into_iter().cycle(), stop).await?;
        self.collect_answers(sent).await
    }

    async fn publish_paced(
        &mut self,
        shots: impl Iterator<Item = CameraShot>,
        stop: &Shutdown,
    ) -> anyhow::Result<Vec<SentImage>> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / IMAGES_PER_S);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = futures::stream::unfold((shots, ticks), |(mut shots, mut ticks)| async {
            tokio::select! {
                biased;
                () = stop.wait_for_request() => None,
                _ = ticks.tick() => Some((shots.next()?, (shots, ticks))),
            }
        });
        let sent: Vec<SentImage> =
            paced.map(|shot| self.publish(shot)).buffer_unordered(MAX_UNACKED).try_collect().await?;
        self.acknowledged += sent.len();
        Ok(sent)
    }

    async fn publish(&self, shot: CameraShot) -> anyhow::Result<SentImage> {
        let task = TaskId::new_random();
        // The receiver is for provisional answers; only final ones count here.
        drop(self.listener.expect_task(task, Instant::now()));
        let subject = subject::image(&self.name, &self.camera);
        self.publisher.publish(&Publication::with_id(subject, shot.bytes, task.to_string())).await?;
        Ok(SentImage { task, label: shot.label })
    }

    /// Waits for the final answer of each image; an error if one has none.
    async fn collect_answers(&self, sent: Vec<SentImage>) -> anyhow::Result<Vec<FlowAnswer>> {
        // Answers that do not arrive in time are looked up in the stream.
        let _ = tokio::time::timeout(TIMEOUT, self.listener.finals_reach(self.acknowledged)).await;
        let count = sent.len();
        let (mut answers, mut lost) = (Vec::with_capacity(count), Vec::new());
        for SentImage { task, label } in sent {
            let received = self.listener.take_answers(task).and_then(|answers| answers.last).map(|(_, answer)| answer);
            let answer = match received {
                Some(answer) => Some(answer),
                None => reader::read_outcome(&self.bus, &subject::final_answer(&self.name, &self.camera, task)).await?,
            };
            match answer {
                Some(answer) => answers.push(FlowAnswer { label, answer }),
                None => lost.push(task),
            }
        }
        if let Some(first) = lost.first() {
            bail!("{} of {count} images of {} have no final answer, for example task {first}", lost.len(), self.name);
        }
        Ok(answers)
    }

    /// Number of images acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged
    }
}
