//! The notifier: reads answers and what is kept of cameras from their streams, publishes them, and saves its position.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use rumqttc::{AsyncClient, ConnectionError, Event, MqttOptions, Packet, QoS};
use runtime::consumer::WorkerStats;
use runtime::{Fault, Shutdown, heartbeat};
use schemas::{Answer, FaultNote, Role, SiteName, TaskId, codec, decode};
use streams::backoff::wait_about;
use streams::fleet::Ledger;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, Publication, subject, topology};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use crate::settings::{NotifierSettings, split_address};

const ROLE: Role = Role::Notifier;
/// Most messages in flight to the MQTT listener; a guess.
const WINDOW: usize = 32;
/// Interval of saving the position in the stream.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before publishing resumes after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Silence on the MQTT connection before it is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Why publishing was interrupted. It resumes after a second.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error("MQTT: {0}")]
    Mqtt(#[from] Box<ConnectionError>),
    #[error("MQTT: the client's queue is full or closed")]
    Client,
    #[error("the server was restarted")]
    Restarted,
}

/// Publishes a site's answers until told to stop.
///
/// # Errors
/// The settings are invalid, or the password's file cannot be read.
pub async fn run(bus: Bus, site: SiteName, settings: &NotifierSettings, shutdown: Shutdown) -> Result<(), Fault> {
    let listener = MqttListener::new(&site, settings)?;
    let stats = Arc::new(WorkerStats::default());
    let fault = Mutex::new(None);
    let pace = heartbeat::HeartbeatPace::default();
    let heartbeats = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site.clone()),
        stats.clone(),
        shutdown.clone(),
        pace,
        |beat| {
            beat.faults = fault.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        },
    );
    let notifier = Notifier { bus: &bus, site: &site, listener, stats: &stats, fault: &fault, shutdown: &shutdown };
    tracing::info!(role = ROLE.as_str(), mqtt = settings.mqtt, "started");
    let publishing = async {
        while !shutdown.is_requested() {
            if bus.is_gone().await {
                shutdown.request();
                return Err(Fault::Stop(runtime::fault::client_gone()));
            }
            if let Err(error) = notifier.publish_answers().await {
                notifier.record_interruption(&error);
            }
            tokio::select! {
                () = wait_about(RETRY_DELAY) => {}
                () = shutdown.wait_for_request() => {}
            }
        }
        Ok(())
    };
    let (ended, ()) = tokio::join!(publishing, heartbeats);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

/// Options of the MQTT connection, if MQTT is configured.
#[derive(Debug)]
struct MqttListener(Option<MqttOptions>);

impl MqttListener {
    fn new(site: &SiteName, settings: &NotifierSettings) -> Result<Self, Fault> {
        let Some(address) = &settings.mqtt else { return Ok(Self(None)) };
        let refuse = |reason: String| {
            let remedy = "correct the settings in section [notifier]";
            Fault::Stop(FaultNote::new("notifier_settings", reason, remedy))
        };
        let (host, port) = split_address(address).map_err(|why| refuse(format!("notifier.mqtt: {why}")))?;
        // A broker disconnects the older of two clients with one name, so each notifier has a name of its own.
        let name = format!("tributary-notifier-{site}-{}", TaskId::new_random());
        let mut options = MqttOptions::new(name, host, port);
        options.set_keep_alive(KEEP_ALIVE);
        if let Some(user) = &settings.mqtt_user {
            let password = match &settings.mqtt_password_file {
                Some(path) => std::fs::read_to_string(path)
                    .map_err(|error| refuse(format!("notifier.mqtt_password_file {}: {error}", path.display())))?,
                None => String::new(),
            };
            options.set_credentials(user, password.trim_end());
        }
        Ok(Self(Some(options)))
    }
}

struct Notifier<'a> {
    bus: &'a Bus,
    site: &'a SiteName,
    listener: MqttListener,
    stats: &'a WorkerStats,
    /// Why answers are not published at present.
    fault: &'a Mutex<Option<FaultNote>>,
    shutdown: &'a Shutdown,
}

