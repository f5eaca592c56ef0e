//! The pictures' walk: everything is started, every picture published and answered, everything stopped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use runtime::Shutdown;
use schemas::task::HEADER_LABEL;
use schemas::{Answer, CameraName, SiteName, Stage, TaskId, decode};
use streams::tap::tap;
use streams::{Bus, NatsSettings, Publication, Publisher, subject};
use tokio::sync::{oneshot, watch};

use super::Picture;
use crate::settings::Settings;
use crate::site::Running;
use crate::up;

/// Pictures published and without a first answer, at a time.
pub const IN_FLIGHT: usize = 16;
/// Everything is answered within seconds; after this something is wrong.
const PATIENCE: Duration = Duration::from_secs(50);
const STOPPED: &str = "stopped before it was through";

/// What became of one picture.
pub struct Answered {
    /// From publishing to its provisional answer, if it had one.
    pub provisional: Option<Duration>,
    /// From publishing to its final answer.
    pub final_: Duration,
    /// That answer.
    pub answer: Answer,
}

/// What became of all of them.
pub struct Walked {
    /// In the order of the pictures.
    pub answered: Vec<Answered>,
    /// From the first publishing to the last final answer.
    pub elapsed: Duration,
    /// Requests that reached the cloud.
    pub sent_up: u64,
    /// Bytes of their payloads.
    pub bytes_up: u64,
}

/// Starts everything, walks all pictures through it, stops everything.
pub async fn through(settings: &Settings, pictures: Arc<Vec<Picture>>, shutdown: &Shutdown) -> anyhow::Result<Walked> {
    let stop = Shutdown::default();
    let up = tokio::select! {
        up = up::start(settings, Some(1), stop.clone()) => up?,
        () = shutdown.wanted() => bail!(STOPPED),
    };
    let running = up.running.clone();
    let mut roles = tokio::spawn(up.wait());
    let walked = tokio::select! {
        walked = walk(&running, pictures) => walked,
        ended = &mut roles => {
            ended??;
            bail!("everything stopped by itself");
        }
        () = shutdown.wanted() => Err(anyhow::anyhow!(STOPPED)),
    };
    stop.want();
    roles.await??;
    walked
}

/// Publishes every picture, waits for every final answer.
async fn walk(running: &Running, pictures: Arc<Vec<Picture>>) -> anyhow::Result<Walked> {
    let site = running.sites.first().context("no site was started")?;
    let here = Bus::connect(&NatsSettings { url: site.url.clone(), ..NatsSettings::default() }, "demo").await?;
    let cloud = NatsSettings { url: running.cloud_url.clone(), ..NatsSettings::default() };
    let cloud = Bus::connect(&cloud, "demo").await?;
    let camera: CameraName = "demo".parse()?;
    let ear = Ear::open(&here, &cloud, &site.site).await?;
    let publisher = Publisher::new(here.clone(), PATIENCE);
    let begun = Instant::now();
    let all = async {
        let mut tasks = Vec::with_capacity(pictures.len());
        let mut walking = futures::stream::iter(pictures.iter().map(|picture| {
            let image = subject::image(&site.site, &camera);
            let (publisher, ear) = (&publisher, &ear);
            async move {
                let task = TaskId::mint();
                let first = ear.expect(task);
                let publication = Publication::with_id(image, picture.bytes.clone(), task.to_string())
                    .header(HEADER_LABEL, picture.label.clone());
                publisher.publish(&publication).await?;
                // Fails only if nobody listens any more, and then nothing will be complete.
                let _ = first.await;
                anyhow::Ok(task)
            }
        }))
        .buffered(IN_FLIGHT);
        while let Some(task) = walking.next().await {
            tasks.push(task?);
        }
        ear.complete(tasks.len()).await;
        anyhow::Ok(tasks)
    };
    let tasks = match tokio::time::timeout(PATIENCE, all).await {
        Ok(tasks) => tasks?,
        Err(_) => bail!(
            "only {} of {} pictures had a final answer within {} s: is the machine very busy?",
            ear.finals(),
            pictures.len(),
            PATIENCE.as_secs()
        ),
    };
    let elapsed = begun.elapsed();
    ear.close(&tasks, elapsed)
}

