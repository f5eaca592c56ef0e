//! Where a worker hears what it shall run: at a site from its courier's note, in the cloud from the stream of orders.

use std::time::Duration;

use futures::StreamExt;
use runtime::Shutdown;
use schemas::{ModelName, Order, SiteName, decode};
use streams::fleet::Ledger;
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, subject, topology};
use tokio::sync::watch;
use vision::Model;

use crate::swap::ModelSwapper;

const HEAR_AGAIN: Duration = Duration::from_millis(500);

/// A site's worker follows the orders that its courier brings, until told to stop. `ordered`: where each order is put;
/// `orders`: the other end of it.
pub async fn of_site(
    swapper: &ModelSwapper,
    bus: &Bus,
    model: &ModelName,
    ordered: watch::Sender<Option<Order>>,
    orders: watch::Receiver<Option<Order>>,
    ready: impl Fn(&Model),
    shutdown: &Shutdown,
) {
    until_stopped(swapper, || hear_courier(bus, model, &ordered), orders, ready, shutdown).await;
}

async fn hear_courier(bus: &Bus, model: &ModelName, ordered: &watch::Sender<Option<Order>>) -> Result<(), CarryError> {
    let mut notes = Ledger::open(bus).await?.follow_message::<Order>(&subject::order_note(model)).await?;
    while let Some(order) = notes.next().await {
        ordered.send_replace(Some(order));
    }
    Ok(())
}

/// A verifier follows the orders of the cloud, until told to stop.
pub async fn of_cloud(
    swapper: &ModelSwapper,
    bus: &Bus,
    model: &ModelName,
    ready: impl Fn(&Model),
    shutdown: &Shutdown,
) {
    let (ordered, orders) = watch::channel(None);
    until_stopped(swapper, || hear_cloud(bus, model, &ordered), orders, ready, shutdown).await;
}

async fn hear_cloud(bus: &Bus, model: &ModelName, ordered: &watch::Sender<Option<Order>>) -> Result<(), CarryError> {
    let stretch = StreamRange { subjects: vec![subject::order(&SiteName::cloud(), model)], ..StreamRange::default() };
    let mut records = std::pin::pin!(reader::follow_range(bus, topology::ORDERS, stretch).await?);
    while let Some(record) = records.next().await {
        match decode::<Order>(&record?.payload) {
            Ok(order) => drop(ordered.send_replace(Some(order))),
            Err(error) => tracing::warn!(%error, "an order cannot be read and is ignored"),
        }
    }
    Ok(())
}

async fn until_stopped<F: Future<Output = Result<(), CarryError>>>(
    swapper: &ModelSwapper,
    hear: impl Fn() -> F,
    orders: watch::Receiver<Option<Order>>,
    ready: impl Fn(&Model),
    shutdown: &Shutdown,
) {
    let hearing = async {
        loop {
            // What ends, for a broken connection or a bucket that is not there yet, is begun again.
            if let Err(error) = hear().await {
                tracing::debug!(%error, "listens for orders again");
            }
            tokio::time::sleep(HEAR_AGAIN).await;
        }
    };
    tokio::select! {
        () = hearing => {}
        () = swapper.follow(orders, ready) => {}
        () = shutdown.wait_for_request() => {}
    }
    swapper.log_write_failure(swapper.home.mark_stable());
}
