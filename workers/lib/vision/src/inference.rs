//! A bounded mailbox in front of a few owner threads, each with its own [`Replica`].
//!
//! In: bytes and how urgent they are, from any number of tasks. Out: the model's result. A caller waits for space
//! instead of piling up; an owner takes the most urgent of what is already waiting ([`crate::urgency`]), up to the best
//! batch, and never waits for more. Refuses only what [`mod@crate::decode`] and [`crate::session`] refuse; a picture that
//! fails, fails alone.
//!
//! Another model is loaded beside the serving one ([`InferencePool::preload`]) and given to the owners
//! ([`InferencePool::swap`]); each takes its replica between two batches, so a batch runs entirely in one release, and
//! waiting pictures wait at most for a batch longer.

mod error;
mod owner;
mod result;
mod settings;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{Semaphore, oneshot};

pub use self::error::InferenceError;
pub use self::owner::ProcessorContention;
use self::owner::{ImageCost, InferenceJob, OwnerMail, OwnerOrder, ReplicaHandover, ReplicaOwner, WaitingJobs};
pub use self::result::{InferenceResult, InferenceTimings, PixelInspector};
pub use self::settings::{InferenceSettings, Replicas};
use crate::batch_cost::{batch_within, measure_batches};
use crate::model::Model;
pub use crate::replica::Replica;
use crate::session::OnnxRuntime;
use crate::urgency::Urgency;

/// Most pictures in the mailbox. More than the credits of a worker with a hundred replicas: whatever a worker holds is in
/// one order, and its credits keep the rest in the stream. The bytes are the caller's in any case.
const MAX_WAITING: usize = 8192;

/// Handle to the owner threads; clones share them. They end when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct InferencePool(Arc<InferenceShared>);

#[derive(Debug)]
struct InferenceShared {
    mail: Sender<OwnerMail>,
    /// Pictures that wait: one for each `OwnerMail::See` in the mailbox.
    jobs: Arc<WaitingJobs>,
    permits: Arc<Semaphore>,
    owners: Mutex<Vec<OwnerThread>>,
    onnx: OnnxRuntime,
    settings: InferenceSettings,
    model: RwLock<Arc<Model>>,
    cost: Arc<ImageCost>,
    /// Number of owners.
    replicas: AtomicUsize,
    batch: AtomicUsize,
    /// Cloned for owners that are added later.
    waiting: Receiver<OwnerMail>,
    /// Held while owners or their model change, so that changes happen one after another.
    changing: Mutex<()>,
}
/// An owner thread, and the channel to give it another replica.
#[derive(Debug)]
struct OwnerThread {
    handle: JoinHandle<()>,
    orders: Sender<OwnerOrder>,
}

/// A model loaded and warmed up beside the serving one, in as many replicas.
#[derive(Debug)]
pub struct StandbyModel {
    replicas: Vec<Replica>,
    batch: usize,
    cost_ms: f64,
}

impl StandbyModel {
    /// Its results for pictures, to compare before it serves.
    pub fn predict_batch(&mut self, images: &[&[u8]]) -> Vec<Result<InferenceResult, InferenceError>> {
        self.replicas.first_mut().map_or_else(Vec::new, |first| first.predict_batch(images))
    }
}

impl InferencePool {
    /// Opens, measures and warms up. Blocks for a moment, so call it off the async threads.
    pub fn start(
        onnx: &OnnxRuntime,
        model: &Model,
        settings: &InferenceSettings,
    ) -> Result<InferencePool, InferenceError> {
        let model = Arc::new(model.clone());
        let count = settings.replicas.count(settings.threads);
        let StandbyModel { replicas, batch, cost_ms } = load(onnx, &model, settings, count, None)?;
        let (mail, waiting) = crossbeam_channel::unbounded();
        let infer = InferencePool(Arc::new(InferenceShared {
            mail,
            jobs: Arc::default(),
            permits: Arc::new(Semaphore::new(MAX_WAITING)),
            owners: Mutex::default(),
            onnx: onnx.clone(),
            settings: settings.clone(),
            cost: Arc::new(ImageCost::new(cost_ms)),
            replicas: AtomicUsize::new(0),
            batch: AtomicUsize::new(batch),
            model: RwLock::new(model.clone()),
            waiting,
            changing: Mutex::default(),
        }));
        for replica in replicas {
            infer.spawn_owner(replica)?;
        }
        tracing::info!(
            model = model.description.name,
            release = model.release.short(),
            replicas = count,
            batch_size = batch,
            cost_ms,
            "inference started"
        );
        Ok(infer)
    }

