//! The courier's three errands, side by side until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use runtime::drive::Tally;
use runtime::{Drive, Fault, Shutdown, Step, beat, drive, look_up};
use schemas::SiteName;
use streams::{Blobs, Bus, Publisher, topology};

use crate::down::Down;
use crate::link;
use crate::promise::Promise;
use crate::settings::CourierSettings;
use crate::up::Up;

/// How long a publication is retried before its message is handed back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Promises looked at, and verdicts handled, at a time.
const SMALL_MESSAGES: usize = 64;

/// Runs a site's courier until it is told to stop. `here` is the site's own domain, `cloud` the same
/// connection speaking to the cloud's.
pub async fn run(
    here: Bus,
    cloud: Bus,
    site: SiteName,
    settings: &CourierSettings,
    ack_wait: Duration,
    shutdown: Shutdown,
) -> Result<(), Fault> {
    let Some(blobs) = look_up(&shutdown, || Blobs::open(&here)).await else { return Ok(()) };
    let (link, prober) = link::probe(cloud.clone(), settings, shutdown.clone());
    let tally = Arc::new(Tally::default());
    let publisher = Publisher::new(here.clone(), PATIENCE);
    let from = |durable: String, credits| Drive { durable, credits, tries: None, ack_wait };

    let up = Up { site: site.clone(), here: blobs, cloud: cloud.clone(), link: link.clone() };
    let up = drive(
        Arc::new(up),
        &here,
        publisher.clone(),
        from(topology::COURIER.into(), settings.uploads),
        tally.clone(),
        shutdown.clone(),
    );
    let down = async {
        // The cloud may be away when the site starts: its consumer is looked up once it answers.
        tokio::select! {
            () = link.up() => {}
            () = shutdown.wanted() => return Ok(()),
        }
        let from = from(topology::verdicts_durable(&site), SMALL_MESSAGES);
        let down = Arc::new(Down { site: site.clone() });
        drive(down, &cloud, publisher.clone(), from, tally.clone(), shutdown.clone()).await
    };
    let promise = drive(
        Arc::new(Promise { site: site.clone(), here: here.clone() }),
        &here,
        publisher.clone(),
        from(topology::PROMISES.into(), SMALL_MESSAGES),
        tally.clone(),
        shutdown.clone(),
    );
    let life = beat::beat(here.clone(), Up::ROLE, Some(site.clone()), tally.clone(), shutdown.clone(), {
        let link = link.clone();
        move |beat| beat.link_rtt_ms = link.round_trip().map(|round_trip| round_trip.as_secs_f64() * 1000.0)
    });
    // One errand that must stop stops the others: half a courier would look like a whole one.
    let stop_all = |ended: Result<(), Fault>| {
        if ended.is_err() {
            shutdown.want();
        }
        ended
    };
    let (up, down, promise, (), ()) = tokio::join!(
        async { stop_all(up.await) },
        async { stop_all(down.await) },
        async { stop_all(promise.await) },
        prober,
        life
    );
    up.and(down).and(promise)
}
