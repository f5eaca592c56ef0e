//! Runs the courier's tasks side by side until it is told to stop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::drift::{DriftKind, DriftSettings, DriftWatch};
use runtime::ticket::TicketKey;
use runtime::{ConsumerConfig, Fault, Shutdown, consume, heartbeat, retry_until_found};
use schemas::{LinkReport, Role, SiteName};
use streams::fleet::Ledger;
use streams::{Blobs, Bus, Publisher, topology};

use crate::deadline_keeper::DeadlineKeeper;
use crate::identity;
use crate::note_carrier::{NoteCarrier, OrderNotes, RoundNotes};
use crate::outbox_carrier::OutboxCarrier;
use crate::probe::LinkHandle;
use crate::settings::CourierSettings;
use crate::trust_anchor::TrustAnchor;
use crate::verdict_carrier::VerdictCarrier;
use crate::verdict_counter::VerdictCounter;

pub(crate) const ROLE: Role = Role::Courier;
/// How long a publication is retried before its message is returned.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Most deadlines checked, and verdicts handled, at a time.
const SMALL_MESSAGES: usize = 64;
/// Interval of heartbeats: recognizers decide by the courier's report on the link. A change is sent at once.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Windows for agreement: few answers are sampled, but these suffice to notice one more wrong answer in ten.
const AGREEMENT_WINDOWS: DriftSettings = DriftSettings { reference_answers: 400, recent_answers: 200 };

/// Runs a site's courier until it is told to stop. `here` is the site's own JetStream domain, `cloud` the cloud's
/// across the leaf link ([`Bus::connect_cloud`]).
pub async fn run(
    here: Bus,
    cloud: Bus,
    site: SiteName,
    settings: &CourierSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let Some(blobs) = retry_until_found(&shutdown, || Blobs::open(&here)).await else { return Ok(()) };
    let Some(ledger) = retry_until_found(&shutdown, || Ledger::open(&here)).await else { return Ok(()) };
    let Some(tickets) = retry_until_found(&shutdown, || TicketKey::open(&here)).await else { return Ok(()) };
    let trusted = TrustAnchor::open(settings.root.as_deref(), &ledger).await?;
    let link = LinkHandle::new(settings.link.clone());
    let stats = Arc::new(WorkerStats::default());
    let open = || {
        let (here, blobs, cloud, link) = (here.clone(), blobs.clone(), cloud.clone(), link.clone());
        OutboxCarrier::open(site.clone(), here, blobs, cloud, link, settings.clone(), stats.clone())
    };
    let Some(up) = retry_until_found(&shutdown, open).await else { return Ok(()) };
    let up = Arc::new(up);
    let publisher = Publisher::new(here.clone(), PUBLISH_TIMEOUT);
    let from =
        |durable: String| ConsumerConfig { durable, credits: SMALL_MESSAGES, resized: None, tries: None, ack_wait };

    let agreement = DriftWatch::new(DriftKind::Agreement, AGREEMENT_WINDOWS);
    let counter = VerdictCounter::default();
    let down = async {
        // The cloud may be unreachable when the site starts: its consumer is looked up once the link is up.
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => return Ok(()),
            () = link.up() => {}
        }
        let from = from(topology::verdicts_durable(&site));
        let down = Arc::new(VerdictCarrier {
            site: site.clone(),
            tickets: tickets.clone(),
            agreement: agreement.clone(),
            counter: counter.clone(),
        });
        consume(down, &cloud, publisher.clone(), from, stats.clone(), shutdown.clone()).await
    };
    let notes = async {
        tokio::select! {
            biased;
            () = shutdown.wait_for_request() => return Ok(()),
            () = link.up() => {}
        }
        let notes = NoteCarrier {
            site: site.clone(),
            trusted: trusted.clone(),
            ledger: ledger.clone(),
            here: blobs.clone(),
            cloud: Blobs::open_offered(&cloud),
        };
        // One at a time, so that of two notes on one model the later one is written last.
        let single = |durable| ConsumerConfig { credits: 1, ..from(durable) };
        let (rounds, orders) = (Arc::new(RoundNotes(notes.clone())), Arc::new(OrderNotes(notes)));
        let (round_durable, order_durable) = (topology::rounds_durable(&site), topology::orders_durable(&site));
        let (rounds, orders) = tokio::join!(
            consume(rounds, &cloud, publisher.clone(), single(round_durable), stats.clone(), shutdown.clone()),
            consume(orders, &cloud, publisher.clone(), single(order_durable), stats.clone(), shutdown.clone()),
        );
        rounds.and(orders)
    };
    let deadlines = consume(
        Arc::new(DeadlineKeeper { site: site.clone(), here: here.clone() }),
        &here,
        publisher.clone(),
        from(topology::promises_durable(&site)),
        stats.clone(),
        shutdown.clone(),
    );
    let pace = heartbeat::HeartbeatPace { every: HEARTBEAT_INTERVAL, changed: link.changed.clone() };
    let namesake = Mutex::new(None);
    // With site and cloud on one server there is one ledger, and no namesake.
    let is_shared = here.in_same_domain(&cloud);
    let marking = async {
        if !is_shared {
            identity::watch_site_mark(&here, &cloud, &site, &link, &namesake, &shutdown).await;
        }
    };
    let namesake = &namesake;
    let heartbeats =
        heartbeat::send_heartbeats(here.clone(), ROLE, Some(site.clone()), stats.clone(), shutdown.clone(), pace, {
            let (up, agreement, counter) = (up.clone(), agreement.clone(), counter.clone());
            move |beat| {
                beat.drift = agreement.report();
                let report = up.report();
                beat.link_rtt_ms = report.up.then_some(report.rtt_min_ms);
                beat.link = Some(LinkReport { verdicts: counter.report(), ..report });
                beat.faults = namesake.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
            }
        });
    // A failed task stops the others: half a courier would look like a whole one.
    let stop_all = |ended: Result<(), Fault>| {
        if ended.is_err() {
            shutdown.request();
        }
        ended
    };
    let (up, down, notes, deadlines, (), (), (), (), ()) = tokio::join!(
        async { stop_all(up.run(shutdown.clone()).await) },
        async { stop_all(down.await) },
        async { stop_all(notes.await) },
        async { stop_all(deadlines.await) },
        link.probe_link(&here, &cloud, &site, &settings.link, shutdown.clone()),
        heartbeats,
        marking,
        trusted.follow_root(&cloud, &ledger, &link, &shutdown),
        agreement.save_reference(&here, shutdown.clone())
    );
    up.and(down).and(notes).and(deadlines)
}