/// Hears what is said about the pictures.
struct Ear {
    notes: Arc<Mutex<HashMap<TaskId, Note>>>,
    up: Arc<Mutex<(u64, u64)>>,
    finals: watch::Receiver<usize>,
    listening: Vec<tokio::task::JoinHandle<()>>,
}

struct Note {
    published_at: Instant,
    first: Option<oneshot::Sender<()>>,
    provisional: Option<Duration>,
    last: Option<(Duration, Answer)>,
}

impl Ear {
    async fn open(here: &Bus, cloud: &Bus, site: &SiteName) -> anyhow::Result<Self> {
        let notes = Arc::<Mutex<HashMap<TaskId, Note>>>::default();
        let up = Arc::<Mutex<(u64, u64)>>::default();
        let (count, finals) = watch::channel(0);
        let count = Arc::new(count);
        let mut listening = Vec::new();
        for pattern in [subject::finalities(site, None), subject::provisionals(site, None)] {
            let mut answers = Box::pin(tap(here, &pattern).await?);
            let (notes, count) = (notes.clone(), count.clone());
            listening.push(tokio::spawn(async move {
                while let Some(passing) = answers.next().await {
                    let Ok(answer) = decode::<Answer>(&passing.payload) else { continue };
                    note(&notes, answer, &count);
                }
            }));
        }
        let mut requests = Box::pin(tap(cloud, &subject::verifications(site)).await?);
        let counted = up.clone();
        listening.push(tokio::spawn(async move {
            while let Some(passing) = requests.next().await {
                let mut up = counted.lock().unwrap_or_else(PoisonError::into_inner);
                *up = (up.0 + 1, up.1 + passing.payload.len() as u64);
            }
        }));
        Ok(Self { notes, up, finals, listening })
    }

    /// Takes note of what is published now; the receiver hears of its first answer.
    fn expect(&self, task: TaskId) -> oneshot::Receiver<()> {
        let (tell, first) = oneshot::channel();
        let note = Note { published_at: Instant::now(), first: Some(tell), provisional: None, last: None };
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(task, note);
        first
    }

    fn finals(&self) -> usize {
        *self.finals.borrow()
    }

    async fn complete(&self, count: usize) {
        let mut finals = self.finals.clone();
        // Fails only if nobody listens any more.
        let _ = finals.wait_for(|heard| *heard >= count).await;
    }

    fn close(&self, tasks: &[TaskId], elapsed: Duration) -> anyhow::Result<Walked> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = tasks.iter().map(|task| {
            let note = notes.remove(task).context("an answer was not heard")?;
            let (final_, answer) = note.last.context("an answer was not heard")?;
            Ok(Answered { provisional: note.provisional, final_, answer })
        });
        let answered = answered.collect::<anyhow::Result<_>>()?;
        let (sent_up, bytes_up) = *self.up.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Walked { answered, elapsed, sent_up, bytes_up })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        for listening in &self.listening {
            listening.abort();
        }
    }
}

fn note(notes: &Mutex<HashMap<TaskId, Note>>, answer: Answer, count: &watch::Sender<usize>) {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(note) = notes.get_mut(&answer.task) else { return };
    let took = note.published_at.elapsed();
    if let Some(first) = note.first.take() {
        // Fails only if nobody waits any more.
        let _ = first.send(());
    }
    match answer.stage {
        Stage::Provisional => note.provisional = Some(took),
        Stage::Final if note.last.is_none() => {
            note.last = Some((took, answer));
            count.send_modify(|count| *count += 1);
        }
        Stage::Final => {}
    }
}
