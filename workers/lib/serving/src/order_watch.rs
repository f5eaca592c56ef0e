//! Receives a worker's orders: at a site from the courier's ledger note, in the cloud from the stream of orders.

use std::time::Duration;

use futures::StreamExt;
use runtime::Shutdown;
use schemas::{ModelName, Order, SiteName, decode};
use streams::backoff::wait_about;
use streams::fleet::Ledger;
use streams::reader::{self, StreamRange};
use streams::{Bus, CarryError, subject, topology};
use tokio::sync::watch;
use vision::Model;

use crate::swap::ModelSwapper;

const RESUBSCRIBE_DELAY: Duration = Duration::from_millis(500);

/// Follows the orders of a worker until shutdown: those that a site's courier brings, or without a site those in the cloud's
/// stream. `ordered` sends each order; `orders` is the receiving end.
#[expect(clippy::too_many_arguments)]
pub(crate) async fn watch_orders(
    swapper: &ModelSwapper,
    bus: &Bus,
    site: Option<&SiteName>,
    model: &ModelName,
    ordered: watch::Sender<Option<Order>>,
    orders: watch::Receiver<Option<Order>>,
    ready: impl Fn(&Model),
    shutdown: &Shutdown,
) {
    let subscribed = async {
        loop {
            let ended = match site {
                Some(_) => follow_courier_note(bus, model, &ordered).await,
                None => follow_order_stream(bus, model, &ordered).await,
            };
            // Subscribed again when it ends: the connection broke, or the bucket does not exist yet.
            if let Err(error) = ended {
                tracing::debug!(%error, "order subscription restarted");
            }
            wait_about(RESUBSCRIBE_DELAY).await;
        }
    };
    tokio::select! {
        () = subscribed => {}
        () = swapper.follow(orders, ready) => {}
        () = shutdown.wait_for_request() => {}
    }
    swapper.log_write_failure(swapper.home.mark_stable());
}

async fn follow_courier_note(
    bus: &Bus,
    model: &ModelName,
    ordered: &watch::Sender<Option<Order>>,
) -> Result<(), CarryError> {
    let mut notes = Ledger::open(bus).await?.follow_message::<Order>(&subject::order_note(model)).await?;
    while let Some(order) = notes.next().await {
        ordered.send_replace(Some(order));
    }
    Ok(())
}

async fn follow_order_stream(
    bus: &Bus,
    model: &ModelName,
    ordered: &watch::Sender<Option<Order>>,
) -> Result<(), CarryError> {
    let range = StreamRange { subjects: vec![subject::order(&SiteName::cloud(), model)], ..StreamRange::default() };
    let mut records = std::pin::pin!(reader::follow_range(bus, topology::ORDERS, range).await?);
    while let Some(record) = records.next().await {
        match decode::<Order>(&record?.payload) {
            Ok(order) => drop(ordered.send_replace(Some(order))),
            Err(error) => tracing::warn!(%error, "order unreadable; ignored"),
        }
    }
    Ok(())
}