impl Notifier<'_> {
    /// Publishes answers from the saved position on, until something fails or a stop is requested.
    async fn publish_answers(&self) -> Result<(), NotifyError> {
        let mut position = NotifyPosition::read(self.bus, self.site).await?;
        let ended = self.publish_from(&mut position).await;
        position.write().await?;
        ended
    }

    async fn publish_from(&self, position: &mut NotifyPosition) -> Result<(), NotifyError> {
        let subjects = vec![subject::final_answers(self.site, None)];
        let range = StreamRange { subjects, from_sequence: Some(position.published + 1), ..StreamRange::default() };
        let mut records = pin!(reader::follow_range(self.bus, topology::ANSWERS, range).await?);
        // The stream keeps the latest message of each subject: all of them, and then what comes.
        let subjects = vec![subject::camera_healths(self.site), subject::camera_states(self.site)];
        let range = StreamRange { subjects, ..StreamRange::default() };
        let mut camera_records = pin!(reader::follow_range(self.bus, topology::CAMERAS, range).await?);
        let server = self.bus.server_id();
        let mut outlet = NotifyOutlet::open(self.bus, &self.listener);
        if let NotifyOutlet::Nats(_) = outlet {
            // An MQTT connection must be established first.
            self.set_fault(None);
        }
        let mut tick = interval(SAVE_INTERVAL);
        loop {
            tokio::select! {
                heard = outlet.poll_outlet() => match heard? {
                    OutletEvent::Connected => drop(self.set_fault(None)),
                    OutletEvent::Published(sequence) => position.published = sequence.unwrap_or(position.published),
                },
                record = camera_records.next(), if outlet.has_capacity() => {
                    outlet.publish_camera(&record.ok_or(NotifyError::Restarted)??).await?;
                }
                record = records.next(), if outlet.has_capacity() => {
                    let record = record.ok_or(NotifyError::Restarted)??;
                    if let Some(sequence) = outlet.publish_answer(self.site, &record).await? {
                        position.published = sequence;
                    }
                    self.stats.finished.fetch_add(1, Ordering::Relaxed);
                }
                _ = tick.tick() => {
                    if self.bus.server_id() != server {
                        return Err(NotifyError::Restarted);
                    }
                    position.write().await?;
                }
                () = self.shutdown.wait_for_request() => break,
            }
        }
        outlet.close(&mut position.published).await;
        Ok(())
    }

    fn record_interruption(&self, error: &NotifyError) {
        if matches!(error, NotifyError::Restarted) {
            return;
        }
        let reason = format!("answers and the health of cameras are not published in JSON: {error}");
        let remedy = "check that the address, user and password in section [notifier] are those of the MQTT listener; publishing \
                      resumes where it stopped";
        if self.set_fault(Some(FaultNote::new("answers_not_told", reason, remedy))).is_none() {
            tracing::warn!(%error, "notifier interrupted; retrying");
        }
    }

    /// Sets the current fault and returns the previous one.
    fn set_fault(&self, fault: Option<FaultNote>) -> Option<FaultNote> {
        std::mem::replace(&mut *self.fault.lock().unwrap_or_else(PoisonError::into_inner), fault)
    }
}

/// How far a site's answers were published.
struct NotifyPosition {
    /// Sequence of the last published answer.
    published: u64,
    noted: Option<u64>,
    ledger: Ledger,
    note: String,
}

impl NotifyPosition {
    async fn read(bus: &Bus, site: &SiteName) -> Result<Self, CarryError> {
        let (ledger, note) = (Ledger::open(bus).await?, subject::notifier_note(site));
        let noted = ledger.read(&note).await?.and_then(|text| text.parse().ok());
        let last = reader::stream_level(bus, topology::ANSWERS).await?.last_sequence;
        // Answers from before the notifier was enabled are not published; a recreated stream starts at 1 again.
        let published = noted.unwrap_or(last).min(last);
        Ok(Self { published, noted, ledger, note })
    }

    async fn write(&mut self) -> Result<(), CarryError> {
        if self.noted != Some(self.published) {
            self.ledger.write(&self.note, self.published.to_string()).await?;
            self.noted = Some(self.published);
        }
        Ok(())
    }
}

/// Events of an outlet.
enum OutletEvent {
    Connected,
    /// A message was published; with a sequence, all answers up to it.
    Published(Option<u64>),
}

/// Where answers are published.
enum NotifyOutlet<'a> {
    Nats(&'a Bus),
    Mqtt {
        client: AsyncClient,
        /// Relevant packets of the listener, in order.
        packets: mpsc::Receiver<Result<Packet, Box<ConnectionError>>>,
        /// What is in flight, in order: the sequences of answers, and `None` for what is about a camera.
        waiting: VecDeque<Option<u64>>,
    },
}

