//! How long the first answer takes: from the start of a grabber, and from the moment at which a camera ends all sessions. A
//! recognizer runs; the camera's key frames are two seconds apart, and each connection comes in at another place between
//! two of them.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use schemas::{Answer, decode};
use streams::subject;
use streams::tap::{TapMessage, watch_subject};

use crate::bench_site::BenchSite;
use crate::cameras::cost::{BenchGrabber, PUBLISH_ALL, named};
use crate::cameras::sources::RtspLoops;
use crate::error::BenchError;

/// Time limit for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a camera is followed before it ends the sessions: pictures are in flight then, and its connection counts as a
/// good one.
const FOLLOWED: Duration = Duration::from_secs(3);

/// The times of all rounds, seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FirstAnswerTimes {
    /// From the start of the program.
    pub start_s: Vec<f64>,
    /// From the end of the sessions.
    pub reconnect_s: Vec<f64>,
}

/// Measures several rounds with a camera of this stream.
pub(super) async fn measure(
    site: &BenchSite,
    folder: &Path,
    loops: &RtspLoops,
    stream: &str,
    rounds: usize,
) -> Result<FirstAnswerTimes, BenchError> {
    let mut answers = AnswerStream::open(site).await?;
    let mut times = FirstAnswerTimes::default();
    for _ in 0..rounds {
        let (started, started_ms) = (Instant::now(), runtime::clock::now_ms());
        let grabber = BenchGrabber::start(site, folder, &named(&loops.url(stream), "gate", 1), PUBLISH_ALL)?;
        answers.wait_for_capture(started_ms).await?;
        times.start_s.push(started.elapsed().as_secs_f64());
        tokio::time::sleep(FOLLOWED).await;
        let dropped = Instant::now();
        loops.drop_clients().await?;
        answers.wait_for_capture(runtime::clock::now_ms()).await?;
        times.reconnect_s.push(dropped.elapsed().as_secs_f64());
        grabber.stop().await?;
    }
    site.clear_streams().await?;
    Ok(times)
}

/// The final answers of a site as they come.
pub(super) struct AnswerStream(BoxStream<'static, TapMessage>);

impl AnswerStream {
    pub(super) async fn open(site: &BenchSite) -> Result<Self, BenchError> {
        Ok(Self(watch_subject(&site.bus, &subject::final_answers(&site.name, None)).await?))
    }

    /// The first answer of which this is true.
    pub(super) async fn wait_for(&mut self, is_it: impl Fn(&Answer) -> bool) -> Result<Answer, BenchError> {
        let searching = async {
            while let Some(message) = self.0.next().await {
                if let Ok(answer) = decode::<Answer>(&message.payload)
                    && is_it(&answer)
                {
                    return Some(answer);
                }
            }
            None
        };
        match tokio::time::timeout(TIMEOUT, searching).await {
            Ok(Some(answer)) => match &answer.fault {
                Some(fault) => Err(BenchError::Dead { why: fault.reason.clone() }),
                None => Ok(answer),
            },
            _ => Err(BenchError::NoAnswer { timeout: TIMEOUT }),
        }
    }

    /// The first answer to an image that was taken after a time, milliseconds since the epoch.
    async fn wait_for_capture(&mut self, after_ms: u64) -> Result<Answer, BenchError> {
        self.wait_for(|answer| answer.captured_at_ms.is_some_and(|captured_ms| captured_ms > after_ms)).await
    }
}
