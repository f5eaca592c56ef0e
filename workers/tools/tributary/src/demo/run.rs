//! One run of the demo: start everything, publish every image and wait for its answer, stop everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use runtime::Shutdown;
use schemas::task::HEADER_LABEL;
use schemas::{Answer, CameraName, TaskId};
use streams::{Bus, NatsSettings, Publication, Publisher, subject};

use super::DemoPicture;
use super::answer_listener::AnswerListener;
use crate::settings::Settings;
use crate::site_target::RunningUp;
use crate::up;

/// Most images published and without a first answer.
pub(super) const IN_FLIGHT: usize = 16;
/// Time limit for all answers, which normally takes seconds.
const TIMEOUT: Duration = Duration::from_secs(50);
const STOPPED: &str = "stopped before the end";

/// The outcome of one image.
pub(super) struct DemoAnswer {
    /// From publishing to the provisional answer; absent without one.
    pub provisional: Option<Duration>,
    /// From publishing to the final answer.
    pub final_: Duration,
    /// The final answer.
    pub answer: Answer,
}

/// The outcome of all images.
pub(super) struct DemoRun {
    /// In the order of the images.
    pub answered: Vec<DemoAnswer>,
    /// From the first publish to the last final answer.
    pub elapsed: Duration,
    /// Requests that reached the cloud.
    pub sent_up: u64,
    /// Bytes of their payloads.
    pub bytes_up: u64,
}

/// Starts everything, runs all images through it, stops everything.
pub(super) async fn run_pictures(
    settings: &Settings,
    pictures: Arc<Vec<DemoPicture>>,
    shutdown: &Shutdown,
) -> anyhow::Result<DemoRun> {
    let stop = Shutdown::default();
    let up = tokio::select! {
        up = up::start(settings, Some(1), None, stop.clone()) => up?,
        () = shutdown.wait_for_request() => bail!(STOPPED),
    };
    let running = up.running.clone();
    let mut roles = tokio::spawn(up.wait_until_stopped());
    let run = tokio::select! {
        run = run_pictures_through(&running, pictures) => run,
        ended = &mut roles => {
            ended??;
            bail!("all roles stopped unexpectedly");
        }
        () = shutdown.wait_for_request() => Err(anyhow::anyhow!(STOPPED)),
    };
    stop.request();
    roles.await??;
    run
}

/// Publishes every image, and waits for every final answer.
async fn run_pictures_through(running: &RunningUp, pictures: Arc<Vec<DemoPicture>>) -> anyhow::Result<DemoRun> {
    let site = running.sites.first().context("no site was started")?;
    let here = Bus::connect(&NatsSettings { url: site.url.clone(), ..NatsSettings::default() }, "demo").await?;
    let cloud = NatsSettings { url: running.cloud_url.clone(), ..NatsSettings::default() };
    let cloud = Bus::connect(&cloud, "demo").await?;
    let camera: CameraName = "demo".parse()?;
    let listener = AnswerListener::open(&here, &cloud, &site.site).await?;
    let publisher = Publisher::new(here.clone(), TIMEOUT);
    let begun = Instant::now();
    let all = async {
        let mut tasks = Vec::with_capacity(pictures.len());
        let mut publishing = futures::stream::iter(pictures.iter().map(|picture| {
            let image = subject::image(&site.site, &camera);
            let (publisher, listener) = (&publisher, &listener);
            async move {
                let task = TaskId::new_random();
                let first = listener.expect_task(task, Instant::now());
                let publication = Publication::with_id(image, picture.bytes.clone(), task.to_string())
                    .header(HEADER_LABEL, picture.label.clone());
                publisher.publish(&publication).await?;
                // Fails only if the listener has ended; then waiting for the finals fails, too.
                let _ = first.await;
                anyhow::Ok(task)
            }
        }))
        .buffered(IN_FLIGHT);
        while let Some(task) = publishing.next().await {
            tasks.push(task?);
        }
        listener.finals_reach(tasks.len()).await;
        anyhow::Ok(tasks)
    };
    let tasks = match tokio::time::timeout(TIMEOUT, all).await {
        Ok(tasks) => tasks?,
        Err(_) => bail!(
            "only {} of {} images had a final answer within {} s: is the machine very busy?",
            listener.finals(),
            pictures.len(),
            TIMEOUT.as_secs()
        ),
    };
    let elapsed = begun.elapsed();
    collect_answers(&listener, &tasks, elapsed)
}

/// The outcome of all tasks, once every final answer was received.
fn collect_answers(listener: &AnswerListener, tasks: &[TaskId], elapsed: Duration) -> anyhow::Result<DemoRun> {
    let answered = tasks.iter().map(|task| {
        let heard = listener.take_answers(*task).context("an answer was not received")?;
        let (final_, answer) = heard.last.context("an answer was not received")?;
        Ok(DemoAnswer { provisional: heard.provisional, final_, answer })
    });
    let answered = answered.collect::<anyhow::Result<_>>()?;
    let up = listener.cloud_arrivals();
    Ok(DemoRun { answered, elapsed, sent_up: up.requests, bytes_up: up.bytes })
}
