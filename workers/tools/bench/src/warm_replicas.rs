//! The bare loop, against which the pipeline is measured: decode, resize and infer in this process, one thread per
//! replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use vision::{InferenceError, InferenceSettings, Model, OnnxRuntime, Replica};

use crate::error::BenchError;
use crate::measurement_window::{self, CompletionLog, MeasurementWindow, WindowLength};
use crate::workload::Workload;

/// Name of the bare loop's process in a report.
pub(crate) const LOOP: &str = "loop";

/// Loaded replicas and their input images.
pub(crate) struct WarmReplicas {
    replicas: Vec<Replica>,
    images: Arc<[Bytes]>,
}

impl WarmReplicas {
    /// Loads as many replicas as a recognizer with these settings would. Blocks.
    pub(crate) fn open(
        workload: &Workload,
        onnx: &OnnxRuntime,
        settings: &InferenceSettings,
    ) -> Result<Self, BenchError> {
        let model = Model::load(&workload.model)?;
        let count = settings.replicas.count(settings.threads);
        let replicas = (0..count).map(|_| Replica::open(onnx, &model, settings)).collect::<Result<_, _>>()?;
        Ok(Self { replicas, images: workload.images.clone() })
    }

    /// Number of replicas.
    pub(crate) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Measures the loop with this many replicas in parallel.
    pub(crate) async fn run(&mut self, threads: usize, length: WindowLength) -> Result<MeasurementWindow, BenchError> {
        let (stop, log, next) = (CancellationToken::new(), CompletionLog::default(), Arc::new(AtomicUsize::new(0)));
        // Stops the threads also if this future is dropped.
        let guard = stop.clone().drop_guard();
        let idle = self.replicas.split_off(threads.min(self.replicas.len()));
        let mut running = Vec::new();
        for replica in std::mem::take(&mut self.replicas) {
            let (images, log, next, stop) = (self.images.clone(), log.clone(), next.clone(), stop.clone());
            running.push(tokio::task::spawn_blocking(move || {
                let mut replica = replica;
                let ended = recognize(&mut replica, &images, &next, &log, &stop);
                (replica, ended)
            }));
        }
        let window =
            measurement_window::measure_window(&log, &[(LOOP, std::process::id())], length.lead, length.wait_for_end())
                .await;
        drop(guard);
        for thread in running {
            let (replica, ended) = thread.await?;
            self.replicas.push(replica);
            ended?;
        }
        self.replicas.extend(idle);
        window
    }
}

fn recognize(
    replica: &mut Replica,
    images: &[Bytes],
    next: &AtomicUsize,
    log: &CompletionLog,
    stop: &CancellationToken,
) -> Result<(), InferenceError> {
    while !stop.is_cancelled() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(image) = images.get(number % images.len().max(1)) else { return Ok(()) };
        let started = Instant::now();
        replica.predict(image)?;
        log.record_image(started.elapsed());
    }
    Ok(())
}
