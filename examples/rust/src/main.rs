//! Publish one image and print its final answer.
//!
//!     cargo run -p tributary-example -- IMAGE [SITE] [CAMERA]
//!
//! `NATS_URL` names the site's server; it is `nats://127.0.0.1:4222` by default.

use std::time::Duration;
use std::{env, fs};

use anyhow::Context;
use async_nats::{HeaderMap, jetstream};
use futures::StreamExt;
use serde::Deserialize;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The fields of an answer that this program needs; docs/publishing.md lists them all.
#[derive(Deserialize)]
struct Answer {
    route: String,
    label: Option<String>,
    confidence: Option<f32>,
    fault: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    reason: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let image = arguments.next().context("usage: tributary-example IMAGE [SITE] [CAMERA]")?;
    let site = arguments.next().unwrap_or_else(|| "site-1".to_owned());
    let camera = arguments.next().unwrap_or_else(|| "cam-1".to_owned());
    let url = env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = async_nats::connect(&url).await.with_context(|| format!("cannot connect to {url}"))?;

    // A message id that is a UUID becomes the id of the task, so the subject of its answer is known beforehand.
    // Subscribe first: the answer may arrive before the acknowledgement.
    let task = uuid::Uuid::now_v7().to_string();
    let mut answers = client.subscribe(format!("answer.final.{site}.{camera}.{task}")).await?;

    // The acknowledgement says that the image is stored and will be answered. Without one, publish again with the same
    // id: the image is answered only once.
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", task.as_str());
    let bytes = fs::read(&image).with_context(|| format!("cannot read {image}"))?;
    let stream = jetstream::new(client.clone());
    let stored = stream.publish_with_headers(format!("image.{site}.{camera}"), headers, bytes.into()).await?.await?;
    println!("stored as message {} of stream {}", stored.sequence, stored.stream);

    // A doubtful image is answered when the cloud's verdict arrives, or at its deadline, so a real program should read
    // answers in a separate task.
    let message = tokio::time::timeout(ANSWER_TIMEOUT, answers.next())
        .await
        .context("no answer within 30 s; `tributary answers` shows it later")?;
    let answer: Answer = rmp_serde::from_slice(&message.context("the connection ended")?.payload)?;
    match (answer.label, answer.confidence, answer.fault) {
        (Some(label), Some(confidence), _) => {
            println!("{label} ({:.1}%), decided by route {}", confidence * 100.0, answer.route);
        }
        (_, _, Some(fault)) => println!("not recognized: {}", fault.reason),
        _ => println!("no label, route {}", answer.route),
    }
    Ok(())
}
