//! What a connection hands to whoever takes its pictures: the newest one alone. Whatever a camera sends and however slowly
//! its pictures are taken, one waits.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::StreamFacts;
use crate::error::CameraError;
use crate::frame::Frame;

/// A connection that is read in the background, and ends when this is dropped.
pub(super) struct LiveSource {
    latest: Arc<LatestFrame>,
    _reader: AbortOnDropHandle<()>,
}

impl LiveSource {
    /// Reads in the background. What `read` returns is the end of the connection.
    pub(super) fn spawn(
        latest: Arc<LatestFrame>,
        read: impl Future<Output = Result<(), CameraError>> + Send + 'static,
    ) -> Self {
        let ending = EndingOnDrop { latest: latest.clone(), end: None };
        let reader = tokio::spawn(async move {
            let mut ending = ending;
            ending.end = Some(read.await);
        });
        Self { latest, _reader: AbortOnDropHandle::new(reader) }
    }

    /// The newest picture that was not taken yet, as soon as there is one; `None` after the end. Safe to cancel.
    pub(super) async fn next_frame(&self) -> Result<Option<Frame>, CameraError> {
        self.latest.take().await
    }

    pub(super) fn facts(&self) -> StreamFacts {
        self.latest.facts()
    }
}

/// Ends what is handed over however its reader ends, so that nobody waits for ever.
struct EndingOnDrop {
    latest: Arc<LatestFrame>,
    end: Option<Result<(), CameraError>>,
}

impl Drop for EndingOnDrop {
    fn drop(&mut self) {
        let unfinished = || {
            let address = self.latest.address.clone();
            Err(CameraError::Closed { address, why: Some("its reader was stopped".into()) })
        };
        self.latest.finish(self.end.take().unwrap_or_else(unfinished));
    }
}

/// The newest picture of a connection, and what is known about its stream.
pub(super) struct LatestFrame {
    address: String,
    state: Mutex<LatestState>,
    changed: Notify,
}

struct LatestState {
    frame: Option<Frame>,
    end: Option<Result<(), CameraError>>,
    facts: StreamFacts,
}

impl LatestFrame {
    pub(super) fn new(address: &str, codec: &str) -> Arc<Self> {
        let facts = StreamFacts { codec: codec.into(), ..StreamFacts::default() };
        let state = Mutex::new(LatestState { frame: None, end: None, facts });
        Arc::new(Self { address: address.into(), state, changed: Notify::new() })
    }

    /// Replaces the picture that waits, if one does.
    pub(super) fn put(&self, frame: Frame) {
        self.state().frame = Some(frame);
        self.changed.notify_one();
    }

    pub(super) fn update_facts(&self, update: impl FnOnce(&mut StreamFacts)) {
        update(&mut self.state().facts);
    }

    fn facts(&self) -> StreamFacts {
        self.state().facts.clone()
    }

    fn finish(&self, end: Result<(), CameraError>) {
        self.state().end = Some(end);
        self.changed.notify_one();
    }

    async fn take(&self) -> Result<Option<Frame>, CameraError> {
        loop {
            {
                let mut state = self.state();
                if let Some(frame) = state.frame.take() {
                    return Ok(Some(frame));
                }
                if let Some(end) = &state.end {
                    return end.clone().map(|()| None);
                }
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, LatestState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts damaged pictures that follow one another: a few are the network's, many are a fault.
pub(super) struct DamageCount {
    address: String,
    in_row: u32,
    limit: u32,
}

impl DamageCount {
    pub(super) fn new(address: &str, limit: u32) -> Self {
        Self { address: address.into(), in_row: 0, limit }
    }

    pub(super) fn note_good(&mut self) {
        self.in_row = 0;
    }

    /// # Errors
    /// Too many followed one another.
    pub(super) fn note_damaged(&mut self, latest: &LatestFrame, why: &str) -> Result<(), CameraError> {
        latest.update_facts(|facts| facts.damaged += 1);
        self.in_row += 1;
        match self.in_row < self.limit {
            true => Ok(()),
            false => Err(CameraError::Damaged { address: self.address.clone(), why: why.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::frame::FramePicture;

    fn frame(byte: u8) -> Frame {
        Frame::arriving(FramePicture::Jpeg(Bytes::from(vec![byte])), None)
    }

    fn byte(frame: Frame) -> u8 {
        match frame.picture {
            FramePicture::Jpeg(bytes) => bytes[0],
            FramePicture::Yuv(_) => panic!("not what was put"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_picture_wins_and_a_cancelled_wait_loses_nothing() {
        let latest = LatestFrame::new("camera", "jpeg");
        assert!(tokio::time::timeout(Duration::from_secs(1), latest.take()).await.is_err());
        for number in 1..=3 {
            latest.put(frame(number));
        }
        assert_eq!(byte(latest.take().await.unwrap().unwrap()), 3);
        latest.put(frame(4));
        latest.finish(Ok(()));
        assert_eq!(byte(latest.take().await.unwrap().unwrap()), 4, "what came before the end is still given");
        assert!(latest.take().await.unwrap().is_none() && latest.take().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_reader_that_is_stopped_is_an_end_and_not_a_silence() {
        let latest = LatestFrame::new("camera", "jpeg");
        let source = LiveSource::spawn(latest, async { panic!("a fault of ours") });
        let end = source.next_frame().await.unwrap_err();
        assert_eq!(end.kind(), "camera_closed");
    }
}