impl<'a> NotifyOutlet<'a> {
    fn open(bus: &'a Bus, listener: &MqttListener) -> Self {
        let Some(options) = &listener.0 else { return Self::Nats(bus) };
        let (client, mut events) = AsyncClient::new(options.clone(), 2 * WINDOW);
        let (sender, packets) = mpsc::channel(2 * WINDOW);
        // On a task of its own, because the library's polling must not be cancelled.
        tokio::spawn(async move {
            loop {
                let heard = match events.poll().await {
                    Ok(Event::Incoming(packet @ (Packet::PubAck(_) | Packet::ConnAck(_)))) => Ok(packet),
                    Ok(_) if sender.is_closed() => return,
                    Ok(_) => continue,
                    Err(error) => Err(Box::new(error)),
                };
                let broken = heard.is_err();
                // A failed connection is opened again, and what was in flight is read again from the stream.
                if sender.send(heard).await.is_err() || broken {
                    return;
                }
            }
        });
        Self::Mqtt { client, packets, waiting: VecDeque::new() }
    }

    fn has_capacity(&self) -> bool {
        match self {
            Self::Nats(_) => true,
            Self::Mqtt { waiting, .. } => waiting.len() < WINDOW,
        }
    }

    /// Publishes one answer; returns the sequence up to which all are published, if known at once.
    async fn publish_answer(&mut self, site: &SiteName, record: &StoredMessage) -> Result<Option<u64>, NotifyError> {
        let sequence = record.sequence;
        let answer = decode::<Answer>(&record.payload).ok().zip(codec::to_json(&record.payload));
        let Some((answer, json)) = answer else {
            tracing::warn!(sequence, "answer unreadable; skipped");
            return Ok(None);
        };
        let subject = subject::answer_json(site, &answer.camera);
        let id = answer.task.to_string();
        Ok(self.publish(subject, json.to_string(), id, Some(sequence)).await?.then_some(sequence))
    }

    /// Publishes what is stored about a camera.
    async fn publish_camera(&mut self, record: &StoredMessage) -> Result<(), NotifyError> {
        let sequence = record.sequence;
        let stored = subject::camera_json(&record.subject).zip(codec::to_json(&record.payload));
        let Some((subject, json)) = stored else {
            tracing::warn!(sequence, "message about a camera unreadable; skipped");
            return Ok(());
        };
        self.publish(subject, json.to_string(), TaskId::new_random().to_string(), None).await.map(drop)
    }

    /// Publishes a message; returns whether that is all. Over MQTT its acknowledgement follows, with `sequence`.
    async fn publish(
        &mut self,
        subject: String,
        json: String,
        id: String,
        sequence: Option<u64>,
    ) -> Result<bool, NotifyError> {
        match self {
            Self::Nats(bus) => {
                bus.publish_unstored(&Publication::with_id(subject, json, id)).await?;
                Ok(true)
            }
            Self::Mqtt { client, waiting, .. } => {
                let topic = subject.replace('.', "/");
                client.try_publish(topic, QoS::AtLeastOnce, true, json).map_err(|_| NotifyError::Client)?;
                waiting.push_back(sequence);
                Ok(false)
            }
        }
    }

    /// The next event; over NATS there are none.
    async fn poll_outlet(&mut self) -> Result<OutletEvent, NotifyError> {
        match self {
            Self::Nats(_) => std::future::pending().await,
            Self::Mqtt { packets, waiting, .. } => loop {
                match packets.recv().await.ok_or(NotifyError::Client)?? {
                    Packet::PubAck(_) => {
                        if let Some(sequence) = waiting.pop_front() {
                            return Ok(OutletEvent::Published(sequence));
                        }
                    }
                    _ => return Ok(OutletEvent::Connected),
                }
            },
        }
    }

    /// Waits briefly for what is in flight.
    async fn close(mut self, published: &mut u64) {
        let until = Instant::now() + RETRY_DELAY;
        while matches!(&self, Self::Mqtt { waiting, .. } if !waiting.is_empty()) {
            match tokio::time::timeout_at(until, self.poll_outlet()).await {
                Ok(Ok(OutletEvent::Published(sequence))) => *published = sequence.unwrap_or(*published),
                Ok(Ok(OutletEvent::Connected)) => {}
                _ => return,
            }
        }
        match self {
            Self::Nats(bus) => bus.flush_published().await,
            Self::Mqtt { client, .. } => drop(client.try_disconnect()),
        }
    }
}
