//! What an operator tells a running hub: read your files again, end connections, forget a site. Asked by whoever has the key of
//! the system account, but for the last (docs.nats.io, System Account).

use std::time::Duration;

use bytes::Bytes;
use schemas::SiteName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::Bus;
use crate::error::{CarryError, is_missing};
use crate::topology::{ORDERS, UPDATES, VERDICTS, orders_durable, rounds_durable, verdicts_durable};

const PATIENCE: Duration = Duration::from_secs(5);

/// A leaf server that is joined at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LeafConnection {
    /// The hub's number of the connection.
    #[serde(rename = "id")]
    pub connection: u64,
    /// What the leaf server calls itself; nobody checks that.
    #[serde(default)]
    pub name: String,
}

/// The server reads its configuration, accounts and certificates again: twice, for what an account shares with one that is new
/// counts after the second time only (nats-server 2.15.1).
///
/// # Errors
/// That it does not answer, or what is wrong with its files; it goes on with what it had then.
pub async fn reload(bus: &Bus) -> Result<(), CarryError> {
    for _ in 0..2 {
        ask::<serde_json::Value>(bus, "RELOAD", Bytes::new()).await?;
    }
    Ok(())
}

/// The leaf servers that are joined to it.
pub async fn joined_leaves(bus: &Bus) -> Result<Vec<LeafConnection>, CarryError> {
    #[derive(Deserialize)]
    struct LeafListReply {
        #[serde(default)]
        leafs: Vec<LeafConnection>,
    }
    Ok(ask::<LeafListReply>(bus, "LEAFZ", Bytes::new()).await?.leafs)
}

/// Ends the connection of every leaf server: after a reload alone, one whose key is gone stays. Those that may come back do
/// within a second or two, and lose nothing. All of them, for what a leaf server calls itself says nothing.
pub async fn end_leaves(bus: &Bus) -> Result<usize, CarryError> {
    let joined = joined_leaves(bus).await?;
    for leaf in &joined {
        let question = serde_json::json!({ "cid": leaf.connection }).to_string();
        ask::<serde_json::Value>(bus, "KICK", question.into()).await?;
    }
    Ok(joined.len())
}

/// Nothing waits in the cloud for a site any more. What it sent stays.
pub async fn forget_site(bus: &Bus, site: &SiteName) -> Result<(), CarryError> {
    let durables =
        [(VERDICTS, verdicts_durable(site)), (UPDATES, rounds_durable(site)), (ORDERS, orders_durable(site))];
    for (stream, durable) in durables {
        let what = format!("removing consumer {durable} of {stream}");
        match bus.js.delete_consumer_from_stream(&durable, stream).await {
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
    let asked = tokio::time::timeout(PATIENCE, bus.client.request(subject, question)).await;
    let answer = asked.map_err(|_| CarryError::broker(what())("no answer in time"))?;
    let answer = answer.map_err(CarryError::broker(what()))?;
    let answer: AdminReply<A> = serde_json::from_slice(&answer.payload).map_err(CarryError::broker(what()))?;
    match (answer.error, answer.data) {
        (Some(refusal), _) => Err(CarryError::broker(what())(refusal.description)),
        (None, Some(data)) => Ok(data),
        // Some verbs answer with nothing but the server's name.
        (None, None) => serde_json::from_value(serde_json::json!({})).map_err(CarryError::broker(what())),
    }
}