    fn spawn_owner(&self, replica: Replica) -> Result<(), InferenceError> {
        let (orders, hears) = crossbeam_channel::unbounded();
        let waiting = self.0.waiting.clone();
        let owner = ReplicaOwner {
            replica,
            waiting,
            jobs: self.0.jobs.clone(),
            orders: hears,
            batch: self.batch(),
            objective_ms: self.0.settings.objective_ms,
            cost: self.0.cost.clone(),
        };
        let mut owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = Builder::new().name(format!("replica-{}", owners.len())).spawn(move || owner.run_owner());
        let handle = handle.map_err(|source| InferenceError::NoThread { source })?;
        owners.push(OwnerThread { handle, orders });
        self.0.replicas.store(owners.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Starts one more replica of the serving model. Blocks for a moment, and takes as much memory as each of the
    /// others. All replicas share the queue.
    pub fn add_replica(&self) -> Result<(), InferenceError> {
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replica = Replica::with_session(&self.0.onnx, &self.model(), &self.0.settings)?;
        replica.warm_up(self.batch())?;
        self.spawn_owner(replica)
    }

    /// Stops one replica, unless it is the last: it finishes its batch, and the others take what waits. Blocks until it
    /// is gone and its memory returned.
    pub fn remove_replica(&self) -> Result<(), InferenceError> {
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let leaves = {
            let mut owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
            let leaves = if owners.len() > 1 { owners.pop() } else { None };
            self.0.replicas.store(owners.len(), Ordering::Relaxed);
            leaves
        };
        let Some(OwnerThread { handle, orders }) = leaves else { return Ok(()) };
        orders.send(OwnerOrder::Leave).map_err(|_| InferenceError::Stopped)?;
        handle.join().map_err(|_| InferenceError::Stopped)
    }

    /// Loads another model beside the serving one, in as many replicas, and warms it up. Blocks for a moment, and takes
    /// as much memory again. `measured`: best batch size and cost per image in milliseconds, if known, as measuring
    /// takes time from the serving model.
    pub fn preload(&self, model: &Model, measured: Option<(usize, f64)>) -> Result<StandbyModel, InferenceError> {
        load(&self.0.onnx, &Arc::new(model.clone()), &self.0.settings, self.replicas(), measured)
    }

    /// Makes a preloaded model serve, each owner from its next batch on, and waits until all do. Blocks at most for the
    /// batches in work. Returns the old model's memory.
    pub fn swap(&self, standby: StandbyModel) -> Result<(), InferenceError> {
        let StandbyModel { mut replicas, batch, cost_ms } = standby;
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // There may be more owners than when it was loaded.
        while let (true, Some(first)) = (replicas.len() < self.replicas(), replicas.first()) {
            let mut more = Replica::with_session(&self.0.onnx, &first.model().clone(), &self.0.settings)?;
            more.warm_up(batch)?;
            replicas.push(more);
        }
        let model = replicas.first().map(|replica| replica.model().clone()).ok_or(InferenceError::Stopped)?;
        let (old, returned) = crossbeam_channel::unbounded();
        {
            // Held until all owners have theirs, so that two swaps happen in the same order everywhere.
            let owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
            if owners.is_empty() {
                return Err(InferenceError::Stopped);
            }
            for (thread, replica) in owners.iter().zip(replicas) {
                let next = ReplicaHandover { replica, batch, old: old.clone() };
                thread.orders.send(OwnerOrder::Take(Box::new(next))).map_err(|_| InferenceError::Stopped)?;
            }
            self.0.batch.store(batch, Ordering::Relaxed);
        }
        drop(old);
        self.0.cost.set(cost_ms);
        // Ends when every owner has taken its replica, or is gone.
        returned.iter().for_each(drop);
        tracing::info!(
            model = model.description.name,
            release = model.release.short(),
            batch_size = batch,
            cost_ms,
            "model swapped"
        );
        *self.0.model.write().unwrap_or_else(PoisonError::into_inner) = model;
        Ok(())
    }

    /// Recognizes one picture; waits for space first. Dropping the future cancels the work if no replica has taken it
    /// yet.
    pub async fn predict(&self, bytes: Bytes) -> Result<InferenceResult, InferenceError> {
        self.predict_urgent(bytes, Urgency::default()).await
    }

    /// Like [`InferencePool::predict`], for a picture that is more or less urgent than others.
    pub async fn predict_urgent(&self, bytes: Bytes, urgency: Urgency) -> Result<InferenceResult, InferenceError> {
        self.predict_inspected(bytes, urgency, None).await
    }

    /// Like [`InferencePool::predict_urgent`], for a picture that need not be inferred if `inspect` declines it once it is
    /// decoded.
    pub async fn predict_inspected(
        &self,
        bytes: Bytes,
        urgency: Urgency,
        inspect: Option<PixelInspector>,
    ) -> Result<InferenceResult, InferenceError> {
        let asked = Instant::now();
        let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| InferenceError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        self.0.jobs.add(urgency, InferenceJob { bytes, inspect, asked, reply, permit });
        self.0.mail.send(OwnerMail::See).map_err(|_| InferenceError::Stopped)?;
        answer.await.map_err(|_| InferenceError::Stopped)?
    }

    /// Pictures in the mailbox, not counting those in work and those waiting for space.
    pub fn queued(&self) -> usize {
        self.0.mail.len()
    }

    /// Cost of one image on one replica in milliseconds: measured at the start, then a running mean.
    pub fn cost_ms(&self) -> f64 {
        self.0.cost.ms()
    }

    /// How much longer images take because other work has the processors; `None` before the first batch, and where the
    /// kernel does not tell.
    pub fn contention(&self) -> Option<ProcessorContention> {
        self.0.cost.contention()
    }

    /// Number of owner threads.
    pub fn replicas(&self) -> usize {
        self.0.replicas.load(Ordering::Relaxed)
    }

    /// Largest batch: the best size found when the model was loaded.
    pub fn batch(&self) -> usize {
        self.0.batch.load(Ordering::Relaxed)
    }

    /// Time of the largest batch that is run at present, milliseconds: the best size, or a smaller one for the objective.
    pub fn batch_ms(&self) -> f64 {
        let (best, cost_ms) = (self.batch(), self.cost_ms());
        self.0.settings.objective_ms.map_or(best, |ms| batch_within(ms, best, cost_ms)) as f64 * cost_ms
    }

    /// The serving model; during a swap, the old one. Each [`InferenceResult`] names its own.
    pub fn model(&self) -> Arc<Model> {
        self.0.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ONNX Runtime it runs in.
    pub fn onnx(&self) -> &OnnxRuntime {
        &self.0.onnx
    }

    /// Settings it was started with.
    pub fn settings(&self) -> &InferenceSettings {
        &self.0.settings
    }

    /// Accepts no more, finishes what waits and joins the threads; other handles get [`InferenceError::Stopped`] from
    /// now on.
    pub async fn stop(self) {
        self.0.permits.close();
        for _ in 0..self.replicas() {
            // Fails only if the threads have already ended.
            let _ = self.0.mail.send(OwnerMail::Stop);
        }
        let owners = std::mem::take(&mut *self.0.owners.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            for owner in owners {
                let _ = owner.handle.join();
            }
        });
        let _ = joined.await;
    }
}

/// Opens and warms up replicas. Measures first, unless that was done.
fn load(
    onnx: &OnnxRuntime,
    model: &Arc<Model>,
    settings: &InferenceSettings,
    count: usize,
    measured: Option<(usize, f64)>,
) -> Result<StandbyModel, InferenceError> {
    let mut first = Replica::with_session(onnx, model, settings)?;
    let (batch, cost_ms) = match measured {
        Some((batch, cost_ms)) => (batch.clamp(1, first.max_batch()), cost_ms),
        None => {
            let measured = measure_batches(&mut first)?;
            if measured.best_batch < measured.largest_batch {
                // The runtime keeps the memory of the largest batch it has run.
                drop(first);
                first = Replica::with_session(onnx, model, settings)?;
            }
            (measured.best_batch, measured.best_ms())
        }
    };
    let mut replicas = vec![first];
    while replicas.len() < count {
        replicas.push(Replica::with_session(onnx, model, settings)?);
    }
    for replica in &mut replicas {
        replica.warm_up(batch)?;
    }
    Ok(StandbyModel { replicas, batch, cost_ms })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sample;
    use crate::session::tests::{fixture, onnx};

    fn settings(replicas: usize) -> InferenceSettings {
        InferenceSettings { replicas: Replicas::Count(replicas), ..InferenceSettings::default() }
    }

    fn light() -> Model {
        Model::load(&fixture("fashion-light")).unwrap()
    }

    fn heavy() -> Model {
        Model::load(&fixture("fashion-heavy")).unwrap()
    }

    fn sample() -> Bytes {
        sample::jpeg().into()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3)
    }

    #[tokio::test]
    async fn concurrent_pictures_get_the_same_results_as_single_ones() {
        let expected = Replica::open(&onnx(), &light(), &settings(1)).unwrap().predict(&sample()).unwrap();
        let infer = InferencePool::start(&onnx(), &light(), &settings(2)).unwrap();
        let asked = (0..100).map(|_| {
            let infer = infer.clone();
            tokio::spawn(async move { infer.predict(sample()).await })
        });
        for answer in asked.collect::<Vec<_>>() {
            let seen = answer.await.unwrap().unwrap();
            assert!(close(&seen.logits, &expected.logits));
            assert!((1..=infer.batch()).contains(&seen.timings.batch_size));
        }
        assert_eq!(infer.queued(), 0);
        assert!(infer.cost_ms() > 0.0);
        infer.stop().await;
    }

    #[tokio::test]
    async fn replicas_come_and_go_under_load_and_every_picture_is_answered() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(1)).unwrap();
        let asked: Vec<_> = (0..400)
            .map(|_| {
                let infer = infer.clone();
                tokio::spawn(async move { infer.predict(sample()).await })
            })
            .collect();
        let changed = infer.clone();
        let changing = tokio::task::spawn_blocking(move || {
            for grow in [true, true, false, true, false, false, false] {
                if grow { changed.add_replica().unwrap() } else { changed.remove_replica().unwrap() }
            }
            changed.replicas()
        });
        for answer in asked {
            answer.await.unwrap().unwrap();
        }
        assert_eq!(changing.await.unwrap(), 1, "the last one stays");
        let more = infer.clone();
        let swapping = tokio::task::spawn_blocking(move || {
            let standby = more.preload(&heavy(), None).unwrap();
            // One that starts after the other model was loaded gets it as well.
            more.add_replica().unwrap();
            more.swap(standby).unwrap();
        });
        swapping.await.unwrap();
        for _ in 0..40 {
            assert_eq!(infer.predict(sample()).await.unwrap().model.release, heavy().release);
        }
        assert_eq!(infer.replicas(), 2);
        infer.stop().await;
    }

    #[test]
    fn a_bad_image_in_a_batch_fails_alone() {
        let mut replica = Replica::open(&onnx(), &light(), &settings(1)).unwrap();
        let good = sample::jpeg();
        let expected = replica.predict(&good).unwrap();
        let outcomes = replica.predict_batch(&[&good, &good[..good.len() / 2], b"", &good]);
        let names: Vec<_> =
            outcomes.iter().map(|outcome| outcome.as_ref().map_or_else(InferenceError::name, |_| "seen")).collect();
        assert_eq!(names, ["seen", "image_truncated", "image_empty", "seen"]);
        for seen in outcomes.into_iter().flatten() {
            assert!(close(&seen.logits, &expected.logits));
            assert_eq!(seen.timings.batch_size, 2);
        }
    }

    #[test]
    fn a_picture_that_is_declined_once_decoded_is_not_inferred() {
        let mut replica = Replica::open(&onnx(), &light(), &settings(1)).unwrap();
        let (good, sides) = (sample::jpeg(), std::sync::Mutex::new(Vec::new()));
        let expected = replica.predict(&good).unwrap();
        let sides = Arc::new(sides);
        let image = |wanted: Option<bool>| {
            let inspect = wanted.map(|wanted| {
                let sides = sides.clone();
                let look = move |pixels: &crate::Pixels| {
                    sides.lock().unwrap().push((pixels.width_px, pixels.height_px));
                    wanted
                };
                Box::new(look) as PixelInspector
            });
            crate::replica::BatchImage { bytes: &good, inspect }
        };
        let mut batch = [image(None), image(Some(false)), image(Some(true)), image(Some(false))];
        let outcomes = replica.predict_inspected(&mut batch);
        let names: Vec<_> =
            outcomes.iter().map(|outcome| outcome.as_ref().map_or_else(InferenceError::name, |_| "seen")).collect();
        assert_eq!(names, ["seen", "infer_declined", "seen", "infer_declined"]);
        for seen in outcomes.into_iter().flatten() {
            assert!(close(&seen.logits, &expected.logits));
            assert_eq!(seen.timings.batch_size, 2, "only what is wanted runs");
        }
        let (_, width_px, height_px) = crate::dimensions(&good).unwrap();
        assert_eq!(*sides.lock().unwrap(), [(width_px, height_px); 3]);
        let alone = replica.predict_inspected(&mut [image(Some(false))]);
        assert!(matches!(alone[..], [Err(InferenceError::Declined)]));
    }

    #[test]
    fn a_batch_larger_than_allowed_is_split() {
        let settings = InferenceSettings { max_batch: 2, ..settings(1) };
        let mut replica = Replica::open(&onnx(), &light(), &settings).unwrap();
        let good = sample::jpeg();
        let sizes: Vec<_> = replica
            .predict_batch(&[good.as_slice(); 5])
            .into_iter()
            .map(|seen| seen.unwrap().timings.batch_size)
            .collect();
        assert_eq!(sizes, [2, 2, 2, 2, 1]);
    }

    #[tokio::test]
    async fn after_a_stop_every_handle_is_refused() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(2)).unwrap();
        let other = infer.clone();
        infer.stop().await;
        assert!(matches!(other.predict(sample()).await, Err(InferenceError::Stopped)));
        other.stop().await;
    }

    #[tokio::test]
    async fn waiting_pictures_are_finished_before_a_stop() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(1)).unwrap();
        let mut asked = Box::pin(infer.predict(sample()));
        // Polled once: it is in the mailbox now, unless the replica was so fast that it is done.
        let done = futures_poll(&mut asked);
        infer.clone().stop().await;
        let seen = match done {
            Some(seen) => seen,
            None => asked.await,
        };
        assert!(seen.is_ok());
    }

    fn futures_poll<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn the_most_urgent_of_what_waits_is_taken_first_and_batches_keep_to_the_objective() {
        let settings = InferenceSettings { objective_ms: Some(1), ..settings(1) };
        let infer = InferencePool::start(&onnx(), &heavy(), &settings).unwrap();
        infer.0.cost.set(10.0);
        let asked = [(5, None), (0, Some(100)), (5, Some(4_000)), (9, None), (5, Some(3_000)), (5, None)];
        let now = Instant::now();
        let mut answers = Vec::new();
        for (priority, left_ms) in asked {
            let (reply, answer) = oneshot::channel();
            let permit = infer.0.permits.clone().acquire_owned().await.unwrap();
            let urgency = Urgency { priority, left: left_ms.map(Duration::from_millis) };
            infer.0.jobs.add(urgency, InferenceJob { bytes: sample(), inspect: None, asked: now, reply, permit });
            answers.push(answer);
        }
        // All wait before the first is taken.
        (0..asked.len()).for_each(|_| infer.0.mail.send(OwnerMail::See).unwrap());
        let mut taken = Vec::new();
        for (number, answer) in answers.into_iter().enumerate() {
            let timings = answer.await.unwrap().unwrap().timings;
            assert_eq!(timings.batch_size, 1, "two batches of more take longer than the objective");
            taken.push((timings.waited_us, number));
        }
        taken.sort_unstable();
        let order: Vec<_> = taken.into_iter().map(|(_, number)| number).collect();
        assert_eq!(order, [3, 4, 2, 0, 5, 1]);
        infer.stop().await;
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_handle() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(2)).unwrap();
        let owners = std::mem::take(&mut *infer.0.owners.lock().unwrap());
        assert_eq!(owners.len(), 2);
        let (owners, ways): (Vec<_>, Vec<_>) = owners.into_iter().map(|owner| (owner.handle, owner.orders)).unzip();
        drop((infer, ways));
        let joined = tokio::task::spawn_blocking(move || owners.into_iter().for_each(|owner| owner.join().unwrap()));
        tokio::time::timeout(Duration::from_secs(20), joined).await.expect("the threads still run").unwrap();
    }

    #[tokio::test]
    async fn a_caller_that_leaves_frees_its_mailbox_space() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(1)).unwrap();
        // Little space, so that the test need not fill all of it.
        let space = 64;
        assert_eq!(infer.0.permits.forget_permits(MAX_WAITING - space), MAX_WAITING - space);
        for _ in 0..3 * space {
            let mut asked = Box::pin(infer.predict(sample()));
            let _ = futures_poll(&mut asked);
        }
        assert!(infer.predict(sample()).await.is_ok());
        infer.stop().await;
    }

    /// Logits of a model in a fresh session.
    fn rebuilt(model: &Model) -> Vec<f32> {
        Replica::open(&onnx(), model, &settings(1)).unwrap().predict(&sample()).unwrap().logits
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn during_swaps_every_image_is_answered_by_exactly_one_model() {
        let models = [light(), Model::load(&fixture("fashion-initial")).unwrap()];
        let expected = models.each_ref().map(|model| (model.release.clone(), rebuilt(model)));
        assert!(!close(&expected[0].1, &expected[1].1));
        let infer = InferencePool::start(&onnx(), &models[0], &settings(2)).unwrap();
        let swapping = tokio::task::spawn_blocking({
            let infer = infer.clone();
            move || {
                for number in 1..=10 {
                    let next = &models[number % 2];
                    // Another batch size each time.
                    let standby = infer.preload(next, Some((1 + 7 * (number % 2), 1.0))).unwrap();
                    infer.swap(standby).unwrap();
                    assert_eq!(infer.model().release, next.release);
                }
            }
        });
        let mut seen_of = std::collections::HashMap::new();
        let mut rounds = 0;
        while !swapping.is_finished() || rounds == 0 {
            let asked = (0..40).map(|_| {
                let infer = infer.clone();
                tokio::spawn(async move { infer.predict(sample()).await })
            });
            for answer in asked.collect::<Vec<_>>() {
                let seen = answer.await.unwrap().unwrap();
                let (release, logits) = expected.iter().find(|(release, _)| *release == seen.model.release).unwrap();
                assert!(close(&seen.logits, logits), "{} said what another says", release.short());
                *seen_of.entry(release.clone()).or_insert(0) += 1;
            }
            rounds += 1;
        }
        swapping.await.unwrap();
        assert_eq!(seen_of.len(), 2, "{seen_of:?}");
        let last = infer.predict(sample()).await.unwrap();
        assert_eq!(last.model.release, infer.model().release);
        assert_eq!(infer.0.permits.available_permits(), MAX_WAITING);
        infer.stop().await;
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_loaded_leaves_the_old_one_serving() {
        let infer = InferencePool::start(&onnx(), &light(), &settings(1)).unwrap();
        let mut broken = Model::load(&fixture("fashion-initial")).unwrap();
        broken.labels.pop();
        assert!(matches!(infer.preload(&broken, None), Err(InferenceError::Session(_))));
        assert_eq!(infer.predict(sample()).await.unwrap().model.release, light().release);
        infer.clone().stop().await;
        let standby = infer.preload(&light(), None).unwrap();
        assert!(matches!(infer.swap(standby), Err(InferenceError::Stopped)));
    }

    #[test]
    fn replicas_are_auto_or_a_number_from_one() {
        let read = |text: &str| toml::from_str::<InferenceSettings>(text).map(|settings| settings.replicas);
        assert_eq!(read(""), Ok(Replicas::Auto));
        assert_eq!(read("replicas = \"auto\""), Ok(Replicas::Auto));
        assert_eq!(read("replicas = 3"), Ok(Replicas::Count(3)));
        assert_eq!(read("replicas = \"3\""), Ok(Replicas::Count(3)));
        for wrong in ["replicas = 0", "replicas = \"many\"", "replicas = -1", "replica = 1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let written = toml::to_string(&InferenceSettings::default()).unwrap();
        assert_eq!(toml::from_str::<InferenceSettings>(&written), Ok(InferenceSettings::default()));
    }
}
