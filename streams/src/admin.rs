//! Requests of an operator to a running hub: reload its files, close connections, forget a site. All but the last need
//! the key of the system account (docs.nats.io, System Account).

use std::time::Duration;

use bytes::Bytes;
use schemas::SiteName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::Bus;
use crate::error::{CarryError, is_missing};
use crate::topology::{ORDERS, UPDATES, VERDICTS, orders_durable, rounds_durable, verdicts_durable};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A leaf server that is connected at present.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LeafConnection {
    /// The hub's number of the connection.
    #[serde(rename = "id")]
    pub connection: u64,
    /// Name that the leaf server gives itself; the hub does not verify it.
    #[serde(default)]
    pub name: String,
}

/// Has the server reload its configuration, accounts and certificates: twice, because what an account shares with a new
/// one takes effect only after the second reload (nats-server 2.15.1).
///
/// # Errors
/// No reply, or an error in its files; it then keeps running with the previous configuration.
pub async fn reload(bus: &Bus) -> Result<(), CarryError> {
    for _ in 0..2 {
        ask::<serde_json::Value>(bus, "RELOAD", Bytes::new()).await?;
    }
    Ok(())
}

/// The leaf servers that are connected.
pub async fn joined_leaves(bus: &Bus) -> Result<Vec<LeafConnection>, CarryError> {
    #[derive(Deserialize)]
    struct LeafListReply {
        #[serde(default)]
        leafs: Vec<LeafConnection>,
    }
    Ok(ask::<LeafListReply>(bus, "LEAFZ", Bytes::new()).await?.leafs)
}

/// Closes the connection of every leaf server, because a reload does not close one whose key was removed. Those still
/// allowed reconnect within a second or two and lose nothing. All are closed, because their names prove nothing.
pub async fn end_leaves(bus: &Bus) -> Result<usize, CarryError> {
    let joined = joined_leaves(bus).await?;
    for leaf in &joined {
        let question = serde_json::json!({ "cid": leaf.connection }).to_string();
        ask::<serde_json::Value>(bus, "KICK", question.into()).await?;
    }
    Ok(joined.len())
}

/// Removes everything that waits in the cloud for a site. What the site sent stays.
pub async fn forget_site(bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
    let durables =
        [(VERDICTS, verdicts_durable(site)), (UPDATES, rounds_durable(site)), (ORDERS, orders_durable(site))];
    for (stream, durable) in durables {
        let what = format!("removing consumer {durable} of {stream}");
        match bus.nats()?.js.delete_consumer_from_stream(&durable, stream).await {
            Ok(_) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(CarryError::broker(what)(error)),
        }
    }
    Ok(())
}

async fn ask<A: DeserializeOwned>(bus: &Bus, verb: &str, question: Bytes) -> Result<A, CarryError> {
    #[derive(Deserialize)]
    struct AdminReply<A> {
        data: Option<A>,
        error: Option<AdminRefusal>,
    }
    #[derive(Deserialize)]
    struct AdminRefusal {
        #[serde(default)]
        description: String,
    }
    let what = || format!("asking the hub to {}", verb.to_lowercase());
    let subject = format!("$SYS.REQ.SERVER.{}.{verb}", bus.server_id());
    let reply = tokio::time::timeout(REQUEST_TIMEOUT, bus.nats()?.client.request(subject, question)).await;
    let reply = reply.map_err(|_| CarryError::broker(what())("no reply in time"))?;
    let reply = reply.map_err(CarryError::broker(what()))?;
    let reply: AdminReply<A> = serde_json::from_slice(&reply.payload).map_err(CarryError::broker(what()))?;
    match (reply.error, reply.data) {
        (Some(refusal), _) => Err(CarryError::broker(what())(refusal.description)),
        (None, Some(data)) => Ok(data),
        // Some requests are answered with nothing but the server's name.
        (None, None) => serde_json::from_value(serde_json::json!({})).map_err(CarryError::broker(what())),
    }
}
