//! Publishes a site's images at a steady rate, and waits for the final answer of each.

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

/// Images per second and site: enough to decide a canary within a minute, few enough for two cores.
pub(super) const PER_S: u32 = 80;
/// Most images published and not yet acknowledged.
const IN_FLIGHT: usize = 32;
/// Time limit for all answers, which normally takes seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An image as a site's camera publishes it. Its label stays here.
#[derive(Clone)]
struct CameraShot {
    bytes: bytes::Bytes,
    label: String,
}

/// An image that was acknowledged.
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

/// A site and the images that it sees.
pub(super) struct SiteFlow {
    /// Its name.
    pub name: SiteName,
    bus: Bus,
    listener: AnswerListener,
    publisher: Publisher,
    camera: CameraName,
    fresh: VecDeque<CameraShot>,
    seen: Vec<CameraShot>,
    acknowledged: usize,
}

impl SiteFlow {
    /// Connects to a site that will see these images, in this order.
    pub(super) async fn open(site: &RunningSite, cloud: &Bus, pictures: &[LoopPicture]) -> anyhow::Result<Self> {
        let read = |picture: &LoopPicture| {
            let bytes = std::fs::read(&picture.path);
            let bytes = bytes.with_context(|| format!("{} cannot be read", picture.path.display()))?;
            Ok(CameraShot { bytes: bytes.into(), label: picture.label.clone() })
        };
        let fresh = pictures.iter().map(read).collect::<anyhow::Result<_>>()?;
        let nats = streams::NatsSettings { url: site.url.clone(), ..streams::NatsSettings::default() };
        let bus = Bus::connect(&nats, "demo").await?;
        Ok(Self {
            name: site.site.clone(),
            listener: AnswerListener::open(&bus, cloud, &site.site).await?,
            publisher: Publisher::new(bus.clone(), TIMEOUT),
            bus,
            camera: "demo".parse()?,
            fresh,
            seen: Vec::new(),
            acknowledged: 0,
        })
    }

    /// Publishes up to `count` images that the site has not seen; returns their answers.
    pub(super) async fn publish_new(&mut self, count: usize) -> anyhow::Result<Vec<FlowAnswer>> {
        let mut shots: Vec<CameraShot> = self.fresh.drain(..count.min(self.fresh.len())).collect();
        shots.shuffle(&mut StdRng::seed_from_u64(self.seen.len() as u64));
        self.seen.extend(shots.iter().cloned());
        let sent = self.publish_paced(shots.into_iter(), &Shutdown::default()).await?;
        self.answers(sent).await
    }

    /// Publishes images that the site has seen, repeatedly, until stopped; returns their answers.
    pub(super) async fn publish_repeatedly(&mut self, stop: &Shutdown) -> anyhow::Result<Vec<FlowAnswer>> {
        let mut shots = self.seen.clone();
        shots.shuffle(&mut StdRng::seed_from_u64(self.acknowledged as u64));
        let sent = self.publish_paced(shots.into_iter().cycle(), stop).await?;
        self.answers(sent).await
    }

    async fn publish_paced(
        &mut self,
        shots: impl Iterator<Item = CameraShot>,
        stop: &Shutdown,
    ) -> anyhow::Result<Vec<SentImage>> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_S);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = futures::stream::unfold((shots, ticks), |(mut shots, mut ticks)| async {
            tokio::select! {
                biased;
                () = stop.wait_for_request() => None,
                _ = ticks.tick() => Some((shots.next()?, (shots, ticks))),
            }
        });
        let sent: Vec<SentImage> =
            paced.map(|shot| self.publish(shot)).buffer_unordered(IN_FLIGHT).try_collect().await?;
        self.acknowledged += sent.len();
        Ok(sent)
    }

    async fn publish(&self, shot: CameraShot) -> anyhow::Result<SentImage> {
        let task = TaskId::new_random();
        // Only the final answer matters here.
        drop(self.listener.expect_task(task, Instant::now()));
        let to = subject::image(&self.name, &self.camera);
        self.publisher.publish(&Publication::with_id(to, shot.bytes, task.to_string())).await?;
        Ok(SentImage { task, label: shot.label })
    }

    /// The final answer of each image; an error if one was lost.
    async fn answers(&self, sent: Vec<SentImage>) -> anyhow::Result<Vec<FlowAnswer>> {
        // Answers that were not received in time are looked up in the stream.
        let _ = tokio::time::timeout(TIMEOUT, self.listener.finals_reach(self.acknowledged)).await;
        let count = sent.len();
        let (mut answered, mut lost) = (Vec::with_capacity(count), Vec::new());
        for SentImage { task, label } in sent {
            let heard = self.listener.take_answers(task).and_then(|heard| heard.last).map(|(_, answer)| answer);
            let answer = match heard {
                Some(answer) => Some(answer),
                None => reader::read_outcome(&self.bus, &subject::final_answer(&self.name, &self.camera, task)).await?,
            };
            match answer {
                Some(answer) => answered.push(FlowAnswer { label, answer }),
                None => lost.push(task),
            }
        }
        if let Some(first) = lost.first() {
            bail!("{} of {count} images of {} have no final answer, for example task {first}", lost.len(), self.name);
        }
        Ok(answered)
    }

    /// Images acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged
    }
}
