//! NATS servers in memory, for tests under simulated time: the same topology plans, the same operations, and a network
//! whose faults are drawn from a seed.
//!
//! [`MemoryCluster`] interprets the stream and consumer settings that [`topology`](crate::topology) plans, so what is
//! added there works here without a second table. A connection to it is an ordinary [`Bus`]. tests/contract.rs runs the
//! same tests on a real server and on this one, and so shows which operations it supports and that they behave alike.
//! An operation that it does not support fails with an error that names it. Never compiled into the product.

mod link;
mod stream;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemas::task::HEADER_MESSAGE_ID;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::connect::Bus;
use crate::tap::TapMessage;
use crate::topology::{ADVISORIES, TopologyPlan};

pub(crate) use self::link::{MemoryBucket, MemoryDelivery, MemoryLink, MemoryPull};
use self::stream::{IncomingMessage, MemoryStream, Moment, StoreRefusal, StoredAt, subject_matches};

/// Start of every simulation, nanoseconds since the epoch: 2026-01-01.
const START_NS: i128 = 1_767_225_600_000_000_000;

/// Network faults on the way to a server and back. The cluster's seed decides anew for each message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetworkFaults {
    /// Share of delivery acknowledgements that are lost, 0 to 1.
    pub lost_ack_ratio: f64,
    /// Share of requests that the server carries out but whose reply is lost, 0 to 1.
    pub lost_reply_ratio: f64,
    /// Share of requests that are lost on their way to the server, 0 to 1.
    pub lost_request_ratio: f64,
    /// Share of deliveries that are lost on their way to the puller, 0 to 1.
    pub lost_delivery_ratio: f64,
    /// Share of messages at which a follower of a stream loses its connection, 0 to 1.
    pub broken_follow_ratio: f64,
    /// Longest delay of one trip to a server or back.
    pub max_delay: Duration,
    /// Longest additional delay of one trip over the link between two servers.
    pub max_link_delay: Duration,
}

/// One event in a cluster's history, from which an oracle judges a test.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClusterEvent {
    /// A stream stored a message.
    Stored {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// Its sequence in that stream.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// Its `Nats-Msg-Id`, if it has one.
        message_id: Option<String>,
        /// Simulated time, nanoseconds since the epoch.
        stored_at_ns: i128,
    },
    /// A full stream refused a message.
    Refused {
        /// The server.
        server: String,
        /// The message's subject.
        subject: String,
    },
    /// A consumer delivered a message to a puller; the network may still lose it.
    Delivered {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The consumer.
        durable: String,
        /// The message's sequence.
        sequence: u64,
        /// Number of this delivery, from 1.
        attempts: u64,
    },
    /// An acknowledgement reached the server and finished a message.
    Acknowledged {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The consumer.
        durable: String,
        /// The message's sequence.
        sequence: u64,
    },
    /// A client deleted a message.
    Deleted {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The message's sequence.
        sequence: u64,
    },
}

/// Servers in memory and the network between them. Clones share both.
#[derive(Clone)]
pub struct MemoryCluster(Arc<ClusterShared>);

struct ClusterShared {
    state: Mutex<ClusterState>,
    /// Notified whenever a task that waits for a server or a message should check again.
    changed: Notify,
    started_at: Instant,
}

struct ClusterState {
    servers: BTreeMap<String, MemoryServer>,
    /// Servers whose link to the other servers is cut.
    cut: BTreeSet<String>,
    faults: NetworkFaults,
    rng: StdRng,
    events: Vec<ClusterEvent>,
    /// Requests made so far, answered or not.
    requests: u64,
}

struct MemoryServer {
    name: String,
    streams: BTreeMap<String, MemoryStream>,
    is_up: bool,
    /// Increases with every start.
    incarnation: u64,
    /// Streams that a test has declared full: they refuse every message.
    full: BTreeSet<String>,
    taps: Vec<(String, mpsc::UnboundedSender<TapMessage>)>,
}

