//! The courier's errands, side by side until it is told to stop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::consumer::WorkerStats;
use runtime::drift::{DriftKind, DriftSettings, DriftWatch};
use runtime::ticket::TicketKey;
use runtime::{ConsumerConfig, Fault, Shutdown, consume, heartbeat, retry_until_found};
use schemas::{Role, SiteName};
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

pub(crate) const ROLE: Role = Role::Courier;
/// How long a publication is retried before its message is handed back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Promises looked at, and verdicts handled, at a time.
const SMALL_MESSAGES: usize = 64;
/// The recognizers decide by what the courier says of the link; they hear of a change at once.
const SAY_EVERY: Duration = Duration::from_millis(500);
/// Few answers are drawn to be checked. Enough to notice that one more in ten is wrong.
const AGREEMENT_WINDOWS: DriftSettings = DriftSettings { reference_answers: 400, recent_answers: 200 };

/// Runs a site's courier until it is told to stop. `here` is the site's own domain, `cloud` the cloud's over the leaf link
/// ([`Bus::connect_cloud`]).
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
    let tally = Arc::new(WorkerStats::default());
    let open = || {
        let (here, blobs, cloud, link) = (here.clone(), blobs.clone(), cloud.clone(), link.clone());
        OutboxCarrier::open(site.clone(), here, blobs, cloud, link, settings.clone(), tally.clone())
    };
    let Some(up) = retry_until_found(&shutdown, open).await else { return Ok(()) };
    let up = Arc::new(up);
    let publisher = Publisher::new(here.clone(), PATIENCE);
    let from =
        |durable: String| ConsumerConfig { durable, credits: SMALL_MESSAGES, resized: None, tries: None, ack_wait };

    let agreement = DriftWatch::new(DriftKind::Agreement, AGREEMENT_WINDOWS);
    let down = async {
        // The cloud may be away when the site starts: its consumer is looked up once it answers.
        tokio::select! {
            () = link.up() => {}
            () = shutdown.wait_for_request() => return Ok(()),
        }
        let from = from(topology::verdicts_durable(&site));
        let down =
            Arc::new(VerdictCarrier { site: site.clone(), tickets: tickets.clone(), agreement: agreement.clone() });
        consume(down, &cloud, publisher.clone(), from, tally.clone(), shutdown.clone()).await
    };
    let notes = async {
        tokio::select! {
            () = link.up() => {}
            () = shutdown.wait_for_request() => return Ok(()),
        }
        let notes = NoteCarrier {
            site: site.clone(),
            trusted: trusted.clone(),
            ledger: ledger.clone(),
            here: blobs.clone(),
            cloud: Blobs::open_offered(&cloud),
        };
        // One at a time: of two notes on one model the later one must be written last.
        let one = |durable| ConsumerConfig { credits: 1, ..from(durable) };
        let (rounds, orders) = (Arc::new(RoundNotes(notes.clone())), Arc::new(OrderNotes(notes)));
        let (asked, ordered) = (topology::rounds_durable(&site), topology::orders_durable(&site));
        let (rounds, orders) = tokio::join!(
            consume(rounds, &cloud, publisher.clone(), one(asked), tally.clone(), shutdown.clone()),
            consume(orders, &cloud, publisher.clone(), one(ordered), tally.clone(), shutdown.clone()),
        );
        rounds.and(orders)
    };
    let promise = consume(
        Arc::new(DeadlineKeeper { site: site.clone(), here: here.clone() }),
        &here,
        publisher.clone(),
        from(topology::promises_durable(&site)),
        tally.clone(),
        shutdown.clone(),
    );
    let pulse = heartbeat::HeartbeatPace { every: SAY_EVERY, changed: link.changed.clone() };
    let namesake = Mutex::new(None);
    // With site and cloud on one server there is one ledger, and nobody else.
    let shared = here.in_same_domain(&cloud);
    let marking = async {
        if !shared {
            identity::watch_site_mark(&here, &cloud, &site, &link, &namesake, &shutdown).await;
        }
    };
    let namesake = &namesake;
    let life =
        heartbeat::send_heartbeats(here.clone(), ROLE, Some(site.clone()), tally.clone(), shutdown.clone(), pulse, {
            let (up, agreement) = (up.clone(), agreement.clone());
            move |beat| {
                beat.drift = agreement.report();
                let report = up.report();
                beat.link_rtt_ms = report.up.then_some(report.rtt_min_ms);
                beat.link = Some(report);
                beat.faults = namesake.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
            }
        });
    // One errand that must stop stops the others: half a courier would look like a whole one.
    let stop_all = |ended: Result<(), Fault>| {
        if ended.is_err() {
            shutdown.request();
        }
        ended
    };
    let (up, down, notes, promise, (), (), (), (), ()) = tokio::join!(
        async { stop_all(up.run(shutdown.clone()).await) },
        async { stop_all(down.await) },
        async { stop_all(notes.await) },
        async { stop_all(promise.await) },
        link.probe_link(cloud.clone(), &settings.link, shutdown.clone()),
        life,
        marking,
        trusted.follow_root(&cloud, &ledger, &link, &shutdown),
        agreement.save_reference(&here, shutdown.clone())
    );
    up.and(down).and(notes).and(promise)
}
