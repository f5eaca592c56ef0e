//! A site and a cloud in memory, and what passes between them.

use std::time::Duration;

use schemas::task::StorageStamp;
use schemas::{
    Answer, AnswerStage, CameraName, ModelName, Prediction, Reason, ReleaseId, Route, SiteName, Task, TaskId,
};
use streams::memory::MemoryCluster;
use streams::topology::{PlanScope, StreamSettings, plan_topology};
use streams::{Publication, Publisher};

/// The site's server.
pub(crate) const SITE: &str = "reef";
/// The cloud's.
pub(crate) const CLOUD: &str = "cloud";
/// How long a message may be held without a word, as workers are told.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(4);

/// The site.
pub(crate) fn site() -> SiteName {
    SITE.parse().unwrap()
}

/// A camera of it.
pub(crate) fn camera() -> CameraName {
    "cam-1".parse().unwrap()
}

/// The model that runs there.
pub(crate) fn model() -> ModelName {
    ModelName::from_name("light")
}

/// A release by number.
pub(crate) fn release_id(number: u8) -> ReleaseId {
    ReleaseId::from_sha256([number; 32])
}

/// Small streams, and waits that suit simulated seconds.
pub(crate) fn settings() -> StreamSettings {
    let ack_wait_s = u32::try_from(ACK_WAIT.as_secs()).unwrap();
    StreamSettings { ack_wait_s, ..StreamSettings::default() }
}

/// A site alone.
pub(crate) fn one_site(seed: u64) -> MemoryCluster {
    let cluster = MemoryCluster::new(seed);
    cluster.add_server(SITE, &plan_topology(&PlanScope::Site(site()), &settings()));
    cluster
}

/// A site and the cloud, with a link between them.
pub(crate) fn site_and_cloud(seed: u64) -> MemoryCluster {
    let cluster = one_site(seed);
    cluster.add_server(CLOUD, &plan_topology(&PlanScope::Cloud(vec![site()]), &settings()));
    cluster
}

/// The cloud alone.
pub(crate) fn cloud_of(seed: u64, sites: Vec<SiteName>) -> MemoryCluster {
    let cluster = MemoryCluster::new(seed);
    cluster.add_server(CLOUD, &plan_topology(&PlanScope::Cloud(sites), &settings()));
    cluster
}

/// The task of an image that was published under this id.
pub(crate) fn task_of(message_id: &str) -> TaskId {
    TaskId::from_message_id(&site(), &camera(), message_id, b"")
}

/// What is said about an image.
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
        release: release_id(1),
        temperature: None,
        novelty: None,
    };
    Answer::for_task(&Task::from_id(&stamp, task), stage, route, reason, at_ms).with_prediction(prediction)
}

/// Publishes a message however long it takes.
pub(crate) async fn publish_at_last(publisher: &Publisher, publication: &Publication) {
    while publisher.publish(publication).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
