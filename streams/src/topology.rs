//! Every stream, bucket and durable consumer, declared once: [`plan_topology`] lists what a site or the cloud needs,
//! [`apply_plan`] creates it, [`compare_plan`] reports differences. Workers create nothing.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, Source, StorageType,
    SubjectTransform,
};
use schemas::SiteName;
use schemas::limits::MAX_TRIES;
use serde::{Deserialize, Serialize};

pub use self::setup::{RepairMode, SettingDifference, SetupFinding, SetupStatus, apply_plan, compare_plan};

mod setup;

/// Images as published: inbox and archive of a site.
pub const IMAGES: &str = "IMAGES";
/// Provisional and final answers of a site.
pub const ANSWERS: &str = "ANSWERS";
/// Messages of a site that wait for the link.
pub const OUTBOX: &str = "OUTBOX";
/// Dead letters.
pub const DEAD: &str = "DEAD";
/// Requests to verify tasks.
pub const VERIFY: &str = "VERIFY";
/// Verdicts.
pub const VERDICTS: &str = "VERDICTS";
/// Images kept whatever their age, with their answers.
pub const PINNED: &str = "PINNED";
/// Labels given by people.
pub const LABELS: &str = "LABELS";
/// How each camera of a site is, and the states of what they show: the latest message of each.
pub const CAMERAS: &str = "CAMERAS";
/// Which images each update of a site learned from. Never crosses the leaf link.
pub const LEARNED: &str = "LEARNED";
/// Updates of the sites, as references to weights and never a picture; and the events of rounds.
pub const UPDATES: &str = "UPDATES";
/// Events of rounds, copied from [`UPDATES`], where sites' updates displace them in time.
pub const ROUNDS: &str = "ROUNDS";
/// Rollout decisions of each model.
pub const RELEASES: &str = "RELEASES";
/// Orders to the sites, the latest for each model.
pub const ORDERS: &str = "ORDERS";
/// Workers' reports on the releases they run.
pub const SWAPS: &str = "SWAPS";
/// Bucket of large images at a site. Never crosses the leaf link by itself.
pub const BLOBS: &str = "blobs";
/// Bucket of packages and weights that the cloud offers to its sites. Its name differs from a site's bucket: the server
/// keeps buckets of one name in two domains apart only if they are key-value buckets.
pub const CLOUD_BLOBS: &str = "cloud-blobs";
/// Bucket of large images that are pinned. Never crosses the leaf link by itself.
pub const PINNED_BLOBS: &str = "pinned-blobs";
/// Bucket of heartbeats, at a site and in the cloud.
pub const FLEET: &str = "fleet";
/// Hard cases: features and scores, never pixels.
pub const HARDCASES: &str = "HARDCASES";
/// Audit of what people did by hand, at a site and in the cloud. Nothing in it can be deleted.
pub const AUDIT: &str = "AUDIT";
/// Bucket of the notes of a site, and of the cloud: what must survive a restart.
pub const LEDGER: &str = "ledger";

/// The server's notices of messages that were delivered as often as their durable allows and never finished.
pub const ADVISORIES: &str = "ADVISORIES";

/// Durable of the verifiers on VERIFY.
pub const VERIFIER: &str = "verifier";

/// Size of each stream and bucket of small messages without a setting of its own, MiB.
const SMALL_MIB: u32 = 64;

/// Delivery limit of a durable whose role counts attempts and dead-letters after the last one: a message delivered this
/// often reached no worker.
const COUNTED: i64 = 2 * MAX_TRIES as i64;
/// Delivery limit of a durable whose role retries for as long as it takes: enough for days of deliveries every few
/// seconds.
const UNCOUNTED: i64 = 100_000;

/// Heartbeats expire after this.
pub const FLEET_AGE: Duration = Duration::from_secs(15);

/// Reports on releases expire after this: older ones say little about today.
pub const SWAPS_AGE: Duration = Duration::from_secs(48 * 3600);

