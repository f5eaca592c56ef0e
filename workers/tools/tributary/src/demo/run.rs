//! The pictures' walk: everything is started, every picture published and answered, everything stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::answer_listener::AnswerListener;
use futures::StreamExt;
use runtime::Shutdown;
use schemas::task::HEADER_LABEL;
use schemas::{Answer, CameraName, TaskId};
use streams::{Bus, NatsSettings, Publication, Publisher, subject};

use super::DemoPicture;
use crate::settings::Settings;
use crate::site_target::RunningUp;
use crate::up;

/// Pictures published and without a first answer, at a time.
pub const IN_FLIGHT: usize = 16;
/// Everything is answered within seconds; after this something is wrong.
const PATIENCE: Duration = Duration::from_secs(50);
const STOPPED: &str = "stopped before it was through";

/// What became of one picture.
pub struct DemoAnswer {
    /// From publishing to its provisional answer, if it had one.
    pub provisional: Option<Duration>,
    /// From publishing to its final answer.
    pub final_: Duration,
    /// That answer.
    pub answer: Answer,
}

/// What became of all of them.
pub struct DemoRun {
    /// In the order of the pictures.
    pub answered: Vec<DemoAnswer>,
    /// From the first publishing to the last final answer.
    pub elapsed: Duration,
    /// Requests that reached the cloud.
    pub sent_up: u64,
    /// Bytes of their payloads.
    pub bytes_up: u64,
}

/// Starts everything, walks all pictures through it, stops everything.
pub async fn run_pictures(
    settings: &Settings,
    pictures: Arc<Vec<DemoPicture>>,
    shutdown: &Shutdown,
) -> anyhow::Result<DemoRun> {
    let stop = Shutdown::default();
    let up = tokio::select! {
        up = up::start(settings, Some(1), stop.clone()) => up?,
        () = shutdown.wait_for_request() => bail!(STOPPED),
    };
    let running = up.running.clone();
    let mut roles = tokio::spawn(up.wait_until_stopped());
    let walked = tokio::select! {
        walked = run_pictures_through(&running, pictures) => walked,
        ended = &mut roles => {
            ended??;
            bail!("everything stopped by itself");
        }
        () = shutdown.wait_for_request() => Err(anyhow::anyhow!(STOPPED)),
    };
    stop.request();
    roles.await??;
    walked
}

/// Publishes every picture, waits for every final answer.
async fn run_pictures_through(running: &RunningUp, pictures: Arc<Vec<DemoPicture>>) -> anyhow::Result<DemoRun> {
    let site = running.sites.first().context("no site was started")?;
    let here = Bus::connect(&NatsSettings { url: site.url.clone(), ..NatsSettings::default() }, "demo").await?;
    let cloud = NatsSettings { url: running.cloud_url.clone(), ..NatsSettings::default() };
    let cloud = Bus::connect(&cloud, "demo").await?;
    let camera: CameraName = "demo".parse()?;
    let ear = AnswerListener::open(&here, &cloud, &site.site).await?;
    let publisher = Publisher::new(here.clone(), PATIENCE);
    let begun = Instant::now();
    let all = async {
        let mut tasks = Vec::with_capacity(pictures.len());
        let mut walking = futures::stream::iter(pictures.iter().map(|picture| {
            let image = subject::image(&site.site, &camera);
            let (publisher, ear) = (&publisher, &ear);
            async move {
                let task = TaskId::new_random();
                let first = ear.expect_task(task, Instant::now());
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
        ear.finals_reach(tasks.len()).await;
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
    close(&ear, &tasks, elapsed)
}

/// What became of the pictures, once all is said.
fn close(ear: &AnswerListener, tasks: &[TaskId], elapsed: Duration) -> anyhow::Result<DemoRun> {
    let answered = tasks.iter().map(|task| {
        let heard = ear.take_answers(*task).context("an answer was not heard")?;
        let (final_, answer) = heard.last.context("an answer was not heard")?;
        Ok(DemoAnswer { provisional: heard.provisional, final_, answer })
    });
    let answered = answered.collect::<anyhow::Result<_>>()?;
    let up = ear.cloud_arrivals();
    Ok(DemoRun { answered, elapsed, sent_up: up.requests, bytes_up: up.bytes })
}
