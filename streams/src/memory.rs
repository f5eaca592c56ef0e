//! Servers in memory, for tests under simulated time: the same plans, the same verbs and a network whose faults are drawn by
//! a seed.
//!
//! [`MemoryCluster`] interprets the very settings of streams and consumers that [`topology`](crate::topology) plans, so what
//! is added there works here without a second table. A connection to it is a [`Bus`] like any other; which of the verbs that
//! a real server has it knows, and that it means the same by them, is held by tests/contract.rs. What it does not know fails
//! by name. Never compiled into the product.

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

/// When every simulation begins, nanoseconds since the epoch: 2026-01-01.
const BEGAN_NS: i128 = 1_767_225_600_000_000_000;

/// What goes wrong on the way to a server and back, each drawn anew for each message by the cluster's seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetworkFaults {
    /// Share of acknowledgements of deliveries that are lost, 0 to 1.
    pub lost_ack_ratio: f64,
    /// Share of requests that are carried out and whose answer is lost, 0 to 1.
    pub lost_reply_ratio: f64,
    /// Share of requests that are lost before they are carried out, 0 to 1.
    pub lost_request_ratio: f64,
    /// Share of deliveries that are lost on their way to who pulls, 0 to 1.
    pub lost_delivery_ratio: f64,
    /// Share of messages behind which whoever follows a stream loses the connection, 0 to 1.
    pub broken_follow_ratio: f64,
    /// Longest way to a server or back.
    pub max_delay: Duration,
    /// Longest way over a link between two servers, in addition.
    pub max_link_delay: Duration,
}

/// What happened in a cluster, in order: what an oracle judges by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClusterEvent {
    /// A message was stored.
    Stored {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The sequence it has there.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// The id that tells it from its repetitions, where it has one.
        message_id: Option<String>,
        /// When, nanoseconds since the epoch.
        stored_at_ns: i128,
    },
    /// A full stream took no message.
    Refused {
        /// The server.
        server: String,
        /// The message's subject.
        subject: String,
    },
    /// A message was given to whoever pulled.
    Delivered {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The consumer.
        durable: String,
        /// The message's sequence.
        sequence: u64,
        /// Which delivery this is, from 1.
        attempts: u64,
    },
    /// An acknowledgement arrived and finished a message.
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
    /// A message was deleted by hand.
    Deleted {
        /// The server.
        server: String,
        /// Its stream.
        stream: String,
        /// The message's sequence.
        sequence: u64,
    },
}

/// Servers in memory and what lies between them; clones share them.
#[derive(Clone)]
pub struct MemoryCluster(Arc<ClusterShared>);

struct ClusterShared {
    state: Mutex<ClusterState>,
    /// Told whenever somebody who waits for a server or a message should look again.
    changed: Notify,
    began_at: Instant,
}

struct ClusterState {
    servers: BTreeMap<String, MemoryServer>,
    /// Servers whose link to the others is cut.
    cut: BTreeSet<String>,
    faults: NetworkFaults,
    rng: StdRng,
    events: Vec<ClusterEvent>,
    /// Requests that were made so far, answered or not.
    requests: u64,
}

struct MemoryServer {
    name: String,
    streams: BTreeMap<String, MemoryStream>,
    is_up: bool,
    /// Goes up with every start.
    incarnation: u64,
    /// Streams that take nothing at the moment.
    full: BTreeSet<String>,
    taps: Vec<(String, mpsc::UnboundedSender<TapMessage>)>,
}