/// Durable of a site's recognizers on IMAGES. It carries the site's name, like every durable that exists at more than
/// one place: the subject of an acknowledgement names stream and durable but no domain, so with one name for all a
/// site's acknowledgements would count at every other site that a leaf link leads to.
pub fn recognizer_durable(site: &SiteName) -> String {
    format!("recognizer-{site}")
}

/// Durable of a site's recognizers on final ANSWERS, from which calibration learns.
pub fn learner_durable(site: &SiteName) -> String {
    format!("learner-{site}")
}

/// Durable of a site's courier on provisional ANSWERS, whose deadlines it keeps.
pub fn promises_durable(site: &SiteName) -> String {
    format!("promises-{site}")
}

/// Bucket in the cloud for large images and weights sent up by a site: no site can read another's, nor use up its
/// space.
pub fn sent_blobs(site: &SiteName) -> String {
    format!("{CLOUD_BLOBS}-{site}")
}

/// Durable of a site's courier on VERDICTS.
pub fn verdicts_durable(site: &SiteName) -> String {
    format!("courier-{site}")
}

/// Durable of a site's courier on UPDATES, for the openings of rounds.
pub fn rounds_durable(site: &SiteName) -> String {
    format!("rounds-{site}")
}

/// Durable of a site's courier on ORDERS.
pub fn orders_durable(site: &SiteName) -> String {
    format!("orders-{site}")
}

/// Limits of the streams. Sizes in MiB, times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamSettings {
    /// Images kept at a site, answered and unanswered, MiB, at least 1. At the limit publishers get an error until the
    /// janitor has purged answered images.
    pub images_max_mib: u32,
    /// Answers kept at a site, at least 1000; each costs the server about 0.5 KiB of memory.
    pub answers_max_messages: u32,
    /// Answers kept at a site, MiB, at least 1; the oldest are dropped first.
    pub answers_max_mib: u32,
    /// Messages at a site that wait for the link, MiB, at least 1. At the limit doubtful answers become final
    /// unverified.
    pub outbox_max_mib: u32,
    /// Messages at a site that wait for the link, at least 1; the courier keeps about 200 bytes of memory for
    /// each.
    pub outbox_max_messages: u32,
    /// Hard cases kept in the cloud, MiB, at least 1; the oldest are dropped first.
    pub hardcases_max_mib: u32,
    /// Images pinned at a site, MiB, at least 1, and as much again for large images; at the limit nothing more can be
    /// pinned.
    pub pinned_max_mib: u32,
    /// Labels kept at a site, MiB, at least 1; the oldest are dropped first.
    pub labels_max_mib: u32,
    /// Lists of learned images kept at a site, MiB, at least 1; the oldest are dropped first. An update of 20,000
    /// images takes 0.35 MiB.
    pub learned_max_mib: u32,
    /// Updates kept in the cloud without the weights themselves, MiB, at least 1; the oldest are dropped first.
    pub updates_max_mib: u32,
    /// Rollout decisions kept in the cloud, MiB, at least 1; the oldest are dropped first.
    pub releases_max_mib: u32,
    /// Workers' reports on releases kept in the cloud for two days, MiB, at least 1; the oldest are dropped first.
    pub swaps_max_mib: u32,
    /// Requests in the cloud that wait for a verifier, MiB, at least 1.
    pub verify_max_mib: u32,
    /// Large images and weights kept by reference, at a site and in the cloud, MiB, at least 1.
    pub blobs_max_mib: u32,
    /// Age at which large images expire, at a site and in the cloud, seconds; an image unanswered by then becomes a
    /// dead letter.
    pub blobs_max_age_s: u32,
    /// Dead letters kept, MiB, at least 1; the oldest are dropped first.
    pub dead_max_mib: u32,
    /// How long a repeated message id is recognized, seconds; must exceed the longest retry of any publisher.
    pub duplicate_window_s: u32,
    /// A message without acknowledgement or progress for this long goes to another worker, seconds, 1 to 3600.
    pub ack_wait_s: u32,
    /// How long verdicts wait for their site, seconds.
    pub verdicts_max_age_s: u32,
    /// Verdicts that wait for their sites, MiB, at least 1; a fetched one is dropped. At the limit the oldest are
    /// dropped first: their tasks end with the site's own answer at their deadline.
    pub verdicts_max_mib: u32,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            images_max_mib: 4096,
            answers_max_messages: 1_000_000,
            answers_max_mib: 1024,
            outbox_max_mib: 1024,
            outbox_max_messages: 200_000,
            hardcases_max_mib: 256,
            pinned_max_mib: 512,
            labels_max_mib: 64,
            learned_max_mib: 32,
            updates_max_mib: 64,
            releases_max_mib: 64,
            swaps_max_mib: 256,
            verify_max_mib: 1024,
            blobs_max_mib: 1024,
            blobs_max_age_s: 7 * 24 * 3600,
            dead_max_mib: 256,
            duplicate_window_s: 30 * 60,
            ack_wait_s: 30,
            verdicts_max_age_s: 7 * 24 * 3600,
            verdicts_max_mib: 512,
        }
    }
}

