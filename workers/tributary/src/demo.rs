//! `tributary demo`: labelled pictures through a site and a cloud on this machine, and what came of it.
//!
//! The servers, the roles and the path are those of `tributary up --sites 1`; only the labels, which make
//! it possible to say what was right, would be missing in real life.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bench::chart::{Chart, Line, Mark};
use bench::curve::{self, Judged};
use bench::report::Machine;
use bench::stats::Latency;
use futures::StreamExt;
use runtime::Shutdown;
use schemas::task::HEADER_LABEL;
use schemas::{Answer, CameraName, Route, SiteName, Stage, TaskId, decode};
use serde_json::json;
use streams::tap::tap;
use streams::{Bus, NatsSettings, Publication, Publisher, subject};
use tokio::sync::{oneshot, watch};
use vision::{InferSettings, Model, Onnx, Replica, softmax};

use crate::settings::Settings;
use crate::site::Running;
use crate::{out, up};

const LIGHT: &str = "fixtures/models/fashion-light";
const HEAVY: &str = "fixtures/models/fashion-heavy";
const PICTURES: &str = "fixtures/images/fashion";
/// The pictures no model was trained on and no site learns from.
const SPLIT: &str = "test";
/// Pictures published and without a first answer, at a time.
const IN_FLIGHT: usize = 16;
/// Everything is answered within seconds; after this something is wrong.
const PATIENCE: Duration = Duration::from_secs(50);
const STOPPED: &str = "stopped before it was through";
/// Points of the curve that are drawn: more cannot be told apart.
const DRAWN: usize = 200;

/// Publish labelled test pictures through a site and a cloud on this machine, and print what came of it.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// How many of the 2,000 test pictures are published.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=2000))]
    images: u32,
    /// Keep the store of the servers in this folder; without it, it is removed at the end.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where the picture goes: accuracy against the share sent up.
    #[arg(long, value_name = "FILE", default_value = "tributary-demo/accuracy.svg")]
    out: PathBuf,
    /// Write all numbers into this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A picture with its true label.
struct Picture {
    bytes: Vec<u8>,
    label: String,
}

/// What became of one picture.
struct Answered {
    /// From publishing to its provisional answer, if it had one.
    provisional: Option<Duration>,
    /// From publishing to its final answer.
    final_: Duration,
    answer: Answer,
}

/// What became of all of them.
struct Walked {
    answered: Vec<Answered>,
    elapsed: Duration,
    sent_up: u64,
    bytes_up: u64,
}

/// Runs the demonstration.
pub async fn command(settings: &Settings, args: &DemoArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let pictures = pictures(args.images as usize)?;
    let (temporary, store) = match &args.keep {
        Some(folder) => (None, folder.clone()),
        None => {
            let folder = tempfile::tempdir().context("no folder for the servers' stores can be made")?;
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    };
    let mut settings = settings.clone();
    settings.recognizer.model = LIGHT.into();
    settings.recognizer.verify.enabled = true;
    settings.verifier.model = Some(HEAVY.into());
    settings.up = crate::settings::UpSettings { store, port: 0, mqtt_port: None, ..settings.up };
    out::line(intro(pictures.len()))?;

    let pictures = Arc::new(pictures);
    let walked = through(&settings, pictures.clone(), &shutdown).await?;
    drop(temporary);
    let (library, again) = (settings.onnxruntime.clone(), pictures.clone());
    let cloud = tokio::task::spawn_blocking(move || cloud_labels(library.as_deref(), &again)).await??;
    let found = Found::of(&pictures, walked, &cloud)?;

    let drawn = found.chart().svg()?;
    write(&args.out, &drawn)?;
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&found.json())? + "\n"))?;
    }
    out::line(found.text())?;
    out::line(outro(args))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// So many of the labelled test pictures, of all labels alike.
fn pictures(count: usize) -> anyhow::Result<Vec<Picture>> {
    let index = Path::new(PICTURES).join("index.csv");
    let text = std::fs::read_to_string(&index)
        .with_context(|| format!("{} is not here: run this in a checkout of the project", index.display()))?;
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let (file, label, split) = (fields.next()?, fields.next()?, fields.next()?);
        (split == SPLIT).then_some((file, label))
    });
    let rows: Vec<(&str, &str)> = rows.collect();
    ensure!(!rows.is_empty(), "{} names no pictures of split {SPLIT}: fetch it anew", index.display());
    let chosen = (0..count.min(rows.len())).filter_map(|number| rows.get(number * rows.len() / count.min(rows.len())));
    let read = |(file, label): &(&str, &str)| {
        let path = Path::new(PICTURES).join(file);
        let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Picture { bytes, label: (*label).to_owned() })
    };
    chosen.map(read).collect()
}

