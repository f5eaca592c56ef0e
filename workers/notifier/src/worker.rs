//! The path of one answer: read from the stream, told, and its place noted.

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
use streams::fleet::Ledger;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, Publication, subject, topology};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use crate::settings::{NotifierSettings, split_address};

const ROLE: Role = Role::Notifier;
/// Answers under way to the MQTT listener; a guess.
const WINDOW: usize = 32;
/// How often the place in the stream is noted.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Before telling goes on after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Silence on the MQTT connection before it is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Why telling was interrupted. It goes on after a second.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error("MQTT: {0}")]
    Mqtt(#[from] Box<ConnectionError>),
    #[error("MQTT: the client takes nothing more")]
    Client,
    #[error("the server is another process")]
    Restarted,
}

/// Tells a site's answers until it is told to stop.
///
/// # Errors
/// When the settings cannot work, or the password's file cannot be read.
pub async fn run(bus: Bus, site: SiteName, settings: &NotifierSettings, shutdown: Shutdown) -> Result<(), Fault> {
    let listener = MqttListener::new(&site, settings)?;
    let tally = Arc::new(WorkerStats::default());
    let fault = Mutex::new(None);
    let pulse = heartbeat::HeartbeatPace::default();
    let life = heartbeat::send_heartbeats(
        bus.clone(),
        ROLE,
        Some(site.clone()),
        tally.clone(),
        shutdown.clone(),
        pulse,
        |beat| {
            beat.faults = fault.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        },
    );
    let notifier = Notifier { bus: &bus, site: &site, listener, tally: &tally, fault: &fault, shutdown: &shutdown };
    tracing::info!(role = ROLE.as_str(), mqtt = settings.mqtt, "started");
    let telling = async {
        while !shutdown.is_requested() {
            if bus.is_gone().await {
                shutdown.request();
                return Err(Fault::Stop(runtime::fault::client_gone()));
            }
            if let Err(error) = notifier.tell_answers().await {
                notifier.interrupted(&error);
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_DELAY) => {}
                () = shutdown.wait_for_request() => {}
            }
        }
        Ok(())
    };
    let (ended, ()) = tokio::join!(telling, life);
    tracing::info!(role = ROLE.as_str(), "stopped");
    ended
}

/// How the MQTT listener is reached, if there is one.
#[derive(Debug)]
struct MqttListener(Option<MqttOptions>);

impl MqttListener {
    fn new(site: &SiteName, settings: &NotifierSettings) -> Result<Self, Fault> {
        let Some(address) = &settings.mqtt else { return Ok(Self(None)) };
        let refuse = |reason: String| {
            let remedy = "correct the settings under [notifier]";
            Fault::Stop(FaultNote::new("notifier_settings", reason, remedy))
        };
        let (host, port) = split_address(address).map_err(|why| refuse(format!("notifier.mqtt: {why}")))?;
        // A broker ends the older of two clients of one name: a second notifier of a site has its own.
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
    tally: &'a WorkerStats,
    /// Why answers are not told at the moment.
    fault: &'a Mutex<Option<FaultNote>>,
    shutdown: &'a Shutdown,
}

impl Notifier<'_> {
    /// Tells answers from where it stopped, until something breaks or a stop is wanted.
    async fn tell_answers(&self) -> Result<(), NotifyError> {
        let mut place = NotifyPosition::read(self.bus, self.site).await?;
        let ended = self.tell_from(&mut place).await;
        place.write().await?;
        ended
    }

    async fn tell_from(&self, place: &mut NotifyPosition) -> Result<(), NotifyError> {
        let subjects = vec![subject::final_answers(self.site, None)];
        let stretch = StreamRange { subjects, from_sequence: Some(place.told + 1), ..StreamRange::default() };
        let mut records = pin!(reader::follow_range(self.bus, topology::ANSWERS, stretch).await?);
        let server = self.bus.server_id();
        let mut outlet = NotifyOutlet::open(self.bus, &self.listener);
        if let NotifyOutlet::Nats(_) = outlet {
            // Over MQTT a connection has to stand first.
            self.set_fault(None);
        }
        let mut tick = interval(NOTE_EVERY);
        loop {
            tokio::select! {
                heard = outlet.poll_outlet() => match heard? {
                    OutletEvent::Connected => drop(self.set_fault(None)),
                    OutletEvent::Told(sequence) => place.told = sequence,
                },
                record = records.next(), if outlet.has_room() => {
                    let record = record.ok_or(NotifyError::Restarted)??;
                    if let Some(sequence) = outlet.notify_answer(self.site, &record).await? {
                        place.told = sequence;
                    }
                    self.tally.finished.fetch_add(1, Ordering::Relaxed);
                }
                _ = tick.tick() => {
                    if self.bus.server_id() != server {
                        return Err(NotifyError::Restarted);
                    }
                    place.write().await?;
                }
                () = self.shutdown.wait_for_request() => break,
            }
        }
        outlet.close(&mut place.told).await;
        Ok(())
    }

    fn interrupted(&self, error: &NotifyError) {
        if matches!(error, NotifyError::Restarted) {
            return;
        }
        let reason = format!("answers are not told in JSON: {error}");
        let remedy = "see whether the address, user and password under [notifier] are those of the MQTT listener; answers are \
                      told from where it stopped";
        if self.set_fault(Some(FaultNote::new("answers_not_told", reason, remedy))).is_none() {
            tracing::warn!(%error, "telling answers was interrupted; trying again");
        }
    }