impl StreamSettings {
    /// Names the first invalid setting and its range.
    pub fn check(&self) -> Result<(), String> {
        let at_least_one = [
            ("images_max_mib", self.images_max_mib),
            ("answers_max_mib", self.answers_max_mib),
            ("outbox_max_mib", self.outbox_max_mib),
            ("outbox_max_messages", self.outbox_max_messages),
            ("hardcases_max_mib", self.hardcases_max_mib),
            ("pinned_max_mib", self.pinned_max_mib),
            ("labels_max_mib", self.labels_max_mib),
            ("learned_max_mib", self.learned_max_mib),
            ("updates_max_mib", self.updates_max_mib),
            ("releases_max_mib", self.releases_max_mib),
            ("swaps_max_mib", self.swaps_max_mib),
            ("verify_max_mib", self.verify_max_mib),
            ("blobs_max_mib", self.blobs_max_mib),
            ("blobs_max_age_s", self.blobs_max_age_s),
            ("dead_max_mib", self.dead_max_mib),
            ("duplicate_window_s", self.duplicate_window_s),
            ("ack_wait_s", self.ack_wait_s),
            ("verdicts_max_age_s", self.verdicts_max_age_s),
            ("verdicts_max_mib", self.verdicts_max_mib),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0; it must be at least 1"));
        }
        if self.answers_max_messages < 1000 {
            return Err(format!("answers_max_messages is {}; it must be at least 1000", self.answers_max_messages));
        }
        Ok(())
    }
}

/// What a plan is for. With everything on one server, the plans of a site and the cloud are combined.
#[derive(Debug, Clone)]
pub enum PlanScope {
    /// A site's own server.
    Site(SiteName),
    /// The cloud, with the sites whose couriers fetch verdicts.
    Cloud(Vec<SiteName>),
    /// Site and cloud on one server.
    Both(SiteName),
}

/// The streams and consumers that a site or the cloud needs.
#[derive(Debug, Clone, Default)]
pub struct TopologyPlan {
    pub(crate) streams: Vec<StreamConfig>,
    pub(crate) consumers: Vec<(&'static str, pull::Config)>,
}

/// Bytes that the streams of a site and of the cloud may hold together with default settings.
pub fn default_store_bytes() -> u64 {
    plan_topology(&PlanScope::Both(SiteName::default_site()), &StreamSettings::default()).max_store_bytes()
}

/// The plan for a site, the cloud or both.
pub fn plan_topology(place: &PlanScope, settings: &StreamSettings) -> TopologyPlan {
    let mut plan = TopologyPlan::default();
    match place {
        PlanScope::Site(site) => plan.add_site(site, settings),
        PlanScope::Cloud(sites) => plan.add_cloud(sites, settings),
        PlanScope::Both(site) => {
            plan.add_site(site, settings);
            plan.add_cloud(std::slice::from_ref(site), settings);
        }
    }
    plan
}

impl TopologyPlan {
    /// Names of the streams, including those of buckets.
    pub fn stream_names(&self) -> impl Iterator<Item = &str> {
        self.streams.iter().map(|stream| stream.name.as_str())
    }

