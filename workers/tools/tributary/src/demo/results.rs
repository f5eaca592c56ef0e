//! Results of the demo: accuracy, traffic and latency, as text and JSON.

use std::time::Duration;

use anyhow::ensure;
use schemas::Route;
use serde_json::json;
use streams::server::Durability;

use super::DemoPicture;
use super::curve::{self, PredictionPair};
use super::latency::Latency;
use super::run::{DemoAnswer, DemoRun, IN_FLIGHT};

/// Most points of the curve; more cannot be told apart.
const MAX_POINTS: usize = 200;

/// Shares sent up for which the accuracy is shown.
const SHOWN: [f64; 7] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0];

/// Accuracy, traffic and latency of a run.
pub(super) struct DemoResult {
    images: usize,
    /// Final answers by the site, by the cloud, and dead letters.
    by_site: usize,
    by_cloud: usize,
    dead: usize,
    site_alone: f64,
    together: f64,
    cloud_alone: f64,
    sent_up: u64,
    bytes_up: u64,
    image_bytes: usize,
    images_per_s: f64,
    durability: Durability,
    provisionals: usize,
    provisional: Latency,
    confident: Latency,
    verified: Latency,
    finals: Latency,
    curve: Vec<(f64, f64)>,
}

impl DemoResult {
    /// Compares the answers with the labels; `cloud` is the cloud model's label for every image.
    pub(super) fn of(
        pictures: &[DemoPicture],
        run: DemoRun,
        cloud: &[String],
        durability: Durability,
    ) -> anyhow::Result<Self> {
        let images = pictures.len();
        let share = |count: usize| count as f64 / images.max(1) as f64;
        let mut judged = Vec::with_capacity(images);
        let (mut by_site, mut by_cloud, mut dead, mut right) = (0, 0, 0, 0);
        let mut times: [Vec<Duration>; 4] = Default::default();
        let [provisional, confident, verified, finals] = &mut times;
        for ((picture, answered), cloud) in pictures.iter().zip(&run.answered).zip(cloud) {
            let DemoAnswer { answer, final_, .. } = answered;
            provisional.extend(answered.provisional);
            finals.push(*final_);
            let is_right = |label: Option<&str>| label == Some(picture.label.as_str());
            right += usize::from(is_right(answer.label.as_deref()));
            match answer.route {
                Route::Dead => dead += 1,
                Route::Verified | Route::Redirected => {
                    by_cloud += 1;
                    verified.push(*final_);
                }
                Route::Edge | Route::Expired => {
                    by_site += 1;
                    confident.push(*final_);
                }
            }
            // The site's own answer, whether or not it became final.
            let edge = answer.edge.clone().or_else(|| answer.prediction());
            judged.push(PredictionPair {
                confidence: edge.as_ref().map_or(0.0, |edge| edge.confidence),
                site_right: is_right(edge.as_ref().map(|edge| edge.label.as_str())),
                cloud_right: is_right(Some(cloud)),
            });
        }
        ensure!(judged.len() == images, "{} of {images} images were evaluated", judged.len());
        let provisionals = provisional.len();
        let [provisional, confident, verified, finals] = times.map(Latency::of);
        Ok(Self {
            images,
            by_site,
            by_cloud,
            dead,
            site_alone: share(judged.iter().filter(|image| image.site_right).count()),
            together: share(right),
            cloud_alone: share(judged.iter().filter(|image| image.cloud_right).count()),
            sent_up: run.sent_up,
            bytes_up: run.bytes_up,
            image_bytes: pictures.iter().map(|picture| picture.bytes.len()).sum(),
            images_per_s: images as f64 / run.elapsed.as_secs_f64(),
            durability,
            provisionals,
            provisional,
            confident,
            verified,
            finals,
            curve: curve::by_confidence(&judged),
        })
    }

    fn share_verified(&self) -> f64 {
        self.by_cloud as f64 / self.images.max(1) as f64
    }

    /// The report as text.
    pub(super) fn text(&self) -> String {
        let Self { images, by_site, by_cloud, dead, sent_up, bytes_up, .. } = self;
        let each = self.bytes_up as f64 / self.sent_up.max(1) as f64;
        let all_kb = each * self.images as f64 / 1e3;
        let percent = |share: f64| format!("{:6.2} %", share * 100.0);
        let time = |what: &str, count: usize, latency: &Latency| {
            format!("  {what:<46}{count:>7}{:>10.1}{:>10.1}\n", latency.p50_ms, latency.p99_ms)
        };
        let mut text = format!(
            "Accuracy\n  site alone                  {}\n  site and cloud              {}\n  cloud alone                 {}   if every image were sent up\n\n",
            percent(self.site_alone),
            percent(self.together),
            percent(self.cloud_alone)
        );
        text += &format!(
            "Sent up for a verdict\n  images                      {sent_up} of {images}: {:.1} %\n  traffic                     {:.0} kB, against {all_kb:.0} kB for all images\n                              (payloads of the requests: the image and the site's answer)\n\n",
            100.0 * *sent_up as f64 / (*images).max(1) as f64,
            *bytes_up as f64 / 1e3,
        );
        text += "Had the least confident images gone up, whatever their number\n  sent up         ";
        text += &SHOWN.map(|share| format!("{:>6.0} %", share * 100.0)).concat();
        text += "\n  accuracy        ";
        text += &SHOWN.map(|share| format!("{:>6.1} %", curve::at(&self.curve, share) * 100.0)).concat();
        text += "\n\n";
        text += &format!("{:<48}{:>7}{:>10}{:>10}\n", "Milliseconds from publishing to", "count", "p50", "p99");
        text += &time("a provisional answer by the site", self.provisionals, &self.provisional);
        text += &time("a final answer by the confident site", *by_site, &self.confident);
        text += &time("a final answer by the cloud", *by_cloud, &self.verified);
        text += &time("any final answer", *images, &self.finals);
        let kept = match self.durability {
            Durability::PowerSafe => "each was on disk before it was acknowledged.",
            Durability::Fast => "each is on disk within two minutes (durability fast).",
        };
        text += &format!(
            "\n{:.0} images per second, at most {IN_FLIGHT} of them waiting for their first answer;\n{kept}\n",
            self.images_per_s
        );
        if *dead > 0 {
            text += &format!("{dead} could not be recognized: see `tributary dead-letters list`.\n");
        }
        text
    }

    /// The report as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        json!({
            "demo": "fashion",
            "images": self.images,
            "accuracy_edge_ratio": self.site_alone,
            "accuracy_collaborative_ratio": self.together,
            "accuracy_cloud_ratio": self.cloud_alone,
            "verified_ratio": self.share_verified(),
            "final_by_site": self.by_site,
            "final_by_cloud": self.by_cloud,
            "dead": self.dead,
            "requests_up": self.sent_up,
            "bytes_up": self.bytes_up,
            "bytes_up_counts": "payloads of the verify requests that reached the cloud",
            "image_bytes": self.image_bytes,
            "images_per_s": self.images_per_s,
            "durability": self.durability,
            "provisional": self.provisional,
            "final": self.finals,
            "final_by_site_latency": self.confident,
            "final_by_cloud_latency": self.verified,
            "curve": { "x": "share sent up", "y": "accuracy", "points": curve::thinned(&self.curve, MAX_POINTS) },
            "tributary": env!("CARGO_PKG_VERSION"),
        })
    }
}
