//! What was decided about releases, in the cloud's stream: each decision a message in a slot of its own, with everything
//! that holds after it. Of many who decide at once one wins, and the others decide anew on what holds then.

use std::time::Duration;

use schemas::task::HEADER_BLOB;
use schemas::{ModelName, Order, Release, Rollout, Swap, decode, encode};
use streams::reader::{self, StoredMessage, StreamRange};
use streams::{Bus, CarryError, Publication, PublishOutcome, Publisher, subject, topology};

/// How often a decision is made anew because somebody else was faster, and the longest pause before it is.
const RACES: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a model's releases stand; `None` before the first decision.
pub async fn latest(bus: &Bus, model: &ModelName) -> Result<Option<Rollout>, CarryError> {
    let Some(record) = reader::last_message(bus, topology::RELEASES, &subject::releases(model)).await? else {
        return Ok(None);
    };
    match read_decision(&record) {
        Some(rollout) => Ok(Some(rollout)),
        // Somebody wrote something else there: what was decided last before it holds.
        None => Ok(history(bus, model).await?.pop()),
    }
}

/// The decision in a message, if it is one and in its own slot.
pub fn read_decision(record: &StoredMessage) -> Option<Rollout> {
    let rollout = decode::<Rollout>(&record.payload);
    let rollout =
        rollout.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "no decision, passed over"));
    let rollout = rollout.ok()?;
    let own =
        subject::release(&rollout.model, rollout.number) == record.subject && record.may_be_number(rollout.number);
    if !own {
        tracing::warn!(
            subject = record.subject,
            number = rollout.number,
            "a decision in a slot that is not its own, passed over"
        );
    }
    own.then_some(rollout)
}

/// Everything that was decided about a model, the oldest first.
pub async fn history(bus: &Bus, model: &ModelName) -> Result<Vec<Rollout>, CarryError> {
    let level = reader::stream_level(bus, topology::RELEASES).await?;
    let mut all = Vec::new();
    let stretch = StreamRange { subjects: vec![subject::releases(model)], ..StreamRange::default() };
    reader::read_range(bus, topology::RELEASES, stretch, level.last_sequence, |record| {
        all.extend(read_decision(&record))
    })
    .await?;
    Ok(all)
}

/// Releases that decisions were about, each once, the latest last.
pub fn releases(history: &[Rollout]) -> Vec<Release> {
    let mut found: Vec<Release> = Vec::new();
    for now in history {
        let tried = now.canary.iter().map(|canary| &canary.release);
        for release in tried.chain([&now.stable]).chain(&now.candidates).chain(now.pins.values()) {
            if !found.iter().any(|known| known.release == release.release) {
                found.push(release.clone());
            }
        }
    }
    found
}

/// Writes a decision into its slot; false if somebody else was faster, and then what holds must be read again.
pub async fn publish_decision(publisher: &Publisher, rollout: &Rollout) -> Result<bool, CarryError> {
    let slot = subject::release(&rollout.model, rollout.number);
    let placed = publisher.publish(&Publication::first_on_subject(slot, encode(rollout)?)).await?;
    Ok(!matches!(placed, PublishOutcome::Taken))
}

/// Decides until the decision has its slot: `decide` gets what holds, and is called again when somebody else was faster.
/// `None`: there is nothing to decide any more.
///
/// # Errors
/// What `decide` says, and that others were faster again and again.
pub async fn decide<E: From<CarryError>>(
    bus: &Bus,
    publisher: &Publisher,
    model: &ModelName,
    decide: impl Fn(Option<&Rollout>) -> Result<Option<Rollout>, E>,
) -> Result<Option<Rollout>, E> {
    for race in 0..RACES {
        let now = latest(bus, model).await?;
        let Some(next) = decide(now.as_ref())? else { return Ok(None) };
        if publish_decision(publisher, &next).await? {
            return Ok(Some(next));
        }
        tokio::time::sleep((Duration::from_millis(10) * race).min(LONGEST_PAUSE)).await;
    }
    Err(CarryError::Outrun { what: format!("releases of {model}") }.into())
}

/// What sites were ordered to run last, with when that was stored, milliseconds since the epoch.
pub async fn orders(bus: &Bus) -> Result<Vec<(Order, u64)>, CarryError> {
    let level = reader::stream_level(bus, topology::ORDERS).await?;
    let mut all = Vec::new();
    reader::read_range(bus, topology::ORDERS, StreamRange::default(), level.last_sequence, |record| {
        match decode::<Order>(&record.payload) {
            Ok(order) => all.push((order, u64::try_from(record.stored_at_ns / 1_000_000).unwrap_or(0))),
            Err(error) => tracing::warn!(subject = record.subject, %error, "no order, passed over"),
        }
    })
    .await?;
    Ok(all)
}

/// What each worker reported last of each of its stretches of time, as far as it is kept, the oldest first.
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

/// The report in a message, if it is one and of the site and worker in its subject.
pub fn read_report(record: &StoredMessage) -> Option<Swap> {
    let swap = decode::<Swap>(&record.payload);
    let swap = swap.inspect_err(|error| tracing::warn!(subject = record.subject, %error, "no report, passed over"));
    let swap = swap.ok()?;
    let own = subject::is_swap_of(&record.subject, &swap.site, &swap.worker);
    if !own {
        let said = format!("{} of {}", swap.worker, swap.site);
        tracing::warn!(subject = record.subject, said, "a report for another, passed over");
    }
    own.then_some(swap)
}

/// Gives a site its order. `with_package`: its courier brings the package too; where the release runs already, it need not.
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