    /// Bytes that all streams may hold together: the server's `max_file_store` must allow this. Includes an eighth for
    /// what the server keeps beside them, and the streams of its MQTT sessions.
    pub fn max_store_bytes(&self) -> u64 {
        const MQTT_BYTES: u64 = 256 * 1024 * 1024;
        let streams: u64 = self.streams.iter().map(|stream| u64::try_from(stream.max_bytes).unwrap_or(0)).sum();
        streams + streams / 8 + MQTT_BYTES
    }

    fn add_site(&mut self, site: &SiteName, settings: &StreamSettings) {
        let window = Duration::from_secs(settings.duplicate_window_s.into());
        self.fleet();
        self.ledger();
        self.stream(StreamConfig {
            // Never drops an unanswered image: a full stream is an error at the publisher.
            discard: DiscardPolicy::New,
            max_bytes: bytes(settings.images_max_mib),
            // The server detects duplicates by message id alone, so it would drop one camera's image for another's with
            // the same id. A stream with a source detects no duplicates; this source never yields anything.
            // Readers of images detect duplicates by camera, id and content.
            sources: Some(vec![Source {
                name: format!("KV_{LEDGER}"),
                filter_subject: Some(format!("$KV.{LEDGER}.no-image")),
                ..Source::default()
            }]),
            // Malformed subjects and other sites' images are stored too: they become dead letters that name the
            // right subject; otherwise an MQTT client would have an acknowledgement and the image would be gone. A
            // topic that begins with a slash arrives as `/.image`.
            ..file(IMAGES, ["image", "image.>", "/.image.>"].map(str::to_owned).to_vec())
        });
        self.stream(StreamConfig {
            max_messages: settings.answers_max_messages.into(),
            max_bytes: bytes(settings.answers_max_mib),
            // Outcomes are stored in the slots of final answers and republished there once stored. They are
            // as durable as images: one that was announced and then lost in a crash would be made and announced again.
            subject_transform: Some(SubjectTransform {
                source: "outcome.*.*.*".into(),
                destination: "answer.final.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}".into(),
            }),
            republish: Some(Republish {
                source: "answer.final.>".into(),
                destination: "answer.final.>".into(),
                headers_only: false,
            }),
            ..file(ANSWERS, vec![format!("answer.provisional.{site}.*"), format!("outcome.{site}.*.*")])
        });
        self.stream(StreamConfig {
            // Not a work queue: the courier chooses what goes next and deletes what was sent.
            discard: DiscardPolicy::New,
            max_bytes: bytes(settings.outbox_max_mib),
            max_messages: settings.outbox_max_messages.into(),
            duplicate_window: window,
            ..file(OUTBOX, vec![format!("outbox.{site}.*")])
        });
        self.stream(StreamConfig {
            max_bytes: bytes(settings.labels_max_mib),
            duplicate_window: window,
            ..file(LABELS, vec![format!("label.{site}.*")])
        });
        self.stream(StreamConfig {
            max_messages_per_subject: 1,
            max_bytes: bytes(SMALL_MIB),
            ..file(CAMERAS, vec![format!("camera.{site}.*.health"), format!("camera.{site}.*.state")])
        });
        self.stream(StreamConfig {
            max_bytes: bytes(settings.learned_max_mib),
            duplicate_window: window,
            ..file(LEARNED, vec![format!("learned.{site}.*")])
        });
        self.stream(StreamConfig {
            // One slot per image of a set, so that pinning twice is pinning once.
            discard: DiscardPolicy::New,
            max_bytes: bytes(settings.pinned_max_mib),
            ..file(PINNED, vec![format!("pin.*.{site}.*.*")])
        });
        // The courier also writes dead letters for what it refuses from the cloud.
        let dead = ["images", "outbox", "answers", "verdicts", "orders", "updates"];
        let dead = dead.map(|stream| format!("dead.{stream}.{site}.*"));
        self.stream(StreamConfig { max_bytes: bytes(settings.dead_max_mib), ..file(DEAD, dead.to_vec()) });
        self.blobs(BLOBS, settings.blobs_max_mib, age(settings.blobs_max_age_s));
        self.blobs(PINNED_BLOBS, settings.pinned_max_mib, Duration::ZERO);
        self.advisories();
        self.audit(site);

        let wait = Duration::from_secs(settings.ack_wait_s.into());
        // An offloaded image stays unacknowledged until its answer arrives.
        let recognizer = durable(&recognizer_durable(site), wait, COUNTED);
        self.consumer(IMAGES, pull::Config { max_ack_pending: 10_000, ..recognizer });
        self.consumer(
            ANSWERS,
            pull::Config {
                filter_subject: format!("answer.provisional.{site}.*"),
                max_ack_pending: 50_000,
                ..durable(&promises_durable(site), wait, UNCOUNTED)
            },
        );
        let filter_subject = format!("answer.final.{site}.*.*");
        self.consumer(ANSWERS, pull::Config { filter_subject, ..durable(&learner_durable(site), wait, UNCOUNTED) });
    }