/// Starts everything, walks all pictures through it, stops everything.
async fn through(settings: &Settings, pictures: Arc<Vec<Picture>>, shutdown: &Shutdown) -> anyhow::Result<Walked> {
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
        for listening in &self.listening {
            listening.abort();
        }
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

/// The cloud model's label for every picture, as if all had been sent up.
fn cloud_labels(library: Option<&Path>, pictures: &[Picture]) -> anyhow::Result<Vec<String>> {
    let onnx = Onnx::find_and_load(library)?;
    let model = Model::load(Path::new(HEAVY))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = |pictures: &[Picture]| -> anyhow::Result<Vec<String>> {
        let mut replica = Replica::open(&onnx, &model, &InferSettings::default())?;
        let label = |picture: &Picture| {
            let ratios = softmax(&replica.see(&picture.bytes)?.logits, 1.0);
            Ok(vision::opinion(&model, &ratios).context("the cloud's model gave no scores")?.label)
        };
        pictures.iter().map(label).collect()
    };
    std::thread::scope(|scope| {
        let parts = pictures.chunks(pictures.len().div_ceil(cores).max(1));
        let working: Vec<_> = parts.map(|part| scope.spawn(|| share(part))).collect();
        let mut labels = Vec::with_capacity(pictures.len());
        for thread in working {
            labels.extend(thread.join().map_err(|_| anyhow::anyhow!("recognizing broke off"))??);
        }
        Ok(labels)
    })
}

/// What came of it.
struct Found {
    images: usize,
    /// Final answers by the site, by the cloud, and tombstones.
    by_site: usize,
    by_cloud: usize,
    dead: usize,
    site_alone: f64,
    together: f64,
    cloud_alone: f64,
    sent_up: u64,
    bytes_up: u64,
    image_bytes: usize,
    images_per_s: f64,
    provisional: Latency,
    confident: Latency,
    verified: Latency,
    finals: Latency,
    curve: Vec<(f64, f64)>,
}

impl Found {
    fn of(pictures: &[Picture], walked: Walked, cloud: &[String]) -> anyhow::Result<Self> {
        let images = pictures.len();
        let share = |count: usize| count as f64 / images.max(1) as f64;
        let mut judged = Vec::with_capacity(images);
        let (mut by_site, mut by_cloud, mut dead, mut right) = (0, 0, 0, 0);
        let mut times: [Vec<Duration>; 4] = Default::default();
        let [provisional, confident, verified, finals] = &mut times;
        for ((picture, answered), cloud) in pictures.iter().zip(&walked.answered).zip(cloud) {
            let Answered { answer, final_, .. } = answered;
            provisional.extend(answered.provisional);
            finals.push(*final_);
            let is_right = |label: Option<&str>| label == Some(picture.label.as_str());
            right += usize::from(is_right(answer.label.as_deref()));
            match answer.route {
                Route::Dead => dead += 1,
                Route::Verified | Route::Redirected => {
                    by_cloud += 1;
                    verified.push(*final_);
                }
                Route::Edge | Route::Expired => {
                    by_site += 1;
                    confident.push(*final_);
                }
            }
            // What the site said, whoever had the last word.
            let edge = answer.edge.clone().or_else(|| answer.opinion());
            judged.push(Judged {
                confidence: edge.as_ref().map_or(0.0, |edge| edge.confidence),
                site_right: is_right(edge.as_ref().map(|edge| edge.label.as_str())),
                cloud_right: is_right(Some(cloud)),
            });
        }
        ensure!(judged.len() == images, "{} of {images} pictures were judged", judged.len());
        let [provisional, confident, verified, finals] = times.map(Latency::of);
        Ok(Self {
            images,
            by_site,
            by_cloud,
            dead,
            site_alone: share(judged.iter().filter(|image| image.site_right).count()),
            together: share(right),
            cloud_alone: share(judged.iter().filter(|image| image.cloud_right).count()),
            sent_up: walked.sent_up,
            bytes_up: walked.bytes_up,
            image_bytes: pictures.iter().map(|picture| picture.bytes.len()).sum(),
            images_per_s: images as f64 / walked.elapsed.as_secs_f64(),
            provisional,
            confident,
            verified,
            finals,
            curve: curve::by_confidence(&judged),
        })
    }

    fn share_verified(&self) -> f64 {
        self.by_cloud as f64 / self.images.max(1) as f64
    }

    fn chart(&self) -> Chart {
        let percent = |(share, right): &(f64, f64)| (share * 100.0, right * 100.0);
        let here = (self.share_verified(), self.together);
        Chart {
            title: "Accuracy against what is sent up".into(),
            x_label: "pictures sent up to the cloud, %".into(),
            y_label: "right answers, %".into(),
            lines: vec![
                Line {
                    name: "the most doubtful first".into(),
                    points: curve::thinned(&self.curve, DRAWN).iter().map(percent).collect(),
                },
                Line {
                    name: "as many at random".into(),
                    points: [(0.0, self.site_alone), (1.0, self.cloud_alone)].iter().map(percent).collect(),
                },
            ],
            marks: vec![Mark { name: "this run".into(), point: percent(&here) }],
        }
    }

    fn text(&self) -> String {
        let Self { images, by_site, by_cloud, dead, sent_up, bytes_up, .. } = self;
        let each = self.bytes_up as f64 / self.sent_up.max(1) as f64;
        let all_kb = each * self.images as f64 / 1e3;
        let percent = |share: f64| format!("{:6.2} %", share * 100.0);
        let time = |what: &str, count: usize, latency: &Latency| {
            format!("  {what:<46}{count:>7}{:>10.1}{:>10.1}\n", latency.p50_ms, latency.p99_ms)
        };
        let mut text = format!(
            "Right answers\n  site alone                  {}\n  site and cloud together     {}\n  cloud alone                 {}   if every picture had been sent up\n\n",
            percent(self.site_alone),
            percent(self.together),
            percent(self.cloud_alone)
        );
        text += &format!(
            "Sent up for a verdict\n  pictures                    {sent_up} of {images}: {:.1} %\n  bytes                       {:.0} kB, where all pictures would have been {all_kb:.0} kB\n                              (what the requests carry: the picture and the site's answer about it)\n\n",
            100.0 * *sent_up as f64 / (*images).max(1) as f64,
            *bytes_up as f64 / 1e3,
        );
        text += &format!("{:<48}{:>7}{:>10}{:>10}\n", "Milliseconds from publishing to", "count", "p50", "p99");
        let provisional = self.images - self.by_site - self.dead;
        text += &time("a provisional answer by the site", provisional, &self.provisional);
        text += &time("a final answer by the site, which was sure", *by_site, &self.confident);
        text += &time("a final answer by the cloud", *by_cloud, &self.verified);
        text += &time("any final answer", *images, &self.finals);
        text += &format!(
            "\n{:.0} pictures a second, with up to {IN_FLIGHT} waiting for their first answer; every one was on the disk\nbefore it was acknowledged.\n",
            self.images_per_s
        );
        if *dead > 0 {
            text += &format!("{dead} could not be recognized: see `tributary dead`.\n");
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "demo": "fashion",
            "images": self.images,
            "accuracy_edge_ratio": self.site_alone,
            "accuracy_collaborative_ratio": self.together,
            "accuracy_cloud_ratio": self.cloud_alone,
            "verified_ratio": self.share_verified(),
            "final_by_site": self.by_site,
            "final_by_cloud": self.by_cloud,
            "dead": self.dead,
            "requests_up": self.sent_up,
            "bytes_up": self.bytes_up,
            "bytes_up_counts": "payloads of the verify requests that reached the cloud",
            "image_bytes": self.image_bytes,
            "images_per_s": self.images_per_s,
            "provisional": self.provisional,
            "final": self.finals,
            "final_by_site_latency": self.confident,
            "final_by_cloud_latency": self.verified,
            "curve": { "x": "share sent up", "y": "accuracy", "points": curve::thinned(&self.curve, DRAWN) },
            "machine": Machine::here(Path::new(".")),
        })
    }
}

fn intro(count: usize) -> String {
    format!(
        "\
{count} labelled pictures of clothes go through a site and a cloud, both on this machine.

The site has a small, fast model, the cloud a larger, better one. The site recognizes every picture. When it
is sure, its answer is final. When it is not, it gives a provisional answer at once and sends the picture up;
the cloud's verdict becomes the final answer. Each picture is kept on the disk until that has happened.
"
    )
}

fn outro(args: &DemoArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tributary".into());
    let kept = match &args.keep {
        Some(folder) => format!("The store was kept: {program} up --store {} goes on with it.\n\n", folder.display()),
        None => String::new(),
    };
    format!(
        "\
Picture: {}
It shows how many answers are right for each share of pictures sent up, this run marked on it.

{kept}Try next:
  {program} demo --set recognizer.gate.min_confidence_ratio=0.95
      ask the cloud more often: more right answers, more bytes
  {program} up --model {LIGHT} --cloud-model {HEAVY}
      the same, kept running for pictures of your own
  {program} publish {PICTURES}/bag --camera cam-1
      from another terminal, while that runs; then `{program} answers`",
        args.out.display()
    )
}