thread_local! {
    /// Seed of the next backoff on this thread; absent outside a simulation.
    static JITTER_SEED: Cell<Option<u64>> = const { Cell::new(None) };
    /// Start of this thread's simulation.
    static STARTED_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Simulated time, nanoseconds since the epoch; absent outside a simulation.
pub fn simulated_now_ns() -> Option<i128> {
    STARTED_AT.get().map(|started_at| ns_since(started_at, Instant::now()))
}

fn ns_since(started_at: Instant, now: Instant) -> i128 {
    let since = now.saturating_duration_since(started_at).as_nanos();
    START_NS.saturating_add(i128::try_from(since).unwrap_or(0))
}

/// Seed for the next backoff, derived from the simulation's seed; absent outside a simulation.
pub(crate) fn next_jitter_seed() -> Option<u64> {
    let seed = JITTER_SEED.get()?;
    JITTER_SEED.set(Some(seed.wrapping_add(1)));
    Some(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

impl MemoryCluster {
    /// Creates a cluster without servers. Needs a single-threaded runtime with paused time. The seed decides which
    /// faults occur and how long each backoff takes.
    pub fn new(seed: u64) -> Self {
        let state = ClusterState {
            servers: BTreeMap::new(),
            cut: BTreeSet::new(),
            faults: NetworkFaults::default(),
            rng: StdRng::seed_from_u64(seed),
            events: Vec::new(),
            requests: 0,
        };
        let started_at = Instant::now();
        JITTER_SEED.set(Some(seed.wrapping_shl(20)));
        STARTED_AT.set(Some(started_at));
        Self(Arc::new(ClusterShared { state: Mutex::new(state), changed: Notify::new(), started_at }))
    }

    /// Adds a server with the plan's streams and consumers. Its name is also its JetStream domain.
    pub fn add_server(&self, name: &str, plan: &TopologyPlan) {
        let mut streams: BTreeMap<String, MemoryStream> =
            plan.streams.iter().map(|config| (config.name.clone(), MemoryStream::new(config.clone()))).collect();
        for (stream, consumer) in &plan.consumers {
            if let Some(stream) = streams.get_mut(*stream) {
                stream.add_consumer(consumer.clone());
            }
        }
        let name = name.to_owned();
        let server = MemoryServer {
            name: name.clone(),
            streams,
            is_up: true,
            incarnation: 1,
            full: BTreeSet::new(),
            taps: Vec::new(),
        };
        self.state().servers.insert(name, server);
    }

    /// Connects to a server. [`Bus::in_domain`] reaches another server over the link.
    pub fn connect(&self, server: &str) -> Bus {
        Bus::in_memory(MemoryLink::new(self.clone(), server))
    }

    /// Kills the client that holds this connection, with its clones: nothing it sends arrives any more, and its
    /// unacknowledged messages are redelivered to others after the acknowledgement wait.
    pub fn kill_client(&self, bus: &Bus) {
        if let Some(link) = bus.memory() {
            link.kill();
        }
    }

    /// Sets the network's faults from now on.
    pub fn set_faults(&self, faults: NetworkFaults) {
        self.state().faults = faults;
    }

    /// Cuts or restores a server's link to the other servers.
    pub fn set_link_cut(&self, server: &str, is_cut: bool) {
        let mut state = self.state();
        match is_cut {
            true => state.cut.insert(server.into()),
            false => state.cut.remove(server),
        };
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Kills a server. Acknowledgements from the last `forgets` had not reached its disk, so those messages are
    /// redelivered.
    pub fn stop_server(&self, server: &str, forgets: Duration) {
        let now = self.now();
        if let Some(server) = self.state().servers.get_mut(server) {
            server.is_up = false;
            let since = now.at.checked_sub(forgets).unwrap_or(now.at);
            server.streams.values_mut().for_each(|stream| stream.forget_acks_since(since, now));
        }
        self.0.changed.notify_waiters();
    }

    /// Restarts a killed server.
    pub fn start_server(&self, server: &str) {
        if let Some(server) = self.state().servers.get_mut(server) {
            server.is_up = true;
            server.incarnation += 1;
        }
        self.0.changed.notify_waiters();
    }

    /// Declares a stream full, so that it refuses every message, or clears that.
    pub fn set_stream_full(&self, server: &str, stream: &str, is_full: bool) {
        if let Some(server) = self.state().servers.get_mut(server) {
            match is_full {
                true => server.full.insert(stream.into()),
                false => server.full.remove(stream),
            };
        }
    }

    /// History so far, oldest first.
    pub fn events(&self) -> Vec<ClusterEvent> {
        self.state().events.clone()
    }

    /// Number of requests made so far to all servers, answered or not.
    pub fn request_count(&self) -> u64 {
        self.state().requests
    }

    /// Simulated time, milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.now().ns / 1_000_000).unwrap_or(0)
    }

    fn now(&self) -> Moment {
        let at = Instant::now();
        Moment { at, ns: ns_since(self.0.started_at, at) }
    }

    fn state(&self) -> MutexGuard<'_, ClusterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterState {
    fn draw(&mut self, ratio: f64) -> bool {
        // Do not advance the generator when the fault is off, so that its seeds stay valid for tests without this
        // fault.
        ratio > 0.0 && self.rng.random_bool(ratio.min(1.0))
    }

    fn draw_delay(&mut self, longest: Duration) -> Duration {
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(if longest_us == 0 { 0 } else { self.rng.random_range(0..=longest_us) })
    }

    /// Whether a message from one server can reach another.
    fn is_reachable(&self, home: &str, target: &str) -> bool {
        let is_up = |name: &str| self.servers.get(name).is_some_and(|server| server.is_up);
        is_up(home) && is_up(target) && (home == target || !self.cut.contains(home) && !self.cut.contains(target))
    }

    /// Returns a stream after expiring old messages and publishing the advisories that are due.
    fn stream(&mut self, server: &str, stream: &str, now: Moment) -> Option<&mut MemoryStream> {
        let server = self.servers.get_mut(server)?;
        server.expire(stream, now);
        server.streams.get_mut(stream)
    }

    /// Stores a message at a server, and records it in the history.
    fn publish(&mut self, server: &str, incoming: IncomingMessage, now: Moment) -> Result<StoredAt, StoreRefusal> {
        let Some(server) = self.servers.get_mut(server) else { return Err(StoreRefusal::NoStream) };
        let name = server.name.clone();
        let message_id = incoming.header(HEADER_MESSAGE_ID).map(str::to_owned);
        let subject = incoming.subject.clone();
        let stored = match server.publish(incoming, now) {
            Ok(stored) => stored,
            Err(refusal) => {
                if matches!(refusal, StoreRefusal::Full(_)) {
                    self.events.push(ClusterEvent::Refused { server: name, subject });
                }
                return Err(refusal);
            }
        };
        for (stream, sequence, subject) in stored.places {
            let (server, message_id) = (name.clone(), message_id.clone());
            let event = ClusterEvent::Stored { server, stream, sequence, subject, message_id, stored_at_ns: now.ns };
            self.events.push(event);
        }
        Ok(stored.at)
    }

    /// Name of the server whose stream accepts a subject, the client's own server first.
    fn server_of(&self, home: &str, subject: &str) -> Option<String> {
        let accepts = |server: &MemoryServer| server.streams.values().any(|stream| stream.accepts(subject));
        if self.servers.get(home).is_some_and(accepts) {
            return Some(home.to_owned());
        }
        self.servers.values().find(|server| accepts(server)).map(|server| server.name.clone())
    }
}

/// Result of storing a message: its position, and every stream that holds it, copies included.
struct StoredIn {
    at: StoredAt,
    /// Stream, sequence and subject.
    places: Vec<(String, u64, String)>,
}

impl MemoryServer {
    /// Expires old messages of a stream and publishes a max-deliveries advisory for each message that reached the
    /// limit.
    fn expire(&mut self, name: &str, now: Moment) {
        let notices = self.streams.get_mut(name).map(|stream| stream.expire(now)).unwrap_or_default();
        for notice in notices {
            let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{name}.{}", notice.durable);
            let text = format!("{{\"stream_seq\":{},\"deliveries\":{}}}", notice.sequence, notice.deliveries);
            let incoming = IncomingMessage { subject, headers: Vec::new(), payload: text.into(), expected_last: None };
            if let Some(advisories) = self.streams.get_mut(ADVISORIES) {
                let _full = advisories.store(incoming, now);
            }
        }
    }

    fn publish(&mut self, incoming: IncomingMessage, now: Moment) -> Result<StoredIn, StoreRefusal> {
        self.notify_taps(&incoming.subject, &incoming.headers, &incoming.payload);
        let target = self.streams.iter().find(|(_, stream)| stream.accepts(&incoming.subject));
        let Some(name) = target.map(|(name, _)| name.clone()) else { return Err(StoreRefusal::NoStream) };
        if self.full.contains(&name) {
            return Err(StoreRefusal::Full("maximum bytes exceeded"));
        }
        self.expire(&name, now);
        let Some(stream) = self.streams.get_mut(&name) else { return Err(StoreRefusal::NoStream) };
        let at = stream.store(incoming, now)?;
        let republish = stream.config.republish.clone();
        let Some(message) = stream.at(at.sequence).cloned().filter(|_| !at.is_duplicate) else {
            return Ok(StoredIn { at, places: Vec::new() });
        };
        // Our plans republish a message under its own subject.
        if republish.is_some_and(|rule| subject_matches(&rule.source, &message.subject)) {
            self.notify_taps(&message.subject, &message.headers, &message.payload);
        }
        let mut places = vec![(name.clone(), at.sequence, message.subject.clone())];
        for (copy, stream) in &mut self.streams {
            let sources = stream.config.sources.iter().flatten();
            let wants = |filter: &Option<String>| filter.as_ref().is_none_or(|f| subject_matches(f, &message.subject));
            let is_source = sources.into_iter().any(|source| source.name == name && wants(&source.filter_subject));
            if !is_source {
                continue;
            }
            let mut headers = message.headers.clone();
            headers.push(("Nats-Stream-Source".into(), format!("{name} {} > > {}", message.sequence, message.subject)));
            let (subject, payload) = (message.subject.clone(), message.payload.clone());
            let stored = stream.store(IncomingMessage { subject, headers, payload, expected_last: None }, now);
            places.extend(stored.ok().map(|at| (copy.clone(), at.sequence, message.subject.clone())));
        }
        Ok(StoredIn { at, places })
    }

    /// Passes a message to the current core-NATS subscribers.
    fn notify_taps(&mut self, subject: &str, headers: &[(String, String)], payload: &Bytes) {
        self.taps.retain(|(_, listener)| !listener.is_closed());
        for (_, listener) in self.taps.iter().filter(|(pattern, _)| subject_matches(pattern, subject)) {
            let message = TapMessage {
                subject: subject.into(),
                headers: headers.to_vec(),
                payload: payload.clone(),
                has_reply: false,
            };
            let _gone = listener.send(message);
        }
    }
}
