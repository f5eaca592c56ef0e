//! The log of rollout decisions in the cloud's stream: each decision is a message in its own slot, with the complete
//! state after it. If several decide at once, one wins and the others decide again on the new state.

use std::time::Duration;

use schemas::task::HEADER_BLOB;
use schemas::{ModelName, Order, Release, Rollout, Swap, decode, encode};
use streams::backoff::Backoff;
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, Publication, PublishOutcome, Publisher, subject, topology};

/// Most attempts to decide when others are faster, and the pauses between two of them.
const RACES: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The current rollout state of a model; `None` before the first decision.
pub async fn latest(bus: &Bus, model: &ModelName) -> Result<Option<Rollout>, CarryError> {
    let Some(record) = reader::last_message(bus, topology::RELEASES, &subject::releases(model)).await? else {
        return Ok(None);
    };
    match read_decision(&record) {
        Some(rollout) => Ok(Some(rollout)),
        // The newest message is not a valid decision, so the last valid one applies.
        None => Ok(history(bus, model).await?.pop()),
    }
}

/// Decodes a decision; `None` if it is invalid or in another decision's slot.
pub fn read_decision(record: &StoredMessage) -> Option<Rollout> {
    let rollout = decode::<Rollout>(&record.payload);
    let rollout =
        rollout.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "decision unreadable; skipped"));
    let rollout = rollout.ok()?;
    let own =
        subject::release(&rollout.model, rollout.number) == record.subject && record.may_be_number(rollout.number);
    if !own {
        tracing::warn!(subject = record.subject, number = rollout.number, "decision in wrong slot; skipped");
    }
    own.then_some(rollout)
}

/// All decisions about a model, oldest first.
pub async fn history(bus: &Bus, model: &ModelName) -> Result<Vec<Rollout>, CarryError> {
    let level = reader::stream_level(bus, topology::RELEASES).await?;
    let mut all = Vec::new();
    let range = StreamRange { subjects: vec![subject::releases(model)], ..StreamRange::default() };
    reader::read_range(bus, topology::RELEASES, range, level.last_sequence, |record| {
        all.extend(read_decision(&record))
    })
    .await?;
    Ok(all)
}

/// The releases that decisions were about, each once, latest last.
pub fn releases(history: &[Rollout]) -> Vec<Release> {
    let mut releases: Vec<Release> = Vec::new();
    for now in history {
        let tried = now.canary.iter().map(|canary| &canary.release);
        for release in tried.chain([&now.stable]).chain(&now.candidates).chain(now.pins.values()) {
            if !releases.iter().any(|known| known.release == release.release) {
                releases.push(release.clone());
            }
        }
    }
    releases
}

/// Writes a decision into its slot; false if another writer was faster, in which case the state must be read again.
pub async fn publish_decision(publisher: &Publisher, rollout: &Rollout) -> Result<bool, CarryError> {
    let slot = subject::release(&rollout.model, rollout.number);
    let placed = publisher.publish(&Publication::first_on_subject(slot, encode(rollout)?)).await?;
    Ok(!matches!(placed, PublishOutcome::Taken))
}

/// Decides until the decision gets its slot: `decide` receives the current state, and is called again when another
/// writer was faster. `None`: there is nothing left to decide.
///
/// # Errors
/// Those of `decide`, and losing the race too often.
pub async fn decide<E: From<CarryError>>(
    bus: &Bus,
    publisher: &Publisher,
    model: &ModelName,
    decide: impl Fn(Option<&Rollout>) -> Result<Option<Rollout>, E>,
) -> Result<Option<Rollout>, E> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for _ in 0..RACES {
        let now = latest(bus, model).await?;
        let Some(next) = decide(now.as_ref())? else { return Ok(None) };
        if publish_decision(publisher, &next).await? {
            return Ok(Some(next));
        }
        backoff.pause().await;
    }
    Err(CarryError::Outrun { what: format!("releases of {model}") }.into())
}

/// The latest order of each site, with the time it was stored in milliseconds since the epoch.
pub async fn orders(bus: &Bus) -> Result<Vec<(Order, u64)>, CarryError> {
    let level = reader::stream_level(bus, topology::ORDERS).await?;
    let mut all = Vec::new();
    reader::read_range(bus, topology::ORDERS, StreamRange::default(), level.last_sequence, |record| {
        match decode::<Order>(&record.payload) {
            Ok(order) => all.push((order, u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0))),
            Err(error) => tracing::warn!(subject = record.subject, %error, "order unreadable; skipped"),
        }
    })
    .await?;
    Ok(all)
}

/// The latest report of each worker for each time slot that is still kept, oldest first.
pub async fn reports(bus: &Bus) -> Result<Vec<Swap>, CarryError> {
    let level = reader::stream_level(bus, topology::SWAPS).await?;
    let mut all = Vec::new();
    if level.messages > 0 {
        reader::read_range(bus, topology::SWAPS, StreamRange::default(), level.last_sequence, |record| {
            all.extend(read_report(&record));
        })
        .await?;
    }
    Ok(all)
}

/// Decodes a swap report; `None` if it is invalid or not of the site and worker in its subject.
pub fn read_report(record: &StoredMessage) -> Option<Swap> {
    let swap = decode::<Swap>(&record.payload);
    let swap =
        swap.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "swap report unreadable; skipped"));
    let swap = swap.ok()?;
    let own = subject::is_swap_of(&record.subject, &swap.site, &swap.worker);
    if !own {
        let sender = format!("{} of {}", swap.worker, swap.site);
        tracing::warn!(subject = record.subject, sender, "swap report in wrong slot; skipped");
    }
    own.then_some(swap)
}

/// Publishes a site's order. `with_package`: the courier also fetches the package; not needed where the release already
/// runs.
pub async fn publish_order(publisher: &Publisher, order: &Order, with_package: bool) -> Result<(), CarryError> {
    let pieces = order.release.package.iter().filter(|_| with_package);
    let pieces: Vec<String> = pieces.map(ToString::to_string).collect();
    let mut publication = Publication {
        subject: subject::order(&order.site, &order.model),
        payload: encode(order)?.into(),
        headers: Vec::new(),
        first_only: false,
    };
    if !pieces.is_empty() {
        publication = publication.header(HEADER_BLOB, pieces.join(","));
    }
    publisher.publish(&publication).await.map(|_| ())
}