    fn add_cloud(&mut self, sites: &[SiteName], settings: &StreamSettings) {
        let window = Duration::from_secs(settings.duplicate_window_s.into());
        self.stream(StreamConfig {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_bytes: bytes(settings.verify_max_mib),
            duplicate_window: window,
            ..file(VERIFY, patterns_of_sites(sites, |site| format!("verify.*.{site}.*")))
        });
        self.stream(StreamConfig {
            // Deleted once the courier of its site has fetched it.
            retention: RetentionPolicy::Interest,
            max_bytes: bytes(settings.verdicts_max_mib),
            max_age: Duration::from_secs(settings.verdicts_max_age_s.into()),
            duplicate_window: window.min(Duration::from_secs(settings.verdicts_max_age_s.into())),
            ..file(VERDICTS, vec!["verdict.*.*".into()])
        });
        let nobody = [SiteName::unknown(), SiteName::cloud()];
        let dead = sites
            .iter()
            .chain(&nobody)
            .flat_map(|site| ["verify", "updates"].map(|stream| format!("dead.{stream}.{site}.*")));
        let dead = dead.collect();
        self.stream(StreamConfig { max_bytes: bytes(settings.dead_max_mib), ..file(DEAD, dead) });
        self.stream(StreamConfig {
            // The oldest are dropped: a collection without obligations.
            max_bytes: bytes(settings.hardcases_max_mib),
            duplicate_window: window,
            ..file(HARDCASES, patterns_of_sites(sites, |site| format!("hardcase.{site}")))
        });
        let mut updates = patterns_of_sites(sites, |site| format!("update.*.*.{site}"));
        updates.push("round.*.*.*".into());
        self.stream(StreamConfig {
            max_bytes: bytes(settings.updates_max_mib),
            // Only the first of an update counts; a site that repeats its update takes space from nobody.
            max_messages_per_subject: 4,
            duplicate_window: window,
            ..file(UPDATES, updates)
        });
        self.stream(StreamConfig {
            max_bytes: bytes(SMALL_MIB),
            sources: Some(vec![Source {
                name: UPDATES.into(),
                filter_subject: Some("round.>".into()),
                ..Source::default()
            }]),
            ..file(ROUNDS, Vec::new())
        });
        self.stream(StreamConfig {
            max_bytes: bytes(settings.releases_max_mib),
            ..file(RELEASES, vec!["release.*.*".into()])
        });
        self.stream(StreamConfig {
            // Only the latest counts, and a site that was away for long still finds it.
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            max_bytes: bytes(SMALL_MIB),
            ..file(ORDERS, vec!["order.*.*".into()])
        });
        self.stream(StreamConfig {
            max_bytes: bytes(settings.swaps_max_mib),
            max_age: SWAPS_AGE,
            max_messages_per_subject: 1,
            ..file(
                SWAPS,
                patterns_of_sites(sites.iter().chain([&SiteName::cloud()]), |site| format!("swap.{site}.*.*")),
            )
        });
        self.blobs(CLOUD_BLOBS, settings.blobs_max_mib, age(settings.blobs_max_age_s));
        for site in sites {
            self.blobs(&sent_blobs(site), settings.blobs_max_mib, age(settings.blobs_max_age_s));
        }
        self.fleet();
        self.ledger();
        self.advisories();
        self.audit(&SiteName::cloud());

        let wait = Duration::from_secs(settings.ack_wait_s.into());
        self.consumer(VERIFY, durable(VERIFIER, wait, COUNTED));
        for site in sites {
            let filter_subject = format!("verdict.{site}.*");
            self.consumer(
                VERDICTS,
                pull::Config { filter_subject, ..durable(&verdicts_durable(site), wait, UNCOUNTED) },
            );
            let filter_subject = "round.*.*.opened".into();
            self.consumer(UPDATES, pull::Config { filter_subject, ..durable(&rounds_durable(site), wait, UNCOUNTED) });
            let filter_subject = format!("order.{site}.*");
            self.consumer(ORDERS, pull::Config { filter_subject, ..durable(&orders_durable(site), wait, UNCOUNTED) });
        }
    }