thread_local! {
    /// What the next pauses of this thread begin with.
    static JITTER: Cell<Option<u64>> = const { Cell::new(None) };
    /// When the simulation of this thread began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What the clocks of a simulation show, nanoseconds since the epoch; absent outside of one.
pub fn simulated_now_ns() -> Option<i128> {
    BEGAN.get().map(|began_at| ns_since(began_at, Instant::now()))
}

fn ns_since(began_at: Instant, now: Instant) -> i128 {
    let since = now.saturating_duration_since(began_at).as_nanos();
    BEGAN_NS.saturating_add(i128::try_from(since).unwrap_or(0))
}

/// What the pauses of a simulation begin with; absent outside of one.
pub(crate) fn next_jitter_seed() -> Option<u64> {
    let seed = JITTER.get()?;
    JITTER.set(Some(seed.wrapping_add(1)));
    Some(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

impl MemoryCluster {
    /// A cluster without servers, inside a runtime of one thread whose time is paused. The seed decides which faults there
    /// are, and how long pauses between tries take.
    pub fn new(seed: u64) -> Self {
        let state = ClusterState {
            servers: BTreeMap::new(),
            cut: BTreeSet::new(),
            faults: NetworkFaults::default(),
            rng: StdRng::seed_from_u64(seed),
            events: Vec::new(),
            requests: 0,
        };
        let began_at = Instant::now();
        JITTER.set(Some(seed.wrapping_shl(20)));
        BEGAN.set(Some(began_at));
        Self(Arc::new(ClusterShared { state: Mutex::new(state), changed: Notify::new(), began_at }))
    }

    /// A server of this name with what the plan wants; the name is its JetStream domain, too.
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

    /// A connection to a server. With [`Bus::in_domain`] it speaks to another one over the link.
    pub fn connect(&self, server: &str) -> Bus {
        Bus::in_memory(MemoryLink::new(self.clone(), server))
    }

    /// Kills whoever has this connection, and its clones: nothing they say arrives any more, and what they hold is delivered
    /// to others when its time is up.
    pub fn kill_client(&self, bus: &Bus) {
        if let Some(link) = bus.memory() {
            link.kill();
        }
    }

    /// Which faults there are from now on.
    pub fn set_faults(&self, faults: NetworkFaults) {
        self.state().faults = faults;
    }

    /// Cuts a server's link to the others, or mends it.
    pub fn cut_link(&self, server: &str, is_cut: bool) {
        let mut state = self.state();
        match is_cut {
            true => state.cut.insert(server.into()),
            false => state.cut.remove(server),
        };
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Kills a server. Acknowledgements of the last `forgets` are not on its disk: those messages come again.
    pub fn stop_server(&self, server: &str, forgets: Duration) {
        let now = self.now();
        if let Some(server) = self.state().servers.get_mut(server) {
            server.is_up = false;
            let since = now.at.checked_sub(forgets).unwrap_or(now.at);
            server.streams.values_mut().for_each(|stream| stream.forget_acks_since(since, now));
        }
        self.0.changed.notify_waiters();
    }

    /// Starts a server again.
    pub fn start_server(&self, server: &str) {
        if let Some(server) = self.state().servers.get_mut(server) {
            server.is_up = true;
            server.incarnation += 1;
        }
        self.0.changed.notify_waiters();
    }

    /// Lets a stream take nothing, or take messages again.
    pub fn fill_stream(&self, server: &str, stream: &str, is_full: bool) {
        if let Some(server) = self.state().servers.get_mut(server) {
            match is_full {
                true => server.full.insert(stream.into()),
                false => server.full.remove(stream),
            };
        }
    }

    /// What happened so far.
    pub fn events(&self) -> Vec<ClusterEvent> {
        self.state().events.clone()
    }

    /// Number of requests made to its servers so far, whether or not they were answered.
    pub fn request_count(&self) -> u64 {
        self.state().requests
    }

    /// The simulated time, milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.now().ns / 1_000_000).unwrap_or(0)
    }

    fn now(&self) -> Moment {
        let at = Instant::now();
        Moment { at, ns: ns_since(self.0.began_at, at) }
    }

    fn state(&self) -> MutexGuard<'_, ClusterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterState {
    fn draw(&mut self, ratio: f64) -> bool {
        // Nothing is drawn where there is no such fault: seeds of tests without it do not depend on how it is drawn.
        ratio > 0.0 && self.rng.random_bool(ratio.min(1.0))
    }

    fn draw_delay(&mut self, longest: Duration) -> Duration {
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(if longest_us == 0 { 0 } else { self.rng.random_range(0..=longest_us) })
    }

    /// Whether what leaves one server arrives at another.
    fn is_reachable(&self, home: &str, target: &str) -> bool {
        let is_up = |name: &str| self.servers.get(name).is_some_and(|server| server.is_up);
        is_up(home) && is_up(target) && (home == target || !self.cut.contains(home) && !self.cut.contains(target))
    }

    /// A stream as it is now: what is too old is gone, and what was delivered too often was told.
    fn stream(&mut self, server: &str, stream: &str, now: Moment) -> Option<&mut MemoryStream> {
        let server = self.servers.get_mut(server)?;
        server.expire(stream, now);
        server.streams.get_mut(stream)
    }

    /// Stores what was published at a server, there or where a link leads to a stream that takes it.
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

    /// The server whose stream takes a subject, as one sees it from another.
    fn server_of(&self, home: &str, subject: &str) -> Option<String> {
        let takes = |server: &MemoryServer| server.streams.values().any(|stream| stream.takes(subject));
        if self.servers.get(home).is_some_and(takes) {
            return Some(home.to_owned());
        }
        self.servers.values().find(|server| takes(server)).map(|server| server.name.clone())
    }
}

/// What became of a message, and where it is now: in its stream and in those that copy from it.
struct StoredIn {
    at: StoredAt,
    /// Stream, sequence and subject.
    places: Vec<(String, u64, String)>,
}

impl MemoryServer {
    /// Lets go what is too old in a stream, and tells what was delivered too often.
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
        self.pass_by(&incoming.subject, &incoming.headers, &incoming.payload);
        let taker = self.streams.iter().find(|(_, stream)| stream.takes(&incoming.subject));
        let Some(name) = taker.map(|(name, _)| name.clone()) else { return Err(StoreRefusal::NoStream) };
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
        // Ours say a message again under its own subject.
        if republish.is_some_and(|rule| subject_matches(&rule.source, &message.subject)) {
            self.pass_by(&message.subject, &message.headers, &message.payload);
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

    /// Tells whoever listens at this moment.
    fn pass_by(&mut self, subject: &str, headers: &[(String, String)], payload: &Bytes) {
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
