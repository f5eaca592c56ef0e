//! Servers of a site and a cloud in memory, and messages to publish there.

use std::time::Duration;

use schemas::task::StorageStamp;
use schemas::{
    Answer, AnswerStage, CameraName, ModelName, Prediction, Reason, ReleaseId, Route, SiteName, Task, TaskId,
};
use streams::memory::MemoryCluster;
use streams::topology::{PlanScope, StreamSettings, plan_topology};
use streams::{Publication, Publisher};

/// Name of the site and its server.
pub(crate) const SITE: &str = "reef";
/// Name of the cloud's server.
pub(crate) const CLOUD: &str = "cloud";
/// Acknowledgement wait of every consumer.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(4);

/// The site's name.
pub(crate) fn site() -> SiteName {
    SITE.parse().unwrap()
}

/// A camera of the site.
pub(crate) fn camera() -> CameraName {
    "cam-1".parse().unwrap()
}

/// The model that the site runs.
pub(crate) fn model() -> ModelName {
    ModelName::from_name("light")
}

/// A release id made from a number.
pub(crate) fn release_id(number: u8) -> ReleaseId {
    ReleaseId::from_sha256([number; 32])
}

/// Default stream settings with a short acknowledgement wait.
pub(crate) fn settings() -> StreamSettings {
    let ack_wait_s = u32::try_from(ACK_WAIT.as_secs()).unwrap();
    StreamSettings { ack_wait_s, ..StreamSettings::default() }
}

/// A cluster with a site only.
pub(crate) fn one_site(seed: u64) -> MemoryCluster {
    let cluster = MemoryCluster::new(seed);
    cluster.add_server(SITE, &plan_topology(&PlanScope::Site(site()), &settings()));
    cluster
}

/// A cluster with a site and the cloud, joined by a link.
pub(crate) fn site_and_cloud(seed: u64) -> MemoryCluster {
    let cluster = one_site(seed);
    cluster.add_server(CLOUD, &plan_topology(&PlanScope::Cloud(vec![site()]), &settings()));
    cluster
}

/// A cluster with the cloud only.
pub(crate) fn cloud_of(seed: u64, sites: Vec<SiteName>) -> MemoryCluster {
    let cluster = MemoryCluster::new(seed);
    cluster.add_server(CLOUD, &plan_topology(&PlanScope::Cloud(sites), &settings()));
    cluster
}

/// Task of an image that was published with this message id.
pub(crate) fn task_of(message_id: &str) -> TaskId {
    TaskId::from_message_id(&site(), &camera(), message_id, b"")
}

/// An answer with a fixed prediction about an image.
pub(crate) fn answer_about(
    task: TaskId,
    image_sequence: u64,
    stored_at_ns: i128,
    stage: AnswerStage,
    route: Route,
    reason: Reason,
) -> Answer {
    let stamp = StorageStamp { site: site(), camera: camera(), sequence: image_sequence, stored_at_ns };
    let at_ms = u64::try_from(stored_at_ns / 1_000_000).unwrap_or(0);
    let prediction = Prediction {
        label: "kelp".into(),
        confidence: 0.5,
        top: Vec::new(),
        labels: None,
        objects: None,
        release: release_id(1),
        temperature: None,
        novelty: None,
    };
    Answer::for_task(&Task::from_id(&stamp, task), stage, route, reason, at_ms).with_prediction(prediction)
}

/// Publishes a message, retrying until it is stored.
pub(crate) async fn publish_until_stored(publisher: &Publisher, publication: &Publication) {
    while publisher.publish(publication).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