    /// Adds a bucket of blobs that expire after `max_age`; zero: never.
    fn blobs(&mut self, name: &str, max_mib: u32, max_age: Duration) {
        self.stream(StreamConfig {
            discard: DiscardPolicy::New,
            max_bytes: bytes(max_mib),
            max_age,
            allow_rollup: true,
            subjects: vec![format!("$O.{name}.C.>"), format!("$O.{name}.M.>")],
            ..file(&format!("OBJ_{name}"), Vec::new())
        });
    }

    fn fleet(&mut self) {
        self.stream(StreamConfig {
            max_messages_per_subject: 1,
            max_age: FLEET_AGE,
            duplicate_window: FLEET_AGE,
            allow_rollup: true,
            // On disk, because a bucket in memory is gone after a restart of the server and nobody creates it
            // again; but writes need not wait for the disk.
            persist_mode: Some(PersistenceMode::Async),
            ..bucket(FLEET)
        });
    }

    /// Adds the stream of undelivered messages, in which each role looks for those of its own durable.
    fn advisories(&mut self) {
        let subjects = vec!["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>".into()];
        self.stream(StreamConfig { max_bytes: bytes(SMALL_MIB), ..file(ADVISORIES, subjects) });
    }

    fn audit(&mut self, place: &SiteName) {
        self.stream(StreamConfig {
            deny_delete: true,
            deny_purge: true,
            max_bytes: bytes(SMALL_MIB),
            ..file(AUDIT, vec![format!("audit.{place}")])
        });
    }

    fn ledger(&mut self) {
        self.stream(StreamConfig { max_messages_per_subject: 1, allow_rollup: true, ..bucket(LEDGER) });
    }

    /// Adds a stream; if site and cloud share it on one server, it gets the subjects of both.
    fn stream(&mut self, wanted: StreamConfig) {
        match self.streams.iter_mut().find(|stream| stream.name == wanted.name) {
            Some(stream) => {
                let new = wanted.subjects.into_iter().filter(|subject| !stream.subjects.contains(subject));
                let new: Vec<String> = new.collect();
                stream.subjects.extend(new);
            }
            None => self.streams.push(wanted),
        }
    }

    fn consumer(&mut self, stream: &'static str, wanted: pull::Config) {
        self.consumers.push((stream, wanted));
    }
}

/// A pattern for each site. One per site, because a leaf server only sees interest of the cloud's streams that lies
/// wholly within its user's permissions.
fn patterns_of_sites<'a>(
    sites: impl IntoIterator<Item = &'a SiteName>,
    pattern: impl Fn(&SiteName) -> String,
) -> Vec<String> {
    sites.into_iter().map(pattern).collect()
}