    /// Says how it stands; what was said before.
    fn set_fault(&self, fault: Option<FaultNote>) -> Option<FaultNote> {
        std::mem::replace(&mut *self.fault.lock().unwrap_or_else(PoisonError::into_inner), fault)
    }
}

/// How far a site's answers were told.
struct NotifyPosition {
    /// Sequence of the last answer told.
    told: u64,
    noted: Option<u64>,
    ledger: Ledger,
    note: String,
}

impl NotifyPosition {
    async fn read(bus: &Bus, site: &SiteName) -> Result<Self, CarryError> {
        let (ledger, note) = (Ledger::open(bus).await?, subject::notifier_note(site));
        let noted = ledger.read(&note).await?.and_then(|text| text.parse().ok());
        let last = reader::stream_level(bus, topology::ANSWERS).await?.last_sequence;
        // Nobody asked for what was answered before this was switched on; a stream made anew counts from 1 again.
        let told = noted.unwrap_or(last).min(last);
        Ok(Self { told, noted, ledger, note })
    }

    async fn write(&mut self) -> Result<(), CarryError> {
        if self.noted != Some(self.told) {
            self.ledger.write(&self.note, self.told.to_string()).await?;
            self.noted = Some(self.told);
        }
        Ok(())
    }
}

/// What comes back from where answers are told.
enum OutletEvent {
    Connected,
    /// All answers up to this sequence are told.
    Told(u64),
}

/// Where answers are told.
enum NotifyOutlet<'a> {
    Nats(&'a Bus),
    Mqtt {
        client: AsyncClient,
        /// Packets of the listener that matter, in order.
        packets: mpsc::Receiver<Result<Packet, Box<ConnectionError>>>,
        /// Sequences under way, in order.
        waiting: VecDeque<u64>,
    },
}

impl<'a> NotifyOutlet<'a> {
    fn open(bus: &'a Bus, listener: &MqttListener) -> Self {
        let Some(options) = &listener.0 else { return Self::Nats(bus) };
        let (client, mut events) = AsyncClient::new(options.clone(), 2 * WINDOW);
        let (sender, packets) = mpsc::channel(2 * WINDOW);
        // On a task of its own, for the library's own waiting must not be broken off.
        tokio::spawn(async move {
            loop {
                let heard = match events.poll().await {
                    Ok(Event::Incoming(packet @ (Packet::PubAck(_) | Packet::ConnAck(_)))) => Ok(packet),
                    Ok(_) if sender.is_closed() => return,
                    Ok(_) => continue,
                    Err(error) => Err(Box::new(error)),
                };
                let broken = heard.is_err();
                // A connection that broke is made anew, and what was under way is read again from the stream.
                if sender.send(heard).await.is_err() || broken {
                    return;
                }
            }
        });
        Self::Mqtt { client, packets, waiting: VecDeque::new() }
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Nats(_) => true,
            Self::Mqtt { waiting, .. } => waiting.len() < WINDOW,
        }
    }

    /// Tells one answer; the sequence up to which all are told, if that is known at once.
    async fn notify_answer(&mut self, site: &SiteName, record: &StoredMessage) -> Result<Option<u64>, NotifyError> {
        let sequence = record.sequence;
        let answer = decode::<Answer>(&record.payload).ok().zip(codec::to_json(&record.payload));
        let Some((answer, json)) = answer else {
            tracing::warn!(sequence, "an answer that cannot be read is not told");
            return Ok(None);
        };
        let (subject, json) = (subject::answer_json(site, &answer.camera), json.to_string());
        match self {
            Self::Nats(bus) => {
                bus.publish_unstored(&Publication::with_id(subject, json, answer.task.to_string())).await?;
                Ok(Some(sequence))
            }
            Self::Mqtt { client, waiting, .. } => {
                let topic = subject.replace('.', "/");
                client.try_publish(topic, QoS::AtLeastOnce, true, json).map_err(|_| NotifyError::Client)?;
                waiting.push_back(sequence);
                Ok(None)
            }
        }
    }

    /// Waits for what comes back; over NATS nothing does.
    async fn poll_outlet(&mut self) -> Result<OutletEvent, NotifyError> {
        match self {
            Self::Nats(_) => std::future::pending().await,
            Self::Mqtt { packets, waiting, .. } => loop {
                match packets.recv().await.ok_or(NotifyError::Client)?? {
                    Packet::PubAck(_) => {
                        if let Some(sequence) = waiting.pop_front() {
                            return Ok(OutletEvent::Told(sequence));
                        }
                    }
                    _ => return Ok(OutletEvent::Connected),
                }
            },
        }
    }

    /// Waits for what is under way, not for long.
    async fn close(mut self, told: &mut u64) {
        let until = Instant::now() + RETRY_DELAY;
        while matches!(&self, Self::Mqtt { waiting, .. } if !waiting.is_empty()) {
            match tokio::time::timeout_at(until, self.poll_outlet()).await {
                Ok(Ok(OutletEvent::Told(sequence))) => *told = sequence,
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