fn age(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn bytes(mib: u32) -> i64 {
    i64::from(mib) * 1024 * 1024
}

fn file(name: &str, subjects: Vec<String>) -> StreamConfig {
    StreamConfig {
        name: name.into(),
        subjects,
        storage: StorageType::File,
        num_replicas: 1,
        allow_direct: true,
        // The server's limit is the only one: it refuses where the publisher sees it.
        max_message_size: -1,
        ..StreamConfig::default()
    }
}

fn bucket(name: &str) -> StreamConfig {
    StreamConfig {
        deny_delete: true,
        discard: DiscardPolicy::New,
        max_bytes: bytes(SMALL_MIB),
        ..file(&format!("KV_{name}"), vec![format!("$KV.{name}.>")])
    }
}

fn durable(name: &str, ack_wait: Duration, max_deliver: i64) -> pull::Config {
    pull::Config {
        durable_name: Some(name.into()),
        name: Some(name.into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_deliver,
        max_ack_pending: 1000,
        ..pull::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_and_cloud_on_one_server_share_the_streams_both_want() {
        let site: SiteName = "reef".parse().unwrap();
        let both = plan_topology(&PlanScope::Both(site.clone()), &StreamSettings::default());
        let dead: Vec<_> = both.streams.iter().filter(|stream| stream.name == DEAD).collect();
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].subjects.len(), 6 + 1 + 4, "the site's, the cloud's, and those without a site");
    }

    #[test]
    fn every_stream_has_a_size_limit_and_every_durable_a_delivery_limit() {
        let plan = plan_topology(&PlanScope::Both("reef".parse().unwrap()), &StreamSettings::default());
        for stream in &plan.streams {
            assert!(stream.max_bytes > 0, "{} has no size limit", stream.name);
        }
        for (stream, consumer) in &plan.consumers {
            assert!(consumer.max_deliver > MAX_TRIES as i64, "{stream}: {:?}", consumer.durable_name);
        }
        assert!(plan.max_store_bytes() > plan.streams.iter().map(|stream| stream.max_bytes as u64).sum());
    }

    #[test]
    fn durables_of_two_sites_have_different_names() {
        let names = |site: &str| {
            let plan = plan_topology(&PlanScope::Site(site.parse().unwrap()), &StreamSettings::default());
            plan.consumers.into_iter().filter_map(|(_, consumer)| consumer.durable_name).collect::<Vec<_>>()
        };
        let (reef, farm) = (names("reef"), names("farm"));
        assert!(reef.len() >= 3 && reef.iter().all(|name| !farm.contains(name)), "{reef:?} {farm:?}");
    }

    #[test]
    fn site_and_cloud_subjects_never_overlap() {
        let site: SiteName = "reef".parse().unwrap();
        let settings = StreamSettings::default();
        let subjects = |place| {
            let plan = plan_topology(&place, &settings);
            let all = plan.streams.into_iter().flat_map(|stream| stream.subjects);
            // The server keeps key-value buckets apart, and only those.
            // Its own notices never leave it, and dead letters stay where they were written.
            let own = ["$KV.", "$JS.EVENT.", "dead."];
            all.filter(|subject| !own.iter().any(|own| subject.starts_with(own))).collect::<Vec<_>>()
        };
        let first_two = |subject: &String| subject.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
        let (at_site, in_cloud) = (subjects(PlanScope::Site(site.clone())), subjects(PlanScope::Cloud(vec![site])));
        for a in at_site.iter().map(first_two) {
            for b in in_cloud.iter().map(first_two) {
                assert!(a[0] != b[0] || (a[1] != b[1] && a[1] != "*" && b[1] != "*"), "{a:?} overlaps {b:?}");
            }
        }
    }
}
